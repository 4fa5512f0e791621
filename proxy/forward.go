package proxy

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/upstream"
	"gatehouse/subscription"
)

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
