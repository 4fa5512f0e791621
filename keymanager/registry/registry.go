// Package registry knows the key managers and turns the credential of a request into a verified token, or says which
// check it failed.
//
// The key manager of a JWT is chosen by the token's issuer. Where several have one issuer, the rule is: only those that are
// enabled and that the API accepts; those of the API's own tenant before global ones; of these the ones whose
// token_format_string claims the token by its claims before those that claim nothing; then by name, in byte order. One that
// claims other tokens by their claims comes into question only where it is alone. A key manager of the API Manager hides
// every issuer of the configuration file that has the same issuer, even while it is disabled, but may be lent that one's
// introspection.
//
// The key manager of an opaque token is the one whose token_format_string claims its form, else the first of those that the
// API accepts that says it is active. What they say is kept beside the verified JWTs; what they do not know has a cache of its
// own, so that tokens made up by a caller push no good one out.
package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/keymanager"
	"gatehouse/keymanager/revocation"
	"gatehouse/keymanager/tokencache"
)

// Defaults (gateway-behaviour.md 6).
const (
	DefaultCacheCapacity = 10000
	negativeCapacity     = 10000
	negativeLife         = 30 * time.Second
	// maxCached is how long a token without an expiry is trusted before it is verified again.
	maxCached     = 15 * time.Minute
	sweepInterval = time.Minute
)

// Options configure a Registry. The zero value verifies without a cache and knows no revocations.
type Options struct {
	// HTTPClient fetches key sets; only its Transport is used. Nil: a transport per key manager. Key managers with a CA
	// file, or that skip the verification of TLS, always get their own.
	HTTPClient *http.Client
	// TLS is the base of own transports: root certificates, lowest version.
	TLS        *tls.Config
	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// CacheCapacity is how many verified tokens are kept; 0 means DefaultCacheCapacity.
	CacheCapacity int
	CacheEnabled  bool
	Revocations   *revocation.Set
	Introspection IntrospectionOptions
	Now           func() time.Time // nil: time.Now
}

// Registry is safe for concurrent use. Close it to end its background work.
type Registry struct {
	opts     Options
	now      func() time.Time
	snap     atomic.Pointer[snapshot]
	verified *tokencache.Cache[verified]
	refused  *tokencache.Cache[refused]
	inactive *tokencache.Cache[inactive]

	// The questions about opaque tokens that are under way. ctx ends them.
	ctx       context.Context
	stop      context.CancelFunc
	wg        sync.WaitGroup
	asking    sync.Mutex
	flights   map[tokencache.Key]*flight
	forgotten atomic.Int64 // how often Forget was called

	mu       sync.Mutex // writers
	managers map[managerKey]*manager
	revision uint64
	closed   bool
}

// managerKey tells the two origins apart: an issuer of the configuration never collides by name with a key manager of the
// API Manager.
type managerKey struct {
	owner, name   string
	configuration bool
}

// snapshot is what the request path reads.
type snapshot struct {
	groups map[string]*group // by issuer
	all    []*manager
	asking []*manager // that introspect
}

// group is the key managers of one issuer, in the order in which they are tried.
type group struct {
	members []*manager
	// byClaims says that the claims of a token matter for the choice.
	byClaims bool
}

// New returns a registry without key managers.
func New(o Options) *Registry {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.CacheCapacity <= 0 {
		o.CacheCapacity = DefaultCacheCapacity
	}
	if o.Revocations == nil {
		o.Revocations = revocation.New(revocation.Options{Now: o.Now})
	}
	negative, unknown := negativeCapacity, inactiveCapacity
	if !o.CacheEnabled {
		o.CacheCapacity, negative, unknown = 0, 0, 0
	}
	if o.Introspection.TTL == 0 {
		o.Introspection.TTL = DefaultIntrospectionTTL
	}
	r := &Registry{
		opts: o, now: o.Now, managers: map[managerKey]*manager{}, flights: map[tokencache.Key]*flight{},
		verified: tokencache.New[verified](o.CacheCapacity), refused: tokencache.New[refused](negative), inactive: tokencache.New[inactive](unknown),
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.snap.Store(&snapshot{})
	if o.Registerer != nil {
		if err := o.Registerer.Register(collector{r}); err != nil {
			o.Logger.Error().Err(err).Msg("metrics of the key managers are not shown")
		}
	}
	return r
}

// Run keeps the caches and the revocations swept until the context ends, then closes the registry.
func (r *Registry) Run(ctx context.Context) error {
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	defer r.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			r.Sweep()
		}
	}
}

