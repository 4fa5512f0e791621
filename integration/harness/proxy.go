package harness

import (
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Proxy forwards TCP connections to a target and can be told to fail in the ways that networks do. Its methods may be
// called from any goroutine.
type Proxy struct {
	t       testing.TB
	address string
	running sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while refusing
	target   string
	links    map[*link]struct{}
	thawed   chan struct{} // closed unless frozen
	frozen   bool
	rate     int // bytes per second and direction; 0 is no limit
	latency  time.Duration
	accepted int
	ended    bool
}

// link is one connection through the proxy. The server is nil while the proxy is frozen and has not dialled.
type link struct {
	client net.Conn
	gone   chan struct{} // closed by end

	mu     sync.Mutex
	server net.Conn
	ended  bool
}

// StartProxy listens on a free loopback port and forwards to target (host:port), which need not exist yet. The proxy ends
// with the test.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start a proxy: %v", err)
	}
	open := make(chan struct{})
	close(open)
	p := &Proxy{t: t, address: listener.Addr().String(), target: target, links: map[*link]struct{}{}, thawed: open}
	p.serve(listener)
	t.Cleanup(p.close)
	return p
}

// Address is what clients dial, host:port. It stays the same for the proxy's life.
func (p *Proxy) Address() string { return p.address }

// Accepted is how many connections were taken so far.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open is how many connections are open now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Cut resets every open connection (RST to both sides). New ones are taken as before.
func (p *Proxy) Cut() {
	for _, l := range p.snapshot() {
		l.end(true)
	}
}

// Freeze makes every connection half-open: bytes are taken and none forwarded, and new connections are taken and lead
// nowhere. Nobody is told.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.frozen {
		p.frozen, p.thawed = true, make(chan struct{})
	}
}

// Slow limits each direction of each connection to rate bytes a second (0: no limit) and delays each piece by latency.
func (p *Proxy) Slow(rate int, latency time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.latency = rate, latency
}

// Refuse resets every open connection and stops listening, so that dialling fails at once.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	listener := p.listener
	p.listener = nil
	p.mu.Unlock()
	if listener != nil {
		_ = listener.Close()
	}
	p.Cut()
}

// Retarget sends new connections to another address; open ones stay where they are.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Resume ends Freeze, Slow and Refuse. What a frozen connection had taken is forwarded now.
func (p *Proxy) Resume() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.latency = 0, 0
	if p.frozen {
		p.frozen = false
		close(p.thawed)
	}
	if p.listener == nil && !p.ended {
		listener, err := net.Listen("tcp", p.address)
		if err != nil {
			p.t.Errorf("proxy cannot listen on %s again: %v", p.address, err)
			return
		}
		p.serveLocked(listener)
	}
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.ended = true
	if p.frozen {
		p.frozen = false
		close(p.thawed)
	}
	p.mu.Unlock()
	p.Refuse()
	p.running.Wait()
}

func (p *Proxy) serve(listener net.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serveLocked(listener)
}

func (p *Proxy) serveLocked(listener net.Listener) {
	p.listener = listener
	p.running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.take(client)
		}
	})
}

func (p *Proxy) take(client net.Conn) {
	l := &link{client: client, gone: make(chan struct{})}
	p.mu.Lock()
	p.accepted++
	if p.ended {
		p.mu.Unlock()
		_ = client.Close()
		return
	}
	p.links[l] = struct{}{}
	p.mu.Unlock()
	p.running.Go(func() {
		defer func() {
			l.end(false)
			p.mu.Lock()
			delete(p.links, l)
			p.mu.Unlock()
		}()
		if !p.pass(l) {
			return
		}
		p.mu.Lock()
		target := p.target
		p.mu.Unlock()
		server, err := net.DialTimeout("tcp", target, 5*time.Second)
		if err != nil {
			l.end(true)
			return
		}
		if !l.join(server) {
			return
		}
		var pumps sync.WaitGroup
		pumps.Go(func() { p.pump(l, server, client) })
		pumps.Go(func() { p.pump(l, client, server) })
		pumps.Wait()
	})
}

// pass waits while the proxy is frozen; false when the link ended meanwhile.
func (p *Proxy) pass(l *link) bool {
	p.mu.Lock()
	thawed := p.thawed
	p.mu.Unlock()
	select {
	case <-thawed:
	case <-l.gone:
	}
	select {
	case <-l.gone:
		return false
	default:
		return true
	}
}

func (p *Proxy) pump(l *link, to, from net.Conn) {
	buffer := make([]byte, 16<<10)
	for {
		p.mu.Lock()
		rate, latency := p.rate, p.latency
		p.mu.Unlock()
		piece := buffer
		if rate > 0 {
			piece = buffer[:min(len(buffer), max(1, rate/20))]
		}
		n, err := from.Read(piece)
		if n > 0 {
			delay := latency
			if rate > 0 {
				delay += time.Duration(n) * time.Second / time.Duration(rate)
			}
			if !l.wait(delay) || !p.pass(l) {
				return
			}
			if _, err := to.Write(piece[:n]); err != nil {
				l.end(true)
				return
			}
		}
		if err != nil {
			if !p.pass(l) { // while frozen, a side that hangs up is not told on
				return
			}
			if !errors.Is(err, io.EOF) {
				l.end(true)
				return
			}
			if half, ok := to.(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
			return
		}
	}
}

func (l *link) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.gone:
		return false
	}
}

// join adds the server's side; false when the link ended while dialling.
func (l *link) join(server net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		_ = server.Close()
		return false
	}
	l.server = server
	return true
}

// end closes both sides, with a reset when hard.
func (l *link) end(hard bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	close(l.gone)
	for _, c := range []net.Conn{l.client, l.server} {
		if c == nil {
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok && hard {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}

func (p *Proxy) snapshot() []*link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.links))
}
