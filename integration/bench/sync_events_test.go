package main_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	amqp "github.com/rabbitmq/amqp091-go"

	"gatehouse/integration/emulator"
)

// lane is a sequence of events of which each is published after the one before it: what concerns one entity stays in one
// lane, so that nothing overtakes itself.
type lane struct {
	topic string
	share int // of 100 events
	// event appends the body of the next event, of a time in milliseconds.
	event func(b []byte, n int, at int64) []byte
}

// lanes are the events of a busy API Manager: decisions of the traffic manager, changes of subscriptions and keys that are
// loaded, revoked tokens, deny policies that are switched on and off.
func lanes(large *emulator.Generated) []lane {
	inner := make([]byte, 0, 1024)
	notification := func(b []byte, kind string, at int64, event []byte) []byte {
		b = append(append(b, `{"event":{"payloadData":{"eventType":"`...), kind...)
		b = strconv.AppendInt(append(b, `","timestamp":`...), at, 10)
		b = base64.StdEncoding.AppendEncode(append(b, `,"event":"`...), event)
		return append(b, `"}}}`...)
	}
	trailer := func(b []byte, kind string, prefix byte, n int, at int64) []byte {
		b = fmt.Appendf(b, `,"eventId":"%c0000000-0000-4000-8000-%012d","timeStamp":`, prefix, n)
		b = strconv.AppendInt(b, at, 10)
		b = append(append(b, `,"type":"`...), kind...)
		return append(b, `","tenantId":-1234,"tenantDomain":"carbon.super"}`...)
	}
	random := rand.New(rand.NewPCG(3, 4))
	subscriptions := func(b []byte, n int, at int64) []byte {
		s := large.Subscription(random.IntN(large.Subscriptions))
		state := "UNBLOCKED"
		if n%2 == 1 {
			state = "BLOCKED"
		}
		inner = fmt.Appendf(inner[:0], `{"subscriptionId":%d,"subscriptionUUID":"%s","apiId":%d,"apiUUID":"%s","applicationId":%d,"applicationUUID":"%s","policyId":"%s","subscriptionState":"%s"`,
			s.SubscriptionID, s.SubscriptionUUID, s.APIID, s.APIUUID, s.AppID, s.ApplicationUUID, s.PolicyID, state)
		return notification(b, "SUBSCRIPTIONS_UPDATE", at, trailer(inner, "SUBSCRIPTIONS_UPDATE", 'a', n, at))
	}
	keys := func(b []byte, n int, at int64) []byte {
		k := large.KeyMapping(random.IntN(large.Mappings))
		inner = fmt.Appendf(inner[:0], `{"applicationUUID":"%s","applicationId":%d,"consumerKey":"%s","keyType":"%s","keyManager":"%s"`,
			k.ApplicationUUID, k.ApplicationID, k.ConsumerKey, k.KeyType, k.KeyManager)
		return notification(b, "APPLICATION_REGISTRATION_CREATE", at, trailer(inner, "APPLICATION_REGISTRATION_CREATE", 'b', n, at))
	}
	decisions := func(b []byte, n int, at int64) []byte {
		return fmt.Appendf(b, `{"event":{"payloadData":{"throttleKey":"%d:/gen/%d/1.0.0:1.0.0","isThrottled":%t,"expiryTimeStamp":%d,"evaluatedConditions":null}}}`,
			n%20_000, n%100, n/20_000%2 == 0, at+60_000)
	}
	revocations := func(b []byte, n int, at int64) []byte {
		return fmt.Appendf(b, `{"event":{"payloadData":{"eventId":"c0000000-0000-4000-8000-%012d","revokedToken":"d0000000-0000-4000-8000-%012d","ttl":"3600","expiryTime":%d,"type":"JWT","tenantId":-1234}}}`,
			n, n, at+3_600_000)
	}
	deny := func(b []byte, n int, _ int64) []byte {
		return fmt.Appendf(b, `{"event":{"payloadData":{"id":%d,"blockingCondition":"IP","conditionValue":"{\"fixedIp\":\"10.1.2.%d\",\"invert\":false}","state":"%t","tenantDomain":"carbon.super"}}}`,
			1000+n%200, n%200, n/200%2 == 0)
	}
	return []lane{
		{"throttleData", 45, decisions},
		{"notification", 40, func(b []byte, n int, at int64) []byte {
			if n%4 == 3 {
				return keys(b, n, at)
			}
			return subscriptions(b, n, at)
		}},
		{"tokenRevocation", 10, revocations},
		{"throttleData", 5, deny},
	}
}

