package siddhi

import (
	"time"

	"gatehouse/throttle"
	"gatehouse/throttle/siddhi/aggregate"
	"gatehouse/throttle/siddhi/expr"
	"gatehouse/throttle/siddhi/value"
)

// Defaults of RuntimeOptions.
const (
	DefaultMaxKeys     = 1_000_000
	DefaultMaxEvents   = 1 << 20
	DefaultMaxDistinct = 1 << 20
	DefaultForgetAfter = 24 * time.Hour
)

// RuntimeOptions say where rows go and how much a runtime may remember. The zero value remembers as much as the defaults say
// and tells nobody.
type RuntimeOptions struct {
	// Decide is called for each row of GlobalThrottleStream whose key is not null, in order. The key may
	// be a part of a text of the event: who keeps it for long copies it.
	Decide func(throttle.Decision)
	// Owns tells which keys this runtime counts; nil means all. Keys are the values of the first group by attribute.
	Owns func(key string) bool
	// Zone is the zone of the date functions; nil means UTC. Windows are always on the UTC grid.
	Zone *time.Location
	// MaxKeys is how many keys each query remembers; 0 means DefaultMaxKeys. Events of keys beyond it are not counted, so
	// their callers are not throttled; Stats.KeysRefused counts them. A key takes some 250 bytes.
	MaxKeys int
	// MaxEvents is how many events a window that keeps events holds; 0 means DefaultMaxEvents.
	MaxEvents int
	// MaxDistinct is how many values all distinctcounts of a query keep; 0 means DefaultMaxDistinct. Further values do not
	// count.
	MaxDistinct int
	// ForgetAfter is how long emitOnStateChange remembers an idle key; 0 means DefaultForgetAfter.
	ForgetAfter time.Duration
}

// Stats are counters since the start, and two gauges.
type Stats struct {
	Events uint64 // sent in
	Rows   uint64 // inserted into streams
	// FunctionErrors counts functions that failed and gave null, AggregateErrors values that an aggregate could not take,
	// EventsLost events that a value of a wrong kind ended.
	FunctionErrors, AggregateErrors, EventsLost uint64
	// KeysRefused counts events of keys beyond MaxKeys, EventsDropped events beyond MaxEvents, DistinctRefused values beyond
	// MaxDistinct, KeysForgotten keys that emitOnStateChange gave up.
	KeysRefused, EventsDropped, DistinctRefused, KeysForgotten uint64
	// Keys is how many keys are remembered now, Kept how many events windows hold.
	Keys, Kept int
}

// Runtime is a plan with its state. It is for one goroutine; see the package comment for how to use several.
type Runtime struct {
	plan    *Plan
	queries []*queryRun
	timers  []timer
	taps    []func(now int64, row []Value)
	decide  func(throttle.Decision)
	global  StreamID

	now         int64
	tickTo      int64
	maxEvents   int
	forgetAfter int64
	stats       Stats
}

type timer struct {
	step  timed
	query *queryRun
	index int
}

// queryRun is a query with its state.
type queryRun struct {
	plan  *query
	frame expr.Frame
	steps []step
	// batch is set by windows whose chunks are one step: of a key only the last row leaves.
	batch  bool
	groups groups
	budget aggregate.Budget
	stats  *Stats

	// early is the filter of the only reader, nil when there is more than that one reader: the columns that it needs are
	// computed first, and the rest not at all when it does not pass. Most events of most policies end there.
	early expr.Cond
	needs []bool // by column
	chunk []event
	out   []event
	rows  []value.Value
	key   []byte
	idle  []*group // to be forgotten
	step  uint64
}

func orDefault[T int | time.Duration](n, def T) T {
	if n <= 0 {
		return def
	}
	return n
}

