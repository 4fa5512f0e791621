package config

import (
	"net/netip"
	"strings"
)

// The tree below is the reference of every key: the toml tag names it, the rule tag says what it takes. Rules are
// separated by commas:
//
//	required           must be written where its section stands
//	min=…, max=…       bounds, in the unit of the key
//	enum=a|b           the values it takes
//	scheme=http|https  a URL with one of these schemes
//	broker             a broker URL in one of the forms of contract events.md 1.1
//	receiver           a traffic manager's receiver: tcp://, ssl:// or nats:// with host and port
//	listen             an address to listen on
//	header             the name of an HTTP header
//	method             a method of HTTP, or "*"
//	word               not empty, without blanks
//	host, origin, urlpath, stream, function
//	                   the name of a machine, an origin of CORS, the path of a URL, the name of a JetStream stream, a function
//	                   of a claim's value
//	file, dir          must exist when it is written
//	newdir             a folder that is made when it is missing
//	wso2               taken from deployment.toml: numbers and true/false may stand in quotes, lists in one string
//	unit=s|ms          the unit of a plain number, as deployment.toml has it; a unit may be written all the same
//	reload             a change takes effect without a restart
//	later, later=…     taken and checked, without effect in this release; a value other than the one named here (the zero
//	                   value where none is) is noted. Whoever brings a key to life takes the word away
//
// Every field is listed in docs/configuration.md, whose table a test compares with this file.

// Config is a whole configuration. Default gives the defaults; Load and Parse give one that has passed every check. It is
// not changed after that and may be read by any number of goroutines.
type Config struct {
	Listener       Listener       `toml:"listener"`
	Admin          Admin          `toml:"admin"`
	Gateway        Gateway        `toml:"gateway"`
	Standalone     Standalone     `toml:"standalone"`
	APIM           APIM           `toml:"apim"`
	APIMgt         APIMgt         `toml:"apimgt"`
	Upstream       Upstream       `toml:"upstream"`
	Log            Log            `toml:"log"`
	Tracing        Tracing        `toml:"tracing"`
	Relay          Relay          `toml:"relay"`
	TrafficManager TrafficManager `toml:"traffic_manager"`
}

// Listener is where clients reach the gateway.
type Listener struct {
	HTTP string `toml:"http" rule:"listen"`
	// HTTPS is empty, and the TLS listener off, where no certificate is configured.
	HTTPS             string         `toml:"https" rule:"listen"`
	Engine            string         `toml:"engine" rule:"enum=standard|fast,later=standard"`
	CertFile          Path           `toml:"cert_file" rule:"file"`
	KeyFile           Path           `toml:"key_file" rule:"file"`
	ClientCAFile      Path           `toml:"client_ca_file" rule:"file"`
	TLSMinVersion     string         `toml:"tls_min_version" rule:"enum=1.2|1.3"`
	IdleTimeout       Duration       `toml:"idle_timeout" rule:"min=1s,max=24h"`
	ReadHeaderTimeout Duration       `toml:"read_header_timeout" rule:"min=100ms,max=10m"`
	MaxURIBytes       Size           `toml:"max_uri_bytes" rule:"min=256,max=1MiB"`
	MaxHeaderBytes    Size           `toml:"max_header_bytes" rule:"min=1KiB,max=16MiB"`
	MaxBodyBytes      Size           `toml:"max_body_bytes" rule:"min=0"` // 0: no limit
	TrustedProxies    []netip.Prefix `toml:"trusted_proxies"`
	ProxyProtocol     bool           `toml:"proxy_protocol" rule:"later"`
}

// Admin is the admin server.
type Admin struct {
	Address  string   `toml:"address" rule:"listen"`
	Username string   `toml:"username"`
	Password Secret   `toml:"password"`
	Token    Secret   `toml:"token"`
	CertFile Path     `toml:"cert_file" rule:"file"`
	KeyFile  Path     `toml:"key_file" rule:"file"`
	Open     []string `toml:"open" rule:"enum=health|metrics"`
}

