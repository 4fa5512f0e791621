package emulator

// base ends every inner event of a notification (contract events.md 5.1).
type base struct {
	EventID      string `json:"eventId"`
	TimeStamp    int64  `json:"timeStamp"`
	Type         string `json:"type"`
	TenantID     int64  `json:"tenantId"`
	TenantDomain string `json:"tenantDomain,omitempty"`
}

type apiEvent struct {
	APIName     string `json:"apiName"`
	APIID       int64  `json:"apiId"`
	UUID        string `json:"uuid"`
	APIVersion  string `json:"apiVersion"`
	APIContext  string `json:"apiContext"`
	APIProvider string `json:"apiProvider"`
	APIType     string `json:"apiType"`
	APIStatus   string `json:"apiStatus"`
	Action      string `json:"action,omitempty"`
	base
}

type deployEvent struct {
	APIID          any      `json:"apiId"` // a number; in 3.2 the UUID
	UUID           string   `json:"uuid,omitempty"`
	Name           string   `json:"name,omitempty"`
	Version        string   `json:"version,omitempty"`
	Provider       string   `json:"provider,omitempty"`
	APIType        string   `json:"apiType,omitempty"`
	Context        string   `json:"context,omitempty"`
	GatewayLabels  []string `json:"gatewayLabels"`
	AssociatedAPIs *[]any   `json:"associatedApis,omitempty"`
	Deleted        *bool    `json:"deleted,omitempty"`
	base
}

type applicationEvent struct {
	UUID              string            `json:"uuid"`
	ApplicationID     int64             `json:"applicationId"`
	ApplicationName   string            `json:"applicationName"`
	TokenType         string            `json:"tokenType"`
	ApplicationPolicy string            `json:"applicationPolicy"`
	GroupID           string            `json:"groupId"`
	Attributes        map[string]string `json:"attributes"`
	Subscriber        string            `json:"subscriber,omitempty"` // absent in 3.2
	base
}

type keyMappingEvent struct {
	ApplicationUUID string `json:"applicationUUID"`
	ApplicationID   int64  `json:"applicationId"`
	ConsumerKey     string `json:"consumerKey"`
	KeyType         string `json:"keyType"`
	KeyManager      string `json:"keyManager"`
	base
}

type subscriptionEvent struct {
	SubscriptionID    int64  `json:"subscriptionId"`
	SubscriptionUUID  string `json:"subscriptionUUID"`
	APIID             int64  `json:"apiId"`
	APIUUID           string `json:"apiUUID"`
	ApplicationID     int64  `json:"applicationId"`
	ApplicationUUID   string `json:"applicationUUID"`
	PolicyID          string `json:"policyId"`
	SubscriptionState string `json:"subscriptionState"`
	base
}

type policyEvent struct {
	PolicyID                 int64   `json:"policyId"`
	PolicyName               string  `json:"policyName"`
	QuotaType                string  `json:"quotaType"`
	SubscriberCount          *int64  `json:"subscriberCount,omitempty"`
	RateLimitCount           *int64  `json:"rateLimitCount,omitempty"`
	RateLimitTimeUnit        string  `json:"rateLimitTimeUnit,omitempty"`
	StopOnQuotaReach         *bool   `json:"stopOnQuotaReach,omitempty"`
	GraphQLMaxDepth          *int64  `json:"graphQLMaxDepth,omitempty"`
	GraphQLMaxComplexity     *int64  `json:"graphQLMaxComplexity,omitempty"`
	AddedConditionGroupIDs   []int64 `json:"addedConditionGroupIds,omitempty"`
	DeletedConditionGroupIDs []int64 `json:"deletedConditionGroupIds,omitempty"`
	PolicyType               string  `json:"policyType"`
	base
}

type scopeEvent struct {
	Name        string         `json:"name"`
	DisplayName string         `json:"displayName"`
	Description string         `json:"description,omitempty"`
	Roles       []string       `json:"roles"`
	Mappings    map[string]any `json:"mappings"`
	base
}

type templateEvent struct {
	State string `json:"keyTemplateState"`
	Old   string `json:"oldKeyTemplate,omitempty"`
	New   string `json:"newKeyTemplate,omitempty"`
	Only  string `json:"keyTemplate,omitempty"`
	base
}
