package config

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"gatehouse/keymanager/backendjwt/template"
)

// derive fills what follows from what is written: a section that stands is on, credentials are shared, labels are merged.
func (d *decoder) derive(c *Config) {
	set := d.source.Written
	hub, throttling := &c.APIM.EventHub, &c.APIM.Throttling
	if !set("apim.event_hub.enable") {
		hub.Enable = set("apim.event_hub.service_url")
	}
	if !set("apim.throttling.enable_data_publishing") {
		throttling.EnableDataPublishing = len(throttling.URLGroups) > 0
	}
	// deployment.toml gives either section the other's credentials; so it is here.
	switch {
	case !set("apim.event_hub.username") && !set("apim.event_hub.password"):
		hub.Username, hub.Password = throttling.Username, throttling.Password
	case !set("apim.throttling.username") && !set("apim.throttling.password"):
		throttling.Username, throttling.Password = hub.Username, hub.Password
	}
	if !set("gateway.validate_subscriptions") {
		c.Gateway.ValidateSubscriptions = hub.Enable
	}
	for i := range c.APIM.JWT.Issuers {
		if !set(fmt.Sprintf("apim.jwt.issuer[%d].validate_subscriptions", i)) {
			c.APIM.JWT.Issuers[i].ValidateSubscriptions = c.Gateway.ValidateSubscriptions
		}
	}
	for i := range c.Gateway.APIKeyIssuers {
		if !set(fmt.Sprintf("gateway.api_key_issuer[%d].validate_allowed_apis", i)) {
			c.Gateway.APIKeyIssuers[i].ValidateAllowedAPIs = !c.Gateway.ValidateSubscriptions
		}
	}
	if !set("gateway.gateway_labels") {
		c.Gateway.GatewayLabels = slices.Clone(c.APIM.SyncArtifacts.Gateway.GatewayLabels)
	}
	if len(c.Gateway.GatewayLabels) == 0 {
		c.Gateway.GatewayLabels = []string{c.Gateway.Environment}
	}
	if !set("listener.https") && c.Listener.CertFile == "" {
		c.Listener.HTTPS = ""
	}
	if !set("traffic_manager.ssl") && c.TrafficManager.CertFile == "" {
		c.TrafficManager.SSL = ""
	}
	// Defaults are relative paths too.
	for _, p := range []*Path{&c.Gateway.DataDir, &c.Standalone.APIs, &c.Standalone.Policies, &c.TrafficManager.Policies} {
		*p = absolute(d.baseDir, *p)
	}
}

// check holds the rules between keys. A key that has a fault of its own is not judged again.
func (d *decoder) check(c *Config) {
	d.checkListener(c)
	d.checkAdmin(c)
	d.checkEventHub(c)
	d.checkThrottling(c)
	d.checkBackendJWT(c)
	d.checkIssuers(c)
	d.checkGateway(c)
	d.checkCredentials(c)
	d.checkUpstream(c)
	d.checkTrafficManager(c)
	d.warnSkippedVerification(c)
}

// report adds a fault at a key, or where its section starts when the key is not written; a key that is already bad is
// left alone. Related keys that are bad silence the rule as well: their absence is no second fault.
func (d *decoder) report(key string, p *problem, related ...string) {
	for _, k := range append(related, key) {
		if d.bad[k] {
			return
		}
	}
	d.fault(key, d.source.Position(key), d.shown(key), p)
}

// shown is the value of a key as it is written; "" when it is not.
func (d *decoder) shown(key string) string {
	n := d.doc.root
	f := schema()
	for name := range strings.SplitSeq(key, ".") {
		name, index, isElement := cutIndex(name)
		if n == nil || n.kind != kindTable {
			return ""
		}
		n, f = n.members[name], f.child(name)
		if f == nil {
			return ""
		}
		if isElement && n != nil {
			if index >= len(n.items) {
				return ""
			}
			n = n.items[index]
		}
	}
	if n == nil || f.kind == takesSection || f.kind == takesSections {
		return ""
	}
	return written(n, f)
}

