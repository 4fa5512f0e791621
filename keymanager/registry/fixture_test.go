package registry

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"gatehouse/keymanager"
	"gatehouse/keymanager/revocation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Keys are dear to make: the tests share them.
var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) })
	rsaOther = sync.OnceValue(func() *rsa.PrivateKey { return newRSA(2048) })
	ecKey    = sync.OnceValue(func() *ecdsa.PrivateKey { return newEC(elliptic.P256()) })
	ec384    = sync.OnceValue(func() *ecdsa.PrivateKey { return newEC(elliptic.P384()) })
	ec521    = sync.OnceValue(func() *ecdsa.PrivateKey { return newEC(elliptic.P521()) })
	edKey    = sync.OnceValue(func() ed25519.PrivateKey { _, k, err := ed25519.GenerateKey(rand.Reader); must(err); return k })
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func newRSA(bits int) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	must(err)
	return k
}

func newEC(c elliptic.Curve) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	must(err)
	return k
}

// jwk writes a key as a JSON Web Key; it shares no code with what reads it.
func jwk(kid string, key crypto.Signer, extra map[string]any) map[string]any {
	b64 := base64.RawURLEncoding.EncodeToString
	m := map[string]any{"kid": kid, "use": "sig"}
	switch k := key.Public().(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes())
	case *ecdsa.PublicKey:
		n := (k.Curve.Params().BitSize + 7) / 8
		point, err := k.Bytes()
		must(err)
		m["kty"], m["crv"], m["x"], m["y"] = "EC", k.Curve.Params().Name, b64(point[1:1+n]), b64(point[1+n:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", b64(k)
	}
	if kid == "" {
		delete(m, "kid")
	}
	maps.Copy(m, extra)
	return m
}

// keyServer is a key manager's TLS server; its key set can change and fail.
type keyServer struct {
	*httptest.Server
	fetches atomic.Int64
	mu      sync.Mutex
	handler http.HandlerFunc
}

func newKeyServer(t testing.TB, keys ...map[string]any) *keyServer {
	s := &keyServer{}
	s.serve(keys...)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetches.Add(1)
		s.mu.Lock()
		h := s.handler
		s.mu.Unlock()
		h(w, r)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) serve(keys ...map[string]any) {
	body, err := json.Marshal(map[string]any{"keys": keys})
	must(err)
	s.answer(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })
}

func (s *keyServer) fail(status int) {
	s.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
}

func (s *keyServer) answer(h http.HandlerFunc) {
	s.mu.Lock()
	s.handler = h
	s.mu.Unlock()
}

func (s *keyServer) roots() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{RootCAs: pool}
}

// clock is a clock that tests turn.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

const issuer = "https://apim.example.test:9443/oauth2/token"

type fixture struct {
	*Registry
	t      testing.TB
	clock  *clock
	server *keyServer
	revs   *revocation.Set
}

// newFixture is a registry with the resident key manager, whose server publishes an RSA key r1, a P-256 key e1 and an
// Ed25519 key o1.
func newFixture(t testing.TB, change ...func(*keymanager.KeyManager)) *fixture {
	f := &fixture{t: t, clock: newClock()}
	f.server = newKeyServer(t, jwk("r1", rsaKey(), nil), jwk("e1", ecKey(), nil), jwk("o1", edKey(), nil))
	f.revs = revocation.New(revocation.Options{Now: f.clock.now})
	f.Registry = New(Options{TLS: f.server.roots(), Now: f.clock.now, CacheEnabled: true, Revocations: f.revs})
	t.Cleanup(f.Close)
	km := f.keyManager()
	for _, c := range change {
		c(&km)
	}
	f.Put(km)
	return f
}

func (f *fixture) keyManager() keymanager.KeyManager {
	return keymanager.KeyManager{
		Name: "Resident Key Manager", Tenant: "carbon.super", Type: "default", Enabled: true, SelfValidate: true,
		Issuer: issuer, JWKSURL: f.server.URL,
	}
}

func (f *fixture) claims(change ...any) map[string]any {
	now := f.clock.now().Unix()
	c := map[string]any{
		"iss": issuer, "sub": "alice", "azp": "ck-1", "scope": "order:read order:write", "jti": "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01",
		"iat": now - 10, "exp": now + 3600, "aud": "ck-1",
	}
	for i := 0; i+1 < len(change); i += 2 {
		if change[i+1] == nil {
			delete(c, change[i].(string))
			continue
		}
		c[change[i].(string)] = change[i+1]
	}
	return c
}

// sign makes a token with golang-jwt.
func sign(method jwt.SigningMethod, key any, header, claims map[string]any) string {
	t := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	for k, v := range header {
		if v == nil {
			delete(t.Header, k)
			continue
		}
		t.Header[k] = v
	}
	s, err := t.SignedString(key)
	must(err)
	return s
}

func (f *fixture) token(change ...any) string {
	return sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "r1"}, f.claims(change...))
}

func (f *fixture) auth(token string) (*keymanager.Token, bool, error) {
	return f.Authenticate(context.Background(), keymanager.Credential{Bearer: token, Tenant: "carbon.super"})
}

func (f *fixture) accept(token string) *keymanager.Token {
	f.t.Helper()
	tok, _, err := f.auth(token)
	if err != nil {
		f.t.Fatalf("refused: %v", err)
	}
	return tok
}

func (f *fixture) refuse(token string, want keymanager.Check) *keymanager.Refusal {
	f.t.Helper()
	tok, _, err := f.auth(token)
	if err == nil {
		f.t.Fatalf("accepted %+v; want refusal at %s", tok, want)
	}
	var r *keymanager.Refusal
	if !errors.As(err, &r) || !errors.Is(err, keymanager.ErrRefused) {
		f.t.Fatalf("error %T %v is no refusal", err, err)
	}
	if r.Check != want {
		f.t.Fatalf("refused at %s (%s), want %s", r.Check, r.Detail, want)
	}
	for _, c := range r.Detail {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			f.t.Fatalf("detail %q may not stand in WWW-Authenticate", r.Detail)
		}
	}
	return r
}

func newRevocations(c *clock) *revocation.Set { return revocation.New(revocation.Options{Now: c.now}) }
