// Package nats brings the API Manager's events over NATS: published directly, or by the relay. Contract: events.md 1.6.
//
// The client library could reconnect by itself. It is told not to: which connection a message belongs to, and that
// everything is subscribed before anyone hears of a connection, would then be a matter of its timing. A lost connection
// ends the session as it does with AMQP, and the same loop dials again.
package nats

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/supervisor"
)

// Subjects of the contract.
const (
	eventPrefix    = "gatehouse.event."
	decisionPrefix = "gatehouse.decision."
	gapSubject     = "gatehouse.relay.gap"
)

const (
	defaultHeartbeat = 3 * time.Second
	defaultPending   = 65536
	pendingBytes     = 64 << 20
	// dialTimeout bounds TCP, TLS and log-in together; connectTimeout TCP alone: a host that was down and comes back
	// hears of a new attempt sooner than of the old one, whose repetitions come ever later.
	dialTimeout    = 5 * time.Second
	connectTimeout = 1500 * time.Millisecond
	// gapPause is the least time between two gaps that are told: what is answered to one must not make the next.
	gapPause = time.Second
	// readTimeout bounds the reading of one stream; live messages wait for it.
	readTimeout = 10 * time.Second
	// awayMargin is added before the loss of a connection that was noticed late, beside the pings it took.
	awayMargin = 2 * time.Second
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
	// Heartbeat is the interval between pings; a dead peer shows after three. 0: 3 s.
	Heartbeat time.Duration
	// Pending is how many messages of a topic may wait for the handler; more are lost, which is a Gap. 0: 65536.
	Pending int
	// RefusedDelay is the pause after refused credentials. 0: 60 s.
	RefusedDelay time.Duration
	// MinPause and MaxPause bound the pause between two rounds over the brokers. 0: 200 ms and 800 ms, a quarter off
	// either way.
	MinPause, MaxPause time.Duration
	Logger             zerolog.Logger
	// Registerer takes the metrics; nil means none. Sources of one registry may share a name.
	Registerer prometheus.Registerer
}

// Source is one connection to one of a set of NATS servers. It implements eventsource.Source.
type Source struct {
	o          Options
	log        zerolog.Logger
	supervisor *supervisor.Supervisor
	// lost is from when on messages may be missing: before the last connection ended. Zero before the first one, which
	// is followed by a fetch of everything and has nothing to make up for. Sessions, one after the other, use it.
	lost time.Time
}

var _ eventsource.Source = (*Source)(nil)

// New checks the options. It does not connect; Run does.
func New(o Options) (*Source, error) {
	sup, err := supervisor.New(supervisor.Options{
		Name: o.Name, Protocol: brokerurl.NATS, Brokers: o.Brokers, Topics: o.Topics, RefusedDelay: o.RefusedDelay,
		MinPause: o.MinPause, MaxPause: o.MaxPause, Logger: o.Logger, Registerer: o.Registerer,
	})
	if err != nil {
		return nil, err
	}
	o.Topics = slices.Clone(o.Topics)
	o.Heartbeat = cmp.Or(o.Heartbeat, defaultHeartbeat)
	o.Pending = cmp.Or(o.Pending, defaultPending)
	return &Source{o: o, log: o.Logger.With().Str("source", o.Name).Logger(), supervisor: sup}, nil
}

// Name is the name given to New.
func (s *Source) Name() string { return s.o.Name }

// Kind is "nats".
func (s *Source) Kind() string { return brokerurl.NATS }

// Run connects, and connects again for ever, until ctx is done; its error is ctx's. It must run once at a time.
func (s *Source) Run(ctx context.Context, h eventsource.Handler) error {
	return s.supervisor.Run(ctx, h, s.session)
}

// notices are what the library says of a connection, from goroutines of its own.
type notices struct {
	closed chan struct{} // closed with the connection
	gap    chan error    // the newest one that nobody has read
	denied chan error
}

// say keeps err unless one waits already: one loss is as bad as several.
func say(c chan<- error, err error) {
	select {
	case c <- err:
	default:
	}
}

func tooSlow(sub *natsgo.Subscription) error {
	return fmt.Errorf("the handler of %s was too slow: messages were dropped", sub.Subject)
}

