package store

import (
	"sync"
	"sync/atomic"
	"testing"

	"gatehouse/subscription"
)

// TestReadersDuringReplaceAll replaces every table, puts and deletes rows, while readers look for rows that are there all
// the time: none may ever be missed, and none may be of the wrong key.
func TestReadersDuringReplaceAll(t *testing.T) {
	const n = 300
	var w world
	rows := func(policy string) []subscription.Subscription {
		var out []subscription.Subscription
		for i := int64(1); i <= n; i++ {
			out = append(out, subscription.Subscription{
				ID: i, APIID: i, ApplicationID: i, APIUUID: uuid(1, i), ApplicationUUID: uuid(2, i),
				State: subscription.Unblocked, Policy: policy,
			})
		}
		return out
	}
	fill := func() world {
		w = world{subscriptions: rows("Gold")}
		for i := int64(1); i <= n; i++ {
			w.apis = append(w.apis, subscription.API{ID: i, UUID: uuid(1, i), Context: "/a/" + uuid(1, i), Version: "1"})
			w.applications = append(w.applications, subscription.Application{ID: i, UUID: uuid(2, i)})
			w.mappings = append(w.mappings, subscription.KeyMapping{ConsumerKey: uuid(3, i), KeyManager: "Default", ApplicationID: i, ApplicationUUID: uuid(2, i)})
		}
		return w
	}
	s := fill().store(false)
	var stop atomic.Bool
	var readers sync.WaitGroup
	for g := range 2 {
		readers.Go(func() {
			for i := int64(g); !stop.Load(); i++ {
				id := i%n + 1
				f := s.Resolve(uuid(3, id), "Resident Key Manager", subscription.APIRef{UUID: uuid(1, id)})
				if v := subscription.Validate(f); v.Reason != subscription.Allowed || f.Subscription.ID != id || f.Application.ID != id || f.API.ID != id {
					t.Errorf("row %d: %s, %+v", id, v.Reason, f)
					stop.Store(true)
				}
				if f := s.ResolveApplication(uuid(2, id), id, subscription.APIRef{UUID: uuid(1, id)}); f.Subscription == nil || f.Subscription.ID != id {
					t.Errorf("application %d: %+v", id, f)
					stop.Store(true)
				}
				if r := s.Subscriptions().Get(id); r == nil || r.ID != id {
					t.Errorf("row %d is %+v", id, r)
					stop.Store(true)
				}
			}
		})
	}
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		next := fill()
		s.Subscriptions().ReplaceAll(next.subscriptions)
		s.APIs().ReplaceAll(next.apis)
		s.KeyMappings().ReplaceAll(next.mappings)
		s.Applications().ReplaceAll(next.applications)
		silver := rows("Silver")
		for i := int64(1); i <= n; i++ {
			// Rows that come and go among those that stay, and rows that stay and change.
			s.Subscriptions().Put(subscription.Subscription{ID: n + i, APIID: i, ApplicationID: i + 1})
			s.Subscriptions().Put(silver[i-1])
			if i%2 == int64(round%2) {
				s.Subscriptions().Delete(n + i)
			}
		}
		count := 0
		for range s.Subscriptions().All() {
			count++
		}
		if count != s.Subscriptions().Len() {
			t.Fatalf("All yields %d rows of %d", count, s.Subscriptions().Len())
		}
	}
	stop.Store(true)
	readers.Wait()
}
