package apikey

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/keymanager"
)

func api(name, version string) map[string]any {
	return map[string]any{"name": name, "version": version, "subscriptionTier": "Gold"}
}

func TestKeyOfAPIManagerBecomesToken(t *testing.T) {
	f := newFixture(t)
	tok := f.accept(offer(signRSA(f.claims("exp", f.clock.now().Unix()+600, "scope", nil))))
	want := &keymanager.Token{
		Kind: keymanager.KindAPIKey, Issuer: apim, ID: keyID, KeyID: "gateway_certificate_alias", Subject: "alice@carbon.super", User: "alice@carbon.super",
		IssuedAt: f.clock.now().Unix() - 10, ExpiresAt: f.clock.now().Unix() + 600,
		Application: &keymanager.EmbeddedApplication{ID: 12, UUID: "7d3a6f0c-2d0e-4a8c-a6b1-3f6a6f1d0012", Name: "Web", Tier: "10PerMin", Owner: "alice", KeyType: "SANDBOX"},
		Subscribed:  []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1.0.0", Context: "/shop/1.0.0", Tier: "Gold", SubscriberTenant: "carbon.super"}},
	}
	got := *tok
	got.Claims = nil
	if d := cmp.Diff(want, &got); d != "" {
		t.Error(d)
	}
	if tok.Claims["token_type"] != "apiKey" {
		t.Errorf("claims %v", tok.Claims)
	}
}

func TestKeyOfTokenService(t *testing.T) {
	f := newFixture(t)
	tok := f.accept(offer(sign(jwt.SigningMethodES256, ecKey(), f.allowed(api("Other", "2"), api("Shop", "*")))))
	if len(tok.Subscribed) != 2 || tok.Subscribed[1] != (keymanager.EmbeddedSubscription{Name: "Shop", Version: "*", Tier: "Gold"}) {
		t.Errorf("subscribed %+v", tok.Subscribed)
	}
	if tok.Application == nil || tok.Application.KeyType != "PRODUCTION" || tok.Unsubscribed {
		t.Errorf("token %+v", tok)
	}
}

func TestAllowedAPIs(t *testing.T) {
	f := newFixture(t)
	for name, tt := range map[string]struct {
		apis []any
		want bool
	}{
		"name and version":      {[]any{api("Shop", "1.0.0")}, true},
		"every version":         {[]any{api("Shop", "*")}, true},
		"second of two":         {[]any{api("Pets", "1.0.0"), api("Shop", "1.0.0")}, true},
		"another version":       {[]any{api("Shop", "2.0.0")}, false},
		"beginning of the name": {[]any{api("Sho", "1.0.0")}, false},
		"another case":          {[]any{api("shop", "1.0.0")}, false},
		"asterisk as the name":  {[]any{api("*", "*")}, false},
		"empty list":            {[]any{}, false},
		"no list":               {nil, false},
		"not objects":           {[]any{"Shop", 1, nil}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := f.allowed(tt.apis...)
			if tt.apis == nil {
				c["allowedAPIs"] = nil
			}
			o := offer(sign(jwt.SigningMethodES256, ecKey(), c))
			f := &fixture{Authenticator: f.Authenticator, t: t}
			if tt.want {
				f.accept(o)
			} else if r := f.refuse(o, keymanager.CheckAPI); r.Forbidden {
				t.Error("answered as forbidden; the contract says 401")
			}
		})
	}
	t.Run("the list of the API Manager wins over that of the token service", func(t *testing.T) {
		c := f.allowed(api("Shop", "1.0.0"))
		c["subscribedAPIs"] = []any{api("Pets", "1.0.0")}
		f.refuse(offer(sign(jwt.SigningMethodES256, ecKey(), c)), keymanager.CheckAPI)
	})
	t.Run("without validate_allowed_apis the subscription decides", func(t *testing.T) {
		f.accept(offer(signRSA(f.claims("subscribedAPIs", []any{}))))
	})
	t.Run("one key is good at one API and bad at another", func(t *testing.T) {
		o := offer(sign(jwt.SigningMethodES256, ecKey(), f.allowed(api("Shop", "1.0.0"))))
		f.accept(o)
		o.APIName = "Pets"
		f.refuse(o, keymanager.CheckAPI)
	})
}

