package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"gatehouse/agent/admin"
	"gatehouse/keymanager"
	"gatehouse/keymanager/registry"
)

// signers are the keys of the tests: that of the issuer and another. They are dear to make.
var signers = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

var b64 = base64.RawURLEncoding.EncodeToString

// mint makes a token. Claims are name=value pairs: a value that is JSON is taken as such, "+60" and "-60" after exp, nbf and
// iat are seconds from now, and nothing leaves the claim out. "alg", "kid", "typ" stand for the header; "key=other" signs
// with a key that the issuer does not have, "hmac=public" with the public key's text as the secret.
func mint(pairs ...string) string {
	now := time.Now().Unix()
	header := map[string]any{"alg": "RS256", "kid": "k1", "typ": "JWT"}
	claims := map[string]any{"iss": "https://idp.example.com", "sub": "alice", "aud": []string{"orders", "account"}, "azp": "shop", "iat": now - 10, "exp": now + 3600}
	key, secret := signers()[0], []byte(nil)
	for _, pair := range pairs {
		name, text, _ := strings.Cut(pair, "=")
		var value any = text
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && (text[0] == '+' || text[0] == '-') {
			value = now + n
		} else if json.Unmarshal([]byte(text), &value) != nil {
			value = text
		}
		to := claims
		if slices.Contains([]string{"alg", "kid", "typ"}, name) {
			to = header
		}
		switch {
		case name == "key":
			key = signers()[1]
		case name == "hmac":
			secret = publicPEM()
		case text == "":
			delete(to, name)
		default:
			to[name] = value
		}
	}
	part := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return b64(text)
	}
	signed := part(header) + "." + part(claims)
	switch {
	case secret != nil:
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		return signed + "." + b64(mac.Sum(nil))
	case strings.EqualFold(header["alg"].(string), "none"):
		return signed + "."
	}
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + b64(signature)
}

func publicPEM() []byte {
	der, err := x509.MarshalPKIXPublicKey(&signers()[0].PublicKey)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func keySet() []byte {
	public := signers()[0].PublicKey
	text, err := json.Marshal(map[string]any{"keys": []any{map[string]any{
		"kty": "RSA", "kid": "k1", "use": "sig", "alg": "RS256", "n": b64(public.N.Bytes()), "e": b64(big.NewInt(int64(public.E)).Bytes()),
	}}})
	if err != nil {
		panic(err)
	}
	return text
}

// tokenScripts gives the scripts keys, tokens ("mint FILE claim=value…") and the servers of an issuer and of a gateway.
func tokenScripts(env *testscript.Env) error {
	if !strings.HasPrefix(filepath.Base(env.WorkDir), "script-token") {
		return nil
	}
	for name, text := range map[string][]byte{"issuer.pem": publicPEM(), "jwks.json": keySet()} {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), text, 0o600); err != nil {
			return err
		}
	}
	server := quietServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keySet()) }))
	env.Defer(server.Close)
	env.Setenv("JWKS_URL", server.URL+"/certs")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return os.WriteFile(filepath.Join(env.WorkDir, "ca.pem"), ca, 0o600)
}

// quietServer does not write down that clients broke the handshake off: the tests ask for it.
func quietServer(h http.Handler) *httptest.Server {
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	return server
}

func mintInScript(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: mint FILE claim=value…")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(mint(args[1:]...)+"\n"), 0o600))
}

// runWith executes a command line inside the test with something on standard input.
func runWith(t *testing.T, stdin string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = execute(t.Context(), args, ioStreams{In: strings.NewReader(stdin), Out: &out, Err: &err})
	return status, out.String(), err.String()
}

