package store

import (
	"testing"

	"gatehouse/subscription"
)

// validate is Resolve and Validate of the sample's active subscription, by UUID.
func validate(s *Store) subscription.Reason {
	return subscription.Validate(s.Resolve("mobProdK3y0000000000000001AbC", "Resident Key Manager",
		subscription.APIRef{UUID: "4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41", Context: "/pizza/1.0.0", Version: "1.0.0"})).Reason
}

func TestNothingDanglingAnswers(t *testing.T) {
	worlds := map[string]func() world{
		"4.x": func() world { return sampleWorld(t) },
		"3.2": func() world { return sampleWorld(t).withoutUUIDs() },
	}
	for name, w := range worlds {
		t.Run(name, func(t *testing.T) {
			s := w().store(true)
			if r := validate(s); r != subscription.Allowed {
				t.Fatalf("before: %s", r)
			}
			app := s.Applications().Delete(1)
			if r := validate(s); r != subscription.UnknownApplication {
				t.Errorf("application deleted: %s", r)
			}
			s.Applications().Put(*app)
			var api subscription.API
			for a := range s.APIs().All() {
				if a.Name == "PizzaOrders" {
					api = *a
				}
			}
			if s.APIs().Delete(s.APIs().Key(api)) == nil {
				t.Fatal("API not deleted")
			}
			if r := validate(s); r != subscription.UnknownAPI {
				t.Errorf("API deleted: %s", r)
			}
			s.APIs().Put(api)
			if r := validate(s); r != subscription.Allowed {
				t.Errorf("both back: %s", r)
			}
			s.Subscriptions().Delete(1)
			if r := validate(s); r != subscription.NoSubscription {
				t.Errorf("subscription deleted: %s", r)
			}
			s.KeyMappings().Delete(MappingKey{ConsumerKey: "mobProdK3y0000000000000001AbC", KeyManager: "Default"})
			if r := validate(s); r != subscription.UnknownKey {
				t.Errorf("key mapping deleted under the other name of the key manager: %s", r)
			}
		})
	}
}

func TestMappingWithoutKeyManagerMatchesAnyOnlyThen(t *testing.T) {
	s := New()
	s.KeyMappings().Put(subscription.KeyMapping{ConsumerKey: "k", ApplicationID: 1})
	s.KeyMappings().Put(subscription.KeyMapping{ConsumerKey: "k", KeyManager: "Corp Keycloak", ApplicationID: 2})
	s.KeyMappings().Put(subscription.KeyMapping{ConsumerKey: "bound", KeyManager: "Corp Keycloak", ApplicationID: 3})
	tests := []struct {
		key, km string
		want    int64
	}{
		{"k", "Corp Keycloak", 2},
		{"k", "Default", 1},
		{"k", "Resident Key Manager", 1},
		{"k", "", 1},
		{"bound", "Corp Keycloak", 3},
		{"bound", "Default", 0},
		{"bound", "", 0},
		{"", "Corp Keycloak", 0},
		{"", "", 0},
	}
	for _, tt := range tests {
		var got int64
		if m := s.Mapping(tt.key, tt.km); m != nil {
			got = m.ApplicationID
		}
		if got != tt.want {
			t.Errorf("key %q at %q leads to application %d, want %d", tt.key, tt.km, got, tt.want)
		}
	}
}

func TestAPIJoinsTheRowKnownByNumber(t *testing.T) {
	s := New()
	s.APIs().Put(subscription.API{ID: 7, Name: "by number", Context: "/a/1", Version: "1"})
	before := s.APIs().Put(subscription.API{ID: 7, UUID: "u7", Name: "both", Context: "/a/2", Version: "2"})
	if before == nil || before.Name != "by number" || s.APIs().Len() != 1 {
		t.Fatalf("before %+v, %d rows", before, s.APIs().Len())
	}
	if a := s.API(subscription.APIRef{Context: "/a/1", Version: "1"}); a != nil {
		t.Errorf("the old context still leads to %+v", a)
	}
	if before = s.APIs().Put(subscription.API{ID: 7, Name: "number again"}); before == nil || before.Name != "both" || s.APIs().Len() != 1 {
		t.Fatalf("before %+v, %d rows", before, s.APIs().Len())
	}
	for _, k := range []APIKey{{UUID: "u7"}, {ID: 7}, {UUID: "u7", ID: 7}} {
		if a := s.APIs().Get(k); a == nil || a.Name != "number again" || a.UUID != "u7" {
			t.Errorf("%+v leads to %+v", k, a)
		}
	}
	if a := s.APIs().Get(APIKey{UUID: "another", ID: 7}); a != nil {
		t.Errorf("another UUID leads to %+v", a)
	}
}

