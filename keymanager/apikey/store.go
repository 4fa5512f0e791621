package apikey

import (
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"strings"
	"sync/atomic"

	"github.com/puzpuzpuz/xsync/v4"

	"gatehouse/keymanager"
)

// Store holds the opaque API keys by the hash of each. It is safe for concurrent use; a look-up takes no lock.
type Store struct {
	rows *xsync.Map[string, *record]
}

// record is a row prepared for requests.
type record struct {
	row    *keymanager.OpaqueKey
	limits limits
	// gone is set when the row was replaced or deleted: what was cached of it no longer counts.
	gone atomic.Bool
}

// NewStore returns an empty store.
func NewStore() *Store { return &Store{rows: xsync.NewMap[string, *record]()} }

// Get returns the row of a hash in its canonical form (keymanager.CanonicalKeyHash), nil when there is none.
func (s *Store) Get(hash string) *keymanager.OpaqueKey {
	if r, ok := s.rows.Load(hash); ok {
		return r.row
	}
	return nil
}

// Put adds a row, or replaces the one of the same hash, which it returns.
func (s *Store) Put(row keymanager.OpaqueKey) (before *keymanager.OpaqueKey) {
	row.Hash = keymanager.CanonicalKeyHash(row.Hash)
	next := &record{row: &row, limits: compile(splitList(row.PermittedIP), splitList(row.PermittedReferer))}
	old, loaded := s.rows.LoadAndStore(row.Hash, next)
	if !loaded {
		return nil
	}
	old.gone.Store(true)
	return old.row
}

// Delete removes the row of a hash and returns it, nil when there was none.
func (s *Store) Delete(hash string) (before *keymanager.OpaqueKey) {
	old, loaded := s.rows.LoadAndDelete(hash)
	if !loaded {
		return nil
	}
	old.gone.Store(true)
	return old.row
}

// ReplaceAll makes the list the rows of the store. Rows of one hash: the last counts. No key that is in the old and the new
// list is missing in between.
func (s *Store) ReplaceAll(list []keymanager.OpaqueKey) {
	keep := make(map[string]bool, len(list))
	for i := range list {
		keep[keymanager.CanonicalKeyHash(list[i].Hash)] = true
		s.Put(list[i])
	}
	for hash := range s.rows.All() {
		if !keep[hash] {
			s.Delete(hash)
		}
	}
}

// All returns the rows, in no order. Rows that change meanwhile are seen before or after.
func (s *Store) All() iter.Seq[*keymanager.OpaqueKey] {
	return func(yield func(*keymanager.OpaqueKey) bool) {
		for _, r := range s.rows.All() {
			if !yield(r.row) {
				return
			}
		}
	}
}

// Len returns the number of rows.
func (s *Store) Len() int { return s.rows.Size() }

// find returns the record of a key as a caller sends it.
func (s *Store) find(key string) *record {
	if s.rows.Size() == 0 {
		return nil
	}
	sum := sha256.Sum256([]byte(key))
	r, ok := s.rows.Load(hex.EncodeToString(sum[:]))
	if !ok || r.row.Salted {
		return nil
	}
	return r
}

// allowsAPI asks whether the key is bound to the API. One that is bound to its application is for every API that the
// application has a subscription to.
func (r *record) allowsAPI(o *keymanager.KeyOffer) *keymanager.Refusal {
	row := r.row
	bound := strings.ToUpper(row.Bound)
	if strings.HasPrefix(bound, "APP") || row.APIUUID == "" && row.APIID == 0 && bound == "" {
		return nil
	}
	if row.APIUUID != "" && strings.EqualFold(row.APIUUID, o.APIUUID) {
		return nil
	}
	return refuse(keymanager.CheckAPI, "the api key is not for this API")
}
