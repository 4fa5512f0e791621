//go:build conformance

package conformance

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/harness"
)

// How long the gateway and this test may take for things that should be instant on an idle machine.
const (
	soon      = 10 * time.Second
	clockSkew = 5 * time.Second  // of the gateway, by default
	keyPause  = 10 * time.Second // between fetches for unknown key IDs

	introspectionTTL     = 2 * time.Second // as the tests configure it for Keycloak
	introspectionTimeout = 2 * time.Second // of the gateway
)

// announced is the name of the key manager of a realm in the API Manager.
func announced(realm string) string { return "Keycloak " + realm }

// TestKeycloak runs a real Keycloak whose realms are key managers, as the API Manager's Keycloak connector announces them,
// and the whole gateway in front of a backend.
func TestKeycloak(t *testing.T) {
	k := startKeycloak(t)
	const (
		shop, turning, elsewhere = "shop", "turning", "elsewhere"
		lightly                  = "lightly"          // its tokens are asked about
		strict, doomed           = "strict", "doomed" // this and the next are issuers of the gateway's own configuration
		brisk, asserted          = "brisk", "asserted"
		refresh                  = 3 * time.Second
		maxStale                 = keyPause + 2*time.Second
	)
	// The algorithm is that of a realm, or in the realm shop, which keeps the keys that Keycloak gives it, of a client.
	signed := map[string]string{"RS256": shop, "PS256": "ps256", "ES256": "es256", "EdDSA": "eddsa"}
	ofClient := []string{"RS512", "PS384", "ES384", "ES512"}
	for algorithm, realm := range signed {
		if realm != shop {
			k.createRealm(t, realm, algorithm, client("mobile-app"))
		}
	}
	clients := []object{
		client("mobile-app"), client("stranger"), client("unmapped"), client("closing"), client("short", attribute("access.token.lifespan", "3")),
	}
	for _, algorithm := range ofClient {
		clients = append(clients, client(algorithm, attribute("access.token.signed.response.alg", algorithm)))
	}
	k.createRealm(t, shop, "", clients...)
	for _, algorithm := range ofClient {
		k.addKey(t, shop, algorithm, algorithm, 50)
	}
	k.createRealm(t, turning, "RS256", client("mobile-app"))
	k.createRealm(t, elsewhere, "ES256", client("mobile-app"))
	k.createRealm(t, strict, "ES256", client("right", audience("https://api.example.com")), client("wrong", audience("https://other.example.com")))
	k.createRealm(t, doomed, "ES256", client("mobile-app"))
	k.createRealm(t, brisk, "RS256", client("mobile-app"))
	own, _ := harness.Certificate(t, "gateway")
	ownKey := filepath.Join(t.TempDir(), "gateway.key")
	writeKey(t, ownKey, own.PrivateKey)
	k.createRealm(t, asserted, "ES256", client("gatehouse", signsIn(t, jwkOf(t, own.PrivateKey))), client("mobile-app", lightweight, introspectedBy("gatehouse")))
	k.createRealm(t, lightly, "ES256", client("gatehouse"), client("mobile-app", lightweight, introspectedBy("gatehouse")),
		client("stranger", lightweight, introspectedBy("gatehouse")), client("closing", lightweight, introspectedBy("gatehouse")),
		client("secretive", lightweight))

	authority := filepath.Join(t.TempDir(), "keycloak.crt")
	write(t, authority, k.authority)
	issuer := func(realm, keys, jwks string) string {
		return fmt.Sprintf(`
[[apim.jwt.issuer]]
name = %q
validate_subscriptions = false
%s
[apim.jwt.issuer.jwks]
ca_file = %q
%s
`, k.realm(realm), keys, authority, jwks)
	}
	published := func(realm string) string {
		return fmt.Sprintf("url = %q\n", k.realm(realm)+"/protocol/openid-connect/certs")
	}
	sections := fmt.Sprintf("[gateway.introspection]\nttl = %q\n", introspectionTTL) +
		issuer(strict, `audience = ["https://api.example.com"]`, published(strict)) +
		issuer(doomed, fmt.Sprintf("jwks_max_stale = %q", maxStale), published(doomed)) +
		issuer(brisk, "", published(brisk)+fmt.Sprintf("refresh_interval = %q\n", refresh)) +
		issuer(asserted, "", fmt.Sprintf(`
[apim.jwt.issuer.introspection]
url = "%s/protocol/openid-connect/token/introspect"
auth_method = "private_key_jwt"
client_id = "gatehouse"
key_file = %q
`, k.realm(asserted), ownKey))
	w := startWorld(t, k.authority, sections, func(w *world) {
		for _, realm := range append([]string{turning}, values(signed)...) {
			if _, err := w.emu.PutKeyManager(emulator.KeyManager{Name: announced(realm), Type: "KeyCloak", Configuration: k.configuration(realm)}); err != nil {
				t.Fatal(err)
			}
			w.subscribe(t, announced(realm), "mobile-app")
		}
		w.subscribe(t, announced(shop), "short")
		w.subscribe(t, announced(shop), "closing")
		w.application(t, announced(shop), "stranger")
		for _, algorithm := range ofClient {
			w.subscribe(t, announced(shop), algorithm)
		}
		conf := k.configuration(lightly, func(c object) { c["self_validate_jwt"] = false })
		if _, err := w.emu.PutKeyManager(emulator.KeyManager{Name: announced(lightly), Type: "KeyCloak", Configuration: conf}); err != nil {
			t.Fatal(err)
		}
		for _, client := range []string{"mobile-app", "closing", "secretive"} {
			w.subscribe(t, announced(lightly), client)
		}
	})
	mint := func(t *testing.T, client string) string { t.Helper(); return k.mint(t, shop, client) }

	t.Run("client credentials", func(t *testing.T) {
		w.wantTrace(t, mint(t, "mobile-app"), `"key_manager":"Keycloak shop"`, `"consumer_key":"mobile-app"`, `"user":"service-account-mobile-app@carbon.super"`,
			`"application":"mobile-app of Keycloak shop"`)
	})
	t.Run("password", func(t *testing.T) {
		g := k.login(t, shop, "mobile-app")
		w.wantTrace(t, g.Access, `"consumer_key":"mobile-app"`, `"user":"alice@carbon.super"`)
		t.Run("the refresh token and the ID token are no access tokens", func(t *testing.T) {
			// Keycloak signs refresh tokens with a key of its own, HS512, and ID tokens as it does access tokens.
			w.wantReason(t, g.Refresh, 401, 900901, "algorithm")
			if keyID(t, g.ID) != keyID(t, g.Access) {
				t.Fatal("the ID token is of another key")
			}
			w.want(t, g.ID, 401, 900901)
		})
		w.noTokens(t, g.Access, g.Refresh, g.ID, userPassword)
	})
	t.Run("no subscription", func(t *testing.T) {
		w.want(t, mint(t, "stranger"), 403, 900908)
		w.want(t, mint(t, "unmapped"), 403, 900908)
	})
	t.Run("subscribed while running", func(t *testing.T) {
		token := mint(t, "stranger")
		app := w.emu.Rows().Applications
		for _, a := range app {
			if a.Name == "stranger of "+announced(shop) {
				if _, err := w.emu.Subscribe(emulator.Subscription{APIUUID: w.api.UUID, AppID: a.ID, PolicyID: "Unlimited", SubscriptionState: "UNBLOCKED"}); err != nil {
					t.Fatal(err)
				}
			}
		}
		eventually(t, soon, "the new subscription admits", func() bool { a, err := w.call(token); return err == nil && a.status == 200 })
	})
	t.Run("another realm", func(t *testing.T) {
		token := k.mint(t, elsewhere, "mobile-app")
		w.wantReason(t, token, 401, 900901, "issuer")
		t.Run("that claims to be ours", func(t *testing.T) {
			parts, ours := strings.Split(token, "."), claims(t, token)
			ours["iss"] = k.realm(shop)
			parts[1] = encodeJSON(t, ours)
			w.want(t, strings.Join(parts, "."), 401, 900901)
			// And under the key ID of the right realm.
			parts[0] = strings.Split(mint(t, "mobile-app"), ".")[0]
			w.wantReason(t, strings.Join(parts, "."), 401, 900901, "signature")
		})
		t.Run("until it is announced", func(t *testing.T) {
			if _, err := w.emu.PutKeyManager(emulator.KeyManager{Name: announced(elsewhere), Type: "KeyCloak", Configuration: k.configuration(elsewhere)}); err != nil {
				t.Fatal(err)
			}
			w.subscribe(t, announced(elsewhere), "mobile-app")
			eventually(t, soon, "the new key manager is known", func() bool { a, err := w.call(token); return err == nil && a.status == 200 })
			if err := w.emu.DeleteKeyManager("", announced(elsewhere)); err != nil {
				t.Fatal(err)
			}
			eventually(t, soon, "the key manager is forgotten", func() bool { a, err := w.call(token); return err == nil && a.status == 401 })
		})
	})
	t.Run("algorithms", func(t *testing.T) {
		check := func(algorithm, realm, client string) {
			t.Run(algorithm, func(t *testing.T) {
				token := k.mint(t, realm, client)
				if got := header(t, token)["alg"]; got != algorithm {
					t.Fatalf("Keycloak signs with %v, want %s", got, algorithm)
				}
				w.wantTrace(t, token, fmt.Sprintf(`"key_manager":%q`, announced(realm)))
				b := []byte(token)
				b[len(b)-10] ^= 1 // of the signature
				w.want(t, string(b), 401, 900901)
			})
		}
		for algorithm, realm := range signed {
			check(algorithm, realm, "mobile-app")
		}
		for _, algorithm := range ofClient {
			check(algorithm, shop, algorithm)
		}
		// Keycloak publishes a key for encryption too, which verifies nothing.
		if got := w.keys(t, announced(shop)); len(got.Keys) != 1+len(ofClient) {
			t.Errorf("the gateway holds %d keys of the realm: %+v, want those that sign: %d", len(got.Keys), got.Keys, 1+len(ofClient))
		}
	})
	t.Run("what the gateway says of tokens", func(t *testing.T) {
		for name, c := range map[string]struct {
			token string
			want  verdict
			user  any
		}{
			"JWT":           {k.login(t, shop, "mobile-app").Access, verdict{Valid: true, KeyManager: announced(shop)}, "alice"},
			"lightweight":   {k.login(t, lightly, "mobile-app").Access, verdict{Valid: true, KeyManager: announced(lightly)}, "alice"},
			"another realm": {k.mint(t, elsewhere, "mobile-app"), verdict{Failed: "issuer"}, nil},
			"audience":      {k.mint(t, strict, "wrong"), verdict{Failed: "audience", KeyManager: k.realm(strict)}, nil},
			"not for us":    {k.mint(t, lightly, "secretive"), verdict{Failed: "inactive", KeyManager: announced(lightly)}, nil},
		} {
			t.Run(name, func(t *testing.T) {
				got := w.verify(t, c.token)
				if user := got.Claims["http://wso2.org/claims/enduser"]; user != c.user {
					t.Errorf("the user is %v, want %v", user, c.user)
				}
				if got.Claims = nil; !reflect.DeepEqual(got, c.want) {
					t.Errorf("the gateway says %+v, want %+v", got, c.want)
				}
			})
		}
	})
	t.Run("audience", func(t *testing.T) {
		w.want(t, k.mint(t, strict, "right"), 200, 0)
		w.wantReason(t, k.mint(t, strict, "wrong"), 401, 900901, "audience")
	})
	t.Run("clock skew", func(t *testing.T) { testClockSkew(t, k, w) })
	t.Run("client disabled", func(t *testing.T) {
		token, unseen := mint(t, "closing"), mint(t, "closing")
		w.want(t, token, 200, 0)
		k.setEnabled(t, shop, "closing", false)
		if _, err := k.grant(shop, credentials("closing", "grant_type", "client_credentials")); err == nil {
			t.Fatal("Keycloak gives the disabled client a token")
		}
		// A JWT that the gateway verifies itself is good until it expires: that is the bargain of self-contained tokens.
		w.want(t, token, 200, 0)
		w.want(t, unseen, 200, 0)
	})
	t.Run("unknown key IDs", func(t *testing.T) { testUnknownKeyIDs(t, k, w, signed["ES256"]) })
	t.Run("rotation", func(t *testing.T) { testRotation(t, k, w, turning) })
	t.Run("withdrawn key", func(t *testing.T) {
		// No token of another key comes to make the gateway look: the refresh interval alone does.
		old := k.mint(t, brisk, "mobile-app")
		w.want(t, old, 200, 0)
		k.addKey(t, brisk, "second", "RS256", 200)
		k.disableKey(t, brisk, "first")
		withdrawn := time.Now()
		eventually(t, refresh+soon, "the token of the withdrawn key is refused", func() bool {
			a, err := w.call(old)
			return err == nil && a.status == 401 && a.code == 900901
		})
		if took := time.Since(withdrawn); took > refresh+2*time.Second {
			t.Errorf("refused %s after the key was withdrawn, want within the refresh interval of %s", took, refresh)
		}
		w.want(t, k.mint(t, brisk, "mobile-app"), 200, 0)
	})
	t.Run("introspection by private_key_jwt", func(t *testing.T) {
		w.wantTrace(t, k.mint(t, asserted, "mobile-app"), `"consumer_key":"mobile-app"`)
		w.want(t, k.mint(t, asserted, "mobile-app"), 200, 0) // a second assertion
	})
	t.Run("introspection", func(t *testing.T) { testKeycloakIntrospection(t, k, w, lightly) })
	t.Run("realm removed", func(t *testing.T) { testRealmRemoved(t, k, w, turning, doomed, maxStale) })
	t.Run("server killed and started again", func(t *testing.T) {
		cached, unseen := mint(t, "mobile-app"), mint(t, "mobile-app")
		light, unseenLight := k.mint(t, lightly, "mobile-app"), k.mint(t, lightly, "mobile-app")
		w.want(t, cached, 200, 0)
		w.want(t, light, 200, 0)
		answered := time.Now()
		k.kill()
		a, err := w.call(light)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != 200 && time.Since(answered) < introspectionTTL {
			t.Errorf("%s after the answer about a token: %v, want 200 for %s", time.Since(answered), a, introspectionTTL)
		}
		began := time.Now()
		w.want(t, unseenLight, 503, 900900)
		if took := time.Since(began); took > introspectionTimeout+time.Second {
			t.Errorf("the answer took %s, want less than %s", took, introspectionTimeout)
		}
		if _, err := k.grant(shop, credentials("mobile-app", "grant_type", "client_credentials")); err == nil {
			t.Fatal("a killed Keycloak answers")
		}
		w.want(t, cached, 200, 0)
		w.want(t, unseen, 200, 0) // never seen before, but the keys are held
		k.start(t)
		w.want(t, mint(t, "mobile-app"), 200, 0)
		w.want(t, cached, 200, 0)
		eventually(t, soon, "tokens from before are introspected again", func() bool { a, err := w.call(unseenLight); return err == nil && a.status == 200 })
	})
	t.Run("realm of introspected tokens removed", func(t *testing.T) {
		token := k.mint(t, lightly, "mobile-app")
		w.want(t, token, 200, 0)
		k.admin(t, http.MethodDelete, "/"+lightly, nil, nil)
		eventually(t, introspectionTTL+soon, "nobody can be asked about the token", func() bool {
			a, err := w.call(token)
			return err == nil && a.status == 503 && a.code == 900900
		})
	})
	w.noTokens(t, clientSecret, userPassword)
}

