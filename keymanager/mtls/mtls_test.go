package mtls

import (
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatehouse/keymanager"
)

const shop = "b2a7c1de-5d1f-4c51-9f0b-6a2d0f5e1a41"

func offer(api string, list ...*cert) keymanager.CertificateOffer {
	o := keymanager.CertificateOffer{API: api}
	for i, c := range list {
		if i == 0 {
			o.DER = c.Raw
		} else {
			o.Chain = append(o.Chain, c.Raw)
		}
	}
	return o
}

func accept(t *testing.T, s *Set, o keymanager.CertificateOffer) *keymanager.Token {
	t.Helper()
	first, err := s.AuthenticateCertificate(o)
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	if again, err := s.AuthenticateCertificate(o); err != nil || again != first {
		t.Fatalf("the second time: %v", err)
	}
	return first
}

func reject(t *testing.T, s *Set, o keymanager.CertificateOffer, says string) {
	t.Helper()
	for range 2 {
		tok, err := s.AuthenticateCertificate(o)
		var r *keymanager.Refusal
		if err == nil || !errors.As(err, &r) {
			t.Fatalf("accepted %+v, %v", tok, err)
		}
		if r.Check != keymanager.CheckClient || r.Temporary || r.Forbidden || !strings.Contains(r.Detail, says) {
			t.Fatalf("refused with %+v, wanted one that says %q", r, says)
		}
	}
}

func entry(alias, tier, text string) keymanager.ClientCertificate {
	return keymanager.ClientCertificate{Alias: alias, Tier: tier, PEM: text}
}

