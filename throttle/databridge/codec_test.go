package databridge

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sample is a frame that WSO2's own sender wrote, or the frame by the rules where that sender fails.
type sample struct {
	ID        string          `json:"id"`
	Operation string          `json:"operation"`
	User      string          `json:"user"`
	Password  string          `json:"password"`
	Session   string          `json:"session"`
	Events    json.RawMessage `json:"events"`
	Frame     *sampleFrame    `json:"frame"`
	ByRule    *sampleFrame    `json:"frameByTheContract"`
	Decoded   json.RawMessage `json:"decoded"`
	DecodeErr string          `json:"decodeError"`
}

type sampleFrame struct {
	Length  int    `json:"length"`
	SHA256  string `json:"sha256"`
	Hex     string `json:"hex"`
	HeadHex string `json:"headHex"`
	TailHex string `json:"tailHex"`
}

type sampleEvent struct {
	StreamID    string          `json:"streamId"`
	TimeStamp   json.Number     `json:"timeStamp"`
	Meta        []any           `json:"meta"`
	Correlation []any           `json:"correlation"`
	Payload     []any           `json:"payload"`
	Arbitrary   json.RawMessage `json:"arbitrary"`
}

func readJSON(t testing.TB, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "samples", name))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func samples(t testing.TB) map[string]sample {
	t.Helper()
	files, err := filepath.Glob("testdata/samples/frame-*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no frame samples: %v", err)
	}
	m := map[string]sample{}
	for _, f := range files {
		var s sample
		readJSON(t, filepath.Base(f), &s)
		m[s.ID] = s
	}
	return m
}

func (s sample) frame() *sampleFrame {
	if s.Frame != nil {
		return s.Frame
	}
	return s.ByRule
}

func integer(t testing.TB, v any) int64 {
	n, err := v.(json.Number).Int64()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// value makes of a value in a sample what Event holds.
func value(t testing.TB, v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v // text or null
	}
	for k, x := range m {
		switch k {
		case "int":
			return int32(integer(t, x))
		case "long":
			return integer(t, x)
		case "float":
			f, _ := x.(json.Number).Float64()
			return float32(f)
		case "double":
			f, _ := x.(json.Number).Float64()
			return f
		case "bool":
			return x
		case "repeat":
			l := x.([]any)
			return strings.Repeat(l[0].(string), int(integer(t, l[1])))
		}
	}
	t.Fatalf("value %v", v)
	return nil
}

func values(t testing.TB, list []any) []any {
	var out []any
	for _, v := range list {
		out = append(out, value(t, v))
	}
	return out
}

func (s sample) events(t testing.TB) []Event {
	convert := func(se sampleEvent) Event {
		ts, _ := se.TimeStamp.Int64()
		e := Event{StreamID: se.StreamID, Timestamp: ts, Meta: values(t, se.Meta), Correlation: values(t, se.Correlation), Payload: values(t, se.Payload)}
		if len(se.Arbitrary) > 0 {
			var m map[string]*string
			if err := json.Unmarshal(se.Arbitrary, &m); err != nil {
				t.Fatal(err)
			}
			keys := make([]string, 0, len(m))
			for k := range m {
				keys = append(keys, k)
			}
			sort.Strings(keys)
			for _, k := range keys {
				p := Pair{Key: k}
				if m[k] != nil {
					p.Value = *m[k]
				}
				e.Arbitrary = append(e.Arbitrary, p)
			}
		}
		return e
	}
	dec := func(raw []byte, into any) error {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		return d.Decode(into)
	}
	var list []sampleEvent
	if err := dec(s.Events, &list); err == nil {
		var out []Event
		for _, se := range list {
			out = append(out, convert(se))
		}
		return out
	}
	var series struct {
		Count int         `json:"count"`
		First sampleEvent `json:"first"`
	}
	if err := dec(s.Events, &series); err != nil || series.Count == 0 {
		t.Fatalf("%s: events: %v", s.ID, err)
	}
	var out []Event
	for i := range series.Count {
		e := convert(series.First)
		e.Timestamp += int64(i)
		e.Payload = append([]any{}, e.Payload...)
		e.Payload[0] = "m-" + json.Number(itoa(i)).String()
		out = append(out, e)
	}
	return out
}

func itoa(i int) string {
	b, _ := json.Marshal(i)
	return string(b)
}

