package backendjwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // x5t is defined by it (RFC 7515 4.1.7); nothing is believed for its sake
	"crypto/sha256"
	_ "crypto/sha512" // RS384, RS512
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
)

// family is a kind of private key.
type family string

const (
	familyRSA     family = "rsa"
	familyEC      family = "ec"
	familyEd25519 family = "ed25519"
	familyNone    family = ""
)

// algorithm is a way of signing.
type algorithm struct {
	name   string // in the JOSE header
	family family
	hash   crypto.Hash
	pss    bool
}

// algorithms are the names that the configuration takes.
var algorithms = map[string]algorithm{
	"SHA256withRSA": {name: "RS256", family: familyRSA, hash: crypto.SHA256},
	"RS256":         {name: "RS256", family: familyRSA, hash: crypto.SHA256},
	"RS384":         {name: "RS384", family: familyRSA, hash: crypto.SHA384},
	"RS512":         {name: "RS512", family: familyRSA, hash: crypto.SHA512},
	"PS256":         {name: "PS256", family: familyRSA, hash: crypto.SHA256, pss: true},
	"ES256":         {name: "ES256", family: familyEC, hash: crypto.SHA256},
	"EdDSA":         {name: "EdDSA", family: familyEd25519},
	"NONE":          {name: "none", family: familyNone},
}

// key signs. It is not changed after it was made, but for the time of its last JWT.
type key struct {
	algorithm algorithm
	private   crypto.Signer // nil: unsigned
	id        string        // RFC 7638 thumbprint
	head      string        // the first part of its JWTs, encoded, with the full stop
	public    json.RawMessage
	// lastExpiry is when the last JWT that it has signed ends, in seconds since the epoch.
	lastExpiry atomic.Int64
}

// parseKey reads a PEM file: one private key, and where they stand in it the certificates that begin with the key's own.
func parseKey(data []byte, alg algorithm) (*key, error) {
	var private any
	var chain []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		var parsed any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, errors.New("the private key is encrypted: write it without a passphrase, readable by the gateway alone")
			}
			parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			parsed, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("the private key is encrypted: write it without a passphrase, readable by the gateway alone")
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("a certificate of the file cannot be read: %w", err)
			}
			chain = append(chain, c)
			continue
		default:
			continue // EC PARAMETERS and the like
		}
		if err != nil {
			return nil, fmt.Errorf("the private key cannot be read: %w", err)
		}
		if private != nil {
			return nil, errors.New("two private keys in one file: the gateway signs with one; leave the new one")
		}
		private = parsed
	}
	if private == nil {
		return nil, errors.New("no private key: write a PEM block of type PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY")
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a private key of type %T cannot sign", private)
	}
	k, err := newKey(signer, chain, alg)
	if err != nil {
		return nil, err
	}
	// A key whose numbers do not belong together shows it now, and not at each request.
	if _, err := k.sign([]byte("{}")); err != nil {
		return nil, fmt.Errorf("the private key is of no use: %w", err)
	}
	return k, nil
}

// newKey checks that a key fits the algorithm, and that the first certificate is the key's.
func newKey(private crypto.Signer, chain []*x509.Certificate, alg algorithm) (*key, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	jwk := map[string]any{"use": "sig", "alg": alg.name}
	var thumb string // the members of RFC 7638, in their order
	wrong := func(have string) error {
		return fmt.Errorf("the key is %s, and signing_algorithm %s needs %s", have, alg.name, map[family]string{
			familyRSA: "an RSA key of 2048 bits or more", familyEC: "an EC key on P-256", familyEd25519: "an Ed25519 key",
		}[alg.family])
	}
	switch p := private.(type) {
	case *rsa.PrivateKey:
		if alg.family != familyRSA || p.N.BitLen() < 2048 {
			return nil, wrong(fmt.Sprintf("an RSA key of %d bits", p.N.BitLen()))
		}
		e := []byte{byte(p.E >> 24), byte(p.E >> 16), byte(p.E >> 8), byte(p.E)}
		for len(e) > 1 && e[0] == 0 {
			e = e[1:]
		}
		n := b64(p.N.Bytes())
		jwk["kty"], jwk["n"], jwk["e"] = "RSA", n, b64(e)
		thumb = `{"e":"` + b64(e) + `","kty":"RSA","n":"` + n + `"}`
	case *ecdsa.PrivateKey:
		if alg.family != familyEC || p.Curve != elliptic.P256() {
			return nil, wrong("an EC key on " + p.Curve.Params().Name)
		}
		point, err := p.PublicKey.Bytes()
		if err != nil {
			return nil, fmt.Errorf("the EC key has no valid public half: %w", err)
		}
		x, y := b64(point[1:33]), b64(point[33:65])
		jwk["kty"], jwk["crv"], jwk["x"], jwk["y"] = "EC", "P-256", x, y
		thumb = `{"crv":"P-256","kty":"EC","x":"` + x + `","y":"` + y + `"}`
	case ed25519.PrivateKey:
		if alg.family != familyEd25519 {
			return nil, wrong("an Ed25519 key")
		}
		x := b64(p.Public().(ed25519.PublicKey))
		jwk["kty"], jwk["crv"], jwk["x"] = "OKP", "Ed25519", x
		thumb = `{"crv":"Ed25519","kty":"OKP","x":"` + x + `"}`
	default:
		return nil, wrong(fmt.Sprintf("of type %T", private))
	}
	sum := sha256.Sum256([]byte(thumb))
	k := &key{algorithm: alg, private: private, id: b64(sum[:])}
	head := `{"typ":"JWT","alg":"` + alg.name + `"`
	if len(chain) > 0 {
		if own, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !own.Equal(private.Public()) {
			return nil, fmt.Errorf("the certificate of %s is not that of the private key: write the two that belong together, the key's certificate before those of its authorities", chain[0].Subject)
		}
		one, two := sha1.Sum(chain[0].Raw), sha256.Sum256(chain[0].Raw) //nolint:gosec // see above
		// WSO2 encodes the hexadecimal text of the digest, with padding.
		head += `,"x5t":"` + base64.URLEncoding.EncodeToString([]byte(hex.EncodeToString(one[:]))) + `","x5t#S256":"` + b64(two[:]) + `"`
		jwk["x5t"], jwk["x5t#S256"] = b64(one[:]), b64(two[:])
		var x5c []string
		for _, c := range chain {
			x5c = append(x5c, base64.StdEncoding.EncodeToString(c.Raw))
		}
		jwk["x5c"] = x5c
	}
	k.head = b64([]byte(head+`,"kid":"`+k.id+`"}`)) + "."
	jwk["kid"] = k.id
	var err error
	if k.public, err = json.Marshal(jwk); err != nil {
		return nil, err
	}
	return k, nil
}

