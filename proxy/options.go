package proxy

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/proxy/definition"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/stage"
	"gatehouse/proxy/upstream"
)

// Options are what a Proxy is made of. The zero value of a field means what its comment says.
type Options struct {
	// HTTP and HTTPS are the addresses of the listeners, ":9090". Empty means no such listener; one at least is needed.
	HTTP, HTTPS string
	// CertFile and KeyFile are the certificate of the HTTPS listener in PEM; ClientCAFile holds the authorities of
	// client certificates, which are asked for and verified where it is set; while an API asks for client certificates any is
	// taken, since the API's own list decides. All are read again when they change.
	CertFile, KeyFile, ClientCAFile string
	// RequestClientCertificates asks clients for a certificate over TLS even while no API wants one, for tokens that are bound
	// to a certificate. Clients without one are served all the same; who may do what with his is for the domains to say.
	RequestClientCertificates bool
	// CertificateHeader is the field in which a trusted proxy hands on the certificate of the client,
	// "X-WSO2-CLIENT-CERTIFICATE" by default; no other is read. From anybody else it is removed, and Envoy's
	// "X-Forwarded-Client-Cert" with it.
	CertificateHeader string
	// ParseCertificateHeader reads such a field: the certificate of the client and those after it, in DER. nil: none is read.
	ParseCertificateHeader func(value string) (leaf []byte, chain [][]byte, err error)
	// TLSMinVersion is "1.2" (the default) or "1.3".
	TLSMinVersion string
	// ReadHeaderTimeout is 10 s, IdleTimeout 120 s by default.
	ReadHeaderTimeout, IdleTimeout time.Duration
	// BodyIdleTimeout is how long a client may neither send the next piece of its body nor take the next piece of a large
	// answer; 0 means 60 s, negative no bound.
	BodyIdleTimeout time.Duration
	// MaxURIBytes is 8192, MaxHeaderBytes 65536 by default. MaxBodyBytes 0 means no cap.
	MaxURIBytes, MaxHeaderBytes int
	MaxBodyBytes                int64
	// TrustedProxies are the addresses and prefixes whose X-Forwarded-* fields are believed.
	TrustedProxies []string
	// IgnoreTrailingSlash makes "/items/" and "/items" one resource.
	IgnoreTrailingSlash bool
	// NoHealth switches GET /health on the API ports off.
	NoHealth bool

	// FaultDialect is the shape of errors, Realm that of challenges: "mgw" and "Gatehouse" by default.
	FaultDialect string
	Realm        string
	Compat       Compat
	// AuthHeader is the field of the credential, "Authorization" by default; an API may name another.
	AuthHeader string
	// DropHeaders are fields that backends believe of the gateway alone: what a client sends of them is not passed on.
	// No other spelling of such a field is either: neither of another case, nor with other signs between the words, such as
	// "_", which many frameworks take for the same.
	DropHeaders []string
	// BackendTokenHeader is the field in which the backend gets what Domains.Asserter has signed; it is one of DropHeaders
	// whether it stands there or not. KeySet returns the public keys for that, a JSON Web Key Set, which the gateway publishes
	// to be kept for KeySetMaxAge; nil publishes nothing.
	BackendTokenHeader string
	KeySet             func() []byte
	KeySetMaxAge       time.Duration
	// CORS applies to APIs without a policy of their own; nil means none.
	CORS *definition.CORS

	// Domains are asked by the stages.
	Domains  stage.Domains
	Upstream upstream.Options

	// Ready says whether the state is loaded. Until then requests are answered 503. It is called for each request and
	// must be cheap. nil means ready at once.
	Ready func() bool
	// TracesAdmitted and TracesRefused are the sizes of the rings of traces.
	TracesAdmitted, TracesRefused int
	// OnRefusal, when not nil, is told of each refused request. It must not wait and must not keep the trace.
	OnRefusal func(*pipeline.Trace)

	// AccessLog takes one JSON line per request; nil means none. AccessLogUsers adds the end user.
	AccessLog      io.Writer
	AccessLogUsers bool
	// MaxAPILabels bounds the values of the metrics' label api; 0 means 2000.
	MaxAPILabels int
	// DrainTimeout bounds the wait for running requests when the context of Run ends; 0 means 30 s.
	DrainTimeout time.Duration
	// DrainPause is how long idle connections stay open after the listeners closed, for clients that are just about to
	// send; 0 means 500 ms.
	DrainPause time.Duration

	Log      zerolog.Logger
	Registry prometheus.Registerer // nil: metrics are kept but not registered
}

// Compat are switches for clients that rely on what Microgateway 3.2 did.
type Compat struct {
	// EndpointError answers 403 with Microgateway's own body where the key's type has no endpoint.
	EndpointError bool
	// Upstream500 answers 500 for every failure of a backend.
	Upstream500 bool
}

// defaults fills what was left out.
func (o *Options) defaults() {
	if o.ReadHeaderTimeout == 0 {
		o.ReadHeaderTimeout = 10 * time.Second
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 2 * time.Minute
	}
	if o.BodyIdleTimeout == 0 {
		o.BodyIdleTimeout = time.Minute
	}
	if o.MaxURIBytes == 0 {
		o.MaxURIBytes = 8192
	}
	if o.MaxHeaderBytes == 0 {
		o.MaxHeaderBytes = 64 << 10
	}
	if o.Realm == "" {
		o.Realm = "Gatehouse"
	}
	if o.AuthHeader == "" {
		o.AuthHeader = "Authorization"
	}
	o.AuthHeader = pipeline.CanonicalName(o.AuthHeader)
	if o.CertificateHeader == "" {
		o.CertificateHeader = "X-WSO2-CLIENT-CERTIFICATE"
	}
	o.CertificateHeader = pipeline.CanonicalName(o.CertificateHeader)
	if o.BackendTokenHeader != "" {
		o.DropHeaders = append(slices.Clone(o.DropHeaders), o.BackendTokenHeader)
	}
	drop := make([]string, len(o.DropHeaders))
	for i, h := range o.DropHeaders {
		drop[i] = pipeline.CanonicalName(h)
	}
	o.DropHeaders = drop
	if o.MaxAPILabels == 0 {
		o.MaxAPILabels = 2000
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 30 * time.Second
	}
	if o.DrainPause == 0 {
		o.DrainPause = 500 * time.Millisecond
	}
	if o.Ready == nil {
		o.Ready = func() bool { return true }
	}
	if o.Domains.ExpiredCode == 0 && o.FaultDialect != "" && o.FaultDialect != string(fault.Microgateway) {
		o.Domains.ExpiredCode = fault.TokenExpired
	}
}

// parsePrefixes reads addresses and prefixes.
func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if strings.Contains(s, "/") {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return nil, fmt.Errorf("trusted_proxies: %q is not a prefix such as 10.0.0.0/8: %w", s, err)
			}
			out = append(out, p.Masked())
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("trusted_proxies: %q is not an address: %w", s, err)
		}
		a = a.Unmap()
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out, nil
}

// seconds renders Retry-After.
func seconds(n int64) string { return strconv.FormatInt(n, 10) }
