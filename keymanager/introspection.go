package keymanager

import "time"

// Introspection is where the opaque tokens of a key manager are asked about (RFC 7662; contract gateway-behaviour.md 7).
type Introspection struct {
	URL string
	// Auth is how the gateway makes itself known; "" means ClientSecretBasic where there is a ClientID, else ClientNone.
	Auth         ClientAuth
	ClientID     string
	ClientSecret string
	// KeyFile and CertFile are PEM files: the signing key of private_key_jwt, or the certificate of tls_client_auth.
	KeyFile, CertFile string
	// KeyPEM and CertPEM, when not empty, are what the files hold: a change of a file is a change of the key manager, which
	// its name alone does not show.
	KeyPEM, CertPEM string
	// Timeout bounds a call; 0 means 2 s.
	Timeout time.Duration
}

// ClientAuth is a method of client authentication, by its OAuth name (RFC 8414 2, RFC 8705).
type ClientAuth string

// Methods of client authentication.
const (
	ClientNone         ClientAuth = "none"
	ClientSecretBasic  ClientAuth = "client_secret_basic"
	ClientSecretPost   ClientAuth = "client_secret_post"
	ClientPrivateKey   ClientAuth = "private_key_jwt"
	ClientCertificates ClientAuth = "tls_client_auth"
)

// TokenFormat is an entry of token_format_string: it says which tokens a key manager owns (contract rest.md 5.2).
type TokenFormat struct {
	Type string // REFERENCE, JWT or CUSTOM
	// Pattern is a regular expression for the whole token; "" where Claims tell.
	Pattern string
	// Claims are claims of a JWT with the values that they must have.
	Claims map[string]string
}
