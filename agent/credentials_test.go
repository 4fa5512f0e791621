package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// pair is a self-signed certificate with its key.
type pair struct {
	key *ecdsa.PrivateKey
	der []byte
}

func newPair(t *testing.T, name string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{key, der}
}

func (p pair) certificate() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.der}))
}

func (p pair) private(t *testing.T) string {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
}

// apiKey is a key of Microgateway's kind, signed by the pair.
func (p pair) apiKey(t *testing.T, issuer, api, version, tokenType string) string {
	t.Helper()
	list := []any{map[string]any{"name": api, "version": version}}
	c := jwt.MapClaims{
		"iss": issuer, "sub": "alice", "jti": api + version + tokenType, "iat": time.Now().Unix(), "exp": time.Now().Unix() + 600, "keytype": "PRODUCTION",
		"allowedAPIs": list, "permittedIP": "127.0.0.0/8",
	}
	if tokenType != "" {
		c["token_type"], c["subscribedAPIs"] = tokenType, list
	}
	s, err := jwt.NewWithClaims(jwt.SigningMethodES256, c).SignedString(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const securedAPI = `openapi: 3.0.0
info: {title: Shop, version: "1"}
x-wso2-basePath: /shop
x-wso2-production-endpoints: {urls: [%q]}
components:
  securitySchemes:
    key: {type: apiKey, in: header, name: apikey}
    user: {type: http, scheme: basic}
    cert: {type: mutualTLS}
paths:
  /key: {get: {security: [{key: []}], responses: {"200": {description: ok}}}}
  /user: {get: {security: [{user: []}], responses: {"200": {description: ok}}}}
  /cert: {get: {security: [{cert: []}], responses: {"200": {description: ok}}}}
`

// TestCredentialsOfTheConfiguration sends every kind of credential that the configuration knows, and changes what it knows
// while the gateway runs.
func TestCredentialsOfTheConfiguration(t *testing.T) {
	passed := make(chan http.Header, 1)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case passed <- r.Header:
		default:
		}
	}))
	t.Cleanup(backend.Close)
	server, signer, client, other := newPair(t, "gateway"), newPair(t, "issuer"), newPair(t, "client"), newPair(t, "other client")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"server.pem": server.certificate(), "server.key": server.private(t), "signer.pem": signer.certificate(), "client.pem": client.certificate(),
	} {
		write(t, filepath.Join(dir, name), text)
	}
	configure := func(hash string) (file string) {
		file = writeConfig(t, dir, `
[[gateway.api_key_issuer]]
name = "sts"
certificate_file = "signer.pem"
[[gateway.api_key_issuer]]
name = "console"
kind = "internal_key"
certificate_file = "signer.pem"
[[gateway.user]]
name = "alice"
password_hash = "`+hash+`"
[[apimgt.mutual_ssl.api]]
name = "SHOP"
version = "1"
certificate_files = ["client.pem"]
`)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file, strings.Replace(string(text), "[listener]\n", `[listener]
https = "127.0.0.1:0"
cert_file = "server.pem"
key_file = "server.key"
trusted_proxies = ["127.0.0.1"]
`, 1))
		return file
	}
	sha1Of := func(password string) string {
		sum := sha1.Sum([]byte(password))
		return hex.EncodeToString(sum[:])
	}
	sha512Of := func(password string) string {
		sum := sha512.Sum512([]byte(password))
		return hex.EncodeToString(sum[:])
	}
	file := configure(sha1Of("admin"))
	write(t, filepath.Join(dir, "apis", "shop.yaml"), fmt.Sprintf(securedAPI, backend.URL))
	a, log := run(t, file)
	_, https, _ := a.Addresses()

	tr := func(p *pair) *http.Client {
		c := &tls.Config{InsecureSkipVerify: true}
		if p != nil {
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{p.der}, PrivateKey: p.key}}
		}
		transport := &http.Transport{TLSClientConfig: c}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	anonymous, known, unknown := tr(nil), tr(&client), tr(&other)
	ask := func(c *http.Client, path string, header ...string) int {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, "https://"+https+"/shop"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	key, elsewhere := signer.apiKey(t, "sts", "Shop", "*", ""), signer.apiKey(t, "sts", "Pets", "1", "")
	console := signer.apiKey(t, "console", "Shop", "1", "InternalKey")
	handed := strings.ReplaceAll(url.QueryEscape(client.certificate()), "+", "%20")

	for _, c := range []struct {
		name   string
		client *http.Client
		path   string
		header []string
		want   int
	}{
		{"API key", anonymous, "/key", []string{"apikey", key}, 200},
		{"internal key", anonymous, "/key", []string{"Internal-Key", console}, 200},
		{"no key", anonymous, "/key", nil, 401},
		{"key of another API", anonymous, "/key", []string{"apikey", elsewhere}, 401},
		{"key as a bearer token", anonymous, "/key", []string{"Authorization", "Bearer " + key}, 401},
		{"internal key as an API key", anonymous, "/key", []string{"apikey", console}, 401},
		{"API key as an internal key", anonymous, "/key", []string{"Internal-Key", key}, 401},
		{"key from elsewhere", anonymous, "/key", []string{"apikey", key, "X-Forwarded-For", "192.0.2.1"}, 403},
		{"user", anonymous, "/user", []string{"Authorization", basic("alice", "admin")}, 200},
		{"wrong password", anonymous, "/user", []string{"Authorization", basic("alice", "sesame")}, 401},
		{"certificate of the handshake", known, "/cert", nil, 200},
		{"certificate that a trusted proxy hands on", anonymous, "/cert", []string{"X-WSO2-CLIENT-CERTIFICATE", handed}, 200},
		{"certificate in the form of Envoy", anonymous, "/cert", []string{"X-WSO2-CLIENT-CERTIFICATE", `Hash=1;Cert="` + handed + `"`}, 200},
		{"certificate in a field that the proxy does not write", anonymous, "/cert", []string{"X-Forwarded-Client-Cert", `Hash=1;Cert="` + handed + `"`}, 401},
		{"another certificate", unknown, "/cert", nil, 401},
		{"no certificate", anonymous, "/cert", nil, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			select {
			case <-passed:
			default:
			}
			if got := ask(c.client, c.path, c.header...); got != c.want {
				t.Fatalf("status %d, want %d\n%s", got, c.want, log)
			}
			if c.want != 200 {
				return
			}
			h := <-passed
			for _, name := range []string{"Apikey", "Internal-Key", "Authorization", "X-Wso2-Client-Certificate", "X-Forwarded-Client-Cert"} {
				if h.Get(name) != "" {
					t.Errorf("the backend gets %s", name)
				}
			}
		})
	}

	t.Run("everything changes at a reload", func(t *testing.T) {
		configure("@sha512:{" + sha512Of("sesame") + "}")
		write(t, filepath.Join(dir, "signer.pem"), other.certificate())
		write(t, filepath.Join(dir, "client.pem"), other.certificate())
		if err := a.Reload(); err != nil {
			t.Fatal(err)
		}
		for what, got := range map[string][2]int{
			"the old password":    {ask(anonymous, "/user", "Authorization", basic("alice", "admin")), 401},
			"the new password":    {ask(anonymous, "/user", "Authorization", basic("alice", "sesame")), 200},
			"the old key":         {ask(anonymous, "/key", "apikey", key), 401},
			"a new key":           {ask(anonymous, "/key", "apikey", other.apiKey(t, "sts", "Shop", "1", "")), 200},
			"the old certificate": {ask(known, "/cert"), 401},
			"the new certificate": {ask(unknown, "/cert"), 200},
		} {
			if got[0] != got[1] {
				t.Errorf("%s: status %d, want %d", what, got[0], got[1])
			}
		}
	})
	t.Run("a fault leaves all as it was", func(t *testing.T) {
		configure("$2b$12$short")
		if err := a.Reload(); err != nil {
			t.Fatal(err)
		}
		if got := ask(anonymous, "/user", "Authorization", basic("alice", "sesame")); got != 200 {
			t.Errorf("status %d", got)
		}
		if text := log.String(); !strings.Contains(text, "gateway.user[0].password_hash") || !strings.Contains(text, "60 characters") || strings.Contains(text, "short") {
			t.Errorf("the fault is not told, or tells too much: %s", text)
		}
	})
}
