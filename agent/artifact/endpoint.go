package artifact

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"gatehouse/proxy/definition"
)

// Ranges of the endpoint settings (contract rest.md 6.2, gateway-behaviour.md 21). Times are milliseconds.
const (
	maxTimeoutMillis  = 3_600_000
	maxRetries        = 10
	maxIntervalMillis = 600_000
	maxWindowMillis   = 3_600_000
)

// endpoint reads an endpoint object of x-wso2-*-endpoints, or a reference to one of x-wso2-endpoints.
func (b *builder) endpoint(v value) *definition.Endpoint {
	if !v.exists() {
		return nil
	}
	if !v.isMap() && !v.isList() {
		return b.endpointByReference(v)
	}
	if !v.isMap() {
		v.fault(`write an object with urls, or a text "#/x-wso2-endpoints/<name>"`, "is a list where an endpoint is expected")
		return nil
	}
	knownKeys(v, "urls", "type", "securityConfig", "advanceEndpointConfig", "description", "name")
	e := &definition.Endpoint{}
	urls := v.get("urls")
	if !urls.exists() {
		v.missing("urls", "write urls: [https://host/path]", "the endpoint has no URL")
		return nil
	}
	for _, u := range urls.items() {
		if text, ok := b.endpointURL(u); ok {
			e.URLs = append(e.URLs, text)
		}
	}
	if len(urls.items()) == 0 {
		urls.fault("write at least one URL", "is empty")
	}
	e.Kind = kindFor(len(urls.items()))
	if t := v.get("type"); t.exists() {
		switch strings.ToLower(t.text()) {
		case "http", "https", "address":
			if len(urls.items()) > 1 {
				t.fault("write load_balance or failover", "has %d URLs, and this type takes one", len(urls.items()))
			}
			e.Kind = definition.Single
		case "load_balance", "loadbalance":
			e.Kind = definition.LoadBalance
		case "failover":
			e.Kind = definition.Failover
		default:
			t.fault("write http, load_balance or failover", "is no type of endpoint")
		}
	}
	if len(e.URLs) == 1 {
		e.Kind = definition.Single
	}
	e.Security = b.basic(v.get("securityConfig"))
	b.advanced(v.get("advanceEndpointConfig"), e)
	return e
}

func kindFor(urls int) definition.EndpointKind {
	if urls > 1 {
		return definition.LoadBalance
	}
	return definition.Single
}

const referencePrefix = "#/x-wso2-endpoints/"

func (b *builder) endpointByReference(v value) *definition.Endpoint {
	name, ok := strings.CutPrefix(v.text(), referencePrefix)
	if !ok {
		v.fault(`write an object with urls, or a text "#/x-wso2-endpoints/<name>"`, "is no endpoint")
		return nil
	}
	target, ok := b.named[name]
	if !ok {
		names := make([]string, 0, len(b.named))
		for n := range b.named {
			names = append(names, n)
		}
		v.fault(didYouMean(name, names, "name one of x-wso2-endpoints"), "names an endpoint that x-wso2-endpoints does not have")
		return nil
	}
	if e, done := b.resolved[name]; done {
		return e
	}
	if !target.isMap() {
		target.fault("write an object with urls", "is no endpoint")
		b.resolved[name] = nil
		return nil
	}
	e := b.endpoint(target)
	b.resolved[name] = e
	return e
}

// namedEndpoints reads x-wso2-endpoints: a list of maps with one key each, or one map.
func (b *builder) namedEndpoints(v value) {
	b.named = make(map[string]value)
	b.resolved = make(map[string]*definition.Endpoint)
	for _, item := range v.items() {
		if !item.isMap() {
			item.fault("write - name: {urls: [...]}", "is no named endpoint")
			continue
		}
		item.each(func(m value) {
			if _, twice := b.named[m.key]; twice {
				m.fault("give each endpoint a name of its own", "stands twice")
			}
			b.named[m.key] = m
		})
	}
}

var (
	variable = regexp.MustCompile(`\$(?:env)?\{([^}]*)\}`)
	etcd     = regexp.MustCompile(`^etcd\(\s*[^,)]*\s*(?:,\s*(.*?)\s*)?\)$`)
)

const wantURL = "write https://host[:port]/path"

