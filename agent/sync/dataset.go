package sync

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
)

// chunkRows is how many rows of a list are applied between events.
const chunkRows = 512

// coarseness is how much older than it is a message may seem, in ms.
const coarseness = 2000

// outcome is what became of an event.
type outcome uint8

const (
	applied outcome = iota
	outStale
	outUnknown
	outMalformed
	outDuplicate
	outTenant
	outDropped
	outOther
)

// origin is the Origin of every domain.
type origin struct {
	Kind string
	At   int64
	ID   string
}

// dataset is one table with the rules that keep it in step. All methods but pull, and the asker in ask.go, run on its
// worker's goroutine.
type dataset[K comparable, R any] struct {
	*kind
	e      *Engine
	w      *worker
	table  Table[K, R]
	shadow *shadow[K, R] // nil for the large tables
	ledger *ledger[K]
	// numbers is nil where rows have one name only.
	numbers *numbers[K, R]
	what    string // in the change feed
	key     func(*R) K
	// same tells whether two rows say the same, their age and origin apart.
	same  func(a, b *R) bool
	stamp func(r *R, updated int64, o origin)
	// fetch reads the whole list.
	fetch func(ctx context.Context, each func(R) error) (Meta, error)
	// single reads what the API Manager says of one entity, nil where it cannot be asked. hint is a row that is known
	// or was announced.
	single func(ctx context.Context, k K, hint *R) ([]R, error)
	// tie says whether an event of equal age may replace the row; nil: yes.
	tie func(before, after *R) bool
	// coarse: events carry the time of the message only, which some publishers write in whole seconds. An event that
	// seems a little too old is applied at once, and the list decides soon after.
	coarse bool
	// id writes the key for people.
	id func(K, *R) string
	// show is what the change feed may tell of a row; nil: the row itself.
	show func(*R) any
	// orphan returns when what the row belongs to was deleted, 0 when it was not; nil: rows belong to nothing.
	orphan func(*R) int64
	// changed is called after a row was changed; before or after is nil.
	changed func(before, after *R)

	// verdict is what the ledger said of the event that was applied last.
	verdict verdict
	// asking is true while the answer to a question is being applied, listing while a list is.
	asking, listing bool

	cur  *pull[K, R]
	held *held[K]
	asks *asks[K, R]
}

// pull is a list that is being read.
type pull[K comparable, R any] struct {
	origin origin
	local  int64 // begin by our clock, ms
	// direct: the table is a large one and was empty, rows go into it as they come.
	direct bool
	// seen holds the listed rows: the pointer of the table's row where it says the same.
	seen  map[K]*R
	count int
	// partial: a row could not be read at all, so that nothing is known to be absent.
	partial bool
}

// pull reads the list and applies it. It runs on the kind's goroutine.
func (d *dataset[K, R]) pull(ctx context.Context) pullResult {
	started := time.Now()
	p := &pull[K, R]{
		origin: origin{Kind: "pull", At: started.UnixMilli(), ID: d.name + "@" + started.UTC().Format("2006-01-02T15:04:05.000Z")},
		local:  started.UnixMilli(),
		seen:   make(map[K]*R),
	}
	if err := d.w.do(ctx, func() { d.begin(p) }); err != nil {
		return d.unfinished(ctx, err)
	}
	chunk := make([]R, 0, chunkRows)
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		if err := d.w.do(ctx, func() {
			for i := range chunk {
				d.takeOne(p, &chunk[i])
			}
		}); err != nil {
			return err
		}
		clear(chunk)
		chunk = chunk[:0]
		return nil
	}
	var meta Meta
	var err error
	if f := guarded(func() {
		meta, err = d.fetch(ctx, func(r R) error {
			chunk = append(chunk, r)
			if len(chunk) == chunkRows {
				return flush()
			}
			return nil
		})
	}); f != nil {
		d.poisoned(f, nil)
		err = f
	}
	if err == nil {
		err = flush()
	}
	if meta.Started.IsZero() {
		meta.Started = started
	}
	if meta.Finished.IsZero() {
		meta.Finished = time.Now()
	}
	var result pullResult
	if err := d.w.do(ctx, func() { result = d.finish(p, meta, err) }); err != nil {
		return d.unfinished(ctx, err)
	}
	return result
}

// unfinished is the result of a list that the worker did not take to its end: because the engine stops, or of a fault.
func (d *dataset[K, R]) unfinished(ctx context.Context, err error) pullResult {
	if ctx.Err() != nil || d.w.do(ctx, func() { d.cur = nil }) != nil {
		return pullResult{outcome: pullStopped}
	}
	return pullResult{outcome: pullFailed, err: err}
}

