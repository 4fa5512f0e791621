package controlplane

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxToken bounds a single string or number of a body; maxDepth bounds nesting. Both stand far above what the API
// Manager sends (the longest strings are Siddhi queries and PEM certificates).
const (
	maxToken = 16 << 20
	maxDepth = 500
)

// errTruncated says that a body ended in the middle of a value.
var errTruncated = errors.New("the body ended in the middle of a value")

// scanner pulls the values of a JSON body out of a stream, of which it holds a window and never the whole. An error is
// sticky: after it every method does nothing, so that decoders read straight down and look at err once.
//
// Values of an unexpected kind never fail a body: a number where a string is expected is taken as its text, an object
// where a number is expected is skipped and counted in odd. Only text that is no JSON is an error.
type scanner struct {
	in    *window
	dec   *jsontext.Decoder
	err   error
	none  bool   // the container begun last was null or no container
	key   []byte // last key in lower case, valid until the next call
	text  []byte // scratch for strings
	names map[string]string
	odd   int
	oddAt string // describes the first odd value
}

func newScanner(r io.Reader) *scanner {
	s := &scanner{in: &window{r: r}, names: make(map[string]string)}
	// Like encoding/json: of two members of a name both are seen, and U+FFFD stands for what is no valid UTF-8.
	s.dec = jsontext.NewDecoder(s.in, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	s.in.used = s.dec.InputOffset
	return s
}

// window is the body as the decoder reads it. It bounds what the decoder holds at a time, and keeps the fault of the
// connection, which the decoder cannot tell from one of the text.
type window struct {
	r    io.Reader
	read int64
	used func() int64
	err  error // other than io.EOF
}

var errLongToken = fmt.Errorf("a value is longer than %d bytes", maxToken)

// Read implements io.Reader.
func (w *window) Read(p []byte) (int, error) {
	if w.read-w.used() > maxToken {
		return 0, errLongToken
	}
	n, err := w.r.Read(p)
	w.read += int64(n)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// readError marks a fault of the connection, as against one of the text.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// offset is the position in the body of the next byte.
func (s *scanner) offset() int64 { return s.dec.InputOffset() }

func (s *scanner) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("byte %d: %s", s.offset(), fmt.Sprintf(format, args...))
	}
}

// broke keeps the decoder's error.
func (s *scanner) broke(err error) {
	if s.err != nil || err == nil {
		return
	}
	var syntax *jsontext.SyntacticError
	switch {
	case s.in.err != nil:
		s.err = readError{s.in.err}
	case errors.Is(err, errLongToken):
		s.fail("%v", errLongToken)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		s.err = errTruncated
	case errors.As(err, &syntax):
		s.err = fmt.Errorf("byte %d: %w", syntax.ByteOffset, syntax.Err)
	default:
		s.err = readError{err}
	}
}

func (s *scanner) oddity(want, got string) {
	s.odd++
	if s.oddAt == "" {
		s.oddAt = fmt.Sprintf("byte %d: %s where %s is expected", s.offset(), got, want)
	}
}

// peek returns the kind of the next value: one of {, }, [, ], ", 0 for any number, t, f and n, or 0 (the byte) at the end
// and on an error.
func (s *scanner) peek() byte {
	if s.err != nil {
		return 0
	}
	k := s.dec.PeekKind()
	if k == jsontext.KindInvalid {
		return 0
	}
	return byte(k)
}

// need is peek inside a value: the end of the body is an error there.
func (s *scanner) need() byte {
	c := s.peek()
	if c == 0 && s.err == nil {
		_, err := s.dec.ReadToken() // gives what peek has met
		s.broke(err)
	}
	return c
}

// token reads what need has seen to be a bracket, a literal or the end of a container.
func (s *scanner) token() {
	_, err := s.dec.ReadToken()
	s.broke(err)
}

// raw reads a string or a number as it stands. The bytes are valid until the next call.
func (s *scanner) raw() []byte {
	if s.err != nil {
		return nil
	}
	v, err := s.dec.ReadValue()
	s.broke(err)
	return v
}

// unquoted appends the text of a raw string to dst[:0]; most need no work and are copied as they stand.
func (s *scanner) unquoted(dst, raw []byte) []byte {
	if len(raw) < 2 || s.err != nil {
		return dst[:0]
	}
	dst, _ = jsontext.AppendUnquote(dst[:0], raw) // its error is bad UTF-8, for which U+FFFD stands now
	return dst
}

// finish ends the document: nothing but white space may follow.
func (s *scanner) finish() {
	if s.err != nil {
		return
	}
	if c := s.peek(); c != 0 {
		s.fail("unexpected %q after the end of the document", c)
		return
	}
	if _, err := s.dec.ReadToken(); !errors.Is(err, io.EOF) || s.in.err != nil {
		s.broke(err)
	}
}

func (s *scanner) begin(open byte, what string) {
	c := s.need()
	if s.err != nil {
		return
	}
	if c == open {
		s.token()
		if s.dec.StackDepth() > maxDepth {
			s.fail("nested deeper than %d", maxDepth)
		}
		s.none = false
		return
	}
	if c != 'n' {
		s.oddity(what, s.kind(c))
	}
	s.skip()
	s.none = true
}

// object begins an object; nextKey then walks it. Null, and anything that is no object, is walked as an empty one.
func (s *scanner) object() { s.begin('{', "an object") }

// array begins an array; nextElem then walks it. Null, and anything that is no array, is walked as an empty one.
func (s *scanner) array() { s.begin('[', "an array") }