// session connects to one server and delivers until the connection is lost or ctx is done.
func (s *Source) session(ctx context.Context, b brokerurl.Broker, link *supervisor.Link) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := notices{closed: make(chan struct{}), gap: make(chan error, 1), denied: make(chan error, 1)}
	conn, err := s.dial(ctx, b, n)
	if err != nil {
		return err
	}
	// Close does not wait for the library's goroutines; its last callback does.
	defer func() { conn.Close(); <-n.closed }()

	subscriptions := make([]*natsgo.Subscription, 0, len(s.o.Topics))
	for _, topic := range s.o.Topics {
		sub, err := conn.SubscribeSync(eventPrefix + strings.ToLower(topic))
		if err == nil {
			err = sub.SetPendingLimits(s.o.Pending, pendingBytes)
		}
		if err != nil {
			return fmt.Errorf("subscribe to topic %s at %s: %w", topic, b.Address, err)
		}
		subscriptions = append(subscriptions, sub)
	}
	gaps, err := conn.SubscribeSync(gapSubject)
	if err != nil {
		return fmt.Errorf("subscribe to %s at %s: %w", gapSubject, b.Address, err)
	}
	// The answer to a ping comes after the server has taken all subscriptions, or has denied one.
	flushed, cancelFlush := context.WithTimeout(ctx, dialTimeout)
	defer cancelFlush()
	if err := conn.FlushWithContext(flushed); err != nil {
		return fmt.Errorf("subscribe at %s: %w", b.Address, err)
	}
	if err := conn.LastError(); errors.Is(err, natsgo.ErrPermissionViolation) {
		return supervisor.Refused(fmt.Errorf("subscribe at %s: %w", b.Address, err))
	}
	away := s.lost
	link.Connected()
	// By the clock of this machine; the margin covers some difference to the server's.
	defer func() { s.lost = time.Now().Add(-3*s.o.Heartbeat - awayMargin) }()

	delivery, stop := context.WithCancel(ctx)
	var consumers sync.WaitGroup
	// The consumers must have returned before anyone hears of the loss.
	defer consumers.Wait()
	defer stop()
	for i, sub := range subscriptions {
		consumers.Go(func() { s.consume(delivery, conn, s.o.Topics[i], sub, away, link, n.gap) })
	}
	consumers.Go(func() {
		for {
			m, err := gaps.NextMsgWithContext(delivery)
			if err != nil {
				return
			}
			say(n.gap, relayGap(m.Data))
		}
	})
	// gap is the newest one that waits for its turn.
	var gap error
	pause := time.NewTimer(0)
	defer pause.Stop()
	paused := true
	tell := func() {
		link.Gap(gap)
		gap, paused = nil, true
		pause.Reset(gapPause)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.closed:
			return fmt.Errorf("connection to %s: %w", b.Address, cmp.Or(conn.LastError(), errors.New("closed")))
		case err := <-n.denied:
			return supervisor.Refused(fmt.Errorf("connection to %s: %w", b.Address, err))
		case gap = <-n.gap:
			if !paused {
				tell()
			}
		case <-pause.C:
			if paused = false; gap != nil {
				tell()
			}
		}
	}
}

// consume hands the messages of one topic over, in their order. What the relay's streams hold comes before what is live:
// the last decision of each key, which is in no list that could be fetched, and what was published while we were away,
// which a fetch of everything makes up for as well, but later. What comes twice does no harm.
func (s *Source) consume(ctx context.Context, conn *natsgo.Conn, topic string, sub *natsgo.Subscription, away time.Time, link *supervisor.Link, gap chan<- error) {
	if topic == event.TopicThrottleData {
		s.read(ctx, conn, decisionPrefix+">", topic, link, jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{decisionPrefix + ">"}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
		})
	}
	if !away.IsZero() {
		s.read(ctx, conn, sub.Subject, topic, link, jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{sub.Subject}, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &away,
		})
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		switch {
		case err == nil:
			link.Deliver(message(topic, m))
		case errors.Is(err, natsgo.ErrSlowConsumer):
			// The error handler has said it when the first message was dropped. Others may have been since, after the fetch
			// that was its answer began. What still waits is good.
			say(gap, tooSlow(sub))
		default:
			return
		}
	}
}

// read delivers what the stream of a subject holds, if there is a stream, and logs when it cannot.
func (s *Source) read(ctx context.Context, conn *natsgo.Conn, subject, topic string, link *supervisor.Link, c jetstream.OrderedConsumerConfig) {
	limited, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	n, err := readStream(limited, conn, subject, topic, link, c)
	if err != nil && ctx.Err() == nil {
		s.log.Warn().Err(err).Str("subject", subject).Int("read", n).
			Msg("kept messages could not be read; a fetch of everything and the next change make up for them")
	}
}

