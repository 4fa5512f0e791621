package remote

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/throttle"
	"gatehouse/throttle/condition"
)

const (
	now = int64(1764000000000)
	end = now + 60_000
)

func over(key string, until int64) throttle.Decision {
	return throttle.Decision{Key: key, Throttled: true, ExpiresAt: until}
}

func released(key string, until int64) throttle.Decision {
	return throttle.Decision{Key: key, ExpiresAt: until}
}

func with(d throttle.Decision, conditions string) throttle.Decision {
	d.Conditions = []byte(conditions)
	return d
}

func TestSplit(t *testing.T) {
	tests := []struct{ key, resource, name string }{
		{"/weather/2.1.0/2.1.0/cities/{id}:GET_condition_4", "/weather/2.1.0/2.1.0/cities/{id}:GET", "condition_4"},
		{"/weather/2.1.0/2.1.0/cities/{id}:GET_default", "/weather/2.1.0/2.1.0/cities/{id}:GET", "default"},
		{"/weather/2.1.0:2.1.0_default", "/weather/2.1.0:2.1.0", "default"},
		{"/a/1/1/x_default/y_condition_3/z:GET_condition_12", "/a/1/1/x_default/y_condition_3/z:GET", "condition_12"},
		{"/a/1:1_dana@carbon.super_default", "/a/1:1_dana@carbon.super", "default"},
		{"12:dana@carbon.super", "12:dana@carbon.super", ""},
		{"12:/weather/2.1.0:2.1.0", "12:/weather/2.1.0:2.1.0", ""},
		{"12:user_default", "12:user_default", ""},
		{"/a/1_default", "/a/1_default", ""},
		{"/a/1:1_condition_", "/a/1:1_condition_", ""},
		{"/a/1:1_condition_x1", "/a/1:1_condition_x1", ""},
		{"/a/1:1_5", "/a/1:1_5", ""},
		{"", "", ""},
	}
	for _, tt := range tests {
		if r, n := Split(tt.key); r != tt.resource || n != tt.name {
			t.Errorf("%q: %q %q, want %q %q", tt.key, r, n, tt.resource, tt.name)
		}
	}
}

func TestApplyPlainKeys(t *testing.T) {
	const k = "12:dana@carbon.super"
	tests := []struct {
		name    string
		apply   []throttle.Decision
		changed []bool
		at      int64 // of the look-up
		until   int64 // of the hit, 0 for none
	}{
		{"over", []throttle.Decision{over(k, end)}, []bool{true}, now, end},
		{"over, last instant of the window", []throttle.Decision{over(k, end)}, []bool{true}, end, end},
		{"over, window past", []throttle.Decision{over(k, end)}, []bool{true}, end + 1, 0},
		{"twice the same", []throttle.Decision{over(k, end), over(k, end)}, []bool{true, false}, now, end},
		{"longer", []throttle.Decision{over(k, end), over(k, end+1)}, []bool{true, true}, now, end + 1},
		{"a smaller end never shortens", []throttle.Decision{over(k, end), over(k, end-1)}, []bool{true, false}, now, end},
		{"released", []throttle.Decision{over(k, end), released(k, end)}, []bool{true, true}, now, 0},
		{"released by a later window", []throttle.Decision{over(k, end), released(k, end+60_000)}, []bool{true, true}, now, 0},
		{"late release", []throttle.Decision{over(k, end), released(k, end-1)}, []bool{true, false}, now, end},
		{"release without an end", []throttle.Decision{over(k, end), released(k, 0)}, []bool{true, true}, now, 0},
		{"release of nothing", []throttle.Decision{released(k, end)}, []bool{false}, now, 0},
		{"expired on arrival", []throttle.Decision{over(k, now-1)}, []bool{false}, now, 0},
		{"without an end", []throttle.Decision{over(k, 0)}, []bool{false}, now, 0},
		{"negative end", []throttle.Decision{over(k, -5)}, []bool{false}, now, 0},
		{"400 days ahead", []throttle.Decision{over(k, now+maxAhead)}, []bool{true}, now, now + maxAhead},
		{"more than 400 days ahead", []throttle.Decision{over(k, now+maxAhead+1)}, []bool{false}, now, 0},
		{"no key", []throttle.Decision{over("", end)}, []bool{false}, now, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := New(Options{})
			for i, dec := range tt.apply {
				if got := d.Apply(dec, now); got != tt.changed[i] {
					t.Errorf("decision %d changed: %v, want %v", i, got, tt.changed[i])
				}
			}
			h, ok := d.Lookup([]byte(k), tt.at)
			if ok != (tt.until != 0) || h.ExpiresAt != tt.until || ok && h.Key != k {
				t.Errorf("%+v, %v", h, ok)
			}
		})
	}
}

