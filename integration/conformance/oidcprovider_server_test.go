//go:build conformance

package conformance

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/harness"
)

// oidcProvider is the authorization server oidc-provider, from npm, with its own port; see oidcprovider/server.mjs.
type oidcProvider struct {
	t         *testing.T // with which the server ends
	url       string     // https://localhost:port, the issuer
	folder    string
	port      int
	certFile  string // of the server
	authority []byte // the same, PEM
	clients   []object
	roots     *x509.CertPool
	own       tls.Certificate // of the gateway
	child     *harness.Child
	input     io.Closer
	client    *http.Client
}

const (
	jwtResource    = "https://jwt.example.com/" // followed by the algorithm
	opaqueResource = "https://opaque.example.com/"
	gatewayName    = "gateway.example.com" // in the certificate that the gateway shows
)

// startOIDCProvider installs the server with npm and starts it. clients makes its clients; its argument is the public key
// of the gateway, as a JWK. What the machine lacks fails the test, by name.
func startOIDCProvider(t *testing.T, clients func(gateway object) []object) *oidcProvider {
	t.Helper()
	const nothing = "nothing of oidc-provider was run"
	need(t, nothing, map[string]string{"node": "nodejs", "npm": "npm"})
	p := &oidcProvider{t: t, folder: t.TempDir(), port: harness.FreePort(t)}
	if err := os.CopyFS(p.folder, os.DirFS("oidcprovider")); err != nil {
		t.Fatal(err)
	}
	install := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline")
	install.Dir = p.folder
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("%s: npm cannot install it (is the registry reachable?): %v\n%s", nothing, err, out)
	}
	p.url = fmt.Sprintf("https://localhost:%d", p.port)
	certificate, roots := harness.Certificate(t, "localhost", "127.0.0.1")
	p.certFile, p.authority, p.roots = filepath.Join(p.folder, "server.crt"), pemOf("CERTIFICATE", certificate.Certificate[0]), roots
	write(t, p.certFile, p.authority)
	writeKey(t, filepath.Join(p.folder, "server.key"), certificate.PrivateKey)
	// What the gateway shows for tls_client_auth, and signs with for private_key_jwt.
	own, _ := harness.Certificate(t, gatewayName)
	write(t, p.file("gateway.crt"), pemOf("CERTIFICATE", own.Certificate[0]))
	writeKey(t, p.file("gateway.key"), own.PrivateKey)
	p.own = own
	p.clients = clients(jwkOf(t, own.PrivateKey))
	p.client = p.browser(nil)
	p.start(t, false)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what oidc-provider said:\n%s", p.child.Tail(40))
		}
	})
	return p
}

func (p *oidcProvider) file(name string) string { return filepath.Join(p.folder, name) }

func writeKey(t *testing.T, file string, key any) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, pemOf("PRIVATE KEY", der))
}

// jwkOf is the public part of a P-256 key.
func jwkOf(t *testing.T, key any) object {
	t.Helper()
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("the key is a %T, want one of an elliptic curve", key)
	}
	point, err := private.PublicKey.Bytes() // 4, x, y
	if err != nil || len(point) != 65 {
		t.Fatalf("a point of %d bytes, %v, want one of P-256", len(point), err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return object{"kty": "EC", "crv": "P-256", "kid": "gateway", "use": "sig", "alg": "ES256", "x": encode(point[1:33]), "y": encode(point[33:])}
}

// browser is a client that follows no redirect.
func (p *oidcProvider) browser(jar http.CookieJar) *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second, Jar: jar, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.roots}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// start starts the server, which has forgotten every token when it ran before. signedOnly makes it answer introspection
// with JWTs alone.
func (p *oidcProvider) start(t *testing.T, signedOnly bool) {
	t.Helper()
	settings, err := json.Marshal(object{
		"port": p.port, "key": p.file("server.key"), "certificate": p.certFile, "authority": p.file("gateway.crt"), "clients": p.clients, "signedOnly": signedOnly,
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.file("settings.json"), settings)
	c := exec.Command("node", "server.mjs", "settings.json")
	c.Dir = p.folder
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.folder}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.input = in
	p.child = harness.StartChild(p.t, c, p.file("output"))
	began := time.Now()
	for {
		resp, err := p.client.Get(p.url + "/jwks")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-p.child.Ended():
			t.Fatalf("oidc-provider ended while starting; its last words:\n%s", p.child.Tail(30))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("oidc-provider is not up after a minute (%v); its last words:\n%s", err, p.child.Tail(30))
		}
	}
}

