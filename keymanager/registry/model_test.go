package registry

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gatehouse/keymanager"
)

// TestOpaqueTokensAgainstModel lets tokens come, expire, be withdrawn, revoked and forgotten while the clock moves and the
// key manager comes and goes, and compares each answer with what is known about the token.
func TestOpaqueTokensAgainstModel(t *testing.T) {
	const tokens, skew = 2, 5 * time.Second
	shared := newIntrospector(t)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		o := IntrospectionOptions{TTL: time.Minute, ServeStale: rapid.Bool().Draw(rt, "stale"), StaleTTL: 5 * time.Minute, Reset: time.Hour}
		f := newModel(shared, o)
		defer f.Close()
		round++
		type fact struct {
			issued     bool // once; it may be withdrawn and given back with the same expiry
			active     bool
			exp        time.Time // zero: none
			lastActive time.Time // when the key manager last could have said so
			lastNot    time.Time // when it could have said that it does not know it
			revoked    bool
		}
		facts := make([]fact, tokens)
		name := func(i int) string { return fmt.Sprintf("r%d-token-%d", round, i) }
		pick := rapid.IntRange(0, tokens-1)
		downSince := false
		settle := func() { // what holds up to this moment
			for i := range facts {
				x := &facts[i]
				if x.active {
					x.lastActive = f.clock.now()
				} else {
					x.lastNot = f.clock.now()
				}
			}
		}
		shared.down.Store(false)
		settle()
		request := func(i int) {
			x, now := &facts[i], f.clock.now()
			_, _, err := f.auth(name(i))
			window := o.TTL
			if o.ServeStale && downSince {
				window += o.StaleTTL
			}
			var r *keymanager.Refusal
			switch {
			case err == nil:
				if x.revoked {
					rt.Fatalf("a revoked token was accepted")
				}
				if !x.exp.IsZero() && !now.Before(x.exp.Add(skew)) {
					rt.Fatalf("accepted %v after its expiry", now.Sub(x.exp))
				}
				if !x.active && (x.lastActive.IsZero() || now.Sub(x.lastActive) >= window) {
					rt.Fatalf("accepted although the key manager withdrew it %v ago", now.Sub(x.lastActive))
				}
			case !errors.As(err, &r):
				rt.Fatal(err)
			case r.Temporary:
				if !downSince {
					rt.Fatalf("%v although the key manager was never away", err)
				}
			case r.Check == keymanager.CheckRevoked:
				if !x.revoked {
					rt.Fatal(err)
				}
			case r.Check == keymanager.CheckExpired:
				if x.exp.IsZero() || now.Before(x.exp) {
					rt.Fatalf("%v at %v, it expires at %v", err, now, x.exp)
				}
			case r.Check == keymanager.CheckInactive:
				if x.active && (x.lastNot.IsZero() || now.Sub(x.lastNot) >= inactiveLife) {
					rt.Fatalf("%v although it has been active for %v", err, now.Sub(x.lastNot))
				}
			default:
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { settle() },
			"issue": func(rt *rapid.T) {
				i := pick.Draw(rt, "token")
				x := &facts[i]
				if !x.issued {
					if s := rapid.SampledFrom([]int{0, 30, 90, 600}).Draw(rt, "life"); s > 0 {
						x.exp = f.clock.now().Add(time.Duration(s) * time.Second)
					}
				}
				x.issued, x.active = true, true
				claims := map[string]any{}
				if !x.exp.IsZero() {
					claims["exp"] = x.exp.Unix()
				}
				shared.know(name(i), claims)
			},
			"withdraw": func(rt *rapid.T) {
				i := pick.Draw(rt, "token")
				facts[i].active = false
				shared.forget(name(i))
			},
			"revoke": func(rt *rapid.T) {
				i := pick.Draw(rt, "token")
				facts[i].revoked = true
				f.revs.Put(keymanager.Revocation{Value: name(i), ExpiresAt: f.clock.now().Add(24 * time.Hour).UnixMilli()})
			},
			"forget": func(rt *rapid.T) { f.Forget([]string{name(pick.Draw(rt, "token"))}) },
			"sweep":  func(*rapid.T) { f.Sweep() },
			"down": func(*rapid.T) {
				shared.down.Store(true)
				downSince = true
			},
			"up": func(*rapid.T) { shared.down.Store(false) },
			"time": func(rt *rapid.T) {
				settle()
				f.clock.advance(time.Duration(rapid.SampledFrom([]int{1, 9, 11, 29, 59, 61, 299}).Draw(rt, "s")) * time.Second)
				if rapid.Bool().Draw(rt, "both ask") {
					for i := range facts {
						request(i)
					}
				}
			},
			"request": func(rt *rapid.T) { request(pick.Draw(rt, "token")) },
		})
	})
}
