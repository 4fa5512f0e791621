package emulator

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"gatehouse/integration/emulator/broker"
)

// Changes alters the model and, as the API Manager does, publishes the event that belongs to the change in the same step.
// Those of Emulator.Silent change the model alone, as a change that happens while the broker is away. All methods are
// safe for concurrent use.
type Changes struct {
	e      *Emulator
	silent bool
}

// base ends every inner event of a notification (contract events.md 5.1).
type base struct {
	EventID      string `json:"eventId"`
	TimeStamp    int64  `json:"timeStamp"`
	Type         string `json:"type"`
	TenantID     int64  `json:"tenantId"`
	TenantDomain string `json:"tenantDomain,omitempty"`
}

type apiEvent struct {
	APIName     string `json:"apiName"`
	APIID       int64  `json:"apiId"`
	UUID        string `json:"uuid"`
	APIVersion  string `json:"apiVersion"`
	APIContext  string `json:"apiContext"`
	APIProvider string `json:"apiProvider"`
	APIType     string `json:"apiType"`
	APIStatus   string `json:"apiStatus"`
	Action      string `json:"action,omitempty"`
	base
}

type deployEvent struct {
	APIID          any      `json:"apiId"` // a number; in 3.2 the UUID
	UUID           string   `json:"uuid,omitempty"`
	Name           string   `json:"name,omitempty"`
	Version        string   `json:"version,omitempty"`
	Provider       string   `json:"provider,omitempty"`
	APIType        string   `json:"apiType,omitempty"`
	Context        string   `json:"context,omitempty"`
	GatewayLabels  []string `json:"gatewayLabels"`
	AssociatedAPIs *[]any   `json:"associatedApis,omitempty"`
	Deleted        *bool    `json:"deleted,omitempty"`
	base
}

type applicationEvent struct {
	UUID              string            `json:"uuid"`
	ApplicationID     int64             `json:"applicationId"`
	ApplicationName   string            `json:"applicationName"`
	TokenType         string            `json:"tokenType"`
	ApplicationPolicy string            `json:"applicationPolicy"`
	GroupID           string            `json:"groupId"`
	Attributes        map[string]string `json:"attributes"`
	Subscriber        string            `json:"subscriber,omitempty"` // absent in 3.2
	base
}

type keyMappingEvent struct {
	ApplicationUUID string `json:"applicationUUID"`
	ApplicationID   int64  `json:"applicationId"`
	ConsumerKey     string `json:"consumerKey"`
	KeyType         string `json:"keyType"`
	KeyManager      string `json:"keyManager"`
	base
}

type subscriptionEvent struct {
	SubscriptionID    int64  `json:"subscriptionId"`
	SubscriptionUUID  string `json:"subscriptionUUID"`
	APIID             int64  `json:"apiId"`
	APIUUID           string `json:"apiUUID"`
	ApplicationID     int64  `json:"applicationId"`
	ApplicationUUID   string `json:"applicationUUID"`
	PolicyID          string `json:"policyId"`
	SubscriptionState string `json:"subscriptionState"`
	base
}

type policyEvent struct {
	PolicyID                 int64   `json:"policyId"`
	PolicyName               string  `json:"policyName"`
	QuotaType                string  `json:"quotaType"`
	SubscriberCount          *int64  `json:"subscriberCount,omitempty"`
	RateLimitCount           *int64  `json:"rateLimitCount,omitempty"`
	RateLimitTimeUnit        string  `json:"rateLimitTimeUnit,omitempty"`
	StopOnQuotaReach         *bool   `json:"stopOnQuotaReach,omitempty"`
	GraphQLMaxDepth          *int64  `json:"graphQLMaxDepth,omitempty"`
	GraphQLMaxComplexity     *int64  `json:"graphQLMaxComplexity,omitempty"`
	AddedConditionGroupIDs   []int64 `json:"addedConditionGroupIds,omitempty"`
	DeletedConditionGroupIDs []int64 `json:"deletedConditionGroupIds,omitempty"`
	PolicyType               string  `json:"policyType"`
	base
}

type scopeEvent struct {
	Name        string         `json:"name"`
	DisplayName string         `json:"displayName"`
	Description string         `json:"description,omitempty"`
	Roles       []string       `json:"roles"`
	Mappings    map[string]any `json:"mappings"`
	base
}

type templateEvent struct {
	State string `json:"keyTemplateState"`
	Old   string `json:"oldKeyTemplate,omitempty"`
	New   string `json:"newKeyTemplate,omitempty"`
	Only  string `json:"keyTemplate,omitempty"`
	base
}

func (c *Changes) base(kind, tenant string, at int64) base {
	return base{EventID: uuid.NewString(), TimeStamp: at, Type: kind, TenantID: c.e.m.tenantID(tenant), TenantDomain: tenant}
}

