package integration_test

import (
	"encoding/binary"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/harness"
)

// servedIn is how long a gateway with a snapshot may take from its start to its first answer, readyIn how long one without takes
// from the API Manager's return.
const (
	servedIn = time.Second
	readyIn  = 2 * time.Second
)

// again is what a second gateway for the same world is started with.
func again(w *world, link *harness.Proxy, rabbit *harness.Rabbit, dataDir string) worldOptions {
	return worldOptions{
		gatewayHub: strings.Replace(rabbit.URL("carbon"), rabbit.Address(), link.Address(), 1), dataDir: dataDir, waitReady: -1,
		eventHubKeys: "heartbeat = \"1s\"\n",
	}
}

// first waits for the first answer of a kind and returns how long after began it came.
func (g *gateway) first(began time.Time, limit time.Duration, path, token string, ok func(answer) bool) (time.Duration, answer) {
	g.t.Helper()
	var a answer
	within(limit-time.Since(began), func() bool {
		a = g.call(http.MethodGet, path, token)
		return ok(a)
	})
	return time.Since(began), a
}

func is200(a answer) bool { return a.status == http.StatusOK }

func wantHealth(t *testing.T, g *gateway, path string, status int, checks map[string]string) {
	t.Helper()
	got, h := g.health(path)
	if got != status {
		t.Errorf("%s = %d %+v, want %d", path, got, h, status)
	}
	for name, want := range checks {
		if s, detail := h.check(name); s != want {
			t.Errorf("%s: %s is %s (%s), want %s", path, name, s, detail, want)
		}
	}
}

// wantNotReady asserts that requests are turned away as those of a gateway that has no state yet.
func wantNotReady(t *testing.T, g *gateway, token string) {
	t.Helper()
	a := g.call(http.MethodGet, "/api0/1.0.0/items", token)
	if a.status != 503 || a.code != 900900 || a.header.Get("Retry-After") != "1" {
		t.Errorf("before it is ready the gateway answers %v, Retry-After %q; want 503/900900 and 1", a, a.header.Get("Retry-After"))
	}
}

