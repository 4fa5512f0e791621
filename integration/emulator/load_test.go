package emulator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestLoadedSamplesComeBackAsTheyWere serves the recorded data set and compares each answer with its recording.
func TestLoadedSamplesComeBackAsTheyWere(t *testing.T) {
	e, err := New(Options{Profile: "4.3", OnError: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, k := range []PolicyKind{SubscriptionPolicy, ApplicationPolicy, APIPolicy} { // those of a first start have other ids
		if err := e.Silent().DeletePolicy(k, "", "Unlimited"); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.LoadSamples("testdata/rest", true, "Default"); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, e)
	for endpoint, file := range map[string]string{
		"apis?gatewayLabel=Default": "apis.json", "applications": "applications.json", "applications?appId=2": "applications-by-id.json",
		"application-key-mappings": "application-key-mappings.json", "subscriptions": "subscriptions.json",
		"subscription-policies": "subscription-policies.json", "application-policies": "application-policies.json", "api-policies": "api-policies.json",
		"scopes": "scopes.json", "block": "block.json", "keyTemplates": "keyTemplates.json", "revokedjwt": "revokedjwt.json",
		"apis?context=/pizza/1.0.0&version=1.0.0":                  "apis-by-context-version.json",
		"application-key-mappings?consumerKey=partner-portal-prod": "application-key-mappings-by-key.json",
	} {
		t.Run(endpoint, func(t *testing.T) {
			status, _, b := c.do(t, "GET", "/internal/data/v1/"+endpoint, "")
			if status != 200 {
				t.Fatalf("%d %s", status, b)
			}
			recorded := must(os.ReadFile("testdata/rest/" + file))(t)
			var got, want any
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(recorded, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(order(want), order(got)); diff != "" {
				t.Errorf("(-recorded +served):\n%s", diff)
			}
		})
	}
}

// order sorts lists of objects by their text, because no answer promises an order.
func order(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = order(v[k])
		}
	case []any:
		for i := range v {
			v[i] = order(v[i])
		}
		slices.SortFunc(v, func(a, b any) int {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			return bytes.Compare(x, y)
		})
	}
	return v
}

func TestAStaleAnswerIsWorkedOutBeforeItIsDelivered(t *testing.T) {
	e, api, _, _ := world(t, Options{})
	c := newClient(t, e)
	e.AddFault(Fault{Path: "apis", Kind: FaultStale, Delay: 300 * time.Millisecond, Times: 1})
	answer := make(chan []map[string]any, 1)
	go func() { answer <- c.list(t, "/internal/data/v1/apis") }()
	for e.Recorded().Requests["apis"] == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond) // the answer is worked out at once
	if err := e.DeleteAPI(api.UUID); err != nil {
		t.Fatal(err)
	}
	if rows := <-answer; len(rows) != 1 {
		t.Errorf("%d APIs, want the one that was there when it was asked", len(rows))
	}
	if rows := c.list(t, "/internal/data/v1/apis"); len(rows) != 0 {
		t.Errorf("afterwards %d APIs", len(rows))
	}
}

func TestFixedAnswers(t *testing.T) {
	e, _, _, _ := world(t, Options{})
	c := newClient(t, e)
	e.SetAnswer("keyTemplates", 200, "application/json", []byte(`["$appId"]`))
	if status, _, b := c.do(t, "GET", "/internal/data/v1/keyTemplates", ""); status != 200 || string(b) != `["$appId"]` {
		t.Errorf("%d %s", status, b)
	}
	e.SetAnswer("keyTemplates", 0, "", nil)
	if _, _, b := c.do(t, "GET", "/internal/data/v1/keyTemplates", ""); string(bytes.TrimSpace(b)) != "[]" {
		t.Errorf("afterwards %s", b)
	}
}

// TestChangesFromManyGoroutines lets writers and readers race; afterwards what is served is what the rows say, and every
// change left one event.
func TestChangesFromManyGoroutines(t *testing.T) {
	e, api, _, _ := world(t, Options{})
	c := newClient(t, e)
	const writers, each = 8, 20
	var done sync.WaitGroup
	for w := range writers {
		done.Go(func() {
			for i := range each {
				app, err := e.CreateApplication(Application{Name: fmt.Sprintf("app-%d-%d", w, i), SubName: "dana"})
				if err != nil {
					t.Error(err)
					return
				}
				sub, err := e.Subscribe(Subscription{APIUUID: api.UUID, AppID: app.ID})
				if err == nil && i%2 == 0 {
					_, err = e.UpdateSubscription(sub.SubscriptionID, "BLOCKED", "")
				}
				if err == nil && i%4 == 1 {
					err = e.Unsubscribe(sub.SubscriptionID)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 4 {
		done.Go(func() {
			for range each {
				c.list(t, "/internal/data/v1/subscriptions")
			}
		})
	}
	done.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := e.Hub().Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if got, want := e.Hub().Stats().Published["notification"], writers*each*2+writers*each/2+writers*each/4; got != want {
		t.Errorf("%d events, want %d", got, want)
	}
	rows := e.Rows().Subscriptions
	served := c.list(t, "/internal/data/v1/subscriptions")
	if len(rows) != len(served) || len(rows) != 1+writers*each-writers*each/4 {
		t.Fatalf("%d rows, %d served", len(rows), len(served))
	}
	for i, r := range rows {
		if served[i]["subscriptionState"] != r.SubscriptionState || served[i]["subscriptionId"] != float64(r.SubscriptionID) {
			t.Errorf("row %+v was served as %v", r, served[i])
		}
	}
}
