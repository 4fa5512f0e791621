package sync

import (
	"encoding/json"
	"fmt"
	"iter"
	"sync"
	"time"

	"gatehouse/agent/event"
	"gatehouse/keymanager"
)

// API keys that are no JWTs come by events alone: the API Manager has no list of them. So nothing settles what an event left
// open, and three things differ from the other kinds. The ledger has no floor, since there is no list that an event could be
// older than; what keeps an older event away from a newer row is the time in the row, which the snapshot keeps. Deletions are
// in the snapshot as well: a replay of the key's creation must not bring it back. And the snapshot on disk is the
// only place where the keys are after a restart.
//
// A key is named by its hash, and by its UUID where an event gives one: a new hash under a known UUID replaces the key.

// maxDeletedKeys bounds the deletions that are remembered, each under one or two names.
const maxDeletedKeys = 100_000

// deletedKeys are the deletions for the snapshot, by name; the ledger has them for events.
type deletedKeys struct {
	mu sync.Mutex
	at map[string]int64
}

func (d *deletedKeys) add(name string, t int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at == nil {
		d.at = make(map[string]int64)
	}
	if len(d.at) >= maxDeletedKeys {
		oldest := ""
		for k, at := range d.at { // this many deletions are rare, and a walk is cheap beside what made them
			if oldest == "" || at < d.at[oldest] {
				oldest = k
			}
		}
		delete(d.at, oldest)
	}
	d.at[name] = max(d.at[name], t)
}

func (d *deletedKeys) drop(name string) {
	d.mu.Lock()
	delete(d.at, name)
	d.mu.Unlock()
}

// deletedKey is a deletion in the snapshot.
type deletedKey struct {
	Name string
	At   int64 // ms
}

func (d *deletedKeys) all() iter.Seq[*deletedKey] {
	d.mu.Lock()
	list := make([]deletedKey, 0, len(d.at))
	for k, at := range d.at {
		list = append(list, deletedKey{k, at})
	}
	d.mu.Unlock()
	return func(yield func(*deletedKey) bool) {
		for i := range list {
			if !yield(&list[i]) {
				return
			}
		}
	}
}

// keyUUID is the name of a key by its UUID, and keyTold that under which the ledger knows when a notification told of it; no
// hash can be taken for one of them.
func keyUUID(uuid string) string { return "uuid " + uuid }
func keyTold(hash string) string { return "told " + hash }

func (e *Engine) buildAPIKeys(w *worker) {
	e.hashOf = make(map[string]string)
	d := dataset[string, keymanager.OpaqueKey]{
		what: "api_key", table: e.opt.Domains.APIKeys, same: sameAPIKey,
		key:   func(r *keymanager.OpaqueKey) string { return r.Hash },
		stamp: func(r *keymanager.OpaqueKey, at int64, o origin) { r.UpdatedAt, r.Origin = at, keymanager.Origin(o) },
		id: func(k string, r *keymanager.OpaqueKey) string {
			if r != nil && r.UUID != "" {
				return r.UUID
			}
			return shortHash(k)
		},
		show:    func(r *keymanager.OpaqueKey) any { return r },
		changed: e.apiKeyChanged,
	}
	if d.table.Put == nil { // nobody wants them
		e.apiKeys = small(newDataset(e, w, kindAPIKeys, event.TopicOpaqueAPIKey, d), Sink[keymanager.OpaqueKey]{})
	} else {
		e.apiKeys = newDataset(e, w, kindAPIKeys, event.TopicOpaqueAPIKey, d)
	}
	e.apiKeys.unlisted = true
}

// shortHash is enough of a hash to tell keys apart by.
func shortHash(hash string) string { return hash[:min(len(hash), 16)] }

func sameAPIKey(a, b *keymanager.OpaqueKey) bool {
	x, y := *a, *b
	x.UpdatedAt, x.NotifiedAt, x.Origin = y.UpdatedAt, y.NotifiedAt, y.Origin
	return x == y
}

// apiKeyChanged keeps the hash of each UUID.
func (e *Engine) apiKeyChanged(before, after *keymanager.OpaqueKey) {
	if before != nil && before.UUID != "" && (after == nil || after.UUID != before.UUID) && e.hashOf[before.UUID] == before.Hash {
		delete(e.hashOf, before.UUID)
	}
	if after != nil && after.UUID != "" {
		e.hashOf[after.UUID] = after.Hash
	}
}

