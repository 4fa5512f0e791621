package key

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/throttle"
)

func request(edit func(*throttle.Request)) *throttle.Request {
	r := &throttle.Request{
		APIContext: "/weather/2.1.0", APIVersion: "2.1.0", APITenant: "carbon.super", ResourceTemplate: "/cities/{id}", Method: "GET",
		ResourceTier: "10KPerMin", Authenticated: true, AppID: "12", AppTenant: "carbon.super", SubscriptionTier: "Gold",
		User: "dana@carbon.super", ClientIP: netip.MustParseAddr("192.168.1.10"),
	}
	if edit != nil {
		edit(r)
	}
	return r
}

// texts are the keys of one request.
type texts struct{ API, Resource, Subscription, Application, User, AppID string }

func fill(k *Keys, r *throttle.Request, f Form) texts {
	level, tier := Tier(r, "Unlimited")
	k.Fill(r, f, level, tier)
	return texts{string(k.API), string(k.Resource), string(k.Subscription), string(k.Application), string(k.User), string(k.AppID)}
}

// TestKeyTexts: the texts of events.md 6.1.
func TestKeyTexts(t *testing.T) {
	plain := texts{"/weather/2.1.0:2.1.0", "/weather/2.1.0/2.1.0/cities/{id}:GET", "12:/weather/2.1.0:2.1.0", "12:dana@carbon.super", "dana@carbon.super", "12"}
	with := func(edit func(*texts)) texts {
		w := plain
		edit(&w)
		return w
	}
	tests := []struct {
		name string
		form Form
		edit func(*throttle.Request)
		want texts
	}{
		{"plain", Form{}, nil, plain},
		{"subscription key with the tier", Form{SubscriptionTier: true}, nil, with(func(w *texts) { w.Subscription = "12:/weather/2.1.0:2.1.0:Gold" })},
		{"API-level policy", Form{}, func(r *throttle.Request) { r.APITier = "50KPerMin" }, with(func(w *texts) { w.Resource = w.API })},
		{"unlimited API tier", Form{}, func(r *throttle.Request) { r.APITier = "Unlimited" }, plain},
		{"user-level policy of a resource", Form{UserLevel: true}, nil, with(func(w *texts) { w.Resource += "_dana@carbon.super" })},
		{
			"user-level policy of an API",
			Form{UserLevel: true},
			func(r *throttle.Request) { r.APITier = "50KPerMin" },
			with(func(w *texts) { w.Resource = "/weather/2.1.0:2.1.0_dana@carbon.super" }),
		},
		{"tenant API", Form{}, func(r *throttle.Request) {
			r.APIContext, r.APIVersion, r.APITenant, r.User = "/t/example.org/news/1.0.0", "1.0.0", "example.org", "bob@example.org"
		}, texts{"/t/example.org/news/1.0.0:1.0.0", "/t/example.org/news/1.0.0/1.0.0/cities/{id}:GET", "12:/t/example.org/news/1.0.0:1.0.0", "12:bob@example.org", "bob@example.org", "12"}},
		{"user without a tenant", Form{}, func(r *throttle.Request) { r.User = "dana" }, plain},
		{
			"e-mail user with its tenant",
			Form{},
			func(r *throttle.Request) { r.User = "dana@mail.com@carbon.super" },
			with(func(w *texts) {
				w.User = "dana@mail.com@carbon.super"
				w.Application = "12:dana@mail.com@carbon.super"
			}),
		},
		{
			"unauthenticated",
			Form{},
			func(r *throttle.Request) { r.Authenticated, r.AppID, r.User = false, "", "" },
			texts{plain.API, plain.Resource, "192.168.1.10:/weather/2.1.0:2.1.0", "192.168.1.10:anonymous@carbon.super", "anonymous@carbon.super", "192.168.1.10"},
		},
		{"unauthenticated, IPv4-mapped", Form{}, func(r *throttle.Request) {
			r.Authenticated, r.AppID, r.User, r.ClientIP = false, "", "", netip.MustParseAddr("::ffff:192.168.1.10")
		}, texts{plain.API, plain.Resource, "192.168.1.10:/weather/2.1.0:2.1.0", "192.168.1.10:anonymous@carbon.super", "anonymous@carbon.super", "192.168.1.10"}},
		{
			"no version",
			Form{},
			func(r *throttle.Request) { r.APIContext, r.APIVersion = "/weather", "" },
			texts{"/weather", "/weather/cities/{id}:GET", "12:/weather", "12:dana@carbon.super", "dana@carbon.super", "12"},
		},
	}
	var k Keys // used over and over, as in a pool
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, fill(&k, request(tt.edit), tt.form)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTier(t *testing.T) {
	tests := []struct {
		api, resource string
		level         throttle.Level
		tier          string
	}{
		{"", "", throttle.LevelNone, ""},
		{"Unlimited", "Unlimited", throttle.LevelNone, "Unlimited"},
		{"", "10KPerMin", throttle.LevelResource, "10KPerMin"},
		{"Unlimited", "10KPerMin", throttle.LevelResource, "10KPerMin"},
		{"50KPerMin", "10KPerMin", throttle.LevelAPI, "50KPerMin"},
		{"50KPerMin", "", throttle.LevelAPI, "50KPerMin"},
	}
	for _, tt := range tests {
		level, tier := Tier(&throttle.Request{APITier: tt.api, ResourceTier: tt.resource}, "Unlimited")
		if level != tt.level || tier != tt.tier {
			t.Errorf("API %q, resource %q: %v %q, want %v %q", tt.api, tt.resource, level, tier, tt.level, tt.tier)
		}
	}
}

// TestKeysDoNotDisturbEachOther whatever the lengths of the texts and whatever request the memory served before.
func TestKeysDoNotDisturbEachOther(t *testing.T) {
	text := rapid.StringMatching(`[a-z@:/$_]{0,40}`)
	rapid.Check(t, func(t *rapid.T) {
		var k Keys
		for range 3 {
			r := &throttle.Request{
				APIContext: text.Draw(t, "context"), APIVersion: text.Draw(t, "version"), APITenant: "t", ResourceTemplate: strings.Repeat(text.Draw(t, "template"), 50),
				Method: "GET", ResourceTier: "x", Authenticated: true, AppID: text.Draw(t, "app"), SubscriptionTier: text.Draw(t, "tier"), User: text.Draw(t, "user") + "@t",
			}
			f := Form{SubscriptionTier: rapid.Bool().Draw(t, "with tier"), UserLevel: rapid.Bool().Draw(t, "user level")}
			api, sub, res := r.APIContext, r.AppID+":"+r.APIContext, r.APIContext
			if r.APIVersion != "" {
				api, sub, res = api+":"+r.APIVersion, sub+":"+r.APIVersion, res+"/"+r.APIVersion
			}
			if f.SubscriptionTier && r.SubscriptionTier != "" {
				sub += ":" + r.SubscriptionTier
			}
			res += r.ResourceTemplate + ":GET"
			if f.UserLevel {
				res += "_" + r.User
			}
			want := texts{api, res, sub, r.AppID + ":" + r.User, r.User, r.AppID}
			if diff := cmp.Diff(want, fill(&k, r, f)); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func BenchmarkFill(b *testing.B) {
	r := request(nil)
	var k Keys
	level, tier := Tier(r, "Unlimited")
	b.ReportAllocs()
	for b.Loop() {
		k.Fill(r, Form{}, level, tier)
	}
}
