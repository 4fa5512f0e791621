package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/proxy/accesslog"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/route"
	"gatehouse/proxy/upstream"
	"gatehouse/subscription"
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
func (h header) Del(name string)             { delete(h, name) }

func (h header) Visit(v throttle.AttributeVisitor) {
	for name, lines := range h {
		for _, l := range lines {
			v.VisitAttribute(name, l)
		}
	}
}

// requestBody counts what the client sends and keeps the cap. It may outlive its request for a moment: the upload of a
// body ends in its own time when the backend has answered early.
type requestBody struct {
	r        io.Reader
	max      int64 // 0: none
	idle     time.Duration
	mu       sync.Mutex
	deadline readDeadline // under mu; nil: no bound, or none any more
	n        atomic.Int64
	tooLarge atomic.Bool
	slow     atomic.Bool
	aborted  atomic.Bool
	breaker  readDeadline // ends a read that waits; nil: none can
	// trailer is what the client's engine fills at the end; secrets are the fields of credentials.
	trailer http.Header
	secrets []string
	// forged are the fields that only the gateway may send, vouched those that nothing of the client's may look like.
	forged, vouched []string
	// over is what ended the body. The upload asks once more after the last byte: by then the backend may have answered and
	// net/http have closed the body, and its error would end the exchange with the backend in the middle of the answer.
	over error
}

// readDeadline and writeDeadline are what net/http's response writers offer to bound a client's silence.
type (
	readDeadline  interface{ SetReadDeadline(time.Time) error }
	writeDeadline interface{ SetWriteDeadline(time.Time) error }
)

var errTooLarge = errors.New("the request body is larger than allowed")

func (b *requestBody) Read(p []byte) (int, error) {
	if b.over != nil {
		return 0, b.over
	}
	bounded := b.setDeadline(true)
	if b.aborted.Load() { // whose deadline ours may have replaced
		b.over = errAborted
		return 0, errAborted
	}
	n, err := b.r.Read(p)
	if err != nil && b.aborted.Load() {
		b.over = errAborted
		return n, errAborted
	}
	if err != nil && bounded {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			b.slow.Store(true)
		}
		b.setDeadline(false) // what is read from here on is not the body
	}
	if err == io.EOF {
		dropForged(b.trailer, b.forged)
		dropLookalikes(b.trailer, b.vouched)
		for k := range b.trailer {
			if !fitsTrailer(k) || slices.Contains(b.secrets, k) {
				delete(b.trailer, k)
			}
		}
	}
	if total := b.n.Add(int64(n)); b.max > 0 && total > b.max {
		b.tooLarge.Store(true)
		n, err = 0, errTooLarge
	}
	b.over = err
	return n, err
}

// fitsTrailer says whether a field may stand in the trailer of a request (RFC 9110 6.5.1): not one of framing or routing, nor
// one that a backend which joins trailer and header would believe of the gateway.
func fitsTrailer(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Host", "Content-Length",
		"Content-Type", "Content-Encoding", "Content-Range", "Expect", "Authorization", "Proxy-Authorization", "Cookie", "Forwarded", "X-Request-Id":
		return false
	}
	return !strings.HasPrefix(name, "X-Forwarded-")
}

// setDeadline sets the bound of the next read, or takes it away. It says whether there is one.
func (b *requestBody) setDeadline(on bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deadline == nil {
		return false
	}
	var at time.Time
	if on {
		at = time.Now().Add(b.idle)
	}
	_ = b.deadline.SetReadDeadline(at) // on a closed connection the read fails
	return true
}

var errAborted = errors.New("the request was ended by the gateway")

// abort ends the body at once. It is not called after the handler has returned.
func (b *requestBody) abort() {
	b.aborted.Store(true)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.breaker != nil {
		_ = b.breaker.SetReadDeadline(time.Unix(1, 0)) // on a closed connection the read fails
	}
}

