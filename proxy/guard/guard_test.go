package guard

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// script is a connection that gives its bytes in pieces and keeps what is written.
type script struct {
	net.Conn
	pieces [][]byte
	out    bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}
func (s *script) Write(p []byte) (int, error)     { return s.out.Write(p) }
func (s *script) SetReadDeadline(time.Time) error { return nil }

// cut makes pieces of n bytes; 0 means one.
func cut(s string, n int) [][]byte {
	if n == 0 {
		return [][]byte{[]byte(s)}
	}
	return slices.Collect(slices.Chunk([]byte(s), n))
}

func refuse(status int) []byte { return []byte(http.StatusText(status)) }

func TestGuard(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	for _, c := range []struct{ name, in, answer string }{
		{"plain", get + get, ""},
		{"empty lines before", "\r\n\r\n" + get, ""},
		{"body", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\na\nb\nc" + get, ""},
		{"body that looks like a request", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 21\r\n\r\nGET / HTTP/1.1\nX: y\n\n" + "." + get, ""},
		{"chunks", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\na\nb\nc\r\n0\r\nX: y\r\n\r\n" + get, ""},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", ""},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n\n", ""},
		{"HTTP/2 preface behind a request", get + "PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\nHost: h\n\n", "Bad Request"},
		{"bare LF", "GET / HTTP/1.1\nHost: h\n\n", "Bad Request"},
		{"bare LF later", get + "GET / HTTP/1.1\r\nHost: h\n\r\n", "Bad Request"},
		{"NUL", "GET / HTTP/1.1\r\nHost: h\x00\r\n\r\n", "Bad Request"},
		{"other version", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", "Bad Request"},
		{"no target", "GET HTTP/1.1\r\nHost: h\r\n\r\n", "Bad Request"},
		{"both lengths", "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Bad Request"},
		{"both lengths, other order", "POST / HTTP/1.1\r\nTransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n", "Bad Request"},
		{"length in hex", "POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\na", "Bad Request"},
		{"empty length", "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", "Bad Request"},
		{"huge length", "POST / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n", "Bad Request"},
		{"tab before the colon", "POST / HTTP/1.1\r\nContent-Length\t: 1\r\n\r\na", "Bad Request"},
		{"long target", "GET /" + strings.Repeat("x", 200) + " HTTP/1.1\r\n\r\n", "Request URI Too Long"},
		{"endless target", "GET /" + strings.Repeat("x", 2000), "Request URI Too Long"},
		{"large header", "GET / HTTP/1.1\r\n" + strings.Repeat("X: 1234567890\r\n", 80) + "\r\n", "Request Header Fields Too Large"},
		{"endless field", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 2000), "Request Header Fields Too Large"},
	} {
		for _, size := range []int{0, 1, 7} {
			s := &script{pieces: cut(c.in, size)}
			g := New(s, Limits{URI: 100, Header: 1000}, refuse)
			got, err := io.ReadAll(g)
			if s.out.String() != c.answer {
				t.Errorf("%s, pieces of %d: answered %q, want %q", c.name, size, s.out.String(), c.answer)
			}
			if c.answer == "" && (string(got) != c.in || err != nil) {
				t.Errorf("%s, pieces of %d: passed %q, %v", c.name, size, got, err)
			}
			if !strings.HasPrefix(c.in, string(got)) {
				t.Errorf("%s, pieces of %d: bytes were changed: %q", c.name, size, got)
			}
		}
	}
}

func TestBrokenChunksEndTheBody(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, body := range []string{"zz\r\n", "5\r\nhelloXX\r\n", "5\nhello\r\n", "\r\n", "-1\r\n", "5 5\r\n", "1000000000000000\r\n", "0\r\nX: y\n\r\n"} {
		s := &script{pieces: cut(head+body, 0)}
		if _, err := io.ReadAll(New(s, Limits{}, refuse)); err == nil {
			t.Errorf("%q went through", body)
		}
		if s.out.Len() > 0 {
			t.Errorf("%q was answered by the guard, though a handler may be writing", body)
		}
	}
}

// TestSingleByteReads: while a handler runs, net/http reads one byte. The guard must not answer then.
func TestSingleByteReads(t *testing.T) {
	s := &script{pieces: cut("GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\nHost: h\n\n", 0)}
	g := New(s, Limits{}, refuse)
	b := make([]byte, 4096)
	n, err := g.Read(b)
	if err != nil || string(b[:n]) != "GET / HTTP/1.1\r\nHost: h\r\n\r\n" {
		t.Fatalf("%q %v", b[:n], err)
	}
	if n, err := g.Read(b[:1]); n != 1 || err != nil || s.out.Len() > 0 {
		t.Errorf("%d %v, answered %q", n, err, s.out.String())
	}
	if _, err := g.Read(b); err == nil || s.out.String() != "Bad Request" {
		t.Errorf("%v, answered %q", err, s.out.String())
	}
}

// FuzzGuard: what the guard lets through is cut into requests in the same way by net/http.
func FuzzGuard(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\nHost: h\nContent-Length: 3\n\nabc",
	} {
		f.Add([]byte(s), uint8(0))
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, size uint8) {
		s := &script{pieces: cut(string(in), int(size))}
		g := New(s, Limits{Header: 1 << 16}, refuse)
		r := bufio.NewReader(g)
		{
			req, err := http.ReadRequest(r)
			if err != nil || g.state == through {
				return
			}
			if req.Header.Get("Content-Length") != "" && len(req.TransferEncoding) > 0 {
				t.Fatalf("both lengths went through: %q", in)
			}
			chunkedByNet := len(req.TransferEncoding) > 0
			if chunkedByNet && !req.ProtoAtLeast(1, 1) {
				t.Fatalf("chunks in HTTP/1.0 went through: %q", in)
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			// The guard, asked alone about this request, must need exactly the bytes that net/http took.
			rest, err := io.ReadAll(r)
			if err != nil || g.bad {
				return // a later request is refused: what net/http has left is not all of the input
			}
			whole := len(in) - len(rest)
			alone := New(&script{pieces: cut(string(in[:whole]), 0)}, Limits{Header: 1 << 16}, refuse)
			if _, err := io.ReadAll(alone); err != nil || alone.state != inHeader || alone.lines != 0 || len(alone.line) != 0 {
				t.Fatalf("net/http ends the request after %d bytes of %q, the guard does not (state %d)", whole, in, alone.state)
			}
		}
	})
}

func BenchmarkGuard(b *testing.B) {
	request := []byte("GET /bench/1.0.0/items HTTP/1.1\r\nHost: bench.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\nAuthorization: Bearer " + strings.Repeat("x", 830) + "\r\n\r\n")
	g := New(nil, Limits{Header: 65536, URI: 8192}, refuse)
	b.ReportAllocs()
	b.SetBytes(int64(len(request)))
	for b.Loop() {
		if _, ok := g.scan(request); !ok {
			b.Fatal("refused")
		}
	}
}
