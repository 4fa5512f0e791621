package condition

import (
	"net/netip"
	"net/textproto"
	"strings"
	"testing"

	"gatehouse/throttle"
)

// attributes of a request by name.
type attributes struct{ headers, query, claims map[string][]string }

func (a attributes) Header(n string) []string {
	return a.headers[textproto.CanonicalMIMEHeaderKey(n)]
}
func (a attributes) Query(n string) []string { return a.query[n] }
func (a attributes) Claim(n string) string   { return strings.Join(a.claims[n], " ") }

func request(ip string, a attributes) *throttle.Request {
	r := &throttle.Request{Attributes: a}
	if ip != "" {
		r.ClientIP = netip.MustParseAddr(ip)
	}
	return r
}

func header(n string, v ...string) attributes {
	return attributes{headers: map[string][]string{textproto.CanonicalMIMEHeaderKey(n): v}}
}

// TestMatch: the table of events.md 6.4.
func TestMatch(t *testing.T) {
	const mobile = `[{"ipspecific":{"specificIp":3232235786,"invert":false},"header":{"values":{"x-client":"^mobile-.*"},"invert":false}}]`
	tests := []struct {
		name, conditions string
		request          *throttle.Request
		off              Switches
		want             bool
	}{
		{"both parts", mobile, request("192.168.1.10", header("x-client", "mobile-7")), Switches{}, true},
		{"header differs", mobile, request("192.168.1.10", header("x-client", "web")), Switches{}, false},
		{"address differs", mobile, request("192.168.1.11", header("x-client", "mobile-7")), Switches{}, false},
		{"header missing", mobile, request("192.168.1.10", attributes{}), Switches{}, false},
		{"headers switched off count as met", mobile, request("192.168.1.10", attributes{}), Switches{HeadersOff: true}, true},
		{"address is never switched off", mobile, request("192.168.1.11", attributes{}), Switches{true, true, true}, false},

		{"name without regard to case", `[{"header":{"values":{"X-Client":"a"}}}]`, request("", header("x-client", "a")), Switches{}, true},
		{"pattern is searched for", `[{"header":{"values":{"h":"b"}}}]`, request("", header("h", "abc")), Switches{}, true},
		{"any of several values", `[{"header":{"values":{"h":"^b$"}}}]`, request("", header("h", "a", "b")), Switches{}, true},
		{"empty value counts as missing", `[{"header":{"values":{"h":".*"}}}]`, request("", header("h", "")), Switches{}, false},
		{"all names of a part", `[{"header":{"values":{"h":"a","i":"a"}}}]`, request("", header("h", "a")), Switches{}, false},
		{"inverted", `[{"header":{"values":{"h":"a"},"invert":true}}]`, request("", header("h", "b")), Switches{}, true},
		{"inverted and met", `[{"header":{"values":{"h":"a"},"invert":true}}]`, request("", header("h", "a")), Switches{}, false},
		{"missing is false before the inversion", `[{"header":{"values":{"h":"a"},"invert":true}}]`, request("", attributes{}), Switches{}, true},
		{"inverted part of two names flips as a whole", `[{"header":{"values":{"h":"a","i":"a"},"invert":true}}]`, request("", header("h", "a")), Switches{}, true},
		{"no attributes at all", `[{"header":{"values":{"h":"a"}}}]`, &throttle.Request{}, Switches{}, false},

		{"query", `[{"queryparametertype":{"values":{"tier":"free"}}}]`, request("", attributes{query: map[string][]string{"tier": {"paid", "free"}}}), Switches{}, true},
		{"query off", `[{"queryparametertype":{"values":{"tier":"free"}}}]`, request("", attributes{}), Switches{QueryOff: true}, true},
		{"claim", `[{"jwtclaims":{"values":{"plan":"trial"},"invert":false}}]`, request("", attributes{claims: map[string][]string{"plan": {"trial"}}}), Switches{}, true},
		{"claim inverted", `[{"jwtclaims":{"values":{"plan":"trial"},"invert":true}}]`, request("", attributes{claims: map[string][]string{"plan": {"gold"}}}), Switches{}, true},
		{"claims off", `[{"jwtclaims":{"values":{"plan":"trial"}}}]`, request("", attributes{}), Switches{ClaimsOff: true}, true},

		{"range includes its lower bound", `[{"iprange":{"startingIp":167772160,"endingIp":184549375}}]`, request("10.0.0.0", attributes{}), Switches{}, true},
		{"range includes its upper bound", `[{"iprange":{"startingIp":167772160,"endingIp":184549375}}]`, request("10.255.255.255", attributes{}), Switches{}, true},
		{"outside", `[{"iprange":{"startingIp":167772160,"endingIp":184549375}}]`, request("11.0.0.0", attributes{}), Switches{}, false},
		{"outside, inverted", `[{"iprange":{"startingIp":167772160,"endingIp":184549375,"invert":true}}]`, request("11.0.0.0", attributes{}), Switches{}, true},
		{"IPv4-mapped client", `[{"iprange":{"startingIp":167772160,"endingIp":184549375}}]`, request("::ffff:10.1.1.1", attributes{}), Switches{}, true},
		{"IPv6 beyond 64 bits", `[{"iprange":{"startingIp":42540766411282592856903984951653826576,"endingIp":42540766411282592856903984951653826815}}]`, request("2001:db8::80", attributes{}), Switches{}, true},
		{"IPv6 just outside", `[{"ipspecific":{"specificIp":42540766411282592856903984951653826576}}]`, request("2001:db8::11", attributes{}), Switches{}, false},
		{"numbers as text", `[{"ipspecific":{"specificIp":"3232235786"}}]`, request("192.168.1.10", attributes{}), Switches{}, true},
		{"addresses as text", `[{"iprange":{"startingIp":"10.0.0.0","endingIp":"10.0.0.9"}}]`, request("10.0.0.5", attributes{}), Switches{}, true},
		{"the single address wins over the range", `[{"iprange":{"startingIp":0,"endingIp":4294967295},"ipspecific":{"specificIp":1}}]`, request("10.0.0.1", attributes{}), Switches{}, false},
		{"a null single address does not", `[{"iprange":{"startingIp":0,"endingIp":4294967295},"ipspecific":null}]`, request("10.0.0.1", attributes{}), Switches{}, true},
		{"client address not known", `[{"iprange":{"startingIp":0,"endingIp":4294967295}}]`, request("", attributes{}), Switches{}, false},

		{"groups are alternatives", `[{"header":{"values":{"h":"a"}}},{"header":{"values":{"h":"b"}}}]`, request("", header("h", "b")), Switches{}, true},
		{"no group matches nothing", `[]`, request("", attributes{}), Switches{}, false},
		{"null", `null`, request("", attributes{}), Switches{}, false},
		{"nothing", ``, request("", attributes{}), Switches{}, false},
		{"invalid pattern never matches", `[{"header":{"values":{"h":"(?=a)"}}}]`, request("", header("h", "a")), Switches{}, false},
		{"invalid pattern never matches inverted either", `[{"header":{"values":{"h":"(?=a)"},"invert":true}}]`, request("", header("h", "a")), Switches{}, false},
		{"unknown type never matches", `[{"geo":{"values":{"country":"CH"}}}]`, request("", attributes{}), Switches{}, false},
		{"an inert group leaves the others", `[{"header":{"values":{"h":"("}}},{"header":{"values":{"h":"a"}}}]`, request("", header("h", "a")), Switches{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			groups, err := Parse([]byte(tt.conditions))
			if err != nil {
				t.Fatal(err)
			}
			if got := Any(groups, tt.request, tt.off); got != tt.want {
				t.Errorf("%v, want %v; %s", got, tt.want, Problems(groups))
			}
		})
	}
}

