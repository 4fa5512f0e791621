package agent

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"gatehouse/agent/admin"
	"gatehouse/agent/config"
	"gatehouse/keymanager"
	"gatehouse/keymanager/registry"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/subscription/store"
	"gatehouse/throttle"
)

// The views are the entries of the admin API: the product's own terms, in snake_case, and nothing secret.

type apiView struct {
	ID             string         `json:"id"`
	APIID          int64          `json:"api_id"`
	Name           string         `json:"name"`
	Version        string         `json:"version"`
	Context        string         `json:"context"`
	Type           string         `json:"type"`
	Lifecycle      string         `json:"lifecycle"`
	Provider       string         `json:"provider"`
	Policy         string         `json:"policy"`
	Tenant         string         `json:"tenant"`
	DefaultVersion bool           `json:"default_version"`
	Deployed       bool           `json:"deployed"`
	Revision       string         `json:"revision,omitempty"`
	Environments   []string       `json:"environments"`
	Operations     []resourceView `json:"operations"`
	Refused        string         `json:"refused,omitempty"`
	Notes          []string       `json:"notes,omitempty"` // what of the definition has no effect here
	Origin         admin.Origin   `json:"origin"`
	DeployedFrom   *admin.Origin  `json:"deployed_from,omitempty"`
}

type resourceView struct {
	Method    string   `json:"method"`
	Template  string   `json:"template"`
	Policy    string   `json:"policy"`
	Unsecured bool     `json:"unsecured"`
	Scopes    []string `json:"scopes"`
}

type applicationView struct {
	ApplicationID int64             `json:"application_id"`
	UUID          string            `json:"uuid"`
	Name          string            `json:"name"`
	Owner         string            `json:"owner"`
	Policy        string            `json:"policy"`
	TokenType     string            `json:"token_type"`
	Tenant        string            `json:"tenant"`
	Groups        []string          `json:"groups"`
	Attributes    map[string]string `json:"attributes"`
	Origin        admin.Origin      `json:"origin"`
}

type subscriptionView struct {
	SubscriptionID  int64        `json:"subscription_id"`
	UUID            string       `json:"uuid"`
	APIID           int64        `json:"api_id"`
	APIUUID         string       `json:"api_uuid"`
	ApplicationID   int64        `json:"application_id"`
	ApplicationUUID string       `json:"application_uuid"`
	Policy          string       `json:"policy"`
	State           string       `json:"state"`
	Tenant          string       `json:"tenant"`
	Origin          admin.Origin `json:"origin"`
}

type keyMappingView struct {
	ID            string       `json:"id"`
	ConsumerKey   string       `json:"consumer_key"`
	KeyManager    string       `json:"key_manager"`
	KeyType       string       `json:"key_type"`
	ApplicationID int64        `json:"application_id"`
	Tenant        string       `json:"tenant"`
	Origin        admin.Origin `json:"origin"`
}

type keyManagerView struct {
	ID               string                 `json:"id"`
	Name             string                 `json:"name"`
	Tenant           string                 `json:"tenant"`
	Type             string                 `json:"type"`
	Enabled          bool                   `json:"enabled"`
	Issuer           string                 `json:"issuer"`
	ConsumerKeyClaim string                 `json:"consumer_key_claim"`
	ScopesClaim      string                 `json:"scopes_claim"`
	SelfValidate     bool                   `json:"self_validate"`
	Keys             *registry.ManagerState `json:"keys,omitempty"`
	Origin           admin.Origin           `json:"origin"`
}

type denyView struct {
	ID     string       `json:"id"`
	Kind   string       `json:"kind"`
	Tenant string       `json:"tenant"`
	Value  string       `json:"value,omitempty"`
	From   string       `json:"from,omitempty"`
	To     string       `json:"to,omitempty"`
	Invert bool         `json:"invert"`
	Number int64        `json:"number,omitempty"`
	Inert  string       `json:"inert,omitempty"` // why it is not enforced
	Origin admin.Origin `json:"origin"`
}

