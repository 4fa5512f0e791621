package agent

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"

	"gatehouse/agent/admin"
	"gatehouse/agent/artifact"
	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/amqp"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/nats"
	"gatehouse/agent/sync"
	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/subscription/store"
	"gatehouse/throttle"
)

// topics are what a gateway listens to.
var topics = []string{
	event.TopicNotification, event.TopicKeyManager, event.TopicTokenRevocation, event.TopicThrottleData, event.TopicCacheInvalidation,
	event.TopicOpaqueAPIKey,
}

func (a *Agent) buildEngine() error {
	cfg := a.cfg
	hub := cfg.APIM.EventHub
	opts := sync.Options{
		Logger:             a.log,
		Registerer:         a.registry,
		Domains:            a.syncDomains(),
		Decode:             event.Decode,
		Identity:           hub.ServiceURL.String(),
		Tenants:            cfg.Gateway.Tenants,
		Labels:             cfg.Gateway.GatewayLabels,
		DataDir:            string(cfg.Gateway.DataDir),
		GatewayID:          cfg.APIM.GatewayNotification.GatewayID,
		Environment:        cfg.Gateway.Environment,
		Properties:         map[string]string{"version": a.opts.Version, "product": "Gatehouse"},
		ResyncJitter:       hub.ResyncJitter.Std(),
		ResyncInterval:     hub.ResyncInterval.Std(),
		ResyncConfirmAfter: hub.ResyncConfirmAfter.Std(),
		EventWaitingTime:   cfg.APIM.SyncArtifacts.Gateway.EventWaitingTime.Std(),
		HeartbeatInterval:  cfg.APIM.GatewayNotification.Heartbeat.NotifyInterval.Std(),
		MaxSnapshotAge:     cfg.Gateway.MaxSnapshotAge.Std(),
		MissTimeout:        hub.MissTimeout.Std(),
		NegativeTTL:        hub.NegativeTTL.Std(),
	}
	if hub.Enable {
		client, err := controlplane.New(controlplane.Options{
			ServiceURL: hub.ServiceURL.Reveal(), Context: hub.InternalDataContext, Username: hub.Username, Password: hub.Password.Reveal(),
			HTTPClient: &http.Client{Transport: a.hub.transport(16)}, Logger: a.part("controlplane"), UserAgent: "Gatehouse/" + a.opts.Version,
		})
		if err != nil {
			return fmt.Errorf("apim.event_hub: %w", err)
		}
		opts.Lists, opts.Reports = sync.FromClient(client)
		if !cfg.APIM.GatewayNotification.Enabled {
			opts.Reports.Register, opts.Reports.Heartbeat = nil, nil
		}
		if opts.Sources, err = a.eventSources(); err != nil {
			return err
		}
	}
	if err := a.openFolder(hub.Enable); err != nil {
		return err
	}
	engine, err := sync.New(opts)
	if err != nil {
		return err
	}
	a.engine = engine
	return nil
}

// openFolder opens the folder of API definitions where there is one. Beside an API Manager it may be missing.
func (a *Agent) openFolder(optional bool) error {
	dir := string(a.cfg.Standalone.APIs)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		if optional {
			return nil
		}
		return fmt.Errorf("standalone.apis: there is no folder %s: make it and put OpenAPI files or apictl projects into it, or configure an API Manager in [apim.event_hub]", dir)
	}
	a.folder = artifact.NewFolder(artifact.FolderOptions{
		Dir:    dir,
		Read:   artifact.Options{LookupEnv: os.LookupEnv, Origin: definition.Origin{Kind: "file"}},
		Labels: a.cfg.Gateway.GatewayLabels,
		Logger: a.part("folder"),
	})
	return nil
}

