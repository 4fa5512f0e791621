// Package emulator stands for the world outside a gateway: an API Manager with its internal data service, event hub and
// traffic manager, a third-party key manager and a sample backend, each over real sockets. It shares no decoder, client
// or type with the gateway and writes every wire message by itself, so that a fault of the gateway's own codecs shows.
//
// A change made through Changes alters the database and publishes its event in one step. Rows tells what the database
// holds, for comparison with what a gateway holds. Faults of the REST side are added with AddFault, those of the broker
// with Hub().SetKnobs, Hub().Stop and Hub().Start.
package emulator

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"gatehouse/integration/emulator/backend"
	"gatehouse/integration/emulator/broker"
	"gatehouse/integration/emulator/issuer"
	"gatehouse/integration/emulator/receiver"
)

// Options configure an Emulator. Every address is host:port; "" and port 0 take a free port on loopback.
type Options struct {
	// Profile is the version of API Manager: 3.2, 4.0, 4.3, 4.7, or 4.x (the default, the newest).
	Profile string
	// Address is where the REST side listens, over TLS.
	Address string
	// User and Password sign in at the data service and at the traffic manager; admin, admin by default.
	User, Password string
	// EventHub is nats://host:port or amqp://user:password@host:port/vhost; "" starts a NATS server in this process.
	EventHub string
	// NATSAddress is where that server listens.
	NATSAddress string
	// Encoding of the event bodies; "" is what the profile's version sends.
	Encoding broker.Encoding
	// VHost is the host on which APIs are exposed where SetVHost says nothing; localhost by default.
	VHost string
	// AnnounceOnHold makes every new subscription be announced ON_HOLD first, as the real one does.
	AnnounceOnHold bool
	// ExpandNeeded leaves the resources of /apis out unless expand=true is asked for.
	ExpandNeeded bool
	// Gzip compresses answers for clients that accept it.
	Gzip bool
	// TrafficManager, TrafficManagerTLS, KeyManager and Backend are where these listen.
	TrafficManager, TrafficManagerTLS, KeyManager, Backend string
	// OnError is told of what goes wrong inside the emulator; nil is silent.
	OnError func(error)
}

// Emulator is a running world. All methods are safe for concurrent use.
type Emulator struct {
	Changes

	profile        profile
	user           string
	vhost          string
	announceOnHold bool
	expandNeeded   bool
	gzip           bool
	onError        func(error)

	mu    sync.Mutex
	m     *model
	users map[string]string
	gen   *Generated
	// missingFiles are APIs that the zip of artifacts names but lacks; overrides are endpoints of env_properties.json.
	missingFiles map[string]bool
	overrides    map[string]map[string]override
	fixed        map[string]fixedAnswer

	hub      *broker.Hub
	counter  *counter
	receiver *receiver.Receiver
	requests *nats.Conn // gatehouse.request, where the hub is NATS
	issuer   *issuer.Issuer
	resident *issuer.Issuer
	backend  *backend.Backend
	cert     authority
	faults   faults
	record   recorder

	rest       *restServer
	keyServer  *restServer
	backServer *restServer
	stopped    chan struct{}
	stopOnce   sync.Once
	done       sync.WaitGroup
}

// New starts the world. Close ends it.
func New(o Options) (*Emulator, error) {
	p, err := profileOf(o.Profile)
	if err != nil {
		return nil, err
	}
	cert, err := newAuthority()
	if err != nil {
		return nil, err
	}
	e := &Emulator{
		profile: p, user: or(o.User, "admin"), vhost: or(o.VHost, "localhost"), announceOnHold: o.AnnounceOnHold,
		expandNeeded: o.ExpandNeeded, gzip: o.Gzip, onError: o.OnError, m: newModel(), missingFiles: map[string]bool{},
		overrides: map[string]map[string]override{}, fixed: map[string]fixedAnswer{}, backend: backend.New(), cert: cert, stopped: make(chan struct{}), counter: newCounter(),
	}
	e.users = map[string]string{e.user: or(o.Password, "admin")}
	e.faults.once = map[*Fault]bool{}
	e.record.requests = map[string]int{}
	e.Changes = Changes{e: e}
	e.counter.decide, e.counter.tier = e.Decide, e.tier

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := e.open(ctx, o); err != nil {
		e.Close()
		return nil, err
	}
	e.done.Go(func() {
		t := time.NewTicker(50 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case now := <-t.C:
				e.counter.sweep(now)
			case <-e.stopped:
				return
			}
		}
	})
	return e, nil
}

