package jwks

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

var sharedKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return k
})

func ecJWK(kid string) map[string]any {
	point, err := sharedKey().PublicKey.Bytes()
	must(err)
	b64 := base64.RawURLEncoding.EncodeToString
	return map[string]any{"kty": "EC", "crv": "P-256", "kid": kid, "x": b64(point[1:33]), "y": b64(point[33:])}
}

func document(kids ...string) []byte {
	var keys []any
	for _, k := range kids {
		keys = append(keys, ecJWK(k))
	}
	b, err := json.Marshal(map[string]any{"keys": keys})
	must(err)
	return b
}

type server struct {
	*httptest.Server
	fetches atomic.Int64
	handler atomic.Pointer[http.HandlerFunc]
}

func newServer(t *testing.T, h http.HandlerFunc) *server {
	s := &server{}
	s.handler.Store(&h)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetches.Add(1)
		(*s.handler.Load())(w, r)
	}))
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(h http.HandlerFunc) { s.handler.Store(&h) }

func serve(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(b) }
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

type testClock struct{ at atomic.Int64 }

func (c *testClock) now() time.Time          { return time.UnixMilli(c.at.Load()) }
func (c *testClock) advance(d time.Duration) { c.at.Add(d.Milliseconds()) }

func newSource(t *testing.T, s *server, change ...func(*Options)) (*Source, *testClock) {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c := &testClock{}
	c.at.Store(1764000000000)
	o := Options{URL: s.URL, TLS: &tls.Config{RootCAs: pool}, Now: c.now}
	for _, f := range change {
		f(&o)
	}
	src, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(src.Close)
	return src, c
}

func TestStartFetchesInTheBackground(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) { <-release; w.Write(document("a")) })
	src, c := newSource(t, s)
	src.Start()
	if src.Current(c.now()) != nil {
		t.Error("keys before the server answered")
	}
	close(release)
	set, err := src.Await(context.Background())
	if err != nil || len(set.ByID("a")) != 1 {
		t.Fatalf("set %v, %v", set, err)
	}
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("%d fetches: the waiter did not join the one under way", n)
	}
}

func TestUnknownKeyIDsFetchAtMostOnceInTenSeconds(t *testing.T) {
	s := newServer(t, serve(document("a")))
	src, c := newSource(t, s)
	if _, err := src.Await(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.advance(UnknownKeyPause)
	s.fetches.Store(0)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1250 {
				set, _ := src.RefreshFor(context.Background(), fmt.Sprintf("bad-%d-%d", g, i))
				if len(set.ByID("a")) != 1 {
					t.Error("the good key is gone")
				}
			}
		})
	}
	wg.Wait()
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("10000 bad key IDs caused %d fetches, want 1", n)
	}
	c.advance(UnknownKeyPause - time.Millisecond)
	src.RefreshFor(context.Background(), "another")
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("%d fetches within the pause", n)
	}
	c.advance(time.Millisecond)
	src.RefreshFor(context.Background(), "another")
	if n := s.fetches.Load(); n != 2 {
		t.Errorf("%d fetches after the pause, want 2", n)
	}
	// The same unknown key ID again: remembered for 30 s, whatever the pause.
	c.advance(UnknownKeyMemory - time.Millisecond)
	src.RefreshFor(context.Background(), "another")
	if n := s.fetches.Load(); n != 2 {
		t.Errorf("a remembered key ID was fetched for: %d", n)
	}
	c.advance(time.Millisecond)
	src.RefreshFor(context.Background(), "another")
	if n := s.fetches.Load(); n != 3 {
		t.Errorf("%d fetches after the memory ended, want 3", n)
	}
}

func TestRotationIsFoundWithOneFetch(t *testing.T) {
	s := newServer(t, serve(document("old")))
	src, c := newSource(t, s)
	src.Await(context.Background())
	c.advance(time.Minute)
	s.fetches.Store(0)
	s.set(serve(document("old", "new")))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			set, err := src.RefreshFor(context.Background(), "new")
			if err != nil || len(set.ByID("new")) != 1 {
				t.Errorf("new key not found: %v", err)
			}
		})
	}
	wg.Wait()
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}

