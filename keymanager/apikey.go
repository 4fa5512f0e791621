package keymanager

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// OpaqueKey is an API key that is no JWT: the API Manager makes it known by its hash (contract events.md 5.7). Values are
// shared and must not be changed after they were handed over.
type OpaqueKey struct {
	// Hash names the key: see CanonicalKeyHash.
	Hash string
	// Salted says that the hash was made with a salt, in a way that is not known: such a key is listed and never matches.
	Salted bool
	UUID   string
	Name   string
	Tenant string
	// KeyType is PRODUCTION or SANDBOX.
	KeyType         string
	User            string
	ApplicationID   int64
	ApplicationUUID string
	APIID           int64
	APIUUID         string
	// Bound says what the key is bound to: APP or API, "" where that is not said.
	Bound string
	// PermittedIP and PermittedReferer are lists with commas; "" restricts nothing.
	PermittedIP, PermittedReferer string
	// Status is ACTIVE, "" meaning the same; a key of any other is refused.
	Status string
	// CreatedAt and ExpiresAt are in ms; 0 means not known, and never.
	CreatedAt, ExpiresAt int64
	// UpdatedAt is when anything last told of the key, NotifiedAt when a notification did, ms.
	UpdatedAt, NotifiedAt int64
	Origin                Origin
}

// IsKeyHash reports whether a hash in its canonical form is a SHA-256, the only one that keys are found by.
func IsKeyHash(hash string) bool {
	b, err := hex.DecodeString(hash)
	return err == nil && len(b) == sha256.Size
}

// CanonicalKeyHash is the one form of a hash of an API key: lower-case hex where the text is a SHA-256 in hex or base64,
// else the text as it is.
func CanonicalKeyHash(text string) string {
	text = strings.TrimSpace(text)
	const size = sha256.Size
	if len(text) == 2*size {
		if _, err := hex.DecodeString(text); err == nil {
			return strings.ToLower(text)
		}
	}
	plain := strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(text, "="))
	if b, err := base64.RawURLEncoding.DecodeString(plain); err == nil && len(b) == size {
		return hex.EncodeToString(b)
	}
	return text
}
