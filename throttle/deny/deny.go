// Package deny holds the deny policies that are in force and says which of them a request meets.
//
// Reading takes no lock: the tables are immutable and swapped whole. A change costs a copy of the tables of its kind only, so bursts
// of single events are fine; a full list goes through ReplaceAll.
//
// What differs from WSO2's gateways (contract events.md 4.4, gateway-behaviour.md 16):
//   - each kind has its own set: an API context blocks no user of that name;
//   - the bounds of an IP range belong to it (theirs exclude them); ExclusiveRanges gives their reading;
//   - addresses are compared as addresses, not as text: IPv4-mapped IPv6 is IPv4, zones do not count;
//   - a USER condition is matched with and without its tenant, an application's owner with and without "@carbon.super";
//   - an address of the other family is outside of a range. So it is never met by a plain condition, and always by an inverted one:
//     "everyone but these IPv4 addresses is denied" must not let IPv6 through. The same holds for a request without a known address;
//   - unknown kinds and conditions without a usable address are kept and shown, never enforced.
package deny

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"gatehouse/throttle"
)

// Option changes how a Set matches.
type Option func(*Set)

// ExclusiveRanges leaves the two bounds of an IP range out of it, as WSO2's gateways do ([gateway] deny_range_inclusive =
// false).
func ExclusiveRanges() Option { return func(s *Set) { s.exclusive = true } }

// Set holds deny policies. It is safe for concurrent use; create it with New.
type Set struct {
	exclusive bool

	mu  sync.Mutex                                                 // serialises writers
	all map[throttle.DenyKind]map[identity]*throttle.DenyCondition // by family
	n   int

	tables atomic.Pointer[tables]
}

// identity is what makes two conditions of one family the same. IP kinds: tenant and id; others: the value. The tenant
// stays out of the latter because the full list does not name it, while events do.
type identity struct {
	tenant string
	value  string
}

// tables is one immutable state, by the texts that a request is compared with.
type tables struct {
	n            int
	api          map[string]*throttle.DenyCondition
	application  map[string]*throttle.DenyCondition
	user         map[string]*throttle.DenyCondition
	subscription map[string]*throttle.DenyCondition
	byTenant     map[string]*addresses
}

// addresses are the IP conditions for the APIs of one tenant.
type addresses struct {
	fixed map[netip.Addr]*throttle.DenyCondition // IP, not inverted
	spans []span                                 // inverted IP, and IPRANGE
}

// span is a condition with its bounds as numbers, both included.
type span struct {
	from, to number
	v4       bool
	empty    bool // exclusive bounds that leave nothing
	invert   bool
	c        *throttle.DenyCondition
}

type number struct{ hi, lo uint64 }

func (a number) less(b number) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

