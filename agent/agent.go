// Package agent is the composition root of the gateway: it builds the domains, the proxy, the sync engine, the event
// sources and the admin server from a configuration, wires them, and runs and stops them in order.
package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"gatehouse/agent/admin"
	"gatehouse/agent/artifact"
	"gatehouse/agent/config"
	"gatehouse/agent/sync"
	"gatehouse/agent/telemetry"
	"gatehouse/keymanager/backendjwt"
	"gatehouse/keymanager/basic"
	"gatehouse/proxy"
)

// drainTimeout bounds how long running requests are waited for when the gateway stops.
const drainTimeout = 30 * time.Second

// Options are what an Agent is made of.
type Options struct {
	// Config is a configuration that passed every check. Required.
	Config *config.Config
	// Watcher, when not nil, tells of configurations that replace Config while the gateway runs.
	Watcher *config.WatcherOptions
	Logger  zerolog.Logger
	// Level is the level of Logger, for the admin server and for a reload to change; nil leaves it alone.
	Level    *telemetry.Level
	Registry *prometheus.Registry
	// AccessLog takes one JSON line per request; nil means none.
	AccessLog io.Writer
	Version   string
	// KeySetMaxAge is how long backends may keep the keys of their JWTs; a new key is published for longer before it signs. 0
	// means 5 min.
	KeySetMaxAge time.Duration
}

// Agent is a gateway. Make it with New, then Run it once.
type Agent struct {
	opts     Options
	cfg      *config.Config
	log      zerolog.Logger
	registry *prometheus.Registry
	started  time.Time

	hub, trafficManagers *peers

	domains      domains
	apiKeys      *apiKeys
	users        *basic.Users
	certificates *clientCertificates

	proxy  *proxy.Proxy
	engine *sync.Engine
	folder *artifact.Folder // nil: no folder of definitions
	admin  *admin.Server
	feed   admin.Feed

	backendJWT *backendjwt.Generator // nil: backends get none

	adminListener net.Listener
	watcher       *config.Watcher
	draining      atomic.Bool
	folderState   atomic.Pointer[artifact.Result]
	standing      standing
	stale         atomic.Pointer[string] // names a list that is too old to serve with; see lookAtLists
	notes         map[string]string      // of the APIs served, as they were logged; the engine's
}

