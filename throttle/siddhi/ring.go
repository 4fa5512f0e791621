package siddhi

import (
	"gatehouse/throttle/siddhi/value"
)

// ring keeps events in the order in which they came, with copies of their rows in one piece of memory. A row that was
// popped stays valid until release.
type ring struct {
	rows   []value.Value
	times  []int64
	width  int
	head   int
	n      int
	popped int // slots before the head whose rows are not yet given up
}

const smallRing = 64

// push copies an event in; it reports false when the ring holds so many already.
func (b *ring) push(e event, most int) bool {
	if b.n >= most {
		return false
	}
	// The slots of popped rows are still read, so they count as taken.
	if b.n+b.popped >= len(b.times) {
		b.resize(max(smallRing, 2*len(b.times)), len(e.row))
	}
	i := (b.head + b.n) & (len(b.times) - 1)
	copy(b.rows[i*b.width:(i+1)*b.width], e.row)
	b.times[i] = e.at
	b.n++
	return true
}

// release gives up the popped rows, and most of the memory after a flood.
func (b *ring) release() {
	if b.popped == 0 {
		return
	}
	for k := range b.popped {
		i := (b.head - 1 - k + len(b.times)) & (len(b.times) - 1)
		clear(b.rows[i*b.width : (i+1)*b.width])
	}
	b.popped = 0
	if len(b.times) > smallRing && b.n < len(b.times)/8 {
		b.resize(max(smallRing, len(b.times)/4), b.width)
	}
}

func (b *ring) resize(size, width int) {
	rows, times := make([]value.Value, size*width), make([]int64, size)
	for k := range b.n {
		i := (b.head + k) & (len(b.times) - 1)
		copy(rows[k*width:], b.rows[i*b.width:(i+1)*b.width])
		times[k] = b.times[i]
	}
	b.rows, b.times, b.width, b.head, b.popped = rows, times, width, 0, 0
}

func (b *ring) at(k int) event {
	i := (b.head + k) & (len(b.times) - 1)
	return event{row: b.rows[i*b.width : (i+1)*b.width : (i+1)*b.width], at: b.times[i]}
}

func (b *ring) peek() event { return b.at(0) }

func (b *ring) pop() event {
	e := b.at(0)
	b.head = (b.head + 1) & (len(b.times) - 1)
	b.n--
	b.popped++
	return e
}

func (b *ring) clear() {
	for b.n > 0 {
		b.pop()
	}
}
