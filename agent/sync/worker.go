package sync

import (
	"context"
	"runtime/debug"
	"sync"
	"time"

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
}

// inbox is the bounded queue of one worker. When it is full the backlog is dropped: the lists say it all in one.
type inbox struct {
	mu      sync.Mutex
	items   []item
	limit   int
	dropped uint64
	ready   chan struct{}
}

func newInbox(limit int) *inbox { return &inbox{limit: limit, ready: make(chan struct{}, 1)} }

// push adds an item; it returns how many older ones were dropped for it.
func (q *inbox) push(it item) (dropped []item) {
	q.mu.Lock()
	if len(q.items) >= q.limit {
		dropped = q.items
		q.dropped += uint64(len(dropped))
		q.items = nil
	}
	q.items = append(q.items, it)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return dropped
}

// take swaps the queue for an empty buffer.
func (q *inbox) take(buf []item) []item {
	clear(buf)
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = buf[:0]
	return items
}

func (q *inbox) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// worker owns the data sets of one group. Everything that changes them runs on its one goroutine: events from the
// inbox, pieces of lists and answers to questions as functions from the control channel. So nothing in a data set needs
// a lock, and no group waits for another.
type worker struct {
	name    string
	in      *inbox
	control chan func()
	apply   func(*item) outcome
	// settle runs when the inbox is empty; the APIs' worker sets the routes then.
	settle func()
	done   func(*item, outcome)
	kinds  []*kind
	// message is that of the event that is being applied.
	message string
}

func newWorker(name string, limit int) *worker {
	return &worker{name: name, in: newInbox(limit), control: make(chan func(), 16)}
}

// do runs f on the worker's goroutine and waits for it; false when ctx ended first.
func (w *worker) do(ctx context.Context, f func()) bool {
	finished := make(chan struct{})
	select {
	case w.control <- func() { f(); close(finished) }:
	case <-ctx.Done():
		return false
	}
	select {
	case <-finished:
		return true
	case <-ctx.Done():
		return false
	}
}

// applied applies one event. A panic over one must not end the gateway: the event is passed over, and the lists, which
// know better, are due.
func (w *worker) applied(it *item) (o outcome) {
	defer func() {
		if cause := recover(); cause != nil {
			o = outMalformed
			for _, k := range w.kinds {
				k.log.Error().Str("event", it.base.Type).Str("event_id", it.base.EventID).Interface("panic", cause).Bytes("stack", debug.Stack()).
					Msg("applying an event failed; it is passed over and the list is fetched")
				k.doubt(500 * time.Millisecond)
			}
		}
	}()
	w.message = it.message
	defer func() { w.message = "" }()
	return w.apply(it)
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
				if i&63 == 63 {
					select {
					case f := <-w.control:
						f()
					default:
					}
				}
			}
			buf = items
		}
		if w.settle != nil && w.in.len() == 0 {
			w.settle()
		}
	}
}
