package main_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/harness"
	"gatehouse/subscription"
	"gatehouse/subscription/store"
)

// plan says how much is measured, and what must hold. A bound of zero is not judged.
type plan struct {
	// rounds of a deny policy put and taken; fewer with the large tables loaded.
	rounds, loadedRounds int
	denyP50, denyP99     time.Duration

	subscriptions, mappings, applications, apis int
	load                                        time.Duration
	memory                                      int64 // bytes, VmHWM
	lookup                                      time.Duration
	otherMemory                                 int // bytes that random reads are tried on

	amqpRate, natsRate int // events a second
	lasting            time.Duration
	catchUp            time.Duration
}

const mib = 1 << 20

// planned is the plan of this run: the bounds of the product where GATEHOUSE_BENCH_SYNC is set, else a short one that
// only shows that everything measured here works.
func planned() plan {
	if os.Getenv("GATEHOUSE_BENCH_SYNC") == "" {
		return plan{
			rounds: 12, loadedRounds: 6, subscriptions: 5_000, mappings: 2_000, applications: 500, apis: 100, otherMemory: 4 * mib,
			amqpRate: 200, natsRate: 500, lasting: 500 * time.Millisecond, catchUp: 10 * time.Second,
		}
	}
	return plan{
		rounds: 300, loadedRounds: 150, denyP50: 5 * time.Millisecond, denyP99: 50 * time.Millisecond,
		subscriptions: 1_000_000, mappings: 200_000, applications: 50_000, apis: 2_000,
		load: 20 * time.Second, memory: 1200 * mib, lookup: 300 * time.Nanosecond, otherMemory: 192 * mib,
		amqpRate: 10_000, natsRate: 50_000, lasting: 15 * time.Second, catchUp: time.Second,
	}
}

// TestBenchSync measures how fast the API Manager's word reaches the gateway: the gateway is the real program in a process
// of its own, its API Manager the emulated one over HTTPS, its event hub a RabbitMQ node or a NATS server, and everything is
// measured from outside.
func TestBenchSync(t *testing.T) {
	p := planned()
	program := buildGateway(t)
	rabbit := harness.StartRabbitMQ(t)
	say(t, "machine: %s; other load before: %s", machine(), loadAverage())
	t.Run("deny policies over RabbitMQ", func(t *testing.T) { benchDeny(t, p, program, rabbit) })
	t.Run("large tables", func(t *testing.T) { benchLoad(t, p, program, rabbit) })
	t.Run("look-up", func(t *testing.T) { benchLookup(t, p) })
	t.Run("events over RabbitMQ", func(t *testing.T) { benchEvents(t, p, program, rabbit.URL("carbon"), p.amqpRate) })
	t.Run("events over NATS", func(t *testing.T) { benchEvents(t, p, program, "", p.natsRate) })
}

// say prints one line of what was measured.
func say(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Logf(format, args...)
}

// hold fails the test when a bound does not hold.
func hold[N ~int64](t testing.TB, what string, got, bound N) {
	t.Helper()
	if bound > 0 && got >= bound {
		t.Errorf("%s: %v, which must be below %v", what, got, bound)
	}
}

// world is an emulated API Manager with one deployed API and a caller who may use it.
type world struct {
	emu   *emulator.Emulator
	token string
	large *emulator.Generated
}

func newWorld(t *testing.T, eventHub string, p *plan) *world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	e, err := emulator.New(emulator.Options{EventHub: eventHub})
	must(err)
	t.Cleanup(e.Close)
	_, err = e.PutKeyManager(emulator.KeyManager{Name: "Corp Keycloak", Type: "KeyCloak", Configuration: e.IssuerConfiguration()})
	must(err)
	api, err := e.CreateAPI(emulator.API{Name: "Shop", Version: "1.0.0", Context: "/shop/1.0.0", Endpoint: e.BackendURL(), Environments: []string{"Default"}})
	must(err)
	app, err := e.CreateApplication(emulator.Application{Name: "MobileApp", SubName: "alice", Policy: "Unlimited"})
	must(err)
	_, err = e.AddKeyMapping(emulator.KeyMapping{ApplicationID: app.ID, ConsumerKey: "mobile-app", KeyManager: "Corp Keycloak"})
	must(err)
	e.Issuer().AddClient("mobile-app", "secret")
	_, err = e.Subscribe(emulator.Subscription{APIUUID: api.UUID, AppID: app.ID, PolicyID: "Unlimited", SubscriptionState: "UNBLOCKED"})
	must(err)
	w := &world{emu: e, token: mint(t, e)}
	if p != nil {
		w.large, err = e.Populate(p.subscriptions, p.mappings, p.applications, p.apis)
		must(err)
	}
	return w
}