// endpointURL checks a URL, replacing ${NAME} and $env{NAME} from the environment.
func (b *builder) endpointURL(v value) (string, bool) {
	text := v.text()
	if text == "" {
		if v.node == nil || v.node.Kind == 0 || v.exists() && (v.isMap() || v.isList()) {
			return "", false // text has said so
		}
		v.fault(wantURL, "is empty")
		return "", false
	}
	if m := variable.FindString(text); m != "" && b.opts.LookupEnv == nil {
		v.fault(wantURL, "%s: the environment is not open to definitions of the API Manager", m)
		return "", false
	}
	text, ok := b.expand(v, text)
	if !ok {
		return "", false
	}
	if m := etcd.FindStringSubmatch(text); m != nil {
		if m[1] == "" {
			v.fault("write the URL itself, or etcd(key, URL)", "etcd is not asked, and no default stands here")
			return "", false
		}
		v.note("etcd is not asked; its default %s is used", m[1])
		text = strings.Trim(m[1], `"'`)
	}
	if strings.HasPrefix(text, "consul(") {
		v.fault(wantURL, "Consul is not asked for addresses")
		return "", false
	}
	clean, problem := checkURL(text)
	if problem != "" {
		v.fault(wantURL, "%s", problem)
		return "", false
	}
	return clean, true
}

// checkURL returns the URL as the proxy takes it, or what is wrong with it. ws and wss become http and https: an upgrade
// begins as a request.
func checkURL(text string) (clean, problem string) {
	if strings.ContainsAny(text, "{}") {
		return "", "holds a placeholder, and dynamic endpoints are not supported"
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", "is no URL"
	}
	switch strings.ToLower(u.Scheme) {
	case "http", "ws":
		u.Scheme = "http"
	case "https", "wss":
		u.Scheme = "https"
	case "":
		return "", "is not absolute"
	default:
		return "", "scheme " + u.Scheme + " is not served"
	}
	if u.Opaque != "" || u.Hostname() == "" {
		return "", "has no host"
	}
	if u.User != nil {
		return "", "holds credentials, which belong in securityConfig"
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return "", "has a query or a fragment, and only a path can be put before the request's"
	}
	return u.String(), ""
}

// basic reads securityConfig: {type, username, password}.
func (b *builder) basic(v value) *definition.EndpointSecurity {
	if !v.exists() {
		return nil
	}
	if !v.isMap() {
		v.fault("write {type: basic, username: u, password: p}", "is no object")
		return nil
	}
	if e := v.get("enabled"); e.exists() && !e.boolean(true) {
		return nil
	}
	t := v.get("type")
	kind := strings.ToLower(t.text())
	if kind == "none" {
		return nil
	}
	if kind != "basic" {
		if t.exists() {
			t.fault("write basic", "this kind of endpoint security is not supported, and without it the backend would refuse")
		} else {
			v.missing("type", "write basic", "the kind of endpoint security is missing")
		}
		return nil
	}
	s := &definition.EndpointSecurity{Type: "basic"}
	var ok bool
	if s.Username, ok = b.credential(v.get("username")); ok && s.Username == "" {
		v.missing("username", "write the user of the backend", "basic endpoint security has no user")
	}
	if s.Password, ok = b.credential(v.get("password")); ok && s.Password == "" {
		v.missing("password", "write the password of the backend, or $env{NAME}", "basic endpoint security has no password")
	}
	return s
}

// credential reads a user name or password as it stands, blanks included. ok is false when a fault was reported.
func (b *builder) credential(v value) (text string, ok bool) {
	if !v.exists() {
		return "", true
	}
	if v.isMap() || v.isList() {
		v.text()
		return "", false
	}
	return b.expand(v, v.node.Value)
}

// expand replaces ${NAME} and $env{NAME} from the environment, where that is open. ok is false when a fault was reported.
func (b *builder) expand(v value, text string) (out string, ok bool) {
	if b.opts.LookupEnv == nil {
		return text, true
	}
	ok = true
	out = variable.ReplaceAllStringFunc(text, func(m string) string {
		name := variable.FindStringSubmatch(m)[1]
		s, found := b.opts.LookupEnv(name)
		if !found || s == "" {
			v.fault("set "+name+" in the environment of the gateway", "%s: the variable is not set", m)
			ok = false
		}
		return s
	})
	return out, ok
}

