package integration_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/broker"
	"gatehouse/integration/harness"
)

// delivery is one message of a sequence that goes to one gateway.
type delivery struct {
	name    string
	topic   string // "" is throttleData
	message amqp091.Publishing
	// meanwhile, unchanged, outcome and reads are as in eventCase.
	meanwhile []change
	unchanged string
	outcome   string
	reads     []string
}

// deliver publishes messages one after the other and compares what each makes of the state with a file that tells of all.
func deliver(t *testing.T, s *stage, deliveries []delivery, base time.Time, file string) {
	t.Helper()
	var told strings.Builder
	for _, d := range deliveries {
		before, asked := s.picture(), s.emu.Recorded().Requests
		s.change(d.meanwhile...)
		topic := d.topic
		if topic == "" {
			topic = "throttleData"
		}
		s.publish(topic, d.message)
		s.hear(d.outcome)
		s.reread(d.reads, asked)
		diff := ""
		within(3*time.Second, func() bool { // what a list brings comes a little after it was asked for
			diff = before.difference(s.picture(), base)
			return d.unchanged != "" || diff != ""
		})
		if d.unchanged != "" && d.reads != nil {
			time.Sleep(30 * time.Millisecond) // the answer may still do harm
			diff = before.difference(s.picture(), base)
		}
		outcome := d.outcome
		if outcome == "" {
			outcome = "applied"
		}
		if (d.unchanged != "") != (diff == "") {
			t.Errorf("%s: the change is %q, but unchanged is %q", d.name, diff, d.unchanged)
		}
		fmt.Fprintf(&told, "%s: %s\n%s", d.name, outcome, diff)
	}
	golden(t, file, told.String())
}

// binarySample is a file of samples/events-binary with a map in both forms.
type binarySample struct {
	ID     string     `json:"id"`
	Topic  string     `json:"topic"`
	Fields []mapField `json:"fields"`
	Forms  map[string]struct {
		ContentType string `json:"contentType"`
		SHA256      string `json:"sha256"`
		Hex         string `json:"hex"`
	} `json:"forms"`
}

func readBinary(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(samplesFolder, "events-binary", name+".json"))
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// shifted is a body with its times moved.
func shifted(t *testing.T, contentType string, body []byte, shift time.Duration) []byte {
	t.Helper()
	s := emulator.Sample{BodyBase64: base64.StdEncoding.EncodeToString(body)}
	if strings.HasPrefix(contentType, "text/") {
		text := string(body)
		s = emulator.Sample{BodyText: &text}
	}
	m, err := s.Message(shift, false)
	if err != nil {
		t.Fatal(err)
	}
	return m.Body
}

const saysNothing = "it has no attribute that a gateway knows"

// mapMessages are the maps of samples/events-binary, in the order in which they are sent.
var mapMessages = []delivery{
	{name: "block-api", meanwhile: []change{deny(emulator.DenyCondition{ID: 3, Type: emulator.DenyAPI, Value: "/weather/2.1.0"})}},
	{name: "block-ip", meanwhile: []change{deny(emulator.DenyCondition{ID: 4, Type: emulator.DenyIP, FixedIP: "10.0.0.7"})}},
	{name: "block-user-unicode", meanwhile: []change{allow(2147483647)}},
	{name: "cache-key", outcome: "unknown", unchanged: "a cache of this name is not known"},
	{name: "decision-application"},
	{name: "decision-released"},
	{name: "decision-resource-conditions"},
	{name: "empty-map", outcome: "unknown", unchanged: saysNothing},
	{name: "key-255", outcome: "unknown", unchanged: saysNothing},
	{name: "key-256", outcome: "unknown", unchanged: saysNothing},
	{name: "keymanager-add", meanwhile: []change{plainKeyManager}, reads: []string{"keymanagers"}},
	{name: "keytemplate-add", meanwhile: []change{template(userTemplate)}, reads: []string{"keyTemplates"}},
	{name: "keytemplate-remove", meanwhile: []change{noTemplate(userTemplate)}, reads: []string{"keyTemplates"}},
	{name: "long-string", outcome: "unknown", unchanged: saysNothing},
	{name: "notification-subscription", meanwhile: []change{numberedAPI, func(s manager) error {
		return noResult(s.Subscribe(emulator.Subscription{SubscriptionID: 31, APIUUID: numberedUUID, AppID: 12, PolicyID: "Gold"}))
	}}},
	{name: "nul-in-string", outcome: "unknown", unchanged: saysNothing},
	{name: "nulls-and-empty", outcome: "unknown", unchanged: saysNothing},
	{name: "numbers", outcome: "unknown", unchanged: saysNothing},
	{name: "revocation-jwt"},
	{name: "twenty-keys", outcome: "unknown", unchanged: saysNothing},
	{name: "unicode", outcome: "unknown", unchanged: saysNothing},
}

