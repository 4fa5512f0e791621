package integration_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/issuer"
)

// recordedGatewayID is the gateway of the recorded registration.
const recordedGatewayID = "f7e6d5c4-b3a2-4190-8877-665544332211"

// restWorld is a gateway that a recordedService governs. Its issuers and its backend are the emulator's.
type restWorld struct {
	*world
	service *recordedService
}

// startRESTWorld starts a gateway for the recordings; prepare changes what is answered before it starts.
func startRESTWorld(t *testing.T, wait time.Duration, prepare func(*recordedService)) *restWorld {
	t.Helper()
	o := worldOptions{
		waitReady:    wait,
		gatewayKeys:  `gateway_labels = ["Default", "Edge EU"]`,
		listenerKeys: `trusted_proxies = ["127.0.0.1"]`,
		sections: fmt.Sprintf("[apim.gateway_notification]\ngateway_id = %q\n[apim.gateway_notification.heartbeat]\nnotify_interval = \"1s\"\n",
			recordedGatewayID),
		fill: func(t testing.TB, e *emulator.Emulator) {
			t.Helper()
			if err := e.LoadSamples(filepath.Join(samplesFolder, "rest"), false, "Default"); err != nil {
				t.Fatal(err)
			}
			plainBooks(t, e)
		},
	}
	w := &world{t: t, emu: startEmulator(t, o)}
	service := startRecordedService(t, w.emu)
	if prepare != nil {
		prepare(service)
	}
	o.serviceURL, o.extraCA = service.server.URL, service.ca
	w.gateway = startGateway(t, w.emu, o)
	return &restWorld{world: w, service: service}
}

// notTheGateways are the samples of samples/rest that are no answers to a gateway of this kind.
var notTheGateways = map[string]string{
	"client-registration-request":         "dynamic client registration is for the public REST APIs",
	"client-registration-response":        "as client-registration-request",
	"gateway-errors":                      "faults that gateways answer their callers with",
	"gateway-well-known":                  "discovery of platform gateways",
	"global-policies":                     "the traffic manager's list; a gateway reads the key templates",
	"oauth2-introspect-response":          "key managers answer it",
	"oauth2-introspect-inactive-response": "key managers answer it",
	"oauth2-token-response":               "key managers answer it",
	"platform-gateway-connection-ack":     "a websocket of platform gateways",
	"platform-gateway-deployments":        "platform gateways",
	"retrieve-api-artifacts-request":      "asked by gateways behind a global adapter",
	"runtime-artifacts-synapse":           "Synapse gateways ask for this type",
	"runtime-metadata":                    "asked by global adapters",
}

// served are the samples that the tests below send to a gateway or compare its requests with.
var served = []string{
	"api-policies", "api-policies-by-name", "apis", "apis-by-context-version", "apis-empty", "application-key-mappings",
	"application-key-mappings-by-key", "application-policies", "application-policies-by-name", "applications", "applications-by-id", "block",
	"deployed-revisions-request", "error-401", "expected-validation", "keyTemplates", "keymanager-event", "keymanagers",
	"notify-api-deployment-status-request", "notify-api-deployment-status-response", "notify-gateway-heartbeat-request",
	"notify-gateway-heartbeat-response", "notify-gateway-register-request", "notify-gateway-register-response", "revokedjwt",
	"revokedjwt-events", "runtime-artifacts-deployments", "runtime-artifacts-env_properties", "runtime-artifacts-not-found", "scopes",
	"subscription-policies", "subscription-policies-by-name", "subscriptions", "subscriptions-by-api-and-app", "undeployed-revision-request",
}

func TestRESTSamplesAreAllServed(t *testing.T) {
	for _, name := range sampleNames(t, "rest") {
		if why := notTheGateways[name]; (why == "") == !slices.Contains(served, name) {
			t.Errorf("%s is neither served nor said to be no matter of the gateway's", name)
		}
	}
}