func (e *Emulator) open(ctx context.Context, o Options) error {
	encoding := o.Encoding
	if encoding == "" && e.profile.v32 {
		encoding = broker.AMQPMap
	}
	var err error
	if e.hub, err = broker.Open(ctx, broker.Options{URL: o.EventHub, NATSAddress: o.NATSAddress, Encoding: encoding}); err != nil {
		return err
	}
	if e.receiver, err = receiver.Open(receiver.Options{
		TCP: loopback(o.TrafficManager), TLS: loopback(o.TrafficManagerTLS), TLSConfig: e.cert.serverConfig(),
		User: e.user, Password: e.users[e.user], OnEvents: func(ev []receiver.Event) { e.counter.take(ev) },
	}); err != nil {
		return err
	}
	if strings.HasPrefix(e.hub.URL(), "nats://") {
		if e.requests, err = nats.Connect(e.hub.URL(), nats.Name("emulated traffic manager"), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond)); err != nil {
			return fmt.Errorf("traffic manager: connect to NATS: %w", err)
		}
		if _, err = e.requests.Subscribe("gatehouse.request", func(m *nats.Msg) { e.receiver.Publish(m.Data) }); err != nil {
			return fmt.Errorf("traffic manager: subscribe to gatehouse.request: %w", err)
		}
	}
	// The issuer is named after its address, so it listens first.
	if e.keyServer, err = listen("key manager", loopback(o.KeyManager), e.cert.serverConfig()); err != nil {
		return err
	}
	const realm = "/realms/shop"
	oidc := realm + "/protocol/openid-connect"
	e.issuer = issuer.New(issuer.Options{
		Issuer: "https://" + localName(e.keyServer.address) + realm, JWKSPath: oidc + "/certs", TokenPath: oidc + "/token",
		IntrospectPath: oidc + "/token/introspect", RevokePath: oidc + "/revoke",
	})
	e.keyServer.serve(e.issuer.Handler())
	if e.backServer, err = listen("backend", loopback(o.Backend), nil); err != nil {
		return err
	}
	e.backServer.serve(e.backend)
	if e.rest, err = listen("API Manager", loopback(o.Address), e.cert.serverConfig()); err != nil {
		return err
	}
	e.resident = issuer.New(issuer.Options{
		Issuer: e.URL() + "/oauth2/token", JWKSPath: "/oauth2/jwks", TokenPath: "/oauth2/token", IntrospectPath: "/oauth2/introspect", RevokePath: "/oauth2/revoke",
	})
	e.seed() // before anybody can ask
	e.rest.serve(e.handler())
	return nil
}

// seed is what every API Manager has after its first start: the unlimited tiers and the resident key manager.
func (e *Emulator) seed() {
	s := e.Silent()
	for _, k := range []PolicyKind{SubscriptionPolicy, ApplicationPolicy, APIPolicy} {
		_, err := s.PutPolicy(Policy{Kind: k, Name: "Unlimited", Limit: Limit{TimeUnit: "min", UnitTime: 1, Count: 2147483647}})
		e.report(err)
	}
	_, err := s.PutKeyManager(KeyManager{Name: e.profile.residentName, Type: "default", Configuration: e.issuerConfiguration(e.resident, e.URL())})
	e.report(err)
}

// IssuerConfiguration is the configuration of a key manager for the third-party issuer of this world.
func (e *Emulator) IssuerConfiguration() map[string]any {
	return e.issuerConfiguration(e.issuer, "https://"+localName(e.keyServer.address))
}

