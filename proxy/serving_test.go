package proxy

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"gatehouse/proxy/definition"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/stage"
)

// echo answers with what it got.
func echo(t testing.TB, name string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Backend", name)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"target": r.RequestURI, "auth": r.Header.Get("Authorization"), "xff": r.Header.Get("X-Forwarded-For"),
			"proto": r.Header.Get("X-Forwarded-Proto"), "host": r.Header.Get("X-Forwarded-Host"), "token": r.Header.Get("X-Token"),
		})
	}))
	t.Cleanup(s.Close)
	return s
}

func do(t *testing.T, g *gateway, method, path string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, g.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		k, v, _ := strings.Cut(h, ": ")
		if k == "Host" {
			req.Host = v
			continue
		}
		req.Header.Add(k, v)
	}
	res, err := g.client.Do(req)
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

func TestAPIsThatCannotBeCompiled(t *testing.T) {
	b := echo(t, "b")
	good := func(uuid, context string) *definition.API {
		a := anyAPI(single(b.URL))
		a.UUID, a.Context = uuid, context
		return a
	}
	g := start(t, Options{}, good("one", "/one/1"), good("two", "/two/1"))
	bad := func(change func(a *definition.API)) *definition.API {
		a := good("two", "/two/1")
		change(a)
		return a
	}
	for name, a := range map[string]*definition.API{
		"no resource":       bad(func(a *definition.API) { a.Operations = nil }),
		"no endpoint":       bad(func(a *definition.API) { a.Production = nil }),
		"bad URL":           bad(func(a *definition.API) { a.Production = single("ftp://x") }),
		"no URL":            bad(func(a *definition.API) { a.Production = &definition.Endpoint{Kind: definition.Single} }),
		"bad template":      bad(func(a *definition.API) { a.Operations[0].Template = "/{x" }),
		"bad method":        bad(func(a *definition.API) { a.Operations[0].Method = "get" }),
		"taken context":     bad(func(a *definition.API) { a.Context = "/one/1" }),
		"unknown kind":      bad(func(a *definition.API) { a.Production.Kind = "magic" }),
		"unknown security":  bad(func(a *definition.API) { a.Production.Security = &definition.EndpointSecurity{Type: "digest"} }),
		"no context":        bad(func(a *definition.API) { a.Context = "" }),
		"resources collide": bad(func(a *definition.API) { a.Operations = append(a.Operations, a.Operations[0]) }),
	} {
		t.Run(name, func(t *testing.T) {
			refused := g.SetAPIs([]*definition.API{good("one", "/one/1"), a, good("three", "/three/1")})
			if len(refused) != 1 || refused["two"] == nil || !strings.Contains(refused["two"].Error(), "API A 1") {
				t.Errorf("refused %v", refused)
			}
			for _, p := range []string{"/one/1/x", "/two/1/x", "/three/1/x"} {
				if res, body := do(t, g, "GET", p); res.StatusCode != 200 {
					t.Errorf("%s: %d %s", p, res.StatusCode, body)
				}
			}
		})
	}
	if refused := g.SetAPIs([]*definition.API{good("one", "/one/1")}); len(refused) > 0 {
		t.Fatal(refused)
	}
	if res, _ := do(t, g, "GET", "/two/1/x"); res.StatusCode != 404 {
		t.Errorf("an API that was taken away still answers %d", res.StatusCode)
	}
	if refused := g.SetAPIs([]*definition.API{bad(func(a *definition.API) { a.Production = nil })}); len(refused) != 1 {
		t.Errorf("refused %v", refused)
	}
	if n := g.upstreams.Hosts(); n != 0 {
		t.Errorf("%d hosts are held for APIs that are not served", n)
	}
}

