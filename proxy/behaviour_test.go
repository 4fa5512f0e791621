package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // for the reference proxy
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/proxy/definition"
	"gatehouse/proxy/upstream"
)

// gateway is a running proxy with one unsecured API "/a/1" in front of a backend.
type gateway struct {
	*Proxy
	url, tlsURL string
	log         *syncBuffer
	client      *http.Client
	stop        func()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

var allMethods = []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"}

func anyAPI(ep *definition.Endpoint) *definition.API {
	a := &definition.API{UUID: "a", Name: "A", Version: "1", Context: "/a/1", Production: ep}
	for _, m := range allMethods {
		a.Operations = append(a.Operations, definition.Operation{Template: "/*", Method: m, Unsecured: true})
	}
	return a
}

func single(url string) *definition.Endpoint {
	return &definition.Endpoint{Kind: definition.Single, URLs: []string{url}}
}

func start(t testing.TB, o Options, apis ...*definition.API) *gateway {
	t.Helper()
	if o.HTTP == "" {
		o.HTTP = "127.0.0.1:0"
	}
	if o.DrainPause == 0 {
		o.DrainPause = time.Millisecond
	}
	g := &gateway{log: &syncBuffer{}}
	if o.AccessLog == nil {
		o.AccessLog = g.log
	}
	if o.TracesAdmitted == 0 {
		o.TracesAdmitted, o.TracesRefused = 100, 100
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	g.Proxy = p
	if refused := p.SetAPIs(apis); len(refused) > 0 {
		t.Fatal(refused)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	plain, secure := p.Addr()
	g.url, g.tlsURL = "http://"+plain, "https://"+secure
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	g.client = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	g.stop = sync.OnceFunc(func() {
		cancel()
		tr.CloseIdleConnections()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run did not end")
		}
	})
	t.Cleanup(g.stop)
	return g
}

// both runs a test against each upstream client.
func both(t *testing.T, f func(t *testing.T, o Options)) {
	for _, transport := range []bool{false, true} {
		name := "own client"
		if transport {
			name = "http.Transport"
		}
		t.Run(name, func(t *testing.T) {
			f(t, Options{Upstream: upstream.Options{Transport: transport}})
		})
	}
}

func get(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// raw sends bytes on a fresh connection and returns all that comes back until it is closed or silent.
func raw(t *testing.T, addr, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(addr, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	wait := 700 * time.Millisecond
	if strings.Contains(request, "Connection: close") {
		wait = 10 * time.Second // the gateway ends it
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b, _ := io.ReadAll(c)
	return string(b)
}

// rawBackend answers each connection by a function.
func rawBackend(t testing.TB, f func(c net.Conn, r *bufio.Reader)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				f(c, bufio.NewReader(c))
			})
		}
	})
	return "http://" + ln.Addr().String()
}

// answering makes a raw backend that reads one request header per answer.
func answering(t testing.TB, answers ...string) string {
	return rawBackend(t, func(c net.Conn, r *bufio.Reader) {
		for _, a := range answers {
			if _, err := textproto.NewReader(r).ReadLine(); err != nil {
				return
			}
			if _, err := textproto.NewReader(r).ReadMIMEHeader(); err != nil {
				return
			}
			if _, err := io.WriteString(c, a); err != nil {
				return
			}
		}
	})
}

