package sync

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/subscription"
	"gatehouse/subscription/store"
)

// subscriptions shows the rows that are held.
func (w *world) subscriptions() []string {
	var rows []string
	for s := range w.subs.table().All() {
		rows = append(rows, fmt.Sprintf("%d %s %s", s.ID, s.UUID, s.State))
	}
	slices.Sort(rows)
	return rows
}

func TestRowsAreOneByWhateverTheyAreNamed(t *testing.T) {
	type ev struct {
		id    int64
		uuid  string
		at    int64
		state string // "" deletes
	}
	for name, c := range map[string]struct {
		listed []controlplane.Subscription
		events []ev
		want   []string
		// again is what is held when the list has come once more, which the events have not changed.
		again []string
	}{
		"two by UUID": {
			listed: []controlplane.Subscription{{SubscriptionUUID: "u1"}, {SubscriptionUUID: "u2"}},
			want:   []string{"0 u1 LISTED", "0 u2 LISTED"},
		},
		"an event by UUID meets a row by UUID": {
			listed: []controlplane.Subscription{{SubscriptionUUID: "u1"}, {SubscriptionUUID: "u2"}},
			events: []ev{{0, "u1", 1, "BLOCKED"}},
			want:   []string{"0 u1 BLOCKED", "0 u2 LISTED"},
		},
		"an event by both meets a row by UUID, which stays one": {
			listed: []controlplane.Subscription{{SubscriptionUUID: "u1"}, {SubscriptionUUID: "u2"}},
			events: []ev{{1, "u1", 1, "BLOCKED"}},
			want:   []string{"0 u2 LISTED", "1 u1 BLOCKED"},
			again:  []string{"0 u2 LISTED", "1 u1 LISTED"},
		},
		"an event by UUID meets a row by both": {
			listed: []controlplane.Subscription{{SubscriptionID: 1, SubscriptionUUID: "u1"}, {SubscriptionID: 2, SubscriptionUUID: "u2"}},
			events: []ev{{0, "u1", 1, "BLOCKED"}},
			want:   []string{"1 u1 BLOCKED", "2 u2 LISTED"},
		},
		"its age goes with the row": {
			listed: []controlplane.Subscription{{SubscriptionUUID: "u1"}},
			events: []ev{{0, "u1", 20, "BLOCKED"}, {1, "u1", 10, "ON_HOLD"}},
			want:   []string{"1 u1 BLOCKED"},
			again:  []string{"1 u1 LISTED"},
		},
		"deleted by UUID": {
			listed: []controlplane.Subscription{{SubscriptionID: 1, SubscriptionUUID: "u1"}, {SubscriptionID: 2, SubscriptionUUID: "u2"}},
			events: []ev{{0, "u1", 1, ""}},
			want:   []string{"2 u2 LISTED"},
		},
		"deleted by both, late news by UUID": {
			listed: []controlplane.Subscription{{SubscriptionID: 1, SubscriptionUUID: "u1"}, {SubscriptionID: 2, SubscriptionUUID: "u2"}},
			events: []ev{{1, "u1", 20, ""}, {0, "u1", 10, "BLOCKED"}},
			want:   []string{"2 u2 LISTED"},
		},
		"deleted by number, late news by UUID": {
			listed: []controlplane.Subscription{{SubscriptionID: 1, SubscriptionUUID: "u1"}, {SubscriptionID: 2, SubscriptionUUID: "u2"}},
			events: []ev{{1, "", 20, ""}, {0, "u1", 10, "BLOCKED"}},
			want:   []string{"2 u2 LISTED"},
		},
		"deleted by UUID, late news by both": {
			listed: []controlplane.Subscription{{SubscriptionUUID: "u1"}, {SubscriptionUUID: "u2"}},
			events: []ev{{0, "u1", 20, ""}, {1, "u1", 10, "BLOCKED"}},
			want:   []string{"0 u2 LISTED"},
		},
		"deleted before it was known, late news by UUID": {
			listed: []controlplane.Subscription{{SubscriptionID: 2, SubscriptionUUID: "u2"}},
			events: []ev{{1, "u1", 20, ""}, {0, "u1", 10, "BLOCKED"}},
			want:   []string{"2 u2 LISTED"},
		},
		"named by nothing": {
			listed: []controlplane.Subscription{{SubscriptionUUID: "u1"}, {APIID: 9}},
			events: []ev{{0, "", 10, "BLOCKED"}},
			want:   []string{"0 u1 LISTED"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(t *testing.T, r *rig) {
				clear(r.m.subs)
				for i, s := range c.listed {
					s.SubscriptionState = "LISTED"
					r.m.subs[int64(i)] = s
				}
				r.source.state(eventsource.Connected)
				settled(time.Minute)
				now := r.m.now()
				for _, e := range c.events {
					x := event.SubscriptionChanged{Base: base(now + e.at), Action: event.Update, ID: e.id, UUID: e.uuid, State: e.state}
					if e.state == "" {
						x.Action = event.Delete
					}
					r.source.deliver(r.wire.message(event.TopicNotification, x))
				}
				synctest.Wait()
				if got := r.w.subscriptions(); !slices.Equal(got, c.want) {
					t.Errorf("held are %q, want %q", got, c.want)
				}
				if c.again != nil {
					settled(time.Minute)
					r.Resync()
					settled(time.Minute)
					if got := r.w.subscriptions(); !slices.Equal(got, c.again) {
						t.Errorf("after the list held are %q, want %q", got, c.again)
					}
				}
			})
		})
	}
}

