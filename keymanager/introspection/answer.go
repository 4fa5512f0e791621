package introspection

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"gatehouse/keymanager/jwt"
)

// Read reads an answer in JSON (RFC 7662 2.2). Its member active must be true or false, and no member may stand twice.
// Times may be numbers or the text of one; one that lies beyond the year 9999, with which servers say "never", is left out.
// The error completes "the answer …".
func Read(body []byte) (Answer, error) {
	m, err := jwt.DecodeObject(body)
	if err != nil {
		return Answer{}, err
	}
	return read(m)
}

func read(m map[string]any) (Answer, error) {
	active, ok := m["active"].(bool)
	switch {
	case !ok && m["active"] == nil:
		return Answer{}, errors.New("does not say whether the token is active")
	case !ok:
		return Answer{}, errors.New("has a member active that is neither true nor false")
	case !active:
		return Answer{}, nil // whatever else it says
	}
	delete(m, "active")
	for _, name := range [...]string{"exp", "iat", "nbf"} {
		v, has := m[name]
		if !has {
			continue
		}
		if v == nil {
			delete(m, name)
			continue
		}
		text, isText := v.(string)
		number, isNumber := v.(json.Number)
		if isText {
			number = json.Number(strings.TrimSpace(text))
		} else if !isNumber {
			return Answer{}, fmt.Errorf("has a member %s that is no time", name)
		}
		f, err := strconv.ParseFloat(string(number), 64)
		// A float's text knows Inf, 0x1p4 and 1_0, JSON's does not.
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) || !json.Valid([]byte(number)) {
			return Answer{}, fmt.Errorf("has a member %s that is no time", name)
		}
		if f > latest {
			if name != "exp" {
				return Answer{}, fmt.Errorf("has a member %s that is no time in seconds", name)
			}
			delete(m, name)
			continue
		}
		m[name] = number
	}
	return Answer{Active: true, Claims: m}, nil
}

// latest is the end of the year 9999.
const latest = 253402300799

// maxAnswerAge is how old an answer in a JWT may be: an older one is somebody's copy.
const maxAnswerAge = 5 * time.Minute

func introspectionType(typ string) bool {
	return strings.EqualFold(typ, "token-introspection+jwt") || strings.EqualFold(typ, "application/token-introspection+jwt")
}

// readSigned reads an answer that is a JWT (RFC 9701 5).
func (c *Client) readSigned(ctx context.Context, body string) (Answer, error) {
	fail := func(format string, args ...any) (Answer, error) {
		return Answer{}, fmt.Errorf("the JWT that %s answered "+format, append([]any{c.shown()}, args...)...)
	}
	body = strings.TrimSpace(body)
	if strings.Count(body, ".") == 4 {
		return fail("is encrypted, which is not supported")
	}
	p, refusal := jwt.ParseAs(body, MaxBody, introspectionType)
	if refusal != nil {
		return fail("is not one of an introspection: %s", refusal.Detail)
	}
	if c.opts.Verify == nil {
		return fail("cannot be verified: the key manager has no keys")
	}
	if c.opts.Issuer != "" && p.Issuer != c.opts.Issuer {
		return fail("is of another issuer")
	}
	if refusal = c.opts.Verify(ctx, p); refusal != nil {
		return fail("is not verified: %s", refusal.Detail)
	}
	rules := jwt.Rules{Skew: c.opts.Skew, AllowMissingExp: true}
	if id := c.opts.Endpoint.ClientID; id != "" {
		rules.Audience = []string{id}
	}
	now := c.opts.Now()
	times, refusal := p.CheckClaims(now, rules)
	if refusal != nil {
		return fail("is not valid: %s", refusal.Detail)
	}
	if times.IssuedAt == 0 || now.Sub(time.Unix(times.IssuedAt, 0)) > maxAnswerAge {
		return fail("was not made just now (iat)")
	}
	inner, ok := p.Claims["token_introspection"].(map[string]any)
	if !ok {
		return fail("holds no token_introspection")
	}
	a, err := read(inner)
	if err != nil {
		return fail("%w", err)
	}
	return a, nil
}
