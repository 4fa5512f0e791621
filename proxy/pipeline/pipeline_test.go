package pipeline

import (
	"maps"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"gatehouse/proxy/definition"
	"gatehouse/throttle"
)

func trace(id string, at int64, allowed bool) *Trace {
	return &Trace{RequestID: id, At: at, Allowed: allowed, Status: 200}
}

func TestRings(t *testing.T) {
	r := NewTraces(2, 3)
	for i := range 5 {
		r.Add(trace("ok"+strconv.Itoa(i), int64(i), true))
	}
	for i := range 2 {
		r.Add(trace("no"+strconv.Itoa(i), int64(i), false))
	}
	for id, want := range map[string]bool{"ok0": false, "ok2": false, "ok3": true, "ok4": true, "no0": true, "no1": true, "": false, "x": false} {
		if _, ok := r.Find(id); ok != want {
			t.Errorf("%q: %v", id, ok)
		}
	}
	r.Add(trace("same", 10, true))
	r.Add(trace("same", 11, false))
	if v, _ := r.Find("same"); v.Allowed || v.At != "1970-01-01T00:00:00.011Z" {
		t.Errorf("not the newest: %+v", v)
	}
	none := NewTraces(0, -1)
	none.Add(trace("x", 1, true))
	if _, ok := none.Find("x"); ok {
		t.Error("a ring of no size keeps a trace")
	}
}

// TestRingsAgainstModel: the rings hold exactly the last of each kind.
func TestRingsAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sizes := [2]int{rapid.IntRange(0, 4).Draw(rt, "admitted"), rapid.IntRange(0, 4).Draw(rt, "refused")}
		r := NewTraces(sizes[0], sizes[1])
		var model [2][]string
		for i := range rapid.IntRange(0, 20).Draw(rt, "requests") {
			kind := rapid.IntRange(0, 1).Draw(rt, "kind")
			id := "r" + strconv.Itoa(i)
			r.Add(trace(id, int64(i), kind == 0))
			model[kind] = append(model[kind], id)
		}
		for kind, ids := range model {
			for i, id := range ids {
				if _, ok := r.Find(id); ok != (i >= len(ids)-sizes[kind]) {
					rt.Fatalf("%s of kind %d: found %v", id, kind, ok)
				}
			}
		}
	})
}

func TestRingsConcurrently(t *testing.T) {
	r := NewTraces(16, 16)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				id := strconv.Itoa(g) + "-" + strconv.Itoa(i)
				r.Add(trace(id, int64(i), i%2 == 0))
				if v, ok := r.Find(id); ok && v.RequestID != id {
					t.Errorf("asked for %s, got %s", id, v.RequestID)
				}
			}
		})
	}
	wg.Wait()
}

func TestDetachedTraceIsShort(t *testing.T) {
	long := strings.Repeat("x", 60_000)
	tr := Trace{RequestID: "r", Method: long, Host: long, Path: "/" + long, Reason: "the resource has no method " + long, Status: 405}
	tr.Note(StepRoute, Refused)
	d := tr.Detached()
	for _, s := range []string{d.Method, d.Host, d.Path, d.Reason} {
		if len(s) > maxText+len("…") {
			t.Errorf("a text of %d bytes is kept", len(s))
		}
	}
	if v := d.View(); v.RequestID != "r" || v.Status != 405 || !strings.HasPrefix(v.Path, "/xxx") || v.Steps[0].Result != "refused" {
		t.Errorf("%+v", v)
	}
	tr.Path = "/short"
	if d := tr.Detached(); d.Path != "/short" {
		t.Errorf("%q", d.Path)
	}
}

type someHeader map[string][]string

func (h someHeader) Values(name string) []string { return h[name] }
func (h someHeader) Del(name string)             { delete(h, name) }
func (h someHeader) Visit(v throttle.AttributeVisitor) {
	for name, lines := range h {
		for _, l := range lines {
			v.VisitAttribute(name, l)
		}
	}
}

type seen map[string]string

func (s seen) VisitAttribute(name, value string) { s[name] = value }

// TestCredentialIsNotShown: what attributes show is published, in the clear where the traffic manager is asked by tcp://.
func TestCredentialIsNotShown(t *testing.T) {
	x := &Exchange{Header: someHeader{"X-Partner-Token": {"Bearer secret"}, "X-Color": {"red"}}}
	x.SetRoute(&Route{API: &definition.API{}, Operation: &definition.Operation{}, AuthHeader: "X-Partner-Token"})
	got := seen{}
	x.Throttle.Attributes.(throttle.AttributeSource).VisitHeaders(got)
	if len(got) != 1 || got["X-Color"] != "red" {
		t.Errorf("shown: %v", got)
	}
	if x.fields != (fields{}) {
		t.Error("the visitor is kept")
	}
}

