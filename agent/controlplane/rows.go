// Package controlplane is the client of the API Manager's internal data service: lists, single rows, artifacts,
// registration and acknowledgements. It returns wire rows and knows no domain.
package controlplane

// The rows of the internal data service as they come over the wire, with both spellings of every field that changed
// between 3.2 and 4.x folded into one (contract rest.md 2, 3 and 5). They know nothing of the domains.

// API is a row of /apis.
type API struct {
	UUID, Provider, Name, Version, Context, Policy, APIType, Status, Organization string
	APIID                                                                         int64
	IsDefaultVersion                                                              bool
	URLMappings                                                                   []URLMapping
}

// URLMapping is one resource of an API row.
type URLMapping struct {
	AuthScheme, ThrottlingPolicy, HTTPMethod, URLPattern string
	Scopes                                               []string
}

// Application is a row of /applications.
type Application struct {
	UUID, Name, SubName, Policy, TokenType, Organization string
	ID                                                   int64
	GroupIDs                                             []string
	Attributes                                           map[string]string
}

// KeyMapping is a row of /application-key-mappings.
type KeyMapping struct {
	ApplicationID                                     int64
	ApplicationUUID, ConsumerKey, KeyType, KeyManager string
}

// Subscription is a row of /subscriptions.
type Subscription struct {
	SubscriptionID, APIID, AppID                                            int64
	SubscriptionUUID, PolicyID, APIUUID, ApplicationUUID, SubscriptionState string
}

// Limit is a defaultLimit; nil pointers in a Policy mean that the row had none (3.2).
type Limit struct {
	QuotaType string
	TimeUnit  string
	UnitTime  int64
	// Count is requests or events; Bytes is the bandwidth. One of them is set.
	Count, Bytes int64
}

// Policy is a row of /subscription-policies, /application-policies and /api-policies.
type Policy struct {
	ID, TenantID                          int64
	TenantDomain, Name, QuotaType         string
	DefaultLimit                          *Limit
	RateLimitCount                        int64
	RateLimitTimeUnit                     string
	StopOnQuotaReach                      bool
	GraphQLMaxDepth, GraphQLMaxComplexity int64
	ApplicableLevel                       string
	ConditionGroups                       []ConditionGroup
}

// ConditionGroup is a part of an API policy.
type ConditionGroup struct {
	ID         int64
	Limit      *Limit
	Conditions []Condition
}

// Condition is a part of a condition group.
type Condition struct {
	Type, Name, Value string
	Inverted          bool
}

// GlobalPolicy is a row of /global-policies.
type GlobalPolicy struct {
	ID, TenantID                                 int64
	TenantDomain, Name, KeyTemplate, SiddhiQuery string
}

// Scope is a row of /scopes.
type Scope struct {
	Name, DisplayName, Description string
	Roles                          []string
}

// KeyManager is a row of /keymanagers. Configuration may hold secrets of connectors: never log or expose it.
type KeyManager struct {
	UUID, Name, Type, Tenant, TokenType string
	Enabled                             bool
	Configuration                       map[string]any
}

// IPCondition is an entry of the ip member of /block.
type IPCondition struct {
	ID                                                int64
	Type, FixedIP, StartingIP, EndingIP, TenantDomain string
	Invert                                            bool
	// Inactive is true when the row says state=false.
	Inactive bool
}

// Block is the answer of /block.
type Block struct {
	API, Application, User, Subscription, Custom []string
	IP                                           []IPCondition
}

// RevokedToken is an entry of /revokedjwt.
type RevokedToken struct {
	Signature string // jti, or token
	ExpiresAt int64  // ms
}

// MassRevocation is an entry of the two newer lists of /revokedjwt.
type MassRevocation struct {
	ConsumerKey          string // set in revokedJWTConsumerKeyList
	EntityID, EntityType string // set in revokedJWTSubjectEntityList
	Before               int64  // ms
	Organization         string
}

// Revoked is the answer of /revokedjwt, whichever shape it had.
type Revoked struct {
	Tokens []RevokedToken
	Mass   []MassRevocation
}

// Artifact is one project of the zip of /runtime-artifacts.
type Artifact struct {
	// File is the name of the project inside the zip; Project the zip itself.
	File    string
	Project []byte
	// APIUUID and RevisionUUID are what the name of the file says; empty when it is of another form.
	APIUUID, RevisionUUID string
	// Environments and vhosts it is deployed to, as deployments.json says.
	Deployments  []Deployment
	Organization string
	APIContext   string
	Version      string
	// EndpointOverrides is what env_properties.json says, by environment.
	EndpointOverrides map[string]EndpointOverride
	// Err is set when deployments.json names a file that the zip lacks: this API alone is faulty.
	Err error
}

// Deployment is one environment of an artifact.
type Deployment struct{ Environment, VHost string }

// EndpointOverride replaces the endpoints of a project in one environment; empty means keep.
type EndpointOverride struct{ Production, Sandbox string }

// Acknowledgement reports a deployed revision (PATCH /apis/deployed-revisions).
type Acknowledgement struct {
	APIUUID    string
	RevisionID int64
	Deployed   []Deployment
}
