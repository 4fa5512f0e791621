package artifact

import (
	"slices"
	"strconv"
	"strings"

	"gatehouse/proxy/definition"
)

// scheme is what a security scheme of the document stands for; header and query are where an API key comes in.
type scheme struct {
	kind          definition.Credential
	header, query string
}

// Kinds that no gateway setting makes checkable.
const (
	keyInCookie = definition.Credential("api_key in a cookie")
	severalKeys = definition.Credential("several API keys at once")
)

// defaultKeyName is where API keys come when a definition says only that they do.
const defaultKeyName = "apikey"

// keyScheme reads where an API key comes in.
func keyScheme(s value) scheme {
	name, in := s.get("name"), s.get("in")
	k := scheme{kind: definition.APIKey}
	switch strings.ToLower(in.text()) {
	case "header":
		k.header = or(header(name), defaultKeyName)
	case "query":
		k.query = or(name.text(), defaultKeyName)
	case "cookie":
		k.kind = keyInCookie
	default:
		if !in.exists() {
			s.missing("in", "write header or query", "the scheme does not say where the API key comes in")
		} else {
			in.fault("write header or query", "is no place of an API key")
		}
	}
	return k
}

// places are the fields and parameters of API keys.
type places struct{ headers, queries []string }

func (p *places) add(s scheme) {
	if s.header != "" && !slices.ContainsFunc(p.headers, func(h string) bool { return strings.EqualFold(h, s.header) }) {
		p.headers = append(p.headers, s.header)
	}
	if s.query != "" && !slices.Contains(p.queries, s.query) {
		p.queries = append(p.queries, s.query)
	}
}

// keyPlaces adds to what an operation's own requirement names the places that hold without it: those that the document
// declares, and the ones of the API Manager's gateways where api.yaml asks for API keys.
func (b *builder) keyPlaces(own places) places {
	if len(own.headers) > 0 || len(own.queries) > 0 {
		if b.keysOfMeta {
			own.add(b.defaultPlaces)
		}
		return own
	}
	names := make([]string, 0, len(b.schemes))
	for name := range b.schemes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		own.add(b.schemes[name])
	}
	if b.keysOfMeta || len(own.headers) == 0 && len(own.queries) == 0 {
		own.add(b.defaultPlaces)
	}
	return own
}

// securitySchemes reads which kind of credential each scheme of the document stands for.
func (b *builder) securitySchemes() {
	b.schemes = make(map[string]scheme)
	for _, all := range [2]value{b.spec.get("components").get("securitySchemes"), b.spec.get("securityDefinitions")} {
		all.each(func(m value) {
			s := m
			if ref := m.get("$ref"); ref.exists() {
				if s = b.reference(ref); !s.exists() {
					return
				}
			}
			switch strings.ToLower(s.get("type").text()) {
			case "oauth2", "openidconnect":
				b.schemes[m.key] = scheme{kind: definition.OAuth2}
			case "apikey":
				b.schemes[m.key] = keyScheme(s)
			case "basic":
				b.schemes[m.key] = scheme{kind: definition.Basic}
			case "mutualtls":
				b.schemes[m.key] = scheme{kind: definition.MutualTLS}
			case "http":
				switch strings.ToLower(s.get("scheme").text()) {
				case "basic":
					b.schemes[m.key] = scheme{kind: definition.Basic}
				case "bearer":
					b.schemes[m.key] = scheme{kind: definition.OAuth2}
				default:
					b.schemes[m.key] = scheme{kind: definition.Credential("http " + short(s.get("scheme").text()))}
				}
			default:
				m.fault("write oauth2, openIdConnect, http, apiKey or mutualTLS as its type", "is no security scheme")
			}
		})
	}
}

