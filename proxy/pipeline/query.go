package pipeline

import (
	"net/url"
	"slices"
	"strings"
)

// QueryValue looks for a parameter in a raw query. n is how often it is there, value the first of its values that can be
// decoded. Without the parameter it allocates nothing.
func QueryValue(query, name string) (value string, n int) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		k, v, _ := strings.Cut(pair, "=")
		if !sameName(k, name) {
			continue
		}
		if n == 0 {
			if d, err := url.QueryUnescape(v); err == nil {
				value = d
			} else {
				value = v
			}
		}
		n++
	}
	return value, n
}

// WithoutParameters returns a raw query without the parameters of the given names. What is left keeps its bytes and its
// order; a query without them is returned as it is.
func WithoutParameters(query string, names []string) string {
	found := false
	for rest := query; rest != "" && !found; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		found = named(pair, names)
	}
	if !found {
		return query
	}
	var b strings.Builder
	b.Grow(len(query))
	first := true
	for pair := range strings.SplitSeq(query, "&") {
		if named(pair, names) {
			continue
		}
		if !first {
			b.WriteByte('&')
		}
		first = false
		b.WriteString(pair)
	}
	return b.String()
}

func named(pair string, names []string) bool {
	k, _, _ := strings.Cut(pair, "=")
	return slices.ContainsFunc(names, func(n string) bool { return sameName(k, n) })
}

// sameName compares the encoded name of a parameter to a plain one.
func sameName(encoded, name string) bool {
	if !strings.ContainsAny(encoded, "%+") {
		return encoded == name
	}
	d, err := url.QueryUnescape(encoded)
	return err == nil && d == name
}