func (d *decoder) checkListener(c *Config) {
	l := c.Listener
	d.checkPair("listener", l.CertFile, l.KeyFile)
	if l.HTTPS != "" && l.CertFile == "" && d.source.Written("listener.https") {
		d.report("listener.https", &problem{"HTTPS without a certificate", `write cert_file and key_file, or https = "" to leave it off`}, "listener.cert_file")
	}
	if l.HTTP == "" && l.HTTPS == "" {
		d.report("listener.http", &problem{"neither HTTP nor HTTPS is on", "write an address for one of them"}, "listener.https", "listener.cert_file")
	}
	if l.HTTP != "" && l.HTTP == l.HTTPS && !strings.HasSuffix(l.HTTP, ":0") {
		d.report("listener.https", &problem{"the address that http has already", "give each a port of its own"}, "listener.http")
	}
	for _, other := range []string{l.HTTP, l.HTTPS} {
		if other != "" && samePort(other, c.Admin.Address) {
			d.report("admin.address", &problem{"the port of a listener of [listener]", "give the admin server a port of its own"}, "listener.http", "listener.https")
			break
		}
	}
	if l.ClientCAFile != "" && l.HTTPS == "" {
		d.report("listener.client_ca_file", &problem{"client certificates without HTTPS", "write https, cert_file and key_file"}, "listener.https", "listener.cert_file", "listener.key_file")
	}
	if l.ProxyProtocol && len(l.TrustedProxies) == 0 {
		d.report("listener.proxy_protocol", &problem{"the PROXY protocol is trusted from nobody", "write trusted_proxies = [\"10.0.0.0/8\"], the addresses of the load balancers"}, "listener.trusted_proxies")
	}
}

// checkPair checks the cert_file and key_file of a section together.
func (d *decoder) checkPair(section string, cert, key Path) {
	certKey, keyKey := section+".cert_file", section+".key_file"
	switch {
	case cert != "" && key == "":
		d.report(certKey, &problem{"a certificate without its key", "write key_file"}, keyKey)
	case cert == "" && key != "":
		d.report(keyKey, &problem{"a key without its certificate", "write cert_file"}, certKey)
	case cert != "" && !d.bad[certKey] && !d.bad[keyKey]:
		certPEM, err1 := os.ReadFile(string(cert))
		keyPEM, err2 := os.ReadFile(string(key))
		if err1 != nil || err2 != nil {
			return // read a moment ago; it will be read again when it is used
		}
		if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
			d.report(keyKey, &problem{"does not fit cert_file: " + strings.TrimPrefix(err.Error(), "tls: "), "name the private key of that certificate"})
		}
	}
}

func samePort(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	everywhere := func(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }
	return hostA == hostB || everywhere(hostA) || everywhere(hostB)
}

