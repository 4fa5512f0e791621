package sync

import (
	"strings"
	"sync"
	"time"

	"gatehouse/agent/event"
	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// baseOf returns what every event carries.
func baseOf(ev event.Event) event.Base {
	switch e := ev.(type) {
	case event.APIChanged:
		return e.Base
	case event.Deployment:
		return e.Base
	case event.ApplicationChanged:
		return e.Base
	case event.KeyMappingChanged:
		return e.Base
	case event.SubscriptionChanged:
		return e.Base
	case event.PolicyChanged:
		return e.Base
	case event.KeyTemplateChanged:
		return e.Base
	case event.ScopeChanged:
		return e.Base
	case event.CertificateChanged:
		return e.Base
	case event.WebhookChanged:
		return e.Base
	case event.ThrottleDecision:
		return e.Base
	case event.DenyChanged:
		return e.Base
	case event.Revoked:
		return e.Base
	case event.KeyManagerChanged:
		return e.Base
	case event.CacheInvalidation:
		return e.Base
	case event.Ignored:
		return e.Base
	}
	return event.Base{}
}

// workerOf returns the group that an event belongs to; nil: nobody here does anything for it.
func (e *Engine) workerOf(ev event.Event) *worker {
	switch ev.(type) {
	case event.APIChanged, event.Deployment:
		return e.apis.w
	case event.ApplicationChanged:
		return e.applications.w
	case event.KeyMappingChanged:
		return e.mappings.w
	case event.SubscriptionChanged:
		return e.subscriptions.w
	case event.PolicyChanged:
		return e.subscriptionPolicies.w
	case event.KeyManagerChanged:
		return e.keyManagers.w
	case event.DenyChanged, event.KeyTemplateChanged:
		return e.deny.w
	case event.Revoked:
		return e.revoked.w
	case event.ScopeChanged:
		return e.scopes.w
	}
	return nil
}

func (e *Engine) applyApplication(it *item) outcome {
	ev, ok := it.event.(event.ApplicationChanged)
	if !ok || ev.ID == 0 {
		return outUnknown
	}
	if ev.Action == event.Delete {
		// Also when it is not known, or known by newer news: what belonged to it before is gone, and a list that is on its
		// way may still bring it.
		e.applicationDeleted(ev.ID, e.eventTime(ev.Time, it.at))
		return e.applications.change(&ev.Base, ev.ID, func(*subscription.Application) *subscription.Application { return nil })
	}
	partial := false
	out := e.applications.change(&ev.Base, ev.ID, func(cur *subscription.Application) *subscription.Application {
		row := subscription.Application{ID: ev.ID, UUID: ev.UUID, Name: ev.Name, Owner: ev.Owner, Policy: ev.Policy,
			TokenType: ev.TokenType, Tenant: canonicalTenant(ev.TenantDomain), Attributes: ev.Attributes}
		if ev.GroupID != "" {
			row.GroupIDs = []string{ev.GroupID}
		}
		if cur != nil {
			keep(&row.UUID, cur.UUID)
			keep(&row.Owner, cur.Owner)
			keep(&row.Tenant, cur.Tenant)
			keep(&row.Name, cur.Name)
			keep(&row.Policy, cur.Policy)
			keep(&row.TokenType, cur.TokenType)
			if row.GroupIDs == nil {
				row.GroupIDs = cur.GroupIDs
			}
			if row.Attributes == nil {
				row.Attributes = cur.Attributes
			}
		}
		partial = row.Owner == ""
		return &row
	})
	if out == applied && partial {
		e.applications.ask(ev.ID, nil) // events of 3.2 do not name the owner
	}
	return out
}

// keep fills a text that an event does not say from the known row.
func keep(text *string, known string) {
	if *text == "" {
		*text = known
	}
}

func (e *Engine) applyMapping(it *item) outcome {
	ev, ok := it.event.(event.KeyMappingChanged)
	if !ok || ev.ConsumerKey == "" {
		return outUnknown
	}
	km := e.keyManagerName(ev.KeyManager)
	k := MappingKey{ConsumerKey: ev.ConsumerKey, KeyManager: subscription.CanonicalKeyManager(km)}
	if ev.Action != event.Delete && e.applicationGone(ev.ApplicationID, ev.Time) {
		return outStale
	}
	e.misses.forget(mappingMiss(k))
	return e.mappings.change(&ev.Base, k, func(cur *subscription.KeyMapping) *subscription.KeyMapping {
		if ev.Action == event.Delete {
			return nil
		}
		row := subscription.KeyMapping{ConsumerKey: k.ConsumerKey, KeyManager: k.KeyManager, KeyType: subscription.KeyType(strings.ToUpper(ev.KeyType)),
			ApplicationID: ev.ApplicationID, ApplicationUUID: ev.ApplicationUUID, Tenant: canonicalTenant(ev.TenantDomain)}
		if cur != nil && cur.ApplicationID == row.ApplicationID {
			keep(&row.ApplicationUUID, cur.ApplicationUUID)
			keep(&row.Tenant, cur.Tenant)
			keep((*string)(&row.KeyType), string(cur.KeyType))
		}
		return &row
	})
}

// keyManagerName turns the UUID that some events give into the name.
func (e *Engine) keyManagerName(name string) string {
	if len(name) != 36 || strings.Count(name, "-") != 4 {
		return name
	}
	for r := range e.keyManagers.table.All() {
		if strings.EqualFold(r.UUID, name) {
			return r.Name
		}
	}
	return name
}

func (e *Engine) applySubscription(it *item) outcome {
	ev, ok := it.event.(event.SubscriptionChanged)
	if !ok || ev.ID == 0 {
		return outUnknown
	}
	if ev.Action == event.Delete {
		return e.subscriptions.change(&ev.Base, ev.ID, func(*subscription.Subscription) *subscription.Subscription { return nil })
	}
	if e.applicationGone(ev.ApplicationID, ev.Time) {
		return outStale
	}
	return e.subscriptions.change(&ev.Base, ev.ID, func(cur *subscription.Subscription) *subscription.Subscription {
		row := subscription.Subscription{ID: ev.ID, UUID: ev.UUID, APIID: ev.APIID, APIUUID: ev.APIUUID, ApplicationID: ev.ApplicationID,
			ApplicationUUID: ev.ApplicationUUID, Policy: ev.Policy, State: subscription.State(ev.State), Tenant: canonicalTenant(ev.TenantDomain)}
		if cur != nil {
			keep(&row.UUID, cur.UUID)
			keep(&row.APIUUID, cur.APIUUID)
			keep(&row.ApplicationUUID, cur.ApplicationUUID)
			keep(&row.Policy, cur.Policy)
			keep(&row.Tenant, cur.Tenant)
			if row.APIID == 0 {
				row.APIID = cur.APIID
			}
			if row.ApplicationID == 0 {
				row.ApplicationID = cur.ApplicationID
			}
		}
		return &row
	})
}

// subscriptionTie: creation sends ON_HOLD and UNBLOCKED, whose order is not kept.
func subscriptionTie(before, after *subscription.Subscription) bool {
	return before == nil || after == nil || before.State != subscription.Unblocked || after.State != subscription.OnHold
}

// applicationGone reports whether the application was deleted after an event about what belongs to it.
func (e *Engine) applicationGone(id, t int64) bool {
	if id == 0 || e.hooks.noTombstone {
		return false
	}
	e.goneMu.Lock()
	defer e.goneMu.Unlock()
	at, ok := e.gone[id]
	return ok && t != 0 && t <= at
}

// goneSince returns when an application was deleted, 0 when that is not known.
func (e *Engine) goneSince(id int64) int64 {
	if e.hooks.noTombstone {
		return 0
	}
	e.goneMu.Lock()
	defer e.goneMu.Unlock()
	return e.gone[id]
}

// applicationChanged follows what the API Manager answered when it was asked for an application.
func (e *Engine) applicationChanged(before, after *subscription.Application) {
	if after != nil {
		e.misses.forget(applicationMiss(after.ID))
	}
	if after == nil && e.applications.asking {
		e.applicationDeleted(before.ID, e.applications.ledger.entries[before.ID].time)
	}
}

// applicationDeleted takes an application's mappings and subscriptions away with it: the API Manager sends no events
// for them. What a list says is gone takes nothing away: the other lists say that for themselves, and are confirmed for
// themselves.
func (e *Engine) applicationDeleted(id, at int64) {
	e.goneMu.Lock()
	if len(e.gone) >= maxGone {
		for k := range e.gone { // any: a few of the oldest facts are in the lists anyway
			delete(e.gone, k)
			if len(e.gone) < maxGone/2 {
				break
			}
		}
	}
	e.gone[id] = max(e.gone[id], at)
	e.goneMu.Unlock()
	belongings(e, e.mappings, &e.orphanMappings, id, at, func(m *subscription.KeyMapping) int64 { return m.ApplicationID })
	belongings(e, e.subscriptions, &e.orphanSubscriptions, id, at, func(s *subscription.Subscription) int64 { return s.ApplicationID })
}

// maxGone bounds the deleted applications that are remembered for their belongings.
const maxGone = 20_000

// cascade collects deleted applications for one table of belongings, so that a burst of deletions costs one walk.
type cascade struct {
	mu  sync.Mutex
	ids map[int64]int64 // application to time of its deletion
}

func (c *cascade) add(id, at int64) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ids == nil {
		c.ids = make(map[int64]int64)
		first = true
	}
	c.ids[id] = at
	return first
}

