package broker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"gatehouse/integration/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type mapSample struct {
	Name      string `json:"name"`
	MapFields []struct {
		Name  string          `json:"name"`
		Type  string          `json:"type"`
		Value json.RawMessage `json:"value"`
	} `json:"mapFields"`
	BodyBase64       string `json:"bodyBase64"`
	LegacyBodyBase64 string `json:"legacyBodyBase64"`
}

// payload takes the fields of a sample, reordered as Andes' hash table wrote them.
func (s mapSample) payload(t *testing.T) Payload {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(s.BodyBase64)
	if err != nil {
		t.Fatal(err)
	}
	var p Payload
	for _, f := range s.MapFields {
		field := Field{Name: f.Name}
		if string(f.Value) != "null" {
			var err error
			switch f.Type {
			case "string":
				var v string
				err = json.Unmarshal(f.Value, &v)
				field.Value = v
			case "boolean":
				var v bool
				err = json.Unmarshal(f.Value, &v)
				field.Value = v
			case "int":
				var v int32
				err = json.Unmarshal(f.Value, &v)
				field.Value = v
			case "long":
				var v int64
				err = json.Unmarshal(f.Value, &v)
				field.Value = v
			default:
				t.Fatalf("type %s", f.Type)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		p = append(p, field)
	}
	at := func(f Field) int { return bytes.Index(raw, append([]byte{byte(len(f.Name))}, f.Name...)) }
	for i := range p {
		for j := i + 1; j < len(p); j++ {
			if at(p[j]) < at(p[i]) {
				p[i], p[j] = p[j], p[i]
			}
		}
	}
	return p
}

// TestMapsAreTheBytesOfTheRealEncoder compares with what Andes' own message classes wrote.
func TestMapsAreTheBytesOfTheRealEncoder(t *testing.T) {
	files, err := filepath.Glob("../testdata/events/*-map-*.json")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d samples, %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s mapSample
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		t.Run(s.Name, func(t *testing.T) {
			p := s.payload(t)
			for encoding, want := range map[Encoding]string{AMQPMap: s.BodyBase64, JMSMap: s.LegacyBodyBase64} {
				got, err := p.Encode(encoding)
				if err != nil {
					t.Fatal(err)
				}
				if text := base64.StdEncoding.EncodeToString(got); text != want {
					t.Errorf("%s:\n got %s\nwant %s", encoding, text, want)
				}
			}
		})
	}
}

// TestTextIsWhatTheManagerSends compares with the samples, byte for byte: no blanks, the order of the stream.
func TestTextIsWhatTheManagerSends(t *testing.T) {
	p := Payload{
		{"id", int32(4)},
		{"blockingCondition", "IP"},
		{"conditionValue", `{"fixedIp":"192.168.1.10","invert":false}`},
		{"state", "true"},
		{"tenantDomain", "carbon.super"},
	}
	b, err := os.ReadFile("../testdata/events/throttleData-block-ip-on.json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct{ Body json.RawMessage }
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := json.Compact(&want, s.Body); err != nil {
		t.Fatal(err)
	}
	got, err := p.Encode(JSON)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Error(diff)
	}
	for name, bad := range map[string]Payload{"float": {{"x", 1.5}}} {
		for _, e := range []Encoding{JSON, AMQPMap, JMSMap} {
			if _, err := bad.Encode(e); err == nil {
				t.Errorf("%s was encoded as %s", name, e)
			}
		}
	}
	if _, err := (Payload{{"x", "a\x00b"}}).Encode(JMSMap); err == nil {
		t.Error("a NUL was encoded as jms/map-message")
	}
}

func hub(t *testing.T, o Options) *Hub {
	t.Helper()
	h, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func numbered(i int) Payload { return Payload{{"n", int32(i)}} }

func TestKnobs(t *testing.T) {
	for _, test := range []struct {
		name  string
		knobs Knobs
		sent  int
		want  []int
	}{
		{"none", Knobs{}, 3, []int{1, 2, 3}},
		{"swap", Knobs{Swap: 1}, 4, []int{2, 1, 3, 4}},
		{"swap twice", Knobs{Swap: 2}, 4, []int{2, 1, 4, 3}},
		{"duplicate", Knobs{Duplicate: 2}, 3, []int{1, 1, 2, 2, 3}},
		{"drop", Knobs{Drop: 2}, 3, []int{3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := hub(t, Options{})
			nc, err := nats.Connect(h.URL())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			sub, err := nc.SubscribeSync("gatehouse.event.throttledata")
			if err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			h.SetKnobs(test.knobs)
			for i := range test.sent {
				if err := h.Publish(TopicThrottleData, numbered(i+1), 1764000000000); err != nil {
					t.Fatal(err)
				}
			}
			var got []int
			for range test.want {
				m, err := sub.NextMsg(5 * time.Second)
				if err != nil {
					t.Fatalf("after %v: %v", got, err)
				}
				var body struct {
					Event struct {
						PayloadData struct{ N int } `json:"payloadData"`
					} `json:"event"`
				}
				if err := json.Unmarshal(m.Data, &body); err != nil {
					t.Fatal(err)
				}
				got = append(got, body.Event.PayloadData.N)
				if m.Header.Get("Content-Type") != "text/plain" || m.Header.Get("Gatehouse-Sent") != "1764000000000" {
					t.Errorf("header %v", m.Header)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheBrokerGoesAndComesBack(t *testing.T) {
	h := hub(t, Options{})
	url := h.URL()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	publish := func() Stats {
		t.Helper()
		if err := h.Publish(TopicNotification, numbered(1), 1); err != nil {
			t.Fatal(err)
		}
		if err := h.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		return h.Stats()
	}
	if s := publish(); s.Published[TopicNotification] != 1 || s.Lost != 0 {
		t.Fatalf("before: %+v", s)
	}
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	if s := publish(); s.Lost != 1 {
		t.Errorf("while away: %+v, want the message lost", s)
	}
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	if h.URL() != url {
		t.Errorf("came back at %s, was at %s", h.URL(), url)
	}
	for {
		if s := publish(); s.Published[TopicNotification] > 1 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("never published again: %+v", h.Stats())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestWrongAddresses(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, o := range []Options{{URL: "http://localhost"}, {URL: "nats://127.0.0.1:1"}, {URL: "amqp://guest:guest@127.0.0.1:1/"}, {NATSAddress: "nowhere"}, {Encoding: "xml"}} {
		if h, err := Open(ctx, o); err == nil {
			h.Close()
			t.Errorf("%+v was opened", o)
		}
	}
}

// TestPropertiesOnARealBroker reads back from RabbitMQ what the hub published.
func TestPropertiesOnARealBroker(t *testing.T) {
	rabbit := harness.StartRabbitMQ(t)
	h := hub(t, Options{URL: rabbit.URL("/")})
	conn, err := amqp.Dial(rabbit.URL("/"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range Topics() {
		if err := ch.QueueBind(q.Name, topic, "amq.topic", false, nil); err != nil {
			t.Fatal(err)
		}
	}
	deliveries, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	next := func() amqp.Delivery {
		t.Helper()
		select {
		case d := <-deliveries:
			return d
		case <-time.After(10 * time.Second):
			t.Fatal("nothing was delivered")
			return amqp.Delivery{}
		}
	}
	const at = 1764000000123
	for _, test := range []struct {
		encoding          Encoding
		kind, contentCode string
	}{{JSON, "text/plain", "UTF-8"}, {AMQPMap, "amqp/map", ""}, {JMSMap, "jms/map-message", ""}} {
		t.Run(string(test.encoding), func(t *testing.T) {
			if err := h.SetEncoding(TopicKeyManager, test.encoding); err != nil {
				t.Fatal(err)
			}
			if err := h.Publish(TopicKeyManager, numbered(7), at); err != nil {
				t.Fatal(err)
			}
			d := next()
			want, err := numbered(7).Encode(test.encoding)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(d.Body, want) {
				t.Errorf("body %q, want %q", d.Body, want)
			}
			if d.RoutingKey != "keyManager" || d.Exchange != "amq.topic" || d.ContentType != test.kind || d.ContentEncoding != test.contentCode ||
				d.DeliveryMode != 2 || d.Priority != 4 || d.Timestamp.Unix() != at || !strings.HasPrefix(d.MessageId, "ID:") || d.UserId != "" || d.Expiration != "" {
				t.Errorf("delivery %+v", d)
			}
			if d.Headers["JMS_QPID_DESTTYPE"] != int32(2) {
				t.Errorf("headers %v", d.Headers)
			}
		})
	}
	t.Run("the broker closes the connection", func(t *testing.T) {
		rabbit.CloseConnections(t, "for a test")
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for before := h.Stats().Published[TopicNotification]; h.Stats().Published[TopicNotification] < before+2; {
			if ctx.Err() != nil {
				t.Fatalf("never published again: %+v", h.Stats())
			}
			if err := h.Publish(TopicNotification, numbered(2), at); err != nil {
				t.Fatal(err)
			}
			if err := h.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if !h.Stats().Connected {
			t.Error("not connected")
		}
	})
}
