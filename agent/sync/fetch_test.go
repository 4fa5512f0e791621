package sync

import (
	"context"
	"errors"
	gosync "sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/subscription"
)

func runFetch(t *testing.T, test func(t *testing.T, r *rig, ref subscription.APIRef)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := full()
		m.subs[1] = controlplane.Subscription{SubscriptionID: 1, APIID: 1, AppID: 1, PolicyID: "Gold", SubscriptionState: "UNBLOCKED"}
		r := newRig(t, m, nil)
		r.start()
		defer r.end(t)
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		test(t, r, subscription.APIRef{UUID: "uuid-1", ID: 1, Context: "/shop/1.0.0", Version: "1.0.0"})
	})
}

// unknown adds a client at the API Manager of which no event came.
func (m *manager) unknown() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.apps[8] = controlplane.Application{ID: 8, Name: "New", SubName: "erin"}
	m.mappings["new@Resident Key Manager"] = controlplane.KeyMapping{ApplicationID: 8, ConsumerKey: "new", KeyType: "PRODUCTION", KeyManager: "Resident Key Manager"}
	m.subs[800] = controlplane.Subscription{SubscriptionID: 800, APIID: 1, AppID: 8, PolicyID: "Gold", SubscriptionState: "UNBLOCKED"}
}

func TestFetchReadsEverythingThatHangsOnAMiss(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		r.m.unknown()
		found, err := r.Fetch(t.Context(), "new", "Default", ref, subscription.UnknownKey)
		if !found || err != nil {
			t.Fatalf("found %v, %v", found, err)
		}
		if v := subscription.Validate(r.w.resolve("new", "Default", ref)); v.Reason != subscription.Allowed {
			t.Errorf("after the fetch the client is %v", v.Reason)
		}
		// The next event of it is ordered after what was read.
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, controlplane.Subscription{SubscriptionID: 800, APIID: 1, AppID: 8, PolicyID: "Gold", SubscriptionState: "BLOCKED"},
			event.Update, r.m.now()+2000)))
		synctest.Wait()
		if got := state(t, r, 800); got != "BLOCKED" {
			t.Errorf("subscription 800 is %s, want BLOCKED", got)
		}
	})
}

func TestFetchFindsAnUnknownAPI(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, _ subscription.APIRef) {
		r.m.deploy(project(t, 5, 1), 5, "PUBLISHED")
		ref := subscription.APIRef{UUID: apiUUID(5), Context: "/api5/1.0.0", Version: "1.0.0"}
		if found, err := r.Fetch(t.Context(), "ck", "Resident Key Manager", ref, subscription.UnknownAPI); !found || err != nil {
			t.Errorf("found %v, %v", found, err)
		}
		if r.w.apis.table().Get(APIKey{UUID: apiUUID(5)}) == nil {
			t.Error("the API was not kept")
		}
	})
}

func TestFetchAsksOnceForAllAndRemembersANo(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		r.m.before = 100 * time.Millisecond
		fetch := func() bool {
			found, err := r.Fetch(t.Context(), "nobody", "KM", ref, subscription.UnknownKey)
			if err != nil {
				t.Error(err)
			}
			return found
		}
		var all gosync.WaitGroup
		for range 50 {
			all.Go(func() { fetch() })
		}
		all.Wait()
		if n := r.m.calls["key_mapping"]; n != 1 {
			t.Errorf("%d calls for 50 requests at one time, want 1", n)
		}
		for range 10 {
			fetch()
			settled(400 * time.Millisecond)
		}
		if n := r.m.calls["key_mapping"]; n != 1 {
			t.Errorf("%d calls within 5 s, want 1", n)
		}
		settled(2 * time.Second)
		fetch()
		if n := r.m.calls["key_mapping"]; n != 2 {
			t.Errorf("%d calls after 5 s, want 2", n)
		}
		// An event for the key drops the negative entry.
		r.source.deliver(r.wire.message(event.TopicNotification, event.KeyMappingChanged{Base: base(r.m.now()), Action: event.Delete, ConsumerKey: "nobody", KeyManager: "KM"}))
		synctest.Wait()
		fetch()
		if n := r.m.calls["key_mapping"]; n != 3 {
			t.Errorf("%d calls after an event for the key, want 3", n)
		}
	})
}

