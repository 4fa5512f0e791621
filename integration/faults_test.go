package integration_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/harness"
)

// listPaths are the lists of the internal data service that a gateway reads.
var listPaths = []string{
	"apis", "applications", "application-key-mappings", "subscriptions", "subscription-policies", "application-policies", "api-policies",
	"scopes", "keymanagers", "keyTemplates", "block", "revokedjwt", "runtime-artifacts",
}

// slowList is how long each list takes where a fault falls into a fetch. What a list says is as old as its request.
const slowList = 200 * time.Millisecond

// faultRun is one fault with what happens around it.
type faultRun struct {
	t        *testing.T
	w        *world
	link     *harness.Proxy
	rabbit   *harness.Rabbit
	x        changer
	fetching bool
	seq      *int
	helpers  sync.WaitGroup
}

// lost makes changes that no event tells of.
func (f *faultRun) lost(n int) { f.x.some(f.w.emu.Silent(), f.next(n), n) }

// told makes changes with their events.
func (f *faultRun) told(n int) { f.x.some(&f.w.emu.Changes, f.next(n), n) }

func (f *faultRun) next(n int) int {
	*f.seq += n
	return *f.seq - n
}

// hubState asks for the event hub's state without ending the test, for goroutines.
func (f *faultRun) hubState() (connected bool, reconnects int, ok bool) {
	resp, err := adminClient.Get(f.w.gateway.admin + "/api/v1/state")
	if err != nil {
		return false, 0, false
	}
	defer resp.Body.Close()
	var s sourcesState
	if json.NewDecoder(resp.Body).Decode(&s) != nil {
		return false, 0, false
	}
	for _, x := range s.Sources {
		if x.Name == "event_hub" {
			return x.Connected, x.Reconnects, true
		}
	}
	return false, 0, false
}

// noticed watches for the moment in which the gateway sees that its connection is gone. Call it before the fault.
func (f *faultRun) noticed() <-chan time.Time {
	_, before, _ := f.hubState()
	at := make(chan time.Time, 1)
	f.helpers.Go(func() {
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if connected, n, ok := f.hubState(); ok && (!connected || n > before) {
				at <- time.Now()
				return
			}
		}
		close(at)
	})
	return at
}

func (f *faultRun) wait(at <-chan time.Time) time.Time {
	f.t.Helper()
	moment, ok := <-at
	if !ok {
		f.t.Fatal("the gateway never noticed the fault")
	}
	return moment
}

// beginFetch makes the lists slow and waits until the gateway is reading them.
func (f *faultRun) beginFetch() {
	f.t.Helper()
	if !f.fetching {
		return
	}
	before := f.w.emu.Recorded().Requests["subscriptions"]
	for _, p := range listPaths {
		f.w.emu.AddFault(emulator.Fault{Path: p, Kind: emulator.FaultStale, Delay: slowList})
	}
	f.w.gateway.resync(f.t)
	eventually(f.t, 5*time.Second, "the lists are asked for", func() bool { return f.w.emu.Recorded().Requests["subscriptions"] > before })
	f.told(5)
}

// endFetch makes changes while the lists of the reconnect are on their way, then the lists are fast again.
func (f *faultRun) endFetch() {
	f.t.Helper()
	if !f.fetching {
		return
	}
	before := f.w.emu.Recorded().Requests["block"]
	within(1500*time.Millisecond, func() bool { return f.w.emu.Recorded().Requests["block"] > before })
	f.told(5)
	f.w.emu.ClearFaults()
}

// byControl does what takes rabbitmqctl a second or two, while the test goes on.
func (f *faultRun) byControl(do func(testing.TB)) { f.helpers.Go(func() { do(f.t) }) }

func (g *gateway) resync(t testing.TB) {
	t.Helper()
	resp, err := adminClient.Post(g.admin+"/api/v1/resync", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("resync answered %d", resp.StatusCode)
	}
}

