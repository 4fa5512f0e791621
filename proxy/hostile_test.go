package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"gatehouse/proxy/definition"
	"gatehouse/proxy/stage"
	"gatehouse/throttle"
)

// TestTracesKeepLittleOfLargeRequests: anybody can fill the ring of refused requests; what he sends must not stay.
func TestTracesKeepLittleOfLargeRequests(t *testing.T) {
	backend := httptest.NewServer(http.NotFoundHandler())
	defer backend.Close()
	g := start(t, Options{TracesAdmitted: 1, TracesRefused: 4000, AccessLog: io.Discard}, anyAPI(single(backend.URL)))
	held := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, request := range []string{
		"GET /x HTTP/1.1\r\nHost: " + strings.Repeat("h", 50_000) + "\r\nX-Request-Id: %d\r\n\r\n",
		strings.Repeat("M", 50_000) + " /a/1/x HTTP/1.1\r\nHost: h\r\nX-Request-Id: %d\r\n\r\n",
		"GET /x?" + strings.Repeat("q", 8000) + " HTTP/1.1\r\nHost: h\r\nX-Request-Id: %d\r\n\r\n",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		br := bufio.NewReader(c)
		send := func(n int) {
			for i := range n {
				fmt.Fprintf(c, request, i)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				if res.StatusCode < 404 || res.StatusCode > 405 {
					t.Fatal(res.Status)
				}
			}
		}
		const n = 500
		send(n) // the buffers of the access log grow
		before := held()
		send(n)
		c.Close()
		if _, ok := g.Traces().Find(fmt.Sprint(n - 1)); !ok {
			t.Error("no trace")
		}

		if after := held(); after > before+n*3000 {
			t.Errorf("%.20s…: %d bytes are held for each request", request, (after-before)/n)
		}
	}
}

// TestTrailerIsNoHeader: some backends join the trailer of a request with its header. Go's server takes any field of a
// trailer, announced or not.
func TestTrailerIsNoHeader(t *testing.T) {
	got := make(chan http.Header, 1)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got <- r.Trailer
	}))
	defer backend.Close()
	for _, through := range []bool{false, true} {
		a := anyAPI(single(backend.URL))
		a.AuthHeader = "X-Token"
		o := Options{}
		o.Upstream.Transport = through
		g := start(t, o, a)
		c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Forwarded-For, Authorization, X-Token\r\n\r\n1\r\na\r\n0\r\n"+
			"X-Sum: 1\r\nX-Forwarded-For: 10.0.0.1\r\nAuthorization: Bearer x\r\nX-Token: Bearer y\r\nHost: evil\r\nContent-Length: 5\r\nX-Request-Id: z\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		trailer := <-got
		for k, v := range trailer {
			if k != "X-Sum" && len(v) > 0 {
				t.Errorf("the trailer has %s: %s", k, v)
			}
		}
		if trailer.Get("X-Sum") != "1" {
			t.Errorf("trailer %v", trailer)
		}
	}
}

// TestForgedHeader: a backend that is told by the gateway who calls must not be told so by the caller.
func TestForgedHeader(t *testing.T) {
	got := make(chan http.Header, 1)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- r.Header }))
	defer backend.Close()
	for _, through := range []bool{false, true} {
		o := Options{DropHeaders: []string{"x-jwt-assertion"}}
		o.Upstream.Transport = through
		g := start(t, o, anyAPI(single(backend.URL)))
		req, _ := http.NewRequest("GET", g.url+"/a/1/x", nil)
		req.Header.Set("X-Jwt-Assertion", "forged")
		req.Header.Set("X-Other", "kept")
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if h := <-got; h.Get("X-Jwt-Assertion") != "" || h.Get("X-Other") != "kept" {
			t.Errorf("the backend got %v", h)
		}
	}
}

// TestQuietHTTP2Stream: the bound on a client that takes nothing is none on a backend that has nothing to say.
func TestQuietHTTP2Stream(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "one")
		w.(http.Flusher).Flush()
		time.Sleep(300 * time.Millisecond)
		_, _ = io.WriteString(w, "two")
	}))
	defer backend.Close()
	cert, key, pool := certificate(t, t.TempDir(), "a")
	g := start(t, Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key, BodyIdleTimeout: 100 * time.Millisecond}, anyAPI(single(backend.URL)))
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr}).Get(g.tlsURL + "/a/1/x")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); string(b) != "onetwo" || err != nil || res.ProtoMajor != 2 {
		t.Errorf("%q %v over %s", b, err, res.Proto)
	}
}

