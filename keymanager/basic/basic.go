// Package basic verifies user names and passwords against the users of the configuration (contract gateway-behaviour.md 9).
//
// A user that is not known costs what a wrong password costs. Hashes that are made to be slow are computed by few requests at
// a time, and not again for a pair that was right a moment ago.
package basic

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/keymanager"
)

const (
	// DefaultCacheCapacity is how many verified pairs of user and password are kept.
	DefaultCacheCapacity = 10000
	// maxPassword is the longest password that is looked at, in bytes; bcrypt heeds 72 of them.
	maxPassword = 1024
	// maxWaiting is how many requests may wait for a slow hash, for each that is being computed.
	maxWaiting = 32
)

// User is one user.
type User struct {
	Name string
	// Hash is in one of the forms that ParseHash reads.
	Hash   string
	Scopes []string
	Origin keymanager.Origin
}

// Options configure Users.
type Options struct {
	Registerer prometheus.Registerer // nil: no metrics
	// SlowHashes is how many slow hashes are computed at a time; 0 means half of the processors, at least one.
	SlowHashes int
	// CacheCapacity is how many verified pairs are kept: 0 means DefaultCacheCapacity, a negative number none.
	CacheCapacity int
}

// Users is the set of users. It is safe for concurrent use.
type Users struct {
	set      atomic.Pointer[userSet]
	secret   [32]byte // keys what is kept of passwords
	seed     maphash.Seed
	verified *cache
	slow     chan struct{}
	waiting  atomic.Int64
	failures *prometheus.CounterVec
}

type userSet struct {
	at map[string]*user
	// nobodies stand in for users that are not known, one for each cost that a user's hash has; no password is theirs.
	nobodies []*user
}

// nobody returns who stands in for a name: always the same one, so that a name that is not known takes as long each time, and
// as long as some user takes.
func (s *userSet) nobody(seed maphash.Seed, name string) *user {
	return s.nobodies[maphash.String(seed, name)%uint64(len(s.nobodies))]
}

type user struct {
	User
	hash  Hash
	token *keymanager.Token
}

// New returns a set without users.
func New(o Options) *Users {
	if o.SlowHashes <= 0 {
		o.SlowHashes = max(1, runtime.GOMAXPROCS(0)/2)
	}
	if o.CacheCapacity == 0 {
		o.CacheCapacity = DefaultCacheCapacity
	}
	u := &Users{seed: maphash.MakeSeed(), verified: newCache(o.CacheCapacity), slow: make(chan struct{}, o.SlowHashes)}
	_, _ = rand.Read(u.secret[:]) // it never fails
	u.failures = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_basic_auth_failures_total", Help: "Basic credentials that were refused, by reason.",
	}, []string{"reason"})
	for _, reason := range []string{reasonUser, reasonPassword, reasonBusy} {
		u.failures.WithLabelValues(reason)
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(u.failures)
	}
	u.set.Store(&userSet{nobodies: nobodiesLike(nil)})
	return u
}

const (
	reasonUser     = "unknown_user"
	reasonPassword = "wrong_password"
	reasonBusy     = "too_many"
)

// Replace makes the list the users. What was verified of a user that did not change stays. An error names the user whose hash
// cannot be read, and changes nothing.
func (u *Users) Replace(list []User) error {
	next := &userSet{at: make(map[string]*user, len(list))}
	var hashes []Hash
	was := u.set.Load()
	for _, want := range list {
		if next.at[want.Name] != nil {
			return fmt.Errorf("user %q stands twice", want.Name)
		}
		h, err := ParseHash(want.Hash)
		if err != nil {
			return fmt.Errorf("user %q: %w", want.Name, err)
		}
		next.at[want.Name] = &user{User: want, hash: h, token: tokenOf(want)}
		hashes = append(hashes, h)
	}
	next.nobodies = nobodiesLike(hashes)
	u.set.Store(next)
	u.verified.deleteFunc(func(name string) bool {
		now, before := next.at[name], was.at[name]
		return now == nil || before == nil || now.Hash != before.Hash
	})
	return nil
}

func tokenOf(w User) *keymanager.Token {
	return &keymanager.Token{Kind: keymanager.KindBasic, Subject: w.Name, User: w.Name, Scopes: w.Scopes, Unsubscribed: true, Origin: w.Origin}
}

