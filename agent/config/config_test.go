package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// environment is an env function over a map.
func environment(values map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := values[name]
		return v, ok
	}
}

// password is planted wherever the tests need a secret; nothing printed may hold it.
const password = "hunter2-planted"

var testEnv = environment(map[string]string{"APIM_PASSWORD": password, "EMPTY": ""})

// newPair returns a certificate and its private key in PEM form.
func newPair(t testing.TB) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gatehouse test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// newFolder returns a folder with what the configurations of the tests name: tls/ and apis/.
func newFolder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	cert, key := newPair(t)
	files := map[string][]byte{
		"tls/gateway.crt": cert, "tls/gateway.key": key, "tls/apim-ca.crt": cert, "tls/backend-jwt.key": key,
		"secret.txt": []byte(password + "\n"), "empty.txt": nil, "not.pem": []byte("no PEM\n"),
		"apis/.keep": nil, "policies/.keep": nil,
	}
	for name, data := range files {
		writeFile(t, filepath.Join(dir, name), data)
	}
	return dir
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWholeConfigurationOfTheManualLoadsAsWritten(t *testing.T) {
	dir := newFolder(t)
	path := filepath.Join(dir, "gatehouse.toml")
	writeFile(t, path, readTestdata(t, "whole.toml"))

	got, source, err := Load(path, testEnv)
	if err != nil {
		t.Fatalf("Load:\n%v", err)
	}
	want := Default()
	want.Listener.HTTPS = ":9095"
	want.Listener.CertFile = Path(filepath.Join(dir, "tls/gateway.crt"))
	want.Listener.KeyFile = Path(filepath.Join(dir, "tls/gateway.key"))
	want.Gateway.DataDir = "/var/lib/gatehouse"
	want.Gateway.GatewayLabels = []string{"Default"}
	want.Gateway.ValidateSubscriptions = true
	want.Standalone = Standalone{APIs: Path(filepath.Join(dir, "apis")), Policies: Path(filepath.Join(dir, "policies"))}
	want.TrafficManager.Policies = Path(filepath.Join(dir, "policies"))
	want.TrafficManager.SSL = ""
	hub := &want.APIM.EventHub
	hub.Enable = true
	hub.ServiceURL = "https://apim.example.com:9443"
	hub.Username = "gateway"
	hub.Password = password
	hub.EventListeningEndpoints = []URL{"amqp://gateway:" + password + "@carbon/carbon?brokerlist='tcp://apim.example.com:5672'"}
	hub.CAFile = Path(filepath.Join(dir, "tls/apim-ca.crt"))
	want.APIM.SyncArtifacts.Gateway.GatewayLabels = []string{"Default"}
	throttling := &want.APIM.Throttling
	throttling.EnableDataPublishing = true
	throttling.Username = "gateway"
	throttling.Password = password
	throttling.ThrottleDecisionEndpoints = []URL{"tcp://apim.example.com:5672"}
	throttling.URLGroups = []URLGroup{{
		TrafficManagerURLs: []URL{"tcp://apim.example.com:9611"}, TrafficManagerAuthURLs: []URL{"ssl://apim.example.com:9711"}, Type: "failover",
	}}
	want.APIM.JWT.Enable = true
	want.APIM.JWT.KeyFile = Path(filepath.Join(dir, "tls/backend-jwt.key"))
	want.APIM.JWT.Audience = []string{"orders-backend"}
	want.APIM.JWT.Generator.ExcludedClaims = []string{"sub_internal"}
	want.APIM.JWT.Issuers = []JWTIssuer{{
		Name: "https://keycloak.example.com/realms/shop", ConsumerKeyClaim: "azp", ScopesClaim: "scope",
		ValidateSubscriptions: true, RequireExp: true, ClockSkew: 5 * second, JWKSMaxStale: 24 * hour,
		JWKS:         JWKS{URL: "https://keycloak.example.com/realms/shop/protocol/openid-connect/certs", RefreshInterval: hour},
		ClaimMapping: []ClaimMapping{{RemoteClaim: "preferred_username", LocalClaim: "http://wso2.org/claims/enduser"}},
	}}
	want.Upstream.CircuitBreaker = &CircuitBreaker{
		RequestVolumeThreshold: 20, FailureThreshold: 0.5, TimeWindow: 10 * second, BucketSize: second,
		ResetTime: 5 * second, HalfOpenRequests: 1, StatusCodes: []int{502, 503, 504},
	}
	compare := cmp.Options{cmp.Transformer("secret", Secret.Reveal), cmp.Transformer("url", URL.Reveal), cmp.Comparer(comparePrefixes)}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	for _, n := range source.Notes {
		if !strings.HasPrefix(n.Text, "not in this release") {
			t.Errorf("note: %v", n)
		}
	}
	if at := source.Position("apim.jwt.issuer[0].consumer_key_claim"); at.Line != 50 {
		t.Errorf("consumer_key_claim is placed at %+v, want line 50", at)
	}
}

func TestAnEmptyFileGivesTheDefaults(t *testing.T) {
	got, _, err := Parse("gatehouse.toml", nil, nil, "/etc/gatehouse")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Listener.HTTPS, want.TrafficManager.SSL = "", ""
	want.Gateway.GatewayLabels = []string{"Default"}
	want.Gateway.DataDir = "/etc/gatehouse/data"
	want.Standalone = Standalone{APIs: "/etc/gatehouse/apis", Policies: "/etc/gatehouse/policies"}
	want.TrafficManager.Policies = "/etc/gatehouse/policies"
	if diff := cmp.Diff(want, got, cmp.Comparer(comparePrefixes)); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

// comparePrefixes lets go-cmp compare addresses, whose fields are not exported.
func comparePrefixes(a, b netip.Prefix) bool { return a == b }