// end takes the bound away for good: when the backend has begun its answer, because the silence of the client may then be
// a part of the talk between the two, and before the handler returns, because from then on the connection is net/http's
// alone, though an upload may still read.
func (b *requestBody) end() {
	b.setDeadline(false)
	b.mu.Lock()
	b.deadline = nil
	b.mu.Unlock()
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

// requestID takes the client's id or makes one.
func (s *state) requestID(r *http.Request) {
	for _, k := range [...]string{"X-Request-Id", "Activityid"} {
		if v := r.Header[k]; len(v) == 1 && validID(v[0]) {
			s.x.RequestID = v[0]
			s.ids = []string{v[0]}
			return
		}
	}
	s.x.RequestID = newID()
	s.ids = []string{s.x.RequestID}
}

// newID makes a request id: 128 bits of the runtime's generator, in hex.
func newID() string {
	var b [32]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 16 {
		b[i] = hexDigits[hi>>(60-4*i)&15]
		b[16+i] = hexDigits[lo>>(60-4*i)&15]
	}
	return string(b[:])
}

const hexDigits = "0123456789abcdef"

// validID says whether an id of a client is 1 to 128 visible ASCII characters.
func validID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := 0; i < len(id); i++ {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return true
}

// addresses returns the connection's other end and the client: behind trusted proxies the right-most address that is
// none of them.
func (p *Proxy) addresses(r *http.Request) (peer, client netip.Addr) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return peer, client
	}
	peer = ap.Addr().Unmap().WithZone("")
	if len(p.trusted) == 0 || !p.trusts(peer) {
		return peer, peer
	}
	client = peer
	lines := r.Header["X-Forwarded-For"]
	for _, rest := range slices.Backward(lines) {
		for rest != "" {
			var last string
			if j := strings.LastIndexByte(rest, ','); j >= 0 {
				rest, last = rest[:j], rest[j+1:]
			} else {
				rest, last = "", rest
			}
			a, ok := parseAddress(strings.TrimSpace(last))
			if !ok {
				return peer, client // what stands further left cannot be believed
			}
			client = a
			if !p.trusts(a) {
				return peer, client
			}
		}
	}
	return peer, client
}

