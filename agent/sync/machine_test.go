package sync

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	gosync "sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
)

// The state machine: a random history of an API Manager whose events are reordered, delayed, repeated, and lost while
// the gateway is disconnected; disconnects fall into fetches; lists are slow or fail; clocks differ. When all is quiet
// again every row must equal the API Manager's, without a periodic resync having had to help.

// sequences is how many histories are tried; more with GATEHOUSE_SYNC_SEQUENCES.
func sequences() int {
	if n, err := strconv.Atoi(os.Getenv("GATEHOUSE_SYNC_SEQUENCES")); err == nil && n > 0 {
		return n
	}
	return 50
}

// step is one thing that happens. Its numbers are drawn; what they mean depends on what there is then.
type step struct {
	Op      string
	A, B    int
	Delay   int // ms until the event arrives
	Twice   bool
	Swapped bool
	Wait    int // ms until the next step
}

// history is a whole sequence.
type history struct {
	SkewMS, BeforeMS, AfterMS int
	Seed                      uint64
	Names                     names
	Steps                     []step
}

var opNames = []string{
	"create subscription", "create subscription", "change subscription", "change subscription", "change subscription", "delete subscription", "delete subscription",
	"create application", "change application", "delete application",
	"create mapping", "delete mapping", "create policy", "change policy", "delete policy",
	"deny", "deny", "allow", "allow", "change template", "change key manager", "delete key manager", "change api",
	"disconnect", "reconnect", "reconnect", "reconnect", "gap", "slow lists", "fail a list", "heal", "unreadable",
}

func histories() *rapid.Generator[history] {
	return rapid.Custom(func(t *rapid.T) history {
		return history{
			SkewMS:   rapid.SampledFrom([]int{0, 0, 300, -700, 4000, -4000, 180_000, -180_000}).Draw(t, "skew"),
			BeforeMS: rapid.SampledFrom([]int{0, 5, 200, 1500}).Draw(t, "before"),
			AfterMS:  rapid.SampledFrom([]int{0, 5, 300, 2500}).Draw(t, "after"),
			Seed:     rapid.Uint64().Draw(t, "seed"),
			Names:    names(rapid.SampledFrom([]int{0, 0, 1, 2, 3, 4}).Draw(t, "names")),
			Steps: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
				return step{
					Op:    rapid.SampledFrom(opNames).Draw(t, "op"),
					A:     rapid.IntRange(0, 7).Draw(t, "a"),
					B:     rapid.IntRange(0, 3).Draw(t, "b"),
					Delay: rapid.SampledFrom([]int{0, 0, 1, 20, 400, 1500, 3000}).Draw(t, "delay"),
					Twice: rapid.IntRange(0, 4).Draw(t, "twice") == 0,
					Wait:  rapid.SampledFrom([]int{0, 0, 1, 7, 100, 600, 2000}).Draw(t, "wait"),
				}
			}), 20, 60).Draw(t, "steps"),
		}
	})
}

// player plays a history.
type player struct {
	*rig
	rng       *rand.Rand
	connected bool
	epoch     int
	last      int64
	mu        gosync.Mutex
	nextSub   int64
	pending   gosync.WaitGroup
}

// stamp returns a time stamp that grows from one change to the next, as a database's would.
func (p *player) stamp() int64 {
	p.last = max(p.last+1, p.m.now())
	return p.last
}

// publish sends an event on its way; what is not delivered when the connection breaks is lost.
func (p *player) publish(topic string, ev event.Event, s step) {
	p.mu.Lock()
	epoch, up := p.epoch, p.connected
	p.mu.Unlock()
	if !up {
		return
	}
	ev = p.named(ev)
	deliver := func(after time.Duration) {
		p.pending.Go(func() {
			time.Sleep(after)
			p.mu.Lock()
			lost := p.epoch != epoch
			p.mu.Unlock()
			if !lost {
				p.source.deliver(p.wire.message(topic, ev))
			}
		})
	}
	deliver(time.Duration(s.Delay) * time.Millisecond)
	if s.Twice {
		deliver(time.Duration(p.rng.IntN(3000)) * time.Millisecond)
	}
}

// named makes an event name its entity as the API Manager's events do.
func (p *player) named(ev event.Event) event.Event {
	if p.m.names == byNumber {
		return ev
	}
	numberless := p.m.names == byUUID || p.rng.IntN(3) > 0
	switch ev := ev.(type) {
	case event.ApplicationChanged:
		if ev.UUID = appUUID(ev.ID); numberless {
			ev.ID = 0
		}
		return ev
	case event.KeyMappingChanged:
		if ev.ApplicationUUID = appUUID(ev.ApplicationID); numberless {
			ev.ApplicationID = 0
		}
		return ev
	case event.SubscriptionChanged:
		ev.UUID, ev.ApplicationUUID = subUUID(ev.ID), appUUID(ev.ApplicationID)
		if numberless {
			ev.ID, ev.ApplicationID = 0, 0
		}
		return ev
	}
	return ev
}