func (c *cascade) take() map[int64]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := c.ids
	c.ids = nil
	return ids
}

// belongings removes the rows of deleted applications, on the worker that owns them.
func belongings[K comparable, R any](e *Engine, d *dataset[K, R], c *cascade, id, at int64, owner func(*R) int64) {
	if !c.add(id, at) {
		return
	}
	e.later(d.w, func() {
		ids := c.take()
		var rows []*R
		for r := range d.table.All() {
			if _, ok := ids[owner(r)]; ok {
				rows = append(rows, r)
			}
		}
		for _, r := range rows {
			d.change(&event.Base{Time: ids[owner(r)], Type: "APPLICATION_DELETE"}, d.key(r), func(*R) *R { return nil })
		}
	})
}

func (e *Engine) applyPolicy(it *item) outcome {
	ev, ok := it.event.(event.PolicyChanged)
	if !ok || ev.Name == "" {
		return outUnknown
	}
	var d *dataset[policyKey, throttle.Policy]
	var kind throttle.PolicyKind
	switch strings.ToUpper(ev.Kind) {
	case "SUBSCRIPTION":
		d, kind = e.subscriptionPolicies, throttle.PolicySubscription
	case "APPLICATION":
		d, kind = e.applicationPolicies, throttle.PolicyApplication
	case "API":
		d, kind = e.apiPolicies, throttle.PolicyAPI
	default:
		return outUnknown
	}
	k := policyKey{e.policyTenant(ev.TenantDomain), ev.Name}
	out := d.change(&ev.Base, k, func(cur *throttle.Policy) *throttle.Policy {
		if ev.Action == event.Delete {
			return nil
		}
		if d == e.apiPolicies {
			return cur // condition groups are not in the event
		}
		row := throttle.Policy{Kind: kind, Tenant: k.tenant, Name: ev.Name, ID: ev.ID}
		if cur != nil {
			row = *cur
		}
		if d == e.subscriptionPolicies {
			row.BurstCount, row.BurstUnit = max(ev.RateLimitCount, 0), ev.RateLimitUnit
			row.StopOnQuotaReach = ev.StopOnQuotaReach
			row.GraphQLMaxDepth, row.GraphQLMaxComplexity = ev.GraphQLMaxDepth, ev.GraphQLMaxComplexity
		}
		return &row
	})
	if d.verdict != stale && ev.Action != event.Delete {
		d.ask(k, nil) // the limits are in no event
	}
	return out
}