// advanced reads advanceEndpointConfig.
func (b *builder) advanced(v value, e *definition.Endpoint) {
	if !v.exists() {
		return
	}
	if !v.isMap() {
		v.fault("write an object", "is no object")
		return
	}
	knownKeys(v, "timeoutInMillis", "retryConfig", "circuitBreaker", "circuitBreakers", "poolConfig")
	e.Timeout = millis(v.get("timeoutInMillis"), 1, maxTimeoutMillis)
	if r := v.get("retryConfig"); r.exists() {
		knownKeys(r, "count", "intervalInMillis", "backOffFactor", "maxWaitIntervalInMillis", "statusCodes", "methods")
		e.Retry = &definition.Retry{
			Count:       int(r.get("count").integer(0, maxRetries)),
			Interval:    millis(r.get("intervalInMillis"), 0, maxIntervalMillis),
			MaxInterval: millis(r.get("maxWaitIntervalInMillis"), 0, maxIntervalMillis),
			Factor:      r.get("backOffFactor").number(0, 0, 100),
			StatusCodes: statusCodes(r.get("statusCodes")),
		}
		for _, m := range r.get("methods").items() {
			method := strings.ToUpper(m.text())
			if !httpMethods[method] {
				m.fault("write GET, HEAD, PUT, DELETE, OPTIONS, TRACE, POST or PATCH", "is no method")
				continue
			}
			e.Retry.Methods = append(e.Retry.Methods, method)
		}
		if e.Retry.MaxInterval > 0 && e.Retry.Interval > e.Retry.MaxInterval {
			r.get("maxWaitIntervalInMillis").fault("write at least intervalInMillis", "is shorter than intervalInMillis")
		}
	}
	if c := v.get("circuitBreaker"); c.exists() {
		e.Breaker = b.breaker(c)
	}
	if c := v.get("circuitBreakers"); c.exists() {
		c.note("limits on connections have no effect here; a breaker is circuitBreaker")
	}
	if c := v.get("poolConfig"); c.exists() {
		c.note("the connection pool is configured for the whole gateway; these values have no effect")
	}
}

func (b *builder) breaker(c value) *definition.Breaker {
	knownKeys(c, "rollingWindow", "failureThreshold", "resetTimeInMillis", "statusCodes", "halfOpenRequests")
	w := c.get("rollingWindow")
	knownKeys(w, "requestVolumeThreshold", "timeWindowInMillis", "bucketSizeInMillis")
	out := &definition.Breaker{
		VolumeThreshold:  int(w.get("requestVolumeThreshold").integer(1, 1_000_000)),
		Window:           millis(w.get("timeWindowInMillis"), 1, maxWindowMillis),
		Bucket:           millis(w.get("bucketSizeInMillis"), 1, maxWindowMillis),
		Reset:            millis(c.get("resetTimeInMillis"), 1, maxWindowMillis),
		HalfOpenRequests: int(c.get("halfOpenRequests").integer(1, 1000)),
		FailureThreshold: c.get("failureThreshold").number(0, 0, 1),
		StatusCodes:      statusCodes(c.get("statusCodes")),
	}
	if c.get("failureThreshold").exists() && out.FailureThreshold == 0 {
		out.FailureThreshold = 1e-9 // written as 0: any failure trips; the zero value would mean the default
	}
	window, bucket := out.Window, out.Bucket
	if window == 0 {
		window = 10 * time.Second
	}
	if bucket != 0 && (bucket > window || window%bucket != 0) {
		w.get("bucketSizeInMillis").fault("write a part of the window, such as a tenth", "the window of %d ms is no whole number of buckets", window.Milliseconds())
	}
	return out
}

func millis(v value, low, high int64) time.Duration {
	return time.Duration(v.integer(low, high)) * time.Millisecond
}

func statusCodes(v value) []int {
	var out []int
	for _, it := range v.items() {
		if n := it.integer(400, 599); n != 0 {
			out = append(out, int(n))
		}
	}
	return out
}

// endpointConfig reads the endpointConfig of api.yaml.
func (b *builder) endpointConfig(v value) (production, sandbox *definition.Endpoint) {
	if !v.exists() {
		return nil, nil
	}
	if !v.isMap() {
		inner, ok := nestedJSON(v)
		if !ok {
			v.fault("write an object", "is no endpointConfig")
			return nil, nil
		}
		v = inner
	}
	kind := v.get("endpoint_type")
	switch t := strings.ToLower(kind.text()); t {
	case "", "http", "https", "address", "service", "load_balance", "failover", "ws", "graphql", "soap":
	case "default":
		kind.fault("write the endpoint's URL and type http", "dynamic endpoints are not supported")
		return nil, nil
	case "awslambda":
		kind.fault("write an http endpoint", "AWS Lambda endpoints are not supported")
		return nil, nil
	default:
		kind.fault("write http, load_balance or failover", "is no type of endpoint")
		return nil, nil
	}
	production = b.configured(v, kind, "production")
	sandbox = b.configured(v, kind, "sandbox")
	return production, sandbox
}

