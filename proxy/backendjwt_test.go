package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/stage"
)

// signer makes a backend JWT of everybody, or fails.
type signer struct{ err error }

func (s signer) Token(c *keymanager.Caller, _ time.Time) (string, error) {
	return "signed for " + c.APIName, s.err
}

// assertions is a gateway whose backends are told who calls.
func assertions(t *testing.T, through bool, d stage.Domains, url string) *gateway {
	t.Helper()
	d.AssertAnonymous = true
	o := Options{BackendTokenHeader: "X-JWT-Assertion", Domains: d}
	o.Upstream.Transport = through
	return start(t, o, anyAPI(single(url)))
}

// No spelling that a backend may take for the header of the gateway gets through, in header or trailer.
func TestAForgedAssertionIsRemoved(t *testing.T) {
	type received struct{ header, trailer http.Header }
	got := make(chan received, 1)
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got <- received{r.Header, r.Trailer}
	}))
	defer backend.Close()
	for _, through := range []bool{false, true} {
		for name, d := range map[string]stage.Domains{
			"signed": {Asserter: signer{}}, "omitted": {Asserter: signer{errors.New("no")}, OmitAssertion: true}, "none due": {},
		} {
			t.Run(fmt.Sprint(name, " ", through), func(t *testing.T) {
				g := assertions(t, through, d, backend.URL)
				for _, forged := range []string{"X-Jwt-Assertion", "x-jwt-assertion", "X-JWT-ASSERTION", "X_JWT_Assertion", "x_jwt_assertion", "X-Jwt_Assertion", "X.JWT.Assertion", "x~jwt|assertion"} {
					c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					_ = c.SetDeadline(time.Now().Add(10 * time.Second))
					_, _ = fmt.Fprintf(c, "POST /a/1/x HTTP/1.1\r\nHost: h\r\n%[1]s: forged\r\n%[1]s: twice\r\nX-JWT-Assertions: other\r\nTransfer-Encoding: chunked\r\nTrailer: %[1]s, X-Sum\r\n\r\n1\r\na\r\n0\r\n%[1]s: forged\r\nX-Sum: 1\r\n\r\n", forged)
					res, err := http.ReadResponse(bufio.NewReader(c), nil)
					if err != nil || res.StatusCode != 200 {
						t.Fatalf("%s: %v %v", forged, res, err)
					}
					r := <-got
					want := []string{}
					if name == "signed" {
						want = []string{"signed for A"}
					}
					for _, h := range []http.Header{r.header, r.trailer} {
						for k, v := range h {
							if slices.Contains(v, "forged") || slices.Contains(v, "twice") {
								t.Errorf("%s got through as %s: %v", forged, k, v)
							}
						}
					}
					if v := r.header.Values("X-Jwt-Assertion"); !slices.Equal(v, want) && len(v)+len(want) > 0 {
						t.Errorf("with %s the backend got %v, want %v", forged, v, want)
					}
					if r.header.Get("X-Jwt-Assertions") != "other" || r.trailer.Get("X-Sum") != "1" {
						t.Errorf("other fields are gone: %v %v", r.header, r.trailer)
					}
				}
			})
		}
	}
}

// A client that names the field in Connection asks for it to be taken away on the way; it is not the client's.
func TestAnAssertionIsNoHopByHopField(t *testing.T) {
	got := make(chan http.Header, 1)
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header }))
	defer backend.Close()
	for _, through := range []bool{false, true} {
		g := assertions(t, through, stage.Domains{Asserter: signer{}}, backend.URL)
		req, _ := http.NewRequest("GET", g.url+"/a/1/x", nil)
		req.Header.Set("Connection", "X-JWT-Assertion")
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if h := <-got; h.Get("X-Jwt-Assertion") != "signed for A" {
			t.Errorf("the backend got %v", h)
		}
	}
}

func TestWithoutAnAssertionTheBackendIsNotCalled(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the backend was called") }))
	defer backend.Close()
	g := assertions(t, false, stage.Domains{Asserter: signer{errors.New("secret reason")}}, backend.URL)
	res, err := g.client.Get(g.url + "/a/1/x")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != 500 || !strings.Contains(string(b), "900900") || strings.Contains(string(b), "secret") {
		t.Errorf("%d %s", res.StatusCode, b)
	}
}