// The verdicts are those of the gateway, and no part of a token is in them.
func TestTokenVerifyNamesTheCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	jwksFile, pemFile := file("jwks.json", keySet()), file("issuer.pem", publicPEM())
	whole := mint()
	parts := strings.Split(whole, ".")
	tests := []struct {
		name, token string
		flags       []string
		status      int
		want        string // of the first line
	}{
		{"good", whole, nil, 0, "good: valid for "},
		{"good, with everything named", whole, []string{"--issuer", "https://idp.example.com", "--audience", "orders"}, 0, "good: valid for "},
		{"a key without a name", mint("kid="), nil, 0, "good: valid for "},
		{"wrong issuer", whole, []string{"--issuer", "https://idp.example.com/"}, 1, `refused at the check "issuer": no key manager has the issuer of the token`},
		{"no issuer", mint("iss="), nil, 1, `refused at the check "issuer": the token names no issuer`},
		{"wrong audience", whole, []string{"--audience", "payments"}, 1, `refused at the check "audience": the token is meant for another audience`},
		{"no audience", mint("aud="), []string{"--audience", "payments"}, 1, `refused at the check "audience": the token names no audience (aud)`},
		{"expired", mint("exp=-3600"), nil, 1, `refused at the check "expired": the access token expired at `},
		{"expired, signature only", mint("exp=-3600"), []string{"--signature-only"}, 0, "good: the signature is that of the issuer; nothing else was judged"},
		{"no expiry", mint("exp="), nil, 1, `refused at the check "expired": the token has no expiry (exp)`},
		{"expiry as text", mint(`exp="soon"`), nil, 1, `refused at the check "expired": the claim exp is not a number`},
		{"not yet valid", mint("nbf=+3600"), nil, 1, `refused at the check "not_before": the token is not valid before `},
		{"issued in the future", mint("iat=+3600"), nil, 1, `refused at the check "issued_at": the token was issued in the future, at `},
		{"bad signature", mint("key=other"), nil, 1, `refused at the check "signature": the signature is not that of the issuer`},
		{"bad signature, signature only", mint("key=other"), []string{"--signature-only"}, 1, `refused at the check "signature": the signature is not that of the issuer`},
		{"alg none", mint("alg=none"), nil, 1, `refused at the check "algorithm": the algorithm`},
		{"HS256 with the public key", mint("alg=HS256", "hmac=public"), nil, 1, `refused at the check "algorithm": the algorithm`},
		{"opaque", "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01", nil, 1, `refused at the check "opaque": `},
		{"cut off", whole[:len(whole)-1], nil, 1, `refused at the check "format": the signature is not base64url`},
		{"too large", mint("pad=" + strings.Repeat("x", 17000)), nil, 1, `refused at the check "size": the token has `},
	}
	for _, source := range [][2]string{{"--jwks", jwksFile}, {"--pem", pemFile}} {
		for _, tt := range tests {
			t.Run(source[0][2:]+"/"+tt.name, func(t *testing.T) {
				args := append([]string{"token", "verify", source[0], source[1], "-"}, tt.flags...)
				status, stdout, stderr := runWith(t, "Bearer "+tt.token+"\n", args...)
				if status != tt.status || !strings.HasPrefix(stdout, tt.want) || stderr != "" {
					t.Errorf("status %d\n%s%s\nwant %d, %s", status, stdout, stderr, tt.status, tt.want)
				}
				for part := range strings.SplitSeq(tt.token, ".") {
					if len(part) > 10 && strings.Contains(stdout+stderr, part) {
						t.Error("the token is shown")
					}
				}
			})
		}
	}
	t.Run("the whole line of a header", func(t *testing.T) {
		status, stdout, stderr := runWith(t, "authorization:  Bearer "+whole+"\r\n", "token", "verify", "--jwks", jwksFile, "-")
		if status != 0 || !strings.HasPrefix(stdout, "good") {
			t.Errorf("status %d: %s%s", status, stdout, stderr)
		}
	})
	t.Run("jwks/unknown kid", func(t *testing.T) {
		status, stdout, _ := runWith(t, mint("kid=k9"), "token", "verify", "--jwks", jwksFile, "-")
		if status != 1 || !strings.HasPrefix(stdout, `refused at the check "key": the issuer has no key of the ID (kid) that the token names`) {
			t.Errorf("status %d: %s", status, stdout)
		}
	})
	t.Run("duplicate members", func(t *testing.T) {
		token := parts[0] + "." + b64([]byte(`{"iss":"a","iss":"b"}`)) + "." + parts[2]
		status, stdout, _ := runWith(t, token, "token", "verify", "--jwks", jwksFile, "-")
		if status != 1 || !strings.HasPrefix(stdout, `refused at the check "format": the payload `) {
			t.Errorf("status %d: %s", status, stdout)
		}
	})
	t.Run("json", func(t *testing.T) {
		status, stdout, _ := runWith(t, mint("exp=-60", "kid="), "token", "verify", "--pem", pemFile, "-o", "json", "-")
		var v verdictOnToken
		if err := json.Unmarshal([]byte(stdout), &v); err != nil || status != 1 || v.Valid || v.Failed != "expired" || v.Issuer != "https://idp.example.com" || v.Claims != nil {
			t.Errorf("status %d, %v: %s", status, err, stdout)
		}
		status, stdout, _ = runWith(t, whole, "token", "verify", "--pem", pemFile, "-o", "json", "-")
		if err := json.Unmarshal([]byte(stdout), &v); err != nil || status != 0 || !v.Valid || v.Claims["sub"] != "alice" {
			t.Errorf("status %d, %v: %s", status, err, stdout)
		}
	})
}

