package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/keymanager"
	"gatehouse/keymanager/claims"
	"gatehouse/keymanager/introspection"
	"gatehouse/keymanager/jwks"
	"gatehouse/keymanager/jwt"
)

// manager is one revision of a key manager, with its keys.
type manager struct {
	km *keymanager.KeyManager
	// given is the key manager without what the configuration lends it.
	given    keymanager.KeyManager
	name     string // canonical
	owner    string
	revision uint64
	now      func() time.Time
	origin   atomic.Pointer[keymanager.Origin]
	// group is nil once the manager is retired or hidden: what was cached under it no longer counts.
	group atomic.Pointer[group]

	pem    *jwks.Set
	source *jwks.Source
	// moved is set when a later revision took the source over.
	moved atomic.Bool
	// local says that the gateway verifies JWTs itself; else the key manager is asked.
	local bool
	// secret is the shared secret, empty when there is none that may be used.
	secret string

	// live is false once the manager is retired or hidden: what was cached under it no longer counts.
	live atomic.Bool
	// hidden are the tenants for whose APIs an issuer of the configuration does not answer, because they have a key manager
	// of the same issuer; nil: none.
	hidden  atomic.Pointer[map[string]bool]
	formats formats
	mapper  *claims.Mapper
	// asker asks about opaque tokens; nil: they are none of this key manager's. answers checks its signed answers, and goes
	// with it to a later revision, which askerMoved tells.
	asker       *introspection.Client
	answers     *answerKeys
	askerMoved  atomic.Bool
	askFault    error
	failing     atomic.Bool  // the last call failed, and that was logged
	disliked    atomic.Int64 // ms, when a failure that a token caused was last logged
	staleServed atomic.Int64
	// fault is why there can be no keys at all, by the configuration.
	fault error
}

func newManager(km keymanager.KeyManager, revision uint64, was *manager, o Options) *manager {
	m := &manager{km: &km, name: keymanager.CanonicalName(km.Name), owner: km.Owner(), revision: revision, now: o.Now}
	m.origin.Store(&km.Origin)
	if !m.usable() {
		return m
	}
	m.local = km.SelfValidate && (km.JWKSURL != "" || km.PEM != "" || km.SharedSecret != "" || km.Introspection == nil)
	log := o.Logger.With().Str("key_manager", km.Name).Str("issuer", km.Issuer).Logger()
	var err error
	if m.formats, err = newFormats(km.TokenFormats); err != nil {
		log.Warn().Err(err).Msg("these formats claim no token")
	}
	if m.mapper, err = claims.Compile(km.ClaimMappings); err != nil {
		log.Warn().Err(err).Msg("these claim mappings are passed over")
	}
	m.keysFrom(was, o, log)
	m.introspect(was, o)
	for _, fault := range []error{m.fault, m.askFault} {
		if fault != nil {
			log.Error().Err(fault).Msg("tokens of this key manager cannot be verified")
		}
	}
	return m
}

// keysFrom says where the keys of the manager come from. One that does not validate itself needs keys for signed answers
// only, and fetches them when the first such answer comes.
func (m *manager) keysFrom(was *manager, o Options, log zerolog.Logger) {
	km := m.km
	defer func() {
		if m.fault != nil {
			m.fault = fmt.Errorf("key manager %q: %w", km.Name, m.fault)
		}
	}()
	if km.SharedSecret != "" {
		if m.fault = jwt.CheckSecret(km.SharedSecret); m.fault != nil {
			return
		}
		m.secret = km.SharedSecret
	}
	switch {
	case km.JWKSURL != "":
		if was != nil && was.source != nil && !was.moved.Load() && sameSource(was.km, km) {
			was.moved.Store(true)
			m.source = was.source
		} else {
			tr, base, err := transport(km, o)
			if err == nil {
				m.source, err = jwks.New(jwks.Options{URL: km.JWKSURL, Transport: tr, TLS: base, MaxStale: km.MaxStale, Refresh: km.JWKSRefresh, Now: o.Now, Logger: log})
			}
			if err != nil {
				m.fault = err
				return
			}
			if was != nil && was.source != nil && sameServer(was.km, km) {
				m.source.Inherit(was.source)
			}
		}
		if m.local {
			m.source.Start()
		}
	case km.PEM != "":
		m.pem, m.fault = jwks.ParsePEM(km.PEM)
	case m.local && m.secret == "":
		m.fault = errors.New("it names neither a key set URL nor certificates")
	}
}

