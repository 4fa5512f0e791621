package backendjwt

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"gatehouse/keymanager"
)

func TestAJWTIsUsedUntilFourFifthsOfItsLife(t *testing.T) {
	g, _ := edGenerator(t, Options{})
	c := alice()
	c.Token.ExpiresAt = 0
	first := mustToken(t, g, c, epochStart)
	for _, s := range []struct {
		after time.Duration
		same  bool
	}{{0, true}, {719 * time.Second, true}, {720 * time.Second, false}} {
		if got := mustToken(t, g, c, epochStart.Add(s.after)) == first; got != s.same {
			t.Errorf("after %s the same: %v, want %v", s.after, got, s.same)
		}
	}
	if s := g.Stats(); s.Signed != 2 || s.Entries != 1 {
		t.Errorf("%+v", s)
	}
}

// One that ends with the token of its caller would not last longer if it were made again.
func TestAJWTBoundByItsTokenIsMadeOnce(t *testing.T) {
	g, _ := edGenerator(t, Options{})
	c := alice()
	c.Token.ExpiresAt = epochStart.Unix() + 100
	first := mustToken(t, g, c, epochStart)
	if mustToken(t, g, c, epochStart.Add(99*time.Second)) != first {
		t.Error("made again before its end")
	}
	last := mustToken(t, g, c, epochStart.Add(102*time.Second)) // the leeway for clocks still lets the token in
	claims, err := verify(g.KeySet(), last, epochStart.Add(102*time.Second))
	if err != nil || fmt.Sprint(claims["exp"]) != fmt.Sprint(epochStart.Unix()+103) {
		t.Errorf("%v %v", claims["exp"], err)
	}
}

func TestCallersAreToldApart(t *testing.T) {
	g, _ := edGenerator(t, Options{})
	seen := map[string]string{mustToken(t, g, alice(), epochStart): "alice"}
	for name, change := range map[string]func(c *keymanager.Caller){
		"token":       func(c *keymanager.Caller) { c.Token = &keymanager.Token{Subject: "f1b0"} },
		"API":         func(c *keymanager.Caller) { c.APIContext = "/other/1" },
		"application": func(c *keymanager.Caller) { c.ApplicationName = "Other" },
		"plan":        func(c *keymanager.Caller) { c.Tier = "Bronze" },
		"key type":    func(c *keymanager.Caller) { c.KeyType = "SANDBOX" },
		"attributes":  func(c *keymanager.Caller) { c.Attributes = &map[string]string{"cost centre": "43"} },
	} {
		c := alice()
		change(c)
		token := mustToken(t, g, c, epochStart)
		if other, taken := seen[token]; taken {
			t.Errorf("of another %s: the JWT of %s", name, other)
		}
		seen[token] = name
	}
}

func TestOneOfManySigns(t *testing.T) {
	g, _ := edGenerator(t, Options{})
	c := alice()
	var wg sync.WaitGroup
	tokens := make([]string, 64)
	for i := range tokens {
		wg.Go(func() {
			mine := *c
			tokens[i] = mustToken(t, g, &mine, epochStart)
		})
	}
	wg.Wait()
	if n := len(slices.Compact(slices.Sorted(slices.Values(tokens)))); n != 1 || g.Stats().Signed != 1 {
		t.Errorf("%d JWTs, %d signed", n, g.Stats().Signed)
	}
}

