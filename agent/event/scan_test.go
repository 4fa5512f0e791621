package event

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// agree reads a text with the scanner and with encoding/json; what the scanner takes must be the same in both.
func agree(t *testing.T, text []byte) (scanned bool) {
	t.Helper()
	got, ok := scanJSON(text)
	want, err := decodeStandard(text)
	switch {
	case ok && err != nil:
		t.Errorf("%q is read as %v, but: %v", text, got, err)
	case ok && !cmp.Equal(got, want):
		t.Errorf("%q (-encoding/json +scanner):\n%s", text, cmp.Diff(want, got))
	}
	return ok
}

func TestScannerReadsWhatEncodingJSONReads(t *testing.T) {
	for _, c := range []struct {
		name, text string
		scanned    bool // false: encoding/json reads it, or refuses it
	}{
		{"a flat object", `{"a":"b","c":1,"d":true,"e":false,"f":null}`, true},
		{"white space everywhere", " {\t\"a\" :\r\n[ 1 , 2 ] } ", true},
		{"nothing in objects and lists", `{"a":{},"b":[],"c":""}`, true},
		{"a name twice: the last counts", `{"a":1,"a":{"b":2},"a":3}`, true},
		{"short escapes", `{"a":"\"\\\/\b\f\n\r\t"}`, true},
		{"numbers of every form", `[0,-0,1.5,-12.25e+3,1E9,1e-7,9007199254740993,123456789012345678901234567890]`, true},
		{"letters beyond ASCII", `{"näme":"Größe €😀"}`, true},
		{"an escape by number", `{"a":"\u00e4"}`, false},
		{"an escape in a name", `{"\n":1}`, false},
		{"broken UTF-8", "{\"a\":\"\xff\"}", false},
		{"a line end in a text", "{\"a\":\"\n\"}", false},
		{"an unknown escape", `{"a":"\x"}`, false},
		{"a text without its end", `{"a":"b`, false},
		{"a backslash at the end", `{"a":"b\`, false},
		{"a leading zero", `[01]`, false},
		{"a bare minus", `[-]`, false},
		{"a point without digits", `[1.]`, false},
		{"an exponent without digits", `[1e]`, false},
		{"a comma too many", `{"a":1,}`, false},
		{"a comma too many in a list", `[1,]`, false},
		{"a colon too few", `{"a" 1}`, false},
		{"a name without quotes", `{a:1}`, false},
		{"something after the end", `{"a":1} x`, false},
		{"a word cut off", `[tru]`, false},
		{"nothing", ``, false},
		{"deep nesting", strings.Repeat("[", 100) + strings.Repeat("]", 100), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if scanned := agree(t, []byte(c.text)); scanned != c.scanned {
				t.Errorf("scanned = %t", scanned)
			}
		})
	}
}

func TestScannerReadsEverySampleByItself(t *testing.T) {
	for _, s := range samples(t) {
		m := s.message(t)
		if s.AMQP.ContentType != "text/plain" || strings.Contains(s.Name, "malformed") {
			continue
		}
		if !agree(t, trimText(m.Body)) {
			t.Errorf("%s is left to encoding/json: %s", s.Name, m.Body)
		}
	}
}

func TestEnvelopeIsTakenOffOnlyWhereItIsWhole(t *testing.T) {
	for _, c := range []struct {
		name, text string
		scanned    bool
	}{
		{"as publishers write it", `{"event":{"payloadData":{"a":1}}}`, true},
		{"with blanks inside", `{"event":{"payloadData": {"a":1} }}`, true},
		{"with something beside", `{"event":{"payloadData":{"a":1},"metaData":{"b":2}}}`, false},
		{"with arbitrary data", `{"event":{"payloadData":{"a":1},"arbitraryDataMap":{"b":2}}}`, false},
		{"with something after the event", `{"event":{"payloadData":{"a":1}},"b":{"c":{}}}`, false},
		{"of a text", `{"event":{"payloadData":"a"}}`, false},
		{"with an end too few", `{"event":{"payloadData":{"a":1}}`, false},
		{"with an end too many", `{"event":{"payloadData":{"a":1}}}}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := scanEnvelope([]byte(c.text))
			if ok != c.scanned {
				t.Fatalf("scanned = %t: %v", ok, got)
			}
			if want := map[string]any{"a": got["a"]}; ok && (!cmp.Equal(got, want) || got["a"] == nil) {
				t.Errorf("attributes = %v", got)
			}
		})
	}
}

// FuzzScanner compares with encoding/json: what the scanner takes is taken there too and means the same, and what the
// envelope holds is what the slow way finds in it.
func FuzzScanner(f *testing.F) {
	seed(f, "text/plain", func(m Message) { f.Add(m.Body) })
	for _, s := range samples(f) {
		if len(s.DecodedEvent) > 0 {
			f.Add([]byte(s.DecodedEvent))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		agree(t, text)
		attributes, ok := scanEnvelope(text)
		if !ok {
			return
		}
		slow, err := decodeStandard(text)
		if err != nil {
			t.Fatalf("%q has an envelope, but: %v", text, err)
		}
		want := map[string]any{"event": map[string]any{"payloadData": any(attributes)}}
		if diff := cmp.Diff(slow, any(want)); diff != "" {
			t.Errorf("%q (-encoding/json +scanner):\n%s", text, diff)
		}
	})
}