func TestAStartWithoutTheAPIManagerServesTheSnapshot(t *testing.T) {
	rabbit, dir := harness.Shared(t), t.TempDir()
	w, link, x := faultyWorld(t, rabbit, worldOptions{dataDir: dir})
	// The state to be kept: rows of events, a revocation and a decision, which no list brings back.
	x.some(&w.emu.Changes, 0, 5)
	revoked := x.p.token(0)
	x.change(&w.emu.Changes, "revoke", 0, 0)
	w.emu.Decide("kept:key", true, time.Now().Add(10*time.Minute), nil)
	w.flush()
	w.wantEqual(x.p, time.Now(), equalIn)
	eventually(t, equalIn, "the decision is known", func() bool { return w.gateway.dump()["throttled-keys"]["kept:key"] != nil })
	before := w.gateway.dump()
	path, token := x.p.allowed(t, w.emu)
	w.gateway.stop()
	w.emu.StopREST()
	link.Refuse()

	t.Run("the key manager is away too", func(t *testing.T) {
		w.emu.StopKeyManager()
		began := time.Now()
		g := startGateway(t, w.emu, again(w, link, rabbit, dir))
		g.waitReady(5 * time.Second) // before it, 503/900900 means another thing
		took, a := g.first(began, 5*time.Second, path, token, func(answer) bool { return true })
		if a.status != 503 || a.code != 900900 || a.header.Get("Retry-After") == "" || took > servedIn {
			t.Errorf("a token that nobody can verify is answered %v after %s, Retry-After %q; want 503/900900 with one within %s: it is not the caller's fault",
				a, took, a.header.Get("Retry-After"), servedIn)
		}
		eventually(t, 5*time.Second, "the health answer says that the key manager is away", func() bool {
			status, h := g.health("/health/ready")
			check, _ := h.check("key_managers")
			return status == http.StatusOK && check == "degraded"
		})
		if err := w.emu.StartKeyManager(); err != nil {
			t.Fatal(err)
		}
		took, a = g.first(time.Now(), 15*time.Second, path, token, is200)
		if a.status != 200 {
			t.Fatalf("after the key manager's return: %v", a)
		}
		t.Logf("served %s after the key manager's return", took.Round(time.Millisecond))
		g.stop()
	})

	t.Run("the key manager is there", func(t *testing.T) {
		began := time.Now()
		g := startGateway(t, w.emu, again(w, link, rabbit, dir))
		took, a := g.first(began, 5*time.Second, path, token, is200)
		if a.status != 200 || took > servedIn {
			t.Fatalf("first answer 200 after %s (%v), want within %s", took, a, servedIn)
		}
		t.Logf("served %s after the start, with nobody there", took.Round(time.Millisecond))
		wantHealth(t, g, "/health/ready", 200, map[string]string{"lists": "degraded", "event_hub": "degraded", "snapshot": "ok"})
		if d := before.diff(g.dump()); len(d) > 0 {
			t.Errorf("the snapshot differs from what the gateway held:\n%s", strings.Join(d, "\n"))
		}
		if a := g.call(http.MethodGet, path, revoked.Token); a.status != 401 {
			t.Errorf("a token that was revoked before the restart is answered %v", a)
		}
		here := &world{t: t, emu: w.emu, gateway: g}
		if d := x.p.differences(here); len(d) > 0 {
			t.Errorf("probes:\n%s", strings.Join(d, "\n"))
		}
		// The API Manager comes back, and has gone on meanwhile.
		x := changer{t: t, e: w.emu, p: x.p}
		x.some(w.emu.Silent(), 40, 20)
		if err := w.emu.StartREST(); err != nil {
			t.Fatal(err)
		}
		link.Resume()
		back := time.Now()
		took = here.wantEqual(x.p, back, equalIn)
		t.Logf("equal %s after everybody's return", took.Round(time.Millisecond))
		eventually(t, equalIn, "all is well again", func() bool {
			_, h := g.health("/health/ready")
			lists, _ := h.check("lists")
			hub, _ := h.check("event_hub")
			return lists == "ok" && hub == "ok"
		})
	})
	if err := w.emu.StartREST(); err != nil {
		t.Fatal(err)
	}
}

func TestAStartWithoutTheAPIManagerAndWithoutASnapshotWaits(t *testing.T) {
	rabbit := harness.Shared(t)
	for _, c := range []struct {
		name   string
		broker bool
	}{{"the event hub is there", true}, {"the event hub is away too", false}} {
		t.Run(c.name, func(t *testing.T) {
			link := harness.StartProxy(t, rabbit.Address())
			w := &world{t: t, emu: startEmulator(t, worldOptions{eventHub: rabbit.URL("carbon"), fill: fillFaultWorld})}
			x := changer{t: t, e: w.emu, p: newProbes(t, w.emu)}
			w.emu.StopREST()
			if !c.broker {
				link.Refuse()
			}
			w.gateway = startGateway(t, w.emu, again(w, link, rabbit, ""))
			token := x.p.token(0).Token
			for range 3 { // and it stays so
				wantHealth(t, w.gateway, "/health/live", 200, nil)
				wantHealth(t, w.gateway, "/health/ready", 503, map[string]string{"lists": "failed"})
				wantNotReady(t, w.gateway, token)
				if w.gateway.state().Ready {
					t.Error("the state says ready")
				}
				time.Sleep(time.Second)
			}
			x.some(&w.emu.Changes, 0, 15)
			if err := w.emu.StartREST(); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			select {
			case <-w.gateway.agent.Ready():
			case <-time.After(10 * time.Second):
			}
			took := time.Since(back)
			if took > readyIn {
				t.Errorf("ready %s after the API Manager's return, want within %s", took, readyIn)
			}
			t.Logf("ready %s after the API Manager's return", took.Round(time.Millisecond))
			wantHealth(t, w.gateway, "/health/ready", 200, nil)
			w.wantEqual(x.p, back, equalIn)
			if !c.broker {
				x.some(w.emu.Silent(), 15, 10)
				link.Resume()
				t.Logf("equal %s after the broker's return", w.wantEqual(x.p, time.Now(), equalIn).Round(time.Millisecond))
			}
		})
	}
}

