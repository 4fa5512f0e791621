// Package event turns the wire messages of the API Manager's event hub into typed events. It is pure: no network, no
// clock, no state. Contract: events.md 2 to 6.
package event

// Topic names of the event hub, in the documented case. Compare them with TopicOf, which ignores case.
const (
	TopicNotification      = "notification"
	TopicKeyManager        = "keyManager"
	TopicTokenRevocation   = "tokenRevocation"
	TopicThrottleData      = "throttleData"
	TopicCacheInvalidation = "cacheInvalidation"
	TopicAsyncWebhooks     = "asyncWebhooksData"
	TopicOpaqueAPIKey      = "opaqueAPIKeyInfo"
)

// Message is one delivery as an event source hands it over.
type Message struct {
	Topic           string // any case
	ContentType     string
	ContentEncoding string
	// Timestamp is the publisher's time, ms since the epoch; 0 when the message has none. Andes writes milliseconds
	// where AMQP 0-9-1 has seconds; sources hand over milliseconds either way.
	Timestamp int64
	MessageID string
	Body      []byte
}

// Event is one decoded event: a value of one of the kinds below, never a pointer. The set is closed.
type Event interface{ isEvent() }

// Base is what every event carries.
type Base struct {
	EventID string
	// Time is the entity's time stamp (the inner timeStamp, else the outer one, else the message's), ms; 0 when there
	// is none at all.
	Time int64
	// Type is the eventType of a notification, else the topic.
	Type         string
	TenantID     int64
	TenantDomain string // empty: not said, process it
}

// Action is what a notification does to its entity.
type Action uint8

// Actions.
const (
	Create Action = iota + 1
	Update
	Delete
)

type (
	// APIChanged is API_CREATE, API_UPDATE, API_DELETE and API_LIFECYCLE_CHANGE (events.md 5.2).
	APIChanged struct {
		Base
		Action    Action
		Lifecycle bool // API_LIFECYCLE_CHANGE
		ID        int64
		UUID      string
		Name      string
		Version   string
		Context   string
		Provider  string
		APIType   string
		Status    string
		// DefaultVersion is true for action=DEFAULT_VERSION: read the metadata again.
		DefaultVersion bool
	}
	// Deployment is DEPLOY_API_IN_GATEWAY and REMOVE_API_FROM_GATEWAY (5.3), both shapes.
	Deployment struct {
		Base
		Remove         bool
		ID             int64
		UUID           string
		Name, Version  string
		Context        string
		Labels         []string
		APIDeleted     bool
		AssociatedUUID []string
	}
	// ApplicationChanged is APPLICATION_CREATE, _UPDATE, _DELETE (5.4). Owner is empty when absent (3.2): keep the
	// known one.
	ApplicationChanged struct {
		Base
		Action     Action
		ID         int64
		UUID       string
		Name       string
		TokenType  string
		Policy     string
		Owner      string
		GroupID    string
		Attributes map[string]string
	}
	// KeyMappingChanged is APPLICATION_REGISTRATION_CREATE and REMOVE_APPLICATION_KEYMAPPING.
	KeyMappingChanged struct {
		Base
		Action          Action // Create or Delete
		ApplicationID   int64
		ApplicationUUID string
		ConsumerKey     string
		KeyType         string
		KeyManager      string
	}
	// SubscriptionChanged is SUBSCRIPTIONS_CREATE, _UPDATE, _DELETE (5.5).
	SubscriptionChanged struct {
		Base
		Action          Action
		ID              int64
		UUID            string
		APIID           int64
		APIUUID         string
		ApplicationID   int64
		ApplicationUUID string
		Policy          string
		State           string
	}
	// PolicyChanged is POLICY_CREATE, _UPDATE, _DELETE (5.6). Kind is API, APPLICATION, SUBSCRIPTION or another text,
	// which is ignored.
	PolicyChanged struct {
		Base
		Action               Action
		Kind                 string
		ID                   int64
		Name                 string
		QuotaType            string
		RateLimitCount       int64
		RateLimitUnit        string
		StopOnQuotaReach     bool
		GraphQLMaxDepth      int64
		GraphQLMaxComplexity int64
		AddedGroups          []int64
		DeletedGroups        []int64
	}
	// KeyTemplateChanged is a key template of throttleData (Remove or add) or CUSTOM_POLICY_*; Old is set for an
	// update, which replaces in one step.
	KeyTemplateChanged struct {
		Base
		Remove   bool
		Template string
		Old      string
	}
	// ScopeChanged is SCOPE_CREATE, _UPDATE, _DELETE.
	ScopeChanged struct {
		Base
		Action Action
		Name   string
		Roles  []string
	}
	// CertificateChanged is ENDPOINT_CERTIFICATE_ADD and _REMOVE.
	CertificateChanged struct {
		Base
		Remove   bool
		Alias    string
		Endpoint string
	}
	// Ignored is an event that a gateway has nothing to do for. Known is false for types that the contract does not
	// name.
	Ignored struct {
		Base
		Known bool
	}
	// ThrottleDecision is a decision on throttleData (4.1).
	ThrottleDecision struct {
		Base
		Key       string
		Throttled bool
		ExpiresAt int64
		// Conditions is the decoded JSON array, nil when absent, null, "" or [].
		Conditions []byte
	}
	// DenyChanged is a deny condition on throttleData (4.3). For IP kinds the value is decoded; Malformed is true when
	// it could not be: pull /block.
	DenyChanged struct {
		Base
		Active     bool
		ID         int64
		Kind       string
		Value      string
		FixedIP    string
		StartingIP string
		EndingIP   string
		Invert     bool
		Malformed  bool
	}
	// Revoked is tokenRevocation (5b).
	Revoked struct {
		Base
		Kind        RevocationKind
		Token       string // RevokeToken
		TokenType   string // JWT, API_KEY, ...
		ConsumerKey string
		User        string
		// Before, ms: tokens issued earlier are refused (mass revocations).
		Before    int64
		ExpiresAt int64 // ms; 0: Time + TTL
		TTL       int64 // seconds
	}
	// KeyManagerChanged is keyManager (5d). Configuration is the map, whichever shape the value had, with numbers as
	// float64; nil for a delete without value. It may hold secrets of connectors: never log or expose it.
	KeyManagerChanged struct {
		Base
		Action        string // add, update, delete
		Name          string
		KMType        string
		Enabled       bool
		Tenant        string // organization, or tenantDomain
		UUID          string
		TokenType     string
		Configuration map[string]any
	}
	// CacheInvalidation is cacheInvalidation (5c).
	CacheInvalidation struct {
		Base
		Kind       string // resourceCache, gatewayKeyCache, gatewayUsernameCache
		APIContext string
		APIVersion string
		Keys       []string // tokens or users
	}
	// WebhookChanged is asyncWebhooksData (5e), 4.0 and later. A throttled subscribe only marks the application and
	// API. Secret is one: never log it.
	WebhookChanged struct {
		Base
		Remove                         bool
		APIUUID, APIName               string
		APIContext, APIVersion         string
		ApplicationUUID                string
		Callback, Topic                string
		Secret                         string
		ExpiresAt                      int64 // ms
		Subscriber                     string
		ApplicationTier, Tier, APITier string
		Throttled                      bool
	}
)

