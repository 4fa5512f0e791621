package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
)

func brokers(names ...string) []brokerurl.Broker {
	var out []brokerurl.Broker
	for _, name := range names {
		out = append(out, brokerurl.Broker{Protocol: brokerurl.NATS, Address: name + ":4222", Username: "u", Password: "hunter2"})
	}
	return out
}

func options(names ...string) Options {
	return Options{Name: "event_hub", Protocol: brokerurl.NATS, Brokers: brokers(names...), Topics: []string{event.TopicThrottleData}, Logger: zerolog.Nop()}
}

// heard is a handler that keeps what it hears.
type heard struct {
	states    []string
	onMessage func(event.Message)
}

func (h *heard) OnState(s eventsource.State) {
	text := fmt.Sprintf("%s %s", s.Kind, strings.TrimSuffix(s.Address, ":4222"))
	if s.Err != nil {
		text += " " + s.Err.Error()
	}
	h.states = append(h.states, text)
}

func (h *heard) OnMessage(m event.Message) { h.onMessage(m) }

// script runs a supervisor in fake time, its sessions being the steps, until they are used up. It returns when each
// session began, since the start, and with which broker.
func script(t *testing.T, o Options, h eventsource.Handler, steps ...func(context.Context, *Link) error) (at []time.Duration, with []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		err = s.Run(ctx, h, func(ctx context.Context, b brokerurl.Broker, l *Link) error {
			at, with = append(at, time.Since(began)), append(with, strings.TrimSuffix(b.Address, ":4222"))
			if len(at) > len(steps) {
				cancel()
				return ctx.Err()
			}
			return steps[len(at)-1](ctx, l)
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	return at, with
}

func fails(text string) func(context.Context, *Link) error {
	return func(context.Context, *Link) error { return errors.New(text) }
}

func refuses(text string) func(context.Context, *Link) error {
	return func(context.Context, *Link) error { return Refused(errors.New(text)) }
}

// holds is a connection that is lost after d.
func holds(d time.Duration) func(context.Context, *Link) error {
	return func(_ context.Context, l *Link) error {
		l.Connected()
		time.Sleep(d)
		return errors.New("lost")
	}
}

func TestPauses(t *testing.T) {
	var steps []func(context.Context, *Link) error
	for range 50 {
		steps = append(steps, fails("away"))
	}
	steps = append(steps, holds(time.Minute), fails("away"), fails("away"), fails("away"), holds(time.Millisecond), fails("away"))
	at, _ := script(t, options("a"), &heard{}, steps...)
	pause := func(i int) time.Duration { return at[i+1] - at[i] }
	for i := range 50 {
		if p := pause(i); p < 150*time.Millisecond || p > time.Second {
			t.Errorf("pause %d is %s, want 150 ms to 1 s", i, p)
		}
	}
	if p := pause(0); p > 250*time.Millisecond {
		t.Errorf("the first pause is %s, want at most 250 ms", p)
	}
	if p := pause(40); p < 600*time.Millisecond {
		t.Errorf("a late pause is %s, want 600 ms at least", p)
	}
	// A connection that held starts the pauses anew; one that did not, does not.
	if p := pause(50) - time.Minute; p > 250*time.Millisecond {
		t.Errorf("the pause after a good connection is %s, want at most 250 ms", p)
	}
	if p := pause(54); p < 600*time.Millisecond {
		t.Errorf("the pause after a connection of a millisecond is %s, want what came before to count", p)
	}
}

func TestFailover(t *testing.T) {
	h := &heard{}
	at, with := script(t, options("a", "b", "c"), h,
		fails("a is away"), fails("b is away"), holds(time.Minute), // one round at once, up to the good one
		fails("c is away"), holds(time.Minute), // a new round from the last good one on
		holds(time.Minute))
	if want := []string{"a", "b", "c", "c", "a", "a", "a"}; !slices.Equal(with, want) {
		t.Errorf("dialled %v, want %v", with, want)
	}
	if at[2] != 0 {
		t.Errorf("the third broker was dialled after %s, want no pause within a round", at[2])
	}
	want := []string{
		"connecting a", "disconnected a a is away", "disconnected b b is away", "connected c", "disconnected c lost",
		"disconnected c c is away", "connected a", "disconnected a lost", "connected a", "disconnected a lost",
	}
	if !slices.Equal(h.states, want) {
		t.Errorf("heard %q, want %q", h.states, want)
	}
}

func TestRefusal(t *testing.T) {
	h := &heard{}
	at, with := script(t, options("a", "b"), h,
		refuses("wrong password"), fails("away"), // b is tried on
		fails("away"), holds(30*time.Second), // by itself
		refuses("no"), // both refuse now
		refuses("wrong password"), refuses("no"))
	if want := []string{"a", "b", "b", "b", "b", "a", "b", "a"}; !slices.Equal(with, want) {
		t.Errorf("dialled %v, want %v", with, want)
	}
	if at[5] != time.Minute {
		t.Errorf("the first broker was dialled again after %s, want a minute", at[5])
	}
	if wait := at[6] - at[4]; wait != time.Minute {
		t.Errorf("the second broker was dialled again after %s, want a minute", wait)
	}
	want := []string{
		"connecting a", "refused a wrong password", "disconnected b away", "connected b", "disconnected b lost", "refused b no",
		"refused a wrong password", "refused b no",
	}
	if !slices.Equal(h.states, want) {
		t.Errorf("heard %q, want %q", h.states, want)
	}
}

func TestRepetitionsAreNoNews(t *testing.T) {
	var logs bytes.Buffer
	o := options("a")
	o.Logger = zerolog.New(&logs)
	h := &heard{}
	gap := func(_ context.Context, l *Link) error {
		l.Connected()
		l.Gap(errors.New("slow"))
		l.Gap(errors.New("slow")) // each means a fetch
		return errors.New("away")
	}
	script(t, o, h, fails("away"), fails("away"), fails("gone"), gap, fails("away"), refuses("no"), refuses("no"))
	want := []string{
		"connecting a", "disconnected a away", "disconnected a gone", "connected a", "gap a slow", "gap a slow",
		"disconnected a away", "refused a no",
	}
	if !slices.Equal(h.states, want) {
		t.Errorf("heard %q, want %q", h.states, want)
	}
	lines := strings.Split(strings.TrimSpace(logs.String()), "\n")
	if len(lines) != len(want)-1 {
		t.Errorf("%d lines are logged, want one for each change:\n%s", len(lines), logs.String())
	}
	if strings.Contains(logs.String(), "hunter2") {
		t.Errorf("the log shows the password:\n%s", logs.String())
	}
	if last := lines[len(lines)-1]; !strings.Contains(last, `"level":"error"`) || !strings.Contains(last, "check user, password and virtual host") {
		t.Errorf("the line of a refusal is %s", last)
	}
}

// TestAnySequence runs random outcomes over random lists and wants of each: never more than a second without a dial
// unless every broker refused us within the last minute, no dial of a broker within the minute of its refusal, and states
// that change.
func TestAnySequence(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		names := []string{"a", "b", "c", "d"}[:1+random.IntN(4)]
		refusedAt := map[int]time.Duration{} // by step
		var steps []func(context.Context, *Link) error
		var length []time.Duration
		for i := range 80 {
			d := time.Duration(0)
			switch random.IntN(4) {
			case 0:
				steps = append(steps, fails(fmt.Sprint(random.IntN(2))))
			case 1:
				d = time.Duration(random.IntN(20)) * time.Second
				steps = append(steps, holds(d))
			default:
				steps = append(steps, refuses("no"))
				refusedAt[i] = 0
			}
			length = append(length, d)
		}
		h := &heard{}
		at, with := script(t, options(names...), h, steps...)
		until := map[string]time.Duration{}
		for i := range steps {
			if at[i] < until[with[i]] {
				t.Fatalf("seed %d: %s was dialled at %s, within its refusal until %s", seed, with[i], at[i], until[with[i]])
			}
			if _, ok := refusedAt[i]; ok {
				until[with[i]] = at[i] + time.Minute
			}
			soonest := time.Duration(0)
			for n, name := range names {
				if n == 0 || until[name] < soonest {
					soonest = until[name]
				}
			}
			ended := at[i] + length[i]
			if wait := at[i+1] - ended; at[i+1] > max(ended+time.Second, soonest) {
				t.Fatalf("seed %d: nothing was dialled for %s after step %d", seed, wait, i)
			}
		}
		for i := 1; i < len(h.states); i++ {
			if h.states[i] == h.states[i-1] && !strings.HasPrefix(h.states[i], "connected") {
				t.Fatalf("seed %d: %q is said twice", seed, h.states[i])
			}
		}
	}
}

func TestDeliverSurvivesAPanic(t *testing.T) {
	registry := prometheus.NewRegistry()
	var logs bytes.Buffer
	o := options("a")
	o.Registerer, o.Logger = registry, zerolog.New(&logs)
	var got []string
	h := &heard{onMessage: func(m event.Message) {
		got = append(got, string(m.Body))
		if string(m.Body) == "poison" {
			panic("a defect")
		}
	}}
	script(t, o, h, func(_ context.Context, l *Link) error {
		l.Connected()
		for _, body := range []string{"poison", "good"} {
			l.Deliver(event.Message{Topic: event.TopicThrottleData, MessageID: "ID:7", Body: []byte(body)})
		}
		return errors.New("lost")
	})
	if !slices.Equal(got, []string{"poison", "good"}) {
		t.Errorf("delivered %v", got)
	}
	if line := logs.String(); !strings.Contains(line, `"message_id":"ID:7"`) || !strings.Contains(line, "a defect") || !strings.Contains(line, "supervisor_test.go") {
		t.Errorf("the log lacks the message, the cause or the stack:\n%s", line)
	}
	want := `
# HELP gatehouse_event_source_connected Connections of an event source that are subscribed to every topic: 1, or 0 while it is away.
# TYPE gatehouse_event_source_connected gauge
gatehouse_event_source_connected{source="event_hub"} 0
# HELP gatehouse_event_source_connects_total Attempts of an event source to connect, by result: connected, failed.
# TYPE gatehouse_event_source_connects_total counter
gatehouse_event_source_connects_total{result="connected",source="event_hub"} 1
gatehouse_event_source_connects_total{result="failed",source="event_hub"} 1
# HELP gatehouse_event_source_gaps_total Times that an event source lost messages without losing its connection.
# TYPE gatehouse_event_source_gaps_total counter
gatehouse_event_source_gaps_total{source="event_hub"} 0
# HELP gatehouse_event_source_messages_total Messages that an event source received, by topic.
# TYPE gatehouse_event_source_messages_total counter
gatehouse_event_source_messages_total{source="event_hub",topic="throttleData"} 2
# HELP gatehouse_event_source_panics_total Messages of an event source whose handling panicked.
# TYPE gatehouse_event_source_panics_total counter
gatehouse_event_source_panics_total{source="event_hub"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestSourcesMayShareARegistryAndAName(t *testing.T) {
	registry := prometheus.NewRegistry()
	for range 2 {
		o := options("a")
		o.Registerer = registry
		if _, err := New(o); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for want, change := range map[string]func(*Options){
		"no broker is named":                 func(o *Options) { o.Brokers = nil },
		"does not speak amqp":                func(o *Options) { o.Protocol = brokerurl.AMQP },
		"no topic is named":                  func(o *Options) { o.Topics = nil },
		"topic throttleData is named twice":  func(o *Options) { o.Topics = append(o.Topics, o.Topics[0]) },
		"pauses from 2s to 1s are no range":  func(o *Options) { o.MinPause, o.MaxPause = 2*time.Second, time.Second },
		"pauses from -1ns to 800ms are no r": func(o *Options) { o.MinPause = -1 },
	} {
		o := options("a")
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}