// adminServer is the admin server of a gateway that knows the issuer of the tests, over TLS.
func adminServer(t *testing.T, o admin.Options) (address, caFile string) {
	t.Helper()
	keys := registry.New(registry.Options{})
	t.Cleanup(keys.Close)
	keys.Put(keymanager.KeyManager{Name: "Corp IdP", Tenant: "carbon.super", Enabled: true, SelfValidate: true, Issuer: "https://idp.example.com", PEM: string(publicPEM())})
	o.VerifyToken = func(ctx context.Context, token string) admin.VerifyResult {
		v := keys.Verify(ctx, token, registry.VerifyOptions{})
		return admin.VerifyResult{Valid: v.Valid, Failed: string(v.Failed), Detail: v.Detail, KeyManager: v.KeyManager, Issuer: v.Issuer, Claims: v.Claims}
	}
	server := quietServer(admin.New(o).Handler())
	t.Cleanup(server.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return server.Listener.Addr().String(), caFile
}

func TestTokenVerifyAsksARunningGateway(t *testing.T) {
	address, ca := adminServer(t, admin.Options{Username: "ops", Password: "hunter2", Token: "hunter3"})
	dir := t.TempDir()
	password, wrong, token, empty := filepath.Join(dir, "password"), filepath.Join(dir, "wrong"), filepath.Join(dir, "token"), filepath.Join(dir, "empty")
	for path, text := range map[string]string{password: "hunter2\n", wrong: "hunter1", token: "hunter3\n", empty: "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	signedIn := []string{"--username", "ops", "--password-file", password, "--ca-file", ca}
	tests := []struct {
		name, token    string
		env            []string
		flags          []string
		status         int
		stdout, stderr string // what each begins with
	}{
		{"good", mint(), nil, signedIn, 0, "good: valid for ", ""},
		{"good, by a token", mint(), nil, []string{"--token-file", token, "--ca-file", ca}, 0, "good: valid for ", ""},
		{"good, by the environment", mint(), []string{envAdminUsername, "ops", envAdminPassword, "hunter2"}, []string{"--ca-file", ca}, 0, "good: valid for ", ""},
		{"good, by a token of the environment", mint(), []string{envAdminToken, "hunter3"}, []string{"--ca-file", ca}, 0, "good: valid for ", ""},
		{"expired", mint("exp=-60"), nil, signedIn, 1, `refused at the check "expired": the access token expired at `, ""},
		{"expired, signature only", mint("exp=-60"), nil, append(signedIn, "--signature-only"), 0, "good: the signature is that of the issuer", ""},
		{"unknown issuer", mint("iss=https://evil.example.com"), nil, signedIn, 1, `refused at the check "issuer": no key manager has the issuer of the token`, ""},
		{"another issuer than named", mint(), nil, append(signedIn, "--issuer", "https://x"), 1, `refused at the check "issuer": the token is of another issuer`, ""},
		{"another audience than named", mint(), nil, append(signedIn, "--audience", "x"), 1, `refused at the check "audience": the token is meant for another audience`, ""},
		{"the audience that is named", mint(), nil, append(signedIn, "--audience", "account"), 0, "good", ""},
		{"opaque", "0d6d6ad2-7a84-4c5c", nil, signedIn, 1, `refused at the check "opaque": `, ""},
		{"no credentials", mint(), nil, []string{"--ca-file", ca}, 1, "", "gatehouse: the admin server at https://" + address + " does not take these credentials: give --username"},
		{"wrong password", mint(), nil, []string{"--username", "ops", "--password-file", wrong, "--ca-file", ca}, 1, "", "gatehouse: the admin server at https://" + address + " does not take these credentials"},
		{"half of a credential", mint(), nil, []string{"--username", "ops", "--ca-file", ca}, 2, "", "gatehouse: half of a credential"},
		{"an empty password file", mint(), nil, []string{"--username", "ops", "--password-file", empty, "--ca-file", ca}, 2, "", "gatehouse: " + empty + " is empty"},
		{"no password file", mint(), nil, []string{"--username", "ops", "--password-file", "nowhere", "--ca-file", ca}, 2, "", "gatehouse: open nowhere: "},
		{"plain HTTP to TLS", mint(), nil, []string{"--token-file", token}, 1, "", "gatehouse: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range []string{envAdminUsername, envAdminPassword, envAdminToken} {
				t.Setenv(name, "")
			}
			for i := 0; i < len(tt.env); i += 2 {
				t.Setenv(tt.env[i], tt.env[i+1])
			}
			status, stdout, stderr := runWith(t, tt.token, append([]string{"token", "verify", "--admin", address, "-"}, tt.flags...)...)
			if status != tt.status || !strings.HasPrefix(stdout, tt.stdout) || !strings.HasPrefix(stderr, tt.stderr) || tt.stderr == "" && stderr != "" || tt.stdout == "" && stdout != "" {
				t.Errorf("status %d\n%s%s\nwant %d, %s%s", status, stdout, stderr, tt.status, tt.stdout, tt.stderr)
			}
			if strings.Contains(stdout+stderr, "hunter") || strings.Contains(stdout+stderr, tt.token) {
				t.Error("a secret is shown")
			}
			if tt.status == 0 && !strings.Contains(tt.name, "signature") && !strings.Contains(stdout, "  key manager: Corp IdP\n") {
				t.Errorf("no key manager: %s", stdout)
			}
		})
	}
	t.Run("unknown authority", func(t *testing.T) {
		status, _, stderr := runWith(t, mint(), "token", "verify", "--admin", "https://"+address, "-")
		if status != 1 || !strings.Contains(stderr, "certificate") {
			t.Errorf("status %d: %s", status, stderr)
		}
	})
}

