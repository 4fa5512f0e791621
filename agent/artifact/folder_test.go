package artifact

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"
)

const smallAPI = `openapi: 3.0.0
info: {title: NAME, version: "1"}
x-wso2-basePath: /NAME/1
x-wso2-production-endpoints: {urls: [https://backend.example.test]}
paths: {/: {get: {}}}
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	// As editors do: write beside, then rename, so that no half file is read.
	if err := os.WriteFile(p+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p+".tmp", p); err != nil {
		t.Fatal(err)
	}
}

func small(name string) string { return strings.ReplaceAll(smallAPI, "NAME", name) }

func names(r Result) []string {
	out := []string{}
	for _, a := range r.APIs {
		out = append(out, a.Name)
	}
	return out
}

func TestFolderKeepsThePreviousVersionOfAFaultyDefinition(t *testing.T) {
	dir := t.TempDir()
	f := NewFolder(FolderOptions{Dir: dir, Logger: zerolog.Nop()})
	if r := f.Scan(); len(r.APIs) != 0 || r.Err != nil || len(r.Faults) != 0 {
		t.Fatalf("an empty folder gives %+v", r)
	}
	write(t, dir, "a.yaml", small("a"))
	write(t, dir, "deep/er/b.yml", small("b"))
	if err := os.CopyFS(filepath.Join(dir, "pizza"), os.DirFS("testdata/good/PizzaOrders-1.0.0")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "weather.zip"), zipped(t, "testdata/good/WeatherInfo-v2"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, dir, ".git/ignored.yaml", "no definition")
	write(t, dir, "README.md", "no definition")
	first := f.Scan()
	if diff := cmp.Diff([]string{"a", "b", "PizzaOrders", "WeatherInfo"}, names(first)); diff != "" || len(first.Faults) > 0 {
		t.Fatalf("APIs (-want +got):\n%s\n%v", diff, first.Faults)
	}
	for _, a := range first.APIs {
		if len(a.UUID) != 36 || a.Origin.Kind != "file" || !strings.HasPrefix(a.Origin.ID, dir) || a.Origin.At == 0 {
			t.Errorf("%s: UUID %q, origin %+v", a.Name, a.UUID, a.Origin)
		}
	}

	write(t, dir, "a.yaml", strings.Replace(small("a"), "https://", "htp://", 1))
	write(t, dir, "c.yaml", "openapi: [")
	second := f.Scan()
	if diff := cmp.Diff([]string{"a", "b", "PizzaOrders", "WeatherInfo"}, names(second)); diff != "" {
		t.Errorf("APIs beside a faulty one (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{filepath.Join(dir, "a.yaml")}, second.Kept); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if len(second.Faults) != 2 || second.Faults[0].File != filepath.Join(dir, "a.yaml") || second.Faults[0].Line != 4 {
		t.Errorf("faults are %v", second.Faults)
	}
	if second.APIs[0] != first.APIs[0] || second.APIs[1] != first.APIs[1] {
		t.Error("an unchanged definition was read again")
	}

	os.Remove(filepath.Join(dir, "a.yaml"))
	os.Remove(filepath.Join(dir, "c.yaml"))
	if r := f.Scan(); len(r.APIs) != 3 || len(r.Faults) != 0 || len(r.Kept) != 0 {
		t.Errorf("after removal: %v, %v, %v", names(r), r.Faults, r.Kept)
	}

	if err := os.Rename(dir, dir+".gone"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir + ".gone") })
	if r := f.Scan(); r.Err == nil || len(r.APIs) != 3 {
		t.Errorf("a folder that is away gives %v and error %v, want the previous APIs and an error", names(r), r.Err)
	}
}

func TestFolderServesOneOfTwoWithTheSameContext(t *testing.T) {
	dir := t.TempDir()
	f := NewFolder(FolderOptions{Dir: dir, Logger: zerolog.Nop()})
	write(t, dir, "b.yaml", small("x"))
	if r := f.Scan(); len(r.APIs) != 1 {
		t.Fatalf("%+v", r)
	}
	write(t, dir, "a.yaml", small("x")) // comes first by name, but the other is being served
	write(t, dir, "b.yaml", small("x")+"x-wso2-owner: somebody\n")
	r := f.Scan()
	if len(r.APIs) != 1 || r.APIs[0].Origin.ID != filepath.Join(dir, "b.yaml") {
		t.Errorf("served is %+v", r.APIs)
	}
	if len(r.Faults) != 1 || r.Faults[0].File != filepath.Join(dir, "a.yaml") || !strings.Contains(r.Faults[0].Problem, "b.yaml") {
		t.Errorf("faults are %v", r.Faults)
	}
}

func TestFolderPassesOverOtherEnvironments(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "here.yaml", small("here")+"x-wso2-label: [Edge EU, Default]\n")
	write(t, dir, "there.yaml", small("there")+"x-wso2-label: [Edge EU]\n")
	write(t, dir, "every.yaml", small("every"))
	r := NewFolder(FolderOptions{Dir: dir, Labels: []string{"Default"}, Logger: zerolog.Nop()}).Scan()
	if diff := cmp.Diff([]string{"every", "here"}, names(r)); diff != "" {
		t.Errorf("APIs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{filepath.Join(dir, "there.yaml")}, r.Skipped); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
}

func TestFolderWatch(t *testing.T) {
	for _, tc := range []struct {
		name             string
		debounce, rescan time.Duration
	}{
		{"by notices", 20 * time.Millisecond, time.Hour},
		{"by slow reading", time.Hour, 20 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "a.yaml", small("a"))
			f := NewFolder(FolderOptions{Dir: dir, Logger: zerolog.Nop(), Debounce: tc.debounce, Rescan: tc.rescan})
			f.Scan()
			ctx, cancel := context.WithCancel(t.Context())
			results := make(chan Result, 64)
			var wg sync.WaitGroup
			wg.Go(func() { f.Watch(ctx, func(r Result) { results <- r }) })
			defer wg.Wait()
			defer cancel()
			expect := func(want ...string) {
				t.Helper()
				deadline := time.After(10 * time.Second)
				var last Result
				for {
					select {
					case last = <-results:
						if cmp.Equal(want, names(last)) {
							return
						}
					case <-deadline:
						t.Fatalf("want %v, last seen %v", want, names(last))
					}
				}
			}
			write(t, dir, "b.yaml", small("b"))
			expect("a", "b")
			write(t, dir, "new/folder/c.yaml", small("c"))
			expect("a", "b", "c")
			write(t, dir, "new/folder/c.yaml", small("changed"))
			expect("a", "b", "changed")
			os.Remove(filepath.Join(dir, "a.yaml"))
			expect("b", "changed")
		})
	}
}

func TestFolderFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	// As a mounted configuration map: files are links into a hidden folder.
	write(t, real, "..data/a.yaml", small("a"))
	if err := os.Symlink("..data/a.yaml", filepath.Join(real, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "elsewhere"), os.DirFS("testdata/good/PizzaOrders-1.0.0")); err != nil {
		t.Fatal(err)
	}
	os.Symlink("../elsewhere", filepath.Join(real, "pizza"))
	os.Symlink(".", filepath.Join(real, "circle"))
	os.Symlink("real", filepath.Join(dir, "link"))
	f := NewFolder(FolderOptions{Dir: filepath.Join(dir, "link"), Logger: zerolog.Nop()})
	if r := f.Scan(); !cmp.Equal([]string{"a", "PizzaOrders"}, names(r)) || len(r.Faults) > 0 {
		t.Errorf("%v, %v, %v", names(r), r.Faults, r.Err)
	}
	write(t, real, "..data/a.yaml", small("b"))
	if r := f.Scan(); !cmp.Equal([]string{"b", "PizzaOrders"}, names(r)) {
		t.Errorf("after a change behind a link: %v, %v", names(r), r.Faults)
	}
}

// TestFolderModel drives a folder at random and compares it with what it should serve: of each file that is there, the
// last good version since it came.
func TestFolderModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "gatehouse-folder-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		f := NewFolder(FolderOptions{Dir: dir, Logger: zerolog.Nop()})
		type state struct {
			good  string // version that is served, "" when there was none
			wrong bool
		}
		model := map[string]state{}
		version := 0
		file := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		put := func(name, text string) {
			if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		scan := func() {
			r := f.Scan()
			got := map[string]state{}
			for _, a := range r.APIs {
				got[a.Name] = state{good: a.Version}
			}
			for _, x := range r.Faults {
				name := strings.TrimSuffix(filepath.Base(x.File), ".yaml")
				got[name] = state{good: got[name].good, wrong: true}
			}
			if len(got) != len(model) {
				t.Fatalf("serves %v, want %v", got, model)
			}
			for name, want := range model {
				if got[name] != want {
					t.Fatalf("%s is %+v, want %+v", name, got[name], want)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"good": func(t *rapid.T) {
				name := file.Draw(t, "file")
				version++
				v := fmt.Sprintf("%04d", version)
				put(name, strings.Replace(small(name), `version: "1"`, `version: "`+v+`"`, 1))
				model[name] = state{good: v}
				scan()
			},
			"wrong": func(t *rapid.T) {
				name := file.Draw(t, "file")
				put(name, strings.Replace(small(name), "https://", "htps://", 1))
				model[name] = state{good: model[name].good, wrong: true}
				scan()
			},
			"remove": func(t *rapid.T) {
				name := file.Draw(t, "file")
				os.Remove(filepath.Join(dir, name+".yaml"))
				delete(model, name)
				scan()
			},
			"away and back": func(t *rapid.T) {
				if err := os.Rename(dir, dir+".away"); err != nil {
					t.Fatal(err)
				}
				if r := f.Scan(); r.Err == nil {
					t.Fatal("no error for a folder that is away")
				}
				if err := os.Rename(dir+".away", dir); err != nil {
					t.Fatal(err)
				}
				scan()
			},
			"": func(t *rapid.T) { scan() },
		})
	})
}

func TestTouchingAFileReadsNothingAnew(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", small("a"))
	f := NewFolder(FolderOptions{Dir: dir, Logger: zerolog.Nop()})
	before := f.Scan()
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(filepath.Join(dir, "a.yaml"), later, later); err != nil {
		t.Fatal(err)
	}
	if after, changed := f.scan(); changed || after.APIs[0] != before.APIs[0] {
		t.Errorf("changed is %v", changed)
	}
}
