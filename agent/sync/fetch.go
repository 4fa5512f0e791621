package sync

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/subscription"
)

var (
	errFailedLately = errors.New("the API Manager could not be asked a moment ago")
	errNotNow       = errors.New("the gateway is starting or ending")
)

// maxFetches bounds the rows that requests make the engine read at one time.
const maxFetches = 32

// missKey names a row that was not there.
type missKey struct{ kind, key string }

// misses remembers for a few seconds what the API Manager does not know either, so that a flood of unknown keys does not
// become a flood of calls. It is bounded: the oldest leave.
type misses struct {
	mu      sync.Mutex
	until   map[missKey]miss
	order   []missKey
	next    int
	flights map[missKey]*flight
	working chan struct{}
}

// miss is until when a row is taken for missing; failed says that this is no answer of the API Manager, which could not be asked.
type miss struct {
	until  time.Time
	failed bool
}

// flight is a look-up that is under way; found and err may be read when done is closed.
type flight struct {
	done  chan struct{}
	found bool
	err   error
}

// join returns the flight of k. first is true for the one that begins it, who lands it when it is over.
func (m *misses) join(k missKey) (f *flight, first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f = m.flights[k]; f != nil {
		return f, false
	}
	f = &flight{done: make(chan struct{})}
	m.flights[k] = f
	return f, true
}

func (m *misses) land(k missKey, f *flight, found bool, err error) {
	f.found, f.err = found, err
	m.mu.Lock()
	delete(m.flights, k)
	m.mu.Unlock()
	close(f.done)
}

func newMisses(limit int) *misses {
	return &misses{
		until: make(map[missKey]miss), order: make([]missKey, limit), flights: make(map[missKey]*flight),
		working: make(chan struct{}, maxFetches),
	}
}

func (m *misses) add(k missKey, v miss) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.until[k]; !ok {
		delete(m.until, m.order[m.next])
		m.order[m.next] = k
		m.next = (m.next + 1) % len(m.order)
	}
	m.until[k] = v
}

// known reports whether a row is taken for missing, and whether that is because it could not be asked for.
func (m *misses) known(k missKey, now time.Time) (known, failed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.until[k]
	known = v.until.After(now)
	return known, known && v.failed
}

// forget drops what an event has just told.
func (m *misses) forget(k missKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.until[k]; ok {
		m.until[k] = miss{}
	}
}

// Fetch reads from the API Manager the rows that a request missed in memory: what missing names, and what hangs on it.
// It reports whether something was found, so that the caller looks again. Each row is asked for once at a time whoever
// waits for it, and not again for Options.NegativeTTL when it does not exist; a request waits for
// Options.MissTimeout at most. The error says why the API Manager could not be asked.
func (e *Engine) Fetch(ctx context.Context, consumerKey, keyManager string, api subscription.APIRef, missing subscription.Reason) (found bool, err error) {
	if missing < subscription.UnknownAPI || missing > subscription.NoSubscription {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.opt.MissTimeout)
	defer cancel()
	// One step each: API, key mapping, application, subscription.
	for range 4 {
		f := e.opt.Domains.Resolve(consumerKey, keyManager, api)
		var got bool
		switch {
		case f.API == nil:
			got, err = e.fetchAPI(ctx, api)
		case f.Mapping == nil:
			got, err = e.fetchMapping(ctx, consumerKey, keyManager)
		case f.Application == nil:
			got, err = e.fetchApplication(ctx, f.Mapping.ApplicationID, f.Mapping.Tenant)
		case f.Subscription == nil:
			got, err = e.fetchSubscription(ctx, f.API, f.Application)
		default:
			return found, nil
		}
		if err != nil || !got {
			return found, err
		}
		found = true
	}
	return found, nil
}

// FetchApplication is Fetch for a credential that names its application itself, as API keys do: there is no key mapping among
// what may be missing. An application can be asked for by its number alone. The error says too that the API Manager cannot be
// asked for what is missing; without one, a row that was not found is not there.
func (e *Engine) FetchApplication(ctx context.Context, uuid string, id int64, api subscription.APIRef, missing subscription.Reason) (found bool, err error) {
	if missing < subscription.UnknownAPI || missing > subscription.NoSubscription {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, e.opt.MissTimeout)
	defer cancel()
	for range 3 {
		f := e.opt.Domains.ResolveApplication(uuid, id, api)
		var got bool
		switch {
		case f.API == nil:
			got, err = e.fetchAPI(ctx, api)
		case f.Application == nil && (id <= 0 || e.applications.single == nil):
			return found, errNoHint
		case f.Application == nil:
			if got, err = e.fetchApplication(ctx, id, ""); got && e.opt.Domains.ResolveApplication(uuid, id, api).Application == nil {
				// Another application has this number: to ask again would not change that.
				e.misses.add(applicationMiss(id), miss{until: time.Now().Add(e.opt.NegativeTTL)})
				return found, nil
			}
		case f.Subscription == nil:
			got, err = e.fetchSubscription(ctx, f.API, f.Application)
		default:
			return found, nil
		}
		if err != nil || !got {
			return found, err
		}
		found = true
	}
	return found, nil
}

