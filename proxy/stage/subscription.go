package stage

import (
	"context"
	"strconv"
	"time"

	"gatehouse/keymanager"
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
	facts := s.d.Subscriptions.Resolve(t.ConsumerKey, t.KeyManager, x.Route.Ref)
	v := subscription.Validate(facts)
	var fetchErr error
	if missing(v.Reason) && s.d.Fetcher != nil && !s.again && !skip && t.ConsumerKey != "" {
		// Each answer may lead to the next row that is missing: mapping, application, API, subscription.
		ctx, cancel := context.WithTimeout(x.Context, s.wait)
		for range 4 {
			found, err := s.d.Fetcher.Fetch(ctx, t.ConsumerKey, t.KeyManager, x.Route.Ref, v.Reason)
			if err != nil {
				fetchErr = err
				break
			}
			if !found {
				break
			}
			before := v.Reason
			facts = s.d.Subscriptions.Resolve(t.ConsumerKey, t.KeyManager, x.Route.Ref)
			v = subscription.Validate(facts)
			if !missing(v.Reason) || v.Reason == before {
				break
			}
		}
		cancel()
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

// apiKey finds the subscription of an API key: the rows decide where the key's application is known, else what the key
// says of itself, which is what was true when it was made (contract gateway-behaviour.md 8).
func (s *subscribe) apiKey(x *pipeline.Exchange, t *keymanager.Token) *pipeline.Refusal {
	var facts subscription.Facts
	if a := t.Application; a != nil {
		facts = s.d.Subscriptions.ResolveApplication(a.UUID, a.ID, x.Route.Ref)
	}
	if facts.Application == nil {
		if t.Application != nil && t.Subscribed != nil {
			return s.selfContained(x, t)
		}
		if s.skipped(x, t) {
			x.Note(pipeline.StepSubscription, pipeline.Skipped)
			return nil
		}
		return x.Refuse(pipeline.StepSubscription, fault.Of(fault.Forbidden), "the application of the API key is not known, and the key names no subscriptions")
	}
	v := subscription.ValidateApplication(facts, subscription.KeyType(t.Application.KeyType))
	x.Facts = facts
	s.fill(x, t, v)
	switch {
	case v.Reason == subscription.Allowed:
		x.Note(pipeline.StepSubscription, pipeline.OK)
	case s.skipped(x, t):
		x.Note(pipeline.StepSubscription, pipeline.Skipped)
	default:
		return s.refuse(x, v, nil)
	}
	return nil
}

// selfContained lets the token speak for itself: its own list of subscriptions decides, the rows are not asked.
// An entry that names a context is for the API at that context: tenants may have APIs of one name.
func (s *subscribe) selfContained(x *pipeline.Exchange, t *keymanager.Token) *pipeline.Refusal {
	api := x.Route.API
	q := &x.Throttle
	s.d.embedded(x, t)
	for i := range t.Subscribed {
		e := &t.Subscribed[i]
		if e.Name == api.Name && e.Version == api.Version && (e.Context == "" || e.Context == api.Context) {
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
