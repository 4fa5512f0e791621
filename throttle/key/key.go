// Package key builds the throttle keys of a request: the texts that the traffic manager counts under.
//
// The traffic manager echoes the text that the gateway supplied, so what is published and what is looked up must be the
// same bytes: both take them from here (contract events.md 6.1). Gateways share counters only where they build the same
// text; these are the texts of the API Manager's own gateway, its user name always with the tenant.
package key

import (
	"strings"

	"gatehouse/throttle"
)

// Anonymous is the user of a request without credentials; the API's tenant is appended.
const Anonymous = "anonymous"

// Form is what differs by setting or policy. The zero value is the plain form.
type Form struct {
	// SubscriptionTier appends the business plan to the subscription key, as late releases of the API Manager's own gateway
	// do.
	SubscriptionTier bool
	// UserLevel appends the user to the resource key: the API policy counts per user.
	UserLevel bool
}

// Keys are the throttle keys of one request. The slices are valid until the next Fill. The zero value is ready; a Keys is
// used by one goroutine at a time and grows to the size of the longest request it saw.
type Keys struct {
	API          []byte // "/weather/2.1.0:2.1.0"
	Resource     []byte // "/weather/2.1.0/2.1.0/cities/{id}:GET", or the API key where an API-level policy applies
	Subscription []byte // "12:/weather/2.1.0:2.1.0"
	Application  []byte // "12:dana@carbon.super"
	User         []byte // "dana@carbon.super"
	AppID        []byte // "12"; the client's address for a request without credentials

	// Level is LevelAPI or LevelResource where such a policy limits the request, LevelNone where none does. ResourceTier is
	// the policy that Resource is counted under.
	Level        throttle.Level
	ResourceTier string
	APITenant    string
	AppTenant    string

	buf []byte
}

// maxKept bounds what a pooled Keys may hold after a request with huge texts.
const maxKept = 16 << 10

// Tier says which advanced policy limits a request: the API's tier replaces the resource's unless it is unlimited
// (events.md 6.2). LevelNone when neither limits.
func Tier(r *throttle.Request, unlimited string) (throttle.Level, string) {
	switch {
	case r.APITier != "" && r.APITier != unlimited:
		return throttle.LevelAPI, r.APITier
	case r.ResourceTier != "" && r.ResourceTier != unlimited:
		return throttle.LevelResource, r.ResourceTier
	}
	return throttle.LevelNone, r.ResourceTier
}

// Fill builds the keys of r. level and tier are what Tier says of it.
func (k *Keys) Fill(r *throttle.Request, f Form, level throttle.Level, tier string) {
	if cap(k.buf) > maxKept {
		k.buf = nil
	}
	b := k.buf[:0]
	k.Level, k.ResourceTier = level, tier
	k.APITenant, k.AppTenant = r.APITenant, r.AppTenant
	if k.APITenant == "" {
		k.APITenant = throttle.SuperTenant
	}
	if k.AppTenant == "" {
		k.AppTenant = k.APITenant
	}

	// Growing b moves it, but slices taken before keep the old bytes: each key is written once and never again.
	start := len(b)
	if r.AppID == "" && !r.Authenticated && r.ClientIP.IsValid() {
		b = r.ClientIP.Unmap().WithZone("").AppendTo(b)
	} else {
		b = append(b, r.AppID...)
	}
	k.AppID = b[start:len(b):len(b)]

	start = len(b)
	user := r.User
	if user == "" {
		user = Anonymous
	}
	b = append(b, user...)
	if strings.IndexByte(user, '@') < 0 {
		b = append(append(b, '@'), k.APITenant...)
	}
	k.User = b[start:len(b):len(b)]

	start = len(b)
	b = append(append(append(b, k.AppID...), ':'), k.User...)
	k.Application = b[start:len(b):len(b)]

	start = len(b)
	b = append(append(append(b, k.AppID...), ':'), r.APIContext...)
	if r.APIVersion != "" {
		b = append(append(b, ':'), r.APIVersion...)
	}
	plain := len(b)
	if f.SubscriptionTier && r.SubscriptionTier != "" {
		b = append(append(b, ':'), r.SubscriptionTier...)
	}
	k.Subscription = b[start:len(b):len(b)]
	// The API key is the tail of the plain subscription key.
	k.API = b[start+len(k.AppID)+1 : plain : plain]

	if level == throttle.LevelAPI && !f.UserLevel {
		k.Resource = k.API
		k.buf = b
		return
	}
	start = len(b)
	if level == throttle.LevelAPI {
		b = append(b, k.API...)
	} else {
		b = append(b, r.APIContext...)
		if r.APIVersion != "" {
			b = append(append(b, '/'), r.APIVersion...)
		}
		b = append(append(append(b, r.ResourceTemplate...), ':'), r.Method...)
	}
	if f.UserLevel {
		b = append(append(b, '_'), k.User...)
	}
	k.Resource = b[start:len(b):len(b)]
	k.buf = b
}
