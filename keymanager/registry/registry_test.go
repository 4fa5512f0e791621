package registry

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"gatehouse/keymanager"
	"gatehouse/keymanager/jwks"
)

func TestRotationCostsOneFetch(t *testing.T) {
	f := newFixture(t)
	f.accept(f.token())
	f.clock.advance(time.Minute)
	before := f.server.fetches.Load()
	f.server.serve(jwk("r2", rsaOther(), nil))
	next := sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r2"}, f.claims())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, _, err := f.auth(next); err != nil {
				t.Errorf("refused: %v", err)
			}
		})
	}
	wg.Wait()
	if n := f.server.fetches.Load() - before; n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
	// The old key left the set: what it signed no longer counts, cached or not.
	f.refuse(f.token(), keymanager.CheckKey)
}

func TestCachedTokenGoesWithItsKey(t *testing.T) {
	f := newFixture(t)
	token := f.token()
	f.accept(token)
	f.server.serve(jwk("r2", rsaOther(), nil))
	f.clock.advance(time.Minute)
	f.accept(token) // nothing was fetched yet
	f.accept(sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r2"}, f.claims()))
	f.refuse(token, keymanager.CheckKey)
	// A set that still holds the key keeps the token.
	f.server.serve(jwk("r2", rsaOther(), nil), jwk("r3", rsaKey(), nil))
	f.clock.advance(time.Minute)
	second := sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r2"}, f.claims())
	f.accept(second)
	f.accept(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "r3"}, f.claims()))
	if _, cached, err := f.auth(second); err != nil || !cached {
		t.Errorf("cached=%t, %v", cached, err)
	}
}

func TestTenThousandBadKeyIDsCostOneFetch(t *testing.T) {
	f := newFixture(t)
	f.accept(f.token())
	before := f.server.fetches.Load()
	claims := f.claims()
	tail := "." + strings.SplitN(sign(jwt.SigningMethodES256, ecKey(), nil, claims), ".", 2)[1]
	for i := range 10000 {
		f.refuse(raw64([]byte(fmt.Sprintf(`{"alg":"ES256","kid":"bad-%d"}`, i)))+tail, keymanager.CheckKey)
	}
	if n := f.server.fetches.Load() - before; n > 1 {
		t.Errorf("%d fetches", n)
	}
	f.clock.advance(jwks.UnknownKeyPause)
	f.refuse(raw64([]byte(`{"alg":"ES256","kid":"bad-x"}`))+tail, keymanager.CheckKey)
	if n := f.server.fetches.Load() - before; n > 2 {
		t.Errorf("%d fetches after the pause", n)
	}
}

func TestNoKeyIDTriesEveryKeyOfTheTypeUpToEight(t *testing.T) {
	f := newFixture(t)
	noKid := sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": nil}, f.claims())
	if tok := f.accept(noKid); tok.KeyID != "r1" {
		t.Errorf("verified with %q", tok.KeyID)
	}
	var many []map[string]any
	for i := range 8 {
		many = append(many, jwk(fmt.Sprint("o", i), rsaOther(), nil))
	}
	g := newFixture(t)
	g.server.serve(append(many, jwk("r1", rsaKey(), nil))...)
	g.Delete("carbon.super", "Resident Key Manager")
	g.Put(g.keyManager())
	g.refuse(noKid, keymanager.CheckSignature)
	g.accept(g.token())
	h := newFixture(t)
	h.server.serve(append(many[:7], jwk("r1", rsaKey(), nil))...)
	h.Delete("carbon.super", "Resident Key Manager")
	h.Put(h.keyManager())
	h.accept(noKid)
}

