package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"gatehouse/keymanager"
	"gatehouse/keymanager/claims"
	"gatehouse/keymanager/introspection"
	"gatehouse/keymanager/jwt"
	"gatehouse/keymanager/revocation"
	"gatehouse/keymanager/tokencache"
)

// Defaults of IntrospectionOptions (gateway-behaviour.md 7).
const (
	DefaultIntrospectionTTL = 60 * time.Second
	inactiveLife            = 10 * time.Second
	inactiveCapacity        = 10000
	// probeWait is how long a request waits for the call that finds out whether a key manager is back.
	probeWait = 30 * time.Millisecond
	// maxFlights bounds the questions that are under way or wait for their turn: whoever sends tokens and goes away leaves one
	// behind for each.
	maxFlights = 4096
)

// IntrospectionOptions say how answers about tokens are kept. The zero value keeps them for DefaultIntrospectionTTL and
// refuses when the key manager is away.
type IntrospectionOptions struct {
	// TTL is how long an answer is used, and never past the expiry of the token; 0 means DefaultIntrospectionTTL, less
	// than 0 that each request asks.
	TTL time.Duration
	// ServeStale lets an answer be used for StaleTTL more while the key manager cannot be asked, and never past the expiry
	// of the token. A StaleTTL of 0 is up to that expiry.
	ServeStale bool
	StaleTTL   time.Duration
	// Reset is how long no call is made after five failures in a row; 0 means introspection.DefaultReset.
	Reset time.Duration
}

// inactive is a token in the negative cache: a key manager does not know it, or it fails a check of the key manager's.
type inactive struct {
	refusal *keymanager.Refusal
	until   int64
}

// flight is a question that is under way; all requests with the token wait for its one answer.
type flight struct {
	done    chan struct{}
	probe   bool
	e       *verified
	refusal *keymanager.Refusal
}

// owners returns the key managers that are asked about an opaque token, in order: those that claim its form, else those
// that the API accepts, in the order of its list; of the API's own tenant before global ones.
func (s *snapshot) owners(raw, tenant string, allowed []string) ([]*manager, *keymanager.Refusal) {
	if len(s.asking) > 0 {
		if refusal := plainText(raw); refusal != nil {
			return nil, refusal
		}
	}
	var list, claiming []*manager
	var unwanted *manager
	for _, global := range [...]bool{false, true} {
		for _, m := range s.asking {
			if (m.owner == keymanager.AllTenants) != global || !m.answersFor(tenant) {
				continue
			}
			if !m.km.Named(allowed) {
				unwanted = m
				continue
			}
			list = append(list, m)
			if m.formats.claimOpaque(raw) {
				claiming = append(claiming, m)
			}
		}
	}
	if len(claiming) > 0 {
		list = claiming
	}
	if len(list) == 0 {
		if unwanted != nil {
			return nil, unwanted.refuse(keymanager.CheckAllowed, "the API accepts no key manager that introspects the token")
		}
		return nil, &keymanager.Refusal{Check: keymanager.CheckOpaque, Detail: "not a JWT, and no key manager introspects it"}
	}
	if len(list) > 1 && len(allowed) > 1 {
		place := func(m *manager) int {
			for i := range allowed {
				if m.km.Named(allowed[i : i+1]) {
					return i
				}
			}
			return len(allowed)
		}
		slices.SortStableFunc(list, func(a, b *manager) int { return place(a) - place(b) })
	}
	return list, nil
}

// opaque finds out about a token that is no JWT.
func (r *Registry) opaque(ctx context.Context, raw, tenant string, allowed []string, key tokencache.Key, now time.Time) (*keymanager.Token, bool, *keymanager.Refusal) {
	for try := 1; ; try++ {
		list, refusal := r.snap.Load().owners(raw, tenant, allowed)
		if refusal != nil {
			return nil, false, refusal
		}
		t, cached, refusal := r.askEach(ctx, list, raw, nil, tenant, key, now)
		replaced := slices.ContainsFunc(list, func(m *manager) bool { return !m.live.Load() })
		if refusal == nil || !refusal.Temporary || !replaced || try == maxReplaced || ctx.Err() != nil {
			return t, cached, refusal
		}
	}
}

// plainText refuses what is no token of any server (RFC 6750 2.1), so that nobody is asked about it.
func plainText(raw string) *keymanager.Refusal {
	for i := 0; i < len(raw); i++ {
		if c := raw[i]; c <= ' ' || c > '~' {
			return &keymanager.Refusal{Check: keymanager.CheckFormat, Detail: "the token has characters that no token has"}
		}
	}
	if raw == "" {
		return &keymanager.Refusal{Check: keymanager.CheckFormat, Detail: "the token is empty"}
	}
	return nil
}

