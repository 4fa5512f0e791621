package keytemplate

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/throttle"
	"gatehouse/throttle/key"
)

func request(edit func(*throttle.Request)) *throttle.Request {
	r := &throttle.Request{
		APIContext: "/weather/2.1.0", APIVersion: "2.1.0", APITenant: "carbon.super", ResourceTemplate: "/cities/{id}", Method: "GET",
		ResourceTier: "10KPerMin", Authenticated: true, AppID: "12", AppTenant: "example.org", User: "dana@carbon.super",
		ClientIP: netip.MustParseAddr("192.168.1.10"),
	}
	if edit != nil {
		edit(r)
	}
	return r
}

func expand(t *Template, r *throttle.Request) (string, bool) {
	var k key.Keys
	level, tier := key.Tier(r, "Unlimited")
	k.Fill(r, key.Form{}, level, tier)
	b, ok := t.Append(nil, r, &k)
	return string(b), ok
}

func TestExpansion(t *testing.T) {
	hostile := func(user string) func(*throttle.Request) {
		return func(r *throttle.Request) { r.User = user }
	}
	tests := []struct {
		name, template string
		edit           func(*throttle.Request)
		want           string // "" means that nothing is looked up
	}{
		{
			"all variables", "$resourceKey|$userId|$apiContext|$apiVersion|$appTenant|$apiTenant|$appId|$clientIp", nil,
			"/weather/2.1.0/2.1.0/cities/{id}:GET|dana@carbon.super|/weather/2.1.0|2.1.0|example.org|carbon.super|12|3232235786",
		},
		{"one twice", "$appId:$appId", nil, "12:12"},
		{"no variable", "everybody", nil, "everybody"},
		{"IPv6 as a decimal", "$clientIp", func(r *throttle.Request) { r.ClientIP = netip.MustParseAddr("2001:db8::10") }, "42540766411282592856903984951653826576"},
		{"address not known", "$clientIp", func(r *throttle.Request) { r.ClientIP = netip.Addr{} }, ""},
		{"variables side by side", "$appId$userId", nil, "12dana@carbon.super"},
		{"followed by other signs", "$appId-$apiVersion/x", nil, "12-2.1.0/x"},
		{"dollar without a name", "$:$$appId$", nil, "$:$12$"},
		{"user named like a variable", "$userId:$appId", hostile("$appId@carbon.super"), "$appId@carbon.super:12"},
		{"user with replacement signs of Java", "$userId", hostile(`$1\2${x}@carbon.super`), `$1\2${x}@carbon.super`},
		{"user that names a property", "$userId:$customProperty.a", func(r *throttle.Request) {
			r.User = "$customProperty.a@carbon.super"
			r.Properties = []throttle.Property{{Name: "a", Value: "$userId"}}
		}, "$customProperty.a@carbon.super:$userId"},
		{"property", "$customProperty.zone:$appId", func(r *throttle.Request) { r.Properties = []throttle.Property{{Name: "zone", Value: "eu"}} }, "eu:12"},
		{"the last property of a name", "$customProperty.zone", func(r *throttle.Request) {
			r.Properties = []throttle.Property{{Name: "zone", Value: "eu"}, {Name: "zone", Value: "us"}}
		}, "us"},
		{"longest property name", "$customProperty.zone2", func(r *throttle.Request) { r.Properties = []throttle.Property{{Name: "zone", Value: "eu"}} }, ""},
		{"property with dots and dashes", "$customProperty.a.b-c.:x", func(r *throttle.Request) { r.Properties = []throttle.Property{{Name: "a.b-c", Value: "v"}} }, "v.:x"},
		{"property not set", "$customProperty.zone:$appId", nil, ""},
		{"property empty", "$customProperty.zone:$appId", func(r *throttle.Request) { r.Properties = []throttle.Property{{Name: "zone"}} }, ""},
		{"unauthenticated", "$appId:$userId", func(r *throttle.Request) { r.Authenticated, r.AppID, r.User = false, "", "" }, "192.168.1.10:anonymous@carbon.super"},
		{"API without a version", "$apiContext:$apiVersion", func(r *throttle.Request) { r.APIVersion = "" }, "/weather/2.1.0:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := New()
			s.Put(throttle.KeyTemplate{Template: tt.template})
			if len(s.Live()) != 1 {
				t.Fatalf("inert: %+v", s.All())
			}
			got, ok := expand(s.Live()[0], request(tt.edit))
			if ok != (tt.want != "") || ok && got != tt.want {
				t.Errorf("%q, %v, want %q", got, ok, tt.want)
			}
		})
	}
}

func TestInertTemplates(t *testing.T) {
	tests := []struct{ template, want string }{
		{"", "empty"},
		{"$appIdentity", "$appIdentity is not known"},
		{"$userId:$tenant", "$tenant is not known"},
		{"$customProperty", "$customProperty is not known"},
		{"$customProperty.:x", "names no property"},
		{"$UserId", "$UserId is not known"},
	}
	for _, tt := range tests {
		s := New()
		s.Put(throttle.KeyTemplate{Template: tt.template, Inert: "set by a caller"})
		if len(s.Live()) != 0 || s.Len() != 1 || !strings.Contains(s.All()[0].Inert, tt.want) {
			t.Errorf("%q: live %d, shown as %+v", tt.template, len(s.Live()), s.All())
		}
	}
	s := New()
	s.Put(throttle.KeyTemplate{Template: "$appId", Inert: "set by a caller"})
	if s.All()[0].Inert != "" {
		t.Error("a good template took over an old fault")
	}
}

