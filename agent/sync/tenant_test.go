package sync

import (
	"context"
	"slices"
	gosync "sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/throttle"
)

func TestTenantsHaveNoCase(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"example.org", "Example.ORG", true}, {"", "Example.ORG", true}, {"Example.org", "", true}, {"example.org", "example.com", false},
	} {
		if got := sameTenant(c.a, c.b); got != c.same {
			t.Errorf("%q and %q are one tenant: %v, want %v", c.a, c.b, got, c.same)
		}
	}
	if got := tenantOfContext("/t/Example.ORG/shop/1.0.0"); got != "example.org" {
		t.Errorf("the tenant of the context is %q", got)
	}
	if got := canonicalTenant("wso2-All-tenants"); got != globalTenant {
		t.Errorf("the owner of shared key managers is %q", got)
	}
}

func TestDenyPoliciesOfOneTenantInTwoSpellings(t *testing.T) {
	for name, c := range map[string]struct {
		a, b throttle.DenyCondition
		same bool
	}{
		"address":                      {throttle.DenyCondition{Kind: throttle.DenyIP, Tenant: "Example.org", ID: 3}, throttle.DenyCondition{Kind: throttle.DenyIP, Tenant: "example.ORG", ID: 3}, true},
		"address of the super tenant":  {throttle.DenyCondition{Kind: throttle.DenyIP, ID: 3}, throttle.DenyCondition{Kind: throttle.DenyIP, Tenant: "Carbon.Super", ID: 3}, true},
		"user":                         {throttle.DenyCondition{Kind: throttle.DenyUser, Value: "eve@Example.org"}, throttle.DenyCondition{Kind: throttle.DenyUser, Tenant: "example.org", Value: "eve"}, true},
		"user with its tenant twice":   {throttle.DenyCondition{Kind: throttle.DenyUser, Tenant: "example.org", Value: "eve@EXAMPLE.org"}, throttle.DenyCondition{Kind: throttle.DenyUser, Value: "eve@example.org"}, true},
		"user of another case":         {throttle.DenyCondition{Kind: throttle.DenyUser, Value: "Eve@example.org"}, throttle.DenyCondition{Kind: throttle.DenyUser, Value: "eve@example.org"}, false},
		"application":                  {throttle.DenyCondition{Kind: throttle.DenyApplication, Value: "dana@Example.org:App"}, throttle.DenyCondition{Kind: throttle.DenyApplication, Value: "dana@example.org:App"}, true},
		"application of another case":  {throttle.DenyCondition{Kind: throttle.DenyApplication, Value: "dana@example.org:App@Home"}, throttle.DenyCondition{Kind: throttle.DenyApplication, Value: "dana@example.org:App@home"}, false},
		"application, super tenant":    {throttle.DenyCondition{Kind: throttle.DenyApplication, Value: "dana@Carbon.super:App"}, throttle.DenyCondition{Kind: throttle.DenyApplication, Value: "dana:App"}, true},
		"subscription":                 {throttle.DenyCondition{Kind: throttle.DenySubscription, Tenant: "My-Org.com", Value: "/t/x/1:1:dana@MY-org.com-App:PRODUCTION"}, throttle.DenyCondition{Kind: throttle.DenySubscription, Tenant: "my-org.com", Value: "/t/x/1:1:dana@my-org.com-App:PRODUCTION"}, true},
		"subscription, super tenant":   {throttle.DenyCondition{Kind: throttle.DenySubscription, Value: "/x/1:1:dana@CARBON.super-App:PRODUCTION"}, throttle.DenyCondition{Kind: throttle.DenySubscription, Value: "/x/1:1:dana-App:PRODUCTION"}, true},
		"subscription of another case": {throttle.DenyCondition{Kind: throttle.DenySubscription, Value: "/x/1:1:dana-app:PRODUCTION"}, throttle.DenyCondition{Kind: throttle.DenySubscription, Value: "/x/1:1:dana-App:PRODUCTION"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := denyKeyOf(&c.a) == denyKeyOf(&c.b); got != c.same {
				t.Errorf("%+v and %+v: one policy is %v, want %v", denyKeyOf(&c.a), denyKeyOf(&c.b), got, c.same)
			}
		})
	}
}

// TestTenantInAnotherSpellingIsTheSame: list and events spell one tenant each in its own way.
func TestTenantInAnotherSpellingIsTheSame(t *testing.T) {
	var mu gosync.Mutex
	var asked []string
	run(t, func(o *Options) {
		o.Tenants = []string{"Example.org", "EXAMPLE.org"}
		single := o.Lists.SubscriptionPolicy
		o.Lists.SubscriptionPolicy = func(ctx context.Context, tenant, name string) (*controlplane.Policy, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, tenant)
			return single(ctx, tenant, name)
		}
	}, func(t *testing.T, r *rig) {
		r.m.subPol["Gold"] = controlplane.Policy{Name: "Gold", TenantDomain: "EXAMPLE.org", RateLimitCount: 1}
		r.m.kms["KM"] = controlplane.KeyManager{Name: "KM", Tenant: "Example.Org", Enabled: true, Configuration: map[string]any{"issuer": "i"}}
		r.m.block.User = []string{"eve@Example.org"}
		r.m.apps[1] = controlplane.Application{ID: 1, Name: "App", Organization: "eXample.org"}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		wantEqual(t, r)
		if n := r.m.called(kindSubscriptions); n != 1 {
			t.Errorf("the lists were fetched %d times, want once for the one tenant", n)
		}
		now := r.m.now()
		r.m.mu.Lock()
		r.m.subPol["Gold"] = controlplane.Policy{Name: "Gold", TenantDomain: "EXAMPLE.org", RateLimitCount: 2}
		r.m.block.User = nil
		delete(r.m.kms, "KM")
		r.m.mu.Unlock()
		b := event.Base{Time: now, TenantDomain: "exAMPle.org"}
		r.source.deliver(r.wire.message(event.TopicNotification, event.PolicyChanged{Base: b, Action: event.Update, Kind: "SUBSCRIPTION", Name: "Gold", RateLimitCount: 2}))
		r.source.deliver(r.wire.message(event.TopicThrottleData, event.DenyChanged{Base: b, Kind: "USER", Value: "eve@EXAMPLE.ORG"}))
		r.source.deliver(r.wire.message(event.TopicKeyManager, event.KeyManagerChanged{Base: b, Action: "delete", Name: "KM", Tenant: "EXAMPLE.ORG"}))
		synctest.Wait()
		wantEqual(t, r)
		mu.Lock()
		defer mu.Unlock()
		if want := []string{"Example.org"}; !slices.Equal(asked, want) {
			t.Errorf("asked for the policy of tenants %q, want %q as configured", asked, want)
		}
		for _, p := range r.w.subPol.all() {
			if p.Tenant != "example.org" || p.BurstCount != 2 {
				t.Errorf("policy %+v", p)
			}
		}
	})
}
