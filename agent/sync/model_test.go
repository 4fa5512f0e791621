package sync

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sort"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// memTable is the simplest table that does what the engine needs.
type memTable[K comparable, R any] struct {
	mu   gosync.RWMutex
	rows map[K]*R
	key  func(*R) K
}

func newMemTable[K comparable, R any](key func(*R) K) *memTable[K, R] {
	return &memTable[K, R]{rows: make(map[K]*R), key: key}
}

func (m *memTable[K, R]) table() Table[K, R] {
	return Table[K, R]{
		Get: func(k K) *R { m.mu.RLock(); defer m.mu.RUnlock(); return m.rows[k] },
		Put: func(r R) *R {
			m.mu.Lock()
			defer m.mu.Unlock()
			k := m.key(&r)
			before := m.rows[k]
			m.rows[k] = &r
			return before
		},
		Delete: func(k K) *R {
			m.mu.Lock()
			defer m.mu.Unlock()
			before := m.rows[k]
			delete(m.rows, k)
			return before
		},
		Len: func() int { m.mu.RLock(); defer m.mu.RUnlock(); return len(m.rows) },
		All: func() iter.Seq[*R] {
			m.mu.RLock()
			defer m.mu.RUnlock()
			return slices.Values(slices.Collect(maps.Values(m.rows)))
		},
	}
}

// sinkOf keeps what a sink was given, by a key.
type memSink[R any] struct {
	mu       gosync.Mutex
	rows     map[string]R
	replaced int
	key      func(R) string
}

func newMemSink[R any](key func(R) string) *memSink[R] {
	return &memSink[R]{rows: make(map[string]R), key: key}
}

func (m *memSink[R]) sink() Sink[R] {
	return Sink[R]{
		Put:    func(r R) { m.mu.Lock(); defer m.mu.Unlock(); m.rows[m.key(r)] = r },
		Delete: func(r R) { m.mu.Lock(); defer m.mu.Unlock(); delete(m.rows, m.key(r)) },
		ReplaceAll: func(list []R) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.rows = make(map[string]R)
			m.replaced++
			for _, r := range list {
				m.rows[m.key(r)] = r
			}
		},
	}
}

func (m *memSink[R]) all() map[string]R {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.rows)
}

func (m *memSink[R]) keys() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.rows))
}

// world is the domains of one engine.
type world struct {
	apis      *memTable[APIKey, subscription.API]
	apps      *memTable[int64, subscription.Application]
	mappings  *memTable[MappingKey, subscription.KeyMapping]
	subs      *memTable[int64, subscription.Subscription]
	kms       *memSink[keymanager.KeyManager]
	deny      *memSink[throttle.DenyCondition]
	templates *memSink[throttle.KeyTemplate]
	subPol    *memSink[throttle.Policy]
	appPol    *memSink[throttle.Policy]
	apiPol    *memSink[throttle.Policy]

	mu        gosync.Mutex
	revoked   map[string]keymanager.Revocation
	decisions map[string]throttle.Decision
	served    []*definition.API
	setCalls  int
	refuse    map[string]error
}

func newWorld() *world {
	policyKey := func(p throttle.Policy) string { return p.Tenant + "/" + p.Name }
	return &world{
		apis: newMemTable(func(r *subscription.API) APIKey {
			if r.UUID != "" {
				return APIKey{UUID: r.UUID}
			}
			return APIKey{ID: r.ID}
		}),
		apps:      newMemTable((*subscription.Application).Key),
		mappings:  newMemTable(func(r *subscription.KeyMapping) MappingKey { return MappingKey{r.ConsumerKey, r.KeyManager} }),
		subs:      newMemTable((*subscription.Subscription).Key),
		kms:       newMemSink(func(k keymanager.KeyManager) string { return k.Tenant + "/" + k.Name }),
		deny:      newMemSink(func(c throttle.DenyCondition) string { return fmt.Sprint(denyKeyOf(&c)) }),
		templates: newMemSink(func(k throttle.KeyTemplate) string { return k.Template }),
		subPol:    newMemSink(policyKey), appPol: newMemSink(policyKey), apiPol: newMemSink(policyKey),
		revoked: make(map[string]keymanager.Revocation), decisions: make(map[string]throttle.Decision), refuse: make(map[string]error),
	}
}

