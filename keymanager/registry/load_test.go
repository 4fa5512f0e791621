package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

// soak reports whether the long forms are asked for.
func soak() bool { return os.Getenv("GATEHOUSE_SOAK") != "" }

// refusals collects what was refused that should not have been.
type refusals struct {
	n     atomic.Int64
	first atomic.Pointer[string]
}

func (r *refusals) add(what string, err error) {
	if r.n.Add(1) == 1 {
		s := fmt.Sprintf("%s: %v", what, err)
		r.first.Store(&s)
	}
}

func (r *refusals) report(t *testing.T) {
	t.Helper()
	if n := r.n.Load(); n > 0 {
		t.Errorf("%d valid requests were refused; the first: %s", n, *r.first.Load())
	}
}

// Key managers are added, changed and removed while tokens of those that stay are verified and introspected.
func TestKeyManagersChangeUnderLoadWithoutARefusal(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{TTL: 20 * time.Millisecond})
	f.now = time.Now
	f.clock.at.Store(time.Now().UnixNano())
	mirror := newKeyServer(t, jwk("r1", rsaKey(), nil)) // a second address of the same keys
	f.asked.know(opaque, nil)
	base := f.keyManager()
	base.SkipTLSVerify = true
	base.Introspection = &keymanager.Introspection{URL: f.asked.URL, ClientID: "gateway", ClientSecret: "secret"}
	f.Put(base)
	tokens := make([]string, 40)
	for i := range tokens {
		tokens[i] = f.token("jti", fmt.Sprint(i))
	}
	f.accept(tokens[0])
	f.accept(opaque)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var bad refusals
	var requests atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			for i := w; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				token := tokens[i%len(tokens)]
				if i%3 == 0 {
					token = opaque
				}
				if _, _, err := f.auth(token); err != nil {
					bad.add("a token of a key manager that stays", err)
				}
				requests.Add(1)
			}
		})
	}
	other := keymanager.KeyManager{Name: "Comes and goes", Tenant: "carbon.super", Enabled: true, SelfValidate: true, Issuer: "https://moving", JWKSURL: mirror.URL, SkipTLSVerify: true}
	changes := []func(*keymanager.KeyManager){
		func(km *keymanager.KeyManager) { km.ScopesClaim = "scp" },
		func(km *keymanager.KeyManager) { km.JWKSURL = mirror.URL },
		func(km *keymanager.KeyManager) {
			km.Introspection = &keymanager.Introspection{URL: f.asked.URL, ClientID: "gateway", ClientSecret: "new"}
		},
		func(km *keymanager.KeyManager) {
			km.TokenFormats = []keymanager.TokenFormat{{Type: "REFERENCE", Pattern: ".*"}}
		},
		func(*keymanager.KeyManager) {},
	}
	rounds := 6
	if soak() {
		rounds = 200
	}
	for round := range rounds {
		for _, change := range changes {
			km := base
			change(&km)
			f.Put(km)
			if round%2 == 0 {
				f.Put(other)
			} else {
				f.Delete("carbon.super", other.Name)
			}
			f.ReplaceAll([]keymanager.KeyManager{other, km})
			f.ReplaceAll([]keymanager.KeyManager{km})
			time.Sleep(2 * time.Millisecond)
		}
	}
	close(stop)
	wg.Wait()
	bad.report(t)
	t.Logf("%d requests during %d changes", requests.Load(), rounds*len(changes)*4)
}

// rotating is a key manager that rotates its keys: the new one is published a while before its first use, when the old one
// is withdrawn.
type rotating struct {
	server *keyServer
	mu     sync.Mutex
	n      int
	key    *ecdsa.PrivateKey
	keys   []*ecdsa.PrivateKey
}

func (k *rotating) publish(ids ...int) {
	var list []map[string]any
	for _, id := range ids {
		list = append(list, jwk(fmt.Sprint("k", id), k.keys[id], nil))
	}
	k.server.serve(list...)
}

// token signs with the key in use.
func (k *rotating) token(claims map[string]any) string {
	k.mu.Lock()
	n, key := k.n, k.key
	k.mu.Unlock()
	return sign(jwt.SigningMethodES256, key, map[string]any{"kid": fmt.Sprint("k", n)}, claims)
}

