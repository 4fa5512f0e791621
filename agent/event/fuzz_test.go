package event

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// equateNaN lets a map with a NaN equal itself.
var equateNaN = cmpopts.EquateNaNs()

// seed adds every sample of a content type.
func seed(f *testing.F, contentType string, add func(Message)) {
	for _, s := range samples(f) {
		if s.AMQP.ContentType == contentType {
			add(s.message(f))
		}
		if contentType == "jms/map-message" && s.LegacyBodyBase64 != "" {
			add(s.legacy(f))
		}
	}
	for _, r := range recordedMaps(f) {
		for _, form := range r.Forms {
			if form.ContentType == contentType && len(form.Hex) > 0 {
				add(Message{Topic: TopicThrottleData, Body: r.bodyOf(f, form)})
			}
		}
	}
	var file struct {
		Cases []struct{ ContentType, Hex, BodyText string }
	}
	readJSON(f, "testdata/events-binary/decoder-cases.json", &file)
	for _, c := range file.Cases {
		if c.ContentType == contentType {
			add(Message{Topic: TopicThrottleData, Body: unhex(f, c.Hex)})
		}
	}
	if contentType == "text/plain" {
		readJSON(f, "testdata/events-binary/text-bodies.json", &file)
		for _, c := range file.Cases {
			add(Message{Topic: TopicThrottleData, Body: []byte(c.BodyText)})
		}
	}
}

// checkDecode decodes and wants either events or a *DecodeError whose texts may be logged.
func checkDecode(t *testing.T, m Message) []Event {
	t.Helper()
	events, err := Decode(m)
	var bad *DecodeError
	switch {
	case err == nil && len(events) == 0:
		t.Fatal("neither an event nor an error")
	case err != nil && (!errors.As(err, &bad) || events != nil):
		t.Fatalf("%v, %T %v", events, err, err)
	}
	if e := Excerpt(m); len(e) > excerptBytes || strings.ContainsAny(e, "\n\r\x00") {
		t.Fatalf("excerpt %q", e)
	}
	return events
}

// FuzzText decodes JSON text. What decodes is written again from its attributes, and must give the same events.
func FuzzText(f *testing.F) {
	seed(f, "text/plain", func(m Message) { f.Add(m.Topic, m.Body) })
	f.Fuzz(func(t *testing.T, topic string, body []byte) {
		m := Message{Topic: topic, ContentType: "text/plain", Timestamp: 5, Body: body}
		events := checkDecode(t, m)
		attributes, err := DecodeMap(m)
		if err != nil {
			return
		}
		m.Body = encodeText(t, attributes)
		if diff := cmp.Diff(events, checkDecode(t, m), equateNaN); diff != "" {
			t.Errorf("written again as %s (-first +second):\n%s", m.Body, diff)
		}
	})
}

// FuzzInnerEvent decodes a notification's inner event of every type, given as JSON and as base64 of it.
func FuzzInnerEvent(f *testing.F) {
	for _, s := range samples(f) {
		if len(s.DecodedEvent) > 0 {
			f.Add(strings.Trim(string(mustField(f, s.DecodedEvent, "type")), `"`), []byte(s.DecodedEvent))
		}
	}
	f.Fuzz(func(t *testing.T, eventType string, inner []byte) {
		attributes := map[string]any{"eventType": eventType, "timestamp": json.Number("5"), "event": string(inner)}
		events := checkDecode(t, Message{Topic: TopicNotification, ContentType: "text/plain", Body: encodeText(t, attributes)})
		object, err := decodeObject(trimText([]byte(string([]rune(string(inner))))))
		if err != nil {
			return
		}
		attributes["event"] = object
		again := checkDecode(t, Message{Topic: TopicNotification, ContentType: "text/plain", Body: encodeText(t, attributes)})
		if diff := cmp.Diff(events, again, equateNaN); diff != "" {
			t.Errorf("as text and as an object (-text +object):\n%s", diff)
		}
	})
}

func mustField(f *testing.F, object json.RawMessage, name string) json.RawMessage {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil {
		f.Fatal(err)
	}
	return m[name]
}

// FuzzAMQPMap decodes a map, writes it and decodes it again: the same map and the same events must come out.
func FuzzAMQPMap(f *testing.F) {
	seed(f, "amqp/map", func(m Message) { f.Add(m.Topic, m.Body) })
	f.Fuzz(func(t *testing.T, topic string, body []byte) {
		m := Message{Topic: topic, ContentType: "amqp/map", Body: body}
		events := checkDecode(t, m)
		first, err := DecodeAMQPMap(body)
		if err != nil || first == nil || longKey(first) {
			return
		}
		m.Body = encodeAMQPMap(t, first, slices.Sorted(maps.Keys(first)))
		second, err := DecodeAMQPMap(m.Body)
		if diff := cmp.Diff(first, second, equateNaN); err != nil || diff != "" {
			t.Fatalf("%v (-first +second):\n%s", err, diff)
		}
		if diff := cmp.Diff(events, checkDecode(t, m), equateNaN); diff != "" {
			t.Errorf("events (-first +second):\n%s", diff)
		}
	})
}

// longKey is true for a map that amqp/map cannot carry: U+FFFD has made a key longer than it was.
func longKey(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if len(key) > 255 || longKey(value) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, longKey)
	}
	return false
}

// FuzzJMSMap does the same with the legacy form, and with the other form of the same map.
func FuzzJMSMap(f *testing.F) {
	seed(f, "jms/map-message", func(m Message) { f.Add(m.Topic, m.Body) })
	f.Fuzz(func(t *testing.T, topic string, body []byte) {
		m := Message{Topic: topic, ContentType: "jms/map-message", Body: body}
		events := checkDecode(t, m)
		first, err := DecodeJMSMap(body)
		if err != nil {
			return
		}
		order := slices.Sorted(maps.Keys(first))
		m.Body = encodeJMSMap(t, first, order)
		second, err := DecodeJMSMap(m.Body)
		if diff := cmp.Diff(first, second, equateNaN); err != nil || diff != "" {
			t.Fatalf("%v (-first +second):\n%s", err, diff)
		}
		if longKey(first) {
			return
		}
		m.ContentType, m.Body = "amqp/map", encodeAMQPMap(t, first, order)
		if diff := cmp.Diff(events, checkDecode(t, m), equateNaN); diff != "" {
			t.Errorf("events (-jms +amqp):\n%s", diff)
		}
	})
}
