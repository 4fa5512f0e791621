package sync

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/keymanager"
)

// keyHash is the hash of a generation of a key.
func keyHash(key, generation int) string {
	return hex.EncodeToString(append(make([]byte, 30), byte(key), byte(generation)))
}

// keyHistory is what the API Manager does to a few keys, in order, and what is left of them.
func keyHistory(t *rapid.T, start int64) (events []event.APIKeyChanged, left map[string]keymanager.OpaqueKey) {
	left = make(map[string]keymanager.OpaqueKey)
	at := start
	for key := range rapid.IntRange(1, 3).Draw(t, "keys") {
		uuid, generation := fmt.Sprint("key-", key), 0
		row := keymanager.OpaqueKey{}
		whole := func(action event.Action) {
			at++
			row.PermittedIP = rapid.SampledFrom([]string{"", "10.0.0.1", "10.0.0.2"}).Draw(t, "ip")
			row.Hash, row.UUID, row.User = keyHash(key, generation), uuid, "dana"
			row.Status = rapid.SampledFrom([]string{"ACTIVE", "INACTIVE"}).Draw(t, "status")
			events = append(events, event.APIKeyChanged{
				Base: event.Base{Time: at, Type: "API_KEY_UPDATE"}, Action: action, Hash: row.Hash, UUID: uuid,
				User: row.User, PermittedIP: row.PermittedIP, Status: row.Status, ValidityPeriod: -1,
			})
		}
		whole(event.Create)
		alive := true
		for range rapid.IntRange(0, 6).Draw(t, "changes") {
			if !alive {
				break
			}
			switch rapid.SampledFrom([]string{"update", "stream", "regenerate", "delete", "delete by UUID", "revoke by stream"}).Draw(t, "change") {
			case "update":
				whole(event.Update)
			case "stream":
				at++
				row.Status = rapid.SampledFrom([]string{"ACTIVE", "INACTIVE"}).Draw(t, "status")
				events = append(events, event.APIKeyChanged{Base: event.Base{Time: at, Type: event.TopicOpaqueAPIKey}, Action: event.Update, Hash: row.Hash, Status: row.Status})
			case "regenerate":
				generation++
				whole(event.Update)
			case "delete":
				at++
				alive = false
				events = append(events, event.APIKeyChanged{Base: event.Base{Time: at, Type: "API_KEY_DELETE"}, Action: event.Delete, Hash: row.Hash, UUID: uuid})
			case "delete by UUID":
				at++
				alive = false
				events = append(events, event.APIKeyChanged{Base: event.Base{Time: at, Type: "API_KEY_DELETE"}, Action: event.Delete, UUID: uuid})
			case "revoke by stream":
				at++
				alive = false
				events = append(events, event.APIKeyChanged{Base: event.Base{Time: at, Type: event.TopicOpaqueAPIKey}, Action: event.Delete, Hash: row.Hash, Status: "REVOKED"})
			}
		}
		if alive {
			left[row.Hash] = row
		}
	}
	return events, left
}

func keyRows(e *Engine) map[string]keymanager.OpaqueKey {
	rows := make(map[string]keymanager.OpaqueKey)
	for r := range e.apiKeys.table.All() {
		row := *r
		row.UpdatedAt, row.NotifiedAt, row.Origin = 0, 0, keymanager.Origin{}
		rows[row.Hash] = row
	}
	return rows
}

// restarted is another engine that has read the snapshot of the first one's keys.
func restarted(t *rapid.T, e *Engine) *Engine {
	next, err := New(Options{Decode: event.Decode})
	if err != nil {
		t.Fatal(err)
	}
	from := origin{Kind: "snapshot"}
	read := make(map[string]section)
	for _, s := range next.apiKeySections(from) {
		read[s.name] = s
	}
	for _, s := range e.apiKeySections(from) {
		if err := s.write(read[s.name].read); err != nil {
			t.Fatal(err)
		}
	}
	return next
}

// TestAPIKeysInAnyOrder: whatever the order in which events of two topics come, how often they come, and whenever the gateway
// restarts, the keys that are left are those that the API Manager has left.
func TestAPIKeysInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Now().Add(-time.Hour).UnixMilli()
		history, want := keyHistory(t, start)
		order := rapid.Permutation(history).Draw(t, "order")
		if len(history) > 0 {
			order = append(order, rapid.SliceOfN(rapid.SampledFrom(history), 0, 4).Draw(t, "again")...)
		}
		e, err := New(Options{Decode: event.Decode})
		if err != nil {
			t.Fatal(err)
		}
		for i := range order {
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				e = restarted(t, e)
			}
			e.applyAPIKey(&item{event: order[i], at: time.Now()})
		}
		if diff := cmp.Diff(want, keyRows(e)); diff != "" {
			t.Fatalf("keys (-want +got):\n%s", diff)
		}
		hashes := make(map[string]string)
		for hash, r := range want {
			hashes[r.UUID] = hash
		}
		if !maps.Equal(hashes, e.hashOf) {
			t.Fatalf("hashes by UUID %v, want %v", e.hashOf, hashes)
		}
	})
}

