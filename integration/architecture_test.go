package integration_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"sort"
	"strings"
	"testing"
)

const module = "gatehouse"

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Doc          string
	GoFiles      []string
	Name         string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports,Doc,GoFiles,Name", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// rule says what packages of ours a package may import. Patterns are paths below the module; a trailing "/..." takes the
// package and everything below it.
type rule struct {
	of  string
	may []string
}

// The rules, most specific first: the first whose pattern matches a package is the one that holds.
var rules = []rule{
	{"subscription", nil},
	{"throttle", nil},
	{"keymanager", nil},
	{"subscription/...", []string{"subscription/..."}},
	{"throttle/...", []string{"throttle/..."}},
	{"keymanager/...", []string{"keymanager/..."}},

	{"proxy/definition", nil},
	{"proxy/...", []string{"proxy/...", "subscription", "throttle", "keymanager"}},

	{"agent/event", nil},
	{"agent/eventsource", []string{"agent/event"}},
	{"agent/eventsource/...", []string{"agent/event", "agent/eventsource/..."}},
	{"agent/eventsink/...", []string{"agent/event", "throttle"}},
	{"agent/controlplane", nil},
	{"agent/artifact", []string{"subscription", "throttle", "keymanager", "proxy/definition"}},
	{"agent/sync/...", []string{
		"agent/sync/...", "agent/event", "agent/eventsource", "agent/controlplane", "agent/artifact",
		"subscription", "throttle", "keymanager", "proxy/definition",
	}},
	{"agent/admin/...", nil},
	{"agent/telemetry", nil},
	{"agent/config", []string{"keymanager/backendjwt/template"}}, // a leaf: validate names the faults of a claim's pattern
	{"agent/relay", []string{"agent/event", "agent/eventsource/..."}},
	// The composition root wires everything but what stands for the world outside.
	{"agent", []string{"agent/...", "proxy/...", "subscription/...", "throttle/...", "keymanager/..."}},

	{"integration/emulator/...", []string{"integration/emulator/..."}},
	{"integration/harness", nil},
	{"integration/...", []string{"..."}},
	{"cmd/...", []string{"agent/...", "proxy/...", "subscription/...", "throttle/...", "keymanager/...", "integration/emulator/...", "cmd/..."}},
}

// Third-party packages that only some of ours may import, whatever the reason.
var libraryRules = []struct {
	library string
	may     []string
}{
	{"github.com/rabbitmq/amqp091-go", []string{"agent/eventsource/amqp", "agent/eventsink/amqp", "integration/..."}},
	{"github.com/nats-io/nats.go", []string{"agent/eventsource/nats", "agent/eventsink/nats", "integration/..."}},
	{"github.com/nats-io/nats-server/v2/server", []string{"integration/emulator/...", "integration/harness"}},
	{"github.com/golang-jwt/jwt/v5", []string{"keymanager/...", "integration/..."}},
	{"github.com/pelletier/go-toml/v2", []string{"agent/config"}},
	{"github.com/getkin/kin-openapi/openapi3", []string{"agent/artifact"}},
	{"github.com/spf13/cobra", []string{"cmd/..."}},
}

func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == base || strings.HasPrefix(pkg, base+"/")
	}
	return pkg == pattern
}

func matchesAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

// ours returns the path of a package below the module, and whether it is ours at all.
func ours(importPath string) (string, bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// breaches returns every import that the rules forbid, as "package imports package".
func breaches(pkgs []goPackage) []string {
	var found []string
	for _, p := range pkgs {
		pkg, ok := ours(p.ImportPath)
		if !ok {
			continue
		}
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.of, pkg) })
		if i < 0 {
			found = append(found, pkg+" has no place in the layout")
			continue
		}
		for _, imp := range p.Imports {
			if to, isOurs := ours(imp); isOurs {
				if !matchesAny(rules[i].may, to) {
					found = append(found, pkg+" imports "+to)
				}
				if to == "integration/harness" && !strings.HasPrefix(pkg, "integration") {
					found = append(found, pkg+" imports "+to)
				}
				continue
			}
			for _, lr := range libraryRules {
				if (imp == lr.library || strings.HasPrefix(imp, lr.library+"/")) && !matchesAny(lr.may, pkg) {
					found = append(found, pkg+" imports "+imp)
				}
			}
		}
	}
	sort.Strings(found)
	return found
}

func TestDependencyRules(t *testing.T) {
	for _, b := range breaches(listPackages(t)) {
		t.Errorf("forbidden: %s", b)
	}
}

// The rules themselves must be able to fail.
func TestDependencyRulesFindBreaches(t *testing.T) {
	cases := []struct {
		name string
		pkg  goPackage
		want string
	}{
		{"a domain that knows another", goPackage{ImportPath: "gatehouse/throttle/checker", Imports: []string{"gatehouse/subscription"}}, "throttle/checker imports subscription"},
		{"a root that knows its child", goPackage{ImportPath: "gatehouse/throttle", Imports: []string{"gatehouse/throttle/deny"}}, "throttle imports throttle/deny"},
		{"the proxy that knows a domain's child", goPackage{ImportPath: "gatehouse/proxy/stage", Imports: []string{"gatehouse/throttle/deny"}}, "proxy/stage imports throttle/deny"},
		{"the proxy that knows the agent", goPackage{ImportPath: "gatehouse/proxy", Imports: []string{"gatehouse/agent/config"}}, "proxy imports agent/config"},
		{"sync that knows a concrete broker", goPackage{ImportPath: "gatehouse/agent/sync", Imports: []string{"gatehouse/agent/eventsource/amqp"}}, "agent/sync imports agent/eventsource/amqp"},
		{"an emulator that shares decoders", goPackage{ImportPath: "gatehouse/integration/emulator", Imports: []string{"gatehouse/agent/event"}}, "integration/emulator imports agent/event"},
		{"a broker client in a domain", goPackage{ImportPath: "gatehouse/throttle/publisher", Imports: []string{"github.com/nats-io/nats.go"}}, "throttle/publisher imports github.com/nats-io/nats.go"},
		{"a folder of no layer", goPackage{ImportPath: "gatehouse/utils"}, "utils has no place in the layout"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := breaches([]goPackage{c.pkg}); !slices.Equal(got, []string{c.want}) {
				t.Errorf("breaches = %q, want %q", got, c.want)
			}
		})
	}
}

func TestTopLevelFoldersAreFixed(t *testing.T) {
	want := []string{"agent", "cmd", "integration", "keymanager", "proxy", "subscription", "throttle"}
	got := map[string]bool{}
	for _, p := range listPackages(t) {
		if pkg, ok := ours(p.ImportPath); ok {
			top, _, _ := strings.Cut(pkg, "/")
			got[top] = true
		}
	}
	for top := range got {
		if !slices.Contains(want, top) {
			t.Errorf("top-level folder %q: only %q hold Go code", top, want)
		}
	}
}

func TestPackagesSayTheirPurposeFirst(t *testing.T) {
	forbidden := []string{"utils", "util", "common", "helpers", "helper", "manager", "misc", "shared"}
	for _, p := range listPackages(t) {
		pkg, ok := ours(p.ImportPath)
		if !ok || len(p.GoFiles) == 0 {
			continue
		}
		if slices.Contains(forbidden, path.Base(pkg)) {
			t.Errorf("package %s: the name says nothing", pkg)
		}
		prefix := "Package " + p.Name + " "
		if p.Name == "main" {
			prefix = "Command "
		}
		if !strings.HasPrefix(p.Doc, prefix) {
			t.Errorf("package %s: its comment must begin %q, and says %q", pkg, prefix, p.Doc)
		}
	}
}