func TestExpiredKeyIsRemovedOnRead(t *testing.T) {
	d := New(Options{})
	d.Apply(over("a:b", end), now)
	if _, ok := d.Lookup([]byte("a:b"), end+1); ok || d.Len() != 0 {
		t.Errorf("%d held", d.Len())
	}
}

type attributes map[string]string

func (a attributes) Header(n string) []string {
	if v, ok := a[strings.ToLower(n)]; ok {
		return []string{v}
	}
	return nil
}
func (a attributes) Query(string) []string { return nil }
func (a attributes) Claim(string) string   { return "" }

func TestLookupResource(t *testing.T) {
	const k = "/a/1/1/x:GET"
	group := func(header string) string { return `[{"header":{"values":{"` + header + `":"."}}}]` }
	policy := condition.Compile([]throttle.ConditionGroup{
		{ID: 4, Conditions: []throttle.Condition{{Type: "Header", Name: "four", Value: "."}}},
		{ID: 40, Conditions: []throttle.Condition{{Type: "Header", Name: "forty", Value: "."}}},
	})
	tests := []struct {
		name    string
		apply   []throttle.Decision
		policy  []condition.Group
		headers []string
		at      int64
		want    string // condition
		until   int64
	}{
		{"nothing stored", nil, nil, nil, now, "", 0},
		{"default of a policy without groups", []throttle.Decision{with(over(k+"_default", end), "[]")}, nil, nil, now, "default", end},
		{"default without any conditions", []throttle.Decision{over(k+"_default", end)}, nil, nil, now, "default", end},
		{"default, request matches none of its groups", []throttle.Decision{with(over(k+"_default", end), group("a"))}, nil, nil, now, "default", end},
		{"default, request matches a group", []throttle.Decision{with(over(k+"_default", end), group("a"))}, nil, []string{"a"}, now, "", 0},
		{"group", []throttle.Decision{with(over(k+"_condition_1", end), group("a"))}, nil, []string{"a"}, now, "condition_1", end},
		{"group, request is none of it", []throttle.Decision{with(over(k+"_condition_1", end), group("a"))}, nil, nil, now, "", 0},
		{"group beside default", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), with(over(k+"_default", end+1), group("a"))}, nil, []string{"a"}, now, "condition_1", end},
		{"default beside group", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), with(over(k+"_default", end+1), group("a"))}, nil, nil, now, "default", end + 1},
		{"of two groups the later end", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), with(over(k+"_condition_2", end+9), group("b")), with(over(k+"_condition_3", end+5), group("a"))}, nil, []string{"a", "b"}, now, "condition_2", end + 9},
		{"expired group, default still holds", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), with(over(k+"_default", end+60_000), `[{"header":{"values":{"b":"."}}}]`)}, nil, []string{"a"}, end + 1, "default", end + 60_000},
		{"conditions of the same name are replaced", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), with(over(k+"_condition_1", end), group("b"))}, nil, []string{"b"}, now, "condition_1", end},
		{"conditions of an older window are not", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), with(over(k+"_condition_1", end-1), group("b"))}, nil, []string{"b"}, now, "", 0},
		{"released group", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), released(k+"_condition_1", end)}, nil, []string{"a"}, now, "", 0},
		{"released group leaves the other", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), with(over(k+"_condition_2", end), group("a")), released(k+"_condition_1", end)}, nil, []string{"a"}, now, "condition_2", end},
		{"late release of a group", []throttle.Decision{with(over(k+"_condition_1", end), group("a")), released(k+"_condition_1", end-1)}, nil, []string{"a"}, now, "condition_1", end},
		{"conditions that cannot be read throttle nobody", []throttle.Decision{with(over(k+"_default", end), `{"x":`), with(over(k+"_condition_1", end), `7`)}, policy, []string{"a"}, now, "", 0},
		{"an invalid pattern throttles nobody", []throttle.Decision{with(over(k+"_condition_1", end), `[{"header":{"values":{"a":"("}}}]`)}, nil, []string{"a"}, now, "", 0},

		{"no conditions: the policy's group", []throttle.Decision{over(k+"_condition_4", end)}, policy, []string{"four"}, now, "condition_4", end},
		{"no conditions: not another group of the policy", []throttle.Decision{over(k+"_condition_4", end)}, policy, []string{"forty"}, now, "", 0},
		{"no conditions: none of the policy's groups", []throttle.Decision{over(k+"_condition_4", end)}, policy, nil, now, "", 0},
		{"no conditions and no policy", []throttle.Decision{over(k+"_condition_4", end)}, nil, []string{"four"}, now, "", 0},
		{"default without conditions, request in a group of the policy", []throttle.Decision{over(k+"_default", end)}, policy, []string{"forty"}, now, "", 0},
		{"default without conditions, request in none", []throttle.Decision{over(k+"_default", end)}, policy, nil, now, "default", end},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := New(Options{})
			for _, dec := range tt.apply {
				d.Apply(dec, now)
			}
			a := attributes{}
			for _, h := range tt.headers {
				a[h] = "v"
			}
			h, ok := d.LookupResource([]byte(k), &throttle.Request{Attributes: a, ClientIP: netip.MustParseAddr("10.0.0.1")}, tt.policy, condition.Switches{}, tt.at)
			if ok != (tt.want != "") || h.Condition != tt.want || h.ExpiresAt != tt.until || ok && h.Key != k+"_"+tt.want {
				t.Errorf("%+v, %v, want %q until %d", h, ok, tt.want, tt.until)
			}
		})
	}
}