func TestNoKeyIDAfterRotation(t *testing.T) {
	f := newFixture(t)
	f.accept(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": nil}, f.claims()))
	f.server.serve(jwk("", rsaOther(), nil))
	f.accept(sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": nil}, f.claims()))
}

func TestUnreachableKeyServerIsTemporary(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) { km.MaxStale = time.Hour })
	token := f.token("exp", f.clock.now().Unix()+86400)
	f.accept(token)
	f.server.fail(http.StatusInternalServerError)
	f.clock.advance(time.Hour - time.Second)
	if _, cached, err := f.auth(token); err != nil || !cached {
		t.Fatalf("with keys held: cached=%t %v", cached, err)
	}
	f.clock.advance(2 * time.Second)
	if r := f.refuse(token, keymanager.CheckUnverified); !r.Temporary || r.KeyManager != "Resident Key Manager" {
		t.Errorf("refusal %+v", r)
	}
	f.server.serve(jwk("r1", rsaKey(), nil))
	f.clock.advance(jwks.UnknownKeyPause)
	f.accept(token)

	g := newFixture(t, func(km *keymanager.KeyManager) { km.JWKSURL = "https://127.0.0.1:1/jwks" })
	if r := g.refuse(g.token(), keymanager.CheckUnverified); !r.Temporary {
		t.Errorf("refusal %+v", r)
	}
	st := g.State()
	if len(st.Managers) != 1 || st.Managers[0].LastError == "" || st.HeldWithoutKeys != 1 {
		t.Errorf("state %+v", st)
	}
}

func TestPEMKeys(t *testing.T) {
	der, err := x509.MarshalPKIXPublicKey(rsaKey().Public())
	must(err)
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	for name, value := range map[string]string{"PEM": text, "base64 of PEM": base64.StdEncoding.EncodeToString([]byte(text))} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(km *keymanager.KeyManager) { km.JWKSURL, km.PEM = "", value })
			f.accept(f.token())
			f.accept(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": nil}, f.claims()))
			f.refuse(sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r1"}, f.claims()), keymanager.CheckSignature)
			f.refuse(sign(jwt.SigningMethodES256, ecKey(), map[string]any{"kid": "r1"}, f.claims()), keymanager.CheckKey)
		})
	}
	f := newFixture(t, func(km *keymanager.KeyManager) { km.JWKSURL, km.PEM = "", "rubbish!" })
	if r := f.refuse(f.token(), keymanager.CheckUnverified); !r.Temporary {
		t.Errorf("refusal %+v", r)
	}
	if e := f.State().Managers[0].LastError; !strings.Contains(e, "neither PEM text nor") {
		t.Errorf("the state says %q", e)
	}
}

func TestCAFile(t *testing.T) {
	f := newFixture(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw}), 0o600))
	r := New(Options{Now: f.clock.now})
	defer r.Close()
	km := f.keyManager()
	check := func(want bool, detail string) {
		t.Helper()
		r.Put(km)
		_, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: f.token()})
		if (err == nil) != want || !strings.Contains(r.State().Managers[0].LastError, detail) {
			t.Errorf("CA file %q: %v, %s", km.CAFile, err, r.State().Managers[0].LastError)
		}
	}
	check(false, "certificate")
	km.CAFile = file
	check(true, "")
	km.CAFile = file + "x"
	check(false, "reading its CA file")
	must(os.WriteFile(file, []byte("x"), 0o600))
	km.CAFile = file
	check(false, "holds no PEM certificate")
	km.CAFile, km.SkipTLSVerify = "", true
	check(true, "")
}

func TestNamesMatchExactlyFirst(t *testing.T) {
	f := newFixture(t)
	named := func(name string) keymanager.KeyManager {
		return keymanager.KeyManager{Name: name, Tenant: "carbon.super", Enabled: true, SelfValidate: true, Issuer: "https://" + name, PEM: "x"}
	}
	if b := f.Put(named("corp")); b != nil {
		t.Errorf("replaced %+v", b)
	}
	if b := f.Put(named("CORP")); b == nil || b.Name != "corp" {
		t.Errorf("replaced %+v", b)
	}
	if b := f.Delete("example.org", "CORP"); b != nil {
		t.Errorf("deleted another tenant's %+v", b)
	}
	if b := f.Delete("carbon.super", "Corp"); b == nil || b.Name != "CORP" {
		t.Errorf("deleted %+v", b)
	}
	// The resident key manager has two names.
	def := f.keyManager()
	def.Name = "Default"
	if b := f.Put(def); b == nil || b.Name != "Resident Key Manager" {
		t.Errorf("replaced %+v", b)
	}
	if tok := f.accept(f.token()); tok.KeyManager != "Resident Key Manager" {
		t.Errorf("canonical name %q", tok.KeyManager)
	}
	if len(f.All()) != 1 {
		t.Errorf("%d key managers", len(f.All()))
	}
}