// testKeycloakIntrospection sends tokens that the gateway asks Keycloak about, as self_validate_jwt=false says.
func testKeycloakIntrospection(t *testing.T, k *keycloak, w *world, realm string) {
	// refused waits until a token that was good is refused, which must be so once the answer about it is too old.
	refused := func(t *testing.T, token string) {
		t.Helper()
		since := time.Now()
		eventually(t, introspectionTTL+soon, "the token is refused", func() bool {
			a, err := w.call(token)
			if err != nil {
				t.Fatal(err)
			}
			return a.status == 401 && a.code == 900901 && strings.Contains(a.reason, "does not know the token")
		})
		if took := time.Since(since); took > introspectionTTL+3*time.Second {
			t.Errorf("refused after %s, want within the ttl of %s", took, introspectionTTL)
		}
	}
	t.Run("lightweight token", func(t *testing.T) {
		token := k.mint(t, realm, "mobile-app")
		if _, says := claims(t, token)["preferred_username"]; says {
			t.Fatal("the token says who the user is: it is no lightweight one")
		}
		w.wantTrace(t, token, `"key_manager":"Keycloak lightly"`, `"consumer_key":"mobile-app"`, `"user":"service-account-mobile-app@carbon.super"`)
	})
	t.Run("no subscription", func(t *testing.T) { w.want(t, k.mint(t, realm, "stranger"), 403, 900908) })
	t.Run("forged", func(t *testing.T) {
		parts := strings.Split(k.mint(t, realm, "mobile-app"), ".")
		parts[1] = encodeJSON(t, object{"iss": k.realm(realm), "azp": "mobile-app", "exp": time.Now().Unix() + 300, "sub": "mallory"})
		w.want(t, strings.Join(parts, "."), 401, 900901)
	})
	t.Run("not meant for the gateway", func(t *testing.T) {
		// Keycloak tells a client about tokens that name it in aud, and of others says that they are not active.
		w.wantReason(t, k.mint(t, realm, "secretive"), 401, 900901, "does not know the token")
	})
	t.Run("revoked", func(t *testing.T) {
		token := k.mint(t, realm, "mobile-app")
		w.want(t, token, 200, 0)
		if status, body, err := k.post(realm, "revoke", credentials("mobile-app", "token", token)); err != nil || status != 200 {
			t.Fatalf("revocation: %d %s, %v", status, body, err)
		}
		refused(t, token)
	})
	t.Run("signed out", func(t *testing.T) {
		g := k.login(t, realm, "mobile-app")
		w.wantTrace(t, g.Access, `"user":"alice@carbon.super"`)
		if status, body, err := k.post(realm, "logout", credentials("mobile-app", "refresh_token", g.Refresh)); err != nil || status != 204 {
			t.Fatalf("sign-out: %d %s, %v", status, body, err)
		}
		refused(t, g.Access)
	})
	t.Run("client disabled", func(t *testing.T) {
		token := k.mint(t, realm, "closing")
		w.want(t, token, 200, 0)
		k.setEnabled(t, realm, "closing", false)
		refused(t, token)
	})
	t.Run("many requests with one token", func(t *testing.T) {
		if wrong := together(w, k.mint(t, realm, "mobile-app"), 100, 200); wrong != 0 {
			t.Errorf("%d of 100 requests were not answered 200", wrong)
		}
	})
}

