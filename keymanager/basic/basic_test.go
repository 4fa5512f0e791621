package basic

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"gatehouse/keymanager"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func bcryptOf(password string) string {
	b, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func argonOf(password string) string {
	salt := []byte("0123456789abcdef")
	enc := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=19$m=64,t=1,p=2$%s$%s", enc(salt), enc(argon2.IDKey([]byte(password), salt, 1, 64, 2, 32)))
}

func sha1Of(p string) string   { s := sha1.Sum([]byte(p)); return hex.EncodeToString(s[:]) }
func sha256Of(p string) string { s := sha256.Sum256([]byte(p)); return hex.EncodeToString(s[:]) }
func sha384Of(p string) string { s := sha512.Sum384([]byte(p)); return hex.EncodeToString(s[:]) }
func sha512Of(p string) string { s := sha512.Sum512([]byte(p)); return hex.EncodeToString(s[:]) }

const password = "sesame: open ü"

// forms are a hash of password in every form.
func forms() map[string]string {
	return map[string]string{
		"SHA-1":                         sha1Of(password),
		"SHA-1 in capitals":             strings.ToUpper(sha1Of(password)),
		"SHA-1 in braces":               "{" + sha1Of(password) + "}",
		"SHA-256":                       "@sha256:{" + sha256Of(password) + "}",
		"SHA-256 without braces":        "@sha256:" + sha256Of(password),
		"SHA-384":                       "@sha384:{" + sha384Of(password) + "}",
		"SHA-512":                       "@sha512:{" + sha512Of(password) + "}",
		"bcrypt 2a":                     bcryptOf(password),
		"bcrypt 2y, as htpasswd has it": strings.Replace(bcryptOf(password), "$2a$", "$2y$", 1),
		"bcrypt 2b":                     strings.Replace(bcryptOf(password), "$2a$", "$2b$", 1),
		"argon2id":                      argonOf(password),
	}
}

// TestKnownVectors are hashes that other programs made, of the password "admin" and "password".
func TestKnownVectors(t *testing.T) {
	for hash, p := range map[string]string{
		"d033e22ae348aeb5660fc2140aec35850c4da997":                                   "admin",
		"@sha256:{8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918}": "admin",
		// the reference implementation of argon2: -id -t 2 -k 65536 -p 1, salt "somesalt"
		"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc": "password",
	} {
		h, err := ParseHash(hash)
		if err != nil || !h.verify(p) || h.verify(p+"x") {
			t.Errorf("%s: %v", hash, err)
		}
	}
}

func TestAuthenticate(t *testing.T) {
	for name, hash := range forms() {
		t.Run(name, func(t *testing.T) {
			u := New(Options{})
			if err := u.Replace([]User{{Name: "alice", Hash: hash, Scopes: []string{"a", "b"}, Origin: keymanager.Origin{Kind: "config"}}}); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				tok, err := u.AuthenticateUser(context.Background(), "alice", password)
				if err != nil {
					t.Fatal(err)
				}
				if tok.Kind != keymanager.KindBasic || tok.User != "alice" || !tok.Unsubscribed || len(tok.Scopes) != 2 || tok.Origin.Kind != "config" {
					t.Errorf("token %+v", tok)
				}
				for what, c := range map[string][2]string{
					"wrong password": {"alice", password + "x"}, "no password": {"alice", ""}, "unknown": {"bob", password}, "no name": {"", password},
					"another case": {"Alice", password}, "the hash": {"alice", hash}, "too long": {"alice", strings.Repeat("x", 2000)},
				} {
					tok, err := u.AuthenticateUser(context.Background(), c[0], c[1])
					var r *keymanager.Refusal
					if tok != nil || !errors.As(err, &r) || r.Check != keymanager.CheckUser || r.Temporary || r.Forbidden {
						t.Fatalf("%s: %+v, %v", what, tok, err)
					}
					if r.Detail != refusal().Detail {
						t.Errorf("%s: the detail %q tells which it was", what, r.Detail)
					}
				}
			}
		})
	}
}

