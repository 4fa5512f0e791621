package value

import (
	"strings"
	"unicode/utf16"
)

// Java counts and compares texts in UTF-16 units. Texts of ASCII, nearly all there are, take a short way.

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func units(s string) []uint16 { return utf16.Encode([]rune(s)) }

// Length is the number of UTF-16 units.
func Length(s string) int {
	if ascii(s) {
		return len(s)
	}
	n := 0
	for _, r := range s {
		n += max(1, utf16.RuneLen(r))
	}
	return n
}

// Slice is Java's substring(from, to) in UTF-16 units; ok is false when the bounds are not within the text. Half of a pair
// that a bound cuts becomes U+FFFD.
func Slice(s string, from, to int) (part string, ok bool) {
	if from < 0 || to < from {
		return "", false
	}
	if ascii(s) {
		if to > len(s) {
			return "", false
		}
		return s[from:to], true
	}
	u := units(s)
	if to > len(u) {
		return "", false
	}
	return string(utf16.Decode(u[from:to])), true
}

// Compare is Java's compareTo: the difference of the first units that differ, else that of the lengths.
func Compare(a, b string) int {
	if ascii(a) && ascii(b) {
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				return int(a[i]) - int(b[i])
			}
		}
		return len(a) - len(b)
	}
	x, y := units(a), units(b)
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return int(x[i]) - int(y[i])
		}
	}
	return len(x) - len(y)
}

// Offset is the byte offset of a unit in a text; ok is false when there is none.
func Offset(s string, unit int) (offset int, ok bool) {
	head, ok := Slice(s, 0, unit)
	return len(head), ok
}

// Trim is Java's trim: characters up to the blank go.
func Trim(s string) string { return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' }) }
