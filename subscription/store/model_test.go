package store

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/subscription"
)

// model is the store as slices that are searched from end to end: too slow to use, and too simple to be wrong.
type model struct {
	apis          []*subscription.API
	applications  []*subscription.Application
	mappings      []*subscription.KeyMapping
	subscriptions []*subscription.Subscription
}

func best[R any](rows []*R, match func(*R) bool, better func(a, b *R) bool) (found *R) {
	for _, r := range rows {
		if match(r) && (found == nil || better(r, found)) {
			found = r
		}
	}
	return found
}

func betterAPI(a, b *subscription.API) bool {
	return a.ID > b.ID || a.ID == b.ID && a.UUID > b.UUID
}

func (m *model) getAPI(k APIKey) *subscription.API {
	if k.UUID != "" {
		if a := best(m.apis, func(a *subscription.API) bool { return a.UUID == k.UUID }, betterAPI); a != nil {
			return a
		}
	}
	return best(m.apis, func(a *subscription.API) bool { return k.ID != 0 && a.ID == k.ID && (k.UUID == "" || a.UUID == "") }, betterAPI)
}

func (m *model) putAPI(row subscription.API) (before *subscription.API) {
	if row.UUID == "" && row.ID != 0 {
		if a := m.getAPI(APIKey{ID: row.ID}); a != nil {
			row.UUID = a.UUID
		}
	}
	before = m.getAPI(APIKey{UUID: row.UUID, ID: row.ID})
	m.apis = slices.DeleteFunc(m.apis, func(a *subscription.API) bool {
		return a == before || row.UUID != "" && row.ID != 0 && a.UUID == "" && a.ID == row.ID
	})
	m.apis = append(m.apis, &row)
	return before
}

func put[R any](rows *[]*R, row R, same func(*R) bool) (before *R) {
	before = best(*rows, same, func(a, b *R) bool { return false })
	*rows = slices.DeleteFunc(*rows, func(r *R) bool { return r == before })
	*rows = append(*rows, &row)
	return before
}

func remove[R any](rows *[]*R, r *R) {
	*rows = slices.DeleteFunc(*rows, func(x *R) bool { return x == r })
}

func (m *model) mapping(ck, km string) *subscription.KeyMapping {
	km = subscription.CanonicalKeyManager(km)
	same := func(km string) func(*subscription.KeyMapping) bool {
		return func(r *subscription.KeyMapping) bool { return r.ConsumerKey == ck && r.KeyManager == km }
	}
	any := func(a, b *subscription.KeyMapping) bool { return false }
	if r := best(m.mappings, same(km), any); r != nil {
		return r
	}
	return best(m.mappings, same(""), any)
}

func (m *model) resolve(ck, km string, ref subscription.APIRef) (f subscription.Facts) {
	f.API = m.getAPI(APIKey{UUID: ref.UUID, ID: ref.ID})
	if f.API == nil && ref.Context != "" {
		f.API = best(m.apis, func(a *subscription.API) bool { return a.Context == ref.Context && a.Version == ref.Version }, betterAPI)
	}
	if f.Mapping = m.mapping(ck, km); f.Mapping == nil {
		return f
	}
	with := m.resolveApplication(f.Mapping.ApplicationUUID, f.Mapping.ApplicationID, ref)
	with.Mapping = f.Mapping
	return with
}

func (m *model) resolveApplication(uuid string, id int64, ref subscription.APIRef) (f subscription.Facts) {
	f.API = m.getAPI(APIKey{UUID: ref.UUID, ID: ref.ID})
	if f.API == nil && ref.Context != "" {
		f.API = best(m.apis, func(a *subscription.API) bool { return a.Context == ref.Context && a.Version == ref.Version }, betterAPI)
	}
	byID := func(a, b *subscription.Application) bool { return a.ID > b.ID }
	if uuid != "" {
		f.Application = best(m.applications, func(a *subscription.Application) bool { return a.UUID == uuid }, byID)
	}
	if f.Application == nil {
		f.Application = best(m.applications, func(a *subscription.Application) bool {
			return id != 0 && a.ID == id && (uuid == "" || a.UUID == "")
		}, byID)
	}
	if f.API == nil || f.Application == nil {
		return f
	}
	api, app := f.API, f.Application
	newer := func(a, b *subscription.Subscription) bool { return a.ID > b.ID || a.ID == b.ID && a.UUID > b.UUID }
	if api.UUID != "" && app.UUID != "" {
		f.Subscription = best(m.subscriptions, func(s *subscription.Subscription) bool {
			return s.APIUUID == api.UUID && s.ApplicationUUID == app.UUID
		}, newer)
	}
	if f.Subscription == nil {
		f.Subscription = best(m.subscriptions, func(s *subscription.Subscription) bool {
			ok := func(a, b string) bool { return a == "" || b == "" || a == b }
			return api.ID != 0 && app.ID != 0 && s.APIID == api.ID && s.ApplicationID == app.ID &&
				ok(s.APIUUID, api.UUID) && ok(s.ApplicationUUID, app.UUID)
		}, newer)
	}
	return f
}

