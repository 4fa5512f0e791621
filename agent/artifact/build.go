package artifact

import (
	"fmt"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"

	"gatehouse/proxy/definition"
)

// builder makes one definition out of the files of a project.
type builder struct {
	opts     Options
	report   *report
	name     string // of the project, for faults that have no file
	api      *definition.API
	spec     value // the OpenAPI document; absent for GraphQL and asynchronous APIs
	meta     value // data of api.yaml; absent for a lone OpenAPI file
	named    map[string]value
	resolved map[string]*definition.Endpoint
	schemes  map[string]scheme
	// metaSecurity are the alternatives of api.yaml or x-wso2-application-security; nil when neither says anything.
	metaSecurity [][]definition.Credential
	// certified: mutual TLS is mandatory on top of what operations ask for themselves.
	certified bool
	// keysOfMeta: api.yaml asks for API keys; defaultPlaces are where they come in unless something else is said.
	keysOfMeta    bool
	defaultPlaces scheme
	prototyped    bool
	clients       value             // of client_certificates.yaml
	clientFiles   map[string]string // name of a certificate's file → its path in the project
	files         map[string][]byte
	where         func(file string) string
	how           []security // of each operation, in their order
	disabled      value      // x-wso2-disable-security of the API
}

var httpMethods = map[string]bool{"GET": true, "PUT": true, "POST": true, "DELETE": true, "OPTIONS": true, "HEAD": true, "PATCH": true, "TRACE": true}

// Extensions that are known at the level of the API, a path or an operation.
var (
	apiExtensions = []string{
		"x-wso2-basePath", "x-wso2-production-endpoints", "x-wso2-sandbox-endpoints", "x-wso2-endpoints",
		"x-wso2-throttling-tier", "x-throttling-tier", "x-wso2-disable-security", "x-wso2-auth-header", "x-wso2-cors",
		"x-wso2-request-interceptor", "x-wso2-response-interceptor", "x-wso2-response-cache", "x-wso2-owner", "x-wso2-transports",
		"x-wso2-mutual-ssl", "x-wso2-application-security", "x-wso2-label", "x-wso2-http2-backend-enabled",
		"x-wso2-pass-request-payload-to-enforcer", "x-wso2-security", "x-wso2-api-key-header", "x-wso2-apikey-header", "x-wso2-schemas", "x-wso2-all-scopes",
	}
	operationExtensions = []string{
		"x-wso2-production-endpoints", "x-wso2-sandbox-endpoints", "x-wso2-throttling-tier", "x-throttling-tier",
		"x-wso2-disable-security", "x-wso2-request-interceptor", "x-wso2-response-interceptor", "x-wso2-response-cache", "x-auth-type",
		"x-scopes", "x-scope", "x-mediation-script", "x-uri-mapping", "x-amzn-resource-name", "x-wso2-application-security", "x-wso2-mutual-ssl",
	}
)

// extensions checks the x-wso2-* keys of one level.
func (b *builder) extensions(v value, known []string) {
	v.each(func(m value) {
		if !strings.HasPrefix(m.key, "x-") || slices.Contains(known, m.key) {
			return
		}
		wso2 := strings.HasPrefix(strings.ToLower(m.key), "x-wso2")
		near := nearest(m.key, known)
		switch {
		case near != "" && (wso2 || len(near) > 6):
			f := m.ofKey()
			f.fault("did you mean "+near+"?", "is no extension at this level")
		case wso2:
			m.note("is not known here and has no effect")
		}
	})
}

// build runs over the documents. The definition is good only when the report holds no fault.
func (b *builder) build() *definition.API {
	b.api = &definition.API{Tenant: b.opts.Tenant, Type: "HTTP", Lifecycle: "PUBLISHED"}
	b.identity()
	b.context()
	if b.spec.exists() {
		b.extensions(b.spec, apiExtensions)
		b.namedEndpoints(b.spec.get("x-wso2-endpoints"))
		b.securitySchemes()
	}
	b.apiSecurity()
	b.apiSettings()
	b.apiEndpoints()
	b.operations()
	b.certificates()
	b.deployment()
	b.checkEndpoints()
	b.unsupported()
	b.api.Notes = b.report.notes
	return b.api
}

