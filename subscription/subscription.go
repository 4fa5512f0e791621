// Package subscription says what a caller has bought: the API, application, key mapping and subscription rows that the
// API Manager keeps, and the pure decision that follows from them.
//
// The rows are values without behaviour. Tables of them, and the look-ups of the request path, are in
// subscription/store. The package imports nothing of ours.
package subscription

// Origin says where a row came from, so that an operator can see why a request was allowed or refused.
// The zero value means unknown. Each domain declares the same struct, so values convert without cost.
type Origin struct {
	// Kind is "event", "pull", "snapshot", "file" or "config".
	Kind string
	// At is when the fact was learnt, in milliseconds since the epoch.
	At int64
	// ID names the event, the pull or the file.
	ID string
}

// KeyType is the kind of credential that an application used: it chooses the endpoint.
type KeyType string

// Key types as the API Manager spells them.
const (
	Production KeyType = "PRODUCTION"
	Sandbox    KeyType = "SANDBOX"
)

// State is the state of a subscription, spelled as on the wire (contract rest.md 4.2). Unknown texts are kept as they
// are: Validate refuses them.
type State string

// The states that the API Manager is known to send.
const (
	Unblocked         State = "UNBLOCKED"
	TierUpdatePending State = "TIER_UPDATE_PENDING"
	Blocked           State = "BLOCKED"
	ProdOnlyBlocked   State = "PROD_ONLY_BLOCKED"
	OnHold            State = "ON_HOLD"
	Rejected          State = "REJECTED"
)

// API is the metadata of an API (rest.md 2.1). ID is the database number (0 where it is not known), UUID the
// identifier of 4.x (empty in early 3.2).
type API struct {
	ID        int64
	UUID      string
	Name      string
	Version   string
	Context   string // full context with the version, "/pizza/1.0.0" or "/t/example.org/news/1.0.0"
	Provider  string
	Type      string // HTTP, GRAPHQL, WS, ...
	Status    string // life cycle: PUBLISHED, BLOCKED, ...
	Policy    string // API-level tier; empty or "Unlimited": resource tiers apply
	Tenant    string
	IsDefault bool
	Resources []APIResource
	UpdatedAt int64 // time stamp of the last event, ms; 0 when it came by pull
	Origin    Origin
}

// APIResource is one entry of an API's urlMappings.
type APIResource struct {
	Pattern string
	Method  string
	Auth    string // Any, None, Application, Application User
	Policy  string // tier
	Scopes  []string
}

// Application is a consumer's application (rest.md 2.2). ID is 0 where only the UUID is known.
type Application struct {
	ID         int64
	UUID       string
	Name       string
	Owner      string // the subscriber, as stored
	Policy     string // application tier
	TokenType  string
	Tenant     string
	GroupIDs   []string
	Attributes map[string]string
	UpdatedAt  int64
	Origin     Origin
}

// KeyMapping binds a consumer key of one key manager to an application (rest.md 2.3). An empty KeyManager (3.2) matches
// any key manager.
type KeyMapping struct {
	ConsumerKey     string
	KeyManager      string
	KeyType         KeyType
	ApplicationID   int64
	ApplicationUUID string
	Tenant          string
	UpdatedAt       int64
	Origin          Origin
}

// Subscription binds an application to an API with a business plan (rest.md 2.4). ID is 0 where only the UUID is known.
type Subscription struct {
	ID              int64
	UUID            string
	APIID           int64
	APIUUID         string
	ApplicationID   int64
	ApplicationUUID string
	Policy          string
	State           State
	Tenant          string
	UpdatedAt       int64
	Origin          Origin
}

// Key is what an application is kept under: its number, or a negative one made of its UUID where no number is known. It is
// the same in every process. 0: the row names neither.
func (a *Application) Key() int64 { return RowKey(a.ID, a.UUID) }

// Key is what a subscription is kept under, as with Application.Key.
func (s *Subscription) Key() int64 { return RowKey(s.ID, s.UUID) }

// RowKey is the number, or where that is 0 a negative one made of the UUID (FNV-1a, 63 bits); 0 when neither is known.
func RowKey(id int64, uuid string) int64 {
	if id != 0 || uuid == "" {
		return id
	}
	h := uint64(14695981039346656037)
	for i := range len(uuid) {
		h = (h ^ uint64(uuid[i])) * 1099511628211
	}
	return -1 - int64(h>>1)
}

// APIRef names the API of a request: by UUID, by database number, and by context and version, whatever is known.
// Context is the full context with the version.
type APIRef struct {
	UUID    string
	ID      int64
	Context string
	Version string
}

// Facts are the rows that a consumer key and an API led to. A nil row was not found. Rows are shared and must not be
// changed.
type Facts struct {
	API          *API
	Mapping      *KeyMapping
	Application  *Application
	Subscription *Subscription
}

// Reason is the outcome of Validate. The zero value is Allowed.
type Reason uint8

// The outcomes, in the order in which Validate looks for them (rest.md 4.1 and 4.2).
const (
	Allowed              Reason = iota
	UnknownAPI                  // 900908
	UnknownKey                  // 900908: no key mapping of this consumer key at this key manager
	UnknownApplication          // 900908
	NoSubscription              // 900908
	SubscriptionBlocked         // 900907
	SubscriptionInactive        // 900909: ON_HOLD, REJECTED
	UnknownState                // 900908
)

// KeyManagerRef normalises the name of the resident key manager, which is "Default" in 3.2 and "Resident Key Manager"
// in 4.x: one and the same.
const residentKeyManager = "Resident Key Manager"

// CanonicalKeyManager returns the one name under which a key manager's mappings are kept: the two names of the
// resident key manager become one, any other name is returned as it is.
func CanonicalKeyManager(name string) string {
	if name == "Default" {
		return residentKeyManager
	}
	return name
}
