// Package jwks holds the verification keys of one key manager: reads them from a key set document or PEM text, chooses
// among them, and keeps a set from a URL fresh.
package jwks

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // the thumbprint x5t is made of it (RFC 7517 4.8)
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/MicahParks/jwkset"
)

// MinRSABits is the shortest RSA key that is used (RFC 7518 3.3).
const MinRSABits = 2048

// maxKeys bounds a set; no key server of ours publishes more than a dozen.
const maxKeys = 256

// Key is one public key of a set.
type Key struct {
	ID string // kid, empty where it has none
	// Algorithm is the JWK's alg: the only one that the key may be used with; empty means any that suits it.
	Algorithm string
	Type      string // RSA, EC, OKP
	Public    crypto.PublicKey
	// X5T and X5TS256 are the thumbprints of its certificate, base64url without padding; empty where it has none.
	X5T, X5TS256 string
	// hexX5T is X5T as WSO2 writes it: the base64url of the hexadecimal text.
	hexX5T string
	// identity is the hash of the key and its ID, to tell whether a later set still holds it.
	identity [32]byte
}

// Set is an immutable set of keys. The zero value is empty.
type Set struct {
	keys   []*Key
	byID   map[string][]*Key
	byHash map[[32]byte]bool
}

// Keys returns the keys in the order of the document. The slice must not be changed.
func (s *Set) Keys() []*Key { return s.keys }

// ByID returns the keys of a kid; normally one, more where a server uses one kid for keys of several types.
func (s *Set) ByID(kid string) []*Key { return s.byID[kid] }

// ByThumbprint returns the keys whose certificate has one of the thumbprints; an empty thumbprint matches nothing.
func (s *Set) ByThumbprint(x5t, x5tS256 string) (found []*Key) {
	x5t, x5tS256 = trim(x5t), trim(x5tS256)
	for _, k := range s.keys {
		if x5tS256 != "" && k.X5TS256 == x5tS256 || x5tS256 == "" && x5t != "" && (k.X5T == x5t || k.hexX5T == x5t) {
			found = append(found, k)
		}
	}
	return found
}

// Holds reports whether the set has this key, under the same ID.
func (s *Set) Holds(k *Key) bool { return s.byHash[k.identity] }

func newSet(keys []*Key) *Set {
	s := &Set{keys: keys, byID: make(map[string][]*Key, len(keys)), byHash: make(map[[32]byte]bool, len(keys))}
	for _, k := range keys {
		if k.ID != "" {
			s.byID[k.ID] = append(s.byID[k.ID], k)
		}
		s.byHash[k.identity] = true
	}
	return s
}

func newKey(public crypto.PublicKey, id, alg string, cert *x509.Certificate) (*Key, error) {
	k := &Key{ID: id, Algorithm: alg, Public: public}
	switch p := public.(type) {
	case *rsa.PublicKey:
		k.Type = "RSA"
		if n := p.N.BitLen(); n < MinRSABits {
			return nil, fmt.Errorf("RSA key of %d bits is shorter than %d", n, MinRSABits)
		}
		if p.E < 3 || p.E&1 == 0 {
			return nil, errors.New("RSA key with an unusable exponent")
		}
	case *ecdsa.PublicKey:
		k.Type = "EC"
	case ed25519.PublicKey:
		k.Type = "OKP"
	default:
		return nil, fmt.Errorf("%T is not a key that verifies signatures", public)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("unusable key: %w", err)
	}
	k.identity = sha256.Sum256(append(append([]byte(id), 0), der...))
	if cert != nil {
		s1, s256 := sha1.Sum(cert.Raw), sha256.Sum256(cert.Raw) //nolint:gosec // a thumbprint: the token is verified by the key
		k.X5T = base64.RawURLEncoding.EncodeToString(s1[:])
		k.X5TS256 = base64.RawURLEncoding.EncodeToString(s256[:])
		k.hexX5T = hexThumbprint(s1[:])
	}
	return k, nil
}

