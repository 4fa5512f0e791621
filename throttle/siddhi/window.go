package siddhi

import (
	"gatehouse/throttle/siddhi/value"
)

type eventKind uint8

const (
	current eventKind = iota
	expired
	reset
)

// event is a row on its way through a query. The row belongs to whoever made it and is valid until the step is over.
type event struct {
	row  []value.Value
	at   int64 // its own timestamp, ms
	kind eventKind
	// group is the state of the key that the row is about, nil when it is not known.
	group *group
}

// step is a handler with its state. It gets a chunk of events, which it may change, and returns what goes on.
type step interface {
	process(r *Runtime, q *queryRun, chunk []event) []event
}

// timed is a step that wakes up by itself.
type timed interface {
	step
	// due is when the next timer runs; ok is false when none is set.
	due() (at int64, ok bool)
	// fire runs the timer that is due, at the time r.now.
	fire(r *Runtime, q *queryRun) []event
}

type filter struct{ plan stepPlan }

func (s *filter) process(_ *Runtime, q *queryRun, chunk []event) []event {
	kept := chunk[:0]
	for _, e := range chunk {
		if e.kind == reset {
			kept = append(kept, e)
			continue
		}
		q.frame.Row = e.row
		if ok := s.plan.cond(&q.frame); q.frame.Failed {
			q.lost()
		} else if ok {
			kept = append(kept, e)
		}
	}
	return kept
}

// owner passes only the events whose key this runtime counts.
type owner struct{ owns func(key string) bool }

func (s *owner) process(_ *Runtime, q *queryRun, chunk []event) []event {
	kept := chunk[:0]
	for _, e := range chunk {
		if s.owns(q.shardKey(e.row)) {
			kept = append(kept, e)
		}
	}
	return kept
}

// change is emitOnStateChange.
type change struct {
	plan  stepPlan
	flags flags
	// cached is true when all rows come from one query that groups by the key alone: the state of the key then knows
	// whether the last flag was false, which saves the second look-up for nearly every event.
	cached bool
}

// nullKey stands for a null key among the flags; no text holds a zero byte there.
const nullKey = "\x00null"

func (s *change) process(r *Runtime, q *queryRun, chunk []event) []event {
	s.flags.age(r.now, r.forgetAfter)
	kept := chunk[:0]
	for _, e := range chunk {
		if e.kind == reset {
			kept = append(kept, e)
			continue
		}
		key, on := &e.row[s.plan.key], e.row[s.plan.flag].True()
		known := s.cached && e.group != nil && !key.IsNull()
		if known && e.group.off && !on {
			continue
		}
		text := key.Str()
		if key.IsNull() {
			text = nullKey
		}
		if known {
			text = e.group.key
		}
		if s.flags.pass(text, known, on) {
			kept = append(kept, e)
		}
		if known {
			e.group.off = !on
		}
	}
	return kept
}

// grid is the boundary of windows: fixed distances from the start, or from the first event.
type grid struct {
	plan   stepPlan
	expire int64
	set    bool
}

func (g *grid) due() (int64, bool) { return g.expire, g.set }

func (g *grid) first(now int64) int64 {
	if g.plan.aligned {
		// The remainder is negative for a start that is still to come, as in Java: the first window is longer then.
		return now + g.plan.length - (now-g.plan.start)%g.plan.length
	}
	return now + g.plan.length
}

// open sets the first boundary, and sets it anew when the clock was put back by more than a window, so that no window lasts
// for as long as the clock was ahead. What was counted stays.
func (g *grid) open(now int64) {
	if !g.set || g.expire-now > 2*g.plan.length && g.expire > g.plan.start+2*g.plan.length {
		g.expire, g.set = g.first(now), true
	}
}

// skip leaves out the windows in which nothing can happen, so that a clock put forward does not run one timer for each.
func (g *grid) skip(now int64) (skipped bool) {
	behind := now - g.expire
	if behind < g.plan.length {
		return false
	}
	g.expire += behind / g.plan.length * g.plan.length
	return true
}

// passed moves the boundary on if it is reached, by one window.
func (g *grid) passed(now int64) bool {
	if now < g.expire {
		return false
	}
	g.expire += g.plan.length
	return true
}

// throttleWindow is throttler:timeBatch.
type throttleWindow struct {
	grid
	profile Profile
	kept    ring
	// overflow is set when an event could not be kept; the end of the window then drops all counts.
	overflow bool
	idle     bool // the timer under way stands for several windows
	out      []event
	rows     []value.Value
}

func (s *throttleWindow) fire(r *Runtime, q *queryRun) []event {
	if s.profile == Reset || s.kept.n == 0 && !s.overflow {
		if s.idle = s.skip(r.tickTo); s.idle {
			r.now = s.expire
		}
	}
	return s.roll(r, q, nil)
}

func (s *throttleWindow) process(r *Runtime, q *queryRun, chunk []event) []event {
	s.open(r.now)
	return s.roll(r, q, chunk)
}

