package proxy

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is a client of HTTP/2 that says what it is told to, frame by frame: http.Transport gives window by itself.
type frames struct {
	t    *testing.T
	conn net.Conn
	*http2.Framer
	body bytes.Buffer // of the header block that is written
	next uint32       // the id of the next stream
}

// handshake opens HTTP/2 on a connection; window is what each stream may send before it is given more.
func handshake(t *testing.T, c net.Conn, window uint32) *frames {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	f := &frames{t: t, conn: c, Framer: http2.NewFramer(c, c), next: 1}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f.must(f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	return f
}

func (f *frames) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// get opens a stream.
func (f *frames) get(path string) (stream uint32) {
	f.t.Helper()
	stream = f.next
	f.next += 2
	f.body.Reset()
	e := hpack.NewEncoder(&f.body)
	for _, h := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "h"}, {":path", path}} {
		f.must(e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
	}
	f.must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.body.Bytes(), EndStream: true, EndHeaders: true}))
	return stream
}

// ended is how a stream ended.
type ended struct {
	status string
	data   int
	reset  bool // by RST_STREAM, or by the end of the connection
}

// read reads until a stream has ended; give says whether its data is answered with window.
func (f *frames) read(stream uint32, give bool) (e ended) {
	f.t.Helper()
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				f.t.Fatalf("stream %d is held: %+v so far", stream, e)
			}
			e.reset = true
			return e
		}
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				f.must(f.WriteSettingsAck())
			}
		case *http2.PingFrame:
			if !fr.IsAck() {
				f.must(f.WritePing(true, fr.Data))
			}
		}
		if fr.Header().StreamID != stream {
			continue
		}
		switch fr := fr.(type) {
		case *http2.MetaHeadersFrame:
			e.status = fr.PseudoValue("status")
			if fr.StreamEnded() {
				return e
			}
		case *http2.DataFrame:
			e.data += len(fr.Data())
			if n := uint32(len(fr.Data())); give && n > 0 {
				f.must(f.WriteWindowUpdate(stream, n))
				f.must(f.WriteWindowUpdate(0, n))
			}
			if fr.StreamEnded() {
				return e
			}
		case *http2.RSTStreamFrame:
			e.reset = true
			return e
		}
	}
}

// TestClientThatGivesNoWindow: the connection of one that reads every frame and gives no window takes every write, so what
// bounds writes to a connection never sees that a stream waits. The stream ends all the same, its backend is let go of, and
// other streams of the connection are served.
func TestClientThatGivesNoWindow(t *testing.T) {
	let := make(chan string, 16)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; path {
		case "/small":
			_, _ = w.Write(make([]byte, 100))
		case "/large":
			w.Header().Set("Content-Length", "10485760")
			_, _ = io.Copy(w, io.LimitReader(pattern{}, 10<<20))
			let <- path
		case "/stream":
			_, _ = io.Copy(w, io.LimitReader(pattern{}, 1<<30))
			let <- path
		}
	}))
	defer backend.Close()
	cert, key, pool := certificate(t, t.TempDir(), "a")
	const idle = 300 * time.Millisecond
	g := start(t, Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key, BodyIdleTimeout: idle}, anyAPI(single(backend.URL)))
	for name, dial := range map[string]func() (net.Conn, error){
		"h2c": func() (net.Conn, error) { return net.Dial("tcp", strings.TrimPrefix(g.url, "http://")) },
		"tls": func() (net.Conn, error) {
			return tls.Dial("tcp", strings.TrimPrefix(g.tlsURL, "https://"), &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}})
		},
	} {
		for _, c := range []struct {
			name, path string
			window     uint32
			status     string
			data       int  // that comes before the stream waits; the connection's window is 65,535
			lets       bool // the backend tells that it was let go of
		}{
			{"an answer that fits into buffers", "/a/1/small", 0, "200", 0, false},
			{"a large answer", "/a/1/large", 0, "200", 0, true},
			{"a stream", "/a/1/stream", 0, "200", 0, true},
			{"a refusal", "/nothing", 0, "404", 0, false},
			{"the health of the gateway", "/health", 0, "200", 0, false},
			{"a window that is used up", "/a/1/large", 20_000, "200", 20_000, true},
			{"the connection's window used up", "/a/1/stream", 1 << 30, "200", 65_535, true},
		} {
			t.Run(name+", "+c.name, func(t *testing.T) {
				conn, err := dial()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				f := handshake(t, conn, c.window)
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				began := time.Now()
				got := f.read(f.get(c.path), false)
				if want := (ended{c.status, c.data, true}); got != want {
					t.Errorf("%+v, want %+v", got, want)
				}
				if took := time.Since(began); took < idle {
					t.Errorf("the client had %v to give window, want %v", took, idle)
				}
				if c.lets {
					select {
					case <-let:
					case <-time.After(10 * time.Second):
						t.Error("the backend is held up by a client that gives no window")
					}
				}
				// The connection is as good as before.
				f.must(f.WriteWindowUpdate(0, 1<<20))
				stream := f.get("/a/1/small")
				f.must(f.WriteWindowUpdate(stream, 1<<20))
				if got := f.read(stream, true); got != (ended{"200", 100, false}) {
					t.Errorf("the next stream: %+v, want its 100 bytes", got)
				}
			})
		}
	}
}

// TestClientThatGivesWindowLate: one that thinks for a while, and then reads on, gets the whole answer.
func TestClientThatGivesWindowLate(t *testing.T) {
	const size = 300_000
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, size)) }))
	defer backend.Close()
	g := start(t, Options{BodyIdleTimeout: 2 * time.Second}, anyAPI(single(backend.URL)))
	conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f := handshake(t, conn, 0)
	stream := f.get("/a/1/x")
	time.Sleep(500 * time.Millisecond)
	f.must(f.WriteWindowUpdate(stream, 10_000))
	if got := f.read(stream, true); got != (ended{"200", size, false}) {
		t.Errorf("%+v, want %d bytes and the end", got, size)
	}
}
