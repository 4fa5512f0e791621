package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func entry() *Entry {
	return &Entry{
		Time: time.UnixMilli(1_764_000_000_123), RequestID: "id", TraceID: "t", ClientIP: netip.MustParseAddr("192.0.2.7"), Method: "GET", Host: "h", Path: "/shop/1/items/3", Query: true,
		Route: "/items/{id}", API: "Shop", Version: "1", Application: "App", ConsumerKey: "ck", User: "bob", Status: 429, Code: 900804, RefusedAt: "throttle", BytesIn: 3, BytesOut: 151,
		Duration: 1234567 * time.Nanosecond, UpstreamTime: 42 * time.Microsecond, Overhead: 7 * time.Microsecond, Retries: 1, ThrottleLevel: "subscription", TLS: "TLS 1.3", Protocol: "HTTP/2.0",
	}
}

func TestLine(t *testing.T) {
	var out bytes.Buffer
	l := New(Options{Out: &out})
	l.Add(entry())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2025-11-24T16:00:00.123Z","request_id":"id","trace_id":"t","client_ip":"192.0.2.7","method":"GET","host":"h","path":"/shop/1/items/3?…","route":"/items/{id}","api":"Shop","version":"1","application":"App",` +
		`"consumer_key":"d93beca6efd0421b","status":429,"code":900804,"refused_at":"throttle","bytes_in":3,"bytes_out":151,"duration_ms":1.234,"upstream_ms":0.042,"overhead_ms":0.007,"retries":1,"throttle_level":"subscription","tls":"TLS 1.3","protocol":"HTTP/2.0"}` + "\n"
	if out.String() != want {
		t.Errorf("got  %s\nwant %s", out.String(), want)
	}
	if l.Written() != 1 || l.Dropped() != 0 {
		t.Errorf("written %d, dropped %d", l.Written(), l.Dropped())
	}
}

func TestNothingIsLostByClose(t *testing.T) {
	var out bytes.Buffer
	l := New(Options{Out: &out, Interval: time.Hour})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				l.Add(entry())
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 4000 || l.Written() != 4000 {
		t.Errorf("%d lines, %d written", n, l.Written())
	}
}

// stuck is an output that takes nothing until it is let go.
type stuck struct{ free chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.free; return len(p), nil }

func TestSlowOutputDropsAndCounts(t *testing.T) {
	s := stuck{make(chan struct{})}
	l := New(Options{Out: s, Interval: time.Millisecond, Buffer: 64 << 10})
	done := make(chan struct{})
	go func() {
		for range 5000 {
			l.Add(entry())
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("a request waits for the log")
	}
	if l.Dropped() == 0 {
		t.Error("nothing was dropped, so the memory grows")
	}
	close(s.free)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l.Written()+l.Dropped() != 5000 {
		t.Errorf("%d written and %d dropped of 5000", l.Written(), l.Dropped())
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestBrokenOutput(t *testing.T) {
	l := New(Options{Out: broken{}})
	l.Add(entry())
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("got %v", err)
	}
	if l.Dropped() != 1 {
		t.Errorf("dropped %d", l.Dropped())
	}
}

// TestLongLines: what a client chooses freely takes a bounded part of the log.
func TestLongLines(t *testing.T) {
	e := entry()
	e.Query = false
	e.Method, e.Host, e.Path = strings.Repeat("M", 50_000), strings.Repeat("h", 50_000), "/"+strings.Repeat("\u00e9", 50_000)
	line := (&Log{}).append(nil, e)
	var m struct{ Method, Host, Path string }
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, got string
		max       int
	}{{"method", m.Method, 32}, {"host", m.Host, 2048}, {"path", m.Path, 8192}} {
		if kept, cut := strings.CutSuffix(c.got, "…"); !cut || len(kept) > c.max || len(kept) < c.max-2 || strings.Contains(kept, "\uFFFD") {
			t.Errorf("%s has %d bytes", c.name, len(c.got))
		}
	}
}

// FuzzLine: whatever a client sends, each line is one JSON object that holds it.
func FuzzLine(f *testing.F) {
	f.Add("/plain")
	f.Add("\"\\\x00\n\u2028\xff")
	l := &Log{}
	f.Fuzz(func(t *testing.T, path string) {
		e := entry()
		e.Path, e.Query, e.Host = path, false, path
		line := l.append(nil, e)
		var m struct{ Path string }
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("%q is more than one line", line)
		}
		if want := strings.ToValidUTF8(path, "\uFFFD"); len(path) <= 8192 && len([]rune(m.Path)) != len([]rune(path)) && m.Path != want {
			t.Fatalf("%q became %q", path, m.Path)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	l := New(Options{Out: discard{}})
	defer l.Close()
	e := entry()
	b.ReportAllocs()
	for b.Loop() {
		l.Add(e)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
