package checker

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatehouse/throttle"
	"gatehouse/throttle/deny"
	"gatehouse/throttle/key"
	"gatehouse/throttle/keytemplate"
	"gatehouse/throttle/policy"
	"gatehouse/throttle/remote"
)

const now = 1764000000000

// request is GET /weather/2.1.0/cities/{id} of dana's MobileApp, as in the recorded events.
func request() *throttle.Request {
	return &throttle.Request{
		MessageID: "m-1", APIName: "Weather", APIContext: "/weather/2.1.0", APIVersion: "2.1.0", APITenant: "carbon.super",
		ResourceTemplate: "/cities/{id}", Method: "GET", ResourceTier: "10KPerMin",
		Authenticated: true, AppID: "12", AppName: "MobileApp", AppOwner: "dana", AppTenant: "carbon.super", AppTier: "10PerMin",
		SubscriptionTier: "Gold", KeyType: "PRODUCTION", User: "dana@carbon.super",
		ClientIP: netip.MustParseAddr("192.168.1.10"), MessageSize: -1,
	}
}

type parts struct {
	deny      *deny.Set
	templates *keytemplate.Set
	decisions *remote.Decisions
	policies  *policy.Store
	published []string
}

func (p *parts) Enqueue(r *throttle.Request, k *key.Keys, now int64) {
	p.published = append(p.published, string(k.Resource))
}

func build(edit func(*Options)) (*Checker, *parts) {
	p := &parts{deny: deny.New(), templates: keytemplate.New(), decisions: remote.New(remote.Options{}), policies: policy.New()}
	o := Options{
		Deny: p.deny, Templates: p.templates, Decisions: p.decisions, Policies: p.policies, Publisher: p,
		DenyEnabled: true, EnableHeaderConditions: true, EnableQueryConditions: true, EnableJWTConditions: true,
	}
	if edit != nil {
		edit(&o)
	}
	return New(o), p
}

