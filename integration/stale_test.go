package integration_test

import (
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
)

// staleAfter is the shortest limit that a configuration may set: the lists are fetched every 10 s at the most.
const staleAfter = 11 * time.Second

// shopWithAnOpenDoor is shop with a second resource that needs no token.
func shopWithAnOpenDoor(t testing.TB, e *emulator.Emulator) {
	t.Helper()
	shop(t, e)
	if _, err := e.CreateAPI(emulator.API{
		Name: "Door", Version: "1.0.0", Context: "/door/1.0.0", Endpoint: e.BackendURL(), Environments: []string{"Default"},
		URLMappings: []emulator.URLMapping{{AuthScheme: "None", ThrottlingPolicy: "Unlimited", HTTPMethod: "GET", URLPattern: "/*", Scopes: []string{}}},
	}); err != nil {
		t.Fatal(err)
	}
}

// staleCase is a gateway whose API Manager goes away for longer than [gateway.on_stale] allows, and comes back.
type staleCase struct {
	name, settings string
	lists, broker  bool   // what goes away
	list           string // the log names it; "" while everything is served

	w             *world
	token         string
	started, left time.Time
}

func (c *staleCase) secured() answer { return c.w.gateway.call("GET", "/shop/1.0.0/items", c.token) }
func (c *staleCase) open() answer    { return c.w.gateway.call("GET", "/door/1.0.0/items", "") }

func (c *staleCase) wantServed(t *testing.T, when string) {
	t.Helper()
	if a := c.secured(); a.status != 200 {
		t.Errorf("%s: %v, want 200", when, a)
	}
	if a := c.open(); a.status != 200 {
		t.Errorf("%s, without a token: %v, want 200", when, a)
	}
}

// goAway starts a gateway and takes its API Manager away.
func (c *staleCase) goAway(t *testing.T) {
	t.Helper()
	c.started = time.Now()
	c.w = startWorld(t, worldOptions{
		fill: shopWithAnOpenDoor, eventHubKeys: "resync_interval = \"10s\"\nheartbeat = \"1s\"\n",
		sections: "[gateway.on_stale]\nstale_after = \"" + staleAfter.String() + "\"\n" + c.settings,
	})
	c.token = c.w.mint("mobile-app", "alice", "default")
	eventually(t, 5*time.Second, "both resources are served", func() bool { return is200(c.secured()) && is200(c.open()) })
	if c.lists {
		c.w.emu.StopREST()
	}
	if c.broker {
		if err := c.w.emu.Hub().Stop(); err != nil {
			t.Fatal(err)
		}
	}
	c.left = time.Now()
	c.wantServed(t, "just after it went")
}

// wantStale asserts what the settings say, once the limit has passed.
func (c *staleCase) wantStale(t *testing.T) {
	// A second to notice, and some to spare.
	refused := within(time.Until(c.left.Add(staleAfter+4*time.Second)), func() bool { return !is200(c.secured()) })
	if c.list == "" {
		if refused {
			t.Errorf("after %v: %v, want 200", time.Since(c.left), c.secured())
		}
		c.wantServed(t, "after the limit")
		return
	}
	if !refused {
		t.Fatalf("%v after the API Manager went: %v, want a refusal", time.Since(c.left), c.secured())
	}
	if after := time.Since(c.started); after < staleAfter {
		t.Errorf("refused %v after the start already", after)
	}
	a := c.secured()
	if a.status != 503 || a.code != 900900 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "out of date") {
		t.Errorf("%v, Retry-After %q; want 503/900900 that says why, and when to try again", a, a.header.Get("Retry-After"))
	}
	if trace := c.w.gateway.get("/api/v1/explain?request_id=" + a.header.Get("X-Request-Id")); !strings.Contains(trace, "the list "+c.list) {
		t.Errorf("the trace does not name the list %s: %s", c.list, trace)
	}
	if log := c.w.gateway.log.String(); !strings.Contains(log, "requests to secured resources are refused: the list "+c.list) {
		t.Errorf("the log does not name the list %s", c.list)
	}
	if a := c.open(); a.status != 200 {
		t.Errorf("a resource that needs no token: %v, want 200", a)
	}
}

// comeBack brings the API Manager back.
func (c *staleCase) comeBack(t *testing.T) {
	if c.lists {
		if err := c.w.emu.StartREST(); err != nil {
			t.Fatal(err)
		}
	}
	if c.broker {
		if err := c.w.emu.Hub().Start(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 20*time.Second, "everything is served again", func() bool { return is200(c.secured()) && is200(c.open()) })
	if c.list != "" {
		eventually(t, time.Second, "the log says so", func() bool {
			return strings.Contains(c.w.gateway.log.String(), "every list is fresh again")
		})
	}
}

func TestListsThatAreTooOldToServeWith(t *testing.T) {
	cases := []staleCase{
		{name: "denied for old revocations", settings: `revocation = "deny"`, lists: true, broker: true, list: "revoked_tokens"},
		{name: "denied for old subscriptions, though events still come", settings: `subscriptions = "deny"`, lists: true, list: "subscriptions"},
		{name: "denied for old deny policies", settings: `deny = "deny"`, lists: true, broker: true, list: "deny_policies"},
		{name: "served, as is the default", lists: true, broker: true},
		{name: "the broker alone: the lists are fetched all the same", settings: "subscriptions = \"deny\"\nrevocation = \"deny\"\ndeny = \"deny\"", broker: true},
	}
	for i := range cases { // all at once: they share the wait
		cases[i].goAway(t)
	}
	for i := range cases {
		t.Run(cases[i].name, cases[i].wantStale)
	}
	for i := range cases {
		t.Run(cases[i].name+", and back", cases[i].comeBack)
	}
}
