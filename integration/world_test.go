package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/agent"
	"gatehouse/agent/config"
	"gatehouse/agent/telemetry"
	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/issuer"
)

// worldOptions say what stands around the gateway under test.
type worldOptions struct {
	// eventHub is the broker: "" for a NATS server inside of the emulator.
	eventHub string
	// gatewayHub is the broker's URL as the gateway has it, where it is not the emulator's: a fault proxy.
	gatewayHub string
	// serviceURL replaces the emulator's URL in the gateway's configuration: a fault proxy.
	serviceURL string
	emulator   emulator.Options
	// fill gives the emulated API Manager its data before the gateway starts.
	fill func(t testing.TB, e *emulator.Emulator)
	// dataDir is kept by the caller, for restarts; "" makes one.
	dataDir string
	// sections are added to the configuration; eventHubKeys to [apim.event_hub].
	sections, eventHubKeys string
	// gatewayKeys and listenerKeys are added to [gateway] and to [listener].
	gatewayKeys, listenerKeys string
	// extraCA is trusted beside the emulator's authority, PEM.
	extraCA []byte
	// waitReady is how long the gateway may take; 0 means 20 s, negative does not wait.
	waitReady time.Duration
	// agent, where not nil, changes what the gateway is made of.
	agent func(*agent.Options)
}

// world is an emulated API Manager with a gateway that it governs.
type world struct {
	t       testing.TB
	emu     *emulator.Emulator
	gateway *gateway
}

// gateway is a gateway under test, in this process, configured by a file as an operator would.
type gateway struct {
	t      testing.TB
	agent  *agent.Agent
	http   string // URL
	admin  string // URL
	log    *lockedBuffer
	config string // path
	cancel context.CancelFunc
	ended  chan error
}

// startWorld starts an emulated API Manager and a gateway. Both end with the test.
func startWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	w := &world{t: t, emu: startEmulator(t, o)}
	w.gateway = startGateway(t, w.emu, o)
	return w
}

func startEmulator(t testing.TB, o worldOptions) *emulator.Emulator {
	t.Helper()
	eo := o.emulator
	eo.EventHub = o.eventHub
	if eo.VHost == "" {
		eo.VHost = "localhost"
	}
	emu, err := emulator.New(eo)
	if err != nil {
		t.Fatalf("start the emulated API Manager: %v", err)
	}
	t.Cleanup(emu.Close)
	if o.fill != nil {
		o.fill(t, emu)
	}
	return emu
}

// startGateway starts a gateway for an emulated API Manager and, unless told otherwise, waits until it is ready.
func startGateway(t testing.TB, emu *emulator.Emulator, o worldOptions) *gateway {
	t.Helper()
	dir := t.TempDir()
	if o.dataDir == "" {
		o.dataDir = filepath.Join(dir, "data")
	}
	if o.gatewayHub == "" {
		o.gatewayHub = emu.Hub().URL()
	}
	if o.serviceURL == "" {
		o.serviceURL = emu.URL()
	}
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, append(emu.CAPEM(), o.extraCA...), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gatehouse.toml")
	text := fmt.Sprintf(`
[listener]
http = "127.0.0.1:0"
%[10]s
[admin]
address = "127.0.0.1:0"
[gateway]
data_dir = %[1]q
drain_delay = "0s"
%[9]s
[apim.event_hub]
service_url = %[2]q
username = "admin"
password = "admin"
event_listening_endpoints = [%[3]q]
ca_file = %[4]q
resync_jitter = "10ms"
%[5]s
[apim.throttling]
ca_file = %[4]q
[[apim.throttling.url_group]]
traffic_manager_urls = ["tcp://%[6]s"]
traffic_manager_auth_urls = ["ssl://%[7]s"]
[standalone]
apis = ""
policies = ""
[log]
level = "debug"
%[8]s`, o.dataDir, o.serviceURL, o.gatewayHub, ca, o.eventHubKeys, emu.Receiver().TCPAddress(), emu.Receiver().TLSAddress(), o.sections,
		o.gatewayKeys, o.listenerKeys)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g := runGateway(t, file, o.agent)
	if o.waitReady >= 0 {
		limit := o.waitReady
		if limit == 0 {
			limit = 20 * time.Second
		}
		g.waitReady(limit)
	}
	return g
}

// runGateway runs a gateway of a configuration file until the test ends.
func runGateway(t testing.TB, file string, edits ...func(*agent.Options)) *gateway {
	t.Helper()
	cfg, _, err := config.Load(file, os.LookupEnv)
	if err != nil {
		t.Fatalf("the gateway's configuration: %v", err)
	}
	g := &gateway{t: t, log: &lockedBuffer{}, config: file, ended: make(chan error, 1)}
	level, err := telemetry.NewLevel(cfg.Log.Level)
	if err != nil {
		t.Fatal(err)
	}
	options := agent.Options{
		Config: cfg, Watcher: &config.WatcherOptions{Path: file}, Logger: telemetry.NewLogger(g.log, level), Level: level, Version: "test",
	}
	for _, edit := range edits {
		if edit != nil {
			edit(&options)
		}
	}
	g.agent, err = agent.New(options)
	if err != nil {
		t.Fatalf("make the gateway: %v", err)
	}
	http, _, admin := g.agent.Addresses()
	g.http, g.admin = "http://"+http, "http://"+admin
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	go func() { g.ended <- g.agent.Run(ctx) }()
	t.Cleanup(func() {
		g.stop()
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", g.log.tail(60))
		}
	})
	return g
}

