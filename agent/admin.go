package agent

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gatehouse/agent/admin"
	"gatehouse/agent/config"
	"gatehouse/keymanager/registry"
)

func (a *Agent) buildAdmin() error {
	cfg := a.cfg.Admin
	opts := admin.Options{
		Logger:   a.part("admin"),
		Username: cfg.Username, Password: cfg.Password.Reveal(), Token: cfg.Token.Reveal(), Open: cfg.Open,
		Live:        func() admin.Health { return admin.Health{OK: true, Status: "live", Checks: a.checks()} },
		Ready:       a.health,
		Metrics:     promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}),
		State:       a.state,
		Tables:      a.tables(),
		VerifyToken: a.verifyToken,
		Config:      func() any { return a.configInForce().Redacted() },
		Feed:        &a.feed,
		Trace: func(id string) (any, bool) {
			v, ok := a.proxy.Traces().Find(id)
			return v, ok
		},
	}
	if a.opts.Level != nil {
		opts.SetLogLevel = a.opts.Level.Set
	}
	if a.cfg.APIM.EventHub.Enable {
		opts.Resync = a.engine.Resync
	}
	if cfg.CertFile != "" {
		tlsConfig, err := serverTLS(cfg)
		if err != nil {
			return err
		}
		opts.TLS = tlsConfig
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", cfg.Address)
	if err != nil {
		return fmt.Errorf("open the admin server's port: %w; choose another in [admin] address", err)
	}
	a.adminListener = listener
	a.admin = admin.New(opts)
	return nil
}

func (a *Agent) configInForce() *config.Config {
	if a.watcher != nil {
		c, _ := a.watcher.Current()
		return c
	}
	return a.cfg
}

// checks are the health checks, in the order of the admin API.
func (a *Agent) checks() []admin.Check {
	var checks []admin.Check
	for _, c := range a.engine.Checks() {
		if c.Name == "snapshot" && c.Status == "ok" && !c.Since.IsZero() {
			c.Detail += " at " + c.Since.UTC().Format(time.RFC3339)
		}
		checks = joinCheck(checks, admin.Check{Name: c.Name, Status: c.Status, Detail: c.Detail})
	}
	if a.domains.publisher != nil {
		tm := admin.Check{Name: "traffic_manager", Status: "ok"}
		var away, there []string
		for _, g := range a.domains.publisher.State() {
			for _, e := range g.Endpoints {
				if e.Connected {
					there = append(there, e.Name)
				} else if e.LastError != "" {
					away = append(away, e.Name+": "+e.LastError)
				}
			}
		}
		tm.Detail = "connected to " + strings.Join(there, ", ")
		if len(there) == 0 {
			tm.Detail = "nothing to publish yet"
		}
		if len(away) > 0 {
			tm.Status, tm.Detail = "degraded", strings.Join(away, "; ")
		}
		checks = joinCheck(checks, tm)
	}
	km := admin.Check{Name: "key_managers", Status: "ok"}
	state := a.domains.keyManagers.State()
	var faults []string
	for _, m := range state.Managers {
		if m.InUse && m.LastError != "" {
			faults = append(faults, m.Name+": "+m.LastError)
		}
		if i := m.Introspection; m.InUse && i != nil && i.LastError != "" {
			faults = append(faults, m.Name+": "+i.LastError)
		}
	}
	km.Detail = fmt.Sprintf("%d key managers", len(state.Managers))
	if len(faults) > 0 {
		km.Status, km.Detail = "degraded", strings.Join(faults, "; ")
	}
	checks = append(checks, km)
	http, https := a.proxy.Addr()
	listeners := admin.Check{Name: "listeners", Status: "ok", Detail: strings.Trim(http+" "+https, " ")}
	if a.draining.Load() {
		listeners.Status, listeners.Detail = "failed", "draining"
	}
	checks = append(checks, listeners)
	now := time.Now()
	for i := range checks {
		a.standing.since(&checks[i], now)
	}
	return checks
}