func TestDefaultVersion(t *testing.T) {
	b1, b2 := echo(t, "1"), echo(t, "2")
	v := func(n, url string, at int64) *definition.API {
		a := anyAPI(single(url))
		a.UUID, a.Version, a.Context, a.IsDefault, a.DefaultContext, a.Origin.At = n, n, "/shop/"+n, true, "/shop", at
		return a
	}
	g := start(t, Options{}, v("1", b1.URL, 1), v("2", b2.URL, 2))
	for path, want := range map[string]string{"/shop/1/x": "1", "/shop/2/x": "2", "/shop/x": "2", "/shop": "2"} {
		if res, body := do(t, g, "GET", path); res.Header.Get("X-Backend") != want {
			t.Errorf("%s: backend %q, want %s: %s", path, res.Header.Get("X-Backend"), want, body)
		}
	}
	if _, body := do(t, g, "GET", "/shop/x/y?z=1"); !strings.Contains(body, `"target":"/x/y?z=1"`) {
		t.Errorf("forwarded %s", body)
	}
}

func TestReadyAndHealth(t *testing.T) {
	var ready atomic.Bool
	g := start(t, Options{Ready: ready.Load}, anyAPI(single(echo(t, "b").URL)))
	res, body := do(t, g, "GET", "/a/1/x")
	if res.StatusCode != 503 || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, "900900") {
		t.Errorf("not ready: %d %v %s", res.StatusCode, res.Header, body)
	}
	if res, body = do(t, g, "GET", "/health"); res.StatusCode != 503 {
		t.Errorf("health: %d %s", res.StatusCode, body)
	}
	ready.Store(true)
	if res, _ = do(t, g, "GET", "/a/1/x"); res.StatusCode != 200 {
		t.Errorf("ready: %d", res.StatusCode)
	}
	if res, body = do(t, g, "GET", "/health"); res.StatusCode != 200 || body != `{"status":"healthy"}` {
		t.Errorf("health: %d %s", res.StatusCode, body)
	}
}

func TestTrustedProxies(t *testing.T) {
	b := echo(t, "b")
	for _, c := range []struct {
		name           string
		trusted        []string
		xff            []string
		client, passed string
	}{
		{"nobody is trusted", nil, []string{"6.6.6.6"}, "127.0.0.1", "127.0.0.1"},
		{"others are trusted", []string{"10.0.0.0/8"}, []string{"6.6.6.6"}, "127.0.0.1", "127.0.0.1"},
		{"peer is trusted", []string{"127.0.0.0/8"}, []string{"6.6.6.6"}, "6.6.6.6", "6.6.6.6, 127.0.0.1"},
		{"right-most that is not trusted", []string{"127.0.0.1", "10.0.0.0/8"}, []string{"6.6.6.6, 192.0.2.9, 10.1.1.1"}, "192.0.2.9", "6.6.6.6, 192.0.2.9, 10.1.1.1, 127.0.0.1"},
		{"several lines", []string{"127.0.0.1", "10.0.0.0/8"}, []string{"6.6.6.6, 192.0.2.9", "10.1.1.1"}, "192.0.2.9", "6.6.6.6, 192.0.2.9, 10.1.1.1, 127.0.0.1"},
		{"all are trusted", []string{"127.0.0.1", "10.0.0.0/8"}, []string{"10.2.2.2, 10.1.1.1"}, "10.2.2.2", "10.2.2.2, 10.1.1.1, 127.0.0.1"},
		{"nonsense ends the belief", []string{"127.0.0.1", "10.0.0.0/8"}, []string{"6.6.6.6, unknown, 10.1.1.1"}, "10.1.1.1", "6.6.6.6, unknown, 10.1.1.1, 127.0.0.1"},
		{"mapped and with a port", []string{"127.0.0.1"}, []string{"[::ffff:192.0.2.9]:4711"}, "192.0.2.9", "[::ffff:192.0.2.9]:4711, 127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := start(t, Options{TrustedProxies: c.trusted}, anyAPI(single(b.URL)))
			var h []string
			for _, x := range c.xff {
				h = append(h, "X-Forwarded-For: "+x)
			}
			res, body := do(t, g, "GET", "/a/1/x", append(h, "X-Forwarded-Proto: https", "X-Forwarded-Host: front.example.com")...)
			v, ok := g.Traces().Find(res.Header.Get("X-Request-Id"))
			if !ok || v.ClientIP != c.client {
				t.Errorf("client %q, want %q", v.ClientIP, c.client)
			}
			if !strings.Contains(body, `"xff":"`+c.passed+`"`) {
				t.Errorf("passed on %s, want %s", body, c.passed)
			}
			if trusted := strings.Contains(c.passed, ","); trusted != strings.Contains(body, `"proto":"https"`) || trusted != strings.Contains(body, `"host":"front.example.com"`) {
				t.Errorf("X-Forwarded-Proto and -Host: %s", body)
			}
		})
	}
	if _, err := New(Options{HTTP: ":0", TrustedProxies: []string{"nonsense"}}); err == nil {
		t.Error("a bad address was taken")
	}
}

