package amqp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/sourcetest"
	"gatehouse/integration/harness"
)

// sample is a message of the contract with its properties; the decoder's package keeps them.
type sample struct {
	Name string `json:"name"`
	AMQP struct {
		Exchange        string         `json:"exchange"`
		RoutingKey      string         `json:"routingKey"`
		ContentType     string         `json:"contentType"`
		ContentEncoding string         `json:"contentEncoding"`
		TimestampMillis int64          `json:"timestampMillis"`
		DeliveryMode    uint8          `json:"deliveryMode"`
		Headers         map[string]int `json:"headers"`
	} `json:"amqp"`
	Body       json.RawMessage `json:"body"`
	BodyText   string          `json:"bodyText"`
	BodyBase64 string          `json:"bodyBase64"`
}

func (s sample) body(t *testing.T) []byte {
	switch {
	case s.BodyText != "":
		return []byte(s.BodyText)
	case s.BodyBase64 != "":
		b, err := base64.StdEncoding.DecodeString(s.BodyBase64)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var b bytes.Buffer
	if err := json.Compact(&b, s.Body); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestEverySampleOverRabbitMQ publishes each sample with the properties it names and wants the same event as from its
// bytes alone.
func TestEverySampleOverRabbitMQ(t *testing.T) {
	rabbit := harness.Shared(t)
	files, err := filepath.Glob("../../event/testdata/events/*.json")
	if err != nil || len(files) != 116 {
		t.Fatalf("%d samples, %v, want 116", len(files), err)
	}
	topics := []string{
		event.TopicNotification, event.TopicKeyManager, event.TopicTokenRevocation, event.TopicThrottleData,
		event.TopicCacheInvalidation, event.TopicAsyncWebhooks, event.TopicOpaqueAPIKey,
	}
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{Topics: topics}, broker(t, rabbit.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	p := newPublisher(t, rabbit.URL("carbon"))
	byID := map[string]sample{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s sample
		if err := json.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		headers := amqp091.Table{}
		for name, value := range s.AMQP.Headers {
			headers[name] = int32(value)
		}
		byID["ID:"+s.Name] = s
		p.publish(s.AMQP.RoutingKey, amqp091.Publishing{
			ContentType: s.AMQP.ContentType, ContentEncoding: s.AMQP.ContentEncoding, DeliveryMode: s.AMQP.DeliveryMode, Priority: 4,
			MessageId: "ID:" + s.Name, Timestamp: time.Unix(s.AMQP.TimestampMillis, 0), Headers: headers, Body: s.body(t),
		})
	}
	r.Await(t, "every sample", 20*time.Second, func() bool { return len(r.Messages()) == len(files) })
	for _, m := range r.Messages() {
		s, ok := byID[m.MessageID]
		if !ok {
			t.Fatalf("message %s was not published, or came twice", m.MessageID)
		}
		delete(byID, m.MessageID)
		want, wantErr := event.Decode(event.Message{
			Topic: s.AMQP.RoutingKey, ContentType: s.AMQP.ContentType, Timestamp: s.AMQP.TimestampMillis, Body: s.body(t),
		})
		got, err := event.Decode(m)
		if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: %v, want %v (-bytes +delivered):\n%s", s.Name, err, wantErr, diff)
		}
	}
}

// TestLowerCaseRoutingKey publishes as Andes may deliver: the topic folded to lower case, from a queue bound so.
func TestLowerCaseRoutingKey(t *testing.T) {
	rabbit := harness.Shared(t)
	r := sourcetest.NewRecorder()
	// RabbitMQ does not fold; a source given the folded name stands for a broker that does.
	sourcetest.Run(t, source(t, Options{Topics: []string{"throttledata"}}, broker(t, rabbit.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	newPublisher(t, rabbit.URL("carbon")).text("throttledata",
		`{"event":{"payloadData":{"throttleKey":"k","isThrottled":true,"expiryTimeStamp":1764000060000,"evaluatedConditions":null}}}`)
	r.Await(t, "the decision", 10*time.Second, func() bool { return len(r.Messages()) == 1 })
	events, err := event.Decode(r.Messages()[0])
	if err != nil {
		t.Fatal(err)
	}
	if d, ok := events[0].(event.ThrottleDecision); !ok || d.Key != "k" || d.Type != event.TopicThrottleData {
		t.Errorf("decoded to %+v", events[0])
	}
}

// TestBodyOfSeveralFrames publishes a body longer than a frame.
func TestBodyOfSeveralFrames(t *testing.T) {
	rabbit := harness.Shared(t)
	r := sourcetest.NewRecorder()
	sourcetest.Run(t, source(t, Options{}, broker(t, rabbit.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)
	want := bytes.Repeat([]byte("0123456789"), 30000)
	newPublisher(t, rabbit.URL("carbon")).publish("throttleData", amqp091.Publishing{Body: want})
	r.Await(t, "the message", 10*time.Second, func() bool { return len(r.Messages()) == 1 })
	if got := r.Messages()[0].Body; !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, want %d", len(got), len(want))
	}
}
