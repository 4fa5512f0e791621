// Package backendjwt makes the JWT that tells a backend who calls: its claims, its signature, a cache of what was signed,
// and the set of public keys by which backends verify it.
//
// Signing costs about a millisecond, so a JWT is kept for its caller and used again until four fifths of its life are over.
// A new key is published for a while before it signs, and an old one for as long as something that it has signed holds.
package backendjwt

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/keymanager"
)

// Options are what a Generator is made of. The zero value of a member means what its comment says.
type Options struct {
	Rules Rules
	// Algorithm is SHA256withRSA (the default), RS256, RS384, RS512, PS256, ES256, EdDSA, or NONE, which AllowUnsigned must
	// permit.
	Algorithm     string
	AllowUnsigned bool
	// KeyFile holds the private key in PEM, and its certificate where x5t is wanted. "" makes a key that fits the algorithm
	// and keeps it in DataDir.
	KeyFile, DataDir string
	// Capacity bounds the JWTs that are kept; 0 means 10,000.
	Capacity int
	// MaxAge is how long backends may keep the key set; 0 means 5 min.
	MaxAge time.Duration
	// PublishLead is how long a new key is published before it signs; 0 means MaxAge and a tenth of it, for answers that were on
	// their way. A shorter one than MaxAge lets backends meet keys that they do not know.
	PublishLead time.Duration
	// KeepAfter is how long a key stays published after its last JWT has ended, for clocks that differ; 0 means 1 min.
	KeepAfter time.Duration
	// Poll is how often the key file is looked at; 0 means 5 s.
	Poll time.Duration
	// MaxBytes bounds a JWT; 0 means 32 KiB.
	MaxBytes int
	// Now is the clock of the key set; nil means time.Now.
	Now        func() time.Time
	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: the metrics are not registered
}

// KeyFileError says why a key file is of no use.
type KeyFileError struct {
	Path string
	Err  error
}

// Error implements error.
func (e *KeyFileError) Error() string {
	return fmt.Sprintf("the key of backend JWTs, %s: %v", e.Path, e.Err)
}

// Unwrap returns the reason.
func (e *KeyFileError) Unwrap() error { return e.Err }

// Generator makes backend JWTs. All methods may be called from any goroutine.
type Generator struct {
	opts      Options
	algorithm algorithm
	seed      maphash.Seed
	shards    [shards]shard

	state atomic.Pointer[state]

	mu      sync.Mutex // of what follows, and of changes of state
	ring    ring
	file    string
	content [32]byte // of the file as it was last looked at
	rules   *rules

	signed, failed atomic.Uint64
	warned         atomic.Int64 // when a failure was last logged, s
}

// state is what is in force. It is replaced as a whole.
type state struct {
	now *epoch
	// next is when a key begins to sign or is let go, ns since the epoch: from then on the state is not to be used.
	next int64
	keys []byte // the key set as JSON
}

// epoch is what a JWT depends on beside its caller: what it says, and who signs it.
type epoch struct {
	rules *rules
	key   *key
}

