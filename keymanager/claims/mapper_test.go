package claims

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/keymanager"
)

func TestFunctions(t *testing.T) {
	tests := []struct{ name, function, value, want string }{
		{"none", "", `"Ab"`, `"Ab"`},
		{"lower", "lower", `"ÄB c"`, `"äb c"`},
		{"lower: each text of an array", "lower", `["A",1,null,["B"]]`, `["a",1,null,["B"]]`},
		{"lower leaves a number", "lower", `1E5`, `1E5`},
		{"upper", "upper", `"große"`, `"GROßE"`},
		{"upper leaves an object", "upper", `{"a":"b"}`, `{"a":"b"}`},
		{"split", "split(,)", `"a,b,,c,"`, `["a","b","c"]`},
		{"split at a blank", "split( )", `"openid  profile"`, `["openid","profile"]`},
		{"split at several characters", "split(::)", `"a::b:c"`, `["a","b:c"]`},
		{"split at a parenthesis", "split())", `"a)b"`, `["a","b"]`},
		{"split of nothing", "split(,)", `""`, `[]`},
		{"split inside an array", "split(,)", `["a,b",7,"c"]`, `["a","b",7,"c"]`},
		{"split leaves a number", "split(,)", `7`, `7`},
		{"join", "join( )", `["a",1,true,null,{"x":1},"b"]`, `"a 1 true b"`},
		{"join with nothing", "join()", `["a","b"]`, `"ab"`},
		{"join of nothing", "join(,)", `[]`, `""`},
		{"join leaves a text", "join(,)", `"a b"`, `"a b"`},
		{"prefix", "prefix(PRIMARY/)", `"bob"`, `"PRIMARY/bob"`},
		{"prefix of a number", "prefix(emp-)", `12345678901234567890`, `"emp-12345678901234567890"`},
		{"prefix of each", "prefix(r:)", `["a",1,false]`, `["r:a","r:1",false]`},
		{"prefix keeps its blanks", "prefix( x )", `"y"`, `" x y"`},
		{"regex", "regex(@.*$,)", `"bob@example.com"`, `"bob"`},
		{"regex: every match", "regex(-,_)", `"a-b-c"`, `"a_b_c"`},
		{"regex: groups", "regex(^(\\w+)@(\\w+)$,${2}/$1)", `"bob@shop"`, `"shop/bob"`},
		{"regex: named groups", "regex(^(?P<user>.+)@.*$,$user)", `"bob@shop"`, `"bob"`},
		{"regex: a dollar", "regex(a,$$)", `"bab"`, `"b$b"`},
		{"regex: commas of a repetition", "regex(^x{1,2},y)", `"xxx"`, `"yx"`},
		{"regex: a comma in the replacement", `regex(;,\,)`, `"a;b"`, `"a,b"`},
		{"regex: a comma in the expression", `regex(\,,;)`, `"a,b"`, `"a;b"`},
		{"regex: no match leaves a number a number", "regex(x,y)", `17`, `17`},
		{"regex: a match makes it a text", "regex(7,8)", `17`, `"18"`},
		{"regex: of each", "regex(^/,)", `["/a","b"]`, `["a","b"]`},
		{"regex: everything", "regex(.*,)", `"abc"`, `""`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Compile([]keymanager.ClaimMapping{{Remote: "from", Local: "to", Function: tt.function}})
			if err != nil {
				t.Fatal(err)
			}
			in, want := numbers(t, `{"from":`+tt.value+`,"sub":"s"}`), numbers(t, `{"to":`+tt.want+`,"sub":"s"}`)
			before := numbers(t, `{"from":`+tt.value+`,"sub":"s"}`)
			if d := cmp.Diff(want, m.Map(in)); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(before, in); d != "" {
				t.Errorf("the input changed: %s", d)
			}
		})
	}
}

