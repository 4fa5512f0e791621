package registry

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

var raw64 = base64.RawURLEncoding.EncodeToString

// rawToken signs exactly these texts with RS256 and the key r1, however odd they are.
func rawToken(header, payload string) string {
	signed := raw64([]byte(header)) + "." + raw64([]byte(payload))
	h := sha256.Sum256([]byte(signed))
	sig, err := rsaKey().Sign(rand.Reader, h[:], crypto.SHA256)
	must(err)
	return signed + "." + raw64(sig)
}

func (f *fixture) payload(change ...any) string {
	b, err := json.Marshal(f.claims(change...))
	must(err)
	return string(b)
}

const header = `{"alg":"RS256","kid":"r1","typ":"JWT"}`

func TestAlgNoneIsRefusedInAllSpellings(t *testing.T) {
	f := newFixture(t)
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "none ", " none", "", "NONE\u0000", "no\u006ee", "null"} {
		for _, sig := range []string{"", raw64([]byte("x")), strings.Split(f.token(), ".")[2]} {
			t.Run(fmt.Sprintf("%q/%d", alg, len(sig)), func(t *testing.T) {
				f.t = t
				h, err := json.Marshal(map[string]any{"alg": alg, "kid": "r1"})
				must(err)
				f.refuse(raw64(h)+"."+raw64([]byte(f.payload()))+"."+sig, keymanager.CheckAlgorithm)
			})
		}
	}
	f.t = t
	f.refuse(rawToken(`{"alg":["RS256"],"kid":"r1"}`, f.payload()), keymanager.CheckAlgorithm)
	f.refuse(rawToken(`{"alg":null,"kid":"r1"}`, f.payload()), keymanager.CheckOpaque)
	f.refuse(rawToken(`{"ALG":"RS256","kid":"r1"}`, f.payload()), keymanager.CheckOpaque)
}

func TestPublicKeyIsNeverAnHMACSecret(t *testing.T) {
	f := newFixture(t)
	pkix := func(k any) []byte { b, err := x509.MarshalPKIXPublicKey(k); must(err); return b }
	pemOf := func(k any) []byte { return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix(k)}) }
	secrets := map[string][]byte{
		"RSA PEM": pemOf(rsaKey().Public()), "RSA DER": pkix(rsaKey().Public()), "RSA modulus": rsaKey().N.Bytes(),
		"EC PEM": pemOf(ecKey().Public()), "EC DER": pkix(ecKey().Public()), "empty": {},
	}
	for name, secret := range secrets {
		for _, kid := range []string{"r1", "e1", ""} {
			for _, alg := range []string{"HS256", "hs256", "HS384", "HS512"} {
				t.Run(name+"/"+kid+"/"+alg, func(t *testing.T) {
					f.t = t
					signed := raw64([]byte(`{"alg":"`+alg+`","kid":"`+kid+`"}`)) + "." + raw64([]byte(f.payload()))
					m := hmac.New(sha256.New, secret)
					m.Write([]byte(signed))
					f.refuse(signed+"."+raw64(m.Sum(nil)), keymanager.CheckAlgorithm)
				})
			}
		}
	}
}

func TestAlgorithmMustSuitTheKeyAndBeAllowed(t *testing.T) {
	f := newFixture(t)
	f.server.serve(jwk("r1", rsaKey(), nil), jwk("e1", ecKey(), nil), jwk("e2", ec384(), nil), jwk("only384", rsaOther(), map[string]any{"alg": "RS384"}))
	f.refuse(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "e1"}, f.claims()), keymanager.CheckKey)
	f.refuse(sign(jwt.SigningMethodES256, ecKey(), map[string]any{"kid": "r1"}, f.claims()), keymanager.CheckKey)
	f.refuse(sign(jwt.SigningMethodEdDSA, edKey(), map[string]any{"kid": "e1"}, f.claims()), keymanager.CheckKey)
	f.refuse(sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "only384"}, f.claims()), keymanager.CheckKey)
	f.accept(sign(jwt.SigningMethodRS384, rsaOther(), map[string]any{"kid": "only384"}, f.claims()))
	// ES256 with a key of another curve.
	tok := sign(jwt.SigningMethodES384, ec384(), map[string]any{"kid": "e2", "alg": "ES256"}, f.claims())
	f.refuse(tok, keymanager.CheckKey)

	g := newFixture(t, func(km *keymanager.KeyManager) { km.Algorithms = []string{"ES256"} })
	g.refuse(g.token(), keymanager.CheckAlgorithm)
	g.accept(sign(jwt.SigningMethodES256, ecKey(), map[string]any{"kid": "e1"}, g.claims()))
}

