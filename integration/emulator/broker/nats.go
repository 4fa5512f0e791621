package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// natsServer is a NATS server in this process that can be taken away and brought back on its address.
type natsServer struct {
	host string
	port int
	dir  string

	mu sync.Mutex
	s  *server.Server
}

func startNATS(address string) (*natsServer, error) {
	n := &natsServer{host: "127.0.0.1", port: server.RANDOM_PORT}
	if address != "" {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("event hub: address %q of the embedded NATS server: %w", address, err)
		}
		if n.port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("event hub: port %q of the embedded NATS server is no number", port)
		}
		if host != "" {
			n.host = host
		}
		if n.port == 0 {
			n.port = server.RANDOM_PORT
		}
	}
	dir, err := os.MkdirTemp("", "gatehouse-nats-")
	if err != nil {
		return nil, fmt.Errorf("event hub: folder of the embedded NATS server: %w", err)
	}
	n.dir = dir
	if err := n.start(); err != nil {
		_ = os.RemoveAll(dir) // the fault of the start is what counts
		return nil, err
	}
	return n, nil
}

func (n *natsServer) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.s != nil {
		return nil
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return fmt.Errorf("event hub: folder of the embedded NATS server: %w", err)
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "gatehouse-emulator", Host: n.host, Port: n.port, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: n.dir, JetStreamMaxMemory: 256 << 20, JetStreamMaxStore: 1 << 30,
		MaxPending: 256 << 20, // a burst is the reader's business, not ours
	})
	if err != nil {
		return fmt.Errorf("event hub: embedded NATS server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		s.Shutdown()
		s.WaitForShutdown()
		return fmt.Errorf("event hub: embedded NATS server did not open %s:%d within 10 s", n.host, n.port)
	}
	if a, ok := s.Addr().(*net.TCPAddr); ok {
		n.port = a.Port
	}
	n.s = s
	return nil
}

func (n *natsServer) url() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return "nats://" + net.JoinHostPort(n.host, strconv.Itoa(n.port))
}

func (n *natsServer) stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.s == nil {
		return
	}
	n.s.Shutdown()
	n.s.WaitForShutdown()
	n.s = nil
	_ = os.RemoveAll(n.dir) // in the folder for temporary files
}

type natsTransport struct{ c *nats.Conn }

func dialNATS(ctx context.Context, url string) (transport, error) {
	timeout := 2 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(d), time.Millisecond)
	}
	c, err := nats.Connect(url, nats.Name("emulated API Manager"), nats.NoReconnect(), nats.Timeout(timeout))
	if err != nil {
		return nil, fmt.Errorf("event hub: connect to NATS: %w", err)
	}
	return natsTransport{c}, nil
}

func (t natsTransport) send(_ context.Context, m Message) error {
	if !t.c.IsConnected() {
		return errors.New("event hub: the NATS connection is closed")
	}
	msg := nats.NewMsg("gatehouse.event." + strings.ToLower(m.Topic))
	if m.ContentType != "" {
		msg.Header.Set("Content-Type", m.ContentType)
	}
	if m.TimestampMillis != 0 {
		msg.Header.Set("Gatehouse-Sent", strconv.FormatInt(m.TimestampMillis, 10))
	}
	msg.Data = m.Body
	return t.c.PublishMsg(msg)
}

func (t natsTransport) flush(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok { // the library asks for one
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	if err := t.c.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("event hub: flush the NATS connection: %w", err)
	}
	return nil
}

func (t natsTransport) close() { t.c.Close() }
