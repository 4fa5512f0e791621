// Package mtls says whether the certificate of a client is admitted to an API (contract gateway-behaviour.md 10), and reads
// the fields in which trusted proxies hand certificates on.
//
// A certificate is admitted to an API that names it, or that names an authority which signed it for client authentication.
// Its dates are looked at on every request.
package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v4"

	"gatehouse/keymanager"
)

const (
	// MaxCertificates is how many certificates one request may bring.
	MaxCertificates = 10
	// maxCached bounds the certificates per API that an authority signed and that are kept as good.
	maxCached = 10000
	// anonymous is the user behind a certificate.
	anonymous = "Unknown"
)

// Set holds the certificates that each API admits. It is safe for concurrent use; the zero value is not ready, see New.
type Set struct {
	now   func() time.Time
	mu    sync.Mutex // of changes
	state atomic.Pointer[state]
}

// state is immutable.
type state struct {
	apis map[string]*api
	// others are the authorities for APIs that name no certificates; nil: there are none.
	others    *api
	othersPEM string
}

// New returns an empty set, which admits nobody. A nil clock is time.Now.
func New(now func() time.Time) *Set {
	if now == nil {
		now = time.Now
	}
	s := &Set{now: now}
	s.state.Store(&state{})
	return s
}

// api is what one API admits.
type api struct {
	from []keymanager.ClientCertificate
	// pinned are the certificates that it names.
	pinned map[[32]byte]*admitted
	// roots are the authorities that it names, and bySum their entries; nil: none.
	roots *x509.CertPool
	bySum map[[32]byte]*keymanager.Token
	// verified are certificates that an authority signed.
	verified *xsync.Map[[32]byte, *admitted]
}

// admitted is a certificate that is good between two times, in seconds.
type admitted struct {
	token               *keymanager.Token
	notBefore, notAfter int64
}

// Replace makes the map the certificates of the APIs, each under its UUID or its context:version. An API that is in the map with
// an empty list admits nobody. The faults name, by API, certificates that cannot be read: those admit nobody, and the others of
// the API stand. APIs that are not in the map admit whom the authorities of SetAuthorities signed.
func (s *Set) Replace(apis map[string][]keymanager.ClientCertificate) (faults map[string]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.state.Load()
	next := *was
	next.apis = make(map[string]*api, len(apis))
	for key, list := range apis {
		if old := was.apis[key]; old != nil && slices.Equal(old.from, list) {
			next.apis[key] = old
			continue
		}
		a, err := newAPI(list)
		if err != nil {
			if faults == nil {
				faults = make(map[string]error)
			}
			faults[key] = err
		}
		next.apis[key] = a
	}
	s.state.Store(&next)
	return faults
}

// SetAuthorities makes the certificates of a PEM text the authorities whose certificates are admitted to APIs that name none
// themselves; "" means that nobody is. An error changes nothing.
func (s *Set) SetAuthorities(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state.Load()
	if next.othersPEM == text {
		return nil
	}
	next.othersPEM, next.others = text, nil
	if text != "" {
		certs, err := ParsePEM(text)
		if err != nil {
			return err
		}
		a := emptyAPI()
		for _, c := range certs {
			a.trust(c, tokenOf(""))
		}
		next.others = a
	}
	s.state.Store(&next)
	return nil
}

// Len returns the number of APIs that name certificates.
func (s *Set) Len() int { return len(s.state.Load().apis) }

func emptyAPI() *api {
	return &api{pinned: map[[32]byte]*admitted{}, verified: xsync.NewMap[[32]byte, *admitted]()}
}

func tokenOf(tier string) *keymanager.Token {
	return &keymanager.Token{Kind: keymanager.KindCertificate, User: anonymous, Tier: tier, Unsubscribed: true}
}

func newAPI(list []keymanager.ClientCertificate) (*api, error) {
	a := emptyAPI()
	a.from = slices.Clone(list)
	var faults []error
	for _, entry := range list {
		certs, err := ParsePEM(entry.PEM)
		if err != nil {
			faults = append(faults, fmt.Errorf("client certificate %q: %w", entry.Alias, err))
			continue
		}
		// Beside a client's certificate the authorities are only there to complete it: who has signed it admits nobody else.
		client := slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return !authority(c) })
		for _, c := range certs {
			if !client {
				a.trust(c, tokenOf(entry.Tier))
			}
			if !client || !authority(c) {
				a.pin(c, entry.Tier)
			}
		}
	}
	return a, errors.Join(faults...)
}

func authority(c *x509.Certificate) bool { return c.BasicConstraintsValid && c.IsCA }

func (a *api) pin(c *x509.Certificate, tier string) {
	sum := sha256.Sum256(c.Raw)
	if a.pinned[sum] == nil {
		a.pinned[sum] = admit(c, sum, tier, c.NotBefore, c.NotAfter)
	}
}