func TestKeyIDTricksFindNothing(t *testing.T) {
	f := newFixture(t)
	f.accept(f.token())
	before := f.server.fetches.Load()
	for _, kid := range []string{
		"../../../../dev/null", "/etc/passwd", "r1' OR '1'='1", "r1; DROP TABLE keys", "https://evil.example/jwks#r1",
		f.server.URL + "/r1", "r1\u0000", "R1", " r1", "r1 ", "*", "${jndi:ldap://evil}", strings.Repeat("k", 4000),
	} {
		f.refuse(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": kid}, f.claims()), keymanager.CheckKey)
	}
	if n := f.server.fetches.Load() - before; n > 1 {
		t.Errorf("%d fetches for bad key IDs, want at most 1", n)
	}
	for _, kid := range []any{1, true, []string{"r1"}, map[string]any{"r1": 1}} {
		f.refuse(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": kid}, f.claims()), keymanager.CheckFormat)
	}
	f.refuse(rawToken(`{"alg":"RS256","kid":null}`, f.payload()), keymanager.CheckFormat)
}

func TestKeysInTheHeaderAreNeverUsed(t *testing.T) {
	f := newFixture(t)
	var asked atomic.Int64
	evil := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		json.NewEncoder(w).Encode(map[string]any{"keys": []any{jwk("evil", rsaOther(), nil), jwk("r1", rsaOther(), nil)}})
	}))
	defer evil.Close()
	for _, kid := range []any{"r1", "evil", nil} {
		for name, value := range map[string]any{
			"jku": evil.URL, "x5u": evil.URL, "jwk": jwk("evil", rsaOther(), nil),
			"x5c": []string{base64.StdEncoding.EncodeToString(evil.Certificate().Raw)},
		} {
			token := sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": kid, name: value}, f.claims())
			if _, _, err := f.auth(token); err == nil {
				t.Errorf("%s with kid %v was accepted", name, kid)
			}
			// The very members do no harm in a good token.
			f.accept(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "r1", name: value}, f.claims()))
		}
	}
	if asked.Load() != 0 {
		t.Errorf("the server that the header names was asked %d times", asked.Load())
	}
}

func TestSameKeyIDAtTwoIssuers(t *testing.T) {
	f := newFixture(t)
	other := newKeyServer(t, jwk("r1", rsaOther(), nil))
	km := f.keyManager()
	km.Name, km.Issuer, km.JWKSURL, km.SkipTLSVerify = "Corp Keycloak", "https://sso.example.test/realms/corp", other.URL, true
	f.Put(km)
	mine, theirs := f.token(), sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r1"}, f.claims("iss", km.Issuer))
	if tok := f.accept(mine); tok.KeyManager != "Resident Key Manager" {
		t.Errorf("verified by %s", tok.KeyManager)
	}
	if tok := f.accept(theirs); tok.KeyManager != "Corp Keycloak" {
		t.Errorf("verified by %s", tok.KeyManager)
	}
	// Each issuer's key signs tokens in the name of the other.
	f.refuse(sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r1"}, f.claims()), keymanager.CheckSignature)
	f.refuse(sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "r1"}, f.claims("iss", km.Issuer)), keymanager.CheckSignature)
	// And the verified token of one is not that of the other after the issuer moved to it.
	f.Delete("carbon.super", "Corp Keycloak")
	f.refuse(theirs, keymanager.CheckIssuer)
}

