package controlplane

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSingleRows(t *testing.T) {
	type fetch func(context.Context, *Client) (any, error)
	wrap := func(v any, err error) (any, error) { return v, err }
	for _, tc := range []struct {
		name   string
		file   string // the whole list: an old server that ignores the query
		path   string
		query  url.Values
		tenant string
		fetch  fetch
		want   string // a text in the found row as JSON, "null" when absent
	}{
		{
			"API by UUID", "apis.json", "/apis",
			url.Values{"expand": {"true"}, "apiId": {"8a2d7f10-1c3b-4e5d-8f60-7a9b0c1d2e52"}, "gatewayLabel": {"Edge EU"}},
			"carbon.super",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.API(ctx, "carbon.super", APIQuery{UUID: "8a2d7f10-1c3b-4e5d-8f60-7a9b0c1d2e52", Label: "Edge EU"}))
			}, `"Name":"WeatherInfo"`,
		},
		{
			"API by context and version", "apis.json", "/apis",
			url.Values{"expand": {"true"}, "context": {"/books/1.0.0"}, "version": {"1.0.0"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.API(ctx, "", APIQuery{Context: "/books/1.0.0", Version: "1.0.0"}))
			}, `"Name":"BooksGraph"`,
		},
		{
			"API absent", "apis.json", "/apis",
			url.Values{"expand": {"true"}, "apiId": {"other"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.API(ctx, "", APIQuery{UUID: "other"}))
			}, "null",
		},
		{
			"application", "applications.json", "/applications",
			url.Values{"appId": {"2"}},
			"",
			func(ctx context.Context, c *Client) (any, error) { return wrap(c.Application(ctx, "", 2)) }, `"Name":"PartnerPortal"`,
		},
		{
			"application absent", "applications.json", "/applications",
			url.Values{"appId": {"9"}},
			"",
			func(ctx context.Context, c *Client) (any, error) { return wrap(c.Application(ctx, "", 9)) }, "null",
		},
		{
			"key mapping", "application-key-mappings.json", "/application-key-mappings",
			url.Values{"consumerKey": {"partner-portal-prod"}, "keymanager": {"Corp Keycloak"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.KeyMapping(ctx, "", "partner-portal-prod", "Corp Keycloak"))
			}, `"ApplicationID":2`,
		},
		{
			"key mapping of the resident key manager by its old name", "application-key-mappings.json", "/application-key-mappings",
			url.Values{"consumerKey": {"mobProdK3y0000000000000001AbC"}, "keymanager": {"Default"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.KeyMapping(ctx, "", "mobProdK3y0000000000000001AbC", "Default"))
			}, `"ApplicationID":1`,
		},
		{
			"key mapping of another key manager", "application-key-mappings.json", "/application-key-mappings",
			url.Values{"consumerKey": {"partner-portal-prod"}, "keymanager": {"Resident Key Manager"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.KeyMapping(ctx, "", "partner-portal-prod", "Resident Key Manager"))
			}, "null",
		},
		{
			"subscription by numbers", "subscriptions.json", "/subscriptions",
			url.Values{"apiId": {"1"}, "appId": {"2"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.Subscription(ctx, "", SubscriptionQuery{APIID: 1, AppID: 2, APIUUID: "not looked at"}))
			}, `"SubscriptionState":"PROD_ONLY_BLOCKED"`,
		},
		{
			"subscription by UUIDs", "subscriptions.json", "/subscriptions",
			url.Values{"apiUUID": {"4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41"}, "applicationUUID": {"1B6F2A34-90CD-4E12-8A77-11C0FFEE0001"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.Subscription(ctx, "", SubscriptionQuery{APIUUID: "4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41", ApplicationUUID: "1B6F2A34-90CD-4E12-8A77-11C0FFEE0001"}))
			}, `"SubscriptionID":1,`,
		},
		{
			"subscription policy", "subscription-policies.json", "/subscription-policies",
			url.Values{"policyName": {"Silver"}},
			"example.org",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.SubscriptionPolicy(ctx, "example.org", "Silver"))
			}, `"Count":2000`,
		},
		{
			"application policy", "application-policies.json", "/application-policies",
			url.Values{"policyName": {"DataPlan50MB"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.ApplicationPolicy(ctx, "", "DataPlan50MB"))
			}, `"Bytes":52428800`,
		},
		{
			"API policy", "api-policies.json", "/api-policies",
			url.Values{"policyName": {"10KPerMin"}},
			"",
			func(ctx context.Context, c *Client) (any, error) { return wrap(c.APIPolicy(ctx, "", "10KPerMin")) }, `"Count":10000`,
		},
		{
			"global policy", "global-policies.json", "/global-policies",
			url.Values{"policyName": {"PerUserPerApp"}},
			"",
			func(ctx context.Context, c *Client) (any, error) {
				return wrap(c.GlobalPolicy(ctx, "", "PerUserPerApp"))
			}, `"KeyTemplate":"$appId:$userId"`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/internal/data/v1"+tc.path || r.Header.Get("xWSO2Tenant") != tc.tenant {
					t.Errorf("asked %s for tenant %q", r.URL.Path, r.Header.Get("xWSO2Tenant"))
				}
				if diff := cmp.Diff(tc.query, r.URL.Query()); diff != "" {
					t.Errorf("query (-want +got):\n%s", diff)
				}
				w.Write(sample(t, tc.file))
			})
			got, err := tc.fetch(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), tc.want) {
				t.Errorf("row %s lacks %s", text, tc.want)
			}
		})
	}
}

