package sync

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/artifact"
	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
)

// Deployed is what is known of one deployed API.
type Deployed struct {
	UUID string
	// Definition is the last version that could be read; nil when there has been none.
	Definition   *definition.API
	Revision     int64
	RevisionUUID string
	Deployments  []controlplane.Deployment
	Tenant       string
	// Overrides are the endpoints that environments have of their own.
	Overrides map[string]controlplane.EndpointOverride
	// Others are the other revisions of the API that are deployed here, to other environments. They have no others.
	Others []Deployed
	// Err says why the newest version could not be read; "" when it could.
	Err    string
	Origin Origin
}

// DeployedShown is what the change feed tells of a deployed API: definitions hold backends' credentials.
type DeployedShown struct {
	UUID, Name, Version, Context, Revision string
	Environments                           []string
	Err                                    string
}

func (r *Deployed) shown() DeployedShown {
	s := DeployedShown{UUID: r.UUID, Revision: r.RevisionUUID, Err: r.faults()}
	for _, v := range r.revisions() {
		for _, d := range v.Deployments {
			s.Environments = append(s.Environments, d.Environment)
		}
	}
	if r.Definition != nil {
		s.Name, s.Version, s.Context = r.Definition.Name, r.Definition.Version, r.Definition.Context
	}
	return s
}

// revisions returns the deployed revisions; of no row none.
func (r *Deployed) revisions() []*Deployed {
	if r == nil {
		return nil
	}
	list := []*Deployed{r}
	for i := range r.Others {
		list = append(list, &r.Others[i])
	}
	return list
}

// faults are those of every revision.
func (r *Deployed) faults() string {
	var list []string
	for _, v := range r.revisions() {
		if v.Err != "" {
			list = append(list, v.Err)
		}
	}
	return strings.Join(list, "; ")
}

// without returns the row as it is when it leaves some environments; nil when it has no other.
func (r *Deployed) without(environments []string) *Deployed {
	var left []Deployed
	for _, v := range r.revisions() {
		row := *v
		row.Others, row.Deployments = nil, nil
		for _, d := range v.Deployments {
			if !slices.Contains(environments, d.Environment) {
				row.Deployments = append(row.Deployments, d)
			}
		}
		if len(row.Deployments) > 0 {
			left = append(left, row)
		}
	}
	if len(left) == 0 {
		return nil
	}
	left[0].Others = left[1:len(left):len(left)]
	return &left[0]
}

// sameDeployed: a definition that was read again of the same revision is the same pointer.
func sameDeployed(a, b *Deployed) bool {
	return a.UUID == b.UUID && a.Definition == b.Definition && a.RevisionUUID == b.RevisionUUID && a.Err == b.Err &&
		slices.Equal(a.Deployments, b.Deployments) && maps.Equal(a.Overrides, b.Overrides) &&
		slices.EqualFunc(a.Others, b.Others, func(x, y Deployed) bool { return sameDeployed(&x, &y) })
}

// join makes one row of the revisions of an API. Where two are deployed on one host, no request could tell them apart:
// the one of the label that is configured first is served, and the other's fault says so.
func (e *Engine) join(list []Deployed) []Deployed {
	var rows []Deployed
	at := make(map[string]int)
	for _, r := range list {
		i, ok := at[r.UUID]
		if !ok {
			at[r.UUID] = len(rows)
			rows = append(rows, r)
			continue
		}
		all := append([]Deployed{rows[i]}, rows[i].Others...)
		all[0].Others = nil
		if slices.ContainsFunc(all, func(x Deployed) bool { return x.RevisionUUID == r.RevisionUUID }) {
			continue
		}
		all = append(all, r)
		slices.SortStableFunc(all, func(x, y Deployed) int {
			return cmp.Or(cmp.Compare(e.rank(&x), e.rank(&y)), strings.Compare(x.RevisionUUID, y.RevisionUUID))
		})
		for j := range all {
			for k := range j {
				if host, both := sharedHost(&all[k], &all[j]); both && all[k].Definition != nil && all[j].Definition != nil {
					all[j].Definition = nil
					all[j].Err = fmt.Sprintf("revision %s is deployed on host %q, where revision %s is served for a gateway label that is configured before: give the environments hosts of their own",
						all[j].RevisionUUID, host, all[k].RevisionUUID)
				}
			}
		}
		all[0].Others = all[1:len(all):len(all)]
		rows[i] = all[0]
	}
	return rows
}

// rank is the place of a revision's first environment among our labels.
func (e *Engine) rank(r *Deployed) int {
	first := len(e.opt.Labels)
	for _, d := range r.Deployments {
		if i := slices.Index(e.opt.Labels, d.Environment); i >= 0 {
			first = min(first, i)
		}
	}
	return first
}