// Gateway is what the gateway is and how it answers.
type Gateway struct {
	Environment string `toml:"environment" rule:"word"`
	// GatewayLabels is what it fetches. After Load it is never empty: [apim.sync_runtime_artifacts.gateway] or the
	// environment fill it.
	GatewayLabels       []string `toml:"gateway_labels"`
	Tenants             []string `toml:"tenants"`
	DataDir             Path     `toml:"data_dir" rule:"newdir"`
	FaultDialect        string   `toml:"fault_dialect" rule:"enum=mgw|apim4|problem"`
	Realm               string   `toml:"realm"`
	IgnoreTrailingSlash bool     `toml:"ignore_trailing_slash"`
	MaxSnapshotAge      Duration `toml:"max_snapshot_age" rule:"min=0s,max=365d"`
	DrainDelay          Duration `toml:"drain_delay" rule:"min=0s,max=10m"`
	// ValidateSubscriptions after Load is what is in force: written, or whether an API Manager is configured.
	ValidateSubscriptions bool           `toml:"validate_subscriptions"`
	ScopesForAPIKeys      bool           `toml:"scopes_for_api_keys"`
	TraceRingAdmitted     int            `toml:"trace_ring_admitted" rule:"min=0,max=1000000"`
	TraceRingRefused      int            `toml:"trace_ring_refused" rule:"min=0,max=1000000"`
	RequestValidation     string         `toml:"request_validation" rule:"enum=off|log|enforce,later=off"`
	ResponseValidation    string         `toml:"response_validation" rule:"enum=off|log|enforce,later=off"`
	Compat                GatewayCompat  `toml:"compat"`
	OnStale               GatewayOnStale `toml:"on_stale"`
	Introspection         Introspection  `toml:"introspection"`
	Users                 []GatewayUser  `toml:"user"`
	APIKeyIssuers         []APIKeyIssuer `toml:"api_key_issuer"`
}

// GatewayCompat brings answers of Microgateway 3.2 back that were changed on purpose.
type GatewayCompat struct {
	MGWEndpointError bool `toml:"mgw_endpoint_error"`
	MGWUpstream500   bool `toml:"mgw_upstream_500"`
	MGWResponse500   bool `toml:"mgw_response_500" rule:"later"`
}

// GatewayOnStale says what happens when a table has not been refreshed for StaleAfter.
type GatewayOnStale struct {
	Subscriptions string   `toml:"subscriptions" rule:"enum=serve|deny"`
	Revocation    string   `toml:"revocation" rule:"enum=serve|deny"`
	Deny          string   `toml:"deny" rule:"enum=serve|deny"`
	StaleAfter    Duration `toml:"stale_after" rule:"min=1s,max=365d"`
}

// Introspection is how answers about opaque tokens are kept.
type Introspection struct {
	TTL           Duration `toml:"ttl" rule:"min=0s,max=24h"`
	OnUnavailable string   `toml:"on_unavailable" rule:"enum=deny|serve_stale"`
	StaleTTL      Duration `toml:"stale_ttl" rule:"min=0s,max=24h"`
}

// GatewayUser is a user of basic authentication.
type GatewayUser struct {
	Name         string   `toml:"name" rule:"required,word,reload"`
	PasswordHash Secret   `toml:"password_hash" rule:"required,reload"`
	Scopes       []string `toml:"scopes" rule:"reload"`
}

// APIKeyIssuer signs API keys, or the internal keys of the test console.
type APIKeyIssuer struct {
	// Name is the value of the claim iss.
	Name            string `toml:"name" rule:"required,word,reload"`
	Kind            string `toml:"kind" rule:"enum=api_key|internal_key,reload"`
	CertificateFile Path   `toml:"certificate_file" rule:"file,reload"`
	JWKSURL         URL    `toml:"jwks_url" rule:"scheme=http|https,reload"`
	// CAFile and SkipSSLVerification are for JWKSURL.
	CAFile              Path `toml:"ca_file" rule:"file,reload"`
	SkipSSLVerification bool `toml:"skip_ssl_verification" rule:"reload"`
	// ValidateAllowedAPIs after Load is what is in force: written, or true where subscriptions are not validated.
	ValidateAllowedAPIs bool     `toml:"validate_allowed_apis" rule:"reload"`
	ClockSkew           Duration `toml:"clock_skew" rule:"min=0s,max=300s,reload"`
}

