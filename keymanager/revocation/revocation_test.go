package revocation

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"gatehouse/keymanager"
)

const t0 = 1764000000000

func newSet(o Options) (*Set, *int64) {
	now := int64(t0)
	o.Now = func() time.Time { return time.UnixMilli(now) }
	return New(o), &now
}

const (
	jti  = "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01"
	sig  = "c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
	raw  = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0." + sig
	hour = int64(3600 * 1000)
)

func TestRevokedByEachName(t *testing.T) {
	token := &keymanager.Token{ID: jti, Subject: "alice", User: "alice@carbon.super", ConsumerKey: "ck", IssuedAt: t0/1000 - 100}
	noIAT := &keymanager.Token{ID: jti, Subject: "alice", ConsumerKey: "ck"}
	noJTI := &keymanager.Token{ID: sig, Subject: "alice", ConsumerKey: "ck"}
	before := int64(t0 - 100000)
	tests := []struct {
		name  string
		put   keymanager.Revocation
		token *keymanager.Token
		raw   string
		want  bool
	}{
		{"jti", keymanager.Revocation{Value: jti, ExpiresAt: t0 + hour}, token, raw, true},
		{"another jti", keymanager.Revocation{Value: strings.Replace(jti, "0d", "0e", 1), ExpiresAt: t0 + hour}, token, raw, false},
		{"jti in capitals is another text", keymanager.Revocation{Value: strings.ToUpper(jti), ExpiresAt: t0 + hour}, token, raw, false},
		{"jti that is no UUID", keymanager.Revocation{Value: "any text", ExpiresAt: t0 + hour}, &keymanager.Token{ID: "any text"}, raw, true},
		{"signature", keymanager.Revocation{Value: sig, ExpiresAt: t0 + hour}, noJTI, raw, true},
		{"signature of a token with a jti", keymanager.Revocation{Value: sig, ExpiresAt: t0 + hour}, token, raw, true},
		{"whole token, of 3.1", keymanager.Revocation{Value: raw, ExpiresAt: t0 + hour}, token, raw, true},
		{"whole token, other bytes with its signature", keymanager.Revocation{Value: "x.y." + sig, ExpiresAt: t0 + hour}, token, raw, true},
		{"whole token, of which another signature is as good", keymanager.Revocation{Value: "eyJhbGciOiJFUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"jti":"`+jti+`"}`)) + ".AAAA", ExpiresAt: t0 + hour}, token, raw, true},
		{"whole token of another jti", keymanager.Revocation{Value: "eyJhbGciOiJFUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(`{"jti":"other"}`)) + ".AAAA", ExpiresAt: t0 + hour}, token, raw, false},
		{"opaque", keymanager.Revocation{Value: "opaque-token", ExpiresAt: t0 + hour}, nil, "opaque-token", true},
		{"opaque without an expiry", keymanager.Revocation{Value: "opaque-token"}, nil, "opaque-token", true},
		{"another opaque", keymanager.Revocation{Value: "opaque-token"}, nil, "opaque-toke", false},
		{"expired entry", keymanager.Revocation{Value: jti, ExpiresAt: t0 - hour}, token, raw, false},
		{"consumer key, token issued before", keymanager.Revocation{Kind: keymanager.RevokedConsumerKey, Value: "ck", Before: before + 1}, token, raw, true},
		{"consumer key, token issued at the time", keymanager.Revocation{Kind: keymanager.RevokedConsumerKey, Value: "ck", Before: before}, token, raw, false},
		{"consumer key, token without iat", keymanager.Revocation{Kind: keymanager.RevokedConsumerKey, Value: "ck", Before: 1}, noIAT, raw, true},
		{"another consumer key", keymanager.Revocation{Kind: keymanager.RevokedConsumerKey, Value: "alice", Before: before + 1}, token, raw, false},
		{"subject", keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice", Before: before + 1}, token, raw, true},
		{"user", keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice@carbon.super", Before: before + 1}, token, raw, true},
		{
			"subject with the domain of the super tenant",
			keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "bob@carbon.super", Before: before + 1},
			&keymanager.Token{Subject: "bob", User: "bob", IssuedAt: token.IssuedAt}, "", true,
		},
		{
			"subject of another tenant",
			keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "bob@example.org", Before: before + 1},
			&keymanager.Token{Subject: "bob", User: "bob", IssuedAt: token.IssuedAt}, "", false,
		},
		{"subject, later token", keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice", Before: before}, token, raw, false},
		{"another subject", keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "ck", Before: before + 1}, token, raw, false},
		{"nothing named", keymanager.Revocation{}, &keymanager.Token{}, "", false},
		{"empty subject", keymanager.Revocation{Kind: keymanager.RevokedSubject, Before: t0}, &keymanager.Token{}, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newSet(Options{})
			tt.put.Origin = keymanager.Origin{Kind: "event", At: t0, ID: "e1"}
			s.Put(tt.put)
			by, got := s.Revoked(tt.token, tt.raw)
			if got != tt.want {
				t.Fatalf("revoked: %t", got)
			}
			if got && (by.Kind != tt.put.Kind || by.Origin != tt.put.Origin) {
				t.Errorf("by %+v", by)
			}
		})
	}
}

func TestUserOfATenant(t *testing.T) {
	s, _ := newSet(Options{})
	s.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice@example.org", Before: t0})
	token := &keymanager.Token{Subject: "alice", User: "alice", IssuedAt: t0/1000 - 100}
	k := KeysOf(token, raw)
	for tenant, want := range map[string]bool{"example.org": true, "example.com": false, "carbon.super": false, "": false} {
		if _, got := s.RevokedKeys(&k, token, tenant, t0); got != want {
			t.Errorf("at an API of tenant %q: revoked %t", tenant, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { s.RevokedKeys(&k, token, "example.com", t0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSamples(t *testing.T) {
	var both struct {
		List []struct {
			Signature string `json:"jwt_signature"`
			Expiry    int64  `json:"expiry_time"`
		} `json:"revokedJWTList"`
		Subjects []struct {
			EntityID       string
			RevocationTime int64
		} `json:"revokedJWTSubjectEntityList"`
		Keys []struct {
			ConsumerKey    string
			RevocationTime int64
		} `json:"revokedJWTConsumerKeyList"`
	}
	b, err := os.ReadFile("testdata/revokedjwt-events.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &both); err != nil {
		t.Fatal(err)
	}
	var list []keymanager.Revocation
	for _, r := range both.List {
		list = append(list, keymanager.Revocation{Value: r.Signature, ExpiresAt: r.Expiry})
	}
	for _, r := range both.Subjects {
		list = append(list, keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: r.EntityID, Before: r.RevocationTime})
	}
	for _, r := range both.Keys {
		list = append(list, keymanager.Revocation{Kind: keymanager.RevokedConsumerKey, Value: r.ConsumerKey, Before: r.RevocationTime})
	}
	s, _ := newSet(Options{})
	if n := s.Merge(list); n != 4 || s.Len() != 4 {
		t.Fatalf("%d added, %d held", n, s.Len())
	}
	if n := s.Merge(list); n != 0 || s.Len() != 4 {
		t.Errorf("the same list again: %d added, %d held", n, s.Len())
	}
	old := t0/1000 - 86400
	for _, tok := range []*keymanager.Token{
		{ID: "0d4c1b52-7f0e-4a7c-93a1-5d2b7e0f1a10"},
		{ID: "9e7a6d43-1b2c-4d3e-8f5a-6b7c8d9e0f21"},
		{Subject: "mallory", IssuedAt: int64(old)},
		{ConsumerKey: "batProdK3y0000000000000003GhI", IssuedAt: int64(old)},
	} {
		if _, ok := s.Revoked(tok, ""); !ok {
			t.Errorf("%+v passes", tok)
		}
	}
	if by, ok := s.Revoked(&keymanager.Token{Subject: "alice", ConsumerKey: "k", IssuedAt: int64(old)}, raw); ok {
		t.Errorf("revoked by %+v", by)
	}
}

func TestEntriesLeaveByExpiryOnly(t *testing.T) {
	s, now := newSet(Options{Grace: 5 * time.Second})
	s.Put(keymanager.Revocation{Value: jti, ExpiresAt: t0 + hour})
	s.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice", Before: t0, ExpiresAt: t0 + hour})
	token := &keymanager.Token{ID: jti}
	user := &keymanager.Token{ID: "x", Subject: "alice"}
	s.Merge(nil)
	// An earlier expiry, or an earlier time, takes nothing back.
	s.Put(keymanager.Revocation{Value: jti, ExpiresAt: t0 + 1})
	s.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice", Before: 5, ExpiresAt: t0 + 1})
	*now = t0 + hour + 4000
	s.Sweep(time.UnixMilli(*now))
	for _, tok := range []*keymanager.Token{token, user} {
		if _, ok := s.Revoked(tok, ""); !ok {
			t.Errorf("%+v passes within the grace", tok)
		}
	}
	*now = t0 + hour + 6000
	for _, tok := range []*keymanager.Token{token, user} {
		if _, ok := s.Revoked(tok, ""); ok {
			t.Errorf("%+v is refused after the grace", tok)
		}
	}
	if n := s.Sweep(time.UnixMilli(*now)); n != 2 || s.Len() != 0 {
		t.Errorf("swept %d, %d left", n, s.Len())
	}
}

func TestFullSetMakesRoomOrCounts(t *testing.T) {
	s, now := newSet(Options{Max: 10, MaxMass: 2})
	for i := range 15 {
		s.Put(keymanager.Revocation{Value: fmt.Sprint("t", i), ExpiresAt: t0 + hour})
		s.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: fmt.Sprint("u", i), Before: t0, ExpiresAt: t0 + hour})
	}
	if s.Len() != 12 || s.Dropped() != 18 {
		t.Errorf("%d held, %d dropped", s.Len(), s.Dropped())
	}
	*now += 2 * hour
	if !s.Put(keymanager.Revocation{Value: "new", ExpiresAt: *now + hour}) || !s.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "new", Before: *now}) {
		t.Error("the expired ones made no room")
	}
	if s.Len() != 2 {
		t.Errorf("%d held", s.Len())
	}
}

func TestAllIsASnapshotThatSurvivesARestart(t *testing.T) {
	s, _ := newSet(Options{})
	origin := keymanager.Origin{Kind: "pull", At: t0, ID: "p1"}
	put := []keymanager.Revocation{
		{Value: jti, ExpiresAt: t0 + hour, Tenant: "carbon.super", Origin: origin},
		{Value: "opaque-token", ExpiresAt: t0 + hour, Origin: origin},
		{Value: raw, ExpiresAt: t0 + hour, Origin: origin},
		{Kind: keymanager.RevokedConsumerKey, Value: "ck", Before: t0, ExpiresAt: t0 + hour, Origin: origin},
		{Kind: keymanager.RevokedSubject, Value: "alice", Before: t0, ExpiresAt: t0 + hour, Origin: origin},
	}
	s.Merge(put)
	snapshot := s.All(0)
	if len(snapshot) != 6 || len(s.All(2)) != 2 {
		t.Fatalf("%d entries, %d of a limit of 2", len(snapshot), len(s.All(2)))
	}
	for _, r := range snapshot {
		if strings.Contains(r.Value, "opaque-token") || strings.Contains(r.Value, sig) {
			t.Errorf("the entry shows the token: %+v", r)
		}
	}
	again, _ := newSet(Options{})
	again.Merge(snapshot)
	byValue := cmpopts.SortSlices(func(a, b keymanager.Revocation) bool { return a.Value < b.Value })
	if d := cmp.Diff(snapshot, again.All(0), byValue); d != "" {
		t.Error(d)
	}
	for i, c := range []struct {
		t   *keymanager.Token
		raw string
	}{{&keymanager.Token{ID: jti}, ""}, {nil, "opaque-token"}, {&keymanager.Token{ID: "x"}, raw}, {&keymanager.Token{ConsumerKey: "ck"}, ""}, {&keymanager.Token{Subject: "alice"}, ""}} {
		if _, ok := again.Revoked(c.t, c.raw); !ok {
			t.Errorf("entry %d was lost", i)
		}
	}
}

func TestSetAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, now := newSet(Options{Grace: time.Second})
		type fact struct{ before, expires int64 }
		model := map[keymanager.RevocationKind]map[string]fact{0: {}, 1: {}, 2: {}}
		value := rapid.SampledFrom([]string{jti, "a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				r := keymanager.Revocation{
					Kind: keymanager.RevocationKind(rapid.IntRange(0, 2).Draw(t, "kind")), Value: value.Draw(t, "value"),
					ExpiresAt: *now + rapid.Int64Range(-5, 20).Draw(t, "expires")*1000,
				}
				if r.Kind != 0 {
					r.Before = *now + rapid.Int64Range(-5, 5).Draw(t, "before")*1000
				}
				s.Put(r)
				if r.ExpiresAt+1000 > *now {
					m := model[r.Kind]
					old, held := m[r.Value]
					if held && old.expires+1000 <= *now && r.Kind == 0 {
						old = fact{}
					}
					m[r.Value] = fact{max(old.before, r.Before), max(old.expires, r.ExpiresAt)}
				}
			},
			"time passes": func(t *rapid.T) { *now += rapid.Int64Range(0, 5).Draw(t, "seconds") * 1000 },
			"sweep": func(t *rapid.T) {
				s.Sweep(time.UnixMilli(*now))
				for _, m := range model {
					for k, f := range m {
						if f.expires+1000 <= *now {
							delete(m, k)
						}
					}
				}
			},
			"": func(t *rapid.T) {
				tok := &keymanager.Token{
					ID: value.Draw(t, "id"), ConsumerKey: value.Draw(t, "key"), Subject: value.Draw(t, "subject"),
					IssuedAt: *now/1000 + rapid.Int64Range(-5, 5).Draw(t, "iat"),
				}
				live := func(kind keymanager.RevocationKind, v string) bool {
					f, ok := model[kind][v]
					return ok && f.expires+1000 > *now && (kind == 0 || tok.IssuedAt*1000 < f.before)
				}
				want := live(0, tok.ID) || live(1, tok.ConsumerKey) || live(2, tok.Subject)
				if _, got := s.Revoked(tok, ""); got != want {
					t.Fatalf("token %+v: revoked %t, want %t", tok, got, want)
				}
			},
		})
	})
}