func TestDisabledKeyManager(t *testing.T) {
	f := newFixture(t)
	token := f.token()
	f.accept(token)
	km := f.keyManager()
	km.Enabled = false
	f.Put(km)
	r := f.refuse(token, keymanager.CheckIssuer)
	if !strings.Contains(r.Detail, "disabled") || len(f.All()) != 1 {
		t.Errorf("%s, %d kept", r.Detail, len(f.All()))
	}
	km.Enabled, km.SelfValidate = true, false
	f.Put(km)
	f.refuse(token, keymanager.CheckIssuer)
	km.SelfValidate = true
	f.Put(km)
	f.accept(token)
}

func TestAllowedKeyManagers(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) { km.UUID = "ABCD-1" })
	token := f.token()
	for _, tt := range []struct {
		allowed []string
		ok      bool
	}{
		{nil, true},
		{[]string{}, true},
		{[]string{"all"}, true},
		{[]string{"ALL"}, true},
		{[]string{"Resident Key Manager"}, true},
		{[]string{"Default"}, true},
		{[]string{"x", "resident key manager"}, true},
		{[]string{"ABCD-1"}, true},
		{[]string{"abcd-1"}, true},
		{[]string{"x"}, false},
		{[]string{""}, false},
	} {
		for range 2 {
			_, _, err := f.Authenticate(context.Background(), keymanager.Credential{Bearer: token, Allowed: tt.allowed})
			var r *keymanager.Refusal
			if (err == nil) != tt.ok || err != nil && (!errors.As(err, &r) || r.Check != keymanager.CheckAllowed) {
				t.Errorf("%q: %v", tt.allowed, err)
			}
		}
	}
}

// TestTwoKeyManagersOfOneIssuer: the API's tenant first, then a global one; what one verified is not the other's.
func TestTwoKeyManagersOfOneIssuer(t *testing.T) {
	f := newFixture(t)
	f.Delete("carbon.super", "Resident Key Manager")
	add := func(name, tenant, claim string) {
		km := f.keyManager()
		km.Name, km.Tenant, km.ConsumerKeyClaim = name, tenant, claim
		f.Put(km)
	}
	add("B", "carbon.super", "azp")
	add("A", keymanager.AllTenants, "sub")
	add("C", "example.org", "jti")
	token := f.token()
	ask := func(tenant string, allowed ...string) string {
		tok, _, err := f.Authenticate(context.Background(), keymanager.Credential{Bearer: token, Tenant: tenant, Allowed: allowed})
		if r, ok := errors.AsType[*keymanager.Refusal](err); ok {
			return string(r.Check)
		}
		return tok.KeyManager + "/" + tok.ConsumerKey
	}
	const id = "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01"
	for range 3 {
		for _, tt := range []struct{ got, want string }{
			{ask("carbon.super"), "B/ck-1"},
			{ask("example.org"), "C/" + id},
			{ask("third.org"), "A/alice"},
			{ask(""), "B/ck-1"},
			{ask("carbon.super", "A"), "A/alice"},
			{ask("carbon.super", "C"), "key_manager_not_allowed"},
			{ask("example.org", "A", "C"), "C/" + id},
		} {
			if tt.got != tt.want {
				t.Errorf("got %s, want %s", tt.got, tt.want)
			}
		}
	}
	if _, cached, _ := f.Authenticate(context.Background(), keymanager.Credential{Bearer: token, Tenant: "third.org"}); !cached {
		t.Error("the global key manager's answer is not cached")
	}
	add("0", "carbon.super", "scope") // by name before B
	if got := ask("carbon.super"); !strings.HasPrefix(got, "0/") {
		t.Errorf("got %s", got)
	}
	f.Delete(keymanager.AllTenants, "A")
	f.Delete("carbon.super", "B")
	f.Delete("carbon.super", "0")
	if got := ask("carbon.super"); got != "issuer" {
		t.Errorf("another tenant's key manager answered: %s", got)
	}
}