// While rules, keys and callers change, whatever comes out verifies with the keys that are published.
func TestConcurrently(t *testing.T) {
	file := keyFile(t, edPEM())
	g, _ := edGenerator(t, Options{KeyFile: file, Capacity: 64, PublishLead: time.Microsecond})
	callers := make([]*keymanager.Caller, 200)
	for i := range callers {
		callers[i] = alice()
		callers[i].APIName = fmt.Sprint("API ", i)
		callers[i].Token.ExpiresAt = 0
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		defer close(stop)
		for i := range 30 {
			if err := g.SetRules(Rules{Audience: []string{fmt.Sprint(i)}}); err != nil {
				t.Error(err)
			}
			write(t, file, edPEM())
			if err := g.SetKeyFile(file); err != nil {
				t.Error(err)
			}
			_ = g.KeySet()
		}
	})
	for n := range 4 {
		wg.Go(func() {
			for i := n; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				now := time.Now()
				token := mustToken(t, g, callers[i%len(callers)], now)
				if claims, err := verify(g.KeySet(), token, now); err != nil || claims["http://wso2.org/claims/apiname"] != callers[i%len(callers)].APIName {
					t.Errorf("%v %v", claims, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if s := g.Stats(); s.Entries > 64 {
		t.Errorf("%d kept, of at most 64", s.Entries)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	g, _ := edGenerator(t, Options{Capacity: 96})
	for i := range 500 {
		c := alice()
		c.ApplicationID = int64(i)
		mustToken(t, g, c, epochStart)
	}
	if s := g.Stats(); s.Entries > 96 || s.Entries < 80 {
		t.Errorf("%d kept, of at most 96", s.Entries)
	}
	g.sweep(epochStart.Add(15 * time.Minute))
	if s := g.Stats(); s.Entries != 0 {
		t.Errorf("%d kept after their end", s.Entries)
	}
}

func TestRulesChange(t *testing.T) {
	g, _ := edGenerator(t, Options{})
	c := alice()
	first := mustToken(t, g, c, epochStart)
	if err := g.SetRules(Rules{Audience: []string{"new"}}); err != nil {
		t.Fatal(err)
	}
	second := mustToken(t, g, c, epochStart)
	claims, err := verify(g.KeySet(), second, epochStart)
	if second == first || err != nil || claims["aud"] != "new" {
		t.Errorf("%v %v", claims, err)
	}
	if err := g.SetRules(Rules{Claims: []Claim{{Name: "iss", Value: "me"}}}); err == nil {
		t.Error("bad rules are taken")
	}
	if mustToken(t, g, c, epochStart) != second {
		t.Error("bad rules changed something")
	}
}

func TestTooLarge(t *testing.T) {
	g, log := edGenerator(t, Options{MaxBytes: 2000, Rules: Rules{UserClaims: true}})
	c := alice()
	mustToken(t, g, c, epochStart)
	c.Token.Claims["long"] = strings.Repeat("x", 2000)
	c.Tier = "other"
	for range 3 {
		if token, err := g.Token(c, epochStart); err == nil || token != "" || !strings.Contains(err.Error(), "too large for a header: about") {
			t.Errorf("%q %v", token, err)
		}
	}
	if s := g.Stats(); s.Failed != 3 || strings.Count(log.String(), "could not be made") != 1 || strings.Contains(log.String(), "xxx") {
		t.Errorf("%+v %s", s, log)
	}
	delete(c.Token.Claims, "long")
	mustToken(t, g, c, epochStart)
}

func TestMetrics(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	g, _ := edGenerator(t, Options{Registerer: r})
	mustToken(t, g, alice(), epochStart)
	c := alice()
	mustToken(t, g, c, epochStart)
	mustToken(t, g, c, epochStart)
	if err := testutil.GatherAndCompare(r, strings.NewReader(`
# HELP gatehouse_backend_jwt_keys Published keys of backend JWTs.
# TYPE gatehouse_backend_jwt_keys gauge
gatehouse_backend_jwt_keys 1
# HELP gatehouse_backend_jwt_total Backend JWTs that were signed, and that could not be made.
# TYPE gatehouse_backend_jwt_total counter
gatehouse_backend_jwt_total{result="failed"} 0
gatehouse_backend_jwt_total{result="signed"} 2
# HELP gatehouse_cache_entries Entries in a cache.
# TYPE gatehouse_cache_entries gauge
gatehouse_cache_entries{cache="backend_jwt"} 2
# HELP gatehouse_cache_hits_total Look-ups that a cache answered.
# TYPE gatehouse_cache_hits_total counter
gatehouse_cache_hits_total{cache="backend_jwt"} 1
# HELP gatehouse_cache_misses_total Look-ups that a cache could not answer.
# TYPE gatehouse_cache_misses_total counter
gatehouse_cache_misses_total{cache="backend_jwt"} 2
`)); err != nil {
		t.Error(err)
	}
}

// kids returns the ids of a key set, in its order.
func kids(set []byte) []string {
	var ids []string
	for part := range strings.SplitSeq(string(set), `"kid":"`) {
		if id, _, ok := strings.Cut(part, `"`); ok && !strings.HasPrefix(part, "{") {
			ids = append(ids, id)
		}
	}
	return ids
}

// A key file is replaced while the gateway runs: the timeline of one rotation.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := keyFile(t, edPEM())
		g, log := edGenerator(t, Options{KeyFile: file})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		c := alice()
		c.Token.ExpiresAt = 0
		first := mustToken(t, g, c, time.Now())
		old := kid(t, first)
		if ids := kids(g.KeySet()); !slices.Equal(ids, []string{old}) {
			t.Fatalf("published %v", ids)
		}

		// What cannot be used changes nothing, and is told once.
		write(t, file, []byte("half a file"))
		time.Sleep(time.Minute)
		if n := strings.Count(log.String(), "the file cannot be used"); n != 1 || !strings.Contains(log.String(), "no private key") {
			t.Errorf("told %d times: %s", n, log)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := strings.Count(log.String(), "the file cannot be used"); n != 2 || kid(t, mustToken(t, g, c, time.Now())) != old {
			t.Errorf("told %d times: %s", n, log)
		}

		write(t, file, edPEM())
		time.Sleep(6 * time.Second) // a poll, and a little
		ids := kids(g.KeySet())
		if len(ids) != 2 || ids[0] != old {
			t.Fatalf("published %v", ids)
		}
		next := ids[1]
		if got := mustToken(t, g, c, time.Now()); got != first {
			t.Error("a key that was only published has changed something")
		}
		time.Sleep(5*time.Minute + 20*time.Second)
		late := *c
		late.Tier = "late"
		last := mustToken(t, g, &late, time.Now()) // the last of the old key
		if kid(t, last) != old {
			t.Error("the new key signs before every backend can know it")
		}
		time.Sleep(15 * time.Second)
		if got := mustToken(t, g, c, time.Now()); kid(t, got) != next {
			t.Error("the new key does not sign after five and a half minutes")
		}
		if ids := kids(g.KeySet()); !slices.Equal(ids, []string{next, old}) {
			t.Errorf("published %v", ids)
		}
		time.Sleep(15*time.Minute - 17*time.Second)
		if _, err := verify(g.KeySet(), last, time.Now()); err != nil {
			t.Errorf("a JWT of the old key does not verify before its end: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if ids := kids(g.KeySet()); !slices.Equal(ids, []string{next}) {
			t.Errorf("published %v, long after the last JWT of the old key has ended", ids)
		}
	})
}

// Whoever puts the old key back wants the new one never to sign.
func TestRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := edPEM(), edPEM()
		file := keyFile(t, a)
		g, _ := edGenerator(t, Options{KeyFile: file})
		c := alice()
		c.Token.ExpiresAt = 0
		set := func(content []byte) {
			write(t, file, content)
			if err := g.SetKeyFile(file); err != nil {
				t.Fatal(err)
			}
		}
		signer := func() string { return kid(t, mustToken(t, g, c, time.Now())) }
		old := signer()
		set(b)
		time.Sleep(time.Minute)
		set(a)
		time.Sleep(10 * time.Minute)
		if signer() != old || len(kids(g.KeySet())) != 1 {
			t.Errorf("signed by %s, published %v", signer(), kids(g.KeySet()))
		}
		set(b)
		time.Sleep(6 * time.Minute)
		next := signer()
		if next == old {
			t.Fatal("not rotated")
		}
		set(a) // still published, so it signs at once
		if signer() != old || !slices.Equal(kids(g.KeySet()), []string{old, next}) {
			t.Errorf("signed by %s, published %v", signer(), kids(g.KeySet()))
		}
	})
}

// Files change at any time, in any order. A backend that keeps the key set for as long as it may never meets a JWT that it
// cannot verify.
func TestRotationModel(t *testing.T) {
	contents := make([][]byte, 6)
	for i := range contents {
		contents[i] = edPEM()
	}
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		const lead = 5*time.Minute + 30*time.Second
		now := epochStart
		file := filepath.Join(dir, "key")
		write(t, file, contents[0])
		g, _ := edGenerator(t, Options{KeyFile: file, Now: func() time.Time { return now }, Rules: Rules{Life: time.Duration(rapid.IntRange(1, 1200).Draw(rt, "life")) * time.Second}})
		first := kids(g.KeySet())[0]
		since := map[string]time.Time{first: epochStart.Add(-time.Hour)} // how long each key has been in the set without a gap
		look := func() {
			ids := kids(g.KeySet())
			maps.DeleteFunc(since, func(id string, _ time.Time) bool { return !slices.Contains(ids, id) })
			for _, id := range ids {
				if _, known := since[id]; !known {
					since[id] = now
				}
			}
			if len(ids) > maxWaiting+len(contents)+1 {
				rt.Fatalf("%d keys are published", len(ids))
			}
		}
		type issued struct {
			key  string
			ends time.Time
		}
		var out []issued
		n := int64(0)
		rt.Repeat(map[string]func(*rapid.T){
			"wait": func(rt *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 400).Draw(rt, "seconds")) * time.Second)
				look()
			},
			"file": func(rt *rapid.T) {
				write(t, file, contents[rapid.IntRange(0, len(contents)-1).Draw(rt, "key")])
				if err := g.SetKeyFile(file); err != nil {
					rt.Fatal(err)
				}
				look()
			},
			"life": func(rt *rapid.T) {
				if err := g.SetRules(Rules{Life: time.Duration(rapid.IntRange(1, 1200).Draw(rt, "life")) * time.Second}); err != nil {
					rt.Fatal(err)
				}
			},
			"token": func(rt *rapid.T) {
				c := alice()
				n++
				c.ApplicationID, c.Token.ExpiresAt = n%5, 0 // some are kept ones
				token := mustToken(t, g, c, now)
				look()
				id := kid(t, token)
				if at, published := since[id]; !published || now.Sub(at) < lead {
					rt.Fatalf("signed by a key that was published %s ago (%v)", now.Sub(at), published)
				}
				claims, err := verify(g.KeySet(), token, now)
				if err != nil {
					rt.Fatal(err)
				}
				exp, err := claims.GetExpirationTime()
				if err != nil {
					rt.Fatal(err)
				}
				out = append(out, issued{id, exp.Time})
			},
			"": func(rt *rapid.T) {
				out = slices.DeleteFunc(out, func(i issued) bool { return !now.Before(i.ends) })
				ids := kids(g.KeySet())
				for _, i := range out {
					if !slices.Contains(ids, i.key) {
						rt.Fatalf("a key is gone %s before the end of a JWT that it has signed", i.ends.Sub(now))
					}
				}
			},
		})
	})
}

