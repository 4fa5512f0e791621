package stage

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/bits"
	"slices"
	"strings"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
)

// kinds is a set of kinds of credential. The bits are in the order of what a check costs: a certificate is looked up, the
// verdict on a token or a key is mostly remembered, a password is made to be slow.
type kinds uint8

const (
	certificate kinds = 1 << iota
	bearer
	key
	basic
	internal // stands in for bearer, key and basic

	numKinds = 5
	// application are the kinds that say which application calls; the certificate may be asked for on top.
	application = bearer | key | basic
)

var kindOf = map[definition.Credential]kinds{
	definition.MutualTLS: certificate, definition.OAuth2: bearer, definition.APIKey: key, definition.Basic: basic,
}

// each calls f with each kind of the set, the cheapest first, until f says no.
func (k kinds) each(f func(kinds) bool) bool {
	for k != 0 {
		one := k & -k
		if !f(one) {
			return false
		}
		k &^= one
	}
	return true
}

// authenticate collects the credentials that a request has sent and has as few of them verified as it takes to satisfy one
// of the resource's alternatives: within one all kinds are needed, and the cheapest comes first.
type authenticate struct {
	d            *Domains
	alternatives []kinds // the cheapest first
	wanted       kinds   // in any of them
	certified    bool    // each of them wants a certificate
	plain        bool    // an access token alone is asked for
}

// newAuthenticate prepares a resource's alternatives. Those that ask for a kind that nobody can check are left out; when
// none is left, why says so.
func newAuthenticate(d *Domains, o *definition.Operation) (s *authenticate, why string) {
	s = &authenticate{d: d, certified: true}
	var checked kinds
	if d.Authenticator != nil {
		checked |= bearer
	}
	if d.APIKeys != nil {
		checked |= key
	}
	if d.Users != nil {
		checked |= basic
	}
	if d.Certificates != nil {
		checked |= certificate
	}
	security := o.Security
	if len(security) == 0 {
		security = [][]definition.Credential{{definition.OAuth2}}
	}
	var names []string
next:
	for _, list := range security {
		var alternative kinds
		var text []string
		for _, c := range list {
			alternative |= kindOf[c]
			text = append(text, string(c))
		}
		names = append(names, strings.Join(text, " with "))
		for _, c := range list {
			if kindOf[c] == 0 || kindOf[c]&checked == 0 {
				continue next
			}
		}
		if alternative != 0 && !slices.Contains(s.alternatives, alternative) {
			s.alternatives = append(s.alternatives, alternative)
		}
	}
	if len(s.alternatives) == 0 {
		return nil, "it asks for " + strings.Join(names, " or ") + ", which this gateway is not set up to check"
	}
	slices.SortStableFunc(s.alternatives, func(a, b kinds) int { return cmp.Compare(a, b) })
	for _, a := range s.alternatives {
		s.wanted |= a
		s.certified = s.certified && a&certificate != 0
	}
	s.plain = len(s.alternatives) == 1 && s.wanted == bearer
	return s, ""
}

// outcome is the answer on one credential, which is asked for once however many alternatives want it.
type outcome struct {
	token  *keymanager.Token
	err    error
	cached bool
	done   bool
}

// attempt is the evaluation of one request.
type attempt struct {
	s        *authenticate
	x        *pipeline.Exchange
	have     kinds
	outcomes [numKinds]outcome
	// failed is the kind whose failure is answered.
	failed kinds
}

// scheme is how the credential field begins where an access token stands in it.
const scheme = "Bearer "

func (s *authenticate) Run(x *pipeline.Exchange) *pipeline.Refusal {
	if s.plain {
		// Nearly every request: one token, and nothing else is looked for.
		o := &x.Offer
		if lines := x.Header.Values(x.Route.AuthHeader); len(lines) == 1 && !o.Again {
			if l := lines[0]; len(l) > len(scheme) && l[:len(scheme)] == scheme && l[len(scheme)] != ' ' && oneWord(l[len(scheme):]) {
				o.Scheme, o.Credential = pipeline.BearerScheme, l[len(scheme):]
				return s.token(x)
			}
		}
	}
	have, refusal := s.collect(x)
	if refusal != nil {
		return refusal
	}
	if s.plain && have == bearer {
		return s.token(x)
	}
	return s.evaluate(x, have)
}