func TestCredentials(t *testing.T) {
	b := echo(t, "b")
	d := &domains{}
	api := func() *definition.API {
		a := anyAPI(single(b.URL))
		for i := range a.Operations {
			a.Operations[i].Unsecured = false
		}
		a.Operations = append(a.Operations, definition.Operation{Template: "/open", Method: "GET", Unsecured: true})
		return a
	}
	dom := stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d}
	g := start(t, Options{Domains: dom}, api())
	if _, body := do(t, g, "GET", "/a/1/x", "Authorization: Bearer good"); !strings.Contains(body, `"auth":""`) {
		t.Errorf("the credential reached the backend: %s", body)
	}
	if _, body := do(t, g, "GET", "/a/1/open", "Authorization: Bearer whatever"); !strings.Contains(body, `"auth":"Bearer whatever"`) {
		t.Errorf("the credential of an unsecured resource did not: %s", body)
	}
	if res, body := do(t, g, "GET", "/a/1/x?access_token=good"); res.StatusCode != 401 || !strings.Contains(body, "900902") {
		t.Errorf("a token of the query was looked at: %d %s", res.StatusCode, body)
	}
	dom.KeepCredential = true
	g = start(t, Options{Domains: dom}, api())
	if _, body := do(t, g, "GET", "/a/1/x", "Authorization: Bearer good"); !strings.Contains(body, `"auth":"Bearer good"`) {
		t.Errorf("the credential was to be kept: %s", body)
	}
	a := api()
	a.AuthHeader = "x-token"
	a.Production.Security = &definition.EndpointSecurity{Type: "basic", Username: "user", Password: "pass"}
	g = start(t, Options{Domains: stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d}}, a)
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:pass"))
	if res, body := do(t, g, "GET", "/a/1/x", "X-Token: Bearer good", "Authorization: Bearer other"); res.StatusCode != 200 || !strings.Contains(body, `"auth":"`+want+`"`) || !strings.Contains(body, `"token":""`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

func TestFaultsOverTheWire(t *testing.T) {
	d := &domains{}
	a := anyAPI(single(echo(t, "b").URL))
	a.Operations = []definition.Operation{{Template: "/x", Method: "GET", Scopes: []string{"admin"}}, {Template: "/y", Method: "POST"}}
	for _, dialect := range []string{"mgw", "apim4", "problem"} {
		g := start(t, Options{FaultDialect: dialect, Realm: "Shop", Domains: stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d}}, a)
		for _, c := range []struct {
			method, path, auth string
			status             int
			code               string
			header             map[string]string
		}{
			{"GET", "/nowhere", "", 404, "404", nil},
			{"GET", "/a/1/z", "", 404, "404", nil},
			{"DELETE", "/a/1/x", "", 405, "405", map[string]string{"Allow": "GET, HEAD"}},
			{"GET", "/a/1/x", "", 401, "900902", map[string]string{"Www-Authenticate": `Bearer realm="Shop"`}},
			{"GET", "/a/1/x", "Bearer bad", 401, "900901", map[string]string{"Www-Authenticate": `Bearer realm="Shop", error="invalid_token", error_description="the signature does not match"`}},
			{"GET", "/a/1/x", "Bearer good", 403, "900910", map[string]string{"Www-Authenticate": `Bearer realm="Shop", error="insufficient_scope", scope="admin"`}},
			{"HEAD", "/a/1/x", "", 401, "", nil},
		} {
			h := []string{"X-Request-Id: my-id"}
			if c.auth != "" {
				h = append(h, "Authorization: "+c.auth)
			}
			res, body := do(t, g, c.method, c.path, h...)
			if res.StatusCode != c.status || !strings.Contains(body, c.code) {
				t.Errorf("%s: %s %s: %d %s", dialect, c.method, c.path, res.StatusCode, body)
			}
			if res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("X-Request-Id") != "my-id" {
				t.Errorf("%s: %s %s: header %v", dialect, c.method, c.path, res.Header)
			}
			for k, v := range c.header {
				if res.Header.Get(k) != v {
					t.Errorf("%s: %s %s: %s is %q, want %q", dialect, c.method, c.path, k, res.Header.Get(k), v)
				}
			}
		}
		res, body := do(t, g, "POST", "/a/1/x", "Content-Type: application/grpc", "Te: trailers")
		if res.StatusCode != 200 || res.Header.Get("Grpc-Status") != "12" || body != "" {
			t.Errorf("gRPC: %d %v %q", res.StatusCode, res.Header, body)
		}
	}
}