// nextKey moves to the next member of the object; key then holds its name in lower case.
func (s *scanner) nextKey() bool {
	if !s.nextExactKey() {
		return false
	}
	for i, c := range s.key {
		if 'A' <= c && c <= 'Z' {
			s.key[i] = c + 'a' - 'A'
		}
	}
	return true
}

// nextExactKey is nextKey that keeps the spelling of the name.
func (s *scanner) nextExactKey() bool {
	if !s.more('}') {
		return false
	}
	s.key = s.unquoted(s.key, s.raw())
	return s.err == nil
}

// nextElem moves to the next element of the array.
func (s *scanner) nextElem() bool { return s.more(']') }

func (s *scanner) more(closing byte) bool {
	if s.err != nil {
		return false
	}
	if s.none {
		s.none = false
		return false
	}
	c := s.need()
	if s.err == nil && c == closing {
		s.token()
		return false
	}
	return s.err == nil
}

func (s *scanner) kind(c byte) string {
	switch c {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// scalar reads a string, number or boolean as text; ok is false for null, and for an object or array, which it skips.
func (s *scanner) scalar(want string) (text []byte, ok bool) {
	switch c := s.need(); c {
	case 0:
		return nil, false
	case '"':
		s.text = s.unquoted(s.text, s.raw())
		return s.text, s.err == nil
	case 'n':
		s.token()
		return nil, false
	case '{', '[':
		s.oddity(want, s.kind(c))
		s.skip()
		return nil, false
	default:
		b := s.raw()
		return b, s.err == nil
	}
}

// str reads a text. Null and the empty text leave dst alone, so that of two spellings of a field the one that says
// something counts.
func (s *scanner) str(dst *string) {
	if b, ok := s.scalar("a string"); ok && len(b) > 0 {
		*dst = string(b)
	}
}

// name reads a text that many rows share: equal texts share their memory.
func (s *scanner) name(dst *string) {
	if b, ok := s.scalar("a string"); ok && len(b) > 0 {
		*dst = s.intern(b)
	}
}

// maxNames and maxNameLen bound the table of shared texts.
const (
	maxNames   = 1 << 18
	maxNameLen = 256
)

func (s *scanner) intern(b []byte) string {
	if known, ok := s.names[string(b)]; ok {
		return known
	}
	text := string(b)
	if len(s.names) < maxNames && len(text) <= maxNameLen {
		s.names[text] = text
	}
	return text
}

// integer reads a whole number, also one in a string ("12") or with a fraction of zero (12.0). Null and the empty
// string leave dst alone.
func (s *scanner) integer(dst *int64) {
	b, ok := s.scalar("a whole number")
	if !ok || len(b) == 0 {
		return
	}
	if n, ok := parseInteger(b); ok {
		*dst = n
		return
	}
	s.oddity("a whole number", strconv.Quote(string(b[:min(len(b), 40)])))
}

func parseInteger(b []byte) (int64, bool) {
	// The common case without an allocation: up to 18 digits.
	i, neg := 0, false
	if b[0] == '-' {
		i, neg = 1, true
	}
	var n int64
	digits := 0
	for ; i < len(b) && digits <= 18; i++ {
		if b[i] < '0' || b[i] > '9' {
			break
		}
		n = n*10 + int64(b[i]-'0')
		digits++
	}
	if i == len(b) && digits > 0 && digits <= 18 {
		if neg {
			n = -n
		}
		return n, true
	}
	text := strings.TrimSpace(string(b))
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || f != math.Trunc(f) || f < -(1<<63) || f >= 1<<63 {
		return 0, false
	}
	return int64(f), true
}

// boolean reads true, false and their texts in any case; a number is true unless it is 0. Null leaves dst alone.
func (s *scanner) boolean(dst *bool) {
	b, ok := s.scalar("a boolean")
	if !ok || len(b) == 0 {
		return
	}
	switch strings.ToLower(strings.TrimSpace(string(b))) {
	case "true", "1", "yes":
		*dst = true
	case "false", "0", "no":
		*dst = false
	default:
		s.oddity("a boolean", strconv.Quote(string(b[:min(len(b), 40)])))
	}
}

// texts reads an array of texts. A single text is taken as an array of one. A null array leaves dst alone; empty and
// null elements are passed over.
func (s *scanner) texts(dst *[]string) {
	if s.peek() == '"' {
		var one string
		s.name(&one)
		if one != "" {
			*dst = []string{one}
		}
		return
	}
	var list []string
	for s.array(); s.nextElem(); {
		var one string
		s.name(&one)
		if one != "" {
			list = append(list, one)
		}
	}
	if list != nil {
		*dst = list
	}
}

// skip passes over a value of any kind, checking that it is JSON.
func (s *scanner) skip() {
	if s.err == nil {
		s.broke(s.dec.SkipValue())
	}
}

// value reads any value into Go's generic form: map[string]any, []any, string, float64, bool, nil. Keys keep their
// spelling.
func (s *scanner) value() any {
	switch c := s.need(); c {
	case 0:
		return nil
	case '{':
		m := map[string]any{}
		for s.object(); s.nextExactKey(); {
			k := string(s.key)
			m[k] = s.value()
		}
		return m
	case '[':
		list := []any{}
		for s.array(); s.nextElem(); {
			list = append(list, s.value())
		}
		return list
	case '"':
		return string(s.unquoted(nil, s.raw()))
	case 't', 'f':
		s.token()
		return c == 't'
	case 'n':
		s.token()
		return nil
	default:
		b := s.raw()
		if s.err != nil {
			return nil
		}
		f, err := strconv.ParseFloat(string(b), 64)
		if err != nil {
			s.oddity("a number", "one out of range")
			return nil
		}
		return f
	}
}