// numbers decodes as the claims of tokens are: numbers stay as they are written.
func numbers(t testing.TB, text string) map[string]any {
	t.Helper()
	m := map[string]any{}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCompileNamesWhatIsWrong(t *testing.T) {
	long := strings.Repeat("x", maxName+1)
	tests := []struct {
		name                    string
		mapping                 keymanager.ClaimMapping
		member, problem, remedy string
	}{
		{"no remote name", keymanager.ClaimMapping{Local: "x"}, "remote_claim", "empty", "name of a claim"},
		{"no local name", keymanager.ClaimMapping{Remote: "x"}, "local_claim", "empty", "name of a claim"},
		{"a name without end", keymanager.ClaimMapping{Remote: long, Local: "x"}, "remote_claim", "of 1025 bytes", "at most 1024"},
		{"a registered claim", keymanager.ClaimMapping{Remote: "email", Local: "sub"}, "local_claim", "never written over", EndUser},
		{"another word", keymanager.ClaimMapping{Function: "trim"}, "function", "not a function", `"lower"`},
		{"case counts", keymanager.ClaimMapping{Function: "Lower"}, "function", "not a function", `"lower"`},
		{"blanks count", keymanager.ClaimMapping{Function: " lower"}, "function", "not a function", `"lower"`},
		{"only parentheses", keymanager.ClaimMapping{Function: "()"}, "function", "no function", `"lower"`},
		{"lower with an argument", keymanager.ClaimMapping{Function: "lower(x)"}, "function", "takes no argument", `"lower"`},
		{"split without its separator", keymanager.ClaimMapping{Function: "split"}, "function", "without its argument", `split(,)`},
		{"split at nothing", keymanager.ClaimMapping{Function: "split()"}, "function", "without its argument", `split(,)`},
		{"join without parentheses", keymanager.ClaimMapping{Function: "join"}, "function", "without its argument", `join( )`},
		{"prefix of nothing", keymanager.ClaimMapping{Function: "prefix()"}, "function", "without its argument", `prefix(`},
		{"not closed", keymanager.ClaimMapping{Function: "split(,"}, "function", "closing parenthesis", `"split(x)"`},
		{"text behind it", keymanager.ClaimMapping{Function: "split(,) "}, "function", "closing parenthesis", `"split(x)"`},
		{"regex without a replacement", keymanager.ClaimMapping{Function: "regex(a)"}, "function", "without its argument", "regex("},
		{"regex that finds nothing", keymanager.ClaimMapping{Function: "regex(,x)"}, "function", "without its argument", "regex("},
		{"regex that is none", keymanager.ClaimMapping{Function: "regex((,x)"}, "function", "cannot be read: missing closing )", "RE2"},
		{"regex with a look-ahead", keymanager.ClaimMapping{Function: "regex((?=a),x)"}, "function", "cannot be read: invalid or unsupported Perl syntax", "RE2"},
		{"regex whose group is absent", keymanager.ClaimMapping{Function: "regex((a),$2)"}, "function", `group "2"`, "${1}"},
		{"regex whose group runs into a letter", keymanager.ClaimMapping{Function: "regex((a),$1b)"}, "function", `group "1b"`, "${1}"},
		{"a function without end", keymanager.ClaimMapping{Function: "prefix(" + long + ")"}, "function", "bytes", "at most 1024"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.member == "function" {
				tt.mapping.Remote, tt.mapping.Local = "a", "b"
			}
			good := keymanager.ClaimMapping{Remote: "email", Local: "mail"}
			m, err := Compile([]keymanager.ClaimMapping{good, tt.mapping, {Remote: "q", Local: "r"}})
			faults := AsFaults(err)
			if len(faults) != 1 {
				t.Fatalf("%d faults: %v", len(faults), err)
			}
			f := faults[0]
			if f.Index != 1 || f.Member != tt.member || !strings.Contains(f.Problem, tt.problem) || !strings.Contains(f.Fix, tt.remedy) {
				t.Errorf("got %s", f)
			}
			if one := CheckMapping(tt.mapping); one == nil || one.Problem != f.Problem {
				t.Errorf("CheckMapping says %v", one)
			}
			// The others go on.
			got := m.Map(map[string]any{"email": "e", "q": "1", "a": "A", "sub": "s"})
			if d := cmp.Diff(map[string]any{"mail": "e", "r": "1", "a": "A", "sub": "s"}, got); d != "" {
				t.Error(d)
			}
		})
	}
	if CheckMapping(keymanager.ClaimMapping{Remote: "a", Local: "b", Function: "lower"}) != nil {
		t.Error("a good mapping is refused")
	}
}

func TestCompileBoundsTheNumberOfMappings(t *testing.T) {
	var many []keymanager.ClaimMapping
	for i := range maxMappings + 5 {
		many = append(many, keymanager.ClaimMapping{Remote: fmt.Sprint("r", i), Local: fmt.Sprint("l", i)})
	}
	m, err := Compile(many)
	if n := len(AsFaults(err)); n != 1 || len(m.targets) != maxMappings {
		t.Errorf("%d faults, %d mappings", n, len(m.targets))
	}
}

