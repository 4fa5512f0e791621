package proxy

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/stage"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// domains is one fake of all four: it knows one token, one application and one subscription.
type domains struct{ published int }

func (d *domains) Authenticate(_ context.Context, c keymanager.Credential) (*keymanager.Token, bool, error) {
	if c.Bearer != "good" {
		return nil, false, &keymanager.Refusal{Check: keymanager.CheckSignature, Detail: "the signature does not match"}
	}
	return &keymanager.Token{KeyManager: "KM", ConsumerKey: "ck", User: "bob", Scopes: []string{"read"}}, true, nil
}

func (d *domains) Resolve(key, km string, api subscription.APIRef) subscription.Facts {
	return subscription.Facts{
		API: &subscription.API{ID: 1, Context: api.Context}, Mapping: &subscription.KeyMapping{ConsumerKey: key, KeyType: subscription.Production},
		Application: &subscription.Application{ID: 7, Name: "App", Owner: "alice", Policy: "50PerMin"}, Subscription: &subscription.Subscription{Policy: "Gold", State: subscription.Unblocked},
	}
}

func (d *domains) ResolveApplication(_ string, _ int64, api subscription.APIRef) subscription.Facts {
	return subscription.Facts{API: &subscription.API{ID: 1, Context: api.Context}}
}

func (d *domains) DenyAnonymous(*throttle.Request) *throttle.DenyCondition  { return nil }
func (d *domains) DenyIdentified(*throttle.Request) *throttle.DenyCondition { return nil }
func (d *domains) Check(*throttle.Request, int64) throttle.Verdict          { return throttle.Verdict{} }
func (d *domains) Publish(*throttle.Request, int64)                         { d.published++ }

func TestRequestGoesThroughThePipeline(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Saw", r.URL.RequestURI()+" "+r.Header.Get("Authorization")+r.Header.Get("X-Forwarded-For"))
		_, _ = io.WriteString(w, "hello")
	}))
	defer backend.Close()
	var log bytes.Buffer
	d := &domains{}
	p, err := New(Options{
		HTTP: "127.0.0.1:0", AccessLog: &log, TracesAdmitted: 10, TracesRefused: 10,
		Domains: stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d},
	})
	if err != nil {
		t.Fatal(err)
	}
	refused := p.SetAPIs([]*definition.API{{
		Name: "Shop", Version: "1.0.0", Context: "/shop/1.0.0", Production: &definition.Endpoint{Kind: definition.Single, URLs: []string{backend.URL + "/base"}},
		Operations: []definition.Operation{{Template: "/*", Method: "GET", Scopes: []string{"read"}}},
	}})
	if len(refused) > 0 {
		t.Fatal(refused)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	go func() { done <- p.Run(ctx) }()
	addr, _ := p.Addr()
	req, _ := http.NewRequest("GET", "http://"+addr+"/shop/1.0.0/items?a=1", nil)
	req.Header.Set("Authorization", "Bearer good")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	if res.StatusCode != 200 || string(b) != "hello" || res.Header.Get("X-Saw") != "/base/items?a=1 127.0.0.1" {
		t.Errorf("got %d %q %q", res.StatusCode, b, res.Header.Get("X-Saw"))
	}
	v, ok := p.Traces().Find(res.Header.Get("X-Request-Id"))
	if !ok || !v.Allowed {
		t.Errorf("trace %v %+v", ok, v)
	}
	res, err = http.Get("http://" + addr + "/shop/1.0.0/items")
	if err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(res.Body)
	if res.StatusCode != 401 || res.Header.Get("Www-Authenticate") != `Bearer realm="Gatehouse"` {
		t.Errorf("got %d %s", res.StatusCode, b)
	}
	if d.published != 1 {
		t.Errorf("published %d", d.published)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Run did not end")
	}
	t.Log(log.String())
}
