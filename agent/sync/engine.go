package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// Engine keeps the domains in step with the API Manager. Make it with New, then Run it once. Its other methods may be
// called concurrently.
type Engine struct {
	opt   Options
	log   zerolog.Logger
	hooks hooks

	workers []*worker
	kinds   []*kind

	apis                 *dataset[APIKey, subscription.API]
	artifacts            *dataset[string, Deployed]
	applications         *dataset[int64, subscription.Application]
	mappings             *dataset[MappingKey, subscription.KeyMapping]
	subscriptions        *dataset[int64, subscription.Subscription]
	subscriptionPolicies *dataset[policyKey, throttle.Policy]
	applicationPolicies  *dataset[policyKey, throttle.Policy]
	apiPolicies          *dataset[policyKey, throttle.Policy]
	keyManagers          *dataset[kmKey, keymanager.KeyManager]
	deny                 *dataset[denyKey, throttle.DenyCondition]
	keyTemplates         *dataset[string, throttle.KeyTemplate]
	scopes               *dataset[string, Scope]
	revoked              *revokedKind
	apiKeys              *dataset[string, keymanager.OpaqueKey]
	hashOf               map[string]string // of API keys, by UUID
	deletedKeys          deletedKeys

	sources []*source
	started atomic.Int64 // ms; 0 before Run

	skew atomic.Pointer[skew]

	// routesDirty and served, the definitions as they were handed over, belong to the APIs' worker.
	routesDirty bool
	routesAgain time.Time // after a fault, not before
	served      map[string]*definition.API
	refused     atomic.Pointer[map[string]string]
	folderMu    sync.Mutex
	folder      []*definition.API
	folderSet   bool

	goneMu                              sync.Mutex
	gone                                map[int64]int64 // when applications were deleted, by number and by the key of their UUID
	goneByUUID                          bool            // some of them have no number
	orphanMappings, orphanSubscriptions cascade

	changes changes
	warned  warnings
	seen    *recent
	misses  *misses
	reports chan report
	metrics *metrics

	ready      chan struct{}
	becoming   atomic.Bool // ready
	dirty      atomic.Bool
	snapshot   snapshotState
	registered chan struct{}
	gateway    atomic.Pointer[string]

	runMu  sync.Mutex
	runCtx context.Context // of the goroutines that later starts; nil before Run
	wg     sync.WaitGroup
}

// New returns an engine. It does nothing before Run.
func New(opt Options) (*Engine, error) {
	opt.setDefaults()
	if opt.Decode == nil {
		return nil, errors.New("sync: Options.Decode is missing; give event.Decode")
	}
	if slices.Contains(opt.Tenants, allTenants) && len(opt.Tenants) > 1 {
		opt.Tenants = []string{allTenants}
	}
	opt.Tenants = distinct(opt.Tenants)
	e := &Engine{
		opt:        opt,
		log:        opt.Logger.With().Str("component", "sync").Logger(),
		gone:       make(map[int64]int64),
		seen:       newRecent(10_000),
		misses:     newMisses(10_000),
		reports:    make(chan report, 4096),
		ready:      make(chan struct{}),
		registered: make(chan struct{}, 1),
		metrics:    newMetrics(opt.Registerer),
	}
	e.snapshot.poke = make(chan struct{}, 1)
	e.refused.Store(&map[string]string{})
	e.build()
	for _, s := range opt.Sources {
		e.sources = append(e.sources, newSource(e, s))
	}
	e.metrics.watch(e)
	return e, nil
}

// distinct returns the tenants, each once.
func distinct(tenants []string) []string {
	var list []string
	for _, t := range tenants {
		if !slices.ContainsFunc(list, func(u string) bool { return strings.EqualFold(t, u) }) {
			list = append(list, t)
		}
	}
	return list
}

