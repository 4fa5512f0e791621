package backendjwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatehouse/keymanager"
	"gatehouse/keymanager/backendjwt/template"
	"gatehouse/keymanager/claims"
)

// Rules say what stands in a backend JWT (contract gateway-behaviour.md 14). The zero value means the defaults.
type Rules struct {
	// Dialect begins the names of claims; "" means http://wso2.org/claims.
	Dialect string
	// ConvertDialect gives claims of OpenID Connect the names that they have in the dialect.
	ConvertDialect bool
	// Issuer is the claim iss; "" means wso2.org/products/am.
	Issuer string
	// Audience is the claim aud; none leaves it out.
	Audience []string
	// Life is from issue to expiry, in whole seconds; 0 means 15 minutes. No JWT outlives the token of its caller.
	Life time.Duration
	// UserClaims passes the other claims of the caller's token on.
	UserClaims bool
	// Excluded are claims that backends never get, wherever they come from, but for the protected ones.
	Excluded []string
	// Claims change the result, in their order.
	Claims []Claim
}

// Claim adds, copies or removes one claim. Exactly one of Value, From and Remove is set.
type Claim struct {
	Name string
	// Value is a pattern of package template. The claim is left out where a placeholder has no value.
	Value string
	// From is a claim of the caller's token, by its name or as a JSON pointer, or else one of the backend JWT.
	From   string
	Remove bool
}

// RuleError says which of Rules.Claims cannot be used.
type RuleError struct {
	Index int
	Field string // name, value, from, or "" for the whole
	Err   error
}

// Error implements error.
func (e *RuleError) Error() string {
	return fmt.Sprintf("claims[%d].%s: %v", e.Index, e.Field, e.Err)
}

// Unwrap returns the reason.
func (e *RuleError) Unwrap() error { return e.Err }

// protected are the claims that the gateway alone writes: none of the caller's takes their place, none is added.
var protected = map[string]bool{
	"iss": true, "sub": true, "aud": true, "exp": true, "nbf": true, "iat": true, "jti": true,
	"application": true, "tierInfo": true, "subscribedAPIs": true, "keytype": true,
}

// oidc are the local claims of WSO2 for the standard claims of OpenID Connect, without the dialect.
var oidc = map[string]string{
	"name": "fullname", "given_name": "givenname", "family_name": "lastname", "middle_name": "middleName", "nickname": "nickname",
	"preferred_username": "displayName", "profile": "url", "picture": "photourl", "website": "url", "email": "emailaddress",
	"email_verified": "identity/emailVerified", "gender": "gender", "birthdate": "dob", "zoneinfo": "timeZone", "locale": "local",
	"phone_number": "telephone", "phone_number_verified": "identity/phoneVerified", "address": "addresses", "updated_at": "modified",
	"groups": "groups", "roles": "roles", "upn": "userprincipal",
}

// rules are Rules made ready.
type rules struct {
	Rules
	life     int64 // s
	excluded map[string]bool
	values   []template.Template // of Rules.Claims
	// The names of the standard claims that begin with the dialect.
	endUser, appID, appUUID, subscriber, appName, appTier, apiName, apiContext, version, tenant, tier, keyType, userType, attributes string
	prefix                                                                                                                           string
	// standard are these names: no token tells a backend what only the gateway knows, where that is unknown neither.
	standard map[string]bool
}

