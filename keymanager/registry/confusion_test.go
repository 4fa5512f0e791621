package registry

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

// Attacks that need more than one key manager, or more than one way to verify.

func TestPublicKeyIsNoSecretOfAnIssuerThatHasOne(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) { km.SharedSecret = "0123456789abcdef0123456789abcdef" })
	der, err := x509.MarshalPKIXPublicKey(rsaKey().Public())
	must(err)
	ec, err := x509.MarshalPKIXPublicKey(ecKey().Public())
	must(err)
	for name, secret := range map[string][]byte{
		"RSA PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "RSA DER": der, "RSA modulus": rsaKey().N.Bytes(),
		"EC PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: ec}), "EC DER": ec, "empty": {},
	} {
		for _, kid := range []string{"r1", "e1", ""} {
			signed := raw64([]byte(`{"alg":"HS256","kid":"`+kid+`"}`)) + "." + raw64([]byte(f.payload()))
			m := hmac.New(sha256.New, secret)
			m.Write([]byte(signed))
			if _, _, err := f.auth(signed + "." + raw64(m.Sum(nil))); err == nil {
				t.Errorf("%s with kid %q was accepted", name, kid)
			}
		}
	}
	f.accept(f.token())
}

func TestAudienceAndIssuerConfusionBetweenKeyManagers(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) { km.Audience = []string{"gateway-a"} })
	theirs := newKeyServer(t, jwk("r1", rsaOther(), nil), jwk("k2", rsaOther(), nil))
	b := f.keyManager()
	b.Name, b.Issuer, b.JWKSURL, b.SkipTLSVerify, b.Audience = "B", "https://b.example.test", theirs.URL, true, []string{"gateway-b"}
	f.Put(b)
	c := b
	c.Name, c.Issuer, c.Tenant = "C", "https://c.example.test", "other.example"
	f.Put(c)
	byA := func(change ...any) string {
		return sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "r1"}, f.claims(change...))
	}
	byB := func(kid string, change ...any) string {
		return sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": kid}, f.claims(change...))
	}
	f.accept(byA("aud", "gateway-a"))
	f.accept(byB("k2", "iss", b.Issuer, "aud", "gateway-b"))
	for _, tt := range []struct {
		name, token string
		check       keymanager.Check
	}{
		{"A's token for B's audience", byA("aud", "gateway-b"), keymanager.CheckAudience},
		{"B's token for A's audience", byB("r1", "iss", b.Issuer, "aud", "gateway-a"), keymanager.CheckAudience},
		{"B signs as A with B's kid", byB("k2", "aud", "gateway-a"), keymanager.CheckKey},
		{"B signs as A with a kid of both", byB("r1", "aud", "gateway-a"), keymanager.CheckSignature},
		{"A signs as B", byA("iss", b.Issuer, "aud", "gateway-b"), keymanager.CheckSignature},
		{"A signs as both", byA("iss", []string{issuer, b.Issuer}, "aud", "gateway-a"), keymanager.CheckIssuer},
		{"A's issuer with a blank", byA("iss", issuer+" ", "aud", "gateway-a"), keymanager.CheckIssuer},
		{"A's issuer as another URL of the same place", byA("iss", strings.Replace(issuer, "/oauth2", "/x/../oauth2", 1), "aud", "gateway-a"), keymanager.CheckIssuer},
		{"a key manager of another tenant", byB("k2", "iss", c.Issuer, "aud", "gateway-b"), keymanager.CheckIssuer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			f.refuse(tt.token, tt.check)
			f.refuse(tt.token, tt.check)
		})
	}
}

func TestNestedJWT(t *testing.T) {
	f := newFixture(t)
	good := f.token()
	for name, token := range map[string]string{
		"a token as the payload":            rawToken(`{"alg":"RS256","kid":"r1"}`, good),
		"a token as the payload, announced": rawToken(`{"alg":"RS256","kid":"r1","cty":"JWT"}`, good),
		"a token as a JSON text":            rawToken(`{"alg":"RS256","kid":"r1"}`, `"`+good+`"`),
		"an encrypted one around it":        "eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIiwiY3R5IjoiSldUIn0..AAAAAAAAAAAAAAAA." + raw64([]byte(good)) + ".AAAA",
		"a header inside the payload":       raw64([]byte(`{"alg":"none"}`)) + "." + strings.ReplaceAll(good, ".", "-") + ".",
		"two tokens in a row":               good + good,
		"two tokens with a dot":             good + "." + good,
	} {
		if tok, _, err := f.auth(token); err == nil {
			t.Errorf("%s: accepted as %+v", name, tok)
		}
	}
}

