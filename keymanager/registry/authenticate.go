package registry

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"gatehouse/keymanager"
	"gatehouse/keymanager/claims"
	"gatehouse/keymanager/jwks"
	"gatehouse/keymanager/jwt"
	"gatehouse/keymanager/revocation"
	"gatehouse/keymanager/tokencache"
)

// maxTried is how many keys are tried for a token that names none.
const maxTried = 8

// maxReplaced is how often a request turns to the key manager that took the place of the one it had asked.
const maxReplaced = 10

// verified is a token in the cache.
type verified struct {
	manager *manager
	token   *keymanager.Token
	names   revocation.Keys
	key     *jwks.Key
	// set is the last key set that was seen to hold the key.
	set   atomic.Pointer[jwks.Set]
	until int64 // ms: expiry and skew, or when an answer may not even be used as a stale one
	// introspected says that a key manager answered for the token, which holds until fresh (ms).
	introspected bool
	fresh        int64
	// claims are those of a JWT as they came, where the choice of the key manager may depend on them; nil for an opaque token.
	claims map[string]any
}

// refused is a signature or format failure in the cache.
type refused struct {
	refusal *keymanager.Refusal
	manager *manager // nil: of no key manager
	set     *jwks.Set
	until   int64
}

// Authenticate verifies a credential and returns its token; cached says that it was verified before. The error is always a
// *keymanager.Refusal. The token is shared and must not be changed. A token that was verified before costs no allocation
// and no lock but that of a shard of the cache; whether it is revoked is asked each time.
func (r *Registry) Authenticate(ctx context.Context, c keymanager.Credential) (t *keymanager.Token, cached bool, err error) {
	tenant := c.Tenant
	if tenant == "" {
		tenant = keymanager.SuperTenant
	}
	if len(c.Bearer) > jwt.MaxSize {
		_, refusal := jwt.Parse(c.Bearer)
		return nil, false, refusal
	}
	now := r.now()
	key := r.verified.KeyOf(c.Bearer)
	if e := r.verified.Get(key); e != nil {
		if e.introspected && e.claims == nil { // an opaque token: no issuer leads to its key manager
			if e.manager.live.Load() && e.manager.admits(tenant, c.Allowed) {
				if t, refusal, ok := r.again(e, tenant, now); ok {
					if refusal != nil {
						return nil, true, refusal
					}
					return t, true, nil
				}
			}
		} else if g := e.manager.group.Load(); g != nil && (!g.byClaims || e.claims != nil) {
			chosen, refusal := g.choose(tenant, c.Allowed, e.claims)
			if refusal != nil {
				return nil, false, refusal
			}
			if chosen != e.manager {
				e = r.verified.Get(key.With(chosen.revision))
			}
			if e != nil && e.manager == chosen {
				if t, refusal, ok := r.again(e, tenant, now); ok {
					if refusal != nil {
						return nil, true, refusal
					}
					return t, true, nil
				}
			}
		}
	}
	if e := r.refused.Get(key); e != nil && now.UnixMilli() < e.until && r.stillRefused(e, tenant, c.Allowed, now) {
		return nil, true, e.refusal
	}
	t, cached, refusal := r.verify(ctx, c.Bearer, tenant, c.Allowed, key, now)
	if refusal != nil {
		return nil, cached, refusal
	}
	return t, cached, nil
}

// again looks at a token that was verified before; ok is false when it must be verified anew.
func (r *Registry) again(e *verified, tenant string, now time.Time) (t *keymanager.Token, refusal *keymanager.Refusal, ok bool) {
	ms := now.UnixMilli()
	if e.introspected {
		if ms >= e.fresh {
			return nil, nil, false
		}
		if by, yes := r.opts.Revocations.RevokedKeys(&e.names, e.token, tenant, ms); yes {
			return nil, e.manager.revoked(by), true
		}
		return e.token, nil, true
	}
	if ms >= e.until {
		if e.token.ExpiresAt == 0 {
			return nil, nil, false
		}
		return nil, e.manager.refuse(keymanager.CheckExpired, "the access token expired at "+
			time.Unix(e.token.ExpiresAt, 0).UTC().Format(time.RFC3339)), true
	}
	if e.key != nil { // else a shared secret verified it, which lasts as long as the revision of the key manager
		set := e.manager.keys(now)
		if set == nil {
			return nil, nil, false
		}
		if set != e.set.Load() {
			if !set.Holds(e.key) {
				return nil, nil, false
			}
			e.set.Store(set)
		}
	}
	if by, yes := r.opts.Revocations.RevokedKeys(&e.names, e.token, tenant, ms); yes {
		return nil, e.manager.revoked(by), true
	}
	return e.token, nil, true
}