// stop ends the gateway in good order. It may be called twice.
func (g *gateway) stop() {
	g.t.Helper()
	g.cancel()
	select {
	case err := <-g.ended:
		if err != nil {
			g.t.Errorf("the gateway ended with %v", err)
		}
		g.ended <- nil
	case <-time.After(20 * time.Second):
		g.t.Fatal("the gateway did not stop")
	}
}

func (g *gateway) waitReady(limit time.Duration) {
	g.t.Helper()
	select {
	case <-g.agent.Ready():
	case err := <-g.ended:
		g.ended <- err
		g.t.Fatalf("the gateway ended before it was ready: %v", err)
	case <-time.After(limit):
		g.t.Fatalf("not ready after %s: %s", limit, g.get("/health/ready"))
	}
}

// get returns the body of a path of the admin server.
func (g *gateway) get(path string) string {
	g.t.Helper()
	resp, err := adminClient.Get(g.admin + path)
	if err != nil {
		g.t.Fatalf("admin %s: %v", path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatalf("admin %s: %v", path, err)
	}
	return string(body)
}

func (g *gateway) getJSON(path string, v any) {
	g.t.Helper()
	body := g.get(path)
	if err := json.Unmarshal([]byte(body), v); err != nil {
		g.t.Fatalf("admin %s: %v: %s", path, err, body)
	}
}

var adminClient = &http.Client{Timeout: 10 * time.Second}

// tables are the lists of the admin API that make up the state of the gateway.
var tables = []string{
	"apis", "applications", "subscriptions", "key-mappings", "key-managers", "deny-policies", "key-templates", "policies", "throttled-keys",
	"revoked-tokens", "api-keys",
}

// dump is the state of the gateway as the admin API shows it: entries by table and id, without what differs between two
// looks at one state (origins, ages).
type dump map[string]map[string]any

func (g *gateway) dump() dump {
	g.t.Helper()
	return g.dumpAs(stripVolatile)
}

// dumpAs is dump with each entry as shown makes it.
func (g *gateway) dumpAs(shown func(item map[string]any) map[string]any) dump {
	g.t.Helper()
	d := make(dump)
	for _, name := range tables {
		d[name] = make(map[string]any)
		cursor := ""
		for {
			var page struct {
				Items      []map[string]any `json:"items"`
				NextCursor *string          `json:"next_cursor"`
			}
			g.getJSON("/api/v1/"+name+"?limit=1000"+cursor, &page)
			for _, item := range page.Items {
				d[name][entryID(item)] = shown(item)
			}
			if page.NextCursor == nil {
				break
			}
			cursor = "&cursor=" + *page.NextCursor
		}
	}
	return d
}

func entryID(item map[string]any) string {
	for _, k := range []string{"id", "subscription_id", "application_id"} {
		switch v := item[k].(type) {
		case string:
			return v
		case float64:
			return fmt.Sprintf("%.0f", v)
		}
	}
	return fmt.Sprint(item)
}

func stripVolatile(item map[string]any) map[string]any {
	for _, k := range []string{"origin", "deployed_from", "keys", "revision"} {
		delete(item, k)
	}
	return item
}

// diff lists what differs between two dumps: "+ table id entry", "- table id entry".
func (before dump) diff(after dump) []string {
	var out []string
	line := func(sign, name, id string, v any) {
		text, _ := json.Marshal(v)
		out = append(out, fmt.Sprintf("%s %s %s %s", sign, name, id, text))
	}
	for _, name := range tables {
		ids := slices.Collect(maps.Keys(before[name]))
		for id := range after[name] {
			if _, known := before[name][id]; !known {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		for _, id := range ids {
			b, had := before[name][id]
			a, has := after[name][id]
			bt, _ := json.Marshal(b)
			at, _ := json.Marshal(a)
			if had == has && bytes.Equal(bt, at) {
				continue
			}
			if had {
				line("-", name, id, b)
			}
			if has {
				line("+", name, id, a)
			}
		}
	}
	return out
}

// answer is what a request to the gateway got.
type answer struct {
	status int
	code   int // of the fault, 0 for none
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d/%d %s", a.status, a.code, a.body) }

// call sends a request through the gateway. token "" sends none.
func (g *gateway) call(method, path, token string, edit ...func(*http.Request)) answer {
	g.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, g.http+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Host = "localhost"
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for _, e := range edit {
		e(req)
	}
	resp, err := callClient.Do(req)
	if err != nil {
		g.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(body)}
	var fault struct {
		Fault struct {
			Code int `json:"code"`
		} `json:"fault"`
	}
	if json.Unmarshal(body, &fault) == nil {
		a.code = fault.Fault.Code
	}
	return a
}

var callClient = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// eventually polls until ok, for at most limit.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	if !within(limit, ok) {
		t.Fatalf("not within %s: %s", limit, what)
	}
}

func within(limit time.Duration, ok func() bool) bool {
	deadline := time.Now().Add(limit)
	for {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(5 * time.Millisecond)
	}
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

// tail returns the last n lines.
func (b *lockedBuffer) tail(n int) string {
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// mint makes a token of the third-party key manager.
func (w *world) mint(client, user, scope string) string {
	w.t.Helper()
	t, err := w.emu.Issuer().Mint(issuer.Token{ClientID: client, Subject: user, Scope: scope})
	if err != nil {
		w.t.Fatal(err)
	}
	return t.Token
}
