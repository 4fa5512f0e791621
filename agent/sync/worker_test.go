package sync

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strings"
	gosync "sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

func TestInboxIsBounded(t *testing.T) {
	type step struct {
		do      string // push, take, finish
		size    int
		dropped int
	}
	push := func(size, dropped int) step { return step{"push", size, dropped} }
	for name, c := range map[string]struct {
		steps       []step
		left, bytes int
	}{
		"by number":                               {[]step{push(1, 0), push(1, 0), push(1, 0), push(1, 0), push(1, 4)}, 1, 1},
		"by bytes":                                {[]step{push(60, 0), push(40, 0), push(1, 2)}, 1, 1},
		"one that is too large for all":           {[]step{push(500, 0)}, 1, 500},
		"one that is too large drops others":      {[]step{push(10, 0), push(500, 1), push(10, 1)}, 1, 10},
		"what is being applied counts":            {[]step{push(90, 0), {do: "take"}, push(10, 0), push(1, 1)}, 1, 91},
		"what is being applied leaves an entry":   {[]step{push(100, 0), {do: "take"}, push(50, 0)}, 1, 150},
		"what was applied does not":               {[]step{push(90, 0), {do: "take"}, {do: "finish"}, push(60, 0), push(40, 0)}, 2, 100},
		"a part of what is applied does not":      {[]step{push(40, 0), push(50, 0), {do: "take"}, {do: "finish"}, push(25, 0), push(25, 0), push(1, 2)}, 1, 51},
		"what was dropped does not":               {[]step{push(60, 0), push(60, 1), push(40, 0)}, 2, 100},
		"the number counts what waits only":       {[]step{push(1, 0), push(1, 0), push(1, 0), push(1, 0), {do: "take"}, push(1, 0), push(1, 0)}, 2, 6},
		"an oversized one that is applied blocks": {[]step{push(500, 0), {do: "take"}, push(1, 0), push(1, 1), {do: "finish"}, push(99, 0)}, 2, 100},
	} {
		t.Run(name, func(t *testing.T) {
			q := newInbox(4, 100)
			var taken []item
			for i, s := range c.steps {
				switch s.do {
				case "push":
					if got := len(q.push(item{size: s.size})); got != s.dropped {
						t.Errorf("step %d: %d dropped, want %d", i, got, s.dropped)
					}
				case "take":
					taken = q.take(nil)
				case "finish":
					q.finish(&taken[0])
					taken = taken[1:]
				}
			}
			if q.len() != c.left || q.bytes() != c.bytes {
				t.Errorf("%d events of %d bytes, want %d of %d", q.len(), q.bytes(), c.left, c.bytes)
			}
		})
	}
}

func TestQueueOfLargeEventsOverflowsByBytes(t *testing.T) {
	run(t, func(o *Options) { o.QueueBytes = 1 << 20 }, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.m.mu.Lock()
		r.m.subs[1] = subRow(1, "BLOCKED")
		r.m.mu.Unlock()
		block := make(chan struct{})
		go r.subscriptions.w.do(t.Context(), func() { <-block }) // the worker is busy
		synctest.Wait()
		for i := range 25 {
			m := r.wire.message(event.TopicNotification, subEvent(r.m, subRow(1, "ON_HOLD"), event.Update, r.m.now()-int64(25-i)))
			m.Body = make([]byte, 100_000)
			r.source.deliver(m)
			if n := r.subscriptions.w.in.bytes(); n > 1<<20 {
				t.Fatalf("%d bytes wait", n)
			}
		}
		close(block)
		settled(5 * time.Second)
		if got := r.State().Sources[0].EventsIgnored["dropped"]; got != 20 {
			t.Errorf("%d events dropped, want 20: ten fit", got)
		}
		wantEqual(t, r)
		if n := r.subscriptions.w.in.bytes(); n != 0 {
			t.Errorf("%d bytes are counted when all is applied", n)
		}
	})
}

