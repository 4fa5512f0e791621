package apikey

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gatehouse/keymanager"
)

func TestPermittedIP(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		name, permitted, from string
		want                  bool
	}{
		{"no restriction", "", "192.0.2.1", true},
		{"no restriction, no address", "", "", true},
		{"blanks and commas", " , ", "192.0.2.1", true},
		{"the address", "10.1.2.3", "10.1.2.3", true},
		{"another address", "10.1.2.3", "10.1.2.30", false},
		{"one of two", "192.0.2.1, 10.1.2.3", "10.1.2.3", true},
		{"in the range", "10.0.0.0/8", "10.255.255.255", true},
		{"before the range", "10.0.0.0/8", "9.255.255.255", false},
		{"after the range", "10.0.0.0/8", "11.0.0.0", false},
		{"range with host bits", "10.1.2.3/8", "10.9.9.9", true},
		{"everything", "0.0.0.0/0", "192.0.2.1", true},
		{"everything of IPv4 is not IPv6", "0.0.0.0/0", "2001:db8::1", false},
		{"IPv6", "2001:db8::/32", "2001:db8:1::1", true},
		{"IPv6 in another form", "2001:0db8:0:0::0001", "2001:db8::1", true},
		{"IPv6 outside", "2001:db8::/32", "2001:db9::1", false},
		{"IPv4 inside of IPv6", "10.1.2.3", "::ffff:10.1.2.3", true},
		{"permitted as IPv4 inside of IPv6", "::ffff:10.0.0.0/104", "10.1.2.3", true},
		{"a range that would be more than IPv4", "::ffff:0:0/64", "10.1.2.3", false},
		{"zone of the caller", "fe80::1", "fe80::1%eth0", true},
		{"zone of the list", "fe80::1%eth0", "fe80::1", true},
		{"no address known", "10.0.0.0/8", "", false},
		{"unreadable entry admits nobody", "10.1.2.3.4", "10.1.2.3", false},
		{"unreadable entry beside a good one", "everyone,10.1.2.3", "10.1.2.3", true},
		{"leading zeros", "010.1.2.3", "10.1.2.3", false},
		{"asterisks are no addresses", "10.1.2.*", "10.1.2.3", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fixture{Authenticator: f.Authenticator, t: t, clock: f.clock}
			o := offer(signRSA(f.claims("permittedIP", tt.permitted)))
			o.ClientIP, _ = netip.ParseAddr(tt.from)
			if tt.want {
				f.accept(o)
			} else if r := f.refuse(o, keymanager.CheckIP); !r.Forbidden {
				t.Error("not answered as forbidden")
			}
		})
	}
}