// plainKeyManager is the key manager of keymanager-add, which says less than the one of samples/events.
func plainKeyManager(s manager) error {
	return noResult(s.PutKeyManager(emulator.KeyManager{Name: "ExampleIdP", Type: "WSO2-IS", Configuration: map[string]any{
		"issuer": recordedIssuer, "certificate_type": "JWKS", "certificate_value": jwksOf(s.emu), "consumer_key_claim": "azp", "self_validate_jwt": true,
	}}))
}

const numberedUUID = "b2a7c1de-5d1f-4c51-9f0b-6a2d0f5e1a05"

// numberedAPI is the API 5, which is deployed elsewhere.
func numberedAPI(s manager) error {
	return noResult(s.CreateAPI(emulator.API{UUID: numberedUUID, APIID: 5, Name: "Five", Version: "1.0.0", Context: "/five/1.0.0"}))
}

// wrongForms are the maps that one of the two forms cannot carry.
var wrongForms = map[string]string{
	"key-256 amqp":      "malformed", // written with a wrapped length
	"nul-in-string jms": "malformed", // the reader stops at the NUL
}

const germanUser = "jörg@bücher.example"

// foreignDeny is the deny policy of another tenant that block-user-unicode lifts.
func foreignDeny(s manager) error {
	s.AddTenant("bücher.example", "", "")
	return noResult(s.Deny(emulator.DenyCondition{ID: 2147483647, Type: emulator.DenyUser, Value: germanUser, Tenant: "bücher.example"}))
}

const twoTenants = `tenants = ["carbon.super", "bücher.example"]`

func TestBinaryEventSamples(t *testing.T) {
	named := map[string]bool{"deliveries": true, "text-bodies": true, "decoder-cases": true} // tested below
	for _, d := range mapMessages {
		named[d.name] = true
	}
	for _, name := range sampleNames(t, "events-binary") {
		if !named[name] {
			t.Errorf("%s is not sent", name)
		}
	}
	for _, form := range []string{"amqp", "jms"} {
		t.Run(form, func(t *testing.T) {
			s := startStage(t, harness.Shared(t), stageOptions{vhost: "carbon", folded: form == "jms", before: []change{foreignDeny}, gatewayKeys: twoTenants})
			base := soon()
			shift := base.Sub(time.UnixMilli(sampleEpoch))
			var sent []delivery
			for i, d := range mapMessages {
				var sample binarySample
				readBinary(t, d.name, &sample)
				d.topic = sample.Topic
				d.message = sample.message(t, form, shift, jwksOf(s.emu))
				d.message.Timestamp = time.Unix(base.UnixMilli()+int64(i), 0) // Andes writes milliseconds
				if outcome, ok := wrongForms[d.name+" "+form]; ok {
					d.outcome, d.reads = outcome, []string{"block"}
				}
				sent = append(sent, d)
			}
			deliver(t, s, sent, base, "events-binary-"+form+".diff")
		})
	}
}

// message is the map in one of its forms: the bytes of Andes' own classes, with times of now.
func (b binarySample) message(t *testing.T, form string, shift time.Duration, jwks string) amqp091.Publishing {
	t.Helper()
	f, ok := b.Forms[form]
	if !ok {
		t.Fatalf("%s has no form %s", b.ID, form)
	}
	body, err := hex.DecodeString(f.Hex)
	if err != nil {
		t.Fatal(err)
	}
	encoding := map[string]broker.Encoding{"amqp": broker.AMQPMap, "jms": broker.JMSMap}[form]
	switch {
	case f.Hex == "": // too long for its file: value, after
		body, err = broker.Payload{{Name: "after", Value: "end"}, {Name: "value", Value: strings.Repeat("0123456789", 7000)}}.Encode(encoding)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Fatalf("%s: the body is not the one of the sample", b.ID)
		}
	case b.Topic == broker.TopicKeyManager:
		body = encodeFields(t, b.Fields, encoding, func(text string) string { return withLocalKeySet(text, jwks) })
	}
	return amqp091.Publishing{
		ContentType: f.ContentType, DeliveryMode: 2, Priority: 4, MessageId: "ID:" + b.ID, Headers: amqp091.Table{"JMS_QPID_DESTTYPE": int32(2)}, Body: shifted(t, f.ContentType, body, shift),
	}
}

// recordedDelivery is a case of deliveries.json: what a real publisher of Andes sent, as RabbitMQ delivered it.
type recordedDelivery struct {
	ID   string `json:"id"`
	Seen *struct {
		ContentType     string `json:"contentType"`
		ContentEncoding string `json:"contentEncoding"`
		DeliveryMode    uint8  `json:"deliveryMode"`
		Priority        uint8  `json:"priority"`
		MessageID       string `json:"messageId"`
		Timestamp       int64  `json:"timestampRaw"`
		UserID          string `json:"userId"`
		Headers         map[string]struct {
			Type  string `json:"goType"`
			Value string `json:"value"`
		} `json:"headers"`
		Length int    `json:"bodyLength"`
		Hex    string `json:"bodyHex"`
	} `json:"seenByAmqp091go"`
}