func (a *api) trust(c *x509.Certificate, t *keymanager.Token) {
	if a.roots == nil {
		a.roots, a.bySum = x509.NewCertPool(), map[[32]byte]*keymanager.Token{}
	}
	sum := sha256.Sum256(c.Raw)
	if a.bySum[sum] == nil {
		a.roots.AddCert(c)
		a.bySum[sum] = t
	}
}

func admit(c *x509.Certificate, sum [32]byte, tier string, from, to time.Time) *admitted {
	t := tokenOf(tier)
	t.Subject = c.Subject.String()
	t.ID = hex.EncodeToString(sum[:])
	t.ExpiresAt = to.Unix()
	return &admitted{token: t, notBefore: from.Unix(), notAfter: to.Unix()}
}

// AuthenticateCertificate says whether a certificate is admitted to an API. The error is always a *keymanager.Refusal. The
// token is shared and must not be changed. A certificate that is pinned, or was admitted before, costs a SHA-256 of it and
// no allocation.
func (s *Set) AuthenticateCertificate(o keymanager.CertificateOffer) (*keymanager.Token, error) {
	if len(o.DER) == 0 {
		return nil, refuse("no client certificate was sent")
	}
	st := s.state.Load()
	a := st.apis[o.API]
	if a == nil {
		a = st.others
	}
	if a == nil {
		return nil, refuse("no client certificate is admitted to this API")
	}
	now := s.now()
	sum := sha256.Sum256(o.DER)
	e := a.pinned[sum]
	if e == nil {
		e, _ = a.verified.Load(sum)
	}
	if e == nil {
		var refusal *keymanager.Refusal
		if e, refusal = a.verify(&o, sum, now); refusal != nil {
			return nil, refusal
		}
	}
	switch at := now.Unix(); {
	case at > e.notAfter:
		return nil, refuse("the client certificate expired at " + time.Unix(e.notAfter, 0).UTC().Format(time.RFC3339))
	case at < e.notBefore:
		return nil, refuse("the client certificate is not valid before " + time.Unix(e.notBefore, 0).UTC().Format(time.RFC3339))
	}
	return e.token, nil
}

func refuse(detail string) *keymanager.Refusal {
	return &keymanager.Refusal{Check: keymanager.CheckClient, Detail: detail}
}

// verify looks for an authority of the API that has signed the certificate for client authentication.
func (a *api) verify(o *keymanager.CertificateOffer, sum [32]byte, now time.Time) (*admitted, *keymanager.Refusal) {
	if a.roots == nil {
		return nil, refuse("the client certificate is not one of those that are admitted to this API")
	}
	leaf, err := x509.ParseCertificate(o.DER)
	if err != nil {
		return nil, refuse("the client certificate cannot be read")
	}
	between := x509.NewCertPool()
	for _, der := range o.Chain[:min(len(o.Chain), MaxCertificates)] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: a.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		var invalid x509.CertificateInvalidError
		var unknown x509.UnknownAuthorityError
		switch {
		case errors.As(err, &unknown):
			return nil, refuse("the client certificate was not signed by an authority that is admitted to this API")
		case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
			return nil, refuse("the client certificate, or one of its authorities, is outside of its dates")
		case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
			return nil, refuse("the client certificate is not for client authentication")
		}
		return nil, refuse("the client certificate cannot be verified")
	}
	// Of several ways the one that lasts longest.
	var best *admitted
	for _, chain := range chains {
		from, to := chain[0].NotBefore, chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotBefore.After(from) {
				from = c.NotBefore
			}
			if c.NotAfter.Before(to) {
				to = c.NotAfter
			}
		}
		t := a.bySum[sha256.Sum256(chain[len(chain)-1].Raw)]
		if t != nil && (best == nil || to.Unix() > best.notAfter) {
			best = admit(leaf, sum, t.Tier, from, to)
		}
	}
	if best == nil {
		return nil, refuse("the client certificate cannot be verified")
	}
	if a.verified.Size() >= maxCached {
		for k := range a.verified.All() { // any: only who has a certificate of an admitted authority gets here
			a.verified.Delete(k)
			break
		}
	}
	a.verified.Store(sum, best)
	return best, nil
}

// ParsePEM reads the certificates of a PEM text, at least one. Blocks of other types are an error, which says what was found.
func ParsePEM(text string) ([]*x509.Certificate, error) {
	rest := bytes.TrimSpace([]byte(text))
	var list []*x509.Certificate
	for n := 1; len(rest) > 0; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is a %s: write CERTIFICATE blocks", n, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", n, err)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, errors.New("no certificate in PEM form: write a block that begins with -----BEGIN CERTIFICATE-----")
	}
	return list, nil
}
