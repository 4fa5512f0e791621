// Package broker publishes the events of an emulated API Manager on a real broker: RabbitMQ over AMQP 0-9-1, or NATS.
// It writes the bodies byte by byte as the manager's own publisher does (contract events.md 2 and 9) and can be told to
// misbehave: swap, repeat, delay, lose or garble messages.
package broker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// The topics of the event hub, in the case in which the manager publishes them.
const (
	TopicThrottleData      = "throttleData"
	TopicTokenRevocation   = "tokenRevocation"
	TopicNotification      = "notification"
	TopicKeyManager        = "keyManager"
	TopicCacheInvalidation = "cacheInvalidation"
	TopicAsyncWebhooks     = "asyncWebhooksData"
)

// Encoding is the form of a message body.
type Encoding string

// Encodings. JSON is what 4.x sends, AMQPMap what 3.2 sends, JMSMap its legacy switch.
const (
	JSON    Encoding = "json"
	AMQPMap Encoding = "amqp-map"
	JMSMap  Encoding = "jms-map"
)

// ContentType is the AMQP content type of the encoding, "" for one that is not known.
func (e Encoding) ContentType() string {
	switch e {
	case JSON:
		return "text/plain"
	case AMQPMap:
		return "amqp/map"
	case JMSMap:
		return "jms/map-message"
	}
	return ""
}

// Field is one attribute of an event. Value is a string, bool, int32, int64 or nil.
type Field struct {
	Name  string
	Value any
}

// Payload is an event in the order of its stream definition.
type Payload []Field

// Encode writes the payload in the encoding.
func (p Payload) Encode(e Encoding) ([]byte, error) {
	switch e {
	case JSON:
		return p.json()
	case AMQPMap:
		return p.amqpMap()
	case JMSMap:
		return p.jmsMap()
	}
	return nil, fmt.Errorf("encoding %q is not known: use %q, %q or %q", e, JSON, AMQPMap, JMSMap)
}

// json writes {"event":{"payloadData":{…}}} without blanks. Unlike the manager's builder it escapes texts, which equals
// what the manager sends wherever its senders escape by themselves.
func (p Payload) json() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`{"event":{"payloadData":{`)
	for i, f := range p {
		if i > 0 {
			b.WriteByte(',')
		}
		writeText(&b, f.Name)
		b.WriteByte(':')
		switch v := f.Value.(type) {
		case nil:
			b.WriteString("null")
		case string:
			writeText(&b, v)
		case bool:
			b.WriteString(strconv.FormatBool(v))
		case int32:
			b.WriteString(strconv.FormatInt(int64(v), 10))
		case int64:
			b.WriteString(strconv.FormatInt(v, 10))
		default:
			return nil, fieldError(f)
		}
	}
	b.WriteString(`}}}`)
	return b.Bytes(), nil
}

// writeText is a JSON text with <, > and & left as they are, as the manager leaves them.
func writeText(b *bytes.Buffer, s string) {
	plain := true
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		b.WriteByte('"')
		b.WriteString(s)
		b.WriteByte('"')
		return
	}
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always encodes into a buffer
	b.Truncate(b.Len() - 1)
}

// amqpMap writes the Qpid 0-10 map (contract events.md 2.3): a size, a count, then key, type and value of each entry.
func (p Payload) amqpMap() ([]byte, error) {
	b := make([]byte, 8, 256)
	for _, f := range p {
		if len(f.Name) > 255 {
			return nil, fmt.Errorf("field name of %d bytes: a map key has at most 255", len(f.Name))
		}
		b = append(b, byte(len(f.Name)))
		b = append(b, f.Name...)
		switch v := f.Value.(type) {
		case nil:
			b = append(b, 0xf0)
		case string:
			b = append(b, 0x98)
			b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
		case bool:
			b = append(b, 0x08, bit(v))
		case int32:
			b = append(b, 0x21)
			b = binary.BigEndian.AppendUint32(b, uint32(v))
		case int64:
			b = append(b, 0x31)
			b = binary.BigEndian.AppendUint64(b, uint64(v))
		default:
			return nil, fieldError(f)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	binary.BigEndian.PutUint32(b[4:], uint32(len(p)))
	return b, nil
}

// jmsMap writes the legacy form (contract events.md 2.4).
func (p Payload) jmsMap() ([]byte, error) {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(p)))
	for _, f := range p {
		b = append(append(b, f.Name...), 0)
		switch v := f.Value.(type) {
		case nil:
			b = append(b, 11)
		case string:
			if strings.IndexByte(v, 0) >= 0 {
				return nil, fmt.Errorf("field %s holds a NUL, which a jms/map-message cannot carry", f.Name)
			}
			b = append(append(append(b, 10), v...), 0)
		case bool:
			b = append(b, 1, bit(v))
		case int32:
			b = binary.BigEndian.AppendUint32(append(b, 6), uint32(v))
		case int64:
			b = binary.BigEndian.AppendUint64(append(b, 7), uint64(v))
		default:
			return nil, fieldError(f)
		}
	}
	return b, nil
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func fieldError(f Field) error {
	return fmt.Errorf("field %s has type %T: a stream has string, bool, int32, int64 or nil", f.Name, f.Value)
}
