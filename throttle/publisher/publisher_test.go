package publisher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"gatehouse/throttle"
	"gatehouse/throttle/databridge"
	"gatehouse/throttle/key"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sender is a traffic manager in memory.
type sender struct {
	mu      sync.Mutex
	batches []int
	ids     []string // messageID of every event
	err     error
	hold    chan struct{} // Send waits for it to be closed
	began   chan struct{} // gets a token when a Send waits
	closed  bool
}

func (s *sender) Send(ctx context.Context, b throttle.Batch) error {
	s.mu.Lock()
	hold, began := s.hold, s.began
	s.mu.Unlock()
	if hold != nil {
		if began != nil {
			select {
			case began <- struct{}{}:
			default:
			}
		}
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.batches = append(s.batches, b.Events)
	events, err := databridge.DecodeBody(b.Body)
	if err != nil || events.Count() != b.Events {
		return fmt.Errorf("body of %d events says %d: %w", b.Events, events.Count(), err)
	}
	for {
		raw, err := events.Next()
		if err != nil {
			return err
		}
		if raw == nil {
			return nil
		}
		var q databridge.RequestEvent
		if err := q.Decode(raw); err != nil {
			return err
		}
		s.ids = append(s.ids, string(q.Attributes[0]))
	}
}

func (s *sender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *sender) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *sender) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.ids...)
}

func (s *sender) sizes() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int{}, s.batches...)
}

// connecting is a sender that is connected first.
type connecting struct{ sender }

func (s *connecting) Connect(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func request(id string) *throttle.Request {
	return &throttle.Request{
		MessageID: id, APIName: "shop", APIContext: "/shop/1.0", APIVersion: "1.0", APITenant: "carbon.super", APITier: "Unlimited",
		ResourceTemplate: "/items", Method: "GET", ResourceTier: "Unlimited",
		Authenticated: true, AppID: "7", AppTenant: "carbon.super", AppTier: "10PerMin", SubscriptionTier: "Gold",
		User: "bob@carbon.super", ClientIP: netip.MustParseAddr("192.168.1.1"), MessageSize: -1,
	}
}

func enqueue(p *Publisher, r *throttle.Request, now int64) {
	var k key.Keys
	level, tier := key.Tier(r, "Unlimited")
	k.Fill(r, key.Form{}, level, tier)
	p.Enqueue(r, &k, now)
}

func publish(p *Publisher, from, n int) {
	for i := range n {
		enqueue(p, request(fmt.Sprintf("m-%d", from+i)), time.Now().UnixMilli())
	}
}

func groupOf(failover bool, list ...throttle.Sender) Group {
	g := Group{Kind: "test", Failover: failover}
	for i, s := range list {
		g.Endpoints = append(g.Endpoints, Endpoint{Name: fmt.Sprintf("tm-%d", i), Sender: s})
	}
	return g
}

func start(t *testing.T, o Options) *Publisher {
	t.Helper()
	if o.RetryMin == 0 {
		o.RetryMin, o.RetryMax = time.Millisecond, 20*time.Millisecond
	}
	p := New(o)
	t.Cleanup(func() { p.Close() })
	return p
}

// TestEventEqualsTheWorkedExample: the event of a request is the one that WSO2's own sender wrote, byte for byte.
func TestEventEqualsTheWorkedExample(t *testing.T) {
	p := start(t, Options{})
	e := p.encoders.Get().(*encoder)
	r := request("m-1")
	var k key.Keys
	level, tier := key.Tier(r, "Unlimited")
	k.Fill(r, key.Form{}, level, tier)
	got := e.encode(r, &k, 1700000000123)
	want, err := databridge.AppendEvent(nil, databridge.Event{StreamID: databridge.StreamID, Timestamp: 1700000000123, Payload: []any{
		"m-1", "7:bob@carbon.super", "10PerMin", "/shop/1.0:1.0", "Unlimited", "7:/shop/1.0:1.0", "Gold", "/shop/1.0/1.0/items:GET", "Unlimited",
		"bob@carbon.super", "/shop/1.0", "1.0", "carbon.super", "carbon.super", "7", "shop", `{"ip":3232235777,"ipv6":0}`,
	}})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v\n got %q\nwant %q", err, got, want)
	}
}

