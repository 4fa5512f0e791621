package databridge

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Mode is how the endpoints of a group share the events.
type Mode uint8

// Modes of a group.
const (
	LoadBalance Mode = iota // "," between the URLs
	Failover                // "|" between the URLs: the first that works
)

// String names the mode as the configuration does.
func (m Mode) String() string {
	if m == Failover {
		return "failover"
	}
	return "loadbalance"
}

// Endpoint is one traffic manager.
type Endpoint struct {
	URL     string // "tcp://host:9611" or "ssl://host:9711"
	AuthURL string // "ssl://host:9711"
}

// URLGroup is a set of endpoints of which one gets each event; several groups all get every event.
type URLGroup struct {
	Mode      Mode
	Endpoints []Endpoint
}

// ParseGroups reads the text form of URL groups, "{tcp://a:9611|tcp://b:9611},{tcp://c:9611}" (traffic-manager.md 1.1). auth has
// the same number of groups and URLs, or is empty: then each endpoint authenticates at its host on the port 100 higher, an
// ssl:// endpoint at itself. Braces may be left out where there is one group.
func ParseGroups(urls, auth string) ([]URLGroup, error) {
	texts, err := splitGroups(urls)
	if err != nil {
		return nil, err
	}
	var authTexts []string
	if strings.TrimSpace(auth) != "" {
		if authTexts, err = splitGroups(auth); err != nil {
			return nil, fmt.Errorf("authentication URLs: %w", err)
		}
		if len(authTexts) != len(texts) {
			return nil, fmt.Errorf("%d URL groups but %d groups of authentication URLs: give as many, in the same order, or none", len(texts), len(authTexts))
		}
	}
	groups := make([]URLGroup, len(texts))
	for i, text := range texts {
		list, mode, err := splitURLs(text)
		if err != nil {
			return nil, err
		}
		var authList []string
		if authTexts != nil {
			if authList, _, err = splitURLs(authTexts[i]); err != nil {
				return nil, fmt.Errorf("authentication URLs: %w", err)
			}
		}
		if groups[i], err = newGroup(list, authList, mode); err != nil {
			return nil, err
		}
	}
	return groups, nil
}

// NewGroup reads the form of the configuration: lists of URLs and a type, where "loadbalance" is that and anything else is
// failover. One text may hold several URLs separated by "," or "|", which then says the mode, as in Microgateway 3.2.
func NewGroup(urls, auth []string, kind string) (URLGroup, error) {
	mode := Failover
	if strings.EqualFold(strings.TrimSpace(kind), "loadbalance") {
		mode = LoadBalance
	}
	if len(urls) == 1 && strings.ContainsAny(urls[0], ",|") {
		var err error
		if urls, mode, err = splitURLs(urls[0]); err != nil {
			return URLGroup{}, err
		}
	}
	if len(auth) == 1 && strings.ContainsAny(auth[0], ",|") {
		var err error
		if auth, _, err = splitURLs(auth[0]); err != nil {
			return URLGroup{}, fmt.Errorf("authentication URLs: %w", err)
		}
	}
	return newGroup(urls, auth, mode)
}

func newGroup(urls, auth []string, mode Mode) (URLGroup, error) {
	if len(urls) == 0 {
		return URLGroup{}, fmt.Errorf("a URL group names no URL: give at least one such as tcp://host:9611")
	}
	if len(auth) != 0 && len(auth) != len(urls) {
		return URLGroup{}, fmt.Errorf("%d URLs but %d authentication URLs: give as many, in the same order, or none", len(urls), len(auth))
	}
	g := URLGroup{Mode: mode}
	for i, u := range urls {
		scheme, host, port, err := splitURL(u)
		if err != nil {
			return URLGroup{}, err
		}
		e := Endpoint{URL: scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port))}
		switch {
		case len(auth) > 0:
			as, ah, ap, err := splitURL(auth[i])
			if err != nil {
				return URLGroup{}, fmt.Errorf("authentication URLs: %w", err)
			}
			if as != "ssl" {
				return URLGroup{}, fmt.Errorf("authentication URL %q: credentials go over TLS only, give ssl://%s", auth[i], net.JoinHostPort(ah, strconv.Itoa(ap)))
			}
			e.AuthURL = as + "://" + net.JoinHostPort(ah, strconv.Itoa(ap))
		case scheme == "ssl":
			e.AuthURL = e.URL
		case port+100 > 65535:
			return URLGroup{}, fmt.Errorf("URL %q: no port 100 higher to authenticate at, name the authentication URL", u)
		default:
			e.AuthURL = "ssl://" + net.JoinHostPort(host, strconv.Itoa(port+100))
		}
		g.Endpoints = append(g.Endpoints, e)
	}
	return g, nil
}

func splitGroups(s string) ([]string, error) {
	if !strings.ContainsAny(s, "{}") {
		if strings.TrimSpace(s) == "" {
			return nil, fmt.Errorf("no traffic manager URL: give at least one such as tcp://host:9611")
		}
		return []string{s}, nil
	}
	var groups []string
	for rest := s; ; {
		open := strings.IndexByte(rest, '{')
		outside := rest
		if open >= 0 {
			outside = rest[:open]
		}
		if strings.Trim(outside, ", \t") != "" {
			return nil, fmt.Errorf("URL groups %q: %q stands outside of braces, put every URL into a group", s, strings.Trim(outside, ", \t"))
		}
		if open < 0 {
			return groups, nil
		}
		inside, after, ok := strings.Cut(rest[open+1:], "}")
		if !ok || strings.ContainsRune(inside, '{') {
			return nil, fmt.Errorf("URL groups %q: a brace is not closed", s)
		}
		groups = append(groups, inside)
		rest = after
	}
}

func splitURLs(s string) ([]string, Mode, error) {
	mode, separator := LoadBalance, ","
	if strings.Contains(s, "|") {
		if strings.Contains(s, ",") {
			return nil, 0, fmt.Errorf("URL group %q mixes \",\" and \"|\": a group is load balanced or fails over", s)
		}
		mode, separator = Failover, "|"
	}
	var list []string
	for u := range strings.SplitSeq(s, separator) {
		if u = strings.TrimSpace(u); u != "" {
			list = append(list, u)
		}
	}
	return list, mode, nil
}

func splitURL(s string) (scheme, host string, port int, err error) {
	s = strings.TrimSpace(s)
	bad := func(why string) (string, string, int, error) {
		return "", "", 0, fmt.Errorf("traffic manager URL %q: %s; give one such as tcp://host:9611 or ssl://host:9711", redact(s), why)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return bad("it has no scheme")
	}
	scheme = strings.ToLower(scheme)
	if scheme != "tcp" && scheme != "ssl" {
		return bad("the scheme is neither tcp nor ssl")
	}
	host, p, err := net.SplitHostPort(rest)
	if err != nil || host == "" {
		return bad("it is no host and port")
	}
	if strings.ContainsAny(host, "/@?# ") {
		return bad("the host is none")
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 1 || port > 65535 {
		return bad(fmt.Sprintf("port %q is no number from 1 to 65535", p))
	}
	return scheme, host, port, nil
}

// redact removes what stands before an @: it could be a password.
func redact(s string) string {
	if u, err := url.Parse(s); err == nil && u.User != nil {
		return u.Redacted()
	}
	return s
}
