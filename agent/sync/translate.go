package sync

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// From wire to domain. Nothing else in the product reads wire rows.

const (
	superTenant = throttle.SuperTenant
	allTenants  = "*"
	// globalTenant owns key managers that every tenant shares.
	globalTenant = "WSO2-ALL-TENANTS"
)

// canonicalTenant is the one spelling under which a tenant is kept: tenants are domain names, of which case says nothing.
func canonicalTenant(t string) string {
	if strings.EqualFold(t, globalTenant) {
		return globalTenant
	}
	return strings.ToLower(t)
}

// tenantOfContext reads the tenant of an API from its context.
func tenantOfContext(context string) string {
	if rest, ok := strings.CutPrefix(context, "/t/"); ok {
		if domain, _, ok := strings.Cut(rest, "/"); ok && domain != "" {
			return canonicalTenant(domain)
		}
	}
	return superTenant
}

// tenantOr returns the tenant that a row names, else the one that was asked for, where that is one.
func tenantOr(named, asked string) string {
	if named != "" || asked == allTenants {
		return canonicalTenant(named)
	}
	return canonicalTenant(asked)
}

func apiRow(a controlplane.API) subscription.API {
	r := subscription.API{
		ID: a.APIID, UUID: a.UUID, Name: a.Name, Version: a.Version, Context: a.Context,
		Provider: strings.Replace(a.Provider, "-AT-", "@", 1), Type: a.APIType, Status: a.Status, Policy: a.Policy,
		Tenant: canonicalTenant(a.Organization), IsDefault: a.IsDefaultVersion,
	}
	if r.Tenant == "" || r.Tenant == allTenants {
		r.Tenant = tenantOfContext(a.Context)
	}
	for _, m := range a.URLMappings {
		r.Resources = append(r.Resources, subscription.APIResource{
			Pattern: m.URLPattern, Method: m.HTTPMethod, Auth: m.AuthScheme, Policy: m.ThrottlingPolicy, Scopes: m.Scopes,
		})
	}
	return r
}

func sameAPI(a, b *subscription.API) bool {
	return a.ID == b.ID && a.UUID == b.UUID && a.Name == b.Name && a.Version == b.Version && a.Context == b.Context &&
		a.Provider == b.Provider && a.Type == b.Type && a.Status == b.Status && a.Policy == b.Policy && strings.EqualFold(a.Tenant, b.Tenant) &&
		a.IsDefault == b.IsDefault && slices.EqualFunc(a.Resources, b.Resources, func(x, y subscription.APIResource) bool {
		return x.Pattern == y.Pattern && x.Method == y.Method && x.Auth == y.Auth && x.Policy == y.Policy && slices.Equal(x.Scopes, y.Scopes)
	})
}

func applicationRow(a controlplane.Application, tenant string) subscription.Application {
	return subscription.Application{
		ID: a.ID, UUID: a.UUID, Name: a.Name, Owner: a.SubName, Policy: a.Policy, TokenType: a.TokenType,
		Tenant: tenantOr(a.Organization, tenant), GroupIDs: a.GroupIDs, Attributes: a.Attributes,
	}
}

func sameApplication(a, b *subscription.Application) bool {
	if len(a.Attributes) != len(b.Attributes) {
		return false
	}
	for k, v := range a.Attributes {
		if w, ok := b.Attributes[k]; !ok || v != w {
			return false
		}
	}
	return a.ID == b.ID && a.UUID == b.UUID && a.Name == b.Name && a.Owner == b.Owner && a.Policy == b.Policy &&
		a.TokenType == b.TokenType && strings.EqualFold(a.Tenant, b.Tenant) && slices.Equal(a.GroupIDs, b.GroupIDs)
}

func mappingRow(m controlplane.KeyMapping, tenant string) subscription.KeyMapping {
	return subscription.KeyMapping{
		ConsumerKey: m.ConsumerKey, KeyManager: subscription.CanonicalKeyManager(m.KeyManager), KeyType: subscription.KeyType(m.KeyType),
		ApplicationID: m.ApplicationID, ApplicationUUID: m.ApplicationUUID, Tenant: tenantOr("", tenant),
	}
}