func TestRowsOfAPIKeys(t *testing.T) {
	const now = 1764000000000
	base := event.Base{Time: now, Type: "API_KEY_UPDATE", TenantDomain: "example.com"}
	stream := event.Base{Time: now, Type: event.TopicOpaqueAPIKey}
	full := &keymanager.OpaqueKey{
		Hash: "h", UUID: "u", Tenant: "example.com", User: "dana", ApplicationID: 12, APIID: 41, APIUUID: "api", CreatedAt: 5, ExpiresAt: 7,
		PermittedIP: "10.0.0.1", PermittedReferer: "*.x/*", Status: "ACTIVE", Bound: "APP",
	}
	with := func(change func(*keymanager.OpaqueKey)) *keymanager.OpaqueKey {
		row := *full
		change(&row)
		return &row
	}
	for _, c := range []struct {
		name      string
		ev        event.APIKeyChanged
		cur, want *keymanager.OpaqueKey
	}{
		{
			"valid for a minute from its creation",
			event.APIKeyChanged{Base: base, CreatedAt: now - 1000, ValidityPeriod: 60},
			nil,
			&keymanager.OpaqueKey{Hash: "h", Tenant: "example.com", CreatedAt: now - 1000, ExpiresAt: now + 59_000},
		},
		{"valid for a minute, creation not said", event.APIKeyChanged{Base: stream, ValidityPeriod: 60}, nil, &keymanager.OpaqueKey{Hash: "h", CreatedAt: now, ExpiresAt: now + 60_000}},
		{"for ever", event.APIKeyChanged{Base: stream, ValidityPeriod: -1}, nil, &keymanager.OpaqueKey{Hash: "h"}},
		{"longer than time", event.APIKeyChanged{Base: stream, ValidityPeriod: 1 << 62}, nil, &keymanager.OpaqueKey{Hash: "h", CreatedAt: now, ExpiresAt: now + maxValidity*1000}},
		{"its own expiry wins", event.APIKeyChanged{Base: stream, ValidityPeriod: 60, ExpiresAt: 9}, nil, &keymanager.OpaqueKey{Hash: "h", ExpiresAt: 9}},
		{"the stream says its status alone", event.APIKeyChanged{Base: stream, Status: "INACTIVE"}, full, with(func(r *keymanager.OpaqueKey) { r.Status = "INACTIVE" })},
		{"a salt", event.APIKeyChanged{Base: stream, Salted: true}, full, with(func(r *keymanager.OpaqueKey) { r.Salted = true })},
		{"a notification lifts restrictions", event.APIKeyChanged{Base: base}, full, with(func(r *keymanager.OpaqueKey) { r.PermittedIP, r.PermittedReferer = "", "" })},
		{"made for ever", event.APIKeyChanged{Base: stream, ValidityPeriod: -1}, full, with(func(r *keymanager.OpaqueKey) { r.ExpiresAt = 0 })},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, apiKeyOf(&c.ev, "h", c.cur)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestDeletedKeysAreBounded(t *testing.T) {
	var d deletedKeys
	for i := range maxDeletedKeys + 3 {
		if i > maxDeletedKeys-3 { // the walk for the oldest is long
			d.add(fmt.Sprint(i), int64(i))
			continue
		}
		if d.at == nil {
			d.at = make(map[string]int64)
		}
		d.at[fmt.Sprint(i)] = int64(i)
	}
	names := slices.Collect(maps.Keys(d.at))
	if len(names) != maxDeletedKeys || slices.Contains(names, "0") || !slices.Contains(names, fmt.Sprint(maxDeletedKeys+2)) {
		t.Errorf("%d deletions are remembered, the oldest %t", len(names), slices.Contains(names, "0"))
	}
}

// TestAPIKeysSurviveARestart: there is no list that could bring them back.
func TestAPIKeysSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		now := time.Now().UnixMilli()
		create := event.APIKeyChanged{Base: event.Base{Time: now + 100, Type: "API_KEY_CREATE", EventID: "e1"}, Action: event.Create, Hash: keyHash(1, 0), UUID: "u1", PermittedIP: "10.0.0.1"}
		gone := event.APIKeyChanged{Base: event.Base{Time: now + 100, Type: "API_KEY_CREATE"}, Action: event.Create, Hash: keyHash(2, 0), UUID: "u2"}
		r := newRig(t, full(), func(o *Options) { o.DataDir = dir })
		r.start()
		r.source.state(eventsource.Connected)
		settled(time.Second)
		changes, _, stop := r.Changes(10)
		for _, e := range []event.APIKeyChanged{create, gone, {Base: event.Base{Time: now + 200, Type: "API_KEY_REVOKE"}, Action: event.Delete, UUID: "u2"}} {
			r.source.deliver(r.wire.message(event.TopicNotification, e))
		}
		settled(time.Second)
		c := <-changes
		if row, ok := c.After.(*keymanager.OpaqueKey); !ok || c.What != "api_key" || c.ID != "u1" || c.Before != nil || row.Origin.ID != "e1" || row.UpdatedAt != now+100 {
			t.Errorf("change %+v", c)
		}
		stop()
		r.end(t)

		r = newRig(t, full(), func(o *Options) { o.DataDir = dir })
		r.start()
		defer r.end(t)
		r.source.state(eventsource.Connected)
		settled(time.Second)
		want := map[string]keymanager.OpaqueKey{keyHash(1, 0): {Hash: keyHash(1, 0), UUID: "u1", PermittedIP: "10.0.0.1"}}
		if diff := cmp.Diff(want, keyRows(r.Engine)); diff != "" {
			t.Errorf("after the restart (-want +got):\n%s", diff)
		}
		// A relay tells it all again.
		gone.PermittedIP = "10.0.0.3"
		r.source.deliver(r.wire.message(event.TopicNotification, gone))
		older := create
		older.Time, older.PermittedIP = now+50, ""
		r.source.deliver(r.wire.message(event.TopicNotification, older))
		settled(time.Second)
		if diff := cmp.Diff(want, keyRows(r.Engine)); diff != "" {
			t.Errorf("after the replay (-want +got):\n%s", diff)
		}
		if st := r.State(); st.Sources[0].EventsIgnored["stale"] != 2 {
			t.Errorf("ignored: %v", st.Sources[0].EventsIgnored)
		}
	})
}
