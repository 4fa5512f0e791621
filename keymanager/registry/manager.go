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

	"gatehouse/keymanager"
	"gatehouse/keymanager/jwks"
)

// manager is one revision of a key manager, with its keys.
type manager struct {
	km       *keymanager.KeyManager
	name     string // canonical
	owner    string
	revision uint64
	origin   atomic.Pointer[keymanager.Origin]
	// group is nil once the manager is retired or hidden: what was cached under it no longer counts.
	group atomic.Pointer[group]

	pem    *jwks.Set
	source *jwks.Source
	// moved is set when a later revision took the source over.
	moved atomic.Bool
	// fault is why there can be no keys at all, by the configuration.
	fault error
}

func newManager(km keymanager.KeyManager, revision uint64, was *manager, o Options) *manager {
	m := &manager{km: &km, name: keymanager.CanonicalName(km.Name), owner: km.Owner(), revision: revision}
	m.origin.Store(&km.Origin)
	if !m.usable() {
		return m
	}
	if was != nil && was.source != nil && !was.moved.Load() && sameSource(was.km, &km) {
		was.moved.Store(true)
		m.source = was.source
		return m
	}
	log := o.Logger.With().Str("key_manager", km.Name).Str("issuer", km.Issuer).Logger()
	switch {
	case km.JWKSURL != "":
		tr, base, err := transport(&km, o)
		if err == nil {
			m.source, err = jwks.New(jwks.Options{URL: km.JWKSURL, Transport: tr, TLS: base, MaxStale: km.MaxStale, Now: o.Now, Logger: log})
		}
		if err != nil {
			m.fault = err
			break
		}
		if was != nil && was.source != nil && sameServer(was.km, &km) {
			m.source.Inherit(was.source)
		}
		m.source.Start()
	case km.PEM != "":
		m.pem, m.fault = jwks.ParsePEM(km.PEM)
	default:
		m.fault = errors.New("it names neither a key set URL nor certificates")
	}
	if m.fault != nil {
		m.fault = fmt.Errorf("key manager %q: %w", km.Name, m.fault)
		log.Error().Err(m.fault).Msg("tokens of this key manager cannot be verified")
	}
	return m
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
	return a.JWKSURL == b.JWKSURL && a.CAFile == b.CAFile && a.SkipTLSVerify == b.SkipTLSVerify && a.MaxStale == b.MaxStale && b.JWKSURL != ""
}

// same reports whether the configuration is the one that the manager has; where it came from does not matter.
func (m *manager) same(km *keymanager.KeyManager) bool {
	a, b := *m.km, *km
	a.Origin, b.Origin = keymanager.Origin{}, keymanager.Origin{}
	return reflect.DeepEqual(a, b)
}

func (m *manager) usable() bool { return m.km.Enabled && m.km.SelfValidate }

func (m *manager) close() {
	m.group.Store(nil)
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