func TestNothingToMapCostsNothing(t *testing.T) {
	in := map[string]any{"sub": "s"}
	for name, m := range map[string]*Mapper{"nil": nil, "absent": compile(t, keymanager.ClaimMapping{Remote: "email", Local: "mail"}, keymanager.ClaimMapping{Remote: "/a/b", Local: "c"})} {
		if n := testing.AllocsPerRun(100, func() { m.Map(in) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if compile(t, keymanager.ClaimMapping{Remote: "a", Local: "b"}).Map(nil) != nil {
		t.Error("no claims became some")
	}
}

func compile(t testing.TB, mappings ...keymanager.ClaimMapping) *Mapper {
	t.Helper()
	m, err := Compile(mappings)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWithDefaults(t *testing.T) {
	m := compile(t, WithDefaults([]keymanager.ClaimMapping{
		{Remote: "preferred_username", Local: EndUser}, {Remote: "login", Local: dialect + "emailaddress"}, {Remote: "x", Local: "name"},
	})...)
	got := m.Map(object(t, `{"sub":"s","preferred_username":"bob","given_name":"Bob","email":"b@x","login":"b@y","website":"w","x":"X","groups":["a"],"other":1}`))
	want := object(t, `{"sub":"s","http://wso2.org/claims/enduser":"bob","http://wso2.org/claims/givenname":"Bob","email":"b@x",
		"http://wso2.org/claims/emailaddress":"b@y","http://wso2.org/claims/url":"w","name":"X","http://wso2.org/claims/role":["a"],"other":1}`)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, s := range standard {
		if fixed[s[0]] || s[0] == "scope" || s[0] == "azp" || s[0] == "consumerKey" {
			t.Errorf("%s would be moved away by default", s[0])
		}
	}
}

// reference maps the slow and plain way: one mapping after the other, with a set of what was written.
func reference(in map[string]any, mappings []keymanager.ClaimMapping) map[string]any {
	out := maps.Clone(in)
	usable := func(m keymanager.ClaimMapping) bool { return m.Remote != "" && m.Local != "" && !fixed[m.Local] }
	for _, m := range mappings {
		if _, own := in[m.Remote]; own && usable(m) && !fixed[m.Remote] && m.Remote != m.Local {
			delete(out, m.Remote)
		}
	}
	written := map[string]bool{}
	for _, m := range mappings {
		if v, ok := Find(in, m.Remote); ok && usable(m) && !written[m.Local] {
			out[m.Local] = v
			written[m.Local] = true
		}
	}
	return out
}

func TestMapperAgreesWithTheReference(t *testing.T) {
	names := rapid.SampledFrom([]string{"a", "b", "c", "/a", "/o/x", "/o/l/0", "o", "sub", "iss", "exp", "", "~", "/"})
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c", "/a", "sub", "iss"}), rapid.Map(rapid.IntRange(0, 9), func(i int) any { return i })).Draw(t, "claims")
		in["o"] = map[string]any{"x": "X", "l": []any{"L"}}
		mappings := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) keymanager.ClaimMapping {
			return keymanager.ClaimMapping{Remote: names.Draw(t, "remote"), Local: names.Draw(t, "local")}
		}), 0, 6).Draw(t, "mappings")
		m, err := Compile(mappings)
		if d := cmp.Diff(reference(in, mappings), m.Map(in)); d != "" {
			t.Fatalf("%v (%v): %s", mappings, err, d)
		}
	})
}

// checkInvariants are what holds of any mapping of any claims.
func checkInvariants(t interface{ Fatalf(string, ...any) }, in, before map[string]any, mappings []keymanager.ClaimMapping) {
	m, err := Compile(mappings)
	out := m.Map(in)
	if d := cmp.Diff(before, in); d != "" {
		t.Fatalf("the input changed: %s", d)
	}
	for name := range fixed {
		was, had := before[name]
		is, has := out[name]
		if had != has || !cmp.Equal(was, is) {
			t.Fatalf("%v: the registered claim %s was %v (%v) and is %v (%v)", mappings, name, was, had, is, has)
		}
	}
	for i, mapping := range mappings {
		bad := slices.ContainsFunc(AsFaults(err), func(f Fault) bool { return f.Index == i })
		if (CheckMapping(mapping) != nil) != bad {
			t.Fatalf("%v: Compile and CheckMapping differ", mapping)
		}
	}
	// Whatever came out can be encoded, and is the same the second time.
	if _, err := json.Marshal(out); err != nil {
		t.Fatalf("%v cannot be encoded: %v", out, err)
	}
	if d := cmp.Diff(out, m.Map(in)); d != "" {
		t.Fatalf("mapped twice: %s", d)
	}
	Scopes(out, in, "")
	ConsumerKey(out, in, "")
	User(out)
	Embedded(out)
}

