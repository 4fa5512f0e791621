package integration_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// startFoldingBroker stands before RabbitMQ and does what Andes does to its clients' bindings: it folds binding keys to
// lower case (contract events.md 1.5). A message then reaches a client only when it is published under its topic's
// lower-cased name, and arrives with that routing key. It returns host:port.
func startFoldingBroker(t *testing.T, target string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	keep := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		open[c] = struct{}{}
	}
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			keep(client)
			keep(server)
			running.Go(func() {
				_, _ = io.Copy(client, server) // ends with either connection
				client.Close()
			})
			running.Go(func() {
				if err := foldBindings(server, client); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					t.Logf("folding broker: %v", err)
				}
				server.Close()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return listener.Addr().String()
}

// foldBindings copies the frames of a client and lower-cases the routing key of each queue.bind.
func foldBindings(to io.Writer, from io.Reader) error {
	const frameMethod, frameEnd, classQueue, methodBind = 1, 0xCE, 50, 20
	header := make([]byte, 8) // "AMQP" 0 0 9 1
	if _, err := io.ReadFull(from, header); err != nil {
		return err
	}
	if _, err := to.Write(header); err != nil {
		return err
	}
	for {
		head := make([]byte, 7) // type, channel, size
		if _, err := io.ReadFull(from, head); err != nil {
			return err
		}
		frame := append(head, make([]byte, int(binary.BigEndian.Uint32(head[3:]))+1)...)
		if _, err := io.ReadFull(from, frame[7:]); err != nil {
			return err
		}
		if frame[len(frame)-1] != frameEnd {
			return errors.New("a frame does not end where it should")
		}
		if m := frame[7:]; head[0] == frameMethod && binary.BigEndian.Uint16(m) == classQueue && binary.BigEndian.Uint16(m[2:]) == methodBind {
			at := 6                 // class, method, reserved
			at += 1 + int(m[at])    // queue
			at += 1 + int(m[at])    // exchange
			key := m[at+1:][:m[at]] // routing key
			copy(key, bytes.ToLower(key))
		}
		if _, err := to.Write(frame); err != nil {
			return err
		}
	}
}
