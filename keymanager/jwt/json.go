package jwt

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxDepth is how deep objects and arrays may nest. Tokens of real key managers have three levels.
const maxDepth = 12

// errNoObject is the error of a text that is no JSON object at all.
var errNoObject = errors.New("is not a JSON object")

// DecodeObject decodes a JSON object as strictly as those of tokens: no member twice in one object, at most 12 levels deep,
// valid UTF-8, nothing after it. Numbers are json.Number.
func DecodeObject(b []byte) (map[string]any, error) { return decodeObject(b) }

// decodeObject decodes a JSON object strictly: no member twice in one object, no deeper than maxDepth, valid UTF-8,
// nothing after it. Numbers are json.Number, so that large ones stay exact. The error is errNoObject, or says what of an
// object is not allowed.
//
// The syntax is checked by encoding/json; what then walks it need not look for faults.
func decodeObject(b []byte) (map[string]any, error) {
	if !json.Valid(b) {
		return nil, errNoObject
	}
	if !utf8.Valid(b) {
		return nil, errors.New("is not UTF-8")
	}
	d := decoder{b: b}
	d.blanks()
	if d.b[d.i] != '{' {
		return nil, errNoObject
	}
	return d.object()
}

// decoder walks valid JSON; i is the next byte.
type decoder struct {
	b     []byte
	i     int
	depth int
}

func (d *decoder) blanks() {
	for d.i < len(d.b) {
		switch d.b[d.i] {
		case ' ', '\t', '\r', '\n':
			d.i++
		default:
			return
		}
	}
}

// enter steps over an opening bracket and reports whether the closing one follows at once.
func (d *decoder) enter(closing byte) (empty bool, err error) {
	if d.depth++; d.depth > maxDepth {
		return false, fmt.Errorf("is nested deeper than %d levels", maxDepth)
	}
	d.i++
	d.blanks()
	if d.b[d.i] == closing {
		d.leave()
		return true, nil
	}
	return false, nil
}

// more steps over the comma or the closing bracket, and reports which it was.
func (d *decoder) more() bool {
	d.blanks()
	if d.b[d.i] == ',' {
		d.i++
		return true
	}
	d.leave()
	return false
}

func (d *decoder) leave() {
	d.i++
	d.depth--
}

func (d *decoder) object() (map[string]any, error) {
	m := make(map[string]any)
	empty, err := d.enter('}')
	if empty || err != nil {
		return m, err
	}
	for {
		d.blanks()
		name := d.text()
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("has the member %s twice", quote(name))
		}
		d.blanks()
		d.i++ // the colon
		if m[name], err = d.value(); err != nil {
			return nil, err
		}
		if !d.more() {
			return m, nil
		}
	}
}

func (d *decoder) value() (any, error) {
	d.blanks()
	switch d.b[d.i] {
	case '{':
		return d.object()
	case '[':
		list := []any{}
		empty, err := d.enter(']')
		if empty || err != nil {
			return list, err
		}
		for {
			v, err := d.value()
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			if !d.more() {
				return list, nil
			}
		}
	case '"':
		return d.text(), nil
	case 't':
		d.i += len("true")
		return true, nil
	case 'f':
		d.i += len("false")
		return false, nil
	case 'n':
		d.i += len("null")
		return nil, nil
	}
	from := d.i
	for d.i < len(d.b) {
		c := d.b[d.i]
		if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E' {
			break
		}
		d.i++
	}
	return json.Number(d.b[from:d.i]), nil
}

func (d *decoder) text() string {
	from, plain := d.i, true
	for d.i++; d.b[d.i] != '"'; d.i++ {
		if d.b[d.i] == '\\' {
			plain = false
			d.i++
		}
	}
	d.i++
	if plain {
		return string(d.b[from+1 : d.i-1])
	}
	var s string
	// The text was found valid, so this cannot fail.
	_ = json.Unmarshal(d.b[from:d.i], &s)
	return s
}

// quote prepares what a caller wrote for a refusal: short, in single quotes, and of the characters that RFC 6750 allows in
// error_description.
func quote(s string) string {
	const most = 40
	b := make([]byte, 0, most+5)
	b = append(b, '\'')
	for i := 0; i < len(s) && i < most; i++ {
		c := s[i]
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '\'' {
			c = '?'
		}
		b = append(b, c)
	}
	if len(s) > most {
		b = append(b, "..."...)
	}
	return string(append(b, '\''))
}