// archive builds the zip of /runtime-artifacts.
func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range files {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, text)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	pizzaFile   = "4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41-a1000000-0000-4000-8000-000000000001.zip"
	weatherFile = "8a2d7f10-1c3b-4e5d-8f60-7a9b0c1d2e52-a1000000-0000-4000-8000-000000000002.zip"
)

func sampleArchive(t testing.TB) []byte {
	return archive(t, map[string]string{
		"deployments.json":    string(sample(t, "runtime-artifacts-deployments.json")),
		"env_properties.json": string(sample(t, "runtime-artifacts-env_properties.json")),
		pizzaFile:             "PK pizza",
		"apis/" + weatherFile: "PK weather",
	})
}

func TestArtifacts(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		want := url.Values{"type": {"Envoy"}, "gatewayLabel": {base64.StdEncoding.EncodeToString([]byte("Default|Edge EU"))}, "organizationId": {"ALL"}, "apiId": {"x"}}
		if diff := cmp.Diff(want, r.URL.Query()); diff != "" {
			t.Errorf("query (-want +got):\n%s", diff)
		}
		w.Header().Set("Content-Type", "application/zip")
		w.Write(sampleArchive(t))
	})
	got, err := c.Artifacts(t.Context(), ArtifactQuery{Tenant: "*", Labels: []string{"Default", "Edge EU"}, APIUUID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 {
		t.Fatalf("%d artifacts, want 3", len(got))
	}
	want := Artifact{
		File: weatherFile, Project: []byte("PK weather"), APIUUID: "8a2d7f10-1c3b-4e5d-8f60-7a9b0c1d2e52", RevisionUUID: "a1000000-0000-4000-8000-000000000002",
		Deployments: []Deployment{{"Default", "gw.example.test"}, {"Edge EU", "eu.gw.example.test"}}, Organization: "carbon.super", APIContext: "/weather/v2", Version: "v2",
		EndpointOverrides: map[string]EndpointOverride{"Default": {"https://weather.backend.example.test/api", "https://weather-sbx.backend.example.test/api"}},
	}
	if diff := cmp.Diff(want, got[1]); diff != "" {
		t.Errorf("second artifact (-want +got):\n%s", diff)
	}
	if got[0].Err != nil || string(got[0].Project) != "PK pizza" {
		t.Errorf("first artifact: %v, %q", got[0].Err, got[0].Project)
	}
	if got[2].Err == nil || !strings.Contains(got[2].Err.Error(), "which the zip lacks") || got[2].APIContext != "/books/1.0.0" {
		t.Errorf("the project that the zip lacks: %+v", got[2])
	}
	hosts, by := got[1].Environments()
	if diff := cmp.Diff([]string{"eu.gw.example.test", "gw.example.test"}, hosts); diff != "" || by["eu.gw.example.test"][0] != "Edge EU" {
		t.Errorf("hosts %v, environments %v", hosts, by)
	}
}

func TestArtifactsOfASet(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.Path != "/internal/data/v1/retrieve-api-artifacts" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("asked %s %s with %s", r.Method, r.URL.Path, r.Header.Get("Content-Type"))
		}
		sameJSON(t, sample(t, "retrieve-api-artifacts-request.json"), body)
		w.Write(sampleArchive(t))
	})
	got, err := c.Artifacts(t.Context(), ArtifactQuery{UUIDs: []string{"4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41", "c3e4d5f6-2b1a-4c3d-9e8f-6a7b8c9d0e63"}})
	if err != nil || len(got) != 3 {
		t.Errorf("%d artifacts, %v", len(got), err)
	}
}