func TestInternalKey(t *testing.T) {
	f := newFixture(t)
	tok := f.accept(internalOffer(signRSA(f.internal())))
	if tok.Kind != keymanager.KindInternalKey || !tok.Unsubscribed || tok.User != "admin" {
		t.Errorf("token %+v", tok)
	}
	for name, tt := range map[string]struct {
		claims map[string]any
		want   keymanager.Check
	}{
		"for another API": {f.internal("subscribedAPIs", []any{api("Pets", "1.0.0")}), keymanager.CheckAPI},
		"for no API":      {f.internal("subscribedAPIs", nil), keymanager.CheckAPI},
		"for the API of that name and version of another tenant": {
			f.internal("subscribedAPIs", []any{map[string]any{"name": "Shop", "version": "1.0.0", "context": "/t/other.example/shop/1.0.0"}}), keymanager.CheckAPI,
		},
		"for the API's context in another version": {
			f.internal("subscribedAPIs", []any{map[string]any{"name": "Shop", "version": "1.0.0", "context": "/shop/2.0.0"}}), keymanager.CheckAPI,
		},
		"without an expiry":    {f.internal("exp", nil), keymanager.CheckExpired},
		"expired":              {f.internal("exp", f.clock.now().Unix()-6), keymanager.CheckExpired},
		"of no kind":           {f.internal("token_type", nil), keymanager.CheckKind},
		"an API key":           {f.claims(), keymanager.CheckKind},
		"an API key that lies": {f.claims("iss", console), keymanager.CheckKind},
		"of another issuer":    {f.internal("iss", "https://elsewhere"), keymanager.CheckIssuer},
		"of the other issuer":  {f.internal("iss", apim), keymanager.CheckKind},
	} {
		t.Run(name, func(t *testing.T) {
			(&fixture{Authenticator: f.Authenticator, t: t}).refuse(internalOffer(signRSA(tt.claims)), tt.want)
		})
	}
	t.Run("in the field of API keys", func(t *testing.T) {
		f.refuse(offer(signRSA(f.internal())), keymanager.CheckKind)
	})
	t.Run("an opaque key in its field", func(t *testing.T) {
		f.store.Put(opaqueKey("secret-key"))
		f.refuse(internalOffer("secret-key"), keymanager.CheckKind)
	})
}

func TestTimes(t *testing.T) {
	f := newFixture(t)
	now := f.clock.now().Unix()
	for name, tt := range map[string]struct {
		claim string
		value any
		want  keymanager.Check // "": accepted
	}{
		"for ever":                {"exp", nil, ""},
		"expired within the skew": {"exp", now - 4, ""},
		"expired at the skew":     {"exp", now - 5, keymanager.CheckExpired},
		"expiry as text":          {"exp", "soon", keymanager.CheckExpired},
		"not yet":                 {"nbf", now + 6, keymanager.CheckNotBefore},
		"not yet, within skew":    {"nbf", now + 5, ""},
		"of the future":           {"iat", now + 6, keymanager.CheckIssuedAt},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fixture{Authenticator: f.Authenticator, t: t, clock: f.clock}
			o := offer(signRSA(f.claims(tt.claim, tt.value)))
			if tt.want == "" {
				f.accept(o)
			} else {
				f.refuse(o, tt.want)
			}
		})
	}
	t.Run("a cached key expires", func(t *testing.T) {
		o := offer(signRSA(f.claims("exp", f.clock.now().Unix()+60)))
		f.accept(o)
		f.clock.advance(66 * time.Second)
		f.refuse(o, keymanager.CheckExpired)
		if f.Sweep(); f.verified.Get(f.verified.KeyOf(o.Value)) != nil {
			t.Error("it is still cached")
		}
	})
}