func compile(r Rules) (*rules, error) {
	if r.Dialect == "" {
		r.Dialect = "http://wso2.org/claims"
	}
	if r.Issuer == "" {
		r.Issuer = "wso2.org/products/am"
	}
	if r.Life == 0 {
		r.Life = 15 * time.Minute
	}
	if r.Life < time.Second {
		return nil, fmt.Errorf("a life of %s: write a second at least", r.Life)
	}
	c := &rules{Rules: r, life: int64(r.Life / time.Second), excluded: map[string]bool{}, standard: map[string]bool{}, values: make([]template.Template, len(r.Claims))}
	for _, name := range r.Excluded {
		c.excluded[name] = true
	}
	for i, claim := range r.Claims {
		bad := func(field, format string, a ...any) error {
			return &RuleError{Index: i, Field: field, Err: fmt.Errorf(format, a...)}
		}
		ways := 0
		for _, given := range []bool{claim.Value != "", claim.From != "", claim.Remove} {
			if given {
				ways++
			}
		}
		switch {
		case claim.Name == "":
			return nil, bad("name", "missing: write the name of a claim")
		case ways != 1:
			return nil, bad("", "a claim needs exactly one of value, from and remove")
		case claim.Remove && (claim.Name == "exp" || claim.Name == "iat"):
			return nil, bad("name", "%s says how long the JWT holds, and stays: write another name", claim.Name)
		case !claim.Remove && protected[claim.Name]:
			return nil, bad("name", "%s is a claim that the gateway alone writes: write another name", claim.Name)
		}
		t, err := template.Parse(claim.Value)
		if err != nil {
			return nil, bad("value", "%w", err)
		}
		c.values[i] = t
	}
	c.prefix = strings.TrimSuffix(r.Dialect, "/") + "/"
	for name, at := range map[string]*string{
		"enduser": &c.endUser, "applicationid": &c.appID, "applicationUUId": &c.appUUID, "subscriber": &c.subscriber,
		"applicationname": &c.appName, "applicationtier": &c.appTier, "apiname": &c.apiName, "apicontext": &c.apiContext,
		"version": &c.version, "enduserTenantDomain": &c.tenant, "tier": &c.tier, "keytype": &c.keyType, "usertype": &c.userType,
		"applicationAttributes": &c.attributes,
	} {
		*at = c.prefix + name
		c.standard[*at] = true
	}
	return c, nil
}

// body is a JSON object that keeps the order in which its members came.
type body struct {
	names  []string
	values map[string]any
}

// put sets a member; one that is there keeps its place.
func (b *body) put(name string, value any) {
	if _, has := b.values[name]; !has {
		b.names = append(b.names, name)
	}
	b.values[name] = value
}

// text sets a member unless the value is empty.
func (b *body) text(name, value string) {
	if value != "" {
		b.put(name, value)
	}
}

func (b *body) remove(name string) {
	if _, has := b.values[name]; has {
		delete(b.values, name)
		b.names = slices.DeleteFunc(b.names, func(n string) bool { return n == name })
	}
}