func TestArtifactsNoneBadAndHostile(t *testing.T) {
	deployments := func(entries string) string { return `{"data":{"deployments":[` + entries + `]}}` }
	for _, tc := range []struct {
		name      string
		handler   http.HandlerFunc
		artifacts int
		none      bool // ErrNoArtifacts
		kind      Kind
		text      string
		projectOf string // part of the Err of the only artifact
	}{
		{name: "404 that says there are none", handler: status(404, string(sample(t, "runtime-artifacts-not-found.json")))},
		{name: "204", handler: status(204, "")},
		{name: "empty JSON list", handler: answerText("application/json", `{"count":0,"list":[]}`)},
		{name: "404 of 3.2", handler: status(404, "not found"), none: true, kind: NotFound, text: "serves no artifacts"},
		{name: "unknown type", handler: status(400, `{"message":"valid types: Synapse"}`), none: true, kind: Rejected, text: "valid types: Synapse"},
		{name: "Synapse artifacts", handler: answerText("application/json", string(sample(t, "runtime-artifacts-synapse.json"))), none: true, kind: Bad, text: "own gateway's"},
		{name: "server fault", handler: status(500, ""), kind: Server, text: "500"},
		{name: "wrong password", handler: status(401, ""), kind: Refused, text: "password"},
		{name: "a page", handler: answerText("text/html", "<html>"), kind: Bad, text: "text/html, not JSON"},
		{name: "empty body", handler: answerText("application/zip", ""), kind: Bad, text: "body is empty"},
		{name: "truncated zip", handler: answerText("application/zip", string(sampleArchive(t)[:400])), kind: Bad, text: "zip is damaged"},
		{name: "no deployments.json", handler: answerText("application/zip", string(archive(t, map[string]string{"a.zip": "x"}))), kind: Bad, text: "lacks deployments.json"},
		{name: "deployments.json is no JSON", handler: answerText("application/zip", string(archive(t, map[string]string{"deployments.json": "{"}))), kind: Bad, text: "deployments.json in the zip"},
		{name: "larger than the cap", handler: answerText("application/zip", strings.Repeat("P", 3<<20)), kind: Bad, text: "too large"},
		{name: "name that leads outside", handler: answerText("application/zip", string(archive(t, map[string]string{
			"deployments.json": deployments(`{"apiFile":"../../etc/passwd"}`), "x": "y",
		}))), artifacts: 1, projectOf: "zip lacks"},
		{name: "entry without a name", handler: answerText("application/zip", string(archive(t, map[string]string{
			"deployments.json": deployments(`{"version":"1"}`),
		}))), artifacts: 1, projectOf: "without apiFile"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := serve(t, tc.handler, func(o *Options) { o.MaxArtifactBytes = 1 << 20 })
			got, err := c.Artifacts(t.Context(), ArtifactQuery{})
			if errors.Is(err, ErrNoArtifacts) != tc.none || KindOf(err) != tc.kind {
				t.Fatalf("error %v of kind %v, want kind %v, none %v", err, KindOf(err), tc.kind, tc.none)
			}
			if err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("message %q lacks %q", err, tc.text)
			}
			if len(got) != tc.artifacts {
				t.Fatalf("%d artifacts, want %d", len(got), tc.artifacts)
			}
			if tc.projectOf != "" && (got[0].Err == nil || !strings.Contains(got[0].Err.Error(), tc.projectOf)) {
				t.Errorf("the artifact's error %v lacks %q", got[0].Err, tc.projectOf)
			}
		})
	}
}

func TestArchiveBounds(t *testing.T) {
	entry := `{"data":{"deployments":[{"apiFile":"a.zip"},{"apiFile":"bomb.zip"},{"apiFile":"b.zip"}]}}`
	body := archive(t, map[string]string{"deployments.json": entry, "a.zip": "small", "bomb.zip": strings.Repeat("\x00", 5000), "b.zip": strings.Repeat("b", 900)})
	got, err := readArchive(body, bounds{entries: 4, project: 1000, descriptor: 1000, all: 2000})
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Err != nil || got[1].Err == nil || !strings.Contains(got[1].Err.Error(), "larger than the 1000 bytes") || got[2].Err != nil {
		t.Errorf("errors are %v, %v, %v", got[0].Err, got[1].Err, got[2].Err)
	}
	for name, most := range map[string]bounds{
		"3 entries, more":  {3, 1000, 1000, 2000},
		"deployments.json": {4, 1000, 10, 2000},
	} {
		if _, err := readArchive(body, most); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	got, err = readArchive(body, bounds{4, 1000, 1000, int64(len(entry)) + 100})
	if err != nil || got[0].Err != nil || got[2].Err == nil {
		t.Errorf("with little left in all: %v, %+v", err, got)
	}
}

func sameJSON(t *testing.T, want, got []byte) {
	t.Helper()
	var w, g any
	if err := errors.Join(json.Unmarshal(want, &w), json.Unmarshal(got, &g)); err != nil {
		t.Error(err)
		return
	}
	if diff := cmp.Diff(w, g); diff != "" {
		t.Errorf("body (-want +got):\n%s", diff)
	}
}

// notified answers one call and checks its method, path and body.
func notified(t *testing.T, method, path, request string, code int, answer string) *Client {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != method || r.URL.Path != "/internal/data/v1"+path {
			t.Errorf("asked %s %s", r.Method, r.URL.Path)
		}
		sameJSON(t, sample(t, request), body)
		w.WriteHeader(code)
		io.WriteString(w, answer)
	})
}

