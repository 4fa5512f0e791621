package pipeline

import (
	"context"
	"net/netip"
	"net/url"
	"strings"

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
	// ClientCertificate is the certificate (DER) that the client has shown over TLS, nil without one.
	ClientCertificate []byte
	// BodyLength is the announced size of the body in bytes, -1 when it is not known.
	BodyLength int64
	// Now is the time of arrival in milliseconds since the epoch.
	Now int64

	// Endpoint is the backend that the key type chose.
	Endpoint *definition.Endpoint
	// StripCredential says that the credential field must not reach the backend.
	StripCredential bool
	// Throttle is what the request is counted under. Stages complete it as they learn who calls.
	Throttle throttle.Request

	refusal Refusal
	query   url.Values
	fields  fields
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
	x.fields.to = v
	if x.Route != nil {
		x.fields.secret = x.Route.AuthHeader
	}
	x.Header.Visit(&x.fields)
	x.fields = fields{}
}

// fields shows all fields but one. It lies in the exchange, so that it costs no allocation.
type fields struct {
	to     throttle.AttributeVisitor
	secret string
}

// VisitAttribute implements throttle.AttributeVisitor.
func (f *fields) VisitAttribute(name, value string) {
	if name != f.secret {
		f.to.VisitAttribute(name, value)
	}
}

// VisitQuery implements throttle.AttributeSource.
func (a attributes) VisitQuery(v throttle.AttributeVisitor) {
	for name, values := range a.parsed() {
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