// notify publishes an inner event under its own type and time.
func (c *Changes) notify(kind string, at int64, inner any) {
	if c.silent {
		return
	}
	p, err := Notification(kind, at, inner)
	if err == nil {
		err = c.e.hub.Publish(broker.TopicNotification, p, at)
	}
	c.e.report(err)
}

func (c *Changes) publish(topic string, p broker.Payload) {
	if c.silent {
		return
	}
	c.e.report(c.e.hub.Publish(topic, p, time.Now().UnixMilli()))
}

// Notification wraps an inner event as the notification stream carries it.
func Notification(kind string, at int64, inner any) (broker.Payload, error) {
	b, err := json.Marshal(inner)
	if err != nil {
		return nil, fmt.Errorf("event %s: %w", kind, err)
	}
	return broker.Payload{{Name: "eventType", Value: kind}, {Name: "timestamp", Value: at}, {Name: "event", Value: base64.StdEncoding.EncodeToString(b)}}, nil
}

// AddTenant makes a tenant with a user, who signs in as user@domain.
func (c *Changes) AddTenant(domain, user, password string) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	if c.e.m.tenants[domain] == 0 {
		c.e.m.tenants[domain] = c.e.m.id("tenant", 0)
	}
	if user != "" {
		c.e.users[user+"@"+domain] = password
	}
}

// SetVHost says on which host the APIs of an environment are exposed.
func (c *Changes) SetVHost(tenant, environment, vhost string) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	c.e.m.vhosts[named{tenant, environment}] = vhost
}

// CreateAPI adds an API; ids that are zero are given. It is deployed where Environments says. The context must be full.
func (c *Changes) CreateAPI(a API) (API, error) {
	if a.Name == "" || a.Version == "" || !strings.HasPrefix(a.Context, "/") {
		return API{}, fmt.Errorf("API %q version %q context %q: name, version and a context that begins with / are needed", a.Name, a.Version, a.Context)
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	if a.UUID == "" {
		a.UUID = uuid.NewString()
	}
	if m.apis[a.UUID] != nil {
		return API{}, fmt.Errorf("API %s exists", a.UUID)
	}
	for _, other := range m.apis {
		if other.Context == a.Context {
			return API{}, fmt.Errorf("API %s has the context %s already", other.UUID, a.Context)
		}
	}
	a.APIID = m.id("api", a.APIID)
	if a.Organization == "" {
		a.Organization = tenantOfContext(a.Context)
	}
	a.Provider = or(a.Provider, "admin")
	a.APIType = or(a.APIType, "HTTP")
	a.Status = or(a.Status, "PUBLISHED")
	if a.URLMappings == nil {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH"} {
			a.URLMappings = append(a.URLMappings, URLMapping{AuthScheme: "Any", ThrottlingPolicy: "Unlimited", HTTPMethod: method, URLPattern: "/*", Scopes: []string{}})
		}
	}
	for i := range a.URLMappings {
		if a.URLMappings[i].Scopes == nil {
			a.URLMappings[i].Scopes = []string{}
		}
	}
	if a.APIPolicies == nil {
		a.APIPolicies = []any{}
	}
	labels := a.Environments
	a.Environments = nil
	m.apis[a.UUID] = &a
	at := m.stamp("api " + a.UUID)
	c.notify("API_CREATE", at, c.apiEvent(&a, "API_CREATE", "", at))
	if len(labels) > 0 {
		c.deploy(a.UUID, labels)
	}
	return *m.apis[a.UUID], nil
}

func (c *Changes) apiEvent(a *API, kind, action string, at int64) apiEvent {
	return apiEvent{
		APIName: a.Name, APIID: a.APIID, UUID: a.UUID, APIVersion: a.Version, APIContext: a.Context, APIProvider: a.Provider,
		APIType: a.APIType, APIStatus: a.Status, Action: action, base: c.base(kind, a.Organization, at),
	}
}

func (c *Changes) api(id string) (*API, error) {
	a := c.e.m.apis[id]
	if a == nil {
		return nil, fmt.Errorf("no API has the UUID %q", id)
	}
	return a, nil
}

// UpdateAPI changes an API's row. Its artifact changes with the next DeployAPI.
func (c *Changes) UpdateAPI(id string, change func(*API)) (API, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	old, err := c.api(id)
	if err != nil {
		return API{}, err
	}
	a := *old
	a.URLMappings = slices.Clone(a.URLMappings)
	change(&a)
	a.UUID, a.APIID = old.UUID, old.APIID
	action := ""
	if a.IsDefaultVersion != old.IsDefaultVersion {
		action = "DEFAULT_VERSION"
	}
	c.e.m.apis[id] = &a
	at := c.e.m.stamp("api " + id)
	c.notify("API_UPDATE", at, c.apiEvent(&a, "API_UPDATE", action, at))
	return a, nil
}

