package emulator

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"
)

// BenchmarkStreamSubscriptions is what the emulator itself costs when a gateway loads a large table: it must stay well
// below what the gateway is measured for.
func BenchmarkStreamSubscriptions(b *testing.B) {
	e := must(New(Options{}))(b)
	defer e.Close()
	must(e.Populate(100_000, 20_000, 5_000, 200))(b)
	h := e.handler()
	r := must(http.NewRequest("GET", "/internal/data/v1/subscriptions", nil))(b)
	r.SetBasicAuth("admin", "admin")
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		w := &counting{header: http.Header{}}
		h.ServeHTTP(w, r)
		n = w.n
	}
	b.SetBytes(int64(n))
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/row")
}

type counting struct {
	header http.Header
	n      int
}

func (c *counting) Header() http.Header { return c.header }
func (c *counting) WriteHeader(int)     {}
func (c *counting) Write(b []byte) (int, error) {
	c.n += len(b)
	return io.Discard.Write(b)
}

// BenchmarkPublish is the rate at which events leave.
func BenchmarkPublish(b *testing.B) {
	e := must(New(Options{}))(b)
	defer e.Close()
	expires := time.Now().Add(time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		e.Decide("12:/weather/2.1.0:2.1.0", true, expires, nil)
	}
	if err := e.Hub().Flush(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
