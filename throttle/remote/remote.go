// Package remote holds the decisions of the traffic manager: which throttle keys are over their limit, until when, and under which
// conditions.
//
// A decision is a key and the end of its window. Decisions of API and resource keys end in "_default" or "_condition_<n>" and may
// carry condition groups; they are found by the key before that suffix (contract events.md 4.1, 6.3, 6.4).
//
// What differs from WSO2's gateways: messages may be reordered, so a release that is older than what is held is ignored, and
// a limit never shortens a longer one; a decision more than 400 days ahead is refused; a newer decision replaces the conditions of the
// same name; all names that match are looked at and the latest end counts.
package remote

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/puzpuzpuz/xsync/v4"

	"gatehouse/throttle"
	"gatehouse/throttle/condition"
)

// maxAhead is how far ahead a window may end, in ms: year windows exist.
const maxAhead = 400 * 24 * 3600 * 1000

// DefaultMaxKeys is the bound on decisions held when none is given: about 250 MB.
const DefaultMaxKeys = 1_000_000

// Options of a Decisions. The zero value is usable.
type Options struct {
	// MaxKeys bounds the decisions held; 0 means DefaultMaxKeys. At the bound, expired ones are removed; if that is not enough new
	// keys are refused and counted, until others expire.
	MaxKeys int
}

// Stats counts what became of the decisions that were applied.
type Stats struct {
	Stored, Released           uint64
	Late                       uint64 // older than what was held
	Expired, NoExpiry, TooLong uint64 // never took effect
	Full                       uint64 // refused at MaxKeys
}

// Decisions holds decisions. It is safe for concurrent use, readers take no lock; create it with New.
type Decisions struct {
	max       int64
	n         atomic.Int64
	lastSweep atomic.Int64

	plain    *xsync.Map[string, *entry]
	resource *xsync.Map[string, *variants]
	// compiled shares condition groups by their text: every user of a user-level policy has decisions of the same groups,
	// and a compiled pattern takes kilobytes.
	compiled *xsync.Map[string, *groups]

	stored, released, late, expired, noExpiry, tooLong, full atomic.Uint64
}

// groups are compiled condition groups; immutable.
type groups struct {
	text  []byte
	list  []condition.Group
	inert string
}

// maxCompiled bounds the texts that are shared; at the bound they are forgotten, decisions keep what they have.
const maxCompiled = 4096

func (d *Decisions) compile(text []byte) *groups {
	if g, ok := d.compiled.Load(view(text)); ok {
		return g
	}
	list, err := condition.Parse(text)
	g := &groups{text: bytes.Clone(text), list: list, inert: condition.Problems(list)}
	if err != nil {
		// Without its conditions a decision for some would throttle all.
		g.inert = err.Error()
	}
	if d.compiled.Size() >= maxCompiled {
		d.compiled.Clear()
	}
	d.compiled.Store(string(text), g)
	return g
}

// entry is one decision; immutable.
type entry struct {
	throttle.Decision
	name   string // "default" or "condition_4"; "" for plain keys
	groups []condition.Group
}

// variants are the live decisions of one resource key, by name; immutable.
type variants struct{ list []*entry }

// Hit is a decision that throttles a request.
type Hit struct {
	Key       string
	Condition string // "default", "condition_4"; "" for plain keys
	ExpiresAt int64  // ms
	Origin    throttle.Origin
}

// New returns an empty Decisions.
func New(o Options) *Decisions {
	if o.MaxKeys <= 0 {
		o.MaxKeys = DefaultMaxKeys
	}
	return &Decisions{
		max:      int64(o.MaxKeys),
		plain:    xsync.NewMap[string, *entry](),
		resource: xsync.NewMap[string, *variants](),
		compiled: xsync.NewMap[string, *groups](),
	}
}

// Split cuts the key of a decision into the resource key and the name of its condition group. name is "" for keys of
// applications, subscriptions and custom policies (events.md 6.3).
func Split(k string) (resource, name string) {
	if !strings.HasPrefix(k, "/") || !strings.Contains(k, ":") {
		return k, ""
	}
	const byDefault, byCondition = "_default", "_condition_"
	if r, ok := strings.CutSuffix(k, byDefault); ok {
		return r, byDefault[1:]
	}
	digits := len(k)
	for digits > 0 && k[digits-1] >= '0' && k[digits-1] <= '9' {
		digits--
	}
	if digits == len(k) || !strings.HasSuffix(k[:digits], byCondition) {
		return k, ""
	}
	cut := digits - len(byCondition)
	return k[:cut], k[cut+1:]
}