// paced waits until the i-th of so many requests a second is due, without losing any on a busy machine; false ends them.
func paced(stop <-chan struct{}, began time.Time, perSecond, i int) bool {
	wait := time.Until(began.Add(time.Second * time.Duration(i) / time.Duration(perSecond)))
	if wait <= 0 {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	select {
	case <-stop:
		return false
	case <-time.After(wait):
		return true
	}
}

// TestRotationUnderLoad rotates five times under valid traffic and a flood of unknown key IDs. In its short form every time
// is a fiftieth of that of the long one: 24 s a rotation, published 12 s before, 1,000 requests/s.
func TestRotationUnderLoad(t *testing.T) {
	scale, rate := time.Duration(50), 200
	if soak() {
		scale, rate = 1, 1000
	}
	const rotations = 5
	ahead, period, refresh := 12*time.Second/scale, 24*time.Second/scale, 5*time.Second/scale
	k := &rotating{}
	for range rotations + 1 {
		k.keys = append(k.keys, newEC(elliptic.P256()))
	}
	k.key = k.keys[0]
	k.server = newKeyServer(t, jwk("k0", k.keys[0], nil))
	r := New(Options{TLS: k.server.roots(), CacheEnabled: true})
	defer r.Close()
	r.Put(keymanager.KeyManager{Name: "KM", Tenant: "carbon.super", Enabled: true, SelfValidate: true, Issuer: issuer, JWKSURL: k.server.URL, JWKSRefresh: refresh})
	claims := func(jti string) map[string]any {
		now := time.Now().Unix()
		return map[string]any{"iss": issuer, "sub": "alice", "azp": "ck-1", "jti": jti, "iat": now, "exp": now + 3600}
	}
	auth := func(token string) error {
		_, _, err := r.Authenticate(context.Background(), keymanager.Credential{Bearer: token})
		return err
	}
	if err := auth(k.token(claims("first"))); err != nil {
		t.Fatal(err)
	}
	stranger := ecKey()
	began, before := time.Now(), k.server.fetches.Load()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var bad refusals
	var valid, flood atomic.Int64
	// Valid traffic: new tokens and ones that were seen, of the key in use.
	wg.Go(func() {
		var held string
		var heldOf int
		for i := 0; paced(stop, began, rate, i); i++ {
			k.mu.Lock()
			n := k.n
			k.mu.Unlock()
			if held == "" || heldOf != n || i%10 == 0 {
				held, heldOf = k.token(claims(fmt.Sprint("v", i))), n
			}
			err := auth(held)
			k.mu.Lock()
			same := k.n == heldOf
			k.mu.Unlock()
			if err != nil && same {
				bad.add(fmt.Sprintf("a token of key k%d", heldOf), err)
			}
			valid.Add(1)
		}
	})
	// A flood of tokens with key IDs that nobody has.
	wg.Go(func() {
		for i := 0; paced(stop, began, rate/2, i); i++ {
			if err := auth(sign(jwt.SigningMethodES256, stranger, map[string]any{"kid": fmt.Sprint("unknown", i)}, claims("x"))); err == nil {
				t.Error("a token of an unknown key was accepted")
			}
			flood.Add(1)
		}
	})
	accepted := 0
	for n := 1; n <= rotations; n++ {
		old := k.token(claims(fmt.Sprint("old", n))) // verified, so that it is in the cache
		if err := auth(old); err != nil {
			t.Errorf("before rotation %d: %v", n, err)
		}
		k.publish(n-1, n)
		time.Sleep(ahead)
		k.mu.Lock()
		k.n, k.key = n, k.keys[n]
		k.mu.Unlock()
		k.publish(n)
		withdrawn := time.Now()
		// A tenth of the interval and half a second are for the fetch on a busy machine.
		for time.Since(withdrawn) < refresh+refresh/10+500*time.Millisecond && auth(old) == nil {
			time.Sleep(time.Millisecond)
		}
		if err := auth(old); err == nil {
			accepted++
			t.Errorf("key k%d is withdrawn since %v, and its tokens are accepted", n-1, time.Since(withdrawn))
		} else if refusal := (*keymanager.Refusal)(nil); !errors.As(err, &refusal) || refusal.Temporary {
			t.Errorf("a token of a withdrawn key: %v", err)
		}
		if rest := period - ahead - time.Since(withdrawn); rest > 0 {
			time.Sleep(rest)
		}
	}
	close(stop)
	wg.Wait()
	bad.report(t)
	took := time.Since(began)
	fetches := k.server.fetches.Load() - before
	// One fetch each interval, less its jitter of a tenth, and one in ten seconds for the unknown key IDs.
	most := int64(took/(refresh-refresh/10)) + int64(took/(10*time.Second)) + 3
	if fetches > most {
		t.Errorf("%d fetches in %v, want at most %d", fetches, took, most)
	}
	t.Logf("%d rotations in %v: %d valid requests, %d refused; %d unknown key IDs; %d fetches of at most %d; %d withdrawn keys accepted",
		rotations, took.Round(time.Millisecond), valid.Load(), bad.n.Load(), flood.Load(), fetches, most, accepted)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Many distinct valid tokens pass through, and what is held does not grow with them.
func TestAMillionDistinctTokensInBoundedMemory(t *testing.T) {
	const secret = "0123456789abcdef0123456789abcdef"
	tokens, capacity := 6000, 500
	method, key, header := jwt.SigningMethod(jwt.SigningMethodHS256), any([]byte(secret)), map[string]any(nil) // the cheapest to sign
	if soak() {
		tokens, capacity = 1_000_000, DefaultCacheCapacity
		method, key, header = jwt.SigningMethodEdDSA, edKey(), map[string]any{"kid": "o1"}
	}
	f := &fixture{t: t, clock: newClock()}
	f.server = newKeyServer(t, jwk("o1", edKey(), nil))
	f.revs = newRevocations(f.clock)
	f.Registry = New(Options{TLS: f.server.roots(), Now: f.clock.now, CacheEnabled: true, CacheCapacity: capacity, Revocations: f.revs})
	t.Cleanup(f.Close)
	km := f.keyManager()
	km.SharedSecret = secret
	f.Put(km)
	pass := func(from, to int) {
		for i := from; i < to; i++ {
			f.accept(sign(method, key, header, f.claims("jti", fmt.Sprintf("0d6d6ad2-7a84-4c5c-8a41-%012d", i))))
		}
	}
	empty := heap()
	pass(0, 3*capacity)
	full := heap()
	pass(3*capacity, tokens)
	end := heap()
	t.Logf("cache of %d tokens: %.1f MiB when full, %.1f MiB after %d distinct tokens", capacity, float64(full-empty)/(1<<20), float64(end-empty)/(1<<20), tokens)
	if n := f.State().CachedTokens; n > capacity {
		t.Errorf("%d tokens are kept, more than %d", n, capacity)
	}
	if end-empty > (full-empty)*3/2+1<<20 {
		t.Errorf("what is held grew from %d to %d bytes", full-empty, end-empty)
	}
}

// Garbage of every form leaves the tokens that were verified where they are.
func TestGarbageEvictsNoGoodToken(t *testing.T) {
	good, garbage := 100, 600
	if soak() {
		good, garbage = 5000, 200_000
	}
	f := newOpaque(t, IntrospectionOptions{TTL: time.Hour})
	f.verified.DeleteFunc(func(*verified) bool { return true })
	var kept []string
	for i := range good {
		o := fmt.Sprintf("good-%d", i)
		f.asked.know(o, nil)
		kept = append(kept, o, f.token("jti", o))
	}
	for _, token := range kept {
		f.accept(token)
	}
	before := heap()
	sig := f.token()[len(f.token())-342:]
	for i := range garbage {
		f.auth(fmt.Sprintf("garbage-%d", i))
		f.auth(raw64([]byte(`{"alg":"RS256","kid":"r1"}`)) + "." + raw64([]byte(fmt.Sprintf(`{"iss":%q,"exp":9999999999,"n":%d}`, issuer, i))) + "." + sig)
		f.auth(raw64([]byte(`{"alg":"RS256"}`)) + "." + fmt.Sprint(i) + "!." + sig)
		f.auth(f.kept(i) + "x")
	}
	calls, after := f.asked.calls.Load(), heap()
	for _, token := range kept {
		if _, cached, err := f.auth(token); err != nil || !cached {
			t.Fatalf("a good token after %d bad ones: cached=%t %v", 4*garbage, cached, err)
		}
	}
	if n := f.asked.calls.Load(); n != calls {
		t.Errorf("%d good tokens were asked about again", n-calls)
	}
	s := f.State()
	if s.CachedInactive > inactiveCapacity || s.CachedRefusals > negativeCapacity {
		t.Errorf("state %+v", s)
	}
	t.Logf("%d bad tokens: %d refusals and %d inactive tokens kept, %.1f MiB more", 4*garbage, s.CachedRefusals, s.CachedInactive, float64(after-before)/(1<<20))
}

// kept is a text that begins like a token which is known.
func (f *opaqueFixture) kept(i int) string { return fmt.Sprintf("good-%d", i%100) }

// A failing key server in the middle of a rotation keeps the old keys in use, and says so.
func TestRotationWhileTheKeyServerFails(t *testing.T) {
	f := newFixture(t)
	f.accept(f.token())
	f.server.answer(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{}})
	})
	f.refuse(sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r2"}, f.claims()), keymanager.CheckKey)
	f.accept(f.token())
	if s := f.State().Managers[0]; s.LastError == "" || len(s.Keys) == 0 {
		t.Errorf("state %+v", s)
	}
}
