package integration_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/harness"
)

// eventCase is a sample of samples/events in a world in which it makes a difference. What it makes of the state stands
// in testdata/samples/<name>.diff.
type eventCase struct {
	sample string
	// in names the world, where it is not the usual one; it is part of the name of the case.
	in string
	// earlier are samples that were published before.
	earlier []string
	// before is done at the API Manager before the gateway starts; meanwhile just before the event, which tells of it.
	before, meanwhile []change
	gatewayKeys       string
	// unchanged says why the sample must change nothing; then there is no file.
	unchanged string
	// outcome is what the gateway counts the event as; "" is applied.
	outcome string
	// reads are lists of the API Manager that the event makes the gateway read again, spares those that it must not.
	reads, spares []string
	probes        []probe
	// ago is how long before now the base time of the sample is.
	ago time.Duration
	// also looks at what else the event did.
	also func(t *testing.T, s *stage)
}

func (c eventCase) name() string {
	if c.in == "" {
		return c.sample
	}
	return c.sample + " " + strings.ReplaceAll(c.in, " ", "-")
}

// Worlds.

func api(edit func(*emulator.API)) change {
	return func(s manager) error { return noResult(s.UpdateAPI(weatherUUID, edit)) }
}

// redeployed is a new revision on the environments.
func redeployed(environments ...string) change {
	return func(s manager) error { return noResult(s.DeployAPI(weatherUUID, environments...)) }
}

func undeployed(environments ...string) change {
	return func(s manager) error { return s.UndeployAPI(weatherUUID, environments...) }
}

func lifecycle(status string) change {
	return func(s manager) error { return s.SetLifecycle(weatherUUID, status) }
}

func application(edit func(*emulator.Application)) change {
	return func(s manager) error { return noResult(s.UpdateApplication(12, edit)) }
}

func noApplication(s manager) error { return s.DeleteApplication(12) }

func newApplication(s manager) error {
	return noResult(s.CreateApplication(emulator.Application{
		UUID: mobileUUID, ID: 12, Name: "MobileApp", SubName: "dana", Policy: "50PerMin", Attributes: map[string]string{"team": "blue"},
	}))
}

func subscribed(state, plan string) change {
	return func(s manager) error { return noResult(s.UpdateSubscription(subscriptionID, state, plan)) }
}

func noSubscription(s manager) error { return s.Unsubscribe(subscriptionID) }

func noSubscriptions(s manager) error {
	if err := s.Unsubscribe(904); err != nil {
		return err
	}
	return s.Unsubscribe(subscriptionID)
}

func newSubscription(state string) change {
	return func(s manager) error {
		return noResult(s.Subscribe(emulator.Subscription{
			SubscriptionUUID: "e1b6b8a2-5d0a-4f4c-8d37-2c93d3a40903", SubscriptionID: subscriptionID, APIUUID: weatherUUID, AppID: 12,
			PolicyID: "Gold", SubscriptionState: state,
		}))
	}
}

func policy(p emulator.Policy) change {
	return func(s manager) error { return noResult(s.PutPolicy(p)) }
}

func noPolicy(kind emulator.PolicyKind, name string) change {
	return func(s manager) error { return s.DeletePolicy(kind, "", name) }
}

// tenKPerMin is the API policy of the samples, with the condition groups that the event names.
func tenKPerMin(groups ...int64) change {
	p := emulator.Policy{
		Kind: emulator.APIPolicy, ID: 33, Name: "10KPerMin",
		Limit: emulator.Limit{QuotaType: "bandwidthVolume", TimeUnit: "min", UnitTime: 1, Count: 10, DataUnit: "MB"},
	}
	name := "x-client"
	for _, id := range groups {
		p.ConditionGroups = append(p.ConditionGroups, emulator.ConditionGroup{
			ID: id, Limit: perMinute(10), Conditions: []emulator.Condition{{Type: "HEADER", Name: &name, Value: "^mobile-.*"}},
		})
	}
	return policy(p)
}

func gold(p emulator.Policy) change {
	p.Kind, p.ID, p.Name = emulator.SubscriptionPolicy, 31, "Gold"
	return policy(p)
}

// recordedGold is the business plan as the event tells of it.
var recordedGold = gold(emulator.Policy{
	Limit: perMinute(5000), RateLimitCount: 20, RateLimitTimeUnit: "sec", GraphQLMaxDepth: 8, GraphQLMaxComplexity: 120,
})

func scopeOf(roles ...string) change {
	return func(s manager) error {
		s.PutScope(emulator.Scope{Name: "weather:read", DisplayName: "Read weather", Roles: roles})
		return nil
	}
}

func template(text string) change {
	return func(s manager) error { return noResult(s.SetCustomPolicy(text, 0, time.Minute)) }
}

func noTemplate(text string) change {
	return func(s manager) error { return s.RemoveCustomPolicy(text) }
}

func deny(d emulator.DenyCondition) change {
	return func(s manager) error { return noResult(s.Deny(d)) }
}

func allow(id int64) change { return func(s manager) error { return s.Allow(id) } }

func denied(d emulator.DenyCondition) []change { return []change{deny(d)} }

