package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Options configure a Client. The zero value of each but ServiceURL is usable.
type Options struct {
	// ServiceURL is the API Manager, "https://apim.example.com:9443". It holds no credentials.
	ServiceURL string
	// Context is the path of the internal data service; empty means "/internal/data/v1".
	Context            string
	Username, Password string
	// HTTPClient carries the calls; nil means one with Go's defaults. Its Transport holds TLS and proxy settings. Its
	// Timeout should be 0: it would cut long lists; the two timeouts below bound a call. It is copied.
	HTTPClient *http.Client
	Logger     zerolog.Logger
	UserAgent  string // empty means "Gatehouse"
	// AnswerTimeout is how long a call waits for the head of the answer; 0 means 2 minutes, since the API Manager builds
	// large lists before it answers. IdleTimeout is how long the body may stand still; 0 means 30 s.
	AnswerTimeout, IdleTimeout time.Duration
	// MaxListBytes caps the body of a list (0: 4 GiB), MaxArtifactBytes that of an artifact download (0: 256 MiB).
	MaxListBytes, MaxArtifactBytes int64
}

// Client calls the internal data service. One call is one attempt: waiting and repeating are the caller's, with Backoff.
// It is safe for concurrent use.
type Client struct {
	base string // scheme://host[/prefix]/internal/data/v1
	opt  Options
	http *http.Client
	odd  sync.Map // by operation: the number of odd values that was logged last
}

// maxSmallBytes caps answers that are no lists; maxErrorBytes what is read of an error's body.
const (
	maxSmallBytes = 4 << 20
	maxErrorBytes = 16 << 10
)

// New returns a client. It connects to nothing yet.
func New(opt Options) (*Client, error) {
	u, err := url.Parse(opt.ServiceURL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("service_url is no URL; it should look like https://apim.example.com:9443: %w", errors.Unwrap(err))
	case u.User != nil:
		return nil, errors.New("service_url holds credentials; write them as username and password")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return nil, fmt.Errorf("service_url %q should look like https://apim.example.com:9443", opt.ServiceURL)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("service_url %q must have no query or fragment", opt.ServiceURL)
	}
	if opt.Context == "" {
		opt.Context = "/internal/data/v1"
	}
	if opt.UserAgent == "" {
		opt.UserAgent = "Gatehouse"
	}
	setDefault(&opt.AnswerTimeout, 2*time.Minute)
	setDefault(&opt.IdleTimeout, 30*time.Second)
	setDefault(&opt.MaxListBytes, 4<<30)
	setDefault(&opt.MaxArtifactBytes, 256<<20)
	c := &Client{
		base: u.Scheme + "://" + u.Host + strings.TrimSuffix(path.Join("/", u.Path, opt.Context), "/"),
		opt:  opt,
		http: &http.Client{},
	}
	if opt.HTTPClient != nil {
		*c.http = *opt.HTTPClient
	}
	c.http.CheckRedirect = sameHostOnly
	return c, nil
}

func setDefault[T time.Duration | int64](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// sameHostOnly follows a redirect to the same scheme and host alone: another would be given the credentials.
func sameHostOnly(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; len(via) > 3 || req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return http.ErrUseLastResponse
	}
	return nil
}

// call describes one request.
type call struct {
	op     string
	method string // empty means GET
	path   string
	query  url.Values
	tenant string // "" none, "*" every one
	body   any    // encoded as JSON when not nil
	accept string // empty means application/json
}

// answer is an answer whose status is below 300. Its body is read through the idle watch.
type answer struct {
	*http.Response
	url  string
	body *watched
	stop context.CancelCauseFunc
}

func (a *answer) close() {
	a.body.close()
	a.stop(nil)
	_ = a.Body.Close() // what was wanted of it is read
}

var (
	errNoAnswer = errors.New("no answer in time")
	errStalled  = errors.New("the body stood still for too long")
	errTooLarge = errors.New("the body is too large")
)