func TestFetchWaitsNoLongerThanItMay(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		r.m.before = time.Hour
		started := time.Now()
		found, err := r.Fetch(t.Context(), "slow", "KM", ref, subscription.UnknownKey)
		if found || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("found %v, %v; want a deadline", found, err)
		}
		if d := time.Since(started); d > r.opt.MissTimeout {
			t.Errorf("waited %v, want at most %v", d, r.opt.MissTimeout)
		}
	})
}

func TestFetchIsOfNoUseWhereARefusalIsKnown(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		for _, reason := range []subscription.Reason{subscription.Allowed, subscription.SubscriptionBlocked, subscription.SubscriptionInactive} {
			if found, err := r.Fetch(t.Context(), "ck", "KM", ref, reason); found || err != nil {
				t.Errorf("%v: found %v, %v", reason, found, err)
			}
		}
		if n := r.m.calls["key_mapping"] + r.m.calls["subscription"]; n != 0 {
			t.Errorf("%d calls, want none", n)
		}
	})
}

func TestMissesAreBounded(t *testing.T) {
	m := newMisses(100)
	now := time.Now()
	for i := range int64(10_000) {
		m.add(missKey{"key_mapping", decimal(i)}, miss{until: now.Add(time.Second)})
	}
	if n := len(m.until); n > 101 {
		t.Errorf("%d entries, want at most 100", n)
	}
	newest, _ := m.known(missKey{"key_mapping", "9999"}, now)
	oldest, _ := m.known(missKey{"key_mapping", "1"}, now)
	if !newest || oldest {
		t.Error("the newest stay and the oldest leave")
	}
}

func TestFetchApplicationReadsWhatHangsOnIt(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		r.m.unknown()
		found, err := r.FetchApplication(t.Context(), "", 8, ref, subscription.UnknownApplication)
		if !found || err != nil {
			t.Fatalf("found %v, %v", found, err)
		}
		if v := subscription.ValidateApplication(r.w.resolveApplication("", 8, ref), subscription.Production); v.Reason != subscription.Allowed {
			t.Errorf("after the fetch the application is %v", v.Reason)
		}
		if n := r.m.calls["key_mapping"]; n != 0 {
			t.Errorf("%d calls for key mappings, which API keys do not have", n)
		}
	})
}

func TestFetchApplicationAsksOnceForAllAndRemembersANo(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		r.m.before = 100 * time.Millisecond
		fetch := func() {
			if found, err := r.FetchApplication(t.Context(), "", 99, ref, subscription.UnknownApplication); found || err != nil {
				t.Errorf("found %v, %v", found, err)
			}
		}
		var all gosync.WaitGroup
		for range 50 {
			all.Go(fetch)
		}
		all.Wait()
		fetch()
		if n := r.m.calls["application"]; n != 1 {
			t.Errorf("%d calls within 5 s, want 1", n)
		}
		settled(6 * time.Second)
		fetch()
		if n := r.m.calls["application"]; n != 2 {
			t.Errorf("%d calls after 5 s, want 2", n)
		}
	})
}

// TestFetchApplicationOfAnotherUUID: the number leads to another application, which is not the key's.
func TestFetchApplicationOfAnotherUUID(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		r.m.unknown()
		for range 3 {
			if found, err := r.FetchApplication(t.Context(), "another", 8, ref, subscription.UnknownApplication); found || err != nil {
				t.Errorf("found %v, %v", found, err)
			}
		}
		if n := r.m.calls["application"]; n > 1 {
			t.Errorf("%d calls, want 1: what is there is not asked for again", n)
		}
	})
}

// TestWhatCouldNotBeAskedIsNoNo: a failure is remembered for a moment, but never as an answer.
func TestWhatCouldNotBeAskedIsNoNo(t *testing.T) {
	runFetch(t, func(t *testing.T, r *rig, ref subscription.APIRef) {
		r.m.before = time.Hour
		for _, wait := range []bool{true, false} {
			began := time.Now()
			if found, err := r.FetchApplication(t.Context(), "", 99, ref, subscription.UnknownApplication); found || err == nil {
				t.Errorf("found %v, %v; want an error", found, err)
			}
			if waited := time.Since(began) > 0; waited != wait {
				t.Errorf("waited %v, want %v", waited, wait)
			}
			settled(0)
		}
		if found, err := r.FetchApplication(t.Context(), "only-a-uuid", 0, ref, subscription.UnknownApplication); found || err == nil {
			t.Errorf("without a number: found %v, %v; want an error", found, err)
		}
	})
}
