package publisher

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
)

// chunkSize is the room of one piece of a queue.
const chunkSize = 64 << 10

// chunk holds whole events one after another: i32 size, then as many bytes. read is where the oldest begins.
type chunk struct {
	buf  []byte
	read int
	n    int // events from read on
	next *chunk
}

// queue holds the encoded events of one group until they are sent. Producers spread over shards, so that they seldom
// meet; within a shard events stay in order. It is bounded in events and in bytes, and makes room by dropping the oldest.
type queue struct {
	shards    []shard
	maxEvents int // per shard
	maxBytes  int // per shard
	pool      *sync.Pool

	events  atomic.Int64 // queued
	dropped atomic.Uint64
	turn    atomic.Uint32 // where the next take begins
}

type shard struct {
	mu          sync.Mutex
	first, last *chunk
	events      int
	bytes       int
	_           [64]byte // keeps the next shard's lock off this cache line
}

func newQueue(events, bytes int, pool *sync.Pool) *queue {
	n := 1
	if events >= 4096 {
		for n < runtime.GOMAXPROCS(0) && n < 16 {
			n *= 2
		}
	}
	return &queue{shards: make([]shard, n), maxEvents: max(1, events/n), maxBytes: max(chunkSize, bytes/n), pool: pool}
}

// push appends one event and says how many old ones had to go for it.
func (q *queue) push(event []byte) (dropped int) {
	s := &q.shards[0]
	if len(q.shards) > 1 {
		s = &q.shards[rand.Uint32()&uint32(len(q.shards)-1)]
	}
	s.mu.Lock()
	for s.events > 0 && (s.events >= q.maxEvents || s.bytes+len(event) > q.maxBytes) {
		s.dropOldest(q.pool)
		dropped++
	}
	c := s.last
	if c == nil || cap(c.buf)-len(c.buf) < len(event) {
		c = q.pool.Get().(*chunk)
		if cap(c.buf) < len(event) {
			c.buf = make([]byte, 0, len(event))
		}
		if s.last == nil {
			s.first = c
		} else {
			s.last.next = c
		}
		s.last = c
	}
	c.buf = append(c.buf, event...)
	c.n++
	s.events++
	s.bytes += len(event)
	s.mu.Unlock()
	q.events.Add(int64(1 - dropped))
	if dropped > 0 {
		q.dropped.Add(uint64(dropped))
	}
	return dropped
}

// peek returns the oldest event of the shard, its size included. The caller holds mu; the shard is not empty.
func (s *shard) peek() []byte {
	c := s.first
	n := 4 + int(binary.BigEndian.Uint32(c.buf[c.read:]))
	return c.buf[c.read : c.read+n]
}

// dropOldest removes the oldest event. The caller holds mu; the shard is not empty.
func (s *shard) dropOldest(pool *sync.Pool) {
	c := s.first
	n := len(s.peek())
	c.read += n
	c.n--
	s.events--
	s.bytes -= n
	if c.n > 0 {
		return
	}
	s.first = c.next
	if s.first == nil {
		s.last = nil
	}
	release(c, pool)
}

func release(c *chunk, pool *sync.Pool) {
	if cap(c.buf) != chunkSize {
		return // made for one large event
	}
	*c = chunk{buf: c.buf[:0]}
	pool.Put(c)
}

// take appends the oldest events to dst: at most maxEvents, and as many as fit into maxBytes of dst, at least one if
// there is any. Events older than oldest (ms) are left out and counted as stale.
func (q *queue) take(dst []byte, maxEvents, maxBytes int, oldest int64) (_ []byte, n, stale int) {
	turn := q.turn.Add(1)
	for i := range q.shards {
		s := &q.shards[(int(turn)+i)%len(q.shards)]
		s.mu.Lock()
		for s.events > 0 && n < maxEvents {
			ev := s.peek()
			if int64(binary.BigEndian.Uint64(ev[4:])) < oldest {
				s.dropOldest(q.pool)
				stale++
				continue
			}
			if n > 0 && len(dst)+len(ev) > maxBytes {
				break
			}
			dst = append(dst, ev...)
			s.dropOldest(q.pool)
			n++
		}
		s.mu.Unlock()
		if n >= maxEvents {
			break
		}
	}
	q.events.Add(int64(-n - stale))
	return dst, n, stale
}
