package apikey

import (
	"net/netip"
	"strings"

	"gatehouse/keymanager"
)

// limits say from where a key may be used, compiled once per key. The zero value restricts nothing.
type limits struct {
	// byIP and byReferer say that there is a restriction: one whose entries cannot be read admits nobody.
	byIP, byReferer bool
	prefixes        []netip.Prefix
	referers        []referer
}

// list is a restriction as a key writes it; set is false where the key has none.
type list struct {
	entries []string
	set     bool
}

// listOf reads a claim: a text with commas, or an array of texts. Any other form restricts without admitting anybody.
func listOf(claim any) (l list) {
	switch v := claim.(type) {
	case nil:
	case string:
		l = splitList(v)
	case []any:
		l.set = len(v) > 0
		for _, e := range v {
			if s, ok := e.(string); ok {
				l.entries = append(l.entries, splitList(s).entries...)
			}
		}
	default:
		l.set = true
	}
	return l
}

func splitList(text string) (l list) {
	for e := range strings.SplitSeq(text, ",") {
		if e = strings.TrimSpace(e); e != "" {
			l.entries, l.set = append(l.entries, e), true
		}
	}
	return l
}

func compile(ips, referers list) (l limits) {
	l.byIP, l.byReferer = ips.set, referers.set
	for _, e := range ips.entries {
		if p, ok := parsePrefix(e); ok {
			l.prefixes = append(l.prefixes, p)
		}
	}
	for _, e := range referers.entries {
		if r, ok := parseReferer(e, true); ok {
			l.referers = append(l.referers, r)
		}
	}
	return l
}

// parsePrefix reads an address or a CIDR range. IPv4 written inside of IPv6 is IPv4.
func parsePrefix(text string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return netip.Prefix{}, false
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		return p.Masked(), true
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap().WithZone("")
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

// check asks whether the key may be used from an address and a referer; both must be permitted.
func (l *limits) check(ip netip.Addr, ref string) *keymanager.Refusal {
	if l.byIP && !l.permitsIP(ip) {
		return &keymanager.Refusal{Check: keymanager.CheckIP, Forbidden: true, Detail: "the api key is not permitted from this address"}
	}
	if l.byReferer && !l.permitsReferer(ref) {
		return &keymanager.Refusal{Check: keymanager.CheckReferer, Forbidden: true, Detail: "the api key is not permitted from this referer"}
	}
	return nil
}

func (l *limits) permitsIP(ip netip.Addr) bool {
	if !ip.IsValid() {
		return false
	}
	ip = ip.Unmap().WithZone("")
	for _, p := range l.prefixes {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

func (l *limits) permitsReferer(text string) bool {
	have, ok := parseReferer(text, false)
	if !ok {
		return false
	}
	for i := range l.referers {
		if l.referers[i].matches(&have) {
			return true
		}
	}
	return false
}

// referer is a URL, or a pattern for one, taken apart: an asterisk in a pattern stands for any text within its part, so
// that "*.example.com/*" is not met by a page of another host that has the name in its path.
type referer struct {
	any    bool   // the pattern "*"
	scheme string // "" in a pattern: http or https
	// host is with its port, unless that is the one of the scheme.
	host  string
	path  string // "" is "/"
	query string // with its question mark
}

// parseReferer takes a referer, or the pattern of one, apart. The scheme may be missing. A user part, a backslash, blanks
// and dot segments are in no referer that a browser sends: such a text is none.
func parseReferer(text string, pattern bool) (r referer, ok bool) {
	if pattern && text == "*" {
		return referer{any: true}, true
	}
	for i := range len(text) {
		if c := text[i]; c <= ' ' || c == 0x7f || c == '\\' {
			return r, false
		}
	}
	text, _, _ = strings.Cut(text, "#")
	rest := text
	if scheme, after, found := strings.Cut(text, "://"); found && !strings.ContainsAny(scheme, "/?") {
		r.scheme, rest = scheme, after
		if strings.IndexByte(scheme, '*') >= 0 {
			if !pattern {
				return r, false
			}
			r.scheme = ""
		}
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	r.host, r.path = rest[:end], rest[end:]
	if i := strings.IndexByte(r.path, '?'); i >= 0 {
		r.path, r.query = r.path[:i], r.path[i:]
	}
	if r.host == "" || strings.IndexByte(r.host, '@') >= 0 || !pattern && strings.IndexByte(r.host, '*') >= 0 {
		return r, false
	}
	if strings.Contains(r.path, "/../") || strings.HasSuffix(r.path, "/..") {
		return r, false
	}
	r.host = trimPort(r.host, r.scheme)
	if r.path == "" {
		r.path = "/"
	}
	return r, true
}

// trimPort takes the port of the scheme away, and the dot that a full name of a host ends with.
func trimPort(host, scheme string) string {
	if !strings.EqualFold(scheme, "http") {
		if h, ok := strings.CutSuffix(host, ":443"); ok {
			host = h
		}
	}
	if !strings.EqualFold(scheme, "https") {
		if h, ok := strings.CutSuffix(host, ":80"); ok {
			host = h
		}
	}
	return strings.TrimSuffix(host, ".")
}

// matches reports whether a referer meets the pattern. Schemes and hosts have no case, paths do. A pattern that names no
// query takes any.
func (p *referer) matches(have *referer) bool {
	if p.any {
		return true
	}
	switch {
	case p.scheme != "":
		if !strings.EqualFold(p.scheme, have.scheme) {
			return false
		}
	case have.scheme != "" && !strings.EqualFold(have.scheme, "https") && !strings.EqualFold(have.scheme, "http"):
		return false
	}
	return glob(p.host, have.host, true) && glob(p.path, have.path, false) && (p.query == "" || glob(p.query, have.query, false))
}

// glob matches a text with a pattern whose asterisks stand for any run of characters, in time of at most their product.
func glob(pattern, text string, fold bool) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(text) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && (pattern[i] == text[j] || fold && lower(pattern[i]) == lower(text[j])):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(pattern) && pattern[i] == '*' {
		i++
	}
	return i == len(pattern)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
