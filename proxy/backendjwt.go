package proxy

import (
	"net/http"
	"strconv"
	"time"

	"gatehouse/proxy/route"
)

// isKeySetPath says whether a path is one of those under which backends find the keys of their JWTs: the usual one, and that of
// Choreo Connect.
func isKeySetPath(path string) bool {
	return len(path) > 2 && path[1] == '.' && (path == "/.well-known/jwks.json" || path == "/.wellknown/jwks")
}

// deployed says whether an API was deployed at a path: its context is one of the folders of the key set, which nobody chooses
// but on purpose.
func (p *Proxy) deployed(r *http.Request, path string) bool {
	return p.generation.Load().table.Match(r.Host, r.Method, path).Outcome != route.NoAPI
}

// publishKeys answers with the public keys of backend JWTs.
func (p *Proxy) publishKeys(w http.ResponseWriter, r *http.Request, s *state) {
	keys := p.opts.KeySet()
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Cache-Control"] = []string{"max-age=" + strconv.FormatInt(int64(p.opts.KeySetMaxAge/time.Second), 10)}
	h["Content-Length"] = []string{strconv.Itoa(len(keys))}
	h["X-Request-Id"] = s.ids
	s.wrote = true
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(keys) // a client that went away needs no answer
	}
}

// dropForged takes the fields out that look like one of names to anybody behind the gateway.
func dropForged(h http.Header, names []string) {
	for k := range h {
		for _, n := range names {
			if len(k) == len(n) && looksLike(k, n) {
				delete(h, k)
				break
			}
		}
	}
}

// dropLookalikes takes the fields out that a lenient backend may take for one of names, which stay themselves.
func dropLookalikes(h http.Header, names []string) {
	for k := range h {
		if plain(k) {
			continue
		}
		for _, n := range names {
			if len(k) == len(n) && k != n && looksLike(k, n) {
				delete(h, k)
				break
			}
		}
	}
}

// plain says whether a name is of letters, digits and hyphens alone, as nearly every one: in its canonical form it is like no
// other of that kind.
func plain(name string) bool {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c != '-' && fold(c) == '_' {
			return false
		}
	}
	return true
}

// looksLike compares two names of one length as the most lenient of backends do, which hand fields on as variables: letters
// without their case, and all that is neither letter nor digit alike.
func looksLike(a, b string) bool {
	for i := range len(a) {
		if a[i] != b[i] && fold(a[i]) != fold(b[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		return c
	}
	return '_'
}