var (
	denyAPI          = emulator.DenyCondition{ID: 1, Type: emulator.DenyAPI, Value: "/weather/2.1.0"}
	denyApplication  = emulator.DenyCondition{ID: 2, Type: emulator.DenyApplication, Value: "dana:MobileApp"}
	denyUser         = emulator.DenyCondition{ID: 3, Type: emulator.DenyUser, Value: "dana@carbon.super"}
	denyIP           = emulator.DenyCondition{ID: 4, Type: emulator.DenyIP, FixedIP: "192.168.1.10"}
	denyOtherIPs     = emulator.DenyCondition{ID: 5, Type: emulator.DenyIP, FixedIP: "192.168.1.10", Invert: true}
	denyRange        = emulator.DenyCondition{ID: 6, Type: emulator.DenyIPRange, StartingIP: "10.0.0.1", EndingIP: "10.0.0.200"}
	denySubscription = emulator.DenyCondition{ID: 7, Type: emulator.DenySubscription, Value: "/weather/2.1.0:2.1.0:dana-MobileApp:PRODUCTION"}
	denyTenantAPI    = emulator.DenyCondition{ID: 8, Type: emulator.DenyAPI, Value: "/t/example.org/news/1.0.0", Tenant: "example.org"}
	denyIPv6         = emulator.DenyCondition{ID: 9, Type: emulator.DenyIPRange, StartingIP: "2001:db8::10", EndingIP: "2001:db8::ff"}
)

// recordedKeyManager is the key manager of the samples; its keys are those of the third-party issuer of this world.
func recordedKeyManager(name, tenant string, disabled bool) change {
	return func(s manager) error {
		return noResult(s.PutKeyManager(emulator.KeyManager{
			UUID: "6a1d0a0e-5a0e-4a9f-9a0e-6f0f7f6d0e11", Name: name, Type: "WSO2-IS", Tenant: tenant, Disabled: disabled,
			Configuration: map[string]any{
				"issuer": recordedIssuer, "certificate_type": "JWKS", "certificate_value": jwksOf(s.emu), "consumer_key_claim": "azp",
				"scopes_claim": "scope", "self_validate_jwt": true, "validation_enable": true,
				"claim_mappings":      []map[string]any{{"remoteClaim": "preferred_username", "localClaim": "username"}},
				"token_format_string": `[{"enable":true,"type":"JWT","value":{"body":{"iss":"` + recordedIssuer + `"}}}]`,
			},
		}))
	}
}

// mappedFor gives the application a key of a key manager, which need not be known yet.
func mappedFor(keyManager string) change {
	return func(s manager) error {
		return noResult(s.AddKeyMapping(emulator.KeyMapping{ApplicationID: 12, ConsumerKey: mobileKey, KeyType: "PRODUCTION", KeyManager: keyManager}))
	}
}

func tenantAPI(s manager) error {
	s.AddTenant("example.org", "", "")
	return noResult(s.CreateAPI(emulator.API{
		Name: "News", Version: "1.0.0", Context: "/t/example.org/news/1.0.0", Organization: "example.org", Environments: []string{"Default"},
		Endpoint: "http://127.0.0.1:1", // no request of the test gets that far
	}))
}

func product(s manager) error {
	return noResult(s.CreateAPI(emulator.API{
		UUID: "0c5a3c58-1b77-4a27-8c56-7e9f0ef1aa77", APIID: 77, Name: "CityBundle", Version: "1.0.0", Context: "/citybundle/1.0.0", APIType: "APIProduct",
		URLMappings: []emulator.URLMapping{{AuthScheme: "Any", ThrottlingPolicy: "Unlimited", HTTPMethod: "GET", URLPattern: "/cities/{id}"}},
		Endpoint:    "http://127.0.0.1:1", Environments: []string{"Default"},
	}))
}

// Probes that many samples share.

func productionProbe(before, after string) probe {
	return probe{as: "production", before: before, after: after}
}

func keyManagerProbe(before, after string) []probe {
	return []probe{{as: "idp", before: before, after: after}, productionProbe("200", "200")}
}

const (
	blocked  = "403/900805"
	badToken = "401/900901"
	noPlan   = "403/900908"
)

const labels32 = `gateway_labels = ["Production and Sandbox"]`

