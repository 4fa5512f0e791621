package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Message is one message as it goes to the broker.
type Message struct {
	Topic       string
	ContentType string
	// ContentEncoding is UTF-8 for text and empty for maps.
	ContentEncoding string
	// TimestampMillis is the AMQP timestamp property, in milliseconds as Andes writes it; 0 leaves it out.
	TimestampMillis int64
	// NoHeaders leaves the Andes header table out.
	NoHeaders bool
	Body      []byte
}

// transport is a connection to a broker.
type transport interface {
	send(ctx context.Context, m Message) error
	// flush waits until the broker has what was sent.
	flush(ctx context.Context) error
	close()
}

// Knobs are the faults of a hub. The zero value publishes every message once, in order and at once.
type Knobs struct {
	// Swap holds the next message back until the one after it went out, Swap times.
	Swap int
	// Duplicate sends each of the next messages twice.
	Duplicate int
	// Drop loses each of the next messages.
	Drop int
	// Delay waits before each message, for as long as the knob stands.
	Delay time.Duration
}

// Stats are the counts of a hub.
type Stats struct {
	// Published counts what the broker was given, by topic; Lost what found no connection; Dropped what Knobs.Drop lost.
	Published     map[string]int
	Lost, Dropped int
	Connected     bool
}

// Options configure a Hub.
type Options struct {
	// URL is nats://host:port or amqp://user:password@host:port/vhost; empty starts a NATS server in this process.
	URL string
	// NATSAddress is where the server of this process listens: host:port, "" for a free port on loopback.
	NATSAddress string
	// Encoding is the body of every topic until SetEncoding says otherwise; empty is JSON.
	Encoding Encoding
}

// Hub publishes on one broker. Like the API Manager's own publisher it queues, keeps the order, and loses what it cannot
// send: nothing is stored for a gateway that is away. It is safe for concurrent use.
type Hub struct {
	url    string
	server *natsServer // nil unless the broker is in this process
	dial   func(ctx context.Context) (transport, error)

	mu        sync.Mutex
	cond      *sync.Cond
	encoding  map[string]Encoding
	fallback  Encoding
	knobs     Knobs
	held      *Message
	queue     []Message
	sending   bool
	published map[string]int
	lost      int
	dropped   int
	conn      transport
	closed    bool

	cancel context.CancelFunc
	done   sync.WaitGroup
	dirty  chan struct{}
}

const maxQueue = 1 << 20 // messages; beyond that new ones are lost, as the manager's own queue loses them

// Open connects to the broker, or starts one. It fails when the broker cannot be reached now; later losses are repaired
// in the background.
func Open(ctx context.Context, o Options) (*Hub, error) {
	h := &Hub{
		encoding:  map[string]Encoding{},
		fallback:  o.Encoding,
		published: map[string]int{},
		dirty:     make(chan struct{}, 1),
	}
	h.cond = sync.NewCond(&h.mu)
	if h.fallback == "" {
		h.fallback = JSON
	}
	if h.fallback.ContentType() == "" {
		return nil, fmt.Errorf("event hub: encoding %q is not known: use %q, %q or %q", h.fallback, JSON, AMQPMap, JMSMap)
	}
	if o.URL == "" {
		s, err := startNATS(o.NATSAddress)
		if err != nil {
			return nil, err
		}
		h.server, h.url = s, s.url()
		h.dial = func(ctx context.Context) (transport, error) { return dialNATS(ctx, s.url()) }
	} else {
		u, err := url.Parse(o.URL)
		if err != nil {
			return nil, errors.New("event hub: the address is no URL: use nats://host:port or amqp://user:password@host:port/vhost")
		}
		h.url = o.URL
		switch u.Scheme {
		case "nats":
			h.dial = func(ctx context.Context) (transport, error) { return dialNATS(ctx, o.URL) }
		case "amqp", "amqps":
			h.dial = func(ctx context.Context) (transport, error) { return dialAMQP(ctx, o.URL) }
		default:
			return nil, fmt.Errorf("event hub: scheme %q is not known: use nats:// or amqp://", u.Scheme)
		}
	}
	conn, err := h.dial(ctx)
	if err != nil {
		if h.server != nil {
			h.server.stop()
		}
		return nil, err
	}
	h.conn = conn
	run, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.done.Go(func() {
		h.run(run)
	})
	return h, nil
}

// URL is what a gateway puts into event_listening_endpoints.
func (h *Hub) URL() string { return h.url }

// Embedded says whether the broker runs in this process.
func (h *Hub) Embedded() bool { return h.server != nil }

// SetEncoding switches the body of a topic at run time.
func (h *Hub) SetEncoding(topic string, e Encoding) error {
	if e.ContentType() == "" {
		return fmt.Errorf("encoding %q is not known: use %q, %q or %q", e, JSON, AMQPMap, JMSMap)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.encoding[topic] = e
	return nil
}

// SetKnobs replaces the faults.
func (h *Hub) SetKnobs(k Knobs) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.knobs = k
	if k.Swap == 0 && h.held != nil { // nothing stays held back for ever
		h.push(*h.held)
		h.held = nil
	}
}

