package backendjwt

import (
	"sync"
	"sync/atomic"

	"gatehouse/keymanager"
)

// shards is how many parts the cache has, each with its own lock.
const shards = 32

// shard keeps JWTs by a hash of their callers. Of two callers with one hash the newer is kept.
type shard struct {
	mu      sync.RWMutex
	at      map[uint64]*entry
	flights map[uint64]*flight
	hits    atomic.Uint64
	misses  atomic.Uint64
	_       [64]byte
}

// entry is a JWT with all that it depends on.
type entry struct {
	epoch  *epoch
	caller keymanager.Caller
	token  string
	// renewAt and expiresAt are in milliseconds since the epoch.
	renewAt, expiresAt int64
	renewing           atomic.Bool
}

// flight is a JWT that is being made. token and err may be read when done is closed.
type flight struct {
	epoch  *epoch
	caller keymanager.Caller
	done   chan struct{}
	token  string
	err    error
}

// sample is how many entries are looked at for one to let go.
const sample = 8

// keep stores an entry. In a full shard the one of a few that ends first goes. The lock is held.
func (s *shard) keep(h uint64, e *entry, capacity int, now int64) {
	if _, has := s.at[h]; !has && len(s.at) >= max(capacity/shards, 1) {
		var victim uint64
		first := int64(-1)
		n := 0
		for k, other := range s.at { // the runtime begins at a random place
			ends := other.expiresAt
			if other.epoch != e.epoch || ends <= now {
				ends = 0
			}
			if first < 0 || ends < first {
				victim, first = k, ends
			}
			if n++; n == sample || ends == 0 {
				break
			}
		}
		delete(s.at, victim)
	}
	s.at[h] = e
}

// sweep lets go what is of no use any more.
func (s *shard) sweep(now int64, e *epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h, kept := range s.at {
		if kept.expiresAt <= now || kept.epoch != e {
			delete(s.at, h)
		}
	}
}
