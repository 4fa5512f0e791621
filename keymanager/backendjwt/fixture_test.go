package backendjwt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"gatehouse/keymanager"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Keys are dear to make: the tests share them.
var (
	rsaPEM = sync.OnceValue(func() []byte { k, err := rsa.GenerateKey(rand.Reader, 2048); return inPEM(k, err) })
	ecPEM  = sync.OnceValue(func() []byte { k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return inPEM(k, err) })
)

func edPEM() []byte {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	return inPEM(k, err)
}

func inPEM(k any, err error) []byte {
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// keyFile writes a key into a file of the test.
func keyFile(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backend-jwt.key")
	write(t, path, content)
	return path
}

// write replaces a file as a whole.
func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// lockedBuffer is a log that tests read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newGenerator(t testing.TB, o Options) (*Generator, *lockedBuffer) {
	t.Helper()
	log := &lockedBuffer{}
	o.Logger = zerolog.New(log)
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return g, log
}

// edGenerator signs with Ed25519, which is quick.
func edGenerator(t testing.TB, o Options) (*Generator, *lockedBuffer) {
	t.Helper()
	o.Algorithm = "EdDSA"
	if o.KeyFile == "" {
		o.KeyFile = keyFile(t, edPEM())
	}
	return newGenerator(t, o)
}

func mustToken(t testing.TB, g *Generator, c *keymanager.Caller, now time.Time) string {
	t.Helper()
	token, err := g.Token(c, now)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// verify checks a JWT as a backend does that knows only the key set: with other code than ours for both.
func verify(set []byte, token string, now time.Time) (jwt.MapClaims, error) {
	var decoded jwkset.JWKSMarshal
	if err := json.Unmarshal(set, &decoded); err != nil {
		return nil, err
	}
	keys, err := decoded.ToStorage()
	if err != nil {
		return nil, fmt.Errorf("key set %s: %w", set, err)
	}
	claims := jwt.MapClaims{}
	p := jwt.NewParser(jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithStrictDecoding(),
		jwt.WithIssuer("wso2.org/products/am"), jwt.WithJSONNumber())
	_, err = p.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		jwk, err := keys.KeyRead(context.Background(), kid)
		if err != nil {
			return nil, err
		}
		if jwk.Marshal().ALG != jwkset.ALG(t.Method.Alg()) {
			return nil, fmt.Errorf("alg %s with a key for %s", t.Method.Alg(), jwk.Marshal().ALG)
		}
		return jwk.Key(), nil
	})
	return claims, err
}

// head returns the JOSE header of a JWT.
func head(t testing.TB, token string) string {
	t.Helper()
	first, _, _ := strings.Cut(token, ".")
	b, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func kid(t testing.TB, token string) string {
	t.Helper()
	var h struct{ Kid string }
	if err := json.Unmarshal([]byte(head(t, token)), &h); err != nil {
		t.Fatal(err)
	}
	return h.Kid
}

var epochStart = time.Unix(1764000000, 0)

// alice calls the shop with a JWT of a third party.
func alice() *keymanager.Caller {
	return &keymanager.Caller{
		Token: &keymanager.Token{
			Kind: keymanager.KindJWT, KeyManager: "Corp Keycloak", Issuer: "https://keycloak.example.com/realms/shop", ID: "t-1",
			Subject: "f1b0", User: "alice", ConsumerKey: "mobile-app", Scopes: []string{"read", "write"}, ExpiresAt: 1764003600,
			Claims: map[string]any{
				"iss": "https://keycloak.example.com/realms/shop", "sub": "f1b0", "aud": "account", "exp": json.Number("1764003600"),
				"iat": json.Number("1763999990"), "jti": "t-1", "azp": "mobile-app", "scope": "read write", "scopes": "read write",
				"http://wso2.org/claims/enduser": "alice", "email": "alice@example.com", "given_name": "Alice <&>",
				"realm_access":                   map[string]any{"roles": []any{"buyer", "admin"}},
				"http://wso2.org/claims/apiname": "forged", "keytype": "SANDBOX", "application": map[string]any{"id": "666"},
				"tierInfo": map[string]any{}, "subscribedAPIs": []any{}, "nbf": json.Number("1"), "sub_internal": "secret", "level": json.Number("3"),
			},
		},
		APIUUID: "a-1", APIName: "Shop", APIVersion: "1.0.0", APIContext: "/shop/1.0.0", APITenant: "carbon.super",
		ApplicationID: 7, ApplicationUUID: "app-7", ApplicationName: "MobileApp", ApplicationOwner: "bob", ApplicationTier: "10PerMin",
		Attributes: &map[string]string{"cost centre": "42"},
		Tier:       "Gold", KeyType: "PRODUCTION", SubscriberTenant: "carbon.super",
	}
}