// Publish queues an event. at is its time in milliseconds since the epoch.
func (h *Hub) Publish(topic string, p Payload, at int64) error {
	h.mu.Lock()
	e, ok := h.encoding[topic]
	if !ok {
		e = h.fallback
	}
	h.mu.Unlock()
	body, err := p.Encode(e)
	if err != nil {
		return fmt.Errorf("event for %s: %w", topic, err)
	}
	m := Message{Topic: topic, ContentType: e.ContentType(), TimestampMillis: at, Body: body}
	if e == JSON {
		m.ContentEncoding = "UTF-8"
	}
	h.PublishRaw(m)
	return nil
}

// PublishRaw queues a message as it is: malformed bodies, odd content types, samples.
func (h *Hub) PublishRaw(m Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := &h.knobs
	if k.Drop > 0 {
		k.Drop--
		h.dropped++
		return
	}
	if h.held != nil {
		h.push(m)
		h.push(*h.held)
		h.held = nil
		return
	}
	if k.Swap > 0 {
		k.Swap--
		h.held = &m
		return
	}
	h.push(m)
	if k.Duplicate > 0 {
		k.Duplicate--
		h.push(m)
	}
}

func (h *Hub) push(m Message) {
	if h.closed || len(h.queue) >= maxQueue {
		h.lost++
		return
	}
	h.queue = append(h.queue, m)
	select {
	case h.dirty <- struct{}{}:
	default:
	}
}

// Flush waits until the broker has everything that was published, or it is lost. A message that Knobs.Swap holds back is not
// waited for.
func (h *Hub) Flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cond.Broadcast()
	})
	defer stop()
	h.mu.Lock()
	for (len(h.queue) > 0 || h.sending) && !h.closed {
		if ctx.Err() != nil {
			left := len(h.queue)
			h.mu.Unlock()
			return fmt.Errorf("flush of the event hub, %d messages left: %w", left, ctx.Err())
		}
		h.cond.Wait()
	}
	conn := h.conn
	h.mu.Unlock()
	if conn == nil {
		return nil
	}
	if err := conn.flush(ctx); err != nil && ctx.Err() != nil { // a connection that broke has lost what it had
		return err
	}
	return nil
}

// Stats returns the counts so far.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Stats{Published: map[string]int{}, Lost: h.lost, Dropped: h.dropped, Connected: h.conn != nil}
	maps.Copy(s.Published, h.published)
	return s
}

// Stop takes the broker of this process away: every connection breaks. Changes go on and their events are lost.
func (h *Hub) Stop() error {
	if h.server == nil {
		return errors.New("the broker is not in this process: stop it where it runs")
	}
	h.server.stop()
	return nil
}

// Start brings the broker of this process back on the same address.
func (h *Hub) Start() error {
	if h.server == nil {
		return errors.New("the broker is not in this process: start it where it runs")
	}
	return h.server.start()
}

// Close ends the hub and waits for its goroutine.
func (h *Hub) Close() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.closed = true
	h.cond.Broadcast()
	h.mu.Unlock()
	h.cancel()
	h.done.Wait()
	h.mu.Lock()
	if h.conn != nil {
		h.conn.close()
		h.conn = nil
	}
	h.mu.Unlock()
	if h.server != nil {
		h.server.stop()
	}
}

// run sends what is queued and redials what broke. A message that meets no connection is lost.
func (h *Hub) run(ctx context.Context) {
	var lastDial time.Time
	for {
		h.mu.Lock()
		batch := h.queue
		h.queue = nil
		h.sending = len(batch) > 0
		conn, delay := h.conn, h.knobs.Delay
		h.mu.Unlock()

		sent, lost := map[string]int{}, 0
		for _, m := range batch {
			if delay > 0 && !sleep(ctx, delay) {
				break
			}
			if conn == nil && time.Since(lastDial) > 100*time.Millisecond {
				lastDial = time.Now()
				conn, _ = h.redial(ctx)
			}
			if conn == nil {
				lost++
				continue
			}
			err := conn.send(ctx, m)
			if err != nil { // the connection broke since the last message: one more try on a new one
				h.setConn(nil)
				conn.close()
				lastDial = time.Now()
				if conn, _ = h.redial(ctx); conn != nil {
					err = conn.send(ctx, m)
				}
			}
			if err != nil {
				lost++
				continue
			}
			sent[m.Topic]++
		}
		h.mu.Lock()
		h.sending = false
		h.lost += lost
		for k, v := range sent {
			h.published[k] += v
		}
		more := len(h.queue) > 0
		h.cond.Broadcast()
		h.mu.Unlock()
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-h.dirty:
		case <-time.After(250 * time.Millisecond):
			if conn == nil { // so that the next event finds a connection
				lastDial = time.Now()
				_, _ = h.redial(ctx)
			}
		}
	}
}

func (h *Hub) redial(ctx context.Context) (transport, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := h.dial(ctx)
	if err != nil {
		return nil, err
	}
	h.setConn(conn)
	return conn, nil
}

func (h *Hub) setConn(c transport) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn = c
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Topics lists the topics that a gateway subscribes.
func Topics() []string {
	return slices.Clone([]string{TopicThrottleData, TopicTokenRevocation, TopicNotification, TopicKeyManager, TopicCacheInvalidation, TopicAsyncWebhooks})
}
