// Package revocation is the set of revoked tokens, and of the clients and users whose older tokens are revoked.
package revocation

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/keymanager"
)

// Defaults of Options.
const (
	DefaultMax     = 1 << 20
	DefaultMaxMass = 100000
	// DefaultKeep is how long an entry without an expiry is kept: longer than any access token should live.
	DefaultKeep = 24 * time.Hour
	// DefaultGrace is added to each expiry: the leeway of the token's own exp check.
	DefaultGrace = 300 * time.Second
)

// Options configure a Set. Zero values mean the defaults.
type Options struct {
	// Max bounds the revoked tokens, MaxMass the clients and users.
	Max, MaxMass int
	// Keep is how long a mass revocation, or a token whose expiry is not known, is remembered.
	Keep time.Duration
	// Grace is how much longer than its expiry an entry stays.
	Grace time.Duration
	Now   func() time.Time
}

const shards = 64

// Set holds revocations. Look-ups allocate nothing and take the lock of a shard for reading. It is safe for concurrent use.
//
// A token is kept as 16 bytes: the UUID that its jti is, or the first half of a SHA-256 of whatever else names it. So an
// opaque token or a signature cannot be read back, and a million entries fit in 128 MiB.
type Set struct {
	opts    Options
	tokens  atomic.Int64
	masses  atomic.Int64
	dropped atomic.Int64
	shards  [shards]shard

	mu      sync.RWMutex
	clients map[string]mass
	users   map[string]mass
	// sources are the origins and tenants that entries refer to by position, so that an entry has no pointers.
	sources  []source
	sourceOf map[source]uint32
}

type source struct {
	kind, id, tenant string
}

type shard struct {
	mu sync.RWMutex
	at map[id]entry
	_  [32]byte
}

// id is a name of a token. The last byte of the array tells a UUID from a hash.
type id [17]byte

type entry struct {
	expires uint32 // seconds since the epoch, grace included
	learnt  uint32 // seconds
	source  uint32
}

type mass struct {
	before, expires, learnt int64 // ms
	source                  uint32
}

// New returns an empty set.
func New(o Options) *Set {
	if o.Max <= 0 {
		o.Max = DefaultMax
	}
	if o.MaxMass <= 0 {
		o.MaxMass = DefaultMaxMass
	}
	if o.Keep <= 0 {
		o.Keep = DefaultKeep
	}
	if o.Grace <= 0 {
		o.Grace = DefaultGrace
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Set{opts: o, clients: map[string]mass{}, users: map[string]mass{}, sourceOf: map[source]uint32{{}: 0}, sources: make([]source, 1)}
	for i := range s.shards {
		s.shards[i].at = make(map[id]entry)
	}
	return s
}

const (
	isHash = 0
	isUUID = 1
	// HashPrefix stands before the hash by which All names an entry that has no readable name. Put understands it.
	HashPrefix = "sha256:"
)

// idOf is the name of a value: a UUID in its usual form is kept as it is, anything else as a hash.
func idOf(v string) (k id) {
	if u, ok := parseUUID(v); ok {
		copy(k[:], u[:])
		k[16] = isUUID
		return k
	}
	if h, ok := strings.CutPrefix(v, HashPrefix); ok && len(h) == 32 {
		if n, err := hex.Decode(k[:16], []byte(h)); err == nil && n == 16 {
			return k
		}
	}
	h := sha256.Sum256([]byte(v))
	copy(k[:16], h[:])
	return k
}

func parseUUID(s string) (u [16]byte, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, false
	}
	n := 0
	for i := range 36 {
		c := s[i]
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			continue
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f': // capitals are another text, and are hashed
			c -= 'a' - 10
		default:
			return u, false
		}
		u[n/2] = u[n/2]<<4 | c
		n++
	}
	return u, true
}

func (k id) String() string {
	h := hex.EncodeToString(k[:16])
	if k[16] == isUUID {
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	}
	return HashPrefix + h
}

func (s *Set) shard(k *id) *shard {
	// The first byte of a UUID of version 1 and of a hash both spread well.
	return &s.shards[(k[0]^k[7])%shards]
}