// do sends the request. Statuses of 300 and more come back as *Error, with the begin of the body as its detail.
func (c *Client) do(ctx context.Context, k call, limit int64) (*answer, error) {
	if k.method == "" {
		k.method = http.MethodGet
	}
	if k.accept == "" {
		k.accept = "application/json"
	}
	target := c.base + k.path
	if k.tenant == "*" || strings.EqualFold(k.tenant, "ALL") {
		k.tenant = "ALL"
		if k.query == nil {
			k.query = url.Values{}
		}
		k.query.Set("organizationId", "ALL")
	}
	if len(k.query) > 0 {
		target += "?" + k.query.Encode()
	}
	shown := k.method + " " + target
	var body io.Reader
	if k.body != nil {
		b, err := json.Marshal(k.body)
		if err != nil {
			return nil, &Error{Op: k.op, URL: shown, Kind: Rejected, Detail: "the request cannot be encoded", Err: err}
		}
		body = bytes.NewReader(b)
	}
	ctx, stop := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, k.method, target, body)
	if err != nil {
		stop(nil)
		return nil, &Error{Op: k.op, URL: shown, Kind: Rejected, Err: err}
	}
	req.SetBasicAuth(c.opt.Username, c.opt.Password)
	req.Header.Set("Accept", k.accept)
	req.Header.Set("User-Agent", c.opt.UserAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if k.tenant != "" {
		req.Header.Set("xWSO2Tenant", k.tenant)
	}
	head := time.AfterFunc(c.opt.AnswerTimeout, func() { stop(errNoAnswer) })
	resp, err := c.http.Do(req) //nolint:bodyclose // answer.close does
	head.Stop()
	if err != nil {
		// *url.Error repeats the URL; its cause says enough.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
			err = fmt.Errorf("%w (%v)", errNoAnswer, c.opt.AnswerTimeout)
		}
		stop(nil)
		return nil, &Error{Op: k.op, URL: shown, Kind: Unreachable, Err: err}
	}
	a := &answer{Response: resp, url: shown, stop: stop, body: newWatched(ctx, resp.Body, stop, c.opt.IdleTimeout, limit)}
	if resp.StatusCode < 300 {
		return a, nil
	}
	defer a.close()
	text, _ := io.ReadAll(io.LimitReader(a.body, maxErrorBytes))
	e := &Error{Op: k.op, URL: shown, Status: resp.StatusCode, Kind: kindOfStatus(resp.StatusCode), Detail: shorten(string(text))}
	if resp.StatusCode < 400 {
		e.Detail = fmt.Sprintf("answered %d, a redirect to %s, which is not followed since it would be given the credentials; set service_url to the right host",
			resp.StatusCode, redactURL(resp.Header.Get("Location")))
	}
	return nil, e
}

func kindOfStatus(status int) Kind {
	switch {
	case status == 401 || status == 403:
		return Refused
	case status == 404 || status == 405 || status == 501:
		return NotFound
	case status >= 500 || status == 408 || status == 429:
		return Server
	case status >= 400:
		return Rejected
	}
	return Bad
}

func redactURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || text == "" {
		return "an unreadable place"
	}
	return u.Scheme + "://" + u.Host
}

// shorten makes one line of at most 200 bytes of an error's body.
func shorten(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return text
}

// watched reads a body with a cap on its size and on the time that it may stand still.
type watched struct {
	r     io.Reader
	left  int64
	limit int64
	idle  time.Duration
	ctx   context.Context
	timer *time.Timer
}

func newWatched(ctx context.Context, r io.Reader, stop context.CancelCauseFunc, idle time.Duration, limit int64) *watched {
	return &watched{ctx: ctx, r: r, left: limit, limit: limit, idle: idle, timer: time.AfterFunc(idle, func() { stop(errStalled) })}
}

func (w *watched) close() { w.timer.Stop() }

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	if w.left <= 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", errTooLarge, w.limit)
	}
	if int64(len(p)) > w.left {
		p = p[:w.left]
	}
	w.timer.Reset(w.idle)
	n, err := w.r.Read(p)
	w.timer.Stop()
	w.left -= int64(n)
	if err != nil {
		// Also for io.EOF: the server may end the answer cleanly when it sees the connection being closed.
		switch cause := context.Cause(w.ctx); {
		case errors.Is(cause, errStalled):
			err = fmt.Errorf("%w (%v)", errStalled, w.idle)
		case cause != nil:
			err = cause
		}
	}
	return n, err
}

// bodyError turns a fault in reading or decoding an answer's body into an Error.
func bodyError(op string, a *answer, err error) error {
	e := &Error{Op: op, URL: a.url, Status: a.StatusCode, Kind: Bad, Err: err}
	var read readError
	switch {
	case errors.Is(err, errTooLarge):
	case errors.As(err, &read):
		e.Kind, e.Status, e.Err = Unreachable, 0, read.error
		e.Detail = "the connection broke within the answer"
	default:
		e.Detail = "the answer is not what was asked for"
		if t := a.Header.Get("Content-Type"); t != "" && !strings.Contains(t, "json") {
			e.Detail = fmt.Sprintf("the answer is %s, not JSON", t)
		}
	}
	return e
}