// SetLifecycle moves an API to a state of its life cycle; RETIRED takes it off every gateway.
func (c *Changes) SetLifecycle(id, status string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	old, err := c.api(id)
	if err != nil {
		return err
	}
	a := *old
	a.Status = status
	labels := a.Environments
	if status == "RETIRED" {
		a.Environments = nil
	}
	c.e.m.apis[id] = &a
	at := c.e.m.stamp("api " + id)
	c.notify("API_LIFECYCLE_CHANGE", at, c.apiEvent(&a, "API_LIFECYCLE_CHANGE", "", at))
	if status == "RETIRED" && len(labels) > 0 {
		c.deployment("REMOVE_API_FROM_GATEWAY", &a, labels, false)
	}
	return nil
}

// DeployAPI makes a new revision of an API and deploys it on the environments, beside those where it is already.
func (c *Changes) DeployAPI(id string, environments ...string) (API, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	if _, err := c.api(id); err != nil {
		return API{}, err
	}
	return c.deploy(id, environments), nil
}

func (c *Changes) deploy(id string, environments []string) API {
	m := c.e.m
	a := *m.apis[id]
	a.RevisionID++
	a.RevisionUUID = uuid.NewString()
	labels := slices.Clone(a.Environments)
	for _, e := range environments {
		if !slices.Contains(labels, e) {
			labels = append(labels, e)
		}
	}
	a.Environments = labels
	a.deployedAt = time.Now().UnixMilli()
	m.apis[id] = &a
	c.deployment("DEPLOY_API_IN_GATEWAY", &a, environments, false)
	return a
}

// UndeployAPI takes an API off the environments.
func (c *Changes) UndeployAPI(id string, environments ...string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	old, err := c.api(id)
	if err != nil {
		return err
	}
	a := *old
	a.Environments = slices.DeleteFunc(slices.Clone(a.Environments), func(e string) bool { return slices.Contains(environments, e) })
	c.e.m.apis[id] = &a
	c.deployment("REMOVE_API_FROM_GATEWAY", &a, environments, false)
	return nil
}

func (c *Changes) deployment(kind string, a *API, labels []string, deleted bool) {
	at := c.e.m.stamp("api " + a.UUID)
	b := c.base(kind, a.Organization, at)
	if c.e.profile.v32 {
		b.TenantDomain = ""
		c.notify(kind, at, deployEvent{APIID: a.UUID, GatewayLabels: labels, base: b})
		return
	}
	b.TenantID = 0 // as deploy events of 4.x have it
	c.notify(kind, at, deployEvent{
		APIID: a.APIID, UUID: a.UUID, Name: a.Name, Version: a.Version, Provider: a.Provider, APIType: a.APIType, Context: a.Context,
		GatewayLabels: labels, AssociatedAPIs: &[]any{}, Deleted: &deleted, base: b,
	})
}

// DeleteAPI removes an API with its subscriptions.
func (c *Changes) DeleteAPI(id string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	old, err := c.api(id)
	if err != nil {
		return err
	}
	a := *old
	delete(m.apis, id)
	if len(a.Environments) > 0 {
		c.deployment("REMOVE_API_FROM_GATEWAY", &a, a.Environments, true)
	}
	if c.e.profile.v32 {
		at := m.stamp("api " + id)
		c.notify("API_DELETE", at, c.apiEvent(&a, "API_DELETE", "", at))
	}
	for _, s := range sorted(m.subs, func(x, y Subscription) int { return int(x.SubscriptionID - y.SubscriptionID) }) {
		if s.APIUUID == id {
			c.dropSubscription(s)
		}
	}
	return nil
}

// CreateApplication adds an application; ids that are zero are given.
func (c *Changes) CreateApplication(a Application) (Application, error) {
	if a.Name == "" || a.SubName == "" {
		return Application{}, fmt.Errorf("application %q of %q: a name and an owner (SubName) are needed", a.Name, a.SubName)
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	if m.apps[a.ID] != nil {
		return Application{}, fmt.Errorf("application %d exists", a.ID)
	}
	a.ID = m.id("application", a.ID)
	if a.UUID == "" {
		a.UUID = uuid.NewString()
	}
	a.Policy = or(a.Policy, "Unlimited")
	a.TokenType = or(a.TokenType, "JWT")
	a.Organization = or(a.Organization, SuperTenant)
	if a.GroupIDs == nil {
		a.GroupIDs = []GroupID{}
	}
	if a.Attributes == nil {
		a.Attributes = map[string]string{}
	}
	m.apps[a.ID] = &a
	c.application("APPLICATION_CREATE", &a)
	return a, nil
}

func (c *Changes) application(kind string, a *Application) {
	at := c.e.m.stamp("application " + strconv.FormatInt(a.ID, 10))
	ev := applicationEvent{
		UUID: a.UUID, ApplicationID: a.ID, ApplicationName: a.Name, TokenType: a.TokenType, ApplicationPolicy: a.Policy,
		Attributes: a.Attributes, Subscriber: a.SubName, base: c.base(kind, a.Organization, at),
	}
	if len(a.GroupIDs) > 0 {
		ev.GroupID = a.GroupIDs[0].GroupID
	}
	if c.e.profile.v32 {
		ev.Subscriber = ""
	}
	c.notify(kind, at, ev)
}

// UpdateApplication changes an application.
func (c *Changes) UpdateApplication(id int64, change func(*Application)) (Application, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	old := c.e.m.apps[id]
	if old == nil {
		return Application{}, fmt.Errorf("no application has the id %d", id)
	}
	a := *old
	a.Attributes = maps.Clone(a.Attributes)
	change(&a)
	a.ID, a.UUID = old.ID, old.UUID
	c.e.m.apps[id] = &a
	c.application("APPLICATION_UPDATE", &a)
	return a, nil
}

// DeleteApplication removes an application with its keys and subscriptions, of which the one event tells.
func (c *Changes) DeleteApplication(id int64) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	a := m.apps[id]
	if a == nil {
		return fmt.Errorf("no application has the id %d", id)
	}
	delete(m.apps, id)
	maps.DeleteFunc(m.mappings, func(_ mappingKey, k *KeyMapping) bool { return k.ApplicationID == id })
	maps.DeleteFunc(m.subs, func(_ int64, s *Subscription) bool { return s.AppID == id })
	c.application("APPLICATION_DELETE", a)
	return nil
}