// testClockSkew has Keycloak make tokens that are just about to expire and that are not valid yet.
func testClockSkew(t *testing.T, k *keycloak, w *world) {
	const realm = "shop"
	notBefore := func(id string, at time.Time) string {
		k.admin(t, http.MethodPost, "/"+realm+"/clients", client(id, mapper("nbf", "oidc-hardcoded-claim-mapper", object{
			"claim.name": "nbf", "claim.value": fmt.Sprint(at.Unix()), "jsonType.label": "long", "access.token.claim": "true",
		})), nil)
		w.subscribe(t, announced(realm), id)
		token := k.mint(t, realm, id)
		if got := claims(t, token)["nbf"]; got != float64(at.Unix()) {
			t.Fatalf("nbf is %v, want %d", got, at.Unix())
		}
		return token
	}
	t.Run("valid in a moment", func(t *testing.T) {
		token := notBefore("early", time.Now().Add(clockSkew+4*time.Second))
		from, _ := claims(t, token)["nbf"].(float64)
		sawEarly := false
		eventually(t, 2*soon, "the token becomes valid", func() bool {
			asked := time.Now()
			a, err := w.call(token)
			if err != nil {
				t.Fatal(err)
			}
			switch a.status {
			case 401:
				sawEarly = true
				if asked.After(time.Unix(int64(from), 0).Add(-clockSkew + time.Second)) {
					t.Errorf("refused %s before nbf: %v", time.Until(time.Unix(int64(from), 0)), a)
				}
				if !strings.Contains(a.reason, "not valid") && !strings.Contains(a.reason, "not yet") {
					t.Errorf("the challenge says %q, want that the token is not valid yet", a.reason)
				}
			case 200:
				if time.Now().Before(time.Unix(int64(from), 0).Add(-clockSkew - time.Second)) {
					t.Errorf("admitted %s before nbf", time.Until(time.Unix(int64(from), 0)))
				}
			}
			return a.status == 200
		})
		if !sawEarly {
			t.Log("the machine was too slow to see the token refused before its time")
		}
	})
	t.Run("valid in ten minutes", func(t *testing.T) {
		w.want(t, notBefore("tomorrow", time.Now().Add(10*time.Minute)), 401, 900901)
	})
	t.Run("expired", func(t *testing.T) {
		token := k.mint(t, realm, "short")
		end := expiry(t, token)
		if life := time.Until(end); life > 4*time.Second {
			t.Fatalf("the token lives %s, want 3 s", life)
		}
		w.want(t, token, 200, 0)
		late := false
		eventually(t, 2*soon, "the token expires", func() bool {
			asked := time.Now()
			a, err := w.call(token)
			if err != nil {
				t.Fatal(err)
			}
			if a.status == 200 {
				late = late || asked.After(end)
				if asked.After(end.Add(clockSkew)) {
					t.Fatalf("admitted %s after its end", time.Since(end))
				}
				return false
			}
			if a.status != 401 || a.code != 900901 || !strings.Contains(a.reason, "expired") {
				t.Fatalf("answer %v, want 401/900901 that says expired", a)
			}
			if time.Now().Before(end.Add(clockSkew)) {
				t.Fatalf("refused %s before the skew was over", time.Until(end.Add(clockSkew)))
			}
			return true
		})
		if !late {
			t.Error("not admitted once between its end and the skew")
		}
	})
}