// Standalone is what is read from disk.
type Standalone struct {
	APIs     Path `toml:"apis" rule:"dir"`
	Policies Path `toml:"policies" rule:"dir,later"`
}

// APIM holds the sections that bear the names of API Manager's own deployment.toml.
type APIM struct {
	EventHub            EventHub             `toml:"event_hub"`
	SyncArtifacts       SyncRuntimeArtifacts `toml:"sync_runtime_artifacts"`
	Throttling          Throttling           `toml:"throttling"`
	JWT                 JWT                  `toml:"jwt"`
	OAuth               OAuth                `toml:"oauth_config"`
	CORS                CORS                 `toml:"cors"`
	Cache               Cache                `toml:"cache"`
	GatewayNotification GatewayNotification  `toml:"gateway_notification"`
}

// EventHub is the API Manager: its event hub and its internal data service.
type EventHub struct {
	// Enable after Load is what is in force: written, or whether the section stands.
	Enable                  bool     `toml:"enable" rule:"wso2"`
	ServiceURL              URL      `toml:"service_url" rule:"scheme=http|https,wso2"`
	Username                string   `toml:"username" rule:"wso2"`
	Password                Secret   `toml:"password" rule:"wso2"`
	EventListeningEndpoints []URL    `toml:"event_listening_endpoints" rule:"broker,wso2"`
	Heartbeat               Duration `toml:"heartbeat" rule:"min=1s,max=10m"`
	InternalDataContext     string   `toml:"internal_data_context" rule:"urlpath"`
	MissTimeout             Duration `toml:"miss_timeout" rule:"min=0s,max=1m"`
	NegativeTTL             Duration `toml:"negative_ttl" rule:"min=0s,max=1h"`
	ResyncInterval          Duration `toml:"resync_interval" rule:"min=10s,max=7d"`
	ResyncConfirmAfter      Duration `toml:"resync_confirm_after" rule:"min=0s,max=1h"`
	ResyncJitter            Duration `toml:"resync_jitter" rule:"min=0s,max=5m"`
	CAFile                  Path     `toml:"ca_file" rule:"file"`
	SkipSSLVerification     bool     `toml:"skip_ssl_verification"`
}

// SyncRuntimeArtifacts holds the gateway's part of [apim.sync_runtime_artifacts].
type SyncRuntimeArtifacts struct {
	Gateway SyncGateway `toml:"gateway"`
}

// SyncGateway is how artifacts are fetched. Its labels are merged into Gateway.GatewayLabels.
type SyncGateway struct {
	GatewayLabels    []string `toml:"gateway_labels" rule:"wso2"`
	EventWaitingTime Duration `toml:"event_waiting_time" rule:"wso2,unit=ms,min=0s,max=10m"`
}

// Throttling is what is counted, where it is published and where decisions come from.
type Throttling struct {
	// EnableDataPublishing after Load is what is in force: written, or whether a receiver is configured.
	EnableDataPublishing            bool                `toml:"enable_data_publishing" rule:"wso2"`
	Username                        string              `toml:"username" rule:"wso2"`
	Password                        Secret              `toml:"password" rule:"wso2"`
	EventType                       string              `toml:"event_type" rule:"enum=Binary|Thrift,wso2,later=Binary"`
	ThrottleDecisionEndpoints       []URL               `toml:"throttle_decision_endpoints" rule:"broker,wso2"`
	EnableHeaderBasedThrottling     bool                `toml:"enable_header_based_throttling" rule:"wso2"`
	EnableQueryParamBasedThrottling bool                `toml:"enable_query_param_based_throttling" rule:"wso2"`
	EnableJWTClaimBasedThrottling   bool                `toml:"enable_jwt_claim_based_throttling" rule:"wso2"`
	EnableBlacklistCondition        bool                `toml:"enable_blacklist_condition" rule:"wso2"`
	EnableUnlimitedTier             bool                `toml:"enable_unlimited_tier" rule:"wso2,later=true"`
	SubscriptionKey                 string              `toml:"subscription_key" rule:"enum=plain|with_tier"`
	DenyRangeInclusive              bool                `toml:"deny_range_inclusive"`
	UnknownPolicy                   string              `toml:"unknown_policy" rule:"enum=allow|deny|nearest,later=allow"`
	RateLimitHeaders                bool                `toml:"rate_limit_headers" rule:"later"`
	LegacyRateLimitHeaders          bool                `toml:"legacy_rate_limit_headers" rule:"later"`
	CounterStore                    string              `toml:"counter_store" rule:"enum=none|redis|nats,later=none"`
	DecisionTimeout                 Duration            `toml:"decision_timeout" rule:"min=1s,max=1h,later"`
	Fallback                        string              `toml:"fallback" rule:"enum=local|none,later=none"`
	GatewayCount                    int                 `toml:"gateway_count" rule:"min=1,max=10000,later=1"`
	Guard                           bool                `toml:"guard" rule:"later"`
	CAFile                          Path                `toml:"ca_file" rule:"file"`
	SkipSSLVerification             bool                `toml:"skip_ssl_verification"`
	Publisher                       ThrottlingPublisher `toml:"publisher"`
	URLGroups                       []URLGroup          `toml:"url_group"`
}