// parseAddress reads an entry of X-Forwarded-For, which may carry a port.
func parseAddress(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

func (p *Proxy) trusts(a netip.Addr) bool {
	for _, t := range p.trusted {
		if t.Contains(a) {
			return true
		}
	}
	return false
}

// health answers GET /health on the API port.
func (p *Proxy) health(w http.ResponseWriter, s *state) {
	status, body := http.StatusOK, `{"status":"healthy"}`
	if !p.opts.Ready() || p.draining.Load() {
		status, body = http.StatusServiceUnavailable, `{"status":"unhealthy"}`
	}
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Cache-Control"] = []string{"no-store"}
	h["X-Request-Id"] = s.ids
	s.wrote = true
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // a client that went away needs no answer
}

// finishPlain answers without a body.
func (s *state) finishPlain(p *Proxy, w http.ResponseWriter, r *http.Request, status int) {
	w.Header()["X-Request-Id"] = s.ids
	p.boundRest(w, r)
	s.wrote = true
	w.WriteHeader(status)
	s.x.Allowed, s.x.Status = true, status
	p.finish(s, r)
}

// refuse writes a refusal. It is the only place that does.
func (p *Proxy) refuse(s *state, w http.ResponseWriter, r *http.Request, f *pipeline.Refusal) bool {
	h := w.Header()
	one := func(k string) string {
		if v := r.Header[k]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	var b fault.Body
	if p.opts.Compat.EndpointError && s.x.Result(pipeline.StepEndpoint) == pipeline.Refused {
		b = fault.EndpointError(s.fault[:0], f)
	} else {
		b = p.dialect.Append(s.fault[:0], f, fault.Choose(strings.Join(r.Header["Accept"], ","), one("Content-Type"), one("Soapaction")))
	}
	s.fault = b.Content
	h["Content-Type"] = []string{b.ContentType}
	h["Cache-Control"] = []string{"no-store"}
	h["X-Request-Id"] = s.ids
	if b.GRPCStatus != "" {
		h["Grpc-Status"] = []string{b.GRPCStatus}
		h["Grpc-Message"] = []string{b.GRPCMessage}
	}
	if f.Challenge != "" && (b.Status == 401 || b.Status == 403) {
		h["Www-Authenticate"] = p.challenges(s.x.Route, f, b.Status)
	}
	if f.RetryAfter > 0 {
		h["Retry-After"] = []string{seconds(f.RetryAfter)}
	}
	if f.Allow != "" {
		h["Allow"] = []string{f.Allow}
	}
	policy := p.cors
	if s.api != nil {
		policy = s.api.cors
	}
	if policy != nil {
		if origin := r.Header["Origin"]; len(origin) > 0 {
			policy.apply(h, origin)
		}
	}
	if p.draining.Load() && r.ProtoMajor == 1 {
		h["Connection"] = []string{"close"}
	}
	p.boundRest(w, r)
	s.wrote = true
	w.WriteHeader(b.Status)
	s.x.Status = b.Status
	if r.Method != http.MethodHead && len(b.Content) > 0 {
		n, _ := w.Write(b.Content) // a client that went away needs no answer
		s.out = int64(n)
	}
	p.finish(s, r)
	return false
}

// challenges are the lines of WWW-Authenticate, one for each scheme that the resource takes. Where it takes none that HTTP
// has a name for (API keys, client certificates), the line of bearer tokens says what was wrong.
func (p *Proxy) challenges(r *pipeline.Route, f *pipeline.Refusal, status int) []string {
	realm := ` realm="` + fault.Quote(p.opts.Realm) + `"`
	var lines []string
	if r == nil || r.Bearer || !r.Basic {
		c := "Bearer" + realm
		if f.Challenge != pipeline.ChallengeOnly {
			c += ", " + f.Challenge
		}
		lines = append(lines, c)
	}
	if r != nil && r.Basic && status == http.StatusUnauthorized {
		lines = append(lines, "Basic"+realm+`, charset="UTF-8"`)
	}
	return lines
}

// boundRest bounds what an answer of the gateway's own waits for. With HTTP/1, net/http reads a small rest of the client's
// body before it answers, or before the next request, for which it sets its own bound; with HTTP/2, the stream needs window,
// which a client may never give.
func (p *Proxy) boundRest(w http.ResponseWriter, r *http.Request) {
	if p.opts.BodyIdleTimeout <= 0 {
		return
	}
	if r.ProtoMajor == 2 {
		if d, ok := w.(writeDeadline); ok {
			_ = d.SetWriteDeadline(time.Now().Add(p.opts.BodyIdleTimeout)) // on a closed connection the write fails
		}
		return
	}
	if r.ContentLength == 0 {
		return
	}
	if d, ok := w.(readDeadline); ok {
		_ = d.SetReadDeadline(time.Now().Add(p.opts.BodyIdleTimeout)) // on a closed connection the read fails
	}
}

// forward sends the request to the backend and streams the answer back.
func (p *Proxy) forward(s *state, w http.ResponseWriter, r *http.Request, op *operation, suffix string) (abort bool) {
	x := &s.x
	ep := op.production
	if x.KeyType == subscription.Sandbox {
		ep = op.sandbox
	}
	q := &s.req
	q.Method, q.Path, q.Query = r.Method, suffix, x.Query
	if x.StripCredential {
		for _, name := range op.Strip {
			delete(r.Header, name)
		}
		if len(op.KeyQueries) > 0 {
			q.Query = pipeline.WithoutParameters(x.Query, op.KeyQueries)
		}
	}
	if len(p.opts.DropHeaders) > 0 {
		dropForged(r.Header, p.opts.DropHeaders)
		dropForged(r.Trailer, p.opts.DropHeaders)
	}
	dropLookalikes(r.Header, p.vouched)
	q.Header, q.Length, q.Drop = r.Header, 0, p.opts.DropHeaders
	q.Trailers = len(r.Header["Te"]) > 0 && hasToken(r.Header["Te"], "trailers")
	p.forwarded(s, r)
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		s.body = &requestBody{r: r.Body, max: s.api.maxBody, trailer: r.Trailer, secrets: op.Secrets, forged: p.opts.DropHeaders, vouched: p.vouched}
		if d, ok := w.(readDeadline); ok {
			s.body.breaker = d
			if p.opts.BodyIdleTimeout > 0 {
				s.body.deadline, s.body.idle = d, p.opts.BodyIdleTimeout
			}
		}
		q.Body, q.Length, q.Trailer = s.body, r.ContentLength, r.Trailer
		q.Continue = len(r.Header["Expect"]) > 0
		if r.ContentLength < 0 || r.ContentLength > smallBody {
			if d, ok := w.(interface{ EnableFullDuplex() error }); ok && r.ProtoMajor == 1 {
				_ = d.EnableFullDuplex() // without it, answers before the end of the request wait: no fault of ours
			}
		}
		if r.ContentLength < 0 || r.ContentLength > tinyBody {
			if f := p.opened(s, w); f != nil {
				p.closed(s)
				return p.ended(s, w, r, f)
			}
		}
	}
	h := w.Header()
	if r.ProtoAtLeast(1, 1) {
		s.w = w
		q.Informer = s
	}
	s.res.Header = h
	s.called = time.Now()
	err := ep.Call(r.Context(), q, &s.res)
	s.answered = time.Now()
	x.Backend = s.res.Host
	if err != nil {
		if f := p.closed(s); f != nil {
			clear(h)
			return p.ended(s, w, r, f)
		}
		return p.failed(s, w, r, err)
	}
	if s.body != nil {
		s.body.end()
	}
	res := &s.res
	s.upstreamStatus = res.Status
	x.Allowed, x.Status = true, res.Status
	x.Note(pipeline.StepUpstream, pipeline.OK)
	h["X-Request-Id"] = s.ids
	if c := s.api.cors; c != nil {
		if origin := r.Header["Origin"]; len(origin) > 0 || !c.all {
			c.apply(h, origin)
		}
	}
	if p.draining.Load() && r.ProtoMajor == 1 {
		h["Connection"] = []string{"close"}
	}
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // otherwise net/http guesses one
	}
	if len(res.Announced) > 0 {
		h["Trailer"] = res.Announced
	}
	s.wrote = true
	w.WriteHeader(res.Status)
	whole := p.copyBody(s, w, r, res)
	if p.closed(s) != nil {
		whole, s.revoked, s.err, x.Status = false, true, errRevoked, res.Status
	}
	_ = res.Body.Close()
	if whole {
		for k, v := range res.Trailer {
			if !announced(res.Announced, k) {
				k = http.TrailerPrefix + k
			}
			h[k] = v
		}
	}
	p.finish(s, r)
	return !whole
}

