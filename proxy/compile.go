package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gatehouse/proxy/definition"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/route"
	"gatehouse/proxy/upstream"
	"gatehouse/subscription"
)

// generation is a route table with all that it points to. A request works with one generation from start to end.
type generation struct {
	table *route.Table[*api, *operation]
	apis  map[string]*api // by key
	// certificates: some API asks for the client's certificate.
	certificates bool
}

// api is a compiled API, or a variant of one.
type api struct {
	key        string // its name in a generation
	id         string // keyOf its definition, or of the one that it is a variant of
	def        *definition.API
	tenant     string
	cors       *cors
	maxBody    int64
	metrics    *apiMetrics
	operations []*operation
	endpoints  []*upstream.Endpoint
	// noRoute stands in traces of requests that matched the API but none of its resources.
	noRoute pipeline.Route
	// http and https say over which listeners it is served.
	http, https bool
	// certificates: some operation asks for the client's certificate.
	certificates bool
}

// operation is a compiled resource.
type operation struct {
	pipeline.Route
	api                 *api
	production, sandbox *upstream.Endpoint
}

// keyOf names an API across its revisions.
func keyOf(d *definition.API) string {
	if d.UUID != "" {
		return d.UUID
	}
	return d.Context + ":" + d.Version
}

// keyed is a definition with its names.
type keyed struct {
	key, id string
	def     *definition.API
}

// withVariants returns the definition, and after it its variants. These are told apart by their hosts, of which no two
// may have the same, so that a variant keeps its name whatever others come and go.
func withVariants(d *definition.API) []keyed {
	id := keyOf(d)
	list := []keyed{{id, id, d}}
	for _, v := range d.Variants {
		hosts := slices.Clone(v.Hosts)
		slices.Sort(hosts)
		list = append(list, keyed{id + " on " + strings.Join(hosts, ","), id, v})
	}
	return list
}

// SetAPIs makes the given APIs the ones that are served, at once and whole: a request sees the old set or the new one. An
// API that cannot be compiled stops no other: it is named in the answer (by UUID, or context:version without one), and
// the version that was served before stays. Definitions must not be changed afterwards; one that is handed in again
// unchanged (the same pointer) costs nothing. The variants of a definition are served beside it, each on its own hosts; one
// that cannot be is named as its API. Backends that are no longer named finish their requests and are let go.
func (p *Proxy) SetAPIs(defs []*definition.API) (refused map[string]error) {
	p.compile.Lock()
	defer p.compile.Unlock()
	old := p.generation.Load()
	next := &generation{apis: make(map[string]*api, len(defs))}
	refused = map[string]error{}
	var fresh []*api // compiled here
	for _, one := range defs {
		for _, d := range withVariants(one) {
			if _, twice := next.apis[d.key]; twice {
				refused[d.id] = fmt.Errorf("API %s %s (%s) stands in the list twice", d.def.Name, d.def.Version, d.def.Context)
				continue
			}
			if had := old.apis[d.key]; had != nil && had.def == d.def {
				next.apis[d.key] = had
				continue
			}
			a, err := p.compileAPI(d.def)
			if err != nil {
				refused[d.id] = err
				p.metrics.reloads.WithLabelValues("refused").Inc()
				if had := old.apis[d.key]; had != nil {
					next.apis[d.key] = had
				}
				continue
			}
			a.key, a.id = d.key, d.id
			p.metrics.reloads.WithLabelValues("ok").Inc()
			fresh = append(fresh, a)
			next.apis[d.key] = a
		}
	}
	next.table = p.buildTable(next.apis, old, refused)
	// An API whose routes were refused is out of the map by now, or replaced by its former version.
	for _, a := range next.apis {
		next.certificates = next.certificates || a.certificates
	}
	p.generation.Store(next)
	p.metrics.config.Inc()
	for _, a := range fresh {
		if next.apis[a.key] != a {
			a.release()
		}
	}
	for k, a := range old.apis {
		if next.apis[k] != a {
			a.release()
		}
	}
	return refused
}

// buildTable puts the APIs into a table. One that meets a taken context is refused; what was served before goes first, so
// that a newcomer cannot take the place of another.
func (p *Proxy) buildTable(apis map[string]*api, old *generation, refused map[string]error) *route.Table[*api, *operation] {
	b := route.NewBuilder[*api, *operation](p.opts.IgnoreTrailingSlash)
	order := make([]*api, 0, len(apis))
	for _, a := range apis {
		order = append(order, a)
	}
	known := func(a *api) int {
		if old.apis[a.key] != nil {
			return 0
		}
		return 1
	}
	slices.SortFunc(order, func(x, y *api) int {
		return cmp.Or(cmp.Compare(known(x), known(y)), cmp.Compare(x.def.Context, y.def.Context), cmp.Compare(x.key, y.key))
	})
	taken := map[*api]bool{}
	for _, a := range order {
		err := b.Add(a.routes([]string{a.def.Context}))
		if err == nil {
			taken[a] = true
			continue
		}
		refused[a.id] = fmt.Errorf("API %s %s: %w", a.def.Name, a.def.Version, err)
		delete(apis, a.key)
		if had := old.apis[a.key]; had != nil && had != a && b.Add(had.routes([]string{had.def.Context})) == nil {
			apis[a.key] = had
			order = append(order, had)
			taken[had] = true
		}
	}
	// The default version: while it moves, two versions claim the context without version, and the newest wins.
	slices.SortStableFunc(order, func(x, y *api) int { return cmp.Compare(y.def.Origin.At, x.def.Origin.At) })
	for _, a := range order {
		if !taken[a] || !a.def.IsDefault || a.def.DefaultContext == "" || a.def.DefaultContext == a.def.Context {
			continue
		}
		if err := b.Add(a.routes([]string{a.def.DefaultContext})); err != nil && !errors.Is(err, route.ErrDuplicate) {
			refused[a.id] = fmt.Errorf("API %s %s, default version: %w", a.def.Name, a.def.Version, err)
		}
	}
	return b.Table()
}

