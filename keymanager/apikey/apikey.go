// Package apikey verifies API keys: signed ones, as the API Manager and Microgateway's token service issue them, the
// internal keys of the test console, and opaque ones that are known by their hash (contract gateway-behaviour.md 8).
//
// A key is good for what it was made for only. An access token is no API key, an API key no internal key, and the reverse;
// a key with a permitted address and a permitted referer needs both; a key that names APIs is good for those, unless
// the caller looks subscriptions up.
package apikey

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/keymanager"
	"gatehouse/keymanager/jwks"
	"gatehouse/keymanager/jwt"
	"gatehouse/keymanager/revocation"
	"gatehouse/keymanager/tokencache"
)

const (
	// DefaultCacheCapacity is how many verified keys are kept where Options name no number.
	DefaultCacheCapacity = 10000
	negativeCapacity     = 10000
	negativeLife         = 30 * time.Second
	// maxTried is how many verification keys are tried for a key that names none.
	maxTried = 8
)

// Options configure an Authenticator. The zero value knows no issuers, no opaque keys and no revocations.
type Options struct {
	// HTTPClient fetches key sets; only its Transport is used. Nil: a transport per issuer. Issuers with a CA file, or that
	// skip the verification of TLS, always get their own.
	HTTPClient *http.Client
	// TLS is the base of own transports.
	TLS        *tls.Config
	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// CacheCapacity is how many verified keys are kept: 0 means DefaultCacheCapacity, a negative number none.
	CacheCapacity int
	Revocations   *revocation.Set
	// Store holds the opaque keys; nil: there are none.
	Store *Store
	Now   func() time.Time // nil: time.Now
}

// Authenticator verifies API keys. It is safe for concurrent use. Close it to end its background work.
type Authenticator struct {
	opts Options
	now  func() time.Time

	mu      sync.Mutex // of changes of issuers
	closed  bool
	issuers atomic.Pointer[issuers]

	verified *tokencache.Cache[verified]
	refused  *tokencache.Cache[refused]
}

// New returns an authenticator without issuers.
func New(o Options) *Authenticator {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.CacheCapacity == 0 {
		o.CacheCapacity = DefaultCacheCapacity
	}
	if o.Revocations == nil {
		o.Revocations = revocation.New(revocation.Options{Now: o.Now})
	}
	if o.Store == nil {
		o.Store = NewStore()
	}
	a := &Authenticator{opts: o, now: o.Now, verified: tokencache.New[verified](o.CacheCapacity), refused: tokencache.New[refused](negativeCapacity)}
	a.issuers.Store(&issuers{})
	if o.Registerer != nil {
		o.Registerer.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gatehouse_api_keys_opaque", Help: "Opaque API keys that are known."},
				func() float64 { return float64(o.Store.Len()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gatehouse_api_keys_cached", Help: "Verified API keys that are kept."},
				func() float64 { return float64(a.verified.Len()) }),
		)
	}
	return a
}

// verified is a key in the cache: signed, with an issuer, or opaque, with a record.
type verified struct {
	token  *keymanager.Token
	names  revocation.Keys
	limits limits
	until  int64 // ms; 0: for ever

	issuer *issuer
	key    *jwks.Key
	// set is the last key set that was seen to hold the key.
	set atomic.Pointer[jwks.Set]

	record *record
}

// refused is a failure of signature or form in the cache.
type refused struct {
	refusal *keymanager.Refusal
	issuers *issuers
	set     *jwks.Set // nil where no key was looked at
	issuer  *issuer
	until   int64
}

// AuthenticateKey verifies an API key and returns its token; cached says that it was verified before. The error is always a
// *keymanager.Refusal. The token is shared and must not be changed. A key that was verified before costs no allocation;
// whether it is revoked, expired, and permitted from here is asked each time.
func (a *Authenticator) AuthenticateKey(ctx context.Context, o keymanager.KeyOffer) (t *keymanager.Token, cached bool, err error) {
	if len(o.Value) > jwt.MaxSize {
		_, refusal := jwt.Parse(o.Value)
		return nil, false, refusal
	}
	if o.Value == "" {
		return nil, false, &keymanager.Refusal{Check: keymanager.CheckFormat, Detail: "the api key is empty"}
	}
	now := a.now()
	k := a.verified.KeyOf(o.Value)
	if e := a.verified.Get(k); e != nil {
		if refusal, ok := a.again(e, &o, now); ok {
			if refusal != nil {
				return nil, true, refusal
			}
			return e.token, true, nil
		}
		a.verified.Delete(k, e)
	}
	if r := a.refused.Get(k); r != nil && now.UnixMilli() < r.until && r.issuers == a.issuers.Load() &&
		(r.issuer == nil || r.issuer.keys(now) == r.set) {
		return nil, true, r.refusal
	}
	e, refusal := a.verify(ctx, &o, k, now)
	if refusal != nil {
		return nil, false, refusal
	}
	if refusal := a.permit(e, &o, a.now()); refusal != nil {
		return nil, false, refusal
	}
	return e.token, false, nil
}

// again looks at a key that was verified before; ok is false when it must be verified anew.
func (a *Authenticator) again(e *verified, o *keymanager.KeyOffer, now time.Time) (refusal *keymanager.Refusal, ok bool) {
	if e.record != nil {
		if e.record.gone.Load() {
			return nil, false
		}
		return a.permit(e, o, now), true
	}
	if e.issuer.retired.Load() {
		return nil, false
	}
	set := e.issuer.keys(now)
	if set == nil {
		return nil, false
	}
	if set != e.set.Load() {
		if !set.Holds(e.key) {
			return nil, false
		}
		e.set.Store(set)
	}
	return a.permit(e, o, now), true
}

