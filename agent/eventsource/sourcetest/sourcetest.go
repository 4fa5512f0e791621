// Package sourcetest has what the tests of event sources share: a handler that writes down what it gets, and a runner
// that checks what every source promises. It is for tests alone.
package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
)

// Recorder is a handler that writes down what it gets. The functions may be set before it is run.
type Recorder struct {
	OnStateFunc   func(eventsource.State)
	OnMessageFunc func(event.Message)

	mu       sync.Mutex
	changed  chan struct{} // closed and made anew at every change
	states   []eventsource.State
	messages []event.Message
	inState  bool
	inTopic  map[string]bool
	faults   []string // promises that were broken
}

// NewRecorder is a recorder that does nothing else.
func NewRecorder() *Recorder {
	return &Recorder{changed: make(chan struct{}), inTopic: map[string]bool{}}
}

// OnState implements eventsource.Handler.
func (r *Recorder) OnState(s eventsource.State) {
	r.enter(&r.inState, "OnState is called concurrently", func() { r.states = append(r.states, s) })
	defer r.leave(func() { r.inState = false })
	if r.OnStateFunc != nil {
		r.OnStateFunc(s)
	}
}

// OnMessage implements eventsource.Handler.
func (r *Recorder) OnMessage(m event.Message) {
	r.mu.Lock()
	busy := r.inTopic[m.Topic]
	r.mu.Unlock()
	r.enter(&busy, "OnMessage is called concurrently for "+m.Topic, func() {
		r.inTopic[m.Topic] = true
		r.messages = append(r.messages, m)
		// Whatever was said since, a message belongs to a connection.
		i := len(r.states) - 1
		if i < 0 || r.states[i].Kind != eventsource.Connected && r.states[i].Kind != eventsource.Gap {
			r.faults = append(r.faults, "OnMessage is called while not connected")
		}
	})
	defer r.leave(func() { r.inTopic[m.Topic] = false })
	if r.OnMessageFunc != nil {
		r.OnMessageFunc(m)
	}
}

func (r *Recorder) enter(busy *bool, fault string, record func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if *busy {
		r.faults = append(r.faults, fault)
	}
	*busy = true
	record()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Recorder) leave(record func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	record()
}

// States are those heard so far.
func (r *Recorder) States() []eventsource.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.states)
}

// Messages are those received so far.
func (r *Recorder) Messages() []event.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

// Bodies are those of Messages.
func (r *Recorder) Bodies() []string {
	var out []string
	for _, m := range r.Messages() {
		out = append(out, string(m.Body))
	}
	return out
}

// Count is how often a state was said.
func (r *Recorder) Count(kind eventsource.StateKind) int {
	n := 0
	for _, s := range r.States() {
		if s.Kind == kind {
			n++
		}
	}
	return n
}

// Trace is the states, a line each, for the message of a failed test.
func (r *Recorder) Trace() string {
	var b strings.Builder
	for _, s := range r.States() {
		fmt.Fprintf(&b, "  %s %s %s %v\n", s.Since.Format("05.000"), s.Kind, s.Address, s.Err)
	}
	return b.String()
}

// Await waits until done is true, asked again at every change, and returns how long that took.
func (r *Recorder) Await(t testing.TB, what string, limit time.Duration, done func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	deadline := time.After(limit)
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if done() {
			return time.Since(began)
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: not within %s; states:\n%s", what, limit, r.Trace())
		}
	}
}

// AwaitState waits until a state was said so many times.
func (r *Recorder) AwaitState(t testing.TB, kind eventsource.StateKind, times int, limit time.Duration) time.Duration {
	t.Helper()
	return r.Await(t, fmt.Sprintf("state %s, time %d", kind, times), limit, func() bool { return r.Count(kind) >= times })
}

// Run runs a source until the test ends or stop is called, and checks then that it ended in good time and kept what the
// package eventsource promises.
func Run(t testing.TB, s eventsource.Source, r *Recorder) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run returned %v, want context.Canceled", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not return within 10 s of its context's end")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, fault := range r.faults {
			t.Error(fault)
		}
		if len(r.states) == 0 || r.states[0].Kind != eventsource.Connecting {
			t.Errorf("the first state is not connecting: %v", r.states)
		}
	})
	t.Cleanup(stop)
	return stop
}
