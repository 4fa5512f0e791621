package sync_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/nats"
	"gatehouse/agent/sync"
	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/broker"
	"gatehouse/keymanager"
	"gatehouse/keymanager/revocation"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/subscription/store"
	"gatehouse/throttle"
	"gatehouse/throttle/deny"
	"gatehouse/throttle/keytemplate"
	"gatehouse/throttle/policy"
	"gatehouse/throttle/remote"
)

// gateway is an engine over the real tables, the real client, the real decoders and a real broker; no proxy.
type gateway struct {
	*sync.Engine
	store     *store.Store
	deny      *deny.Set
	templates *keytemplate.Set
	policies  *policy.Store
	decisions *remote.Decisions
	revoked   *revocation.Set

	mu     gosync.Mutex
	kms    map[string]keymanager.KeyManager
	served []*definition.API
}

func (g *gateway) domains() sync.Domains {
	apis, mappings := g.store.APIs(), g.store.KeyMappings()
	policies := func(kind throttle.PolicyKind) sync.Sink[throttle.Policy] {
		return sync.Sink[throttle.Policy]{
			Put:        func(p throttle.Policy) { g.policies.Put(p) },
			Delete:     func(p throttle.Policy) { g.policies.Delete(p.Kind, p.Tenant, p.Name) },
			ReplaceAll: func(l []throttle.Policy) { g.policies.ReplaceAll(kind, l) },
		}
	}
	return sync.Domains{
		APIs: sync.Table[sync.APIKey, subscription.API]{
			Get: func(k sync.APIKey) *subscription.API { return apis.Get(store.APIKey(k)) }, Put: apis.Put,
			Delete: func(k sync.APIKey) *subscription.API { return apis.Delete(store.APIKey(k)) }, Len: apis.Len, All: apis.All,
		},
		Applications: tableOf(g.store.Applications()),
		KeyMappings: sync.Table[sync.MappingKey, subscription.KeyMapping]{
			Get: func(k sync.MappingKey) *subscription.KeyMapping { return mappings.Get(store.MappingKey(k)) }, Put: mappings.Put,
			Delete: func(k sync.MappingKey) *subscription.KeyMapping { return mappings.Delete(store.MappingKey(k)) }, Len: mappings.Len, All: mappings.All, ReplaceAll: mappings.ReplaceAll,
		},
		Subscriptions: tableOf(g.store.Subscriptions()),
		KeyManagers: sync.Sink[keymanager.KeyManager]{
			Put:    func(k keymanager.KeyManager) { g.mu.Lock(); defer g.mu.Unlock(); g.kms[k.Name] = k },
			Delete: func(k keymanager.KeyManager) { g.mu.Lock(); defer g.mu.Unlock(); delete(g.kms, k.Name) },
		},
		Deny: sync.Sink[throttle.DenyCondition]{
			Put:    func(c throttle.DenyCondition) { g.deny.Put(c) },
			Delete: func(c throttle.DenyCondition) { g.deny.Delete(c) }, ReplaceAll: g.deny.ReplaceAll,
		},
		KeyTemplates: sync.Sink[throttle.KeyTemplate]{
			Put:    func(k throttle.KeyTemplate) { g.templates.Put(k) },
			Delete: func(k throttle.KeyTemplate) { g.templates.Delete(k.Template) }, ReplaceAll: g.templates.ReplaceAll,
		},
		SubscriptionPolicies: policies(throttle.PolicySubscription), ApplicationPolicies: policies(throttle.PolicyApplication), APIPolicies: policies(throttle.PolicyAPI),
		Revoke:           func(r keymanager.Revocation) { g.revoked.Put(r) },
		MergeRevocations: func(l []keymanager.Revocation) { g.revoked.Merge(l) },
		Decide:           g.decisions.Apply,
		Resolve:          g.store.Resolve,
		SetAPIs: func(l []*definition.API) map[string]error {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.served = l
			return nil
		},
		Decisions: g.decisions.All, Revocations: func() []keymanager.Revocation { return g.revoked.All(0) },
	}
}

