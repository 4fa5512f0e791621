package jwks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// The times of a source (gateway-behaviour.md 6).
const (
	FetchTimeout     = 5 * time.Second
	MaxBody          = 1 << 20
	MaxRefresh       = time.Hour
	MinRefresh       = 60 * time.Second
	UnknownKeyPause  = 10 * time.Second // between fetches for unknown key IDs
	UnknownKeyMemory = 30 * time.Second // how long an unknown key ID is remembered
	DefaultMaxStale  = 24 * time.Hour
	maxUnknown       = 10000
	maxRedirects     = 3
	firstRetry       = time.Second
)

// ErrNoKeys means that no usable set is held: none was ever fetched, or the last is older than MaxStale.
var ErrNoKeys = errors.New("no keys are held")

// Options configure a Source.
type Options struct {
	URL string
	// Transport makes the requests; nil means a transport of its own with TLS as configuration.
	Transport http.RoundTripper
	TLS       *tls.Config
	// MaxStale is how long a set is used after it was last confirmed; 0 means DefaultMaxStale.
	MaxStale time.Duration
	// Refresh is the most time between two fetches; 0 means MaxRefresh, and half of MaxStale is the longest. A server's
	// max-age below it counts, down to MinRefresh or Refresh, whichever is shorter.
	Refresh time.Duration
	Now     func() time.Time // nil: time.Now
	Logger  zerolog.Logger
	// Refreshed is called after each fetch; nil: nobody listens.
	Refreshed func(error)
}

// Source keeps the key set of one URL. It fetches in the background once Start is called, keeps what it has while the
// server fails, and fetches out of turn for a key ID that it does not know, at most once in UnknownKeyPause and only once
// at a time. It is safe for concurrent use.
type Source struct {
	opts   Options
	shown  string // the URL without a password
	client *http.Client
	now    func() time.Time

	set   atomic.Pointer[Set]
	until atomic.Int64 // ms, when the set is too old to be used

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	started bool
	flight  *flight
	// asked is when a request last caused a fetch: for an unknown key ID, and because there were no keys at all.
	asked   struct{ unknown, none time.Time }
	unknown map[string]time.Time
	state   State
}

type flight struct {
	done chan struct{}
	err  error
}

// State is what an operator sees of a source.
type State struct {
	FetchedAt   time.Time // last success
	AttemptedAt time.Time
	Attempts    int64
	Failures    int64
	LastError   string // of the last attempt, empty when it succeeded
	Skipped     []string
	refresh     time.Duration
	retry       time.Duration
}

// New returns a source that has fetched nothing yet. The error says what is wrong with the URL.
func New(o Options) (*Source, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, errors.New("its key set URL is no URL: want an absolute https URL") // the text may hold a password
	}
	if u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("key set URL %q: want an absolute https URL", u.Redacted())
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxStale <= 0 {
		o.MaxStale = DefaultMaxStale
	}
	if o.Refresh <= 0 {
		o.Refresh = MaxRefresh
	}
	// While the server answers, no set grows too old to be used.
	o.Refresh = min(o.Refresh, max(o.MaxStale/2, time.Second))
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: o.TLS, TLSHandshakeTimeout: FetchTimeout,
			MaxIdleConns: 1, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
		}
	}
	s := &Source{opts: o, shown: u.Redacted(), now: o.Now, unknown: map[string]time.Time{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.client = &http.Client{Transport: o.Transport, Timeout: FetchTimeout, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if r.URL.Scheme != "https" {
			return fmt.Errorf("redirected to %s, which is not https", r.URL.Redacted())
		}
		return nil
	}}
	return s, nil
}

// Inherit takes the set that another source of the same URL holds, with its age, so that a change of how the server is
// verified leaves no moment without keys. Call it before Start.
func (s *Source) Inherit(from *Source) {
	if set := from.set.Load(); set != nil {
		s.until.Store(from.until.Load())
		s.set.Store(set)
	}
}

