package checker

import (
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/throttle"
)

// apply reads a recorded throttleData message and does to the parts what it says. Translating messages is another
// package's work; this is the plain reading of the samples.
func apply(t *testing.T, p *parts, sample string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "events", "throttleData-"+sample+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Body struct {
			Event struct{ PayloadData map[string]any }
		}
		MapFields []struct {
			Name  string
			Value any
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	m := doc.Body.Event.PayloadData
	if m == nil {
		m = map[string]any{}
		for _, f := range doc.MapFields {
			m[f.Name] = f.Value
		}
	}
	text := func(k string) string { s, _ := m[k].(string); return s }
	number := func(k string) int64 { f, _ := m[k].(float64); return int64(f) }
	switch {
	case m["throttleKey"] != nil:
		d := throttle.Decision{Key: text("throttleKey"), Throttled: m["isThrottled"] == true, ExpiresAt: number("expiryTimeStamp")}
		if d.Conditions, err = base64.StdEncoding.DecodeString(text("evaluatedConditions")); err != nil {
			t.Fatal(err)
		}
		p.decisions.Apply(d, now)
	case m["blockingCondition"] != nil:
		c := throttle.DenyCondition{Kind: throttle.DenyKind(text("blockingCondition")), Tenant: text("tenantDomain"), ID: number("id"), Value: text("conditionValue")}
		if c.Kind == throttle.DenyIP || c.Kind == throttle.DenyIPRange {
			var v struct {
				FixedIP, StartingIP, EndingIP string
				Invert                        bool
			}
			if err := json.Unmarshal([]byte(c.Value), &v); err != nil {
				t.Fatal(err)
			}
			c.Value, c.Invert = "", v.Invert
			if err := c.SetAddresses(v.FixedIP, v.StartingIP, v.EndingIP); err != nil {
				t.Fatal(err)
			}
		}
		if text("state") == "true" {
			p.deny.Put(c)
		} else {
			p.deny.Delete(c)
		}
	case m["keyTemplateValue"] != nil:
		if text("keyTemplateState") == "add" {
			p.templates.Put(throttle.KeyTemplate{Template: text("keyTemplateValue")})
		} else {
			p.templates.Delete(text("keyTemplateValue"))
		}
	default:
		t.Fatalf("%s is no throttleData message", sample)
	}
}

type attributes struct{ header, query, claim map[string]string }

func one(m map[string]string, n string) []string {
	if v, ok := m[n]; ok {
		return []string{v}
	}
	return nil
}
func (a attributes) Header(n string) []string { return one(a.header, strings.ToLower(n)) }
func (a attributes) Query(n string) []string  { return one(a.query, n) }
func (a attributes) Claim(n string) string    { return a.claim[n] }

func from(ip string) func(*throttle.Request) {
	return func(r *throttle.Request) { r.ClientIP = netip.MustParseAddr(ip) }
}

func mobile(r *throttle.Request) {
	r.Attributes = attributes{header: map[string]string{"x-client": "mobile-7"}}
}

func TestRecordedMessages(t *testing.T) {
	// answer is "" for allowed, "denied", or the level of the limit.
	type probe struct {
		who    string
		edit   func(*throttle.Request)
		answer string
	}
	nobody := []probe{{"the caller", nil, ""}}
	tests := []struct {
		samples []string
		probes  []probe
	}{
		{[]string{"block-api-on"}, []probe{{"that API", nil, "denied"}, {"another version", func(r *throttle.Request) { r.APIContext = "/weather/2.2.0" }, ""}}},
		{[]string{"block-api-on", "block-api-on", "block-api-off"}, nobody},
		{[]string{"map-block-api"}, []probe{{"that API", nil, "denied"}}},
		{[]string{"block-api-tenant-on"}, []probe{{"the tenant's API", func(r *throttle.Request) { r.APIContext, r.APITenant = "/t/example.org/news/1.0.0", "example.org" }, "denied"}, {"another", nil, ""}}},
		{[]string{"block-application-on"}, []probe{{"the application", nil, "denied"}, {"another of its owner", func(r *throttle.Request) { r.AppName = "Other" }, ""}}},
		{[]string{"block-application-on", "block-application-off"}, nobody},
		{[]string{"block-user-on"}, []probe{{"dana", nil, "denied"}, {"bob", func(r *throttle.Request) { r.User = "bob@carbon.super" }, ""}}},
		{[]string{"block-user-on", "block-user-off"}, nobody},
		{[]string{"block-subscription-on"}, []probe{{"production", nil, "denied"}, {"sandbox", func(r *throttle.Request) { r.KeyType = "SANDBOX" }, ""}}},
		{[]string{"block-subscription-on", "block-subscription-off"}, nobody},
		{[]string{"block-ip-on"}, []probe{{"the address", nil, "denied"}, {"another", from("192.168.1.11"), ""}, {"the address at another tenant's API", func(r *throttle.Request) { r.APITenant = "example.org" }, ""}}},
		{[]string{"map-block-ip"}, []probe{{"the address", nil, "denied"}}},
		{[]string{"block-ip-on", "block-ip-off"}, nobody},
		{[]string{"block-ip-invert-on"}, []probe{{"the address", nil, ""}, {"another", from("192.168.1.11"), "denied"}}},
		{[]string{"block-iprange-on"}, []probe{{"the lower bound", from("10.0.0.1"), "denied"}, {"inside", from("10.0.0.100"), "denied"}, {"the upper bound", from("10.0.0.200"), "denied"}, {"above", from("10.0.0.201"), ""}, {"IPv6", from("2001:db8::10"), ""}}},
		{[]string{"block-iprange-on", "block-iprange-off"}, []probe{{"inside", from("10.0.0.100"), ""}}},
		{[]string{"block-iprange-ipv6-on"}, []probe{{"inside", from("2001:db8::7f"), "denied"}, {"outside", from("2001:db8::100"), ""}, {"IPv4", nil, ""}}},

		{[]string{"decision-application"}, []probe{{"dana", nil, "application"}, {"bob with the same application", func(r *throttle.Request) { r.User = "bob@carbon.super" }, ""}}},
		{[]string{"decision-application", "decision-application-released"}, nobody},
		{[]string{"decision-subscription"}, []probe{{"the application", nil, "subscription"}, {"another application", func(r *throttle.Request) { r.AppID = "13" }, ""}}},
		{[]string{"map-decision"}, []probe{{"the application", nil, "subscription"}}},
		{[]string{"decision-subscription-synapse-key"}, nobody},
		{[]string{"decision-expired"}, nobody},
		{[]string{"decision-missing-expiry"}, nobody},
		{[]string{"decision-custom"}, nobody},
		{[]string{"decision-custom", "keytemplate-add"}, []probe{{"dana", nil, "custom"}, {"bob", func(r *throttle.Request) { r.User = "bob@carbon.super" }, ""}}},
		{[]string{"decision-custom", "map-keytemplate"}, []probe{{"dana", nil, "custom"}}},
		{[]string{"decision-custom", "keytemplate-add", "keytemplate-remove"}, nobody},
		{[]string{"decision-api-default"}, []probe{{"an API with its own tier", func(r *throttle.Request) { r.APITier = "50KPerMin" }, "api"}, {"an API without", nil, ""}}},
		{[]string{"decision-resource-condition"}, []probe{{"address and header", mobile, "resource"}, {"the address alone", nil, ""}, {"the header alone", func(r *throttle.Request) { mobile(r); r.ClientIP = netip.MustParseAddr("10.0.0.1") }, ""}, {"another resource", func(r *throttle.Request) { mobile(r); r.ResourceTemplate = "/cities" }, ""}}},
		{[]string{"map-decision-condition"}, []probe{{"address and header", mobile, "resource"}, {"the address alone", nil, ""}}},
		{[]string{"decision-resource-condition", "decision-resource-condition-released"}, []probe{{"address and header", mobile, ""}}},
		{[]string{"decision-resource-default-with-groups"}, []probe{
			// The third group holds for everybody without the claim plan=trial: who has it, and none of the others, is limited.
			{"none of the groups", func(r *throttle.Request) { r.Attributes = attributes{claim: map[string]string{"plan": "trial"}} }, "resource"},
			{"the range", func(r *throttle.Request) {
				r.Attributes = attributes{claim: map[string]string{"plan": "trial"}}
				r.ClientIP = netip.MustParseAddr("10.1.2.3")
			}, ""},
			{"the query parameter", func(r *throttle.Request) {
				r.Attributes = attributes{claim: map[string]string{"plan": "trial"}, query: map[string]string{"tier": "free"}}
			}, ""},
			{"not the claim", nil, ""},
		}},
	}
	covered := map[string]bool{}
	for _, tt := range tests {
		t.Run(strings.Join(tt.samples, "+"), func(t *testing.T) {
			c, p := build(nil)
			for _, s := range tt.samples {
				covered[s] = true
				apply(t, p, s)
			}
			for _, pr := range tt.probes {
				r := request()
				if pr.edit != nil {
					pr.edit(r)
				}
				got := ""
				if c.DenyAnonymous(r) != nil || c.DenyIdentified(r) != nil {
					got = "denied"
				} else if v := c.Check(r, now); v.Level != throttle.LevelNone {
					got = v.Level.String()
				}
				if got != pr.answer {
					t.Errorf("%s: %q, want %q", pr.who, got, pr.answer)
				}
			}
		})
	}
	files, err := filepath.Glob("testdata/events/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "throttleData-"), ".json"); !covered[name] {
			t.Errorf("sample %s is not covered", name)
		}
	}
}
