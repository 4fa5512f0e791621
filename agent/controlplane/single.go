package controlplane

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
)

// errFound ends a list at the row that was sought.
var errFound = errors.New("found")

// one asks for a row and returns the first that matches: older servers ignore a query that they do not know and
// answer the whole list. Absent is (nil, nil).
func one[T any](ctx context.Context, c *Client, k call, decode func(*scanner, *T), match func(*T) bool) (*T, error) {
	var found *T
	_, err := list(ctx, c, k, decode, func(row T) error {
		if match(&row) {
			found = &row
			return errFound
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFound) {
		return nil, err
	}
	return found, nil
}

// APIQuery names one API: by UUID, or by its full context and version. Label narrows it to one gateway label.
type APIQuery struct{ UUID, Context, Version, Label string }

// API fetches the row of one API, with its resources.
func (c *Client) API(ctx context.Context, tenant string, q APIQuery) (*API, error) {
	v := url.Values{"expand": {"true"}}
	set(v, "apiId", q.UUID)
	if q.UUID == "" {
		set(v, "context", q.Context)
		set(v, "version", q.Version)
	}
	set(v, "gatewayLabel", q.Label)
	return one(ctx, c, call{op: "fetch API", path: "/apis", query: v, tenant: tenant}, (*scanner).api, func(a *API) bool {
		if q.UUID != "" {
			return strings.EqualFold(a.UUID, q.UUID)
		}
		return a.Context == q.Context && (q.Version == "" || a.Version == q.Version)
	})
}

// Application fetches the row of one application by its number.
func (c *Client) Application(ctx context.Context, tenant string, id int64) (*Application, error) {
	v := url.Values{"appId": {strconv.FormatInt(id, 10)}}
	return one(ctx, c, call{op: "fetch application", path: "/applications", query: v, tenant: tenant}, (*scanner).application,
		func(a *Application) bool { return a.ID == id })
}

// KeyMapping fetches the row of a consumer key under a key manager. The names "Default" and "Resident Key Manager" are
// one and the same, and a row without a key manager (3.2) matches any. An empty keyManager asks by the key alone.
func (c *Client) KeyMapping(ctx context.Context, tenant, consumerKey, keyManager string) (*KeyMapping, error) {
	v := url.Values{"consumerKey": {consumerKey}}
	set(v, "keymanager", keyManager)
	return one(ctx, c, call{op: "fetch key mapping", path: "/application-key-mappings", query: v, tenant: tenant}, (*scanner).keyMapping,
		func(m *KeyMapping) bool {
			return m.ConsumerKey == consumerKey &&
				(keyManager == "" || m.KeyManager == "" || resident(m.KeyManager) == resident(keyManager))
		})
}

// resident folds the two names of the resident key manager into one.
func resident(name string) string {
	if name == "Default" {
		return "Resident Key Manager"
	}
	return name
}

// SubscriptionQuery names one subscription by its API and application. The numbers are asked for when both are known,
// else the UUIDs.
type SubscriptionQuery struct {
	APIID, AppID             int64
	APIUUID, ApplicationUUID string
}

// Subscription fetches the row of one subscription.
func (c *Client) Subscription(ctx context.Context, tenant string, q SubscriptionQuery) (*Subscription, error) {
	v := url.Values{}
	byNumber := q.APIID != 0 && q.AppID != 0
	if byNumber {
		v.Set("apiId", strconv.FormatInt(q.APIID, 10))
		v.Set("appId", strconv.FormatInt(q.AppID, 10))
	} else {
		set(v, "apiUUID", q.APIUUID)
		set(v, "applicationUUID", q.ApplicationUUID)
	}
	return one(ctx, c, call{op: "fetch subscription", path: "/subscriptions", query: v, tenant: tenant}, (*scanner).subscription,
		func(x *Subscription) bool {
			if byNumber {
				return x.APIID == q.APIID && x.AppID == q.AppID
			}
			return q.APIUUID != "" && q.ApplicationUUID != "" &&
				strings.EqualFold(x.APIUUID, q.APIUUID) && strings.EqualFold(x.ApplicationUUID, q.ApplicationUUID)
		})
}

// SubscriptionPolicy fetches one subscription policy by name.
func (c *Client) SubscriptionPolicy(ctx context.Context, tenant, name string) (*Policy, error) {
	return c.policy(ctx, "fetch subscription policy", "/subscription-policies", tenant, name)
}

// ApplicationPolicy fetches one application policy by name.
func (c *Client) ApplicationPolicy(ctx context.Context, tenant, name string) (*Policy, error) {
	return c.policy(ctx, "fetch application policy", "/application-policies", tenant, name)
}

// APIPolicy fetches one API policy by name.
func (c *Client) APIPolicy(ctx context.Context, tenant, name string) (*Policy, error) {
	return c.policy(ctx, "fetch API policy", "/api-policies", tenant, name)
}

func (c *Client) policy(ctx context.Context, op, path, tenant, name string) (*Policy, error) {
	return one(ctx, c, call{op: op, path: path, query: url.Values{"policyName": {name}}, tenant: tenant}, (*scanner).policy,
		func(p *Policy) bool { return p.Name == name })
}

// GlobalPolicy fetches one custom policy by name.
func (c *Client) GlobalPolicy(ctx context.Context, tenant, name string) (*GlobalPolicy, error) {
	k := call{op: "fetch global policy", path: "/global-policies", query: url.Values{"policyName": {name}}, tenant: tenant}
	return one(ctx, c, k, (*scanner).globalPolicy, func(p *GlobalPolicy) bool { return p.Name == name })
}

// set adds a query parameter unless it is empty.
func set(v url.Values, key, value string) {
	if value != "" {
		v.Set(key, value)
	}
}