func TestProblemsNameWhatIsInert(t *testing.T) {
	groups, err := Parse([]byte(`[{"header":{"values":{"ok":"a"}}},{"header":{"values":{"x-b":"(?<=a)"}}},{"ipspecific":{"specificIp":-1}},{"iprange":{"startingIp":1}}]`))
	if err != nil {
		t.Fatal(err)
	}
	p := Problems(groups)
	for _, want := range []string{`condition group 2: header "x-b": pattern "(?<=a)"`, "condition group 3", "condition group 4: iprange without"} {
		if !strings.Contains(p, want) {
			t.Errorf("%q is missing in %s", want, p)
		}
	}
	for _, bad := range []string{`{}`, `[1]`, `x`, `"W10="`} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s accepted", bad)
		}
	}
	if _, err := compilePattern(strings.Repeat("a", 5000)); err == nil {
		t.Error("a pattern of 5000 bytes was compiled")
	}
}

// TestCompile: the condition groups of an API policy (rest.md 3).
func TestCompile(t *testing.T) {
	group := func(c ...throttle.Condition) []throttle.ConditionGroup {
		return []throttle.ConditionGroup{{ID: 4, Conditions: c}}
	}
	tests := []struct {
		name   string
		groups []throttle.ConditionGroup
		req    *throttle.Request
		want   bool
		inert  bool
	}{
		{"address", group(throttle.Condition{Type: "IPSpecific", Value: "192.168.1.10"}), request("192.168.1.10", attributes{}), true, false},
		{"address inverted", group(throttle.Condition{Type: "IPSpecific", Value: "192.168.1.10", Invert: true}), request("192.168.1.10", attributes{}), false, false},
		{"range in name and value", group(throttle.Condition{Type: "IPRange", Name: "10.0.0.1", Value: "10.0.0.9"}), request("10.0.0.9", attributes{}), true, false},
		{"range in the value", group(throttle.Condition{Type: "IPRange", Value: "10.0.0.1-10.0.0.9"}), request("10.0.0.1", attributes{}), true, false},
		{"all conditions must hold", group(throttle.Condition{Type: "IPSpecific", Value: "10.0.0.1"}, throttle.Condition{Type: "Header", Name: "h", Value: "a"}), request("10.0.0.1", header("h", "b")), false, false},
		{"each may be inverted", group(throttle.Condition{Type: "IPSpecific", Value: "10.0.0.1"}, throttle.Condition{Type: "Header", Name: "h", Value: "a", Invert: true}), request("10.0.0.1", header("h", "b")), true, false},
		{"query", group(throttle.Condition{Type: "QueryParameterType", Name: "q", Value: "1"}), request("", attributes{query: map[string][]string{"q": {"1"}}}), true, false},
		{"claim", group(throttle.Condition{Type: "JWTClaims", Name: "c", Value: "1"}), request("", attributes{claims: map[string][]string{"c": {"1"}}}), true, false},
		{"bad address", group(throttle.Condition{Type: "IPSpecific", Value: "x"}), request("10.0.0.1", attributes{}), false, true},
		{"unknown type", group(throttle.Condition{Type: "DATE", Value: "x"}), request("10.0.0.1", attributes{}), false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := Compile(tt.groups)
			if g[0].ID != 4 || (g[0].Inert != "") != tt.inert {
				t.Errorf("%+v", g[0])
			}
			if got := g[0].Match(tt.req, Switches{}); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`[]`, `null`, `[{}]`, `[{"ipspecific":{"specificIp":3232235786,"invert":false},"header":{"values":{"x-client":"^mobile-.*"},"invert":false}}]`,
		`[{"iprange":{"startingIp":167772160,"endingIp":184549375,"invert":false}},{"queryparametertype":{"values":{"tier":"free"},"invert":false}},{"jwtclaims":{"values":{"plan":"trial"},"invert":true}}]`,
		`[{"header":{"values":{"a":"("}}}]`, `[{"ipspecific":{"specificIp":1e3}}]`,
	} {
		f.Add([]byte(s))
	}
	r := request("192.168.1.10", attributes{headers: map[string][]string{"X-Client": {"mobile-1"}}, query: map[string][]string{"tier": {"free"}}, claims: map[string][]string{"plan": {"trial"}}})
	f.Fuzz(func(t *testing.T, js []byte) {
		groups, err := Parse(js)
		if err != nil {
			return
		}
		// Any is the alternative of its groups; an inert group never matches, whatever is switched off.
		any := false
		for i := range groups {
			if groups[i].Match(r, Switches{}) {
				any = true
			}
			if groups[i].Inert != "" && groups[i].Match(r, Switches{true, true, true}) {
				t.Fatalf("inert group %d matches: %s", i, groups[i].Inert)
			}
		}
		if Any(groups, r, Switches{}) != any {
			t.Fatal("Any differs from its groups")
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	groups, err := Parse([]byte(`[{"ipspecific":{"specificIp":3232235786},"header":{"values":{"x-client":"^mobile-.*"}}}]`))
	if err != nil {
		b.Fatal(err)
	}
	r := request("192.168.1.10", header("x-client", "mobile-7"))
	b.ReportAllocs()
	for b.Loop() {
		if !groups[0].Match(r, Switches{}) {
			b.Fatal("no match")
		}
	}
}
