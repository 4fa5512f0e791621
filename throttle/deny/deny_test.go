package deny

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"gatehouse/throttle"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func ip(id int64, a string, invert bool) throttle.DenyCondition {
	return throttle.DenyCondition{Kind: throttle.DenyIP, Tenant: "carbon.super", ID: id, From: addr(a), Invert: invert}
}

func ipRange(id int64, from, to string, invert bool) throttle.DenyCondition {
	return throttle.DenyCondition{Kind: throttle.DenyIPRange, Tenant: "carbon.super", ID: id, From: addr(from), To: addr(to), Invert: invert}
}

func text(kind throttle.DenyKind, tenant, value string) throttle.DenyCondition {
	return throttle.DenyCondition{Kind: kind, Tenant: tenant, Value: value}
}

func request(edit func(*throttle.Request)) *throttle.Request {
	r := &throttle.Request{
		APIContext: "/weather/2.1.0", APIVersion: "2.1.0", APITenant: "carbon.super", AppName: "MobileApp", AppOwner: "dana", AppTenant: "carbon.super",
		KeyType: "PRODUCTION", User: "dana@carbon.super", ClientIP: addr("192.168.1.10"), Authenticated: true,
	}
	if edit != nil {
		edit(r)
	}
	return r
}

func client(a string) func(*throttle.Request) {
	return func(r *throttle.Request) { r.ClientIP = addr(a) }
}

