// Package throttle says how much a caller may use, and who is denied: levels, decisions of the traffic manager, deny
// policies, key templates, policies with limits, and what is published for each admitted request.
//
// The package holds values and the interfaces of its surroundings only. Assembly is in throttle/checker.
package throttle

import (
	"context"
	"errors"
	"net/netip"
)

// Origin says where a fact came from. The zero value means unknown. The same struct stands in every domain.
type Origin struct {
	Kind string // "event", "pull", "snapshot", "file" or "config"
	At   int64  // ms since the epoch
	ID   string
}

// Level is where a limit was hit; each level has its own fault code (contract events.md 6.2).
type Level uint8

// Levels in the order in which they are checked.
const (
	LevelNone         Level = iota
	LevelAPI                // 900800
	LevelResource           // 900802
	LevelSubscription       // 900804
	LevelBurst              // 900807
	LevelApplication        // 900803
	LevelCustom             // 900806
	LevelHard               // 900801
)

// String names the level as metrics, logs and the admin API show it; "none" for a request that passed.
func (l Level) String() string {
	switch l {
	case LevelNone:
		return "none"
	case LevelAPI:
		return "api"
	case LevelResource:
		return "resource"
	case LevelSubscription:
		return "subscription"
	case LevelBurst:
		return "burst"
	case LevelApplication:
		return "application"
	case LevelCustom:
		return "custom"
	case LevelHard:
		return "hard_limit"
	}
	return "unknown"
}

// Levels lists every level in the order in which they are checked, LevelNone first.
func Levels() []Level {
	return []Level{LevelNone, LevelAPI, LevelResource, LevelSubscription, LevelBurst, LevelApplication, LevelCustom, LevelHard}
}

// ErrBatchRejected is returned by a Sender when the traffic manager will never take this batch, whoever sends it: it is
// dropped and counted, not sent again.
var ErrBatchRejected = errors.New("the traffic manager rejected the batch")

// SuperTenant is the tenant of whatever names no other.
const SuperTenant = "carbon.super"

// Decision is what the traffic manager says of one throttle key (events.md 4.1).
type Decision struct {
	Key       string
	Throttled bool
	// ExpiresAt is the end of the window, ms. 0 means missing: never throttled.
	ExpiresAt int64
	// Conditions is the decoded evaluatedConditions: a JSON array of condition groups, nil when there are none.
	Conditions []byte
	Origin     Origin
	// Inert says why the decision, or a condition group of it, is not enforced; "" when all of it is. Set by throttle/remote.
	Inert string
}

// DenyKind is the kind of a deny policy (blocking condition on the wire).
type DenyKind string

// The six kinds (events.md 4.3). Unknown kinds are kept and shown, never enforced.
const (
	DenyAPI          DenyKind = "API"
	DenyApplication  DenyKind = "APPLICATION"
	DenyUser         DenyKind = "USER"
	DenyIP           DenyKind = "IP"
	DenyIPRange      DenyKind = "IPRANGE"
	DenySubscription DenyKind = "SUBSCRIPTION"
)

// DenyCondition is one deny policy that is in force.
type DenyCondition struct {
	Kind DenyKind
	// Tenant owns the condition; IP kinds count only for APIs of that tenant.
	Tenant string
	// ID is the database number; IP kinds are keyed by (Tenant, ID). 0 when not known.
	ID int64
	// Value is the text to match for API, APPLICATION, USER and SUBSCRIPTION.
	Value string
	// From and To are the bounds of an IPRANGE; From alone is the address of an IP condition.
	From, To netip.Addr
	Invert   bool
	Origin   Origin
	// Inert says why the condition is kept but not enforced, "" when it is enforced. Set by throttle/deny.
	Inert string
}

// KeyTemplate is the key template of a custom policy, "$userId:$apiContext" (events.md 6.5).
type KeyTemplate struct {
	Template  string
	UpdatedAt int64 // ms
	Origin    Origin
	// Inert says why the template can never match, "" when it can. Set by throttle/keytemplate.
	Inert string
}

// PolicyKind is what a policy limits.
type PolicyKind string

// Kinds of policy, named as the lists of the internal data service.
const (
	PolicySubscription PolicyKind = "subscription"
	PolicyApplication  PolicyKind = "application"
	PolicyAPI          PolicyKind = "api"
)