// testUnknownKeyIDs sends tokens under key IDs that no key has. Only Keycloak could know them: it is asked once.
func testUnknownKeyIDs(t *testing.T, k *keycloak, w *world, realm string) {
	parts := strings.Split(k.mint(t, realm, "mobile-app"), ".")
	before := w.keys(t, announced(realm)).Fetches
	h := part(t, strings.Join(parts, "."), 0)
	const forged = 200
	began := time.Now()
	var work sync.WaitGroup
	var wrong atomic.Int64
	for i := range forged {
		h["kid"] = fmt.Sprintf("forged-%d", i)
		token := encodeJSON(t, h) + "." + parts[1] + "." + parts[2]
		work.Go(func() {
			if a, err := w.call(token); err != nil || a.status != 401 || a.code != 900901 {
				wrong.Add(1)
			}
		})
	}
	work.Wait()
	if n := wrong.Load(); n != 0 {
		t.Errorf("%d of %d forged tokens were not answered 401/900901", n, forged)
	}
	most := 1 + int(time.Since(began)/keyPause)
	if got := w.keys(t, announced(realm)).Fetches - before; got < 1 || got > most {
		t.Errorf("%d fetches for %d unknown key IDs in %s, want 1 to %d", got, forged, time.Since(began), most)
	}
	w.want(t, strings.Join(parts, "."), 200, 0)
}

