package value

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxJSONDepth bounds nested objects and lists; the properties of a request have one level, rarely two.
const maxJSONDepth = 32

// ErrNotObject is returned for a JSON text that is not one object.
var ErrNotObject = errors.New("not a JSON object")

// FromJSON reads one JSON object as map:createFromJSON does: whole numbers become int if they fit, else long, beyond 64 bits
// text; decimals become double; objects become maps; lists and null stay objects.
func FromJSON(text string) (Value, error) {
	d := jsontext.NewDecoder(strings.NewReader(text), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.PeekKind() != '{' {
		return Value{}, ErrNotObject
	}
	v, err := readJSON(d, 0)
	if err != nil {
		return Value{}, fmt.Errorf("read JSON object: %w", err)
	}
	return v, nil
}

func readJSON(d *jsontext.Decoder, depth int) (Value, error) {
	if depth > maxJSONDepth {
		return Value{}, fmt.Errorf("nested deeper than %d", maxJSONDepth)
	}
	t, err := d.ReadToken()
	if err != nil {
		return Value{}, err
	}
	switch t.Kind() {
	case 'n':
		return JSONNull(), nil
	case 't', 'f':
		return OfBool(t.Bool()), nil
	case '"':
		return Text(t.String()), nil
	case '0':
		return number(t.String()), nil
	case '[':
		list := []Value{}
		for d.PeekKind() != ']' {
			v, err := readJSON(d, depth+1)
			if err != nil {
				return Value{}, err
			}
			list = append(list, v)
		}
		_, err := d.ReadToken()
		return OfList(list), err
	}
	m := map[string]Value{}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return Value{}, err
		}
		key := name.String()
		v, err := readJSON(d, depth+1)
		if err != nil {
			return Value{}, err
		}
		m[key] = v
	}
	_, err = d.ReadToken()
	return OfMap(m), err
}

func number(s string) Value {
	if strings.ContainsAny(s, ".eE") {
		f, _ := strconv.ParseFloat(s, 64)
		return OfDouble(f)
	}
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil:
		return Text(s)
	case n < math.MinInt32 || n > math.MaxInt32:
		return OfLong(n)
	}
	return OfInt(int32(n))
}

// ParseBig reads a decimal integer of any size, as Java's BigInteger does; ok is false for anything else.
func ParseBig(s string) (n *big.Int, ok bool) {
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 || digits == "" || strings.Trim(digits, "0123456789") != "" || len(digits) > 4096 {
		return nil, false
	}
	return new(big.Int).SetString(s, 10)
}
