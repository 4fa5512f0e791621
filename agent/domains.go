package agent

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/google/uuid"

	"gatehouse/agent/config"
	natssink "gatehouse/agent/eventsink/nats"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/keymanager"
	"gatehouse/keymanager/claims"
	"gatehouse/keymanager/introspection"
	"gatehouse/keymanager/registry"
	"gatehouse/keymanager/revocation"
	"gatehouse/subscription/store"
	"gatehouse/throttle/checker"
	"gatehouse/throttle/databridge"
	"gatehouse/throttle/deny"
	"gatehouse/throttle/keytemplate"
	"gatehouse/throttle/policy"
	"gatehouse/throttle/publisher"
	"gatehouse/throttle/remote"
)

// domains are the three domains, each with its state.
type domains struct {
	store       *store.Store
	revocations *revocation.Set
	keyManagers *registry.Registry
	deny        *deny.Set
	templates   *keytemplate.Set
	decisions   *remote.Decisions
	policies    *policy.Store
	checker     *checker.Checker
	publisher   *publisher.Publisher // nil: nothing is published
}

func (a *Agent) buildDomains() error {
	cfg, d := a.cfg, &a.domains
	d.store = store.New()
	d.revocations = revocation.New(revocation.Options{})
	// Key managers that the API Manager names are trusted as it is; an issuer of the configuration has its own ca_file.
	d.keyManagers = registry.New(registry.Options{
		HTTPClient:    &http.Client{Transport: a.hub.transport(32)}, // introspections come many at a time
		TLS:           a.hub.config(),
		Logger:        a.part("key_managers"),
		Registerer:    a.registry,
		CacheCapacity: cfg.APIM.Cache.GatewayToken.Capacity,
		CacheEnabled:  cfg.APIM.Cache.GatewayToken.Enable,
		Revocations:   d.revocations,
		Introspection: introspectionOf(cfg.Gateway.Introspection),
	})
	issuers, err := issuersOf(cfg)
	if err != nil {
		return err
	}
	d.keyManagers.ReplaceConfigured(issuers)

	th := cfg.APIM.Throttling
	var ranges []deny.Option
	if !th.DenyRangeInclusive {
		ranges = append(ranges, deny.ExclusiveRanges())
	}
	d.deny = deny.New(ranges...)
	d.templates = keytemplate.New()
	d.decisions = remote.New(remote.Options{})
	d.policies = policy.New()
	opts := checker.Options{
		Deny: d.deny, Templates: d.templates, Decisions: d.decisions, Policies: d.policies,
		DenyEnabled:             th.EnableBlacklistCondition,
		SubscriptionKeyWithTier: th.SubscriptionKey == "with_tier",
		EnableHeaderConditions:  th.EnableHeaderBasedThrottling,
		EnableQueryConditions:   th.EnableQueryParamBasedThrottling,
		EnableJWTConditions:     th.EnableJWTClaimBasedThrottling,
		Registerer:              a.registry,
	}
	if th.EnableDataPublishing {
		groups, err := a.publisherGroups()
		if err != nil {
			return err
		}
		d.publisher = publisher.New(publisher.Options{
			Groups:        groups,
			QueueSize:     th.Publisher.QueueSize,
			BatchSize:     th.Publisher.BatchSize,
			Headers:       th.EnableHeaderBasedThrottling,
			Query:         th.EnableQueryParamBasedThrottling,
			Claims:        th.EnableJWTClaimBasedThrottling,
			SecretHeaders: []string{cfg.APIM.OAuth.AuthHeader, cfg.APIM.JWT.Header, cfg.APIMgt.MutualSSL.CertificateHeader},
			Logger:        a.part("publisher"),
			Registerer:    a.registry,
		})
		opts.Publisher = d.publisher
	}
	d.checker = checker.New(opts)
	return nil
}