func TestMalformedTokens(t *testing.T) {
	f := newFixture(t)
	good := f.token()
	part := strings.Split(good, ".")
	dup := strings.Replace(f.payload(), `"iss":`, `"iss":"https://evil.example","iss":`, 1)
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	tests := []struct {
		name, token string
		check       keymanager.Check
	}{
		{"empty", "", keymanager.CheckOpaque},
		{"one word", "d1f0b6a0-0000-4000-8000-000000000000", keymanager.CheckOpaque},
		{"two parts", part[0] + "." + part[1], keymanager.CheckOpaque},
		{"four parts", good + ".x", keymanager.CheckOpaque},
		{"encrypted, five parts", "a.b.c.d.e", keymanager.CheckOpaque},
		{"only dots", "..", keymanager.CheckOpaque},
		{"header no JSON", raw64([]byte("hello")) + "." + part[1] + "." + part[2], keymanager.CheckOpaque},
		{"header an array", raw64([]byte(`["alg"]`)) + "." + part[1] + "." + part[2], keymanager.CheckOpaque},
		{"header without alg", raw64([]byte(`{"typ":"JWT"}`)) + "." + part[1] + "." + part[2], keymanager.CheckOpaque},
		{"header padded", part[0] + "==." + part[1] + "." + part[2], keymanager.CheckOpaque},
		{"payload padded", part[0] + "." + part[1] + "==." + part[2], keymanager.CheckFormat},
		{"signature padded", part[0] + "." + part[1] + "." + part[2] + "==", keymanager.CheckFormat},
		{"payload truncated", part[0] + "." + part[1][:len(part[1])-1] + "." + part[2], ""},
		{"signature truncated", good[:len(good)-4], ""},
		{"signature truncated inside a byte", good[:len(good)-1], ""},
		{"no signature", part[0] + "." + part[1] + ".", keymanager.CheckSignature},
		{"standard base64", part[0] + "." + part[1] + "." + strings.Repeat("+/", 171), keymanager.CheckFormat},
		{"line end inside", part[0] + "." + part[1] + "." + part[2][:10] + "\n" + part[2][10:], keymanager.CheckFormat},
		{"line end in the header", part[0][:4] + "\n" + part[0][4:] + "." + part[1] + "." + part[2], keymanager.CheckOpaque},
		{"blank after it", good + " ", keymanager.CheckFormat},
		{"stray bits at the end of the payload", rawStray(), keymanager.CheckFormat},
		{"16 KiB and a byte", good + strings.Repeat("A", 16<<10+1-len(good)), keymanager.CheckSize},
		{"a megabyte", strings.Repeat("A", 1<<20), keymanager.CheckSize},
		{"member twice in the payload", rawToken(header, dup), keymanager.CheckFormat},
		{"member twice by escape", rawToken(header, strings.Replace(f.payload(), `"iss":`, `"\u0069ss":"https://evil.example","iss":`, 1)), keymanager.CheckFormat},
		{"member twice in the header", rawToken(`{"alg":"RS256","alg":"none","kid":"r1"}`, f.payload()), keymanager.CheckFormat},
		{"kid twice in the header", rawToken(`{"alg":"RS256","kid":"evil","kid":"r1"}`, f.payload()), keymanager.CheckFormat},
		{"member twice deep inside", rawToken(header, strings.Replace(f.payload(), "{", `{"x":{"y":[{"a":1,"a":2}]},`, 1)), keymanager.CheckFormat},
		{"nested 100 deep", rawToken(header, strings.Replace(f.payload(), "{", `{"x":`+deep(100)+`,`, 1)), keymanager.CheckFormat},
		{"arrays nested 3000 deep", rawToken(header, strings.Replace(f.payload(), "{", `{"x":`+strings.Repeat("[", 3000)+strings.Repeat("]", 3000)+`,`, 1)), keymanager.CheckFormat},
		{"header nested deep", rawToken(`{"alg":"RS256","kid":"r1","x":`+deep(50)+`}`, f.payload()), keymanager.CheckFormat},
		{"text after the payload", rawToken(header, f.payload()+"{}"), keymanager.CheckFormat},
		{"payload an array", rawToken(header, `["iss"]`), keymanager.CheckFormat},
		{"payload not UTF-8", rawToken(header, strings.Replace(f.payload(), "alice", "al\xffice", 1)), keymanager.CheckFormat},
		{"crit", rawToken(`{"alg":"RS256","kid":"r1","crit":["exp"],"exp":1}`, f.payload()), keymanager.CheckFormat},
		{"crit empty", rawToken(`{"alg":"RS256","kid":"r1","crit":[]}`, f.payload()), keymanager.CheckFormat},
		{"crit null", rawToken(`{"alg":"RS256","kid":"r1","crit":null}`, f.payload()), keymanager.CheckFormat},
		{"b64 false", rawToken(`{"alg":"RS256","kid":"r1","b64":false}`, f.payload()), keymanager.CheckFormat},
		{"typ of an identity token", rawToken(`{"alg":"RS256","kid":"r1","typ":"id+jwt"}`, f.payload()), keymanager.CheckFormat},
		{"typ of a logout token", rawToken(`{"alg":"RS256","kid":"r1","typ":"logout+jwt"}`, f.payload()), keymanager.CheckFormat},
		{"typ a number", rawToken(`{"alg":"RS256","kid":"r1","typ":1}`, f.payload()), keymanager.CheckFormat},
		{"a token inside a token", rawToken(`{"alg":"RS256","kid":"r1","cty":"JWT"}`, f.payload()), keymanager.CheckFormat},
		{"no issuer", f.token("iss", nil), keymanager.CheckIssuer},
		{"issuer a list", f.token("iss", []string{issuer}), keymanager.CheckIssuer},
		{"issuer with a slash more", f.token("iss", issuer+"/"), keymanager.CheckIssuer},
		{"issuer in capitals", f.token("iss", strings.ToUpper(issuer)), keymanager.CheckIssuer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			for range 2 { // the second answer may come from the cache
				tok, _, err := f.auth(tt.token)
				if err == nil {
					t.Fatalf("accepted as %+v", tok)
				}
				if tt.check != "" {
					f.refuse(tt.token, tt.check)
				}
			}
			if v := f.Verify(context.Background(), tt.token, VerifyOptions{}); v.Valid && tt.name != "blank after it" {
				t.Errorf("Verify says %+v", v)
			}
		})
	}
	for _, typ := range []string{"JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"} {
		f.accept(rawToken(`{"alg":"RS256","kid":"r1","typ":"`+typ+`"}`, f.payload()))
	}
	f.accept(rawToken(`{"alg":"RS256","kid":"r1"}`, f.payload()))
}