// policies are deny policies of every kind that each hit the caller.
func policies() []emulator.DenyCondition {
	return []emulator.DenyCondition{
		{Type: emulator.DenyAPI, Value: "/shop/1.0.0"},
		{Type: emulator.DenyIP, Value: "127.0.0.1"},
		{Type: emulator.DenyUser, Value: "alice@carbon.super"},
		{Type: emulator.DenyApplication, Value: "alice:MobileApp"},
		{Type: emulator.DenyIPRange, Value: "127.0.0.0-127.0.0.9"},
		{Type: emulator.DenySubscription, Value: "/shop/1.0.0:1.0.0:alice-MobileApp:PRODUCTION"},
	}
}

func benchDeny(t *testing.T, p plan, program string, rabbit *harness.Rabbit) {
	w := newWorld(t, rabbit.URL("carbon"), nil)
	g := startGateway(t, program, w, t.TempDir())
	g.waitReady(time.Minute)
	put, taken := denyRounds(t, w, g, p.rounds)
	hold(t, "deny policy to refusal, p50", put.at(50), p.denyP50)
	hold(t, "deny policy to refusal, p99", put.at(99), p.denyP99)
	hold(t, "deny policy taken to answer, p50", taken.at(50), p.denyP50)
	hold(t, "deny policy taken to answer, p99", taken.at(99), p.denyP99)
}

// denyRounds puts deny policies and takes them away again, and measures from before each is published until the first
// answer that obeys has arrived at a client that asks without pause.
func denyRounds(t *testing.T, w *world, g *gateway, rounds int) (put, taken sample) {
	t.Helper()
	c := newCaller(t, g, w.token)
	c.until(200, 10*time.Second)
	var single sample
	for range 200 {
		began := time.Now()
		c.until(200, time.Second)
		single = append(single, time.Since(began))
	}
	kinds := policies()
	byKind := make([]sample, len(kinds))
	pause := rand.New(rand.NewPCG(1, 2))
	for i := range rounds {
		// No two rounds begin at the same point of whatever runs periodically.
		time.Sleep(time.Duration(pause.IntN(5000)) * time.Microsecond)
		k := i % len(kinds)
		began := time.Now()
		d, err := w.emu.Deny(kinds[k])
		if err != nil {
			t.Fatal(err)
		}
		c.what = "deny policy for " + d.Type
		took := c.until(403, 10*time.Second).Sub(began)
		put, byKind[k] = append(put, took), append(byKind[k], took)

		time.Sleep(time.Duration(pause.IntN(5000)) * time.Microsecond)
		began = time.Now()
		if err := w.emu.Allow(d.ID); err != nil {
			t.Fatal(err)
		}
		c.what = "the end of a deny policy for " + d.Type
		taken = append(taken, c.until(200, 10*time.Second).Sub(began))
	}
	say(t, "deny policy published → first refusal at the client:   %s   (%d rounds)", put, rounds)
	say(t, "deny policy withdrawn → first answer at the client:    %s", taken)
	var kindly []string
	for k := range kinds {
		kindly = append(kindly, fmt.Sprintf("%s %s", kinds[k].Type, ms(byKind[k].at(50))))
	}
	say(t, "  p50 by kind: %s; one request by itself takes %s (p50)", strings.Join(kindly, ", "), ms(single.at(50)))
	return put, taken
}

