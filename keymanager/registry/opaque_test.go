package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"gatehouse/keymanager"
)

// introspector is the introspection endpoint of a key manager. It knows the tokens that were put into it.
type introspector struct {
	*httptest.Server
	calls  atomic.Int64
	down   atomic.Bool
	mu     sync.Mutex
	tokens map[string]map[string]any
	wait   chan struct{} // nil: answers at once
}

func newIntrospector(t testing.TB) *introspector {
	s := &introspector{tokens: map[string]map[string]any{}}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		s.mu.Lock()
		claims, wait := s.tokens[form.Get("token")], s.wait
		s.mu.Unlock()
		if wait != nil {
			<-wait
		}
		if s.down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if claims == nil {
			io.WriteString(w, `{"active":false}`)
			return
		}
		json.NewEncoder(w).Encode(claims)
	}))
	s.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	return s
}

// know makes the token active, with claims beside the usual ones.
func (s *introspector) know(token string, claims map[string]any) {
	m := map[string]any{"active": true, "client_id": "ck-1", "username": "alice", "scope": "order:read order:write"}
	for k, v := range claims {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = m
}

func (s *introspector) forget(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
}

// hold makes the server wait with its answers until the function is called.
func (s *introspector) hold() (release func()) {
	wait := make(chan struct{})
	s.mu.Lock()
	s.wait = wait
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.wait = nil
		s.mu.Unlock()
		close(wait)
	})
}

const opaque = "d1f0b6a0-1111-4222-8333-444455556666"

type opaqueFixture struct {
	*fixture
	asked *introspector
}

// newOpaque is a registry whose one key manager introspects.
func newOpaque(t testing.TB, o IntrospectionOptions, change ...func(*keymanager.KeyManager)) *opaqueFixture {
	f := &opaqueFixture{fixture: &fixture{t: t, clock: newClock()}, asked: newIntrospector(t)}
	f.server = newKeyServer(t, jwk("r1", rsaKey(), nil))
	f.revs = newRevocations(f.clock)
	if o.Reset == 0 {
		o.Reset = time.Hour
	}
	f.Registry = New(Options{TLS: f.server.roots(), Now: f.clock.now, CacheEnabled: true, Revocations: f.revs, Introspection: o})
	t.Cleanup(f.Close)
	km := f.keyManager()
	km.Introspection = &keymanager.Introspection{URL: f.asked.URL, ClientID: "gateway", ClientSecret: "secret"}
	for _, c := range change {
		c(&km)
	}
	f.Put(km)
	return f
}

func TestOpaqueToken(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{}, func(km *keymanager.KeyManager) {
		km.ClaimMappings = []keymanager.ClaimMapping{{Remote: "mail", Local: "http://wso2.org/claims/emailaddress"}}
	})
	now := f.clock.now().Unix()
	f.asked.know(opaque, map[string]any{
		"sub": "u-1", "iat": now - 10, "exp": fmt.Sprint(now + 3600), "mail": "a@x", "jti": "j-1",
		"cnf": map[string]any{"x5t#S256": "abc"}, "iss": issuer,
	})
	tok := f.accept(opaque)
	if tok.Kind != keymanager.KindOpaque || tok.ConsumerKey != "ck-1" || tok.User != "alice" || tok.Subject != "u-1" || tok.ID != "j-1" ||
		tok.KeyManager != "Resident Key Manager" || strings.Join(tok.Scopes, ",") != "order:read,order:write" || tok.IssuedAt != now-10 ||
		tok.ExpiresAt != now+3600 || tok.Claims["http://wso2.org/claims/emailaddress"] != "a@x" || tok.BoundTo != "abc" || tok.Issuer != issuer {
		t.Errorf("token %+v", tok)
	}
	if _, cached, err := f.auth(opaque); err != nil || !cached || f.asked.calls.Load() != 1 {
		t.Errorf("again: cached=%t %v, %d calls", cached, err, f.asked.calls.Load())
	}
}

func TestOpaqueTokenClaims(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*keymanager.KeyManager)
		claims map[string]any
		check  func(*keymanager.Token) bool
	}{
		"the named claim is the consumer key":   {func(km *keymanager.KeyManager) { km.ConsumerKeyClaim = "azp" }, map[string]any{"azp": "ck-2"}, func(k *keymanager.Token) bool { return k.ConsumerKey == "ck-2" }},
		"client_id where the named is missing":  {func(km *keymanager.KeyManager) { km.ConsumerKeyClaim = "azp" }, nil, func(k *keymanager.Token) bool { return k.ConsumerKey == "ck-1" }},
		"azp where there is no client_id":       {nil, map[string]any{"client_id": nil, "azp": "ck-3"}, func(k *keymanager.Token) bool { return k.ConsumerKey == "ck-3" }},
		"scopes as an array":                    {nil, map[string]any{"scope": []string{"a", "b"}}, func(k *keymanager.Token) bool { return strings.Join(k.Scopes, ",") == "a,b" }},
		"scopes of the named claim":             {func(km *keymanager.KeyManager) { km.ScopesClaim = "scp" }, map[string]any{"scp": "x"}, func(k *keymanager.Token) bool { return strings.Join(k.Scopes, ",") == "x" }},
		"scope where the named claim is absent": {func(km *keymanager.KeyManager) { km.ScopesClaim = "scp" }, map[string]any{"scope": "y"}, func(k *keymanager.Token) bool { return strings.Join(k.Scopes, ",") == "y" }},
		"sub where there is no username":        {nil, map[string]any{"username": nil, "sub": "bob"}, func(k *keymanager.Token) bool { return k.User == "bob" && k.Subject == "bob" }},
		"no jti: an ID that is not the token": {nil, nil, func(k *keymanager.Token) bool {
			return strings.HasPrefix(k.ID, "sha256:") && !strings.Contains(k.ID, "d1f0")
		}},
		"never expires": {nil, map[string]any{"exp": json.Number("9223372036854775807")}, func(k *keymanager.Token) bool { return k.ExpiresAt == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			change := []func(*keymanager.KeyManager){}
			if tt.change != nil {
				change = append(change, tt.change)
			}
			f := newOpaque(t, IntrospectionOptions{}, change...)
			f.asked.know(opaque, tt.claims)
			if tok := f.accept(opaque); !tt.check(tok) {
				t.Errorf("token %+v", tok)
			}
		})
	}
}

