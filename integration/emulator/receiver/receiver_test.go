package receiver

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type frameSample struct {
	ID        string `json:"id"`
	Operation string `json:"operation"`
	User      string `json:"user"`
	Password  string `json:"password"`
	Session   string `json:"session"`
	Frame     struct {
		Hex string `json:"hex"`
	} `json:"frame"`
	FrameByTheContract struct {
		Hex string `json:"hex"`
	} `json:"frameByTheContract"`
	// Decoded is a list of decodedEvent, or for long frames a summary.
	Decoded json.RawMessage `json:"decoded"`
	// Receiver is what the real one made of it, nil where that was not tried.
	Receiver *struct {
		EventsDelivered int `json:"eventsDelivered"`
	} `json:"receiver"`
}

type decodedEvent struct {
	StreamID string `json:"streamId"`
	Payload  []any  `json:"payload"`
}

func samples(t testing.TB) []frameSample {
	t.Helper()
	files, err := filepath.Glob("testdata/frame-*.json")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d samples, %v", len(files), err)
	}
	var out []frameSample
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var s frameSample
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out = append(out, s)
	}
	return out
}

// TestFramesOfTheRealSender reads what WSO2's own sender wrote.
func TestFramesOfTheRealSender(t *testing.T) {
	read := 0
	for _, s := range samples(t) {
		text := s.Frame.Hex
		if text == "" {
			text = s.FrameByTheContract.Hex
		}
		if text == "" { // a long frame is recorded by its hash alone
			continue
		}
		t.Run(s.ID, func(t *testing.T) {
			raw, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			r := bytes.NewReader(raw)
			f, err := ReadFrame(r)
			if err != nil {
				t.Fatal(err)
			}
			if r.Len() != 0 {
				t.Fatalf("%d bytes left after the frame", r.Len())
			}
			switch s.Operation {
			case "login":
				user, password, err := f.Login()
				if err != nil || user != s.User || password != s.Password {
					t.Errorf("login %q %q %v, want %q %q", user, password, err, s.User, s.Password)
				}
			case "logout":
				if session, _, err := f.Session(); err != nil || session != s.Session {
					t.Errorf("session %q %v, want %q", session, err, s.Session)
				}
			case "publish":
				session, rest, err := f.Session()
				if err != nil || session != s.Session {
					t.Fatalf("session %q %v, want %q", session, err, s.Session)
				}
				events, err := Events(rest)
				var decoded []decodedEvent
				_ = json.Unmarshal(s.Decoded, &decoded) // a summary holds nothing to compare
				delivered := len(decoded)
				if s.Receiver != nil {
					delivered = s.Receiver.EventsDelivered
				}
				if len(decoded) > 0 && decoded[0].StreamID != ThrottleStream {
					delivered = 0 // a stream that only that receiver had
				}
				if s.Receiver == nil && decoded == nil {
					return // known to the sender alone
				}
				if len(events) != delivered {
					t.Fatalf("%d events, want %d: %v", len(events), delivered, err)
				}
				if delivered == 0 {
					return
				}
				for i, want := range decoded {
					var texts []string
					for _, v := range want.Payload {
						text, _ := v.(string) // null reads as empty
						texts = append(texts, text)
					}
					if len(texts) == len(attributes) && !strings.Contains(fmt.Sprint(want.Payload), "map[") {
						if diff := cmp.Diff(texts, events[i].Payload); diff != "" {
							t.Errorf("event %d:\n%s", i, diff)
						}
					}
				}
			}
		})
		read++
	}
	if read < 20 {
		t.Errorf("only %d frames were read", read)
	}
}

type answerCase struct {
	ID      string          `json:"id"`
	Request json.RawMessage `json:"request"`
	Outcome string          `json:"outcome"`
	Answer  string          `json:"answerHex"`
	Class   string          `json:"errorClass"`
	Message string          `json:"errorMessage"`
}

// TestAnswersOfTheRealReceiver sends the recorded requests that need no session of that run.
func TestAnswersOfTheRealReceiver(t *testing.T) {
	b, err := os.ReadFile("testdata/answers.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []answerCase }
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"login-ok-tcp": true, "login-wrong-password": true, "login-unknown-user": true, "login-no-permission": true}
	for _, c := range file.Cases {
		if !want[c.ID] {
			continue
		}
		delete(want, c.ID)
		t.Run(c.ID, func(t *testing.T) {
			r := open(t, Options{User: "admin", Password: "admin"})
			conn := dial(t, r)
			var request string
			if err := json.Unmarshal(c.Request, &request); err != nil {
				t.Fatal(err)
			}
			raw, err := hex.DecodeString(request)
			if err != nil {
				t.Fatal(err)
			}
			got := ask(t, conn, raw)
			expect, err := hex.DecodeString(c.Answer)
			if err != nil {
				t.Fatal(err)
			}
			if c.Outcome == "session" { // ids differ
				got, expect = got[:5], expect[:5]
			}
			if !bytes.Equal(got, expect) {
				t.Errorf("answer %x, want %x", got, expect)
			}
		})
	}
	for id := range want {
		t.Errorf("case %s is not in the recording", id)
	}
}

