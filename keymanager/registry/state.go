package registry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/keymanager/jwks"
)

// KeyState is a key that tokens are verified with.
type KeyState struct {
	ID        string `json:"kid,omitempty"`
	Type      string `json:"type"`
	Algorithm string `json:"algorithm,omitempty"`
}

// ManagerState is what an operator sees of a key manager's keys.
type ManagerState struct {
	Name    string `json:"name"`
	Tenant  string `json:"tenant"`
	Issuer  string `json:"issuer"`
	Enabled bool   `json:"enabled"`
	// InUse is false for a disabled one, one that does not validate in the gateway, and an issuer of the configuration
	// that the API Manager has replaced.
	InUse bool `json:"in_use"`
	// KeySource is "jwks", "pem", "secret" or empty.
	KeySource string     `json:"key_source,omitempty"`
	URL       string     `json:"jwks_url,omitempty"` // without a password
	Keys      []KeyState `json:"keys"`
	// FetchedAt is the last success, AttemptedAt the last try; zero: never, or not by URL.
	FetchedAt   time.Time `json:"fetched_at,omitzero"`
	AttemptedAt time.Time `json:"attempted_at,omitzero"`
	AgeSeconds  float64   `json:"age_seconds"`
	Fetches     int64     `json:"fetches"`
	Failures    int64     `json:"failures"`
	LastError   string    `json:"last_error,omitempty"`
	Skipped     []string  `json:"skipped_keys,omitempty"`
	// Introspection is nil where nobody is asked about opaque tokens.
	Introspection *IntrospectionState `json:"introspection,omitempty"`
}

// IntrospectionState is what an operator sees of the questions to a key manager about opaque tokens.
type IntrospectionState struct {
	URL string `json:"url"` // without a password
	// Auth is the method of client authentication, by its OAuth name.
	Auth     string `json:"auth_method"`
	Calls    int64  `json:"calls"`
	Active   int64  `json:"active"`
	Inactive int64  `json:"inactive"`
	Failures int64  `json:"failures"`
	// Skipped are calls that were not made because the breaker was open, Stale answers that were used past their time.
	Skipped        int64     `json:"skipped"`
	Stale          int64     `json:"stale_answers"`
	Breaker        string    `json:"breaker"` // closed, half-open or open
	LastCall       time.Time `json:"last_call,omitzero"`
	LastError      string    `json:"last_error,omitempty"`
	AverageSeconds float64   `json:"average_seconds"`
	seconds        float64
}

// State is what an operator sees of the registry.
type State struct {
	Managers        []ManagerState `json:"key_managers"`
	CachedTokens    int            `json:"cached_tokens"`
	CacheHits       uint64         `json:"cache_hits"`
	CacheMisses     uint64         `json:"cache_misses"`
	CachedRefusals  int            `json:"cached_refusals"`
	CachedInactive  int            `json:"cached_inactive"`
	RevokedTokens   int            `json:"revoked_tokens"`
	RevokedNoRoom   int64          `json:"revocations_dropped"`
	HeldWithoutKeys int            `json:"key_managers_without_keys"`
}

// State returns the state of each key manager, by name, and of the caches.
func (r *Registry) State() State {
	now := r.now()
	s := State{
		CachedTokens: r.verified.Len(), CachedRefusals: r.refused.Len(), CachedInactive: r.inactive.Len(), RevokedTokens: r.opts.Revocations.Len(),
		RevokedNoRoom: r.opts.Revocations.Dropped(),
	}
	s.CacheHits, s.CacheMisses = r.verified.Counts()
	for _, m := range r.snap.Load().all {
		ms := m.state(now)
		if ms.InUse && m.local && m.secret == "" && len(ms.Keys) == 0 {
			s.HeldWithoutKeys++
		}
		s.Managers = append(s.Managers, ms)
	}
	return s
}

func (m *manager) state(now time.Time) ManagerState {
	s := ManagerState{
		Name: m.km.Name, Tenant: m.owner, Issuer: m.km.Issuer, Enabled: m.km.Enabled,
		InUse: m.usable() && m.live.Load() && (m.group.Load() != nil || m.asker != nil), Keys: []KeyState{},
	}
	for _, fault := range []error{m.fault, m.askFault} {
		if fault != nil {
			s.LastError = fault.Error()
		}
	}
	s.Introspection = m.asked()
	var set *jwks.Set
	switch {
	case m.source != nil:
		s.KeySource, s.URL = "jwks", m.source.URL()
		set = m.source.Current(now)
		st := m.source.State()
		s.FetchedAt, s.AttemptedAt, s.Fetches, s.Failures = st.FetchedAt, st.AttemptedAt, st.Attempts, st.Failures
		s.Skipped = st.Skipped
		if st.LastError != "" {
			s.LastError = st.LastError
		}
		if !st.FetchedAt.IsZero() {
			s.AgeSeconds = now.Sub(st.FetchedAt).Seconds()
		}
	case m.pem != nil:
		s.KeySource, set = "pem", m.pem
	case m.secret != "":
		s.KeySource = "secret"
	}
	if set != nil {
		for _, k := range set.Keys() {
			s.Keys = append(s.Keys, KeyState{ID: k.ID, Type: k.Type, Algorithm: k.Algorithm})
		}
	}
	return s
}

