package sync

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// Names of the kinds, as the admin API and the metrics show them.
const (
	kindAPIs                 = "apis"
	kindArtifacts            = "artifacts"
	kindApplications         = "applications"
	kindKeyMappings          = "key_mappings"
	kindSubscriptions        = "subscriptions"
	kindSubscriptionPolicies = "subscription_policies"
	kindApplicationPolicies  = "application_policies"
	kindAPIPolicies          = "api_policies"
	kindKeyManagers          = "key_managers"
	kindDenyPolicies         = "deny_policies"
	kindKeyTemplates         = "key_templates"
	kindRevokedTokens        = "revoked_tokens"
	kindScopes               = "scopes"
	kindAPIKeys              = "api_keys"
)

type policyKey struct{ tenant, name string }

type kmKey struct{ tenant, name string }

// Scope binds a scope to roles.
type Scope struct {
	Name   string
	Roles  []string
	Origin Origin
}

// errNotServed: the API Manager has no such list.
var errNotServed = errors.New("this API Manager does not serve it")

// newDataset fills in what every data set has.
func newDataset[K comparable, R any](e *Engine, w *worker, name, topic string, d dataset[K, R]) *dataset[K, R] {
	d.e, d.w = e, w
	d.kind = &kind{name: name, topic: topic, log: e.log.With().Str("list", name).Logger(), wake: make(chan struct{}, 1)}
	d.ledger = newLedger[K](e.opt.LedgerLimit, &e.hooks)
	d.asks = newAsks[K, R]()
	d.kind.pull = d.pull
	d.kind.length = func() int { return d.table.Len() }
	d.kind.first, d.kind.every = e.checkReady, e.pokeSnapshot
	d.kind.fault = func(f *panicError) { d.poisoned(f, nil) }
	w.kinds = append(w.kinds, d.kind)
	e.kinds = append(e.kinds, d.kind)
	return &d
}

// small makes the data set keep its own table before a sink.
func small[K comparable, R any](d *dataset[K, R], sink Sink[R]) *dataset[K, R] {
	d.shadow = newShadow(d.key, sink, d.kind.fault)
	d.table = d.shadow.table()
	return d
}

// perTenant fetches a list once for each tenant that is served.
func perTenant[R, W any](e *Engine, list func(context.Context, ListQuery, func(W) error) (Meta, error), row func(W, string) R) func(context.Context, func(R) error) (Meta, error) {
	if list == nil {
		return nil
	}
	return func(ctx context.Context, each func(R) error) (Meta, error) {
		var all Meta
		for _, t := range e.opt.Tenants {
			m, err := list(ctx, ListQuery{Tenant: t}, func(w W) error { return each(row(w, t)) })
			all = joinMeta(all, m)
			if err != nil {
				return all, err
			}
		}
		return all, nil
	}
}

// tenantsFor returns the tenants to ask for one row: the one that is known, else each.
func (e *Engine) tenantsFor(known string) []string {
	if known != "" {
		for i, t := range e.opt.Tenants {
			if strings.EqualFold(t, known) {
				return e.opt.Tenants[i : i+1] // as it is configured
			}
		}
	}
	return e.opt.Tenants
}