func TestPermittedReferer(t *testing.T) {
	f := newFixture(t)
	const shop = "*.example.com/*"
	for _, tt := range []struct {
		name, permitted, referer string
		want                     bool
	}{
		{"no restriction", "", "", true},
		{"none sent", shop, "", false},
		{"none sent, anything permitted", "*", "", false},
		{"anything", "*", "https://elsewhere.test/x", true},
		{"exact", "www.example.com/path", "https://www.example.com/path", true},
		{"exact, plain text as in the manual", "www.example.com/path", "www.example.com/path", true},
		{"another path", "www.example.com/path", "https://www.example.com/path2", false},
		{"longer path", "www.example.com/path", "https://www.example.com/path/more", false},
		{"with a query", "www.example.com/path", "https://www.example.com/path?x=1", true},
		{"with a fragment", "www.example.com/path", "https://www.example.com/path#x", true},
		{"the query that is named", "www.example.com/path?x=1", "https://www.example.com/path?x=2", false},
		{"any path of a host", "sub.example.com/*", "https://sub.example.com/a/b", true},
		{"the origin alone, as browsers send it", "sub.example.com/*", "https://sub.example.com/", true},
		{"the host alone", "sub.example.com", "https://sub.example.com/", true},
		{"the host alone is no whole site", "sub.example.com", "https://sub.example.com/a", false},
		{"any host of a domain", shop, "https://a.b.example.com/x", true},
		{"the domain itself is no host of it", shop, "https://example.com/x", false},
		{"second of a list", "one.test/*, " + shop, "https://a.example.com/", true},
		{"host in another case", shop, "HTTPS://Shop.EXAMPLE.com/x", true},
		{"path in another case", "shop.example.com/Path", "https://shop.example.com/path", false},
		{"port of the scheme", shop, "https://shop.example.com:443/x", true},
		{"another port", shop, "https://shop.example.com:8443/x", false},
		{"the port that is named", "shop.example.com:8443/*", "https://shop.example.com:8443/x", true},
		{"every port", "shop.example.com:*/*", "https://shop.example.com:8443/x", true},
		{"full name of the host", shop, "https://shop.example.com./x", true},
		{"scheme that is named", "https://shop.example.com/*", "https://shop.example.com/x", true},
		{"another scheme", "https://shop.example.com/*", "http://shop.example.com/x", false},
		{"no scheme where one is named", "https://shop.example.com/*", "shop.example.com/x", false},
		{"scheme of no page", shop, "javascript://shop.example.com/x", false},
		{"any scheme", "*://shop.example.com/*", "http://shop.example.com/x", true},

		{"user part that looks like the host", shop, "https://shop.example.com@evil.test/", false},
		{"user part before the host", shop, "https://evil@shop.example.com/", false},
		{"user part with a slash escaped", shop, "https://shop.example.com%2f@evil.test/", false},
		{"name in the path", shop, "https://evil.test/shop.example.com/", false},
		{"name in the query", shop, "https://evil.test/?shop.example.com/", false},
		{"name in the fragment", shop, "https://evil.test/#shop.example.com/", false},
		{"name at the beginning of another", "shop.example.com/*", "https://shop.example.com.evil.test/", false},
		{"name at the end of another", "example.com/*", "https://evilexample.com/", false},
		{"name at the end of another, wildcard", shop, "https://evil-example.com/", false},
		{"dot is no wildcard", "shop.example.com/*", "https://shopxexample.com/", false},
		{"backslash", shop, `https://evil.test\.example.com/`, false},
		{"line end", shop, "https://evil.test/\nhttps://shop.example.com/", false},
		{"blank", shop, "https://evil.test/ https://shop.example.com/", false},
		{"asterisk sent", "shop.example.com/*", "https://*.example.com/", false},
		{"asterisk sent as the scheme", shop, "*://shop.example.com/", false},
		{"asterisk sent alone", shop, "*", false},
		{"dot segments", "shop.example.com/public/*", "https://shop.example.com/public/../admin", false},
		{"list sent", "a.test/*", "https://evil.test/,https://a.test/", false},
		{"no host", shop, "https:///shop.example.com/", false},
		{"unreadable entry admits nobody", "a@b.test/*", "https://b.test/", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fixture{Authenticator: f.Authenticator, t: t, clock: f.clock}
			o := offer(signRSA(f.claims("permittedReferer", tt.permitted)))
			o.Referer = tt.referer
			if tt.want {
				f.accept(o)
			} else if r := f.refuse(o, keymanager.CheckReferer); !r.Forbidden {
				t.Error("not answered as forbidden")
			}
		})
	}
}

func TestBothRestrictionsHold(t *testing.T) {
	f := newFixture(t)
	o := offer(signRSA(f.claims("permittedIP", "10.0.0.0/8", "permittedReferer", "shop.example.com/*")))
	o.Referer = "https://shop.example.com/cart"
	f.accept(o)
	o.Referer = "https://evil.test/"
	f.refuse(o, keymanager.CheckReferer) // a passing address does not spare the referer
	o.Referer = "https://shop.example.com/cart"
	o.ClientIP = netip.MustParseAddr("192.0.2.1")
	f.refuse(o, keymanager.CheckIP)
	o.ClientIP = netip.Addr{}
	f.refuse(o, keymanager.CheckIP)
}

func TestFormsOfRestrictions(t *testing.T) {
	f := newFixture(t)
	for name, tt := range map[string]struct {
		claim any
		want  bool
	}{
		"absent":                 {nil, true},
		"array":                  {[]any{"192.0.2.1", "10.1.2.3"}, true},
		"array of lists":         {[]any{"192.0.2.1,10.1.2.3"}, true},
		"empty array":            {[]any{}, true},
		"array without the one":  {[]any{"192.0.2.1"}, false},
		"array of something":     {[]any{1.0}, false},
		"number":                 {10, false},
		"object":                 {map[string]any{"ip": "10.1.2.3"}, false},
		"true admits nobody too": {true, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fixture{Authenticator: f.Authenticator, t: t, clock: f.clock}
			o := offer(signRSA(f.claims("permittedIP", tt.claim)))
			if tt.want {
				f.accept(o)
			} else {
				f.refuse(o, keymanager.CheckIP)
			}
		})
	}
}

// TestGlobAgainstRegexp compares with the regular expression that a pattern stands for.
func TestGlobAgainstRegexp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab*.]{0,8}`).Draw(t, "pattern")
		text := rapid.StringMatching(`[abAB.]{0,10}`).Draw(t, "text")
		fold := rapid.Bool().Draw(t, "fold")
		flags := "(?s)"
		if fold {
			flags = "(?si)"
		}
		re := regexp.MustCompile(flags + `^` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `.*`) + `$`)
		if got, want := glob(pattern, text, fold), re.MatchString(text); got != want {
			t.Fatalf("%q matches %q: %t, want %t", pattern, text, got, want)
		}
	})
}
