// Package stage holds the steps of the pipeline: thin adapters that ask the domains (who is calling, what was bought, how
// much is left) and turn their answers into refusals. Each domain is seen through an interface of at most three methods.
package stage

import (
	"context"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"gatehouse/keymanager"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// Authenticator verifies credentials. Errors are *keymanager.Refusal. cached says that the token was known as good.
type Authenticator interface {
	Authenticate(ctx context.Context, c keymanager.Credential) (token *keymanager.Token, cached bool, err error)
}

// APIKeys verifies API keys and keys of the test console. Errors are *keymanager.Refusal. cached says that the key was known
// as good.
type APIKeys interface {
	AuthenticateKey(ctx context.Context, o keymanager.KeyOffer) (t *keymanager.Token, cached bool, err error)
}

// Users verifies the users of basic authentication. Errors are *keymanager.Refusal.
type Users interface {
	AuthenticateUser(ctx context.Context, user, password string) (*keymanager.Token, error)
}

// Certificates says whether a client certificate is admitted to an API. Errors are *keymanager.Refusal.
type Certificates interface {
	AuthenticateCertificate(o keymanager.CertificateOffer) (*keymanager.Token, error)
}

// Subscriptions looks up what a consumer key has bought, or an application that is known by its UUID or number (facts
// without a mapping; where both are empty, those of the API alone).
type Subscriptions interface {
	Resolve(consumerKey, keyManager string, api subscription.APIRef) subscription.Facts
	ResolveApplication(uuid string, id int64, api subscription.APIRef) subscription.Facts
}

// Denier looks up deny policies: those that need no identity, then those that do.
type Denier interface {
	DenyAnonymous(r *throttle.Request) *throttle.DenyCondition
	DenyIdentified(r *throttle.Request) *throttle.DenyCondition
}

// Throttler checks a request against its limits and counts it. Publish tells the traffic manager of an admitted request
// and never waits. now is in milliseconds since the epoch.
type Throttler interface {
	Check(r *throttle.Request, now int64) throttle.Verdict
	Publish(r *throttle.Request, now int64)
}

// Domains is what the stages ask. Nil members leave their steps out, which only tests and a gateway without the domain
// want. Without any of the four that judge credentials nobody is asked for one.
type Domains struct {
	Authenticator Authenticator
	// APIKeys, Users and Certificates check the other kinds of credential. While one is nil, alternatives that ask for its
	// kind cannot be satisfied, and a resource without another refuses every request with 401/900901.
	APIKeys       APIKeys
	Users         Users
	Certificates  Certificates
	Subscriptions Subscriptions
	Denier        Denier
	Throttler     Throttler
	Fetcher       pipeline.Fetcher
	// MissTimeout bounds how long a request waits for a row that memory lacks; 0 means 2 s.
	MissTimeout time.Duration
	// Stale, when not nil, names a list that is too old to let anybody in with, "" when there is none. It is called for each
	// request to a secured resource and must be cheap.
	Stale func() string
	// SkipSubscriptions turns subscription validation off for every API, but for tokens whose key manager wants it.
	SkipSubscriptions bool
	// KeepCredential sends the credential field on to the backend (enable_outbound_auth_header); credentials elsewhere are
	// taken away all the same.
	KeepCredential bool
	// ScopesForAPIKeys asks API keys for scopes too.
	ScopesForAPIKeys bool
	// ExpiredCode is what an expired token is refused with: 900901 as Microgateway, 900903 as the API Manager. 0 means
	// 900901.
	ExpiredCode int
	// Asserter signs what backends are told of the caller; nil tells them nothing.
	Asserter Asserter
	// AssertAnonymous tells them of callers without a credential too. OmitAssertion sends a request on without what could not
	// be signed, which else refuses it.
	AssertAnonymous, OmitAssertion bool

	texts *decimals
	users *users
}

// prepare makes what the stages share.
func (d *Domains) prepare() {
	if d.texts == nil {
		d.texts, d.users = new(decimals), &users{seed: maphash.MakeSeed()}
	}
}

// Chain returns the stages of a route, in the order of contract gateway-behaviour.md 1. It is called by one goroutine at a
// time.
func (d *Domains) Chain(r *pipeline.Route) []pipeline.Stage {
	d.prepare()
	chain := []pipeline.Stage{lifecycle{}}
	if d.Denier != nil {
		chain = append(chain, denyAnonymous{d.Denier})
	}
	if r.Secured && d.Stale != nil {
		chain = append(chain, &fresh{d.Stale})
	}
	chain = append(chain, d.identity(r, false)...)
	chain = append(chain, endpoint{})
	if r.Secured && len(r.Operation.Scopes) > 0 {
		chain = append(chain, &scopes{list: r.Operation.Scopes, all: r.API.AllScopes, keys: d.ScopesForAPIKeys})
	}
	if d.Denier != nil {
		chain = append(chain, denyIdentified{d.Denier})
	}
	if d.Throttler != nil {
		chain = append(chain, limit{d.Throttler})
	}
	if d.Asserter != nil {
		chain = append(chain, &assert{d})
	}
	return chain
}

// identity returns the stages that find out who calls and what he has bought.
func (d *Domains) identity(r *pipeline.Route, again bool) []pipeline.Stage {
	unchecked := d.Authenticator == nil && d.APIKeys == nil && d.Users == nil && d.Certificates == nil
	if !r.Secured || unchecked && r.Operation.Unavailable == "" {
		return []pipeline.Stage{open{}}
	}
	why := r.Operation.Unavailable
	if why == "" {
		var s *authenticate
		if s, why = newAuthenticate(d, r.Operation); why == "" {
			if d.Subscriptions == nil {
				return []pipeline.Stage{s}
			}
			wait := d.MissTimeout
			if wait <= 0 {
				wait = 2 * time.Second
			}
			return []pipeline.Stage{s, &subscribe{d: d, wait: wait, again: again}}
		}
	}
	return []pipeline.Stage{&unavailable{why}}
}

// Again returns the stages that say whether an exchange of the route that is under way would still be admitted. They look
// at its Offer, count nothing and fetch nothing. It is called as Chain is.
func (d *Domains) Again(r *pipeline.Route) []pipeline.Stage {
	d.prepare()
	var chain []pipeline.Stage
	if d.Denier != nil {
		chain = append(chain, denyAnonymous{d.Denier})
	}
	chain = append(chain, d.identity(r, true)...)
	if d.Denier != nil {
		chain = append(chain, denyIdentified{d.Denier})
	}
	return chain
}

// unauthenticated is the business plan under which callers without identity are counted.
const unauthenticated = "Unauthenticated"

// lifecycle refuses an API that its publisher has blocked.
type lifecycle struct{}

func (lifecycle) Run(x *pipeline.Exchange) *pipeline.Refusal {
	if strings.EqualFold(x.Route.API.Lifecycle, "BLOCKED") {
		return x.Refuse(pipeline.StepLifecycle, fault.Of(fault.APIBlocked), "the API's life cycle state is BLOCKED")
	}
	x.Note(pipeline.StepLifecycle, pipeline.OK)
	return nil
}

// open lets requests to unsecured resources pass: their credential is neither checked nor removed.
type open struct{}

func (open) Run(x *pipeline.Exchange) *pipeline.Refusal {
	x.Note(pipeline.StepAuthenticate, pipeline.Skipped)
	anonymous(x)
	return nil
}

// fresh refuses while what credentials are judged by is too old, and the operator would rather serve nobody.
type fresh struct{ stale func() string }

func (s *fresh) Run(x *pipeline.Exchange) *pipeline.Refusal {
	why := s.stale()
	if why == "" {
		return nil
	}
	f := fault.Of(fault.General)
	f.Description = "The gateway's state is out of date. Please try again later"
	return x.Refuse(pipeline.StepAuthenticate, f, why)
}

// unavailable refuses every credential: what the resource asks for cannot be checked in this release, and a resource that
// cannot be secured as it is meant to be is not served at all.
type unavailable struct{ why string }

func (s *unavailable) Run(x *pipeline.Exchange) *pipeline.Refusal {
	return x.Refuse(pipeline.StepAuthenticate, invalid("the credentials that the resource asks for are not supported"), s.why)
}

// anonymous counts a request under the caller's address.
func anonymous(x *pipeline.Exchange) {
	x.Throttle.SubscriptionTier = unauthenticated
}

// denyAnonymous applies the deny policies that need no identity: API, IP and IP range.
type denyAnonymous struct{ d Denier }

func (s denyAnonymous) Run(x *pipeline.Exchange) *pipeline.Refusal {
	return deny(x, pipeline.StepDeny, s.d.DenyAnonymous(&x.Throttle))
}

// denyIdentified applies those that need one: user, application and subscription.
type denyIdentified struct{ d Denier }

func (s denyIdentified) Run(x *pipeline.Exchange) *pipeline.Refusal {
	if !x.Throttle.Authenticated {
		x.Note(pipeline.StepDenyIdentity, pipeline.Skipped)
		return nil
	}
	return deny(x, pipeline.StepDenyIdentity, s.d.DenyIdentified(&x.Throttle))
}

func deny(x *pipeline.Exchange, step pipeline.Step, c *throttle.DenyCondition) *pipeline.Refusal {
	if c == nil {
		x.Note(step, pipeline.OK)
		return nil
	}
	x.Deny = c
	return x.Refuse(step, fault.Of(fault.Blocked), "a deny policy of kind "+string(c.Kind)+" is in force")
}

// endpoint chooses the backend by the key's type.
type endpoint struct{}

func (endpoint) Run(x *pipeline.Exchange) *pipeline.Refusal {
	r := x.Route
	if !x.Throttle.Authenticated && !r.Production && r.Sandbox {
		x.KeyType, x.Throttle.KeyType = subscription.Sandbox, string(subscription.Sandbox)
	}
	if x.KeyType == subscription.Sandbox && !r.Sandbox {
		return x.Refuse(pipeline.StepEndpoint, wrongKey("Sandbox key offered to the API with no sandbox endpoint"), "the API has no sandbox endpoint")
	}
	if x.KeyType != subscription.Sandbox && !r.Production {
		return x.Refuse(pipeline.StepEndpoint, wrongKey("Production key offered to the API with no production endpoint"), "the API has no production endpoint")
	}
	x.Note(pipeline.StepEndpoint, pipeline.OK)
	return nil
}

func wrongKey(description string) pipeline.Refusal {
	f := fault.Of(fault.InvalidCredentials)
	f.Description = description
	f.Challenge = `error="invalid_token", error_description="the key type has no endpoint"`
	return f
}

// scopes wants any one of the resource's scopes, or all.
type scopes struct {
	list []string
	all  bool
	keys bool // API keys need them too
}

func (s *scopes) Run(x *pipeline.Exchange) *pipeline.Refusal {
	t := x.Token
	if t == nil { // security is optional and no credential came
		x.Note(pipeline.StepScopes, pipeline.Skipped)
		return nil
	}
	if !s.all {
		for _, have := range t.Scopes {
			if slices.Contains(s.list, have) {
				x.Note(pipeline.StepScopes, pipeline.OK)
				return nil
			}
		}
	}
	if s.exempt(t.Kind) {
		x.Note(pipeline.StepScopes, pipeline.Skipped)
		return nil
	}
	if s.all {
		return s.every(x, t)
	}
	list := strings.Join(s.list, " ")
	return s.refuse(x, "One of these scopes is needed: ", list, "the token has none of the scopes "+list)
}

// exempt says whether a kind of credential has no scopes (contract gateway-behaviour.md 11).
func (s *scopes) exempt(k keymanager.Kind) bool {
	switch k {
	case keymanager.KindInternalKey, keymanager.KindCertificate:
		return true
	case keymanager.KindAPIKey:
		return !s.keys
	}
	return false
}

func (s *scopes) every(x *pipeline.Exchange, t *keymanager.Token) *pipeline.Refusal {
	for _, want := range s.list {
		if slices.Contains(t.Scopes, want) {
			continue
		}
		var lacks []string
		for _, one := range s.list {
			if !slices.Contains(t.Scopes, one) {
				lacks = append(lacks, one)
			}
		}
		list := strings.Join(lacks, " ")
		return s.refuse(x, "These scopes are missing: ", list, "the token lacks the scopes "+list)
	}
	x.Note(pipeline.StepScopes, pipeline.OK)
	return nil
}

func (s *scopes) refuse(x *pipeline.Exchange, text, list, reason string) *pipeline.Refusal {
	f := fault.Of(fault.ScopeMissing)
	f.Description = f.Message + ". " + text + list
	f.Challenge = `error="insufficient_scope", scope="` + fault.Quote(strings.Join(s.list, " ")) + `"`
	return x.Refuse(pipeline.StepScopes, f, reason)
}

// limit asks the throttle, and publishes what was admitted.
type limit struct{ t Throttler }

var levelCodes = [...]int{
	throttle.LevelAPI:          fault.LimitAPI,
	throttle.LevelResource:     fault.LimitResource,
	throttle.LevelSubscription: fault.LimitSubscription,
	throttle.LevelBurst:        fault.LimitBurst,
	throttle.LevelApplication:  fault.LimitApplication,
	throttle.LevelCustom:       fault.LimitCustom,
	throttle.LevelHard:         fault.LimitHard,
}

func (s limit) Run(x *pipeline.Exchange) *pipeline.Refusal {
	v := s.t.Check(&x.Throttle, x.Now)
	x.Verdict = v
	if v.Level == throttle.LevelNone {
		x.Note(pipeline.StepThrottle, pipeline.OK)
		s.t.Publish(&x.Throttle, x.Now)
		return nil
	}
	code := fault.LimitCustom
	if int(v.Level) < len(levelCodes) {
		code = levelCodes[v.Level]
	}
	f := fault.Of(code)
	if wait := v.RetryAt - x.Now; wait > 0 {
		f.RetryAfter = (wait + 999) / 1000
	}
	return x.Refuse(pipeline.StepThrottle, f, "the limit of level "+v.Level.String()+" is used up")
}

// decimals keeps the text of numbers that come again and again, so that a request needs not make it. It is a
// direct-mapped cache: bounded, without locks, and a collision costs one allocation.
type decimals struct {
	slots [1024]atomic.Pointer[decimal]
}

type decimal struct {
	n    int64
	text string
}

// of returns n in decimal.
func (d *decimals) of(n int64) string {
	s := &d.slots[uint64(n)%uint64(len(d.slots))]
	if e := s.Load(); e != nil && e.n == n {
		return e.text
	}
	e := &decimal{n, strconv.FormatInt(n, 10)}
	s.Store(e)
	return e.text
}

// users keeps the names of users with their tenants, as decimals keeps numbers: most requests are those of a few.
type users struct {
	seed  maphash.Seed
	slots [1024]atomic.Pointer[known]
}

type known struct{ user, tenant, text string }

// maxKnown is the longest name that is kept, in bytes.
const maxKnown = 256

// withTenant appends the API's tenant to a user (withTenant).
func (u *users) withTenant(user, tenant string) string {
	if len(user) > maxKnown {
		return withTenant(user, tenant)
	}
	slot := &u.slots[maphash.String(u.seed, user)%uint64(len(u.slots))]
	if k := slot.Load(); k != nil && k.user == user && k.tenant == tenant {
		return k.text
	}
	k := &known{user, tenant, withTenant(user, tenant)}
	slot.Store(k)
	return k.text
}