func (s *throttleWindow) roll(r *Runtime, q *queryRun, chunk []event) []event {
	boundary := s.passed(r.now)
	q.batch = true
	s.kept.release()
	s.out, s.rows = s.out[:0], s.rows[:0]
	if boundary && (s.profile == Reset || s.overflow) {
		s.out = append(s.out, event{kind: reset, at: r.now})
		if s.idle { // a whole window without events: no key is left
			s.out = append(s.out, event{kind: reset, at: r.now})
		}
	}
	s.idle = false
	for _, e := range chunk {
		if e.kind != current {
			continue
		}
		start := len(s.rows)
		s.rows = append(append(s.rows, e.row...), value.OfLong(s.expire))
		e.row = s.rows[start:len(s.rows):len(s.rows)]
		s.out = append(s.out, e)
		if s.profile == Classic && !s.kept.push(e, r.maxEvents) {
			s.overflow = true
			r.stats.EventsDropped++
		}
	}
	if boundary && s.profile == Classic {
		for s.kept.n > 0 {
			e := s.kept.pop()
			e.kind = expired
			s.out = append(s.out, e)
		}
		if s.overflow {
			s.out = append(s.out, event{kind: reset, at: r.now})
			s.overflow = false
		}
	}
	return s.out
}

// length is throttler:timeLength.
type length struct {
	grid
	counts  map[string]int64
	most    int
	refused uint64
	out     []event
	rows    []value.Value
}

func (s *length) fire(r *Runtime, _ *queryRun) []event { //nolint:unparam // a window may give rows
	s.skip(r.tickTo)
	if s.passed(r.now) {
		s.counts = emptied(s.counts, 0)
	}
	return nil
}

func (s *length) process(r *Runtime, q *queryRun, chunk []event) []event {
	s.open(r.now)
	if s.passed(r.now) {
		s.counts = emptied(s.counts, 0)
	}
	s.out, s.rows = s.out[:0], s.rows[:0]
	for _, e := range chunk {
		if e.kind != current {
			continue
		}
		start := len(s.rows)
		// What is counted is the first column of the select list, computed before the window has filled in its own.
		s.rows = append(append(s.rows, e.row...), value.Value{}, value.Value{})
		e.row = s.rows[start:len(s.rows):len(s.rows)]
		q.frame.Row = e.row
		key := s.plan.firstRow(&q.frame)
		if q.frame.Failed {
			q.lost()
			continue
		}
		over := false
		if !key.IsNull() {
			q.key = key.Append(q.key[:0])
			n, known := s.counts[string(q.key)]
			switch {
			case known || len(s.counts) < s.most:
				s.counts[string(q.key)] = n + 1
				over = n+1 > s.plan.limit
			default:
				s.refused++
			}
		}
		e.row[len(e.row)-2], e.row[len(e.row)-1] = value.OfLong(s.expire), value.OfBool(over)
		s.out = append(s.out, e)
		e.kind = expired
		s.out = append(s.out, e)
	}
	return s.out
}

// sliding is #window.time.
type sliding struct {
	plan   stepPlan
	kept   ring
	timers []int64 // in rising order
	last   int64   // the latest timestamp that set a timer
	began  bool
	out    []event
}

func (s *sliding) due() (int64, bool) {
	if len(s.timers) == 0 {
		return 0, false
	}
	return s.timers[0], true
}

func (s *sliding) fire(r *Runtime, _ *queryRun) []event {
	s.timers = s.timers[1:]
	s.kept.release()
	s.out = s.out[:0]
	s.leave(r)
	return s.out
}

// leave passes on the events that are due. The first one not yet due holds back those behind it.
func (s *sliding) leave(r *Runtime) {
	for s.kept.n > 0 {
		e := s.kept.peek()
		if e.at-r.now+s.plan.length > 0 {
			return
		}
		s.kept.pop()
		e.kind, e.at = expired, r.now
		s.out = append(s.out, e)
	}
}

func (s *sliding) process(r *Runtime, q *queryRun, chunk []event) []event {
	s.kept.release()
	s.out = s.out[:0]
	for _, e := range chunk {
		s.leave(r)
		if e.kind != current {
			continue
		}
		if s.kept.n >= r.maxEvents {
			// The oldest leaves early, so that a flood cannot fill the memory.
			old := s.kept.pop()
			old.kind = expired
			s.out = append(s.out, old)
			r.stats.EventsDropped++
		}
		s.kept.push(e, r.maxEvents)
		if !s.began || e.at > s.last {
			s.began, s.last = true, e.at
			if len(s.timers) < r.maxEvents {
				s.timers = append(s.timers, e.at+s.plan.length)
			}
		}
		s.out = append(s.out, e)
	}
	return s.out
}

// batches is #window.timeBatch: events are held and go on at the boundary, those of the batch before first.
type batches struct {
	grid
	wantsExpired bool
	held, before ring
	resetRow     bool
	out          []event
}

func (s *batches) fire(r *Runtime, q *queryRun) []event {
	if s.held.n == 0 && s.before.n == 0 {
		s.skip(r.tickTo)
	}
	return s.process(r, q, nil)
}

func (s *batches) process(r *Runtime, q *queryRun, chunk []event) []event {
	s.open(r.now)
	s.held.release()
	s.before.release()
	boundary := s.passed(r.now)
	for _, e := range chunk {
		if e.kind == current && !s.held.push(e, r.maxEvents) {
			r.stats.EventsDropped++
		}
	}
	s.out = s.out[:0]
	q.batch = true
	if !boundary {
		return s.out
	}
	for s.before.n > 0 {
		e := s.before.pop()
		e.kind, e.at = expired, r.now
		s.out = append(s.out, e)
	}
	if s.held.n > 0 {
		if s.resetRow {
			s.out = append(s.out, event{kind: reset, at: r.now})
		}
		s.resetRow = true
		for i := range s.held.n {
			s.out = append(s.out, s.held.at(i))
		}
		if s.wantsExpired {
			s.held, s.before = s.before, s.held
		}
		s.held.clear()
	}
	return s.out
}
