package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/stage"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// callers knows the credentials of a few callers, as the domains of the kinds would.
type callers struct {
	domains
	certificate []byte // the one that is admitted, DER
	bound       string // the certificate that the token "bound" may come with
	events      []string
}

func (c *callers) Authenticate(_ context.Context, o keymanager.Credential) (*keymanager.Token, bool, error) {
	switch o.Bearer {
	case "good":
		return &keymanager.Token{KeyManager: "KM", ConsumerKey: "ck", User: "bob", Scopes: []string{"read"}}, true, nil
	case "bound":
		return &keymanager.Token{KeyManager: "KM", ConsumerKey: "ck", User: "bob", BoundTo: c.bound}, true, nil
	}
	return nil, false, &keymanager.Refusal{Check: keymanager.CheckSignature, Detail: "the signature does not match"}
}

func (c *callers) AuthenticateKey(_ context.Context, o keymanager.KeyOffer) (*keymanager.Token, bool, error) {
	if o.Internal {
		if o.Value != "console" {
			return nil, false, &keymanager.Refusal{Check: keymanager.CheckSignature, Detail: "the signature of the key does not match"}
		}
		return &keymanager.Token{Kind: keymanager.KindInternalKey, User: "publisher", Unsubscribed: true}, false, nil
	}
	switch {
	case o.Value != "key-of-shop":
		return nil, false, &keymanager.Refusal{Check: keymanager.CheckSignature, Detail: "the signature of the key does not match"}
	case o.APIName != "A":
		return nil, false, &keymanager.Refusal{Check: keymanager.CheckAPI, Detail: "the API key is not for this API"}
	case o.ClientIP != netip.MustParseAddr("127.0.0.1"):
		return nil, false, &keymanager.Refusal{Check: keymanager.CheckIP, Detail: "the API key may not be used from this address", Forbidden: true}
	case o.Referer != "" && o.Referer != "https://app.example.test/":
		return nil, false, &keymanager.Refusal{Check: keymanager.CheckReferer, Detail: "the API key may not be used by this page", Forbidden: true}
	}
	return &keymanager.Token{
		Kind: keymanager.KindAPIKey, User: "carol", Application: &keymanager.EmbeddedApplication{ID: 7, Name: "App"},
		Subscribed: []keymanager.EmbeddedSubscription{{Name: "A", Version: "1", Tier: "Gold"}},
	}, false, nil
}

func (c *callers) AuthenticateUser(_ context.Context, user, password string) (*keymanager.Token, error) {
	if user != "alice" || password != "pass:word" {
		return nil, &keymanager.Refusal{Check: keymanager.CheckUser, Detail: "user or password is wrong"}
	}
	return &keymanager.Token{Kind: keymanager.KindBasic, User: user, Unsubscribed: true, Scopes: []string{"read"}}, nil
}

func (c *callers) AuthenticateCertificate(o keymanager.CertificateOffer) (*keymanager.Token, error) {
	if !bytes.Equal(o.DER, c.certificate) {
		return nil, &keymanager.Refusal{Check: keymanager.CheckClient, Detail: "the certificate is not admitted to this API"}
	}
	return &keymanager.Token{Kind: keymanager.KindCertificate, User: "Unknown", Tier: "Gold", Unsubscribed: true}, nil
}

// Publish notes all that would be published of a request.
func (c *callers) Publish(r *throttle.Request, _ int64) {
	src := r.Attributes.(throttle.AttributeSource)
	src.VisitHeaders(c)
	src.VisitQuery(c)
}

func (c *callers) VisitAttribute(name, value string) { c.events = append(c.events, name+"="+value) }

func (c *callers) ResolveApplication(_ string, _ int64, api subscription.APIRef) subscription.Facts {
	return c.domains.ResolveApplication("", 0, api)
}

func (c *callers) stages() stage.Domains {
	return stage.Domains{Authenticator: c, APIKeys: c, Users: c, Certificates: c, Subscriptions: c, Denier: c, Throttler: c}
}

