package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"sort"
	"strings"
	"testing"
)

// outcome is what a client sees of an answer, without what a gateway adds.
func outcome(t *testing.T, client *http.Client, method, url, body string, header http.Header, typed bool) string {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	res, err := client.Do(req)
	if err != nil {
		return "cut"
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return "cut"
	}
	res.Header.Del("X-Request-Id")
	res.Header.Del("Date")
	if !typed { // httputil.ReverseProxy lets net/http guess a type that the backend did not give
		res.Header.Del("Content-Type")
	}
	if res.StatusCode == http.StatusBadGateway {
		return "502"
	}
	return fmt.Sprintf("%d length %d %s\n%s\ntrailer %s", res.StatusCode, res.ContentLength, fields(res.Header), b, fields(res.Trailer))
}

func fields(h http.Header) string {
	var lines []string
	for k, v := range h {
		lines = append(lines, fmt.Sprintf("%s: %q", k, v))
	}
	sort.Strings(lines)
	return strings.Join(lines, "; ")
}

// TestLikeReverseProxy compares what passes through the gateway, in both directions, to what passes through
// httputil.ReverseProxy.
func TestLikeReverseProxy(t *testing.T) {
	answers := map[string]string{
		"length":           "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
		"chunked":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
		"chunk extension":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
		"trailer":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5\r\nhello\r\n0\r\nX-T: v\r\n\r\n",
		"until close":      "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
		"HTTP/1.0":         "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"empty":            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"no reason":        "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
		"204":              "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
		"304":              "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n",
		"redirect":         "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example.com/x\r\nContent-Length: 0\r\n\r\n",
		"404":              "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone",
		"500":              "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops",
		"odd status":       "HTTP/1.1 299 Whatever\r\nContent-Length: 0\r\n\r\n",
		"cookies":          "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
		"odd names":        "HTTP/1.1 200 OK\r\nx-lower: 1\r\nX_UNDER: 2\r\nETag: 3\r\nContent-Length: 0\r\n\r\n",
		"blanks":           "HTTP/1.1 200 OK\r\nX-A:   spaced \t \r\nX-Empty:\r\nContent-Length: 0\r\n\r\n",
		"hop by hop":       "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n",
		"early hints":      "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"continue unasked": "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"latin-1":          "HTTP/1.1 200 OK\r\nX-A: caf\xe9\r\nContent-Length: 0\r\n\r\n",
		"large header":     "HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("x", 20<<10) + "\r\nContent-Length: 0\r\n\r\n",
		"many chunks":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 3000) + "0\r\n\r\n",
		"short":            "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
		"nonsense":         "hello\r\n\r\n",
		"bad chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
	}
	requests := []struct {
		method, body string
		header       http.Header
	}{
		{"GET", "", nil},
		{"HEAD", "", nil},
		{"POST", "some body", http.Header{"Content-Type": {"text/plain"}}},
		{"DELETE", "", http.Header{"X-Many": {"a", "b"}, "X-Empty": {""}, "Accept-Encoding": {"gzip"}, "Cookie": {"a=1"}}},
	}
	both(t, func(t *testing.T, o Options) {
		o.Upstream.MaxIdlePerHost = -1 // the backend closes after each answer: nothing here is about that
		for name, answer := range answers {
			var seen string
			backend := rawBackend(t, func(c net.Conn, r *bufio.Reader) {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				b, _ := io.ReadAll(req.Body)
				for _, k := range []string{"X-Request-Id", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
					req.Header.Del(k)
				}
				seen = fmt.Sprintf("%s %s %s length %d %s\n%s", req.Method, req.RequestURI, req.Host, req.ContentLength, fields(req.Header), b)
				_, _ = io.WriteString(c, answer)
			})
			u, _ := url.Parse(backend)
			reference := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(pr *httputil.ProxyRequest) {
				pr.SetURL(u)
				pr.Out.URL.Path = strings.TrimPrefix(pr.Out.URL.Path, "/a/1")
				if pr.Out.Body != nil {
					pr.Out.Body = &endsOnce{ReadCloser: pr.Out.Body}
				}
			}, Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: -1}, ErrorLog: quietLog()})
			g := start(t, o, anyAPI(single(backend)))
			for _, r := range requests {
				want := outcome(t, g.client, r.method, reference.URL+"/a/1/x?y=z", r.body, r.header, strings.Contains(answer, "Content-Type"))
				wantSeen := seen
				got := outcome(t, g.client, r.method, g.url+"/a/1/x?y=z", r.body, r.header, true)
				if strings.Contains(answer, "chunked") {
					// A short answer that has ended by the time its header is written gets a length: the same to the client.
					got, want = withoutLength(got), withoutLength(want)
				}
				if got != want {
					t.Errorf("%s, %s: the client sees\n%s\nwant\n%s", r.method, name, got, want)
				}
				if seen != wantSeen {
					t.Errorf("%s, %s: the backend sees\n%s\nwant\n%s", r.method, name, seen, wantSeen)
				}
			}
			reference.Close()
			g.stop()
		}
	})
}

// endsOnce gives httputil.ReverseProxy what the gateway has: a body that is not asked again once it has ended. Without it
// a fast backend's answer is cut now and then, because net/http has closed the body by the time it is asked.
type endsOnce struct {
	io.ReadCloser
	over error
}

func (b *endsOnce) Read(p []byte) (n int, err error) {
	if b.over == nil {
		n, b.over = b.ReadCloser.Read(p)
	}
	return n, b.over
}

// TestTheBodyIsNotReadPastItsEnd shows that net/http's body, closed as soon as the answer's header is written, is not asked
// again after its last byte: the error of that read would cut a good answer.
func TestTheBodyIsNotReadPastItsEnd(t *testing.T) {
	inner := &closedAtEnd{text: "some body"}
	b := &requestBody{r: inner}
	got, err := io.ReadAll(io.LimitReader(b, 9))
	if err != nil || string(got) != "some body" {
		t.Fatalf("the body is %q, %v", got, err)
	}
	for range 2 {
		if n, err := b.Read(make([]byte, 8)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("after its end the body gives %d bytes and %v, want EOF", n, err)
		}
	}
}

// closedAtEnd is a body as net/http's: EOF comes with the last bytes, and a later read meets a closed body.
type closedAtEnd struct{ text string }

func (b *closedAtEnd) Read(p []byte) (int, error) {
	if b.text == "" {
		return 0, http.ErrBodyReadAfterClose
	}
	n := copy(p, b.text)
	b.text = b.text[n:]
	if b.text == "" {
		return n, io.EOF
	}
	return n, nil
}

var lengths = regexp.MustCompile(`length -?[0-9]+ |Content-Length: \["[0-9]+"\](; )?`)

func withoutLength(s string) string { return lengths.ReplaceAllString(s, "") }
