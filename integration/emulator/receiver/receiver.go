package receiver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Options configure a Receiver.
type Options struct {
	// TCP and TLS are host:port; port 0 takes a free one. Without TLSConfig there is no TLS port.
	TCP, TLS  string
	TLSConfig *tls.Config
	// User and Password are the only credentials that log in.
	User, Password string
	// SessionLife is how long after its login a session lives, whatever its traffic; 0 is 30 minutes.
	SessionLife time.Duration
	// OnEvents is called with the events of each good publish frame, one call at a time.
	OnEvents func([]Event)
}

// Stats are the counts of a Receiver.
type Stats struct {
	Events, Frames, Logins, Logouts, RefusedLogins, ExpiredSessions, BadFrames, OpenConnections int
}

// Receiver listens for gateways. It is safe for concurrent use.
type Receiver struct {
	user, password string
	onEvents       func([]Event)

	mu       sync.Mutex
	life     time.Duration
	sessions map[string]time.Time // when it began
	conns    map[net.Conn]struct{}
	stats    Stats
	closed   bool
	hang     bool

	deliver sync.Mutex
	tcp     net.Listener
	tls     net.Listener
	done    sync.WaitGroup
}

// Open listens.
func Open(o Options) (*Receiver, error) {
	r := &Receiver{
		user: o.User, password: o.Password, onEvents: o.OnEvents, life: o.SessionLife,
		sessions: map[string]time.Time{}, conns: map[net.Conn]struct{}{},
	}
	if r.life == 0 {
		r.life = 30 * time.Minute
	}
	var err error
	if r.tcp, err = net.Listen("tcp", o.TCP); err != nil {
		return nil, fmt.Errorf("traffic manager: listen for events: %w", err)
	}
	if o.TLSConfig != nil {
		l, err := net.Listen("tcp", o.TLS)
		if err != nil {
			_ = r.tcp.Close()
			return nil, fmt.Errorf("traffic manager: listen for logins: %w", err)
		}
		r.tls = tls.NewListener(l, o.TLSConfig)
		r.accept(r.tls)
	}
	r.accept(r.tcp)
	return r, nil
}

// TCPAddress is host:port of the event port.
func (r *Receiver) TCPAddress() string { return r.tcp.Addr().String() }

// TLSAddress is host:port of the login port, "" without TLS.
func (r *Receiver) TLSAddress() string {
	if r.tls == nil {
		return ""
	}
	return r.tls.Addr().String()
}

// Stats returns the counts so far.
func (r *Receiver) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.OpenConnections = len(r.conns)
	return s
}

// SetSessionLife changes how long sessions live, those that are open included.
func (r *Receiver) SetSessionLife(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life = d
}

// ExpireSessions forgets every session, as a restarted traffic manager does.
func (r *Receiver) ExpireSessions() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.sessions)
}

// Hang makes the receiver take frames without answering them, until it is told otherwise.
func (r *Receiver) Hang(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hang = on
}

// CutConnections closes every open connection; new ones are served.
func (r *Receiver) CutConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
}

// Close stops listening, cuts every connection and waits for their goroutines.
func (r *Receiver) Close() {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.closed = true
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	_ = r.tcp.Close()
	if r.tls != nil {
		_ = r.tls.Close()
	}
	r.done.Wait()
}

func (r *Receiver) accept(l net.Listener) {
	r.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				time.Sleep(10 * time.Millisecond) // out of file descriptors: try again
				continue
			}
			r.mu.Lock()
			if r.closed {
				r.mu.Unlock()
				_ = c.Close()
				return
			}
			r.conns[c] = struct{}{}
			r.done.Add(1)
			r.mu.Unlock()
			go func() {
				defer r.done.Done()
				defer func() {
					_ = c.Close()
					r.mu.Lock()
					delete(r.conns, c)
					r.mu.Unlock()
				}()
				r.serve(c)
			}()
		}
	})
}

func (r *Receiver) serve(c net.Conn) {
	for {
		f, err := ReadFrame(c)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
				r.count(func(s *Stats) { s.BadFrames++ })
			}
			return
		}
		answer, ok := r.Handle(f)
		if !ok {
			return
		}
		r.mu.Lock()
		hang := r.hang
		r.mu.Unlock()
		if hang || answer == nil {
			continue
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

func (r *Receiver) count(f func(*Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.stats)
}

var ok = []byte{0}

const exceptions = "org.wso2.carbon.databridge.commons.exception."

// Handle answers one frame. A nil answer means none (an unknown type); false closes the connection without one, as a
// body does that is shorter than its lengths say.
func (r *Receiver) Handle(f Frame) ([]byte, bool) {
	switch f.Type {
	case frameLogin:
		user, password, err := f.Login()
		if err != nil {
			r.count(func(s *Stats) { s.BadFrames++ })
			return nil, false
		}
		if user != r.user || password != r.password {
			r.count(func(s *Stats) { s.RefusedLogins++ })
			return fault("AuthenticationException", "wrong userName or password"), true
		}
		session := uuid.NewString()
		r.mu.Lock()
		r.sessions[session] = time.Now()
		r.stats.Logins++
		r.mu.Unlock()
		b := binary.BigEndian.AppendUint32([]byte{2}, uint32(len(session)))
		return append(b, session...), true
	case frameLogout:
		session, _, err := f.Session()
		if err != nil {
			r.count(func(s *Stats) { s.BadFrames++ })
			return nil, false
		}
		r.mu.Lock()
		delete(r.sessions, session)
		r.stats.Logouts++
		r.mu.Unlock()
		return ok, true
	case framePublish:
		session, rest, err := f.Session()
		if err != nil || len(rest) < 4 {
			r.count(func(s *Stats) { s.BadFrames++ })
			return nil, false
		}
		r.mu.Lock()
		began, known := r.sessions[session]
		if known && time.Since(began) > r.life {
			delete(r.sessions, session)
			known = false
		}
		if !known {
			r.stats.ExpiredSessions++
			r.mu.Unlock()
			return fault("SessionTimeoutException", session+" expired"), true
		}
		r.mu.Unlock()
		r.Publish(rest)
		return ok, true
	}
	return nil, true // logged there, never answered
}

// Publish takes a publish body without its session: what NATS carries. A bad one is counted and lost, as at the real
// receiver, whose answer only says that the frame is in its queue.
func (r *Receiver) Publish(b []byte) {
	events, err := Events(b)
	r.mu.Lock()
	r.stats.Frames++
	if err != nil {
		r.stats.BadFrames++
		r.mu.Unlock()
		return
	}
	r.stats.Events += len(events)
	r.mu.Unlock()
	if r.onEvents != nil {
		r.deliver.Lock()
		defer r.deliver.Unlock()
		r.onEvents(events)
	}
}

// fault is an error answer. The lengths are characters, as the Java receiver counts them.
func fault(class, message string) []byte {
	class = exceptions + class
	b := []byte{1}
	b = binary.BigEndian.AppendUint32(b, uint32(len(class)))
	b = binary.BigEndian.AppendUint32(b, uint32(len([]rune(message))))
	return append(append(b, class...), message...)
}
