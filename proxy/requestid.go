package proxy

import (
	"math/rand/v2"
	"net/http"
)

// requestID takes the client's id or makes one.
func (s *state) requestID(r *http.Request) {
	for _, k := range [...]string{"X-Request-Id", "Activityid"} {
		if v := r.Header[k]; len(v) == 1 && validID(v[0]) {
			s.x.RequestID = v[0]
			s.ids = []string{v[0]}
			return
		}
	}
	s.x.RequestID = newID()
	s.ids = []string{s.x.RequestID}
}

// newID makes a request id: 128 bits of the runtime's generator, in hex.
func newID() string {
	var b [32]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 16 {
		b[i] = hexDigits[hi>>(60-4*i)&15]
		b[16+i] = hexDigits[lo>>(60-4*i)&15]
	}
	return string(b[:])
}

const hexDigits = "0123456789abcdef"

// validID says whether an id of a client is 1 to 128 visible ASCII characters.
func validID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := 0; i < len(id); i++ {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return true
}

// traceID takes the trace id out of a traceparent field, "" when there is none.
func traceID(v []string) string {
	if len(v) != 1 || len(v[0]) < 55 || v[0][2] != '-' || v[0][35] != '-' {
		return ""
	}
	return v[0][3:35]
}