// TestRowGetsItsNumberWhileTheListIsRead: the list on its way names the row by UUID, and must not bring it a second time.
func TestRowGetsItsNumberWhileTheListIsRead(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.m.names = listsByUUID
		list := r.subscriptions.fetch
		hold := make(chan struct{})
		close(hold)
		r.subscriptions.fetch = func(ctx context.Context, each func(subscription.Subscription) error) (Meta, error) {
			m, err := list(ctx, each)
			for range chunkRows { // what has been read is taken, and the rest is not there yet
				if err == nil {
					err = each(subscription.Subscription{UUID: "filler"})
				}
			}
			<-hold
			return m, err
		}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		hold = make(chan struct{})
		r.Resync()
		settled(time.Second)
		ev := event.SubscriptionChanged{Base: base(r.m.now() - 50_000), Action: event.Update, ID: 1, UUID: subUUID(1), APIID: 1, ApplicationUUID: appUUID(1), Policy: "Gold", State: "UNBLOCKED"}
		r.source.deliver(r.wire.message(event.TopicNotification, ev))
		synctest.Wait()
		close(hold)
		settled(time.Minute)
		if got := r.w.subs.table().Len(); got != 5 || r.w.subs.table().Get(1) == nil {
			t.Errorf("held are %q, want each once, the first by its number", r.w.subscriptions())
		}
	})
}

func TestApplicationsByUUIDTakeTheirRowsWithThem(t *testing.T) {
	for _, names := range []names{byUUID, listsByUUID, listsByBoth} {
		for _, ev := range []event.ApplicationChanged{{UUID: appUUID(1)}, {ID: 1, UUID: appUUID(1)}} {
			t.Run(fmt.Sprint(names, " ", ev.ID), func(t *testing.T) {
				run(t, nil, func(t *testing.T, r *rig) {
					r.m.names = names
					r.m.apps[2] = controlplane.Application{ID: 2, Name: "Other"}
					r.m.subs[9] = controlplane.Subscription{SubscriptionID: 9, APIID: 1, AppID: 2, PolicyID: "Gold", SubscriptionState: "UNBLOCKED"}
					for _, app := range []int64{1, 2} {
						k := controlplane.KeyMapping{ApplicationID: app, ConsumerKey: fmt.Sprint("ck", app), KeyManager: "Resident Key Manager"}
						r.m.mappings[k.ConsumerKey+"@"+k.KeyManager] = k
					}
					r.source.state(eventsource.Connected)
					settled(time.Minute)
					wantEqual(t, r)
					r.m.mu.Lock()
					delete(r.m.apps, 1)
					delete(r.m.mappings, "ck1@Resident Key Manager")
					for id := range int64(4) {
						delete(r.m.subs, id+1)
					}
					r.m.mu.Unlock()
					ev.Base, ev.Action = base(r.m.now()), event.Delete
					r.source.deliver(r.wire.message(event.TopicNotification, ev))
					late := event.SubscriptionChanged{Base: base(r.m.now() - 1), Action: event.Create, ID: 77, UUID: subUUID(77), ApplicationUUID: appUUID(1), State: "UNBLOCKED"}
					r.source.deliver(r.wire.message(event.TopicNotification, late))
					synctest.Wait()
					wantEqual(t, r)
				})
			})
		}
	}
}

// TestRowsByUUIDOverTheRealTablesAndARestart: what has no number is found by requests, and kept on disk.
func TestRowsByUUIDOverTheRealTablesAndARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		check := func(s *store.Store, state1 subscription.State) {
			t.Helper()
			for app, want := range map[int64]subscription.State{1: state1, 2: "UNBLOCKED"} {
				f := s.Resolve(fmt.Sprint("ck", app), "Default", subscription.APIRef{UUID: "uuid-1"})
				if f.Application == nil || f.Application.UUID != appUUID(app) || f.Subscription == nil || f.Subscription.State != want {
					t.Errorf("the client of application %d leads to %+v, want a subscription that is %s", app, f, want)
				}
			}
			if n := s.Subscriptions().Len(); n != 2 {
				t.Errorf("%d subscriptions, want 2", n)
			}
		}
		start := func() (*rig, *store.Store) {
			m := full()
			m.names = byUUID
			clear(m.subs)
			clear(m.mappings)
			m.apps[2] = controlplane.Application{ID: 2, Name: "Other"}
			for _, app := range []int64{1, 2} {
				k := controlplane.KeyMapping{ApplicationID: app, ConsumerKey: fmt.Sprint("ck", app), KeyManager: "Resident Key Manager"}
				m.mappings[k.ConsumerKey+"@"+k.KeyManager] = k
				m.subs[app] = controlplane.Subscription{SubscriptionID: app, APIID: 1, APIUUID: "uuid-1", AppID: app, PolicyID: "Gold", SubscriptionState: "UNBLOCKED"}
			}
			s := store.New()
			r := newRig(t, m, func(o *Options) {
				overStore(s)(o)
				o.DataDir = dir
			})
			return r, s
		}
		r, s := start()
		r.start()
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		check(s, "UNBLOCKED")
		r.end(t)

		r, s = start()
		r.m.failing[""] = &controlplane.Error{Op: "list", Kind: controlplane.Unreachable}
		r.start()
		defer r.end(t)
		synctest.Wait()
		check(s, "UNBLOCKED")
		ev := event.SubscriptionChanged{Base: base(r.m.now() + 10), Action: event.Update, ID: 1, UUID: subUUID(1), APIUUID: "uuid-1", ApplicationUUID: appUUID(1), Policy: "Gold", State: "BLOCKED"}
		r.source.state(eventsource.Connected)
		r.source.deliver(r.wire.message(event.TopicNotification, ev))
		synctest.Wait()
		check(s, "BLOCKED")
	})
}
