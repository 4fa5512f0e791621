package stage

import (
	"net/http"
	"time"

	"gatehouse/keymanager"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
)

// Asserter signs what backends are told of a caller. It does not keep c.
type Asserter interface {
	Token(c *keymanager.Caller, now time.Time) (string, error)
}

// assert makes the backend JWT of a request that nothing has refused (contract gateway-behaviour.md 14).
type assert struct{ d *Domains }

func (s *assert) Run(x *pipeline.Exchange) *pipeline.Refusal {
	if x.Token == nil && !s.d.AssertAnonymous {
		x.Note(pipeline.StepBackendJWT, pipeline.Skipped)
		return nil
	}
	fillCaller(x)
	token, err := s.d.Asserter.Token(&x.Caller, time.UnixMilli(x.Now))
	switch {
	case err == nil:
		x.BackendToken = token
		x.Note(pipeline.StepBackendJWT, pipeline.OK)
		return nil
	case s.d.OmitAssertion:
		x.Note(pipeline.StepBackendJWT, pipeline.Skipped)
		return nil
	}
	f := fault.Of(fault.General)
	f.Status, f.RetryAfter = http.StatusInternalServerError, 0
	f.Description = "The backend cannot be told who calls"
	return x.Refuse(pipeline.StepBackendJWT, f, "the backend JWT could not be made: "+err.Error())
}

// fillCaller gathers what the steps before have learnt. A self-contained token speaks for itself where there are no rows.
func fillCaller(x *pipeline.Exchange) {
	api, c := x.Route.API, &x.Caller
	*c = keymanager.Caller{
		Token:   x.Token,
		APIUUID: api.UUID, APIName: api.Name, APIVersion: api.Version, APIContext: api.Context, APITenant: x.Route.Tenant,
		Tier: x.Throttle.SubscriptionTier,
	}
	if x.Token == nil {
		c.KeyType = string(x.KeyType)
		return
	}
	if a := x.Facts.Application; a != nil {
		c.ApplicationID, c.ApplicationUUID, c.ApplicationName, c.ApplicationOwner, c.ApplicationTier = a.ID, a.UUID, a.Name, a.Owner, a.Policy
		c.SubscriberTenant = a.Tenant
		if len(a.Attributes) > 0 {
			c.Attributes = &a.Attributes
		}
	} else if a := x.Token.Application; a != nil {
		c.ApplicationID, c.ApplicationUUID, c.ApplicationName, c.ApplicationOwner, c.ApplicationTier = a.ID, a.UUID, a.Name, a.Owner, a.Tier
	}
	if e := x.Embedded; e != nil {
		c.SubscriberTenant = e.SubscriberTenant
	}
	if x.Facts.Mapping != nil || x.Token.Application != nil {
		c.KeyType = string(x.KeyType)
	}
}
