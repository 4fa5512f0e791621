package agent

import (
	"time"

	"gatehouse/agent/config"
	"gatehouse/agent/sync"
)

// staleList names a list that is older than [gateway.on_stale] lets requests be served with, "" when there is none. A list
// that was not fetched since the start is as old as the snapshot it came from, or as the gateway itself.
func staleList(on config.GatewayOnStale, st sync.State, started, now time.Time) string {
	for _, c := range [...]struct {
		setting string
		lists   []string
	}{
		{on.Subscriptions, []string{"subscriptions", "applications", "key_mappings"}},
		{on.Revocation, []string{"revoked_tokens"}},
		{on.Deny, []string{"deny_policies"}},
	} {
		if c.setting != "deny" {
			continue
		}
		for _, name := range c.lists {
			k, ok := st.Lists.ByKind[name]
			if !ok {
				continue
			}
			at := k.FetchedAt
			if at.IsZero() {
				at = st.Snapshot.TakenAt
			}
			if at.IsZero() {
				at = started
			}
			if age := now.Sub(at); age > on.StaleAfter.Std() {
				return "the list " + name + " could not be fetched for " + age.Round(time.Second).String() + ", longer than [gateway.on_stale] stale_after"
			}
		}
	}
	return ""
}

// lookAtLists notes whether a list is stale, so that requests pay for one read of memory.
func (a *Agent) lookAtLists() {
	why := staleList(a.cfg.Gateway.OnStale, a.engine.State(), a.started, time.Now())
	if had := a.staleNow(); (had == "") != (why == "") {
		if why != "" {
			a.log.Error().Msg("requests to secured resources are refused: " + why)
		} else {
			a.log.Info().Msg("every list is fresh again: requests to secured resources are served")
		}
	}
	a.stale.Store(&why)
}

// staleNow is what lookAtLists found last.
func (a *Agent) staleNow() string {
	if why := a.stale.Load(); why != nil {
		return *why
	}
	return ""
}

// deniesStale says whether a stale list ends service at all.
func (a *Agent) deniesStale() bool {
	on := a.cfg.Gateway.OnStale
	return on.Subscriptions == "deny" || on.Revocation == "deny" || on.Deny == "deny"
}
