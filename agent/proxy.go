package agent

import (
	"strings"
	"time"

	"gatehouse/agent/admin"
	"gatehouse/agent/config"
	"gatehouse/proxy"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/stage"
	"gatehouse/proxy/upstream"
)

func (a *Agent) buildProxy() error {
	cfg := a.cfg
	opts := proxy.Options{
		HTTP:                cfg.Listener.HTTP,
		HTTPS:               cfg.Listener.HTTPS,
		CertFile:            string(cfg.Listener.CertFile),
		KeyFile:             string(cfg.Listener.KeyFile),
		ClientCAFile:        string(cfg.Listener.ClientCAFile),
		TLSMinVersion:       cfg.Listener.TLSMinVersion,
		ReadHeaderTimeout:   cfg.Listener.ReadHeaderTimeout.Std(),
		IdleTimeout:         cfg.Listener.IdleTimeout.Std(),
		MaxURIBytes:         int(cfg.Listener.MaxURIBytes),
		MaxHeaderBytes:      int(cfg.Listener.MaxHeaderBytes),
		MaxBodyBytes:        int64(cfg.Listener.MaxBodyBytes),
		IgnoreTrailingSlash: cfg.Gateway.IgnoreTrailingSlash,
		FaultDialect:        cfg.Gateway.FaultDialect,
		Realm:               cfg.Gateway.Realm,
		Compat:              proxy.Compat{EndpointError: cfg.Gateway.Compat.MGWEndpointError, Upstream500: cfg.Gateway.Compat.MGWUpstream500},
		AuthHeader:          cfg.APIM.OAuth.AuthHeader,
		CORS:                corsOf(cfg.APIM.CORS),
		Domains: stage.Domains{
			Authenticator:     a.domains.keyManagers,
			Subscriptions:     a.domains.store,
			Denier:            a.domains.checker,
			Throttler:         a.domains.checker,
			MissTimeout:       cfg.APIM.EventHub.MissTimeout.Std(),
			SkipSubscriptions: !cfg.Gateway.ValidateSubscriptions,
			KeepCredential:    cfg.APIM.OAuth.EnableOutboundAuthHeader,
		},
		Upstream:       upstreamOptions(cfg),
		Ready:          a.serving,
		TracesAdmitted: cfg.Gateway.TraceRingAdmitted,
		TracesRefused:  cfg.Gateway.TraceRingRefused,
		OnRefusal:      a.publishRefusal,
		AccessLog:      a.opts.AccessLog,
		DrainTimeout:   drainTimeout,
		// Without a delay for load balancers to notice, nobody is about to send on an idle connection either.
		DrainPause: max(min(cfg.Gateway.DrainDelay.Std(), 500*time.Millisecond), time.Millisecond),
		Log:        a.part("proxy"),
		Registry:   a.registry,
	}
	if cfg.APIM.EventHub.Enable {
		opts.Domains.Fetcher = a.engine
	}
	if a.deniesStale() {
		opts.Domains.Stale = a.staleNow
	}
	a.proxyBackendJWT(&opts)
	a.proxyCredentials(&opts)
	for _, p := range cfg.Listener.TrustedProxies {
		opts.TrustedProxies = append(opts.TrustedProxies, p.String())
	}
	p, err := proxy.New(opts)
	if err != nil {
		return err
	}
	a.proxy = p
	return p.Listen()
}

// upstreamDefaults are what a reload may change of the calls to backends.
func upstreamDefaults(cfg *config.Config) upstream.Defaults {
	u := cfg.Upstream
	return upstream.Defaults{
		ConnectTimeout: u.ConnectTimeout.Std(),
		Timeout:        u.Timeout.Std(),
		CAFile:         string(u.TLS.CAFile),
		SkipTLSVerify:  u.TLS.SkipSSLVerification,
	}
}

func upstreamOptions(cfg *config.Config) upstream.Options {
	d := upstreamDefaults(cfg)
	return upstream.Options{ConnectTimeout: d.ConnectTimeout, Timeout: d.Timeout, CAFile: d.CAFile, SkipTLSVerify: d.SkipTLSVerify}
}

// corsOf returns the policy of APIs that have none of their own.
func corsOf(c config.CORS) *definition.CORS {
	if !c.Enable {
		return nil
	}
	return &definition.CORS{
		Enabled: true, AllowOrigins: c.AllowOrigins, AllowMethods: c.AllowMethods, AllowHeaders: c.AllowHeaders, AllowCredentials: c.AllowCredentials,
	}
}

// publishRefusal tells the readers of the event stream of a refused request. It costs one comparison while there are none.
func (a *Agent) publishRefusal(t *pipeline.Trace) {
	if !a.feed.Active() {
		return
	}
	api := ""
	if t.Route != nil && t.Route.API != nil {
		api = t.Route.API.Name + ":" + t.Route.API.Version
	}
	a.feed.Publish(admin.KindRefusal, admin.Refusal{
		RequestID: strings.Clone(t.RequestID), API: api, Code: t.Code, Reason: strings.Clone(t.Reason),
	})
}
