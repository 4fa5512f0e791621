// Package tokencache is a bounded cache under hashes of tokens. It is sharded, evicts what was not used lately, and
// allocates nothing on a hit.
package tokencache

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// Key stands for a token. It is made of two hashes under secrets of the process, so that a caller cannot aim at the
// place of another's token; the token itself is not kept.
type Key struct{ a, b uint64 }

// With returns the key of the same token for another purpose, told apart by n.
func (k Key) With(n uint64) Key {
	return Key{k.a + n*0x9e3779b97f4a7c15, k.b ^ n*0xbf58476d1ce4e5b9}
}

const shards = 32

// Cache maps keys to values. It is safe for concurrent use.
type Cache[V any] struct {
	seedA, seedB maphash.Seed
	capacity     int64
	size         atomic.Int64
	shards       [shards]shard[V]
}

type shard[V any] struct {
	mu     sync.RWMutex
	at     map[Key]*entry[V]
	ring   []*entry[V] // every entry of the shard, for the clock
	hand   int
	hits   atomic.Uint64
	misses atomic.Uint64
	_      [24]byte
}

type entry[V any] struct {
	key   Key
	value *V
	slot  int
	used  atomic.Bool
}

// New returns a cache of at most capacity entries; a capacity of 0 or less keeps nothing.
func New[V any](capacity int) *Cache[V] {
	c := &Cache[V]{seedA: maphash.MakeSeed(), seedB: maphash.MakeSeed(), capacity: int64(capacity)}
	for i := range c.shards {
		c.shards[i].at = make(map[Key]*entry[V])
	}
	return c
}

// KeyOf returns the key of a token. The first hash covers all of it, the second its end: of a signed token that is the
// signature, the part that nobody but the holder knows.
func (c *Cache[V]) KeyOf(token string) Key {
	const tail = 96
	end := token
	if len(end) > tail {
		end = end[len(end)-tail:]
	}
	return Key{maphash.String(c.seedA, token), maphash.String(c.seedB, end)}
}

// Get returns the value of a key, nil when there is none.
func (c *Cache[V]) Get(k Key) *V {
	s := &c.shards[k.a%shards]
	s.mu.RLock()
	e := s.at[k]
	s.mu.RUnlock()
	if e == nil {
		s.misses.Add(1)
		return nil
	}
	if !e.used.Load() {
		e.used.Store(true)
	}
	s.hits.Add(1)
	return e.value
}

// Put stores a value under a key. When the cache is full an entry that was not used lately goes.
func (c *Cache[V]) Put(k Key, v *V) {
	if c.capacity <= 0 {
		return
	}
	home := k.a % shards
	s := &c.shards[home]
	s.mu.Lock()
	if old := s.at[k]; old != nil {
		e := &entry[V]{key: k, value: v, slot: old.slot}
		e.used.Store(true)
		s.at[k], s.ring[old.slot] = e, e
		s.mu.Unlock()
		return
	}
	e := &entry[V]{key: k, value: v, slot: len(s.ring)}
	s.at[k] = e
	s.ring = append(s.ring, e)
	full := c.size.Add(1) > c.capacity
	// With one entry alone the newcomer would push itself out.
	done := full && len(s.ring) > 1 && c.evict(s, e)
	s.mu.Unlock()
	for i := uint64(1); full && !done && i <= shards; i++ {
		o := &c.shards[(home+i)%shards]
		o.mu.Lock()
		done = c.evict(o, nil)
		o.mu.Unlock()
	}
}

// evict removes the next entry of the shard that was not used since the clock last passed; the lock is held. keep stays.
func (c *Cache[V]) evict(s *shard[V], keep *entry[V]) bool {
	for range 2*len(s.ring) + 1 {
		if len(s.ring) == 0 {
			return false
		}
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		e := s.ring[s.hand]
		if e != keep && !e.used.Swap(false) {
			c.drop(s, e)
			return true
		}
		s.hand++
	}
	return false
}

func (c *Cache[V]) drop(s *shard[V], e *entry[V]) {
	last := len(s.ring) - 1
	moved := s.ring[last]
	s.ring[e.slot], moved.slot = moved, e.slot
	s.ring[last] = nil
	s.ring = s.ring[:last]
	delete(s.at, e.key)
	c.size.Add(-1)
}

// Delete removes the value of a key if it is still the given one.
func (c *Cache[V]) Delete(k Key, v *V) {
	s := &c.shards[k.a%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.at[k]; e != nil && e.value == v {
		c.drop(s, e)
	}
}

// DeleteFunc removes every value for which the function is true.
func (c *Cache[V]) DeleteFunc(dead func(*V) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for j := 0; j < len(s.ring); {
			if e := s.ring[j]; dead(e.value) {
				c.drop(s, e)
				continue
			}
			j++
		}
		s.mu.Unlock()
	}
}

// Len returns the number of entries.
func (c *Cache[V]) Len() int { return int(c.size.Load()) }

// Counts returns how many look-ups found something and how many did not.
func (c *Cache[V]) Counts() (hits, misses uint64) {
	for i := range c.shards {
		hits += c.shards[i].hits.Load()
		misses += c.shards[i].misses.Load()
	}
	return hits, misses
}