func (w *world) domains() Domains {
	revoke := func(r keymanager.Revocation) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.revoked[r.Value] = r
	}
	return Domains{
		APIs: w.apis.table(), Applications: w.apps.table(), KeyMappings: w.mappings.table(), Subscriptions: w.subs.table(),
		KeyManagers: w.kms.sink(), Deny: w.deny.sink(), KeyTemplates: w.templates.sink(),
		SubscriptionPolicies: w.subPol.sink(), ApplicationPolicies: w.appPol.sink(), APIPolicies: w.apiPol.sink(),
		Revoke: revoke,
		MergeRevocations: func(list []keymanager.Revocation) {
			for _, r := range list {
				revoke(r)
			}
		},
		Decide: func(d throttle.Decision, _ int64) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.decisions[d.Key] = d
			return true
		},
		SetAPIs: func(list []*definition.API) map[string]error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.served = list
			w.setCalls++
			return maps.Clone(w.refuse)
		},
		Resolve: w.resolve, ResolveApplication: w.resolveApplication,
		Decisions: func() []throttle.Decision {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Collect(maps.Values(w.decisions))
		},
		Revocations: func() []keymanager.Revocation {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Collect(maps.Values(w.revoked))
		},
	}
}

func (w *world) resolve(consumerKey, keyManager string, ref subscription.APIRef) (f subscription.Facts) {
	m := w.mappings.table().Get(MappingKey{consumerKey, subscription.CanonicalKeyManager(keyManager)})
	if m != nil {
		f = w.resolveApplication("", m.ApplicationID, ref)
	} else {
		f = w.resolveApplication("", 0, ref)
	}
	f.Mapping = m
	return f
}

func (w *world) resolveApplication(uuid string, id int64, ref subscription.APIRef) (f subscription.Facts) {
	for a := range w.apis.table().All() {
		if ref.UUID != "" && a.UUID == ref.UUID || a.Context == ref.Context && a.Version == ref.Version {
			f.API = a
		}
	}
	if a := w.apps.table().Get(id); a != nil && (uuid == "" || a.UUID == uuid) {
		f.Application = a
	}
	if f.API != nil && f.Application != nil {
		for s := range w.subs.table().All() {
			if s.APIID == f.API.ID && s.ApplicationID == f.Application.ID {
				f.Subscription = s
			}
		}
	}
	return f
}

func (w *world) contexts() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, d := range w.served {
		out = append(out, d.Context+" "+d.Lifecycle)
	}
	sort.Strings(out)
	return out
}

// manager is a small API Manager: rows, and the lists of them, with faults to order.
type manager struct {
	mu        gosync.Mutex
	apis      map[string]controlplane.API
	apps      map[int64]controlplane.Application
	mappings  map[string]controlplane.KeyMapping
	subs      map[int64]controlplane.Subscription
	subPol    map[string]controlplane.Policy
	appPol    map[string]controlplane.Policy
	kms       map[string]controlplane.KeyManager
	templates map[string]bool
	block     controlplane.Block
	revoked   controlplane.Revoked
	artifacts map[string]controlplane.Artifact

	names names // what lists call applications and subscriptions

	skew    time.Duration // the manager's clock minus ours
	before  time.Duration // from request to snapshot
	after   time.Duration // from snapshot to answer
	failing map[string]error
	calls   map[string]int
}

func newManager() *manager {
	return &manager{
		apis: make(map[string]controlplane.API), apps: make(map[int64]controlplane.Application), mappings: make(map[string]controlplane.KeyMapping),
		subs: make(map[int64]controlplane.Subscription), subPol: make(map[string]controlplane.Policy), appPol: make(map[string]controlplane.Policy),
		kms: make(map[string]controlplane.KeyManager), templates: make(map[string]bool), artifacts: make(map[string]controlplane.Artifact),
		failing: make(map[string]error), calls: make(map[string]int),
	}
}