// publisher is a connection to a broker that publishes for one lane.
type publisher interface {
	publish(ctx context.Context, topic string, at int64, body []byte) error
	// flush returns when the broker has everything.
	flush(ctx context.Context) error
	close()
}

type natsPublisher struct{ c *nats.Conn }

func (p natsPublisher) publish(_ context.Context, topic string, at int64, body []byte) error {
	return p.c.PublishMsg(&nats.Msg{
		Subject: "gatehouse.event." + strings.ToLower(topic), Data: body,
		Header: nats.Header{"Content-Type": {"text/plain"}, "Gatehouse-Sent": {strconv.FormatInt(at, 10)}},
	})
}
func (p natsPublisher) flush(ctx context.Context) error { return p.c.FlushWithContext(ctx) }
func (p natsPublisher) close()                          { p.c.Close() }

type amqpPublisher struct {
	c  *amqp.Connection
	ch *amqp.Channel
}

func (p amqpPublisher) publish(ctx context.Context, topic string, at int64, body []byte) error {
	return p.ch.PublishWithContext(ctx, "amq.topic", topic, false, false, amqp.Publishing{
		ContentType: "text/plain", ContentEncoding: "UTF-8", DeliveryMode: 2, Priority: 4, Body: body,
		Headers:   amqp.Table{"JMS_QPID_DESTTYPE": int32(2)},
		Timestamp: time.Unix(at, 0), // milliseconds where the protocol has seconds, as Andes does
	})
}

// flush asks something of the channel: its answer comes after everything before has been taken in.
func (p amqpPublisher) flush(context.Context) error {
	return p.ch.ExchangeDeclarePassive("amq.topic", "topic", true, false, false, false, nil)
}
func (p amqpPublisher) close() { _ = p.c.Close() } // everything is flushed

func connect(url string) (publisher, error) {
	if strings.HasPrefix(url, "nats://") {
		c, err := nats.Connect(url, nats.Name("bench"))
		return natsPublisher{c}, err
	}
	c, err := amqp.Dial(url)
	if err != nil {
		return nil, err
	}
	ch, err := c.Channel()
	return amqpPublisher{c, ch}, err
}

// run publishes rate events a second of a lane until the time is over, evenly over each hundredth of a second, and
// counts them. It falls behind where the broker or this process cannot keep up, and never tries to make up for more than a
// tenth of a second.
func (l lane) run(ctx context.Context, p publisher, rate int, lasting time.Duration, count func(n int)) error {
	const tick = 10 * time.Millisecond
	var body []byte
	sent, began := 0, time.Now()
	for {
		elapsed := time.Since(began)
		if elapsed >= lasting {
			return p.flush(ctx)
		}
		due := int(float64(rate) * elapsed.Seconds())
		burst := min(due-sent, rate/10)
		if burst < due-sent { // what was missed is missed
			began = began.Add(time.Duration(float64(due-sent-burst) / float64(rate) * float64(time.Second)))
			lasting -= time.Duration(float64(due-sent-burst) / float64(rate) * float64(time.Second))
		}
		count(burst) // before: a backlog is never shown smaller than it is
		for range burst {
			at := time.Now().UnixMilli()
			body = l.event(body[:0], sent, at)
			if err := p.publish(ctx, l.topic, at, body); err != nil {
				return err
			}
			sent++
		}
		time.Sleep(tick - time.Since(began)%tick)
	}
}

// look is one look at the gateway while events come in.
type look struct {
	at                         time.Duration
	published, applied, queued int
}

