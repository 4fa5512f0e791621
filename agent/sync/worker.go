package sync

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/event"
)

// item is one event on its way to a worker.
type item struct {
	event event.Event
	base  event.Base
	from  *source
	at    time.Time
	// message is the broker's name of the message. It stands in an origin where the event has no id: throttleData and
	// keyManager have none.
	message string
	// size is about how many bytes of memory the event holds.
	size int
}

// itemOverhead is what an event takes beside the text of its message, in bytes.
const itemOverhead = 512

// inbox is the bounded queue of one worker: by the number of events that wait, and by the bytes of all that are not yet
// applied. When it is full the backlog is dropped: the lists say it all in one. An empty inbox takes any event.
type inbox struct {
	limit, maxBytes int
	ready           chan struct{}

	mu    sync.Mutex
	items []item
	// queued is the bytes of items, applying those of the batch that was taken and is not done with.
	queued, applying int
	told             time.Time // of a loss
}

func newInbox(limit, maxBytes int) *inbox {
	return &inbox{limit: limit, maxBytes: maxBytes, ready: make(chan struct{}, 1)}
}

// push adds an item; it returns the older ones that were dropped for it.
func (q *inbox) push(it item) (dropped []item) {
	q.mu.Lock()
	if n := len(q.items); n > 0 && (n >= q.limit || q.applying+q.queued+it.size > q.maxBytes) {
		dropped = q.items
		q.items, q.queued = nil, 0
	}
	q.items = append(q.items, it)
	q.queued += it.size
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return dropped
}

// take swaps the queue for an empty buffer. What is taken counts until it is done with.
func (q *inbox) take(buf []item) []item {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = buf[:0]
	q.applying += q.queued
	q.queued = 0
	return items
}

// finish lets go of an item that was taken.
func (q *inbox) finish(it *item) {
	q.mu.Lock()
	q.applying -= it.size
	q.mu.Unlock()
	*it = item{}
}

// newsOfLoss tells whether a loss is to be logged: one a minute.
func (q *inbox) newsOfLoss(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.told.IsZero() && now.Sub(q.told) < time.Minute {
		return false
	}
	q.told = now
	return true
}

func (q *inbox) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// bytes is what the events that are not yet applied hold, about.
func (q *inbox) bytes() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.queued + q.applying
}

// maxUnsettled is how long changes wait for the routes while events keep coming.
const maxUnsettled = 100 * time.Millisecond

// worker owns the data sets of one group. Everything that changes them runs on its one goroutine: events from the
// inbox, pieces of lists and answers to questions as functions from the control channel. So nothing in a data set needs
// a lock, and no group waits for another. A panic over one of them ends neither the process nor the worker.
type worker struct {
	name    string
	in      *inbox
	control chan func()
	apply   func(*item) outcome
	// settle runs when the inbox is empty, and every maxUnsettled while it is not; the APIs' worker sets the routes then.
	settle  func()
	settled time.Time
	done    func(*item, outcome)
	// panicked is told of each panic; what says over what.
	panicked func(w *worker, p *panicError, what func(*zerolog.Event))
	kinds    []*kind
	// message is that of the event that is being applied.
	message string
}

func newWorker(name string, limit, maxBytes int) *worker {
	return &worker{name: name, in: newInbox(limit, maxBytes), control: make(chan func(), 16)}
}

// panicError is a panic that was caught.
type panicError struct {
	cause any
	stack []byte
}

func (p *panicError) Error() string {
	return fmt.Sprintf("a fault of the gateway (please report it, the log has the stack): %v", p.cause)
}

// guarded runs f, and returns a panic as an error.
func guarded(f func()) (p *panicError) {
	defer func() {
		if cause := recover(); cause != nil {
			p = &panicError{cause: cause, stack: debug.Stack()}
		}
	}()
	f()
	return nil
}

// guard runs f. A panic is counted, logged and makes the worker's lists due; it is returned.
func (w *worker) guard(what func(*zerolog.Event), f func()) error {
	if p := guarded(f); p != nil {
		if w.panicked != nil {
			w.panicked(w, p, what)
		}
		return p
	}
	return nil
}

// do runs f on the worker's goroutine and waits for it. The error is that of ctx when it ended first, or says that f
// panicked.
func (w *worker) do(ctx context.Context, f func()) error {
	finished := make(chan struct{})
	var err error
	run := func() {
		defer close(finished)
		err = w.guard(nil, f)
	}
	select {
	case w.control <- run:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-finished:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// applied applies one event. A panic over one must not end the gateway: the event is passed over, and the lists, which
// know better, are due.
func (w *worker) applied(it *item) (o outcome) {
	w.message = it.message
	defer func() { w.message = "" }()
	err := w.guard(func(line *zerolog.Event) { line.Str("event", it.base.Type).Str("event_id", it.base.EventID) }, func() { o = w.apply(it) })
	if err != nil {
		return outMalformed
	}
	return o
}

func (w *worker) run(ctx context.Context) {
	var buf []item
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-w.control:
			f()
		case <-w.in.ready:
			items := w.in.take(buf)
			for i := range items {
				w.done(&items[i], w.applied(&items[i]))
				w.in.finish(&items[i])
				if i&63 == 63 {
					select {
					case f := <-w.control:
						f()
					default:
					}
				}
				w.settleUnless(maxUnsettled)
			}
			buf = items
		}
		if w.in.len() == 0 {
			w.settleUnless(0)
		} else {
			w.settleUnless(maxUnsettled)
		}
	}
}

// settleUnless settles, unless that ended less than d ago. Events go on between two times however long it takes.
func (w *worker) settleUnless(d time.Duration) {
	if w.settle == nil || d > 0 && time.Since(w.settled) < d {
		return
	}
	_ = w.guard(nil, w.settle) // counted and logged there
	w.settled = time.Now()
}