func (d *decoder) checkAdmin(c *Config) {
	a := c.Admin
	d.checkPair("admin", a.CertFile, a.KeyFile)
	if (a.Username == "") != (a.Password == "") {
		given, missing := "admin.username", "password"
		if a.Username == "" {
			given, missing = "admin.password", "username"
		}
		d.report(given, &problem{"half of a credential", "write " + missing + " too"}, "admin."+missing)
	}
	if a.Address != "" && !isLoopback(a.Address) && a.Token == "" && (a.Username == "" || a.Password == "") {
		d.report("admin.address", &problem{"reachable from other machines without credentials", "write username and password, or token, or an address such as \"127.0.0.1:9096\""},
			"admin.username", "admin.password", "admin.token")
	}
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func (d *decoder) checkEventHub(c *Config) {
	hub := c.APIM.EventHub
	if !hub.Enable {
		return
	}
	missing := func(name, fix string) {
		key := "apim.event_hub." + name
		if !d.bad[key] {
			pos := d.source.Position(key)
			value := d.shown(key)
			d.fault(key, pos, value, &problem{"missing, while the event hub is enabled", fix})
		}
	}
	if hub.ServiceURL == "" {
		missing("service_url", `write service_url = "https://apim.example.com:9443", or enable = false`)
	}
	if hub.Username == "" {
		missing("username", "write the user that may read the internal data service")
	}
	if hub.Password == "" {
		missing("password", `write password = "$env{APIM_PASSWORD}"`)
	}
	if len(hub.EventListeningEndpoints) == 0 {
		missing("event_listening_endpoints", `write event_listening_endpoints = ["tcp://apim.example.com:5672"]`)
	}
	d.checkOneProtocol("apim.event_hub.event_listening_endpoints", hub.EventListeningEndpoints)
	if u, err := url.Parse(hub.ServiceURL.Reveal()); err == nil && u.User != nil {
		d.report("apim.event_hub.service_url", &problem{"a URL with a user in it", "write username and password as keys of their own"})
	}
	sync := c.APIM.SyncArtifacts.Gateway.GatewayLabels
	if d.source.Written("gateway.gateway_labels") && len(sync) > 0 && !slices.Equal(c.Gateway.GatewayLabels, sync) {
		d.report("gateway.gateway_labels", &problem{"says something else than apim.sync_runtime_artifacts.gateway.gateway_labels", "write one of the two"}, "apim.sync_runtime_artifacts.gateway.gateway_labels")
	}
}

// checkOneProtocol checks that brokers of one list speak one protocol.
func (d *decoder) checkOneProtocol(key string, urls []URL) {
	for i, u := range urls {
		if isNATS(u) != isNATS(urls[0]) {
			d.report(fmt.Sprintf("%s[%d]", key, i), &problem{"AMQP and NATS brokers in one list", "write brokers of one kind"}, key)
			return
		}
	}
}

func (d *decoder) checkThrottling(c *Config) {
	t := c.APIM.Throttling
	if t.EnableDataPublishing && len(t.URLGroups) == 0 {
		d.report("apim.throttling.enable_data_publishing", &problem{"publishing without a traffic manager", "write [[apim.throttling.url_group]] with traffic_manager_urls"}, "apim.throttling.url_group")
	}
	d.checkOneProtocol("apim.throttling.throttle_decision_endpoints", t.ThrottleDecisionEndpoints)
	needsLogin := false
	for i, group := range t.URLGroups {
		at := fmt.Sprintf("apim.throttling.url_group[%d]", i)
		urls, auths := at+".traffic_manager_urls", at+".traffic_manager_auth_urls"
		if len(group.TrafficManagerURLs) == 0 && d.source.Written(urls) {
			d.report(urls, &problem{"a group without a receiver", `write one such as ["tcp://apim.example.com:9611"]`})
		}
		if n := len(group.TrafficManagerAuthURLs); n > 0 && n != len(group.TrafficManagerURLs) {
			d.report(auths, &problem{
				fmt.Sprintf("%d authentication URLs for %d receivers", n, len(group.TrafficManagerURLs)),
				"write one for each of traffic_manager_urls, in the same order, or none",
			}, urls)
		}
		for j, u := range group.TrafficManagerAuthURLs {
			if !strings.HasPrefix(u.Reveal(), "ssl://") {
				d.report(fmt.Sprintf("%s[%d]", auths, j), &problem{"a log-in without TLS", `write the ssl:// receiver of the traffic manager, such as "ssl://apim.example.com:9711"`}, auths)
			}
		}
		for j, u := range group.TrafficManagerURLs {
			needsLogin = needsLogin || !isNATS(u)
			if isNATS(u) != group.NATS() {
				d.report(fmt.Sprintf("%s[%d]", urls, j), &problem{"NATS and databridge receivers in one group", "write a [[apim.throttling.url_group]] for each kind"}, urls)
				break
			}
		}
	}
	if needsLogin && t.EnableDataPublishing {
		if t.Username == "" {
			d.report("apim.throttling.username", &problem{"missing, while a traffic manager is configured", "write the user that may publish events"}, "apim.event_hub.username")
		}
		if t.Password == "" {
			d.report("apim.throttling.password", &problem{"missing, while a traffic manager is configured", `write password = "$env{APIM_PASSWORD}"`}, "apim.event_hub.password")
		}
	}
	if t.Publisher.BatchSize > t.Publisher.QueueSize {
		d.report("apim.throttling.publisher.batch_size", &problem{"larger than queue_size", fmt.Sprintf("write at most %d", t.Publisher.QueueSize)}, "apim.throttling.publisher.queue_size")
	}
}

// protectedClaims are always written by the gateway (contract gateway-behaviour.md 14).
var protectedClaims = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "application", "tierInfo", "subscribedAPIs", "keytype"}

