package controlplane

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxToken bounds a single string or number of a body; maxDepth bounds nesting. Both stand far above what the API
// Manager sends (the longest strings are Siddhi queries and PEM certificates).
const (
	maxToken = 16 << 20
	maxDepth = 500
)

// errTruncated says that a body ended in the middle of a value.
var errTruncated = errors.New("the body ended in the middle of a value")

// scanner is a pull parser of JSON over a stream. It holds a window of the body, never the whole. An error is sticky:
// after it every method does nothing, so that decoders read straight down and look at err once.
//
// Values of an unexpected kind never fail a body: a number where a string is expected is taken as its text, an object
// where a number is expected is skipped and counted in odd. Only text that is no JSON is an error.
type scanner struct {
	r     io.Reader
	buf   []byte
	pos   int   // next byte in buf
	end   int   // end of what was read into buf
	base  int64 // offset of buf[0] in the body
	mark  int   // start of the token being read, -1 when there is none
	eof   bool
	err   error
	first bool // just after '{' or '['
	none  bool // the container begun last was null or no container
	depth int
	key   []byte // last key in lower case, valid until the next call
	text  []byte // scratch for strings with escapes
	names map[string]string
	odd   int
	oddAt string // describes the first odd value
}

func newScanner(r io.Reader) *scanner {
	return &scanner{r: r, buf: make([]byte, 64<<10), mark: -1, names: make(map[string]string)}
}

// offset is the position in the body of the next byte.
func (s *scanner) offset() int64 { return s.base + int64(s.pos) }

func (s *scanner) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("byte %d: %s", s.offset(), fmt.Sprintf(format, args...))
	}
}

func (s *scanner) oddity(want, got string) {
	s.odd++
	if s.oddAt == "" {
		s.oddAt = fmt.Sprintf("byte %d: %s where %s is expected", s.offset(), got, want)
	}
}

// fill reads more of the body behind buf[end]. It keeps everything from mark on. It returns false at the end of the
// body or on an error.
func (s *scanner) fill() bool {
	if s.err != nil || s.eof {
		return false
	}
	keep := s.pos
	if s.mark >= 0 {
		keep = s.mark
	}
	if keep > 0 {
		copy(s.buf, s.buf[keep:s.end])
		s.base += int64(keep)
		s.pos -= keep
		s.end -= keep
		if s.mark >= 0 {
			s.mark = 0
		}
	}
	if s.end == len(s.buf) {
		if len(s.buf) >= maxToken {
			s.fail("a value is longer than %d bytes", maxToken)
			return false
		}
		bigger := make([]byte, 2*len(s.buf))
		copy(bigger, s.buf[:s.end])
		s.buf = bigger
	}
	for range 100 {
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		if err == io.EOF {
			s.eof = true
			return n > 0
		}
		if err != nil {
			if n > 0 {
				// What came before the fault is of no use: the body is not whole.
				s.pos = s.end
			}
			s.err = readError{err}
			return false
		}
		if n > 0 {
			return true
		}
	}
	s.err = readError{io.ErrNoProgress}
	return false
}

// readError marks a fault of the connection, as against one of the text.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// peek skips white space and returns the next byte, 0 at the end or on an error.
func (s *scanner) peek() byte {
	for {
		for s.pos < s.end {
			switch c := s.buf[s.pos]; c {
			case ' ', '\t', '\n', '\r':
				s.pos++
			default:
				if s.err != nil {
					return 0
				}
				return c
			}
		}
		if !s.fill() {
			return 0
		}
	}
}

// need is peek inside a value: the end of the body is an error there.
func (s *scanner) need() byte {
	c := s.peek()
	if c == 0 && s.err == nil {
		if s.pos < s.end {
			s.fail("unexpected byte 0x00")
		} else {
			s.err = errTruncated
		}
	}
	return c
}

// finish ends the document: nothing but white space may follow.
func (s *scanner) finish() {
	if c := s.peek(); s.err == nil && (c != 0 || s.pos < s.end) {
		s.fail("unexpected %q after the end of the document", c)
	}
}

