package event

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzDenyConditionValue sends any text as the conditionValue of an IP condition, once as the string that the API
// Manager writes and once in a map, and compares what was understood with encoding/json's reading of it.
func FuzzDenyConditionValue(f *testing.F) {
	files, err := filepath.Glob("testdata/*/throttleData-block-*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no samples to begin with: %v", err)
	}
	for _, file := range files {
		var sample struct {
			Body struct {
				Event struct {
					PayloadData struct{ ConditionValue string } `json:"payloadData"`
				} `json:"event"`
			} `json:"body"`
		}
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		if err := json.Unmarshal(text, &sample); err != nil {
			f.Fatalf("%s: %v", file, err)
		}
		f.Add(sample.Body.Event.PayloadData.ConditionValue, "IP")
		f.Add(sample.Body.Event.PayloadData.ConditionValue, "IPRANGE")
	}
	f.Add(`"{\"fixedIp\":\"10.0.0.1\",\"invert\":\"true\"}"`, "IP")
	f.Add(`{"startingIp":"::1","endingIp":" ::2 ","invert":true}`, "IPRANGE")
	f.Fuzz(func(t *testing.T, value, kind string) {
		if !utf8.ValidString(value) || kind != "IP" && kind != "IPRANGE" {
			return
		}
		body, err := json.Marshal(map[string]any{"event": map[string]any{"payloadData": map[string]any{
			"id": 7, "blockingCondition": kind, "conditionValue": value, "state": "true", "tenantDomain": "carbon.super",
		}}})
		if err != nil {
			t.Fatal(err)
		}
		events, err := Decode(Message{Topic: TopicThrottleData, ContentType: "text/plain", Body: body})
		if err != nil {
			return // not to be understood at all: no event, and nothing panicked
		}
		got, ok := events[0].(DenyChanged)
		if !ok || len(events) != 1 || !got.Active || got.ID != 7 || got.Kind != kind || got.TenantDomain != "carbon.super" {
			t.Fatalf("events = %+v", events)
		}
		// The second reader: the text is an object, or a string that holds one, however often it was quoted.
		var object map[string]any
		text := value
		for object == nil && json.Unmarshal([]byte(text), &object) != nil {
			var inner string
			if json.Unmarshal([]byte(text), &inner) != nil {
				break
			}
			text = inner
		}
		word := func(name string) string {
			s, _ := object[name].(string)
			return strings.TrimSpace(s)
		}
		for _, name := range []string{"fixedIp", "startingIp", "endingIp"} {
			if _, isText := object[name].(string); object[name] != nil && !isText {
				return // a number in the place of an address: the tolerant reading of scalars has tests of its own
			}
		}
		if object != nil {
			if got.FixedIP != word("fixedIp") || got.StartingIP != word("startingIp") || got.EndingIP != word("endingIp") {
				t.Errorf("addresses of %q = %q, %q, %q", value, got.FixedIP, got.StartingIP, got.EndingIP)
			}
			if invert, isBool := object["invert"].(bool); isBool && got.Invert != invert {
				t.Errorf("invert of %q = %t", value, got.Invert)
			}
		}
		complete := kind == "IP" && word("fixedIp") != "" || kind == "IPRANGE" && word("startingIp") != "" && word("endingIp") != ""
		if object != nil && got.Malformed == complete {
			t.Errorf("malformed of %q = %t, complete = %t", value, got.Malformed, complete)
		}
		if object == nil && !got.Malformed {
			t.Errorf("%q is no object and passes for one: %+v", value, got)
		}
	})
}
