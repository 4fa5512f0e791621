package sync

import (
	"slices"
	"time"
)

// tombstoneKeep is how long a deletion is remembered by itself (contract events.md 7.3 rule 3). Older ones are covered
// by the ledger's floor.
const tombstoneKeep = 10 * time.Minute

// verdict is what the ledger says of an event.
type verdict uint8

const (
	// fresh: nothing newer is known of the entity. Apply.
	fresh verdict = iota
	// equal: the entity's last event had the same time stamp. Apply; handlers are idempotent.
	equal
	// stale: a newer event of the entity was applied. Drop.
	stale
	// late: no newer event is known, but a list or a row that was asked for after the event happened has been applied,
	// so the event is either in it already or older than what it says. Drop, and ask if it would change something.
	late
)

func (v verdict) String() string { return [...]string{"fresh", "equal", "stale", "late"}[v] }

// entry is what is known of the age of one entity. Times are the API Manager's, in ms.
type entry struct {
	time int64
	// sure is until when an event may be older than the fact although its time stamp is newer: the API Manager's clock
	// is known to about a second only. Equal to time for facts that came by event.
	sure int64
	// seq is the order of arrival within the data set.
	seq uint64
	// local is when the fact was learnt (event) or asked for (pulled), our clock.
	local   int64
	deleted bool
	pulled  bool
}

// ledger keeps, per entity, the time of the newest fact that is newer than the last list. It is bounded: what the floor
// covers is forgotten, and when too much is newer than the floor the older half is forgotten and the floor rises above
// it, which turns a stray older event into a question to the API Manager instead of a wrong answer.
//
// A ledger belongs to one worker goroutine.
type ledger[K comparable] struct {
	entries map[K]entry
	// floor is the start of the newest list that was applied; sure as in entry.
	floor, sure int64
	// listed is when that list was asked for, by our clock.
	listed int64
	seq    uint64
	limit  int
	// evicted is the newest time that was forgotten for want of room.
	evicted int64
	hooks   *hooks
}

func newLedger[K comparable](limit int, h *hooks) *ledger[K] {
	return &ledger[K]{entries: make(map[K]entry), limit: limit, hooks: h}
}

// judge compares an event of time t with what is known of k.
func (l *ledger[K]) judge(k K, t int64) verdict {
	if l.hooks.olderReplacesNewer {
		return fresh
	}
	e, ok := l.entries[k]
	switch {
	case ok && t < e.time && e.pulled:
		return late
	case ok && t < e.time:
		return stale
	case t < l.floor:
		return late
	case ok && t == e.time && !e.pulled:
		return equal
	}
	return fresh
}

// doubtful reports whether an event of time t, though newer by its stamp than all that is known, may be older because
// clocks differ.
func (l *ledger[K]) doubtful(k K, t int64) bool {
	if t <= l.sure {
		return true
	}
	e, ok := l.entries[k]
	return ok && e.pulled && t <= e.sure
}

// note records a fact of k that came by event.
func (l *ledger[K]) note(k K, t int64, deleted bool, now time.Time) {
	if deleted && l.hooks.noTombstone {
		delete(l.entries, k)
		return
	}
	l.set(k, entry{time: t, sure: t, deleted: deleted, local: now.UnixMilli()})
}

// notePulled records that k was asked for by itself.
func (l *ledger[K]) notePulled(k K, w window, deleted bool) {
	if deleted && l.hooks.noTombstone {
		delete(l.entries, k)
		return
	}
	e := entry{time: w.start, sure: w.hi, deleted: deleted, pulled: true, local: w.local}
	if old, ok := l.entries[k]; ok && old.time > e.time {
		e.time = old.time
		e.sure = max(e.sure, old.time)
	}
	l.set(k, e)
}

func (l *ledger[K]) set(k K, e entry) {
	l.seq++
	e.seq = l.seq
	l.entries[k] = e
	if len(l.entries) > l.limit {
		l.halve()
	}
}

// advance raises the floor to a list that was applied and forgets what it covers.
func (l *ledger[K]) advance(w window, now time.Time) {
	l.floor = max(l.floor, w.start)
	l.sure = max(l.sure, w.hi)
	l.listed = max(l.listed, w.local)
	l.expire(now)
}

// expire forgets what the floor covers, tombstones after ten minutes only.
func (l *ledger[K]) expire(now time.Time) {
	before := now.Add(-tombstoneKeep).UnixMilli()
	for k, e := range l.entries {
		if e.time < l.floor && (!e.deleted || e.local < before) {
			delete(l.entries, k)
		}
	}
}

// halve forgets the older half and raises the floor above it.
func (l *ledger[K]) halve() {
	times := make([]int64, 0, len(l.entries))
	for _, e := range l.entries {
		times = append(times, e.time)
	}
	slices.Sort(times)
	cut := times[len(times)/2]
	for k, e := range l.entries {
		if e.time <= cut {
			delete(l.entries, k)
		}
	}
	l.floor = max(l.floor, cut+1)
	l.evicted = max(l.evicted, cut)
}
