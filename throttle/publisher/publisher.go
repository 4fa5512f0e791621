// Package publisher queues the events of admitted requests and delivers them to the traffic managers.
//
// Enqueue never blocks: it encodes the event into pooled memory and appends it to a bounded queue, one per group of
// endpoints, since every group gets every event. A full queue drops its oldest events, which would count in the wrong window
// anyway, and counts them; WSO2's gateways drop the newest. Whenever an endpoint is free it takes what is queued, at most one batch, so that a
// single event leaves at once and bursts leave in full batches: the sooner the traffic manager knows, the smaller the overshoot.
//
// A batch that fails goes to another endpoint of its group, or waits for one. An endpoint that failed is tried again after 1 s, doubling up to
// 30 s. In a load-balanced group every endpoint takes batches as it is able; in a fail-over group the first that works takes all of them, and
// the first in the list takes over again as soon as it is back. Events that waited longer than MaxAge are dropped and counted: after an
// outage they would throttle a window in which nothing happened.
package publisher

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/throttle"
	"gatehouse/throttle/databridge"
	"gatehouse/throttle/key"
)

// Endpoint is one way to a traffic manager. A Sender that also has Connect(context.Context) error is connected before it is given
// a batch; one that is an io.Closer is closed by Close.
type Endpoint struct {
	Name   string // for logs and state, "tcp://tm:9611"
	Sender throttle.Sender
}

// Group is a set of endpoints of which one gets each event.
type Group struct {
	Kind      string // for state: "databridge" or "nats"
	Failover  bool   // false: load balance
	Endpoints []Endpoint
}

// Options of a Publisher. Zero values mean the defaults named at each.
type Options struct {
	Groups []Group
	// QueueSize bounds the events queued per group, default 32768; QueueBytes their memory, default 64 MiB.
	QueueSize, QueueBytes int
	// BatchSize bounds the events of one batch, default and at most 200; a batch is never larger than 1 MiB.
	BatchSize int
	// MaxAge is how long an event may wait, default 60 s; negative means for ever.
	MaxAge time.Duration
	// FlushTimeout is how long Close lets the queues drain, default 5 s.
	FlushTimeout time.Duration

	// Headers, Query and Claims say which attributes of a request are published, for the conditions that the traffic manager evaluates.
	Headers, Query, Claims bool
	// HeaderNamesAsReceived publishes header names as they came; otherwise in lower case.
	HeaderNamesAsReceived bool
	// SecretHeaders and SecretQuery are never published, besides those that commonly hold credentials (Authorization, Cookie, ApiKey and
	// the like). Without regard to case.
	SecretHeaders, SecretQuery []string

	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// Now is the clock; nil means time.Now.
	Now func() time.Time

	// RetryMin and RetryMax bound the wait before a failed endpoint is tried again, default 1 s and 30 s.
	RetryMin, RetryMax time.Duration
}

const (
	maxBatchEvents = 200
	// maxBody leaves room for the head of the frame and the session.
	maxBody = databridge.MaxFrame - 1024
)

// Publisher queues and sends request events. Create it with New; its methods are safe for concurrent use.
type Publisher struct {
	o        Options
	props    properties
	encoders sync.Pool
	chunks   sync.Pool
	groups   []*group
	closing  atomic.Bool
	drain    chan struct{} // closed when no event comes any more
	cancel   context.CancelFunc
	running  sync.WaitGroup
	once     sync.Once

	lastDropLog atomic.Int64 // ms
	tooLarge    atomic.Bool  // said once

	published, dropped, stale, rejected, failed prometheus.Counter
}

