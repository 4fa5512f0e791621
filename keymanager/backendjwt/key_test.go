package backendjwt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

func TestEveryAlgorithmVerifies(t *testing.T) {
	for _, c := range []struct {
		algorithm, alg string
		key            []byte
	}{
		{"SHA256withRSA", "RS256", rsaPEM()},
		{"RS256", "RS256", rsaPEM()},
		{"RS384", "RS384", rsaPEM()},
		{"RS512", "RS512", rsaPEM()},
		{"PS256", "PS256", rsaPEM()},
		{"ES256", "ES256", ecPEM()},
		{"EdDSA", "EdDSA", edPEM()},
	} {
		t.Run(c.algorithm, func(t *testing.T) {
			g, _ := newGenerator(t, Options{Algorithm: c.algorithm, KeyFile: keyFile(t, c.key)})
			token := mustToken(t, g, alice(), epochStart)
			claims, err := verify(g.KeySet(), token, epochStart)
			if err != nil {
				t.Fatalf("%v: %s", err, g.KeySet())
			}
			if claims["http://wso2.org/claims/apiname"] != "Shop" {
				t.Errorf("%v", claims)
			}
			if want := `{"typ":"JWT","alg":"` + c.alg + `","kid":"` + kid(t, token) + `"}`; head(t, token) != want {
				t.Errorf("header %s, want %s", head(t, token), want)
			}
			if strings.Contains(string(g.KeySet()), `"d":`) || strings.Contains(string(g.KeySet()), `"p":`) {
				t.Errorf("the key set holds the private key: %s", g.KeySet())
			}
			if strings.ContainsAny(token, "=+/") {
				t.Errorf("not base64url without padding: %s", token)
			}
			spoilt := []byte(token)
			spoilt[len(spoilt)-20] ^= 1
			if _, err := verify(g.KeySet(), string(spoilt), epochStart); err == nil {
				t.Error("a spoilt signature verifies: the test proves nothing")
			}
		})
	}
}

func TestUnsigned(t *testing.T) {
	if _, err := New(Options{Algorithm: "NONE"}); err == nil || !strings.Contains(err.Error(), "allow_unsigned") {
		t.Errorf("error %v", err)
	}
	g, _ := newGenerator(t, Options{Algorithm: "NONE", AllowUnsigned: true})
	token := mustToken(t, g, alice(), epochStart)
	if head(t, token) != `{"typ":"JWT","alg":"none"}` || !strings.HasSuffix(token, ".") || strings.Count(token, ".") != 2 {
		t.Errorf("%s", token)
	}
	if string(g.KeySet()) != `{"keys":[]}` {
		t.Errorf("key set %s", g.KeySet())
	}
	claims := jwt.MapClaims{}
	p := jwt.NewParser(jwt.WithoutClaimsValidation())
	if _, err := p.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return jwt.UnsafeAllowNoneSignatureType, nil }); err != nil {
		t.Error(err)
	}
	if err := g.SetKeyFile("/nowhere"); err != nil {
		t.Errorf("what needs no key asks for one: %v", err)
	}
}

// The digests are those that openssl prints for the certificate of the file.
func TestThumbprintsOfTheCertificate(t *testing.T) {
	g, _ := newGenerator(t, Options{KeyFile: "testdata/rsa-with-certificate.pem"})
	token := mustToken(t, g, alice(), epochStart)
	const x5t, x5tS256 = "YzFmNDlhZGE1MGJhMDE2MWUwMWNlZmZhOTE0MmY1YmY5OWQwZTM2ZA==", "1ELL80ws3DpSAhiZkJchyKTJKuUv8GNgdAJEEyMczA8"
	if want := `{"typ":"JWT","alg":"RS256","x5t":"` + x5t + `","x5t#S256":"` + x5tS256 + `","kid":"` + kid(t, token) + `"}`; head(t, token) != want {
		t.Errorf("header %s, want %s", head(t, token), want)
	}
	if _, err := verify(g.KeySet(), token, epochStart); err != nil {
		t.Error(err)
	}
	for _, want := range []string{`"x5t#S256":"` + x5tS256 + `"`, `"x5c":["MII`, `"use":"sig"`} {
		if !strings.Contains(string(g.KeySet()), want) {
			t.Errorf("the key set lacks %s: %s", want, g.KeySet())
		}
	}
}

// The keys and thumbprints are those of RFC 7638 3.1 and RFC 8037 A.
func TestKeyIDsAreThumbprints(t *testing.T) {
	b64 := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
	pub := rsa.PublicKey{N: new(big.Int).SetBytes(b64(n)), E: 65537}
	k, err := newKey(&rsa.PrivateKey{PublicKey: pub}, nil, algorithms["RS256"])
	if err != nil || k.id != "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs" {
		t.Errorf("RSA: %v %v", k, err)
	}
	k, err = newKey(ed25519.NewKeyFromSeed(b64("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")), nil, algorithms["EdDSA"])
	if err != nil || k.id != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("Ed25519: %v %v", k, err)
	}
}

