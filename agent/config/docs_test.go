package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// reference is the page that operators read.
const reference = "../../docs/configuration.md"

// Defaults that follow from other keys, or whose empty value means something.
var toldDefaults = map[string]string{
	"listener.https":                                     "`\":9095\"` with `cert_file`",
	"listener.max_body_bytes":                            "`0`",
	"gateway.gateway_labels":                             "the environment",
	"gateway.validate_subscriptions":                     "`true` with an API Manager",
	"gateway.introspection.stale_ttl":                    "`\"0s\"`",
	"gateway.api_key_issuer[].validate_allowed_apis":     "`true` where subscriptions are not validated",
	"apim.event_hub.enable":                              "`true` with `service_url`",
	"apim.event_hub.service_url":                         "–",
	"apim.event_hub.username":                            "that of `[apim.throttling]`",
	"apim.event_hub.password":                            "that of `[apim.throttling]`",
	"apim.event_hub.event_listening_endpoints":           "–",
	"apim.sync_runtime_artifacts.gateway.gateway_labels": "–",
	"apim.throttling.enable_data_publishing":             "`true` with a `url_group`",
	"apim.throttling.username":                           "that of `[apim.event_hub]`",
	"apim.throttling.password":                           "that of `[apim.event_hub]`",
	"apim.throttling.throttle_decision_endpoints":        "the event hub's",
	"apim.jwt.issuer[].algorithms":                       "RS, PS and ES 256 to 512, EdDSA",
	"apim.jwt.issuer[].consumer_key_claim":               "`consumerKey`, then `azp`",
	"apim.jwt.issuer[].introspection.auth_method":        "`client_secret_basic` with `client_id`, else `none`",
	"apim.jwt.issuer[].validate_subscriptions":           "that of `[gateway]`",
	"apim.gateway_notification.gateway_id":               "made once, kept in `data_dir`",
	"traffic_manager.ssl":                                "`\":9711\"` with `cert_file`",
}

func defaultCell(f *field) string {
	if told, ok := toldDefaults[f.path]; ok {
		return told
	}
	v := defaultsByPath()[f.path]
	switch {
	case f.required:
		return "required"
	case f.kind == takesBool || f.kind == takesInt || f.kind == takesFloat || f.kind == takesDuration || f.kind == takesSize:
	case v.IsZero():
		return "–"
	}
	return "`" + inTOML(f, v) + "`"
}