// configured reads the endpoints of one side of endpointConfig.
func (b *builder) configured(v, kind value, side string) *definition.Endpoint {
	main := v.get(side + "_endpoints")
	failovers := v.get(side + "_failovers")
	if !main.exists() && len(failovers.items()) == 0 {
		return nil
	}
	e := &definition.Endpoint{}
	var settings value
	for _, part := range [2]value{main, failovers} {
		for _, it := range part.items() {
			u := it
			if it.isMap() {
				u = it.get("url")
				if !u.exists() {
					it.missing("url", wantURL, "the endpoint has no URL")
					continue
				}
				if !settings.exists() {
					settings = it.get("config")
				}
			}
			if u.node.Kind == yaml.ScalarNode && u.text() == "" {
				continue // the portal leaves an endpoint that was taken out so
			}
			if strings.EqualFold(u.text(), "default") {
				u.fault(wantURL, "dynamic endpoints are not supported")
				continue
			}
			if text, ok := b.endpointURL(u); ok {
				e.URLs = append(e.URLs, text)
			}
		}
	}
	if len(e.URLs) == 0 {
		return nil
	}
	e.Kind = kindFor(len(e.URLs))
	if len(e.URLs) > 1 && (len(failovers.items()) > 0 || strings.EqualFold(kind.text(), "failover")) {
		e.Kind = definition.Failover
	}
	if settings.exists() {
		if !settings.isMap() {
			if inner, ok := nestedJSON(settings); ok {
				settings = inner
			}
		}
		e.Timeout = millis(settings.get("actionDuration"), 0, maxTimeoutMillis)
		retries := settings.get("retryTimeOut")
		count := retries.integer(-1<<31, 1<<31-1)
		if count > maxRetries {
			retries.note("%d retries are more than the greatest number, %d, which is used", count, maxRetries)
			count = maxRetries
		}
		if count > 0 {
			e.Retry = &definition.Retry{Count: int(count)}
		}
	}
	e.Security = b.endpointSecurity(v.get("endpoint_security").get(side))
	return e
}

// endpointSecurity reads endpoint_security.production or .sandbox.
func (b *builder) endpointSecurity(v value) *definition.EndpointSecurity {
	if !v.exists() || !v.get("enabled").boolean(false) {
		return nil
	}
	return b.basic(v)
}

// nestedJSON reads a text that holds JSON, as 3.2 writes endpointConfig. All of it gets the place of the text.
func nestedJSON(v value) (value, bool) {
	if v.node == nil || !strings.HasPrefix(strings.TrimSpace(v.node.Value), "{") {
		return value{}, false
	}
	n, err := parseJSON([]byte(v.node.Value))
	if err != nil {
		return value{}, false
	}
	place(n, v.node.Line, v.node.Column)
	return value{doc: v.doc, node: n, parent: v.parent, key: v.key}, true
}

// override puts the endpoints of the environment in place of the project's, keeping how they are called.
func (b *builder) override(e *definition.Endpoint, text, what string) *definition.Endpoint {
	if text == "" {
		return e
	}
	clean, problem := checkURL(text)
	if problem != "" {
		b.report.add(Fault{File: b.name, Key: what, Value: short(text), Want: wantURL, Problem: "the environment's endpoint " + problem})
		return e
	}
	out := &definition.Endpoint{}
	if e != nil {
		*out = *e
	}
	out.Kind, out.URLs = definition.Single, []string{clean}
	return out
}

// knownKeys reports members that are a slip of the pen away from a known one, and notes the other unknown ones.
func knownKeys(v value, known ...string) {
	if !v.exists() {
		return
	}
	if !v.isMap() {
		v.fault("write an object", "is no object")
		return
	}
	v.each(func(m value) {
		if slices.Contains(known, m.key) {
			return
		}
		if near := nearest(m.key, known); near != "" {
			m.fault(fmt.Sprintf("did you mean %s?", near), "is no key of this object")
			return
		}
		m.note("is not known and has no effect")
	})
}

func didYouMean(name string, known []string, otherwise string) string {
	if near := nearest(name, known); near != "" {
		return fmt.Sprintf("did you mean %s?", near)
	}
	return otherwise
}

// nearest returns the known name within two edits (without case), "" when there is none.
func nearest(name string, known []string) string {
	const limit = 3
	best, at := "", limit
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k), limit); d < at || d == at && d < limit && k < best {
			best, at = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short texts, limit when it is that or more.
func distance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost++
			}
			prev = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit)
}