func TestHopByHopFields(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		var saw http.Header
		var host string
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			saw, host = r.Header.Clone(), r.Host
			h := w.Header()
			h.Set("Connection", "X-Secret")
			h.Set("X-Secret", "1")
			h.Set("Keep-Alive", "timeout=5")
			h.Set("Proxy-Authenticate", "Basic")
			h.Set("Upgrade", "h2c")
			h.Set("X-Kept", "yes")
			h.Set("X-Request-Id", "of the backend")
			_, _ = io.WriteString(w, "ok")
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		answer := raw(t, g.url, "GET /a/1/x HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers, deflate\r\nUpgrade: websocket\r\nX-Kept: yes\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Request-Id: mine\r\n\r\n")
		for _, k := range []string{"X-Hop", "Keep-Alive", "Proxy-Connection", "Upgrade", "Forwarded"} {
			if saw.Get(k) != "" {
				t.Errorf("the backend saw %s: %q", k, saw.Get(k))
			}
		}
		for k, want := range map[string]string{"X-Kept": "yes", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example.com", "X-Request-Id": "mine", "Te": "trailers"} {
			if got := saw.Values(k); !slices.Equal(got, []string{want}) {
				t.Errorf("the backend saw %s: %q, want %q", k, got, want)
			}
		}
		if _, ok := saw["User-Agent"]; ok {
			t.Error("a User-Agent was made up")
		}
		if "http://"+host != backend.URL {
			t.Errorf("Host was %q", host)
		}
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
		if err != nil {
			t.Fatal(err, answer)
		}
		for _, k := range []string{"X-Secret", "Keep-Alive", "Proxy-Authenticate", "Upgrade"} {
			if res.Header.Get(k) != "" {
				t.Errorf("the client saw %s", k)
			}
		}
		if res.Header.Get("X-Kept") != "yes" || !slices.Equal(res.Header.Values("X-Request-Id"), []string{"mine"}) {
			t.Errorf("header %v", res.Header)
		}
	})
}

func TestTargetIsForwardedAsSent(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		var target atomic.Value
		backend := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			l, _ := r.ReadString('\n')
			target.Store(l)
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
		})
		g := start(t, o, anyAPI(single(backend+"/base/")))
		for sent, want := range map[string]string{
			"/a/1/x":                       "/base/x",
			"/a/1":                         "/base",
			"/a/1/":                        "/base/",
			"/a/1/x%2Fy?q=%20&z":           "/base/x%2Fy?q=%20&z",
			"/a/1/x%61//y":                 "/base/x%61//y",
			"/a/1/x/../y%20z":              "/base/y%20z",
			"/a/1/%2e%2e/1/y":              "/base/y",
			"/z/../a/1/y":                  "/base/y",
			"/a/1/q;p=1/:x@y!$&'()*+,=~-_": "/base/q;p=1/:x@y!$&'()*+,=~-_",
			"/a/1/x?a=/../b":               "/base/x?a=/../b",
			"/a/1/\xc3\xa9":                "/base/\xc3\xa9",
			"/%61/1/x":                     "/base/x",
		} {
			raw(t, g.url, "GET "+sent+" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
			got, _ := target.Load().(string)
			if got != "GET "+want+" HTTP/1.1\r\n" {
				t.Errorf("%s: the backend got %q, want %s", sent, got, want)
			}
		}
	})
}

func TestLargeBodiesStreamBothWays(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		size := int64(64 << 20)
		if o.Upstream.Transport {
			size = 8 << 20
		}
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := sha256.New()
			n, err := io.Copy(h, r.Body)
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("X-Sum", hex.EncodeToString(h.Sum(nil)))
			w.Header().Set("X-Size", strconv.FormatInt(n, 10))
			if r.URL.Query().Get("length") == "known" {
				w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
			}
			_, _ = io.Copy(w, io.LimitReader(pattern{}, size))
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		want := sha256.New()
		_, _ = io.Copy(want, io.LimitReader(pattern{}, size))
		sum := hex.EncodeToString(want.Sum(nil))
		for _, length := range []string{"known", "unknown"} {
			req, _ := http.NewRequest("POST", g.url+"/a/1/up?length="+length, io.LimitReader(pattern{}, size))
			if length == "known" {
				req.ContentLength = size
			}
			res, err := g.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			n, err := io.Copy(h, res.Body)
			res.Body.Close()
			if err != nil || n != size || hex.EncodeToString(h.Sum(nil)) != sum {
				t.Errorf("%s length: answer of %d bytes, %v", length, n, err)
			}
			if res.Header.Get("X-Sum") != sum {
				t.Errorf("%s length: the backend got %s bytes", length, res.Header.Get("X-Size"))
			}
		}
	})
}

// pattern is an endless body.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i * 7)
	}
	return len(p), nil
}