// errRevoked stands in the access log for an exchange that was ended.
const errRevoked = "the caller would not be admitted any more"

// ended answers an exchange whose caller is not admitted any more, before anything was answered.
func (p *Proxy) ended(s *state, w http.ResponseWriter, r *http.Request, f *pipeline.Refusal) (abort bool) {
	s.revoked, s.err = true, errRevoked
	return p.refuse(s, w, r, s.x.Refuse(pipeline.StepAuthenticate, *f, errRevoked))
}

// tinyBody is the size up to which a request body is no stream: it is read before the backend is called.
const tinyBody = 16 << 10

// smallBody is the size up to which a request body is sent before the answer is looked at.
const smallBody = 64 << 10

func announced(list []string, name string) bool {
	return slices.Contains(list, name)
}

// Informational passes a 1xx answer of the backend on.
func (s *state) Informational(status int, info http.Header) {
	h := s.w.Header()
	maps.Copy(h, info)
	s.w.WriteHeader(status)
	for k := range info {
		delete(h, k)
	}
}

// forwarded sets the fields that tell the backend of the client. What a client says of itself is only believed of a
// trusted proxy.
func (p *Proxy) forwarded(s *state, r *http.Request) {
	peer := r.RemoteAddr
	if i := strings.LastIndexByte(peer, ':'); i >= 0 {
		peer = strings.Trim(peer[:i], "[]")
	}
	proto, host := "http", r.Host
	if r.TLS != nil {
		proto = "https"
	}
	f := s.fields[:0]
	if s.trusted {
		if v := r.Header["X-Forwarded-For"]; len(v) > 0 {
			peer = strings.Join(v, ", ") + ", " + peer
		}
		if v := r.Header["X-Forwarded-Proto"]; len(v) == 1 {
			proto = v[0]
		}
		if v := r.Header["X-Forwarded-Host"]; len(v) == 1 {
			host = v[0]
		}
	} else {
		f = append(f, upstream.Field{Name: "Forwarded"})
	}
	if s.x.BackendToken != "" {
		f = append(f, upstream.Field{Name: p.opts.BackendTokenHeader, Value: s.x.BackendToken})
	}
	s.req.Fields = append(f, upstream.Field{Name: "X-Forwarded-For", Value: peer}, upstream.Field{Name: "X-Forwarded-Proto", Value: proto},
		upstream.Field{Name: "X-Forwarded-Host", Value: host}, upstream.Field{Name: "X-Request-Id", Value: s.x.RequestID})
}

