package apikey

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

func b64(v any) string {
	if s, ok := v.(string); ok {
		return base64.RawURLEncoding.EncodeToString([]byte(s))
	}
	b, err := json.Marshal(v)
	must(err)
	return base64.RawURLEncoding.EncodeToString(b)
}

// TestAttacks: each is refused, and says why.
func TestAttacks(t *testing.T) {
	f := newFixture(t)
	good := signRSA(f.claims())
	parts := strings.Split(good, ".")
	public := publicPEM(rsaKey().Public())
	der, err := x509.MarshalPKIXPublicKey(rsaKey().Public())
	must(err)
	header := func(h map[string]any) string { return b64(h) + "." + parts[1] + "." + parts[2] }
	signed := func(claims map[string]any) string { return signRSA(claims) }
	access := func(change ...any) string {
		return signed(with(map[string]any{
			"iss": apim, "sub": "alice", "aud": "ck-1", "azp": "ck-1", "scope": "order:read", "jti": "t-1",
			"exp": f.clock.now().Unix() + 3600,
		}, change...))
	}
	for _, tt := range []struct {
		name, key string
		want      keymanager.Check
	}{
		{"alg none", b64(map[string]any{"alg": "none", "typ": "JWT"}) + "." + parts[1] + ".", keymanager.CheckAlgorithm},
		{"alg None with a signature", header(map[string]any{"alg": "None", "typ": "JWT"}), keymanager.CheckAlgorithm},
		{"alg nOnE", header(map[string]any{"alg": "nOnE"}), keymanager.CheckAlgorithm},
		{"alg empty", header(map[string]any{"alg": ""}), keymanager.CheckAlgorithm},
		{"HS256 with the public key as PEM", sign(jwt.SigningMethodHS256, []byte(public), f.claims()), keymanager.CheckAlgorithm},
		{"HS256 with the public key as DER", sign(jwt.SigningMethodHS256, der, f.claims()), keymanager.CheckAlgorithm},
		{"HS512 with the public key", sign(jwt.SigningMethodHS512, []byte(public), f.claims()), keymanager.CheckAlgorithm},
		{"another key", sign(jwt.SigningMethodRS256, strangerKey(), f.claims()), keymanager.CheckSignature},
		{"key of another issuer of keys", sign(jwt.SigningMethodES256, ecKey(), f.claims()), keymanager.CheckKey},
		{"name of another issuer of keys", signed(f.claims("iss", sts)), keymanager.CheckKey},
		{"name of nobody", signed(f.claims("iss", "https://evil.test")), keymanager.CheckIssuer},
		{"name with a slash more", signed(f.claims("iss", apim+"/")), keymanager.CheckIssuer},
		{"no name", signed(f.claims("iss", nil)), keymanager.CheckIssuer},
		{"payload changed", parts[0] + "." + b64(f.claims("sub", "admin")) + "." + parts[2], keymanager.CheckSignature},
		{"no signature", parts[0] + "." + parts[1] + ".", keymanager.CheckSignature},
		{"signature cut", good[:len(good)-2], keymanager.CheckSignature},
		{"padded", good + "=", keymanager.CheckFormat},
		{"crit", header(map[string]any{"alg": "RS256", "crit": []string{"exp"}}), keymanager.CheckFormat},
		{"jwk in the header", header(map[string]any{"alg": "RS256", "jwk": jwkOf("x"), "jku": "https://evil.test/jwks", "x5u": "https://evil.test/c"}), keymanager.CheckSignature},
		{"member twice", parts[0] + "." + b64(`{"iss":"`+apim+`","iss":"`+console+`"}`) + "." + parts[2], keymanager.CheckFormat},
		{"too long", strings.Repeat("a", 17<<10), keymanager.CheckSize},
		{"nothing", "", keymanager.CheckFormat},
		{"guessed", "letmein", keymanager.CheckOpaque},
		{"four parts", good + ".x", keymanager.CheckOpaque},

		{"access token of the issuer's own key", access(), keymanager.CheckKind},
		{"access token that is self-contained", access("subscribedAPIs", []any{api("Shop", "1.0.0")}, "keytype", "PRODUCTION"), keymanager.CheckKind},
		{"access token without scopes", access("scope", nil, "subscribedAPIs", []any{}), keymanager.CheckKind},
		{"ID token", access("scope", nil, "azp", nil, "nonce", "n", "keytype", "PRODUCTION"), keymanager.CheckKind},
		{"token of nothing in particular", signed(f.claims("token_type", nil, "subscribedAPIs", nil, "keytype", nil)), keymanager.CheckKind},
		{"bearer token by its own word", signed(f.claims("token_type", "Bearer")), keymanager.CheckKind},
		{"kind that is no text", signed(f.claims("token_type", 1)), keymanager.CheckKind},
		{"kind that is null", signed(f.claims("token_type", []any{nil})), keymanager.CheckKind},
		{"internal key", signed(f.internal()), keymanager.CheckKind},
		{"internal key in the name of the application keys", signed(f.internal("iss", apim)), keymanager.CheckKind},
		{"API key in the name of the console", signed(f.claims("iss", console)), keymanager.CheckKind},
	} {
		t.Run(tt.name, func(t *testing.T) {
			(&fixture{Authenticator: f.Authenticator, t: t}).refuse(offer(tt.key), tt.want)
		})
	}
	// What was refused has spoilt nothing, and what is good without a mark of its kind is taken.
	f.accept(offer(good))
	f.accept(offer(signed(f.claims("token_type", nil))))
	f.accept(offer(signed(f.claims("token_type", "APIKEY"))))
}

// TestWrongFieldAfterRightOne: the cache of the one field answers nothing in the other.
func TestWrongFieldAfterRightOne(t *testing.T) {
	f := newFixture(t)
	key, internal := signRSA(f.claims()), signRSA(f.internal())
	f.accept(offer(key))
	f.refuse(internalOffer(key), keymanager.CheckKind)
	f.accept(internalOffer(internal))
	f.refuse(offer(internal), keymanager.CheckKind)
	f.accept(offer(key))
}
