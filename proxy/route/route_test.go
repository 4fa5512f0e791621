package route

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func table(t testing.TB, slash bool, apis ...API[string, string]) *Table[string, string] {
	t.Helper()
	b := NewBuilder[string, string](slash)
	for _, a := range apis {
		if err := b.Add(a); err != nil {
			t.Fatal(err)
		}
	}
	return b.Table()
}

func api(context string, operations ...string) API[string, string] {
	a := API[string, string]{Value: context, Contexts: []string{context}}
	for _, o := range operations {
		m, tmpl, _ := strings.Cut(o, " ")
		a.Operations = append(a.Operations, Operation[string]{Template: tmpl, Method: m, Value: o})
	}
	return a
}

func TestMatch(t *testing.T) {
	vhost := api("/shop/1.0.0", "GET /only-here")
	vhost.Value, vhost.Hosts = "vhost", []string{"Shop.Example.com"}
	tab := table(t, false,
		api("/shop/1.0.0", "GET /items", "POST /items", "GET /items/{id}", "GET /items/special", "GET /items/{id}/parts/{part}", "GET /items/special/parts",
			"GET /files/*", "GET /report-{year}.pdf", "GET /{any}.pdf", "GET /span/{from}-{to}", "GET /", "DELETE /items/{id}"),
		api("/shop", "GET /*"),
		api("/all/1", "GET /*", "PUT /x/*", "GET /x/y"),
		api("/t/example.org/news/1", "GET /caf%C3%A9", "GET /a%2Fb"),
		vhost,
	)
	for _, c := range []struct {
		name, host, method, path string
		outcome                  Outcome
		want                     string // the operation; Allow for MethodNotAllowed
	}{
		{"literal", "h", "GET", "/shop/1.0.0/items", Found, "GET /items"},
		{"method", "h", "POST", "/shop/1.0.0/items", Found, "POST /items"},
		{"HEAD falls to GET", "h", "HEAD", "/shop/1.0.0/items", Found, "GET /items"},
		{"template", "h", "GET", "/shop/1.0.0/items/7", Found, "GET /items/{id}"},
		{"literal wins over template", "h", "GET", "/shop/1.0.0/items/special", Found, "GET /items/special"},
		{"literal wins, even where only the template has the method", "h", "DELETE", "/shop/1.0.0/items/special", MethodNotAllowed, "GET, HEAD"},
		{"deeper template", "h", "GET", "/shop/1.0.0/items/7/parts/8", Found, "GET /items/{id}/parts/{part}"},
		{"back from a literal that leads nowhere", "h", "GET", "/shop/1.0.0/items/special/parts/8", Found, "GET /items/{id}/parts/{part}"},
		{"parameter is not empty", "h", "GET", "/shop/1.0.0/items/", NoResource, ""},
		{"case counts", "h", "GET", "/shop/1.0.0/Items", NoResource, ""},
		{"trailing slash counts", "h", "GET", "/shop/1.0.0/items/7/", NoResource, ""},
		{"wildcard", "h", "GET", "/shop/1.0.0/files/a/b/c", Found, "GET /files/*"},
		{"wildcard with nothing behind", "h", "GET", "/shop/1.0.0/files", Found, "GET /files/*"},
		{"wildcard with a slash behind", "h", "GET", "/shop/1.0.0/files/", Found, "GET /files/*"},
		{"wildcard is a whole segment", "h", "GET", "/shop/1.0.0/filesx", NoResource, ""},
		{"longest literal part first", "h", "GET", "/shop/1.0.0/report-2026.pdf", Found, "GET /report-{year}.pdf"},
		{"shorter literal part", "h", "GET", "/shop/1.0.0/other.pdf", Found, "GET /{any}.pdf"},
		{"parameter of a part is not empty", "h", "GET", "/shop/1.0.0/.pdf", NoResource, ""},
		{"two parameters", "h", "GET", "/shop/1.0.0/span/1-2", Found, "GET /span/{from}-{to}"},
		{"two parameters, second empty", "h", "GET", "/shop/1.0.0/span/1-", NoResource, ""},
		{"root with slash", "h", "GET", "/shop/1.0.0/", Found, "GET /"},
		{"root without slash", "h", "GET", "/shop/1.0.0", Found, "GET /"},
		{"405 lists the methods", "h", "PATCH", "/shop/1.0.0/items", MethodNotAllowed, "GET, HEAD, POST"},
		{"longest context", "h", "GET", "/shop/1.0.0/nothing/here", NoResource, ""},
		{"shorter context", "h", "GET", "/shop/2.0.0/items", Found, "GET /*"},
		{"context is whole segments", "h", "GET", "/shopping/1.0.0", NoAPI, ""},
		{"/* matches the context itself", "h", "GET", "/all/1", Found, "GET /*"},
		{"longer wildcard", "h", "PUT", "/all/1/x/z", Found, "PUT /x/*"},
		{"longer wildcard without the method", "h", "GET", "/all/1/x/z", MethodNotAllowed, "PUT"},
		{"no context", "h", "GET", "/", NoAPI, ""},
		{"encoded template", "h", "GET", "/t/example.org/news/1/caf\u00e9", Found, "GET /caf%C3%A9"},
		{"encoded slash stays", "h", "GET", "/t/example.org/news/1/a%2Fb", Found, "GET /a%2Fb"},
		{"virtual host", "shop.example.com", "GET", "/shop/1.0.0/only-here", Found, "GET /only-here"},
		{"virtual host in capitals, with port", "SHOP.example.COM:8080", "GET", "/shop/1.0.0/only-here", Found, "GET /only-here"},
		{"virtual host hides the general one", "shop.example.com", "GET", "/shop/1.0.0/items", NoResource, ""},
		{"virtual host without this context", "shop.example.com", "GET", "/all/1/q", Found, "GET /*"},
		{"other host", "h", "GET", "/shop/1.0.0/only-here", NoResource, ""},
		{"IPv6 host", "[::1]:80", "GET", "/all/1/q", Found, "GET /*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := tab.Match(c.host, c.method, c.path)
			got := m.Operation
			if m.Outcome == MethodNotAllowed {
				got = m.Allow
			}
			if m.Outcome != c.outcome || got != c.want {
				t.Errorf("%s %s: outcome %d, %q; want %d, %q", c.method, c.path, m.Outcome, got, c.outcome, c.want)
			}
		})
	}
}

