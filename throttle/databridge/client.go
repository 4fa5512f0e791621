package databridge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/throttle"
)

const classPrefix = "org.wso2.carbon.databridge.commons.exception."

// Java classes of error answers.
const (
	ClassSessionTimeout     = classPrefix + "SessionTimeoutException"
	ClassAuthentication     = classPrefix + "AuthenticationException"
	ClassUndefinedEventType = classPrefix + "UndefinedEventTypeException"
)

// Errors of a Client.
var (
	// ErrAuthentication means that the traffic manager refused the login.
	ErrAuthentication = errors.New("the traffic manager refused the login")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("databridge client closed")
)

// Options of a Client.
type Options struct {
	Endpoint
	Username, Password string
	// TLS is used for ssl:// URLs; nil verifies against the system's roots. ServerName is filled in where it is empty.
	TLS *tls.Config
	// Roots, when not nil, is asked for the authorities of each connection, in the place of those of TLS.
	Roots func() *x509.CertPool
	// Dial opens connections; nil means TCP with a keep-alive of 30 s.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialTimeout bounds a connection and its TLS handshake, default 10 s. ReadTimeout bounds the wait for an answer, default
	// 30 s.
	DialTimeout, ReadTimeout time.Duration
	// SessionAge is the age at which the session is renewed, default 25 min: the traffic manager ends it 30 min after the login,
	// whatever the traffic.
	SessionAge time.Duration
	Logger     zerolog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Client delivers batches to one traffic manager over one connection. It implements throttle.Sender. Its methods may be
// called by several goroutines, one at a time does its work.
type Client struct {
	o                  Options
	scheme, address    string
	authAddress        string
	authHost, dataHost string

	mu       sync.Mutex
	conn     net.Conn
	session  string
	loggedIn time.Time
	frame    []byte
	closed   bool
}

// New returns a Client; it connects when it first sends. The error names a URL that cannot be used.
func New(o Options) (*Client, error) {
	g, err := newGroup([]string{o.URL}, authList(o.AuthURL), LoadBalance)
	if err != nil {
		return nil, err
	}
	o.Endpoint = g.Endpoints[0]
	if o.DialTimeout <= 0 {
		o.DialTimeout = 10 * time.Second
	}
	if o.ReadTimeout <= 0 {
		o.ReadTimeout = 30 * time.Second
	}
	if o.SessionAge <= 0 {
		o.SessionAge = 25 * time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		d := net.Dialer{KeepAlive: 30 * time.Second}
		o.Dial = d.DialContext
	}
	c := &Client{o: o}
	c.scheme, c.address, c.dataHost = target(o.URL)
	_, c.authAddress, c.authHost = target(o.AuthURL)
	return c, nil
}

func authList(u string) []string {
	if u == "" {
		return nil
	}
	return []string{u}
}

// target cuts a URL that newGroup made.
func target(u string) (scheme, address, host string) {
	scheme, address, _ = strings.Cut(u, "://")
	host, _, _ = net.SplitHostPort(address)
	return scheme, address, host
}

// Connect logs in and opens the event connection where that is not done yet.
func (c *Client) Connect(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.ready(ctx)
	return err
}

// ready makes session and connection usable. fresh says that the connection was opened just now.
func (c *Client) ready(ctx context.Context) (fresh bool, err error) {
	if c.closed {
		return false, ErrClosed
	}
	if c.session == "" || c.o.Now().Sub(c.loggedIn) >= c.o.SessionAge {
		if err := c.login(ctx); err != nil {
			if c.session == "" || errors.Is(err, ErrAuthentication) {
				return false, err
			}
			// The old session has minutes left; when they are over, the traffic manager says so.
			c.o.Logger.Warn().Err(err).Str("endpoint", c.o.URL).Msg("renewal of the traffic manager session failed, going on with the old one")
			c.loggedIn = c.o.Now().Add(time.Minute - c.o.SessionAge)
		}
	}
	if c.conn != nil {
		return false, nil
	}
	conn, err := c.dial(ctx, c.scheme, c.address, c.dataHost)
	if err != nil {
		return false, fmt.Errorf("connect to traffic manager %s: %w", c.o.URL, err)
	}
	c.conn = conn
	return true, nil
}

func (c *Client) dial(ctx context.Context, scheme, address, host string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.DialTimeout)
	defer cancel()
	conn, err := c.o.Dial(ctx, "tcp", address)
	if err != nil || scheme != "ssl" {
		return conn, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.o.TLS != nil {
		cfg = c.o.TLS.Clone()
	}
	if c.o.Roots != nil {
		cfg.RootCAs = c.o.Roots()
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error says more
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	return secure, nil
}

// login opens a session on the authentication endpoint.
func (c *Client) login(ctx context.Context) error {
	conn, err := c.dial(ctx, "ssl", c.authAddress, c.authHost)
	if err != nil {
		return fmt.Errorf("log in at traffic manager %s: %w", c.o.AuthURL, err)
	}
	defer func() { _ = conn.Close() }() // its one answer is read
	began := c.o.Now()
	a, err := c.exchange(ctx, conn, AppendLogin(nil, c.o.Username, c.o.Password))
	if err != nil {
		return fmt.Errorf("log in at traffic manager %s: %w", c.o.AuthURL, err)
	}
	switch {
	case a.Kind == AnswerSession && a.Session != "":
		c.session, c.loggedIn = a.Session, began
		return nil
	case a.Kind == AnswerError && a.Class == ClassAuthentication:
		c.session = ""
		return fmt.Errorf("%w: %s, user %q: %s (check user and password; the user also needs the permission to publish events, /permission/admin/publish/wso2event)",
			ErrAuthentication, c.o.AuthURL, c.o.Username, a.Message)
	case a.Kind == AnswerError:
		return fmt.Errorf("log in at traffic manager %s: %s: %s", c.o.AuthURL, a.Class, a.Message)
	}
	return fmt.Errorf("log in at traffic manager %s: answer of type %d without a session", c.o.AuthURL, a.Kind)
}

// exchange sends one frame and reads its answer.
func (c *Client) exchange(ctx context.Context, conn net.Conn, frame []byte) (Answer, error) {
	if err := conn.SetDeadline(time.Now().Add(c.o.ReadTimeout)); err != nil {
		return Answer{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // fails on a closed connection only
	defer stop()
	_, err := conn.Write(frame)
	if err == nil {
		var a Answer
		if a, err = ReadAnswer(conn); err == nil {
			return a, nil
		}
	}
	if ctx.Err() != nil {
		return Answer{}, ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		// The Java agent takes this for success; nothing says that the events arrived.
		return Answer{}, fmt.Errorf("connection closed without an answer: %w", io.ErrUnexpectedEOF)
	}
	return Answer{}, err
}

func (c *Client) drop() {
	if c.conn != nil {
		_ = c.conn.Close() // of no use any more
		c.conn = nil
	}
}

// Send delivers one batch. nil means that the traffic manager took it into its queue. A session that it no longer knows is renewed once, and
// a connection that it closed meanwhile is opened again once. throttle.ErrBatchRejected means that sending again is
// pointless, ErrAuthentication that the credentials are refused.
func (c *Client) Send(ctx context.Context, b throttle.Batch) error {
	if b.Events == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh, err := c.ready(ctx)
	if err != nil {
		return err
	}
	a, err := c.publish(ctx, b)
	if err != nil && !fresh && ctx.Err() == nil && !timedOut(err) {
		// The peer may have closed an idle connection, or was restarted.
		c.drop()
		if _, err = c.ready(ctx); err != nil {
			return err
		}
		a, err = c.publish(ctx, b)
	}
	if err == nil && a.Kind == AnswerError && a.Class == ClassSessionTimeout {
		if !ascii(a.Message) {
			c.drop()
		}
		c.session = ""
		if _, err = c.ready(ctx); err != nil {
			return err
		}
		a, err = c.publish(ctx, b)
	}
	if err != nil {
		c.drop()
		return fmt.Errorf("publish to traffic manager %s: %w", c.o.URL, err)
	}
	switch {
	case a.Kind == AnswerOK:
		return nil
	case a.Kind != AnswerError:
		c.drop()
		return fmt.Errorf("publish to traffic manager %s: answer of type %d to a publish", c.o.URL, a.Kind)
	}
	// The lengths of an error count characters: after text that is not ASCII the next answer cannot be found.
	known := a.Class == ClassUndefinedEventType || a.Class == ClassSessionTimeout || a.Class == ClassAuthentication
	if !known || !ascii(a.Message) {
		c.drop()
	}
	err = fmt.Errorf("publish to traffic manager %s: %s: %s", c.o.URL, strings.TrimPrefix(a.Class, classPrefix), a.Message)
	switch a.Class {
	case ClassUndefinedEventType:
		return fmt.Errorf("%w: %w", throttle.ErrBatchRejected, err)
	case ClassSessionTimeout, ClassAuthentication:
		c.session = ""
	}
	return err
}

func (c *Client) publish(ctx context.Context, b throttle.Batch) (Answer, error) {
	c.frame = AppendPublish(c.frame[:0], c.session, b.Body)
	a, err := c.exchange(ctx, c.conn, c.frame)
	if cap(c.frame) > 4*MaxFrame {
		c.frame = nil
	}
	return a, err
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] > 0x7f {
			return false
		}
	}
	return true
}

// Close logs out and closes the connection. Send fails afterwards.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if c.session != "" && c.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if conn, err := c.dial(ctx, "ssl", c.authAddress, c.authHost); err == nil {
			if _, err := c.exchange(ctx, conn, AppendLogout(nil, c.session)); err != nil {
				c.o.Logger.Debug().Err(err).Str("endpoint", c.o.AuthURL).Msg("logout from the traffic manager failed; the session ends by itself")
			}
			_ = conn.Close() // its one answer is read
		}
	}
	c.session = ""
	c.drop()
	return nil
}
