package proxy

import (
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// requestBody counts what the client sends and keeps the cap. It may outlive its request for a moment: the upload of a
// body ends in its own time when the backend has answered early.
type requestBody struct {
	r        io.Reader
	max      int64 // 0: none
	idle     time.Duration
	mu       sync.Mutex
	deadline readDeadline // under mu; nil: no bound, or none any more
	n        atomic.Int64
	tooLarge atomic.Bool
	slow     atomic.Bool
	aborted  atomic.Bool
	breaker  readDeadline // ends a read that waits; nil: none can
	// trailer is what the client's engine fills at the end; secrets are the fields of credentials.
	trailer http.Header
	secrets []string
	// forged are the fields that only the gateway may send, vouched those that nothing of the client's may look like.
	forged, vouched []string
	// over is what ended the body. The upload asks once more after the last byte: by then the backend may have answered and
	// net/http have closed the body, and its error would end the exchange with the backend in the middle of the answer.
	over error
}

// readDeadline and writeDeadline are what net/http's response writers offer to bound a client's silence.
type (
	readDeadline  interface{ SetReadDeadline(time.Time) error }
	writeDeadline interface{ SetWriteDeadline(time.Time) error }
)

var errTooLarge = errors.New("the request body is larger than allowed")

func (b *requestBody) Read(p []byte) (int, error) {
	if b.over != nil {
		return 0, b.over
	}
	bounded := b.setDeadline(true)
	if b.aborted.Load() { // whose deadline ours may have replaced
		b.over = errAborted
		return 0, errAborted
	}
	n, err := b.r.Read(p)
	if err != nil && b.aborted.Load() {
		b.over = errAborted
		return n, errAborted
	}
	if err != nil && bounded {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			b.slow.Store(true)
		}
		b.setDeadline(false) // what is read from here on is not the body
	}
	if err == io.EOF {
		dropForged(b.trailer, b.forged)
		dropLookalikes(b.trailer, b.vouched)
		for k := range b.trailer {
			if !fitsTrailer(k) || slices.Contains(b.secrets, k) {
				delete(b.trailer, k)
			}
		}
	}
	if total := b.n.Add(int64(n)); b.max > 0 && total > b.max {
		b.tooLarge.Store(true)
		n, err = 0, errTooLarge
	}
	b.over = err
	return n, err
}

// fitsTrailer says whether a field may stand in the trailer of a request (RFC 9110 6.5.1): not one of framing or routing, nor
// one that a backend which joins trailer and header would believe of the gateway.
func fitsTrailer(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Host", "Content-Length",
		"Content-Type", "Content-Encoding", "Content-Range", "Expect", "Authorization", "Proxy-Authorization", "Cookie", "Forwarded", "X-Request-Id":
		return false
	}
	return !strings.HasPrefix(name, "X-Forwarded-")
}

// setDeadline sets the bound of the next read, or takes it away. It says whether there is one.
func (b *requestBody) setDeadline(on bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deadline == nil {
		return false
	}
	var at time.Time
	if on {
		at = time.Now().Add(b.idle)
	}
	_ = b.deadline.SetReadDeadline(at) // on a closed connection the read fails
	return true
}

var errAborted = errors.New("the request was ended by the gateway")

// abort ends the body at once. It is not called after the handler has returned.
func (b *requestBody) abort() {
	b.aborted.Store(true)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.breaker != nil {
		_ = b.breaker.SetReadDeadline(time.Unix(1, 0)) // on a closed connection the read fails
	}
}

// end takes the bound away for good: when the backend has begun its answer, because the silence of the client may then be
// a part of the talk between the two, and before the handler returns, because from then on the connection is net/http's
// alone, though an upload may still read.
func (b *requestBody) end() {
	b.setDeadline(false)
	b.mu.Lock()
	b.deadline = nil
	b.mu.Unlock()
}
