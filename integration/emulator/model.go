package emulator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// SuperTenant is the tenant that exists in every API Manager.
const SuperTenant = "carbon.super"

// superTenantID is its database id; the others count from 1.
const superTenantID = -1234

// API is a row of /apis, with what its artifact is made of.
type API struct {
	UUID             string       `json:"uuid"`
	APIID            int64        `json:"apiId"`
	Provider         string       `json:"provider"`
	Name             string       `json:"name"`
	Version          string       `json:"version"`
	Context          string       `json:"context"` // full: with the version, and /t/domain of a tenant
	Policy           *string      `json:"policy"`
	APIType          string       `json:"apiType"`
	Status           string       `json:"status"`
	IsDefaultVersion bool         `json:"isDefaultVersion"`
	Organization     string       `json:"organization"`
	URLMappings      []URLMapping `json:"urlMappings"`
	APIPolicies      []any        `json:"apiPolicies"`

	// Endpoint and SandboxEndpoint are URLs of the backend, "" for none.
	Endpoint        string `json:"-"`
	SandboxEndpoint string `json:"-"`
	// SecurityScheme of api.yaml; nil is oauth2.
	SecurityScheme []string `json:"-"`
	// Project is the apictl project zip that is deployed; nil makes one from the fields above.
	Project []byte `json:"-"`
	// RevisionID counts the deployments; RevisionUUID names the latest.
	RevisionID   int64  `json:"-"`
	RevisionUUID string `json:"-"`
	// Environments are the labels on which the latest revision is deployed.
	Environments []string `json:"-"`
	deployedAt   int64
}

// URLMapping is one resource of an API.
type URLMapping struct {
	AuthScheme       string   `json:"authScheme"`
	ThrottlingPolicy string   `json:"throttlingPolicy"`
	HTTPMethod       string   `json:"httpMethod"`
	URLPattern       string   `json:"urlPattern"`
	Scopes           []string `json:"scopes"`
}

// Application is a row of /applications.
type Application struct {
	UUID         string            `json:"uuid"`
	ID           int64             `json:"id"`
	Name         string            `json:"name"`
	SubName      string            `json:"subName"` // the owner
	Policy       string            `json:"policy"`
	TokenType    string            `json:"tokenType"`
	GroupIDs     []GroupID         `json:"groupIds"`
	Attributes   map[string]string `json:"attributes"`
	Organization string            `json:"organization"`
}

// GroupID is a sharing group of an application.
type GroupID struct {
	GroupID       string `json:"groupId"`
	ApplicationID int64  `json:"applicationId"`
}

// KeyMapping is a row of /application-key-mappings.
type KeyMapping struct {
	ApplicationID   int64  `json:"applicationId"`
	ApplicationUUID string `json:"applicationUUID"`
	ConsumerKey     string `json:"consumerKey"`
	KeyType         string `json:"keyType"`
	KeyManager      string `json:"keyManager"`

	Tenant string `json:"-"`
}

// Subscription is a row of /subscriptions.
type Subscription struct {
	SubscriptionUUID  string `json:"subscriptionUUID"`
	SubscriptionID    int64  `json:"subscriptionId"`
	PolicyID          string `json:"policyId"` // the name of the business plan
	APIUUID           string `json:"apiUUID"`
	APIID             int64  `json:"apiId"`
	ApplicationUUID   string `json:"applicationUUID"`
	AppID             int64  `json:"appId"`
	SubscriptionState string `json:"subscriptionState"`

	Tenant string `json:"-"`
}

// PolicyKind tells the lists of policies apart.
type PolicyKind string

// Kinds of policies, as the policyType of their events spells them.
const (
	SubscriptionPolicy PolicyKind = "SUBSCRIPTION"
	ApplicationPolicy  PolicyKind = "APPLICATION"
	APIPolicy          PolicyKind = "API"
)

// Policy is a row of /subscription-policies, /application-policies or /api-policies.
type Policy struct {
	Kind         PolicyKind
	ID           int64
	TenantDomain string
	Name         string
	Limit        Limit
	// For subscription policies.
	RateLimitCount       int64
	RateLimitTimeUnit    string
	ContinueOnQuotaReach bool // the opposite of stopOnQuotaReach, so that the zero value is the usual one
	GraphQLMaxDepth      int64
	GraphQLMaxComplexity int64
	// For API policies.
	ApplicableLevel string
	ConditionGroups []ConditionGroup
}

