package integration_test

import (
	"archive/zip"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/broker"
)

// recordedService is an API Manager's internal data service over HTTPS that answers with the recordings of samples/rest.
type recordedService struct {
	t        testing.TB
	emulator *emulator.Emulator
	server   *httptest.Server
	ca       []byte // PEM

	mu       sync.Mutex
	lists    map[string]string // path to file
	rows     map[string]func(row map[string]any, q url.Values) bool
	bodies   map[string][]byte // path to an answer that is no file: the archive, key managers of this machine
	withheld map[string]func(row map[string]any) bool
	status   map[string]int // path to a status other than 200
	refuse   bool           // every request, as one with a wrong password
	requests []recordedRequest
}

type recordedRequest struct {
	method, path string
	query        url.Values
	tenant       string
	body         []byte
}

const dataService = "/internal/data/v1"

func restFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(samplesFolder, "rest", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}

// field makes a filter of query parameters and the fields of a row that they are compared with.
func field(names map[string]string) func(map[string]any, url.Values) bool {
	return func(row map[string]any, q url.Values) bool {
		for parameter, name := range names {
			if q.Has(parameter) && text(row[name]) != q.Get(parameter) {
				return false
			}
		}
		return true
	}
}

func startRecordedService(t *testing.T, emu *emulator.Emulator) *recordedService {
	t.Helper()
	s := &recordedService{
		t: t, emulator: emu,
		lists: map[string]string{
			"/apis": "apis.json", "/applications": "applications.json", "/application-key-mappings": "application-key-mappings.json",
			"/subscriptions": "subscriptions.json", "/subscription-policies": "subscription-policies.json",
			"/application-policies": "application-policies.json", "/api-policies": "api-policies.json", "/scopes": "scopes.json",
			"/block": "block.json", "/keyTemplates": "keyTemplates.json", "/revokedjwt": "revokedjwt.json",
			"/notify-gateway": "notify-gateway-register-response.json", "/notify-api-deployment-status": "notify-api-deployment-status-response.json",
			"/apis/deployed-revisions": "", "/apis/undeployed-revision": "",
		},
		rows: map[string]func(map[string]any, url.Values) bool{
			"/apis":                     field(map[string]string{"apiId": "uuid", "context": "context", "version": "version"}),
			"/applications":             field(map[string]string{"appId": "id"}),
			"/application-key-mappings": field(map[string]string{"consumerKey": "consumerKey", "keymanager": "keyManager"}),
			"/subscriptions":            field(map[string]string{"apiId": "apiId", "appId": "appId"}),
			"/subscription-policies":    field(map[string]string{"policyName": "name"}),
			"/application-policies":     field(map[string]string{"policyName": "name"}),
			"/api-policies":             field(map[string]string{"policyName": "name"}),
		},
		bodies:   map[string][]byte{},
		withheld: map[string]func(map[string]any) bool{},
		status:   map[string]int{},
	}
	s.bodies["/keymanagers"] = localKeyManagers(t, emu)
	s.bodies["/runtime-artifacts"] = recordedArchive(t, emu, nil)
	s.server = httptest.NewTLSServer(s)
	t.Cleanup(s.server.Close)
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
	return s
}

// bySample are the recordings of single rows: what asks for them, and the file.
var bySample = []struct{ path, query, file string }{
	{"/apis", "context=/pizza/1.0.0&version=1.0.0", "apis-by-context-version.json"},
	{"/applications", "appId=2", "applications-by-id.json"},
	{"/application-key-mappings", "consumerKey=partner-portal-prod", "application-key-mappings-by-key.json"},
	{"/subscriptions", "apiId=1&appId=1", "subscriptions-by-api-and-app.json"},
	{"/subscription-policies", "policyName=Gold", "subscription-policies-by-name.json"},
	{"/application-policies", "policyName=50PerMin", "application-policies-by-name.json"},
	{"/api-policies", "policyName=10KPerMin", "api-policies-by-name.json"},
}

