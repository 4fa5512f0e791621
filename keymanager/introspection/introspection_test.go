package introspection

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"gatehouse/keymanager"
	ours "gatehouse/keymanager/jwt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "2YotnFZFEjr1zCsicMWpAA"

// keyManager is a key manager's TLS server; it records the last call.
type keyManager struct {
	*httptest.Server
	calls atomic.Int64
	mu    sync.Mutex
	form  url.Values
	head  http.Header
	peer  []*x509.Certificate
	serve http.HandlerFunc
}

func newKeyManager(t *testing.T) *keyManager {
	s := &keyManager{}
	s.answer("application/json", `{"active":true,"client_id":"ck-1","exp":4102444800}`)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.form, _ = url.ParseQuery(string(body))
		s.head, s.peer = r.Header.Clone(), r.TLS.PeerCertificates
		h := s.serve
		s.mu.Unlock()
		h(w, r)
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *keyManager) handle(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve = h
}

func (s *keyManager) answer(kind, body string) {
	s.handle(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		io.WriteString(w, body)
	})
}

func (s *keyManager) status(code int, body string) {
	s.handle(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	})
}

func (s *keyManager) roots() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{RootCAs: pool}
}

func (s *keyManager) client(t *testing.T, change ...func(*Options)) *Client {
	t.Helper()
	o := Options{Endpoint: keymanager.Introspection{URL: s.URL + "/introspect", ClientID: "gateway", ClientSecret: "secret"}, TLS: s.roots()}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestTheGatewayMakesItselfKnown(t *testing.T) {
	rsaKey, ecKey := must(rsa.GenerateKey(rand.Reader, 2048)), must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway"},
		NotAfter: time.Now().Add(time.Hour),
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "gateway"}}, ecKey.Public(), ecKey))
	pkcs8 := func(k any) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(k))}))
	}
	certPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	assertion := func(alg string, public any) func(*testing.T, *keyManager) {
		return func(t *testing.T, s *keyManager) {
			if s.form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || s.head.Get("Authorization") != "" {
				t.Errorf("form %v, header %v", s.form, s.head)
			}
			c := jwt.MapClaims{}
			p, err := jwt.ParseWithClaims(s.form.Get("client_assertion"), c, func(*jwt.Token) (any, error) { return public, nil },
				jwt.WithValidMethods([]string{alg}), jwt.WithAudience(s.URL+"/introspect"), jwt.WithIssuer("gateway"), jwt.WithSubject("gateway"), jwt.WithExpirationRequired())
			if err != nil || !p.Valid {
				t.Fatalf("assertion: %v", err)
			}
			if exp, _ := c.GetExpirationTime(); time.Until(exp.Time) > time.Minute+time.Second || c["jti"] == "" {
				t.Errorf("claims %v", c)
			}
		}
	}
	tests := []struct {
		name     string
		endpoint keymanager.Introspection
		check    func(*testing.T, *keyManager)
	}{
		{"none", keymanager.Introspection{}, func(t *testing.T, s *keyManager) {
			if s.head.Get("Authorization") != "" || len(s.form) != 2 {
				t.Errorf("header %v, form %v", s.head, s.form)
			}
		}},
		{"basic, escaped as RFC 6749 2.3.1 says", keymanager.Introspection{ClientID: "ck:1 é", ClientSecret: "p&s=s%:+"}, func(t *testing.T, s *keyManager) {
			raw := must(base64.StdEncoding.DecodeString(strings.TrimPrefix(s.head.Get("Authorization"), "Basic ")))
			if string(raw) != "ck%3A1+%C3%A9:p%26s%3Ds%25%3A%2B" {
				t.Errorf("basic %q", raw)
			}
			if s.form.Get("client_secret") != "" {
				t.Error("the secret is in the form too")
			}
		}},
		{"form", keymanager.Introspection{Auth: keymanager.ClientSecretPost, ClientID: "ck:1", ClientSecret: "p&s"}, func(t *testing.T, s *keyManager) {
			if s.form.Get("client_id") != "ck:1" || s.form.Get("client_secret") != "p&s" || s.head.Get("Authorization") != "" {
				t.Errorf("form %v, header %v", s.form, s.head)
			}
		}},
		{"assertion, RSA from a file", keymanager.Introspection{Auth: keymanager.ClientPrivateKey, ClientID: "gateway", KeyFile: file("rsa.pem", pkcs8(rsaKey))}, assertion("RS256", rsaKey.Public())},
		{"assertion, EC", keymanager.Introspection{Auth: keymanager.ClientPrivateKey, ClientID: "gateway", KeyPEM: pkcs8(ecKey)}, assertion("ES384", ecKey.Public())},
		{"assertion, Ed25519", keymanager.Introspection{Auth: keymanager.ClientPrivateKey, ClientID: "gateway", KeyPEM: pkcs8(edKey)}, assertion("EdDSA", edKey.Public())},
		{"certificate", keymanager.Introspection{Auth: keymanager.ClientCertificates, ClientID: "gateway", KeyPEM: pkcs8(ecKey), CertFile: file("cert.pem", certPEM)}, func(t *testing.T, s *keyManager) {
			if len(s.peer) != 1 || s.peer[0].Subject.CommonName != "gateway" || s.form.Get("client_id") != "gateway" {
				t.Errorf("peer %v, form %v", s.peer, s.form)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newKeyManager(t)
			c := s.client(t, func(o *Options) {
				tt.endpoint.URL = o.Endpoint.URL
				o.Endpoint = tt.endpoint
			})
			var first string
			for range 2 {
				a, err := c.Ask(context.Background(), token)
				if err != nil || !a.Active || a.Claims["client_id"] != "ck-1" {
					t.Fatalf("answer %+v, %v", a, err)
				}
				if s.form.Get("token") != token || s.form.Get("token_type_hint") != "access_token" || s.head.Get("Content-Type") != "application/x-www-form-urlencoded" || s.head["Idempotency-Key"] != nil {
					t.Errorf("form %v, header %v", s.form, s.head)
				}
				tt.check(t, s)
				if a := s.form.Get("client_assertion"); a != "" && a == first {
					t.Error("the same assertion twice")
				} else {
					first = a
				}
			}
		})
	}
}

