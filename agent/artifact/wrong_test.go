package artifact

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// TestWrongDefinitions reads each definition of testdata/wrong and compares its faults, one a line, with the golden file
// beside it. The text is what operators read: file, line, column, key, value, what is wrong and what would be right.
func TestWrongDefinitions(t *testing.T) {
	entries, err := os.ReadDir("testdata/wrong")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".golden") {
			continue
		}
		seen++
		t.Run(e.Name(), func(t *testing.T) {
			file := "testdata/wrong/" + e.Name()
			api, err := FromPath(file, Options{LookupEnv: environment})
			if err == nil || api != nil {
				t.Fatalf("the definition was taken: %+v", api)
			}
			var faults Faults
			if !errors.As(err, &faults) {
				t.Fatalf("the error is a %T", err)
			}
			for _, f := range faults {
				if !strings.HasPrefix(f.File, file) {
					t.Errorf("fault %q does not name the file", f)
				}
				if f.Want == "" && f.Line == 0 {
					t.Errorf("fault %q says neither where nor what would be right", f)
				}
			}
			golden(t, file+".golden", strings.ReplaceAll(err.Error(), "testdata/wrong/", "")+"\n")
		})
	}
	if seen < 40 {
		t.Errorf("only %d wrong definitions", seen)
	}
}
