package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/issuer"
)

// quickstartUsers are the callers of the quickstart: each has a token, and all but dave an application of his own.
var quickstartUsers = []struct{ name, client string }{
	{"alice", "mobile-app"}, {"bob", "partner-portal"}, {"carol", "legacy-batch"}, {"dave", "mobile-app"},
}

const (
	quickstartVHost      = "localhost"
	quickstartKeyManager = "Corp Keycloak"
	// quickstartAsker is the client as which the gateway asks the key manager about opaque tokens.
	quickstartAsker       = "gateway"
	quickstartAskerSecret = "gateway-secret"
	// quickstartTokenLife lets somebody come back after lunch.
	quickstartTokenLife = 12 * time.Hour
)

// fillQuickstart gives the emulated API Manager its data: one API, three applications with a key of the third-party key
// manager each, of which alice's may call, bob's has not subscribed and carol's is blocked. Everything is published, as
// an administrator's clicks would be.
func fillQuickstart(e *emulator.Emulator) error {
	keyManager := e.IssuerConfiguration()
	keyManager["client_id"], keyManager["client_secret"] = quickstartAsker, quickstartAskerSecret
	e.Issuer().RequireClient(quickstartAsker, quickstartAskerSecret)
	if _, err := e.PutKeyManager(emulator.KeyManager{Name: quickstartKeyManager, Type: "KeyCloak", Configuration: keyManager}); err != nil {
		return err
	}
	for _, p := range []emulator.Policy{
		{Kind: emulator.SubscriptionPolicy, Name: "Gold", Limit: emulator.Limit{TimeUnit: "min", UnitTime: 1, Count: 5000}},
		{Kind: emulator.ApplicationPolicy, Name: "50PerSec", Limit: emulator.Limit{TimeUnit: "min", UnitTime: 1, Count: 3000}},
	} {
		if _, err := e.PutPolicy(p); err != nil {
			return err
		}
	}
	shop, err := e.CreateAPI(emulator.API{
		Name: "Shop", Version: "1.0.0", Context: "/shop/1.0.0", Endpoint: e.BackendURL(), SandboxEndpoint: e.BackendURL() + "/sandbox", Environments: []string{"Default"},
		SecurityScheme: []string{"oauth2", "api_key", "oauth_basic_auth_api_key_mandatory"},
	})
	if err != nil {
		return err
	}
	for _, a := range []struct{ name, owner, client, state string }{
		{"MobileApp", "alice", "mobile-app", "UNBLOCKED"},
		{"LegacyBatch", "carol", "legacy-batch", "BLOCKED"},
		{"PartnerPortal", "bob", "partner-portal", ""},
	} {
		app, err := e.CreateApplication(emulator.Application{Name: a.name, SubName: a.owner, Policy: "50PerSec"})
		if err != nil {
			return err
		}
		if _, err := e.AddKeyMapping(emulator.KeyMapping{ApplicationID: app.ID, ConsumerKey: a.client, KeyManager: quickstartKeyManager}); err != nil {
			return err
		}
		e.Issuer().AddClient(a.client, a.client+"-secret")
		if a.state == "" {
			continue
		}
		if _, err := e.Subscribe(emulator.Subscription{APIUUID: shop.UUID, AppID: app.ID, PolicyID: "Gold", SubscriptionState: a.state}); err != nil {
			return err
		}
	}
	return nil
}

// quickstartField is the header in which a caller's credential is sent.
func quickstartField(user string) string {
	if user == "apikey" {
		return "ApiKey"
	}
	return "Authorization"
}

// quickstartHeader is the header line of a caller's credential.
func quickstartHeader(user, token string) string {
	if field := quickstartField(user); field != "Authorization" {
		return field + ": " + token
	}
	return "Authorization: Bearer " + token
}

