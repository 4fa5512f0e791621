// Package supervisor keeps one connection to one of several brokers: the loop that the event sources of every protocol
// share. It decides which broker is dialled when, says each change of state once, and counts. Contract: events.md 7.3
// rules 7 and 8.
package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
)

const (
	// defaultRefusedDelay is the pause after refused credentials: nothing but a change of configuration helps, and
	// brokers lock accounts that knock each second.
	defaultRefusedDelay = 60 * time.Second
	defaultMinPause     = 200 * time.Millisecond
	defaultMaxPause     = 800 * time.Millisecond
	// stableAfter is how long a connection must hold to start the pauses anew; a broker that ends each at once is no
	// reason to dial without a pause.
	stableAfter = 5 * time.Second
)

// Options are what New needs.
type Options struct {
	// Name is that of the event source; it labels logs and metrics.
	Name string
	// Protocol is what every broker must speak, brokerurl.AMQP or brokerurl.NATS.
	Protocol string
	// Brokers are tried in this order, round and round, beginning with the last good one.
	Brokers []brokerurl.Broker
	// Topics are the documented names, each once.
	Topics []string
	// RefusedDelay is the pause before a broker that refused us is dialled again. 0: 60 s.
	RefusedDelay time.Duration
	// MinPause and MaxPause bound the pause between two rounds over the brokers, which doubles from the one to the
	// other; a quarter is taken off or added at random. 0: 200 ms and 800 ms, so never more than a second.
	MinPause, MaxPause time.Duration
	Logger             zerolog.Logger
	// Registerer takes the metrics; nil means none. Sources of one registry may share a name.
	Registerer prometheus.Registerer
}

// Supervisor connects, and connects again for ever.
type Supervisor struct {
	o       Options
	log     zerolog.Logger
	metrics metrics
}

// Session connects to a broker, calls link.Connected once every topic is subscribed, and hands over messages until the
// connection is lost or ctx is done. It returns why it ended, never nil, and has nothing running any more by then. An
// error made by Refused keeps the broker from being dialled again soon.
type Session func(ctx context.Context, b brokerurl.Broker, link *Link) error