// New starts a Publisher. Close ends it.
func New(o Options) *Publisher {
	if o.QueueSize <= 0 {
		o.QueueSize = 32768
	}
	if o.QueueBytes <= 0 {
		o.QueueBytes = 64 << 20
	}
	if o.BatchSize <= 0 || o.BatchSize > maxBatchEvents {
		o.BatchSize = maxBatchEvents
	}
	if o.MaxAge == 0 {
		o.MaxAge = time.Minute
	}
	if o.FlushTimeout <= 0 {
		o.FlushTimeout = 5 * time.Second
	}
	if o.RetryMin <= 0 {
		o.RetryMin = time.Second
	}
	if o.RetryMax < o.RetryMin {
		o.RetryMax = max(30*time.Second, o.RetryMin)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &Publisher{o: o, drain: make(chan struct{})}
	p.props = properties{
		headers: o.Headers, query: o.Query, claims: o.Claims, namesAsReceived: o.HeaderNamesAsReceived,
		secretHeaders: lowerSet(defaultSecretHeaders, o.SecretHeaders), secretQuery: lowerSet(defaultSecretQuery, o.SecretQuery),
	}
	p.encoders.New = func() any { return &encoder{p: &p.props} }
	p.chunks.New = func() any { return &chunk{buf: make([]byte, 0, chunkSize)} }
	p.metrics()

	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	for _, g := range o.Groups {
		if len(g.Endpoints) == 0 {
			continue
		}
		gr := &group{
			p: p, Group: g, q: newQueue(o.QueueSize, o.QueueBytes, &p.chunks),
			wake: make(chan struct{}, len(g.Endpoints)), changed: make(chan struct{}),
		}
		for i, e := range g.Endpoints {
			gr.endpoints = append(gr.endpoints, &endpoint{g: gr, index: i, Endpoint: e, since: o.Now()})
		}
		p.groups = append(p.groups, gr)
	}
	for _, g := range p.groups {
		for _, e := range g.endpoints {
			p.running.Go(func() { e.run(ctx) })
		}
	}
	return p
}

func (p *Publisher) metrics() {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_tm_events_total",
		Help: "Request events by what became of them: published, dropped (queue full), stale (waited too long), rejected (by the traffic manager), failed (a batch that is sent again).",
	}, []string{"result"})
	depth := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gatehouse_tm_queue_depth",
		Help: "Request events that wait for a traffic manager, over all groups.",
	}, func() float64 {
		var n int64
		for _, g := range p.groups {
			n += g.depth()
		}
		return float64(n)
	})
	if p.o.Registerer != nil {
		p.o.Registerer.MustRegister(events, depth)
	}
	p.published = events.WithLabelValues("published")
	p.dropped = events.WithLabelValues("dropped")
	p.stale = events.WithLabelValues("stale")
	p.rejected = events.WithLabelValues("rejected")
	p.failed = events.WithLabelValues("failed")
}

// Enqueue queues the event of one admitted request; now is its time in ms. It never blocks, and keeps neither r nor k. After Close it
// does nothing.
func (p *Publisher) Enqueue(r *throttle.Request, k *key.Keys, now int64) {
	if len(p.groups) == 0 || p.closing.Load() {
		return
	}
	e := p.encoders.Get().(*encoder)
	event := e.encode(r, k, now)
	if len(event)+4 > maxBody {
		// Even without properties larger than a frame: nothing can be done with it.
		p.rejected.Inc()
		if p.tooLarge.CompareAndSwap(false, true) {
			p.o.Logger.Error().Int("bytes", len(event)).Str("api", r.APIName).Str("path", r.APIContext).
				Msg("a request event is larger than a frame and was left out; further ones are only counted")
		}
	} else {
		for _, g := range p.groups {
			if dropped := g.q.push(event); dropped > 0 {
				p.dropped.Add(float64(dropped))
				p.logDrops(g, now)
			}
			g.signal()
		}
	}
	if cap(e.buf) > chunkSize {
		e.buf = nil
	}
	p.encoders.Put(e)
}

// logDrops writes one line per 10 s.
func (p *Publisher) logDrops(g *group, now int64) {
	last := p.lastDropLog.Load()
	if now-last < 10_000 && now >= last || !p.lastDropLog.CompareAndSwap(last, now) {
		return
	}
	p.o.Logger.Warn().Uint64("dropped_total", g.q.dropped.Load()).Int("queue_size", p.o.QueueSize).Str("group", g.name()).
		Msg("the queue of request events is full, the oldest are dropped: the traffic manager is away or too slow, and counts too little")
}

// group is the queue of a Group and the state of its endpoints.
type group struct {
	p *Publisher
	Group
	q         *queue
	endpoints []*endpoint

	waiting atomic.Int32
	wake    chan struct{} // one token for one waiting endpoint

	mu       sync.Mutex
	changed  chan struct{} // closed when the state of an endpoint changes
	returned []batch       // failed batches, oldest first
	back     int64         // events in returned
}

// batch is a piece of the stream in flight, body with room for the count in front.
type batch struct {
	body   []byte
	events int
	newest int64 // ms
}

func (g *group) name() string {
	if len(g.endpoints) == 1 {
		return g.endpoints[0].Name
	}
	return fmt.Sprintf("%s and %d more", g.endpoints[0].Name, len(g.endpoints)-1)
}

func (g *group) depth() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.q.events.Load() + g.back
}