func TestAPIWithAnotherUUIDOnDiskIsFoundByContext(t *testing.T) {
	s := sampleWorld(t).store(false)
	a := s.API(subscription.APIRef{UUID: "00000000-0000-0000-0000-000000000000", Context: "/pizza/1.0.0", Version: "1.0.0"})
	if a == nil || a.Name != "PizzaOrders" {
		t.Fatalf("found %+v", a)
	}
	if a := s.API(subscription.APIRef{Context: "/pizza/1.0.0", Version: "2.0.0"}); a != nil {
		t.Errorf("wrong version found %+v", a)
	}
}

func TestAnotherApplicationOfTheSameNumberDoesNotAnswer(t *testing.T) {
	s := sampleWorld(t).store(false)
	s.KeyMappings().Put(subscription.KeyMapping{ConsumerKey: "foreign", KeyManager: "Default", ApplicationID: 1, ApplicationUUID: "of-another-world"})
	f := s.Resolve("foreign", "Default", subscription.APIRef{Context: "/pizza/1.0.0", Version: "1.0.0"})
	if f.Application != nil || subscription.Validate(f).Reason != subscription.UnknownApplication {
		t.Errorf("resolved %+v", f)
	}
}

func TestRowsWithoutANumberAreKeptByUUID(t *testing.T) {
	for name, fill := range map[string]func(*Store, []subscription.Application, []subscription.Subscription){
		"one by one": func(s *Store, apps []subscription.Application, subs []subscription.Subscription) {
			for _, a := range apps {
				s.Applications().Put(a)
			}
			for _, r := range subs {
				s.Subscriptions().Put(r)
			}
		},
		"at once": func(s *Store, apps []subscription.Application, subs []subscription.Subscription) {
			s.Applications().ReplaceAll(apps)
			s.Subscriptions().ReplaceAll(subs)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := New()
			s.APIs().Put(subscription.API{UUID: "api", Context: "/a/1", Version: "1"})
			s.KeyMappings().Put(subscription.KeyMapping{ConsumerKey: "k1", ApplicationUUID: "a1"})
			s.KeyMappings().Put(subscription.KeyMapping{ConsumerKey: "k2", ApplicationUUID: "a2"})
			fill(s, []subscription.Application{{UUID: "a1"}, {UUID: "a2"}},
				[]subscription.Subscription{{UUID: "s1", APIUUID: "api", ApplicationUUID: "a1"}, {UUID: "s2", APIUUID: "api", ApplicationUUID: "a2"}})
			for k, want := range map[string]string{"k1": "s1", "k2": "s2"} {
				f := s.Resolve(k, "", subscription.APIRef{UUID: "api"})
				if f.Application == nil || f.Subscription == nil || f.Subscription.UUID != want {
					t.Errorf("%s leads to %+v, want subscription %s", k, f, want)
				}
			}
			if r := s.Subscriptions().Delete(subscription.RowKey(0, "s1")); r == nil || r.UUID != "s1" || s.Subscriptions().Len() != 1 {
				t.Errorf("deleted %+v, %d are left; want s1 and 1", r, s.Subscriptions().Len())
			}
		})
	}
}

func TestReplaceAllOfRowsOfOneKeyKeepsTheLast(t *testing.T) {
	s := New()
	s.Subscriptions().ReplaceAll([]subscription.Subscription{{ID: 1, APIID: 1, ApplicationID: 1, Policy: "first"}, {ID: 2}, {ID: 1, APIID: 5, ApplicationID: 5, Policy: "last"}})
	if s.Subscriptions().Len() != 2 || s.Subscriptions().Get(1).Policy != "last" {
		t.Errorf("%d rows, row 1 is %+v", s.Subscriptions().Len(), s.Subscriptions().Get(1))
	}
	s.Subscriptions().ReplaceAll(nil)
	if s.Subscriptions().Len() != 0 || s.Subscriptions().Get(1) != nil {
		t.Errorf("%d rows after an empty list", s.Subscriptions().Len())
	}
}

func TestResolveAllocatesNothing(t *testing.T) {
	s := sampleWorld(t).store(false)
	byUUID := subscription.APIRef{UUID: "4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41"}
	byContext := subscription.APIRef{Context: "/pizza/1.0.0", Version: "1.0.0"}
	if n := testing.AllocsPerRun(200, func() {
		s.Resolve("mobProdK3y0000000000000001AbC", "Default", byUUID)
		s.Resolve("mobProdK3y0000000000000001AbC", "Default", byContext)
		s.Resolve("nope", "Default", byContext)
		s.ResolveApplication("", 1, byUUID)
		s.ResolveApplication("2d3e4f50-0000-4000-8000-000000000000", 0, byContext)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