// AddKeyMapping gives an application a consumer key of a key manager.
func (c *Changes) AddKeyMapping(k KeyMapping) (KeyMapping, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	app := m.apps[k.ApplicationID]
	if app == nil || k.ConsumerKey == "" {
		return KeyMapping{}, fmt.Errorf("key mapping of %q: application %d must exist and the consumer key must not be empty", k.ConsumerKey, k.ApplicationID)
	}
	k.ApplicationUUID, k.Tenant = app.UUID, app.Organization
	k.KeyType = or(k.KeyType, "PRODUCTION")
	k.KeyManager = or(k.KeyManager, c.e.profile.residentName)
	m.mappings[mappingKey{k.ConsumerKey, k.KeyManager, k.Tenant}] = &k
	c.keyMapping("APPLICATION_REGISTRATION_CREATE", k)
	return k, nil
}

func (c *Changes) keyMapping(kind string, k KeyMapping) {
	at := c.e.m.stamp("mapping " + k.ConsumerKey + " " + k.KeyManager)
	c.notify(kind, at, keyMappingEvent{k.ApplicationUUID, k.ApplicationID, k.ConsumerKey, k.KeyType, k.KeyManager, c.base(kind, k.Tenant, at)})
}

// RemoveKeyMapping takes a consumer key away.
func (c *Changes) RemoveKeyMapping(consumerKey, keyManager string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	for key, k := range c.e.m.mappings {
		if key.consumerKey == consumerKey && key.keyManager == keyManager {
			delete(c.e.m.mappings, key)
			c.keyMapping("REMOVE_APPLICATION_KEYMAPPING", *k)
			return nil
		}
	}
	return fmt.Errorf("no application has the consumer key %q of key manager %q", consumerKey, keyManager)
}

// Subscribe adds a subscription of the application AppID to the API APIUUID. The manager announces it twice, ON_HOLD and
// then in its state, and so does this where AnnounceOnHold was asked for.
func (c *Changes) Subscribe(s Subscription) (Subscription, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	api, app := m.apis[s.APIUUID], m.apps[s.AppID]
	if api == nil || app == nil {
		return Subscription{}, fmt.Errorf("subscription of application %d to API %q: both must exist", s.AppID, s.APIUUID)
	}
	if m.subs[s.SubscriptionID] != nil {
		return Subscription{}, fmt.Errorf("subscription %d exists", s.SubscriptionID)
	}
	for _, other := range m.subs {
		if other.AppID == s.AppID && other.APIUUID == s.APIUUID {
			return Subscription{}, fmt.Errorf("application %d is subscribed to API %s already, by subscription %d", s.AppID, s.APIUUID, other.SubscriptionID)
		}
	}
	s.SubscriptionID = m.id("subscription", s.SubscriptionID)
	if s.SubscriptionUUID == "" {
		s.SubscriptionUUID = uuid.NewString()
	}
	s.APIID, s.ApplicationUUID, s.Tenant = api.APIID, app.UUID, api.Organization
	s.PolicyID = or(s.PolicyID, "Unlimited")
	s.SubscriptionState = or(s.SubscriptionState, "UNBLOCKED")
	if c.e.announceOnHold {
		first := s
		first.SubscriptionState = "ON_HOLD"
		c.subscription("SUBSCRIPTIONS_CREATE", first)
	}
	m.subs[s.SubscriptionID] = &s
	c.subscription("SUBSCRIPTIONS_CREATE", s)
	return s, nil
}

func (c *Changes) subscription(kind string, s Subscription) {
	at := c.e.m.stamp("subscription " + strconv.FormatInt(s.SubscriptionID, 10))
	c.notify(kind, at, subscriptionEvent{
		s.SubscriptionID, s.SubscriptionUUID, s.APIID, s.APIUUID, s.AppID, s.ApplicationUUID, s.PolicyID, s.SubscriptionState, c.base(kind, s.Tenant, at),
	})
}