// A small alphabet makes rows meet, replace and contradict each other.
var (
	genID   = rapid.Int64Range(0, 4)
	genUUID = rapid.SampledFrom([]string{"", "u1", "u2", "u3", "u4"})
	genText = rapid.SampledFrom([]string{"a", "b", "c"})
	genKM   = rapid.SampledFrom([]string{"", "Default", "Resident Key Manager", "Corp Keycloak"})

	genAPI = rapid.Custom(func(t *rapid.T) subscription.API {
		a := subscription.API{
			ID: genID.Draw(t, "id"), UUID: genUUID.Draw(t, "uuid"), Context: "/" + genText.Draw(t, "context"),
			Version: genText.Draw(t, "version"), Name: genText.Draw(t, "name"),
		}
		if a.ID == 0 && a.UUID == "" {
			a.ID = 9
		}
		return a
	})
	genApp = rapid.Custom(func(t *rapid.T) subscription.Application {
		return subscription.Application{ID: genID.Draw(t, "id"), UUID: genUUID.Draw(t, "uuid"), Policy: genText.Draw(t, "policy")}
	})
	genMapping = rapid.Custom(func(t *rapid.T) subscription.KeyMapping {
		return subscription.KeyMapping{
			ConsumerKey: "k" + genText.Draw(t, "key"), KeyManager: genKM.Draw(t, "km"),
			ApplicationID: genID.Draw(t, "app"), ApplicationUUID: genUUID.Draw(t, "app uuid"),
		}
	})
	genSub = rapid.Custom(func(t *rapid.T) subscription.Subscription {
		return subscription.Subscription{
			ID: genID.Draw(t, "id"), APIID: genID.Draw(t, "api"), APIUUID: genUUID.Draw(t, "api uuid"),
			ApplicationID: genID.Draw(t, "app"), ApplicationUUID: genUUID.Draw(t, "app uuid"), Policy: genText.Draw(t, "policy"),
			State: subscription.Unblocked,
		}
	})
)

func checkRows[R any](t *rapid.T, name string, got func(func(*R) bool), n int, want []*R, less func(a, b *R) int) {
	rows := []*R{}
	for r := range got {
		rows = append(rows, r)
	}
	want = append([]*R{}, want...)
	slices.SortFunc(rows, less)
	slices.SortFunc(want, less)
	if n != len(want) {
		t.Fatalf("%s: Len is %d, want %d", name, n, len(want))
	}
	if d := cmp.Diff(want, rows); d != "" {
		t.Fatalf("%s: %s", name, d)
	}
}

