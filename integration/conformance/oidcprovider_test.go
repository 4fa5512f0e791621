//go:build conformance

package conformance

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestOIDCProvider runs oidc-provider as an issuer of the gateway's own configuration: opaque tokens, which are its default,
// asked about by every kind of client authentication, and JWTs.
func TestOIDCProvider(t *testing.T) {
	p := startOIDCProvider(t, func(gateway object) []object {
		app := func(id string, edit ...func(object)) object {
			c := object{"client_id": id, "client_secret": clientSecret, "grant_types": []string{"client_credentials"}, "redirect_uris": []string{}, "response_types": []string{}}
			for _, e := range edit {
				e(c)
			}
			return c
		}
		set := func(name string, value any) func(object) { return func(c object) { c[name] = value } }
		withoutSecret := func(c object) { delete(c, "client_secret") }
		asks := func(method string, edit ...func(object)) object {
			return app(method, append(edit, set("token_endpoint_auth_method", method))...)
		}
		return []object{
			app("mobile-app"), app("stranger"), app("short"),
			app("portal", set("grant_types", []string{"authorization_code"}), set("response_types", []string{"code"}), set("redirect_uris", []string{redirect})),
			app("bound", set("tls_client_certificate_bound_access_tokens", true)),
			asks("client_secret_basic"), asks("client_secret_post"),
			asks("private_key_jwt", withoutSecret, set("jwks", object{"keys": []object{gateway}}), set("token_endpoint_auth_signing_alg", "ES256")),
			asks("tls_client_auth", withoutSecret, set("tls_client_auth_san_dns", gatewayName)),
			app("signed", set("introspection_signed_response_alg", "PS256")),
		}
	})
	// issuer is the section of the configuration; introspection holds the keys of its client.
	issuer := func(keys, introspection string) string {
		return fmt.Sprintf(`
[[apim.jwt.issuer]]
name = %q
consumer_key_claim = "client_id"
%s
[apim.jwt.issuer.jwks]
url = "%[1]s/jwks"
ca_file = %[3]q
[apim.jwt.issuer.introspection]
url = "%[1]s/token/introspection"
%[4]s
`, p.url, keys, p.certFile, introspection)
	}
	kept := func(ttl time.Duration, more string) string {
		return fmt.Sprintf("[gateway.introspection]\nttl = %q\n%s\n", ttl, more)
	}
	basic := fmt.Sprintf("client_id = \"client_secret_basic\"\nclient_secret = %q", clientSecret)
	gateway := func(t *testing.T, sections string) *world {
		t.Helper()
		w := startWorld(t, nil, sections, func(w *world) {
			for _, client := range []string{"mobile-app", "portal", "short", "bound"} {
				w.subscribe(t, p.url, client)
			}
			w.application(t, p.url, "stranger")
		})
		t.Cleanup(func() { w.noTokens(t, clientSecret, userPassword) })
		return w
	}
	const unknown = "a-token-that-nobody-ever-gave-to-anybody-012"

	t.Run("client_secret_basic", func(t *testing.T) {
		const ttl = 2 * time.Second
		w := gateway(t, kept(ttl, "")+issuer("", basic))
		t.Run("client credentials", func(t *testing.T) {
			token := p.opaque(t, "mobile-app")
			w.wantTrace(t, token, fmt.Sprintf(`"key_manager":%q`, p.url), `"consumer_key":"mobile-app"`, `"application":"mobile-app of `)
			w.noTokens(t, token)
		})
		t.Run("authorization code", func(t *testing.T) {
			token := p.login(t, "portal", "alice")
			if strings.Contains(token, ".") {
				t.Fatal("oidc-provider gave a token with dots, want an opaque one")
			}
			w.wantTrace(t, token, `"consumer_key":"portal"`, `"user":"alice@carbon.super"`)
		})
		t.Run("no subscription", func(t *testing.T) { w.want(t, p.opaque(t, "stranger"), 403, 900908) })
		t.Run("unknown token", func(t *testing.T) { w.wantReason(t, unknown, 401, 900901, "does not know the token") })
		t.Run("JWT", func(t *testing.T) {
			before := p.introspections(t)
			for _, algorithm := range []string{"RS256", "PS256", "ES256"} {
				t.Run(algorithm, func(t *testing.T) {
					token := p.mint(t, "mobile-app", jwtResource+algorithm)
					if h := header(t, token); h["alg"] != algorithm || h["typ"] != "at+jwt" {
						t.Fatalf("header %v, want %s and at+jwt", h, algorithm)
					}
					w.wantTrace(t, token, `"consumer_key":"mobile-app"`)
				})
			}
			if n := p.introspections(t) - before; n != 0 {
				t.Errorf("%d introspections for tokens that the gateway verifies itself", n)
			}
			t.Run("without a subscription", func(t *testing.T) { w.want(t, p.mint(t, "stranger", jwtResource+"RS256"), 403, 900908) })
		})
		t.Run("many requests with one token cost one introspection", func(t *testing.T) {
			token, before := p.opaque(t, "mobile-app"), p.introspections(t)
			began := time.Now()
			if wrong := together(w, token, 200, 200); wrong != 0 {
				t.Errorf("%d of 200 requests were not answered 200", wrong)
			}
			if n, most := p.introspections(t)-before, 1+int(time.Since(began)/ttl); n < 1 || n > most {
				t.Errorf("%d introspections, want 1 to %d in %s", n, most, time.Since(began))
			}
		})
		t.Run("revoked", func(t *testing.T) {
			token := p.opaque(t, "mobile-app")
			w.want(t, token, 200, 0)
			p.revoke(t, "mobile-app", token)
			revoked := time.Now()
			eventually(t, ttl+soon, "the revoked token is refused", func() bool {
				a, err := w.call(token)
				if err != nil {
					t.Fatal(err)
				}
				return a.status == 401 && a.code == 900901
			})
			if took := time.Since(revoked); took > ttl+2*time.Second {
				t.Errorf("refused %s after it was revoked, want within the ttl of %s", took, ttl)
			}
		})
		t.Run("bound to a certificate", func(t *testing.T) {
			stolen := p.mintBound(t, "bound")
			w.wantReason(t, stolen, 401, 900901, "certificate")
		})
	})
	t.Run("expiry counts before the ttl", func(t *testing.T) {
		w := gateway(t, kept(time.Minute, "")+issuer("", basic))
		token := p.opaque(t, "short") // 3 s
		got := time.Now()
		w.want(t, token, 200, 0)
		eventually(t, 2*soon, "the token expires", func() bool {
			a, err := w.call(token)
			if err != nil {
				t.Fatal(err)
			}
			return a.status == 401 && a.code == 900901
		})
		if lived := time.Since(got); lived < 2*time.Second || lived > 3*time.Second+clockSkew+2*time.Second {
			t.Errorf("a token of 3 s lived %s", lived)
		}
	})
	for method, keys := range map[string]string{
		"client_secret_post": fmt.Sprintf("client_secret = %q", clientSecret),
		"private_key_jwt":    fmt.Sprintf("key_file = %q", p.file("gateway.key")),
		"tls_client_auth":    fmt.Sprintf("key_file = %q\ncert_file = %q", p.file("gateway.key"), p.file("gateway.crt")),
	} {
		t.Run(method, func(t *testing.T) {
			w := gateway(t, issuer("", fmt.Sprintf("auth_method = %q\nclient_id = %[1]q\n%s", method, keys)))
			w.wantTrace(t, p.opaque(t, "mobile-app"), `"consumer_key":"mobile-app"`)
			w.want(t, p.opaque(t, "mobile-app"), 200, 0) // a second assertion, a second handshake
			w.wantReason(t, unknown, 401, 900901, "does not know the token")
		})
	}
	t.Run("wrong secret", func(t *testing.T) {
		w := gateway(t, issuer("", "client_id = \"client_secret_basic\"\nclient_secret = \"not-the-secret\""))
		w.want(t, p.opaque(t, "mobile-app"), 503, 900900) // the caller did nothing wrong
		if !strings.Contains(w.log.String(), "credentials") {
			t.Error("the gateway's log does not say that its own credentials are not accepted")
		}
		w.want(t, p.mint(t, "mobile-app", jwtResource+"RS256"), 200, 0)
	})
	t.Run("audience", func(t *testing.T) {
		w := gateway(t, issuer(fmt.Sprintf("audience = [%q]", opaqueResource), basic))
		w.want(t, p.mint(t, "mobile-app", opaqueResource), 200, 0)
		w.wantReason(t, p.opaque(t, "mobile-app"), 401, 900901, "audience")
		w.wantReason(t, p.mint(t, "mobile-app", jwtResource+"RS256"), 401, 900901, "audience")
	})
	t.Run("server gone", func(t *testing.T) {
		const ttl = time.Minute
		w := gateway(t, kept(ttl, "")+issuer("", basic))
		cached, unseen := p.opaque(t, "mobile-app"), p.opaque(t, "mobile-app")
		jwt := p.mint(t, "mobile-app", jwtResource+"ES256")
		w.want(t, cached, 200, 0)
		w.want(t, jwt, 200, 0)
		p.stop()
		w.want(t, cached, 200, 0)
		w.want(t, jwt, 200, 0)
		for i := range 6 { // the breaker opens at the fifth
			began := time.Now()
			w.want(t, fmt.Sprintf("%s-%d", unseen, i), 503, 900900)
			if took := time.Since(began); took > introspectionTimeout+time.Second {
				t.Errorf("the answer took %s, want less than %s", took, introspectionTimeout)
			}
		}
		quickest := time.Hour
		for i := range 5 {
			began := time.Now()
			w.want(t, fmt.Sprintf("%s-again-%d", unseen, i), 503, 900900)
			quickest = min(quickest, time.Since(began))
		}
		if quickest > 50*time.Millisecond {
			t.Errorf("with the breaker open the quickest of five answers took %s, want < 50 ms", quickest)
		}
		w.want(t, cached, 200, 0)
		p.start(t, false)
		eventually(t, soon, "tokens of the server that came back are accepted", func() bool {
			a, err := w.call(p.opaque(t, "mobile-app"))
			return err == nil && a.status == 200
		})
		w.want(t, unseen, 401, 900901) // the server has forgotten it
		w.want(t, cached, 200, 0)      // and this one, but the gateway knows its expiry
	})
	t.Run("server gone, stale answers wanted", func(t *testing.T) {
		const ttl = time.Second
		w := gateway(t, kept(ttl, "on_unavailable = \"serve_stale\"\nstale_ttl = \"1m\"")+issuer("", basic))
		cached, unseen := p.opaque(t, "mobile-app"), p.opaque(t, "mobile-app")
		w.want(t, cached, 200, 0)
		p.stop()
		time.Sleep(2 * ttl)
		w.want(t, cached, 200, 0)
		w.want(t, unseen, 503, 900900)
		p.start(t, false)
		eventually(t, soon, "the server, which has forgotten the token, is believed again", func() bool {
			a, err := w.call(cached)
			return err == nil && a.status == 401
		})
	})
	t.Run("answers in a JWT", func(t *testing.T) {
		p.stop()
		p.start(t, true)
		w := gateway(t, issuer("", fmt.Sprintf("client_id = \"signed\"\nclient_secret = %q", clientSecret)))
		status, body := p.post(t, "/token/introspection", "signed", url.Values{"token": {p.opaque(t, "mobile-app")}})
		if h := header(t, string(body)); status != 200 || h["typ"] != "token-introspection+jwt" || h["alg"] != "PS256" {
			t.Fatalf("oidc-provider answers %d with header %v, want a signed answer", status, h)
		}
		w.wantTrace(t, p.opaque(t, "mobile-app"), `"consumer_key":"mobile-app"`)
		w.want(t, p.mint(t, "mobile-app", opaqueResource), 200, 0) // its aud is not the gateway
		w.wantReason(t, unknown, 401, 900901, "does not know the token")
	})
}

// together sends n requests with one token at once, and returns how many were not answered with the status.
func together(w *world, token string, n, status int) int64 {
	var wrong atomic.Int64
	var work sync.WaitGroup
	for range n {
		work.Go(func() {
			if a, err := w.call(token); err != nil || a.status != status {
				wrong.Add(1)
			}
		})
	}
	work.Wait()
	return wrong.Load()
}

// mintBound gets a token that is bound to the gateway's certificate (RFC 8705).
func (p *oidcProvider) mintBound(t *testing.T, client string) string {
	t.Helper()
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.roots, Certificates: []tls.Certificate{p.own}}}}
	defer c.CloseIdleConnections()
	plain := p.client
	p.client = c
	defer func() { p.client = plain }()
	token := p.opaque(t, client)
	status, body := p.post(t, "/token/introspection", "client_secret_basic", url.Values{"token": {token}})
	if status != 200 || !strings.Contains(string(body), "x5t#S256") {
		t.Fatalf("the token is not bound to a certificate: %d %s", status, body)
	}
	return token
}
