package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/issuer"
	"gatehouse/integration/harness"
)

// What the fault tests compare: the tables that the admin API shows with the rows of the API Manager, and the answers
// to requests with what those rows say.

const (
	corp     = "Corp Keycloak" // the key manager of every probe
	equalIn  = 2 * time.Second // after the return, or after the fault was noticed (contract README, Settled: reconnect)
	heldMore = 1200 * time.Millisecond
)

// rowsAtManager are the rows that a gateway with the label Default must hold, as sorted lines. Revocations are apart: a
// gateway may know of more.
func rowsAtManager(e *emulator.Emulator) (lines, revoked []string) {
	r := e.Rows()
	for _, a := range r.APIs {
		if slices.Contains(a.Environments, "Default") {
			lines = append(lines, fmt.Sprintf("api %s %d %s %s %s provider=%s revision=%s tenant=%s default=%t",
				a.UUID, a.APIID, a.Name, a.Context, a.Status, a.Provider, a.RevisionUUID, a.Organization, a.IsDefaultVersion))
		}
	}
	for _, a := range r.Applications {
		lines = append(lines, fmt.Sprintf("application %d %s %s of %s policy=%s token=%s tenant=%s attributes=%v",
			a.ID, a.UUID, a.Name, a.SubName, a.Policy, a.TokenType, a.Organization, a.Attributes))
	}
	for _, m := range r.KeyMappings {
		lines = append(lines, fmt.Sprintf("mapping %s@%s %s application=%d", m.ConsumerKey, m.KeyManager, m.KeyType, m.ApplicationID))
	}
	for _, s := range r.Subscriptions {
		lines = append(lines, fmt.Sprintf("subscription %d %s api=%d application=%d policy=%s %s",
			s.SubscriptionID, s.SubscriptionUUID, s.APIID, s.AppID, s.PolicyID, s.SubscriptionState))
	}
	for _, p := range slices.Concat(r.SubscriptionPolicies, r.ApplicationPolicies, r.APIPolicies) {
		stop, burst := false, int64(0)
		if p.Kind == emulator.SubscriptionPolicy { // the others have neither
			stop, burst = !p.ContinueOnQuotaReach, p.RateLimitCount
		}
		lines = append(lines, fmt.Sprintf("policy %s %s %s %s/%d/%d%s burst=%d stop=%t groups=%d", strings.ToLower(string(p.Kind)), p.TenantDomain, p.Name,
			p.Limit.QuotaType, p.Limit.Count, p.Limit.UnitTime, p.Limit.TimeUnit, burst, stop, len(p.ConditionGroups)))
	}
	for _, g := range r.GlobalPolicies {
		lines = append(lines, "template "+g.KeyTemplate)
	}
	for _, k := range r.KeyManagers {
		lines = append(lines, fmt.Sprintf("key manager %s %s %s enabled=%t issuer=%v", k.Tenant, k.Name, k.Type, !k.Disabled, k.Configuration["issuer"]))
	}
	for _, d := range r.Deny {
		switch {
		case d.Disabled:
		case d.Type == emulator.DenyIP:
			lines = append(lines, fmt.Sprintf("deny IP %d %s to  invert=%t", d.ID, d.FixedIP, d.Invert))
		case d.Type == emulator.DenyIPRange:
			lines = append(lines, fmt.Sprintf("deny IPRANGE %d %s to %s invert=%t", d.ID, d.StartingIP, d.EndingIP, d.Invert))
		default:
			lines = append(lines, fmt.Sprintf("deny %s %s", d.Type, d.Value))
		}
	}
	for _, t := range r.Revoked {
		revoked = append(revoked, t.Signature)
	}
	slices.Sort(lines)
	return lines, revoked
}