// Apply takes a decision into account and says whether anything changed. now is in ms.
func (d *Decisions) Apply(dec throttle.Decision, now int64) (changed bool) {
	if dec.Key == "" {
		return false
	}
	resource, name := Split(dec.Key)
	if !dec.Throttled {
		return d.release(resource, name, dec)
	}
	switch {
	case dec.ExpiresAt <= 0:
		d.noExpiry.Add(1)
		return false
	case dec.ExpiresAt < now:
		d.expired.Add(1)
		return false
	case dec.ExpiresAt-now > maxAhead:
		d.tooLong.Add(1)
		return false
	}
	e := &entry{Decision: dec, name: name}
	e.Inert = ""
	if name != "" {
		if len(dec.Conditions) > 0 {
			g := d.compile(dec.Conditions)
			e.Conditions, e.groups, e.Inert = g.text, g.list, g.inert
		}
	} else {
		e.Conditions = nil
	}
	if name == "" {
		return d.storePlain(e, now)
	}
	return d.storeVariant(resource, e, now)
}

// supersedes says whether e takes the place of old.
func (d *Decisions) supersedes(e, old *entry, now int64) bool {
	if old.ExpiresAt < now {
		return true
	}
	if e.ExpiresAt < old.ExpiresAt {
		d.late.Add(1)
		return false
	}
	return e.ExpiresAt > old.ExpiresAt || !bytes.Equal(e.Conditions, old.Conditions)
}

// room says whether one more key fits, sweeping at most once a second.
func (d *Decisions) room(now int64) bool {
	if d.n.Load() < d.max {
		return true
	}
	if last := d.lastSweep.Load(); now-last >= 1000 || now < last {
		if d.lastSweep.CompareAndSwap(last, now) {
			d.Sweep(now)
		}
	}
	if d.n.Load() < d.max {
		return true
	}
	return false
}

func (d *Decisions) storePlain(e *entry, now int64) (changed bool) {
	fits := d.room(now) // not inside Compute: it may sweep the map
	d.plain.Compute(e.Key, func(old *entry, loaded bool) (*entry, xsync.ComputeOp) {
		switch {
		case loaded && !d.supersedes(e, old, now):
			return old, xsync.CancelOp
		case !loaded && !fits:
			d.full.Add(1)
			return old, xsync.CancelOp
		case !loaded:
			d.n.Add(1)
		}
		changed = true
		return e, xsync.UpdateOp
	})
	if changed {
		d.stored.Add(1)
	}
	return changed
}

func (d *Decisions) storeVariant(resource string, e *entry, now int64) (changed bool) {
	fits := d.room(now)
	d.resource.Compute(resource, func(old *variants, loaded bool) (*variants, xsync.ComputeOp) {
		var list []*entry
		if loaded {
			list = old.list
		}
		i := slices.IndexFunc(list, func(x *entry) bool { return x.name == e.name })
		switch {
		case i >= 0 && !d.supersedes(e, list[i], now):
			return old, xsync.CancelOp
		case i < 0 && !fits:
			d.full.Add(1)
			return old, xsync.CancelOp
		}
		list = slices.Clone(list)
		if i >= 0 {
			list[i] = e
		} else {
			list = append(list, e)
			d.n.Add(1)
		}
		changed = true
		return &variants{list}, xsync.UpdateOp
	})
	if changed {
		d.stored.Add(1)
	}
	return changed
}

// release removes a decision. One whose window ended before the held one is late; one without a window's end cannot be
// compared and releases, as it does in WSO2's gateways.
func (d *Decisions) release(resource, name string, dec throttle.Decision) (changed bool) {
	late := func(e *entry) bool { return dec.ExpiresAt > 0 && dec.ExpiresAt < e.ExpiresAt }
	if name == "" {
		d.plain.Compute(resource, func(old *entry, loaded bool) (*entry, xsync.ComputeOp) {
			if !loaded {
				return old, xsync.CancelOp
			}
			if late(old) {
				d.late.Add(1)
				return old, xsync.CancelOp
			}
			d.n.Add(-1)
			changed = true
			return nil, xsync.DeleteOp
		})
	} else {
		d.resource.Compute(resource, func(old *variants, loaded bool) (*variants, xsync.ComputeOp) {
			if !loaded {
				return old, xsync.CancelOp
			}
			i := slices.IndexFunc(old.list, func(x *entry) bool { return x.name == name })
			if i < 0 {
				return old, xsync.CancelOp
			}
			if late(old.list[i]) {
				d.late.Add(1)
				return old, xsync.CancelOp
			}
			d.n.Add(-1)
			changed = true
			if len(old.list) == 1 {
				return nil, xsync.DeleteOp
			}
			return &variants{slices.Delete(slices.Clone(old.list), i, i+1)}, xsync.UpdateOp
		})
	}
	if changed {
		d.released.Add(1)
	}
	return changed
}

// view reads a key in place. The string must not outlive the call.
func view(k []byte) string {
	return unsafe.String(unsafe.SliceData(k), len(k)) //nolint:gosec // read while the caller holds k, never kept
}

// Lookup says whether a plain key is throttled now.
func (d *Decisions) Lookup(k []byte, now int64) (Hit, bool) {
	if d.n.Load() == 0 || len(k) == 0 {
		return Hit{}, false
	}
	e, ok := d.plain.Load(view(k))
	if !ok {
		return Hit{}, false
	}
	if e.ExpiresAt < now {
		d.removePlain(e)
		return Hit{}, false
	}
	return e.hit(), true
}

