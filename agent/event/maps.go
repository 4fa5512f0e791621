package event

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// maxDepth bounds maps and lists inside maps. The streams of the API Manager have none at all; the bound keeps a forged
// body from exhausting the stack.
const maxDepth = 16

var errTruncated = errors.New("the body ends inside an entry")

// reader takes values off a body. Every length is checked against what is left, so that a forged one costs nothing.
type reader struct {
	rest []byte
	// skipped is set when a value of unknown type was passed over. The reader may then have lost its place, which only
	// an exact end of the body disproves.
	skipped bool
}

func (r *reader) take(n uint64) ([]byte, error) {
	if n > uint64(len(r.rest)) {
		return nil, fmt.Errorf("%w: %d bytes wanted, %d left", errTruncated, n, len(r.rest))
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b, nil
}

// unsigned reads a big-endian number of 1, 2, 4 or 8 bytes.
func (r *reader) unsigned(width uint64) (uint64, error) {
	b, err := r.take(width)
	if err != nil {
		return 0, err
	}
	switch width {
	case 1:
		return uint64(b[0]), nil
	case 2:
		return uint64(binary.BigEndian.Uint16(b)), nil
	case 4:
		return uint64(binary.BigEndian.Uint32(b)), nil
	default:
		return binary.BigEndian.Uint64(b), nil
	}
}

// sized reads a length of the given width and that many bytes.
func (r *reader) sized(width uint64) ([]byte, error) {
	n, err := r.unsigned(width)
	if err != nil {
		return nil, err
	}
	return r.take(n)
}

// DecodeAMQPMap reads a body of content type amqp/map, the form of APIM 3.2 (contract events.md 2.3). It returns nil
// without an error for the null map (size 0). It is stricter than Andes with lengths: the size field must not exceed the
// body and the entries must lie within it; bytes after the map are ignored, as Andes does.
func DecodeAMQPMap(body []byte) (map[string]any, error) {
	r := reader{rest: body}
	content, err := r.sized(4)
	if err != nil {
		return nil, fmt.Errorf("amqp/map: size: %w", err)
	}
	if len(content) == 0 {
		return nil, nil
	}
	m, err := amqpMap(content, 0)
	if err != nil {
		return nil, fmt.Errorf("amqp/map: %w", err)
	}
	return m, nil
}

// amqpMap reads what follows the size field: a count and that many entries.
func amqpMap(content []byte, depth int) (map[string]any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("maps and lists are nested more than %d deep", maxDepth)
	}
	r := reader{rest: content}
	count, err := r.unsigned(4)
	if err != nil {
		return nil, fmt.Errorf("count: %w", err)
	}
	// An entry has a length and a type, two bytes, at least.
	if count > uint64(len(r.rest)/2) {
		return nil, fmt.Errorf("%w: %d entries announced, %d bytes left", errTruncated, count, len(r.rest))
	}
	m := make(map[string]any, count)
	for i := range count {
		key, err := r.sized(1)
		if err != nil {
			return nil, fmt.Errorf("entry %d: key: %w", i+1, err)
		}
		code, err := r.unsigned(1)
		if err != nil {
			return nil, fmt.Errorf("entry %d: type: %w", i+1, err)
		}
		value, known, err := r.amqpValue(byte(code), depth)
		if err != nil {
			return nil, fmt.Errorf("entry %d: value of type 0x%02x: %w", i+1, code, err)
		}
		if known {
			m[text(key)] = value
		}
	}
	if r.skipped && len(r.rest) > 0 {
		return nil, fmt.Errorf("%d bytes are left after a value of unknown type", len(r.rest))
	}
	return m, nil
}