// sharedHost returns a host that both revisions are deployed on; "" is every host.
func sharedHost(a, b *Deployed) (string, bool) {
	for _, x := range a.Deployments {
		for _, y := range b.Deployments {
			if strings.EqualFold(x.VHost, y.VHost) {
				return x.VHost, true
			}
		}
	}
	return "", false
}

// fetchArtifacts reads everything that is deployed to our labels.
func (e *Engine) fetchArtifacts(ctx context.Context, each func(Deployed) error) (Meta, error) {
	m := Meta{Started: time.Now()}
	for _, t := range e.opt.Tenants {
		list, err := e.opt.Lists.Artifacts(ctx, controlplane.ArtifactQuery{Tenant: t, Labels: e.opt.Labels})
		m.Finished = time.Now()
		if err != nil {
			return m, err
		}
		var rows []Deployed
		for i := range list {
			rows = append(rows, e.parse(&list[i], t))
		}
		for _, r := range e.join(rows) {
			if err := each(r); err != nil {
				return m, err
			}
		}
	}
	return m, nil
}

func (e *Engine) askArtifact(ctx context.Context, uuid string, _ *Deployed) ([]Deployed, error) {
	for _, t := range e.opt.Tenants {
		list, err := e.opt.Lists.Artifacts(ctx, controlplane.ArtifactQuery{Tenant: t, Labels: e.opt.Labels, APIUUID: uuid})
		if err != nil {
			return nil, err
		}
		var rows []Deployed
		for i := range list {
			rows = append(rows, e.parse(&list[i], t))
		}
		if len(rows) > 0 {
			return e.join(rows), nil
		}
	}
	return nil, nil
}

// parse makes a row of an artifact. One that cannot be read keeps the definition that was good before. A definition of a
// snapshot is never used again, since another release may have read less out of the project. It runs outside of the
// worker.
func (e *Engine) parse(a *controlplane.Artifact, tenant string) Deployed {
	row := Deployed{
		UUID: a.APIUUID, RevisionUUID: a.RevisionUUID, Deployments: a.Deployments, Overrides: a.EndpointOverrides,
		Tenant: tenantOr(a.Organization, tenant),
	}
	if row.Tenant == "" {
		row.Tenant = tenantOfContext(a.APIContext)
	}
	known := e.artifacts.table.Get(row.UUID)
	if known != nil && known.Origin.Kind != "snapshot" && a.Err == nil {
		for _, v := range known.revisions() {
			if v.Err == "" && v.RevisionUUID != "" && v.RevisionUUID == a.RevisionUUID && slices.Equal(v.Deployments, a.Deployments) &&
				maps.Equal(v.Overrides, a.EndpointOverrides) {
				row.Definition, row.Revision = v.Definition, v.Revision
				return row
			}
		}
	}
	err := a.Err
	var d *definition.API
	if err == nil {
		d, err = e.read(a, row.Tenant)
	}
	if err == nil && row.UUID == "" {
		row.UUID = d.UUID
		known = e.artifacts.table.Get(row.UUID)
	}
	if row.UUID == "" {
		row.UUID = a.File
	}
	if err != nil {
		row.Err = err.Error()
		if before := known.servedAt(a.Deployments); before != nil {
			row.Definition, row.Revision = before.Definition, before.Revision
		}
		return row
	}
	row.Definition, row.Revision = d, d.RevisionNumber
	return row
}

// servedAt returns the revision that one of the environments has had so far, else the first.
func (r *Deployed) servedAt(places []controlplane.Deployment) *Deployed {
	for _, v := range r.revisions() {
		for _, d := range v.Deployments {
			if slices.ContainsFunc(places, func(p controlplane.Deployment) bool { return p.Environment == d.Environment }) {
				return v
			}
		}
	}
	return r
}

