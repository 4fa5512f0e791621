package controlplane

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	flag.Parse()
	goleak.VerifyTestMain(m)
}

const testUser, testPassword = "gateway", "s3cret-word"

// serve starts an HTTPS server that checks the credentials and answers with handler, and returns a client of it.
func serve(t *testing.T, handler http.HandlerFunc, change ...func(*Options)) *Client {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != testUser || p != testPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="APIM"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			w.Write(sample(t, "error-401.json"))
			return
		}
		handler(w, r)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // handshakes that fail on purpose
	srv.StartTLS()
	t.Cleanup(srv.Close)
	opt := Options{ServiceURL: srv.URL, Username: testUser, Password: testPassword, HTTPClient: srv.Client(), UserAgent: "Gatehouse/test"}
	for _, f := range change {
		f(&opt)
	}
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "rest", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden compares got, as JSON, with a file of testdata/golden.
func golden(t *testing.T, name string, got any) {
	t.Helper()
	b, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, '\n')
	file := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(b)); diff != "" {
		t.Errorf("differs from %s (-want +got):\n%s", file, diff)
	}
}

func collect[T any](f func(context.Context, ListQuery, func(T) error) (Meta, error)) func(context.Context, ListQuery) (any, Meta, error) {
	return func(ctx context.Context, q ListQuery) (any, Meta, error) {
		var rows []T
		m, err := f(ctx, q, func(row T) error { rows = append(rows, row); return nil })
		return rows, m, err
	}
}

// lists are the calls that answer a whole table, by path.
func lists(c *Client) map[string]func(context.Context, ListQuery) (any, Meta, error) {
	return map[string]func(context.Context, ListQuery) (any, Meta, error){
		"/apis":                     collect(c.APIs),
		"/applications":             collect(c.Applications),
		"/application-key-mappings": collect(c.KeyMappings),
		"/subscriptions":            collect(c.Subscriptions),
		"/subscription-policies":    collect(c.SubscriptionPolicies),
		"/application-policies":     collect(c.ApplicationPolicies),
		"/api-policies":             collect(c.APIPolicies),
		"/global-policies":          collect(c.GlobalPolicies),
		"/scopes":                   collect(c.Scopes),
		"/keymanagers":              collect(c.KeyManagers),
		"/keyTemplates": func(ctx context.Context, _ ListQuery) (any, Meta, error) {
			v, m, err := c.KeyTemplates(ctx)
			return v, m, err
		},
		"/block": func(ctx context.Context, _ ListQuery) (any, Meta, error) {
			v, m, err := c.Block(ctx)
			return v, m, err
		},
		"/revokedjwt": func(ctx context.Context, _ ListQuery) (any, Meta, error) {
			v, m, err := c.Revoked(ctx)
			return v, m, err
		},
	}
}

func TestListsReadTheSamples(t *testing.T) {
	for _, tc := range []struct {
		path, file string
		rows       int
	}{
		{"/apis", "apis.json", 3},
		{"/apis", "apis-empty.json", 0},
		{"/apis", "apis-by-context-version.json", 1},
		{"/applications", "applications.json", 3},
		{"/applications", "applications-by-id.json", 1},
		{"/application-key-mappings", "application-key-mappings.json", 5},
		{"/application-key-mappings", "application-key-mappings-by-key.json", 1},
		{"/subscriptions", "subscriptions.json", 6},
		{"/subscriptions", "subscriptions-by-api-and-app.json", 1},
		{"/subscription-policies", "subscription-policies.json", 8},
		{"/subscription-policies", "subscription-policies-by-name.json", 1},
		{"/application-policies", "application-policies.json", 4},
		{"/application-policies", "application-policies-by-name.json", 1},
		{"/api-policies", "api-policies.json", 3},
		{"/api-policies", "api-policies-by-name.json", 1},
		{"/global-policies", "global-policies.json", 2},
		{"/scopes", "scopes.json", 3},
		{"/keymanagers", "keymanagers.json", 2},
		{"/keyTemplates", "keyTemplates.json", 2},
		{"/block", "block.json", 6},
		{"/revokedjwt", "revokedjwt.json", 2},
		{"/revokedjwt", "revokedjwt-events.json", 4},
	} {
		t.Run(tc.file, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/internal/data/v1"+tc.path || r.Method != http.MethodGet {
					t.Errorf("asked %s %s", r.Method, r.URL.Path)
				}
				w.Header().Set("Content-Type", "application/json")
				w.Write(sample(t, tc.file))
			})
			got, meta, err := lists(c)[tc.path](t.Context(), ListQuery{})
			if err != nil {
				t.Fatal(err)
			}
			if meta.Rows != tc.rows || meta.Odd != 0 {
				t.Errorf("%d rows, %d odd (%s), want %d and 0", meta.Rows, meta.Odd, meta.OddAt, tc.rows)
			}
			if meta.ServerDate.IsZero() || meta.Started.IsZero() || meta.Finished.Before(meta.Started) {
				t.Errorf("times are %+v", meta)
			}
			golden(t, tc.file, got)
		})
	}
}