// sameMapping lets an empty tenant be any: lists do not name it, events do.
func sameMapping(a, b *subscription.KeyMapping) bool {
	return a.ConsumerKey == b.ConsumerKey && a.KeyManager == b.KeyManager && a.KeyType == b.KeyType &&
		a.ApplicationID == b.ApplicationID && a.ApplicationUUID == b.ApplicationUUID && sameTenant(a.Tenant, b.Tenant)
}

func sameTenant(a, b string) bool { return a == "" || b == "" || strings.EqualFold(a, b) }

func subscriptionRow(s controlplane.Subscription, tenant string) subscription.Subscription {
	return subscription.Subscription{
		ID: s.SubscriptionID, UUID: s.SubscriptionUUID, APIID: s.APIID, APIUUID: s.APIUUID, ApplicationID: s.AppID,
		ApplicationUUID: s.ApplicationUUID, Policy: s.PolicyID, State: subscription.State(s.SubscriptionState), Tenant: tenantOr("", tenant),
	}
}

func sameSubscription(a, b *subscription.Subscription) bool {
	return a.ID == b.ID && a.State == b.State && a.Policy == b.Policy && a.APIID == b.APIID && a.ApplicationID == b.ApplicationID &&
		a.UUID == b.UUID && a.APIUUID == b.APIUUID && a.ApplicationUUID == b.ApplicationUUID && sameTenant(a.Tenant, b.Tenant)
}

func limitOf(l *controlplane.Limit) throttle.Limit {
	if l == nil {
		return throttle.Limit{}
	}
	n := l.Count
	if n == 0 {
		n = l.Bytes
	}
	return throttle.Limit{QuotaType: l.QuotaType, Count: n, UnitTime: l.UnitTime, TimeUnit: l.TimeUnit}
}

func policyRow(kind throttle.PolicyKind, p controlplane.Policy, tenant string) throttle.Policy {
	r := throttle.Policy{
		Kind: kind, Tenant: tenantOr(p.TenantDomain, tenant), Name: p.Name, ID: p.ID, Default: limitOf(p.DefaultLimit),
		BurstCount: max(p.RateLimitCount, 0), BurstUnit: p.RateLimitTimeUnit, StopOnQuotaReach: p.StopOnQuotaReach,
		UserLevel:       strings.EqualFold(p.ApplicableLevel, "userLevel"),
		GraphQLMaxDepth: p.GraphQLMaxDepth, GraphQLMaxComplexity: p.GraphQLMaxComplexity,
	}
	if r.Default.QuotaType == "" && p.DefaultLimit != nil {
		r.Default.QuotaType = p.QuotaType
	}
	if r.Tenant == "" {
		r.Tenant = superTenant
	}
	for _, g := range p.ConditionGroups {
		group := throttle.ConditionGroup{ID: g.ID, Limit: limitOf(g.Limit)}
		for _, c := range g.Conditions {
			group.Conditions = append(group.Conditions, throttle.Condition{Type: c.Type, Name: c.Name, Value: c.Value, Invert: c.Inverted})
		}
		r.Groups = append(r.Groups, group)
	}
	return r
}

func samePolicy(a, b *throttle.Policy) bool {
	return a.Kind == b.Kind && strings.EqualFold(a.Tenant, b.Tenant) && a.Name == b.Name && a.ID == b.ID && a.Default == b.Default &&
		a.BurstCount == b.BurstCount && a.BurstUnit == b.BurstUnit && a.StopOnQuotaReach == b.StopOnQuotaReach &&
		a.UserLevel == b.UserLevel && a.GraphQLMaxDepth == b.GraphQLMaxDepth && a.GraphQLMaxComplexity == b.GraphQLMaxComplexity &&
		slices.EqualFunc(a.Groups, b.Groups, func(x, y throttle.ConditionGroup) bool {
			return x.ID == y.ID && x.Limit == y.Limit && slices.Equal(x.Conditions, y.Conditions)
		})
}

// denyKey names a deny policy: IP kinds by tenant and number, the others by kind and text.
type denyKey struct {
	kind   throttle.DenyKind
	tenant string
	id     int64
	value  string
}

