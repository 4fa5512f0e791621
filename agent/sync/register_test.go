package sync

import (
	"context"
	"errors"
	"slices"
	gosync "sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/eventsource"
)

// registry answers registrations by a script.
type registry struct {
	mu    gosync.Mutex
	calls []string
	times []time.Time
	next  []controlplane.Registration // answers in order; then Acknowledged
	err   error
	id    string
}

func (g *registry) answer(call string) (controlplane.Registration, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, call)
	g.times = append(g.times, time.Now())
	if g.err != nil {
		return 0, g.err
	}
	if len(g.next) > 0 {
		a := g.next[0]
		g.next = g.next[1:]
		return a, nil
	}
	return controlplane.Acknowledged, nil
}

func (g *registry) reports() Reports {
	return Reports{
		Register: func(_ context.Context, gw controlplane.Gateway, _ time.Time) (string, controlplane.Registration, error) {
			a, err := g.answer("register " + gw.Labels[0])
			return g.id, a, err
		},
		Heartbeat: func(_ context.Context, gw controlplane.Gateway, _ time.Time) (controlplane.Registration, error) {
			return g.answer("heartbeat " + gw.ID)
		},
	}
}

func TestRegistration(t *testing.T) {
	const again, unsupported = controlplane.RegisterAgain, controlplane.RegistrationUnsupported
	for name, c := range map[string]struct {
		answers []controlplane.Registration
		during  time.Duration
		want    []string
	}{
		"registers, then heartbeats every 30 s": {nil, 61 * time.Second, []string{"register Default", "heartbeat gw-1", "heartbeat gw-1"}},
		"an older API Manager ends it":          {[]controlplane.Registration{unsupported}, time.Hour, []string{"register Default"}},
		"any other answer registers again": {
			[]controlplane.Registration{controlplane.Registered, again},
			31 * time.Second,
			[]string{"register Default", "heartbeat gw-1", "register Default"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := &registry{id: "gw-1", next: c.answers}
			run(t, func(o *Options) { o.Reports = g.reports() }, func(t *testing.T, r *rig) {
				settled(c.during)
				if !slices.Equal(g.calls, c.want) {
					t.Errorf("calls %q, want %q", g.calls, c.want)
				}
			})
		})
	}
}

func TestReconnectRegistersAgain(t *testing.T) {
	g := &registry{id: "gw-1"}
	run(t, func(o *Options) { o.Reports = g.reports() }, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Second)
		r.source.state(eventsource.Disconnected)
		r.source.state(eventsource.Connected)
		settled(time.Second)
		if want := []string{"register Default", "register Default"}; !slices.Equal(g.calls, want) {
			t.Errorf("calls %q, want %q", g.calls, want)
		}
		if id := r.State().GatewayID; id != "gw-1" {
			t.Errorf("gateway id %q, want the one that the API Manager gave", id)
		}
	})
}

func TestFailedRegistrationBacksOff(t *testing.T) {
	g := &registry{id: "gw-1", err: errors.New("refused")}
	run(t, func(o *Options) { o.Reports = g.reports() }, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(10 * time.Minute)
		if n := len(g.calls); n < 15 || n > 40 {
			t.Errorf("%d tries in ten minutes, want some twenty", n)
		}
		if !r.IsReady() {
			t.Error("a failed registration keeps the gateway from serving")
		}
		for i := 1; i < len(g.times); i++ {
			if d := g.times[i].Sub(g.times[i-1]); d > 40*time.Second {
				t.Errorf("pause %d is %v", i, d)
			}
		}
	})
}

func TestReportsAreTriedThreeTimesAndStopWhereUnsupported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager()
		m.deploy(project(t, 1, 1), 1, "PUBLISHED")
		var acks, statuses int
		r := newRig(t, m, func(o *Options) {
			o.Reports = (&registry{id: "gw-1"}).reports()
			o.Reports.Acknowledge = func(context.Context, string, []controlplane.Acknowledgement) error {
				acks++
				return &controlplane.Error{Kind: controlplane.Server, Status: 500}
			}
			o.Reports.NotifyDeployments = func(context.Context, []controlplane.DeploymentStatus) error {
				statuses++
				return &controlplane.Error{Kind: controlplane.NotFound, Err: controlplane.ErrUnsupported}
			}
		})
		r.start()
		defer r.end(t)
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		m.deploy(project(t, 2, 1), 2, "PUBLISHED")
		r.Resync()
		settled(time.Minute)
		if acks != 6 || statuses != 1 {
			t.Errorf("%d acknowledgements and %d reports tried, want 6 (three each) and 1", acks, statuses)
		}
	})
}
