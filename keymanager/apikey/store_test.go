package apikey

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gatehouse/keymanager"
)

func TestStoreAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := NewStore()
		model := map[string]keymanager.OpaqueKey{}
		name := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("key", rapid.IntRange(0, 9).Draw(t, "n")) })
		hash := func(value string) string {
			sum := sha256.Sum256([]byte(value))
			return hex.EncodeToString(sum[:])
		}
		row := func(t *rapid.T, value string) keymanager.OpaqueKey {
			h := hash(value)
			if rapid.Bool().Draw(t, "capitals") {
				h = strings.ToUpper(h)
			}
			return keymanager.OpaqueKey{Hash: h, Name: value, Salted: rapid.Bool().Draw(t, "salted"), UpdatedAt: rapid.Int64Range(0, 9).Draw(t, "age")}
		}
		same := func(a *keymanager.OpaqueKey, b keymanager.OpaqueKey) bool {
			b.Hash = strings.ToLower(b.Hash)
			return a != nil && *a == b
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				v := name.Draw(t, "key")
				r := row(t, v)
				before := s.Put(r)
				if was, ok := model[v]; ok != (before != nil) || ok && !same(before, was) {
					t.Fatalf("before %+v, want %+v", before, was)
				}
				model[v] = r
			},
			"delete": func(t *rapid.T) {
				v := name.Draw(t, "key")
				before := s.Delete(hash(v))
				if _, ok := model[v]; ok != (before != nil) {
					t.Fatalf("deleted %+v", before)
				}
				delete(model, v)
			},
			"replace all": func(t *rapid.T) {
				clear(model)
				var list []keymanager.OpaqueKey
				for _, v := range rapid.SliceOfN(name, 0, 6).Draw(t, "keys") {
					r := row(t, v)
					list, model[v] = append(list, r), r
				}
				s.ReplaceAll(list)
			},
			"": func(t *rapid.T) {
				if s.Len() != len(model) {
					t.Fatalf("%d rows, want %d", s.Len(), len(model))
				}
				n := 0
				for r := range s.All() {
					if n++; !same(r, model[r.Name]) {
						t.Fatalf("row %+v, want %+v", r, model[r.Name])
					}
				}
				if n != len(model) {
					t.Fatalf("%d rows walked", n)
				}
				for i := range 10 {
					v := fmt.Sprint("key", i)
					want, ok := model[v]
					if found := s.find(v); (found != nil) != (ok && !want.Salted) || found != nil && (found.gone.Load() || !same(found.row, want)) {
						t.Fatalf("%s found as %+v, want %+v", v, found, want)
					}
					if got := s.Get(hash(v)); (got != nil) != ok {
						t.Fatalf("got %+v", got)
					}
				}
			},
		})
	})
}

func TestCanonicalHash(t *testing.T) {
	const lower = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
	for in, want := range map[string]string{
		lower: lower, strings.ToUpper(lower): lower, " " + lower + "\n": lower,
		"j0NDRmSPa5bfid2pAcUXaxCm2Dlh3TwayItZstwyeqQ=": lower, "j0NDRmSPa5bfid2pAcUXaxCm2Dlh3TwayItZstwyeqQ": lower,
		"9f2c9b7d1c": "9f2c9b7d1c", "": "", lower[:62]: lower[:62], "zz" + lower[2:]: "zz" + lower[2:],
	} {
		if got := keymanager.CanonicalKeyHash(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}