// Parse reads a key set document (RFC 7517). Keys that cannot verify signatures (for encryption, symmetric, of unknown
// type, too short) are left out, each with the reason in skipped. A document without a usable key is an error.
func Parse(document []byte) (set *Set, skipped []string, err error) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &doc); err != nil {
		return nil, nil, fmt.Errorf("not a JSON Web Key Set: %w", err)
	}
	if len(doc.Keys) > maxKeys {
		return nil, nil, fmt.Errorf("the key set has %d keys, more than %d", len(doc.Keys), maxKeys)
	}
	var keys []*Key
	for i, raw := range doc.Keys {
		k, err := parseKey(raw)
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("key %d: %v", i+1, err))
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		why := "it is empty"
		if len(skipped) > 0 {
			why = strings.Join(skipped, "; ")
		}
		return nil, skipped, fmt.Errorf("the key set holds no key that verifies signatures: %s", why)
	}
	return newSet(keys), skipped, nil
}

func parseKey(raw json.RawMessage) (*Key, error) {
	var m jwkset.JWKMarshal
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, errors.New("not a JSON Web Key")
	}
	if m.USE != "" && m.USE != jwkset.UseSig {
		return nil, fmt.Errorf("its use is %q, not sig", m.USE)
	}
	if len(m.KEYOPS) > 0 && !slices.Contains(m.KEYOPS, jwkset.KeyOpsVerify) {
		return nil, errors.New("its key_ops do not hold verify")
	}
	if len(m.E) > 6 {
		return nil, errors.New("RSA key with an unusable exponent")
	}
	thumb, thumb256 := trim(m.X5T), trim(m.X5TS256)
	var cert *x509.Certificate
	if len(m.X5C) > 0 {
		der, err := base64.StdEncoding.DecodeString(m.X5C[0])
		if err != nil {
			return nil, errors.New("its certificate (x5c) is not base64")
		}
		if cert, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("its certificate (x5c): %w", err)
		}
	}
	// jwkset would follow x5u over the network and compare the whole chain; we take the key alone.
	m.X5U, m.X5C, m.X5T, m.X5TS256 = "", nil, "", ""
	jwk, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{SkipAll: true})
	if err != nil {
		return nil, err
	}
	public := jwk.Key()
	if cert != nil && !equal(cert.PublicKey, public) {
		return nil, errors.New("its certificate (x5c) is of another key")
	}
	k, err := newKey(public, m.KID, string(m.ALG), cert)
	if err != nil {
		return nil, err
	}
	if k.X5T == "" {
		k.X5T = thumb
	}
	if k.X5TS256 == "" {
		k.X5TS256 = thumb256
	}
	return k, nil
}

func hexThumbprint(sum []byte) string {
	return base64.RawURLEncoding.EncodeToString([]byte(hex.EncodeToString(sum)))
}

func trim(s string) string { return strings.TrimRight(s, "=") }

func equal(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

// ParsePEM reads certificates and public keys from PEM text, or from the base64 of PEM text as the API Manager sends it
// (rest.md 5.2). The keys have no ID, and those of certificates have thumbprints.
func ParsePEM(text string) (*Set, error) {
	rest := []byte(strings.TrimSpace(text))
	if !bytes.Contains(rest, []byte("-----BEGIN")) {
		compact := strings.Join(strings.Fields(text), "")
		decoded, err := base64.StdEncoding.DecodeString(compact)
		if err != nil {
			decoded, err = base64.RawURLEncoding.DecodeString(trim(compact))
		}
		if err != nil {
			return nil, errors.New("neither PEM text nor the base64 of it")
		}
		rest = decoded
		if c, err := x509.ParseCertificate(rest); err == nil {
			rest = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		}
	}
	var keys []*Key
	for n := 1; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		var public crypto.PublicKey
		var cert *x509.Certificate
		var err error
		switch block.Type {
		case "CERTIFICATE":
			if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
				public = cert.PublicKey
			}
		case "PUBLIC KEY":
			public, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			public, err = x509.ParsePKCS1PublicKey(block.Bytes)
		default:
			err = fmt.Errorf("is a %s; wanted CERTIFICATE or PUBLIC KEY", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", n, err)
		}
		k, err := newKey(public, "", "", cert)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", n, err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("holds no PEM block")
	}
	return newSet(keys), nil
}
