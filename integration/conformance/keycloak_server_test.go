//go:build conformance

package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/harness"
)

// keycloak is a Keycloak server of the test's own: from Maven Central, with its own port, data and certificate.
type keycloak struct {
	t         *testing.T // with which the server ends
	url       string     // https://localhost:port
	home      string
	authority []byte // certificate of the server, PEM
	child     *harness.Child
	client    *http.Client
	arguments []string

	token   string // of the administrator
	renewAt time.Time
}

const keycloakAdmin = "conformance-admin"

// startKeycloak fetches, builds and starts the server. What the machine lacks fails the test, by name.
func startKeycloak(t *testing.T) *keycloak {
	t.Helper()
	need(t, "nothing of Keycloak was run", map[string]string{"java": "openjdk-17-jre-headless", "mvn": "maven"})
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS("keycloak")); err != nil {
		t.Fatal(err)
	}
	unpack := exec.Command("mvn", "-q", "-B", "process-resources")
	unpack.Dir = folder
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("nothing of Keycloak was run: mvn cannot fetch it (is Maven Central reachable?): %v\n%s", err, out)
	}
	homes, err := filepath.Glob(filepath.Join(folder, "target/keycloak/keycloak-*"))
	if err != nil || len(homes) != 1 {
		t.Fatalf("folders of Keycloak: %v, %v, want one", homes, err)
	}
	k := &keycloak{t: t, home: homes[0]}
	certificate, roots := harness.Certificate(t, "localhost", "127.0.0.1")
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	k.authority = pemOf("CERTIFICATE", certificate.Certificate[0])
	write(t, filepath.Join(folder, "server.crt"), k.authority)
	write(t, filepath.Join(folder, "server.key"), pemOf("PRIVATE KEY", key))
	k.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, MaxIdleConnsPerHost: 8}}
	t.Cleanup(k.client.CloseIdleConnections)

	build := exec.Command("sh", "bin/kc.sh", "build", "--db=dev-file", "--cache=local")
	build.Dir, build.Env = k.home, k.environment("JAVA_OPTS_APPEND=-XX:TieredStopAtLevel=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("nothing of Keycloak was run: its build fails: %v\n%s", err, out)
	}
	port := harness.FreePort(t)
	k.url = fmt.Sprintf("https://localhost:%d", port)
	// What kc.sh starts, without a shell between: one process to kill.
	k.arguments = []string{
		"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xms128m", "-Xmx768m",
		"--add-opens=java.base/java.util=ALL-UNNAMED", "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
		"--add-opens=java.base/java.security=ALL-UNNAMED", "--add-opens=java.base/java.lang=ALL-UNNAMED", "--enable-native-access=ALL-UNNAMED",
		"-Dkc.home.dir=" + k.home, "-Djboss.server.config.dir=" + filepath.Join(k.home, "conf"), "-Dkc.config.built=true",
		"-Djava.util.logging.manager=org.jboss.logmanager.LogManager",
		"-Djava.util.concurrent.ForkJoinPool.common.threadFactory=io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory",
		"-cp", filepath.Join(k.home, "lib/quarkus-run.jar"), "io.quarkus.bootstrap.runner.QuarkusEntryPoint",
		"start", "--optimized", "--cache=local", "--http-enabled=false", "--http-host=127.0.0.1", fmt.Sprintf("--https-port=%d", port), "--hostname=" + k.url,
		"--https-certificate-file=" + filepath.Join(folder, "server.crt"), "--https-certificate-key-file=" + filepath.Join(folder, "server.key"),
	}
	k.start(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what Keycloak said:\n%s", k.child.Tail(40))
		}
	})
	return k
}

// need fails the test where programs are missing, and names them; install is the Debian package of each.
func need(t *testing.T, consequence string, install map[string]string) {
	t.Helper()
	var missing, packages []string
	for _, tool := range slices.Sorted(maps.Keys(install)) {
		if _, err := exec.LookPath(tool); err != nil {
			missing, packages = append(missing, tool), append(packages, install[tool])
		}
	}
	if missing != nil {
		t.Fatalf("%s: %s missing on this machine; install with: apt-get install -y %s", consequence, strings.Join(missing, ", "), strings.Join(packages, " "))
	}
}