// header makes a header's value of its recorded type.
func header(t *testing.T, kind, text string) any {
	t.Helper()
	if kind == "string" {
		return text
	}
	if kind == "bool" {
		return text == "true"
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	switch kind {
	case "int8":
		return int8(n)
	case "int16":
		return int16(n)
	case "int32":
		return int32(n)
	case "int64":
		return n
	}
	t.Fatalf("headers of type %s are not expected", kind)
	return nil
}

// deliveryCases say what becomes of the deliveries; the texts without JSON make the gateway read /block again.
var deliveryCases = map[string]delivery{
	"text-decision":        {},
	"map-decision":         {unchanged: "it repeats text-decision"},
	"text-unicode":         {outcome: "malformed", reads: []string{"block"}, unchanged: "it is no JSON"},
	"text-empty":           {outcome: "malformed", reads: []string{"block"}, unchanged: "it is empty"},
	"text-null":            {outcome: "malformed", reads: []string{"block"}, unchanged: "it is null"},
	"map-empty":            {outcome: "unknown", unchanged: saysNothing},
	"text-with-properties": {outcome: "unknown", unchanged: saysNothing},
	"text-300000-bytes":    {outcome: "unknown", unchanged: saysNothing},
}

// TestRecordedDeliveries sends what a real publisher of Andes sent: its bodies, with all their properties and headers. The
// times stay as they were recorded, except that the decision is one of now.
func TestRecordedDeliveries(t *testing.T) {
	var file struct {
		Cases []recordedDelivery `json:"cases"`
	}
	readBinary(t, "deliveries", &file)
	s := startStage(t, harness.Shared(t), stageOptions{vhost: "/carbon"}) // the virtual host of the recording
	base := soon()
	shift := base.Sub(time.UnixMilli(sampleEpoch))
	var sent []delivery
	for _, c := range file.Cases {
		if c.Seen == nil {
			if c.ID != "text-ttl-60000" { // RabbitMQ refuses it from whoever sends it
				t.Errorf("%s was not delivered", c.ID)
			}
			continue
		}
		d, ok := deliveryCases[c.ID]
		if !ok {
			t.Errorf("%s has no case", c.ID)
			continue
		}
		body, err := hex.DecodeString(c.Seen.Hex)
		if err != nil {
			t.Fatal(err)
		}
		if c.Seen.Hex == "" && c.Seen.Length > 0 { // its text was not kept: one of that length
			body = []byte(`{"event":{"payloadData":{"x":"` + strings.Repeat("y", c.Seen.Length-34) + `"}}}`)
		}
		if len(body) != c.Seen.Length {
			t.Fatalf("%s: %d bytes, want %d", c.ID, len(body), c.Seen.Length)
		}
		d.name = c.ID
		d.message = amqp091.Publishing{
			ContentType: c.Seen.ContentType, ContentEncoding: c.Seen.ContentEncoding, DeliveryMode: c.Seen.DeliveryMode, Priority: c.Seen.Priority,
			MessageId: c.Seen.MessageID, Timestamp: time.Unix(c.Seen.Timestamp, 0), UserId: c.Seen.UserID, Headers: amqp091.Table{},
			Body: shifted(t, c.Seen.ContentType, body, shift),
		}
		for name, h := range c.Seen.Headers {
			d.message.Headers[name] = header(t, h.Type, h.Value)
		}
		sent = append(sent, d)
	}
	deliver(t, s, sent, base, "deliveries.diff")
	if n := strings.Count(s.gateway.log.String(), "a message was passed over"); n > 3 {
		t.Errorf("%d lines about the bad messages, want at most one each", n)
	}
}

// textCases say what becomes of the texts that WSO2's own mapper wrote.
var textCases = map[string]delivery{
	"decision-null-conditions":   {},
	"decision-empty-conditions":  {},
	"block-ip-escaped-by-sender": {meanwhile: []change{deny(emulator.DenyCondition{ID: 4, Type: emulator.DenyIP, FixedIP: "10.0.0.7"})}},
	"block-ip-unescaped":         {outcome: "malformed", reads: []string{"block"}, unchanged: "it is no JSON, and the list has what it says already"},
	"quote-backslash-newline": {
		outcome: "malformed", reads: []string{"block"},
		meanwhile: []change{deny(emulator.DenyCondition{ID: 5, Type: emulator.DenyApplication, Value: "bob:say \"hi\" \\ a\nb"})},
	},
	"unicode":         {meanwhile: []change{deny(emulator.DenyCondition{ID: 6, Type: emulator.DenyUser, Value: germanUser + " 🛒", Tenant: "bücher.example"})}},
	"braces-in-value": {meanwhile: []change{template("$userId:{{x}}")}, reads: []string{"keyTemplates"}},
	"all-null":        {outcome: "unknown", unchanged: "a null is nothing"},
	"arbitrary":       {},
}

func TestTextBodies(t *testing.T) {
	var file struct {
		Cases []struct {
			ID       string  `json:"id"`
			BodyText *string `json:"bodyText"`
		} `json:"cases"`
	}
	readBinary(t, "text-bodies", &file)
	s := startStage(t, harness.Shared(t), stageOptions{
		vhost: "carbon", gatewayKeys: twoTenants,
		before: []change{func(s manager) error { s.AddTenant("bücher.example", "", ""); return nil }},
	})
	base := soon()
	shift := base.Sub(time.UnixMilli(sampleEpoch))
	var sent []delivery
	for _, c := range file.Cases {
		if c.BodyText == nil { // the mapper throws: nothing is published
			continue
		}
		d, ok := textCases[c.ID]
		if !ok {
			t.Errorf("%s has no case", c.ID)
			continue
		}
		d.name = c.ID
		d.message = amqp091.Publishing{
			ContentType: "text/plain", ContentEncoding: "UTF-8", DeliveryMode: 2, Timestamp: time.Unix(base.UnixMilli(), 0),
			Headers: amqp091.Table{"JMS_QPID_DESTTYPE": int32(2)}, Body: shifted(t, "text/plain", []byte(*c.BodyText), shift),
		}
		sent = append(sent, d)
	}
	deliver(t, s, sent, base, "text-bodies.diff")
}

// TestOddMaps sends every body of decoder-cases.json: none of them says anything to a gateway, none stops it.
func TestOddMaps(t *testing.T) {
	var file struct {
		Cases []struct {
			ID          string `json:"id"`
			ContentType string `json:"contentType"`
			Hex         string `json:"hex"`
		} `json:"cases"`
	}
	readBinary(t, "decoder-cases", &file)
	s := startStage(t, harness.Shared(t), stageOptions{vhost: "carbon"})
	before := s.picture()
	for _, c := range file.Cases {
		body, err := hex.DecodeString(c.Hex)
		if err != nil {
			t.Fatal(err)
		}
		s.publish("throttleData", amqp091.Publishing{ContentType: c.ContentType, Body: body})
	}
	eventually(t, 5*time.Second, "all bodies are seen", func() bool { return countAll(s.gateway.seen()) == len(file.Cases) })
	if got := s.gateway.seen(); got["malformed"] == 0 || got["malformed"]+got["unknown"] != len(file.Cases) {
		t.Errorf("events counted: %v, want malformed and unknown ones", got)
	}
	s.heard = s.gateway.seen()
	if diff := before.difference(s.picture(), time.Now()); diff != "" {
		t.Errorf("the state changed:\n%s", diff)
	}
	s.change(deny(denyAPI))
	_, good := readSample(t, "throttleData-block-api-on").message(t, time.Since(time.UnixMilli(sampleEpoch)), false, "")
	s.publish("throttleData", good)
	s.hear("")
	if got := s.ask(probe{as: "production"}); got != blocked {
		t.Errorf("after a good message: %s, want %s", got, blocked)
	}
}

// TestMalformedMessagesAreLoggedOnce: a body that the sender forgot to escape is acknowledged, counted each time and logged
// once, makes the gateway read /block, and does not stop what comes after it.
func TestMalformedMessagesAreLoggedOnce(t *testing.T) {
	s := startStage(t, harness.Shared(t), stageOptions{vhost: "carbon"})
	shift := time.Since(time.UnixMilli(sampleEpoch))
	key, bad := readSample(t, "throttleData-malformed-unescaped").message(t, shift, false, "")
	asked := s.emu.Recorded().Requests
	for range 3 {
		s.publish(key, bad)
		s.hear("malformed")
	}
	s.change(deny(denyAPI))
	_, good := readSample(t, "throttleData-block-api-on").message(t, shift, false, "")
	s.publish(key, good)
	s.hear("")
	s.reread([]string{"block"}, asked)
	if got := s.ask(probe{as: "production"}); got != blocked {
		t.Errorf("after a good message: %s, want %s", got, blocked)
	}
	log := s.gateway.log.String()
	if n := strings.Count(log, "a message was passed over"); n != 1 {
		t.Errorf("%d lines about the bad message, want 1", n)
	}
	if !strings.Contains(log, "throttleData") {
		t.Errorf("the log does not name the topic: %s", s.gateway.log.tail(20))
	}
}