func TestNotificationsSendTheSamples(t *testing.T) {
	acks := []Acknowledgement{
		{APIUUID: "4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41", RevisionID: 1, Deployed: []Deployment{{"Default", "gw.example.test"}}},
		{APIUUID: "8a2d7f10-1c3b-4e5d-8f60-7a9b0c1d2e52", RevisionID: 3, Deployed: []Deployment{{"Default", "gw.example.test"}, {"Edge EU", "eu.gw.example.test"}}},
	}
	gone := Undeployment{"c3e4d5f6-2b1a-4c3d-9e8f-6a7b8c9d0e63", "a1000000-0000-4000-8000-000000000003", "Default"}
	const id = "f7e6d5c4-b3a2-4190-8877-665544332211"
	statuses := []DeploymentStatus{
		{GatewayID: id, APIUUID: "4f1c0c5e-6b0a-4a8e-9f7e-0b8d1a2c3d41", TenantDomain: "carbon.super", RevisionUUID: "a1000000-0000-4000-8000-000000000001", At: time.UnixMilli(1767225601000)},
		{
			GatewayID: id, APIUUID: "c3e4d5f6-2b1a-4c3d-9e8f-6a7b8c9d0e63", TenantDomain: "carbon.super", RevisionUUID: "a1000000-0000-4000-8000-000000000003", At: time.UnixMilli(1767225602000),
			Failed: true, ErrorCode: 900001, ErrorMessage: "schema.graphql could not be parsed",
		},
	}
	for _, tc := range []struct {
		name, method, path, request string
		send                        func(context.Context, *Client) error
	}{
		{"deployed", "PATCH", "/apis/deployed-revisions", "deployed-revisions-request.json", func(ctx context.Context, c *Client) error { return c.Acknowledge(ctx, "", acks) }},
		{"undeployed", "POST", "/apis/undeployed-revision", "undeployed-revision-request.json", func(ctx context.Context, c *Client) error { return c.AcknowledgeUndeployed(ctx, "", gone) }},
		{"status", "POST", "/notify-api-deployment-status", "notify-api-deployment-status-request.json", func(ctx context.Context, c *Client) error { return c.NotifyDeploymentStatus(ctx, statuses) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.send(t.Context(), notified(t, tc.method, tc.path, tc.request, 200, "")); err != nil {
				t.Error(err)
			}
			if err := tc.send(t.Context(), notified(t, tc.method, tc.path, tc.request, 404, "")); !errors.Is(err, ErrUnsupported) {
				t.Errorf("an older server gives %v, want ErrUnsupported", err)
			}
			if err := tc.send(t.Context(), notified(t, tc.method, tc.path, tc.request, 400, "revision unknown")); KindOf(err) != Rejected || !strings.Contains(err.Error(), "revision unknown") {
				t.Errorf("a bad request gives %v", err)
			}
		})
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("organizationId") != "example.org" || r.Header.Get("xWSO2Tenant") != "example.org" {
			t.Errorf("tenant is asked by %q and header %q", r.URL.RawQuery, r.Header.Get("xWSO2Tenant"))
		}
	})
	if err := errors.Join(c.Acknowledge(t.Context(), "example.org", acks), c.AcknowledgeUndeployed(t.Context(), "example.org", gone)); err != nil {
		t.Error(err)
	}
	silent := serve(t, func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was asked though there is nothing to report", r.URL.Path)
	})
	if err := errors.Join(silent.Acknowledge(t.Context(), "", nil), silent.NotifyDeploymentStatus(t.Context(), nil)); err != nil {
		t.Error(err)
	}
}