// oneOf asks the tenants in turn until one has the row.
func oneOf[R, W any](e *Engine, tenant string, get func(tenant string) (*W, error), row func(W, string) R) ([]R, error) {
	for _, t := range e.tenantsFor(tenant) {
		w, err := get(t)
		if err != nil {
			return nil, err
		}
		if w != nil {
			return []R{row(*w, t)}, nil
		}
	}
	return nil, nil
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func (e *Engine) build() {
	l, dom, limit := &e.opt.Lists, &e.opt.Domains, e.opt.QueueLimit
	group := func(name string, apply func(*item) outcome) *worker {
		w := newWorker(name, limit, e.opt.QueueBytes)
		w.apply, w.done, w.panicked = apply, e.done, func(w *worker, p *panicError, what func(*zerolog.Event)) { e.panicked(w.name, w.kinds, p, what) }
		e.workers = append(e.workers, w)
		return w
	}

	apis := group("apis", e.applyAPI)
	apis.settle = e.render
	e.apis = newDataset(e, apis, kindAPIs, event.TopicNotification, dataset[APIKey, subscription.API]{
		what: "api", table: dom.APIs, same: sameAPI,
		key: func(r *subscription.API) APIKey {
			if r.UUID != "" {
				return APIKey{UUID: r.UUID}
			}
			return APIKey{ID: r.ID}
		},
		stamp: func(r *subscription.API, at int64, o origin) { r.UpdatedAt, r.Origin = at, subscription.Origin(o) },
		id: func(k APIKey, _ *subscription.API) string {
			if k.UUID != "" {
				return k.UUID
			}
			return decimal(k.ID)
		},
		changed: func(_, _ *subscription.API) {
			e.routesDirty = true
			e.misses.forgetKind("api")
		},
	})
	if l.APIs != nil {
		e.apis.fetch = func(ctx context.Context, each func(subscription.API) error) (Meta, error) {
			var all Meta
			for _, t := range e.opt.Tenants {
				for _, label := range e.opt.Labels {
					m, err := l.APIs(ctx, ListQuery{Tenant: t, Label: label}, func(a controlplane.API) error { return each(apiRow(a)) })
					all = joinMeta(all, m)
					if err != nil {
						return all, err
					}
				}
			}
			return all, nil
		}
	}
	if l.API != nil {
		e.apis.single = e.askAPI
	}
	e.artifacts = small(newDataset(e, apis, kindArtifacts, event.TopicNotification, dataset[string, Deployed]{
		what: "artifact", same: sameDeployed,
		key:     func(r *Deployed) string { return r.UUID },
		stamp:   func(r *Deployed, at int64, o origin) { r.Origin = Origin(o) },
		id:      func(k string, _ *Deployed) string { return k },
		show:    func(r *Deployed) any { return r.shown() },
		changed: e.deployedChanged,
	}), Sink[Deployed]{})
	e.artifacts.optional, e.artifacts.slow = true, true
	if l.Artifacts != nil {
		e.artifacts.fetch, e.artifacts.single = e.fetchArtifacts, e.askArtifact
	}

	e.applications = newDataset(e, group("applications", e.applyApplication), kindApplications, event.TopicNotification, dataset[int64, subscription.Application]{
		what: "application", table: dom.Applications, same: sameApplication,
		key: (*subscription.Application).Key,
		numbers: &numbers[int64, subscription.Application]{
			key: subscription.RowKey,
			of:  func(r *subscription.Application) (*int64, string) { return &r.ID, r.UUID },
		},
		stamp: func(r *subscription.Application, at int64, o origin) {
			r.UpdatedAt, r.Origin = at, subscription.Origin(o)
		},
		id: func(k int64, r *subscription.Application) string {
			if k < 0 && r != nil {
				return r.UUID
			}
			return decimal(k)
		},
		fetch:   perTenant(e, l.Applications, applicationRow),
		changed: e.applicationChanged,
	})
	if l.Application != nil {
		e.applications.single = func(ctx context.Context, id int64, hint *subscription.Application) ([]subscription.Application, error) {
			if id <= 0 {
				return nil, errNoHint // it can be asked for by number only
			}
			return oneOf(e, tenantOfRow(hint, func(r *subscription.Application) string { return r.Tenant }), func(t string) (*controlplane.Application, error) {
				return l.Application(ctx, t, id)
			}, applicationRow)
		}
	}

	e.mappings = newDataset(e, group("key_mappings", e.applyMapping), kindKeyMappings, event.TopicNotification, dataset[MappingKey, subscription.KeyMapping]{
		what: "key_mapping", table: dom.KeyMappings, same: sameMapping,
		key: func(r *subscription.KeyMapping) MappingKey {
			return MappingKey{r.ConsumerKey, subscription.CanonicalKeyManager(r.KeyManager)}
		},
		stamp: func(r *subscription.KeyMapping, at int64, o origin) {
			r.UpdatedAt, r.Origin = at, subscription.Origin(o)
		},
		id:    func(k MappingKey, _ *subscription.KeyMapping) string { return k.ConsumerKey + "@" + k.KeyManager },
		fetch: perTenant(e, l.KeyMappings, mappingRow),
		changed: func(_, after *subscription.KeyMapping) {
			if after != nil {
				e.misses.forget(mappingMiss(e.mappings.key(after)))
			}
		},
		orphan: func(r *subscription.KeyMapping) int64 { return e.goneSince(r.ApplicationID, r.ApplicationUUID) },
	})
	if l.KeyMapping != nil {
		e.mappings.single = func(ctx context.Context, k MappingKey, hint *subscription.KeyMapping) ([]subscription.KeyMapping, error) {
			return oneOf(e, tenantOfRow(hint, func(r *subscription.KeyMapping) string { return r.Tenant }), func(t string) (*controlplane.KeyMapping, error) {
				return l.KeyMapping(ctx, t, k.ConsumerKey, k.KeyManager)
			}, mappingRow)
		}
	}

	e.subscriptions = newDataset(e, group("subscriptions", e.applySubscription), kindSubscriptions, event.TopicNotification, dataset[int64, subscription.Subscription]{
		what: "subscription", table: dom.Subscriptions, same: sameSubscription, tie: subscriptionTie,
		key: (*subscription.Subscription).Key,
		numbers: &numbers[int64, subscription.Subscription]{
			key: subscription.RowKey,
			of:  func(r *subscription.Subscription) (*int64, string) { return &r.ID, r.UUID },
		},
		stamp: func(r *subscription.Subscription, at int64, o origin) {
			r.UpdatedAt, r.Origin = at, subscription.Origin(o)
		},
		id: func(k int64, r *subscription.Subscription) string {
			if k < 0 && r != nil {
				return r.UUID
			}
			return decimal(k)
		},
		fetch: perTenant(e, l.Subscriptions, subscriptionRow),
		changed: func(_, after *subscription.Subscription) {
			if after != nil {
				e.misses.forget(subscriptionMiss(after.ApplicationID, after.APIID, after.ApplicationUUID, after.APIUUID))
			}
		},
		orphan: func(r *subscription.Subscription) int64 { return e.goneSince(r.ApplicationID, r.ApplicationUUID) },
	})
	if l.Subscription != nil {
		e.subscriptions.single = func(ctx context.Context, id int64, hint *subscription.Subscription) ([]subscription.Subscription, error) {
			if hint == nil {
				return nil, errNoHint
			}
			return oneOf(e, hint.Tenant, func(t string) (*controlplane.Subscription, error) {
				return l.Subscription(ctx, t, controlplane.SubscriptionQuery{
					APIID: hint.APIID, AppID: hint.ApplicationID,
					APIUUID: hint.APIUUID, ApplicationUUID: hint.ApplicationUUID,
				})
			}, subscriptionRow)
		}
	}

	policies := group("policies", e.applyPolicy)
	policy := func(name, what string, kind throttle.PolicyKind, sink Sink[throttle.Policy],
		list func(context.Context, ListQuery, func(controlplane.Policy) error) (Meta, error),
		one func(context.Context, string, string) (*controlplane.Policy, error),
	) *dataset[policyKey, throttle.Policy] {
		row := func(p controlplane.Policy, tenant string) throttle.Policy { return policyRow(kind, p, tenant) }
		d := small(newDataset(e, policies, name, event.TopicNotification, dataset[policyKey, throttle.Policy]{
			what: what, same: samePolicy,
			key:   func(r *throttle.Policy) policyKey { return policyKey{canonicalTenant(r.Tenant), r.Name} },
			stamp: func(r *throttle.Policy, at int64, o origin) { r.UpdatedAt, r.Origin = at, throttle.Origin(o) },
			id:    func(k policyKey, _ *throttle.Policy) string { return string(kind) + "/" + k.tenant + "/" + k.name },
		}), sink)
		d.fetch = perTenant(e, list, row)
		if one != nil {
			d.single = func(ctx context.Context, k policyKey, _ *throttle.Policy) ([]throttle.Policy, error) {
				return oneOf(e, k.tenant, func(t string) (*controlplane.Policy, error) { return one(ctx, t, k.name) }, row)
			}
		}
		return d
	}
	e.subscriptionPolicies = policy(kindSubscriptionPolicies, "policy", throttle.PolicySubscription, dom.SubscriptionPolicies, l.SubscriptionPolicies, l.SubscriptionPolicy)
	e.applicationPolicies = policy(kindApplicationPolicies, "policy", throttle.PolicyApplication, dom.ApplicationPolicies, l.ApplicationPolicies, l.ApplicationPolicy)
	e.apiPolicies = policy(kindAPIPolicies, "policy", throttle.PolicyAPI, dom.APIPolicies, l.APIPolicies, l.APIPolicy)
	e.apiPolicies.optional = true

	e.keyManagers = small(newDataset(e, group("key_managers", e.applyKeyManager), kindKeyManagers, event.TopicKeyManager, dataset[kmKey, keymanager.KeyManager]{
		what: "key_manager", same: sameKeyManager, coarse: true,
		key:   func(r *keymanager.KeyManager) kmKey { return kmKey{canonicalTenant(r.Tenant), r.Name} },
		stamp: func(r *keymanager.KeyManager, _ int64, o origin) { r.Origin = keymanager.Origin(o) },
		id:    func(k kmKey, _ *keymanager.KeyManager) string { return k.tenant + "/" + k.name },
		fetch: perTenant(e, l.KeyManagers, keyManagerRow),
	}), dom.KeyManagers)

	deny := group("deny_policies", e.applyThrottleData)
	e.deny = small(newDataset(e, deny, kindDenyPolicies, event.TopicThrottleData, dataset[denyKey, throttle.DenyCondition]{
		what: "deny_policy", same: sameDeny, coarse: true,
		key:   denyKeyOf,
		stamp: func(r *throttle.DenyCondition, _ int64, o origin) { r.Origin = throttle.Origin(o) },
		id: func(k denyKey, r *throttle.DenyCondition) string {
			if k.value != "" {
				return string(k.kind) + "/" + k.value
			}
			return string(k.kind) + "/" + k.tenant + "/" + decimal(k.id)
		},
	}), dom.Deny)
	if l.Block != nil {
		e.deny.fetch = func(ctx context.Context, each func(throttle.DenyCondition) error) (Meta, error) {
			b, m, err := l.Block(ctx)
			rows := denyRows(b)
			for i := range rows {
				if unreadable(&rows[i]) {
					e.warnDeny(&rows[i])
				}
			}
			return m, eachOf(rows, err, each)
		}
	}
	e.keyTemplates = small(newDataset(e, deny, kindKeyTemplates, event.TopicThrottleData, dataset[string, throttle.KeyTemplate]{
		what: "key_template", coarse: true, tie: templateTie,
		same:  func(a, b *throttle.KeyTemplate) bool { return a.Template == b.Template },
		key:   func(r *throttle.KeyTemplate) string { return r.Template },
		stamp: func(r *throttle.KeyTemplate, at int64, o origin) { r.UpdatedAt, r.Origin = at, throttle.Origin(o) },
		id:    func(k string, _ *throttle.KeyTemplate) string { return k },
	}), dom.KeyTemplates)
	if l.KeyTemplates != nil {
		e.keyTemplates.fetch = func(ctx context.Context, each func(throttle.KeyTemplate) error) (Meta, error) {
			list, m, err := l.KeyTemplates(ctx)
			rows := make([]throttle.KeyTemplate, len(list))
			for i, t := range list {
				rows[i].Template = t
			}
			return m, eachOf(rows, err, each)
		}
	}

	e.scopes = small(newDataset(e, group("scopes", e.applyScope), kindScopes, event.TopicNotification, dataset[string, Scope]{
		what:  "scope",
		same:  func(a, b *Scope) bool { return a.Name == b.Name && slices.Equal(a.Roles, b.Roles) },
		key:   func(r *Scope) string { return r.Name },
		stamp: func(r *Scope, _ int64, o origin) { r.Origin = Origin(o) },
		id:    func(k string, _ *Scope) string { return k },
		fetch: perTenant(e, l.Scopes, func(s controlplane.Scope, _ string) Scope { return Scope{Name: s.Name, Roles: s.Roles} }),
	}), Sink[Scope]{})
	e.scopes.optional = true

	e.buildRevoked(group("revoked_tokens", e.applyRevoked))
	e.buildAPIKeys(group(kindAPIKeys, e.applyAPIKey))
}

var errNoHint = errors.New("nothing is known of the row to ask for it")

func tenantOfRow[R any](r *R, tenant func(*R) string) string {
	if r == nil {
		return ""
	}
	return tenant(r)
}

func eachOf[R any](rows []R, err error, each func(R) error) error {
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err := each(r); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) askAPI(ctx context.Context, k APIKey, hint *subscription.API) ([]subscription.API, error) {
	q := controlplane.APIQuery{UUID: k.UUID}
	if hint != nil {
		q.Context, q.Version = hint.Context, hint.Version
	}
	if q.UUID == "" && q.Context == "" {
		return nil, errNoHint
	}
	for _, t := range e.tenantsFor(tenantOfRow(hint, func(r *subscription.API) string { return r.Tenant })) {
		for _, label := range e.opt.Labels {
			q.Label = label
			a, err := e.opt.Lists.API(ctx, t, q)
			if err != nil {
				return nil, err
			}
			if a != nil {
				return []subscription.API{apiRow(*a)}, nil
			}
		}
	}
	return nil, nil
}

// buildRevoked makes the one kind that is merged and never replaced: entries leave by their expiry.
func (e *Engine) buildRevoked(w *worker) {
	k := &kind{
		name: kindRevokedTokens, topic: event.TopicTokenRevocation, wake: make(chan struct{}, 1),
		log: e.log.With().Str("list", kindRevokedTokens).Logger(), first: e.checkReady, every: e.pokeSnapshot,
	}
	var rows atomic.Int64
	k.length = func() int { return int(rows.Load()) }
	k.fault = func(f *panicError) { e.panicked(w.name, []*kind{k}, f, nil) }
	k.pull = func(ctx context.Context) pullResult {
		started := time.Now()
		r, meta, err := e.opt.Lists.Revoked(ctx)
		if err != nil {
			return pullResult{outcome: pullFailed, err: err}
		}
		e.observe(meta)
		list := revocationRows(r, origin{Kind: "pull", At: started.UnixMilli(), ID: kindRevokedTokens})
		if err := w.do(ctx, func() {
			e.opt.Domains.MergeRevocations(list)
			rows.Store(int64(len(list)))
			if len(list) > 0 {
				e.dirty.Store(true)
			}
		}); err != nil {
			return pullResult{outcome: pullFailed, err: err}
		}
		return pullResult{outcome: pullApplied, rows: len(list)}
	}
	e.revoked = &revokedKind{kind: k, w: w}
	w.kinds = append(w.kinds, k)
	e.kinds = append(e.kinds, k)
}

type revokedKind struct {
	*kind
	w *worker
}