// UpdateSubscription changes the state or the business plan of a subscription; "" keeps one.
func (c *Changes) UpdateSubscription(id int64, state, policy string) (Subscription, error) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	old := c.e.m.subs[id]
	if old == nil {
		return Subscription{}, fmt.Errorf("no subscription has the id %d", id)
	}
	s := *old
	s.SubscriptionState, s.PolicyID = or(state, s.SubscriptionState), or(policy, s.PolicyID)
	c.e.m.subs[id] = &s
	c.subscription("SUBSCRIPTIONS_UPDATE", s)
	return s, nil
}

// Unsubscribe removes a subscription.
func (c *Changes) Unsubscribe(id int64) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	s := c.e.m.subs[id]
	if s == nil {
		return fmt.Errorf("no subscription has the id %d", id)
	}
	c.dropSubscription(*s)
	return nil
}

func (c *Changes) dropSubscription(s Subscription) {
	delete(c.e.m.subs, s.SubscriptionID)
	c.subscription("SUBSCRIPTIONS_DELETE", s)
}

// PutPolicy adds or replaces a policy by its kind, tenant and name.
func (c *Changes) PutPolicy(p Policy) (Policy, error) {
	if p.Name == "" || !slices.Contains([]PolicyKind{SubscriptionPolicy, ApplicationPolicy, APIPolicy}, p.Kind) {
		return Policy{}, fmt.Errorf("policy %q of kind %q: a name and one of the kinds %s, %s, %s are needed", p.Name, p.Kind, SubscriptionPolicy, ApplicationPolicy, APIPolicy)
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	p.TenantDomain = or(p.TenantDomain, SuperTenant)
	p.Limit.QuotaType = or(p.Limit.QuotaType, "requestCount")
	if p.Kind == APIPolicy {
		p.ApplicableLevel = or(p.ApplicableLevel, "apiLevel")
	}
	key := policyKey{p.Kind, p.TenantDomain, p.Name}
	kind := "POLICY_CREATE"
	if old := m.policies[key]; old != nil {
		kind, p.ID = "POLICY_UPDATE", old.ID
	}
	p.ID = m.id("policy", p.ID)
	for i := range p.ConditionGroups {
		p.ConditionGroups[i].ID = m.id("group", p.ConditionGroups[i].ID)
	}
	m.policies[key] = &p
	c.policy(kind, p)
	return p, nil
}

func (c *Changes) policy(kind string, p Policy) {
	at := c.e.m.stamp("policy " + string(p.Kind) + " " + p.Name)
	ev := policyEvent{PolicyID: p.ID, PolicyName: p.Name, QuotaType: p.Limit.QuotaType, PolicyType: string(p.Kind), base: c.base(kind, p.TenantDomain, at)}
	switch p.Kind {
	case SubscriptionPolicy:
		stop, none := !p.ContinueOnQuotaReach, int64(0)
		ev.SubscriberCount, ev.RateLimitCount, ev.RateLimitTimeUnit = &none, &p.RateLimitCount, p.RateLimitTimeUnit
		ev.StopOnQuotaReach, ev.GraphQLMaxDepth, ev.GraphQLMaxComplexity = &stop, &p.GraphQLMaxDepth, &p.GraphQLMaxComplexity
	case APIPolicy:
		for _, g := range p.ConditionGroups {
			ev.AddedConditionGroupIDs = append(ev.AddedConditionGroupIDs, g.ID)
		}
	}
	c.notify(kind, at, ev)
}

// DeletePolicy removes a policy.
func (c *Changes) DeletePolicy(kind PolicyKind, tenant, name string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	key := policyKey{kind, or(tenant, SuperTenant), name}
	p := c.e.m.policies[key]
	if p == nil {
		return fmt.Errorf("no %s policy of %s has the name %q", kind, key.tenant, name)
	}
	delete(c.e.m.policies, key)
	c.policy("POLICY_DELETE", *p)
	return nil
}

// PutScope adds or replaces a scope.
func (c *Changes) PutScope(s Scope) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	s.Tenant = or(s.Tenant, SuperTenant)
	s.DisplayName = or(s.DisplayName, s.Name)
	if s.Roles == nil {
		s.Roles = []string{}
	}
	key, kind := named{s.Tenant, s.Name}, "SCOPE_CREATE"
	if c.e.m.scopes[key] != nil {
		kind = "SCOPE_UPDATE"
	}
	c.e.m.scopes[key] = &s
	c.scope(kind, s)
}

func (c *Changes) scope(kind string, s Scope) {
	at := c.e.m.stamp("scope " + s.Name)
	ev := scopeEvent{Name: s.Name, DisplayName: s.DisplayName, Roles: s.Roles, Mappings: map[string]any{}, base: c.base(kind, s.Tenant, at)}
	if s.Description != nil {
		ev.Description = *s.Description
	}
	c.notify(kind, at, ev)
}