// ServeHTTP answers with the recording of a path; a query for rows with the recording of that row, or the rows of the list.
func (s *recordedService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	path := strings.TrimPrefix(r.URL.Path, dataService)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, recordedRequest{r.Method, path, r.URL.Query(), r.Header.Get("xWSO2Tenant"), body})
	user, password, _ := r.BasicAuth()
	file, known := s.lists[path]
	answer, made := s.bodies[path]
	switch {
	case s.refuse || user != "admin" || password != "admin":
		s.send(w, http.StatusUnauthorized, restFile(s.t, "error-401.json"))
	case s.status[path] == http.StatusNotFound:
		s.send(w, http.StatusNotFound, restFile(s.t, "runtime-artifacts-not-found.json"))
	case made:
		s.send(w, http.StatusOK, answer)
	case !known:
		s.t.Errorf("the gateway asked for %s %s, which no sample answers", r.Method, r.URL)
		http.NotFound(w, r)
	case file == "":
		w.WriteHeader(http.StatusOK) // nothing is said
	case path == "/notify-gateway" && bytes.Contains(body, []byte("HEARTBEAT")):
		s.send(w, http.StatusOK, restFile(s.t, "notify-gateway-heartbeat-response.json"))
	case s.rows[path] != nil:
		s.send(w, http.StatusOK, s.list(path, file, r.URL.Query()))
	default:
		s.send(w, http.StatusOK, restFile(s.t, file))
	}
}

