// Package store keeps the rows of the API Manager, a million subscriptions and more, and finds for a request the four of
// them that decide it, without a lock and without an allocation.
package store

import (
	"hash/maphash"

	"gatehouse/subscription"
)

// APIKey names an API: by its UUID where it has one, else by its database number.
type APIKey struct {
	UUID string
	ID   int64
}

// MappingKey names a key mapping. KeyManager may be either name of the resident key manager.
type MappingKey struct {
	ConsumerKey string
	KeyManager  string
}

// Store is the four tables and the look-up across them. Its methods may be called concurrently.
type Store struct {
	seed          maphash.Seed
	apis          *Table[APIKey, subscription.API]
	applications  *Table[int64, subscription.Application]
	mappings      *Table[MappingKey, subscription.KeyMapping]
	subscriptions *Table[int64, subscription.Subscription]
}

// The secondary indexes of each table, by position.
const (
	apiByID      = 0
	apiByContext = 1

	applicationByUUID = 0

	subscriptionByIDs   = 0
	subscriptionByUUIDs = 1
)

// New returns an empty store.
func New() *Store {
	s := &Store{seed: maphash.MakeSeed()}
	s.apis = newTable(s.apiSchema())
	s.applications = newTable(s.applicationSchema())
	s.mappings = newTable(s.mappingSchema())
	s.subscriptions = newTable(s.subscriptionSchema())
	return s
}

// APIs returns the table of APIs. An API that was first known by its number alone and later comes with a UUID too, or
// the other way round, stays one row.
func (s *Store) APIs() *Table[APIKey, subscription.API] { return s.apis }

// Applications returns the table of applications, keyed by number, or by what RowKey makes of the
// UUID where there is none.
func (s *Store) Applications() *Table[int64, subscription.Application] { return s.applications }

// KeyMappings returns the table of key mappings. A row without a key manager (3.2) is kept under the empty one.
func (s *Store) KeyMappings() *Table[MappingKey, subscription.KeyMapping] { return s.mappings }

// Subscriptions returns the table of subscriptions, keyed as applications are.
func (s *Store) Subscriptions() *Table[int64, subscription.Subscription] { return s.subscriptions }

// Resolve collects the rows that decide a request (contract rest.md 4.1 steps 5 to 8). Rows are joined by UUID where both
// sides have one, by number otherwise. A row whose application or API is gone is not found: nothing dangling answers.
// It takes no lock and allocates nothing.
func (s *Store) Resolve(consumerKey, keyManager string, api subscription.APIRef) subscription.Facts {
	var f subscription.Facts
	f.API = s.api(api)
	f.Mapping = s.Mapping(consumerKey, keyManager)
	if f.Mapping != nil {
		f.Application = s.applicationOf(f.Mapping)
	}
	if f.API != nil && f.Application != nil {
		f.Subscription = s.subscriptionOf(f.Application, f.API)
	}
	return f
}

// ResolveApplication collects the rows that decide a request whose credential names its application itself, by UUID or by
// number, as API keys do: there is no key mapping among them. Where both are empty, it finds the API alone. It takes no lock
// and allocates nothing.
func (s *Store) ResolveApplication(uuid string, id int64, api subscription.APIRef) subscription.Facts {
	var f subscription.Facts
	f.API = s.api(api)
	f.Application = s.application(uuid, id)
	if f.API != nil && f.Application != nil {
		f.Subscription = s.subscriptionOf(f.Application, f.API)
	}
	return f
}

// Mapping returns the key mapping of a consumer key at a key manager. A row that names no key manager (3.2) matches any,
// but only where no row names this one.
func (s *Store) Mapping(consumerKey, keyManager string) *subscription.KeyMapping {
	if consumerKey == "" {
		return nil
	}
	keyManager = subscription.CanonicalKeyManager(keyManager)
	v := s.mappings.view.Load()
	if m := s.findMapping(v, consumerKey, keyManager); m != nil || keyManager == "" {
		return m
	}
	return s.findMapping(v, consumerKey, "")
}

// API returns the row that a reference leads to: by UUID, else by number, else by context and version.
func (s *Store) API(ref subscription.APIRef) *subscription.API { return s.api(ref) }

func (s *Store) api(ref subscription.APIRef) *subscription.API {
	v := s.apis.view.Load()
	if a := s.findAPI(v, APIKey{UUID: ref.UUID, ID: ref.ID}); a != nil {
		return a
	}
	if ref.Context == "" {
		return nil
	}
	var best *subscription.API
	c := v.secondary[apiByContext].rows(maphash.String(s.seed, ref.Context))
	for a := c.next(); a != nil; a = c.next() {
		if a.Context == ref.Context && a.Version == ref.Version && newerAPI(a, best) {
			best = a
		}
	}
	return best
}

func (s *Store) applicationOf(m *subscription.KeyMapping) *subscription.Application {
	return s.application(m.ApplicationUUID, m.ApplicationID)
}

// application returns the row of an application: by UUID, else by number.
func (s *Store) application(uuid string, id int64) *subscription.Application {
	v := s.applications.view.Load()
	if uuid != "" {
		var best *subscription.Application
		c := v.secondary[applicationByUUID].rows(maphash.String(s.seed, uuid))
		for a := c.next(); a != nil; a = c.next() {
			if a.UUID == uuid && (best == nil || a.ID > best.ID) {
				best = a
			}
		}
		if best != nil {
			return best
		}
	}
	if id == 0 {
		return nil
	}
	a := findApplication(v, id)
	if a != nil && a.UUID != "" && uuid != "" {
		return nil // another application has this number here
	}
	return a
}

func (s *Store) subscriptionOf(app *subscription.Application, api *subscription.API) *subscription.Subscription {
	v := s.subscriptions.view.Load()
	var best *subscription.Subscription
	if app.UUID != "" && api.UUID != "" {
		c := v.secondary[subscriptionByUUIDs].rows(s.hashUUIDs(app.UUID, api.UUID))
		for r := c.next(); r != nil; r = c.next() {
			if r.ApplicationUUID == app.UUID && r.APIUUID == api.UUID && newerSubscription(r, best) {
				best = r
			}
		}
		if best != nil {
			return best
		}
	}
	if app.ID == 0 || api.ID == 0 {
		return nil
	}
	c := v.secondary[subscriptionByIDs].rows(hashIDs(app.ID, api.ID))
	for r := c.next(); r != nil; r = c.next() {
		if r.ApplicationID == app.ID && r.APIID == api.ID && agree(r.ApplicationUUID, app.UUID) && agree(r.APIUUID, api.UUID) &&
			newerSubscription(r, best) {
			best = r
		}
	}
	return best
}

// agree reports whether two UUIDs may be of one entity: where one side has none the numbers decide.
func agree(a, b string) bool { return a == "" || b == "" || a == b }

// newerAPI orders rows that claim one place: the higher number, then the greater UUID, so that the answer does not
// depend on the order in which they came.
func newerAPI(a, than *subscription.API) bool {
	return than == nil || a.ID > than.ID || a.ID == than.ID && a.UUID > than.UUID
}

// newerSubscription is as newerAPI.
func newerSubscription(a, than *subscription.Subscription) bool {
	return than == nil || a.ID > than.ID || a.ID == than.ID && a.UUID > than.UUID
}