// identity reads who the API is.
func (b *builder) identity() {
	a := b.api
	info := b.spec.get("info")
	if b.meta.exists() {
		id := b.meta.fold("id")
		if id.isMap() { // 3.2
			a.Name, a.Version = id.get("apiName", "name").text(), id.get("version").text()
			a.Provider = id.get("providerName").text()
			a.UUID = b.meta.get("uuid", "UUID").text()
		} else {
			a.UUID = id.text()
		}
		if n := b.meta.fold("name"); n.exists() {
			a.Name = n.text()
		}
		if v := b.meta.fold("version"); v.exists() {
			a.Version = v.text()
		}
		if p := b.meta.fold("provider"); p.exists() {
			a.Provider = p.text()
		}
		a.RevisionNumber = b.meta.fold("revisionId").integer(0, 1<<31-1)
		if t := b.meta.fold("type"); t.exists() {
			a.Type = strings.ToUpper(t.text())
		}
		life := b.meta.fold("lifeCycleStatus")
		if !life.exists() {
			life = b.meta.get("status")
		}
		if life.exists() {
			a.Lifecycle = strings.ToUpper(life.text())
		}
		b.prototyped = a.Lifecycle == "PROTOTYPED" ||
			strings.EqualFold(b.meta.fold("endpointConfig").get("implementation_status").text(), "prototyped")
		a.IsDefault = b.meta.fold("isDefaultVersion").boolean(false)
		if a.Tenant == "" {
			a.Tenant = b.meta.fold("organizationId").text()
		}
	}
	if a.Name == "" && info.exists() {
		a.Name = info.get("title").text()
	}
	if a.Version == "" && info.exists() {
		a.Version = info.get("version").text()
	}
	if a.Provider == "" {
		a.Provider = b.spec.get("x-wso2-owner").text()
	}
	a.Provider = strings.ReplaceAll(a.Provider, "-AT-", "@")
	at, key := b.meta, "name"
	if !at.exists() {
		at, key = info, "title"
	}
	if !at.exists() {
		at, key = b.spec, "info.title"
	}
	if a.Name == "" {
		at.missing(key, "write the name of the API", "the API has no name")
	}
	if a.Version == "" {
		at.missing(strings.Replace(strings.Replace(key, "name", "version", 1), "title", "version", 1), "write the version of the API, in quotes", "the API has no version")
	}
	if a.UUID == "" {
		a.UUID = b.opts.UUID
	} else if b.opts.UUID != "" && !strings.EqualFold(a.UUID, b.opts.UUID) {
		b.meta.fold("id").fault("expected "+b.opts.UUID, "the project is of another API than its file name says")
	}
	a.RevisionID = b.opts.RevisionUUID
	switch a.Type {
	case "HTTP", "SOAP", "SOAPTOREST", "GRAPHQL", "WS", "SSE":
	default:
		b.meta.fold("type").fault("serve HTTP, SOAP, SSE, WS or GRAPHQL here", "this type of API is not supported")
	}
}