// syncDomains gives the engine the tables and sets that it keeps in step.
func (a *Agent) syncDomains() sync.Domains {
	d := &a.domains
	policies := func(kind throttle.PolicyKind) sync.Sink[throttle.Policy] {
		return sync.Sink[throttle.Policy]{
			Put:        func(p throttle.Policy) { d.policies.Put(p) },
			Delete:     func(p throttle.Policy) { d.policies.Delete(p.Kind, p.Tenant, p.Name) },
			ReplaceAll: func(list []throttle.Policy) { d.policies.ReplaceAll(kind, list) },
		}
	}
	apis, mappings := d.store.APIs(), d.store.KeyMappings()
	domains := sync.Domains{
		APIs: sync.Table[sync.APIKey, subscription.API]{
			Get:    func(k sync.APIKey) *subscription.API { return apis.Get(store.APIKey(k)) },
			Put:    apis.Put,
			Delete: func(k sync.APIKey) *subscription.API { return apis.Delete(store.APIKey(k)) },
			Len:    apis.Len, All: apis.All, ReplaceAll: apis.ReplaceAll,
		},
		Applications: table(d.store.Applications()),
		KeyMappings: sync.Table[sync.MappingKey, subscription.KeyMapping]{
			Get:    func(k sync.MappingKey) *subscription.KeyMapping { return mappings.Get(store.MappingKey(k)) },
			Put:    mappings.Put,
			Delete: func(k sync.MappingKey) *subscription.KeyMapping { return mappings.Delete(store.MappingKey(k)) },
			Len:    mappings.Len, All: mappings.All, ReplaceAll: mappings.ReplaceAll,
		},
		Subscriptions: table(d.store.Subscriptions()),
		APIKeys: sync.Table[string, keymanager.OpaqueKey]{
			Get: a.apiKeys.store.Get, Put: a.apiKeys.store.Put, Delete: a.apiKeys.store.Delete, Len: a.apiKeys.store.Len, All: a.apiKeys.store.All,
			ReplaceAll: a.apiKeys.store.ReplaceAll,
		},
		KeyManagers: sync.Sink[keymanager.KeyManager]{
			Put:        func(km keymanager.KeyManager) { d.keyManagers.Put(km) },
			Delete:     func(km keymanager.KeyManager) { d.keyManagers.Delete(km.Tenant, km.Name) },
			ReplaceAll: d.keyManagers.ReplaceAll,
		},
		Deny: sync.Sink[throttle.DenyCondition]{
			Put:        func(c throttle.DenyCondition) { d.deny.Put(c) },
			Delete:     func(c throttle.DenyCondition) { d.deny.Delete(c) },
			ReplaceAll: d.deny.ReplaceAll,
		},
		KeyTemplates: sync.Sink[throttle.KeyTemplate]{
			Put:        func(t throttle.KeyTemplate) { d.templates.Put(t) },
			Delete:     func(t throttle.KeyTemplate) { d.templates.Delete(t.Template) },
			ReplaceAll: d.templates.ReplaceAll,
		},
		SubscriptionPolicies: policies(throttle.PolicySubscription),
		ApplicationPolicies:  policies(throttle.PolicyApplication),
		APIPolicies:          policies(throttle.PolicyAPI),
		Revoke:               func(r keymanager.Revocation) { d.revocations.Put(r) },
		MergeRevocations:     func(list []keymanager.Revocation) { d.revocations.Merge(list) },
		Decide:               d.decisions.Apply,
		Invalidate:           a.invalidate,
		Resolve:              d.store.Resolve,
		ResolveApplication:   d.store.ResolveApplication,
		SetAPIs:              a.setAPIs,
		Decisions:            d.decisions.All,
		Revocations:          func() []keymanager.Revocation { return d.revocations.All(0) },
	}
	a.recheckAfter(&domains)
	return domains
}

// recheckAfter has the streams under way asked about again after each change that may end one.
func (a *Agent) recheckAfter(d *sync.Domains) {
	recheckAfter(d, func() {
		if a.proxy != nil {
			a.proxy.Recheck()
		}
	})
}

// recheckAfter calls recheck after each change of what a caller is admitted by: a revocation, a deny policy, a key manager, an
// opaque API key, and the rows that lead to a subscription. A row that is new ends nothing, but one that is changed may.
func recheckAfter(d *sync.Domains, recheck func()) {
	revoke, merge := d.Revoke, d.MergeRevocations
	d.Revoke = func(r keymanager.Revocation) { revoke(r); recheck() }
	d.MergeRevocations = func(list []keymanager.Revocation) { merge(list); recheck() }
	d.Deny = rechecked(d.Deny, recheck)
	d.KeyManagers = rechecked(d.KeyManagers, recheck)
	d.Subscriptions = recheckedTable(d.Subscriptions, recheck)
	d.Applications = recheckedTable(d.Applications, recheck)
	d.KeyMappings = recheckedTable(d.KeyMappings, recheck)
	d.APIKeys = recheckedTable(d.APIKeys, recheck)
}

// recheckedTable is a table that calls recheck after each change.
func recheckedTable[K comparable, R any](t sync.Table[K, R], recheck func()) sync.Table[K, R] {
	put, remove, replace := t.Put, t.Delete, t.ReplaceAll
	t.Put = func(r R) *R { defer recheck(); return put(r) }
	t.Delete = func(k K) *R { defer recheck(); return remove(k) }
	t.ReplaceAll = func(list []R) { replace(list); recheck() }
	return t
}

// rechecked is a sink that calls recheck after each change.
func rechecked[R any](s sync.Sink[R], recheck func()) sync.Sink[R] {
	return sync.Sink[R]{
		Put:        func(r R) { s.Put(r); recheck() },
		Delete:     func(r R) { s.Delete(r); recheck() },
		ReplaceAll: func(list []R) { s.ReplaceAll(list); recheck() },
	}
}

// setAPIs makes the definitions the ones that are served, and logs what of them has no effect here: once for each API,
// until it changes. The engine calls it from one goroutine.
func (a *Agent) setAPIs(defs []*definition.API) (refused map[string]error) {
	a.setDefinitions(defs) // before the routes: none stands open, or shut, for a moment
	refused = a.proxy.SetAPIs(defs)
	log := a.part("apis")
	notes := make(map[string]string, len(a.notes))
	for _, d := range defs {
		text := strings.Join(d.Notes, "; ")
		if text == "" {
			continue
		}
		key := d.UUID + " " + d.Context
		if notes[key] = text; a.notes[key] != text {
			log.Warn().Str("api", d.Name).Str("version", d.Version).Str("context", d.Context).Str("uuid", d.UUID).Strs("notes", d.Notes).
				Msg("parts of an API's definition have no effect here")
		}
	}
	a.notes = notes
	return refused
}