// TestRESTLists: every list arrives, over HTTPS, with the requests that the API Manager expects.
func TestRESTLists(t *testing.T) {
	w := startRESTWorld(t, 0, nil)
	s := &stage{world: w.world}
	golden(t, "rest.diff", picture{dump: dump{}}.difference(s.picture(), time.UnixMilli(0)))
	var state struct {
		Counts map[string]int `json:"counts"`
	}
	w.gateway.getJSON("/api/v1/state", &state)
	counts, err := json.MarshalIndent(state.Counts, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "rest-counts.json", string(counts)+"\n")
	for path, query := range map[string]string{
		"/apis": "expand=true", "/applications": "", "/application-key-mappings": "", "/subscriptions": "", "/subscription-policies": "",
		"/application-policies": "", "/api-policies": "", "/scopes": "", "/keymanagers": "", "/keyTemplates": "", "/block": "", "/revokedjwt": "",
		"/runtime-artifacts": "type=Envoy",
	} {
		requests := w.service.asked("GET", path)
		if len(requests) == 0 {
			t.Errorf("%s was never asked for", path)
			continue
		}
		if name, value, ok := strings.Cut(query, "="); ok && requests[0].query.Get(name) != value {
			t.Errorf("%s was asked for with %v, want %s", path, requests[0].query, query)
		}
	}
	// env_properties.json: the endpoints of one environment are other ones than the project's.
	upstreams := w.gateway.get("/api/v1/upstreams?q=WeatherInfo")
	for _, want := range []string{"https://weather.backend.example.test/api", "https://weather-sbx.backend.example.test/api", w.emu.BackendURL()} {
		if !strings.Contains(upstreams, want) {
			t.Errorf("no upstream of WeatherInfo is %s: %s", want, upstreams)
		}
	}
	// One label at a time in the clear there, all of them in base64 here.
	var labels []string
	for _, r := range w.service.asked("GET", "/apis") {
		if l := r.query.Get("gatewayLabel"); l != "" && !slices.Contains(labels, l) {
			labels = append(labels, l)
		}
	}
	slices.Sort(labels)
	if !slices.Equal(labels, []string{"Default", "Edge EU"}) {
		t.Errorf("/apis was asked for the labels %q", labels)
	}
	if got := w.service.asked("GET", "/runtime-artifacts")[0].query.Get("gatewayLabel"); got != "RGVmYXVsdHxFZGdlIEVV" { // Default|Edge EU
		t.Errorf("/runtime-artifacts was asked for the labels %q", got)
	}
}

// TestRESTReports compares what the gateway tells the API Manager with the recorded requests.
func TestRESTReports(t *testing.T) {
	w := startRESTWorld(t, 0, func(s *recordedService) {
		s.bodies["/runtime-artifacts"] = recordedArchive(t, s.emulator, []string{books})
	})
	if n := w.gateway.count("apis_refused"); n != 1 {
		t.Errorf("%d APIs are refused, want the one whose project is no archive", n)
	}
	if err := w.emu.UndeployAPI("8a2d7f10-1c3b-4e5d-8f60-7a9b0c1d2e52", "Default", "Edge EU"); err != nil { // over the broker
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path, sample, marker string
		optional                     []string // fields that a sample has and a gateway need not send
	}{
		{"POST", "/notify-gateway", "notify-gateway-register-request", `"REGISTER"`, nil},
		{"POST", "/notify-gateway", "notify-gateway-heartbeat-request", `"HEARTBEAT"`, nil},
		{"PATCH", "/apis/deployed-revisions", "deployed-revisions-request", "", nil},
		{"POST", "/notify-api-deployment-status", "notify-api-deployment-status-request", `"SUCCESS"`, []string{"errorCode", "errorMessage"}},
		{"POST", "/notify-api-deployment-status", "notify-api-deployment-status-request", `"FAILURE"`, nil},
		{"POST", "/apis/undeployed-revision", "undeployed-revision-request", "", nil},
	} {
		t.Run(c.sample+c.marker, func(t *testing.T) {
			var body []byte
			eventually(t, 10*time.Second, "the gateway tells it", func() bool {
				for _, r := range w.service.asked(c.method, c.path) {
					if strings.Contains(string(r.body), c.marker) {
						body = r.body
						return true
					}
				}
				return false
			})
			var got, want any
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if err := json.Unmarshal(restFile(t, c.sample+".json"), &want); err != nil {
				t.Fatal(err)
			}
			for _, fault := range unlike("", shapeOf(want), shapeOf(got), c.optional) {
				t.Errorf("%s\nsent %s", fault, body)
			}
			text := string(body)
			if strings.Contains(c.path, "notify-") && !strings.Contains(text, recordedGatewayID) {
				t.Errorf("it does not name the gateway: %s", text)
			}
			if c.marker == `"FAILURE"` && !strings.Contains(text, books) {
				t.Errorf("it does not name the API that was refused: %s", text)
			}
		})
	}
}