func TestCompatibility(t *testing.T) {
	d := &domains{}
	a := anyAPI(nil)
	a.Sandbox = single("http://127.0.0.1:1")
	for i := range a.Operations {
		a.Operations[i].Unsecured = false
	}
	dom := stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d}
	g := start(t, Options{Domains: dom, Compat: Compat{EndpointError: true}}, a)
	if res, body := do(t, g, "GET", "/a/1/x", "Authorization: Bearer good"); res.StatusCode != 403 || body != `{"ERROR_CODE":"900901","ERROR_MESSAGE":"Production key offered to the API with no production endpoint"}` {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	g = start(t, Options{Compat: Compat{Upstream500: true}}, anyAPI(single("http://127.0.0.1:1")))
	if res, body := do(t, g, "GET", "/a/1/x"); res.StatusCode != 500 || !strings.Contains(body, "101503") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

func TestCORS(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "https://backend.example.com")
		w.Header().Set("Vary", "Accept")
	}))
	defer backend.Close()
	d := &domains{}
	api := func(c *definition.CORS) *definition.API {
		a := anyAPI(single(backend.URL))
		a.CORS = c
		a.Operations = []definition.Operation{{Template: "/x", Method: "GET"}, {Template: "/x", Method: "POST"}, {Template: "/open", Method: "GET", Unsecured: true}}
		return a
	}
	exact := &definition.CORS{
		Enabled: true, AllowOrigins: []string{"https://app.example.com", "https://*.example.org"}, AllowHeaders: []string{"Authorization", "X-A"},
		ExposeHeaders: []string{"X-B"}, AllowCredentials: true, MaxAge: time.Hour,
	}
	for _, c := range []struct {
		name          string
		cors          *definition.CORS
		method, path  string
		origin, asked string
		status        int
		want          map[string]string
	}{
		{"preflight", exact, "OPTIONS", "/a/1/x", "https://app.example.com", "POST", 204, map[string]string{
			"Access-Control-Allow-Origin": "https://app.example.com", "Access-Control-Allow-Methods": "GET, HEAD, POST",
			"Access-Control-Allow-Headers": "Authorization, X-A", "Access-Control-Allow-Credentials": "true", "Access-Control-Max-Age": "3600", "Vary": "Origin",
		}},
		{"preflight of a pattern", exact, "OPTIONS", "/a/1/x", "https://a.b.example.org", "POST", 204, map[string]string{"Access-Control-Allow-Origin": "https://a.b.example.org"}},
		{"preflight of another origin", exact, "OPTIONS", "/a/1/x", "https://evil.example.com", "POST", 204, map[string]string{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Methods": "", "Vary": "Origin"}},
		{"pattern is no suffix", exact, "OPTIONS", "/a/1/x", "https://example.org", "POST", 204, map[string]string{"Access-Control-Allow-Origin": ""}},
		{"pattern holds no port", exact, "OPTIONS", "/a/1/x", "https://evil.com:1.example.org", "POST", 204, map[string]string{"Access-Control-Allow-Origin": ""}},
		{"a plain OPTIONS is none", exact, "OPTIONS", "/a/1/x", "https://app.example.com", "", 405, map[string]string{"Allow": "GET, HEAD, POST", "Access-Control-Allow-Origin": "https://app.example.com"}},
		{"on an error", exact, "GET", "/a/1/x", "https://app.example.com", "", 401, map[string]string{"Access-Control-Allow-Origin": "https://app.example.com", "Access-Control-Expose-Headers": "X-B"}},
		{"in place of the backend's", exact, "GET", "/a/1/open", "https://app.example.com", "", 200, map[string]string{"Access-Control-Allow-Origin": "https://app.example.com", "Vary": "Accept, Origin"}},
		{"another origin gets none, not even the backend's", exact, "GET", "/a/1/open", "https://evil.example.com", "", 200, map[string]string{"Access-Control-Allow-Origin": ""}},
		{"star", &definition.CORS{Enabled: true, AllowOrigins: []string{"*"}}, "GET", "/a/1/open", "https://any.example.com", "", 200, map[string]string{"Access-Control-Allow-Origin": "*", "Vary": "Accept"}},
		{"star with credentials", &definition.CORS{Enabled: true, AllowOrigins: []string{"*"}, AllowCredentials: true}, "GET", "/a/1/open", "https://any.example.com", "", 200, map[string]string{"Access-Control-Allow-Origin": "https://any.example.com", "Vary": "Accept, Origin"}},
		{"global policy", nil, "OPTIONS", "/a/1/x", "https://global.example.com", "GET", 204, map[string]string{"Access-Control-Allow-Origin": "https://global.example.com", "Access-Control-Allow-Methods": "GET, PUT"}},
		{"switched off for the API", &definition.CORS{}, "GET", "/a/1/open", "https://global.example.com", "", 200, map[string]string{"Access-Control-Allow-Origin": "https://backend.example.com"}},
		{"preflight of nothing", exact, "OPTIONS", "/a/1/none", "https://app.example.com", "GET", 404, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := start(t, Options{
				CORS:    &definition.CORS{Enabled: true, AllowOrigins: []string{"https://global.example.com"}, AllowMethods: []string{"GET", "PUT"}},
				Domains: stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d},
			}, api(c.cors))
			h := []string{"Origin: " + c.origin}
			if c.asked != "" {
				h = append(h, "Access-Control-Request-Method: "+c.asked)
			}
			res, body := do(t, g, c.method, c.path, h...)
			if res.StatusCode != c.status {
				t.Errorf("%d %s", res.StatusCode, body)
			}
			for k, v := range c.want {
				if got := strings.Join(res.Header.Values(k), ", "); got != v {
					t.Errorf("%s: %q, want %q", k, got, v)
				}
			}
		})
	}
}