func TestAPIManagerReplacesAnIssuerOfTheConfiguration(t *testing.T) {
	f := newFixture(t)
	f.Delete("carbon.super", "Resident Key Manager")
	local := f.keyManager()
	local.Name, local.Tenant, local.FromConfiguration, local.SkipSubscriptions = "local", "", true, true
	f.Put(local)
	token := f.token()
	if tok := f.accept(token); !tok.SkipSubscriptions || tok.KeyManager != "local" {
		t.Errorf("token %+v", tok)
	}
	f.ReplaceAll([]keymanager.KeyManager{f.keyManager()})
	if tok := f.accept(token); tok.SkipSubscriptions || tok.KeyManager != "Resident Key Manager" {
		t.Errorf("token %+v", tok)
	}
	off := f.keyManager()
	off.Enabled = false
	f.ReplaceAll([]keymanager.KeyManager{off})
	f.refuse(token, keymanager.CheckIssuer)
	f.ReplaceAll(nil)
	if tok := f.accept(token); tok.KeyManager != "local" {
		t.Errorf("token %+v", tok)
	}
	f.ReplaceConfigured([]keymanager.KeyManager{local})
	if _, cached, err := f.auth(token); err != nil || !cached {
		t.Errorf("the same configuration again: cached=%t %v", cached, err)
	}
	f.ReplaceAll([]keymanager.KeyManager{f.keyManager()})
	f.ReplaceConfigured(nil)
	if len(f.All()) != 1 || f.All()[0].FromConfiguration {
		t.Errorf("left: %+v", f.All())
	}
}

func TestUnchangedKeyManagerKeepsKeysAndTokens(t *testing.T) {
	f := newFixture(t)
	token := f.token()
	f.accept(token)
	fetches := f.server.fetches.Load()
	same := f.keyManager()
	same.Origin = keymanager.Origin{Kind: "pull", At: 5, ID: "p"}
	for range 3 {
		f.ReplaceAll([]keymanager.KeyManager{same})
		f.Put(same)
	}
	if _, cached, err := f.auth(token); err != nil || !cached {
		t.Errorf("cached=%t %v", cached, err)
	}
	if o := f.All()[0].Origin; o.Kind != "pull" {
		t.Errorf("origin %+v", o)
	}
	changed := same
	changed.ScopesClaim = "roles"
	f.ReplaceAll([]keymanager.KeyManager{changed})
	if _, cached, err := f.auth(token); err != nil || cached {
		t.Errorf("after a change: cached=%t %v", cached, err)
	}
	if n := f.server.fetches.Load(); n != fetches {
		t.Errorf("%d fetches although the key server is the same", n-fetches)
	}
	f.ReplaceAll(nil)
	f.refuse(token, keymanager.CheckIssuer)
}

func TestRevocationIsAskedOnEveryRequest(t *testing.T) {
	now := newClock().now().UnixMilli()
	for name, r := range map[string]keymanager.Revocation{
		"jti":          {Value: "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01", ExpiresAt: now + 7200000},
		"consumer key": {Kind: keymanager.RevokedConsumerKey, Value: "ck-1", Before: now},
		"user":         {Kind: keymanager.RevokedSubject, Value: "alice", Before: now},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			token := f.token()
			f.accept(token)
			if _, cached, _ := f.auth(token); !cached {
				t.Fatal("not cached")
			}
			r.Origin = keymanager.Origin{Kind: "event", ID: "e", At: now}
			f.revs.Put(r)
			if got := f.refuse(token, keymanager.CheckRevoked); got.Origin != r.Origin {
				t.Errorf("origin %+v", got.Origin)
			}
			fresh := f.token("iat", f.clock.now().Unix(), "jti", "another", "azp", "ck-1")
			f.accept(fresh)
		})
	}
	f := newFixture(t)
	token := f.token("jti", nil)
	f.accept(token)
	f.revs.Put(keymanager.Revocation{Value: strings.Split(token, ".")[2], ExpiresAt: now + 7200000})
	f.refuse(token, keymanager.CheckRevoked)
}