func denyKeyOf(c *throttle.DenyCondition) denyKey {
	switch c.Kind {
	case throttle.DenyIP, throttle.DenyIPRange:
		k := denyKey{kind: throttle.DenyIP, tenant: canonicalTenant(c.Tenant), id: c.ID}
		if k.tenant == "" {
			k.tenant = superTenant
		}
		if c.ID == 0 {
			k.value = c.From.String() + "-" + c.To.String() + "-" + strconv.FormatBool(c.Invert) + c.Value
		}
		return k
	case throttle.DenyUser:
		tenant := canonicalTenant(c.Tenant)
		if tenant == "" {
			if strings.Contains(c.Value, "@") {
				return denyKey{kind: c.Kind, value: foldDomain(c.Value)}
			}
			tenant = superTenant
		}
		value := c.Value
		if at := len(value) - len(tenant) - 1; at >= 0 && strings.EqualFold(value[at:], "@"+tenant) {
			value = value[:at]
		}
		return denyKey{kind: c.Kind, value: value + "@" + tenant}
	case throttle.DenyApplication:
		owner, app, _ := strings.Cut(c.Value, ":")
		return denyKey{kind: c.Kind, value: strings.TrimSuffix(foldDomain(owner), "@"+superTenant) + ":" + app}
	case throttle.DenySubscription:
		// Where the domain ends is known only of a domain that is known: both it and what follows may hold a hyphen.
		value := replaceFold(c.Value, "@"+superTenant+"-", "-")
		if t := canonicalTenant(c.Tenant); t != "" && t != superTenant {
			value = replaceFold(value, "@"+t+"-", "@"+t+"-")
		}
		return denyKey{kind: c.Kind, value: value}
	}
	return denyKey{kind: c.Kind, value: c.Value}
}

// foldDomain brings what follows the last @ into the one spelling of tenants.
func foldDomain(user string) string {
	at := strings.LastIndexByte(user, '@') + 1
	if at == 0 {
		return user
	}
	return user[:at] + canonicalTenant(user[at:])
}

// replaceFold replaces the first occurrence of old, in whatever case.
func replaceFold(s, old, replacement string) string {
	for i := 0; i+len(old) <= len(s); i++ {
		if strings.EqualFold(s[i:i+len(old)], old) {
			return s[:i] + replacement + s[i+len(old):]
		}
	}
	return s
}

// sameDeny ignores what only one of list and event says: number and tenant of a condition that is known by its text.
func sameDeny(a, b *throttle.DenyCondition) bool {
	return denyKeyOf(a) == denyKeyOf(b) && a.Kind == b.Kind && a.From == b.From && a.To == b.To && a.Invert == b.Invert &&
		(!unreadable(a) || a.Value == b.Value)
}

func denyRows(b controlplane.Block) []throttle.DenyCondition {
	var rows []throttle.DenyCondition
	texts := func(kind throttle.DenyKind, values []string) {
		for _, v := range values {
			c := throttle.DenyCondition{Kind: kind, Value: v}
			if kind == throttle.DenyAPI {
				c.Tenant = tenantOfContext(v)
			}
			rows = append(rows, c)
		}
	}
	texts(throttle.DenyAPI, b.API)
	texts(throttle.DenyApplication, b.Application)
	texts(throttle.DenyUser, b.User)
	texts(throttle.DenySubscription, b.Subscription)
	texts("CUSTOM", b.Custom)
	for _, ip := range b.IP {
		if ip.Inactive {
			continue
		}
		c := throttle.DenyCondition{Kind: throttle.DenyKind(strings.ToUpper(ip.Type)), Tenant: canonicalTenant(ip.TenantDomain), ID: ip.ID, Invert: ip.Invert}
		fillAddresses(&c, ip.FixedIP, ip.StartingIP, ip.EndingIP)
		rows = append(rows, c)
	}
	return rows
}

// fillAddresses reads what a condition of an IP kind is about: an address, a prefix such as 10.0.0.0/8, or two bounds.
// What cannot be read is kept with its text, to be shown; it is never enforced.
func fillAddresses(c *throttle.DenyCondition, fixed, from, to string) {
	if c.SetAddresses(fixed, from, to) == nil {
		return
	}
	c.From, c.To = netip.Addr{}, netip.Addr{}
	if c.Value = fixed; c.Kind == throttle.DenyIPRange && from+to != "" {
		c.Value = from + " - " + to
	}
}

// unreadable tells whether a condition is about addresses that could not be read.
func unreadable(c *throttle.DenyCondition) bool {
	return (c.Kind == throttle.DenyIP || c.Kind == throttle.DenyIPRange) && !c.From.IsValid()
}

