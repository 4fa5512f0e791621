package event

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// sample is one file of testdata/events, the recorded and written messages of the contract.
type sample struct {
	Name  string `json:"name"`
	Topic string `json:"topic"`
	AMQP  struct {
		RoutingKey      string `json:"routingKey"`
		ContentType     string `json:"contentType"`
		ContentEncoding string `json:"contentEncoding"`
		TimestampMillis int64  `json:"timestampMillis"`
	} `json:"amqp"`
	Body                json.RawMessage `json:"body"`
	BodyText            string          `json:"bodyText"`
	BodyBase64          string          `json:"bodyBase64"`
	LegacyBodyBase64    string          `json:"legacyBodyBase64"`
	MapFields           []mapField      `json:"mapFields"`
	DecodedEvent        json.RawMessage `json:"decodedEvent"`
	DecodedValue        json.RawMessage `json:"decodedValue"`
	DecodedConditions   json.RawMessage `json:"decodedConditions"`
	DecodedRevokedToken json.RawMessage `json:"decodedRevokedToken"`
}

type mapField struct {
	Name  string          `json:"name"`
	Type  string          `json:"type"`
	Value json.RawMessage `json:"value"`
}

func samples(tb testing.TB) []sample {
	tb.Helper()
	files, err := filepath.Glob("testdata/events/*.json")
	if err != nil || len(files) != 116 {
		tb.Fatalf("testdata/events holds %d samples (%v), want 116", len(files), err)
	}
	all := make([]sample, 0, len(files))
	for _, file := range files {
		var s sample
		readJSON(tb, file, &s)
		if s.Name != filepath.Base(file[:len(file)-len(".json")]) {
			s.Name = filepath.Base(file[:len(file)-len(".json")])
		}
		all = append(all, s)
	}
	return all
}

func readJSON(tb testing.TB, file string, v any) {
	tb.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		tb.Fatalf("%s: %v", file, err)
	}
}

// message is the sample as a source hands it over.
func (s sample) message(tb testing.TB) Message {
	tb.Helper()
	m := Message{
		Topic:           s.AMQP.RoutingKey,
		ContentType:     s.AMQP.ContentType,
		ContentEncoding: s.AMQP.ContentEncoding,
		Timestamp:       s.AMQP.TimestampMillis,
	}
	switch {
	case s.BodyBase64 != "":
		m.Body = unbase64(tb, s.BodyBase64)
	case s.BodyText != "":
		m.Body = []byte(s.BodyText)
	default:
		m.Body = s.Body
	}
	return m
}

// legacy is a map sample in the jms/map-message form.
func (s sample) legacy(tb testing.TB) Message {
	tb.Helper()
	m := s.message(tb)
	m.ContentType = "jms/map-message"
	m.Body = unbase64(tb, s.LegacyBodyBase64)
	return m
}

func unbase64(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