func TestOpaqueTokenRefused(t *testing.T) {
	aud := func(km *keymanager.KeyManager) { km.Audience = []string{"https://api.example.test"} }
	none := func(*keymanager.KeyManager) {}
	past := newClock().now().Unix() - 3600
	for name, tt := range map[string]struct {
		change func(*keymanager.KeyManager)
		claims map[string]any
		check  keymanager.Check
	}{
		"expired although active": {none, map[string]any{"exp": past}, keymanager.CheckExpired},
		"not valid yet":           {none, map[string]any{"nbf": past + 7200}, keymanager.CheckNotBefore},
		"of another issuer":       {none, map[string]any{"iss": "https://other.test"}, keymanager.CheckIssuer},
		"issuer no text":          {none, map[string]any{"iss": 1}, keymanager.CheckIssuer},
		"for another audience":    {aud, map[string]any{"aud": "other"}, keymanager.CheckAudience},
		"for no audience":         {aud, nil, keymanager.CheckAudience},
	} {
		t.Run(name, func(t *testing.T) {
			f := newOpaque(t, IntrospectionOptions{}, tt.change)
			f.asked.know(opaque, tt.claims)
			for range 3 {
				f.refuse(opaque, tt.check)
			}
			if n := f.asked.calls.Load(); n != 1 {
				t.Errorf("%d calls, want 1", n)
			}
		})
	}
	f := newOpaque(t, IntrospectionOptions{}, aud)
	f.asked.know(opaque, map[string]any{"aud": []string{"x", "https://api.example.test"}})
	f.accept(opaque)
	for name, bad := range map[string]string{"blank": "a b", "line end": "a\r\nb", "control": "a\x00b", "not ASCII": "t\u00f6ken", "empty": ""} {
		if _, _, err := f.auth(bad); !errors.Is(err, keymanager.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := f.asked.calls.Load(); n != 1 {
		t.Errorf("somebody was asked about what is no token: %d calls", n)
	}
	f.refuse(strings.Repeat("a", 16<<10+1), keymanager.CheckSize)
}

func TestOpaqueHitComparesExpiry(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{TTL: time.Hour})
	f.asked.know(opaque, map[string]any{"exp": f.clock.now().Unix() + 30})
	f.accept(opaque)
	f.clock.advance(29 * time.Second)
	if _, cached, err := f.auth(opaque); err != nil || !cached {
		t.Errorf("before exp: cached=%t %v", cached, err)
	}
	f.asked.down.Store(true)
	f.clock.advance(time.Second)
	f.refuse(opaque, keymanager.CheckUnverified) // the cached answer is not used at exp
	f.asked.down.Store(false)
	f.clock.advance(5 * time.Second) // beyond the skew, although the key manager still says active
	f.refuse(opaque, keymanager.CheckExpired)
}

func TestOpaqueTTL(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.know(opaque, map[string]any{"exp": f.clock.now().Unix() + 3600})
	f.accept(opaque)
	f.clock.advance(DefaultIntrospectionTTL - time.Millisecond)
	f.accept(opaque)
	if n := f.asked.calls.Load(); n != 1 {
		t.Errorf("%d calls within the ttl", n)
	}
	f.asked.forget(opaque)
	f.clock.advance(time.Millisecond)
	f.refuse(opaque, keymanager.CheckInactive)
	if n := f.asked.calls.Load(); n != 2 {
		t.Errorf("%d calls after the ttl, want 2", n)
	}
	if n := f.verified.Len(); n != 0 {
		t.Errorf("%d answers are kept of a token that is not active", n)
	}
	g := newOpaque(t, IntrospectionOptions{TTL: -1})
	g.asked.know(opaque, nil)
	g.accept(opaque)
	g.accept(opaque)
	if n := g.asked.calls.Load(); n != 2 {
		t.Errorf("ttl 0: %d calls for two requests", n)
	}
}

func TestInactiveTokensAreRememberedForTenSeconds(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	for range 5 {
		f.refuse(opaque, keymanager.CheckInactive)
	}
	f.clock.advance(inactiveLife - time.Millisecond)
	f.refuse(opaque, keymanager.CheckInactive)
	if n := f.asked.calls.Load(); n != 1 {
		t.Errorf("%d calls", n)
	}
	f.asked.know(opaque, nil)
	f.clock.advance(time.Millisecond)
	f.accept(opaque)
}

func TestThousandRequestsWithOneTokenCostOneIntrospection(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.know(opaque, nil)
	release := f.asked.hold()
	defer release()
	var wg sync.WaitGroup
	var good, gone atomic.Int64
	// The request that begins the question goes away before the answer.
	first, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		_, _, err := f.Authenticate(first, keymanager.Credential{Bearer: opaque, Tenant: "carbon.super"})
		if err != nil {
			gone.Add(1)
		}
	})
	for end := time.Now().Add(5 * time.Second); f.asked.calls.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	started := make(chan struct{}, 1000)
	for range 1000 {
		wg.Go(func() {
			started <- struct{}{}
			if _, _, err := f.auth(opaque); err == nil {
				good.Add(1)
			}
		})
	}
	for range 1000 {
		<-started
	}
	cancel()
	for end := time.Now().Add(5 * time.Second); gone.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	release()
	wg.Wait()
	if good.Load() != 1000 || gone.Load() != 1 || f.asked.calls.Load() != 1 {
		t.Errorf("%d accepted, %d gone, %d introspections; want 1000, 1, 1", good.Load(), gone.Load(), f.asked.calls.Load())
	}
	if n := len(f.flights); n != 0 {
		t.Errorf("%d questions are left", n)
	}
}