func numberOf(a netip.Addr) (n number) {
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// New returns an empty set.
func New(options ...Option) *Set {
	s := &Set{all: map[throttle.DenyKind]map[identity]*throttle.DenyCondition{}}
	for _, o := range options {
		o(s)
	}
	s.tables.Store(&tables{})
	return s
}

const superSuffix = "@" + throttle.SuperTenant

// family folds the two IP kinds into one: editing a condition may turn an address into a range under the same id.
func family(k throttle.DenyKind) throttle.DenyKind {
	if k == throttle.DenyIPRange {
		return throttle.DenyIP
	}
	return k
}

func isIP(k throttle.DenyKind) bool { return k == throttle.DenyIP || k == throttle.DenyIPRange }

func identify(c *throttle.DenyCondition) identity {
	if isIP(c.Kind) {
		id := identity{tenant: tenantOf(c.Tenant)}
		if c.ID != 0 {
			id.value = strconv.FormatInt(c.ID, 10)
		} else {
			// Very old streams give no id: then the addresses are the identity.
			id.value = c.From.String() + "-" + c.To.String() + "-" + strconv.FormatBool(c.Invert)
		}
		return id
	}
	if c.Kind == throttle.DenyUser {
		return identity{value: canonicalUser(c)}
	}
	if c.Kind == throttle.DenyApplication {
		return identity{value: canonicalApplication(c.Value)}
	}
	if c.Kind == throttle.DenySubscription {
		// Where the owner ends in "context:version:owner-application:keyType" cannot be told, both names may hold dashes.
		return identity{value: strings.Replace(c.Value, superSuffix+"-", "-", 1)}
	}
	return identity{value: c.Value}
}

func tenantOf(t string) string {
	if t == "" {
		return throttle.SuperTenant
	}
	return t
}

// canonicalUser is the user with the tenant: as written where the value ends with it, else with the condition's tenant
// appended; a bare name without any tenant is one of the super tenant.
func canonicalUser(c *throttle.DenyCondition) string {
	t := c.Tenant
	if t == "" {
		if strings.Contains(c.Value, "@") {
			return c.Value
		}
		t = throttle.SuperTenant
	}
	if strings.HasSuffix(c.Value, "@"+t) {
		return c.Value
	}
	return c.Value + "@" + t
}

// canonicalApplication is "owner:application" with the super tenant removed from the owner, who ends at the first colon.
func canonicalApplication(value string) string {
	if owner, name, ok := strings.Cut(value, ":"); ok {
		if plain, ok := strings.CutSuffix(owner, superSuffix); ok {
			return plain + ":" + name
		}
	}
	return value
}

func normalise(c throttle.DenyCondition) *throttle.DenyCondition {
	c.From = c.From.WithZone("").Unmap()
	c.To = c.To.WithZone("").Unmap()
	c.Inert = ""
	switch c.Kind {
	case throttle.DenyIP:
		if !c.From.IsValid() {
			c.Inert = "it names no valid IP address"
		}
	case throttle.DenyIPRange:
		switch {
		case !c.From.IsValid() || !c.To.IsValid():
			c.Inert = "a bound of the range is no valid IP address"
		case c.From.Is4() != c.To.Is4():
			c.Inert = "the bounds of the range are of two address families"
		case c.To.Less(c.From):
			c.From, c.To = c.To, c.From
		}
	case throttle.DenyAPI, throttle.DenyApplication, throttle.DenyUser, throttle.DenySubscription:
		if c.Value == "" {
			c.Inert = "it names nothing to deny"
		}
	default:
		c.Inert = "kind " + strconv.Quote(string(c.Kind)) + " is not known"
	}
	return &c
}

// Put adds a condition, or replaces the one that is the same, and returns the one that stood before.
func (s *Set) Put(c throttle.DenyCondition) (before *throttle.DenyCondition) {
	n := normalise(c)
	id, kind := identify(n), family(n.Kind)
	s.mu.Lock()
	defer s.mu.Unlock()
	before = s.all[kind][id]
	s.put(n)
	s.rebuild(kind)
	return before
}

// put stores a normalised condition. The caller holds mu.
func (s *Set) put(n *throttle.DenyCondition) {
	id, kind := identify(n), family(n.Kind)
	rows := s.all[kind]
	if rows == nil {
		rows = map[identity]*throttle.DenyCondition{}
		s.all[kind] = rows
	}
	if rows[id] == nil {
		s.n++
	}
	rows[id] = n
}

// Delete removes a condition: IP kinds by tenant and id, others by value. It returns what it removed, nil when there was
// none.
func (s *Set) Delete(c throttle.DenyCondition) (before *throttle.DenyCondition) {
	n := normalise(c)
	id, kind := identify(n), family(n.Kind)
	s.mu.Lock()
	defer s.mu.Unlock()
	before = s.all[kind][id]
	if before == nil {
		return nil
	}
	delete(s.all[kind], id)
	s.n--
	s.rebuild(kind)
	return before
}

// ReplaceAll makes the set hold these conditions and no others. Of two that are the same the last stays.
func (s *Set) ReplaceAll(list []throttle.DenyCondition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all, s.n = map[throttle.DenyKind]map[identity]*throttle.DenyCondition{}, 0
	for _, c := range list {
		s.put(normalise(c))
	}
	s.rebuild("")
}

// All returns copies of all conditions, ordered by kind, tenant, id and value.
func (s *Set) All() []throttle.DenyCondition {
	s.mu.Lock()
	list := make([]throttle.DenyCondition, 0, s.n)
	for _, rows := range s.all {
		for _, c := range rows {
			list = append(list, *c)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, compare)
	return list
}

func compare(a, b throttle.DenyCondition) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Value, b.Value))
}