func (m *manager) revoked(by keymanager.Revocation) *keymanager.Refusal {
	detail := "the token was revoked"
	switch by.Kind {
	case keymanager.RevokedConsumerKey:
		detail = "the tokens of this client that were issued so early were revoked"
	case keymanager.RevokedSubject:
		detail = "the tokens of this user that were issued so early were revoked"
	}
	r := m.refuse(keymanager.CheckRevoked, detail)
	r.Origin = by.Origin
	return r
}

// stillRefused reports whether a cached refusal still holds: same key manager, same keys.
func (r *Registry) stillRefused(e *refused, tenant string, allowed []string, now time.Time) bool {
	if e.manager == nil {
		return true
	}
	g := e.manager.group.Load()
	if g == nil || g.byClaims || e.manager.keys(now) != e.set {
		return false
	}
	chosen, _ := g.choose(tenant, allowed, nil)
	return chosen == e.manager
}

func (r *Registry) remember(key tokencache.Key, refusal *keymanager.Refusal, m *manager, set *jwks.Set, now time.Time) {
	r.refused.Put(key, &refused{refusal: refusal, manager: m, set: set, until: now.Add(negativeLife).UnixMilli()})
}

func (r *Registry) verify(ctx context.Context, raw, tenant string, allowed []string, key tokencache.Key, now time.Time) (*keymanager.Token, bool, *keymanager.Refusal) {
	parsed, refusal := jwt.Parse(raw)
	if mayIntrospect(refusal) {
		return r.opaque(ctx, raw, tenant, allowed, key, now)
	}
	if refusal != nil {
		if refusal.Check == keymanager.CheckFormat {
			r.remember(key, refusal, nil, nil, now)
		}
		return nil, false, refusal
	}
	// A key manager may be replaced while its keys are waited for; the request then goes to the one that took its place.
	for try := 1; ; try++ {
		t, cached, m, refusal := r.verifyOnce(ctx, parsed, raw, tenant, allowed, key, now)
		if refusal == nil || !refusal.Temporary || m == nil || m.live.Load() || try == maxReplaced || ctx.Err() != nil {
			return t, cached, refusal
		}
	}
}

// verifyOnce makes every check by the key manager that answers for the token now, and returns that too.
func (r *Registry) verifyOnce(ctx context.Context, parsed *jwt.Token, raw, tenant string, allowed []string, key tokencache.Key, now time.Time) (*keymanager.Token, bool, *manager, *keymanager.Refusal) {
	g := r.snap.Load().groups[parsed.Issuer]
	if g == nil {
		return nil, false, nil, &keymanager.Refusal{Check: keymanager.CheckIssuer, Detail: "no key manager has the issuer of the token"}
	}
	m, refusal := g.choose(tenant, allowed, parsed.Claims)
	if refusal != nil {
		return nil, false, nil, refusal
	}
	if !m.local {
		t, cached, refusal := r.askEach(ctx, []*manager{m}, raw, parsed.Claims, tenant, key, now)
		return t, cached, m, refusal
	}
	e, refusal := r.verifyAt(ctx, m, parsed, raw, tenant, now)
	if refusal != nil {
		if refusal.Check == keymanager.CheckSignature && len(g.members) == 1 {
			r.remember(key, refusal, m, m.keys(now), now)
		}
		return nil, false, m, refusal
	}
	if g.byClaims {
		e.claims = parsed.Claims
	}
	// The first key leads to the issuer; where that has several key managers each has its own entry beside it.
	r.verified.Put(key, e)
	if len(g.members) > 1 {
		r.verified.Put(key.With(m.revision), e)
	}
	return e.token, false, m, nil
}