// TestParametersOfSegments: a backend that takes parameters off would serve what was not matched.
func TestParametersOfSegments(t *testing.T) {
	tab := table(t, false, api("/a/1", "GET /*", "GET /admin", "GET /admin/{id}", "GET /seats;row={row}/x", "GET /users/{id}"))
	for raw, want := range map[string]string{
		"/a/1/admin;x": "GET /admin", "/a;y/1/admin": "GET /admin", "/a/1/admin%3bx": "GET /admin", "/a/1/admin;x/7;y": "GET /admin/{id}",
		"/a/1/seats;row=7/x": "GET /seats;row={row}/x", "/a/1/users/;id=5": "GET /users/{id}", "/a/1/other;x": "GET /*",
	} {
		n, ok := Normalise(raw)
		if m := tab.Match("h", "GET", n); !ok || m.Operation != want {
			t.Errorf("%s: %q, want %q", raw, m.Operation, want)
		}
	}
}

func TestIgnoreTrailingSlash(t *testing.T) {
	tab := table(t, true, api("/a/1", "GET /items/", "GET /b"))
	for _, p := range []string{"/a/1/items", "/a/1/items/", "/a/1/b", "/a/1/b/"} {
		if m := tab.Match("h", "GET", p); m.Outcome != Found {
			t.Errorf("%s is not found", p)
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	for name, a := range map[string]API[string, string]{
		"template without slash":      api("/a/1", "GET items"),
		"star in the middle":          api("/a/1", "GET /a/*/b"),
		"star within a segment":       api("/a/1", "GET /a*"),
		"open brace":                  api("/a/1", "GET /{id"),
		"close brace":                 api("/a/1", "GET /id}"),
		"nameless parameter":          api("/a/1", "GET /{}"),
		"parameters that touch":       api("/a/1", "GET /{a}{b}"),
		"same resource twice":         api("/a/1", "GET /x", "GET /x"),
		"same but for the name":       api("/a/1", "GET /{a}", "GET /{b}"),
		"context without slash":       api("a/1", "GET /x"),
		"context with trailing slash": api("/a/1/", "GET /x"),
		"context with dots":           api("/a/../1", "GET /x"),
		"root context":                api("/", "GET /x"),
		"bad encoding":                api("/a/1", "GET /%zz"),
	} {
		t.Run(name, func(t *testing.T) {
			if err := NewBuilder[string, string](false).Add(a); err == nil {
				t.Error("it was taken")
			}
		})
	}
	b := NewBuilder[string, string](false)
	if err := b.Add(api("/a/1", "GET /x")); err != nil {
		t.Fatal(err)
	}
	if err := b.Add(api("/a/1", "GET /y")); err == nil {
		t.Error("a context was taken twice")
	}
	if m := b.Table().Match("h", "GET", "/a/1/x"); m.Outcome != Found {
		t.Error("the refused API changed the table")
	}
}

func TestNormalise(t *testing.T) {
	for raw, want := range map[string]string{
		"/a/b":           "/a/b",
		"/":              "/",
		"//":             "/",
		"/a//b":          "/a/b",
		"/a/./b":         "/a/b",
		"/a/../b":        "/b",
		"/a/b/..":        "/a/",
		"/a/b/.":         "/a/b/",
		"/a/":            "/a/",
		"/a/%2e%2E/b":    "/b",
		"/a/.%2e/b":      "/b",
		"/%61":           "/a",
		"/a%2fb":         "/a%2Fb",
		"/a%2Fb/../c":    "/c",
		"/a%252Fb":       "/a%252Fb",
		"/a%20b":         "/a b",
		"/.well-known/x": "/.well-known/x",
		"/a/...":         "/a/...",
		"/a%2F..b":       "/a%2F..b",
		"/a;v=..":        "/a",
		"/a;x/b;y=1;z":   "/a/b",
		"/a%3Bx/b":       "/a/b",
		"/a;x%2Fy/b":     "/a/b",
		"/a;x/":          "/a/",
		"/a/;id=5":       "/a/;id=5",
		"/a\\b.c":        "/a\\b.c",
		"/a//../b":       "/b",
	} {
		if got, ok := Normalise(raw); !ok || got != want {
			t.Errorf("%s: %q %v, want %q", raw, got, ok, want)
		}
	}
	for _, raw := range []string{
		"", "a", "*", "/..", "/a/../..", "/%", "/%2", "/%zz", "/a%00b", "/%2e%2e",
		// Dot segments that only some backends see.
		"/..%2f..%2fadmin", "/open/..%2Fadmin", "/open%2f..%2fadmin", "/open%2f..", "/open/..;/admin", "/open/..;x=1/admin", "/open/.;/admin",
		"/open/%2e%2e;/admin", "/open/..%3b/admin", "/open/..\\admin", "/open\\..\\admin", "/open\\..", "/open%5c..%5Cadmin", "/open%5c..;%2fadmin",
		// A segment of nothing but parameters, which some backends take for an empty one.
		"/;x/admin", "/open/;/admin", "/open/%3bx/admin", "/open/;x/",
		"/open\\.%2f..\\admin", "/open/x%2f..%5cadmin", "/open/x%5c..%2fadmin",
	} {
		if got, ok := Normalise(raw); ok {
			t.Errorf("%q became %q", raw, got)
		}
	}
}

func TestSuffix(t *testing.T) {
	for _, c := range []struct{ raw, prefix, want string }{
		{"/a/1/x", "/a/1", "/x"},
		{"/a/1", "/a/1", ""},
		{"/a/1/", "/a/1", "/"},
		{"/a/1/x%2Fy%20z", "/a/1", "/x%2Fy%20z"},
		{"/a/1//x//y", "/a/1", "//x//y"},
		{"//a//1/x", "/a/1", "/x"},
		{"/%61/1/%78", "/a/1", "/%78"},
		{"/a/1/../1/x", "/a/1", "/x"},
		{"/a/1/x/../../1/%79", "/a/1", "/%79"},
		{"/z/../a/1/x//y", "/a/1", "/x/y"},
		{"/a/1/.well-known", "/a/1", "/.well-known"},
		{"/a;p/1;q=2/x;y/z", "/a/1", "/x;y/z"},
		{"/a;p/1;q=2", "/a/1", ""},
		{"/a/1/z/../x;y=%2f", "/a/1", "/x;y=%2f"},
	} {
		n, ok := Normalise(c.raw)
		if !ok {
			t.Fatal(c.raw)
		}
		if got := Suffix(c.raw, n, c.prefix); got != c.want {
			t.Errorf("%s: %q, want %q", c.raw, got, c.want)
		}
	}
}

// FuzzNormalise: the result is a fixed point but for "%" that stays encoded, has no dot segment, and what is forwarded
// never climbs out of the API.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"/a/b", "/a/../b", "/%2e%2e/x", "//a//b", "/a%2Fb", "/a/1/../../x", "/a%25", "/a/1/%2e%2e%2f", "/a;x/1/b;y/c", "/a/1/;x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		n, ok := Normalise(raw)
		if !ok {
			return
		}
		if n == "" || n[0] != '/' {
			t.Fatalf("%q became %q", raw, n)
		}
		for i, s := range strings.Split(n[1:], "/") {
			if s == "." || s == ".." || s == "" && i != strings.Count(n, "/")-1 {
				t.Fatalf("%q became %q", raw, n)
			}
		}
		segments := strings.SplitN(n[1:], "/", 3)
		if len(segments) < 2 || segments[1] == "" {
			return
		}
		prefix := "/" + segments[0] + "/" + segments[1]
		s := Suffix(raw, n, prefix)
		if hasDots(s) && s != n[len(prefix):] {
			t.Fatalf("%q forwards %q, which can climb", raw, s)
		}
		if got, ok := Normalise("/x" + s); s != "" && (!ok || got != "/x"+n[len(prefix):]) {
			t.Fatalf("%q is matched as %q and forwarded as %q, which means %q", raw, n[len(prefix):], s, got)
		}
	})
}

