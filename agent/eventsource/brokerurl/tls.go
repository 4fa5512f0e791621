package brokerurl

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
)

// TLSConfig is what to dial the broker with: base, which is not changed, or the system's authorities when it is nil; for
// the broker's host, unless base names another; and without a check of the name when the URL asks for that.
func (b Broker) TLSConfig(base *tls.Config) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if base != nil {
		c = base.Clone()
	}
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(b.Address)
	}
	if b.SkipVerifyHostname && !c.InsecureSkipVerify {
		roots := c.RootCAs
		c.InsecureSkipVerify = true // the check below is of everything but the name
		c.VerifyConnection = func(state tls.ConnectionState) error { return verifyChain(state, roots) }
	}
	return c
}

// WithRoots returns base, which is not changed and may be nil, with the authorities that roots returns now; base itself when
// roots is nil.
func WithRoots(base *tls.Config, roots func() *x509.CertPool) *tls.Config {
	if roots == nil {
		return base
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if base != nil {
		c = base.Clone()
	}
	c.RootCAs = roots()
	return c
}

func verifyChain(state tls.ConnectionState, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the broker sent no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
	return err
}
