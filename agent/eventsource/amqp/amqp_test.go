package amqp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/integration/harness"
)

// recorder is a handler that writes down what it gets.
type recorder struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and made anew at every change
	states   []eventsource.State
	messages []event.Message
	onState  func(eventsource.State)
	onMsg    func(event.Message)
	inState  bool
	inTopic  map[string]bool
	overlaps []string
}

func newRecorder() *recorder {
	return &recorder{changed: make(chan struct{}), inTopic: map[string]bool{}}
}

func (r *recorder) note() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) OnState(s eventsource.State) {
	r.mu.Lock()
	if r.inState {
		r.overlaps = append(r.overlaps, "OnState")
	}
	r.inState = true
	r.states = append(r.states, s)
	r.note()
	r.mu.Unlock()
	if r.onState != nil {
		r.onState(s)
	}
	r.mu.Lock()
	r.inState = false
	r.mu.Unlock()
}

func (r *recorder) OnMessage(m event.Message) {
	r.mu.Lock()
	if r.inTopic[m.Topic] {
		r.overlaps = append(r.overlaps, "OnMessage "+m.Topic)
	}
	r.inTopic[m.Topic] = true
	r.messages = append(r.messages, m)
	r.note()
	r.mu.Unlock()
	if r.onMsg != nil {
		r.onMsg(m)
	}
	r.mu.Lock()
	r.inTopic[m.Topic] = false
	r.mu.Unlock()
}

func (r *recorder) count(kind eventsource.StateKind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.states {
		if s.Kind == kind {
			n++
		}
	}
	return n
}

func (r *recorder) bodies() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]string, len(r.messages))
	for i, m := range r.messages {
		out[i] = string(m.Body)
	}
	return out
}

func (r *recorder) trace() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, s := range r.states {
		fmt.Fprintf(&b, "  %s %s %s %v\n", s.Since.Format("05.000"), s.Kind, s.Address, s.Err)
	}
	return b.String()
}

// await waits until done is true, asked again at every change.
func (r *recorder) await(t *testing.T, what string, limit time.Duration, done func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	deadline := time.After(limit)
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if done() {
			return time.Since(began)
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s: not within %s; states:\n%s", what, limit, r.trace())
		}
	}
}

func (r *recorder) awaitState(t *testing.T, kind eventsource.StateKind, times int, limit time.Duration) time.Duration {
	t.Helper()
	return r.await(t, fmt.Sprintf("state %s for the %d. time", kind, times), limit, func() bool { return r.count(kind) >= times })
}

