package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type row struct {
	ID    int    `json:"id"`
	State string `json:"state"`
}

// numbered is a table of n rows, walked over in no useful order.
func numbered(n int) Table {
	return Table{Each: func(yield func(Entry) bool) {
		for i := n; i >= 1; i-- {
			if !yield(Entry{ID: strconv.Itoa(i), Name: fmt.Sprintf("App%d", i), Render: func() any { return row{i, "UNBLOCKED"} }}) {
				return
			}
		}
	}}
}

func do(t *testing.T, h http.Handler, method, target, body string, edit ...func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Host = "127.0.0.1:9096"
	for _, e := range edit {
		e(req)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

func errorCode(t *testing.T, rec *httptest.ResponseRecorder) string {
	t.Helper()
	var body struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
		t.Fatalf("not an error body: %s", rec.Body)
	}
	if body.Error.Message == "" {
		t.Errorf("error %s has no message", body.Error.Code)
	}
	return body.Error.Code
}

func TestListsPageInOrderOfIDs(t *testing.T) {
	s := New(Options{Tables: map[string]Table{"subscriptions": numbered(250)}})
	var got []int
	target := "/api/v1/subscriptions?limit=100"
	pages := 0
	for target != "" {
		rec := do(t, s.Handler(), http.MethodGet, target, "")
		var p struct {
			Items      []row
			NextCursor *string `json:"next_cursor"`
			Total      int
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != 200 {
			t.Fatalf("%s: %d %s", target, rec.Code, rec.Body)
		}
		if p.Total != 250 {
			t.Errorf("total = %d, want 250", p.Total)
		}
		for _, r := range p.Items {
			got = append(got, r.ID)
		}
		pages++
		target = ""
		if p.NextCursor != nil {
			target = "/api/v1/subscriptions?limit=100&cursor=" + *p.NextCursor
		}
	}
	want := make([]int, 250)
	for i := range want {
		want[i] = i + 1
	}
	if diff := cmp.Diff(want, got); diff != "" || pages != 3 {
		t.Errorf("pages = %d, rows differ (-want +got):\n%s", pages, diff)
	}
}

func TestListSearchesNamesAndIDs(t *testing.T) {
	s := New(Options{Tables: map[string]Table{"applications": numbered(30)}})
	rec := do(t, s.Handler(), http.MethodGet, "/api/v1/applications?q=APP2", "")
	var p page
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil {
		t.Fatal(err)
	}
	if p.Total != 11 { // App2, App20 to App29
		t.Errorf("total = %d, want 11: %s", p.Total, rec.Body)
	}
}

func TestAnswersToWrongRequests(t *testing.T) {
	s := New(Options{
		Tables: map[string]Table{"apis": numbered(1)}, VerifyToken: func(context.Context, string) VerifyResult { return VerifyResult{} },
		SetLogLevel: func(l string) error { return fmt.Errorf("log level %q is not known", l) }, Trace: func(string) (any, bool) { return nil, false },
	})
	cases := []struct {
		name, method, target, body string
		status                     int
		code                       string
	}{
		{"limit of zero", "GET", "/api/v1/apis?limit=0", "", 400, "bad_request"},
		{"limit too large", "GET", "/api/v1/apis?limit=1001", "", 400, "bad_request"},
		{"limit that is no number", "GET", "/api/v1/apis?limit=all", "", 400, "bad_request"},
		{"cursor that we did not give", "GET", "/api/v1/apis?cursor=%21", "", 400, "bad_request"},
		{"no such entry", "GET", "/api/v1/apis/9", "", 404, "not_found"},
		{"no such path", "GET", "/api/v2/apis", "", 404, "not_found"},
		{"wrong method", "DELETE", "/api/v1/apis", "", 405, "method_not_allowed"},
		{"explain without an id", "GET", "/api/v1/explain", "", 400, "bad_request"},
		{"explain of a request that is gone", "GET", "/api/v1/explain?request_id=x", "", 404, "not_found"},
		{"token verify without a token", "POST", "/api/v1/token/verify", `{}`, 400, "bad_request"},
		{"token verify with a body that is not JSON", "POST", "/api/v1/token/verify", `token`, 400, "bad_request"},
		{"token verify with an unknown member", "POST", "/api/v1/token/verify", `{"tokn":"a"}`, 400, "bad_request"},
		{"token verify with a huge body", "POST", "/api/v1/token/verify", `{"token":"` + strings.Repeat("a", 100<<10) + `"}`, 400, "bad_request"},
		{"unknown log level", "PUT", "/api/v1/log-level", `{"level":"loud"}`, 400, "bad_request"},
		{"unknown kind of event", "GET", "/api/v1/events?kinds=news", "", 503, "unavailable"},
		{"a part that is not there", "POST", "/api/v1/resync", "", 503, "unavailable"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rec := do(t, s.Handler(), c.method, c.target, c.body)
			if rec.Code != c.status || errorCode(t, rec) != c.code {
				t.Errorf("answer = %d %s, want %d %s", rec.Code, rec.Body, c.status, c.code)
			}
			if c.status == 405 && rec.Header().Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
}

func TestWhoMayComeIn(t *testing.T) {
	health := func() Health { return Health{OK: true, Status: "ready"} }
	basic := func(user, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, password) }
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	host := func(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }
	open := Options{Ready: health, State: func() State { return State{} }, Resync: func() {}}
	secured := open
	secured.Username, secured.Password, secured.Token = "admin", "s3cret", "t0ken"
	opened := secured
	opened.Open = []string{"health"}
	cases := []struct {
		name, method, path string
		opts               Options
		edit               []func(*http.Request)
		status             int
	}{
		{"loopback without credentials", "GET", "/api/v1/state", open, nil, 200},
		{"loopback by name", "GET", "/api/v1/state", open, []func(*http.Request){host("localhost:9096")}, 200},
		{"another name that resolves to loopback", "GET", "/api/v1/state", open, []func(*http.Request){host("evil.example.com")}, 403},
		{"command from a page of another site", "POST", "/api/v1/resync", open, []func(*http.Request){header("Origin", "https://evil.example.com")}, 403},
		{"command from our own page", "POST", "/api/v1/resync", open, []func(*http.Request){header("Origin", "http://127.0.0.1:9096")}, 202},
		{"no credentials where they are needed", "GET", "/api/v1/state", secured, nil, 401},
		{"right password", "GET", "/api/v1/state", secured, []func(*http.Request){basic("admin", "s3cret")}, 200},
		{"wrong password", "GET", "/api/v1/state", secured, []func(*http.Request){basic("admin", "S3cret")}, 401},
		{"wrong user", "GET", "/api/v1/state", secured, []func(*http.Request){basic("root", "s3cret")}, 401},
		{"right token", "GET", "/api/v1/state", secured, []func(*http.Request){header("Authorization", "Bearer t0ken")}, 200},
		{"wrong token", "GET", "/api/v1/state", secured, []func(*http.Request){header("Authorization", "Bearer t0kem")}, 401},
		{"health that is not open", "GET", "/health/ready", secured, nil, 401},
		{"health that is open", "GET", "/health/ready", opened, nil, 200},
		{"the rest when only health is open", "GET", "/api/v1/state", opened, nil, 401},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if rec := do(t, New(c.opts).Handler(), c.method, c.path, "", c.edit...); rec.Code != c.status {
				t.Errorf("status = %d, want %d: %s", rec.Code, c.status, rec.Body)
			}
		})
	}
}

func TestTheRootListsEveryPath(t *testing.T) {
	h := New(Options{Tables: map[string]Table{"apis": numbered(1)}}).Handler()
	var index struct{ Paths []string }
	rec := do(t, h, http.MethodGet, "/", "")
	if err := json.Unmarshal(rec.Body.Bytes(), &index); err != nil || rec.Code != 200 {
		t.Fatalf("%d %v: %s", rec.Code, err, rec.Body)
	}
	want := []string{
		"GET /api/v1/apis", "GET /api/v1/apis/{id}", "GET /api/v1/config", "GET /api/v1/events", "GET /api/v1/explain", "GET /api/v1/state", "GET /health/live",
		"GET /health/ready", "GET /metrics", "POST /api/v1/resync", "POST /api/v1/token/verify", "PUT /api/v1/log-level",
	}
	if diff := cmp.Diff(want, index.Paths); diff != "" {
		t.Error(diff)
	}
	if rec := do(t, h, http.MethodGet, "/console", ""); rec.Code != 404 || errorCode(t, rec) != "not_found" {
		t.Errorf("%d: %s", rec.Code, rec.Body)
	}
}

func TestHealthDecidesTheStatus(t *testing.T) {
	at := time.Date(2026, 5, 4, 3, 2, 1, 5e6, time.FixedZone("", 7200))
	s := New(Options{Ready: func() Health {
		return Health{Status: "not_ready", Checks: []Check{{Name: "lists", Status: "failed", Detail: "no list yet", Since: At(at)}}}
	}})
	rec := do(t, s.Handler(), http.MethodGet, "/health/ready", "")
	want := `{"status":"not_ready","checks":[{"name":"lists","status":"failed","detail":"no list yet","since":"2026-05-04T01:02:01.005Z"}]}` + "\n"
	if rec.Code != 503 || rec.Body.String() != want {
		t.Errorf("answer = %d %s, want 503 %s", rec.Code, rec.Body, want)
	}
}

func TestClaimsOfARefusedTokenAreNotShown(t *testing.T) {
	s := New(Options{VerifyToken: func(context.Context, string) VerifyResult {
		return VerifyResult{Failed: "signature", Claims: map[string]any{"sub": "mallory"}}
	}})
	rec := do(t, s.Handler(), http.MethodPost, "/api/v1/token/verify", `{"token":"a.b.c"}`)
	if strings.Contains(rec.Body.String(), "mallory") || !strings.Contains(rec.Body.String(), `"failed":"signature"`) {
		t.Errorf("answer = %s", rec.Body)
	}
}

// startServer serves s on a loopback port until the test ends.
func startServer(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil after a stop", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + l.Addr().String()
}

func TestEventStreamCarriesWhatWasAskedFor(t *testing.T) {
	feed := &Feed{}
	url := startServer(t, New(Options{Feed: feed}))
	resp, err := http.Get(url + "/api/v1/events?kinds=change,connection")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("content type = %q", ct)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Scan() // ": connected": from here on the reader is known
	feed.Publish(KindRefusal, Refusal{Code: 900908})
	feed.Publish(KindChange, Change{What: "subscription", ID: "1", After: row{1, "BLOCKED"}, Origin: Origin{Kind: "event", ID: "e1"}})
	feed.Publish(KindConnection, Connection{Source: "event_hub", State: "connected"})
	var got []string
	for len(got) < 6 && lines.Scan() {
		if lines.Text() != "" {
			got = append(got, lines.Text())
		}
	}
	want := []string{
		"id: 2", "event: change",
		`data: {"what":"subscription","id":"1","before":null,"after":{"id":1,"state":"BLOCKED"},"origin":{"kind":"event","at":null,"id":"e1"}}`,
		"id: 3", "event: connection", `data: {"source":"event_hub","state":"connected"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stream differs (-want +got):\n%s", diff)
	}
}

func TestSlowReaderLosesTheOldestAndIsTold(t *testing.T) {
	feed := &Feed{}
	sub := feed.subscribe(nil)
	for i := range readerQueue + 10 {
		feed.Publish(KindRefusal, Refusal{Code: i})
	}
	if lost := sub.lost.Load(); lost != 10 {
		t.Errorf("lost = %d, want 10", lost)
	}
	if first := <-sub.queue; first.id != 11 {
		t.Errorf("oldest kept = %d, want 11", first.id)
	}
	refusals := feed.subscribe([]string{KindRefusal})
	feed.Lost(KindChange, 3)
	if a, b := sub.lost.Load(), refusals.lost.Load(); a != 13 || b != 0 {
		t.Errorf("lost = %d for who reads all and %d for who reads refusals, want 13 and 0", a, b)
	}
	feed.unsubscribe(refusals)
	feed.unsubscribe(sub)
	if feed.Active() {
		t.Error("the feed is active without readers")
	}
	feed.Publish(KindRefusal, make(chan int)) // nobody reads: not even encoded
}

func TestStopEndsOpenStreams(t *testing.T) {
	feed := &Feed{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(Options{Feed: feed}).Serve(ctx, l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/api/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Serve = %v", err)
		}
	case <-time.After(2 * time.Second):
		t.Fatal("an open event stream held up the stop")
	}
	if _, err := io.ReadAll(resp.Body); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Logf("the stream ended with %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func BenchmarkListOfAMillion(b *testing.B) {
	s := New(Options{Tables: map[string]Table{"subscriptions": numbered(1_000_000)}})
	b.ReportAllocs()
	for b.Loop() {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, "/api/v1/subscriptions", nil)
		req.Host = "localhost"
		s.Handler().ServeHTTP(rec, req)
		if rec.Code != 200 {
			b.Fatal(rec.Body)
		}
	}
}
