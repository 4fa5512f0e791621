package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxDepth is how deep objects and arrays may nest. Tokens of real key managers have three levels.
const maxDepth = 12

// decodeObject decodes a JSON object strictly: no member twice in one object, no deeper than maxDepth, valid UTF-8,
// nothing after it. Numbers are json.Number, so that large ones stay exact.
func decodeObject(b []byte) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("is not UTF-8")
	}
	if !json.Valid(b) {
		return nil, errors.New("is not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	t, err := d.Token()
	if err != nil {
		return nil, errors.New("is not JSON")
	}
	if t != json.Delim('{') {
		return nil, errors.New("is not a JSON object")
	}
	m, err := object(d, 1)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("has text after the JSON object")
	}
	return m, nil
}

func object(d *json.Decoder, depth int) (map[string]any, error) {
	m := make(map[string]any, 8)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("is not JSON")
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("has the member %s twice", quote(name))
		}
		if m[name], err = value(d, depth); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return m, err
}

func value(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth++; depth > maxDepth {
		return nil, fmt.Errorf("is nested deeper than %d levels", maxDepth)
	}
	if delim == '{' {
		return object(d, depth)
	}
	list := []any{}
	for d.More() {
		v, err := value(d, depth)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err = d.Token()
	return list, err
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
