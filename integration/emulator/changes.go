package emulator

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
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