func TestAnswersStreamAsTheyCome(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		next := make(chan struct{})
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("length") == "known" {
				w.Header().Set("Content-Length", "15")
			}
			for i := range 3 {
				_, _ = fmt.Fprintf(w, "data%d", i)
				w.(http.Flusher).Flush()
				<-next
			}
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		for _, length := range []string{"known", "unknown"} {
			res, err := g.client.Get(g.url + "/a/1/events?length=" + length)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 5)
			for i := range 3 {
				if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != fmt.Sprintf("data%d", i) {
					t.Fatalf("piece %d: %q %v", i, b, err)
				}
				next <- struct{}{} // only now does the backend go on
			}
			res.Body.Close()
		}
	})
}

func TestRequestsStreamAsTheyCome(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.WriteHeader(200)
			b := make([]byte, 100)
			for {
				n, err := r.Body.Read(b)
				if n > 0 {
					_, _ = w.Write(bytes.ToUpper(b[:n]))
					w.(http.Flusher).Flush()
				}
				if err != nil {
					return
				}
			}
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		pr, pw := io.Pipe()
		req, _ := http.NewRequest("POST", g.url+"/a/1/echo", pr)
		type result struct {
			res *http.Response
			err error
		}
		c := make(chan result, 1)
		go func() {
			res, err := g.client.Do(req)
			c <- result{res, err}
		}()
		_, _ = io.WriteString(pw, "one")
		var r result
		select {
		case r = <-c:
		case <-time.After(5 * time.Second):
			t.Fatal("the answer did not begin while the request goes on")
		}
		if r.err != nil {
			t.Fatal(r.err)
		}
		b := make([]byte, 3)
		for i, word := range []string{"one", "two", "six"} {
			if i > 0 {
				_, _ = io.WriteString(pw, word)
			}
			if _, err := io.ReadFull(r.res.Body, b); err != nil || string(b) != strings.ToUpper(word) {
				t.Fatalf("%q %v", b, err)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(r.res.Body); err != nil || len(rest) > 0 {
			t.Errorf("%q %v", rest, err)
		}
		r.res.Body.Close()
	})
}

func TestTrailersPassBothWays(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		var saw http.Header
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.Copy(io.Discard, r.Body)
			saw = r.Trailer.Clone()
			_, _ = io.WriteString(w, "body")
			w.(http.Flusher).Flush()
			w.Header().Set("X-Sum", "42")
			w.Header().Set(http.TrailerPrefix+"X-Late", "late")
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		req, _ := http.NewRequest("POST", g.url+"/a/1/x", struct{ io.Reader }{strings.NewReader("hello")})
		req.Trailer = http.Header{"X-Check": {"c"}}
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(b) != "body" || res.Trailer.Get("X-Sum") != "42" || res.Trailer.Get("X-Late") != "late" {
			t.Errorf("%q, trailer %v", b, res.Trailer)
		}
		if saw.Get("X-Check") != "c" {
			t.Errorf("the backend saw the trailer %v", saw)
		}
	})
}

func TestExpectContinue(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/no") {
				w.WriteHeader(http.StatusExpectationFailed)
				return
			}
			b, _ := io.ReadAll(r.Body)
			_, _ = w.Write(b)
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		r := bufio.NewReader(c)
		_, _ = io.WriteString(c, "POST /a/1/yes HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
		if l, err := r.ReadString('\n'); err != nil || l != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("%q %v", l, err)
		}
		_, _ = r.ReadString('\n')
		_, _ = io.WriteString(c, "ping")
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(res.Body); string(b) != "ping" {
			t.Errorf("got %q", b)
		}
		_, _ = io.WriteString(c, "POST /a/1/no HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
		if res, err = http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusExpectationFailed {
			t.Fatalf("%v %v: the body must not be asked for", res, err)
		}
	})
}

func TestInformationalAnswersPass(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</s.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
			_, _ = io.WriteString(w, "done")
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		var link string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			link = h.Get("Link")
			return nil
		}})
		req, _ := http.NewRequestWithContext(ctx, "GET", g.url+"/a/1/x", nil)
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if link == "" || res.Header.Get("Link") != "" || string(b) != "done" {
			t.Errorf("link %q, header %v, body %q", link, res.Header, b)
		}
	})
}

