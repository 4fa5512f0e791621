package proxy

import (
	"io"
	"net/http"
	"strings"
	"time"

	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
)

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
