package artifact

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"gatehouse/proxy/definition"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	flag.Set("rapid.checks", "25") // each case works on files; the command line may ask for more
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// golden compares text with a file.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("differs from %s (-want +got):\n%s", file, diff)
	}
}

// environment stands for the gateway's.
func environment(name string) (string, bool) {
	v, ok := map[string]string{"PET_PORT": "8443", "PET_PASSWORD": "woof", "EMPTY": ""}[name]
	return v, ok
}

// zipped packs a folder.
func zipped(t testing.TB, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(filepath.Dir(dir), p)
		if err != nil {
			return err
		}
		w, err := z.Create(filepath.ToSlash(rel))
		if err != nil {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

func TestGoodProjects(t *testing.T) {
	entries, err := os.ReadDir("testdata/good")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			opts := Options{LookupEnv: environment, Origin: definition.Origin{Kind: "file", At: 1764000000000, ID: e.Name()}}
			api, err := FromPath("testdata/good/"+e.Name(), opts)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/golden/"+strings.TrimSuffix(e.Name(), ".yaml")+".json", asJSON(t, api))
			if !e.IsDir() {
				return
			}
			packed, err := FromZip(e.Name(), zipped(t, "testdata/good/"+e.Name()), opts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(api, packed); diff != "" {
				t.Errorf("the zip gives another definition than the folder (-folder +zip):\n%s", diff)
			}
		})
	}
}

// TestManual reads the definitions that docs/api-definitions.md shows.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/api-definitions.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) != 2 {
		t.Fatalf("%d examples, want 2", len(blocks))
	}
	first, _, _ := strings.Cut(blocks[0], "```")
	second, _, _ := strings.Cut(blocks[1], "```")
	lookup := func(name string) (string, bool) { return strings.ToLower(name) + ".example.com", true }
	for name, doc := range map[string]string{
		"small":    first,
		"endpoint": "openapi: 3.0.0\ninfo: {title: T, version: \"1\"}\nx-wso2-basePath: /t\npaths: {/: {get: {}}}\n" + second,
	} {
		api, err := FromBytes(name, []byte(doc), Options{LookupEnv: lookup})
		if err != nil || len(api.Notes) > 0 {
			t.Errorf("%s: %v, %v", name, err, api)
		}
	}
}
