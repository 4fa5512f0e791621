package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

var now = time.Unix(1764000000, 0)

// fixedKeys are made once; tokens of a corpus cannot outlive them, so the fuzz function signs what it is given itself.
type keys struct {
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
	ed  ed25519.PrivateKey
}

func newKeys(t testing.TB) keys {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, d, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return keys{r, e, d}
}

func (k keys) public() []crypto.PublicKey {
	return []crypto.PublicKey{k.rsa.Public(), k.ec.Public(), k.ed.Public()}
}

var enc = base64.RawURLEncoding.EncodeToString

const goodPayload = `{"iss":"https://km","sub":"alice","exp":1764003600,"iat":1764000000,"nbf":1764000000,"aud":["gw"]}`

var headers = []string{
	`{"alg":"RS256","kid":"1","typ":"JWT"}`, `{"alg":"ES256"}`, `{"alg":"EdDSA","typ":"at+jwt"}`, `{"alg":"none"}`, `{"alg":"HS256"}`, `{"alg":"PS256"}`,
	`{"alg":"RS256","crit":["x"]}`, `{"alg":"RS256","alg":"none"}`, `{"alg":"RS256","kid":1}`, `{"alg":"RS256","typ":"id+jwt"}`, `[]`, `{}`, `x`, ``,
}

var payloads = []string{
	goodPayload, `{}`, `[]`, ``, `{"iss":"https://km"}`, `{"iss":"https://km","exp":"1764003600"}`, `{"iss":"https://km","exp":1e400}`,
	`{"iss":"https://km","exp":1764003600.5,"exp":1}`, `{"iss":"https://km","exp":99999999999999}`, `{"iss":"https://km","exp":1764003600,"nbf":1764009999}`,
	`{"iss":"https://km","exp":1764003600,"iat":1764009999}`, `{"iss":1,"exp":1764003600}`, "{\"iss\":\"\xff\",\"exp\":1764003600}", `{"iss":"https://km","exp":-1}`,
	`{"iss":"https://km","exp":1764003600}{}`, strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20),
}

// oracle verifies with golang-jwt's own parser and, for the signature, with the standard library alone.
func oracle(t testing.TB, raw string, key crypto.PublicKey) error {
	p := jwt.NewParser(jwt.WithValidMethods([]string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}),
		jwt.WithLeeway(DefaultSkew), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithStrictDecoding())
	_, err := p.Parse(raw, func(*jwt.Token) (any, error) { return key, nil })
	return err
}

func accepts(raw string, key crypto.PublicKey) (*Token, *keymanager.Refusal) {
	tok, r := Parse(raw)
	if r != nil {
		return nil, r
	}
	if r := CheckAlgorithm(tok.Algorithm, nil); r != nil {
		return nil, r
	}
	if !tok.Verify(key) {
		return nil, refuse(keymanager.CheckSignature, "bad")
	}
	if _, r := tok.CheckClaims(now, Rules{}); r != nil {
		return nil, r
	}
	return tok, nil
}

// FuzzParse feeds any text: parsing never panics, and what is accepted golang-jwt accepts too.
func FuzzParse(f *testing.F) {
	k := newKeys(f)
	for _, h := range headers {
		for _, p := range payloads {
			f.Add(enc([]byte(h)) + "." + enc([]byte(p)) + "." + enc([]byte("signature")))
		}
	}
	f.Add("")
	f.Add("a.b.c")
	f.Add("....")
	f.Fuzz(func(t *testing.T, raw string) {
		tok, r := Parse(raw)
		if (tok == nil) == (r == nil) {
			t.Fatalf("token %v, refusal %v", tok, r)
		}
		for _, key := range k.public() {
			if tok, _ := accepts(raw, key); tok != nil {
				t.Fatalf("accepted a token that nobody signed: %q", raw)
			}
		}
	})
}

