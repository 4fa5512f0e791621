package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
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