func TestSettingsThatCannotWorkAreNamed(t *testing.T) {
	for name, tt := range map[string]struct {
		e    keymanager.Introspection
		want string
	}{
		"no URL":                     {keymanager.Introspection{URL: "introspect"}, "absolute https URL"},
		"another scheme":             {keymanager.Introspection{URL: "ftp://u:secret@h/x"}, "absolute https URL"},
		"basic without a client":     {keymanager.Introspection{URL: "https://h", Auth: keymanager.ClientSecretBasic}, "needs a client ID"},
		"assertion without a key":    {keymanager.Introspection{URL: "https://h", Auth: keymanager.ClientPrivateKey, ClientID: "c"}, "needs the key"},
		"assertion without a client": {keymanager.Introspection{URL: "https://h", Auth: keymanager.ClientPrivateKey, KeyPEM: "x"}, "needs a client ID"},
		"a key that is none":         {keymanager.Introspection{URL: "https://h", Auth: keymanager.ClientPrivateKey, ClientID: "c", KeyPEM: "x"}, "holds no PEM block"},
		"a key file that is away":    {keymanager.Introspection{URL: "https://h", Auth: keymanager.ClientPrivateKey, ClientID: "c", KeyFile: "/nowhere"}, "/nowhere"},
		"certificate without a key":  {keymanager.Introspection{URL: "https://h", Auth: keymanager.ClientCertificates, CertPEM: "x"}, "needs the key"},
		"an unknown method":          {keymanager.Introspection{URL: "https://h", Auth: "client_secret_jwt"}, "client_secret_jwt"},
	} {
		_, err := New(Options{Endpoint: tt.e})
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnswers(t *testing.T) {
	s := newKeyManager(t)
	tests := []struct {
		name, kind, body string
		active           bool
		fails            string // part of the error
	}{
		{"active", "application/json", `{"active":true}`, true, ""},
		{"inactive", "application/json;charset=UTF-8", `{"active":false,"client_id":"x"}`, false, ""},
		{"no content type", "", ` {"active":true} `, true, ""},
		{"expiry as text", "application/json", `{"active":true,"exp":"4102444800"}`, true, ""},
		{"expiry that never comes", "application/json", `{"active":true,"exp":9223372036854775807}`, true, ""},
		{"expiry null", "application/json", `{"active":true,"exp":null}`, true, ""},
		{"expiry no number", "application/json", `{"active":true,"exp":"soon"}`, false, "exp that is no time"},
		{"expiry hexadecimal", "application/json", `{"active":true,"exp":"0x10"}`, false, "exp that is no time"},
		{"expiry infinite", "application/json", `{"active":true,"exp":"Inf"}`, false, "exp that is no time"},
		{"expiry an object", "application/json", `{"active":true,"exp":{}}`, false, "exp that is no time"},
		{"active as text", "application/json", `{"active":"true"}`, false, "neither true nor false"},
		{"active a number", "application/json", `{"active":1}`, false, "neither true nor false"},
		{"active missing", "application/json", `{"client_id":"x"}`, false, "does not say"},
		{"active in capitals", "application/json", `{"Active":true}`, false, "does not say"},
		{"active twice", "application/json", `{"active":false,"active":true}`, false, "twice"},
		{"active twice by escape", "application/json", `{"active":false,"\u0061ctive":true}`, false, "twice"},
		{"text after it", "application/json", `{"active":true}{}`, false, "not a JSON object"},
		{"a list", "application/json", `[{"active":true}]`, false, "not a JSON object"},
		{"a page", "text/html", `<html>`, false, "not a JSON object"},
		{"empty", "application/json", ``, false, "not a JSON object"},
		{"not UTF-8", "application/json", "{\"active\":true,\"x\":\"\xff\"}", false, "UTF-8"},
		{"nested deeply", "application/json", `{"active":true,"x":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`, false, "nested"},
		{"a megabyte and more", "application/json", `{"active":true,"x":"` + strings.Repeat("x", MaxBody) + `"}`, false, "larger than"},
		{"a JWT where nobody has keys", "application/token-introspection+jwt", "a.b.c", false, "the JWT that"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.answer(tt.kind, tt.body)
			a, err := s.client(t).Ask(context.Background(), token)
			switch {
			case tt.fails != "":
				if err == nil || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tt.fails) {
					t.Errorf("answer %+v, %v; want a failure with %q", a, err, tt.fails)
				}
				if err != nil && strings.Contains(err.Error(), token) {
					t.Error("the error holds the token")
				}
			case err != nil || a.Active != tt.active || a.Active == (a.Claims == nil) || a.Claims["active"] != nil:
				t.Errorf("answer %+v, %v", a, err)
			}
		})
	}
}

