package throttle

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
)

// AppendDecimal appends an address as an unsigned decimal number, the form that policies of the API Manager use
// (events.md 6.5, traffic-manager.md 3): 192.168.1.10 is 3232235786. IPv4-mapped addresses count as IPv4; the zero Addr
// appends 0.
func AppendDecimal(dst []byte, a netip.Addr) []byte {
	a = a.Unmap()
	switch {
	case !a.IsValid():
		return append(dst, '0')
	case a.Is4():
		b := a.As4()
		return strconv.AppendUint(dst, uint64(b[0])<<24|uint64(b[1])<<16|uint64(b[2])<<8|uint64(b[3]), 10)
	}
	b := a.As16()
	var hi, lo uint64
	for i := range 8 {
		hi = hi<<8 | uint64(b[i])
		lo = lo<<8 | uint64(b[8+i])
	}
	// 19 decimal digits fit into 64 bits: peel them off the 128-bit number from the right.
	const chunk = 10_000_000_000_000_000_000
	var digits [40]byte
	n := len(digits)
	for hi > 0 {
		var rem uint64
		qHi, r := hi/chunk, hi%chunk
		lo, rem = bits.Div64(r, lo, chunk)
		hi = qHi
		for range 19 {
			n--
			digits[n] = byte('0' + rem%10)
			rem /= 10
		}
	}
	dst = strconv.AppendUint(dst, lo, 10)
	return append(dst, digits[n:]...)
}

// SetAddresses fills From and To of an IP or IPRANGE condition from the texts of the API Manager: fixed for IP, start and
// end for IPRANGE. A prefix ("10.0.0.0/8") is taken in place of a single address and makes the condition an IPRANGE.
// IPv4-mapped addresses become IPv4, zones are removed, swapped bounds are put in order. The error names the text.
func (c *DenyCondition) SetAddresses(fixed, start, end string) error {
	if fixed != "" && (start == "" || c.Kind != DenyIPRange) {
		if strings.Contains(fixed, "/") {
			p, err := netip.ParsePrefix(strings.TrimSpace(fixed))
			if err != nil {
				return fmt.Errorf("deny policy %d: %q is no address prefix such as 10.0.0.0/8", c.ID, fixed)
			}
			c.Kind = DenyIPRange
			c.From, c.To = prefixBounds(p)
			return nil
		}
		a, err := parseAddress(fixed)
		if err != nil {
			return fmt.Errorf("deny policy %d: %q is no IP address", c.ID, fixed)
		}
		c.From, c.To = a, netip.Addr{}
		return nil
	}
	if c.Kind == DenyIP {
		return fmt.Errorf("deny policy %d: no address in a condition of kind IP", c.ID)
	}
	if strings.Contains(start, "/") && end == "" {
		p, err := netip.ParsePrefix(strings.TrimSpace(start))
		if err != nil {
			return fmt.Errorf("deny policy %d: %q is no address prefix such as 10.0.0.0/8", c.ID, start)
		}
		c.From, c.To = prefixBounds(p)
		return nil
	}
	from, err := parseAddress(start)
	if err != nil {
		return fmt.Errorf("deny policy %d: start %q is no IP address", c.ID, start)
	}
	to, err := parseAddress(end)
	if err != nil {
		return fmt.Errorf("deny policy %d: end %q is no IP address", c.ID, end)
	}
	if from.Is4() != to.Is4() {
		return fmt.Errorf("deny policy %d: start %q and end %q are of two address families", c.ID, start, end)
	}
	if to.Less(from) {
		from, to = to, from
	}
	c.From, c.To = from, to
	return nil
}

func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return netip.Addr{}, err
	}
	return a.WithZone("").Unmap(), nil
}

func prefixBounds(p netip.Prefix) (from, to netip.Addr) {
	from = p.Masked().Addr()
	b := from.AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	to, _ = netip.AddrFromSlice(b)
	if from.Is4In6() && to.Is4In6() {
		from, to = from.Unmap(), to.Unmap()
	}
	return from, to
}