// DeleteScope removes a scope.
func (c *Changes) DeleteScope(tenant, name string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	key := named{or(tenant, SuperTenant), name}
	s := c.e.m.scopes[key]
	if s == nil {
		return fmt.Errorf("no scope of %s has the name %q", key.tenant, name)
	}
	delete(c.e.m.scopes, key)
	c.scope("SCOPE_DELETE", *s)
	return nil
}

// PutKeyManager adds or replaces a key manager.
func (c *Changes) PutKeyManager(k KeyManager) (KeyManager, error) {
	if k.Name == "" {
		return KeyManager{}, errors.New("a key manager needs a name")
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	k.Tenant = or(k.Tenant, SuperTenant)
	k.TokenType = or(k.TokenType, "DIRECT")
	key, action := named{k.Tenant, k.Name}, "add"
	if old := c.e.m.keyManagers[key]; old != nil {
		action, k.UUID = "update", old.UUID
	}
	if k.UUID == "" {
		k.UUID = uuid.NewString()
	}
	c.e.m.keyManagers[key] = &k
	return k, c.keyManager(action, k)
}

func (c *Changes) keyManager(action string, k KeyManager) error {
	p := broker.Payload{
		{Name: "event_type", Value: "key_manager_configuration"}, {Name: "action", Value: action}, {Name: "name", Value: k.Name},
		{Name: "type", Value: k.Type}, {Name: "enabled", Value: !k.Disabled},
	}
	var value any = k.Configuration
	if c.e.profile.keyManagerDTO {
		value = map[string]any{
			"uuid": k.UUID, "name": k.Name, "displayName": k.Name, "description": "", "organization": k.Tenant, "type": k.Type,
			"enabled": !k.Disabled, "tokenType": k.TokenType, "additionalProperties": k.Configuration,
		}
	}
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("key manager %s: %w", k.Name, err)
	}
	text := base64.StdEncoding.EncodeToString(b)
	if action == "delete" && !c.e.profile.keyManagerDTO {
		text = ""
	}
	p = append(p, broker.Field{Name: "value", Value: text})
	if c.e.profile.keyManagerDTO {
		p = append(p, broker.Field{Name: "organization", Value: k.Tenant}, broker.Field{Name: "tokenType", Value: k.TokenType})
	} else {
		p = append(p, broker.Field{Name: "tenantDomain", Value: k.Tenant})
	}
	c.publish(broker.TopicKeyManager, p)
	return nil
}

// DeleteKeyManager removes a key manager.
func (c *Changes) DeleteKeyManager(tenant, name string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	key := named{or(tenant, SuperTenant), name}
	k := c.e.m.keyManagers[key]
	if k == nil {
		return fmt.Errorf("no key manager of %s has the name %q", key.tenant, name)
	}
	delete(c.e.m.keyManagers, key)
	return c.keyManager("delete", *k)
}

// SetCustomPolicy adds or replaces a custom policy: its key template goes to the gateways, and the emulated traffic
// manager counts each key against limit requests in a window. A limit of 0 counts nothing.
func (c *Changes) SetCustomPolicy(template string, limit int, window time.Duration) (GlobalPolicy, error) {
	if template == "" || limit < 0 || window < 0 {
		return GlobalPolicy{}, fmt.Errorf("custom policy %q, limit %d, window %s: a key template is needed, and neither may be negative", template, limit, window)
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	if window == 0 {
		window = time.Minute
	}
	g := GlobalPolicy{KeyTemplate: template, Limit: limit, Window: window}
	old := m.globals[template]
	if old != nil {
		g.ID, g.Name = old.ID, old.Name
	}
	g.ID = m.id("global", g.ID)
	g.Name = or(g.Name, fmt.Sprintf("Custom%d", g.ID))
	g.SiddhiQuery = siddhi(template, limit, window)
	m.globals[template] = &g
	c.e.counter.setPolicy(template, limit, window)
	if old == nil {
		c.template("add", template)
	}
	return g, nil
}

// RemoveCustomPolicy takes a custom policy away.
func (c *Changes) RemoveCustomPolicy(template string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	if c.e.m.globals[template] == nil {
		return fmt.Errorf("no custom policy has the key template %q", template)
	}
	delete(c.e.m.globals, template)
	c.e.counter.removePolicy(template)
	c.template("remove", template)
	return nil
}

// template announces a key template where the profile's version does: on throttleData, or as a notification.
func (c *Changes) template(state, template string) {
	at := c.e.m.stamp("template " + template)
	if !c.e.profile.templateNotifications {
		c.publish(broker.TopicThrottleData, broker.Payload{{Name: "keyTemplateValue", Value: template}, {Name: "keyTemplateState", Value: state}})
		return
	}
	kind := "CUSTOM_POLICY_ADD"
	if state != "add" {
		kind = "CUSTOM_POLICY_DELETE"
	}
	c.notify(kind, at, templateEvent{State: state, Only: template, base: c.base(kind, SuperTenant, at)})
}

// ReplaceCustomPolicy gives a custom policy another key template: one event where the profile's version has it, else a
// removal and an addition.
func (c *Changes) ReplaceCustomPolicy(oldTemplate, newTemplate string) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	g := m.globals[oldTemplate]
	if g == nil {
		return fmt.Errorf("no custom policy has the key template %q", oldTemplate)
	}
	n := *g
	n.KeyTemplate, n.SiddhiQuery = newTemplate, siddhi(newTemplate, g.Limit, g.Window)
	delete(m.globals, oldTemplate)
	m.globals[newTemplate] = &n
	c.e.counter.removePolicy(oldTemplate)
	c.e.counter.setPolicy(newTemplate, n.Limit, n.Window)
	if !c.e.profile.templateNotifications {
		c.template("remove", oldTemplate)
		c.template("add", newTemplate)
		return nil
	}
	at := m.stamp("template " + newTemplate)
	const kind = "CUSTOM_POLICY_UPDATE"
	c.notify(kind, at, templateEvent{State: "update", Old: oldTemplate, New: newTemplate, base: c.base(kind, SuperTenant, at)})
	return nil
}

