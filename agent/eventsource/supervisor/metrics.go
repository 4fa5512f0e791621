package supervisor

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one source. Their labels are the source, and the topics it was given.
type metrics struct {
	up       prometheus.Gauge
	connects struct{ connected, failed prometheus.Counter }
	gaps     prometheus.Counter
	panics   prometheus.Counter
	messages map[string]prometheus.Counter // by topic; read only
}

func newMetrics(r prometheus.Registerer, name string, topics []string) (metrics, error) {
	up, err := register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "gatehouse_event_source_connected",
		Help: "Connections of an event source that are subscribed to every topic: 1, or 0 while it is away.",
	}, []string{"source"}))
	connects, errConnects := register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_event_source_connects_total",
		Help: "Attempts of an event source to connect, by result: connected, failed.",
	}, []string{"source", "result"}))
	gaps, errGaps := register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_event_source_gaps_total",
		Help: "Times that an event source lost messages without losing its connection.",
	}, []string{"source"}))
	panics, errPanics := register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_event_source_panics_total",
		Help: "Messages of an event source whose handling panicked.",
	}, []string{"source"}))
	messages, errMessages := register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_event_source_messages_total",
		Help: "Messages that an event source received, by topic.",
	}, []string{"source", "topic"}))
	if err := errors.Join(err, errConnects, errGaps, errPanics, errMessages); err != nil {
		return metrics{}, err
	}
	// Resolved once, and there from the start, so that an alert on 0 works.
	m := metrics{
		up: up.WithLabelValues(name), gaps: gaps.WithLabelValues(name), panics: panics.WithLabelValues(name),
		messages: make(map[string]prometheus.Counter, len(topics)),
	}
	m.connects.connected = connects.WithLabelValues(name, "connected")
	m.connects.failed = connects.WithLabelValues(name, "failed")
	for _, topic := range topics {
		m.messages[topic] = messages.WithLabelValues(name, topic)
	}
	return m, nil
}

// register shares a collector with the other sources of the registry.
func register[C prometheus.Collector](r prometheus.Registerer, c C) (C, error) {
	if r == nil {
		return c, nil
	}
	err := r.Register(c)
	if known, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if same, ok := known.ExistingCollector.(C); ok {
			return same, nil
		}
	}
	return c, err
}