// permit asks what may change from one request to the next: is the key of the right kind, alive, and permitted here.
func (a *Authenticator) permit(e *verified, o *keymanager.KeyOffer, now time.Time) *keymanager.Refusal {
	ms := now.UnixMilli()
	if refusal := kindRefusal(e.token.Kind, o.Internal); refusal != nil {
		return own(refusal, e)
	}
	if e.until != 0 && ms >= e.until {
		return own(refuse(keymanager.CheckExpired, "the api key expired at "+time.Unix(e.token.ExpiresAt, 0).UTC().Format(time.RFC3339)), e)
	}
	tenant := o.Tenant
	if tenant == "" {
		tenant = keymanager.SuperTenant
	}
	if by, yes := a.opts.Revocations.RevokedKeys(&e.names, e.token, tenant, ms); yes {
		r := own(refuse(keymanager.CheckRevoked, "the api key was revoked"), e)
		r.Origin = by.Origin
		return r
	}
	if refusal := e.allowsAPI(o); refusal != nil {
		return own(refusal, e)
	}
	if refusal := e.limits.check(o.ClientIP, o.Referer); refusal != nil {
		return own(refusal, e)
	}
	return nil
}

// allowsAPI asks whether the key was made for the API.
func (e *verified) allowsAPI(o *keymanager.KeyOffer) *keymanager.Refusal {
	if e.record != nil {
		return e.record.allowsAPI(o)
	}
	if e.token.Kind != keymanager.KindInternalKey && !e.issuer.ValidateAllowedAPIs {
		return nil // the subscription decides
	}
	for i := range e.token.Subscribed {
		s := &e.token.Subscribed[i]
		// Tenants may have APIs of one name: an entry that names a context is for the API at that context.
		if s.Name == o.APIName && (s.Version == o.APIVersion || s.Version == "*") &&
			(s.Context == "" || s.Context == o.APIContext || s.Context+"/"+o.APIVersion == o.APIContext) {
			return nil
		}
	}
	return refuse(keymanager.CheckAPI, "the api key is not for this API")
}

func kindRefusal(kind keymanager.Kind, internal bool) *keymanager.Refusal {
	switch {
	case internal && kind != keymanager.KindInternalKey:
		return refuse(keymanager.CheckKind, "an api key is no internal key")
	case !internal && kind == keymanager.KindInternalKey:
		return refuse(keymanager.CheckKind, "an internal key is good in its own field only")
	}
	return nil
}

func refuse(check keymanager.Check, detail string) *keymanager.Refusal {
	return &keymanager.Refusal{Check: check, Detail: detail}
}

// own says whose key it was that was refused.
func own(r *keymanager.Refusal, e *verified) *keymanager.Refusal {
	r.Issuer, r.Origin = e.token.Issuer, e.token.Origin
	return r
}

// opaque finds the record of a key that is no JWT.
func (a *Authenticator) opaque(o *keymanager.KeyOffer, k tokencache.Key) (*verified, *keymanager.Refusal) {
	if o.Internal {
		return nil, refuse(keymanager.CheckKind, "not an internal key of the test console")
	}
	rec := a.opts.Store.find(o.Value)
	if rec == nil {
		return nil, refuse(keymanager.CheckOpaque, "not a signed api key, and no opaque key of this value is known")
	}
	row := rec.row
	if status := row.Status; status != "" && !strings.EqualFold(status, "ACTIVE") {
		if strings.Contains(strings.ToUpper(status), "REVOKE") {
			return nil, &keymanager.Refusal{Check: keymanager.CheckRevoked, Detail: "the api key was revoked", Origin: row.Origin}
		}
		return nil, &keymanager.Refusal{Check: keymanager.CheckInactive, Detail: "the api key is not active", Origin: row.Origin}
	}
	e := &verified{record: rec, limits: rec.limits, until: row.ExpiresAt, token: &keymanager.Token{
		Kind: keymanager.KindAPIKey, ID: row.UUID, Subject: row.User, User: row.User,
		IssuedAt: row.CreatedAt / 1000, ExpiresAt: row.ExpiresAt / 1000,
		Application: &keymanager.EmbeddedApplication{ID: row.ApplicationID, UUID: row.ApplicationUUID, KeyType: keyType(row.KeyType)},
		Origin:      row.Origin,
	}}
	e.names = revocation.KeysOf(e.token, o.Value)
	a.verified.Put(k, e)
	return e, nil
}

func keyType(text string) string {
	if text == "" {
		return "PRODUCTION"
	}
	return strings.ToUpper(text)
}

// Sweep drops what is cached of keys that have expired, are gone, or whose issuer is. Call it now and then.
func (a *Authenticator) Sweep() {
	ms := a.now().UnixMilli()
	a.verified.DeleteFunc(func(e *verified) bool {
		return e.until != 0 && ms >= e.until || e.record != nil && e.record.gone.Load() || e.issuer != nil && e.issuer.retired.Load()
	})
	a.refused.DeleteFunc(func(r *refused) bool { return ms >= r.until })
}

// Forget drops what is cached of these keys, each named by its text or its ID (contract events.md 5c). It returns how many
// were dropped.
func (a *Authenticator) Forget(keys []string) (dropped int) {
	ids := make(map[string]bool, len(keys))
	for _, text := range keys {
		ids[text] = true
		k := a.verified.KeyOf(text)
		if e := a.verified.Get(k); e != nil {
			a.verified.Delete(k, e)
			dropped++
		}
	}
	a.verified.DeleteFunc(func(e *verified) bool {
		if ids[e.token.ID] {
			dropped++
			return true
		}
		return false
	})
	return dropped
}