// context finds the full context with the version.
func (b *builder) context() {
	a := b.api
	var at value
	context := ""
	switch {
	case b.opts.Context != "":
		context = b.opts.Context
	case b.meta.exists():
		at = b.meta.fold("context")
		if !at.exists() {
			b.meta.missing("context", "write /name", "the API has no context")
			return
		}
		context = at.text()
	default:
		at = b.spec.get("x-wso2-basePath")
		if !at.exists() {
			b.spec.missing("x-wso2-basePath", "write /name/"+or(a.Version, "1.0.0"), "the API has no base path")
			return
		}
		context = at.text()
	}
	if at.exists() && (at.isMap() || at.isList()) {
		return
	}
	if b.opts.Context == "" {
		if strings.Contains(context, "{version}") {
			context = strings.ReplaceAll(context, "{version}", a.Version)
		} else if b.meta.exists() && a.Version != "" && !strings.HasSuffix(context, "/"+a.Version) {
			context = strings.TrimSuffix(context, "/") + "/" + a.Version
		}
	}
	context = strings.TrimSuffix(context, "/")
	refuse := at.fault
	if !at.exists() {
		refuse = func(want, format string, args ...any) {
			b.report.add(Fault{File: b.name, Key: "apiContext of deployments.json", Value: short(context), Problem: fmt.Sprintf(format, args...), Want: want})
		}
	}
	switch {
	case context == "":
		refuse("write /name", "is no context")
		return
	case !strings.HasPrefix(context, "/"):
		refuse("write "+short("/"+context), "does not begin with /")
		return
	case strings.ContainsAny(context, "{}*?#%\\") || strings.ContainsFunc(context, func(r rune) bool { return r <= ' ' || r == 0x7f }) ||
		strings.Contains(context, "//") || strings.Contains(context+"/", "/../") || strings.Contains(context+"/", "/./"):
		refuse("write letters, digits, - . _ ~ and /", "holds a character or an element that no path may have")
		return
	}
	a.Context = context
	if a.IsDefault {
		if rest, ok := strings.CutSuffix(context, "/"+a.Version); ok && rest != "" {
			a.DefaultContext = rest
		} else {
			a.IsDefault = false
			b.report.note("isDefaultVersion has no effect since the context %s does not end with the version", context)
		}
	}
	if tenant, ok := strings.CutPrefix(context, "/t/"); ok {
		tenant, _, _ = strings.Cut(tenant, "/")
		if a.Tenant == "" {
			a.Tenant = tenant
		}
	}
	if a.Tenant == "" {
		a.Tenant = "carbon.super"
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// apiSettings reads tier, header, transports, key managers and CORS.
func (b *builder) apiSettings() {
	a := b.api
	a.Tier = b.tier(b.spec)
	a.AuthHeader = b.opts.AuthHeader
	if h := b.spec.get("x-wso2-auth-header"); h.exists() {
		a.AuthHeader = header(h)
	}
	transports := b.spec.get("x-wso2-transports")
	cors := b.spec.get("x-wso2-cors")
	if b.meta.exists() {
		if t := b.meta.fold("apiThrottlingPolicy"); t.exists() {
			a.Tier = t.text()
		} else if t := b.meta.get("apiLevelPolicy"); t.exists() {
			a.Tier = t.text()
		}
		if h := b.meta.fold("authorizationHeader"); h.exists() && h.text() != "" {
			a.AuthHeader = header(h)
		}
		if t := b.meta.get("transport", "transports"); t.exists() {
			transports = t
		}
		if c := b.meta.fold("corsConfiguration"); c.exists() {
			cors = c
		}
		for _, k := range b.meta.fold("keyManagers").items() {
			if name := k.text(); name != "" {
				a.KeyManagers = append(a.KeyManagers, name)
			}
		}
		if len(a.KeyManagers) == 1 && strings.EqualFold(a.KeyManagers[0], "all") {
			a.KeyManagers = nil
		}
	}
	if strings.EqualFold(a.Tier, "Unlimited") {
		a.Tier = ""
	}
	if strings.EqualFold(a.AuthHeader, "Authorization") {
		a.AuthHeader = ""
	}
	for _, t := range transports.items() {
		for name := range strings.SplitSeq(t.text(), ",") {
			switch name = strings.ToLower(strings.TrimSpace(name)); name {
			case "http", "https":
				if !slices.Contains(a.Transports, name) {
					a.Transports = append(a.Transports, name)
				}
			case "ws", "wss", "":
			default:
				t.fault("write http, https or both", "is no transport")
			}
		}
	}
	if transports.isList() && len(transports.items()) == 0 {
		transports.fault("write http, https or both", "is empty: the API could not be reached")
	}
	sort.Strings(a.Transports)
	if len(a.Transports) == 2 {
		a.Transports = nil
	}
	a.CORS = b.cors(cors)
}

func (b *builder) tier(v value) string {
	return v.get("x-wso2-throttling-tier", "x-throttling-tier").text()
}

func header(v value) string {
	text := v.text()
	for _, c := range text {
		if c <= ' ' || c > '~' || strings.ContainsRune(`()<>@,;:\"/[]?={}`, c) {
			v.fault("write a name such as X-Authorization", "is no name of a header")
			return ""
		}
	}
	return text
}

func (b *builder) cors(v value) *definition.CORS {
	if !v.exists() {
		return nil
	}
	if !v.isMap() {
		v.fault("write an object", "is no object")
		return nil
	}
	knownKeys(v, "corsConfigurationEnabled", "accessControlAllowOrigins", "accessControlAllowHeaders", "accessControlAllowMethods",
		"accessControlExposeHeaders", "accessControlAllowCredentials", "accessControlMaxAge")
	c := &definition.CORS{
		Enabled:          v.get("corsConfigurationEnabled").boolean(true),
		AllowOrigins:     v.get("accessControlAllowOrigins").texts(),
		AllowHeaders:     v.get("accessControlAllowHeaders").texts(),
		ExposeHeaders:    v.get("accessControlExposeHeaders").texts(),
		AllowCredentials: v.get("accessControlAllowCredentials").boolean(false),
		MaxAge:           time.Duration(v.get("accessControlMaxAge").integer(0, 86400*365)) * time.Second,
	}
	for _, o := range v.get("accessControlAllowOrigins").items() {
		if text := o.text(); text != "" && !validOrigin(text) {
			o.fault("write *, https://host[:port] or https://*.example.com", "is no origin")
		}
	}
	for _, m := range v.get("accessControlAllowMethods").items() {
		method := strings.ToUpper(m.text())
		if method != "*" && !httpMethods[method] {
			m.fault("write GET, PUT, POST, DELETE, PATCH, OPTIONS or HEAD", "is no method")
			continue
		}
		c.AllowMethods = append(c.AllowMethods, method)
	}
	for _, key := range [2]string{"accessControlAllowHeaders", "accessControlExposeHeaders"} {
		for _, h := range v.get(key).items() {
			if h.text() != "*" {
				header(h)
			}
		}
	}
	return c
}

func validOrigin(text string) bool {
	if text == "*" || text == "null" {
		return true
	}
	u, err := url.Parse(strings.Replace(text, "://*.", "://wild.", 1))
	return err == nil && u.Host != "" && (u.Path == "" || u.Path == "/") && u.RawQuery == "" && !strings.Contains(u.Host, "*")
}

// apiEndpoints reads the endpoints of the API: of api.yaml, else of the extensions, else of servers.
func (b *builder) apiEndpoints() {
	a := b.api
	production := b.endpoint(b.spec.get("x-wso2-production-endpoints"))
	sandbox := b.endpoint(b.spec.get("x-wso2-sandbox-endpoints"))
	declared := b.spec.get("x-wso2-production-endpoints", "x-wso2-sandbox-endpoints").exists()
	if c := b.meta.fold("endpointConfig"); c.exists() {
		if p, s := b.endpointConfig(c); p != nil || s != nil {
			merge := func(own, extension *definition.Endpoint) *definition.Endpoint {
				if own == nil || extension == nil {
					return own
				}
				// What api.yaml has no words for is taken from the extension.
				if own.Timeout == 0 {
					own.Timeout = extension.Timeout
				}
				if own.Retry == nil {
					own.Retry = extension.Retry
				}
				if own.Breaker == nil {
					own.Breaker = extension.Breaker
				}
				return own
			}
			production, sandbox = merge(p, production), merge(s, sandbox)
		}
		declared = true
	}
	if !declared {
		production = b.servers()
	}
	if b.prototyped && production == nil {
		production, sandbox = sandbox, nil
	}
	a.Production, a.Sandbox = production, sandbox
}

// servers makes an endpoint of servers (OpenAPI 3) or host, basePath and schemes (2).
func (b *builder) servers() *definition.Endpoint {
	if list := b.spec.get("servers"); list.exists() {
		for i, s := range list.items() {
			u := s.get("url")
			text := u.text()
			s.get("variables").each(func(m value) {
				text = strings.ReplaceAll(text, "{"+m.key+"}", m.get("default").text())
			})
			if !strings.Contains(text, "://") {
				continue // relative: no place of its own
			}
			if text != u.text() {
				clean, problem := checkURL(text)
				if problem != "" {
					u.fault(wantURL, "%s", problem)
					return nil
				}
				text = clean
			} else {
				clean, ok := b.endpointURL(u)
				if !ok {
					return nil
				}
				text = clean
			}
			if i+1 < len(list.items()) {
				list.note("the first absolute URL, %s, is the endpoint; the others have no effect, since they may be of other stages", text)
			}
			return &definition.Endpoint{Kind: definition.Single, URLs: []string{text}}
		}
		return nil
	}
	host := b.spec.get("host")
	if !host.exists() {
		return nil
	}
	scheme := "https"
	if schemes := b.spec.get("schemes").texts(); len(schemes) > 0 && !slices.Contains(schemes, "https") {
		scheme = schemes[0]
	}
	clean, problem := checkURL(scheme + "://" + host.text() + strings.TrimSuffix(b.spec.get("basePath").text(), "/"))
	if problem != "" {
		host.fault("write host[:port]", "%s", problem)
		return nil
	}
	return &definition.Endpoint{Kind: definition.Single, URLs: []string{clean}}
}

// checkEndpoints makes sure that something can be called.
func (b *builder) checkEndpoints() {
	a := b.api
	if a.Production != nil || a.Sandbox != nil || len(b.report.faults) > 0 || a.Type == "GRAPHQL" {
		return
	}
	lacking := 0
	for i := range a.Operations {
		if a.Operations[i].Production == nil && a.Operations[i].Sandbox == nil {
			lacking++
		}
	}
	if lacking == 0 && len(a.Operations) > 0 {
		return
	}
	if b.meta.exists() {
		b.meta.missing("endpointConfig", "write production_endpoints: {url: https://host/path}", "the API has no endpoint")
		return
	}
	b.spec.missing("x-wso2-production-endpoints", "write urls: [https://host/path], or an absolute URL in servers", "the API has no endpoint")
}

// deployment says where the API is exposed, and puts the endpoints of the environments in place of the project's.
// Environments with other endpoints than the first become variants on hosts of their own.
func (b *builder) deployment() {
	a := b.api
	if len(b.opts.Deployments) == 0 {
		a.Environments = b.spec.get("x-wso2-label").texts()
		return
	}
	type group struct {
		override    Override
		environment string // the first
		deployments []Deployment
	}
	var groups []*group
	for _, d := range b.opts.Deployments {
		o := b.opts.Overrides[d.Environment]
		i := slices.IndexFunc(groups, func(g *group) bool { return g.override == o })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{override: o, environment: d.Environment})
		}
		groups[i].deployments = append(groups[i].deployments, d)
	}
	base := *a
	owner := make(map[string]*group)
	for i, g := range groups {
		v := a
		if i > 0 {
			v = new(definition.API)
			*v = base
			a.Variants = append(a.Variants, v)
		}
		v.Production = b.override(base.Production, g.override.Production, "productionEndpoint of "+g.environment)
		v.Sandbox = b.override(base.Sandbox, g.override.Sandbox, "sandboxEndpoint of "+g.environment)
		v.Hosts, v.Environments = exposed(g.deployments)
		for _, host := range hostsOr(v.Hosts, "") {
			if other := owner[host]; other != nil {
				b.report.add(Fault{
					File: b.name, Key: "environments " + other.environment + " and " + g.environment, Value: host,
					Problem: "they have different endpoints and the same host, so that no request could tell them apart",
					Want:    "give the environments hosts of their own, or the same endpoints",
				})
			}
			owner[host] = g
		}
	}
}

