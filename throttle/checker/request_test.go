package checker

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"gatehouse/throttle"
	"gatehouse/throttle/publisher"
)

// silent takes every batch.
type silent struct{}

func (silent) Send(context.Context, throttle.Batch) error { return nil }

// whole is a checker with every table filled and a publisher at work.
func whole(tb testing.TB) (*Checker, *throttle.Request) {
	c, r := loaded()
	p := publisher.New(publisher.Options{
		Groups:  []publisher.Group{{Kind: "test", Endpoints: []publisher.Endpoint{{Name: "tm", Sender: silent{}}}}},
		Headers: true, Query: true, Claims: true, Logger: zerolog.Nop(),
	})
	tb.Cleanup(func() { p.Close() })
	c.o.Publisher = p
	return c, r
}

func pass(tb testing.TB, c *Checker, r *throttle.Request, now int64) {
	if c.DenyAnonymous(r) != nil || c.DenyIdentified(r) != nil || c.Check(r, now).Level != throttle.LevelNone {
		tb.Fatal("refused")
	}
	c.Publish(r, now)
}

// TestAdmittedRequestAllocatesNothing: deny policies, all levels, custom templates and the event.
func TestAdmittedRequestAllocatesNothing(t *testing.T) {
	c, r := whole(t)
	at := time.Now().UnixMilli()
	for range 3000 {
		pass(t, c, r, at)
	}
	// The sending goroutine takes new memory now and then: a fraction of an allocation per request, which rounds to none.
	if n := testing.AllocsPerRun(2000, func() { pass(t, c, r, at) }); n != 0 && !raceDetector {
		t.Errorf("%v allocations per request, want 0", n)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	c, p := build(func(o *Options) { o.Registerer = reg })
	c.Check(request(), now)
	p.decisions.Apply(throttle.Decision{Key: "12:/weather/2.1.0:2.1.0", Throttled: true, ExpiresAt: now + 1}, now)
	c.Check(request(), now)
	p.policies.Put(throttle.Policy{Kind: throttle.PolicySubscription, Name: "Gold", Tenant: "carbon.super"})
	c.Check(request(), now)
	p.decisions.Apply(throttle.Decision{Key: "12:dana@carbon.super", Throttled: true, ExpiresAt: now + 1}, now)
	c.Check(request(), now)
	p.deny.Put(throttle.DenyCondition{Kind: throttle.DenyAPI, Value: "/weather/2.1.0"})
	c.DenyAnonymous(request())
	c.DenyAnonymous(request())
	for what, got := range map[string][2]float64{
		"allowed":      {1, testutil.ToFloat64(c.allowed)},
		"over quota":   {1, testutil.ToFloat64(c.overQuota)},
		"subscription": {1, testutil.ToFloat64(c.throttled[throttle.LevelSubscription])},
		"application":  {1, testutil.ToFloat64(c.throttled[throttle.LevelApplication])},
		"denied":       {2, testutil.ToFloat64(c.denied[throttle.DenyAPI])},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %v, want %v", what, got[1], got[0])
		}
	}
	if n, err := testutil.GatherAndCount(reg, "gatehouse_throttle_decisions_total", "gatehouse_deny_matches_total"); err != nil || n == 0 {
		t.Error(n, err)
	}
}

// BenchmarkAdmittedRequest is all that this domain does for a request that passes.
func BenchmarkAdmittedRequest(b *testing.B) {
	c, r := whole(b)
	at := time.Now().UnixMilli()
	b.ReportAllocs()
	for b.Loop() {
		pass(b, c, r, at)
	}
}

func BenchmarkAdmittedRequestParallel(b *testing.B) {
	c, _ := whole(b)
	at := time.Now().UnixMilli()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := request()
		for pb.Next() {
			pass(b, c, r, at)
		}
	})
}
