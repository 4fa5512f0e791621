package pipeline

import (
	"context"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// Exchange is the state of one request. An engine takes one from its pool, fills the request's part, runs the chain and
// gives it back after Reset. It belongs to one goroutine at a time.
type Exchange struct {
	// Trace is what the stages have found so far; it is copied into the rings when the request ends.
	Trace

	// Context ends when the client goes away.
	Context context.Context
	Header  Header
	// Query is the raw query without "?".
	Query string
	// Peer is the address of the connection's other end.
	Peer netip.Addr
	// TLS says whether the client came over TLS; Protocol is "HTTP/1.1" or "HTTP/2.0".
	TLS      bool
	Protocol string
	// Certificates finds the certificate that the client has shown; nil: it has shown none. It is asked once, when a
	// stage wants to see it (Certificate).
	Certificates CertificateSource
	// Offer is what the request is admitted or refused by.
	Offer Offer
	// BodyLength is the announced size of the body in bytes, -1 when it is not known.
	BodyLength int64
	// Now is the time of arrival in milliseconds since the epoch.
	Now int64

	// Endpoint is the backend that the key type chose.
	Endpoint *definition.Endpoint
	// StripCredential says that the fields and parameters of the route that carry credentials must not reach the backend.
	StripCredential bool
	// Second is the API key that the resource asks for beside the access token, which says who calls; nil: none.
	Second *keymanager.Token
	// Throttle is what the request is counted under. Stages complete it as they learn who calls.
	Throttle throttle.Request

	// Caller is what the backend is told of the caller, and BackendToken the signed form of it; "" sends none.
	Caller       keymanager.Caller
	BackendToken string

	refusal Refusal
	query   url.Values
	fields  fields
}

// Offer is the credentials that a request has brought, as far as its route looks for them. Nothing of it is ever shown.
type Offer struct {
	// Scheme says in which form the credential field came; Credential is what stands behind the scheme.
	Scheme     Scheme
	Credential string
	// Key is an API key, Internal one of the test console; Referer is the page that the request came from, by which a
	// key may be restricted. They are filled where an API key is looked for.
	Key, Internal, Referer string
	// shown is the certificate of the client, nil while no stage has asked for it.
	shown *shown
	// Again says that the offer is the one of an exchange under way: it is not collected anew.
	Again bool
}

// Scheme is the form of the credential field.
type Scheme uint8

// Forms of the credential field. The zero value means that there is none.
const (
	NoScheme Scheme = iota
	BearerScheme
	BasicScheme
	OtherScheme
)

// shown is what was found when the certificate was asked for.
type shown struct {
	Certificate
	err error
}

// Certificate is the certificate of a client, in DER.
type Certificate struct {
	Leaf  []byte // nil: none was shown
	Chain [][]byte
	// FromHeader says that a trusted proxy handed it on.
	FromHeader bool
}

// CertificateSource finds the certificate that came with a request. The error says why the one that a trusted proxy handed
// on cannot be read; it holds nothing of it.
type CertificateSource interface {
	ClientCertificate() (Certificate, error)
}

// Certificate returns the certificate of the client. It is read once per request, and only when a stage asks.
func (x *Exchange) Certificate() (Certificate, error) {
	o := &x.Offer
	if o.shown == nil {
		if x.Certificates == nil {
			return Certificate{}, nil
		}
		o.shown = new(shown)
		o.shown.Certificate, o.shown.err = x.Certificates.ClientCertificate()
	}
	return o.shown.Certificate, o.shown.err
}

// Reset makes the exchange ready for another request.
func (x *Exchange) Reset() { *x = Exchange{} }

// SetRoute notes the matched route and fills what the throttle needs to know of it.
func (x *Exchange) SetRoute(r *Route) {
	x.Route = r
	t := &x.Throttle
	t.MessageID = x.RequestID
	t.APIName = r.API.Name
	t.APIContext = r.API.Context
	t.APIVersion = r.API.Version
	t.APITenant = r.Tenant
	t.APITier = r.API.Tier
	t.ResourceTemplate = r.Operation.Template
	t.Method = r.Operation.Method
	t.ResourceTier = r.Operation.Tier
	t.ClientIP = x.ClientIP
	t.Attributes = attributes{x}
	t.MessageSize = x.BodyLength
	t.KeyType = string(subscription.Production)
	x.KeyType = subscription.Production
}

// Refuse fills the exchange's own refusal and returns it. step is where the request ended, reason what an operator is
// told, which is not shown to the client.
func (x *Exchange) Refuse(step Step, r Refusal, reason string) *Refusal {
	x.refusal = r
	x.Note(step, Refused)
	x.Reason = reason
	x.Code, x.Status = r.Code, r.Status
	return &x.refusal
}

// attributes gives the conditions of advanced policies access to the request.
type attributes struct{ x *Exchange }

var (
	_ throttle.Attributes      = attributes{}
	_ throttle.AttributeSource = attributes{}
)

// Header returns the lines of a field whatever the case of its name.
func (a attributes) Header(name string) []string {
	if a.x.Header == nil {
		return nil
	}
	return a.x.Header.Values(CanonicalName(name))
}

// Query returns the values of a query parameter.
func (a attributes) Query(name string) []string {
	return a.parsed()[name]
}

func (a attributes) parsed() url.Values {
	x := a.x
	if x.query == nil && x.Query != "" {
		// Pairs that cannot be decoded are left out: ParseQuery returns the others.
		x.query, _ = url.ParseQuery(x.Query)
	}
	return x.query
}

// Claim returns a claim of the verified token as text.
func (a attributes) Claim(name string) string {
	t := a.x.Token
	if t == nil {
		return ""
	}
	return claimText(t.Claims[name])
}

// VisitHeaders implements throttle.AttributeSource. The credential is not shown, whatever field the API wants it in: what
// is visited leaves the gateway.
func (a attributes) VisitHeaders(v throttle.AttributeVisitor) {
	x := a.x
	if x.Header == nil {
		return
	}
	x.fields = fields{to: v, route: x.Route}
	x.Header.Visit(&x.fields)
	x.fields = fields{}
}

// fields shows all fields but those of credentials. It lies in the exchange, so that it costs no allocation.
type fields struct {
	to    throttle.AttributeVisitor
	route *Route
}

// VisitAttribute implements throttle.AttributeVisitor.
func (f *fields) VisitAttribute(name, value string) {
	if f.route == nil || !f.route.secret(name) {
		f.to.VisitAttribute(name, value)
	}
}

// accessToken is the query parameter of RFC 6750 2.3. No token is ever taken from it, but clients may still write one there.
const accessToken = "access_token"

// VisitQuery implements throttle.AttributeSource. API keys are not shown, as with VisitHeaders.
func (a attributes) VisitQuery(v throttle.AttributeVisitor) {
	for name, values := range a.parsed() {
		if name == accessToken || a.x.Route != nil && slices.Contains(a.x.Route.KeyQueries, name) {
			continue
		}
		for _, value := range values {
			v.VisitAttribute(name, value)
		}
	}
}

// VisitClaims implements throttle.AttributeSource.
func (a attributes) VisitClaims(v throttle.AttributeVisitor) {
	if a.x.Token == nil {
		return
	}
	for name, value := range a.x.Token.Claims {
		v.VisitAttribute(name, claimText(value))
	}
}

// CanonicalName returns a field name in the form "X-Request-Id". Names that are canonical already cost nothing.
func CanonicalName(name string) string {
	upper := true
	for i := 0; i < len(name); i++ {
		c := name[i]
		if upper && 'a' <= c && c <= 'z' || !upper && 'A' <= c && c <= 'Z' {
			return canonical(name)
		}
		upper = c == '-'
	}
	return name
}

func canonical(name string) string {
	b := []byte(strings.ToLower(name))
	upper := true
	for i, c := range b {
		if upper && 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
		upper = c == '-'
	}
	return string(b)
}
