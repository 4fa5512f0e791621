package sync

import (
	"context"
	"slices"
	gosync "sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
)

func TestTrafficManagersReconnectFetchesItsTopicOnly(t *testing.T) {
	var tm *fakeSource
	run(t, func(o *Options) {
		tm = newFakeSource() // within the bubble of fake time
		tm.name = "traffic_manager"
		o.Sources = append(o.Sources, Source{Source: tm, Topics: []string{"throttledata"}})
	}, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Second)
		tm.state(eventsource.Connected)
		settled(time.Second)
		if d, s := r.m.calls[kindDenyPolicies], r.m.calls[kindSubscriptions]; d != 2 || s != 1 {
			t.Errorf("/block fetched %d times and the subscriptions %d times, want 2 and 1", d, s)
		}
	})
}

func TestEachTenantIsFetched(t *testing.T) {
	var mu gosync.Mutex
	var asked []string
	run(t, func(o *Options) {
		o.Tenants = []string{"carbon.super", "example.org"}
		list := o.Lists.Applications
		o.Lists.Applications = func(ctx context.Context, q ListQuery, each func(controlplane.Application) error) (Meta, error) {
			mu.Lock()
			asked = append(asked, q.Tenant)
			mu.Unlock()
			if q.Tenant == "example.org" {
				return Meta{}, each(controlplane.Application{ID: 50, Name: "Theirs"})
			}
			return list(ctx, q, each)
		}
	}, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		if want := []string{"carbon.super", "example.org"}; !slices.Equal(asked, want) {
			t.Errorf("asked for tenants %q, want %q", asked, want)
		}
		if a := r.w.apps.table().Get(50); a == nil || a.Tenant != "example.org" {
			t.Errorf("application 50 is %+v, want one of example.org", a)
		}
		if a := r.w.apps.table().Get(1); a == nil || a.Tenant != "carbon.super" {
			t.Errorf("application 1 is %+v, want one of carbon.super", a)
		}
		ev := subEvent(r.m, subRow(1, "BLOCKED"), event.Update, r.m.now())
		ev.TenantDomain = "stranger.org"
		r.source.deliver(r.wire.message(event.TopicNotification, ev))
		synctest.Wait()
		if got := state(t, r, 1); got != "UNBLOCKED" {
			t.Errorf("an event of a tenant that is not served made subscription 1 %s", got)
		}
		if n := r.State().Sources[0].EventsIgnored["tenant"]; n != 1 {
			t.Errorf("%d events counted as another tenant's, want 1", n)
		}
	})
}

func TestListThatTheAPIManagerLacksIsNotWaitedFor(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.failing[kindArtifacts] = &controlplane.Error{Kind: controlplane.NotFound, Status: 404, Err: controlplane.ErrNoArtifacts}
		r.source.state(eventsource.Connected)
		settled(time.Second)
		if !r.IsReady() {
			t.Fatal("not ready")
		}
	})
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.failing[kindSubscriptions] = &controlplane.Error{Kind: controlplane.NotFound, Status: 404}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		if r.IsReady() {
			t.Fatal("ready without subscriptions: a wrong path looks like an API Manager without any")
		}
	})
}

func TestDuplicatesAreCountedAndDropped(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		ev := subEvent(r.m, subRow(1, "BLOCKED"), event.Update, r.m.now())
		ev.EventID = "e1"
		for range 3 {
			r.source.deliver(r.wire.message(event.TopicNotification, ev))
		}
		synctest.Wait()
		st := r.State().Sources[0]
		if st.EventsApplied != 1 || st.EventsIgnored["duplicate"] != 2 {
			t.Errorf("%d applied and %d duplicates, want 1 and 2", st.EventsApplied, st.EventsIgnored["duplicate"])
		}
	})
}

