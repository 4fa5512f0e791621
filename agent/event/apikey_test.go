package event

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func apiKeyNotification(eventType, inner string) Message {
	return text4("notification", `{"eventType":"`+eventType+`","timestamp":5,"event":"`+base64.StdEncoding.EncodeToString([]byte(inner))+`"}`)
}

// TestTypesOfAPIKeyEvents: the names are inferred, so what they may be is taken.
func TestTypesOfAPIKeyEvents(t *testing.T) {
	for eventType, want := range map[string]Action{
		"API_KEY_CREATE": Create, "API_KEY_GENERATE": Create, "API_KEY_UPDATE": Update, "API_KEY_REGENERATE": Update,
		"API_KEY_DELETE": Delete, "API_KEY_REVOKE": Delete, "API_KEY_REMOVE": Delete, "API_KEY_REVOCATION": Delete, "OPAQUE_API_KEY_CREATE": Create,
		"API_KEY_USAGE": 0, "API_KEY_": 0,
	} {
		events, err := Decode(apiKeyNotification(eventType, `{"apiKeyHash":"h","timeStamp":7}`))
		if err != nil {
			t.Errorf("%s: %v", eventType, err)
			continue
		}
		if want == 0 {
			if ignored, ok := events[0].(Ignored); !ok || !ignored.Known {
				t.Errorf("%s: %+v", eventType, events[0])
			}
			continue
		}
		if e, ok := events[0].(APIKeyChanged); !ok || e.Action != want || e.Hash != "h" || e.Time != 7 || e.Type != eventType {
			t.Errorf("%s: %+v, want action %d", eventType, events[0], want)
		}
	}
}

func TestAPIKeyAttributes(t *testing.T) {
	for name, c := range map[string]struct {
		inner string
		want  APIKeyChanged
	}{
		"restrictions among the properties": {
			`{"apiKeyHash":"h","properties":{"permittedIP":"10.0.0.1","permittedReferer":"*.x/*"}}`,
			APIKeyChanged{Hash: "h", PermittedIP: "10.0.0.1", PermittedReferer: "*.x/*"},
		},
		"restrictions as text of properties": {`{"apiKeyHash":"h","additionalProperties":"{\"permittedIP\":\"10.0.0.1\"}"}`, APIKeyChanged{Hash: "h", PermittedIP: "10.0.0.1"}},
		"its own restriction wins": {
			`{"apiKeyHash":"h","permittedIP":"10.0.0.2","properties":{"permittedIP":"10.0.0.1"}}`,
			APIKeyChanged{Hash: "h", PermittedIP: "10.0.0.2"},
		},
		"restrictions as arrays": {`{"apiKeyHash":"h","permittedIP":["10.0.0.1","10.0.0.2"]}`, APIKeyChanged{Hash: "h", PermittedIP: "10.0.0.1,10.0.0.2"}},
		"numbers as text":        {`{"apiKeyHash":"h","applicationId":"12","validityPeriod":"60","timeCreated":"1764000000000"}`, APIKeyChanged{Hash: "h", ApplicationID: 12, ValidityPeriod: 60, CreatedAt: 1764000000000}},
		"times in seconds":       {`{"apiKeyHash":"h","timeCreated":1764000000,"expiryTime":1764000060}`, APIKeyChanged{Hash: "h", CreatedAt: 1764000000000, ExpiresAt: 1764000060000}},
		"no expiry":              {`{"apiKeyHash":"h","expiryTime":-1}`, APIKeyChanged{Hash: "h"}},
		"API by its UUID alone":  {`{"apiKeyHash":"h","apiId":"b2a7"}`, APIKeyChanged{Hash: "h", APIUUID: "b2a7"}},
		"salted":                 {`{"apiKeyHash":"h","salt":"c2FsdA=="}`, APIKeyChanged{Hash: "h", Salted: true}},
		"revoked by its status":  {`{"apiKeyHash":"h","status":"revoked"}`, APIKeyChanged{Action: Delete, Hash: "h", Status: "REVOKED"}},
		"inactive stays":         {`{"apiKeyHash":"h","status":"INACTIVE"}`, APIKeyChanged{Hash: "h", Status: "INACTIVE"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want.Action == 0 {
				c.want.Action = Update
			}
			c.want.Base = Base{Type: "API_KEY_UPDATE", Time: 5}
			events, err := Decode(apiKeyNotification("API_KEY_UPDATE", c.inner))
			if diff := cmp.Diff([]Event{c.want}, events); err != nil || diff != "" {
				t.Errorf("notification: %v (-want +got):\n%s", err, diff)
			}
			c.want.Base = Base{Type: TopicOpaqueAPIKey, Time: 7}
			events, err = Decode(text4("opaqueAPIKeyInfo", c.inner))
			if diff := cmp.Diff([]Event{c.want}, events); err != nil || diff != "" {
				t.Errorf("stream: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestAPIKeysWithoutAName(t *testing.T) {
	for _, m := range []Message{
		apiKeyNotification("API_KEY_CREATE", `{"uuid":"u"}`), apiKeyNotification("API_KEY_DELETE", `{"name":"ci"}`), text4("opaqueAPIKeyInfo", `{"uuid":"u"}`),
	} {
		events, err := Decode(m)
		var bad *DecodeError
		if !errors.As(err, &bad) || !strings.Contains(bad.Reason, "apiKeyHash is missing") {
			t.Errorf("%+v, %v", events, err)
		}
	}
	events, err := Decode(apiKeyNotification("API_KEY_DELETE", `{"uuid":"u"}`))
	if e, ok := events[0].(APIKeyChanged); err != nil || !ok || e.Action != Delete || e.UUID != "u" {
		t.Errorf("a deletion by UUID: %+v, %v", events, err)
	}
}
