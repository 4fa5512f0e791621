// Package admin is the admin server: health, metrics, the state of the gateway, its entries one by one, the traces of past
// requests, a stream of what changes, and the few commands that an operator may give. It shows what it is given through
// the functions of Options and knows none of the parts behind them.
//
// Answers are JSON. Secrets, keys and whole tokens never reach this package. Paths, fields and examples are those of the
// admin API reference (docs/admin-api.md).
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// Time is a moment in milliseconds since the epoch. It is written as RFC 3339 with milliseconds in UTC; zero is null.
type Time int64

// MarshalJSON writes the time as the admin API has it.
func (t Time) MarshalJSON() ([]byte, error) {
	if t == 0 {
		return []byte("null"), nil
	}
	return []byte(`"` + time.UnixMilli(int64(t)).UTC().Format("2006-01-02T15:04:05.000Z07:00") + `"`), nil
}

// At turns a time.Time into a Time; the zero time.Time becomes zero.
func At(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixMilli())
}

// Origin says where an entry came from.
type Origin struct {
	Kind string `json:"kind"`
	At   Time   `json:"at"`
	ID   string `json:"id"`
}

// Check is one health check. Status is "ok", "degraded" or "failed".
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Since  Time   `json:"since"`
}

// Health is the answer of the health paths.
type Health struct {
	// OK decides between 200 and 503.
	OK     bool    `json:"-"`
	Status string  `json:"status"`
	Checks []Check `json:"checks"`
}

// State is the answer of /api/v1/state.
type State struct {
	Version   string         `json:"version"`
	StartedAt Time           `json:"started_at"`
	Ready     bool           `json:"ready"`
	Counts    map[string]int `json:"counts"`
	Sources   []any          `json:"sources"`
}

// EventSource is a source of events in State.
type EventSource struct {
	Name          string            `json:"name"`
	Kind          string            `json:"kind"`
	Connected     bool              `json:"connected"`
	Address       string            `json:"address"`
	Since         Time              `json:"since"`
	LastEventAt   Time              `json:"last_event_at"`
	EventsApplied uint64            `json:"events_applied"`
	EventsIgnored map[string]uint64 `json:"events_ignored"`
	Reconnects    uint64            `json:"reconnects"`
	Queue         int               `json:"queue"`
	Error         string            `json:"error,omitempty"`
}

// ListSource is the source of lists in State.
type ListSource struct {
	Name            string              `json:"name"`
	Kind            string              `json:"kind"`
	LastSyncAt      Time                `json:"last_sync_at"`
	LastSyncSeconds float64             `json:"last_sync_seconds"`
	Failures        uint64              `json:"failures"`
	ByKind          map[string]ListKind `json:"by_kind"`
	Error           string              `json:"error,omitempty"`
}

// ListKind is the freshness of one list.
type ListKind struct {
	Rows       int     `json:"rows"`
	FetchedAt  Time    `json:"fetched_at"`
	AgeSeconds float64 `json:"age_seconds"`
	HeldBack   bool    `json:"held_back"`
}

// TrafficManagerSource is a traffic manager in State.
type TrafficManagerSource struct {
	Name          string `json:"name"`
	Kind          string `json:"kind"`
	Connected     bool   `json:"connected"`
	Address       string `json:"address,omitempty"`
	Published     uint64 `json:"published"`
	Dropped       uint64 `json:"dropped"`
	Queue         int    `json:"queue"`
	LocalFallback bool   `json:"local_fallback"`
	Error         string `json:"error,omitempty"`
}

// Entry is one row of a table as the server walks over it. Render is called for the rows that are shown only.
type Entry struct {
	ID     string
	Name   string // searched by q beside the id
	Render func() any
}

// Table is a list of entries under /api/v1/<name>.
type Table struct {
	// Each calls yield for every entry in any order until it returns false. It must be safe beside changes.
	Each func(yield func(Entry) bool)
	// Get returns one entry by its id. Nil means: found by walking over Each.
	Get func(id string) (any, bool)
}

// VerifyResult is the answer of /api/v1/token/verify. Claims are shown for valid tokens only.
type VerifyResult struct {
	Valid      bool           `json:"valid"`
	Failed     string         `json:"failed,omitempty"`
	Detail     string         `json:"detail,omitempty"`
	KeyManager string         `json:"key_manager,omitempty"`
	Issuer     string         `json:"issuer,omitempty"`
	Claims     map[string]any `json:"claims,omitempty"`
}

