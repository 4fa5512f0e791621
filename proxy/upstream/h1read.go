package upstream

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
)

func malformed(what string) error {
	return &callError{Protocol, errors.New("the answer is malformed: " + what)}
}

// head is the parsed header of an answer.
type head struct {
	status  int
	minor   byte // of HTTP/1.x
	length  int64
	chunked bool
	close   bool // "Connection: close"
	keep    bool // "Connection: keep-alive"
	trailer []string
	tokens  []string // further fields that Connection names
}

// readHeader reads one header. An informational one is passed on, and leaves res.Status below 200.
func (cn *conn) readHeader(req *Request, res *Response) error {
	limit := cn.h.pool.opts.MaxHeaderBytes
	from := 0
	for {
		if i := headerEnd(cn.buf[cn.r:cn.w], from); i >= 0 {
			block := string(cn.buf[cn.r : cn.r+i])
			cn.r += i
			return cn.accept(block, req, res)
		}
		from = max(cn.w-cn.r-3, 0)
		if err := cn.fill(limit); err != nil {
			if errors.Is(err, io.EOF) {
				if cn.w > cn.r || !cn.silent {
					err = io.ErrUnexpectedEOF
				}
			}
			return err
		}
		cn.silent = false
	}
}

// headerEnd returns the length of a header with its empty line, -1 when it is not whole. Lines end with CRLF; a bare LF
// is found by the parser.
func headerEnd(b []byte, from int) int {
	if i := bytes.Index(b[from:], crlfcrlf); i >= 0 {
		return from + i + 4
	}
	if i := bytes.Index(b[from:], lflf); i >= 0 {
		return from + i + 2
	}
	return -1
}

var crlfcrlf, lflf = []byte("\r\n\r\n"), []byte("\n\n")

// accept parses a header and prepares the body.
func (cn *conn) accept(block string, req *Request, res *Response) error {
	line, rest, err := cutLine(block)
	if err != nil {
		return err
	}
	h := head{length: -1}
	if h.status, h.minor, err = parseStatusLine(line); err != nil {
		return err
	}
	res.Status = h.status
	if h.status < 200 {
		if h.status == http.StatusSwitchingProtocols {
			return malformed("it switches protocols without being asked")
		}
		info := http.Header{}
		if err := h.parse(rest, info); err != nil {
			return err
		}
		if h.status != http.StatusContinue && req.Informer != nil {
			req.Informer.Informational(h.status, info)
		}
		return nil
	}
	if err := h.parse(rest, res.Header); err != nil {
		return err
	}
	for _, t := range h.tokens {
		delete(res.Header, t)
	}
	b := &cn.body
	*b = body{cn: cn, res: res, mode: toClose, keep: !h.close && (h.minor == 1 || h.keep)}
	res.Length = -1
	switch {
	case req.Method == "HEAD" || h.status == http.StatusNoContent || h.status == http.StatusNotModified:
		b.mode, res.Length = byLength, 0
		if req.Method == "HEAD" {
			res.Length, res.Announced = h.length, h.trailer
		}
		if h.status == http.StatusNoContent {
			delete(res.Header, "Content-Length")
		}
		b.ended = true
	case h.chunked:
		b.mode = byChunks
		res.Announced = h.trailer
	case h.length >= 0:
		b.mode, b.left, res.Length = byLength, h.length, h.length
		b.ended = h.length == 0
	default:
		b.keep = false
	}
	return nil
}

// cutLine takes a line off a block; it must end with CRLF.
func cutLine(s string) (line, rest string, err error) {
	i := strings.IndexByte(s, '\n')
	if i < 1 || s[i-1] != '\r' {
		return "", "", malformed("a line does not end with CRLF")
	}
	return s[:i-1], s[i+1:], nil
}

func parseStatusLine(l string) (status int, minor byte, err error) {
	// HTTP/1.1 200 OK
	if len(l) < 12 || l[:7] != "HTTP/1." || l[7] != '0' && l[7] != '1' || l[8] != ' ' || len(l) > 12 && l[12] != ' ' {
		return 0, 0, malformed("bad status line")
	}
	for _, c := range []byte(l[9:12]) {
		if c < '0' || c > '9' {
			return 0, 0, malformed("bad status")
		}
		status = 10*status + int(c-'0')
	}
	if status < 100 || status > 599 {
		return 0, 0, malformed("bad status")
	}
	if !validValue(l) {
		return 0, 0, malformed("bad status line")
	}
	return status, l[7] - '0', nil
}

