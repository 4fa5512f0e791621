// Package databridge speaks WSO2's binary databridge protocol: the frames in both directions, the URL groups of the
// configuration, and the client that delivers request events to a traffic manager (contract traffic-manager.md 1, 2).
//
// One request, one answer, per connection. Integers are big-endian, text is UTF-8, every length is in bytes; WSO2's sender counts
// characters in some places and fails on text that is not ASCII, its receiver reads ours correctly.
//
// What differs from WSO2's agent: the end of the stream is a failed send (theirs takes it for success and loses the
// events); the session is renewed before it expires; credentials go over TLS only, its certificate is verified; there is no
// probe connection without a byte; one connection per endpoint is kept and reused; IPv6 literals are taken in URLs; an ssl:// receiver is
// its own authentication endpoint; text outside the braces of a URL group is an error and not dropped.
package databridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Types of request frames.
const (
	TypeLogin   = 0
	TypeLogout  = 1
	TypePublish = 2
)

// MaxFrame is the largest frame that this package sends, and the default bound on what it reads: the protocol has none, and
// WSO2's receiver allocates what the length says.
const MaxFrame = 1 << 20

// frameHead is the type byte and the length.
const frameHead = 5

// maxAnswerText bounds each text of an answer.
const maxAnswerText = 64 << 10

// ErrMalformed is wrapped by every error of a decoder.
var ErrMalformed = errors.New("malformed databridge frame")

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, a...))
}

// AppendText appends a text with its length. WSO2's receiver reads the empty text as null.
func AppendText(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}

// AppendBytes is AppendText for a text held as bytes.
func AppendBytes(dst, s []byte) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}

func beginFrame(dst []byte, kind byte) (_ []byte, start int) {
	start = len(dst)
	return append(dst, kind, 0, 0, 0, 0), start
}

func endFrame(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-frameHead))
	return dst
}

// AppendLogin appends a login frame.
func AppendLogin(dst []byte, user, password string) []byte {
	dst, start := beginFrame(dst, TypeLogin)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(user)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(password)))
	dst = append(append(dst, user...), password...)
	return endFrame(dst, start)
}

// AppendLogout appends a logout frame.
func AppendLogout(dst []byte, session string) []byte {
	dst, start := beginFrame(dst, TypeLogout)
	return endFrame(AppendText(dst, session), start)
}

// AppendPublish appends a publish frame. body is "i32 eventCount, event*", as in throttle.Batch.
func AppendPublish(dst []byte, session string, body []byte) []byte {
	dst, start := beginFrame(dst, TypePublish)
	dst = AppendText(dst, session)
	return endFrame(append(dst, body...), start)
}

// BeginEvent appends the head of an event; its attributes follow, then EndEvent with the returned start.
func BeginEvent(dst []byte, timestamp int64, stream string) (_ []byte, start int) {
	start = len(dst)
	dst = binary.BigEndian.AppendUint32(dst, 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(timestamp))
	return AppendText(dst, stream), start
}

// EndEvent writes the size of the event that began at start.
func EndEvent(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// AppendOK appends the answer that accepts a publish or logout.
func AppendOK(dst []byte) []byte { return append(dst, 0) }

// AppendSession appends the answer that accepts a login.
func AppendSession(dst []byte, session string) []byte { return AppendText(append(dst, 2), session) }

// AppendError appends an error answer; class is one of the Java class names that clients know.
func AppendError(dst []byte, class, message string) []byte {
	dst = append(dst, 1)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(class)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(message)))
	return append(append(dst, class...), message...)
}

// Frame is one request frame.
type Frame struct {
	Type byte
	Body []byte
}

// ReadFrame reads one request frame of at most limit bytes of body (0 means MaxFrame), into buf where it fits. io.EOF
// means that the peer closed between two frames.
func ReadFrame(r io.Reader, buf []byte, limit int) (Frame, error) {
	if limit <= 0 {
		limit = MaxFrame
	}
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return Frame{}, err
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return Frame{}, unexpected(err)
	}
	n := int32(binary.BigEndian.Uint32(head[1:]))
	if n < 0 || int(n) > limit {
		return Frame{}, malformed("frame of %d bytes, at most %d are taken", n, limit)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return Frame{}, unexpected(err)
	}
	return Frame{Type: head[0], Body: buf}, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// reader walks over a body.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int, what string) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > len(r.b) {
		r.err = malformed("%s of %d bytes where %d are left", what, n, len(r.b))
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) int32(what string) int32 {
	if p := r.take(4, what); p != nil {
		return int32(binary.BigEndian.Uint32(p))
	}
	return 0
}

func (r *reader) int64(what string) int64 {
	if p := r.take(8, what); p != nil {
		return int64(binary.BigEndian.Uint64(p))
	}
	return 0
}

