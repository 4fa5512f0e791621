package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"gatehouse/keymanager/jwt"
)

// inspection is what token inspect finds. Members stand in the order of the token.
type inspection struct {
	Header          members           `json:"header,omitempty"`
	Claims          members           `json:"claims,omitempty"`
	Times           map[string]string `json:"times,omitempty"` // of the claims that are times, RFC 3339
	ExpiresIn       *float64          `json:"expires_in_seconds,omitempty"`
	SignatureLength int               `json:"signature_characters"`
	Verified        bool              `json:"verified"` // never
	Problems        []tokenProblem    `json:"problems,omitempty"`
}

// tokenProblem is one thing that is wrong with the form of a token.
type tokenProblem struct {
	Part string `json:"part"` // "token", "header", "payload" or "signature"
	// At is the character of the token, from 1, where it shows; 0 when that cannot be said.
	At      int    `json:"at,omitempty"`
	Problem string `json:"problem"`
}

func (p tokenProblem) String() string {
	if p.At > 0 {
		return fmt.Sprintf("%s, at character %d of the token: %s", p.Part, p.At, p.Problem)
	}
	return p.Part + ": " + p.Problem
}

func newInspectCommand(streams ioStreams) *cobra.Command {
	command := &cobra.Command{
		Use:   "inspect [--output json] TOKEN|-",
		Short: "Decode the header and the claims of a token, without verifying it",
		Long: `Decodes the header and the claims of a token and shows times in UTC. Nothing is verified: anyone can write what stands in it. The
signature is never shown, so that the result can be handed on. Of a broken token it says what is broken and where, and shows
the rest.

Exit status: 0 the token could be decoded whole, 1 it is broken or no JWT, 2 wrong usage.

` + tokenHelp,
		Example: "  gatehouse token inspect - < token.txt",
	}
	output := outputFlag(command)
	command.RunE = func(_ *cobra.Command, args []string) error {
		token, err := oneToken(streams, args)
		if err != nil {
			return err
		}
		found := inspect(token, time.Now())
		if len(found.Claims) > 0 || len(found.Header) > 0 {
			fmt.Fprintln(streams.Err, "gatehouse: nothing is verified here; see gatehouse token verify")
		}
		if *output == "json" {
			err = printJSON(streams.Out, found)
		} else {
			err = found.print(streams.Out, time.Now())
		}
		if err != nil {
			return err
		}
		if len(found.Problems) > 0 {
			return failedError(nil)
		}
		return nil
	}
	return command
}

func inspect(token string, now time.Time) *inspection {
	found := &inspection{}
	bad := func(part string, at int, format string, args ...any) {
		found.Problems = append(found.Problems, tokenProblem{part, at, fmt.Sprintf(format, args...)})
	}
	if len(token) > jwt.MaxSize {
		bad("token", 0, "has %d bytes; the gateway refuses more than %d", len(token), jwt.MaxSize)
	}
	parts := strings.Split(token, ".")
	switch n := len(parts); {
	case n == 1:
		bad("token", 0, "has no dots: an opaque token, which only its key manager can read, or a piece of one")
		return found
	case n == 5:
		bad("token", 0, "has five parts: it is encrypted (JWE), and only who holds the key can read it")
	case n != 3:
		bad("token", 0, "has %d parts, where a JWT has three: header, payload and signature", n)
	}
	start := 1
	for i, part := range parts {
		switch name := [...]string{"header", "payload", "signature"}[min(i, 2)]; {
		case i == 0:
			found.Header = decodeMembers(part, name, start, bad)
		case i == 1 && len(parts) != 5:
			found.Claims = decodeMembers(part, name, start, bad)
		case i == 2 && len(parts) == 3:
			found.SignatureLength = len(part)
			if part == "" {
				bad(name, 0, "is empty: the token is not signed")
			} else {
				decodeBase64(part, name, start, bad)
			}
		}
		start += len(part) + 1
	}
	if alg, ok := found.Header.get("alg"); ok && strings.EqualFold(strings.Trim(string(alg), `"`), "none") {
		bad("header", 0, "the algorithm is %s: the token is not signed", printable(string(alg)))
	}
	for _, m := range found.Claims {
		if at, ok := m.time(); ok {
			if found.Times == nil {
				found.Times = map[string]string{}
			}
			found.Times[m.name] = at.Format(time.RFC3339)
			if m.name == "exp" {
				left := math.Round(at.Sub(now).Seconds())
				found.ExpiresIn = &left
			}
		}
	}
	return found
}