// parse reads the fields of a block into h, without those of the connection.
func (d *head) parse(s string, h http.Header) error {
	values := make([]string, strings.Count(s, "\n"))
	var te, cl bool
	for i := 0; ; i++ {
		line, rest, err := cutLine(s)
		if err != nil {
			return err
		}
		if line == "" {
			if rest != "" {
				return malformed("an empty line within the header")
			}
			break
		}
		s = rest
		name, value, ok := strings.Cut(line, ":")
		if !ok || !validName(name) {
			return malformed("bad field name")
		}
		value = strings.Trim(value, " \t")
		if !validValue(value) {
			return malformed("bad field value")
		}
		name = canonicalName(name)
		switch name {
		case "Content-Length":
			n, ok := parseLength(value)
			if !ok || cl && n != d.length {
				return malformed("bad Content-Length")
			}
			if cl {
				continue
			}
			cl, d.length = true, n
		case "Transfer-Encoding":
			if te || !strings.EqualFold(value, "chunked") {
				return malformed("unknown Transfer-Encoding")
			}
			te, d.chunked = true, true
			continue
		case "Connection":
			for t := range strings.SplitSeq(value, ",") {
				switch t = strings.TrimSpace(t); {
				case strings.EqualFold(t, "close"):
					d.close = true
				case strings.EqualFold(t, "keep-alive"):
					d.keep = true
				case t != "":
					d.tokens = append(d.tokens, canonicalName(t))
				}
			}
			continue
		case "Trailer":
			for t := range strings.SplitSeq(value, ",") {
				if t = strings.TrimSpace(t); validName(t) && !badTrailer(canonicalName(t)) {
					d.trailer = append(d.trailer, canonicalName(t))
				}
			}
			continue
		}
		if hopByHop(name) {
			continue
		}
		if had := h[name]; had != nil {
			h[name] = append(had, value)
			continue
		}
		values[i] = value
		h[name] = values[i : i+1 : i+1]
	}
	if te && (cl || d.minor == 0) {
		return malformed("both Transfer-Encoding and Content-Length, or Transfer-Encoding in HTTP/1.0")
	}
	return nil
}

func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int64(s[i]-'0')
	}
	return n, true
}

// badTrailer says whether a field may not stand in a trailer.
func badTrailer(name string) bool {
	switch name {
	case "Content-Length", "Transfer-Encoding", "Trailer", "Host", "Authorization", "Content-Encoding", "Content-Type", "Content-Range", "Set-Cookie":
		return true
	}
	return hopByHop(name)
}

// token marks the characters of a field name.
var token = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return t
}()

func validName(s string) bool {
	for i := 0; i < len(s); i++ {
		if !token[s[i]] {
			return false
		}
	}
	return s != ""
}

func validValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

type mode uint8

const (
	byLength mode = iota
	byChunks
	toClose
)

// body is the body of an answer, read from its connection. It belongs to one call.
type body struct {
	cn    *conn
	res   *Response
	mode  mode
	keep  bool  // the connection may be used again
	ended bool  // the whole body was read
	begun bool  // a chunk was begun: its end must come before the next one
	left  int64 // of the body, or of the chunk
}

