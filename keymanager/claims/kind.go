package claims

import (
	"strings"

	"gatehouse/keymanager"
)

// TokenKind reads the claim token_type, with which the API Manager marks what it signs in the name of its access tokens:
// KindAPIKey for an API key, KindInternalKey for a key of the test console, "" for anything else. named is false where
// the token has no such claim.
func TokenKind(claims map[string]any) (kind keymanager.Kind, named bool) {
	v, named := claims["token_type"]
	switch s, _ := v.(string); {
	case strings.EqualFold(s, "apiKey"):
		return keymanager.KindAPIKey, true
	case strings.EqualFold(s, "InternalKey"):
		return keymanager.KindInternalKey, true
	}
	return "", named
}
