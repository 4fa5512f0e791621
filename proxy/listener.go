package proxy

import (
	"context"
	"errors"
	"fmt"
	stdlog "log" //nolint:depguard // net/http takes its ErrorLog in no other form
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// listeners are the ports and the servers behind them.
type listeners struct {
	mu          sync.Mutex
	http, https net.Listener
	servers     []*http.Server
	certs       *certificates
	drained     chan struct{} // closed when Drain has ended
}

func (l *listeners) configure(p *Proxy) error {
	o := &p.opts
	l.drained = make(chan struct{})
	if o.HTTPS == "" {
		return nil
	}
	if o.CertFile == "" || o.KeyFile == "" {
		return errors.New("the https listener needs cert_file and key_file")
	}
	var err error
	l.certs, err = newCertificates(o.CertFile, o.KeyFile, o.ClientCAFile, o.TLSMinVersion, p.asksForCertificates, o.Log)
	return err
}

// Listen opens the ports. Run does it where it was not done before.
func (p *Proxy) Listen() error {
	l := &p.listeners
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.http != nil || l.https != nil {
		return nil
	}
	var err error
	if p.opts.HTTP != "" {
		if l.http, err = new(net.ListenConfig).Listen(context.Background(), "tcp", p.opts.HTTP); err != nil {
			return fmt.Errorf("opening the http listener: %w", err)
		}
	}
	if p.opts.HTTPS != "" {
		if l.https, err = new(net.ListenConfig).Listen(context.Background(), "tcp", p.opts.HTTPS); err != nil {
			if l.http != nil {
				_ = l.http.Close()
				l.http = nil
			}
			return fmt.Errorf("opening the https listener: %w", err)
		}
	}
	return nil
}

// Addr returns the addresses of the listeners, "" for one that is not open.
func (p *Proxy) Addr() (http, https string) {
	l := &p.listeners
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.http != nil {
		http = l.http.Addr().String()
	}
	if l.https != nil {
		https = l.https.Addr().String()
	}
	return http, https
}

// server makes the HTTP server of a listener.
func (p *Proxy) server() *http.Server {
	s := &http.Server{
		Handler:           p,
		ReadHeaderTimeout: p.opts.ReadHeaderTimeout,
		IdleTimeout:       p.opts.IdleTimeout,
		MaxHeaderBytes:    p.opts.MaxHeaderBytes,
		ErrorLog:          stdlog.New(serverLog{p}, "", 0),
		Protocols:         new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

// serverLog takes what net/http has to say: noise of the network at debug, panics as errors.
type serverLog struct{ p *Proxy }

func (l serverLog) Write(b []byte) (int, error) {
	msg := strings.TrimSpace(string(b))
	if strings.Contains(msg, "panic serving") {
		l.p.metrics.panics.Inc()
		l.p.opts.Log.Error().Str("detail", msg).Msg("a request ended in a fault of the gateway")
	} else {
		l.p.opts.Log.Debug().Str("detail", msg).Msg("http server")
	}
	return len(b), nil
}

// Run opens the ports and serves until ctx ends; then it drains within DrainTimeout and frees what the proxy holds. It
// returns nil after a clean end.
func (p *Proxy) Run(ctx context.Context) error {
	if err := p.Listen(); err != nil {
		return errors.Join(err, p.Close())
	}
	l := &p.listeners
	g, gctx := errgroup.WithContext(ctx)
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error {
		p.watchStreams(watching)
		return nil
	})
	l.mu.Lock()
	if l.http != nil {
		s, ln := p.server(), guarded{l.http, p}
		l.servers = append(l.servers, s)
		g.Go(func() error { return p.served("http", s.Serve(ln)) })
	}
	if l.https != nil {
		h := newHandshaker(p, l.https)
		h1, h2 := p.server(), p.server()
		h1.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, tlsKey{}, c.(*tlsConn).state)
		}
		l.servers = append(l.servers, h1, h2)
		g.Go(func() error { return p.served("https", h.run()) })
		g.Go(func() error { return p.served("https", h1.Serve(h.plain)) })
		g.Go(func() error { return p.served("https", h2.Serve(h.h2)) })
	}
	l.mu.Unlock()
	g.Go(func() error {
		defer unwatch() // streams are looked after until the last has ended
		select {
		case <-gctx.Done():
		case <-l.drained:
			return nil
		}
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.opts.DrainTimeout)
		defer cancel()
		return p.Drain(dctx)
	})
	return errors.Join(g.Wait(), p.Close())
}

func (p *Proxy) served(name string, err error) error {
	if errors.Is(err, http.ErrServerClosed) || p.draining.Load() && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("%s listener: %w", name, err)
}

// Drain stops accepting, lets running requests finish, and closes connections as they fall idle. When ctx ends before
// that, the connections that are left are cut, and an error says so. It is called once; Run returns after it.
func (p *Proxy) Drain(ctx context.Context) error {
	if !p.draining.CompareAndSwap(false, true) {
		<-p.listeners.drained
		return nil
	}
	l := &p.listeners
	defer close(l.drained)
	l.mu.Lock()
	servers := l.servers
	for _, ln := range []net.Listener{l.http, l.https} {
		if ln != nil {
			_ = ln.Close()
		}
	}
	l.mu.Unlock()
	// From here on answers carry "Connection: close". A moment for clients that are just about to send on an idle
	// connection, which would otherwise be closed under them.
	select {
	case <-time.After(p.opts.DrainPause):
	case <-ctx.Done():
	}
	var g errgroup.Group
	for _, s := range servers {
		g.Go(func() error {
			// That the listener is closed already is no failure: the connections are waited for all the same.
			if err := s.Shutdown(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
				_ = s.Close()
				return fmt.Errorf("draining: %w: the connections that were left are cut", err)
			}
			return nil
		})
	}
	return g.Wait()
}