// rawStray is a token whose payload ends in bits that belong to no byte, and that is signed like that.
func rawStray() string {
	f := base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"x"}`)) // 11 bytes: two stray bits... four in the last character
	f = f[:len(f)-1] + string(f[len(f)-1]+1)
	signed := raw64([]byte(header)) + "." + f
	h := sha256.Sum256([]byte(signed))
	sig, err := rsaKey().Sign(rand.Reader, h[:], crypto.SHA256)
	must(err)
	return signed + "." + raw64(sig)
}

func TestECDSASignatureForms(t *testing.T) {
	f := newFixture(t)
	signed := raw64([]byte(`{"alg":"ES256","kid":"e1"}`)) + "." + raw64([]byte(f.payload()))
	h := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, ecKey(), h[:])
	must(err)
	der, err := ecdsa.SignASN1(rand.Reader, ecKey(), h[:])
	must(err)
	n := ecKey().Params().N
	join := func(r, s *big.Int) []byte { b := make([]byte, 64); r.FillBytes(b[:32]); s.FillBytes(b[32:]); return b }
	zero, max := new(big.Int), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))
	f.accept(signed + "." + raw64(join(r, s)))
	for name, sig := range map[string][]byte{
		"DER":                      der,
		"r and s zero":             join(zero, zero),
		"r zero":                   join(zero, s),
		"s zero":                   join(r, zero),
		"r and s are the order":    join(n, n),
		"r is the order":           join(n, s),
		"r and s beyond the order": join(max, max),
		"s and r swapped":          join(s, r),
		"63 bytes":                 join(r, s)[:63],
		"65 bytes":                 append(join(r, s), 0),
		"96 bytes":                 append(join(r, s), make([]byte, 32)...),
		"a zero byte before each":  append(append([]byte{0}, r.FillBytes(make([]byte, 32))...), append([]byte{0}, s.FillBytes(make([]byte, 32))...)...),
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.refuse(signed+"."+raw64(sig), keymanager.CheckSignature)
		})
	}
}

func TestTimes(t *testing.T) {
	f := newFixture(t)
	now := f.clock.now().Unix()
	tests := []struct {
		name  string
		claim string
		value any
		check keymanager.Check // empty: accepted
	}{
		{"exp as text", "exp", fmt.Sprint(now + 3600), keymanager.CheckExpired},
		{"exp with a fraction", "exp", float64(now) + 100.5, ""},
		{"exp in exponent form", "exp", json.Number(fmt.Sprintf("%de0", now+100)), ""},
		{"exp huge", "exp", json.Number("1e300"), keymanager.CheckExpired},
		{"exp beyond a float", "exp", json.Number("1e999"), keymanager.CheckExpired},
		{"exp beyond 64 bits", "exp", json.Number("18446744073709551617"), keymanager.CheckExpired},
		{"exp in milliseconds", "exp", (now + 3600) * 1000, keymanager.CheckExpired},
		{"exp negative", "exp", -1, keymanager.CheckExpired},
		{"exp zero", "exp", 0, keymanager.CheckExpired},
		{"exp true", "exp", true, keymanager.CheckExpired},
		{"exp a list", "exp", []any{now + 100}, keymanager.CheckExpired},
		{"exp absent", "exp", nil, keymanager.CheckExpired},
		{"exp 4 s ago, inside the skew", "exp", now - 4, ""},
		{"exp 5 s ago, at the skew", "exp", now - 5, keymanager.CheckExpired},
		{"exp 6 s ago", "exp", now - 6, keymanager.CheckExpired},
		{"nbf in 4 s", "nbf", now + 4, ""},
		{"nbf in 5 s", "nbf", now + 5, ""},
		{"nbf in 6 s", "nbf", now + 6, keymanager.CheckNotBefore},
		{"nbf as text", "nbf", "0", keymanager.CheckNotBefore},
		{"nbf absent", "nbf", nil, ""},
		{"iat in 5 s", "iat", now + 5, ""},
		{"iat in 6 s", "iat", now + 6, keymanager.CheckIssuedAt},
		{"iat next year", "iat", now + 365*86400, keymanager.CheckIssuedAt},
		{"iat as text", "iat", fmt.Sprint(now), keymanager.CheckIssuedAt},
		{"iat absent", "iat", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			token := f.token(tt.claim, tt.value)
			if tt.check == "" {
				f.accept(token)
				f.accept(token)
				return
			}
			f.refuse(token, tt.check)
			f.refuse(token, tt.check)
		})
	}
	f.refuse(rawToken(header, strings.Replace(f.payload(), "{", `{"nbf":null,`, 1)), keymanager.CheckNotBefore)
}

func TestMissingExpiryCanBeAllowed(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) { km.AllowMissingExp = true })
	token := f.token("exp", nil)
	if tok := f.accept(token); tok.ExpiresAt != 0 {
		t.Errorf("expires at %d", tok.ExpiresAt)
	}
	f.clock.advance(maxCached + time.Second)
	if _, cached, err := f.auth(token); err != nil || cached {
		t.Errorf("after %v: cached=%t, %v", maxCached, cached, err)
	}
	f.refuse(f.token("exp", 1), keymanager.CheckExpired)
}

func TestSkewOfTheKeyManager(t *testing.T) {
	for _, tt := range []struct{ set, want time.Duration }{{0, 5 * time.Second}, {30 * time.Second, 30 * time.Second}, {time.Hour, 300 * time.Second}} {
		f := newFixture(t, func(km *keymanager.KeyManager) { km.ClockSkew = tt.set })
		now := f.clock.now()
		f.accept(f.token("exp", now.Add(1*time.Second-tt.want).Unix()))
		f.refuse(f.token("exp", now.Add(-tt.want).Unix()), keymanager.CheckExpired)
		f.accept(f.token("iat", now.Add(tt.want).Unix()))
		f.refuse(f.token("iat", now.Add(tt.want+time.Second).Unix()), keymanager.CheckIssuedAt)
	}
}

func TestCachedTokenExpires(t *testing.T) {
	f := newFixture(t)
	token := f.token("exp", f.clock.now().Unix()+60)
	f.accept(token)
	f.clock.advance(64 * time.Second)
	f.accept(token)
	f.clock.advance(time.Second)
	f.refuse(token, keymanager.CheckExpired)
	f.Sweep()
	if n := f.State().CachedTokens; n != 0 {
		t.Errorf("%d tokens cached after the sweep", n)
	}
	f.refuse(token, keymanager.CheckExpired)
}

func TestAudience(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) { km.Audience = []string{"http://org.wso2.apimgt/gateway", "other"} })
	tests := []struct {
		name string
		aud  any
		ok   bool
	}{
		{"text", "http://org.wso2.apimgt/gateway", true},
		{"second", "other", true},
		{"list", []string{"x", "other"}, true},
		{"another", "x", false},
		{"list of others", []string{"x", "y"}, false},
		{"empty list", []string{}, false},
		{"absent", nil, false},
		{"a number", 1, false},
		{"object", map[string]any{"other": true}, false},
		{"list of numbers", []int{1}, false},
		{"prefix", "othe", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			if tt.ok {
				f.accept(f.token("aud", tt.aud))
			} else {
				f.refuse(f.token("aud", tt.aud), keymanager.CheckAudience)
			}
		})
	}
}

func TestEachRefusalHasItsOwnDescription(t *testing.T) {
	f := newFixture(t, func(km *keymanager.KeyManager) { km.Audience = []string{"gw"} })
	now := f.clock.now().Unix()
	f.revs.Put(keymanager.Revocation{Value: "gone", ExpiresAt: (now + 1000) * 1000})
	tokens := map[keymanager.Check]string{
		keymanager.CheckOpaque: "5b3c7a9e-0000-4000-8000-000000000000", keymanager.CheckSize: strings.Repeat("x", 20000), keymanager.CheckFormat: rawToken(header, "[]"),
		keymanager.CheckIssuer: f.token("iss", "x"), keymanager.CheckAlgorithm: "eyJhbGciOiJub25lIn0." + raw64([]byte(f.payload())) + ".",
		keymanager.CheckKey:       sign(jwt.SigningMethodRS256, rsaKey(), map[string]any{"kid": "z"}, f.claims()),
		keymanager.CheckSignature: sign(jwt.SigningMethodRS256, rsaOther(), map[string]any{"kid": "r1"}, f.claims()),
		keymanager.CheckExpired:   f.token("exp", now-100), keymanager.CheckNotBefore: f.token("nbf", now+100), keymanager.CheckIssuedAt: f.token("iat", now+100),
		keymanager.CheckAudience: f.token("aud", "other"), keymanager.CheckRevoked: f.token("aud", "gw", "jti", "gone"),
	}
	seen := map[string]keymanager.Check{}
	for check, token := range tokens {
		r := f.refuse(token, check)
		if other, twice := seen[r.Detail]; twice || r.Detail == "" {
			t.Errorf("%s and %s are both described by %q", check, other, r.Detail)
		}
		seen[r.Detail] = check
		if strings.Contains(r.Error(), token) {
			t.Errorf("%s: the refusal holds the token", check)
		}
		if v := f.Verify(context.Background(), token, VerifyOptions{}); v.Valid || v.Failed != check || v.Claims != nil {
			t.Errorf("%s: Verify says %+v", check, v)
		}
	}
}