func (d *decoder) checkBackendJWT(c *Config) {
	j := c.APIM.JWT
	unsigned := j.SigningAlgorithm == "NONE"
	if unsigned && !j.AllowUnsigned {
		d.report("apim.jwt.signing_algorithm", &problem{"an unsigned JWT can be forged by anyone who reaches the backend", "write another algorithm, or allow_unsigned = true to take the risk"}, "apim.jwt.allow_unsigned")
	}
	if j.Enable && !unsigned && j.KeyFile == "" {
		d.note("apim.jwt.enable", "without key_file the gateway makes a key of its own in data_dir; gateways that serve the same backends need one key_file for all", false)
	}
	for i, claim := range j.Claims {
		at := fmt.Sprintf("apim.jwt.claims[%d]", i)
		ways := 0
		for _, given := range []bool{claim.Value != "", claim.From != "", claim.Remove} {
			if given {
				ways++
			}
		}
		if ways != 1 {
			d.report(at, &problem{"a claim needs exactly one of value, from and remove", `write one such as value = "gatehouse"`}, at+".name", at+".value", at+".from", at+".remove")
		}
		if !claim.Remove && slices.Contains(protectedClaims, claim.Name) {
			d.report(at+".name", &problem{"a claim that the gateway alone writes", "write a name other than " + strings.Join(protectedClaims, ", ")}, at+".remove")
		}
		if claim.Remove && (claim.Name == "exp" || claim.Name == "iat") {
			d.report(at+".name", &problem{"says how long the JWT holds, and stays", "write another name"}, at+".remove")
		}
		if _, err := template.Parse(claim.Value); err != nil {
			what, fix, _ := strings.Cut(err.Error(), ": ")
			d.report(at+".value", &problem{what, fix})
		}
	}
}

func (d *decoder) checkIssuers(c *Config) {
	seen := map[string]bool{}
	for i, issuer := range c.APIM.JWT.Issuers {
		at := fmt.Sprintf("apim.jwt.issuer[%d]", i)
		if seen[issuer.Name] && issuer.Name != "" {
			d.report(at+".name", &problem{"an issuer that stands above already", "merge the two sections"})
		}
		seen[issuer.Name] = true
		if issuer.JWKS.URL == "" && issuer.CertificateFile == "" && issuer.SharedSecret == "" && issuer.Introspection.URL == "" {
			d.report(at, &problem{"an issuer without keys to verify its tokens", "write jwks.url, certificate_file, shared_secret or introspection.url"}, at+".jwks.url", at+".jwks", at+".certificate_file", at+".shared_secret", at+".introspection.url", at+".introspection")
		}
		d.checkIntrospection(at+".introspection", &issuer.Introspection)
		for k, algorithm := range issuer.Algorithms {
			if strings.HasPrefix(algorithm, "HS") && issuer.SharedSecret == "" {
				d.report(fmt.Sprintf("%s.algorithms[%d]", at, k), &problem{"an algorithm that needs shared_secret", "write shared_secret, or an algorithm with public keys such as \"RS256\""}, at+".shared_secret")
			}
		}
		if secret := issuer.SharedSecret.Reveal(); secret != "" && len(secret) < 32 {
			d.report(at+".shared_secret", &problem{"too short to keep tokens from being forged", "write at least 32 bytes"})
		}
		mapped := map[string]int{}
		for k, mapping := range issuer.ClaimMapping {
			if first, twice := mapped[mapping.LocalClaim]; twice && mapping.LocalClaim != "" {
				key := fmt.Sprintf("%s.claim_mapping[%d].local_claim", at, k)
				d.note(key, fmt.Sprintf("claim_mapping[%d] fills this claim already; the first that is found wins", first), true)
				continue
			}
			mapped[mapping.LocalClaim] = k
		}
	}
}