// TestClientThatSendsNoBody: net/http reads a body that was announced before it sends the answer, or what is left of it
// before the next request.
func TestClientThatSendsNoBody(t *testing.T) {
	early := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
	defer early.Close()
	a := anyAPI(single(early.URL))
	a.CORS = &definition.CORS{Enabled: true, AllowOrigins: []string{"*"}}
	g := start(t, Options{BodyIdleTimeout: 300 * time.Millisecond}, a)
	for name, request := range map[string]string{
		"refused":   "POST /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n",
		"preflight": "OPTIONS /a/1/x HTTP/1.1\r\nHost: h\r\nOrigin: http://o\r\nAccess-Control-Request-Method: GET\r\nContent-Length: 10\r\n\r\n",
		"health":    "GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n",
		"answered":  "POST /a/1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(15 * time.Second))
			_, _ = io.WriteString(c, request)
			b, err := io.ReadAll(c)
			if err != nil || strings.Count(string(b), "HTTP/1.1 ") != 1 {
				t.Errorf("the connection is held: %q %v", b, err)
			}
		})
	}
}

// TestQuietClientOfARunningAnswer: once the backend answers, when the client speaks next is between the two of them.
func TestQuietClientOfARunningAnswer(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			_, _ = io.WriteString(w, "hi ")
			w.(http.Flusher).Flush()
			b, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %v", b, err)
		}))
		defer backend.Close()
		o.BodyIdleTimeout = 500 * time.Millisecond
		g := start(t, o, anyAPI(single(backend.URL)))
		pr, pw := io.Pipe()
		go func() { _, _ = io.WriteString(pw, "one ") }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "POST", g.url+"/a/1/x", pr)
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		time.Sleep(1200 * time.Millisecond)
		_, _ = io.WriteString(pw, "two")
		pw.Close()
		if b, err := io.ReadAll(res.Body); string(b) != "hi one two <nil>" || err != nil {
			t.Errorf("%q %v", b, err)
		}
	})
}

// TestClientThatNeverReads: one that sends request after request and reads no answer holds nothing for ever, however
// small the answers are.
func TestClientThatNeverReads(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 30_000)) }))
	defer backend.Close()
	cert, key, pool := certificate(t, t.TempDir(), "a")
	g := start(t, Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key, BodyIdleTimeout: 200 * time.Millisecond}, anyAPI(single(backend.URL)))
	for name, dial := range map[string]func() (net.Conn, error){
		"plain": func() (net.Conn, error) { return net.Dial("tcp", strings.TrimPrefix(g.url, "http://")) },
		"tls": func() (net.Conn, error) {
			return tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{RootCAs: pool})
		},
	} {
		for kind, path := range map[string]string{"answers": "/a/1/x", "refusals": "/nothing"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				c, err := dial()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // small answers fill the buffers slowly
				request := strings.Repeat("GET "+path+" HTTP/1.1\r\nHost: h\r\n\r\n", 1000)
				for err == nil {
					_, err = io.WriteString(c, request)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection is held")
				}
			})
		}
	}
}

// TestFailoverHasOneDeadline: a client waits for all hosts together as long as for one.
func TestFailoverHasOneDeadline(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		var calls atomic.Int64
		stop := make(chan struct{})
		slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			select {
			case <-stop:
			case <-time.After(300 * time.Millisecond):
				http.Error(w, "busy", http.StatusServiceUnavailable)
			}
		}))
		defer slow.Close()
		defer close(stop)
		ep := &definition.Endpoint{Kind: definition.Failover, URLs: []string{slow.URL, slow.URL, slow.URL, slow.URL}, Timeout: 500 * time.Millisecond}
		g := start(t, o, anyAPI(ep))
		if res, body := do(t, g, "GET", "/a/1/x"); res.StatusCode != 504 || calls.Load() != 2 {
			t.Errorf("%d after %d calls: %s", res.StatusCode, calls.Load(), body)
		}
	})
}

// TestPanicIsAnswered: a fault of ours is one refused request, not a broken connection and a gauge that never falls.
func TestPanicIsAnswered(t *testing.T) {
	var log syncBuffer
	r := prometheus.NewRegistry()
	d := &domains{}
	g := start(t, Options{Registry: r, Log: zerolog.New(&log), Domains: stage.Domains{Denier: faulty{}, Throttler: d}}, anyAPI(single("http://127.0.0.1:1")))
	res, body := do(t, g, "GET", "/a/1/x", "X-Request-Id: the-id")
	if res.StatusCode != 500 || !strings.Contains(body, "900900") || res.Header.Get("X-Request-Id") != "the-id" {
		t.Errorf("%d %v %s", res.StatusCode, res.Header, body)
	}
	eventually(t, func() bool { return g.metrics.active.Load() == 0 }, func() string { return "requests are still counted as running" })
	if n := testutil.ToFloat64(g.metrics.panics); n != 1 {
		t.Errorf("%v panics counted", n)
	}
	if l := log.String(); strings.Count(l, "the-id") != 1 || strings.Count(l, "out of its mind") != 1 {
		t.Errorf("logged %s", l)
	}
	eventually(t, func() bool { return strings.Contains(g.log.String(), `"status":500`) }, func() string { return "no line in the access log: " + g.log.String() })
}

type faulty struct{}

func (faulty) DenyAnonymous(*throttle.Request) *throttle.DenyCondition { panic("out of its mind") }

func (faulty) DenyIdentified(*throttle.Request) *throttle.DenyCondition { return nil }
