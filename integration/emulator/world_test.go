package emulator

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator/broker"
	"gatehouse/integration/emulator/issuer"
	"gatehouse/integration/emulator/receiver"
)

// TestReplayGivesEverySampleWithItsTimesMoved sends each sample over the broker of the world.
func TestReplayGivesEverySampleWithItsTimesMoved(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	ch := listenNATS(t, e)
	files, err := filepath.Glob("testdata/events/*.json")
	if err != nil || len(files) != 116 {
		t.Fatalf("%d samples, %v", len(files), err)
	}
	const shift = 30 * 24 * time.Hour
	for _, file := range files {
		s := must(e.Replay(file, shift))(t)
		t.Run(s.Name, func(t *testing.T) {
			select {
			case m := <-ch:
				if want := "gatehouse.event." + strings.ToLower(s.Topic); m.Subject != want {
					t.Errorf("subject %s, want %s", m.Subject, want)
				}
				if m.Header.Get("Content-Type") != s.AMQP.ContentType {
					t.Errorf("content type %q, want %q", m.Header.Get("Content-Type"), s.AMQP.ContentType)
				}
				still := must(s.Message(0, false))(t)
				back := shiftText(m.Data, -shift)
				if s.Body == nil && s.BodyText == nil {
					back = shiftMap(m.Data, -shift)
				}
				if string(back) != string(still.Body) {
					t.Errorf("moved back it is\n%q, want\n%q", back, still.Body)
				}
				if strings.Contains(string(m.Data), "17640000") {
					t.Errorf("a time was not moved: %s", m.Data)
				}
				if s.Body != nil && !json.Valid(m.Data) {
					t.Errorf("no JSON any more: %s", m.Data)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("nothing came")
			}
		})
	}
	t.Run("expiry of a binary decision", func(t *testing.T) {
		s := must(ReadSample("testdata/events/throttleData-map-decision.json"))(t)
		for _, legacy := range []bool{false, true} {
			m := must(s.Message(shift, legacy))(t)
			want := must(broker.Payload{
				{Name: "isThrottled", Value: true},
				{Name: "evaluatedConditions"},
				{Name: "throttleKey", Value: "12:/weather/2.1.0:2.1.0"},
				{Name: "expiryTimeStamp", Value: 1764000060000 + shift.Milliseconds()},
			}.Encode(map[bool]broker.Encoding{false: broker.AMQPMap, true: broker.JMSMap}[legacy]))(t)
			if string(m.Body) != string(want) {
				t.Errorf("legacy %v: %q, want %q", legacy, m.Body, want)
			}
		}
	})
}

func (c client) control(t *testing.T, method, path string, form url.Values) (int, map[string]any) {
	t.Helper()
	var r *http.Request
	var err error
	if method == "POST" {
		r, err = http.NewRequest(method, c.e.URL()+"/emulator/"+path, strings.NewReader(form.Encode()))
	} else {
		r, err = http.NewRequest(method, c.e.URL()+"/emulator/"+path+"?"+form.Encode(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if method == "POST" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := c.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := must(io.ReadAll(resp.Body))(t)
	var body map[string]any
	if len(b) > 0 && b[0] == '{' {
		if err := json.Unmarshal(b, &body); err != nil {
			t.Fatalf("%v: %s", err, b)
		}
	}
	return resp.StatusCode, body
}

func TestControl(t *testing.T) {
	e, api, _, sub := world(t, Options{})
	c := newClient(t, e)
	do := func(method, path string, pairs ...string) (int, map[string]any) {
		t.Helper()
		form := url.Values{}
		for i := 0; i+1 < len(pairs); i += 2 {
			form.Set(pairs[i], pairs[i+1])
		}
		return c.control(t, method, path, form)
	}
	for _, d := range [][2]string{
		{"ip", "127.0.0.1"},
		{"IPRANGE", "10.0.0.1-10.0.0.9"},
		{"USER", "alice"},
		{"APPLICATION", "dana:MobileApp"},
		{"API", "/weather/2.1.0"},
		{"SUBSCRIPTION", "/weather/2.1.0:2.1.0:dana-MobileApp:PRODUCTION"},
	} {
		if status, body := do("PUT", "deny", "type", d[0], "value", d[1]); status != 200 || body["id"] == nil {
			t.Errorf("deny %v: %d %v", d, status, body)
		}
		if got := len(e.Rows().Deny); got != 1 {
			t.Errorf("deny %v: %d deny policies", d, got)
		}
		if status, body := do("DELETE", "deny", "type", d[0], "value", d[1]); status != 200 {
			t.Errorf("allow %v: %d %v", d, status, body)
		}
		if status, _ := do("DELETE", "deny", "type", d[0], "value", d[1]); status != 404 {
			t.Errorf("allow %v again: %d, want 404", d, status)
		}
	}
	for _, bad := range [][2]string{{"IP", "localhost"}, {"IPRANGE", "10.0.0.1"}, {"IPRANGE", "10.0.0.1-::1"}, {"API", "weather"}, {"APPLICATION", "x"}, {"SUBSCRIPTION", "x"}, {"USER", ""}, {"CITY", "Rome"}} {
		if status, body := do("PUT", "deny", "type", bad[0], "value", bad[1]); status != 400 || body["error"] == nil {
			t.Errorf("deny %v: %d %v, want 400", bad, status, body)
		}
	}
	if status, _ := do("PUT", "subscriptions/1", "state", "BLOCKED"); status != 200 || e.Rows().Subscriptions[0].SubscriptionState != "BLOCKED" {
		t.Errorf("block subscription %d: %d", sub.SubscriptionID, status)
	}
	if status, _ := do("DELETE", "subscriptions/1"); status != 200 || len(e.Rows().Subscriptions) != 0 {
		t.Errorf("delete the subscription: %d", status)
	}
	if status, body := do("POST", "subscriptions", "application", "MobileApp", "api", "WeatherAPI"); status != 200 || len(e.Rows().Subscriptions) != 1 {
		t.Errorf("subscribe: %d %v", status, body)
	}
	if status, _ := do("PUT", "apis/WeatherAPI", "status", "BLOCKED"); status != 200 || e.Rows().APIs[0].Status != "BLOCKED" {
		t.Errorf("block API %s: %d", api.Name, status)
	}
	status, body := do("POST", "token", "client", "ck", "user", "dana")
	token, _ := body["access_token"].(string)
	if status != 200 || strings.Count(token, ".") != 2 {
		t.Fatalf("token: %d %v", status, body)
	}
	if status, _ := do("POST", "revoke", "token", token); status != 200 || len(e.Rows().Revoked) != 1 || e.Rows().Revoked[0].Signature != body["jti"] {
		t.Errorf("revoke: %d %v", status, e.Rows().Revoked)
	}
	if status, _ := do("PUT", "custom-policies", "template", "$userId", "limit", "5", "window", "2s"); status != 200 {
		t.Errorf("custom policy: %d", status)
	}
	if status, body := do("GET", "counters"); status != 200 || body["backend"] == nil {
		t.Errorf("counters: %d %v", status, body)
	}
	if status, body := do("GET", "state"); status != 200 || len(body["custom_policies"].([]any)) != 1 {
		t.Errorf("state: %d %v", status, body)
	}
	t.Run("a page of another site may not steer", func(t *testing.T) {
		status, _, b := c.do(t, "PUT", "/emulator/deny?type=IP&value=10.0.0.1", "", "Origin", "https://elsewhere.example")
		if status != 403 {
			t.Errorf("%d %s", status, b)
		}
	})
	t.Run("the page", func(t *testing.T) {
		status, header, b := c.do(t, "GET", "/emulator/", "")
		if status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "text/html") || !strings.Contains(string(b), "Deny policies") {
			t.Errorf("%d %v", status, header)
		}
	})
}

func requestEvent(user string) receiver.Event {
	payload := []string{
		"m-1", "12:" + user, "50PerMin", "/weather/2.1.0:2.1.0", "Unlimited", "12:/weather/2.1.0:2.1.0", "Bronze",
		"/weather/2.1.0/2.1.0/*:GET", "Unlimited", user, "/weather/2.1.0", "2.1.0", "carbon.super", "carbon.super", "12", "WeatherAPI", `{"ip":2130706433,"ipv6":0}`,
	}
	return receiver.Event{StreamID: receiver.ThrottleStream, Payload: payload}
}

func TestTrafficManagerDecides(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	must(e.Silent().PutPolicy(Policy{Kind: SubscriptionPolicy, Name: "Bronze", Limit: Limit{TimeUnit: "min", UnitTime: 1, Count: 4}}))(t)
	must(e.Silent().SetCustomPolicy("$userId:$clientIp", 2, 300*time.Millisecond))(t)
	ch := listenNATS(t, e)
	next := func() map[string]any {
		t.Helper()
		select {
		case m := <-ch:
			return payload(t, m.Data)
		case <-time.After(5 * time.Second):
			t.Fatal("no decision came")
			return nil
		}
	}
	took := time.Now()
	e.counter.take([]receiver.Event{requestEvent("dana@carbon.super"), requestEvent("erin@carbon.super"), requestEvent("dana@carbon.super")})
	d := next()
	if d["throttleKey"] != "dana@carbon.super:2130706433" || d["isThrottled"] != true || d["evaluatedConditions"] != nil {
		t.Errorf("decision %v", d)
	}
	expires := time.UnixMilli(int64(d["expiryTimeStamp"].(float64)))
	if left := expires.Sub(took); left < 290*time.Millisecond || left > 2*time.Second {
		t.Errorf("expires %s after the first event, want about 300 ms", left)
	}
	e.counter.take([]receiver.Event{requestEvent("dana@carbon.super")}) // the fourth of the subscription
	if d := next(); d["throttleKey"] != "12:/weather/2.1.0:2.1.0" || d["isThrottled"] != true {
		t.Errorf("decision of the business plan %v", d)
	}
	if d := next(); d["throttleKey"] != "dana@carbon.super:2130706433" || d["isThrottled"] != false {
		t.Errorf("release %v", d)
	}
	if got := e.Traffic(); got.Events != 4 || got.ByKey["dana@carbon.super:2130706433"] != 3 || got.ByAPI["WeatherAPI:2.1.0"] != 4 {
		t.Errorf("counts %+v", got)
	}
}

func TestKeyManager(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	c := newClient(t, e)
	get := func(path string, form url.Values) map[string]any {
		t.Helper()
		var resp *http.Response
		if form == nil {
			resp = must(c.http.Get(e.KeyManagerURL() + path))(t)
		} else {
			resp = must(c.http.PostForm(e.KeyManagerURL()+path, form))(t)
		}
		defer resp.Body.Close()
		var body map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		return body
	}
	const oidc = "/realms/shop/protocol/openid-connect"
	keys := func() int { return len(get(oidc+"/certs", nil)["keys"].([]any)) }
	if keys() != 1 {
		t.Error("not one key at the start")
	}
	e.Issuer().AddClient("ck", "secret")
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"ck"}, "client_secret": {"secret"}, "scope": {"a b"}}
	token, _ := get(oidc+"/token", form)["access_token"].(string)
	active := func(token string) any { return get(oidc+"/token/introspect", url.Values{"token": {token}})["active"] }
	if active(token) != true {
		t.Error("a new token is not active")
	}
	form.Set("client_secret", "wrong")
	if got := get(oidc+"/token", form)["error"]; got != "invalid_client" {
		t.Errorf("wrong secret: %v", got)
	}
	if err := e.Issuer().Rotate(true); err != nil || keys() != 2 || active(token) != true {
		t.Errorf("a rotation that keeps the old key: %v, %d keys, %v", err, keys(), active(token))
	}
	if err := e.Issuer().Rotate(false); err != nil || keys() != 1 || active(token) != false {
		t.Errorf("a rotation that drops the old keys: %v, %d keys, %v", err, keys(), active(token))
	}
	for _, opaque := range []bool{false, true} {
		issued := must(e.Issuer().Mint(issuer.Token{ClientID: "ck", Opaque: opaque}))(t)
		if active(issued.Token) != true {
			t.Errorf("opaque %v: not active", opaque)
		}
		e.Issuer().Revoke(issued.Token)
		if active(issued.Token) != false {
			t.Errorf("opaque %v: active after its revocation", opaque)
		}
	}
	old := must(e.Issuer().Mint(issuer.Token{ClientID: "ck", IssuedAt: time.Now().Add(-2 * time.Hour), Opaque: true}))(t)
	if active(old.Token) != false {
		t.Error("an expired token is active")
	}
}
