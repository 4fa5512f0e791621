package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/subscription"
)

func readSample(t testing.TB, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

type world struct {
	apis          []subscription.API
	applications  []subscription.Application
	mappings      []subscription.KeyMapping
	subscriptions []subscription.Subscription
}

// sampleWorld is the data set of the API Manager's samples, as 4.x sends it.
func sampleWorld(t testing.TB) world {
	var w world
	var apis struct {
		List []struct {
			UUID, Provider, Name, Version, Context, Policy, APIType, Status, Organization string
			APIID                                                                         int64
		}
	}
	readSample(t, "apis.json", &apis)
	for _, a := range apis.List {
		w.apis = append(w.apis, subscription.API{
			ID: a.APIID, UUID: a.UUID, Name: a.Name, Version: a.Version, Context: a.Context,
			Provider: a.Provider, Type: a.APIType, Status: a.Status, Policy: a.Policy, Tenant: a.Organization,
		})
	}
	var apps struct {
		List []struct {
			UUID, Name, SubName, Policy, Organization string
			ID                                        int64
		}
	}
	readSample(t, "applications.json", &apps)
	for _, a := range apps.List {
		w.applications = append(w.applications, subscription.Application{
			ID: a.ID, UUID: a.UUID, Name: a.Name, Owner: a.SubName,
			Policy: a.Policy, Tenant: a.Organization,
		})
	}
	var keys struct {
		List []struct {
			ApplicationID                                     int64
			ApplicationUUID, ConsumerKey, KeyType, KeyManager string
		}
	}
	readSample(t, "application-key-mappings.json", &keys)
	for _, k := range keys.List {
		w.mappings = append(w.mappings, subscription.KeyMapping{
			ConsumerKey: k.ConsumerKey, KeyManager: k.KeyManager,
			KeyType: subscription.KeyType(k.KeyType), ApplicationID: k.ApplicationID, ApplicationUUID: k.ApplicationUUID,
		})
	}
	var subs struct {
		List []struct {
			SubscriptionID, APIID, AppID                                            int64
			SubscriptionUUID, PolicyID, APIUUID, ApplicationUUID, SubscriptionState string
		}
	}
	readSample(t, "subscriptions.json", &subs)
	for _, s := range subs.List {
		w.subscriptions = append(w.subscriptions, subscription.Subscription{
			ID: s.SubscriptionID, UUID: s.SubscriptionUUID,
			APIID: s.APIID, APIUUID: s.APIUUID, ApplicationID: s.AppID, ApplicationUUID: s.ApplicationUUID,
			Policy: s.PolicyID, State: subscription.State(s.SubscriptionState),
		})
	}
	return w
}

// withoutUUIDs is the same world as 3.2 sends it: numbers only, and key mappings without a key manager if wanted.
func (w world) withoutUUIDs() world {
	for i := range w.apis {
		w.apis[i].UUID = ""
	}
	for i := range w.applications {
		w.applications[i].UUID = ""
	}
	for i := range w.mappings {
		w.mappings[i].ApplicationUUID = ""
	}
	for i := range w.subscriptions {
		w.subscriptions[i].UUID, w.subscriptions[i].APIUUID, w.subscriptions[i].ApplicationUUID = "", "", ""
	}
	return w
}

// withoutNumbers leaves the joins to UUIDs alone; the rows keep their own numbers, which are keys of the tables.
func (w world) withoutNumbers() world {
	for i := range w.apis {
		w.apis[i].ID = 0
	}
	for i := range w.mappings {
		w.mappings[i].ApplicationID = 0
	}
	for i := range w.subscriptions {
		w.subscriptions[i].APIID, w.subscriptions[i].ApplicationID = 0, 0
	}
	return w
}

func (w world) store(oneByOne bool) *Store {
	s := New()
	if !oneByOne {
		s.Subscriptions().ReplaceAll(w.subscriptions)
		s.KeyMappings().ReplaceAll(w.mappings)
		s.Applications().ReplaceAll(w.applications)
		s.APIs().ReplaceAll(w.apis)
		return s
	}
	for _, r := range w.apis {
		s.APIs().Put(r)
	}
	for _, r := range w.applications {
		s.Applications().Put(r)
	}
	for _, r := range w.mappings {
		s.KeyMappings().Put(r)
	}
	for _, r := range w.subscriptions {
		s.Subscriptions().Put(r)
	}
	return s
}

var codes = map[subscription.Reason]int{
	subscription.UnknownAPI: 900908, subscription.UnknownKey: 900908, subscription.UnknownApplication: 900908,
	subscription.NoSubscription: 900908, subscription.SubscriptionBlocked: 900907,
	subscription.SubscriptionInactive: 900909, subscription.UnknownState: 900908,
}

// TestExpectedValidation runs the ten cases of the samples in each world and by each way of naming the API.
func TestExpectedValidation(t *testing.T) {
	var cases []struct {
		Case, API, KeyManager, ConsumerKey, KeyType string
		SubscriptionTier, ApplicationTier           string
		Allowed                                     bool
		Code                                        int
	}
	readSample(t, "expected-validation.json", &cases)
	if len(cases) != 10 {
		t.Fatalf("read %d cases, want 10", len(cases))
	}
	worlds := map[string]func() world{
		"4.x":        func() world { return sampleWorld(t) },
		"3.2":        func() world { return sampleWorld(t).withoutUUIDs() },
		"UUIDs only": func() world { return sampleWorld(t).withoutNumbers() },
	}
	refs := map[string]func(a subscription.API) subscription.APIRef{
		"uuid": func(a subscription.API) subscription.APIRef { return subscription.APIRef{UUID: a.UUID, ID: a.ID} },
		"context": func(a subscription.API) subscription.APIRef {
			return subscription.APIRef{Context: a.Context, Version: a.Version}
		},
		"all of it": func(a subscription.API) subscription.APIRef {
			return subscription.APIRef{UUID: "4f1c0c5e-ffff-4a8e-9f7e-000000000000", Context: a.Context, Version: a.Version}
		},
	}
	for wname, w := range worlds {
		for rname, ref := range refs {
			for _, oneByOne := range []bool{false, true} {
				s := w().store(oneByOne)
				for _, c := range cases {
					t.Run(wname+"/"+rname+"/"+c.Case, func(t *testing.T) {
						var api subscription.API
						for a := range s.APIs().All() {
							if a.Name+":"+a.Version == c.API {
								api = *a
							}
						}
						f := s.Resolve(c.ConsumerKey, c.KeyManager, ref(api))
						v := subscription.Validate(f)
						if allowed := v.Reason == subscription.Allowed; allowed != c.Allowed || codes[v.Reason] != c.Code {
							t.Fatalf("got %s (%d): %s; want allowed=%t code=%d", v.Reason, codes[v.Reason], v.Detail, c.Allowed, c.Code)
						}
						if c.KeyType != "" && string(v.KeyType) != c.KeyType {
							t.Errorf("key type %s, want %s", v.KeyType, c.KeyType)
						}
						if c.SubscriptionTier != "" && f.Subscription.Policy != c.SubscriptionTier {
							t.Errorf("subscription tier %s, want %s", f.Subscription.Policy, c.SubscriptionTier)
						}
						if c.ApplicationTier != "" && f.Application.Policy != c.ApplicationTier {
							t.Errorf("application tier %s, want %s", f.Application.Policy, c.ApplicationTier)
						}
					})
				}
			}
		}
	}
}