func inTOML(f *field, v reflect.Value) string {
	if f.list {
		parts := make([]string, v.Len())
		one := *f
		one.list = false
		for i := range parts {
			parts[i] = inTOML(&one, v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	switch f.kind {
	case takesBool, takesInt, takesFloat:
		return textOf(v)
	case takesDuration:
		if f.unit != 0 {
			return fmt.Sprint(v.Int() / int64(f.unit))
		}
	case takesSize:
		return fmt.Sprint(v.Int())
	}
	return quote(textOf(v))
}

func takesCell(f *field) string {
	what := map[fieldKind]string{
		takesBool: "`true`, `false`", takesInt: "number", takesFloat: "number", takesString: "text", takesSecret: "secret", takesURL: "URL",
		takesPath: "path", takesDuration: "duration", takesSize: "size", takesPrefix: "addresses, ranges",
	}[f.kind]
	switch f.form {
	case "file":
		what = "PEM file"
	case "dir", "newdir":
		what = "folder"
	case "listen":
		what = "address"
	case "header":
		what = "header"
	case "method":
		what = "method"
	case "broker":
		what = "broker URL"
	case "receiver":
		what = "receiver URL"
	case "origin":
		what = "origin"
	case "host":
		what = "host"
	case "function":
		what = "function"
	}
	if f.unit != 0 {
		what += ", or a number of " + unitName(f.unit)
	}
	if len(f.enum) > 0 {
		what = "`" + strings.Join(f.enum, "`, `") + "`"
	}
	if len(f.schemes) > 0 {
		what += " (" + strings.Join(f.schemes, ", ") + ")"
	}
	switch {
	case f.min != "" && f.max != "":
		what += ", " + f.min + " to " + f.max
	case f.min != "" && f.min != "0":
		what += ", from " + f.min
	}
	if f.list {
		what = "list: " + what
	}
	return what
}

func changeCell(f *field) string {
	if f.later {
		return "not yet"
	}
	if f.reload {
		return "reload"
	}
	return "restart"
}

// The reference lists every key under its section, in the order of the tree, with what it takes, its default and what a
// change needs as they are. Meaning and WSO2's name are written by hand; -update fills the other columns.
func TestTheReferenceListsEveryKey(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	byPath := map[string]*field{}
	for _, f := range leaves() {
		byPath[f.path] = f
	}
	seen := map[string]bool{}
	section := ""
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ["); ok && strings.HasPrefix(line, "#") {
			section = sectionPath(t, strings.Trim(title, "[]"))
			continue
		}
		if strings.HasPrefix(line, "#") {
			section = ""
		}
		if !strings.HasPrefix(line, "| `") || section == "" {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		if len(cells) != 6 {
			t.Errorf("%s:%d: %d columns, want 6: %s", reference, i+1, len(cells), line)
			continue
		}
		key := join(section, strings.Trim(cells[0], "`"))
		f := byPath[key]
		if f == nil {
			t.Errorf("%s:%d: %s is no key", reference, i+1, key)
			continue
		}
		seen[key] = true
		if cells[4] == "" || cells[5] == "" {
			t.Errorf("%s:%d: write what %s means and what it is in WSO2's files", reference, i+1, key)
		}
		cells[1], cells[2], cells[3] = takesCell(f), defaultCell(f), changeCell(f)
		if want := "| " + strings.Join(cells, " | ") + " |"; want != line {
			if *update {
				lines[i] = want
			} else {
				t.Errorf("%s:%d (-want +got):\n%s", reference, i+1, cmp.Diff(want, line))
			}
		}
	}
	for _, f := range leaves() {
		if !seen[f.path] {
			t.Errorf("%s does not list %s: add a row with its meaning, and run go test ./agent/config -update", reference, f.path)
		}
	}
	for _, j := range javaOnly {
		if row := "| `" + strings.ReplaceAll(j.key, "[]", "") + "` | " + j.text + " |"; !strings.Contains(string(data), row+"\n") {
			t.Errorf("%s lacks this key without effect:\n%s", reference, row)
		}
	}
	if *update {
		writeFile(t, reference, []byte(strings.Join(lines, "\n")))
	}
}

// An operator types what the documents name: each command in them is one of the program.
func TestTheDocumentsNameCommandsThatExist(t *testing.T) {
	sources, err := filepath.Glob("../../cmd/gatehouse/*.go")
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string]bool{"completion": true, "help": true} // of every program made with cobra
	for _, path := range sources {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`Use:\s+"([a-z-]+)`).FindAllStringSubmatch(string(data), -1) {
			commands[m[1]] = true
		}
	}
	if !commands["run"] || !commands["validate"] {
		t.Fatalf("the commands of the program were not found: %v", commands)
	}
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(documents, "../../README.md") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(data), "\n") {
			for _, m := range regexp.MustCompile("`(?:bin/|\\./)*gatehouse ([a-z-]+)").FindAllStringSubmatch(line, -1) {
				if !commands[m[1]] && !strings.HasPrefix(m[1], "-") {
					t.Errorf("%s:%d: gatehouse %s is no command", path, i+1, m[1])
				}
			}
		}
	}
}

// sectionPath turns "apim.jwt.issuer.jwks" into the path of the tree, "apim.jwt.issuer[].jwks".
func sectionPath(t *testing.T, title string) string {
	t.Helper()
	f := schema().find(title)
	if f == nil {
		t.Errorf("%s: [%s] is no section", reference, title)
		return title
	}
	return f.path
}

func TestTheExamplesOfTheReferenceLoad(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	dir := newFolder(t)
	parts := strings.Split(string(data), "```toml\n")
	if len(parts) < 10 {
		t.Fatalf("only %d examples", len(parts)-1)
	}
	for _, part := range parts[1:] {
		example, _, _ := strings.Cut(part, "```")
		_, source, err := Parse("example", []byte(example), testEnv, dir)
		if err != nil {
			t.Errorf("%s\n%v", example, err)
		}
		for _, n := range source.Notes {
			if !strings.HasPrefix(n.Text, "not in this release") {
				t.Errorf("%s\n%v", example, n)
			}
		}
	}
}