// askEach asks one key manager after the other, until one says that the token is active. in are the claims of a JWT.
func (r *Registry) askEach(ctx context.Context, list []*manager, raw string, in map[string]any, tenant string, key tokencache.Key, now time.Time) (*keymanager.Token, bool, *keymanager.Refusal) {
	names := revocation.KeysOf(nil, raw)
	if by, yes := r.opts.Revocations.RevokedKeys(&names, nil, tenant, now.UnixMilli()); yes {
		return nil, false, list[0].revoked(by)
	}
	var away, no *keymanager.Refusal
	for _, m := range list {
		e, cached, refusal := r.askOne(ctx, m, raw, in, key)
		if refusal != nil && refusal.Temporary {
			if e = r.stale(m, key); e == nil {
				away = refusal
				continue
			}
			cached, refusal = true, nil
			m.staleServed.Add(1)
		}
		if refusal != nil {
			no = refusal
			continue
		}
		if by, yes := r.opts.Revocations.RevokedKeys(&e.names, e.token, tenant, r.now().UnixMilli()); yes {
			return nil, cached, m.revoked(by)
		}
		return e.token, cached, nil
	}
	// Who is away may be the one that knows the token.
	if away != nil {
		return nil, false, away
	}
	return nil, false, no
}

// askOne asks a key manager unless its answer is known; requests with the same token share one question, which goes on
// when the request that began it goes away.
func (r *Registry) askOne(ctx context.Context, m *manager, raw string, in map[string]any, key tokencache.Key) (e *verified, cached bool, refusal *keymanager.Refusal) {
	k := key.With(m.revision)
	if e, refusal = r.known(m, key); e != nil || refusal != nil {
		return e, true, refusal
	}
	if m.asker.Barred() {
		return nil, false, m.without()
	}
	if !m.asker.Available() {
		return nil, false, m.away()
	}
	r.asking.Lock()
	f := r.flights[k]
	if f == nil {
		// The answer may have come since.
		if e, refusal = r.known(m, key); e != nil || refusal != nil || r.ctx.Err() != nil {
			r.asking.Unlock()
			if e == nil && refusal == nil {
				return nil, false, m.away()
			}
			return e, true, refusal
		}
		if len(r.flights) >= maxFlights {
			r.asking.Unlock()
			return nil, false, m.away()
		}
		f = &flight{done: make(chan struct{}), probe: m.asker.Probing()}
		r.flights[k] = f
		before := r.forgotten.Load()
		r.wg.Go(func() {
			defer func() {
				r.asking.Lock()
				delete(r.flights, k)
				r.asking.Unlock()
				close(f.done)
			}()
			if f.e, f.refusal = r.questionOnce(r.ctx, m, raw); f.e != nil {
				f.e.claims = in
			}
			r.keep(m, f, key, r.forgotten.Load() == before)
		})
	}
	r.asking.Unlock()
	var late <-chan time.Time
	if f.probe {
		t := time.NewTimer(probeWait)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-f.done:
		return f.e, false, f.refusal
	case <-ctx.Done():
	case <-late:
	}
	return nil, false, m.away()
}

// without refuses a token as it would be refused if the key manager had no endpoint: it has, but the gateway may not ask.
func (m *manager) without() *keymanager.Refusal {
	return m.refuse(keymanager.CheckOpaque, "the gateway has no credentials to introspect the token with")
}

func (m *manager) away() *keymanager.Refusal {
	r := m.refuse(keymanager.CheckUnverified, "the key manager cannot be asked about the token at present")
	r.Temporary = true
	return r
}

// entries are the two places of the answer of a key manager about a token.
func (r *Registry) entry(m *manager, key tokencache.Key) *verified {
	for _, k := range [...]tokencache.Key{key, key.With(m.revision)} {
		if e := r.verified.Get(k); e != nil && e.manager == m && e.introspected {
			return e
		}
	}
	return nil
}

// known returns the answer of a key manager that is still good, or the refusal that it became.
func (r *Registry) known(m *manager, key tokencache.Key) (*verified, *keymanager.Refusal) {
	ms := r.now().UnixMilli()
	if e := r.entry(m, key); e != nil && ms < e.fresh {
		return e, nil
	}
	if n := r.inactive.Get(key.With(m.revision)); n != nil && ms < n.until {
		return nil, n.refusal
	}
	return nil, nil
}