// NewRuntime makes a runtime without any state. It starts no goroutine and needs no closing.
func NewRuntime(p *Plan, o RuntimeOptions) *Runtime {
	r := &Runtime{
		plan: p, taps: make([]func(int64, []Value), len(p.streams)), decide: o.Decide, global: -1,
		maxEvents: orDefault(o.MaxEvents, DefaultMaxEvents), forgetAfter: orDefault(o.ForgetAfter, DefaultForgetAfter).Milliseconds(),
	}
	if id, ok := p.names[GlobalThrottleStream]; ok {
		r.global = id
	}
	most := orDefault(o.MaxKeys, DefaultMaxKeys)
	for _, plan := range p.queries {
		q := &queryRun{plan: plan, stats: &r.stats, groups: newGroups(len(plan.aggregates), most), budget: aggregate.Budget{Left: orDefault(o.MaxDistinct, DefaultMaxDistinct)}}
		q.frame.Zone = o.Zone
		q.frame.Aggs = make([]value.Value, len(plan.aggregates))
		for i, s := range plan.steps {
			if o.Owns != nil && i == plan.window && len(plan.groupBy) > 0 {
				q.steps = append(q.steps, &owner{owns: o.Owns})
			}
			built := build(s, p, plan, most)
			q.steps = append(q.steps, built)
			if t, ok := built.(timed); ok {
				r.timers = append(r.timers, timer{step: t, query: q, index: len(q.steps)})
			}
		}
		q.look(p)
		r.queries = append(r.queries, q)
	}
	return r
}

// look sets early where a query does nothing but compute columns for one reader that begins with a filter.
func (q *queryRun) look(p *Plan) {
	readers := p.streams[q.plan.target].readers
	if len(q.plan.aggregates) > 0 || q.plan.having != nil || len(readers) != 1 {
		return
	}
	steps := p.queries[readers[0]].steps
	if len(steps) == 0 || steps[0].kind != filterStep {
		return
	}
	q.early, q.needs = steps[0].cond, make([]bool, len(q.plan.items))
	for _, column := range steps[0].reads {
		q.needs[column] = true
	}
}

func build(s stepPlan, p *Plan, q *query, most int) step {
	switch s.kind {
	case throttleStep:
		return &throttleWindow{grid: grid{plan: s}, profile: p.profile}
	case lengthStep:
		return &length{grid: grid{plan: s}, counts: map[string]int64{}, most: most}
	case changeStep:
		return &change{plan: s, cached: p.keyed(q, s.key), flags: flags{hot: map[string]struct{}{}, cold: map[string]struct{}{}, most: most}}
	case slidingStep:
		return &sliding{plan: s}
	case batchStep:
		return &batches{grid: grid{plan: s}, wantsExpired: q.expired}
	}
	return &filter{plan: s}
}

// keyed reports whether all rows that a query reads come from one query that groups by this column and nothing else.
func (p *Plan) keyed(reader *query, column int) bool {
	producers := 0
	for _, q := range p.queries {
		if q.target != reader.source {
			continue
		}
		producers++
		if len(q.groupBy) != 1 || len(q.aggregates) == 0 || q.items[column].Column != q.groupBy[0] || q.columns[q.groupBy[0]].Kind != value.String {
			return false
		}
	}
	return producers == 1
}

// Tap has a function called for every row that a query inserts into a stream, before the readers of the stream see it. The
// row is valid during the call only. It reports false when there is no such stream. Call it before the first event.
func (r *Runtime) Tap(stream string, f func(now int64, row []Value)) bool {
	id, ok := r.plan.names[stream]
	if ok {
		r.taps[id] = f
		for _, q := range r.queries {
			if q.plan.target == id {
				q.early = nil // every row is asked for
			}
		}
	}
	return ok
}

