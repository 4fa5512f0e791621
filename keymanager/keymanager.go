// Package keymanager says who is calling: key managers as the API Manager or the configuration names them, the
// credential that a request carries, and the verified token that it became.
//
// The package holds values and named errors only. Assembly is in keymanager/registry.
package keymanager

import (
	"errors"
	"fmt"
	"time"
)

// Origin says where a fact came from. The zero value means unknown. The same struct stands in every domain.
type Origin struct {
	Kind string // "event", "pull", "snapshot", "file" or "config"
	At   int64  // ms since the epoch
	ID   string
}

// ClaimMapping renames one claim of a token before it is used, and may change its value.
type ClaimMapping struct {
	Remote string
	Local  string
	// Function changes the value: "", lower, upper, split(x), join(x), prefix(x) or regex(from,to) (contract
	// gateway-behaviour.md 15).
	Function string
}

// KeyManager is the configuration of an issuer and validator of tokens (contract rest.md 5.1, 5.2;
// gateway-behaviour.md 6). Values are shared and must not be changed after they were handed over.
type KeyManager struct {
	Name   string
	Tenant string // owner; WSO2-ALL-TENANTS for a global one
	Type   string // shown only, never switched on
	UUID   string
	// Enabled false keeps the record while its tokens are refused.
	Enabled bool
	// Issuer must equal the claim iss byte for byte.
	Issuer string
	// JWKSURL and PEM are where keys come from; PEM holds one or more PEM certificates or public keys.
	JWKSURL string
	PEM     string
	// ConsumerKeyClaim empty means: consumerKey, then azp.
	ConsumerKeyClaim string
	// ScopesClaim empty means scope.
	ScopesClaim   string
	ClaimMappings []ClaimMapping
	// SelfValidate is whether the gateway verifies JWTs of this key manager itself.
	SelfValidate bool
	// Audience, when not empty, must meet the token's aud in at least one value.
	Audience []string
	// Algorithms is the allow-list; empty means RS/PS/ES 256-512 and EdDSA.
	Algorithms []string
	// ClockSkew is the leeway for exp, nbf and iat; 0 means 5 s.
	ClockSkew time.Duration
	// AllowMissingExp accepts tokens without exp.
	AllowMissingExp bool
	// SkipSubscriptions turns subscription validation off for tokens of this key manager, ValidateSubscriptions on, whatever
	// holds for the whole gateway; that holds where neither is set.
	SkipSubscriptions, ValidateSubscriptions bool
	// MaxStale is how long a key set is kept while it cannot be refreshed; 0 means 24 h.
	MaxStale time.Duration
	// JWKSRefresh is the most time between two fetches of the key set, and so how long a withdrawn key may go on; 0 means
	// 1 h. The server may ask for more frequent fetches.
	JWKSRefresh time.Duration
	// CAFile and SkipTLSVerify apply to the URLs of the key set and of the introspection. CAPEM, when not empty, is what
	// CAFile holds: a change of it is a change of the key manager, which the name of the file alone does not show.
	CAFile, CAPEM string
	SkipTLSVerify bool
	// SharedSecret verifies HS256, HS384 and HS512; "" refuses them. Only an issuer of the configuration has one.
	SharedSecret string
	// Introspection, when not nil, is where opaque tokens are asked about.
	Introspection *Introspection
	// TokenFormats say which tokens are this key manager's; none means that the issuer tells.
	TokenFormats []TokenFormat
	// FromConfiguration marks an issuer of the configuration file; a key manager of the API Manager with the same
	// issuer replaces it.
	FromConfiguration bool
	Origin            Origin
}

// Credential is what a request offers, taken apart from the request.
type Credential struct {
	// Bearer is the text after "Bearer ".
	Bearer string
	// Allowed restricts the key managers that the API accepts, by name or UUID; empty or "all" accepts every one.
	Allowed []string
	// Tenant is the tenant of the API.
	Tenant string
}

// EmbeddedSubscription is an entry of a self-contained token's subscribedAPIs (rest.md 4.1).
type EmbeddedSubscription struct {
	Name, Version, Context, Tier, SubscriberTenant string
}

// EmbeddedApplication is the claim application of a self-contained token.
type EmbeddedApplication struct {
	ID                int64
	UUID, Name, Owner string
	Tier              string
	KeyType           string
}

