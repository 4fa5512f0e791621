package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/proxy/definition"
)

// Options are the defaults of [upstream]. Zero values mean what is said.
type Options struct {
	// ConnectTimeout bounds the dial and the TLS handshake; 0 means 5 s.
	ConnectTimeout time.Duration
	// Timeout is the wait for the response header; 0 means 60 s.
	Timeout time.Duration
	// IdleTimeout is how long an unused connection is kept; 0 means 90 s.
	IdleTimeout time.Duration
	// StreamIdleTimeout is how long an answer's body may be silent; 0 means 5 min, negative no bound.
	StreamIdleTimeout time.Duration
	// MaxIdlePerHost bounds the unused connections of a host; 0 means 1024.
	MaxIdlePerHost int
	// MaxHeaderBytes bounds the header of an answer; 0 means 64 KiB.
	MaxHeaderBytes int
	// CAFile holds further authorities in PEM, beside those of the system.
	CAFile        string
	SkipTLSVerify bool
	// Transport makes every call go through http.Transport; it exists for tests and for comparison.
	Transport bool
}

// Defaults are those of the Options that may change while a pool is in use; their fields mean the same.
type Defaults struct {
	ConnectTimeout, Timeout time.Duration
	CAFile                  string
	SkipTLSVerify           bool
}

func (o *Options) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.ConnectTimeout, 5*time.Second)
	set(&o.Timeout, time.Minute)
	set(&o.IdleTimeout, 90*time.Second)
	set(&o.StreamIdleTimeout, 5*time.Minute)
	if o.MaxIdlePerHost == 0 {
		o.MaxIdlePerHost = 1024
	}
	if o.MaxHeaderBytes == 0 {
		o.MaxHeaderBytes = 64 << 10
	}
}

// Pool keeps the hosts. Its methods may be called from any goroutine.
type Pool struct {
	opts Options // but for what Defaults holds: that is in settings
	// settings is replaced as a whole, under mu, and read by every call.
	settings atomic.Pointer[settings]

	mu    sync.Mutex
	hosts map[hostKey]*host
	// uploads are bodies that are still being sent.
	uploads sync.WaitGroup

	stop chan struct{}
	done chan struct{}
	once sync.Once
}

type hostKey struct{ scheme, address string }

// host is a backend's address and how it is called.
type host struct {
	key    hostKey
	client client
	refs   int // under Pool.mu
	// downUntil is when a host that could not be reached is asked first again, in Unix nanoseconds.
	downUntil atomic.Int64
}

// suspend is how long a host that refused a connection is asked last.
const suspend = 2 * time.Second

// NewPool makes a pool. It returns an error when the CA file cannot be used. Close must be called.
func NewPool(o Options) (*Pool, error) {
	o.defaults()
	p := &Pool{opts: o, hosts: map[hostKey]*host{}, stop: make(chan struct{}), done: make(chan struct{})}
	s, err := p.settle(Defaults{ConnectTimeout: o.ConnectTimeout, Timeout: o.Timeout, CAFile: o.CAFile, SkipTLSVerify: o.SkipTLSVerify}, nil)
	if err != nil {
		return nil, err
	}
	p.settings.Store(s)
	go p.reap()
	return p, nil
}

// continueTimeout is how long the body is held back for a backend that does not answer "Expect: 100-continue".
const continueTimeout = time.Second

// reap closes connections that were idle for too long.
func (p *Pool) reap() {
	defer close(p.done)
	tick := time.NewTicker(max(p.opts.IdleTimeout/4, 50*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			p.mu.Lock()
			var clients []*h1
			for _, h := range p.hosts {
				if c, ok := h.client.(*h1); ok {
					clients = append(clients, c)
				}
			}
			p.mu.Unlock()
			for _, c := range clients {
				c.reap(now)
			}
		}
	}
}