// Limit is a defaultLimit.
type Limit struct {
	QuotaType string // requestCount (the default), bandwidthVolume or eventCount
	TimeUnit  string // min, hour, day, month, year
	UnitTime  int64
	Count     int64  // requests or events, or the amount of data
	DataUnit  string // KB or MB, for bandwidthVolume
}

// ConditionGroup is a part of an API policy.
type ConditionGroup struct {
	ID         int64
	Limit      Limit
	Conditions []Condition
}

// Condition is a part of a condition group.
type Condition struct {
	Type     string  `json:"conditionType"`
	Name     *string `json:"name"`
	Value    string  `json:"value"`
	Inverted bool    `json:"isInverted"`
}

// GlobalPolicy is a custom policy, a row of /global-policies; its key template stands in /keyTemplates.
type GlobalPolicy struct {
	ID          int64
	Name        string
	KeyTemplate string
	SiddhiQuery string
	// Limit and Window are what the emulated traffic manager counts against; Limit 0 counts nothing.
	Limit  int
	Window time.Duration
}

// Scope is a row of /scopes.
type Scope struct {
	Name        string   `json:"name"`
	DisplayName string   `json:"displayName"`
	Description *string  `json:"description"`
	Roles       []string `json:"roles"`

	Tenant string `json:"-"`
}

// KeyManager is an element of /keymanagers.
type KeyManager struct {
	UUID          string
	Name          string
	Type          string
	Disabled      bool
	Tenant        string
	TokenType     string // DIRECT, EXCHANGED or BOTH; "" is DIRECT
	Configuration map[string]any
}

// Kinds of deny policies.
const (
	DenyAPI          = "API"
	DenyApplication  = "APPLICATION"
	DenyUser         = "USER"
	DenySubscription = "SUBSCRIPTION"
	DenyIP           = "IP"
	DenyIPRange      = "IPRANGE"
)

// DenyCondition is a deny policy. Value is the condition of the kinds that are no addresses.
type DenyCondition struct {
	ID                            int64
	Type                          string
	Value                         string
	FixedIP, StartingIP, EndingIP string
	Invert                        bool
	Disabled                      bool // kept, but not enforced and not in /block
	Tenant                        string
	conditionValue                string
}

// RevokedToken is an entry of /revokedjwt.
type RevokedToken struct {
	// Signature is the jti, or the token itself where it is opaque.
	Signature string `json:"jwt_signature"`
	// ExpiryTime is in milliseconds since the epoch.
	ExpiryTime int64 `json:"expiry_time"`
}

// MassRevocation refuses tokens that were issued before a time.
type MassRevocation struct {
	ConsumerKey          string // or
	EntityID, EntityType string // USER_ID or CLIENT_ID
	RevocationTime       int64  // milliseconds since the epoch
	Organization         string
}

// Rows is everything that the emulated API Manager holds, each list sorted by its key.
type Rows struct {
	APIs                 []API
	Applications         []Application
	KeyMappings          []KeyMapping
	Subscriptions        []Subscription
	SubscriptionPolicies []Policy
	ApplicationPolicies  []Policy
	APIPolicies          []Policy
	GlobalPolicies       []GlobalPolicy
	Scopes               []Scope
	KeyManagers          []KeyManager
	Deny                 []DenyCondition
	Revoked              []RevokedToken
	MassRevocations      []MassRevocation
}

type (
	mappingKey struct{ consumerKey, keyManager, tenant string }
	named      struct{ tenant, name string }
	policyKey  struct {
		kind         PolicyKind
		tenant, name string
	}
)

// model is the database. The Emulator's mutex guards it.
type model struct {
	tenants     map[string]int64
	apis        map[string]*API
	apps        map[int64]*Application
	mappings    map[mappingKey]*KeyMapping
	subs        map[int64]*Subscription
	policies    map[policyKey]*Policy
	globals     map[string]*GlobalPolicy // by key template
	scopes      map[named]*Scope
	keyManagers map[named]*KeyManager
	deny        map[int64]*DenyCondition
	revoked     map[string]int64
	mass        []MassRevocation
	vhosts      map[named]string // environment → vhost

	nextID map[string]int64
	stamps map[string]int64 // last timeStamp of an entity
}