// Options is what the server shows and does. Functions are called from many goroutines. A nil function means that its path
// answers 503.
type Options struct {
	Logger zerolog.Logger
	// Username and Password, or Token, protect every path but those that Open names ("health", "metrics"). Without any
	// of them the server takes requests to a loopback name only.
	Username, Password string
	Token              string
	Open               []string
	TLS                *tls.Config

	Live, Ready func() Health
	Metrics     http.Handler
	State       func() State
	Tables      map[string]Table
	// Trace returns the trace of a request of the rings.
	Trace       func(requestID string) (any, bool)
	VerifyToken func(ctx context.Context, token string) VerifyResult
	Config      func() any
	SetLogLevel func(level string) error
	Resync      func()
	Feed        *Feed
}

// Server is the admin server. Create it with New.
type Server struct {
	opts    Options
	handler http.Handler
}

// New returns a server over what opts gives.
func New(opts Options) *Server {
	s := &Server{opts: opts}
	mux := http.NewServeMux()
	var paths []string
	route := func(method, path string, h http.HandlerFunc) {
		paths = append(paths, method+" "+strings.Replace(path, "...}", "}", 1)) // as the reference writes it
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
				w.Header().Set("Allow", method)
				writeError(w, http.StatusMethodNotAllowed, "method_not_allowed", fmt.Sprintf("%s takes %s", r.URL.Path, method))
				return
			}
			h(w, r)
		})
	}
	route(http.MethodGet, "/health/live", s.health(opts.Live))
	route(http.MethodGet, "/health/ready", s.health(opts.Ready))
	route(http.MethodGet, "/metrics", s.metrics)
	route(http.MethodGet, "/api/v1/state", s.state)
	for name, table := range opts.Tables {
		route(http.MethodGet, "/api/v1/"+name, s.list(table))
		route(http.MethodGet, "/api/v1/"+name+"/{id...}", s.entry(name, table))
	}
	route(http.MethodGet, "/api/v1/explain", s.explain)
	route(http.MethodGet, "/api/v1/events", s.events)
	route(http.MethodPost, "/api/v1/token/verify", s.verifyToken)
	route(http.MethodGet, "/api/v1/config", s.config)
	route(http.MethodPut, "/api/v1/log-level", s.logLevel)
	route(http.MethodPost, "/api/v1/resync", s.resync)
	index := map[string][]string{"paths": slices.Sorted(slices.Values(paths))}
	route(http.MethodGet, "/{$}", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, index) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, "not_found", fmt.Sprintf("nothing at %s; / lists the paths", r.URL.Path))
	})
	s.handler = s.guard(mux)
	return s
}

// Handler returns the server's handler, with access control.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on l until ctx is done, then lets requests finish for at most three seconds. It returns nil after a stop
// by ctx.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.opts.TLS != nil {
		l = tls.NewListener(l, s.opts.TLS)
	}
	// Event streams end with base, so that Shutdown does not wait for their readers.
	base, stopStreams := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStreams()
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       60 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve the admin server on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopStreams()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin server on %s: %w", l.Addr(), err)
	}
	return nil
}

// guard lets in who may come in.
func (s *Server) guard(next http.Handler) http.Handler {
	protected := s.opts.Token != "" || s.opts.Password != ""
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if s.isOpen(r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		if protected {
			if !s.authorised(r) {
				w.Header().Set("WWW-Authenticate", `Basic realm="Gatehouse admin", charset="UTF-8"`)
				writeError(w, http.StatusUnauthorized, "unauthorized", "the admin server needs the username and password, or the token, of [admin]")
				return
			}
		} else if !loopbackHost(r.Host) {
			// A page of another site that had its name resolve to this machine must not read the state.
			writeError(w, http.StatusForbidden, "forbidden", "without credentials the admin server answers to a loopback name only; set username and password, or token, in [admin]")
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && r.Method != http.MethodGet && r.Method != http.MethodHead && !sameHost(origin, r.Host) {
			writeError(w, http.StatusForbidden, "forbidden", "commands are not taken from pages of another site")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) isOpen(path string) bool {
	switch {
	case strings.HasPrefix(path, "/health/"):
		return slices.Contains(s.opts.Open, "health")
	case path == "/metrics":
		return slices.Contains(s.opts.Open, "metrics")
	}
	return false
}

func (s *Server) authorised(r *http.Request) bool {
	if s.opts.Token != "" {
		if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") && equalSecret(strings.TrimSpace(token), s.opts.Token) {
			return true
		}
	}
	if s.opts.Password != "" {
		user, password, ok := r.BasicAuth()
		// Both comparisons always run, so that the time does not tell which of them failed.
		userOK, passwordOK := equalSecret(user, s.opts.Username), equalSecret(password, s.opts.Password)
		return ok && userOK && passwordOK
	}
	return false
}

func equalSecret(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func loopbackHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func sameHost(origin, host string) bool {
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, host)
}

func (s *Server) health(f func() Health) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if f == nil {
			unavailable(w, "health is not known yet")
			return
		}
		h := f()
		if h.Checks == nil {
			h.Checks = []Check{}
		}
		status := http.StatusOK
		if !h.OK {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, h)
	}
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	if s.opts.Metrics == nil {
		unavailable(w, "metrics are off")
		return
	}
	s.opts.Metrics.ServeHTTP(w, r)
}