func (e *entry) hit() Hit {
	return Hit{Key: e.Key, Condition: e.name, ExpiresAt: e.ExpiresAt, Origin: e.Origin}
}

// LookupResource says whether an API or resource key is throttled now for this request (events.md 6.4). policy are the
// condition groups of the policy that limits it, known or not: they stand in where a decision carries no conditions.
func (d *Decisions) LookupResource(k []byte, r *throttle.Request, policy []condition.Group, sw condition.Switches, now int64) (Hit, bool) {
	if d.n.Load() == 0 || len(k) == 0 {
		return Hit{}, false
	}
	v, ok := d.resource.Load(view(k))
	if !ok {
		return Hit{}, false
	}
	var best, byDefault *entry
	matched := false
	for _, e := range v.list {
		live := e.ExpiresAt >= now
		if e.name == "default" {
			if live {
				byDefault = e
			}
			continue
		}
		if !live || !e.matches(r, policy, sw) {
			continue
		}
		matched = true
		if best == nil || e.ExpiresAt > best.ExpiresAt {
			best = e
		}
	}
	// The default pipeline counts the requests that match no group.
	if !matched && byDefault != nil && !byDefault.excluded(r, policy, sw) {
		best = byDefault
	}
	if best == nil {
		return Hit{}, false
	}
	return best.hit(), true
}

// matches says whether the request belongs to the condition group of the decision.
func (e *entry) matches(r *throttle.Request, policy []condition.Group, sw condition.Switches) bool {
	if e.groups != nil {
		return condition.Any(e.groups, r, sw)
	}
	if e.Inert != "" {
		return false
	}
	for i := range policy {
		if hasNumber(e.name, policy[i].ID) && policy[i].Match(r, sw) {
			return true
		}
	}
	return false
}

// excluded says whether the request is none of the default pipeline.
func (e *entry) excluded(r *throttle.Request, policy []condition.Group, sw condition.Switches) bool {
	if e.groups != nil {
		return condition.Any(e.groups, r, sw)
	}
	if e.Inert != "" {
		return true
	}
	return condition.Any(policy, r, sw)
}

// hasNumber says whether the name is "condition_<id>", without making that text.
func hasNumber(name string, id int64) bool {
	digits, ok := strings.CutPrefix(name, "condition_")
	if !ok || len(digits) == 0 || len(digits) > 18 {
		return false
	}
	var n int64
	for i := range len(digits) {
		n = n*10 + int64(digits[i]-'0')
	}
	return n == id
}

func (d *Decisions) removePlain(e *entry) {
	d.plain.Compute(e.Key, func(old *entry, loaded bool) (*entry, xsync.ComputeOp) {
		if !loaded || old != e {
			return old, xsync.CancelOp
		}
		d.n.Add(-1)
		return nil, xsync.DeleteOp
	})
}

// Sweep removes what has expired and says how many decisions that were. Call it once in a while: expired decisions never
// throttle, they only take room.
func (d *Decisions) Sweep(now int64) int {
	before := d.n.Load()
	d.plain.Range(func(_ string, e *entry) bool {
		if e.ExpiresAt < now {
			d.removePlain(e)
		}
		return true
	})
	dead := func(e *entry) bool { return e.ExpiresAt < now }
	d.resource.Range(func(k string, v *variants) bool {
		if !slices.ContainsFunc(v.list, dead) {
			return true
		}
		d.resource.Compute(k, func(old *variants, loaded bool) (*variants, xsync.ComputeOp) {
			if !loaded {
				return old, xsync.CancelOp
			}
			left := slices.DeleteFunc(slices.Clone(old.list), dead)
			d.n.Add(int64(len(left) - len(old.list)))
			if len(left) == 0 {
				return nil, xsync.DeleteOp
			}
			return &variants{left}, xsync.UpdateOp
		})
		return true
	})
	return int(max(0, before-d.n.Load()))
}

// All returns copies of the decisions held, ordered by key. Expired ones that were not swept yet are among them.
func (d *Decisions) All() []throttle.Decision {
	var list []throttle.Decision
	d.plain.Range(func(_ string, e *entry) bool {
		list = append(list, e.Decision)
		return true
	})
	d.resource.Range(func(_ string, v *variants) bool {
		for _, e := range v.list {
			list = append(list, e.Decision)
		}
		return true
	})
	slices.SortFunc(list, func(a, b throttle.Decision) int { return cmp.Compare(a.Key, b.Key) })
	return list
}

// Len says how many decisions are held.
func (d *Decisions) Len() int { return int(d.n.Load()) }

// Stats returns the counters.
func (d *Decisions) Stats() Stats {
	return Stats{
		Stored: d.stored.Load(), Released: d.released.Load(), Late: d.late.Load(), Expired: d.expired.Load(),
		NoExpiry: d.noExpiry.Load(), TooLong: d.tooLong.Load(), Full: d.full.Load(),
	}
}