// mintQuickstart makes a token for every caller, an opaque one and an API key for alice's application, and writes each into a
// file that curl reads as a header.
func mintQuickstart(e *emulator.Emulator, folder string) (tokens, headers map[string]string, err error) {
	tokens, headers = map[string]string{}, map[string]string{}
	mint := func(name string, by *issuer.Issuer, t issuer.Token) error {
		t.Life = quickstartTokenLife
		made, err := by.Mint(t)
		if err != nil {
			return err
		}
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(quickstartHeader(name, made.Token)+"\n"), 0o600); err != nil {
			return fmt.Errorf("write the token of %s: %w", name, err)
		}
		tokens[name], headers[name] = made.Token, file
		return nil
	}
	for _, u := range quickstartUsers {
		if err := mint(u.name, e.Issuer(), issuer.Token{ClientID: u.client, Subject: u.name, Scope: "openid profile"}); err != nil {
			return nil, nil, err
		}
	}
	alice := quickstartUsers[0]
	if err := mint("opaque", e.Issuer(), issuer.Token{ClientID: alice.client, Subject: alice.name, Scope: "openid profile", Opaque: true}); err != nil {
		return nil, nil, err
	}
	key, err := apiKeyClaims(e, "MobileApp")
	if err != nil {
		return nil, nil, err
	}
	if err := mint("apikey", e.Resident(), issuer.Token{Subject: alice.name, Claims: key}); err != nil {
		return nil, nil, err
	}
	return tokens, headers, nil
}

// apiKeyClaims is what an API Manager writes into an API key of an application, nil for what it does not.
func apiKeyClaims(e *emulator.Emulator, application string) (map[string]any, error) {
	for _, a := range e.Rows().Applications {
		if a.Name == application {
			return map[string]any{
				"token_type": "apiKey", "keytype": "PRODUCTION", "permittedIP": "", "permittedReferer": "", "azp": nil, "aud": nil, "typ": nil,
				"preferred_username": nil, "subscribedAPIs": []any{},
				"application": map[string]any{"id": a.ID, "uuid": a.UUID, "name": a.Name, "owner": a.SubName, "tier": a.Policy},
			}, nil
		}
	}
	return nil, fmt.Errorf("the emulated API Manager has no application %s", application)
}

// quickstartConfig writes the configuration of the gateway as an operator would, and returns its path.
func quickstartConfig(e *emulator.Emulator, folder, httpAddress, adminAddress string) (string, error) {
	ca := filepath.Join(folder, "ca.crt")
	if err := os.WriteFile(ca, e.CAPEM(), 0o600); err != nil {
		return "", fmt.Errorf("write the certificate authority: %w", err)
	}
	file := filepath.Join(folder, "gatehouse.toml")
	text := fmt.Sprintf(`# The gateway of "gatehouse quickstart": this is all that it is told.
[listener]
http = %q

[admin]
address = %q

[gateway]
environment = "Default"
data_dir = %q
drain_delay = "0s"

[apim.event_hub]
enable = true
service_url = %q
username = "admin"
password = "admin"
event_listening_endpoints = [%q]
ca_file = %q

[apim.jwt]
enable = true
signing_algorithm = "ES256"

[[gateway.api_key_issuer]]
name = %[7]q
jwks_url = %[8]q
ca_file = %[6]q

[apim.sync_runtime_artifacts.gateway]
gateway_labels = ["Default"]

[apim.throttling]
username = "admin"
password = "admin"
ca_file = %[6]q

[[apim.throttling.url_group]]
traffic_manager_urls = ["tcp://%[9]s"]
traffic_manager_auth_urls = ["ssl://%[10]s"]
type = "failover"

[standalone]
apis = ""
policies = ""
`, httpAddress, adminAddress, filepath.Join(folder, "data"), e.URL(), e.Hub().URL(), ca, e.Resident().Issuer(), e.URL()+e.Resident().JWKSPath(),
		e.Receiver().TCPAddress(), e.Receiver().TLSAddress())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("write the gateway's configuration: %w", err)
	}
	return file, nil
}

// checkFree fails when an address cannot be listened on, naming the flag that takes another.
func checkFree(flag, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return usageError(fmt.Errorf("--%s %s: write host:port, such as 127.0.0.1:0", flag, address))
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; --%s %s takes a free port", address, err, flag, net.JoinHostPort(host, "0"))
	}
	return l.Close()
}

// localAddress is how a client on this machine reaches an address, by the host name under which the API is exposed.
func localAddress(address string) string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.JoinHostPort(quickstartVHost, port)
}

// wildcard says whether an address listens on every interface.
func wildcard(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}

// maskedURL hides the password of a broker's URL.
func maskedURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return strings.SplitN(text, ":", 2)[0] + "://…"
	}
	return u.Redacted()
}