// Forget drops what is cached of these tokens, each named by its text or its jti (contract events.md 5c), so that the
// next request verifies it anew. It returns how many were dropped.
func (r *Registry) Forget(tokens []string) (dropped int) {
	r.forgotten.Add(1)
	r.forgetInactive(tokens)
	names := make(map[string]bool, len(tokens))
	for _, t := range tokens {
		names[t] = true
		if v := r.verified.Get(r.verified.KeyOf(t)); v != nil {
			names[v.token.ID] = true // a token may be cached for several key managers
		}
	}
	r.verified.DeleteFunc(func(v *verified) bool {
		if !names[v.token.ID] {
			return false
		}
		dropped++
		return true
	})
	return dropped
}

// Sweep drops what has expired or belongs to key managers that are gone.
func (r *Registry) Sweep() {
	now := r.now()
	r.verified.DeleteFunc(func(e *verified) bool { return !e.manager.live.Load() || now.UnixMilli() >= e.until })
	r.inactive.DeleteFunc(func(e *inactive) bool { return now.UnixMilli() >= e.until })
	r.refused.DeleteFunc(func(e *refused) bool { return now.UnixMilli() >= e.until })
	r.opts.Revocations.Sweep(now)
}

// Close ends the background fetches and waits for them. Tokens are verified with the keys held as long as those last.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	var all []*manager
	for _, m := range r.managers {
		all = append(all, m)
	}
	r.mu.Unlock()
	r.asking.Lock() // no question begins between the stop and the wait
	r.stop()
	r.asking.Unlock()
	r.wg.Wait()
	for _, m := range all {
		m.close()
	}
}

// Put adds a key manager or replaces the one of the same owner and name, and returns the replaced one. Names match in
// their exact case first, then in any; the two names of the resident key manager are one.
func (r *Registry) Put(km keymanager.KeyManager) (before *keymanager.KeyManager) {
	r.change(func(gone *[]*manager) {
		key, ok := r.find(km.Owner(), km.Name, km.FromConfiguration)
		if ok {
			old := *r.managers[key].km
			before = &old
		}
		r.put(key, ok, km, gone)
		if km.FromConfiguration {
			r.lendAgain(gone)
		}
	})
	return before
}

// change makes a change of the key managers under the lock, and what follows from it; those that are gone are closed after
// that. A fault of the change leaves no lock behind, and what it has changed is published.
func (r *Registry) change(f func(gone *[]*manager)) {
	var gone []*manager
	defer func() { closeAll(gone) }()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.publish()
	f(&gone)
}

// Delete removes a key manager of the API Manager and returns it, nil when there was none. A tenant of "" is the super
// tenant.
func (r *Registry) Delete(tenant, name string) (before *keymanager.KeyManager) {
	r.change(func(gone *[]*manager) {
		if key, ok := r.find(keymanager.KeyManager{Tenant: tenant}.Owner(), name, false); ok {
			m := r.managers[key]
			before = m.km
			delete(r.managers, key)
			*gone = append(*gone, m)
		}
	})
	return before
}

// ReplaceAll makes the list the key managers of the API Manager; issuers of the configuration stay. One whose
// configuration did not change keeps its keys and its verified tokens. Of two of one owner and name the last counts.
func (r *Registry) ReplaceAll(list []keymanager.KeyManager) { r.replace(list, false) }

