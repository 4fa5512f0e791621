// Package backend is a sample backend: it tells the caller what it received, and counts.
package backend

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Echo is what the backend answers.
type Echo struct {
	Method  string              `json:"method"`
	Path    string              `json:"path"`
	Query   string              `json:"query,omitempty"`
	Host    string              `json:"host"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body,omitempty"`
	// Number counts the requests since the start, this one included.
	Number int `json:"request_number"`
}

// Backend is an http.Handler. Paths that end in /status/N answer with that status, in /delay/MILLISECONDS after that
// time, in /bytes/N with so many bytes. It is safe for concurrent use.
type Backend struct {
	mu     sync.Mutex
	total  int
	byPath map[string]int
}

// New makes a backend.
func New() *Backend { return &Backend{byPath: map[string]int{}} }

const maxPaths = 10_000 // counted apart; a caller must not grow the map without end

// Requests is the number of requests so far.
func (b *Backend) Requests() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// ByPath returns the number of requests of each path.
func (b *Backend) ByPath() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := make(map[string]int, len(b.byPath))
	maps.Copy(m, b.byPath)
	return m
}

func (b *Backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.total++
	n := b.total
	if _, known := b.byPath[r.URL.Path]; known || len(b.byPath) < maxPaths {
		b.byPath[r.URL.Path]++
	}
	b.mu.Unlock()

	status := http.StatusOK
	parts := strings.Split(strings.TrimSuffix(r.URL.Path, "/"), "/")
	if len(parts) >= 2 {
		if v, err := strconv.Atoi(parts[len(parts)-1]); err == nil && v >= 0 {
			switch parts[len(parts)-2] {
			case "status":
				if v >= 200 && v <= 599 {
					status = v
				}
			case "delay":
				t := time.NewTimer(min(time.Duration(v)*time.Millisecond, time.Minute))
				defer t.Stop()
				select {
				case <-t.C:
				case <-r.Context().Done():
					return
				}
			case "bytes":
				writeBytes(w, min(v, 1<<30))
				return
			}
		}
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10)) // a broken body is echoed as far as it came
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Backend", "sample")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(Echo{ // the caller went away: nothing to tell it
		Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Host: r.Host, Headers: r.Header, Body: string(body), Number: n,
	})
}

func writeBytes(w http.ResponseWriter, n int) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(n))
	chunk := make([]byte, 32<<10)
	for i := range chunk {
		chunk[i] = 'x'
	}
	for n > 0 {
		k := min(n, len(chunk))
		if _, err := w.Write(chunk[:k]); err != nil {
			return
		}
		n -= k
	}
}