// New checks the options.
func New(o Options) (*Supervisor, error) {
	if len(o.Brokers) == 0 {
		return nil, fmt.Errorf("event source %s: no broker is named", o.Name)
	}
	for _, b := range o.Brokers {
		if b.Protocol != o.Protocol {
			return nil, fmt.Errorf("event source %s: broker %s does not speak %s", o.Name, b, o.Protocol)
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
	o.Brokers, o.Topics = slices.Clone(o.Brokers), slices.Clone(o.Topics)
	o.RefusedDelay = cmp.Or(o.RefusedDelay, defaultRefusedDelay)
	o.MinPause, o.MaxPause = cmp.Or(o.MinPause, defaultMinPause), cmp.Or(o.MaxPause, defaultMaxPause)
	if o.MinPause < 0 || o.MaxPause < o.MinPause {
		return nil, fmt.Errorf("event source %s: pauses from %s to %s are no range", o.Name, o.MinPause, o.MaxPause)
	}
	m, err := newMetrics(o.Registerer, o.Name, o.Topics)
	if err != nil {
		return nil, fmt.Errorf("event source %s: %w", o.Name, err)
	}
	return &Supervisor{o: o, log: o.Logger.With().Str("source", o.Name).Logger(), metrics: m}, nil
}

// Run runs sessions one after the other until ctx is done, and returns its error.
func (s *Supervisor) Run(ctx context.Context, h eventsource.Handler, session Session) error {
	pause := backoff.ExponentialBackOff{
		InitialInterval: s.o.MinPause, Multiplier: 2, MaxInterval: s.o.MaxPause, RandomizationFactor: 0.25,
	}
	pause.Reset()
	good := 0 // the broker that was connected to last
	refusedUntil := make([]time.Time, len(s.o.Brokers))
	states := &filter{h: h}
	states.report(eventsource.State{Kind: eventsource.Connecting, Address: s.o.Brokers[0].Address})
	for {
		first := good
		for i := range s.o.Brokers { // one round, from the last good one on
			n := (first + i) % len(s.o.Brokers)
			if time.Now().Before(refusedUntil[n]) {
				continue
			}
			link := &Link{s: s, h: h, states: states, broker: s.o.Brokers[n]}
			err := session(ctx, s.o.Brokers[n], link)
			link.ended()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			kind := eventsource.Disconnected
			if errors.Is(err, errRefused) {
				kind = eventsource.Refused
				refusedUntil[n] = time.Now().Add(s.o.RefusedDelay)
			}
			if states.report(eventsource.State{Kind: kind, Address: link.broker.Address, Err: err}) {
				s.logLoss(link, kind, err)
			}
			if link.since.IsZero() {
				continue
			}
			good = n
			if time.Since(link.since) >= stableAfter {
				pause.Reset()
			}
			break // a new round begins with this one
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

func (s *Supervisor) logLoss(link *Link, kind eventsource.StateKind, err error) {
	e, message := s.log.Warn(), "event source cannot connect; trying again until it can"
	switch {
	case kind == eventsource.Refused:
		e, message = s.log.Error(), "event source is refused by the broker; check user, password and virtual host"
	case !link.since.IsZero():
		message = "event source lost its connection; connecting again"
	}
	e.Err(err).Stringer("broker", link.broker).Msg(message)
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

var errRefused = errors.New("refused")

// refusedError adds nothing to the text of what it wraps.
type refusedError struct{ err error }

func (e *refusedError) Error() string        { return e.err.Error() }
func (e *refusedError) Unwrap() error        { return e.err }
func (e *refusedError) Is(target error) bool { return target == errRefused }

// Refused marks err as the broker's own No to our credentials, permissions or virtual host.
func Refused(err error) error { return &refusedError{err} }

// Link is what a session reports to. Connected and Gap must be called by the session's own goroutine; Deliver by any, by
// one at a time for each topic.
type Link struct {
	s      *Supervisor
	h      eventsource.Handler
	states *filter
	broker brokerurl.Broker
	since  time.Time // of Connected
}

// Connected says that every topic is subscribed. It returns when the handler has heard it, and must be called before
// the first Deliver.
func (l *Link) Connected() {
	l.since = time.Now()
	l.s.metrics.connects.connected.Inc()
	l.s.metrics.up.Inc()
	l.s.log.Info().Stringer("broker", l.broker).Strs("topics", l.s.o.Topics).Msg("event source is connected")
	l.states.report(eventsource.State{Kind: eventsource.Connected, Address: l.broker.Address})
}

// Gap says that messages were lost on a connection that holds, and why.
func (l *Link) Gap(why error) {
	l.s.metrics.gaps.Inc()
	l.s.log.Warn().Err(why).Stringer("broker", l.broker).Msg("event source lost messages")
	l.states.report(eventsource.State{Kind: eventsource.Gap, Address: l.broker.Address, Err: why})
}

// Deliver hands one message over. A panic over one message must not end the delivery of all others: it is counted and
// logged, and the message is passed over.
func (l *Link) Deliver(m event.Message) {
	defer func() {
		if cause := recover(); cause != nil {
			l.s.metrics.panics.Inc()
			l.s.log.Error().Str("topic", m.Topic).Str("message_id", m.MessageID).Int("bytes", len(m.Body)).
				Interface("panic", cause).Bytes("stack", debug.Stack()).Msg("handling a message failed; it is passed over")
		}
	}()
	if c := l.s.metrics.messages[m.Topic]; c != nil {
		c.Inc()
	}
	l.h.OnMessage(m)
}

func (l *Link) ended() {
	if l.since.IsZero() {
		l.s.metrics.connects.failed.Inc()
	} else {
		l.s.metrics.up.Dec()
	}
}

// filter passes changes of state on and keeps repetitions back: a broker that is away is news once.
type filter struct {
	h    eventsource.Handler
	last eventsource.State
	text string
	any  bool
}

// report is true when the state was passed on.
func (f *filter) report(s eventsource.State) bool {
	text := ""
	if s.Err != nil {
		text = s.Err.Error()
	}
	repeats := f.any && s.Kind == f.last.Kind && s.Address == f.last.Address && text == f.text
	if repeats && s.Kind != eventsource.Connected && s.Kind != eventsource.Gap {
		return false
	}
	s.Since = time.Now()
	f.last, f.text, f.any = s, text, true
	f.h.OnState(s)
	return true
}
