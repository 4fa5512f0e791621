package event

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestTextBodies decodes what the API Manager's own JSON mapper wrote, malformed bodies included.
func TestTextBodies(t *testing.T) {
	var file struct {
		Cases []struct {
			ID        string
			BodyText  string
			ValidJSON bool `json:"validJson"`
		}
	}
	readJSON(t, "testdata/events-binary/text-bodies.json", &file)
	base := Base{Type: TopicThrottleData, Time: 5}
	super := base
	super.TenantDomain = "carbon.super"
	bücher := base
	bücher.TenantDomain = "bücher.example"
	decision := ThrottleDecision{Base: base, Key: "12:dana@carbon.super", Throttled: true, ExpiresAt: 1764000060000}
	released := decision
	released.Throttled = false
	want := map[string]Event{
		"decision-null-conditions":  decision,
		"decision-empty-conditions": released,
		"block-ip-escaped-by-sender": DenyChanged{
			Base: super, Active: true, ID: 4, Kind: "IP", FixedIP: "10.0.0.7",
		},
		"unicode": DenyChanged{
			Base: bücher, Active: true, ID: 6, Kind: "USER", Value: "jörg@bücher.example 🛒",
		},
		"braces-in-value": KeyTemplateChanged{Base: base, Template: "$userId:{{x}}"},
		"all-null":        Ignored{Base: base},
		"arbitrary":       decision,
	}
	checked := 0
	for _, c := range file.Cases {
		if c.BodyText == "" {
			continue // nothing is published
		}
		checked++
		events, err := Decode(Message{Topic: "throttledata", ContentType: "text/plain", ContentEncoding: "UTF-8", Timestamp: 5, Body: []byte(c.BodyText)})
		if !c.ValidJSON {
			var bad *DecodeError
			if !errors.As(err, &bad) || !bad.Dirty {
				t.Errorf("%s: %v, %v, want a dirty DecodeError", c.ID, events, err)
			}
			continue
		}
		if diff := cmp.Diff([]Event{want[c.ID]}, events); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", c.ID, err, diff)
		}
	}
	if checked != 9 {
		t.Errorf("%d bodies, want 9", checked)
	}
}

// TestDeliveries decodes whole recorded deliveries of a real publisher.
func TestDeliveries(t *testing.T) {
	var file struct {
		Cases []struct {
			ID   string
			Seen struct {
				RoutingKey, ContentType, ContentEncoding, MessageID string
				TimestampRaw                                        int64
				BodyHex                                             string
			} `json:"seenByAmqp091go"`
		}
	}
	readJSON(t, "testdata/events-binary/deliveries.json", &file)
	decision := ThrottleDecision{Key: "12:dana@carbon.super", Throttled: true, ExpiresAt: 1764000060000}
	want := map[string]Event{"text-decision": decision, "map-decision": decision, "map-empty": Ignored{}, "text-with-properties": Ignored{}}
	for _, c := range file.Cases {
		if c.Seen.RoutingKey == "" || c.Seen.BodyHex == "" && strings.Contains(c.ID, "bytes") {
			continue
		}
		events, err := Decode(Message{
			Topic: c.Seen.RoutingKey, ContentType: c.Seen.ContentType, ContentEncoding: c.Seen.ContentEncoding,
			Timestamp: c.Seen.TimestampRaw, MessageID: c.Seen.MessageID, Body: unhex(t, c.Seen.BodyHex),
		})
		e, ok := want[c.ID]
		if !ok { // texts that are no events, the empty and the null one among them
			var bad *DecodeError
			if !errors.As(err, &bad) || !bad.Dirty {
				t.Errorf("%s: %v, %v, want a dirty DecodeError", c.ID, events, err)
			}
			continue
		}
		base := Base{Type: TopicThrottleData, Time: c.Seen.TimestampRaw}
		switch v := e.(type) {
		case ThrottleDecision:
			v.Base = base
			e = v
		case Ignored:
			v.Base = base
			e = v
		}
		if diff := cmp.Diff([]Event{e}, events); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", c.ID, err, diff)
		}
	}
}