// decodeBase64 decodes a part as the gateway does, and more tolerantly where it must: padding and the alphabet with "+" and
// "/" are told, and read all the same. Of a part that is not whole it returns what stands before the fault.
func decodeBase64(part, name string, start int, bad func(string, int, string, ...any)) (b []byte, whole bool) {
	if part == "" {
		bad(name, start, "is empty")
		return nil, false
	}
	text := strings.TrimRight(part, "=")
	if text != part {
		bad(name, start+len(text), "is padded with =, which a token's parts are not")
	}
	if i := strings.IndexAny(text, "+/"); i >= 0 {
		bad(name, start+i, "is in the base64 with + and /, where base64url belongs")
		text = strings.NewReplacer("+", "-", "/", "_").Replace(text)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if at, ok := errors.AsType[base64.CorruptInputError](err); ok {
		if i := int(at); i < len(text) && !isBase64URL(text[i]) {
			bad(name, start+i, "holds a character that base64url has not")
		} else {
			bad(name, start+len(text), "ends in the middle of a byte: the token was cut off or put together wrongly")
		}
		return b, false
	}
	if _, err = base64.RawURLEncoding.Strict().DecodeString(text); err != nil {
		bad(name, start+len(text)-1, "has stray bits in its last character")
	}
	return b, true
}

func isBase64URL(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// decodeMembers decodes a part that holds a JSON object, as far as it can be read.
func decodeMembers(part, name string, start int, bad func(string, int, string, ...any)) members {
	b, whole := decodeBase64(part, name, start, bad)
	if len(b) == 0 {
		return nil
	}
	if !utf8.Valid(b) {
		bad(name, 0, "is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	var list members
	// The place in the decoded text is told as the character of the token that holds it.
	broken := func(err error) members {
		if !whole {
			return list // that is said already
		}
		at := int(d.InputOffset())
		what := "breaks off"
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			at, what = max(int(syntax.Offset)-1, 0), "is not valid JSON: "+syntax.Error()
			if errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(syntax.Error(), "unexpected end") {
				what = "breaks off"
			}
		}
		bad(name, start+min(at, len(b))*4/3, "%s", what)
		return list
	}
	first, err := d.Token()
	if err != nil {
		return broken(err)
	}
	if first != json.Delim('{') {
		bad(name, start, "is not a JSON object")
		return nil
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return broken(err)
		}
		text, isText := key.(string)
		var value json.RawMessage
		if !isText {
			return broken(io.ErrUnexpectedEOF)
		}
		if err := d.Decode(&value); err != nil {
			return broken(err)
		}
		if int(d.InputOffset()) == len(b) && value[len(value)-1]-'0' <= 9 {
			return broken(io.ErrUnexpectedEOF) // a number that may have had more digits
		}
		if _, twice := list.get(text); twice {
			bad(name, 0, "has the member %s twice", printable(strconv.Quote(text)))
		}
		list = append(list, member{text, value})
	}
	if _, err := d.Token(); err != nil {
		return broken(err)
	}
	if _, err := d.Token(); err != io.EOF {
		bad(name, start+int(d.InputOffset())*4/3, "goes on behind its JSON object")
	}
	return list
}

// member is one member of a JSON object, members an object in its own order.
type member struct {
	name  string
	value json.RawMessage
}

type members []member

func (m members) get(name string) (json.RawMessage, bool) {
	for _, one := range m {
		if one.name == name {
			return one.value, true
		}
	}
	return nil, false
}

// MarshalJSON keeps the order.
func (m members) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, one := range m {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(one.name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(one.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// timeClaims are the claims that hold seconds since the epoch.
var timeClaims = map[string]bool{"exp": true, "nbf": true, "iat": true, "auth_time": true, "updated_at": true}

func (m member) time() (time.Time, bool) {
	if !timeClaims[m.name] {
		return time.Time{}, false
	}
	return timeOf(json.Number(strings.TrimSpace(string(m.value))))
}

// timeOf reads a claim that is a time.
func timeOf(v any) (time.Time, bool) {
	var seconds float64
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return time.Time{}, false
		}
		seconds = f
	case float64:
		seconds = v
	default:
		return time.Time{}, false
	}
	if seconds < 0 || seconds > 253402300799 || math.IsNaN(seconds) { // the year 9999
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0).UTC(), true
}

func (f *inspection) print(w io.Writer, now time.Time) error {
	var b strings.Builder
	for _, part := range []struct {
		title string
		list  members
	}{{"header", f.Header}, {"claims", f.Claims}} {
		if len(part.list) == 0 {
			continue
		}
		b.WriteString(part.title + "\n")
		for _, m := range part.list {
			var compact bytes.Buffer
			value := string(m.value)
			if json.Compact(&compact, m.value) == nil {
				value = compact.String()
			}
			fmt.Fprintf(&b, "  %s: %s", printable(m.name), printable(value))
			if at, ok := m.time(); ok && part.title == "claims" {
				b.WriteString(" (" + at.Format(time.RFC3339) + relation(m.name, at, now) + ")")
			}
			b.WriteByte('\n')
		}
	}
	if f.SignatureLength > 0 {
		fmt.Fprintf(&b, "signature\n  %d characters, not shown and not verified\n", f.SignatureLength)
	}
	for _, p := range f.Problems {
		b.WriteString("broken: " + p.String() + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// relation says how a time stands to now.
func relation(claim string, at, now time.Time) string {
	switch d := at.Sub(now); {
	case claim == "exp" && d > 0:
		return ", valid for " + span(d)
	case claim == "exp":
		return ", expired " + span(-d) + " ago"
	case claim == "nbf" && d > 0:
		return ", not valid for another " + span(d)
	case claim == "iat" && d > 0:
		return ", in the future"
	}
	return ""
}

// span is a duration for people: the two largest units.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	days, rest := d/(24*time.Hour), d%(24*time.Hour)
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, rest/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return d.String()
}

// printable keeps what a token holds from steering the terminal.
func printable(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