// mirror answers with the request as it arrived.
func mirror(t testing.TB) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"target": r.RequestURI, "header": r.Header})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// secured is an API whose resource /x asks for the given alternatives.
func secured(url string, alternatives ...[]definition.Credential) *definition.API {
	a := &definition.API{UUID: "a", Name: "A", Version: "1", Context: "/a/1", Production: single(url)}
	a.Operations = []definition.Operation{
		{Template: "/x", Method: "GET", Security: alternatives, APIKeyHeaders: []string{"x-key"}, APIKeyQueries: []string{"key"}},
		{Template: "/x", Method: "POST", Security: alternatives, APIKeyHeaders: []string{"x-key"}, APIKeyQueries: []string{"key"}},
		{Template: "/open", Method: "GET", Unsecured: true, Security: alternatives, APIKeyHeaders: []string{"x-key"}, APIKeyQueries: []string{"key"}},
	}
	return a
}

type alternative = []definition.Credential

// TestKindsOverTheWire: each kind of credential, how it may come and how not, what the answer is, and what the backend sees.
func TestKindsOverTheWire(t *testing.T) {
	back := mirror(t)
	key, user, token := alternative{definition.APIKey}, alternative{definition.Basic}, alternative{definition.OAuth2}
	alice := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("alice:pass:word"))
	for _, c := range []struct {
		name   string
		asks   []alternative
		target string // behind /a/1
		header []string
		status int
		body   string // part of the answer
		to     string // what the backend gets as its target
	}{
		{name: "key in its field", asks: []alternative{key}, target: "/x?a=1", header: []string{"X-KEY: key-of-shop"}, status: 200, to: "/x?a=1"},
		{name: "key in the query, the rest as it was", asks: []alternative{key}, target: "/x?b=%7e&key=key-of-shop&a=+&c", status: 200, to: "/x?b=%7e&a=+&c"},
		{name: "key in the query, percent-encoded", asks: []alternative{key}, target: "/x?k%65y=key%2Dof-shop", status: 200, to: "/x"},
		{name: "wrong key", asks: []alternative{key}, target: "/x?key=other", status: 401, body: "900901"},
		{name: "key twice in the query", asks: []alternative{key}, target: "/x?key=key-of-shop&key=key-of-shop", status: 401, body: "900901"},
		{name: "key twice in fields", asks: []alternative{key}, target: "/x", header: []string{"X-Key: key-of-shop", "X-Key: key-of-shop"}, status: 401, body: "900901"},
		{name: "key as a bearer token", asks: []alternative{key}, target: "/x", header: []string{"Authorization: Bearer key-of-shop"}, status: 401, body: "900917"},
		{name: "key in a field of another name", asks: []alternative{key}, target: "/x", header: []string{"apikey: key-of-shop"}, status: 401, body: "900902"},
		{name: "page that may use the key", asks: []alternative{key}, target: "/x", header: []string{"X-Key: key-of-shop", "Referer: https://app.example.test/"}, status: 200, to: "/x"},
		{name: "page that may not", asks: []alternative{key}, target: "/x", header: []string{"X-Key: key-of-shop", "Referer: https://evil.example.test/"}, status: 403, body: "900908"},
		{name: "key of the console", asks: []alternative{key}, target: "/x", header: []string{"internal-key: console"}, status: 200, to: "/x"},
		{name: "key of the console for a token", asks: []alternative{token}, target: "/x", header: []string{"Internal-Key: console"}, status: 200, to: "/x"},
		{name: "wrong key of the console", asks: []alternative{token}, target: "/x", header: []string{"Internal-Key: key-of-shop"}, status: 401, body: "900901"},
		{name: "user", asks: []alternative{user}, target: "/x", header: []string{alice}, status: 200, to: "/x"},
		{name: "user, scheme in other letters", asks: []alternative{user}, target: "/x", header: []string{strings.Replace(alice, "Basic", "bASIC", 1)}, status: 200, to: "/x"},
		{name: "user, wrong password", asks: []alternative{user}, target: "/x", header: []string{"Authorization: Basic YWxpY2U6eA=="}, status: 401, body: "900911"},
		{name: "user, no colon", asks: []alternative{user}, target: "/x", header: []string{"Authorization: Basic YWxpY2U="}, status: 401, body: "900912"},
		{name: "user, not base64", asks: []alternative{user}, target: "/x", header: []string{"Authorization: Basic %"}, status: 401, body: "900900"},
		{name: "user where a token is asked for", asks: []alternative{token}, target: "/x", header: []string{alice}, status: 401, body: "900917"},
		{name: "user or token, with a token", asks: []alternative{user, token}, target: "/x", header: []string{"Authorization: Bearer good"}, status: 200, to: "/x"},
		{name: "token and key", asks: []alternative{{definition.OAuth2, definition.APIKey}}, target: "/x?key=key-of-shop", header: []string{"Authorization: Bearer good"}, status: 200, to: "/x"},
		{name: "token and key, without the key", asks: []alternative{{definition.OAuth2, definition.APIKey}}, target: "/x", header: []string{"Authorization: Bearer good"}, status: 401, body: "an API key is needed too"},
		{name: "token and key, with a wrong key", asks: []alternative{{definition.OAuth2, definition.APIKey}}, target: "/x?key=x", header: []string{"Authorization: Bearer good"}, status: 401, body: "900901"},
		{name: "token or key, with a bad token and a good key", asks: []alternative{token, key}, target: "/x?key=key-of-shop", header: []string{"Authorization: Bearer bad"}, status: 200, to: "/x"},
		{name: "token, and a key that is not needed", asks: []alternative{token, key}, target: "/x?key=bad&a=1", header: []string{"Authorization: Bearer good", "X-Key: bad", "Internal-Key: bad"}, status: 200, to: "/x?a=1"},
		{name: "scheme in other letters", asks: []alternative{token}, target: "/x", header: []string{"Authorization: bEaReR good"}, status: 200, to: "/x"},
		{name: "blanks behind the scheme", asks: []alternative{token}, target: "/x", header: []string{"Authorization: Bearer   good "}, status: 200, to: "/x"},
		{name: "a tab behind the scheme", asks: []alternative{token}, target: "/x", header: []string{"Authorization: Bearer\tgood"}, status: 401, body: "900917"},
		{name: "another scheme", asks: []alternative{token}, target: "/x", header: []string{"Authorization: Digest good"}, status: 401, body: "900917"},
		{name: "no scheme", asks: []alternative{token}, target: "/x", header: []string{"Authorization: good"}, status: 401, body: "900917"},
		{name: "a scheme that ends with Bearer", asks: []alternative{token}, target: "/x", header: []string{"Authorization: MyBearer good"}, status: 401, body: "900917"},
		{name: "two words", asks: []alternative{token}, target: "/x", header: []string{"Authorization: Bearer good good"}, status: 401, body: "900901"},
		{name: "two tokens in one line", asks: []alternative{token}, target: "/x", header: []string{"Authorization: Bearer good, Bearer good"}, status: 401, body: "900901"},
		{name: "several fields", asks: []alternative{token}, target: "/x", header: []string{"Authorization: Bearer good", "Authorization: Bearer good"}, status: 401, body: "more than one credential"},
		{name: "a token in the query", asks: []alternative{token, key}, target: "/x?access_token=good", status: 401, body: "900902"},
		{name: "nothing", asks: []alternative{token}, target: "/x", status: 401, body: "900902"},
		{name: "an open resource: nothing is checked, nothing taken away", asks: []alternative{token, key}, target: "/open?key=bad", header: []string{"Authorization: Bearer bad", "X-Key: bad", "Internal-Key: bad"}, status: 200, to: "/open?key=bad"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &callers{}
			g := start(t, Options{Domains: d.stages()}, secured(back, c.asks...))
			res, body := do(t, g, "GET", "/a/1"+c.target, c.header...)
			if res.StatusCode != c.status || !strings.Contains(body, c.body) {
				t.Fatalf("got %d %s, want %d %s", res.StatusCode, body, c.status, c.body)
			}
			if c.status != 200 {
				if res.StatusCode == 401 && res.Header.Get("Www-Authenticate") == "" {
					t.Error("no challenge")
				}
				return
			}
			var got struct {
				Target string      `json:"target"`
				Header http.Header `json:"header"`
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatal(err)
			}
			if got.Target != c.to {
				t.Errorf("the backend was asked for %q, want %q", got.Target, c.to)
			}
			open := strings.HasPrefix(c.target, "/open")
			for _, name := range []string{"Authorization", "X-Key", "Internal-Key"} {
				if sent := got.Header[name] != nil; sent != open {
					t.Errorf("the backend got %s: %q", name, got.Header[name])
				}
			}
			for _, e := range d.events {
				if strings.Contains(e, "good") || strings.Contains(e, "shop") || strings.Contains(e, "bad") || strings.Contains(e, "console") {
					t.Errorf("%q would be published", e)
				}
			}
			g.stop()
			if log := g.log.String(); strings.Contains(log, "shop") || strings.Contains(log, "good") {
				t.Errorf("a credential stands in the access log: %s", log)
			}
		})
	}
}

