package sync

import (
	"context"
	"iter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/agent/artifact"
	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// Meta tells when a list was asked for and answered.
type Meta = controlplane.Meta

// ListQuery narrows a list to a tenant and a gateway label.
type ListQuery = controlplane.ListQuery

// APIKey names an API: by UUID where it has one, else by number.
type APIKey struct {
	UUID string
	ID   int64
}

// MappingKey names a key mapping; KeyManager is the canonical name.
type MappingKey struct {
	ConsumerKey string
	KeyManager  string
}

// Table is a table of rows of a domain as the engine uses it. Reading and writing may happen concurrently with the
// request path; the engine writes one table from one goroutine only. Rows that All and Get return are never changed.
type Table[K comparable, R any] struct {
	Get    func(K) *R
	Put    func(R) (before *R)
	Delete func(K) (before *R)
	Len    func() int
	All    func() iter.Seq[*R]
	// ReplaceAll makes the rows the whole content and takes the slice over. It fills an empty table from a snapshot; nil:
	// the rows go through Put one by one, which takes longer and more memory.
	ReplaceAll func([]R)
}

// Sink takes rows of a small kind, of which the engine keeps its own copy. A nil function is not called.
type Sink[R any] struct {
	Put    func(R)
	Delete func(R)
	// ReplaceAll takes the whole set at once after a list; nil: the differences go through Put and Delete.
	ReplaceAll func([]R)
}

// Domains is where the facts go.
type Domains struct {
	APIs          Table[APIKey, subscription.API]
	Applications  Table[int64, subscription.Application]
	KeyMappings   Table[MappingKey, subscription.KeyMapping]
	Subscriptions Table[int64, subscription.Subscription]

	KeyManagers  Sink[keymanager.KeyManager]
	Deny         Sink[throttle.DenyCondition]
	KeyTemplates Sink[throttle.KeyTemplate]
	// SubscriptionPolicies, ApplicationPolicies and APIPolicies take the policies of their kind.
	SubscriptionPolicies, ApplicationPolicies, APIPolicies Sink[throttle.Policy]

	// APIKeys are the API keys that are no JWTs, by hash; the zero value leaves them out.
	APIKeys Table[string, keymanager.OpaqueKey]

	// Revoke adds one revocation, MergeRevocations many.
	Revoke           func(keymanager.Revocation)
	MergeRevocations func([]keymanager.Revocation)
	// Decide applies a throttle decision; it is called from the sources' goroutines and reports whether it changed
	// anything.
	Decide func(d throttle.Decision, now int64) bool
	// SetAPIs makes these the deployed APIs, at once. It keeps the former version of those that cannot be served and
	// names them, by UUID or else context:version. A definition that did not change is the same pointer.
	SetAPIs func([]*definition.API) (refused map[string]error)
	// Invalidate takes messages of cacheInvalidation; nil ignores them.
	Invalidate func(event.CacheInvalidation)
	// Resolve and ResolveApplication are the look-up of the request path; Fetch and FetchApplication ask with them what is
	// missing.
	Resolve            func(consumerKey, keyManager string, api subscription.APIRef) subscription.Facts
	ResolveApplication func(uuid string, id int64, api subscription.APIRef) subscription.Facts

	// Decisions and Revocations list what is in force, for the snapshot on disk; nil leaves them out.
	Decisions   func() []throttle.Decision
	Revocations func() []keymanager.Revocation
}

// Lists are the calls of the internal data service. FromClient makes them of a controlplane.Client. A nil function
// means that the API Manager has no such list.
type Lists struct {
	APIs         func(context.Context, ListQuery, func(controlplane.API) error) (Meta, error)
	Applications func(context.Context, ListQuery, func(controlplane.Application) error) (Meta, error)
	KeyMappings  func(context.Context, ListQuery, func(controlplane.KeyMapping) error) (Meta, error)
	// Subscriptions is the longest of all: rows are taken over while the list is being read.
	Subscriptions        func(context.Context, ListQuery, func(controlplane.Subscription) error) (Meta, error)
	SubscriptionPolicies func(context.Context, ListQuery, func(controlplane.Policy) error) (Meta, error)
	ApplicationPolicies  func(context.Context, ListQuery, func(controlplane.Policy) error) (Meta, error)
	APIPolicies          func(context.Context, ListQuery, func(controlplane.Policy) error) (Meta, error)
	Scopes               func(context.Context, ListQuery, func(controlplane.Scope) error) (Meta, error)
	KeyManagers          func(context.Context, ListQuery, func(controlplane.KeyManager) error) (Meta, error)
	KeyTemplates         func(context.Context) ([]string, Meta, error)
	Block                func(context.Context) (controlplane.Block, Meta, error)
	Revoked              func(context.Context) (controlplane.Revoked, Meta, error)

	// The single rows; (nil, nil) is absent.
	API                func(ctx context.Context, tenant string, q controlplane.APIQuery) (*controlplane.API, error)
	Application        func(ctx context.Context, tenant string, id int64) (*controlplane.Application, error)
	KeyMapping         func(ctx context.Context, tenant, consumerKey, keyManager string) (*controlplane.KeyMapping, error)
	Subscription       func(ctx context.Context, tenant string, q controlplane.SubscriptionQuery) (*controlplane.Subscription, error)
	SubscriptionPolicy func(ctx context.Context, tenant, name string) (*controlplane.Policy, error)
	ApplicationPolicy  func(ctx context.Context, tenant, name string) (*controlplane.Policy, error)
	APIPolicy          func(ctx context.Context, tenant, name string) (*controlplane.Policy, error)

	// Artifacts fetches deployed projects.
	Artifacts func(context.Context, controlplane.ArtifactQuery) ([]controlplane.Artifact, error)
}

// Reports are the calls by which the gateway tells the API Manager of itself. Nil functions are not called.
type Reports struct {
	Register          func(context.Context, controlplane.Gateway, time.Time) (id string, r controlplane.Registration, err error)
	Heartbeat         func(context.Context, controlplane.Gateway, time.Time) (controlplane.Registration, error)
	Acknowledge       func(ctx context.Context, tenant string, acks []controlplane.Acknowledgement) error
	Undeployed        func(ctx context.Context, tenant string, u controlplane.Undeployment) error
	NotifyDeployments func(context.Context, []controlplane.DeploymentStatus) error
}

// FromClient returns the lists and reports of an API Manager.
func FromClient(c *controlplane.Client) (Lists, Reports) {
	lists := Lists{
		APIs: c.APIs, Applications: c.Applications, KeyMappings: c.KeyMappings, Subscriptions: c.Subscriptions,
		SubscriptionPolicies: c.SubscriptionPolicies, ApplicationPolicies: c.ApplicationPolicies, APIPolicies: c.APIPolicies,
		Scopes: c.Scopes, KeyManagers: c.KeyManagers, KeyTemplates: c.KeyTemplates, Block: c.Block, Revoked: c.Revoked,
		API: c.API, Application: c.Application, KeyMapping: c.KeyMapping, Subscription: c.Subscription,
		SubscriptionPolicy: c.SubscriptionPolicy, ApplicationPolicy: c.ApplicationPolicy, APIPolicy: c.APIPolicy,
		Artifacts: c.Artifacts,
	}
	reports := Reports{
		Register: c.Register, Heartbeat: c.Heartbeat, Acknowledge: c.Acknowledge, Undeployed: c.AcknowledgeUndeployed,
		NotifyDeployments: c.NotifyDeploymentStatus,
	}
	return lists, reports
}

// Source is an event source with the topics that it is there for.
type Source struct {
	eventsource.Source
	// Topics, none meaning all, decide what is fetched again after it was away.
	Topics []string
}

// Options configure an Engine. Zero values mean the defaults that stand beside them.
type Options struct {
	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics

	Domains Domains
	Lists   Lists
	Reports Reports
	Sources []Source
	// Decode is event.Decode.
	Decode func(event.Message) ([]event.Event, error)
	// Artifacts are the options with which projects are read; what an artifact says of itself is filled in.
	Artifacts artifact.Options
	// GatewayID is the name under which the API Manager knows this gateway; "" makes one, which is kept in DataDir.
	GatewayID string
	// Identity names the API Manager (its URL); a snapshot of another one is not used.
	Identity string

	// Tenants are the tenant domains that are served: none means that of the user, "*" all.
	Tenants []string
	// Labels are the gateway labels whose APIs are fetched; none means "Default".
	Labels []string
	// DataDir holds the snapshot and the gateway's id; empty means neither.
	DataDir string
	// Environment and Properties are shown in the portal.
	Environment string
	Properties  map[string]string

	ResyncJitter       time.Duration // 250 ms: after a connect, before the lists
	ResyncInterval     time.Duration // 10 min ± 20 %
	ResyncConfirmAfter time.Duration // 30 s: for tables of 50 rows and more
	ConfirmSmallAfter  time.Duration // 500 ms: for smaller ones
	RefetchDelay       time.Duration // 500 ms: collects several reasons to fetch a list again
	StartGrace         time.Duration // 500 ms: how long the first fetch waits for the event hub
	EventWaitingTime   time.Duration // 0: delay before a row or artifact that an event names is read
	HeartbeatInterval  time.Duration // 30 s
	SnapshotInterval   time.Duration // 1 min, when something changed
	MaxSnapshotAge     time.Duration // 24 h
	MissTimeout        time.Duration // 2 s
	NegativeTTL        time.Duration // 5 s
	QueueLimit         int           // 50,000 events per kind
	QueueBytes         int           // 64 MiB of events per kind, about, those that are being applied included
	LedgerLimit        int           // 200,000 entities per kind that changed since the last list
}

func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.ResyncJitter, 250*time.Millisecond)
	def(&o.ResyncInterval, 10*time.Minute)
	def(&o.ResyncConfirmAfter, 30*time.Second)
	def(&o.ConfirmSmallAfter, 500*time.Millisecond)
	def(&o.RefetchDelay, 500*time.Millisecond)
	def(&o.StartGrace, 500*time.Millisecond)
	def(&o.HeartbeatInterval, 30*time.Second)
	def(&o.SnapshotInterval, time.Minute)
	def(&o.MaxSnapshotAge, 24*time.Hour)
	def(&o.MissTimeout, 2*time.Second)
	def(&o.NegativeTTL, 5*time.Second)
	if o.QueueLimit == 0 {
		o.QueueLimit = 50_000
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 64 << 20
	}
	if o.LedgerLimit == 0 {
		o.LedgerLimit = 200_000
	}
	if len(o.Labels) == 0 {
		o.Labels = []string{"Default"}
	}
	if len(o.Tenants) == 0 {
		o.Tenants = []string{""}
	}
}

// hooks switch the three rules off that make the engine right, so that its tests can show that they would notice.
// Nothing outside of the tests sets them.
type hooks struct {
	noReplay           bool // a list overrides the events that arrived while it was fetched
	noTombstone        bool // deletions are not remembered
	olderReplacesNewer bool // time stamps are not compared
}
