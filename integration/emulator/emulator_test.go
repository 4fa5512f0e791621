package emulator

import (
	"archive/zip"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world starts an emulator with a small data set: one API on Default, two applications, one subscription.
func world(t *testing.T, o Options) (*Emulator, API, Application, Subscription) {
	t.Helper()
	o.OnError = func(err error) { t.Errorf("emulator: %v", err) }
	e, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	s := e.Silent()
	api := must(s.CreateAPI(API{Name: "WeatherAPI", Version: "2.1.0", Context: "/weather/2.1.0", Endpoint: e.BackendURL(), Environments: []string{"Default"}}))(t)
	app := must(s.CreateApplication(Application{Name: "MobileApp", SubName: "dana", Policy: "50PerMin"}))(t)
	must(s.AddKeyMapping(KeyMapping{ApplicationID: app.ID, ConsumerKey: "ck a/1"}))(t)
	sub := must(s.Subscribe(Subscription{APIUUID: api.UUID, AppID: app.ID, PolicyID: "Gold"}))(t)
	return e, api, app, sub
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

type client struct {
	e    *Emulator
	http *http.Client
}

func newClient(t *testing.T, e *Emulator) client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.CAPEM())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(tr.CloseIdleConnections)
	return client{e, &http.Client{Transport: tr, Timeout: 10 * time.Second}}
}

func (c client) do(t *testing.T, method, path, body string, header ...string) (int, http.Header, []byte) {
	t.Helper()
	r, err := http.NewRequest(method, c.e.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("admin", "admin")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return 0, nil, []byte(err.Error())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, resp.Header, b
	}
	return resp.StatusCode, resp.Header, b
}

func (c client) list(t *testing.T, path string, header ...string) []map[string]any {
	t.Helper()
	status, _, b := c.do(t, "GET", path, "", header...)
	if status != 200 {
		t.Fatalf("GET %s: %d %s", path, status, b)
	}
	var body struct {
		Count int              `json:"count"`
		List  []map[string]any `json:"list"`
	}
	if err := json.Unmarshal(b, &body); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	if body.Count != len(body.List) {
		t.Errorf("GET %s: count %d, %d rows", path, body.Count, len(body.List))
	}
	return body.List
}

// sampleKeys are the names of the fields of the first row of a REST sample.
func sampleKeys(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/rest", file))
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if json.Unmarshal(b, &rows) != nil {
		var body struct{ List []map[string]any }
		if err := json.Unmarshal(b, &body); err != nil {
			t.Fatal(err)
		}
		rows = body.List
	}
	return slices.Sorted(maps.Keys(rows[0]))
}