// amqpValue reads one value. Known is false for a code that no table names; its bytes are passed over by its width
// class.
func (r *reader) amqpValue(code byte, depth int) (value any, known bool, err error) {
	switch code {
	case 0x01: // int8
		n, err := r.unsigned(1)
		return int64(int8(n)), true, err
	case 0x00, 0x02: // uint8
		n, err := r.unsigned(1)
		return int64(n), true, err
	case 0x04: // char
		n, err := r.unsigned(1)
		return string(rune(n)), true, err
	case 0x08: // boolean: Andes tests for a positive signed byte
		n, err := r.unsigned(1)
		return n >= 1 && n <= 127, true, err
	case 0x11: // int16
		n, err := r.unsigned(2)
		return int64(int16(n)), true, err
	case 0x10, 0x12: // uint16
		n, err := r.unsigned(2)
		return int64(n), true, err
	case 0x21, 0x27: // int32, char32
		n, err := r.unsigned(4)
		return int64(int32(n)), true, err
	case 0x20, 0x22: // uint32
		n, err := r.unsigned(4)
		return int64(n), true, err
	case 0x23:
		n, err := r.unsigned(4)
		return float64(math.Float32frombits(uint32(n))), true, err
	case 0x30, 0x31, 0x32, 0x38: // int64, uint64, datetime: Java knows no unsigned one
		n, err := r.unsigned(8)
		return int64(n), true, err
	case 0x33:
		n, err := r.unsigned(8)
		return math.Float64frombits(n), true, err
	case 0x48:
		b, err := r.take(16)
		if err != nil {
			return nil, true, err
		}
		return uuid(b), true, nil
	case 0x84, 0x85, 0x86:
		b, err := r.sized(1)
		return text(b), true, err
	case 0x94, 0x95, 0x96:
		b, err := r.sized(2)
		return text(b), true, err
	case 0x98:
		b, err := r.sized(4)
		return text(b), true, err
	case 0x80:
		return r.bytes(r.sized(1))
	case 0x90:
		return r.bytes(r.sized(2))
	case 0x97, 0xa0, 0xab:
		return r.bytes(r.sized(4))
	case 0x40, 0x50, 0x60, 0x70:
		return r.bytes(r.take(16 << (code>>4 - 4)))
	case 0xc0, 0xc8:
		return r.bytes(r.take(5))
	case 0xd0, 0xd8:
		return r.bytes(r.take(9))
	case 0xf1:
		return []byte{}, true, nil
	case 0xf0:
		return nil, true, nil
	case 0xa8:
		content, err := r.sized(4)
		if err != nil || len(content) == 0 {
			return nil, true, err
		}
		m, err := amqpMap(content, depth+1)
		return m, true, err
	case 0xa9, 0xaa:
		content, err := r.sized(4)
		if err != nil {
			return nil, true, err
		}
		list, err := amqpList(content, code == 0xaa, depth+1)
		return list, true, err
	}
	r.skipped = true
	return nil, false, r.skip(code)
}

// skip passes over the value of an unknown code by the width class in its high nibble.
func (r *reader) skip(code byte) error {
	var err error
	switch class := code >> 4; class {
	case 8, 9, 10:
		_, err = r.sized(1 << (class - 8))
	case 11, 14:
		err = errors.New("no width is known for this type")
	case 12:
		_, err = r.take(5)
	case 13:
		_, err = r.take(9)
	case 15:
	default:
		_, err = r.take(1 << class)
	}
	return err
}

func (r *reader) bytes(b []byte, err error) (any, bool, error) {
	if err != nil {
		return nil, true, err
	}
	return append([]byte{}, b...), true, nil
}

// amqpList reads a list (each value with its type) or an array (one type for all).
func amqpList(content []byte, array bool, depth int) ([]any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("maps and lists are nested more than %d deep", maxDepth)
	}
	r := reader{rest: content}
	if len(content) == 0 {
		return []any{}, nil
	}
	var code uint64
	var err error
	if array {
		if code, err = r.unsigned(1); err != nil {
			return nil, fmt.Errorf("type of an array: %w", err)
		}
	}
	count, err := r.unsigned(4)
	if err != nil {
		return nil, fmt.Errorf("count: %w", err)
	}
	// Values of no bytes at all would let a short body announce billions of them.
	if count > uint64(len(r.rest)) {
		return nil, fmt.Errorf("%w: %d values announced, %d bytes left", errTruncated, count, len(r.rest))
	}
	list := make([]any, 0, count)
	for i := range count {
		if !array {
			if code, err = r.unsigned(1); err != nil {
				return nil, fmt.Errorf("value %d: type: %w", i+1, err)
			}
		}
		value, _, err := r.amqpValue(byte(code), depth)
		if err != nil {
			return nil, fmt.Errorf("value %d of type 0x%02x: %w", i+1, code, err)
		}
		list = append(list, value)
	}
	if r.skipped && len(r.rest) > 0 {
		return nil, fmt.Errorf("%d bytes are left after a value of unknown type", len(r.rest))
	}
	return list, nil
}