func (a *Agent) health() admin.Health {
	h := admin.Health{OK: a.engine.IsReady() && !a.draining.Load(), Status: "ready", Checks: a.checks()}
	switch {
	case a.draining.Load():
		h.Status = "draining"
	case !h.OK:
		h.Status = "not_ready"
	}
	return h
}

func (a *Agent) state() admin.State {
	d, es := &a.domains, a.engine.State()
	refused := len(es.Refused)
	if r := a.folderState.Load(); r != nil {
		refused += len(a.folderRefused())
	}
	st := admin.State{
		Version:   a.opts.Version,
		StartedAt: admin.At(a.started),
		Ready:     a.engine.IsReady() && !a.draining.Load(),
		Counts: map[string]int{
			"apis": d.store.APIs().Len(), "apis_deployed": len(a.proxy.APIs()), "apis_refused": refused,
			"applications": d.store.Applications().Len(), "subscriptions": d.store.Subscriptions().Len(), "key_mappings": d.store.KeyMappings().Len(),
			"key_managers": len(d.keyManagers.All()), "deny_policies": d.deny.Len(), "key_templates": d.templates.Len(),
			"policies": d.policies.Len(), "throttled_keys": d.decisions.Len(), "revoked_tokens": d.revocations.Len(),
			"api_keys": a.apiKeys.store.Len(),
		},
	}
	for _, s := range es.Sources {
		st.Sources = append(st.Sources, admin.EventSource{
			Name: s.Name, Kind: s.Kind, Connected: s.Connected, Address: s.Address, Since: admin.At(s.Since), LastEventAt: admin.At(s.LastEventAt),
			EventsApplied: s.EventsApplied, EventsIgnored: s.EventsIgnored, Reconnects: s.Reconnects, Queue: s.Queue, Error: s.Err,
		})
	}
	if a.cfg.APIM.EventHub.Enable {
		lists := admin.ListSource{
			Name: "lists", Kind: "rest", LastSyncAt: admin.At(es.Lists.LastSyncAt), LastSyncSeconds: es.Lists.LastSyncSeconds,
			Failures: es.Lists.Failures, ByKind: make(map[string]admin.ListKind),
		}
		for name, k := range es.Lists.ByKind {
			v := admin.ListKind{Rows: k.Rows, FetchedAt: admin.At(k.FetchedAt), HeldBack: k.HeldBack}
			if !k.FetchedAt.IsZero() {
				v.AgeSeconds = time.Since(k.FetchedAt).Seconds()
			}
			if k.Err != "" {
				lists.Error = name + ": " + k.Err
			}
			lists.ByKind[name] = v
		}
		st.Sources = append(st.Sources, lists)
	}
	if d.publisher != nil {
		for _, g := range d.publisher.State() {
			tm := admin.TrafficManagerSource{
				Name: "traffic_manager", Kind: g.Kind, Connected: g.Connected, Published: g.Published, Dropped: g.Dropped, Queue: g.Queue,
			}
			var names []string
			for _, e := range g.Endpoints {
				names = append(names, e.Name)
				if e.LastError != "" && !e.Connected {
					tm.Error = e.LastError
				}
			}
			tm.Address = strings.Join(names, ", ")
			st.Sources = append(st.Sources, tm)
		}
	}
	return st
}

// folderRefused are the paths of the folder with faults.
func (a *Agent) folderRefused() map[string]string {
	out := make(map[string]string)
	if r := a.folderState.Load(); r != nil {
		for _, f := range r.Faults {
			if _, known := out[f.File]; !known {
				out[f.File] = f.Error()
			}
		}
	}
	return out
}

func (a *Agent) verifyToken(ctx context.Context, token string) admin.VerifyResult {
	v := a.domains.keyManagers.Verify(ctx, token, registry.VerifyOptions{})
	return admin.VerifyResult{
		Valid: v.Valid, Failed: string(v.Failed), Detail: v.Detail, KeyManager: v.KeyManager, Issuer: v.Issuer, Claims: v.Claims,
	}
}
