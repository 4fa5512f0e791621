package sync

import (
	"cmp"
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
	case event.APIKeyChanged:
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
	case event.APIKeyChanged:
		return e.apiKeys.w
	}
	return nil
}

func (e *Engine) applyApplication(it *item) outcome {
	ev, ok := it.event.(event.ApplicationChanged)
	if !ok || ev.ID == 0 && ev.UUID == "" {
		return outUnknown
	}
	named := subscription.Application{ID: ev.ID, UUID: ev.UUID}
	k := e.applications.identify(&named)
	if ev.Action == event.Delete {
		e.applications.learn(&named)
		// Also when it is not known, or known by newer news: what belonged to it before is gone, and a list that is on its
		// way may still bring it.
		e.applicationDeleted(named.ID, ev.UUID, e.eventTime(ev.Time, it.at))
		return e.applications.change(&ev.Base, k, func(*subscription.Application) *subscription.Application { return nil })
	}
	partial := false
	out := e.applications.change(&ev.Base, k, func(cur *subscription.Application) *subscription.Application {
		row := subscription.Application{
			ID: named.ID, UUID: ev.UUID, Name: ev.Name, Owner: ev.Owner, Policy: ev.Policy,
			TokenType: ev.TokenType, Tenant: canonicalTenant(ev.TenantDomain), Attributes: ev.Attributes,
		}
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
		e.applications.ask(k, nil) // events of 3.2 do not name the owner
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
	if ev.Action != event.Delete && e.applicationGone(ev.ApplicationID, ev.ApplicationUUID, ev.Time) {
		return outStale
	}
	e.misses.forget(mappingMiss(k))
	return e.mappings.change(&ev.Base, k, func(cur *subscription.KeyMapping) *subscription.KeyMapping {
		if ev.Action == event.Delete {
			return nil
		}
		row := subscription.KeyMapping{
			ConsumerKey: k.ConsumerKey, KeyManager: k.KeyManager, KeyType: subscription.KeyType(strings.ToUpper(ev.KeyType)),
			ApplicationID: ev.ApplicationID, ApplicationUUID: ev.ApplicationUUID, Tenant: canonicalTenant(ev.TenantDomain),
		}
		if cur != nil && sameReference(cur.ApplicationID, row.ApplicationID, cur.ApplicationUUID, row.ApplicationUUID) {
			keep(&row.ApplicationUUID, cur.ApplicationUUID)
			row.ApplicationID = cmp.Or(row.ApplicationID, cur.ApplicationID)
			keep(&row.Tenant, cur.Tenant)
			keep((*string)(&row.KeyType), string(cur.KeyType))
		}
		return &row
	})
}

// sameReference reports whether two rows name one application, each by its number, its UUID or both.
func sameReference(id, otherID int64, uuid, otherUUID string) bool {
	if uuid != "" && otherUUID != "" {
		return uuid == otherUUID
	}
	return id != 0 && id == otherID
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
	if !ok || ev.ID == 0 && ev.UUID == "" {
		return outUnknown
	}
	named := subscription.Subscription{ID: ev.ID, UUID: ev.UUID}
	k := e.subscriptions.identify(&named)
	if ev.Action == event.Delete {
		e.subscriptions.learn(&named)
		return e.subscriptions.change(&ev.Base, k, func(*subscription.Subscription) *subscription.Subscription { return nil })
	}
	if e.applicationGone(ev.ApplicationID, ev.ApplicationUUID, ev.Time) {
		return outStale
	}
	return e.subscriptions.change(&ev.Base, k, func(cur *subscription.Subscription) *subscription.Subscription {
		row := subscription.Subscription{
			ID: named.ID, UUID: ev.UUID, APIID: ev.APIID, APIUUID: ev.APIUUID, ApplicationID: ev.ApplicationID,
			ApplicationUUID: ev.ApplicationUUID, Policy: ev.Policy, State: subscription.State(ev.State), Tenant: canonicalTenant(ev.TenantDomain),
		}
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
func (e *Engine) applicationGone(id int64, uuid string, t int64) bool {
	at := e.goneSince(id, uuid)
	return at != 0 && t != 0 && t <= at
}

// goneSince returns when an application was deleted, 0 when that is not known.
func (e *Engine) goneSince(id int64, uuid string) int64 {
	if e.hooks.noTombstone {
		return 0
	}
	e.goneMu.Lock()
	defer e.goneMu.Unlock()
	return sinceOf(e.gone, id, uuid, e.goneByUUID)
}

// sinceOf looks an application up by its number, and by its UUID where it has no number or, with byUUID, some have none.
func sinceOf(gone map[int64]int64, id int64, uuid string, byUUID bool) (at int64) {
	if id != 0 {
		at = gone[id]
	}
	if uuid != "" && (id == 0 || byUUID) {
		at = max(at, gone[subscription.RowKey(0, uuid)])
	}
	return at
}

// applicationChanged follows what the API Manager answered when it was asked for an application.
func (e *Engine) applicationChanged(before, after *subscription.Application) {
	if after != nil {
		e.misses.forget(applicationMiss(after.ID))
	}
	if after == nil && e.applications.asking {
		e.applicationDeleted(before.ID, before.UUID, e.applications.ledger.entries[before.Key()].time)
	}
}

// applicationDeleted takes an application's mappings and subscriptions away with it: the API Manager sends no events
// for them. What a list says is gone takes nothing away: the other lists say that for themselves, and are confirmed for
// themselves.
func (e *Engine) applicationDeleted(id int64, uuid string, at int64) {
	e.goneMu.Lock()
	if len(e.gone) >= maxGone {
		for k := range e.gone { // any: a few of the oldest facts are in the lists anyway
			delete(e.gone, k)
			if len(e.gone) < maxGone/2 {
				break
			}
		}
	}
	for _, k := range keysOf(id, uuid) {
		e.gone[k] = max(e.gone[k], at)
	}
	e.goneByUUID = e.goneByUUID || id == 0
	e.goneMu.Unlock()
	belongings(e, e.mappings, &e.orphanMappings, id, uuid, at, func(m *subscription.KeyMapping) (int64, string) { return m.ApplicationID, m.ApplicationUUID })
	belongings(e, e.subscriptions, &e.orphanSubscriptions, id, uuid, at, func(s *subscription.Subscription) (int64, string) { return s.ApplicationID, s.ApplicationUUID })
}

// keysOf are the keys under which an application may be looked for.
func keysOf(id int64, uuid string) (keys []int64) {
	if id != 0 {
		keys = append(keys, id)
	}
	if uuid != "" {
		keys = append(keys, subscription.RowKey(0, uuid))
	}
	return keys
}

// maxGone bounds the deleted applications that are remembered for their belongings.
const maxGone = 20_000

// cascade collects deleted applications for one table of belongings, so that a burst of deletions costs one walk.
type cascade struct {
	mu     sync.Mutex
	ids    map[int64]int64 // application to time of its deletion, as Engine.gone
	byUUID bool
}

func (c *cascade) add(id int64, uuid string, at int64) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ids == nil {
		c.ids = make(map[int64]int64)
		first = true
	}
	for _, k := range keysOf(id, uuid) {
		c.ids[k] = max(c.ids[k], at)
	}
	c.byUUID = c.byUUID || id == 0
	return first
}

func (c *cascade) take() (ids map[int64]int64, byUUID bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids, byUUID = c.ids, c.byUUID
	c.ids, c.byUUID = nil, false
	return ids, byUUID
}

// belongings removes the rows of deleted applications, on the worker that owns them.
func belongings[K comparable, R any](e *Engine, d *dataset[K, R], c *cascade, id int64, uuid string, at int64, owner func(*R) (int64, string)) {
	if !c.add(id, uuid, at) {
		return
	}
	e.later(d.w, func() {
		ids, byUUID := c.take()
		since := func(r *R) int64 {
			id, uuid := owner(r)
			return sinceOf(ids, id, uuid, byUUID)
		}
		var rows []*R
		for r := range d.table.All() {
			if since(r) != 0 {
				rows = append(rows, r)
			}
		}
		for _, r := range rows {
			d.change(&event.Base{Time: since(r), Type: "APPLICATION_DELETE"}, d.key(r), func(*R) *R { return nil })
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
