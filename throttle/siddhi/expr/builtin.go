package expr

import (
	"crypto/rand"
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/value"
)

// functions by name; those without a namespace begin with a small letter here.
var functions = library()

func library() map[string]signature {
	all := map[string]signature{
		"cast": castTo, "convert": convertTo, "coalesce": coalesce("coalesce"), "ifThenElse": ifThenElse,
		"maximum": extreme(false), "minimum": extreme(true), "uUID": uuid,
		"instanceOfString": instanceOf(value.String), "instanceOfInteger": instanceOf(value.Int), "instanceOfLong": instanceOf(value.Long),
		"instanceOfFloat": instanceOf(value.Float), "instanceOfDouble": instanceOf(value.Double), "instanceOfBoolean": instanceOf(value.Bool),
		"map:get": mapGet, "map:create": mapCreate, "map:put": mapPut, "map:isMap": isMap,
		"throttler:bigIntcmp": bigCompare,
	}
	for _, part := range []map[string]signature{texts(), patterns(), numbers(), dates()} {
		maps.Copy(all, part)
	}
	return all
}

func typeNamed(name string) (value.Kind, bool) {
	t := ast.ParseType(strings.ToLower(name))
	return KindOf(t), t != 0 && t != ast.Object
}

const sixTypes = "string, int, long, float, double or bool"

func castTo(c *call) (value.Kind, impl) {
	c.count(2, 2)
	kind, ok := typeNamed(c.text(1, sixTypes))
	if !ok {
		c.refuse("'%s' is not a type; it takes %s", c.args[1].Eval(nil).Str(), sixTypes)
	}
	return kind, nil
}

func ifThenElse(c *call) (value.Kind, impl) {
	c.count(3, 3)
	c.kind(0, value.Bool)
	if c.args[1].Kind != c.args[2].Kind {
		c.refuse("both results must be of one type, found %s and %s", c.args[1].Kind, c.args[2].Kind)
	}
	return c.args[1].Kind, nil
}

func convertTo(c *call) (value.Kind, impl) {
	c.count(2, 2)
	from := c.kind(0, value.String, value.Int, value.Long, value.Float, value.Double, value.Bool)
	to, ok := typeNamed(c.text(1, sixTypes))
	if !ok {
		c.refuse("'%s' is not a type; it takes %s", c.args[1].Eval(nil).Str(), sixTypes)
	}
	return to, func(_ *Frame, a []value.Value) (value.Value, bool) {
		v := a[0]
		switch {
		case v.IsNull():
			return v, true
		case to == value.String:
			return value.Text(v.String()), true
		case v.Kind() != from:
			return v, to == from // Java gives back what it has when the types are equal, else its cast throws
		}
		return convert(v, to), true
	}
}

// convert turns a text, a number or a bool into another type. What does not parse is null.
func convert(v value.Value, to value.Kind) value.Value {
	if v.Kind() == value.String {
		return parse(v.Str(), to)
	}
	if v.Kind() == value.Bool {
		n := int32(0)
		if v.True() {
			n = 1
		}
		if to == value.Bool {
			return v
		}
		v = value.OfInt(n)
	}
	switch to {
	case value.Int:
		return value.OfInt(v.ToInt())
	case value.Long:
		return value.OfLong(v.ToLong())
	case value.Float:
		return value.OfFloat(v.ToFloat())
	case value.Double:
		return value.OfDouble(v.ToDouble())
	}
	return value.OfBool(v.ToDouble() == 1)
}

func parse(s string, to value.Kind) value.Value {
	switch to {
	case value.Int:
		if n, ok := parseWhole(s, 32); ok {
			return value.OfInt(int32(n))
		}
	case value.Long:
		if n, ok := parseWhole(s, 64); ok {
			return value.OfLong(n)
		}
	case value.Float:
		if d, ok := parseDecimal(s, 32); ok {
			return value.OfFloat(float32(d))
		}
	case value.Double:
		if d, ok := parseDecimal(s, 64); ok {
			return value.OfDouble(d)
		}
	case value.Bool:
		return value.OfBool(strings.EqualFold(s, "true"))
	}
	return value.Value{}
}

func parseWhole(s string, bits int) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, bits)
	return n, err == nil
}