// siddhi is the query that an administrator would write for the template.
func siddhi(template string, limit int, window time.Duration) string {
	var parts []string
	for i, part := range strings.Split(template, ":") {
		if i > 0 {
			parts = append(parts, "':'")
		}
		switch name := strings.TrimPrefix(part, "$"); {
		case part == "$clientIp":
			parts = append(parts, "cast(map:get(propertiesMap,'ip'),'string')")
		case strings.HasPrefix(part, "$"):
			parts = append(parts, name)
		default:
			parts = append(parts, "'"+part+"'")
		}
	}
	key := parts[0]
	if len(parts) > 1 {
		key = "str:concat(" + strings.Join(parts, ",") + ")"
	}
	return fmt.Sprintf("FROM RequestStream SELECT messageID, true AS isEligible, %s as throttleKey INSERT INTO EligibilityStream; "+
		"FROM EligibilityStream[isEligible==true]#throttler:timeBatch(%d sec) SELECT throttleKey, (count(messageID) >= %d) as isThrottled, expiryTimeStamp "+
		"group by throttleKey INSERT ALL EVENTS into ResultStream;", key, max(int(window/time.Second), 1), limit)
}

// Deny adds a deny policy, or enables or changes the one with the same id.
func (c *Changes) Deny(d DenyCondition) (DenyCondition, error) {
	if err := d.complete(); err != nil {
		return DenyCondition{}, err
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	d.Disabled = false
	if d.ID == 0 { // one condition blocks one value
		for _, old := range m.deny {
			if old.Type == d.Type && old.conditionValue == d.conditionValue && old.Tenant == d.Tenant {
				d.ID = old.ID
			}
		}
	}
	d.ID = m.id("deny", d.ID)
	m.deny[d.ID] = &d
	c.denyEvent(d, true)
	return d, nil
}

// Allow removes a deny policy.
func (c *Changes) Allow(id int64) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	d := c.e.m.deny[id]
	if d == nil {
		return fmt.Errorf("no deny policy has the id %d", id)
	}
	delete(c.e.m.deny, id)
	if !d.Disabled {
		c.denyEvent(*d, false)
	}
	return nil
}

// SwitchDeny enables or disables a deny policy without removing it.
func (c *Changes) SwitchDeny(id int64, enabled bool) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	old := c.e.m.deny[id]
	if old == nil {
		return fmt.Errorf("no deny policy has the id %d", id)
	}
	d := *old
	d.Disabled = !enabled
	c.e.m.deny[id] = &d
	c.denyEvent(d, enabled)
	return nil
}

func (c *Changes) denyEvent(d DenyCondition, on bool) {
	c.publish(broker.TopicThrottleData, broker.Payload{
		{Name: "id", Value: int32(d.ID)}, //nolint:gosec // database ids are small here
		{Name: "blockingCondition", Value: d.Type}, {Name: "conditionValue", Value: d.conditionValue},
		{Name: "state", Value: strconv.FormatBool(on)}, {Name: "tenantDomain", Value: d.Tenant},
	})
}