// shapeOf tells the fields of a body and the types of their values. Elements of a list are laid over each other.
func shapeOf(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for name, x := range v {
			if name == "gatewayProperties" { // free
				x = true
			}
			out[name] = shapeOf(x)
		}
		return out
	case []any:
		if len(v) == 0 {
			return []any{}
		}
		all := shapeOf(v[0])
		for _, x := range v[1:] {
			if fields, ok := shapeOf(x).(map[string]any); ok {
				maps.Copy(all.(map[string]any), fields)
			}
		}
		return []any{all}
	}
	return fmt.Sprintf("%T", v)
}

// unlike lists where two shapes differ.
func unlike(at string, want, got any, optional []string) []string {
	var faults []string
	switch want := want.(type) {
	case map[string]any:
		fields, ok := got.(map[string]any)
		if !ok {
			return []string{at + " is no object"}
		}
		for name, w := range want {
			if g, ok := fields[name]; ok {
				faults = append(faults, unlike(at+"/"+name, w, g, optional)...)
			} else if !slices.Contains(optional, name) {
				faults = append(faults, at+"/"+name+" is missing")
			}
		}
		for name := range fields {
			if _, ok := want[name]; !ok {
				faults = append(faults, at+"/"+name+" is not known to the API Manager")
			}
		}
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) == 0 {
			return []string{at + " is no list, or an empty one"}
		}
		faults = unlike(at+"[]", want[0], list[0], optional)
	default:
		if want != got {
			faults = []string{fmt.Sprintf("%s is a %v, want a %v", at, got, want)}
		}
	}
	return faults
}

// validation is a case of expected-validation.json.
type validation struct {
	Case             string `json:"case"`
	API              string `json:"api"`
	KeyManager       string `json:"keyManager"`
	ConsumerKey      string `json:"consumerKey"`
	KeyType          string `json:"keyType"`
	Allowed          bool   `json:"allowed"`
	Code             int    `json:"code"`
	SubscriptionTier string `json:"subscriptionTier"`
	ApplicationTier  string `json:"applicationTier"`
	MaxDepth         int    `json:"maxDepth"`
	MaxComplexity    int    `json:"maxComplexity"`
}

// statusOf are the statuses of the codes (contract rest.md 4.4).
var statusOf = map[int]int{900805: 403, 900907: 401, 900908: 403, 900909: 401}

// recordedRequests are requests for the recorded APIs.
var recordedRequests = map[string]struct{ method, path, body string }{
	"PizzaOrders:1.0.0": {"GET", "/pizza/1.0.0/menu", ""},
	"WeatherInfo:v2":    {"GET", "/weather/v2/city/Oslo", ""},
	"BooksGraph:1.0.0":  {"POST", "/books/1.0.0", `{"query":"{ books { title } }"}`},
}

// mintFor makes a token of a recorded key manager, signed with the key that its key set serves here.
func (w *restWorld) mintFor(keyManager, consumerKey, user string) string {
	w.t.Helper()
	by, iss := w.emu.Resident(), "https://apim.example.test:9443/oauth2/token"
	if keyManager == "Corp Keycloak" {
		by, iss = w.emu.Issuer(), "https://sso.example.test/realms/corp"
	}
	token, err := by.Mint(issuer.Token{ClientID: consumerKey, Subject: user, Life: time.Hour, Claims: map[string]any{"iss": iss}})
	if err != nil {
		w.t.Fatal(err)
	}
	return token.Token
}

func (w *restWorld) request(api, token, ip string) answer {
	w.t.Helper()
	r := recordedRequests[api]
	return w.gateway.call(r.method, r.path, token, func(req *http.Request) {
		req.Host = "gw.example.test"
		if ip != "" {
			req.Header.Set("X-Forwarded-For", ip)
		}
		if r.body != "" {
			setBody(req, r.body)
		}
	})
}