func TestKeyManagerDown(t *testing.T) {
	t.Run("deny", func(t *testing.T) {
		f := newOpaque(t, IntrospectionOptions{})
		f.asked.know(opaque, map[string]any{"exp": f.clock.now().Unix() + 3600})
		f.accept(opaque)
		f.asked.down.Store(true)
		f.accept(opaque) // what is cached goes on
		for i := range 5 {
			if r := f.refuse(fmt.Sprint("other-", i), keymanager.CheckUnverified); !r.Temporary {
				t.Errorf("refusal %+v is not temporary", r)
			}
		}
		calls := f.asked.calls.Load()
		began := time.Now()
		if r := f.refuse("another", keymanager.CheckUnverified); !r.Temporary || time.Since(began) > 50*time.Millisecond {
			t.Errorf("with the breaker open: %+v after %v", r, time.Since(began))
		}
		if f.asked.calls.Load() != calls {
			t.Error("a call was made although the last five failed")
		}
		f.clock.advance(DefaultIntrospectionTTL)
		if r := f.refuse(opaque, keymanager.CheckUnverified); !r.Temporary {
			t.Errorf("refusal %+v", r)
		}
	})
	t.Run("stale", func(t *testing.T) {
		f := newOpaque(t, IntrospectionOptions{ServeStale: true, StaleTTL: 10 * time.Minute})
		f.asked.know(opaque, map[string]any{"exp": f.clock.now().Unix() + 3600})
		f.asked.know("short", map[string]any{"exp": f.clock.now().Unix() + 120})
		f.accept(opaque)
		f.accept("short")
		f.asked.down.Store(true)
		f.clock.advance(2*time.Minute - time.Second)
		f.accept(opaque)
		f.accept("short")
		f.clock.advance(time.Second)
		f.refuse("short", keymanager.CheckUnverified) // never past exp
		f.Sweep()
		f.clock.advance(9*time.Minute - time.Second)
		f.accept(opaque)
		f.clock.advance(time.Second)
		f.refuse(opaque, keymanager.CheckUnverified)
		if s := f.State().Managers[0].Introspection; s.Stale != 3 || s.Breaker != "open" || s.LastError == "" {
			t.Errorf("state %+v", s)
		}
	})
	t.Run("stale without a bound of its own", func(t *testing.T) {
		f := newOpaque(t, IntrospectionOptions{ServeStale: true})
		f.asked.know(opaque, map[string]any{"exp": f.clock.now().Unix() + 3600})
		f.asked.know("forever", nil)
		f.accept(opaque)
		f.accept("forever")
		f.asked.down.Store(true)
		f.clock.advance(3600*time.Second - time.Millisecond)
		f.accept(opaque)
		f.refuse("forever", keymanager.CheckUnverified) // nothing says how long it lives
		f.clock.advance(time.Millisecond)
		f.refuse(opaque, keymanager.CheckUnverified)
	})
	t.Run("a revoked token is not served stale", func(t *testing.T) {
		f := newOpaque(t, IntrospectionOptions{ServeStale: true, StaleTTL: time.Hour})
		f.asked.know(opaque, nil)
		f.accept(opaque)
		f.asked.down.Store(true)
		f.clock.advance(2 * time.Minute)
		f.revs.Put(keymanager.Revocation{Value: opaque, ExpiresAt: f.clock.now().Add(time.Hour).UnixMilli()})
		f.refuse(opaque, keymanager.CheckRevoked)
	})
}

func TestTheCallThatProbesDelaysNobody(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{Reset: 50 * time.Millisecond})
	f.asked.down.Store(true)
	for i := range 5 {
		f.refuse(fmt.Sprint("t", i), keymanager.CheckUnverified)
	}
	release := f.asked.hold()
	defer release()
	time.Sleep(60 * time.Millisecond) // the breaker's own time
	began := time.Now()
	f.refuse("probe", keymanager.CheckUnverified)
	if took := time.Since(began); took > 50*time.Millisecond {
		t.Errorf("the request that probes a silent key manager took %v", took)
	}
	f.asked.down.Store(false)
	f.asked.know(opaque, nil)
	release()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, _, err := f.auth(opaque); err == nil {
			return
		}
	}
	t.Error("the key manager is back, and nobody is asked")
}