func (e *Engine) applyAPIKey(it *item) outcome {
	ev, ok := it.event.(event.APIKeyChanged)
	hash := keymanager.CanonicalKeyHash(ev.Hash)
	if !ok || hash == "" && ev.UUID == "" {
		return outUnknown
	}
	// Every name of the key is judged by the same time.
	ev.Time = e.eventTime(ev.Time, it.at)
	former := ""
	if ev.UUID != "" {
		former = e.hashOf[ev.UUID]
		if e.apiKeys.ledger.judge(keyUUID(ev.UUID), ev.Time) == stale {
			if hash != "" && hash != former {
				// The key has another hash by now, or is gone: whoever knows it by this one does not know that yet.
				e.deleteAPIKey(&event.Base{Time: e.apiKeys.ledger.entries[keyUUID(ev.UUID)].time, Type: ev.Type}, hash)
			}
			return outStale
		}
	}
	if ev.Action == event.Delete {
		out := applied
		for _, name := range []string{hash, former} {
			if name != "" {
				out = e.deleteAPIKey(&ev.Base, name)
			}
		}
		if ev.UUID != "" {
			e.noteUUID(ev.UUID, ev.Time, true)
		}
		return out
	}
	out := e.putAPIKey(&ev, hash, it.at)
	if ev.UUID == "" {
		return out
	}
	if former != "" && former != hash {
		e.deleteAPIKey(&ev.Base, former)
	}
	// This was the key's hash at that time, even if it is gone since.
	e.noteUUID(ev.UUID, ev.Time, e.apiKeys.table.Get(hash) == nil)
	return out
}

// noteUUID remembers when the last news of a key came, by its UUID.
func (e *Engine) noteUUID(uuid string, t int64, deleted bool) {
	name := keyUUID(uuid)
	e.apiKeys.ledger.note(name, t, deleted, time.Now())
	if deleted {
		e.deletedKeys.add(name, t)
	} else {
		e.deletedKeys.drop(name)
	}
	e.dirty.Store(true)
}

// putAPIKey takes a key that is told of. Notifications and the stream tell of one key at about the same time, and in
// any order: a notification that comes after a newer message of the stream adds what that does not say.
func (e *Engine) putAPIKey(ev *event.APIKeyChanged, hash string, now time.Time) outcome {
	d := e.apiKeys
	whole := ev.Type != event.TopicOpaqueAPIKey
	told := keyTold(hash)
	if whole && d.ledger.judge(told, ev.Time) > equal {
		return outStale
	}
	out := d.change(&ev.Base, hash, func(cur *keymanager.OpaqueKey) *keymanager.OpaqueKey { return apiKeyOf(ev, hash, cur) })
	if cur := d.table.Get(hash); out == outStale && whole && cur != nil && d.ledger.entries[hash].time > ev.Time {
		row := apiKeyOf(ev, hash, cur)
		row.Status, row.ExpiresAt = cur.Status, cur.ExpiresAt
		if cur.KeyType != "" {
			row.KeyType = cur.KeyType
		}
		if !sameAPIKey(cur, row) {
			d.write(hash, cur, row, origin{Kind: "event", At: now.UnixMilli(), ID: ev.EventID}, cur.UpdatedAt)
		}
		out = applied
	}
	if out != applied {
		return out
	}
	e.deletedKeys.drop(hash)
	if whole {
		d.ledger.note(told, ev.Time, false, now)
	}
	// Its times go with the row, also where nothing else is new: after a restart they alone say how old it is.
	if cur := d.table.Get(hash); cur != nil {
		row := *cur
		row.UpdatedAt = max(row.UpdatedAt, ev.Time)
		if whole {
			row.NotifiedAt = max(row.NotifiedAt, ev.Time)
		}
		if row != *cur {
			d.table.Put(row)
			e.dirty.Store(true)
		}
	}
	return applied
}

// deleteAPIKey takes a key away by its hash, and its UUID with it.
func (e *Engine) deleteAPIKey(b *event.Base, hash string) outcome {
	held := e.apiKeys.table.Get(hash)
	out := e.apiKeys.change(b, hash, func(*keymanager.OpaqueKey) *keymanager.OpaqueKey { return nil })
	if out != applied {
		return out
	}
	e.deletedKeys.add(hash, b.Time)
	e.dirty.Store(true)
	if held != nil && held.UUID != "" && e.hashOf[held.UUID] == "" {
		e.noteUUID(held.UUID, b.Time, true)
	}
	return applied
}