func TestStatusesThatAreNoAnswer(t *testing.T) {
	s := newKeyManager(t)
	for _, tt := range []struct {
		name   string
		code   int
		body   string
		trips  bool
		answer bool // inactive
		text   string
	}{
		{"our credentials are wrong", 401, `{"error":"invalid_client"}`, true, false, "own credentials"},
		{"our credentials are wrong, as 400", 400, `{"error":"invalid_client"}`, true, false, "own credentials"},
		{"forbidden", 403, ``, true, false, "own credentials"},
		{"server error", 500, ``, true, false, "500"},
		{"too many", 429, ``, true, false, "429"},
		{"no such path", 404, ``, true, false, "404"},
		{"created", 201, `{"active":true}`, true, false, "201"},
		{"the token's form is not liked", 400, `{"error":"invalid_request"}`, false, false, "400 Bad Request: invalid_request"},
		{"our client is registered wrongly", 400, `{"error":"invalid_client_metadata"}`, false, false, "invalid_client_metadata"},
		{"an error of the server's own making", 400, `{"error":"a-token-perhaps"}`, false, false, "400 Bad Request"},
		{"the token is not known", 400, `{"error":"invalid_token"}`, false, true, ""},
		{"bad request with a page", 400, `<html>`, false, false, "400"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.status(tt.code, tt.body)
			c := s.client(t, func(o *Options) { o.Reset = time.Hour })
			for range Failures {
				a, err := c.Ask(context.Background(), token)
				if tt.answer != (err == nil) || a.Active || err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Fatalf("answer %+v, %v", a, err)
				}
				if err != nil && strings.Contains(err.Error(), "perhaps") {
					t.Errorf("the error repeats what the server wrote: %v", err)
				}
			}
			if open := !c.Available(); open != tt.trips {
				t.Errorf("after %d such answers: breaker open %t, want %t", Failures, open, tt.trips)
			}
			if st := c.State(); (st.LastError != "") != tt.trips || st.Calls != Failures {
				t.Errorf("state %+v", st)
			}
		})
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	s, other := newKeyManager(t), newKeyManager(t)
	s.handle(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	if _, err := s.client(t).Ask(context.Background(), token); err == nil {
		t.Error("answered")
	}
	if other.calls.Load() != 0 {
		t.Error("token and credentials went to another server")
	}
}

