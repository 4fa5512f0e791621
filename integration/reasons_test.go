package integration_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/agent"
	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/issuer"
	"gatehouse/keymanager"
)

// forge signs tokens as a key manager of the configuration would, and in every way that one would not. It shares no code
// with what reads them.
type forge struct {
	key, other *rsa.PrivateKey
	issuer     string
}

var forgeKeys = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

func base64url(v any) string {
	text, isText := v.(string)
	if !isText {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		text = string(b)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// token signs good claims with changes: a value of nil takes a claim out.
func (f *forge) token(header map[string]any, changes map[string]any) string {
	now := time.Now().Unix()
	head := map[string]any{"alg": "RS256", "kid": "f1"}
	maps.Copy(head, header)
	claims := map[string]any{"iss": f.issuer, "sub": "planted-subject", "azp": "mobile-app", "iat": now - 10, "exp": now + 3600}
	for k, v := range changes {
		claims[k] = v
		if v == nil {
			delete(claims, k)
		}
	}
	return f.sign(base64url(head)+"."+base64url(claims), f.key)
}

func (f *forge) sign(signed string, key *rsa.PrivateKey) string {
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + base64url(string(signature))
}

func (f *forge) serveKeys(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "kid": "f1", "use": "sig", "n": base64url(string(f.key.N.Bytes())), "e": base64url(string(big.NewInt(int64(f.key.E)).Bytes())),
	}}})
}

// askNobody is shop without a key manager that is asked about opaque tokens.
func askNobody(t testing.TB, e *emulator.Emulator) {
	t.Helper()
	shop(t, e)
	c := e.IssuerConfiguration()
	delete(c, "introspection_endpoint")
	if _, err := e.PutKeyManager(emulator.KeyManager{Name: "Corp Keycloak", Type: "KeyCloak", Configuration: c}); err != nil {
		t.Fatal(err)
	}
	if err := e.DeleteKeyManager("carbon.super", e.ResidentName()); err != nil {
		t.Fatal(err)
	}
}

// Checks that other credentials than bearer tokens fail; the tests of those have them.
var otherCredentials = []keymanager.Check{
	keymanager.CheckAPI, keymanager.CheckIP, keymanager.CheckReferer, keymanager.CheckUser, keymanager.CheckClient,
}

