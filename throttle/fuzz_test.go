package throttle

import (
	"math/big"
	"net/netip"
	"strings"
	"testing"
)

// FuzzDenyAddresses gives any texts as the addresses of a condition. What is taken is written out and taken again, and its
// bounds are compared as big numbers, in the way of the API Manager's own code.
func FuzzDenyAddresses(f *testing.F) {
	for _, s := range [][3]string{
		{"192.168.1.10", "", ""},
		{"", "10.0.0.1", "10.0.0.200"},
		{"", "2001:db8::10", "2001:db8::ff"},
		{"10.0.0.0/8", "", ""},
		{"", "10.0.0.200", "10.0.0.1"},
		{"::ffff:10.0.0.7", "", ""},
		{"fe80::1%eth0", "", ""},
		{"", "10.0.0.0/33", ""},
		{" 10.0.0.1 ", "", ""},
	} {
		f.Add(s[0], s[1], s[2], true)
		f.Add(s[0], s[1], s[2], false)
	}
	number := func(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }
	f.Fuzz(func(t *testing.T, fixed, start, end string, oneAddress bool) {
		c := DenyCondition{Kind: DenyIPRange, ID: 4}
		if oneAddress {
			c.Kind = DenyIP
		}
		before := c
		if err := c.SetAddresses(fixed, start, end); err != nil {
			if c != before {
				t.Errorf("a refused address changed the condition: %+v", c)
			}
			if !strings.Contains(err.Error(), "deny policy 4") {
				t.Errorf("the error does not name the policy: %v", err)
			}
			return
		}
		if !c.From.IsValid() || c.From.Zone() != "" || c.From.Is4In6() {
			t.Fatalf("from = %v", c.From)
		}
		again := DenyCondition{Kind: c.Kind, ID: 4}
		var err error
		if c.To.IsValid() {
			if c.Kind != DenyIPRange || c.From.Is4() != c.To.Is4() || number(c.To).Cmp(number(c.From)) < 0 {
				t.Fatalf("range = %v to %v of kind %s", c.From, c.To, c.Kind)
			}
			err = again.SetAddresses("", c.From.String(), c.To.String())
		} else {
			err = again.SetAddresses(c.From.String(), "", "")
		}
		if err != nil || again != c {
			t.Errorf("written and read again: %+v, %v; was %+v", again, err, c)
		}
	})
}
