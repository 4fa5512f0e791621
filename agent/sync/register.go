package sync

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gatehouse/agent/controlplane"
)

// gatewayID returns the name under which the gateway is known: the configured one, or one that is made once and kept in the
// data folder.
func (e *Engine) gatewayID() string {
	if e.opt.GatewayID != "" {
		return e.opt.GatewayID
	}
	if e.opt.DataDir == "" {
		return newID()
	}
	path := filepath.Join(e.opt.DataDir, "gateway_id")
	if b, err := os.ReadFile(path); err == nil {
		if id := strings.TrimSpace(string(b)); id != "" {
			return id
		}
	}
	id := newID()
	if err := os.MkdirAll(e.opt.DataDir, 0o700); err == nil {
		err = os.WriteFile(path, []byte(id+"\n"), 0o600)
		if err != nil {
			e.log.Warn().Err(err).Str("file", path).Msg("the gateway's id cannot be kept: it will have another after a restart; make data_dir writable")
		}
	}
	return id
}

// newID returns a random UUID (version 4).
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// register makes the gateway known and tells every 30 s that it lives; after a reconnect of the event hub, or any
// answer that is not one of the two good ones, it registers anew. An API Manager that does not know the call ends it.
func (e *Engine) register(ctx context.Context) {
	if e.opt.Reports.Register == nil || e.opt.Reports.Heartbeat == nil {
		return
	}
	tenants := e.opt.Tenants
	if tenants[0] == "" || tenants[0] == allTenants {
		tenants = nil
	}
	g := controlplane.Gateway{ID: e.gatewayID(), Labels: e.opt.Labels, Tenants: tenants, Properties: e.opt.Properties}
	id := g.ID
	e.gateway.Store(&id)
	known, warned := false, false
	backoff := time.Second
	for {
		var answer controlplane.Registration
		var err error
		if known {
			answer, err = e.opt.Reports.Heartbeat(ctx, g, time.Now())
		} else {
			var id string
			if id, answer, err = e.opt.Reports.Register(ctx, g, time.Now()); err == nil && id != "" && id != g.ID {
				g.ID = id
				e.gateway.Store(&id)
			}
		}
		wait := e.opt.HeartbeatInterval
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !warned {
				e.log.Warn().Err(err).Msg("the gateway cannot be registered; trying on")
			}
			warned, known = true, false
			wait = jittered(backoff)
			backoff = min(2*backoff, 30*time.Second)
		case answer == controlplane.RegistrationUnsupported:
			e.log.Debug().Msg("the API Manager takes no registration of gateways")
			return
		case answer == controlplane.RegisterAgain:
			if known {
				wait = 0
			} else {
				wait = jittered(backoff)
				backoff = min(2*backoff, 30*time.Second)
			}
			known = false
		default:
			if !known {
				e.log.Info().Str("gateway_id", g.ID).Str("answer", answer.String()).Strs("labels", g.Labels).Msg("registered with the API Manager")
			}
			known, warned, backoff = true, false, time.Second
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-e.registered:
			timer.Stop()
			known = false
		case <-timer.C:
		}
	}
}

// report is what became of one deployment.
type report struct {
	ack    *controlplane.Acknowledgement
	undone []controlplane.Undeployment
	tenant string
	status controlplane.DeploymentStatus
	// partial: the API stays deployed elsewhere, so that its status is told by what stays.
	partial bool
}

