package proxy

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// addresses returns the connection's other end and the client: behind trusted proxies the right-most address that is
// none of them.
func (p *Proxy) addresses(r *http.Request) (peer, client netip.Addr) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return peer, client
	}
	peer = ap.Addr().Unmap().WithZone("")
	if len(p.trusted) == 0 || !p.trusts(peer) {
		return peer, peer
	}
	client = peer
	lines := r.Header["X-Forwarded-For"]
	for _, rest := range slices.Backward(lines) {
		for rest != "" {
			var last string
			if j := strings.LastIndexByte(rest, ','); j >= 0 {
				rest, last = rest[:j], rest[j+1:]
			} else {
				rest, last = "", rest
			}
			a, ok := parseAddress(strings.TrimSpace(last))
			if !ok {
				return peer, client // what stands further left cannot be believed
			}
			client = a
			if !p.trusts(a) {
				return peer, client
			}
		}
	}
	return peer, client
}

// parseAddress reads an entry of X-Forwarded-For, which may carry a port.
func parseAddress(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

func (p *Proxy) trusts(a netip.Addr) bool {
	for _, t := range p.trusted {
		if t.Contains(a) {
			return true
		}
	}
	return false
}