// answerKeys verifies signed answers with the keys of the manager that owns the client now.
type answerKeys struct{ of atomic.Pointer[manager] }

func (a *answerKeys) verify(ctx context.Context, p *jwt.Token) *keymanager.Refusal {
	m := a.of.Load()
	if m.source == nil && m.pem == nil {
		return m.refuse(keymanager.CheckKey, "the key manager has no keys")
	}
	if refusal := jwt.CheckAlgorithm(p.Algorithm, m.km.Algorithms); refusal != nil {
		return refusal
	}
	if m.source != nil {
		m.source.Start() // does nothing the second time
	}
	_, _, refusal := m.verifySignature(ctx, p, m.now())
	return refusal
}

// introspect makes the client that asks about opaque tokens, or takes that of the earlier revision over, with what it knows
// about the state of the key manager.
func (m *manager) introspect(was *manager, o Options) {
	km := m.km
	if km.Introspection == nil {
		return
	}
	if was != nil && was.asker != nil && !was.askerMoved.Load() && sameAsker(was.km, km) {
		was.askerMoved.Store(true)
		m.asker, m.answers = was.asker, was.answers
		m.failing.Store(was.failing.Load())
		m.answers.of.Store(m)
		return
	}
	m.answers = &answerKeys{}
	m.answers.of.Store(m)
	tr, base, err := transport(km, o)
	if err == nil {
		m.asker, err = introspection.New(introspection.Options{
			Endpoint: *km.Introspection, Transport: tr, TLS: base, Verify: m.answers.verify, Issuer: km.Issuer, Skew: km.ClockSkew,
			Reset: o.Introspection.Reset, Now: o.Now,
		})
	}
	if err != nil {
		m.asker = nil
		m.askFault = fmt.Errorf("key manager %q: %w", km.Name, err)
	}
}

func sameAsker(a, b *keymanager.KeyManager) bool {
	return a.Introspection != nil && *a.Introspection == *b.Introspection && a.Issuer == b.Issuer && a.ClockSkew == b.ClockSkew &&
		a.CAFile == b.CAFile && a.CAPEM == b.CAPEM && a.SkipTLSVerify == b.SkipTLSVerify
}

