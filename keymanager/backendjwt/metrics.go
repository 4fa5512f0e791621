package backendjwt

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	cacheLabel  = prometheus.Labels{"cache": "backend_jwt"}
	entriesDesc = prometheus.NewDesc("gatehouse_cache_entries", "Entries in a cache.", nil, cacheLabel)
	hitsDesc    = prometheus.NewDesc("gatehouse_cache_hits_total", "Look-ups that a cache answered.", nil, cacheLabel)
	missesDesc  = prometheus.NewDesc("gatehouse_cache_misses_total", "Look-ups that a cache could not answer.", nil, cacheLabel)
	madeDesc    = prometheus.NewDesc("gatehouse_backend_jwt_total", "Backend JWTs that were signed, and that could not be made.", []string{"result"}, nil)
	keysDesc    = prometheus.NewDesc("gatehouse_backend_jwt_keys", "Published keys of backend JWTs.", nil, nil)
)

// collector reads the metrics where they are kept, so that the request path pays nothing for them.
type collector struct{ g *Generator }

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{entriesDesc, hitsDesc, missesDesc, madeDesc, keysDesc} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.g.Stats()
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	send(entriesDesc, prometheus.GaugeValue, float64(s.Entries))
	send(hitsDesc, prometheus.CounterValue, float64(s.Hits))
	send(missesDesc, prometheus.CounterValue, float64(s.Misses))
	send(madeDesc, prometheus.CounterValue, float64(s.Signed), "signed")
	send(madeDesc, prometheus.CounterValue, float64(s.Failed), "failed")
	send(keysDesc, prometheus.GaugeValue, float64(s.Keys))
}

// Stats are counts since the start, and sizes now.
type Stats struct {
	Entries, Keys                int
	Hits, Misses, Signed, Failed uint64
}

// Stats returns them.
func (g *Generator) Stats() Stats {
	s := Stats{Signed: g.signed.Load(), Failed: g.failed.Load()}
	for i := range g.shards {
		p := &g.shards[i]
		s.Hits += p.hits.Load()
		s.Misses += p.misses.Load()
		p.mu.RLock()
		s.Entries += len(p.at)
		p.mu.RUnlock()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.ring.keys {
		if m.key.private != nil {
			s.Keys++
		}
	}
	return s
}

// sweep lets go the JWTs that are of no use any more.
func (g *Generator) sweep(now time.Time) {
	e := g.current(now).now
	for i := range g.shards {
		g.shards[i].sweep(now.UnixMilli(), e)
	}
}
