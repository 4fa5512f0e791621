package integration_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/broker"
	"gatehouse/integration/harness"
)

// The state machine over the whole gateway: a random history of an API Manager, with events that are lost, doubled, swapped
// and late, and with faults of the broker, of the way to it and of the lists. When all is well again every row must equal the
// API Manager's, and every probe be answered as those rows say. The sync engine's own state machine, with the planted faults,
// stands in agent/sync; this one has the real broker, client, decoders, tables and request path.

// soaking is whether the long runs were asked for.
func soaking() bool { return os.Getenv("GATEHOUSE_SOAK") != "" }

// sequences is how many histories are tried.
func sequences() int {
	if soaking() {
		return 500
	}
	return 50
}

// lanes are the virtual hosts on which histories run side by side: most of a history is waiting.
var lanes = []string{"carbon", "/"}

// scope is a test's life for one history: what is cleaned up, and what a failure ends.
type scope struct {
	testing.TB
	rt       *rapid.T
	cleanups []func()
	failed   bool
}

func (s *scope) Helper()          {}
func (s *scope) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }
func (s *scope) Failed() bool     { return s.failed }
func (s *scope) Log(a ...any)     { s.rt.Log(a...) }
func (s *scope) Logf(format string, a ...any) {
	s.rt.Logf(format, a...)
}
func (s *scope) Fatal(a ...any) { s.failed = true; s.rt.Fatal(a...) }
func (s *scope) Fatalf(format string, a ...any) {
	s.failed = true
	s.rt.Fatalf(format, a...)
}
func (s *scope) Error(a ...any) { s.failed = true; s.rt.Error(a...) }
func (s *scope) Errorf(format string, a ...any) {
	s.failed = true
	s.rt.Errorf(format, a...)
}

func (s *scope) TempDir() string {
	dir, err := os.MkdirTemp("", "gatehouse-history-")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *scope) close() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}

// action is one thing that happens. Its numbers are drawn; what they mean depends on what there is then.
type action struct {
	Op   string
	A, B int
	Wait int // ms until the next
}

// mishaps are what happens beside changes.
var mishaps = []string{
	"cut", "cut", "refuse", "freeze", "slow", "heal", "heal", "heal", "close channels",
	"lists late", "lists stale", "a list fails", "a list fails", "lists away", "lists back", "resync",
	"swap events", "double events", "late events", "events in order", "malformed event",
}

func actions(longest int) *rapid.Generator[[]action] {
	names := slices.Concat(changeNames, mishaps)
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) action {
		return action{
			Op:   rapid.SampledFrom(names).Draw(t, "op"),
			A:    rapid.IntRange(0, 7).Draw(t, "a"),
			B:    rapid.IntRange(0, 4).Draw(t, "b"),
			Wait: rapid.SampledFrom([]int{0, 0, 0, 0, 2, 10, 40, 120}).Draw(t, "wait"),
		}
	}), 10, longest)
}

// machine plays a history.
type machine struct {
	*world
	x       changer
	link    *harness.Proxy
	rabbit  *harness.Rabbit
	refused bool // the way to the broker is closed: what happens is lost, and a reconnect will follow
	away    bool // the lists cannot be reached
	unsure  bool // something happened that neither an event nor a reconnect will tell
	knobs   broker.Knobs
}

func newMachine(t testing.TB, rabbit *harness.Rabbit, vhost string) *machine {
	w, link, x := faultyWorld(t, rabbit, worldOptions{
		eventHub:     rabbit.URL(vhost),
		emulator:     emulator.Options{AnnounceOnHold: true},
		eventHubKeys: "miss_timeout = \"500ms\"\nresync_confirm_after = \"600ms\"\nheartbeat = \"1s\"\n",
	})
	return &machine{world: w, x: x, link: link, rabbit: rabbit}
}

func (m *machine) play(s action) {
	switch s.Op {
	case "cut":
		m.link.Cut()
	case "refuse":
		m.link.Refuse()
		m.refused = true
	case "freeze":
		m.link.Freeze()
	case "slow":
		m.link.Slow(8000*(s.A+1), time.Duration(s.B)*5*time.Millisecond)
	case "heal":
		m.link.Resume()
		m.refused = false
	case "close channels":
		if s.A == 0 { // it takes a second or more
			m.rabbit.CloseChannels(m.t)
		}
	case "lists late", "lists stale":
		kind := emulator.FaultDelay
		if s.Op == "lists stale" {
			kind = emulator.FaultStale
		}
		for range s.A {
			m.emu.AddFault(emulator.Fault{Path: listPaths[(s.A*5+s.B)%len(listPaths)], Kind: kind, Times: 1, Delay: time.Duration(s.B+1) * 60 * time.Millisecond})
		}
	case "a list fails":
		m.emu.AddFault(emulator.Fault{
			Path: listPaths[(s.A*7+s.B)%len(listPaths)], Times: 1, Status: 503,
			Kind: []emulator.FaultKind{emulator.FaultReset, emulator.FaultTruncate, emulator.FaultStatus, emulator.FaultEmpty, emulator.FaultGarbage}[s.B],
		})
	case "lists away":
		m.emu.StopREST()
		m.away = true
	case "lists back":
		m.listsBack()
	case "resync":
		m.gateway.resync(m.t)
	case "swap events":
		m.knobs.Swap = s.A
		m.emu.Hub().SetKnobs(m.knobs)
	case "double events":
		m.knobs.Duplicate = s.A
		m.emu.Hub().SetKnobs(m.knobs)
	case "late events":
		m.knobs.Delay = time.Duration(s.A) * 10 * time.Millisecond
		m.emu.Hub().SetKnobs(m.knobs)
	case "events in order":
		m.knobs = broker.Knobs{}
		m.emu.Hub().SetKnobs(m.knobs)
	case "malformed event":
		m.emu.Hub().PublishRaw(broker.Message{Topic: []string{broker.TopicNotification, broker.TopicThrottleData, broker.TopicKeyManager, broker.TopicTokenRevocation}[s.A%4],
			ContentType: "text/plain", ContentEncoding: "UTF-8", Body: []byte(`{"event":{"payloadData":{"eventType":"API_`)})
	default:
		c := &m.emu.Changes
		switch {
		case m.refused && s.A%2 == 0:
			c = m.emu.Silent() // its event found nobody; the reconnect brings it
		case s.A == 7 && s.B == 4:
			c = m.emu.Silent()
			m.unsure = true
		}
		m.x.change(c, s.Op, s.A, s.B)
	}
	m.oneProbe(s)
	time.Sleep(time.Duration(s.Wait) * time.Millisecond)
}