// called tells how often a list or a row was asked for.
func (m *manager) called(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[name]
}

func (m *manager) now() int64 { return time.Now().Add(m.skew).UnixMilli() }

// names says how an API Manager names applications and subscriptions.
type names int

const (
	byNumber    names = iota // numbers alone, as 3.2
	byUUID                   // UUIDs alone, everywhere
	listsByBoth              // lists by both, events by UUID and now and then by both
	listsByUUID              // lists by UUID, events as before
	listsByTurn              // one answer by UUID, the next by both; events as before
)

func subUUID(id int64) string { return fmt.Sprint("sub-", id) }
func appUUID(id int64) string { return fmt.Sprint("app-", id) }

// numberless tells whether the answer that is being given names no numbers. The caller holds mu.
func (m *manager) numberless() bool {
	n := 0
	for _, c := range m.calls {
		n += c
	}
	return m.names == byUUID || m.names == listsByUUID || m.names == listsByTurn && n%2 == 0
}

func (m *manager) appNamed(a controlplane.Application) controlplane.Application {
	if m.names != byNumber {
		a.UUID = appUUID(a.ID)
		if m.numberless() {
			a.ID = 0
		}
	}
	return a
}

func (m *manager) mappingNamed(k controlplane.KeyMapping) controlplane.KeyMapping {
	if m.names != byNumber {
		k.ApplicationUUID = appUUID(k.ApplicationID)
		if m.numberless() {
			k.ApplicationID = 0
		}
	}
	return k
}

func (m *manager) subNamed(s controlplane.Subscription) controlplane.Subscription {
	if m.names != byNumber {
		s.SubscriptionUUID, s.ApplicationUUID = subUUID(s.SubscriptionID), appUUID(s.AppID)
		if m.numberless() {
			s.SubscriptionID, s.AppID = 0, 0
		}
	}
	return s
}

// named makes rows name themselves.
func named[K comparable, W any](rows map[K]W, name func(W) W) map[K]W {
	out := make(map[K]W, len(rows))
	for k, w := range rows {
		out[k] = name(w)
	}
	return out
}