// parseDecimal reads what Java's Double.parseDouble reads: blanks around, a suffix d or f, NaN and Infinity in this spelling.
func parseDecimal(s string, bits int) (float64, bool) {
	s = value.Trim(s)
	unsigned := strings.TrimLeft(s, "+-")
	if unsigned == "NaN" && len(s)-len(unsigned) <= 1 {
		return math.NaN(), true
	}
	if unsigned == "Infinity" && len(s)-len(unsigned) <= 1 {
		if s[0] == '-' {
			return math.Inf(-1), true
		}
		return math.Inf(1), true
	}
	hex := strings.HasPrefix(unsigned, "0x") || strings.HasPrefix(unsigned, "0X")
	if n := len(s); n > 1 && strings.IndexByte("dDfF", s[n-1]) >= 0 && (!hex || strings.ContainsAny(s, "pP")) {
		s = s[:n-1]
	}
	if strings.Contains(s, "_") || unsigned == "" || (('0' > unsigned[0] || unsigned[0] > '9') && unsigned[0] != '.') || hex && !strings.ContainsAny(s, "pP") {
		return 0, false
	}
	d, err := strconv.ParseFloat(s, bits)
	// Out of range is infinite or zero, no error.
	return d, err == nil || strings.HasSuffix(err.Error(), strconv.ErrRange.Error())
}

func coalesce(name string) signature {
	return func(c *call) (value.Kind, impl) {
		c.count(1, -1)
		for i := range c.args {
			if c.args[i].Kind != c.args[0].Kind {
				c.refuse("all arguments must be of one type, found %s and %s", c.args[0].Kind, c.args[i].Kind)
			}
		}
		return c.args[0].Kind, func(_ *Frame, a []value.Value) (value.Value, bool) {
			for _, v := range a {
				if !v.IsNull() {
					return v, true
				}
			}
			return value.Value{}, true
		}
	}
}

// extreme is maximum() or minimum(). The real maximum starts from the smallest positive double, so negative numbers give 0;
// that shows in decisions and is kept.
func extreme(least bool) signature {
	return func(c *call) (value.Kind, impl) {
		c.count(1, -1)
		kind := c.kind(0, value.Int, value.Long, value.Float, value.Double)
		for i := range c.args {
			if c.kind(i, value.Int, value.Long, value.Float, value.Double) != kind {
				c.refuse("all arguments must be of one type, found %s and %s", kind, c.args[i].Kind)
			}
		}
		if len(c.args) == 1 {
			return kind, func(_ *Frame, a []value.Value) (value.Value, bool) { return a[0], true }
		}
		return kind, func(_ *Frame, a []value.Value) (value.Value, bool) {
			best := math.SmallestNonzeroFloat64
			if least {
				best = math.MaxFloat64
			}
			for _, v := range a {
				if !v.Kind().Numeric() {
					continue
				}
				if d := v.ToDouble(); d > best != least && d != best {
					best = d
				}
			}
			return convert(value.OfDouble(best), kind), true
		}
	}
}

func instanceOf(kind value.Kind) signature {
	return func(c *call) (value.Kind, impl) {
		c.count(1, 1)
		return value.Bool, func(_ *Frame, a []value.Value) (value.Value, bool) {
			return value.OfBool(a[0].Kind() == kind), true
		}
	}
}

func uuid(c *call) (value.Kind, impl) {
	c.count(0, 0)
	c.impure = true
	return value.String, func(*Frame, []value.Value) (value.Value, bool) {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails, it ends the program instead
		b[6] = b[6]&0x0f | 0x40
		b[8] = b[8]&0x3f | 0x80
		return value.Text(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])), true
	}
}

func mapGet(c *call) (value.Kind, impl) {
	c.count(2, 2)
	return value.Object, func(_ *Frame, a []value.Value) (value.Value, bool) {
		m, ok := a[0].Map()
		if !ok {
			return value.Value{}, false
		}
		if a[1].Kind() != value.String {
			return value.Value{}, true // keys are texts, so another key is never there
		}
		return m[a[1].Str()], true
	}
}