// rowsAtGateway are the same of the gateway, as its admin API shows them.
func (g *gateway) rowsAtGateway() (lines []string, revoked map[string]bool) {
	g.t.Helper()
	d := g.dumpAs(func(item map[string]any) map[string]any { return item })
	n := func(v any) int64 {
		f, _ := v.(float64) // absent is 0
		return int64(f)
	}
	text := func(v any) string {
		s, _ := v.(string) // absent is ""
		return s
	}
	for id, a := range d["apis"] {
		a := a.(map[string]any)
		line := fmt.Sprintf("api %s %d %s %s %s provider=%s revision=%s tenant=%s default=%t", id, n(a["api_id"]), a["name"], a["context"], a["lifecycle"],
			a["provider"], text(a["revision"]), a["tenant"], a["default_version"])
		if a["deployed"] != true {
			line += " NOT DEPLOYED"
		}
		if text(a["refused"]) != "" {
			line += " REFUSED " + text(a["refused"])
		}
		lines = append(lines, line)
	}
	for _, a := range d["applications"] {
		a := a.(map[string]any)
		attributes := map[string]string{}
		for k, v := range a["attributes"].(map[string]any) {
			attributes[k] = text(v)
		}
		lines = append(lines, fmt.Sprintf("application %d %s %s of %s policy=%s token=%s tenant=%s attributes=%v",
			n(a["application_id"]), a["uuid"], a["name"], a["owner"], a["policy"], a["token_type"], a["tenant"], attributes))
	}
	for id, m := range d["key-mappings"] {
		m := m.(map[string]any)
		lines = append(lines, fmt.Sprintf("mapping %s %s application=%d", id, m["key_type"], n(m["application_id"])))
	}
	for _, s := range d["subscriptions"] {
		s := s.(map[string]any)
		lines = append(lines, fmt.Sprintf("subscription %d %s api=%d application=%d policy=%s %s", n(s["subscription_id"]), s["uuid"], n(s["api_id"]),
			n(s["application_id"]), s["policy"], s["state"]))
	}
	for _, p := range d["policies"] {
		p := p.(map[string]any)
		limit, _ := p["limit"].(map[string]any) // absent shows as zeros
		lines = append(lines, fmt.Sprintf("policy %s %s %s %s/%d/%d%s burst=%d stop=%t groups=%d", p["kind"], p["tenant"], p["name"], text(limit["quota_type"]),
			n(limit["count"]), n(limit["unit_time"]), text(limit["time_unit"]), n(p["burst_count"]), p["stop_on_quota_reach"], n(p["condition_groups"])))
	}
	for id := range d["key-templates"] {
		lines = append(lines, "template "+id)
	}
	for _, k := range d["key-managers"] {
		k := k.(map[string]any)
		lines = append(lines, fmt.Sprintf("key manager %s %s %s enabled=%t issuer=%v", k["tenant"], k["name"], k["type"], k["enabled"], k["issuer"]))
	}
	for _, c := range d["deny-policies"] {
		c := c.(map[string]any)
		if kind := text(c["kind"]); kind == emulator.DenyIP || kind == emulator.DenyIPRange {
			lines = append(lines, fmt.Sprintf("deny %s %d %s to %s invert=%t", kind, n(c["number"]), text(c["from"]), text(c["to"]), c["invert"]))
		} else {
			lines = append(lines, fmt.Sprintf("deny %s %s", kind, text(c["value"])))
		}
	}
	revoked = map[string]bool{}
	for id := range d["revoked-tokens"] {
		revoked[id] = true
	}
	slices.Sort(lines)
	return lines, revoked
}

// differences lists the rows in which the gateway is not the API Manager's equal: "- " it lacks, "+ " it has in excess.
func (w *world) differences() []string {
	w.t.Helper()
	want, revoked := rowsAtManager(w.emu)
	have, known := w.gateway.rowsAtGateway()
	var out []string
	for _, l := range want {
		if _, ok := slices.BinarySearch(have, l); !ok {
			out = append(out, "- "+l)
		}
	}
	for _, l := range have {
		if _, ok := slices.BinarySearch(want, l); !ok {
			out = append(out, "+ "+l)
		}
	}
	for _, t := range revoked {
		if !known[t] {
			out = append(out, "- revoked "+t)
		}
	}
	return out
}

// sourcesState is what the tests read of /api/v1/state.
type sourcesState struct {
	Ready  bool           `json:"ready"`
	Counts map[string]int `json:"counts"`
	// Sources are the event hub and the lists.
	Sources []struct {
		Name       string            `json:"name"`
		Connected  bool              `json:"connected"`
		Reconnects int               `json:"reconnects"`
		Error      string            `json:"error"`
		Ignored    map[string]uint64 `json:"events_ignored"`
		Applied    uint64            `json:"events_applied"`
		Queue      int               `json:"queue"`
		ByKind     map[string]struct {
			Rows     int  `json:"rows"`
			HeldBack bool `json:"held_back"`
		} `json:"by_kind"`
	} `json:"sources"`
}