// testRotation changes the key of a realm while traffic runs: a new key signs, then the old one is withdrawn.
func testRotation(t *testing.T, k *keycloak, w *world, realm string) {
	stop := make(chan struct{})
	var work sync.WaitGroup
	var sent, minted atomic.Int64
	for range 4 {
		work.Go(func() {
			for {
				g, err := k.grant(realm, credentials("mobile-app", "grant_type", "client_credentials"))
				if err != nil {
					t.Errorf("no token while the key turns: %v", err)
					return
				}
				minted.Add(1)
				for range 20 {
					select {
					case <-stop:
						return
					case <-time.After(10 * time.Millisecond):
					}
					a, err := w.call(g.Access)
					if err != nil || a.status != 200 {
						t.Errorf("a valid request while the key turns: %v, %v", a, err)
						return
					}
					sent.Add(1)
				}
			}
		})
	}
	ended := sync.OnceFunc(func() { close(stop); work.Wait() })
	defer ended()

	old := k.mint(t, realm, "mobile-app")
	first := keyID(t, old)
	w.want(t, old, 200, 0)
	before := w.keys(t, announced(realm)).Fetches

	// Keycloak publishes the key and signs with it in the same moment: the first token of it makes the gateway fetch.
	k.addKey(t, realm, "second", "RS256", 200)
	turned := time.Now()
	token := k.mint(t, realm, "mobile-app")
	second := keyID(t, token)
	if second == first {
		t.Fatal("Keycloak still signs with the old key")
	}
	w.want(t, token, 200, 0)
	w.want(t, old, 200, 0) // the old one is still published
	if got := w.keys(t, announced(realm)); got.Fetches-before != 1 || !got.holds(first) || !got.holds(second) {
		t.Errorf("after the first turn: %+v, want one fetch and both keys", got)
	}

	// The old key is withdrawn. The gateway hears of it at its next fetch, which here the third key causes.
	unseen := k.mint(t, realm, "mobile-app")
	k.disableKey(t, realm, "first")
	time.Sleep(time.Until(turned.Add(keyPause + 2*time.Second))) // so that the next unknown key ID may cause a fetch
	k.addKey(t, realm, "third", "RS256", 300)
	token = k.mint(t, realm, "mobile-app")
	third := keyID(t, token)
	w.want(t, token, 200, 0)
	w.wantReason(t, old, 401, 900901, "key") // though it was verified before, and kept
	w.want(t, unseen, 200, 0)                // of the second key, which is still published
	if got := w.keys(t, announced(realm)); got.holds(first) || !got.holds(second) || !got.holds(third) {
		t.Errorf("after the second turn the gateway holds %+v, want the second and the third key", got.Keys)
	}
	time.Sleep(time.Second)
	ended()
	t.Logf("%d requests with %d tokens while the key turned twice; %d fetches of the key set", sent.Load(), minted.Load(), w.keys(t, announced(realm)).Fetches-before)
	if sent.Load() < 200 {
		t.Errorf("%d requests while the key turned: that is no traffic", sent.Load())
	}
}

