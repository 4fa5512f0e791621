package upstream

import (
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// secured is a server with TLS, the file of its authority, and how many connections it took.
func secured(t *testing.T, http2 bool, h http.HandlerFunc) (url, caFile string, opened *atomic.Int64) {
	t.Helper()
	opened = new(atomic.Int64)
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			opened.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, caFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return s.URL, caFile, opened
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func answerOK(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func setDefaults(t *testing.T, p *Pool, d Defaults) {
	t.Helper()
	if err := p.SetDefaults(d); err != nil {
		t.Fatal(err)
	}
}

func TestAuthoritiesChangeWhileThePoolIsInUse(t *testing.T) {
	for _, c := range []struct {
		name  string
		http2 bool
		via   bool
	}{{"HTTP/1.1", false, false}, {"HTTP/2", true, false}, {"by http.Transport", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			url, caFile, _ := secured(t, c.http2, answerOK)
			p := pool(t, Options{Transport: c.via})
			e := open(t, p, url)
			if _, _, err := call(t, e); KindOf(err) != Connect && KindOf(err) != Failed || err == nil {
				t.Fatalf("a backend of an unknown authority: %v, want a failure", err)
			}
			setDefaults(t, p, Defaults{CAFile: caFile})
			if s, b, err := call(t, e); s != 200 || b != "ok" || err != nil {
				t.Fatalf("its authority is known now: %d %q %v", s, b, err)
			}
			setDefaults(t, p, Defaults{})
			if s, _, err := call(t, e); err == nil {
				t.Errorf("its authority is known no more: %d, want a failure, on no old connection and in no old session", s)
			}
			setDefaults(t, p, Defaults{SkipTLSVerify: true})
			if s, _, err := call(t, e); s != 200 || err != nil {
				t.Errorf("no verification: %d %v", s, err)
			}
		})
	}
}

func TestTheContentOfTheCAFileChanges(t *testing.T) {
	first, firstCA, _ := secured(t, false, answerOK)
	text, err := os.ReadFile(firstCA)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "all.pem")
	writeFile(t, path, string(text))
	p := pool(t, Options{CAFile: path})
	e := open(t, p, first)
	if s, _, err := call(t, e); s != 200 || err != nil {
		t.Fatal(s, err)
	}
	writeFile(t, path, otherAuthority)
	setDefaults(t, p, Defaults{CAFile: path})
	if s, _, err := call(t, e); err == nil {
		t.Errorf("%d of a backend whose authority the file holds no more", s)
	}
}

func TestACAFileThatCannotBeUsedChangesNothing(t *testing.T) {
	url, caFile, opened := secured(t, false, answerOK)
	bad := filepath.Join(t.TempDir(), "bad.pem")
	writeFile(t, bad, "no certificate")
	p := pool(t, Options{CAFile: caFile})
	e := open(t, p, url)
	_, _, _ = call(t, e)
	for _, path := range []string{bad, bad + ".missing"} {
		if err := p.SetDefaults(Defaults{CAFile: path, Timeout: time.Nanosecond}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%v, want an error that names %s", err, path)
		}
	}
	if s, _, err := call(t, e); s != 200 || err != nil || opened.Load() != 1 {
		t.Errorf("%d %v on connection %d, want the one from before", s, err, opened.Load())
	}
}

func TestConnectionsUnderWayStay(t *testing.T) {
	for _, c := range []struct {
		name  string
		http2 bool
	}{{"HTTP/1.1", false}, {"HTTP/2", true}} {
		t.Run(c.name, func(t *testing.T) {
			begin, finish := make(chan struct{}), make(chan struct{})
			url, caFile, opened := secured(t, c.http2, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					w.WriteHeader(200)
					_ = http.NewResponseController(w).Flush()
					close(begin)
					<-finish
				}
				_, _ = io.WriteString(w, "ok")
			})
			p := pool(t, Options{CAFile: caFile})
			e := open(t, p, url)
			res := Response{Header: http.Header{}}
			if err := e.Call(t.Context(), &Request{Method: "GET", Path: "/slow", Header: http.Header{}}, &res); err != nil {
				t.Fatal(err)
			}
			<-begin
			setDefaults(t, p, Defaults{SkipTLSVerify: true})
			close(finish)
			if b, err := io.ReadAll(res.Body); string(b) != "ok" || err != nil {
				t.Errorf("the answer that had begun: %q %v", b, err)
			}
			_ = res.Body.Close()
			before := opened.Load()
			if s, _, err := call(t, e); s != 200 || err != nil {
				t.Errorf("the next: %d %v", s, err)
			}
			if !c.http2 && opened.Load() != before+1 {
				t.Errorf("%d connections, want a new one: the old was verified in another way", opened.Load())
			}
		})
	}
}

func TestOtherTimeoutsKeepConnections(t *testing.T) {
	url, caFile, opened := secured(t, false, answerOK)
	p := pool(t, Options{CAFile: caFile})
	e := open(t, p, url)
	for i := range 3 {
		if s, _, err := call(t, e); s != 200 || err != nil {
			t.Fatal(s, err)
		}
		setDefaults(t, p, Defaults{CAFile: caFile, Timeout: time.Duration(i+30) * time.Second, ConnectTimeout: time.Duration(i+1) * time.Second})
	}
	if opened.Load() != 1 {
		t.Errorf("%d connections, want one", opened.Load())
	}
}

func TestTheTimeoutOfEndpointsWithoutTheirOwnChanges(t *testing.T) {
	silent := make(chan struct{})
	for _, c := range []struct {
		name string
		via  bool
	}{{"own client", false}, {"http.Transport", true}} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-silent }))
			t.Cleanup(s.Close)
			t.Cleanup(func() { silent <- struct{}{} })
			p := pool(t, Options{Transport: c.via})
			e := open(t, p, s.URL)
			setDefaults(t, p, Defaults{Timeout: 30 * time.Millisecond})
			began := time.Now()
			if _, _, err := call(t, e); KindOf(err) != Timeout {
				t.Errorf("%v, want a timeout", err)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v, want what the pool says now", took)
			}
		})
	}
}

func TestTheConnectTimeoutChanges(t *testing.T) {
	// A listener that takes connections, in its backlog, and never shakes hands.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := pool(t, Options{})
	e := open(t, p, "https://"+ln.Addr().String())
	setDefaults(t, p, Defaults{ConnectTimeout: 30 * time.Millisecond})
	began := time.Now()
	if _, _, err := call(t, e); KindOf(err) != Connect {
		t.Errorf("%v, want no connection", err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Calls and changes at once: the race detector is the oracle.
func TestDefaultsChangeUnderLoad(t *testing.T) {
	url, caFile, _ := secured(t, false, answerOK)
	p := pool(t, Options{CAFile: caFile})
	e := open(t, p, url)
	ended := make(chan error, 4)
	for range cap(ended) {
		go func() {
			for range 50 {
				if _, _, err := call(t, e); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	for i := range 100 {
		setDefaults(t, p, Defaults{CAFile: caFile, SkipTLSVerify: i%2 == 0, ConnectTimeout: time.Duration(5+i%3) * time.Second})
	}
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	setDefaults(t, p, Defaults{CAFile: caFile})
	eventually(t, "idle connections are of the trust in force", func() bool {
		h := e.targets[0].host.client.(*h1)
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, cn := range h.idle {
			if cn.trust != p.settings.Load().trust {
				return false
			}
		}
		return true
	})
}

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
-----END CERTIFICATE-----`