var eventCases = []eventCase{
	// --- asyncWebhooksData: see TestTopicsThatNobodyListensTo

	// --- cacheInvalidation
	{sample: "cacheInvalidation-key", unchanged: "a cached validation is checked for revocations with each request", probes: []probe{productionProbe("200", "200")}},
	{sample: "cacheInvalidation-map-key", unchanged: "as cacheInvalidation-key"},
	{sample: "cacheInvalidation-resource", unchanged: "no decision about a resource is cached: routes are prepared when definitions arrive"},
	{sample: "cacheInvalidation-resource-organization", unchanged: "as cacheInvalidation-resource"},
	{sample: "cacheInvalidation-username", unchanged: "no result of basic authentication is cached"},
	{sample: "cacheInvalidation-username-organization", unchanged: "as cacheInvalidation-username"},

	// --- keyManager
	{
		sample: "keyManager-add-4.0", before: []change{mappedFor("ExampleIdP")}, meanwhile: []change{recordedKeyManager("ExampleIdP", "", false)},
		reads: []string{"keymanagers"}, probes: keyManagerProbe(badToken, "200"),
	},
	{
		sample: "keyManager-add-4.1", before: []change{mappedFor("ExampleIdP")}, meanwhile: []change{recordedKeyManager("ExampleIdP", "", false)},
		reads: []string{"keymanagers"}, probes: keyManagerProbe(badToken, "200"),
	},
	{
		sample: "keyManager-map-add", before: []change{mappedFor("ExampleIdP")}, meanwhile: []change{recordedKeyManager("ExampleIdP", "", false)},
		reads: []string{"keymanagers"}, probes: keyManagerProbe(badToken, "200"),
	},
	{
		sample: "keyManager-add-global", before: []change{mappedFor("GlobalIdP")}, meanwhile: []change{recordedKeyManager("GlobalIdP", "WSO2-ALL-TENANTS", false)},
		reads: []string{"keymanagers"}, probes: keyManagerProbe(badToken, "200"),
	},
	{
		sample: "keyManager-delete-4.0", before: []change{recordedKeyManager("ExampleIdP", "", false), mappedFor("ExampleIdP")},
		meanwhile: []change{func(s manager) error { return s.DeleteKeyManager("", "ExampleIdP") }},
		reads:     []string{"keymanagers"}, probes: keyManagerProbe("200", badToken),
	},
	{
		sample: "keyManager-delete-4.1", before: []change{recordedKeyManager("ExampleIdP", "", false), mappedFor("ExampleIdP")},
		meanwhile: []change{func(s manager) error { return s.DeleteKeyManager("", "ExampleIdP") }},
		reads:     []string{"keymanagers"}, probes: keyManagerProbe("200", badToken),
	},
	{
		sample: "keyManager-update-disabled-4.1", before: []change{recordedKeyManager("ExampleIdP", "", false), mappedFor("ExampleIdP")},
		meanwhile: []change{recordedKeyManager("ExampleIdP", "", true)},
		reads:     []string{"keymanagers"}, probes: keyManagerProbe("200", badToken),
	},

	// --- notification: APIs
	{
		sample: "notification-api-create", in: "not deployed here", before: []change{undeployed("Default")},
		unchanged: "metadata is kept of deployed APIs only", probes: []probe{productionProbe("404", "404")},
	},
	{sample: "notification-api-create", in: "deployed", meanwhile: []change{lifecycle("CREATED")}, spares: []string{"runtime-artifacts"}},
	{
		sample: "notification-api-update", before: []change{api(func(a *emulator.API) { a.Name, a.Provider = "OldWeather", "root" })},
		meanwhile: []change{api(func(a *emulator.API) { a.Name, a.Provider = "WeatherAPI", "admin" })},
		spares:    []string{"runtime-artifacts"}, probes: []probe{productionProbe("200", "200")},
	},
	{
		sample: "notification-api-update-default-version", meanwhile: []change{api(func(a *emulator.API) { a.IsDefaultVersion = true })},
		reads: []string{"apis"}, probes: []probe{{as: "production", path: "/weather/cities/7", before: "404", after: "200"}, productionProbe("200", "200")},
	},
	{
		sample: "notification-api-lifecycle-change-published", before: []change{lifecycle("BLOCKED")}, meanwhile: []change{lifecycle("PUBLISHED")},
		probes: []probe{productionProbe("503/700700", "200")},
	},
	{
		sample: "notification-api-lifecycle-change-blocked", meanwhile: []change{lifecycle("BLOCKED")},
		probes: []probe{productionProbe("200", "503/700700"), {before: "401/900902", after: "503/700700"}},
	},
	{sample: "notification-api-lifecycle-change-retired", meanwhile: []change{lifecycle("RETIRED")}, probes: []probe{productionProbe("200", "404")}},
	{
		sample: "notification-api-delete", before: []change{noSubscriptions},
		meanwhile: []change{func(s manager) error { return s.DeleteAPI(weatherUUID) }}, probes: []probe{productionProbe(noPlan, "404")},
	},
	{
		sample: "notification-api-update-log-level", unchanged: "logging per API is not offered; it is no creation or deletion", outcome: "other",
		probes: []probe{productionProbe("200", "200")},
	},

	// --- notification: deployments
	{
		sample: "notification-deploy-api-in-gateway", before: []change{undeployed("Default")}, meanwhile: []change{redeployed("Default", "edge-eu")},
		reads: []string{"runtime-artifacts", "apis"}, probes: []probe{productionProbe("404", "200")},
	},
	{
		sample: "notification-deploy-api-in-gateway", in: "of another label", gatewayKeys: `gateway_labels = ["edge-us"]`,
		unchanged: "none of the event's labels is this gateway's", outcome: "other", spares: []string{"runtime-artifacts", "apis"},
		before: []change{undeployed("Default")}, meanwhile: []change{redeployed("Default", "edge-eu")}, probes: []probe{productionProbe("404", "404")},
	},
	{
		sample: "notification-deploy-api-in-gateway-3.2", gatewayKeys: labels32, before: []change{undeployed("Default")},
		meanwhile: []change{redeployed("Production and Sandbox")}, reads: []string{"runtime-artifacts", "apis"}, probes: []probe{productionProbe("404", "200")},
	},
	{
		sample: "notification-deploy-api-product-in-gateway", meanwhile: []change{product}, reads: []string{"runtime-artifacts"},
		unchanged: "API products are not offered: the artifact is read and refused",
		probes:    []probe{{as: "production", path: "/citybundle/1.0.0/cities/7", before: "404", after: "404"}},
		also: func(t *testing.T, s *stage) {
			if n := s.gateway.count("apis_refused"); n != 1 {
				t.Errorf("%d APIs are refused, want the product", n)
			}
		},
	},
	{
		sample: "notification-remove-api-from-gateway", unchanged: "the only label of the event is not this gateway's", outcome: "other",
		before: []change{redeployed("edge-eu")}, meanwhile: []change{undeployed("edge-eu")}, probes: []probe{productionProbe("200", "200")},
	},
	{
		sample: "notification-remove-api-from-gateway", in: "of its label", gatewayKeys: `gateway_labels = ["edge-eu"]`,
		before: []change{redeployed("edge-eu")}, meanwhile: []change{undeployed("edge-eu")}, probes: []probe{productionProbe("200", "404")},
	},
	{
		sample: "notification-remove-api-from-gateway", in: "of one of its labels", gatewayKeys: `gateway_labels = ["edge-eu", "Default"]`,
		before: []change{redeployed("edge-eu")}, meanwhile: []change{undeployed("edge-eu")}, probes: []probe{productionProbe("200", "200")},
	},
	{
		sample: "notification-remove-api-from-gateway-deleted", before: []change{noSubscriptions},
		meanwhile: []change{func(s manager) error { return s.DeleteAPI(weatherUUID) }}, probes: []probe{productionProbe(noPlan, "404")},
	},
	{
		sample: "notification-remove-api-from-gateway-3.2", gatewayKeys: labels32, before: []change{redeployed("Production and Sandbox")},
		meanwhile: []change{undeployed("Production and Sandbox")}, probes: []probe{productionProbe("200", "404")},
	},

	// --- notification: applications and their keys
	{
		sample: "notification-application-create", before: []change{noApplication}, meanwhile: []change{newApplication},
		probes: []probe{productionProbe(noPlan, noPlan)},
	},
	{
		sample: "notification-application-update", meanwhile: []change{application(func(a *emulator.Application) { a.Name, a.Policy = "MobileApp2", "Unlimited" })},
		probes: []probe{productionProbe("200", "200")},
	},
	{
		sample: "notification-application-update-3.2", before: []change{application(func(a *emulator.Application) { a.Name, a.Policy = "OldApp", "Unlimited" })},
		meanwhile: []change{application(func(a *emulator.Application) { a.Name, a.Policy = "MobileApp", "50PerMin" })},
	},
	{
		sample: "notification-application-delete", meanwhile: []change{noApplication},
		probes: []probe{productionProbe("200", noPlan), {as: "sandbox", before: "200", after: noPlan}, {as: "kiosk", before: "200", after: "200"}},
	},
	{
		sample:    "notification-application-registration-create",
		before:    []change{func(s manager) error { return s.RemoveKeyMapping(mobileKey, residentManager) }},
		meanwhile: []change{mappedFor(residentManager)}, probes: []probe{productionProbe(noPlan, "200")},
	},
	{
		sample:    "notification-remove-application-keymapping",
		meanwhile: []change{func(s manager) error { return s.RemoveKeyMapping(mobileKey, residentManager) }},
		probes:    []probe{productionProbe("200", noPlan), {as: "sandbox", before: "200", after: "200"}},
	},
	{sample: "notification-application-certificate", unchanged: "client certificates of applications are not used", outcome: "other"},

	// --- notification: subscriptions
	{
		sample: "notification-subscriptions-create", before: []change{noSubscription}, meanwhile: []change{newSubscription("UNBLOCKED")},
		probes: []probe{productionProbe(noPlan, "200")},
	},
	{
		sample: "notification-map-subscriptions-create", before: []change{noSubscription}, meanwhile: []change{newSubscription("UNBLOCKED")},
		probes: []probe{productionProbe(noPlan, "200")},
	},
	{
		sample: "notification-subscriptions-create-on-hold", before: []change{noSubscription}, meanwhile: []change{newSubscription("ON_HOLD")},
		probes: []probe{productionProbe(noPlan, "401/900909")},
	},
	{
		sample: "notification-subscriptions-update-blocked", meanwhile: []change{subscribed("BLOCKED", "")},
		probes: []probe{productionProbe("200", "401/900907"), {as: "sandbox", before: "200", after: "401/900907"}, {as: "kiosk", before: "200", after: "200"}},
	},
	{
		sample: "notification-subscriptions-update-prod-blocked", meanwhile: []change{subscribed("PROD_ONLY_BLOCKED", "")},
		probes: []probe{productionProbe("200", "401/900907"), {as: "sandbox", before: "200", after: "200"}},
	},
	{sample: "notification-subscriptions-update-tier", meanwhile: []change{subscribed("UNBLOCKED", "Silver")}, probes: []probe{productionProbe("200", "200")}},
	{
		sample: "notification-subscriptions-update-4.4", before: []change{subscribed("BLOCKED", "Silver")}, meanwhile: []change{subscribed("UNBLOCKED", "Gold")},
		probes: []probe{productionProbe("401/900907", "200")},
	},
	{
		sample: "notification-subscriptions-update-stale", earlier: []string{"notification-subscriptions-create"},
		before: []change{noSubscription}, meanwhile: []change{newSubscription("UNBLOCKED")}, outcome: "stale",
		unchanged: "it is older than the event that came before it", probes: []probe{productionProbe("200", "200")},
	},
	{
		sample: "notification-subscriptions-delete", meanwhile: []change{noSubscription},
		probes: []probe{productionProbe("200", noPlan), {as: "kiosk", before: "200", after: "200"}},
	},

	// --- notification: policies and key templates
	{
		sample: "notification-policy-create-subscription", before: []change{noPolicy(emulator.SubscriptionPolicy, "Gold")}, meanwhile: []change{recordedGold},
		reads: []string{"subscription-policies"},
	},
	{sample: "notification-policy-update-subscription", meanwhile: []change{recordedGold}, reads: []string{"subscription-policies"}},
	{sample: "notification-policy-delete-subscription", meanwhile: []change{noPolicy(emulator.SubscriptionPolicy, "Gold")}},
	{
		sample: "notification-policy-create-application", before: []change{noPolicy(emulator.ApplicationPolicy, "50PerMin")},
		meanwhile: []change{policy(emulator.Policy{Kind: emulator.ApplicationPolicy, ID: 32, Name: "50PerMin", Limit: perMinute(50)})},
		reads:     []string{"application-policies"},
	},
	{
		sample:    "notification-policy-update-application",
		meanwhile: []change{policy(emulator.Policy{Kind: emulator.ApplicationPolicy, ID: 32, Name: "50PerMin", Limit: perMinute(60)})},
		reads:     []string{"application-policies"},
	},
	{sample: "notification-policy-delete-application", meanwhile: []change{noPolicy(emulator.ApplicationPolicy, "50PerMin")}},
	{
		sample: "notification-policy-create-api", before: []change{noPolicy(emulator.APIPolicy, "10KPerMin")}, meanwhile: []change{tenKPerMin(4)},
		reads: []string{"api-policies"},
	},
	{sample: "notification-policy-update-api", before: []change{tenKPerMin(2, 3)}, meanwhile: []change{tenKPerMin(3, 4, 5)}, reads: []string{"api-policies"}},
	{sample: "notification-policy-delete-api", meanwhile: []change{noPolicy(emulator.APIPolicy, "10KPerMin")}},
	{sample: "notification-custom-policy-add", meanwhile: []change{template(userTemplate)}, reads: []string{"keyTemplates"}},
	{
		sample: "notification-custom-policy-delete", before: []change{template(userTemplate)}, meanwhile: []change{noTemplate(userTemplate)},
		reads: []string{"keyTemplates"},
	},
	{
		sample: "notification-custom-policy-update", before: []change{template(userTemplate)}, reads: []string{"keyTemplates"},
		meanwhile: []change{func(s manager) error { return s.ReplaceCustomPolicy(userTemplate, "$appId:$clientIp") }},
	},

	// --- notification: scopes
	{sample: "notification-scope-create", meanwhile: []change{scopeOf("internal/subscriber", "analyst")}},
	{
		sample: "notification-scope-update", before: []change{scopeOf("nobody")}, meanwhile: []change{scopeOf("internal/subscriber", "analyst")},
		unchanged: "the roles of a scope are not shown, and its row is there already",
	},
	{
		sample: "notification-scope-delete", before: []change{scopeOf("internal/subscriber", "analyst")},
		meanwhile: []change{func(s manager) error { return s.DeleteScope("", "weather:read") }},
	},

	// --- API keys that are no JWTs: the same key by a notification, by the stream, and by both
	{sample: "notification-api-key"},
	{sample: "opaqueAPIKeyInfo-create"},
	{
		sample: "opaqueAPIKeyInfo-create", in: "after the notification", earlier: []string{"notification-api-key"}, outcome: "stale",
		unchanged: "the notification is newer, and says all that this does but the salt",
	},
	{sample: "notification-api-key", in: "after the stream", earlier: []string{"opaqueAPIKeyInfo-create"}},

	// --- notification: what a gateway has nothing to do for
	{sample: "notification-deploy-policy-mapping-in-gateway", unchanged: "gateway-wide policies are not offered", outcome: "other"},
	{sample: "notification-remove-policy-mapping-from-gateway", unchanged: "gateway-wide policies are not offered", outcome: "other"},
	{sample: "notification-endpoint-certificate-add", unchanged: "backends are trusted by [backend] ca_file, not by the API Manager's store", outcome: "other"},
	{sample: "notification-endpoint-certificate-remove", unchanged: "as endpoint-certificate-add", outcome: "other"},
	{sample: "notification-ga-config-update", unchanged: "Google Analytics is not offered", outcome: "other"},
	{sample: "notification-health-check", unchanged: "it says nothing", outcome: "other"},
	{sample: "notification-llm-provider-create", unchanged: "LLM providers are not offered", outcome: "other"},
	{sample: "notification-llm-provider-update", unchanged: "LLM providers are not offered", outcome: "other"},
	{sample: "notification-llm-provider-delete", unchanged: "LLM providers are not offered", outcome: "other"},
	{sample: "notification-tenant-create", unchanged: "tenants are named by [gateway] tenants", outcome: "other"},
	{sample: "notification-unknown-type", unchanged: "the type is not known", outcome: "unknown"},

	// --- throttleData: deny policies
	{
		sample: "throttleData-block-api-on", meanwhile: denied(denyAPI),
		probes: []probe{productionProbe("200", blocked), {before: "401/900902", after: blocked}, {as: "kiosk", before: "200", after: blocked}},
	},
	{sample: "throttleData-map-block-api", meanwhile: denied(denyAPI), probes: []probe{productionProbe("200", blocked)}},
	{sample: "throttleData-block-api-off", before: denied(denyAPI), meanwhile: []change{allow(1)}, probes: []probe{productionProbe(blocked, "200")}},
	{
		sample: "throttleData-block-api-tenant-on", gatewayKeys: `tenants = ["carbon.super", "example.org"]`, before: []change{tenantAPI}, meanwhile: denied(denyTenantAPI),
		probes: []probe{{path: "/t/example.org/news/1.0.0/today", before: "401/900902", after: blocked}, productionProbe("200", "200")},
	},
	{
		sample: "throttleData-block-application-on", meanwhile: denied(denyApplication),
		probes: []probe{productionProbe("200", blocked), {as: "sandbox", before: "200", after: blocked}, {as: "kiosk", before: "200", after: "200"}},
	},
	{sample: "throttleData-block-application-off", before: denied(denyApplication), meanwhile: []change{allow(2)}, probes: []probe{productionProbe(blocked, "200")}},
	{sample: "throttleData-block-user-on", meanwhile: denied(denyUser), probes: []probe{productionProbe("200", blocked), {as: "kiosk", before: "200", after: "200"}}},
	{sample: "throttleData-block-user-off", before: denied(denyUser), meanwhile: []change{allow(3)}, probes: []probe{productionProbe(blocked, "200")}},
	{sample: "throttleData-block-ip-on", meanwhile: denied(denyIP), probes: []probe{
		{as: "production", ip: "192.168.1.10", before: "200", after: blocked}, {as: "production", ip: "192.168.1.11", before: "200", after: "200"},
	}},
	{sample: "throttleData-map-block-ip", meanwhile: denied(denyIP), probes: []probe{
		{as: "production", ip: "192.168.1.10", before: "200", after: blocked}, {as: "production", ip: "192.168.1.11", before: "200", after: "200"},
	}},
	{
		sample: "throttleData-block-ip-off", before: denied(denyIP), meanwhile: []change{allow(4)},
		probes: []probe{{as: "production", ip: "192.168.1.10", before: blocked, after: "200"}},
	},
	{
		sample: "throttleData-block-ip-off", in: "under another value", meanwhile: []change{allow(4)}, // it is removed by its number
		before: denied(emulator.DenyCondition{ID: 4, Type: emulator.DenyIP, FixedIP: "192.168.1.99"}),
		probes: []probe{{as: "production", ip: "192.168.1.99", before: blocked, after: "200"}},
	},
	{sample: "throttleData-block-ip-invert-on", meanwhile: denied(denyOtherIPs), probes: []probe{
		{as: "production", ip: "192.168.1.10", before: "200", after: "200"}, {as: "production", ip: "192.168.1.11", before: "200", after: blocked},
	}},
	{sample: "throttleData-block-iprange-on", meanwhile: denied(denyRange), probes: []probe{
		{as: "production", ip: "10.0.0.1", before: "200", after: blocked},
		{as: "production", ip: "10.0.0.77", before: "200", after: blocked},
		{as: "production", ip: "10.0.0.200", before: "200", after: blocked},
		{as: "production", ip: "10.0.0.201", before: "200", after: "200"},
		{as: "production", ip: "2001:db8::a00:4d", before: "200", after: "200"},
	}},
	{
		sample: "throttleData-block-iprange-off", before: denied(denyRange), meanwhile: []change{allow(6)},
		probes: []probe{{as: "production", ip: "10.0.0.77", before: blocked, after: "200"}},
	},
	{sample: "throttleData-block-iprange-ipv6-on", meanwhile: denied(denyIPv6), probes: []probe{
		{as: "production", ip: "2001:db8::10", before: "200", after: blocked},
		{as: "production", ip: "2001:db8::f", before: "200", after: "200"},
		{as: "production", ip: "10.0.0.77", before: "200", after: "200"},
	}},
	{
		sample: "throttleData-block-subscription-on", meanwhile: denied(denySubscription),
		probes: []probe{productionProbe("200", blocked), {as: "sandbox", before: "200", after: "200"}, {as: "kiosk", before: "200", after: "200"}},
	},
	{sample: "throttleData-block-subscription-off", before: denied(denySubscription), meanwhile: []change{allow(7)}, probes: []probe{productionProbe(blocked, "200")}},
	{sample: "throttleData-malformed-unescaped", outcome: "malformed", reads: []string{"block"}, // so the list says what the message could not
		meanwhile: denied(emulator.DenyCondition{ID: 11, Type: emulator.DenyApplication, Value: `dana:My "Best" App`}), probes: []probe{productionProbe("200", "200")}},

	// --- throttleData: decisions
	{sample: "throttleData-decision-subscription", probes: []probe{productionProbe("200", "429/900804"), {as: "kiosk", before: "200", after: "200"}}},
	{sample: "throttleData-map-decision", probes: []probe{productionProbe("200", "429/900804"), {as: "kiosk", before: "200", after: "200"}}},
	{sample: "throttleData-decision-subscription-synapse-key", probes: []probe{productionProbe("200", "200")}},
	{sample: "throttleData-decision-application", probes: []probe{productionProbe("200", "429/900803"), {as: "kiosk", before: "200", after: "200"}}},
	{
		sample: "throttleData-decision-application-released", earlier: []string{"throttleData-decision-application"},
		probes: []probe{productionProbe("429/900803", "200")},
	},
	{
		sample: "throttleData-decision-custom", before: []change{template(userTemplate)},
		probes: []probe{productionProbe("200", "429/900806"), {as: "kiosk", before: "200", after: "200"}},
	},
	{sample: "throttleData-decision-custom", in: "without its template", probes: []probe{productionProbe("200", "200")}},
	{sample: "throttleData-decision-expired", unchanged: "its window has ended", probes: []probe{productionProbe("200", "200")}},
	{sample: "throttleData-decision-missing-expiry", unchanged: "without the end of its window it is no decision", probes: []probe{productionProbe("200", "200")}},
	{
		sample: "throttleData-decision-api-default",
		before: []change{api(func(a *emulator.API) { p := "10KPerMin"; a.Policy = &p }), redeployed("Default")},
		probes: []probe{productionProbe("200", "429/900800"), {as: "kiosk", before: "200", after: "429/900800"}},
	},
	{sample: "throttleData-decision-resource-condition", probes: resourceConditionProbes},
	{sample: "throttleData-map-decision-condition", probes: resourceConditionProbes},
	{
		sample: "throttleData-decision-resource-condition-released", earlier: []string{"throttleData-decision-resource-condition"},
		probes: []probe{{as: "production", ip: "192.168.1.10", header: "X-Client=mobile-7", before: "429/900802", after: "200"}},
	},
	{sample: "throttleData-decision-resource-default-with-groups", probes: []probe{ // refused is who matches none of the three groups
		{as: "production", plan: "trial", ip: "192.168.1.10", before: "200", after: "429/900802"},
		{as: "production", plan: "trial", ip: "10.1.2.3", before: "200", after: "200"},
		{as: "production", plan: "trial", ip: "192.168.1.10", path: weatherCity + "?tier=free", before: "200", after: "200"},
		{as: "production", plan: "gold", ip: "192.168.1.10", before: "200", after: "200"},
	}},

	// --- throttleData: key templates
	{sample: "throttleData-keytemplate-add", meanwhile: []change{template(userTemplate)}, reads: []string{"keyTemplates"}},
	{sample: "throttleData-map-keytemplate", meanwhile: []change{template(userTemplate)}, reads: []string{"keyTemplates"}},
	{
		sample: "throttleData-keytemplate-remove", before: []change{template(userTemplate)}, meanwhile: []change{noTemplate(userTemplate)},
		reads: []string{"keyTemplates"},
	},

	// --- tokenRevocation
	{sample: "tokenRevocation-jwt", probes: []probe{productionProbe("200", badToken), {as: "other production", before: "200", after: "200"}}},
	{sample: "tokenRevocation-map-jwt", probes: []probe{productionProbe("200", badToken), {as: "other production", before: "200", after: "200"}}},
	{sample: "tokenRevocation-2-field-legacy", probes: []probe{productionProbe("200", badToken), {as: "other production", before: "200", after: "200"}}},
	{sample: "tokenRevocation-api-key", probes: []probe{productionProbe("200", "200")}},
	{sample: "tokenRevocation-opaque", probes: []probe{productionProbe("200", "200")}},
	{sample: "tokenRevocation-consumer-app", ago: 20 * time.Second, probes: massRevocationProbes},
	{sample: "tokenRevocation-subject-entity-client", ago: 20 * time.Second, probes: massRevocationProbes},
	{sample: "tokenRevocation-subject-entity-user", ago: 20 * time.Second, probes: massRevocationProbes},
}