func (d *decoder) checkIntrospection(at string, i *IssuerIntrospection) {
	if i.URL == "" {
		if i.AuthMethod != "" || i.ClientID != "" || i.ClientSecret != "" || i.KeyFile != "" || i.CertFile != "" {
			d.report(at, &problem{"an introspection without an endpoint", `write url = "https://…/introspect"`}, at+".url")
		}
		return
	}
	need := func(key string, has bool) {
		if !has {
			d.report(at+".auth_method", &problem{"a client authentication without " + key, "write " + key + " beside it"}, at+"."+key)
		}
	}
	switch i.AuthMethod {
	case "client_secret_basic", "client_secret_post":
		need("client_id", i.ClientID != "")
		need("client_secret", i.ClientSecret != "")
	case "private_key_jwt":
		need("client_id", i.ClientID != "")
		need("key_file", i.KeyFile != "")
	case "tls_client_auth":
		need("cert_file", i.CertFile != "")
		need("key_file", i.KeyFile != "")
	}
}

func (d *decoder) checkGateway(c *Config) {
	g := c.Gateway
	seen := map[string]bool{}
	for i, user := range g.Users {
		at := fmt.Sprintf("gateway.user[%d]", i)
		d.checkUser(at, user.Name, user.PasswordHash, seen)
	}
	if len(g.Tenants) == 0 {
		d.report("gateway.tenants", &problem{"no tenant at all", `write ["carbon.super"], or ["*"] for all`})
	}
	if slices.Contains(g.Tenants, "*") && len(g.Tenants) > 1 {
		d.report("gateway.tenants", &problem{`"*" beside names`, `write ["*"] alone for all tenants`})
	}
	if i := slices.Index(g.Tenants, ""); i >= 0 {
		d.report(fmt.Sprintf("gateway.tenants[%d]", i), &problem{"an empty name", `write a tenant domain such as "carbon.super"`})
	}
	if i := slices.Index(g.GatewayLabels, ""); i >= 0 && d.source.Written("gateway.gateway_labels") {
		d.report(fmt.Sprintf("gateway.gateway_labels[%d]", i), &problem{"an empty label", "write the name of a gateway environment"})
	}
	if g.Introspection.OnUnavailable == "serve_stale" && g.Introspection.StaleTTL == 0 {
		d.report("gateway.introspection.on_unavailable", &problem{"stale answers that are kept for no time", `write stale_ttl = "5m" beside it`}, "gateway.introspection.stale_ttl")
	}
	on, interval := g.OnStale, c.APIM.EventHub.ResyncInterval
	if denies := on.Subscriptions == "deny" || on.Revocation == "deny" || on.Deny == "deny"; denies && c.APIM.EventHub.Enable && on.StaleAfter <= interval {
		d.report("gateway.on_stale.stale_after", &problem{
			"not longer than resync_interval: requests would be refused between two fetches of the lists while nothing is wrong",
			fmt.Sprintf("write more than %s, or shorten apim.event_hub.resync_interval", interval),
		}, "apim.event_hub.resync_interval", "gateway.on_stale.subscriptions", "gateway.on_stale.revocation", "gateway.on_stale.deny")
	}
	cors := c.APIM.CORS
	if cors.AllowCredentials && slices.Contains(cors.AllowOrigins, "*") && d.source.Written("apim.cors.allow_credentials") {
		d.note("apim.cors.allow_credentials", `every site may call with the user's credentials, because allow_origins holds "*"`, true)
	}
}

// hashForms are how a password hash may be written (contract gateway-behaviour.md 9).
var hashForms = []string{"$2a$", "$2b$", "$2y$", "$argon2id$", "@sha256:", "@sha384:", "@sha512:"}

