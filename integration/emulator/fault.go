package emulator

import (
	"bytes"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// FaultKind is a way in which the REST side misbehaves.
type FaultKind string

// Kinds of faults.
const (
	// FaultDelay answers rightly after Delay.
	FaultDelay FaultKind = "delay"
	// FaultStale works the answer out at once and delivers it after Delay: what it says may have changed meanwhile.
	FaultStale FaultKind = "stale"
	// FaultStatus answers with Status and an error body; 401 with its challenge.
	FaultStatus FaultKind = "status"
	// FaultReset resets the connection without an answer.
	FaultReset FaultKind = "reset"
	// FaultTruncate cuts the body after After bytes, or in its middle.
	FaultTruncate FaultKind = "truncate"
	// FaultHang takes the request and says nothing.
	FaultHang FaultKind = "hang"
	// FaultEmpty answers as if there were no rows.
	FaultEmpty FaultKind = "empty"
	// FaultGarbage answers 200 with the content type of the endpoint and a body that is not it.
	FaultGarbage FaultKind = "garbage"
)

// Fault is one misbehaviour of the REST side.
type Fault struct {
	// Path is the name of the endpoint after /internal/data/v1/, such as "apis"; "" is every endpoint.
	Path string
	Kind FaultKind
	// Times is how many requests it hits; 0 is every one until ClearFaults.
	Times  int
	Delay  time.Duration
	Status int
	After  int
}

type faults struct {
	mu   sync.Mutex
	list []*Fault
	once map[*Fault]bool // faults with a count
}

// AddFault makes the REST side misbehave. Of several faults for one path the oldest acts first.
func (e *Emulator) AddFault(f Fault) {
	e.faults.mu.Lock()
	defer e.faults.mu.Unlock()
	n := f
	e.faults.list = append(e.faults.list, &n)
	if f.Times > 0 {
		e.faults.once[&n] = true
	}
}

// ClearFaults ends every fault, for requests to come.
func (e *Emulator) ClearFaults() {
	e.faults.mu.Lock()
	defer e.faults.mu.Unlock()
	e.faults.list = nil
	clear(e.faults.once)
}

func (f *faults) next(path string) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, c := range f.list {
		if c.Path != "" && c.Path != path {
			continue
		}
		hit := *c
		if f.once[c] {
			if c.Times--; c.Times <= 0 {
				delete(f.once, c)
				f.list = append(f.list[:i:i], f.list[i+1:]...)
			}
		}
		return hit, true
	}
	return Fault{}, false
}

// misbehave carries a fault out. It reports whether the request has been answered, else the writer to answer on.
func (e *Emulator) misbehave(f Fault, w http.ResponseWriter, r *http.Request) (http.ResponseWriter, bool) {
	switch f.Kind {
	case FaultDelay:
		return w, !e.wait(r, f.Delay)
	case FaultStale:
		return &late{ResponseWriter: w, wait: func() bool { return e.wait(r, f.Delay) }}, false
	case FaultStatus:
		if f.Status == http.StatusUnauthorized {
			unauthenticated(w)
		} else {
			writeError(w, f.Status, "fault that was asked for")
		}
		return w, true
	case FaultHang:
		select {
		case <-r.Context().Done():
		case <-e.stopped:
		}
		panic(http.ErrAbortHandler)
	case FaultReset:
		if h, ok := w.(http.Hijacker); ok {
			if c, _, err := h.Hijack(); err == nil {
				reset(c)
				return w, true
			}
		}
		panic(http.ErrAbortHandler)
	case FaultTruncate:
		after := f.After
		if after == 0 {
			after = 40
		}
		return &truncated{ResponseWriter: w, left: after}, false
	case FaultEmpty:
		if strings.HasSuffix(r.URL.Path, "/runtime-artifacts") {
			noArtifacts(w)
		} else {
			writeEmpty(w, r.URL.Path)
		}
		return w, true
	case FaultGarbage:
		kind := "application/json"
		if strings.HasSuffix(r.URL.Path, "/runtime-artifacts") {
			kind = "application/zip"
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write([]byte("<html>this is not what you asked for</html>"))
		return w, true
	}
	return w, false
}

// reset closes the connection with RST, so that the peer sees an error instead of an end.
func reset(c net.Conn) {
	raw := c
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = raw.Close() // reset on purpose
}

// truncated aborts the connection after so many bytes of body.
type truncated struct {
	http.ResponseWriter
	left int
}

func (t *truncated) Write(b []byte) (int, error) {
	if len(b) < t.left {
		t.left -= len(b)
		return t.ResponseWriter.Write(b)
	}
	_, _ = t.ResponseWriter.Write(b[:t.left])
	if f, ok := t.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler)
}

func (t *truncated) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// wait lets time pass; false when the request or the emulator ended first.
func (e *Emulator) wait(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
	case <-e.stopped:
	}
	return false
}

// late keeps an answer back until flush.
type late struct {
	http.ResponseWriter
	wait   func() bool
	status int
	body   bytes.Buffer
}

func (l *late) WriteHeader(status int)      { l.status = status }
func (l *late) Write(b []byte) (int, error) { return l.body.Write(b) }

func (l *late) flush() {
	if !l.wait() {
		panic(http.ErrAbortHandler)
	}
	if l.status != 0 {
		l.ResponseWriter.WriteHeader(l.status)
	}
	_, _ = l.body.WriteTo(l.ResponseWriter) // the peer went away: nothing to tell it
}