func encode(t testing.TB, s sample) []byte {
	switch s.Operation {
	case "login":
		return AppendLogin(nil, s.User, s.Password)
	case "logout":
		return AppendLogout(nil, s.Session)
	case "publish":
		events := s.events(t)
		body := []byte{0, 0, 0, 0}
		body[2], body[3] = byte(len(events)>>8), byte(len(events))
		var err error
		for _, e := range events {
			if body, err = AppendEvent(body, e); err != nil {
				t.Fatal(err)
			}
		}
		return AppendPublish(nil, s.Session, body)
	}
	t.Fatalf("%s: operation %q", s.ID, s.Operation)
	return nil
}

func TestFramesEqualTheRecordedOnes(t *testing.T) {
	for id, s := range samples(t) {
		t.Run(id, func(t *testing.T) {
			got, want := encode(t, s), s.frame()
			if want == nil {
				t.Fatal("sample without a frame")
			}
			if len(got) != want.Length {
				t.Errorf("%d bytes, want %d", len(got), want.Length)
			}
			h := hex.EncodeToString(got)
			if want.Hex != "" && h != want.Hex {
				t.Errorf("frame\n got %s\nwant %s", h, want.Hex)
			}
			if !strings.HasPrefix(h, want.HeadHex) || !strings.HasSuffix(h, want.TailHex) {
				t.Errorf("head or tail differ")
			}
			if sum := sha256.Sum256(got); hex.EncodeToString(sum[:]) != want.SHA256 {
				t.Errorf("sha256 %x, want %s", sum, want.SHA256)
			}
		})
	}
}

func define(id string) *Stream {
	switch id {
	case StreamID:
		s := RequestStream()
		return &s
	case "codec.typed.stream:1.0.0":
		return &Stream{ID: id, Meta: []Type{String, Int}, Correlation: []Type{Long, Bool}, Payload: []Type{Float, Double, String, Int, Bool}}
	case "ströme:1.0.0":
		return &Stream{ID: id, Payload: []Type{String}}
	}
	return nil
}

func decodeAll(body []byte) (session string, list []Event, err error) {
	s, events, err := DecodePublish(body)
	if err != nil {
		return "", nil, err
	}
	for {
		raw, err := events.Next()
		if err != nil {
			return "", nil, err
		}
		if raw == nil {
			return string(s), list, nil
		}
		e, err := DecodeEvent(raw, define)
		if err != nil {
			return "", nil, err
		}
		list = append(list, e)
	}
}

// withoutEmpty is what the wire makes of values: the empty text is null, a null int is 0.
func withoutEmpty(events []Event) []Event {
	for i := range events {
		for _, part := range [][]any{events[i].Meta, events[i].Correlation, events[i].Payload} {
			for j, v := range part {
				if v == "" {
					part[j] = nil
				}
			}
		}
		if len(events[i].Meta) == 2 && events[i].Meta[1] == nil {
			events[i].Meta[1] = int32(0)
		}
	}
	return events
}

