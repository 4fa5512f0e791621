package upstream

import (
	"net/textproto"
	"strconv"
	"strings"
)

// appendRequest writes the request line and the header. What comes from the client was checked by the server's parser;
// bytes that would end the request line are encoded all the same.
func appendRequest(b []byte, t *target, req *Request) []byte {
	b = append(b, req.Method...)
	b = append(b, ' ')
	start := len(b)
	b = append(b, t.base...)
	b = appendTarget(b, req.Path)
	if len(b) == start {
		b = append(b, '/')
	}
	if t.query != "" || req.Query != "" {
		b = append(b, '?')
		b = append(b, t.query...)
		if t.query != "" && req.Query != "" {
			b = append(b, '&')
		}
		b = appendTarget(b, req.Query)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, t.authority...)
	b = append(b, "\r\n"...)
	drop := connectionTokens(req.Header)
	for k, vs := range req.Header {
		if hopByHop(k) || k == "Content-Length" || k == "Host" || k == "Expect" || replaced(k, req.Fields) ||
			drop != nil && dropped(k, drop) || req.Drop != nil && dropped(k, req.Drop) || k == "Authorization" && t.authorization != "" {
			continue
		}
		for _, v := range vs {
			b = appendField(b, k, v)
		}
	}
	for i := range req.Fields {
		if f := &req.Fields[i]; f.Value != "" {
			b = appendField(b, f.Name, f.Value)
		}
	}
	if t.authorization != "" {
		b = appendField(b, "Authorization", t.authorization)
	}
	if req.Trailers {
		b = append(b, "TE: trailers\r\nConnection: TE\r\n"...)
	}
	switch {
	case req.Body == nil:
		// A method that usually has a body says that it has none.
		if req.Method == "POST" || req.Method == "PUT" || req.Method == "PATCH" {
			b = append(b, "Content-Length: 0\r\n"...)
		}
	case req.Length >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, req.Length, 10)
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if len(req.Trailer) > 0 {
			b = append(b, "Trailer: "...)
			first := true
			for k := range req.Trailer {
				if !first {
					b = append(b, ", "...)
				}
				first = false
				b = append(b, k...)
			}
			b = append(b, "\r\n"...)
		}
	}
	if req.Continue && req.Body != nil {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	return append(b, "\r\n"...)
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// replaced says whether one of the fields takes the place of name.
func replaced(name string, fields []Field) bool {
	for i := range fields {
		if fields[i].Name == name {
			return true
		}
	}
	return false
}

// appendTarget writes a part of the request target; blanks and control characters, which HTTP/2 lets through, are
// encoded.
func appendTarget(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == 0x7f {
			return appendEscaped(b, s)
		}
	}
	return append(b, s...)
}

func appendEscaped(b []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c == 0x7f {
			b = append(b, '%', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// canonicalNames are the names of fields that answers usually have, so that they need not be made each time.
var canonicalNames = func() map[string]string {
	m := map[string]string{}
	for _, n := range []string{
		"Content-Type", "Content-Length", "Content-Encoding", "Content-Language", "Date", "Server", "Connection",
		"Transfer-Encoding", "Cache-Control", "Etag", "Last-Modified", "Expires", "Vary", "Set-Cookie", "Location", "Keep-Alive", "Trailer",
		"Access-Control-Allow-Origin", "Accept-Ranges", "Age", "X-Request-Id", "Strict-Transport-Security", "X-Content-Type-Options",
	} {
		m[n], m[strings.ToLower(n)] = n, n
	}
	return m
}()

// canonicalName returns a field name in canonical form; s must be a valid token.
func canonicalName(s string) string {
	if n, ok := canonicalNames[s]; ok {
		return n
	}
	return textproto.CanonicalMIMEHeaderKey(s)
}
