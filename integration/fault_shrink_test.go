package integration_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/harness"
)

// confirmLarge is resync_confirm_after of these tests.
const confirmLarge = 1500 * time.Millisecond

// fillLarge is the fault world with more than 50 subscriptions.
func fillLarge(t testing.TB, e *emulator.Emulator) {
	t.Helper()
	fillFaultWorld(t, e)
	s := e.Silent()
	for n := range 15 {
		a, err := s.CreateApplication(emulator.Application{Name: fmt.Sprintf("Many%d", n), SubName: "many"})
		if err != nil {
			t.Fatal(err)
		}
		for _, api := range e.Rows().APIs {
			if _, err := s.Subscribe(emulator.Subscription{APIUUID: api.UUID, AppID: a.ID, PolicyID: "Gold"}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestAListThatShrinksIsHeldBack: an API Manager that is still starting, or has lost its database, answers lists that are
// empty. They are not believed until they have been confirmed, and requests go on.
func TestAListThatShrinksIsHeldBack(t *testing.T) {
	rabbit := harness.Shared(t)
	for _, c := range []struct {
		name string
		fill func(testing.TB, *emulator.Emulator)
		wait time.Duration // until it is confirmed
	}{
		{"a small table", fillFaultWorld, 500 * time.Millisecond},
		{"a table of 50 rows and more", fillLarge, confirmLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, link, x := faultyWorld(t, rabbit, worldOptions{fill: c.fill, eventHubKeys: fmt.Sprintf("resync_confirm_after = %q\n", confirmLarge)})
			path, token := x.p.allowed(t, w.emu)
			goesOn := func(t *testing.T) {
				t.Helper()
				if a := w.gateway.call(http.MethodGet, path, token); a.status != 200 {
					t.Errorf("while the list is held back a request is answered %v", a)
				}
			}
			rows := func() int { return w.gateway.state().Counts["subscriptions"] }
			have := rows()
			held := func() bool { return slices.Contains(w.gateway.heldBack(), "subscriptions") }

			t.Run("empty once", func(t *testing.T) {
				w.emu.AddFault(emulator.Fault{Path: "subscriptions", Kind: emulator.FaultEmpty, Times: 1})
				w.gateway.resync(t)
				eventually(t, equalIn, "the list is held back", held)
				wantHealth(t, w.gateway, "/health/ready", 200, map[string]string{"lists": "degraded"})
				for end := time.Now().Add(c.wait + 500*time.Millisecond); time.Now().Before(end) || held(); time.Sleep(20 * time.Millisecond) {
					goesOn(t)
					if n := rows(); n != have {
						t.Fatalf("%d rows, want the %d from before", n, have)
					}
				}
				wantHealth(t, w.gateway, "/health/ready", 200, map[string]string{"lists": "ok"})
			})

			t.Run("every list empty at a reconnect", func(t *testing.T) {
				for _, p := range listPaths {
					w.emu.AddFault(emulator.Fault{Path: p, Kind: emulator.FaultEmpty, Times: 1})
				}
				link.Cut()
				eventually(t, 5*time.Second, "lists are held back", func() bool {
					return len(w.gateway.heldBack()) >= 8 // scopes and revocations are empty anyway
				})
				for len(w.gateway.heldBack()) > 0 {
					goesOn(t)
					time.Sleep(20 * time.Millisecond)
				}
				w.wantEqual(x.p, time.Now(), equalIn)
			})

			t.Run("most rows gone for good", func(t *testing.T) {
				kept := 0
				for _, s := range w.emu.Rows().Subscriptions {
					if s.SubscriptionState == "BLOCKED" && kept < 2 {
						kept++
						continue
					}
					if err := w.emu.Silent().Unsubscribe(s.SubscriptionID); err != nil {
						t.Fatal(err)
					}
				}
				began := time.Now()
				w.gateway.resync(t)
				eventually(t, equalIn, "the list is held back", held)
				goesOn(t)
				// Events go on applying meanwhile.
				x.change(&w.emu.Changes, "deny user", 9, 0)
				remaining := w.emu.Rows().Subscriptions[0]
				if _, err := w.emu.UpdateSubscription(remaining.SubscriptionID, "ON_HOLD", ""); err != nil {
					t.Fatal(err)
				}
				eventually(t, c.wait*3/4, "an event applies while its list is held back", func() bool {
					return strings.Contains(w.gateway.get(fmt.Sprintf("/api/v1/subscriptions/%d", remaining.SubscriptionID)), `"ON_HOLD"`)
				})
				if !held() || rows() != have {
					t.Errorf("held back %v with %d rows, want %d rows until the second list", w.gateway.heldBack(), rows(), have)
				}
				took := w.wantEqual(x.p, began, c.wait+equalIn)
				if took < c.wait {
					t.Errorf("believed after %s, want not before %s", took, c.wait)
				}
				t.Logf("believed %s after the first list", took.Round(time.Millisecond))
				for _, s := range []string{"held back until a second one says the same", "a second list says the same as the first: applied"} {
					if !strings.Contains(w.gateway.log.String(), s) {
						t.Errorf("the log does not say %q", s)
					}
				}
			})
		})
	}
}