func TestInertDecisionsAreShown(t *testing.T) {
	d := New(Options{})
	d.Apply(with(over("/a/1:1_condition_1", end), `[{"header":{"values":{"a":"(?=x)"}}}]`), now)
	d.Apply(with(over("/a/1:1_condition_2", end), `{`), now)
	for _, dec := range d.All() {
		if dec.Inert == "" {
			t.Errorf("%+v", dec)
		}
	}
	if d.Len() != 2 {
		t.Errorf("%d held", d.Len())
	}
}

func TestConditionsOfOnePolicyAreCompiledOnce(t *testing.T) {
	d := New(Options{})
	const conditions = `[{"header":{"values":{"x-client":"^mobile-.*"}}}]`
	for i := range 100 {
		d.Apply(with(over(fmt.Sprintf("/a/1:1_user-%d_condition_1", i), end), conditions), now)
	}
	var first *entry
	d.resource.Range(func(_ string, v *variants) bool {
		if first == nil {
			first = v.list[0]
		}
		if &v.list[0].groups[0] != &first.groups[0] || &v.list[0].Conditions[0] != &first.Conditions[0] {
			t.Fatal("compiled again")
		}
		return true
	})
	for i := range maxCompiled + 10 {
		d.Apply(with(over("/b/1:1_default", end+int64(i)), fmt.Sprintf(`[{"ipspecific":{"specificIp":%d}}]`, i)), now)
	}
	if n := d.compiled.Size(); n > maxCompiled {
		t.Errorf("%d texts kept", n)
	}
	h, ok := d.LookupResource([]byte("/a/1:1_user-7"), &throttle.Request{Attributes: attributes{"x-client": "mobile-1"}}, nil, condition.Switches{}, now)
	if !ok || h.Condition != "condition_1" {
		t.Errorf("%+v, %v: a decision lost its conditions", h, ok)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	d := New(Options{MaxKeys: 10})
	for i := range 8 {
		d.Apply(over(fmt.Sprint("old:", i), now+10), now)
	}
	d.Apply(over("/a/1:1_default", end), now)
	d.Apply(over("/a/1:1_condition_1", end), now)
	if d.Apply(over("new:1", end), now) {
		t.Error("an eleventh key was taken")
	}
	if !d.Apply(over("old:1", end), now) {
		t.Error("a key that is held was not renewed at the bound")
	}
	if d.Apply(over("/a/1:1_condition_2", end), now) || d.Len() != 10 || d.Stats().Full != 2 {
		t.Errorf("%d held, %+v", d.Len(), d.Stats())
	}
	// When others have expired there is room again.
	if !d.Apply(over("new:1", end), now+2000) || d.Len() != 4 {
		t.Errorf("%d held after the sweep", d.Len())
	}
}

func TestSweepAndAll(t *testing.T) {
	d := New(Options{})
	for i := range 10 {
		d.Apply(over(fmt.Sprintf("p:%d", i), now+int64(i)), now)
		d.Apply(over(fmt.Sprintf("/a/1:1_condition_%d", i), now+int64(i)), now)
	}
	if n := d.Sweep(now + 5); n != 10 || d.Len() != 10 || len(d.All()) != 10 {
		t.Errorf("%d swept, %d held", n, d.Len())
	}
	list := d.All()
	if !sort.SliceIsSorted(list, func(i, j int) bool { return list[i].Key < list[j].Key }) {
		t.Error("All is not ordered")
	}
	if n := d.Sweep(now + 100); n != 10 || d.Len() != 0 || len(d.All()) != 0 {
		t.Errorf("%d swept, %d held", n, d.Len())
	}
}

func TestStats(t *testing.T) {
	d := New(Options{})
	for _, dec := range []throttle.Decision{over("a:b", end), over("a:b", end-1), released("a:b", end-1), over("c:d", now-1), over("c:d", 0), over("c:d", now+maxAhead+1), released("a:b", end)} {
		d.Apply(dec, now)
	}
	want := Stats{Stored: 1, Released: 1, Late: 2, Expired: 1, NoExpiry: 1, TooLong: 1}
	if diff := cmp.Diff(want, d.Stats()); diff != "" {
		t.Error(diff)
	}
}

// TestAgainstModel drives decisions and the clock against a plain map.
func TestAgainstModel(t *testing.T) {
	keys := []string{"1:a", "2:b", "/r/1:1_default", "/r/1:1_condition_1", "/r/1:1_condition_2", "/r/1/1/x:GET_default"}
	rapid.Check(t, func(t *rapid.T) {
		d := New(Options{})
		clock := now
		model := map[string]int64{}
		held := func(k string) (int64, bool) {
			e, ok := model[k]
			return e, ok && e >= clock
		}
		t.Repeat(map[string]func(*rapid.T){
			"over": func(t *rapid.T) {
				k, e := rapid.SampledFrom(keys).Draw(t, "key"), clock+rapid.Int64Range(-5, 50).Draw(t, "until")
				have, ok := held(k)
				want := e >= clock && (!ok || e > have)
				if want {
					model[k] = e
				}
				dec := over(k, e)
				if strings.Contains(k, "condition") {
					dec = with(dec, `[{"iprange":{"startingIp":0,"endingIp":4294967295}}]`)
				}
				if got := d.Apply(dec, clock); got != want {
					t.Fatalf("over %s until %d at %d: changed %v, want %v", k, e, clock, got, want)
				}
			},
			"released": func(t *rapid.T) {
				k, e := rapid.SampledFrom(keys).Draw(t, "key"), clock+rapid.Int64Range(-5, 50).Draw(t, "until")
				if have, ok := model[k]; ok && e >= have {
					delete(model, k)
				}
				d.Apply(released(k, e), clock)
			},
			"time": func(t *rapid.T) { clock += rapid.Int64Range(0, 20).Draw(t, "ms") },
			"sweep": func(t *rapid.T) {
				d.Sweep(clock)
				for k, e := range model {
					if e < clock {
						delete(model, k)
					}
				}
				if d.Len() != len(model) {
					t.Fatalf("%d held, want %d", d.Len(), len(model))
				}
			},
			"": func(t *rapid.T) {
				for _, k := range keys[:2] {
					h, ok := d.Lookup([]byte(k), clock)
					if e, want := held(k); ok != want || ok && h.ExpiresAt != e {
						t.Fatalf("%s: %+v %v, want %d %v", k, h, ok, e, want)
					}
					if !ok {
						delete(model, k) // removed on read
					}
				}
				r := &throttle.Request{ClientIP: netip.MustParseAddr("10.0.0.1")}
				for _, res := range []string{"/r/1:1", "/r/1/1/x:GET"} {
					var best int64
					for _, n := range []string{"_condition_1", "_condition_2"} {
						if e, ok := held(res + n); ok {
							best = max(best, e)
						}
					}
					if e, ok := held(res + "_default"); ok && best == 0 {
						best = e
					}
					h, ok := d.LookupResource([]byte(res), r, nil, condition.Switches{}, clock)
					if ok != (best != 0) || h.ExpiresAt != best {
						t.Fatalf("%s: %+v %v, want %d", res, h, ok, best)
					}
				}
			},
		})
	})
}

func TestConcurrentUse(t *testing.T) {
	d := New(Options{MaxKeys: 500})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 3000 {
				k := fmt.Sprintf("/r/%d:1_condition_%d", rand.IntN(50), rand.IntN(4))
				if rand.IntN(2) == 0 {
					k = fmt.Sprint(rand.IntN(300), ":x")
				}
				switch rand.IntN(4) {
				case 0:
					d.Apply(released(k, end), now)
				case 1:
					d.Lookup([]byte(k), now+rand.Int64N(100))
					d.LookupResource([]byte("/r/7:1"), &throttle.Request{}, nil, condition.Switches{}, now)
				default:
					d.Apply(over(k, now+rand.Int64N(100)), now)
				}
			}
			d.Sweep(now + 50)
		})
	}
	wg.Wait()
	if n := len(d.All()); n != d.Len() || n > 510 {
		t.Errorf("%d listed, %d counted", n, d.Len())
	}
	d.Sweep(end + 1000)
	if d.Len() != 0 || len(d.All()) != 0 {
		t.Errorf("%d counted, %d listed after all expired", d.Len(), len(d.All()))
	}
}