func TestAdmission(t *testing.T) {
	ca, other := issue("ca", nil, asCA), issue("other ca", nil, asCA)
	between := issue("between", ca, asCA)
	signed := issue("signed", ca, nil)
	deep := issue("deep", between, nil)
	own := issue("own", nil, nil)
	ownCA := issue("own, as openssl req -x509 makes it", nil, func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign })
	server := issue("server", ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	plain := issue("no usage", ca, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
	stranger := issue("own", nil, nil) // another of the same name
	child := issue("child", own, nil)  // signed by somebody who may not sign
	past := issue("past", ca, func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) })
	future := issue("future", ca, func(c *x509.Certificate) { c.NotBefore = start.Add(time.Hour) })
	oldCA := issue("old ca", nil, func(c *x509.Certificate) { asCA(c); c.NotAfter = start.Add(-time.Second) })
	ofOldCA := issue("of old ca", oldCA, nil)

	for _, tt := range []struct {
		name  string
		admit []keymanager.ClientCertificate
		shown []*cert
		tier  string
		says  string // "": admitted
	}{
		{"pinned", []keymanager.ClientCertificate{entry("a", "Gold", pemOf(own))}, []*cert{own}, "Gold", ""},
		{"pinned, second of two", []keymanager.ClientCertificate{entry("a", "Gold", pemOf(own)), entry("b", "Silver", pemOf(signed))}, []*cert{signed}, "Silver", ""},
		{"pinned twice, the first tier counts", []keymanager.ClientCertificate{entry("a", "Gold", pemOf(own)), entry("b", "Silver", pemOf(own))}, []*cert{own}, "Gold", ""},
		{"pinned and self-signed as an authority", []keymanager.ClientCertificate{entry("a", "Gold", pemOf(ownCA))}, []*cert{ownCA}, "Gold", ""},
		{"pinned, two in one file", []keymanager.ClientCertificate{entry("a", "Gold", pemOf(own, signed))}, []*cert{signed}, "Gold", ""},
		{"pinned, whatever its usage", []keymanager.ClientCertificate{entry("a", "Gold", pemOf(server))}, []*cert{server}, "Gold", ""},
		{"signed by an authority", []keymanager.ClientCertificate{entry("ca", "Gold", pemOf(ca))}, []*cert{signed}, "Gold", ""},
		{"signed by the second authority", []keymanager.ClientCertificate{entry("o", "Silver", pemOf(other)), entry("ca", "Gold", pemOf(ca))}, []*cert{signed}, "Gold", ""},
		{"signed by two authorities of one file", []keymanager.ClientCertificate{entry("cas", "Gold", pemOf(other, ca))}, []*cert{signed}, "Gold", ""},
		{"signed through one in between", []keymanager.ClientCertificate{entry("ca", "Gold", pemOf(ca))}, []*cert{deep, between}, "Gold", ""},
		{"the one in between is the authority", []keymanager.ClientCertificate{entry("b", "Gold", pemOf(between))}, []*cert{deep}, "Gold", ""},
		{"without a usage", []keymanager.ClientCertificate{entry("ca", "", pemOf(ca))}, []*cert{plain}, "", ""},
		{"a pinned one has its own tier", []keymanager.ClientCertificate{entry("ca", "Gold", pemOf(ca)), entry("s", "Silver", pemOf(signed))}, []*cert{signed}, "Silver", ""},

		{"none shown", []keymanager.ClientCertificate{entry("a", "", pemOf(own))}, nil, "", "no client certificate was sent"},
		{"another of the same name", []keymanager.ClientCertificate{entry("a", "", pemOf(own))}, []*cert{stranger}, "", "not one of those"},
		{"the pinned one in the chain only", []keymanager.ClientCertificate{entry("a", "", pemOf(own))}, []*cert{stranger, own}, "", "not one of those"},
		{"signed by a pinned one", []keymanager.ClientCertificate{entry("a", "", pemOf(own))}, []*cert{child, own}, "", "not one of those"},
		{"signed by the authority of a pinned one", []keymanager.ClientCertificate{entry("a", "", pemOf(signed, ca))}, []*cert{plain}, "", "not one of those"},
		{"signed by another authority", []keymanager.ClientCertificate{entry("o", "", pemOf(other))}, []*cert{signed, ca}, "", "not signed by an authority"},
		{"the chain lacks one", []keymanager.ClientCertificate{entry("ca", "", pemOf(ca))}, []*cert{deep}, "", "not signed by an authority"},
		{"for servers", []keymanager.ClientCertificate{entry("ca", "", pemOf(ca))}, []*cert{server}, "", "not for client authentication"},
		{"expired", []keymanager.ClientCertificate{entry("ca", "", pemOf(ca))}, []*cert{past}, "", "outside of its dates"},
		{"not yet valid", []keymanager.ClientCertificate{entry("ca", "", pemOf(ca))}, []*cert{future}, "", "outside of its dates"},
		{"authority expired", []keymanager.ClientCertificate{entry("o", "", pemOf(oldCA))}, []*cert{ofOldCA}, "", "outside of its dates"},
		{"pinned and expired", []keymanager.ClientCertificate{entry("a", "", pemOf(past))}, []*cert{past}, "", "expired at 2026-11-24T11:59:59Z"},
		{"pinned and not yet valid", []keymanager.ClientCertificate{entry("a", "", pemOf(future))}, []*cert{future}, "", "not valid before 2026-11-24T13:00:00Z"},
		{"the API names nothing that can be read", nil, []*cert{own}, "", "not one of those"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(newClock().now)
			if faults := s.Replace(map[string][]keymanager.ClientCertificate{shop: tt.admit}); len(faults) > 0 {
				t.Fatal(faults)
			}
			if tt.says != "" {
				reject(t, s, offer(shop, tt.shown...), tt.says)
				return
			}
			tok := accept(t, s, offer(shop, tt.shown...))
			if tok.Kind != keymanager.KindCertificate || tok.User != "Unknown" || tok.Tier != tt.tier || !tok.Unsubscribed || len(tok.ID) != 64 || tok.Subject != tt.shown[0].Subject.String() {
				t.Errorf("token %+v", tok)
			}
			reject(t, s, offer("another API", tt.shown...), "no client certificate is admitted")
		})
	}
	t.Run("not a certificate", func(t *testing.T) {
		s := New(newClock().now)
		s.Replace(map[string][]keymanager.ClientCertificate{shop: {entry("ca", "", pemOf(ca))}})
		reject(t, s, keymanager.CertificateOffer{API: shop, DER: []byte("text")}, "cannot be read")
		reject(t, s, keymanager.CertificateOffer{API: shop, DER: signed.Raw[:len(signed.Raw)-1]}, "cannot be read")
	})
}

func TestDatesAreCheckedEachTime(t *testing.T) {
	ca := issue("ca", nil, func(c *x509.Certificate) { asCA(c); c.NotAfter = start.Add(2 * time.Hour) })
	signed := issue("signed", ca, nil) // outlives its authority
	own := issue("own", nil, func(c *x509.Certificate) { c.NotAfter = start.Add(2 * time.Hour) })
	c := newClock()
	s := New(c.now)
	s.Replace(map[string][]keymanager.ClientCertificate{shop: {entry("ca", "", pemOf(ca)), entry("own", "", pemOf(own))}})
	for _, o := range []keymanager.CertificateOffer{offer(shop, signed), offer(shop, own)} {
		accept(t, s, o)
	}
	c.advance(2 * time.Hour)
	accept(t, s, offer(shop, own))
	c.advance(time.Second)
	for _, o := range []keymanager.CertificateOffer{offer(shop, signed), offer(shop, own)} {
		reject(t, s, o, "expired at 2026-11-24T14:00:00Z")
	}
	c.advance(-4 * time.Hour)
	reject(t, s, offer(shop, own), "not valid before")
}

