package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recordedMap is a file of testdata/events-binary: a map and what Andes' own classes made of it.
type recordedMap struct {
	ID     string           `json:"id"`
	Topic  *string          `json:"topic"`
	Fields []mapField       `json:"fields"`
	Forms  map[string]*form `json:"forms"`
}

type form struct {
	ContentType string `json:"contentType"`
	SHA256      string `json:"sha256"`
	Hex         string `json:"hex"`
	Decoded     struct {
		Equal bool     `json:"equalToFields"`
		Order []string `json:"decodedOrder"`
		Error string   `json:"error"`
	} `json:"decodedByTheSameClass"`
}

func recordedMaps(tb testing.TB) []recordedMap {
	tb.Helper()
	files, err := filepath.Glob("testdata/events-binary/*.json")
	if err != nil {
		tb.Fatal(err)
	}
	var all []recordedMap
	for _, file := range files {
		var r recordedMap
		readJSON(tb, file, &r)
		if r.Forms != nil {
			all = append(all, r)
		}
	}
	if len(all) != 21 {
		tb.Fatalf("testdata/events-binary holds %d recorded maps, want 21", len(all))
	}
	return all
}

// bodyOf is the recorded body; one too long for its file is written anew and must have the recorded sum.
func (r recordedMap) bodyOf(tb testing.TB, f *form) []byte {
	tb.Helper()
	body := unhex(tb, f.Hex)
	if f.Hex == "" {
		m := map[string]any{}
		for _, field := range r.Fields {
			m[field.Name] = typed(tb, field.Type, field.Value)
		}
		if f.ContentType == "amqp/map" {
			body = encodeAMQPMap(tb, m, f.Decoded.Order)
		} else {
			body = encodeJMSMap(tb, m, f.Decoded.Order)
		}
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != f.SHA256 {
		tb.Fatalf("%s as %s: the body has not the recorded sum", r.ID, f.ContentType)
	}
	return body
}

func TestRecordedMapsDecodeToTheirFields(t *testing.T) {
	for _, r := range recordedMaps(t) {
		written, want := map[string]any{}, map[string]any{}
		for _, field := range r.Fields {
			written[field.Name] = typed(t, field.Type, field.Value)
			want[field.Name] = decodedAs(written[field.Name])
		}
		for _, f := range r.Forms {
			t.Run(r.ID+" as "+f.ContentType, func(t *testing.T) {
				body := r.bodyOf(t, f)
				got, err := DecodeMap(Message{ContentType: f.ContentType, Body: body})
				if !f.Decoded.Equal {
					// Andes gives an error, or without one a map that lacks what was sent.
					if err == nil {
						t.Errorf("decoded to %v, want an error", got)
					}
					return
				}
				if diff := cmp.Diff(want, got); err != nil || diff != "" {
					t.Errorf("%v (-fields +decoded):\n%s", err, diff)
				}
				encoded := encodeAMQPMap
				if f.ContentType != "amqp/map" {
					encoded = encodeJMSMap
				}
				if !bytes.Equal(encoded(t, written, f.Decoded.Order), body) {
					t.Error("the encoder of these tests does not write what Andes writes")
				}
			})
		}
		if r.Topic == nil {
			continue
		}
		// The three forms of a message give the same event.
		m := Message{Topic: *r.Topic, ContentType: "text/plain", Timestamp: 1764000000000, Body: encodeText(t, written)}
		twin, err := Decode(m)
		if err != nil {
			t.Errorf("%s as text: %v", r.ID, err)
		}
		for _, f := range r.Forms {
			m.ContentType, m.Body = f.ContentType, r.bodyOf(t, f)
			got, err := Decode(m)
			if diff := cmp.Diff(twin, got); err != nil || diff != "" {
				t.Errorf("%s as %s: %v (-text +map):\n%s", r.ID, f.ContentType, err, diff)
			}
		}
	}
}

// TestDecoderCases gives the decoders the bodies that were given to Andes' own. Where we are stricter the case says why;
// everything else gives the same values.
func TestDecoderCases(t *testing.T) {
	stricter := map[string]string{
		"dec-size-too-small":   "the second half of an entry lies outside the map",
		"dec-size-too-large":   "the size is larger than the body: the body is cut off",
		"dec-array":            "the size of the array is larger than what is left of the body",
		"dec-jms-unknown-type": "a value of unknown length is followed by something",
	}
	// Andes runs into a null pointer later on; we hand over the null map, which Decode refuses.
	null := map[string]bool{"dec-null-map": true}
	// Andes fails; the width of the code is known, and the body ends where it must.
	tolerant := map[string]map[string]any{"dec-unknown-code": {}}
	var file struct {
		Cases []struct {
			ID          string
			ContentType string
			Hex         string
			Result      struct {
				Map     json.RawMessage
				Error   string
				Entries []struct {
					Name     string
					JavaType string
					Value    json.RawMessage
				}
			}
		}
	}
	readJSON(t, "testdata/events-binary/decoder-cases.json", &file)
	if len(file.Cases) != 30 {
		t.Errorf("%d cases, want 30", len(file.Cases))
	}
	for _, c := range file.Cases {
		t.Run(c.ID, func(t *testing.T) {
			m := Message{Topic: "throttleData", ContentType: c.ContentType, Body: unhex(t, c.Hex)}
			got, err := DecodeMap(m)
			_, isStricter := stricter[c.ID]
			switch {
			case null[c.ID]:
				if _, decodeErr := Decode(m); got != nil || err != nil || decodeErr == nil {
					t.Errorf("%v, %v, %v, want the null map, and of Decode an error", got, err, decodeErr)
				}
			case tolerant[c.ID] != nil:
				if diff := cmp.Diff(tolerant[c.ID], got); err != nil || diff != "" {
					t.Errorf("%v\n%s", err, diff)
				}
			case isStricter || c.Result.Error != "":
				if err == nil {
					t.Errorf("decoded to %v, want an error", got)
				}
			default:
				want := map[string]any{}
				for _, e := range c.Result.Entries {
					want[e.Name] = javaValue(t, e.JavaType, e.Value)
				}
				if diff := cmp.Diff(want, got); err != nil || diff != "" {
					t.Errorf("%v (-Andes +ours):\n%s", err, diff)
				}
			}
		})
	}
}

func javaValue(t *testing.T, javaType string, raw json.RawMessage) any {
	t.Helper()
	var text string
	switch javaType {
	case "null":
		return nil
	case "Boolean":
		return typed(t, "boolean", raw)
	case "Short", "Integer", "Long", "Byte":
		return typed(t, "long", json.RawMessage(strings.Trim(string(raw), `"`)))
	}
	if err := json.Unmarshal(raw, &text); err != nil {
		t.Fatal(err)
	}
	switch text {
	case "{x=true}":
		return map[string]any{"x": true}
	case "[true]":
		return []any{true}
	case "[1, 2]":
		return []any{int64(1), int64(2)}
	}
	if javaType == "byte[]" {
		return append([]byte{}, unhex(t, text)...)
	}
	return text
}

// TestForgedLengthsAreRefused wants an error, and no memory taken, of bodies that announce more than they hold.
func TestForgedLengthsAreRefused(t *testing.T) {
	deep := []byte{0xf0}
	for range 40 { // lists in lists
		content := append([]byte{0, 0, 0, 1}, deep...)
		deep = append([]byte{0xa9, 0, 0, 0, byte(len(content))}, content...)
	}
	nested := append([]byte{0, 0, 0, 1, 1, 'a'}, deep...)
	for _, c := range []struct{ name, contentType, hex string }{
		{"four billion entries", "amqp/map", "00000004ffffffff"},
		{"four billion entries, a few bytes", "amqp/map", "00000008ffffffff01610801"},
		{"text of four gigabytes", "amqp/map", "0000000b00000001016198ffffffff"},
		{"bytes of two gigabytes", "amqp/map", "0000000b000000010161a07fffffff"},
		{"list of four billion nulls", "amqp/map", "000000100000000101" + "61a900000005fffffffff0"},
		{"array of four billion bits", "amqp/map", "000000100000000101" + "61aa00000005f1ffffffff"},
		{"map inside that is cut off", "amqp/map", "0000000b000000010161a8000000ff"},
		{"code without a width", "amqp/map", "0000000700000001016" + "1b0"},
		{"unknown code, then rest", "amqp/map", "0000000c00000001016124000000ff00"},
		{"four billion entries", "jms/map-message", "ffffffff"},
		{"bytes of two gigabytes", "jms/map-message", "000000016100037fffffff"},
		{"no count", "jms/map-message", "0000"},
		{"key alone", "jms/map-message", "000000016161"},
		{"lists 40 deep", "amqp/map", hex.EncodeToString(append([]byte{0, 0, byte(len(nested) >> 8), byte(len(nested))}, nested...))},
	} {
		t.Run(c.contentType+": "+c.name, func(t *testing.T) {
			m := Message{Topic: "notification", ContentType: c.contentType, Body: unhex(t, c.hex)}
			allocated := testing.AllocsPerRun(1, func() { _, _ = DecodeMap(m) })
			events, err := Decode(m)
			var bad *DecodeError
			if !errors.As(err, &bad) || !bad.Dirty || bad.Topic != TopicNotification {
				t.Errorf("%v, %v, want a dirty DecodeError", events, err)
			}
			if allocated > 100 {
				t.Errorf("%.0f allocations", allocated)
			}
		})
	}
}

func TestUnknownCodeIsPassedOverByItsWidth(t *testing.T) {
	body := unhex(t, "0000001000000002"+"01"+"61"+"24"+"00000000"+"01"+"62"+"08"+"01")
	body[3] = byte(len(body) - 4)
	got, err := DecodeAMQPMap(body)
	if diff := cmp.Diff(map[string]any{"b": true}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}