func text4(topic, payload string) Message {
	return Message{Topic: topic, ContentType: "text/plain", Timestamp: 7, Body: []byte(`{"event":{"payloadData":` + payload + `}}`)}
}

// TestTolerance decodes one meaning written in the ways in which releases differ, or may.
func TestTolerance(t *testing.T) {
	deny := func(value string) string {
		return `{"id":"4","blockingCondition":"ip","conditionValue":` + value + `,"state":"TRUE","tenantDomain":"x"}`
	}
	ip := DenyChanged{Base: Base{Type: TopicThrottleData, Time: 7, TenantDomain: "x"}, Active: true, ID: 4, Kind: "IP", FixedIP: "10.0.0.7"}
	decision := func(conditions string) ThrottleDecision {
		d := ThrottleDecision{Base: Base{Type: TopicThrottleData, Time: 7}, Key: "/a/1:1_default", Throttled: true, ExpiresAt: 60000}
		if conditions != "" {
			d.Conditions = []byte(conditions)
		}
		return d
	}
	decide := func(conditions string) string {
		return `{"throttleKey":"/a/1:1_default","isThrottled":"true","expiryTimeStamp":"60000"` + conditions + `}`
	}
	subscription := SubscriptionChanged{
		Base: Base{Type: "SUBSCRIPTIONS_UPDATE", Time: 9, TenantID: -1234}, Action: Update, ID: 9007199254740993, State: "BLOCKED",
	}
	const inner = `{\"subscriptionId\":\"9007199254740993\",\"subscriptionState\":\"BLOCKED\",\"tenantId\":-1234.0}`
	for _, c := range []struct {
		name    string
		message Message
		want    Event
	}{
		{"IP value escaped once", text4("throttleData", deny(`"{\"fixedIp\":\"10.0.0.7\",\"invert\":false}"`)), ip},
		{"IP value escaped twice", text4("throttleData", deny(`"\"{\\\"fixedIp\\\":\\\"10.0.0.7\\\"}\""`)), ip},
		{"IP value as an object", text4("throttleData", deny(`{"fixedIp":" 10.0.0.7 ","invert":"false"}`)), ip},
		{
			"IP value that is none", text4("throttleData", deny(`"10.0.0.7"`)),
			DenyChanged{Base: ip.Base, Active: true, ID: 4, Kind: "IP", Malformed: true},
		},
		{
			"IP value without its address", text4("throttleData", deny(`"{\"startingIp\":\"10.0.0.7\"}"`)),
			DenyChanged{Base: ip.Base, Active: true, ID: 4, Kind: "IP", StartingIP: "10.0.0.7", Malformed: true},
		},
		{"conditions absent", text4("throttleData", decide("")), decision("")},
		{"conditions null", text4("throttleData", decide(`,"evaluatedConditions":null`)), decision("")},
		{"conditions empty", text4("throttleData", decide(`,"evaluatedConditions":""`)), decision("")},
		{"conditions of none", text4("throttleData", decide(`,"evaluatedConditions":"W10="`)), decision("")},
		{"conditions padded", text4("throttleData", decide(`,"evaluatedConditions":"W3siYSI6IsO_In1d"`)), decision(`[{"a":"ÿ"}]`)},
		{"conditions in the standard alphabet", text4("throttleData", decide(`,"evaluatedConditions":"W3siYSI6IsO/In1d"`)), decision(`[{"a":"ÿ"}]`)},
		{"conditions with padding, quotes and line ends", text4("throttleData", decide(`,"evaluatedConditions":"\"W3t9\r\nXQ==\""`)), decision(`[{}]`)},
		{"conditions without padding", text4("throttleData", decide(`,"evaluatedConditions":"W3t9XQ"`)), decision(`[{}]`)},
		{"conditions as they are", text4("throttleData", decide(`,"evaluatedConditions":"[{}]"`)), decision(`[{}]`)},
		{
			"throttleKey null, blockingCondition counts", text4("throttleData", `{"throttleKey":null,"blockingCondition":"USER","conditionValue":"u","state":"false"}`),
			DenyChanged{Base: Base{Type: TopicThrottleData, Time: 7}, Kind: "USER", Value: "u"},
		},
		{
			"template state of another word removes", text4("throttleData", `{"keyTemplateValue":"$appId","keyTemplateState":"delete"}`),
			KeyTemplateChanged{Base: Base{Type: TopicThrottleData, Time: 7}, Remove: true, Template: "$appId"},
		},
		{"notification whose event is plain JSON; number as text; time of the outer", text4("notification", `{"eventType":"SUBSCRIPTIONS_UPDATE","timestamp":"9","event":"`+inner+`"}`), subscription},
		{"notification without an envelope", Message{Topic: "NOTIFICATION", Timestamp: 7, Body: []byte(
			"\xef\xbb\xbf {\"eventType\":\"SUBSCRIPTIONS_UPDATE\",\"timeStamp\":9,\"event\":\"" + inner + "\"}")}, subscription},
		{"notification with payloadData alone", Message{Topic: "notification", Timestamp: 7, ContentType: "application/json; charset=utf-8", Body: []byte(
			`{"payloadData":{"eventType":"SUBSCRIPTIONS_UPDATE","timestamp":9e0,"event":"` + inner + `"}}`)}, subscription},
		{"unknown type with an event that cannot be read", text4("notification", `{"eventType":"NEW_THING","timestamp":9,"event":"%%%"}`), Ignored{Base: Base{Type: "NEW_THING", Time: 9}}},
		{"policy reset", text4("notification", `{"eventType":"POLICY_RESET","timestamp":9,"event":"e30="}`), Ignored{Base: Base{Type: "POLICY_RESET", Time: 9}, Known: true}},
		{"unknown topic", Message{Topic: "globalCacheInvalidation", Timestamp: 7, Body: []byte("???")}, Ignored{Base: Base{Type: "globalCacheInvalidation", Time: 7}}},
		{
			"revocation of a batch", text4("tokenRevocation", `{"revokedToken":"x","type":"token_revocation_batch"}`),
			Revoked{Base: Base{Type: TopicTokenRevocation, Time: 7}, Kind: RevokeReload, TokenType: "token_revocation_batch"},
		},
		{
			"revocation of an unknown type without a token", text4("tokenRevocation", `{"revokedToken":"","type":"something"}`),
			Revoked{Base: Base{Type: TopicTokenRevocation, Time: 7}, Kind: RevokeReload, TokenType: "something"},
		},
		{
			"mass revocation in snake case, seconds, upper case type", text4("tokenRevocation",
				`{"revokedToken":"{\"entity_id\":\"u\",\"entity_type\":\"user_id\",\"revocation_time\":1764000001}","type":"SUBJECT_ENTITY_REVOCATION_EVENT"}`),
			Revoked{Base: Base{Type: TopicTokenRevocation, Time: 7}, Kind: RevokeUser, User: "u", Before: 1764000001000, TokenType: "SUBJECT_ENTITY_REVOCATION_EVENT"},
		},
		{
			"key manager without value is deleted", text4("keyManager", `{"action":"DELETE","name":"K","tenantDomain":"t"}`),
			KeyManagerChanged{Base: Base{Type: TopicKeyManager, Time: 7, TenantDomain: "t"}, Action: "delete", Name: "K", Tenant: "t", Enabled: true},
		},
		{
			"key manager whose fields are in the DTO alone", text4("keyManager",
				`{"action":"add","value":{"name":"K","type":"Okta","enabled":"false","organization":"o","uuid":"u","tokenType":"BOTH","additionalProperties":{"n":1}}}`),
			KeyManagerChanged{
				Base: Base{Type: TopicKeyManager, Time: 7}, Action: "add", Name: "K", KMType: "Okta", Tenant: "o", UUID: "u", TokenType: "BOTH",
				Configuration: map[string]any{"n": 1.0},
			},
		},
		{"another kind of key manager event", text4("keyManager", `{"event_type":"other","name":"K"}`), Ignored{Base: Base{Type: TopicKeyManager, Time: 7}}},
		{"users of an unknown cache", text4("cacheInvalidation", `{"type":"newCache","value":"[\"x\"]"}`), Ignored{Base: Base{Type: TopicCacheInvalidation, Time: 7}}},
		{
			"cache value as an array", text4("cacheInvalidation", `{"type":"gatewayKeyCache","value":["t1","t2"]}`),
			CacheInvalidation{Base: Base{Type: TopicCacheInvalidation, Time: 7}, Kind: "gatewayKeyCache", Keys: []string{"t1", "t2"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Decode(c.message)
			if diff := cmp.Diff([]Event{c.want}, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestUnusableMessages wants an error that names what is wrong, and says whether lists are to be fetched.
func TestUnusableMessages(t *testing.T) {
	event64 := func(kind, json string) string {
		return fmt.Sprintf(`{"eventType":%q,"timestamp":1,"event":%q}`, kind, json)
	}
	for _, c := range []struct {
		message Message
		want    string
		dirty   bool
	}{
		{text4("notification", `{"timestamp":1}`), "eventType is missing", true},
		{text4("notification", `{"eventType":"API_UPDATE","event":"&&&"}`), "event of type API_UPDATE is not base64", true},
		{text4("notification", event64("API_UPDATE", `{}`)), "uuid is missing", true},
		{text4("notification", event64("DEPLOY_API_IN_GATEWAY", `{"gatewayLabels":["x"]}`)), "uuid is missing", true},
		{text4("notification", event64("APPLICATION_DELETE", `{}`)), "applicationId is missing", true},
		{text4("notification", event64("REMOVE_APPLICATION_KEYMAPPING", `{}`)), "consumerKey is missing", true},
		{text4("notification", event64("SUBSCRIPTIONS_CREATE", `{}`)), "subscriptionId is missing", true},
		{text4("notification", event64("POLICY_CREATE", `{}`)), "policyName is missing", true},
		{text4("notification", event64("CUSTOM_POLICY_ADD", `{}`)), "keyTemplate is missing", true},
		{text4("notification", event64("CUSTOM_POLICY_UPDATE", `{}`)), "newKeyTemplate is missing", true},
		{text4("notification", event64("SCOPE_CREATE", `{}`)), "name is missing", true},
		{text4("notification", event64("ENDPOINT_CERTIFICATE_ADD", `{}`)), "alias is missing", true},
		{text4("throttleData", `{"throttleKey":""}`), "throttleKey is empty", false},
		{text4("throttleData", `{"throttleKey":"k","evaluatedConditions":"#"}`), "evaluatedConditions: neither base64", false},
		{text4("throttleData", `{"throttleKey":"k","evaluatedConditions":"e30="}`), "evaluatedConditions: not a JSON array", false},
		{text4("throttleData", `{"blockingCondition":"API"}`), `deny condition of type "API" is empty`, true},
		{text4("throttleData", `{"keyTemplateValue":""}`), "keyTemplateValue is empty", true},
		{text4("keyManager", `{"action":"add"}`), "name is missing", true},
		{text4("keyManager", `{"action":"add","name":"K","value":""}`), `value of key manager "K"`, true},
		{text4("keyManager", `{"action":"rename","name":"K"}`), `action "rename"`, true},
		{text4("cacheInvalidation", `{"type":"resourceCache","value":"{}"}`), "names no apiContext", true},
		{text4("cacheInvalidation", `{"type":"gatewayKeyCache","value":"[]"}`), "names nothing", true},
		{text4("cacheInvalidation", `{"type":"gatewayKeyCache","value":"["}`), "not JSON", true},
		{text4("tokenRevocation", `{"type":"consumer_app_revocation_event","revokedToken":"#"}`), "not base64", true},
		{text4("tokenRevocation", `{"type":"consumer_app_revocation_event","revokedToken":"{\"consumerKey\":\"k\"}"}`), "no revocationTime", true},
		{text4("tokenRevocation", `{"type":"subject_entity_revocation_event","revokedToken":"{\"revocationTime\":1}"}`), "names nobody", true},
		{text4("asyncWebhooksData", `{"mode":"listen"}`), `mode "listen"`, true},
		{text4("asyncWebhooksData", `{"mode":"subscribe"}`), "apiUUID or appID is missing", true},
		{text4("throttleData", `[]`), "event.payloadData is not a JSON object", true},
		{Message{Topic: "throttleData", ContentType: "text/plain"}, "the text is empty", true},
		{Message{Topic: "throttleData", Body: []byte(`{} {}`)}, "something stands after its end", true},
		{Message{Topic: "throttleData", ContentType: "text/plain", Body: []byte(`[1]`)}, "not an object", true},
		{Message{Topic: "throttleData", ContentType: "text/plain", Body: []byte{0, 0, 0, 4, 0, 0, 0, 0}}, "not JSON", true},
		{Message{Topic: "opaqueAPIKeyInfo", ContentType: "text/plain", Body: []byte(`x`)}, "not JSON", false},
	} {
		t.Run(c.want, func(t *testing.T) {
			events, err := Decode(c.message)
			var bad *DecodeError
			if !errors.As(err, &bad) || events != nil {
				t.Fatalf("%v, %v, want a DecodeError", events, err)
			}
			topic, _ := TopicOf(c.message.Topic)
			if want := Excerpt(c.message); bad.Excerpt != want {
				t.Errorf("excerpt %q, want %q", bad.Excerpt, want)
			}
			if !strings.Contains(bad.Error(), c.want) || bad.Dirty != c.dirty || bad.Topic != topic {
				t.Errorf("%v, dirty %t, want %q, dirty %t", bad, bad.Dirty, c.want, c.dirty)
			}
		})
	}
}

func TestExcerptMasksTokens(t *testing.T) {
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJkYW5hIn0.c2lnbmF0dXJlLXdpdGgtMTIzNDU2Nzg5MA"
	for _, c := range []struct {
		name, body string
		keeps      []string
		hides      []string
	}{
		{
			"broken deny condition", `{"event":{"payloadData":{"id":11,"blockingCondition":"APPLICATION","conditionValue":"dana:My "Best" App"`,
			[]string{`"blockingCondition":"APPLICATION"`, `dana:My "Best" App`},
			nil,
		},
		{"revoked token", `{"event":{"payloadData":{"revokedToken":"` + jwt + `","ttl":"3600","expiryTime":1764003600000`, []string{`"ttl":"3600"`, "1764003600000"}, []string{"eyJ", "c2lnb"}},
		{"short revoked token", `{"revokedToken":"abc","ttl":"3600"}`, []string{`"ttl":"3600"`}, []string{"abc"}},
		{"secret at another level of quoting", `{"value":"{\"secret\":\"s3cret\",\"client_token\" : \"t\"}"}`, []string{"value"}, []string{"s3cret", `"t`}},
		{"opaque token in a cache list", `{"value":"[\"fc8ee897-b3d9-3bb6-a9ca-f4aeb036e5c0\"]"}`, nil, []string{"fc8ee897", "f4aeb036"}},
		{"map body", "\x00\x00\x00\xa7\x0crevokedToken\x98\x00\x00\x00\x24" + "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01\x03ttl", []string{"revokedToken"}, []string{"0d6d6ad2", "\x00"}},
		{"token over the cut", strings.Repeat("x ", 95) + jwt, []string{"x x"}, []string{"eyJ"}},
		{"long text cut between runes", strings.Repeat("ü", 300), []string{"üü"}, []string{"\ufffd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Excerpt(Message{Body: []byte(c.body)})
			if len(got) > 200 {
				t.Errorf("%d bytes, want at most 200", len(got))
			}
			for _, s := range c.keeps {
				if !strings.Contains(got, s) {
					t.Errorf("%s lacks %s", got, s)
				}
			}
			for _, s := range c.hides {
				if strings.Contains(got, s) {
					t.Errorf("%s shows %s", got, s)
				}
			}
		})
	}
}
