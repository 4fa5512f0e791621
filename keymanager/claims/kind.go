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

// Purpose says what a token was made for that opens no API, in words for people: "an ID token", "a refresh token", "an API
// key" and the like; "" for an access token. The same issuer signs them all with the same keys, so its claims are all that
// tells them apart: what Keycloak (typ), Cognito (token_use), the API Manager and introspections (token_type) write there,
// the hashes that only ID tokens have (OpenID Connect Core 3.1.3.6), and the restrictions that only API keys have, which
// nobody would enforce on a bearer token.
func Purpose(claims map[string]any) string {
	switch kind, _ := TokenKind(claims); kind {
	case keymanager.KindAPIKey:
		return anAPIKey
	case keymanager.KindInternalKey:
		return "a key of the test console"
	}
	for _, name := range [...]string{"typ", "token_use", "token_type"} {
		v, _ := claims[name].(string)
		switch strings.ToLower(v) {
		case "id", "id_token":
			return anIDToken
		case "refresh", "refresh_token", "offline":
			return "a refresh token"
		case "logout", "logout_token":
			return "a logout token"
		}
	}
	switch {
	case has(claims, "at_hash"), has(claims, "c_hash"):
		return anIDToken
	case has(claims, "permittedIP"), has(claims, "permittedReferer"):
		return anAPIKey
	}
	return ""
}

// UnnamedKey reports whether the claims of a token that names neither a client nor scopes are those of an API key of a
// version that does not mark its keys: Microgateway's token service, and the API Manager before 3.2.
func UnnamedKey(claims map[string]any) bool {
	return has(claims, "keytype") && (has(claims, "subscribedAPIs") || has(claims, "allowedAPIs"))
}

const (
	anAPIKey  = "an API key"
	anIDToken = "an ID token"
)

func has(claims map[string]any, name string) bool {
	_, ok := claims[name]
	return ok
}