var resourceConditionProbes = []probe{
	{as: "production", ip: "192.168.1.10", header: "X-Client=mobile-7", before: "200", after: "429/900802"},
	{as: "production", ip: "192.168.1.11", header: "X-Client=mobile-7", before: "200", after: "200"},
	{as: "production", ip: "192.168.1.10", header: "X-Client=desktop", before: "200", after: "200"},
	{as: "production", ip: "192.168.1.10", before: "200", after: "200"},
}

var massRevocationProbes = []probe{
	productionProbe("200", badToken),
	{as: "other production", before: "200", after: badToken},
	{as: "later production", before: "200", after: "200"},
	{as: "kiosk", before: "200", after: "200"},
}

// unrouted are the samples of topics that the gateway does not listen to: it serves no WebSub APIs.
var unrouted = []string{"asyncWebhooksData-subscribe", "asyncWebhooksData-throttled", "asyncWebhooksData-unsubscribe"}

func jwksOf(e *emulator.Emulator) string {
	return e.IssuerConfiguration()["certificate_value"].(string)
}

// TestEventSamples publishes every recorded event on a real broker, with the properties that the sample names and its
// times moved to now, and compares what it makes of the state.
func TestEventSamples(t *testing.T) {
	covered := slices.Clone(unrouted)
	for _, c := range eventCases {
		covered = append(covered, c.sample)
	}
	slices.Sort(covered)
	if got, want := slices.Compact(covered), sampleNames(t, "events"); !slices.Equal(got, want) {
		t.Errorf("samples without a case, or cases without a sample: %d cases, %d samples", len(got), len(want))
	}
	rabbit := harness.Shared(t)
	vhosts := make(chan string, 2) // worlds must not hear each other
	vhosts <- "carbon"
	vhosts <- "/"
	for i, c := range eventCases {
		forms := []string{"text"}
		if strings.Contains(c.sample, "-map-") {
			forms = []string{"amqp-map", "jms-map"}
		}
		for _, form := range forms {
			name := c.name()
			if len(forms) > 1 {
				name += " " + form
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				vhost := <-vhosts
				t.Cleanup(func() { vhosts <- vhost }) // after those of the world
				// Every second one comes as from Andes, under the lower-cased name of its topic.
				c.run(t, rabbit, vhost, form == "jms-map", i%2 == 1)
			})
		}
	}
}