func TestAnswersWithoutBody(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, "/204"):
				w.WriteHeader(204)
			case strings.HasSuffix(r.URL.Path, "/304"):
				w.Header().Set("Etag", `"x"`)
				w.WriteHeader(304)
			default:
				w.Header().Set("Content-Length", "1234")
				if r.Method != "HEAD" {
					_, _ = w.Write(make([]byte, 1234))
				}
			}
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		for range 3 { // more than once: the connection to the backend must stay in step
			for _, c := range []struct {
				method, path, length string
				status               int
			}{{"GET", "204", "", 204}, {"GET", "304", "", 304}, {"HEAD", "x", "1234", 200}, {"GET", "x", "1234", 200}} {
				req, _ := http.NewRequest(c.method, g.url+"/a/1/"+c.path, nil)
				res, err := g.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != c.status || res.Header.Get("Content-Length") != c.length || c.method == "GET" && c.length != "" && len(b) != 1234 {
					t.Errorf("%s %s: %d, length %q, %d bytes", c.method, c.path, res.StatusCode, res.Header.Get("Content-Length"), len(b))
				}
			}
		}
	})
}

func TestClientDisconnectEndsTheCall(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		gone := make(chan struct{}, 10)
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/body") {
				_, _ = io.WriteString(w, "begun")
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
			gone <- struct{}{}
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		for _, path := range []string{"/header", "/body"} {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			req, _ := http.NewRequestWithContext(ctx, "GET", g.url+"/a/1"+path, nil)
			res, err := g.client.Do(req)
			if err == nil {
				_, _ = io.ReadAll(res.Body)
				res.Body.Close()
			}
			cancel()
			select {
			case <-gone:
			case <-time.After(5 * time.Second):
				t.Fatalf("%s: the backend's request goes on though the client is gone", path)
			}
		}
		eventually(t, func() bool { return strings.Count(g.log.String(), `"status":499`) == 2 }, func() string { return g.log.String() })
	})
}

func eventually(t *testing.T, f func() bool, what func() string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatal("did not come true: " + what())
}

func TestBackendFailures(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		refusing, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		refusing.Close()
		cases := []struct {
			name, url string
			status    int
			code      string
		}{
			{"refused", "http://" + refusing.Addr().String(), 502, "101503"},
			{"closed without an answer", rawBackend(t, func(net.Conn, *bufio.Reader) {}), 502, "101503"},
			{"not HTTP", answering(t, "SSH-2.0-OpenSSH\r\n\r\n"), 502, "101503"},
			{"header cut", answering(t, "HTTP/1.1 200 OK\r\nContent-Le"), 502, "101503"},
			{"bad length", answering(t, "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), 502, "101503"},
			{"two lengths", answering(t, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"), 502, "101503"},
			{"unasked switch", answering(t, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), 502, "101503"},
			{"silent", rawBackend(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) }), 504, "101504"},
			{"huge header", answering(t, "HTTP/1.1 200 OK\r\nX-Big: "+strings.Repeat("x", 80<<10)+"\r\n\r\n"), 502, "101503"},
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				ep := single(c.url)
				if ep.Timeout = 10 * time.Second; c.name == "silent" {
					ep.Timeout = 300 * time.Millisecond
				}
				g := start(t, o, anyAPI(ep))
				res, body := get(t, g.client, g.url+"/a/1/x")
				if res.StatusCode != c.status || !strings.Contains(body, c.code) || res.Header.Get("X-Request-Id") == "" || res.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("got %d %s %v, want %d %s", res.StatusCode, body, res.Header, c.status, c.code)
				}
				if strings.Contains(body, "127.0.0.1") {
					t.Errorf("the body names the backend: %s", body)
				}
			})
		}
	})
}

