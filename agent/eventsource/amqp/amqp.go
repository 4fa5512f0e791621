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
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
)

const (
	defaultHeartbeat = 3 * time.Second
	defaultPrefetch  = 100
	// dialTimeout bounds TCP, TLS and log-in together, so that a broker that takes connections and says nothing does
	// not keep the next one waiting.
	dialTimeout = 5 * time.Second
	// refusedDelay is the pause after refused credentials or an unknown virtual host: nothing but a change of
	// configuration helps, and brokers lock accounts that knock each second.
	refusedDelay = 60 * time.Second
	// stableAfter is how long a session must hold to count as one; a broker that ends each at once is no reason to dial
	// without a pause.
	stableAfter  = 5 * time.Second
	closeTimeout = time.Second
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
	// Heartbeat is the interval between signs of life; a dead peer shows after three. 0: the URL's, else 3 s.
	Heartbeat time.Duration
	// Prefetch is how many messages of a topic the broker sends ahead of their settling. 0: 100.
	Prefetch int
	// RefusedDelay is the pause after refused credentials or an unknown virtual host. 0: 60 s.
	RefusedDelay time.Duration
	Logger       zerolog.Logger
	// Registerer takes the metrics; nil means none. Sources of one registry may share a name.
	Registerer prometheus.Registerer
}

// Source is one connection to one of a set of brokers. It implements eventsource.Source.
type Source struct {
	o       Options
	log     zerolog.Logger
	metrics metrics
}

var _ eventsource.Source = (*Source)(nil)

// New checks the options. It does not connect; Run does.
func New(o Options) (*Source, error) {
	if len(o.Brokers) == 0 {
		return nil, fmt.Errorf("event source %s: no broker is named", o.Name)
	}
	for _, b := range o.Brokers {
		if b.Protocol != brokerurl.AMQP {
			return nil, fmt.Errorf("event source %s: %s is not an AMQP broker", o.Name, b)
		}
	}
	if len(o.Topics) == 0 {
		return nil, fmt.Errorf("event source %s: no topic is named", o.Name)
	}
	for i, topic := range o.Topics {
		if slices.Contains(o.Topics[:i], topic) {
			return nil, fmt.Errorf("event source %s: topic %s is named twice", o.Name, topic)
		}
	}
	o.Prefetch = cmp.Or(o.Prefetch, defaultPrefetch)
	o.RefusedDelay = cmp.Or(o.RefusedDelay, refusedDelay)
	o.Brokers = slices.Clone(o.Brokers)
	o.Topics = slices.Clone(o.Topics)
	s := &Source{o: o, log: o.Logger.With().Str("source", o.Name).Logger()}
	var err error
	if s.metrics, err = newMetrics(o.Registerer, o.Name); err != nil {
		return nil, fmt.Errorf("event source %s: %w", o.Name, err)
	}
	return s, nil
}

// Name is the name given to New.
func (s *Source) Name() string { return s.o.Name }

// Kind is "amqp".
func (s *Source) Kind() string { return "amqp" }

// Run connects, and connects again for ever, until ctx is done; its error is ctx's. It must run once at a time.
func (s *Source) Run(ctx context.Context, h eventsource.Handler) error {
	states := stateFilter{h: h}
	// 200 ms doubled to 800 ms, a quarter off either way: never more than a second between two dials.
	pause := backoff.ExponentialBackOff{
		InitialInterval: 200 * time.Millisecond, Multiplier: 2, MaxInterval: 800 * time.Millisecond, RandomizationFactor: 0.25,
	}
	pause.Reset()
	good := 0 // the broker that was connected to last
	refusedUntil := make([]time.Time, len(s.o.Brokers))
	states.report(eventsource.State{Kind: eventsource.Connecting, Address: s.o.Brokers[0].Address})
	for {
		// One round over the list, from the last good broker on.
		for i := range s.o.Brokers {
			n := (good + i) % len(s.o.Brokers)
			broker := s.o.Brokers[n]
			if time.Now().Before(refusedUntil[n]) {
				continue
			}
			began := time.Now()
			connected, err := s.session(ctx, broker, h, &states)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if connected {
				good = n
			}
			if connected && time.Since(began) >= stableAfter {
				pause.Reset()
			}
			kind := eventsource.Disconnected
			if isRefusal(err) {
				kind = eventsource.Refused
				refusedUntil[n] = time.Now().Add(s.o.RefusedDelay)
			}
			if states.report(eventsource.State{Kind: kind, Address: broker.Address, Err: err}) {
				s.logLoss(broker, kind, connected, err)
			}
			if connected {
				break // start again with this one
			}
		}
		wait := pause.NextBackOff()
		if soonest := slices.MinFunc(refusedUntil, time.Time.Compare); time.Until(soonest) > wait {
			wait = time.Until(soonest) // every broker refuses us
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func (s *Source) logLoss(broker brokerurl.Broker, kind eventsource.StateKind, connected bool, err error) {
	e := s.log.Warn()
	message := "event source cannot connect; trying again until it can"
	switch {
	case kind == eventsource.Refused:
		e = s.log.Error()
		message = "event source is refused by the broker; check user, password and virtual host"
	case connected:
		message = "event source lost its connection; connecting again"
	}
	e.Err(err).Stringer("broker", broker).Msg(message)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// stateFilter passes changes on and keeps repetitions back.
type stateFilter struct {
	h    eventsource.Handler
	last eventsource.State
	text string
	any  bool
}

// report is true when the state was passed on.
func (f *stateFilter) report(s eventsource.State) bool {
	text := ""
	if s.Err != nil {
		text = s.Err.Error()
	}
	if f.any && s.Kind == f.last.Kind && s.Kind != eventsource.Connected && s.Address == f.last.Address && text == f.text {
		return false
	}
	s.Since = time.Now()
	f.last, f.text, f.any = s, text, true
	f.h.OnState(s)
	return true
}

// isRefusal is true when the broker itself said no, for good: 403 and 530 for credentials, permissions and virtual
// hosts (RabbitMQ; Andes for credentials), 404 for an unknown virtual host (Andes). The client library gives the same
// codes when the connection merely broke while logging in; then Server is false, and dialing again is right.
func isRefusal(err error) bool {
	e, ok := errors.AsType[*amqp091.Error](err)
	if !ok || !e.Server {
		return false
	}
	var during *handshakeError
	inHandshake := errors.As(err, &during)
	switch e.Code {
	case amqp091.AccessRefused:
		return true
	case amqp091.NotAllowed, amqp091.NotFound, amqp091.InvalidPath:
		return inHandshake
	}
	return false
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
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", b.Address)
	if err != nil {
		return nil, err
	}
	// The library knows no context: closing the socket under it ends its handshake.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if b.TLS {
		secured := tls.Client(conn, tlsConfig(s.o.TLS, b))
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
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
		conn.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the broker took the connection and did not complete the log-in within %s: %w", limit, err)
		}
		if e, ok := errors.AsType[*amqp091.Error](err); ok && !e.Server {
			return nil, fmt.Errorf("the broker closed the connection during log-in without saying why: %w", &handshakeError{err})
		}
		return nil, &handshakeError{err}
	}
	if !stop() { // the time was up just now, and the socket is closed
		c.CloseDeadline(time.Now())
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

func tlsConfig(base *tls.Config, b brokerurl.Broker) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if base != nil {
		c = base.Clone()
	}
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(b.Address)
	}
	if b.SkipVerifyHostname && !c.InsecureSkipVerify {
		// Everything but the name is checked.
		roots := c.RootCAs
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(state tls.ConnectionState) error { return verifyChain(state, roots) }
	}
	return c
}