func TestCheckLevels(t *testing.T) {
	const end = now + 60_000
	tests := []struct {
		name     string
		keys     []string
		template string
		policies []throttle.Policy
		options  func(*Options)
		request  func(*throttle.Request)
		want     throttle.Verdict
	}{
		{name: "nothing decided"},
		{
			name: "application", keys: []string{"12:dana@carbon.super"},
			want: throttle.Verdict{Level: throttle.LevelApplication, Key: "12:dana@carbon.super", RetryAt: end},
		},
		{
			name: "subscription", keys: []string{"12:/weather/2.1.0:2.1.0"},
			want: throttle.Verdict{Level: throttle.LevelSubscription, Key: "12:/weather/2.1.0:2.1.0", RetryAt: end},
		},
		{
			name: "subscription before application", keys: []string{"12:dana@carbon.super", "12:/weather/2.1.0:2.1.0"},
			want: throttle.Verdict{Level: throttle.LevelSubscription, Key: "12:/weather/2.1.0:2.1.0", RetryAt: end},
		},
		{name: "subscription key with tier is another key", keys: []string{"12:/weather/2.1.0:2.1.0:Gold"}},
		{
			name: "subscription key with tier where the setting says so", keys: []string{"12:/weather/2.1.0:2.1.0:Gold"},
			options: func(o *Options) { o.SubscriptionKeyWithTier = true },
			want:    throttle.Verdict{Level: throttle.LevelSubscription, Key: "12:/weather/2.1.0:2.1.0:Gold", RetryAt: end},
		},
		{
			name: "over quota passes without stopOnQuotaReach", keys: []string{"12:/weather/2.1.0:2.1.0"},
			policies: []throttle.Policy{{Kind: throttle.PolicySubscription, Name: "Gold", Tenant: "carbon.super"}},
			want:     throttle.Verdict{OverQuota: true, Key: "12:/weather/2.1.0:2.1.0", RetryAt: end},
		},
		{
			name: "over quota is refused with stopOnQuotaReach", keys: []string{"12:/weather/2.1.0:2.1.0"},
			policies: []throttle.Policy{{Kind: throttle.PolicySubscription, Name: "Gold", Tenant: "carbon.super", StopOnQuotaReach: true}},
			want:     throttle.Verdict{Level: throttle.LevelSubscription, Key: "12:/weather/2.1.0:2.1.0", RetryAt: end},
		},
		{
			name: "over quota passes, the application still stops it", keys: []string{"12:/weather/2.1.0:2.1.0", "12:dana@carbon.super"},
			policies: []throttle.Policy{{Kind: throttle.PolicySubscription, Name: "Gold", Tenant: "carbon.super"}},
			want:     throttle.Verdict{Level: throttle.LevelApplication, OverQuota: true, Key: "12:dana@carbon.super", RetryAt: end},
		},
		{
			name: "resource", keys: []string{"/weather/2.1.0/2.1.0/cities/{id}:GET_default"},
			want: throttle.Verdict{Level: throttle.LevelResource, Condition: "default", Key: "/weather/2.1.0/2.1.0/cities/{id}:GET_default", RetryAt: end},
		},
		{
			name: "resource before subscription", keys: []string{"12:/weather/2.1.0:2.1.0", "/weather/2.1.0/2.1.0/cities/{id}:GET_default"},
			want: throttle.Verdict{Level: throttle.LevelResource, Condition: "default", Key: "/weather/2.1.0/2.1.0/cities/{id}:GET_default", RetryAt: end},
		},
		{
			name: "resource of unlimited tier is not looked up", keys: []string{"/weather/2.1.0/2.1.0/cities/{id}:GET_default"},
			request: func(r *throttle.Request) { r.ResourceTier = "Unlimited" },
		},
		{
			name: "API tier replaces the resource's", keys: []string{"/weather/2.1.0/2.1.0/cities/{id}:GET_default", "/weather/2.1.0:2.1.0_default"},
			request: func(r *throttle.Request) { r.APITier = "50KPerMin" },
			want:    throttle.Verdict{Level: throttle.LevelAPI, Condition: "default", Key: "/weather/2.1.0:2.1.0_default", RetryAt: end},
		},
		{
			name: "unlimited API tier leaves the resource's", keys: []string{"/weather/2.1.0/2.1.0/cities/{id}:GET_default", "/weather/2.1.0:2.1.0_default"},
			request: func(r *throttle.Request) { r.APITier = "Unlimited" },
			want:    throttle.Verdict{Level: throttle.LevelResource, Condition: "default", Key: "/weather/2.1.0/2.1.0/cities/{id}:GET_default", RetryAt: end},
		},
		{
			name: "user-level policy counts per user", keys: []string{"/weather/2.1.0/2.1.0/cities/{id}:GET_dana@carbon.super_default"},
			policies: []throttle.Policy{{Kind: throttle.PolicyAPI, Name: "10KPerMin", Tenant: "carbon.super", UserLevel: true}},
			want:     throttle.Verdict{Level: throttle.LevelResource, Condition: "default", Key: "/weather/2.1.0/2.1.0/cities/{id}:GET_dana@carbon.super_default", RetryAt: end},
		},
		{
			name: "user-level API policy", keys: []string{"/weather/2.1.0:2.1.0_dana@carbon.super_default"},
			policies: []throttle.Policy{{Kind: throttle.PolicyAPI, Name: "50KPerMin", Tenant: "carbon.super", UserLevel: true}},
			request:  func(r *throttle.Request) { r.APITier = "50KPerMin" },
			want:     throttle.Verdict{Level: throttle.LevelAPI, Condition: "default", Key: "/weather/2.1.0:2.1.0_dana@carbon.super_default", RetryAt: end},
		},
		{
			name: "custom", keys: []string{"dana@carbon.super:/weather/2.1.0:2.1.0"}, template: "$userId:$apiContext:$apiVersion",
			want: throttle.Verdict{Level: throttle.LevelCustom, Key: "dana@carbon.super:/weather/2.1.0:2.1.0", RetryAt: end},
		},
		{
			name: "custom by decimal client address", keys: []string{"12:3232235786"}, template: "$appId:$clientIp",
			want: throttle.Verdict{Level: throttle.LevelCustom, Key: "12:3232235786", RetryAt: end},
		},
		{name: "custom without its template", keys: []string{"dana@carbon.super:/weather/2.1.0:2.1.0"}},
		{
			name: "unauthenticated by client address", keys: []string{"192.168.1.10:/weather/2.1.0:2.1.0"},
			request: func(r *throttle.Request) {
				r.Authenticated, r.AppID, r.User, r.SubscriptionTier = false, "", "", "Unauthenticated"
			},
			want: throttle.Verdict{Level: throttle.LevelSubscription, Key: "192.168.1.10:/weather/2.1.0:2.1.0", RetryAt: end},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, p := build(tt.options)
			for _, k := range tt.keys {
				if !p.decisions.Apply(throttle.Decision{Key: k, Throttled: true, ExpiresAt: end}, now) {
					t.Fatalf("decision of %q not taken", k)
				}
			}
			if tt.template != "" {
				p.templates.Put(throttle.KeyTemplate{Template: tt.template})
			}
			for _, pol := range tt.policies {
				p.policies.Put(pol)
			}
			r := request()
			if tt.request != nil {
				tt.request(r)
			}
			if diff := cmp.Diff(tt.want, c.Check(r, now)); diff != "" {
				t.Error(diff)
			}
			if got := c.Check(r, end+1); got != (throttle.Verdict{}) {
				t.Errorf("after the window: %+v", got)
			}
		})
	}
}