func TestRequestOfAList(t *testing.T) {
	for _, tc := range []struct {
		name   string
		path   string
		query  ListQuery
		want   url.Values
		tenant string
	}{
		{"no tenant", "/subscriptions", ListQuery{}, url.Values{}, ""},
		{"one tenant", "/subscriptions", ListQuery{Tenant: "example.org"}, url.Values{}, "example.org"},
		{"every tenant", "/applications", ListQuery{Tenant: "*"}, url.Values{"organizationId": {"ALL"}}, "ALL"},
		{"label is plain", "/apis", ListQuery{Label: "Edge EU|x"}, url.Values{"expand": {"true"}, "gatewayLabel": {"Edge EU|x"}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if diff := cmp.Diff(tc.want, r.URL.Query()); diff != "" {
					t.Errorf("query (-want +got):\n%s", diff)
				}
				if got := r.Header.Get("xWSO2Tenant"); got != tc.tenant {
					t.Errorf("tenant header %q, want %q", got, tc.tenant)
				}
				if got := r.Header.Get("Accept"); got != "application/json" {
					t.Errorf("Accept is %q", got)
				}
				if got := r.Header.Get("User-Agent"); got != "Gatehouse/test" {
					t.Errorf("User-Agent is %q", got)
				}
				io.WriteString(w, `{"count":0,"list":[]}`)
			})
			if _, _, err := lists(c)[tc.path](t.Context(), tc.query); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestFaultsAreTyped(t *testing.T) {
	subs := string(sample(t, "subscriptions.json"))
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		change  func(*Options)
		kind    Kind
		status  int
		text    string // part of the message
	}{
		{name: "wrong password", change: func(o *Options) { o.Password = "other" }, kind: Refused, status: 401, text: "check username and password"},
		{name: "no permission", handler: status(403, ""), kind: Refused, status: 403, text: "lacks the permission"},
		{name: "server fault", handler: status(500, `{"code":500,"message":"boom"}`), kind: Server, status: 500, text: "boom"},
		{name: "too many requests", handler: status(429, ""), kind: Server, status: 429, text: "answered 429"},
		{name: "no such path", handler: status(404, ""), kind: NotFound, status: 404, text: "internal_data_context"},
		{name: "rejected", handler: status(400, "bad tenant"), kind: Rejected, status: 400, text: "bad tenant"},
		{name: "truncated in a row", handler: answerText("application/json", subs[:len(subs)/2]), kind: Bad, status: 200, text: "ended in the middle"},
		{name: "truncated before the end of the envelope", handler: answerText("application/json", `{"list":[]`), kind: Bad, status: 200, text: "after 0 rows"},
		{name: "empty body", handler: answerText("application/json", ``), kind: Bad, status: 200, text: "ended in the middle"},
		{name: "text behind the envelope", handler: answerText("application/json", `{"list":[]}}`), kind: Bad, status: 200, text: "after the end"},
		{name: "no list", handler: answerText("application/json", `{"count":3}`), kind: Bad, status: 200, text: `no member "list"`},
		{name: "list is an object", handler: answerText("application/json", `{"list":{}}`), kind: Bad, status: 200, text: "not an array"},
		{name: "two lists", handler: answerText("application/json", `{"list":[],"list":[]}`), kind: Bad, status: 200, text: "two members"},
		{name: "count differs", handler: answerText("application/json", `{"count":7,"list":[{}]}`), kind: Bad, status: 200, text: "1 rows and says count 7"},
		{name: "a login page", handler: answerText("text/html", `<html>sign in</html>`), kind: Bad, status: 200, text: "text/html, not JSON"},
		{name: "broken connection", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(subs)))
			io.WriteString(w, subs[:len(subs)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, kind: Unreachable, text: "broke within the answer"},
		{name: "larger than the cap", handler: answerText("application/json", subs), change: func(o *Options) { o.MaxListBytes = 100 }, kind: Bad, status: 200, text: "more than 100 bytes"},
		{
			name: "no answer in time", handler: func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			change: func(o *Options) { o.AnswerTimeout = 30 * time.Millisecond }, kind: Unreachable, text: "no answer in time (30ms)",
		},
		{name: "body stands still", handler: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, subs[:100])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, change: func(o *Options) { o.IdleTimeout = 30 * time.Millisecond }, kind: Unreachable, text: "stood still for too long (30ms)"},
		{name: "nobody listens", change: func(o *Options) { o.ServiceURL = "https://" + closedAddress(t) }, kind: Unreachable, text: "connection refused"},
		{name: "certificate not trusted", change: func(o *Options) { o.HTTPClient = nil }, kind: Unreachable, text: "certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			change := tc.change
			if change == nil {
				change = func(*Options) {}
			}
			c := serve(t, tc.handler, change)
			_, err := c.Subscriptions(t.Context(), ListQuery{}, func(Subscription) error { return nil })
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error is %v, not an *Error", err)
			}
			if e.Kind != tc.kind || e.Status != tc.status {
				t.Errorf("kind %v, status %d, want %v, %d: %v", e.Kind, e.Status, tc.kind, tc.status, err)
			}
			text := err.Error()
			if !strings.Contains(text, tc.text) {
				t.Errorf("message %q lacks %q", text, tc.text)
			}
			if !strings.HasPrefix(text, "list subscriptions: GET https://") || strings.Contains(text, testPassword) {
				t.Errorf("message %q must name the call and hold no password", text)
			}
		})
	}
}

func closedAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

func answerText(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	}
}

func TestCompressedAnswerIsUnpacked(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			t.Errorf("Accept-Encoding is %q", r.Header.Get("Accept-Encoding"))
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Disposition", "attachment")
		z := gzip.NewWriter(w)
		z.Write(sample(t, "subscriptions.json"))
		if r.URL.Query().Get("organizationId") == "ALL" {
			z.Flush() // the end of the stream is missing
			return
		}
		z.Close()
	})
	rows := 0
	if _, err := c.Subscriptions(t.Context(), ListQuery{}, func(Subscription) error { rows++; return nil }); err != nil || rows != 6 {
		t.Errorf("%d rows, %v", rows, err)
	}
	if _, err := c.Subscriptions(t.Context(), ListQuery{Tenant: "*"}, func(Subscription) error { return nil }); KindOf(err) != Unreachable {
		t.Errorf("a cut gzip stream gives %v", err)
	}
}

func TestCancelledCallKeepsItsCause(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Scopes(ctx, ListQuery{}, func(Scope) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v does not hold the cause", err)
	}
}

func TestErrorOfTheCallerComesBackAsItIs(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(sample(t, "subscriptions.json")) })
	stop := errors.New("table is full")
	calls := 0
	_, err := c.Subscriptions(t.Context(), ListQuery{}, func(Subscription) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("error %v after %d calls, want %v after 1", err, calls, stop)
	}
}

func TestOddValuesAreLoggedOnce(t *testing.T) {
	body := `[{"subscriptionId":{}}]`
	var log bytes.Buffer
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) }, func(o *Options) { o.Logger = zerolog.New(&log).Level(zerolog.InfoLevel) })
	read := func() Meta {
		t.Helper()
		m, err := c.Subscriptions(t.Context(), ListQuery{}, func(Subscription) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := read(); m.Odd != 1 || m.OddAt != "byte 18: an object where a whole number is expected" {
		t.Errorf("%+v", m)
	}
	read()
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("two equal answers gave %d lines:\n%s", n, log.String())
	}
	body = `[{"subscriptionId":{}}, 7]`
	read()
	body = `[]`
	read()
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("a change and its end gave %d lines in all:\n%s", n, log.String())
	}
}

func BenchmarkSubscriptionsOverTLS(b *testing.B) {
	const rows = 100_000
	body := subscriptionsBody(rows)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) }))
	defer srv.Close()
	client := srv.Client()
	client.Transport.(*http.Transport).DisableCompression = true
	c, err := New(Options{ServiceURL: srv.URL, HTTPClient: client})
	if err != nil {
		b.Fatal(err)
	}
	defer c.http.CloseIdleConnections()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		m, err := c.Subscriptions(b.Context(), ListQuery{}, func(Subscription) error { return nil })
		if err != nil || m.Rows != rows {
			b.Fatal(m.Rows, err)
		}
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

func TestRedirects(t *testing.T) {
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("the other host was asked, with Authorization %q", r.Header.Get("Authorization"))
	}))
	t.Cleanup(other.Close)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/internal/data/v1/scopes":
			http.Redirect(w, r, other.URL+"/scopes?secret=1", http.StatusFound)
		case "/internal/data/v1/keyTemplates":
			http.Redirect(w, r, "/moved", http.StatusFound)
		case "/moved":
			w.Write(sample(t, "keyTemplates.json"))
		}
	})
	_, err := c.Scopes(t.Context(), ListQuery{}, func(Scope) error { return nil })
	if KindOf(err) != Bad || !strings.Contains(fmt.Sprint(err), "redirect to "+other.URL+", which is not followed") {
		t.Errorf("redirect to another host: %v", err)
	}
	got, _, err := c.KeyTemplates(t.Context())
	if err != nil || len(got) != 2 {
		t.Errorf("redirect within the host: %v, %v", got, err)
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	for service, want := range map[string]string{
		"":                            "should look like",
		"apim.example.com:9443":       "should look like",
		"ftp://apim":                  "should look like",
		"https://u:p@apim":            "holds credentials",
		"https://apim/?a=b":           "no query",
		"https://apim.example.com:ab": "no URL",
	} {
		_, err := New(Options{ServiceURL: service})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", service, err, want)
		}
	}
	for _, tc := range [][3]string{
		{"https://apim:9443", "", "https://apim:9443/internal/data/v1"},
		{"https://apim:9443/", "/internal/data/v1/", "https://apim:9443/internal/data/v1"},
		{"https://proxy/apim/", "throttle/data/v1", "https://proxy/apim/throttle/data/v1"},
	} {
		c, err := New(Options{ServiceURL: tc[0], Context: tc[1]})
		if err != nil || c.base != tc[2] {
			t.Errorf("%s + %s = %v, %v, want %s", tc[0], tc[1], c, err, tc[2])
		}
	}
}