// Send puts one event into a stream: now is the clock, at the event's own timestamp, both ms since the epoch. Timers that
// were due before now run first; for a timer that is due at now, whoever calls decides: after Tick(now) the timer ends the
// window and the event belongs to the next, without it the event itself rolls the window over. The row has the columns of
// the stream and stays the caller's; its texts may be kept.
func (r *Runtime) Send(stream StreamID, now, at int64, row []Value) {
	r.runTimers(now - 1)
	r.now, r.tickTo = now, now
	r.stats.Events++
	one := [1]event{{row: row, at: at}}
	r.forward(stream, one[:])
}

// Tick runs the timers that are due at now or before, each at its own time and in that order.
func (r *Runtime) Tick(now int64) {
	r.runTimers(now)
	r.now = now
}

// Next says when the next timer is due, ms since the epoch; ok is false when none is set.
func (r *Runtime) Next() (at int64, ok bool) {
	for i := range r.timers {
		if due, set := r.timers[i].step.due(); set && (!ok || due < at) {
			at, ok = due, true
		}
	}
	return at, ok
}

func (r *Runtime) runTimers(now int64) {
	for {
		first, at := -1, int64(0)
		for i := range r.timers {
			if due, set := r.timers[i].step.due(); set && due <= now && (first < 0 || due < at) {
				first, at = i, due
			}
		}
		if first < 0 {
			return
		}
		t := &r.timers[first]
		r.now, r.tickTo = max(at, min(r.now, now)), now
		t.query.begin(r)
		if chunk := t.step.fire(r, t.query); len(chunk) > 0 {
			t.query.resume(r, t.index, chunk)
		}
	}
}

// Stats returns the counters.
func (r *Runtime) Stats() Stats {
	s := r.stats
	for _, q := range r.queries {
		s.FunctionErrors += q.frame.Errors
		s.KeysRefused += q.groups.refused
		s.DistinctRefused += q.budget.Refused
		s.Keys += q.groups.len()
		for _, step := range q.steps {
			switch step := step.(type) {
			case *throttleWindow:
				s.Kept += step.kept.n
			case *sliding:
				s.Kept += step.kept.n
			case *batches:
				s.Kept += step.held.n + step.before.n
			case *length:
				s.KeysRefused += step.refused
				s.Keys += len(step.counts)
			case *change:
				s.Keys += len(step.flags.hot) + len(step.flags.cold)
				s.KeysForgotten += step.flags.forgotten
			}
		}
	}
	return s
}

// forward gives a chunk to all readers of a stream.
func (r *Runtime) forward(id StreamID, chunk []event) {
	for _, n := range r.plan.streams[id].readers {
		q := r.queries[n]
		q.begin(r)
		q.chunk = append(q.chunk[:0], chunk...)
		q.resume(r, 0, q.chunk)
	}
}

// insert takes the rows that a query made.
func (r *Runtime) insert(id StreamID, rows []event) {
	r.stats.Rows += uint64(len(rows))
	if tap := r.taps[id]; tap != nil {
		for _, e := range rows {
			tap(r.now, e.row)
		}
	}
	if id == r.global && r.decide != nil {
		for _, e := range rows {
			if key := e.row[0]; key.Kind() == value.String {
				r.decide(throttle.Decision{Key: key.Str(), Throttled: e.row[1].True(), ExpiresAt: e.row[2].Int64()})
			}
		}
	}
	if len(r.plan.streams[id].readers) > 0 {
		r.forward(id, rows)
	}
}

func (q *queryRun) begin(r *Runtime) {
	q.batch = false
	q.frame.Now = r.now
}

// lost counts an event that a value of a wrong kind ended.
func (q *queryRun) lost() {
	q.frame.Failed = false
	q.stats.EventsLost++
}

// resume runs the steps from an index on, then the select list.
func (q *queryRun) resume(r *Runtime, index int, chunk []event) {
	for _, s := range q.steps[index:] {
		if chunk = s.process(r, q, chunk); len(chunk) == 0 {
			return
		}
	}
	if rows := q.selectRows(chunk); len(rows) > 0 {
		r.insert(q.plan.target, rows)
	}
}