// New reads or makes the key. The error is a *KeyFileError where that is of no use, a *RuleError where a rule is.
func New(o Options) (*Generator, error) {
	if o.Algorithm == "" {
		o.Algorithm = "SHA256withRSA"
	}
	alg, ok := algorithms[o.Algorithm]
	if !ok {
		return nil, fmt.Errorf("backend JWTs: no algorithm has the name %q: write SHA256withRSA, RS256, RS384, RS512, PS256, ES256, EdDSA or NONE", o.Algorithm)
	}
	if alg.family == familyNone && !o.AllowUnsigned {
		return nil, errors.New("backend JWTs: unsigned ones can be forged by anyone who reaches the backend: write another algorithm, or allow_unsigned = true")
	}
	defaults := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	defaults(&o.MaxAge, 5*time.Minute)
	defaults(&o.PublishLead, o.MaxAge+o.MaxAge/10)
	defaults(&o.KeepAfter, time.Minute)
	defaults(&o.Poll, 5*time.Second)
	if o.Capacity <= 0 {
		o.Capacity = 10_000
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 32 << 10
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	g := &Generator{opts: o, algorithm: alg, seed: maphash.MakeSeed()}
	for i := range g.shards {
		g.shards[i].at = map[uint64]*entry{}
		g.shards[i].flights = map[uint64]*flight{}
	}
	var err error
	if g.rules, err = compile(o.Rules); err != nil {
		return nil, err
	}
	if alg.family == familyNone {
		g.ring.add(unsigned(), o.Now())
	} else if err := g.SetKeyFile(o.KeyFile); err != nil {
		return nil, err
	}
	g.refresh(o.Now())
	if o.Registerer != nil {
		if err := o.Registerer.Register(collector{g}); err != nil {
			return nil, fmt.Errorf("register the metrics of backend JWTs: %w", err)
		}
	}
	return g, nil
}

// SetRules replaces the rules. What was made by the old ones is not used again. An error leaves them in force.
func (g *Generator) SetRules(r Rules) error {
	c, err := compile(r)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rules = c
	if g.state.Load() != nil {
		g.refresh(g.opts.Now())
	}
	return nil
}

// SetKeyFile reads the key from a file, "" for the one that is kept in DataDir. A new key is published now and signs after
// PublishLead; the first key signs at once. One that is already known signs again as soon as it has been published for long
// enough, and keys that were to follow it are forgotten. An error leaves what was in force; it is a *KeyFileError where the
// file has a fault. It does nothing where nothing is signed.
func (g *Generator) SetKeyFile(path string) error {
	if g.algorithm.family == familyNone {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if path == "" {
		made := false
		var err error
		if path, made, err = makeKeyFile(g.opts.DataDir, g.algorithm.family); err != nil {
			return err
		}
		if made {
			g.opts.Logger.Warn().Str("file", path).Msg("made a key for backend JWTs, because no key_file is configured; gateways that serve the same backends need one key_file for all")
		}
	}
	data, err := readKeyFile(path)
	if err != nil {
		return &KeyFileError{path, err}
	}
	if path == g.file {
		g.content = digest(data) // whoever asked is told what is wrong with it; look need not say it again
	}
	return g.take(path, data)
}

// take uses the content of a key file. The lock is held.
func (g *Generator) take(path string, data []byte) error {
	k, err := parseKey(data, g.algorithm)
	if err != nil {
		return &KeyFileError{path, err}
	}
	now := g.opts.Now()
	g.file, g.content = path, digest(data)
	first := len(g.ring.keys) == 0
	signs := g.ring.add(k, now.Add(g.opts.PublishLead))
	if first {
		signs = g.ring.startAt(now)
	}
	if g.state.Load() != nil {
		g.refresh(now)
	}
	g.opts.Logger.Info().Str("file", path).Str("kid", k.id).Str("alg", k.algorithm.name).Time("signs_from", signs).Msg("published a key for backend JWTs")
	return nil
}

// Run follows the key file until ctx is done. It returns nil then.
func (g *Generator) Run(ctx context.Context) error {
	tick := time.NewTicker(g.opts.Poll)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			g.look()
			if n%12 == 11 {
				g.sweep(g.opts.Now())
			}
		}
	}
}

// look takes a changed key file. A bad one is logged once.
func (g *Generator) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.file == "" {
		return
	}
	data, err := readKeyFile(g.file)
	seen := digest(data)
	if err != nil {
		seen = digest([]byte(err.Error()))
	}
	if seen == g.content {
		return
	}
	g.content = seen
	if err == nil {
		err = g.take(g.file, data)
	}
	if err != nil {
		g.opts.Logger.Error().Err(err).Str("file", g.file).Msg("the key of backend JWTs stays as it was: the file cannot be used")
	}
}

// MaxAge returns how long backends may keep the key set.
func (g *Generator) MaxAge() time.Duration { return g.opts.MaxAge }

// KeySet returns the public keys as a JSON Web Key Set. It must not be changed.
func (g *Generator) KeySet() []byte { return g.current(g.opts.Now()).keys }

