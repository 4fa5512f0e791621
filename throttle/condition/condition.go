// Package condition compiles the condition groups of advanced policies and says whether a request meets them.
//
// Groups come from two sides: with a decision, as the evaluatedConditions of the traffic manager, and with the API policies of
// the control plane. Both become the same compiled Group, once, when they arrive (contract events.md 6.4).
//
// Regular expressions are RE2 and are searched for anywhere in the value, as the traffic manager does; Microgateway 3.2
// wanted the whole value to match. One that Go cannot compile (look-around, back references) makes its group inert: it
// never matches, with or without invert, and is reported. A header or query parameter of several values matches with any.
package condition

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gatehouse/throttle"
)

// Switches turns kinds of conditions off. A condition that is off counts as met, so that the group gets wider: on is the
// safe side, and the zero value.
type Switches struct {
	HeadersOff, QueryOff, ClaimsOff bool
}

// Group is a compiled condition group: it matches a request that meets all its parts. It is immutable.
type Group struct {
	ID    int64 // of the policy's condition group; 0 when it came with a decision
	Inert string
	parts []part
}

type kind uint8

const (
	ipPart kind = iota
	headerPart
	queryPart
	claimPart
)

type part struct {
	kind   kind
	invert bool
	from   number
	to     number
	values []value
}

type value struct {
	name string
	re   *regexp.Regexp
}

// newValue writes header names in the canonical form, which costs the look-up nothing.
func newValue(k kind, name string, re *regexp.Regexp) value {
	if k == headerPart {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return value{name, re}
}

// number is an address as the unsigned integer of its bytes. The families are not told apart, as on the wire: IPv6
// addresses in use lie far above 2^32.
type number struct{ hi, lo uint64 }

func (a number) less(b number) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

func numberOf(a netip.Addr) number {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return number{lo: uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])}
	}
	b := a.As16()
	var n number
	for i := range 8 {
		n.hi = n.hi<<8 | uint64(b[i])
		n.lo = n.lo<<8 | uint64(b[8+i])
	}
	return n
}

// Match says whether the request meets all parts of the group.
func (g *Group) Match(r *throttle.Request, sw Switches) bool {
	if g.Inert != "" {
		return false
	}
	for i := range g.parts {
		p := &g.parts[i]
		switch p.kind {
		case headerPart:
			if sw.HeadersOff {
				continue
			}
		case queryPart:
			if sw.QueryOff {
				continue
			}
		case claimPart:
			if sw.ClaimsOff {
				continue
			}
		}
		if p.met(r) == p.invert {
			return false
		}
	}
	return true
}

func (p *part) met(r *throttle.Request) bool {
	if p.kind == ipPart {
		if !r.ClientIP.IsValid() {
			return false
		}
		n := numberOf(r.ClientIP)
		return !n.less(p.from) && !p.to.less(n)
	}
	if r.Attributes == nil {
		return len(p.values) == 0
	}
	for i := range p.values {
		v := &p.values[i]
		switch p.kind {
		case headerPart:
			if !anyFound(v.re, r.Attributes.Header(v.name)) {
				return false
			}
		case queryPart:
			if !anyFound(v.re, r.Attributes.Query(v.name)) {
				return false
			}
		case claimPart:
			if c := r.Attributes.Claim(v.name); c == "" || !v.re.MatchString(c) {
				return false
			}
		}
	}
	return true
}

func anyFound(re *regexp.Regexp, values []string) bool {
	for _, v := range values {
		if v != "" && re.MatchString(v) {
			return true
		}
	}
	return false
}

// Any says whether one of the groups matches; no group matches nothing.
func Any(groups []Group, r *throttle.Request, sw Switches) bool {
	for i := range groups {
		if groups[i].Match(r, sw) {
			return true
		}
	}
	return false
}

// Problems gives what is inert in the groups, one line, "" when nothing is.
func Problems(groups []Group) string {
	var b strings.Builder
	for i := range groups {
		if groups[i].Inert == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "condition group %d: %s", i+1, groups[i].Inert)
	}
	return b.String()
}

// maxPattern bounds the regular expressions that are compiled.
const maxPattern = 4 << 10

var errPatternLength = errors.New("longer than 4096 bytes")

func compilePattern(s string) (*regexp.Regexp, error) {
	if len(s) > maxPattern {
		return nil, errPatternLength
	}
	return regexp.Compile(s)
}

// Parse compiles the decoded evaluatedConditions of a decision: a JSON array of condition groups. Empty input, null and
// [] give no groups. A group that cannot be evaluated is returned inert; only input that is no such array is an error.
func Parse(js []byte) ([]Group, error) {
	js = bytes.TrimSpace(js)
	if len(js) == 0 || string(js) == "null" {
		return nil, nil
	}
	var raw []map[string]json.RawMessage
	if err := json.Unmarshal(js, &raw); err != nil {
		return nil, fmt.Errorf("evaluated conditions are no JSON array of condition groups: %w", err)
	}
	if len(raw) == 0 {
		return nil, nil
	}
	groups := make([]Group, len(raw))
	for i, members := range raw {
		g := &groups[i]
		if err := g.parse(members); err != nil {
			g.Inert, g.parts = err.Error(), nil
		}
	}
	return groups, nil
}

