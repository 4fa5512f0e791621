package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/throttle"
)

func TestStore(t *testing.T) {
	s := New()
	gold := throttle.Policy{Kind: throttle.PolicySubscription, Tenant: "carbon.super", Name: "Gold", StopOnQuotaReach: true}
	if s.Put(gold) != nil {
		t.Error("before")
	}
	if before := s.Put(throttle.Policy{Kind: throttle.PolicySubscription, Name: "Gold"}); before == nil || !before.StopOnQuotaReach || s.Len() != 1 {
		t.Errorf("no tenant is the super tenant; before %+v", before)
	}
	s.Put(throttle.Policy{Kind: throttle.PolicyApplication, Tenant: "carbon.super", Name: "Gold"})
	s.Put(throttle.Policy{Kind: throttle.PolicySubscription, Tenant: "example.org", Name: "Gold"})
	if s.Len() != 3 {
		t.Errorf("%d held: kind and tenant are part of the name", s.Len())
	}
	if s.Get(throttle.PolicySubscription, "example.org", "gold") != nil || s.Get(throttle.PolicySubscription, "example.org", "Gold") == nil {
		t.Error("names are compared as they are")
	}
	s.ReplaceAll(throttle.PolicySubscription, []throttle.Policy{{Tenant: "carbon.super", Name: "Silver"}})
	if s.Get(throttle.PolicySubscription, "", "Gold") != nil || s.Get(throttle.PolicySubscription, "", "Silver") == nil || s.Get(throttle.PolicyApplication, "", "Gold") == nil {
		t.Error("ReplaceAll touched another kind, or left something")
	}
	if s.Delete(throttle.PolicyApplication, "", "Silver") != nil || s.Delete(throttle.PolicyApplication, "", "Gold") == nil || s.Len() != 1 {
		t.Error("Delete")
	}
}

func TestConditionsAreCompiled(t *testing.T) {
	s := New()
	s.Put(throttle.Policy{Kind: throttle.PolicyAPI, Name: "P", Groups: []throttle.ConditionGroup{
		{ID: 1, Conditions: []throttle.Condition{{Type: "Header", Name: "h", Value: "("}}},
		{ID: 2, Conditions: []throttle.Condition{{Type: "IPSpecific", Value: "10.0.0.1"}}},
		{ID: 3, Conditions: []throttle.Condition{{Type: "Header", Name: "h", Value: "a"}, {Type: "Header", Name: "a", Value: "a"}, {Type: "JWTClaims", Name: "c", Value: "a"}, {Type: "QueryParameterType", Name: "q", Value: "a"}}},
	}})
	c := s.Compiled(throttle.PolicyAPI, "", "P")
	if diff := cmp.Diff([][]string{{"A", "H"}, {"q"}, {"c"}}, [][]string{c.Headers, c.Query, c.Claims}); diff != "" {
		t.Error(diff)
	}
	if len(c.Conditions) != 3 || c.Conditions[0].Inert == "" || c.Conditions[1].Inert != "" || c.Conditions[1].ID != 2 {
		t.Errorf("%+v", c.Conditions)
	}
}

func TestStoreAgainstModel(t *testing.T) {
	kinds := rapid.SampledFrom([]throttle.PolicyKind{throttle.PolicyAPI, throttle.PolicySubscription})
	tenants := rapid.SampledFrom([]string{"", "carbon.super", "example.org"})
	names := rapid.SampledFrom([]string{"Gold", "Silver"})
	rapid.Check(t, func(t *rapid.T) {
		s, m := New(), map[name]throttle.Policy{}
		draw := func(t *rapid.T) throttle.Policy {
			return throttle.Policy{Kind: kinds.Draw(t, "kind"), Tenant: tenants.Draw(t, "tenant"), Name: names.Draw(t, "name"), ID: rapid.Int64().Draw(t, "id")}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				p := draw(t)
				k := key(p.Kind, p.Tenant, p.Name)
				old, had := m[k]
				if before := s.Put(p); (before != nil) != had || had && before.ID != old.ID {
					t.Fatalf("before %+v, want %+v", before, old)
				}
				m[k] = p
			},
			"delete": func(t *rapid.T) {
				p := draw(t)
				k := key(p.Kind, p.Tenant, p.Name)
				_, had := m[k]
				if before := s.Delete(p.Kind, p.Tenant, p.Name); (before != nil) != had {
					t.Fatalf("before %+v, want %v", before, had)
				}
				delete(m, k)
			},
			"replace": func(t *rapid.T) {
				kind := kinds.Draw(t, "kind")
				list := rapid.SliceOfN(rapid.Custom(draw), 0, 3).Draw(t, "list")
				s.ReplaceAll(kind, list)
				for k := range m {
					if k.kind == kind {
						delete(m, k)
					}
				}
				for _, p := range list {
					p.Kind = kind
					m[key(kind, p.Tenant, p.Name)] = p
				}
			},
			"": func(t *rapid.T) {
				got := map[name]throttle.Policy{}
				for _, p := range s.All("") {
					got[key(p.Kind, p.Tenant, p.Name)] = p
				}
				if diff := cmp.Diff(m, got, cmp.AllowUnexported(name{})); diff != "" || s.Len() != len(m) {
					t.Fatal(s.Len(), diff)
				}
			},
		})
	})
}

func BenchmarkGet(b *testing.B) {
	s := New()
	s.Put(throttle.Policy{Kind: throttle.PolicySubscription, Name: "Gold"})
	b.ReportAllocs()
	for b.Loop() {
		if s.Get(throttle.PolicySubscription, "carbon.super", "Gold") == nil {
			b.Fatal("missing")
		}
	}
}