type keyTemplateView struct {
	ID       string       `json:"id"`
	Template string       `json:"template"`
	Inert    string       `json:"inert,omitempty"` // why it can never match
	Origin   admin.Origin `json:"origin"`
}

type policyView struct {
	ID               string       `json:"id"`
	Kind             string       `json:"kind"`
	Name             string       `json:"name"`
	Tenant           string       `json:"tenant"`
	Limit            *limitView   `json:"limit"`
	BurstCount       int64        `json:"burst_count,omitempty"`
	BurstUnit        string       `json:"burst_unit,omitempty"`
	StopOnQuotaReach bool         `json:"stop_on_quota_reach"`
	MaxDepth         int64        `json:"graphql_max_depth,omitempty"`
	MaxComplexity    int64        `json:"graphql_max_complexity,omitempty"`
	ConditionGroups  int          `json:"condition_groups"`
	Origin           admin.Origin `json:"origin"`
}

type limitView struct {
	QuotaType string `json:"quota_type"`
	Count     int64  `json:"count"`
	UnitTime  int64  `json:"unit_time"`
	TimeUnit  string `json:"time_unit"`
}

type throttledKeyView struct {
	ID         string       `json:"id"`
	Key        string       `json:"key"`
	Until      admin.Time   `json:"until"`
	Conditions bool         `json:"conditions"`
	Inert      string       `json:"inert,omitempty"` // why it, or a condition group of it, is not enforced
	Origin     admin.Origin `json:"origin"`
}

type revokedView struct {
	ID        string       `json:"id"`
	Kind      string       `json:"kind"`
	Before    admin.Time   `json:"before,omitempty"`
	ExpiresAt admin.Time   `json:"expires_at"`
	Tenant    string       `json:"tenant"`
	Origin    admin.Origin `json:"origin"`
}

type upstreamView struct {
	ID       string   `json:"id"`
	API      string   `json:"api"`
	Version  string   `json:"version"`
	KeyType  string   `json:"key_type"`
	Resource string   `json:"resource,omitempty"`
	Kind     string   `json:"kind"`
	URLs     []string `json:"urls"`
	Hosts    []string `json:"hosts"` // where the API answers with these; none: everywhere
}

