package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sections returns the files of testdata/sections by name. Together they hold every key with a valid value.
func sections(t testing.TB) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/sections/*.toml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no sections: %v", err)
	}
	files := map[string]string{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(path), ".toml")] = string(data)
	}
	return files
}

// leaves returns every key that takes a value.
func leaves() []*field {
	var fields []*field
	schema().walk(func(f *field) {
		if f.kind != takesSection && f.kind != takesSections {
			fields = append(fields, f)
		}
	})
	return fields
}

// mutation is a wrong way to write a key.
type mutation struct {
	name string
	line string // what the line of the key becomes
}

// mutations are the wrong ways to write a key that its type and rules allow to think of.
func mutations(f *field, right string) []mutation {
	name, value, _ := strings.Cut(right, " = ")
	list := []mutation{{"typo", misspell(name) + " = " + value}}
	add := func(kind string, values ...string) {
		for _, v := range values {
			list = append(list, mutation{kind, name + " = " + v})
		}
	}
	element := func(v string) string {
		if f.list {
			return "[" + v + "]"
		}
		return v
	}
	if f.list {
		add("wrong type", "17")
	}
	switch f.kind {
	case takesBool:
		add("wrong type", `"yes"`, "1")
	case takesInt:
		add("wrong type", element(`"many"`), element("1.5"))
	case takesFloat:
		add("wrong type", element(`"half"`))
	case takesDuration:
		add("wrong type", "true", `"soon"`)
		if f.unit == 0 {
			add("wrong type", `"3"`, "3")
		}
	case takesSize:
		add("wrong type", "true", `"big"`)
	default:
		add("wrong type", element("17"), element("true"))
	}
	if f.kind != takesSecret {
		add("out of range", outOfRange(f, element)...)
	}
	switch f.form {
	case "file", "dir":
		add("missing reference", `"no/such/file"`, `"not.pem"`)
	case "newdir":
		add("missing reference", `"not.pem"`)
	}
	if f.kind != takesBool || f.wso2 {
		add("missing reference", element(`"$env{GATEHOUSE_NOT_SET}"`))
	}
	if f.kind == takesSecret || f.kind == takesURL {
		add("missing reference", element(`"${EMPTY}"`), element(`"$file{no/such/file}"`), element(`"{secretAlias:vault}"`), element(`"$ref{apim.event_hub.pasword}"`))
	}
	return list
}

// outOfRange returns values of the right type that the key does not take.
func outOfRange(f *field, element func(string) string) []string {
	var values []string
	switch {
	case len(f.enum) > 0:
		values = append(values, `"bogus"`)
	case f.kind == takesInt || f.kind == takesFloat:
		if f.min != "" {
			values = append(values, fmt.Sprint(parseNumber(f.min)-1))
		}
		if f.max != "" {
			values = append(values, fmt.Sprintf("%.0f", parseNumber(f.max)+1))
		}
		values = append(values, "99999999999999999999")
	case f.kind == takesDuration:
		bound, _ := ParseDuration(f.max)
		values = append(values, `"-1s"`, quote((bound + second).String()))
	case f.kind == takesSize:
		values = append(values, "-1")
		if f.max != "" {
			bound, _ := ParseSize(f.max)
			values = append(values, fmt.Sprint(int64(bound)+1))
		}
	case f.kind == takesPrefix:
		values = append(values, `"10.0.0.0/33"`, `"the proxy"`)
	case f.form == "listen":
		values = append(values, `"9090"`, `":99999"`, `"no host:1"`)
	case f.form == "broker":
		values = append(values, `"http://apim.example.com:5672"`, `"apim.example.com:5672"`, `"tcp://apim.example.com:0"`, `"amqp://u:hunter2-planted@c/carbon?brokerlist=''"`)
	case f.form == "receiver":
		values = append(values, `"http://tm.example.com:9611"`, `"{tcp://a:9611},{tcp://b:9611}"`, `"tcp://tm.example.com"`)
	case f.kind == takesURL:
		values = append(values, `"ftp://user:hunter2-planted@host.example.com"`, `"host.example.com"`, `"`+f.schemes[0]+`://"`)
	case f.form == "header":
		values = append(values, `"X Header"`, `""`)
	case f.form == "method":
		values = append(values, `"get"`, `""`)
	case f.form == "word":
		values = append(values, `""`, `" blanks "`)
	case f.form == "host":
		values = append(values, `"http://proxy.example.com:3128"`)
	case f.form == "origin":
		values = append(values, `"shop.example.com"`, `"https://shop.example.com/path"`)
	case f.form == "urlpath":
		values = append(values, `"internal/data"`)
	case f.form == "function":
		values = append(values, `"trim"`, `"split()"`, `"lower(x)"`, `"prefix(x"`, `"regex(x)"`)
	case f.form == "stream":
		values = append(values, `"A.B"`, `""`)
	}
	for i := range values {
		values[i] = element(values[i])
	}
	return values
}

// misspell swaps two letters in the middle of a name, or doubles the letter of a short one.
func misspell(name string) string {
	for i := len(name) / 2; i > 0; i-- {
		if name[i] != name[i-1] {
			return name[:i-1] + string(name[i]) + string(name[i-1]) + name[i+1:]
		}
	}
	return name + name[len(name)-1:]
}

// placeOf finds a key in the section files: the file, the line (from 1) and its text.
func placeOf(t testing.TB, files map[string]string, dir string, f *field) (file string, line int, text string) {
	t.Helper()
	for name, content := range files {
		_, source, err := Parse("gatehouse.toml", []byte(content), testEnv, dir)
		if err != nil {
			t.Fatalf("testdata/sections/%s.toml:\n%v", name, err)
		}
		for key, at := range source.places {
			if generic(key) == f.path && !strings.HasSuffix(key, "]") && (line == 0 || at.Line < line) {
				file, line = name, at.Line
			}
		}
		if line > 0 {
			return file, line, strings.Split(content, "\n")[line-1]
		}
	}
	t.Errorf("%s stands in no file of testdata/sections: write it there with a valid value, so that its faults are tested", f.path)
	return "", 0, ""
}

func TestSectionsHoldEveryKey(t *testing.T) {
	dir := newFolder(t)
	files := sections(t)
	for _, f := range leaves() {
		placeOf(t, files, dir, f)
	}
}

// Every key of the configuration, written wrongly in every way, is answered with file, line, key, value and what would
// be right.
func TestFaultsOfEveryKey(t *testing.T) {
	dir := newFolder(t)
	files := sections(t)
	var golden []string
	for _, f := range leaves() {
		file, line, text := placeOf(t, files, dir, f)
		if line == 0 {
			continue
		}
		name := strings.ReplaceAll(f.path, "[]", "") + ".txt"
		golden = append(golden, name)
		t.Run(f.path, func(t *testing.T) {
			var b strings.Builder
			for _, m := range mutations(f, text) {
				lines := strings.Split(files[file], "\n")
				lines[line-1] = m.line
				_, _, err := Parse("gatehouse.toml", []byte(strings.Join(lines, "\n")), testEnv, dir)
				faults := AsFaults("gatehouse.toml", err)
				fmt.Fprintf(&b, "# %s: %s\n%s\n\n", m.name, m.line, strings.ReplaceAll(faults.Error(), dir, "$DIR"))
				checkFaultOf(t, f, m, line, faults)
			}
			compareGolden(t, filepath.Join("testdata/faults", name), b.String())
		})
	}
	stale(t, "testdata/faults", golden)
}

func checkFaultOf(t *testing.T, f *field, m mutation, line int, faults Faults) {
	t.Helper()
	i := slices.IndexFunc(faults, func(fault Fault) bool { return fault.Line == line })
	if i < 0 {
		t.Errorf("%s is not answered at line %d, but with:\n%v", m.line, line, faults)
		return
	}
	fault := faults[i]
	if fault.File != "gatehouse.toml" || fault.Column == 0 || fault.Key == "" || fault.Value == "" || fault.Problem == "" || fault.Fix == "" {
		t.Errorf("%s: incomplete: %+v", m.line, fault)
	}
	if len(faults) != 1 {
		t.Errorf("%s: one thing is wrong, but these are said to be:\n%v", m.line, faults)
	}
	if m.name == "typo" && !strings.Contains(fault.Fix, f.name) {
		t.Errorf("%s: the fix %q does not name %s", m.line, fault.Fix, f.name)
	}
	if strings.Contains(faults.Error(), "hunter2") {
		t.Errorf("%s: a secret is shown: %v", m.line, faults)
	}
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		writeFile(t, path, []byte(got))
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with: go test ./agent/config -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// stale reports golden files that no test writes any more.
func stale(t *testing.T, dir string, written []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !slices.Contains(written, entry.Name()) {
			t.Errorf("%s/%s belongs to no key: take it out", dir, entry.Name())
		}
	}
}
