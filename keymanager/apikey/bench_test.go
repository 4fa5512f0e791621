package apikey

import (
	"context"
	"testing"

	"gatehouse/keymanager"
)

func benchmarkHit(b *testing.B, f *fixture, o keymanager.KeyOffer) {
	f.accept(o)
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() { _, _, _ = f.AuthenticateKey(ctx, o) }); n != 0 {
		b.Fatalf("%v allocations for a key that is cached", n)
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, cached, err := f.AuthenticateKey(ctx, o); err != nil || !cached {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkHit is a key with both restrictions and a list of APIs, beside a revocation.
func BenchmarkHit(b *testing.B) {
	f := newFixture(b, func(l []Issuer) []Issuer {
		l[0].ValidateAllowedAPIs = true
		return l
	})
	f.revs.Put(keymanager.Revocation{Value: "other", ExpiresAt: f.clock.now().UnixMilli() + 3600_000})
	o := offer(signRSA(f.claims("permittedIP", "192.0.2.0/24,10.0.0.0/8", "permittedReferer", "one.test/*,*.example.com/*")))
	o.Referer = "https://shop.example.com/cart/17"
	benchmarkHit(b, f, o)
}

func BenchmarkHitOpaque(b *testing.B) {
	f := newFixture(b)
	f.store.Put(opaqueKey("gh_4f6e2f7e3c4d4a53"))
	benchmarkHit(b, f, offer("gh_4f6e2f7e3c4d4a53"))
}

func BenchmarkFirstSight(b *testing.B) {
	f := newFixture(b)
	o := offer(signRSA(f.claims()))
	b.ReportAllocs()
	for b.Loop() {
		k := f.verified.KeyOf(o.Value)
		if e := f.verified.Get(k); e != nil {
			f.verified.Delete(k, e)
		}
		if _, _, err := f.AuthenticateKey(context.Background(), o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnknownOpaque(b *testing.B) {
	f := newFixture(b)
	f.store.Put(opaqueKey("x"))
	o := offer("gh_4f6e2f7e3c4d4a53")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := f.AuthenticateKey(context.Background(), o); err == nil {
			b.Fatal("accepted")
		}
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	f := newFixture(t)
	o := offer(signRSA(f.claims("permittedIP", "10.0.0.0/8", "permittedReferer", "*.example.com/*")))
	o.Referer = "https://shop.example.com/"
	f.accept(o)
	if n := testing.AllocsPerRun(100, func() { _, _, _ = f.AuthenticateKey(context.Background(), o) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
