package proxy

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/route"
	"gatehouse/throttle"
)

// Description is a request that is only thought of.
type Description struct {
	// Method is GET when it is empty. Path may carry a query; Host may be empty.
	Method, Path, Host string
	ClientIP           netip.Addr
	Header             http.Header
	// TLS says over which listener it would come.
	TLS bool
	// At is when, for the limits; the zero time means now. Tokens are judged by the present.
	At time.Time
}

// Explain says what would become of a request: it runs the steps that a real one would, and neither counts, publishes nor
// sends anything. The throttle is asked all the same, which its interface makes free of effect: only Publish counts.
func (p *Proxy) Explain(ctx context.Context, d Description) pipeline.TraceView {
	x := &pipeline.Exchange{Context: ctx, TLS: d.TLS, BodyLength: -1}
	if d.At.IsZero() {
		d.At = time.Now()
	}
	x.Now = d.At.UnixMilli()
	x.RequestID, x.At = newID(), x.Now
	x.Method = strings.ToUpper(d.Method)
	if x.Method == "" {
		x.Method = http.MethodGet
	}
	x.Host, x.ClientIP, x.Peer = d.Host, d.ClientIP.Unmap(), d.ClientIP.Unmap()
	h := http.Header{}
	for k, v := range d.Header {
		h[pipeline.CanonicalName(k)] = v
	}
	if len(p.trusted) == 0 || !p.trusts(x.Peer) {
		p.withoutCertificates(h)
	}
	x.Header, x.Certificates = header(h), thoughtOf{p, h}
	raw, query, _ := strings.Cut(d.Path, "?")
	x.Path, x.Query = raw, query
	p.explain(x, raw)
	return x.View()
}

func (p *Proxy) explain(x *pipeline.Exchange, raw string) {
	path, ok := route.Normalise(raw)
	if !ok {
		x.Refuse(pipeline.StepLimits, fault.Status(http.StatusBadRequest), "the request target is not a path")
		return
	}
	x.Path = path
	m := p.generation.Load().table.Match(x.Host, x.Method, path)
	if m.Outcome != route.NoAPI && (x.TLS && !m.API.https || !x.TLS && !m.API.http) {
		m.Outcome = route.NoAPI
	}
	switch m.Outcome {
	case route.NoAPI:
		x.Refuse(pipeline.StepRoute, fault.Status(http.StatusNotFound), "no API is deployed under this host and path")
		return
	case route.NoResource:
		x.Route = &m.API.noRoute
		x.Refuse(pipeline.StepRoute, fault.Status(http.StatusNotFound), "the API has no resource for this path")
		return
	case route.MethodNotAllowed:
		x.Route = &m.API.noRoute
		x.Refuse(pipeline.StepRoute, fault.Status(http.StatusMethodNotAllowed), "the resource has no method "+x.Method+", it has "+m.Allow)
		return
	}
	x.SetRoute(&m.Operation.Route)
	x.Note(pipeline.StepRoute, pipeline.OK)
	// The same stages, but for one throttle that does not publish.
	d := p.opts.Domains
	if d.Throttler != nil {
		d.Throttler = silent{d.Throttler}
	}
	for _, s := range d.Chain(&m.Operation.Route) {
		if s.Run(x) != nil {
			return
		}
	}
	x.Allowed, x.Status = true, http.StatusOK
}

// silent is a throttle that tells nobody.
type silent struct {
	t interface {
		Check(r *throttle.Request, now int64) throttle.Verdict
	}
}

func (s silent) Check(r *throttle.Request, now int64) throttle.Verdict { return s.t.Check(r, now) }
func (s silent) Publish(*throttle.Request, int64)                      {}