type wirePart struct {
	SpecificIP wireNumber        `json:"specificIp"`
	StartingIP wireNumber        `json:"startingIp"`
	EndingIP   wireNumber        `json:"endingIp"`
	Values     map[string]string `json:"values"`
	Invert     bool              `json:"invert"`
}

// wireNumber is an address as a number, as that number in text, or as an address.
type wireNumber struct {
	set bool
	n   number
}

// UnmarshalJSON implements json.Unmarshaler.
func (w *wireNumber) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	if s == "null" {
		return nil
	}
	w.set = true
	if a, err := netip.ParseAddr(s); err == nil {
		w.n = numberOf(a)
		return nil
	}
	x, ok := new(big.Int).SetString(s, 10)
	if !ok || x.Sign() < 0 || x.BitLen() > 128 {
		return fmt.Errorf("%q is no address as a number", s)
	}
	w.n.lo = new(big.Int).And(x, new(big.Int).SetUint64(1<<64-1)).Uint64()
	w.n.hi = new(big.Int).Rsh(x, 64).Uint64()
	return nil
}

func (g *Group) parse(members map[string]json.RawMessage) error {
	names := make([]string, 0, len(members))
	for n := range members {
		names = append(names, n)
	}
	slices.Sort(names) // "iprange" before "ipspecific"
	for _, n := range names {
		raw := members[n]
		if string(bytes.TrimSpace(raw)) == "null" {
			continue
		}
		var w wirePart
		if err := json.Unmarshal(raw, &w); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		p := part{invert: w.Invert}
		switch strings.ToLower(n) {
		case "iprange":
			if _, specific := members["ipspecific"]; specific && string(members["ipspecific"]) != "null" {
				continue // the single address wins
			}
			if !w.StartingIP.set || !w.EndingIP.set {
				return errors.New("iprange without startingIp and endingIp")
			}
			p.from, p.to = w.StartingIP.n, w.EndingIP.n
		case "ipspecific":
			if !w.SpecificIP.set {
				return errors.New("ipspecific without specificIp")
			}
			p.from, p.to = w.SpecificIP.n, w.SpecificIP.n
		case "header", "queryparametertype", "jwtclaims":
			p.kind = map[string]kind{"header": headerPart, "queryparametertype": queryPart, "jwtclaims": claimPart}[strings.ToLower(n)]
			keys := make([]string, 0, len(w.Values))
			for k := range w.Values {
				keys = append(keys, k)
			}
			slices.Sort(keys)
			for _, k := range keys {
				re, err := compilePattern(w.Values[k])
				if err != nil {
					return fmt.Errorf("%s %q: pattern %q: %w", n, k, w.Values[k], err)
				}
				p.values = append(p.values, newValue(p.kind, k, re))
			}
		default:
			return fmt.Errorf("condition type %q is not known", n)
		}
		g.parts = append(g.parts, p)
	}
	return nil
}

// Compile compiles the condition groups of an API policy (rest.md 3). Groups that cannot be evaluated are inert.
func Compile(list []throttle.ConditionGroup) []Group {
	if len(list) == 0 {
		return nil
	}
	groups := make([]Group, len(list))
	for i, cg := range list {
		g := &groups[i]
		g.ID = cg.ID
		for _, c := range cg.Conditions {
			p, err := compilePart(c)
			if err != nil {
				g.Inert, g.parts = err.Error(), nil
				break
			}
			g.parts = append(g.parts, p)
		}
	}
	return groups
}

func compilePart(c throttle.Condition) (part, error) {
	p := part{invert: c.Invert}
	switch strings.ToLower(c.Type) {
	case "ipspecific":
		var w wireNumber
		if err := w.UnmarshalJSON([]byte(strconv.Quote(strings.TrimSpace(c.Value)))); err != nil {
			return p, fmt.Errorf("IPSpecific: %w", err)
		}
		p.from, p.to = w.n, w.n
		return p, nil
	case "iprange":
		start, end := c.Name, c.Value
		if a, b, ok := strings.Cut(c.Value, "-"); ok {
			start, end = a, b
		}
		var from, to wireNumber
		if err := from.UnmarshalJSON([]byte(strconv.Quote(strings.TrimSpace(start)))); err != nil {
			return p, fmt.Errorf("IPRange: start: %w", err)
		}
		if err := to.UnmarshalJSON([]byte(strconv.Quote(strings.TrimSpace(end)))); err != nil {
			return p, fmt.Errorf("IPRange: end: %w", err)
		}
		p.from, p.to = from.n, to.n
		return p, nil
	case "header":
		p.kind = headerPart
	case "queryparametertype":
		p.kind = queryPart
	case "jwtclaims":
		p.kind = claimPart
	default:
		return p, fmt.Errorf("condition type %q is not known", c.Type)
	}
	re, err := compilePattern(c.Value)
	if err != nil {
		return p, fmt.Errorf("%s %q: pattern %q: %w", c.Type, c.Name, c.Value, err)
	}
	p.values = []value{newValue(p.kind, c.Name, re)}
	return p, nil
}