// TestKeptCredential: enable_outbound_auth_header keeps the credential field and nothing else.
func TestKeptCredential(t *testing.T) {
	d := &callers{}
	dom := d.stages()
	dom.KeepCredential = true
	g := start(t, Options{Domains: dom}, secured(mirror(t), alternative{definition.OAuth2}, alternative{definition.APIKey}))
	_, body := do(t, g, "GET", "/a/1/x?key=other", "Authorization: Bearer good", "X-Key: other", "Internal-Key: other")
	if !strings.Contains(body, "Bearer good") || strings.Contains(body, "other") {
		t.Errorf("the backend got %s", body)
	}
}

func TestChallengesOfKinds(t *testing.T) {
	const bearer, basic = `Bearer realm="R"`, `Basic realm="R", charset="UTF-8"`
	for _, c := range []struct {
		name string
		asks []alternative
		want []string
	}{
		{"token", []alternative{{definition.OAuth2}}, []string{bearer}},
		{"user", []alternative{{definition.Basic}}, []string{basic}},
		{"either", []alternative{{definition.Basic}, {definition.OAuth2}}, []string{bearer, basic}},
		{"key", []alternative{{definition.APIKey}}, []string{bearer}},
	} {
		g := start(t, Options{Domains: (&callers{}).stages(), Realm: "R"}, secured(mirror(t), c.asks...))
		res, _ := do(t, g, "GET", "/a/1/x")
		if got := res.Header.Values("Www-Authenticate"); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestTrailerIsNoCredential: what may not come in the header may not come behind the body.
func TestTrailerIsNoCredential(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = json.NewEncoder(w).Encode(r.Trailer)
	}))
	defer back.Close()
	g := start(t, Options{Domains: (&callers{}).stages()}, secured(back.URL, alternative{definition.APIKey}))
	got := raw(t, g.url, "POST /a/1/x HTTP/1.1\r\nHost: h\r\nX-Key: key-of-shop\r\nTe: trailers\r\nTrailer: X-Key, Internal-Key, X-Wso2-Client-Certificate, X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"+
		"1\r\nx\r\n0\r\nX-Key: secret\r\nInternal-Key: secret\r\nX-Wso2-Client-Certificate: secret\r\nX-Sum: 7\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, `"X-Sum":["7"]`) || strings.Contains(got, "secret") {
		t.Errorf("got %s", got)
	}
}

