package throttle

import (
	"math/big"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestAppendDecimal(t *testing.T) {
	tests := []struct{ address, want string }{
		{"192.168.1.10", "3232235786"},
		{"0.0.0.0", "0"},
		{"255.255.255.255", "4294967295"},
		{"::ffff:192.168.1.10", "3232235786"},
		{"::1", "1"},
		{"2001:db8::10", "42540766411282592856903984951653826576"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "340282366920938463463374607431768211455"},
		{"::1:0:0:0:0", "18446744073709551616"},
	}
	for _, tt := range tests {
		if got := string(AppendDecimal(nil, netip.MustParseAddr(tt.address))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.address, got, tt.want)
		}
	}
	if got := string(AppendDecimal([]byte("x"), netip.Addr{})); got != "x0" {
		t.Errorf("no address: %s", got)
	}
}

func TestAppendDecimalAgainstBigInt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b [16]byte
		for i := range b {
			// Zeros often: inner zeros are where digits get lost.
			if rapid.Bool().Draw(t, "zero") {
				b[i] = rapid.Byte().Draw(t, "byte")
			}
		}
		a := netip.AddrFrom16(b)
		want := new(big.Int).SetBytes(a.Unmap().AsSlice()).String()
		if got := string(AppendDecimal(nil, a)); got != want {
			t.Fatalf("%s: %s, want %s", a, got, want)
		}
	})
}

func TestSetAddresses(t *testing.T) {
	tests := []struct {
		name              string
		kind              DenyKind
		fixed, start, end string
		want              string
		err               string
	}{
		{"address", DenyIP, "192.168.1.10", "", "", "IP 192.168.1.10-invalid IP", ""},
		{"IPv4-mapped", DenyIP, "::ffff:192.168.1.10", "", "", "IP 192.168.1.10-invalid IP", ""},
		{"zone", DenyIP, "fe80::1%eth0", "", "", "IP fe80::1-invalid IP", ""},
		{"range", DenyIPRange, "", "10.0.0.1", "10.0.0.200", "IPRANGE 10.0.0.1-10.0.0.200", ""},
		{"range with a null fixedIp beside", DenyIPRange, "", " 10.0.0.1", "10.0.0.200 ", "IPRANGE 10.0.0.1-10.0.0.200", ""},
		{"swapped", DenyIPRange, "", "10.0.0.200", "10.0.0.1", "IPRANGE 10.0.0.1-10.0.0.200", ""},
		{"prefix", DenyIP, "10.0.0.0/8", "", "", "IPRANGE 10.0.0.0-10.255.255.255", ""},
		{"prefix of a host inside", DenyIP, "10.1.2.3/30", "", "", "IPRANGE 10.1.2.0-10.1.2.3", ""},
		{"IPv6 prefix", DenyIPRange, "", "2001:db8::/126", "", "IPRANGE 2001:db8::-2001:db8::3", ""},
		{"no address", DenyIP, "example.org", "", "", "", `"example.org" is no IP address`},
		{"port", DenyIP, "10.0.0.1:80", "", "", "", "is no IP address"},
		{"bad prefix", DenyIP, "10.0.0.0/99", "", "", "", "no address prefix"},
		{"two families", DenyIPRange, "", "10.0.0.1", "::1", "", "two address families"},
		{"end missing", DenyIPRange, "", "10.0.0.1", "", "", `end "" is no IP address`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := DenyCondition{Kind: tt.kind, ID: 4}
			err := c.SetAddresses(tt.fixed, tt.start, tt.end)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %q", err, tt.err)
				}
				return
			}
			if got := string(c.Kind) + " " + c.From.String() + "-" + c.To.String(); err != nil || got != tt.want {
				t.Errorf("%s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func TestLevelNames(t *testing.T) {
	var got []string
	for _, l := range Levels() {
		got = append(got, l.String())
	}
	if s := strings.Join(got, " "); s != "none api resource subscription burst application custom hard_limit" || Level(99).String() != "unknown" {
		t.Error(s)
	}
}