func open(t *testing.T, o Options) *Receiver {
	t.Helper()
	o.TCP = "127.0.0.1:0"
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func dial(t *testing.T, r *Receiver) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.TCPAddress())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a frame and reads one whole answer; nil when the connection ended without one.
func ask(t *testing.T, c net.Conn, frame []byte) []byte {
	t.Helper()
	if _, err := c.Write(frame); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	kind := make([]byte, 1)
	if _, err := io.ReadFull(c, kind); err != nil {
		return nil
	}
	if kind[0] == 0 {
		return kind
	}
	take := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	head := take(4)
	n := int(binary.BigEndian.Uint32(head))
	if kind[0] == 1 { // class and message
		more := take(4)
		head, n = append(head, more...), n+int(binary.BigEndian.Uint32(more))
	}
	return append(append(kind, head...), take(n)...)
}

func text(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func frame(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body))), body...)
}

func loginFrame(user, password string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(user)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(password)))
	return frame(frameLogin, append(append(b, user...), password...))
}

func publishBody(n int) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	for i := range n {
		e := binary.BigEndian.AppendUint64(nil, 1764000000000)
		e = text(e, ThrottleStream)
		for a := range attributes {
			e = text(e, fmt.Sprintf("%s-%d", attributes[a], i))
		}
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(e))), e...)
	}
	return b
}

func TestSessions(t *testing.T) {
	var got []Event
	r := open(t, Options{User: "admin", Password: "admin", OnEvents: func(e []Event) { got = append(got, e...) }})
	c := dial(t, r)
	login := ask(t, c, loginFrame("admin", "admin"))
	if login[0] != 2 {
		t.Fatalf("login answered %x", login)
	}
	session := string(login[5:])
	publish := frame(framePublish, append(text(nil, session), publishBody(3)...))
	if a := ask(t, c, publish); !bytes.Equal(a, []byte{0}) {
		t.Fatalf("publish answered %x", a)
	}
	r.ExpireSessions()
	a := ask(t, c, publish)
	if want := "SessionTimeoutException" + session + " expired"; a[0] != 1 || !strings.HasSuffix(string(a), want) {
		t.Errorf("expired session answered %q, want an end of %q", a, want)
	}
	if a := ask(t, c, loginFrame("admin", "admin")); a[0] != 2 {
		t.Errorf("the connection is of no use after an expired session: %x", a)
	} else {
		r.SetSessionLife(time.Nanosecond)
		if a := ask(t, c, frame(framePublish, append(text(nil, string(a[5:])), publishBody(1)...))); a[0] != 1 {
			t.Errorf("a session outlived its life: %x", a)
		}
	}
	if a := ask(t, c, frame(frameLogout, text(nil, "never heard of"))); !bytes.Equal(a, []byte{0}) {
		t.Errorf("logout of an unknown session answered %x", a)
	}
	if a := ask(t, c, frame(framePublish, []byte{0, 0})); a != nil {
		t.Errorf("a short body was answered %x, the real receiver closes", a)
	}
	r.Close()
	if len(got) != 3 || got[2].Get("appKey") != "appKey-2" || got[2].Get("properties") != "properties-2" {
		t.Errorf("events %+v", got)
	}
	s := r.Stats()
	if s.Events != 3 || s.Frames != 1 || s.Logins != 2 || s.ExpiredSessions != 2 || s.Logouts != 1 || s.BadFrames != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestABadEventSpoilsItsFrame(t *testing.T) {
	good := publishBody(2)
	for name, b := range map[string][]byte{
		"cut":             good[:len(good)-1],
		"count too high":  append([]byte{0, 0, 0, 3}, good[4:]...),
		"negative count":  append([]byte{0xff, 0xff, 0xff, 0xff}, good[4:]...),
		"unknown stream":  bytes.ReplaceAll(good, []byte("org.wso2.throttle"), []byte("org.wso2.Throttle")),
		"length past end": append([]byte{0, 0, 0, 2, 0x7f}, good[5:]...),
	} {
		if events, err := Events(b); err == nil {
			t.Errorf("%s: %d events", name, len(events))
		}
	}
	if events, err := Events(append([]byte{0, 0, 0, 1}, good[4:]...)); err != nil || len(events) != 1 {
		t.Errorf("a count too low: %d events, %v; the rest is ignored", len(events), err)
	}
}

func FuzzEvents(f *testing.F) {
	for _, s := range samples(f) {
		if raw, err := hex.DecodeString(s.Frame.Hex); err == nil && len(raw) > 5 {
			if _, rest, err := (Frame{Body: raw[5:]}).Session(); err == nil {
				f.Add(rest)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := Events(b)
		if err != nil {
			return
		}
		// What was read, written again, is what stood there: every byte that counts was taken.
		again := binary.BigEndian.AppendUint32(nil, uint32(len(events)))
		for _, e := range events {
			if len(e.Arbitrary) > 1 {
				return // a map has no order to write again
			}
			w := binary.BigEndian.AppendUint64(nil, uint64(e.TimeStamp))
			w = text(w, e.StreamID)
			for _, p := range e.Payload {
				w = text(w, p)
			}
			for k, v := range e.Arbitrary {
				w = text(text(w, k), v)
			}
			again = append(binary.BigEndian.AppendUint32(again, uint32(len(w))), w...)
		}
		if len(again) > len(b) || sha256.Sum256(again) != sha256.Sum256(b[:len(again)]) {
			t.Errorf("%x read and written again is %x", b, again)
		}
	})
}
