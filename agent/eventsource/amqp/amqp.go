// Package amqp brings the API Manager's events from an AMQP 0-9-1 broker: the API Manager's own Andes, or RabbitMQ in its
// place. Contract: events.md 1.3 to 1.5 and 7.3.
//
// The client library's own recovery is not used. It restores queues, not the messages that were published while they
// were gone, so a lost channel is as bad as a lost connection: either ends the session, the source connects again, and
// whoever listens fetches everything.
package amqp

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/supervisor"
)

const (
	defaultHeartbeat = 3 * time.Second
	defaultPrefetch  = 100
	// dialTimeout bounds TCP, TLS and log-in together, so that a broker that takes connections and says nothing does
	// not keep the next one waiting.
	dialTimeout = 5 * time.Second
	// connectTimeout bounds TCP alone: a host that was down and comes back hears of a new attempt sooner than of the
	// old one, whose repetitions come ever later.
	connectTimeout = 1500 * time.Millisecond
	closeTimeout   = time.Second
)

// Options are what New needs.
type Options struct {
	// Name is "event_hub" or "traffic_manager"; it labels logs and metrics.
	Name string
	// Brokers are tried in this order, round and round, beginning with the last good one.
	Brokers []brokerurl.Broker
	// Topics to subscribe, in the documented case (event.TopicNotification, …).
	Topics []string
	// TLS is used for brokers with TLS; nil means the system's authorities. ServerName is filled in per broker.
	TLS *tls.Config
	// Roots, when not nil, is asked for the authorities of each connection, in the place of those of TLS.
	Roots func() *x509.CertPool
	// Heartbeat is the interval between signs of life; a dead peer shows after three. 0: the URL's, else 3 s.
	Heartbeat time.Duration
	// Prefetch is how many messages of a topic the broker sends ahead of their settling. 0: 100.
	Prefetch int
	// RefusedDelay is the pause after refused credentials or an unknown virtual host. 0: 60 s.
	RefusedDelay time.Duration
	// MinPause and MaxPause bound the pause between two rounds over the brokers. 0: 200 ms and 800 ms, a quarter off
	// either way.
	MinPause, MaxPause time.Duration
	Logger             zerolog.Logger
	// Registerer takes the metrics; nil means none. Sources of one registry may share a name.
	Registerer prometheus.Registerer
}

// Source is one connection to one of a set of brokers. It implements eventsource.Source.
type Source struct {
	o          Options
	log        zerolog.Logger
	supervisor *supervisor.Supervisor
}

var _ eventsource.Source = (*Source)(nil)

// New checks the options. It does not connect; Run does.
func New(o Options) (*Source, error) {
	sup, err := supervisor.New(supervisor.Options{
		Name: o.Name, Protocol: brokerurl.AMQP, Brokers: o.Brokers, Topics: o.Topics, RefusedDelay: o.RefusedDelay,
		MinPause: o.MinPause, MaxPause: o.MaxPause, Logger: o.Logger, Registerer: o.Registerer,
	})
	if err != nil {
		return nil, err
	}
	o.Prefetch = cmp.Or(o.Prefetch, defaultPrefetch)
	o.Topics = slices.Clone(o.Topics)
	return &Source{o: o, log: o.Logger.With().Str("source", o.Name).Logger(), supervisor: sup}, nil
}

// Name is the name given to New.
func (s *Source) Name() string { return s.o.Name }

// Kind is "amqp".
func (s *Source) Kind() string { return brokerurl.AMQP }

// Run connects, and connects again for ever, until ctx is done; its error is ctx's. It must run once at a time.
func (s *Source) Run(ctx context.Context, h eventsource.Handler) error {
	return s.supervisor.Run(ctx, h, s.session)
}

// refusal marks err as one when the broker itself said no, for good: 403 and 530 for credentials, permissions and
// virtual hosts (RabbitMQ; Andes for credentials), 404 for an unknown virtual host (Andes). The client library gives the
// same codes when the connection merely broke while logging in; then Server is false, and dialling again is right.
func refusal(err error) error {
	e, ok := errors.AsType[*amqp091.Error](err)
	if !ok || !e.Server {
		return err
	}
	switch e.Code {
	case amqp091.AccessRefused:
		return supervisor.Refused(err)
	case amqp091.NotAllowed, amqp091.NotFound, amqp091.InvalidPath:
		if _, ok := errors.AsType[*handshakeError](err); ok {
			return supervisor.Refused(err)
		}
	}
	return err
}

// handshakeError is a failure before the connection was open.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// millisOf undoes the client library: Andes writes milliseconds where AMQP has seconds, and everything later than the
// year 5138 is one of those.
func millisOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	n := t.Unix()
	if n > 1e11 {
		return n
	}
	return max(n, 0) * 1000
}

// message is what the handler gets. The topic is the one subscribed to: Andes may fold the routing key.
func message(topic string, d *amqp091.Delivery) event.Message {
	return event.Message{
		Topic:           topic,
		ContentType:     d.ContentType,
		ContentEncoding: d.ContentEncoding,
		Timestamp:       millisOf(d.Timestamp),
		MessageID:       d.MessageId,
		Body:            d.Body,
	}
}

// dial opens the connection: TCP, TLS and log-in within dialTimeout, and given up at once when ctx is done.
func (s *Source) dial(ctx context.Context, b brokerurl.Broker) (*amqp091.Connection, error) {
	limit := dialTimeout
	if b.ConnectTimeout > 0 {
		limit = min(limit, b.ConnectTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dialer := net.Dialer{Timeout: connectTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", b.Address)
	if err != nil {
		return nil, err
	}
	// The library knows no context: closing the socket under it ends its handshake.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if b.TLS {
		secured := tls.Client(conn, b.TLSConfig(brokerurl.WithRoots(s.o.TLS, s.o.Roots)))
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("tls: %w", err)
		}
		conn = secured
	}
	properties := amqp091.NewConnectionProperties()
	properties.SetClientConnectionName("gatehouse " + s.o.Name)
	c, err := amqp091.Open(conn, amqp091.Config{
		Vhost:      b.VHost,
		SASL:       []amqp091.Authentication{&plainAuth{b.Username, b.Password, properties}},
		Heartbeat:  cmp.Or(s.o.Heartbeat, b.Heartbeat, defaultHeartbeat),
		Properties: properties,
		Locale:     "en_US",
	})
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the broker took the connection and did not complete the log-in within %s: %w", limit, err)
		}
		if e, ok := errors.AsType[*amqp091.Error](err); ok && !e.Server {
			return nil, fmt.Errorf("the broker closed the connection during log-in without saying why: %w", &handshakeError{err})
		}
		return nil, &handshakeError{err}
	}
	if !stop() { // the time was up just now, and the socket is closed
		_ = c.CloseDeadline(time.Now())
		return nil, fmt.Errorf("log-in took longer than %s", limit)
	}
	return c, nil
}

// plainAuth is SASL PLAIN. It also announces that we understand a connection.close after a failed log-in: the library
// does not, and a broker that must not say why it hangs up cannot be told from one that is restarting.
type plainAuth struct {
	username, password string
	properties         amqp091.Table
}

func (a *plainAuth) Mechanism() string { return "PLAIN" }

func (a *plainAuth) Response() string {
	// The library sets the capabilities right before it asks for the response.
	if capabilities, ok := a.properties["capabilities"].(amqp091.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return "\x00" + a.username + "\x00" + a.password
}