// read makes a definition of a project.
func (e *Engine) read(a *controlplane.Artifact, tenant string) (d *definition.API, err error) {
	defer func() { // one project must not end the gateway
		if cause := recover(); cause != nil {
			e.log.Error().Str("api", a.APIUUID).Str("revision", a.RevisionUUID).Interface("panic", cause).Bytes("stack", debug.Stack()).
				Msg("reading a project failed; this is a fault of ours, please report it with the project")
			d, err = nil, fmt.Errorf("reading project %s failed: %v", a.File, cause)
		}
	}()
	opt := e.opt.Artifacts
	opt.UUID, opt.RevisionUUID, opt.Tenant = a.APIUUID, a.RevisionUUID, tenant
	if strings.HasSuffix(a.APIContext, "/"+a.Version) {
		opt.Context = a.APIContext // some releases leave the version out here
	}
	opt.Origin = definition.Origin{Kind: "pull", At: time.Now().UnixMilli(), ID: a.RevisionUUID}
	opt.Deployments, opt.Overrides = nil, nil
	for _, d := range a.Deployments {
		opt.Deployments = append(opt.Deployments, artifact.Deployment(d))
	}
	for env, o := range a.EndpointOverrides {
		if opt.Overrides == nil {
			opt.Overrides = make(map[string]artifact.Override)
		}
		opt.Overrides[env] = artifact.Override(o)
	}
	return artifact.FromZip(a.File, a.Project, opt)
}

func (e *Engine) applyAPI(it *item) outcome {
	switch ev := it.event.(type) {
	case event.Deployment:
		return e.applyDeployment(&ev)
	case event.APIChanged:
		return e.applyMetadata(&ev)
	}
	return outUnknown
}

func (e *Engine) applyDeployment(ev *event.Deployment) outcome {
	ours := false
	for _, l := range ev.Labels {
		ours = ours || slices.Contains(e.opt.Labels, l)
	}
	if !ours {
		return outOther
	}
	if ev.UUID == "" {
		return outUnknown
	}
	if ev.Remove {
		e.artifacts.unwant(ev.UUID)
		left := false
		out := e.artifacts.change(&ev.Base, ev.UUID, func(cur *Deployed) *Deployed {
			if cur == nil {
				return nil
			}
			row := cur.without(ev.Labels)
			left = row != nil
			return row
		})
		if left && out == applied {
			e.artifacts.ask(ev.UUID, nil) // another revision may serve the labels that are left
		}
		return out
	}
	out := e.artifacts.change(&ev.Base, ev.UUID, func(cur *Deployed) *Deployed { return cur })
	if e.artifacts.verdict != stale {
		e.artifacts.askFor(ev.UUID, &ask[Deployed]{want: true, at: time.Now().Add(e.opt.EventWaitingTime)})
	}
	return out
}

// unwant makes an open question take absence for an answer.
func (d *dataset[K, R]) unwant(k K) {
	d.asks.mu.Lock()
	defer d.asks.mu.Unlock()
	if a := d.asks.open[k]; a != nil {
		a.want = false
	}
}

func (e *Engine) applyMetadata(ev *event.APIChanged) outcome {
	k := APIKey{UUID: ev.UUID}
	if ev.UUID == "" {
		if ev.ID == 0 {
			return outUnknown
		}
		k = APIKey{ID: ev.ID}
	} else if ev.ID != 0 && e.apis.table.Get(k) == nil {
		if r := e.apis.table.Get(APIKey{ID: ev.ID}); r != nil && r.UUID == "" {
			k = APIKey{ID: ev.ID} // lists of early 3.2 name no UUID
		}
	}
	gone := ev.Action == event.Delete || ev.Lifecycle && strings.EqualFold(ev.Status, "RETIRED")
	if gone && ev.UUID != "" { // also when it is not known: its project may be on its way
		e.artifacts.unwant(ev.UUID)
		e.artifacts.change(&ev.Base, ev.UUID, func(*Deployed) *Deployed { return nil })
	}
	var hint *subscription.API
	out := e.apis.change(&ev.Base, k, func(cur *subscription.API) *subscription.API {
		if gone {
			return nil
		}
		row := subscription.API{ID: ev.ID, UUID: ev.UUID, Tenant: tenantOfContext(ev.Context)}
		if cur != nil {
			row = *cur
		}
		over(&row.Name, ev.Name)
		over(&row.Version, ev.Version)
		over(&row.Context, ev.Context)
		over(&row.Provider, ev.Provider)
		over(&row.Type, ev.APIType)
		over(&row.Status, ev.Status)
		hint = &row
		if cur == nil {
			return nil // whether it is deployed to our labels the API Manager must say
		}
		return &row
	})
	// Policy, resources and the default version are in no event.
	if e.apis.verdict != stale && !gone {
		e.apis.ask(k, hint)
	}
	return out
}

// over replaces a text by what an event says, if it says anything.
func over(text *string, said string) {
	if said != "" {
		*text = said
	}
}