func TestTheKeySetIsAsItWas(t *testing.T) {
	g, _ := newGenerator(t, Options{KeyFile: "testdata/rsa-with-certificate.pem"})
	want, err := os.ReadFile("testdata/key-set.json")
	if *update {
		want = append(slices.Clone(g.KeySet()), '\n')
		err = os.WriteFile("testdata/key-set.json", want, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(g.KeySet())+"\n"); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func BenchmarkTokenHit(b *testing.B) {
	g, _ := newGenerator(b, Options{KeyFile: keyFile(b, rsaPEM())})
	const callers = 1000
	list := make([]*keymanager.Caller, callers)
	for i := range list {
		list[i] = alice()
		list[i].Token.ExpiresAt = 0
		list[i].ApplicationID = int64(i)
		mustToken(b, g, list[i], epochStart)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i = (i + 389) % callers
		if _, err := g.Token(list[i], epochStart); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTokenHitParallel(b *testing.B) {
	g, _ := newGenerator(b, Options{KeyFile: keyFile(b, rsaPEM())})
	c := alice()
	c.Token.ExpiresAt = 0
	mustToken(b, g, c, epochStart)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := g.Token(c, epochStart); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkTokenMiss(b *testing.B) {
	for _, c := range []struct {
		algorithm string
		key       []byte
	}{{"RS256", rsaPEM()}, {"ES256", ecPEM()}, {"EdDSA", edPEM()}} {
		b.Run(c.algorithm, func(b *testing.B) {
			g, _ := newGenerator(b, Options{Algorithm: c.algorithm, KeyFile: keyFile(b, c.key)})
			b.ReportAllocs()
			a := alice()
			for b.Loop() {
				a.ApplicationID++
				mustToken(b, g, a, epochStart)
			}
		})
	}
}