// verifyAt makes every check of a key manager, in the order of keymanager's Check constants.
func (r *Registry) verifyAt(ctx context.Context, m *manager, p *jwt.Token, raw, tenant string, now time.Time) (*verified, *keymanager.Refusal) {
	km := m.km
	check := jwt.CheckAlgorithm
	if m.secret != "" {
		check = jwt.CheckAnyAlgorithm
	}
	if refusal := check(p.Algorithm, km.Algorithms); refusal != nil {
		return nil, m.own(refusal)
	}
	k, set, refusal := m.verifySignature(ctx, p, now)
	if refusal != nil {
		return nil, refusal
	}
	// A fetch may have taken a while: the times are checked against the clock as it is now.
	now = r.now()
	times, refusal := p.CheckClaims(now, jwt.Rules{Skew: km.ClockSkew, AllowMissingExp: km.AllowMissingExp, Audience: km.Audience})
	if refusal != nil {
		return nil, m.own(refusal)
	}
	e := &verified{manager: m, key: k, token: m.token(p, times, k)}
	if refusal := purpose(p.Claims, e.token); refusal != nil {
		return nil, m.own(refusal)
	}
	e.set.Store(set)
	e.names = revocation.KeysOf(e.token, raw)
	e.until = now.Add(maxCached).UnixMilli()
	if !times.Until.IsZero() {
		e.until = times.Until.UnixMilli()
	}
	if by, yes := r.opts.Revocations.RevokedKeys(&e.names, e.token, tenant, now.UnixMilli()); yes {
		return nil, m.revoked(by)
	}
	return e, nil
}

func (m *manager) verifySignature(ctx context.Context, p *jwt.Token, now time.Time) (*jwks.Key, *jwks.Set, *keymanager.Refusal) {
	if jwt.Secret(p.Algorithm) {
		if !p.VerifySecret(m.secret) {
			return nil, nil, m.refuse(keymanager.CheckSignature, "the signature is not that of the issuer")
		}
		return nil, nil, nil
	}
	if m.secret != "" && m.source == nil && m.pem == nil {
		return nil, nil, m.refuse(keymanager.CheckAlgorithm, "the issuer signs with a shared secret alone")
	}
	set, refusal := m.awaitKeys(ctx, now)
	if refusal != nil {
		return nil, nil, refusal
	}
	k, refusal := m.match(set, p)
	if k != nil || m.source == nil || !mayBeRotated(refusal, p) {
		return k, set, refusal
	}
	newer, err := m.source.RefreshFor(ctx, p.KeyID)
	if newer == nil || newer == set {
		if err != nil && refusal.Check == keymanager.CheckKey {
			refusal.Detail += ", and its key set could not be fetched"
		}
		return nil, nil, refusal
	}
	k, refusal = m.match(newer, p)
	return k, newer, refusal
}

// mayBeRotated reports whether fresh keys could help: the kid is not known, or there is no kid to tell by.
func mayBeRotated(refusal *keymanager.Refusal, p *jwt.Token) bool {
	if p.KeyID != "" {
		return refusal.Check == keymanager.CheckKey
	}
	return true
}

// match returns the key of the set that made the signature. The header's jku, x5u, jwk and x5c are never looked at.
func (m *manager) match(set *jwks.Set, p *jwt.Token) (*jwks.Key, *keymanager.Refusal) {
	// Keys of certificates have no ID: there the kid says nothing.
	byID := p.KeyID != "" && m.source != nil
	keys := set.Keys()
	if byID {
		if keys = set.ByID(p.KeyID); len(keys) == 0 {
			return nil, m.refuse(keymanager.CheckKey, "the issuer has no key of the ID (kid) that the token names")
		}
	} else if named := set.ByThumbprint(p.X5T, p.X5TS256); len(named) > 0 {
		keys = named
	}
	tried := 0
	for _, k := range keys {
		if !jwt.Suits(p.Algorithm, k.Public) || !sameAlgorithm(k.Algorithm, p.Algorithm) {
			continue
		}
		if tried++; tried > maxTried {
			break
		}
		if p.Verify(k.Public) {
			return k, nil
		}
	}
	if tried == 0 {
		return nil, m.refuse(keymanager.CheckKey, "the issuer has no key for the algorithm of the token")
	}
	return nil, m.refuse(keymanager.CheckSignature, "the signature is not that of the issuer")
}