func (b *body) encode() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	write := func(v any) error {
		if err := enc.Encode(v); err != nil {
			return err
		}
		out.Truncate(out.Len() - 1) // the line feed
		return nil
	}
	out.WriteByte('{')
	for i, name := range b.names {
		if i > 0 {
			out.WriteByte(',')
		}
		if err := write(name); err != nil {
			return nil, err
		}
		out.WriteByte(':')
		if err := write(b.values[name]); err != nil {
			return nil, fmt.Errorf("claim %q: %w", name, err)
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// expiry is when a JWT made now ends, in seconds since the epoch. A token that is only accepted by the leeway for clocks gives
// one second.
func (r *rules) expiry(t *keymanager.Token, now int64) int64 {
	exp := now + r.life
	if t != nil && t.ExpiresAt > 0 && t.ExpiresAt < exp {
		exp = max(t.ExpiresAt, now+1)
	}
	return exp
}

// claims returns the second part of a JWT, before it is encoded: the standard claims, those of the caller's token, what the
// configuration adds and changes, and last what is excluded taken out.
func (r *rules) claims(c *keymanager.Caller, id string, now, exp int64) ([]byte, error) {
	b := &body{values: make(map[string]any, 32)}
	b.put("iss", r.Issuer)
	b.text("jti", id)
	b.put("iat", now)
	b.put("exp", exp)
	switch len(r.Audience) {
	case 0:
	case 1:
		b.put("aud", r.Audience[0])
	default:
		b.put("aud", r.Audience)
	}
	var own map[string]any
	keyType := c.KeyType
	if t := c.Token; t != nil {
		own = t.Claims
		b.text("sub", t.Subject)
		endUser := t.User
		if endUser == "" {
			endUser = t.Subject
		}
		b.text(r.endUser, endUser)
		scopes, _ := own["scopes"].(string)
		b.text("scopes", scopes)
		if keyType == "" {
			keyType, _ = own["keytype"].(string)
		}
	}
	if c.ApplicationID != 0 {
		b.put(r.appID, strconv.FormatInt(c.ApplicationID, 10))
	}
	b.text(r.appUUID, c.ApplicationUUID)
	b.text(r.subscriber, c.ApplicationOwner)
	b.text(r.appName, c.ApplicationName)
	b.text(r.appTier, c.ApplicationTier)
	b.text(r.apiName, c.APIName)
	b.text(r.apiContext, c.APIContext)
	b.text(r.version, c.APIVersion)
	b.text(r.tenant, c.SubscriberTenant)
	b.text(r.tier, c.Tier)
	if keyType == "" {
		keyType = "PRODUCTION"
	}
	b.put(r.keyType, keyType)
	if c.Token != nil {
		b.put(r.userType, "Application_User")
	}
	if a := c.Attributes; a != nil && len(*a) > 0 {
		b.put(r.attributes, *a)
	}
	if r.UserClaims {
		r.userClaims(b, own)
	}
	r.change(b, c, own)
	for name := range r.excluded {
		if !protected[name] {
			b.remove(name)
		}
	}
	return b.encode()
}

// userClaims passes the claims of the caller's token on, in the order of their names, but for those that the gateway
// writes.
func (r *rules) userClaims(b *body, own map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(own)) {
		as := name
		if local := oidc[name]; local != "" && r.ConvertDialect {
			as = r.prefix + local
		}
		if _, has := b.values[as]; !has && !protected[as] && !r.standard[as] && !r.excluded[name] {
			b.put(as, own[name])
		}
	}
}

// change does what [[apim.jwt.claims]] asks for.
func (r *rules) change(b *body, c *keymanager.Caller, own map[string]any) {
	for i, claim := range r.Claims {
		switch {
		case claim.Remove:
			b.remove(claim.Name)
		case claim.From != "":
			v, ok := claims.Find(own, claim.From)
			if !ok {
				v, ok = b.values[claim.From]
			}
			if ok {
				b.put(claim.Name, v)
			}
		default:
			if v, ok := r.values[i].Expand(func(s template.Source, name string) (string, bool) { return valueOf(c, s, name) }); ok {
				b.put(claim.Name, v)
			}
		}
	}
}

// valueOf is what a placeholder stands for; false where there is nothing.
func valueOf(c *keymanager.Caller, s template.Source, name string) (string, bool) {
	switch s {
	case template.Claim:
		if c.Token == nil {
			return "", false
		}
		v, ok := claims.Find(c.Token.Claims, name)
		if !ok {
			return "", false
		}
		return textOf(v)
	case template.Attribute:
		if c.Attributes == nil {
			return "", false
		}
		v, ok := (*c.Attributes)[name]
		return v, ok
	case template.Token:
		t := c.Token
		if t == nil {
			return "", false
		}
		return some(map[string]string{
			"user": t.User, "issuer": t.Issuer, "key_manager": t.KeyManager, "consumer_key": t.ConsumerKey,
			"scopes": strings.Join(t.Scopes, " "), "kind": string(kindOf(t)),
		}[name])
	case template.Application:
		id := ""
		if c.ApplicationID != 0 {
			id = strconv.FormatInt(c.ApplicationID, 10)
		}
		return some(map[string]string{
			"id": id, "uuid": c.ApplicationUUID, "name": c.ApplicationName, "owner": c.ApplicationOwner, "tier": c.ApplicationTier,
			"tenant": c.SubscriberTenant,
		}[name])
	case template.Subscription:
		return some(map[string]string{"tier": c.Tier, "key_type": c.KeyType}[name])
	default:
		return some(map[string]string{
			"name": c.APIName, "version": c.APIVersion, "context": c.APIContext, "uuid": c.APIUUID, "tenant": c.APITenant,
		}[name])
	}
}

func kindOf(t *keymanager.Token) keymanager.Kind {
	if t.Kind == "" {
		return keymanager.KindJWT
	}
	return t.Kind
}

func some(s string) (string, bool) { return s, s != "" }

// textOf is a claim as text: what is no text already is written as JSON.
func textOf(v any) (string, bool) {
	if s, ok := v.(string); ok {
		return s, true
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if v == nil || enc.Encode(v) != nil {
		return "", false
	}
	return strings.TrimSuffix(out.String(), "\n"), true
}

// errTooLarge refuses what backends would refuse too, with less to say about it.
var errTooLarge = errors.New("the backend JWT is too large for a header")