// environment is made anew: what configures another Keycloak of this machine must not reach this one.
func (k *keycloak) environment(more ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "HOME=" + k.home, "JAVA_HOME=" + os.Getenv("JAVA_HOME"),
		"KC_BOOTSTRAP_ADMIN_USERNAME=" + keycloakAdmin, "KC_BOOTSTRAP_ADMIN_PASSWORD=" + keycloakAdmin,
	}, more...)
}

// start starts the server, again on the same port and data after kill, and waits until it serves.
func (k *keycloak) start(t *testing.T) {
	t.Helper()
	began := time.Now()
	c := exec.Command("java", k.arguments...)
	c.Dir, c.Env = k.home, k.environment()
	k.child = harness.StartChild(k.t, c, filepath.Join(k.home, "output"))
	for {
		resp, err := k.client.Get(k.url + "/realms/master")
		if err == nil {
			resp.Body.Close()
			if err = nil; resp.StatusCode == http.StatusOK {
				t.Logf("Keycloak is up after %s", time.Since(began).Round(100*time.Millisecond))
				return
			}
		}
		select {
		case <-k.child.Ended():
			t.Fatalf("Keycloak ended while starting; its last words:\n%s", k.child.Tail(30))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Since(began) > 4*time.Minute {
			t.Fatalf("Keycloak is not up after 4 minutes (%v); its last words:\n%s", err, k.child.Tail(30))
		}
	}
}

// kill ends the server as a power cut does.
func (k *keycloak) kill() {
	k.child.Kill()
	k.client.CloseIdleConnections()
}

func (k *keycloak) do(req *http.Request) (status int, body []byte, err error) {
	resp, err := k.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// post sends a form to an endpoint of a realm.
func (k *keycloak) post(realm, endpoint string, form url.Values) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, k.realm(realm)+"/protocol/openid-connect/"+endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return k.do(req)
}

// realm is the URL of a realm, which is its issuer.
func (k *keycloak) realm(name string) string { return k.url + "/realms/" + name }

// grant is an answer of the token endpoint.
type grant struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	ID      string `json:"id_token"`
}

func (k *keycloak) grant(realm string, form url.Values) (g grant, err error) {
	status, body, err := k.post(realm, "token", form)
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(body, &g); err != nil || g.Access == "" {
		return g, fmt.Errorf("the token endpoint of realm %s answers %d %s", realm, status, body)
	}
	return g, nil
}

const clientSecret = "client-secret-of-the-test"

// credentials are the form of a client that signs in with its secret.
func credentials(client string, more ...string) url.Values {
	f := url.Values{"client_id": {client}, "client_secret": {clientSecret}}
	for i := 0; i < len(more); i += 2 {
		f.Set(more[i], more[i+1])
	}
	return f
}

// mint gets a token by client credentials.
func (k *keycloak) mint(t *testing.T, realm, client string) string {
	t.Helper()
	g, err := k.grant(realm, credentials(client, "grant_type", "client_credentials"))
	if err != nil {
		t.Fatal(err)
	}
	return g.Access
}

// login gets tokens by a user's password.
func (k *keycloak) login(t *testing.T, realm, client string) grant {
	t.Helper()
	g, err := k.grant(realm, credentials(client, "grant_type", "password", "username", "alice", "password", userPassword, "scope", "openid"))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

type object = map[string]any

// admin asks the admin REST API, and fails the test unless it does as told. into nil drops what it answers.
func (k *keycloak) admin(t *testing.T, method, path string, body, into any) {
	t.Helper()
	if time.Now().After(k.renewAt) {
		g, err := k.grant("master", url.Values{"grant_type": {"password"}, "client_id": {"admin-cli"}, "username": {keycloakAdmin}, "password": {keycloakAdmin}})
		if err != nil {
			t.Fatal(err)
		}
		k.token, k.renewAt = g.Access, time.Now().Add(30*time.Second)
	}
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		sent = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, k.url+"/admin/realms"+path, sent)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+k.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	status, got, err := k.do(req)
	if err != nil {
		t.Fatal(err)
	}
	if status/100 != 2 {
		t.Fatalf("Keycloak: %s %s answers %d %s", method, path, status, got)
	}
	if into != nil {
		if err := json.Unmarshal(got, into); err != nil {
			t.Fatalf("Keycloak: %s %s: %v: %s", method, path, err, got)
		}
	}
}