// naive says which template matches by trying all of them and comparing them segment by segment.
func naive(templates []string, path string) string {
	rank := func(tmpl string) ([]int, bool) {
		rest := false
		p := tmpl
		if before, ok := strings.CutSuffix(p, "/*"); ok {
			rest, p = true, before
		}
		var ts []string
		if p != "" {
			ts = strings.Split(p[1:], "/")
		}
		ps := strings.Split(path[1:], "/")
		if len(ps) < len(ts) || len(ps) > len(ts) && !rest {
			return nil, false
		}
		var r []int
		for i, s := range ts {
			switch {
			case !strings.Contains(s, "{"):
				if s != ps[i] {
					return nil, false
				}
				r = append(r, 1000)
			case s[0] == '{':
				if ps[i] == "" {
					return nil, false
				}
				r = append(r, 1)
			default:
				lit := s[:strings.Index(s, "{")]
				if !strings.HasPrefix(ps[i], lit) || ps[i] == lit {
					return nil, false
				}
				r = append(r, 1+len(lit))
			}
		}
		if rest {
			r = append(r, -1)
		} else {
			r = append(r, 0)
		}
		return r, true
	}
	best, bestRank := "", []int(nil)
	for _, tmpl := range templates {
		if r, ok := rank(tmpl); ok && (best == "" || slices.Compare(r, bestRank) > 0) {
			best, bestRank = tmpl, r
		}
	}
	return best
}