func TestSetOfTexts(t *testing.T) {
	s := New()
	if s.Put(throttle.KeyTemplate{Template: "$appId", UpdatedAt: 1}) != nil {
		t.Error("before")
	}
	if before := s.Put(throttle.KeyTemplate{Template: "$appId", UpdatedAt: 2}); before == nil || before.UpdatedAt != 1 || s.Len() != 1 {
		t.Errorf("before: %+v", before)
	}
	s.Put(throttle.KeyTemplate{Template: "$userId"})
	if s.Delete("$appId ") != nil || s.Len() != 2 {
		t.Error("another text was removed")
	}
	if before := s.Delete("$appId"); before == nil || before.UpdatedAt != 2 || s.Len() != 1 {
		t.Errorf("before: %+v", before)
	}
	s.ReplaceAll([]throttle.KeyTemplate{{Template: "b"}, {Template: "a"}, {Template: "$nothing"}})
	var texts []string
	for _, kt := range s.All() {
		texts = append(texts, kt.Template)
	}
	if diff := cmp.Diff([]string{"$nothing", "a", "b"}, texts); diff != "" || len(s.Live()) != 2 {
		t.Error(diff, len(s.Live()))
	}
}

// reference expands left to right: at each dollar sign the longest known name that stands there.
func reference(template string, values map[string]string) (string, bool) {
	known := make([]string, 0, len(values))
	for n := range values {
		known = append(known, n)
	}
	slices.SortFunc(known, func(a, b string) int { return len(b) - len(a) })
	var out strings.Builder
	for template != "" {
		i := strings.IndexByte(template, '$')
		if i < 0 {
			out.WriteString(template)
			return out.String(), true
		}
		out.WriteString(template[:i])
		template = template[i+1:]
		j := slices.IndexFunc(known, func(n string) bool { return strings.HasPrefix(template, n) })
		if j < 0 {
			if template != "" && isName(template[0]) {
				return "", false
			}
			out.WriteByte('$')
			continue
		}
		rest := template[len(known[j]):]
		if rest != "" && isName(rest[0]) {
			return "", false // a longer name, which is not known
		}
		out.WriteString(values[known[j]])
		template = rest
	}
	return out.String(), true
}

func TestExpansionAgainstReference(t *testing.T) {
	value := rapid.StringMatching(`[a-z$\\]{1,8}(\$appId|\$userId|\$customProperty\.zone)?`)
	part := rapid.SampledFrom([]string{"$resourceKey", "$userId", "$apiContext", "$apiVersion", "$appTenant", "$apiTenant", "$appId", "$customProperty.zone", "$", ":", "/", "x", "$nothing", "appId"})
	rapid.Check(t, func(t *rapid.T) {
		r := request(func(r *throttle.Request) {
			r.APIContext, r.APIVersion, r.AppTenant, r.APITenant = value.Draw(t, "context"), value.Draw(t, "version"), value.Draw(t, "app tenant"), value.Draw(t, "API tenant")
			r.AppID, r.User = value.Draw(t, "app"), value.Draw(t, "user")+"@t"
			r.Properties = []throttle.Property{{Name: "zone", Value: value.Draw(t, "zone")}}
		})
		values := map[string]string{
			"resourceKey": r.APIContext + "/" + r.APIVersion + "/cities/{id}:GET", "userId": r.User, "apiContext": r.APIContext, "apiVersion": r.APIVersion,
			"appTenant": r.AppTenant, "apiTenant": r.APITenant, "appId": r.AppID, "customProperty.zone": r.Properties[0].Value,
		}
		template := strings.Join(rapid.SliceOfN(part, 1, 8).Draw(t, "template"), "")
		want, wantOK := reference(template, values)
		s := New()
		s.Put(throttle.KeyTemplate{Template: template})
		if strings.Contains(template, "$customProperty.zonex") || strings.Contains(template, "$customProperty.zoneappId") {
			return // another property, which the reference does not know
		}
		if len(s.Live()) == 0 {
			if wantOK {
				t.Fatalf("%q is inert: %s, want %q", template, s.All()[0].Inert, want)
			}
			return
		}
		got, ok := expand(s.Live()[0], r)
		if ok != wantOK || ok && got != want {
			t.Fatalf("%q: %q %v, want %q %v", template, got, ok, want, wantOK)
		}
	})
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{"$userId:$apiContext:$apiVersion", "$appId:$clientIp", "$customProperty.a.b", "$$", "$", "$customProperty.", "é$userIdé"} {
		f.Add(s, "dana")
	}
	f.Fuzz(func(t *testing.T, template, user string) {
		c := compile(throttle.KeyTemplate{Template: template})
		if c.Inert != "" {
			return
		}
		// The literals and the names of the variables make up the template again.
		var back strings.Builder
		for _, tok := range c.tokens {
			switch tok.kind {
			case literal:
				back.WriteString(tok.text)
			case customProperty:
				back.WriteString("$" + propertyPrefix + tok.text)
			default:
				for n, v := range names {
					if v == tok.kind {
						back.WriteString("$" + n)
					}
				}
			}
		}
		if back.String() != template {
			t.Fatalf("%q was cut into %+v", template, c.tokens)
		}
		expand(c, request(func(r *throttle.Request) { r.User = user }))
	})
}

func BenchmarkAppend(b *testing.B) {
	r := request(nil)
	var k key.Keys
	level, tier := key.Tier(r, "Unlimited")
	k.Fill(r, key.Form{}, level, tier)
	t := compile(throttle.KeyTemplate{Template: "$userId:$apiContext:$apiVersion:$clientIp"})
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = t.Append(buf[:0], r, &k)
	}
}