func TestOpaqueTokenRevoked(t *testing.T) {
	now := newClock().now().UnixMilli()
	for name, r := range map[string]keymanager.Revocation{
		"the token":    {Value: opaque, ExpiresAt: now + 7200000},
		"jti":          {Value: "j-1", ExpiresAt: now + 7200000},
		"consumer key": {Kind: keymanager.RevokedConsumerKey, Value: "ck-1", Before: now},
		"user":         {Kind: keymanager.RevokedSubject, Value: "alice", Before: now},
	} {
		t.Run(name, func(t *testing.T) {
			f := newOpaque(t, IntrospectionOptions{})
			f.asked.know(opaque, map[string]any{"jti": "j-1", "iat": now/1000 - 10})
			f.accept(opaque)
			f.revs.Put(r)
			f.refuse(opaque, keymanager.CheckRevoked)
			f.clock.advance(2 * time.Minute) // nor after the answer is gone
			f.refuse(opaque, keymanager.CheckRevoked)
		})
	}
	f := newOpaque(t, IntrospectionOptions{})
	f.revs.Put(keymanager.Revocation{Value: opaque, ExpiresAt: now + 7200000})
	f.refuse(opaque, keymanager.CheckRevoked)
	if n := f.asked.calls.Load(); n != 0 {
		t.Errorf("%d calls about a token that is known to be revoked", n)
	}
}

func TestForgottenOpaqueTokensAreAskedAgain(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.know(opaque, nil)
	f.accept(opaque)
	if n := f.Forget([]string{opaque}); n != 1 {
		t.Errorf("%d forgotten", n)
	}
	f.asked.forget(opaque)
	f.refuse(opaque, keymanager.CheckInactive)
	f.asked.know(opaque, nil)
	f.Forget([]string{opaque})
	f.accept(opaque)
	// An answer that was on its way while it was forgotten is not kept.
	f.Forget([]string{opaque})
	release := f.asked.hold()
	calls := f.asked.calls.Load()
	done := make(chan struct{})
	go func() { defer close(done); f.auth(opaque) }()
	for end := time.Now().Add(5 * time.Second); f.asked.calls.Load() == calls && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	f.Forget([]string{opaque})
	release()
	<-done
	f.accept(opaque)
	if n := f.asked.calls.Load(); n != calls+2 {
		t.Errorf("%d calls, want %d", n, calls+2)
	}
}

func TestWhoIsAskedAboutAnOpaqueToken(t *testing.T) {
	a, b, c := newIntrospector(t), newIntrospector(t), newIntrospector(t)
	r := New(Options{TLS: (&keyServer{Server: a.Server}).roots(), CacheEnabled: true, Introspection: IntrospectionOptions{TTL: -1, Reset: time.Hour}})
	defer r.Close()
	put := func(name, tenant string, s *introspector, formats ...keymanager.TokenFormat) {
		r.Put(keymanager.KeyManager{
			Name: name, Tenant: tenant, Enabled: true, Issuer: "https://" + name, TokenFormats: formats,
			Introspection: &keymanager.Introspection{URL: s.URL},
		})
	}
	put("A", "carbon.super", a, keymanager.TokenFormat{Type: "REFERENCE", Pattern: "a-[0-9]+|aa"}, keymanager.TokenFormat{Type: "CUSTOM", Pattern: "(?:unclosed"})
	put("B", "carbon.super", b)
	put("C", keymanager.AllTenants, c, keymanager.TokenFormat{Type: "JWT", Pattern: ".*"})
	put("D", "example.org", a, keymanager.TokenFormat{Type: "REFERENCE", Pattern: ".*"})
	r.Put(keymanager.KeyManager{Name: "E", Tenant: "carbon.super", Enabled: false, Introspection: &keymanager.Introspection{URL: a.URL}})
	for _, s := range []*introspector{a, b, c} {
		s.know("shared", nil)
	}
	b.know("bb", nil)
	c.know("cc", nil)
	tests := []struct {
		token, tenant string
		allowed       []string
		asked         [3]int64 // of a, b, c
		owner         string
		check         keymanager.Check
	}{
		{"a-77", "carbon.super", nil, [3]int64{1, 0, 0}, "", keymanager.CheckInactive},
		{"aa", "carbon.super", []string{"B", "A"}, [3]int64{1, 0, 0}, "", keymanager.CheckInactive},
		{"xa-77", "carbon.super", nil, [3]int64{1, 1, 1}, "", keymanager.CheckInactive}, // the pattern is for the whole token
		{"a-77\n", "carbon.super", nil, [3]int64{0, 0, 0}, "", keymanager.CheckFormat},
		{"a-77", "carbon.super", []string{"B"}, [3]int64{0, 1, 0}, "", keymanager.CheckInactive}, // who claims it is not accepted
		{"shared", "carbon.super", nil, [3]int64{1, 0, 0}, "A", ""},
		{"shared", "carbon.super", []string{"C", "B", "A"}, [3]int64{0, 0, 1}, "C", ""},
		{"bb", "carbon.super", []string{"C", "B", "A"}, [3]int64{0, 1, 1}, "B", ""},
		{"cc", "carbon.super", []string{"all"}, [3]int64{1, 1, 1}, "C", ""},
		{"cc", "example.com", nil, [3]int64{0, 0, 1}, "C", ""},
		{"shared", "example.org", nil, [3]int64{1, 0, 0}, "D", ""},
		{"shared", "carbon.super", []string{"Nobody"}, [3]int64{}, "", keymanager.CheckAllowed},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(strings.TrimSpace(tt.token), " ", tt.tenant, tt.allowed), func(t *testing.T) {
			before := [3]int64{a.calls.Load(), b.calls.Load(), c.calls.Load()}
			r.inactive.DeleteFunc(func(*inactive) bool { return true })
			tok, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: tt.token, Tenant: tt.tenant, Allowed: tt.allowed})
			got := [3]int64{a.calls.Load() - before[0], b.calls.Load() - before[1], c.calls.Load() - before[2]}
			if got != tt.asked {
				t.Errorf("asked %v, want %v", got, tt.asked)
			}
			var refusal *keymanager.Refusal
			if errors.As(err, &refusal); tt.check != "" && (refusal == nil || refusal.Check != tt.check) {
				t.Errorf("error %v, want %s", err, tt.check)
			}
			if tt.owner != "" && (err != nil || tok.KeyManager != tt.owner) {
				t.Errorf("token %+v, %v; want one of %s", tok, err, tt.owner)
			}
		})
	}
	// One that fails is passed over once its breaker is open; what the others do not know may be its token.
	a.down.Store(true)
	for i := range 5 {
		r.Authenticate(context.Background(), keymanager.Credential{Bearer: fmt.Sprint("a-", i)})
	}
	before := a.calls.Load()
	if tok, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: "bb"}); err != nil || tok.KeyManager != "B" {
		t.Errorf("%+v, %v", tok, err)
	}
	_, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: "unknown"})
	var refusal *keymanager.Refusal
	if !errors.As(err, &refusal) || !refusal.Temporary {
		t.Errorf("error %v, want a temporary one", err)
	}
	if a.calls.Load() != before {
		t.Error("a key manager whose last five calls failed was asked")
	}
}

