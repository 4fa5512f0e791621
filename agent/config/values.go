package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// mask is what stands in the place of a secret wherever one could be printed.
const mask = "***"

// Secret is a password, token, key or hash. Every way of printing or encoding it gives "***" ("" when it is not set), so
// that a configuration can be logged and shown whole; Reveal gives the value. The zero value is a secret that is not set.
type Secret string

// Reveal returns the secret itself. Hand it to the client that needs it, never to a logger or an error.
func (s Secret) Reveal() string { return string(s) }

// String returns the masked form.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// GoString returns the masked form for %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// Format masks the secret under every verb, those included that fmt does not ask a Stringer for.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		text = strconv.Quote(text)
	}
	_, _ = io.WriteString(f, text)
}

// MarshalJSON masks the secret in JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// MarshalYAML masks the secret in YAML.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// MarshalText masks the secret in TOML, whose encoder asks strings for it by their pointer only, and in other encodings.
func (s *Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// URL is an address that may carry a user and a password, as broker URLs do. It prints and encodes with the password
// masked; Reveal gives the whole text. The zero value is an address that is not set.
type URL string

// Reveal returns the URL with its password. Hand it to the client that dials, never to a logger or an error.
func (u URL) Reveal() string { return string(u) }

// String returns the URL with passwords masked.
func (u URL) String() string { return MaskURL(string(u)) }

// GoString returns the masked form for %#v.
func (u URL) GoString() string { return strconv.Quote(u.String()) }

// Format masks passwords under every verb.
func (u URL) Format(f fmt.State, verb rune) {
	text := u.String()
	if verb == 'q' || verb == 'v' && f.Flag('#') {
		text = strconv.Quote(text)
	}
	_, _ = io.WriteString(f, text)
}

// MarshalJSON masks passwords in JSON, and leaves "&" and its like as they are.
func (u URL) MarshalJSON() ([]byte, error) { return marshalPlain(u.String()) }

// MarshalYAML masks passwords in YAML.
func (u URL) MarshalYAML() (any, error) { return u.String(), nil }

// MarshalText masks passwords in TOML, as that of Secret.
func (u *URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// marshalPlain encodes to JSON without escapes for HTML.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// secretOption finds options of URLs whose value is a secret: trust_store_password='…', ?token=….
var secretOption = regexp.MustCompile(`(?i)([a-z_.-]*(?:password|passwd|secret|token|api_?key)[a-z_]*=)('[^']*'?|[^&;,'"\s]*)`)

// MaskURL replaces the passwords of a URL: the user part's, and those of options such as trust_store_password. It takes
// any text, whether it parses or not, and rather masks too much than too little.
func MaskURL(text string) string {
	text = secretOption.ReplaceAllString(text, "${1}"+mask)
	scheme := strings.Index(text, "://")
	at := strings.LastIndex(text, "@")
	if scheme < 0 || at < scheme {
		if at < 0 {
			return text
		}
		scheme = -len("://") // no scheme: what stands before the @ may be a user part all the same
	}
	start := scheme + len("://")
	user, rest := text[start:at], text[at:]
	name, _, hasPassword := strings.Cut(user, ":")
	if !hasPassword {
		// A user part without a password is a token with NATS, and a name elsewhere.
		return text[:start] + mask + rest
	}
	return text[:start] + name + ":" + mask + rest
}

// Path is the path of a file or folder, made absolute against the folder of the configuration file. The zero value is a
// path that is not set.
type Path string

// Duration is a span of time that is written with a unit: "250ms", "5s", "10m", "24h", "7d".
type Duration time.Duration

// Std returns the duration of the standard library.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String returns the shortest form that ParseDuration reads: "24h", not "24h0m0s".
func (d Duration) String() string {
	text := time.Duration(d).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// MarshalText writes the duration as String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

var errNotDuration = errors.New("not a duration")

// ParseDuration reads what time.ParseDuration reads, and days: "7d", "1d12h".
func ParseDuration(text string) (Duration, error) {
	days, rest, found := strings.Cut(text, "d")
	var total time.Duration
	if found {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || n < -100_000 || n > 100_000 || n != n {
			return 0, errNotDuration
		}
		total = time.Duration(n * 24 * float64(time.Hour))
		text = rest
		if text == "" {
			return Duration(total), nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errNotDuration
	}
	if sum := total + d; (sum > total) == (d > 0) {
		return Duration(sum), nil
	}
	return 0, errNotDuration
}

// Size is a number of bytes, written as a number or with a unit: 65536, "64KiB", "1MiB", "10MB".
type Size int64

// Int64 returns the number of bytes.
func (s Size) Int64() int64 { return int64(s) }

// sizeUnits from the largest; binary units first, so that String prefers them.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"GB", 1_000_000_000},
	{"MB", 1_000_000},
	{"KB", 1_000},
	{"kB", 1_000},
	{"B", 1},
}

// String returns the size in the largest binary unit that gives a whole number.
func (s Size) String() string {
	for _, unit := range sizeUnits[:3] {
		if s != 0 && int64(s)%unit.bytes == 0 {
			return strconv.FormatInt(int64(s)/unit.bytes, 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText writes the size as String does.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

var errNotSize = errors.New("not a size")

// ParseSize reads a number of bytes with or without a unit.
func ParseSize(text string) (Size, error) {
	factor := int64(1)
	digits := text
	for _, unit := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, unit.name); ok {
			digits, factor = strings.TrimSpace(rest), unit.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > (1<<62)/factor || n < 0 {
		return 0, errNotSize
	}
	return Size(n * factor), nil
}