// reference follows a reference within the document.
func (b *builder) reference(ref value) value {
	at := ref
	for range maxNesting {
		pointer, ok := strings.CutPrefix(at.text(), "#/")
		if !ok {
			ref.fault("write the definition into the same file", "refers to another file")
			return value{}
		}
		v := at.doc.top()
		for part := range strings.SplitSeq(pointer, "/") {
			part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
			v = v.get(part)
		}
		if !v.exists() {
			ref.fault("name something that this file defines", "refers to nothing")
			return value{}
		}
		next := v.get("$ref")
		if !next.exists() {
			return v
		}
		at = next
	}
	ref.fault("name something that this file defines", "refers to itself")
	return value{}
}

// apiSecurity reads what api.yaml or the extensions of the API ask for.
func (b *builder) apiSecurity() {
	b.disabled = b.spec.get("x-wso2-disable-security")
	b.api.AllScopes = b.spec.get("x-wso2-all-scopes").boolean(false)
	b.defaultPlaces = scheme{header: defaultKeyName, query: defaultKeyName}
	for _, h := range [...]value{b.spec.get("x-wso2-api-key-header", "x-wso2-apikey-header"), b.meta.fold("apiKeyHeader")} {
		if name := header(h); name != "" {
			b.defaultPlaces.header = name
		}
	}
	if app := b.spec.get("x-wso2-application-security"); app.exists() || b.spec.get("x-wso2-mutual-ssl").exists() {
		b.metaSecurity, b.certified = b.extensionSecurity(app, b.spec.get("x-wso2-mutual-ssl"))
	}
	list := b.meta.fold("securityScheme")
	if !list.exists() {
		list = b.meta.get("apiSecurity") // 3.2: one text with commas
	}
	if !list.exists() {
		return
	}
	var kinds []definition.Credential
	var mutual, mutualMandatory, appMandatory bool
	for _, it := range list.items() {
		for name := range strings.SplitSeq(it.text(), ",") {
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "oauth2":
				kinds = append(kinds, definition.OAuth2)
			case "basic_auth":
				kinds = append(kinds, definition.Basic)
			case "api_key":
				kinds = append(kinds, definition.APIKey)
			case "mutualssl":
				mutual = true
			case "mutualssl_mandatory":
				mutual, mutualMandatory = true, true
			case "oauth_basic_auth_api_key_mandatory":
				appMandatory = true
			case "":
			default:
				it.fault("write oauth2, basic_auth, api_key, mutualssl, mutualssl_mandatory or oauth_basic_auth_api_key_mandatory", "is no security scheme")
			}
		}
	}
	b.metaSecurity, b.certified = combine(kinds, mutual, mutualMandatory, appMandatory || !mutual), false
	b.keysOfMeta = slices.Contains(kinds, definition.APIKey)
}

// extensionSecurity reads x-wso2-application-security and x-wso2-mutual-ssl. Where the former names no kinds, the
// alternatives are nil and those of the security requirement hold; certified says that each wants a certificate on top.
func (b *builder) extensionSecurity(app, mutual value) (alternatives [][]definition.Credential, certified bool) {
	var kinds []definition.Credential
	optional := false
	if app.exists() {
		knownKeys(app, "security-types", "optional")
		for _, it := range app.get("security-types").items() {
			switch strings.ToLower(it.text()) {
			case "oauth2", "jwt":
				kinds = append(kinds, definition.OAuth2)
			case "basic_auth", "basic":
				kinds = append(kinds, definition.Basic)
			case "api_key", "apikey":
				kinds = append(kinds, definition.APIKey)
			default:
				it.fault("write oauth2, basic_auth or api_key", "is no kind of credential")
			}
		}
		optional = app.get("optional").boolean(false)
	}
	has, mandatory := false, false
	if mutual.exists() {
		switch strings.ToLower(mutual.text()) {
		case "mandatory":
			has, mandatory = true, true
		case "optional":
			has = true
		default:
			mutual.fault("write mandatory or optional", "is no setting of mutual TLS")
		}
	}
	if app.exists() && optional && !has {
		b.api.SecurityOptional = true
	}
	if len(kinds) == 0 && !optional {
		return nil, mandatory
	}
	if len(kinds) == 0 && !has {
		return nil, false
	}
	if len(kinds) == 0 {
		kinds = []definition.Credential{definition.OAuth2}
	}
	return combine(kinds, has, mandatory, !optional), false
}