func TestOneTokenOfTwoKeyManagers(t *testing.T) {
	a, b := newIntrospector(t), newIntrospector(t)
	r := New(Options{TLS: (&keyServer{Server: a.Server}).roots(), CacheEnabled: true})
	defer r.Close()
	for tenant, s := range map[string]*introspector{"a.example": a, "b.example": b} {
		r.Put(keymanager.KeyManager{Name: "KM of " + tenant, Tenant: tenant, Enabled: true, Introspection: &keymanager.Introspection{URL: s.URL}})
		s.know(opaque, nil)
	}
	for range 3 {
		for _, tenant := range []string{"a.example", "b.example"} {
			tok, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: opaque, Tenant: tenant})
			if err != nil || tok.KeyManager != "KM of "+tenant {
				t.Fatalf("at %s: %+v, %v", tenant, tok, err)
			}
		}
	}
	if a.calls.Load() != 1 || b.calls.Load() != 1 {
		t.Errorf("%d and %d calls, want one each", a.calls.Load(), b.calls.Load())
	}
	if _, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: opaque, Tenant: "c.example"}); err == nil {
		t.Error("accepted at an API of a third tenant")
	}
}

func TestJWTOfAKeyManagerThatValidatesItself(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{}, func(km *keymanager.KeyManager) { km.SelfValidate = false })
	good := f.token()
	f.refuse(good, keymanager.CheckInactive) // the signature alone does not count here
	f.clock.advance(inactiveLife)
	f.asked.know(good, map[string]any{"client_id": "from the answer"})
	if tok := f.accept(good); tok.ConsumerKey != "from the answer" || tok.Kind != keymanager.KindOpaque {
		t.Errorf("token %+v", tok)
	}
	if _, cached, err := f.auth(good); err != nil || !cached {
		t.Errorf("again: %t %v", cached, err)
	}
	if n := f.server.fetches.Load(); n != 0 {
		t.Errorf("the keys were fetched %d times", n)
	}
	f.refuse(f.token("iss", "https://other.test"), keymanager.CheckIssuer)
	// And one that the gateway validates is never asked about.
	g := newOpaque(t, IntrospectionOptions{})
	g.accept(g.token())
	if g.asked.calls.Load() != 0 {
		t.Error("a JWT of a self-validating key manager was introspected")
	}
}

func TestSignedAnswerIsVerifiedWithTheKeysOfTheKeyManager(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{}, func(km *keymanager.KeyManager) { km.SelfValidate = false })
	serve := func(k any) {
		answer := sign(jwt.SigningMethodRS256, k, map[string]any{"kid": "r1", "typ": "token-introspection+jwt"}, map[string]any{
			"iss": issuer, "aud": "gateway",
			"iat": f.clock.now().Unix(), "token_introspection": map[string]any{"active": true, "client_id": "ck-9"},
		})
		f.asked.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/token-introspection+jwt")
			io.WriteString(w, answer)
		})
	}
	serve(rsaOther())
	if r := f.refuse(opaque, keymanager.CheckUnverified); !r.Temporary {
		t.Errorf("a forged answer: %+v", r)
	}
	serve(rsaKey())
	if tok := f.accept(opaque); tok.ConsumerKey != "ck-9" {
		t.Errorf("token %+v", tok)
	}
}

