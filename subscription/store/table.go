package store

import (
	"iter"
	"sync"
	"sync/atomic"
	"unsafe"
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
	// hash is the hash of the row's key in the primary index, in which every row stands.
	hash func(*R) (uint64, bool)
	// secondary are the hashes under which a row stands in each secondary index; false: it does not stand there.
	secondary []func(*R) (uint64, bool)
	// canonical brings a row into the form in which it is kept, before it is looked up and put.
	canonical func(*view[R], *R)
	// rivals returns the rows that the row replaces. When nil it is the row of the same key.
	rivals func(*view[R], *R) (before, also *R)
	// rebuilt makes ReplaceAll start from an empty table, because what the rows become depends on what is there.
	rebuilt bool
	// same reports whether two rows say the same, Origin apart.
	same func(a, b *R) bool
	// intern calls share for the strings of a row that other rows have too, and own for those that they have not.
	intern func(r *R, share, own func(*string))
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
	v := &view[R]{primary: newIndex(rows, t.schema.hash), secondary: make([]*index[R], len(t.schema.secondary))}
	for i := range v.secondary {
		v.secondary[i] = newIndex(rows, t.schema.secondary[i])
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
	return func(yield func(*R) bool) { t.view.Load().primary.all(yield) }
}

// Put stores a copy of the row under its key and returns the row that stood there, nil when there was none.
func (t *Table[K, R]) Put(row R) (before *R) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.view.Load()
	t.schema.canonical(v, &row)
	before, also := t.schema.rivals(v, &row)
	v.put(&row, before)
	if also != nil {
		v.remove(also)
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
		v.remove(before)
		t.rows.Store(int64(v.primary.live))
	}
	return before
}

// ReplaceAll makes the rows the whole content of the table. A reader never misses a row that is in both the old content
// and the new; rows that are gone go last. Of several rows of one key the last counts. The rows are copied. A row that
// says what the table already has keeps its place and its Origin, which is when that was first learnt, so that a pull
// without news costs no memory.
func (t *Table[K, R]) ReplaceAll(rows []R) {
	_ = t.ReplaceAllFrom(len(rows), func(yield func(R, error) bool) {
		for i := range rows {
			if !yield(rows[i], nil) {
				return
			}
		}
	})
}

// ReplaceAllFrom is ReplaceAll for rows that are made one by one, so that a list of a million need not be held beside the
// table. about is how many are expected; it may be wrong. When the sequence yields an error it is returned, and no row has
// gone; of the rows before it some may be in. Writers wait until the sequence has ended, readers do not.
func (t *Table[K, R]) ReplaceAllFrom(about int, rows iter.Seq2[R, error]) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.view.Load()
	defer func() { t.rows.Store(int64(t.view.Load().primary.live)) }()
	if v.primary.live == 0 || t.schema.rebuilt {
		return t.fill(v, about, rows)
	}
	// The table is large: another one beside it would take as much memory again. seen holds what the list names.
	l := loader[R]{seen: make(map[string]string)}
	seen := newIndex(v.primary.live, t.schema.hash)
	for row, err := range rows {
		if err != nil {
			return err
		}
		t.schema.canonical(v, &row)
		before, _ := t.schema.rivals(v, &row)
		r := before
		if before == nil || !t.schema.same(before, &row) {
			t.schema.intern(&row, l.share, func(*string) {})
			r = &row
			v.put(r, before)
		}
		h, _ := t.schema.hash(r)
		if b, _ := seen.find(h, r); b == nil {
			seen.insert(h, r)
		}
	}
	for r := range v.primary.all {
		h, _ := t.schema.hash(r)
		if b, _ := seen.find(h, r); b == nil {
			v.remove(r)
		}
	}
	return nil
}

// fill makes the rows a view of their own and swaps, so that a reader sees all of the old rows or all of the new ones.
func (t *Table[K, R]) fill(old *view[R], about int, rows iter.Seq2[R, error]) error {
	v := t.emptyView(about)
	l := loader[R]{seen: make(map[string]string), blocks: true}
	for row, err := range rows {
		if err != nil {
			return err
		}
		t.schema.canonical(v, &row)
		before, also := t.schema.rivals(v, &row)
		r := t.schema.find(old, t.schema.key(&row))
		if r == nil || !t.schema.same(r, &row) {
			t.schema.intern(&row, l.share, l.own)
			r = l.keep(row)
		}
		v.put(r, before)
		if also != nil {
			v.remove(also)
		}
	}
	t.view.Store(v)
	return nil
}

// loader lets rows share strings, and gives them memory in blocks: millions of objects less for the garbage collector to
// look at. A block lives as long as one row of it, so rows that come one at a time are better off without.
type loader[R any] struct {
	seen   map[string]string
	blocks bool
	text   []byte
	block  []R
}

const (
	rowsPerBlock = 512
	textPerBlock = 16 << 10
)

// share makes a string that many rows have in common one.
func (l *loader[R]) share(s *string) {
	if *s == "" {
		return
	}
	known, ok := l.seen[*s]
	if !ok {
		known = *s
		if l.blocks {
			l.own(&known)
		}
		l.seen[known] = known
	}
	*s = known
}

// own moves a string into the block.
func (l *loader[R]) own(s *string) {
	n := len(*s)
	if n == 0 || n > textPerBlock/8 {
		return
	}
	if n > cap(l.text)-len(l.text) {
		l.text = make([]byte, 0, textPerBlock)
	}
	at := len(l.text)
	l.text = append(l.text, *s...)
	*s = unsafe.String(&l.text[at], n) //nolint:gosec // these bytes are never written again
}

func (l *loader[R]) keep(row R) *R {
	if len(l.block) == cap(l.block) {
		l.block = make([]R, 0, rowsPerBlock)
	}
	l.block = append(l.block, row)
	return &l.block[len(l.block)-1]
}

// put writes r into every index; where before stood under the same hash r takes its place in one step, elsewhere r is
// there before the old row goes, so that a reader never misses both.
func (v *view[R]) put(r, before *R) {
	v.primary.move(r, before)
	for _, x := range v.secondary {
		x.move(r, before)
	}
}

func (x *index[R]) move(r, before *R) {
	h, in := x.hash(r)
	var old uint64
	was := false
	if before != nil {
		old, was = x.hash(before)
	}
	switch {
	case in && was && h == old:
		x.replace(h, before, r)
		return
	case in:
		x.insert(h, r)
	}
	if was {
		x.remove(old, before)
	}
}

func (v *view[R]) remove(r *R) {
	for _, x := range v.secondary {
		if h, in := x.hash(r); in {
			x.remove(h, r)
		}
	}
	if h, in := v.primary.hash(r); in {
		v.primary.remove(h, r)
	}
}