// Len says how many conditions are held, those that are not enforced included.
func (s *Set) Len() int { return s.tables.Load().n }

// rebuild publishes new tables of one family, or of all for "". The caller holds mu.
func (s *Set) rebuild(kind throttle.DenyKind) {
	t := *s.tables.Load()
	t.n = s.n
	is := func(k throttle.DenyKind) bool { return kind == "" || kind == k }
	if is(throttle.DenyAPI) {
		t.api = s.texts(throttle.DenyAPI)
	}
	if is(throttle.DenyApplication) {
		t.application = s.texts(throttle.DenyApplication)
	}
	if is(throttle.DenyUser) {
		t.user = s.texts(throttle.DenyUser)
	}
	if is(throttle.DenySubscription) {
		t.subscription = s.texts(throttle.DenySubscription)
	}
	if is(throttle.DenyIP) {
		t.byTenant = s.addressTables()
	}
	s.tables.Store(&t)
}

// texts gives every text that a condition of the kind is met by. Where two conditions share a text, the canonical one wins.
func (s *Set) texts(kind throttle.DenyKind) map[string]*throttle.DenyCondition {
	rows := s.all[kind]
	m := make(map[string]*throttle.DenyCondition, len(rows))
	for id, c := range rows {
		if c.Inert == "" {
			m[id.value] = c
		}
	}
	if kind != throttle.DenyUser {
		return m
	}
	for _, c := range rows {
		// An e-mail name as written may already be the whole user.
		if c.Inert == "" && m[c.Value] == nil && strings.Contains(c.Value, "@") {
			m[c.Value] = c
		}
	}
	return m
}

func (s *Set) addressTables() map[string]*addresses {
	byTenant := map[string]*addresses{}
	for id, c := range s.all[throttle.DenyIP] {
		if c.Inert != "" {
			continue
		}
		a := byTenant[id.tenant]
		if a == nil {
			a = &addresses{fixed: map[netip.Addr]*throttle.DenyCondition{}}
			byTenant[id.tenant] = a
		}
		if c.Kind == throttle.DenyIP && !c.Invert {
			if have := a.fixed[c.From]; have == nil || c.ID < have.ID {
				a.fixed[c.From] = c
			}
			continue
		}
		a.spans = append(a.spans, s.span(c))
	}
	for _, a := range byTenant {
		slices.SortFunc(a.spans, func(x, y span) int { return compare(*x.c, *y.c) })
	}
	return byTenant
}

func (s *Set) span(c *throttle.DenyCondition) span {
	from, to := c.From, c.To
	sp := span{v4: from.Is4(), invert: c.Invert, c: c}
	switch {
	case c.Kind == throttle.DenyIP:
		to = from
	case s.exclusive:
		// A bound at the end of the family has no neighbour; Next and Prev then give no address.
		from, to = from.Next(), to.Prev()
		sp.empty = !from.IsValid() || !to.IsValid() || to.Less(from)
	}
	if !sp.empty {
		sp.from, sp.to = numberOf(from), numberOf(to)
	}
	return sp
}

