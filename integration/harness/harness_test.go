package harness

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	code := Run(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func TestRabbitMQIsKilledAndStartedAgainOnTheSamePort(t *testing.T) {
	r := StartRabbitMQ(t)
	t.Logf("first start took %s", r.StartTime())
	c, err := amqp091.Dial(r.URL("/carbon"))
	if err != nil {
		t.Fatal(err)
	}
	closed := c.NotifyClose(make(chan *amqp091.Error, 1))
	r.Kill()
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Error("a connection outlived kill -9 of the broker by 5 s")
	}
	if _, err := net.Dial("tcp", r.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dialling a killed broker: %v, want connection refused", err)
	}
	r.Restart(t)
	t.Logf("restart took %s", r.StartTime())
	if c, err := amqp091.Dial(r.URL("carbon")); err != nil {
		t.Errorf("after the restart: %v", err)
	} else {
		c.Close()
	}
}

func TestSharedRabbitMQClosesChannelsAndConnections(t *testing.T) {
	r := Shared(t)
	if Shared(t) != r {
		t.Fatal("the second call gave another node")
	}
	c, err := amqp091.Dial(r.URL("/"))
	if err != nil {
		t.Fatal(err)
	}
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	channelClosed := ch.NotifyClose(make(chan *amqp091.Error, 1))
	cancelled := ch.NotifyCancel(make(chan string, 1))
	connectionClosed := c.NotifyClose(make(chan *amqp091.Error, 1))
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.Consume(q.Name, "tag", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if q, c, n := r.Queues(t), r.Connections(t), r.Channels(t); q != 1 || c != 1 || n != 1 {
		t.Errorf("%d queues, %d connections, %d channels, want 1 of each", q, c, n)
	}
	r.DeleteQueues(t)
	if tag := receive(t, cancelled); tag != "tag" {
		t.Errorf("consumer %q was cancelled, want tag", tag)
	}
	r.CloseChannels(t)
	if err := receive(t, channelClosed); err == nil || err.Code != 406 {
		t.Errorf("channel closed with %v, want 406", err)
	}
	if c.IsClosed() {
		t.Error("the connection was closed with the channel")
	}
	r.CloseConnections(t, "maintenance")
	if err := receive(t, connectionClosed); err == nil || err.Code != 320 || !strings.Contains(err.Reason, "maintenance") {
		t.Errorf("connection closed with %v, want 320 maintenance", err)
	}
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing happened within 10 s")
		panic("unreachable")
	}
}

// echo is a server that sends every line back.
func echo(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() }) // after the clients have gone
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { _, _ = io.Copy(c, c); c.Close() })
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, address string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, bufio.NewReader(c)
}

// say sends a line and returns how long its echo took; an error after limit.
func say(c net.Conn, r *bufio.Reader, line string, limit time.Duration) (time.Duration, error) {
	began := time.Now()
	if err := c.SetDeadline(began.Add(limit)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return 0, err
	}
	got, err := r.ReadString('\n')
	if err == nil && got != line+"\n" {
		err = errors.New("echo is " + got)
	}
	return time.Since(began), err
}

func TestProxyFaults(t *testing.T) {
	p := StartProxy(t, echo(t))
	c, r := dial(t, p.Address())
	if _, err := say(c, r, "hello", 5*time.Second); err != nil {
		t.Fatal(err)
	}

	p.Freeze()
	if _, err := say(c, r, "held", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("frozen: %v, want a timeout", err)
	}
	newer, newerReader := dial(t, p.Address()) // taken, and leads nowhere
	if _, err := say(newer, newerReader, "new", 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("frozen, new connection: %v, want a timeout", err)
	}
	p.Resume()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); line != "held\n" {
		t.Errorf("after Resume: %q, %v, want what was held", line, err)
	}

	p.Slow(0, 60*time.Millisecond)
	if _, err := say(c, r, "first", 5*time.Second); err != nil { // the pump was already reading
		t.Fatal(err)
	}
	if took, err := say(c, r, "late", 5*time.Second); err != nil || took < 100*time.Millisecond {
		t.Errorf("slow: %s, %v, want twice 60 ms", took, err)
	}
	p.Resume()

	p.Cut()
	if _, err := say(c, r, "cut", 5*time.Second); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.EOF) {
		t.Errorf("cut: %v, want a reset", err)
	}
	c, r = dial(t, p.Address())
	if _, err := say(c, r, "again", 5*time.Second); err != nil {
		t.Errorf("after Cut: %v", err)
	}

	p.Refuse()
	if _, err := net.Dial("tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refuse: %v, want connection refused", err)
	}
	p.Resume()

	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	p.Retarget(other.Addr().String())
	dial(t, p.Address())
	if err := other.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if c, err := other.Accept(); err != nil {
		t.Errorf("retarget: nobody came: %v", err)
	} else {
		c.Close()
	}
	if p.Accepted() != 4 {
		t.Errorf("%d connections were taken, want 4", p.Accepted())
	}
}
