package integration_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/broker"
	"gatehouse/integration/emulator/issuer"
)

// updateSamples writes the differences that the samples make now. Each is to be read against the sample's "expect"
// before it is committed.
var updateSamples = flag.Bool("update-samples", false, "write testdata/samples/*.diff anew")

const samplesFolder = "testdata/samples"

// What the recorded events are about.
const (
	weatherUUID     = "b2a7c1de-5d1f-4c51-9f0b-6a2d0f5e1a41"
	weatherCity     = "/weather/2.1.0/cities/7"
	mobileUUID      = "7d3a6f0c-2d0e-4a8c-a6b1-3f6a6f1d0012"
	mobileKey       = "kX3nRrVZpW2dT0qE9sLmB7yUa1oa"
	mobileSandbox   = "kX3sandbox"
	subscriptionID  = 903
	recordedJTI     = "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01"
	recordedIssuer  = "https://idp.example.org/oauth2/token"
	recordedJWKS    = "https://idp.example.org/oauth2/jwks"
	userTemplate    = "$userId:$apiContext:$apiVersion"
	residentManager = "Resident Key Manager"
)

// recordedWorld is the API Manager that the events of samples/events speak of: the API WeatherAPI (41), the application
// MobileApp (12) of dana with a production and a sandbox key, and its subscription 903. The application Kiosk (13) of
// bob beside it must not be touched by any event.
func recordedWorld(s *emulator.Changes, backend string) error {
	for _, p := range []emulator.Policy{
		{Kind: emulator.SubscriptionPolicy, ID: 31, Name: "Gold", Limit: perMinute(5000), RateLimitCount: 5, RateLimitTimeUnit: "min"},
		{Kind: emulator.SubscriptionPolicy, ID: 30, Name: "Silver", Limit: perMinute(2000)},
		{Kind: emulator.ApplicationPolicy, ID: 32, Name: "50PerMin", Limit: perMinute(50)},
		{Kind: emulator.APIPolicy, ID: 33, Name: "10KPerMin", Limit: perMinute(10000)},
	} {
		if _, err := s.PutPolicy(p); err != nil {
			return err
		}
	}
	if _, err := s.CreateAPI(emulator.API{
		UUID: weatherUUID, APIID: 41, Name: "WeatherAPI", Version: "2.1.0", Context: "/weather/2.1.0", Provider: "admin",
		URLMappings: []emulator.URLMapping{{AuthScheme: "Any", ThrottlingPolicy: "10KPerMin", HTTPMethod: "GET", URLPattern: "/cities/{id}"}},
		Endpoint:    backend, SandboxEndpoint: backend, Environments: []string{"Default"},
	}); err != nil {
		return err
	}
	for _, a := range []emulator.Application{
		{UUID: mobileUUID, ID: 12, Name: "MobileApp", SubName: "dana", Policy: "50PerMin", Attributes: map[string]string{"team": "blue"}},
		{UUID: "7d3a6f0c-2d0e-4a8c-a6b1-3f6a6f1d0013", ID: 13, Name: "Kiosk", SubName: "bob", Policy: "Unlimited"},
	} {
		if _, err := s.CreateApplication(a); err != nil {
			return err
		}
	}
	for _, k := range []emulator.KeyMapping{
		{ApplicationID: 12, ConsumerKey: mobileKey, KeyType: "PRODUCTION", KeyManager: residentManager},
		{ApplicationID: 12, ConsumerKey: mobileSandbox, KeyType: "SANDBOX", KeyManager: residentManager},
		{ApplicationID: 13, ConsumerKey: "kiosk", KeyType: "PRODUCTION", KeyManager: residentManager},
	} {
		if _, err := s.AddKeyMapping(k); err != nil {
			return err
		}
	}
	for _, x := range []emulator.Subscription{
		{SubscriptionUUID: "e1b6b8a2-5d0a-4f4c-8d37-2c93d3a40903", SubscriptionID: subscriptionID, APIUUID: weatherUUID, AppID: 12, PolicyID: "Gold"},
		{SubscriptionUUID: "e1b6b8a2-5d0a-4f4c-8d37-2c93d3a40904", SubscriptionID: 904, APIUUID: weatherUUID, AppID: 13, PolicyID: "Unlimited"},
	} {
		if _, err := s.Subscribe(x); err != nil {
			return err
		}
	}
	return nil
}

func perMinute(n int64) emulator.Limit { return emulator.Limit{TimeUnit: "min", UnitTime: 1, Count: n} }

// change is what somebody does at the API Manager. It publishes nothing: the sample is the message.
type change func(s manager) error

// manager is the API Manager of a world, whose changes are silent.
type manager struct {
	*emulator.Changes
	emu *emulator.Emulator
}