// ThrottlingPublisher is the queue between requests and the traffic managers.
type ThrottlingPublisher struct {
	QueueSize int `toml:"queue_size" rule:"min=1,max=16777216"`
	BatchSize int `toml:"batch_size" rule:"min=1,max=10000"`
}

// URLGroup is a group of receivers; every group gets every event.
type URLGroup struct {
	TrafficManagerURLs []URL `toml:"traffic_manager_urls" rule:"required,receiver,wso2"`
	// TrafficManagerAuthURLs is empty or as long as TrafficManagerURLs.
	TrafficManagerAuthURLs []URL  `toml:"traffic_manager_auth_urls" rule:"receiver,wso2"`
	Type                   string `toml:"type" rule:"enum=failover|loadbalance,wso2"`
}

// NATS is whether the receivers of the group are NATS servers; otherwise they speak databridge. A group is never of both.
func (g URLGroup) NATS() bool {
	return len(g.TrafficManagerURLs) > 0 && isNATS(g.TrafficManagerURLs[0])
}

func isNATS(u URL) bool {
	return strings.HasPrefix(string(u), "nats://") || strings.HasPrefix(string(u), "tls://")
}

// JWT is the JWT that the backend gets, and the issuers whose tokens are accepted beside the API Manager's key managers.
type JWT struct {
	Enable           bool         `toml:"enable" rule:"wso2"`
	Header           string       `toml:"header" rule:"header,wso2"`
	ClaimDialect     string       `toml:"claim_dialect" rule:"wso2,reload"`
	ConvertDialect   bool         `toml:"convert_dialect" rule:"wso2,reload"`
	SigningAlgorithm string       `toml:"signing_algorithm" rule:"enum=SHA256withRSA|RS256|RS384|RS512|PS256|ES256|EdDSA|NONE,wso2"`
	EnableUserClaims bool         `toml:"enable_user_claims" rule:"wso2,reload"`
	ExpiryTime       Duration     `toml:"expiry_time" rule:"wso2,unit=s,min=1s,max=24h,reload"`
	TokenIssuer      string       `toml:"token_issuer" rule:"reload"`
	Audience         []string     `toml:"audience" rule:"reload"`
	KeyFile          Path         `toml:"key_file" rule:"file,reload"`
	AllowUnsigned    bool         `toml:"allow_unsigned"`
	OnError          string       `toml:"on_error" rule:"enum=deny|omit"`
	ForAnonymous     bool         `toml:"for_anonymous"`
	Claims           []JWTClaim   `toml:"claims"`
	Generator        JWTGenerator `toml:"gateway_generator"`
	Issuers          []JWTIssuer  `toml:"issuer"`
}

// JWTClaim adds, copies or removes a claim of the backend JWT. Exactly one of Value, From and Remove is set. Value is a pattern
// of package keymanager/backendjwt/template.
type JWTClaim struct {
	Name   string `toml:"name" rule:"required,word,reload"`
	Value  string `toml:"value" rule:"reload"`
	From   string `toml:"from" rule:"reload"`
	Remove bool   `toml:"remove" rule:"reload"`
}