func TestOldSetIsKeptWhileTheServerFailsUntilItIsTooOld(t *testing.T) {
	s := newServer(t, serve(document("a")))
	src, c := newSource(t, s, func(o *Options) { o.MaxStale = time.Hour })
	if _, err := src.Await(context.Background()); err != nil {
		t.Fatal(err)
	}
	bad := map[string]http.HandlerFunc{
		"500": status(500), "404": status(404), "204": status(204), "empty set": serve([]byte(`{"keys":[]}`)), "no JSON": serve([]byte("<html>")),
		"no set": serve([]byte(`{}`)), "a body over 1 MiB": serve(append(document("evil"), bytes.Repeat([]byte(" "), MaxBody)...)),
		"only symmetric keys":      serve([]byte(`{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}`)),
		"only keys for encryption": serve([]byte(`{"keys":[{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB"}]}`)),
		"connection cut":           func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
	}
	for name, h := range bad {
		s.set(h)
		if err := src.fetch(context.Background()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if set := src.Current(c.now()); set == nil || len(set.ByID("a")) != 1 {
			t.Errorf("%s: the old set is gone", name)
		}
		if st := src.State(); st.LastError == "" {
			t.Errorf("%s: the state shows no error", name)
		}
	}
	c.advance(time.Hour - time.Millisecond)
	if src.Current(c.now()) == nil {
		t.Error("gone before it is too old")
	}
	c.advance(time.Millisecond)
	if src.Current(c.now()) != nil {
		t.Error("in use although too old")
	}
	if _, err := src.Await(context.Background()); !errors.Is(err, ErrNoKeys) {
		t.Errorf("error %v", err)
	}
	s.set(serve(document("b")))
	c.advance(UnknownKeyPause)
	if set, err := src.Await(context.Background()); err != nil || len(set.ByID("b")) != 1 {
		t.Errorf("after the server came back: %v", err)
	}
}

func TestRedirects(t *testing.T) {
	target := newServer(t, serve(document("a")))
	plain := httptest.NewServer(serve(document("evil")))
	defer plain.Close()
	hop := newServer(t, nil)
	pool := x509.NewCertPool()
	pool.AddCert(target.Certificate())
	pool.AddCert(hop.Certificate())
	hop.set(func(w http.ResponseWriter, r *http.Request) {
		n := 0
		fmt.Sscanf(r.URL.Path, "/%d", &n)
		to := target.URL
		switch {
		case r.URL.Path == "/plain":
			to = plain.URL
		case n > 1:
			to = fmt.Sprintf("%s/%d", hop.URL, n-1)
		}
		http.Redirect(w, r, to, http.StatusFound)
	})
	for path, ok := range map[string]bool{"/1": true, "/3": true, "/4": false, "/plain": false} {
		src, err := New(Options{URL: hop.URL + path, TLS: &tls.Config{RootCAs: pool}})
		must(err)
		set, err := src.Await(context.Background())
		src.Close()
		if (err == nil) != ok || ok && len(set.ByID("a")) != 1 {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestServersThatAreNotTrustedAreRefused(t *testing.T) {
	s := newServer(t, serve(document("a")))
	src, _ := newSource(t, s, func(o *Options) { o.TLS = nil })
	if _, err := src.Await(context.Background()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v", err)
	}
}

func TestURLs(t *testing.T) {
	for u, ok := range map[string]bool{
		"https://idp.example/jwks": true, "http://127.0.0.1/jwks": true, "": false, "idp.example/jwks": false,
		"file:///etc/passwd": false, "ftp://x/y": false, "https://": false, "https://a b": false,
	} {
		src, err := New(Options{URL: u})
		if (err == nil) != ok {
			t.Errorf("%q: %v", u, err)
		}
		if src != nil {
			src.Close()
		}
	}
}

func TestRefreshAfter(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": time.Hour, "max-age=600": 600 * time.Second, "public, Max-Age=120": 120 * time.Second,
		"max-age=5": time.Minute, "max-age=0": time.Minute, "max-age=86400": time.Hour, "max-age=-5": time.Minute, "max-age=x": time.Hour,
		"no-store": time.Minute, "no-cache": time.Minute, "private, No-Cache": time.Minute, `no-cache="Set-Cookie"`: time.Hour, "max-age=99999999999999999999": time.Hour, `max-age="300"`: 300 * time.Second,
	} {
		if got := refreshAfter(http.Header{"Cache-Control": {header}}, MaxRefresh); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
	for header, want := range map[string]time.Duration{"": 10 * time.Second, "max-age=600": 10 * time.Second, "max-age=5": 10 * time.Second} {
		if got := refreshAfter(http.Header{"Cache-Control": {header}}, 10*time.Second); got != want {
			t.Errorf("%q where 10 s are the most: %v, want %v", header, got, want)
		}
	}
}

func TestASetIsFetchedAgainBeforeItIsTooOld(t *testing.T) {
	for _, c := range []struct{ refresh, maxStale, want time.Duration }{
		{0, 0, time.Hour},
		{0, time.Hour, 30 * time.Minute},
		{time.Minute, time.Hour, time.Minute},
		{time.Hour, 10 * time.Second, 5 * time.Second},
		{time.Hour, time.Millisecond, time.Second},
	} {
		s, err := New(Options{URL: "https://127.0.0.1:1/", Refresh: c.refresh, MaxStale: c.maxStale})
		must(err)
		if s.opts.Refresh != c.want {
			t.Errorf("every %s, too old after %s: fetched every %s, want %s", c.refresh, c.maxStale, s.opts.Refresh, c.want)
		}
		s.Close()
	}
}

func TestWaiterGoesWithItsRequestAndTheFetchGoesOn(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request) { <-release; w.Write(document("a")) })
	src, c := newSource(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := src.Await(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrNoKeys) {
		t.Errorf("error %v", err)
	}
	close(release)
	for range 1000 {
		if src.Current(c.now()) != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("the fetch ended with the request that caused it")
}

func TestCloseEndsAFetch(t *testing.T) {
	asked := make(chan struct{}, 1)
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) { asked <- struct{}{}; <-r.Context().Done() })
	src, _ := newSource(t, s)
	src.Start()
	<-asked
	at := time.Now()
	src.Close()
	if d := time.Since(at); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
	if _, err := src.ask(context.Background(), "", &src.asked.none); err == nil {
		t.Error("a closed source fetches")
	}
}

func TestOneWarningPerFault(t *testing.T) {
	var out bytes.Buffer
	s := newServer(t, status(500))
	src, _ := newSource(t, s, func(o *Options) { o.Logger = zerolog.New(&out) })
	for range 5 {
		src.fetch(context.Background())
	}
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}

// TestPasswordOfTheURLIsNeverShown: neither in errors nor in logs nor in what operators see.
func TestPasswordOfTheURLIsNeverShown(t *testing.T) {
	const password = "pass-word-1"
	var sent atomic.Bool
	srv := newServer(t, nil)
	with := strings.Replace(srv.URL, "https://", "https://gateway:"+password+"@", 1)
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	for name, h := range map[string]http.HandlerFunc{
		"refused": func(w http.ResponseWriter, r *http.Request) {
			_, p, _ := r.BasicAuth()
			sent.Store(p == password)
			w.WriteHeader(http.StatusForbidden)
		},
		"no set":    serve([]byte("{}")),
		"too large": serve(bytes.Repeat([]byte(" "), MaxBody+1)),
		"broken": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("{"))
		},
		"redirected": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.Replace(with, "https", "http", 1), http.StatusFound)
		},
		"a set": serve(document("a")),
	} {
		t.Run(name, func(t *testing.T) {
			srv.set(h)
			var log bytes.Buffer
			s, err := New(Options{URL: with, TLS: &tls.Config{RootCAs: pool}, Logger: zerolog.New(&log)})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Await(t.Context())
			s.Close()
			for what, text := range map[string]string{"the error": fmt.Sprint(err), "the log": log.String(), "the state": fmt.Sprintf("%+v %s", s.State(), s.URL())} {
				if strings.Contains(text, password) {
					t.Errorf("%s shows the password: %s", what, text)
				}
			}
			if log.Len() == 0 {
				t.Error("nothing was logged")
			}
		})
	}
	if !sent.Load() {
		t.Error("the password was not sent")
	}
	for _, bad := range []string{"ftp://u:" + password + "@host/", "https://u:" + password + "@host:port/", "//u:" + password + "@/"} {
		if _, err := New(Options{URL: bad}); err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("error %v", err)
		}
	}
}