func (c eventCase) run(t *testing.T, rabbit rabbit, vhost string, legacy, folded bool) {
	s := startStage(t, rabbit, stageOptions{vhost: vhost, folded: folded, before: c.before, gatewayKeys: c.gatewayKeys})
	sample := readSample(t, c.sample)
	eventTime := max(sample.DecodedEvent.TimeStamp, sampleEpoch)
	for _, name := range c.earlier {
		eventTime = max(eventTime, readSample(t, name).DecodedEvent.TimeStamp)
	}
	publish := func(name string, shift time.Duration) {
		t.Helper()
		key, p := readSample(t, name).message(t, shift, legacy, jwksOf(s.emu))
		s.publish(key, p)
	}
	toNow := func() time.Duration { return soon().Add(-c.ago).Sub(time.UnixMilli(eventTime)) }
	var shift time.Duration
	if len(c.earlier) > 0 {
		s.change(c.meanwhile...)
		shift = toNow()
		for _, name := range c.earlier {
			publish(name, shift)
			s.hear("")
		}
	}
	for _, p := range c.probes {
		if got := s.ask(p); got != p.before {
			t.Fatalf("before the event, %v: %s, want %s", p, got, p.before)
		}
	}
	before, asked := s.picture(), s.emu.Recorded().Requests
	if len(c.earlier) == 0 {
		s.change(c.meanwhile...)
		shift = toNow()
	}
	base := time.UnixMilli(sampleEpoch).Add(shift)

	publish(c.sample, shift)
	s.hear(c.outcome)
	s.reread(c.reads, asked)
	c.compare(t, s, before, base)
	for _, list := range c.spares {
		if n := s.emu.Recorded().Requests[list] - asked[list]; n != 0 {
			t.Errorf("the gateway read %s %d times; the event asks for nothing there", list, n)
		}
	}
	for _, p := range c.probes {
		if got := s.ask(p); got != p.after {
			t.Errorf("after the event, %v: %s, want %s", p, got, p.after)
		}
	}
	if c.also != nil {
		c.also(t, s)
	}
}

