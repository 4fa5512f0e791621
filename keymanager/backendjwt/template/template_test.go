package template

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var values = map[string]string{
	"claim:sub": "alice", "claim:/realm/role": "admin", "claim:http://wso2.org/claims/enduser": "alice@shop", "app:name": "MobileApp",
	"attribute:cost centre": "42", "subscription:tier": "Gold", "api:context": "/shop/1.0.0", "token:issuer": "https://issuer", "claim:brace": "{app:name}",
}

func lookUp(source Source, name string) (string, bool) {
	v, ok := values[string(source)+":"+name]
	return v, ok
}

func TestExpand(t *testing.T) {
	for _, c := range []struct{ name, pattern, want string }{
		{"nothing", "", ""},
		{"static text", "gatehouse", "gatehouse"},
		{"one placeholder", "{claim:sub}", "alice"},
		{"text around", "app {app:name} of {claim:sub}!", "app MobileApp of alice!"},
		{"a claim whose name is a URI", "{claim:http://wso2.org/claims/enduser}", "alice@shop"},
		{"a JSON pointer", "{claim:/realm/role}", "admin"},
		{"a name with a blank", "{attribute:cost centre}", "42"},
		{"every other source", "{subscription:tier} {api:context} {token:issuer}", "Gold /shop/1.0.0 https://issuer"},
		{"braces as text", `{{"user":"{claim:sub}"}}`, `{"user":"alice"}`},
		{"a value is not read again", "{claim:brace}", "{app:name}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Parse(c.pattern)
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := p.Expand(lookUp); !ok || got != c.want {
				t.Errorf("%q %v, want %q", got, ok, c.want)
			}
		})
	}
}

func TestHalfATextIsNone(t *testing.T) {
	p, err := Parse("tenant {claim:tenant}")
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := p.Expand(lookUp); ok {
		t.Errorf("expanded to %q", got)
	}
}

func TestFaultsSayWhatIsRight(t *testing.T) {
	for _, c := range []struct{ name, pattern, want string }{
		{"not closed", "a {claim:sub", "not closed: write {claim:NAME}"},
		{"not opened", "a } b", "closes nothing: write }}"},
		{"unknown source", "{user}", "names no source: write one of {claim:NAME}"},
		{"an environment variable", "{env:HOME}", "names no source"},
		{"no name", "{claim:}", "names nothing: write {claim:NAME}"},
		{"unknown field of the application", "{app:secret}", "is not known: app has id, uuid, name, owner, tier, tenant"},
		{"unknown field of the API", "{api:url}", "api has name, version, context, uuid, tenant"},
		{"one in another", "{claim:{app:name}}", "close the one before it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Parse(c.pattern); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "gatehouse", "{claim:sub}", "{{}}", "{{{claim:a}}}", "{app:name}{api:context}", "a } b", "{", "{claim:", "{attribute:{}", "{token:user}}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		p, err := Parse(pattern)
		if err != nil {
			if p.parts != nil {
				t.Error("a pattern with a fault left something")
			}
			return
		}
		again, err := Parse(p.String())
		if err != nil {
			t.Fatalf("%q came back as %q: %v", pattern, p.String(), err)
		}
		if d := cmp.Diff(p, again, cmp.AllowUnexported(Template{}, part{})); d != "" {
			t.Errorf("%q came back otherwise:\n%s", pattern, d)
		}
		// Without placeholders a template is its text, with the doubled braces made single.
		text, ok := p.Expand(func(Source, string) (string, bool) { return "", false })
		if ok && text != strings.NewReplacer("{{", "{", "}}", "}").Replace(pattern) {
			t.Errorf("%q is %q", pattern, text)
		}
	})
}