func TestAPILevelPolicyIsTheResource(t *testing.T) {
	p := start(t, Options{})
	r := request("m")
	r.APITier = "50KPerMin"
	q := decode(t, p, r)
	if string(q.Attributes[7]) != "/shop/1.0:1.0" || string(q.Attributes[8]) != "50KPerMin" || string(q.Attributes[4]) != "50KPerMin" {
		t.Errorf("resource key %q, tier %q, API tier %q", q.Attributes[7], q.Attributes[8], q.Attributes[4])
	}
}

func decode(t *testing.T, p *Publisher, r *throttle.Request) databridge.RequestEvent {
	t.Helper()
	e := p.encoders.Get().(*encoder)
	var k key.Keys
	level, tier := key.Tier(r, "Unlimited")
	k.Fill(r, key.Form{}, level, tier)
	var q databridge.RequestEvent
	if err := q.Decode(bytes.Clone(e.encode(r, &k, 1))[4:]); err != nil {
		t.Fatal(err)
	}
	p.encoders.Put(e)
	return q
}

// attributes of a request, in order.
type attributes struct{ headers, query, claims [][2]string }

func (a attributes) Header(string) []string { return nil }
func (a attributes) Query(string) []string  { return nil }
func (a attributes) Claim(string) string    { return "" }
func visit(list [][2]string, v throttle.AttributeVisitor) {
	for _, p := range list {
		v.VisitAttribute(p[0], p[1])
	}
}
func (a attributes) VisitHeaders(v throttle.AttributeVisitor) { visit(a.headers, v) }
func (a attributes) VisitQuery(v throttle.AttributeVisitor)   { visit(a.query, v) }
func (a attributes) VisitClaims(v throttle.AttributeVisitor)  { visit(a.claims, v) }