// deployedChanged follows a change of a deployed API: routes, metadata, report.
func (e *Engine) deployedChanged(before, after *Deployed) {
	e.routesDirty = true
	row := first(after, before)
	if d := row.Definition; (d != nil || after == nil) && !e.listTells(row.UUID, after != nil) {
		hint := &subscription.API{UUID: row.UUID}
		if d != nil {
			hint.Context, hint.Version, hint.Tenant = d.Context, d.Version, d.Tenant
		}
		e.apis.ask(APIKey{UUID: row.UUID}, hint)
	}
	for _, v := range after.revisions() {
		if v.Err != "" {
			e.log.Error().Str("api", row.UUID).Str("revision", v.RevisionUUID).Str("fault", v.Err).Bool("kept_previous", v.Definition != nil).
				Msg("the API cannot be deployed")
		}
	}
	e.report(before, after)
}

// listTells reports whether there is no need to ask for the metadata of an API that a list of artifacts brought or
// dropped: the list of APIs is on its way, or has been in and agrees. Else every start would ask for each API by itself.
func (e *Engine) listTells(uuid string, deployed bool) bool {
	if !e.artifacts.listing || !e.hasList(kindAPIs) {
		return false
	}
	e.apis.mu.Lock()
	fetched := !e.apis.fetchedAt.IsZero()
	e.apis.mu.Unlock()
	return !fetched || deployed == (e.apis.table.Get(APIKey{UUID: uuid}) != nil)
}

// SetFolder makes these the definitions of the folder: all that is deployed in stand-alone mode, and beside an API
// Manager without artifacts what its APIs are matched with, by context and version. It may be called at any time.
func (e *Engine) SetFolder(apis []*definition.API) {
	e.folderMu.Lock()
	e.folder = slices.Clone(apis)
	e.folderSet = true
	e.folderMu.Unlock()
	e.later(e.apis.w, func() { e.routesDirty = true })
	e.checkReady()
}

// render sets the routes anew when something changed. It runs when the APIs' worker has nothing left to apply.
func (e *Engine) render() {
	if !e.routesDirty || e.opt.Domains.SetAPIs == nil || time.Now().Before(e.routesAgain) {
		return
	}
	if f := guarded(e.setRoutes); f != nil {
		// The routes of before stand. Nothing may come that would wake the worker, so the next try is made by itself.
		e.routesAgain = time.Now().Add(renderRetry)
		e.panicked(e.apis.w.name, nil, f, nil)
		e.spawn(func(ctx context.Context) {
			if wait(ctx, renderRetry) == nil {
				_ = e.apis.w.do(ctx, func() {}) // wakes the worker, which settles; it fails when Run ends alone
			}
		})
		return
	}
	e.routesDirty = false
}

// renderRetry is the pause after a fault while the routes were set.
const renderRetry = 5 * time.Second

// wait returns after d, or with ctx's error.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (e *Engine) setRoutes() {
	list := e.definitions()
	served := make(map[string]*definition.API, len(list))
	for i, d := range list {
		k := d.UUID + "\x00" + d.Context
		if had := e.served[k]; had != nil && reflect.DeepEqual(had, d) {
			d, list[i] = had, had
		}
		served[k] = d
	}
	e.served = served
	refused := make(map[string]string)
	for id, err := range e.opt.Domains.SetAPIs(list) {
		refused[id] = err.Error()
		if (*e.refused.Load())[id] != err.Error() {
			e.log.Error().Err(err).Str("api", id).Msg("the API cannot be served; its former version stays, if there is one")
		}
	}
	e.refused.Store(&refused)
}

// definitions returns what is to be served: definitions with the metadata laid over them.
func (e *Engine) definitions() []*definition.API {
	var list []*definition.API
	taken := make(map[string]bool)
	for r := range e.artifacts.table.All() {
		var d *definition.API
		if f := guarded(func() { d = assemble(r, e.apis.table.Get(APIKey{UUID: r.UUID})) }); f != nil {
			e.panicked(e.apis.w.name, []*kind{e.artifacts.kind}, f, func(line *zerolog.Event) { line.Str("api", r.UUID) })
			for _, had := range e.served {
				if had.UUID == r.UUID {
					d = had
				}
			}
		}
		if d == nil {
			continue
		}
		list = append(list, d)
		taken[d.Context] = true
	}
	e.folderMu.Lock()
	folder := e.folder
	e.folderMu.Unlock()
	if len(folder) > 0 {
		byContext := make(map[string]*subscription.API)
		for r := range e.apis.table.All() {
			byContext[r.Context+"\x00"+r.Version] = r
		}
		for _, d := range folder {
			if taken[d.Context] {
				continue // what the API Manager deploys goes before files
			}
			row := byContext[d.Context+"\x00"+d.Version]
			if row == nil && e.opt.Lists.APIs == nil {
				row = e.standalone(d)
			}
			list = append(list, overlay(d, row, nil))
		}
	}
	if e.opt.Lists.APIs == nil {
		e.forgetFiles(folder)
	}
	slices.SortFunc(list, func(a, b *definition.API) int { return strings.Compare(a.Context, b.Context) })
	return list
}