// TestOwnClientIsStrict holds what http.Transport forgives and the own client does not.
func TestOwnClientIsStrict(t *testing.T) {
	for name, answer := range map[string]string{
		"both lengths":          "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare LF":               "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"bare LF in a line":     "HTTP/1.1 200 OK\r\nX: y\nContent-Length: 0\r\n\r\n",
		"folded":                "HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n",
		"blank before colon":    "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
		"chunked twice":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked in HTTP/1.0":   "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"gzip, chunked":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"control in a value":    "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
		"lengths in a list":     "HTTP/1.1 200 OK\r\nContent-Length: 0, 0\r\n\r\n",
		"signed length":         "HTTP/1.1 200 OK\r\nContent-Length: +0\r\n\r\n",
		"status of four digits": "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/2 over HTTP/1":    "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, Options{}, anyAPI(single(answering(t, answer))))
			if res, body := get(t, g.client, g.url+"/a/1/x"); res.StatusCode != 502 {
				t.Errorf("got %d %q", res.StatusCode, body)
			}
		})
	}
}

func TestAnswerCutShort(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		for name, answer := range map[string]string{
			"length":  "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
			"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
			"chunk":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello",
			"garbage": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n0\r\n\r\n",
		} {
			t.Run(name, func(t *testing.T) {
				g := start(t, o, anyAPI(single(answering(t, answer))))
				res, err := g.client.Get(g.url + "/a/1/x")
				if err != nil {
					return // cut before the header was flushed: the client sees it too
				}
				b, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err == nil {
					t.Errorf("the client took %q for a whole answer", b)
				}
			})
		}
	})
}

func TestAnswerUntilClose(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		g := start(t, o, anyAPI(single(answering(t, "HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nall of it"))))
		for range 2 {
			if res, body := get(t, g.client, g.url+"/a/1/x"); res.StatusCode != 200 || body != "all of it" {
				t.Errorf("%d %q", res.StatusCode, body)
			}
		}
	})
}

func TestStaleConnections(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		var served, conns atomic.Int64
		// Each connection serves one request and then closes without a word.
		backend := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			conns.Add(1)
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			served.Add(1)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		})
		g := start(t, o, anyAPI(single(backend)))
		for i := range 20 {
			method := []string{"GET", "POST", "PUT", "DELETE"}[i%4]
			var body io.Reader
			if method == "POST" || method == "PUT" {
				body = strings.NewReader("body")
			}
			req, _ := http.NewRequest(method, g.url+"/a/1/x", body)
			res, err := g.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(res.Body); res.StatusCode != 200 {
				t.Errorf("%s: %d %s", method, res.StatusCode, b)
			}
			res.Body.Close()
			time.Sleep(5 * time.Millisecond) // the close must have arrived
		}
		if served.Load() != 20 {
			t.Errorf("the backend served %d requests, want 20: none twice, none lost", served.Load())
		}
	})
}

func TestPostIsNotRepeated(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		var requests atomic.Int64
		// The second request on a connection is read and then dropped: it may have been acted upon.
		backend := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
			for i := range 2 {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				requests.Add(1)
				if i == 0 {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}
		})
		g := start(t, o, anyAPI(single(backend)))
		for i, want := range []int{200, 502} {
			res, err := g.client.Post(g.url+"/a/1/x", "text/plain", strings.NewReader("pay"))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("request %d: %d, want %d", i, res.StatusCode, want)
			}
		}
		if requests.Load() != 2 {
			t.Errorf("the backend got %d requests, want 2", requests.Load())
		}
	})
}

func TestEarlyAnswerToAnUpload(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "no")
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		pr, pw := io.Pipe()
		req, _ := http.NewRequest("POST", g.url+"/a/1/x", pr)
		go func() {
			for {
				if _, err := pw.Write(make([]byte, 1000)); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusForbidden || string(b) != "no" {
			t.Errorf("%d %q", res.StatusCode, b)
		}
		res.Body.Close()
		pr.Close()
	})
}

func TestBrokenUploadIsNotCompleted(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		result := make(chan error, 4)
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			result <- err
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		for name, request := range map[string]string{
			"chunked":   "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
			"bad chunk": "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
			"length":    "POST /a/1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n" + strings.Repeat("x", 100000),
		} {
			raw(t, g.url, request) // and closes
			select {
			case err := <-result:
				if err == nil {
					t.Errorf("%s: the backend took half a body for a whole one", name)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s: the backend still waits", name)
			}
		}
	})
}