// policyTenant is the tenant of a policy event that names none.
func (e *Engine) policyTenant(named string) string {
	if named != "" {
		return canonicalTenant(named)
	}
	if t := e.opt.Tenants[0]; t != "" && t != allTenants {
		return canonicalTenant(t)
	}
	return superTenant
}

func (e *Engine) applyThrottleData(it *item) outcome {
	switch ev := it.event.(type) {
	case event.DenyChanged:
		if ev.Malformed {
			e.deny.doubt(e.opt.RefetchDelay)
			return outMalformed
		}
		row := denyOfEvent(&ev)
		if ev.Active && unreadable(&row) {
			e.deny.doubt(e.opt.RefetchDelay)
			e.warnDeny(&row)
		}
		return e.deny.change(&ev.Base, denyKeyOf(&row), func(*throttle.DenyCondition) *throttle.DenyCondition {
			if !ev.Active {
				return nil
			}
			return &row
		})
	case event.KeyTemplateChanged:
		// The list has the last word: messages of one change come swapped, and without a usable time.
		e.keyTemplates.request(time.Now().Add(e.opt.RefetchDelay))
		out := applied
		if ev.Old != "" {
			out = e.template(&ev.Base, ev.Old, true)
		}
		if ev.Template != "" {
			out = e.template(&ev.Base, ev.Template, ev.Remove)
		}
		return out
	}
	return outUnknown
}