func TestNegativeCache(t *testing.T) {
	f := newFixture(t)
	bad := sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r1"}, f.claims())
	cached := func(token string) bool {
		_, c, err := f.auth(token)
		if err == nil {
			t.Fatal("accepted")
		}
		return c
	}
	if first, second := cached(bad), cached(bad); first || !second {
		t.Error("a signature failure is not remembered")
	}
	f.clock.advance(negativeLife)
	if cached(bad) {
		t.Error("remembered for too long")
	}
	expired := f.token("exp", f.clock.now().Unix()-100)
	if first, second := cached(expired), cached(expired); first || second {
		t.Error("an expired token is remembered as bad")
	}
	// A key that comes makes the token good, whatever is remembered.
	f.accept(f.token())
	if !cached(bad) {
		t.Error("not remembered")
	}
	f.server.serve(jwk("r1", rsaOther(), nil))
	f.clock.advance(jwks.UnknownKeyPause)
	f.refuse(sign(jwt.SigningMethodES256, ecKey(), map[string]any{"kid": "unknown"}, f.claims()), keymanager.CheckKey)
	f.accept(bad)
}

func TestClaims(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) {
		km.ConsumerKeyClaim, km.ScopesClaim = "client", "/realm_access/roles"
		km.ClaimMappings = []keymanager.ClaimMapping{{Remote: "preferred_username", Local: "http://wso2.org/claims/enduser"}, {Remote: "/app/client_id", Local: "client"}}
	})
	tok := f.accept(f.token("preferred_username", "bob", "app", map[string]any{"client_id": "ck-9"}, "realm_access", map[string]any{"roles": []string{"r", "w x"}}, "big", 9007199254740993))
	if tok.User != "bob" || tok.Subject != "alice" || tok.ConsumerKey != "ck-9" {
		t.Errorf("token %+v", tok)
	}
	if d := cmp.Diff([]string{"r", "w", "x"}, tok.Scopes); d != "" {
		t.Error(d)
	}
	if _, moved := tok.Claims["preferred_username"]; moved || fmt.Sprint(tok.Claims["big"]) != "9007199254740993" {
		t.Errorf("claims %v", tok.Claims)
	}
}

func TestSelfContainedToken(t *testing.T) {
	f := newFixture(t)
	tok := f.accept(f.token("keytype", "sandbox", "application", map[string]any{"id": 7, "uuid": "u", "name": "App", "owner": "alice", "tier": "50PerMin"},
		"subscribedAPIs", []any{map[string]any{"name": "Pizza", "version": "1.0.0", "context": "/pizza/1.0.0", "subscriptionTier": "Gold", "subscriberTenantDomain": "carbon.super"}}))
	if d := cmp.Diff(&keymanager.EmbeddedApplication{ID: 7, UUID: "u", Name: "App", Owner: "alice", Tier: "50PerMin", KeyType: "SANDBOX"}, tok.Application); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]keymanager.EmbeddedSubscription{{Name: "Pizza", Version: "1.0.0", Context: "/pizza/1.0.0", Tier: "Gold", SubscriberTenant: "carbon.super"}}, tok.Subscribed); d != "" {
		t.Error(d)
	}
}

func TestVerify(t *testing.T) {
	f := newFixture(t)
	v := f.Verify(context.Background(), "  "+f.token()+"\n", VerifyOptions{})
	if !v.Valid || v.KeyManager != "Resident Key Manager" || v.Issuer != issuer || v.Claims["sub"] != "alice" || v.Token == nil {
		t.Errorf("%+v", v)
	}
	v = f.Verify(context.Background(), f.token("iss", "https://other"), VerifyOptions{})
	if v.Valid || v.Failed != keymanager.CheckIssuer || v.Issuer != "https://other" || v.Claims != nil {
		t.Errorf("%+v", v)
	}
	v = f.Verify(context.Background(), f.token(), VerifyOptions{Allowed: []string{"x"}})
	if v.Failed != keymanager.CheckAllowed {
		t.Errorf("%+v", v)
	}
}