func TestClientThatStopsSending(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer backend.Close()
	ep := single(backend.URL)
	ep.Timeout = 1500 * time.Millisecond
	g := start(t, Options{}, anyAPI(ep))
	c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if l, err := bufio.NewReader(c).ReadString('\n'); !strings.HasPrefix(l, "HTTP/1.1 408") {
		t.Errorf("%q %v", l, err)
	}
	// Also where the body is announced and small, and the backend is not called before it is there.
	g2 := start(t, Options{BodyIdleTimeout: 300 * time.Millisecond}, anyAPI(single(backend.URL)))
	if got := raw(t, g2.url, "POST /a/1/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello"); !strings.HasPrefix(got, "HTTP/1.1 408") {
		t.Errorf("%q", got)
	}
	// One that sends slowly, but does send, is waited for.
	pr, pw := io.Pipe()
	go func() {
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			_, _ = io.WriteString(pw, "piece")
		}
		pw.Close()
	}()
	res, err := g.client.Post(g.url+"/a/1/x", "text/plain", pr)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("slow upload: %d", res.StatusCode)
	}
}

func TestClientThatStopsReading(t *testing.T) {
	done := make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		_, _ = io.Copy(w, io.LimitReader(pattern{}, 1<<30))
	}))
	defer backend.Close()
	g := start(t, Options{BodyIdleTimeout: 300 * time.Millisecond}, anyAPI(single(backend.URL)))
	c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /a/1/x HTTP/1.1\r\nHost: h\r\n\r\n")
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("the backend is held up by a client that reads nothing")
	}
}

func TestBodyLimit(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
		}))
		defer backend.Close()
		o.MaxBodyBytes = 1000
		g := start(t, o, anyAPI(single(backend.URL)))
		for _, c := range []struct {
			size   int
			known  bool
			status int
		}{{1000, true, 200}, {1001, true, 413}, {1000, false, 200}, {1001, false, 413}, {200000, false, 413}} {
			var body io.Reader = bytes.NewReader(make([]byte, c.size))
			if !c.known {
				body = struct{ io.Reader }{body}
			}
			res, err := g.client.Post(g.url+"/a/1/x", "text/plain", body)
			if err != nil {
				t.Errorf("%+v: %v", c, err)
				continue
			}
			res.Body.Close()
			if res.StatusCode != c.status {
				t.Errorf("%+v: got %d", c, res.StatusCode)
			}
		}
	})
}

