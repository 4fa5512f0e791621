package integration_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"

	"gatehouse/agent"
	"gatehouse/integration/emulator"
)

// verifier is a backend that believes the caller's identity only where a JWT that verifies says so. It knows the gateway by its
// key set alone, which it keeps for as long as the gateway says, and does not ask again for a key that it does not know.
type verifier struct {
	server *httptest.Server

	mu       sync.Mutex
	keySet   string // URL
	keys     jwkset.Storage
	until    time.Time
	fetches  int
	accepted map[string]int // by kid
	last     jwt.MapClaims
	header   http.Header
}

func startVerifier(t *testing.T) *verifier {
	t.Helper()
	v := &verifier{accepted: map[string]int{}}
	v.server = httptest.NewServer(http.HandlerFunc(v.serve))
	t.Cleanup(v.server.Close)
	return v
}

func (v *verifier) serve(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.header = r.Header.Clone()
	if err := v.check(r.Header.Values("X-JWT-Assertion")); err != nil {
		http.Error(w, "not believed: "+err.Error(), http.StatusForbidden)
	}
}

func (v *verifier) check(lines []string) error {
	if len(lines) != 1 {
		return fmt.Errorf("%d assertions", len(lines))
	}
	if err := v.refresh(); err != nil {
		return err
	}
	claims := jwt.MapClaims{}
	token, err := jwt.NewParser(jwt.WithExpirationRequired(), jwt.WithStrictDecoding(), jwt.WithValidMethods([]string{"RS256", "ES256"})).
		ParseWithClaims(lines[0], claims, func(t *jwt.Token) (any, error) {
			kid, _ := t.Header["kid"].(string)
			k, err := v.keys.KeyRead(context.Background(), kid)
			if err != nil {
				return nil, fmt.Errorf("kid %q: %w", kid, err)
			}
			return k.Key(), nil
		})
	if err != nil {
		return err
	}
	kid, _ := token.Header["kid"].(string)
	v.accepted[kid]++
	v.last = claims
	return nil
}

func (v *verifier) refresh() error {
	if time.Now().Before(v.until) {
		return nil
	}
	asked := time.Now()
	resp, err := http.Get(v.keySet)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	age, err := strconv.Atoi(strings.TrimPrefix(resp.Header.Get("Cache-Control"), "max-age="))
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the key set: %d, Cache-Control %q", resp.StatusCode, resp.Header.Get("Cache-Control"))
	}
	var set jwkset.JWKSMarshal
	if err := json.NewDecoder(resp.Body).Decode(&set); err != nil {
		return err
	}
	if v.keys, err = set.ToStorage(); err != nil {
		return err
	}
	v.fetches++
	v.until = asked.Add(time.Duration(age) * time.Second)
	return nil
}

// seen returns what the last request brought.
func (v *verifier) seen() (jwt.MapClaims, http.Header) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last, v.header
}

func (v *verifier) kids() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.accepted)
}

// startVerified starts a gateway with the shop in front of a backend that verifies.
func startVerified(t *testing.T, o worldOptions) (*world, *verifier) {
	t.Helper()
	v := startVerifier(t)
	o.fill = func(t testing.TB, e *emulator.Emulator) {
		shop(t, e)
		for _, row := range e.Rows().APIs {
			e.OverrideEndpoints(row.UUID, "Default", v.server.URL, v.server.URL)
		}
	}
	w := startWorld(t, o)
	v.mu.Lock()
	v.keySet = w.gateway.http + "/.well-known/jwks.json"
	v.mu.Unlock()
	return w, v
}

func TestABackendVerifiesWhoCalls(t *testing.T) {
	dataDir := filepath.Join(t.TempDir(), "data")
	w, v := startVerified(t, worldOptions{dataDir: dataDir, sections: "[apim.jwt]\nenable = true\naudience = [\"orders\"]\n"})
	token := w.mint("mobile-app", "alice", "default")
	for name, edit := range map[string]func(*http.Request){
		"nothing forged":     func(*http.Request) {},
		"a forged assertion": func(r *http.Request) { r.Header.Set("X-JWT-Assertion", "forged") },
		"in other letters":   func(r *http.Request) { r.Header["x_jwt_assertion"] = []string{"forged"} },
	} {
		a := w.gateway.call("GET", "/shop/1.0.0/items", token, edit)
		claims, header := v.seen()
		if a.status != 200 {
			t.Fatalf("%s: %v", name, a)
		}
		for claim, want := range map[string]string{
			"iss": "wso2.org/products/am", "sub": "alice", "aud": "orders", "http://wso2.org/claims/enduser": "alice",
			"http://wso2.org/claims/applicationname": "MobileApp", "http://wso2.org/claims/subscriber": "alice", "http://wso2.org/claims/apiname": "Shop",
			"http://wso2.org/claims/apicontext": "/shop/1.0.0", "http://wso2.org/claims/version": "1.0.0", "http://wso2.org/claims/tier": "Gold",
			"http://wso2.org/claims/keytype": "PRODUCTION", "http://wso2.org/claims/usertype": "Application_User", "http://wso2.org/claims/enduserTenantDomain": "carbon.super",
		} {
			if claims[claim] != want {
				t.Errorf("%s: %s is %v, want %s", name, claim, claims[claim], want)
			}
		}
		for k, lines := range header {
			if strings.Contains(strings.Join(lines, ""), "forged") {
				t.Errorf("%s: the backend got %s: %s", name, k, lines)
			}
		}
		if trace := w.gateway.get("/api/v1/explain?request_id=" + a.header.Get("X-Request-Id")); !strings.Contains(trace, `{"step":"backend_jwt","result":"ok"}`) {
			t.Errorf("%s: the trace lacks the step: %s", name, trace)
		}
	}
	_, header := v.seen()
	if assertion := header.Get("X-JWT-Assertion"); strings.Contains(w.gateway.log.String(), assertion) {
		t.Error("the log holds the JWT")
	}
	if info, err := os.Stat(filepath.Join(dataDir, "backend-jwt-rsa.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key that was made: %v %v", info, err)
	}
}