func TestRevocation(t *testing.T) {
	for name, tt := range map[string]func(f *fixture, key string) keymanager.Revocation{
		"by its ID": func(*fixture, string) keymanager.Revocation { return keymanager.Revocation{Value: keyID} },
		"by its signature": func(_ *fixture, key string) keymanager.Revocation {
			return keymanager.Revocation{Value: key[strings.LastIndexByte(key, '.')+1:]}
		},
		"by its text": func(_ *fixture, key string) keymanager.Revocation { return keymanager.Revocation{Value: key} },
		"by its user": func(f *fixture, _ string) keymanager.Revocation {
			return keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice", Before: f.clock.now().UnixMilli()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			o := offer(signRSA(f.claims()))
			f.accept(o)
			r := tt(f, o.Value)
			r.ExpiresAt = f.clock.now().Add(time.Hour).UnixMilli()
			r.Origin = keymanager.Origin{Kind: "event", ID: "e1"}
			f.revs.Put(r)
			if got := f.refuse(o, keymanager.CheckRevoked); got.Origin.ID != "e1" {
				t.Errorf("origin %+v", got.Origin)
			}
		})
	}
	t.Run("never seen before", func(t *testing.T) {
		f := newFixture(t)
		f.revs.Put(keymanager.Revocation{Value: keyID, ExpiresAt: f.clock.now().Add(time.Hour).UnixMilli()})
		f.refuse(offer(signRSA(f.claims())), keymanager.CheckRevoked)
	})
}

func TestIssuersChange(t *testing.T) {
	f := newFixture(t)
	o := offer(signRSA(f.claims()))
	before := f.accept(o)
	same := []Issuer{{Name: apim, PEM: publicPEM(rsaKey().Public())}}
	must(f.SetIssuers(same))
	if again, cached, _ := f.AuthenticateKey(context.Background(), o); !cached || again != before {
		t.Error("a reload that changes nothing costs the verified keys")
	}
	for name, list := range map[string][]Issuer{
		"twice":       {same[0], same[0]},
		"no name":     {{PEM: same[0].PEM}},
		"no keys":     {{Name: "x"}},
		"both":        {{Name: "x", PEM: same[0].PEM, JWKSURL: "https://x/"}},
		"no PEM":      {{Name: "x", PEM: "text"}},
		"bad URL":     {{Name: "x", JWKSURL: "ftp://x"}},
		"no CA":       {{Name: "x", JWKSURL: "https://x/", CAPEM: "text"}},
		"short key":   {{Name: "x", PEM: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}},
		"private key": {{Name: "x", PEM: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}},
	} {
		if err := f.SetIssuers(list); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	f.accept(o)
	must(f.SetIssuers([]Issuer{{Name: apim, PEM: publicPEM(strangerKey().Public())}}))
	f.refuse(o, keymanager.CheckSignature)
	must(f.SetIssuers(same)) // the cached refusal was under other issuers
	f.accept(o)
	must(f.SetIssuers(nil))
	f.refuse(o, keymanager.CheckIssuer)
	f.Sweep()
	if f.verified.Len() != 0 {
		t.Error("keys of an issuer that is gone are kept")
	}
	f.Close()
	if f.SetIssuers(same) == nil {
		t.Error("issuers after Close")
	}
}

func jwkOf(kid string) map[string]any {
	p := rsaKey().PublicKey
	return map[string]any{"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "e": "AQAB", "n": base64.RawURLEncoding.EncodeToString(p.N.Bytes())}
}

func TestKeySetByURL(t *testing.T) {
	var kid atomic.Value
	kid.Store("gateway_certificate_alias")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		must(json.NewEncoder(w).Encode(map[string]any{"keys": []any{jwkOf(kid.Load().(string))}}))
	}))
	t.Cleanup(srv.Close)
	f := newFixture(t, func([]Issuer) []Issuer { return []Issuer{{Name: apim, JWKSURL: srv.URL}} })
	o := offer(signRSA(f.claims()))
	f.accept(o)
	if s := f.Issuers(); len(s) != 1 || s[0].Keys != 1 || s[0].Kind != "api_key" || s[0].FetchedAt.IsZero() {
		t.Errorf("state %+v", s)
	}
	t.Run("a key of an ID that is not published", func(t *testing.T) {
		tok := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims(f.claims()))
		tok.Header["kid"] = "../../etc/passwd"
		s, err := tok.SignedString(rsaKey())
		must(err)
		f.refuse(offer(s), keymanager.CheckKey)
	})
	t.Run("the server is away from the start", func(t *testing.T) {
		f := newFixture(t, func([]Issuer) []Issuer { return []Issuer{{Name: apim, JWKSURL: "http://127.0.0.1:1/"}} })
		if r := f.refuse(offer(signRSA(f.claims())), keymanager.CheckUnverified); !r.Temporary {
			t.Error("the caller is blamed")
		}
	})
}