func TestWhitespaceInAndAroundTokens(t *testing.T) {
	f := newFixture(t)
	good := f.token()
	part := strings.Split(good, ".")
	for name, token := range map[string]string{
		"blank before": " " + good, "blank after": good + " ", "tab after": good + "\t", "line end after": good + "\n", "CRLF after": good + "\r\n",
		"zero byte after": good + "\x00", "no-break space after": good + "\u00a0", "blank around the dot": part[0] + " ." + part[1] + "." + part[2],
		"line end in the header": part[0][:8] + "\n" + part[0][8:] + "." + part[1] + "." + part[2],
		"CR in the payload":      part[0] + "." + part[1][:8] + "\r" + part[1][8:] + "." + part[2],
		"blank in the signature": part[0] + "." + part[1] + "." + part[2][:8] + " " + part[2][8:], "only blanks": "   ", "a comma and another": good + "," + good,
		"scheme twice": "Bearer " + good,
	} {
		if _, _, err := f.auth(token); !errors.Is(err, keymanager.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Blanks inside of the JSON that was signed are the issuer's own.
	f.accept(rawToken("{ \"alg\" : \"RS256\" ,\n\t\"kid\":\"r1\" }", " "+f.payload()+"\n"))
}

// A JWT that fails is refused, and not shown to a key manager that introspects, even one that claims every token.
func TestAFailedJWTIsNotIntrospected(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{}, func(km *keymanager.KeyManager) {
		km.TokenFormats = []keymanager.TokenFormat{{Type: "REFERENCE", Pattern: "(?s).*"}}
	})
	good := f.token()
	for _, tt := range []struct {
		name, token string
		check       keymanager.Check
	}{
		{"another's signature", sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r1"}, f.claims()), keymanager.CheckSignature},
		{"unsigned", raw64([]byte(`{"alg":"none"}`)) + "." + raw64([]byte(f.payload())) + ".", keymanager.CheckAlgorithm},
		{"expired", f.token("exp", 1), keymanager.CheckExpired},
		{"of another issuer", f.token("iss", "https://x"), keymanager.CheckIssuer},
		{"damaged payload", strings.Replace(good, ".", ".!", 1), keymanager.CheckFormat},
		{"member twice in the header", rawToken(`{"alg":"none","alg":"RS256","kid":"r1"}`, f.payload()), keymanager.CheckFormat},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			f.asked.know(tt.token, nil) // it would say yes
			f.refuse(tt.token, tt.check)
		})
	}
	if n := f.asked.calls.Load(); n != 0 {
		t.Errorf("%d calls", n)
	}
}

// TestTokensThatAreNoAccessTokens: what the same issuer signs with the same key for another purpose opens no API.
func TestTokensThatAreNoAccessTokens(t *testing.T) {
	f := newFixture(t)
	app := map[string]any{"id": 1, "name": "Web", "owner": "alice", "tier": "Unlimited"}
	list := []any{map[string]any{"name": "Shop", "version": "1.0.0", "context": "/shop/1.0.0"}}
	for _, tt := range []struct {
		name  string
		token string
	}{
		{"API key", f.token("token_type", "apiKey")},
		{"API key by its restriction to addresses, of a version that names no kind", f.token("permittedIP", "10.0.0.0/8")},
		{"API key by its restriction to referers", f.token("permittedReferer", "https://app.example.test/*")},
		{"API key of a version that names no kind", f.token("azp", nil, "aud", nil, "scope", nil, "keytype", "PRODUCTION", "application", app, "subscribedAPIs", list)},
		{"API key of Microgateway", f.token("azp", nil, "aud", nil, "scope", nil, "keytype", "PRODUCTION", "allowedAPIs", list)},
		{"ID token of Keycloak", f.token("typ", "ID", "scope", nil)},
		{"refresh token of Keycloak", f.token("typ", "Refresh")},
		{"offline token of Keycloak", f.token("typ", "Offline")},
		{"logout token of Keycloak", f.token("typ", "Logout")},
		{"ID token of Cognito", f.token("token_use", "id")},
		{"ID token of WSO2 Identity Server", f.token("scope", nil, "at_hash", "x", "nonce", "n", "amr", []string{"pwd"})},
		{"ID token of a code", f.token("c_hash", "x")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			f.refuse(tt.token, keymanager.CheckKind)
			f.refuse(tt.token, keymanager.CheckKind)
		})
	}
	f.t = t
	f.accept(f.token())
	f.accept(f.token("typ", "Bearer"))       // Keycloak
	f.accept(f.token("typ", "DPoP"))         // Keycloak
	f.accept(f.token("token_use", "access")) // Cognito
	f.accept(f.token("token_type", "Bearer"))
	f.accept(f.token("nonce", "n")) // of access tokens of Keycloak before 24
	f.accept(f.token("application", app, "subscribedAPIs", list, "keytype", "PRODUCTION"))
	f.accept(f.token("scope", nil, "application", app, "subscribedAPIs", list, "keytype", "PRODUCTION"))
	f.accept(f.token("azp", nil, "application", app, "subscribedAPIs", list, "keytype", "PRODUCTION"))
}

