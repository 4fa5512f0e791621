package databridge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"gatehouse/throttle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// trafficManager is a traffic manager on loopback: a TCP port for events and a TLS port for logins, both serving every
// frame, as WSO2's receiver does. It answers what script says, and by the rules where script says nothing.
type trafficManager struct {
	t        *testing.T
	tcp, ssl net.Listener
	roots    *x509.CertPool
	mu       sync.Mutex
	sessions map[string]bool
	n        int
	log      []string // "tls login", "tcp publish 3"
	received int
	conns    map[net.Conn]bool
	script   func(f Frame) (answer []byte, hangUp bool)
	done     sync.WaitGroup
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tm"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func startTM(t *testing.T) *trafficManager {
	t.Helper()
	cert, roots := certificate(t)
	tm := &trafficManager{t: t, roots: roots, sessions: map[string]bool{}, conns: map[net.Conn]bool{}}
	var err error
	if tm.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ssl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tm.ssl = tls.NewListener(ssl, &tls.Config{Certificates: []tls.Certificate{cert}})
	tm.done.Go(func() { tm.accept(tm.tcp, "tcp") })
	tm.done.Go(func() { tm.accept(tm.ssl, "tls") })
	t.Cleanup(func() {
		tm.tcp.Close()
		tm.ssl.Close()
		tm.hangUp()
		tm.done.Wait()
	})
	return tm
}

func (tm *trafficManager) accept(l net.Listener, port string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		tm.mu.Lock()
		tm.conns[c] = true
		tm.mu.Unlock()
		tm.done.Go(func() {
			defer func() {
				tm.mu.Lock()
				delete(tm.conns, c)
				tm.mu.Unlock()
				c.Close()
			}()
			tm.serve(c, port)
		})
	}
}

// hangUp closes every connection, as a restart does.
func (tm *trafficManager) hangUp() {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	for c := range tm.conns {
		c.Close()
	}
}

func (tm *trafficManager) forget() {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	clear(tm.sessions)
}

