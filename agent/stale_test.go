package agent

import (
	"strings"
	"testing"
	"time"

	"gatehouse/agent/config"
	"gatehouse/agent/sync"
)

func TestStaleLists(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	hour := config.Duration(time.Hour)
	list := func(name string, age time.Duration) sync.State {
		kinds := map[string]sync.KindState{}
		for _, n := range []string{"subscriptions", "applications", "key_mappings", "revoked_tokens", "deny_policies", "apis"} {
			kinds[n] = sync.KindState{FetchedAt: now}
		}
		kinds[name] = sync.KindState{FetchedAt: now.Add(-age)}
		return sync.State{Lists: sync.ListsState{ByKind: kinds}}
	}
	never := func(s sync.State, name string) sync.State {
		s.Lists.ByKind[name] = sync.KindState{}
		return s
	}
	fromSnapshot := never(list("apis", 0), "revoked_tokens")
	fromSnapshot.Snapshot.TakenAt = now.Add(-2 * time.Hour)
	for _, c := range []struct {
		name string
		on   config.GatewayOnStale
		st   sync.State
		want string
	}{
		{"served all the same", config.GatewayOnStale{Subscriptions: "serve", Revocation: "serve", Deny: "serve", StaleAfter: hour}, list("revoked_tokens", 48*time.Hour), ""},
		{"fresh", config.GatewayOnStale{Subscriptions: "deny", Revocation: "deny", Deny: "deny", StaleAfter: hour}, list("revoked_tokens", 59*time.Minute), ""},
		{"revoked tokens", config.GatewayOnStale{Revocation: "deny", StaleAfter: hour}, list("revoked_tokens", 2*time.Hour), "revoked_tokens"},
		{"deny policies", config.GatewayOnStale{Deny: "deny", StaleAfter: hour}, list("deny_policies", 2*time.Hour), "deny_policies"},
		{"subscriptions", config.GatewayOnStale{Subscriptions: "deny", StaleAfter: hour}, list("subscriptions", 2*time.Hour), "subscriptions"},
		{"key mappings are of the subscriptions", config.GatewayOnStale{Subscriptions: "deny", StaleAfter: hour}, list("key_mappings", 2*time.Hour), "key_mappings"},
		{"another list", config.GatewayOnStale{Revocation: "deny", StaleAfter: hour}, list("deny_policies", 2*time.Hour), ""},
		{"as old as the snapshot", config.GatewayOnStale{Revocation: "deny", StaleAfter: hour}, fromSnapshot, "revoked_tokens"},
		{"never fetched since the start", config.GatewayOnStale{Revocation: "deny", StaleAfter: hour}, never(list("apis", 0), "revoked_tokens"), "revoked_tokens"},
		{"no such list", config.GatewayOnStale{Revocation: "deny", StaleAfter: hour}, sync.State{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := staleList(c.on, c.st, now.Add(-3*time.Hour), now)
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q in it", got, c.want)
			}
		})
	}
}
