package sync

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/eventsource"
)

// TestGapsOfOverloadAreSpaced: a gateway that is too slow must not be made slower by the lists that its own slowness calls
// for, and still misses nothing.
func TestGapsOfOverloadAreSpaced(t *testing.T) {
	const takes, lasts = 10 * time.Second, 5 * time.Minute
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.m.mu.Lock()
		r.m.after = takes
		r.m.mu.Unlock()
		before := r.m.called(kindSubscriptions)
		for began := time.Now(); time.Since(began) < lasts; {
			r.source.state(eventsource.Gap)
			settled(100 * time.Millisecond)
		}
		n := r.m.called(kindSubscriptions) - before
		if most := int(lasts/(2*takes)) + 1; n > most || n < most-2 {
			t.Errorf("%d fetches of %v in %v of gaps, want about %d: as long a pause after each", n, takes, lasts, most)
		}
		// The last gap, wherever it falls: in a fetch, in a pause, after all of it.
		for _, quiet := range []time.Duration{takes / 3, 2 * takes / 3, takes, 4 * takes / 3, 3 * takes} {
			settled(quiet)
			r.m.mu.Lock()
			row := r.m.subs[1]
			row.PolicyID += "+"
			r.m.subs[1] = row // its event is lost
			r.m.mu.Unlock()
			r.source.state(eventsource.Gap)
			settled(4 * takes)
			wantEqual(t, r)
		}
		before = r.m.called(kindSubscriptions)
		settled(time.Hour)
		if n := r.m.called(kindSubscriptions) - before; n != 0 {
			t.Errorf("%d fetches after the last gap was answered, want none", n)
		}
	})
}

func TestReconnectIsNotSpaced(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.after = 10 * time.Second
		r.source.state(eventsource.Connected)
		settled(11 * time.Second)
		r.source.state(eventsource.Disconnected)
		r.source.state(eventsource.Connected)
		settled(time.Second)
		if n := r.m.called(kindSubscriptions); n != 2 {
			t.Errorf("%d fetches a second after a reconnect, want 2", n)
		}
	})
}

func TestGapDoesNotCutThePauseAfterAFailureShort(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.failing[""] = &controlplane.Error{Op: "list", Kind: controlplane.Refused, Status: 401}
		r.source.state(eventsource.Connected)
		for range 600 {
			settled(time.Second)
			r.source.state(eventsource.Gap)
		}
		if n := r.m.called(kindSubscriptions); n > 13 {
			t.Errorf("%d tries in ten minutes, want about one a minute", n)
		}
	})
}

func TestOnlyAConnectRegistersAnew(t *testing.T) {
	var registered atomic.Int32
	run(t, func(o *Options) {
		o.Reports.Register = func(_ context.Context, g controlplane.Gateway, _ time.Time) (string, controlplane.Registration, error) {
			registered.Add(1)
			return g.ID, controlplane.Registered, nil
		}
		o.Reports.Heartbeat = func(context.Context, controlplane.Gateway, time.Time) (controlplane.Registration, error) {
			return controlplane.Acknowledged, nil
		}
	}, func(t *testing.T, r *rig) {
		for i, step := range []struct {
			state eventsource.StateKind
			want  int32
		}{
			{eventsource.Connected, 1}, {eventsource.Gap, 1}, {eventsource.Gap, 1}, {eventsource.Disconnected, 1}, {eventsource.Connected, 2}, {eventsource.Gap, 2},
		} {
			r.source.state(step.state)
			settled(10 * time.Second)
			synctest.Wait()
			if n := registered.Load(); n != step.want {
				t.Errorf("step %d (%s): registered %d times, want %d", i, step.state, n, step.want)
			}
		}
	})
}