func TestIntrospectedTokensThatAreNoAccessTokens(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	for name, answer := range map[string]map[string]any{
		"refresh token":                       {"token_type": "refresh_token"},
		"refresh token by use":                {"token_use": "refresh"},
		"refresh token, capitals":             {"token_type": "Refresh_Token"},
		"refresh token of Keycloak":           {"typ": "Refresh"},
		"ID token":                            {"token_type": "id_token"},
		"ID token of Keycloak":                {"typ": "ID"},
		"API key":                             {"token_type": "apiKey"},
		"API key by its restricted addresses": {"permittedIP": "10.0.0.1"},
	} {
		f.asked.know(name[:2]+"-"+strings.ReplaceAll(name, " ", "-"), answer)
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.refuse(name[:2]+"-"+strings.ReplaceAll(name, " ", "-"), keymanager.CheckKind)
		})
	}
	f.t = t
	for i, answer := range []map[string]any{{}, {"token_type": "Bearer"}, {"typ": "Bearer"}, {"token_use": "access_token"}, {"token_type": "access_token"}} {
		token := "good-" + string(rune('a'+i))
		f.asked.know(token, answer)
		f.accept(token)
	}
}

// TestTenantHidesAnIssuerOfTheConfigurationForItselfAlone: whoever may add key managers to one tenant must not shut out the
// others by the name of an issuer.
func TestTenantHidesAnIssuerOfTheConfigurationForItselfAlone(t *testing.T) {
	f := newOpaque(t, IntrospectionOptions{})
	f.Delete("carbon.super", "Resident Key Manager")
	f.asked.know(opaque, nil)
	local := f.keyManager()
	local.Name, local.Tenant, local.FromConfiguration = "local", "", true
	local.Introspection = &keymanager.Introspection{URL: f.asked.URL, ClientID: "gateway", ClientSecret: "secret"}
	f.ReplaceConfigured([]keymanager.KeyManager{local})
	signed := f.token()
	ask := func(tenant, token string) string {
		tok, _, err := f.Authenticate(t.Context(), keymanager.Credential{Bearer: token, Tenant: tenant})
		if err != nil {
			var r *keymanager.Refusal
			errors.As(err, &r)
			return string(r.Check)
		}
		return tok.KeyManager
	}
	// Twice each: what is cached must answer as the first time.
	want := func(what string, answers map[string][2]string) {
		t.Helper()
		for range 2 {
			for tenant, w := range answers {
				if got := [2]string{ask(tenant, signed), ask(tenant, opaque)}; got != w {
					t.Errorf("%s, an API of %s: %v, want %v", what, tenant, got, w)
				}
			}
		}
	}
	want("alone", map[string][2]string{"carbon.super": {"local", "local"}, "evil.example": {"local", "local"}, "other.example": {"local", "local"}})
	evil := f.keyManager()
	evil.Name, evil.Tenant, evil.Enabled = "mine", "evil.example", false
	f.Put(evil)
	want("hidden by a tenant", map[string][2]string{"carbon.super": {"local", "local"}, "evil.example": {"issuer", "opaque"}, "other.example": {"local", "local"}})
	super := f.keyManager()
	super.Enabled = false
	f.Put(super)
	want("hidden by the super tenant", map[string][2]string{"carbon.super": {"issuer", "opaque"}, "evil.example": {"issuer", "opaque"}, "other.example": {"issuer", "opaque"}})
	f.Delete("carbon.super", super.Name)
	f.Delete("evil.example", "mine")
	want("alone again", map[string][2]string{"carbon.super": {"local", "local"}, "evil.example": {"local", "local"}})
}
