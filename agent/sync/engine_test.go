package sync

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func base(t int64) event.Base { return event.Base{Time: t} }

func subRow(id int64, state string) controlplane.Subscription {
	return controlplane.Subscription{SubscriptionID: id, APIID: id, AppID: 1, PolicyID: "Gold", SubscriptionState: state}
}

func subEvent(m *manager, row controlplane.Subscription, action event.Action, t int64) event.SubscriptionChanged {
	return event.SubscriptionChanged{
		Base: base(t), Action: action, ID: row.SubscriptionID, APIID: row.APIID, ApplicationID: row.AppID,
		Policy: row.PolicyID, State: row.SubscriptionState,
	}
}

// settled lets everything that is under way end.
func settled(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func run(t *testing.T, change func(*Options), test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newManager()
		m.apps[1] = controlplane.Application{ID: 1, Name: "App", SubName: "dana", Policy: "Unlimited"}
		for id := range int64(4) {
			m.subs[id+1] = subRow(id+1, "UNBLOCKED")
		}
		r := newRig(t, m, change)
		r.start()
		defer r.end(t)
		test(t, r)
	})
}

func wantEqual(t *testing.T, r *rig) {
	t.Helper()
	if d := r.differences(); len(d) > 0 {
		t.Fatalf("the gateway differs from the API Manager:\n%s", joined(d))
	}
}

func state(t *testing.T, r *rig, id int64) string {
	t.Helper()
	s := r.w.subs.table().Get(id)
	if s == nil {
		return "absent"
	}
	return string(s.State)
}

func TestStartLoadsEverythingAfterConnecting(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		if r.IsReady() {
			t.Fatal("ready before anything was loaded")
		}
		r.source.state(eventsource.Connected)
		settled(100 * time.Millisecond)
		if !r.IsReady() {
			t.Fatal("not ready after the lists are in")
		}
		wantEqual(t, r)
		if n := r.m.calls[kindSubscriptions]; n != 1 {
			t.Errorf("the subscriptions were fetched %d times, want once", n)
		}
	})
}

func TestStartWithoutEventHubIsReadyAndDegraded(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		settled(time.Second)
		if !r.IsReady() {
			t.Fatal("not ready although the lists are in")
		}
		wantEqual(t, r)
		for _, c := range r.Checks() {
			if c.Name == "event_hub" && c.Status != "degraded" {
				t.Errorf("event_hub is %q, want degraded", c.Status)
			}
			if c.Name == "lists" && c.Status != "ok" {
				t.Errorf("lists is %q (%s), want ok", c.Status, c.Detail)
			}
		}
	})
}

func TestStartWithoutAPIManagerTriesForEver(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.failing[""] = &controlplane.Error{Op: "list", Kind: controlplane.Unreachable}
		r.source.state(eventsource.Connected)
		settled(10 * time.Minute)
		if r.IsReady() {
			t.Fatal("ready without any list")
		}
		if n := r.m.calls[kindSubscriptions]; n < 600 {
			t.Errorf("%d tries in ten minutes, want at least one a second", n)
		}
		r.m.mu.Lock()
		delete(r.m.failing, "")
		r.m.mu.Unlock()
		settled(time.Second)
		if !r.IsReady() {
			t.Fatal("not ready a second after the API Manager came")
		}
		wantEqual(t, r)
	})
}

func TestEventsAreOrderedByTheirTime(t *testing.T) {
	for name, c := range map[string]struct {
		events []event.SubscriptionChanged // times relative to now
		want   string
	}{
		"newer replaces": {[]event.SubscriptionChanged{{Base: base(1), Action: event.Update, State: "BLOCKED"}}, "BLOCKED"},
		"older after newer is dropped": {[]event.SubscriptionChanged{
			{Base: base(20), Action: event.Update, State: "BLOCKED"}, {Base: base(10), Action: event.Update, State: "UNBLOCKED"},
		}, "BLOCKED"},
		"equal applies": {[]event.SubscriptionChanged{
			{Base: base(20), Action: event.Update, State: "BLOCKED"}, {Base: base(20), Action: event.Update, State: "REJECTED"},
		}, "REJECTED"},
		"equal ON_HOLD does not replace UNBLOCKED": {[]event.SubscriptionChanged{
			{Base: base(20), Action: event.Update, State: "UNBLOCKED"}, {Base: base(20), Action: event.Create, State: "ON_HOLD"},
		}, "UNBLOCKED"},
		"equal UNBLOCKED replaces ON_HOLD": {[]event.SubscriptionChanged{
			{Base: base(20), Action: event.Create, State: "ON_HOLD"}, {Base: base(20), Action: event.Update, State: "UNBLOCKED"},
		}, "UNBLOCKED"},
		"older update after delete does not resurrect": {[]event.SubscriptionChanged{
			{Base: base(20), Action: event.Delete}, {Base: base(10), Action: event.Update, State: "UNBLOCKED"},
		}, "absent"},
		"newer create after delete does": {[]event.SubscriptionChanged{
			{Base: base(20), Action: event.Delete}, {Base: base(30), Action: event.Create, State: "UNBLOCKED"},
		}, "UNBLOCKED"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(t *testing.T, r *rig) {
				r.source.state(eventsource.Connected)
				settled(time.Minute) // well after the list
				now := r.m.now()
				for _, ev := range c.events {
					ev.ID, ev.APIID, ev.ApplicationID, ev.Policy = 1, 1, 1, "Gold"
					ev.Time += now
					r.source.deliver(r.wire.message(event.TopicNotification, ev))
				}
				synctest.Wait()
				if got := state(t, r, 1); got != c.want {
					t.Errorf("subscription 1 is %s, want %s", got, c.want)
				}
			})
		})
	}
}

