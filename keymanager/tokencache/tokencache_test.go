package tokencache

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestKeysOfTokens(t *testing.T) {
	c := New[int](10)
	long := strings.Repeat("h.p.", 100)
	tokens := []string{"", "a", "b", "header.payload.signature", "header.payload.signaturf", "headeR.payload.signature", long + "1", long + "2", "x" + long + "1"}
	seen := map[Key]string{}
	for _, tok := range tokens {
		k := c.KeyOf(tok)
		if k != c.KeyOf(strings.Clone(tok)) {
			t.Errorf("%q has two keys", tok)
		}
		for _, k := range []Key{k, k.With(1), k.With(2)} {
			if other, twice := seen[k]; twice {
				t.Errorf("%q and %q share a key", tok, other)
			}
			seen[k] = tok
		}
	}
	if New[int](10).KeyOf("a") == c.KeyOf("a") {
		t.Error("two caches have one secret")
	}
}

func TestCacheAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(0, 20).Draw(t, "capacity")
		c := New[int](capacity)
		model := map[string]*int{} // what was put last; the cache may hold less, never another
		token := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("token", rapid.IntRange(0, 60).Draw(t, "n")) })
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				tok, v := token.Draw(t, "token"), new(int)
				c.Put(c.KeyOf(tok), v)
				model[tok] = v
				if capacity > 0 && c.Get(c.KeyOf(tok)) != v {
					t.Fatal("what was put last is not there")
				}
			},
			"delete": func(t *rapid.T) {
				tok := token.Draw(t, "token")
				c.Delete(c.KeyOf(tok), new(int)) // another value: stays
				if v := model[tok]; v != nil {
					c.Delete(c.KeyOf(tok), v)
				}
				delete(model, tok)
			},
			"delete some": func(t *rapid.T) {
				gone := map[*int]bool{}
				for tok, v := range model {
					if len(tok)%2 == 0 {
						gone[v] = true
						delete(model, tok)
					}
				}
				c.DeleteFunc(func(v *int) bool { return gone[v] })
			},
			"": func(t *rapid.T) {
				if c.Len() > capacity {
					t.Fatalf("%d entries, %d allowed", c.Len(), capacity)
				}
				held := 0
				for i := range 61 {
					tok := fmt.Sprint("token", i)
					if v := c.Get(c.KeyOf(tok)); v != nil {
						held++
						if v != model[tok] {
							t.Fatalf("%s has a value that was replaced or deleted", tok)
						}
					}
				}
				if held != c.Len() {
					t.Fatalf("%d entries found, Len says %d", held, c.Len())
				}
				n := 0
				for i := range c.shards {
					s := &c.shards[i]
					n += len(s.ring)
					for slot, e := range s.ring {
						if e.slot != slot || s.at[e.key] != e {
							t.Fatal("the ring and the map disagree")
						}
					}
				}
				if n != held {
					t.Fatalf("%d entries in the rings", n)
				}
			},
		})
	})
}

func TestWhatIsUsedStays(t *testing.T) {
	c := New[int](100)
	hot := c.KeyOf("hot")
	c.Put(hot, new(int))
	for i := range 5000 {
		c.Get(hot)
		c.Put(c.KeyOf(fmt.Sprint(i)), new(int))
	}
	if c.Get(hot) == nil {
		t.Error("a token that is used all the time was evicted")
	}
	if c.Len() > 100 {
		t.Errorf("%d entries", c.Len())
	}
}

func TestConcurrentUse(t *testing.T) {
	c := New[int](50)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 3000 {
				k := c.KeyOf(fmt.Sprint((i * (g + 1)) % 120))
				if v := c.Get(k); v == nil {
					c.Put(k, new(int))
				} else if i%7 == 0 {
					c.Delete(k, v)
				}
				if i%500 == 0 {
					c.DeleteFunc(func(*int) bool { return i%1000 == 0 })
				}
			}
		})
	}
	wg.Wait()
	if c.Len() > 50 || c.Len() < 0 {
		t.Errorf("%d entries", c.Len())
	}
	hits, misses := c.Counts()
	if hits+misses != 12000 {
		t.Errorf("%d look-ups counted", hits+misses)
	}
}

func BenchmarkKeyOf(b *testing.B) {
	c := New[int](10)
	token := strings.Repeat("x", 800)
	b.ReportAllocs()
	for b.Loop() {
		c.KeyOf(token)
	}
}

func BenchmarkGet(b *testing.B) {
	c := New[int](20000)
	keys := make([]Key, 10000)
	for i := range keys {
		keys[i] = c.KeyOf(fmt.Sprint(i))
		c.Put(keys[i], new(int))
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if c.Get(keys[i%len(keys)]) == nil {
				b.Fatal("missed")
			}
		}
	})
}

func BenchmarkPutWhenFull(b *testing.B) {
	c := New[int](10000)
	v := new(int)
	b.ReportAllocs()
	i := uint64(0)
	for b.Loop() {
		i++
		c.Put(Key{i * 0x9e3779b97f4a7c15, i}, v)
	}
}
