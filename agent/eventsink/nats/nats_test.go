package nats

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"gatehouse/integration/harness"
	"gatehouse/throttle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ throttle.Sender = (*Sender)(nil)

func startServer(t *testing.T, port int, edit func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true}
	if edit != nil {
		edit(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS server not ready")
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	return s
}

func subscribe(t *testing.T, s *server.Server, subject string) *natsgo.Subscription {
	t.Helper()
	nc, err := natsgo.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return sub
}

// body is a publish body of n events of size bytes each.
func body(n, size int) throttle.Batch {
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	for i := range n {
		b = binary.BigEndian.AppendUint32(b, uint32(size))
		b = append(b, bytes.Repeat([]byte{byte(i)}, size)...)
	}
	return throttle.Batch{Body: b, Events: n}
}

func newSender(t *testing.T, o Options) *Sender {
	t.Helper()
	o.Logger = zerolog.Nop()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSendPublishesTheBody(t *testing.T) {
	srv := startServer(t, -1, nil)
	sub := subscribe(t, srv, SubjectRequest)
	s := newSender(t, Options{URL: srv.ClientURL()})
	b := body(3, 20)
	if err := s.Send(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.Data, b.Body) || m.Header.Get("Content-Type") != ContentType {
		t.Errorf("got %x with %v", m.Data, m.Header)
	}
}

func TestHeartbeat(t *testing.T) {
	srv := startServer(t, -1, nil)
	sub := subscribe(t, srv, "gatehouse.gateway.*")
	s := newSender(t, Options{URL: srv.ClientURL(), GatewayID: "gw-1", Heartbeat: 10 * time.Millisecond})
	if err := s.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var beat struct {
			ID string
			At int64
		}
		if err := json.Unmarshal(m.Data, &beat); err != nil || m.Subject != "gatehouse.gateway.gw-1" || beat.ID != "gw-1" || time.Since(time.UnixMilli(beat.At)) > time.Minute {
			t.Errorf("%s: %s: %v", m.Subject, m.Data, err)
		}
	}
}

func TestLargeBatchIsCutBetweenEvents(t *testing.T) {
	srv := startServer(t, -1, func(o *server.Options) { o.MaxPayload = 4096 })
	sub := subscribe(t, srv, SubjectRequest)
	s := newSender(t, Options{URL: srv.ClientURL()})
	if err := s.Send(t.Context(), body(20, 1000)); err != nil {
		t.Fatal(err)
	}
	next := 0
	for next < 20 {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		n := int(binary.BigEndian.Uint32(m.Data))
		if n == 0 || len(m.Data) != 4+n*1004 {
			t.Fatalf("body of %d bytes for %d events", len(m.Data), n)
		}
		for i := range n {
			if m.Data[4+i*1004+4] != byte(next) {
				t.Fatalf("event %d is out of order", next)
			}
			next++
		}
	}
	if err := s.Send(t.Context(), body(1, 5000)); !errors.Is(err, throttle.ErrBatchRejected) {
		t.Errorf("an event larger than the server takes: %v", err)
	}
}

func TestOutageFailsSendAndEndsByItself(t *testing.T) {
	srv := startServer(t, -1, nil)
	port := srv.Addr().(*net.TCPAddr).Port
	s := newSender(t, Options{URL: srv.ClientURL(), Timeout: 500 * time.Millisecond})
	if err := s.Send(t.Context(), body(1, 10)); err != nil {
		t.Fatal(err)
	}
	srv.Shutdown()
	srv.WaitForShutdown()
	if err := s.Send(t.Context(), body(1, 10)); err == nil {
		t.Fatal("a batch was accepted while the server was away")
	}
	again := startServer(t, port, nil)
	sub := subscribe(t, again, SubjectRequest)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := s.Send(t.Context(), body(2, 10)); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	// Only what was accepted arrives: the batch that failed is the publisher's again.
	m, err := sub.NextMsg(5 * time.Second)
	if err != nil || binary.BigEndian.Uint32(m.Data) != 2 {
		t.Errorf("%v, %v", m, err)
	}
}

// The library asks for the authorities at each reconnect.
func TestAuthoritiesChange(t *testing.T) {
	certificate, roots := harness.Certificate(t, "127.0.0.1")
	secure := func(o *server.Options) {
		o.TLSConfig, o.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}, true
	}
	srv := startServer(t, -1, secure)
	port := srv.Addr().(*net.TCPAddr).Port
	var now atomic.Pointer[x509.CertPool]
	now.Store(x509.NewCertPool())
	s := newSender(t, Options{URL: fmt.Sprintf("tls://127.0.0.1:%d", port), GatewayID: "g", TLS: &tls.Config{MinVersion: tls.VersionTLS12}, Roots: now.Load, Timeout: 2 * time.Second})
	if err := s.Connect(t.Context()); err == nil {
		t.Fatal("a server of another authority is believed")
	}
	now.Store(roots)
	if err := s.Connect(t.Context()); err != nil {
		t.Errorf("its authority is known now: %v", err)
	}
}

func TestOptionsThatCannotBeUsed(t *testing.T) {
	for _, o := range []Options{{}, {URL: "nats://x:1", GatewayID: "a.b"}, {URL: "nats://x:1", GatewayID: "a b"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
}

func TestRefusedConnectionIsAnError(t *testing.T) {
	srv := startServer(t, -1, func(o *server.Options) { o.Username, o.Password = "u", "secret" })
	s := newSender(t, Options{URL: srv.ClientURL(), Username: "u", Password: "wrong"})
	err := s.Connect(t.Context())
	if err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("%v", err)
	}
	ok := newSender(t, Options{URL: srv.ClientURL(), Username: "u", Password: "secret"})
	if err := ok.Send(t.Context(), body(1, 10)); err != nil {
		t.Error(err)
	}
}