func TestAmbiguousRequestsAreRefused(t *testing.T) {
	var requests atomic.Int64
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests.Add(1) }))
	defer backend.Close()
	g := start(t, Options{MaxHeaderBytes: 8192, MaxURIBytes: 1024}, anyAPI(single(backend.URL)))
	for _, c := range []struct{ name, request, status string }{
		{"both lengths", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", "400"},
		{"two lengths", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 6\r\n\r\n", "400"},
		{"equal lengths twice", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", "400"},
		{"list of lengths", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 0\r\n\r\n", "400"},
		{"signed length", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nContent-Length: +0\r\n\r\n", "400"},
		{"bare LF", "GET /a/1/x HTTP/1.1\nHost: h\n\n", "400"},
		{"bare LF in a field", "GET /a/1/x HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", "400"},
		{"bare CR", "GET /a/1/x HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", "400"},
		{"folded", "GET /a/1/x HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", "400"},
		{"blank before the colon", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400"},
		{"unknown coding", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400"},
		{"chunked twice", "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"chunked in HTTP/1.0", "POST /a/1/x HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"no host", "GET /a/1/x HTTP/1.1\r\n\r\n", "400"},
		{"nonsense", "\x16\x03\x01\x00\xa5\r\n\r\n", "400"},
		{"fragment", "GET /a/1/x#y HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"long target", "GET /a/1/" + strings.Repeat("x", 1100) + " HTTP/1.1\r\nHost: h\r\n\r\n", "414"},
		{"very long target", "GET /a/1/" + strings.Repeat("x", 7000) + " HTTP/1.1\r\nHost: h\r\n\r\n", "414"},
		{"large header", "GET /a/1/x HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", 9000) + "\r\n\r\n", "431"},
		{"many fields", "GET /a/1/x HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("X: y\r\n", 2000) + "\r\n", "431"},
		{"fits", "GET /a/1/" + strings.Repeat("x", 900) + " HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("x", 7000) + "\r\n\r\n", "200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := requests.Load()
			got := raw(t, g.url, c.request)
			if !strings.HasPrefix(got, "HTTP/1.1 "+c.status) {
				t.Errorf("got %.200q, want %s", got, c.status)
			}
			if c.status != "200" && requests.Load() != before {
				t.Error("the backend got it")
			}
			if strings.Count(got, "HTTP/1.1 ") != 1 {
				t.Errorf("more than one answer: %q", got)
			}
		})
	}
	t.Run("a bad request behind a good one", func(t *testing.T) {
		got := raw(t, g.url, "GET /a/1/x HTTP/1.1\r\nHost: h\r\n\r\nGET /a/1/y HTTP/1.1\nHost: h\n\n")
		if !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, "HTTP/1.1 400") {
			t.Errorf("got %q", got)
		}
	})
}

// certificate makes a self-signed certificate for 127.0.0.1 and localhost.
func certificate(t testing.TB, dir, name string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	tmpl := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, _ := x509.MarshalPKCS8PrivateKey(k)
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := errors.Join(os.WriteFile(cert, certPEM, 0o600), os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}), 0o600)); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, pool
}

func TestTLSListener(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Proto"))
	}))
	defer backend.Close()
	dir := t.TempDir()
	cert, key, pool := certificate(t, dir, "a")
	g := start(t, Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key}, anyAPI(single(backend.URL)))
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: proto == "HTTP/2.0"}
		if proto == "HTTP/1.1" {
			tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		c := &http.Client{Transport: tr}
		for range 3 {
			res, body := get(t, c, g.tlsURL+"/a/1/x")
			if res.Proto != proto || res.StatusCode != 200 || body != "https" {
				t.Errorf("%s: %s %d %q", proto, res.Proto, res.StatusCode, body)
			}
		}
		tr.CloseIdleConnections()
	}
	eventually(t, func() bool {
		return strings.Count(g.log.String(), `"tls":"TLS 1.3","protocol":"HTTP/1.1"`) == 3 && strings.Count(g.log.String(), `"tls":"TLS 1.3","protocol":"HTTP/2.0"`) == 3
	}, g.log.String)
	t.Run("TLS 1.1 is refused", func(t *testing.T) {
		_, err := tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
		if err == nil {
			t.Error("the handshake went through")
		}
	})
	t.Run("a changed certificate is taken", func(t *testing.T) {
		_, _, next := certificate(t, dir, "a")
		later := time.Now().Add(time.Minute)
		_ = errors.Join(os.Chtimes(cert, later, later), os.Chtimes(key, later, later))
		eventually(t, func() bool {
			c, err := tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{RootCAs: next})
			if err == nil {
				c.Close()
			}
			return err == nil
		}, func() string { return "the new certificate is not served" })
		if err := os.WriteFile(cert, []byte("nonsense"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1100 * time.Millisecond)
		c, err := tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{RootCAs: next})
		if err != nil {
			t.Fatalf("a file that cannot be used put the good certificate out of force: %v", err)
		}
		c.Close()
	})
	t.Run("smuggling over TLS", func(t *testing.T) {
		// The file is broken by now; the handshake still works with the certificate in force.
		c, err := tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "POST /a/1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX")
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		l, _ := bufio.NewReader(c).ReadString('\n')
		if !strings.HasPrefix(l, "HTTP/1.1 400") {
			t.Errorf("got %q", l)
		}
	})
}

func TestCleartextHTTP2(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }))
	defer backend.Close()
	g := start(t, Options{}, anyAPI(single(backend.URL)))
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	if res, body := get(t, &http.Client{Transport: tr}, g.url+"/a/1/x"); res.Proto != "HTTP/2.0" || body != "ok" {
		t.Errorf("%s %q", res.Proto, body)
	}
}

