package registry

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

// BenchmarkAuthenticateCached verifies one of 10,000 tokens that were all verified before, with a set of revocations to
// look at.
func BenchmarkAuthenticateCached(b *testing.B) {
	const tokens = 10000
	f := newFixture(b)
	f.now = time.Now
	f.clock.at.Store(time.Now().UnixNano())
	for i := range 1000 {
		f.revs.Put(keymanager.Revocation{Value: fmt.Sprint("revoked-", i), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()})
	}
	creds := make([]keymanager.Credential, tokens)
	ctx := context.Background()
	for i := range creds {
		// ECDSA signs quickly; the tokens are as long as RS256 ones by their claims.
		creds[i] = keymanager.Credential{Tenant: "carbon.super", Bearer: sign(jwt.SigningMethodES256, ecKey(), map[string]any{"kid": "e1"},
			f.claims("jti", fmt.Sprintf("0d6d6ad2-7a84-4c5c-8a41-%012d", i), "padding",
				"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"))}
		if _, _, err := f.Authenticate(ctx, creds[i]); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("tokens of %d bytes", len(creds[0].Bearer))
	runtime.GC()
	b.ReportAllocs()
	i := 0
	missed := 0
	for b.Loop() {
		i = (i + 7919) % tokens
		if _, cached, err := f.Authenticate(ctx, creds[i]); err != nil {
			b.Fatal(err)
		} else if !cached {
			missed++
		}
	}
	b.ReportMetric(float64(missed)/float64(b.N), "misses/op")
}

func BenchmarkAuthenticateCachedOne(b *testing.B) {
	f := newFixture(b)
	f.now = time.Now
	f.clock.at.Store(time.Now().UnixNano())
	c := keymanager.Credential{Tenant: "carbon.super", Bearer: f.token()}
	ctx := context.Background()
	if _, _, err := f.Authenticate(ctx, c); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, cached, err := f.Authenticate(ctx, c); err != nil || !cached {
				b.Fatal(err, cached)
			}
		}
	})
}

func benchmarkCold(b *testing.B, method jwt.SigningMethod, kid string, key any) {
	f := newFixture(b)
	f.now = time.Now
	f.clock.at.Store(time.Now().UnixNano())
	token := sign(method, key, map[string]any{"kid": kid}, f.claims())
	ctx := context.Background()
	cold := New(Options{TLS: f.server.roots()})
	defer cold.Close()
	cold.Put(f.keyManager())
	c := keymanager.Credential{Bearer: token, Tenant: "carbon.super"}
	if _, _, err := cold.Authenticate(ctx, c); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, cached, err := cold.Authenticate(ctx, c); err != nil || cached {
			b.Fatal(err)
		}
	}
}

func BenchmarkAuthenticateColdRS256(b *testing.B) {
	benchmarkCold(b, jwt.SigningMethodRS256, "r1", rsaKey())
}

func BenchmarkAuthenticateColdES256(b *testing.B) {
	benchmarkCold(b, jwt.SigningMethodES256, "e1", ecKey())
}

func BenchmarkAuthenticateColdEdDSA(b *testing.B) {
	benchmarkCold(b, jwt.SigningMethodEdDSA, "o1", edKey())
}
