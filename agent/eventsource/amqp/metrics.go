package amqp

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one source. All are labelled by source alone, or by source and topic, of which there are a few.
type metrics struct {
	name      string
	up        *prometheus.GaugeVec
	attempts  *prometheus.CounterVec
	delivered *prometheus.CounterVec
	panics    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, name string) (metrics, error) {
	m := metrics{
		name: name,
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gatehouse_event_source_connected",
			Help: "Connections of an event source that consume every topic: 1, or 0 while it is away.",
		}, []string{"source"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_event_source_connects_total",
			Help: "Attempts of an event source to connect, by result: connected, failed.",
		}, []string{"source", "result"}),
		delivered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_event_source_messages_total",
			Help: "Messages that an event source received.",
		}, []string{"source", "topic"}),
		panics: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatehouse_event_source_panics_total",
			Help: "Messages over which the handler panicked.",
		}, []string{"source"}),
	}
	if r != nil {
		var err error
		if m.up, err = register(r, m.up); err != nil {
			return m, err
		}
		if m.attempts, err = register(r, m.attempts); err != nil {
			return m, err
		}
		if m.delivered, err = register(r, m.delivered); err != nil {
			return m, err
		}
		if m.panics, err = register(r, m.panics); err != nil {
			return m, err
		}
	}
	// The series are there from the start, so that an alert on 0 works.
	m.up.WithLabelValues(name).Add(0)
	m.attempts.WithLabelValues(name, "connected")
	m.attempts.WithLabelValues(name, "failed")
	m.panics.WithLabelValues(name)
	return m, nil
}

// register shares a collector with the other sources of the registry.
func register[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	err := r.Register(c)
	if known, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if same, ok := known.ExistingCollector.(C); ok {
			return same, nil
		}
	}
	return c, err
}

func (m metrics) connected(up bool) {
	// Added, not set: two sources may share a name.
	if up {
		m.up.WithLabelValues(m.name).Add(1)
	} else {
		m.up.WithLabelValues(m.name).Add(-1)
	}
}

func (m metrics) connects(result string) { m.attempts.WithLabelValues(m.name, result).Inc() }

func (m metrics) panicked() { m.panics.WithLabelValues(m.name).Inc() }

func (m metrics) messages(topic string) func() {
	return m.delivered.WithLabelValues(m.name, topic).Inc
}