func TestBackendsOverTLS(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
		backend.EnableHTTP2 = h2
		backend.StartTLS()
		defer backend.Close()
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: backend.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		want := "HTTP/1.1"
		if h2 {
			want = "HTTP/2.0"
		}
		g := start(t, Options{Upstream: upstream.Options{CAFile: ca}}, anyAPI(single(backend.URL)))
		for range 3 {
			if res, body := get(t, g.client, g.url+"/a/1/x"); res.StatusCode != 200 || body != want {
				t.Errorf("%d %q, want %s", res.StatusCode, body, want)
			}
		}
		g2 := start(t, Options{}, anyAPI(single(backend.URL)))
		if res, _ := get(t, g2.client, g2.url+"/a/1/x"); res.StatusCode != 502 {
			t.Errorf("an unknown authority was accepted: %d", res.StatusCode)
		}
	}
}

func TestDrainUnderLoad(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Millisecond)
			_, _ = io.WriteString(w, "ok")
		}))
		defer backend.Close()
		o.DrainPause = 500 * time.Millisecond
		g := start(t, o, anyAPI(single(backend.URL)))
		var failed atomic.Int64
		var served atomic.Int64
		var wg sync.WaitGroup
		var first atomic.Value
		for range 16 {
			wg.Go(func() {
				for {
					req, _ := http.NewRequest("POST", g.url+"/a/1/x", strings.NewReader("x"))
					res, err := g.client.Do(req)
					if err != nil {
						var op *net.OpError
						if errors.As(err, &op) && op.Op == "dial" {
							return // the port is closed: drained
						}
						failed.Add(1)
						first.CompareAndSwap(nil, err.Error())
						return
					}
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if err != nil || res.StatusCode != 200 {
						failed.Add(1)
					}
					served.Add(1)
				}
			})
		}
		eventually(t, func() bool { return served.Load() > 100 }, func() string { return "no load" })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := g.Drain(ctx); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if failed.Load() > 0 {
			t.Errorf("%d of %d requests failed: %v", failed.Load(), served.Load(), first.Load())
		}
	})
}

func TestRouteSwapUnderLoad(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		var backends []string
		for i := range 3 {
			b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, strconv.Itoa(i)) }))
			defer b.Close()
			backends = append(backends, b.URL)
		}
		g := start(t, o, anyAPI(single(backends[0])))
		var failed, served atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					res, err := g.client.Get(g.url + "/a/1/x")
					if err != nil {
						failed.Add(1)
						continue
					}
					if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
						failed.Add(1)
					}
					res.Body.Close()
					served.Add(1)
				}
			})
		}
		for i := range 50 {
			if refused := g.SetAPIs([]*definition.API{anyAPI(single(backends[i%3]))}); len(refused) > 0 {
				t.Fatal(refused)
			}
			time.Sleep(2 * time.Millisecond)
		}
		close(stop)
		wg.Wait()
		if failed.Load() > 0 || served.Load() == 0 {
			t.Errorf("%d of %d requests failed", failed.Load(), served.Load())
		}
		if n := g.upstreams.Hosts(); n != 1 {
			t.Errorf("%d hosts are held, want 1: the others are not served any more", n)
		}
	})
}

// quietLog takes what the reference proxy has to say of broken backends.
func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }

// A stream may say nothing for long after its header: the client sees the header at once.
func TestHeaderOfASilentStreamComesAtOnce(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		release := make(chan struct{})
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			select {
			case <-release:
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, "data: 1\n\n")
		}))
		defer backend.Close()
		g := start(t, o, anyAPI(single(backend.URL)))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url+"/a/1/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := g.client.Do(req) // returns with the header
		if err != nil {
			t.Fatalf("the header did not come before the body: %v", err)
		}
		defer res.Body.Close()
		close(release)
		if b, err := io.ReadAll(res.Body); string(b) != "data: 1\n\n" || err != nil {
			t.Errorf("%q %v", b, err)
		}
	})
}
