// Package introspection asks a key manager about an opaque token (RFC 7662): it makes the gateway known to the key manager,
// reads the answer strictly, and asks no more while the key manager fails.
//
// It keeps no answers; keymanager/registry does.
package introspection

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"gatehouse/keymanager"
	"gatehouse/keymanager/jwt"
)

// Defaults and bounds of a client.
const (
	DefaultTimeout = 2 * time.Second
	MaxBody        = 1 << 20
	// Failures in a row are what opens the breaker; Reset is how long it then stays open before one call is tried.
	Failures     = 5
	DefaultReset = 2 * time.Second
	// maxCalls bounds the calls under way: what floods the gateway with tokens must not flood the key manager.
	maxCalls = 128
)

// ErrUnavailable is what every failed call is, for errors.Is: the key manager said nothing about the token.
var ErrUnavailable = errors.New("the token could not be introspected")

// ErrOpen is the failure of a call that was not made, because the last ones failed. It is ErrUnavailable too.
var ErrOpen = fmt.Errorf("%w: the last %d calls failed, and no further one is made for a while", ErrUnavailable, Failures)

// ErrCredentials is the failure of a call to an endpoint that wants credentials, where the gateway has none. It is
// ErrUnavailable too; after one such answer no call is made for a minute.
var ErrCredentials = fmt.Errorf("%w: the endpoint wants credentials, and none are configured", ErrUnavailable)

const barredFor = time.Minute

// Answer is what a key manager says about a token.
type Answer struct {
	Active bool
	// Claims are the members of an active answer; numbers are json.Number. Times that came as text are numbers.
	Claims map[string]any
}

// Options configure a Client.
type Options struct {
	Endpoint keymanager.Introspection
	// Transport makes the calls; nil means one of the client's own, with TLS as configuration. Client certificates always
	// have their own.
	Transport http.RoundTripper
	TLS       *tls.Config
	// Verify checks the signature of an answer that is a JWT (RFC 9701); nil refuses such answers.
	Verify func(context.Context, *jwt.Token) *keymanager.Refusal
	// Issuer must be the iss of such an answer; "" accepts any. Its aud must hold the ClientID, where there is one.
	Issuer string
	Skew   time.Duration // of the times of such an answer; 0 means jwt.DefaultSkew
	// Reset is how long the breaker stays open; 0 means DefaultReset.
	Reset time.Duration
	Now   func() time.Time // nil: time.Now
}

// Client asks one endpoint. It is safe for concurrent use.
type Client struct {
	opts    Options
	http    *http.Client
	timeout time.Duration
	signer  *signer // of private_key_jwt
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	slots   chan struct{}
	barred  atomic.Int64 // ms, until when an endpoint that wants credentials is not asked

	mu    sync.Mutex
	state State
}

// State is what an operator sees of a client.
type State struct {
	Calls    int64 // that were made; the sum of the next three
	Active   int64
	Inactive int64
	Failed   int64
	// Skipped are the calls that the breaker kept back.
	Skipped int64
	// Time is how long the calls took together.
	Time      time.Duration
	Breaker   string // closed, half-open or open
	LastError string // of the last call, empty when it was answered; what a token caused is not kept
	LastCall  time.Time
}

// New returns a client. The error says which setting is wrong.
func New(o Options) (*Client, error) {
	e := &o.Endpoint
	u, err := url.Parse(e.URL)
	if err != nil {
		return nil, errors.New("its introspection endpoint is no URL") // the text may hold a password
	}
	if u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("its introspection endpoint %q: want an absolute https URL", u.Redacted())
	}
	if e.Auth == "" {
		e.Auth = keymanager.ClientNone
		if e.ClientID != "" {
			e.Auth = keymanager.ClientSecretBasic
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Reset <= 0 {
		o.Reset = DefaultReset
	}
	c := &Client{opts: o, timeout: e.Timeout, slots: make(chan struct{}, maxCalls)}
	if c.timeout <= 0 {
		c.timeout = DefaultTimeout
	}
	if err := c.authenticateWith(); err != nil {
		return nil, err
	}
	rt := c.opts.Transport
	if rt == nil {
		rt = &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: c.opts.TLS, TLSHandshakeTimeout: c.timeout, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 32, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		}
	}
	c.http = &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // token and credentials go to the endpoint and nowhere else
	}}
	c.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: 1, Timeout: o.Reset,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= Failures },
		IsExcluded:  AboutToken,
	})
	return c, nil
}