// Limit is one quota (rest.md 3). The zero value means that the API Manager did not say (3.2).
type Limit struct {
	QuotaType string // requestCount, bandwidthVolume, eventCount
	Count     int64  // requests, events, or bytes
	UnitTime  int64
	TimeUnit  string // sec, min, hour, day, month, year
}

// Condition is one part of a condition group.
type Condition struct {
	Type   string // IPSpecific, IPRange, Header, QueryParameterType, JWTClaims
	Name   string
	Value  string
	Invert bool
}

// ConditionGroup limits the requests that meet all its conditions.
type ConditionGroup struct {
	ID         int64
	Limit      Limit
	Conditions []Condition
}

// Policy is a tier (rest.md 3).
type Policy struct {
	Kind   PolicyKind
	Tenant string
	Name   string
	ID     int64
	// Default is the limit that applies; zero where the API Manager does not give limits.
	Default Limit
	// BurstCount and BurstUnit are the burst control of subscription policies; 0 means none.
	BurstCount int64
	BurstUnit  string
	// StopOnQuotaReach false lets requests over quota pass (subscription policies).
	StopOnQuotaReach     bool
	UserLevel            bool // API policies: counted per user
	Groups               []ConditionGroup
	GraphQLMaxDepth      int64
	GraphQLMaxComplexity int64
	UpdatedAt            int64
	Origin               Origin
}

// Attributes gives the conditions of advanced policies access to the request. Implementations belong to one request and
// are not used after it.
type Attributes interface {
	// Header returns the values of a header, name without regard to case.
	Header(name string) []string
	// Query returns the values of a query parameter.
	Query(name string) []string
	// Claim returns a claim of the verified token as text, "" when absent.
	Claim(name string) string
}

// AttributeVisitor is given one name and value at a time.
type AttributeVisitor interface {
	VisitAttribute(name, value string)
}

// AttributeSource is implemented by Attributes that can also list themselves: the traffic manager evaluates header, query
// and claim conditions too, and sees only what is published. Attributes without it publish none. A name with several
// values is visited once per value. Visitors are interfaces and not functions so that no closure is allocated per request.
type AttributeSource interface {
	VisitHeaders(v AttributeVisitor)
	VisitQuery(v AttributeVisitor)
	VisitClaims(v AttributeVisitor)
}

// Property is a custom property of a request, set by an extension: "$customProperty.<name>" in key templates.
type Property struct{ Name, Value string }

// Request is what one request is counted under. The proxy fills it once per request and reuses it; texts that do not
// change per request are shared. The zero value is a request of nobody to nothing.
type Request struct {
	MessageID string

	APIName    string
	APIContext string // with the version: "/pizza/1.0.0"
	APIVersion string
	APITenant  string
	APITier    string // "" or "Unlimited": none
	// ResourceTemplate is the matched template, not the raw path; Method in upper case.
	ResourceTemplate string
	Method           string
	ResourceTier     string

	Authenticated bool
	AppID         string // decimal
	AppName       string
	AppOwner      string // the subscriber as stored
	AppTenant     string
	AppTier       string
	// SubscriptionTier is the business plan; "Unauthenticated" for unsecured resources.
	SubscriptionTier string
	KeyType          string // PRODUCTION or SANDBOX
	// User is the end user with the tenant appended, "bob@carbon.super".
	User string

	ClientIP   netip.Addr
	Attributes Attributes
	// Properties are custom properties; the last of a name counts.
	Properties []Property
	// MessageSize is the size of the request body in bytes, -1 when not known.
	MessageSize int64
}

// Verdict is the answer of the checks. The zero value means allowed.
type Verdict struct {
	Level Level // LevelNone: allowed
	// Key is the throttle key that was hit; Condition the condition group, "" for none.
	Key       string
	Condition string
	// RetryAt is when the window ends, ms; 0 when not known.
	RetryAt int64
	// OverQuota is true when a subscription without stopOnQuotaReach passed over its quota.
	OverQuota bool
	Origin    Origin
}

// Batch is a piece of the request stream, encoded as one databridge publish body without the session (contract
// traffic-manager.md 2.1, 2.4): i32 eventCount, event*.
type Batch struct {
	Body   []byte
	Events int
}

// Sender delivers request events to a traffic manager. Send blocks until the batch is accepted or has failed; it is
// called by one goroutine at a time. The body belongs to the caller again when Send returns.
type Sender interface {
	Send(ctx context.Context, b Batch) error
}

// DecisionSink publishes decisions of a traffic manager.
type DecisionSink interface {
	Publish(ctx context.Context, d Decision) error
}