// Close closes idle connections; running calls finish.
func (p *Pool) Close() {
	p.once.Do(func() {
		close(p.stop)
		<-p.done
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, h := range p.hosts {
			h.client.closeIdle()
		}
		p.settings.Load().transport.CloseIdleConnections()
	})
	p.uploads.Wait()
}

// target is one URL of an endpoint.
type target struct {
	host *host
	// base is the path of the URL without a trailing slash; query stands before the request's.
	base, query string
	// authority is the Host field and server name, url what http.Transport is given.
	authority, serverName string
	scheme                string
	// authorization is the basic credential of the endpoint, "" for none.
	authorization string
	// timeout is the endpoint's own wait for the answer, 0 for that of the pool.
	timeout time.Duration
}

// Endpoint is a compiled backend. It is immutable but for the turn of the round robin, and counted by its users.
type Endpoint struct {
	pool    *Pool
	kind    definition.EndpointKind
	targets []target
	turn    atomic.Uint64
}

// ErrEndpoint is what every error of a bad endpoint definition is, for errors.Is.
var ErrEndpoint = errors.New("bad endpoint")

// Open compiles an endpoint and takes hold of its hosts; Release lets go of them.
func (p *Pool) Open(d *definition.Endpoint) (*Endpoint, error) {
	e := &Endpoint{pool: p, kind: d.Kind}
	if len(d.URLs) == 0 {
		return nil, fmt.Errorf("%w: it has no URL", ErrEndpoint)
	}
	switch d.Kind {
	case definition.Single, definition.LoadBalance, definition.Failover:
	case "":
		e.kind = definition.LoadBalance
	default:
		return nil, fmt.Errorf("%w: kind %q must be http, load_balance or failover", ErrEndpoint, d.Kind)
	}
	var authorization string
	if s := d.Security; s != nil && s.Type != "" {
		if !strings.EqualFold(s.Type, "basic") {
			return nil, fmt.Errorf("%w: security type %q must be basic", ErrEndpoint, s.Type)
		}
		authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(s.Username+":"+s.Password))
	}
	urls := d.URLs
	if d.Kind == definition.Single {
		urls = urls[:1]
	}
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			e.Release()
			return nil, fmt.Errorf("%w: URL: %w", ErrEndpoint, err)
		}
		t := target{authorization: authorization, timeout: max(d.Timeout, 0), scheme: u.Scheme}
		port := u.Port()
		switch u.Scheme {
		case "http", "h2c":
			if port == "" {
				port = "80"
			}
		case "https":
			if port == "" {
				port = "443"
			}
		default:
			e.Release()
			return nil, fmt.Errorf("%w: URL %q must begin with http://, https:// or h2c://", ErrEndpoint, u.Redacted())
		}
		if u.Hostname() == "" || u.Fragment != "" || u.Opaque != "" {
			e.Release()
			return nil, fmt.Errorf("%w: URL %q must name a host and have no fragment", ErrEndpoint, u.Redacted())
		}
		if u.User != nil && authorization == "" {
			pw, _ := u.User.Password()
			t.authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+pw))
		}
		t.base = strings.TrimSuffix(u.EscapedPath(), "/")
		t.query = u.RawQuery
		t.authority = u.Host
		t.serverName = u.Hostname()
		t.host = p.acquire(hostKey{u.Scheme, net.JoinHostPort(u.Hostname(), port)}, t.serverName)
		e.targets = append(e.targets, t)
	}
	return e, nil
}

func (p *Pool) acquire(k hostKey, serverName string) *host {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[k]
	if h == nil {
		h = &host{key: k}
		switch {
		case k.scheme == "h2c":
			c := &viaTransport{pool: p}
			c.own.Store(p.settings.Load().unencrypted())
			h.client = c
		case p.opts.Transport:
			h.client = &viaTransport{pool: p}
		default:
			h.client = newH1(p, k, serverName)
		}
		p.hosts[k] = h
	}
	h.refs++
	return h
}