// JWTGenerator restricts what goes into the backend JWT.
type JWTGenerator struct {
	ExcludedClaims []string `toml:"excluded_claims" rule:"wso2,reload"`
}

// JWTIssuer is an issuer of tokens that the configuration names.
type JWTIssuer struct {
	Name                       string         `toml:"name" rule:"required,word,wso2,reload"`
	JWKS                       JWKS           `toml:"jwks"`
	CertificateFile            Path           `toml:"certificate_file" rule:"file,reload"`
	SharedSecret               Secret         `toml:"shared_secret" rule:"reload"`
	Algorithms                 []string       `toml:"algorithms" rule:"enum=RS256|RS384|RS512|PS256|PS384|PS512|ES256|ES384|ES512|EdDSA|HS256|HS384|HS512,reload"`
	Audience                   []string       `toml:"audience" rule:"reload"`
	ConsumerKeyClaim           string         `toml:"consumer_key_claim" rule:"wso2,reload"` // empty: consumerKey, then azp
	ScopesClaim                string         `toml:"scopes_claim" rule:"wso2,reload"`
	ClaimMapping               []ClaimMapping `toml:"claim_mapping"`
	DisableDefaultClaimMapping bool           `toml:"disable_default_claim_mapping" rule:"wso2,reload"`
	// ValidateSubscriptions after Load is what is in force: written, or that of the gateway.
	ValidateSubscriptions bool     `toml:"validate_subscriptions" rule:"reload"`
	RequireExp            bool     `toml:"require_exp" rule:"reload"`
	ClockSkew             Duration `toml:"clock_skew" rule:"min=0s,max=300s,reload"`
	JWKSMaxStale          Duration `toml:"jwks_max_stale" rule:"min=0s,max=365d,reload"`
	// Introspection is where opaque tokens of the issuer are asked about; an empty URL: nowhere.
	Introspection IssuerIntrospection `toml:"introspection"`
}

// IssuerIntrospection is how an issuer is asked about its opaque tokens, and about all of them where it has no keys.
type IssuerIntrospection struct {
	URL          URL    `toml:"url" rule:"scheme=http|https,reload"`
	AuthMethod   string `toml:"auth_method" rule:"enum=none|client_secret_basic|client_secret_post|private_key_jwt|tls_client_auth,reload"`
	ClientID     string `toml:"client_id" rule:"reload"`
	ClientSecret Secret `toml:"client_secret" rule:"reload"`
	KeyFile      Path   `toml:"key_file" rule:"file,reload"`
	CertFile     Path   `toml:"cert_file" rule:"file,reload"`
}

// JWKS is where an issuer publishes its keys.
type JWKS struct {
	URL URL `toml:"url" rule:"scheme=http|https,wso2,reload"`
	// RefreshInterval is the most time between two fetches.
	RefreshInterval     Duration `toml:"refresh_interval" rule:"min=1s,max=24h,reload"`
	CAFile              Path     `toml:"ca_file" rule:"file,reload"`
	SkipSSLVerification bool     `toml:"skip_ssl_verification" rule:"reload"`
}

// ClaimMapping renames a claim of an accepted token.
type ClaimMapping struct {
	RemoteClaim string `toml:"remote_claim" rule:"required,word,wso2,reload"`
	LocalClaim  string `toml:"local_claim" rule:"required,word,wso2,reload"`
	// Function changes the value; empty leaves it. What stands in its parentheses is judged by keymanager/claims.
	Function string `toml:"function" rule:"function,reload"`
}

// OAuth is the header that carries the access token.
type OAuth struct {
	AuthHeader               string `toml:"auth_header" rule:"header,wso2"`
	EnableOutboundAuthHeader bool   `toml:"enable_outbound_auth_header" rule:"wso2"`
}

