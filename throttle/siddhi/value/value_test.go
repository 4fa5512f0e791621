package value_test

import (
	"encoding/json"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/throttle/siddhi/value"
)

func TestTextIsThatOfJava(t *testing.T) {
	for _, c := range []struct {
		v    value.Value
		want string
	}{
		{value.Value{}, "null"},
		{value.OfDouble(1), "1.0"},
		{value.OfDouble(1e7), "1.0E7"},
		{value.OfDouble(1e-4), "1.0E-4"},
		{value.OfDouble(0.001), "0.001"},
		{value.OfDouble(9999999.5), "9999999.5"},
		{value.OfDouble(1.5e300), "1.5E300"},
		{value.OfDouble(math.Copysign(0, -1)), "-0.0"},
		{value.OfDouble(math.NaN()), "NaN"},
		{value.OfDouble(math.Inf(-1)), "-Infinity"},
		{value.OfFloat(0.1), "0.1"},
		{value.OfFloat(3.4028235e38), "3.4028235E38"},
		{value.OfLong(-5), "-5"},
		{value.OfBool(true), "true"},
		{value.OfMap(map[string]value.Value{"a": value.OfInt(1)}), "{a=1}"},
		{value.OfList([]value.Value{value.Text("x"), value.JSONNull()}), `["x",null]`},
		{value.OfBig(big.NewInt(12)), "12"},
		{value.JSONNull(), "null"},
	} {
		if got := c.v.String(); got != c.want {
			t.Errorf("want %s, got %s", c.want, got)
		}
	}
}

func TestNumbersAreCutAsInJava(t *testing.T) {
	for _, c := range []struct {
		v    value.Value
		i    int32
		l    int64
		text string
	}{
		{value.OfDouble(2.9), 2, 2, "cut"},
		{value.OfDouble(-2.9), -2, -2, "cut towards zero"},
		{value.OfDouble(math.NaN()), 0, 0, "not a number"},
		{value.OfDouble(1e30), math.MaxInt32, math.MaxInt64, "the largest"},
		{value.OfDouble(-1e30), math.MinInt32, math.MinInt64, "the smallest"},
		{value.OfLong(3000000000), -1294967296, 3000000000, "a long wraps"},
	} {
		if c.v.ToInt() != c.i || c.v.ToLong() != c.l {
			t.Errorf("%s: %d %d", c.text, c.v.ToInt(), c.v.ToLong())
		}
	}
}

func TestEqualIsThatOfJava(t *testing.T) {
	a, _ := value.FromJSON(`{"a":[1,{"b":null}],"c":"x"}`)
	b, _ := value.FromJSON(`{"c":"x","a":[1,{"b":null}]}`)
	c, _ := value.FromJSON(`{"c":"x","a":[1,{"b":2}]}`)
	for _, x := range []struct {
		v, w value.Value
		want bool
	}{
		{a, b, true},
		{a, c, false},
		{value.OfInt(1), value.OfLong(1), false},
		{value.OfDouble(math.NaN()), value.OfDouble(math.NaN()), true},
		{value.OfDouble(0), value.OfDouble(math.Copysign(0, -1)), false},
		{value.Value{}, value.Value{}, true},
		{value.Text("1"), value.OfInt(1), false},
	} {
		if x.v.Equal(x.w) != x.want || x.w.Equal(x.v) != x.want {
			t.Errorf("%v == %v: want %v", x.v, x.w, x.want)
		}
		if x.want != (x.v.Key() == x.w.Key()) {
			t.Errorf("the keys of %v and %v", x.v, x.w)
		}
	}
}

func TestTextsAreCountedInUTF16(t *testing.T) {
	const s = "aé😀b"
	if n := value.Length(s); n != 5 {
		t.Errorf("length %d", n)
	}
	if part, ok := value.Slice(s, 1, 4); !ok || part != "é😀" {
		t.Errorf("%q", part)
	}
	if part, ok := value.Slice(s, 3, 5); !ok || part != "\uFFFDb" {
		t.Errorf("half of a pair: %q", part)
	}
	if _, ok := value.Slice(s, 1, 6); ok {
		t.Error("behind the end")
	}
	if value.Compare("a", "c") != -2 || value.Compare("", "ab") != -2 || value.Compare("\uFFFD", "😀") <= 0 {
		t.Error("compare")
	}
}

// The properties of all samples, and what encoding/json makes of the same text.
func FuzzFromJSON(f *testing.F) {
	files, _ := filepath.Glob("../testdata/*.json")
	if len(files) == 0 {
		f.Fatal("no samples")
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		var v struct {
			BaseEvent map[string]*string
			Events    []struct{ Set map[string]*string }
		}
		if err := json.Unmarshal(data, &v); err != nil {
			f.Fatal(err)
		}
		for _, e := range append(v.Events, struct{ Set map[string]*string }{v.BaseEvent}) {
			if p := e.Set["properties"]; p != nil {
				f.Add(*p)
			}
		}
	}
	f.Add(`{"a":1.5e3,"b":99999999999999999999,"c":[null,true,{"d":"\u00e9"}],"e":-0}`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := value.FromJSON(text)
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var want map[string]any
		if err != nil {
			return
		}
		if err := d.Decode(&want); err != nil {
			t.Fatalf("%q is taken, encoding/json says %v", text, err)
		}
		m, ok := got.Map()
		if !ok || len(m) != len(want) {
			t.Fatalf("%q: %v", text, got)
		}
		for k, w := range want {
			check(t, text, m[k], w)
		}
	})
}

func check(t *testing.T, text string, got value.Value, want any) {
	t.Helper()
	ok := false
	switch w := want.(type) {
	case nil:
		ok = got.Kind() == value.Object && got.String() == "null"
	case bool:
		ok = got.Kind() == value.Bool && got.True() == w
	case string:
		ok = got.Kind() == value.String && got.Str() == w
	case json.Number:
		f, _ := w.Float64()
		switch got.Kind() {
		case value.Int, value.Long:
			n, err := w.Int64()
			ok = err == nil && n == got.Int64() && (got.Kind() == value.Int) == (n == int64(int32(n)))
		case value.Double:
			ok = got.Float64() == f
		case value.String:
			_, err := w.Int64()
			ok = err != nil && got.Str() == string(w)
		}
	case map[string]any:
		m, isMap := got.Map()
		if ok = isMap && len(m) == len(w); ok {
			for k, inner := range w {
				check(t, text, m[k], inner)
			}
		}
	case []any:
		ok = got.Kind() == value.Object
	}
	if !ok {
		t.Fatalf("%q: %v (%s), want %v", text, got, got.Kind(), want)
	}
}