func (tm *trafficManager) serve(c net.Conn, port string) {
	for {
		f, err := ReadFrame(c, nil, 0)
		if err != nil {
			return
		}
		tm.mu.Lock()
		answer, hangUp := tm.answer(f, port)
		tm.mu.Unlock()
		if hangUp {
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

func (tm *trafficManager) answer(f Frame, port string) (answer []byte, hangUp bool) {
	switch f.Type {
	case TypeLogin:
		tm.log = append(tm.log, port+" login")
	case TypeLogout:
		tm.log = append(tm.log, port+" logout")
	case TypePublish:
		tm.log = append(tm.log, port+" publish")
	}
	if tm.script != nil {
		if a, h := tm.script(f); a != nil || h {
			return a, h
		}
	}
	switch f.Type {
	case TypeLogin:
		u, p, err := DecodeLogin(f.Body)
		if err != nil {
			return nil, true
		}
		if u != "admin" || p != "admin" {
			return AppendError(nil, ClassAuthentication, "wrong userName or password"), false
		}
		tm.n++
		s := fmt.Sprintf("session-%d", tm.n)
		tm.sessions[s] = true
		return AppendSession(nil, s), false
	case TypeLogout:
		s, err := DecodeLogout(f.Body)
		if err != nil {
			return nil, true
		}
		delete(tm.sessions, s)
		return AppendOK(nil), false
	case TypePublish:
		s, list, err := decodeAll(f.Body)
		if err != nil {
			return nil, true
		}
		if !tm.sessions[s] {
			return AppendError(nil, ClassSessionTimeout, s+" expired"), false
		}
		tm.received += len(list)
		return AppendOK(nil), false
	}
	return nil, true
}

func (tm *trafficManager) seen() []string {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	return append([]string{}, tm.log...)
}

func (tm *trafficManager) events() int {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	return tm.received
}

func (tm *trafficManager) options() Options {
	return Options{
		Endpoint: Endpoint{URL: "tcp://" + tm.tcp.Addr().String(), AuthURL: "ssl://" + tm.ssl.Addr().String()},
		Username: "admin", Password: "admin", TLS: &tls.Config{RootCAs: tm.roots, MinVersion: tls.VersionTLS12},
		ReadTimeout: 2 * time.Second, Logger: zerolog.Nop(),
	}
}

func client(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func batch(n int) throttle.Batch {
	body := binary.BigEndian.AppendUint32(nil, uint32(n))
	for i := range n {
		var start int
		body, start = BeginEvent(body, 1700000000000+int64(i), StreamID)
		for range RequestAttributes {
			body = AppendText(body, "x")
		}
		body = EndEvent(body, start)
	}
	return throttle.Batch{Body: body, Events: n}
}

func send(t *testing.T, c *Client, n int) {
	t.Helper()
	if err := c.Send(t.Context(), batch(n)); err != nil {
		t.Fatal(err)
	}
}

func TestClientLogsInOnTLSAndReusesOneConnection(t *testing.T) {
	tm := startTM(t)
	c := client(t, tm.options())
	for _, n := range []int{4, 200, 26, 20} {
		send(t, c, n)
	}
	if tm.events() != 250 {
		t.Errorf("%d events arrived, want 250", tm.events())
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	want := "tls login, tcp publish, tcp publish, tcp publish, tcp publish, tls logout"
	if got := strings.Join(tm.seen(), ", "); got != want {
		t.Errorf("frames: %s\nwant    %s", got, want)
	}
	if err := c.Send(t.Context(), batch(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestClientPublishesOverTLS(t *testing.T) {
	tm := startTM(t)
	o := tm.options()
	o.URL = o.AuthURL
	c := client(t, o)
	send(t, c, 3)
	if got := strings.Join(tm.seen(), ", "); got != "tls login, tls publish" || tm.events() != 3 {
		t.Errorf("frames: %s, %d events", got, tm.events())
	}
}

func TestClientVerifiesTheCertificate(t *testing.T) {
	tm := startTM(t)
	o := tm.options()
	o.TLS = nil
	err := client(t, o).Connect(t.Context())
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Errorf("self-signed certificate: %v", err)
	}
	for _, l := range tm.seen() {
		t.Errorf("a frame left before the certificate was verified: %s", l)
	}
}

func TestAuthoritiesAreAskedForAtEachConnection(t *testing.T) {
	tm := startTM(t)
	o := tm.options()
	now := x509.NewCertPool()
	o.Roots = func() *x509.CertPool { return now }
	c := client(t, o)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](c.Connect(t.Context())); !ok {
		t.Error("a server of another authority is believed")
	}
	now = tm.roots
	if err := c.Connect(t.Context()); err != nil {
		t.Errorf("its authority is known now: %v", err)
	}
}

func TestSessionTimeoutLogsInAgainAndResendsOnce(t *testing.T) {
	tm := startTM(t)
	c := client(t, tm.options())
	send(t, c, 1)
	tm.forget()
	send(t, c, 2)
	if got := strings.Join(tm.seen(), ", "); got != "tls login, tcp publish, tcp publish, tls login, tcp publish" || tm.events() != 3 {
		t.Errorf("frames: %s, %d events", got, tm.events())
	}
}

// TestRecordedSessionExpiry answers with the bytes that WSO2's receiver sent when a session had expired. As its agent did
// on the wire (agent.json), the client logs in on the TLS port and sends the same events again on the same connection.
func TestRecordedSessionExpiry(t *testing.T) {
	var doc struct{ AnswerHex string }
	readJSON(t, "session-expiry.json", &doc)
	expired, err := hex.DecodeString(doc.AnswerHex)
	if err != nil || len(expired) == 0 {
		t.Fatal(err)
	}
	tm := startTM(t)
	c := client(t, tm.options())
	send(t, c, 1)
	before := c.conn
	said := false
	tm.mu.Lock()
	tm.script = func(f Frame) ([]byte, bool) {
		if f.Type == TypePublish && !said {
			said = true
			return expired, false
		}
		return nil, false
	}
	tm.mu.Unlock()
	send(t, c, 1)
	if got := strings.Join(tm.seen(), ", "); got != "tls login, tcp publish, tcp publish, tls login, tcp publish" || tm.events() != 2 {
		t.Errorf("frames: %s, %d events", got, tm.events())
	}
	if c.conn != before {
		t.Error("the connection was not kept")
	}
}

func TestSessionTimeoutTwiceIsAnError(t *testing.T) {
	tm := startTM(t)
	c := client(t, tm.options())
	tm.script = func(f Frame) ([]byte, bool) {
		if f.Type == TypePublish {
			return AppendError(nil, ClassSessionTimeout, "x expired"), false
		}
		return nil, false
	}
	if err := c.Send(t.Context(), batch(1)); err == nil || !strings.Contains(err.Error(), "SessionTimeoutException") {
		t.Errorf("%v", err)
	}
	if n := len(tm.seen()); n != 4 {
		t.Errorf("%d frames, want login and publish twice: %v", n, tm.seen())
	}
}

func TestSessionIsRenewedBeforeItExpires(t *testing.T) {
	tm := startTM(t)
	o := tm.options()
	now := time.Unix(1700000000, 0)
	o.Now = func() time.Time { return now }
	c := client(t, o)
	send(t, c, 1)
	now = now.Add(24 * time.Minute)
	send(t, c, 1)
	now = now.Add(time.Minute)
	send(t, c, 1)
	if got := strings.Join(tm.seen(), ", "); got != "tls login, tcp publish, tcp publish, tls login, tcp publish" {
		t.Errorf("frames: %s", got)
	}
	// A renewal that fails leaves the old session in use.
	tm.ssl.Close()
	now = now.Add(26 * time.Minute)
	send(t, c, 1)
	if tm.events() != 4 {
		t.Errorf("%d events, want 4", tm.events())
	}
}

func TestErrorAnswers(t *testing.T) {
	tests := []struct {
		name           string
		class, message string
		is             error
		closes         bool
	}{
		{"undefined event type drops the batch", ClassUndefinedEventType, "no stream", throttle.ErrBatchRejected, false},
		{"authentication", ClassAuthentication, "no", nil, false},
		{"any other closes the connection", "java.lang.IllegalStateException", "boom", nil, true},
		{"text that is not ASCII closes the connection", ClassUndefinedEventType, "né", throttle.ErrBatchRejected, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tm := startTM(t)
			c := client(t, tm.options())
			tm.script = func(f Frame) ([]byte, bool) {
				if f.Type == TypePublish {
					return AppendError(nil, tt.class, tt.message), false
				}
				return nil, false
			}
			err := c.Send(t.Context(), batch(1))
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || tt.is == nil && errors.Is(err, throttle.ErrBatchRejected) {
				t.Errorf("%v, want %v", err, tt.is)
			}
			if closed := c.conn == nil; closed != tt.closes {
				t.Errorf("connection closed: %v, want %v", closed, tt.closes)
			}
			tm.mu.Lock()
			tm.script = nil
			tm.mu.Unlock()
			send(t, c, 1)
			if tm.events() != 1 {
				t.Errorf("%d events after the error", tm.events())
			}
		})
	}
}

func TestLoginRefused(t *testing.T) {
	tm := startTM(t)
	o := tm.options()
	o.Password = "hunter2"
	err := client(t, o).Connect(t.Context())
	if !errors.Is(err, ErrAuthentication) || !strings.Contains(err.Error(), "/permission/admin/publish/wso2event") {
		t.Errorf("%v", err)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error tells the password: %v", err)
	}
}

// TestEndOfStreamIsAFailedSend: WSO2's sender takes it for success and loses the events.
func TestEndOfStreamIsAFailedSend(t *testing.T) {
	tm := startTM(t)
	c := client(t, tm.options())
	tm.script = func(f Frame) ([]byte, bool) { return nil, f.Type == TypePublish }
	if err := c.Send(t.Context(), batch(1)); err == nil {
		t.Error("a connection closed without an answer was taken for success")
	}
	if tm.events() != 0 {
		t.Error("events arrived")
	}
}

func TestRestartIsSurvivedWithinOneSend(t *testing.T) {
	tm := startTM(t)
	c := client(t, tm.options())
	send(t, c, 1)
	tm.forget()
	tm.hangUp()
	send(t, c, 5)
	if tm.events() != 6 {
		t.Errorf("%d events, want 6", tm.events())
	}
}

func TestSilentTrafficManagerTimesOut(t *testing.T) {
	tm := startTM(t)
	o := tm.options()
	o.ReadTimeout = 100 * time.Millisecond
	c := client(t, o)
	tm.script = func(f Frame) ([]byte, bool) {
		if f.Type == TypePublish {
			return []byte{}, false
		}
		return nil, false
	}
	err := c.Send(t.Context(), batch(1))
	if !timedOut(err) {
		t.Errorf("%v, want a timeout", err)
	}
	if n := len(tm.seen()); n != 2 {
		t.Errorf("the batch was sent again after a timeout: %v", tm.seen())
	}
}

func TestCancelEndsSend(t *testing.T) {
	tm := startTM(t)
	o := tm.options()
	o.ReadTimeout = 30 * time.Second
	c := client(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	tm.script = func(f Frame) ([]byte, bool) {
		if f.Type == TypePublish {
			cancel()
			return []byte{}, false
		}
		return nil, false
	}
	began := time.Now()
	if err := c.Send(ctx, batch(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestNewRefusesUnusableURLs(t *testing.T) {
	for _, u := range []string{"", "tm:9611", "http://tm:9611"} {
		if _, err := New(Options{Endpoint: Endpoint{URL: u}}); err == nil {
			t.Errorf("%q accepted", u)
		}
	}
}

func BenchmarkSend200(b *testing.B) {
	cert, roots := certificate(b)
	ssl, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ssl.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				var buf []byte
				for {
					f, err := ReadFrame(c, buf, 0)
					if err != nil {
						return
					}
					buf = f.Body
					answer := AppendOK(nil)
					if f.Type == TypeLogin {
						answer = AppendSession(nil, "s")
					}
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			})
		}
	})
	c, err := New(Options{Endpoint: Endpoint{URL: "ssl://" + ssl.Addr().String()}, TLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		b.Fatal(err)
	}
	bt := batch(200)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Send(b.Context(), bt); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
	ssl.Close()
	wg.Wait()
}