// FuzzSigned signs any header and payload: what is accepted golang-jwt and the standard library accept too, with the
// same issuer and subject.
func FuzzSigned(f *testing.F) {
	k := newKeys(f)
	for i, h := range headers {
		for j, p := range payloads {
			f.Add([]byte(h), []byte(p), byte(i+j), byte(0), uint16(0))
		}
	}
	f.Add([]byte(headers[0]), []byte(goodPayload), byte(0), byte(1), uint16(3))
	f.Fuzz(func(t *testing.T, header, payload []byte, which, flip byte, at uint16) {
		signed := enc(header) + "." + enc(payload)
		h := sha256.Sum256([]byte(signed))
		var sig []byte
		var err error
		var key crypto.PublicKey
		switch which % 4 {
		case 0:
			key = k.rsa.Public()
			sig, err = rsa.SignPKCS1v15(rand.Reader, k.rsa, crypto.SHA256, h[:])
		case 1:
			key = k.rsa.Public()
			sig, err = rsa.SignPSS(rand.Reader, k.rsa, crypto.SHA256, h[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		case 2:
			key = k.ec.Public()
			var r, s *big.Int
			if r, s, err = ecdsa.Sign(rand.Reader, k.ec, h[:]); err == nil {
				sig = make([]byte, 64)
				r.FillBytes(sig[:32])
				s.FillBytes(sig[32:])
			}
		default:
			key = k.ed.Public()
			sig = ed25519.Sign(k.ed, []byte(signed))
		}
		if err != nil {
			t.Fatal(err)
		}
		sig[int(at)%len(sig)] ^= flip
		raw := signed + "." + enc(sig)
		tok, refusal := accepts(raw, key)
		if tok == nil {
			if refusal.Detail == "" || strings.ContainsAny(refusal.Detail, "\"\\\r\n") {
				t.Fatalf("detail %q", refusal.Detail)
			}
			return
		}
		if flip != 0 {
			t.Fatalf("accepted a changed signature: %q", raw)
		}
		if err := oracle(t, raw, key); err != nil {
			t.Fatalf("accepted, but golang-jwt refuses %q: %v", raw, err)
		}
		switch pub := key.(type) {
		case *rsa.PublicKey:
			if which%4 == 0 {
				err = rsa.VerifyPKCS1v15(pub, crypto.SHA256, h[:], sig)
			} else {
				err = rsa.VerifyPSS(pub, crypto.SHA256, h[:], sig, nil)
			}
			if err != nil {
				t.Fatalf("accepted, but the standard library refuses %q: %v", raw, err)
			}
		case *ecdsa.PublicKey:
			if !ecdsa.Verify(pub, h[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
				t.Fatalf("accepted, but the standard library refuses %q", raw)
			}
		}
		var c struct{ Iss, Sub string }
		if json.Unmarshal(payload, &c) == nil && c.Iss != tok.Issuer {
			// encoding/json ignores the case of names; only an exact one counts here.
			if _, exact := tok.Claims["iss"]; !exact {
				t.Fatalf("issuer %q, want %q", tok.Issuer, c.Iss)
			}
		}
	})
}

// FuzzClaims compares the decoder of claims with that of the standard library.
func FuzzClaims(f *testing.F) {
	for _, p := range payloads {
		f.Add([]byte(p))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeObject(b)
		if err != nil {
			return
		}
		d := json.NewDecoder(strings.NewReader(string(b)))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		x, _ := json.Marshal(got)
		y, _ := json.Marshal(want)
		if string(x) != string(y) {
			t.Fatalf("decoded %s, want %s", x, y)
		}
	})
}

func TestQuoteIsSafeInAHeader(t *testing.T) {
	for in, want := range map[string]string{"RS256": "'RS256'", "a\"b\\c'd": "'a?b?c?d'", "a\r\nb\x00": "'a??b?'", "é": "'??'", strings.Repeat("x", 41): "'" + strings.Repeat("x", 40) + "...'"} {
		if got := quote(in); got != want {
			t.Errorf("%q became %s, want %s", in, got, want)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	raw := enc([]byte(headers[0])) + "." + enc([]byte(goodPayload)) + "." + enc(make([]byte, 256))
	b.ReportAllocs()
	for b.Loop() {
		if _, r := Parse(raw); r != nil {
			b.Fatal(r)
		}
	}
}