// ReplaceConfigured is ReplaceAll for the issuers of the configuration file; key managers of the API Manager stay.
func (r *Registry) ReplaceConfigured(list []keymanager.KeyManager) { r.replace(list, true) }

func (r *Registry) replace(list []keymanager.KeyManager, configuration bool) {
	r.change(func(gone *[]*manager) {
		keep := map[managerKey]bool{}
		for _, km := range list {
			km.FromConfiguration = configuration
			key, ok := r.find(km.Owner(), km.Name, configuration)
			keep[r.put(key, ok, km, gone)] = true
		}
		for key, m := range r.managers {
			if key.configuration == configuration && !keep[key] {
				delete(r.managers, key)
				*gone = append(*gone, m)
			}
		}
		if configuration {
			r.lendAgain(gone)
		}
	})
}

func closeAll(gone []*manager) {
	for _, m := range gone {
		m.close()
	}
}

// find returns the key under which a key manager is kept, whatever the case of its name.
func (r *Registry) find(owner, name string, configuration bool) (managerKey, bool) {
	key := managerKey{owner, keymanager.CanonicalName(name), configuration}
	if _, ok := r.managers[key]; ok {
		return key, true
	}
	var found []managerKey
	for k := range r.managers {
		if k.configuration == configuration && k.owner == owner && strings.EqualFold(k.name, key.name) {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return key, false
	}
	slices.SortFunc(found, func(a, b managerKey) int { return cmp.Compare(a.name, b.name) })
	return found[0], true
}

// put makes the manager of a key manager, with the keys of the one it replaces where they come from the same place. The
// lock is held.
func (r *Registry) put(old managerKey, replaces bool, km keymanager.KeyManager, gone *[]*manager) managerKey {
	key := managerKey{km.Owner(), keymanager.CanonicalName(km.Name), km.FromConfiguration}
	given := km
	km.Introspection = r.lend(&km)
	var was *manager
	if replaces {
		was = r.managers[old]
		if was.same(&km) {
			was.origin.Store(&km.Origin)
			was.given = given
			return old
		}
		delete(r.managers, old)
		*gone = append(*gone, was)
	}
	r.revision++
	m := newManager(km, r.revision, was, r.opts)
	m.given = given
	if r.closed {
		m.close()
	}
	r.managers[key] = m
	return key
}

// lend returns how a key manager is introspected. The API Manager names the endpoint of its own key manager without credentials:
// those of an issuer of the configuration with the same issuer are taken, with the endpoint that stands there. The lock is
// held.
func (r *Registry) lend(km *keymanager.KeyManager) *keymanager.Introspection {
	if km.FromConfiguration || km.Issuer == "" || km.Introspection != nil && km.Introspection.ClientID != "" {
		return km.Introspection
	}
	for key, m := range r.managers {
		if key.configuration && m.km.Issuer == km.Issuer && m.km.Introspection != nil && (m.owner == km.Owner() || m.owner == keymanager.AllTenants) {
			return m.km.Introspection
		}
	}
	return km.Introspection
}

// lendAgain gives the key managers of the API Manager what the configuration lends them now. The lock is held.
func (r *Registry) lendAgain(gone *[]*manager) {
	for key, m := range maps.Clone(r.managers) {
		if !key.configuration {
			r.put(key, true, m.given, gone)
		}
	}
}

// publish makes the snapshot of the request path. The lock is held.
func (r *Registry) publish() {
	s := &snapshot{groups: map[string]*group{}}
	for _, m := range r.managers {
		s.all = append(s.all, m)
	}
	slices.SortFunc(s.all, func(a, b *manager) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.owner, b.owner), cmp.Compare(a.km.Name, b.km.Name), cmp.Compare(a.revision, b.revision))
	})
	owners := map[string]map[string]bool{} // of the API Manager's key managers, by issuer
	for _, m := range s.all {
		if !m.km.FromConfiguration {
			if owners[m.km.Issuer] == nil {
				owners[m.km.Issuer] = map[string]bool{}
			}
			owners[m.km.Issuer][m.owner] = true
		}
	}
	for _, m := range s.all {
		m.hides(owners[m.km.Issuer])
		if m.km.Issuer == "" || m.km.FromConfiguration && m.hiddenBy(owners[m.km.Issuer]) {
			continue
		}
		g := s.groups[m.km.Issuer]
		if g == nil {
			g = &group{}
			s.groups[m.km.Issuer] = g
		}
		g.members = append(g.members, m)
	}
	for _, g := range s.groups {
		for _, m := range g.members {
			g.byClaims = g.byClaims || len(g.members) > 1 && len(m.formats.bodies) > 0
		}
	}
	for _, m := range s.all {
		g := s.groups[m.km.Issuer]
		if g != nil && !slices.Contains(g.members, m) {
			g = nil
		}
		m.group.Store(g)
		hidden := m.km.Issuer != "" && g == nil
		m.live.Store(!hidden)
		if m.asker != nil && !hidden {
			s.asking = append(s.asking, m)
		}
	}
	r.snap.Store(s)
}