// withCertificate puts the certificate of mandatory mutual TLS on top of each alternative.
func withCertificate(alternatives [][]definition.Credential) [][]definition.Credential {
	if len(alternatives) == 0 {
		alternatives = [][]definition.Credential{{definition.OAuth2}}
	}
	out := make([][]definition.Credential, 0, len(alternatives))
	for _, alt := range alternatives {
		with := append([]definition.Credential{definition.MutualTLS}, slices.DeleteFunc(slices.Clone(alt), func(k definition.Credential) bool { return k == definition.MutualTLS })...)
		out = append(out, with)
	}
	return out
}

// combine makes the alternatives: with mandatory mutual TLS each other kind comes on top of the certificate, with an
// optional one the certificate is an alternative of its own unless a credential is mandatory.
func combine(kinds []definition.Credential, mutual, mutualMandatory, appMandatory bool) [][]definition.Credential {
	if len(kinds) == 0 && !mutual {
		kinds = []definition.Credential{definition.OAuth2}
	}
	var out [][]definition.Credential
	if mutual && (len(kinds) == 0 || !appMandatory) {
		out = append(out, []definition.Credential{definition.MutualTLS})
	}
	for _, k := range kinds {
		switch {
		case mutualMandatory && appMandatory:
			out = append(out, []definition.Credential{definition.MutualTLS, k})
		case mutualMandatory:
			// The certificate alone is enough, and without it nothing is.
		default:
			out = append(out, []definition.Credential{k})
		}
	}
	return out
}

// requirement reads a security requirement: its alternatives, the scopes that OAuth2 schemes name, and where API keys
// come in.
func (b *builder) requirement(v value) (alternatives [][]definition.Credential, scopes []string, keys places) {
	for _, alt := range v.items() {
		if !alt.isMap() {
			alt.fault("write - scheme: [scopes]", "is no security requirement")
			continue
		}
		var kinds []definition.Credential
		var first *scheme // of an API key
		empty := true
		alt.each(func(m value) {
			empty = false
			s, known := b.schemes[m.key]
			kind := s.kind
			if !known {
				if m.key != "default" { // what the API Manager writes without always defining it
					names := make([]string, 0, len(b.schemes))
					for n := range b.schemes {
						names = append(names, n)
					}
					m.ofKey().fault(didYouMean(m.key, names, "define it under securitySchemes"), "names a security scheme that is not defined")
					return
				}
				kind = definition.OAuth2
			}
			if kind == definition.OAuth2 {
				for _, s := range m.items() {
					if text := s.text(); text != "" && !slices.Contains(scopes, text) {
						scopes = append(scopes, text)
					}
				}
			}
			if kind == definition.APIKey {
				if first != nil && *first != s {
					kind = severalKeys
				}
				first = &s
				keys.add(s)
			}
			if !slices.Contains(kinds, kind) {
				kinds = append(kinds, kind)
			}
		})
		if empty {
			alt.note("an empty requirement does not open the operation; x-wso2-disable-security: true does")
			continue
		}
		slices.Sort(kinds)
		if len(kinds) > 0 && !slices.ContainsFunc(alternatives, func(a []definition.Credential) bool { return slices.Equal(a, kinds) }) {
			alternatives = append(alternatives, kinds)
		}
	}
	if v.isList() && len(v.items()) == 0 {
		v.note("an empty list does not open the operation; x-wso2-disable-security: true does")
	}
	return alternatives, scopes, keys
}

