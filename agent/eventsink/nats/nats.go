// Package nats delivers request events to traffic managers over NATS and announces the gateway there (contract
// traffic-manager.md 2.4).
//
// Every traffic manager sees every event, so one Sender is one group of one endpoint. Core NATS acknowledges nothing: a
// batch counts as accepted when the server has answered a ping behind it. While the connection is away nothing is buffered
// here, since a failed batch stays in the publisher's queue and would arrive twice.
package nats

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"gatehouse/throttle"
)

// Subjects and the type of a body.
const (
	SubjectRequest       = "gatehouse.request"
	SubjectGatewayPrefix = "gatehouse.gateway."
	ContentType          = "application/vnd.gatehouse.databridge"
)

// Options of a Sender.
type Options struct {
	URL                string // "nats://host:4222", several separated by commas
	Username, Password string
	TLS                *tls.Config // nil: as the URL says
	// Roots, when not nil, is asked for the authorities of each connection, in the place of those of TLS.
	Roots func() *x509.CertPool
	// GatewayID names the gateway in its heartbeat: one token without blanks, dots or wildcards. "" sends no heartbeat.
	GatewayID string
	// Heartbeat is the pause between heartbeats, default 1 s.
	Heartbeat time.Duration
	// Timeout bounds the connection and the wait for the server's answer to a batch, default 5 s.
	Timeout time.Duration
	Logger  zerolog.Logger
	Now     func() time.Time // nil: time.Now
}

// Sender implements throttle.Sender over NATS. Create it with New; its methods are safe for concurrent use.
type Sender struct {
	o    Options
	stop chan struct{}
	done sync.WaitGroup

	mu     sync.Mutex
	conn   *natsgo.Conn
	closed bool
}

var errAway = errors.New("not connected to NATS")

// New returns a Sender and starts its heartbeat; it connects when Connect or Send is called. The error names an option
// that cannot be used.
func New(o Options) (*Sender, error) {
	if o.URL == "" {
		return nil, errors.New("nats: no URL: give one such as nats://host:4222")
	}
	if strings.ContainsAny(o.GatewayID, " \t\r\n.*>") {
		return nil, fmt.Errorf("nats: gateway id %q: blanks, dots, * and > cannot stand in it, it becomes part of a subject", o.GatewayID)
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = time.Second
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Sender{o: o, stop: make(chan struct{})}
	if o.GatewayID != "" {
		s.done.Go(s.heartbeat)
	}
	return s, nil
}

// Connect connects where that is not done yet. Once connected, the connection comes back by itself after an outage.
func (s *Sender) Connect(ctx context.Context) error {
	_, err := s.connection(ctx)
	return err
}

func (s *Sender) connection(ctx context.Context) (*natsgo.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("nats: sender closed")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.conn != nil {
		if s.conn.IsConnected() {
			return s.conn, nil
		}
		if !s.conn.IsClosed() {
			return nil, errAway // the library is at it
		}
	}
	options := []natsgo.Option{
		natsgo.Name("gatehouse " + s.o.GatewayID), natsgo.Timeout(s.o.Timeout), natsgo.MaxReconnects(-1),
		natsgo.ReconnectWait(time.Second), natsgo.ReconnectBufSize(-1), natsgo.NoEcho(),
		natsgo.DisconnectErrHandler(func(_ *natsgo.Conn, err error) {
			if err != nil {
				s.o.Logger.Warn().Err(err).Msg("lost the NATS connection for request events")
			}
		}),
	}
	if s.o.Username != "" {
		options = append(options, natsgo.UserInfo(s.o.Username, s.o.Password))
	}
	if s.o.TLS != nil {
		options = append(options, natsgo.Secure(s.o.TLS))
		if s.o.Roots != nil { // the library asks again at each reconnect
			options = append(options, natsgo.ClientTLSConfig(nil, func() (*x509.CertPool, error) { return s.o.Roots(), nil }))
		}
	}
	conn, err := natsgo.Connect(s.o.URL, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS for request events: %w", err)
	}
	s.conn = conn
	return conn, nil
}

// Send publishes one batch and waits until the server has it. A batch larger than the server takes in one message is cut
// between events; one event that is too large by itself is throttle.ErrBatchRejected.
func (s *Sender) Send(ctx context.Context, b throttle.Batch) error {
	if b.Events == 0 {
		return nil
	}
	conn, err := s.connection(ctx)
	if err != nil {
		return err
	}
	limit := int(conn.MaxPayload()) - 256 // the header counts too
	bodies, err := split(b.Body, limit)
	if err != nil {
		return err
	}
	for _, body := range bodies {
		m := &natsgo.Msg{Subject: SubjectRequest, Data: body, Header: natsgo.Header{"Content-Type": {ContentType}}}
		if err := conn.PublishMsg(m); err != nil {
			return fmt.Errorf("publish request events to NATS: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	if err := conn.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("publish request events to NATS: %w", err)
	}
	return nil
}

// split cuts a body "i32 eventCount, event*" into bodies of at most limit bytes.
func split(body []byte, limit int) ([][]byte, error) {
	if len(body) <= limit {
		return [][]byte{body}, nil
	}
	var (
		out   [][]byte
		part  = make([]byte, 4, limit)
		count uint32
	)
	for rest := body[min(4, len(body)):]; len(rest) > 0; {
		if len(rest) < 4 {
			return nil, fmt.Errorf("%w: an event is cut short", throttle.ErrBatchRejected)
		}
		n := 4 + int(binary.BigEndian.Uint32(rest))
		if n > len(rest) || n+4 > limit {
			return nil, fmt.Errorf("%w: an event of %d bytes, the NATS server takes %d", throttle.ErrBatchRejected, n, limit)
		}
		if len(part)+n > limit {
			binary.BigEndian.PutUint32(part, count)
			out = append(out, part)
			part, count = make([]byte, 4, limit), 0
		}
		part = append(part, rest[:n]...)
		count++
		rest = rest[n:]
	}
	binary.BigEndian.PutUint32(part, count)
	return append(out, part), nil
}

// heartbeat announces the gateway: the traffic managers learn from it how many gateways there are.
func (s *Sender) heartbeat() {
	t := time.NewTicker(s.o.Heartbeat)
	defer t.Stop()
	for {
		s.mu.Lock()
		conn := s.conn
		s.mu.Unlock()
		if conn != nil && conn.IsConnected() {
			body, err := json.Marshal(struct {
				ID string `json:"id"`
				At int64  `json:"at"`
			}{s.o.GatewayID, s.o.Now().UnixMilli()})
			if err == nil {
				err = conn.Publish(SubjectGatewayPrefix+s.o.GatewayID, body)
			}
			if err != nil {
				s.o.Logger.Debug().Err(err).Msg("heartbeat of the gateway not sent")
			}
		}
		select {
		case <-t.C:
		case <-s.stop:
			return
		}
	}
}

// Close ends the heartbeat and the connection.
func (s *Sender) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	conn := s.conn
	s.mu.Unlock()
	close(s.stop)
	s.done.Wait()
	if conn != nil {
		conn.Close()
	}
	return nil
}