func TestRowsHaveTheFieldsOfTheSamples(t *testing.T) {
	e, api, app, _ := world(t, Options{Profile: "4.3"})
	s := e.Silent()
	must(s.PutPolicy(Policy{Kind: APIPolicy, Name: "10KPerMin", Limit: Limit{Count: 10000}, ConditionGroups: []ConditionGroup{{Conditions: []Condition{{Type: "IPSpecific", Value: "10.0.0.1"}}}}}))(t)
	must(s.SetCustomPolicy("$appId:$userId", 5, time.Minute))(t)
	s.PutScope(Scope{Name: "order:write"})
	c := newClient(t, e)
	for _, test := range []struct{ path, sample string }{
		{"apis?gatewayLabel=Default", "apis.json"},
		{"applications", "applications.json"},
		{"application-key-mappings", "application-key-mappings.json"},
		{"subscriptions", "subscriptions.json"},
		{"subscription-policies", "subscription-policies.json"},
		{"application-policies", "application-policies.json"},
		{"api-policies?policyName=10KPerMin", "api-policies.json"},
		{"global-policies", "global-policies.json"},
		{"scopes", "scopes.json"},
	} {
		t.Run(test.path, func(t *testing.T) {
			rows := c.list(t, "/internal/data/v1/"+test.path)
			if len(rows) == 0 {
				t.Fatal("no rows")
			}
			if diff := cmp.Diff(sampleKeys(t, test.sample), slices.Sorted(maps.Keys(rows[0]))); diff != "" {
				t.Errorf("fields (-sample +emulator):\n%s", diff)
			}
		})
	}
	t.Run("filters", func(t *testing.T) {
		q := url.QueryEscape
		for _, test := range []struct {
			path string
			want int
		}{
			{"apis?apiId=" + api.UUID + "&gatewayLabel=Default", 1},
			{"apis?apiId=unknown", 0},
			{"apis?context=" + q(api.Context) + "&version=2.1.0", 1},
			{"apis?gatewayLabel=Edge+EU", 0},
			{fmt.Sprintf("applications?appId=%d", app.ID), 1},
			{"applications?appId=999", 0},
			{"application-key-mappings?consumerKey=ck+a%2F1&keymanager=Resident%20Key%20Manager", 1},
			{"application-key-mappings?consumerKey=ck+a%2F1&keymanager=Other", 0},
			{fmt.Sprintf("subscriptions?apiId=%d&appId=%d", api.APIID, app.ID), 1},
			{fmt.Sprintf("subscriptions?apiUUID=%s&applicationUUID=%s", api.UUID, app.UUID), 1},
			{"subscriptions?apiId=7&appId=7", 0},
			{"subscription-policies?policyName=Unlimited", 1},
			{"subscription-policies?policyName=None", 0},
		} {
			if got := len(c.list(t, "/internal/data/v1/"+test.path)); got != test.want {
				t.Errorf("%s: %d rows, want %d", test.path, got, test.want)
			}
		}
		if got := len(c.list(t, "/internal/data/v1//apis")); got != 1 {
			t.Errorf("double slash: %d rows, want 1", got)
		}
	})
}

