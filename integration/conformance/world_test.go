//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/agent"
	"gatehouse/agent/config"
	"gatehouse/agent/telemetry"
	"gatehouse/integration/emulator"
)

// world is a gateway under test with the emulated API Manager that governs it. It offers one API at path, for which callers
// need a subscription.
type world struct {
	emu         *emulator.Emulator
	api         emulator.API
	agent       *agent.Agent
	http, admin string // URLs
	log         lockedBuffer
}

const path = "/shop/1.0.0/items"

// startWorld starts both. fill gives the API Manager its data first; sections are added to the gateway's configuration;
// authority is trusted, in PEM, beside that of the API Manager. It ends with the test.
func startWorld(t *testing.T, authority []byte, sections string, fill func(w *world)) *world {
	t.Helper()
	emu, err := emulator.New(emulator.Options{VHost: "localhost"})
	if err != nil {
		t.Fatalf("start the emulated API Manager: %v", err)
	}
	t.Cleanup(emu.Close)
	w := &world{emu: emu}
	w.api, err = emu.CreateAPI(emulator.API{
		Name: "Shop", Version: "1.0.0", Context: "/shop/1.0.0", Endpoint: emu.BackendURL(), SandboxEndpoint: emu.BackendURL(), Environments: []string{"Default"},
	})
	if err != nil {
		t.Fatal(err)
	}
	fill(w)
	folder := t.TempDir()
	ca, file := filepath.Join(folder, "ca.crt"), filepath.Join(folder, "gatehouse.toml")
	write(t, ca, append(emu.CAPEM(), authority...))
	write(t, file, fmt.Appendf(nil, `
[listener]
http = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[gateway]
data_dir = %q
drain_delay = "0s"
[apim.event_hub]
service_url = %q
username = "admin"
password = "admin"
event_listening_endpoints = [%q]
ca_file = %q
resync_jitter = "10ms"
[apim.throttling]
ca_file = %[4]q
[[apim.throttling.url_group]]
traffic_manager_urls = ["tcp://%[5]s"]
traffic_manager_auth_urls = ["ssl://%[6]s"]
[standalone]
apis = ""
policies = ""
[log]
level = "debug"
%[7]s`, filepath.Join(folder, "data"), emu.URL(), emu.Hub().URL(), ca, emu.Receiver().TCPAddress(), emu.Receiver().TLSAddress(), sections))
	w.run(t, file)
	return w
}

func (w *world) run(t *testing.T, file string) {
	t.Helper()
	cfg, _, err := config.Load(file, os.LookupEnv)
	if err != nil {
		t.Fatalf("the gateway's configuration: %v", err)
	}
	level, err := telemetry.NewLevel(cfg.Log.Level)
	if err != nil {
		t.Fatal(err)
	}
	w.agent, err = agent.New(agent.Options{
		Config: cfg, Watcher: &config.WatcherOptions{Path: file}, Logger: telemetry.NewLogger(&w.log, level), Level: level, Version: "test",
	})
	if err != nil {
		t.Fatalf("make the gateway: %v", err)
	}
	public, _, admin := w.agent.Addresses()
	w.http, w.admin = "http://"+public, "http://"+admin
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the gateway ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the gateway did not stop")
		}
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", w.log.tail(60))
		}
	})
	select {
	case <-w.agent.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("the gateway ended before it was ready: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the gateway is not ready after 30 s")
	}
}

// subscribe makes an application of alice whose OAuth client at a key manager is consumerKey, and subscribes it.
func (w *world) subscribe(t *testing.T, keyManager, consumerKey string) {
	t.Helper()
	app := w.application(t, keyManager, consumerKey)
	if _, err := w.emu.Subscribe(emulator.Subscription{APIUUID: w.api.UUID, AppID: app.ID, PolicyID: "Unlimited", SubscriptionState: "UNBLOCKED"}); err != nil {
		t.Fatal(err)
	}
}