// nobodiesLike makes one user for each cost among the hashes, at least one.
func nobodiesLike(hashes []Hash) []*user {
	var list []*user
	seen := map[float64]bool{}
	for _, h := range hashes {
		if !seen[h.cost()] {
			seen[h.cost()] = true
			list = append(list, &user{hash: h.decoy()})
		}
	}
	if list == nil {
		list = []*user{{hash: digest{}.decoy()}}
	}
	return list
}

// Len returns the number of users.
func (u *Users) Len() int { return len(u.set.Load().at) }

// AuthenticateUser verifies a user name and password and returns the user's token, which is shared and must not be changed.
// The error is always a *keymanager.Refusal; it does not tell a user that is not known from a password that is wrong. ctx
// bounds the wait for a slow hash.
func (u *Users) AuthenticateUser(ctx context.Context, name, password string) (*keymanager.Token, error) {
	if password == "" || len(password) > maxPassword {
		u.failures.WithLabelValues(reasonPassword).Inc()
		return nil, refusal()
	}
	set := u.set.Load()
	who := set.at[name]
	known := who != nil
	if !known {
		who = set.nobody(u.seed, name)
	}
	var pair [32]byte
	if who.hash.slow() {
		pair = u.pair(name, password)
		if known && u.verified.has(name, pair, who.Hash) {
			return who.token, nil
		}
	}
	again := func() bool { return known && u.verified.has(name, pair, who.Hash) }
	right, err := u.verify(ctx, who.hash, password, again)
	switch {
	case err != nil:
		u.failures.WithLabelValues(reasonBusy).Inc()
		return nil, err
	case right && known:
		if who.hash.slow() {
			u.verified.put(name, pair, who.Hash)
		}
		return who.token, nil
	case known:
		u.failures.WithLabelValues(reasonPassword).Inc()
	default:
		u.failures.WithLabelValues(reasonUser).Inc()
	}
	return nil, refusal()
}

func refusal() *keymanager.Refusal {
	return &keymanager.Refusal{Check: keymanager.CheckUser, Detail: "the user is not known or the password is wrong"}
}

// verify compares a password with a hash. Slow hashes wait for their turn, and are spared where another request has verified
// the pair meanwhile. The error is a refusal that blames nobody.
func (u *Users) verify(ctx context.Context, h Hash, password string, verified func() bool) (bool, error) {
	if !h.slow() {
		return h.verify(password), nil
	}
	busy := &keymanager.Refusal{Check: keymanager.CheckUser, Temporary: true, Detail: "too many passwords are being checked at present"}
	if u.waiting.Add(1) > int64(maxWaiting*cap(u.slow)) {
		u.waiting.Add(-1)
		return false, busy
	}
	select {
	case u.slow <- struct{}{}:
		u.waiting.Add(-1)
		defer func() { <-u.slow }()
		return verified() || h.verify(password), nil
	case <-ctx.Done():
		u.waiting.Add(-1)
		return false, busy
	}
}

// pair is what stands for a user and password in the cache: without the secret of the process it says nothing.
func (u *Users) pair(name, password string) [32]byte {
	var room [256]byte
	b := append(room[:0], u.secret[:]...)
	b = binary.AppendUvarint(b, uint64(len(name)))
	b = append(b, name...)
	return sha256.Sum256(append(b, password...))
}

// cache holds, per user, the pair that was verified last. A user has one password, so one is enough.
type cache struct {
	max int
	mu  sync.RWMutex
	at  map[string]pairOf
}

type pairOf struct {
	sum  [32]byte
	hash string // of the configuration
}

func newCache(capacity int) *cache { return &cache{max: capacity, at: make(map[string]pairOf)} }

func (c *cache) has(name string, sum [32]byte, hash string) bool {
	c.mu.RLock()
	p, ok := c.at[name]
	c.mu.RUnlock()
	return ok && p.hash == hash && subtle.ConstantTimeCompare(p.sum[:], sum[:]) == 1
}

func (c *cache) put(name string, sum [32]byte, hash string) {
	if c.max <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.at[name]; !ok && len(c.at) >= c.max {
		for other := range c.at { // any: only users that are known have an entry
			delete(c.at, other)
			break
		}
	}
	c.at[name] = pairOf{sum, hash}
}

func (c *cache) deleteFunc(gone func(name string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.at {
		if gone(name) {
			delete(c.at, name)
		}
	}
}

func (c *cache) len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.at)
}