// transport returns the shared transport, or nil and the TLS settings of one of its own.
func transport(km *keymanager.KeyManager, o Options) (http.RoundTripper, *tls.Config, error) {
	if km.CAFile == "" && !km.SkipTLSVerify {
		if o.HTTPClient != nil && o.HTTPClient.Transport != nil {
			return o.HTTPClient.Transport, nil, nil
		}
		return nil, o.TLS.Clone(), nil
	}
	c := o.TLS.Clone()
	if c == nil {
		c = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	c.InsecureSkipVerify = km.SkipTLSVerify
	if km.CAFile != "" {
		b := []byte(km.CAPEM)
		if len(b) == 0 {
			var err error
			if b, err = os.ReadFile(km.CAFile); err != nil {
				return nil, nil, fmt.Errorf("reading its CA file: %w", err)
			}
		}
		pool := c.RootCAs
		if pool == nil {
			var err error
			if pool, err = x509.SystemCertPool(); err != nil {
				pool = x509.NewCertPool()
			}
		}
		pool = pool.Clone()
		if !pool.AppendCertsFromPEM(b) {
			return nil, nil, fmt.Errorf("its CA file %s holds no PEM certificate", km.CAFile)
		}
		c.RootCAs = pool
	}
	return nil, c, nil
}

// sameSource reports whether the keys of b come from where those of a do, in the same way.
func sameSource(a, b *keymanager.KeyManager) bool { return sameServer(a, b) && a.CAPEM == b.CAPEM }

// sameServer reports whether nothing but the content of the CA file differs: the keys held stay good until the next fetch,
// which begins at once.
func sameServer(a, b *keymanager.KeyManager) bool {
	return a.JWKSURL == b.JWKSURL && a.CAFile == b.CAFile && a.SkipTLSVerify == b.SkipTLSVerify && a.MaxStale == b.MaxStale && a.JWKSRefresh == b.JWKSRefresh && b.JWKSURL != ""
}

// same reports whether the configuration is the one that the manager has; where it came from does not matter.
func (m *manager) same(km *keymanager.KeyManager) bool {
	a, b := *m.km, *km
	a.Origin, b.Origin = keymanager.Origin{}, keymanager.Origin{}
	return reflect.DeepEqual(a, b)
}

// usable reports whether tokens of the key manager can be accepted: it is enabled, and either the gateway or the key
// manager validates them.
func (m *manager) usable() bool {
	return m.km.Enabled && (m.km.SelfValidate || m.km.Introspection != nil)
}

// admits reports whether an API of the tenant that accepts these key managers accepts the manager's opaque tokens.
func (m *manager) admits(tenant string, allowed []string) bool {
	return m.answersFor(tenant) && m.km.Named(allowed)
}

// answersFor reports whether the manager is one of those of a tenant's APIs.
func (m *manager) answersFor(tenant string) bool {
	if m.owner != tenant && m.owner != keymanager.AllTenants {
		return false
	}
	hidden := m.hidden.Load()
	return hidden == nil || !(*hidden)[tenant]
}

// hiddenBy reports whether an issuer of the configuration is hidden for every API by the key managers of the API Manager with
// the same issuer, whose owners are given.
func (m *manager) hiddenBy(owners map[string]bool) bool {
	return owners[keymanager.AllTenants] || owners[keymanager.SuperTenant] || owners[m.owner]
}

// hides notes the tenants for whose APIs alone an issuer of the configuration is hidden.
func (m *manager) hides(owners map[string]bool) {
	if !m.km.FromConfiguration || len(owners) == 0 {
		m.hidden.Store(nil)
		return
	}
	m.hidden.Store(&owners)
}

func (m *manager) close() {
	m.group.Store(nil)
	m.live.Store(false)
	if m.asker != nil && !m.askerMoved.Load() {
		m.asker.Close()
	}
	if m.source != nil && !m.moved.Load() {
		m.source.Close()
	}
}

// keys returns the set in use at a time, nil when there is none.
func (m *manager) keys(now time.Time) *jwks.Set {
	if m.source != nil {
		return m.source.Current(now)
	}
	return m.pem
}

// awaitKeys is keys, but waits for the first fetch.
func (m *manager) awaitKeys(ctx context.Context, now time.Time) (*jwks.Set, *keymanager.Refusal) {
	if set := m.keys(now); set != nil {
		return set, nil
	}
	if m.source != nil {
		set, err := m.source.Await(ctx)
		if err == nil {
			return set, nil
		}
	}
	r := m.refuse(keymanager.CheckUnverified, "the keys of the issuer are not available")
	r.Temporary = true
	return nil, r
}

func (m *manager) refuse(c keymanager.Check, detail string) *keymanager.Refusal {
	return m.own(&keymanager.Refusal{Check: c, Detail: detail})
}

// own writes the key manager into a refusal.
func (m *manager) own(r *keymanager.Refusal) *keymanager.Refusal {
	r.KeyManager, r.Issuer, r.Origin = m.name, m.km.Issuer, *m.origin.Load()
	return r
}
