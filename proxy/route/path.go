package route

import "strings"

// Normalise returns the form of a raw path (as sent, without the query) that is matched: percent-encodings of
// everything but "/" and "%" are decoded, empty segments and "." are removed, ".." takes away the segment before it, and
// parameters of segments (";v=1") are taken off, because backends do so: what is matched is what they serve. A last segment
// of nothing but parameters stays, as a value of OpenAPI's style matrix. A trailing slash stays. ok is false for a path that cannot be: it does not begin with "/", holds a bad
// percent-encoding, climbs above the root, or hides a dot segment or an empty one that some backends would see (ambiguous,
// bare). A path that is
// in this form already is returned as it is.
func Normalise(raw string) (path string, ok bool) {
	if len(raw) == 0 || raw[0] != '/' {
		return "", false
	}
	if clean(raw) {
		return raw, true
	}
	decoded, ok := decode(raw)
	if !ok || ambiguous(decoded) {
		return "", false
	}
	if decoded, ok = bare(decoded); !ok {
		return "", false
	}
	return resolve(decoded)
}

// bare takes the parameters off each segment. ok is false where nothing is left of one that is not the last.
func bare(p string) (string, bool) {
	if strings.IndexByte(p, ';') < 0 {
		return p, true
	}
	segments := strings.Split(p[1:], "/")
	for i, s := range segments {
		name, _, has := strings.Cut(s, ";")
		switch {
		case !has:
		case name != "":
			segments[i] = name
		case i < len(segments)-1:
			return "", false
		}
	}
	return "/" + strings.Join(segments, "/"), true
}

// ambiguous says whether a decoded path has a segment that is one name here and a dot segment for a backend that cuts at
// "%2F" or "\\", or takes parameters off ("..;"): what was checked would not be what is served.
func ambiguous(p string) bool {
	if !strings.Contains(p, ".") {
		return false
	}
	for s := range strings.SplitSeq(p, "/") {
		parts := strings.Split(strings.ReplaceAll(s, "%2F", `\`), `\`)
		for _, part := range parts {
			name, _, parameters := strings.Cut(part, ";")
			if (name == "." || name == "..") && (parameters || len(parts) > 1) {
				return true
			}
		}
	}
	return false
}

// clean says whether a path needs no work: no "%", no ";", no "\\", no "//", no segment that begins with ".".
func clean(p string) bool {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '%', '\\', ';':
			return false
		case '/':
			if i+1 < len(p) && (p[i+1] == '/' || p[i+1] == '.') {
				return false
			}
		}
	}
	return true
}

// decode decodes percent-encodings but those of "/" and "%", whose letters it makes upper case.
func decode(s string) (string, bool) {
	i := strings.IndexByte(s, '%')
	if i < 0 {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for len(s) > 0 {
		i := strings.IndexByte(s, '%')
		if i < 0 {
			break
		}
		b = append(b, s[:i]...)
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi > 15 || lo > 15 {
			return "", false
		}
		switch c := hi<<4 | lo; c {
		case 0:
			return "", false
		case '/':
			b = append(b, "%2F"...)
		case '%':
			b = append(b, "%25"...)
		default:
			b = append(b, c)
		}
		s = s[i+3:]
	}
	return string(append(b, s...)), true
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// resolve removes empty and dot segments. ok is false when ".." climbs above the root.
func resolve(p string) (string, bool) {
	var out []string
	segments := strings.Split(p[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == ".." || dots(s) == 2:
			if len(out) == 0 {
				return "", false
			}
			out = out[:len(out)-1]
		case s == "." || dots(s) == 1:
		case s == "" && !last:
			continue
		case s != "":
			out = append(out, s)
			continue
		}
		if last { // "/a/", "/a/.", "/a/b/..": a folder
			out = append(out, "")
		}
	}
	if len(out) == 0 {
		return "/", true
	}
	return "/" + strings.Join(out, "/"), true
}

// dots counts the dots of a segment that is nothing but dots, plain or encoded; 0 for any other segment.
func dots(s string) int {
	n := 0
	for len(s) > 0 {
		switch {
		case s[0] == '.':
			s = s[1:]
		case len(s) >= 3 && s[0] == '%' && s[1] == '2' && (s[2] == 'e' || s[2] == 'E'):
			s = s[3:]
		default:
			return 0
		}
		n++
	}
	return n
}

// Suffix returns what of a raw path is sent on: the part after the first n segments, with the bytes as the client sent
// them. normalised is Normalise(raw) and prefix the matched prefix of it, which has n segments. Only where the client
// sent dot segments are they resolved here as well: what is forwarded must be what was matched.
func Suffix(raw, normalised, prefix string) string {
	if raw == normalised {
		return raw[len(prefix):]
	}
	p := raw
	if hasDots(raw) {
		r, ok := resolve(raw)
		if !ok {
			return normalised[len(prefix):]
		}
		p = r
	}
	for range strings.Count(prefix, "/") {
		for len(p) > 1 && p[1] == '/' { // empty segments before the next one
			p = p[1:]
		}
		i := strings.IndexByte(p[1:], '/')
		if i < 0 {
			return ""
		}
		p = p[i+1:]
	}
	return p
}

// hasDots says whether a raw path has a dot segment, plain or encoded.
func hasDots(p string) bool {
	for s := range strings.SplitSeq(p, "/") {
		if n := dots(s); n == 1 || n == 2 {
			return true
		}
	}
	return false
}