func TestDenyIsOffWithoutDenyEnabled(t *testing.T) {
	for _, on := range []bool{true, false} {
		c, p := build(func(o *Options) { o.DenyEnabled = on })
		p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyAPI, Value: "/weather/2.1.0"})
		p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyUser, Value: "dana@carbon.super"})
		if got := c.DenyAnonymous(request()) != nil; got != on {
			t.Errorf("enabled %v: API denied %v", on, got)
		}
		if got := c.DenyIdentified(request()) != nil; got != on {
			t.Errorf("enabled %v: user denied %v", on, got)
		}
	}
}

func TestZeroOptionsAllowEverything(t *testing.T) {
	c := New(Options{})
	r := request()
	if c.DenyAnonymous(r) != nil || c.DenyIdentified(r) != nil || c.Check(r, now) != (throttle.Verdict{}) {
		t.Error("a checker of nothing refused a request")
	}
	c.Publish(r, now)
}

// TestPublishedKeyIsLookedUp: what is published is what is looked up.
func TestPublishedKeyIsLookedUp(t *testing.T) {
	c, p := build(nil)
	p.policies.Put(throttle.Policy{Kind: throttle.PolicyAPI, Name: "10KPerMin", Tenant: "carbon.super", UserLevel: true})
	c.Publish(request(), now)
	p.decisions.Apply(throttle.Decision{Key: p.published[0] + "_default", Throttled: true, ExpiresAt: now + 1000}, now)
	if v := c.Check(request(), now); v.Level != throttle.LevelResource {
		t.Errorf("decision of the published key %q does not throttle: %+v", p.published[0], v)
	}
}

// collector is a publisher that keeps the listed attributes of a request.
type collector struct {
	attributes throttle.Attributes
	lines      []string
}

func (c *collector) VisitAttribute(name, value string) { c.lines = append(c.lines, name+"="+value) }

func (c *collector) Enqueue(r *throttle.Request, _ *key.Keys, _ int64) {
	c.attributes, c.lines = r.Attributes, nil
	if src, ok := r.Attributes.(throttle.AttributeSource); ok {
		src.VisitHeaders(c)
		src.VisitQuery(c)
		src.VisitClaims(c)
	}
}