// Each cause has its own description, the same in the body, in WWW-Authenticate, in the trace and in the access log; and no
// part of the token is in any of them, nor in the log.
func TestEveryRefusalOfATokenHasItsOwnReason(t *testing.T) {
	f := &forge{key: forgeKeys()[0], other: forgeKeys()[1], issuer: "https://forge.example.test"}
	keys := httptest.NewServer(http.HandlerFunc(f.serveKeys))
	t.Cleanup(keys.Close)
	access := &lockedBuffer{}
	sections := ""
	for name, more := range map[string]string{f.issuer: "", "https://aud.example.test": "audience = [\"gateway\"]\n", "https://rs512.example.test": "algorithms = [\"RS512\"]\n"} {
		sections += fmt.Sprintf("[[apim.jwt.issuer]]\nname = %q\n%s[apim.jwt.issuer.jwks]\nurl = %q\n", name, more, keys.URL)
	}
	sections += "[[apim.jwt.issuer]]\nname = \"https://away.example.test\"\n[apim.jwt.issuer.jwks]\nurl = \"http://127.0.0.1:1/certs\"\n"
	logTo := func(o *agent.Options) { o.AccessLog = access }
	w := startWorld(t, worldOptions{fill: askNobody, sections: sections, agent: logTo})
	asking := startWorld(t, worldOptions{fill: opaqueShop, agent: logTo})

	revoked, err := w.emu.Issuer().Mint(issuer.Token{ClientID: "mobile-app", Subject: "planted-subject"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.emu.Revoke(revoked.ID, time.Now().Add(time.Hour), "JWT"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the revocation arrives", func() bool { return w.gateway.call("GET", "/shop/1.0.0/items", revoked.Token).status == 401 })

	good := f.token(nil, nil)
	parts := strings.Split(good, ".")
	in := func(seconds int64) int64 { return time.Now().Unix() + seconds }
	iss := func(name string) map[string]any { return map[string]any{"iss": "https://" + name + ".example.test"} }
	rows := []struct {
		name   string
		w      *world
		token  string
		check  keymanager.Check
		status int
		reason string // what it contains
	}{
		{"a header that is no object of JSON", w, base64url(`{"alg":"RS256","alg":"none"}`) + "." + parts[1] + "." + parts[2], keymanager.CheckFormat, 401, "header"},
		{"claims with a member twice", w, f.sign(parts[0]+"."+base64url(`{"iss":"a","iss":"b"}`), f.key), keymanager.CheckFormat, 401, "payload"},
		{"padding", w, good + "==", keymanager.CheckFormat, 401, "padded"},
		{"a critical extension", w, f.token(map[string]any{"crit": []string{"x"}}, nil), keymanager.CheckFormat, 401, "crit"},
		{"another type", w, f.token(map[string]any{"typ": "logout+jwt"}, nil), keymanager.CheckFormat, 401, "typ"},
		{"compressed", w, f.token(map[string]any{"zip": "DEF"}, nil), keymanager.CheckFormat, 401, "compressed"},
		{"a token in a token", w, f.token(map[string]any{"cty": "JWT"}, nil), keymanager.CheckFormat, 401, "cty"},
		{"too large", w, f.token(nil, map[string]any{"pad": strings.Repeat("x", 17<<10)}), keymanager.CheckSize, 401, "bytes"},
		{"no issuer", w, f.token(nil, map[string]any{"iss": nil}), keymanager.CheckIssuer, 401, "names no issuer"},
		{"an unknown issuer", w, f.token(nil, iss("unknown")), keymanager.CheckIssuer, 401, "no key manager has the issuer"},
		{"no algorithm", w, base64url(`{"alg":1}`) + "." + parts[1] + "." + parts[2], keymanager.CheckAlgorithm, 401, "names no algorithm"},
		{"the algorithm none", w, base64url(`{"alg":"none"}`) + "." + parts[1] + ".", keymanager.CheckAlgorithm, 401, "never accepted"},
		{"an algorithm with the public key as secret", w, f.token(map[string]any{"alg": "HS256"}, nil), keymanager.CheckAlgorithm, 401, "never accepted"},
		{"an algorithm that the issuer does not use", w, f.token(nil, iss("rs512")), keymanager.CheckAlgorithm, 401, "not accepted from this issuer"},
		{"an unknown key", w, f.token(map[string]any{"kid": "f9"}, nil), keymanager.CheckKey, 401, "kid"},
		{"no key for the algorithm", w, f.token(map[string]any{"alg": "ES256"}, nil), keymanager.CheckKey, 401, "no key for the algorithm"},
		{"the signature of another", w, f.sign(parts[0]+"."+parts[1], f.other), keymanager.CheckSignature, 401, "signature is not that of the issuer"},
		{"expired", w, f.token(nil, map[string]any{"exp": in(-60)}), keymanager.CheckExpired, 401, "expired at"},
		{"no expiry", w, f.token(nil, map[string]any{"exp": nil}), keymanager.CheckExpired, 401, "no expiry"},
		{"an expiry that is a text", w, f.token(nil, map[string]any{"exp": "soon"}), keymanager.CheckExpired, 401, "exp is not a number"},
		{"an expiry that is no time", w, f.token(nil, map[string]any{"exp": -1}), keymanager.CheckExpired, 401, "exp is not a time"},
		{"not yet valid", w, f.token(nil, map[string]any{"nbf": in(3600)}), keymanager.CheckNotBefore, 401, "not valid before"},
		{"issued in the future", w, f.token(nil, map[string]any{"iat": in(3600)}), keymanager.CheckIssuedAt, 401, "issued in the future"},
		{"no audience", w, f.token(nil, iss("aud")), keymanager.CheckAudience, 401, "names no audience"},
		{"another audience", w, f.token(nil, map[string]any{"iss": "https://aud.example.test", "aud": []string{"x"}}), keymanager.CheckAudience, 401, "another audience"},
		{"revoked", w, revoked.Token, keymanager.CheckRevoked, 401, "was revoked"},
		{"bound to a certificate", w, f.token(nil, map[string]any{"cnf": map[string]any{"x5t#S256": "abc"}}), keymanager.CheckBound, 401, "bound to a client certificate"},
		{"keys that cannot be fetched", w, f.token(nil, iss("away")), keymanager.CheckUnverified, 503, "not available"},
		{"an opaque token that nobody is asked about", w, "planted-opaque-5f1e7a", keymanager.CheckOpaque, 401, "introspects"},
		{"an opaque token that is not known", asking, "d1f0b6a0-1111-4222-8333-444455556666", keymanager.CheckInactive, 401, "does not know the token"},
		{"an API key as an access token", w, f.token(nil, map[string]any{"token_type": "apiKey"}), keymanager.CheckKind, 401, "API key"},
	}
	reasons := map[string]string{}
	covered := slices.Clone(otherCredentials)
	for i, row := range rows {
		covered = append(covered, row.check)
		t.Run(row.name, func(t *testing.T) {
			id := fmt.Sprintf("reason-%d", i)
			a := row.w.gateway.call("GET", "/shop/1.0.0/items", row.token, func(r *http.Request) { r.Header.Set("X-Request-Id", id) })
			code := 900901
			if row.status == 503 {
				code = 900900
			}
			if a.status != row.status || a.code != code {
				t.Fatalf("answer %v, want %d/%d", a, row.status, code)
			}
			reason := traceReason(t, row.w.gateway, id)
			if !strings.Contains(reason, row.reason) {
				t.Fatalf("the trace says %q, want %q in it", reason, row.reason)
			}
			if before, twice := reasons[reason]; twice && !strings.Contains(row.reason, "never accepted") {
				t.Errorf("%q is the reason of %q too", reason, before)
			}
			reasons[reason] = row.name
			challenge := a.header.Get("WWW-Authenticate")
			var body struct{ Fault struct{ Description string } }
			if err := json.Unmarshal([]byte(a.body), &body); err != nil {
				t.Fatal(err)
			}
			if row.status == 401 {
				if want := `Bearer realm="Gatehouse", error="invalid_token", error_description="` + strings.NewReplacer(`"`, `'`, `\`, "").Replace(reason) + `"`; challenge != want {
					t.Errorf("WWW-Authenticate: %s\nwant %s", challenge, want)
				}
				if want := "Invalid Credentials. Make sure you have given the correct access token: " + reason; body.Fault.Description != want {
					t.Errorf("description %q, want %q", body.Fault.Description, want)
				}
			} else if challenge != "" || a.header.Get("Retry-After") == "" || strings.Contains(body.Fault.Description, "127.0.0.1") {
				t.Errorf("challenge %q, Retry-After %q, description %q", challenge, a.header.Get("Retry-After"), body.Fault.Description)
			}
			eventually(t, 5*time.Second, "the access log has the request", func() bool { return accessLine(access, id) != "" })
			var line struct{ Check, Reason string }
			if err := json.Unmarshal([]byte(accessLine(access, id)), &line); err != nil || line.Check != string(row.check) || line.Reason != reason {
				t.Errorf("access log %s (%v), want check %s and %q", accessLine(access, id), err, row.check, reason)
			}
			shown := map[string]string{
				"the answer": a.body + fmt.Sprint(a.header), "the trace": row.w.gateway.get("/api/v1/explain?request_id=" + id),
				"the access log": access.String(), "the log": row.w.gateway.log.String(),
			}
			for where, text := range shown {
				for _, part := range append(strings.Split(row.token, "."), "planted-subject") {
					if len(part) >= 8 && strings.Contains(text, part) {
						t.Errorf("%s holds a part of the token: %.40s…", where, part)
					}
				}
			}
		})
	}
	// What an API accepts stands in its project, which the emulator writes without key managers: the registry's tests have it.
	for _, check := range allChecks {
		if check != keymanager.CheckAllowed && !slices.Contains(covered, check) {
			t.Errorf("no row fails the check %s", check)
		}
	}
}

// allChecks are the constants of keymanager, in their order.
var allChecks = []keymanager.Check{
	keymanager.CheckFormat, keymanager.CheckSize, keymanager.CheckIssuer, keymanager.CheckAllowed, keymanager.CheckAlgorithm, keymanager.CheckKey,
	keymanager.CheckSignature, keymanager.CheckExpired, keymanager.CheckNotBefore, keymanager.CheckIssuedAt, keymanager.CheckAudience, keymanager.CheckRevoked,
	keymanager.CheckBound, keymanager.CheckUnverified, keymanager.CheckOpaque, keymanager.CheckInactive, keymanager.CheckKind, keymanager.CheckAPI,
	keymanager.CheckIP, keymanager.CheckReferer, keymanager.CheckUser, keymanager.CheckClient,
}

// traceReason is the reason that the trace of a request gives for its refusal at authentication.
func traceReason(t *testing.T, g *gateway, id string) string {
	t.Helper()
	var trace struct {
		Steps []struct{ Step, Result, Reason string }
	}
	g.getJSON("/api/v1/explain?request_id="+id, &trace)
	for _, s := range trace.Steps {
		if s.Step == "authenticate" && s.Result == "refused" {
			return s.Reason
		}
	}
	t.Fatalf("no refusal in the trace: %s", g.get("/api/v1/explain?request_id="+id))
	return ""
}

func accessLine(b *lockedBuffer, id string) string {
	for line := range strings.SplitSeq(b.String(), "\n") {
		if strings.Contains(line, `"request_id":"`+id+`"`) {
			return line
		}
	}
	return ""
}