// token judges a request to a resource that asks for an access token alone, and that has one.
func (s *authenticate) token(x *pipeline.Exchange) *pipeline.Refusal {
	token, cached, err := s.bearer(x)
	if err == nil && token != nil {
		s.admit(x, token, cached)
		return nil
	}
	if refusal := s.console(x); refusal != nil {
		return refusal
	}
	if x.Offer.Internal != "" {
		if token, cached, wrong := s.key(x, x.Offer.Internal, true); wrong == nil && token != nil {
			s.admit(x, token, cached)
			return nil
		}
	}
	return s.refuse(x, bearer, err)
}

// oneWord says that a token has no blank in it, as when a proxy has put two fields into one.
func oneWord(token string) bool {
	return strings.IndexByte(token, ' ') < 0
}

// evaluate looks for an alternative that what came satisfies.
func (s *authenticate) evaluate(x *pipeline.Exchange, have kinds) *pipeline.Refusal {
	a := attempt{s: s, x: x, have: have}
	for _, alternative := range s.alternatives {
		if alternative&^have == 0 && a.satisfied(alternative) {
			return nil
		}
	}
	if have&internal != 0 {
		for _, alternative := range s.alternatives {
			if alternative&application == 0 {
				continue
			}
			if alternative = alternative&^application | internal; alternative&^have == 0 && a.satisfied(alternative) {
				return nil
			}
		}
	}
	if a.failed != 0 {
		return s.refuse(x, a.failed, a.outcomes[index(a.failed)].err)
	}
	return s.missing(x, have)
}

func index(k kinds) int { return bits.TrailingZeros8(uint8(k)) }

// satisfied has every kind of an alternative checked, and lets the request in when all are good.
func (a *attempt) satisfied(alternative kinds) bool {
	good := alternative.each(func(k kinds) bool {
		o := &a.outcomes[index(k)]
		if !o.done {
			*o = a.s.check(a.x, k)
			o.done = true
			if o.token == nil && o.err == nil {
				o.err = errors.New("the domain gave neither a token nor a reason")
			}
		}
		if o.err == nil {
			return true
		}
		if a.failed == 0 || temporary(o.err) && !temporary(a.outcomes[index(a.failed)].err) {
			a.failed = k // what may pass the next time is the better answer
		}
		return false
	})
	if !good {
		return false
	}
	// Who calls is said by the credential of the application, where there is one beside the certificate.
	for _, k := range [...]kinds{bearer, internal, key, basic, certificate} {
		if alternative&k != 0 {
			o := &a.outcomes[index(k)]
			a.s.admit(a.x, o.token, o.cached)
			break
		}
	}
	if alternative&(bearer|key) == bearer|key {
		a.x.Second = a.outcomes[index(key)].token // it must have been bought too
	}
	return true
}

func temporary(err error) bool {
	k, ok := errors.AsType[*keymanager.Refusal](err)
	return ok && k.Temporary
}

// collect finds what was sent of the kinds that the resource looks for. A credential that is there several times is
// refused: two parties along the way could believe in different ones.
func (s *authenticate) collect(x *pipeline.Exchange) (have kinds, refusal *pipeline.Refusal) {
	o := &x.Offer
	if !o.Again {
		if refusal = s.field(x); refusal != nil {
			return 0, refusal
		}
		if s.wanted&key != 0 {
			if refusal = s.keys(x); refusal != nil {
				return 0, refusal
			}
		}
		if !s.plain || o.Scheme != pipeline.BearerScheme {
			if refusal = s.console(x); refusal != nil {
				return 0, refusal
			}
		}
	}
	switch o.Scheme {
	case pipeline.BearerScheme:
		have |= bearer
	case pipeline.BasicScheme:
		have |= basic
	}
	if o.Key != "" {
		have |= key
	}
	if o.Internal != "" {
		have |= internal
	}
	if s.wanted&certificate != 0 {
		if c, err := x.Certificate(); c.Leaf != nil || err != nil {
			have |= certificate
		}
	}
	return have, nil
}

// console looks for a key of the test console.
func (s *authenticate) console(x *pipeline.Exchange) *pipeline.Refusal {
	if s.d.APIKeys == nil || s.wanted&application == 0 || x.Offer.Again {
		return nil
	}
	lines := x.Header.Values(pipeline.InternalKeyHeader)
	if len(lines) > 1 {
		return s.twice(x, "the request has several fields "+pipeline.InternalKeyHeader)
	}
	if len(lines) == 1 {
		x.Offer.Internal = lines[0]
		s.referer(x)
	}
	return nil
}

func (s *authenticate) twice(x *pipeline.Exchange, reason string) *pipeline.Refusal {
	return x.Refuse(pipeline.StepAuthenticate, invalid("more than one credential was sent"), reason)
}

