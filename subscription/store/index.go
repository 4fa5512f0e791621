package store

import (
	"math/bits"
	"sync/atomic"
)

// index finds rows by a hash of something inside them. It is an open-addressing table of pointers: the key is not
// copied, it is read from the row. Readers take no lock. Several rows may have one hash, or even one key: the reader
// walks them with a cursor and picks.
//
// Writers are serialised by the table that owns the index. A writer publishes the pointer before the hash, so a reader
// that sees a hash sees a row or a grave; a reader that races with the reuse of a slot may see a row of another hash,
// and rejects it because it always compares the key.
type index[R any] struct {
	slots atomic.Pointer[[]slot[R]]
	live  int // rows, writers only
	used  int // rows and graves, writers only
}

type slot[R any] struct {
	hash atomic.Uint64 // 0: never used
	row  atomic.Pointer[R]
}

const minSlots = 16

// occupied marks a hash as used: 0 means never used.
const occupied = 1 << 63

// slotsFor returns a table size in which n rows fill no more than about two thirds.
func slotsFor(n int) int { return max(minSlots, n+n/2+1) }

func newIndex[R any](rows int) *index[R] {
	x := &index[R]{}
	s := make([]slot[R], slotsFor(rows))
	x.slots.Store(&s)
	return x
}

// start maps the hash onto the table; it uses the low 63 bits, shifted up, since the top one is always set.
func start(h uint64, n int) int {
	hi, _ := bits.Mul64(h<<1, uint64(n))
	return int(hi)
}

// cursor walks the rows whose hash is h.
type cursor[R any] struct {
	slots []slot[R]
	h     uint64
	at    int
	left  int
}

func (x *index[R]) rows(h uint64) cursor[R] {
	s := *x.slots.Load()
	h |= occupied
	return cursor[R]{slots: s, h: h, at: start(h, len(s)), left: len(s)}
}

// next returns the next row of this hash, nil at the end.
func (c *cursor[R]) next() *R {
	for ; c.left > 0; c.left-- {
		s := &c.slots[c.at]
		if c.at++; c.at == len(c.slots) {
			c.at = 0
		}
		switch s.hash.Load() {
		case 0:
			c.left = 0
			return nil
		case c.h:
			if r := s.row.Load(); r != nil {
				c.left--
				return r
			}
		}
	}
	return nil
}

// replace puts new where old stands under the hash, in one step; it reports whether old was there.
func (x *index[R]) replace(h uint64, old, new *R) bool {
	s := *x.slots.Load()
	h |= occupied
	for i, left := start(h, len(s)), len(s); left > 0; left-- {
		switch s[i].hash.Load() {
		case 0:
			return false
		case h:
			if s[i].row.Load() == old {
				s[i].row.Store(new)
				return true
			}
		}
		if i++; i == len(s) {
			i = 0
		}
	}
	return false
}

func (x *index[R]) insert(h uint64, r *R) {
	s := *x.slots.Load()
	if (x.used+1)*5 > len(s)*4 {
		s = x.rebuild()
	}
	if place(s, h|occupied, r) {
		x.used++
	}
	x.live++
}

// place stores r in the first free slot and reports whether that slot had never been used.
func place[R any](s []slot[R], h uint64, r *R) (fresh bool) {
	for i := start(h, len(s)); ; {
		sl := &s[i]
		was := sl.hash.Load()
		if was == 0 || sl.row.Load() == nil {
			sl.row.Store(r)
			sl.hash.Store(h)
			return was == 0
		}
		if i++; i == len(s) {
			i = 0
		}
	}
}

// remove leaves a grave, which the next insert reuses.
func (x *index[R]) remove(h uint64, r *R) {
	if x.replace(h, r, nil) {
		x.live--
		if x.used > 4*minSlots && x.live*8 < x.used {
			x.rebuild()
		}
	}
}

// rebuild makes a table without graves, with room for half as many rows again. Readers go on in the old one, which
// does not change any more.
func (x *index[R]) rebuild() []slot[R] {
	old := *x.slots.Load()
	s := make([]slot[R], slotsFor(x.live+x.live/2))
	for i := range old {
		if r := old[i].row.Load(); r != nil {
			place(s, old[i].hash.Load(), r)
		}
	}
	x.used = x.live
	x.slots.Store(&s)
	return s
}