func (g *gateway) state() sourcesState {
	g.t.Helper()
	var s sourcesState
	g.getJSON("/api/v1/state", &s)
	return s
}

func (g *gateway) hub() (connected bool, reconnects int, err string) {
	g.t.Helper()
	for _, s := range g.state().Sources {
		if s.Name == "event_hub" {
			return s.Connected, s.Reconnects, s.Error
		}
	}
	g.t.Fatal("the state names no event_hub")
	return false, 0, ""
}

// heldBack names the lists that wait to be confirmed.
func (g *gateway) heldBack() []string {
	g.t.Helper()
	var out []string
	for _, s := range g.state().Sources {
		for name, k := range s.ByKind {
			if k.HeldBack {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

type healthAnswer struct {
	Status string `json:"status"`
	Checks []struct {
		Name, Status, Detail string
	} `json:"checks"`
}

// health asks a health path; it returns the HTTP status and the answer.
func (g *gateway) health(path string) (int, healthAnswer) {
	g.t.Helper()
	resp, err := adminClient.Get(g.admin + path)
	if err != nil {
		g.t.Fatalf("admin %s: %v", path, err)
	}
	resp.Body.Close()
	var h healthAnswer
	g.getJSON(path, &h)
	return resp.StatusCode, h
}

// check is the line of the health answer that bears a name.
func (h healthAnswer) check(name string) (status, detail string) {
	for _, c := range h.Checks {
		if c.Name == name {
			return c.Status, c.Detail
		}
	}
	return "absent", ""
}

// wantEqual waits until every row and every probe agrees with the API Manager, for at most limit from since on. A list that
// is held back gets the time of its confirmation on top, as the contract has it. It returns how long it took.
func (w *world) wantEqual(p *probes, since time.Time, limit time.Duration) time.Duration {
	w.t.Helper()
	deadline, held := since.Add(limit), false
	var rows, answers []string
	for {
		looked := time.Now() // equal now means equal at the latest when the look began
		if rows = w.differences(); len(rows) == 0 {
			if answers = p.differences(w); len(answers) == 0 {
				return time.Since(since)
			}
		}
		if looked.After(deadline) {
			break
		}
		if !held && len(w.gateway.heldBack()) > 0 {
			held, deadline = true, deadline.Add(heldMore)
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("not equal %s after the return (held back: %t, now %v):\n%s\nprobes:\n%s", time.Since(since).Round(time.Millisecond), held,
		w.gateway.heldBack(), strings.Join(rows, "\n"), strings.Join(answers, "\n"))
	return 0
}

// probes are requests with the tokens of several clients to several contexts.
type probes struct {
	mu       sync.Mutex
	contexts []string
	tokens   []issuer.Issued // the newest of each client first
}

func newProbes(t testing.TB, e *emulator.Emulator) *probes {
	t.Helper()
	p := &probes{}
	for _, a := range e.Rows().APIs {
		p.contexts = append(p.contexts, a.Context)
	}
	for n := range faultApps {
		p.mint(t, e, n)
	}
	return p
}

// mint gives the n-th client a further token.
func (p *probes) mint(t testing.TB, e *emulator.Emulator, n int) {
	t.Helper()
	token, err := e.Issuer().Mint(issuer.Token{ClientID: clientName(n), Subject: ownerName(n)})
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens = append([]issuer.Issued{token}, p.tokens...)
}

// token returns one of the tokens.
func (p *probes) token(n int) issuer.Issued {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tokens[n%len(p.tokens)]
}

// allowed picks a probe that the API Manager's rows allow.
func (p *probes) allowed(t testing.TB, e *emulator.Emulator) (path, token string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	rows := e.Rows()
	for _, c := range p.contexts {
		for _, x := range p.tokens {
			if status, _ := decide(&rows, c, x); status == http.StatusOK {
				return c + "/items", x.Token
			}
		}
	}
	t.Fatal("no probe is to be allowed: the test would show nothing")
	return "", ""
}

// differences sends every probe and lists those that are answered otherwise than the API Manager's rows say.
func (p *probes) differences(w *world) []string {
	w.t.Helper()
	if p == nil {
		return nil
	}
	p.mu.Lock()
	contexts, tokens := slices.Clone(p.contexts), slices.Clone(p.tokens)
	p.mu.Unlock()
	rows := w.emu.Rows()
	var out []string
	for _, c := range contexts {
		for _, t := range tokens {
			status, code := decide(&rows, c, t)
			if a := w.gateway.call(http.MethodGet, c+"/items", t.Token); a.status != status || code != 0 && a.code != code {
				out = append(out, fmt.Sprintf("%s with a token of %s: %v, want %d/%d", c, t.ClientID, a, status, code))
			}
		}
	}
	return out
}

// decide is what the API Manager's rows say of a request from this machine: an oracle that is written from the contract
// (rest.md 4, gateway-behaviour.md 1), not from the gateway. Code 0 stands for any.
func decide(r *emulator.Rows, context string, token issuer.Issued) (status, code int) {
	i := slices.IndexFunc(r.APIs, func(a emulator.API) bool { return a.Context == context && slices.Contains(a.Environments, "Default") })
	if i < 0 {
		return 404, 0
	}
	api := r.APIs[i]
	if api.Status == "BLOCKED" {
		return 503, 700700
	}
	denied := func(kind, value string) bool {
		return slices.ContainsFunc(r.Deny, func(d emulator.DenyCondition) bool { return d.Type == kind && d.Value == value && !d.Disabled })
	}
	if denied(emulator.DenyAPI, context) || slices.ContainsFunc(r.Deny, deniesLoopback) {
		return 403, 900805
	}
	km := slices.IndexFunc(r.KeyManagers, func(k emulator.KeyManager) bool { return k.Name == corp && !k.Disabled })
	if km < 0 || slices.ContainsFunc(r.Revoked, func(x emulator.RevokedToken) bool { return x.Signature == token.ID }) {
		return 401, 900901
	}
	m := slices.IndexFunc(r.KeyMappings, func(m emulator.KeyMapping) bool { return m.ConsumerKey == token.ClientID && m.KeyManager == corp })
	if m < 0 {
		return 403, 900908
	}
	mapping := r.KeyMappings[m]
	a := slices.IndexFunc(r.Applications, func(a emulator.Application) bool { return a.ID == mapping.ApplicationID })
	s := slices.IndexFunc(r.Subscriptions, func(s emulator.Subscription) bool { return s.AppID == mapping.ApplicationID && s.APIUUID == api.UUID })
	if a < 0 || s < 0 {
		return 403, 900908
	}
	app := r.Applications[a]
	switch state := r.Subscriptions[s].SubscriptionState; {
	case state == "BLOCKED", state == "PROD_ONLY_BLOCKED" && mapping.KeyType != "SANDBOX":
		return 401, 900907
	case state == "ON_HOLD", state == "REJECTED":
		return 401, 900909
	}
	if denied(emulator.DenyUser, token.Subject+"@"+emulator.SuperTenant) || denied(emulator.DenyApplication, app.SubName+":"+app.Name) ||
		denied(emulator.DenySubscription, fmt.Sprintf("%s:%s:%s-%s:%s", context, api.Version, app.SubName, app.Name, mapping.KeyType)) {
		return 403, 900805
	}
	return 200, 0
}

func deniesLoopback(d emulator.DenyCondition) bool {
	loopback := netip.MustParseAddr("127.0.0.1")
	switch {
	case d.Disabled:
		return false
	case d.Type == emulator.DenyIP:
		return (netip.MustParseAddr(d.FixedIP) == loopback) != d.Invert
	case d.Type == emulator.DenyIPRange:
		from, to := netip.MustParseAddr(d.StartingIP), netip.MustParseAddr(d.EndingIP)
		return (from.Compare(loopback) <= 0 && loopback.Compare(to) <= 0) != d.Invert
	}
	return false
}

// faultWorld is the data of the fault tests: some of everything.
const (
	faultAPIs = 4
	faultApps = 4
)

func clientName(n int) string { return fmt.Sprintf("client-%d", n%faultApps) }
func ownerName(n int) string  { return fmt.Sprintf("owner%d", n%faultApps) }

func fillFaultWorld(t testing.TB, e *emulator.Emulator) {
	t.Helper()
	s := e.Silent()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.PutKeyManager(emulator.KeyManager{Name: corp, Type: "KeyCloak", Configuration: e.IssuerConfiguration()}))
	var apis []emulator.API
	for n := range faultAPIs {
		a, err := s.CreateAPI(emulator.API{
			Name: fmt.Sprintf("Api%d", n), Version: "1.0.0", Context: fmt.Sprintf("/api%d/1.0.0", n), Endpoint: e.BackendURL(),
			SandboxEndpoint: e.BackendURL(), Environments: []string{"Default"},
		})
		must(a, err)
		apis = append(apis, a)
	}
	for n := range faultApps {
		a, err := s.CreateApplication(emulator.Application{Name: fmt.Sprintf("App%d", n), SubName: ownerName(n), Attributes: map[string]string{"plan": "a"}})
		must(a, err)
		must(s.AddKeyMapping(emulator.KeyMapping{ApplicationID: a.ID, ConsumerKey: clientName(n), KeyManager: corp, KeyType: []string{"PRODUCTION", "SANDBOX"}[n%2]}))
		must(s.Subscribe(emulator.Subscription{APIUUID: apis[n%faultAPIs].UUID, AppID: a.ID, PolicyID: "Gold"}))
		must(s.Subscribe(emulator.Subscription{APIUUID: apis[(n+1)%faultAPIs].UUID, AppID: a.ID, PolicyID: "Gold", SubscriptionState: "BLOCKED"}))
	}
	must(s.PutPolicy(emulator.Policy{Kind: emulator.SubscriptionPolicy, Name: "Gold", Limit: emulator.Limit{TimeUnit: "min", UnitTime: 1, Count: 1_000_000}}))
	must(s.SetCustomPolicy("$userId:none", 0, 0))
	must(s.Deny(emulator.DenyCondition{Type: emulator.DenyUser, Value: "nobody"}))
}

// changer changes the API Manager's rows. Each of its methods does one change by numbers, so that a generator can draw them.
type changer struct {
	t testing.TB
	e *emulator.Emulator
	p *probes // tokens to revoke; further ones are minted
}

// changeNames are what change can do.
var changeNames = []string{
	"create application", "update application", "delete application", "add key mapping", "remove key mapping",
	"subscribe", "subscribe", "set subscription", "set subscription", "unsubscribe",
	"put policy", "delete policy", "put key manager", "switch key manager", "delete key manager",
	"set custom policy", "remove custom policy", "replace custom policy",
	"deny api", "deny application", "deny user", "deny subscription", "deny ip", "deny range", "allow", "switch deny",
	"revoke", "revoke many", "set life cycle", "create api", "update api", "delete api", "deploy", "undeploy", "put scope",
}

// change does one change through c: silently, or with its event. The API Manager refuses some, as the real one would; those are
// no change.
func (x changer) change(c *emulator.Changes, name string, a, b int) {
	x.t.Helper()
	r := x.e.Rows()
	at := func(n int) int { return (a + 7*b) % max(n, 1) } // a row of a table
	api := func() emulator.API {
		if len(r.APIs) == 0 {
			return emulator.API{UUID: "none", Context: "/none/1.0.0"}
		}
		return r.APIs[at(len(r.APIs))]
	}
	app := func() emulator.Application {
		if len(r.Applications) == 0 {
			return emulator.Application{ID: -1, Name: "none", SubName: "none"}
		}
		return r.Applications[at(len(r.Applications))]
	}
	var err error
	switch name {
	case "create application":
		_, err = c.CreateApplication(emulator.Application{Name: fmt.Sprintf("App%d", a), SubName: ownerName(a), Policy: "Unlimited"})
	case "update application":
		_, err = c.UpdateApplication(app().ID, func(y *emulator.Application) {
			y.Policy, y.Attributes["plan"] = []string{"Unlimited", "10PerMin"}[b%2], fmt.Sprint(a)
		})
	case "delete application":
		if a%3 == 0 { // each takes keys and subscriptions with it
			err = c.DeleteApplication(app().ID)
		}
	case "add key mapping":
		// A consumer key belongs to one application: the API Manager gives each anew.
		if !slices.ContainsFunc(r.KeyMappings, func(m emulator.KeyMapping) bool { return m.ConsumerKey == clientName(a) && m.KeyManager == corp }) {
			_, err = c.AddKeyMapping(emulator.KeyMapping{ApplicationID: app().ID, ConsumerKey: clientName(a), KeyManager: corp, KeyType: []string{"PRODUCTION", "SANDBOX"}[b%2]})
		}
	case "remove key mapping":
		if n := len(r.KeyMappings); n > 0 {
			m := r.KeyMappings[at(n)]
			err = c.RemoveKeyMapping(m.ConsumerKey, m.KeyManager)
		}
	case "subscribe":
		_, err = c.Subscribe(emulator.Subscription{APIUUID: api().UUID, AppID: app().ID, PolicyID: "Gold"})
	case "set subscription":
		if n := len(r.Subscriptions); n > 0 {
			_, err = c.UpdateSubscription(r.Subscriptions[at(n)].SubscriptionID, []string{"UNBLOCKED", "BLOCKED", "PROD_ONLY_BLOCKED", "ON_HOLD", "REJECTED"}[a%5], []string{"Gold", "Unlimited"}[b%2])
		}
	case "unsubscribe":
		if n := len(r.Subscriptions); n > 0 {
			err = c.Unsubscribe(r.Subscriptions[at(n)].SubscriptionID)
		}
	case "put policy":
		_, err = c.PutPolicy(emulator.Policy{
			Kind: []emulator.PolicyKind{emulator.SubscriptionPolicy, emulator.ApplicationPolicy, emulator.APIPolicy}[b%3], Name: fmt.Sprintf("Tier%d", a%4),
			Limit: emulator.Limit{TimeUnit: "min", UnitTime: 1, Count: int64(1000 + 100*b)}, RateLimitCount: int64(a), RateLimitTimeUnit: "sec",
		})
	case "delete policy":
		err = c.DeletePolicy([]emulator.PolicyKind{emulator.SubscriptionPolicy, emulator.ApplicationPolicy, emulator.APIPolicy}[b%3], "", fmt.Sprintf("Tier%d", a%4))
	case "put key manager":
		_, err = c.PutKeyManager(emulator.KeyManager{
			Name: fmt.Sprintf("Other%d", a%2), Type: "Auth0", Disabled: b%2 == 0,
			Configuration: map[string]any{"issuer": fmt.Sprintf("https://other%d.test/%d", a%2, b), "certificate_type": "JWKS", "certificate_value": "https://127.0.0.1:1/jwks"},
		})
	case "switch key manager":
		_, err = c.PutKeyManager(emulator.KeyManager{Name: corp, Type: "KeyCloak", Disabled: b%3 == 0, Configuration: x.e.IssuerConfiguration()})
	case "delete key manager":
		err = c.DeleteKeyManager("", fmt.Sprintf("Other%d", a%2))
	case "set custom policy":
		_, err = c.SetCustomPolicy(fmt.Sprintf("$userId:tmpl%d", a%4), 0, 0)
	case "remove custom policy":
		err = c.RemoveCustomPolicy(fmt.Sprintf("$userId:tmpl%d", a%4))
	case "replace custom policy":
		if to := fmt.Sprintf("$userId:tmpl%d", b%4); !slices.ContainsFunc(r.GlobalPolicies, func(g emulator.GlobalPolicy) bool { return g.KeyTemplate == to }) {
			err = c.ReplaceCustomPolicy(fmt.Sprintf("$userId:tmpl%d", a%4), to)
		}
	case "deny api":
		_, err = c.Deny(emulator.DenyCondition{Type: emulator.DenyAPI, Value: api().Context})
	case "deny application":
		y := app()
		_, err = c.Deny(emulator.DenyCondition{Type: emulator.DenyApplication, Value: y.SubName + ":" + y.Name})
	case "deny user":
		_, err = c.Deny(emulator.DenyCondition{Type: emulator.DenyUser, Value: ownerName(a)})
	case "deny subscription":
		_, err = c.Deny(emulator.DenyCondition{Type: emulator.DenySubscription, Value: fmt.Sprintf("%s:1.0.0:%s-App%d:%s", api().Context, ownerName(a), a%faultApps, []string{"PRODUCTION", "SANDBOX"}[b%2])})
	case "deny ip":
		_, err = c.Deny(emulator.DenyCondition{Type: emulator.DenyIP, Value: []string{"203.0.113.7", "127.0.0.1", "2001:db8::7"}[a%3]})
	case "deny range":
		_, err = c.Deny(emulator.DenyCondition{Type: emulator.DenyIPRange, Value: []string{"203.0.113.0-203.0.113.99", "10.0.0.1-10.0.0.9"}[a%2]})
	case "allow":
		if n := len(r.Deny); n > 0 {
			err = c.Allow(r.Deny[at(n)].ID)
		}
	case "switch deny":
		if n := len(r.Deny); n > 0 {
			d := r.Deny[at(n)]
			err = c.SwitchDeny(d.ID, d.Disabled)
		}
	case "revoke":
		token := x.p.token(a)
		if err = c.Revoke(token.ID, token.ExpiresAt, ""); err == nil {
			var n int
			if _, err := fmt.Sscanf(token.ClientID, "client-%d", &n); err != nil {
				x.t.Fatal(err)
			}
			x.p.mint(x.t, x.e, n)
		}
	case "revoke many":
		err = c.RevokeMany(emulator.MassRevocation{ConsumerKey: fmt.Sprintf("gone-%d", a), RevocationTime: time.Now().UnixMilli()})
	case "set life cycle":
		err = c.SetLifecycle(api().UUID, []string{"PUBLISHED", "BLOCKED", "PUBLISHED", "DEPRECATED", "RETIRED"}[a%5])
	case "create api":
		n := len(x.p.contexts)
		if n < faultAPIs+2 {
			context := fmt.Sprintf("/api%d/1.0.0", n)
			if _, err = c.CreateAPI(emulator.API{
				Name: fmt.Sprintf("Api%d", n), Version: "1.0.0", Context: context, Endpoint: x.e.BackendURL(),
				SandboxEndpoint: x.e.BackendURL(), Environments: []string{[]string{"Default", "Default", "Elsewhere"}[b%3]},
			}); err == nil {
				x.p.mu.Lock()
				x.p.contexts = append(x.p.contexts, context)
				x.p.mu.Unlock()
			}
		}
	case "update api":
		_, err = c.UpdateAPI(api().UUID, func(y *emulator.API) { y.Provider = fmt.Sprintf("provider%d", b) })
	case "delete api":
		if a%3 == 0 {
			err = c.DeleteAPI(api().UUID)
		}
	case "deploy":
		if y := api(); y.Status != "RETIRED" {
			_, err = c.DeployAPI(y.UUID, "Default")
		}
	case "undeploy":
		err = c.UndeployAPI(api().UUID, "Default")
	case "put scope":
		c.PutScope(emulator.Scope{Name: fmt.Sprintf("scope%d", a%3), Roles: []string{fmt.Sprintf("role%d", b)}})
	default:
		x.t.Fatalf("no change is called %q", name)
	}
	_ = err // refused: nothing changed, and nothing was told
}

// some does n changes of every kind in turn, beginning with the one of number from.
func (x changer) some(c *emulator.Changes, from, n int) {
	x.t.Helper()
	for i := range n {
		k := from + i
		x.change(c, changeNames[(k*11)%len(changeNames)], k%8, (k/3)%5)
	}
}

// flush waits until the broker has what the API Manager published.
func (w *world) flush() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.emu.Hub().Flush(ctx); err != nil {
		w.t.Fatal(err)
	}
}

// faultyWorld is a world whose gateway reaches its broker through a proxy. Worlds of one time need virtual hosts of their own.
func faultyWorld(t testing.TB, rabbit *harness.Rabbit, o worldOptions) (*world, *harness.Proxy, changer) {
	t.Helper()
	link := harness.StartProxy(t, rabbit.Address())
	if o.eventHub == "" {
		o.eventHub = rabbit.URL("carbon")
	}
	o.gatewayHub = strings.Replace(o.eventHub, rabbit.Address(), link.Address(), 1)
	if o.fill == nil {
		o.fill = fillFaultWorld
	}
	if !strings.Contains(o.eventHubKeys, "heartbeat") {
		o.eventHubKeys += "\nheartbeat = \"1s\"\n"
	}
	w := startWorld(t, o)
	p := newProbes(t, w.emu)
	w.wantEqual(p, time.Now(), 5*time.Second)
	return w, link, changer{t: t, e: w.emu, p: p}
}