// Run keeps the domains in step until ctx is done; it then writes a last snapshot, and returns when everything that it
// started has ended. It returns nil, or a fault of configuration.
func (e *Engine) Run(ctx context.Context) error {
	e.started.Store(time.Now().UnixMilli())
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.loadSnapshot()

	// Workers outlive the rest by a moment, so that a last snapshot sees a settled state.
	workers, stopWorkers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWorkers()
	var running sync.WaitGroup
	for _, w := range e.workers {
		running.Go(func() { w.run(workers) })
	}
	e.runMu.Lock()
	e.runCtx = ctx
	e.runMu.Unlock()

	for _, s := range e.sources {
		e.wg.Go(func() {
			if err := s.source.Run(ctx, s); err != nil && ctx.Err() == nil {
				e.log.Error().Err(err).Str("source", s.source.Name()).Msg("the event source cannot work")
				cancel(err)
			}
		})
	}
	for _, k := range e.fetched() {
		e.wg.Go(func() { k.run(ctx) })
	}
	e.startAsking(ctx)
	e.wg.Go(func() { e.bootstrap(ctx) })
	e.wg.Go(func() { e.resyncLoop(ctx) })
	e.wg.Go(func() { e.register(ctx) })
	e.wg.Go(func() { e.sendReports(ctx) })
	e.wg.Go(func() { e.snapshotLoop(ctx) })
	e.later(e.apis.w, func() { e.routesDirty = true })
	e.checkReady()

	<-ctx.Done()
	e.runMu.Lock()
	e.runCtx = nil
	e.runMu.Unlock()
	e.wg.Wait()
	e.saveSnapshot()
	stopWorkers()
	running.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// startAsking starts the loops that ask for single rows.
func (e *Engine) startAsking(ctx context.Context) {
	for range askers {
		e.wg.Go(func() { e.apis.answer(ctx) })
		e.wg.Go(func() { e.applications.answer(ctx) })
		e.wg.Go(func() { e.mappings.answer(ctx) })
		e.wg.Go(func() { e.subscriptions.answer(ctx) })
		e.wg.Go(func() { e.artifacts.answer(ctx) })
	}
	e.wg.Go(func() { e.subscriptionPolicies.answer(ctx) })
	e.wg.Go(func() { e.applicationPolicies.answer(ctx) })
	e.wg.Go(func() { e.apiPolicies.answer(ctx) })
}

// askers is how many questions about one kind are under way at one time.
const askers = 4

// fetched returns the kinds that the API Manager has a list for.
func (e *Engine) fetched() []*kind {
	var out []*kind
	for _, k := range e.kinds {
		if e.hasList(k.name) {
			out = append(out, k)
		}
	}
	return out
}

func (e *Engine) hasList(name string) bool {
	l := &e.opt.Lists
	switch name {
	case kindAPIs:
		return l.APIs != nil
	case kindArtifacts:
		return e.artifacts.fetch != nil
	case kindApplications:
		return l.Applications != nil
	case kindKeyMappings:
		return l.KeyMappings != nil
	case kindSubscriptions:
		return l.Subscriptions != nil
	case kindSubscriptionPolicies:
		return l.SubscriptionPolicies != nil
	case kindApplicationPolicies:
		return l.ApplicationPolicies != nil
	case kindAPIPolicies:
		return l.APIPolicies != nil
	case kindKeyManagers:
		return l.KeyManagers != nil
	case kindDenyPolicies:
		return l.Block != nil
	case kindKeyTemplates:
		return l.KeyTemplates != nil
	case kindRevokedTokens:
		return l.Revoked != nil
	case kindScopes:
		return l.Scopes != nil
	}
	return false
}

// bootstrap makes every list due at the start: when the event hub is connected, which makes them due by itself, or a
// moment later without it.
func (e *Engine) bootstrap(ctx context.Context) {
	grace := time.NewTimer(e.opt.StartGrace)
	defer grace.Stop()
	if len(e.sources) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-e.sources[0].first:
			return
		case <-grace.C:
		}
		e.log.Warn().Str("source", e.sources[0].source.Name()).Msg("not connected yet: fetching the lists all the same")
	}
	e.resync(time.Now(), true, nil)
}

// resync makes lists due. topics nil means all.
func (e *Engine) resync(at time.Time, slow bool, topics []string) {
	for _, k := range e.concerned(slow, topics) {
		k.request(at)
	}
}

// concerned returns the lists of the topics, with the slow ones or without.
func (e *Engine) concerned(slow bool, topics []string) (kinds []*kind) {
	for _, k := range e.fetched() {
		if k.slow && !slow {
			continue
		}
		if len(topics) > 0 && !slices.ContainsFunc(topics, func(t string) bool { return strings.EqualFold(t, k.topic) }) {
			continue
		}
		kinds = append(kinds, k)
	}
	return kinds
}

// Resync makes every list due now. Lists that are being fetched are fetched again afterwards.
func (e *Engine) Resync() { e.resync(time.Now(), true, nil) }

// resyncLoop is the slow safety net under the events.
func (e *Engine) resyncLoop(ctx context.Context) {
	for {
		timer := time.NewTimer(jittered(e.opt.ResyncInterval))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			e.resync(time.Now(), false, nil)
		}
	}
}