func hasToken(lines []string, token string) bool {
	for _, l := range lines {
		for t := range strings.SplitSeq(l, ",") {
			t, _, _ = strings.Cut(t, ";")
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// copyBody streams the answer: what has arrived is passed on at once, in pieces as large as they come. It says whether
// the whole body went through.
func (p *Proxy) copyBody(s *state, w http.ResponseWriter, r *http.Request, res *upstream.Response) bool {
	if res.Length == 0 || r.Method == http.MethodHead || res.Status == http.StatusNoContent || res.Status == http.StatusNotModified {
		return true
	}
	bp := p.copies.Get().(*[]byte)
	defer p.copies.Put(bp)
	buf := *bp
	flusher, _ := w.(http.Flusher)
	// The connection bounds each write by itself (bounded). A stream of HTTP/2 also waits for its window, and a deadline of
	// its that passes between two writes ends it: it is taken away after each but the last.
	var deadline writeDeadline
	if p.opts.BodyIdleTimeout > 0 && r.ProtoMajor == 2 {
		deadline, _ = w.(writeDeadline)
	}
	if res.Length < 0 && flusher != nil {
		flusher.Flush() // a stream may be silent for long after its header, and the client waits for that
	}
	source, _ := res.Body.(upstream.Aborter)
	for {
		if source != nil && !source.Ready() {
			// From here on it takes its time, and somebody may want to end it.
			if p.opened(s, w) != nil {
				return false
			}
			source = nil
		}
		n, err := res.Body.Read(buf)
		if n > 0 {
			if deadline != nil {
				_ = deadline.SetWriteDeadline(time.Now().Add(p.opts.BodyIdleTimeout)) // on a closed connection the write fails
			}
			m, werr := w.Write(buf[:n])
			s.out += int64(m)
			if werr != nil {
				s.err, s.x.Status = "the client went away", statusClientGone
				return false
			}
			if s.out == res.Length {
				return true
			}
			if err == nil && n < len(buf) && flusher != nil {
				flusher.Flush()
			}
			if deadline != nil && err == nil {
				_ = deadline.SetWriteDeadline(time.Time{}) // a stream that has ended needs none
			}
		}
		if err == io.EOF {
			if deadline != nil {
				_ = deadline.SetWriteDeadline(time.Now().Add(p.opts.BodyIdleTimeout)) // for what net/http has not sent yet
			}
			if res.Length >= 0 && s.out < res.Length {
				s.err = "the backend's answer ended early"
				return false
			}
			return true
		}
		if err != nil {
			if r.Context().Err() != nil {
				s.err, s.x.Status = "the client went away", statusClientGone
			} else {
				s.err = err.Error()
			}
			return false
		}
	}
}

// statusClientGone is what logs and metrics show for a client that did not wait for its answer.
const statusClientGone = 499

// failed turns a failed call into an answer.
func (p *Proxy) failed(s *state, w http.ResponseWriter, r *http.Request, err error) (abort bool) {
	x := &s.x
	clear(w.Header())
	kind := upstream.KindOf(err)
	if s.body != nil && s.body.tooLarge.Load() {
		return p.refuse(s, w, r, x.Refuse(pipeline.StepLimits, fault.Status(http.StatusRequestEntityTooLarge), errTooLarge.Error()))
	}
	switch kind {
	case upstream.Canceled:
		s.err = "the client went away"
		x.Note(pipeline.StepUpstream, pipeline.Refused)
		x.Reason, x.Status, x.Allowed = s.err, statusClientGone, true
		p.finish(s, r)
		return true
	case upstream.RequestBody:
		if r.Context().Err() != nil && !s.body.slow.Load() {
			s.err = "the client went away"
			x.Note(pipeline.StepUpstream, pipeline.Refused)
			x.Reason, x.Status, x.Allowed = s.err, statusClientGone, true
			p.finish(s, r)
			return true
		}
		f := fault.Status(http.StatusBadRequest)
		f.Description = "The request body could not be read"
		if errors.Is(err, upstream.ErrSlowBody) || s.body != nil && s.body.slow.Load() {
			f = fault.Status(http.StatusRequestTimeout)
		}
		return p.refuse(s, w, r, x.Refuse(pipeline.StepLimits, f, err.Error()))
	}
	code := fault.BackendFailed
	if kind == upstream.Timeout {
		code = fault.BackendTimeout
	}
	f := fault.Of(code)
	if p.opts.Compat.Upstream500 {
		f.Status = http.StatusInternalServerError
	}
	s.err = err.Error()
	return p.refuse(s, w, r, x.Refuse(pipeline.StepUpstream, f, err.Error()))
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

// traceID takes the trace id out of a traceparent field, "" when there is none.
func traceID(v []string) string {
	if len(v) != 1 || len(v[0]) < 55 || v[0][2] != '-' || v[0][35] != '-' {
		return ""
	}
	return v[0][3:35]
}