func TestSharedIssuerIsChosenByClaims(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) {
		km.TokenFormats = []keymanager.TokenFormat{{Type: "JWT", Claims: map[string]string{"realm": "one", "iss": issuer}}}
	})
	two := f.keyManager()
	two.Name, two.TokenFormats = "A second", []keymanager.TokenFormat{{Type: "JWT", Claims: map[string]string{"realm": "two"}}}
	f.Put(two)
	for range 2 { // the second round is cached
		if tok := f.accept(f.token("realm", "one")); tok.KeyManager != "Resident Key Manager" {
			t.Errorf("realm one: %s", tok.KeyManager)
		}
		if tok := f.accept(f.token("realm", []string{"x", "two"})); tok.KeyManager != "A second" {
			t.Errorf("realm two: %s", tok.KeyManager)
		}
		f.refuse(f.token("realm", "three"), keymanager.CheckIssuer)
		f.refuse(f.token(), keymanager.CheckIssuer)
	}
	third := two
	third.Name, third.TokenFormats = "Z without formats", nil
	f.Put(third)
	if tok := f.accept(f.token("realm", "three")); tok.KeyManager != "Z without formats" {
		t.Errorf("realm three: %s", tok.KeyManager)
	}
	token := f.token("realm", "two")
	f.accept(token)
	two.TokenFormats = []keymanager.TokenFormat{{Type: "JWT", Claims: map[string]string{"realm": "four"}}}
	f.Put(two)
	if tok := f.accept(token); tok.KeyManager != "Z without formats" {
		t.Errorf("after the change: %s", tok.KeyManager)
	}
}

func TestSharedSecret(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef"
	f := newFixture(t, func(km *keymanager.KeyManager) { km.JWKSURL, km.SharedSecret, km.FromConfiguration = "", secret, true })
	for _, m := range []jwt.SigningMethod{jwt.SigningMethodHS256, jwt.SigningMethodHS384, jwt.SigningMethodHS512} {
		token := sign(m, []byte(secret), nil, f.claims())
		f.accept(token)
		if _, cached, err := f.auth(token); err != nil || !cached {
			t.Errorf("%s again: %t %v", m.Alg(), cached, err)
		}
		f.refuse(sign(m, []byte(secret+"x"), nil, f.claims()), keymanager.CheckSignature)
		f.refuse(sign(m, []byte(""), nil, f.claims()), keymanager.CheckSignature)
	}
	f.refuse(f.token(), keymanager.CheckAlgorithm)
	f.refuse(sign(jwt.SigningMethodHS256, []byte(secret), map[string]any{"typ": "id+jwt"}, f.claims()), keymanager.CheckFormat)
	f.refuse(sign(jwt.SigningMethodHS256, []byte(secret), map[string]any{"crit": []string{"exp"}}, f.claims()), keymanager.CheckFormat)
	f.refuse(sign(jwt.SigningMethodHS256, []byte(secret), nil, f.claims("exp", 1)), keymanager.CheckExpired)
	if s := f.State().Managers[0]; s.LastError != "" || s.KeySource != "secret" {
		t.Errorf("state %+v", s)
	}

	both := newFixture(t, func(km *keymanager.KeyManager) { km.SharedSecret = secret })
	both.accept(both.token())
	both.accept(sign(jwt.SigningMethodHS256, []byte(secret), map[string]any{"kid": "r1"}, both.claims()))
	only := newFixture(t, func(km *keymanager.KeyManager) {
		km.SharedSecret, km.Algorithms = secret, []string{"HS384"}
	})
	only.refuse(sign(jwt.SigningMethodHS256, []byte(secret), nil, only.claims()), keymanager.CheckAlgorithm)
	only.accept(sign(jwt.SigningMethodHS384, []byte(secret), nil, only.claims()))

	for name, bad := range map[string]string{"short": secret[1:], "a public key": "-----BEGIN PUBLIC KEY-----\n" + strings.Repeat("A", 60)} {
		g := newFixture(t, func(km *keymanager.KeyManager) { km.JWKSURL, km.SharedSecret = "", bad })
		if _, _, err := g.auth(sign(jwt.SigningMethodHS256, []byte(bad), nil, g.claims())); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if s := g.State().Managers[0]; !strings.Contains(s.LastError, "shared secret") || strings.Contains(s.LastError, bad) {
			t.Errorf("%s: state %q", name, s.LastError)
		}
	}
}

func TestAPIKeysAreNoAccessTokens(t *testing.T) {
	f := newFixture(t)
	for _, kind := range []string{"apiKey", "APIKEY", "InternalKey"} {
		f.refuse(f.token("token_type", kind), keymanager.CheckKind)
	}
	f.accept(f.token("token_type", "Bearer"))
}

func TestSecretsAreNotShown(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{}, func(km *keymanager.KeyManager) {
		km.SharedSecret = "0123456789abcdef0123456789abcdef"
		km.Introspection.ClientSecret, km.Introspection.KeyPEM = "hunter2", "-----BEGIN PRIVATE KEY-----"
	})
	for name, v := range map[string]any{"All": f.All(), "State": f.State()} {
		b, err := json.Marshal(v)
		must(err)
		for _, secret := range []string{"hunter2", "0123456789abcdef", "PRIVATE KEY"} {
			if strings.Contains(string(b), secret) {
				t.Errorf("%s shows %s: %s", name, secret, b)
			}
		}
	}
	f.asked.know(opaque, nil)
	f.accept(opaque) // and they are still used
}