// later runs f on a worker soon, without waiting for it. After Run has ended it does nothing; before, f runs at once.
func (e *Engine) later(w *worker, f func()) {
	e.runMu.Lock()
	defer e.runMu.Unlock()
	if !e.spawnLocked(func(ctx context.Context) { _ = w.do(ctx, f) }) && e.started.Load() == 0 {
		f()
	}
}

// spawn runs f in a goroutine that Run waits for; its context ends with Run. False: Run has not begun or ends already.
func (e *Engine) spawn(f func(context.Context)) bool {
	e.runMu.Lock()
	defer e.runMu.Unlock()
	return e.spawnLocked(f)
}

func (e *Engine) spawnLocked(f func(context.Context)) bool {
	ctx := e.runCtx
	if ctx == nil {
		return false
	}
	e.wg.Go(func() { f(ctx) })
	return true
}

// Names under which panics are counted that belong to no worker: over messages of which nothing is known yet, look-ups of
// requests, and the snapshot.
const (
	kindOfMessages = "messages"
	kindOfFetches  = "fetches"
	kindOfSnapshot = "snapshot"
)

// panicked takes note of a panic over an event, a row or a question, which has been passed over: it is counted, logged
// once with its stack, and the lists that it may have hurt are due.
func (e *Engine) panicked(group string, kinds []*kind, f *panicError, what func(*zerolog.Event)) {
	e.metrics.panicked(group)
	if e.firstOf("panic " + group + ": " + fmt.Sprint(f.cause)) {
		line := e.log.Error().Str("kind", group).Interface("panic", f.cause).Bytes("stack", f.stack)
		if what != nil {
			what(line)
		}
		line.Msg("an event or a row was passed over and the lists are fetched again; this is a fault of ours, please report it. The same fault is counted from now on, not logged")
	}
	for _, k := range kinds {
		if e.hasList(k.name) {
			k.doubt(e.opt.RefetchDelay)
		}
	}
}

// Ready is closed when every list was applied once, or a snapshot was loaded, and in stand-alone mode when the folder was
// set.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// IsReady reports whether Ready is closed.
func (e *Engine) IsReady() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}

func (e *Engine) checkReady() {
	if e.started.Load() == 0 {
		return
	}
	if e.snapshot.loaded.Load() == nil {
		lists := e.fetched()
		if len(lists) == 0 {
			e.folderMu.Lock()
			set := e.folderSet
			e.folderMu.Unlock()
			if !set {
				return
			}
		}
		for _, k := range lists {
			k.mu.Lock()
			done := !k.fetchedAt.IsZero()
			k.mu.Unlock()
			if !done {
				return
			}
		}
	}
	if !e.becoming.CompareAndSwap(false, true) {
		return
	}
	if !e.spawn(func(ctx context.Context) {
		_ = e.apis.w.do(ctx, func() { // fails when Run ends alone: render takes care of its own panics
			e.routesDirty = true
			e.render() // the routes stand before anyone is let in
			close(e.ready)
			e.log.Info().Dur("after", time.Since(time.UnixMilli(e.started.Load()))).Msg("ready")
		})
	}) {
		e.becoming.Store(false) // Run has not begun, and will look again
	}
}

// observe takes the API Manager's clock from an answer. The header Date was written between request and answer and has a
// resolution of a second, which bounds the difference of the clocks; the bounds of several answers are narrower together.
func (e *Engine) observe(m Meta) {
	if m.ServerDate.IsZero() {
		return
	}
	date := m.ServerDate.Truncate(time.Second).UnixMilli()
	lo := date - m.Finished.UnixMilli()
	hi := max(date+1000-m.Started.UnixMilli(), lo)
	now := time.Now()
	if old := e.skew.Load(); old != nil && now.Sub(old.since) < skewKeep && max(lo, old.lo) <= min(hi, old.hi) {
		e.skew.Store(&skew{lo: max(lo, old.lo), hi: min(hi, old.hi), since: old.since})
		return
	}
	e.skew.Store(&skew{lo: lo, hi: hi, since: now})
}

// skewKeep is how long bounds are narrowed: clocks drift and are set.
const skewKeep = 10 * time.Minute

// skew bounds (API Manager's clock - ours), ms.
type skew struct {
	lo, hi int64
	since  time.Time
}

// windowAt is the window of a request that was made at a time of our clock.
func (e *Engine) windowAt(local int64) window {
	lo, hi := -unknownSkew.Milliseconds(), unknownSkew.Milliseconds()
	if s := e.skew.Load(); s != nil {
		lo, hi = s.lo, s.hi
	}
	w := window{local: local, start: local + nearest(lo, hi)}
	w.lo = local + lo - skewMargin.Milliseconds()
	w.hi = local + hi + skewMargin.Milliseconds()
	return w
}