// apiKeyOf makes the row of an event. What the stream opaqueAPIKeyInfo does not say stays as a notification has said
// it, above all from where the key may be used.
func apiKeyOf(ev *event.APIKeyChanged, hash string, cur *keymanager.OpaqueKey) *keymanager.OpaqueKey {
	row := keymanager.OpaqueKey{
		Hash: hash, Salted: ev.Salted, UUID: ev.UUID, Name: ev.Name, Tenant: ev.TenantDomain, KeyType: ev.KeyType, User: ev.User,
		ApplicationID: ev.ApplicationID, ApplicationUUID: ev.ApplicationUUID, APIID: ev.APIID, APIUUID: ev.APIUUID, Bound: ev.Bound,
		PermittedIP: ev.PermittedIP, PermittedReferer: ev.PermittedReferer, Status: ev.Status, CreatedAt: ev.CreatedAt, ExpiresAt: ev.ExpiresAt,
	}
	if cur != nil {
		row.Salted = row.Salted || cur.Salted
		row.NotifiedAt = cur.NotifiedAt
		for _, f := range []struct {
			text  *string
			known string
		}{
			{&row.UUID, cur.UUID},
			{&row.Name, cur.Name},
			{&row.Tenant, cur.Tenant},
			{&row.KeyType, cur.KeyType},
			{&row.User, cur.User},
			{&row.ApplicationUUID, cur.ApplicationUUID},
			{&row.APIUUID, cur.APIUUID},
			{&row.Bound, cur.Bound},
			{&row.Status, cur.Status},
		} {
			keep(f.text, f.known)
		}
		if row.ApplicationID == 0 {
			row.ApplicationID = cur.ApplicationID
		}
		if row.APIID == 0 {
			row.APIID = cur.APIID
		}
		if row.CreatedAt == 0 {
			row.CreatedAt = cur.CreatedAt
		}
		if ev.Type == event.TopicOpaqueAPIKey {
			keep(&row.PermittedIP, cur.PermittedIP)
			keep(&row.PermittedReferer, cur.PermittedReferer)
		}
	}
	switch {
	case row.ExpiresAt != 0:
	case ev.ValidityPeriod > 0:
		if row.CreatedAt == 0 {
			row.CreatedAt = ev.Time // of a stream that does not say it: the key was made a moment ago
		}
		row.ExpiresAt = row.CreatedAt + min(ev.ValidityPeriod, maxValidity)*1000
	case ev.ValidityPeriod == 0 && cur != nil: // not said
		row.ExpiresAt = cur.ExpiresAt
	}
	return &row
}

// maxValidity is longer than any key lives, in seconds: a thousand years.
const maxValidity = 1000 * 366 * 86400

// apiKeySections are the keys and their deletions in the snapshot. Both come back with their times.
func (e *Engine) apiKeySections(from origin) []section {
	d := e.apiKeys
	return []section{
		jsonSection(kindAPIKeys, d.table.All, func(r keymanager.OpaqueKey) error {
			if r.Hash == "" {
				return fmt.Errorf("an API key without a hash")
			}
			updated := r.UpdatedAt
			d.stamp(&r, updated, from)
			d.table.Put(r)
			e.apiKeyChanged(nil, &r)
			e.restored(r.Hash, updated, false)
			if r.NotifiedAt > 0 {
				e.restored(keyTold(r.Hash), r.NotifiedAt, false)
				if r.UUID != "" {
					e.restored(keyUUID(r.UUID), r.NotifiedAt, false)
				}
			}
			return nil
		}),
		{
			name: "deleted_" + kindAPIKeys,
			write: func(emit func([]byte) error) error {
				for k := range e.deletedKeys.all() {
					b, err := json.Marshal(k)
					if err != nil {
						return err
					}
					if err := emit(b); err != nil {
						return err
					}
				}
				return nil
			},
			read: func(record []byte) error {
				var k deletedKey
				if err := json.Unmarshal(record, &k); err != nil {
					return err
				}
				e.restored(k.Name, k.At, true)
				e.deletedKeys.add(k.Name, k.At)
				return nil
			},
		},
	}
}

// restored notes how old what the snapshot says under a name is.
func (e *Engine) restored(name string, t int64, deleted bool) {
	e.apiKeys.ledger.note(name, t, deleted, time.Now())
}