func benchLoad(t *testing.T, p plan, program string, rabbit *harness.Rabbit) {
	w := newWorld(t, rabbit.URL("carbon"), &p)
	dir := t.TempDir()
	asked := firstRequest(w.emu)
	own := ownCPU()
	g := startGateway(t, program, w, dir)
	g.waitReady(10 * time.Minute)
	ready := time.Now()
	took, lists := ready.Sub(g.started), ready.Sub(<-asked)
	m := g.memory()
	counts := g.state().Counts
	say(t, "%d subscriptions, %d key mappings, %d applications, %d APIs over HTTPS: ready %.2f s after the process began, %.2f s after the first request",
		counts["subscriptions"], counts["key_mappings"], counts["applications"], counts["apis"], took.Seconds(), lists.Seconds())
	say(t, "  processor time: gateway %.2f s, emulated API Manager and this test %.2f s", g.cpu().Seconds(), (ownCPU() - own).Seconds())
	say(t, "  memory at ready: %s", m)
	for what, want := range map[string]int{"subscriptions": p.subscriptions, "key_mappings": p.mappings, "applications": p.applications} {
		if counts[what] != want+1 {
			t.Errorf("%s: %d rows, want %d", what, counts[what], want+1)
		}
	}
	hold(t, "process start to ready", took, p.load)

	resynced := func(what string, begin func()) {
		time.Sleep(2 * time.Millisecond) // no list of before ended in the millisecond in which this one begins
		cpu, began := g.cpu(), time.Now()
		begin()
		g.waitFetched(began, 5*time.Minute)
		spent := time.Since(began)
		say(t, "%s: every list again within %.2f s, %.2f s of processor time; memory: %s", what, spent.Seconds(), (g.cpu() - cpu).Seconds(), g.memory())
	}
	resynced("resync without a change", func() { g.post("/api/v1/resync") })
	resynced("second resync", func() { g.post("/api/v1/resync") })
	resynced("after a reconnect", func() { rabbit.CloseConnections(t, "bench") })
	g.waitConnected(time.Minute)

	_, _ = denyRounds(t, w, g, p.loadedRounds)
	m = g.memory()
	say(t, "memory after all of this: %s", m)
	hold(t, "VmHWM, MiB", m.high/mib, p.memory/mib)

	g.put("/api/v1/log-level", `{"level":"debug"}`)
	stopped := g.stop()
	bytes, wrote := g.snapshotWritten()
	say(t, "snapshot: %.1f MiB written in %.2f s; the stop as a whole took %.2f s", float64(bytes)/mib, wrote.Seconds(), stopped.Seconds())

	w.emu.StopREST()
	again := startGateway(t, program, w, dir)
	again.waitReady(5 * time.Minute)
	served := newCaller(t, again, w.token).until(200, 30*time.Second)
	say(t, "restart from the snapshot while the API Manager is away: first 200 after %.2f s, %d subscriptions; memory: %s",
		served.Sub(again.started).Seconds(), again.state().Counts["subscriptions"], again.memory())
	hold(t, "VmHWM of the restart, MiB", again.memory().high/mib, p.memory/mib)
	if n := again.state().Counts["subscriptions"]; n != p.subscriptions+1 {
		t.Errorf("after the restart there are %d subscriptions, want %d", n, p.subscriptions+1)
	}
	again.stop()
}

