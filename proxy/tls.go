package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"gatehouse/proxy/fault"
	"gatehouse/proxy/guard"
)

// guarded puts a guard before each connection of a listener.
type guarded struct {
	net.Listener
	p *Proxy
}

// Accept implements net.Listener.
func (g guarded) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return g.p.guard(g.p.bound(c)), nil
}

func (p *Proxy) guard(c net.Conn) *guard.Conn {
	// The handler answers requests whose target is a little too long, with all that belongs to an answer; the guard those
	// that would not fit anywhere.
	return guard.New(c, guard.Limits{URI: p.opts.MaxURIBytes + 4096, Header: p.opts.MaxHeaderBytes}, p.rawRefusal)
}

// rawRefusal is the whole answer to a request that net/http does not get to see.
func (p *Proxy) rawRefusal(status int) []byte {
	f := fault.Status(status)
	b := p.dialect.Append(nil, &f, fault.JSON)
	p.metrics.none.count("", status, false)
	p.metrics.refusals.WithLabelValues("limits", strconv.Itoa(status)).Inc()
	head := "HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) + "\r\nContent-Type: " + b.ContentType +
		"\r\nCache-Control: no-store\r\nX-Request-Id: " + newID() + "\r\nContent-Length: " + strconv.Itoa(len(b.Content)) +
		"\r\nConnection: close\r\nDate: " + time.Now().UTC().Format(http.TimeFormat) + "\r\n\r\n"
	return append([]byte(head), b.Content...)
}

// handshaker accepts TLS connections, shakes hands, and gives HTTP/2 connections to one server and HTTP/1 connections,
// behind the guard, to another: net/http itself looks into no connection but its own type.
type handshaker struct {
	p         *Proxy
	ln        net.Listener
	plain, h2 *handed
	wg        sync.WaitGroup
}

func newHandshaker(p *Proxy, ln net.Listener) *handshaker {
	return &handshaker{p: p, ln: ln, plain: newHanded(ln.Addr()), h2: newHanded(ln.Addr())}
}

// tlsConn is a guarded TLS connection of HTTP/1.
type tlsConn struct {
	*guard.Conn
	state *tls.ConnectionState
}

// tlsKey finds the TLS state in the context of a request of HTTP/1.
type tlsKey struct{}

// handshakeTimeout bounds a handshake.
const handshakeTimeout = 10 * time.Second

func (h *handshaker) run() error {
	defer h.wg.Wait()
	defer func() { _ = h.plain.Close() }()
	defer func() { _ = h.h2.Close() }()
	certs := h.p.listeners.certs
	conf := certs.config()
	var wait time.Duration
	for {
		c, err := h.ln.Accept()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isTemporary(err) {
				// Out of file descriptors, most likely: wait as net/http does.
				wait = min(max(2*wait, 5*time.Millisecond), time.Second)
				time.Sleep(wait)
				continue
			}
			return err
		}
		wait = 0
		h.wg.Go(func() { h.shake(tls.Server(h.p.bound(c), certs.choose(conf))) })
	}
}

func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (h *handshaker) shake(c *tls.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		h.p.opts.Log.Debug().Err(err).Str("peer", c.RemoteAddr().String()).Msg("tls handshake failed")
		_ = c.Close()
		return
	}
	state := c.ConnectionState()
	if state.NegotiatedProtocol == "h2" {
		h.h2.give(c)
		return
	}
	h.plain.give(&tlsConn{h.p.guard(c), &state})
}

// handed is a listener of connections that somebody else has accepted.
type handed struct {
	addr net.Addr
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func newHanded(a net.Addr) *handed {
	return &handed{addr: a, c: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handed) give(c net.Conn) {
	select {
	case h.c <- c:
	case <-h.done:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.c:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handed) Addr() net.Addr { return h.addr }
