package store

import (
	"math/bits"
	"sync/atomic"
)

// index finds rows by a hash of something inside them. The key is not copied, it is read from the row: an entry costs one
// pointer and one byte. Readers take no lock. Several rows may have one hash, or even one key: the reader walks them with
// a cursor and picks.
//
// The table is made of buckets of a cache line each. A bucket that is full flows over into the next one and says so in
// its last byte. Writers are serialised by the table that owns the index; they publish a row before its tag, so a reader
// that sees a tag sees a row. A reader that races with the reuse of a place may be handed a row of another key, and
// rejects it because it always compares the key.
type index[R any] struct {
	hash    func(*R) (h uint64, in bool) // in false: the row does not stand in this index
	buckets atomic.Pointer[[]bucket[R]]
	live    int // rows; writers only
	churn   int // inserts since the table was made; writers only
}

// bucket is 64 bytes: a tag of each place, 0 where it is free, and the rows.
type bucket[R any] struct {
	tags atomic.Uint64 // the topmost byte is flowedOver
	rows [places]atomic.Pointer[R]
}

const (
	places     = 7
	minBuckets = 2
	lows       = 0x0001010101010101
	highs      = 0x0080808080808080
	flowedOver = 1 << 56
)

// bucketsFor returns a table size in which n rows fill six places of ten.
func bucketsFor(n int) int { return max(minBuckets, n*10/(places*6)+1) }

func newIndex[R any](rows int, hash func(*R) (uint64, bool)) *index[R] {
	x := &index[R]{hash: hash}
	b := make([]bucket[R], bucketsFor(rows))
	x.buckets.Store(&b)
	return x
}

// tagOf is a byte of the hash that the choice of the bucket does not use, and never 0.
func tagOf(h uint64) uint64 { return max(h>>56, 1) }

func home(h uint64, buckets int) int {
	hi, _ := bits.Mul64(h<<8, uint64(buckets))
	return int(hi)
}

// cursor walks the rows that may have the hash.
type cursor[R any] struct {
	buckets []bucket[R]
	tag     uint64 // in each of the seven bytes
	at      int
	left    int    // buckets not yet looked at
	found   uint64 // bits of the places to look at in the bucket before at
	more    bool
}

func (x *index[R]) rows(h uint64) cursor[R] {
	b := *x.buckets.Load()
	return cursor[R]{buckets: b, tag: tagOf(h) * lows, at: home(h, len(b)), left: len(b), more: true, found: 0}
}

// next returns the next row that may have the hash, nil at the end. The caller compares the key.
func (c *cursor[R]) next() *R {
	for {
		for c.found != 0 {
			i := bits.TrailingZeros64(c.found) / 8
			c.found &= c.found - 1
			if r := c.buckets[c.at].rows[i].Load(); r != nil {
				return r
			}
		}
		if !c.more || c.left == 0 {
			return nil
		}
		if c.left < len(c.buckets) {
			c.at++
			if c.at == len(c.buckets) {
				c.at = 0
			}
		}
		c.left--
		tags := c.buckets[c.at].tags.Load()
		d := tags ^ c.tag
		c.found = (d - lows) &^ d & highs
		c.more = tags >= flowedOver
	}
}

// insert adds a row that stands in this index.
func (x *index[R]) insert(h uint64, r *R) {
	b := *x.buckets.Load()
	if x.live+1 > len(b)*places*8/10 || x.churn > 8*len(b)*places {
		b = x.rebuild()
	}
	place(b, h, r)
	x.live++
	x.churn++
}

func place[R any](table []bucket[R], h uint64, r *R) {
	for at := home(h, len(table)); ; {
		b := &table[at]
		tags := b.tags.Load()
		for i := range places {
			if byte(tags>>(8*i)) == 0 {
				b.rows[i].Store(r)
				b.tags.Store(tags | tagOf(h)<<(8*i))
				return
			}
		}
		b.tags.Store(tags | flowedOver)
		if at++; at == len(table) {
			at = 0
		}
	}
}

// find returns the bucket and the place of a row, nil when it is not there.
func (x *index[R]) find(h uint64, r *R) (*bucket[R], int) {
	table := *x.buckets.Load()
	for at, left := home(h, len(table)), len(table); left > 0; left-- {
		b := &table[at]
		tags := b.tags.Load()
		for i := range places {
			if uint64(byte(tags>>(8*i))) == tagOf(h) && b.rows[i].Load() == r {
				return b, i
			}
		}
		if tags < flowedOver {
			return nil, 0
		}
		if at++; at == len(table) {
			at = 0
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
	b.tags.Store(b.tags.Load() &^ (0xff << (8 * i)))
	b.rows[i].Store(nil)
	x.live--
	if n := len(*x.buckets.Load()); n > 4*minBuckets && x.live*8 < n*places {
		x.rebuild()
	}
}

// rebuild makes a table with room for half as many rows again, in which nothing has flowed over needlessly. Readers go on
// in the old one, which does not change any more.
func (x *index[R]) rebuild() []bucket[R] {
	old := *x.buckets.Load()
	table := make([]bucket[R], bucketsFor(x.live+x.live/2))
	for i := range old {
		for j := range places {
			if r := old[i].rows[j].Load(); r != nil {
				h, _ := x.hash(r)
				place(table, h, r)
			}
		}
	}
	x.churn = 0
	x.buckets.Store(&table)
	return table
}

// all yields every row.
func (x *index[R]) all(yield func(*R) bool) {
	table := *x.buckets.Load()
	for i := range table {
		for j := range places {
			if r := table[i].rows[j].Load(); r != nil && !yield(r) {
				return
			}
		}
	}
}