func (b *body) Read(p []byte) (int, error) {
	cn := b.cn
	if cn == nil {
		return 0, errors.New("the body was closed")
	}
	if b.ended {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.mode == byChunks {
		n, err := b.readChunks(p)
		if err != nil && !errors.Is(err, io.EOF) {
			b.keep = false
			if errors.Is(err, io.ErrUnexpectedEOF) || isTimeout(err) || cn.ctx.Err() != nil {
				return n, err
			}
		}
		return n, err
	}
	if b.mode == byLength && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.some(p)
	if b.mode == byLength {
		b.left -= int64(n)
		if b.left == 0 {
			b.ended = true
			return n, nil
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
	} else if errors.Is(err, io.EOF) {
		b.ended = true
	}
	if err != nil {
		b.keep = false
	}
	return n, err
}

// some reads what there is: of the buffer first, else straight from the network.
func (b *body) some(p []byte) (int, error) {
	cn := b.cn
	if cn.r < cn.w {
		n := copy(p, cn.buf[cn.r:cn.w])
		cn.r += n
		return n, nil
	}
	cn.r, cn.w = 0, 0
	return cn.read(p)
}

// readChunks reads out of as many chunks as have arrived.
func (b *body) readChunks(p []byte) (n int, err error) {
	cn := b.cn
	for {
		if b.left > 0 {
			q := p[n:]
			if int64(len(q)) > b.left {
				q = q[:b.left]
			}
			m, err := b.some(q)
			n += m
			b.left -= int64(m)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil || n == len(p) || cn.r == cn.w {
				// What has come is passed on before more is waited for, but for an end that is here already.
				return n, err
			}
			continue
		}
		// A chunk's end, and the size of the next one.
		if n > 0 && !b.lineBuffered() {
			return n, nil
		}
		if b.begun {
			line, err := b.line()
			if err != nil {
				return n, err
			}
			if line != "" {
				return n, malformed("a chunk does not end where it should")
			}
			b.begun = false
			continue
		}
		line, err := b.line()
		if err != nil {
			return n, err
		}
		size, ok := parseChunkSize(line)
		if !ok {
			return n, malformed("bad chunk size")
		}
		if size == 0 {
			if err := b.trailers(); err != nil {
				return n, err
			}
			b.ended = true
			return n, io.EOF
		}
		b.left, b.begun = size, true
	}
}

// lineBuffered says whether a whole line can be read without waiting.
func (b *body) lineBuffered() bool {
	return bytes.IndexByte(b.cn.buf[b.cn.r:b.cn.w], '\n') >= 0
}

// maxChunkLine bounds the line of a chunk's size with its extensions.
const maxChunkLine = 4096

// line reads a line that ends with CRLF.
func (b *body) line() (string, error) {
	cn := b.cn
	for {
		if i := bytes.IndexByte(cn.buf[cn.r:cn.w], '\n'); i >= 0 {
			l := cn.buf[cn.r : cn.r+i]
			cn.r += i + 1
			if len(l) == 0 || l[len(l)-1] != '\r' {
				return "", malformed("a line of the body's frame does not end with CRLF")
			}
			if len(l) == 1 {
				return "", nil
			}
			return string(l[:len(l)-1]), nil
		}
		if cn.w-cn.r > maxChunkLine {
			return "", malformed("a line of the body's frame is too long")
		}
		if err := cn.fill(max(len(cn.buf), 2*maxChunkLine)); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
}

func parseChunkSize(l string) (n int64, ok bool) {
	l, ext, _ := strings.Cut(l, ";")
	l = strings.TrimRight(l, " \t")
	if l == "" || len(l) > 15 || !validValue(ext) {
		return 0, false
	}
	for i := 0; i < len(l); i++ {
		var d byte
		switch c := l[i]; {
		case '0' <= c && c <= '9':
			d = c - '0'
		case 'a' <= c && c <= 'f':
			d = c - 'a' + 10
		case 'A' <= c && c <= 'F':
			d = c - 'A' + 10
		default:
			return 0, false
		}
		n = n<<4 | int64(d)
	}
	return n, true
}

// trailers reads the fields behind the last chunk.
func (b *body) trailers() error {
	total := 0
	for {
		l, err := b.line()
		if err != nil {
			return err
		}
		if l == "" {
			return nil
		}
		if total += len(l); total > b.cn.h.pool.opts.MaxHeaderBytes {
			return malformed("the trailer is larger than allowed")
		}
		name, value, ok := strings.Cut(l, ":")
		value = strings.Trim(value, " \t")
		if !ok || !validName(name) || !validValue(value) {
			return malformed("bad field in the trailer")
		}
		if name = canonicalName(name); badTrailer(name) {
			continue
		}
		if b.res.Trailer == nil {
			b.res.Trailer = http.Header{}
		}
		b.res.Trailer[name] = append(b.res.Trailer[name], value)
	}
}

// Ready implements Aborter.
func (b *body) Ready() bool { return b.ended || b.cn != nil && b.cn.r < b.cn.w }

// Abort implements Aborter.
func (b *body) Abort() {
	if cn := b.cn; cn != nil {
		cn.aborted.Store(true)
		_ = cn.c.SetDeadline(longAgo) // on a closed connection reads fail anyway
	}
}

// Close gives the connection back when the answer was read to its end and the request sent to its own; else it closes
// it.
func (b *body) Close() error {
	cn := b.cn
	if cn == nil {
		return nil
	}
	b.cn = nil
	good := cn.unwatch() && !cn.aborted.Load()
	if b.mode == byChunks && !b.ended && b.left == 0 && b.keep {
		// The reader stopped at the last byte; the end of the body is usually here already.
		b.cn = cn
		if b.lineBuffered() {
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				b.keep = false
			}
		}
		b.cn = nil
	}
	if !good || !b.ended || !b.keep || cn.r != cn.w || cn.upload != nil && !cn.upload.done.Load() {
		return cn.c.Close()
	}
	cn.ctx, cn.upload, b.res = nil, nil, nil
	cn.h.give(cn)
	return nil
}