// poisoned takes note of a row that made the engine panic: it is passed over, and the list is due again.
func (d *dataset[K, R]) poisoned(f *panicError, k *K) {
	d.e.panicked(d.w.name, []*kind{d.kind}, f, func(line *zerolog.Event) {
		line.Str("list", d.name)
		if k != nil {
			line.Any("key", *k)
		}
	})
}

// takeOne takes over one row. One that cannot be taken leaves what is held of the entity in force, and the other rows
// their way.
func (d *dataset[K, R]) takeOne(p *pull[K, R], r *R) {
	var k *K
	f := guarded(func() {
		id := d.identify(r)
		k = &id
		var none K
		if d.numbers != nil && id == none {
			if d.e.firstOf("nameless " + d.name) {
				d.log.Warn().Msg("the list has rows with neither a number nor a UUID: they are passed over")
			}
			return
		}
		d.take(p, id, r)
	})
	if f == nil {
		return
	}
	d.poisoned(f, k)
	if k == nil {
		p.partial = true // it may be any of those that are held
	} else if cur := d.table.Get(*k); cur != nil {
		p.seen[*k] = cur
	}
}

func (d *dataset[K, R]) begin(p *pull[K, R]) {
	d.cur = p
	p.direct = d.shadow == nil && d.table.Len() == 0
}

// take takes over one row of the list. r belongs to the caller.
func (d *dataset[K, R]) take(p *pull[K, R], k K, r *R) {
	p.count++
	cur := d.table.Get(k)
	if p.direct {
		if _, noted := d.ledger.entries[k]; !noted && (d.orphan == nil || d.orphan(r) == 0) {
			if cur == nil || !d.same(cur, r) {
				row := *r
				d.write(k, cur, &row, p.origin, 0)
			}
			return
		}
	}
	if cur != nil && d.same(cur, r) {
		p.seen[k] = cur
		return
	}
	row := *r
	p.seen[k] = &row
}

// finish applies the list, or holds it back, or drops it. This is where the events that arrived meanwhile are replayed:
// they were applied when they came, and an entity whose last event is newer than the start of the request keeps the
// event's state.
func (d *dataset[K, R]) finish(p *pull[K, R], meta Meta, err error) pullResult {
	d.cur = nil
	if err != nil {
		if d.optional && (controlplane.KindOf(err) == controlplane.NotFound || errors.Is(err, controlplane.ErrNoArtifacts) || errors.Is(err, errNotServed)) {
			return pullResult{outcome: pullAbsent, err: err}
		}
		return pullResult{outcome: pullFailed, err: err}
	}
	d.renumber(p)
	d.e.observe(meta)
	w := d.e.windowAt(meta.Started.UnixMilli())
	if d.ledger.evicted >= w.lo {
		// Newer facts than the list were forgotten for want of room: the list could undo them.
		d.ledger.evicted = 0
		return pullResult{outcome: pullAgain, again: time.Now().Add(d.e.opt.RefetchDelay), err: nil}
	}
	d.listing = true
	defer func() { d.listing = false }()
	if p.direct {
		d.finishDirect(p, w)
	} else {
		if again, hold := d.holdBack(p, w); hold {
			return pullResult{outcome: pullHeld, again: again}
		}
		if d.shadow != nil {
			d.shadow.begin()
			defer d.shadow.end()
		}
		d.merge(p, w)
	}
	d.ledger.advance(w, time.Now())
	return pullResult{outcome: pullApplied, rows: p.count}
}

func (d *dataset[K, R]) finishDirect(p *pull[K, R], w window) {
	for k, listed := range p.seen {
		d.decide(k, listed, w, p.origin)
	}
	if p.partial {
		return
	}
	for k := range d.ledger.entries {
		if p.seen[k] == nil && d.table.Get(k) != nil {
			d.decide(k, nil, w, p.origin)
		}
	}
}

func (d *dataset[K, R]) merge(p *pull[K, R], w window) {
	for k, listed := range p.seen {
		if d.table.Get(k) != listed {
			d.decide(k, listed, w, p.origin)
		}
	}
	if p.partial {
		return
	}
	var gone []K
	for cur := range d.table.All() {
		if k := d.key(cur); p.seen[k] == nil {
			gone = append(gone, k)
		}
	}
	for _, k := range gone {
		d.decide(k, nil, w, p.origin)
	}
}

