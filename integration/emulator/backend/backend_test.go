package backend

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestBackend(t *testing.T) {
	b := New()
	for _, test := range []struct {
		path   string
		status int
		length int // 0 for the echo
		takes  time.Duration
	}{
		{"/items?a=1", 200, 0, 0},
		{"/status/503", 503, 0, 0},
		{"/status/99", 200, 0, 0},
		{"/delay/20", 200, 0, 20 * time.Millisecond},
		{"/bytes/70000", 200, 70000, 0},
	} {
		t.Run(test.path, func(t *testing.T) {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("POST", test.path, strings.NewReader("hello"))
			r.Header.Set("X-Test", "yes")
			began := time.Now()
			b.ServeHTTP(w, r)
			if w.Code != test.status || time.Since(began) < test.takes {
				t.Errorf("%d after %s, want %d after %s", w.Code, time.Since(began), test.status, test.takes)
			}
			body, err := io.ReadAll(w.Body)
			if err != nil {
				t.Fatal(err)
			}
			if test.length > 0 {
				if len(body) != test.length {
					t.Errorf("%d bytes, want %d", len(body), test.length)
				}
				return
			}
			var e Echo
			if err := json.Unmarshal(body, &e); err != nil {
				t.Fatal(err)
			}
			path, query, _ := strings.Cut(test.path, "?")
			if e.Method != "POST" || e.Path != path || e.Query != query || e.Body != "hello" || http.Header(e.Headers).Get("X-Test") != "yes" || e.Number != b.Requests() {
				t.Errorf("%+v", e)
			}
		})
	}
	if b.Requests() != 5 || b.ByPath()["/status/503"] != 1 {
		t.Errorf("%d requests, %v", b.Requests(), b.ByPath())
	}
}