func (r *reader) text(what string) []byte { return r.take(int(r.int32(what)), what) }

// DecodeLogin reads the body of a login frame. Bytes after the password are ignored, as WSO2's receiver does.
func DecodeLogin(body []byte) (user, password string, err error) {
	r := reader{b: body}
	nu, np := r.int32("user length"), r.int32("password length")
	u, p := r.take(int(nu), "user"), r.take(int(np), "password")
	return string(u), string(p), r.err
}

// DecodeLogout reads the body of a logout frame.
func DecodeLogout(body []byte) (session string, err error) {
	r := reader{b: body}
	s := r.text("session")
	return string(s), r.err
}

// DecodePublish reads the head of the body of a publish frame. The session and the events are views of body.
func DecodePublish(body []byte) (session []byte, events Events, err error) {
	r := reader{b: body}
	session = r.text("session")
	events.left = r.int32("event count")
	events.rest = r.b
	return session, events, r.err
}

// DecodeBody reads the head of "i32 eventCount, event*", a publish body without the session.
func DecodeBody(body []byte) (Events, error) {
	r := reader{b: body}
	e := Events{left: r.int32("event count")}
	e.rest = r.b
	return e, r.err
}

// Events walks over the events of one publish body. A count that is too low leaves the rest unread, a negative one means
// none, one that is too high ends in an error: as WSO2's receiver reads them.
type Events struct {
	left int32
	rest []byte
}

// Count says how many events the sender announced; it may be negative or more than there are.
func (e *Events) Count() int { return int(e.left) }

// Next returns the bytes of the next event, without its size; nil, nil after the last.
func (e *Events) Next() ([]byte, error) {
	if e.left <= 0 {
		return nil, nil
	}
	r := reader{b: e.rest}
	ev := r.text("event")
	if r.err != nil {
		e.left = 0
		return nil, r.err
	}
	e.left--
	e.rest = r.b
	if ev == nil {
		ev = []byte{}
	}
	return ev, nil
}

// Type is the type of an attribute.
type Type uint8

// Attribute types.
const (
	String Type = iota
	Int
	Long
	Float
	Double
	Bool
)

// Stream is the definition that an event is decoded by: the wire carries no types.
type Stream struct {
	ID                         string
	Meta, Correlation, Payload []Type
}

// StreamID is the stream of request events.
const StreamID = "org.wso2.throttle.request.stream:1.0.0"

// RequestAttributes is the number of payload attributes of StreamID, all of them text.
const RequestAttributes = 17

// RequestStream returns the definition of StreamID.
func RequestStream() Stream { return Stream{ID: StreamID, Payload: make([]Type, RequestAttributes)} }

// Pair is an entry of the arbitrary map of an event.
type Pair struct{ Key, Value string }

// Event is one event of any stream. Values are nil, string, int32, int64, float32, float64 or bool.
type Event struct {
	StreamID                   string
	Timestamp                  int64 // ms
	Meta, Correlation, Payload []any
	Arbitrary                  []Pair
}

// AppendEvent appends an event. A nil value becomes four zero bytes whatever its type, as WSO2's sender writes it: right
// for text and int only. The error names a value of a type that the protocol does not know.
func AppendEvent(dst []byte, e Event) ([]byte, error) {
	dst, start := BeginEvent(dst, e.Timestamp, e.StreamID)
	for _, part := range [][]any{e.Meta, e.Correlation, e.Payload} {
		for i, v := range part {
			switch v := v.(type) {
			case nil:
				dst = append(dst, 0, 0, 0, 0)
			case string:
				dst = AppendText(dst, v)
			case int32:
				dst = binary.BigEndian.AppendUint32(dst, uint32(v))
			case int64:
				dst = binary.BigEndian.AppendUint64(dst, uint64(v))
			case float32:
				dst = binary.BigEndian.AppendUint32(dst, math.Float32bits(v))
			case float64:
				dst = binary.BigEndian.AppendUint64(dst, math.Float64bits(v))
			case bool:
				if v {
					dst = append(dst, 1)
				} else {
					dst = append(dst, 0)
				}
			default:
				return dst[:start], fmt.Errorf("attribute %d of stream %s has type %T, which the databridge cannot carry", i+1, e.StreamID, v)
			}
		}
	}
	for _, p := range e.Arbitrary {
		dst = AppendText(AppendText(dst, p.Key), p.Value)
	}
	return EndEvent(dst, start), nil
}

