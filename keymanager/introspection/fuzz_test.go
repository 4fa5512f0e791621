package introspection

import (
	"encoding/json"
	"strings"
	"testing"
)

// FuzzRead reads answers as the standard library does too: what we call active is so there, and each claim has the value
// that it has there.
func FuzzRead(f *testing.F) {
	for _, s := range []string{
		`{"active":true}`, `{"active":false}`, `{"active":true,"exp":1764003600,"iat":"1764000000","scope":"a b","aud":["x"],"cnf":{"x5t#S256":"y"}}`,
		`{"active":true,"exp":1e400}`, `{"active":true,"exp":"1.5"}`, `{"active":"true"}`, `{"active":true,"active":false}`, `[]`, ``, `{"active":true,"exp":null,"x":"\u00e9"}`,
		`{"active":true,"exp":" 7 "}`, `{"active":true,"exp":99999999999999}`, `{"active":true,"x":"\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := Read(body)
		if err != nil {
			if a.Active || a.Claims != nil {
				t.Fatalf("an error and %+v", a)
			}
			return
		}
		var want map[string]any
		d := json.NewDecoder(strings.NewReader(string(body)))
		d.UseNumber()
		if err := d.Decode(&want); err != nil {
			t.Fatalf("accepted what is no JSON: %v", err)
		}
		if want["active"] != a.Active {
			t.Fatalf("active %t, the document says %v", a.Active, want["active"])
		}
		if !a.Active {
			return
		}
		delete(want, "active")
		for name, v := range a.Claims {
			w, has := want[name]
			if !has {
				t.Fatalf("claim %q is not in the document", name)
			}
			if isTime := name == "exp" || name == "iat" || name == "nbf"; isTime {
				n, ok := v.(json.Number)
				if s, text := w.(string); text {
					w = json.Number(strings.TrimSpace(s))
				}
				if x, err := n.Float64(); !ok || err != nil || x > latest || w != n {
					t.Fatalf("%s is %v, the document says %v", name, v, w)
				}
				continue
			}
			x, _ := json.Marshal(v)
			y, _ := json.Marshal(w)
			if string(x) != string(y) {
				t.Fatalf("claim %q is %s, the document says %s", name, x, y)
			}
		}
		for name := range want {
			if _, has := a.Claims[name]; !has && name != "exp" && name != "iat" && name != "nbf" {
				t.Fatalf("claim %q is lost", name)
			}
		}
	})
}