// unsigned is what stands for a key where nothing is signed.
func unsigned() *key {
	return &key{algorithm: algorithms["NONE"], head: base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"none"}`)) + "."}
}

// sign makes a JWT of its claims.
func (k *key) sign(claims []byte) (string, error) {
	text := k.head + base64.RawURLEncoding.EncodeToString(claims)
	if k.private == nil {
		return text + ".", nil
	}
	digest := []byte(text)
	if h := k.algorithm.hash; h != 0 {
		d := h.New()
		d.Write(digest)
		digest = d.Sum(nil)
	}
	var signature []byte
	var err error
	switch p := k.private.(type) {
	case *rsa.PrivateKey:
		if k.algorithm.pss {
			signature, err = rsa.SignPSS(rand.Reader, p, k.algorithm.hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			signature, err = rsa.SignPKCS1v15(rand.Reader, p, k.algorithm.hash, digest)
		}
	case *ecdsa.PrivateKey:
		r, s, failed := ecdsa.Sign(rand.Reader, p, digest)
		if err = failed; err == nil {
			signature = make([]byte, 64)
			r.FillBytes(signature[:32])
			s.FillBytes(signature[32:])
		}
	default:
		signature, err = k.private.Sign(rand.Reader, digest, crypto.Hash(0))
	}
	if err != nil {
		return "", fmt.Errorf("sign the backend JWT: %w", err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// signed notes that the key has signed a JWT that ends at exp.
func (k *key) signed(exp int64) {
	for {
		last := k.lastExpiry.Load()
		if exp <= last || k.lastExpiry.CompareAndSwap(last, exp) {
			return
		}
	}
}

// maxKeyFile bounds a key file.
const maxKeyFile = 1 << 20

func readKeyFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s is not a file of at most 1 MiB", path)
	}
	return os.ReadFile(path)
}

// makeKeyFile makes a private key for an algorithm and keeps it, readable by the gateway alone. made is false where there was
// one. The file appears whole or not at all.
func makeKeyFile(dir string, f family) (path string, made bool, err error) {
	path = filepath.Join(dir, "backend-jwt-"+string(f)+".key")
	if _, err := os.Stat(path); err == nil {
		return path, false, nil
	}
	var private any
	switch f {
	case familyRSA:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	case familyEC:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return path, false, fmt.Errorf("make a key for backend JWTs: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return path, false, fmt.Errorf("make a key for backend JWTs: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return path, false, fmt.Errorf("keep the key for backend JWTs: %w; make data_dir writable, or name a key_file", err)
	}
	keep := func() error {
		tmp, err := os.CreateTemp(dir, "backend-jwt-*.tmp") // 0600
		if err != nil {
			return err
		}
		defer func() { _ = os.Remove(tmp.Name()) }()
		err = pem.Encode(tmp, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err == nil {
			err = tmp.Sync()
		}
		if e := tmp.Close(); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
		return os.Link(tmp.Name(), path) // unlike a rename it does not replace what another process has made meanwhile
	}
	if err := keep(); err != nil && !errors.Is(err, os.ErrExist) {
		return path, false, fmt.Errorf("keep the key for backend JWTs: %w; make data_dir writable, or name a key_file", err)
	}
	return path, true, nil
}