// run runs a source until the test ends, or stop is called.
func run(t *testing.T, s *Source, r *recorder) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Run returned %v, want context.Canceled", err)
				}
			case <-time.After(10 * time.Second):
				t.Error("Run did not return within 10 s of its context's end")
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if len(r.overlaps) > 0 {
				t.Errorf("called concurrently: %v", r.overlaps)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func broker(t *testing.T, address, vhost string) brokerurl.Broker {
	t.Helper()
	s, err := brokerurl.Parse("amqp://"+harness.Username+":"+harness.Password+"@clientid"+vhost+"?brokerlist='tcp://"+address+"'", brokerurl.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Brokers[0]
}

func source(t *testing.T, o Options, brokers ...brokerurl.Broker) *Source {
	t.Helper()
	o.Name = "event_hub"
	o.Brokers = brokers
	if o.Topics == nil {
		o.Topics = []string{event.TopicThrottleData}
	}
	o.Logger = zerolog.Nop()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// publisher publishes to amq.topic of one virtual host.
type publisher struct {
	t  *testing.T
	ch *amqp091.Channel
}

func newPublisher(t *testing.T, url string) *publisher {
	t.Helper()
	c, err := amqp091.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return &publisher{t, ch}
}

func (p *publisher) publish(topic string, m amqp091.Publishing) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	confirmed, err := p.ch.PublishWithDeferredConfirmWithContext(ctx, "amq.topic", topic, false, false, m)
	if err == nil {
		_, err = confirmed.WaitContext(ctx)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *publisher) text(topic, body string) {
	p.t.Helper()
	p.publish(topic, amqp091.Publishing{ContentType: "text/plain", Body: []byte(body)})
}

func TestMessagesArriveWithTheirProperties(t *testing.T) {
	rabbit := harness.Shared(t)
	r := newRecorder()
	topics := []string{event.TopicThrottleData, event.TopicNotification}
	run(t, source(t, Options{Topics: topics}, broker(t, rabbit.Address(), "/carbon")), r)
	r.awaitState(t, eventsource.Connected, 1, 10*time.Second)
	p := newPublisher(t, rabbit.URL("carbon"))
	p.publish("throttleData", amqp091.Publishing{
		ContentType: "text/plain", ContentEncoding: "UTF-8", DeliveryMode: 2, Priority: 4, MessageId: "ID:1",
		Timestamp: time.Unix(1764000000123, 0), // as Andes writes it: milliseconds
		Headers:   amqp091.Table{"JMS_QPID_DESTTYPE": int32(2)},
		Body:      []byte(`{"event":{}}`),
	})
	p.publish("notification", amqp091.Publishing{ContentType: "amqp/map", Timestamp: time.Unix(1764000000, 0), Body: []byte{0, 0, 0, 0}})
	p.publish("cacheInvalidation", amqp091.Publishing{Body: []byte("not subscribed")})
	r.await(t, "two messages", 10*time.Second, func() bool { return len(r.bodies()) == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortFunc(r.messages, func(a, b event.Message) int { return strings.Compare(b.Topic, a.Topic) })
	m := r.messages[0]
	if m.Topic != "throttleData" || m.ContentType != "text/plain" || m.ContentEncoding != "UTF-8" || m.MessageID != "ID:1" ||
		m.Timestamp != 1764000000123 || string(m.Body) != `{"event":{}}` {
		t.Errorf("first message is %+v", m)
	}
	if m := r.messages[1]; m.Topic != "notification" || m.ContentType != "amqp/map" || m.Timestamp != 1764000000000 {
		t.Errorf("second message is %+v; a timestamp in seconds must become milliseconds", m)
	}
	if first := r.states[0].Kind; first != eventsource.Connecting {
		t.Errorf("the first state is %s", first)
	}
}

func TestConnectedIsSaidOnlyWhenEveryTopicIsConsumed(t *testing.T) {
	rabbit := harness.Shared(t)
	p := newPublisher(t, rabbit.URL("carbon"))
	topics := []string{event.TopicThrottleData, event.TopicNotification, event.TopicKeyManager, event.TopicTokenRevocation}
	r := newRecorder()
	// Published from within OnState: what misses a queue is gone for good.
	r.onState = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			for _, topic := range topics {
				p.text(topic, topic)
			}
		}
	}
	run(t, source(t, Options{Topics: topics}, broker(t, rabbit.Address(), "/carbon")), r)
	r.await(t, "a message of each topic", 10*time.Second, func() bool { return len(r.bodies()) == len(topics) })
}

func TestPoisonDoesNotStopTheMessagesAfterIt(t *testing.T) {
	rabbit := harness.Shared(t)
	r := newRecorder()
	r.onMsg = func(m event.Message) {
		if string(m.Body) == "poison" {
			panic("a defect of the handler")
		}
	}
	s := source(t, Options{Prefetch: 1}, broker(t, rabbit.Address(), "/carbon"))
	run(t, s, r)
	r.awaitState(t, eventsource.Connected, 1, 10*time.Second)
	p := newPublisher(t, rabbit.URL("carbon"))
	for _, body := range []string{"poison", "poison", "good"} {
		p.text("throttleData", body)
		r.mu.Lock()
		r.inTopic = map[string]bool{} // the panic left it set
		r.mu.Unlock()
	}
	// With a prefetch of 1 the good one arrives only if the bad ones were settled.
	r.await(t, "the good message", 10*time.Second, func() bool { return slices.Contains(r.bodies(), "good") })
	r.mu.Lock()
	r.overlaps = nil
	r.mu.Unlock()
}

func TestPrefetchBoundsWhatIsUnsettled(t *testing.T) {
	rabbit := harness.Shared(t)
	r := newRecorder()
	release := make(chan struct{})
	r.onMsg = func(event.Message) { <-release }
	run(t, source(t, Options{Prefetch: 5}, broker(t, rabbit.Address(), "/carbon")), r)
	r.awaitState(t, eventsource.Connected, 1, 10*time.Second)
	p := newPublisher(t, rabbit.URL("carbon"))
	for i := range 20 {
		p.text("throttleData", fmt.Sprint(i))
	}
	r.await(t, "the first message", 10*time.Second, func() bool { return len(r.bodies()) == 1 })
	got := strings.Fields(rabbit.Control(t, "list_queues", "-p", "carbon", "messages_unacknowledged", "messages_ready"))
	if n := len(got); n < 2 || got[n-2] != "5" || got[n-1] != "15" {
		t.Errorf("unacknowledged and ready: %v, want 5 and 15", got)
	}
	close(release)
	r.await(t, "all messages", 10*time.Second, func() bool { return len(r.bodies()) == 20 })
	want := make([]string, 20)
	for i := range want {
		want[i] = fmt.Sprint(i)
	}
	if got := r.bodies(); !slices.Equal(got, want) {
		t.Errorf("order of arrival is %v", got)
	}
}

// TestReconnects breaks the connection in every way that leaves the broker alive, and wants news of it, a new
// connection within two seconds, and messages after it.
func TestReconnects(t *testing.T) {
	rabbit := harness.Shared(t)
	for _, c := range []struct {
		name   string
		breaks func(*testing.T, *harness.Proxy)
		want   string // part of the error
		limit  time.Duration
	}{
		{"connection reset", func(_ *testing.T, p *harness.Proxy) { p.Cut() }, "", 2 * time.Second},
		{"connection closed by the broker", func(t *testing.T, _ *harness.Proxy) { rabbit.CloseConnections(t, "maintenance") }, "maintenance", 2 * time.Second},
		{"channel closed by the broker", func(t *testing.T, _ *harness.Proxy) { rabbit.CloseChannels(t) }, "406", 2 * time.Second},
		{"consumer cancelled by the broker", func(t *testing.T, _ *harness.Proxy) { rabbit.DeleteQueues(t) }, "cancelled", 2 * time.Second},
		{"broker away for a while", func(_ *testing.T, p *harness.Proxy) {
			p.Refuse()
			time.AfterFunc(1500*time.Millisecond, p.Resume)
		}, "", 3500 * time.Millisecond},
		// Three heartbeats of a second, and the reconnect, which the frozen proxy takes and leads nowhere.
		{"half-open connection", func(_ *testing.T, p *harness.Proxy) {
			p.Freeze()
			time.AfterFunc(4*time.Second, func() { p.Resume(); p.Cut() })
		}, "", 8 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			proxy := harness.StartProxy(t, rabbit.Address())
			r := newRecorder()
			run(t, source(t, Options{Heartbeat: time.Second, Topics: []string{event.TopicThrottleData, event.TopicNotification}},
				broker(t, proxy.Address(), "/carbon")), r)
			r.awaitState(t, eventsource.Connected, 1, 10*time.Second)
			c.breaks(t, proxy)
			took := r.awaitState(t, eventsource.Connected, 2, c.limit+5*time.Second)
			t.Logf("connected again after %s", took)
			if took > c.limit {
				t.Errorf("connected again after %s, want at most %s\n%s", took, c.limit, r.trace())
			}
			r.mu.Lock()
			lost := r.states[slices.IndexFunc(r.states, func(s eventsource.State) bool { return s.Kind == eventsource.Disconnected })]
			r.mu.Unlock()
			if lost.Err == nil || !strings.Contains(lost.Err.Error(), c.want) {
				t.Errorf("lost with %v, want %q in it", lost.Err, c.want)
			}
			p := newPublisher(t, rabbit.URL("carbon"))
			p.text("throttleData", "after")
			p.text("notification", "after")
			r.await(t, "messages after the reconnect", 10*time.Second, func() bool { return len(r.bodies()) == 2 })
		})
	}
}

func TestRefusals(t *testing.T) {
	rabbit := harness.Shared(t)
	good := broker(t, rabbit.Address(), "/carbon")
	for _, c := range []struct {
		name   string
		change func(*brokerurl.Broker)
		want   string
	}{
		{"wrong password", func(b *brokerurl.Broker) { b.Password = "wrong-secret" }, "ACCESS_REFUSED"},
		{"unknown user", func(b *brokerurl.Broker) { b.Username = "nobody" }, "ACCESS_REFUSED"},
		{"unknown virtual host", func(b *brokerurl.Broker) { b.VHost = "/nowhere" }, "NOT_ALLOWED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := good
			c.change(&bad)
			proxy := harness.StartProxy(t, rabbit.Address())
			bad.Address = proxy.Address()
			r := newRecorder()
			run(t, source(t, Options{RefusedDelay: 700 * time.Millisecond}, bad), r)
			r.awaitState(t, eventsource.Refused, 1, 10*time.Second)
			if err := r.states[len(r.states)-1].Err; err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "wrong-secret") {
				t.Errorf("refused with %v, want %s", err, c.want)
			}
			// The second dial comes after RefusedDelay, and says nothing new.
			began := time.Now()
			for proxy.Accepted() < 2 {
				if time.Since(began) > 5*time.Second {
					t.Fatal("no second attempt within 5 s")
				}
				time.Sleep(10 * time.Millisecond)
			}
			if waited := time.Since(began); waited < 600*time.Millisecond {
				t.Errorf("tried again after %s, want RefusedDelay", waited)
			}
			if n := r.count(eventsource.Refused); n != 1 {
				t.Errorf("%d states say refused, want 1:\n%s", n, r.trace())
			}
		})
	}
	t.Run("the next broker of the list is taken at once", func(t *testing.T) {
		bad := good
		bad.Password = "wrong"
		r := newRecorder()
		run(t, source(t, Options{}, bad, good), r)
		r.awaitState(t, eventsource.Connected, 1, 5*time.Second)
	})
	t.Run("a broken log-in is no refusal", func(t *testing.T) {
		// The library gives the code of refused credentials for a connection that merely broke.
		proxy := harness.StartProxy(t, rabbit.Address())
		proxy.Slow(0, 40*time.Millisecond)
		b := good
		b.Address = proxy.Address()
		r := newRecorder()
		run(t, source(t, Options{}, b), r)
		for proxy.Open() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(150 * time.Millisecond) // in the middle of the log-in
		proxy.Cut()
		r.awaitState(t, eventsource.Disconnected, 1, 5*time.Second)
		proxy.Resume()
		r.awaitState(t, eventsource.Connected, 1, 5*time.Second)
		if r.count(eventsource.Refused) != 0 {
			t.Errorf("a broken log-in was taken for a refusal:\n%s", r.trace())
		}
	})
}

