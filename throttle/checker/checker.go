// Package checker answers, for one request: is it denied, is it over a limit, and what is published for it. It assembles
// the deny policies, the decisions of the traffic manager, the key templates, the policies and the publisher.
//
// Order of the throttle checks (contract events.md 6.2): API or else resource, subscription, application, custom; the first limit that
// is over ends it. A request that is refused is never published, so the traffic manager counts admitted requests only.
//
// What differs from WSO2's gateways: deny policies of API and address are asked before anybody is authenticated, on
// unsecured resources too; a subscription over its quota without stopOnQuotaReach passes, but the later checks still run and the
// request is still published (their Synapse gateway skips both); an API or resource without a limiting tier is not looked up.
//
// A Checker keeps no state of a request and allocates nothing where nothing is hit. Every method is safe for concurrent use.
package checker

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/throttle"
	"gatehouse/throttle/condition"
	"gatehouse/throttle/deny"
	"gatehouse/throttle/key"
	"gatehouse/throttle/keytemplate"
	"gatehouse/throttle/policy"
	"gatehouse/throttle/remote"
)

// Publisher takes the request events. Enqueue must not block, and must not keep r or k.
type Publisher interface {
	Enqueue(r *throttle.Request, k *key.Keys, now int64)
}

// Options of a Checker. What is nil is not asked: the zero value allows everything.
type Options struct {
	Deny      *deny.Set
	Templates *keytemplate.Set
	Decisions *remote.Decisions
	Policies  *policy.Store
	Publisher Publisher // nil: nothing is published

	// DenyEnabled turns the deny policies on.
	DenyEnabled bool
	// SubscriptionKeyWithTier appends the business plan to subscription keys ([apim.throttling] subscription_key =
	// "with_tier").
	SubscriptionKeyWithTier bool
	// EnableHeaderConditions, EnableQueryConditions and EnableJWTConditions say which conditions of advanced policies are
	// evaluated. One that is off counts as met, which widens its group.
	EnableHeaderConditions bool
	EnableQueryConditions  bool
	EnableJWTConditions    bool
	// UnlimitedTier is the name of the tier without a limit; "" means "Unlimited".
	UnlimitedTier string

	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Checker answers for requests; create it with New.
type Checker struct {
	o        Options
	switches condition.Switches

	allowed, overQuota prometheus.Counter
	throttled          []prometheus.Counter // by level
	denied             map[throttle.DenyKind]prometheus.Counter
	scratch            sync.Pool
}

// scratch is what one check needs for a moment.
type scratch struct {
	keys   key.Keys
	custom []byte
	named  named
}

// New returns a Checker over the given parts.
func New(o Options) *Checker {
	if o.UnlimitedTier == "" {
		o.UnlimitedTier = "Unlimited"
	}
	c := &Checker{o: o, switches: condition.Switches{
		HeadersOff: !o.EnableHeaderConditions, QueryOff: !o.EnableQueryConditions, ClaimsOff: !o.EnableJWTConditions,
	}}
	c.scratch.New = func() any { return new(scratch) }

	decisions := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_throttle_decisions_total",
		Help: "Throttle checks by the level that decided and the result.",
	}, []string{"level", "result", "mode"})
	denials := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_deny_matches_total",
		Help: "Requests that met a deny policy, by its kind.",
	}, []string{"kind"})
	if o.Registerer != nil {
		o.Registerer.MustRegister(decisions, denials)
	}
	const mode = "remote"
	c.allowed = decisions.WithLabelValues(throttle.LevelNone.String(), "allowed", mode)
	c.overQuota = decisions.WithLabelValues(throttle.LevelSubscription.String(), "over_quota", mode)
	for _, l := range throttle.Levels() {
		c.throttled = append(c.throttled, decisions.WithLabelValues(l.String(), "throttled", mode))
	}
	c.denied = map[throttle.DenyKind]prometheus.Counter{}
	for _, k := range []throttle.DenyKind{throttle.DenyAPI, throttle.DenyApplication, throttle.DenyUser, throttle.DenyIP, throttle.DenyIPRange, throttle.DenySubscription} {
		c.denied[k] = denials.WithLabelValues(string(k))
	}
	return c
}

// DenyAnonymous returns the API, IP or IPRANGE condition that denies the request, nil when none does. It needs APIContext,
// APITenant and ClientIP of r.
func (c *Checker) DenyAnonymous(r *throttle.Request) *throttle.DenyCondition {
	if !c.o.DenyEnabled || c.o.Deny == nil {
		return nil
	}
	return c.count(c.o.Deny.Anonymous(r))
}

// DenyIdentified returns the APPLICATION, USER or SUBSCRIPTION condition that denies the request, nil when none does.
func (c *Checker) DenyIdentified(r *throttle.Request) *throttle.DenyCondition {
	if !c.o.DenyEnabled || c.o.Deny == nil {
		return nil
	}
	return c.count(c.o.Deny.Identified(r))
}

func (c *Checker) count(d *throttle.DenyCondition) *throttle.DenyCondition {
	if d != nil {
		if n := c.denied[d.Kind]; n != nil {
			n.Inc()
		}
	}
	return d
}