// answer is one call: waiting, the snapshot, waiting.
func answer[T any](ctx context.Context, m *manager, name string, take func() T) (T, Meta, error) {
	meta := Meta{Started: time.Now()}
	var zero T
	m.mu.Lock()
	m.calls[name]++
	before, after := m.before, m.after
	m.mu.Unlock()
	if err := sleep(ctx, before); err != nil {
		return zero, meta, err
	}
	m.mu.Lock()
	err := m.failing[name]
	if err == nil {
		err = m.failing[""]
	}
	v := take()
	meta.ServerDate = time.Now().Add(m.skew).Truncate(time.Second)
	m.mu.Unlock()
	if err != nil {
		meta.Finished = time.Now()
		return zero, meta, err
	}
	if err := sleep(ctx, after); err != nil {
		return zero, meta, err
	}
	meta.Finished = time.Now()
	return v, meta, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func listOf[K comparable, W any](m *manager, name string, rows func() map[K]W) func(context.Context, ListQuery, func(W) error) (Meta, error) {
	return func(ctx context.Context, _ ListQuery, each func(W) error) (Meta, error) {
		list, meta, err := answer(ctx, m, name, func() []W { return slices.Collect(maps.Values(rows())) })
		if err != nil {
			return meta, err
		}
		for _, w := range list {
			if err := each(w); err != nil {
				return meta, err
			}
		}
		return meta, nil
	}
}

func oneRow[W any](ctx context.Context, m *manager, name string, find func() (W, bool)) (*W, error) {
	row, _, err := answer(ctx, m, name, func() *W {
		if w, ok := find(); ok {
			return &w
		}
		return nil
	})
	return row, err
}

func (m *manager) lists() Lists {
	return Lists{
		APIs:                 listOf(m, kindAPIs, func() map[string]controlplane.API { return m.apis }),
		Applications:         listOf(m, kindApplications, func() map[int64]controlplane.Application { return named(m.apps, m.appNamed) }),
		KeyMappings:          listOf(m, kindKeyMappings, func() map[string]controlplane.KeyMapping { return named(m.mappings, m.mappingNamed) }),
		Subscriptions:        listOf(m, kindSubscriptions, func() map[int64]controlplane.Subscription { return named(m.subs, m.subNamed) }),
		SubscriptionPolicies: listOf(m, kindSubscriptionPolicies, func() map[string]controlplane.Policy { return m.subPol }),
		ApplicationPolicies:  listOf(m, kindApplicationPolicies, func() map[string]controlplane.Policy { return m.appPol }),
		KeyManagers:          listOf(m, kindKeyManagers, func() map[string]controlplane.KeyManager { return m.kms }),
		KeyTemplates: func(ctx context.Context) ([]string, Meta, error) {
			return answer(ctx, m, kindKeyTemplates, func() []string { return slices.Collect(maps.Keys(m.templates)) })
		},
		Block: func(ctx context.Context) (controlplane.Block, Meta, error) {
			return answer(ctx, m, kindDenyPolicies, func() controlplane.Block {
				b := m.block
				b.API, b.User, b.IP = slices.Clone(b.API), slices.Clone(b.User), slices.Clone(b.IP)
				return b
			})
		},
		Revoked: func(ctx context.Context) (controlplane.Revoked, Meta, error) {
			return answer(ctx, m, kindRevokedTokens, func() controlplane.Revoked { return m.revoked })
		},
		API: func(ctx context.Context, _ string, q controlplane.APIQuery) (*controlplane.API, error) {
			return oneRow(ctx, m, "api", func() (controlplane.API, bool) {
				for _, a := range m.apis {
					if q.UUID != "" && a.UUID == q.UUID || q.UUID == "" && a.Context == q.Context && a.Version == q.Version {
						return a, true
					}
				}
				return controlplane.API{}, false
			})
		},
		Application: func(ctx context.Context, _ string, id int64) (*controlplane.Application, error) {
			return oneRow(ctx, m, "application", func() (controlplane.Application, bool) { a, ok := m.apps[id]; return m.appNamed(a), ok })
		},
		KeyMapping: func(ctx context.Context, _, consumerKey, keyManager string) (*controlplane.KeyMapping, error) {
			return oneRow(ctx, m, "key_mapping", func() (controlplane.KeyMapping, bool) {
				k, ok := m.mappings[consumerKey+"@"+subscription.CanonicalKeyManager(keyManager)]
				return m.mappingNamed(k), ok
			})
		},
		Subscription: func(ctx context.Context, _ string, q controlplane.SubscriptionQuery) (*controlplane.Subscription, error) {
			return oneRow(ctx, m, "subscription", func() (controlplane.Subscription, bool) {
				for _, s := range m.subs {
					if s.APIID == q.APIID && (s.AppID == q.AppID || m.names != byNumber && appUUID(s.AppID) == q.ApplicationUUID) {
						return m.subNamed(s), true
					}
				}
				return controlplane.Subscription{}, false
			})
		},
		SubscriptionPolicy: func(ctx context.Context, _, name string) (*controlplane.Policy, error) {
			return oneRow(ctx, m, "subscription_policy", func() (controlplane.Policy, bool) { p, ok := m.subPol[name]; return p, ok })
		},
		ApplicationPolicy: func(ctx context.Context, _, name string) (*controlplane.Policy, error) {
			return oneRow(ctx, m, "application_policy", func() (controlplane.Policy, bool) { p, ok := m.appPol[name]; return p, ok })
		},
		Artifacts: func(ctx context.Context, q controlplane.ArtifactQuery) ([]controlplane.Artifact, error) {
			list, _, err := answer(ctx, m, kindArtifacts, func() []controlplane.Artifact {
				var out []controlplane.Artifact
				for _, a := range m.artifacts {
					if q.APIUUID == "" || a.APIUUID == q.APIUUID {
						out = append(out, a)
					}
				}
				return out
			})
			return list, err
		},
	}
}

// wire carries events by name, so that a message is decoded to what was published.
type wire struct {
	mu     gosync.Mutex
	events map[string]event.Event
	n      int
}

func newWire() *wire { return &wire{events: make(map[string]event.Event)} }

func (w *wire) message(topic string, ev event.Event) event.Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	id := fmt.Sprint("m", w.n)
	w.events[id] = ev
	return event.Message{Topic: topic, MessageID: id, Timestamp: baseOf(ev).Time}
}

