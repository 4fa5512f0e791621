package apikey

import (
	"context"
	"time"

	"gatehouse/keymanager"
	"gatehouse/keymanager/claims"
	"gatehouse/keymanager/jwks"
	"gatehouse/keymanager/jwt"
	"gatehouse/keymanager/revocation"
	"gatehouse/keymanager/tokencache"
)

// verify makes every check on a key that does not depend on the request, and keeps it.
func (a *Authenticator) verify(ctx context.Context, o *keymanager.KeyOffer, k tokencache.Key, now time.Time) (*verified, *keymanager.Refusal) {
	p, refusal := jwt.Parse(o.Value)
	if refusal != nil {
		if refusal.Check == keymanager.CheckOpaque {
			return a.opaque(o, k)
		}
		return nil, refusal
	}
	known := a.issuers.Load()
	// Who signs both kinds with one name is told apart by the kind that the field asks for; a key in the wrong field is told
	// so once its signature shows that it is one at all.
	i := known.of(p.Issuer, o.Internal)
	if i == nil {
		i = known.of(p.Issuer, !o.Internal)
	}
	if i == nil {
		return nil, refuse(keymanager.CheckIssuer, "no issuer of api keys has the name (iss) of the key")
	}
	e, refusal := a.verifyAt(ctx, i, p, o.Value, now)
	if refusal != nil {
		refusal.Issuer = i.Name
		if refusal.Check == keymanager.CheckSignature {
			a.refused.Put(k, &refused{refusal: refusal, issuers: known, issuer: i, set: i.keys(now), until: now.Add(negativeLife).UnixMilli()})
		}
		return nil, refusal
	}
	a.verified.Put(k, e)
	return e, nil
}

func (a *Authenticator) verifyAt(ctx context.Context, i *issuer, p *jwt.Token, raw string, now time.Time) (*verified, *keymanager.Refusal) {
	if refusal := jwt.CheckAlgorithm(p.Algorithm, i.Algorithms); refusal != nil {
		return nil, refusal
	}
	key, set, refusal := i.verifySignature(ctx, p, now)
	if refusal != nil {
		return nil, refusal
	}
	kind, refusal := kindOf(p.Claims)
	if refusal != nil {
		return nil, refusal
	}
	if (kind == keymanager.KindInternalKey) != i.Internal {
		return nil, refuse(keymanager.CheckKind, "the issuer does not issue keys of this kind")
	}
	now = a.now() // a fetch may have taken a while
	// A key of an application may live for ever; one of the test console may not.
	times, refusal := p.CheckClaims(now, jwt.Rules{Skew: i.ClockSkew, AllowMissingExp: !i.Internal})
	if refusal != nil {
		return nil, refusal
	}
	e := &verified{issuer: i, key: key, token: tokenOf(kind, i, p, times, key)}
	e.limits = compile(listOf(p.Claims["permittedIP"]), listOf(p.Claims["permittedReferer"]))
	e.set.Store(set)
	e.names = revocation.KeysOf(e.token, raw)
	if !times.Until.IsZero() {
		e.until = times.Until.UnixMilli()
	}
	return e, nil
}

func (i *issuer) verifySignature(ctx context.Context, p *jwt.Token, now time.Time) (*jwks.Key, *jwks.Set, *keymanager.Refusal) {
	set := i.keys(now)
	if set == nil && i.source != nil {
		set, _ = i.source.Await(ctx)
	}
	if set == nil {
		return nil, nil, &keymanager.Refusal{Check: keymanager.CheckUnverified, Temporary: true, Detail: "no key of the issuer of api keys is held"}
	}
	key, refusal := i.match(set, p)
	if key != nil || i.source == nil || p.KeyID != "" && refusal.Check != keymanager.CheckKey {
		return key, set, refusal
	}
	newer, _ := i.source.RefreshFor(ctx, p.KeyID)
	if newer == nil || newer == set {
		return nil, nil, refusal
	}
	key, refusal = i.match(newer, p)
	return key, newer, refusal
}

// match returns the key of the set that made the signature. The header's jku, x5u, jwk and x5c are never looked at.
func (i *issuer) match(set *jwks.Set, p *jwt.Token) (*jwks.Key, *keymanager.Refusal) {
	keys := set.Keys()
	if p.KeyID != "" && i.source != nil { // keys of certificates have no ID: there the kid says nothing
		if keys = set.ByID(p.KeyID); len(keys) == 0 {
			return nil, refuse(keymanager.CheckKey, "the issuer has no key of the ID (kid) that the api key names")
		}
	} else if named := set.ByThumbprint(p.X5T, p.X5TS256); len(named) > 0 {
		keys = named
	}
	tried := 0
	for _, k := range keys {
		if !jwt.Suits(p.Algorithm, k.Public) || k.Algorithm != "" && k.Algorithm != p.Algorithm && (k.Algorithm != "Ed25519" || p.Algorithm != "EdDSA") {
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
		return nil, refuse(keymanager.CheckKey, "the issuer has no key for the algorithm of the api key")
	}
	return nil, refuse(keymanager.CheckSignature, "the signature is not that of the issuer of api keys")
}

// kindOf tells what a signed token was made for. Keys of the API Manager say so in token_type. Those that do not, of
// Microgateway's token service and of early versions, have what API keys have and nothing that access and ID tokens have: the
// API Manager signs all of them in one name, and an access token must not pass as a key, which has no scopes to lack.
func kindOf(c map[string]any) (keymanager.Kind, *keymanager.Refusal) {
	kind, named := claims.TokenKind(c)
	if named {
		if kind != "" {
			return kind, nil
		}
		return "", refuse(keymanager.CheckKind, "a token of another kind is no api key")
	}
	for _, name := range [...]string{"scope", "scp", "consumerKey", "azp", "client_id", "nonce", "at_hash", "cnf"} {
		if _, has := c[name]; has {
			return "", refuse(keymanager.CheckKind, "an access token is no api key")
		}
	}
	for _, name := range [...]string{"subscribedAPIs", "allowedAPIs", "keytype"} {
		if _, has := c[name]; has {
			return keymanager.KindAPIKey, nil
		}
	}
	return "", refuse(keymanager.CheckKind, "nothing in the token says that it is an api key")
}

func tokenOf(kind keymanager.Kind, i *issuer, p *jwt.Token, times jwt.Times, key *jwks.Key) *keymanager.Token {
	t := &keymanager.Token{
		Kind: kind, Issuer: i.Name, KeyID: p.KeyID,
		User:   claims.User(p.Claims),
		Scopes: claims.Scopes(p.Claims, p.Claims, ""),
		Claims: p.Claims, IssuedAt: times.IssuedAt, ExpiresAt: times.ExpiresAt,
		Unsubscribed: kind == keymanager.KindInternalKey,
		Origin:       i.Origin,
	}
	t.Subject, _ = p.Claims["sub"].(string)
	if t.ID, _ = p.Claims["jti"].(string); t.ID == "" {
		t.ID = p.SignaturePart()
	}
	if t.KeyID == "" {
		t.KeyID = key.ID
	}
	says := map[string]any{"application": p.Claims["application"], "keytype": p.Claims["keytype"], "subscribedAPIs": p.Claims["subscribedAPIs"]}
	if _, ok := says["application"].(map[string]any); !ok {
		says["application"] = map[string]any{} // its key type counts all the same
	}
	if list, ok := says["subscribedAPIs"].([]any); !ok || len(list) == 0 {
		if allowed, ok := p.Claims["allowedAPIs"].([]any); ok {
			says["subscribedAPIs"] = allowed
		}
	}
	t.Application, t.Subscribed = claims.Embedded(says)
	return t
}