// secure settles who may call an operation.
func (b *builder) secure(op *definition.Operation, v value) {
	require := v.get("security")
	if !require.exists() {
		require = b.spec.get("security")
	}
	alternatives, scopes, keys := b.requirement(require)
	if len(scopes) == 0 {
		for _, key := range [2]string{"x-scopes", "x-scope"} {
			for _, s := range v.get(key).items() {
				for one := range strings.SplitSeq(s.text(), ",") {
					if one = strings.TrimSpace(one); one != "" && !slices.Contains(scopes, one) {
						scopes = append(scopes, one)
					}
				}
			}
		}
	}
	op.Scopes = scopes
	if b.metaSecurity != nil {
		alternatives = b.metaSecurity
	}
	if b.certified {
		alternatives = withCertificate(alternatives)
	}
	if app := v.get("x-wso2-application-security"); app.exists() || v.get("x-wso2-mutual-ssl").exists() {
		optional := b.api.SecurityOptional
		own, certified := b.extensionSecurity(app, v.get("x-wso2-mutual-ssl"))
		if own != nil {
			alternatives = own
		}
		if certified {
			alternatives = withCertificate(alternatives)
		}
		if b.api.SecurityOptional && !optional {
			b.api.SecurityOptional = false
			app.note("optional is of the whole API; on one operation it has no effect")
		}
	}
	auth := v.get("x-auth-type")
	switch strings.ToLower(strings.Join(strings.Fields(auth.text()), " ")) {
	case "":
	case "none":
		op.Unsecured = true
	case "any", "application", "application user", "application & application user":
	default:
		auth.fault("write None, Any, Application, Application User or Application & Application User", "is no authentication type")
	}
	how := security{alternatives: alternatives, keys: keys}
	d := v.get("x-wso2-disable-security")
	if !d.exists() {
		d = b.disabled
	}
	if d.exists() {
		op.Unsecured, how.fixed = d.boolean(false), true
	}
	b.how = append(b.how, how)
}

// security is what is known of an operation until everything is read.
type security struct {
	alternatives [][]definition.Credential
	keys         places // of API keys, as the requirement names them
	fixed        bool   // x-wso2-disable-security decided, which stands above authentication types
}

// settle writes the alternatives into the operation, and why none of them can be satisfied.
func (b *builder) settle(op *definition.Operation, how security) {
	alternatives := how.alternatives
	op.Unsecured = op.Unsecured || b.prototyped
	if op.Unsecured {
		op.Scopes = nil
		return
	}
	if len(alternatives) == 0 || len(alternatives) == 1 && len(alternatives[0]) == 1 && alternatives[0][0] == definition.OAuth2 {
		return
	}
	op.Security = alternatives
	if slices.ContainsFunc(alternatives, func(alt []definition.Credential) bool { return slices.Contains(alt, definition.APIKey) }) {
		keys := b.keyPlaces(how.keys)
		op.APIKeyHeaders, op.APIKeyQueries = keys.headers, keys.queries
	}
	for _, alt := range alternatives {
		if !slices.ContainsFunc(alt, func(k definition.Credential) bool { return !slices.Contains(b.opts.supported(), k) }) {
			return
		}
	}
	var names []string
	for _, alt := range alternatives {
		var kinds []string
		for _, k := range alt {
			kinds = append(kinds, string(k))
		}
		names = append(names, strings.Join(kinds, " with "))
	}
	op.Unavailable = "it asks for " + strings.Join(names, " or ") + ", which is not checked here"
	b.report.note("some operations %s: every request to them is refused", strings.Replace(op.Unavailable, "it asks", "ask", 1))
}