// dialer fails the first connections.
type dialer struct{ fails, dials atomic.Int64 }

func (d *dialer) transport(s *keyManager) *http.Transport {
	return &http.Transport{TLSClientConfig: s.roots(), DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		d.dials.Add(1)
		if d.fails.Add(-1) >= 0 {
			return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("connection refused")}
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
}

func TestOneRetryAndOnlyWhereNoConnectionWasMade(t *testing.T) {
	s := newKeyManager(t)
	for fails, want := range map[int64]bool{0: true, 1: true, 2: false} {
		d := &dialer{}
		d.fails.Store(fails)
		tr := d.transport(s)
		c := s.client(t, func(o *Options) { o.Transport = tr })
		if _, err := c.Ask(context.Background(), token); (err == nil) != want {
			t.Errorf("%d failures: %v", fails, err)
		}
		tr.CloseIdleConnections()
	}
	s.calls.Store(0)
	s.handle(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if _, err := s.client(t).Ask(context.Background(), token); err == nil {
		t.Error("answered")
	}
	if n := s.calls.Load(); n != 1 {
		t.Errorf("the server was asked %d times although it had seen the call", n)
	}
}

func TestTimeout(t *testing.T) {
	s := newKeyManager(t)
	release := make(chan struct{})
	defer close(release)
	s.handle(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	c := s.client(t, func(o *Options) { o.Endpoint.Timeout = 100 * time.Millisecond })
	began := time.Now()
	_, err := c.Ask(context.Background(), token)
	if err == nil || time.Since(began) > time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

func TestBreaker(t *testing.T) {
	s := newKeyManager(t)
	s.status(500, "")
	c := s.client(t, func(o *Options) { o.Reset = 200 * time.Millisecond })
	for range Failures {
		if !c.Available() {
			t.Fatal("open too early")
		}
		c.Ask(context.Background(), token)
	}
	if c.Available() {
		t.Fatal("not open")
	}
	calls := s.calls.Load()
	began := time.Now()
	for range 100 {
		if _, err := c.Ask(context.Background(), token); !errors.Is(err, ErrOpen) || !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 50*time.Millisecond {
		t.Errorf("100 calls while open took %v", took)
	}
	if s.calls.Load() != calls || c.State().Skipped != 100 || c.State().Breaker != "open" {
		t.Errorf("%d calls while open, state %+v", s.calls.Load()-calls, c.State())
	}
	for end := time.Now().Add(5 * time.Second); !c.Available() && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
	if !c.Probing() {
		t.Fatalf("state %+v", c.State())
	}
	s.answer("application/json", `{"active":false}`)
	if _, err := c.Ask(context.Background(), token); err != nil || c.State().Breaker != "closed" {
		t.Errorf("after the return: %v, %+v", err, c.State())
	}
	// Four failures and a success between keep it closed.
	for range 3 {
		s.status(500, "")
		for range Failures - 1 {
			c.Ask(context.Background(), token)
		}
		s.answer("application/json", `{"active":true}`)
		if _, err := c.Ask(context.Background(), token); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSignedAnswers(t *testing.T) {
	const issuer = "https://sso.example.test"
	key, other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	s := newKeyManager(t)
	verify := func(_ context.Context, p *ours.Token) *keymanager.Refusal {
		if !p.Verify(key.Public()) {
			return &keymanager.Refusal{Check: keymanager.CheckSignature, Detail: "bad signature"}
		}
		return nil
	}
	claims := func(change ...any) jwt.MapClaims {
		m := jwt.MapClaims{"iss": issuer, "aud": "gateway", "iat": time.Now().Unix(), "token_introspection": map[string]any{"active": true, "client_id": "ck-1", "exp": 4102444800}}
		for i := 0; i+1 < len(change); i += 2 {
			if m[change[i].(string)] = change[i+1]; change[i+1] == nil {
				delete(m, change[i].(string))
			}
		}
		return m
	}
	signed := func(typ any, k *ecdsa.PrivateKey, c jwt.MapClaims) string {
		u := jwt.NewWithClaims(jwt.SigningMethodES256, c)
		if u.Header["typ"] = typ; typ == nil {
			delete(u.Header, "typ")
		}
		return must(u.SignedString(k))
	}
	const typ = "token-introspection+jwt"
	good := signed(typ, key, claims())
	for name, tt := range map[string]struct {
		body, fails string
	}{
		"good":                      {good, ""},
		"good, long type":           {signed("application/"+typ, key, claims()), ""},
		"audience a list":           {signed(typ, key, claims("aud", []string{"x", "gateway"})), ""},
		"access token":              {signed("at+jwt", key, claims()), "typ"},
		"no type":                   {signed(nil, key, claims()), "typ"},
		"another's key":             {signed(typ, other, claims()), "bad signature"},
		"for another client":        {signed(typ, key, claims("aud", "other")), "another audience"},
		"for nobody":                {signed(typ, key, claims("aud", nil)), "no audience"},
		"of another issuer":         {signed(typ, key, claims("iss", "https://evil.test")), "another issuer"},
		"of no issuer":              {signed(typ, key, claims("iss", nil)), "no issuer"},
		"old":                       {signed(typ, key, claims("iat", time.Now().Add(-time.Hour).Unix())), "just now"},
		"of no time":                {signed(typ, key, claims("iat", nil)), "just now"},
		"expired":                   {signed(typ, key, claims("exp", 1)), "expired"},
		"claims outside the member": {signed(typ, key, claims("token_introspection", nil, "active", true)), "token_introspection"},
		"active as text inside":     {signed(typ, key, claims("token_introspection", map[string]any{"active": "yes"})), "neither true nor false"},
		"encrypted":                 {"a.b.c.d.e", "encrypted"},
		"JSON under the wrong type": {`{"active":true}`, "not one of an introspection"},
		"altered":                   {good[:len(good)-8] + "AAAAAAAA", "bad signature"},
	} {
		t.Run(name, func(t *testing.T) {
			s.answer("application/token-introspection+jwt", tt.body)
			a, err := s.client(t, func(o *Options) { o.Verify, o.Issuer = verify, issuer }).Ask(context.Background(), token)
			if tt.fails == "" && (err != nil || !a.Active || a.Claims["client_id"] != "ck-1" || a.Claims["exp"] != json.Number("4102444800")) {
				t.Errorf("answer %+v, %v", a, err)
			}
			if tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("answer %+v, %v; want %q", a, err, tt.fails)
			}
		})
	}
	s.answer("application/token-introspection+jwt", signed(typ, key, claims("token_introspection", map[string]any{"active": false})))
	if a, err := s.client(t, func(o *Options) { o.Verify, o.Issuer = verify, issuer }).Ask(context.Background(), token); err != nil || a.Active {
		t.Errorf("inactive: %+v %v", a, err)
	}
}

func TestAPasswordInTheURLIsNeverShown(t *testing.T) {
	c, err := New(Options{Endpoint: keymanager.Introspection{URL: "http://gateway:hunter2@127.0.0.1:1/introspect"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Ask(context.Background(), token)
	if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(c.State().LastError+c.URL(), "hunter2") {
		t.Errorf("%v; %+v", err, c.State())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
