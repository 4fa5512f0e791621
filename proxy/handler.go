package proxy

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"gatehouse/proxy/accesslog"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/route"
	"gatehouse/proxy/upstream"
	"gatehouse/throttle"
)

// state is all that one request needs, kept for the next one.
type state struct {
	x      pipeline.Exchange
	req    upstream.Request
	res    upstream.Response
	fields [8]upstream.Field
	body   *requestBody // nil without a body
	w      http.ResponseWriter
	entry  accesslog.Entry
	fault  []byte // room for the body of a refusal
	ids    []string

	start, called, answered time.Time
	api                     *api
	out                     int64
	upstreamStatus          int
	err                     string
	wrote                   bool // the status of the answer is out

	proxy   *Proxy
	in      *http.Request
	trusted bool // the request comes from a trusted proxy
	asked   uint64
	stream  stream
	revoked bool // it was ended while it was under way
}

func newState() *state { return &state{fault: make([]byte, 0, 512)} }

func (s *state) reset() {
	f := s.fault[:0]
	*s = state{fault: f}
}

// header shows stages the fields of a request.
type header http.Header

func (h header) Values(name string) []string { return h[name] }

func (h header) Del(name string) { delete(h, name) }

func (h header) Visit(v throttle.AttributeVisitor) {
	for name, lines := range h {
		for _, l := range lines {
			v.VisitAttribute(name, l)
		}
	}
}

// ServeHTTP serves one request: it is the adapter of net/http to the pipeline.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := p.states.Get().(*state)
	p.metrics.active.Add(1)
	defer p.metrics.active.Add(-1)
	abort, faulted := p.serveSafely(s, w, r)
	if s.body != nil {
		s.body.end()
		p.boundRest(w, r)
	}
	if !faulted {
		s.reset()
		p.states.Put(s)
	}
	if abort {
		// The answer cannot be ended in order: the client must see that it is not whole.
		panic(http.ErrAbortHandler)
	}
}

// serveSafely serves a request and takes care of a panic, a fault of the gateway itself: it is counted, told to the operator,
// and answered where nothing was sent yet.
func (p *Proxy) serveSafely(s *state, w http.ResponseWriter, r *http.Request) (abort, faulted bool) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		p.metrics.panics.Inc()
		p.opts.Log.Error().Str("request_id", s.x.RequestID).Str("detail", fmt.Sprint(v)).Bytes("stack", debug.Stack()).Msg("a request ended in a fault of the gateway")
		abort, faulted = true, true
		p.closed(s)
		if s.wrote {
			return
		}
		defer func() { _ = recover() }() // what is broken may break the refusal too: then the connection ends
		clear(w.Header())
		f := fault.Of(fault.General)
		f.Status, f.RetryAfter = http.StatusInternalServerError, 0
		abort = p.refuse(s, w, r, s.x.Refuse(pipeline.StepLimits, f, "a fault of the gateway: see its log"))
	}()
	return p.serve(s, w, r), false
}

func (p *Proxy) serve(s *state, w http.ResponseWriter, r *http.Request) (abort bool) {
	s.start = time.Now()
	if r.TLS == nil && p.opts.HTTPS != "" {
		if t, ok := r.Context().Value(tlsKey{}).(*tls.ConnectionState); ok {
			r.TLS = t
		}
	}
	x := &s.x
	x.Now = s.start.UnixMilli()
	x.At = x.Now
	x.Method, x.Host = r.Method, r.Host
	x.Context, x.Header = r.Context(), header(r.Header)
	x.TLS, x.Protocol = r.TLS != nil, r.Proto
	s.proxy, s.in, s.asked = p, r, p.streams.asked.Load()
	x.Certificates = s
	x.BodyLength = r.ContentLength
	s.requestID(r)
	x.Peer, x.ClientIP = p.addresses(r)
	if s.trusted = len(p.trusted) > 0 && p.trusts(x.Peer); !s.trusted {
		p.withoutCertificates(r.Header)
	}

	raw, query := target(r)
	x.Path, x.Query = raw, query
	if raw == "/health" && !p.opts.NoHealth && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		p.boundRest(w, r)
		p.health(w, s)
		return false
	}
	if p.opts.KeySet != nil && isKeySetPath(raw) && (r.Method == http.MethodGet || r.Method == http.MethodHead) && !p.deployed(r, raw) {
		p.boundRest(w, r)
		p.publishKeys(w, r, s)
		return false
	}
	if !p.opts.Ready() {
		f := fault.Of(fault.General)
		f.Description = "The gateway is starting. Please try again"
		return p.refuse(s, w, r, x.Refuse(pipeline.StepLimits, f, "the gateway is not ready: its state is not loaded yet"))
	}
	if len(r.RequestURI) > p.opts.MaxURIBytes {
		return p.refuse(s, w, r, x.Refuse(pipeline.StepLimits, fault.Status(http.StatusRequestURITooLong), "the request target is longer than max_uri_bytes"))
	}
	path, ok := route.Normalise(raw)
	if !ok || strings.IndexByte(r.RequestURI, '#') >= 0 {
		return p.refuse(s, w, r, x.Refuse(pipeline.StepLimits, fault.Status(http.StatusBadRequest), "the request target is not a path"))
	}
	x.Path = path
	m := p.generation.Load().table.Match(r.Host, r.Method, path)
	if m.Outcome != route.NoAPI && (x.TLS && !m.API.https || !x.TLS && !m.API.http) {
		m.Outcome = route.NoAPI
	}
	switch {
	case m.Outcome == route.NoAPI:
		return p.refuse(s, w, r, x.Refuse(pipeline.StepRoute, fault.Status(http.StatusNotFound), "no API is deployed under this host and path"))
	case m.Outcome == route.NoResource:
		s.api, x.Route = m.API, &m.API.noRoute
		return p.refuse(s, w, r, x.Refuse(pipeline.StepRoute, fault.Status(http.StatusNotFound), "the API has no resource for this path"))
	case m.API.cors != nil && preflight(r):
		s.api, x.Route = m.API, &m.Operation.Route
		x.Note(pipeline.StepRoute, pipeline.OK)
		x.Note(pipeline.StepCORS, pipeline.OK)
		m.API.cors.answer(w.Header(), r, m.Allow)
		s.finishPlain(p, w, r, http.StatusNoContent)
		return false
	case m.Outcome == route.MethodNotAllowed:
		s.api, x.Route = m.API, &m.API.noRoute
		f := fault.Status(http.StatusMethodNotAllowed)
		f.Allow = m.Allow
		return p.refuse(s, w, r, x.Refuse(pipeline.StepRoute, f, "the resource has no method "+r.Method))
	}
	op := m.Operation
	s.api = m.API
	x.SetRoute(&op.Route)
	x.Note(pipeline.StepRoute, pipeline.OK)
	if s.api.maxBody > 0 && r.ContentLength > s.api.maxBody {
		return p.refuse(s, w, r, x.Refuse(pipeline.StepLimits, fault.Status(http.StatusRequestEntityTooLarge), "the announced body is larger than allowed"))
	}
	if f := pipeline.Run(x); f != nil {
		return p.refuse(s, w, r, f)
	}
	return p.forward(s, w, r, op, route.Suffix(raw, path, m.Context))
}