// TestCORSWithoutAPI: a browser shows a script no error without these fields.
func TestCORSWithoutAPI(t *testing.T) {
	var ready atomic.Bool
	ready.Store(true)
	g := start(t, Options{Ready: ready.Load, CORS: &definition.CORS{Enabled: true, AllowOrigins: []string{"https://app.example.com"}}}, anyAPI(single("http://127.0.0.1:1")))
	for _, status := range []int{404, 503} {
		ready.Store(status == 404)
		if res, _ := do(t, g, "GET", "/nowhere", "Origin: https://app.example.com"); res.StatusCode != status || res.Header.Get("Access-Control-Allow-Origin") != "https://app.example.com" {
			t.Errorf("%d %v", res.StatusCode, res.Header)
		}
	}
}

func TestLoadBalanceAndFailover(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		a, b := echo(t, "a"), echo(t, "b")
		broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "broken", http.StatusServiceUnavailable) }))
		defer broken.Close()
		ln, _ := net.Listen("tcp", "127.0.0.1:0")
		dead := "http://" + ln.Addr().String()
		ln.Close()
		for _, c := range []struct {
			name   string
			kind   definition.EndpointKind
			urls   []string
			method string
			want   []string // X-Backend of four requests
		}{
			{"round robin", definition.LoadBalance, []string{a.URL, b.URL}, "GET", []string{"a", "b", "a", "b"}},
			{"round robin around a dead host", definition.LoadBalance, []string{a.URL, dead}, "POST", []string{"a", "a", "a", "a"}},
			{"several URLs without a kind", "", []string{a.URL, b.URL}, "GET", []string{"a", "b", "a", "b"}},
			{"single takes the first", definition.Single, []string{b.URL, a.URL}, "GET", []string{"b", "b", "b", "b"}},
			{"failover stays with the first", definition.Failover, []string{a.URL, b.URL}, "GET", []string{"a", "a", "a", "a"}},
			{"failover from a dead host", definition.Failover, []string{dead, b.URL}, "POST", []string{"b", "b", "b", "b"}},
			{"failover from 503", definition.Failover, []string{broken.URL, b.URL}, "GET", []string{"b", "b", "b", "b"}},
			{"no failover of a POST that arrived", definition.Failover, []string{broken.URL, b.URL}, "POST", []string{"", "", "", ""}},
			{"all are dead", definition.Failover, []string{dead, dead}, "GET", []string{"", "", "", ""}},
		} {
			t.Run(c.name, func(t *testing.T) {
				g := start(t, o, anyAPI(&definition.Endpoint{Kind: c.kind, URLs: c.urls}))
				var got []string
				for range 4 {
					res, _ := do(t, g, c.method, "/a/1/x")
					got = append(got, res.Header.Get("X-Backend"))
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("%q, want %q", got, c.want)
				}
			})
		}
	})
}