// brokerFault is a fault of the broker or of the way to it. strike makes it happen with changes around it and ends it; it
// returns the moment of the return, or in which the fault was noticed where that is later.
type brokerFault struct {
	name     string
	fetching bool
	ownNode  bool // the broker itself ends
	strike   func(f *faultRun) time.Time
}

var brokerFaults = []brokerFault{
	{name: "connection cut", strike: cut},
	{name: "connection cut during a fetch", fetching: true, strike: cut},
	{name: "connection refused for a second", strike: refuse},
	{name: "connection refused during a fetch", fetching: true, strike: refuse},
	{name: "connection closed by the server", strike: func(f *faultRun) time.Time {
		return closedBy(f, func(t testing.TB) { f.rabbit.CloseConnections(t, "closed by the test") })
	}},
	{name: "channel closed by the server", strike: func(f *faultRun) time.Time {
		return closedBy(f, f.rabbit.CloseChannels)
	}},
	{name: "channel closed by the server during a fetch", fetching: true, strike: func(f *faultRun) time.Time {
		return closedBy(f, f.rabbit.CloseChannels)
	}},
	{name: "consumer cancelled, its queue deleted", strike: func(f *faultRun) time.Time {
		return closedBy(f, f.rabbit.DeleteQueues)
	}},
	{name: "half-open socket found by the heartbeat", strike: halfOpen},
	{name: "half-open socket during a fetch", fetching: true, strike: halfOpen},
	{name: "frozen for less than the heartbeat", strike: func(f *faultRun) time.Time {
		f.link.Freeze()
		f.told(20) // nothing is lost, it comes late
		f.w.flush()
		time.Sleep(700 * time.Millisecond)
		f.link.Resume()
		return time.Now()
	}},
	{name: "slow link", strike: slow},
	{name: "slow link during a fetch", fetching: true, strike: slow},
	{name: "slow link that breaks", strike: func(f *faultRun) time.Time {
		f.link.Slow(4000, 30*time.Millisecond)
		f.told(20)
		f.lost(8)
		at := f.noticed()
		f.link.Cut()
		f.wait(at)
		f.link.Resume()
		return time.Now()
	}},
	{name: "the API Manager and its broker away together", strike: func(f *faultRun) time.Time {
		at := f.noticed()
		f.link.Refuse()
		f.w.emu.StopREST()
		f.lost(12)
		f.told(6)
		f.wait(at)
		time.Sleep(300 * time.Millisecond)
		if err := f.w.emu.StartREST(); err != nil {
			f.t.Fatal(err)
		}
		f.link.Resume()
		return time.Now()
	}},
	{name: "broker killed with -9 and restarted", ownNode: true, strike: kill},
	{name: "broker killed with -9 during a fetch", ownNode: true, fetching: true, strike: kill},
	{name: "broker stopped in good order", ownNode: true, strike: func(f *faultRun) time.Time {
		f.told(3)
		f.rabbit.Stop(f.t)
		return restart(f)
	}},
}

func cut(f *faultRun) time.Time {
	f.lost(12)
	f.beginFetch()
	at := f.noticed()
	f.link.Cut()
	f.told(8)
	moment := f.wait(at)
	f.told(8)
	f.endFetch()
	return moment
}

func refuse(f *faultRun) time.Time {
	f.beginFetch()
	at := f.noticed()
	f.link.Refuse()
	f.lost(12)
	f.told(8)
	f.wait(at)
	time.Sleep(time.Second)
	f.lost(6)
	f.link.Resume()
	back := time.Now()
	f.endFetch()
	return back
}

func closedBy(f *faultRun, do func(testing.TB)) time.Time {
	f.lost(12)
	f.beginFetch()
	at := f.noticed()
	f.byControl(do)
	f.told(6)
	moment := f.wait(at)
	f.told(6)
	f.endFetch()
	return moment
}