// Check says what is wrong with an endpoint, as New does.
func Check(e keymanager.Introspection) error {
	c, err := New(Options{Endpoint: e})
	if err == nil {
		c.Close()
	}
	return err
}

// authenticateWith checks and reads what the method of authentication needs.
func (c *Client) authenticateWith() error {
	e := &c.opts.Endpoint
	switch e.Auth {
	case keymanager.ClientNone:
		return nil
	case keymanager.ClientSecretBasic, keymanager.ClientSecretPost:
		if e.ClientID == "" {
			return fmt.Errorf("%s for its introspection endpoint needs a client ID", e.Auth)
		}
		return nil
	case keymanager.ClientPrivateKey:
		if e.ClientID == "" {
			return fmt.Errorf("%s for its introspection endpoint needs a client ID", e.Auth)
		}
		s, err := newSigner(e)
		c.signer = s
		return err
	case keymanager.ClientCertificates:
		pair, err := clientCertificate(e)
		if err != nil {
			return err
		}
		cfg := c.opts.TLS.Clone()
		if cfg == nil {
			cfg = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		cfg.Certificates = []tls.Certificate{pair}
		c.opts.TLS, c.opts.Transport = cfg, nil
		return nil
	}
	return fmt.Errorf("its introspection endpoint has the unknown client authentication %q: want none, client_secret_basic, "+
		"client_secret_post, private_key_jwt or tls_client_auth", e.Auth)
}

// Close frees idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Available reports whether the next call would be made, or tried.
func (c *Client) Available() bool { return c.breaker.State() != gobreaker.StateOpen }

// Probing reports whether the next call is the one that finds out whether the key manager is back.
func (c *Client) Probing() bool { return c.breaker.State() == gobreaker.StateHalfOpen }

// URL is the endpoint, without a password; Auth how the gateway makes itself known there.
func (c *Client) URL() string                 { return c.shown() }
func (c *Client) Auth() keymanager.ClientAuth { return c.opts.Endpoint.Auth }

// State returns what is known about the calls.
func (c *Client) State() State {
	state := c.breaker.State().String()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	s.Breaker = state
	return s
}

// Ask asks about a token, within the timeout. The error is ErrUnavailable, wrapped with its cause; it never holds the token.
func (c *Client) Ask(ctx context.Context, token string) (Answer, error) {
	if c.Barred() {
		return Answer{}, ErrCredentials
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	select { // a wait for a place says nothing about the key manager: it stands before the breaker
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	default:
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		case <-ctx.Done():
			return Answer{}, fmt.Errorf("%w: %d calls are under way already", ErrUnavailable, maxCalls)
		}
	}
	done, err := c.breaker.Allow()
	if err != nil {
		c.mu.Lock()
		c.state.Skipped++
		c.mu.Unlock()
		return Answer{}, ErrOpen
	}
	began := time.Now()
	a, err := c.call(ctx, token)
	done(err)
	c.note(a, err, time.Since(began))
	if errors.As(err, new(*unauthorized)) && c.opts.Endpoint.Auth == keymanager.ClientNone {
		c.barred.Store(c.opts.Now().Add(barredFor).UnixMilli())
		return Answer{}, ErrCredentials
	}
	if err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return a, nil
}

// Barred reports whether the endpoint said lately that it wants credentials, which the gateway has not.
func (c *Client) Barred() bool {
	until := c.barred.Load()
	return until > 0 && c.opts.Now().UnixMilli() < until
}

func (c *Client) note(a Answer, err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.state
	s.Calls++
	s.Time += took
	s.LastCall = c.opts.Now()
	about := AboutToken(err)
	if !about {
		s.LastError = ""
	}
	switch {
	case err != nil:
		s.Failed++
		if !about {
			s.LastError = err.Error()
		}
	case a.Active:
		s.Active++
	default:
		s.Inactive++
	}
}

// aboutToken is a failure that the token caused, not the state of the key manager: whoever sends tokens must not be able to
// open the breaker.
type aboutToken struct{ error }

func (e *aboutToken) Unwrap() error { return e.error }

// unauthorized is the refusal of the gateway's own credentials.
type unauthorized struct{ error }

func (e *unauthorized) Unwrap() error { return e.error }

// AboutToken reports whether a failure of Ask is one that the token caused, as far as the answer tells.
func AboutToken(err error) bool { return errors.As(err, new(*aboutToken)) }

func (c *Client) call(ctx context.Context, token string) (Answer, error) {
	resp, err := c.send(ctx, token)
	if err != nil && connecting(err) && ctx.Err() == nil {
		resp, err = c.send(ctx, token)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("POST %s: %w", c.shown(), withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		return Answer{}, fmt.Errorf("reading the answer of %s: %w", c.shown(), err)
	}
	if len(body) > MaxBody {
		return Answer{}, fmt.Errorf("the answer of %s is larger than %d bytes", c.shown(), MaxBody)
	}
	if resp.StatusCode != http.StatusOK {
		return c.refused(resp, body)
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind == "application/token-introspection+jwt" || kind == "application/jwt" {
		return c.readSigned(ctx, string(body))
	}
	a, err := Read(body)
	if err != nil {
		return Answer{}, fmt.Errorf("the answer of %s %w", c.shown(), err)
	}
	return a, nil
}

// refused reads an answer of another status than 200.
func (c *Client) refused(resp *http.Response, body []byte) (Answer, error) {
	err := fmt.Errorf("POST %s answered %s", c.shown(), resp.Status)
	if resp.StatusCode != http.StatusBadRequest {
		if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
			err = &unauthorized{fmt.Errorf("%w: it does not accept the gateway's own credentials (%s)", err, c.opts.Endpoint.Auth)}
		}
		return Answer{}, err
	}
	m, _ := jwt.DecodeObject(body)
	code, _ := m["error"].(string)
	switch code {
	case "invalid_client", "unauthorized_client":
		return Answer{}, &unauthorized{fmt.Errorf("%w: it does not accept the gateway's own credentials (%s)", err, c.opts.Endpoint.Auth)}
	case "invalid_token", "unsupported_token_type":
		return Answer{}, nil
	case "invalid_request", "invalid_client_metadata", "unsupported_response_type", "access_denied", "server_error":
		err = fmt.Errorf("%w: %s", err, code) // these texts alone: another may be the token
	}
	return Answer{}, &aboutToken{err}
}

func (c *Client) send(ctx context.Context, token string) (*http.Response, error) {
	e := &c.opts.Endpoint
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	switch e.Auth {
	case keymanager.ClientSecretPost:
		form.Set("client_id", e.ClientID)
		form.Set("client_secret", e.ClientSecret)
	case keymanager.ClientPrivateKey:
		assertion, err := c.signer.assertion(c.opts.Now())
		if err != nil {
			return nil, err
		}
		form.Set("client_id", e.ClientID)
		form.Set("client_assertion_type", assertionType)
		form.Set("client_assertion", assertion)
	case keymanager.ClientCertificates:
		if e.ClientID != "" {
			form.Set("client_id", e.ClientID)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json, application/token-introspection+jwt;q=0.9")
	// A question may be put twice: an idle connection that the server has just closed is replaced. The field is not sent.
	req.Header["Idempotency-Key"] = []string{}
	if e.Auth == keymanager.ClientSecretBasic {
		req.SetBasicAuth(url.QueryEscape(e.ClientID), url.QueryEscape(e.ClientSecret)) // RFC 6749 2.3.1
	}
	return c.http.Do(req)
}

// connecting reports whether no connection could be made, so that the key manager has seen nothing.
func connecting(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// withoutURL takes the URL, whose text may hold a password, out of an error of net/http.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func (c *Client) shown() string {
	u, _ := url.Parse(c.opts.Endpoint.URL) // New parsed it
	return u.Redacted()
}