// Token is a verified credential. It is shared by all requests that carry the same token and must not be changed.
type Token struct {
	Kind        Kind
	KeyManager  string // canonical name
	Issuer      string
	ID          string // jti, else the signature part
	KeyID       string
	Subject     string // sub
	User        string // end user as claimed, without a tenant appended
	ConsumerKey string
	Scopes      []string
	Claims      map[string]any // after claim mapping
	IssuedAt    int64          // seconds since the epoch; 0 when the token has none
	ExpiresAt   int64          // seconds; 0 when the token has none
	// SkipSubscriptions and ValidateSubscriptions are copied from the key manager.
	SkipSubscriptions, ValidateSubscriptions bool
	// BoundTo is the SHA-256 thumbprint, in base64url, of the only client certificate that the token may come with
	// (cnf.x5t#S256, RFC 8705); "" for a token of any bearer.
	BoundTo     string
	Application *EmbeddedApplication
	Subscribed  []EmbeddedSubscription
	// Tier is the business plan that the credential itself brings (that of a client certificate); "" means none.
	Tier string
	// Unsubscribed says that the credential needs no subscription: basic authentication, client certificates and the keys
	// of the test console.
	Unsubscribed bool
	Origin       Origin // of the key manager
}

// Check names the verification step that failed, in words that logs, explain and WWW-Authenticate share.
type Check string

// The checks, in the order in which they are made.
const (
	CheckFormat     Check = "format"
	CheckSize       Check = "size"
	CheckIssuer     Check = "issuer"
	CheckAllowed    Check = "key_manager_not_allowed"
	CheckAlgorithm  Check = "algorithm"
	CheckKey        Check = "key"
	CheckSignature  Check = "signature"
	CheckExpired    Check = "expired"
	CheckNotBefore  Check = "not_before"
	CheckIssuedAt   Check = "issued_at"
	CheckAudience   Check = "audience"
	CheckRevoked    Check = "revoked"
	CheckBound      Check = "certificate" // bound to a client certificate that did not come with it
	CheckUnverified Check = "unavailable" // the key server could not be reached and no key is held
	CheckOpaque     Check = "opaque"      // not a JWT, and no key manager introspects it
	CheckInactive   Check = "inactive"    // the key manager does not know the opaque token, or no longer
	CheckKind       Check = "kind"        // a token of another kind: an API key as an access token, or the reverse
	CheckAPI        Check = "api"         // the API key is not for the API
	CheckIP         Check = "permitted_ip"
	CheckReferer    Check = "permitted_referer"
	CheckUser       Check = "user" // user or password of basic authentication
	CheckClient     Check = "client_certificate"
)

// ErrRefused is what every *Refusal is, for errors.Is.
var ErrRefused = errors.New("credential refused")

// Refusal says why a credential was not accepted. Detail never holds the token.
type Refusal struct {
	Check      Check
	Detail     string // lower case, for people; safe for WWW-Authenticate
	KeyManager string
	Issuer     string
	Origin     Origin
	// Temporary is true when the fault is ours (key server away): 503, not 401.
	Temporary bool
	// Forbidden is true when the credential is good but not from here: 403/900908, not 401.
	Forbidden bool
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("token refused at check %s: %s", r.Check, r.Detail)
}

// Is makes errors.Is(err, ErrRefused) true.
func (r *Refusal) Is(target error) bool { return target == ErrRefused }

// RevocationKind says what a revocation names.
type RevocationKind uint8

// Kinds of revocation (events.md 5b).
const (
	RevokedToken       RevocationKind = iota // by jti, signature, or the opaque token itself
	RevokedConsumerKey                       // every token of a client issued before a time
	RevokedSubject                           // every token of a user issued before a time
)

// Revocation is one revoked token, or one mass revocation.
type Revocation struct {
	Kind RevocationKind
	// Value is the jti, the whole token (indexed by its signature too), the opaque token, the consumer key or the
	// user. Opaque tokens and signatures are kept as hashes only.
	Value string
	// ExpiresAt is when the entry may be forgotten, ms. For mass revocations 0 means the default keep time.
	ExpiresAt int64
	// Before, ms: tokens with iat*1000 < Before are refused (mass revocations only).
	Before int64
	Tenant string
	Origin Origin
}