func TestAuthenticationAndTenants(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	e.AddTenant("example.org", "erin", "pw")
	must(e.Silent().CreateAPI(API{Name: "News", Version: "1", Context: "/t/example.org/news/1", Environments: []string{"Default"}}))(t)
	c := newClient(t, e)
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	status, header, b := c.do(t, "GET", "/internal/data/v1/apis", "", "Authorization", basic("admin", "wrong"))
	if status != 401 || !strings.HasPrefix(header.Get("WWW-Authenticate"), "Basic") {
		t.Errorf("wrong password: %d %v %s", status, header, b)
	}
	for _, test := range []struct {
		name, user, password, tenant, query string
		want                                []string
	}{
		{"super tenant by default", "admin", "admin", "", "", []string{"WeatherAPI"}},
		{"named tenant", "admin", "admin", "example.org", "", []string{"News"}},
		{"all by header", "admin", "admin", "ALL", "", []string{"WeatherAPI", "News"}},
		{"all by query", "admin", "admin", "", "?organizationId=ALL", []string{"WeatherAPI", "News"}},
		{"a tenant's user gets his own, whatever he names", "erin@example.org", "pw", "carbon.super", "", []string{"News"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := []string{"Authorization", basic(test.user, test.password)}
			if test.tenant != "" {
				h = append(h, "xWSO2Tenant", test.tenant)
			}
			var names []string
			for _, r := range c.list(t, "/internal/data/v1/apis"+test.query, h...) {
				names = append(names, r["name"].(string))
			}
			if diff := cmp.Diff(test.want, names); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestArtifacts(t *testing.T) {
	e, api, _, _ := world(t, Options{})
	must(e.DeployAPI(api.UUID, "Edge EU"))(t)
	e.SetVHost(SuperTenant, "Edge EU", "eu.gw.example.test")
	c := newClient(t, e)
	label := func(s string) string { return url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(s))) }

	status, header, b := c.do(t, "GET", "/internal/data/v1/runtime-artifacts?gatewayLabel="+label("Default|Edge EU")+"&type=Envoy", "")
	if status != 200 || header.Get("Content-Type") != "application/zip" {
		t.Fatalf("%d %v %s", status, header, b)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, f := range z.File {
		r := must(f.Open())(t)
		files[f.Name] = must(io.ReadAll(r))(t)
	}
	var d deployments
	if err := json.Unmarshal(files["deployments.json"], &d); err != nil || len(d.Data.Deployments) != 1 {
		t.Fatalf("deployments.json: %v %s", err, files["deployments.json"])
	}
	envs := d.Data.Deployments[0].Environments
	if len(envs) != 2 || envs[0].VHost != "localhost" || envs[1].VHost != "eu.gw.example.test" {
		t.Errorf("environments %+v", envs)
	}
	project := files[d.Data.Deployments[0].APIFile]
	p, err := zip.NewReader(bytes.NewReader(project), int64(len(project)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range p.File {
		names = append(names, f.Name)
	}
	if diff := cmp.Diff([]string{"WeatherAPI-2.1.0/api.yaml", "WeatherAPI-2.1.0/Definitions/swagger.yaml"}, names); diff != "" {
		t.Error(diff)
	}
	for _, test := range []struct {
		name, query, body string
		status            int
	}{
		{"nothing on the label", "gatewayLabel=" + label("Nowhere") + "&type=Envoy", "No Api artifacts found", 404},
		{"unknown API", "apiId=x&type=Envoy", "No Api artifacts found", 404},
		{"unknown type", "type=Kong", "Envoy and Synapse", 400},
		{"label that is no base64", "gatewayLabel=%21&type=Envoy", "base64", 400},
		{"Synapse", "type=Synapse", `"list":["{`, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, _, b := c.do(t, "GET", "/internal/data/v1/runtime-artifacts?"+test.query, "")
			if status != test.status || !strings.Contains(string(b), test.body) {
				t.Errorf("%d %s, want %d with %q", status, b, test.status, test.body)
			}
		})
	}
	t.Run("acknowledgements", func(t *testing.T) {
		path := "/internal/data/v1/apis/deployed-revisions"
		good := fmt.Sprintf(`[{"apiId":%q,"revisionId":2,"envInfo":[{"name":"Default","vhost":"localhost"}]}]`, api.UUID)
		if status, _, b := c.do(t, "PATCH", path, good); status != 200 || len(b) != 0 {
			t.Errorf("good: %d %s", status, b)
		}
		for _, bad := range []string{strings.Replace(good, `"revisionId":2`, `"revisionId":9`, 1), strings.Replace(good, `"vhost":"localhost"`, `"vhost":""`, 1)} {
			if status, _, b := c.do(t, "PATCH", path, bad); status != 400 {
				t.Errorf("%s: %d %s", bad, status, b)
			}
		}
		if got := e.Recorded().Deployed; len(got) != 1 || got[0].RevisionID != 2 {
			t.Errorf("recorded %+v", got)
		}
	})
}

func TestProfile32(t *testing.T) {
	e, _, _, _ := world(t, Options{Profile: "3.2"})
	c := newClient(t, e)
	for path, absent := range map[string]string{
		"apis": "uuid status organization", "applications": "uuid", "application-key-mappings": "applicationUUID",
		"subscriptions": "subscriptionUUID apiUUID applicationUUID", "application-policies": "defaultLimit",
	} {
		row := c.list(t, "/internal/data/v1/"+path)[0]
		for name := range strings.FieldsSeq(absent) {
			if _, ok := row[name]; ok {
				t.Errorf("%s has %s", path, name)
			}
		}
	}
	if got := c.list(t, "/internal/data/v1/application-key-mappings")[0]["keyManager"]; got != "Default" {
		t.Errorf("key manager %v, want Default", got)
	}
	for _, path := range []string{"GET runtime-artifacts?type=Envoy", "POST notify-gateway", "PATCH apis/deployed-revisions"} {
		method, p, _ := strings.Cut(path, " ")
		if status, _, _ := c.do(t, method, "/internal/data/v1/"+p, ""); status != 404 {
			t.Errorf("%s: %d, want 404", path, status)
		}
	}
	if _, _, b := c.do(t, "GET", "/internal/data/v1/revokedjwt", ""); strings.TrimSpace(string(b)) != "[]" {
		t.Errorf("revokedjwt %s, want an array", b)
	}
}

func TestFaults(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	c := newClient(t, e)
	c.http.Timeout = time.Second
	get := func() (int, string) {
		status, _, b := c.do(t, "GET", "/internal/data/v1/apis", "")
		return status, string(b)
	}
	for _, test := range []struct {
		name   string
		fault  Fault
		status int // 0: the call fails
		body   string
	}{
		{"500", Fault{Kind: FaultStatus, Status: 500, Times: 1}, 500, "fault"},
		{"401", Fault{Kind: FaultStatus, Status: 401, Times: 1}, 401, "Unauthenticated"},
		{"reset", Fault{Kind: FaultReset, Times: 2}, 0, ""}, // Go's client repeats a GET once on a kept connection
		{"truncated", Fault{Kind: FaultTruncate, Times: 1}, 0, ""},
		{"hang", Fault{Kind: FaultHang, Times: 2}, 0, ""},
		{"empty", Fault{Kind: FaultEmpty, Times: 1}, 200, `{"count":0`},
		{"garbage", Fault{Kind: FaultGarbage, Times: 1}, 200, "<html>"},
		{"delay", Fault{Kind: FaultDelay, Delay: 10 * time.Millisecond, Times: 1}, 200, "WeatherAPI"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.fault.Path = "apis"
			e.AddFault(test.fault)
			if status, body := get(); status != test.status || !strings.Contains(body, test.body) {
				t.Errorf("%d %s, want %d with %q", status, body, test.status, test.body)
			}
			e.ClearFaults()
			if status, body := get(); status != 200 || !strings.Contains(body, "WeatherAPI") {
				t.Errorf("afterwards %d %s", status, body)
			}
		})
	}
	t.Run("away and back", func(t *testing.T) {
		e.StopREST()
		if status, _ := get(); status != 0 {
			t.Errorf("while away: %d", status)
		}
		if err := e.StartREST(); err != nil {
			t.Fatal(err)
		}
		if status, _ := get(); status != 200 {
			t.Errorf("afterwards: %d", status)
		}
	})
}

// listen collects the messages of the embedded NATS server.
func listenNATS(t *testing.T, e *Emulator) chan *nats.Msg {
	t.Helper()
	nc, err := nats.Connect(e.Hub().URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	ch := make(chan *nats.Msg, 1024)
	if _, err := nc.ChanSubscribe("gatehouse.event.>", ch); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return ch
}

func payload(t *testing.T, body []byte) map[string]any {
	t.Helper()
	var env struct {
		Event struct {
			PayloadData map[string]any `json:"payloadData"`
		} `json:"event"`
	}
	if err := json.Unmarshal(body, &env); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return env.Event.PayloadData
}

// shape is the tree of field names and JSON kinds, inner base64 JSON opened, lists as their first element.
func shape(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := map[string]any{}
		for k, x := range v {
			switch k {
			case "attributes", "additionalProperties": // free maps
				m[k] = "map"
				continue
			}
			m[k] = shape(x)
		}
		return m
	case []any:
		if len(v) == 0 {
			return []any{}
		}
		return []any{shape(v[0])}
	case string:
		if raw, err := base64.StdEncoding.DecodeString(v); err == nil && len(raw) > 2 && raw[0] == '{' {
			var inner any
			if json.Unmarshal(raw, &inner) == nil {
				return shape(inner)
			}
		}
		if strings.HasPrefix(v, "{") {
			var inner any
			if json.Unmarshal([]byte(v), &inner) == nil {
				return shape(inner)
			}
		}
		return "text"
	case float64:
		return "number"
	case bool:
		return "bool"
	}
	return v
}

func TestEventsHaveTheShapeOfTheSamples(t *testing.T) {
	next := func(t *testing.T, ch chan *nats.Msg) *nats.Msg {
		t.Helper()
		select {
		case m := <-ch:
			return m
		case <-time.After(5 * time.Second):
			t.Fatal("no event came")
			return nil
		}
	}
	type step struct {
		sample string
		change func(e *Emulator, api API, app Application, sub Subscription) error
	}
	noResult := func(_ any, err error) error { return err }
	steps := map[string][]step{
		"4.7": {
			{"notification-api-create", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				_, err := e.CreateAPI(API{Name: "Other", Version: "1", Context: "/other/1"})
				return err
			}},
			{"notification-api-update-default-version", func(e *Emulator, a API, _ Application, _ Subscription) error {
				_, err := e.UpdateAPI(a.UUID, func(a *API) { a.IsDefaultVersion = true })
				return err
			}},
			{"notification-api-lifecycle-change-blocked", func(e *Emulator, a API, _ Application, _ Subscription) error {
				return e.SetLifecycle(a.UUID, "BLOCKED")
			}},
			{"notification-deploy-api-in-gateway", func(e *Emulator, a API, _ Application, _ Subscription) error {
				return noResult(e.DeployAPI(a.UUID, "Default"))
			}},
			{"notification-remove-api-from-gateway", func(e *Emulator, a API, _ Application, _ Subscription) error {
				return e.UndeployAPI(a.UUID, "Default")
			}},
			{"notification-application-create", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.CreateApplication(Application{Name: "New", SubName: "dana"}))
			}},
			{"notification-application-update", func(e *Emulator, _ API, a Application, _ Subscription) error {
				return noResult(e.UpdateApplication(a.ID, func(a *Application) { a.Policy = "Unlimited" }))
			}},
			{"notification-application-registration-create", func(e *Emulator, _ API, a Application, _ Subscription) error {
				return noResult(e.AddKeyMapping(KeyMapping{ApplicationID: a.ID, ConsumerKey: "k2"}))
			}},
			{"notification-remove-application-keymapping", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.RemoveKeyMapping("k2", e.ResidentName())
			}},
			{"notification-subscriptions-update-blocked", func(e *Emulator, _ API, _ Application, s Subscription) error {
				return noResult(e.UpdateSubscription(s.SubscriptionID, "BLOCKED", ""))
			}},
			{"notification-subscriptions-delete", func(e *Emulator, _ API, _ Application, s Subscription) error {
				return e.Unsubscribe(s.SubscriptionID)
			}},
			{"notification-subscriptions-create", func(e *Emulator, a API, app Application, _ Subscription) error {
				return noResult(e.Subscribe(Subscription{APIUUID: a.UUID, AppID: app.ID}))
			}},
			{"notification-policy-create-subscription", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.PutPolicy(Policy{Kind: SubscriptionPolicy, Name: "Gold", RateLimitTimeUnit: "sec"}))
			}},
			{"notification-policy-create-application", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.PutPolicy(Policy{Kind: ApplicationPolicy, Name: "50PerMin"}))
			}},
			{"notification-scope-create", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				d := "Read weather"
				e.PutScope(Scope{Name: "weather:read", Description: &d, Roles: []string{"analyst"}})
				return nil
			}},
			{"notification-custom-policy-add", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.SetCustomPolicy("$userId", 1, 0))
			}},
			{"notification-custom-policy-update", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.ReplaceCustomPolicy("$userId", "$appId")
			}},
			{"notification-custom-policy-delete", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.RemoveCustomPolicy("$appId")
			}},
			{"throttleData-block-api-on", func(e *Emulator, a API, _ Application, _ Subscription) error {
				return noResult(e.Deny(DenyCondition{Type: DenyAPI, Value: a.Context}))
			}},
			{"throttleData-block-ip-on", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.Deny(DenyCondition{Type: DenyIP, Value: "192.168.1.10"}))
			}},
			{"throttleData-block-iprange-on", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.Deny(DenyCondition{Type: DenyIPRange, Value: "10.0.0.1-10.0.0.200"}))
			}},
			{"throttleData-decision-application", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				e.Decide("12:dana@carbon.super", true, time.Now(), nil)
				return nil
			}},
			{"tokenRevocation-jwt", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.Revoke("0d6d6ad2", time.Now(), "")
			}},
			{"tokenRevocation-consumer-app", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.RevokeMany(MassRevocation{ConsumerKey: "ck", RevocationTime: 1764000001000})
			}},
			{"tokenRevocation-subject-entity-user", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.RevokeMany(MassRevocation{EntityID: "dana@carbon.super", EntityType: "USER_ID", RevocationTime: 1764000001000})
			}},
			{"keyManager-add-4.1", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.PutKeyManager(KeyManager{Name: "ExampleIdP", Type: "WSO2-IS", Configuration: map[string]any{"issuer": "x"}}))
			}},
			{"keyManager-delete-4.1", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.DeleteKeyManager("", "ExampleIdP")
			}},
		},
		"4.0": {
			{"throttleData-keytemplate-add", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return noResult(e.SetCustomPolicy("$userId", 1, 0))
			}},
			{"keyManager-delete-4.0", func(e *Emulator, _ API, _ Application, _ Subscription) error {
				return e.DeleteKeyManager("", e.ResidentName())
			}},
		},
	}
	for profile, list := range steps {
		t.Run(profile, func(t *testing.T) {
			e, api, app, sub := world(t, Options{Profile: profile})
			ch := listenNATS(t, e)
			for _, s := range list {
				t.Run(s.sample, func(t *testing.T) {
					if err := s.change(e, api, app, sub); err != nil {
						t.Fatal(err)
					}
					m := next(t, ch)
					want := must(ReadSample("testdata/events/" + s.sample + ".json"))(t)
					if subject := "gatehouse.event." + strings.ToLower(want.Topic); m.Subject != subject {
						t.Errorf("subject %s, want %s", m.Subject, subject)
					}
					if got := m.Header.Get("Content-Type"); got != want.AMQP.ContentType {
						t.Errorf("content type %q, want %q", got, want.AMQP.ContentType)
					}
					if diff := cmp.Diff(shape(payload(t, want.Body)), shape(payload(t, m.Data))); diff != "" {
						t.Errorf("shape (-sample +emulator):\n%s", diff)
					}
				})
			}
		})
	}
}