func TestEventDuringTheFetchWinsOverTheList(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.before, r.m.after = 100*time.Millisecond, 3*time.Second
		r.source.state(eventsource.Connected)
		settled(2 * time.Second) // the snapshot is taken, the answer is not here
		row := subRow(1, "BLOCKED")
		r.m.mu.Lock()
		r.m.subs[1] = row
		delete(r.m.subs, 2)
		r.m.mu.Unlock()
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, row, event.Update, r.m.now())))
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, subRow(2, ""), event.Delete, r.m.now())))
		synctest.Wait()
		if got := state(t, r, 1); got != "BLOCKED" {
			t.Errorf("while the list is on its way subscription 1 is %s, want BLOCKED", got)
		}
		settled(10 * time.Second)
		if got := state(t, r, 1); got != "BLOCKED" {
			t.Errorf("after the older list subscription 1 is %s, want BLOCKED", got)
		}
		if got := state(t, r, 2); got != "absent" {
			t.Errorf("after the older list subscription 2 is %s, want absent", got)
		}
	})
}

func TestEveryReconnectFetchesEverythingOnce(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Second)
		for range 3 {
			r.source.state(eventsource.Disconnected)
			r.m.mu.Lock()
			r.m.subs[1] = subRow(1, "BLOCKED")
			r.m.subs[9] = subRow(9, "UNBLOCKED")
			r.m.mu.Unlock()
			settled(time.Second)
			if !r.IsReady() {
				t.Fatal("a disconnect took readiness away")
			}
			r.source.state(eventsource.Connected)
			settled(time.Second)
			wantEqual(t, r)
		}
		for _, name := range []string{kindSubscriptions, kindAPIs, kindApplications, kindKeyMappings, kindDenyPolicies, kindKeyManagers, kindRevokedTokens, kindArtifacts} {
			if n := r.m.calls[name]; n != 4 {
				t.Errorf("%s was fetched %d times over the start and 3 reconnects, want 4", name, n)
			}
		}
		if st := r.State().Sources[0]; st.Reconnects != 3 {
			t.Errorf("%d reconnects counted, want 3", st.Reconnects)
		}
	})
}

func TestSuspiciousShrinkIsConfirmed(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		for id := range int64(100) {
			r.m.subs[id+1] = subRow(id+1, "UNBLOCKED")
		}
		for id := range int64(10) {
			r.m.apps[id+1] = controlplane.Application{ID: id + 1, Name: "App"}
		}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.m.mu.Lock()
		subs, apps := r.m.subs, r.m.apps
		r.m.subs, r.m.apps = map[int64]controlplane.Subscription{1: subs[1]}, map[int64]controlplane.Application{}
		r.m.mu.Unlock()
		r.Resync()
		settled(100 * time.Millisecond)
		if n := r.w.subs.table().Len(); n != 100 {
			t.Fatalf("%d subscriptions right after an almost empty list, want 100", n)
		}
		if !r.State().Lists.ByKind[kindSubscriptions].HeldBack {
			t.Error("held_back is not shown")
		}
		// Events go on applying.
		row := subRow(2, "BLOCKED")
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, row, event.Update, r.m.now())))
		synctest.Wait()
		if got := state(t, r, 2); got != "BLOCKED" {
			t.Errorf("an event while the list is held back: subscription 2 is %s, want BLOCKED", got)
		}
		settled(time.Second)
		if n := r.w.apps.table().Len(); n != 0 {
			t.Errorf("%d applications after the small table was confirmed, want none", n)
		}
		if n := r.w.subs.table().Len(); n != 100 {
			t.Errorf("%d subscriptions after a second, want 100: the table is large", n)
		}
		// The API Manager was only starting: the second list is whole again.
		r.m.mu.Lock()
		r.m.subs, r.m.apps = subs, apps
		r.m.subs[2] = row
		r.m.mu.Unlock()
		r.Resync()
		settled(40 * time.Second)
		wantEqual(t, r)
		// And when it is the truth it is applied.
		r.m.mu.Lock()
		r.m.subs = map[int64]controlplane.Subscription{1: subs[1]}
		r.m.mu.Unlock()
		r.Resync()
		settled(29 * time.Second)
		if n := r.w.subs.table().Len(); n != 100 {
			t.Errorf("%d subscriptions after 29 s, want 100", n)
		}
		settled(2 * time.Second)
		wantEqual(t, r)
	})
}

