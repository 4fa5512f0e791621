package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// ListQuery narrows a list.
type ListQuery struct {
	// Tenant goes into the header xWSO2Tenant. Empty sends none (the tenant of the user), "*" asks for every tenant.
	Tenant string
	// Label narrows /apis to what is deployed to one gateway label. Other lists do not know it.
	Label string
}

// Meta tells of one answered list.
type Meta struct {
	Started, Finished time.Time
	// ServerDate is the Date header of the answer, for the skew of the clocks; zero when there was none.
	ServerDate time.Time
	// Rows is the number of elements in the list.
	Rows int
	// Odd counts values of an unexpected kind that were passed over; OddAt describes the first.
	Odd   int
	OddAt string
}

// fetch reads one JSON answer with decode.
func (c *Client) fetch(ctx context.Context, k call, limit int64, decode func(*scanner) (rows int, count int64)) (Meta, error) {
	m := Meta{Started: time.Now()}
	a, err := c.do(ctx, k, limit)
	m.Finished = time.Now()
	if err != nil {
		return m, err
	}
	defer a.close()
	if d, err := http.ParseTime(a.Header.Get("Date")); err == nil {
		m.ServerDate = d
	}
	s := newScanner(a.body)
	rows, count := decode(s)
	m.Finished = time.Now()
	m.Rows, m.Odd, m.OddAt = rows, s.odd, s.oddAt
	if s.err != nil {
		if stop, ok := errors.AsType[stopError](s.err); ok {
			return m, stop.error
		}
		return m, bodyError(k.op, a, fmt.Errorf("after %d rows: %w", rows, s.err))
	}
	if count >= 0 && count != int64(rows) {
		return m, bodyError(k.op, a, fmt.Errorf("the list has %d rows and says count %d", rows, count))
	}
	c.tell(k.op, m)
	return m, nil
}

// tell logs an answer, and values of an unexpected kind once: again only when their number changes.
func (c *Client) tell(op string, m Meta) {
	if last, known := c.odd.Swap(op, m.Odd); m.Odd > 0 && (!known || last != m.Odd) {
		c.opt.Logger.Warn().Str("call", op).Int("values", m.Odd).Str("first", m.OddAt).
			Msg("the API Manager sent values of an unexpected kind, which were passed over")
	}
	c.opt.Logger.Debug().Str("call", op).Int("rows", m.Rows).Dur("took", m.Finished.Sub(m.Started)).Msg("answer of the API Manager")
}

func list[T any](ctx context.Context, c *Client, k call, decode func(*scanner, *T), each func(T) error) (Meta, error) {
	return c.fetch(ctx, k, c.opt.MaxListBytes, func(s *scanner) (int, int64) {
		var row, none T // one for all rows: each is given a copy
		return s.list('{', func() error {
			row = none
			decode(s, &row)
			if s.err != nil {
				return nil //nolint:nilerr // the list ends with the fault of the scanner
			}
			return each(row)
		})
	})
}

// The lists. Each calls each once for every row, in the order of the answer, while the answer is being read. The rows
// make up the whole list only when the returned error is nil: until then the caller must not replace what it holds.
// An error of each ends the call and is returned as it is.

// APIs lists /apis with their resources.
func (c *Client) APIs(ctx context.Context, q ListQuery, each func(API) error) (Meta, error) {
	v := url.Values{"expand": {"true"}}
	if q.Label != "" {
		v.Set("gatewayLabel", q.Label)
	}
	return list(ctx, c, call{op: "list APIs", path: "/apis", query: v, tenant: q.Tenant}, (*scanner).api, each)
}

// Applications lists /applications.
func (c *Client) Applications(ctx context.Context, q ListQuery, each func(Application) error) (Meta, error) {
	return list(ctx, c, call{op: "list applications", path: "/applications", tenant: q.Tenant}, (*scanner).application, each)
}

// KeyMappings lists /application-key-mappings.
func (c *Client) KeyMappings(ctx context.Context, q ListQuery, each func(KeyMapping) error) (Meta, error) {
	return list(ctx, c, call{op: "list key mappings", path: "/application-key-mappings", tenant: q.Tenant}, (*scanner).keyMapping, each)
}