// Start begins to fetch in the background until Close. A second call does nothing.
func (s *Source) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.ctx.Err() != nil {
		return
	}
	s.started = true
	first := s.flight
	if first == nil {
		first = s.begin()
	}
	s.wg.Go(func() {
		<-first.done
		for err := first.err; ; err = s.fetch(s.ctx) {
			s.mu.Lock()
			wait := s.state.refresh
			if err != nil {
				wait = s.state.retry
			}
			s.mu.Unlock()
			if s.ctx.Err() != nil {
				return
			}
			// A tenth of jitter keeps gateways that started together from asking together.
			t := time.NewTimer(wait - time.Duration(rand.Int64N(int64(wait)/10+1)))
			select {
			case <-s.ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
		}
	})
}

// Close ends the background work and waits for it.
func (s *Source) Close() {
	s.mu.Lock() // no fetch begins between the stop and the wait
	s.stop()
	s.mu.Unlock()
	s.wg.Wait()
	s.client.CloseIdleConnections()
}

// Current returns the set in use, nil when there is none or it is too old at the given time.
func (s *Source) Current(now time.Time) *Set {
	if set := s.set.Load(); set != nil && now.UnixMilli() < s.until.Load() {
		return set
	}
	return nil
}

// URL is where the keys come from, without a password.
func (s *Source) URL() string { return s.shown }

// State returns what is known about the fetches.
func (s *Source) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Await returns the current set, or waits for a fetch that brings one; it starts such a fetch at most once in
// UnknownKeyPause. The error is ErrNoKeys, wrapped with the cause where it is known.
func (s *Source) Await(ctx context.Context) (*Set, error) {
	if set := s.Current(s.now()); set != nil {
		return set, nil
	}
	_, err := s.ask(ctx, "", &s.asked.none)
	if set := s.Current(s.now()); set != nil {
		return set, nil
	}
	if err == nil {
		if last := s.State().LastError; last != "" {
			err = errors.New(last)
		}
	}
	if err == nil {
		return nil, ErrNoKeys
	}
	return nil, fmt.Errorf("%w: %w", ErrNoKeys, err)
}

// RefreshFor fetches because the current set lacks the key ID, and returns the set in use afterwards. Within
// UnknownKeyPause of the last such fetch, or UnknownKeyMemory of the same key ID, it fetches nothing. Requests that come
// while a fetch is under way wait for that one.
func (s *Source) RefreshFor(ctx context.Context, kid string) (*Set, error) {
	fetched, err := s.ask(ctx, kid, &s.asked.unknown)
	set := s.Current(s.now())
	// Only a fetch proves that the server does not know the key ID either.
	if fetched && set != nil && kid != "" && len(set.ByID(kid)) == 0 {
		s.remember(kid)
	}
	return set, err
}

func (s *Source) remember(kid string) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unknown) >= maxUnknown {
		for k, t := range s.unknown {
			if now.Sub(t) >= UnknownKeyMemory {
				delete(s.unknown, k)
			}
		}
		if len(s.unknown) >= maxUnknown {
			return // the pause between fetches protects the server all the same
		}
	}
	if len(kid) <= 256 {
		s.unknown[kid] = now
	}
}

// ask joins or begins a fetch, unless a request caused one for the same reason lately; fetched says that one ended well.
func (s *Source) ask(ctx context.Context, kid string, last *time.Time) (fetched bool, err error) {
	now := s.now()
	s.mu.Lock()
	if t, known := s.unknown[kid]; known && kid != "" {
		if now.Sub(t) < UnknownKeyMemory {
			s.mu.Unlock()
			return false, nil
		}
		delete(s.unknown, kid)
	}
	f := s.flight
	if f == nil {
		if !last.IsZero() && now.Sub(*last) < UnknownKeyPause {
			s.mu.Unlock()
			return false, nil
		}
		*last = now
		f = s.begin()
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.err == nil, f.err
	case <-ctx.Done():
		return false, fmt.Errorf("waiting for the key set of %s: %w", s.shown, ctx.Err())
	}
}