// publisherGroups makes the groups of [[apim.throttling.url_group]]. The URLs of one group are all databridge or all NATS.
func (a *Agent) publisherGroups() ([]publisher.Group, error) {
	th := a.cfg.APIM.Throttling
	username, password := th.Username, th.Password
	if username == "" {
		username, password = a.cfg.APIM.EventHub.Username, a.cfg.APIM.EventHub.Password
	}
	var bridged []databridge.URLGroup
	var groups []publisher.Group
	for _, g := range th.URLGroups {
		if strings.HasPrefix(g.TrafficManagerURLs[0].Reveal(), "nats://") || strings.HasPrefix(g.TrafficManagerURLs[0].Reveal(), "tls://") {
			set, err := brokerurl.ParseAll(reveal(g.TrafficManagerURLs), brokerurl.Defaults{Username: username, Password: password.Reveal()})
			if err != nil {
				return nil, fmt.Errorf("apim.throttling.url_group.traffic_manager_urls: %w", err)
			}
			if set.Protocol() != brokerurl.NATS {
				return nil, fmt.Errorf("apim.throttling.url_group.traffic_manager_urls: NATS and databridge URLs in one group: write a group for each")
			}
			group, err := a.natsGroup(set)
			if err != nil {
				return nil, err
			}
			groups = append(groups, group)
			continue
		}
		urls, err := databridge.NewGroup(reveal(g.TrafficManagerURLs), reveal(g.TrafficManagerAuthURLs), g.Type)
		if err != nil {
			return nil, fmt.Errorf("apim.throttling.url_group: %w", err)
		}
		bridged = append(bridged, urls)
	}
	dialled, err := publisher.Dial(bridged, databridge.Options{
		Username: username, Password: password.Reveal(), TLS: a.trafficManagers.config(), Roots: a.trafficManagers.roots, Logger: a.part("publisher"),
	})
	if err != nil {
		return nil, fmt.Errorf("apim.throttling.url_group: %w", err)
	}
	return append(groups, dialled...), nil
}

// issuersOf turns the issuers of the configuration into key managers.
func issuersOf(cfg *config.Config) ([]keymanager.KeyManager, error) {
	var list []keymanager.KeyManager
	for i, issuer := range cfg.APIM.JWT.Issuers {
		km, err := issuerOf(issuer, fmt.Sprintf("apim.jwt.issuer[%d]", i))
		if err != nil {
			return nil, err
		}
		list = append(list, km)
	}
	return list, nil
}

// issuerOf turns an issuer of the configuration, which stands at a key, into a key manager. What its files hold becomes part
// of it, so that a change of theirs is one of the key manager.
func issuerOf(i config.JWTIssuer, at string) (keymanager.KeyManager, error) {
	km := keymanager.KeyManager{
		Name:              i.Name,
		Type:              "configuration",
		Enabled:           true,
		Issuer:            i.Name,
		JWKSURL:           i.JWKS.URL.Reveal(),
		ConsumerKeyClaim:  i.ConsumerKeyClaim,
		ScopesClaim:       i.ScopesClaim,
		SelfValidate:      i.JWKS.URL != "" || i.CertificateFile != "" || i.SharedSecret != "",
		SharedSecret:      i.SharedSecret.Reveal(),
		Audience:          i.Audience,
		Algorithms:        i.Algorithms,
		ClockSkew:         i.ClockSkew.Std(),
		AllowMissingExp:   !i.RequireExp,
		SkipSubscriptions: !i.ValidateSubscriptions, ValidateSubscriptions: i.ValidateSubscriptions,
		MaxStale:          i.JWKSMaxStale.Std(),
		JWKSRefresh:       i.JWKS.RefreshInterval.Std(),
		CAFile:            string(i.JWKS.CAFile),
		SkipTLSVerify:     i.JWKS.SkipSSLVerification,
		FromConfiguration: true,
		Origin:            keymanager.Origin{Kind: "config", ID: "apim.jwt.issuer"},
	}
	for k, m := range i.ClaimMapping {
		mapping := keymanager.ClaimMapping{Remote: m.RemoteClaim, Local: m.LocalClaim, Function: m.Function}
		if fault := claims.CheckMapping(mapping); fault != nil {
			return km, &keyError{fmt.Sprintf("%s.claim_mapping[%d].%s", at, k, fault.Member), fmt.Errorf("%s; %s", fault.Problem, fault.Fix)}
		}
		km.ClaimMappings = append(km.ClaimMappings, mapping)
	}
	if !i.DisableDefaultClaimMapping {
		km.ClaimMappings = claims.WithDefaults(km.ClaimMappings)
	}
	if i.CertificateFile != "" {
		text, err := os.ReadFile(string(i.CertificateFile))
		if err != nil {
			return km, &keyError{at + ".certificate_file", err}
		}
		if block, _ := pem.Decode(text); block == nil {
			return km, &keyError{at + ".certificate_file", fmt.Errorf("%s holds no PEM block: write a CERTIFICATE or PUBLIC KEY block", i.CertificateFile)}
		}
		km.PEM = string(text)
	}
	if file := i.JWKS.CAFile; file != "" {
		text, err := os.ReadFile(string(file))
		if err != nil {
			return km, &keyError{at + ".jwks.ca_file", err}
		}
		if !x509.NewCertPool().AppendCertsFromPEM(text) {
			return km, &keyError{at + ".jwks.ca_file", fmt.Errorf("no certificate in %s: write PEM blocks of type CERTIFICATE", file)}
		}
		km.CAPEM = string(text)
	}
	if i.Introspection.URL != "" {
		endpoint, err := endpointOf(&i.Introspection, at+".introspection")
		if err != nil {
			return km, err
		}
		km.Introspection = endpoint
	}
	return km, nil
}