func TestMatch(t *testing.T) {
	tests := []struct {
		name   string
		c      throttle.DenyCondition
		edit   func(*throttle.Request)
		denied bool
	}{
		{"API", text(throttle.DenyAPI, "", "/weather/2.1.0"), nil, true},
		{"API of another context", text(throttle.DenyAPI, "", "/weather/2.1"), nil, false},
		{"API of a tenant", text(throttle.DenyAPI, "example.org", "/t/example.org/news/1.0.0"), func(r *throttle.Request) { r.APIContext, r.APITenant = "/t/example.org/news/1.0.0", "example.org" }, true},
		{"a context blocks no user of that name", text(throttle.DenyAPI, "", "dana@carbon.super"), nil, false},

		{"application", text(throttle.DenyApplication, "carbon.super", "dana:MobileApp"), nil, true},
		{"application of another name", text(throttle.DenyApplication, "carbon.super", "dana:Mobile"), nil, false},
		{"application, owner with the super tenant in the condition", text(throttle.DenyApplication, "", "dana@carbon.super:MobileApp"), nil, true},
		{"application, owner with the super tenant in the store", text(throttle.DenyApplication, "", "dana:MobileApp"), func(r *throttle.Request) { r.AppOwner = "dana@carbon.super" }, true},
		{"application of a tenant owner", text(throttle.DenyApplication, "", "bob@example.org:App"), func(r *throttle.Request) {
			r.AppOwner, r.AppTenant, r.AppName = "bob@example.org", "example.org", "App"
		}, true},
		{"application of a tenant owner stored without the tenant", text(throttle.DenyApplication, "", "bob@example.org:App"), func(r *throttle.Request) { r.AppOwner, r.AppTenant, r.AppName = "bob", "example.org", "App" }, true},
		{"application name with colons", text(throttle.DenyApplication, "", "dana:a:b@carbon.super:c"), func(r *throttle.Request) { r.AppName = "a:b@carbon.super:c" }, true},
		{"application of nobody", text(throttle.DenyApplication, "", ":"), func(r *throttle.Request) { r.AppOwner, r.AppName = "", "" }, false},

		{"user", text(throttle.DenyUser, "carbon.super", "dana@carbon.super"), nil, true},
		{"user without the tenant in the condition", text(throttle.DenyUser, "carbon.super", "dana"), nil, true},
		{"user without any tenant in the condition", text(throttle.DenyUser, "", "dana"), nil, true},
		{"user without the tenant in the request", text(throttle.DenyUser, "carbon.super", "dana@carbon.super"), func(r *throttle.Request) { r.User = "dana" }, true},
		{"user of another tenant", text(throttle.DenyUser, "example.org", "dana"), nil, false},
		{"bare name is none of another tenant", text(throttle.DenyUser, "", "dana"), func(r *throttle.Request) { r.User, r.APITenant = "dana@example.org", "example.org" }, false},
		{"e-mail user", text(throttle.DenyUser, "carbon.super", "dana@mail.com"), func(r *throttle.Request) { r.User = "dana@mail.com@carbon.super" }, true},
		{"user names are case sensitive", text(throttle.DenyUser, "carbon.super", "Dana@carbon.super"), nil, false},
		{"no user", text(throttle.DenyUser, "carbon.super", "anonymous"), func(r *throttle.Request) { r.User = "" }, false},

		{"subscription", text(throttle.DenySubscription, "carbon.super", "/weather/2.1.0:2.1.0:dana-MobileApp:PRODUCTION"), nil, true},
		{"subscription with the other key", text(throttle.DenySubscription, "carbon.super", "/weather/2.1.0:2.1.0:dana-MobileApp:SANDBOX"), nil, false},
		{"subscription of an application named with - and :", text(throttle.DenySubscription, "", "/weather/2.1.0:2.1.0:dana-My-App:1:PRODUCTION"), func(r *throttle.Request) { r.AppName = "My-App:1" }, true},
		{"subscription, owner with the super tenant", text(throttle.DenySubscription, "", "/weather/2.1.0:2.1.0:dana@carbon.super-MobileApp:PRODUCTION"), nil, true},
		{"subscription of a tenant owner", text(throttle.DenySubscription, "", "/weather/2.1.0:2.1.0:bob@example.org-MobileApp:PRODUCTION"), func(r *throttle.Request) { r.AppOwner, r.AppTenant = "bob", "example.org" }, true},

		{"IP", ip(4, "192.168.1.10", false), nil, true},
		{"another IP", ip(4, "192.168.1.11", false), nil, false},
		{"IP, client IPv4-mapped", ip(4, "192.168.1.10", false), client("::ffff:192.168.1.10"), true},
		{"IP, condition IPv4-mapped", ip(4, "::ffff:192.168.1.10", false), nil, true},
		{"IP, client with a zone", ip(4, "fe80::1", false), client("fe80::1%eth0"), true},
		{"IP of another tenant's APIs", throttle.DenyCondition{Kind: throttle.DenyIP, Tenant: "example.org", ID: 4, From: addr("192.168.1.10")}, nil, false},
		{"IP without a tenant is the super tenant's", throttle.DenyCondition{Kind: throttle.DenyIP, ID: 4, From: addr("192.168.1.10")}, nil, true},
		{"inverted IP spares its address", ip(5, "192.168.1.10", true), nil, false},
		{"inverted IP denies all others", ip(5, "192.168.1.10", true), client("10.0.0.1"), true},
		{"inverted IP denies the other family too", ip(5, "192.168.1.10", true), client("2001:db8::1"), true},
		{"inverted IP denies who has no known address", ip(5, "192.168.1.10", true), func(r *throttle.Request) { r.ClientIP = netip.Addr{} }, true},

		{"range, inside", ipRange(6, "10.0.0.1", "10.0.0.200", false), client("10.0.0.77"), true},
		{"range, lower bound", ipRange(6, "10.0.0.1", "10.0.0.200", false), client("10.0.0.1"), true},
		{"range, upper bound", ipRange(6, "10.0.0.1", "10.0.0.200", false), client("10.0.0.200"), true},
		{"range, below", ipRange(6, "10.0.0.1", "10.0.0.200", false), client("10.0.0.0"), false},
		{"range, above", ipRange(6, "10.0.0.1", "10.0.0.200", false), client("10.0.0.201"), false},
		{"range, bounds swapped", ipRange(6, "10.0.0.200", "10.0.0.1", false), client("10.0.0.77"), true},
		{"range over text order", ipRange(6, "9.0.0.0", "10.0.0.0", false), client("9.200.0.0"), true},
		{"IPv6 range", ipRange(9, "2001:db8::10", "2001:db8::ff", false), client("2001:db8::80"), true},
		{"IPv4 range never meets an IPv6 client", ipRange(6, "0.0.0.0", "255.255.255.255", false), client("::1"), false},
		{"IPv6 range never meets an IPv4 client", ipRange(6, "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false), client("10.0.0.1"), false},
		{"inverted range spares the inside", ipRange(6, "10.0.0.1", "10.0.0.200", true), client("10.0.0.1"), false},
		{"inverted range denies the outside", ipRange(6, "10.0.0.1", "10.0.0.200", true), client("10.0.0.201"), true},
		{"inverted range denies the other family", ipRange(6, "10.0.0.1", "10.0.0.200", true), client("2001:db8::1"), true},
		{"range without a known client address", ipRange(6, "0.0.0.0", "255.255.255.255", false), func(r *throttle.Request) { r.ClientIP = netip.Addr{} }, false},

		{"range of two families is inert", throttle.DenyCondition{Kind: throttle.DenyIPRange, ID: 1, From: addr("10.0.0.1"), To: addr("::1"), Invert: true}, nil, false},
		{"address missing is inert", throttle.DenyCondition{Kind: throttle.DenyIP, ID: 1, Invert: true}, nil, false},
		{"unknown kind is inert", text("DEVICE", "", "/weather/2.1.0"), nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := New()
			s.Put(tt.c)
			r := request(tt.edit)
			got := s.Anonymous(r)
			if got == nil {
				got = s.Identified(r)
			}
			if (got != nil) != tt.denied {
				t.Fatalf("denied by %+v, want denied %v", got, tt.denied)
			}
			if s.Len() != 1 || len(s.All()) != 1 {
				t.Fatalf("%d held", s.Len())
			}
			if inert := strings.Contains(tt.name, "inert"); inert != (s.All()[0].Inert != "") {
				t.Errorf("inert: %q", s.All()[0].Inert)
			}
			if s.Delete(tt.c) == nil || s.Anonymous(r) != nil || s.Identified(r) != nil || s.Len() != 0 {
				t.Error("still there after Delete")
			}
		})
	}
}

func TestExclusiveRanges(t *testing.T) {
	s := New(ExclusiveRanges())
	s.Put(ipRange(6, "10.0.0.1", "10.0.0.200", false))
	for a, want := range map[string]bool{"10.0.0.1": false, "10.0.0.2": true, "10.0.0.199": true, "10.0.0.200": false} {
		if got := s.Anonymous(request(client(a))) != nil; got != want {
			t.Errorf("%s denied: %v", a, got)
		}
	}
	s.ReplaceAll(s.All())
	if s.Anonymous(request(client("10.0.0.1"))) != nil {
		t.Error("ReplaceAll forgot the option")
	}
}

func TestPutReplacesTheSame(t *testing.T) {
	s := New()
	if before := s.Put(ip(4, "10.0.0.1", false)); before != nil {
		t.Errorf("before: %v", before)
	}
	// Editing may turn an address into a range under the same id.
	if before := s.Put(ipRange(4, "10.0.0.2", "10.0.0.3", false)); before == nil || before.From != addr("10.0.0.1") {
		t.Errorf("before: %v", before)
	}
	if s.Anonymous(request(client("10.0.0.1"))) != nil || s.Anonymous(request(client("10.0.0.3"))) == nil || s.Len() != 1 {
		t.Error("the old address still counts")
	}
	// The same id in another tenant is another condition.
	other := ip(4, "10.0.0.9", false)
	other.Tenant = "example.org"
	if s.Put(other) != nil || s.Len() != 2 {
		t.Error("tenants share an id")
	}
	// An event names the tenant, the full list does not: one condition all the same.
	s.ReplaceAll([]throttle.DenyCondition{text(throttle.DenyUser, "", "dana@carbon.super"), text(throttle.DenyAPI, "", "/a/1")})
	if s.Put(text(throttle.DenyUser, "carbon.super", "dana@carbon.super")) == nil || s.Put(text(throttle.DenyAPI, "carbon.super", "/a/1")) == nil || s.Len() != 2 {
		t.Error("doubled")
	}
	if s.Delete(text(throttle.DenyUser, "carbon.super", "dana")) == nil || s.Delete(text(throttle.DenyUser, "carbon.super", "dana")) != nil {
		t.Error("one removal clears a condition that came twice")
	}
}

func TestOldStreamsWithoutAnID(t *testing.T) {
	s := New()
	s.Put(ip(0, "10.0.0.1", false))
	s.Put(ip(0, "10.0.0.2", false))
	if s.Len() != 2 || s.Delete(ip(0, "10.0.0.1", false)) == nil || s.Anonymous(request(client("10.0.0.2"))) == nil {
		t.Error("conditions without an id are one")
	}
}

// model is the specification once more, without any index.
type model []throttle.DenyCondition

func modelKey(c throttle.DenyCondition) string {
	switch c.Kind {
	case throttle.DenyIP, throttle.DenyIPRange:
		return fmt.Sprint("ip ", c.Tenant, c.ID)
	case throttle.DenyUser:
		if !strings.HasSuffix(c.Value, "@"+c.Tenant) {
			return "USER " + c.Value + "@" + c.Tenant
		}
	}
	return string(c.Kind) + " " + c.Value
}

func (m *model) delete(c throttle.DenyCondition) bool {
	n := len(*m)
	*m = slices.DeleteFunc(*m, func(x throttle.DenyCondition) bool { return modelKey(x) == modelKey(c) })
	return len(*m) != n
}

func (m model) denies(r *throttle.Request) (anonymous, identified bool) {
	for _, c := range m {
		switch c.Kind {
		case throttle.DenyAPI:
			anonymous = anonymous || c.Value == r.APIContext
		case throttle.DenyIP, throttle.DenyIPRange:
			if c.Tenant != r.APITenant {
				continue
			}
			from, to := c.From.Unmap(), c.To.Unmap()
			if c.Kind == throttle.DenyIP {
				to = from
			}
			number := func(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }
			x := r.ClientIP.Unmap()
			lo, hi := number(from), number(to)
			if lo.Cmp(hi) > 0 {
				lo, hi = hi, lo
			}
			in := x.BitLen() == from.BitLen() && number(x).Cmp(lo) >= 0 && number(x).Cmp(hi) <= 0
			if c.Kind == throttle.DenyIPRange && from.BitLen() != to.BitLen() {
				continue
			}
			anonymous = anonymous || in != c.Invert
		case throttle.DenyApplication:
			identified = identified || c.Value == r.AppOwner+":"+r.AppName
		case throttle.DenyUser:
			identified = identified || c.Value == r.User || c.Value+"@"+c.Tenant == r.User
		case throttle.DenySubscription:
			identified = identified || c.Value == r.APIContext+":"+r.APIVersion+":"+r.AppOwner+"-"+r.AppName+":"+r.KeyType
		}
	}
	return anonymous, identified
}

func TestSetAgainstModel(t *testing.T) {
	addresses := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.200", "::ffff:10.0.0.2", "2001:db8::1", "2001:db8::ff", "::a00:1"}
	a := rapid.Custom(func(t *rapid.T) netip.Addr { return addr(rapid.SampledFrom(addresses).Draw(t, "address")) })
	tenant := rapid.SampledFrom([]string{"carbon.super", "example.org"})
	condition := rapid.Custom(func(t *rapid.T) throttle.DenyCondition {
		c := throttle.DenyCondition{Tenant: tenant.Draw(t, "tenant"), ID: rapid.Int64Range(1, 4).Draw(t, "id")}
		c.Kind = rapid.SampledFrom([]throttle.DenyKind{throttle.DenyAPI, throttle.DenyApplication, throttle.DenyUser, throttle.DenyIP, throttle.DenyIPRange, throttle.DenySubscription, "DEVICE"}).Draw(t, "kind")
		switch c.Kind {
		case throttle.DenyIP:
			c.From, c.Invert = a.Draw(t, "from"), rapid.Bool().Draw(t, "invert")
		case throttle.DenyIPRange:
			c.From, c.To, c.Invert = a.Draw(t, "from"), a.Draw(t, "to"), rapid.Bool().Draw(t, "invert")
		case throttle.DenyUser:
			c.Value = rapid.SampledFrom([]string{"dana", "bob", "dana@carbon.super", "bob@example.org"}).Draw(t, "user")
		case throttle.DenyApplication:
			c.Value = rapid.SampledFrom([]string{"dana:A", "dana:B", "bob@example.org:A"}).Draw(t, "application")
		case throttle.DenySubscription:
			c.Value = rapid.SampledFrom([]string{"/a/1:1:dana-A:PRODUCTION", "/b/1:1:dana-A:PRODUCTION"}).Draw(t, "subscription")
		default:
			c.Value = rapid.SampledFrom([]string{"/a/1", "/b/1"}).Draw(t, "context")
		}
		return c
	})
	rapid.Check(t, func(t *rapid.T) {
		s, m := New(), model{}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				c := condition.Draw(t, "condition")
				had := m.delete(c)
				m = append(m, c)
				if before := s.Put(c); (before != nil) != had {
					t.Fatalf("before: %v, in the model %v", before, had)
				}
			},
			"delete": func(t *rapid.T) {
				c := condition.Draw(t, "condition")
				if before, had := s.Delete(c), m.delete(c); (before != nil) != had {
					t.Fatalf("before: %v, in the model %v", before, had)
				}
			},
			"replace all": func(t *rapid.T) {
				list := rapid.SliceOfN(condition, 0, 6).Draw(t, "list")
				m = nil
				for _, c := range list {
					m.delete(c)
					m = append(m, c)
				}
				s.ReplaceAll(list)
			},
			"": func(t *rapid.T) {
				if s.Len() != len(m) {
					t.Fatalf("%d held, want %d", s.Len(), len(m))
				}
				for _, at := range addresses {
					for _, apiTenant := range []string{"carbon.super", "example.org"} {
						for _, user := range []string{"dana@carbon.super", "bob@example.org", "eve@carbon.super"} {
							r := &throttle.Request{APIContext: "/a/1", APIVersion: "1", APITenant: apiTenant, AppName: "A", AppOwner: "dana", AppTenant: "carbon.super", KeyType: "PRODUCTION", User: user, ClientIP: addr(at)}
							wantA, wantI := m.denies(r)
							if got := s.Anonymous(r); (got != nil) != wantA {
								t.Fatalf("%s, %s: denied by %v, want %v; held %+v", at, apiTenant, got, wantA, s.All())
							}
							if got := s.Identified(r); (got != nil) != wantI {
								t.Fatalf("%s: denied by %v, want %v; held %+v", user, got, wantI, s.All())
							}
						}
					}
				}
			},
		})
	})
}

