package pipeline

import (
	"sync"
	"sync/atomic"
	"time"
)

// FormatTime renders milliseconds since the epoch as RFC 3339 in UTC with milliseconds.
func FormatTime(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

// Traces keeps the traces of the last requests, admitted and refused apart, so that a flood of one kind does not push
// out the other. Add may be called from many goroutines: each slot has its own lock, held for one copy.
type Traces struct {
	admitted, refused ring
}

type ring struct {
	next  atomic.Uint64
	slots []slot
}

type slot struct {
	mu    sync.Mutex
	trace Trace
}

// NewTraces makes rings of the given sizes; a size of 0 keeps none of that kind.
func NewTraces(admitted, refused int) *Traces {
	return &Traces{admitted: ring{slots: make([]slot, max(admitted, 0))}, refused: ring{slots: make([]slot, max(refused, 0))}}
}

// Add copies a trace into the ring of its kind.
func (t *Traces) Add(tr *Trace) {
	r := &t.refused
	if tr.Allowed {
		r = &t.admitted
	}
	n := uint64(len(r.slots))
	if n == 0 {
		return
	}
	s := &r.slots[(r.next.Add(1)-1)%n]
	s.mu.Lock()
	s.trace = *tr
	s.mu.Unlock()
}

// Find returns the newest trace of a request id. It looks at every slot: it is for people, not for the request path.
func (t *Traces) Find(id string) (TraceView, bool) {
	if id == "" {
		return TraceView{}, false
	}
	var found Trace
	ok := false
	for _, r := range []*ring{&t.refused, &t.admitted} {
		for i := range r.slots {
			s := &r.slots[i]
			s.mu.Lock()
			if s.trace.RequestID == id && (!ok || s.trace.At >= found.At) {
				found, ok = s.trace, true
			}
			s.mu.Unlock()
		}
	}
	if !ok {
		return TraceView{}, false
	}
	return found.View(), true
}