func (a *api) routes(contexts []string) route.API[*api, *operation] {
	r := route.API[*api, *operation]{Value: a, Contexts: contexts, Hosts: a.def.Hosts}
	for _, o := range a.operations {
		r.Operations = append(r.Operations, route.Operation[*operation]{Template: o.Operation.Template, Method: o.Operation.Method, Value: o})
	}
	return r
}

func (a *api) release() {
	for _, e := range a.endpoints {
		e.Release()
	}
}

// tenantOf is the owner of an API (contract events.md 6.1).
func tenantOf(d *definition.API) string {
	if d.Tenant != "" {
		return d.Tenant
	}
	if rest, ok := strings.CutPrefix(d.Context, "/t/"); ok {
		if t, _, ok := strings.Cut(rest, "/"); ok {
			return t
		}
	}
	return "carbon.super"
}

// compileAPI makes all that requests to an API need, or names what is wrong.
func (p *Proxy) compileAPI(d *definition.API) (a *api, err error) {
	a = &api{def: d, tenant: tenantOf(d), metrics: p.metrics.of(d.Name, d.Version), maxBody: d.MaxBodyBytes, cors: p.cors}
	defer func() {
		if err != nil {
			a.release()
			a, err = nil, fmt.Errorf("API %s %s (%s): %w", d.Name, d.Version, d.Context, err)
		}
	}()
	if len(d.Operations) == 0 {
		return a, errors.New("it has no resource")
	}
	if d.CORS != nil {
		a.cors = compileCORS(d.CORS)
	}
	if a.maxBody == 0 {
		a.maxBody = p.opts.MaxBodyBytes
	}
	a.http, a.https = len(d.Transports) == 0, len(d.Transports) == 0
	for _, t := range d.Transports {
		switch strings.ToLower(t) {
		case "http":
			a.http = true
		case "https":
			a.https = true
		}
	}
	ref := subscription.APIRef{UUID: d.UUID, ID: d.ID, Context: d.Context, Version: d.Version}
	auth := p.opts.AuthHeader
	if d.AuthHeader != "" {
		auth = pipeline.CanonicalName(d.AuthHeader)
	}
	a.noRoute = pipeline.Route{API: d, Ref: ref, Tenant: a.tenant, AuthHeader: auth}
	opened := map[*definition.Endpoint]*upstream.Endpoint{}
	open := func(own, fallback *definition.Endpoint, kind string) (*upstream.Endpoint, error) {
		e := own
		if e == nil {
			e = fallback
		}
		if e == nil {
			return nil, nil
		}
		if u := opened[e]; u != nil {
			return u, nil
		}
		u, err := p.upstreams.Open(e)
		if err != nil {
			return nil, fmt.Errorf("%s endpoint: %w", kind, err)
		}
		opened[e] = u
		a.endpoints = append(a.endpoints, u)
		return u, nil
	}
	for i := range d.Operations {
		o := &d.Operations[i]
		if o.Method == "" || strings.ToUpper(o.Method) != o.Method {
			return a, fmt.Errorf("resource %s: method %q must be in upper case", o.Template, o.Method)
		}
		c := &operation{api: a}
		if c.production, err = open(o.Production, d.Production, "production"); err != nil {
			return a, err
		}
		if c.sandbox, err = open(o.Sandbox, d.Sandbox, "sandbox"); err != nil {
			return a, err
		}
		if c.production == nil && c.sandbox == nil {
			return a, fmt.Errorf("resource %s %s has neither a production nor a sandbox endpoint", o.Method, o.Template)
		}
		c.Route = pipeline.Route{
			API: d, Operation: o, Ref: ref, Tenant: a.tenant, AuthHeader: auth, Secured: !o.Unsecured,
			Production: c.production != nil, Sandbox: c.sandbox != nil,
		}
		c.Credentials(p.certificateHeaders[:], p.opts.Domains.KeepCredential)
		c.Stages, c.Again = p.opts.Domains.Chain(&c.Route), p.opts.Domains.Again(&c.Route)
		a.certificates = a.certificates || c.Secured && wantsCertificate(o)
		a.operations = append(a.operations, c)
	}
	// Faults of the templates are found here, on the API alone, and not when the whole table is built.
	if err := route.NewBuilder[*api, *operation](p.opts.IgnoreTrailingSlash).Add(a.routes([]string{d.Context})); err != nil {
		return a, err
	}
	return a, nil
}