// Release lets go of the endpoint's hosts. Calls that run finish; the connections of a host without users are closed
// when they fall idle. An endpoint is released once.
func (e *Endpoint) Release() {
	p := e.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range e.targets {
		h := e.targets[i].host
		if h.refs--; h.refs == 0 {
			delete(p.hosts, h.key)
			h.client.closeIdle()
		}
	}
}

// Hosts returns how many hosts are in use.
func (p *Pool) Hosts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.hosts)
}

// Call sends a request to a host of the endpoint and returns when the header of the answer is there. Errors are *Error.
// Another host is tried only when nothing that the backend could act upon was sent to the first, or, for failover, when
// the request may be repeated: a method without effect and no body. The timeout covers all hosts together.
func (e *Endpoint) Call(ctx context.Context, req *Request, res *Response) error {
	first := 0
	n := len(e.targets)
	if n > 1 {
		if e.kind == definition.LoadBalance {
			first = int((e.turn.Add(1) - 1) % uint64(n))
		}
		first = e.up(first)
	}
	var body *requestBody
	if req.Body != nil {
		body = &requestBody{r: req.Body}
		req.Body = body
	}
	whole := e.targets[0].timeout // the same for all of them
	if whole == 0 {
		whole = e.pool.settings.Load().timeout
	}
	var began time.Time
	if n > 1 {
		began = time.Now()
	}
	for i := 0; ; i++ {
		t, timeout := &e.targets[(first+i)%n], whole
		if i > 0 {
			// One deadline covers all attempts.
			timeout = max(whole-time.Since(began), time.Millisecond)
		}
		res.Attempts++
		err := t.host.client.roundTrip(ctx, t, timeout, req, res)
		last := i == n-1 || n > 1 && time.Since(began) >= whole
		if err == nil {
			if !last && e.kind == definition.Failover && failoverStatus(res.Status) && repeatable(req) {
				_, _ = io.CopyN(io.Discard, res.Body, 4096)
				_ = res.Body.Close()
				clear(res.Header)
				res.Trailer, res.Announced = nil, nil
				continue
			}
			res.Host = t.host.key.address
			return nil
		}
		kind := classify(ctx, err)
		if body != nil && body.bad.Load() {
			kind = RequestBody
		}
		if kind == Connect && i > 0 && time.Since(began) >= whole {
			kind = Timeout // what was left of the time was too short: the host is not to blame
		}
		if kind == Connect {
			t.host.downUntil.Store(time.Now().Add(suspend).UnixNano())
		}
		again := kind == Connect && (body == nil || !body.read.Load()) ||
			e.kind == definition.Failover && (kind == Failed || kind == Timeout) && repeatable(req)
		if last || !again {
			res.Host = t.host.key.address
			return &Error{kind, t.host.key.address, err}
		}
		clear(res.Header) // an answer may have begun
	}
}

// up returns the first target from i on that is not known to be down, or i when all are.
func (e *Endpoint) up(i int) int {
	var now int64
	for j := range e.targets {
		k := (i + j) % len(e.targets)
		until := e.targets[k].host.downUntil.Load()
		if until == 0 {
			return k
		}
		if now == 0 {
			now = time.Now().UnixNano()
		}
		if now >= until {
			return k
		}
	}
	return i
}

func failoverStatus(s int) bool { return s >= 501 && s <= 504 }

// repeatable says whether a request may be sent twice.
func repeatable(req *Request) bool {
	if req.Body != nil {
		return false
	}
	switch req.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// classify names a failure of a client.
func classify(ctx context.Context, err error) Kind {
	if _, ok := errors.AsType[*bodyError](err); ok {
		return RequestBody
	}
	if ctx.Err() != nil {
		return Canceled
	}
	if e, ok := errors.AsType[*callError](err); ok {
		return e.kind
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return Connect
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return Connect
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return Timeout
	}
	return Failed
}

// callError is a failure whose kind a client knows.
type callError struct {
	kind Kind
	err  error
}

func (e *callError) Error() string { return e.err.Error() }
func (e *callError) Unwrap() error { return e.err }