func TestKeyFilesOfOtherForms(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(e)
	if err != nil {
		t.Fatal(err)
	}
	parameters := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}})
	for name, c := range map[string]struct {
		algorithm string
		content   []byte
	}{
		"PKCS#1":                  {"RS256", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r)})},
		"SEC 1 after parameters":  {"ES256", append(parameters, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...)},
		"text before the PEM":     {"RS256", append([]byte("Bag Attributes\n"), rsaPEM()...)},
		"certificate before key":  {"RS256", swapped(t)},
		"line ends of Windows":    {"RS256", bytes.ReplaceAll(rsaPEM(), []byte("\n"), []byte("\r\n"))},
		"blank lines at the ends": {"ES256", append(append([]byte("\n\n"), ecPEM()...), "\n\n"...)},
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := newGenerator(t, Options{Algorithm: c.algorithm, KeyFile: keyFile(t, c.content)})
			if _, err := verify(g.KeySet(), mustToken(t, g, alice(), epochStart), epochStart); err != nil {
				t.Error(err)
			}
		})
	}
}

func swapped(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/rsa-with-certificate.pem")
	if err != nil {
		t.Fatal(err)
	}
	key, rest := pem.Decode(data)
	return append(bytes.Clone(rest), pem.EncodeToMemory(key)...)
}

func TestKeyFilesOfNoUse(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile("testdata/rsa-with-certificate.pem")
	if err != nil {
		t.Fatal(err)
	}
	_, certificate := pem.Decode(other)
	for name, c := range map[string]struct {
		algorithm string
		content   []byte
		want      string
	}{
		"empty":                   {"RS256", nil, "no private key: write a PEM block"},
		"no PEM":                  {"RS256", []byte("secret"), "no private key"},
		"a certificate alone":     {"RS256", certificate, "no private key"},
		"cut off":                 {"RS256", rsaPEM()[:800], "no private key"},
		"an EC key for RS256":     {"RS256", ecPEM(), "the key is an EC key on P-256, and signing_algorithm RS256 needs an RSA key of 2048 bits or more"},
		"an RSA key for ES256":    {"ES256", rsaPEM(), "needs an EC key on P-256"},
		"an RSA key for EdDSA":    {"EdDSA", rsaPEM(), "needs an Ed25519 key"},
		"another curve":           {"ES256", inPEM(p384, nil), "the key is an EC key on P-384"},
		"a small RSA key":         {"RS256", inPEM(small, nil), "the key is an RSA key of 1024 bits"},
		"two keys":                {"RS256", append(bytes.Clone(rsaPEM()), rsaPEM()...), "two private keys"},
		"another's certificate":   {"RS256", append(bytes.Clone(rsaPEM()), certificate...), "is not that of the private key"},
		"encrypted":               {"RS256", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}}), "encrypted: write it without a passphrase"},
		"encrypted, the old way":  {"RS256", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"DEK-Info": "x"}, Bytes: []byte{1}}), "encrypted"},
		"a key that is no key":    {"RS256", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), "cannot be read"},
		"a certificate of no use": {"RS256", append(bytes.Clone(rsaPEM()), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})...), "certificate of the file cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			path := keyFile(t, c.content)
			_, err := New(Options{Algorithm: c.algorithm, KeyFile: path})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
	if _, err := New(Options{KeyFile: filepath.Join(t.TempDir(), "nothing")}); err == nil {
		t.Error("a file that does not exist is taken")
	}
	if _, err := New(Options{Algorithm: "HS256"}); err == nil {
		t.Error("HS256 is taken")
	}
}

func TestAKeyIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		g, log := newGenerator(t, Options{Algorithm: algorithm, DataDir: dir})
		first := kid(t, mustToken(t, g, alice(), epochStart))
		if !strings.Contains(log.String(), "made a key for backend JWTs") {
			t.Errorf("not told: %s", log)
		}
		g, log = newGenerator(t, Options{Algorithm: algorithm, DataDir: dir})
		if kid(t, mustToken(t, g, alice(), epochStart)) != first || strings.Contains(log.String(), "made a key") {
			t.Errorf("%s: another key after a restart", algorithm)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v %v", f.Name(), info.Mode(), err)
		}
	}
	if _, err := New(Options{DataDir: "/dev/null/data"}); err == nil || !strings.Contains(err.Error(), "make data_dir writable") {
		t.Errorf("error %v", err)
	}
}

// Whatever a key file holds: it is refused with a reason, or what it signs verifies with what is published.
func FuzzKeyFile(f *testing.F) {
	certified, err := os.ReadFile("testdata/rsa-with-certificate.pem")
	if err != nil {
		f.Fatal(err)
	}
	for _, content := range [][]byte{nil, certified, rsaPEM(), ecPEM(), edPEM(), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n")} {
		f.Add(content)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, name := range []string{"RS256", "ES256", "EdDSA"} {
			k, err := parseKey(content, algorithms[name])
			if err != nil {
				if k != nil || err.Error() == "" {
					t.Errorf("%v and %v", k, err)
				}
				continue
			}
			token, err := k.sign([]byte(`{"iss":"wso2.org/products/am","exp":1764000900,"iat":1764000000}`))
			if err != nil {
				t.Fatalf("%s: a key that was taken does not sign: %v", name, err)
			}
			set := append(append([]byte(`{"keys":[`), k.public...), "]}"...)
			if _, err := verify(set, token, epochStart); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