func TestPopulate(t *testing.T) {
	e, _, _, _ := world(t, Options{Gzip: true})
	g := must(e.Populate(100, 30, 10, 20))(t)
	c := newClient(t, e)
	check := func(path string, want any, index int) {
		t.Helper()
		rows := c.list(t, "/internal/data/v1/"+path)
		b := must(json.Marshal(want))(t)
		var row map[string]any
		if err := json.Unmarshal(b, &row); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(row, rows[index]); diff != "" {
			t.Errorf("%s, row %d:\n%s", path, index, diff)
		}
	}
	check("apis?gatewayLabel=Default", g.API(7), 1+7)
	check("applications", g.Application(3), 1+3)
	check("application-key-mappings", g.KeyMapping(29), 1+29)
	check("subscriptions", g.Subscription(99), 1+99)
	check(fmt.Sprintf("subscriptions?apiId=%d&appId=%d", g.Subscription(57).APIID, g.Subscription(57).AppID), g.Subscription(57), 0)
	check("application-key-mappings?consumerKey="+g.ConsumerKey(5), g.KeyMapping(5), 0)
	check(fmt.Sprintf("applications?appId=%d", g.Application(9).ID), g.Application(9), 0)
	check("apis?apiId="+g.API(19).UUID, g.API(19), 0)
	if rows := c.list(t, "/internal/data/v1/apis?apiId="+g.API(20).UUID); len(rows) != 0 {
		t.Errorf("API 20 of 20 was served: %v", rows)
	}
	if _, err := e.Populate(201, 0, 10, 20); err == nil {
		t.Error("more subscriptions than pairs were taken")
	}
}