func TestProperties(t *testing.T) {
	all := Options{Headers: true, Query: true, Claims: true, SecretHeaders: []string{"X-Partner-Secret"}, SecretQuery: []string{"sig"}}
	tests := []struct {
		name string
		o    Options
		edit func(*throttle.Request)
		want string
	}{
		{"IPv4", all, nil, `{"ip":3232235777,"ipv6":0}`},
		{"IPv6", all, func(r *throttle.Request) { r.ClientIP = netip.MustParseAddr("2001:db8::10") }, `{"ip":0,"ipv6":42540766411282592856903984951653826576}`},
		{"IPv4-mapped", all, func(r *throttle.Request) { r.ClientIP = netip.MustParseAddr("::ffff:192.168.1.1") }, `{"ip":3232235777,"ipv6":0}`},
		{"address not known", all, func(r *throttle.Request) { r.ClientIP = netip.Addr{} }, `{"ip":0,"ipv6":0}`},
		{"size", all, func(r *throttle.Request) { r.MessageSize = 1024 }, `{"ip":3232235777,"ipv6":0,"messageSize":1024}`},
		{"headers in lower case, values of one joined", all, func(r *throttle.Request) {
			r.Attributes = attributes{headers: [][2]string{{"X-Client", "a"}, {"Accept", "b"}, {"x-client", "c"}}}
		}, `{"ip":3232235777,"ipv6":0,"x-client":"a, c","accept":"b"}`},
		{"headers as received", Options{Headers: true, HeaderNamesAsReceived: true}, func(r *throttle.Request) {
			r.Attributes = attributes{headers: [][2]string{{"X-Client", "a"}}}
		}, `{"ip":3232235777,"ipv6":0,"X-Client":"a"}`},
		{"no credentials", all, func(r *throttle.Request) {
			r.Attributes = attributes{
				headers: [][2]string{{"Authorization", "Bearer x"}, {"Cookie", "x"}, {"ApiKey", "x"}, {"x-partner-secret", "x"}, {"Proxy-Authorization", "x"}},
				query:   [][2]string{{"apikey", "x"}, {"access_token", "x"}, {"SIG", "x"}, {"q", "1"}},
			}
		}, `{"ip":3232235777,"ipv6":0,"q":"1"}`},
		{"a client cannot choose its address", all, func(r *throttle.Request) {
			r.Attributes = attributes{headers: [][2]string{{"IP", "1"}, {"ipv6", "1"}}, query: [][2]string{{"ip", "1"}, {"messageSize", "9"}}, claims: [][2]string{{"ip", "1"}}}
		}, `{"ip":3232235777,"ipv6":0}`},
		{"the last query value, a claim over a header", all, func(r *throttle.Request) {
			r.Attributes = attributes{headers: [][2]string{{"Plan", "gold"}, {"plan", "more"}}, query: [][2]string{{"tier", "a"}, {"tier", "b"}}, claims: [][2]string{{"plan", "trial"}}}
		}, `{"ip":3232235777,"ipv6":0,"plan":"trial","tier":"b"}`},
		{"switched off", Options{}, func(r *throttle.Request) {
			r.Attributes = attributes{headers: [][2]string{{"X", "a"}}, query: [][2]string{{"y", "a"}}, claims: [][2]string{{"z", "a"}}}
		}, `{"ip":3232235777,"ipv6":0}`},
		{"custom properties over all", all, func(r *throttle.Request) {
			r.Attributes = attributes{headers: [][2]string{{"zone", "h"}}}
			r.Properties = []throttle.Property{{Name: "zone", Value: "a"}, {Name: "ip", Value: "1"}, {Name: "zone", Value: "b"}}
		}, `{"ip":3232235777,"ipv6":0,"zone":"b"}`},
		{"text that must be escaped", all, func(r *throttle.Request) {
			r.Attributes = attributes{query: [][2]string{{"q\"", "a\\\"\n\x00\x7fé\xff"}}}
		}, `{"ip":3232235777,"ipv6":0,"q\"":"a\\\"\u000a\u0000\u007fé` + "\ufffd" + `"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := start(t, tt.o)
			r := request("m")
			if tt.edit != nil {
				tt.edit(r)
			}
			for range 2 { // the second time with used memory
				q := decode(t, p, r)
				if got := string(q.Attributes[16]); got != tt.want {
					t.Errorf("\n got %s\nwant %s", got, tt.want)
				}
			}
		})
	}
}

func TestHugeAttributesNeverCostTheEvent(t *testing.T) {
	p := start(t, Options{Headers: true})
	r := request("m")
	a := attributes{}
	for i := range 500 {
		a.headers = append(a.headers, [2]string{fmt.Sprintf("h%d", i), strings.Repeat("x", 1000)})
	}
	r.Attributes = a
	q := decode(t, p, r)
	if n := len(q.Attributes[16]); n > maxProperties+100 || n < maxProperties/2 {
		t.Errorf("properties of %d bytes", n)
	}
	if !json.Valid(q.Attributes[16]) {
		t.Error("properties are no JSON")
	}
}

func TestEventLargerThanAFrameIsLeftOut(t *testing.T) {
	s := &sender{}
	var log bytes.Buffer
	p := start(t, Options{Groups: []Group{groupOf(false, s)}, Logger: zerolog.New(&log).Level(zerolog.ErrorLevel)})
	big := request(strings.Repeat("x", 2<<20))
	enqueue(p, big, time.Now().UnixMilli())
	enqueue(p, big, time.Now().UnixMilli())
	publish(p, 0, 1)
	until(t, "delivery of the next", func() bool { return len(s.got()) == 1 })
	if n := testutil.ToFloat64(p.rejected); n != 2 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%v counted; log %s", n, log.String())
	}
}

func FuzzProperties(f *testing.F) {
	f.Add("X-Client", "mobile-1", "q", "a", "plan", "trial")
	f.Add("IP", "1", "ip", "2", "ipv6", "3")
	f.Add("a", "\xff\x00\"\\", "A", "\u2028", "a", "")
	f.Add("0", "0", "\xbe", "0", "\xff", "0")
	p := New(Options{Headers: true, Query: true, Claims: true})
	f.Cleanup(func() { p.Close() })
	f.Fuzz(func(t *testing.T, hn, hv, qn, qv, cn, cv string) {
		r := request("m")
		r.Attributes = attributes{headers: [][2]string{{hn, hv}, {hn, qv}}, query: [][2]string{{qn, qv}, {cn, hv}}, claims: [][2]string{{cn, cv}}}
		q := decode(t, p, r)
		d := json.NewDecoder(bytes.NewReader(q.Attributes[16]))
		seen := map[string]bool{}
		if _, err := d.Token(); err != nil {
			t.Fatal(err)
		}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				t.Fatalf("%s: %v", q.Attributes[16], err)
			}
			if seen[k.(string)] {
				t.Fatalf("%q twice in %s", k, q.Attributes[16])
			}
			seen[k.(string)] = true
			v, err := d.Token()
			if err != nil {
				t.Fatal(err)
			}
			if k == "ip" && v != float64(3232235777) {
				t.Fatalf("address forged: %s", q.Attributes[16])
			}
		}
	})
}

func TestAPartialBatchLeavesAtOnceAndBurstsLeaveInFullBatches(t *testing.T) {
	hold := make(chan struct{})
	s := &sender{hold: hold, began: make(chan struct{}, 1)}
	p := start(t, Options{Groups: []Group{groupOf(false, s)}})
	publish(p, 0, 1)
	<-s.began
	publish(p, 1, 450)
	s.mu.Lock()
	s.hold = nil
	s.mu.Unlock()
	close(hold)
	until(t, "delivery", func() bool { return len(s.got()) == 451 })
	sizes := s.sizes()
	if sizes[0] != 1 || len(sizes) > 5 {
		t.Errorf("batches of %v", sizes)
	}
	for _, n := range sizes {
		if n > 200 {
			t.Errorf("batch of %d events", n)
		}
	}
	until(t, "the count of what was accepted", func() bool { return p.State()[0].Published == 451 })
	if st := p.State()[0]; !st.Connected || st.Queue != 0 || st.Dropped != 0 {
		t.Errorf("state %+v", st)
	}
}

func TestEveryGroupGetsEveryEvent(t *testing.T) {
	a, b, c := &sender{}, &sender{}, &sender{}
	p := start(t, Options{Groups: []Group{groupOf(false, a), groupOf(false, b, c)}})
	publish(p, 0, 1000)
	until(t, "delivery", func() bool { return len(a.got()) == 1000 && len(b.got())+len(c.got()) == 1000 })
}

func TestFullQueueDropsTheOldest(t *testing.T) {
	hold := make(chan struct{})
	s := &sender{hold: hold, began: make(chan struct{}, 1)}
	var log bytes.Buffer
	reg := prometheus.NewRegistry()
	p := start(t, Options{Groups: []Group{groupOf(false, s)}, QueueSize: 100, Logger: zerolog.New(&log), Registerer: reg})
	publish(p, 0, 1)
	<-s.began // one event in flight, then the queue
	publish(p, 1, 250)
	if st := p.State()[0]; st.Queue != 100 || st.Dropped != 150 {
		t.Errorf("state %+v, want 100 queued and 150 dropped", st)
	}
	if n := strings.Count(log.String(), "queue of request events is full"); n != 1 {
		t.Errorf("%d log lines for 150 drops within 10 s: %s", n, log.String())
	}
	close(hold)
	until(t, "delivery", func() bool { return len(s.got()) == 101 })
	if got := s.got(); got[0] != "m-0" || got[1] != "m-151" || got[100] != "m-250" {
		t.Errorf("delivered %s, %s ... %s: not the newest", got[0], got[1], got[100])
	}
	want := `
# HELP gatehouse_tm_events_total Request events by what became of them: published, dropped (queue full), stale (waited too long), rejected (by the traffic manager), failed (a batch that is sent again).
# TYPE gatehouse_tm_events_total counter
gatehouse_tm_events_total{result="dropped"} 150
gatehouse_tm_events_total{result="failed"} 0
gatehouse_tm_events_total{result="published"} 101
gatehouse_tm_events_total{result="rejected"} 0
gatehouse_tm_events_total{result="stale"} 0
`
	until(t, "the counters", func() bool { return testutil.ToFloat64(p.published) == 101 })
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "gatehouse_tm_events_total"); err != nil {
		t.Error(err)
	}
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	q := newQueue(1000, 256<<10, &sync.Pool{New: func() any { return &chunk{buf: make([]byte, 0, chunkSize)} }})
	event := func(i int) []byte {
		b, start := databridge.BeginEvent(nil, int64(i), "s")
		return databridge.EndEvent(append(b, make([]byte, 10_000)...), start)
	}
	for i := range 500 {
		q.push(event(i))
	}
	var bytesHeld int
	for i := range q.shards {
		bytesHeld += q.shards[i].bytes
	}
	if bytesHeld > 256<<10 || q.events.Load() < 20 || int(q.events.Load())+int(q.dropped.Load()) != 500 {
		t.Errorf("%d bytes, %d events, %d dropped", bytesHeld, q.events.Load(), q.dropped.Load())
	}
}

func TestFailedBatchGoesToAnotherEndpoint(t *testing.T) {
	a, b := &sender{}, &sender{}
	a.fail(errors.New("down"))
	p := start(t, Options{Groups: []Group{groupOf(false, a, b)}})
	publish(p, 0, 500)
	until(t, "delivery", func() bool { return len(b.got()) == 500 })
	a.fail(nil)
	until(t, "the endpoint's return", func() bool {
		publish(p, 500, 10)
		return len(a.got()) > 0
	})
}

func TestFailoverOrder(t *testing.T) {
	first, second := &connecting{}, &connecting{}
	p := start(t, Options{Groups: []Group{groupOf(true, first, second)}})
	publish(p, 0, 100)
	until(t, "delivery to the first", func() bool { return len(first.got()) == 100 })
	first.fail(errors.New("down"))
	publish(p, 100, 100)
	until(t, "delivery to the second", func() bool { return len(second.got()) == 100 })
	first.fail(nil)
	until(t, "return of the first", func() bool { return p.State()[0].Endpoints[0].Connected })
	publish(p, 200, 100)
	until(t, "delivery to the first again", func() bool { return len(first.got()) == 200 })
	if n := len(second.got()); n != 100 {
		t.Errorf("the second got %d events, want the 100 of the outage", n)
	}
}

func TestNothingIsLostOverAnOutage(t *testing.T) {
	s := &connecting{}
	s.fail(errors.New("away"))
	p := start(t, Options{Groups: []Group{groupOf(false, s)}})
	publish(p, 0, 3000)
	until(t, "the failure", func() bool { return p.State()[0].Endpoints[0].LastError == "away" })
	s.fail(nil)
	until(t, "delivery", func() bool { return len(s.got()) == 3000 })
	seen := map[string]bool{}
	for _, id := range s.got() {
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
	}
	if st := p.State()[0]; !st.Connected || st.Dropped != 0 {
		t.Errorf("state %+v", st)
	}
}

func TestOldEventsAreNotSent(t *testing.T) {
	s := &connecting{}
	s.fail(errors.New("away"))
	reg := prometheus.NewRegistry()
	p := start(t, Options{Groups: []Group{groupOf(false, s)}, Registerer: reg})
	old := time.Now().Add(-2 * time.Minute).UnixMilli()
	for i := range 10 {
		enqueue(p, request(fmt.Sprintf("old-%d", i)), old)
	}
	publish(p, 0, 5)
	s.fail(nil)
	until(t, "delivery", func() bool { return len(s.got()) == 5 })
	if n := testutil.ToFloat64(p.stale); n != 10 {
		t.Errorf("%v stale events counted, want 10", n)
	}
}

func TestRejectedBatchIsDropped(t *testing.T) {
	s := &sender{}
	s.fail(fmt.Errorf("%w: no stream", throttle.ErrBatchRejected))
	p := start(t, Options{Groups: []Group{groupOf(false, s)}})
	publish(p, 0, 10)
	until(t, "rejection", func() bool { return testutil.ToFloat64(p.rejected) == 10 })
	s.fail(nil)
	publish(p, 10, 1)
	until(t, "delivery", func() bool { return len(s.got()) == 1 })
}

func TestCloseFlushes(t *testing.T) {
	hold := make(chan struct{})
	s := &sender{hold: hold, began: make(chan struct{}, 1)}
	p := New(Options{Groups: []Group{groupOf(false, s)}})
	publish(p, 0, 1)
	<-s.began
	publish(p, 1, 999)
	close(hold)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if len(s.got()) != 1000 || !s.closed {
		t.Errorf("%d events, closed %v", len(s.got()), s.closed)
	}
	publish(p, 1000, 1) // does nothing, blocks nowhere
}

func TestCloseGivesUp(t *testing.T) {
	s := &connecting{}
	s.fail(errors.New("away"))
	p := New(Options{Groups: []Group{groupOf(false, s)}, FlushTimeout: 50 * time.Millisecond, RetryMin: time.Hour})
	publish(p, 0, 7)
	began := time.Now()
	err := p.Close()
	if err == nil || !strings.Contains(err.Error(), "7 request events") {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %s", d)
	}
}

// TestNoEventIsLostOrDoubled under concurrent producers, failing endpoints and a queue that is large enough.
func TestNoEventIsLostOrDoubled(t *testing.T) {
	a, b := &sender{}, &sender{}
	p := start(t, Options{Groups: []Group{groupOf(false, a, b)}})
	stop := make(chan struct{})
	var chaos sync.WaitGroup
	chaos.Go(func() {
		for {
			select {
			case <-stop:
				a.fail(nil)
				b.fail(nil)
				return
			case <-time.After(time.Duration(rand.IntN(3)) * time.Millisecond):
				s := []*sender{a, b}[rand.IntN(2)]
				s.fail([]error{nil, errors.New("down")}[rand.IntN(2)])
			}
		}
	})
	var producers sync.WaitGroup
	for w := range 4 {
		producers.Go(func() { publish(p, w*2000, 2000) })
	}
	producers.Wait()
	close(stop)
	chaos.Wait()
	until(t, "delivery", func() bool { return len(a.got())+len(b.got()) >= 8000 })
	seen := map[string]bool{}
	for _, id := range append(a.got(), b.got()...) {
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
	}
	if len(seen) != 8000 {
		t.Errorf("%d events", len(seen))
	}
}

func TestRetryWaits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shortest := time.Duration(rapid.Int64Range(1, int64(time.Minute)).Draw(t, "shortest"))
		longest := shortest + time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "more"))
		r := newRetry(shortest, longest)
		for i := range rapid.IntRange(1, 200).Draw(t, "failures") {
			if d := r.next(); d <= 0 || d > longest {
				t.Fatalf("wait %d is %s, at most %s", i, d, longest)
			}
		}
		r.reset()
		if d := r.next(); d > shortest+shortest/4+1 {
			t.Fatalf("first wait after a success is %s", d)
		}
	})
}

func TestDialMakesAClientForEachURL(t *testing.T) {
	groups, err := databridge.ParseGroups("{tcp://a:9611|tcp://b:9611},{tcp://c:9611}", "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Dial(groups, databridge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range got {
		for _, e := range g.Endpoints {
			names = append(names, fmt.Sprint(g.Kind, g.Failover, e.Name, e.Sender != nil))
		}
	}
	want := []string{"databridgetruetcp://a:9611true", "databridgetruetcp://b:9611true", "databridgefalsetcp://c:9611true"}
	for i := range names {
		names[i] = strings.ReplaceAll(names[i], " ", "")
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}

func TestEnqueueAllocatesNothing(t *testing.T) {
	s := &sender{hold: make(chan struct{}), began: make(chan struct{}, 1)}
	p := New(Options{Groups: []Group{groupOf(false, s)}, QueueSize: 1000, Headers: true, Query: true, Claims: true, FlushTimeout: time.Millisecond})
	defer p.Close()
	r := request("m")
	r.Attributes = &attributes{headers: [][2]string{{"X-Client", "a"}, {"Accept", "b"}, {"Authorization", "x"}}, query: [][2]string{{"q", "1"}}, claims: [][2]string{{"sub", "bob"}}}
	var k key.Keys
	level, tier := key.Tier(r, "Unlimited")
	k.Fill(r, key.Form{}, level, tier)
	now := time.Now().UnixMilli()
	for range 3000 {
		p.Enqueue(r, &k, now)
	}
	if n := testing.AllocsPerRun(1000, func() { p.Enqueue(r, &k, now) }); n != 0 && !raceDetector {
		t.Errorf("%v allocations per event, want 0", n)
	}
}

func benchmark(b *testing.B, attributes throttle.Attributes) {
	s := &sender{hold: make(chan struct{})}
	p := New(Options{Groups: []Group{groupOf(false, s)}, Headers: true, Query: true, Claims: true, FlushTimeout: time.Millisecond, Logger: zerolog.Nop()})
	defer p.Close()
	now := time.Now().UnixMilli()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := request("m-0123456789")
		r.Attributes = attributes
		var k key.Keys
		level, tier := key.Tier(r, "Unlimited")
		k.Fill(r, key.Form{}, level, tier)
		for pb.Next() {
			p.Enqueue(r, &k, now)
		}
	})
}

func BenchmarkEnqueue(b *testing.B) { benchmark(b, nil) }

func BenchmarkEnqueueWithHeaders(b *testing.B) {
	a := &attributes{claims: [][2]string{{"sub", "bob"}, {"iss", "https://localhost:9443/oauth2/token"}}, query: [][2]string{{"page", "3"}}}
	for i := range 10 {
		a.headers = append(a.headers, [2]string{fmt.Sprintf("X-Header-%d", i), "some value of a header"})
	}
	benchmark(b, a)
}
