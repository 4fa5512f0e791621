package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// viaTransport calls a host through http.Transport: HTTP/2, and the reference for the own client.
type viaTransport struct {
	pool *Pool
	// own belongs to this host alone; nil: the pool's is used.
	own atomic.Pointer[http.Transport]
}

func (c *viaTransport) closeIdle() {
	if t := c.own.Load(); t != nil {
		t.CloseIdleConnections()
	}
}

// transport returns what calls that begin now go through.
func (c *viaTransport) transport() *http.Transport {
	if t := c.own.Load(); t != nil {
		return t
	}
	return c.pool.settings.Load().transport
}

var errHeaderTimeout = errors.New("the answer did not begin in time")

func (c *viaTransport) roundTrip(ctx context.Context, t *target, timeout time.Duration, req *Request, res *Response) error {
	scheme := t.scheme
	if scheme == "h2c" {
		scheme = "http"
	}
	h := make(http.Header, len(req.Header)+len(req.Fields))
	drop := connectionTokens(req.Header)
	for k, v := range req.Header {
		if !hopByHop(k) && !dropped(k, drop) && !dropped(k, req.Drop) {
			h[k] = v
		}
	}
	for _, f := range req.Fields {
		if f.Value == "" {
			delete(h, f.Name)
			continue
		}
		h[f.Name] = []string{f.Value}
	}
	if t.authorization != "" {
		h["Authorization"] = []string{t.authorization}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil // otherwise Transport writes its own
	}
	delete(h, "Content-Length")
	if req.Trailers {
		h["Te"] = []string{"trailers"}
	}
	if !req.Continue {
		delete(h, "Expect")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var began, late atomic.Bool
	timer := time.AfterFunc(timeout, func() {
		if !began.Load() {
			late.Store(true)
			cancel(errHeaderTimeout)
		}
	})
	if req.Informer != nil {
		i := &informed{to: req.Informer}
		defer i.end()
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: i.tell})
	}
	out := (&http.Request{
		Method: req.Method, Host: t.authority, Header: h, ContentLength: req.Length, Trailer: req.Trailer,
		URL:   transportURL(scheme, t, req),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if req.Body != nil {
		out.Body = io.NopCloser(req.Body)
		if req.Length > 0 || req.Length < 0 {
			// The timeout is for the answer: a long upload must not use it up.
			out.Body = &pushBack{Reader: req.Body, timer: timer, d: timeout, began: &began}
		}
	}
	r, err := c.transport().RoundTrip(out)
	began.Store(true)
	timer.Stop()
	if err != nil || late.Load() {
		if r != nil {
			_ = r.Body.Close()
		}
		cancel(nil)
		if late.Load() {
			return &callError{Timeout, errHeaderTimeout}
		}
		return err
	}
	if r.StatusCode == http.StatusSwitchingProtocols {
		_ = r.Body.Close()
		cancel(nil)
		return &callError{Protocol, errors.New("the backend switches protocols without being asked")}
	}
	gone := connectionTokens(r.Header)
	for k, v := range r.Header {
		if !hopByHop(k) && !dropped(k, gone) {
			res.Header[k] = v
		}
	}
	res.Status, res.Length = r.StatusCode, r.ContentLength
	for k := range r.Trailer {
		res.Announced = append(res.Announced, k)
	}
	res.Body = &transportBody{r: r, res: res, cancel: cancel, idle: c.pool.opts.StreamIdleTimeout}
	return nil
}

// informed passes 1xx answers on while the call lasts. http.Transport reads HTTP/2 in a goroutine of the connection, which
// may hold such an answer when the call has ended; what asked to be told serves another request by then.
type informed struct {
	mu sync.Mutex
	to Informer // nil: the call has ended
}

func (i *informed) tell(code int, h textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.to != nil && code != http.StatusContinue && code != http.StatusSwitchingProtocols {
		i.to.Informational(code, http.Header(h))
	}
	return nil
}

func (i *informed) end() {
	i.mu.Lock()
	i.to = nil
	i.mu.Unlock()
}

// pushBack moves the deadline of the answer on while the client still sends.
type pushBack struct {
	io.Reader
	timer *time.Timer
	d     time.Duration
	began *atomic.Bool
}

func (b *pushBack) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if !b.began.Load() {
		b.timer.Reset(b.d)
	}
	return n, err
}

func (b *pushBack) Close() error { return nil }

// transportBody ends a silent stream and hands over the trailers.
type transportBody struct {
	r      *http.Response
	res    *Response
	cancel context.CancelCauseFunc
	idle   time.Duration
}

func (b *transportBody) Read(p []byte) (int, error) {
	var timer *time.Timer
	if b.idle > 0 {
		timer = time.AfterFunc(b.idle, func() { b.cancel(errHeaderTimeout) })
	}
	n, err := b.r.Body.Read(p)
	if timer != nil {
		timer.Stop()
	}
	if err == io.EOF {
		b.res.Trailer = b.r.Trailer
	}
	return n, err
}

// Ready implements Aborter: what http.Transport holds cannot be seen.
func (b *transportBody) Ready() bool { return false }

// Abort implements Aborter.
func (b *transportBody) Abort() { b.cancel(ErrAborted) }

func (b *transportBody) Close() error {
	err := b.r.Body.Close()
	b.cancel(nil)
	return err
}

// transportURL makes a URL whose RequestURI is the very bytes of the request.
func transportURL(scheme string, t *target, req *Request) *url.URL {
	path := t.base + req.Path
	if path == "" {
		path = "/"
	}
	u := &url.URL{Scheme: scheme, Host: t.host.key.address}
	if p, err := url.PathUnescape(path); err == nil {
		u.Path, u.RawPath = p, path
	}
	if u.EscapedPath() != path && !strings.HasPrefix(path, "//") {
		// Bytes that package url would escape otherwise: Opaque is sent as it is.
		u.Path, u.RawPath, u.Opaque = "", "", path
	}
	u.RawQuery = joinQuery(t.query, req.Query)
	return u
}

func joinQuery(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "&" + b
}

// connectionTokens returns the names that Connection lists, nil for the usual cases.
func connectionTokens(h http.Header) []string {
	lines := h["Connection"]
	if len(lines) == 0 || len(lines) == 1 && (lines[0] == "keep-alive" || lines[0] == "close" || lines[0] == "Keep-Alive") {
		return nil
	}
	var names []string
	for _, l := range lines {
		for t := range strings.SplitSeq(l, ",") {
			if t = textproto.TrimString(t); t != "" {
				names = append(names, textproto.CanonicalMIMEHeaderKey(t))
			}
		}
	}
	return names
}

func dropped(name string, drop []string) bool {
	return slices.Contains(drop, name)
}
