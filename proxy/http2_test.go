package proxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// h2Backend is a backend that speaks HTTP/2 without TLS, and HTTP/1.1.
func h2Backend(t *testing.T, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// TestHTTP2EndToEnd is what gRPC needs: streams both ways at once, with trailers, HTTP/2 on both sides.
func TestHTTP2EndToEnd(t *testing.T) {
	backend := h2Backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Te") != "trailers" && r.ProtoMajor == 2 && strings.HasSuffix(r.URL.Path, "/echo") {
			t.Errorf("TE: %q", r.Header.Get("Te"))
		}
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is it anyway
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		b := make([]byte, 1024)
		for {
			n, err := r.Body.Read(b)
			_, _ = w.Write(bytes.ToUpper(b[:n]))
			w.(http.Flusher).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set("X-Proto", r.Proto)
	})
	dir := t.TempDir()
	cert, key, pool := certificate(t, dir, "a")
	for _, scheme := range []string{"http", "h2c"} {
		t.Run(scheme, func(t *testing.T) {
			g := start(t, Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key}, anyAPI(single(scheme+strings.TrimPrefix(backend.URL, "http"))))
			tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
			defer tr.CloseIdleConnections()
			for range 3 {
				pr, pw := io.Pipe()
				req, _ := http.NewRequest("POST", g.tlsURL+"/a/1/echo", pr)
				req.Header.Set("Te", "trailers")
				req.Header.Set("Content-Type", "application/grpc")
				go func() { _, _ = io.WriteString(pw, "one") }()
				res, err := tr.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 3)
				for i := range 3 {
					if i > 0 {
						_, _ = io.WriteString(pw, "two")
					}
					if _, err := io.ReadFull(res.Body, b); err != nil {
						t.Fatal(err)
					}
				}
				pw.Close()
				if rest, err := io.ReadAll(res.Body); len(rest) > 0 || err != nil {
					t.Errorf("%q %v", rest, err)
				}
				res.Body.Close()
				if res.Proto != "HTTP/2.0" || res.Trailer.Get("Grpc-Status") != "0" || res.Header.Get("Content-Type") != "application/grpc" {
					t.Errorf("%s %v, trailer %v", res.Proto, res.Header, res.Trailer)
				}
			}
			// Many streams on one connection.
			errs := make(chan error, 50)
			for i := range 50 {
				go func() {
					body := strings.Repeat(fmt.Sprint(i%10), 50_000)
					req, _ := http.NewRequest("POST", g.tlsURL+"/a/1/x", strings.NewReader(body))
					res, err := tr.RoundTrip(req)
					if err == nil {
						var b []byte
						b, err = io.ReadAll(res.Body)
						res.Body.Close()
						if err == nil && string(b) != body {
							err = fmt.Errorf("%d bytes came back of %d", len(b), len(body))
						}
					}
					errs <- err
				}()
			}
			for range 50 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestHTTP2Limits: what the guard does for HTTP/1.1, the handler does for HTTP/2.
func TestHTTP2Limits(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	defer backend.Close()
	dir := t.TempDir()
	cert, key, pool := certificate(t, dir, "a")
	g := start(t, Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key, MaxURIBytes: 1024}, anyAPI(single(backend.URL)))
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	if res, _ := get(t, c, g.tlsURL+"/a/1/"+strings.Repeat("x", 1100)); res.StatusCode != http.StatusRequestURITooLong {
		t.Errorf("long target: %d", res.StatusCode)
	}
	if res, _ := get(t, c, g.tlsURL+"/a/1/x"); res.StatusCode != 200 {
		t.Errorf("afterwards: %d", res.StatusCode)
	}
}