func (s *scanner) begin(open byte, what string) bool {
	c := s.need()
	if s.err != nil {
		return false
	}
	if c == open {
		s.pos++
		s.depth++
		if s.depth > maxDepth {
			s.fail("nested deeper than %d", maxDepth)
			return false
		}
		s.first, s.none = true, false
		return true
	}
	if c != 'n' {
		s.oddity(what, s.kind(c))
	}
	s.skip()
	s.none = true
	return false
}

// object begins an object; nextKey then walks it. Null, and anything that is no object, is walked as an empty one.
func (s *scanner) object() bool { return s.begin('{', "an object") }

// array begins an array; nextElem then walks it. Null, and anything that is no array, is walked as an empty one.
func (s *scanner) array() bool { return s.begin('[', "an array") }

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
	if c := s.need(); s.err == nil && c != '"' {
		s.fail("unexpected %q where a key is expected", c)
	}
	s.key = append(s.key[:0], s.rawString()...)
	if c := s.need(); s.err == nil && c != ':' {
		s.fail("unexpected %q after a key", c)
	}
	if s.err != nil {
		return false
	}
	s.pos++
	return true
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
	if s.err != nil {
		return false
	}
	if c == closing {
		s.first = false
		s.pos++
		s.depth--
		return false
	}
	if s.first {
		s.first = false
		return true
	}
	if c != ',' {
		s.fail("unexpected %q where ',' or %q is expected", c, closing)
		return false
	}
	s.pos++
	return true
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

// rawString reads a string, which the caller has seen to begin with '"'. The bytes are valid until the next call.
func (s *scanner) rawString() []byte {
	if s.err != nil {
		return nil
	}
	// Nearly every string stands whole in the window and has no escapes.
	start := s.pos + 1
	for i, c := range s.buf[start:s.end] {
		if plain[c] {
			continue
		}
		if c == '"' {
			s.pos = start + i + 1
			return s.buf[start : start+i]
		}
		break
	}
	return s.longString()
}

// longString is rawString for a string that reaches over the end of the window or has bytes that need work.
func (s *scanner) longString() []byte {
	s.mark = s.pos
	defer func() { s.mark = -1 }()
	s.pos++
	for {
		for s.pos < s.end {
			c := s.buf[s.pos]
			if plain[c] {
				s.pos++
				continue
			}
			if c == '"' {
				b := s.buf[s.mark+1 : s.pos]
				s.pos++
				return b
			}
			if c < ' ' {
				s.fail("control character 0x%02x in a string", c)
				return nil
			}
			return s.slowString()
		}
		if !s.fill() {
			if s.err == nil {
				s.err = errTruncated
			}
			return nil
		}
	}
}

