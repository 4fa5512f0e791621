package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"gatehouse/agent/admin"
	"gatehouse/agent/config"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/sync"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// standalone makes a gateway of a folder of definitions that never runs, from a configuration file as an operator has it.
func standalone(t *testing.T, sections string) *Agent {
	t.Helper()
	return open(t, writeConfig(t, t.TempDir(), sections))
}

func writeConfig(t *testing.T, dir, sections string) (file string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "apis"), 0o700); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "gatehouse.toml")
	text := "[listener]\nhttp = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[gateway]\ndrain_delay = \"0s\"\n[standalone]\napis = \"apis\"\npolicies = \"\"\n" + sections
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func open(t *testing.T, file string) *Agent {
	t.Helper()
	cfg, _, err := config.Load(file, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Options{Config: cfg, Watcher: &config.WatcherOptions{Path: file}, Logger: zerolog.Nop(), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// scripted is a source that says what a test tells it to.
type scripted struct{ states []eventsource.State }

func (s scripted) Name() string { return "event_hub" }
func (s scripted) Kind() string { return "amqp" }
func (s scripted) Run(_ context.Context, h eventsource.Handler) error {
	for _, st := range s.states {
		h.OnState(st)
	}
	return nil
}

type recorder struct{ states []eventsource.StateKind }

func (r *recorder) OnState(s eventsource.State) { r.states = append(r.states, s.Kind) }
func (*recorder) OnMessage(event.Message)       {}

// stream reads count events of the event stream.
func stream(t *testing.T, a *Agent, kinds string, count int, while func()) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.admin.Serve(ctx, a.adminListener) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	}()
	limit, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	req, err := http.NewRequestWithContext(limit, http.MethodGet, "http://"+a.adminListener.Addr().String()+"/api/v1/events?kinds="+kinds, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Scan() // ": connected"
	while()
	var got []string
	for len(got) < count && lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			got = append(got, data)
		}
	}
	return got
}

func TestTheEventStreamTellsOfConnections(t *testing.T) {
	a := standalone(t, "")
	var engine recorder
	got := stream(t, a, "connection", 3, func() {
		s := a.observe(scripted{[]eventsource.State{{Kind: eventsource.Connected}, {Kind: eventsource.Disconnected}, {Kind: eventsource.Refused}}})
		if err := s.Run(t.Context(), &engine); err != nil {
			t.Error(err)
		}
	})
	want := []string{
		`{"source":"event_hub","state":"connected"}`, `{"source":"event_hub","state":"disconnected"}`, `{"source":"event_hub","state":"refused"}`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("stream (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]eventsource.StateKind{eventsource.Connected, eventsource.Disconnected, eventsource.Refused}, engine.states); d != "" {
		t.Errorf("the engine was told (-want +got):\n%s", d)
	}
}

// Changes name and show rows as the lists do: who reads a change can ask for the entry by its id.
func TestChangesAreShownAsTheListsShowThem(t *testing.T) {
	a := standalone(t, "")
	from := sync.Origin{Kind: "event", At: 1764000000000, ID: "e1"}
	const tail = `,"origin":{"kind":"event","at":"2025-11-24T16:00:00.000Z","id":"e1"}}`
	cases := []struct {
		name   string
		change sync.Change
		want   string
	}{
		{
			"a deny policy",
			sync.Change{What: "deny_policy", ID: "IP/carbon.super/7", After: &throttle.DenyCondition{Kind: throttle.DenyIP, Tenant: "carbon.super", ID: 7}},
			`{"what":"deny_policy","id":"IP:carbon.super:7","before":null,"after":{"id":"IP:carbon.super:7","kind":"IP","tenant":"carbon.super","invert":false,"number":7,"origin":{"kind":"","at":null,"id":""}}`,
		},
		{
			"a policy that went",
			sync.Change{What: "policy", ID: "x", Before: &throttle.Policy{Kind: throttle.PolicySubscription, Tenant: "carbon.super", Name: "Gold"}},
			`{"what":"policy","id":"subscription:carbon.super:Gold","before":{"id":"subscription:carbon.super:Gold","kind":"subscription","name":"Gold","tenant":"carbon.super","limit":null,"stop_on_quota_reach":false,"condition_groups":0,"origin":{"kind":"","at":null,"id":""}},"after":null`,
		},
		{
			"a deployed API",
			sync.Change{What: "artifact", ID: "u", After: sync.DeployedShown{UUID: "u", Name: "Shop", Version: "1", Context: "/shop/1", Revision: "r", Environments: []string{"Default"}}},
			`{"what":"artifact","id":"u","before":null,"after":{"id":"u","name":"Shop","version":"1","context":"/shop/1","revision":"r","environments":["Default"]}`,
		},
		{"a scope", sync.Change{What: "scope", ID: "s", After: &sync.Scope{Name: "s"}}, `{"what":"scope","id":"s","before":null,"after":{"name":"s","roles":[]}`},
		{
			"a revoked token",
			sync.Change{What: "revoked_token", ID: "ab", After: sync.RevokedShown{Kind: "token", SHA256: "abcd", ExpiresAt: 1764000000000}},
			`{"what":"revoked_token","id":"ab","before":null,"after":{"kind":"token","sha256":"abcd","expires_at":"2025-11-24T16:00:00.000Z","tenant":""}`,
		},
	}
	got := stream(t, a, "change", len(cases), func() {
		for _, c := range cases {
			c.change.Origin = from
			a.publishChange(c.change)
		}
	})
	if len(got) != len(cases) {
		t.Fatalf("%d events, want %d", len(got), len(cases))
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want+tail, got[i]); d != "" {
				t.Errorf("change (-want +got):\n%s", d)
			}
		})
	}
	b, err := json.Marshal(a.shown(&subscription.API{ID: 3, UUID: "u3"}))
	if err != nil || !strings.HasPrefix(string(b), `{"id":"u3"`) {
		t.Errorf("an API is named %s (%v), want by its UUID as in the list", b, err)
	}
}