func TestAuthenticateCachedAllocatesNothing(t *testing.T) {
	f := newFixture(t)
	f.revs.Put(keymanager.Revocation{Value: "x"})
	f.revs.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "x", Before: 1})
	c := keymanager.Credential{Bearer: f.token(), Tenant: "carbon.super", Allowed: []string{"Resident Key Manager"}}
	f.accept(c.Bearer)
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		if _, cached, err := f.Authenticate(ctx, c); err != nil || !cached {
			t.Fatal(cached, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCacheIsBoundedAndCanBeOff(t *testing.T) {
	f := newFixture(t)
	r := New(Options{TLS: f.server.roots(), Now: f.clock.now, CacheEnabled: true, CacheCapacity: 50})
	defer r.Close()
	r.Put(f.keyManager())
	for i := range 200 {
		tok := sign(jwt.SigningMethodEdDSA, edKey(), map[string]any{"kid": "o1"}, f.claims("jti", fmt.Sprint(i)))
		if _, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: tok}); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.State().CachedTokens; n > 50 || n < 40 {
		t.Errorf("%d tokens cached", n)
	}
	off := New(Options{TLS: f.server.roots(), Now: f.clock.now})
	defer off.Close()
	off.Put(f.keyManager())
	for range 2 {
		if _, cached, err := off.Authenticate(context.Background(), keymanager.Credential{Bearer: f.token()}); err != nil || cached {
			t.Errorf("cached=%t %v", cached, err)
		}
	}
}

func TestStateAndMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	f := newFixture(t)
	r := New(Options{TLS: f.server.roots(), Now: f.clock.now, CacheEnabled: true, Registerer: reg})
	defer r.Close()
	r.Put(f.keyManager())
	twin := f.keyManager() // the same issuer twice must not break the metrics
	twin.Name, twin.Tenant = "twin", "example.org"
	twin.JWKSURL = "https://127.0.0.1:1/"
	r.Put(twin)
	for range 3 {
		if _, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: f.token()}); err != nil {
			t.Fatal(err)
		}
	}
	s := r.State()
	if len(s.Managers) != 2 || s.CacheHits != 2 || s.CachedTokens != 2 { // one entry leads to the issuer, one is that of the key manager
		t.Errorf("state %+v", s)
	}
	m := s.Managers[0]
	if d := cmp.Diff([]KeyState{{ID: "r1", Type: "RSA"}, {ID: "e1", Type: "EC"}, {ID: "o1", Type: "OKP"}}, m.Keys); d != "" || !m.InUse || m.KeySource != "jwks" || m.Fetches != 1 {
		t.Errorf("%s %+v", d, m)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP gatehouse_cache_hits_total Look-ups that a cache answered.
# TYPE gatehouse_cache_hits_total counter
gatehouse_cache_hits_total{cache="token"} 2
`), "gatehouse_cache_hits_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg); err != nil || n != 6 {
		t.Errorf("%d metrics, %v", n, err)
	}
}

func TestLogsHoldNoToken(t *testing.T) {
	var out syncBuffer
	f := newFixture(t)
	r := New(Options{TLS: f.server.roots(), Now: f.clock.now, CacheEnabled: true, Logger: zerolog.New(&out)})
	defer r.Close()
	r.Put(f.keyManager())
	for _, tok := range []string{f.token(), f.token("exp", 1), f.token("iss", "x"), "planted-opaque-secret"} {
		r.Authenticate(context.Background(), keymanager.Credential{Bearer: tok})
		if last := tok[max(0, len(tok)-20):]; strings.Contains(out.String(), last) {
			t.Errorf("the log holds a token: %s", out.String())
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func TestRunSweepsAndCloses(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.accept(f.token())
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// Closed: the keys held still verify, and nothing is fetched any more.
	fetches := f.server.fetches.Load()
	f.Put(keymanager.KeyManager{Name: "late", Tenant: "x", Enabled: true, SelfValidate: true, Issuer: "late", JWKSURL: f.server.URL + "/late"})
	f.refuse(sign(jwt.SigningMethodES256, ecKey(), map[string]any{"kid": "zz"}, f.claims("iss", "late")), keymanager.CheckIssuer)
	if n := f.server.fetches.Load(); n != fetches {
		t.Errorf("%d fetches after the end", n-fetches)
	}
}

// TestConcurrentChanges verifies tokens while key managers and keys come and go.
func TestConcurrentChanges(t *testing.T) {
	f := newFixture(t)
	stable := f.keyManager()
	moving := f.keyManager()
	moving.Name, moving.Issuer = "moving", "https://moving"
	tokens := make([]string, 20)
	for i := range tokens {
		tokens[i] = sign(jwt.SigningMethodEdDSA, edKey(), map[string]any{"kid": "o1"}, f.claims("jti", fmt.Sprint(i)))
	}
	other := sign(jwt.SigningMethodEdDSA, edKey(), map[string]any{"kid": "o1"}, f.claims("iss", moving.Issuer))
	f.accept(tokens[0])
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := f.auth(tokens[i%len(tokens)]); err != nil {
					t.Errorf("a token of a key manager that stays was refused: %v", err)
					return
				}
				f.auth(other)
				f.State()
			}
		})
	}
	for i := range 60 {
		list := []keymanager.KeyManager{stable}
		if i%2 == 0 {
			moving.ScopesClaim = fmt.Sprint(i)
			list = append(list, moving)
		}
		f.ReplaceAll(list)
		f.revs.Put(keymanager.Revocation{Value: fmt.Sprint("other", i), ExpiresAt: f.clock.now().UnixMilli() + 1000})
		f.Sweep()
	}
	close(stop)
	wg.Wait()
}

func TestOpaqueTokensAreForAnother(t *testing.T) {
	f := newFixture(t)
	r := f.refuse("d1f0b6a0-7a84-4c5c-8a41-0e6b0f5f9a01", keymanager.CheckOpaque)
	if r.Temporary {
		t.Error("temporary")
	}
}

func TestForgottenTokensAreVerifiedAnew(t *testing.T) {
	f := newFixture(t)
	cached := func(token string) bool {
		t.Helper()
		_, cached, err := f.auth(token)
		if err != nil {
			t.Fatal(err)
		}
		return cached
	}
	claims := f.claims()
	claims["jti"] = "by-id"
	named := sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "r1"}, claims)
	other := f.token()
	cached(named)
	cached(other)
	if !cached(named) || !cached(other) {
		t.Fatal("the tokens are not cached to begin with")
	}
	if n := f.Forget([]string{"by-id", "unknown", ""}); n != 1 {
		t.Errorf("dropped = %d, want the one with that jti", n)
	}
	if cached(named) {
		t.Error("a token that was named by its jti is still cached")
	}
	if n := f.Forget([]string{named}); n != 1 || cached(named) {
		t.Errorf("dropped = %d, and the token that was named by its text is still cached", n)
	}
	if !cached(other) {
		t.Error("a token that was not named went too")
	}
}

// Bad mappings are passed over and told once; the key manager goes on with the others.
func TestBadClaimMappingsStopNoKeyManager(t *testing.T) {
	var log bytes.Buffer
	f := newFixture(t)
	f.opts.Logger = zerolog.New(&log)
	km := f.keyManager()
	km.ClaimMappings = []keymanager.ClaimMapping{
		{Remote: "email", Local: "sub"},
		{Remote: "", Local: "x"},
		{Remote: "name", Local: "y", Function: "regex((,)"},
		{Remote: "preferred_username", Local: "http://wso2.org/claims/enduser", Function: "lower"},
	}
	f.Put(km)
	for range 3 {
		tok := f.accept(f.token("preferred_username", "Bob", "email", "mallory", "name", "n"))
		if tok.User != "bob" || tok.Subject != "alice" || tok.Claims["sub"] != "alice" || tok.Claims["email"] != "mallory" || tok.Claims["name"] != "n" {
			t.Fatalf("%+v", tok)
		}
	}
	if n := strings.Count(log.String(), "passed over"); n != 1 || !strings.Contains(log.String(), "registered claim") {
		t.Errorf("told %d times:\n%s", n, log.String())
	}
}