// decide resolves one entity; a fault over it leaves it as it is.
func (d *dataset[K, R]) decide(k K, listed *R, w window, o origin) {
	if f := guarded(func() { d.resolve(k, listed, d.table.Get(k), w, o) }); f != nil {
		d.poisoned(f, &k)
	}
}

// resolve decides between what the list says of an entity and what is held. A nil row is an absent one.
func (d *dataset[K, R]) resolve(k K, listed, cur *R, w window, o origin) {
	if e, ok := d.ledger.entries[k]; ok && !d.e.hooks.noReplay {
		newer := e.time >= w.start
		if e.pulled {
			newer = e.local >= w.local
		}
		if e.time >= w.lo && e.time <= max(w.hi, e.sure) && !d.equal(cur, listed) {
			d.ask(k, first(cur, listed)) // the clocks do not tell
		}
		d.log.Trace().Any("key", k).Int64("time", e.time).Int64("start", w.start).Bool("event_wins", newer).Msg("list against event")
		if newer {
			return
		}
	}
	if listed != nil && d.orphan != nil && !d.e.hooks.noReplay {
		if at := d.orphan(listed); at > 0 && at >= w.lo {
			if at <= w.hi {
				d.ask(k, listed)
			}
			if at >= w.start {
				listed = nil
			}
		}
	}
	if d.equal(cur, listed) {
		return
	}
	if listed != nil {
		row := *listed // what was listed may be a row that readers still hold
		listed = &row
	}
	d.write(k, cur, listed, o, 0)
}

func first[R any](a, b *R) *R {
	if a != nil {
		return a
	}
	return b
}

// equal compares rows that may be absent.
func (d *dataset[K, R]) equal(a, b *R) bool {
	if a == nil || b == nil {
		return a == b
	}
	return d.same(a, b)
}

// write puts or deletes the row, and tells those who follow changes. row becomes the table's.
func (d *dataset[K, R]) write(k K, before, row *R, o origin, updated int64) {
	switch {
	case row != nil:
		d.stamp(row, updated, o)
		d.table.Put(*row)
		if d.numbers != nil && d.numbers.complete {
			d.learn(row)
		}
	case before != nil:
		d.table.Delete(k)
		if d.numbers != nil {
			d.learn(before) // late news of it may know only one of its names
		}
	default:
		return
	}
	if d.changed != nil {
		d.changed(before, row)
	}
	d.e.dirty.Store(true)
	if d.e.changes.watched() {
		d.e.changes.emit(Change{What: d.what, ID: d.id(k, first(row, before)), Before: d.shown(before), After: d.shown(row), Origin: Origin(o)})
	}
}

func (d *dataset[K, R]) shown(r *R) any {
	switch {
	case r == nil:
		return nil
	case d.show != nil:
		return d.show(r)
	}
	return r
}

// remember keeps a row that the first list brought a moment ago, before something else changes it: finish decides between
// the two.
func (d *dataset[K, R]) remember(k K, cur *R) {
	if p := d.cur; p != nil && p.direct && cur != nil {
		if _, noted := d.ledger.entries[k]; !noted {
			p.seen[k] = cur
		}
	}
}

// change applies an event. next makes the new row of the held one, which it must not change; nil deletes.
func (d *dataset[K, R]) change(b *event.Base, k K, next func(cur *R) *R) outcome {
	now := time.Now()
	t := d.e.eventTime(b.Time, now)
	if t != b.Time {
		d.request(now.Add(d.e.opt.RefetchDelay)) // no usable time stamp: the list settles it
	}
	v := d.ledger.judge(k, t)
	d.verdict = v
	d.log.Trace().Str("event", b.Type).Any("key", k).Int64("time", t).Stringer("verdict", v).Msg("event")
	if v == stale {
		return outStale
	}
	cur := d.table.Get(k)
	d.remember(k, cur)
	row := next(cur)
	differs := !d.equal(cur, row)
	if v == late && d.coarse && t > d.ledger.floor-coarseness {
		v = fresh
		d.doubt(d.e.opt.RefetchDelay)
	}
	if v == late {
		if differs || d.asks.underWay(k) {
			d.ask(k, first(row, cur))
		}
		return outStale
	}
	if v == equal && d.tie != nil && !d.tie(cur, row) {
		return outStale
	}
	doubtful := differs && d.ledger.doubtful(k, t)
	if differs {
		d.write(k, cur, row, origin{Kind: "event", At: now.UnixMilli(), ID: cmp.Or(b.EventID, d.w.message)}, t)
	}
	d.ledger.note(k, t, row == nil, now)
	if doubtful {
		d.ask(k, first(row, cur))
	}
	return applied
}