func (w *wire) decode(m event.Message) ([]event.Event, error) {
	if m.MessageID == "" {
		return nil, &event.DecodeError{Topic: m.Topic, Reason: "made unreadable", Dirty: true}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return []event.Event{w.events[m.MessageID]}, nil
}

// fakeSource is a source that the test steers.
type fakeSource struct {
	name string
	do   chan func(eventsource.Handler)
	stop chan struct{}
}

func newFakeSource() *fakeSource {
	return &fakeSource{name: "event_hub", do: make(chan func(eventsource.Handler)), stop: make(chan struct{})}
}

func (s *fakeSource) Run(ctx context.Context, h eventsource.Handler) error {
	defer close(s.stop)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-s.do:
			f(h)
		}
	}
}

func (s *fakeSource) Name() string { return s.name }
func (s *fakeSource) Kind() string { return "fake" }

func (s *fakeSource) run(f func(eventsource.Handler)) {
	select {
	case s.do <- f:
	case <-s.stop:
	}
}

func (s *fakeSource) state(k eventsource.StateKind) {
	s.run(func(h eventsource.Handler) {
		st := eventsource.State{Kind: k, Address: "127.0.0.1:5672", Since: time.Now()}
		if k == eventsource.Disconnected {
			st.Err = errors.New("the test has cut the connection")
		}
		h.OnState(st)
	})
}

func (s *fakeSource) deliver(m event.Message) { s.run(func(h eventsource.Handler) { h.OnMessage(m) }) }

// rig is an engine with its surroundings.
type rig struct {
	*Engine
	m      *manager
	w      *world
	wire   *wire
	source *fakeSource
	cancel context.CancelFunc
	done   chan error
}

func newRig(t testing.TB, m *manager, change func(*Options)) *rig {
	t.Helper()
	r := &rig{m: m, w: newWorld(), wire: newWire(), source: newFakeSource(), done: make(chan error, 1)}
	opt := Options{
		Logger: zerolog.Nop(), Domains: r.w.domains(), Lists: m.lists(), Decode: r.wire.decode,
		Sources: []Source{{Source: r.source}}, ResyncInterval: 10 * time.Hour,
	}
	if change != nil {
		change(&opt)
	}
	e, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	r.Engine = e
	return r
}

func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.done <- r.Run(ctx) }()
}

