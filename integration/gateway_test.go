package integration_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/harness"
)

// shop fills the API Manager with one API on the sample backend, and an application of alice with a subscription.
func shop(t testing.TB, e *emulator.Emulator) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := e.PutKeyManager(emulator.KeyManager{Name: "Corp Keycloak", Type: "KeyCloak", Configuration: e.IssuerConfiguration()})
	must(err)
	api, err := e.CreateAPI(emulator.API{
		Name: "Shop", Version: "1.0.0", Context: "/shop/1.0.0", Endpoint: e.BackendURL(), SandboxEndpoint: e.BackendURL(), Environments: []string{"Default"},
	})
	must(err)
	app, err := e.CreateApplication(emulator.Application{Name: "MobileApp", SubName: "alice", Policy: "Unlimited"})
	must(err)
	_, err = e.AddKeyMapping(emulator.KeyMapping{ApplicationID: app.ID, ConsumerKey: "mobile-app", KeyManager: "Corp Keycloak"})
	must(err)
	e.Issuer().AddClient("mobile-app", "secret")
	_, err = e.Subscribe(emulator.Subscription{APIUUID: api.UUID, AppID: app.ID, PolicyID: "Gold", SubscriptionState: "UNBLOCKED"})
	must(err)
}

func TestARequestGoesThroughOverARealBroker(t *testing.T) {
	w := startWorld(t, worldOptions{eventHub: harness.Shared(t).URL("carbon"), fill: shop})
	token := w.mint("mobile-app", "alice", "default")
	if a := w.gateway.call("GET", "/shop/1.0.0/items", token); a.status != 200 {
		t.Fatalf("answer = %v, want 200", a)
	}
	if a := w.gateway.call("GET", "/shop/1.0.0/items", ""); a.status != 401 || a.code != 900902 {
		t.Errorf("without a token: %v, want 401/900902", a)
	}
	if _, err := w.emu.Deny(emulator.DenyCondition{Type: emulator.DenyAPI, Value: "/shop/1.0.0"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Second, "the deny policy bites", func() bool {
		a := w.gateway.call("GET", "/shop/1.0.0/items", token)
		return a.status == 403 && a.code == 900805
	})
}

func TestEveryAnswerCanBeTracedByItsID(t *testing.T) {
	w := startWorld(t, worldOptions{fill: shop})
	token := w.mint("mobile-app", "alice", "default")
	ok := w.gateway.call("GET", "/shop/1.0.0/items", token)
	refused := w.gateway.call("GET", "/shop/1.0.0/items", "", func(r *http.Request) { r.Header.Set("X-Request-Id", "mine-1") })
	if id := refused.header.Get("X-Request-Id"); id != "mine-1" {
		t.Errorf("request id = %q, want the one that was sent", id)
	}
	for _, c := range []struct {
		id   string
		want []string
	}{
		{ok.header.Get("X-Request-Id"), []string{`"allowed":true`, `"step":"subscription"`, `"kind":"pull"`, `"key_manager":"Corp Keycloak"`}},
		{"mine-1", []string{`"allowed":false`, `"code":900902`, `"step":"authenticate"`}},
	} {
		trace := w.gateway.get("/api/v1/explain?request_id=" + c.id)
		for _, want := range c.want {
			if !strings.Contains(trace, want) {
				t.Errorf("trace of %s lacks %s: %s", c.id, want, trace)
			}
		}
		if strings.Contains(trace, token) || strings.Contains(trace, strings.Split(token, ".")[2]) {
			t.Errorf("trace of %s holds the token", c.id)
		}
	}
}