func TestMetricsAndAccessLog(t *testing.T) {
	reg := prometheus.NewRegistry()
	d := &domains{}
	a := anyAPI(single(echo(t, "b").URL))
	a.Operations = []definition.Operation{{Template: "/items/{id}", Method: "GET"}}
	g := start(t, Options{Registry: reg, AccessLogUsers: true, MaxAPILabels: 1, Domains: stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d}}, a)
	do(t, g, "GET", "/a/1/items/7?secret=1", "Authorization: Bearer good", "X-Request-Id: r1", "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	do(t, g, "GET", "/a/1/items/7", "X-Request-Id: r2")
	do(t, g, "GET", "/none", "X-Request-Id: r3")
	g.stop()
	var lines []map[string]any
	for l := range strings.Lines(g.log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatalf("%s: %v", l, err)
		}
		lines = append(lines, m)
	}
	slices.SortFunc(lines, func(a, b map[string]any) int {
		return strings.Compare(fmt.Sprint(a["request_id"]), fmt.Sprint(b["request_id"]))
	})
	if len(lines) != 3 {
		t.Fatalf("%d lines", len(lines))
	}
	for k, want := range map[string]any{
		"request_id": "r1", "trace_id": "0af7651916cd43dd8448eb211c80319c", "client_ip": "127.0.0.1", "method": "GET", "path": "/a/1/items/7?…", "route": "/items/{id}", "api": "A", "version": "1",
		"application": "App", "user": "bob@carbon.super", "status": 200.0, "upstream_status": 200.0, "retries": 0.0, "protocol": "HTTP/1.1",
	} {
		if lines[0][k] != want {
			t.Errorf("%s: %v, want %v", k, lines[0][k], want)
		}
	}
	if k, _ := lines[0]["consumer_key"].(string); len(k) != 16 || k == "ck" {
		t.Errorf("consumer_key %q", k)
	}
	if lines[1]["status"] != 401.0 || lines[1]["code"] != 900902.0 || lines[1]["refused_at"] != "authenticate" || lines[1]["upstream"] != nil {
		t.Errorf("refused: %v", lines[1])
	}
	if strings.Contains(g.log.String(), "secret") || strings.Contains(g.log.String(), "good") {
		t.Error("the log holds a query or a token")
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP gatehouse_requests_total Requests by API, method, class of the status, and decision.
# TYPE gatehouse_requests_total counter
gatehouse_requests_total{api="",code_class="4xx",decision="refused",method="GET",version=""} 1
gatehouse_requests_total{api="A",code_class="2xx",decision="admitted",method="GET",version="1"} 1
gatehouse_requests_total{api="A",code_class="4xx",decision="refused",method="GET",version="1"} 1
# HELP gatehouse_refusals_total Refused requests by step and fault code.
# TYPE gatehouse_refusals_total counter
gatehouse_refusals_total{code="404",reason="route"} 1
gatehouse_refusals_total{code="900902",reason="authenticate"} 1
`), "gatehouse_requests_total", "gatehouse_refusals_total"); err != nil {
		t.Error(err)
	}
	if m := g.metrics.of("B", "1"); m.api != "other" {
		t.Errorf("the label api grows: %q", m.api)
	}
}

func TestExplain(t *testing.T) {
	d := &domains{}
	a := anyAPI(single("http://127.0.0.1:1"))
	for i := range a.Operations {
		a.Operations[i].Unsecured = false
	}
	g := start(t, Options{Domains: stage.Domains{Authenticator: d, Subscriptions: d, Denier: d, Throttler: d}}, a)
	v := g.Explain(t.Context(), Description{Path: "/a/1/x?y", ClientIP: netip.MustParseAddr("::ffff:192.0.2.1"), Header: http.Header{"authorization": {"Bearer good"}}})
	if !v.Allowed || v.ClientIP != "192.0.2.1" || v.Method != "GET" || v.Steps[0].Result != "matched" {
		t.Errorf("%+v", v)
	}
	if d.published != 0 {
		t.Error("an event was published")
	}
	if _, ok := g.Traces().Find(v.RequestID); ok {
		t.Error("it stands in the rings")
	}
	for _, c := range []struct {
		d      Description
		status int
	}{{Description{Path: "/a/1/x"}, 401}, {Description{Path: "/none"}, 404}, {Description{Path: "/a/1/x", Method: "TRACE"}, 405}, {Description{Path: "nonsense"}, 400}} {
		if v := g.Explain(t.Context(), c.d); v.Allowed || v.Status != c.status || v.Steps[len(v.Steps)-1].Reason == "" {
			t.Errorf("%+v: %+v", c.d, v)
		}
	}
}

func TestTransports(t *testing.T) {
	a := anyAPI(single(echo(t, "b").URL))
	a.Transports = []string{"https"}
	g := start(t, Options{}, a)
	if res, _ := do(t, g, "GET", "/a/1/x"); res.StatusCode != 404 {
		t.Errorf("an API for https alone answers %d over http", res.StatusCode)
	}
}

func TestRefusalsAreTold(t *testing.T) {
	var told []string
	g := start(t, Options{OnRefusal: func(t *pipeline.Trace) { told = append(told, t.RequestID) }}, anyAPI(single(echo(t, "b").URL)))
	do(t, g, "GET", "/none", "X-Request-Id: r1")
	do(t, g, "GET", "/a/1/x", "X-Request-Id: r2")
	g.stop()
	if !slices.Equal(told, []string{"r1"}) {
		t.Errorf("%v", told)
	}
}