// nearest returns the number of [lo, hi] that is nearest to 0: clocks that may agree are taken to agree.
func nearest(lo, hi int64) int64 {
	switch {
	case lo > 0:
		return lo
	case hi < 0:
		return hi
	}
	return 0
}

// serverNow is the API Manager's time, ms.
func (e *Engine) serverNow(now time.Time) int64 { return e.windowAt(now.UnixMilli()).start }

// maxAhead is how far an event's time may lie in the future. One beyond it would keep every later change of the entity
// out, so it counts as of now.
const maxAhead = 5 * time.Minute

// eventTime returns the time by which an event is ordered.
func (e *Engine) eventTime(t int64, now time.Time) int64 {
	server := e.serverNow(now)
	if t <= 0 || t > server+maxAhead.Milliseconds() {
		return server
	}
	return t
}

// serves reports whether events of a tenant concern us.
func (e *Engine) serves(tenant string) bool {
	if tenant == "" || strings.EqualFold(tenant, globalTenant) {
		return true
	}
	for _, t := range e.opt.Tenants {
		if t == "" || t == allTenants || strings.EqualFold(t, tenant) {
			return true
		}
	}
	return false
}

// source is one event source and the handler of its messages.
type source struct {
	e      *Engine
	source eventsource.Source
	topics []string
	first  chan struct{}

	mu         sync.Mutex
	state      eventsource.State
	everUp     bool
	reconnects uint64

	lastEvent atomic.Int64 // ms
	applied   atomic.Uint64
	ignored   [outOther + 1]atomic.Uint64
}

func newSource(e *Engine, s Source) *source {
	return &source{e: e, source: s.Source, topics: s.Topics, first: make(chan struct{})}
}

// OnState implements eventsource.Handler: whatever came between may have been lost, so the lists of the topics concerned
// are due. Only a connect makes the gateway register anew: a gap says nothing of the API Manager.
func (s *source) OnState(st eventsource.State) {
	s.mu.Lock()
	s.state = st
	again := s.everUp
	if st.Kind == eventsource.Connected {
		if again {
			s.reconnects++
		}
		s.everUp = true
	}
	s.mu.Unlock()
	log := s.e.log.Info()
	if st.Kind == eventsource.Disconnected || st.Kind == eventsource.Refused {
		log = s.e.log.Warn().Err(st.Err)
	}
	log.Str("source", s.source.Name()).Str("address", st.Address).Msg(st.Kind.String())
	switch st.Kind {
	case eventsource.Connected:
		at := time.Now()
		if again {
			at = at.Add(rand.N(s.e.opt.ResyncJitter + 1))
		}
		s.e.resync(at, true, s.topics)
		if !again {
			close(s.first)
			break
		}
		select {
		case s.e.registered <- struct{}{}:
		default:
		}
	case eventsource.Gap:
		at := time.Now().Add(rand.N(s.e.opt.ResyncJitter + 1))
		for _, k := range s.e.concerned(true, s.topics) {
			k.gap(at)
		}
	}
}

// OnMessage implements eventsource.Handler. It returns when the events are queued.
func (s *source) OnMessage(m event.Message) {
	if f := guarded(func() { s.message(m) }); f != nil {
		s.count("malformed", outMalformed)
		s.e.panicked(kindOfMessages, s.e.concerned(true, []string{m.Topic}), f, func(line *zerolog.Event) { line.Str("topic", m.Topic).Str("message_id", m.MessageID) })
	}
}

func (s *source) message(m event.Message) {
	now := time.Now()
	s.lastEvent.Store(now.UnixMilli())
	events, err := s.e.opt.Decode(m)
	if err != nil {
		s.malformed(m.Topic, err)
	}
	size := itemOverhead + len(m.Body)/max(len(events), 1)
	for _, ev := range events {
		s.dispatch(ev, now, m.MessageID, size)
	}
}

// maxWarnings bounds the different faults that are logged.
const maxWarnings = 200

// warnings are the faults that were logged already.
type warnings struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

// firstOf tells whether a fault is to be logged: once, and no more than maxWarnings different ones.
func (e *Engine) firstOf(fault string) bool {
	w := &e.warned
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.seen[fault]; known || len(w.seen) >= maxWarnings {
		return false
	}
	if w.seen == nil {
		w.seen = make(map[string]struct{})
	}
	w.seen[fault] = struct{}{}
	return true
}