// complete checks the condition as the manager does and works out the text of its event.
func (d *DenyCondition) complete() error {
	d.Type = strings.ToUpper(d.Type)
	d.Tenant = or(d.Tenant, SuperTenant)
	switch d.Type {
	case DenyAPI:
		if !strings.HasPrefix(d.Value, "/") {
			return fmt.Errorf("deny policy for API %q: the value is the full context, such as /shop/1.0.0", d.Value)
		}
		d.Tenant, d.conditionValue = tenantOfContext(d.Value), d.Value
	case DenyApplication:
		if !strings.Contains(d.Value, ":") {
			return fmt.Errorf("deny policy for application %q: the value is owner:application", d.Value)
		}
		d.conditionValue = d.Value
	case DenyUser:
		if d.Value == "" {
			return errors.New("deny policy for a user: the value is user@tenant")
		}
		if !strings.Contains(d.Value, "@") {
			d.Value += "@" + d.Tenant
		}
		d.conditionValue = d.Value
	case DenySubscription:
		if strings.Count(d.Value, ":") < 3 {
			return fmt.Errorf("deny policy for subscription %q: the value is context:version:owner-application:keyType", d.Value)
		}
		d.conditionValue = d.Value
	case DenyIP:
		d.FixedIP = or(d.FixedIP, d.Value)
		if _, err := netip.ParseAddr(d.FixedIP); err != nil {
			return fmt.Errorf("deny policy for address %q: no IP address", d.FixedIP)
		}
		d.Value = d.FixedIP
		d.conditionValue = fmt.Sprintf(`{"fixedIp":%q,"invert":%t}`, d.FixedIP, d.Invert)
	case DenyIPRange:
		if from, to, ok := strings.Cut(d.Value, "-"); ok && d.StartingIP == "" {
			d.StartingIP, d.EndingIP = strings.TrimSpace(from), strings.TrimSpace(to)
		}
		from, err := netip.ParseAddr(d.StartingIP)
		to, err2 := netip.ParseAddr(d.EndingIP)
		if err != nil || err2 != nil || from.Is4() != to.Is4() {
			return fmt.Errorf("deny policy for range %q to %q: two IP addresses of one family are needed, first-last", d.StartingIP, d.EndingIP)
		}
		d.Value = d.StartingIP + "-" + d.EndingIP
		d.conditionValue = fmt.Sprintf(`{"startingIp":%q,"endingIp":%q,"invert":%t}`, d.StartingIP, d.EndingIP, d.Invert)
	default:
		return fmt.Errorf("deny policy of type %q: use API, APPLICATION, USER, SUBSCRIPTION, IP or IPRANGE", d.Type)
	}
	return nil
}

// Revoke refuses a token from now on: its jti, or the opaque token itself. kind is JWT (the default), API_KEY or Default.
func (c *Changes) Revoke(token string, expires time.Time, kind string) error {
	if token == "" {
		return errors.New("revocation: the token is empty")
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	kind = or(kind, "JWT")
	expiry := expires.UnixMilli()
	c.e.m.revoked[token] = expiry
	if kind == "Default" { // an opaque token has no expiry in its event
		expiry = 0
	}
	c.revocation(token, expiry, kind)
	return nil
}

func (c *Changes) revocation(token string, expiry int64, kind string) {
	c.publish(broker.TopicTokenRevocation, broker.Payload{
		{Name: "eventId", Value: uuid.NewString()}, {Name: "revokedToken", Value: token}, {Name: "ttl", Value: "3600"},
		{Name: "expiryTime", Value: expiry}, {Name: "type", Value: kind}, {Name: "tenantId", Value: int32(superTenantID)},
	})
}

// RevokeMany refuses the tokens of a client or a subject that were issued before a time.
func (c *Changes) RevokeMany(r MassRevocation) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	r.Organization = or(r.Organization, SuperTenant)
	kind, inner := "consumer_app_revocation_event", fmt.Sprintf(`{"consumerKey":%s,"revocationTime":"%d"}`, quote(r.ConsumerKey), r.RevocationTime)
	switch {
	case r.ConsumerKey != "":
	case r.EntityID != "" && (r.EntityType == "USER_ID" || r.EntityType == "CLIENT_ID"):
		kind, inner = "subject_entity_revocation_event", fmt.Sprintf(`{"entityId":%s,"entityType":%q,"revocationTime":"%d"}`, quote(r.EntityID), r.EntityType, r.RevocationTime)
	default:
		return errors.New("mass revocation: a consumer key, or an entity with the type USER_ID or CLIENT_ID, is needed")
	}
	c.e.m.mass = append(slices.Clip(c.e.m.mass), r)
	c.revocation(base64.StdEncoding.EncodeToString([]byte(inner)), 0, kind)
	return nil
}

// Decide publishes a throttle decision of the traffic manager; nothing of it is kept.
func (c *Changes) Decide(key string, throttled bool, expires time.Time, conditions any) {
	c.publish(broker.TopicThrottleData, broker.Payload{
		{Name: "throttleKey", Value: key}, {Name: "isThrottled", Value: throttled},
		{Name: "expiryTimeStamp", Value: expires.UnixMilli()}, {Name: "evaluatedConditions", Value: conditions},
	})
}

// Burst publishes n decisions at once, for the keys burst-0 to burst-(n-1).
func (c *Changes) Burst(n int, expires time.Time) {
	for i := range n {
		c.Decide("burst-"+strconv.Itoa(i), true, expires, nil)
	}
}

// Notify publishes a notification that belongs to no change of the model: unknown types, stale times.
func (c *Changes) Notify(kind string, at time.Time, inner any) {
	c.notify(kind, at.UnixMilli(), inner)
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}