// TestAttributesOfThePolicyArePublished although the request's attributes cannot list themselves.
func TestAttributesOfThePolicyArePublished(t *testing.T) {
	col := &collector{}
	c, p := build(func(o *Options) { o.Publisher = col })
	r := request()
	given := attributes{header: map[string]string{"x-client": "mobile-7", "x-other": "1"}, query: map[string]string{"tier": "free"}, claim: map[string]string{"plan": "trial"}}
	r.Attributes = given
	c.Publish(r, now)
	if len(col.lines) != 0 {
		t.Errorf("without a policy: %v", col.lines)
	}
	p.policies.Put(throttle.Policy{Kind: throttle.PolicyAPI, Name: "10KPerMin", Tenant: "carbon.super", Groups: []throttle.ConditionGroup{
		{ID: 1, Conditions: []throttle.Condition{{Type: "Header", Name: "x-client", Value: "m"}, {Type: "Header", Name: "x-missing", Value: "m"}}},
		{ID: 2, Conditions: []throttle.Condition{{Type: "QueryParameterType", Name: "tier", Value: "f"}, {Type: "JWTClaims", Name: "plan", Value: "t"}, {Type: "JWTClaims", Name: "none", Value: "t"}}},
	}})
	c.Publish(r, now)
	if diff := cmp.Diff([]string{"X-Client=mobile-7", "tier=free", "plan=trial"}, col.lines); diff != "" {
		t.Error(diff)
	}
	if _, changed := r.Attributes.(*named); changed {
		t.Error("the request keeps the checker's memory")
	}
}

func TestHitNothingAllocatesNothing(t *testing.T) {
	c, r := loaded()
	c.Check(r, now)
	n := testing.AllocsPerRun(200, func() {
		if c.DenyAnonymous(r) != nil || c.DenyIdentified(r) != nil || c.Check(r, now).Level != throttle.LevelNone {
			t.Fatal("hit")
		}
	})
	if n != 0 && !raceDetector {
		t.Errorf("%v allocations per request, want 0", n)
	}
}

// loaded is a checker with every table filled, none of which concerns the request.
func loaded() (*Checker, *throttle.Request) {
	c, p := build(nil)
	for i := range int64(100) {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyIP, ID: i + 1, From: a, Tenant: "carbon.super"})
	}
	for i := range int64(10) {
		p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyIPRange, ID: 1000 + i, From: netip.MustParseAddr("10.1.0.0"), To: netip.MustParseAddr("10.2.0.0"), Tenant: "carbon.super"})
	}
	p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyAPI, Value: "/other/1"})
	p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyApplication, Value: "eve:App"})
	p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyUser, Value: "eve@carbon.super"})
	p.deny.Put(throttle.DenyCondition{Kind: throttle.DenySubscription, Value: "/other/1:1:eve-App:PRODUCTION"})
	p.templates.Put(throttle.KeyTemplate{Template: "$userId:$apiContext:$apiVersion"})
	p.templates.Put(throttle.KeyTemplate{Template: "$appId:$clientIp"})
	p.policies.Put(throttle.Policy{Kind: throttle.PolicyAPI, Name: "10KPerMin", Tenant: "carbon.super"})
	for i := range 1000 {
		p.decisions.Apply(throttle.Decision{Key: "999" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + ":x@carbon.super", Throttled: true, ExpiresAt: now + 1000}, now)
	}
	p.decisions.Apply(throttle.Decision{Key: "/other/1/1/x:GET_default", Throttled: true, ExpiresAt: now + 1000}, now)
	return c, request()
}

func BenchmarkDenyAndCheckMiss(b *testing.B) {
	c, r := loaded()
	b.ReportAllocs()
	for b.Loop() {
		if c.DenyAnonymous(r) != nil || c.DenyIdentified(r) != nil || c.Check(r, now).Level != throttle.LevelNone {
			b.Fatal("hit")
		}
	}
}

func BenchmarkCheckMissParallel(b *testing.B) {
	c, r := loaded()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c.Check(r, now)
		}
	})
}

func BenchmarkCheckApplicationHit(b *testing.B) {
	c, r := loaded()
	c.o.Decisions.Apply(throttle.Decision{Key: "12:dana@carbon.super", Throttled: true, ExpiresAt: now + 1000}, now)
	b.ReportAllocs()
	for b.Loop() {
		if c.Check(r, now).Level != throttle.LevelApplication {
			b.Fatal("miss")
		}
	}
}