func byText[R any](a, b *R) int {
	x, y := fmt.Sprint(*a), fmt.Sprint(*b)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// TestStoreAgainstModel drives the store and the model with the same changes and asks both every question.
func TestStoreAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, m := New(), &model{}
		equal := func(t *rapid.T, what string, got, want any) {
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("%s: %s", what, d)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put API": func(t *rapid.T) {
				r := genAPI.Draw(t, "row")
				equal(t, "before", s.APIs().Put(r), m.putAPI(r))
			},
			"delete API": func(t *rapid.T) {
				k := APIKey{UUID: genUUID.Draw(t, "uuid"), ID: genID.Draw(t, "id")}
				want := m.getAPI(k)
				equal(t, "before", s.APIs().Delete(k), want)
				remove(&m.apis, want)
			},
			"replace APIs": func(t *rapid.T) {
				rows := rapid.SliceOfN(genAPI, 0, 6).Draw(t, "rows")
				m.apis = nil
				for _, r := range rows {
					m.putAPI(r)
				}
				s.APIs().ReplaceAll(rows)
			},
			"put application": func(t *rapid.T) {
				r := genApp.Draw(t, "row")
				equal(t, "before", s.Applications().Put(r), put(&m.applications, r, func(x *subscription.Application) bool { return x.Key() == r.Key() }))
			},
			"delete application": func(t *rapid.T) {
				id := subscription.RowKey(genID.Draw(t, "id"), genUUID.Draw(t, "uuid"))
				want := best(m.applications, func(x *subscription.Application) bool { return x.Key() == id }, func(a, b *subscription.Application) bool { return false })
				equal(t, "before", s.Applications().Delete(id), want)
				remove(&m.applications, want)
			},
			"replace applications": func(t *rapid.T) {
				rows := rapid.SliceOfN(genApp, 0, 6).Draw(t, "rows")
				m.applications = nil
				for _, r := range rows {
					put(&m.applications, r, func(x *subscription.Application) bool { return x.Key() == r.Key() })
				}
				s.Applications().ReplaceAll(rows)
			},
			"put mapping": func(t *rapid.T) {
				r := genMapping.Draw(t, "row")
				kept := r
				kept.KeyManager = subscription.CanonicalKeyManager(r.KeyManager)
				equal(t, "before", s.KeyMappings().Put(r), put(&m.mappings, kept, func(x *subscription.KeyMapping) bool {
					return x.ConsumerKey == kept.ConsumerKey && x.KeyManager == kept.KeyManager
				}))
			},
			"delete mapping": func(t *rapid.T) {
				k := MappingKey{ConsumerKey: "k" + genText.Draw(t, "key"), KeyManager: genKM.Draw(t, "km")}
				want := best(m.mappings, func(x *subscription.KeyMapping) bool {
					return x.ConsumerKey == k.ConsumerKey && x.KeyManager == subscription.CanonicalKeyManager(k.KeyManager)
				}, func(a, b *subscription.KeyMapping) bool { return false })
				equal(t, "before", s.KeyMappings().Delete(k), want)
				remove(&m.mappings, want)
			},
			"replace mappings": func(t *rapid.T) {
				rows := rapid.SliceOfN(genMapping, 0, 6).Draw(t, "rows")
				m.mappings = nil
				for _, r := range rows {
					r.KeyManager = subscription.CanonicalKeyManager(r.KeyManager)
					put(&m.mappings, r, func(x *subscription.KeyMapping) bool {
						return x.ConsumerKey == r.ConsumerKey && x.KeyManager == r.KeyManager
					})
				}
				s.KeyMappings().ReplaceAll(rows)
			},
			"put subscription": func(t *rapid.T) {
				r := genSub.Draw(t, "row")
				equal(t, "before", s.Subscriptions().Put(r), put(&m.subscriptions, r, func(x *subscription.Subscription) bool { return x.Key() == r.Key() }))
			},
			"delete subscription": func(t *rapid.T) {
				id := subscription.RowKey(genID.Draw(t, "id"), genUUID.Draw(t, "uuid"))
				want := best(m.subscriptions, func(x *subscription.Subscription) bool { return x.Key() == id }, func(a, b *subscription.Subscription) bool { return false })
				equal(t, "before", s.Subscriptions().Delete(id), want)
				remove(&m.subscriptions, want)
			},
			"replace subscriptions": func(t *rapid.T) {
				rows := rapid.SliceOfN(genSub, 0, 6).Draw(t, "rows")
				m.subscriptions = nil
				for _, r := range rows {
					put(&m.subscriptions, r, func(x *subscription.Subscription) bool { return x.Key() == r.Key() })
				}
				s.Subscriptions().ReplaceAll(rows)
			},
			"": func(t *rapid.T) {
				checkRows(t, "APIs", s.APIs().All(), s.APIs().Len(), m.apis, byText)
				checkRows(t, "applications", s.Applications().All(), s.Applications().Len(), m.applications, byText)
				checkRows(t, "mappings", s.KeyMappings().All(), s.KeyMappings().Len(), m.mappings, byText)
				checkRows(t, "subscriptions", s.Subscriptions().All(), s.Subscriptions().Len(), m.subscriptions, byText)
				for range 4 {
					ck, km := "k"+genText.Draw(t, "key"), genKM.Draw(t, "km")
					ref := subscription.APIRef{
						UUID: genUUID.Draw(t, "uuid"), ID: genID.Draw(t, "id"),
						Context: "/" + genText.Draw(t, "context"), Version: genText.Draw(t, "version"),
					}
					equal(t, fmt.Sprintf("Resolve(%s, %s, %+v)", ck, km, ref), s.Resolve(ck, km, ref), m.resolve(ck, km, ref))
					app, id := genUUID.Draw(t, "application"), genID.Draw(t, "number")
					equal(t, fmt.Sprintf("ResolveApplication(%s, %d, %+v)", app, id, ref), s.ResolveApplication(app, id, ref), m.resolveApplication(app, id, ref))
				}
			},
		})
	})
}

// TestTableAgainstMap drives one table long enough for it to grow, shrink and reuse graves.
func TestTableAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab, want := New().Subscriptions(), map[int64]subscription.Subscription{}
		n := rapid.Int64Range(1, 150).Draw(t, "ids")
		id := rapid.Int64Range(1, n)
		row := func(t *rapid.T) subscription.Subscription {
			return subscription.Subscription{ID: id.Draw(t, "id"), APIID: id.Draw(t, "api"), ApplicationID: id.Draw(t, "app")}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put many": func(t *rapid.T) {
				for range rapid.IntRange(1, 60).Draw(t, "n") {
					r := row(t)
					tab.Put(r)
					want[r.Key()] = r
				}
			},
			"delete many": func(t *rapid.T) {
				for range rapid.IntRange(1, 60).Draw(t, "n") {
					k := id.Draw(t, "id")
					_, had := want[k]
					if got := tab.Delete(k); (got != nil) != had {
						t.Fatalf("deleting %d returned %v", k, got)
					}
					delete(want, k)
				}
			},
			"": func(t *rapid.T) {
				if tab.Len() != len(want) {
					t.Fatalf("%d rows, want %d", tab.Len(), len(want))
				}
				for k, w := range want {
					if r := tab.Get(k); r == nil || *r != w {
						t.Fatalf("row %d is %v", k, r)
					}
				}
				v := tab.view.Load()
				for _, x := range append([]*index[subscription.Subscription]{v.primary}, v.secondary...) {
					if n := len(x.table.Load().buckets) * places; n > 20*(x.live+places) {
						t.Fatalf("%d places for %d rows", n, x.live)
					}
				}
			},
		})
	})
}
