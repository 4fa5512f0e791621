package event

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// DecodeMap reads the body of m into the attributes of its stream, whichever of the three encodings it has: JSON text,
// amqp/map or jms/map-message. The content type decides; an unknown or empty one is decided by the first bytes
// (contract events.md 2.1). An envelope {"event":{"payloadData":{…}}} is taken off, and what stands in
// arbitraryDataMap is added, so that both forms of one event give equal maps.
//
// Values are nil, bool, int64, float64, json.Number (JSON text only), string, []byte, []any and map[string]any. They
// hold no reference to the body.
func DecodeMap(m Message) (map[string]any, error) {
	switch encodingOf(m.ContentType, m.Body) {
	case encodingJSON:
		return decodeText(m.Body)
	case encodingAMQPMap:
		return DecodeAMQPMap(m.Body)
	default:
		return DecodeJMSMap(m.Body)
	}
}

type encoding uint8

const (
	encodingJSON encoding = iota
	encodingAMQPMap
	encodingJMSMap
)

func encodingOf(contentType string, body []byte) encoding {
	media, _, _ := strings.Cut(contentType, ";")
	switch media = strings.TrimSpace(media); {
	case strings.EqualFold(media, "text/plain"), strings.EqualFold(media, "application/json"):
		return encodingJSON
	case strings.EqualFold(media, "amqp/map"):
		return encodingAMQPMap
	case strings.EqualFold(media, "jms/map-message"):
		return encodingJMSMap
	}
	if trimmed := trimText(body); len(trimmed) == 0 || trimmed[0] == '{' {
		return encodingJSON
	}
	if len(body) >= 4 && uint64(binary.BigEndian.Uint32(body)) == uint64(len(body)-4) {
		return encodingAMQPMap
	}
	return encodingJMSMap
}

var byteOrderMark = []byte("\xef\xbb\xbf")

func trimText(body []byte) []byte {
	return bytes.TrimSpace(bytes.TrimPrefix(body, byteOrderMark))
}

// decodeText reads the JSON form. The envelope may be missing, wholly or in part.
func decodeText(body []byte) (map[string]any, error) {
	body = trimText(body)
	if len(body) == 0 {
		return nil, errors.New("the text is empty")
	}
	if payload, ok := scanEnvelope(body); ok {
		return payload, nil
	}
	root, err := decodeObject(body)
	if err != nil {
		return nil, err
	}
	envelope, ok := root["event"].(map[string]any)
	if !ok {
		envelope = root
	}
	payload, ok := envelope["payloadData"].(map[string]any)
	if !ok {
		if _, wrapped := root["event"].(map[string]any); wrapped || envelope["payloadData"] != nil {
			return nil, errors.New("event.payloadData is not a JSON object")
		}
		return root, nil
	}
	if extra, ok := envelope["arbitraryDataMap"].(map[string]any); ok {
		for name, value := range extra {
			if _, taken := payload[name]; !taken {
				payload[name] = value
			}
		}
	}
	return payload, nil
}

// decodeObject reads one JSON object and nothing after it. Numbers stay json.Number, so that 2^53+1 survives.
func decodeObject(text []byte) (map[string]any, error) {
	v, err := decodeJSON(text)
	if err != nil {
		return nil, err
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the text is JSON, but not an object: it begins with %q", text[:1])
	}
	return object, nil
}

func decodeJSON(text []byte) (any, error) {
	if v, ok := scanJSON(text); ok {
		return v, nil
	}
	return decodeStandard(text)
}

// decodeStandard is decodeJSON by encoding/json.
func decodeStandard(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("the text is not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the text is not JSON: something stands after its end")
	}
	return v, nil
}
