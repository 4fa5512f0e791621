package stage

import (
	"context"
	"strconv"
	"time"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/subscription"
)

// subscribe finds what the caller has bought: the application behind the consumer key, and its subscription to the API.
type subscribe struct {
	d     *Domains
	wait  time.Duration
	again bool // of an exchange under way: what is missing is not asked for
}

// skipped says whether callers need no subscription. The narrowest setting decides: the API's, then the key manager's,
// then the gateway's.
func (s *subscribe) skipped(x *pipeline.Exchange, t *keymanager.Token) bool {
	switch {
	case x.Route.API.SkipSubscriptions, t.SkipSubscriptions:
		return true
	case t.ValidateSubscriptions:
		return false
	}
	return s.d.SkipSubscriptions
}

func (s *subscribe) Run(x *pipeline.Exchange) *pipeline.Refusal {
	t := x.Token
	if t == nil { // security is optional and no credential came
		x.Note(pipeline.StepSubscription, pipeline.Skipped)
		return nil
	}
	if x.Second != nil {
		if refusal := s.second(x, x.Second); refusal != nil {
			return refusal
		}
	}
	switch {
	case t.Unsubscribed:
		s.unsubscribed(x)
		return nil
	case t.Kind == keymanager.KindAPIKey:
		return s.apiKey(x, t)
	case t.Application != nil && t.Subscribed != nil:
		return s.selfContained(x, t)
	}
	skip := s.skipped(x, t)
	look := func() (subscription.Facts, subscription.Verdict) {
		facts := s.d.Subscriptions.Resolve(t.ConsumerKey, t.KeyManager, x.Route.Ref)
		return facts, subscription.Validate(facts)
	}
	facts, v := look()
	var fetchErr error
	if !skip && t.ConsumerKey != "" && s.mayFetch(v) {
		facts, v, fetchErr = s.fetch(x, v, look, func(ctx context.Context, missing subscription.Reason) (bool, error) {
			return s.d.Fetcher.Fetch(ctx, t.ConsumerKey, t.KeyManager, x.Route.Ref, missing)
		})
	}
	x.Facts = facts
	s.fill(x, t, v)
	if v.Reason == subscription.Allowed {
		x.Note(pipeline.StepSubscription, pipeline.OK)
		return nil
	}
	if skip {
		x.Note(pipeline.StepSubscription, pipeline.Skipped)
		return nil
	}
	return s.refuse(x, v, fetchErr)
}

// mayFetch says whether what is missing is asked for.
func (s *subscribe) mayFetch(v subscription.Verdict) bool {
	return missing(v.Reason) && s.d.Fetcher != nil && !s.again
}

// fetch asks for what is missing, and looks again. Each answer may lead to the next row that is missing: mapping, application,
// API, subscription.
func (s *subscribe) fetch(x *pipeline.Exchange, v subscription.Verdict, look func() (subscription.Facts, subscription.Verdict),
	ask func(context.Context, subscription.Reason) (bool, error),
) (subscription.Facts, subscription.Verdict, error) {
	ctx, cancel := context.WithTimeout(x.Context, s.wait)
	defer cancel()
	for range 4 {
		found, err := ask(ctx, v.Reason)
		before := v.Reason
		facts, now := look()
		if err != nil || !found || !missing(now.Reason) || now.Reason == before {
			return facts, now, err
		}
		v = now
	}
	facts, v := look()
	return facts, v, nil
}

// missing says whether a reason is a row that was not found, which may be on its way.
func missing(r subscription.Reason) bool {
	switch r {
	case subscription.UnknownAPI, subscription.UnknownKey, subscription.UnknownApplication, subscription.NoSubscription:
		return true
	}
	return false
}

// fill notes under what the request is counted, as far as it is known.
func (s *subscribe) fill(x *pipeline.Exchange, t *keymanager.Token, v subscription.Verdict) {
	q := &x.Throttle
	if v.KeyType != "" {
		x.KeyType, q.KeyType = v.KeyType, string(v.KeyType)
	}
	if a := x.Facts.Application; a != nil {
		q.AppID, q.AppName, q.AppOwner, q.AppTenant, q.AppTier = s.d.appID(a.ID, a.UUID), a.Name, a.Owner, a.Tenant, a.Policy
	} else {
		q.AppName = "anon:" + t.KeyManager
	}
	if b := x.Facts.Subscription; b != nil {
		q.SubscriptionTier = b.Policy
	}
	if a := x.Facts.API; a != nil && q.APITier == "" {
		q.APITier = a.Policy
	}
}

