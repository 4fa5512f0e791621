package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/config"
	"gatehouse/keymanager/registry"
)

// otherAuthority has signed nothing.
const otherAuthority = `-----BEGIN CERTIFICATE-----
MIIBjjCCATWgAwIBAgIUFJC4UJFFW7BfjdA9kh1grUymSjgwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRQW5vdGhlciBhdXRob3JpdHkwIBcNMjYxMTI0MTAzNTAyWhgP
MjEyNjEwMzExMDM1MDJaMBwxGjAYBgNVBAMMEUFub3RoZXIgYXV0aG9yaXR5MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEE2GYLpr5Vdt9XizccXXyiupziHRgF1+l
bPncoXjsaBZ6bqTR+X739H02Hj0NpTpA4TRDe9TsgxE9bLpnZXBOmKNTMFEwHQYD
VR0OBBYEFMam7dqGp4+fWRS2UOSr2c96BQImMB8GA1UdIwQYMBaAFMam7dqGp4+f
WRS2UOSr2c96BQImMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIg
QfFIyPRha60JUaD36l3GOFM5CpWbdw/AbbaCBcF/3doCIAV2VPkGlH/jdR6vk03y
WL2Q287WsNYK9M6h9+wlKzxz
-----END CERTIFICATE-----
`

// logged is a log that tests read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// secured is a server with TLS and its certificate in PEM, which is its authority.
func secured(t *testing.T, h http.HandlerFunc) (s *httptest.Server, authority string) {
	t.Helper()
	s = httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// run runs the gateway of a configuration file until the test ends.
func run(t *testing.T, file string) (a *Agent, log *logged) {
	t.Helper()
	cfg, _, err := config.Load(file, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	log = &logged{}
	// Only the test says when the file is read again.
	a, err = New(Options{Config: cfg, Watcher: &config.WatcherOptions{Path: file, Debounce: time.Hour, Poll: time.Hour}, Logger: zerolog.New(log), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-a.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready after 10 s")
	}
	return a, log
}

// await polls until the condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("not within 10 s: %s", what)
}

func TestTheDefaultsOfBackendsChangeWithoutARestart(t *testing.T) {
	release := make(chan struct{})
	backend, authority := secured(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			select {
			case <-r.Context().Done():
			case <-release:
			}
		}
		_, _ = io.WriteString(w, "ok")
	})
	t.Cleanup(func() { close(release) })
	dir := t.TempDir()
	file := writeConfig(t, dir, "")
	write(t, filepath.Join(dir, "apis", "shop.yaml"), fmt.Sprintf(`openapi: 3.0.0
info: {title: Shop, version: "1.0.0"}
x-wso2-basePath: /shop/1.0.0
x-wso2-production-endpoints: {urls: [%q]}
x-wso2-disable-security: true
paths:
  /*:
    get: {}
`, backend.URL))
	ca, bad := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "bad.pem")
	write(t, ca, authority)
	write(t, bad, "no certificate")
	a, log := run(t, file)
	at, _, _ := a.Addresses()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	get := func(path string) int {
		t.Helper()
		r, err := client.Get("http://" + at + "/shop/1.0.0" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		_, _ = io.Copy(io.Discard, r.Body)
		return r.StatusCode
	}
	await(t, "the API is deployed", func() bool { return get("/items") != http.StatusNotFound })
	const trusted = "[upstream.tls]\nca_file = \"ca.pem\"\n"
	steps := []struct {
		name, sections, content string // content: of ca.pem
		fault                   string // what the reload says
		path                    string
		want                    int
	}{
		{"at the start its authority is unknown", "", authority, "", "/items", 502},
		{"a ca_file", trusted, authority, "", "/items", 200},
		{"a ca_file without a certificate changes nothing", "[upstream.tls]\nca_file = \"bad.pem\"\n", authority, file + `:11: upstream.tls.ca_file = "bad.pem": `, "/items", 200},
		{"nor does one that is not there", "[upstream.tls]\nca_file = \"none.pem\"\n", authority, file + `:11: upstream.tls.ca_file = "none.pem": `, "/items", 200},
		{"the file holds another authority", trusted, otherAuthority, "", "/items", 502},
		{"and the right one again", trusted, otherAuthority + authority, "", "/items", 200},
		{"a timeout", "[upstream]\ntimeout = \"1500ms\"\nconnect_timeout = \"1500ms\"\n" + trusted, authority, "", "/slow", 504},
	}
	for _, st := range steps {
		t.Run(st.name, func(t *testing.T) {
			write(t, ca, st.content)
			writeConfig(t, dir, st.sections)
			err := a.Reload()
			if (err != nil) != (st.fault != "") || err != nil && !strings.Contains(err.Error(), st.fault) {
				t.Fatalf("reload: %v, want %q", err, st.fault)
			}
			if st.fault != "" && !strings.Contains(log.String(), strings.ReplaceAll(st.fault, `"`, `\"`)) {
				t.Errorf("the log does not say %s:\n%s", st.fault, log)
			}
			if got := get(st.path); got != st.want {
				t.Errorf("GET %s = %d, want %d", st.path, got, st.want)
			}
		})
	}
	if strings.Contains(log.String(), "next restart") {
		t.Errorf("a key waits for a restart:\n%s", log)
	}
}