// stale returns an answer that is too old, but may be used while the key manager cannot be asked.
func (r *Registry) stale(m *manager, key tokencache.Key) *verified {
	if !r.opts.Introspection.ServeStale {
		return nil
	}
	if e := r.entry(m, key); e != nil && r.now().UnixMilli() < e.until {
		return e
	}
	return nil
}

// questionOnce is question for a goroutine of its own, where a fault would end the gateway: it refuses the token instead.
func (r *Registry) questionOnce(ctx context.Context, m *manager, raw string) (e *verified, refusal *keymanager.Refusal) {
	defer func() {
		if v := recover(); v != nil {
			r.opts.Logger.Error().Str("key_manager", m.km.Name).Str("detail", fmt.Sprintf("%T", v)).Bytes("stack", debug.Stack()).
				Msg("an introspection ended in a fault of the gateway")
			e, refusal = nil, m.away()
		}
	}()
	return r.question(ctx, m, raw)
}

// question asks a key manager and makes every check on its answer. A refusal that is Temporary says nothing of the token.
func (r *Registry) question(ctx context.Context, m *manager, raw string) (*verified, *keymanager.Refusal) {
	a, err := m.asker.Ask(ctx, raw)
	if err != nil {
		r.tell(ctx, m, err)
		if errors.Is(err, introspection.ErrCredentials) {
			return nil, m.without()
		}
		return nil, m.away()
	}
	if m.failing.Load() && m.failing.Swap(false) {
		r.opts.Logger.Info().Str("key_manager", m.km.Name).Msg("the key manager answers introspections again")
	}
	if !a.Active {
		return nil, m.refuse(keymanager.CheckInactive, "the key manager does not know the token, or no longer")
	}
	return m.judge(a.Claims, raw, r.now())
}

// tell logs a failure: once until the key manager answers again, or once a minute where the token is what it did not like, so
// that nobody fills the log with tokens.
func (r *Registry) tell(ctx context.Context, m *manager, err error) {
	if errors.Is(err, introspection.ErrOpen) || ctx.Err() != nil {
		return
	}
	next := "this line comes once until the key manager answers again"
	if errors.Is(err, introspection.ErrCredentials) {
		next = "write them into [apim.jwt.issuer.introspection] of an [[apim.jwt.issuer]] with the key manager's issuer"
	}
	if introspection.AboutToken(err) {
		next = "this line comes at most once a minute"
		now, last := r.now().UnixMilli(), m.disliked.Load()
		if now-last < time.Minute.Milliseconds() || !m.disliked.CompareAndSwap(last, now) {
			return
		}
	} else if m.failing.Swap(true) {
		return
	}
	r.opts.Logger.Warn().Str("key_manager", m.km.Name).Err(err).Msg("a token could not be introspected; " + next)
}

// judge makes the checks of a JWT on the claims of an answer.
func (m *manager) judge(in map[string]any, raw string, now time.Time) (*verified, *keymanager.Refusal) {
	km := m.km
	if iss, has := in["iss"]; has && km.Issuer != "" && iss != km.Issuer {
		return nil, m.refuse(keymanager.CheckIssuer, "the key manager says that the token is of another issuer")
	}
	t := jwt.Token{Claims: in}
	times, refusal := t.CheckClaims(now, jwt.Rules{Skew: km.ClockSkew, AllowMissingExp: true, Audience: km.Audience})
	if refusal != nil {
		return nil, m.own(refusal)
	}
	e := &verified{manager: m, introspected: true, token: m.opaqueToken(in, times, raw)}
	if refusal := purpose(in, e.token); refusal != nil {
		return nil, m.own(refusal)
	}
	e.names = revocation.KeysOf(e.token, raw)
	return e, nil
}

