package apikey

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gatehouse/keymanager"
	"gatehouse/keymanager/jwks"
)

// Issuer is who signs API keys.
type Issuer struct {
	// Name must equal the claim iss byte for byte.
	Name string
	// Internal says that it issues keys of the test console, else keys of applications.
	Internal bool
	// PEM holds certificates or public keys; JWKSURL is where they are published. One of the two is set.
	PEM     string
	JWKSURL string
	// CAPEM, when not empty, are the authorities that the server of JWKSURL is verified with besides the system's.
	CAPEM         string
	SkipTLSVerify bool
	// ValidateAllowedAPIs refuses a key for an API that is not in its list of APIs. Internal keys are always judged so.
	ValidateAllowedAPIs bool
	// Algorithms is the allow-list; empty means RS/PS/ES 256-512 and EdDSA.
	Algorithms []string
	ClockSkew  time.Duration // 0: jwt.DefaultSkew
	Origin     keymanager.Origin
}

func (i *Issuer) same(b *Issuer) bool {
	return i.Name == b.Name && i.Internal == b.Internal && i.PEM == b.PEM && i.sameSource(b) && i.ValidateAllowedAPIs == b.ValidateAllowedAPIs &&
		i.ClockSkew == b.ClockSkew && slices.Equal(i.Algorithms, b.Algorithms)
}

func (i *Issuer) sameSource(b *Issuer) bool {
	return i.JWKSURL == b.JWKSURL && i.CAPEM == b.CAPEM && i.SkipTLSVerify == b.SkipTLSVerify
}

// issuer is an Issuer with its keys.
type issuer struct {
	*Issuer
	pem    *jwks.Set
	source *jwks.Source
	// retired is set when another revision took its place: what was cached under it no longer counts.
	retired atomic.Bool
}

// keys returns the keys in use, nil when none are held.
func (i *issuer) keys(now time.Time) *jwks.Set {
	if i.source != nil {
		return i.source.Current(now)
	}
	return i.pem
}

// issuers is an immutable set of them, by name and kind.
type issuers struct{ applications, internal map[string]*issuer }

func (s *issuers) of(name string, internal bool) *issuer {
	if internal {
		return s.internal[name]
	}
	return s.applications[name]
}

func (s *issuers) all(yield func(*issuer) bool) {
	for _, m := range [...]map[string]*issuer{s.applications, s.internal} {
		for _, i := range m {
			if !yield(i) {
				return
			}
		}
	}
}

// SetIssuers makes the list the issuers of API keys. One that did not change keeps its keys and its verified keys. An error
// names what is wrong with an entry of the list, and changes nothing.
func (a *Authenticator) SetIssuers(list []Issuer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errors.New("the authenticator of api keys is closed")
	}
	was := a.issuers.Load()
	next := &issuers{applications: map[string]*issuer{}, internal: map[string]*issuer{}}
	var fresh []*issuer
	for n := range list {
		want := list[n]
		at := next.applications
		if want.Internal {
			at = next.internal
		}
		if at[want.Name] != nil {
			return fmt.Errorf("issuer of api keys %q stands twice", want.Name)
		}
		if old := was.of(want.Name, want.Internal); old != nil && old.same(&want) {
			at[want.Name] = old
			continue
		}
		i, err := a.newIssuer(&want)
		if err != nil {
			return fmt.Errorf("issuer of api keys %q: %w", want.Name, err)
		}
		if old := was.of(want.Name, want.Internal); old != nil && old.source != nil && i.source != nil && old.JWKSURL == want.JWKSURL {
			i.source.Inherit(old.source)
		}
		at[want.Name] = i
		fresh = append(fresh, i)
	}
	for _, i := range fresh {
		if i.source != nil {
			i.source.Start()
		}
	}
	a.issuers.Store(next)
	for old := range was.all {
		if next.of(old.Name, old.Internal) != old {
			old.retire()
		}
	}
	return nil
}

// retire ends an issuer's work; its keys stay readable for a request that is under way.
func (i *issuer) retire() {
	i.retired.Store(true)
	if i.source != nil {
		i.source.Close()
	}
}

func (a *Authenticator) newIssuer(want *Issuer) (*issuer, error) {
	i := &issuer{Issuer: want}
	switch {
	case want.Name == "":
		return nil, errors.New("it has no name: write the value of the claim iss")
	case want.PEM != "" && want.JWKSURL != "":
		return nil, errors.New("it has both a certificate and a key set URL: write one of them")
	case want.PEM != "":
		set, err := jwks.ParsePEM(want.PEM)
		if err != nil {
			return nil, err
		}
		i.pem = set
	case want.JWKSURL != "":
		tr, base, err := a.transport(want)
		if err != nil {
			return nil, err
		}
		log := a.opts.Logger.With().Str("api_key_issuer", want.Name).Logger()
		if i.source, err = jwks.New(jwks.Options{URL: want.JWKSURL, Transport: tr, TLS: base, Now: a.now, Logger: log}); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("it has neither a certificate nor a key set URL")
	}
	return i, nil
}

// transport returns the shared transport, or nil and the TLS settings of one of its own.
func (a *Authenticator) transport(i *Issuer) (http.RoundTripper, *tls.Config, error) {
	if i.CAPEM == "" && !i.SkipTLSVerify && a.opts.HTTPClient != nil && a.opts.HTTPClient.Transport != nil {
		return a.opts.HTTPClient.Transport, nil, nil
	}
	c := a.opts.TLS.Clone()
	if c == nil {
		c = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	c.InsecureSkipVerify = i.SkipTLSVerify
	if i.CAPEM != "" {
		pool := c.RootCAs
		if pool == nil {
			var err error
			if pool, err = x509.SystemCertPool(); err != nil {
				pool = x509.NewCertPool()
			}
		}
		if pool = pool.Clone(); !pool.AppendCertsFromPEM([]byte(i.CAPEM)) {
			return nil, nil, errors.New("its CA file holds no PEM certificate")
		}
		c.RootCAs = pool
	}
	return nil, c, nil
}

// IssuerState is what an operator sees of an issuer's keys.
type IssuerState struct {
	Name      string    `json:"name"`
	Kind      string    `json:"kind"`
	Keys      int       `json:"keys"`
	FetchedAt time.Time `json:"fetched_at,omitzero"`
	LastError string    `json:"last_error,omitempty"`
}

// Issuers returns the state of each issuer, by name.
func (a *Authenticator) Issuers() []IssuerState {
	var out []IssuerState
	for i := range a.issuers.Load().all {
		s := IssuerState{Name: i.Name, Kind: string(keymanager.KindAPIKey)}
		if i.Internal {
			s.Kind = string(keymanager.KindInternalKey)
		}
		if set := i.keys(a.now()); set != nil {
			s.Keys = len(set.Keys())
		}
		if i.source != nil {
			state := i.source.State()
			s.FetchedAt, s.LastError = state.FetchedAt, state.LastError
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y IssuerState) int {
		if x.Name == y.Name {
			return strings.Compare(x.Kind, y.Kind)
		}
		return strings.Compare(x.Name, y.Name)
	})
	return out
}

// Close ends the background fetches and waits for them. Keys are verified with what is held as long as that lasts.
func (a *Authenticator) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.closed = true
	for i := range a.issuers.Load().all {
		if i.source != nil {
			i.source.Close()
		}
	}
}