func (e *Emulator) issuerConfiguration(i *issuer.Issuer, server string) map[string]any {
	format := `[{"enable": true, "type": "JWT", "value": {"body": {"iss": ` + quote(i.Issuer()) + `}}}]`
	c := map[string]any{
		"issuer": i.Issuer(), "certificate_type": "JWKS", "certificate_value": server + i.JWKSPath(),
		"self_validate_jwt": true, "validation_enable": true, "token_format_string": format,
		"consumer_key_claim": "azp", "scopes_claim": "scope", "claim_mappings": []any{}, "grant_types": []any{"client_credentials", "password"},
		"enable_token_generation": true, "enable_map_oauth_consumer_apps": true, "enable_oauth_app_creation": true,
	}
	for name, path := range i.Endpoints() {
		c[name] = server + path
	}
	return c
}

// Close ends everything and waits for it.
func (e *Emulator) Close() {
	e.stopOnce.Do(func() { close(e.stopped) })
	for _, s := range []*restServer{e.rest, e.keyServer, e.backServer} {
		if s != nil {
			s.stop()
		}
	}
	if e.requests != nil {
		e.requests.Close()
	}
	if e.receiver != nil {
		e.receiver.Close()
	}
	if e.hub != nil {
		e.hub.Close()
	}
	e.done.Wait()
}

// Silent changes the model without publishing.
func (e *Emulator) Silent() *Changes { return &Changes{e: e, silent: true} }

// Hub is the event hub.
func (e *Emulator) Hub() *broker.Hub { return e.hub }

// Receiver is the traffic manager's databridge port.
func (e *Emulator) Receiver() *receiver.Receiver { return e.receiver }

// Issuer is the third-party key manager; Resident is the API Manager's own.
func (e *Emulator) Issuer() *issuer.Issuer   { return e.issuer }
func (e *Emulator) Resident() *issuer.Issuer { return e.resident }

// Backend is the sample backend.
func (e *Emulator) Backend() *backend.Backend { return e.backend }

// Traffic is what the traffic manager has counted.
func (e *Emulator) Traffic() TrafficCounts { return e.counter.counts() }

// URL is the service URL of the API Manager, https://localhost:port.
func (e *Emulator) URL() string { return "https://" + localName(e.rest.address) }

// BackendURL is http://127.0.0.1:port.
func (e *Emulator) BackendURL() string { return "http://" + e.backServer.address }

// KeyManagerURL is https://localhost:port.
func (e *Emulator) KeyManagerURL() string { return "https://" + localName(e.keyServer.address) }

// CAPEM is the certificate authority that signed the certificates of this world.
func (e *Emulator) CAPEM() []byte { return e.cert.caPEM }

// ResidentName is the name of the resident key manager in this profile.
func (e *Emulator) ResidentName() string { return e.profile.residentName }

// Rows copies everything that the database holds; rows made by Populate are not among them.
func (e *Emulator) Rows() Rows {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.m.rows()
}

// StopREST takes the API Manager's REST side away, as a host that is down: connections break, new ones are refused.
func (e *Emulator) StopREST() { e.rest.stop() }

// StartREST brings it back on the same address.
func (e *Emulator) StartREST() error { return e.rest.restart(e.handler()) }

// StopKeyManager and StartKeyManager do the same with the third-party key manager.
func (e *Emulator) StopKeyManager() { e.keyServer.stop() }

// StartKeyManager brings the key manager back on the same address.
func (e *Emulator) StartKeyManager() error { return e.keyServer.restart(e.issuer.Handler()) }

// LoseArtifact makes the zip of artifacts name an API's project and lack it.
func (e *Emulator) LoseArtifact(apiUUID string, lost bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.missingFiles[apiUUID] = lost
}

func (e *Emulator) missing(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.missingFiles[id]
}

type fixedAnswer struct {
	status int
	kind   string
	body   []byte
}