func TestAStartWithoutTheEventHubIsReadyAndDegraded(t *testing.T) {
	rabbit := harness.Shared(t)
	link := harness.StartProxy(t, rabbit.Address())
	w := &world{t: t, emu: startEmulator(t, worldOptions{eventHub: rabbit.URL("carbon"), fill: fillFaultWorld})}
	x := changer{t: t, e: w.emu, p: newProbes(t, w.emu)}
	link.Refuse()
	began := time.Now()
	w.gateway = startGateway(t, w.emu, again(w, link, rabbit, ""))
	w.gateway.waitReady(10 * time.Second)
	if took := time.Since(began); took > readyIn {
		t.Errorf("ready after %s, want within %s: the event hub is not waited for", took, readyIn)
	}
	w.wantEqual(x.p, time.Now(), equalIn)
	wantHealth(t, w.gateway, "/health/ready", 200, map[string]string{"lists": "ok", "event_hub": "degraded"})
	if connected, _, err := w.gateway.hub(); connected || err == "" {
		t.Errorf("the state says connected %t, error %q", connected, err)
	}
	x.some(w.emu.Silent(), 0, 15)
	x.some(&w.emu.Changes, 15, 15)
	link.Resume()
	t.Logf("equal %s after the broker's return", w.wantEqual(x.p, time.Now(), equalIn).Round(time.Millisecond))
	wantHealth(t, w.gateway, "/health/ready", 200, map[string]string{"event_hub": "ok"})
	x.change(&w.emu.Changes, "deny api", 0, 0) // and events come
	w.wantEqual(x.p, time.Now(), time.Second)
}