// forgetFiles drops the metadata of APIs that left the folder.
func (e *Engine) forgetFiles(folder []*definition.API) {
	kept := make(map[APIKey]bool, len(folder))
	for _, d := range folder {
		kept[e.apis.key(&subscription.API{UUID: d.UUID, ID: d.ID})] = true
	}
	for r := range e.apis.table.All() {
		if k := e.apis.key(r); !kept[k] && r.Origin.Kind == "file" {
			e.apis.table.Delete(k)
		}
	}
}

// standalone keeps the metadata of an API of the folder where no API Manager names it.
func (e *Engine) standalone(d *definition.API) *subscription.API {
	row := subscription.API{
		ID: d.ID, UUID: d.UUID, Name: d.Name, Version: d.Version, Context: d.Context, Provider: d.Provider, Type: d.Type,
		Status: d.Lifecycle, Policy: d.Tier, Tenant: d.Tenant, IsDefault: d.IsDefault,
		Origin: subscription.Origin(d.Origin),
	}
	k := APIKey{UUID: row.UUID, ID: row.ID}
	if k.UUID == "" && k.ID == 0 {
		return nil
	}
	if k.UUID != "" {
		k.ID = 0
	}
	if cur := e.apis.table.Get(k); cur == nil || !sameAPI(cur, &row) {
		e.apis.table.Put(row)
	}
	return &row
}

// assemble makes what is to be served of the deployed revisions of an API: one definition, of which those for other
// environments are variants. nil: none could be read.
func assemble(r *Deployed, row *subscription.API) *definition.API {
	var all []*definition.API
	for _, v := range r.revisions() {
		if v.Definition != nil {
			d := overlay(v.Definition, row, v)
			all = append(append(all, d), d.Variants...)
			d.Variants = nil
		}
	}
	if len(all) == 0 {
		return nil
	}
	if len(all) > 1 {
		all[0].Variants = all[1:]
	}
	return all[0]
}

// overlay lays what the API Manager says of an API now over the definition of its deployed revision.
func overlay(d *definition.API, row *subscription.API, r *Deployed) *definition.API {
	c := *d
	c.Variants = nil
	if r != nil {
		c.UUID = r.UUID
	}
	if r != nil && len(r.Deployments) > 0 {
		// Each variant has the environments that it was made for, and the definition the others.
		own := r.Deployments
		for _, v := range d.Variants {
			of := func(p controlplane.Deployment) bool { return slices.Contains(v.Environments, p.Environment) }
			own = slices.DeleteFunc(slices.Clone(own), of)
			there := slices.DeleteFunc(slices.Clone(r.Deployments), func(p controlplane.Deployment) bool { return !of(p) })
			if len(there) > 0 {
				c.Variants = append(c.Variants, overlay(v, row, &Deployed{UUID: r.UUID, Deployments: there}))
			}
		}
		if len(own) == 0 && len(c.Variants) > 0 { // taken off its own environments, it lives on in a variant
			first := c.Variants[0]
			first.Variants = c.Variants[1:]
			return first
		}
		c.Hosts, c.Environments = places(own)
	} else {
		for _, v := range d.Variants {
			c.Variants = append(c.Variants, overlay(v, row, r))
		}
	}
	if row != nil {
		if row.UUID != "" {
			c.UUID = row.UUID
		}
		if row.ID != 0 {
			c.ID = row.ID
		}
		over(&c.Lifecycle, row.Status)
		c.IsDefault = row.IsDefault
	}
	switch {
	case !c.IsDefault:
		c.DefaultContext = ""
	case c.DefaultContext == "":
		c.DefaultContext = strings.TrimSuffix(c.Context, "/"+c.Version)
		if c.DefaultContext == c.Context {
			c.IsDefault, c.DefaultContext = false, ""
		}
	}
	return &c
}

// places are the hosts and environments of deployments. One without a host means every host.
func places(deployments []controlplane.Deployment) (hosts, environments []string) {
	every := false
	for _, p := range deployments {
		if !slices.Contains(environments, p.Environment) {
			environments = append(environments, p.Environment)
		}
		if p.VHost != "" && !slices.Contains(hosts, p.VHost) {
			hosts = append(hosts, p.VHost)
		}
		every = every || p.VHost == ""
	}
	if every {
		hosts = nil
	}
	return hosts, environments
}