func (r *rig) end(t testing.TB) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// differences compares every row that the gateway holds with the API Manager's.
func (r *rig) differences() []string {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	var out []string
	out = append(out, diffTable("api", r.w.apis, r.m.apis, func(a controlplane.API) subscription.API { return apiRow(a) }, sameAPI)...)
	// Whatever names lists and events use, there is one row of each, and the numbers that it has are right.
	numbered := func(id *int64, uuid string) {
		if _, n, ok := strings.Cut(uuid, "-"); ok && *id == 0 {
			_, _ = fmt.Sscan(n, id)
		}
	}
	apps := newMemTable(func(a *subscription.Application) string { return fmt.Sprint(a.ID) })
	for a := range r.w.apps.table().All() {
		row := *a
		numbered(&row.ID, row.UUID)
		if apps.table().Put(row) != nil {
			out = append(out, fmt.Sprintf("application %d is held twice", row.ID))
		}
	}
	mappings := newMemTable(r.w.mappings.key)
	for k := range r.w.mappings.table().All() {
		row := *k
		numbered(&row.ApplicationID, row.ApplicationUUID)
		mappings.table().Put(row)
	}
	subs := newMemTable(func(s *subscription.Subscription) string { return fmt.Sprint(s.ID) })
	for s := range r.w.subs.table().All() {
		row := *s
		numbered(&row.ID, row.UUID)
		numbered(&row.ApplicationID, row.ApplicationUUID)
		if subs.table().Put(row) != nil {
			out = append(out, fmt.Sprintf("subscription %d is held twice", row.ID))
		}
	}
	names := r.m.names
	if names != byNumber {
		r.m.names = listsByBoth
	}
	out = append(out, diffTable("application", apps, r.m.apps, func(a controlplane.Application) subscription.Application { return applicationRow(r.m.appNamed(a), "") }, sameApplication)...)
	out = append(out, diffTable("key mapping", mappings, r.m.mappings, func(a controlplane.KeyMapping) subscription.KeyMapping { return mappingRow(r.m.mappingNamed(a), "") }, sameMapping)...)
	out = append(out, diffTable("subscription", subs, r.m.subs, func(a controlplane.Subscription) subscription.Subscription {
		return subscriptionRow(r.m.subNamed(a), "")
	}, sameSubscription)...)
	r.m.names = names
	out = append(out, diffSink("subscription policy", r.w.subPol, r.m.subPol, func(p controlplane.Policy) throttle.Policy { return policyRow(throttle.PolicySubscription, p, "") }, samePolicy)...)
	out = append(out, diffSink("application policy", r.w.appPol, r.m.appPol, func(p controlplane.Policy) throttle.Policy { return policyRow(throttle.PolicyApplication, p, "") }, samePolicy)...)
	out = append(out, diffSink("key manager", r.w.kms, r.m.kms, func(k controlplane.KeyManager) keymanager.KeyManager { return keyManagerRow(k, "") }, sameKeyManager)...)
	deny := make(map[string]throttle.DenyCondition)
	for _, c := range denyRows(r.m.block) {
		deny[fmt.Sprint(denyKeyOf(&c))] = c
	}
	out = append(out, diffSink("deny policy", r.w.deny, deny, func(c throttle.DenyCondition) throttle.DenyCondition { return c }, sameDeny)...)
	if got, want := r.w.templates.keys(), slices.Sorted(maps.Keys(r.m.templates)); !slices.Equal(got, want) {
		out = append(out, fmt.Sprintf("key templates: held %q, the API Manager has %q", got, want))
	}
	return out
}

func diffTable[K, L comparable, R, W any](what string, have *memTable[K, R], want map[L]W, row func(W) R, same func(a, b *R) bool) []string {
	var out []string
	have.mu.RLock()
	defer have.mu.RUnlock()
	seen := make(map[K]bool)
	for _, w := range want {
		r := row(w)
		k := have.key(&r)
		seen[k] = true
		if h := have.rows[k]; h == nil {
			out = append(out, fmt.Sprintf("%s %v is missing: %+v", what, k, r))
		} else if !same(h, &r) {
			out = append(out, fmt.Sprintf("%s %v is %+v, the API Manager has %+v", what, k, *h, r))
		}
	}
	for k, h := range have.rows {
		if !seen[k] {
			out = append(out, fmt.Sprintf("%s %v is held but gone: %+v", what, k, *h))
		}
	}
	return out
}

func diffSink[L comparable, R, W any](what string, have *memSink[R], want map[L]W, row func(W) R, same func(a, b *R) bool) []string {
	t := newMemTable(func(r *R) string { return have.key(*r) })
	have.mu.Lock()
	for k, r := range have.rows {
		t.rows[k] = &r
	}
	have.mu.Unlock()
	return diffTable(what, t, want, row, same)
}

func joined(lines []string) string { return strings.Join(lines, "\n") }
