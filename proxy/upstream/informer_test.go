package upstream

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type lateInformer struct {
	told, returned atomic.Bool
	late           atomic.Int64
}

func (i *lateInformer) Informational(int, http.Header) {
	i.told.Store(true)
	if i.returned.Load() {
		i.late.Add(1)
	}
}

// TestNobodyIsInformedAfterTheCall: whoever asked to be told of 1xx answers has given its memory to another request by
// then. http.Transport reads HTTP/2 in a goroutine that does not end with the call.
func TestNobodyIsInformedAfterTheCall(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.WriteHeader(http.StatusEarlyHints)
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	e := open(t, pool(t, Options{}), "h2c"+strings.TrimPrefix(s.URL, "http"))
	for range 20 {
		i := &lateInformer{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			res := Response{Header: http.Header{}}
			err := e.Call(ctx, &Request{Method: "GET", Path: "/", Header: http.Header{}, Informer: i}, &res)
			i.returned.Store(true)
			done <- err
		}()
		for !i.told.Load() {
			time.Sleep(50 * time.Microsecond)
		}
		cancel()
		if err := <-done; KindOf(err) != Canceled {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if n := i.late.Load(); n > 0 {
			t.Fatalf("told %d times after the call had returned", n)
		}
	}
}
