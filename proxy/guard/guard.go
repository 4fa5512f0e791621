// Package guard stands between a connection and net/http's server and follows the framing of HTTP/1 requests. What two
// parsers could read in two ways is refused with 400: both Content-Length and Transfer-Encoding, a repeated or odd length,
// a bare LF, a folded field. Limits of the request line and the header are kept here as well, to the byte.
//
// The guard passes the bytes on as they are; it never buffers. HTTP/2 connections pass through.
package guard

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"time"
)

// Limits are what a request may use. Zero means none.
type Limits struct {
	URI    int // bytes of the request target
	Header int // bytes of request line and header
}

// Refuse returns the whole answer to a request that is refused, status line and all. It is called with 400, 414 or 431.
type Refuse func(status int) []byte

// Conn is a guarded connection. It is used as net/http uses connections: one reader at a time.
type Conn struct {
	net.Conn
	limits Limits
	refuse Refuse

	state    state
	bad      bool // a request is refused; status says how, 0 within a body
	status   int
	broken   error // a body was given up
	held     byte  // the first byte of the bad line
	answered bool
	begun    bool   // a request came before: what looks like the preface of HTTP/2 is none
	line     []byte // of the current line, what was read before; only where it spans reads
	lines    int    // of the current header
	size     int    // bytes of the current header
	old      bool   // HTTP/1.0
	lengths  int    // fields seen
	length   int64
	chunked  int
	left     int64 // bytes of the body or the chunk
}

type state uint8

const (
	inHeader    state = iota
	inBody            // of a known length
	inChunkSize       // the line before a chunk
	inChunk
	inChunkEnd // the CRLF behind it
	inTrailer
	through // not HTTP/1: nothing is looked at any more
)

// New guards a connection.
func New(c net.Conn, l Limits, r Refuse) *Conn { return &Conn{Conn: c, limits: l, refuse: r} }

// Errors that end a connection.
var (
	errRefused = errors.New("the request was refused: its framing is ambiguous or it is too large")
	errFraming = errors.New("the request body's framing is malformed")
)

// maxLine bounds a line of chunked framing.
const maxLine = 4096

// Read passes bytes on up to the line that may not be.
func (c *Conn) Read(p []byte) (int, error) {
	if c.bad {
		return c.end(p)
	}
	if c.broken != nil {
		return 0, c.broken
	}
	n, err := c.Conn.Read(p)
	if n == 0 && len(p) > 1 && c.within() && errors.Is(err, os.ErrDeadlineExceeded) {
		// The wait for the rest of a body is given up. net/http may keep the connection all the same, and what comes of the
		// body later would be the next request to it. (Reads of a single byte are its watch over the client, which ends so.)
		c.broken = err
	}
	if n == 0 || c.state == through {
		return n, err
	}
	good, ok := c.scan(p[:n])
	if ok {
		return n, err
	}
	c.bad = true
	if good > 0 {
		// The bytes before the bad line go on: requests before this one are good, and this one cannot end.
		if n > good {
			c.held = p[good]
		}
		return good, nil
	}
	return c.end(p)
}

// within says whether a body is not whole yet.
func (c *Conn) within() bool { return c.state != inHeader && c.state != through }

// end answers a bad request and ends the connection. net/http reads a single byte while a handler runs, to see a client
// that goes away: that must not be taken for the time to answer, so it gets a byte of the bad line.
func (c *Conn) end(p []byte) (int, error) {
	if len(p) == 1 && c.held > ' ' {
		p[0], c.held = c.held, 0
		return 1, nil
	}
	if c.status == 0 {
		return 0, errFraming
	}
	if !c.answered {
		c.answered = true
		// Nobody else writes now: the answer before this one is complete, and no handler runs.
		if b := c.refuse(c.status); len(b) > 0 {
			_, _ = c.Write(b) // a client that went away needs no answer
		}
		c.lingeringClose()
	}
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: errRefused} // net/http writes nothing for it
}

// linger is how long the rest of a refused request is read, so that the client gets the answer before the reset that
// unread bytes would cause.
const linger = 500 * time.Millisecond

func (c *Conn) lingeringClose() {
	if c.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(linger)) != nil {
		return
	}
	var b [4096]byte
	for range 64 {
		if _, err := c.Conn.Read(b[:]); err != nil {
			return
		}
	}
}

// CloseWrite ends our side of the connection; net/http's server does so before it closes one with unread input.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

var preface = []byte("PRI * HTTP/2.0")

// scan follows the bytes. ok false means that the request is refused (c.status); good is then where the bad line begins.
func (c *Conn) scan(p []byte) (good int, ok bool) {
	for b := p; len(b) > 0; {
		good = len(p) - len(b)
		switch c.state {
		case through:
			return 0, true
		case inBody, inChunk:
			n := min(int64(len(b)), c.left)
			c.left -= n
			b = b[n:]
			if c.left == 0 {
				if c.state == inBody {
					c.begin()
				} else {
					c.state = inChunkEnd
				}
			}
		default:
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				if c.state == inHeader && !c.room(len(b)) || c.state != inHeader && len(c.line)+len(b) > maxLine {
					c.status = c.tooLarge(len(c.line) + len(b))
					return good, false
				}
				c.line = append(c.line, b...)
				return 0, true
			}
			line := b[:i+1]
			if len(c.line) > 0 {
				line = append(c.line, line...)
				c.line = line[:0]
			}
			b = b[i+1:]
			if c.state == inHeader {
				c.size += len(line)
				if c.limits.Header > 0 && c.size > c.limits.Header {
					c.status = c.tooLarge(len(line))
					return good, false
				}
			} else if len(line) > maxLine {
				return good, false
			}
			header := c.state == inHeader
			if status := c.take(line); status != 0 {
				if header {
					c.status = status
				}
				return good, false
			}
		}
	}
	return 0, true
}