func FuzzMap(f *testing.F) {
	f.Add(`{"sub":"s","a":{"b":[1,{"c":2}]}}`, "/a/b/1/c", "x", "prefix(y)", "sub")
	f.Add(`{"preferred_username":"Bob@Example.com","exp":1,"realm_access":{"roles":["A","b"]}}`, "preferred_username", EndUser, "regex(^(.*)@.*$,$1)", "exp")
	f.Add(`{"realm_access":{"roles":["A","b"]},"scope":"openid profile"}`, "/realm_access/roles", "scope", "join( )", "scope")
	f.Add(`{"groups":"a,b","aud":["x"]}`, "groups", "aud", "split(,)", "/aud/0")
	f.Add(`{"n":12345678901234567890123,"~":{"/":1}}`, "/~0/~1", "/", `regex(\,,\,)`, "n")
	f.Add(`{"iss":"i"}`, "iss", "iss", "regex(.*,$0$0$0$0$0$0$0$0$0$0)", "")
	f.Fuzz(func(t *testing.T, doc, remote, local, function, other string) {
		in, before := map[string]any{}, map[string]any{}
		for _, to := range []*map[string]any{&in, &before} {
			d := json.NewDecoder(strings.NewReader(doc))
			d.UseNumber()
			if d.Decode(to) != nil || *to == nil {
				return
			}
		}
		checkInvariants(t, in, before, []keymanager.ClaimMapping{
			{Remote: remote, Local: local, Function: function}, {Remote: other, Local: local}, {Remote: local, Local: other, Function: function},
		})
		plain := []keymanager.ClaimMapping{{Remote: remote, Local: local}, {Remote: other, Local: local}, {Remote: local, Local: remote}}
		if len(remote) <= maxName && len(local) <= maxName && len(other) <= maxName {
			m, _ := Compile(plain)
			if d := cmp.Diff(reference(in, plain), m.Map(in)); d != "" {
				t.Fatal(d)
			}
		}
	})
}

// keycloak is the payload of an access token as Keycloak 26 writes it.
const keycloak = `{"exp":1764003600,"iat":1764000000,"jti":"trrtcc:5d1f6a3e-66ab-4f3e-9d2f-0f6b1d0e8a11","iss":"https://keycloak.example.com/realms/shop",
"aud":["account","orders"],"sub":"f3b1c6ce-8d0b-4f64-9a54-2f7dd2f0a7b1","typ":"Bearer","azp":"shop-web","sid":"c0ffee00-1111-2222-3333-444455556666",
"acr":"1","allowed-origins":["https://shop.example.com"],"realm_access":{"roles":["default-roles-shop","offline_access","uma_authorization","order-admin"]},
"resource_access":{"account":{"roles":["manage-account","manage-account-links","view-profile"]}},"scope":"openid email profile","email_verified":true,
"name":"Bob Builder","groups":["/staff","/staff/orders"],"preferred_username":"Bob.Builder@Example.com","given_name":"Bob","family_name":"Builder",
"email":"bob@example.com"}`

func BenchmarkMapKeycloak(b *testing.B) {
	in := numbers(b, keycloak)
	own := []keymanager.ClaimMapping{
		{Remote: "preferred_username", Local: EndUser, Function: "lower"},
		{Remote: "/realm_access/roles", Local: "scope", Function: "prefix(role:)"},
		{Remote: "groups", Local: dialect + "role", Function: "regex(^/,)"},
		{Remote: "azp", Local: "consumerKey"},
	}
	for _, c := range []struct {
		name     string
		mappings []keymanager.ClaimMapping
	}{{"none", nil}, {"renamed", []keymanager.ClaimMapping{{Remote: "preferred_username", Local: EndUser}, {Remote: "email", Local: "mail"}}}, {"functions", own}, {"defaults", WithDefaults(own)}} {
		b.Run(c.name, func(b *testing.B) {
			m := compile(b, c.mappings...)
			b.ReportAllocs()
			for b.Loop() {
				m.Map(in)
			}
		})
	}
}