func TestAllIsOrderedAndACopy(t *testing.T) {
	s := New()
	list := []throttle.DenyCondition{text(throttle.DenyUser, "", "b"), text(throttle.DenyUser, "", "a"), text(throttle.DenyAPI, "", "/x")}
	s.ReplaceAll(list)
	got := s.All()
	want := []throttle.DenyCondition{list[2], list[1], list[0]}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	got[0].Value = "changed"
	if s.All()[0].Value != "/x" {
		t.Error("All gives the set's own memory away")
	}
}

func TestReadersDuringABurst(t *testing.T) {
	s := New()
	s.Put(text(throttle.DenyAPI, "", "/weather/2.1.0"))
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range int64(500) {
			s.Put(ip(i+1, "10.0.0.1", false))
			s.Put(text(throttle.DenyUser, "", fmt.Sprint("u", i)))
		}
	})
	for range 4 {
		wg.Go(func() {
			for range 2000 {
				if s.Anonymous(request(nil)) == nil {
					t.Error("a condition that was never removed did not count")
					return
				}
			}
		})
	}
	wg.Wait()
	if s.Len() != 1001 {
		t.Errorf("%d held", s.Len())
	}
}

func filled(n int) *Set {
	s := New()
	var list []throttle.DenyCondition
	for i := range n {
		list = append(list, ip(int64(i+1), fmt.Sprintf("10.%d.%d.1", i/250, i%250), false), text(throttle.DenyUser, "carbon.super", fmt.Sprintf("user-%d", i)),
			text(throttle.DenyAPI, "", fmt.Sprintf("/api-%d/1", i)), text(throttle.DenyApplication, "", fmt.Sprintf("owner:App-%d", i)))
	}
	for i := range 20 {
		list = append(list, ipRange(int64(10_000+i), fmt.Sprintf("172.16.%d.0", i), fmt.Sprintf("172.16.%d.255", i), false))
	}
	s.ReplaceAll(list)
	return s
}

func BenchmarkMatchNothing(b *testing.B) {
	s := filled(1000)
	r := request(nil)
	b.ReportAllocs()
	for b.Loop() {
		if s.Anonymous(r) != nil || s.Identified(r) != nil {
			b.Fatal("denied")
		}
	}
}

func BenchmarkPutInto4000(b *testing.B) {
	s := filled(1000)
	b.ReportAllocs()
	for b.Loop() {
		s.Put(text(throttle.DenyUser, "carbon.super", "user-5"))
	}
}
