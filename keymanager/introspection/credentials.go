package introspection

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"gatehouse/keymanager"
)

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	assertionLife = time.Minute
)

// content returns what a file holds; text is that of an earlier read.
func content(what, text, file string) ([]byte, error) {
	if text != "" {
		return []byte(text), nil
	}
	if file == "" {
		return nil, fmt.Errorf("its introspection endpoint needs the %s", what)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the %s of its introspection endpoint: %w", what, err)
	}
	return b, nil
}

func clientCertificate(e *keymanager.Introspection) (tls.Certificate, error) {
	cert, err := content("certificate (cert_file)", e.CertPEM, e.CertFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := content("key (key_file)", e.KeyPEM, e.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return pair, fmt.Errorf("the certificate and key of its introspection endpoint: %w", err)
	}
	return pair, nil
}

// signer signs the assertions of private_key_jwt (RFC 7523 3).
type signer struct {
	method   jwt.SigningMethod
	key      crypto.Signer
	client   string
	audience string
}

func newSigner(e *keymanager.Introspection) (*signer, error) {
	text, err := content("key (key_file)", e.KeyPEM, e.KeyFile)
	if err != nil {
		return nil, err
	}
	key, err := privateKey(text)
	if err != nil {
		return nil, fmt.Errorf("the key of its introspection endpoint: %w", err)
	}
	s := &signer{key: key, client: e.ClientID, audience: e.URL}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		s.method = jwt.SigningMethodRS256
	case ed25519.PrivateKey:
		s.method = jwt.SigningMethodEdDSA
	case *ecdsa.PrivateKey:
		switch k.Curve.Params().BitSize {
		case 256:
			s.method = jwt.SigningMethodES256
		case 384:
			s.method = jwt.SigningMethodES384
		case 521:
			s.method = jwt.SigningMethodES512
		}
	}
	if s.method == nil {
		return nil, fmt.Errorf("the key of its introspection endpoint: a %T cannot sign", key)
	}
	return s, nil
}

func privateKey(text []byte) (crypto.Signer, error) {
	for rest := bytes.TrimSpace(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("holds no PEM block PRIVATE KEY")
		}
		switch block.Type {
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			if s, ok := k.(crypto.Signer); ok {
				return s, nil
			}
			return nil, fmt.Errorf("a %T cannot sign", k)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(block.Bytes)
		}
	}
}

// assertion is good for one call: each has an ID of its own.
func (s *signer) assertion(now time.Time) (string, error) {
	t := jwt.NewWithClaims(s.method, jwt.MapClaims{
		"iss": s.client, "sub": s.client, "aud": s.audience, "jti": uuid.NewString(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	text, err := t.SignedString(s.key)
	if err != nil {
		return "", fmt.Errorf("signing the client assertion: %w", err)
	}
	return text, nil
}