// DecodeJMSMap reads a body of content type jms/map-message, the legacy form (contract events.md 2.4). A text cannot
// hold a NUL there; what follows one is read as the next entry, and fails unless the body happens to end with it.
func DecodeJMSMap(body []byte) (map[string]any, error) {
	m, err := jmsMap(body)
	if err != nil {
		return nil, fmt.Errorf("jms/map-message: %w", err)
	}
	return m, nil
}

func jmsMap(body []byte) (map[string]any, error) {
	r := reader{rest: body}
	count, err := r.unsigned(4)
	if err != nil {
		return nil, fmt.Errorf("count: %w", err)
	}
	// An entry has the zero after its key and a type, two bytes, at least.
	if count > uint64(len(r.rest)/2) {
		return nil, fmt.Errorf("%w: %d entries announced, %d bytes left", errTruncated, count, len(r.rest))
	}
	m := make(map[string]any, count)
	for i := range count {
		key, err := r.terminated()
		if err != nil {
			return nil, fmt.Errorf("entry %d: key: %w", i+1, err)
		}
		code, err := r.unsigned(1)
		if err != nil {
			return nil, fmt.Errorf("entry %d: type: %w", i+1, err)
		}
		value, err := r.jmsValue(byte(code))
		if err != nil {
			return nil, fmt.Errorf("entry %d: value of type %d: %w", i+1, code, err)
		}
		m[key] = value
	}
	if r.skipped && len(r.rest) > 0 {
		return nil, fmt.Errorf("%d bytes are left after a value of unknown type", len(r.rest))
	}
	return m, nil
}

func (r *reader) jmsValue(code byte) (any, error) {
	switch code {
	case 1:
		n, err := r.unsigned(1)
		return n != 0, err
	case 2:
		n, err := r.unsigned(1)
		return int64(int8(n)), err
	case 3:
		n, err := r.unsigned(4)
		if err != nil || int32(n) == -1 {
			return nil, err
		}
		b, err := r.take(n) // a length below -1 is larger than any body
		if err != nil {
			return nil, err
		}
		return append([]byte{}, b...), nil
	case 4:
		n, err := r.unsigned(2)
		return int64(int16(n)), err
	case 5:
		n, err := r.unsigned(2)
		return string(rune(n)), err
	case 6:
		n, err := r.unsigned(4)
		return int64(int32(n)), err
	case 7:
		n, err := r.unsigned(8)
		return int64(n), err
	case 8:
		n, err := r.unsigned(4)
		return float64(math.Float32frombits(uint32(n))), err
	case 9:
		n, err := r.unsigned(8)
		return math.Float64frombits(n), err
	case 10:
		return r.terminated()
	case 11:
		return nil, nil
	}
	// Andes reads an unknown type as null and does not know how long its value is.
	r.skipped = true
	return nil, nil
}

// terminated reads UTF-8 up to a zero byte, or to the end.
func (r *reader) terminated() (string, error) {
	b := r.rest
	for i, c := range b {
		if c == 0 {
			b = b[:i]
			break
		}
	}
	r.rest = r.rest[min(len(b)+1, len(r.rest)):]
	if !utf8.Valid(b) {
		return "", errors.New("the text is not UTF-8")
	}
	return string(b), nil
}

// text makes a string of b; what is not UTF-8 becomes U+FFFD, as in Java.
func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return string([]rune(string(b)))
}

func uuid(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