// parseDER reads a certificate header for tests: base64 of DER.
func parseDER(value string) ([]byte, [][]byte, error) {
	b, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return nil, nil, errors.New("it is not base64")
	}
	return b, nil, nil
}

// TestMutualTLS goes through the ways in which a certificate comes, over a listener that asks for it.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	serverCert, serverKey, pool := certificate(t, dir, "server")
	load := func(name string) (tls.Certificate, string) {
		c, k, _ := certificate(t, dir, name)
		pair, err := tls.LoadX509KeyPair(c, k)
		if err != nil {
			t.Fatal(err)
		}
		return pair, base64.StdEncoding.EncodeToString(pair.Certificate[0])
	}
	admitted, inHeader := load("admitted")
	stranger, strangerInHeader := load("stranger")
	back := mirror(t)
	mandatory := []alternative{{definition.MutualTLS}}
	both := []alternative{{definition.MutualTLS, definition.OAuth2}}
	optional := []alternative{{definition.MutualTLS}, {definition.OAuth2}}
	const ours, envoys = "X-WSO2-CLIENT-CERTIFICATE: ", "X-Forwarded-Client-Cert: "
	for _, c := range []struct {
		name      string
		asks      []alternative
		trusted   bool
		reads     string // the field that is read; "": the usual one
		handshake *tls.Certificate
		header    []string
		status    int
		body      string
	}{
		{name: "mandatory, nothing", asks: mandatory, status: 401, body: "a client certificate is needed"},
		{name: "mandatory, handshake", asks: mandatory, handshake: &admitted, status: 200},
		{name: "mandatory, handshake of a stranger", asks: mandatory, handshake: &stranger, status: 401, body: "not admitted"},
		{name: "mandatory, a header of anybody", asks: mandatory, header: []string{ours + inHeader}, status: 401, body: "a client certificate is needed"},
		{name: "mandatory, Envoy's header of anybody", asks: mandatory, header: []string{envoys + inHeader}, status: 401, body: "a client certificate is needed"},
		{name: "mandatory, a header of anybody and a stranger's handshake", asks: mandatory, handshake: &stranger, header: []string{ours + inHeader}, status: 401, body: "not admitted"},
		{name: "mandatory, handshake and a stranger's header of anybody", asks: mandatory, handshake: &admitted, header: []string{ours + strangerInHeader}, status: 200},
		{name: "mandatory, a header of a trusted proxy", asks: mandatory, trusted: true, header: []string{ours + inHeader}, status: 200},
		{name: "mandatory, Envoy's header of a trusted proxy", asks: mandatory, trusted: true, reads: "X-Forwarded-Client-Cert", header: []string{envoys + inHeader}, status: 200},
		{name: "mandatory, Envoy's header through a trusted proxy that writes the other", asks: mandatory, trusted: true, header: []string{envoys + inHeader}, status: 401, body: "a client certificate is needed"},
		{name: "mandatory, the usual header through a trusted proxy that writes Envoy's", asks: mandatory, trusted: true, reads: "X-Forwarded-Client-Cert", header: []string{ours + inHeader}, status: 401, body: "a client certificate is needed"},
		{name: "mandatory, the usual header through Envoy with a stranger's", asks: mandatory, trusted: true, reads: "x-forwarded-client-cert", header: []string{ours + inHeader, envoys + strangerInHeader}, status: 401, body: "not admitted"},
		{name: "mandatory, a stranger's header of a trusted proxy", asks: mandatory, trusted: true, header: []string{ours + strangerInHeader}, status: 401, body: "not admitted"},
		{name: "mandatory, a trusted proxy with a certificate of its own", asks: mandatory, trusted: true, handshake: &stranger, header: []string{ours + inHeader}, status: 200},
		{name: "mandatory, the certificate of the proxy does not stand in for the client's", asks: mandatory, trusted: true, handshake: &admitted, header: []string{ours + strangerInHeader}, status: 401, body: "not admitted"},
		{name: "mandatory, a trusted proxy that hands nothing on", asks: mandatory, trusted: true, handshake: &admitted, status: 200},
		{name: "mandatory, a client without a certificate behind a proxy that has one", asks: mandatory, trusted: true, handshake: &admitted, header: []string{"X-Forwarded-For: 198.51.100.7"}, status: 401, body: "a client certificate is needed"},
		{name: "mandatory, the same said with Forwarded and an empty field", asks: mandatory, trusted: true, handshake: &admitted, header: []string{"Forwarded: for=198.51.100.7", ours}, status: 401, body: "a client certificate is needed"},
		{name: "mandatory, a client that claims to be behind a proxy", asks: mandatory, handshake: &admitted, header: []string{"X-Forwarded-For: 198.51.100.7"}, status: 200},
		{name: "bound token behind a proxy that has the certificate", asks: []alternative{{definition.OAuth2}}, trusted: true, handshake: &admitted, header: []string{"Authorization: Bearer bound", "X-Forwarded-For: 198.51.100.7"}, status: 401, body: "bound to a client certificate"},
		{name: "mandatory, garbage of a trusted proxy", asks: mandatory, trusted: true, handshake: &admitted, header: []string{ours + "%"}, status: 401, body: "cannot be read: it is not base64"},
		{name: "mandatory, two headers of a trusted proxy", asks: mandatory, trusted: true, header: []string{ours + inHeader, ours + inHeader}, status: 401, body: "more than once"},
		{name: "with a token, both", asks: both, handshake: &admitted, header: []string{"Authorization: Bearer good"}, status: 200},
		{name: "with a token, the token alone", asks: both, header: []string{"Authorization: Bearer good"}, status: 401, body: "a client certificate is needed"},
		{name: "with a token, the certificate alone", asks: both, handshake: &admitted, status: 401, body: "an access token is needed too"},
		{name: "with a token, a stranger", asks: both, handshake: &stranger, header: []string{"Authorization: Bearer good"}, status: 401, body: "not admitted"},
		{name: "optional, handshake", asks: optional, handshake: &admitted, status: 200},
		{name: "optional, a header of a trusted proxy", asks: optional, trusted: true, header: []string{ours + inHeader}, status: 200},
		{name: "optional, a header of anybody", asks: optional, header: []string{ours + inHeader}, status: 401, body: "900902"},
		{name: "optional, a token", asks: optional, header: []string{"Authorization: Bearer good"}, status: 200},
		{name: "optional, a stranger with a token", asks: optional, handshake: &stranger, header: []string{"Authorization: Bearer good"}, status: 200},
		{name: "optional, a stranger", asks: optional, handshake: &stranger, status: 401, body: "not admitted"},
		{name: "optional, nothing", asks: optional, status: 401, body: "900902"},
		{name: "bound token, its certificate", asks: optional, handshake: &admitted, header: []string{"Authorization: Bearer bound"}, status: 200},
		{name: "bound token alone", asks: optional, header: []string{"Authorization: Bearer bound"}, status: 401, body: "bound to a client certificate"},
		{name: "bound token, its certificate by a trusted proxy", asks: []alternative{{definition.OAuth2}}, trusted: true, header: []string{"Authorization: Bearer bound", ours + inHeader}, status: 200},
		{name: "bound token, its certificate by anybody", asks: []alternative{{definition.OAuth2}}, header: []string{"Authorization: Bearer bound", ours + inHeader}, status: 401, body: "bound to a client certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sum := sha256.Sum256(admitted.Certificate[0])
			d := &callers{certificate: admitted.Certificate[0], bound: base64.RawURLEncoding.EncodeToString(sum[:])}
			o := Options{HTTPS: "127.0.0.1:0", CertFile: serverCert, KeyFile: serverKey, Domains: d.stages(), ParseCertificateHeader: parseDER, CertificateHeader: c.reads}
			if c.trusted {
				o.TrustedProxies = []string{"127.0.0.1"}
			}
			g := start(t, o, secured(back, c.asks...))
			for _, protocol := range []string{"http/1.1", "h2"} {
				conf := &tls.Config{RootCAs: pool, NextProtos: []string{protocol}}
				if c.handshake != nil {
					conf.Certificates = []tls.Certificate{*c.handshake}
				}
				tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: protocol == "h2"}
				for range 2 { // the second is over the same connection
					req, _ := http.NewRequest("GET", g.tlsURL+"/a/1/x", nil)
					for _, h := range c.header {
						k, v, _ := strings.Cut(h, ": ")
						req.Header.Add(k, v)
					}
					res, err := tr.RoundTrip(req)
					if err != nil {
						t.Fatal(err)
					}
					b, _ := io.ReadAll(res.Body)
					_ = res.Body.Close()
					if res.StatusCode != c.status || !strings.Contains(string(b), c.body) {
						t.Errorf("%s: got %d %s, want %d %s", protocol, res.StatusCode, b, c.status, c.body)
					}
					if c.status == 200 && strings.Contains(string(b), "Cert") {
						t.Errorf("%s: the certificate reached the backend: %s", protocol, b)
					}
				}
				tr.CloseIdleConnections()
			}
			for _, e := range d.events {
				if strings.Contains(e, inHeader) {
					t.Errorf("the certificate would be published: %q", e)
				}
			}
		})
	}
}