// appID is the text of an application in throttle keys: its number, or its UUID where no number is known.
func (d *Domains) appID(id int64, uuid string) string {
	if id == 0 && uuid != "" {
		return uuid
	}
	return d.texts.of(id)
}

// embedded counts a request under the application that its credential names itself.
func (d *Domains) embedded(x *pipeline.Exchange, t *keymanager.Token) {
	a := t.Application
	if a == nil {
		return
	}
	q := &x.Throttle
	q.AppID, q.AppName, q.AppOwner, q.AppTier, q.AppTenant = d.appID(a.ID, a.UUID), a.Name, a.Owner, a.Tier, x.Route.Tenant
	if a.KeyType == string(subscription.Sandbox) {
		x.KeyType, q.KeyType = subscription.Sandbox, a.KeyType
	}
}

// unsubscribed lets a credential pass that needs no subscription. Of the rows, the API's alone is of use: its plan counts.
func (s *subscribe) unsubscribed(x *pipeline.Exchange) {
	x.Facts = s.d.Subscriptions.ResolveApplication("", 0, x.Route.Ref)
	if a := x.Facts.API; a != nil && x.Throttle.APITier == "" {
		x.Throttle.APITier = a.Policy
	}
	x.Note(pipeline.StepSubscription, pipeline.Skipped)
}

// purchase is what is known of the subscription of an API key.
type purchase struct {
	facts   subscription.Facts
	verdict subscription.Verdict
	// unknown says that there are no rows of the application, byClaims that the key may speak for itself.
	unknown, byClaims bool
	err               error // of asking for what is missing
}

// ofKey looks up the subscription of an API key: the rows decide where the key's application is known, or the API Manager
// says that it knows none. Where it cannot be asked, what the key says of itself counts, which is what was true when it
// was made (contract gateway-behaviour.md 8).
func (s *subscribe) ofKey(x *pipeline.Exchange, t *keymanager.Token) (p purchase) {
	a := t.Application
	if a == nil || a.UUID == "" && a.ID == 0 {
		p.unknown, p.byClaims = true, a != nil && t.Subscribed != nil
		return p
	}
	look := func() (subscription.Facts, subscription.Verdict) {
		facts := s.d.Subscriptions.ResolveApplication(a.UUID, a.ID, x.Route.Ref)
		return facts, subscription.ValidateApplication(facts, subscription.KeyType(a.KeyType))
	}
	p.facts, p.verdict = look()
	no := false
	if s.mayFetch(p.verdict) && !s.skipped(x, t) {
		p.facts, p.verdict, p.err = s.fetch(x, p.verdict, look, func(ctx context.Context, missing subscription.Reason) (bool, error) {
			return s.d.Fetcher.FetchApplication(ctx, a.UUID, a.ID, x.Route.Ref, missing)
		})
		no = p.err == nil && p.verdict.Reason == subscription.UnknownApplication
	}
	if p.facts.Application == nil {
		p.unknown, p.byClaims = true, !no && t.Subscribed != nil
	}
	return p
}

// apiKey finds the subscription of an API key.
func (s *subscribe) apiKey(x *pipeline.Exchange, t *keymanager.Token) *pipeline.Refusal {
	p := s.ofKey(x, t)
	switch {
	case p.byClaims:
		return s.selfContained(x, t)
	case p.unknown && s.skipped(x, t):
		x.Note(pipeline.StepSubscription, pipeline.Skipped)
		return nil
	case p.unknown:
		return s.unknown(x, t, p.err)
	}
	x.Facts = p.facts
	s.fill(x, t, p.verdict)
	switch {
	case p.verdict.Reason == subscription.Allowed:
		x.Note(pipeline.StepSubscription, pipeline.OK)
	case s.skipped(x, t):
		x.Note(pipeline.StepSubscription, pipeline.Skipped)
	default:
		return s.refuse(x, p.verdict, p.err)
	}
	return nil
}

