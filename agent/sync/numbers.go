package sync

// numbers joins what is known of rows by number with what is known of them by UUID alone. API Managers give
// applications and subscriptions both, but not all of them in every list and event (contract rest.md 2.2, 2.4 and 7,
// events.md 5.4 and 5.5). A row is kept under its number, and while that is not known under a key that is made of its
// UUID; when the two meet, the row moves, and its history with it. It belongs to a worker, and costs nothing as long as
// every row has a number.
type numbers[K comparable, R any] struct {
	// of returns the number and the UUID of a row.
	of func(*R) (*int64, string)
	// key is subscription.RowKey.
	key func(id int64, uuid string) K
	// used: some row has been known by its UUID alone.
	used bool
	// known is the number of a UUID, by the key that is made of it: of rows that were deleted, and once complete of those
	// in the table.
	known    map[K]int64
	complete bool
	// limit is the size at which known is cleared of what nobody remembers.
	limit int
}

// minKnown is the least size at which numbers are cleared.
const minKnown = 4096

// current returns the key under which the row of a key is kept by now.
func (n *numbers[K, R]) current(k K) K {
	if n != nil {
		if id, ok := n.known[k]; ok {
			return n.key(id, "")
		}
	}
	return k
}

// identify returns the key under which a row is kept. r belongs to the caller; it gets its number where that is known.
func (d *dataset[K, R]) identify(r *R) K {
	if n := d.numbers; n != nil {
		id, uuid := n.of(r)
		switch {
		case uuid == "" || *id != 0 && !n.used:
		case *id == 0:
			d.byUUID()
			*id = n.known[n.key(0, uuid)]
		default:
			d.learn(r)
			d.move(n.key(0, uuid), *id)
		}
	}
	return d.key(r)
}

// byUUID prepares for rows that have no number.
func (d *dataset[K, R]) byUUID() {
	n := d.numbers
	n.used = true
	if !n.complete {
		n.complete = true
		for r := range d.table.All() {
			d.learn(r)
		}
	}
}

// learn remembers the number of a row that has a UUID too.
func (d *dataset[K, R]) learn(r *R) {
	n := d.numbers
	id, uuid := n.of(r)
	if *id == 0 || uuid == "" {
		return
	}
	if n.known == nil {
		n.known, n.limit = make(map[K]int64), minKnown
	}
	n.known[n.key(0, uuid)] = *id
	if len(n.known) <= n.limit {
		return
	}
	for k, id := range n.known {
		at := n.key(id, "")
		if _, noted := d.ledger.entries[at]; !noted && (!n.complete || d.table.Get(at) == nil) {
			delete(n.known, k)
		}
	}
	n.known[n.key(0, uuid)] = *id
	n.limit = max(minKnown, 2*len(n.known))
}

// move brings what is kept under the key of a UUID under the number.
func (d *dataset[K, R]) move(from K, id int64) {
	n := d.numbers
	to := n.key(id, "")
	cur := d.table.Get(from)
	d.remember(from, cur)
	e, moved := d.ledger.entries[from]
	there, noted := d.ledger.entries[to]
	if moved {
		delete(d.ledger.entries, from)
		if !noted || there.time < e.time {
			d.ledger.entries[to] = e
		}
	}
	if cur == nil {
		return
	}
	if d.table.Get(to) == nil && (!noted || !there.deleted || there.time < e.time) {
		row := *cur
		number, _ := n.of(&row)
		*number = id
		d.table.Put(row) // before the other goes, so that no request misses both
	}
	d.table.Delete(from)
	d.e.dirty.Store(true)
}

// renumber brings the listed rows under the keys that their entities have got while the list was being read.
func (d *dataset[K, R]) renumber(p *pull[K, R]) {
	if d.numbers == nil || !d.numbers.used {
		return
	}
	for k, listed := range p.seen {
		id, ok := d.numbers.known[k]
		if !ok {
			continue
		}
		delete(p.seen, k)
		if at := d.numbers.key(id, ""); p.seen[at] == nil {
			row := *listed
			number, _ := d.numbers.of(&row)
			*number = id
			p.seen[at] = &row
		}
	}
}