func TestSourcesAreBounded(t *testing.T) {
	s, _ := newSet(Options{})
	for i := range 20000 {
		s.Put(keymanager.Revocation{Value: "one", ExpiresAt: t0 + hour, Origin: keymanager.Origin{Kind: "event", ID: fmt.Sprint(i)}})
	}
	if len(s.sources) > 8192 {
		t.Errorf("%d sources are held for one entry", len(s.sources))
	}
}

func TestRevokedKeysAllocatesNothing(t *testing.T) {
	s, now := newSet(Options{})
	s.Put(keymanager.Revocation{Value: jti, ExpiresAt: t0 + hour})
	s.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: "alice", Before: t0})
	gone, fine := &keymanager.Token{ID: jti}, &keymanager.Token{ID: "x", Subject: "alice", ConsumerKey: "k", IssuedAt: t0}
	a, b := KeysOf(gone, raw), KeysOf(fine, raw)
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := s.RevokedKeys(&a, gone, "", *now); !ok {
			t.Fatal("passes")
		}
		if _, ok := s.RevokedKeys(&b, fine, "", *now); ok {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func fill(n int) *Set {
	s, _ := newSet(Options{Max: n})
	for i := range n {
		s.Put(keymanager.Revocation{
			Value: fmt.Sprintf("%08x-0000-4000-8000-0e6b0f5f9a01", uint32(i)*2654435761), ExpiresAt: t0 + hour,
			Origin: keymanager.Origin{Kind: "pull", ID: "p1"},
		})
	}
	return s
}

// BenchmarkMemory prints what a million entries hold; the bound is 128 MiB.
func BenchmarkMemory(b *testing.B) {
	n := 1000000
	if testing.Short() {
		n = 10000
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var held uint64
	for b.Loop() {
		before := heap()
		s := fill(n)
		held = heap() - before
		if s.Len() != n {
			b.Fatalf("%d entries", s.Len())
		}
		runtime.KeepAlive(s)
	}
	b.ReportMetric(float64(held)/(1<<20), "MiB/set")
	b.ReportMetric(float64(held)/float64(n), "B/entry")
}

func BenchmarkRevokedKeys(b *testing.B) {
	s := fill(1000000)
	t := &keymanager.Token{ID: "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01", Subject: "alice", ConsumerKey: "ck", IssuedAt: t0}
	k := KeysOf(t, raw)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := s.RevokedKeys(&k, t, "", t0); ok {
			b.Fatal("revoked")
		}
	}
}

func BenchmarkPut(b *testing.B) {
	s, _ := newSet(Options{Max: 1 << 30})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		s.Put(keymanager.Revocation{Value: fmt.Sprint(i), ExpiresAt: t0 + hour})
	}
}

