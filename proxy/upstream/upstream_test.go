package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gatehouse/proxy/definition"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pool(t testing.TB, o Options) *Pool {
	t.Helper()
	p, err := NewPool(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func open(t testing.TB, p *Pool, urls ...string) *Endpoint {
	t.Helper()
	e, err := p.Open(&definition.Endpoint{Kind: definition.LoadBalance, URLs: urls})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func call(t testing.TB, e *Endpoint) (status int, body string, err error) {
	t.Helper()
	res := Response{Header: http.Header{}}
	if err := e.Call(t.Context(), &Request{Method: "GET", Path: "/", Header: http.Header{}}, &res); err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.Status, string(b), err
}

// counted is a server that counts its connections.
func counted(t testing.TB) (url string, opened, closed *atomic.Int64) {
	opened, closed = new(atomic.Int64), new(atomic.Int64)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		switch st {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			closed.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.URL, opened, closed
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatal("did not come true: " + what)
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	url, opened, _ := counted(t)
	e := open(t, pool(t, Options{}), url)
	for range 10 {
		if s, b, err := call(t, e); s != 200 || b != "ok" || err != nil {
			t.Fatal(s, b, err)
		}
	}
	if opened.Load() != 1 {
		t.Errorf("%d connections for ten requests in a row", opened.Load())
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	url, _, closed := counted(t)
	e := open(t, pool(t, Options{IdleTimeout: 100 * time.Millisecond}), url)
	if _, _, err := call(t, e); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the idle connection is closed", func() bool { return closed.Load() == 1 })
	if s, _, err := call(t, e); s != 200 || err != nil {
		t.Error(s, err)
	}
}

func TestHostsAreCounted(t *testing.T) {
	url, opened, closed := counted(t)
	p := pool(t, Options{})
	a := open(t, p, url)
	b := open(t, p, url+"/other")
	if p.Hosts() != 1 {
		t.Errorf("%d hosts", p.Hosts())
	}
	_, _, _ = call(t, a)
	a.Release()
	if s, _, err := call(t, b); s != 200 || err != nil || opened.Load() != 1 {
		t.Errorf("the connection did not survive: %d %v, %d opened", s, err, opened.Load())
	}
	b.Release()
	if p.Hosts() != 0 {
		t.Errorf("%d hosts", p.Hosts())
	}
	eventually(t, "the idle connection is closed", func() bool { return closed.Load() == 1 })
	// A request that began before the change still finishes, and leaves no connection behind.
	if s, _, err := call(t, b); s != 200 || err != nil {
		t.Error(s, err)
	}
	eventually(t, "its connection is closed", func() bool { return closed.Load() == 2 })
}

func TestBodyThatIsNotReadToItsEnd(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) }))
	defer s.Close()
	e := open(t, pool(t, Options{}), s.URL)
	for range 3 {
		res := Response{Header: http.Header{}}
		if err := e.Call(t.Context(), &Request{Method: "GET", Header: http.Header{}}, &res); err != nil {
			t.Fatal(err)
		}
		_, _ = io.CopyN(io.Discard, res.Body, 100)
		res.Body.Close()
	}
	if len(e.targets[0].host.client.(*h1).idle) != 0 {
		t.Error("a connection with the rest of a body was kept")
	}
}

func TestBytesThatNobodyAskedFor(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer ln.Close()
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					// Two answers to one request: the second must never be taken for the answer to the next one.
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine")
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsmuggl")
				}
			})
		}
	})
	p := pool(t, Options{})
	defer p.Close() // before the wait for the backend's connections
	e := open(t, p, "http://"+ln.Addr().String())
	c := e.targets[0].host.client.(*h1)
	for i := range 20 {
		res := Response{Header: http.Header{}}
		method := []string{"GET", "POST"}[i%2]
		if err := e.Call(t.Context(), &Request{Method: method, Header: http.Header{}}, &res); err != nil {
			continue // refusing is right as well
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(b) != "mine" {
			t.Fatalf("request %d got %q", i, b)
		}
		// Between the look at an idle connection and the request there will always be a moment; here is none.
		eventually(t, "the second answer has arrived", func() bool { return len(c.idle) == 0 || !c.idle[0].alive() })
	}
}