// CORS is the cross-origin policy of APIs that have none of their own.
type CORS struct {
	Enable           bool     `toml:"enable" rule:"wso2"`
	AllowOrigins     []string `toml:"allow_origins" rule:"wso2,origin"`
	AllowMethods     []string `toml:"allow_methods" rule:"wso2,method"`
	AllowHeaders     []string `toml:"allow_headers" rule:"wso2,header"`
	AllowCredentials bool     `toml:"allow_credentials" rule:"wso2"`
}

// Cache holds the one cache of [apim.cache] that exists here.
type Cache struct {
	GatewayToken GatewayTokenCache `toml:"gateway_token"`
}

// GatewayTokenCache keeps verified tokens.
type GatewayTokenCache struct {
	Enable   bool `toml:"enable" rule:"wso2"`
	Capacity int  `toml:"capacity" rule:"min=1,max=100000000"`
}

// GatewayNotification is how the gateway makes itself known to the API Manager.
type GatewayNotification struct {
	Enabled   bool                  `toml:"enabled" rule:"wso2"`
	GatewayID string                `toml:"gateway_id" rule:"wso2"` // empty: made once and kept in data_dir
	Heartbeat NotificationHeartbeat `toml:"heartbeat"`
}

// NotificationHeartbeat is the pace of heartbeats to the API Manager.
type NotificationHeartbeat struct {
	NotifyInterval Duration `toml:"notify_interval" rule:"wso2,unit=s,min=1s,max=1h"`
}

// APIMgt holds [apimgt.mutual_ssl].
type APIMgt struct {
	MutualSSL MutualSSL `toml:"mutual_ssl"`
}

// MutualSSL is how client certificates arrive.
type MutualSSL struct {
	CertificateHeader string `toml:"certificate_header" rule:"header,wso2"`
	// EnableClientValidation lets whoever Listener.ClientCAFile signed in to APIs that name no certificates of their own.
	EnableClientValidation bool           `toml:"enable_client_validation" rule:"wso2,reload"`
	APIs                   []MutualSSLAPI `toml:"api"`
}

// MutualSSLAPI are client certificates of an API whose definition brings none.
type MutualSSLAPI struct {
	Name             string `toml:"name" rule:"required,reload"`
	Version          string `toml:"version" rule:"required,reload"`
	CertificateFiles []Path `toml:"certificate_files" rule:"required,file,reload"`
	// Tier is the business plan of whoever shows one of the certificates; empty: none.
	Tier string `toml:"tier" rule:"reload"`
}

// Upstream holds the defaults of calls to backends; an API's definition overrides them per endpoint.
type Upstream struct {
	ConnectTimeout Duration      `toml:"connect_timeout" rule:"min=1ms,max=10m,reload"`
	Timeout        Duration      `toml:"timeout" rule:"min=1ms,max=24h,reload"`
	Retry          UpstreamRetry `toml:"retry"`
	// CircuitBreaker is nil where the section does not stand: no breaker but those of the APIs' definitions.
	CircuitBreaker *CircuitBreaker `toml:"circuit_breaker"`
	TLS            UpstreamTLS     `toml:"tls"`
	Proxy          UpstreamProxy   `toml:"proxy"`
}

// UpstreamRetry says which attempts are repeated.
type UpstreamRetry struct {
	Count       int     `toml:"count" rule:"min=0,max=10,later"`
	StatusCodes []int   `toml:"status_codes" rule:"min=100,max=599,later"`
	Budget      float64 `toml:"budget" rule:"min=0,max=1,later"`
}

// CircuitBreaker takes an endpoint out of use while it fails.
type CircuitBreaker struct {
	RequestVolumeThreshold int      `toml:"request_volume_threshold" rule:"min=1,max=1000000,later"`
	FailureThreshold       float64  `toml:"failure_threshold" rule:"min=0,max=1,later"`
	TimeWindow             Duration `toml:"time_window" rule:"min=100ms,max=1h,later"`
	BucketSize             Duration `toml:"bucket_size" rule:"min=10ms,max=1h,later"`
	ResetTime              Duration `toml:"reset_time" rule:"min=10ms,max=1h,later"`
	HalfOpenRequests       int      `toml:"half_open_requests" rule:"min=1,max=1000,later"`
	StatusCodes            []int    `toml:"status_codes" rule:"min=100,max=599,later"`
}

