// Package upstream calls the backends: it chooses a host of an endpoint, keeps its connections, and streams requests and
// answers without buffering them.
//
// Hosts, with their idle connections, outlive a change of the route table: they are counted by the endpoints that use
// them, and a host that nobody uses any more is drained. Two clients stand behind one interface: an own one for HTTP/1.1
// (h1.go), which needs no goroutine per request, and http.Transport for HTTP/2.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// Field is a header field that the gateway sets on the way out.
type Field struct{ Name, Value string }

// Request is what is sent to a backend. It belongs to the caller and is not kept after the answer's body has ended.
type Request struct {
	Method string
	// Path is the escaped path below the endpoint's URL, "" or beginning with "/"; Query the raw query without "?".
	Path, Query string
	// Header holds the client's fields. Hop-by-hop fields and Host are not sent on, whatever it holds, nor are the
	// names in Drop (canonical). Fields replaces fields of the same name; an empty value only removes.
	Header http.Header
	Drop   []string
	Fields []Field
	// Body is nil where there is none; Length is its size or -1.
	Body   io.Reader
	Length int64
	// Trailer is filled by the client's engine when the body has ended; nil when none was announced.
	Trailer http.Header
	// Continue says that the client waits for 100 before it sends the body.
	Continue bool
	// Trailers says that the client takes trailers ("TE: trailers").
	Trailers bool
	// Informer, when not nil, is told of 1xx answers but 100 and 101.
	Informer Informer
}

// Informer passes informational answers on. The header is the callee's.
type Informer interface {
	Informational(status int, h http.Header)
}

// Response is the answer of a backend. The caller gives the map that the header is read into.
type Response struct {
	Status int
	// Header is given by the caller and filled without hop-by-hop fields. Fields it had before are kept.
	Header http.Header
	// Length is the size of the body, -1 when it is not known.
	Length int64
	// Body is never nil after a call without error and must be closed. Reads return what has arrived.
	Body io.ReadCloser
	// Announced are the names of trailers that the backend announced; Trailer holds them when the body has ended.
	Announced []string
	Trailer   http.Header
	// Host is the address that answered, for logs; Attempts how many hosts were called.
	Host     string
	Attempts int
}

// Aborter is what every Body of a Response is too. Abort makes a read that waits, and all later ones, fail at once. It may be
// called by another goroutine than the reader's, but not after Close has begun. Ready says that the next read need not wait,
// as far as is known; it is for the reader.
type Aborter interface {
	Abort()
	Ready() bool
}

// ErrAborted is what reading an answer fails with after Abort.
var ErrAborted = errors.New("the answer was given up")

// Kind is how a call failed.
type Kind uint8

// Kinds of failure.
const (
	// Failed is every failure that is none of the others: reset connections and broken answers.
	Failed Kind = iota
	// Connect means that no connection could be made: nothing was sent.
	Connect
	// Timeout means that the answer did not begin in time.
	Timeout
	// Protocol means that the answer breaks HTTP.
	Protocol
	// Canceled means that the client went away.
	Canceled
	// RequestBody means that the client's body could not be read: the fault is not the backend's.
	RequestBody
)

var kindNames = [...]string{"failed", "connect", "timeout", "protocol", "canceled", "request_body"}

// String returns the name that logs and metrics use.
func (k Kind) String() string { return kindNames[k] }

// Error is a call that failed.
type Error struct {
	Kind Kind
	Host string
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("calling backend %s: %s: %v", e.Host, e.Kind, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of an error of this package, Failed for others.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Failed
}

// client calls one host.
type client interface {
	// roundTrip waits for the header of the answer for as long as timeout says.
	roundTrip(ctx context.Context, t *target, timeout time.Duration, req *Request, res *Response) error
	closeIdle()
}

// bodyError marks failures of reading the client's body.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "reading the request body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// requestBody notes how the client's body ended, so that its failures are not taken for the backend's. http.Transport
// may read it in another goroutine for a while after the call.
type requestBody struct {
	r    io.Reader
	read atomic.Bool
	bad  atomic.Bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.bad.Store(true)
		err = &bodyError{err}
	}
	return n, err
}

// hopByHop says whether a canonical name is a field of one connection only.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate", "Proxy-Authorization":
		return true
	}
	return false
}