func denyOfEvent(e *event.DenyChanged) throttle.DenyCondition {
	c := throttle.DenyCondition{Kind: throttle.DenyKind(strings.ToUpper(e.Kind)), Tenant: canonicalTenant(e.TenantDomain), ID: e.ID, Value: e.Value, Invert: e.Invert}
	if c.Kind == throttle.DenyIP || c.Kind == throttle.DenyIPRange {
		c.Value = ""
		fillAddresses(&c, e.FixedIP, e.StartingIP, e.EndingIP)
	}
	return c
}

func keyManagerRow(k controlplane.KeyManager, tenant string) keymanager.KeyManager {
	return keyManagerOf(k.Name, k.Type, tenantOr(k.Tenant, tenant), k.UUID, k.Enabled, k.Configuration)
}

// keyManagerOf reads the configuration of a key manager (contract rest.md 5.2). Of the secrets of connectors it takes those
// alone that an introspection needs.
func keyManagerOf(name, kind, tenant, uuid string, enabled bool, conf map[string]any) keymanager.KeyManager {
	if tenant = canonicalTenant(tenant); tenant == "" {
		tenant = superTenant
	}
	r := keymanager.KeyManager{
		Name: name, Type: kind, Tenant: tenant, UUID: uuid,
		Enabled: enabled && truth(conf, "validation_enable", true),
		Issuer:  text(conf, "issuer"), ConsumerKeyClaim: text(conf, "consumer_key_claim"), ScopesClaim: text(conf, "scopes_claim"),
		SelfValidate: truth(conf, "self_validate_jwt", true), ClaimMappings: claimMappings(lookup(conf, "claim_mappings")),
		Introspection: introspectionOf(conf), TokenFormats: tokenFormats(lookup(conf, "token_format_string")),
	}
	value := text(conf, "certificate_value")
	switch {
	case value == "":
		r.JWKSURL = text(conf, "jwks_endpoint")
	case strings.EqualFold(text(conf, "certificate_type"), "PEM"):
		r.PEM = pemText(value)
	default:
		r.JWKSURL = value
	}
	return r
}

// introspectionOf reads where opaque tokens are asked about, and as whom: connectors call the gateway's client client_id and
// client_secret, or Username and Password, in any case.
func introspectionOf(conf map[string]any) *keymanager.Introspection {
	i := keymanager.Introspection{URL: text(conf, "introspection_endpoint")}
	if i.URL == "" {
		return nil
	}
	for _, pair := range [...][2]string{{"client_id", "client_secret"}, {"username", "password"}} {
		if i.ClientID = text(conf, pair[0]); i.ClientID != "" {
			i.ClientSecret, _ = lookup(conf, pair[1]).(string) // a secret keeps its blanks
			break
		}
	}
	return &i
}

// tokenFormats reads token_format_string: JSON text of an array, or the array itself.
func tokenFormats(v any) []keymanager.TokenFormat {
	if s, ok := v.(string); ok {
		var list []any
		if json.Unmarshal([]byte(s), &list) != nil {
			return nil
		}
		v = list
	}
	list, _ := v.([]any)
	var out []keymanager.TokenFormat
	for _, e := range list {
		m, _ := e.(map[string]any)
		f := keymanager.TokenFormat{Type: strings.ToUpper(text(m, "type"))}
		if f.Type == "" || !truth(m, "enable", true) {
			continue
		}
		value := lookup(m, "value")
		if s, ok := value.(string); ok {
			var object map[string]any
			if json.Unmarshal([]byte(s), &object) != nil {
				f.Pattern = s
			}
			value = object
		}
		object, _ := value.(map[string]any)
		body, _ := lookup(object, "body").(map[string]any)
		for name, want := range body {
			if s, ok := want.(string); ok {
				if f.Claims == nil {
					f.Claims = make(map[string]string)
				}
				f.Claims[name] = s
			}
		}
		if f.Pattern != "" || len(f.Claims) > 0 {
			out = append(out, f)
		}
	}
	return out
}

func pemText(value string) string {
	if strings.Contains(value, "-----BEGIN") {
		return value
	}
	compact := strings.Join(strings.Fields(value), "")
	if b, err := base64.StdEncoding.DecodeString(compact); err == nil && strings.Contains(string(b), "-----BEGIN") {
		return string(b)
	}
	return value
}