// ecKeyFile replaces the key file as a whole, as configuration managers do.
func ecKeyFile(t *testing.T, path string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// The key file is replaced, well and badly, while requests run: none of them meets a backend that does not know the key.
func TestTheKeyOfBackendJWTsIsRotatedUnderTraffic(t *testing.T) {
	key := filepath.Join(t.TempDir(), "backend-jwt.key")
	ecKeyFile(t, key)
	w, v := startVerified(t, worldOptions{
		sections: fmt.Sprintf("[apim.jwt]\nenable = true\nsigning_algorithm = \"ES256\"\nkey_file = %q\n", key),
		agent:    func(o *agent.Options) { o.KeySetMaxAge = time.Second },
	})
	l := startLoad(t, w.gateway, 4, w.mint("mobile-app", "alice", "default"), false, "/shop/1.0.0/items")
	eventually(t, 10*time.Second, "the first key signs", func() bool { return v.kids() == 1 })
	for n := 2; n <= 3; n++ {
		ecKeyFile(t, key)
		eventually(t, 20*time.Second, fmt.Sprintf("key %d signs", n), func() bool { return v.kids() == n })
	}
	if err := os.WriteFile(key, []byte("half a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the bad file is told of", func() bool {
		return strings.Contains(w.gateway.log.String(), "apim.jwt.key_file")
	})
	time.Sleep(1500 * time.Millisecond) // longer than a new key would wait
	l.end(t)
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.accepted) != 3 {
		t.Errorf("accepted by key: %v", v.accepted)
	}
	t.Logf("%d requests, accepted by key %v, key set fetched %d times", l.sent.Load(), v.accepted, v.fetches)
}

func TestClaimsOfBackendJWTsAreReloaded(t *testing.T) {
	w, v := startVerified(t, worldOptions{sections: "[apim.jwt]\nenable = true\naudience = [\"old\"]\n"})
	token := w.mint("mobile-app", "alice", "default")
	if a := w.gateway.call("GET", "/shop/1.0.0/items", token); a.status != 200 {
		t.Fatal(a)
	}
	old, err := os.ReadFile(w.gateway.config)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(old), `["old"]`, `["new"]`, 1) +
		"[apim.jwt.gateway_generator]\nexcluded_claims = [\"http://wso2.org/claims/tier\"]\n[[apim.jwt.claims]]\nname = \"app\"\nvalue = \"{app:name} of {app:owner}\"\n"
	if err := os.WriteFile(w.gateway.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the new claims are sent", func() bool {
		a := w.gateway.call("GET", "/shop/1.0.0/items", token)
		claims, _ := v.seen()
		_, tier := claims["http://wso2.org/claims/tier"]
		return a.status == 200 && claims["aud"] == "new" && claims["app"] == "MobileApp of alice" && !tier
	})
	if strings.Contains(w.gateway.log.String(), "take effect with the next restart") {
		t.Error("a restart is asked for")
	}
}

func TestABackendJWTThatCannotBeMade(t *testing.T) {
	// A claim that no header can hold.
	sections := "[apim.jwt]\nenable = true\n%s[[apim.jwt.claims]]\nname = \"long\"\nvalue = \"" + strings.Repeat("x", 40<<10) + "\"\n"
	t.Run("refuses the request", func(t *testing.T) {
		w, v := startVerified(t, worldOptions{sections: fmt.Sprintf(sections, "")})
		token := w.mint("mobile-app", "alice", "default")
		a := w.gateway.call("GET", "/shop/1.0.0/items", token, func(r *http.Request) { r.Header.Set("X-JWT-Assertion", "forged") })
		if a.status != 500 || a.code != 900900 {
			t.Errorf("%v, want 500/900900", a)
		}
		if _, header := v.seen(); header != nil {
			t.Errorf("the backend was called with %v", header)
		}
		trace := w.gateway.get("/api/v1/explain?request_id=" + a.header.Get("X-Request-Id"))
		if !strings.Contains(trace, "too large for a header") {
			t.Errorf("the trace does not say why: %s", trace)
		}
	})
	t.Run("is left out where the operator says so", func(t *testing.T) {
		w, v := startVerified(t, worldOptions{sections: fmt.Sprintf(sections, "on_error = \"omit\"\n")})
		token := w.mint("mobile-app", "alice", "default")
		a := w.gateway.call("GET", "/shop/1.0.0/items", token, func(r *http.Request) { r.Header.Set("X-JWT-Assertion", "forged") })
		_, header := v.seen()
		if a.status != 403 || !strings.Contains(a.body, "0 assertions") || header == nil || header.Get("X-JWT-Assertion") != "" {
			t.Errorf("%v, the backend got %v", a, header)
		}
	})
}