// unknown refuses an API key whose application has no rows, and which may not speak for itself.
func (s *subscribe) unknown(x *pipeline.Exchange, t *keymanager.Token, fetchErr error) *pipeline.Refusal {
	detail := "the application of the API key is not known"
	if t.Subscribed == nil {
		detail += ", and the key names no subscriptions"
	}
	return s.refuse(x, subscription.Verdict{Reason: subscription.UnknownApplication, Detail: detail}, fetchErr)
}

// second judges an API key that is asked for beside an access token: it is good for what its own application has bought, or
// a key of anybody for anything would do. Nothing is counted under it.
func (s *subscribe) second(x *pipeline.Exchange, t *keymanager.Token) *pipeline.Refusal {
	if s.skipped(x, t) {
		return nil
	}
	p := s.ofKey(x, t)
	var f *pipeline.Refusal
	switch {
	case p.byClaims && embeddedFor(x.Route.API, t) != nil, !p.unknown && p.verdict.Reason == subscription.Allowed:
		return nil
	case p.byClaims:
		return x.Refuse(pipeline.StepSubscription, fault.Of(fault.Forbidden), "the API key's own list of subscriptions does not name the API")
	case p.unknown:
		f = s.unknown(x, t, p.err)
	default:
		f = s.refuse(x, p.verdict, p.err)
	}
	x.Reason = "of the API key: " + x.Reason
	return f
}

// embeddedFor is the entry of a credential's own list of subscriptions for an API, nil where there is none. An entry that
// names a context is for the API at that context: tenants may have APIs of one name. API keys may be for every version
// (contract gateway-behaviour.md 8).
func embeddedFor(api *definition.API, t *keymanager.Token) *keymanager.EmbeddedSubscription {
	for i := range t.Subscribed {
		e := &t.Subscribed[i]
		if e.Name == api.Name && (e.Version == api.Version || e.Version == "*" && t.Kind == keymanager.KindAPIKey) && (e.Context == "" || e.Context == api.Context) {
			return e
		}
	}
	return nil
}

// selfContained lets the token speak for itself: its own list of subscriptions decides, the rows are not asked.
func (s *subscribe) selfContained(x *pipeline.Exchange, t *keymanager.Token) *pipeline.Refusal {
	api := x.Route.API
	q := &x.Throttle
	s.d.embedded(x, t)
	if e := embeddedFor(api, t); e != nil {
		x.Embedded = e
		if e.Tier != "" {
			q.SubscriptionTier = e.Tier
		}
		if e.SubscriberTenant != "" {
			q.AppTenant = e.SubscriberTenant
		}
		x.Note(pipeline.StepSubscription, pipeline.OK)
		return nil
	}
	if s.skipped(x, t) {
		x.Note(pipeline.StepSubscription, pipeline.Skipped)
		return nil
	}
	return x.Refuse(pipeline.StepSubscription, fault.Of(fault.Forbidden), "the token's own list of subscriptions does not name API "+api.Name+" "+api.Version+" at "+api.Context)
}

func (s *subscribe) refuse(x *pipeline.Exchange, v subscription.Verdict, fetchErr error) *pipeline.Refusal {
	code := fault.Forbidden
	switch v.Reason {
	case subscription.SubscriptionBlocked:
		code = fault.SubscriptionBlocked
	case subscription.SubscriptionInactive:
		code = fault.SubscriptionInactive
	}
	f := fault.Of(code)
	reason := v.Detail
	switch v.Reason {
	case subscription.UnknownAPI:
		reason += ": " + x.Route.API.Context
	case subscription.UnknownKey:
		reason += ": consumer key " + strconv.Quote(x.Token.ConsumerKey) + " at key manager " + strconv.Quote(x.Token.KeyManager)
	}
	if fetchErr != nil {
		f.RetryAfter = 1
		f.Description = "Resource forbidden. The subscription is not known yet. Please try again"
		reason = "not known yet: " + reason + ", and it could not be asked for: " + fetchErr.Error()
	}
	return x.Refuse(pipeline.StepSubscription, f, reason)
}