func (d *decoder) checkUser(at, name string, hash Secret, seen map[string]bool) {
	if seen[name] && name != "" {
		d.report(at+".name", &problem{"a user that stands above already", "take one of them out"})
	}
	seen[name] = true
	text := hash.Reveal()
	if text == "" {
		if d.source.Written(at + ".password_hash") {
			d.report(at+".password_hash", &problem{"empty", "write a bcrypt or argon2id hash"})
		}
		return
	}
	known := slices.ContainsFunc(hashForms, func(form string) bool { return strings.HasPrefix(text, form) })
	if inner, ok := strings.CutPrefix(text, "{"); ok {
		text = strings.TrimSuffix(inner, "}") // as Microgateway may have it
	}
	isSHA1 := len(text) == 40 && strings.Trim(strings.ToLower(text), "0123456789abcdef") == ""
	if !known && !isSHA1 {
		d.report(at+".password_hash", &problem{"not a password hash", "write bcrypt ($2b$…), argon2id ($argon2id$…), or Microgateway's @sha256:{hex}, @sha512:{hex}"})
	}
}

func (d *decoder) checkUpstream(c *Config) {
	if b := c.Upstream.CircuitBreaker; b != nil {
		const at = "upstream.circuit_breaker."
		if b.BucketSize > b.TimeWindow || b.BucketSize > 0 && b.TimeWindow%b.BucketSize != 0 {
			d.report(at+"bucket_size", &problem{"time_window is not a whole number of buckets", fmt.Sprintf("write a part of %s, such as %q", b.TimeWindow, b.TimeWindow/10)}, at+"time_window")
		}
	}
	p := c.Upstream.Proxy
	if p.Host == "" && (p.Username != "" || p.Password != "") {
		d.report("upstream.proxy", &problem{"credentials without a proxy", "write host and port"}, "upstream.proxy.host", "upstream.proxy.username", "upstream.proxy.password")
	}
	if c.Upstream.ConnectTimeout > c.Upstream.Timeout {
		d.report("upstream.connect_timeout", &problem{"longer than timeout, which ends the attempt first", fmt.Sprintf("write at most %s", c.Upstream.Timeout)}, "upstream.timeout")
	}
}

func (d *decoder) checkTrafficManager(c *Config) {
	t := c.TrafficManager
	d.checkPair("traffic_manager", t.CertFile, t.KeyFile)
	if t.SSL != "" && t.CertFile == "" && d.source.Written("traffic_manager.ssl") {
		d.report("traffic_manager.ssl", &problem{"TLS without a certificate", `write cert_file and key_file, or ssl = "" to leave it off`}, "traffic_manager.cert_file")
	}
	seen := map[string]bool{}
	for i, user := range t.Users {
		d.checkUser(fmt.Sprintf("traffic_manager.user[%d]", i), user.Name, user.PasswordHash, seen)
	}
}

// warnSkippedVerification notes every place where TLS peers are not verified, which is logged at start.
func (d *decoder) warnSkippedVerification(c *Config) {
	skipped := map[string]bool{
		"apim.event_hub.skip_ssl_verification":  c.APIM.EventHub.SkipSSLVerification,
		"apim.throttling.skip_ssl_verification": c.APIM.Throttling.SkipSSLVerification,
		"upstream.tls.skip_ssl_verification":    c.Upstream.TLS.SkipSSLVerification,
		"tracing.skip_ssl_verification":         c.Tracing.SkipSSLVerification,
		"relay.skip_ssl_verification":           c.Relay.SkipSSLVerification,
		"traffic_manager.skip_ssl_verification": c.TrafficManager.SkipSSLVerification,
	}
	for i, issuer := range c.APIM.JWT.Issuers {
		skipped[fmt.Sprintf("apim.jwt.issuer[%d].jwks.skip_ssl_verification", i)] = issuer.JWKS.SkipSSLVerification
	}
	for i, issuer := range c.Gateway.APIKeyIssuers {
		skipped[fmt.Sprintf("gateway.api_key_issuer[%d].skip_ssl_verification", i)] = issuer.SkipSSLVerification
	}
	for key, skip := range skipped {
		if skip {
			d.note(key, "TLS peers are not verified: anyone on the way can read and change what is sent", true)
		}
	}
}

func (d *decoder) note(key, text string, warning bool) {
	d.source.Notes = append(d.source.Notes, Note{File: d.doc.file, Position: d.source.Position(key), Key: key, Text: text, Warning: warning})
}