func (s *Server) state(w http.ResponseWriter, _ *http.Request) {
	if s.opts.State == nil {
		unavailable(w, "the state is not known yet")
		return
	}
	st := s.opts.State()
	if st.Sources == nil {
		st.Sources = []any{}
	}
	writeJSON(w, http.StatusOK, st)
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	if s.opts.Trace == nil {
		unavailable(w, "traces are off: set trace_ring_admitted and trace_ring_refused in [gateway]")
		return
	}
	id := r.URL.Query().Get("request_id")
	if id == "" {
		writeError(w, http.StatusBadRequest, "bad_request", "request_id is missing: it is the x-request-id of the answer")
		return
	}
	trace, ok := s.opts.Trace(id)
	if !ok {
		writeError(w, http.StatusNotFound, "not_found", fmt.Sprintf("no trace of request %q: the rings keep the newest requests only", id))
		return
	}
	writeJSON(w, http.StatusOK, trace)
}

func (s *Server) verifyToken(w http.ResponseWriter, r *http.Request) {
	if s.opts.VerifyToken == nil {
		unavailable(w, "no key managers here")
		return
	}
	var in struct {
		Token string `json:"token"`
	}
	if !readJSON(w, r, 64<<10, &in) {
		return
	}
	if in.Token == "" {
		writeError(w, http.StatusBadRequest, "bad_request", `the member "token" is missing`)
		return
	}
	res := s.opts.VerifyToken(r.Context(), in.Token)
	if !res.Valid {
		res.Claims = nil
	}
	writeJSON(w, http.StatusOK, res)
}

func (s *Server) config(w http.ResponseWriter, _ *http.Request) {
	if s.opts.Config == nil {
		unavailable(w, "no configuration here")
		return
	}
	writeJSON(w, http.StatusOK, s.opts.Config())
}

func (s *Server) logLevel(w http.ResponseWriter, r *http.Request) {
	if s.opts.SetLogLevel == nil {
		unavailable(w, "the log level cannot be changed here")
		return
	}
	var in struct {
		Level string `json:"level"`
	}
	if !readJSON(w, r, 4<<10, &in) {
		return
	}
	if err := s.opts.SetLogLevel(in.Level); err != nil {
		writeError(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"level": in.Level})
}

func (s *Server) resync(w http.ResponseWriter, _ *http.Request) {
	if s.opts.Resync == nil {
		unavailable(w, "no API Manager is configured: there is nothing to fetch")
		return
	}
	s.opts.Resync()
	writeJSON(w, http.StatusAccepted, map[string]string{"status": "started"})
}

func unavailable(w http.ResponseWriter, message string) {
	writeError(w, http.StatusServiceUnavailable, "unavailable", message)
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status = http.StatusInternalServerError
		body = []byte(`{"error":{"code":"internal","message":"the answer could not be encoded"}}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// readJSON decodes the body into v, or answers 400 and returns false.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) bool {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if mt, _, err := mime.ParseMediaType(ct); err == nil && mt != "application/json" && mt != "application/x-www-form-urlencoded" {
			writeError(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("content type %q: send application/json", ct))
			return false
		}
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			writeError(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("the body is larger than %d bytes", limit))
		} else {
			writeError(w, http.StatusBadRequest, "bad_request", "the body is not what this path takes: "+err.Error())
		}
		return false
	}
	return true
}