// invalidate drops what is cached of the tokens that a message names. Resources and users have no cache here.
func (a *Agent) invalidate(c event.CacheInvalidation) {
	if strings.EqualFold(c.Kind, "gatewayKeyCache") {
		a.domains.keyManagers.Forget(c.Keys)
		a.apiKeys.Forget(c.Keys)
	}
}

func table[K comparable, R any](t *store.Table[K, R]) sync.Table[K, R] {
	return sync.Table[K, R]{Get: t.Get, Put: t.Put, Delete: t.Delete, Len: t.Len, All: t.All, ReplaceAll: t.ReplaceAll}
}

// eventSources makes the event hub's source, and one for each traffic manager that gives decisions elsewhere: the
// decisions of all of them are needed.
func (a *Agent) eventSources() ([]sync.Source, error) {
	hub, th := a.cfg.APIM.EventHub, a.cfg.APIM.Throttling
	defaults := brokerurl.Defaults{Username: hub.Username, Password: hub.Password.Reveal()}
	set, err := brokerurl.ParseAll(reveal(hub.EventListeningEndpoints), defaults)
	if err != nil {
		return nil, fmt.Errorf("apim.event_hub.event_listening_endpoints: %w", err)
	}
	var sources []sync.Source
	if len(set.Brokers) > 0 {
		s, err := a.eventSource("event_hub", a.hub, set, topics)
		if err != nil {
			return nil, err
		}
		sources = append(sources, sync.Source{Source: a.observe(s)})
	}
	if th.Username != "" {
		defaults = brokerurl.Defaults{Username: th.Username, Password: th.Password.Reveal()}
	}
	for _, endpoint := range th.ThrottleDecisionEndpoints {
		tm, err := brokerurl.Parse(endpoint.Reveal(), defaults)
		if err != nil {
			return nil, fmt.Errorf("apim.throttling.throttle_decision_endpoints: %w", err)
		}
		if sameBrokers(set, tm) {
			continue // the event hub's own: subscribed once
		}
		only := []string{event.TopicThrottleData}
		s, err := a.eventSource("traffic_manager", a.trafficManagers, tm, only)
		if err != nil {
			return nil, err
		}
		sources = append(sources, sync.Source{Source: a.observe(s), Topics: only})
	}
	return sources, nil
}

// sameBrokers reports whether a gateway that is connected to some broker of hub hears all that tm says.
func sameBrokers(hub, tm brokerurl.Set) bool {
	if len(hub.Brokers) != len(tm.Brokers) {
		return false
	}
	for i := range hub.Brokers {
		if hub.Brokers[i].Protocol != tm.Brokers[i].Protocol || hub.Brokers[i].Address != tm.Brokers[i].Address || hub.Brokers[i].VHost != tm.Brokers[i].VHost {
			return false
		}
	}
	return true
}

func (a *Agent) eventSource(name string, servers *peers, set brokerurl.Set, subscribed []string) (eventsource.Source, error) {
	for _, w := range set.Warnings {
		a.log.Warn().Str("section", servers.section).Str("option", w).Msg("an option of a broker URL has no effect here")
	}
	heartbeat := a.cfg.APIM.EventHub.Heartbeat.Std()
	if set.Protocol() == brokerurl.NATS {
		return nats.New(nats.Options{
			Name: name, Brokers: set.Brokers, Topics: subscribed, TLS: servers.config(), Roots: servers.roots, Heartbeat: heartbeat, Logger: a.log, Registerer: a.registry,
		})
	}
	return amqp.New(amqp.Options{
		Name: name, Brokers: set.Brokers, Topics: subscribed, TLS: servers.config(), Roots: servers.roots, Heartbeat: heartbeat, Logger: a.log, Registerer: a.registry,
	})
}

// forwardChanges hands what changed to the readers of the admin server's event stream, and tells them of what came faster
// than it could be handed on.
func (a *Agent) forwardChanges(ctx context.Context) error {
	ch, lost, stop := a.engine.Changes(1024)
	defer stop()
	var told uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-ch:
			if n := lost(); n != told {
				a.feed.Lost(admin.KindChange, n-told)
				told = n
			}
			a.publishChange(c)
		}
	}
}

// observe tells the readers of the event stream of each change of a source's connection, after the engine.
func (a *Agent) observe(s eventsource.Source) eventsource.Source { return observed{s, &a.feed} }

type observed struct {
	eventsource.Source
	feed *admin.Feed
}

// Run implements eventsource.Source.
func (o observed) Run(ctx context.Context, h eventsource.Handler) error {
	return o.Source.Run(ctx, observer{h, o})
}

type observer struct {
	eventsource.Handler
	source observed
}

// OnState implements eventsource.Handler.
func (o observer) OnState(s eventsource.State) {
	o.Handler.OnState(s)
	o.source.feed.Publish(admin.KindConnection, admin.Connection{Source: o.source.Name(), State: s.Kind.String()})
}