// names are the forms under which a value is put: a whole JWT also by its signature (events.md 5b), and by the jti of its
// payload, because to an ECDSA signature there is another one that is as good.
func names(v string) (ids [3]id, n int) {
	ids[0], n = idOf(v), 1
	head, sig, ok := cutSignature(v)
	if !ok || head == "" || sig == "" {
		return ids, n
	}
	ids[1], n = idOf(sig), 2
	if jti := jtiOf(head); jti != "" {
		ids[2], n = idOf(jti), 3
	}
	return ids, n
}

// jtiOf reads the jti of a token that is revoked, "" where there is none. The token needs no check: who says that it is
// revoked may as well name the jti alone.
func jtiOf(head string) string {
	_, payload, _ := strings.Cut(head, ".")
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return ""
	}
	var claims struct {
		ID string `json:"jti"`
	}
	if json.Unmarshal(b, &claims) != nil {
		return ""
	}
	return claims.ID
}

func cutSignature(v string) (head, sig string, ok bool) {
	if strings.Count(v, ".") != 2 {
		return "", "", false
	}
	i := strings.LastIndexByte(v, '.')
	return v[:i], v[i+1:], true
}

// Put adds a revocation and reports whether it said anything new. An entry is never shortened: of two expiries, and of two
// times of a mass revocation, the later one counts. One that has already expired, or names nothing, adds nothing. When the
// set is full the entries that have expired go; if that does not help the new one is counted as dropped.
func (s *Set) Put(r keymanager.Revocation) (added bool) {
	now := s.opts.Now()
	if r.Value == "" {
		return false
	}
	if r.Kind != keymanager.RevokedToken {
		return s.putMass(r, now)
	}
	expires := r.ExpiresAt
	if expires <= 0 {
		expires = now.Add(s.opts.Keep).UnixMilli()
	}
	expires += s.opts.Grace.Milliseconds()
	if expires <= now.UnixMilli() {
		return false
	}
	at := r.Origin.At
	if at <= 0 {
		at = now.UnixMilli()
	}
	e := entry{expires: seconds(expires + 999), learnt: seconds(at), source: s.source(r)}
	ids, n := names(r.Value)
	for i := range n {
		added = s.putToken(ids[i], e, now) || added
	}
	return added
}

func seconds(ms int64) uint32 { return uint32(min(max(ms/1000, 0), 1<<32-1)) }

func (s *Set) putToken(k id, e entry, now time.Time) bool {
	sh := s.shard(&k)
	for try := 0; ; try++ {
		sh.mu.Lock()
		old, known := sh.at[k]
		if known || s.tokens.Load() < int64(s.opts.Max) {
			if known && old.expires >= e.expires {
				sh.mu.Unlock()
				return false
			}
			sh.at[k] = e
			sh.mu.Unlock()
			if !known {
				s.tokens.Add(1)
			}
			return !known
		}
		sh.mu.Unlock()
		if try > 0 || s.Sweep(now) == 0 {
			s.dropped.Add(1)
			return false
		}
	}
}

