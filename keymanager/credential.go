package keymanager

import "net/netip"

// Kind is the kind of credential that a token was made from.
type Kind string

// Kinds of credential. The zero value of Token.Kind means KindJWT.
const (
	KindJWT         Kind = "jwt"
	KindOpaque      Kind = "opaque"
	KindAPIKey      Kind = "api_key"
	KindInternalKey Kind = "internal_key"
	KindBasic       Kind = "basic"
	KindCertificate Kind = "mutual_tls"
)

// KeyOffer is an API key with what its restrictions are judged by (contract gateway-behaviour.md 8).
type KeyOffer struct {
	Value string
	// Internal says that it came in the field Internal-Key of the test console.
	Internal bool
	Tenant   string // of the API
	// APIUUID may be empty where the API has none.
	APIUUID, APIName, APIVersion, APIContext string
	ClientIP                                 netip.Addr
	Referer                                  string
}

// CertificateOffer is a client certificate that came with a request to an API.
type CertificateOffer struct {
	// API is the UUID of the API, or context:version where it has none.
	API string
	// DER is the leaf; Chain are the certificates that came after it.
	DER   []byte
	Chain [][]byte
	// FromHeader says that a trusted proxy handed it on, so that possession of the key was proven to that proxy.
	FromHeader bool
}

// ClientCertificate is a certificate that an API admits: that of a client, or that of an authority that signs clients'.
type ClientCertificate struct {
	Alias string
	// Tier is the business plan of whoever shows it; "" means none.
	Tier string
	// PEM holds one or more certificates.
	PEM string
}