// field reads the credential field.
func (s *authenticate) field(x *pipeline.Exchange) *pipeline.Refusal {
	r, o := x.Route, &x.Offer
	lines := x.Header.Values(r.AuthHeader)
	switch {
	case len(lines) == 0:
		return nil
	case len(lines) > 1:
		return s.twice(x, "the request has several fields "+r.AuthHeader)
	}
	scheme, value, _ := strings.Cut(lines[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		o.Scheme, o.Credential = pipeline.BearerScheme, strings.TrimSpace(value)
		if s.wanted&bearer == 0 {
			return nil
		}
		if o.Credential == "" {
			return x.Refuse(pipeline.StepAuthenticate, invalid("the bearer token is empty"), "the bearer token is empty")
		}
		if !oneWord(o.Credential) {
			return x.Refuse(pipeline.StepAuthenticate, invalid("the bearer token is not one word"), "the bearer token is not one word")
		}
	case strings.EqualFold(scheme, "Basic"):
		o.Scheme, o.Credential = pipeline.BasicScheme, strings.TrimSpace(value)
	case lines[0] == "":
	case s.wanted&key != 0 && slices.Contains(r.KeyHeaders, r.AuthHeader):
		// The API has its keys in the credential field: keys reads it.
	default:
		o.Scheme = pipeline.OtherScheme
	}
	return nil
}

// keys looks for an API key in every place that the resource names. The same key in two places is one.
func (s *authenticate) keys(x *pipeline.Exchange) *pipeline.Refusal {
	r, o := x.Route, &x.Offer
	for _, name := range r.KeyHeaders {
		if name == r.AuthHeader && o.Scheme != pipeline.NoScheme {
			continue
		}
		lines := x.Header.Values(name)
		if len(lines) > 1 {
			return s.twice(x, "the request has several fields "+name)
		}
		if len(lines) == 1 && lines[0] != "" {
			if o.Key != "" && o.Key != lines[0] {
				return s.twice(x, "the request has several API keys")
			}
			o.Key = lines[0]
		}
	}
	for _, name := range r.KeyQueries {
		value, n := pipeline.QueryValue(x.Query, name)
		if n > 1 {
			return s.twice(x, "the request has several parameters "+name)
		}
		if value != "" {
			if o.Key != "" && o.Key != value {
				return s.twice(x, "the request has several API keys")
			}
			o.Key = value
		}
	}
	if o.Key != "" {
		s.referer(x)
	}
	return nil
}

// referer notes the page that a request came from; of several, none is believed.
func (s *authenticate) referer(x *pipeline.Exchange) {
	if lines := x.Header.Values("Referer"); len(lines) == 1 {
		x.Offer.Referer = lines[0]
	}
}

// check asks the domain about one kind of credential.
func (s *authenticate) check(x *pipeline.Exchange, k kinds) (o outcome) {
	switch k {
	case bearer:
		o.token, o.cached, o.err = s.bearer(x)
	case key:
		o.token, o.cached, o.err = s.key(x, x.Offer.Key, false)
	case internal:
		o.token, o.cached, o.err = s.key(x, x.Offer.Internal, true)
	case basic:
		user, password, problem := basicCredential(x.Offer.Credential)
		if problem != nil {
			return outcome{err: problem}
		}
		o.token, o.err = s.d.Users.AuthenticateUser(x.Context, user, password)
	case certificate:
		c, err := x.Certificate()
		if err != nil {
			return outcome{err: &keymanager.Refusal{Check: keymanager.CheckClient, Detail: "the client certificate cannot be read: " + err.Error()}}
		}
		o.token, o.err = s.d.Certificates.AuthenticateCertificate(keymanager.CertificateOffer{
			API: certificateKey(x.Route.API), DER: c.Leaf, Chain: c.Chain, FromHeader: c.FromHeader,
		})
	}
	return o
}

// certificateKey names an API to the certificates' domain.
func certificateKey(a *definition.API) string {
	if a.UUID != "" {
		return a.UUID
	}
	return a.Context + ":" + a.Version
}

func (s *authenticate) bearer(x *pipeline.Exchange) (t *keymanager.Token, cached bool, err error) {
	r := x.Route
	t, cached, err = s.d.Authenticator.Authenticate(x.Context, keymanager.Credential{Bearer: x.Offer.Credential, Allowed: r.API.KeyManagers, Tenant: r.Tenant})
	if err == nil && t != nil && t.BoundTo != "" {
		c, _ := x.Certificate() // one that cannot be read is none
		if t.BoundTo != thumbprint(c.Leaf) {
			return nil, false, &keymanager.Refusal{
				Check: keymanager.CheckBound, KeyManager: t.KeyManager, Issuer: t.Issuer, Origin: t.Origin,
				Detail: "the token is bound to a client certificate that did not come with it",
			}
		}
	}
	return t, cached, err
}

func (s *authenticate) key(x *pipeline.Exchange, value string, console bool) (*keymanager.Token, bool, error) {
	a := x.Route.API
	return s.d.APIKeys.AuthenticateKey(x.Context, keymanager.KeyOffer{
		Value: value, Internal: console, Tenant: x.Route.Tenant, APIUUID: a.UUID, APIName: a.Name, APIVersion: a.Version, APIContext: a.Context,
		ClientIP: x.ClientIP, Referer: x.Offer.Referer,
	})
}

// admit notes who calls.
func (s *authenticate) admit(x *pipeline.Exchange, token *keymanager.Token, cached bool) {
	x.Token, x.Cached = token, cached
	x.Note(pipeline.StepAuthenticate, pipeline.OK)
	x.StripCredential = true
	t := &x.Throttle
	t.Authenticated = true
	x.User = s.d.users.withTenant(token.User, x.Route.Tenant)
	t.User = x.User
	if token.Kind == keymanager.KindJWT || token.Kind == "" {
		return
	}
	t.SubscriptionTier = token.Tier
	switch token.Kind {
	case keymanager.KindBasic:
		// Whoever comes by name and password has no application and no plan of his own (contract gateway-behaviour.md 9).
		t.AppID, t.AppName, t.AppTier = nobody, nobody, unlimited
		if token.Tier == "" {
			t.SubscriptionTier = "Default"
		}
	case keymanager.KindCertificate:
		// The certificate's plan is counted for each certificate by itself.
		t.AppID, t.AppName, t.AppTier = token.ID, token.Subject, unlimited
	case keymanager.KindAPIKey, keymanager.KindInternalKey:
		s.d.embedded(x, token)
	}
}

const (
	nobody    = "anonymous"
	unlimited = "Unlimited"
)

// thumbprint is the SHA-256 of a certificate as tokens name it, "" without one.
func thumbprint(der []byte) string {
	if len(der) == 0 {
		return ""
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// formatError is a fault in the form of a basic credential.
type formatError struct {
	code   int
	detail string
}

func (e *formatError) Error() string { return e.detail }

var (
	errNotBase64   = &formatError{fault.General, "the basic credential is not base64"}
	errNoColon     = &formatError{fault.BadFormat, "the basic credential has no colon"}
	errNoUser      = &formatError{fault.BadUser, "the user name is empty"}
	errNoPassword  = &formatError{fault.BadUser, "the password is empty"}
	errControlChar = &formatError{fault.BadUser, "the basic credential holds a control character"}
)

// basicCredential takes a basic credential apart (RFC 7617).
func basicCredential(value string) (user, password string, problem *formatError) {
	b, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return "", "", errNotBase64
	}
	user, password, ok := strings.Cut(string(b), ":")
	switch {
	case !ok:
		return "", "", errNoColon
	case user == "":
		return "", "", errNoUser
	case password == "":
		return "", "", errNoPassword
	case strings.ContainsFunc(string(b), func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", "", errControlChar
	}
	return user, password, nil
}

// withTenant appends the API's tenant to a user, unless the name holds it already (contract events.md 6.1).
func withTenant(user, tenant string) string {
	if user == "" || strings.Contains(user, tenant) {
		return user
	}
	return user + "@" + tenant
}

func invalid(detail string) pipeline.Refusal {
	f := fault.Of(fault.InvalidCredentials)
	f.Description = "Invalid Credentials. Make sure you have given the correct access token: " + detail
	f.Challenge = `error="invalid_token", error_description="` + fault.Quote(detail) + `"`
	return f
}

// missing refuses a request none of whose credentials add up to an alternative.
func (s *authenticate) missing(x *pipeline.Exchange, have kinds) *pipeline.Refusal {
	r, o := x.Route, &x.Offer
	if s.certified && have&certificate == 0 {
		return x.Refuse(pipeline.StepAuthenticate, invalid("a client certificate is needed"), "no client certificate came, and each alternative asks for one")
	}
	foreign := o.Scheme == pipeline.OtherScheme || o.Scheme == pipeline.BearerScheme && s.wanted&bearer == 0 || o.Scheme == pipeline.BasicScheme && s.wanted&basic == 0
	if foreign {
		f := fault.Of(fault.InvalidScheme)
		reason := "the scheme of the credential is not one that the resource accepts"
		if o.Scheme == pipeline.BasicScheme {
			if _, _, problem := basicCredential(o.Credential); problem == errNotBase64 || problem == errNoColon {
				f.Description = f.Message + ". " + strings.ToUpper(problem.detail[:1]) + problem.detail[1:]
				f.Challenge = `error="invalid_token", error_description="` + fault.Quote(problem.detail) + `"`
				reason = problem.detail
			}
		}
		return x.Refuse(pipeline.StepAuthenticate, f, reason)
	}
	if have&s.wanted == 0 && have&internal == 0 {
		if r.API.SecurityOptional {
			x.Note(pipeline.StepAuthenticate, pipeline.Skipped)
			x.StripCredential = true
			anonymous(x)
			return nil
		}
		return x.Refuse(pipeline.StepAuthenticate, fault.Of(fault.MissingCredentials), "the request has "+s.nothing(r))
	}
	// Something came, and less than any alternative needs: the one that lacks least is named.
	lacks := kinds(0)
	for _, alternative := range s.alternatives {
		if have&internal != 0 && alternative&application != 0 {
			alternative = alternative&^application | internal
		}
		if rest := alternative &^ have; lacks == 0 || bits.OnesCount8(uint8(rest)) < bits.OnesCount8(uint8(lacks)) {
			lacks = rest
		}
	}
	text := lacks.text()
	if lacks&certificate != 0 {
		return x.Refuse(pipeline.StepAuthenticate, invalid(text+" is needed too"), "the request lacks "+text)
	}
	f := fault.Of(fault.MissingCredentials)
	f.Description += ": " + text + " is needed too"
	return x.Refuse(pipeline.StepAuthenticate, f, "the request lacks "+text)
}

// nothing says where a credential was looked for in vain.
func (s *authenticate) nothing(r *pipeline.Route) string {
	var places []string
	if s.wanted&(bearer|basic) != 0 {
		places = append(places, "no field "+r.AuthHeader)
	}
	for _, h := range r.KeyHeaders {
		if s.wanted&key != 0 && h != r.AuthHeader {
			places = append(places, "no field "+h)
		}
	}
	for _, q := range r.KeyQueries {
		if s.wanted&key != 0 {
			places = append(places, "no parameter "+q)
		}
	}
	if s.wanted&certificate != 0 {
		places = append(places, "no client certificate")
	}
	return strings.Join(places, ", ")
}

var kindTexts = [numKinds]string{"a client certificate", "an access token", "an API key", "basic authentication", "a key of the test console"}

// text names the kinds for people.
func (k kinds) text() string {
	var b strings.Builder
	k.each(func(one kinds) bool {
		if b.Len() > 0 {
			b.WriteString(" and ")
		}
		b.WriteString(kindTexts[index(one)])
		return true
	})
	return b.String()
}

// refuse turns the answer of a domain into a fault.
func (s *authenticate) refuse(x *pipeline.Exchange, kind kinds, err error) *pipeline.Refusal {
	var k *keymanager.Refusal
	var form *formatError
	switch {
	case errors.As(err, &form):
		f := fault.Of(form.code)
		if form.code == fault.General {
			f.Status, f.RetryAfter, f.Challenge = 401, 0, pipeline.ChallengeOnly
			f.Description = f.Message + ". The basic credential is not base64"
		}
		return x.Refuse(pipeline.StepAuthenticate, f, form.detail)
	case !errors.As(err, &k):
		// Nothing that the domain names: the caller cannot be judged, so it is not let in.
		reason := "the credential could not be checked"
		if err != nil {
			reason += ": " + err.Error()
		}
		return x.Refuse(pipeline.StepAuthenticate, fault.Of(fault.General), reason)
	}
	x.Auth = k
	if k.Temporary {
		f := fault.Of(fault.General)
		f.Description = "The credential cannot be checked at present. Please try again later"
		return x.Refuse(pipeline.StepAuthenticate, f, k.Detail)
	}
	detail := k.Detail
	if detail == "" {
		detail = string(k.Check)
	}
	var f pipeline.Refusal
	switch {
	case k.Forbidden:
		f = fault.Of(fault.Forbidden)
		f.Description = "Resource forbidden. " + detail
	case kind == basic:
		f = fault.Of(fault.BadUser)
	case k.Check == keymanager.CheckExpired && s.d.ExpiredCode == fault.TokenExpired:
		f = fault.Of(fault.TokenExpired)
		f.Challenge = `error="invalid_token", error_description="` + fault.Quote(detail) + `"`
	default:
		f = invalid(detail)
	}
	return x.Refuse(pipeline.StepAuthenticate, f, detail)
}