func (s *recordedService) send(w http.ResponseWriter, status int, body []byte) {
	kind := "application/json"
	if bytes.HasPrefix(body, []byte("PK")) {
		kind = "application/zip"
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the gateway went away
}

// list is a recorded list. What asks for rows gets the recording of that question where there is one. Withheld rows are in
// no list, but are found by whoever asks for them.
func (s *recordedService) list(path, file string, q url.Values) []byte {
	asks := url.Values{}
	for name, v := range q {
		if name != "gatewayLabel" && name != "expand" && name != "keymanager" {
			asks[name] = v
		}
	}
	for _, by := range bySample {
		if by.path == path && maps.EqualFunc(s.query(by.query), asks, slices.Equal) {
			return restFile(s.t, by.file)
		}
	}
	return filtered(s.t, restFile(s.t, file), func(row map[string]any) bool {
		if hidden := s.withheld[path]; hidden != nil && len(asks) == 0 && hidden(row) {
			return false
		}
		return s.rows[path](row, q)
	})
}

func (s *recordedService) query(text string) url.Values {
	q, err := url.ParseQuery(text)
	if err != nil {
		s.t.Error(err)
	}
	return q
}

// setBody gives a request a body.
func setBody(r *http.Request, body string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Type", "application/json")
}

// replayKeyManager publishes keymanager-event.json with a key set of this machine.
func (w *restWorld) replayKeyManager(t *testing.T, jwks string) {
	t.Helper()
	var body struct {
		Event struct {
			PayloadData map[string]any `json:"payloadData"`
		} `json:"event"`
	}
	if err := json.Unmarshal(restFile(t, "keymanager-event.json"), &body); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(body.Event.PayloadData["value"].(string))
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.ReplaceAll(raw, []byte("https://sso.example.test/realms/corp/protocol/openid-connect/certs"), []byte(jwks))
	body.Event.PayloadData["value"] = base64.StdEncoding.EncodeToString(raw)
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	w.emu.Hub().PublishRaw(broker.Message{
		Topic: broker.TopicKeyManager, ContentType: "text/plain", ContentEncoding: "UTF-8", TimestampMillis: time.Now().UnixMilli(), Body: text,
	})
}

// filtered keeps some rows of an answer.
func filtered(t testing.TB, body []byte, keep func(map[string]any) bool) []byte {
	t.Helper()
	var answer struct {
		Count      int              `json:"count"`
		List       []map[string]any `json:"list"`
		Pagination any              `json:"pagination"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&answer); err != nil {
		t.Error(err)
		return nil
	}
	list := []map[string]any{}
	for _, row := range answer.List {
		if keep(row) {
			list = append(list, row)
		}
	}
	answer.List, answer.Count = list, len(list)
	b, err := json.Marshal(answer)
	if err != nil {
		t.Error(err)
	}
	return b
}

// asked are the requests of a path so far.
func (s *recordedService) asked(method, path string) []recordedRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []recordedRequest
	for _, r := range s.requests {
		if r.method == method && r.path == path {
			out = append(out, r)
		}
	}
	return out
}

// answer replaces what a path answers.
func (s *recordedService) answer(path, file string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists[path] = file
}

// localKeyManagers is keymanagers.json with key sets of this machine: those of the emulator's two issuers.
func localKeyManagers(t testing.TB, emu *emulator.Emulator) []byte {
	t.Helper()
	return []byte(strings.NewReplacer(
		"https://apim.example.test:9443/oauth2/jwks", emu.URL()+emu.Resident().JWKSPath(),
		"https://sso.example.test/realms/corp/protocol/openid-connect/certs", emu.IssuerConfiguration()["certificate_value"].(string),
	).Replace(string(restFile(t, "keymanagers.json"))))
}

// books is the GraphQL API of the recordings. Queries are not read in this release, so no request to such an API is let
// through; here its project says that it is a plain API, so that what its subscriptions allow can be asked at all.
const books = "c3e4d5f6-2b1a-4c3d-9e8f-6a7b8c9d0e63"

func plainBooks(t testing.TB, e *emulator.Emulator) {
	t.Helper()
	s := e.Silent()
	_, err := s.UpdateAPI(books, func(a *emulator.API) {
		a.APIType = "HTTP"
		a.URLMappings = []emulator.URLMapping{{AuthScheme: "Any", ThrottlingPolicy: "Unlimited", HTTPMethod: "POST", URLPattern: "/*"}}
	})
	if err == nil {
		_, err = s.DeployAPI(books, "Default")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// recordedArchive is the archive of /runtime-artifacts: the recorded deployments.json and env_properties.json, and a project
// for each file that they name. broken are APIs whose project cannot be read.
func recordedArchive(t testing.TB, emu *emulator.Emulator, broken []string) []byte {
	t.Helper()
	projects := projectsOf(t, emu)
	var deployments struct {
		Data struct {
			Deployments []struct {
				APIFile string `json:"apiFile"`
			} `json:"deployments"`
		} `json:"data"`
	}
	if err := json.Unmarshal(restFile(t, "runtime-artifacts-deployments.json"), &deployments); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	write := func(name string, body []byte) {
		f, err := z.Create(name)
		if err == nil {
			_, err = f.Write(body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("deployments.json", restFile(t, "runtime-artifacts-deployments.json"))
	write("env_properties.json", restFile(t, "runtime-artifacts-env_properties.json"))
	for _, d := range deployments.Data.Deployments {
		api := d.APIFile[:36]
		project := projects[api]
		if slices.Contains(broken, api) {
			project = []byte("this is no archive")
		}
		write(d.APIFile, project)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// projectsOf are the projects that the emulated API Manager makes of apis.json, by UUID.
func projectsOf(t testing.TB, emu *emulator.Emulator) map[string][]byte {
	t.Helper()
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(emu.CAPEM())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, emu.URL()+dataService+"/runtime-artifacts?type=Envoy&gatewayLabel="+
		url.QueryEscape(base64.StdEncoding.EncodeToString([]byte("Default"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", "admin")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	out := map[string][]byte{}
	for _, f := range z.File {
		if filepath.Ext(f.Name) != ".zip" {
			continue
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if out[f.Name[:36]], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	return out
}