// compare waits until the difference is the right one and stays so.
func (c eventCase) compare(t *testing.T, s *stage, before picture, base time.Time) {
	t.Helper()
	file := strings.ReplaceAll(c.name(), " ", "-") + ".diff"
	if *updateSamples && c.unchanged == "" {
		time.Sleep(700 * time.Millisecond)
		golden(t, file, before.difference(s.picture(), base))
		return
	}
	wrong := func() string {
		got := before.difference(s.picture(), base)
		if c.unchanged == "" {
			return goldenDiff(t, file, got)
		}
		return got
	}
	within(3*time.Second, func() bool { return wrong() == "" })
	time.Sleep(30 * time.Millisecond) // an answer that is under way may still do harm
	if text := wrong(); text != "" {
		why := "the state differs from " + file + " (-want +got)"
		if c.unchanged != "" {
			why = "the state changed, but " + c.unchanged
		}
		t.Errorf("%s:\n%s", why, text)
	}
}

// TestTopicsThatNobodyListensTo: the broker has no queue for these samples, so that they cost nothing.
func TestTopicsThatNobodyListensTo(t *testing.T) {
	s := startStage(t, harness.Shared(t), stageOptions{vhost: "carbon"})
	before := s.picture()
	for _, name := range unrouted {
		key, p := readSample(t, name).message(t, time.Since(time.UnixMilli(sampleEpoch)), false, "")
		if s.wire.publish(key, p) {
			t.Errorf("%s was taken by a queue", name)
		}
	}
	if diff := before.difference(s.picture(), time.Now()); diff != "" {
		t.Errorf("the state changed:\n%s", diff)
	}
	if n := countAll(s.gateway.seen()); n != 0 {
		t.Errorf("%d events were seen", n)
	}
}