func TestFailedListReplacesNothingAndOthersGoOn(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Second)
		r.m.mu.Lock()
		r.m.failing[kindSubscriptions] = &controlplane.Error{Op: "list subscriptions", Kind: controlplane.Server, Status: 500}
		r.m.subs = map[int64]controlplane.Subscription{}
		r.m.apps[2] = controlplane.Application{ID: 2, Name: "New"}
		r.m.mu.Unlock()
		r.source.state(eventsource.Disconnected)
		r.source.state(eventsource.Connected)
		settled(20 * time.Second)
		if n := r.w.subs.table().Len(); n != 4 {
			t.Errorf("%d subscriptions after failed lists, want the 4 of before", n)
		}
		if r.w.apps.table().Get(2) == nil {
			t.Error("the applications waited for the failing subscriptions")
		}
		if st := r.State().Lists; st.Failures == 0 || st.ByKind[kindSubscriptions].Err == "" {
			t.Error("the failure is not shown")
		}
	})
}

func TestDenyPolicies(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.block.User = []string{"eve@carbon.super"}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		wantEqual(t, r)
		deliver := func(active bool, at int64) {
			r.source.deliver(r.wire.message(event.TopicThrottleData, event.DenyChanged{Base: base(at), Active: active, Kind: "API", Value: "/shop/1.0.0", ID: 7}))
			synctest.Wait()
		}
		now := r.m.now()
		deliver(true, now)
		deliver(true, now+1)
		if got := r.w.deny.keys(); len(got) != 2 {
			t.Fatalf("deny policies %q, want two", got)
		}
		deliver(false, now+2)
		if got := r.w.deny.keys(); len(got) != 1 {
			t.Fatalf("deny policies %q, want one: true, true, false ends unblocked", got)
		}
		// A malformed one makes the list due.
		r.m.mu.Lock()
		r.m.block.API = []string{"/shop/2.0.0"}
		r.m.mu.Unlock()
		r.source.deliver(r.wire.message(event.TopicThrottleData, event.DenyChanged{Base: base(now + 3), Active: true, Kind: "IP", Malformed: true}))
		settled(time.Second)
		wantEqual(t, r)
	})
}

func TestKeyTemplatesSwappedConverge(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.templates["$userId"] = true
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.m.mu.Lock()
		r.m.templates = map[string]bool{"$appId": true}
		r.m.mu.Unlock()
		now := r.m.now()
		for _, ev := range []event.KeyTemplateChanged{
			{Base: base(now + 1), Template: "$appId"},
			{Base: base(now), Remove: true, Template: "$userId"},
			{Base: base(now + 1), Remove: true, Template: "$appId"}, // not newer than the add: ignored
		} {
			r.source.deliver(r.wire.message(event.TopicThrottleData, ev))
		}
		synctest.Wait()
		wantEqual(t, r)
		settled(time.Second)
		wantEqual(t, r)
		if n := r.m.calls[kindKeyTemplates]; n != 2 {
			t.Errorf("the key templates were fetched %d times, want 2: at the start and once after the events", n)
		}
	})
}

func TestApplicationTakesItsRowsWithIt(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.mappings["ck@Resident Key Manager"] = controlplane.KeyMapping{ApplicationID: 1, ConsumerKey: "ck", KeyType: "PRODUCTION", KeyManager: "Resident Key Manager"}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		wantEqual(t, r)
		now := r.m.now()
		r.m.mu.Lock()
		clear(r.m.apps)
		clear(r.m.subs)
		clear(r.m.mappings)
		r.m.mu.Unlock()
		r.source.deliver(r.wire.message(event.TopicNotification, event.ApplicationChanged{Base: base(now), Action: event.Delete, ID: 1}))
		// Late news of what belonged to it.
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, subRow(77, "UNBLOCKED"), event.Create, now-1)))
		synctest.Wait()
		wantEqual(t, r)
	})
}