// halfOpen: with heartbeats of a second a dead peer shows after three.
func halfOpen(f *faultRun) time.Time {
	f.beginFetch()
	at := f.noticed()
	frozen := time.Now()
	f.link.Freeze()
	f.lost(12)
	f.told(8)
	noticed := f.wait(at)
	f.t.Logf("the heartbeat found the half-open socket after %s", noticed.Sub(frozen).Round(time.Millisecond))
	f.lost(6)
	f.link.Resume()
	back := time.Now()
	f.endFetch()
	return back
}

func slow(f *faultRun) time.Time {
	f.beginFetch()
	f.link.Slow(20_000, 20*time.Millisecond)
	f.told(20)
	f.w.flush()
	time.Sleep(300 * time.Millisecond)
	f.told(5)
	f.w.emu.ClearFaults()
	f.link.Resume()
	return time.Now()
}

func kill(f *faultRun) time.Time {
	f.beginFetch()
	f.told(3)
	f.rabbit.Kill()
	return restart(f)
}

// restart makes changes while the broker is away and starts it again.
func restart(f *faultRun) time.Time {
	f.lost(10)
	f.told(10)
	if a := f.w.gateway.call(http.MethodGet, "/api0/1.0.0/items", ""); a.status == 503 && a.code == 900900 {
		f.t.Errorf("without its broker the gateway answers %v: it must go on serving", a)
	}
	if status, h := f.w.gateway.health("/health/ready"); status != http.StatusOK {
		f.t.Errorf("without its broker the gateway is not ready: %d %+v", status, h)
	}
	f.rabbit.Restart(f.t)
	back := time.Now()
	f.t.Logf("the broker took %s to start", f.rabbit.StartTime().Round(time.Millisecond))
	f.endFetch()
	return back
}

// TestBrokerFaults lets the connection to a real broker fail in every way that it can, with changes made meanwhile, and
// measures how long the gateway takes to be the API Manager's equal again.
func TestBrokerFaults(t *testing.T) {
	seq := 0
	var w *world
	var link *harness.Proxy
	var rabbit *harness.Rabbit
	var x changer
	start := func(node *harness.Rabbit) {
		rabbit = node
		w, link, x = faultyWorld(t, node, worldOptions{})
		w.emu.Decide("kept:key", true, time.Now().Add(10*time.Minute), nil)
		eventually(t, 2*time.Second, "the decision is known", func() bool { return len(w.gateway.dump()["throttled-keys"]) == 1 })
	}
	measured := &strings.Builder{}
	for _, c := range brokerFaults {
		if c.ownNode && (rabbit == nil || rabbit == harness.Shared(t)) {
			if w != nil {
				w.gateway.stop()
			}
			start(harness.StartRabbitMQ(t))
		} else if rabbit == nil {
			start(harness.Shared(t))
		}
		ok := t.Run(c.name, func(t *testing.T) {
			// Whatever the case before has lost for good is not to be counted against this one.
			world := &world{t: t, emu: w.emu, gateway: w.gateway}
			f := &faultRun{t: t, w: world, link: link, rabbit: rabbit, x: changer{t: t, e: x.e, p: x.p}, fetching: c.fetching, seq: &seq}
			defer f.helpers.Wait()
			since := c.strike(f)
			took := world.wantEqual(x.p, since, equalIn)
			f.helpers.Wait()
			t.Logf("equal %s after the return", took.Round(time.Millisecond))
			fmt.Fprintf(measured, "%-48s %s\n", c.name, took.Round(time.Millisecond))
			if keys := w.gateway.dump()["throttled-keys"]; keys["kept:key"] == nil {
				t.Errorf("the throttle decision was forgotten: %v", keys)
			}
			if !within(heldMore, func() bool { return len(w.gateway.heldBack()) == 0 }) { // events may make rows equal before the second list
				t.Errorf("still held back: %v", w.gateway.heldBack())
			}
		})
		if !ok {
			link.Resume()
			w.emu.ClearFaults()
			w.gateway.resync(t)
			w.wantEqual(x.p, time.Now(), 10*time.Second)
		}
	}
	t.Logf("from the return, or from noticing the fault, to equal rows and answers:\n%s", measured)
}

