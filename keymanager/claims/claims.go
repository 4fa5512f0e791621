// Package claims reads what the gateway needs out of the claims of a verified token: renamed claims, the consumer key,
// scopes, the user, and what a self-contained token says about its application and subscriptions.
package claims

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"gatehouse/keymanager"
)

// EndUser is the claim that names the user where a mapping fills it; its short form is the part after the last slash.
const EndUser = "http://wso2.org/claims/enduser"

// fixed are the claims that were verified as they stand: no mapping moves them away or writes over them.
var fixed = map[string]bool{"iss": true, "sub": true, "aud": true, "exp": true, "nbf": true, "iat": true, "jti": true}

// Find returns the claim of a name, or what the name leads to as a JSON pointer (RFC 6901).
func Find(in map[string]any, name string) (any, bool) {
	if v, ok := in[name]; ok {
		return v, true
	}
	if !strings.HasPrefix(name, "/") {
		return nil, false
	}
	p := parsePointer(name)
	return p.follow(in)
}

// ConsumerKey returns the consumer key: the claim of the given name, looked up in the mapped claims, then in the raw ones;
// no name means consumerKey, then azp (rest.md 4.1). Of an array it is the first text. Empty when there is none.
func ConsumerKey(mapped, raw map[string]any, name string) string {
	if name != "" {
		return firstText(name, mapped, raw)
	}
	if k := firstText("consumerKey", mapped, raw); k != "" {
		return k
	}
	return firstText("azp", mapped, raw)
}

func firstText(name string, in ...map[string]any) string {
	for _, c := range in {
		v, ok := Find(c, name)
		if !ok {
			continue
		}
		if list, ok := v.([]any); ok && len(list) > 0 {
			v = list[0]
		}
		if s := text(v); s != "" {
			return s
		}
	}
	return ""
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}

// Scopes returns the scopes of a claim, a text split at blanks or an array of texts; an empty name means scope. Each
// scope is named once.
func Scopes(mapped, raw map[string]any, name string) (scopes []string) {
	if name == "" {
		name = "scope"
	}
	v, ok := Find(mapped, name)
	if !ok {
		v, _ = Find(raw, name)
	}
	add := func(s string) {
		for f := range strings.FieldsSeq(s) {
			if !slices.Contains(scopes, f) {
				scopes = append(scopes, f)
			}
		}
	}
	switch v := v.(type) {
	case string:
		add(v)
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok {
				add(s)
			}
		}
	}
	return scopes
}

// User returns the end user: what is mapped to the claim enduser, else sub.
func User(mapped map[string]any) string {
	for _, name := range [...]string{EndUser, "enduser", "sub"} {
		if s := text(mapped[name]); s != "" {
			return s
		}
	}
	return ""
}

// Certificate returns the thumbprint of the client certificate that a token is bound to (RFC 8705 3.1), "" where it is
// bound to none. One that is not a text gives what no certificate has.
func Certificate(claims map[string]any) string {
	cnf, _ := claims["cnf"].(map[string]any)
	v, has := cnf["x5t#S256"]
	if !has {
		return ""
	}
	if s := strings.TrimRight(text(v), "="); s != "" {
		return s
	}
	return "none"
}

// Embedded returns what a self-contained token says (rest.md 4.1): the application of its claim application with the key
// type of keytype, PRODUCTION where it names none, and the subscriptions of subscribedAPIs. Nil and none for other tokens.
func Embedded(claims map[string]any) (*keymanager.EmbeddedApplication, []keymanager.EmbeddedSubscription) {
	a, ok := claims["application"].(map[string]any)
	var app *keymanager.EmbeddedApplication
	if ok {
		app = &keymanager.EmbeddedApplication{
			UUID: text(a["uuid"]), Name: text(a["name"]), Owner: text(a["owner"]),
			Tier: text(a["tier"]), KeyType: strings.ToUpper(text(claims["keytype"])),
		}
		app.ID, _ = strconv.ParseInt(text(a["id"]), 10, 64)
		if app.KeyType == "" {
			app.KeyType = "PRODUCTION"
		}
	}
	list, _ := claims["subscribedAPIs"].([]any)
	var subscribed []keymanager.EmbeddedSubscription
	for _, e := range list {
		s, ok := e.(map[string]any)
		if !ok {
			continue
		}
		subscribed = append(subscribed, keymanager.EmbeddedSubscription{
			Name: text(s["name"]), Version: text(s["version"]),
			Context: text(s["context"]), Tier: text(s["subscriptionTier"]), SubscriberTenant: text(s["subscriberTenantDomain"]),
		})
	}
	return app, subscribed
}
