package siddhi_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"gatehouse/throttle/siddhi"
)

// Each text in testdata/refused.txt stands between lines of dashes; the golden file says for each what is wrong with it and
// where. "E" stands for a first query that defines EligibilityStream, "W" for the window query behind it.
func TestRefusedTextsNameTheConstructAndItsPlace(t *testing.T) {
	data, err := os.ReadFile("testdata/refused.txt")
	if err != nil {
		t.Fatal(err)
	}
	texts := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n----\n")
	if len(texts) < 40 {
		t.Fatalf("%d texts", len(texts))
	}
	var got strings.Builder
	for _, text := range texts {
		_, err := siddhi.Compile(text, siddhi.Options{})
		var refused *siddhi.Error
		if !errors.As(err, &refused) {
			t.Errorf("taken: %s", text)
			continue
		}
		if refused.Line == 0 && refused.Code != "SIDDHI_RESULT_SCHEMA" {
			t.Errorf("no place: %v", err)
		}
		got.WriteString(text + "\n=> " + err.Error() + "\n----\n")
	}
	golden(t, "refused.golden", got.String())
}

// A refusal does not depend on what stands behind it, and a text cut anywhere is refused or taken, never a panic.
func TestCutTexts(t *testing.T) {
	for n, v := range vectors(t)[:40] {
		for i := n % 17; i < len(v.Query); i += 17 {
			_, _ = siddhi.Compile(v.Query[:i], siddhi.Options{})
		}
	}
}

func TestDepthAndSizeAreBounded(t *testing.T) {
	for name, text := range map[string]string{
		"brackets": "from RequestStream select " + strings.Repeat("(", 100_000) + "1",
		"nots":     "from RequestStream select " + strings.Repeat("not ", 50_000) + "true as x insert into Y",
		"calls":    "from RequestStream select " + strings.Repeat("str:lower(", 20_000) + "'a'",
		"sum":      "from RequestStream select 1" + strings.Repeat("+1", 50_000) + " as x insert into Y",
		"size":     "from RequestStream select '" + strings.Repeat("a", 300<<10) + "' as x insert into Y",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := siddhi.Compile(text, siddhi.Options{Free: true}); !errors.Is(err, &siddhi.Error{Code: "SIDDHI_SYNTAX"}) {
				t.Errorf("want SIDDHI_SYNTAX, got %v", err)
			}
		})
	}
}