// application makes the application without a subscription.
func (w *world) application(t *testing.T, keyManager, consumerKey string) emulator.Application {
	t.Helper()
	app, err := w.emu.CreateApplication(emulator.Application{Name: consumerKey + " of " + keyManager, SubName: "alice", Policy: "Unlimited"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.emu.AddKeyMapping(emulator.KeyMapping{ApplicationID: app.ID, ConsumerKey: consumerKey, KeyManager: keyManager}); err != nil {
		t.Fatal(err)
	}
	return app
}

// answer is what a caller got.
type answer struct {
	status, code int // code is that of the fault, 0 for none
	reason       string
	body         string
	id           string // of the request
}

func (a answer) String() string {
	return fmt.Sprintf("%d/%d %q %s", a.status, a.code, a.reason, a.body)
}

var (
	callClient  = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	description = regexp.MustCompile(`error_description="([^"]*)"`)
)

// call asks for the API with a token.
func (w *world) call(token string) (answer, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, w.http+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.Host = "localhost"
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := callClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, body: string(body), id: resp.Header.Get("X-Request-Id")}
	if m := description.FindStringSubmatch(resp.Header.Get("WWW-Authenticate")); m != nil {
		a.reason = m[1]
	}
	var fault struct {
		Fault struct {
			Code int `json:"code"`
		} `json:"fault"`
	}
	if json.Unmarshal(body, &fault) == nil {
		a.code = fault.Fault.Code
	}
	return a, nil
}

// want calls with a token and compares status and code of the fault.
func (w *world) want(t *testing.T, token string, status, code int) answer {
	t.Helper()
	a, err := w.call(token)
	if err != nil {
		t.Fatal(err)
	}
	if a.status != status || a.code != code {
		t.Fatalf("answer %v, want %d/%d; the gateway's own account: %s", a, status, code, w.trace(t, a))
	}
	return a
}

// wantReason is want where the challenge must tell the reason.
func (w *world) wantReason(t *testing.T, token string, status, code int, reason string) {
	t.Helper()
	if a := w.want(t, token, status, code); !strings.Contains(a.reason, reason) {
		t.Errorf("the challenge says %q, want %q in it", a.reason, reason)
	}
}

// trace is how the gateway explains what it did with a request. It must not hold the token.
func (w *world) trace(t *testing.T, a answer) string {
	t.Helper()
	return w.get(t, "/api/v1/explain?request_id="+url.QueryEscape(a.id))
}

// wantTrace calls with a token that must pass, and looks for texts in the account of it.
func (w *world) wantTrace(t *testing.T, token string, texts ...string) {
	t.Helper()
	trace := w.trace(t, w.want(t, token, 200, 0))
	for _, text := range texts {
		if !strings.Contains(trace, text) {
			t.Errorf("the account of the request lacks %s: %s", text, trace)
		}
	}
	if strings.Contains(trace, token) {
		t.Error("the account of the request holds the token")
	}
}

func (w *world) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := callClient.Get(w.admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// verdict is what the gateway finds when it is asked about a token (gatehouse token verify).
type verdict struct {
	Valid      bool   `json:"valid"`
	Failed     string `json:"failed"`
	KeyManager string `json:"key_manager"`
	Claims     object `json:"claims"`
}

func (w *world) verify(t *testing.T, token string) (v verdict) {
	t.Helper()
	body, err := json.Marshal(object{"token": token})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := callClient.Post(w.admin+"/api/v1/token/verify", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("token/verify answers %s, %v", resp.Status, err)
	}
	return v
}

// keySet is what the gateway says of the keys of a key manager.
type keySet struct {
	Keys []struct {
		ID string `json:"kid"`
	} `json:"keys"`
	Fetches   int    `json:"fetches"`
	Failures  int    `json:"failures"`
	LastError string `json:"last_error"`
}

func (s keySet) holds(kid string) bool {
	for _, k := range s.Keys {
		if k.ID == kid {
			return true
		}
	}
	return false
}

func (w *world) keys(t *testing.T, keyManager string) keySet {
	t.Helper()
	var page struct {
		Items []struct {
			Name string `json:"name"`
			Keys keySet `json:"keys"`
		} `json:"items"`
	}
	text := w.get(t, "/api/v1/key-managers?limit=1000")
	if err := json.Unmarshal([]byte(text), &page); err != nil {
		t.Fatalf("key managers of the gateway: %v: %s", err, text)
	}
	for _, item := range page.Items {
		if item.Name == keyManager {
			return item.Keys
		}
	}
	t.Fatalf("the gateway has no key manager %s: %s", keyManager, text)
	return keySet{}
}

// noTokens looks for tokens, client secrets and passwords in the gateway's log.
func (w *world) noTokens(t *testing.T, secrets ...string) {
	t.Helper()
	text := w.log.String()
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("the gateway's log holds the secret that begins with %.8s", secret)
		}
	}
}

// eventually polls until ok, for at most limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// lockedBuffer takes the log of a gateway.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *lockedBuffer) tail(n int) string {
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