func TestCredentialsThatCrossTheNetworkBareAreTold(t *testing.T) {
	for base, want := range map[string]bool{
		"http://10.0.0.1:9096": true, "http://gw.example.com": true, "https://gw.example.com": false,
		"http://127.0.0.1:9096": false, "http://localhost:9096": false, "http://[::1]:9096": false,
	} {
		if got := (&adminClient{base: base, password: "x"}).exposed(); got != want {
			t.Errorf("%s: %v", base, got)
		}
	}
	if (&adminClient{base: "http://10.0.0.1:9096"}).exposed() {
		t.Error("nothing is exposed without credentials")
	}
}

func TestAdminAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:9096": "http://127.0.0.1:9096", "https://gw:9096/": "https://gw:9096", "gw": "http://gw",
		"http://u:p@gw": "", "ftp://gw": "", "://": "", "http://": "", "gw?x": "",
	} {
		if got, err := adminURL(address, false); got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", address, got, err)
		}
	}
	if got, _ := adminURL("gw:9096", true); got != "https://gw:9096" {
		t.Errorf("with a CA file: %s", got)
	}
}

func TestTokenInspect(t *testing.T) {
	part := func(text string) string { return b64([]byte(text)) }
	head := part(`{"alg":"RS256","kid":"k1"}`)
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	tests := []struct{ name, token, want string }{
		{"whole", head + "." + part(`{"iss":"https://i","exp":1795525200,"iat":1795521600,"nbf":1795521600.5,"aud":["a", "b"],"n":12345678901234567890}`) + ".c2ln", `header
  alg: "RS256"
  kid: "k1"
claims
  iss: "https://i"
  exp: 1795525200 (2026-11-24T13:00:00Z, valid for 1h0m)
  iat: 1795521600 (2026-11-24T12:00:00Z)
  nbf: 1795521600.5 (2026-11-24T12:00:00Z)
  aud: ["a","b"]
  n: 12345678901234567890
signature
  4 characters, not shown and not verified
`},
		{"expired long ago", head + "." + part(`{"exp":1764003600,"iat":1795525200,"nbf":1795608000}`) + ".c2ln", `header
  alg: "RS256"
  kid: "k1"
claims
  exp: 1764003600 (2025-11-24T17:00:00Z, expired 364d19h ago)
  iat: 1795525200 (2026-11-24T13:00:00Z, in the future)
  nbf: 1795608000 (2026-11-25T12:00:00Z, not valid for another 1d0h)
signature
  4 characters, not shown and not verified
`},
		{"times that are none", head + "." + part(`{"exp":"soon","iat":-5,"nbf":1e300}`) + ".c2ln", `header
  alg: "RS256"
  kid: "k1"
claims
  exp: "soon"
  iat: -5
  nbf: 1e300
signature
  4 characters, not shown and not verified
`},
		{"opaque", "0d6d6ad2-7a84", "broken: token: has no dots: an opaque token, which only its key manager can read, or a piece of one\n"},
		{"not signed", part(`{"alg":"none"}`) + "." + part(`{"sub":"x"}`) + ".", `header
  alg: "none"
claims
  sub: "x"
broken: signature: is empty: the token is not signed
broken: header: the algorithm is "none": the token is not signed
`},
		{"cut off in the claims", head + "." + part(`{"sub":"alice","exp":17640036`), `header
  alg: "RS256"
  kid: "k1"
claims
  sub: "alice"
broken: token: has 2 parts, where a JWT has three: header, payload and signature
broken: payload, at character 75 of the token: breaks off
`},
		{"a foreign character", head + "." + part(`{"sub":"alice"}`)[:10] + "!" + part(`{"sub":"alice"}`)[11:] + ".c2ln", `header
  alg: "RS256"
  kid: "k1"
signature
  4 characters, not shown and not verified
broken: payload, at character 47 of the token: holds a character that base64url has not
`},
		{"padded", head + "." + part(`{"sub":"al"}`) + "==.c2ln", `header
  alg: "RS256"
  kid: "k1"
claims
  sub: "al"
signature
  4 characters, not shown and not verified
broken: payload, at character 53 of the token: is padded with =, which a token's parts are not
`},
		{"a member twice, and a steering character", head + "." + part("{\"a\":1,\"a\":\"\u009b31m\u202e\"}") + ".c2ln", `header
  alg: "RS256"
  kid: "k1"
claims
  a: 1
  a: "\u009b31m\u202e"
signature
  4 characters, not shown and not verified
broken: payload: has the member "a" twice
`},
		{"no object", head + "." + part(`[1]`) + ".c2ln", `header
  alg: "RS256"
  kid: "k1"
signature
  4 characters, not shown and not verified
broken: payload, at character 37 of the token: is not a JSON object
`},
		{"encrypted", head + ".a.b.c.d", `header
  alg: "RS256"
  kid: "k1"
broken: token: has five parts: it is encrypted (JWE), and only who holds the key can read it
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			found := inspect(tt.token, now)
			if err := found.print(&b, now); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, b.String()); d != "" {
				t.Error(d)
			}
			text, err := json.Marshal(found)
			if err != nil || !json.Valid(text) {
				t.Errorf("%v: %s", err, text)
			}
		})
	}
}

// Whatever is given, inspect answers, and the answer is valid JSON without the signature.
func FuzzInspect(f *testing.F) {
	f.Add(mint())
	f.Add("a.b.c")
	f.Add(b64([]byte(`{"alg":"none"`)) + ".." + b64([]byte("{}")))
	f.Add(b64([]byte(`{"a":"\ud800","a":[1e999]}`)) + "." + b64([]byte(`{"exp":1`)) + ".=")
	f.Fuzz(func(t *testing.T, token string) {
		found := inspect(token, time.Unix(0, 0))
		if err := found.print(io.Discard, time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(found)
		if err != nil || !json.Valid(text) {
			t.Fatalf("%v: %s", err, text)
		}
		for _, p := range found.Problems {
			if p.At < 0 || p.At > len(token)+1 || p.Problem == "" {
				t.Fatalf("%+v", p)
			}
		}
	})
}