// TestReconnectsLeakNothing breaks the connection again and again and counts what is left behind. Each reconnect reads each
// list once.
func TestReconnectsLeakNothing(t *testing.T) {
	const reconnects = 30
	rabbit := harness.Shared(t)
	w, link, x := faultyWorld(t, rabbit, worldOptions{})
	queues := rabbit.Queues(t)
	asked := w.emu.Recorded().Requests
	goroutines := amqpGoroutines()
	for n := range reconnects {
		link.Cut()
		eventually(t, 5*time.Second, fmt.Sprintf("connected again, %d", n+1), func() bool {
			connected, count, _ := w.gateway.hub()
			return connected && count == n+1
		})
	}
	for _, p := range listPaths {
		want := asked[p] + reconnects
		eventually(t, 2*time.Second, "each list is read once for each reconnect: "+p, func() bool { return w.emu.Recorded().Requests[p] >= want })
	}
	time.Sleep(200 * time.Millisecond) // for a request that should not be
	for _, p := range listPaths {
		if n := w.emu.Recorded().Requests[p] - asked[p]; n != reconnects {
			t.Errorf("%d requests for %s after %d reconnects, want one for each", n, p, reconnects)
		}
	}
	w.wantEqual(x.p, time.Now(), equalIn)
	eventually(t, 5*time.Second, "no goroutine of an ended connection is left", func() bool { return amqpGoroutines() <= goroutines })
	if open := link.Open(); open != 1 {
		t.Errorf("%d connections are open, want 1", open)
	}
	eventually(t, 10*time.Second, "the broker holds the queues of one connection", func() bool { return rabbit.Queues(t) == queues })
	if n := link.Accepted(); n != reconnects+1 {
		t.Errorf("the gateway dialled %d times for %d connections", n, reconnects+1)
	}
}

// amqpGoroutines counts the goroutines that belong to connections to a broker.
func amqpGoroutines() int {
	runtime.GC()
	var b strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&b, 2); err != nil {
		return -1
	}
	n := 0
	for stack := range strings.SplitSeq(b.String(), "\n\n") {
		if strings.Contains(stack, "amqp091-go") || strings.Contains(stack, "agent/eventsource") {
			n++
		}
	}
	return n
}

// TestBadCredentialsStartNoStorm: a broker that refuses us is asked again after a minute, not at once; the gateway serves
// meanwhile, and says what is wrong.
func TestBadCredentialsStartNoStorm(t *testing.T) {
	rabbit := harness.Shared(t)
	link := harness.StartProxy(t, rabbit.Address())
	good := rabbit.URL("carbon")
	for name, url := range map[string]string{
		"password":     strings.Replace(good, harness.Password, "wrong-secret", 1),
		"virtual host": strings.Replace(good, "/carbon", "/nowhere", 1),
	} {
		t.Run("wrong "+name, func(t *testing.T) {
			before := link.Accepted()
			w := startWorld(t, worldOptions{eventHub: good, gatewayHub: strings.Replace(url, rabbit.Address(), link.Address(), 1), fill: fillFaultWorld})
			eventually(t, 5*time.Second, "the refusal is shown", func() bool {
				connected, _, err := w.gateway.hub()
				return !connected && err != ""
			})
			time.Sleep(3 * time.Second)
			if n := link.Accepted() - before; n < 1 || n > 2 {
				t.Errorf("%d dials within 3 s of the refusal, want one", n)
			}
			status, h := w.gateway.health("/health/ready")
			check, detail := h.check("event_hub")
			if status != http.StatusOK || check != "degraded" || !strings.Contains(detail, "refused") {
				t.Errorf("health = %d, event_hub %s (%s), want 200, degraded and refused", status, check, detail)
			}
			if strings.Contains(detail, "wrong-secret") || strings.Contains(w.gateway.log.String(), "wrong-secret") {
				t.Error("the password is shown")
			}
			w.wantEqual(newProbes(t, w.emu), time.Now(), equalIn)
		})
	}
}