// lookup finds a key without regard to case.
func lookup(m map[string]any, key string) any {
	if v, ok := m[key]; ok {
		return v
	}
	for k, v := range m {
		if strings.EqualFold(k, key) {
			return v
		}
	}
	return nil
}

func text(m map[string]any, key string) string {
	switch v := lookup(m, key).(type) {
	case string:
		return strings.TrimSpace(v)
	case json.Number:
		return v.String()
	}
	return ""
}

func truth(m map[string]any, key string, absent bool) bool {
	switch v := lookup(m, key).(type) {
	case bool:
		return v
	case string:
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "true":
			return true
		case "false":
			return false
		}
	}
	return absent
}

// claimMappings reads an array of {remoteClaim, localClaim}, also where it is text that holds JSON.
func claimMappings(v any) []keymanager.ClaimMapping {
	if s, ok := v.(string); ok {
		var list []any
		if json.Unmarshal([]byte(s), &list) != nil {
			return nil
		}
		v = list
	}
	list, _ := v.([]any)
	var out []keymanager.ClaimMapping
	for _, e := range list {
		m, _ := e.(map[string]any)
		c := keymanager.ClaimMapping{Remote: text(m, "remoteClaim"), Local: text(m, "localClaim")}
		if c.Remote != "" && c.Local != "" {
			out = append(out, c)
		}
	}
	return out
}

func sameKeyManager(a, b *keymanager.KeyManager) bool {
	return a.Name == b.Name && a.Type == b.Type && strings.EqualFold(a.Tenant, b.Tenant) && (a.UUID == b.UUID || a.UUID == "" || b.UUID == "") &&
		a.Enabled == b.Enabled && a.Issuer == b.Issuer && a.JWKSURL == b.JWKSURL && a.PEM == b.PEM &&
		a.ConsumerKeyClaim == b.ConsumerKeyClaim && a.ScopesClaim == b.ScopesClaim && a.SelfValidate == b.SelfValidate &&
		slices.Equal(a.ClaimMappings, b.ClaimMappings) && sameIntrospection(a.Introspection, b.Introspection) &&
		slices.EqualFunc(a.TokenFormats, b.TokenFormats, func(x, y keymanager.TokenFormat) bool {
			return x.Type == y.Type && x.Pattern == y.Pattern && maps.Equal(x.Claims, y.Claims)
		})
}

func sameIntrospection(a, b *keymanager.Introspection) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func revocationRows(r controlplane.Revoked, o origin) []keymanager.Revocation {
	rows := make([]keymanager.Revocation, 0, len(r.Tokens)+len(r.Mass))
	for _, t := range r.Tokens {
		rows = append(rows, keymanager.Revocation{Kind: keymanager.RevokedToken, Value: t.Signature, ExpiresAt: t.ExpiresAt, Origin: keymanager.Origin(o)})
	}
	for _, m := range r.Mass {
		row := keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: m.EntityID, Before: m.Before, Tenant: canonicalTenant(m.Organization), Origin: keymanager.Origin(o)}
		if m.ConsumerKey != "" {
			row.Kind, row.Value = keymanager.RevokedConsumerKey, m.ConsumerKey
		} else if strings.Contains(strings.ToUpper(m.EntityType), "CLIENT") {
			row.Kind = keymanager.RevokedConsumerKey
		}
		rows = append(rows, row)
	}
	return rows
}

func revocationOf(e *event.Revoked, now int64, o origin) keymanager.Revocation {
	r := keymanager.Revocation{Tenant: canonicalTenant(e.TenantDomain), ExpiresAt: e.ExpiresAt, Origin: keymanager.Origin(o)}
	switch e.Kind {
	case event.RevokeConsumerKey:
		r.Kind, r.Value, r.Before = keymanager.RevokedConsumerKey, e.ConsumerKey, e.Before
	case event.RevokeUser:
		r.Kind, r.Value, r.Before = keymanager.RevokedSubject, e.User, e.Before
	default:
		r.Kind, r.Value = keymanager.RevokedToken, e.Token
		if r.ExpiresAt == 0 {
			ttl := e.TTL
			if ttl <= 0 {
				ttl = 3600
			}
			r.ExpiresAt = max(e.Time, now) + ttl*1000
		}
	}
	return r
}