// choose returns the key manager that answers for a token of the group's issuer at an API, or why there is none. Where
// several could, one whose token_format_string claims the token comes before one that claims no claims at all, and one that
// claims others is none of them.
func (g *group) choose(tenant string, allowed []string, claims map[string]any) (*manager, *keymanager.Refusal) {
	var best, closed, unwanted *manager
	bestRank, found := 0, 0
	for _, m := range g.members {
		if !m.answersFor(tenant) {
			continue
		}
		switch {
		case !m.usable():
			closed = cmp.Or(closed, m)
			continue
		case !m.km.Named(allowed):
			unwanted = cmp.Or(unwanted, m)
			continue
		}
		rank := 2
		if g.byClaims && len(m.formats.bodies) > 0 {
			if rank = 0; m.formats.claimBody(claims) {
				rank = 3
			}
		}
		if m.owner == tenant && rank > 0 {
			rank += 2
		}
		if found++; best == nil || rank > bestRank {
			best, bestRank = m, rank
		}
	}
	if best != nil {
		if bestRank == 0 && found > 1 {
			return nil, &keymanager.Refusal{
				Check: keymanager.CheckIssuer, Issuer: best.km.Issuer,
				Detail: "several key managers have the issuer of the token, and none claims it by its claims",
			}
		}
		return best, nil
	}
	switch {
	case unwanted != nil:
		return nil, unwanted.refuse(keymanager.CheckAllowed, "the API does not accept tokens of this key manager")
	case closed != nil && !closed.km.Enabled:
		return nil, closed.refuse(keymanager.CheckIssuer, "the key manager of the token is disabled")
	case closed != nil:
		return nil, closed.refuse(keymanager.CheckIssuer, "the key manager of the token does not let the gateway validate tokens")
	}
	return nil, &keymanager.Refusal{
		Check: keymanager.CheckIssuer, Issuer: g.members[0].km.Issuer,
		Detail: "the issuer of the token belongs to another tenant",
	}
}

// All returns the key managers, by name, without their secrets: those are marked with Hidden.
func (r *Registry) All() []keymanager.KeyManager {
	s := r.snap.Load()
	out := make([]keymanager.KeyManager, 0, len(s.all))
	for _, m := range s.all {
		km := *m.km
		km.Origin = *m.origin.Load()
		out = append(out, withoutSecrets(km))
	}
	return out
}

// Hidden stands for a secret that is there.
const Hidden = "*****"

func withoutSecrets(km keymanager.KeyManager) keymanager.KeyManager {
	hide := func(s *string) {
		if *s != "" {
			*s = Hidden
		}
	}
	hide(&km.SharedSecret)
	if km.Introspection != nil {
		i := *km.Introspection
		hide(&i.ClientSecret)
		hide(&i.KeyPEM)
		km.Introspection = &i
	}
	return km
}