func TestRoutesAreSetWhileEventsKeepComing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := newWorker("apis", 1000, 1<<20)
		var sets []time.Duration
		dirty, began := false, time.Now()
		w.apply = func(*item) outcome {
			time.Sleep(2 * time.Millisecond)
			dirty = true
			if ctx.Err() == nil {
				w.in.push(item{}) // there is always another one
			}
			return outOther
		}
		w.done = func(*item, outcome) {}
		w.settle = func() {
			if dirty {
				dirty = false
				sets = append(sets, time.Since(began))
			}
		}
		for range 400 { // one batch takes most of a second
			w.in.push(item{})
		}
		var running gosync.WaitGroup
		running.Go(func() { w.run(ctx) })
		time.Sleep(5 * time.Second)
		cancel()
		running.Wait()
		last := time.Duration(0)
		for _, at := range append(sets, 5*time.Second) {
			if d := at - last; d > maxUnsettled+10*time.Millisecond && at <= 5*time.Second {
				t.Errorf("the routes were not set from %v to %v", last, at)
			}
			last = at
		}
	})
}

// poison makes the sink of subscription policies panic over one name.
func poison(o *Options, name string) *atomic.Bool {
	on := new(atomic.Bool)
	on.Store(true)
	s := &o.Domains.SubscriptionPolicies
	put, all := s.Put, s.ReplaceAll
	check := func(p throttle.Policy) {
		if on.Load() && p.Name == name {
			panic("poisoned row " + name)
		}
	}
	s.Put = func(p throttle.Policy) { check(p); put(p) }
	s.ReplaceAll = func(list []throttle.Policy) {
		for _, p := range list {
			check(p)
		}
		all(list)
	}
	return on
}

func policyNamed(name string, count int64) controlplane.Policy {
	return controlplane.Policy{Name: name, TenantDomain: superTenant, DefaultLimit: &controlplane.Limit{QuotaType: "requestCount", TimeUnit: "min", UnitTime: 1, Count: count}}
}

func TestPoisonedRowOfASmallTableHurtsItselfOnly(t *testing.T) {
	var log bytes.Buffer
	var mu gosync.Mutex
	var on *atomic.Bool
	reg := prometheus.NewRegistry()
	run(t, func(o *Options) {
		on = poison(o, "Bad")
		o.Logger, o.Registerer = zerolog.New(locked{&mu, &log}), reg
	}, func(t *testing.T, r *rig) {
		for _, name := range []string{"Gold", "Bad", "Silver"} {
			r.m.subPol[name] = policyNamed(name, 5)
		}
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		if !r.IsReady() {
			t.Error("not ready: one row kept the gateway out")
		}
		if got := strings.Join(r.w.subPol.keys(), " "); got != "carbon.super/Gold carbon.super/Silver" {
			t.Errorf("policies %s, want the two good ones", got)
		}
		if n := testutil.ToFloat64(r.metrics.panics.WithLabelValues("policies")); n < 2 {
			t.Errorf("%v panics are counted, want some: the list is due again", n)
		}
		mu.Lock()
		stacks := strings.Count(log.String(), `"stack"`)
		mu.Unlock()
		if stacks != 1 {
			t.Errorf("%d stacks in the log, want one", stacks)
		}
		on.Store(false) // the row has become good
		settled(3 * time.Minute)
		wantEqual(t, r)
	})
}

func TestPoisonedRowOfALargeTableHurtsItselfOnly(t *testing.T) {
	for _, when := range []string{"at the start", "later"} {
		t.Run(when, func(t *testing.T) {
			var on atomic.Bool
			on.Store(when == "at the start")
			run(t, func(o *Options) {
				put := o.Domains.Subscriptions.Put
				o.Domains.Subscriptions.Put = func(s subscription.Subscription) *subscription.Subscription {
					if on.Load() && s.ID == 2 {
						panic("poisoned")
					}
					return put(s)
				}
			}, func(t *testing.T, r *rig) {
				r.source.state(eventsource.Connected)
				settled(time.Minute)
				on.Store(true)
				r.m.mu.Lock()
				for id := range int64(4) {
					r.m.subs[id+1] = subRow(id+1, "BLOCKED")
				}
				r.m.mu.Unlock()
				r.Resync()
				settled(time.Minute)
				want := map[string]string{"at the start": "absent", "later": "UNBLOCKED"}[when]
				for id := range int64(4) {
					w := "BLOCKED"
					if id == 1 {
						w = want
					}
					if got := state(t, r, id+1); got != w {
						t.Errorf("subscription %d is %s, want %s", id+1, got, w)
					}
				}
				on.Store(false)
				settled(3 * time.Minute)
				wantEqual(t, r)
			})
		})
	}
}