// signal wakes one endpoint that waits for events.
func (g *group) signal() {
	if g.waiting.Load() > 0 {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

type endpointState uint8

const (
	starting endpointState = iota
	up
	down
)

// endpoint sends batches to one traffic manager, in its own goroutine.
type endpoint struct {
	g     *group
	index int
	Endpoint

	// under g.mu
	state   endpointState
	since   time.Time
	lastErr error

	published, failures atomic.Uint64
	lastLog             time.Time // of this goroutine
}

func (e *endpoint) set(s endpointState, err error) {
	g := e.g
	g.mu.Lock()
	defer g.mu.Unlock()
	e.lastErr = err
	if e.state == s {
		return
	}
	e.state, e.since = s, g.p.o.Now()
	close(g.changed)
	g.changed = make(chan struct{})
}

// may says whether it is this endpoint's turn: always in a load-balanced group, in a fail-over group when all before it are down. changed is closed
// when the answer may have changed.
func (e *endpoint) may() (ok bool, changed <-chan struct{}) {
	g := e.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.Failover {
		for _, before := range g.endpoints[:e.index] {
			if before.state != down {
				return false, g.changed
			}
		}
	}
	return true, g.changed
}

// retry gives the waits between attempts: from the smallest, doubling, to the largest, each a fifth more or less.
type retry struct {
	b       *backoff.ExponentialBackOff
	longest time.Duration
}

func newRetry(shortest, longest time.Duration) *retry {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = shortest, longest, 2, 0.2
	b.Reset()
	return &retry{b, longest}
}

func (r *retry) next() time.Duration { return min(max(r.b.NextBackOff(), 1), r.longest) }

func (r *retry) reset() { r.b.Reset() }

func (e *endpoint) run(ctx context.Context) {
	p := e.g.p
	wait := newRetry(p.o.RetryMin, p.o.RetryMax)
	connector, connects := e.Sender.(interface {
		Connect(ctx context.Context) error
	})
	var buf []byte
	for ctx.Err() == nil {
		if connects {
			if err := connector.Connect(ctx); err != nil {
				if !e.failed(ctx, err, wait) {
					return
				}
				continue
			}
		}
		if connects || e.state == starting {
			e.recovered()
		}
		for {
			b, ok := e.next(ctx, buf)
			if !ok {
				return
			}
			err := e.Sender.Send(ctx, throttle.Batch{Body: b.body, Events: b.events})
			if err == nil {
				wait.reset()
				e.recovered()
				e.published.Add(uint64(b.events))
				p.published.Add(float64(b.events))
				buf = b.body
				continue
			}
			e.failures.Add(1)
			if errors.Is(err, throttle.ErrBatchRejected) {
				p.rejected.Add(float64(b.events))
				p.o.Logger.Error().Err(err).Str("endpoint", e.Name).Int("events", b.events).Msg("request events rejected by the traffic manager, dropped")
				buf = b.body
				continue
			}
			p.failed.Add(float64(b.events))
			buf = nil // the batch keeps it
			e.set(down, err)
			e.g.giveBack(b)
			if !e.failed(ctx, err, wait) {
				return
			}
			break
		}
	}
}

// recovered marks the endpoint as working and says so once.
func (e *endpoint) recovered() {
	e.g.mu.Lock()
	before := e.state
	e.g.mu.Unlock()
	if before == up {
		return
	}
	e.set(up, nil)
	ev := e.g.p.o.Logger.Info().Str("endpoint", e.Name)
	if before == down {
		ev.Msg("traffic manager is back")
	} else {
		ev.Msg("publishing request events to the traffic manager")
	}
}

// failed marks the endpoint as down and waits for the next attempt; false means that the publisher ends.
func (e *endpoint) failed(ctx context.Context, err error, wait *retry) bool {
	p := e.g.p
	if ctx.Err() != nil {
		return false
	}
	e.set(down, err)
	pause := wait.next()
	if now := time.Now(); now.Sub(e.lastLog) >= time.Minute {
		e.lastLog = now
		p.o.Logger.Warn().Err(err).Str("endpoint", e.Name).Dur("retry_in", pause).
			Msg("traffic manager not reachable, request events go to another endpoint or wait")
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case <-p.drain:
		// Closing: one more attempt at once, then short ones until the time is over.
		select {
		case <-time.After(min(pause, 200*time.Millisecond)):
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// next waits for events that this endpoint may send. false means that there are no more and the publisher ends.
func (e *endpoint) next(ctx context.Context, buf []byte) (batch, bool) {
	g := e.g
	for ctx.Err() == nil {
		may, changed := e.may()
		if may {
			if b, ok := g.take(buf); ok {
				return b, true
			}
			g.waiting.Add(1)
			// Looked at again: what was pushed before the line above woke nobody.
			if b, ok := g.take(buf); ok {
				g.waiting.Add(-1)
				return b, true
			}
			select {
			case <-g.wake:
			case <-changed:
			case <-g.p.drain:
				g.waiting.Add(-1)
				if b, ok := g.take(buf); ok {
					return b, true
				}
				return batch{}, false
			case <-ctx.Done():
			}
			g.waiting.Add(-1)
			continue
		}
		// Another endpoint sends. While the publisher closes, this one stays as long as something could come back.
		drain := g.p.drain
		var again <-chan time.Time
		if g.p.closing.Load() {
			if g.depth() == 0 {
				return batch{}, false
			}
			drain, again = nil, time.After(20*time.Millisecond)
		}
		select {
		case <-changed:
		case <-drain:
		case <-again:
		case <-ctx.Done():
		}
	}
	return batch{}, false
}

// take returns a failed batch, or makes one of what is queued, in buf.
func (g *group) take(buf []byte) (batch, bool) {
	p := g.p
	oldest := int64(-1 << 62)
	if p.o.MaxAge > 0 {
		oldest = p.o.Now().Add(-p.o.MaxAge).UnixMilli()
	}
	g.mu.Lock()
	for len(g.returned) > 0 {
		b := g.returned[0]
		g.returned = g.returned[1:]
		g.back -= int64(b.events)
		if b.newest < oldest {
			p.stale.Add(float64(b.events))
			continue
		}
		g.mu.Unlock()
		return b, true
	}
	g.mu.Unlock()
	if g.q.events.Load() == 0 {
		return batch{}, false
	}
	body, n, stale := g.q.take(append(buf[:0], 0, 0, 0, 0), p.o.BatchSize, maxBody, oldest)
	if stale > 0 {
		p.stale.Add(float64(stale))
	}
	if n == 0 {
		return batch{}, false
	}
	binary.BigEndian.PutUint32(body, uint32(n))
	return batch{body: body, events: n, newest: p.o.Now().UnixMilli()}, true
}

// giveBack puts a failed batch in front of the queue. The queue may hold its bound besides one batch per endpoint.
func (g *group) giveBack(b batch) {
	g.mu.Lock()
	g.returned = append(g.returned, b)
	g.back += int64(b.events)
	g.mu.Unlock()
	g.signal()
}

// EndpointState is what State says of one endpoint.
type EndpointState struct {
	Name      string
	Connected bool
	Since     time.Time // of Connected
	Published uint64    // events
	Failures  uint64    // batches
	LastError string
}

// GroupState is what State says of one group.
type GroupState struct {
	Kind      string
	Mode      string // "loadbalance" or "failover"
	Connected bool   // one endpoint at least
	Published uint64
	Dropped   uint64
	Queue     int
	Endpoints []EndpointState
}

// State returns what the groups do at the moment.
func (p *Publisher) State() []GroupState {
	list := make([]GroupState, 0, len(p.groups))
	for _, g := range p.groups {
		s := GroupState{Kind: g.Kind, Mode: databridge.LoadBalance.String(), Queue: int(g.depth()), Dropped: g.q.dropped.Load()}
		if g.Failover {
			s.Mode = databridge.Failover.String()
		}
		g.mu.Lock()
		for _, e := range g.endpoints {
			es := EndpointState{Name: e.Name, Connected: e.state == up, Since: e.since, Published: e.published.Load(), Failures: e.failures.Load()}
			if e.lastErr != nil {
				es.LastError = e.lastErr.Error()
			}
			s.Connected = s.Connected || es.Connected
			s.Published += es.Published
			s.Endpoints = append(s.Endpoints, es)
		}
		g.mu.Unlock()
		list = append(list, s)
	}
	return list
}

// Close takes no more events, lets the queues drain for at most FlushTimeout, ends the goroutines and closes the senders. The error says what was
// lost.
func (p *Publisher) Close() error {
	var err error
	p.once.Do(func() { err = p.close() })
	return err
}

func (p *Publisher) close() error {
	p.closing.Store(true)
	close(p.drain)
	done := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() {
		p.running.Wait()
		close(done)
	})
	t := time.NewTimer(p.o.FlushTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	p.cancel()
	waiter.Wait()
	var errs []error
	var lost int64
	for _, g := range p.groups {
		if n := g.depth(); n > 0 {
			lost += n
			errs = append(errs, fmt.Errorf("%d request events for %s were not sent before the end", n, g.name()))
		}
		for _, e := range g.endpoints {
			if c, ok := e.Sender.(io.Closer); ok {
				if err := c.Close(); err != nil {
					errs = append(errs, fmt.Errorf("close %s: %w", e.Name, err))
				}
			}
		}
	}
	if lost > 0 {
		p.dropped.Add(float64(lost))
		p.o.Logger.Warn().Int64("events", lost).Msg("request events lost at the end: no traffic manager took them in time")
	}
	return errors.Join(errs...)
}

// Dial makes groups of databridge clients of parsed URL groups; o gives what all clients share. The error names the URL.
func Dial(groups []databridge.URLGroup, o databridge.Options) ([]Group, error) {
	var list []Group
	for _, ug := range groups {
		g := Group{Kind: "databridge", Failover: ug.Mode == databridge.Failover}
		for _, e := range ug.Endpoints {
			o.Endpoint = e
			c, err := databridge.New(o)
			if err != nil {
				return nil, err
			}
			g.Endpoints = append(g.Endpoints, Endpoint{Name: e.URL, Sender: c})
		}
		list = append(list, g)
	}
	return list, nil
}
