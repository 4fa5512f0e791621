package nats

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/agent/eventsource/sourcetest"
	"gatehouse/integration/harness"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The server library starts one for the process, at its first server, and has no way to stop it.
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).monitorAutoLimits"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*jetStream).monitorCluster"))
}

// start starts a server in this process; port -1 takes a free one.
func start(t *testing.T, change func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir()}
	if change != nil {
		change(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server is not ready within 10 s")
	}
	return s
}

func address(s *server.Server) string { return s.Addr().String() }

func source(t *testing.T, o Options, urls ...string) *Source {
	t.Helper()
	set, err := brokerurl.ParseAll(urls, brokerurl.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	o.Name, o.Brokers, o.Logger = "event_hub", set.Brokers, zerolog.Nop()
	if o.Topics == nil {
		o.Topics = []string{event.TopicThrottleData}
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func client(t *testing.T, address string, options ...natsgo.Option) *natsgo.Conn {
	t.Helper()
	c, err := natsgo.Connect("nats://"+address, append(options, natsgo.NoReconnect())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func publish(t *testing.T, c *natsgo.Conn, subject, body string, header natsgo.Header) {
	t.Helper()
	// Not Fatal: handlers publish from goroutines of the source.
	if err := c.PublishMsg(&natsgo.Msg{Subject: subject, Data: []byte(body), Header: header}); err != nil {
		t.Error(err)
	}
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
}

func TestMessagesArriveWithTheirHeaders(t *testing.T) {
	s := start(t, nil)
	r := sourcetest.NewRecorder()
	registry := prometheus.NewRegistry()
	sourcetest.Run(t, source(t, Options{Topics: []string{event.TopicKeyManager, event.TopicNotification}, Registerer: registry}, "nats://"+address(s)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	c := client(t, address(s))
	publish(t, c, "gatehouse.event.keymanager", "body", natsgo.Header{
		"Content-Type": {"amqp/map"}, "Gatehouse-Sent": {"1764000000123"}, "Nats-Msg-Id": {"ID:1"},
	})
	publish(t, c, "gatehouse.event.tokenrevocation", "not subscribed", nil)
	r.Await(t, "the message", 10*time.Second, func() bool { return len(r.Messages()) == 1 })
	m := r.Messages()[0]
	if m.Topic != "keyManager" || m.ContentType != "amqp/map" || m.Timestamp != 1764000000123 || m.MessageID != "ID:1" || string(m.Body) != "body" {
		t.Errorf("message is %+v", m)
	}
	want := `
# HELP gatehouse_event_source_connected Connections of an event source that are subscribed to every topic: 1, or 0 while it is away.
# TYPE gatehouse_event_source_connected gauge
gatehouse_event_source_connected{source="event_hub"} 1
# HELP gatehouse_event_source_messages_total Messages that an event source received, by topic.
# TYPE gatehouse_event_source_messages_total counter
gatehouse_event_source_messages_total{source="event_hub",topic="keyManager"} 1
gatehouse_event_source_messages_total{source="event_hub",topic="notification"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "gatehouse_event_source_connected", "gatehouse_event_source_messages_total"); err != nil {
		t.Error(err)
	}
}

func TestConnectedIsSaidOnlyWhenEveryTopicIsSubscribed(t *testing.T) {
	s := start(t, nil)
	c := client(t, address(s))
	topics := []string{event.TopicThrottleData, event.TopicNotification, event.TopicKeyManager, event.TopicTokenRevocation}
	r := sourcetest.NewRecorder()
	r.OnStateFunc = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			for _, topic := range topics {
				publish(t, c, "gatehouse.event."+strings.ToLower(topic), topic, nil)
			}
		}
	}
	sourcetest.Run(t, source(t, Options{Topics: topics}, "nats://"+address(s)), r)
	r.Await(t, "a message of each topic", 10*time.Second, func() bool { return len(r.Messages()) == len(topics) })
}

func TestServerGoesAndComesBack(t *testing.T) {
	first := start(t, nil)
	port := first.Addr().(*net.TCPAddr).Port
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, "nats://"+address(first)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	first.Shutdown()
	first.WaitForShutdown()
	r.AwaitState(t, eventsource.Disconnected, 1, 5*time.Second)
	second := start(t, func(o *server.Options) { o.Port = port })
	if took := r.AwaitState(t, eventsource.Connected, 2, 10*time.Second); took > 2*time.Second {
		t.Errorf("connected %s after the server's return, want at most 2 s", took)
	}
	publish(t, client(t, address(second)), "gatehouse.event.throttledata", "after", nil)
	r.Await(t, "a message after the return", 10*time.Second, func() bool { return slices.Contains(r.Bodies(), "after") })
}

func TestServerIsAwayAtTheStart(t *testing.T) {
	s := start(t, nil)
	proxy := harness.StartProxy(t, address(s))
	proxy.Refuse()
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, "nats://"+proxy.Address()), r)
	r.AwaitState(t, eventsource.Disconnected, 1, 5*time.Second)
	time.Sleep(300 * time.Millisecond) // more attempts, which are no news
	proxy.Resume()
	r.AwaitState(t, eventsource.Connected, 1, 5*time.Second)
	if n := r.Count(eventsource.Disconnected); n != 1 {
		t.Errorf("%d states say disconnected, want 1:\n%s", n, r.Trace())
	}
}

func TestHalfOpenConnectionIsGivenUpAfterThreePings(t *testing.T) {
	s := start(t, nil)
	proxy := harness.StartProxy(t, address(s))
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{Heartbeat: 100 * time.Millisecond}, "nats://"+proxy.Address()), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	proxy.Freeze()
	if took := r.AwaitState(t, eventsource.Disconnected, 1, 5*time.Second); took < 100*time.Millisecond || took > time.Second {
		t.Errorf("noticed after %s, want about 300 ms", took)
	}
	proxy.Resume()
	proxy.Cut()
	r.AwaitState(t, eventsource.Connected, 2, 10*time.Second)
}

func TestRefusals(t *testing.T) {
	s := start(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "gateway", Password: "right"},
			{Username: "narrow", Password: "right", Permissions: &server.Permissions{
				Subscribe: &server.SubjectPermission{Allow: []string{"gatehouse.event.notification"}},
			}},
		}
	})
	for name, credentials := range map[string]string{
		"wrong password":        "gateway:wrong-secret",
		"no credentials":        "",
		"no right to one topic": "narrow:right",
	} {
		t.Run(name, func(t *testing.T) {
			proxy := harness.StartProxy(t, address(s))
			url := "nats://" + proxy.Address()
			if credentials != "" {
				url = "nats://" + credentials + "@" + proxy.Address()
			}
			r := sourcetest.NewRecorder()
			sourcetest.Run(t, source(t, Options{RefusedDelay: 500 * time.Millisecond}, url), r)
			r.AwaitState(t, eventsource.Refused, 1, 10*time.Second)
			if err := r.States()[1].Err; err == nil || strings.Contains(err.Error(), "wrong-secret") {
				t.Errorf("refused with %v", err)
			}
			began := time.Now()
			for proxy.Accepted() < 2 {
				if time.Since(began) > 5*time.Second {
					t.Fatal("no second attempt within 5 s")
				}
				time.Sleep(5 * time.Millisecond)
			}
			if waited := time.Since(began); waited < 400*time.Millisecond {
				t.Errorf("tried again after %s, want RefusedDelay", waited)
			}
			if r.Count(eventsource.Connected) != 0 || r.Count(eventsource.Refused) != 1 {
				t.Errorf("states:\n%s", r.Trace())
			}
		})
	}
	t.Run("right credentials", func(t *testing.T) {
		r := sourcetest.NewRecorder()
		sourcetest.Run(t, source(t, Options{}, "nats://gateway:right@"+address(s)), r)
		r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	})
}

func TestToken(t *testing.T) {
	s := start(t, func(o *server.Options) { o.Authorization = "s3cr3t" })
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, "nats://s3cr3t@"+address(s)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
}

func TestTLS(t *testing.T) {
	certificate, roots := harness.Certificate(t, "127.0.0.1")
	s := start(t, func(o *server.Options) {
		o.TLSConfig, o.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}, true
	})
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{TLS: &tls.Config{RootCAs: roots}}, "tls://"+address(s)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)

	// The authorities may become known later.
	var now atomic.Pointer[x509.CertPool]
	now.Store(x509.NewCertPool())
	later := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{Roots: now.Load}, "tls://"+address(s)), later)
	later.AwaitState(t, eventsource.Disconnected, 1, 10*time.Second)
	now.Store(roots)
	later.AwaitState(t, eventsource.Connected, 1, 10*time.Second)

	// Without its authority the server is not believed, and that is no refusal of ours.
	other := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, "tls://"+address(s)), other)
	other.AwaitState(t, eventsource.Disconnected, 1, 10*time.Second)
	if err := other.States()[1].Err; !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("%v, want the certificate to be the reason", err)
	}
}

func TestSlowHandlerIsAGap(t *testing.T) {
	s := start(t, nil)
	r := sourcetest.NewRecorder()
	release := make(chan struct{})
	r.OnMessageFunc = func(event.Message) { <-release }
	sourcetest.Run(t, source(t, Options{Pending: 10}, "nats://"+address(s)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	c := client(t, address(s))
	for i := range 50 {
		publish(t, c, "gatehouse.event.throttledata", fmt.Sprint(i), nil)
	}
	r.AwaitState(t, eventsource.Gap, 1, 10*time.Second)
	close(release)
	r.Await(t, "the messages that were kept", 10*time.Second, func() bool { return len(r.Messages()) >= 10 })
	for began := time.Now(); !slices.Contains(r.Bodies(), "last"); { // the first ones may still find the queue full
		publish(t, c, "gatehouse.event.throttledata", "last", nil)
		if time.Since(began) > 10*time.Second {
			t.Fatal("nothing is delivered after the gap")
		}
	}
	if r.Count(eventsource.Disconnected) != 0 {
		t.Errorf("the connection was given up:\n%s", r.Trace())
	}
}

// TestGapsAreSpacedAndTheLastIsTold: one answer is enough for a burst of losses, but one must begin after the last of them.
func TestGapsAreSpacedAndTheLastIsTold(t *testing.T) {
	s := start(t, nil)
	r := sourcetest.NewRecorder()
	step := make(chan struct{})
	r.OnMessageFunc = func(event.Message) { <-step }
	sourcetest.Run(t, source(t, Options{Pending: 4}, "nats://"+address(s)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	c := client(t, address(s))
	began := time.Now()
	burst := func() {
		for range 50 {
			publish(t, c, "gatehouse.event.throttledata", "x", nil)
		}
	}
	burst()
	r.AwaitState(t, eventsource.Gap, 1, 10*time.Second)
	for range 200 { // a handler that is too slow all the time
		burst()
		step <- struct{}{}
	}
	lost := time.Now()
	close(step)
	r.Await(t, "a gap that is told after the last loss", 10*time.Second, func() bool {
		states := r.States()
		last := states[len(states)-1]
		return last.Kind == eventsource.Gap && last.Since.After(lost)
	})
	if n, most := r.Count(eventsource.Gap), int(time.Since(began)/gapPause)+2; n > most {
		t.Errorf("%d gaps were told in %v, want at most %d", n, time.Since(began), most)
	}
}

func TestRelayGap(t *testing.T) {
	s := start(t, nil)
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, "nats://"+address(s)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	c := client(t, address(s))
	publish(t, c, "gatehouse.relay.gap", `{"from":1764000000000,"to":1764000060000}`, nil)
	r.AwaitState(t, eventsource.Gap, 1, 10*time.Second)
	publish(t, c, "gatehouse.relay.gap", `nonsense`, nil)
	r.AwaitState(t, eventsource.Gap, 2, 10*time.Second)
	if err := r.States()[2].Err; err == nil || !strings.Contains(err.Error(), "2025-11-24T16:00:00Z") {
		t.Errorf("the gap is %v, want its times", err)
	}
}

// TestKeptDecisionsComeBeforeLiveOnes fills the relay's second stream and wants the last decision of each key, then what
// was published since the source subscribed.
func TestKeptDecisionsComeBeforeLiveOnes(t *testing.T) {
	s := start(t, nil)
	c := client(t, address(s))
	js, err := jetstream.New(c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "DECISIONS", Subjects: []string{"gatehouse.decision.>"}, MaxMsgsPerSubject: 1, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	const keys = 1500 // more than one fetch
	for round := range 2 {
		for key := range keys {
			m := &natsgo.Msg{
				Subject: fmt.Sprintf("gatehouse.decision.%016x", key), Data: fmt.Appendf(nil, "key %d round %d", key, round),
				Header: natsgo.Header{"Content-Type": {"text/plain"}},
			}
			if _, err := js.PublishMsgAsync(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(20 * time.Second):
		t.Fatal("the decisions are not stored within 20 s")
	}
	r := sourcetest.NewRecorder()
	r.OnStateFunc = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			publish(t, c, "gatehouse.event.throttledata", "live", nil)
		}
	}
	sourcetest.Run(t, source(t, Options{Topics: []string{event.TopicThrottleData, event.TopicNotification}}, "nats://"+address(s)), r)
	r.Await(t, "the live message", 20*time.Second, func() bool { return slices.Contains(r.Bodies(), "live") })
	bodies := r.Bodies()
	if len(bodies) != keys+1 || bodies[keys] != "live" {
		t.Fatalf("%d messages, the last %q; want %d decisions and then the live one", len(bodies), bodies[len(bodies)-1], keys)
	}
	for i, b := range bodies[:keys] {
		if b != fmt.Sprintf("key %d round 1", i) {
			t.Fatalf("decision %d is %q, want the last one of its key", i, b)
		}
	}
	if m := r.Messages()[0]; m.Topic != event.TopicThrottleData || m.ContentType != "text/plain" {
		t.Errorf("the first decision is %+v", m)
	}
}

// TestWhatWasPublishedMeanwhileIsReplayed cuts a source off from a server whose stream goes on, and wants what it missed
// before what is live.
func TestWhatWasPublishedMeanwhileIsReplayed(t *testing.T) {
	s := start(t, nil)
	c := client(t, address(s))
	js, err := jetstream.New(c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "GATEHOUSE", Subjects: []string{"gatehouse.event.>"}, Storage: jetstream.MemoryStorage})
	if err != nil {
		t.Fatal(err)
	}
	proxy := harness.StartProxy(t, address(s))
	publish(t, c, "gatehouse.event.notification", "before the first connection", nil)
	r := sourcetest.NewRecorder()
	connections := 0
	r.OnStateFunc = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			connections++
			publish(t, c, "gatehouse.event.notification", fmt.Sprintf("live %d", connections), nil)
		}
	}
	sourcetest.Run(t, source(t, Options{Topics: []string{event.TopicNotification, event.TopicKeyManager}}, "nats://"+proxy.Address()), r)
	r.Await(t, "the first live message", 10*time.Second, func() bool { return len(r.Messages()) == 1 })
	proxy.Refuse()
	r.AwaitState(t, eventsource.Disconnected, 1, 10*time.Second)
	for i := range 3 {
		publish(t, c, "gatehouse.event.notification", fmt.Sprintf("missed %d", i), nil)
	}
	proxy.Resume()
	r.Await(t, "what is live again, from the subscription", 10*time.Second, func() bool {
		n := 0
		for _, b := range r.Bodies() {
			if b == "live 2" {
				n++
			}
		}
		return n == 2 // the stream holds it as well
	})
	bodies := r.Bodies()
	// The margin lets what came before the loss come again; then comes what was missed, once.
	want := []string{"live 1", "missed 0", "missed 1", "missed 2", "live 2", "live 2"}
	if got := bodies[len(bodies)-len(want):]; !slices.Equal(got, want) {
		t.Errorf("received %q, want %q at the end", bodies, want)
	}
	if bodies[0] != "live 1" {
		t.Errorf("the first connection replayed %q", bodies[0])
	}
}

func TestServerWithoutJetStream(t *testing.T) {
	s := start(t, func(o *server.Options) { o.JetStream = false })
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, "nats://"+address(s)), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	publish(t, client(t, address(s)), "gatehouse.event.throttledata", "live", nil)
	if took := r.Await(t, "the live message", 10*time.Second, func() bool { return len(r.Messages()) == 1 }); took > time.Second {
		t.Errorf("the live message waited %s for decisions that nobody keeps", took)
	}
}

func TestHundredReconnectsLeakNothing(t *testing.T) {
	s := start(t, nil)
	proxy := harness.StartProxy(t, address(s))
	before := goleak.IgnoreCurrent()
	r := sourcetest.NewRecorder()
	// Each connection is cut as soon as it is up.
	r.OnStateFunc = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			proxy.Cut()
		}
	}
	stop := sourcetest.Run(t, source(t, Options{MinPause: time.Millisecond, MaxPause: time.Millisecond}, "nats://"+proxy.Address()), r)
	r.AwaitState(t, eventsource.Connected, 100, 30*time.Second)
	stop()
	goleak.VerifyNone(t, before)
	if n := s.NumClients(); n != 0 {
		t.Errorf("the server has %d clients left", n)
	}
}