// TestCertificateHeaderOfAnOpenResource: from a trusted proxy it is the backend's to look at, from anybody it is nothing.
func TestCertificateHeaderOfAnOpenResource(t *testing.T) {
	for _, trusted := range []bool{true, false} {
		o := Options{Domains: (&callers{}).stages(), ParseCertificateHeader: parseDER, CertificateHeader: "X-SSL-Cert"}
		if trusted {
			o.TrustedProxies = []string{"127.0.0.0/8"}
		}
		g := start(t, o, secured(mirror(t), alternative{definition.MutualTLS}))
		_, body := do(t, g, "GET", "/a/1/open", "X-Ssl-Cert: abc", "X-Forwarded-Client-Cert: def", "X-Wso2-Client-Certificate: ghi")
		if strings.Contains(body, "abc") != trusted || strings.Contains(body, "def") != trusted || !strings.Contains(body, "ghi") {
			t.Errorf("trusted %v: %s", trusted, body)
		}
	}
}

// TestHandshakesAskOnlyWhereSomebodyWantsToKnow: browsers ask their users, so nobody is asked in vain.
func TestHandshakesAskOnlyWhereSomebodyWantsToKnow(t *testing.T) {
	dir := t.TempDir()
	cert, key, pool := certificate(t, dir, "server")
	own, ownKey, _ := certificate(t, dir, "client")
	pair, err := tls.LoadX509KeyPair(own, ownKey)
	if err != nil {
		t.Fatal(err)
	}
	back := mirror(t)
	plain, wanting := secured(back, alternative{definition.OAuth2}), secured(back, alternative{definition.MutualTLS})
	var sessions tls.ClientSessionCache // a session without a certificate is not resumed where one is asked for
	asked := func(g *gateway) (asked bool) {
		t.Helper()
		c, err := tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{RootCAs: pool, ClientSessionCache: sessions, GetClientCertificate: func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			if len(i.AcceptableCAs) > 0 {
				t.Error("the handshake names authorities: clients with other certificates hold them back")
			}
			return &pair, nil
		}})
		if sessions != nil && asked && c.ConnectionState().DidResume {
			t.Error("resumed")
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// The answer comes after the handshake on both sides.
		fmt.Fprintf(c, "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if l, _ := bufio.NewReader(c).ReadString('\n'); !strings.HasPrefix(l, "HTTP/1.1 200") {
			t.Errorf("got %q", l)
		}
		return asked
	}
	o := Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key, Domains: (&callers{}).stages()}
	g := start(t, o, plain)
	sessions = tls.NewLRUClientSessionCache(8)
	if asked(g) {
		t.Error("asked where no API wants a certificate")
	}
	g.SetAPIs([]*definition.API{wanting})
	if !asked(g) {
		t.Error("not asked after an API came that wants one")
	}
	sessions = nil
	g.SetAPIs([]*definition.API{plain})
	if asked(g) {
		t.Error("still asked after the API has gone")
	}
	o.RequestClientCertificates = true
	if !asked(start(t, o, plain)) {
		t.Error("not asked where the configuration says so")
	}
	// With authorities of its own the listener refuses strangers, until an API has certificates of its own.
	o.RequestClientCertificates, o.ClientCAFile = false, cert
	g = start(t, o, plain)
	if c, err := tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS12, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}); err == nil {
		c.Close()
		t.Error("a stranger's certificate was taken")
	}
	g.SetAPIs([]*definition.API{wanting})
	if !asked(g) {
		t.Error("not asked")
	}
}

