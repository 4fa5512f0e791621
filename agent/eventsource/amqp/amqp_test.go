package amqp

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/rs/zerolog"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/sourcetest"
	"gatehouse/integration/harness"
)

func broker(t testing.TB, address, vhost string) brokerurl.Broker {
	t.Helper()
	s, err := brokerurl.Parse("amqp://"+harness.Username+":"+harness.Password+"@clientid"+vhost+"?brokerlist='tcp://"+address+"'", brokerurl.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Brokers[0]
}

func source(t testing.TB, o Options, brokers ...brokerurl.Broker) *Source {
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
	t  testing.TB
	ch *amqp091.Channel
}

func newPublisher(t testing.TB, url string) *publisher {
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
	if err := p.try(topic, m); err != nil {
		p.t.Fatal(err)
	}
}

// try publishes and waits until the broker has it. It may be called by any goroutine.
func (p *publisher) try(topic string, m amqp091.Publishing) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	confirmed, err := p.ch.PublishWithDeferredConfirmWithContext(ctx, "amq.topic", topic, false, false, m)
	if err == nil {
		_, err = confirmed.WaitContext(ctx)
	}
	return err
}

func (p *publisher) text(topic, body string) {
	p.t.Helper()
	p.publish(topic, amqp091.Publishing{ContentType: "text/plain", Body: []byte(body)})
}