// testRealmRemoved deletes realms. The key server answers 404 then, which says nothing about tokens: the keys held are kept
// until they are too old.
func testRealmRemoved(t *testing.T, k *keycloak, w *world, long, short string, maxStale time.Duration) {
	kept, cached, unseen := k.mint(t, long, "mobile-app"), k.mint(t, short, "mobile-app"), k.mint(t, short, "mobile-app")
	w.want(t, kept, 200, 0)
	w.want(t, cached, 200, 0) // fetches, where the set is too old by now
	k.admin(t, http.MethodDelete, "/"+short, nil, nil)
	removed := time.Now()
	w.want(t, unseen, 200, 0)
	k.admin(t, http.MethodDelete, "/"+long, nil, nil)
	eventually(t, maxStale+soon, "the keys of the removed realm are too old", func() bool {
		a, err := w.call(cached)
		if err != nil {
			t.Fatal(err)
		}
		if a.status == 200 {
			return false
		}
		if a.status != 503 || a.code != 900900 {
			t.Fatalf("answer %v, want 503/900900: whether the token is good cannot be told", a)
		}
		return true
	})
	if kept := time.Since(removed); kept > maxStale+5*time.Second {
		t.Errorf("the keys of a removed realm were used for %s, want %s from the last fetch", kept, maxStale)
	}
	if got := w.keys(t, k.realm(short)); !strings.Contains(got.LastError, "404") {
		t.Errorf("the gateway says of the key server %q, want that it answers 404", got.LastError)
	}
	w.want(t, kept, 200, 0) // the API Manager's key managers keep their keys for a day
}

func encodeJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func values(m map[string]string) []string {
	var list []string
	for _, v := range m {
		list = append(list, v)
	}
	return list
}