// TestExplainOfCredentials: what is only thought of is judged as the real thing.
func TestExplainOfCredentials(t *testing.T) {
	d := &callers{certificate: []byte("cert")}
	a := secured("http://127.0.0.1:1", alternative{definition.APIKey}, alternative{definition.MutualTLS})
	g := start(t, Options{Domains: d.stages(), TrustedProxies: []string{"192.0.2.9"}, ParseCertificateHeader: parseDER}, a)
	certificate := http.Header{"X-Wso2-Client-Certificate": {base64.StdEncoding.EncodeToString([]byte("cert"))}}
	for _, c := range []struct {
		d       Description
		allowed bool
		kind    string
	}{
		{Description{Path: "/a/1/x?key=key-of-shop", ClientIP: netip.MustParseAddr("127.0.0.1")}, true, "api_key"},
		{Description{Path: "/a/1/x?key=key-of-shop", ClientIP: netip.MustParseAddr("192.0.2.1")}, false, ""},
		{Description{Path: "/a/1/x", ClientIP: netip.MustParseAddr("192.0.2.9"), Header: certificate.Clone()}, true, "mutual_tls"},
		{Description{Path: "/a/1/x", ClientIP: netip.MustParseAddr("192.0.2.1"), Header: certificate.Clone()}, false, ""},
	} {
		v := g.Explain(t.Context(), c.d)
		kind := ""
		for _, s := range v.Steps {
			if s.Step == "authenticate" {
				kind = s.Kind
			}
		}
		if v.Allowed != c.allowed || kind != c.kind {
			t.Errorf("%+v: %+v", c.d, v)
		}
	}
}

