// Package receiver is the databridge receiver of an emulated traffic manager: it reads the binary frames of a gateway by
// its own reader, answers as WSO2's receiver does (contract traffic-manager.md 2.1), and hands the events on.
package receiver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Frame types.
const (
	frameLogin   = 0
	frameLogout  = 1
	framePublish = 2
)

// ThrottleStream is the stream of request events; all its attributes are texts.
const ThrottleStream = "org.wso2.throttle.request.stream:1.0.0"

// attributes of ThrottleStream, in order.
var attributes = [...]string{
	"messageID", "appKey", "appTier", "apiKey", "apiTier", "subscriptionKey", "subscriptionTier", "resourceKey",
	"resourceTier", "userId", "apiContext", "apiVersion", "appTenant", "apiTenant", "appId", "apiName", "properties",
}

// Attributes names the payload attributes of ThrottleStream, in order.
func Attributes() []string { return append([]string(nil), attributes[:]...) }

// Event is one request event.
type Event struct {
	StreamID string
	// TimeStamp is in milliseconds since the epoch.
	TimeStamp int64
	// Payload has one text for each of Attributes; an empty one was empty or null on the wire.
	Payload []string
	// Arbitrary is the arbitrary map, nil when there is none.
	Arbitrary map[string]string
}

// Get returns an attribute of ThrottleStream by name, "" for a name that it does not have.
func (e Event) Get(name string) string {
	for i, a := range attributes {
		if a == name && i < len(e.Payload) {
			return e.Payload[i]
		}
	}
	return ""
}

// Frame is one request frame.
type Frame struct {
	Type byte
	Body []byte
}

const maxFrame = 64 << 20 // bytes; the real receiver has no limit, ours protects the machine

// ReadFrame reads one frame. It returns io.EOF only at a frame boundary.
func ReadFrame(r io.Reader) (Frame, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return Frame{}, err
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return Frame{}, fmt.Errorf("frame length: %w", unexpected(err))
	}
	n := int32(binary.BigEndian.Uint32(head[1:]))
	if n < 0 || n > maxFrame {
		return Frame{}, fmt.Errorf("frame length %d is out of range", n)
	}
	f := Frame{Type: head[0], Body: make([]byte, n)}
	if _, err := io.ReadFull(r, f.Body); err != nil {
		return Frame{}, fmt.Errorf("frame body of %d bytes: %w", n, unexpected(err))
	}
	return f, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// cursor reads big-endian fields and remembers the first fault.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) take(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n < 0 || n > len(c.b) {
		c.err = fmt.Errorf("%d bytes wanted, %d left", n, len(c.b))
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) i32() int32 {
	if b := c.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (c *cursor) i64() int64 {
	if b := c.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

func (c *cursor) text() string { return string(c.take(int(c.i32()))) }

// Login is the body of a login frame.
func (f Frame) Login() (user, password string, err error) {
	c := cursor{b: f.Body}
	u, p := c.i32(), c.i32()
	user, password = string(c.take(int(u))), string(c.take(int(p)))
	return user, password, c.err
}

// Session is the session that a logout or publish frame names first, and the bytes after it.
func (f Frame) Session() (session string, rest []byte, err error) {
	c := cursor{b: f.Body}
	session = c.text()
	return session, c.b, c.err
}

// Events reads an event count and the events; one bad event spoils all of them, as at the real receiver.
func Events(b []byte) ([]Event, error) {
	c := cursor{b: b}
	n := c.i32()
	if c.err != nil {
		return nil, fmt.Errorf("event count: %w", c.err)
	}
	if n < 0 {
		return nil, fmt.Errorf("event count %d is negative", n)
	}
	events := make([]Event, 0, min(int(n), 1024))
	for i := range n {
		body := c.take(int(c.i32()))
		if c.err != nil {
			return nil, fmt.Errorf("event %d of %d: %w", i+1, n, c.err)
		}
		e, err := event(body)
		if err != nil {
			return nil, fmt.Errorf("event %d of %d: %w", i+1, n, err)
		}
		events = append(events, e)
	}
	return events, nil
}

func event(b []byte) (Event, error) {
	c := cursor{b: b}
	e := Event{TimeStamp: c.i64(), StreamID: c.text()}
	if c.err == nil && e.StreamID != ThrottleStream {
		return e, fmt.Errorf("stream %q is not defined", e.StreamID)
	}
	e.Payload = make([]string, len(attributes))
	for i := range attributes {
		if e.Payload[i] = c.text(); c.err != nil {
			return e, fmt.Errorf("attribute %s: %w", attributes[i], c.err)
		}
	}
	for len(c.b) > 0 && c.err == nil {
		k, v := c.text(), c.text()
		if e.Arbitrary == nil {
			e.Arbitrary = map[string]string{}
		}
		e.Arbitrary[k] = v
	}
	return e, c.err
}
