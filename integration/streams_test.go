package integration_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/harness"
)

// TestWhatIsWithdrawnEndsStreams shows that answers under way end when what they were admitted by is withdrawn, and that
// those of others go on.
func TestWhatIsWithdrawnEndsStreams(t *testing.T) {
	feed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 1200 { // a minute at most
			if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}))
	t.Cleanup(feed.Close) // after the gateway, which holds connections to it
	w := startWorld(t, worldOptions{eventHub: harness.Shared(t).URL("carbon"), fill: func(t testing.TB, e *emulator.Emulator) {
		shop(t, e)
		api, err := e.CreateAPI(emulator.API{Name: "Feed", Version: "1.0.0", Context: "/feed/1.0.0", Endpoint: feed.URL, Environments: []string{"Default"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = e.Subscribe(emulator.Subscription{APIUUID: api.UUID, AppID: 1, PolicyID: "Gold", SubscriptionState: "UNBLOCKED"}); err != nil {
			t.Fatal(err)
		}
	}})

	// open begins a stream and returns a channel that is closed when it ends.
	open := func(token string) <-chan struct{} {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		req, err := http.NewRequestWithContext(ctx, "GET", w.gateway.http+"/feed/1.0.0/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "localhost"
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultTransport.(*http.Transport).Clone().RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 200 {
			t.Fatalf("the stream begins with %d", res.StatusCode)
		}
		b := make([]byte, 8)
		if _, err := io.ReadFull(res.Body, b); err != nil || !strings.HasPrefix(string(b), "data: 0") {
			t.Fatalf("the stream begins with %q, %v", b, err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer res.Body.Close()
			_, _ = io.Copy(io.Discard, res.Body)
		}()
		return ended
	}
	ends := func(what string, ended <-chan struct{}) {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Errorf("%s does not end the stream", what)
		}
	}
	goesOn := func(what string, ended <-chan struct{}) {
		t.Helper()
		select {
		case <-ended:
			t.Errorf("%s ends the stream of another", what)
		default:
		}
	}

	revoked, other := w.mint("mobile-app", "alice", "default"), w.mint("mobile-app", "bob", "default")
	first, second := open(revoked), open(other)
	if err := w.emu.Revoke(revoked, time.Now().Add(time.Hour), "Default"); err != nil {
		t.Fatal(err)
	}
	ends("a revocation", first)
	goesOn("a revocation", second)

	third := open(w.mint("mobile-app", "carol", "default"))
	if _, err := w.emu.Deny(emulator.DenyCondition{Type: emulator.DenyUser, Value: "bob@carbon.super"}); err != nil {
		t.Fatal(err)
	}
	ends("a deny policy", second)
	goesOn("a deny policy", third)
	eventually(t, 5*time.Second, "the metrics count the streams that were ended", func() bool {
		return strings.Contains(w.gateway.get("/metrics"), "gatehouse_streams_ended_total 2")
	})
}