// SetAnswer makes a GET of an endpoint ("apis", "runtime-artifacts", …) answer with these bytes, whatever the database
// holds and the query asks; a nil body ends that.
func (e *Emulator) SetAnswer(endpoint string, status int, contentType string, body []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if body == nil {
		delete(e.fixed, endpoint)
		return
	}
	e.fixed[endpoint] = fixedAnswer{status, contentType, body}
}

type override struct {
	EnvID   string `json:"envId"`
	Configs struct {
		Production string `json:"productionEndpoint"`
		Sandbox    string `json:"sandboxEndpoint"`
	} `json:"configs"`
}

// OverrideEndpoints sets the endpoints of an API in one environment, as env_properties.json carries them.
func (e *Emulator) OverrideEndpoints(apiUUID, environment, production, sandbox string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	o := override{EnvID: seededUUID("e0000000", 1)}
	o.Configs.Production, o.Configs.Sandbox = production, sandbox
	byLabel := map[string]override{environment: o}
	for k, v := range e.overrides[apiUUID] {
		if k != environment {
			byLabel[k] = v
		}
	}
	e.overrides[apiUUID] = byLabel
}

func (e *Emulator) endpointOverrides(id string) map[string]override {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.overrides[id]
}

// tier is the plain request limit of a policy, for the traffic manager.
func (e *Emulator) tier(kind PolicyKind, tenant, name string) (int, time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.m.policies[policyKey{kind, tenant, name}]
	if p == nil || name == "Unlimited" || p.Limit.QuotaType != "requestCount" || len(p.ConditionGroups) > 0 {
		return 0, 0
	}
	unit := map[string]time.Duration{"sec": time.Second, "min": time.Minute, "hour": time.Hour, "day": 24 * time.Hour}[p.Limit.TimeUnit]
	return int(p.Limit.Count), unit * time.Duration(max(p.Limit.UnitTime, 1))
}

func (e *Emulator) report(err error) {
	if err != nil && e.onError != nil {
		e.onError(err)
	}
}

// loopback completes an address: none is a free port, and without a host it is loopback.
func loopback(address string) string {
	if address == "" {
		return "127.0.0.1:0"
	}
	if host, port, err := net.SplitHostPort(address); err == nil && host == "" {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}

// localName writes a loopback address as its name, which the certificates bear too.
func localName(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host != "127.0.0.1" {
		return address
	}
	return "localhost:" + port
}

// restServer is a listening HTTP server that can be taken away and brought back on its address.
type restServer struct {
	what    string
	address string
	tls     *tls.Config

	mu       sync.Mutex
	listener net.Listener
	server   *http.Server
	done     chan struct{}
}

func listen(what, address string, config *tls.Config) (*restServer, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: listen on %s: %w", what, address, err)
	}
	return &restServer{what: what, address: l.Addr().String(), tls: config, listener: l}, nil
}

func (s *restServer) serve(h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.listener
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 30 * time.Second, TLSConfig: s.tls,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // resets that were asked for are no news
	}
	done := make(chan struct{})
	s.server, s.done = server, done
	go func() {
		defer close(done)
		if s.tls != nil {
			_ = server.ServeTLS(l, "", "") // returns when the server is closed
		} else {
			_ = server.Serve(l)
		}
	}()
}

func (s *restServer) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		if s.listener != nil {
			_ = s.listener.Close() // nothing was served on it
		}
		return
	}
	_ = s.server.Close() // connections break, as asked
	<-s.done
	s.server = nil
}

func (s *restServer) restart(h http.Handler) error {
	s.mu.Lock()
	running := s.server != nil
	s.mu.Unlock()
	if running {
		return nil
	}
	var l net.Listener
	var err error
	for range 50 { // the old listener's port may be taken for a moment
		if l, err = net.Listen("tcp", s.address); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("%s: listen on %s again: %w", s.what, s.address, err)
	}
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	s.serve(h)
	return nil
}