// stop ends the server at once.
func (p *oidcProvider) stop() {
	p.child.Kill()
	p.input.Close()
	p.client.CloseIdleConnections()
}

// post sends a form of a client that signs in with its secret.
func (p *oidcProvider) post(t *testing.T, path, client string, form url.Values) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, p.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(client, clientSecret)
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func (p *oidcProvider) grant(t *testing.T, client string, form url.Values) string {
	t.Helper()
	status, body := p.post(t, "/token", client, form)
	var g grant
	if err := json.Unmarshal(body, &g); err != nil || g.Access == "" {
		t.Fatalf("the token endpoint answers %d %s", status, body)
	}
	return g.Access
}

// mint gets a token by client credentials, for a resource where one is named.
func (p *oidcProvider) mint(t *testing.T, client string, resource ...string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "resource": resource}
	if len(resource) > 0 {
		form.Set("scope", "items:read")
	}
	return p.grant(t, client, form)
}

// opaque gets an opaque token.
func (p *oidcProvider) opaque(t *testing.T, client string) string {
	t.Helper()
	token := p.mint(t, client)
	if strings.Contains(token, ".") {
		t.Fatal("oidc-provider gave a token with dots, want an opaque one")
	}
	return token
}

func (p *oidcProvider) revoke(t *testing.T, client, token string) {
	t.Helper()
	if status, body := p.post(t, "/token/revocation", client, url.Values{"token": {token}}); status != http.StatusOK {
		t.Fatalf("revocation answers %d %s", status, body)
	}
}

// introspections is how often the server was asked about a token since it started.
func (p *oidcProvider) introspections(t *testing.T) int {
	t.Helper()
	resp, err := p.client.Get(p.url + "/test/introspections")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const redirect = "https://portal.example.com/callback"

var form = regexp.MustCompile(`action="(https://[^"]*/interaction/[^"]*)"`)

// login gets a token by the authorization code flow, as the user's browser goes through it: sign in, consent, come back.
func (p *oidcProvider) login(t *testing.T, client, user string) string {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := p.browser(jar)
	defer browser.CloseIdleConnections()
	verifier := strings.Repeat("v", 43)
	challenge := sha256.Sum256([]byte(verifier))
	next := p.url + "/auth?" + url.Values{
		"client_id": {client}, "response_type": {"code"}, "redirect_uri": {redirect}, "scope": {"openid"}, "state": {"s"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])}, "code_challenge_method": {"S256"},
	}.Encode()
	for range 12 {
		resp, err := browser.Get(next)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			m := form.FindSubmatch(body)
			if m == nil {
				t.Fatalf("no form at %s: %s", next, body)
			}
			fields := url.Values{"prompt": {"consent"}}
			if strings.Contains(string(body), `name="login"`) {
				fields = url.Values{"prompt": {"login"}, "login": {user}, "password": {userPassword}}
			}
			if resp, err = browser.PostForm(string(m[1]), fields); err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		to, err := resp.Location()
		if err != nil {
			t.Fatalf("%s answers %s without a place to go: %s", next, resp.Status, body)
		}
		if next = to.String(); strings.HasPrefix(next, redirect) {
			return p.grant(t, client, url.Values{
				"grant_type": {"authorization_code"}, "code": {to.Query().Get("code")}, "redirect_uri": {redirect}, "code_verifier": {verifier},
			})
		}
	}
	t.Fatalf("the sign-in does not end; the last place was %s", next)
	return ""
}