func TestNotesOfADefinitionAreShown(t *testing.T) {
	def := &definition.API{UUID: "u", Notes: []string{"x-wso2-cors of the resource has no effect"}}
	b, err := json.Marshal(apiOf("u", nil, def, ""))
	if err != nil || !strings.Contains(string(b), `"notes":["x-wso2-cors of the resource has no effect"]`) {
		t.Errorf("entry = %s (%v), want the note in it", b, err)
	}
}

// Environments with endpoints of their own are one API, and an upstream each.
func TestVariantsAreShown(t *testing.T) {
	a := standalone(t, "")
	on := func(environment, host, url string) *definition.API {
		return &definition.API{
			UUID: "u", Name: "Shop", Version: "1", Context: "/shop/1", Hosts: []string{host}, Environments: []string{environment},
			Production: &definition.Endpoint{Kind: definition.Single, URLs: []string{url}},
			Operations: []definition.Operation{{Method: "GET", Template: "/*"}},
		}
	}
	api := on("US", "us.test", "http://us.backend.test")
	api.Variants = []*definition.API{on("EU", "eu.test", "http://eu.backend.test")}
	if refused := a.proxy.SetAPIs([]*definition.API{api}); len(refused) > 0 {
		t.Fatal(refused)
	}
	var got []string
	for _, table := range []string{"apis", "upstreams"} {
		a.tables()[table].Each(func(e admin.Entry) bool {
			switch v := e.Render().(type) {
			case apiView:
				got = append(got, e.ID+" in "+strings.Join(v.Environments, " "))
			case upstreamView:
				got = append(got, e.ID+" to "+strings.Join(v.URLs, " ")+" on "+strings.Join(v.Hosts, " "))
			}
			return true
		})
	}
	want := []string{"u in US EU", "u:production to http://us.backend.test on us.test", "u:production@eu.test to http://eu.backend.test on eu.test"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("entries (-want +got):\n%s", d)
	}
}

