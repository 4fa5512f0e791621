package keymanager

// Caller is what a backend is told about the one who calls: a verified token, the API that is called, and what the
// subscription says of the application. Two callers that are equal get the same backend JWT, so every member is a value or
// points to what is shared and never changed. The zero value is somebody unknown who calls nothing.
type Caller struct {
	// Token is nil for a caller without a credential.
	Token *Token

	APIUUID, APIName, APIVersion string
	APIContext                   string // with the version: "/pizza/1.0.0"
	APITenant                    string

	ApplicationID                                      int64 // 0: not known
	ApplicationUUID, ApplicationName, ApplicationOwner string
	ApplicationTier                                    string
	// Attributes are those of the application as it is stored; nil where there are none.
	Attributes *map[string]string

	// Tier is the business plan of the subscription.
	Tier string
	// KeyType is PRODUCTION or SANDBOX; "" where no key mapping tells, and the token's own word counts.
	KeyType string
	// SubscriberTenant is the tenant domain of who subscribed.
	SubscriberTenant string
}