// TestPlacesOfCredentials: what may carry a credential is never shown, and is kept from the backend where one is asked for.
func TestPlacesOfCredentials(t *testing.T) {
	for _, c := range []struct {
		name           string
		op             definition.Operation
		secured, keep  bool
		secrets, strip []string
		queries        []string
		bearer, basic  bool
	}{
		{name: "a token", secured: true, secrets: []string{"Authorization", "Internal-Key", "X-Cert"}, strip: []string{"Authorization", "Internal-Key", "X-Cert"}, bearer: true},
		{name: "a token that is kept", secured: true, keep: true, secrets: []string{"Authorization", "Internal-Key", "X-Cert"}, strip: []string{"Internal-Key", "X-Cert"}, bearer: true},
		{name: "open", secrets: []string{"Authorization", "Internal-Key", "X-Cert"}, bearer: true},
		{
			name: "a key anywhere", op: definition.Operation{Security: [][]definition.Credential{{definition.APIKey}}}, secured: true,
			secrets: []string{"Authorization", "Apikey", "Internal-Key", "X-Cert"}, strip: []string{"Authorization", "Apikey", "Internal-Key", "X-Cert"}, queries: []string{"apikey"},
		},
		{name: "a key in its place, or a user", op: definition.Operation{
			Security: [][]definition.Credential{{definition.APIKey}, {definition.Basic}}, APIKeyHeaders: []string{"x-key", "X-KEY", "authorization"}, APIKeyQueries: []string{"k"},
		}, secured: true, keep: true, secrets: []string{"Authorization", "X-Key", "Internal-Key", "X-Cert"}, strip: []string{"Authorization", "X-Key", "Internal-Key", "X-Cert"}, queries: []string{"k"}, basic: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Route{API: &definition.API{}, Operation: &c.op, AuthHeader: "Authorization", Secured: c.secured}
			r.Credentials([]string{"X-Cert"}, c.keep)
			if !slices.Equal(r.Secrets, c.secrets) || !slices.Equal(r.Strip, c.strip) || !slices.Equal(r.KeyQueries, c.queries) || r.Bearer != c.bearer || r.Basic != c.basic {
				t.Errorf("secrets %q, stripped %q, parameters %q, bearer %v, basic %v", r.Secrets, r.Strip, r.KeyQueries, r.Bearer, r.Basic)
			}
		})
	}
}

func TestWithoutParameters(t *testing.T) {
	for query, want := range map[string]string{
		"":                         "",
		"a=1":                      "a=1",
		"key=s":                    "",
		"key":                      "",
		"a=1&key=s":                "a=1",
		"key=s&a=1":                "a=1",
		"a=%7e&key=s&b=+&&c":       "a=%7e&b=+&&c",
		"k%65y=s&a=1":              "a=1",
		"Key=s&keys=1&akey=2":      "Key=s&keys=1&akey=2",
		"a=key&b=key=s":            "a=key&b=key=s",
		"key=1&key=2&x=1&key=":     "x=1",
		"a=1;key=s":                "a=1;key=s", // no separator: the parameter is a
		"%zz=1&key=s":              "%zz=1",
		"other+name=s&a=1":         "a=1",
		"other%20name=s&a=1&other": "a=1&other",
	} {
		if got := WithoutParameters(query, []string{"key", "other name"}); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { WithoutParameters("a=1&b=2", []string{"key"}) }); n != 0 {
		t.Errorf("%v allocations where nothing is to be removed", n)
	}
}

// FuzzQuery compares to package url: of a query that it can read, the parameters are found as often as it finds them, and the others
// stay as they were.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{"", "key=1", "a=1&key=%31&b", "k%65y=+", "key&key=2", "a=1;key=2", "%", "key=%zz", "=&==&key"} {
		f.Add(q, "key")
	}
	f.Fuzz(func(t *testing.T, query, name string) {
		left := WithoutParameters(query, []string{name})
		if _, n := QueryValue(left, name); n != 0 {
			t.Fatalf("%q is still in %q", name, left)
		}
		want, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		// An empty name is in every query with an empty pair, which package url leaves out.
		if value, n := QueryValue(query, name); name != "" && (n != len(want[name]) || n > 0 && value != want[name][0]) {
			t.Fatalf("%q %d times in %q, want %q", value, n, query, want[name])
		}
		delete(want, name)
		if got, err := url.ParseQuery(left); err != nil || !maps.EqualFunc(got, want, slices.Equal[[]string]) {
			t.Fatalf("left %q (%v) of %q", left, err, query)
		}
	})
}

func TestViewWithoutRoute(t *testing.T) {
	x := &Exchange{}
	x.Refuse(StepRoute, Refusal{Code: 404, Status: 404}, "nothing there")
	v := x.View()
	if v.Status != 404 || len(v.Steps) != 1 || v.Steps[0].Step != "route" || v.Steps[0].Result != "refused" || v.Steps[0].Reason != "nothing there" {
		t.Errorf("%+v", v)
	}
}

func TestResetForgetsEverything(t *testing.T) {
	x := &Exchange{}
	x.RequestID, x.Query = "id", "a=1"
	x.SetRoute(&Route{API: &definition.API{}, Operation: &definition.Operation{}})
	attributes{x}.Query("a")
	x.Refuse(StepScopes, Refusal{Code: 1}, "r")
	x.Reset()
	if _, refused := x.RefusedAt(); refused || x.RequestID != "" || x.Route != nil || x.Throttle.Attributes != nil || x.query != nil || x.refusal.Code != 0 {
		t.Errorf("%+v", x)
	}
}

func FuzzCanonicalName(f *testing.F) {
	for _, s := range []string{"x-request-id", "X-Request-Id", "ETag", "a--b", "-", "x_y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for i := range len(s) {
			if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' {
				return // not a field name
			}
		}
		if got, want := CanonicalName(s), textproto.CanonicalMIMEHeaderKey(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	})
}

func BenchmarkTracesAdd(b *testing.B) {
	r := NewTraces(2000, 20000)
	tr := trace("id", 1, true)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Add(tr)
		}
	})
}
