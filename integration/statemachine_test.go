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
	"swapped", "swapped", "swapped", "swapped", "outrun", "outrun", "outrun", "outrun",
}

// turns are the rows that are changed twice in a row: how, and in which list they stand. Each does the first or the second
// change of a row that a picks; false when there is none.
var turns = []struct {
	list string
	do   func(c *emulator.Changes, r *emulator.Rows, second bool, a, b int) bool
}{
	{"subscriptions", func(c *emulator.Changes, r *emulator.Rows, second bool, a, b int) bool {
		if len(r.Subscriptions) == 0 {
			return false
		}
		id := r.Subscriptions[a%len(r.Subscriptions)].SubscriptionID
		var err error
		switch {
		case !second:
			_, err = c.UpdateSubscription(id, "BLOCKED", "")
		case b%2 == 0:
			err = c.Unsubscribe(id)
		default:
			_, err = c.UpdateSubscription(id, "UNBLOCKED", "Unlimited")
		}
		return err == nil
	}},
	{"applications", func(c *emulator.Changes, r *emulator.Rows, second bool, a, b int) bool {
		if len(r.Applications) < 3 {
			return false
		}
		id := r.Applications[a%len(r.Applications)].ID
		var err error
		if second && b == 0 {
			err = c.DeleteApplication(id)
		} else {
			_, err = c.UpdateApplication(id, func(y *emulator.Application) { y.Attributes["plan"] = fmt.Sprint(second, b) })
		}
		return err == nil
	}},
	{"application-key-mappings", func(c *emulator.Changes, r *emulator.Rows, second bool, a, b int) bool {
		if len(r.Applications) == 0 {
			return false
		}
		key := fmt.Sprintf("twice-%d", a%2)
		known := slices.ContainsFunc(r.KeyMappings, func(m emulator.KeyMapping) bool { return m.ConsumerKey == key })
		var err error
		if known {
			err = c.RemoveKeyMapping(key, corp)
		} else {
			_, err = c.AddKeyMapping(emulator.KeyMapping{ApplicationID: r.Applications[b%len(r.Applications)].ID, ConsumerKey: key, KeyManager: corp})
		}
		return err == nil
	}},
	{"subscription-policies", func(c *emulator.Changes, _ *emulator.Rows, second bool, a, b int) bool {
		name := fmt.Sprintf("Tier%d", a%4)
		var err error
		if second && b%2 == 0 {
			err = c.DeletePolicy(emulator.SubscriptionPolicy, "", name)
		} else {
			_, err = c.PutPolicy(emulator.Policy{Kind: emulator.SubscriptionPolicy, Name: name, Limit: emulator.Limit{TimeUnit: "min", UnitTime: 1, Count: int64(1000 + a + b)}})
		}
		return err == nil
	}},
	{"block", func(c *emulator.Changes, r *emulator.Rows, _ bool, a, b int) bool {
		value := fmt.Sprintf("/twice%d/1.0.0", a%2)
		i := slices.IndexFunc(r.Deny, func(d emulator.DenyCondition) bool { return d.Value == value })
		var err error
		switch {
		case i < 0:
			_, err = c.Deny(emulator.DenyCondition{Type: emulator.DenyAPI, Value: value})
		case b%2 == 0:
			err = c.Allow(r.Deny[i].ID)
		default:
			err = c.SwitchDeny(r.Deny[i].ID, r.Deny[i].Disabled)
		}
		return err == nil
	}},
	{"runtime-artifacts", func(c *emulator.Changes, r *emulator.Rows, second bool, a, b int) bool {
		if len(r.APIs) == 0 || r.APIs[a%len(r.APIs)].Status == "RETIRED" {
			return false
		}
		id := r.APIs[a%len(r.APIs)].UUID
		if second == (b%2 == 0) {
			return c.UndeployAPI(id, "Default") == nil
		}
		_, err := c.DeployAPI(id, "Default")
		return err == nil
	}},
	{"apis", func(c *emulator.Changes, r *emulator.Rows, second bool, a, _ int) bool {
		if len(r.APIs) == 0 || r.APIs[a%len(r.APIs)].Status == "RETIRED" {
			return false
		}
		return c.SetLifecycle(r.APIs[a%len(r.APIs)].UUID, map[bool]string{false: "BLOCKED", true: "PUBLISHED"}[second]) == nil
	}},
	{"keymanagers", func(c *emulator.Changes, _ *emulator.Rows, second bool, a, b int) bool {
		name := fmt.Sprintf("Other%d", a%2)
		var err error
		if second && b%2 == 0 {
			err = c.DeleteKeyManager("", name)
		} else {
			_, err = c.PutKeyManager(emulator.KeyManager{Name: name, Type: "Auth0", Disabled: second, Configuration: map[string]any{
				"issuer": "https://" + name + ".test", "certificate_type": "JWKS", "certificate_value": "https://127.0.0.1:1/jwks",
			}})
		}
		return err == nil
	}},
	{"keyTemplates", func(c *emulator.Changes, r *emulator.Rows, _ bool, a, _ int) bool {
		template := fmt.Sprintf("$userId:tmpl%d", a%4)
		var err error
		if slices.ContainsFunc(r.GlobalPolicies, func(g emulator.GlobalPolicy) bool { return g.KeyTemplate == template }) {
			err = c.RemoveCustomPolicy(template)
		} else {
			_, err = c.SetCustomPolicy(template, 0, 0)
		}
		return err == nil
	}},
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
	case "swapped": // two changes of one row, whose events change places
		turn := turns[(s.A+3*s.B)%len(turns)]
		m.emu.Hub().SetKnobs(broker.Knobs{Swap: 1, Delay: m.knobs.Delay})
		for _, second := range []bool{false, true} {
			r := m.emu.Rows()
			turn.do(&m.emu.Changes, &r, second, s.A, s.B)
			time.Sleep(2 * time.Millisecond) // not at the same time, in which nobody could tell their order
		}
		m.emu.Hub().SetKnobs(m.knobs)
	case "outrun": // a list is asked for, a row changes, and its event comes before the list
		if m.away {
			break
		}
		turn := turns[(s.A+3*s.B)%len(turns)]
		before := m.emu.Recorded().Requests[turn.list]
		m.emu.AddFault(emulator.Fault{Path: turn.list, Kind: emulator.FaultStale, Times: 1, Delay: 100 * time.Millisecond})
		m.gateway.resync(m.t)
		within(200*time.Millisecond, func() bool { return m.emu.Recorded().Requests[turn.list] > before })
		for _, second := range []bool{false, true} {
			r := m.emu.Rows()
			turn.do(&m.emu.Changes, &r, second, s.A, s.B)
			time.Sleep(2 * time.Millisecond)
		}
	case "malformed event":
		m.emu.Hub().PublishRaw(broker.Message{
			Topic:       []string{broker.TopicNotification, broker.TopicThrottleData, broker.TopicKeyManager, broker.TopicTokenRevocation}[s.A%4],
			ContentType: "text/plain", ContentEncoding: "UTF-8", Body: []byte(`{"event":{"payloadData":{"eventType":"API_`),
		})
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
	m.knobs = broker.Knobs{}
	m.emu.Hub().SetKnobs(m.knobs)
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

// calm is how long after a list the API Manager's clock leaves no doubt which of list and event is newer: until then the gateway
// asks, which hides wrong guesses.
const calm = 1700 * time.Millisecond

// calmly lets a while pass without lists, and then every row be changed twice with events that change places.
func (m *machine) calmly(a, b int) {
	time.Sleep(calm)
	for n := range turns {
		m.play(action{Op: "swapped", A: n, B: 3 * ((a + b) % 4)}) // 9 turns: B leaves the choice to A
	}
	for n := range turns {
		m.play(action{Op: "swapped", A: n + 9*a, B: 3 * ((a + b + 1) % 4)})
	}
	m.settle(settleIn)
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
					if len(history)%4 == 0 {
						m.calmly(history[0].A, history[0].B)
					}
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
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
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
		m.refused, m.unsure = false, false // the reconnect tells of everything
		m.knobs = broker.Knobs{}
		m.emu.Hub().SetKnobs(m.knobs)
		took := m.wantEqual(m.x.p, back, equalIn)
		t.Logf("round %d: started in %s, equal %s after the return", round+1, rabbit.StartTime().Round(time.Millisecond), took.Round(time.Millisecond))
		m.settle(settleIn)
	}
}