// readStream delivers what was in the stream when it began, and returns how much that was.
func readStream(ctx context.Context, conn *natsgo.Conn, subject, topic string, link *supervisor.Link, c jetstream.OrderedConsumerConfig) (int, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return 0, err
	}
	name, err := js.StreamNameBySubject(ctx, subject)
	for _, none := range []error{
		jetstream.ErrStreamNotFound, natsgo.ErrNoResponders, jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount,
	} {
		if errors.Is(err, none) {
			return 0, nil // events come without a relay
		}
	}
	if err != nil {
		return 0, fmt.Errorf("find the stream: %w", err)
	}
	consumer, err := js.OrderedConsumer(ctx, name, c)
	if err != nil {
		return 0, fmt.Errorf("read stream %s: %w", name, err)
	}
	left := consumer.CachedInfo().NumPending
	read := 0
	for left > 0 {
		batch, err := consumer.Fetch(int(min(left, 1000)), jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return read, fmt.Errorf("read stream %s: %w", name, err)
		}
		got := uint64(0)
		for m := range batch.Messages() {
			link.Deliver(messageOf(topic, m.Headers(), m.Data()))
			got++
		}
		if err := batch.Error(); err != nil {
			return read, fmt.Errorf("read stream %s: %w", name, err)
		}
		if got == 0 { // what was pending has been replaced or has expired
			return read, ctx.Err()
		}
		read += int(got)
		left -= min(left, got)
	}
	return read, nil
}

func message(topic string, m *natsgo.Msg) event.Message { return messageOf(topic, m.Header, m.Data) }

func messageOf(topic string, h natsgo.Header, body []byte) event.Message {
	sent, _ := strconv.ParseInt(h.Get("Gatehouse-Sent"), 10, 64)
	return event.Message{
		Topic:       topic,
		ContentType: h.Get("Content-Type"),
		Timestamp:   max(sent, 0),
		MessageID:   h.Get(natsgo.MsgIdHdr),
		Body:        body,
	}
}

// relayGap says in words what the relay says of the time it was blind; whatever it says, messages were lost.
func relayGap(body []byte) error {
	var g struct{ From, To int64 }
	if err := json.Unmarshal(body, &g); err != nil || g.From <= 0 || g.To < g.From {
		return errors.New("the relay lost its own source for some time")
	}
	from, to := time.UnixMilli(g.From).UTC(), time.UnixMilli(g.To).UTC()
	return fmt.Errorf("the relay had no source from %s to %s", from.Format(time.RFC3339Nano), to.Format(time.RFC3339Nano))
}

// dial opens the connection; the library's notices go to n.
func (s *Source) dial(ctx context.Context, b brokerurl.Broker, n notices) (*natsgo.Conn, error) {
	limit := dialTimeout
	if b.ConnectTimeout > 0 {
		limit = min(limit, b.ConnectTimeout)
	}
	scheme := "nats://"
	options := []natsgo.Option{
		natsgo.Name("gatehouse " + s.o.Name),
		natsgo.NoReconnect(),
		natsgo.Timeout(limit),
		natsgo.SetCustomDialer(contextDialer{ctx, min(limit, connectTimeout)}),
		natsgo.PingInterval(s.o.Heartbeat),
		natsgo.MaxPingsOutstanding(2),
		natsgo.ClosedHandler(func(*natsgo.Conn) { close(n.closed) }),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, sub *natsgo.Subscription, err error) {
			switch {
			case errors.Is(err, natsgo.ErrSlowConsumer) && sub != nil:
				say(n.gap, tooSlow(sub))
			case errors.Is(err, natsgo.ErrPermissionViolation) && sub != nil:
				say(n.denied, err)
			default:
				s.log.Warn().Err(err).Stringer("broker", b).Msg("NATS reports a fault")
			}
		}),
	}
	switch {
	case b.Username != "" && b.Password == "":
		options = append(options, natsgo.Token(b.Username))
	case b.Username != "":
		options = append(options, natsgo.UserInfo(b.Username, b.Password))
	}
	if b.TLS {
		scheme = "tls://"
		options = append(options, natsgo.Secure(b.TLSConfig(brokerurl.WithRoots(s.o.TLS, s.o.Roots))))
	}
	conn, err := natsgo.Connect(scheme+b.Address, options...)
	if err == nil {
		return conn, nil
	}
	err = fmt.Errorf("connect to %s: %w", b.Address, err)
	for _, refusal := range []error{
		natsgo.ErrAuthorization, natsgo.ErrAuthExpired, natsgo.ErrAuthRevoked, natsgo.ErrAccountAuthExpired,
	} {
		if errors.Is(err, refusal) {
			return nil, supervisor.Refused(err)
		}
	}
	return nil, err
}

// contextDialer gives the library connections that end with the session's context, in the middle of a log-in too.
type contextDialer struct {
	ctx   context.Context
	limit time.Duration
}

func (d contextDialer) Dial(network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: d.limit}
	conn, err := dialer.DialContext(d.ctx, network, address)
	if err == nil {
		context.AfterFunc(d.ctx, func() { _ = conn.Close() })
	}
	return conn, err
}