// locked is a writer for many goroutines.
type locked struct {
	mu *gosync.Mutex
	w  *bytes.Buffer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (p *player) connect(up bool) {
	p.mu.Lock()
	if up == p.connected {
		p.mu.Unlock()
		return
	}
	p.connected = up
	p.epoch++
	p.mu.Unlock()
	if up {
		p.source.state(eventsource.Connected)
	} else {
		p.source.state(eventsource.Disconnected)
	}
	synctest.Wait()
}

func (p *player) play(s step) {
	m := p.m
	p.log.Trace().Any("step", s).Int64("manager", m.now()).Msg("step")
	var out []func()
	emit := func(topic string, ev event.Event) { out = append(out, func() { p.publish(topic, ev, s) }) }
	m.mu.Lock()
	appID := int64(s.A%4 + 1)
	state := []string{"UNBLOCKED", "BLOCKED", "PROD_ONLY_BLOCKED", "ON_HOLD"}[s.B]
	switch s.Op {
	case "create subscription":
		p.nextSub++
		if _, ok := m.apps[appID]; ok {
			row := controlplane.Subscription{SubscriptionID: p.nextSub, APIID: p.nextSub % 7, AppID: appID, PolicyID: "Gold", SubscriptionState: "ON_HOLD"}
			for _, x := range m.subs {
				if x.APIID == row.APIID && x.AppID == row.AppID {
					m.mu.Unlock()
					return
				}
			}
			first := p.stamp()
			emit(event.TopicNotification, subEvent(m, row, event.Create, first))
			row.SubscriptionState = "UNBLOCKED"
			second := first
			if s.B > 0 {
				second = p.stamp()
			}
			m.subs[row.SubscriptionID] = row
			emit(event.TopicNotification, subEvent(m, row, event.Update, second))
		}
	case "change subscription":
		if id, ok := pick(m.subs, s.A); ok {
			row := m.subs[id]
			row.SubscriptionState = state
			if s.A%2 == 0 {
				row.PolicyID = fmt.Sprint("Tier", s.B)
			}
			m.subs[id] = row
			emit(event.TopicNotification, subEvent(m, row, event.Update, p.stamp()))
		}
	case "delete subscription":
		if id, ok := pick(m.subs, s.A); ok {
			row := m.subs[id]
			delete(m.subs, id)
			emit(event.TopicNotification, subEvent(m, row, event.Delete, p.stamp()))
		}
	case "create application", "change application":
		a, ok := m.apps[appID]
		if s.Op == "change application" && !ok || s.Op == "create application" && ok {
			break
		}
		action := event.Update
		if !ok {
			action = event.Create
		}
		a = controlplane.Application{ID: appID, Name: fmt.Sprint("App", s.B), SubName: "dana", Policy: fmt.Sprint("Tier", s.B)}
		m.apps[appID] = a
		emit(event.TopicNotification, event.ApplicationChanged{Base: base(p.stamp()), Action: action, ID: a.ID, Name: a.Name, Owner: a.SubName, Policy: a.Policy})
	case "delete application":
		if _, ok := m.apps[appID]; ok && s.B == 0 {
			delete(m.apps, appID)
			for id, x := range m.subs {
				if x.AppID == appID {
					delete(m.subs, id)
				}
			}
			for k, x := range m.mappings {
				if x.ApplicationID == appID {
					delete(m.mappings, k)
				}
			}
			emit(event.TopicNotification, event.ApplicationChanged{Base: base(p.stamp()), Action: event.Delete, ID: appID})
		}
	case "create mapping":
		if _, ok := m.apps[appID]; ok {
			k := controlplane.KeyMapping{ApplicationID: appID, ConsumerKey: fmt.Sprint("ck", s.A), KeyType: []string{"PRODUCTION", "SANDBOX"}[s.B%2], KeyManager: "Resident Key Manager"}
			if _, taken := m.mappings[k.ConsumerKey+"@"+k.KeyManager]; taken {
				break
			}
			m.mappings[k.ConsumerKey+"@"+k.KeyManager] = k
			emit(event.TopicNotification, event.KeyMappingChanged{Base: base(p.stamp()), Action: event.Create, ApplicationID: appID, ConsumerKey: k.ConsumerKey, KeyType: k.KeyType, KeyManager: "Default"})
		}
	case "delete mapping":
		if k, ok := pick(m.mappings, s.A); ok {
			row := m.mappings[k]
			delete(m.mappings, k)
			emit(event.TopicNotification, event.KeyMappingChanged{Base: base(p.stamp()), Action: event.Delete, ApplicationID: row.ApplicationID, ConsumerKey: row.ConsumerKey, KeyManager: row.KeyManager})
		}
	case "create policy", "change policy":
		name := fmt.Sprint("Tier", s.A)
		m.subPol[name] = controlplane.Policy{
			ID: int64(s.A), Name: name, TenantDomain: superTenant, RateLimitCount: int64(s.B), StopOnQuotaReach: true,
			QuotaType: "requestCount", DefaultLimit: &controlplane.Limit{QuotaType: "requestCount", TimeUnit: "min", UnitTime: 1, Count: int64(10 + s.B)},
		}
		emit(event.TopicNotification, event.PolicyChanged{Base: base(p.stamp()), Action: event.Update, Kind: "SUBSCRIPTION", ID: int64(s.A), Name: name, RateLimitCount: int64(s.B), StopOnQuotaReach: true})
	case "delete policy":
		if name, ok := pick(m.subPol, s.A); ok {
			delete(m.subPol, name)
			emit(event.TopicNotification, event.PolicyChanged{Base: base(p.stamp()), Action: event.Delete, Kind: "SUBSCRIPTION", Name: name})
		}
	case "deny", "allow":
		value := fmt.Sprintf("/api%d/1.0.0", s.A)
		rest := m.block.API[:0:0]
		for _, v := range m.block.API {
			if v != value {
				rest = append(rest, v)
			}
		}
		if s.Op == "deny" {
			rest = append(rest, value)
		}
		m.block.API = rest
		emit(event.TopicThrottleData, event.DenyChanged{Base: base(p.stamp()), Active: s.Op == "deny", Kind: "API", Value: value, ID: int64(s.A)})
	case "change template":
		added := fmt.Sprint("$appId:", s.A)
		if old, ok := pick(m.templates, s.A); ok && old != added {
			delete(m.templates, old)
			emit(event.TopicThrottleData, event.KeyTemplateChanged{Base: base(p.stamp()), Remove: true, Template: old})
		}
		m.templates[added] = true
		emit(event.TopicThrottleData, event.KeyTemplateChanged{Base: base(p.stamp()), Template: added})
	case "change key manager":
		k := controlplane.KeyManager{
			Name: fmt.Sprint("KM", s.A%3), Type: "Keycloak", Tenant: superTenant, Enabled: s.B > 0,
			Configuration: map[string]any{"issuer": fmt.Sprint("https://idp", s.B)},
		}
		m.kms[k.Name] = k
		emit(event.TopicKeyManager, event.KeyManagerChanged{Base: base(p.stamp()), Action: "update", Name: k.Name, KMType: k.Type, Enabled: k.Enabled, Tenant: superTenant, Configuration: k.Configuration})
	case "delete key manager":
		if name, ok := pick(m.kms, s.A); ok {
			delete(m.kms, name)
			emit(event.TopicKeyManager, event.KeyManagerChanged{Base: base(p.stamp()), Action: "delete", Name: name, Tenant: superTenant})
		}
	case "change api":
		uuid := fmt.Sprint("uuid-", s.A)
		a := m.apis[uuid]
		a.UUID, a.APIID, a.Name, a.Version, a.Context = uuid, int64(s.A), fmt.Sprint("API", s.A), "1.0.0", fmt.Sprintf("/api%d/1.0.0", s.A)
		a.Status, a.Policy, a.Organization = []string{"PUBLISHED", "BLOCKED", "DEPRECATED", "PUBLISHED"}[s.B], fmt.Sprint("Tier", s.B), superTenant
		m.apis[uuid] = a
		emit(event.TopicNotification, event.APIChanged{Base: base(p.stamp()), Action: event.Update, Lifecycle: s.B%2 == 1, ID: a.APIID, UUID: uuid, Name: a.Name, Version: a.Version, Context: a.Context, Status: a.Status})
	case "slow lists":
		m.before, m.after = time.Duration(s.A*300)*time.Millisecond, time.Duration(s.B*900)*time.Millisecond
	case "fail a list":
		names := []string{kindSubscriptions, kindApplications, kindKeyMappings, kindDenyPolicies, "subscription", "application", "", kindSubscriptionPolicies}
		m.failing[names[s.A]] = &controlplane.Error{Op: "list", Kind: []controlplane.Kind{controlplane.Server, controlplane.Unreachable}[s.B%2]}
	case "heal":
		clear(m.failing)
	}
	m.mu.Unlock()
	if s.B%2 == 1 && len(out) == 2 && s.Op != "create subscription" {
		out[0], out[1] = out[1], out[0]
	}
	for _, f := range out {
		f()
	}
	switch s.Op {
	case "disconnect":
		p.connect(false)
	case "reconnect":
		p.connect(true)
	case "gap":
		if p.connected {
			p.source.state(eventsource.Gap)
		}
	case "unreadable":
		p.source.deliver(event.Message{Topic: event.TopicThrottleData})
	}
	time.Sleep(time.Duration(s.Wait) * time.Millisecond)
}

// pick chooses a key by number, in an order that does not depend on the map's.
func pick[K ~int64 | ~string, V any](m map[K]V, n int) (k K, ok bool) {
	if len(m) == 0 {
		return k, false
	}
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	for i := range keys {
		for j := i + 1; j < len(keys); j++ {
			if keys[j] < keys[i] {
				keys[i], keys[j] = keys[j], keys[i]
			}
		}
	}
	return keys[n%len(keys)], true
}

// playHistory returns the differences that are left when all is quiet.
func playHistory(t *testing.T, h history, faults hooks) (differences []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newManager()
		m.names = h.Names
		m.skew = time.Duration(h.SkewMS) * time.Millisecond
		m.before, m.after = time.Duration(h.BeforeMS)*time.Millisecond, time.Duration(h.AfterMS)*time.Millisecond
		for id := range int64(4) {
			m.apps[id+1] = controlplane.Application{ID: id + 1, Name: "App", SubName: "dana"}
		}
		var log bytes.Buffer
		var logMu gosync.Mutex
		p := &player{rig: newRig(t, m, func(o *Options) {
			if os.Getenv("GATEHOUSE_SYNC_TRACE") != "" {
				o.Logger = zerolog.New(locked{&logMu, &log}).With().Timestamp().Logger()
			}
		}), rng: rand.New(rand.NewPCG(h.Seed, 1)), nextSub: 100}
		p.hooks = faults
		for id := range int64(6) {
			m.subs[id+1] = controlplane.Subscription{SubscriptionID: id + 1, APIID: id + 10, AppID: id%4 + 1, PolicyID: "Gold", SubscriptionState: "UNBLOCKED"}
		}
		p.start()
		p.connect(true)
		for _, s := range h.Steps {
			p.play(s)
		}
		m.mu.Lock()
		clear(m.failing)
		m.mu.Unlock()
		p.connect(true)
		p.pending.Wait()
		time.Sleep(time.Minute) // the longest pause between tries is 15 s, lists and questions may follow
		synctest.Wait()
		differences = p.differences()
		p.end(t)
		if len(differences) > 0 && log.Len() > 0 {
			// The first failure only: the ones that follow are shrunk, and may be of another kind.
			if f, err := os.OpenFile(os.Getenv("GATEHOUSE_SYNC_TRACE"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
				fmt.Fprintf(f, "%s%s\n", log.Bytes(), joined(differences))
				f.Close()
			}
		}
	})
	return differences
}

func TestEveryHistoryEndsEqual(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == f.DefValue {
		old := f.Value.String()
		if err := flag.Set("rapid.checks", strconv.Itoa(sequences())); err != nil {
			t.Fatal(err)
		}
		defer flag.Set("rapid.checks", old)
	}
	gen := histories()
	rapid.Check(t, func(rt *rapid.T) {
		h := gen.Draw(rt, "history")
		if d := playHistory(t, h, hooks{}); len(d) > 0 {
			rt.Fatalf("%d rows differ:\n%s", len(d), joined(d))
		}
	})
}

// TestPlantedFaultsAreFound is the test of the test above: each of three faults, planted one at a time, must show within
// as many histories as are always played.
func TestPlantedFaultsAreFound(t *testing.T) {
	gen := histories()
	for name, faults := range map[string]hooks{
		"no replay":            {noReplay: true},
		"no tombstone":         {noTombstone: true},
		"older replaces newer": {olderReplacesNewer: true},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range 50 {
				h := gen.Example(i)
				if d := playHistory(t, h, faults); len(d) > 0 {
					t.Logf("found by history %d: %s", i, d[0])
					return
				}
			}
			t.Fatal("50 histories did not find the fault: the state machine is too tame")
		})
	}
}