// noResult drops the row that a change returns.
func noResult[T any](_ T, err error) error { return err }

// probe is a request through the gateway and its answers, "200" or "403/900805", before and after the event.
type probe struct {
	as            string // whose token, see stage.token; "" for none
	path          string // "" is weatherCity
	ip            string // of the client
	header        string // name=value
	plan          string // claim of the token
	before, after string
}

// stage is a world on a virtual host of the broker, with what the test needs to look at it.
type stage struct {
	*world
	wire   *wire
	folded bool
	tokens map[string]string
	heard  map[string]int // events counted so far, by outcome
}

// stageOptions are how one sample wants its world.
type stageOptions struct {
	vhost       string
	folded      bool // the gateway's binding keys are lower-cased on their way to the broker
	before      []change
	gatewayKeys string
}

func startStage(t *testing.T, rabbit rabbit, o stageOptions) *stage {
	t.Helper()
	hub := rabbit.URL(o.vhost)
	wo := worldOptions{
		eventHub: hub, gatewayKeys: o.gatewayKeys, listenerKeys: `trusted_proxies = ["127.0.0.1"]`,
		emulator: emulator.Options{OnError: func(err error) { t.Errorf("the emulated API Manager: %v", err) }},
		fill: func(t testing.TB, e *emulator.Emulator) {
			t.Helper()
			s := e.Silent()
			if err := recordedWorld(s, e.BackendURL()); err != nil {
				t.Fatal(err)
			}
			for _, c := range o.before {
				if err := c(manager{s, e}); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
	if o.folded {
		wo.gatewayHub = strings.Replace(hub, rabbit.Address(), startFoldingBroker(t, rabbit.Address()), 1)
	}
	s := &stage{world: startWorld(t, wo), wire: dialWire(t, hub), folded: o.folded, tokens: map[string]string{}}
	// A gateway that finds its broker slow becomes ready without it.
	eventually(t, 20*time.Second, "the gateway listens to the broker", func() bool { return s.gateway.source("event_hub").Connected })
	s.heard = s.gateway.seen()
	return s
}

// soon is a full second that is later than every list the gateway has fetched so far, by any clock: so an event of that time
// is news, and the gateway has no reason to ask the API Manager whether it is.
func soon() time.Time { return time.Now().Truncate(time.Second).Add(3 * time.Second) }

// publish sends a message, which a queue of the gateway must take.
func (s *stage) publish(key string, p amqp091.Publishing) {
	s.t.Helper()
	if s.folded {
		key = strings.ToLower(key)
	}
	if !s.wire.publish(key, p) {
		s.t.Fatalf("no queue of the gateway took a message with the routing key %s", key)
	}
}

// hear waits until one more event is counted, as outcome says: "" is applied.
func (s *stage) hear(outcome string) {
	s.t.Helper()
	if outcome == "" {
		outcome = "applied"
	}
	want := maps.Clone(s.heard)
	want[outcome]++
	eventually(s.t, 5*time.Second, "the event is counted as "+outcome, func() bool {
		got := s.gateway.seen()
		if countAll(got) >= countAll(want) && !maps.Equal(got, want) {
			s.t.Fatalf("events counted: %v, want %v", got, want)
		}
		return maps.Equal(got, want)
	})
	s.heard = want
}

func countAll(counts map[string]int) int {
	n := 0
	for _, c := range counts {
		n += c
	}
	return n
}

// reread waits until lists have been read more often than before.
func (s *stage) reread(lists []string, before map[string]int) {
	s.t.Helper()
	for _, list := range lists {
		eventually(s.t, 5*time.Second, "the gateway reads "+list+" again", func() bool { return s.emu.Recorded().Requests[list] > before[list] })
	}
}

type rabbit interface {
	URL(vhost string) string
	Address() string
}

func (s *stage) change(changes ...change) {
	s.t.Helper()
	for _, c := range changes {
		if err := c(manager{s.emu.Silent(), s.emu}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// token is a token of dana, or of the kiosk, minted once. idp and global are tokens as the recorded key managers issue
// them, signed with the key that their JWKS serves here.
func (s *stage) token(as, plan string) string {
	s.t.Helper()
	if as == "" {
		return ""
	}
	if t, ok := s.tokens[as+plan]; ok {
		return t
	}
	want := issuer.Token{
		ClientID: mobileKey, Subject: "dana", ID: recordedJTI, Claims: map[string]any{}, Life: time.Hour, IssuedAt: time.Now().Add(-time.Minute),
	}
	by := s.emu.Resident()
	switch as {
	case "production":
	case "other production": // as another login gives it
		want.ID = ""
	case "later production": // as a login of this moment gives it
		want.ID, want.IssuedAt = "", time.Now()
	case "sandbox":
		want.ClientID, want.ID = mobileSandbox, ""
	case "kiosk":
		want.ClientID, want.Subject, want.ID = "kiosk", "bob", ""
	case "idp":
		by, want.ID = s.emu.Issuer(), ""
		want.Claims["iss"] = recordedIssuer
	default:
		s.t.Fatalf("nobody is %q", as)
	}
	if plan != "" {
		want.Claims["plan"] = plan
	}
	got, err := by.Mint(want)
	if err != nil {
		s.t.Fatal(err)
	}
	s.tokens[as+plan] = got.Token
	return got.Token
}

// ask sends a probe.
func (s *stage) ask(p probe) string {
	s.t.Helper()
	path := p.path
	if path == "" {
		path = weatherCity
	}
	a := s.gateway.call("GET", path, s.token(p.as, p.plan), func(r *http.Request) {
		if p.ip != "" {
			r.Header.Set("X-Forwarded-For", p.ip)
		}
		if name, value, ok := strings.Cut(p.header, "="); ok {
			r.Header.Set(name, value)
		}
	})
	if a.code == 0 {
		return fmt.Sprint(a.status)
	}
	return fmt.Sprintf("%d/%d", a.status, a.code)
}

func (p probe) String() string {
	text := "GET " + p.path
	if p.path == "" {
		text = "GET " + weatherCity
	}
	for _, x := range [][2]string{{" with the token of ", p.as}, {" from ", p.ip}, {" with ", p.header}, {" with plan ", p.plan}} {
		if x[1] != "" {
			text += x[0] + x[1]
		}
	}
	return text
}

// picture is the state of the gateway as its admin API shows it, with where each entry came from.
type picture struct {
	dump
	scopes int // they have no table of their own
}

func (s *stage) picture() picture {
	s.t.Helper()
	p := picture{dump: s.gateway.dumpAs(func(item map[string]any) map[string]any {
		by := "?"
		if origin, ok := item["origin"].(map[string]any); ok {
			by = fmt.Sprint(origin["kind"])
			if id, _ := origin["id"].(string); by == "event" && id != "" {
				if strings.HasPrefix(id, "ID:") {
					id = "message" // an event without an id of its own goes by its message's, which is new each time
				}
				by += " " + id
			}
		}
		item = stripVolatile(item)
		item["by"] = by
		if _, mass := item["before"]; mass {
			delete(item, "expires_at") // it is kept for a day from its receipt
		}
		return item
	})}
	p.scopes = s.gateway.source("lists").ByKind["scopes"].Rows
	return p
}

// difference lists what differs, with times told relative to the base time of the samples.
func (before picture) difference(after picture, base time.Time) string {
	lines := before.diff(after.dump)
	if before.scopes != after.scopes {
		lines = append(lines, fmt.Sprintf("~ scopes: %d, were %d", after.scopes, before.scopes))
	}
	text := strings.Join(lines, "\n")
	if text != "" {
		text += "\n"
	}
	return timeText.ReplaceAllStringFunc(text, func(s string) string {
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return s
		}
		// Revocations are kept to the second, rounded up.
		return fmt.Sprintf("T%+ds", int(math.Floor(at.Sub(base).Seconds())))
	})
}

var timeText = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)

// source is one of the sources in /api/v1/state.
type source struct {
	Name      string               `json:"name"`
	Connected bool                 `json:"connected"`
	Applied   int                  `json:"events_applied"`
	Ignored   map[string]int       `json:"events_ignored"`
	ByKind    map[string]listState `json:"by_kind"`
}

// listState is one of the lists in /api/v1/state.
type listState struct {
	Rows      int    `json:"rows"`
	FetchedAt string `json:"fetched_at"`
}

func (g *gateway) source(name string) source {
	g.t.Helper()
	var state struct {
		Sources []source `json:"sources"`
	}
	g.getJSON("/api/v1/state", &state)
	for _, s := range state.Sources {
		if s.Name == name {
			return s
		}
	}
	g.t.Fatalf("the state names no source %s", name)
	return source{}
}

// count is one of the counts in /api/v1/state.
func (g *gateway) count(name string) int {
	g.t.Helper()
	var state struct {
		Counts map[string]int `json:"counts"`
	}
	g.getJSON("/api/v1/state", &state)
	return state.Counts[name]
}

// seen counts the events of the hub by what became of them: applied, or why they were ignored.
func (g *gateway) seen() map[string]int {
	g.t.Helper()
	s := g.source("event_hub")
	out := map[string]int{"applied": s.Applied}
	maps.Copy(out, s.Ignored)
	return out
}

// eventSample is a file of samples/events.
type eventSample struct {
	emulator.Sample
	DecodedEvent struct {
		TimeStamp int64 `json:"timeStamp"`
	} `json:"decodedEvent"`
	MapFields []mapField `json:"mapFields"`
}

type mapField struct {
	Name  string          `json:"name"`
	Type  string          `json:"type"`
	Value json.RawMessage `json:"value"`
}

func readSample(t *testing.T, name string) eventSample {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(samplesFolder, "events", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var s eventSample
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return s
}

// sampleEpoch is the base time of the samples, ms.
const sampleEpoch = 1764000000000

// message is the sample as a publishing: its times moved by shift, its key set served here. legacy is the older of the two
// forms of a map.
func (s eventSample) message(t *testing.T, shift time.Duration, legacy bool, jwks string) (key string, p amqp091.Publishing) {
	t.Helper()
	m, err := s.Message(shift, legacy)
	if err != nil {
		t.Fatal(err)
	}
	if s.Topic == broker.TopicKeyManager {
		m.Body = s.withKeySet(t, m, legacy, jwks)
	}
	p = amqp091.Publishing{
		ContentType: m.ContentType, ContentEncoding: m.ContentEncoding, DeliveryMode: 2, Priority: 4, MessageId: "ID:" + uuid.NewString(),
		Timestamp: time.Unix(m.TimestampMillis, 0), // Andes writes milliseconds where the protocol says seconds
		Body:      m.Body, Headers: amqp091.Table{},
	}
	for name, v := range s.AMQP.Headers {
		p.Headers[name] = int32(v.(float64))
	}
	return m.Topic, p
}

// withKeySet makes the key manager of a sample publish its keys on this machine.
func (s eventSample) withKeySet(t *testing.T, m broker.Message, legacy bool, jwks string) []byte {
	t.Helper()
	swap := func(text []byte) []byte { return []byte(withLocalKeySet(string(text), jwks)) }
	if len(s.MapFields) == 0 {
		return base64Text.ReplaceAllFunc(m.Body, swap)
	}
	form := broker.AMQPMap
	if legacy {
		form = broker.JMSMap
	}
	return encodeFields(t, s.MapFields, form, func(text string) string { return string(swap([]byte(text))) })
}

// withLocalKeySet replaces the address of the recorded key set inside of base64.
func withLocalKeySet(text, jwks string) string {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || !bytes.Contains(raw, []byte(recordedJWKS)) {
		return text
	}
	return base64.StdEncoding.EncodeToString(bytes.ReplaceAll(raw, []byte(recordedJWKS), []byte(jwks)))
}

// encodeFields makes a map of texts and booleans; edit changes the texts.
func encodeFields(t *testing.T, fields []mapField, form broker.Encoding, edit func(string) string) []byte {
	t.Helper()
	var payload broker.Payload
	for _, f := range fields {
		var v any
		if err := json.Unmarshal(f.Value, &v); err != nil {
			t.Fatal(err)
		}
		if text, ok := v.(string); ok {
			v = edit(text)
		}
		payload = append(payload, broker.Field{Name: f.Name, Value: v})
	}
	b, err := payload.Encode(form)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var base64Text = regexp.MustCompile(`[A-Za-z0-9+/]{64,}=*`)

// wire publishes on the broker as the API Manager does, and learns of each message whether a queue took it.
type wire struct {
	t        *testing.T
	channel  *amqp091.Channel
	returned chan amqp091.Return
}

func dialWire(t *testing.T, url string) *wire {
	t.Helper()
	c, err := amqp091.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ch, err := c.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &wire{t: t, channel: ch, returned: ch.NotifyReturn(make(chan amqp091.Return, 16))}
}

// publish returns when the broker has the message; routed is false when no queue is bound for it.
func (w *wire) publish(key string, p amqp091.Publishing) (routed bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	confirmed, err := w.channel.PublishWithDeferredConfirmWithContext(ctx, "amq.topic", key, true, false, p)
	if err != nil {
		w.t.Fatal(err)
	}
	if ok, err := confirmed.WaitContext(ctx); err != nil || !ok {
		w.t.Fatalf("the broker did not confirm a message of %s: %v", key, err)
	}
	select { // a return comes before its confirmation
	case <-w.returned:
		return false
	default:
		return true
	}
}

// golden compares a difference with its file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if diff := goldenDiff(t, name, got); diff != "" {
		t.Errorf("the state differs from %s (-want +got):\n%s", name, diff)
	}
}

func goldenDiff(t *testing.T, name, got string) string {
	t.Helper()
	file := filepath.Join(samplesFolder, name)
	if *updateSamples {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return ""
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; write it with -update-samples, and read it", err)
	}
	return cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n"))
}

// sampleNames lists a folder of samples.
func sampleNames(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(samplesFolder, folder, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".json")
	}
	slices.Sort(files)
	return files
}