func TestMatchAgainstNaive(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		segment := rapid.SampledFrom([]string{"a", "b", "ab", "{x}", "a{x}", "ab{x}", "a", "{x}"})
		templates := rapid.SliceOfNDistinct(rapid.Custom(func(rt *rapid.T) string {
			s := "/" + strings.Join(rapid.SliceOfN(segment, 1, 4).Draw(rt, "segments"), "/")
			if rapid.Bool().Draw(rt, "rest") {
				s += "/*"
			}
			return s
		}), 1, 12, rapid.ID[string]).Draw(rt, "templates")
		b := NewBuilder[string, string](false)
		a := API[string, string]{Contexts: []string{"/c"}}
		for _, tmpl := range templates {
			a.Operations = append(a.Operations, Operation[string]{tmpl, "GET", tmpl})
		}
		if err := b.Add(a); err != nil {
			rt.Fatal(err)
		}
		tab := b.Table()
		for range 10 {
			path := "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab", "abc", "c", ""}), 1, 5).Draw(rt, "path"), "/")
			want := naive(templates, path)
			// Parameters of segments change nothing.
			marked := strings.ReplaceAll(path+"/", "/", ";v=1/")
			marked = strings.TrimSuffix(strings.ReplaceAll(strings.TrimPrefix(marked, ";v=1"), "/;v=1", "/"), "/")
			if strings.HasSuffix(path, "/") {
				marked += "/"
			}
			if n, ok := Normalise("/c" + marked); ok && !strings.Contains(path, "//") {
				if got := tab.Match("h", "GET", n); got.Operation != want {
					rt.Fatalf("%s as %s: %q, want %q", marked, n, got.Operation, want)
				}
			}
			if got := tab.Match("h", "GET", "/c"+path); got.Operation != want {
				sort.Strings(templates)
				rt.Fatalf("%s in %q: %q, want %q", path, templates, got.Operation, want)
			}
		}
	})
}

// large is a table of 500 APIs with ten resources each.
func large(t testing.TB) *Table[string, string] {
	b := NewBuilder[string, string](false)
	for i := range 500 {
		if err := b.Add(api(fmt.Sprintf("/t/tenant%d/api%d/1.0.%d", i%20, i, i%7), "GET /items", "POST /items", "GET /items/{id}", "PUT /items/{id}", "DELETE /items/{id}",
			"GET /items/{id}/parts", "GET /items/{id}/parts/{part}", "GET /report-{year}.pdf", "GET /files/*", "GET /*")); err != nil {
			t.Fatal(err)
		}
	}
	return b.Table()
}

func TestMatchDoesNotAllocate(t *testing.T) {
	tab := large(t)
	if n := testing.AllocsPerRun(100, func() {
		if p, ok := Normalise("/t/tenant3/api123/1.0.4/items/77/parts/8"); !ok || tab.Match("gw.example.com:8443", "GET", p).Outcome != Found {
			t.Fatal("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMatch5000Routes(b *testing.B) {
	tab := large(b)
	b.ReportAllocs()
	for b.Loop() {
		p, _ := Normalise("/t/tenant3/api123/1.0.4/items/77/parts/8")
		if tab.Match("gw.example.com:8443", "GET", p).Outcome != Found {
			b.Fatal("not found")
		}
	}
}

func BenchmarkBuild5000Routes(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		large(b)
	}
}
