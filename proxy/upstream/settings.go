package upstream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// settings are the Defaults in force, made ready for use. They are immutable.
type settings struct {
	connectTimeout, timeout time.Duration
	// trust is how backends are verified. Two settings with the same trust have the same pointer.
	trust *trust
	// dialer opens connections of HTTP/1.1, transport those of HTTP/2.
	dialer    net.Dialer
	transport *http.Transport
}

// trust is a set of authorities. Its sessions are its own: one that other authorities have vouched for is not resumed.
type trust struct {
	pem    []byte // of the CA file
	config *tls.Config
}

// settle makes settings of defaults, with what can be kept of those before. It reads the CA file.
func (p *Pool) settle(d Defaults, was *settings) (*settings, error) {
	o := Options{ConnectTimeout: d.ConnectTimeout, Timeout: d.Timeout}
	o.defaults()
	s := &settings{connectTimeout: o.ConnectTimeout, timeout: o.Timeout}
	var before *trust
	if was != nil {
		before = was.trust
	}
	var err error
	if s.trust, err = trustIn(d.CAFile, d.SkipTLSVerify, before); err != nil {
		return nil, err
	}
	if was != nil && s.trust == was.trust && s.connectTimeout == was.connectTimeout {
		s.dialer, s.transport = was.dialer, was.transport
		return s, nil
	}
	s.dialer = net.Dialer{Timeout: s.connectTimeout, KeepAlive: 30 * time.Second}
	s.transport = &http.Transport{
		DialContext:            s.dialer.DialContext,
		TLSClientConfig:        s.trust.config.Clone(),
		TLSHandshakeTimeout:    s.connectTimeout,
		MaxIdleConnsPerHost:    p.opts.MaxIdlePerHost,
		IdleConnTimeout:        p.opts.IdleTimeout,
		ExpectContinueTimeout:  continueTimeout,
		MaxResponseHeaderBytes: int64(p.opts.MaxHeaderBytes),
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
	}
	return s, nil
}

// trustIn reads a CA file; it returns before when that is the same.
func trustIn(caFile string, skipVerify bool, before *trust) (*trust, error) {
	t := &trust{config: &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: skipVerify, //nolint:gosec // only where the operator writes skip_ssl_verification
		ClientSessionCache: tls.NewLRUClientSessionCache(256),
	}}
	if caFile != "" {
		var err error
		if t.pem, err = os.ReadFile(caFile); err != nil {
			return nil, fmt.Errorf("reading the CA file of the backends: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(t.pem) {
			return nil, fmt.Errorf("CA file %s of the backends holds no certificate in PEM", caFile)
		}
		t.config.RootCAs = pool
	}
	if before != nil && before.config.InsecureSkipVerify == skipVerify && bytes.Equal(before.pem, t.pem) {
		return before, nil
	}
	return t, nil
}

// unencrypted returns a transport of HTTP/2 without TLS.
func (s *settings) unencrypted() *http.Transport {
	t := s.transport.Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// SetDefaults replaces the defaults; the CA file is read again. Calls that run finish as they began, calls that begin
// afterwards have the new timeouts, and connections that are opened afterwards are verified in the new way: where the
// authorities change, none that was opened before is used again. It returns an error, and changes nothing, when the CA file
// cannot be used.
func (p *Pool) SetDefaults(d Defaults) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.settings.Load()
	s, err := p.settle(d, was)
	if err != nil {
		return err
	}
	p.settings.Store(s)
	for _, h := range p.hosts {
		h.downUntil.Store(0) // it may have been the settings
		switch c := h.client.(type) {
		case *viaTransport:
			if t := c.own.Load(); t != nil && s.transport != was.transport {
				c.own.Store(s.unencrypted())
				t.CloseIdleConnections()
			}
		case *h1:
			if s.trust != was.trust {
				c.forget()
			}
		}
	}
	if s.transport != was.transport {
		was.transport.CloseIdleConnections()
	}
	return nil
}