// Subscriptions lists /subscriptions.
func (c *Client) Subscriptions(ctx context.Context, q ListQuery, each func(Subscription) error) (Meta, error) {
	return list(ctx, c, call{op: "list subscriptions", path: "/subscriptions", tenant: q.Tenant}, (*scanner).subscription, each)
}

// SubscriptionPolicies lists /subscription-policies.
func (c *Client) SubscriptionPolicies(ctx context.Context, q ListQuery, each func(Policy) error) (Meta, error) {
	return list(ctx, c, call{op: "list subscription policies", path: "/subscription-policies", tenant: q.Tenant}, (*scanner).policy, each)
}

// ApplicationPolicies lists /application-policies.
func (c *Client) ApplicationPolicies(ctx context.Context, q ListQuery, each func(Policy) error) (Meta, error) {
	return list(ctx, c, call{op: "list application policies", path: "/application-policies", tenant: q.Tenant}, (*scanner).policy, each)
}

// APIPolicies lists /api-policies.
func (c *Client) APIPolicies(ctx context.Context, q ListQuery, each func(Policy) error) (Meta, error) {
	return list(ctx, c, call{op: "list API policies", path: "/api-policies", tenant: q.Tenant}, (*scanner).policy, each)
}

// GlobalPolicies lists /global-policies, which 3.2 does not have.
func (c *Client) GlobalPolicies(ctx context.Context, q ListQuery, each func(GlobalPolicy) error) (Meta, error) {
	return list(ctx, c, call{op: "list global policies", path: "/global-policies", tenant: q.Tenant}, (*scanner).globalPolicy, each)
}

// Scopes lists /scopes.
func (c *Client) Scopes(ctx context.Context, q ListQuery, each func(Scope) error) (Meta, error) {
	return list(ctx, c, call{op: "list scopes", path: "/scopes", tenant: q.Tenant}, (*scanner).scope, each)
}

// KeyManagers lists /keymanagers. A row without the member enabled is taken as enabled.
func (c *Client) KeyManagers(ctx context.Context, q ListQuery, each func(KeyManager) error) (Meta, error) {
	decode := func(s *scanner, k *KeyManager) {
		k.Enabled = true
		s.keyManager(k)
	}
	return list(ctx, c, call{op: "list key managers", path: "/keymanagers", tenant: q.Tenant}, decode, each)
}

// The three answers below hold every tenant, whatever is asked for: the caller filters.

// KeyTemplates reads /keyTemplates: the key templates of the custom policies.
func (c *Client) KeyTemplates(ctx context.Context) ([]string, Meta, error) {
	var out []string
	m, err := c.fetch(ctx, call{op: "list key templates", path: "/keyTemplates"}, c.opt.MaxListBytes, func(s *scanner) (int, int64) {
		return s.list('"', func() error {
			var t string
			s.str(&t)
			if t != "" {
				out = append(out, t)
			}
			return nil
		})
	})
	if err != nil {
		return nil, m, err
	}
	return out, m, nil
}

// Block reads /block: the blocking conditions.
func (c *Client) Block(ctx context.Context) (Block, Meta, error) {
	var b Block
	m, err := c.fetch(ctx, call{op: "list blocking conditions", path: "/block"}, c.opt.MaxListBytes, func(s *scanner) (int, int64) {
		if c := s.need(); s.err == nil && c != '{' {
			s.fail("the body is %s, not an object", s.kind(c))
		}
		s.block(&b)
		s.finish()
		return len(b.API) + len(b.Application) + len(b.User) + len(b.Subscription) + len(b.Custom) + len(b.IP), -1
	})
	if err != nil {
		return Block{}, m, err
	}
	return b, m, nil
}

// Revoked reads /revokedjwt: the revoked tokens, and in later releases what was revoked as a whole.
func (c *Client) Revoked(ctx context.Context) (Revoked, Meta, error) {
	var r Revoked
	m, err := c.fetch(ctx, call{op: "list revoked tokens", path: "/revokedjwt"}, c.opt.MaxListBytes, func(s *scanner) (int, int64) {
		if c := s.need(); s.err == nil && c != '{' && c != '[' {
			s.fail("the body is %s, not a list", s.kind(c))
		}
		s.revoked(&r)
		s.finish()
		return len(r.Tokens) + len(r.Mass), -1
	})
	if err != nil {
		return Revoked{}, m, err
	}
	return r, m, nil
}
