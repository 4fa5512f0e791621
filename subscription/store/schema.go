package store

import (
	"hash/maphash"
	"reflect"

	"gatehouse/subscription"
)

// hashID spreads a number over 64 bits (the finaliser of SplitMix64). No two numbers have one hash; but 0 and 1 are kept as
// one, see exact.
func hashID(id int64) uint64 {
	z := uint64(id) + 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// exact reports whether a hash by hashID stands for one number alone, so that the row need not be read to compare it.
func exact(h uint64) bool { return h > 1 }

func hashIDs(app, api int64) uint64 { return hashID(int64(hashID(app)) + api) }

func (s *Store) hashUUIDs(app, api string) uint64 {
	return hashID(int64(maphash.String(s.seed, app) + 3*maphash.String(s.seed, api)))
}

func (s *Store) hashMapping(consumerKey, keyManager string) uint64 {
	h := maphash.String(s.seed, consumerKey)
	if keyManager == "" {
		return h
	}
	return h ^ hashID(int64(maphash.String(s.seed, keyManager)))
}

func (s *Store) findMapping(v *view[subscription.KeyMapping], consumerKey, keyManager string) *subscription.KeyMapping {
	c := v.primary.rows(s.hashMapping(consumerKey, keyManager))
	for m := c.next(); m != nil; m = c.next() {
		if m.ConsumerKey == consumerKey && m.KeyManager == keyManager {
			return m
		}
	}
	return nil
}

func findApplication(v *view[subscription.Application], id int64) *subscription.Application {
	h := hashID(id)
	c := v.primary.rows(h)
	for a := c.next(); a != nil; a = c.next() {
		if exact(h) || a.Key() == id {
			return a
		}
	}
	return nil
}

func findSubscription(v *view[subscription.Subscription], id int64) *subscription.Subscription {
	h := hashID(id)
	c := v.primary.rows(h)
	for r := c.next(); r != nil; r = c.next() {
		if exact(h) || r.Key() == id {
			return r
		}
	}
	return nil
}

// findAPI finds an API by UUID, else by number; a row with another UUID than the one asked for is another API.
func (s *Store) findAPI(v *view[subscription.API], k APIKey) *subscription.API {
	if k.UUID != "" {
		c := v.primary.rows(s.hashAPI(k.UUID, 0))
		for a := c.next(); a != nil; a = c.next() {
			if a.UUID == k.UUID {
				return a
			}
		}
	}
	if k.ID == 0 {
		return nil
	}
	var best *subscription.API
	c := v.secondary[apiByID].rows(hashID(k.ID))
	for a := c.next(); a != nil; a = c.next() {
		if a.ID == k.ID && (k.UUID == "" || a.UUID == "") && newerAPI(a, best) {
			best = a
		}
	}
	return best
}

func (s *Store) hashAPI(uuid string, id int64) uint64 {
	if uuid != "" {
		return maphash.String(s.seed, uuid)
	}
	return hashID(id)
}

func (s *Store) apiSchema() schema[APIKey, subscription.API] {
	return schema[APIKey, subscription.API]{
		key: func(r *subscription.API) APIKey {
			if r.UUID != "" {
				return APIKey{UUID: r.UUID}
			}
			return APIKey{ID: r.ID}
		},
		find: s.findAPI,
		hash: func(r *subscription.API) (uint64, bool) { return s.hashAPI(r.UUID, r.ID), true },
		secondary: []func(*subscription.API) (uint64, bool){
			apiByID:      func(r *subscription.API) (uint64, bool) { return hashID(r.ID), r.ID != 0 },
			apiByContext: func(r *subscription.API) (uint64, bool) { return maphash.String(s.seed, r.Context), r.Context != "" },
		},
		rebuilt: true,
		// A row without a UUID is the API that is known under its number.
		canonical: func(v *view[subscription.API], r *subscription.API) {
			if r.UUID == "" && r.ID != 0 {
				if known := s.findAPI(v, APIKey{ID: r.ID}); known != nil {
					r.UUID = known.UUID
				}
			}
		},
		rivals: func(v *view[subscription.API], r *subscription.API) (before, also *subscription.API) {
			before = s.findAPI(v, APIKey{UUID: r.UUID, ID: r.ID})
			if r.UUID != "" && r.ID != 0 && before != nil && before.UUID != "" {
				// It may have been known by its number too, without a UUID.
				if byID := s.findAPI(v, APIKey{UUID: "\x00", ID: r.ID}); byID != before {
					also = byID
				}
			}
			return before, also
		},
		same: func(a, b *subscription.API) bool {
			x, y := *a, *b
			x.Origin, y.Origin = subscription.Origin{}, subscription.Origin{}
			return reflect.DeepEqual(x, y)
		},
		intern: func(r *subscription.API, share, own func(*string)) {
			own(&r.UUID)
			for _, p := range []*string{&r.Provider, &r.Type, &r.Status, &r.Policy, &r.Tenant, &r.Version, &r.Origin.Kind, &r.Origin.ID} {
				share(p)
			}
		},
	}
}

func (s *Store) applicationSchema() schema[int64, subscription.Application] {
	return schema[int64, subscription.Application]{
		key:  (*subscription.Application).Key,
		find: findApplication,
		hash: func(r *subscription.Application) (uint64, bool) { return hashID(r.Key()), true },
		secondary: []func(*subscription.Application) (uint64, bool){
			applicationByUUID: func(r *subscription.Application) (uint64, bool) {
				return maphash.String(s.seed, r.UUID), r.UUID != ""
			},
		},
		canonical: func(*view[subscription.Application], *subscription.Application) {},
		same: func(a, b *subscription.Application) bool {
			x, y := *a, *b
			x.Origin, y.Origin = subscription.Origin{}, subscription.Origin{}
			return reflect.DeepEqual(x, y)
		},
		intern: func(r *subscription.Application, share, own func(*string)) {
			own(&r.UUID)
			own(&r.Name)
			share(&r.Policy)
			share(&r.TokenType)
			share(&r.Tenant)
			share(&r.Owner)
			share(&r.Origin.Kind)
			share(&r.Origin.ID)
		},
	}
}

func (s *Store) mappingSchema() schema[MappingKey, subscription.KeyMapping] {
	return schema[MappingKey, subscription.KeyMapping]{
		key: func(r *subscription.KeyMapping) MappingKey {
			return MappingKey{ConsumerKey: r.ConsumerKey, KeyManager: r.KeyManager}
		},
		find: func(v *view[subscription.KeyMapping], k MappingKey) *subscription.KeyMapping {
			return s.findMapping(v, k.ConsumerKey, subscription.CanonicalKeyManager(k.KeyManager))
		},
		hash: func(r *subscription.KeyMapping) (uint64, bool) {
			return s.hashMapping(r.ConsumerKey, r.KeyManager), true
		},
		canonical: func(_ *view[subscription.KeyMapping], r *subscription.KeyMapping) {
			r.KeyManager = subscription.CanonicalKeyManager(r.KeyManager)
		},
		same: func(a, b *subscription.KeyMapping) bool {
			x, y := *a, *b
			x.Origin, y.Origin = subscription.Origin{}, subscription.Origin{}
			return x == y
		},
		intern: func(r *subscription.KeyMapping, share, own func(*string)) {
			own(&r.ConsumerKey)
			share((*string)(&r.KeyType))
			share(&r.KeyManager)
			share(&r.ApplicationUUID)
			share(&r.Tenant)
			share(&r.Origin.Kind)
			share(&r.Origin.ID)
		},
	}
}

func (s *Store) subscriptionSchema() schema[int64, subscription.Subscription] {
	return schema[int64, subscription.Subscription]{
		key:  (*subscription.Subscription).Key,
		find: findSubscription,
		hash: func(r *subscription.Subscription) (uint64, bool) { return hashID(r.Key()), true },
		secondary: []func(*subscription.Subscription) (uint64, bool){
			subscriptionByIDs: func(r *subscription.Subscription) (uint64, bool) {
				return hashIDs(r.ApplicationID, r.APIID), r.ApplicationID != 0 && r.APIID != 0
			},
			subscriptionByUUIDs: func(r *subscription.Subscription) (uint64, bool) {
				return s.hashUUIDs(r.ApplicationUUID, r.APIUUID), r.ApplicationUUID != "" && r.APIUUID != ""
			},
		},
		canonical: func(*view[subscription.Subscription], *subscription.Subscription) {},
		same: func(a, b *subscription.Subscription) bool {
			x, y := *a, *b
			x.Origin, y.Origin = subscription.Origin{}, subscription.Origin{}
			return x == y
		},
		intern: func(r *subscription.Subscription, share, own func(*string)) {
			own(&r.UUID)
			share(&r.APIUUID)
			share(&r.ApplicationUUID)
			share(&r.Policy)
			share((*string)(&r.State))
			share(&r.Tenant)
			share(&r.Origin.Kind)
			share(&r.Origin.ID)
		},
	}
}