// Anonymous returns the first condition that denies the request without knowing who calls: API, IP, IPRANGE. Nil when none
// does. The condition must not be changed.
func (s *Set) Anonymous(r *throttle.Request) *throttle.DenyCondition {
	t := s.tables.Load()
	if t.n == 0 {
		return nil
	}
	if len(t.api) > 0 {
		if c := t.api[r.APIContext]; c != nil {
			return c
		}
	}
	if len(t.byTenant) == 0 {
		return nil
	}
	a := t.byTenant[tenantOf(r.APITenant)]
	if a == nil {
		return nil
	}
	ip := r.ClientIP.WithZone("").Unmap()
	if c := a.fixed[ip]; c != nil {
		return c
	}
	if len(a.spans) == 0 {
		return nil
	}
	known, v4 := ip.IsValid(), ip.Is4()
	var n number
	if known {
		n = numberOf(ip)
	}
	for i := range a.spans {
		sp := &a.spans[i]
		inside := known && !sp.empty && sp.v4 == v4 && !n.less(sp.from) && !sp.to.less(n)
		if inside != sp.invert {
			return sp.c
		}
	}
	return nil
}

// Identified returns the first condition that denies the request for who calls: APPLICATION, USER, SUBSCRIPTION, in this
// order. Nil when none does. The condition must not be changed.
func (s *Set) Identified(r *throttle.Request) *throttle.DenyCondition {
	t := s.tables.Load()
	if t.n == 0 {
		return nil
	}
	if len(t.application) > 0 && r.AppName != "" {
		if c := t.matchApplication(r); c != nil {
			return c
		}
	}
	if len(t.user) > 0 && r.User != "" {
		if c := t.matchUser(r); c != nil {
			return c
		}
	}
	if len(t.subscription) > 0 && r.AppName != "" {
		return t.matchSubscription(r)
	}
	return nil
}

// onStack is room for the usual text; a longer one costs an allocation.
const onStack = 256

// owners gives the owner as conditions may write it: without the super tenant, and with the application's tenant where
// the stored owner lacks it.
func owners(r *throttle.Request) (plain, tenant string) {
	plain = strings.TrimSuffix(r.AppOwner, superSuffix)
	if r.AppTenant != "" && r.AppTenant != throttle.SuperTenant {
		if rest, ok := strings.CutSuffix(plain, r.AppTenant); !ok || !strings.HasSuffix(rest, "@") {
			tenant = r.AppTenant
		}
	}
	return plain, tenant
}

func (t *tables) matchApplication(r *throttle.Request) *throttle.DenyCondition {
	var room [onStack]byte
	plain, tenant := owners(r)
	b := append(append(append(room[:0], plain...), ':'), r.AppName...)
	if c := t.application[string(b)]; c != nil {
		return c
	}
	if tenant == "" {
		return nil
	}
	b = append(append(append(append(append(b[:0], plain...), '@'), tenant...), ':'), r.AppName...)
	return t.application[string(b)]
}

func (t *tables) matchUser(r *throttle.Request) *throttle.DenyCondition {
	if c := t.user[r.User]; c != nil {
		return c
	}
	// A user that came without its tenant belongs to the API's.
	tenant := tenantOf(r.APITenant)
	if rest, ok := strings.CutSuffix(r.User, tenant); ok && strings.HasSuffix(rest, "@") {
		return nil
	}
	var room [onStack]byte
	b := append(append(append(room[:0], r.User...), '@'), tenant...)
	return t.user[string(b)]
}

func (t *tables) matchSubscription(r *throttle.Request) *throttle.DenyCondition {
	var room [onStack]byte
	plain, tenant := owners(r)
	b := appendSubscription(room[:0], r, plain, "")
	if c := t.subscription[string(b)]; c != nil {
		return c
	}
	if tenant == "" {
		return nil
	}
	b = appendSubscription(b[:0], r, plain, tenant)
	return t.subscription[string(b)]
}

func appendSubscription(b []byte, r *throttle.Request, owner, tenant string) []byte {
	b = append(append(append(append(b, r.APIContext...), ':'), r.APIVersion...), ':')
	b = append(b, owner...)
	if tenant != "" {
		b = append(append(b, '@'), tenant...)
	}
	b = append(append(b, '-'), r.AppName...)
	return append(append(b, ':'), r.KeyType...)
}