func TestDecisionsAreAppliedAtOnce(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.before = time.Hour // no list ever comes
		r.source.state(eventsource.Connected)
		r.source.deliver(r.wire.message(event.TopicThrottleData, event.ThrottleDecision{Base: base(1), Key: "12:dana@carbon.super", Throttled: true, ExpiresAt: 5}))
		synctest.Wait()
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		want := throttle.Decision{Key: "12:dana@carbon.super", Throttled: true, ExpiresAt: 5}
		got := r.w.decisions[want.Key]
		got.Origin = throttle.Origin{}
		if got.Key != want.Key || got.ExpiresAt != want.ExpiresAt || !got.Throttled {
			t.Errorf("decision %+v, want %+v", got, want)
		}
	})
}

func TestQueueOverflowDropsTheBacklogAndResyncs(t *testing.T) {
	run(t, func(o *Options) { o.QueueLimit = 10 }, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.m.mu.Lock()
		r.m.subs[1] = subRow(1, "BLOCKED")
		r.m.mu.Unlock()
		block := make(chan struct{})
		go r.subscriptions.w.do(t.Context(), func() { <-block }) // the worker is busy
		synctest.Wait()
		for i := range 25 {
			r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, subRow(1, "ON_HOLD"), event.Update, r.m.now()-int64(25-i))))
		}
		close(block)
		settled(5 * time.Second)
		if got := r.State().Sources[0].EventsIgnored["dropped"]; got != 20 {
			t.Errorf("%d events dropped, want 20", got)
		}
		wantEqual(t, r)
	})
}

func TestUnreadableMessageIsCountedAndTheListsFetched(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.m.mu.Lock()
		r.m.subs[1] = subRow(1, "BLOCKED")
		r.m.mu.Unlock()
		r.source.deliver(event.Message{Topic: event.TopicNotification})
		settled(time.Second)
		wantEqual(t, r)
		if n := r.m.calls[kindDenyPolicies]; n != 1 {
			t.Errorf("/block was fetched %d times, want 1: it is another topic's", n)
		}
		if got := r.State().Sources[0].EventsIgnored["malformed"]; got != 1 {
			t.Errorf("%d malformed counted, want 1", got)
		}
	})
}

func TestEventFromTheFutureDoesNotKeepLaterChangesOut(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		row := subRow(1, "BLOCKED")
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, row, event.Update, r.m.now()+24*3600_000)))
		settled(2 * time.Second)
		row.SubscriptionState = "ON_HOLD"
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, row, event.Update, r.m.now())))
		synctest.Wait()
		if got := state(t, r, 1); got != "ON_HOLD" {
			t.Errorf("subscription 1 is %s, want ON_HOLD", got)
		}
	})
}

func TestResyncRunsBySelf(t *testing.T) {
	run(t, func(o *Options) { o.ResyncInterval = 10 * time.Minute }, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Second)
		artifacts := r.m.calls[kindArtifacts]
		r.m.mu.Lock()
		r.m.subs[1] = subRow(1, "BLOCKED")
		r.m.mu.Unlock()
		settled(12*time.Minute + time.Second)
		wantEqual(t, r)
		if n := r.m.calls[kindArtifacts]; n != artifacts {
			t.Errorf("the artifacts were fetched %d times more, want none", n-artifacts)
		}
	})
}

func TestRefusedCredentialsAreNoStorm(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.failing[""] = &controlplane.Error{Op: "list", Kind: controlplane.Refused, Status: 401}
		r.source.state(eventsource.Connected)
		settled(10 * time.Minute)
		if n := r.m.calls[kindSubscriptions]; n < 9 || n > 13 {
			t.Errorf("%d tries in ten minutes, want about one a minute", n)
		}
	})
}

func TestChangesTellBeforeAndAfter(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		ch, lost, stop := r.Changes(2)
		defer stop()
		for i, s := range []string{"BLOCKED", "ON_HOLD", "UNBLOCKED"} {
			r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, subRow(1, s), event.Update, r.m.now()+int64(i))))
		}
		synctest.Wait()
		var got []string
		for len(ch) > 0 {
			c := <-ch
			if c.What != "subscription" || c.ID != "1" || c.Before == nil || c.After == nil || c.Origin.Kind != "event" {
				t.Errorf("change %+v", c)
			}
			got = append(got, string(c.After.(*subscription.Subscription).State))
		}
		if want := []string{"ON_HOLD", "UNBLOCKED"}; !slices.Equal(got, want) || lost() != 1 {
			t.Errorf("changes %q, %d lost; want %q and 1 lost", got, lost(), want)
		}
	})
}
