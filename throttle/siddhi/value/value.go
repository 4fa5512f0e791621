// Package value holds the values that flow through the SiddhiQL engine, with the arithmetic, the text forms and the
// comparisons of the Java types that the real engine uses.
//
// A value knows its own kind, which may differ from the declared type of its column: a cast in SiddhiQL converts nothing.
package value

import (
	"math"
	"math/big"
	"slices"
	"strings"
)

// Kind is what a value is at run time.
type Kind uint8

// The kinds. The zero value is null.
const (
	Null Kind = iota
	String
	Int
	Long
	Float
	Double
	Bool
	Object // a map, a list, a JSON null or a big number
)

var kindNames = [...]string{"null", "string", "int", "long", "float", "double", "bool", "object"}

// String is the name of the kind as SiddhiQL writes types.
func (k Kind) String() string { return kindNames[k] }

// Numeric reports whether values of the kind are numbers.
func (k Kind) Numeric() bool { return Int <= k && k <= Double }

// Value is one value; the zero Value is null. It is small and is passed by value; texts and objects are shared and must not
// be changed. Values are compared with Equal, not with ==.
type Value struct {
	kind Kind
	bits uint64 // the number, or 1 for true
	text string
	obj  *Obj
}

// Obj is what a value of kind Object refers to: exactly one of the fields is in use, none of them for a JSON null.
type Obj struct {
	Map  map[string]Value // keys are texts only
	List []Value
	Big  *big.Int
	kind objKind
}

type objKind uint8

const (
	jsonNull objKind = iota
	mapObj
	listObj
	bigObj
)

// Text returns a string value.
func Text(s string) Value { return Value{kind: String, text: s} }

// OfInt returns an int value.
func OfInt(n int32) Value { return Value{kind: Int, bits: uint64(int64(n))} }

// OfLong returns a long value.
func OfLong(n int64) Value { return Value{kind: Long, bits: uint64(n)} }

// OfFloat returns a float value.
func OfFloat(f float32) Value { return Value{kind: Float, bits: math.Float64bits(float64(f))} }

// OfDouble returns a double value.
func OfDouble(f float64) Value { return Value{kind: Double, bits: math.Float64bits(f)} }

// OfBool returns a bool value.
func OfBool(b bool) Value {
	if b {
		return Value{kind: Bool, bits: 1}
	}
	return Value{kind: Bool}
}

// OfMap returns a map value; the map belongs to it.
func OfMap(m map[string]Value) Value { return Value{kind: Object, obj: &Obj{kind: mapObj, Map: m}} }

// OfList returns a list value; the list belongs to it.
func OfList(l []Value) Value { return Value{kind: Object, obj: &Obj{kind: listObj, List: l}} }

// OfBig returns a number of any size; it belongs to the value.
func OfBig(n *big.Int) Value { return Value{kind: Object, obj: &Obj{kind: bigObj, Big: n}} }

var theJSONNull = &Obj{kind: jsonNull}

// JSONNull returns the null of a JSON text, which is an object and not null.
func JSONNull() Value { return Value{kind: Object, obj: theJSONNull} }

// Kind is what the value is.
func (v Value) Kind() Kind { return v.kind }

// IsNull reports whether the value is null.
func (v Value) IsNull() bool { return v.kind == Null }

// Str is the text of a string value, "" for any other.
func (v Value) Str() string { return v.text }

// True reports whether the value is the bool true.
func (v Value) True() bool { return v.kind == Bool && v.bits == 1 }

// Int64 is the number of an int or a long, 0 for any other kind.
func (v Value) Int64() int64 {
	if v.kind == Int || v.kind == Long {
		return int64(v.bits)
	}
	return 0
}

// Float64 is the number of a float or a double, 0 for any other kind.
func (v Value) Float64() float64 {
	if v.kind == Float || v.kind == Double {
		return math.Float64frombits(v.bits)
	}
	return 0
}

// Map is the content of a map, nil for any other value.
func (v Value) Map() (m map[string]Value, ok bool) {
	if v.kind != Object || v.obj.kind != mapObj {
		return nil, false
	}
	return v.obj.Map, true
}

// ToInt converts any number as Java's intValue does: longs are cut, decimals go to the nearest int that fits.
func (v Value) ToInt() int32 {
	if v.kind == Float || v.kind == Double {
		return doubleToInt(v.Float64())
	}
	return int32(int64(v.bits))
}

// ToLong converts any number as Java's longValue does.
func (v Value) ToLong() int64 {
	if v.kind == Float || v.kind == Double {
		return DoubleToLong(v.Float64())
	}
	return int64(v.bits)
}

// ToFloat converts any number as Java's floatValue does.
func (v Value) ToFloat() float32 {
	if v.kind == Float || v.kind == Double {
		return float32(v.Float64())
	}
	return float32(int64(v.bits))
}

// ToDouble converts any number as Java's doubleValue does.
func (v Value) ToDouble() float64 {
	if v.kind == Float || v.kind == Double {
		return v.Float64()
	}
	return float64(int64(v.bits))
}

func doubleToInt(f float64) int32 {
	switch {
	case f != f:
		return 0
	case f >= math.MaxInt32:
		return math.MaxInt32
	case f <= math.MinInt32:
		return math.MinInt32
	}
	return int32(f)
}

// DoubleToLong converts as Java does: not a number is 0, what does not fit is the nearest long.
func DoubleToLong(f float64) int64 {
	switch {
	case f != f:
		return 0
	case f >= math.MaxInt64:
		return math.MaxInt64
	case f <= math.MinInt64:
		return math.MinInt64
	}
	return int64(f)
}

// Equal is Java's equals: the same kind and the same content. Null equals null.
func (v Value) Equal(w Value) bool {
	if v.kind != w.kind {
		return false
	}
	switch v.kind {
	case String:
		return v.text == w.text
	case Float, Double:
		a, b := v.Float64(), w.Float64()
		return v.bits == w.bits || a != a && b != b
	case Object:
		return v.obj.equal(w.obj)
	}
	return v.bits == w.bits
}

func (o *Obj) equal(p *Obj) bool {
	if o == p {
		return true
	}
	if o.kind != p.kind {
		return false
	}
	switch o.kind {
	case mapObj:
		if len(o.Map) != len(p.Map) {
			return false
		}
		for k, v := range o.Map {
			w, ok := p.Map[k]
			if !ok || !v.Equal(w) {
				return false
			}
		}
		return true
	case listObj:
		return slices.EqualFunc(o.List, p.List, Value.Equal)
	case bigObj:
		return o.Big.Cmp(p.Big) == 0
	}
	return true
}

// Clone returns a value whose text shares no memory with the original.
func (v Value) Clone() Value {
	v.text = strings.Clone(v.text)
	return v
}

// Key is a form of the value that == compares as Equal does, to be a key of a Go map.
func (v Value) Key() Value {
	if v.kind == Object {
		return Value{kind: Object, text: v.String()}
	}
	return v
}
