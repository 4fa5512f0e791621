// Package accesslog writes one JSON line per request without making requests wait: lines are put together in memory and
// written by one goroutine; when it cannot keep up, lines are dropped and counted.
package accesslog

import (
	"cmp"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Entry is one request. Empty texts and zero numbers are left out, but for status, bytes and durations.
type Entry struct {
	Time                time.Time
	RequestID, TraceID  string
	ClientIP            netip.Addr
	Method, Host        string
	Path                string // without the query
	Query               bool   // there was one; it is written as "?…"
	Route, API, Version string
	Application         string
	ConsumerKey         string // hashed before it is written
	User                string // left out unless the option is set
	Status, Code        int
	RefusedAt           string
	// Check and Reason say which check a credential failed, in the words of the answer and of the trace.
	Check, Reason     string
	Upstream          string
	UpstreamStatus    int
	BytesIn, BytesOut int64
	// Duration is the whole time, UpstreamTime the wait for the header of the backend's answer, Overhead the time before
	// the backend was called.
	Duration, UpstreamTime, Overhead time.Duration
	Retries                          int
	ThrottleLevel                    string
	TLS                              string // version, "" without TLS
	Protocol                         string
	Error                            string
	Revoked                          bool // it was ended since its caller would not be admitted any more
}

// Options are the settings of a Log.
type Options struct {
	// Out takes the lines. Writes are made by one goroutine at a time.
	Out io.Writer
	// Users writes the end user.
	Users bool
	// Interval is how long a line may wait; 0 means 100 ms.
	Interval time.Duration
	// Buffer bounds the bytes that wait; 0 means 4 MiB.
	Buffer int
}

const shards = 8

// Log is an access log. Add may be called from any goroutine.
type Log struct {
	opts    Options
	shards  [shards]shard
	limit   int
	written atomic.Uint64
	dropped atomic.Uint64
	failed  atomic.Uint64
	wake    chan struct{}
	stop    chan struct{}
	done    chan struct{}
	once    sync.Once
	err     error
}

type shard struct {
	mu   sync.Mutex
	buf  []byte
	n    uint64
	free []byte // the buffer that the writer gave back
	_    [64]byte
}

// New starts a log. Close must be called.
func New(o Options) *Log {
	if o.Interval <= 0 {
		o.Interval = 100 * time.Millisecond
	}
	if o.Buffer <= 0 {
		o.Buffer = 4 << 20
	}
	l := &Log{opts: o, limit: max(o.Buffer/shards, 4096), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go l.run()
	return l
}

// Add writes a line into memory. It never waits for the output.
func (l *Log) Add(e *Entry) {
	s := &l.shards[rand.Uint32()%shards]
	s.mu.Lock()
	if len(s.buf) >= l.limit {
		s.mu.Unlock()
		l.dropped.Add(1)
		l.poke()
		return
	}
	s.buf = l.append(s.buf, e)
	s.n++
	full := len(s.buf) > l.limit/2
	s.mu.Unlock()
	if full {
		l.poke()
	}
}

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Dropped returns how many lines were lost because the output was too slow, or failed.
func (l *Log) Dropped() uint64 { return l.dropped.Load() + l.failed.Load() }

// Written returns how many lines were handed to the output.
func (l *Log) Written() uint64 { return l.written.Load() }

// Close writes what waits and stops. It returns the first error of the output.
func (l *Log) Close() error {
	l.once.Do(func() { close(l.stop) })
	<-l.done
	return l.err
}

func (l *Log) run() {
	defer close(l.done)
	tick := time.NewTicker(l.opts.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-l.stop:
			l.flush()
			return
		}
		l.flush()
	}
}

func (l *Log) flush() {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		buf, n := s.buf, s.n
		s.buf, s.n, s.free = s.free[:0], 0, nil
		s.mu.Unlock()
		if len(buf) > 0 {
			if _, err := l.opts.Out.Write(buf); err != nil {
				l.failed.Add(n)
				l.err = cmp.Or(l.err, err) // the first one: a broken output must not grow it without bound
			} else {
				l.written.Add(n)
			}
		}
		s.mu.Lock()
		s.free = buf
		s.mu.Unlock()
	}
}

func (l *Log) append(b []byte, e *Entry) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, '"')
	b = text(b, "request_id", e.RequestID)
	b = text(b, "trace_id", e.TraceID)
	if e.ClientIP.IsValid() {
		b = append(b, `,"client_ip":"`...)
		b = e.ClientIP.AppendTo(b)
		b = append(b, '"')
	}
	b = text(b, "method", clip(e.Method, maxMethod))
	b = text(b, "host", clip(e.Host, maxHost))
	b = append(b, `,"path":`...)
	b = quote(b, clip(e.Path, maxPath))
	if e.Query {
		b = append(b[:len(b)-1], `?…"`...)
	}
	b = text(b, "route", e.Route)
	b = text(b, "api", e.API)
	b = text(b, "version", e.Version)
	b = text(b, "application", e.Application)
	if e.ConsumerKey != "" {
		b = append(b, `,"consumer_key":"`...)
		b = hash(b, e.ConsumerKey)
		b = append(b, '"')
	}
	if l.opts.Users {
		b = text(b, "user", e.User)
	}
	b = number(b, "status", int64(e.Status))
	if e.Code != 0 {
		b = number(b, "code", int64(e.Code))
	}
	b = text(b, "refused_at", e.RefusedAt)
	b = text(b, "check", e.Check)
	b = text(b, "reason", clip(e.Reason, maxReason))
	b = text(b, "upstream", e.Upstream)
	if e.UpstreamStatus != 0 {
		b = number(b, "upstream_status", int64(e.UpstreamStatus))
	}
	b = number(b, "bytes_in", e.BytesIn)
	b = number(b, "bytes_out", e.BytesOut)
	b = milliseconds(b, "duration_ms", e.Duration)
	b = milliseconds(b, "upstream_ms", e.UpstreamTime)
	b = milliseconds(b, "overhead_ms", e.Overhead)
	b = number(b, "retries", int64(e.Retries))
	b = text(b, "throttle_level", e.ThrottleLevel)
	b = text(b, "tls", e.TLS)
	b = text(b, "protocol", e.Protocol)
	b = text(b, "error", e.Error)
	if e.Revoked {
		b = append(b, `,"revoked":true`...)
	}
	return append(b, "}\n"...)
}

// What a client chooses freely takes so many bytes of a line at most.
const (
	maxMethod = 32
	maxHost   = 2 << 10
	maxPath   = 8 << 10
	maxReason = 512
)

// clip cuts a text that is longer than n bytes, between two characters, and marks the cut.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := 0; i < utf8.UTFMax && n > 0 && !utf8.RuneStart(s[n]); i++ {
		n--
	}
	return s[:n] + "…"
}

func text(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return quote(b, value)
}

func number(b []byte, name string, n int64) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, n, 10)
}

// milliseconds writes a duration with three decimals.
func milliseconds(b []byte, name string, d time.Duration) []byte {
	us := d.Microseconds()
	b = number(b, name, us/1000)
	us %= 1000
	return append(b, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
}

const hexDigits = "0123456789abcdef"

// hash writes the first 8 bytes of SHA-256 in hex: lines of one client can be found, its key cannot.
func hash(b []byte, s string) []byte {
	var stack [128]byte
	sum := sha256.Sum256(append(stack[:0], s...))
	for _, c := range sum[:8] {
		b = append(b, hexDigits[c>>4], hexDigits[c&15])
	}
	return b
}

// quote writes a JSON string. Bytes that are not UTF-8 become U+FFFD.
func quote(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
		}
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
