package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The kinds of the event stream.
const (
	KindChange     = "change"
	KindRefusal    = "refusal"
	KindConnection = "connection"
)

// readerQueue is how many events a slow reader may be behind before it loses the oldest.
const readerQueue = 1024

// Change is an event of KindChange.
type Change struct {
	What   string `json:"what"`
	ID     string `json:"id"`
	Before any    `json:"before"`
	After  any    `json:"after"`
	Origin Origin `json:"origin"`
}

// Refusal is an event of KindRefusal.
type Refusal struct {
	RequestID string `json:"request_id"`
	API       string `json:"api"`
	Code      int    `json:"code"`
	Reason    string `json:"reason"`
}

// Connection is an event of KindConnection.
type Connection struct {
	Source string `json:"source"`
	State  string `json:"state"`
}

// Feed hands events to the readers of the event stream. The zero value is ready. Publish never waits for a reader, and
// costs next to nothing while there is none.
type Feed struct {
	readers atomic.Int32
	mu      sync.Mutex
	lastID  uint64
	subs    []*subscription
}

type feedEvent struct {
	id   uint64
	kind string
	data []byte
}

type subscription struct {
	kinds []string // empty: all
	queue chan feedEvent
	lost  atomic.Uint64
}

// Active reports whether anybody is reading, so that a caller can spare itself the work of making an event.
func (f *Feed) Active() bool { return f.readers.Load() > 0 }

// Publish hands v, encoded as JSON, to every reader that asked for kind.
func (f *Feed) Publish(kind string, v any) {
	if !f.Active() {
		return
	}
	data, err := json.Marshal(v)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastID++
	e := feedEvent{id: f.lastID, kind: kind, data: data}
	for _, s := range f.subs {
		if len(s.kinds) > 0 && !slices.Contains(s.kinds, kind) {
			continue
		}
		for {
			select {
			case s.queue <- e:
			default:
				// Full: the oldest goes. Only the reader takes besides us, so this ends.
				select {
				case <-s.queue:
					s.lost.Add(1)
				default:
				}
				continue
			}
			break
		}
	}
}

// Lost tells the readers of kind that n events of it were lost before they reached Publish.
func (f *Feed) Lost(kind string, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.subs {
		if len(s.kinds) == 0 || slices.Contains(s.kinds, kind) {
			s.lost.Add(n)
		}
	}
}

func (f *Feed) subscribe(kinds []string) *subscription {
	s := &subscription{kinds: kinds, queue: make(chan feedEvent, readerQueue)}
	f.mu.Lock()
	f.subs = append(f.subs, s)
	f.mu.Unlock()
	f.readers.Add(1)
	return s
}

func (f *Feed) unsubscribe(s *subscription) {
	f.mu.Lock()
	f.subs = slices.DeleteFunc(f.subs, func(o *subscription) bool { return o == s })
	f.mu.Unlock()
	f.readers.Add(-1)
}

// events answers with server-sent events until the client goes away or the server stops.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	if s.opts.Feed == nil {
		unavailable(w, "the event stream is off")
		return
	}
	var kinds []string
	if text := r.URL.Query().Get("kinds"); text != "" {
		for k := range strings.SplitSeq(text, ",") {
			k = strings.TrimSpace(k)
			if k != KindChange && k != KindRefusal && k != KindConnection {
				writeError(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("kind %q: write change, refusal or connection", k))
				return
			}
			kinds = append(kinds, k)
		}
	}
	rc := http.NewResponseController(w)
	sub := s.opts.Feed.subscribe(kinds)
	defer s.opts.Feed.unsubscribe(sub)
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	_, err := w.Write([]byte(": connected\n\n"))
	if err != nil || rc.Flush() != nil {
		return
	}
	keepAlive := time.NewTicker(15 * time.Second)
	defer keepAlive.Stop()
	var buf []byte
	for {
		buf = buf[:0]
		select {
		case <-r.Context().Done():
			return
		case <-keepAlive.C:
			buf = append(buf, ": still here\n\n"...)
		case e := <-sub.queue:
			if n := sub.lost.Swap(0); n > 0 {
				buf = append(buf, "event: lost\ndata: {\"count\":"...)
				buf = strconv.AppendUint(buf, n, 10)
				buf = append(buf, "}\n\n"...)
			}
			buf = append(buf, "id: "...)
			buf = strconv.AppendUint(buf, e.id, 10)
			buf = append(buf, "\nevent: "...)
			buf = append(buf, e.kind...)
			buf = append(buf, "\ndata: "...)
			buf = append(buf, e.data...)
			buf = append(buf, "\n\n"...)
		}
		if _, err := w.Write(buf); err != nil {
			return
		}
		if err := rc.Flush(); err != nil {
			return
		}
	}
}