func TestTheKeySetIsPublished(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "backend") }))
	defer backend.Close()
	const set = `{"keys":[{"kid":"a"}]}`
	ready := false
	o := Options{KeySet: func() []byte { return []byte(set) }, KeySetMaxAge: 5 * time.Minute, Ready: func() bool { return ready }}
	g := start(t, o, anyAPI(single(backend.URL)))
	call := func(method, path string) (int, string, http.Header) {
		t.Helper()
		req, _ := http.NewRequest(method, g.url+path, nil)
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b), res.Header
	}
	paths := []string{"/.well-known/jwks.json", "/.wellknown/jwks"}
	for _, path := range paths {
		status, body, h := call("GET", path)
		if status != 200 || body != set || h.Get("Cache-Control") != "max-age=300" || h.Get("Content-Type") != "application/json" || h.Get("X-Request-Id") == "" {
			t.Errorf("%s before the gateway is ready: %d %s %v", path, status, body, h)
		}
		status, body, h = call("HEAD", path)
		if status != 200 || body != "" || h.Get("Content-Length") != fmt.Sprint(len(set)) {
			t.Errorf("HEAD %s: %d %q %v", path, status, body, h)
		}
	}
	ready = true
	for path, want := range map[string]int{
		"GET /.well-known/jwks.json": 200, "GET /.wellknown/jwks": 200, "GET /.well-known/jwks.json?x": 200,
		"POST /.well-known/jwks.json": 404, "GET /.well-known/jwks.json/x": 404, "GET /.well-known/jwks": 404, "GET /.well-known/": 404,
	} {
		method, path, _ := strings.Cut(path, " ")
		if status, body, _ := call(method, path); status != want || (body == set) != (want == 200) {
			t.Errorf("%s %s: %d %s", method, path, status, body)
		}
	}
	// An API at such a path is there on purpose.
	mine := anyAPI(single(backend.URL))
	mine.UUID, mine.Context = "mine", "/.well-known"
	if refused := g.SetAPIs([]*definition.API{mine}); len(refused) > 0 {
		t.Fatal(refused)
	}
	if _, body, _ := call("GET", paths[0]); body != "backend" {
		t.Errorf("an API at /.well-known is hidden: %s", body)
	}
	if _, body, _ := call("GET", paths[1]); body != set {
		t.Errorf("%s", body)
	}
}

func TestNoKeySetWithoutKeys(t *testing.T) {
	backend := httptest.NewServer(http.NotFoundHandler())
	defer backend.Close()
	g := start(t, Options{}, anyAPI(single(backend.URL)))
	res, err := g.client.Get(g.url + "/.well-known/jwks.json")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 404 {
		t.Errorf("%d", res.StatusCode)
	}
}

func FuzzLooksLike(f *testing.F) {
	f.Add("X-JWT-Assertion", "x_jwt_assertion")
	f.Add("X-JWT-Assertion", "X-JWT-Assertions")
	f.Add("a1", "A2")
	f.Fuzz(func(t *testing.T, a, b string) {
		variable := func(s string) string { // as CGI hands a field on
			return strings.Map(func(r rune) rune {
				if 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
					return r
				}
				return '_'
			}, strings.ToUpper(s))
		}
		for _, s := range []string{a, b} {
			for i := range len(s) {
				if s[i] >= 0x80 {
					return // not a field name
				}
			}
		}
		h := http.Header{a: {"x"}}
		dropForged(h, []string{b})
		if gone := len(h) == 0; gone != (variable(a) == variable(b)) {
			t.Errorf("%q and %q: dropped %v", a, b, gone)
		}
	})
}

func BenchmarkDropForged(b *testing.B) {
	h := http.Header{"User-Agent": {"x"}, "Accept": {"*/*"}, "Authorization": {"x"}, "X-Request-Id": {"x"}, "Accept-Encoding": {"gzip"}, "X-Other-Field-0": {"x"}}
	names := []string{"X-Jwt-Assertion"}
	b.ReportAllocs()
	for b.Loop() {
		dropForged(h, names)
	}
}