// target cuts the request target into path and query, as sent.
func target(r *http.Request) (path, query string) {
	if u := r.RequestURI; u != "" && u[0] == '/' {
		path, query, _ = strings.Cut(u, "?")
		return path, query
	}
	return r.URL.EscapedPath(), r.URL.RawQuery
}

// maxTraced is how many bytes of a request a trace may keep alive before it gets short copies of its own: method and path
// lie in the memory of the whole request line, and anybody can fill the rings.
const maxTraced = 1024

// finish notes a request that has ended: trace, metrics, access log.
func (p *Proxy) finish(s *state, r *http.Request) {
	x := &s.x
	end := time.Now()
	total := end.Sub(s.start)
	var upstreamTime time.Duration
	step, refused := x.RefusedAt()
	if len(x.Method)+len(x.Host)+len(r.RequestURI)+len(x.Reason) > maxTraced {
		kept := x.Detached()
		p.traces.Add(&kept)
	} else {
		p.traces.Add(&x.Trace)
	}
	if refused {
		p.metrics.refused(&x.Trace, step)
		if p.opts.OnRefusal != nil {
			p.opts.OnRefusal(&x.Trace)
		}
	}
	if !s.called.IsZero() {
		upstreamTime = s.answered.Sub(s.called)
		observe(p.metrics.overhead, s.called.Sub(s.start))
	}
	m := p.metrics.none
	if s.api != nil {
		m = s.api.metrics
	}
	m.count(x.Method, x.Status, !refused)
	observe(m.duration, total)
	if upstreamTime > 0 {
		observe(m.upstream, upstreamTime)
	}
	if p.log == nil {
		return
	}
	e := &s.entry
	e.Time, e.RequestID, e.ClientIP = s.start, x.RequestID, x.ClientIP
	e.TraceID = traceID(r.Header["Traceparent"])
	e.Method, e.Host, e.Path, e.Query = x.Method, x.Host, x.Path, x.Query != ""
	if x.Route != nil {
		e.API, e.Version = x.Route.API.Name, x.Route.API.Version
		if x.Route.Operation != nil {
			e.Route = x.Route.Operation.Template
		}
	}
	e.Application = x.Throttle.AppName
	if x.Token != nil {
		e.ConsumerKey = x.Token.ConsumerKey
	}
	e.User = x.User
	e.Status = x.Status
	if refused {
		e.Code, e.RefusedAt = x.Code, step.String()
		if x.Auth != nil && step == pipeline.StepAuthenticate {
			e.Check, e.Reason = string(x.Auth.Check), x.Reason
		}
	}
	e.Upstream, e.UpstreamStatus = x.Backend, s.upstreamStatus
	if s.body != nil {
		e.BytesIn = s.body.n.Load()
	}
	e.BytesOut = s.out
	e.Duration, e.UpstreamTime = total, upstreamTime
	e.Overhead = total
	if !s.called.IsZero() {
		e.Overhead = s.called.Sub(s.start)
	}
	if s.res.Attempts > 1 {
		e.Retries = s.res.Attempts - 1
	}
	if x.Verdict.Level != 0 || x.Verdict.OverQuota {
		e.ThrottleLevel = x.Verdict.Level.String()
		if x.Verdict.OverQuota {
			e.ThrottleLevel = "over_quota"
		}
	}
	if r.TLS != nil {
		e.TLS = tls.VersionName(r.TLS.Version)
	}
	e.Protocol, e.Error, e.Revoked = x.Protocol, s.err, s.revoked
	p.log.Add(e)
}