// keySet is an empty set of keys.
func keySet(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"keys":[]}`) }

func TestTheContentOfAnIssuersCAFileChanges(t *testing.T) {
	s, authority := secured(t, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{{"kty": "OKP", "crv": "Ed25519", "kid": "k", "alg": "EdDSA", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}})
	})
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	write(t, ca, otherAuthority)
	a := open(t, writeConfig(t, dir, "[[apim.jwt.issuer]]\nname = \"https://i\"\n[apim.jwt.issuer.jwks]\nurl = \""+s.URL+"\"\nca_file = \"ca.pem\"\n"))
	keys := func() (st registry.ManagerState) {
		t.Helper()
		state := a.domains.keyManagers.State()
		if len(state.Managers) != 1 {
			t.Fatalf("%d key managers, want one", len(state.Managers))
		}
		return state.Managers[0]
	}
	await(t, "the key set's server is not believed", func() bool { return strings.Contains(keys().LastError, "certificate") })
	write(t, ca, authority)
	if err := a.Reload(); err != nil {
		t.Fatal(err)
	}
	await(t, "the keys are fetched", func() bool { return keys().LastError == "" && len(keys().Keys) == 1 })
	// Another authority, which the server is not of: the keys held serve on while the fetch fails.
	write(t, ca, otherAuthority)
	if err := a.Reload(); err != nil {
		t.Fatal(err)
	}
	await(t, "the server is believed no more", func() bool { return strings.Contains(keys().LastError, "certificate") })
	if n := len(keys().Keys); n != 1 {
		t.Errorf("%d keys are held, want the one from before", n)
	}
}

func TestTheContentOfAnIssuersCertificateFileChanges(t *testing.T) {
	_, first := secured(t, keySet)
	dir := t.TempDir()
	cert := filepath.Join(dir, "issuer.pem")
	write(t, cert, first)
	a := open(t, writeConfig(t, dir, "[[apim.jwt.issuer]]\nname = \"https://i\"\ncertificate_file = \"issuer.pem\"\n"))
	write(t, cert, otherAuthority)
	if err := a.Reload(); err != nil {
		t.Fatal(err)
	}
	if all := a.domains.keyManagers.All(); len(all) != 1 || all[0].PEM != otherAuthority {
		t.Errorf("key managers: %+v, want the certificate that the file holds now", all)
	}
}

// The API Manager, its broker and the traffic managers: whoever dials them asks for the authorities at each connection.
func TestTheContentOfTheAPIManagersCAFileChanges(t *testing.T) {
	s, authority := secured(t, keySet)
	dir := t.TempDir()
	ca := filepath.Join(dir, "apim.pem")
	write(t, ca, otherAuthority)
	a := open(t, writeConfig(t, dir, "[apim.event_hub]\nservice_url = \""+s.URL+`"
username = "u"
password = "p"
event_listening_endpoints = ["ssl://127.0.0.1:5671"]
ca_file = "apim.pem"
[apim.throttling]
ca_file = "apim.pem"
`))
	client := &http.Client{Transport: a.hub.transport(1), Timeout: 10 * time.Second}
	t.Cleanup(client.CloseIdleConnections)
	get := func() error {
		r, err := client.Get(s.URL)
		if err != nil {
			return err
		}
		return r.Body.Close()
	}
	if err := get(); err == nil {
		t.Fatal("a server of another authority is believed")
	}
	before := [...]any{a.hub.roots(), a.trafficManagers.roots()}
	write(t, ca, authority)
	if err := a.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := get(); err != nil {
		t.Errorf("after the reload: %v", err)
	}
	if after := [...]any{a.hub.roots(), a.trafficManagers.roots()}; after[0] == before[0] || after[1] == before[1] {
		t.Error("the authorities of a section are those from before")
	}
	write(t, ca, otherAuthority)
	if err := a.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := get(); err == nil {
		t.Error("a server is believed that the file vouches for no more")
	}
}