// fill builds the keys of r and returns the compiled policy that limits its API or resource, nil when there is none or it
// is not known.
func (c *Checker) fill(k *key.Keys, r *throttle.Request) *policy.Compiled {
	level, tier := key.Tier(r, c.o.UnlimitedTier)
	form := key.Form{SubscriptionTier: c.o.SubscriptionKeyWithTier}
	var advanced *policy.Compiled
	if level != throttle.LevelNone && c.o.Policies != nil {
		if advanced = c.o.Policies.Compiled(throttle.PolicyAPI, r.APITenant, tier); advanced != nil {
			form.UserLevel = advanced.UserLevel
		}
	}
	k.Fill(r, form, level, tier)
	return advanced
}

// Check says whether the request is over a limit; now is in ms. A Verdict with LevelNone and OverQuota true passes: it names
// the subscription that is over its quota.
func (c *Checker) Check(r *throttle.Request, now int64) throttle.Verdict {
	if c.o.Decisions == nil || c.o.Decisions.Len() == 0 {
		c.allowed.Inc()
		return throttle.Verdict{}
	}
	s := c.scratch.Get().(*scratch)
	v := c.check(s, r, now)
	c.scratch.Put(s)
	switch {
	case v.Level != throttle.LevelNone:
		c.throttled[v.Level].Inc()
	case v.OverQuota:
		c.overQuota.Inc()
	default:
		c.allowed.Inc()
	}
	return v
}

func (c *Checker) check(s *scratch, r *throttle.Request, now int64) throttle.Verdict {
	d := c.o.Decisions
	advanced := c.fill(&s.keys, r)
	k := &s.keys

	if k.Level != throttle.LevelNone {
		var groups []condition.Group
		if advanced != nil {
			groups = advanced.Conditions
		}
		if h, ok := d.LookupResource(k.Resource, r, groups, c.switches, now); ok {
			return verdict(k.Level, h)
		}
	}

	var passing throttle.Verdict // a subscription over its quota that may go on
	if h, ok := d.Lookup(k.Subscription, now); ok {
		if c.stops(r) {
			return verdict(throttle.LevelSubscription, h)
		}
		passing = verdict(throttle.LevelNone, h)
		passing.OverQuota = true
	}

	if h, ok := d.Lookup(k.Application, now); ok {
		return over(verdict(throttle.LevelApplication, h), passing.OverQuota)
	}

	if c.o.Templates != nil {
		for _, t := range c.o.Templates.Live() {
			text, ok := t.Append(s.custom[:0], r, k)
			s.custom = text
			if !ok {
				continue
			}
			if h, ok := d.Lookup(text, now); ok {
				return over(verdict(throttle.LevelCustom, h), passing.OverQuota)
			}
		}
	}
	return passing
}

// stops says whether a subscription over its quota is refused: unless its policy is known to let it pass.
func (c *Checker) stops(r *throttle.Request) bool {
	if c.o.Policies == nil {
		return true
	}
	p := c.o.Policies.Get(throttle.PolicySubscription, r.APITenant, r.SubscriptionTier)
	return p == nil || p.StopOnQuotaReach
}

func verdict(l throttle.Level, h remote.Hit) throttle.Verdict {
	return throttle.Verdict{Level: l, Key: h.Key, Condition: h.Condition, RetryAt: h.ExpiresAt, Origin: h.Origin}
}

func over(v throttle.Verdict, overQuota bool) throttle.Verdict {
	v.OverQuota = overQuota
	return v
}

// Publish queues the event of an admitted request for the traffic manager; now is in ms. It never blocks and keeps nothing of r. Call it
// once for each request that passed every check.
func (c *Checker) Publish(r *throttle.Request, now int64) {
	if c.o.Publisher == nil {
		return
	}
	s := c.scratch.Get().(*scratch)
	advanced := c.fill(&s.keys, r)
	if given := r.Attributes; given != nil && advanced != nil {
		if _, lists := given.(throttle.AttributeSource); !lists {
			s.named = named{given, advanced}
			r.Attributes = &s.named
			c.o.Publisher.Enqueue(r, &s.keys, now)
			r.Attributes, s.named = given, named{}
			c.scratch.Put(s)
			return
		}
	}
	c.o.Publisher.Enqueue(r, &s.keys, now)
	c.scratch.Put(s)
}

// named lists, of attributes that cannot list themselves, those that the conditions of the request's policy look at: the
// traffic manager needs them to tell which condition group to count the request under.
type named struct {
	throttle.Attributes
	p *policy.Compiled
}

// VisitHeaders implements throttle.AttributeSource.
func (n *named) VisitHeaders(v throttle.AttributeVisitor) {
	for _, name := range n.p.Headers {
		for _, value := range n.Header(name) {
			v.VisitAttribute(name, value)
		}
	}
}

// VisitQuery implements throttle.AttributeSource.
func (n *named) VisitQuery(v throttle.AttributeVisitor) {
	for _, name := range n.p.Query {
		for _, value := range n.Query(name) {
			v.VisitAttribute(name, value)
		}
	}
}

// VisitClaims implements throttle.AttributeSource.
func (n *named) VisitClaims(v throttle.AttributeVisitor) {
	for _, name := range n.p.Claims {
		if value := n.Claim(name); value != "" {
			v.VisitAttribute(name, value)
		}
	}
}
