package amqp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	amqp091 "github.com/rabbitmq/amqp091-go"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/sourcetest"
	"gatehouse/integration/harness"
)

// TestBrokerIsKilledAndComesBack kills a broker of its own with kill -9, starts it again on the same port, and wants the
// source to be subscribed again within two seconds of the broker's return, and nothing missed after that.
func TestBrokerIsKilledAndComesBack(t *testing.T) {
	t.Parallel()
	rabbit := harness.StartRabbitMQ(t)
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{Topics: []string{event.TopicThrottleData, event.TopicNotification}},
		broker(t, rabbit.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	rabbit.Kill()
	r.AwaitState(t, eventsource.Disconnected, 1, 5*time.Second)
	rabbit.Restart(t)
	took := r.AwaitState(t, eventsource.Connected, 2, 20*time.Second)
	t.Logf("subscribed %s after the broker was ready", took)
	if took > 2*time.Second {
		t.Errorf("subscribed %s after the broker's return, want at most 2 s\n%s", took, r.Trace())
	}
	if n := r.Count(eventsource.Refused); n != 0 {
		t.Errorf("a broker that was starting was taken for one that refuses:\n%s", r.Trace())
	}
	newPublisher(t, rabbit.URL("carbon")).text("notification", "after")
	r.Await(t, "a message after the restart", 10*time.Second, func() bool { return slices.Contains(r.Bodies(), "after") })

	// A stop in good order says so.
	rabbit.Stop(t)
	r.Await(t, "the loss", 5*time.Second, func() bool { return r.Count(eventsource.Disconnected) >= 2 })
}

// TestHundredReconnectsLeakNothing cuts a hundred connections and counts goroutines, queues and channels after them.
func TestHundredReconnectsLeakNothing(t *testing.T) {
	rabbit := harness.Shared(t)
	proxy := harness.StartProxy(t, rabbit.Address())
	before := goleak.IgnoreCurrent()
	r := sourcetest.NewRecorder()
	r.OnStateFunc = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			proxy.Cut()
		}
	}
	topics := []string{event.TopicThrottleData, event.TopicNotification, event.TopicKeyManager, event.TopicTokenRevocation}
	registry := prometheus.NewRegistry()
	o := Options{Topics: topics, MinPause: time.Millisecond, MaxPause: time.Millisecond, Registerer: registry}
	stop := sourcetest.Run(t, source(t, o, broker(t, proxy.Address(), "/carbon")), r)
	took := r.AwaitState(t, eventsource.Connected, 100, 60*time.Second)
	t.Logf("100 connections of %d topics in %s", len(topics), took)
	stop()
	goleak.VerifyNone(t, before)
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		queues, connections, channels := rabbit.Queues(t), rabbit.Connections(t), rabbit.Channels(t)
		if queues == 0 && connections == 0 && channels == 0 {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("the broker has %d queues, %d connections and %d channels left", queues, connections, channels)
		}
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP gatehouse_event_source_connected Connections of an event source that are subscribed to every topic: 1, or 0 while it is away.
# TYPE gatehouse_event_source_connected gauge
gatehouse_event_source_connected{source="event_hub"} 0
`), "gatehouse_event_source_connected"); err != nil {
		t.Error(err)
	}
}

// TestStopWhileTheBrokerSaysNothing ends the source in the middle of a log-in that a frozen broker does not answer.
func TestStopWhileTheBrokerSaysNothing(t *testing.T) {
	rabbit := harness.Shared(t)
	proxy := harness.StartProxy(t, rabbit.Address())
	proxy.Freeze()
	r := sourcetest.NewRecorder()
	stop := sourcetest.Run(t, source(t, Options{}, broker(t, proxy.Address(), "/carbon")), r)
	for proxy.Open() == 0 {
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// TestStopOnAHalfOpenConnection ends the source while its connection is frozen: nobody answers connection.close.
func TestStopOnAHalfOpenConnection(t *testing.T) {
	rabbit := harness.Shared(t)
	proxy := harness.StartProxy(t, rabbit.Address())
	r := sourcetest.NewRecorder()
	stop := sourcetest.Run(t, source(t, Options{}, broker(t, proxy.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	proxy.Freeze()
	began := time.Now()
	stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("stopping took %s, want about a second", took)
	}
}

// TestTLS puts TLS before the broker and connects by ssl://, with and without the right name in the certificate.
func TestTLS(t *testing.T) {
	rabbit := harness.Shared(t)
	address, roots := tlsFront(t, rabbit.Address(), "broker.example.com")
	for _, c := range []struct {
		name   string
		change func(*brokerurl.Broker, *tls.Config)
		want   string // part of the error; "" connects
	}{
		{"right authority and name", func(_ *brokerurl.Broker, c *tls.Config) { c.ServerName = "broker.example.com" }, ""},
		{"wrong name", func(*brokerurl.Broker, *tls.Config) {}, "certificate"},
		{"wrong name, not verified", func(b *brokerurl.Broker, _ *tls.Config) { b.SkipVerifyHostname = true }, ""},
		{"unknown authority, name not verified", func(b *brokerurl.Broker, c *tls.Config) {
			b.SkipVerifyHostname = true
			c.RootCAs = x509.NewCertPool()
		}, "unknown authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := broker(t, address, "/carbon")
			b.TLS = true
			config := &tls.Config{RootCAs: roots}
			c.change(&b, config)
			r := sourcetest.NewRecorder()
			sourcetest.Run(t, source(t, Options{TLS: config}, b), r)
			if c.want == "" {
				r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
				return
			}
			r.AwaitState(t, eventsource.Disconnected, 1, 10*time.Second)
			if err := r.States()[1].Err; !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
		})
	}
}

// tlsFront is a server that takes TLS off and forwards to target.
func tlsFront(t *testing.T, target, name string) (address string, roots *x509.CertPool) {
	t.Helper()
	certificate, roots := harness.Certificate(t, name)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); l.Close(); running.Wait() })
	running.Go(func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer front.Close()
				back, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer back.Close()
				stop := context.AfterFunc(ctx, func() { front.Close(); back.Close() })
				defer stop()
				running.Go(func() { _, _ = io.Copy(back, front); back.Close() })
				_, _ = io.Copy(front, back)
			})
		}
	})
	return l.Addr().String(), roots
}

func TestNewRefuses(t *testing.T) {
	good := brokerurl.Broker{Protocol: brokerurl.AMQP, Address: "h:5672", VHost: "/"}
	for name, o := range map[string]Options{
		"no broker is named":                {Topics: []string{"notification"}},
		"no topic is named":                 {Brokers: []brokerurl.Broker{good}},
		"topic notification is named twice": {Brokers: []brokerurl.Broker{good}, Topics: []string{"notification", "notification"}},
		"does not speak amqp":               {Brokers: []brokerurl.Broker{{Protocol: brokerurl.NATS, Address: "h:4222"}}, Topics: []string{"notification"}},
	} {
		o.Name, o.Logger = "event_hub", zerolog.Nop()
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q in it", err, name)
		}
	}
}

// BenchmarkDelivery measures a message from its publisher through the broker to the settled delivery.
func BenchmarkDelivery(b *testing.B) {
	rabbit := harness.Shared(b)
	r := &counter{connected: make(chan struct{}), done: make(chan struct{})}
	s := source(b, Options{}, broker(b, rabbit.Address(), "/carbon"))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx, r) })
	b.Cleanup(func() { cancel(); running.Wait() })
	<-r.connected
	p := newPublisher(b, rabbit.URL("carbon"))
	body := []byte(`{"event":{"payloadData":{"throttleKey":"12:dana@carbon.super","isThrottled":true,"expiryTimeStamp":1764000060000,"evaluatedConditions":null}}}`)
	r.left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := p.ch.PublishWithContext(ctx, "amq.topic", "throttleData", false, false, amqp091.Publishing{ContentType: "text/plain", Body: body}); err != nil {
			b.Fatal(err)
		}
	}
	<-r.done
}

// counter is a handler that counts down.
type counter struct {
	connected, done chan struct{}
	left            atomic.Int64
}

func (c *counter) OnState(s eventsource.State) {
	if s.Kind == eventsource.Connected {
		close(c.connected)
	}
}

func (c *counter) OnMessage(event.Message) {
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
}