func TestPoisonedEventIsPassedOver(t *testing.T) {
	var on atomic.Bool
	run(t, func(o *Options) {
		put := o.Domains.Subscriptions.Put
		o.Domains.Subscriptions.Put = func(s subscription.Subscription) *subscription.Subscription {
			if on.Load() {
				panic("poisoned")
			}
			return put(s)
		}
	}, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		on.Store(true)
		row := subRow(1, "BLOCKED")
		r.m.mu.Lock()
		r.m.subs[1] = row
		r.m.mu.Unlock()
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, row, event.Update, r.m.now())))
		synctest.Wait()
		if n := r.State().Sources[0].EventsIgnored["malformed"]; n != 1 {
			t.Errorf("%d events counted as malformed, want 1", n)
		}
		on.Store(false)
		settled(time.Minute)
		wantEqual(t, r)
	})
}

// TestEveryWaitingCallerGetsAnError plants a panic in what the worker runs for a list, an answer and a look-up.
func TestEveryWaitingCallerGetsAnError(t *testing.T) {
	t.Run("do", func(t *testing.T) {
		run(t, nil, func(t *testing.T, r *rig) {
			settled(time.Minute)
			calls := r.m.calls[kindSubscriptions]
			if err := r.subscriptions.w.do(t.Context(), func() { panic("planted") }); err == nil || !strings.Contains(err.Error(), "planted") {
				t.Errorf("do returned %v, want the panic", err)
			}
			if err := r.subscriptions.w.do(t.Context(), func() {}); err != nil {
				t.Errorf("the worker is gone: %v", err)
			}
			settled(time.Minute)
			if n := r.m.calls[kindSubscriptions]; n != calls+1 {
				t.Errorf("the list was fetched %d times more, want once", n-calls)
			}
		})
	})
	t.Run("a list", func(t *testing.T) {
		var on atomic.Bool
		run(t, func(o *Options) {
			n := o.Domains.Applications.Len
			o.Domains.Applications.Len = func() int {
				if on.Load() {
					panic("planted")
				}
				return n()
			}
		}, func(t *testing.T, r *rig) {
			settled(time.Minute)
			on.Store(true)
			r.m.mu.Lock()
			r.m.apps[7] = controlplane.Application{ID: 7, Name: "New"}
			r.m.mu.Unlock()
			r.Resync()
			settled(time.Minute)
			var cur *pull[int64, subscription.Application]
			if err := r.applications.w.do(t.Context(), func() { cur = r.applications.cur }); err != nil || cur != nil {
				t.Errorf("a list is still said to be under way (%v)", err)
			}
			r.applications.mu.Lock()
			fault := r.applications.lastErr
			r.applications.mu.Unlock()
			if !strings.Contains(fault, "planted") {
				t.Errorf("the state says %q, want the fault", fault)
			}
			on.Store(false)
			settled(3 * time.Minute)
			wantEqual(t, r)
		})
	})
	for _, where := range []string{"the API Manager's answer", "the table"} {
		t.Run("a look-up, in "+where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var on atomic.Bool
				r := newRig(t, full(), func(o *Options) {
					put, single := o.Domains.KeyMappings.Put, o.Lists.KeyMapping
					o.Domains.KeyMappings.Put = func(m subscription.KeyMapping) *subscription.KeyMapping {
						if on.Load() && where == "the table" {
							panic("planted")
						}
						return put(m)
					}
					o.Lists.KeyMapping = func(ctx context.Context, tenant, key, km string) (*controlplane.KeyMapping, error) {
						time.Sleep(100 * time.Millisecond) // all requests wait for one answer
						if on.Load() && where != "the table" {
							panic("planted")
						}
						return single(ctx, tenant, key, km)
					}
				})
				r.start()
				defer r.end(t)
				settled(time.Minute)
				r.m.unknown()
				on.Store(true)
				errs := make(chan error, 3)
				for range cap(errs) {
					go func() {
						_, err := r.Fetch(t.Context(), "new", "Default", subscription.APIRef{UUID: "uuid-1"}, subscription.UnknownKey)
						errs <- err
					}()
				}
				for range cap(errs) {
					if err := <-errs; err == nil || !strings.Contains(err.Error(), "planted") {
						t.Errorf("a waiting request got %v, want the fault", err)
					}
				}
				asking := true
				if err := r.mappings.w.do(t.Context(), func() { asking = r.mappings.asking }); err != nil || asking {
					t.Errorf("an answer is still said to be applied (%v)", err)
				}
				settled(time.Minute)
				if n := r.m.calls[kindKeyMappings]; n < 2 {
					t.Errorf("the list was fetched %d times, want again after the fault", n)
				}
				on.Store(false)
				r.Resync()
				settled(3 * time.Minute)
				wantEqual(t, r)
			})
		})
	}
	t.Run("a message", func(t *testing.T) {
		run(t, func(o *Options) {
			decode := o.Decode
			o.Decode = func(m event.Message) ([]event.Event, error) {
				if m.ContentType == "poison" {
					panic("planted")
				}
				return decode(m)
			}
		}, func(t *testing.T, r *rig) {
			r.source.state(eventsource.Connected)
			settled(time.Minute)
			r.m.mu.Lock()
			r.m.subs[1] = subRow(1, "BLOCKED")
			r.m.mu.Unlock()
			r.source.deliver(event.Message{Topic: "NOTIFICATION", ContentType: "poison"})
			settled(time.Minute)
			wantEqual(t, r)
		})
	})
}