func (e *Engine) fetchAPI(ctx context.Context, ref subscription.APIRef) (bool, error) {
	if e.apis.single == nil {
		return false, nil
	}
	hint := &subscription.API{UUID: ref.UUID, ID: ref.ID, Context: ref.Context, Version: ref.Version}
	k := missKey{"api", ref.UUID + "\x00" + ref.Context + "\x00" + ref.Version}
	return fetchRow(ctx, e, e.apis, k, e.apis.key(hint), hint)
}

func (e *Engine) fetchMapping(ctx context.Context, consumerKey, keyManager string) (bool, error) {
	if e.mappings.single == nil || consumerKey == "" {
		return false, nil
	}
	k := MappingKey{consumerKey, subscription.CanonicalKeyManager(keyManager)}
	return fetchRow(ctx, e, e.mappings, mappingMiss(k), k, nil)
}

func (e *Engine) fetchApplication(ctx context.Context, id int64, tenant string) (bool, error) {
	if e.applications.single == nil || id == 0 {
		return false, nil
	}
	return fetchRow(ctx, e, e.applications, applicationMiss(id), id, &subscription.Application{Tenant: tenant})
}

func (e *Engine) fetchSubscription(ctx context.Context, api *subscription.API, app *subscription.Application) (bool, error) {
	if e.opt.Lists.Subscription == nil {
		return false, nil
	}
	k := subscriptionMiss(app.ID, api.ID, app.UUID, api.UUID)
	return e.fetchOnce(ctx, k, func(ctx context.Context) (bool, error) {
		d := e.subscriptions
		d.asks.begin(0, false)
		defer d.asks.end(0, false)
		var seq uint64
		if err := d.w.do(ctx, func() { seq = d.ledger.seq }); err != nil {
			return false, err
		}
		started := time.Now()
		rows, err := oneOf(e, app.Tenant, func(t string) (*controlplane.Subscription, error) {
			return e.opt.Lists.Subscription(ctx, t, controlplane.SubscriptionQuery{APIID: api.ID, AppID: app.ID, APIUUID: api.UUID, ApplicationUUID: app.UUID})
		}, subscriptionRow)
		if err != nil || len(rows) == 0 {
			return false, err
		}
		if err := d.w.do(ctx, func() { d.answered(d.identify(&rows[0]), &ask[subscription.Subscription]{}, rows, seq, started) }); err != nil {
			return false, err
		}
		return true, nil
	})
}

func fetchRow[K comparable, R any](ctx context.Context, e *Engine, d *dataset[K, R], miss missKey, k K, hint *R) (bool, error) {
	return e.fetchOnce(ctx, miss, func(ctx context.Context) (bool, error) {
		rows, err := d.askOnce(ctx, k, &ask[R]{hint: hint})
		return len(rows) > 0, err
	})
}

// fetchOnce asks once for all who wait, and remembers a no.
func (e *Engine) fetchOnce(ctx context.Context, k missKey, get func(context.Context) (bool, error)) (bool, error) {
	if known, failed := e.misses.known(k, time.Now()); failed {
		return false, fmt.Errorf("look up %s: %w", k.kind, errFailedLately)
	} else if known {
		return false, nil
	}
	f, first := e.misses.join(k)
	if first && !e.spawn(func(run context.Context) {
		// Not the caller's context: others wait for the same answer.
		found, err := e.lookUp(run, k, get)
		e.misses.land(k, f, found, err)
	}) {
		e.misses.land(k, f, false, errNotNow)
	}
	select {
	case <-f.done:
		return f.found, f.err
	case <-ctx.Done():
		return false, fmt.Errorf("look up %s at the API Manager: %w", k.kind, ctx.Err())
	}
}

// lookUp is one look-up, which waits for its turn.
func (e *Engine) lookUp(ctx context.Context, k missKey, get func(context.Context) (bool, error)) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.opt.MissTimeout)
	defer cancel()
	select {
	case e.misses.working <- struct{}{}:
		defer func() { <-e.misses.working }()
	case <-ctx.Done():
		return false, fmt.Errorf("look up %s: %d other look-ups are under way: %w", k.kind, maxFetches, ctx.Err())
	}
	if f := guarded(func() { found, err = get(ctx) }); f != nil {
		e.panicked(kindOfFetches, nil, f, func(line *zerolog.Event) { line.Str("row", k.kind) })
		found, err = false, fmt.Errorf("look up %s: %w", k.kind, f)
	}
	if !found {
		// A failure counts for a moment too, or each request would wait for a dead API Manager.
		ttl := e.opt.NegativeTTL
		if err != nil {
			ttl = min(ttl, time.Second)
		}
		e.misses.add(k, miss{time.Now().Add(ttl), err != nil})
	}
	return found, err
}

// forgetKind drops all of one kind.
func (m *misses) forgetKind(kind string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.until {
		if k.kind == kind {
			m.until[k] = miss{}
		}
	}
}

// mappingMiss, applicationMiss and subscriptionMiss name what was not there.
func mappingMiss(k MappingKey) missKey {
	return missKey{"key_mapping", k.ConsumerKey + "\x00" + k.KeyManager}
}

func applicationMiss(id int64) missKey { return missKey{"application", decimal(id)} }

func subscriptionMiss(appID, apiID int64, appUUID, apiUUID string) missKey {
	if appID != 0 && apiID != 0 {
		return missKey{"subscription", decimal(appID) + ":" + decimal(apiID)}
	}
	return missKey{"subscription", appUUID + ":" + apiUUID}
}