// UpstreamTLS is how backends are verified.
type UpstreamTLS struct {
	CAFile              Path `toml:"ca_file" rule:"file,reload"`
	SkipSSLVerification bool `toml:"skip_ssl_verification" rule:"reload"`
}

// UpstreamProxy is the forward proxy to backends; none where Host is empty.
type UpstreamProxy struct {
	Host     string   `toml:"host" rule:"host,later"`
	Port     int      `toml:"port" rule:"min=1,max=65535,later"`
	Username string   `toml:"username" rule:"later"`
	Password Secret   `toml:"password" rule:"later"`
	NoProxy  []string `toml:"no_proxy" rule:"later"`
}

// Log is what is logged.
type Log struct {
	Level string `toml:"level" rule:"enum=trace|debug|info|warn|error,reload"`
}

// Tracing is where spans go; off where Endpoint is empty.
type Tracing struct {
	Endpoint            URL     `toml:"endpoint" rule:"scheme=http|https,later"`
	Ratio               float64 `toml:"ratio" rule:"min=0,max=1,later"`
	CAFile              Path    `toml:"ca_file" rule:"file,later"`
	SkipSSLVerification bool    `toml:"skip_ssl_verification" rule:"later"`
}

// Relay is the relay role, which no command of this release runs.
type Relay struct {
	NATSURL             URL      `toml:"nats_url" rule:"scheme=nats|tls,later"`
	Stream              string   `toml:"stream" rule:"stream,later"`
	MaxAge              Duration `toml:"max_age" rule:"min=1m,max=365d,later"`
	Replicas            int      `toml:"replicas" rule:"min=1,max=5,later"`
	CAFile              Path     `toml:"ca_file" rule:"file,later"`
	SkipSSLVerification bool     `toml:"skip_ssl_verification" rule:"later"`
}

// TrafficManager is the stand-alone traffic manager role, which no command of this release runs.
type TrafficManager struct {
	TCP string `toml:"tcp" rule:"listen,later"`
	// SSL is empty, and the TLS receiver off, where no certificate is configured.
	SSL                 string               `toml:"ssl" rule:"listen,later"`
	CertFile            Path                 `toml:"cert_file" rule:"file,later"`
	KeyFile             Path                 `toml:"key_file" rule:"file,later"`
	Users               []TrafficManagerUser `toml:"user"`
	NATSURL             URL                  `toml:"nats_url" rule:"scheme=nats|tls,later"`
	Decisions           []URL                `toml:"decisions" rule:"broker,later"`
	Body                string               `toml:"body" rule:"enum=json|map,later"`
	Profile             string               `toml:"profile" rule:"enum=reset|classic,later"`
	Policies            Path                 `toml:"policies" rule:"dir,later"`
	MaxFrame            Size                 `toml:"max_frame" rule:"min=1KiB,max=1GiB,later"`
	MaxKeys             int                  `toml:"max_keys" rule:"min=1,max=1000000000,later"`
	CAFile              Path                 `toml:"ca_file" rule:"file,later"`
	SkipSSLVerification bool                 `toml:"skip_ssl_verification" rule:"later"`
}

// TrafficManagerUser may publish request events to this traffic manager.
type TrafficManagerUser struct {
	Name         string `toml:"name" rule:"required,word,later"`
	PasswordHash Secret `toml:"password_hash" rule:"required,later"`
}

