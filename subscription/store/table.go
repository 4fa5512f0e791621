package store

import (
	"iter"
	"sync"
	"sync/atomic"
)

// Table holds the rows of one kind under their key, and the secondary indexes that the request path reads. Readers take
// no lock and allocate nothing; writers are serialised by a lock of the table. A row never changes once it is in: a
// change puts another row in its place. All methods may be called concurrently.
type Table[K comparable, R any] struct {
	schema schema[K, R]
	mu     sync.Mutex // writers
	view   atomic.Pointer[view[R]]
	rows   atomic.Int64
}

// view is one generation of the indexes. ReplaceAll fills another one and swaps, so that no reader sees half of it.
type view[R any] struct {
	primary   *index[R]
	secondary []*index[R]
}

// schema says how rows of one kind are keyed.
type schema[K comparable, R any] struct {
	// key is the row's key; find returns the row of a key.
	key  func(*R) K
	find func(*view[R], K) *R
	// hash is the hash of the row's key in the primary index.
	hash func(*R) uint64
	// secondary are the hashes under which a row stands in each secondary index; false: it does not stand there.
	secondary []func(*R) (uint64, bool)
	// canonical brings a row into the form in which it is kept, before it is looked up and put.
	canonical func(*view[R], *R)
	// rivals returns the rows that the row replaces. When nil it is the row of the same key.
	rivals func(*view[R], *R) (before, also *R)
	// intern makes the strings of a row share memory with those of others.
	intern func(*R, func(*string))
}

func newTable[K comparable, R any](s schema[K, R]) *Table[K, R] {
	if s.rivals == nil {
		s.rivals = func(v *view[R], r *R) (*R, *R) { return s.find(v, s.key(r)), nil }
	}
	t := &Table[K, R]{schema: s}
	t.view.Store(t.emptyView(0))
	return t
}

func (t *Table[K, R]) emptyView(rows int) *view[R] {
	v := &view[R]{primary: newIndex[R](rows), secondary: make([]*index[R], len(t.schema.secondary))}
	for i := range v.secondary {
		v.secondary[i] = newIndex[R](0)
	}
	return v
}

// Key returns the key of a row, in the form in which it is kept.
func (t *Table[K, R]) Key(row R) K {
	t.schema.canonical(t.view.Load(), &row)
	return t.schema.key(&row)
}

// Get returns the row of a key, nil when there is none. The row is shared and must not be changed.
func (t *Table[K, R]) Get(k K) *R { return t.schema.find(t.view.Load(), k) }

// Len returns the number of rows.
func (t *Table[K, R]) Len() int { return int(t.rows.Load()) }

// All yields every row, in no order. A row that is put or deleted meanwhile may or may not be among them; a row that
// stays is yielded exactly once.
func (t *Table[K, R]) All() iter.Seq[*R] {
	return func(yield func(*R) bool) {
		s := *t.view.Load().primary.slots.Load()
		for i := range s {
			if r := s[i].row.Load(); r != nil && !yield(r) {
				return
			}
		}
	}
}

// Put stores a copy of the row under its key and returns the row that stood there, nil when there was none.
func (t *Table[K, R]) Put(row R) (before *R) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.view.Load()
	t.schema.canonical(v, &row)
	before, also := t.schema.rivals(v, &row)
	t.put(v, &row, before)
	if also != nil {
		t.remove(v, also)
	}
	t.rows.Store(int64(v.primary.live))
	return before
}

// Delete removes the row of a key and returns it, nil when there was none.
func (t *Table[K, R]) Delete(k K) (before *R) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.view.Load()
	before = t.schema.find(v, k)
	if before != nil {
		t.remove(v, before)
		t.rows.Store(int64(v.primary.live))
	}
	return before
}

// ReplaceAll makes the rows the whole content of the table, in one step: a reader sees all of the old rows or all of
// the new ones. Of several rows of one key the last counts.
//
// The table takes the slice over, for the sake of memory: the caller must neither change nor keep it.
func (t *Table[K, R]) ReplaceAll(rows []R) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.emptyView(len(rows))
	for i := range v.secondary {
		v.secondary[i] = newIndex[R](t.countSecondary(rows, i))
	}
	seen := make(map[string]string)
	share := func(s *string) {
		if *s == "" {
			return
		}
		if known, ok := seen[*s]; ok {
			*s = known
		} else {
			seen[*s] = *s
		}
	}
	for i := range rows {
		r := &rows[i]
		t.schema.canonical(v, r)
		t.schema.intern(r, share)
		before, also := t.schema.rivals(v, r)
		t.put(v, r, before)
		if also != nil {
			t.remove(v, also)
		}
	}
	t.view.Store(v)
	t.rows.Store(int64(v.primary.live))
}

func (t *Table[K, R]) countSecondary(rows []R, i int) (n int) {
	for j := range rows {
		if _, ok := t.schema.secondary[i](&rows[j]); ok {
			n++
		}
	}
	return n
}

// put writes r into every index; where before stood under the same hash r takes its place in one step, elsewhere r is
// there before the old row goes, so that a reader never misses both.
func (t *Table[K, R]) put(v *view[R], r, before *R) {
	move(v.primary, r, before, func(r *R) (uint64, bool) { return t.schema.hash(r), true })
	for i, x := range v.secondary {
		move(x, r, before, t.schema.secondary[i])
	}
}

func move[R any](x *index[R], r, before *R, hash func(*R) (uint64, bool)) {
	h, in := hash(r)
	if before == nil {
		if in {
			x.insert(h, r)
		}
		return
	}
	old, was := hash(before)
	switch {
	case in && was && h == old:
		x.replace(h, before, r)
	case in:
		x.insert(h, r)
		fallthrough
	default:
		if was {
			x.remove(old, before)
		}
	}
}

func (t *Table[K, R]) remove(v *view[R], r *R) {
	for i, x := range v.secondary {
		if h, ok := t.schema.secondary[i](r); ok {
			x.remove(h, r)
		}
	}
	v.primary.remove(t.schema.hash(r), r)
}
