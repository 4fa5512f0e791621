package event

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// excerptBytes is how much of a bad message a log line shows.
const excerptBytes = 200

var (
	// secretField is an attribute whose value is a credential, in JSON at whatever level of quoting.
	secretField = regexp.MustCompile(
		`(?i)((?:revokedtoken|secret|password|[a-z_]*token|apikeyhash|salt|lookupkey)\\*"\s*:\s*\\*")[^"\\]*`)
	// longRun is what may be a token: keys and names of the contract are shorter, or have no digit.
	longRun = regexp.MustCompile(`[A-Za-z0-9_+/=~.\-]{16,}`)
)

// Excerpt is the beginning of a message's body, for the log line of a message that cannot be read: at most 200 bytes,
// tokens and secrets masked, unprintable bytes as dots. What it shows is for people and may change.
func Excerpt(m Message) string {
	// Tokens are masked before the cut, so that none is cut down to a length that hides what it is.
	window := m.Body[:min(len(m.Body), 8*excerptBytes)]
	s := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, string(window))
	s = secretField.ReplaceAllString(s, "${1}***")
	s = longRun.ReplaceAllStringFunc(s, func(run string) string {
		if strings.ContainsAny(run, "0123456789") {
			return "***"
		}
		return run
	})
	if len(s) <= excerptBytes {
		return s
	}
	cut := excerptBytes
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut]
}