// benchLookup finds random rows of a full store in this process, the making of the key included.
func benchLookup(t *testing.T, p plan) {
	s := store.New()
	rows := make([]subscription.Subscription, p.subscriptions)
	for i := range rows {
		app, api := int64(i%p.applications)+1, int64(i/p.applications)+1
		rows[i] = subscription.Subscription{
			ID: int64(i) + 1, UUID: fmt.Sprintf("9c000000-0000-4000-8000-%012d", i), APIID: api, ApplicationID: app,
			APIUUID: apiUUID(api), ApplicationUUID: appUUID(app), Policy: "Gold", State: "UNBLOCKED", Tenant: "carbon.super",
		}
	}
	s.Subscriptions().ReplaceAll(rows)
	for i := range p.mappings {
		app := int64(i%p.applications) + 1
		s.KeyMappings().Put(subscription.KeyMapping{
			ConsumerKey: consumerKey(i), KeyManager: "Resident Key Manager", KeyType: subscription.Production,
			ApplicationID: app, ApplicationUUID: appUUID(app),
		})
	}
	for i := range p.applications {
		app := int64(i) + 1
		s.Applications().Put(subscription.Application{ID: app, UUID: appUUID(app), Name: fmt.Sprint("App", app), Owner: "alice", Policy: "Unlimited"})
	}
	for i := range p.apis {
		api := int64(i) + 1
		s.APIs().Put(subscription.API{ID: api, UUID: apiUUID(api), Name: fmt.Sprint("API", api), Version: "1.0.0", Context: fmt.Sprintf("/api-%d/1.0.0", api)})
	}
	type request struct {
		id  int64
		key string
		ref subscription.APIRef
	}
	random := rand.New(rand.NewPCG(1, 2))
	requests := make([]request, min(1<<20, 4*p.subscriptions))
	for i := range requests {
		n := random.IntN(p.subscriptions)
		// The text of a request is memory of its own, as it is when it comes from a client.
		requests[i] = request{int64(n) + 1, consumerKey(n % p.applications), subscription.APIRef{UUID: apiUUID(int64(n/p.applications) + 1)}}
	}
	measure := func(look func(r *request) bool) (sample, sample, float64) {
		for i := range requests { // every row is there, and the runs begin alike
			if !look(&requests[i]) {
				t.Fatalf("row %d was missed", requests[i].id)
			}
		}
		var wall, cpu sample
		for range 9 {
			began, used := time.Now(), ownCPU()
			for i := range requests {
				look(&requests[i])
			}
			n := time.Duration(len(requests))
			wall, cpu = append(wall, time.Since(began)/n), append(cpu, (ownCPU()-used)/n)
		}
		at := 0
		allocs := testing.AllocsPerRun(min(10_000, len(requests)-1), func() { at++; look(&requests[at%len(requests)]) })
		return wall, cpu, allocs
	}
	wall1, cpu1, a1 := measure(func(r *request) bool { return s.Subscriptions().Get(r.id) != nil })
	wall4, cpu4, a4 := measure(func(r *request) bool { return s.Resolve(r.key, "Resident Key Manager", r.ref).Subscription != nil })
	say(t, "look-up of a random row of %d, key building included: %s", p.subscriptions, perCall(wall1, cpu1, a1))
	say(t, "the whole question of a request (API, key mapping, application, subscription): %s", perCall(wall4, cpu4, a4))
	say(t, "  for comparison, one read of a random place in %d MiB takes %d ns on this machine now: a look-up in a table that no cache holds is two of them",
		p.otherMemory/mib, randomRead(p.otherMemory))
	// What others do on the machine only ever adds: the run that they disturbed least is what a look-up costs.
	hold(t, "look-up of a random row", slices.Min(cpu1), p.lookup)
	if a1+a4 > 0 {
		t.Errorf("look-ups allocate %.2f and %.2f times", a1, a4)
	}
}

func perCall(wall, cpu sample, allocs float64) string {
	return fmt.Sprintf("%d ns of processor time at best, %d ns in the median of %d runs (elapsed: %d and %d ns), %.0f allocations",
		slices.Min(cpu), cpu.at(50), len(cpu), slices.Min(wall), wall.at(50), allocs)
}

// randomRead is what a read of memory takes, in ns, when its place is only known after the read before.
func randomRead(size int) int64 {
	const line = 8 // words of a cache line
	words := make([]uint64, size/8)
	places := rand.New(rand.NewPCG(5, 6)).Perm(len(words) / line)
	for i, at := range places {
		words[at*line] = uint64(places[(i+1)%len(places)] * line)
	}
	best, at := time.Hour, uint64(0)
	const reads = 300_000
	for range 3 {
		began := time.Now()
		for range reads {
			at = words[at]
		}
		best = min(best, time.Since(began))
	}
	runtime.KeepAlive(at)
	return (best / reads).Nanoseconds()
}

func apiUUID(id int64) string { return fmt.Sprintf("9a000000-0000-4000-8000-%012d", id) }
func appUUID(id int64) string { return fmt.Sprintf("9b000000-0000-4000-8000-%012d", id) }

func consumerKey(i int) string { return fmt.Sprintf("genKey%022d", i) }

// sample is a number of measured times.
type sample []time.Duration

// at is the percentile p.
func (s sample) at(p int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func (s sample) String() string {
	return fmt.Sprintf("p50 %s  p90 %s  p99 %s  max %s", ms(s.at(50)), ms(s.at(90)), ms(s.at(99)), ms(slices.Max(s)))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond)) }