func TestWhatChangedWhileTheGatewayWasDown(t *testing.T) {
	rabbit, dir := harness.Shared(t), t.TempDir()
	w, link, x := faultyWorld(t, rabbit, worldOptions{dataDir: dir})
	first := w.gateway
	for round, change := range []struct {
		name string
		do   func(x changer)
	}{
		{"changes of every kind", func(x changer) {
			x.some(w.emu.Silent(), 0, 35)
			x.some(&w.emu.Changes, 35, 35)
		}},
		{"an API, an application and a deny policy deleted", func(x changer) {
			r := w.emu.Rows()
			if err := w.emu.DeleteAPI(r.APIs[0].UUID); err != nil {
				t.Fatal(err)
			}
			if err := w.emu.DeleteApplication(r.Applications[0].ID); err != nil {
				t.Fatal(err)
			}
			if err := w.emu.Allow(r.Deny[0].ID); err != nil {
				t.Fatal(err)
			}
		}},
		{"every subscription gone, which is confirmed first", func(x changer) {
			for _, s := range w.emu.Rows().Subscriptions {
				if err := w.emu.Silent().Unsubscribe(s.SubscriptionID); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		if round == 0 {
			first.stop()
		}
		t.Run(change.name, func(t *testing.T) {
			x := changer{t: t, e: w.emu, p: x.p}
			change.do(x)
			began := time.Now()
			g := startGateway(t, w.emu, again(w, link, rabbit, dir))
			took := (&world{t: t, emu: w.emu, gateway: g}).wantEqual(x.p, began, equalIn)
			t.Logf("equal %s after the start", took.Round(time.Millisecond))
			if !strings.Contains(g.log.String(), "serving from the snapshot until the lists are in") {
				t.Error("the snapshot was not used: the test shows nothing")
			}
			g.stop()
		})
	}
}

// TestSnapshotsOfNoUse: a snapshot that cannot be trusted is refused with a reason, and the gateway starts without.
func TestSnapshotsOfNoUse(t *testing.T) {
	dir := t.TempDir()
	w := startWorld(t, worldOptions{fill: fillFaultWorld, dataDir: dir})
	w.wantEqual(newProbes(t, w.emu), time.Now(), 5*time.Second)
	w.gateway.stop()
	good, err := os.ReadFile(filepath.Join(dir, "snapshot"))
	if err != nil {
		t.Fatal(err)
	}
	w.emu.StopREST()
	const head = len("GATEHOUSE SNAPSHOT\n")
	version := binary.BigEndian.Uint32(good[head:])
	for _, c := range []struct {
		name    string
		content func([]byte) []byte
		options worldOptions
		say     []string
	}{
		{name: "a byte changed", say: []string{"the snapshot is damaged", "checksum"}, content: func(b []byte) []byte { b[len(b)/2] ^= 0x20; return b }},
		{name: "cut off", say: []string{"the snapshot is damaged"}, content: func(b []byte) []byte { return b[:len(b)*2/3] }},
		{name: "empty", say: []string{"the snapshot is damaged"}, content: func([]byte) []byte { return nil }},
		{name: "another file", say: []string{"the snapshot is damaged", "does not begin like one"}, content: func([]byte) []byte { return []byte("[listener]\nhttp = \":8280\"\n" + strings.Repeat("#", 200)) }},
		{name: "another version", say: []string{"of another version"}, content: func(b []byte) []byte { binary.BigEndian.PutUint32(b[head:], version+1); return b }},
		{name: "too old", say: []string{"more than max_snapshot_age"}, options: worldOptions{gatewayKeys: `max_snapshot_age = "1ms"`}},
		{name: "of other gateway labels", say: []string{"gateway labels", "Elsewhere"}, options: worldOptions{gatewayKeys: `gateway_labels = ["Elsewhere"]`}},
		{name: "of another API Manager", say: []string{"it was taken of"}, options: worldOptions{serviceURL: strings.Replace(w.emu.URL(), "localhost", "127.0.0.1", 1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := c.options
			o.dataDir, o.waitReady = filepath.Join(t.TempDir(), "data"), -1
			if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
				t.Fatal(err)
			}
			content := slices.Clone(good)
			if c.content != nil {
				content = c.content(content)
			}
			if err := os.WriteFile(filepath.Join(o.dataDir, "snapshot"), content, 0o600); err != nil {
				t.Fatal(err)
			}
			g := startGateway(t, w.emu, o)
			var line string
			eventually(t, 5*time.Second, "the log says that the snapshot is not used", func() bool {
				for l := range strings.SplitSeq(g.log.String(), "\n") {
					if strings.Contains(l, "the snapshot is not used") {
						line = l
					}
				}
				return line != ""
			})
			for _, s := range append(c.say, `"level":"error"`, filepath.Join(o.dataDir, "snapshot")) {
				if !strings.Contains(line, s) {
					t.Errorf("the log lacks %q: %s", s, line)
				}
			}
			wantHealth(t, g, "/health/live", 200, nil)
			wantHealth(t, g, "/health/ready", 503, map[string]string{"snapshot": "degraded", "lists": "failed"})
			wantNotReady(t, g, "")
			if n := g.state().Counts["subscriptions"]; n != 0 {
				t.Errorf("%d subscriptions of a snapshot that is not used", n)
			}
		})
	}
	t.Run("it is replaced", func(t *testing.T) {
		bad := slices.Clone(good)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(filepath.Join(dir, "snapshot"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.emu.StartREST(); err != nil {
			t.Fatal(err)
		}
		g := startGateway(t, w.emu, worldOptions{dataDir: dir})
		g.stop()
		w.emu.StopREST()
		g = startGateway(t, w.emu, worldOptions{dataDir: dir, waitReady: -1})
		g.waitReady(5 * time.Second)
		if got, want := g.state().Counts["subscriptions"], len(w.emu.Rows().Subscriptions); got != want {
			t.Errorf("%d subscriptions, want %d", got, want)
		}
	})
}