func (m *manager) asked() *IntrospectionState {
	if m.asker == nil {
		return nil
	}
	st := m.asker.State()
	s := &IntrospectionState{
		URL: m.asker.URL(), Auth: string(m.asker.Auth()), Calls: st.Calls, Active: st.Active, Inactive: st.Inactive,
		Failures: st.Failed, Skipped: st.Skipped, Stale: m.staleServed.Load(), Breaker: st.Breaker, LastCall: st.LastCall, LastError: st.LastError,
		seconds: st.Time.Seconds(),
	}
	if st.Calls > 0 {
		s.AverageSeconds = s.seconds / float64(st.Calls)
	}
	return s
}

var (
	callsDesc   = prometheus.NewDesc("gatehouse_introspection_calls_total", "Introspections of tokens, by answer.", []string{"key_manager", "result"}, nil)
	skippedDesc = prometheus.NewDesc("gatehouse_introspection_skipped_total", "Introspections that were not made because the breaker was open.", []string{"key_manager"}, nil)
	staleDesc   = prometheus.NewDesc("gatehouse_introspection_stale_total", "Answers that were used past their time because the key manager was away.", []string{"key_manager"}, nil)
	tookDesc    = prometheus.NewDesc("gatehouse_introspection_duration_seconds", "Time that introspections took.", []string{"key_manager"}, nil)
	breakerDesc = prometheus.NewDesc("gatehouse_introspection_breaker_state", "State of the breaker: 0 closed, 1 half-open, 2 open.", []string{"key_manager"}, nil)

	refreshDesc = prometheus.NewDesc("gatehouse_jwks_refresh_total", "Fetches of key sets.", []string{"issuer", "result"}, nil)
	ageDesc     = prometheus.NewDesc("gatehouse_jwks_age_seconds", "Time since a key set was last fetched.", []string{"issuer"}, nil)
	tokenLabel  = prometheus.Labels{"cache": "token"}
	entriesDesc = prometheus.NewDesc("gatehouse_cache_entries", "Entries in a cache.", nil, tokenLabel)
	hitsDesc    = prometheus.NewDesc("gatehouse_cache_hits_total", "Look-ups that a cache answered.", nil, tokenLabel)
	missesDesc  = prometheus.NewDesc("gatehouse_cache_misses_total", "Look-ups that a cache could not answer.", nil, tokenLabel)
)

// collector reads the metrics where they are kept, so that the request path pays nothing for them.
type collector struct{ r *Registry }

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{callsDesc, skippedDesc, staleDesc, tookDesc, breakerDesc, refreshDesc, ageDesc, entriesDesc, hitsDesc, missesDesc} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.r.State()
	type sums struct{ ok, failed, age float64 }
	byIssuer := map[string]sums{}
	for _, m := range s.Managers {
		if m.KeySource != "jwks" {
			continue
		}
		x := byIssuer[m.Issuer]
		x.ok += float64(m.Fetches - m.Failures)
		x.failed += float64(m.Failures)
		x.age = max(x.age, m.AgeSeconds)
		byIssuer[m.Issuer] = x
	}
	for issuer, x := range byIssuer {
		ch <- prometheus.MustNewConstMetric(refreshDesc, prometheus.CounterValue, x.ok, issuer, "ok")
		ch <- prometheus.MustNewConstMetric(refreshDesc, prometheus.CounterValue, x.failed, issuer, "failed")
		ch <- prometheus.MustNewConstMetric(ageDesc, prometheus.GaugeValue, x.age, issuer)
	}
	collectIntrospection(s.Managers, ch)
	ch <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(s.CachedTokens))
	ch <- prometheus.MustNewConstMetric(hitsDesc, prometheus.CounterValue, float64(s.CacheHits))
	ch <- prometheus.MustNewConstMetric(missesDesc, prometheus.CounterValue, float64(s.CacheMisses))
}

// collectIntrospection adds up the key managers of one name in several tenants.
func collectIntrospection(managers []ManagerState, ch chan<- prometheus.Metric) {
	type sums struct{ active, inactive, failed, skipped, stale, seconds, breaker float64 }
	byName := map[string]*sums{}
	for _, m := range managers {
		i := m.Introspection
		if i == nil {
			continue
		}
		x := byName[m.Name]
		if x == nil {
			x = &sums{}
			byName[m.Name] = x
		}
		x.active += float64(i.Active)
		x.inactive += float64(i.Inactive)
		x.failed += float64(i.Failures)
		x.skipped += float64(i.Skipped)
		x.stale += float64(i.Stale)
		x.seconds += i.seconds
		x.breaker = max(x.breaker, map[string]float64{"half-open": 1, "open": 2}[i.Breaker])
	}
	for name, x := range byName {
		count := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append([]string{name}, labels...)...)
		}
		count(callsDesc, x.active, "active")
		count(callsDesc, x.inactive, "inactive")
		count(callsDesc, x.failed, "failed")
		count(skippedDesc, x.skipped)
		count(staleDesc, x.stale)
		ch <- prometheus.MustNewConstSummary(tookDesc, uint64(x.active+x.inactive+x.failed), x.seconds, nil, name)
		ch <- prometheus.MustNewConstMetric(breakerDesc, prometheus.GaugeValue, x.breaker, name)
	}
}