// fetch joins the fetch under way or begins one, and waits for its end.
func (s *Source) fetch(ctx context.Context) error {
	s.mu.Lock()
	f := s.flight
	if f == nil {
		f = s.begin()
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin starts the one fetch; the lock is held. The fetch does not end with the request that caused it.
func (s *Source) begin() *flight {
	f := &flight{done: make(chan struct{})}
	if s.ctx.Err() != nil {
		f.err = errors.New("the key manager was removed")
		close(f.done)
		return f
	}
	s.flight = f
	s.wg.Go(func() {
		var set *Set
		var age time.Duration
		var skipped []string
		err := errors.New("reading the key set ended in a fault of the gateway")
		defer func() {
			if v := recover(); v != nil { // here it would end the gateway
				s.opts.Logger.Error().Str("url", s.shown).Str("detail", fmt.Sprint(v)).Bytes("stack", debug.Stack()).Msg("reading a key set ended in a fault")
			}
			s.finish(f, set, age, skipped, err)
		}()
		set, age, skipped, err = s.get()
	})
	return f
}

func (s *Source) finish(f *flight, set *Set, age time.Duration, skipped []string, err error) {
	now := s.now()
	s.mu.Lock()
	st := &s.state
	st.AttemptedAt = now
	st.Attempts++
	if err == nil {
		news := st.LastError != "" || st.FetchedAt.IsZero()
		st.FetchedAt, st.LastError, st.Skipped, st.refresh, st.retry = now, "", skipped, age, 0
		s.until.Store(now.Add(s.opts.MaxStale).UnixMilli())
		s.set.Store(set)
		if news {
			s.opts.Logger.Info().Str("url", s.shown).Int("keys", len(set.keys)).Strs("skipped", skipped).Msg("key set fetched")
		}
	} else if s.ctx.Err() == nil {
		st.Failures++
		if st.LastError != err.Error() {
			s.opts.Logger.Warn().Str("url", s.shown).Err(err).Bool("keys_held", s.set.Load() != nil).
				Msg("key set not fetched; the one held stays in use, and the fetch is repeated")
		}
		st.LastError = err.Error()
		// Without keys tokens are refused: hurry. With keys there is time.
		st.retry = min(max(2*st.retry, firstRetry), MinRefresh)
		if s.set.Load() != nil {
			st.retry = min(MinRefresh, s.opts.Refresh)
		}
	} else {
		st.retry = MinRefresh
	}
	f.err = err
	s.flight = nil
	s.mu.Unlock()
	if s.opts.Refreshed != nil {
		s.opts.Refreshed(err)
	}
	close(f.done)
}

func (s *Source) get() (set *Set, age time.Duration, skipped []string, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, FetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.opts.URL, nil)
	if err != nil {
		return nil, 0, nil, err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	resp, err := s.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // its URL is the last of the redirects, which may hold a password
		}
		return nil, 0, nil, fmt.Errorf("GET %s: %w", s.shown, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, 0, nil, fmt.Errorf("GET %s answered %s", s.shown, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		return nil, 0, nil, fmt.Errorf("reading the key set of %s: %w", s.shown, err)
	}
	if len(body) > MaxBody {
		return nil, 0, nil, fmt.Errorf("the key set of %s is larger than %d bytes", s.shown, MaxBody)
	}
	set, skipped, err = Parse(body)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("GET %s: %w", s.shown, err)
	}
	return set, refreshAfter(resp.Header, s.opts.Refresh), skipped, nil
}

// refreshAfter is min(max-age, most), and no less than MinRefresh unless most is. A server that wants nothing cached, as
// Keycloak says of its keys, is asked as often as one of max-age=0.
func refreshAfter(h http.Header, most time.Duration) time.Duration {
	for _, line := range h.Values("Cache-Control") {
		for d := range strings.SplitSeq(line, ",") {
			name, value, named := strings.Cut(strings.TrimSpace(d), "=")
			if !named && (strings.EqualFold(name, "no-cache") || strings.EqualFold(name, "no-store")) {
				return min(MinRefresh, most)
			}
			if !strings.EqualFold(name, "max-age") {
				continue
			}
			n, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 64)
			if err == nil && n < int64(most/time.Second) {
				return min(max(time.Duration(n)*time.Second, MinRefresh), most)
			}
		}
	}
	return most
}