func TestVirtualHostForms(t *testing.T) {
	rabbit := harness.Shared(t)
	for path, vhost := range map[string]string{"/carbon": "carbon", "/": "/", "/%2Fcarbon": "/carbon"} {
		r := newRecorder()
		stop := run(t, source(t, Options{}, broker(t, rabbit.Address(), path)), r)
		r.awaitState(t, eventsource.Connected, 1, 10*time.Second)
		newPublisher(t, rabbit.URL(vhost)).text("throttleData", vhost)
		r.await(t, "a message in "+vhost, 10*time.Second, func() bool { return slices.Contains(r.bodies(), vhost) })
		stop()
	}
}

func TestTheFirstOfTwoBrokersIsDead(t *testing.T) {
	rabbit := harness.Shared(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deadAddress := dead.Addr().String()
	dead.Close()
	proxy := harness.StartProxy(t, rabbit.Address())
	r := newRecorder()
	run(t, source(t, Options{}, broker(t, deadAddress, "/carbon"), broker(t, proxy.Address(), "/carbon")), r)
	if took := r.awaitState(t, eventsource.Connected, 1, 10*time.Second); took > 2*time.Second {
		t.Errorf("connected after %s, want at once", took)
	}
	// After a loss the last good one is tried first: nothing more is heard of the dead one.
	proxy.Cut()
	r.awaitState(t, eventsource.Connected, 2, 10*time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.states[3:] {
		if s.Address == deadAddress && s.Kind != eventsource.Connecting {
			t.Errorf("the dead broker was tried before the last good one: %+v", s)
		}
	}
}
