package emulator

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"gatehouse/integration/emulator/broker"
)

// Sample is a recorded message of the event hub (contract events.md 10).
type Sample struct {
	Name  string `json:"name"`
	Topic string `json:"topic"`
	AMQP  struct {
		RoutingKey      string         `json:"routingKey"`
		ContentType     string         `json:"contentType"`
		ContentEncoding string         `json:"contentEncoding"`
		TimestampMillis int64          `json:"timestampMillis"`
		Headers         map[string]any `json:"headers"`
	} `json:"amqp"`
	Body             json.RawMessage `json:"body"`
	BodyText         *string         `json:"bodyText"`
	BodyBase64       string          `json:"bodyBase64"`
	LegacyBodyBase64 string          `json:"legacyBodyBase64"`
	Expect           string          `json:"expect"`
}

// The times of all samples lie within a year of sampleEpoch, in milliseconds; other numbers are no times.
const (
	sampleEpoch = 1764000000000
	sampleSpan  = 366 * 24 * 3600 * 1000
)

// ReadSample reads a sample file.
func ReadSample(file string) (Sample, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Sample{}, fmt.Errorf("read sample: %w", err)
	}
	var s Sample
	if err := json.Unmarshal(b, &s); err != nil {
		return Sample{}, fmt.Errorf("sample %s: %w", file, err)
	}
	return s, nil
}

// Message is the sample as it goes over the broker, with every time in it moved by shift. legacy takes the jms/map-message
// form of a sample that is a map.
func (s Sample) Message(shift time.Duration, legacy bool) (broker.Message, error) {
	m := broker.Message{
		Topic: s.AMQP.RoutingKey, ContentType: s.AMQP.ContentType, ContentEncoding: s.AMQP.ContentEncoding,
		TimestampMillis: s.AMQP.TimestampMillis + shift.Milliseconds(), NoHeaders: len(s.AMQP.Headers) == 0,
	}
	if m.Topic == "" {
		m.Topic = s.Topic
	}
	fail := func(err error) (broker.Message, error) {
		return broker.Message{}, fmt.Errorf("sample %s: %w", s.Name, err)
	}
	text := s.BodyBase64
	switch {
	case s.BodyText != nil:
		m.Body = shiftText([]byte(*s.BodyText), shift)
		return m, nil
	case s.Body != nil:
		var compact bytes.Buffer
		if err := json.Compact(&compact, s.Body); err != nil {
			return fail(err)
		}
		m.Body = shiftText(compact.Bytes(), shift)
		return m, nil
	case legacy:
		if s.LegacyBodyBase64 == "" {
			return fail(fmt.Errorf("it has no jms/map-message form"))
		}
		text, m.ContentType = s.LegacyBodyBase64, broker.JMSMap.ContentType()
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return fail(err)
	}
	m.Body = shiftMap(b, shift)
	return m, nil
}

// Replay publishes a sample on its topic with the properties that it names, its times moved by shift.
func (e *Emulator) Replay(file string, shift time.Duration) (Sample, error) {
	s, err := ReadSample(file)
	if err != nil {
		return s, err
	}
	m, err := s.Message(shift, false)
	if err != nil {
		return s, err
	}
	e.hub.PublishRaw(m)
	return s, nil
}

func isTime(n int64) bool { return n > sampleEpoch-sampleSpan && n < sampleEpoch+sampleSpan }

// shiftText moves the times of a text: bare numbers, and those inside the base64 of an inner event. It works on the
// bytes, so that a body which is no JSON stays as broken as it was.
func shiftText(b []byte, shift time.Duration) []byte {
	if shift == 0 {
		return b
	}
	var out bytes.Buffer
	for i := 0; i < len(b); {
		j := i
		for j < len(b) && b[j] >= '0' && b[j] <= '9' {
			j++
		}
		if j-i == 13 && (i == 0 || !isWord(b[i-1])) && (j == len(b) || !isWord(b[j])) {
			var n int64
			for _, d := range b[i:j] {
				n = n*10 + int64(d-'0')
			}
			if isTime(n) {
				fmt.Fprintf(&out, "%d", n+shift.Milliseconds())
				i = j
				continue
			}
		}
		if j == i && b[i] == '"' { // a text: is it base64 of JSON?
			if end := bytes.IndexByte(b[i+1:], '"'); end > 16 {
				inner := b[i+1 : i+1+end]
				if raw, err := base64.StdEncoding.DecodeString(string(inner)); err == nil && len(raw) > 0 && (raw[0] == '{' || raw[0] == '[') {
					out.WriteByte('"')
					out.WriteString(base64.StdEncoding.EncodeToString(shiftText(raw, shift)))
					out.WriteByte('"')
					i += end + 2
					continue
				}
			}
		}
		if j > i {
			out.Write(b[i:j])
			i = j
			continue
		}
		out.WriteByte(b[i])
		i++
	}
	return out.Bytes()
}

func isWord(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.'
}

// shiftMap moves the eight-byte times of a binary map: behind the type code of a long, because the size of a map and the
// length of a text, with what follows them, can look like a time too. A base64 text inside keeps its length, because a shifted time has
// as many digits, so the lengths around it stay right.
func shiftMap(b []byte, shift time.Duration) []byte {
	if shift == 0 {
		return b
	}
	b = bytes.Clone(b)
	const amqpLong, jmsLong = 0x31, 7
	for i := 1; i+8 <= len(b); i++ {
		if b[i-1] != amqpLong && b[i-1] != jmsLong {
			continue
		}
		if n := int64(binary.BigEndian.Uint64(b[i:])); isTime(n) {
			binary.BigEndian.PutUint64(b[i:], uint64(n+shift.Milliseconds()))
			i += 7
		}
	}
	for i := 0; i < len(b); { // texts in base64: runs of its alphabet
		j := i
		for j < len(b) && isBase64(b[j]) {
			j++
		}
		if j-i > 16 {
			shiftRun(b[i:j], shift)
		}
		i = max(j, i+1)
	}
	return b
}

func isBase64(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '+' || c == '/' || c == '='
}

// shiftRun moves times inside a run of base64 in place; a length byte before it may look like part of it.
func shiftRun(run []byte, shift time.Duration) {
	for skip := range min(4, len(run)) {
		text := run[skip:]
		raw, err := base64.StdEncoding.DecodeString(string(text))
		if err != nil || len(raw) == 0 || raw[0] != '{' && raw[0] != '[' {
			continue
		}
		if moved := base64.StdEncoding.EncodeToString(shiftText(raw, shift)); len(moved) == len(text) {
			copy(text, moved)
		}
		return
	}
}
