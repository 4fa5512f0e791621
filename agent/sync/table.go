package sync

import (
	"iter"
	"maps"
	"sync"
)

// shadow is the engine's own copy of a small table whose domain keeps an immutable set that is rebuilt at each change.
// It makes one call of ReplaceAll out of the many changes of a list.
type shadow[K comparable, R any] struct {
	mu   sync.RWMutex
	rows map[K]*R
	key  func(*R) K
	sink Sink[R]
	// fault is told of panics of the sink over a batch.
	fault func(*panicError)
	// batch collects changes; pending keeps them.
	batch   bool
	pending []change[R]
}

type change[R any] struct{ before, after *R }

func newShadow[K comparable, R any](key func(*R) K, sink Sink[R], fault func(*panicError)) *shadow[K, R] {
	return &shadow[K, R]{rows: make(map[K]*R), key: key, sink: sink, fault: fault}
}

func (s *shadow[K, R]) table() Table[K, R] {
	return Table[K, R]{Get: s.get, Put: s.put, Delete: s.del, Len: s.len, All: s.all}
}

func (s *shadow[K, R]) get(k K) *R {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rows[k]
}

func (s *shadow[K, R]) len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.rows)
}

// all yields a copy, so that the caller may change the table meanwhile.
func (s *shadow[K, R]) all() iter.Seq[*R] {
	s.mu.RLock()
	defer s.mu.RUnlock()
	rows := make([]*R, 0, len(s.rows))
	for r := range maps.Values(s.rows) {
		rows = append(rows, r)
	}
	return func(yield func(*R) bool) {
		for _, r := range rows {
			if !yield(r) {
				return
			}
		}
	}
}

func (s *shadow[K, R]) put(row R) (before *R) {
	k := s.key(&row)
	before = s.set(k, &row)
	s.emit(change[R]{before, &row})
	return before
}

func (s *shadow[K, R]) del(k K) (before *R) {
	before = s.set(k, nil)
	if before != nil {
		s.emit(change[R]{before, nil})
	}
	return before
}

// set makes row, where nil is none, the one that is held.
func (s *shadow[K, R]) set(k K, row *R) (before *R) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before = s.rows[k]
	if row != nil {
		s.rows[k] = row
	} else {
		delete(s.rows, k)
	}
	return before
}

// emit hands a change on, now or with its batch. When the sink panics the change is taken back, so that the next list
// tries it again.
func (s *shadow[K, R]) emit(c change[R]) {
	if s.batch {
		s.pending = append(s.pending, c)
		return
	}
	ok := false
	defer func() {
		if !ok {
			r := c.after
			if r == nil {
				r = c.before
			}
			s.set(s.key(r), c.before)
		}
	}()
	switch {
	case c.after != nil && s.sink.Put != nil:
		s.sink.Put(*c.after)
	case c.after == nil && s.sink.Delete != nil:
		s.sink.Delete(*c.before)
	}
	ok = true
}

// begin and end enclose the changes of one list.
func (s *shadow[K, R]) begin() { s.batch = true }

func (s *shadow[K, R]) end() {
	s.batch = false
	pending := s.pending
	s.pending = nil
	if len(pending) > 1 && s.sink.ReplaceAll != nil {
		rows := make([]R, 0, s.len())
		for r := range s.all() {
			rows = append(rows, *r)
		}
		f := guarded(func() { s.sink.ReplaceAll(rows) })
		if f == nil {
			return
		}
		s.fault(f) // one by one, the others find their way
	}
	for _, c := range pending {
		if f := guarded(func() { s.emit(c) }); f != nil {
			s.fault(f)
		}
	}
}
