package emulator

import (
	"encoding/json"
	"maps"
	"strings"
	"sync"
	"time"

	"gatehouse/integration/emulator/receiver"
)

// counter is the emulated traffic manager's engine: it counts each key of a custom policy, and of a tier with a plain
// request limit, in windows that begin with the key's first event, and decides when the limit is reached.
type counter struct {
	// decide publishes a decision; conditions is nil or the text of evaluatedConditions.
	decide func(key string, throttled bool, expires time.Time, conditions any)
	// tier gives the limit of a policy, 0 for none.
	tier func(kind PolicyKind, tenant, name string) (int, time.Duration)

	mu       sync.Mutex
	policies map[string]plain
	windows  map[string]*window
	events   int
	byAPI    map[string]int
	byKey    map[string]int
}

type plain struct {
	limit  int
	window time.Duration
}

type window struct {
	count      int
	ends       time.Time
	throttled  bool
	conditions any
}

func newCounter() *counter {
	return &counter{policies: map[string]plain{}, windows: map[string]*window{}, byAPI: map[string]int{}, byKey: map[string]int{}}
}

func (c *counter) setPolicy(template string, limit int, w time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.policies[template] = plain{limit, w}
}

func (c *counter) removePolicy(template string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.policies, template)
}

type decision struct {
	key        string
	throttled  bool
	expires    time.Time
	conditions any
}

const maxKeys = 100_000 // counted apart, so that strange keys do not grow memory without end

// noConditions is the base64 of [], which a decision for a resource or an API carries.
const noConditions = "W10="

func (c *counter) take(events []receiver.Event) {
	now := time.Now()
	var out []decision
	c.mu.Lock()
	for _, ev := range events {
		c.events++
		if len(c.byAPI) < maxKeys {
			c.byAPI[ev.Get("apiName")+":"+ev.Get("apiVersion")]++
		}
		for template, p := range c.policies {
			key := expand(template, ev)
			if len(c.byKey) < maxKeys || c.byKey[key] > 0 {
				c.byKey[key]++
			}
			out = c.count(out, key, p, nil, now)
		}
	}
	c.mu.Unlock()
	for _, ev := range events {
		out = c.tiers(out, ev, now)
	}
	for _, d := range out {
		c.decide(d.key, d.throttled, d.expires, d.conditions)
	}
}

// tiers counts the application, subscription and resource keys against the plain limits of their tiers.
func (c *counter) tiers(out []decision, ev receiver.Event, now time.Time) []decision {
	for _, level := range []struct {
		kind              PolicyKind
		tenant, key, tier string
		suffix            string
		conditions        any
	}{
		{ApplicationPolicy, "appTenant", "appKey", "appTier", "", nil},
		{SubscriptionPolicy, "apiTenant", "subscriptionKey", "subscriptionTier", "", nil},
		{APIPolicy, "apiTenant", "resourceKey", "resourceTier", "_default", noConditions},
	} {
		limit, w := c.tier(level.kind, ev.Get(level.tenant), ev.Get(level.tier))
		if key := ev.Get(level.key); key != "" {
			c.mu.Lock()
			out = c.count(out, key+level.suffix, plain{limit, w}, level.conditions, now)
			c.mu.Unlock()
		}
	}
	return out
}

func (c *counter) count(out []decision, key string, p plain, conditions any, now time.Time) []decision {
	if p.limit <= 0 {
		return out
	}
	w := c.windows[key]
	if w == nil || !now.Before(w.ends) {
		if w == nil && len(c.windows) >= maxKeys {
			return out
		}
		w = &window{ends: now.Add(p.window), conditions: conditions}
		c.windows[key] = w
	}
	w.count++
	if w.count >= p.limit && !w.throttled {
		w.throttled = true
		out = append(out, decision{key, true, w.ends, conditions})
	}
	return out
}

// sweep ends the windows that are over and releases their keys.
func (c *counter) sweep(now time.Time) {
	var out []decision
	c.mu.Lock()
	for key, w := range c.windows {
		if now.Before(w.ends) {
			continue
		}
		delete(c.windows, key)
		if w.throttled {
			out = append(out, decision{key, false, w.ends, w.conditions})
		}
	}
	c.mu.Unlock()
	for _, d := range out {
		c.decide(d.key, d.throttled, d.expires, d.conditions)
	}
}

// TrafficCounts is what the emulated traffic manager has counted.
type TrafficCounts struct {
	Events int            `json:"events"`
	ByAPI  map[string]int `json:"by_api"`
	// ByKey counts the keys of the custom policies.
	ByKey map[string]int `json:"by_key"`
}

func (c *counter) counts() TrafficCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := TrafficCounts{Events: c.events, ByAPI: map[string]int{}, ByKey: map[string]int{}}
	maps.Copy(t.ByAPI, c.byAPI)
	maps.Copy(t.ByKey, c.byKey)
	return t
}

// expand is the key that a custom policy with this template would give: plain replacement, longer names first.
func expand(template string, ev receiver.Event) string {
	var properties struct {
		IP json.Number `json:"ip"`
	}
	_ = json.Unmarshal([]byte(ev.Get("properties")), &properties) // a bad object has no address
	return strings.NewReplacer(
		"$resourceKey", ev.Get("resourceKey"), "$userId", ev.Get("userId"), "$apiContext", ev.Get("apiContext"),
		"$apiVersion", ev.Get("apiVersion"), "$appTenant", ev.Get("appTenant"), "$apiTenant", ev.Get("apiTenant"),
		"$appId", ev.Get("appId"), "$clientIp", properties.IP.String(),
	).Replace(template)
}