// operations reads the paths of the OpenAPI document, then what api.yaml says of them.
func (b *builder) operations() {
	index := make(map[string]int)
	same := make(map[string]value)
	paths := b.spec.get("paths")
	if b.spec.exists() && !paths.isMap() && b.api.Type != "WS" && b.api.Type != "GRAPHQL" {
		b.spec.missing("paths", "write the paths of the API", "the document has no paths")
	}
	paths.each(func(p value) {
		if strings.HasPrefix(p.key, "x-") {
			return
		}
		keyPlace := p.ofKey()
		shape, problem := templateShape(p.key)
		if problem != "" {
			keyPlace.fault("write a path such as /items/{id} or /*", "%s", problem)
			return
		}
		item := p
		if ref := p.get("$ref"); ref.exists() {
			if item = b.reference(ref); !item.exists() {
				return
			}
		}
		if !item.isMap() {
			if item.exists() {
				p.fault("write get:, post: and so on", "is no path item")
			}
			return
		}
		b.extensions(item, operationExtensions)
		b.interceptors(item)
		production, sandbox := b.endpoint(item.get("x-wso2-production-endpoints")), b.endpoint(item.get("x-wso2-sandbox-endpoints"))
		tier := b.tier(item)
		item.each(func(m value) {
			method := strings.ToUpper(m.key)
			if !httpMethods[method] {
				return
			}
			if !m.isMap() {
				m.fault("write an operation", "is no operation")
				return
			}
			if first, twice := same[method+" "+shape]; twice {
				line, _ := first.line()
				m.ofKey().fault("keep one of them", "matches the same requests as %s (line %d)", first.path(), line)
				return
			}
			same[method+" "+shape] = m.ofKey()
			b.extensions(m, operationExtensions)
			b.interceptors(m)
			op := definition.Operation{Template: p.key, Method: method, Tier: or(b.tier(m), tier)}
			op.Production, op.Sandbox = b.endpoint(m.get("x-wso2-production-endpoints")), b.endpoint(m.get("x-wso2-sandbox-endpoints"))
			if op.Production == nil {
				op.Production = production
			}
			if op.Sandbox == nil {
				op.Sandbox = sandbox
			}
			b.secure(&op, m)
			index[method+" "+p.key] = len(b.api.Operations)
			b.api.Operations = append(b.api.Operations, op)
		})
	})
	b.metaOperations(index, same)
	if b.prototyped {
		b.report.note("the API is a prototype: its operations need no credential")
	}
	for i := range b.api.Operations {
		b.settle(&b.api.Operations[i], b.how[i])
	}
	if b.api.Type == "GRAPHQL" {
		// Its operations are QUERY and MUTATION within one POST: without reading the query their scopes and tiers cannot be
		// kept, so no request is let through.
		const why = "it is a GraphQL API, and this release does not read queries"
		b.report.note("%s: every request to it is refused", why)
		b.api.Operations = []definition.Operation{
			{Template: "/*", Method: "POST", Unavailable: why},
			{Template: "/*", Method: "GET", Unavailable: why},
		}
		return
	}
	if len(b.api.Operations) == 0 && len(b.report.faults) == 0 {
		at, key := paths, ""
		if !paths.exists() {
			at, key = b.meta, "operations"
		}
		if key == "" {
			at.fault("write at least one path with an operation", "the API has no operation")
		} else {
			at.missing(key, "write at least one operation", "the API has no operation")
		}
	}
}

