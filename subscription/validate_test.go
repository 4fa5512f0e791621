package subscription

import (
	"strings"
	"testing"
)

func TestValidateByState(t *testing.T) {
	tests := []struct {
		state               State
		production, sandbox Reason
	}{
		{Unblocked, Allowed, Allowed},
		{TierUpdatePending, Allowed, Allowed},
		{Blocked, SubscriptionBlocked, SubscriptionBlocked},
		{ProdOnlyBlocked, SubscriptionBlocked, Allowed},
		{OnHold, SubscriptionInactive, SubscriptionInactive},
		{Rejected, SubscriptionInactive, SubscriptionInactive},
		{"", UnknownState, UnknownState},
		{"unblocked", UnknownState, UnknownState},
		{"SOMETHING_NEW", UnknownState, UnknownState},
	}
	for _, tt := range tests {
		for _, kt := range []KeyType{Production, Sandbox} {
			t.Run(string(tt.state)+"/"+string(kt), func(t *testing.T) {
				want := tt.production
				if kt == Sandbox {
					want = tt.sandbox
				}
				v := Validate(Facts{
					API: &API{ID: 1}, Mapping: &KeyMapping{KeyType: kt}, Application: &Application{ID: 2},
					Subscription: &Subscription{ID: 3, State: tt.state},
				})
				if v.Reason != want || v.KeyType != kt {
					t.Errorf("got %s with key type %s, want %s with %s", v.Reason, v.KeyType, want, kt)
				}
				if (v.Detail == "") != (want == Allowed) {
					t.Errorf("detail %q of %s", v.Detail, want)
				}
			})
		}
	}
}

func TestValidateNamesTheFirstMissingRow(t *testing.T) {
	whole := Facts{
		API: &API{ID: 1}, Mapping: &KeyMapping{ApplicationID: 2}, Application: &Application{ID: 2},
		Subscription: &Subscription{State: Unblocked},
	}
	tests := []struct {
		name   string
		drop   func(*Facts)
		want   Reason
		detail string
	}{
		{"nothing missing", func(*Facts) {}, Allowed, ""},
		{"subscription", func(f *Facts) { f.Subscription = nil }, NoSubscription, "application 2 has no subscription to API 1"},
		{"application", func(f *Facts) { f.Application = nil }, UnknownApplication, "application 2 of the consumer key is not known"},
		{"mapping", func(f *Facts) { f.Mapping = nil }, UnknownKey, "no application has this consumer key at this key manager"},
		{"API", func(f *Facts) { f.API = nil }, UnknownAPI, "the API Manager has named no such API"},
		{"API and mapping", func(f *Facts) { f.API, f.Mapping = nil, nil }, UnknownAPI, "the API Manager has named no such API"},
		{"all", func(f *Facts) { *f = Facts{} }, UnknownAPI, "the API Manager has named no such API"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := whole
			tt.drop(&f)
			v := Validate(f)
			if v.Reason != tt.want || v.Detail != tt.detail {
				t.Errorf("got %s %q, want %s %q", v.Reason, v.Detail, tt.want, tt.detail)
			}
		})
	}
}

func TestKeyTypeOfMapping(t *testing.T) {
	for text, want := range map[KeyType]KeyType{
		"": Production, "PRODUCTION": Production, "production": Production,
		"SANDBOX": Sandbox, "Sandbox": Sandbox, "STAGING": "STAGING",
	} {
		v := Validate(Facts{
			API: &API{}, Mapping: &KeyMapping{KeyType: text}, Application: &Application{},
			Subscription: &Subscription{State: ProdOnlyBlocked},
		})
		if v.KeyType != want || (v.Reason == Allowed) != (want == Sandbox) {
			t.Errorf("key type %q became %q with %s", text, v.KeyType, v.Reason)
		}
	}
}

func TestReasonNames(t *testing.T) {
	seen := map[string]bool{}
	for r := Allowed; r <= UnknownState; r++ {
		n := r.String()
		if n == "" || seen[n] || strings.HasPrefix(n, "reason_") {
			t.Errorf("reason %d has name %q", r, n)
		}
		seen[n] = true
	}
	if got := Reason(200).String(); got != "reason_200" {
		t.Errorf("unknown reason is %q", got)
	}
}

func TestValidateAllocatesNothingWhenAllowed(t *testing.T) {
	f := Facts{API: &API{}, Mapping: &KeyMapping{KeyType: Sandbox}, Application: &Application{}, Subscription: &Subscription{State: Unblocked}}
	if n := testing.AllocsPerRun(100, func() { Validate(f) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkValidate(b *testing.B) {
	f := Facts{API: &API{}, Mapping: &KeyMapping{KeyType: Sandbox}, Application: &Application{}, Subscription: &Subscription{State: Unblocked}}
	b.ReportAllocs()
	for b.Loop() {
		Validate(f)
	}
}

// TestValidateApplication: without a key mapping the credential says the type of the key, and all else is as with one.
func TestValidateApplication(t *testing.T) {
	with := func(s State) Facts {
		return Facts{API: &API{ID: 1}, Application: &Application{ID: 7}, Subscription: &Subscription{ID: 9, State: s}}
	}
	for _, c := range []struct {
		name    string
		facts   Facts
		kt      KeyType
		want    Reason
		keyType KeyType
	}{
		{"unblocked", with(Unblocked), "", Allowed, Production},
		{"unblocked, sandbox", with(Unblocked), "sandbox", Allowed, Sandbox},
		{"blocked", with(Blocked), Sandbox, SubscriptionBlocked, Sandbox},
		{"production blocked, production key", with(ProdOnlyBlocked), "production", SubscriptionBlocked, Production},
		{"production blocked, sandbox key", with(ProdOnlyBlocked), Sandbox, Allowed, Sandbox},
		{"production blocked, unknown key type", with(ProdOnlyBlocked), "OTHER", SubscriptionBlocked, "OTHER"},
		{"on hold", with(OnHold), "", SubscriptionInactive, Production},
		{"unknown state", with("FROZEN"), "", UnknownState, Production},
		{"no API", Facts{Application: &Application{}}, "", UnknownAPI, Production},
		{"no application", Facts{API: &API{}}, "", UnknownApplication, Production},
		{"no subscription", Facts{API: &API{ID: 1}, Application: &Application{ID: 7}}, "", NoSubscription, Production},
	} {
		v := ValidateApplication(c.facts, c.kt)
		if v.Reason != c.want || v.KeyType != c.keyType || (v.Detail == "") != (c.want == Allowed) {
			t.Errorf("%s: %+v", c.name, v)
		}
		if c.facts.API == nil || c.facts.Application == nil {
			continue
		}
		c.facts.Mapping = &KeyMapping{KeyType: c.kt}
		if m := Validate(c.facts); m != v {
			t.Errorf("%s: with a mapping it is %+v", c.name, m)
		}
	}
}
