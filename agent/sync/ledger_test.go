package sync

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestLedgerNeverLetsAnOlderFactIn: whatever is forgotten for want of room or of age, an event that is older than a fact
// of its entity is never judged fresh.
func TestLedgerNeverLetsAnOlderFactIn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLedger[int](rapid.IntRange(4, 20).Draw(rt, "limit"), &hooks{})
		newest := make(map[int]int64)
		now := time.UnixMilli(1_000_000)
		rt.Repeat(map[string]func(*rapid.T){
			"note": func(rt *rapid.T) {
				k, at := rapid.IntRange(0, 30).Draw(rt, "k"), rapid.Int64Range(1, 1000).Draw(rt, "t")
				v := l.judge(k, at)
				if at < newest[k] && (v == fresh || v == equal) {
					rt.Fatalf("%d at %d is judged %v, a fact of %d is known", k, at, v, newest[k])
				}
				if v == fresh || v == equal {
					l.note(k, at, rapid.Bool().Draw(rt, "deleted"), now)
					newest[k] = max(newest[k], at)
				}
			},
			"list": func(rt *rapid.T) {
				at := rapid.Int64Range(1, 1000).Draw(rt, "start")
				l.advance(window{lo: at, start: at, hi: at}, now)
				for k := range 31 {
					newest[k] = max(newest[k], min(at, l.floor))
				}
			},
			"time passes": func(rt *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 20).Draw(rt, "minutes")) * time.Minute)
			},
			"": func(rt *rapid.T) {
				if len(l.entries) > l.limit {
					rt.Fatalf("%d entries, the limit is %d", len(l.entries), l.limit)
				}
			},
		})
	})
}

func TestLedgerIsBounded(t *testing.T) {
	const limit = 50_000
	l := newLedger[int64](limit, &hooks{})
	now := time.Now()
	for i := range int64(1_000_000) {
		l.note(i, i, i%3 == 0, now)
	}
	if len(l.entries) > limit {
		t.Errorf("%d entries after a million entities, want at most %d", len(l.entries), limit)
	}
	if v := l.judge(5, 4); v != late {
		t.Errorf("an event older than what was forgotten is judged %v, want late", v)
	}
	if v := l.judge(999_999, 999_998); v != stale {
		t.Errorf("an event older than what is known is judged %v, want stale", v)
	}
}

func TestTombstonesAreKeptTenMinutes(t *testing.T) {
	l := newLedger[int](100, &hooks{})
	start := time.Now()
	l.note(1, 10, true, start)
	l.note(2, 10, false, start)
	list := func(at time.Time) { l.advance(window{lo: 20, start: 20, hi: 20}, at) }
	list(start.Add(9 * time.Minute))
	if _, ok := l.entries[1]; !ok {
		t.Error("the tombstone is gone after 9 minutes")
	}
	if _, ok := l.entries[2]; ok {
		t.Error("what the list covers is kept")
	}
	list(start.Add(11 * time.Minute))
	if len(l.entries) != 0 {
		t.Error("the tombstone is kept after 11 minutes")
	}
}