// Default returns the configuration of an empty file, before anything is derived from what is written.
func Default() *Config {
	c := &Config{
		Listener: Listener{
			HTTP: ":9090", HTTPS: ":9095", Engine: "standard", TLSMinVersion: "1.2",
			IdleTimeout: 120 * second, ReadHeaderTimeout: 10 * second,
			MaxURIBytes: 8192, MaxHeaderBytes: 65536,
		},
		Admin: Admin{Address: "127.0.0.1:9096"},
		Gateway: Gateway{
			Environment: "Default", Tenants: []string{"carbon.super"}, DataDir: "data", FaultDialect: "mgw", Realm: "Gatehouse",
			MaxSnapshotAge: 24 * hour, DrainDelay: 5 * second, TraceRingAdmitted: 2000, TraceRingRefused: 20000,
			RequestValidation: "off", ResponseValidation: "off",
			OnStale:       GatewayOnStale{Subscriptions: "serve", Revocation: "serve", Deny: "serve", StaleAfter: 24 * hour},
			Introspection: Introspection{TTL: 60 * second, OnUnavailable: "deny"},
		},
		Standalone: Standalone{APIs: "./apis", Policies: "./policies"},
		Upstream: Upstream{
			ConnectTimeout: 5 * second, Timeout: 60 * second,
			Retry: UpstreamRetry{StatusCodes: []int{504}, Budget: 0.2},
			Proxy: UpstreamProxy{Port: 3128},
		},
		Log:     Log{Level: "info"},
		Tracing: Tracing{Ratio: 0.01},
		Relay:   Relay{Stream: "GATEHOUSE", MaxAge: 24 * hour, Replicas: 1},
		TrafficManager: TrafficManager{
			TCP: ":9611", SSL: ":9711", Body: "json", Profile: "reset", Policies: "./policies", MaxFrame: 1 << 20, MaxKeys: 5_000_000,
		},
	}
	c.APIM = APIM{
		EventHub: EventHub{
			Heartbeat: 3 * second, InternalDataContext: "/internal/data/v1", MissTimeout: 2 * second, NegativeTTL: 5 * second,
			ResyncInterval: 10 * minute, ResyncConfirmAfter: 30 * second, ResyncJitter: 250 * millisecond,
		},
		Throttling: Throttling{
			EventType: "Binary", EnableHeaderBasedThrottling: true, EnableQueryParamBasedThrottling: true,
			EnableJWTClaimBasedThrottling: true, EnableBlacklistCondition: true, EnableUnlimitedTier: true,
			SubscriptionKey: "plain", DenyRangeInclusive: true, UnknownPolicy: "allow", CounterStore: "none",
			DecisionTimeout: 10 * second, Fallback: "local", GatewayCount: 1, Guard: true,
			Publisher: ThrottlingPublisher{QueueSize: 32768, BatchSize: 200},
		},
		JWT: JWT{
			Header: "X-JWT-Assertion", ClaimDialect: "http://wso2.org/claims", SigningAlgorithm: "SHA256withRSA",
			ExpiryTime: 900 * second, TokenIssuer: "wso2.org/products/am", OnError: "deny",
		},
		OAuth: OAuth{AuthHeader: "Authorization"},
		CORS: CORS{
			Enable: true, AllowOrigins: []string{"*"}, AllowMethods: []string{"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"},
			AllowHeaders: []string{"authorization", "Access-Control-Allow-Origin", "Content-Type", "SOAPAction"},
		},
		Cache:               Cache{GatewayToken: GatewayTokenCache{Enable: true, Capacity: 10000}},
		GatewayNotification: GatewayNotification{Enabled: true, Heartbeat: NotificationHeartbeat{NotifyInterval: 30 * second}},
	}
	c.APIMgt.MutualSSL = MutualSSL{CertificateHeader: "X-WSO2-CLIENT-CERTIFICATE", EnableClientValidation: true}
	return c
}

// defaultElement returns the defaults of an element of a list of tables, or of a section that has none until it stands.
func defaultElement(zero any) any {
	switch zero.(type) {
	case URLGroup:
		return URLGroup{Type: "failover"}
	case APIKeyIssuer:
		return APIKeyIssuer{Kind: "api_key", ValidateAllowedAPIs: true, ClockSkew: 5 * second}
	case JWTIssuer:
		return JWTIssuer{
			ScopesClaim: "scope", ValidateSubscriptions: true, RequireExp: true, ClockSkew: 5 * second, JWKSMaxStale: 24 * hour,
			JWKS: JWKS{RefreshInterval: hour},
		}
	case CircuitBreaker:
		return CircuitBreaker{
			RequestVolumeThreshold: 20, FailureThreshold: 0.5, TimeWindow: 10 * second, BucketSize: 1 * second,
			ResetTime: 5 * second, HalfOpenRequests: 1, StatusCodes: []int{502, 503, 504},
		}
	}
	return zero
}