// plain holds the bytes that stand for themselves in a string: ASCII but for control characters, '"' and '\'.
var plain = func() (t [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// slowString goes on where rawString met an escape or a byte beyond ASCII. Like encoding/json it puts U+FFFD for what
// is no valid UTF-8 and for lone surrogates.
func (s *scanner) slowString() []byte {
	s.text = append(s.text[:0], s.buf[s.mark+1:s.pos]...)
	s.mark = -1
	for s.err == nil {
		if s.pos == s.end && !s.fill() {
			break
		}
		c := s.buf[s.pos]
		switch {
		case plain[c]:
			s.text = append(s.text, c)
			s.pos++
		case c == '"':
			s.pos++
			return s.text
		case c < ' ':
			s.fail("control character 0x%02x in a string", c)
		case c == '\\':
			s.pos++
			s.escape()
		default:
			for s.end-s.pos < utf8.UTFMax && s.fill() {
			}
			r, n := utf8.DecodeRune(s.buf[s.pos:s.end])
			s.text = utf8.AppendRune(s.text, r)
			s.pos += n
		}
		if len(s.text) > maxToken {
			s.fail("a string is longer than %d bytes", maxToken)
		}
	}
	if s.err == nil {
		s.err = errTruncated
	}
	return nil
}

func (s *scanner) escape() {
	if s.pos == s.end && !s.fill() {
		return
	}
	c := s.buf[s.pos]
	s.pos++
	switch c {
	case '"', '\\', '/':
		s.text = append(s.text, c)
	case 'b':
		s.text = append(s.text, '\b')
	case 'f':
		s.text = append(s.text, '\f')
	case 'n':
		s.text = append(s.text, '\n')
	case 'r':
		s.text = append(s.text, '\r')
	case 't':
		s.text = append(s.text, '\t')
	case 'u':
		r := s.hex4()
		for utf16.IsSurrogate(r) && s.err == nil {
			for s.end-s.pos < 2 && s.fill() {
			}
			if s.end-s.pos < 2 || s.buf[s.pos] != '\\' || s.buf[s.pos+1] != 'u' {
				r = utf8.RuneError
				break
			}
			s.pos += 2
			second := s.hex4()
			if joined := utf16.DecodeRune(r, second); joined != utf8.RuneError {
				r = joined
				break
			}
			s.text = utf8.AppendRune(s.text, utf8.RuneError)
			r = second
		}
		s.text = utf8.AppendRune(s.text, r)
	default:
		s.fail("unknown escape \\%c", c)
	}
}

func (s *scanner) hex4() rune {
	var r rune
	for range 4 {
		if s.pos == s.end && !s.fill() {
			return 0
		}
		c := s.buf[s.pos]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			s.fail("%q is no hexadecimal digit", c)
			return 0
		}
		r = r<<4 | rune(c)
		s.pos++
	}
	return r
}

// rawNumber reads a number by the grammar of JSON. The bytes are valid until the next call.
func (s *scanner) rawNumber() []byte {
	s.mark = s.pos
	defer func() { s.mark = -1 }()
	if s.at() == '-' {
		s.pos++
	}
	switch c := s.at(); {
	case c == '0':
		s.pos++
	case '1' <= c && c <= '9':
		s.digits()
	default:
		s.unexpected(c)
		return nil
	}
	if s.at() == '.' {
		s.pos++
		if !s.digits() {
			s.unexpected(s.at())
		}
	}
	if c := s.at(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.at(); c == '+' || c == '-' {
			s.pos++
		}
		if !s.digits() {
			s.unexpected(s.at())
		}
	}
	if s.err != nil {
		return nil
	}
	return s.buf[s.mark:s.pos]
}

func (s *scanner) unexpected(c byte) {
	switch {
	case s.err != nil:
	case s.pos >= s.end:
		s.err = errTruncated
	default:
		s.fail("unexpected %q", c)
	}
}

// at returns the byte at pos, 0 at the end of the body.
func (s *scanner) at() byte {
	if s.pos == s.end && !s.fill() {
		return 0
	}
	return s.buf[s.pos]
}

func (s *scanner) digits() bool {
	ok := false
	for c := s.at(); '0' <= c && c <= '9'; c = s.at() {
		s.pos++
		ok = true
	}
	return ok
}

func (s *scanner) literal(text string) {
	for i := range len(text) {
		if c := s.at(); c != text[i] {
			s.unexpected(c)
			return
		}
		s.pos++
	}
}

// scalar reads a string, number or boolean as text; ok is false for null, and for an object or array, which it skips.
func (s *scanner) scalar(want string) (text []byte, ok bool) {
	switch c := s.need(); c {
	case 0:
		return nil, false
	case '"':
		b := s.rawString()
		return b, s.err == nil
	case 'n':
		s.literal("null")
		return nil, false
	case 't':
		s.literal("true")
		return []byte("true"), s.err == nil
	case 'f':
		s.literal("false")
		return []byte("false"), s.err == nil
	case '{', '[':
		s.oddity(want, s.kind(c))
		s.skip()
		return nil, false
	default:
		b := s.rawNumber()
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
	switch c := s.need(); c {
	case 0:
	case '{':
		for s.object(); s.nextKey(); {
			s.skip()
		}
	case '[':
		for s.array(); s.nextElem(); {
			s.skip()
		}
	case '"':
		s.rawString()
	case 't':
		s.literal("true")
	case 'f':
		s.literal("false")
	case 'n':
		s.literal("null")
	default:
		s.rawNumber()
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
		return string(s.rawString())
	case 't':
		s.literal("true")
		return true
	case 'f':
		s.literal("false")
		return false
	case 'n':
		s.literal("null")
		return nil
	default:
		b := s.rawNumber()
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