func newModel() *model {
	return &model{
		tenants: map[string]int64{SuperTenant: superTenantID}, apis: map[string]*API{}, apps: map[int64]*Application{},
		mappings: map[mappingKey]*KeyMapping{}, subs: map[int64]*Subscription{}, policies: map[policyKey]*Policy{},
		globals: map[string]*GlobalPolicy{}, scopes: map[named]*Scope{}, keyManagers: map[named]*KeyManager{},
		deny: map[int64]*DenyCondition{}, revoked: map[string]int64{}, vhosts: map[named]string{},
		nextID: map[string]int64{}, stamps: map[string]int64{},
	}
}

// id gives the next number of a kind of row, above every one that was taken.
func (m *model) id(kind string, taken int64) int64 {
	if taken != 0 {
		m.nextID[kind] = max(m.nextID[kind], taken)
		return taken
	}
	m.nextID[kind]++
	return m.nextID[kind]
}

// stamp is the timeStamp of a change: now, but later than the entity's last one, so that order by timeStamp is the order
// of the changes. It waits at most a millisecond.
func (m *model) stamp(entity string) int64 {
	now := time.Now().UnixMilli()
	for now <= m.stamps[entity] && m.stamps[entity]-now < 5 {
		time.Sleep(200 * time.Microsecond)
		now = time.Now().UnixMilli()
	}
	m.stamps[entity] = now
	return now
}

func (m *model) rows() Rows {
	var r Rows
	r.APIs = sorted(m.apis, func(a, b API) int { return cmp.Compare(a.APIID, b.APIID) })
	r.Applications = sorted(m.apps, func(a, b Application) int { return cmp.Compare(a.ID, b.ID) })
	r.KeyMappings = sorted(m.mappings, func(a, b KeyMapping) int {
		return cmp.Or(cmp.Compare(a.ApplicationID, b.ApplicationID), cmp.Compare(a.ConsumerKey, b.ConsumerKey), cmp.Compare(a.KeyManager, b.KeyManager))
	})
	r.Subscriptions = sorted(m.subs, func(a, b Subscription) int { return cmp.Compare(a.SubscriptionID, b.SubscriptionID) })
	r.SubscriptionPolicies = m.policyRows(SubscriptionPolicy)
	r.ApplicationPolicies = m.policyRows(ApplicationPolicy)
	r.APIPolicies = m.policyRows(APIPolicy)
	r.GlobalPolicies = sorted(m.globals, func(a, b GlobalPolicy) int { return cmp.Compare(a.ID, b.ID) })
	r.Scopes = sorted(m.scopes, func(a, b Scope) int { return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name)) })
	r.KeyManagers = sorted(m.keyManagers, func(a, b KeyManager) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name))
	})
	r.Deny = sorted(m.deny, func(a, b DenyCondition) int { return cmp.Compare(a.ID, b.ID) })
	r.Revoked = []RevokedToken{}
	for _, k := range slices.Sorted(maps.Keys(m.revoked)) {
		r.Revoked = append(r.Revoked, RevokedToken{k, m.revoked[k]})
	}
	r.MassRevocations = slices.Clone(m.mass)
	return r
}

func (m *model) policyRows(kind PolicyKind) []Policy {
	out := []Policy{}
	for k, p := range m.policies {
		if k.kind == kind {
			out = append(out, *p)
		}
	}
	slices.SortFunc(out, func(a, b Policy) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// sorted copies the rows of a table. Rows are replaced, never changed in place, so a copy of the row is enough.
func sorted[K comparable, R any](table map[K]*R, order func(a, b R) int) []R {
	out := make([]R, 0, len(table))
	for _, r := range table {
		out = append(out, *r)
	}
	slices.SortFunc(out, order)
	return out
}

// tenantID is the database id of a tenant, 0 for one that is not known.
func (m *model) tenantID(domain string) int64 { return m.tenants[domain] }

// tenantOfContext is the tenant that owns a context: /t/domain/… or the super tenant.
func tenantOfContext(context string) string {
	if rest, ok := strings.CutPrefix(context, "/t/"); ok {
		if domain, _, ok := strings.Cut(rest, "/"); ok {
			return domain
		}
	}
	return SuperTenant
}

func seededUUID(block string, n int64) string {
	return fmt.Sprintf("%s-0000-4000-8000-%012d", block, n)
}