func TestAuthoritiesOfAPIsThatNameNone(t *testing.T) {
	ca, signed, own := issue("ca", nil, asCA), (*cert)(nil), issue("own", nil, nil)
	signed = issue("signed", ca, nil)
	s := New(newClock().now)
	s.Replace(map[string][]keymanager.ClientCertificate{shop: {entry("own", "", pemOf(own))}, "closed": nil})
	reject(t, s, offer("open", signed), "no client certificate is admitted")
	must(s.SetAuthorities(pemOf(ca)))
	if tok := accept(t, s, offer("open", signed)); tok.Tier != "" || tok.User != "Unknown" {
		t.Errorf("token %+v", tok)
	}
	reject(t, s, offer("open", own), "not signed by an authority")
	reject(t, s, offer(shop, signed), "not one of those")
	reject(t, s, offer("closed", signed), "not one of those")
	if err := s.SetAuthorities("text"); err == nil {
		t.Error("a text that is no PEM")
	}
	accept(t, s, offer("open", signed)) // the fault changed nothing
	must(s.SetAuthorities(""))
	reject(t, s, offer("open", signed), "no client certificate is admitted")
}

func TestReplaceCertificates(t *testing.T) {
	ca := issue("ca", nil, asCA)
	signed, own := issue("signed", ca, nil), issue("own", nil, nil)
	s := New(newClock().now)
	lists := map[string][]keymanager.ClientCertificate{shop: {entry("ca", "Gold", pemOf(ca))}, "/ctx:1": {entry("own", "", pemOf(own))}}
	s.Replace(lists)
	before := accept(t, s, offer(shop, signed))
	accept(t, s, offer("/ctx:1", own))
	s.Replace(lists)
	if accept(t, s, offer(shop, signed)) != before {
		t.Error("what did not change was verified again")
	}
	s.Replace(map[string][]keymanager.ClientCertificate{shop: {entry("ca", "Silver", pemOf(ca))}})
	if tok := accept(t, s, offer(shop, signed)); tok.Tier != "Silver" {
		t.Errorf("the tier is %q", tok.Tier)
	}
	reject(t, s, offer("/ctx:1", own), "no client certificate is admitted")
	faults := s.Replace(map[string][]keymanager.ClientCertificate{shop: {entry("bad", "", "text"), entry("own", "", pemOf(own))}, "x": {entry("key", "", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")}})
	got := map[string]string{}
	for k, err := range faults {
		got[k] = err.Error()
	}
	want := map[string]string{
		shop: `client certificate "bad": no certificate in PEM form: write a block that begins with -----BEGIN CERTIFICATE-----`,
		"x":  `client certificate "key": PEM block 1 is a PRIVATE KEY: write CERTIFICATE blocks`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	accept(t, s, offer(shop, own))
	reject(t, s, offer(shop, signed), "not one of those")
	must(s.SetAuthorities(pemOf(ca)))
	reject(t, s, offer("x", signed), "not one of those") // a fault opens nothing
	if s.Len() != 2 {
		t.Errorf("%d APIs", s.Len())
	}
}

func TestVerifiedAreBounded(t *testing.T) {
	ca := issue("ca", nil, asCA)
	s := New(newClock().now)
	s.Replace(map[string][]keymanager.ClientCertificate{shop: {entry("ca", "", pemOf(ca))}})
	a := s.state.Load().apis[shop]
	for i := range maxCached {
		a.verified.Store([32]byte{byte(i), byte(i >> 8), 1}, &admitted{})
	}
	accept(t, s, offer(shop, issue("one more", ca, nil)))
	if n := a.verified.Size(); n != maxCached {
		t.Errorf("%d are kept", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	ca := issue("ca", nil, asCA)
	signed := issue("signed", ca, nil)
	s := New(newClock().now)
	lists := []map[string][]keymanager.ClientCertificate{{shop: {entry("ca", "Gold", pemOf(ca))}}, {shop: {entry("s", "Silver", pemOf(signed))}}}
	s.Replace(lists[0])
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := range 100 {
				if n == 0 {
					s.Replace(lists[i%2])
				}
				if _, err := s.AuthenticateCertificate(offer(shop, signed)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func benchmark(b *testing.B, admit string, shown ...*cert) {
	s := New(newClock().now)
	s.Replace(map[string][]keymanager.ClientCertificate{shop: {entry("a", "Gold", admit)}})
	o := offer(shop, shown...)
	if _, err := s.AuthenticateCertificate(o); err != nil {
		b.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = s.AuthenticateCertificate(o) }); n != 0 {
		b.Fatalf("%v allocations", n)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.AuthenticateCertificate(o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPinned(b *testing.B) {
	own := issue("own", nil, nil)
	benchmark(b, pemOf(own), own)
}

func BenchmarkSigned(b *testing.B) {
	ca := issue("ca", nil, asCA)
	benchmark(b, pemOf(ca), issue("signed", ca, nil))
}

func BenchmarkParseHeader(b *testing.B) {
	own := issue("own", nil, nil)
	for name, value := range headerForms(own) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := ParseHeader(value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