// oneProbe sends a request in the midst of it all: whatever it is answered, the gateway answers as a gateway that is ready.
func (m *machine) oneProbe(s action) {
	m.x.p.mu.Lock()
	context := m.x.p.contexts[(s.A+s.B)%len(m.x.p.contexts)]
	m.x.p.mu.Unlock()
	a := m.gateway.call(http.MethodGet, context+"/items", m.x.p.token(s.A).Token)
	switch {
	case a.status == 200, a.status == 401, a.status == 403, a.status == 404, a.status == 503 && a.code == 700700:
	case a.status == 503 && a.code == 900900 && m.away: // a key manager whose keys were never fetched, or a row that is missing
	default:
		m.t.Fatalf("after %q %s was answered %v", s.Op, context, a)
	}
}

func (m *machine) listsBack() {
	if err := m.emu.StartREST(); err != nil {
		m.t.Fatal(err)
	}
	m.away = false
}

// settle makes all well again and waits until all is equal, for at most limit.
func (m *machine) settle(limit time.Duration) time.Duration {
	m.emu.ClearFaults()
	m.listsBack()
	m.emu.Hub().SetKnobs(broker.Knobs{})
	m.link.Resume()
	m.refused = false
	m.flush()
	if m.unsure {
		m.gateway.resync(m.t)
		m.unsure = false
	}
	took := m.wantEqual(m.x.p, time.Now(), limit)
	time.Sleep(50 * time.Millisecond) // what is still on its way must change nothing
	m.wantEqual(m.x.p, time.Now(), 0)
	return took
}

// settleIn is generous: a list that answered 5xx is asked again after a second and more, a frozen connection is noticed late.
const settleIn = 15 * time.Second

func TestStateMachineOverARealBroker(t *testing.T) {
	setRapid(t, "rapid.checks", strconv.Itoa(sequences()/len(lanes)))
	setRapid(t, "rapid.shrinktime", "20s")
	rabbit := harness.Shared(t)
	longest := 40
	if soaking() {
		longest = 80
	}
	gen := actions(longest)
	t.Run("lanes", func(t *testing.T) { // returns when every lane has
		for lane, vhost := range lanes {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				played, slowest := 0, time.Duration(0)
				rapid.Check(t, func(rt *rapid.T) {
					history := gen.Draw(rt, "history")
					s := &scope{TB: t, rt: rt}
					defer s.close()
					m := newMachine(s, rabbit, vhost)
					for _, a := range history {
						m.play(a)
					}
					slowest = max(slowest, m.settle(settleIn))
					played++
				})
				t.Logf("%d histories; the slowest was equal after %s", played, slowest.Round(time.Millisecond))
			})
		}
	})
}

// setRapid sets a flag of rapid, unless the command line did, until the test ends.
func setRapid(t *testing.T, name, value string) {
	t.Helper()
	f := flag.Lookup(name)
	if f == nil || f.Value.String() != f.DefValue {
		return
	}
	old := f.Value.String()
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(name, old) })
}

// TestSoakRabbitMQKilledAndRestarted kills the broker in the midst of histories.
func TestSoakRabbitMQKilledAndRestarted(t *testing.T) {
	if !soaking() {
		t.Skip("a long run: set GATEHOUSE_SOAK=1 (make soak); TestBrokerFaults kills the broker twice")
	}
	const rounds = 20
	rabbit := harness.StartRabbitMQ(t)
	m := newMachine(t, rabbit, "carbon")
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)) //nolint:gosec // a history, no secret
	play := func(n int, names []string) {
		for range n {
			m.play(action{Op: names[rng.IntN(len(names))], A: rng.IntN(8), B: rng.IntN(5), Wait: rng.IntN(20)})
		}
	}
	for round := range rounds {
		play(20, slices.Concat(changeNames, []string{"swap events", "double events", "a list fails", "lists stale", "resync"}))
		m.rabbit.Kill()
		m.refused = true
		play(10, changeNames)
		m.emu.ClearFaults()
		if round%3 == 0 { // it comes back into a fetch
			for _, p := range listPaths {
				m.emu.AddFault(emulator.Fault{Path: p, Kind: emulator.FaultStale, Times: 1, Delay: slowList})
			}
		}
		rabbit.Restart(t)
		back := time.Now()
		m.refused = false
		m.emu.Hub().SetKnobs(broker.Knobs{})
		m.knobs = broker.Knobs{}
		if m.unsure { // done before the kill
			m.unsure = false
		}
		took := m.wantEqual(m.x.p, back, equalIn)
		t.Logf("round %d: started in %s, equal %s after the return", round+1, rabbit.StartTime().Round(time.Millisecond), took.Round(time.Millisecond))
		m.settle(settleIn)
	}
}