// metaOperations reads operations of api.yaml: they win over the document.
func (b *builder) metaOperations(index map[string]int, same map[string]value) {
	list := b.meta.fold("operations")
	if !list.exists() {
		list = b.meta.get("uriTemplates") // 3.2
	}
	for _, it := range list.items() {
		if !it.isMap() {
			it.fault("write {target, verb, ...}", "is no operation")
			continue
		}
		target := it.get("target", "uriTemplate", "urlPattern")
		verb := it.get("verb", "httpVerb")
		method := strings.ToUpper(verb.text())
		if p := it.get("operationPolicies"); p.exists() {
			b.policies(p)
		}
		if b.api.Type == "GRAPHQL" {
			continue
		}
		if b.api.Type == "WS" || b.api.Type == "SSE" {
			method = "GET" // an upgrade, or the request for a stream
		} else if !httpMethods[method] {
			if verb.exists() {
				verb.fault("write GET, PUT, POST, DELETE, PATCH, HEAD or OPTIONS", "is no method")
			} else {
				it.missing("verb", "write GET, PUT, POST, DELETE, PATCH, HEAD or OPTIONS", "the operation has no method")
			}
			continue
		}
		if !target.exists() {
			it.missing("target", "write a path such as /items/{id}", "the operation has no target")
			continue
		}
		text := target.text()
		shape, problem := templateShape(text)
		if problem != "" {
			target.fault("write a path such as /items/{id} or /*", "%s", problem)
			continue
		}
		i, known := index[method+" "+text]
		if !known {
			if first, twice := same[method+" "+shape]; twice {
				if b.api.Type == "WS" || b.api.Type == "SSE" {
					continue // publish and subscribe of one topic
				}
				line, _ := first.line()
				target.fault("keep one of them", "matches the same requests as %s (line %d)", first.path(), line)
				continue
			}
			i = len(b.api.Operations)
			index[method+" "+text] = i
			same[method+" "+shape] = it
			b.api.Operations = append(b.api.Operations, definition.Operation{Template: text, Method: method})
			how := security{alternatives: b.metaSecurity, fixed: b.disabled.exists()}
			if b.certified {
				how.alternatives = withCertificate(how.alternatives)
			}
			b.how = append(b.how, how)
			b.api.Operations[i].Unsecured = b.disabled.boolean(false)
		}
		op := &b.api.Operations[i]
		if t := it.get("throttlingPolicy", "throttlingTier"); t.exists() {
			op.Tier = t.text()
		}
		if s := it.get("scopes"); s.exists() {
			if scopes := s.texts(); len(scopes) > 0 {
				op.Scopes = scopes
			}
		}
		auth := it.get("authType")
		switch strings.ToLower(strings.Join(strings.Fields(strings.ReplaceAll(auth.text(), "_", " ")), " ")) {
		case "":
		case "none":
			op.Unsecured = op.Unsecured || !b.how[i].fixed
		case "any", "application", "application user", "application & application user":
			op.Unsecured = op.Unsecured && b.how[i].fixed
		default:
			auth.fault("write None, Any, Application, Application User or Application & Application User", "is no authentication type")
		}
	}
}

// templateShape checks a path template and returns it with the names of its parameters blotted out and what is
// percent-encoded decoded: two templates of one shape match the same requests.
func templateShape(t string) (shape, problem string) {
	if !strings.HasPrefix(t, "/") {
		return "", "does not begin with /"
	}
	if i := strings.IndexByte(t, '*'); i >= 0 && (i != len(t)-1 || t[i-1] != '/') {
		return "", "has a * elsewhere than at the end, as /*"
	}
	if strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '?' || r == '#' }) {
		return "", "holds a character that no path may have"
	}
	if strings.Contains(t+"/", "/../") || strings.Contains(t+"/", "/./") {
		return "", "has an element . or .., which no request has"
	}
	var out strings.Builder
	var names []string
	for rest := t; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		literal := rest
		if i >= 0 {
			literal = rest[:i]
		}
		if !unescape(&out, literal) {
			return "", "has a % that is not followed by two hexadecimal digits"
		}
		if i < 0 {
			break
		}
		if rest[i] == '}' {
			return "", "has a } without {"
		}
		end := strings.IndexAny(rest[i+1:], "{}/")
		if end < 0 || rest[i+1+end] != '}' {
			return "", "has a { without }"
		}
		name := rest[i+1 : i+1+end]
		switch {
		case name == "":
			return "", "has a parameter without a name"
		case slices.Contains(names, name):
			return "", "has two parameters with the name " + name
		case literal == "" && len(names) > 0:
			return "", "has two parameters with nothing between them"
		}
		names = append(names, name)
		out.WriteString("{}")
		rest = rest[i+end+2:]
	}
	return out.String(), ""
}

// unescape writes a literal part of a template with its percent-encoding undone, but for the encoded / and %, which stay
// apart from the plain ones.
func unescape(out *strings.Builder, literal string) bool {
	for i := 0; i < len(literal); i++ {
		if literal[i] != '%' {
			out.WriteByte(literal[i])
			continue
		}
		if i+2 >= len(literal) {
			return false
		}
		n, err := strconv.ParseUint(literal[i+1:i+3], 16, 8)
		if err != nil || n == 0 {
			return false
		}
		if n == '/' || n == '%' {
			out.WriteString(strings.ToUpper(literal[i : i+3]))
		} else {
			out.WriteByte(byte(n))
		}
		i += 2
	}
	return true
}
