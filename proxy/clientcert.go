package proxy

import (
	"errors"
	"net/http"
	"slices"

	"gatehouse/proxy/definition"
	"gatehouse/proxy/pipeline"
)

// forwardedCertificate is the field in which Envoy hands on the certificate of the client: like the configured one, it comes
// from trusted proxies alone, and reaches no backend of a secured resource.
const forwardedCertificate = "X-Forwarded-Client-Cert"

// asksForCertificates says whether TLS handshakes ask for the client's certificate.
func (p *Proxy) asksForCertificates() bool {
	return p.opts.RequestClientCertificates || p.generation.Load().certificates
}

func wantsCertificate(o *definition.Operation) bool {
	return slices.ContainsFunc(o.Security, func(list []definition.Credential) bool { return slices.Contains(list, definition.MutualTLS) })
}

// withoutCertificates removes the fields of certificates from a request that comes from nobody in particular: it could claim
// to be anybody.
func (p *Proxy) withoutCertificates(h http.Header) {
	for _, name := range p.certificateHeaders {
		delete(h, name)
	}
}

// handedOn reads the certificate that a trusted proxy has handed on. found is false when it has handed on none. The
// configured field alone is read: a proxy takes care of the one that it writes, and hands on any other as its client sent it.
func (p *Proxy) handedOn(h http.Header) (c pipeline.Certificate, found bool, err error) {
	if p.opts.ParseCertificateHeader == nil {
		return c, false, nil
	}
	name := p.opts.CertificateHeader
	lines := h[name]
	switch {
	case len(lines) == 0 || len(lines) == 1 && lines[0] == "":
		return c, false, nil
	case len(lines) > 1:
		return c, true, errors.New("the field " + name + " is there more than once")
	}
	c.Leaf, c.Chain, err = p.opts.ParseCertificateHeader(lines[0])
	c.FromHeader = true
	return c, true, err
}

// ClientCertificate implements pipeline.CertificateSource: the certificate that a trusted proxy has handed on, else that of
// the handshake, unless that was with a proxy: a trusted peer that names no client is a client itself.
func (s *state) ClientCertificate() (pipeline.Certificate, error) {
	if s.trusted {
		// The handshake was with the proxy, whose certificate is not the client's.
		c, found, err := s.proxy.handedOn(s.in.Header)
		if found {
			return c, err
		}
		// Nor does it stand in for a client that has shown none, whom the proxy speaks for.
		if h := s.in.Header; len(h["X-Forwarded-For"])+len(h["Forwarded"]) > 0 {
			return pipeline.Certificate{}, nil
		}
	}
	var c pipeline.Certificate
	if t := s.in.TLS; t != nil && len(t.PeerCertificates) > 0 {
		c.Leaf = t.PeerCertificates[0].Raw
		for _, more := range t.PeerCertificates[1:] {
			c.Chain = append(c.Chain, more.Raw)
		}
	}
	return c, nil
}

// thoughtOf finds the certificate of a request that is only thought of.
type thoughtOf struct {
	p *Proxy
	h http.Header
}

func (t thoughtOf) ClientCertificate() (pipeline.Certificate, error) {
	c, _, err := t.p.handedOn(t.h)
	return c, err
}
