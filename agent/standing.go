package agent

import (
	"context"
	"strings"
	"sync"
	"time"

	"gatehouse/agent/admin"
)

// healthEvery is how often the checks are looked at when nobody asks, so that "since" is right to about that much.
const healthEvery = time.Second

// standing remembers since when each check has its status. The zero value is ready, for any number of goroutines.
type standing struct {
	mu sync.Mutex
	of map[string]admin.Check
}

// since fills in when the check took its status: at now, where it has another than it had.
func (s *standing) since(c *admin.Check, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if had, ok := s.of[c.Name]; ok && had.Status == c.Status {
		c.Since = had.Since
		return
	}
	if s.of == nil {
		s.of = make(map[string]admin.Check)
	}
	c.Since = admin.At(now)
	s.of[c.Name] = *c
}

// severity orders the statuses of a check.
var severity = map[string]int{"ok": 0, "degraded": 1, "failed": 2}

// joinCheck adds c to the checks. One of the same name becomes one with it, as bad as the worse of the two: a traffic
// manager is published to, and may be listened to over a connection of its own.
func joinCheck(checks []admin.Check, c admin.Check) []admin.Check {
	for i := range checks {
		had := &checks[i]
		if had.Name != c.Name {
			continue
		}
		if severity[c.Status] > severity[had.Status] {
			had.Status = c.Status
		}
		had.Detail = strings.Trim(had.Detail+"; "+c.Detail, "; ")
		return checks
	}
	return append(checks, c)
}

// watchHealth looks at the checks, and tells the readers of the event stream when a traffic manager that is published to
// comes or goes.
func (a *Agent) watchHealth(ctx context.Context) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	var connected []bool
	denies := a.deniesStale()
	for {
		a.checks()
		if denies {
			a.lookAtLists()
		}
		if p := a.domains.publisher; p != nil {
			for i, g := range p.State() {
				switch {
				case i == len(connected):
					connected = append(connected, g.Connected)
				case connected[i] == g.Connected:
				default:
					connected[i] = g.Connected
					state := "disconnected"
					if g.Connected {
						state = "connected"
					}
					a.feed.Publish(admin.KindConnection, admin.Connection{Source: "traffic_manager", State: state})
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
