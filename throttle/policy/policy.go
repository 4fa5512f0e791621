// Package policy holds the tiers of the API Manager by name: limits, burst control, stopOnQuotaReach and the condition groups of API
// policies, compiled.
//
// The table is small and changes seldom: an immutable snapshot, copied on every change, so that reading takes no lock.
package policy

import (
	"cmp"
	"maps"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"gatehouse/throttle"
	"gatehouse/throttle/condition"
)

// Store holds policies. It is safe for concurrent use; create it with New.
type Store struct {
	mu   sync.Mutex // serialises writers
	rows atomic.Pointer[map[name]*Compiled]
}

type name struct {
	kind         throttle.PolicyKind
	tenant, name string
}

// Compiled is a policy with its condition groups ready to be matched. It is immutable.
type Compiled struct {
	throttle.Policy
	Conditions []condition.Group
	// Headers, Query and Claims are the names that the conditions look at, each once, in order.
	Headers, Query, Claims []string
}

func compile(p throttle.Policy) *Compiled {
	c := &Compiled{Policy: p, Conditions: condition.Compile(p.Groups)}
	for _, g := range p.Groups {
		for _, part := range g.Conditions {
			switch strings.ToLower(part.Type) {
			case "header":
				c.Headers = append(c.Headers, textproto.CanonicalMIMEHeaderKey(part.Name))
			case "queryparametertype":
				c.Query = append(c.Query, part.Name)
			case "jwtclaims":
				c.Claims = append(c.Claims, part.Name)
			}
		}
	}
	for _, list := range []*[]string{&c.Headers, &c.Query, &c.Claims} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return c
}

// New returns an empty store.
func New() *Store {
	s := &Store{}
	s.rows.Store(&map[name]*Compiled{})
	return s
}

func key(kind throttle.PolicyKind, tenant, n string) name {
	if tenant == "" {
		tenant = throttle.SuperTenant
	}
	return name{kind, tenant, n}
}

// Put adds a policy, or replaces the one of the same kind, tenant and name, and returns what stood before. No tenant
// means the super tenant.
func (s *Store) Put(p throttle.Policy) (before *throttle.Policy) {
	k := key(p.Kind, p.Tenant, p.Name)
	c := compile(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := maps.Clone(*s.rows.Load())
	if old := rows[k]; old != nil {
		before = &old.Policy
	}
	rows[k] = c
	s.rows.Store(&rows)
	return before
}

// Delete removes a policy and returns it, nil when there was none.
func (s *Store) Delete(kind throttle.PolicyKind, tenant, n string) (before *throttle.Policy) {
	k := key(kind, tenant, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := (*s.rows.Load())[k]
	if old == nil {
		return nil
	}
	rows := maps.Clone(*s.rows.Load())
	delete(rows, k)
	s.rows.Store(&rows)
	return &old.Policy
}

// ReplaceAll makes the store hold these policies of one kind and no others of that kind. Policies of another kind in the
// list are taken as being of this one.
func (s *Store) ReplaceAll(kind throttle.PolicyKind, list []throttle.Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := maps.Clone(*s.rows.Load())
	maps.DeleteFunc(rows, func(k name, _ *Compiled) bool { return k.kind == kind })
	for _, p := range list {
		p.Kind = kind
		rows[key(kind, p.Tenant, p.Name)] = compile(p)
	}
	s.rows.Store(&rows)
}

// Get returns a policy, nil when it is not known. It must not be changed.
func (s *Store) Get(kind throttle.PolicyKind, tenant, n string) *throttle.Policy {
	if c := s.Compiled(kind, tenant, n); c != nil {
		return &c.Policy
	}
	return nil
}

// Compiled returns a policy with its compiled conditions, nil when it is not known.
func (s *Store) Compiled(kind throttle.PolicyKind, tenant, n string) *Compiled {
	return (*s.rows.Load())[key(kind, tenant, n)]
}

// All returns copies of all policies of a kind, or of every kind for "", ordered by kind, tenant and name.
func (s *Store) All(kind throttle.PolicyKind) []throttle.Policy {
	var list []throttle.Policy
	for k, c := range *s.rows.Load() {
		if kind == "" || k.kind == kind {
			list = append(list, c.Policy)
		}
	}
	slices.SortFunc(list, func(a, b throttle.Policy) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// Len says how many policies are held, of all kinds.
func (s *Store) Len() int { return len(*s.rows.Load()) }