// TestLookalikesOfFieldsTheGatewayVouchesFor: backends that hand fields on as variables take X_Forwarded_For for the field of
// the gateway, in which they read who calls. Neither header nor trailer brings them one of the client's.
func TestLookalikesOfFieldsTheGatewayVouchesFor(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = json.NewEncoder(w).Encode(map[string]any{"header": r.Header, "trailer": r.Trailer})
	}))
	defer back.Close()
	for _, trusted := range []bool{false, true} {
		o := Options{Domains: (&callers{}).stages(), ParseCertificateHeader: parseDER}
		if trusted {
			o.TrustedProxies = []string{"127.0.0.1"}
		}
		g := start(t, o, anyAPI(single(back.URL)))
		for _, name := range []string{"X_Forwarded_For", "x_forwarded-for", "X.Forwarded.Proto", "X_FORWARDED_HOST", "X-Forwarded_Client_Cert", "X_WSO2_CLIENT_CERTIFICATE", "X_Request_Id"} {
			fields := "POST /a/1/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX_Own_Field: kept\r\nX_Forwarded_Fox: kept too\r\nTransfer-Encoding: chunked\r\n"
			for where, text := range map[string]string{
				"header":  fields + name + ": forged\r\n\r\n1\r\nx\r\n0\r\n\r\n",
				"trailer": fields + "Te: trailers\r\nTrailer: " + name + "\r\n\r\n1\r\nx\r\n0\r\n" + name + ": forged\r\n\r\n",
			} {
				got := raw(t, g.url, text)
				if strings.Contains(got, "forged") || !strings.Contains(got, "kept too") || !strings.Contains(got, `"kept"`) {
					t.Errorf("%s in the %s, trusted %v: %s", name, where, trusted, got)
				}
			}
		}
	}
}
