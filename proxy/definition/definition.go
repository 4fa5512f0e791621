// Package definition is what a deployed API is to the proxy: routes, endpoints and policies, ready to be compiled into a
// route table. It is a leaf: it imports the standard library only.
package definition

import "time"

// Origin says where a definition came from. The zero value means unknown. The same struct stands in every domain.
type Origin struct {
	Kind string // "event", "pull", "snapshot", "file" or "config"
	At   int64  // ms since the epoch
	ID   string // revision, or path of the file
}

// API is one deployed revision of an API. Values are shared and must not be changed after they were handed over.
type API struct {
	UUID       string
	ID         int64 // database number, 0 when not known
	Name       string
	Version    string
	Context    string // full context with the version: "/pizza/1.0.0"
	Provider   string
	Type       string // HTTP, GRAPHQL, WS, SOAP, ...
	Lifecycle  string // PUBLISHED, BLOCKED, PROTOTYPED, ...
	Tenant     string
	RevisionID string
	// IsDefault makes the API answer under its context without the version too.
	IsDefault bool
	// DefaultContext is that context, "/pizza"; empty when IsDefault is false.
	DefaultContext string
	// Hosts are the virtual hosts it is exposed on; empty means every host.
	Hosts []string
	// Environments are the names of the gateway environments (labels) it is deployed to here.
	Environments []string
	// Transports are "http" and "https"; empty means both.
	Transports []string
	// Tier is the API-level throttling tier; "" or "Unlimited": the operations' tiers apply.
	Tier string
	// AuthHeader replaces the configured credential header; empty means the default.
	AuthHeader string
	// KeyManagers restricts whose tokens are accepted, by name or UUID; empty or {"all"}: everyone's.
	KeyManagers []string
	// SecurityOptional lets requests without a credential pass.
	SecurityOptional bool
	// AllScopes asks callers for every scope of an operation, not for any one of them.
	AllScopes bool
	// ClientCertificates are those that mutual TLS admits to this API.
	ClientCertificates []ClientCertificate
	// SkipSubscriptions lets callers in who have not subscribed to this API.
	SkipSubscriptions bool
	CORS              *CORS
	Production        *Endpoint
	Sandbox           *Endpoint
	Operations        []Operation
	// MaxBodyBytes caps the request body; 0 means the listener's cap.
	MaxBodyBytes int64
	// RevisionNumber is the revisionId of api.yaml, which acknowledgements name; 0 when not known.
	RevisionNumber int64
	// Variants are the same API on other hosts, where its environments have other endpoints: whole definitions with the
	// same UUID and hosts of their own. Whoever builds the route table adds them beside it.
	Variants []*API
	// Notes say what of the definition has no effect here, for logs and state.
	Notes  []string
	Origin Origin
}

// Operation is a resource: a path template and a method.
type Operation struct {
	// Template is relative to the context: "/items/{id}", "/*".
	Template string
	Method   string // upper case
	Tier     string
	// Unsecured operations need no credential; one that is sent is neither checked nor removed.
	Unsecured bool
	// Scopes: any one is enough; empty means none is needed.
	Scopes     []string
	Production *Endpoint // overrides the API's
	Sandbox    *Endpoint
	// Security are the alternatives that let a request in: within one, every kind of credential is needed. Empty means
	// an OAuth2 access token.
	Security [][]Credential
	// APIKeyHeaders and APIKeyQueries name the fields and query parameters that an API key may come in; both empty means
	// the field and the parameter "apikey".
	APIKeyHeaders, APIKeyQueries []string
	// Unavailable, when not empty, says why no credential can satisfy Security in this release. Every request is
	// refused with 401/900901 then.
	Unavailable string
}

// ClientCertificate is a certificate that an API admits: that of a client, or that of an authority that signs clients'.
type ClientCertificate struct {
	Alias string
	// Tier is the business plan of whoever shows it; "" means none.
	Tier string
	// PEM holds one or more certificates.
	PEM string
}

// Credential is a kind of credential that an operation asks for.
type Credential string

// Kinds of credential (rest.md 6.1, 6.3).
const (
	OAuth2    Credential = "oauth2"
	Basic     Credential = "basic_auth"
	APIKey    Credential = "api_key"
	MutualTLS Credential = "mutualssl"
)

// EndpointKind is how the URLs of an endpoint are used.
type EndpointKind string

// Kinds of endpoint (rest.md 6.2).
const (
	Single      EndpointKind = "http"
	LoadBalance EndpointKind = "load_balance"
	Failover    EndpointKind = "failover"
)

// Endpoint is a backend: one URL or several, and how to call it. Zero durations and counts mean the defaults of the
// configuration's [upstream].
type Endpoint struct {
	Kind EndpointKind
	URLs []string // absolute http or https URLs
	// Timeout is the wait for the response header.
	Timeout  time.Duration
	Retry    *Retry
	Breaker  *Breaker
	Security *EndpointSecurity
}

// Retry says which attempts are repeated (gateway-behaviour.md 21).
type Retry struct {
	Count       int
	StatusCodes []int
	Interval    time.Duration
	Factor      float64
	MaxInterval time.Duration
	Methods     []string
}

// Breaker configures the circuit breaker of an endpoint.
type Breaker struct {
	VolumeThreshold  int
	FailureThreshold float64
	Window           time.Duration
	Bucket           time.Duration
	Reset            time.Duration
	HalfOpenRequests int
	StatusCodes      []int
}

// EndpointSecurity is the credential that the gateway shows to the backend.
type EndpointSecurity struct {
	Type     string // basic
	Username string
	Password string
}

// CORS is the cross-origin policy of an API (gateway-behaviour.md 23).
type CORS struct {
	Enabled          bool
	AllowOrigins     []string
	AllowMethods     []string
	AllowHeaders     []string
	ExposeHeaders    []string
	AllowCredentials bool
	MaxAge           time.Duration
}