// What is kept and not enforced says why.
func TestInertEntriesSaySo(t *testing.T) {
	a := standalone(t, "")
	a.domains.deny.Put(throttle.DenyCondition{Kind: throttle.DenyIP, ID: 3, Value: "300.1.1.1"})
	a.domains.templates.Put(throttle.KeyTemplate{Template: "$customProperty."})
	for _, table := range []string{"deny-policies", "key-templates"} {
		a.tables()[table].Each(func(e admin.Entry) bool {
			if b, err := json.Marshal(e.Render()); err != nil || !strings.Contains(string(b), `"inert":"`) {
				t.Errorf("%s: %s (%v), want why it is not enforced", table, b, err)
			}
			return true
		})
	}
}

func TestAStatusKeepsItsBeginning(t *testing.T) {
	var s standing
	at := func(ms int64) time.Time { return time.UnixMilli(ms) }
	steps := []struct {
		now    int64
		name   string
		status string
		want   admin.Time
	}{
		{1000, "lists", "failed", 1000},
		{2000, "lists", "failed", 1000},
		{2000, "event_hub", "ok", 2000},
		{3000, "lists", "ok", 3000},
		{9000, "lists", "ok", 3000},
		{9500, "lists", "degraded", 9500},
		{9600, "event_hub", "ok", 2000},
	}
	for i, st := range steps {
		c := admin.Check{Name: st.name, Status: st.status}
		if s.since(&c, at(st.now)); c.Since != st.want {
			t.Errorf("step %d: %s has been %s since %d, want %d", i, st.name, st.status, c.Since, st.want)
		}
	}
}

func TestChecksOfOneNameAreOne(t *testing.T) {
	got := joinCheck([]admin.Check{{Name: "lists", Status: "ok"}, {Name: "traffic_manager", Status: "ok", Detail: "connected to 10.0.0.1:5672"}},
		admin.Check{Name: "traffic_manager", Status: "degraded", Detail: "10.0.0.1:9611: connection refused"})
	want := []admin.Check{{Name: "lists", Status: "ok"}, {Name: "traffic_manager", Status: "degraded", Detail: "connected to 10.0.0.1:5672; 10.0.0.1:9611: connection refused"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("checks (-want +got):\n%s", d)
	}
}

func TestIssuersChangeWithoutARestart(t *testing.T) {
	dir := t.TempDir()
	issuer := func(name string) string {
		return "[[apim.jwt.issuer]]\nname = \"" + name + "\"\n[apim.jwt.issuer.jwks]\nurl = \"https://" + name + "/jwks\"\n"
	}
	file := writeConfig(t, dir, issuer("a.example.com")+issuer("b.example.com"))
	a := open(t, file)
	names := func() (list []string) {
		for _, km := range a.domains.keyManagers.All() {
			list = append(list, km.Name)
		}
		slices.Sort(list)
		return list
	}
	steps := []struct {
		name, sections string
		fails          bool
		want           []string
	}{
		{"one is replaced", issuer("a.example.com") + issuer("c.example.com"), false, []string{"a.example.com", "c.example.com"}},
		{"a file with a fault changes nothing", issuer("a.example.com") + "[[apim.jwt.isuer]]\n", true, []string{"a.example.com", "c.example.com"}},
		{"all go", "", false, nil},
	}
	for _, st := range steps {
		t.Run(st.name, func(t *testing.T) {
			writeConfig(t, dir, st.sections)
			if err := a.Reload(); (err != nil) != st.fails {
				t.Fatalf("reload: %v", err)
			}
			if d := cmp.Diff(st.want, names()); d != "" {
				t.Errorf("issuers (-want +got):\n%s", d)
			}
		})
	}
}

func TestTheKeysOfAnIssuerOfTheConfigurationAreShown(t *testing.T) {
	s, authority := secured(t, keySet)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.pem"), authority)
	a := open(t, writeConfig(t, dir, "[[apim.jwt.issuer]]\nname = \"https://i\"\n[apim.jwt.issuer.jwks]\nurl = \""+s.URL+"\"\nca_file = \"ca.pem\"\n"))
	all := a.domains.keyManagers.All()
	if len(all) != 1 {
		t.Fatalf("%d key managers, want one", len(all))
	}
	if v, _ := a.keyManagerOf(&all[0]).(keyManagerView); v.Keys == nil || v.Keys.URL != s.URL {
		t.Errorf("the issuer is shown as %+v, want with its key set's URL", v)
	}
}
