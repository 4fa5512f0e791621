package sync

import (
	"encoding/base64"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

func TestKeyManagerOfConfiguration(t *testing.T) {
	const pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
	for name, c := range map[string]struct {
		conf map[string]any
		want keymanager.KeyManager
	}{
		"JWKS by certificate_value": {
			map[string]any{"issuer": "https://idp", "certificate_type": "JWKS", "certificate_value": "https://idp/jwks", "jwks_endpoint": "https://old"},
			keymanager.KeyManager{Issuer: "https://idp", JWKSURL: "https://idp/jwks", SelfValidate: true},
		},
		"JWKS by the older key": {map[string]any{"jwks_endpoint": "https://old"}, keymanager.KeyManager{JWKSURL: "https://old", SelfValidate: true}},
		"PEM in base64": {
			map[string]any{"certificate_type": "pem", "certificate_value": base64.StdEncoding.EncodeToString([]byte(pem))},
			keymanager.KeyManager{PEM: pem, SelfValidate: true},
		},
		"PEM as it is":       {map[string]any{"certificate_type": "PEM", "certificate_value": pem}, keymanager.KeyManager{PEM: pem[:len(pem)-1], SelfValidate: true}},
		"booleans as text":   {map[string]any{"self_validate_jwt": "FALSE"}, keymanager.KeyManager{}},
		"keys in other case": {map[string]any{"Issuer": "i", "Consumer_Key_Claim": "azp"}, keymanager.KeyManager{Issuer: "i", ConsumerKeyClaim: "azp", SelfValidate: true}},
		"claim mappings": {
			map[string]any{"claim_mappings": []any{map[string]any{"remoteClaim": "r", "localClaim": "l"}, map[string]any{"remoteClaim": "x"}, "odd"}},
			keymanager.KeyManager{ClaimMappings: []keymanager.ClaimMapping{{Remote: "r", Local: "l"}}, SelfValidate: true},
		},
		"claim mappings as text": {
			map[string]any{"claim_mappings": `[{"remoteClaim":"r","localClaim":"l"}]`},
			keymanager.KeyManager{ClaimMappings: []keymanager.ClaimMapping{{Remote: "r", Local: "l"}}, SelfValidate: true},
		},
		"secrets stay behind": {map[string]any{"client_secret": "s3cret", "Password": "x"}, keymanager.KeyManager{SelfValidate: true}},
		"nothing":             {nil, keymanager.KeyManager{SelfValidate: true}},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Name, c.want.Tenant, c.want.Enabled = "KM", superTenant, true
			got := keyManagerRow(controlplane.KeyManager{Name: "KM", Enabled: true, Configuration: c.conf}, "")
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPolicyRow(t *testing.T) {
	got := policyRow(throttle.PolicyAPI, controlplane.Policy{
		ID: 3, Name: "P", TenantDomain: "example.org", QuotaType: "bandwidthVolume", ApplicableLevel: "userLevel",
		DefaultLimit: &controlplane.Limit{QuotaType: "bandwidthVolume", Bytes: 2048, UnitTime: 1, TimeUnit: "min"}, RateLimitCount: -1,
		ConditionGroups: []controlplane.ConditionGroup{{ID: 1, Limit: &controlplane.Limit{Count: 5}, Conditions: []controlplane.Condition{{Type: "Header", Name: "h", Value: "v", Inverted: true}}}},
	}, "")
	want := throttle.Policy{
		Kind: throttle.PolicyAPI, Tenant: "example.org", Name: "P", ID: 3, UserLevel: true,
		Default: throttle.Limit{QuotaType: "bandwidthVolume", Count: 2048, UnitTime: 1, TimeUnit: "min"},
		Groups:  []throttle.ConditionGroup{{ID: 1, Limit: throttle.Limit{Count: 5}, Conditions: []throttle.Condition{{Type: "Header", Name: "h", Value: "v", Invert: true}}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if old := policyRow(throttle.PolicySubscription, controlplane.Policy{Name: "Gold"}, "carbon.super"); old.Default != (throttle.Limit{}) {
		t.Errorf("a policy of 3.2 without a limit has %+v", old.Default)
	}
}

func TestDenyKeysOfListAndEventAreOne(t *testing.T) {
	for name, c := range map[string]struct {
		list  controlplane.Block
		event event.DenyChanged
	}{
		"API":                    {controlplane.Block{API: []string{"/t/example.org/news/1.0.0"}}, event.DenyChanged{Kind: "API", Value: "/t/example.org/news/1.0.0", ID: 4, Base: event.Base{TenantDomain: "example.org"}}},
		"user without domain":    {controlplane.Block{User: []string{"dana@carbon.super"}}, event.DenyChanged{Kind: "USER", Value: "dana", ID: 4, Base: event.Base{TenantDomain: superTenant}}},
		"application's owner":    {controlplane.Block{Application: []string{"dana:App"}}, event.DenyChanged{Kind: "APPLICATION", Value: "dana@carbon.super:App", ID: 4}},
		"subscription":           {controlplane.Block{Subscription: []string{"/x/1:1:dana-App:PRODUCTION"}}, event.DenyChanged{Kind: "SUBSCRIPTION", Value: "/x/1:1:dana-App:PRODUCTION", ID: 9}},
		"address":                {controlplane.Block{IP: []controlplane.IPCondition{{ID: 5, Type: "IP", FixedIP: "10.0.0.1"}}}, event.DenyChanged{Kind: "IP", FixedIP: "10.0.0.1", ID: 5, Base: event.Base{TenantDomain: superTenant}}},
		"range under one number": {controlplane.Block{IP: []controlplane.IPCondition{{ID: 5, Type: "IPRANGE", StartingIP: "10.0.0.1", EndingIP: "10.0.0.9", TenantDomain: superTenant}}}, event.DenyChanged{Kind: "IPRANGE", StartingIP: "10.0.0.1", EndingIP: "10.0.0.9", ID: 5, Base: event.Base{TenantDomain: superTenant}}},
	} {
		t.Run(name, func(t *testing.T) {
			rows := denyRows(c.list)
			if len(rows) != 1 {
				t.Fatalf("%d rows", len(rows))
			}
			e := denyOfEvent(&c.event)
			if !sameDeny(&rows[0], &e) {
				t.Errorf("list %+v and event %+v are two", rows[0], e)
			}
		})
	}
	if rows := denyRows(controlplane.Block{IP: []controlplane.IPCondition{{ID: 1, Type: "IP", Inactive: true}}}); len(rows) != 0 {
		t.Errorf("an inactive condition gives %+v", rows)
	}
}

func TestRevocations(t *testing.T) {
	now := time.Now().UnixMilli()
	rows := revocationRows(controlplane.Revoked{
		Tokens: []controlplane.RevokedToken{{Signature: "jti", ExpiresAt: 7}},
		Mass:   []controlplane.MassRevocation{{ConsumerKey: "ck", Before: 8}, {EntityID: "dana", EntityType: "USER_ID", Before: 9}, {EntityID: "ck2", EntityType: "CLIENT_ID", Before: 10}},
	}, origin{})
	want := []keymanager.Revocation{
		{Kind: keymanager.RevokedToken, Value: "jti", ExpiresAt: 7},
		{Kind: keymanager.RevokedConsumerKey, Value: "ck", Before: 8},
		{Kind: keymanager.RevokedSubject, Value: "dana", Before: 9},
		{Kind: keymanager.RevokedConsumerKey, Value: "ck2", Before: 10},
	}
	if d := cmp.Diff(want, rows); d != "" {
		t.Error(d)
	}
	for name, c := range map[string]struct {
		event event.Revoked
		want  int64
	}{
		"expiry":                 {event.Revoked{Token: "t", ExpiresAt: 5}, 5},
		"ttl from now":           {event.Revoked{Token: "t", TTL: 60}, now + 60_000},
		"ttl from a later event": {event.Revoked{Token: "t", TTL: 60, Base: base(now + 1000)}, now + 61_000},
		"neither":                {event.Revoked{Token: "t"}, now + 3600_000},
	} {
		t.Run(name, func(t *testing.T) {
			if got := revocationOf(&c.event, now, origin{}).ExpiresAt; got != c.want {
				t.Errorf("expires at %d, want %d", got, c.want)
			}
		})
	}
}

func TestAPIRow(t *testing.T) {
	got := apiRow(controlplane.API{UUID: "u", APIID: 4, Name: "News", Version: "1.0.0", Context: "/t/example.org/news/1.0.0", Provider: "bob-AT-example.org"})
	want := subscription.API{UUID: "u", ID: 4, Name: "News", Version: "1.0.0", Context: "/t/example.org/news/1.0.0", Provider: "bob@example.org", Tenant: "example.org"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
