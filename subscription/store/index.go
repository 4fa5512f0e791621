package store

import (
	"math/bits"
	"sync/atomic"
)

// index finds rows by a hash of something inside them. The key is not copied, it is read from the row: an entry costs one
// pointer and the hash. Readers take no lock. Several rows may have one hash, or even one key: the reader walks them with
// a cursor and picks. Where no two keys have one hash (exact), the row itself need not be looked at to find it.
//
// The table is made of buckets of a cache line each, so that a look-up waits for memory once. A bucket that is full flows
// over into the next one and says so in a bit map that fits a near cache. Writers are serialised by the table that owns the
// index. They publish a row before its hash and take the hash away before the row, and a reader looks at the hash again
// after it has the row: so it never takes a row for one whose place was used anew in between.
type index[R any] struct {
	hash  func(*R) (h uint64, in bool) // in false: the row does not stand in this index
	table atomic.Pointer[table[R]]
	live  int // rows; writers only
	churn int // inserts since the table was made; writers only
}

// table is one generation of an index.
type table[R any] struct {
	buckets []bucket[R]
	over    []atomic.Uint64 // a bit for each bucket that has flowed over
}

// bucket is 64 bytes: hashes, 0 where the place is free, and rows.
type bucket[R any] struct {
	hashes [places]atomic.Uint64
	rows   [places]atomic.Pointer[R]
}

const (
	places     = 4
	minBuckets = 2
)

// bucketsFor returns a table size in which n rows fill six places of ten.
func bucketsFor(n int) int { return max(minBuckets, n*10/(places*6)+1) }

func newTableOf[R any](rows int) *table[R] {
	n := bucketsFor(rows)
	return &table[R]{buckets: make([]bucket[R], n), over: make([]atomic.Uint64, n/64+1)}
}

func newIndex[R any](rows int, hash func(*R) (uint64, bool)) *index[R] {
	x := &index[R]{hash: hash}
	x.table.Store(newTableOf[R](rows))
	return x
}

// entry is the hash as it is kept: never 0.
func entry(h uint64) uint64 { return max(h, 1) }

func (t *table[R]) home(h uint64) int {
	hi, _ := bits.Mul64(h, uint64(len(t.buckets)))
	return int(hi)
}

func (t *table[R]) flowedOver(at int) bool { return t.over[at/64].Load()>>(at%64)&1 != 0 }

// after returns the bucket that one flows over into.
func (t *table[R]) after(at int) int {
	if at++; at < len(t.buckets) {
		return at
	}
	return 0
}

// cursor walks the rows that have the hash.
type cursor[R any] struct {
	table     *table[R]
	hash      uint64
	at, place int
	left      int // buckets not yet done with
}

func (x *index[R]) rows(h uint64) cursor[R] {
	t, h := x.table.Load(), entry(h)
	return cursor[R]{table: t, hash: h, at: t.home(h), left: len(t.buckets)}
}

// next returns the next row that has the hash, nil at the end. Unless the hash is exact the caller compares the key.
func (c *cursor[R]) next() *R {
	for c.left > 0 {
		b := &c.table.buckets[c.at]
		for c.place < places {
			i := c.place
			c.place++
			if b.hashes[i].Load() != c.hash {
				continue
			}
			if r := b.rows[i].Load(); r != nil && b.hashes[i].Load() == c.hash {
				return r
			}
		}
		if !c.table.flowedOver(c.at) {
			c.left = 0
			return nil
		}
		c.at, c.place = c.table.after(c.at), 0
		c.left--
	}
	return nil
}

// insert adds a row that stands in this index.
func (x *index[R]) insert(h uint64, r *R) {
	t := x.table.Load()
	if n := len(t.buckets) * places; x.live+1 > n*8/10 || x.churn > 8*n {
		t = x.rebuild()
	}
	t.put(entry(h), r)
	x.live++
	x.churn++
}

func (t *table[R]) put(h uint64, r *R) {
	for at := t.home(h); ; at = t.after(at) {
		b := &t.buckets[at]
		for i := range places {
			if b.hashes[i].Load() == 0 {
				b.rows[i].Store(r)
				b.hashes[i].Store(h)
				return
			}
		}
		if word := &t.over[at/64]; word.Load()>>(at%64)&1 == 0 {
			word.Store(word.Load() | 1<<(at%64))
		}
	}
}

// find returns the bucket and the place of a row, nil when it is not there.
func (x *index[R]) find(h uint64, r *R) (*bucket[R], int) {
	t := x.table.Load()
	h = entry(h)
	for at, left := t.home(h), len(t.buckets); left > 0; at, left = t.after(at), left-1 {
		b := &t.buckets[at]
		for i := range places {
			if b.hashes[i].Load() == h && b.rows[i].Load() == r {
				return b, i
			}
		}
		if !t.flowedOver(at) {
			return nil, 0
		}
	}
	return nil, 0
}

// replace puts another row of the same hash where old stands, in one step.
func (x *index[R]) replace(h uint64, old, new *R) {
	if b, i := x.find(h, old); b != nil {
		b.rows[i].Store(new)
	}
}

func (x *index[R]) remove(h uint64, r *R) {
	b, i := x.find(h, r)
	if b == nil {
		return
	}
	b.hashes[i].Store(0)
	b.rows[i].Store(nil)
	x.live--
	if n := len(x.table.Load().buckets); n > 4*minBuckets && x.live*8 < n*places {
		x.rebuild()
	}
}

// rebuild makes a table with room for half as many rows again, in which nothing has flowed over needlessly. Readers go on
// in the old one, which does not change any more.
func (x *index[R]) rebuild() *table[R] {
	t := newTableOf[R](x.live + x.live/2)
	old := x.table.Load()
	for i := range old.buckets {
		b := &old.buckets[i]
		for j := range places {
			if h := b.hashes[j].Load(); h != 0 {
				t.put(h, b.rows[j].Load())
			}
		}
	}
	x.churn = 0
	x.table.Store(t)
	return t
}

// all yields every row.
func (x *index[R]) all(yield func(*R) bool) {
	t := x.table.Load()
	for i := range t.buckets {
		for j := range places {
			if r := t.buckets[i].rows[j].Load(); r != nil && !yield(r) {
				return
			}
		}
	}
}
