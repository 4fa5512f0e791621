package datepattern_test

import (
	"testing"
	"time"

	"gatehouse/throttle/siddhi/datepattern"
)

var now = time.Date(2026, 3, 5, 0, 7, 9, 45e6, time.UTC)

func TestFormat(t *testing.T) {
	for pattern, want := range map[string]string{
		"yyyy-MM-dd HH:mm:ss.SSS": "2026-03-05 00:07:09.045", "yy/M/d": "26/3/5", "EEE, EEEE": "Thu, Thursday", "MMM MMMM": "Mar March",
		"h a": "12 AM", "k K": "24 0", "D": "64", "H'h'": "0h", "''''": "''", "'o''clock'": "o'clock", "Z": "+0000", "": "",
	} {
		p, err := datepattern.Compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(p.Append(nil, now)); got != want {
			t.Errorf("%s: want %s, got %s", pattern, want, got)
		}
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ pattern, text, want string }{
		{"yyyy-MM-dd", "2024-02-30", "2024-03-01T00:00:00Z"},
		{"yyyyMMdd", "20240229", "2024-02-29T00:00:00Z"},
		{"yy-MM-dd", "30-01-01", "2030-01-01T00:00:00Z"},
		{"yy-MM-dd", "80-01-01", "1980-01-01T00:00:00Z"},
		{"hh:mm a", "12:30 AM", "1970-01-01T00:30:00Z"},
		{"hh:mm a", "02:30 pm", "1970-01-01T14:30:00Z"},
		{"d MMM yyyy", "5 mar 2026", "2026-03-05T00:00:00Z"},
		{"HH:mm", "7:5 behind", "1970-01-01T07:05:00Z"},
		{"yyyy-MM-dd", "2024-2-x", ""},
		{"yyyy", "bad", ""},
		{"yyyy D", "2024 60", "2024-02-29T00:00:00Z"},
	} {
		p, err := datepattern.Compile(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if at, err := p.Parse(c.text, now); err == nil {
			got = at.Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%s of %s: want %q, got %q", c.pattern, c.text, c.want, got)
		}
	}
}

func TestLettersThatAreNotSupportedAreRefused(t *testing.T) {
	for _, pattern := range []string{"yyyy ww", "X", "'open", "G"} {
		if _, err := datepattern.Compile(pattern); err == nil {
			t.Errorf("%s is taken", pattern)
		}
	}
}

// What is written by a pattern that says all of a time is read back by it.
func FuzzRoundTrip(f *testing.F) {
	f.Add("yyyy-MM-dd HH:mm:ss.SSS", int64(1_700_000_000_123))
	f.Add("yyyy'T'D k S s m Z", int64(0))
	f.Fuzz(func(t *testing.T, pattern string, millis int64) {
		p, err := datepattern.Compile(pattern)
		if err != nil || millis < 0 || millis > 4e12 {
			return
		}
		at := time.UnixMilli(millis).UTC()
		text := string(p.Append(nil, at))
		full, _ := datepattern.Compile("yyyy-MM-dd HH:mm:ss.SSS")
		if back, err := full.Parse(string(full.Append(nil, at)), now); err != nil || !back.Equal(at) {
			t.Fatalf("%v became %v (%v)", at, back, err)
		}
		_, _ = p.Parse(text, now)
	})
}