// report queues what is to be told of a change of a deployed API. What does not fit is dropped: it is for show only.
func (e *Engine) report(before, after *Deployed) {
	r := e.opt.Reports
	if r.Acknowledge == nil && r.NotifyDeployments == nil && r.Undeployed == nil {
		return
	}
	for _, row := range after.revisions() {
		if slices.ContainsFunc(before.revisions(), func(v *Deployed) bool {
			return v.RevisionUUID == row.RevisionUUID && v.Definition == row.Definition && v.Err == row.Err && slices.Equal(v.Deployments, row.Deployments)
		}) {
			continue // another revision changed
		}
		rep := reportOf(row)
		switch {
		case row.Err != "":
			rep.status.Failed, rep.status.ErrorCode, rep.status.ErrorMessage = true, 1, row.Err
		case row.Revision != 0:
			rep.ack = &controlplane.Acknowledgement{APIUUID: row.UUID, RevisionID: row.Revision, Deployed: row.Deployments}
		}
		e.enqueue(rep)
	}
	for _, row := range before.revisions() {
		rep := reportOf(row)
		rep.status.Undeploy = true
		for _, d := range row.Deployments {
			if !after.isAt(d.Environment) {
				rep.undone = append(rep.undone, controlplane.Undeployment{APIUUID: row.UUID, RevisionUUID: row.RevisionUUID, Environment: d.Environment})
			}
		}
		if after == nil || len(rep.undone) > 0 {
			rep.partial = after != nil
			e.enqueue(rep)
		}
	}
}

// isAt tells whether a revision is deployed to the environment.
func (r *Deployed) isAt(environment string) bool {
	for _, v := range r.revisions() {
		if slices.ContainsFunc(v.Deployments, func(d controlplane.Deployment) bool { return d.Environment == environment }) {
			return true
		}
	}
	return false
}

func reportOf(row *Deployed) report {
	rep := report{tenant: row.Tenant, status: controlplane.DeploymentStatus{
		APIUUID: row.UUID, TenantDomain: row.Tenant,
		RevisionUUID: row.RevisionUUID, At: time.Now(),
	}}
	if rep.status.TenantDomain == "" {
		rep.status.TenantDomain = superTenant
	}
	return rep
}

func (e *Engine) enqueue(rep report) {
	select {
	case e.reports <- rep:
	default:
		e.log.Debug().Str("api", rep.status.APIUUID).Msg("too many reports wait: one is dropped")
	}
}

// sendReports sends what was queued, in batches.
func (e *Engine) sendReports(ctx context.Context) {
	var noAck, noStatus, noUndone bool
	for {
		var batch []report
		select {
		case <-ctx.Done():
			return
		case r := <-e.reports:
			batch = append(batch, r)
		}
		timer := time.NewTimer(200 * time.Millisecond)
	collect:
		for len(batch) < 500 {
			select {
			case r := <-e.reports:
				batch = append(batch, r)
			case <-timer.C:
				break collect
			case <-ctx.Done():
				timer.Stop()
				return
			}
		}
		timer.Stop()
		acks := make(map[string][]controlplane.Acknowledgement)
		var statuses []controlplane.DeploymentStatus
		for _, r := range batch {
			if r.ack != nil {
				acks[r.tenant] = append(acks[r.tenant], *r.ack)
			}
			if id := e.gateway.Load(); id != nil && !r.partial {
				r.status.GatewayID = *id
				statuses = append(statuses, r.status)
			}
			for _, u := range r.undone {
				if e.opt.Reports.Undeployed != nil {
					e.tell(ctx, &noUndone, "an undeployed revision", func() error { return e.opt.Reports.Undeployed(ctx, r.tenant, u) })
				}
			}
		}
		for tenant, list := range acks {
			if e.opt.Reports.Acknowledge != nil {
				e.tell(ctx, &noAck, "deployed revisions", func() error { return e.opt.Reports.Acknowledge(ctx, tenant, list) })
			}
		}
		if e.opt.Reports.NotifyDeployments != nil && len(statuses) > 0 {
			e.tell(ctx, &noStatus, "the status of deployments", func() error { return e.opt.Reports.NotifyDeployments(ctx, statuses) })
		}
	}
}

// tell tries a report three times; an API Manager that does not take it is not asked again.
func (e *Engine) tell(ctx context.Context, unsupported *bool, what string, send func() error) {
	if *unsupported {
		return
	}
	for try := range 3 {
		err := send()
		switch {
		case err == nil:
			return
		case errors.Is(err, controlplane.ErrUnsupported):
			*unsupported = true
			e.log.Debug().Str("report", what).Msg("the API Manager does not take it")
			return
		case controlplane.KindOf(err) == controlplane.Rejected || try == 2:
			e.log.Warn().Err(err).Str("report", what).Msg("the API Manager could not be told")
			return
		}
		timer := time.NewTimer(jittered(2 * time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