// current returns the state in force at a time.
func (g *Generator) current(now time.Time) *state {
	if s := g.state.Load(); now.UnixNano() < s.next {
		return s
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.state.Load(); now.UnixNano() < s.next {
		return s // another was quicker
	}
	return g.refresh(now)
}

// refresh makes the state of a time. The lock is held, or nobody else knows g yet.
func (g *Generator) refresh(now time.Time) *state {
	k, next := g.ring.advance(now, time.Duration(g.rules.life)*time.Second, g.opts.KeepAfter)
	s := &state{now: &epoch{g.rules, k}, next: next, keys: g.ring.set()}
	if old := g.state.Load(); old != nil {
		switch {
		case old.now.key == k && old.now.rules == g.rules:
			s.now = old.now // what was signed is still good
		case old.now.key != k:
			g.opts.Logger.Info().Str("kid", k.id).Str("former", old.now.key.id).Msg("backend JWTs are signed with another key")
		}
	}
	g.state.Store(s)
	return s
}

// Token returns the JWT for a caller at a time. It may be one that was made before. c is not kept. An error means that none
// can be made.
func (g *Generator) Token(c *keymanager.Caller, now time.Time) (string, error) {
	e := g.current(now).now
	h := maphash.Comparable(g.seed, *c)
	s := &g.shards[h%shards]
	s.mu.RLock()
	kept := s.at[h]
	s.mu.RUnlock()
	if kept != nil && kept.epoch == e && kept.caller == *c {
		ms := now.UnixMilli()
		// One request renews what is four fifths through; the others use it meanwhile.
		if ms < kept.renewAt || ms < kept.expiresAt && !kept.renewing.CompareAndSwap(false, true) {
			s.hits.Add(1)
			return kept.token, nil
		}
	}
	s.misses.Add(1)
	token, err := g.once(s, h, e, c, now)
	if err != nil {
		g.failed.Add(1)
		if sec, last := now.Unix(), g.warned.Load(); sec >= last+60 && g.warned.CompareAndSwap(last, sec) {
			g.opts.Logger.Error().Err(err).Str("api", c.APIName+":"+c.APIVersion).Msg("a backend JWT could not be made; further faults are not logged for a minute, but counted")
		}
	}
	return token, err
}

// once makes a JWT, or waits for who makes it already.
func (g *Generator) once(s *shard, h uint64, e *epoch, c *keymanager.Caller, now time.Time) (string, error) {
	s.mu.Lock()
	if kept := s.at[h]; kept != nil && kept.epoch == e && kept.caller == *c && now.UnixMilli() < kept.renewAt {
		s.mu.Unlock()
		return kept.token, nil
	}
	if f := s.flights[h]; f != nil && f.epoch == e && f.caller == *c {
		s.mu.Unlock()
		<-f.done
		return f.token, f.err
	}
	f := &flight{epoch: e, caller: *c, done: make(chan struct{}), err: errors.New("making the backend JWT ended in a fault")}
	s.flights[h] = f
	s.mu.Unlock()
	var made *entry
	defer func() {
		s.mu.Lock()
		if s.flights[h] == f {
			delete(s.flights, h)
		}
		if made != nil {
			s.keep(h, made, g.opts.Capacity, now.UnixMilli())
		} else if kept := s.at[h]; kept != nil {
			kept.renewing.Store(false)
		}
		s.mu.Unlock()
		close(f.done)
	}()
	made, f.err = g.make(e, c, now)
	if f.err == nil {
		f.token = made.token
	}
	return f.token, f.err
}

// make signs a JWT.
func (g *Generator) make(e *epoch, c *keymanager.Caller, now time.Time) (*entry, error) {
	sec := now.Unix()
	exp := e.rules.expiry(c.Token, sec)
	id, err := uuid.NewRandom()
	if err != nil {
		return nil, fmt.Errorf("name a backend JWT: %w", err)
	}
	claims, err := e.rules.claims(c, id.String(), sec, exp)
	if err != nil {
		return nil, fmt.Errorf("write the claims of a backend JWT: %w", err)
	}
	if n := len(e.key.head) + len(claims)*4/3; n > g.opts.MaxBytes {
		return nil, fmt.Errorf("%w: about %d bytes, more than %d; exclude claims", errTooLarge, n, g.opts.MaxBytes)
	}
	// Noted before, so that the key cannot be let go in between.
	e.key.signed(exp)
	token, err := e.key.sign(claims)
	if err != nil {
		return nil, err
	}
	g.signed.Add(1)
	kept := &entry{epoch: e, caller: *c, token: token, expiresAt: exp * 1000, renewAt: exp * 1000}
	if exp == sec+e.rules.life { // else a new one would end at the same time
		kept.renewAt = sec*1000 + e.rules.life*800
	}
	return kept, nil
}
