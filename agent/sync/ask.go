package sync

import (
	"context"
	"sync"
	"time"
)

// maxAsks bounds the questions that wait; beyond it the list is fetched instead.
const maxAsks = 1024

// maxAttempts is how often a question is repeated before the list is fetched instead.
const maxAttempts = 5

// ask is a question about one entity.
type ask[R any] struct {
	hint *R
	// want is true when an event said that the entity is there: absence is not believed at once.
	want     bool
	attempts int
	at       time.Time
}

// asks are the open questions of a data set, at most one per entity.
type asks[K comparable, R any] struct {
	mu   sync.Mutex
	open map[K]*ask[R]
	wake chan struct{}
	// flying counts the questions that are under way, by entity; unnamed those whose entity the answer will tell.
	flying  map[K]int
	unnamed int
}

func newAsks[K comparable, R any]() *asks[K, R] {
	return &asks[K, R]{open: make(map[K]*ask[R]), flying: make(map[K]int), wake: make(chan struct{}, 1)}
}

// ask makes the API Manager decide about k. Where it cannot be asked for one row, or too much is open, the list is
// fetched.
func (d *dataset[K, R]) ask(k K, hint *R) {
	d.askFor(k, &ask[R]{hint: hint, at: time.Now().Add(d.e.opt.EventWaitingTime)})
}

func (d *dataset[K, R]) askFor(k K, a *ask[R]) {
	if d.single == nil || d.fetch == nil {
		d.doubt(d.e.opt.RefetchDelay)
		return
	}
	d.asks.mu.Lock()
	old, ok := d.asks.open[k]
	switch {
	case ok:
		old.want = old.want || a.want
		if a.hint != nil {
			old.hint = a.hint
		}
		old.attempts = max(old.attempts, a.attempts)
	case len(d.asks.open) >= maxAsks:
		d.asks.mu.Unlock()
		d.doubt(d.e.opt.RefetchDelay)
		return
	default:
		d.asks.open[k] = a
	}
	d.asks.mu.Unlock()
	select {
	case d.asks.wake <- struct{}{}:
	default:
	}
}

// underWay reports whether an answer about k is on its way: it may be older than what was learnt since.
func (q *asks[K, R]) underWay(k K) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.unnamed > 0 || q.flying[k] > 0
}

// begin and end enclose a question; named is false when only the answer tells the entity.
func (q *asks[K, R]) begin(k K, named bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if named {
		q.flying[k]++
	} else {
		q.unnamed++
	}
}

func (q *asks[K, R]) end(k K, named bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !named:
		q.unnamed--
	case q.flying[k] <= 1:
		delete(q.flying, k)
	default:
		q.flying[k]--
	}
}

// next takes a question whose time has come, or says how long to wait.
func (q *asks[K, R]) next() (k K, a *ask[R], wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wait = time.Hour
	now := time.Now()
	for key, open := range q.open {
		if until := open.at.Sub(now); until <= 0 {
			delete(q.open, key)
			return key, open, 0
		} else if until < wait {
			wait = until
		}
	}
	return k, nil, wait
}

// answer is the loop that asks.
func (d *dataset[K, R]) answer(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		k, a, wait := d.asks.next()
		if a == nil {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-d.asks.wake:
			}
			continue
		}
		select { // another question may be open for a second loop
		case d.asks.wake <- struct{}{}:
		default:
		}
		_, _ = d.askOnce(ctx, k, a) // what it found or not stands in the question, for whoever waits
	}
}

// askOnce asks about k and applies the answer.
func (d *dataset[K, R]) askOnce(ctx context.Context, k K, a *ask[R]) (rows []R, err error) {
	d.asks.begin(k, true)
	defer d.asks.end(k, true)
	var seq uint64
	if err := d.w.do(ctx, func() { seq = d.ledger.seq }); err != nil {
		return nil, err
	}
	started := time.Now()
	if f := guarded(func() { rows, err = d.single(ctx, k, a.hint) }); f != nil {
		d.poisoned(f, &k)
		return nil, f
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		d.log.Debug().Err(err).Str("id", d.id(k, a.hint)).Msg("a row could not be read; the list is fetched instead")
		d.doubt(d.e.opt.RefetchDelay)
		return nil, err
	}
	if err := d.w.do(ctx, func() { d.answered(k, a, rows, seq, started) }); err != nil {
		return nil, err
	}
	return rows, nil
}

func (d *dataset[K, R]) answered(k K, a *ask[R], rows []R, seq uint64, started time.Time) {
	k = d.numbers.current(k)
	d.asking = true
	defer func() { d.asking = false }()
	w := d.e.windowAt(started.UnixMilli())
	o := origin{Kind: "pull", At: started.UnixMilli(), ID: d.name + "/" + d.id(k, a.hint)}
	d.log.Trace().Any("key", k).Int("rows", len(rows)).Int64("start", w.start).Msg("asked")
	if d.ledger.listed > w.local {
		// A list that was asked for later has been applied: it knows better than this answer.
		if a.want && d.table.Get(k) == nil {
			d.again(k, a)
		}
		return
	}
	found := false
	for i := range rows {
		key := d.identify(&rows[i])
		found = found || key == k
		if e, ok := d.ledger.entries[key]; ok && e.seq > seq {
			if key == k {
				d.again(k, a) // an event came while we asked
			}
			continue
		}
		row := rows[i]
		if d.orphan != nil && d.orphan(&row) >= w.lo {
			d.again(key, a) // what it belongs to was deleted while we asked
			continue
		}
		cur := d.table.Get(key)
		d.remember(key, cur)
		if !d.equal(cur, &row) {
			d.write(key, cur, &row, o, 0)
		}
		d.ledger.notePulled(key, w, false)
	}
	if found {
		return
	}
	if e, ok := d.ledger.entries[k]; ok && e.seq > seq {
		d.again(k, a)
		return
	}
	if a.want && a.attempts < maxAttempts {
		a.attempts++
		a.at = time.Now().Add(d.e.opt.RefetchDelay << (a.attempts - 1))
		d.askFor(k, a)
		return
	}
	cur := d.table.Get(k)
	d.remember(k, cur)
	d.ledger.notePulled(k, w, true)
	d.write(k, cur, nil, o, 0)
}

// again repeats a question, a few times.
func (d *dataset[K, R]) again(k K, a *ask[R]) {
	if a.attempts++; a.attempts >= maxAttempts {
		d.doubt(d.e.opt.RefetchDelay)
		return
	}
	a.at = time.Now().Add(d.e.opt.RefetchDelay / 10)
	d.askFor(k, a)
}