func TestIntrospectionStateAndMetrics(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.know(opaque, nil)
	f.accept(opaque)
	f.refuse("unknown", keymanager.CheckInactive)
	f.asked.down.Store(true)
	for i := range 6 {
		f.refuse(fmt.Sprint(i), keymanager.CheckUnverified)
	}
	s := f.State().Managers[0].Introspection
	if s.Calls != 7 || s.Active != 1 || s.Inactive != 1 || s.Failures != 5 || s.Breaker != "open" || !strings.Contains(s.LastError, "502") || s.Auth != "client_secret_basic" {
		t.Errorf("state %+v", s)
	}
	reg := prometheus.NewPedanticRegistry()
	must(reg.Register(collector{f.Registry}))
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP gatehouse_introspection_breaker_state State of the breaker: 0 closed, 1 half-open, 2 open.
# TYPE gatehouse_introspection_breaker_state gauge
gatehouse_introspection_breaker_state{key_manager="Resident Key Manager"} 2
# HELP gatehouse_introspection_calls_total Introspections of tokens, by answer.
# TYPE gatehouse_introspection_calls_total counter
gatehouse_introspection_calls_total{key_manager="Resident Key Manager",result="active"} 1
gatehouse_introspection_calls_total{key_manager="Resident Key Manager",result="failed"} 5
gatehouse_introspection_calls_total{key_manager="Resident Key Manager",result="inactive"} 1
`), "gatehouse_introspection_calls_total", "gatehouse_introspection_breaker_state"); err != nil {
		t.Error(err)
	}
}

func TestVerifyIntrospects(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.know(opaque, nil)
	for range 2 {
		if v := f.Verify(context.Background(), opaque, VerifyOptions{}); !v.Valid || v.KeyManager != "Resident Key Manager" || v.Issuer != issuer {
			t.Errorf("%+v", v)
		}
	}
	if n := f.asked.calls.Load(); n != 2 {
		t.Errorf("%d calls: the caches were asked", n)
	}
	if v := f.Verify(context.Background(), "unknown", VerifyOptions{}); v.Valid || v.Failed != keymanager.CheckInactive {
		t.Errorf("%+v", v)
	}
}

func TestChangeOfAKeyManagerKeepsItsBreaker(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.down.Store(true)
	for i := range 5 {
		f.refuse(fmt.Sprint(i), keymanager.CheckUnverified)
	}
	km := f.keyManager()
	km.Introspection = &keymanager.Introspection{URL: f.asked.URL, ClientID: "gateway", ClientSecret: "secret"}
	km.ScopesClaim = "scp"
	f.Put(km)
	if s := f.State().Managers[0].Introspection; s.Breaker != "open" || s.Failures != 5 {
		t.Errorf("after a change of something else: %+v", s)
	}
	changed := *km.Introspection
	changed.ClientSecret = "new"
	km.Introspection = &changed
	f.Put(km)
	if s := f.State().Managers[0].Introspection; s.Breaker != "closed" || s.Failures != 0 {
		t.Errorf("after a change of the secret: %+v", s)
	}
	f.asked.down.Store(false)
	f.asked.know(opaque, nil)
	f.accept(opaque)
	km.Introspection = nil
	f.Put(km)
	f.refuse(opaque, keymanager.CheckOpaque)
}

func TestOpaqueHitAllocatesNothing(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.know(opaque, map[string]any{"exp": f.clock.now().Unix() + 3600})
	f.accept(opaque)
	f.revs.Put(keymanager.Revocation{Value: "x"})
	c := keymanager.Credential{Bearer: opaque, Tenant: "carbon.super", Allowed: []string{"Other", "Default"}}
	if n := testing.AllocsPerRun(100, func() {
		if _, cached, err := f.Authenticate(context.Background(), c); err != nil || !cached {
			t.Fatal(cached, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAuthenticateOpaqueHit(b *testing.B) {
	const tokens = 10000
	f := newOpaque(b, IntrospectionOptions{TTL: time.Hour})
	f.now = time.Now
	creds := make([]keymanager.Credential, tokens)
	ctx := context.Background()
	for i := range creds {
		creds[i] = keymanager.Credential{Bearer: fmt.Sprintf("d1f0b6a0-1111-4222-8333-%012d", i), Tenant: "carbon.super"}
		f.asked.know(creds[i].Bearer, map[string]any{"exp": time.Now().Unix() + 3600})
		if _, _, err := f.Authenticate(ctx, creds[i]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i = (i + 7919) % tokens
		if _, cached, err := f.Authenticate(ctx, creds[i]); err != nil || !cached {
			b.Fatal(cached, err)
		}
	}
}

func TestEndpointThatWantsCredentials(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{}, func(km *keymanager.KeyManager) { km.Introspection = nil })
	f.asked.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.calls.Add(1)
		if _, secret, _ := r.BasicAuth(); secret != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		io.WriteString(w, `{"active":true,"client_id":"ck-1"}`)
	})
	// As the API Manager describes its own key manager.
	km := f.keyManager()
	km.Introspection = &keymanager.Introspection{URL: f.asked.URL}
	f.Put(km)
	for i := range 10 {
		f.refuse(fmt.Sprint("garbage", i), keymanager.CheckOpaque)
	}
	if n := f.asked.calls.Load(); n != 1 {
		t.Errorf("%d calls although the first was told that the gateway may not ask", n)
	}
	f.clock.advance(2 * time.Minute)
	f.refuse("garbage", keymanager.CheckOpaque)
	if s := f.State().Managers[0].Introspection; f.asked.calls.Load() != 2 || !strings.Contains(s.LastError, "own credentials (none)") {
		t.Errorf("%d calls, state %+v", f.asked.calls.Load(), s)
	}
	// The configuration lends them.
	local := keymanager.KeyManager{
		Name: "local", Issuer: issuer, Enabled: true, FromConfiguration: true,
		Introspection: &keymanager.Introspection{URL: f.asked.URL, ClientID: "gateway", ClientSecret: "secret"},
	}
	f.ReplaceConfigured([]keymanager.KeyManager{local})
	if tok := f.accept(opaque); tok.KeyManager != "Resident Key Manager" {
		t.Errorf("token %+v", tok)
	}
	f.ReplaceAll([]keymanager.KeyManager{km})
	if _, cached, err := f.auth(opaque); err != nil || !cached {
		t.Errorf("the same list again: cached=%t %v", cached, err)
	}
	wrong := *local.Introspection
	wrong.ClientSecret = "wrong"
	local.Introspection = &wrong
	f.ReplaceConfigured([]keymanager.KeyManager{local})
	f.refuse(opaque, keymanager.CheckUnverified)
	// Those of another issuer are nobody else's, and who has its own keeps them.
	right := wrong
	right.ClientSecret = "secret"
	local.Introspection, local.Issuer = &right, "https://other.test"
	f.ReplaceConfigured([]keymanager.KeyManager{local})
	km.Introspection = &keymanager.Introspection{URL: f.asked.URL, ClientID: "own", ClientSecret: "own"}
	f.Put(km)
	local.Issuer = issuer
	f.ReplaceConfigured([]keymanager.KeyManager{local})
	f.refuse(opaque, keymanager.CheckUnverified)
}

// newModel is newOpaque on an endpoint that several registries share, for many short rounds.
func newModel(asked *introspector, o IntrospectionOptions) *opaqueFixture {
	f := &opaqueFixture{fixture: &fixture{clock: newClock()}, asked: asked}
	f.revs = newRevocations(f.clock)
	f.Registry = New(Options{TLS: (&keyServer{Server: asked.Server}).roots(), Now: f.clock.now, CacheEnabled: true, Revocations: f.revs, Introspection: o})
	f.Put(keymanager.KeyManager{Name: "KM", Tenant: "carbon.super", Enabled: true, Introspection: &keymanager.Introspection{URL: asked.URL}})
	return f
}

// TestQuestionsAreBounded: clients that send tokens and go away leave no more behind than the gateway can hold.
func TestQuestionsAreBounded(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.asked.know(opaque, nil)
	f.accept(opaque)
	release := f.asked.hold()
	defer release()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range maxFlights + 500 {
		if _, _, err := f.Authenticate(gone, keymanager.Credential{Bearer: fmt.Sprint("garbage-", i), Tenant: "carbon.super"}); err == nil {
			t.Fatal("accepted")
		}
	}
	f.asking.Lock()
	n := len(f.flights)
	f.asking.Unlock()
	if n > maxFlights {
		t.Errorf("%d questions are under way, want at most %d", n, maxFlights)
	}
	f.accept(opaque)
	f.refuse("one more", keymanager.CheckFormat)
	if r := f.refuse("one-more", keymanager.CheckUnverified); !r.Temporary {
		t.Error("the caller is blamed")
	}
}

// faulty panics once when something is logged.
type faulty struct{ left atomic.Int64 }

func (h *faulty) Run(*zerolog.Event, zerolog.Level, string) {
	if h.left.Add(-1) == 0 {
		panic("a fault")
	}
}

// TestFaultOfAnIntrospection: the token is refused, and the gateway goes on.
func TestFaultOfAnIntrospection(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	hook := &faulty{}
	f.opts.Logger = zerolog.New(io.Discard).Hook(hook)
	hook.left.Store(1) // the failure that is told of
	f.asked.down.Store(true)
	if r := f.refuse(opaque, keymanager.CheckUnverified); !r.Temporary {
		t.Error("the caller is blamed")
	}
	if hook.left.Load() > 0 {
		t.Fatal("there was no fault")
	}
	f.asked.down.Store(false)
	f.asked.know(opaque, nil)
	f.accept(opaque)
}

// TestFaultOfAChange: a fault in the middle of a change leaves no lock behind.
func TestFaultOfAChange(t *testing.T) {
	f := newFixture(t)
	hook := &faulty{}
	f.opts.Logger = zerolog.New(io.Discard).Hook(hook)
	bad := f.keyManager()
	bad.Name, bad.Issuer, bad.TokenFormats = "bad", "https://bad.test", []keymanager.TokenFormat{{Pattern: "("}}
	for name, change := range map[string]func(){
		"put":       func() { f.Put(bad) },
		"replace":   func() { f.ReplaceAll([]keymanager.KeyManager{f.keyManager(), bad}) },
		"configure": func() { f.ReplaceConfigured([]keymanager.KeyManager{bad}) },
	} {
		t.Run(name, func(t *testing.T) {
			hook.left.Store(1)
			func() {
				defer func() {
					if recover() == nil {
						t.Error("there was no fault")
					}
				}()
				change()
			}()
			f.accept(f.token())
			other := f.keyManager()
			other.Name, other.Issuer = "other "+name, "https://other.test/"+name
			f.Put(other)
			if f.Delete("carbon.super", other.Name) == nil {
				t.Error("the key manager is not there")
			}
		})
	}
}