func mapCreate(c *call) (value.Kind, impl) {
	if len(c.args)%2 != 0 {
		c.refuse("takes pairs of a key and a value, found %d arguments", len(c.args))
	}
	for i := 0; i < len(c.args); i += 2 {
		c.kind(i, value.String)
	}
	return value.Object, func(_ *Frame, a []value.Value) (value.Value, bool) {
		m := make(map[string]value.Value, len(a)/2)
		for i := 0; i < len(a); i += 2 {
			m[a[i].String()] = a[i+1]
		}
		return value.OfMap(m), true
	}
}

// mapPut gives a new map; the map that it takes is shared with other policies and stays as it is.
func mapPut(c *call) (value.Kind, impl) {
	c.count(3, 3)
	c.kind(1, value.String)
	return value.Object, func(_ *Frame, a []value.Value) (value.Value, bool) {
		old, ok := a[0].Map()
		if !ok {
			return value.Value{}, false
		}
		m := make(map[string]value.Value, len(old)+1)
		maps.Copy(m, old)
		m[a[1].String()] = a[2]
		return value.OfMap(m), true
	}
}

func isMap(c *call) (value.Kind, impl) {
	c.count(1, 1)
	return value.Bool, func(_ *Frame, a []value.Value) (value.Value, bool) {
		_, ok := a[0].Map()
		return value.OfBool(ok), true
	}
}

func bigCompare(c *call) (value.Kind, impl) {
	c.count(2, 2)
	return value.Int, func(_ *Frame, a []value.Value) (value.Value, bool) {
		x, okX := value.ParseBig(a[0].String())
		y, okY := value.ParseBig(a[1].String())
		if !okX || !okY {
			return value.Value{}, false
		}
		return value.OfInt(int32(x.Cmp(y))), true
	}
}

func numbers() map[string]signature {
	anyNumber := []value.Kind{value.Int, value.Long, value.Float, value.Double}
	one := func(allowed []value.Kind, of func(float64) float64) signature {
		return func(c *call) (value.Kind, impl) {
			c.count(1, 1)
			c.kind(0, allowed...)
			return value.Double, func(_ *Frame, a []value.Value) (value.Value, bool) {
				if !a[0].Kind().Numeric() {
					return value.Value{}, false
				}
				return value.OfDouble(of(a[0].ToDouble())), true
			}
		}
	}
	two := func(of func(x, y float64) float64) signature {
		return func(c *call) (value.Kind, impl) {
			c.count(2, 2)
			c.kind(0, anyNumber...)
			c.kind(1, anyNumber...)
			return value.Double, func(_ *Frame, a []value.Value) (value.Value, bool) {
				if a[0].IsNull() || a[1].IsNull() {
					return value.Value{}, false
				}
				// What a cast let through counts as 0, as in Java.
				var n [2]float64
				for i := range n {
					if a[i].Kind().Numeric() {
						n[i] = a[i].ToDouble()
					}
				}
				return value.OfDouble(of(n[0], n[1])), true
			}
		}
	}
	parser := func(kind value.Kind) signature {
		return func(c *call) (value.Kind, impl) {
			c.kinds(value.String)
			return kind, func(_ *Frame, a []value.Value) (value.Value, bool) {
				if a[0].Kind() != value.String {
					return value.Value{}, false
				}
				v := parse(a[0].Str(), kind)
				return v, !v.IsNull()
			}
		}
	}
	return map[string]signature{
		"math:abs": one(anyNumber, math.Abs), "math:floor": one(anyNumber, math.Floor),
		"math:ceil": one([]value.Kind{value.Float, value.Double}, math.Ceil),
		"math:max":  two(math.Max), "math:min": two(math.Min), "math:round": round,
		"math:parseInt": parser(value.Int), "math:parseLong": parser(value.Long), "math:parseDouble": parser(value.Double),
	}
}

// round gives a long for a double and an int for a float, halves upwards.
func round(c *call) (value.Kind, impl) {
	c.count(1, 1)
	kind := value.Long
	if c.kind(0, value.Float, value.Double) == value.Float {
		kind = value.Int
	}
	return kind, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if a[0].IsNull() {
			return value.Value{}, false
		}
		whole := math.Floor(a[0].Float64())
		if a[0].Float64()-whole >= 0.5 {
			whole++
		}
		switch a[0].Kind() {
		case value.Float:
			return value.OfInt(value.OfDouble(whole).ToInt()), true
		case value.Double:
			return value.OfLong(value.DoubleToLong(whole)), true
		}
		return value.Value{}, true
	}
}