// exposed returns the hosts and environments of deployments. One without a host, the default of its environment, means every
// host.
func exposed(deployments []Deployment) (hosts, environments []string) {
	every := false
	for _, d := range deployments {
		if d.Environment != "" && !slices.Contains(environments, d.Environment) {
			environments = append(environments, d.Environment)
		}
		if d.VHost != "" && !slices.Contains(hosts, d.VHost) {
			hosts = append(hosts, d.VHost)
		}
		every = every || d.VHost == ""
	}
	if every {
		hosts = nil
	}
	return hosts, environments
}

func hostsOr(hosts []string, every string) []string {
	if len(hosts) == 0 {
		return []string{every}
	}
	return hosts
}

// unsupported refuses what would change what a request meets, and notes what would not.
func (b *builder) unsupported() {
	if t := b.meta.fold("endpointImplementationType"); t.exists() {
		switch strings.ToUpper(t.text()) {
		case "ENDPOINT", "":
		default:
			t.fault("write ENDPOINT", "mocked implementations are not supported")
		}
	}
	if p := b.meta.fold("apiPolicies"); p.exists() {
		b.policies(p)
	}
	if c := b.spec.get("x-wso2-response-cache"); c.get("enabled").boolean(false) {
		c.note("responses are not cached; it has no effect")
	}
	b.interceptors(b.spec)
}

func (b *builder) interceptors(v value) {
	for _, key := range [2]string{"x-wso2-request-interceptor", "x-wso2-response-interceptor"} {
		if i := v.get(key); i.exists() {
			i.fault("remove it and do its work in the backend", "interceptors are not supported, and without it requests would pass that it may refuse")
		}
	}
	for _, key := range [2]string{"x-mediation-script", "x-amzn-resource-name"} {
		if i := v.get(key); i.exists() {
			i.fault("remove it and give the operation an endpoint", "is not supported")
		}
	}
}

// policies refuses operation policies: what they do to a request cannot be left out.
func (b *builder) policies(v value) {
	for _, flow := range [3]string{"request", "response", "fault"} {
		for _, p := range v.get(flow).items() {
			name := p.get("policyName")
			if !name.exists() {
				name = p
			}
			name.fault("remove it and do its work in the backend", "operation policies are not supported, and without it the backend would be given other requests than meant")
		}
	}
}