func benchEvents(t *testing.T, p plan, program, eventHub string, rate int) {
	// The tables are those of the large load, so that changes fall on rows of a full store.
	w := newWorld(t, eventHub, &p)
	g := startGateway(t, program, w, t.TempDir())
	g.waitReady(10 * time.Minute)
	g.waitConnected(time.Minute)
	time.Sleep(min(p.lasting, 3*time.Second)) // past the window of the lists: an event of now is newer than they are

	url := w.emu.Hub().URL()
	ctx, cancel := context.WithTimeout(t.Context(), p.lasting+2*time.Minute)
	defer cancel()
	before, cpu, own, began := g.state(), g.cpu(), ownCPU(), time.Now()
	var (
		group     sync.WaitGroup
		mu        sync.Mutex
		published int
	)
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		published += n
	}
	sent := func() int {
		mu.Lock()
		defer mu.Unlock()
		return published
	}
	for _, l := range lanes(w.large) {
		pub, err := connect(url)
		if err != nil {
			t.Fatalf("publisher: %v", err)
		}
		defer pub.close()
		group.Go(func() {
			if err := l.run(ctx, pub, rate*l.share/100, p.lasting, count); err != nil {
				t.Errorf("publish on %s: %v", l.topic, err)
			}
		})
	}
	finished := make(chan struct{})
	go func() {
		group.Wait()
		close(finished)
	}()
	var looks []look
	see := func() (applied int) {
		n := sent()
		s := g.state()
		applied = int(s.hub.EventsApplied - before.hub.EventsApplied + s.ignored() - before.ignored())
		looks = append(looks, look{time.Since(began), n, applied, s.hub.Queue})
		return applied
	}
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for publishing := true; publishing; {
		select {
		case <-finished:
			publishing = false
		case <-ticker.C:
			see()
		}
	}
	see()
	during := looks
	over := time.Now()
	took := over.Sub(began)
	for see() < sent() && time.Since(over) < p.catchUp+20*time.Second {
		time.Sleep(5 * time.Millisecond)
	}
	late := time.Since(over)
	after := g.state()
	spent, ownSpent := g.cpu()-cpu, ownCPU()-own
	total := sent()
	applied := int(after.hub.EventsApplied - before.hub.EventsApplied)

	achieved := float64(total) / took.Seconds()
	say(t, "%d events published in %.2f s: %.0f a second (%d asked for); all applied %.2f s after the last was with the broker", total, took.Seconds(), achieved, rate, late.Seconds())
	say(t, "  processor time: gateway %.2f s, %.1f µs an event, %.0f %% of one core; publishers, emulated API Manager (and NATS server) %.2f s; memory: %s",
		spent.Seconds(), float64(spent.Microseconds())/float64(total), 100*spent.Seconds()/(took+late).Seconds(), ownSpent.Seconds(), g.memory())
	open := func(l look) int { return l.published - l.applied }
	ending := during[len(during)-len(during)/3-1:]
	first, last, lowest := backlog(during[:len(during)/3+1]), backlog(ending), -most(ending, func(l look) int { return -open(l) })
	say(t, "  published, not yet applied: mean %.0f in the first third, %.0f in the last third (lowest %d), at most %d; queue of the gateway at most %d; ignored: %v",
		first, last, lowest, most(during, open), most(during, func(l look) int { return l.queued }), after.hub.EventsIgnored)

	if applied != total {
		t.Errorf("%d of %d events were applied; ignored: %v", applied, total, after.hub.EventsIgnored)
	}
	if late > p.catchUp {
		t.Errorf("the last event was applied %.2f s after it was published, more than %s", late.Seconds(), p.catchUp)
	}
	if p.denyP50 == 0 { // the short run judges no speed
		return
	}
	if achieved < 0.98*float64(rate) {
		t.Errorf("only %.0f events a second could be published, not %d", achieved, rate)
	}
	// Whatever else runs on the machine makes a backlog that goes away again. One that grows, be it by one event in a
	// hundred, has a tenth of a second's events in the last third that never go.
	if lowest > rate/10 {
		t.Errorf("the backlog grows: from %.0f to %.0f events, and never below %d in the last third", first, last, lowest)
	}
}

// backlog is the mean of what was published and not yet applied.
func backlog(looks []look) float64 {
	sum := 0
	for _, l := range looks {
		sum += l.published - l.applied
	}
	return float64(sum) / float64(max(len(looks), 1))
}

// most is the largest value of f.
func most(looks []look, f func(look) int) int {
	n := f(looks[0])
	for _, l := range looks {
		n = max(n, f(l))
	}
	return n
}