func opaqueKey(value string) keymanager.OpaqueKey {
	sum := sha256.Sum256([]byte(value))
	return keymanager.OpaqueKey{
		Hash: hex.EncodeToString(sum[:]), UUID: "1a2b3c4d-0000-4000-8000-00000000aaaa", Name: "ci-key", User: "dana", Status: "ACTIVE",
		ApplicationID: 12, ApplicationUUID: "7d3a6f0c-2d0e-4a8c-a6b1-3f6a6f1d0012", APIUUID: shopUUID, Bound: "APP",
		Origin: keymanager.Origin{Kind: "event", ID: "e7"},
	}
}

func TestOpaqueKey(t *testing.T) {
	const value = "gh_4f6e2f7e3c4d4a53"
	sum := sha256.Sum256([]byte(value))
	for name, tt := range map[string]struct {
		change func(*keymanager.OpaqueKey)
		offer  func(*keymanager.KeyOffer)
		want   keymanager.Check
	}{
		"as the API Manager sends it": {},
		"hash in capitals":            {change: func(r *keymanager.OpaqueKey) { r.Hash = strings.ToUpper(r.Hash) }},
		"hash in base64":              {change: func(r *keymanager.OpaqueKey) { r.Hash = base64.StdEncoding.EncodeToString(sum[:]) }},
		"hash in base64url":           {change: func(r *keymanager.OpaqueKey) { r.Hash = base64.RawURLEncoding.EncodeToString(sum[:]) }},
		"no status":                   {change: func(r *keymanager.OpaqueKey) { r.Status = "" }},
		"status in small letters":     {change: func(r *keymanager.OpaqueKey) { r.Status = "active" }},
		"inactive":                    {change: func(r *keymanager.OpaqueKey) { r.Status = "INACTIVE" }, want: keymanager.CheckInactive},
		"revoked":                     {change: func(r *keymanager.OpaqueKey) { r.Status = "REVOKED" }, want: keymanager.CheckRevoked},
		"salted":                      {change: func(r *keymanager.OpaqueKey) { r.Salted = true }, want: keymanager.CheckOpaque},
		"hash that is none":           {change: func(r *keymanager.OpaqueKey) { r.Hash = "9f2c9b7d1c" }, want: keymanager.CheckOpaque},
		"the key itself as its hash":  {change: func(r *keymanager.OpaqueKey) { r.Hash = value }, want: keymanager.CheckOpaque},
		"expired":                     {change: func(r *keymanager.OpaqueKey) { r.ExpiresAt = 1764000000000 }, want: keymanager.CheckExpired},
		"bound to the API":            {change: func(r *keymanager.OpaqueKey) { r.Bound = "API" }},
		"bound to another API": {
			change: func(r *keymanager.OpaqueKey) { r.Bound = "API" },
			offer:  func(o *keymanager.KeyOffer) { o.APIUUID = "another" }, want: keymanager.CheckAPI,
		},
		"names an API without saying what it is bound to": {
			change: func(r *keymanager.OpaqueKey) { r.Bound = "" },
			offer:  func(o *keymanager.KeyOffer) { o.APIUUID = "another" }, want: keymanager.CheckAPI,
		},
		"bound to its application, another API": {offer: func(o *keymanager.KeyOffer) { o.APIUUID = "another" }},
		"bound to an API that it does not name": {
			change: func(r *keymanager.OpaqueKey) { r.Bound, r.APIUUID = "API", "" },
			offer:  func(o *keymanager.KeyOffer) { o.APIUUID = "" }, want: keymanager.CheckAPI,
		},
		"from elsewhere": {change: func(r *keymanager.OpaqueKey) { r.PermittedIP = "192.0.2.1" }, want: keymanager.CheckIP},
		"referer":        {change: func(r *keymanager.OpaqueKey) { r.PermittedReferer = "shop.example.com/*" }, want: keymanager.CheckReferer},
		"another key":    {offer: func(o *keymanager.KeyOffer) { o.Value = value + "x" }, want: keymanager.CheckOpaque},
		"its own hash":   {offer: func(o *keymanager.KeyOffer) { o.Value = hex.EncodeToString(sum[:]) }, want: keymanager.CheckOpaque},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			row, o := opaqueKey(value), offer(value)
			if tt.change != nil {
				tt.change(&row)
			}
			if tt.offer != nil {
				tt.offer(&o)
			}
			f.store.Put(row)
			if tt.want != "" {
				f.refuse(o, tt.want)
				return
			}
			tok := f.accept(o)
			want := &keymanager.EmbeddedApplication{ID: 12, UUID: "7d3a6f0c-2d0e-4a8c-a6b1-3f6a6f1d0012", KeyType: "PRODUCTION"}
			if d := cmp.Diff(want, tok.Application); d != "" || tok.Kind != keymanager.KindAPIKey || tok.User != "dana" || tok.Origin.ID != "e7" || tok.Subscribed != nil {
				t.Errorf("token %+v %s", tok, d)
			}
		})
	}
}

