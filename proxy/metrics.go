package proxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/proxy/pipeline"
)

// metrics are the proxy's collectors. What a request touches is looked up once per API (apiMetrics).
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	upstream *prometheus.HistogramVec
	overhead prometheus.Histogram
	refusals *prometheus.CounterVec
	active   atomic.Int64 // requests being served
	reloads  *prometheus.CounterVec
	config   prometheus.Gauge
	panics   prometheus.Counter
	// streamsEnded counts exchanges that were ended since they would not be admitted any more.
	streamsEnded prometheus.Counter
	none         *apiMetrics // requests that matched no API

	max  int
	mu   sync.Mutex
	apis map[[2]string]*apiMetrics
}

var buckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

func newMetrics(r prometheus.Registerer, maxAPIs int, dropped func() float64) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_requests_total",
			Help: "Requests by API, method, class of the status, and decision.",
		}, []string{"api", "version", "method", "code_class", "decision"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gatehouse_request_duration_seconds",
			Help: "Time from the request's header to the end of the answer.", Buckets: buckets,
		}, []string{"api", "version"}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gatehouse_upstream_duration_seconds",
			Help: "Time until the header of the backend's answer.", Buckets: buckets,
		}, []string{"api", "version"}),
		overhead: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "gatehouse_gateway_overhead_seconds",
			Help:    "Time in the gateway before the backend is called.",
			Buckets: []float64{.000005, .00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .1, 1},
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_refusals_total",
			Help: "Refused requests by step and fault code.",
		}, []string{"reason", "code"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatehouse_api_compilations_total", Help: "APIs compiled into the route table, by result."}, []string{"result"}),
		config:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "gatehouse_routes_generation", Help: "Number of route tables since the start."}),
		panics:  prometheus.NewCounter(prometheus.CounterOpts{Name: "gatehouse_panics_total", Help: "Requests that ended in a fault of the gateway itself."}),
		streamsEnded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatehouse_streams_ended_total", Help: "Exchanges under way that were ended since their credential was revoked or their caller denied.",
		}),
		max:  maxAPIs,
		apis: map[[2]string]*apiMetrics{},
	}
	m.none = m.of("", "")
	if r != nil {
		logDropped := prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "gatehouse_access_log_dropped_total", Help: "Lines of the access log that were lost."}, dropped)
		active := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gatehouse_requests_active", Help: "Requests being served."},
			func() float64 { return float64(m.active.Load()) })
		for _, c := range []prometheus.Collector{m.requests, m.duration, m.upstream, m.overhead, m.refusals, active, m.reloads, m.config, m.panics, m.streamsEnded, logDropped} {
			r.MustRegister(c)
		}
	}
	return m
}

// apiMetrics are the metrics of one API, each child resolved at its first use.
type apiMetrics struct {
	m            *metrics
	api, version string
	duration     prometheus.Observer
	upstream     prometheus.Observer
	requests     [len(methodNames)][6][2]atomic.Pointer[prometheus.Counter]
}

var (
	methodNames   = [...]string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "other"}
	classNames    = [...]string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"}
	decisionNames = [...]string{"refused", "admitted"}
)

func methodIndex(m string) int {
	for i, n := range methodNames {
		if n == m {
			return i
		}
	}
	return len(methodNames) - 1
}

// of returns the metrics of an API. Beyond the bound all share the name "other".
func (m *metrics) of(api, version string) *apiMetrics {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := [2]string{api, version}
	if a := m.apis[k]; a != nil {
		return a
	}
	if len(m.apis) > m.max {
		k = [2]string{"other", ""}
		if a := m.apis[k]; a != nil {
			return a
		}
	}
	a := &apiMetrics{m: m, api: k[0], version: k[1], duration: m.duration.WithLabelValues(k[0], k[1]), upstream: m.upstream.WithLabelValues(k[0], k[1])}
	m.apis[k] = a
	return a
}

// count counts a finished request.
func (a *apiMetrics) count(method string, status int, admitted bool) {
	class := status / 100
	if class < 1 || class > 5 {
		class = 0
	}
	decision := 0
	if admitted {
		decision = 1
	}
	i := methodIndex(method)
	p := &a.requests[i][class][decision]
	c := p.Load()
	if c == nil {
		n := a.m.requests.WithLabelValues(a.api, a.version, methodNames[i], classNames[class], decisionNames[decision])
		c = &n
		p.Store(c)
	}
	(*c).Inc()
}

func (m *metrics) refused(t *pipeline.Trace, step pipeline.Step) {
	m.refusals.WithLabelValues(step.String(), seconds(int64(t.Code))).Inc()
}

func observe(o prometheus.Observer, d time.Duration) { o.Observe(d.Seconds()) }