func TestRegistration(t *testing.T) {
	const id = "f7e6d5c4-b3a2-4190-8877-665544332211"
	g := Gateway{ID: id, Labels: []string{"Default", "Edge EU"}, Tenants: []string{"carbon.super"}, Properties: map[string]string{"hostname": "gw-1.example.test", "version": "0.1.0"}}
	registerAt, beatAt := time.UnixMilli(1767225600000), time.UnixMilli(1767225630000)
	for _, tc := range []struct {
		name   string
		code   int
		answer string
		want   Registration
		id     string
		kind   Kind
	}{
		{"registered", 200, string(sample(t, "notify-gateway-register-response.json")), Registered, id, 0},
		{"acknowledged, with another id", 200, `{"status":"acknowledged","gatewayId":"other"}`, Acknowledged, "other", 0},
		{"another status", 200, `{"status":"re-register"}`, RegisterAgain, id, 0},
		{"no status", 200, `{}`, RegisterAgain, id, 0},
		{"older server", 404, "", RegistrationUnsupported, id, 0},
		{"server fault", 500, "", 0, id, Server},
		{"no JSON", 200, "<html>", 0, id, Bad},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gotID, got, err := notified(t, "POST", "/notify-gateway", "notify-gateway-register-request.json", tc.code, tc.answer).Register(t.Context(), g, registerAt)
			if got != tc.want || gotID != tc.id || KindOf(err) != tc.kind || (err != nil) != (tc.kind != 0) {
				t.Errorf("register: %v, %v, %v; want %v, %v, kind %v", gotID, got, err, tc.id, tc.want, tc.kind)
			}
			got, err = notified(t, "POST", "/notify-gateway", "notify-gateway-heartbeat-request.json", tc.code, tc.answer).Heartbeat(t.Context(), g, beatAt)
			if got != tc.want || KindOf(err) != tc.kind {
				t.Errorf("heartbeat: %v, %v; want %v, kind %v", got, err, tc.want, tc.kind)
			}
		})
	}
}

func TestBackoffStaysWithinItsBounds(t *testing.T) {
	kinds := []struct {
		err  error
		low  time.Duration
		most time.Duration
	}{
		{&Error{Kind: Unreachable}, 0, time.Second},
		{&Error{Kind: Server}, 0, 15 * time.Second},
		{&Error{Kind: Bad}, 0, 15 * time.Second},
		{&Error{Kind: Refused}, 45 * time.Second, time.Minute},
		{&Error{Kind: NotFound}, 45 * time.Second, time.Minute},
		{fmt.Errorf("wrapped: %w", &Error{Kind: Unreachable}), 0, time.Second},
		{errors.New("something else"), 0, 15 * time.Second},
	}
	rapid.Check(t, func(t *rapid.T) {
		var b Backoff
		for range rapid.IntRange(1, 200).Draw(t, "failures") {
			k := kinds[rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")]
			if rapid.IntRange(0, 9).Draw(t, "success") == 0 {
				b.Reset()
			}
			if d := b.Next(k.err); d <= k.low || d > k.most {
				t.Fatalf("%v waits %v, want more than %v and at most %v", k.err, d, k.low, k.most)
			}
		}
	})
}

func TestBackoffGrowsAndBeginsAgain(t *testing.T) {
	var b Backoff
	server := &Error{Kind: Server}
	first := b.Next(server)
	for range 10 {
		b.Next(server)
	}
	late := b.Next(server)
	if first > 1500*time.Millisecond || late < 8*time.Second {
		t.Errorf("first %v, late %v: want about 1 s, then about 12 s", first, late)
	}
	if d := b.Next(&Error{Kind: Unreachable}); d > 400*time.Millisecond {
		t.Errorf("the first delay of another kind is %v, want about 250 ms", d)
	}
	b.Next(server)
	b.Reset()
	if d := b.Next(server); d > 1500*time.Millisecond {
		t.Errorf("after a success the first delay is %v, want about 1 s", d)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(sampleArchive(f))
	f.Add(archive(f, map[string]string{"deployments.json": `{"data":{"deployments":[{"apiFile":"a"},{"apiFile":"../a.zip","environments":null}]}}`, "a.zip": "x"}))
	f.Add([]byte("PK\x03\x04"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := readArchive(data, bounds{100, 1 << 20, 1 << 20, 4 << 20})
		if err != nil && got != nil {
			t.Error("artifacts beside an error")
		}
		for _, a := range got {
			if (a.Err == nil) != (a.Project != nil) {
				t.Errorf("%q: error %v with %d bytes", a.File, a.Err, len(a.Project))
			}
		}
	})
}