func (m *manager) opaqueToken(in map[string]any, times jwt.Times, raw string) *keymanager.Token {
	km := m.km
	mapped := m.mapper.Map(in)
	text := func(name string) string { s, _ := in[name].(string); return s }
	t := &keymanager.Token{
		Kind: keymanager.KindOpaque, KeyManager: m.name, Issuer: km.Issuer,
		ID: text("jti"), Subject: text("sub"), User: claims.OpaqueUser(mapped),
		ConsumerKey: claims.OpaqueConsumerKey(mapped, in, km.ConsumerKeyClaim),
		Scopes:      claims.Scopes(mapped, in, km.ScopesClaim),
		Claims:      mapped, IssuedAt: times.IssuedAt, ExpiresAt: times.ExpiresAt,
		SkipSubscriptions: km.SkipSubscriptions, ValidateSubscriptions: km.ValidateSubscriptions,
		BoundTo: claims.Certificate(in),
		Origin:  *m.origin.Load(),
	}
	if t.Issuer == "" {
		t.Issuer = text("iss")
	}
	if t.ID == "" { // never the token itself: the ID is shown
		sum := sha256.Sum256([]byte(raw))
		t.ID = revocation.HashPrefix + hex.EncodeToString(sum[:16])
	}
	if len(t.Scopes) == 0 && km.ScopesClaim != "" {
		t.Scopes = claims.Scopes(mapped, in, "")
	}
	t.Application, t.Subscribed = claims.Embedded(mapped)
	return t
}

// keep puts an answer into the cache that it belongs to; good is false when what was cached was forgotten meanwhile.
func (r *Registry) keep(m *manager, f *flight, key tokencache.Key, good bool) {
	o, now := r.opts.Introspection, r.now()
	k := key.With(m.revision)
	switch {
	case f.refusal != nil && (f.refusal.Temporary || f.refusal.Check == keymanager.CheckOpaque) || !good || !m.live.Load():
		return
	case f.refusal != nil:
		r.inactive.Put(k, &inactive{f.refusal, now.Add(inactiveLife).UnixMilli()})
		if e := r.entry(m, key); e != nil { // what it said before no longer holds
			r.verified.Delete(key, e)
			r.verified.Delete(k, e)
		}
		return
	case o.TTL < 0:
		return
	}
	e := f.e
	exp := e.token.ExpiresAt * 1000
	e.fresh = now.Add(o.TTL).UnixMilli()
	e.until = e.fresh
	if o.ServeStale {
		switch {
		case o.StaleTTL > 0:
			e.until = now.Add(o.TTL + o.StaleTTL).UnixMilli()
		case exp > 0:
			e.until = exp
		}
	}
	if exp > 0 {
		e.fresh, e.until = min(e.fresh, exp), min(e.until, exp)
	}
	if e.until <= now.UnixMilli() {
		return
	}
	// A token that two key managers know has a place for each.
	if other := r.verified.Get(key); other != nil && other.manager != m && other.manager.live.Load() {
		r.verified.Put(k, e)
		return
	}
	r.verified.Put(key, e)
}

// verifyOpaque is Verify for what is introspected: past the caches.
func (r *Registry) verifyOpaque(ctx context.Context, list []*manager, raw, tenant string) (*verified, *keymanager.Refusal) {
	var away, no *keymanager.Refusal
	for _, m := range list {
		e, refusal := r.question(ctx, m, raw)
		switch {
		case refusal != nil && refusal.Temporary:
			away = refusal
		case refusal != nil:
			no = refusal
		default:
			if by, yes := r.opts.Revocations.RevokedKeys(&e.names, e.token, tenant, r.now().UnixMilli()); yes {
				return nil, m.revoked(by)
			}
			return e, nil
		}
	}
	if away != nil {
		return nil, away
	}
	return nil, no
}

// forgetInactive drops what is known of tokens that key managers did not know.
func (r *Registry) forgetInactive(tokens []string) {
	for _, t := range tokens {
		key := r.verified.KeyOf(t)
		for _, m := range r.snap.Load().asking {
			if n := r.inactive.Get(key.With(m.revision)); n != nil {
				r.inactive.Delete(key.With(m.revision), n)
			}
		}
	}
}

// mayIntrospect reports whether the text of a bearer token is looked at as an opaque one.
func mayIntrospect(refusal *keymanager.Refusal) bool {
	return refusal != nil && refusal.Check == keymanager.CheckOpaque
}

// purpose refuses what the same key manager has signed, or says is active, and is no access token (gateway-behaviour.md 8): an
// API key would lose its restrictions on the way, an ID token is known to whoever may read a user's name.
func purpose(in map[string]any, t *keymanager.Token) *keymanager.Refusal {
	what := claims.Purpose(in)
	if what == "" && t.ConsumerKey == "" && len(t.Scopes) == 0 && claims.UnnamedKey(in) {
		what = "an API key"
	}
	if what == "" {
		return nil
	}
	return &keymanager.Refusal{Check: keymanager.CheckKind, Detail: what + " is no access token"}
}
