package sync

import "time"

// smallTable is the size from which on a suspicious list is confirmed after a long wait.
const smallTable = 50

// held is a list that was not believed.
type held[K comparable] struct {
	keys  map[K]struct{}
	since time.Time
	lo    int64
}

// suspicious tells whether a list looks like an outage rather than like the truth: empty, or less than half of what is
// held (contract gateway-behaviour.md 33 rule 4).
func suspicious(listed, have int) bool { return have > 0 && (listed == 0 || 2*listed < have) }

// holdBack decides whether the list waits for a second one that says the same, and until when. Events go on applying.
func (d *dataset[K, R]) holdBack(p *pull[K, R], w window) (again time.Time, hold bool) {
	have := d.table.Len()
	if !suspicious(len(p.seen), have) {
		d.held = nil
		return time.Time{}, false
	}
	wait := d.e.opt.ResyncConfirmAfter
	if have < smallTable {
		wait = d.e.opt.ConfirmSmallAfter
	}
	now := time.Now()
	if d.held != nil && d.sameKeys(p) {
		if again = d.held.since.Add(wait); !again.After(now) {
			d.held = nil
			d.log.Warn().Int("rows", len(p.seen)).Int("before", have).Msg("a second list says the same as the first: applied")
			return time.Time{}, false
		}
		return again, true
	}
	d.held = &held[K]{keys: make(map[K]struct{}, len(p.seen)), since: now, lo: w.lo}
	for k := range p.seen {
		d.held.keys[k] = struct{}{}
	}
	d.log.Warn().Int("rows", len(p.seen)).Int("held", have).Dur("confirm_after", wait).
		Msg("the list has lost more than half of its rows: held back until a second one says the same")
	return now.Add(wait), true
}

// sameKeys tells whether the list names what the held one named, entities apart that had events since.
func (d *dataset[K, R]) sameKeys(p *pull[K, R]) bool {
	moved := func(k K) bool {
		e, ok := d.ledger.entries[k]
		return ok && e.time >= d.held.lo
	}
	for k := range p.seen {
		if _, ok := d.held.keys[k]; !ok && !moved(k) {
			return false
		}
	}
	for k := range d.held.keys {
		if p.seen[k] == nil && !moved(k) {
			return false
		}
	}
	return true
}