// warnDeny logs a deny policy that cannot be enforced, once.
func (e *Engine) warnDeny(c *throttle.DenyCondition) {
	if e.firstOf("deny " + c.Tenant + "/" + decimal(c.ID) + " " + c.Value) {
		e.log.Warn().Str("kind", string(c.Kind)).Str("tenant", c.Tenant).Int64("id", c.ID).Str("value", c.Value).
			Msg("a deny policy is not enforced: its address cannot be read; write an IPv4 or IPv6 address, a prefix such as 10.0.0.0/8, or two bounds of one family")
	}
}

func (s *source) malformed(topic string, err error) {
	s.ignored[outMalformed].Add(1)
	s.e.metrics.event("malformed", outMalformed)
	var d *event.DecodeError
	dirty := true
	if errors.As(err, &d) {
		topic, dirty = d.Topic, d.Dirty
	}
	if s.e.firstOf("malformed " + err.Error()) {
		line := s.e.log.Warn().Err(err).Str("source", s.source.Name()).Bool("refetch", dirty)
		if d != nil {
			line = line.Str("excerpt", d.Excerpt)
		}
		line.Msg("a message was passed over; the same fault is counted from now on, not logged")
	}
	if !dirty {
		return
	}
	for _, k := range s.e.concerned(true, []string{topic}) {
		k.doubt(s.e.opt.RefetchDelay)
	}
}

// dispatch hands an event of the message id on, which takes about size bytes.
func (s *source) dispatch(ev event.Event, now time.Time, id string, size int) {
	e := s.e
	switch ev := ev.(type) {
	case event.ThrottleDecision:
		if e.opt.Domains.Decide != nil {
			e.opt.Domains.Decide(throttle.Decision{
				Key: ev.Key, Throttled: ev.Throttled, ExpiresAt: ev.ExpiresAt, Conditions: ev.Conditions,
				Origin: throttle.Origin{Kind: "event", At: now.UnixMilli(), ID: cmp.Or(ev.EventID, id)},
			}, now.UnixMilli())
			e.dirty.Store(true)
		}
		s.count(ev.Type, applied)
		return
	case event.CacheInvalidation:
		if e.opt.Domains.Invalidate != nil {
			e.opt.Domains.Invalidate(ev)
		}
		s.count(ev.Type, applied)
		return
	case event.Ignored:
		if ev.Known {
			s.count(ev.Type, outOther)
		} else {
			s.count("unknown", outUnknown)
		}
		return
	}
	w := e.workerOf(ev)
	base := baseOf(ev)
	switch {
	case w == nil:
		s.count(base.Type, outOther)
		return
	case !e.serves(base.TenantDomain):
		s.count(base.Type, outTenant)
		return
	case base.EventID != "" && e.seen.add(base.EventID, base.Time):
		s.count(base.Type, outDuplicate)
		return
	}
	if dropped := w.in.push(item{event: ev, base: base, from: s, at: now, message: id, size: size}); dropped != nil {
		for i := range dropped {
			dropped[i].from.count(dropped[i].base.Type, outDropped)
		}
		if w.in.newsOfLoss(now) {
			e.log.Error().Str("kind", w.name).Int("dropped", len(dropped)).Msg("more events than can be applied: the backlog is dropped and the lists are fetched again; what follows within a minute is counted, not logged")
		}
		for _, k := range w.kinds {
			if e.hasList(k.name) {
				k.doubt(e.opt.RefetchDelay)
			}
		}
	}
}

func (s *source) count(kind string, o outcome) {
	if o == applied {
		s.applied.Add(1)
	} else {
		s.ignored[o].Add(1)
	}
	s.e.metrics.event(kind, o)
}

// done is called by workers after each event.
func (e *Engine) done(it *item, o outcome) {
	it.from.count(it.base.Type, o)
	if it.base.Time > 0 {
		e.metrics.lag(it.at, it.base.Time)
	}
}

// recent remembers the last event ids. Publishers in several regions and redeliveries repeat events.
type recent struct {
	mu    sync.Mutex
	known map[eventKey]struct{}
	ring  []eventKey
	next  int
}

type eventKey struct {
	id string
	t  int64
}

func newRecent(n int) *recent {
	return &recent{known: make(map[eventKey]struct{}, n), ring: make([]eventKey, n)}
}

// add reports whether the event was known already.
func (r *recent) add(id string, t int64) bool {
	k := eventKey{id, t}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.known[k]; ok {
		return true
	}
	delete(r.known, r.ring[r.next])
	r.ring[r.next] = k
	r.next = (r.next + 1) % len(r.ring)
	r.known[k] = struct{}{}
	return false
}
