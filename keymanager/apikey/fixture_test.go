package apikey

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"strings"
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

const (
	apim     = "https://apim.example.test:9443/oauth2/token"
	sts      = "https://localhost:9095/apikey"
	console  = "https://apim.example.test:9443/publisher"
	keyID    = "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01"
	shopUUID = "b2a7c1de-5d1f-4c51-9f0b-6a2d0f5e1a41"
)

var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		must(err)
		return k
	})
	strangerKey = sync.OnceValue(func() *rsa.PrivateKey {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		must(err)
		return k
	})
	ecKey = sync.OnceValue(func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return k
	})
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func publicPEM(public any) string {
	der, err := x509.MarshalPKIXPublicKey(public)
	must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

type fixture struct {
	*Authenticator
	t     testing.TB
	clock *clock
	revs  *revocation.Set
	store *Store
}

// newFixture knows the API Manager as an issuer of application keys and of internal keys, all made with one key, and a token
// service of Microgateway that has one of its own.
func newFixture(t testing.TB, change ...func([]Issuer) []Issuer) *fixture {
	f := &fixture{t: t, clock: &clock{}, store: NewStore()}
	f.clock.at.Store(time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC).UnixNano())
	f.revs = revocation.New(revocation.Options{Now: f.clock.now})
	f.Authenticator = New(Options{Now: f.clock.now, Revocations: f.revs, Store: f.store})
	t.Cleanup(f.Close)
	list := []Issuer{
		{Name: apim, PEM: publicPEM(rsaKey().Public())},
		{Name: console, PEM: publicPEM(rsaKey().Public()), Internal: true},
		{Name: sts, PEM: publicPEM(ecKey().Public()), ValidateAllowedAPIs: true},
	}
	for _, c := range change {
		list = c(list)
	}
	must(f.SetIssuers(list))
	return f
}

// claims are those of a key that the API Manager 4.x makes for an application.
func (f *fixture) claims(change ...any) map[string]any {
	return with(map[string]any{
		"iss": apim, "sub": "alice@carbon.super", "jti": keyID, "iat": f.clock.now().Unix() - 10, "keytype": "SANDBOX", "token_type": "apiKey",
		"permittedIP": "", "permittedReferer": "", "tierInfo": map[string]any{},
		"application": map[string]any{"id": 12, "uuid": "7d3a6f0c-2d0e-4a8c-a6b1-3f6a6f1d0012", "name": "Web", "tier": "10PerMin", "owner": "alice"},
		"subscribedAPIs": []any{map[string]any{
			"name": "Shop", "version": "1.0.0", "context": "/shop/1.0.0", "publisher": "admin",
			"subscriptionTier": "Gold", "subscriberTenantDomain": "carbon.super",
		}},
	}, change...)
}

// internal are the claims of a key of the test console.
func (f *fixture) internal(change ...any) map[string]any {
	now := f.clock.now().Unix()
	return with(map[string]any{
		"iss": console, "sub": "admin", "jti": keyID, "iat": now, "exp": now + 60, "keytype": "PRODUCTION", "token_type": "InternalKey",
		"subscribedAPIs": []any{map[string]any{"name": "Shop", "version": "1.0.0", "context": "/shop/1.0.0"}},
	}, change...)
}

// allowed are the claims of a key of Microgateway's token service.
func (f *fixture) allowed(apis ...any) map[string]any {
	now := f.clock.now().Unix()
	return map[string]any{"iss": sts, "sub": "admin", "jti": keyID, "iat": now, "exp": now + 3600, "keytype": "PRODUCTION", "allowedAPIs": apis}
}

func with(c map[string]any, change ...any) map[string]any {
	for i := 0; i+1 < len(change); i += 2 {
		if change[i+1] == nil {
			delete(c, change[i].(string))
			continue
		}
		c[change[i].(string)] = change[i+1]
	}
	return c
}

func sign(method jwt.SigningMethod, key any, claims map[string]any) string {
	t := jwt.NewWithClaims(method, jwt.MapClaims(claims))
	t.Header["kid"] = "gateway_certificate_alias"
	s, err := t.SignedString(key)
	must(err)
	return s
}

func signRSA(claims map[string]any) string { return sign(jwt.SigningMethodRS256, rsaKey(), claims) }

// offer is a key that comes to the API Shop 1.0.0 from 10.1.2.3.
func offer(value string) keymanager.KeyOffer {
	return keymanager.KeyOffer{
		Value: value, Tenant: "carbon.super", APIUUID: shopUUID, APIName: "Shop", APIVersion: "1.0.0",
		APIContext: "/shop/1.0.0", ClientIP: netip.MustParseAddr("10.1.2.3"),
	}
}

func internalOffer(value string) keymanager.KeyOffer {
	o := offer(value)
	o.Internal = true
	return o
}

// accept authenticates twice, since what is cached must answer as the first time.
func (f *fixture) accept(o keymanager.KeyOffer) *keymanager.Token {
	f.t.Helper()
	first, _, err := f.AuthenticateKey(context.Background(), o)
	if err != nil {
		f.t.Fatalf("refused: %v", err)
	}
	again, cached, err := f.AuthenticateKey(context.Background(), o)
	if err != nil || !cached || again != first {
		f.t.Fatalf("the second time: %v, cached %t", err, cached)
	}
	return first
}

func (f *fixture) refuse(o keymanager.KeyOffer, want keymanager.Check) *keymanager.Refusal {
	f.t.Helper()
	var r *keymanager.Refusal
	for range 2 {
		tok, _, err := f.AuthenticateKey(context.Background(), o)
		if err == nil {
			f.t.Fatalf("accepted %+v; want a refusal at %s", tok, want)
		}
		if !errors.As(err, &r) || r.Check != want {
			f.t.Fatalf("refused with %v, want check %s", err, want)
		}
		plain(f.t, r.Detail, o.Value)
	}
	return r
}

// plain checks that a detail may stand in WWW-Authenticate and holds no secret.
func plain(t testing.TB, detail, secret string) {
	t.Helper()
	for _, c := range detail {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			t.Fatalf("detail %q may not stand in WWW-Authenticate", detail)
		}
	}
	if detail == "" || secret != "" && len(secret) > 8 && strings.Contains(detail, secret) {
		t.Fatalf("detail %q", detail)
	}
}
