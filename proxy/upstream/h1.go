package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// h1 calls one host by HTTP/1.1. A request is written, and its answer read, by the goroutine of the caller: that is
// what makes it faster than http.Transport. Only a large body is sent by a goroutine of its own, since the answer may
// begin before the body has ended.
type h1 struct {
	pool       *Pool
	key        hostKey
	serverName string
	via        *viaTransport
	// h2 is set when the host chose HTTP/2: then http.Transport calls it.
	h2 atomic.Bool

	mu     sync.Mutex
	idle   []*conn // the one used last at the end
	closed bool
}

func newH1(p *Pool, k hostKey, serverName string) *h1 {
	return &h1{pool: p, key: k, serverName: serverName, via: &viaTransport{pool: p}}
}

// closeIdle lets go of the host: idle connections are closed now, busy ones when they fall idle.
func (c *h1) closeIdle() {
	c.mu.Lock()
	idle := c.idle
	c.idle, c.closed = nil, true
	c.mu.Unlock()
	for _, cn := range idle {
		_ = cn.c.Close()
	}
}

// forget closes the idle connections that were verified in another way than the pool's settings say now; busy ones are
// closed when they fall idle.
func (c *h1) forget() {
	if c.key.scheme != "https" {
		return
	}
	c.mu.Lock()
	idle := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, cn := range idle {
		_ = cn.c.Close()
	}
}

// reap closes what was idle for too long. The stack is in the order of use, so the old ones are at its bottom.
func (c *h1) reap(now time.Time) {
	before := now.Add(-c.pool.opts.IdleTimeout)
	c.mu.Lock()
	n := 0
	for n < len(c.idle) && c.idle[n].since.Before(before) {
		n++
	}
	old := append([]*conn(nil), c.idle[:n]...)
	c.idle = append(c.idle[:0], c.idle[n:]...)
	c.mu.Unlock()
	for _, cn := range old {
		_ = cn.c.Close()
	}
}

// take returns an idle connection, or nil.
func (c *h1) take() *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.idle)
	if n == 0 {
		return nil
	}
	cn := c.idle[n-1]
	c.idle[n-1] = nil
	c.idle = c.idle[:n-1]
	return cn
}

// give takes a connection back.
func (c *h1) give(cn *conn) {
	cn.since = time.Now()
	if len(cn.buf) > 4*connBuffer { // an answer with a large header
		cn.buf = make([]byte, connBuffer)
	}
	cn.r, cn.w = 0, 0
	c.mu.Lock()
	keep := !c.closed && len(c.idle) < c.pool.opts.MaxIdlePerHost && (cn.trust == nil || cn.trust == c.pool.settings.Load().trust)
	if keep {
		c.idle = append(c.idle, cn)
	}
	c.mu.Unlock()
	if !keep {
		_ = cn.c.Close()
	}
}

// connBuffer is the size of a connection's buffer; it grows for large headers, and large bodies go past it.
const connBuffer = 4096

var errHTTP2 = errors.New("the host speaks HTTP/2")

// dial opens a connection. errHTTP2 says that the host chose HTTP/2.
func (c *h1) dial(ctx context.Context) (*conn, error) {
	now := c.pool.settings.Load()
	nc, err := now.dialer.DialContext(ctx, "tcp", c.key.address)
	if err != nil {
		return nil, &callError{Connect, err}
	}
	cn := &conn{h: c, c: nc, buf: make([]byte, connBuffer), out: make([]byte, 0, 2048)}
	if sc, ok := nc.(syscall.Conn); ok {
		cn.raw, _ = sc.SyscallConn() // without it, connections are not probed
		cn.probe = cn.peek
	}
	if c.key.scheme != "https" {
		return cn, nil
	}
	cn.trust = now.trust
	conf := cn.trust.config.Clone()
	conf.ServerName = c.serverName
	conf.NextProtos = []string{"h2", "http/1.1"}
	tc := tls.Client(nc, conf)
	hctx, cancel := context.WithTimeout(ctx, now.connectTimeout)
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		_ = nc.Close()
		return nil, &callError{Connect, err}
	}
	if tc.ConnectionState().NegotiatedProtocol == "h2" {
		_ = nc.Close()
		return nil, errHTTP2
	}
	cn.c = tc
	return cn, nil
}