func (s *Set) putMass(r keymanager.Revocation, now time.Time) bool {
	m := mass{before: r.Before, expires: r.ExpiresAt, learnt: r.Origin.At, source: s.source(r)}
	if m.expires <= 0 {
		m.expires = max(now.UnixMilli(), r.Before) + s.opts.Keep.Milliseconds()
	}
	m.expires += s.opts.Grace.Milliseconds()
	if m.expires <= now.UnixMilli() {
		return false
	}
	if m.learnt <= 0 {
		m.learnt = now.UnixMilli()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.clients
	if r.Kind == keymanager.RevokedSubject {
		at, r.Value = s.users, userOf(r.Value, r.Tenant)
	}
	old, known := at[r.Value]
	if !known && len(s.clients)+len(s.users) >= s.opts.MaxMass {
		s.sweepMass(now)
		if len(s.clients)+len(s.users) >= s.opts.MaxMass {
			s.dropped.Add(1)
			return false
		}
	}
	if known {
		if old.before >= m.before && old.expires >= m.expires {
			return false
		}
		added := m.before > old.before
		m.before, m.expires = max(m.before, old.before), max(m.expires, old.expires)
		at[r.Value] = m
		return added
	}
	at[r.Value] = m
	s.masses.Store(int64(len(s.clients) + len(s.users)))
	return true
}

// Merge adds each revocation of a list; what the list lacks stays, because entries leave by expiry only (events.md 5b). It
// returns how many were new.
func (s *Set) Merge(list []keymanager.Revocation) (added int) {
	for i := range list {
		if s.Put(list[i]) {
			added++
		}
	}
	return added
}

func (s *Set) source(r keymanager.Revocation) uint32 {
	src := source{r.Origin.Kind, r.Origin.ID, r.Tenant}
	s.mu.RLock()
	n, ok := s.sourceOf[src]
	s.mu.RUnlock()
	if ok {
		return n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok = s.sourceOf[src]; ok {
		return n
	}
	const most = 4096
	if len(s.sources) >= most {
		// Event IDs differ each time: past the bound the ID is not kept, and past twice the bound nothing is.
		src.id = ""
		if n, ok = s.sourceOf[src]; ok {
			return n
		}
		if len(s.sources) >= 2*most {
			return 0
		}
	}
	n = uint32(len(s.sources))
	s.sources = append(s.sources, src)
	s.sourceOf[src] = n
	return n
}

// Keys are the names of a token, computed once so that a cached token is checked for the price of two look-ups.
type Keys struct {
	ids [2]id
	n   int
}

// KeysOf returns the names under which a token may be revoked: its ID, and of the credential as it came the signature (of a
// JWT) or the whole (of any other).
func KeysOf(t *keymanager.Token, raw string) (k Keys) {
	add := func(v string) {
		if v == "" {
			return
		}
		next := idOf(v)
		for i := range k.n {
			if k.ids[i] == next {
				return
			}
		}
		k.ids[k.n] = next
		k.n++
	}
	if t != nil {
		add(t.ID)
	}
	if _, sig, ok := cutSignature(raw); ok {
		add(sig) // under which the whole token was put too
		return k
	}
	add(raw)
	return k
}

// Revoked reports whether a token is revoked, and by what. raw is the credential as it came.
func (s *Set) Revoked(t *keymanager.Token, raw string) (keymanager.Revocation, bool) {
	if s.tokens.Load() == 0 && s.masses.Load() == 0 {
		return keymanager.Revocation{}, false
	}
	k := KeysOf(t, raw)
	return s.RevokedKeys(&k, t, "", s.opts.Now().UnixMilli())
}

// RevokedKeys is Revoked for names that were computed before, at an API of a tenant ("": not known) and a time in ms since the
// epoch. A user without a domain is one of that tenant. It allocates nothing, so the Value of a revoked token is left empty: the caller has it.
func (s *Set) RevokedKeys(k *Keys, t *keymanager.Token, tenant string, at int64) (keymanager.Revocation, bool) {
	if s.tokens.Load() > 0 {
		now := seconds(at)
		for i := range k.n {
			sh := s.shard(&k.ids[i])
			sh.mu.RLock()
			e, found := sh.at[k.ids[i]]
			sh.mu.RUnlock()
			if found && e.expires > now {
				return s.token(k.ids[i], e, false), true
			}
		}
	}
	if t == nil || s.masses.Load() == 0 {
		return keymanager.Revocation{}, false
	}
	return s.revokedMass(t, tenant, at)
}

func (s *Set) revokedMass(t *keymanager.Token, tenant string, now int64) (keymanager.Revocation, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	hit := func(m mass, ok bool) bool {
		return ok && m.expires > now && (t.IssuedAt == 0 || t.IssuedAt*1000 < m.before)
	}
	if t.ConsumerKey != "" {
		if m, ok := s.clients[t.ConsumerKey]; hit(m, ok) {
			return s.mass(keymanager.RevokedConsumerKey, t.ConsumerKey, m), true
		}
	}
	if tenant == "" {
		tenant = keymanager.SuperTenant
	}
	for _, name := range [...]string{t.Subject, t.User} {
		if name == "" {
			continue
		}
		var room [128]byte
		full := append(append(append(room[:0], name...), '@'), tenant...)
		for _, n := range [...][]byte{full[:len(name)], full, withoutDomain(full[:len(name)], tenant)} {
			if m, ok := s.users[string(n)]; len(n) > 0 && hit(m, ok) {
				return s.mass(keymanager.RevokedSubject, "", m), true
			}
		}
	}
	return keymanager.Revocation{}, false
}

// userOf is the name that a revoked user is kept under. One without a domain is one of the tenant that the revocation names;
// where it names none, the user of every tenant. What stands behind an @ may be a domain or part of a mail address: such a
// name is kept as it is.
func userOf(name, tenant string) string {
	if tenant == "" || strings.Contains(name, "@") {
		return name
	}
	return name + "@" + tenant
}

// withoutDomain is a user's name without its last domain, nil where that may not be the domain of a tenant: it is the
// API's, the super tenant's, or stands behind a mail address.
func withoutDomain(name []byte, tenant string) []byte {
	i := bytes.LastIndexByte(name, '@')
	if i < 0 {
		return nil
	}
	if d := name[i+1:]; string(d) == tenant || string(d) == keymanager.SuperTenant || bytes.IndexByte(name[:i], '@') >= 0 {
		return name[:i]
	}
	return nil
}

// token and mass make the outside form of an entry. Value is left empty on the request path, where making it would
// allocate. The lock s.mu is held by the callers of mass, and taken by token.
func (s *Set) token(k id, e entry, named bool) keymanager.Revocation {
	r := keymanager.Revocation{Kind: keymanager.RevokedToken, ExpiresAt: int64(e.expires)*1000 - s.opts.Grace.Milliseconds()}
	if named {
		r.Value = k.String()
	}
	s.mu.RLock()
	src := s.sources[e.source]
	s.mu.RUnlock()
	r.Tenant, r.Origin = src.tenant, keymanager.Origin{Kind: src.kind, At: int64(e.learnt) * 1000, ID: src.id}
	return r
}

func (s *Set) mass(kind keymanager.RevocationKind, value string, m mass) keymanager.Revocation {
	src := s.sources[m.source]
	return keymanager.Revocation{
		Kind: kind, Value: value, Before: m.before, ExpiresAt: m.expires - s.opts.Grace.Milliseconds(),
		Tenant: src.tenant, Origin: keymanager.Origin{Kind: src.kind, At: m.learnt, ID: src.id},
	}
}

// Sweep forgets what has expired at the given time and returns how many entries that were. Call it now and then.
func (s *Set) Sweep(now time.Time) (removed int) {
	sec := seconds(now.UnixMilli())
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		n := 0
		for k, e := range sh.at {
			if e.expires <= sec {
				delete(sh.at, k)
				n++
			}
		}
		sh.mu.Unlock()
		s.tokens.Add(int64(-n))
		removed += n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return removed + s.sweepMass(now)
}

func (s *Set) sweepMass(now time.Time) (removed int) {
	for _, at := range []map[string]mass{s.clients, s.users} {
		for k, m := range at {
			if m.expires <= now.UnixMilli() {
				delete(at, k)
				removed++
			}
		}
	}
	s.masses.Store(int64(len(s.clients) + len(s.users)))
	return removed
}

// Len returns the number of entries. A token that was revoked by its whole text counts two or three times: it is
// found by its signature, and by its jti, too.
func (s *Set) Len() int { return int(s.tokens.Load() + s.masses.Load()) }

// Dropped returns how many revocations found no room.
func (s *Set) Dropped() int64 { return s.dropped.Load() }

// All returns the entries, at most limit of them; 0 or less means all. Mass revocations come first. The value of an entry
// that is kept as a hash is HashPrefix and the hash: Put takes it back, so a snapshot survives a restart.
func (s *Set) All(limit int) []keymanager.Revocation {
	if limit <= 0 {
		limit = 1<<63 - 1
	}
	out := make([]keymanager.Revocation, 0, min(limit, s.Len()))
	s.mu.RLock()
	for kind, at := range map[keymanager.RevocationKind]map[string]mass{keymanager.RevokedConsumerKey: s.clients, keymanager.RevokedSubject: s.users} {
		for k, m := range at {
			if len(out) < limit {
				out = append(out, s.mass(kind, k, m))
			}
		}
	}
	s.mu.RUnlock()
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.RLock()
		for k, e := range sh.at {
			if len(out) >= limit {
				break
			}
			out = append(out, s.token(k, e, true))
		}
		sh.mu.RUnlock()
	}
	return out
}