func TestFaultWhileSettingRoutesIsTriedAgain(t *testing.T) {
	var on atomic.Bool
	on.Store(true)
	run(t, func(o *Options) {
		set := o.Domains.SetAPIs
		o.Domains.SetAPIs = func(list []*definition.API) map[string]error {
			if on.Load() {
				panic("planted")
			}
			return set(list)
		}
	}, func(t *testing.T, r *rig) {
		r.m.deploy(project(t, 1, 1), 1, "PUBLISHED")
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		if !r.IsReady() {
			t.Error("not ready: one fault kept the gateway out")
		}
		on.Store(false)
		settled(2 * renderRetry)
		if got := r.w.contexts(); len(got) != 1 {
			t.Errorf("routes %q, want one", got)
		}
	})
}

func TestPoisonedSnapshotDoesNotKeepTheGatewayDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		leave(t, dir)
		r := newRig(t, full(), func(o *Options) {
			o.DataDir = dir
			o.Domains.Revoke = func(keymanager.Revocation) { panic("planted") }
		})
		r.start()
		defer r.end(t)
		settled(time.Minute)
		if st := r.State(); !st.Ready || !strings.Contains(fmt.Sprint(st.Snapshot), "/snapshot") {
			t.Errorf("state %+v, want ready", st)
		}
		wantEqual(t, r)
	})
}

// TestLookUpsEndBeforeRun: what a request has begun is over when Run returns.
func TestLookUpsEndBeforeRun(t *testing.T) {
	r := newRig(t, full(), nil)
	var inside, late atomic.Int32
	begun := make(chan struct{})
	r.opt.Lists.KeyMapping = nil
	r.mappings.single = func(ctx context.Context, _ MappingKey, _ *subscription.KeyMapping) ([]subscription.KeyMapping, error) {
		inside.Add(1)
		defer inside.Add(-1)
		close(begun)
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond) // closing a connection takes a moment
		return nil, ctx.Err()
	}
	r.opt.MissTimeout = time.Minute
	r.start()
	<-r.Ready()
	var waiting gosync.WaitGroup
	for _, key := range []string{"new", "new"} {
		waiting.Go(func() {
			if found, _ := r.Fetch(t.Context(), key, "Default", subscription.APIRef{UUID: "uuid-1"}, subscription.UnknownKey); found {
				late.Add(1)
			}
		})
	}
	<-begun
	runtime.Gosched()
	r.end(t)
	if n := inside.Load(); n != 0 {
		t.Errorf("%d look-ups are under way although Run has returned", n)
	}
	waiting.Wait()
	if found, err := r.Fetch(t.Context(), "other", "Default", subscription.APIRef{UUID: "uuid-1"}, subscription.UnknownKey); found || err == nil {
		t.Errorf("a look-up after the end: %v, %v; want an error, for nobody was asked", found, err)
	}
}

// TestReadyIsNotLostBetweenTheStartAndTheFirstGoroutine: a folder that is set at the wrong moment must not use the one
// chance to become ready up.
func TestReadyIsNotLostAtTheStart(t *testing.T) {
	r := newRig(t, newManager(), func(o *Options) { o.Lists, o.Sources = Lists{}, nil })
	r.started.Store(time.Now().UnixMilli()) // Run has begun, and is reading its snapshot
	r.SetFolder(nil)
	r.start()
	defer r.end(t)
	select {
	case <-r.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("not ready although the folder is set")
	}
}