func TestRecordedFramesDecode(t *testing.T) {
	for id, s := range samples(t) {
		t.Run(id, func(t *testing.T) {
			f, err := ReadFrame(bytes.NewReader(encode(t, s)), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			switch s.Operation {
			case "login":
				u, p, err := DecodeLogin(f.Body)
				if err != nil || f.Type != TypeLogin || u != s.User || p != s.Password {
					t.Errorf("type %d, user %q, password %q, %v", f.Type, u, p, err)
				}
			case "logout":
				got, err := DecodeLogout(f.Body)
				if err != nil || f.Type != TypeLogout || got != s.Session {
					t.Errorf("type %d, session %q, %v", f.Type, got, err)
				}
			case "publish":
				session, list, err := decodeAll(f.Body)
				lost := s.DecodeErr != "" || strings.Contains(id, "unknown-stream") || strings.Contains(id, "16-attributes") || strings.Contains(id, "18-attributes")
				if lost {
					if !errors.Is(err, ErrMalformed) {
						t.Fatalf("decoded to %v, %v; WSO2's receiver cannot decode it", list, err)
					}
					return
				}
				if err != nil || f.Type != TypePublish || session != s.Session {
					t.Fatalf("type %d, session %q, %v", f.Type, session, err)
				}
				if diff := cmp.Diff(withoutEmpty(s.events(t)), list); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestWorkedExample(t *testing.T) {
	var w struct {
		Login struct {
			User, Password, Request, Response, SessionID string
		}
		Publish struct {
			EventTimeStamp           int64
			StreamID                 string
			Payload                  []string
			Request                  string
			OkResponse               string
			ErrorResponse            string
			ErrorClass, ErrorMessage string
		}
		Logout struct{ Request, Response string }
	}
	b, err := os.ReadFile("testdata/samples/worked-example.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &w); err != nil {
		t.Fatal(err)
	}
	equal := func(what string, got []byte, want string) {
		t.Helper()
		if hex.EncodeToString(got) != want || want == "" {
			t.Errorf("%s\n got %x\nwant %s", what, got, want)
		}
	}
	equal("login", AppendLogin(nil, w.Login.User, w.Login.Password), w.Login.Request)
	equal("session", AppendSession(nil, w.Login.SessionID), w.Login.Response)
	equal("logout", AppendLogout(nil, w.Login.SessionID), w.Logout.Request)
	equal("logout answer", AppendOK(nil), w.Logout.Response)
	equal("publish answer", AppendOK(nil), w.Publish.OkResponse)
	equal("error answer", AppendError(nil, w.Publish.ErrorClass, w.Publish.ErrorMessage), w.Publish.ErrorResponse)
	body, start := BeginEvent([]byte{0, 0, 0, 1}, w.Publish.EventTimeStamp, w.Publish.StreamID)
	for _, p := range w.Publish.Payload {
		body = AppendText(body, p)
	}
	equal("publish", AppendPublish(nil, w.Login.SessionID, EndEvent(body, start)), w.Publish.Request)

	var q RequestEvent
	events, err := DecodeBody(body)
	if err != nil || events.Count() != 1 {
		t.Fatal(events.Count(), err)
	}
	raw, err := events.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Decode(raw); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range q.Attributes {
		got = append(got, string(a))
	}
	if diff := cmp.Diff(w.Publish.Payload, got); diff != "" || q.Timestamp != w.Publish.EventTimeStamp {
		t.Error(q.Timestamp, diff)
	}
	if raw, err := events.Next(); raw != nil || err != nil {
		t.Errorf("after the last event: %v, %v", raw, err)
	}
}

type answerCase struct {
	ID, Request, Outcome, AnswerHex, ErrorClass, ErrorMessage string
	EventsAtReceiver                                          *int
}

func answerCases(t testing.TB) []answerCase {
	var doc struct{ Cases []answerCase }
	b, err := os.ReadFile("testdata/samples/answers.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &doc); err != nil || len(doc.Cases) == 0 {
		t.Fatal(err)
	}
	return doc.Cases
}

// TestRecordedAnswers reads the answers of WSO2's receiver, and holds our reading of each request against what that
// receiver made of it.
func TestRecordedAnswers(t *testing.T) {
	for _, c := range answerCases(t) {
		t.Run(c.ID, func(t *testing.T) {
			request, err := hex.DecodeString(c.Request)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := hex.DecodeString(c.AnswerHex)
			if err != nil {
				t.Fatal(err)
			}
			r := bytes.NewReader(answer)
			a, err := ReadAnswer(r)
			switch c.Outcome {
			case "ok":
				if err != nil || a.Kind != AnswerOK {
					t.Errorf("answer %+v, %v", a, err)
				}
			case "session":
				if err != nil || a.Kind != AnswerSession || len(a.Session) != 36 || !bytes.Equal(AppendSession(nil, a.Session), answer) {
					t.Errorf("answer %+v, %v", a, err)
				}
			case "error":
				if err != nil || a.Kind != AnswerError || a.Class != c.ErrorClass {
					t.Errorf("answer %+v, %v", a, err)
				}
				if ascii(c.ErrorMessage) {
					if a.Message != c.ErrorMessage || r.Len() != 0 || !bytes.Equal(AppendError(nil, a.Class, a.Message), answer) {
						t.Errorf("message %q, %d bytes left", a.Message, r.Len())
					}
				} else if ascii(a.Message) || r.Len() == 0 {
					t.Errorf("message %q, %d bytes left: the cut cannot be noticed", a.Message, r.Len())
				}
			default:
				if !errors.Is(err, io.EOF) {
					t.Errorf("no answer was recorded, read %+v, %v", a, err)
				}
			}

			f, err := ReadFrame(bytes.NewReader(request), nil, 0)
			if err == nil {
				switch f.Type {
				case TypeLogin:
					_, _, err = DecodeLogin(f.Body)
				case TypeLogout:
					_, err = DecodeLogout(f.Body)
				case TypePublish:
					_, _, err = DecodePublish(f.Body)
				}
			}
			if malformed := c.Outcome == "closed"; malformed != errors.Is(err, ErrMalformed) {
				t.Errorf("request: %v, outcome %q", err, c.Outcome)
			}
			if f.Type == TypePublish && c.Outcome == "ok" && c.EventsAtReceiver != nil && !strings.HasPrefix(c.ID, "pipelined") {
				_, list, err := decodeAll(f.Body)
				if err != nil {
					list = nil // one bad event loses the frame
				}
				if len(list) != *c.EventsAtReceiver {
					t.Errorf("%d events (%v), the receiver delivered %d", len(list), err, *c.EventsAtReceiver)
				}
			}
		})
	}
}

func TestReadFrameBounds(t *testing.T) {
	tests := []struct {
		name  string
		bytes string
		want  error
	}{
		{"nothing", "", io.EOF},
		{"head cut", "0200", io.ErrUnexpectedEOF},
		{"body cut", "020000000501", io.ErrUnexpectedEOF},
		{"negative length", "02ffffffff", ErrMalformed},
		{"longer than the limit", "0200000011", ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := hex.DecodeString(tt.bytes)
			if _, err := ReadFrame(bytes.NewReader(b), nil, 16); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

func TestAppendEventRefusesUnknownTypes(t *testing.T) {
	_, err := AppendEvent(nil, Event{StreamID: "s:1", Payload: []any{"a", 5}})
	if err == nil || !strings.Contains(err.Error(), "attribute 2") {
		t.Errorf("an int without a size: %v", err)
	}
}

func FuzzPublishBody(f *testing.F) {
	for _, s := range samples(f) {
		if s.Operation == "publish" {
			if b := encode(f, s); len(b) < 8192 {
				f.Add(b[frameHead:])
			}
		}
	}
	for _, c := range answerCases(f) {
		if b, err := hex.DecodeString(c.Request); err == nil && len(b) > frameHead {
			f.Add(b[frameHead:])
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		session, list, err := decodeAll(body)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		again := []byte{byte(len(list) >> 24), byte(len(list) >> 16), byte(len(list) >> 8), byte(len(list))}
		for _, e := range list {
			if again, err = AppendEvent(again, e); err != nil {
				t.Fatal(err)
			}
		}
		frame := AppendPublish(nil, session, again)
		session2, list2, err := decodeAll(frame[frameHead:])
		if err != nil || session2 != session {
			t.Fatalf("after encoding: %q, %v", session2, err)
		}
		if len(list) == 0 && len(list2) == 0 {
			return
		}
		a, _ := appendAll(list)
		b, _ := appendAll(list2)
		if !bytes.Equal(a, b) {
			t.Fatalf("decode, encode, decode differ:\n%x\n%x", a, b)
		}
		// But for what follows the announced events and for a bool that is neither 0 nor 1, the bytes are those that came.
		if len(frame)-frameHead > len(body) {
			t.Fatalf("encoded %d bytes, came %d", len(frame)-frameHead, len(body))
		}
	})
}

func appendAll(list []Event) (b []byte, err error) {
	for _, e := range list {
		if b, err = AppendEvent(b, e); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func FuzzRequestEvent(f *testing.F) {
	for _, s := range samples(f) {
		if s.Operation != "publish" {
			continue
		}
		_, events, err := DecodePublish(encode(f, s)[frameHead:])
		if err != nil {
			f.Fatal(err)
		}
		if raw, err := events.Next(); err == nil && raw != nil && len(raw) < 8192 {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var q RequestEvent
		err := q.Decode(raw)
		// The general decoder is the second opinion.
		e, err2 := DecodeEvent(raw, func(id string) *Stream {
			if id == StreamID {
				return define(id)
			}
			return nil
		})
		if (err == nil) != (err2 == nil) {
			t.Fatalf("decoders disagree: %v, %v", err, err2)
		}
		if err != nil {
			return
		}
		for i, a := range q.Attributes {
			text, _ := e.Payload[i].(string)
			if string(a) != text {
				t.Fatalf("attribute %d: %q, %q", i, a, text)
			}
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	for _, c := range answerCases(f) {
		if b, err := hex.DecodeString(c.AnswerHex); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		a, err := ReadAnswer(r)
		if err != nil {
			return
		}
		var again []byte
		switch a.Kind {
		case AnswerOK:
			again = AppendOK(nil)
		case AnswerSession:
			again = AppendSession(nil, a.Session)
		case AnswerError:
			again = AppendError(nil, a.Class, a.Message)
		}
		if !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("read %x as %+v, which is %x", b[:len(b)-r.Len()], a, again)
		}
	})
}

func BenchmarkDecodeRequestEvent(b *testing.B) {
	s := samples(b)["frame-publish-one"]
	_, events, err := DecodePublish(encode(b, s)[frameHead:])
	if err != nil {
		b.Fatal(err)
	}
	raw, _ := events.Next()
	var q RequestEvent
	b.ReportAllocs()
	for b.Loop() {
		if err := q.Decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