// TestExpectedValidation sends a request for each of the ten cases, first with nothing denied, then with block.json.
func TestExpectedValidation(t *testing.T) {
	var cases []validation
	if err := json.Unmarshal(restFile(t, "expected-validation.json"), &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 10 {
		t.Fatalf("%d cases", len(cases))
	}
	// What block.json changes of them: its API policy stands before authentication, its subscription policy behind the
	// subscription, and where the subscription refuses nothing else is asked.
	denied := map[string]int{"sandbox key of the same application": 900805, "blocked subscription": 900805, "on hold": 900805}
	for _, deny := range []bool{false, true} {
		t.Run(map[bool]string{false: "nothing denied", true: "with block.json"}[deny], func(t *testing.T) {
			w := startRESTWorld(t, 0, func(s *recordedService) {
				if !deny {
					s.bodies["/block"] = []byte(`{"api":[],"application":[],"user":[],"custom":[],"subscription":[],"ip":[]}`)
				}
			})
			for _, c := range cases {
				t.Run(c.Case, func(t *testing.T) {
					a := w.request(c.API, w.mintFor(c.KeyManager, c.ConsumerKey, "someone"), "")
					want := c.Code
					if code, ok := denied[c.Case]; ok && deny {
						want = code
					}
					status := 200
					if want != 0 {
						status = statusOf[want]
					}
					if a.status != status || a.code != want {
						t.Fatalf("answer = %v, want %d/%d", a, status, want)
					}
					if a.status == 200 {
						w.checkTiers(t, c, a.header.Get("X-Request-Id"))
					}
				})
			}
			if !deny {
				return
			}
			mobile := w.mintFor("Resident Key Manager", "mobProdK3y0000000000000001AbC", "alice")
			for name, c := range map[string]struct {
				api, token, ip string
				want           string
			}{
				"the API, without a token":    {"WeatherInfo:v2", "", "", "403/900805"},
				"the address":                 {"PizzaOrders:1.0.0", mobile, "203.0.113.9", "403/900805"},
				"the next address":            {"PizzaOrders:1.0.0", mobile, "203.0.113.10", "200/0"},
				"the first of the range":      {"PizzaOrders:1.0.0", mobile, "198.51.100.10", "403/900805"},
				"the last of the range":       {"PizzaOrders:1.0.0", mobile, "198.51.100.20", "403/900805"},
				"behind the range":            {"PizzaOrders:1.0.0", mobile, "198.51.100.21", "200/0"},
				"the user":                    {"PizzaOrders:1.0.0", w.mintFor("Resident Key Manager", "mobProdK3y0000000000000001AbC", "mallory"), "", "403/900805"},
				"another user":                {"PizzaOrders:1.0.0", mobile, "", "200/0"},
				"the application, production": {"PizzaOrders:1.0.0", w.mintFor("Corp Keycloak", "partner-portal-prod", "bob"), "", "401/900907"},
			} {
				t.Run(name, func(t *testing.T) {
					a := w.request(c.api, c.token, c.ip)
					if got := fmt.Sprintf("%d/%d", a.status, a.code); got != c.want {
						t.Errorf("answer = %v, want %s", a, c.want)
					}
				})
			}
		})
	}
}

// checkTiers compares the plans by which a request was admitted.
func (w *restWorld) checkTiers(t *testing.T, c validation, requestID string) {
	t.Helper()
	var trace struct {
		Steps []struct {
			Step        string `json:"step"`
			Application string `json:"application"`
			Policy      string `json:"policy"`
			KeyType     string `json:"key_type"`
		} `json:"steps"`
	}
	w.gateway.getJSON("/api/v1/explain?request_id="+requestID, &trace)
	for _, s := range trace.Steps {
		if s.Step != "subscription" {
			continue
		}
		if s.Policy != c.SubscriptionTier {
			t.Errorf("the subscription's plan is %q, want %q", s.Policy, c.SubscriptionTier)
		}
		if c.KeyType != "" && s.KeyType != c.KeyType {
			t.Errorf("the key is of type %q, want %q", s.KeyType, c.KeyType)
		}
		if c.MaxDepth != 0 {
			var plan struct {
				MaxDepth      int `json:"graphql_max_depth"`
				MaxComplexity int `json:"graphql_max_complexity"`
			}
			w.gateway.getJSON("/api/v1/policies/subscription:carbon.super:"+s.Policy, &plan)
			if plan.MaxDepth != c.MaxDepth || plan.MaxComplexity != c.MaxComplexity {
				t.Errorf("the plan allows queries of depth %d, complexity %d; want %d, %d", plan.MaxDepth, plan.MaxComplexity, c.MaxDepth, c.MaxComplexity)
			}
		}
		if c.ApplicationTier == "" {
			return
		}
		var apps struct {
			Items []struct {
				Policy string `json:"policy"`
			} `json:"items"`
		}
		w.gateway.getJSON("/api/v1/applications?q="+s.Application, &apps)
		if len(apps.Items) != 1 || apps.Items[0].Policy != c.ApplicationTier {
			t.Errorf("the application %s has the plan %v, want %s", s.Application, apps.Items, c.ApplicationTier)
		}
		return
	}
	t.Errorf("the trace of %s has no step subscription: %v", requestID, trace)
}

// TestRESTSingleRows: rows that no list had, and no event brought, are asked for by the request that misses them.
func TestRESTSingleRows(t *testing.T) {
	w := startRESTWorld(t, 0, func(s *recordedService) {
		s.bodies["/block"] = []byte(`{}`)
		s.withheld["/application-key-mappings"] = func(row map[string]any) bool { return row["consumerKey"] == "partner-portal-prod" }
		s.withheld["/applications"] = func(row map[string]any) bool { return text(row["id"]) == "2" }
		s.withheld["/subscriptions"] = func(row map[string]any) bool { return text(row["subscriptionId"]) == "1" }
		for path, name := range map[string]string{"/subscription-policies": "Gold", "/application-policies": "50PerMin", "/api-policies": "10KPerMin"} {
			s.withheld[path] = func(row map[string]any) bool { return row["name"] == name }
		}
	})
	s := &stage{world: w.world}
	before := s.picture()
	if a := w.request("PizzaOrders:1.0.0", w.mintFor("Corp Keycloak", "partner-portal-prod", "bob"), ""); a.code != 900907 {
		t.Errorf("with a key that no list had: %v, want 900907", a)
	}
	if a := w.request("PizzaOrders:1.0.0", w.mintFor("Resident Key Manager", "mobProdK3y0000000000000001AbC", "alice"), ""); a.status != 200 {
		t.Errorf("with a subscription that no list had: %v, want 200", a)
	}
	for _, p := range []emulator.PolicyKind{emulator.SubscriptionPolicy, emulator.ApplicationPolicy, emulator.APIPolicy} {
		name := map[emulator.PolicyKind]string{emulator.SubscriptionPolicy: "Gold", emulator.ApplicationPolicy: "50PerMin", emulator.APIPolicy: "10KPerMin"}[p]
		w.emu.Notify("POLICY_UPDATE", soon(), map[string]any{
			"policyName": name, "policyType": p, "quotaType": "requestCount", "type": "POLICY_UPDATE", "timeStamp": soon().UnixMilli(),
			"tenantId": -1234, "tenantDomain": "carbon.super", "rateLimitCount": 100, "rateLimitTimeUnit": "sec", "stopOnQuotaReach": true,
		})
	}
	var got string
	for _, by := range bySample {
		if by.path == "/apis" { // APIs are asked for by UUID
			continue
		}
		name, value, _ := strings.Cut(strings.Split(by.query, "&")[0], "=")
		eventually(t, 5*time.Second, by.path+"?"+by.query+" is asked for", func() bool {
			return slices.ContainsFunc(w.service.asked("GET", by.path), func(r recordedRequest) bool { return r.query.Get(name) == value })
		})
	}
	within(3*time.Second, func() bool {
		got = before.difference(s.picture(), time.UnixMilli(0))
		return *updateSamples || goldenDiff(t, "rest-single-rows.diff", got) == ""
	})
	if *updateSamples {
		time.Sleep(time.Second)
		got = before.difference(s.picture(), time.UnixMilli(0))
	}
	golden(t, "rest-single-rows.diff", got)
	// The recordings of single rows say what the lists say.
	for _, by := range bySample {
		q := w.service.query(by.query)
		var one, list any
		if err := json.Unmarshal(restFile(t, by.file), &one); err != nil {
			t.Fatal(err)
		}
		rows := filtered(t, restFile(t, w.service.lists[by.path]), func(row map[string]any) bool { return w.service.rows[by.path](row, q) })
		if err := json.Unmarshal(rows, &list); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(one) != fmt.Sprint(list) {
			t.Errorf("%s differs from the list:\n%v\n%v", by.file, one, list)
		}
	}
}

// TestRESTRevokedTokens: both shapes of /revokedjwt give the same tokens, the later one clients and users besides.
func TestRESTRevokedTokens(t *testing.T) {
	for _, file := range []string{"revokedjwt", "revokedjwt-events"} {
		t.Run(file, func(t *testing.T) {
			w := startRESTWorld(t, 0, func(s *recordedService) { s.answer("/revokedjwt", file+".json") })
			d := dump{"revoked-tokens": (&stage{world: w.world}).picture().dump["revoked-tokens"]}
			golden(t, "rest-"+file+".diff", picture{dump: dump{}}.difference(picture{dump: d}, time.UnixMilli(0)))
		})
	}
}

// TestRESTRefused: wrong credentials are said in plain words and not tried again and again.
func TestRESTRefused(t *testing.T) {
	w := startRESTWorld(t, -1, func(s *recordedService) {
		s.refuse = true
	})
	eventually(t, 10*time.Second, "the gateway says that it is refused", func() bool {
		return strings.Contains(w.gateway.get("/health/ready"), "401")
	})
	time.Sleep(1500 * time.Millisecond)
	if n := len(w.service.asked("GET", "/subscriptions")); n != 1 {
		t.Errorf("/subscriptions was asked for %d times within 1.5 s of a refusal, want once", n)
	}
	if w.gateway.count("subscriptions") != 0 || strings.Contains(w.gateway.get("/health/ready"), `"status":"ready"`) {
		t.Errorf("ready: %s", w.gateway.get("/health/ready"))
	}
}

// TestRESTNothingDeployed: no artifacts and no APIs are an answer, not a fault.
func TestRESTNothingDeployed(t *testing.T) {
	w := startRESTWorld(t, 0, func(s *recordedService) {
		s.status["/runtime-artifacts"] = http.StatusNotFound
		s.answer("/apis", "apis-empty.json")
	})
	for name, want := range map[string]int{"apis": 0, "apis_deployed": 0, "apis_refused": 0, "subscriptions": 6} {
		if n := w.gateway.count(name); n != want {
			t.Errorf("%s = %d, want %d", name, n, want)
		}
	}
	if a := w.request("PizzaOrders:1.0.0", "", ""); a.status != 404 {
		t.Errorf("answer = %v, want 404", a)
	}
}

// TestRESTKeyManagerEvent publishes the recorded event about a key manager of keymanagers.json, which it repeats: tokens of
// that key manager stay good.
func TestRESTKeyManagerEvent(t *testing.T) {
	w := startRESTWorld(t, 0, func(s *recordedService) { s.bodies["/block"] = []byte(`{}`) })
	s := &stage{world: w.world}
	before, heard := s.picture(), w.gateway.seen()
	jwks := w.emu.IssuerConfiguration()["certificate_value"].(string)
	w.replayKeyManager(t, jwks)
	eventually(t, 5*time.Second, "the event is applied", func() bool { return w.gateway.seen()["applied"] == heard["applied"]+1 })
	eventually(t, 5*time.Second, "the key managers are read again", func() bool { return len(w.service.asked("GET", "/keymanagers")) > 1 })
	if diff := before.difference(s.picture(), time.UnixMilli(0)); diff != "" {
		t.Errorf("the state changed:\n%s", diff)
	}
	if a := w.request("PizzaOrders:1.0.0", w.mintFor("Corp Keycloak", "partner-portal-prod", "bob"), ""); a.code != 900907 {
		t.Errorf("answer = %v, want 900907", a)
	}
}
