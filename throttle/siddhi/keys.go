package siddhi

import (
	"strings"

	"gatehouse/throttle/siddhi/aggregate"
)

// group is the state of one key of a query.
type group struct {
	key   string
	cells []aggregate.Cell
	// live is how many events are in; a key without any is forgotten.
	live int64
	// generation is the number of resets that the cells have seen.
	generation uint64
	// row is where the key's row stands in the step under way, valid when step is that step's number.
	row  int
	step uint64
	// off is true when emitOnStateChange has seen false last.
	off bool
	// one holds the cells of most policies, so that a new key takes one piece of memory.
	one [1]aggregate.Cell
}

// groups keeps the states of the keys of one query, at most so many. Keys that a whole window did not see are forgotten by
// turning over two generations of a map, which costs nothing per key.
type groups struct {
	hot, cold  map[string]*group
	cells      int
	most       int
	generation uint64
	// refused counts events of new keys that found no room.
	refused uint64
}

func newGroups(cells, most int) groups {
	return groups{hot: map[string]*group{}, cold: map[string]*group{}, cells: cells, most: most}
}

// find returns the state of a key; it makes one when the key is new and create is true. nil means that there is none.
func (g *groups) find(key string, create bool, budget *aggregate.Budget) *group {
	s, ok := g.hot[key]
	if !ok {
		if s, ok = g.cold[key]; ok {
			delete(g.cold, s.key)
			g.hot[s.key] = s
		}
	}
	if !ok {
		switch {
		case !create:
			return nil
		case len(g.hot)+len(g.cold) >= g.most:
			g.refused++
			return nil
		}
		s = &group{key: strings.Clone(key), generation: g.generation}
		if g.cells > len(s.one) {
			s.cells = make([]aggregate.Cell, g.cells)
		} else {
			s.cells = s.one[:g.cells]
		}
		g.hot[s.key] = s
	}
	if s.generation != g.generation {
		for i := range s.cells {
			s.cells[i].Reset(budget)
		}
		s.generation = g.generation
		s.live = 0
	}
	return s
}

func (g *groups) forget(s *group) { delete(g.hot, s.key) }

// reset zeroes all keys and forgets those that came neither in this window nor in the one before.
func (g *groups) reset(budget *aggregate.Budget) {
	g.generation++
	for _, s := range g.cold {
		for i := range s.cells {
			s.cells[i].Reset(budget) // gives back what the budget lent
		}
	}
	g.hot, g.cold = emptied(g.cold, len(g.hot)), g.hot
}

// emptied clears a map for so many keys, or gives up one that has grown far beyond that.
func emptied[V any](m map[string]V, keys int) map[string]V {
	if len(m) > 4*keys+1024 {
		return map[string]V{}
	}
	clear(m)
	return m
}

func (g *groups) len() int { return len(g.hot) + len(g.cold) }

// flags remembers the keys whose last flag was false, for emitOnStateChange: only they change what happens next. When full it
// forgets the keys that were not seen for longest; a forgotten key costs one more row that says what is known already.
type flags struct {
	hot, cold map[string]struct{}
	most      int
	turned    int64 // when the generations were last turned over, ms
	forgotten uint64
}

// pass reports whether a row goes on: it is dropped only when the flag was false and stays false. A key that is not owned is
// copied when it is kept, since its text may be a part of a much larger one.
func (k *flags) pass(key string, owned, on bool) bool {
	if on {
		delete(k.hot, key)
		delete(k.cold, key)
		return true
	}
	if _, off := k.hot[key]; off {
		return false
	}
	_, off := k.cold[key]
	if len(k.hot) >= max(1, k.most/2) {
		k.turn()
	}
	delete(k.cold, key)
	if !owned {
		key = strings.Clone(key)
	}
	k.hot[key] = struct{}{}
	return !off
}

func (k *flags) turn() {
	k.forgotten += uint64(len(k.cold))
	k.hot, k.cold = emptied(k.cold, len(k.hot)), k.hot
}

// age turns the generations over when half of the time to forget has passed, so that a key is forgotten after once to one
// and a half times that long.
func (k *flags) age(now, forgetAfter int64) {
	switch {
	case k.turned == 0 || now < k.turned:
		k.turned = now
	case now-k.turned >= forgetAfter/2:
		k.turn()
		k.turned = now
	}
}
