package backendjwt

import (
	"bytes"
	"crypto/sha256"
	"math"
	"slices"
	"time"
)

// ring holds the published keys: those that have signed, the one that signs, and those that will, in the order in which they
// begin to.
type ring struct {
	keys []member
	now  *key // that signs
}

// member is a published key.
type member struct {
	key *key
	// public is when it has been published for long enough to sign.
	public time.Time
	// signs is when it begins to sign.
	signs time.Time
	// until is when it is let go; zero while it signs or is to sign.
	until time.Time
}

// maxWaiting bounds the keys that wait to sign: of more the newest but one goes.
const maxWaiting = 8

// add publishes a key that may sign from a time on, and returns when it will. A known key keeps its own time; the keys that
// were to sign after it are let go, for whoever brings a key back does not want the others.
func (r *ring) add(k *key, public time.Time) time.Time {
	if i := slices.IndexFunc(r.keys, func(m member) bool { return m.key.id == k.id }); i >= 0 {
		m := r.keys[i]
		// What the file says beside the key may have changed, such as its certificate. What was signed stays good.
		if m.key.head != k.head {
			k.lastExpiry.Store(m.key.lastExpiry.Load())
			if r.now == m.key {
				r.now = k
			}
			m.key = k
		}
		if m.key != r.now && !m.until.IsZero() {
			m.signs, m.until = m.public, time.Time{}
		}
		// Keys that have not signed yet and are not this one go; this one comes last, to be the next that signs.
		rest := make([]member, 0, len(r.keys))
		for j, o := range r.keys {
			if j != i && (o.key == r.now || !o.until.IsZero()) {
				rest = append(rest, o)
			}
		}
		r.keys = append(rest, m)
		return m.signs
	}
	waiting := 0
	for _, m := range r.keys {
		if m.key != r.now && m.until.IsZero() {
			waiting++
		}
	}
	if waiting >= maxWaiting {
		r.keys = r.keys[:len(r.keys)-1]
	}
	r.keys = append(r.keys, member{key: k, public: public, signs: public})
	return public
}

// startAt lets the only key sign from a time on.
func (r *ring) startAt(now time.Time) time.Time {
	r.keys[0].public, r.keys[0].signs = now, now
	return now
}

// advance returns the key that signs at a time and when that may change, in ns since the epoch. The last key whose time has
// come signs; what signed before stays until everything that it can have signed, with a life of its own or the given one, is
// over, and for keepAfter.
func (r *ring) advance(now time.Time, life, keepAfter time.Duration) (*key, int64) {
	signs := 0
	for i, m := range r.keys {
		if m.until.IsZero() && !m.signs.After(now) {
			signs = i
		}
	}
	r.now = r.keys[signs].key
	kept := r.keys[:0]
	next := int64(math.MaxInt64)
	for i, m := range r.keys {
		switch {
		case i == signs:
		case i < signs && m.until.IsZero():
			m.until = now.Add(life + keepAfter)
			if last := time.Unix(m.key.lastExpiry.Load(), 0).Add(keepAfter); last.After(m.until) {
				m.until = last
			}
		}
		switch {
		case !m.until.IsZero() && !m.until.After(now):
			continue
		case !m.until.IsZero():
			next = min(next, m.until.UnixNano())
		case i > signs:
			next = min(next, m.signs.UnixNano())
		}
		kept = append(kept, m)
	}
	clear(r.keys[len(kept):])
	r.keys = kept
	return r.now, next
}

// set returns the public keys as a key set: the one that signs first, then those to come, then those that were.
func (r *ring) set() []byte {
	order := slices.Clone(r.keys)
	rank := func(m member) int {
		switch {
		case m.key == r.now:
			return 0
		case m.until.IsZero():
			return 1
		}
		return 2
	}
	slices.SortStableFunc(order, func(a, b member) int { return rank(a) - rank(b) })
	var list [][]byte
	for _, m := range order {
		if m.key.public != nil {
			list = append(list, m.key.public)
		}
	}
	out := append([]byte(`{"keys":[`), bytes.Join(list, []byte(","))...)
	return append(out, "]}"...)
}

func digest(data []byte) [32]byte { return sha256.Sum256(data) }
