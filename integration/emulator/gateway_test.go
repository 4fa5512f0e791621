package emulator

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"gatehouse/integration/emulator/receiver"
)

// TestKeyManagersOfEachVersion compares the names of the fields with what contract rest.md 7 says of the versions.
func TestKeyManagersOfEachVersion(t *testing.T) {
	for profile, want := range map[string][]string{
		"3.2": {"configuration", "enabled", "name", "tenantDomain", "type"},
		"4.0": {"configuration", "enabled", "name", "tenantDomain", "type"},
		"4.3": {"additionalProperties", "enabled", "name", "organization", "tokenType", "type"},
		"4.x": {"additionalProperties", "enabled", "name", "organization", "tokenType", "type", "uuid"},
	} {
		t.Run(profile, func(t *testing.T) {
			e, _, _, _ := world(t, Options{Profile: profile})
			_, _, b := newClient(t, e).do(t, "GET", "/internal/data/v1/keymanagers", "")
			var rows []map[string]any
			if err := json.Unmarshal(b, &rows); err != nil || len(rows) != 1 {
				t.Fatalf("%v %s", err, b)
			}
			if diff := cmp.Diff(want, slices.Sorted(maps.Keys(rows[0]))); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := New(Options{Profile: "5"}); err == nil {
		t.Error("an unknown profile was taken")
	}
}

func TestRegistration(t *testing.T) {
	e, api, _, _ := world(t, Options{})
	c := newClient(t, e)
	notify := func(body string) (int, string) {
		t.Helper()
		status, _, b := c.do(t, "POST", "/internal/data/v1/notify-gateway", body)
		var answer struct{ Status string }
		_ = json.Unmarshal(b, &answer) // an error has no status
		return status, answer.Status
	}
	heartbeat := `{"payloadType":"HEARTBEAT","gatewayId":"gw-1","timeStamp":1}`
	register := `{"payloadType":"REGISTER","gatewayId":"gw-1","environmentLabels":["Default"],"timeStamp":1}`
	for _, step := range []struct {
		body   string
		status int
		want   string
	}{
		{heartbeat, 200, "re-register"}, {register, 200, "registered"}, {register, 200, "acknowledged"}, {heartbeat, 200, "acknowledged"}, {`{"payloadType":"HELLO"}`, 400, ""},
	} {
		if status, answer := notify(step.body); status != step.status || answer != step.want {
			t.Errorf("%s: %d %q, want %d %q", step.body, status, answer, step.status, step.want)
		}
	}
	e.ForgetGateways()
	if _, answer := notify(heartbeat); answer != "re-register" {
		t.Errorf("after a purge: %q", answer)
	}
	notify(register)
	if err := e.WaitGateway(time.Second); err != nil {
		t.Error(err)
	}
	status := func(gateway string) {
		t.Helper()
		body := fmt.Sprintf(`{"count":1,"list":[{"gatewayId":%q,"apiId":%q,"tenantDomain":"carbon.super","deploymentStatus":"SUCCESS","action":"DEPLOY","timeStamp":1}]}`, gateway, api.UUID)
		if code, _, b := c.do(t, "POST", "/internal/data/v1/notify-api-deployment-status", body); code != 200 || !strings.Contains(string(b), "RECEIVED") {
			t.Errorf("%d %s", code, b)
		}
	}
	status("gw-1")
	status("gw-unknown") // skipped without a word
	if got := e.Recorded(); len(got.Status) != 1 || len(got.Notices) != 6 {
		t.Errorf("recorded %d states and %d notices", len(got.Status), len(got.Notices))
	}
	if code, _, _ := c.do(t, "POST", "/internal/data/v1/notify-api-deployment-status", `{"count":0,"list":[]}`); code != 400 {
		t.Errorf("empty list: %d", code)
	}
}

func TestClientRegistrationAndResidentTokens(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	c := newClient(t, e)
	status, _, b := c.do(t, "POST", "/client-registration/v0.17/register", `{"clientName":"x","grantType":"password","owner":"admin","saasApp":true}`)
	var client struct{ ClientID, ClientSecret string }
	if err := json.Unmarshal(b, &client); status != 200 || err != nil || client.ClientID == "" {
		t.Fatalf("%d %s", status, b)
	}
	r := must(http.NewRequest("POST", e.URL()+"/oauth2/token", strings.NewReader(url.Values{"grant_type": {"password"}, "username": {"admin"}, "password": {"admin"}}.Encode())))(t)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(client.ClientID, client.ClientSecret)
	resp := must(c.http.Do(r))(t)
	defer resp.Body.Close()
	body := must(io.ReadAll(resp.Body))(t)
	if resp.StatusCode != 200 || !strings.Contains(string(body), "access_token") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// TestRequestEventsOverNATS publishes a body without session, as a gateway does over NATS.
func TestRequestEventsOverNATS(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	nc := must(nats.Connect(e.Hub().URL()))(t)
	defer nc.Close()
	text := func(b []byte, s string) []byte { return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) }
	ev := requestEvent("dana@carbon.super")
	one := text(binary.BigEndian.AppendUint64(nil, 1764000000000), receiver.ThrottleStream)
	for _, p := range ev.Payload {
		one = text(one, p)
	}
	body := binary.BigEndian.AppendUint32(nil, 2)
	for range 2 {
		body = append(binary.BigEndian.AppendUint32(body, uint32(len(one))), one...)
	}
	if err := nc.Publish("gatehouse.request", body); err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("gatehouse.request", body[:20]); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); e.Traffic().Events < 2 || e.Receiver().Stats().BadFrames < 1; {
		if time.Now().After(deadline) {
			t.Fatalf("counted %+v, %+v", e.Traffic(), e.Receiver().Stats())
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got := e.Traffic().ByAPI["WeatherAPI:2.1.0"]; got != 2 {
		t.Errorf("%d events of the API", got)
	}
}

func TestOddArtifacts(t *testing.T) {
	e, api, _, _ := world(t, Options{})
	e.OverrideEndpoints(api.UUID, "Default", "https://prod.example", "")
	e.OverrideEndpoints(api.UUID, "Edge EU", "", "https://sandbox.example")
	c := newClient(t, e)
	files := func() map[string]string {
		t.Helper()
		_, _, b := c.do(t, "GET", "/internal/data/v1/runtime-artifacts?type=Envoy", "")
		z := must(zip.NewReader(bytes.NewReader(b), int64(len(b))))(t)
		out := map[string]string{}
		for _, f := range z.File {
			out[f.Name] = string(must(io.ReadAll(must(f.Open())(t)))(t))
		}
		return out
	}
	got := files()
	project := api.UUID + "-" + api.RevisionUUID + ".zip"
	if got[project] == "" || !strings.Contains(got["env_properties.json"], `"productionEndpoint":"https://prod.example"`) ||
		!strings.Contains(got["env_properties.json"], `"sandboxEndpoint":"https://sandbox.example"`) {
		t.Errorf("files %v, properties %s", slices.Sorted(maps.Keys(got)), got["env_properties.json"])
	}
	e.LoseArtifact(api.UUID, true)
	if got := files(); got[project] != "" || !strings.Contains(got["deployments.json"], project) {
		t.Errorf("a lost project: files %v", slices.Sorted(maps.Keys(got)))
	}
}

func TestDenyPolicySwitchedOffAndOn(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	c := newClient(t, e)
	blocked := func() bool {
		_, _, b := c.do(t, "GET", "/internal/data/v1/block", "")
		return strings.Contains(string(b), "10.1.2.3")
	}
	d := must(e.Deny(DenyCondition{Type: DenyIP, Value: "10.1.2.3"}))(t)
	ch := listenNATS(t, e)
	for _, on := range []bool{false, true} {
		if err := e.SwitchDeny(d.ID, on); err != nil {
			t.Fatal(err)
		}
		if blocked() != on {
			t.Errorf("switched %v, /block says %v", on, !on)
		}
		if m := <-ch; payload(t, m.Data)["state"] != fmt.Sprint(on) {
			t.Errorf("event %s", m.Data)
		}
	}
	if err := e.Allow(d.ID + 1); err == nil {
		t.Error("a deny policy that never was is removed")
	}
}

func TestKeyManagerGoesAndComesBack(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	c := newClient(t, e)
	get := func() error {
		resp, err := c.http.Get(e.KeyManagerURL() + e.Issuer().JWKSPath())
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	e.StopKeyManager()
	if get() == nil {
		t.Error("it answers while it is away")
	}
	if err := e.StartKeyManager(); err != nil {
		t.Fatal(err)
	}
	if err := get(); err != nil {
		t.Error(err)
	}
}

func TestBurst(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	ch := listenNATS(t, e)
	e.Burst(500, time.Now().Add(time.Minute))
	for i := range 500 {
		if m := <-ch; payload(t, m.Data)["throttleKey"] != fmt.Sprintf("burst-%d", i) {
			t.Fatalf("message %d: %s", i, m.Data)
		}
	}
}