// DecodeEvent decodes the bytes that Events.Next returned, by the definition that define gives for the stream id; nil
// means that the stream is not known.
func DecodeEvent(event []byte, define func(id string) *Stream) (Event, error) {
	r := reader{b: event}
	e := Event{Timestamp: r.int64("timestamp")}
	e.StreamID = string(r.text("stream id"))
	if r.err != nil {
		return Event{}, r.err
	}
	s := define(e.StreamID)
	if s == nil {
		return Event{}, malformed("stream %q is not defined", e.StreamID)
	}
	e.Meta = r.values(s.Meta)
	e.Correlation = r.values(s.Correlation)
	e.Payload = r.values(s.Payload)
	for r.err == nil && len(r.b) > 0 {
		k, v := r.text("arbitrary key"), r.text("arbitrary value")
		e.Arbitrary = append(e.Arbitrary, Pair{string(k), string(v)})
	}
	if r.err != nil {
		return Event{}, r.err
	}
	return e, nil
}

func (r *reader) values(types []Type) []any {
	if len(types) == 0 || r.err != nil {
		return nil
	}
	list := make([]any, len(types))
	for i, t := range types {
		switch t {
		case Int:
			list[i] = r.int32("int")
		case Long:
			list[i] = r.int64("long")
		case Float:
			list[i] = math.Float32frombits(uint32(r.int32("float")))
		case Double:
			list[i] = math.Float64frombits(uint64(r.int64("double")))
		case Bool:
			p := r.take(1, "bool")
			list[i] = len(p) == 1 && p[0] == 1
		default:
			// The empty text is null: the wire cannot tell them apart.
			if p := r.text("text"); len(p) > 0 {
				list[i] = string(p)
			}
		}
		if r.err != nil {
			return nil
		}
	}
	return list
}

// RequestEvent is an event of StreamID, its attributes as views of the bytes it was decoded from, in the order of the
// stream: messageID, appKey, appTier, apiKey, apiTier, subscriptionKey, subscriptionTier, resourceKey, resourceTier,
// userId, apiContext, apiVersion, appTenant, apiTenant, appId, apiName, properties.
type RequestEvent struct {
	Timestamp  int64
	Attributes [RequestAttributes][]byte
}

// Decode decodes the bytes that Events.Next returned, without copying. Another stream, or a number of attributes that
// cannot be right, is an error. Entries of the arbitrary map are checked and passed over.
func (q *RequestEvent) Decode(event []byte) error {
	r := reader{b: event}
	q.Timestamp = r.int64("timestamp")
	id := r.text("stream id")
	if r.err != nil {
		return r.err
	}
	if string(id) != StreamID {
		return malformed("stream %q is not %s", id, StreamID)
	}
	for i := range q.Attributes {
		q.Attributes[i] = r.text("attribute")
	}
	for r.err == nil && len(r.b) > 0 {
		r.text("arbitrary key")
		r.text("arbitrary value")
	}
	return r.err
}

// AnswerKind is what the first byte of an answer says.
type AnswerKind byte

// Kinds of answers.
const (
	AnswerOK      AnswerKind = 0
	AnswerError   AnswerKind = 1
	AnswerSession AnswerKind = 2
)

// Answer is one answer frame.
type Answer struct {
	Kind           AnswerKind
	Session        string // of AnswerSession
	Class, Message string // of AnswerError
}

// ReadAnswer reads one answer. io.EOF means that the peer closed without answering; other kinds than the three are an
// error, after which the connection is of no use.
func ReadAnswer(r io.Reader) (Answer, error) {
	var b [9]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return Answer{}, err
	}
	a := Answer{Kind: AnswerKind(b[0])}
	switch a.Kind {
	case AnswerOK:
		return a, nil
	case AnswerSession:
		if _, err := io.ReadFull(r, b[1:5]); err != nil {
			return Answer{}, unexpected(err)
		}
		s, err := readTexts(r, binary.BigEndian.Uint32(b[1:]), 0)
		if err != nil {
			return Answer{}, err
		}
		a.Session = s
		return a, nil
	case AnswerError:
		if _, err := io.ReadFull(r, b[1:9]); err != nil {
			return Answer{}, unexpected(err)
		}
		nc, nm := binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:])
		s, err := readTexts(r, nc, nm)
		if err != nil {
			return Answer{}, err
		}
		a.Class, a.Message = s[:nc], s[nc:]
		return a, nil
	}
	return Answer{}, malformed("answer of type %d", b[0])
}

func readTexts(r io.Reader, n, m uint32) (string, error) {
	if n > maxAnswerText || m > maxAnswerText {
		return "", malformed("answer with texts of %d and %d bytes, at most %d are taken", n, m, maxAnswerText)
	}
	p := make([]byte, n+m)
	if _, err := io.ReadFull(r, p); err != nil {
		return "", unexpected(err)
	}
	return string(p), nil
}
