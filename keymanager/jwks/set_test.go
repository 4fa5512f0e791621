package jwks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"
)

func certificate(t testing.TB, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "km"},
		NotAfter: time.Now().Add(time.Hour),
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParsePEM(t *testing.T) {
	cert := certificate(t, sharedKey())
	der, err := x509.MarshalPKIXPublicKey(sharedKey().Public())
	must(err)
	certPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	keyPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	ecPriv, err := x509.MarshalECPrivateKey(sharedKey())
	must(err)
	std := base64.StdEncoding.EncodeToString
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	must(err)
	tests := []struct {
		name, text string
		keys       int
		fault      string
	}{
		{"certificate", certPEM, 1, ""},
		{"public key", keyPEM, 1, ""},
		{"both", certPEM + "\n" + keyPEM, 2, ""},
		{"base64 of PEM, as the API Manager sends it", std([]byte(certPEM)), 1, ""},
		{"base64 of PEM in lines", std([]byte(certPEM))[:40] + "\n" + std([]byte(certPEM))[40:], 1, ""},
		{"base64 of PEM without padding", strings.TrimRight(std([]byte(keyPEM)), "="), 1, ""},
		{"base64 of the certificate itself", std(cert.Raw), 1, ""},
		{"PEM with blanks around", "\n  " + certPEM + "  \n", 1, ""},
		{"private key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecPriv})), 0, "wanted CERTIFICATE or PUBLIC KEY"},
		{"RSA of 1024 bits", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&short.PublicKey)})), 0, "shorter than 2048"},
		{"no base64", "hello!", 0, "neither PEM text nor"},
		{"base64 of nothing", std([]byte("hello")), 0, "no PEM block"},
		{"empty", "", 0, "no PEM block"},
		{"cut PEM", certPEM[:100], 0, "no PEM block"},
		{"certificate of garbage", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), 0, "PEM block 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, err := ParsePEM(tt.text)
			if tt.fault != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fault) {
					t.Fatalf("error %v, want %q", err, tt.fault)
				}
				return
			}
			if err != nil || len(set.Keys()) != tt.keys {
				t.Fatalf("set %v, %v", set, err)
			}
			if !sharedKey().PublicKey.Equal(set.Keys()[0].Public) {
				t.Error("another key")
			}
		})
	}
	set, err := ParsePEM(certPEM)
	must(err)
	thumb := sha1.Sum(cert.Raw)
	for _, x5t := range []string{base64.RawURLEncoding.EncodeToString(thumb[:]), hexThumbprint(thumb[:])} {
		if len(set.ByThumbprint(x5t, "")) != 1 {
			t.Errorf("thumbprint %s finds nothing", x5t)
		}
	}
	if len(set.ByThumbprint("", "")) != 0 || len(set.ByThumbprint("x", "y")) != 0 {
		t.Error("a wrong thumbprint finds a key")
	}
}

func TestParseLeavesOutWhatCannotVerify(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	must(err)
	b64 := base64.RawURLEncoding.EncodeToString
	other := certificate(t, func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return k
	}())
	with := func(change map[string]any) map[string]any {
		k := ecJWK("x")
		maps.Copy(k, change)
		return k
	}
	bad := map[string]map[string]any{
		"not sig":                 with(map[string]any{"use": "enc"}),
		"hold verify":             with(map[string]any{"key_ops": []string{"sign"}}),
		"of another key":          with(map[string]any{"x5c": []string{base64.StdEncoding.EncodeToString(other.Raw)}}),
		"shorter than":            {"kty": "RSA", "n": b64(short.N.Bytes()), "e": "AQAB"},
		"unusable exponent":       {"kty": "RSA", "n": b64(short.N.Bytes()), "e": strings.Repeat("AQAB", 10)},
		"symmetric":               {"kty": "oct", "k": "c2VjcmV0"},
		"unsupported":             {"kty": "XYZ"},
		"specified curve":         with(map[string]any{"x": b64(make([]byte, 32))}),
		"not a JSON Web Key":      {"kty": 5},
		"decode":                  with(map[string]any{"x": "***"}),
		"not a key that verifies": {"kty": "OKP", "crv": "X25519", "x": b64(append([]byte{9}, make([]byte, 31)...))},
	}
	for reason, k := range bad {
		doc, err := json.Marshal(map[string]any{"keys": []any{k, ecJWK("good")}})
		must(err)
		set, skipped, err := Parse(doc)
		if err != nil || len(set.Keys()) != 1 || len(skipped) != 1 || !strings.Contains(skipped[0], reason) {
			t.Errorf("%s: set %v, skipped %q, %v", reason, set, skipped, err)
		}
		only, err := json.Marshal(map[string]any{"keys": []any{k}})
		must(err)
		if _, _, err := Parse(only); err == nil {
			t.Errorf("%s: a set of it alone was taken", reason)
		}
	}
}

func TestParsePrivateKeysGiveTheirPublicHalf(t *testing.T) {
	k := ecJWK("x")
	k["d"] = base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	doc, err := json.Marshal(map[string]any{"keys": []any{k}})
	must(err)
	set, _, err := Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	if _, public := set.Keys()[0].Public.(*ecdsa.PublicKey); !public {
		t.Errorf("key of type %T", set.Keys()[0].Public)
	}
}

func TestParseNeverAsksForX5U(t *testing.T) {
	s := newServer(t, serve([]byte("x")))
	k := ecJWK("x")
	k["x5u"] = s.URL
	doc, err := json.Marshal(map[string]any{"keys": []any{k}})
	must(err)
	if _, _, err := Parse(doc); err != nil || s.fetches.Load() != 0 {
		t.Errorf("%d requests, %v", s.fetches.Load(), err)
	}
}

func TestHoldsTellsKeysApart(t *testing.T) {
	a, _, err := Parse(document("a", "b"))
	must(err)
	b, _, err := Parse(document("b", "c"))
	must(err)
	for kid, want := range map[string]bool{"a": false, "b": true} {
		if got := b.Holds(a.ByID(kid)[0]); got != want {
			t.Errorf("%s: %t", kid, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(document("a", "b"))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"oct","k":"AA"},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}`))
	f.Add([]byte(`{"keys":[null,1,"x",{}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		set, _, err := Parse(doc)
		if err != nil {
			return
		}
		if len(set.Keys()) == 0 {
			t.Fatal("an empty set was taken")
		}
		for _, k := range set.Keys() {
			if !set.Holds(k) || k.Public == nil || k.ID != "" && len(set.ByID(k.ID)) == 0 {
				t.Fatalf("key %+v", k)
			}
			if r, ok := k.Public.(*rsa.PublicKey); ok && r.N.BitLen() < MinRSABits {
				t.Fatalf("RSA of %d bits", r.N.BitLen())
			}
		}
	})
}

func FuzzParsePEM(f *testing.F) {
	cert := certificate(f, sharedKey())
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	f.Add(text)
	f.Add(base64.StdEncoding.EncodeToString([]byte(text)))
	f.Fuzz(func(t *testing.T, text string) {
		set, err := ParsePEM(text)
		if err == nil && len(set.Keys()) == 0 {
			t.Fatal("an empty set was taken")
		}
	})
}
