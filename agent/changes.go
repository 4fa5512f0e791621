package agent

import (
	"gatehouse/agent/admin"
	"gatehouse/agent/sync"
	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// artifactView, scopeView and revocationView are entries of the event stream alone.
type artifactView struct {
	ID           string   `json:"id"`
	Name         string   `json:"name"`
	Version      string   `json:"version"`
	Context      string   `json:"context"`
	Revision     string   `json:"revision"`
	Environments []string `json:"environments"`
	Refused      string   `json:"refused,omitempty"`
}

type scopeView struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles"`
}

type revocationView struct {
	Kind      string     `json:"kind"`
	SHA256    string     `json:"sha256,omitempty"` // of a token's id or signature
	Value     string     `json:"value,omitempty"`  // a consumer key or user
	Before    admin.Time `json:"before,omitempty"`
	ExpiresAt admin.Time `json:"expires_at"`
	Tenant    string     `json:"tenant"`
}

// publishChange renders a change as the entries of the admin API and hands it to the readers of the event stream.
func (a *Agent) publishChange(c sync.Change) {
	if !a.feed.Active() {
		return
	}
	row := c.After
	if row == nil {
		row = c.Before
	}
	a.feed.Publish(admin.KindChange, admin.Change{
		What: c.What, ID: changeID(row, c.ID), Before: a.shown(c.Before), After: a.shown(c.After), Origin: origin(c.Origin),
	})
}

// changeID names the row of a change as the list of its kind does.
func changeID(row any, otherwise string) string {
	switch r := row.(type) {
	case *keymanager.KeyManager:
		return keyManagerID(r)
	case *throttle.DenyCondition:
		return denyID(r)
	case *throttle.Policy:
		return policyID(r)
	case *keymanager.OpaqueKey:
		return opaqueKeyID(r)
	}
	return otherwise
}

// shown renders a row of a change.
func (a *Agent) shown(row any) any {
	switch r := row.(type) {
	case *subscription.API:
		if r != nil {
			return apiOf(apiID(r), r, nil, "")
		}
	case *subscription.Application:
		if r != nil {
			return applicationOf(r)
		}
	case *subscription.Subscription:
		if r != nil {
			return subscriptionOf(r)
		}
	case *subscription.KeyMapping:
		if r != nil {
			return mappingOf(r)
		}
	case *keymanager.KeyManager:
		if r != nil {
			return a.keyManagerOf(r)
		}
	case *throttle.DenyCondition:
		if r != nil {
			return denyOf(r)
		}
	case *throttle.KeyTemplate:
		if r != nil {
			return keyTemplateOf(r)
		}
	case *throttle.Policy:
		if r != nil {
			return policyOf(r)
		}
	case *keymanager.OpaqueKey:
		if r != nil {
			return opaqueKeyOf(r)
		}
	case *sync.Scope:
		if r != nil {
			return scopeView{Name: r.Name, Roles: notNil(r.Roles)}
		}
	case sync.DeployedShown:
		return artifactView{
			ID: r.UUID, Name: r.Name, Version: r.Version, Context: r.Context, Revision: r.Revision, Environments: notNil(r.Environments), Refused: r.Err,
		}
	case sync.RevokedShown:
		return revocationView{Kind: r.Kind, SHA256: r.SHA256, Value: r.Value, Before: admin.Time(r.Before), ExpiresAt: admin.Time(r.ExpiresAt), Tenant: r.Tenant}
	}
	return nil
}