func TestOpaqueKeyChanges(t *testing.T) {
	f := newFixture(t)
	const value = "gh_4f6e2f7e3c4d4a53"
	row := opaqueKey(value)
	f.store.Put(row)
	f.accept(offer(value))
	row.Status = "REVOKED"
	f.store.Put(row)
	f.refuse(offer(value), keymanager.CheckRevoked)
	row.Status = "ACTIVE"
	f.store.ReplaceAll([]keymanager.OpaqueKey{row})
	f.accept(offer(value))
	f.revs.Put(keymanager.Revocation{Value: value, ExpiresAt: f.clock.now().Add(time.Hour).UnixMilli()})
	f.refuse(offer(value), keymanager.CheckRevoked)
	f.store.Delete(row.Hash)
	f.refuse(offer(value), keymanager.CheckOpaque)
}

func TestForgetKeys(t *testing.T) {
	f := newFixture(t)
	one, two := offer(signRSA(f.claims())), offer(signRSA(f.claims("jti", "other")))
	f.accept(one)
	f.accept(two)
	if n := f.Forget([]string{one.Value, "other", "unknown"}); n != 2 || f.verified.Len() != 0 {
		t.Errorf("%d dropped, %d held", n, f.verified.Len())
	}
}

func TestGarbageEvictsNothing(t *testing.T) {
	f := newFixture(t)
	o := offer(signRSA(f.claims()))
	f.accept(o)
	head := o.Value[:strings.LastIndexByte(o.Value, '.')+1]
	for i := range 300 {
		bad := offer(head + base64.RawURLEncoding.EncodeToString([]byte{byte(i), byte(i >> 8)}))
		if _, _, err := f.AuthenticateKey(context.Background(), bad); err == nil {
			t.Fatal("accepted")
		}
	}
	if _, cached, err := f.AuthenticateKey(context.Background(), o); err != nil || !cached || f.verified.Len() != 1 {
		t.Errorf("cached %t, %v, %d held", cached, err, f.verified.Len())
	}
}

func TestConcurrentUse(t *testing.T) {
	f := newFixture(t)
	signed, internal := offer(signRSA(f.claims())), internalOffer(signRSA(f.internal()))
	row := opaqueKey("opaque")
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 200 {
				switch n {
				case 0:
					f.store.Put(row)
					f.store.Delete(row.Hash)
				case 1:
					must(f.SetIssuers([]Issuer{{Name: apim, PEM: publicPEM(rsaKey().Public()), ValidateAllowedAPIs: i%2 == 0}}))
				}
				_, _, err := f.AuthenticateKey(context.Background(), signed)
				if err != nil {
					t.Error(err)
				}
				_, _, _ = f.AuthenticateKey(context.Background(), internal)
				_, _, _ = f.AuthenticateKey(context.Background(), offer("opaque"))
				f.Sweep()
			}
		})
	}
	wg.Wait()
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	a := New(Options{Registerer: reg, CacheCapacity: -1})
	defer a.Close()
	if fams, err := reg.Gather(); err != nil || len(fams) != 2 {
		t.Errorf("%d metrics, %v", len(fams), err)
	}
}