func TestKeyManagerEvents(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.kms["KM"] = controlplane.KeyManager{Name: "KM", Tenant: superTenant, Enabled: true, Configuration: map[string]any{"issuer": "i"}}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		now := r.m.now()
		// Another case of the name is the same key manager; without a value it is switched only.
		r.source.deliver(r.wire.message(event.TopicKeyManager, event.KeyManagerChanged{Base: base(now), Action: "update", Name: "km", Tenant: superTenant}))
		synctest.Wait()
		all := r.w.kms.all()
		if k := all["carbon.super/KM"]; k.Enabled || k.Issuer != "i" || len(all) != 1 {
			t.Errorf("key managers %+v, want one, switched off", all)
		}
		// The list has the last word.
		settled(time.Second)
		wantEqual(t, r)
		r.source.deliver(r.wire.message(event.TopicKeyManager, event.KeyManagerChanged{Action: "delete", Name: "KM", Tenant: superTenant}))
		synctest.Wait()
		if all := r.w.kms.all(); len(all) != 0 {
			t.Errorf("key managers %+v after delete without a time stamp, want none", all)
		}
	})
}

func TestRevocationsAreMerged(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.revoked.Tokens = []controlplane.RevokedToken{{Signature: "a", ExpiresAt: 1}}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.source.deliver(r.wire.message(event.TopicTokenRevocation, event.Revoked{Base: base(r.m.now()), Token: "b", ExpiresAt: 2}))
		r.m.mu.Lock()
		r.m.revoked.Tokens = []controlplane.RevokedToken{{Signature: "c", ExpiresAt: 1}}
		r.m.mu.Unlock()
		r.source.deliver(r.wire.message(event.TopicTokenRevocation, event.Revoked{Base: base(r.m.now()), Kind: event.RevokeReload}))
		settled(time.Second)
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		for _, v := range []string{"a", "b", "c"} {
			if _, ok := r.w.revoked[v]; !ok {
				t.Errorf("%s is not revoked: %v", v, r.w.revoked)
			}
		}
	})
}

func TestChangeFeedNeverShowsTokens(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		ch, _, stop := r.Changes(10)
		defer stop()
		r.source.deliver(r.wire.message(event.TopicTokenRevocation, event.Revoked{Base: base(r.m.now()), Token: "very-secret", ExpiresAt: 2}))
		synctest.Wait()
		c := <-ch
		shown, ok := c.After.(RevokedShown)
		if !ok || shown.Value != "" || len(shown.SHA256) != 64 || c.ID != shown.SHA256[:16] {
			t.Errorf("change %+v", c)
		}
	})
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	run(t, func(o *Options) { o.Registerer = reg }, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		ev := subEvent(r.m, subRow(1, "BLOCKED"), event.Update, r.m.now())
		ev.Type = "SUBSCRIPTIONS_UPDATE"
		r.source.deliver(r.wire.message(event.TopicNotification, ev))
		r.source.deliver(r.wire.message(event.TopicNotification, event.Ignored{Base: event.Base{Type: "ANYTHING"}}))
		synctest.Wait()
		if n := testutil.ToFloat64(r.metrics.known["SUBSCRIPTIONS_UPDATE"][applied]); n != 1 {
			t.Errorf("gatehouse_events_total{SUBSCRIPTIONS_UPDATE,applied} is %v, want 1", n)
		}
		if n := testutil.ToFloat64(r.metrics.known["unknown"][outUnknown]); n != 1 {
			t.Errorf("gatehouse_events_total{unknown,unknown} is %v, want 1", n)
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		names := make(map[string]int)
		for _, f := range families {
			names[f.GetName()] = len(f.GetMetric())
		}
		for _, want := range []string{"gatehouse_events_total", "gatehouse_sync_age_seconds", "gatehouse_sync_queue_depth"} {
			if names[want] == 0 {
				t.Errorf("%s is missing", want)
			}
		}
	})
}

func TestRunEndsWithTheSourcesFault(t *testing.T) {
	r := newRig(t, newManager(), nil)
	r.opt.Sources = nil
	r.sources = []*source{newSource(r.Engine, Source{Source: broken{r.source}})}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.Run(ctx); err == nil || err.Error() != "no topics" {
		t.Errorf("Run returned %v, want the fault of configuration", err)
	}
}

// broken is a source that cannot work.
type broken struct{ *fakeSource }

func (broken) Run(context.Context, eventsource.Handler) error { return errNoTopics }

var errNoTopics = errText("no topics")

type errText string

func (e errText) Error() string { return string(e) }
