package emulator

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"gatehouse/integration/emulator/broker"
)

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
		{Name: "event_type", Value: "key_manager_configuration"},
		{Name: "action", Value: action},
		{Name: "name", Value: k.Name},
		{Name: "type", Value: k.Type},
		{Name: "enabled", Value: !k.Disabled},
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
