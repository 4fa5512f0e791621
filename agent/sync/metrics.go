package sync

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the engine's Prometheus metrics; all methods work without a registry.
type metrics struct {
	reg    prometheus.Registerer
	events *prometheus.CounterVec
	lags   prometheus.Histogram
	panics *prometheus.CounterVec
	known  map[string]*[outOther + 1]prometheus.Counter
}

// eventTypes bounds the label type; what is not here is "other".
var eventTypes = []string{
	"API_CREATE", "API_UPDATE", "API_DELETE", "API_LIFECYCLE_CHANGE", "DEPLOY_API_IN_GATEWAY", "REMOVE_API_FROM_GATEWAY",
	"APPLICATION_CREATE", "APPLICATION_UPDATE", "APPLICATION_DELETE", "APPLICATION_REGISTRATION_CREATE", "REMOVE_APPLICATION_KEYMAPPING",
	"SUBSCRIPTIONS_CREATE", "SUBSCRIPTIONS_UPDATE", "SUBSCRIPTIONS_DELETE", "POLICY_CREATE", "POLICY_UPDATE", "POLICY_DELETE",
	"CUSTOM_POLICY_ADD", "CUSTOM_POLICY_UPDATE", "CUSTOM_POLICY_DELETE", "SCOPE_CREATE", "SCOPE_UPDATE", "SCOPE_DELETE",
	"throttleData", "tokenRevocation", "keyManager", "cacheInvalidation", "asyncWebhooksData", "malformed", "unknown", "other",
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{reg: reg, known: make(map[string]*[outOther + 1]prometheus.Counter)}
	if reg == nil {
		return m
	}
	m.events = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_events_total",
		Help: "Events of the API Manager by type and what became of them.",
	}, []string{"type", "result"})
	m.lags = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "gatehouse_event_lag_seconds",
		Help:    "Time from an event's time stamp to its application, clock differences included.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
	})
	m.panics = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_sync_panics_total",
		Help: "Faults of the gateway over an event or a row, which was passed over, by the group of lists that was fetched again.",
	}, []string{"kind"})
	reg.MustRegister(m.events, m.lags, m.panics)
	for _, t := range eventTypes {
		var c [outOther + 1]prometheus.Counter
		for o := range c {
			c[o] = m.events.WithLabelValues(t, outcomeNames[o])
		}
		m.known[t] = &c
	}
	return m
}

func (m *metrics) event(kind string, o outcome) {
	if m.reg == nil {
		return
	}
	c := m.known[kind]
	if c == nil {
		c = m.known["other"]
	}
	c[o].Inc()
}

func (m *metrics) panicked(kind string) {
	if m.reg != nil {
		m.panics.WithLabelValues(kind).Inc()
	}
}

func (m *metrics) lag(_ time.Time, stamp int64) {
	if m.reg != nil {
		m.lags.Observe(max(0, float64(time.Now().UnixMilli()-stamp)/1000))
	}
}

// watch registers what is read when the metrics are asked for.
func (m *metrics) watch(e *Engine) {
	if m.reg == nil {
		return
	}
	for _, k := range e.kinds {
		if k.unlisted {
			continue
		}
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "gatehouse_sync_age_seconds",
			Help:        "Age of the list that was applied last; -1 before the first.",
			ConstLabels: prometheus.Labels{"source": "lists", "kind": k.name},
		}, func() float64 {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.fetchedAt.IsZero() {
				return -1
			}
			return time.Since(k.fetchedAt).Seconds()
		}))
	}
	m.panics.WithLabelValues(kindOfMessages)
	m.panics.WithLabelValues(kindOfFetches)
	m.panics.WithLabelValues(kindOfSnapshot)
	for _, w := range e.workers {
		m.panics.WithLabelValues(w.name)
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gatehouse_sync_queue_depth",
			Help: "Events that wait to be applied.", ConstLabels: prometheus.Labels{"kind": w.name},
		}, func() float64 { return float64(w.in.len()) }))
		m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gatehouse_sync_queue_bytes",
			Help: "About how much memory the events hold that are not applied yet.", ConstLabels: prometheus.Labels{"kind": w.name},
		},
			func() float64 { return float64(w.in.bytes()) }))
	}
}