func (c *h1) roundTrip(ctx context.Context, t *target, timeout time.Duration, req *Request, res *Response) error {
	if c.h2.Load() {
		return c.via.roundTrip(ctx, t, timeout, req, res)
	}
	reuse := true
	for {
		var cn *conn
		if reuse {
			// A connection that the host has closed meanwhile would cost a request that may not be sent twice; one on
			// which it has spoken unasked would give this request the answer to another.
			for cn = c.take(); cn != nil && !cn.alive(); cn = c.take() {
				_ = cn.c.Close()
			}
		}
		reused := cn != nil
		if cn == nil {
			var err error
			dctx, cancel := context.WithTimeout(ctx, timeout)
			cn, err = c.dial(dctx)
			cancel()
			if err != nil {
				if errors.Is(err, errHTTP2) {
					c.h2.Store(true)
					return c.via.roundTrip(ctx, t, timeout, req, res)
				}
				return err
			}
		}
		err := cn.call(ctx, t, timeout, req, res)
		if err == nil {
			return nil
		}
		cn.drop()
		if reused && cn.silent && repeatable(req) && ctx.Err() == nil && !isTimeout(err) {
			reuse = false // the host had closed it: once more, on a new one
			continue
		}
		return err
	}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// conn is one connection. Between give and take nobody uses it.
type conn struct {
	h     *h1
	c     net.Conn
	trust *trust // how it was verified; nil: it has no TLS
	raw   syscall.RawConn
	probe func(fd uintptr)
	dead  bool // what probe found
	since time.Time

	// buf[r:w] is what was read and not used yet.
	buf  []byte
	r, w int
	out  []byte // the request's header, and a small body

	// One call:
	ctx      context.Context
	stop     func() bool // ends the watch of ctx; nil: not watched
	deadline time.Time   // when the wait for the header ends; zero while the body is read
	set      time.Time   // the deadline that the connection has
	silent   bool        // nothing of the answer has come
	upload   *upload
	timeout  time.Duration
	body     body
	aborted  atomic.Bool // by body.Abort; for good
}

// quick is how long a read waits before the watch over the client is set up, which most reads are spared.
const quick = 100 * time.Millisecond

// long ago, as a deadline, ends a read at once.
var longAgo = time.Unix(1, 0)

// alive says whether an idle connection is still good: open, and nothing unasked for has come.
func (cn *conn) alive() bool {
	if cn.raw == nil {
		return true
	}
	cn.dead = false
	return cn.raw.Control(cn.probe) == nil && !cn.dead
}

func (cn *conn) peek(fd uintptr) {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	cn.dead = err != syscall.EAGAIN
}

// drop closes the connection after a failure.
func (cn *conn) drop() {
	cn.unwatch()
	_ = cn.c.Close()
}

// unwatch ends the watch of the client and says whether the connection is still good for others.
func (cn *conn) unwatch() bool {
	if cn.stop == nil {
		return true
	}
	ok := cn.stop()
	cn.stop = nil
	cn.set = time.Time{}
	return ok
}

// watch makes the end of ctx end reads and writes.
func (cn *conn) watch() {
	if cn.stop == nil {
		c := cn.c
		cn.stop = context.AfterFunc(cn.ctx, func() { _ = c.SetDeadline(longAgo) }) // a closed connection needs none
	}
}

// read reads from the network into p. It ends with the client, and with the wait for the header or the silence of the
// body.
func (cn *conn) read(p []byte) (int, error) {
	for {
		now := time.Now()
		until := cn.deadline
		if until.IsZero() && cn.h.pool.opts.StreamIdleTimeout > 0 {
			until = now.Add(cn.h.pool.opts.StreamIdleTimeout)
		}
		at := until
		if cn.stop == nil {
			if at = now.Add(quick); !until.IsZero() && at.After(until) {
				at = until
			}
		}
		// The deadline that is set is left where it does.
		if cn.set.IsZero() || cn.set.After(at) || at.Sub(cn.set) > quick/2 {
			if err := cn.c.SetReadDeadline(at); err != nil {
				return 0, err
			}
			cn.set = at
		}
		if cn.stop != nil && cn.ctx.Err() != nil {
			return 0, cn.ctx.Err() // the watch may have set its deadline before ours
		}
		if cn.aborted.Load() {
			return 0, ErrAborted // likewise
		}
		if u := cn.upload; u != nil {
			if err := u.failed(); err != nil { // likewise
				return 0, err
			}
		}
		n, err := cn.c.Read(p)
		if n > 0 {
			return n, nil
		}
		if !isTimeout(err) {
			return 0, err
		}
		if cn.ctx.Err() != nil {
			return 0, cn.ctx.Err()
		}
		if cn.aborted.Load() {
			return 0, ErrAborted
		}
		cn.set = time.Time{}
		if u := cn.upload; u != nil && !cn.deadline.IsZero() {
			// The wait for the answer begins anew while the client still sends.
			if next := u.progress().Add(cn.timeout); next.After(cn.deadline) {
				cn.deadline, until = next, next
			}
			if u.reading.Load() && !time.Now().Before(until) {
				return 0, &bodyError{ErrSlowBody}
			}
		}
		if !until.IsZero() && !time.Now().Before(until) {
			return 0, err
		}
		cn.watch()
	}
}

// fill reads more into the buffer, growing it up to max bytes.
func (cn *conn) fill(max int) error {
	if cn.r > 0 {
		copy(cn.buf, cn.buf[cn.r:cn.w])
		cn.w -= cn.r
		cn.r = 0
	}
	if cn.w == len(cn.buf) {
		if len(cn.buf) >= max {
			return &callError{Protocol, errors.New("the header of the answer is larger than allowed")}
		}
		b := make([]byte, min(2*len(cn.buf), max))
		copy(b, cn.buf[:cn.w])
		cn.buf = b
	}
	n, err := cn.read(cn.buf[cn.w:])
	cn.w += n
	return err
}

// inlineBody is the size up to which a body is put behind the header and sent with it.
const inlineBody = 16 << 10

// call sends the request and reads the header of the answer.
func (cn *conn) call(ctx context.Context, t *target, timeout time.Duration, req *Request, res *Response) error {
	cn.ctx, cn.silent, cn.upload, cn.timeout = ctx, true, nil, timeout
	if cn.w > cn.r {
		// The host has spoken without being asked: what it says next could be taken for an answer to this request.
		return &callError{Protocol, errors.New("the backend sent what was not asked for")}
	}
	cn.r, cn.w = 0, 0
	cn.out = appendRequest(cn.out[:0], t, req)
	sent := req.Body == nil
	if !sent && !req.Continue && req.Length > 0 && req.Length <= inlineBody {
		head := len(cn.out)
		cn.out = append(cn.out, make([]byte, req.Length)...)
		if _, err := io.ReadFull(req.Body, cn.out[head:]); err != nil {
			if err == io.ErrUnexpectedEOF || err == io.EOF {
				err = &bodyError{io.ErrUnexpectedEOF}
			}
			cn.silent = false // not to be repeated
			return err
		}
		sent = true
	}
	cn.deadline = time.Now().Add(timeout)
	large := len(cn.out) > 4096 // what is smaller fits into any socket's buffer
	if large {
		if err := cn.c.SetWriteDeadline(cn.deadline); err != nil {
			return err
		}
	}
	if _, err := cn.c.Write(cn.out); err != nil {
		return err
	}
	if large {
		if err := cn.c.SetWriteDeadline(time.Time{}); err != nil {
			return err
		}
	}
	if cap(cn.out) > 2*inlineBody {
		cn.out = make([]byte, 0, 2048)
	}
	if !sent && req.Continue {
		early, err := cn.awaitContinue(req, res)
		if err != nil {
			return err
		}
		if early {
			return nil
		}
	}
	if !sent {
		cn.upload = newUpload(cn, req)
		if req.Length > 0 && req.Length <= inlineBody {
			cn.upload.run()
			if err := cn.upload.failed(); err != nil {
				return err
			}
		} else {
			cn.h.pool.uploads.Add(1)
			u := cn.upload
			go func() {
				defer cn.h.pool.uploads.Done()
				u.run()
			}()
		}
	}
	// Others first: by the time this goroutine runs again the answer is often there, which spares a read in vain and a
	// round through the poller.
	runtime.Gosched()
	for {
		if err := cn.readHeader(req, res); err != nil {
			if u := cn.upload; u != nil {
				if uerr := u.failed(); uerr != nil {
					return uerr
				}
			}
			return err
		}
		if res.Status >= 200 {
			break
		}
	}
	cn.deadline = time.Time{}
	res.Body = &cn.body
	return nil
}

// awaitContinue waits for the host's word on a body that was announced. early says that the answer came instead: then
// the body is not sent.
func (cn *conn) awaitContinue(req *Request, res *Response) (early bool, err error) {
	deadline := cn.deadline
	defer func() { cn.deadline = deadline }()
	if d := time.Now().Add(continueTimeout); d.Before(deadline) {
		cn.deadline = d
	}
	for {
		err := cn.readHeader(req, res)
		switch {
		case err == nil && res.Status == 100:
			return false, nil
		case err == nil && res.Status >= 200:
			cn.body.keep = false // what the host takes next would be the body
			cn.deadline = time.Time{}
			deadline = time.Time{}
			res.Body = &cn.body
			return true, nil
		case err == nil:
			continue
		case isTimeout(err) && cn.ctx.Err() == nil && cn.w == cn.r:
			return false, nil // a host that does not know Expect
		default:
			return false, err
		}
	}
}

// ErrSlowBody is the cause of a failure of kind RequestBody when the client stopped sending.
var ErrSlowBody = errors.New("the client stopped sending its body")

// upload is the sending of a body.
type upload struct {
	c       net.Conn
	body    io.Reader
	length  int64
	trailer map[string][]string
	timeout time.Duration
	last    atomic.Int64 // Unix nanoseconds of the last progress
	reading atomic.Bool  // it waits for the client, not for the backend
	done    atomic.Bool  // the whole body was sent
	mu      sync.Mutex
	err     error // of the client's side
}

func newUpload(cn *conn, req *Request) *upload {
	u := &upload{c: cn.c, body: req.Body, length: req.Length, trailer: req.Trailer, timeout: cn.timeout}
	u.last.Store(time.Now().UnixNano())
	return u
}

func (u *upload) progress() time.Time { return time.Unix(0, u.last.Load()) }

// failed returns the error of the client's side, or nil.
func (u *upload) failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

func (u *upload) fail(err error) {
	u.mu.Lock()
	u.err = err
	u.mu.Unlock()
	_ = u.c.SetReadDeadline(longAgo) // wakes who waits for the answer
}

var uploadBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// run sends the body. A backend that takes no more is no failure here: it may have answered already.
func (u *upload) run() {
	bp := uploadBuffers.Get().(*[]byte)
	defer uploadBuffers.Put(bp)
	buf := *bp
	// Room for the chunk's size before, and its end behind.
	const head, tail = 10, 2
	sent := int64(0)
	for {
		u.reading.Store(true)
		n, err := u.body.Read(buf[head : len(buf)-tail])
		u.reading.Store(false)
		if n > 0 {
			p := buf[head : head+n]
			sent += int64(n)
			if u.length < 0 {
				var size [head]byte
				s := append(strconv.AppendInt(size[:0], int64(n), 16), '\r', '\n')
				p = buf[head-len(s) : head+n+tail]
				copy(p, s)
				copy(p[len(s)+n:], "\r\n")
			} else if sent > u.length {
				u.fail(&bodyError{errors.New("the body is longer than announced")})
				return
			}
			_ = u.c.SetWriteDeadline(time.Now().Add(u.timeout)) // a closed connection fails at the write
			if _, werr := u.c.Write(p); werr != nil {
				return
			}
			u.last.Store(time.Now().UnixNano())
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			if _, known := errors.AsType[*bodyError](err); !known {
				err = &bodyError{err}
			}
			u.fail(err)
			return
		}
	}
	if u.length >= 0 {
		if sent < u.length {
			u.fail(&bodyError{io.ErrUnexpectedEOF})
			return
		}
	} else {
		end := append(buf[:0], "0\r\n"...)
		for k, v := range u.trailer {
			for _, line := range v {
				end = appendField(end, k, line)
			}
		}
		end = append(end, "\r\n"...)
		if _, err := u.c.Write(end); err != nil {
			return
		}
	}
	_ = u.c.SetWriteDeadline(time.Time{})
	u.last.Store(time.Now().UnixNano())
	u.done.Store(true)
}
