package value

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// String is the value as Java's toString writes it: 1.0, 1.0E7, {a=1}, [1, 2]. Null is "null".
func (v Value) String() string {
	if v.kind == String {
		return v.text
	}
	return string(v.Append(nil))
}

// Append adds the text of the value to a buffer.
func (v Value) Append(b []byte) []byte {
	switch v.kind {
	case Null:
		return append(b, "null"...)
	case String:
		return append(b, v.text...)
	case Int, Long:
		return strconv.AppendInt(b, int64(v.bits), 10)
	case Float:
		return appendDecimal(b, v.Float64(), 32)
	case Double:
		return appendDecimal(b, v.Float64(), 64)
	case Bool:
		return strconv.AppendBool(b, v.bits == 1)
	}
	switch v.obj.kind {
	case bigObj:
		return v.obj.Big.Append(b, 10)
	case mapObj:
		return appendMap(b, v.obj.Map)
	case listObj:
		// A list is a JSON array, whose text is JSON.
		b = append(b, '[')
		for i, e := range v.obj.List {
			if i > 0 {
				b = append(b, ',')
			}
			if e.kind == String {
				b = appendJSONText(b, e.text)
				continue
			}
			b = e.Append(b)
		}
		return append(b, ']')
	}
	return append(b, "null"...)
}

// appendDecimal writes the shortest decimal that reads back, in the form of Double.toString: plain between 1e-3 and 1e7,
// else with an exponent, always with a digit behind the point.
func appendDecimal(b []byte, f float64, bits int) []byte {
	switch {
	case f != f:
		return append(b, "NaN"...)
	case math.IsInf(f, 1):
		return append(b, "Infinity"...)
	case math.IsInf(f, -1):
		return append(b, "-Infinity"...)
	case f == 0:
		if math.Signbit(f) {
			b = append(b, '-')
		}
		return append(b, "0.0"...)
	}
	start := len(b)
	if size := math.Abs(f); size >= 1e-3 && size < 1e7 {
		b = strconv.AppendFloat(b, f, 'f', -1, bits)
		if !slices.Contains(b[start:], '.') {
			b = append(b, ".0"...)
		}
		return b
	}
	var tmp [32]byte
	text := strconv.AppendFloat(tmp[:0], f, 'e', -1, bits) // 1.5e+07, 1e-05
	mantissa, exponent, _ := strings.Cut(string(text), "e")
	b = append(b, mantissa...)
	if !strings.Contains(mantissa, ".") {
		b = append(b, ".0"...)
	}
	b = append(b, 'E')
	n, _ := strconv.Atoi(exponent)
	return strconv.AppendInt(b, int64(n), 10)
}

// appendMap writes a map in the order of a Java HashMap that took its keys one by one.
func appendMap(b []byte, m map[string]Value) []byte {
	b = append(b, '{')
	for i, k := range javaOrder(m) {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, k...)
		b = append(b, '=')
		b = m[k].Append(b)
	}
	return append(b, '}')
}

// javaOrder sorts keys as a HashMap lists them: by bucket of a table that doubles at three quarters full. Keys that share a
// bucket come in the order of their names, where Java has the order of insertion; this only shows in texts of maps.
func javaOrder(m map[string]Value) []string {
	size := uint32(16)
	for len(m) > int(size*3/4) {
		size *= 2
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	bucket := func(k string) uint32 {
		h := uint32(hashCode(k))
		return (h ^ h>>16) & (size - 1)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if x, y := bucket(a), bucket(b); x != y {
			return int(x) - int(y)
		}
		return strings.Compare(a, b)
	})
	return keys
}

// hashCode is String.hashCode: over the UTF-16 units.
func hashCode(s string) int32 {
	h := int32(0)
	for _, u := range units(s) {
		h = 31*h + int32(u)
	}
	return h
}

func appendJSONText(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x20:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = append(b, string(r)...)
		}
	}
	return append(b, '"')
}