// APIKeyChanged is an API key that is no JWT: opaqueAPIKeyInfo, and API_KEY_CREATE, _UPDATE, _DELETE and the like of the
// newest API Managers (5.7, names of types inferred). A key that was revoked comes as Delete.
type APIKeyChanged struct {
	Base
	Action Action
	// Hash is apiKeyHash as it was written; it may be empty for a Delete that names the UUID.
	Hash string
	// Salted is whether the hash was made with a salt.
	Salted          bool
	UUID            string
	Name            string
	KeyType         string
	User            string
	ApplicationID   int64
	ApplicationUUID string
	APIID           int64
	APIUUID         string
	// Bound is what the key is bound to: APP or API.
	Bound                         string
	PermittedIP, PermittedReferer string
	Status                        string
	CreatedAt                     int64 // ms; 0: not said
	// ValidityPeriod is in seconds from CreatedAt; -1 and 0 mean for ever. ExpiresAt, ms, wins over it; 0: not said.
	ValidityPeriod, ExpiresAt int64
}

// RevocationKind says what a Revoked event names.
type RevocationKind uint8

// Kinds of revocation event.
const (
	RevokeToken RevocationKind = iota
	RevokeConsumerKey
	RevokeUser
	// RevokeReload names nothing: read /revokedjwt again (batch types, unknown types with an empty token).
	RevokeReload
)

func (APIChanged) isEvent()          {}
func (Deployment) isEvent()          {}
func (ApplicationChanged) isEvent()  {}
func (KeyMappingChanged) isEvent()   {}
func (SubscriptionChanged) isEvent() {}
func (PolicyChanged) isEvent()       {}
func (KeyTemplateChanged) isEvent()  {}
func (ScopeChanged) isEvent()        {}
func (CertificateChanged) isEvent()  {}
func (Ignored) isEvent()             {}
func (ThrottleDecision) isEvent()    {}
func (DenyChanged) isEvent()         {}
func (Revoked) isEvent()             {}
func (KeyManagerChanged) isEvent()   {}
func (CacheInvalidation) isEvent()   {}
func (WebhookChanged) isEvent()      {}
func (APIKeyChanged) isEvent()       {}
