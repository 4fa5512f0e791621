package emulator

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator/broker"
)

// TestTimesOfMapsAreMovedAlone: the size of this map with its count, and the length of the text with the text's beginning,
// read as eight-byte numbers lie among the times of the samples.
func TestTimesOfMapsAreMovedAlone(t *testing.T) {
	text := strings.Repeat("x", 0x19a)
	fields := func(at int64) broker.Payload {
		return broker.Payload{{Name: "timestamp", Value: at}, {Name: "event", Value: text}, {Name: "n", Value: int32(3)}}
	}
	const at, shift = 1764000000000, 31 * 24 * time.Hour
	for _, form := range []broker.Encoding{broker.AMQPMap, broker.JMSMap} {
		for _, length := range []int{0x19a, 0x195 - 48} { // the latter makes the size of the whole 0x195 or so
			text = strings.Repeat("x", length)
			b, err := fields(at).Encode(form)
			if err != nil {
				t.Fatal(err)
			}
			want, err := fields(at + shift.Milliseconds()).Encode(form)
			if err != nil {
				t.Fatal(err)
			}
			m, err := Sample{BodyBase64: base64.StdEncoding.EncodeToString(b)}.Message(shift, false)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Body, want) {
				t.Errorf("%s with a text of %d bytes:\n got %x\nwant %x", form, length, m.Body, want)
			}
		}
	}
}
