package claims

import (
	"encoding/json"
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatehouse/keymanager"
)

func object(t testing.TB, text string) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// mapWith maps with what can be used of the mappings.
func mapWith(in map[string]any, mappings []keymanager.ClaimMapping) map[string]any {
	m, _ := Compile(mappings)
	return m.Map(in)
}

func TestMap(t *testing.T) {
	pair := func(s ...string) (out []keymanager.ClaimMapping) {
		for i := 0; i < len(s); i += 2 {
			out = append(out, keymanager.ClaimMapping{Remote: s[i], Local: s[i+1]})
		}
		return out
	}
	tests := []struct {
		name, in string
		mappings []keymanager.ClaimMapping
		want     string
	}{
		{"nothing to map", `{"a":1}`, nil, `{"a":1}`},
		{"moved", `{"email":"x","b":1}`, pair("email", "http://wso2.org/claims/emailaddress"), `{"http://wso2.org/claims/emailaddress":"x","b":1}`},
		{"absent", `{"b":1}`, pair("email", "mail"), `{"b":1}`},
		{"registered claims are copied", `{"sub":"x"}`, pair("sub", "user"), `{"sub":"x","user":"x"}`},
		{"registered claims are not written over", `{"sub":"x","name":"evil","iss":"i"}`, pair("name", "sub"), `{"sub":"x","name":"evil","iss":"i"}`},
		{"collision: the first that finds a value wins", `{"a":1,"b":2}`, pair("a", "x", "b", "x"), `{"x":1}`},
		{"collision: the first finds nothing", `{"b":2}`, pair("a", "x", "b", "x"), `{"x":2}`},
		{"a mapping wins over a claim of that name", `{"a":1,"x":2}`, pair("a", "x"), `{"x":1}`},
		{"swap", `{"a":1,"b":2}`, pair("a", "b", "b", "a"), `{"a":2,"b":1}`},
		{"to itself", `{"a":1}`, pair("a", "a"), `{"a":1}`},
		{"no local name", `{"a":1}`, pair("a", ""), `{"a":1}`},
		{"JSON pointer", `{"r":{"roles":["a","b"]}}`, pair("/r/roles/1", "role", "/r/roles", "roles"), `{"r":{"roles":["a","b"]},"role":"b","roles":["a","b"]}`},
		{"a claim that looks like a pointer", `{"/r/x":1,"r":{"x":2}}`, pair("/r/x", "x"), `{"r":{"x":2},"x":1}`},
		{"escaped pointer", `{"a/b":{"c~d":1}}`, pair("/a~1b/c~0d", "x"), `{"a/b":{"c~d":1},"x":1}`},
		{"pointer past the end", `{"r":[1]}`, pair("/r/1", "x", "/r/01", "y", "/r/-1", "z", "/r/0/0", "w", "/q", "v"), `{"r":[1]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := object(t, tt.in)
			kept := maps.Clone(in)
			if d := cmp.Diff(object(t, tt.want), mapWith(in, tt.mappings)); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(kept, in); d != "" {
				t.Errorf("the input changed: %s", d)
			}
		})
	}
}

func TestConsumerKey(t *testing.T) {
	tests := []struct{ name, claim, mapped, raw, want string }{
		{"default: consumerKey", "", `{"consumerKey":"c","azp":"a"}`, `{}`, "c"},
		{"default: azp", "", `{"azp":"a","client_id":"x","aud":"y"}`, `{}`, "a"},
		{"default: none", "", `{"client_id":"x","aud":"y"}`, `{"client_id":"x"}`, ""},
		{"default: consumerKey empty", "", `{"consumerKey":"","azp":"a"}`, `{}`, "a"},
		{"named", "client_id", `{"client_id":"x","azp":"a"}`, `{}`, "x"},
		{"named and absent does not fall back", "client_id", `{"azp":"a"}`, `{"azp":"a"}`, ""},
		{"mapped before raw", "cid", `{"cid":"m"}`, `{"cid":"r"}`, "m"},
		{"raw when mapped away", "cid", `{"x":"m"}`, `{"cid":"r"}`, "r"},
		{"aud as a list", "aud", `{"aud":["first","second"]}`, `{}`, "first"},
		{"empty list", "aud", `{"aud":[]}`, `{}`, ""},
		{"object", "aud", `{"aud":{"x":1}}`, `{}`, ""},
		{"pointer", "/app/id", `{"app":{"id":"p"}}`, `{}`, "p"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ConsumerKey(object(t, tt.mapped), object(t, tt.raw), tt.claim); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestScopes(t *testing.T) {
	tests := []struct {
		name, claim, in string
		want            []string
	}{
		{"text", "", `{"scope":" a  b\ta "}`, []string{"a", "b"}},
		{"array", "", `{"scope":["a","b c",1,null]}`, []string{"a", "b", "c"}},
		{"another claim", "scp", `{"scp":"x","scope":"a"}`, []string{"x"}},
		{"pointer", "/realm_access/roles", `{"realm_access":{"roles":["r"]}}`, []string{"r"}},
		{"absent", "", `{}`, nil},
		{"empty", "", `{"scope":""}`, nil},
		{"a number", "", `{"scope":7}`, nil},
		{"object", "", `{"scope":{"a":1}}`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, Scopes(object(t, tt.in), nil, tt.claim)); d != "" {
				t.Error(d)
			}
		})
	}
	if d := cmp.Diff([]string{"raw"}, Scopes(map[string]any{}, object(t, `{"scope":"raw"}`), "")); d != "" {
		t.Error(d)
	}
}

func TestCertificate(t *testing.T) {
	for want, in := range map[string]map[string]any{
		"":     {"cnf": map[string]any{"jkt": "x"}},
		"abc":  {"cnf": map[string]any{"x5t#S256": "abc="}},
		"none": {"cnf": map[string]any{"x5t#S256": nil}},
	} {
		if got := Certificate(in); got != want {
			t.Errorf("%v: %q, want %q", in, got, want)
		}
	}
	if Certificate(nil) != "" || Certificate(map[string]any{"cnf": "abc"}) != "" {
		t.Error("bound to nothing")
	}
}

func TestUser(t *testing.T) {
	for in, want := range map[string]string{
		`{"sub":"s"}`: "s", `{"sub":"s","http://wso2.org/claims/enduser":"e"}`: "e", `{"sub":"s","enduser":"u"}`: "u",
		`{}`: "", `{"sub":{"x":1}}`: "", `{"sub":"s","enduser":""}`: "s",
	} {
		if got := User(object(t, in)); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestEmbedded(t *testing.T) {
	claims := map[string]any{
		"application":    map[string]any{"id": json.Number("7"), "name": "App", "tier": "Gold", "uuid": nil},
		"subscribedAPIs": []any{map[string]any{"name": "A", "version": "1"}, "junk", nil},
	}
	app, subs := Embedded(claims)
	if d := cmp.Diff(&keymanager.EmbeddedApplication{ID: 7, Name: "App", Tier: "Gold", KeyType: "PRODUCTION"}, app); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]keymanager.EmbeddedSubscription{{Name: "A", Version: "1"}}, subs); d != "" {
		t.Error(d)
	}
	for _, other := range []map[string]any{{}, {"application": "x", "subscribedAPIs": "y"}, {"application": nil}} {
		if app, subs := Embedded(other); app != nil || subs != nil {
			t.Errorf("%v: %+v %v", other, app, subs)
		}
	}
}

func FuzzFind(f *testing.F) {
	f.Add(`{"a":{"b":[1,{"c":2}]}}`, "/a/b/1/c")
	f.Add(`{"~":{"/":1}}`, "/~0/~1")
	f.Add(`{}`, "/")
	f.Fuzz(func(t *testing.T, doc, name string) {
		m := map[string]any{}
		if json.Unmarshal([]byte(doc), &m) != nil {
			return
		}
		v, ok := Find(m, name)
		if _, own := m[name]; own && !ok {
			t.Fatalf("%q is a claim and was not found", name)
		}
		if !ok && v != nil {
			t.Fatalf("%q: not found, yet %v", name, v)
		}
		Scopes(m, m, name)
		ConsumerKey(m, m, name)
		Embedded(m)
	})
}