func origin[O ~struct {
	Kind string
	At   int64
	ID   string
}](o O) admin.Origin {
	v := struct {
		Kind string
		At   int64
		ID   string
	}(o)
	return admin.Origin{Kind: v.Kind, At: admin.Time(v.At), ID: v.ID}
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// idOf names a row by its database number, by its UUID where it has none.
func idOf(id int64, uuid string) string {
	if id != 0 {
		return strconv.FormatInt(id, 10)
	}
	return uuid
}

// entries makes a table of a sequence of rows.
func entries[R any](all func() iter.Seq[R], entry func(R) admin.Entry) admin.Table {
	return admin.Table{Each: func(yield func(admin.Entry) bool) {
		for row := range all() {
			if !yield(entry(row)) {
				return
			}
		}
	}}
}

func (a *Agent) tables() map[string]admin.Table {
	d := &a.domains
	subscriptions := entries(d.store.Subscriptions().All, func(s *subscription.Subscription) admin.Entry {
		return admin.Entry{ID: idOf(s.ID, s.UUID), Name: s.Policy, Render: func() any { return subscriptionOf(s) }}
	})
	subscriptions.Get = func(id string) (any, bool) {
		n, err := strconv.ParseInt(id, 10, 64)
		if err != nil {
			return nil, false
		}
		s := d.store.Subscriptions().Get(n)
		if s == nil {
			return nil, false
		}
		return subscriptionOf(s), true
	}
	mappings := entries(d.store.KeyMappings().All, func(m *subscription.KeyMapping) admin.Entry {
		return admin.Entry{ID: mappingID(m), Name: m.KeyManager, Render: func() any { return mappingOf(m) }}
	})
	mappings.Get = func(id string) (any, bool) {
		for i := range id { // either name may hold an @
			if id[i] != '@' {
				continue
			}
			if m := d.store.KeyMappings().Get(store.MappingKey{ConsumerKey: id[:i], KeyManager: id[i+1:]}); m != nil {
				return mappingOf(m), true
			}
		}
		return nil, false
	}
	return map[string]admin.Table{
		"apis": {Each: a.eachAPI},
		"applications": entries(d.store.Applications().All, func(r *subscription.Application) admin.Entry {
			return admin.Entry{ID: idOf(r.ID, r.UUID), Name: r.Name, Render: func() any { return applicationOf(r) }}
		}),
		"subscriptions": subscriptions,
		"key-mappings":  mappings,
		"key-managers": entries(func() iter.Seq[keymanager.KeyManager] { return slices.Values(d.keyManagers.All()) }, func(km keymanager.KeyManager) admin.Entry {
			return admin.Entry{ID: keyManagerID(&km), Name: km.Name, Render: func() any { return a.keyManagerOf(&km) }}
		}),
		"deny-policies": entries(func() iter.Seq[throttle.DenyCondition] { return slices.Values(d.deny.All()) }, func(c throttle.DenyCondition) admin.Entry {
			return admin.Entry{ID: denyID(&c), Name: c.Value, Render: func() any { return denyOf(&c) }}
		}),
		"key-templates": entries(func() iter.Seq[throttle.KeyTemplate] { return slices.Values(d.templates.All()) }, func(t throttle.KeyTemplate) admin.Entry {
			return admin.Entry{ID: t.Template, Name: t.Template, Render: func() any { return keyTemplateOf(&t) }}
		}),
		"policies": entries(func() iter.Seq[throttle.Policy] { return slices.Values(d.policies.All("")) }, func(p throttle.Policy) admin.Entry {
			return admin.Entry{ID: policyID(&p), Name: p.Name, Render: func() any { return policyOf(&p) }}
		}),
		"throttled-keys": entries(func() iter.Seq[throttle.Decision] { return slices.Values(d.decisions.All()) }, func(t throttle.Decision) admin.Entry {
			return admin.Entry{ID: t.Key, Name: t.Key, Render: func() any {
				return throttledKeyView{ID: t.Key, Key: t.Key, Until: admin.Time(t.ExpiresAt), Conditions: len(t.Conditions) > 0, Inert: t.Inert, Origin: origin(t.Origin)}
			}}
		}),
		"revoked-tokens": entries(func() iter.Seq[keymanager.Revocation] { return slices.Values(d.revocations.All(0)) }, func(r keymanager.Revocation) admin.Entry {
			return admin.Entry{ID: r.Value, Name: r.Value, Render: func() any { return revokedOf(&r) }}
		}),
		"api-keys": entries(a.apiKeys.store.All, func(k *keymanager.OpaqueKey) admin.Entry {
			return admin.Entry{ID: opaqueKeyID(k), Name: k.Name, Render: func() any { return opaqueKeyOf(k) }}
		}),
		"upstreams": {Each: a.eachUpstream},
	}
}

// apiID names an API by its UUID, by its database number where it has none.
func apiID(r *subscription.API) string {
	if r.UUID != "" {
		return r.UUID
	}
	return idOf(r.ID, "")
}

// eachAPI walks over the APIs that are known by metadata, deployed, or both.
func (a *Agent) eachAPI(yield func(admin.Entry) bool) {
	refused := a.engine.State().Refused
	deployed := make(map[string]*definition.API)
	for _, d := range a.proxy.APIs() {
		deployed[d.UUID] = d
	}
	for row := range a.domains.store.APIs().All() {
		id := apiID(row)
		def := deployed[row.UUID]
		delete(deployed, row.UUID)
		if !yield(admin.Entry{ID: id, Name: row.Name + " " + row.Context, Render: func() any { return apiOf(id, row, def, refused[row.UUID]) }}) {
			return
		}
	}
	for id, def := range deployed {
		if !yield(admin.Entry{ID: id, Name: def.Name + " " + def.Context, Render: func() any { return apiOf(id, nil, def, refused[id]) }}) {
			return
		}
	}
}

// eachUpstream walks over the endpoints of the deployed APIs.
func (a *Agent) eachUpstream(yield func(admin.Entry) bool) {
	var served []*definition.API
	for _, d := range a.proxy.APIs() {
		served = append(append(served, d), d.Variants...)
	}
	for i, d := range served {
		place := "" // a variant is the same API on other hosts
		if i > 0 && served[i-1].UUID == d.UUID {
			place = strings.Join(d.Hosts, ",")
		}
		add := func(e *definition.Endpoint, keyType, resource string) bool {
			if e == nil {
				return true
			}
			v := upstreamView{API: d.Name, Version: d.Version, KeyType: keyType, Resource: resource, Kind: string(e.Kind), URLs: notNil(maskAll(e.URLs))}
			v.ID = strings.Trim(d.UUID+":"+strings.ToLower(keyType)+":"+resource, ":")
			if v.Hosts = notNil(d.Hosts); place != "" {
				v.ID += "@" + place
			}
			return yield(admin.Entry{ID: v.ID, Name: d.Name + " " + strings.Join(v.URLs, " "), Render: func() any { return v }})
		}
		if !add(d.Production, "PRODUCTION", "") || !add(d.Sandbox, "SANDBOX", "") {
			return
		}
		for i := range d.Operations {
			o := &d.Operations[i]
			if !add(o.Production, "PRODUCTION", o.Method+" "+o.Template) || !add(o.Sandbox, "SANDBOX", o.Method+" "+o.Template) {
				return
			}
		}
	}
}

func maskAll(urls []string) []string {
	out := make([]string, len(urls))
	for i, u := range urls {
		out[i] = config.MaskURL(u)
	}
	return out
}

func apiOf(id string, row *subscription.API, def *definition.API, refused string) any {
	v := apiView{ID: id, Refused: refused, Environments: []string{}, Operations: []resourceView{}}
	if row != nil {
		v.APIID, v.Name, v.Version, v.Context, v.Type, v.Lifecycle = row.ID, row.Name, row.Version, row.Context, row.Type, row.Status
		v.Provider, v.Policy, v.Tenant, v.DefaultVersion, v.Origin = row.Provider, row.Policy, row.Tenant, row.IsDefault, origin(row.Origin)
		for _, r := range row.Resources {
			v.Operations = append(v.Operations, resourceView{Method: r.Method, Template: r.Pattern, Policy: r.Policy, Unsecured: r.Auth == "None", Scopes: notNil(r.Scopes)})
		}
	}
	if def != nil {
		from := origin(def.Origin)
		v.Deployed, v.Revision, v.Environments, v.DeployedFrom, v.Notes = true, def.RevisionID, notNil(slices.Clone(def.Environments)), &from, def.Notes
		for _, other := range def.Variants {
			v.Environments = append(v.Environments, other.Environments...)
		}
		if row == nil {
			v.APIID, v.Name, v.Version, v.Context, v.Type, v.Lifecycle = def.ID, def.Name, def.Version, def.Context, def.Type, def.Lifecycle
			v.Provider, v.Policy, v.Tenant, v.DefaultVersion, v.Origin = def.Provider, def.Tier, def.Tenant, def.IsDefault, from
		}
		v.Operations = v.Operations[:0]
		for _, o := range def.Operations {
			v.Operations = append(v.Operations, resourceView{Method: o.Method, Template: o.Template, Policy: o.Tier, Unsecured: o.Unsecured, Scopes: notNil(o.Scopes)})
		}
	}
	return v
}

func applicationOf(r *subscription.Application) any {
	attributes := r.Attributes
	if attributes == nil {
		attributes = map[string]string{}
	}
	return applicationView{
		ApplicationID: r.ID, UUID: r.UUID, Name: r.Name, Owner: r.Owner, Policy: r.Policy, TokenType: r.TokenType, Tenant: r.Tenant,
		Groups: notNil(r.GroupIDs), Attributes: attributes, Origin: origin(r.Origin),
	}
}

func subscriptionOf(s *subscription.Subscription) any {
	return subscriptionView{
		SubscriptionID: s.ID, UUID: s.UUID, APIID: s.APIID, APIUUID: s.APIUUID, ApplicationID: s.ApplicationID, ApplicationUUID: s.ApplicationUUID,
		Policy: s.Policy, State: string(s.State), Tenant: s.Tenant, Origin: origin(s.Origin),
	}
}

func mappingID(m *subscription.KeyMapping) string { return m.ConsumerKey + "@" + m.KeyManager }

func mappingOf(m *subscription.KeyMapping) any {
	return keyMappingView{
		ID: mappingID(m), ConsumerKey: m.ConsumerKey, KeyManager: m.KeyManager, KeyType: string(m.KeyType), ApplicationID: m.ApplicationID,
		Tenant: m.Tenant, Origin: origin(m.Origin),
	}
}

func keyManagerID(km *keymanager.KeyManager) string { return km.Tenant + ":" + km.Name }

func (a *Agent) keyManagerOf(km *keymanager.KeyManager) any {
	v := keyManagerView{
		ID: keyManagerID(km), Name: km.Name, Tenant: km.Tenant, Type: km.Type, Enabled: km.Enabled, Issuer: km.Issuer,
		ConsumerKeyClaim: km.ConsumerKeyClaim, ScopesClaim: km.ScopesClaim, SelfValidate: km.SelfValidate, Origin: origin(km.Origin),
	}
	for _, m := range a.domains.keyManagers.State().Managers {
		if m.Name == km.Name && m.Tenant == km.Owner() {
			v.Keys = &m
			break
		}
	}
	return v
}

func denyID(c *throttle.DenyCondition) string {
	if c.Kind == throttle.DenyIP || c.Kind == throttle.DenyIPRange {
		return fmt.Sprintf("%s:%s:%d", c.Kind, c.Tenant, c.ID)
	}
	return fmt.Sprintf("%s:%s", c.Kind, c.Value)
}

func denyOf(c *throttle.DenyCondition) any {
	v := denyView{ID: denyID(c), Kind: string(c.Kind), Tenant: c.Tenant, Value: c.Value, Invert: c.Invert, Number: c.ID, Inert: c.Inert, Origin: origin(c.Origin)}
	if c.From.IsValid() {
		v.From = c.From.String()
	}
	if c.To.IsValid() {
		v.To = c.To.String()
	}
	return v
}

func keyTemplateOf(t *throttle.KeyTemplate) any {
	return keyTemplateView{ID: t.Template, Template: t.Template, Inert: t.Inert, Origin: origin(t.Origin)}
}

func policyID(p *throttle.Policy) string { return string(p.Kind) + ":" + p.Tenant + ":" + p.Name }

func policyOf(p *throttle.Policy) any {
	v := policyView{
		ID: policyID(p), Kind: string(p.Kind), Name: p.Name, Tenant: p.Tenant, BurstCount: p.BurstCount, BurstUnit: p.BurstUnit,
		StopOnQuotaReach: p.StopOnQuotaReach, MaxDepth: p.GraphQLMaxDepth, MaxComplexity: p.GraphQLMaxComplexity, ConditionGroups: len(p.Groups), Origin: origin(p.Origin),
	}
	if p.Default.QuotaType != "" {
		v.Limit = &limitView{QuotaType: p.Default.QuotaType, Count: p.Default.Count, UnitTime: p.Default.UnitTime, TimeUnit: p.Default.TimeUnit}
	}
	return v
}

func revokedOf(r *keymanager.Revocation) any {
	kind := "token"
	switch r.Kind {
	case keymanager.RevokedConsumerKey:
		kind = "consumer_key"
	case keymanager.RevokedSubject:
		kind = "subject"
	}
	return revokedView{ID: r.Value, Kind: kind, Before: admin.Time(r.Before), ExpiresAt: admin.Time(r.ExpiresAt), Tenant: r.Tenant, Origin: origin(r.Origin)}
}