func FuzzPut(f *testing.F) {
	for _, v := range []string{jti, raw, sig, "", ".", "..", "a.b.c", HashPrefix + "00", HashPrefix + strings.Repeat("0", 32), strings.ToUpper(jti)} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		s, _ := newSet(Options{})
		s.Put(keymanager.Revocation{Value: v, ExpiresAt: t0 + hour})
		_, revoked := s.Revoked(&keymanager.Token{ID: v}, v)
		if revoked != (v != "") {
			t.Fatalf("%q: revoked %t", v, revoked)
		}
		again, _ := newSet(Options{})
		again.Merge(s.All(0))
		if _, ok := again.Revoked(&keymanager.Token{ID: v}, v); ok != (v != "") {
			t.Fatalf("%q: lost by the snapshot", v)
		}
	})
}

// Who is revoked by a name, and at the APIs of which tenants.
func TestUsersOfTenants(t *testing.T) {
	for _, tt := range []struct {
		name, tenant string // of the revocation
		user, at     string // of the token and the API
		want         bool
	}{
		{"alice", "", "alice", "a.example", true}, // no tenant: everywhere
		{"alice", "", "alice", "carbon.super", true},
		{"alice", "", "alice@a.example", "a.example", true},
		{"alice", "", "alice@carbon.super", "a.example", true},
		{"alice", "a.example", "alice", "a.example", true},
		{"alice", "a.example", "alice@a.example", "a.example", true},
		{"alice", "a.example", "alice@a.example", "b.example", true}, // a user of a calls an API of b
		{"alice", "a.example", "alice", "b.example", false},
		{"alice", "a.example", "alice", "carbon.super", false},
		{"alice", "a.example", "alice", "", false},
		{"alice", "carbon.super", "alice", "carbon.super", true},
		{"alice", "carbon.super", "alice", "", true},
		{"alice", "carbon.super", "alice", "a.example", false},
		{"alice@carbon.super", "carbon.super", "alice", "carbon.super", true},
		{"alice@a.example", "carbon.super", "alice", "a.example", true}, // the name knows better than the event
		{"alice@a.example", "carbon.super", "alice@a.example", "a.example", true},
		{"alice@mail.test", "a.example", "alice@mail.test", "a.example", true},
		{"alice@mail.test", "a.example", "alice@mail.test@a.example", "a.example", true},
		{"alice@mail.test", "a.example", "alice@mail.test@a.example", "b.example", true},
		{"alice@mail.test", "a.example", "alice", "a.example", false},
		{"alice", "a.example", "bob", "a.example", false},
		{"ALICE", "a.example", "alice", "a.example", false},
	} {
		s, _ := newSet(Options{})
		s.Put(keymanager.Revocation{Kind: keymanager.RevokedSubject, Value: tt.name, Tenant: tt.tenant, Before: t0})
		again, _ := newSet(Options{}) // as after a restart
		again.Merge(s.All(0))
		for _, set := range []*Set{s, again} {
			token := &keymanager.Token{Subject: tt.user, User: "of nobody", IssuedAt: t0/1000 - 100}
			k := KeysOf(token, raw)
			if _, got := set.RevokedKeys(&k, token, tt.at, t0); got != tt.want {
				t.Errorf("%q of %q revoked, token of %q at an API of %q: revoked %t", tt.name, tt.tenant, tt.user, tt.at, got)
			}
		}
	}
}

// A million revoked tokens, or a fifth of them, and what they hold.
func TestMemoryOfManyEntries(t *testing.T) {
	n := 200_000
	if os.Getenv("GATEHOUSE_SOAK") != "" {
		n = 1_000_000
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, _ := newSet(Options{Max: n})
	for i := range n {
		s.Put(keymanager.Revocation{Value: fmt.Sprintf("0d6d6ad2-7a84-4c5c-8a41-%012d", i), ExpiresAt: t0 + 3_600_000, Origin: keymanager.Origin{Kind: "event", ID: fmt.Sprint(i), At: t0}})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d revoked tokens hold %.1f MiB", n, float64(held)/(1<<20))
	if bound := int64(128<<20) * int64(n) / 1_000_000; held > bound {
		t.Errorf("%d bytes, more than %d", held, bound)
	}
	if s.Len() != n || s.Dropped() != 0 {
		t.Errorf("%d kept, %d dropped", s.Len(), s.Dropped())
	}
	runtime.KeepAlive(s)
}