func TestErrorsSayWhatFailed(t *testing.T) {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	dead := ln.Addr().String()
	ln.Close()
	e := open(t, pool(t, Options{}), "http://"+dead)
	_, _, err := call(t, e)
	var ce *Error
	if !errors.As(err, &ce) || ce.Kind != Connect || ce.Host != dead {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Call(ctx, &Request{Method: "GET", Header: http.Header{}}, &Response{Header: http.Header{}}); KindOf(err) != Canceled {
		t.Errorf("%v", err)
	}
	for _, bad := range []definition.Endpoint{{}, {URLs: []string{"x"}}, {URLs: []string{"http://"}}, {URLs: []string{"http://h/#f"}}, {URLs: []string{"http://h:x"}}, {Kind: "x", URLs: []string{"http://h"}}} {
		if _, err := pool(t, Options{}).Open(&bad); !errors.Is(err, ErrEndpoint) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := pool(t, Options{}).Open(&definition.Endpoint{URLs: []string{"ftp://user:secret@h"}}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// fixed is a connection that gives one answer.
type fixed struct {
	net.Conn
	r io.Reader
}

func (f *fixed) Read(p []byte) (int, error)         { return f.r.Read(p) }
func (f *fixed) Write(p []byte) (int, error)        { return len(p), nil }
func (f *fixed) Close() error                       { return nil }
func (f *fixed) SetReadDeadline(time.Time) error    { return nil }
func (f *fixed) SetWriteDeadline(t time.Time) error { return nil }

// parse reads an answer with the own client.
func parse(p *Pool, in []byte, method string) (res Response, body []byte, reused bool, err error) {
	h := &h1{pool: p}
	cn := &conn{h: h, c: &fixed{r: bytes.NewReader(in)}, buf: make([]byte, len(in)+64)}
	res.Header = http.Header{}
	t := &target{authority: "h"}
	if err := cn.call(context.Background(), t, time.Minute, &Request{Method: method, Header: http.Header{}}, &res); err != nil {
		return res, nil, false, err
	}
	body, err = io.ReadAll(res.Body)
	res.Body.Close()
	return res, body, len(h.idle) == 1, err
}

// FuzzResponse: an answer that the own client takes whole is taken by net/http in the same way; a connection that is
// used again has no byte left.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX-T: v\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\nuntil close",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: close, X-A\r\nX-A: 1\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	p, err := NewPool(Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.Close)
	f.Fuzz(func(t *testing.T, in []byte, head bool) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		res, body, reused, err := parse(p, in, method)
		if err != nil {
			return
		}
		r := bufio.NewReader(bytes.NewReader(in))
		var ref *http.Response
		for {
			if ref, err = http.ReadResponse(r, &http.Request{Method: method}); err != nil {
				t.Fatalf("net/http refuses %q: %v", in, err)
			}
			if ref.StatusCode >= 200 || ref.StatusCode == 101 {
				break
			}
		}
		want, err := io.ReadAll(ref.Body)
		if err != nil {
			t.Fatalf("net/http refuses the body of %q: %v", in, err)
		}
		if res.Status != ref.StatusCode || !bytes.Equal(body, want) {
			t.Fatalf("%q: %d %q, net/http has %d %q", in, res.Status, body, ref.StatusCode, want)
		}
		rest, _ := io.ReadAll(r)
		if reused && len(rest) > 0 {
			t.Fatalf("%q: the connection is kept with %q left", in, rest)
		}
		for k := range res.Header {
			if hopByHop(k) {
				t.Fatalf("%q: %s was passed on", in, k)
			}
		}
	})
}

func TestRequestHead(t *testing.T) {
	for _, c := range []struct {
		name string
		t    target
		r    Request
		want string
	}{
		{"plain", target{authority: "h:1", base: "/b"}, Request{Method: "GET", Path: "/x", Query: "a=1"}, "GET /b/x?a=1 HTTP/1.1\r\nHost: h:1\r\n\r\n"},
		{"root", target{authority: "h"}, Request{Method: "GET"}, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
		{"query of the endpoint", target{authority: "h", query: "k=v"}, Request{Method: "GET", Path: "/x", Query: "a=1"}, "GET /x?k=v&a=1 HTTP/1.1\r\nHost: h\r\n\r\n"},
		{"blanks are encoded", target{authority: "h"}, Request{Method: "GET", Path: "/a b\r\nX: y"}, "GET /a%20b%0D%0AX:%20y HTTP/1.1\r\nHost: h\r\n\r\n"},
		{"no body of a POST", target{authority: "h"}, Request{Method: "POST", Path: "/"}, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"},
		{"length", target{authority: "h"}, Request{Method: "POST", Path: "/", Body: strings.NewReader("ab"), Length: 2, Header: http.Header{"Content-Length": {"7"}, "Transfer-Encoding": {"x"}}}, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n"},
		{"chunks, trailer", target{authority: "h"}, Request{Method: "POST", Path: "/", Body: strings.NewReader("ab"), Length: -1, Trailer: http.Header{"X-T": nil}}, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"},
		{"fields replace", target{authority: "h"}, Request{Method: "GET", Header: http.Header{"X-A": {"1", "2"}, "X-B": {"1"}}, Fields: []Field{{"X-A", "3"}, {"X-B", ""}}}, "GET / HTTP/1.1\r\nHost: h\r\nX-A: 3\r\n\r\n"},
		{"connection's own fields", target{authority: "h"}, Request{Method: "GET", Header: http.Header{"Connection": {"close, x-hop"}, "X-Hop": {"1"}}}, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
		{"credential of the endpoint", target{authority: "h", authorization: "Basic x"}, Request{Method: "GET", Header: http.Header{"Authorization": {"Bearer y"}}}, "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic x\r\n\r\n"},
		{"expect", target{authority: "h"}, Request{Method: "POST", Continue: true, Body: strings.NewReader("a"), Length: 1}, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"},
	} {
		if got := string(appendRequest(nil, &c.t, &c.r)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	p := pool(b, Options{})
	answer := []byte("HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Tue, 24 Nov 2026 07:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024))
	h := &h1{pool: p}
	src := bytes.NewReader(answer)
	cn := &conn{h: h, c: &fixed{r: src}, buf: make([]byte, connBuffer)}
	t := &target{authority: "h"}
	req := &Request{Method: "GET", Path: "/items", Header: http.Header{"Accept": {"*/*"}, "User-Agent": {"bench"}}, Fields: []Field{{"X-Forwarded-For", "127.0.0.1"}, {"X-Request-Id", "0123456789abcdef0123456789abcdef"}}}
	buf := make([]byte, 4096)
	var res Response
	header := http.Header{}
	b.ReportAllocs()
	for b.Loop() {
		src.Reset(answer)
		clear(header)
		res = Response{Header: header}
		if err := cn.call(context.Background(), t, time.Minute, req, &res); err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := res.Body.Read(buf); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
		res.Body.Close()
		h.idle = h.idle[:0]
	}
}