func tableOf[K comparable, R any](t *store.Table[K, R]) sync.Table[K, R] {
	return sync.Table[K, R]{Get: t.Get, Put: t.Put, Delete: t.Delete, Len: t.Len, All: t.All, ReplaceAll: t.ReplaceAll}
}

// connect makes a gateway of an emulated API Manager and runs it until the test ends.
func connect(t testing.TB, em *emulator.Emulator, dir string) *gateway {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(em.CAPEM())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	client, err := controlplane.New(controlplane.Options{
		ServiceURL: em.URL(), Username: "admin", Password: "admin",
		HTTPClient: &http.Client{Transport: transport}, Logger: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	set, err := brokerurl.Parse(em.Hub().URL(), brokerurl.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	source, err := nats.New(nats.Options{Name: "event_hub", Brokers: set.Brokers, Logger: zerolog.Nop(), Topics: []string{
		event.TopicNotification,
		event.TopicKeyManager, event.TopicTokenRevocation, event.TopicThrottleData, event.TopicCacheInvalidation,
	}})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{
		store: store.New(), deny: deny.New(), templates: keytemplate.New(), policies: policy.New(), decisions: remote.New(remote.Options{}),
		revoked: revocation.New(revocation.Options{}), kms: make(map[string]keymanager.KeyManager),
	}
	opt := sync.Options{Logger: zerolog.Nop(), Domains: g.domains(), Decode: event.Decode, Sources: []sync.Source{{Source: source}}, DataDir: dir, Identity: em.URL()}
	opt.Lists, opt.Reports = sync.FromClient(client)
	if g.Engine, err = sync.New(opt); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		transport.CloseIdleConnections()
	})
	return g
}

// rowsOf writes what both sides hold as sorted lines, for comparison.
func rowsOf(em *emulator.Emulator) []string {
	r := em.Rows()
	var out []string
	for _, a := range r.APIs {
		if len(a.Environments) > 0 {
			out = append(out, fmt.Sprint("api ", a.UUID, a.Context, a.Status), fmt.Sprint("served ", a.Context, a.Status))
		}
	}
	for _, a := range r.Applications {
		out = append(out, fmt.Sprint("application ", a.ID, a.Name, a.SubName, a.Policy))
	}
	for _, m := range r.KeyMappings {
		out = append(out, fmt.Sprint("mapping ", m.ConsumerKey, m.KeyManager, m.KeyType, m.ApplicationID))
	}
	for _, s := range r.Subscriptions {
		out = append(out, fmt.Sprint("subscription ", s.SubscriptionID, s.APIID, s.AppID, s.PolicyID, s.SubscriptionState))
	}
	for _, p := range slices.Concat(r.SubscriptionPolicies, r.ApplicationPolicies, r.APIPolicies) {
		out = append(out, fmt.Sprint("policy ", strings.ToLower(string(p.Kind)), p.Name, p.Limit.Count))
	}
	for _, p := range r.GlobalPolicies {
		out = append(out, "template "+p.KeyTemplate)
	}
	for _, k := range r.KeyManagers {
		out = append(out, fmt.Sprint("key manager ", k.Name, !k.Disabled, k.Configuration["issuer"]))
	}
	for _, d := range r.Deny {
		if !d.Disabled {
			out = append(out, fmt.Sprint("deny ", d.Type, d.Value, strings.TrimPrefix(d.FixedIP+d.StartingIP, "invalid IP"), d.EndingIP))
		}
	}
	slices.Sort(out)
	return out
}

func (g *gateway) rows() []string {
	var out []string
	for a := range g.store.APIs().All() {
		out = append(out, fmt.Sprint("api ", a.UUID, a.Context, a.Status))
	}
	for a := range g.store.Applications().All() {
		out = append(out, fmt.Sprint("application ", a.ID, a.Name, a.Owner, a.Policy))
	}
	for m := range g.store.KeyMappings().All() {
		out = append(out, fmt.Sprint("mapping ", m.ConsumerKey, m.KeyManager, m.KeyType, m.ApplicationID))
	}
	for s := range g.store.Subscriptions().All() {
		out = append(out, fmt.Sprint("subscription ", s.ID, s.APIID, s.ApplicationID, s.Policy, s.State))
	}
	for _, kind := range []throttle.PolicyKind{throttle.PolicySubscription, throttle.PolicyApplication, throttle.PolicyAPI} {
		for _, p := range g.policies.All(kind) {
			out = append(out, fmt.Sprint("policy ", string(kind), p.Name, p.Default.Count))
		}
	}
	for _, k := range g.templates.All() {
		out = append(out, "template "+k.Template)
	}
	g.mu.Lock()
	for _, k := range g.kms {
		out = append(out, fmt.Sprint("key manager ", k.Name, k.Enabled, k.Issuer))
	}
	for _, d := range g.served {
		out = append(out, fmt.Sprint("served ", d.Context, d.Lifecycle))
	}
	g.mu.Unlock()
	for _, d := range g.deny.All() {
		from, to := "", ""
		if d.From.IsValid() {
			from = d.From.String()
		}
		if d.To.IsValid() {
			to = d.To.String()
		}
		out = append(out, fmt.Sprint("deny ", string(d.Kind), d.Value, from, to))
	}
	slices.Sort(out)
	return out
}

func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

func (g *gateway) wantEqual(t testing.TB, em *emulator.Emulator, d time.Duration) {
	t.Helper()
	end := time.Now().Add(d)
	for {
		have, want := g.rows(), rowsOf(em)
		if slices.Equal(have, want) {
			return
		}
		if time.Now().After(end) {
			missing := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(have, s) })
			extra := slices.DeleteFunc(slices.Clone(have), func(s string) bool { return slices.Contains(want, s) })
			t.Fatalf("after %v the gateway lacks\n%s\nand has in excess\n%s", d, strings.Join(missing, "\n"), strings.Join(extra, "\n"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRealWorld plays random changes at an emulated API Manager over HTTPS and NATS, with the broker and the data service
// going away in between and messages swapped and doubled. Two seconds after everything is back all must be equal.
func TestRealWorld(t *testing.T) {
	if testing.Short() {
		t.Skip("real sockets take some seconds; left out by -short")
	}
	em, err := emulator.New(emulator.Options{AnnounceOnHold: true, OnError: func(err error) { t.Log("emulator:", err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer em.Close()
	var apis []emulator.API
	for i := range 4 {
		a, err := em.Silent().CreateAPI(emulator.API{
			Name: fmt.Sprint("Api", i), Version: "1.0.0", Context: fmt.Sprintf("/api%d/1.0.0", i), Provider: "admin",
			Endpoint: em.BackendURL(), URLMappings: []emulator.URLMapping{{AuthScheme: "Any", ThrottlingPolicy: "Unlimited", HTTPMethod: "GET", URLPattern: "/*"}},
			Environments: []string{"Default"},
		})
		if err != nil {
			t.Fatal(err)
		}
		apis = append(apis, a)
	}
	g := connect(t, em, t.TempDir())
	select {
	case <-g.Ready():
	case <-time.After(10 * time.Second):
		t.Fatalf("not ready: %+v", g.Checks())
	}
	g.wantEqual(t, em, 2*time.Second)

	rng := rand.New(rand.NewPCG(1, 2))
	var apps, subs, denied []int64
	one := func(ids []int64) int64 { return ids[rng.IntN(len(ids))] }
	step := func() {
		var err error
		switch n := rng.IntN(14); {
		case n == 0 || len(apps) == 0:
			var a emulator.Application
			if a, err = em.CreateApplication(emulator.Application{Name: fmt.Sprint("App", len(apps)), SubName: "dana", Policy: "Unlimited"}); err == nil {
				apps = append(apps, a.ID)
				_, err = em.AddKeyMapping(emulator.KeyMapping{ApplicationID: a.ID, ConsumerKey: fmt.Sprint("ck", a.ID), KeyType: "PRODUCTION", KeyManager: em.ResidentName()})
			}
		case n <= 4:
			var s emulator.Subscription
			if s, err = em.Subscribe(emulator.Subscription{APIID: apis[rng.IntN(len(apis))].APIID, AppID: one(apps), PolicyID: "Unlimited"}); err == nil {
				subs = append(subs, s.SubscriptionID)
			}
		case n <= 6 && len(subs) > 0:
			_, err = em.UpdateSubscription(one(subs), []string{"BLOCKED", "UNBLOCKED", "PROD_ONLY_BLOCKED"}[rng.IntN(3)], "")
		case n == 7 && len(subs) > 0:
			err = em.Unsubscribe(one(subs))
		case n == 8:
			var d emulator.DenyCondition
			if d, err = em.Deny(emulator.DenyCondition{Type: emulator.DenyAPI, Value: apis[rng.IntN(len(apis))].Context}); err == nil {
				denied = append(denied, d.ID)
			}
		case n == 9 && len(denied) > 0:
			err = em.Allow(one(denied))
		case n == 10:
			_, err = em.PutPolicy(emulator.Policy{Kind: emulator.SubscriptionPolicy, Name: fmt.Sprint("Tier", rng.IntN(3)), Limit: emulator.Limit{TimeUnit: "min", UnitTime: 1, Count: int64(rng.IntN(100) + 1)}})
		case n == 11:
			_, err = em.SetCustomPolicy(fmt.Sprint("$userId:", rng.IntN(3)), 5, time.Minute)
		case n == 12:
			id := apis[rng.IntN(len(apis))].UUID
			if rng.IntN(2) == 0 {
				err = em.UndeployAPI(id, "Default")
			} else {
				_, err = em.DeployAPI(id, "Default")
			}
		case n == 13:
			err = em.SetLifecycle(apis[rng.IntN(len(apis))].UUID, []string{"BLOCKED", "PUBLISHED"}[rng.IntN(2)])
		}
		_ = err // the emulator refuses what cannot be, as the real one does
	}
	for round := range 4 {
		em.Hub().SetKnobs(broker.Knobs{Swap: rng.IntN(3), Duplicate: rng.IntN(5)})
		for range 15 {
			step()
		}
		switch round {
		case 1, 3:
			if err := em.Hub().Stop(); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				step()
			}
			if round == 3 {
				em.StopREST()
			}
			within(t, 10*time.Second, "the loss of the broker was not seen", func() bool { return !g.State().Sources[0].Connected })
			if !g.IsReady() {
				t.Fatal("a lost broker took readiness away")
			}
			if err := em.Hub().Start(); err != nil {
				t.Fatal(err)
			}
			if round == 3 {
				if err := em.StartREST(); err != nil {
					t.Fatal(err)
				}
			}
			within(t, 10*time.Second, "the gateway did not connect again", func() bool { return g.State().Sources[0].Connected })
		}
		em.Hub().SetKnobs(broker.Knobs{})
		flush, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := em.Hub().Flush(flush); err != nil {
			t.Fatal(err)
		}
		cancel()
		g.wantEqual(t, em, 3*time.Second)
	}
	st := g.State()
	if st.Sources[0].Reconnects < 2 || st.Sources[0].EventsApplied == 0 || st.Lists.ByKind["subscriptions"].Rows != g.store.Subscriptions().Len() {
		t.Errorf("state %+v", st)
	}
	if n := slices.Collect(maps.Keys(st.Lists.ByKind)); len(n) != 13 {
		t.Errorf("kinds %q, want all 13", n)
	}
}