// endpointOf turns an issuer's introspection, which stands at a key, into the endpoint of a key manager.
func endpointOf(i *config.IssuerIntrospection, at string) (*keymanager.Introspection, error) {
	e := &keymanager.Introspection{
		URL: i.URL.Reveal(), Auth: keymanager.ClientAuth(i.AuthMethod), ClientID: i.ClientID, ClientSecret: i.ClientSecret.Reveal(),
		KeyFile: string(i.KeyFile), CertFile: string(i.CertFile),
	}
	for _, f := range []struct {
		key  string
		path config.Path
		to   *string
	}{{".key_file", i.KeyFile, &e.KeyPEM}, {".cert_file", i.CertFile, &e.CertPEM}} {
		if f.path == "" {
			continue
		}
		text, err := os.ReadFile(string(f.path))
		if err != nil {
			return nil, &keyError{at + f.key, err}
		}
		*f.to = string(text)
	}
	if err := introspection.Check(*e); err != nil {
		return nil, &keyError{at, err}
	}
	return e, nil
}

// introspectionOf says how answers about opaque tokens are kept.
func introspectionOf(i config.Introspection) registry.IntrospectionOptions {
	o := registry.IntrospectionOptions{TTL: i.TTL.Std(), ServeStale: i.OnUnavailable == "serve_stale", StaleTTL: i.StaleTTL.Std()}
	if o.TTL == 0 { // written so: nothing is kept
		o.TTL = -1
	}
	return o
}

func reveal(urls []config.URL) []string {
	out := make([]string, len(urls))
	for i, u := range urls {
		out[i] = u.Reveal()
	}
	return out
}

// natsGroup makes a group of one sender: every traffic manager on NATS sees every event.
func (a *Agent) natsGroup(set brokerurl.Set) (publisher.Group, error) {
	var addresses []string
	secure := false
	for _, b := range set.Brokers {
		scheme := "nats://"
		if b.TLS {
			scheme, secure = "tls://", true
		}
		addresses = append(addresses, scheme+b.Address)
	}
	o := natssink.Options{
		URL: strings.Join(addresses, ","), Username: set.Brokers[0].Username, Password: set.Brokers[0].Password,
		GatewayID: a.natsGatewayID(), Logger: a.part("publisher"),
	}
	if secure {
		o.TLS, o.Roots = a.trafficManagers.config(), a.trafficManagers.roots
	}
	sender, err := natssink.New(o)
	if err != nil {
		return publisher.Group{}, fmt.Errorf("apim.throttling.url_group.traffic_manager_urls: %w", err)
	}
	return publisher.Group{Kind: "nats", Endpoints: []publisher.Endpoint{{Name: strings.Join(addresses, ","), Sender: sender}}}, nil
}

// natsGatewayID names the gateway in its heartbeats to traffic managers, which count the names: it only has to differ from
// every other gateway's.
func (a *Agent) natsGatewayID() string {
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '*' || r == '>' || r <= ' ' {
			return '-'
		}
		return r
	}, cmp.Or(a.cfg.APIM.GatewayNotification.GatewayID, uuid.NewString()))
}