func TestWrongForms(t *testing.T) {
	bc := bcryptOf("x")
	for name, tt := range map[string]struct{ hash, says string }{
		"nothing":                {"", "write bcrypt"},
		"a password":             {"secret", "not a password hash"},
		"MD5":                    {strings.Repeat("a", 32), "40 hex digits"},
		"SHA-1 of 41 digits":     {sha1Of("x") + "a", "not a password hash"},
		"SHA-1 that is not hex":  {strings.Repeat("x", 40), "write 40 hex digits"},
		"SHA-256 too short":      {"@sha256:{abcd}", "write 64"},
		"SHA-256 that is SHA-1":  {"@sha256:" + sha1Of("x"), "write 64"},
		"SHA-512 not hex":        {"@sha512:{" + strings.Repeat("z", 128) + "}", "write 128 hex digits"},
		"unknown digest":         {"@sha3:{abcd}", "@sha256:{hex}"},
		"one brace":              {"@sha256:{" + sha256Of("x"), "not hex"},
		"bcrypt cut":             {bc[:59], "60 characters"},
		"bcrypt longer":          {bc + "x", "60 characters"},
		"bcrypt of another base": {bc[:58] + "=*", "characters that none has"},
		"bcrypt that is slow":    {"$2b$31$" + bc[7:], "at most 16"},
		"argon2i":                {"$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "argon2id"},
		"argon2id old version":   {"$argon2id$v=16$m=64,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "version 19"},
		"argon2id without p":     {"$argon2id$v=19$m=64,t=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "lacks one"},
		"argon2id no passes":     {"$argon2id$v=19$m=64,t=0,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "t of 1 to"},
		"argon2id all memory":    {"$argon2id$v=19$m=4294967295,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "m of 8 to"},
		"argon2id no number":     {"$argon2id$v=19$m=x,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "not numbers"},
		"argon2id padded":        {"$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ=$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "without padding"},
		"argon2id short":         {"$argon2id$v=19$m=64,t=1,p=1$c29t$CTFh", "odd size"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseHash(tt.hash)
			if err == nil || !strings.Contains(err.Error(), tt.says) || len(tt.hash) > 8 && strings.Contains(err.Error(), tt.hash) {
				t.Errorf("error %v, wanted one that says %q", err, tt.says)
			}
		})
	}
}

func TestReplace(t *testing.T) {
	u := New(Options{})
	try := func(name, pass string) bool {
		_, err := u.AuthenticateUser(context.Background(), name, pass)
		return err == nil
	}
	if try("alice", "one") {
		t.Fatal("a user where there is none")
	}
	one, two := bcryptOf("one"), bcryptOf("two")
	must := func(list ...User) {
		t.Helper()
		if err := u.Replace(list); err != nil {
			t.Fatal(err)
		}
	}
	must(User{Name: "alice", Hash: one}, User{Name: "bob", Hash: two})
	if !try("alice", "one") || !try("bob", "two") || u.verified.len() != 2 {
		t.Fatal("not accepted and kept")
	}
	must(User{Name: "alice", Hash: two}, User{Name: "bob", Hash: two, Scopes: []string{"new"}})
	if try("alice", "one") || u.verified.len() != 1 {
		t.Error("the old password is still good")
	}
	if tok, err := u.AuthenticateUser(context.Background(), "bob", "two"); err != nil || len(tok.Scopes) != 1 {
		t.Errorf("new scopes are not seen: %+v %v", tok, err)
	}
	for what, list := range map[string][]User{"twice": {{Name: "x", Hash: one}, {Name: "x", Hash: one}}, "wrong form": {{Name: "x", Hash: "y"}}} {
		if err := u.Replace(list); err == nil || !strings.Contains(err.Error(), `"x"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !try("alice", "two") {
		t.Error("a list with a fault took the users away")
	}
	must()
	if try("alice", "two") || u.Len() != 0 || u.verified.len() != 0 {
		t.Error("users that are gone are let in")
	}
}

// counting is a slow hash that says how often and how concurrently it is computed.
type counting struct {
	digest
	work       time.Duration
	runs, most *atomic.Int64
	now        *atomic.Int64
}

func (counting) slow() bool    { return true }
func (c counting) decoy() Hash { d := c; d.digest = c.digest.decoy().(digest); return d }
func (c counting) verify(p string) bool {
	c.runs.Add(1)
	n := c.now.Add(1)
	for m := c.most.Load(); n > m && !c.most.CompareAndSwap(m, n); m = c.most.Load() {
	}
	time.Sleep(c.work)
	defer c.now.Add(-1)
	return c.digest.verify(p)
}

// withCounting makes alice's hash a counting one.
func withCounting(t *testing.T, o Options, work time.Duration) (*Users, counting) {
	u := New(o)
	h, err := ParseHash(sha256Digest(password))
	if err != nil {
		t.Fatal(err)
	}
	c := counting{h.(digest), work, new(atomic.Int64), new(atomic.Int64), new(atomic.Int64)}
	who := User{Name: "alice", Hash: sha256Digest(password)}
	u.set.Store(&userSet{at: map[string]*user{"alice": {User: who, hash: c, token: tokenOf(who)}}, nobodies: nobodiesLike([]Hash{c})})
	return u, c
}

func sha256Digest(p string) string { return "@sha256:" + sha256Of(p) }

func TestSlowHashIsComputedOnce(t *testing.T) {
	u, c := withCounting(t, Options{SlowHashes: 2}, time.Millisecond)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			for range 5 {
				if _, err := u.AuthenticateUser(context.Background(), "alice", password); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := c.runs.Load(); n > 2 {
		t.Errorf("computed %d times", n)
	}
	if n := c.most.Load(); n > 2 {
		t.Errorf("%d at a time", n)
	}
}

func TestMissCostsAHash(t *testing.T) {
	u, c := withCounting(t, Options{SlowHashes: 1}, 0)
	for i := range 5 {
		_, _ = u.AuthenticateUser(context.Background(), fmt.Sprint("nobody", i), password)
	}
	if n := c.runs.Load(); n != 5 {
		t.Errorf("%d hashes for 5 users that are not known", n)
	}
	_, _ = u.AuthenticateUser(context.Background(), "alice", "wrong")
	_, _ = u.AuthenticateUser(context.Background(), "alice", "wrong")
	if n := c.runs.Load(); n != 7 {
		t.Errorf("%d hashes, want one more for each wrong password", n)
	}
}

func TestFloodIsBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	u, c := withCounting(t, Options{SlowHashes: 1, Registerer: reg}, 10*time.Millisecond)
	if _, err := u.AuthenticateUser(context.Background(), "alice", password); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var busy, wrong atomic.Int64
	for i := range 200 {
		wg.Go(func() {
			_, err := u.AuthenticateUser(ctx, fmt.Sprint("guess", i), "guess")
			var r *keymanager.Refusal
			switch {
			case !errors.As(err, &r):
				t.Errorf("error %v", err)
			case r.Temporary:
				busy.Add(1)
			default:
				wrong.Add(1)
			}
		})
	}
	// Who was verified before is let in at once.
	started := time.Now()
	if _, err := u.AuthenticateUser(context.Background(), "alice", password); err != nil || time.Since(started) > 2*time.Second {
		t.Errorf("a known pair: %v after %s", err, time.Since(started))
	}
	for busy.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if c.most.Load() > 1 || busy.Load() < 200-maxWaiting-20 || busy.Load()+wrong.Load() != 200 {
		t.Errorf("%d at a time, %d turned away, %d checked", c.most.Load(), busy.Load(), wrong.Load())
	}
	got := testutil.ToFloat64(u.failures.WithLabelValues(reasonBusy))
	if got != float64(busy.Load()) {
		t.Errorf("%v counted as turned away", got)
	}
}

func TestFailuresAreCounted(t *testing.T) {
	reg := prometheus.NewRegistry()
	u := New(Options{Registerer: reg})
	if err := u.Replace([]User{{Name: "alice", Hash: sha1Of(password)}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{"alice", "x"}, {"alice", ""}, {"bob", "x"}, {"alice", password}} {
		_, _ = u.AuthenticateUser(context.Background(), c[0], c[1])
	}
	want := `
# HELP gatehouse_basic_auth_failures_total Basic credentials that were refused, by reason.
# TYPE gatehouse_basic_auth_failures_total counter
gatehouse_basic_auth_failures_total{reason="too_many"} 0
gatehouse_basic_auth_failures_total{reason="unknown_user"} 1
gatehouse_basic_auth_failures_total{reason="wrong_password"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	u := New(Options{CacheCapacity: 3})
	var list []User
	h := bcryptOf("x")
	for i := range 6 {
		list = append(list, User{Name: fmt.Sprint("u", i), Hash: h})
	}
	if err := u.Replace(list); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		if _, err := u.AuthenticateUser(context.Background(), fmt.Sprint("u", i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if n := u.verified.len(); n != 3 {
		t.Errorf("%d pairs are kept", n)
	}
}

// TestPairIsOfUserAndPassword: no other user with another password has the same pair.
func TestPairIsOfUserAndPassword(t *testing.T) {
	u := New(Options{})
	seen := map[[32]byte]string{}
	for _, c := range [][2]string{{"a", "b:c"}, {"a:b", "c"}, {"a:", "b:c"}, {"", "a:b:c"}, {"a", "b"}} {
		p := u.pair(c[0], c[1])
		if other, twice := seen[p]; twice {
			t.Errorf("%q and %s have one pair", c, other)
		}
		seen[p] = fmt.Sprint(c)
	}
	if New(Options{}).pair("a", "b") == u.pair("a", "b") {
		t.Error("two processes have one secret")
	}
}

// FuzzParseHash: whatever is accepted can be verified against and has a decoy that the password is not.
func FuzzParseHash(f *testing.F) {
	for _, h := range forms() {
		f.Add(h)
	}
	f.Add("$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := ParseHash(text)
		if err != nil {
			if h != nil || err.Error() == "" {
				t.Fatalf("%v beside %v", h, err)
			}
			return
		}
		if a, ok := h.(argon2Hash); ok && float64(a.memory)*float64(a.time) > 1e4 {
			return // right, and slow
		}
		if b, ok := h.(bcryptHash); ok && b.work > 5 {
			return
		}
		if h.verify("no such password") || h.decoy().verify(password) {
			t.Fatal("a password that nobody has is right")
		}
	})
}

func BenchmarkKnownPair(b *testing.B) {
	for _, form := range []string{"SHA-256", "bcrypt 2a"} {
		b.Run(form, func(b *testing.B) {
			u := New(Options{})
			if err := u.Replace([]User{{Name: "alice", Hash: forms()[form]}}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := u.AuthenticateUser(context.Background(), "alice", password); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