func TestMessagesArriveWithTheirProperties(t *testing.T) {
	rabbit := harness.Shared(t)
	r := sourcetest.NewRecorder()
	topics := []string{event.TopicThrottleData, event.TopicNotification}
	sourcetest.Run(t, source(t, Options{Topics: topics}, broker(t, rabbit.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	p := newPublisher(t, rabbit.URL("carbon"))
	p.publish("throttleData", amqp091.Publishing{
		ContentType: "text/plain", ContentEncoding: "UTF-8", DeliveryMode: 2, Priority: 4, MessageId: "ID:1",
		Timestamp: time.Unix(1764000000123, 0), // as Andes writes it: milliseconds
		Headers:   amqp091.Table{"JMS_QPID_DESTTYPE": int32(2)},
		Body:      []byte(`{"event":{}}`),
	})
	p.publish("notification", amqp091.Publishing{ContentType: "amqp/map", Timestamp: time.Unix(1764000000, 0), Body: []byte{0, 0, 0, 0}})
	p.publish("cacheInvalidation", amqp091.Publishing{Body: []byte("not subscribed")})
	r.Await(t, "two messages", 10*time.Second, func() bool { return len(r.Bodies()) == 2 })
	messages := r.Messages()
	slices.SortFunc(messages, func(a, b event.Message) int { return strings.Compare(b.Topic, a.Topic) })
	m := messages[0]
	if m.Topic != "throttleData" || m.ContentType != "text/plain" || m.ContentEncoding != "UTF-8" || m.MessageID != "ID:1" ||
		m.Timestamp != 1764000000123 || string(m.Body) != `{"event":{}}` {
		t.Errorf("first message is %+v", m)
	}
	if m := messages[1]; m.Topic != "notification" || m.ContentType != "amqp/map" || m.Timestamp != 1764000000000 {
		t.Errorf("second message is %+v; a timestamp in seconds must become milliseconds", m)
	}
}

func TestConnectedIsSaidOnlyWhenEveryTopicIsConsumed(t *testing.T) {
	rabbit := harness.Shared(t)
	p := newPublisher(t, rabbit.URL("carbon"))
	topics := []string{event.TopicThrottleData, event.TopicNotification, event.TopicKeyManager, event.TopicTokenRevocation}
	r := sourcetest.NewRecorder()
	// Published from within OnState: what misses a queue is gone for good.
	r.OnStateFunc = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			for _, topic := range topics {
				if err := p.try(topic, amqp091.Publishing{Body: []byte(topic)}); err != nil {
					t.Error(err)
				}
			}
		}
	}
	sourcetest.Run(t, source(t, Options{Topics: topics}, broker(t, rabbit.Address(), "/carbon")), r)
	r.Await(t, "a message of each topic", 10*time.Second, func() bool { return len(r.Bodies()) == len(topics) })
}

func TestPoisonDoesNotStopTheMessagesAfterIt(t *testing.T) {
	rabbit := harness.Shared(t)
	r := sourcetest.NewRecorder()
	r.OnMessageFunc = func(m event.Message) {
		if string(m.Body) == "poison" {
			panic("a defect of the handler")
		}
	}
	s := source(t, Options{Prefetch: 1}, broker(t, rabbit.Address(), "/carbon"))
	sourcetest.Run(t, s, r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	p := newPublisher(t, rabbit.URL("carbon"))
	for _, body := range []string{"poison", "poison", "good"} {
		p.text("throttleData", body)
	}
	// With a prefetch of 1 the good one arrives only if the bad ones were settled.
	r.Await(t, "the good message", 10*time.Second, func() bool { return slices.Contains(r.Bodies(), "good") })
}

func TestPrefetchBoundsWhatIsUnsettled(t *testing.T) {
	rabbit := harness.Shared(t)
	r := sourcetest.NewRecorder()
	release := make(chan struct{})
	r.OnMessageFunc = func(event.Message) { <-release }
	sourcetest.Run(t, source(t, Options{Prefetch: 5}, broker(t, rabbit.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	p := newPublisher(t, rabbit.URL("carbon"))
	for i := range 20 {
		p.text("throttleData", fmt.Sprint(i))
	}
	r.Await(t, "the first message", 10*time.Second, func() bool { return len(r.Bodies()) == 1 })
	// The broker counts a little later, and queues of tests before may be on their way out.
	for began := time.Now(); ; {
		counts := rabbit.Control(t, "list_queues", "-p", "carbon", "messages_unacknowledged", "messages_ready")
		if slices.Contains(strings.Split(counts, "\n"), "5\t15") {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("unacknowledged and ready are not 5 and 15:\n%s", counts)
		}
	}
	close(release)
	r.Await(t, "all messages", 10*time.Second, func() bool { return len(r.Bodies()) == 20 })
	want := make([]string, 20)
	for i := range want {
		want[i] = fmt.Sprint(i)
	}
	if got := r.Bodies(); !slices.Equal(got, want) {
		t.Errorf("order of arrival is %v", got)
	}
}

// TestReconnects breaks the connection in every way that leaves the broker alive, and wants news of it, a new
// connection within two seconds, and messages after it.
func TestReconnects(t *testing.T) {
	rabbit := harness.Shared(t)
	for _, c := range []breakage{
		{"connection reset", func(_ *testing.T, p *harness.Proxy) { p.Cut() }, "", 2 * time.Second},
		{"connection closed by the broker", func(t *testing.T, _ *harness.Proxy) { rabbit.CloseConnections(t, "maintenance") }, "maintenance", 2 * time.Second},
		{"channel closed by the broker", func(t *testing.T, _ *harness.Proxy) { rabbit.CloseChannels(t) }, "406", 2 * time.Second},
		{"consumer cancelled by the broker", func(t *testing.T, _ *harness.Proxy) { rabbit.DeleteQueues(t) }, "cancelled", 2 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, rabbit) })
	}
}

// TestSlowReconnects is the same with faults that take their time.
func TestSlowReconnects(t *testing.T) {
	t.Parallel()
	rabbit := harness.Shared(t)
	for _, c := range []breakage{
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
			t.Parallel()
			c.test(t, rabbit)
		})
	}
}

// breakage is a way to lose a connection.
type breakage struct {
	name   string
	breaks func(*testing.T, *harness.Proxy)
	want   string        // part of the error
	limit  time.Duration // to be connected again
}

func (c breakage) test(t *testing.T, rabbit *harness.Rabbit) {
	proxy := harness.StartProxy(t, rabbit.Address())
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{Heartbeat: time.Second, Topics: []string{event.TopicThrottleData, event.TopicNotification}},
		broker(t, proxy.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	c.breaks(t, proxy)
	took := r.AwaitState(t, eventsource.Connected, 2, c.limit+5*time.Second)
	t.Logf("connected again after %s", took)
	if took > c.limit {
		t.Errorf("connected again after %s, want at most %s\n%s", took, c.limit, r.Trace())
	}
	states := r.States()
	lost := states[slices.IndexFunc(states, func(s eventsource.State) bool { return s.Kind == eventsource.Disconnected })]
	if lost.Err == nil || !strings.Contains(lost.Err.Error(), c.want) {
		t.Errorf("lost with %v, want %q in it", lost.Err, c.want)
	}
	p := newPublisher(t, rabbit.URL("carbon"))
	p.text("throttleData", "after")
	p.text("notification", "after")
	r.Await(t, "messages after the reconnect", 10*time.Second, func() bool { return len(r.Bodies()) == 2 })
}

func TestRefusals(t *testing.T) {
	t.Parallel()
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
			t.Parallel()
			bad := good
			c.change(&bad)
			proxy := harness.StartProxy(t, rabbit.Address())
			bad.Address = proxy.Address()
			r := sourcetest.NewRecorder()
			sourcetest.Run(t, source(t, Options{RefusedDelay: 700 * time.Millisecond}, bad), r)
			r.AwaitState(t, eventsource.Refused, 1, 10*time.Second)
			if err := r.States()[1].Err; err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "wrong-secret") {
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
			if n := r.Count(eventsource.Refused); n != 1 {
				t.Errorf("%d states say refused, want 1:\n%s", n, r.Trace())
			}
		})
	}
	t.Run("the next broker of the list is taken at once", func(t *testing.T) {
		bad := good
		bad.Password = "wrong"
		r := sourcetest.NewRecorder()
		sourcetest.Run(t, source(t, Options{}, bad, good), r)
		r.AwaitState(t, eventsource.Connected, 1, 5*time.Second)
	})
	t.Run("a broken log-in is no refusal", func(t *testing.T) {
		// The library gives the code of refused credentials for a connection that merely broke.
		proxy := harness.StartProxy(t, rabbit.Address())
		proxy.Slow(0, 40*time.Millisecond)
		b := good
		b.Address = proxy.Address()
		r := sourcetest.NewRecorder()
		sourcetest.Run(t, source(t, Options{}, b), r)
		for proxy.Open() == 0 {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(150 * time.Millisecond) // in the middle of the log-in
		proxy.Cut()
		r.AwaitState(t, eventsource.Disconnected, 1, 5*time.Second)
		proxy.Resume()
		r.AwaitState(t, eventsource.Connected, 1, 5*time.Second)
		if r.Count(eventsource.Refused) != 0 {
			t.Errorf("a broken log-in was taken for a refusal:\n%s", r.Trace())
		}
	})
}

func TestVirtualHostForms(t *testing.T) {
	rabbit := harness.Shared(t)
	for path, vhost := range map[string]string{"/carbon": "carbon", "/": "/", "/%2Fcarbon": "/carbon"} {
		r := sourcetest.NewRecorder()
		stop := sourcetest.Run(t, source(t, Options{}, broker(t, rabbit.Address(), path)), r)
		r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
		newPublisher(t, rabbit.URL(vhost)).text("throttleData", vhost)
		r.Await(t, "a message in "+vhost, 10*time.Second, func() bool { return slices.Contains(r.Bodies(), vhost) })
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
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, broker(t, deadAddress, "/carbon"), broker(t, proxy.Address(), "/carbon")), r)
	if took := r.AwaitState(t, eventsource.Connected, 1, 10*time.Second); took > 2*time.Second {
		t.Errorf("connected after %s, want at once", took)
	}
	// After a loss the last good one is tried first: nothing more is heard of the dead one.
	proxy.Cut()
	r.AwaitState(t, eventsource.Connected, 2, 10*time.Second)
	for _, s := range r.States()[3:] {
		if s.Address == deadAddress && s.Kind != eventsource.Connecting {
			t.Errorf("the dead broker was tried before the last good one: %+v", s)
		}
	}
}
