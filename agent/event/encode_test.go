package event

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
)

// char is a Java char, which both map forms have a type for.
type char uint16

// encodeAMQPMap writes the entries in the given order, as Andes does: the oracle of DecodeAMQPMap. Keys longer than 255
// bytes cannot be written; Andes writes them with a wrapped length.
func encodeAMQPMap(tb testing.TB, m map[string]any, order []string) []byte {
	tb.Helper()
	content := appendAMQPMap(tb, nil, m, order)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(content))), content...)
}

func appendAMQPMap(tb testing.TB, b []byte, m map[string]any, order []string) []byte {
	tb.Helper()
	b = binary.BigEndian.AppendUint32(b, uint32(len(order)))
	for _, key := range order {
		b = append(b, byte(len(key)))
		b = append(b, key...)
		b = appendAMQPValue(tb, b, m[key])
	}
	return b
}

func appendAMQPValue(tb testing.TB, b []byte, v any) []byte {
	tb.Helper()
	switch v := v.(type) {
	case nil:
		return append(b, 0xf0)
	case bool:
		if v {
			return append(b, 0x08, 1)
		}
		return append(b, 0x08, 0)
	case int8:
		return append(b, 0x01, byte(v))
	case int16:
		return binary.BigEndian.AppendUint16(append(b, 0x11), uint16(v))
	case int32:
		return binary.BigEndian.AppendUint32(append(b, 0x21), uint32(v))
	case int64:
		return binary.BigEndian.AppendUint64(append(b, 0x31), uint64(v))
	case float32:
		return binary.BigEndian.AppendUint32(append(b, 0x23), math.Float32bits(v))
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 0x33), math.Float64bits(v))
	case char:
		return append(b, 0x04, byte(v))
	case string:
		b = binary.BigEndian.AppendUint32(append(b, 0x98), uint32(len(v)))
		return append(b, v...)
	case []byte:
		b = binary.BigEndian.AppendUint32(append(b, 0xa0), uint32(len(v)))
		return append(b, v...)
	case map[string]any:
		content := appendAMQPMap(tb, nil, v, slices.Sorted(maps.Keys(v)))
		return append(binary.BigEndian.AppendUint32(append(b, 0xa8), uint32(len(content))), content...)
	case []any:
		content := binary.BigEndian.AppendUint32(nil, uint32(len(v)))
		for _, e := range v {
			content = appendAMQPValue(tb, content, e)
		}
		return append(binary.BigEndian.AppendUint32(append(b, 0xa9), uint32(len(content))), content...)
	}
	tb.Fatalf("no amqp/map type for %T", v)
	return nil
}

// encodeJMSMap writes the legacy form.
func encodeJMSMap(tb testing.TB, m map[string]any, order []string) []byte {
	tb.Helper()
	b := binary.BigEndian.AppendUint32(nil, uint32(len(order)))
	for _, key := range order {
		b = append(append(b, key...), 0)
		switch v := m[key].(type) {
		case nil:
			b = append(b, 11)
		case bool:
			if v {
				b = append(b, 1, 1)
			} else {
				b = append(b, 1, 0)
			}
		case int8:
			b = append(b, 2, byte(v))
		case []byte:
			b = binary.BigEndian.AppendUint32(append(b, 3), uint32(len(v)))
			b = append(b, v...)
		case int16:
			b = binary.BigEndian.AppendUint16(append(b, 4), uint16(v))
		case char:
			b = binary.BigEndian.AppendUint16(append(b, 5), uint16(v))
		case int32:
			b = binary.BigEndian.AppendUint32(append(b, 6), uint32(v))
		case int64:
			b = binary.BigEndian.AppendUint64(append(b, 7), uint64(v))
		case float32:
			b = binary.BigEndian.AppendUint32(append(b, 8), math.Float32bits(v))
		case float64:
			b = binary.BigEndian.AppendUint64(append(b, 9), math.Float64bits(v))
		case string:
			if v == "\x00" { // as a text it would end before it begins: only a character can be this one
				b = append(b, 5, 0, 0)
				break
			}
			b = append(append(append(b, 10), v...), 0)
		default:
			tb.Fatalf("no jms/map-message type for %T", v)
		}
	}
	return b
}

// encodeText writes the envelope of APIM 4.x.
func encodeText(tb testing.TB, m map[string]any) []byte {
	tb.Helper()
	b, err := json.Marshal(map[string]any{"event": map[string]any{"payloadData": m}})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// typed makes the Go value of a JMS type as the samples write it.
func typed(tb testing.TB, kind string, raw json.RawMessage) any {
	tb.Helper()
	if string(raw) == "null" {
		return nil
	}
	read := func(v any) {
		if err := json.Unmarshal(raw, v); err != nil {
			tb.Fatalf("%s %s: %v", kind, raw, err)
		}
	}
	switch kind {
	case "boolean":
		var v bool
		read(&v)
		return v
	case "byte":
		var v int8
		read(&v)
		return v
	case "short":
		var v int16
		read(&v)
		return v
	case "int":
		var v int32
		read(&v)
		return v
	case "long":
		var v int64
		read(&v)
		return v
	case "float":
		var v float32
		read(&v)
		return v
	case "double":
		var v float64
		read(&v)
		return v
	case "char":
		var v string
		read(&v)
		return char([]rune(v)[0])
	case "bytes":
		var v string
		read(&v)
		return unhex(tb, v)
	case "string":
		if raw[0] == '{' {
			var v struct {
				Repeat string
				Times  int
			}
			read(&v)
			out := ""
			for range v.Times {
				out += v.Repeat
			}
			return out
		}
		var v string
		read(&v)
		return v
	}
	tb.Fatalf("no Go type for %s", kind)
	return nil
}

// decodedAs is what a decoder makes of a value that was written as v.
func decodedAs(v any) any {
	switch v := v.(type) {
	case int8:
		return int64(v)
	case int16:
		return int64(v)
	case int32:
		return int64(v)
	case float32:
		return float64(v)
	case char:
		return string(rune(v))
	}
	return v
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b := make([]byte, 0, len(s)/2)
	for i := 0; i+1 < len(s); i += 2 {
		var c byte
		if _, err := fmt.Sscanf(s[i:i+2], "%02x", &c); err != nil {
			tb.Fatal(err)
		}
		b = append(b, c)
	}
	return b
}