const userPassword = "password-of-alice"

// createRealm makes a realm with the user alice, the clients, and a key for an algorithm; "" leaves the keys to Keycloak, which
// makes one for RS256, and others that no access token is signed with.
func (k *keycloak) createRealm(t *testing.T, name, algorithm string, clients ...object) {
	t.Helper()
	realm := object{
		"realm": name, "enabled": true, "clients": clients,
		"users": []object{{
			"username": "alice", "enabled": true, "email": "alice@example.com", "emailVerified": true, "firstName": "Alice", "lastName": "Liddell",
			"credentials": []object{{"type": "password", "value": userPassword, "temporary": false}},
		}},
	}
	if algorithm != "" {
		realm["defaultSignatureAlgorithm"] = algorithm
		realm["components"] = object{keyProviders: []object{keyProvider("first", algorithm, 100)}}
	}
	k.admin(t, http.MethodPost, "", realm, nil)
}

// keyProviders is the kind of the components that make keys.
const keyProviders = "org.keycloak.keys.KeyProvider"

// keyProvider is a component of a realm that makes a key; the one of the highest priority signs.
func keyProvider(name, algorithm string, priority int) object {
	config := object{"priority": []string{fmt.Sprint(priority)}}
	provider := "rsa-generated"
	switch {
	case algorithm == "EdDSA":
		provider = "eddsa-generated"
		config["eddsaEllipticCurveKey"] = []string{"Ed25519"}
	case strings.HasPrefix(algorithm, "ES"):
		provider = "ecdsa-generated"
		config["ecdsaEllipticCurveKey"] = []string{map[string]string{"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}[algorithm]}
	default:
		config["algorithm"] = []string{algorithm}
		config["keySize"] = []string{"2048"}
	}
	return object{"name": name, "providerId": provider, "config": config}
}

// client is a confidential OAuth client. edit changes its representation.
func client(id string, edit ...func(object)) object {
	c := object{
		"clientId": id, "secret": clientSecret, "protocol": "openid-connect", "publicClient": false,
		"serviceAccountsEnabled": true, "directAccessGrantsEnabled": true, "standardFlowEnabled": false,
	}
	for _, e := range edit {
		e(c)
	}
	return c
}

func attribute(name, value string) func(object) {
	return func(c object) {
		attributes, _ := c["attributes"].(object)
		if attributes == nil {
			attributes = object{}
		}
		attributes[name] = value
		c["attributes"] = attributes
	}
}

func mapper(name, kind string, config object) func(object) {
	return func(c object) {
		mappers, _ := c["protocolMappers"].([]object)
		c["protocolMappers"] = append(mappers, object{"name": name, "protocol": "openid-connect", "protocolMapper": kind, "config": config})
	}
}

// audience puts a value into aud.
func audience(value string) func(object) {
	return mapper("audience", "oidc-audience-mapper", object{"included.custom.audience": value, "access.token.claim": "true"})
}

// introspectedBy puts a client into aud, of lightweight tokens too: Keycloak answers nobody else about a token.
func introspectedBy(client string) func(object) {
	return mapper("introspection", "oidc-audience-mapper", object{
		"included.client.audience": client, "access.token.claim": "true", "lightweight.claim": "true", "introspection.token.claim": "true",
	})
}

// lightweight makes the tokens of a client say next to nothing: introspection tells the rest.
func lightweight(c object) { attribute("client.use.lightweight.access.token.enabled", "true")(c) }

// signsIn makes a client sign in with assertions of a key (private_key_jwt), not with a secret.
func signsIn(t *testing.T, key object) func(object) {
	t.Helper()
	set, err := json.Marshal(object{"keys": []object{key}})
	if err != nil {
		t.Fatal(err)
	}
	return func(c object) {
		c["clientAuthenticatorType"] = "client-jwt"
		delete(c, "secret")
		attribute("use.jwks.string", "true")(c)
		attribute("jwks.string", string(set))(c)
		attribute("token.endpoint.auth.signing.alg", "ES256")(c)
	}
}

// setEnabled enables or disables a client.
func (k *keycloak) setEnabled(t *testing.T, realm, client string, enabled bool) {
	t.Helper()
	var list []object
	k.admin(t, http.MethodGet, "/"+realm+"/clients?clientId="+url.QueryEscape(client), nil, &list)
	if len(list) != 1 {
		t.Fatalf("clients %s of realm %s: %d, want 1", client, realm, len(list))
	}
	list[0]["enabled"] = enabled
	k.admin(t, http.MethodPut, fmt.Sprintf("/%s/clients/%s", realm, list[0]["id"]), list[0], nil)
}

// addKey makes a new key of a realm.
func (k *keycloak) addKey(t *testing.T, realm, name, algorithm string, priority int) {
	t.Helper()
	key := keyProvider(name, algorithm, priority)
	key["providerType"] = keyProviders
	k.admin(t, http.MethodPost, "/"+realm+"/components", key, nil)
}

// disableKey withdraws a key of a realm.
func (k *keycloak) disableKey(t *testing.T, realm, name string) {
	t.Helper()
	var list []object
	k.admin(t, http.MethodGet, "/"+realm+"/components?type="+keyProviders+"&name="+name, nil, &list)
	if len(list) != 1 {
		t.Fatalf("keys %s of realm %s: %d, want 1", name, realm, len(list))
	}
	config, _ := list[0]["config"].(object)
	config["enabled"], config["active"] = []string{"false"}, []string{"false"}
	k.admin(t, http.MethodPut, fmt.Sprintf("/%s/components/%s", realm, list[0]["id"]), list[0], nil)
}

// configuration is that of the key manager of a realm, as the API Manager's Keycloak connector describes it (contract
// rest.md 5.2). edit changes it.
func (k *keycloak) configuration(realm string, edit ...func(object)) object {
	issuer := k.realm(realm)
	endpoint := func(name string) string { return issuer + "/protocol/openid-connect/" + name }
	c := object{
		"issuer": issuer, "certificate_type": "JWKS", "certificate_value": endpoint("certs"),
		"self_validate_jwt": true, "validation_enable": true,
		"token_format_string":    fmt.Sprintf(`[{"enable": true, "type": "JWT", "value": {"body": {"iss": %q}}}]`, issuer),
		"introspection_endpoint": endpoint("token/introspect"), "token_endpoint": endpoint("token"), "revoke_endpoint": endpoint("revoke"),
		"userinfo_endpoint": endpoint("userinfo"), "authorize_endpoint": endpoint("auth"), "well_known_endpoint": issuer + "/.well-known/openid-configuration",
		"client_registration_endpoint": issuer + "/clients-registrations/openid-connect", "scope_endpoint": k.url + "/admin/realms/" + realm + "/client-scopes",
		"client_id": "gatehouse", "client_secret": clientSecret,
		"consumer_key_claim": "azp", "scopes_claim": "scope",
		"claim_mappings":          []object{{"remoteClaim": "preferred_username", "localClaim": "http://wso2.org/claims/enduser"}},
		"grant_types":             []string{"password", "client_credentials", "refresh_token", "authorization_code"},
		"enable_token_generation": true, "enable_map_oauth_consumer_apps": true, "enable_oauth_app_creation": true,
		"enable_token_hash": false, "enable_token_encryption": false,
	}
	for _, e := range edit {
		e(c)
	}
	return c
}

// part decodes a part of a JWT.
func part(t *testing.T, token string, i int) object {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("a token of %d parts, want a JWT", len(parts))
	}
	var v object
	text, err := base64.RawURLEncoding.DecodeString(parts[i])
	if err = errors.Join(err, json.Unmarshal(text, &v)); err != nil {
		t.Fatal(err)
	}
	return v
}

func header(t *testing.T, token string) object { t.Helper(); return part(t, token, 0) }
func claims(t *testing.T, token string) object { t.Helper(); return part(t, token, 1) }

func keyID(t *testing.T, token string) string {
	t.Helper()
	kid, _ := header(t, token)["kid"].(string)
	return kid
}

func expiry(t *testing.T, token string) time.Time {
	t.Helper()
	exp, _ := claims(t, token)["exp"].(float64)
	return time.Unix(int64(exp), 0)
}