func (e *Engine) template(b *event.Base, template string, remove bool) outcome {
	return e.keyTemplates.change(b, template, func(*throttle.KeyTemplate) *throttle.KeyTemplate {
		if remove {
			return nil
		}
		return &throttle.KeyTemplate{Template: template, UpdatedAt: b.Time}
	})
}

// templateTie: a remove that is not newer than the add is ignored.
func templateTie(before, after *throttle.KeyTemplate) bool { return before == nil || after != nil }

func (e *Engine) applyRevoked(it *item) outcome {
	ev, ok := it.event.(event.Revoked)
	if !ok {
		return outUnknown
	}
	if ev.Kind == event.RevokeReload {
		e.revoked.request(time.Now().Add(e.opt.RefetchDelay))
		return applied
	}
	now := time.Now().UnixMilli()
	r := revocationOf(&ev, now, origin{Kind: "event", At: now, ID: ev.EventID})
	if r.Value == "" {
		return outMalformed
	}
	e.opt.Domains.Revoke(r)
	e.dirty.Store(true)
	e.revocationChanged(r)
	return applied
}

func (e *Engine) applyKeyManager(it *item) outcome {
	ev, ok := it.event.(event.KeyManagerChanged)
	if !ok || ev.Name == "" {
		return outUnknown
	}
	e.keyManagers.request(time.Now().Add(e.opt.RefetchDelay))
	tenant := ev.Tenant
	if tenant == "" {
		tenant = e.policyTenant(ev.TenantDomain)
	}
	k := e.keyManagerKey(tenant, ev.Name)
	return e.keyManagers.change(&ev.Base, k, func(cur *keymanager.KeyManager) *keymanager.KeyManager {
		if strings.EqualFold(ev.Action, "delete") {
			return nil
		}
		if ev.Configuration == nil && cur != nil {
			row := *cur
			row.Enabled = ev.Enabled
			return &row
		}
		row := keyManagerOf(k.name, ev.KMType, k.tenant, ev.UUID, ev.Enabled, ev.Configuration)
		if cur != nil {
			keep(&row.UUID, cur.UUID)
			keep(&row.Type, cur.Type)
		}
		return &row
	})
}

// keyManagerKey finds a key manager by name, exact case first.
func (e *Engine) keyManagerKey(tenant, name string) kmKey {
	k := kmKey{canonicalTenant(tenant), name}
	if e.keyManagers.table.Get(k) != nil {
		return k
	}
	for r := range e.keyManagers.table.All() {
		if strings.EqualFold(r.Name, name) && strings.EqualFold(r.Tenant, tenant) {
			return e.keyManagers.key(r)
		}
	}
	return k
}

func (e *Engine) applyScope(it *item) outcome {
	ev, ok := it.event.(event.ScopeChanged)
	if !ok || ev.Name == "" {
		return outUnknown
	}
	return e.scopes.change(&ev.Base, ev.Name, func(*Scope) *Scope {
		if ev.Action == event.Delete {
			return nil
		}
		return &Scope{Name: ev.Name, Roles: ev.Roles}
	})
}