func filled(b *testing.B, n int) *Decisions {
	d := New(Options{MaxKeys: 2 * n})
	for i := range n {
		d.Apply(over(fmt.Sprintf("%d:user-%d@carbon.super", i, i), end), now)
	}
	b.ReportAllocs()
	b.ResetTimer()
	return d
}

func BenchmarkLookupMiss100k(b *testing.B) {
	d := filled(b, 100_000)
	k := []byte("12:/weather/2.1.0:2.1.0")
	for b.Loop() {
		if _, ok := d.Lookup(k, now); ok {
			b.Fatal("hit")
		}
	}
}

func BenchmarkLookupHit100k(b *testing.B) {
	d := filled(b, 100_000)
	k := []byte("777:user-777@carbon.super")
	for b.Loop() {
		if _, ok := d.Lookup(k, now); !ok {
			b.Fatal("miss")
		}
	}
}

func BenchmarkApplyWithConditions(b *testing.B) {
	d := filled(b, 1000)
	c := []byte(`[{"ipspecific":{"specificIp":3232235786,"invert":false},"header":{"values":{"x-client":"^mobile-.*"},"invert":false}}]`)
	i := int64(0)
	for b.Loop() {
		i++
		d.Apply(throttle.Decision{Key: "/a/1:1_condition_1", Throttled: true, ExpiresAt: end + i, Conditions: c}, now)
	}
}

func BenchmarkApply(b *testing.B) {
	d := filled(b, 100_000)
	i := int64(0)
	for b.Loop() {
		i++
		d.Apply(over("777:user-777@carbon.super", end+i), now)
	}
}