// room says whether n more bytes of an unfinished line fit.
func (c *Conn) room(n int) bool {
	return c.limits.Header <= 0 || c.size+len(c.line)+n <= c.limits.Header
}

// tooLarge says how a header is refused whose current line has n bytes so far.
func (c *Conn) tooLarge(n int) int {
	if c.state != inHeader {
		return 0
	}
	if c.lines == 0 && c.limits.URI > 0 && n > c.limits.URI {
		return http.StatusRequestURITooLong
	}
	return http.StatusRequestHeaderFieldsTooLarge
}

// begin makes ready for the next request.
func (c *Conn) begin() {
	c.begun = true
	c.state, c.lines, c.size, c.lengths, c.length, c.chunked, c.old = inHeader, 0, 0, 0, 0, 0, false
}

// take looks at a whole line with its LF. It returns the status to refuse with, 0 for none.
func (c *Conn) take(line []byte) int {
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return http.StatusBadRequest
	}
	line = line[:len(line)-2]
	if bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0 {
		return http.StatusBadRequest
	}
	switch c.state {
	case inHeader:
		return c.headerLine(line)
	case inChunkSize:
		n, ok := chunkSize(line)
		if !ok {
			return http.StatusBadRequest
		}
		if c.left = n; n == 0 {
			c.state = inTrailer
		} else {
			c.state = inChunk
		}
	case inChunkEnd:
		if len(line) > 0 {
			return http.StatusBadRequest
		}
		c.state = inChunkSize
	case inTrailer:
		if len(line) == 0 {
			c.begin()
		} else if c.size += len(line); c.limits.Header > 0 && c.size > 2*c.limits.Header {
			return http.StatusBadRequest
		}
	}
	return 0
}

func (c *Conn) headerLine(line []byte) int {
	if len(line) == 0 {
		if c.lines == 0 {
			return 0 // an empty line before a request, as old clients send
		}
		switch {
		case c.chunked > 0 && (c.lengths > 0 || c.old || c.chunked > 1):
			return http.StatusBadRequest
		case c.chunked > 0:
			c.state = inChunkSize
		case c.length > 0:
			c.state, c.left = inBody, c.length
		default:
			c.begin()
		}
		return 0
	}
	c.lines++
	if c.lines == 1 {
		return c.requestLine(line)
	}
	if line[0] == ' ' || line[0] == '\t' {
		return http.StatusBadRequest // folded
	}
	i := bytes.IndexByte(line, ':')
	if i <= 0 || line[i-1] == ' ' || line[i-1] == '\t' {
		return http.StatusBadRequest
	}
	switch i {
	case len("Content-Length"):
		if !bytes.EqualFold(line[:i], contentLength) {
			return 0
		}
		n, ok := decimal(bytes.Trim(line[i+1:], " \t"))
		if !ok || c.lengths > 0 {
			return http.StatusBadRequest
		}
		c.lengths, c.length = 1, n
	case len("Transfer-Encoding"):
		if !bytes.EqualFold(line[:i], transferEncoding) {
			return 0
		}
		if !bytes.EqualFold(bytes.Trim(line[i+1:], " \t"), chunked) {
			return http.StatusBadRequest
		}
		c.chunked++
	}
	return 0
}

var contentLength, transferEncoding, chunked = []byte("Content-Length"), []byte("Transfer-Encoding"), []byte("chunked")

func (c *Conn) requestLine(line []byte) int {
	if !c.begun && bytes.Equal(line, preface) {
		c.state = through
		return 0
	}
	i, j := bytes.IndexByte(line, ' '), bytes.LastIndexByte(line, ' ')
	if i <= 0 || j <= i+1 {
		return http.StatusBadRequest
	}
	if c.limits.URI > 0 && j-i-1 > c.limits.URI {
		return http.StatusRequestURITooLong
	}
	switch v := line[j+1:]; {
	case bytes.Equal(v, http11):
	case bytes.Equal(v, http10):
		c.old = true
	default:
		return http.StatusBadRequest
	}
	return 0
}

var http11, http10 = []byte("HTTP/1.1"), []byte("HTTP/1.0")

func decimal(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int64(c-'0')
	}
	return n, true
}

func chunkSize(b []byte) (n int64, ok bool) {
	if i := bytes.IndexByte(b, ';'); i >= 0 {
		b = b[:i]
	}
	b = bytes.TrimRight(b, " \t")
	if len(b) == 0 || len(b) > 15 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | int64(c)
	}
	return n, true
}