// New builds a gateway and opens its ports, so that Addresses is known and a port that is taken is an error here. Nothing
// is dialled before Run. Close must be called when Run is not.
func New(opts Options) (_ *Agent, err error) {
	a := &Agent{opts: opts, cfg: opts.Config, log: opts.Logger, registry: opts.Registry, started: time.Now()}
	if a.registry == nil {
		a.registry = telemetry.NewRegistry()
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	for _, step := range []func() error{a.buildPeers, a.buildDomains, a.buildAPIKeys, a.buildUsers, a.buildCertificates, a.buildEngine, a.buildBackendJWT, a.buildProxy, a.buildAdmin, a.buildWatcher} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// part returns the logger of a part of the gateway.
func (a *Agent) part(name string) zerolog.Logger { return a.log.With().Str("component", name).Logger() }

// Addresses returns where the gateway listens: "" for a listener that is off.
func (a *Agent) Addresses() (http, https, admin string) {
	http, https = a.proxy.Addr()
	return http, https, a.adminListener.Addr().String()
}

// Ready is closed when the gateway serves: every list is in, or a snapshot was loaded.
func (a *Agent) Ready() <-chan struct{} { return a.engine.Ready() }

// serving reports whether requests may be answered.
func (a *Agent) serving() bool { return a.engine.IsReady() }

// Close frees what New made, for an agent that never ran.
func (a *Agent) Close() {
	if a.adminListener != nil {
		_ = a.adminListener.Close()
	}
	if a.proxy != nil {
		_ = a.proxy.Close()
	}
	if a.domains.publisher != nil {
		_ = a.domains.publisher.Close()
	}
	if a.domains.keyManagers != nil {
		a.domains.keyManagers.Close()
	}
	if a.apiKeys != nil {
		a.apiKeys.Close()
	}
}

// Run serves until ctx is done, then stops in order: not ready any more, a moment for load balancers to notice, no new
// connections, running requests to their end, queued events out, snapshot written, admin server last. It returns nil after
// a clean stop.
func (a *Agent) Run(ctx context.Context) error {
	group, work := errgroup.WithContext(context.WithoutCancel(ctx))
	// Parts end when their own context does; each is ended by the one before it in the order of stopping.
	serve, stopServing := context.WithCancel(work)
	keepInStep, stopSync := context.WithCancel(work)
	show, stopAdmin := context.WithCancel(work)
	defer stopServing()
	defer stopSync()
	defer stopAdmin()

	group.Go(func() error { return a.admin.Serve(show, a.adminListener) })
	group.Go(func() error { return a.engine.Run(keepInStep) })
	group.Go(func() error { return expected(a.domains.keyManagers.Run(keepInStep)) })
	group.Go(func() error { return a.sweep(keepInStep) })
	group.Go(func() error { return a.sweepAPIKeys(keepInStep) })
	group.Go(func() error { return a.forwardChanges(keepInStep) })
	group.Go(func() error { return a.watchHealth(show) })
	if a.folder != nil {
		group.Go(func() error { return a.watchFolder(keepInStep) })
	}
	if a.backendJWT != nil {
		group.Go(func() error { return a.backendJWT.Run(keepInStep) })
	}
	if a.watcher != nil {
		group.Go(func() error { return expected(a.watcher.Run(keepInStep)) })
	}
	group.Go(func() error { return expected(a.proxy.Run(serve)) })

	group.Go(func() error {
		select {
		case <-ctx.Done():
		case <-work.Done():
		}
		a.draining.Store(true)
		if ctx.Err() != nil {
			a.log.Info().Dur("drain_delay_ms", a.cfg.Gateway.DrainDelay.Std()).Msg("stopping: not ready any more")
			pause(work, a.cfg.Gateway.DrainDelay.Std())
		}
		limit, cancel := context.WithTimeout(context.WithoutCancel(work), drainTimeout)
		err := a.proxy.Drain(limit)
		cancel()
		if err != nil {
			a.log.Warn().Err(err).Msg("requests were cut: they did not end in time")
		}
		stopServing()
		if a.domains.publisher != nil {
			if err := a.domains.publisher.Close(); err != nil {
				a.log.Warn().Err(err).Msg("request events were not delivered before the stop")
			}
		}
		stopSync()
		stopAdmin()
		return nil
	})
	err := group.Wait()
	if err == nil {
		a.log.Info().Msg("stopped")
	}
	return err
}

// expected turns the end of a context into the end of a part.
func expected(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// sweep drops expired decisions: they throttle nobody, they only take room.
func (a *Agent) sweep(ctx context.Context) error {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			a.domains.decisions.Sweep(now.UnixMilli())
		}
	}
}

// watchFolder hands the definitions of the folder to the engine whenever they change.
func (a *Agent) watchFolder(ctx context.Context) error {
	log := a.part("folder")
	a.folder.Watch(ctx, func(r artifact.Result) {
		a.folderState.Store(&r)
		if r.Err != nil {
			log.Error().Err(r.Err).Msg("the folder of API definitions cannot be read; what was served stays")
			return
		}
		for _, f := range r.Faults {
			log.Error().Err(f).Msg("an API definition has a fault; its former version stays, if there is one")
		}
		a.engine.SetFolder(r.APIs)
		log.Info().Int("apis", len(r.APIs)).Int("faults", len(r.Faults)).Msg("read the folder of API definitions")
	})
	return nil
}

func (a *Agent) buildPeers() (err error) {
	hub, th := a.cfg.APIM.EventHub, a.cfg.APIM.Throttling
	if a.hub, err = newPeers(a.log, "apim.event_hub", hub.CAFile, hub.SkipSSLVerification); err != nil {
		return err
	}
	a.trafficManagers, err = newPeers(a.log, "apim.throttling", th.CAFile, th.SkipSSLVerification)
	return err
}
