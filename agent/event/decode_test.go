package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/golden.json anew")

const goldenFile = "testdata/golden.json"

// TestSamplesGiveTheGoldenEvents compares every sample with the event written in golden.json, which was checked against
// the samples' own words by hand.
func TestSamplesGiveTheGoldenEvents(t *testing.T) {
	got := map[string]any{}
	for _, s := range samples(t) {
		events, err := Decode(s.message(t))
		if s.Name == "throttleData-malformed-unescaped" {
			var bad *DecodeError
			if !errors.As(err, &bad) || !bad.Dirty || bad.Topic != TopicThrottleData {
				t.Errorf("%s: %v, %v, want a dirty DecodeError of throttleData", s.Name, events, err)
			}
			continue
		}
		if err != nil || len(events) != 1 {
			t.Errorf("%s: %v, %v", s.Name, events, err)
			continue
		}
		got[s.Name] = map[string]any{"kind": fmt.Sprintf("%T", events[0]), "event": events[0]}
	}
	text, err := json.MarshalIndent(got, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(goldenFile, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(bytes.TrimSpace(want)), string(text)); diff != "" {
		t.Errorf("events differ from %s (-want +got):\n%s", goldenFile, diff)
	}
}

// unread are the attributes of the samples that no gateway needs.
var unread = map[string]bool{
	"securityScheme": true, "provider": true, "subscriberCount": true, "displayName": true, "description": true,
	"mappings": true, "resources": true, "keyTemplateState": true, "action": true, "policyType": true, "entityType": true,
	"apiName": true, "apiVersion": true, "mode": true, "event_type": true, "additionalProperties": true, "name": true,
	"apiType": true, "type": true,
}

// TestNothingOfASampleIsLost looks for each value of the decoded inner part among the fields of the event: an attribute
// that is read under a wrong name shows here whatever the golden file says.
func TestNothingOfASampleIsLost(t *testing.T) {
	for _, s := range samples(t) {
		if s.BodyText != "" {
			continue
		}
		events, err := Decode(s.message(t))
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
			continue
		}
		if _, ignored := events[0].(Ignored); ignored {
			continue
		}
		have := map[string]bool{}
		leaves(reflect.ValueOf(events[0]), have)
		for _, part := range []json.RawMessage{s.DecodedEvent, s.DecodedRevokedToken, s.DecodedValue} {
			if len(part) == 0 {
				continue
			}
			v, err := decodeJSON(part)
			if err != nil {
				t.Fatal(err)
			}
			object, _ := v.(map[string]any)
			for name, value := range object {
				switch value.(type) {
				case string, json.Number:
					text := stringOf(value)
					if !unread[name] && text != "" && text != "0" && !have[text] {
						t.Errorf("%s: %s=%q is in no field of %+v", s.Name, name, text, events[0])
					}
				}
			}
		}
		if len(s.DecodedConditions) > 0 && string(s.DecodedConditions) != "[]" {
			var got, want any
			if err := json.Unmarshal(events[0].(ThrottleDecision).Conditions, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(s.DecodedConditions, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: conditions (-want +got):\n%s", s.Name, diff)
			}
		}
		if km, ok := events[0].(KeyManagerChanged); ok && string(s.DecodedValue) != "null" {
			var want map[string]any
			if err := json.Unmarshal(s.DecodedValue, &want); err != nil {
				t.Fatal(err)
			}
			if inner, ok := want["additionalProperties"].(map[string]any); ok {
				want = inner
			}
			if diff := cmp.Diff(want, km.Configuration); diff != "" {
				t.Errorf("%s: configuration (-want +got):\n%s", s.Name, diff)
			}
		}
	}
}

func leaves(v reflect.Value, into map[string]bool) {
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		if !v.IsNil() {
			leaves(v.Elem(), into)
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			leaves(field, into)
		}
	case reflect.Slice:
		for i := range v.Len() {
			leaves(v.Index(i), into)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			leaves(v.MapIndex(key), into)
		}
	case reflect.Float64:
		into[stringOf(v.Float())] = true
	default:
		into[fmt.Sprint(v.Interface())] = true
	}
}

// TestMapSamplesEqualTheirJSONTwins decodes the amqp/map and the jms/map-message form of one event, and the JSON text of
// the same attributes, and wants three equal events.
func TestMapSamplesEqualTheirJSONTwins(t *testing.T) {
	maps := 0
	for _, s := range samples(t) {
		if s.BodyBase64 == "" {
			continue
		}
		maps++
		attributes := map[string]json.RawMessage{}
		for _, f := range s.MapFields {
			attributes[f.Name] = f.Value
		}
		text, err := json.Marshal(map[string]any{"event": map[string]any{"payloadData": attributes}})
		if err != nil {
			t.Fatal(err)
		}
		twin := s.message(t)
		twin.ContentType, twin.Body = "text/plain", text
		want, err := Decode(twin)
		if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
		for _, m := range []Message{s.message(t), s.legacy(t)} {
			for _, contentType := range []string{m.ContentType, "", "application/octet-stream"} {
				m.ContentType = contentType
				got, err := Decode(m)
				if err != nil {
					t.Errorf("%s as %q: %v", s.Name, contentType, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s as %q (-JSON +map):\n%s", s.Name, contentType, diff)
				}
			}
		}
	}
	if maps != 9 {
		t.Errorf("%d map samples, want 9", maps)
	}
}

func TestTopicsAreComparedWithoutCase(t *testing.T) {
	for _, s := range samples(t) {
		m := s.message(t)
		want, wantErr := Decode(m)
		for _, topic := range []string{strings.ToLower(m.Topic), strings.ToUpper(m.Topic)} {
			m.Topic = topic
			got, err := Decode(m)
			if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (wantErr == nil) {
				t.Errorf("%s as %s: %v\n%s", s.Name, topic, err, diff)
			}
		}
	}
}