func sameAlgorithm(ofKey, ofToken string) bool {
	return ofKey == "" || ofKey == ofToken || ofKey == "Ed25519" && ofToken == "EdDSA"
}

func (m *manager) token(p *jwt.Token, times jwt.Times, k *jwks.Key) *keymanager.Token {
	km := m.km
	mapped := m.mapper.Map(p.Claims)
	t := &keymanager.Token{
		KeyManager: m.name, Issuer: km.Issuer, KeyID: p.KeyID,
		User:              claims.User(mapped),
		ConsumerKey:       claims.ConsumerKey(mapped, p.Claims, km.ConsumerKeyClaim),
		Scopes:            claims.Scopes(mapped, p.Claims, km.ScopesClaim),
		Claims:            mapped,
		IssuedAt:          times.IssuedAt,
		ExpiresAt:         times.ExpiresAt,
		SkipSubscriptions: km.SkipSubscriptions, ValidateSubscriptions: km.ValidateSubscriptions,
		Origin: *m.origin.Load(),
	}
	t.Subject, _ = p.Claims["sub"].(string)
	t.ID, _ = p.Claims["jti"].(string)
	if t.ID == "" {
		t.ID = p.SignaturePart()
	}
	if t.KeyID == "" && k != nil {
		t.KeyID = k.ID
	}
	t.BoundTo = claims.Certificate(p.Claims)
	t.Application, t.Subscribed = claims.Embedded(mapped)
	return t
}

// Verification is what Verify found; its JSON is that of POST /api/v1/token/verify.
type Verification struct {
	Valid      bool             `json:"valid"`
	Failed     keymanager.Check `json:"failed,omitempty"`
	Detail     string           `json:"detail,omitempty"`
	KeyManager string           `json:"key_manager,omitempty"`
	// Issuer is as the token claims it, verified or not.
	Issuer string `json:"issuer,omitempty"`
	// Claims are those of a valid token, after mapping.
	Claims map[string]any `json:"claims,omitempty"`
	// Token is the whole result, nil unless valid.
	Token *keymanager.Token `json:"-"`
}

// VerifyOptions narrow a verification to what an API would accept. The zero value is the super tenant and every key
// manager.
type VerifyOptions struct {
	Tenant  string
	Allowed []string
}

// Verify makes every check on a token, past the caches, and names the one that failed.
func (r *Registry) Verify(ctx context.Context, token string, o VerifyOptions) Verification {
	token = strings.TrimSpace(token)
	var v Verification
	fail := func(refusal *keymanager.Refusal) Verification {
		v.Failed, v.Detail, v.KeyManager = refusal.Check, refusal.Detail, refusal.KeyManager
		return v
	}
	tenant := o.Tenant
	if tenant == "" {
		tenant = keymanager.SuperTenant
	}
	p, refusal := jwt.Parse(token)
	var e *verified
	if mayIntrospect(refusal) {
		var list []*manager
		if list, refusal = r.snap.Load().owners(token, tenant, o.Allowed); refusal == nil {
			e, refusal = r.verifyOpaque(ctx, list, token, tenant)
		}
	} else if refusal == nil {
		v.Issuer = p.Issuer
		e, refusal = r.verifyJWT(ctx, p, token, tenant, o.Allowed)
	}
	if refusal != nil {
		return fail(refusal)
	}
	v.Valid, v.KeyManager, v.Claims, v.Token = true, e.manager.name, e.token.Claims, e.token
	if v.Issuer == "" {
		v.Issuer = e.token.Issuer
	}
	return v
}

func (r *Registry) verifyJWT(ctx context.Context, p *jwt.Token, raw, tenant string, allowed []string) (*verified, *keymanager.Refusal) {
	g := r.snap.Load().groups[p.Issuer]
	if g == nil {
		return nil, &keymanager.Refusal{Check: keymanager.CheckIssuer, Detail: "no key manager has the issuer of the token"}
	}
	m, refusal := g.choose(tenant, allowed, p.Claims)
	if refusal != nil {
		return nil, refusal
	}
	if !m.local {
		return r.verifyOpaque(ctx, []*manager{m}, raw, tenant)
	}
	return r.verifyAt(ctx, m, p, raw, tenant, r.now())
}
