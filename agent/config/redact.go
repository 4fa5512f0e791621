package config

import (
	"bytes"
	"fmt"
	"reflect"
)

// Dump is a configuration that may be shown: keys as in the file and in their order, secrets and the passwords of URLs
// as "***". It encodes to JSON.
type Dump struct{ config *Config }

// Redacted returns the configuration for the debug line at start and for GET /api/v1/config.
func (c *Config) Redacted() Dump { return Dump{c} }

// MarshalJSON writes the keys in the order of the reference.
func (d Dump) MarshalJSON() ([]byte, error) {
	if d.config == nil {
		return []byte("null"), nil
	}
	var b bytes.Buffer
	if err := encodeSection(&b, schema(), reflect.ValueOf(*d.config)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// String returns the dump as one line of JSON.
func (d Dump) String() string {
	text, err := d.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// MarshalJSON encodes the redacted form, so that a configuration handed to a logger shows no secret and the names of the
// file.
func (c *Config) MarshalJSON() ([]byte, error) { return c.Redacted().MarshalJSON() }

func encodeSection(b *bytes.Buffer, f *field, v reflect.Value) error {
	b.WriteByte('{')
	for i, c := range f.children {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, "%q:", c.name)
		if err := encodeField(b, c, v.Field(c.index)); err != nil {
			return fmt.Errorf("encode %s: %w", c.path, err)
		}
	}
	b.WriteByte('}')
	return nil
}

func encodeField(b *bytes.Buffer, f *field, v reflect.Value) error {
	switch {
	case f.optional && v.IsNil():
		b.WriteString("null")
		return nil
	case f.optional:
		return encodeSection(b, f, v.Elem())
	case f.kind == takesSection:
		return encodeSection(b, f, v)
	case f.kind == takesSections:
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := encodeSection(b, f, v.Index(i)); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	case f.list && v.Len() == 0:
		b.WriteString("[]")
		return nil
	}
	data, err := marshalPlain(v.Interface())
	if err != nil {
		return err
	}
	b.Write(data)
	return nil
}

// textOf is a scalar as it would be written in the file, without quotes.
func textOf(v reflect.Value) string {
	return fmt.Sprintf("%v", v.Interface())
}
