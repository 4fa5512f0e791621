package expr

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"gatehouse/throttle/siddhi/refusal"
	"gatehouse/throttle/siddhi/value"
)

// Java's patterns are read as RE2: what means the same is taken, what RE2 has not (look-around, back references, possessive
// quantifiers) and what it would read in another sense (class intersections and unions) is refused.

type anchoring uint8

const (
	search anchoring = iota // anywhere
	whole                   // the whole text
	prefix                  // from the start
)

var errClass = errors.New("a character class inside of a character class, and &&, are not supported")

// javaPattern writes a Java pattern as RE2 writes it.
func javaPattern(p string, how anchoring) (string, error) {
	var b strings.Builder
	switch how {
	case whole:
		b.WriteString(`\A(?:`)
	case prefix:
		b.WriteString(`\A(?:`)
	}
	dotAll := strings.Contains(p, "(?s") || strings.Contains(p, "(?is") || strings.Contains(p, "(?ms") || strings.Contains(p, "(?ims")
	class := false
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch {
		case c == '\\' && i+1 < len(p):
			i++
			switch {
			case p[i] == 'Q':
				quoted, _, found := strings.Cut(p[i+1:], `\E`)
				b.WriteString(regexp.QuoteMeta(quoted))
				if i += len(quoted); found {
					i += 2
				}
			case p[i] == 's' && class:
				b.WriteString(` \t\n\x0B\f\r`)
			case p[i] == 's':
				b.WriteString(`[ \t\n\x0B\f\r]`)
			case p[i] == 'S' && !class:
				b.WriteString(`[^ \t\n\x0B\f\r]`)
			case p[i] == 'S':
				return "", errClass
			case p[i] == 'C': // a byte in RE2, nothing in Java
				return "", errors.New(`\C is not a Java pattern`)
			default:
				b.WriteString(p[i-1 : i+1])
			}
		case class && c == '[', class && c == '&' && strings.HasPrefix(p[i:], "&&"):
			return "", errClass
		case c == '[':
			class = true
			b.WriteByte(c)
			// A bracket right behind the opening one is a member in RE2 and an error or a union in Java.
			if strings.HasPrefix(p[i+1:], "]") || strings.HasPrefix(p[i+1:], "^]") {
				return "", errors.New("a character class cannot begin with ]; write it as \\]")
			}
		case class && c == ']':
			class = false
			b.WriteByte(c)
		case c == '.' && !class && !dotAll:
			b.WriteString(`[^\n\r\x{85}\x{2028}\x{2029}]`)
		default:
			b.WriteByte(c)
		}
	}
	switch how {
	case whole:
		b.WriteString(`)\z`)
	case prefix:
		b.WriteString(`)`)
	}
	return b.String(), nil
}

// maxPattern bounds the size of a pattern.
const maxPattern = 8 << 10

func compilePattern(p string, how anchoring) (*regexp.Regexp, error) {
	if len(p) > maxPattern {
		return nil, fmt.Errorf("the pattern has %d bytes, the most is %d", len(p), maxPattern)
	}
	translated, err := javaPattern(p, how)
	if err != nil {
		return nil, err
	}
	return regexp.Compile(translated)
}

// pattern gives what compiles the argument i: once at deployment when it is a constant, else per event.
func (c *call) pattern(i int, how anchoring) func(string) (*regexp.Regexp, bool) {
	text, at, constant := patternOf(c, i)
	if !constant {
		return func(p string) (*regexp.Regexp, bool) {
			re, err := compilePattern(p, how)
			return re, err == nil
		}
	}
	re, err := compilePattern(text, how)
	if err != nil {
		refuse(refusal.Regex, at, "%s(): the pattern '%s' is not possible here: %v", c.name(), text, err)
	}
	return func(string) (*regexp.Regexp, bool) { return re, true }
}

func patterns() map[string]signature {
	return map[string]signature{
		"regex:find": regexFind, "regex:matches": regexTest(0, 1, whole), "regex:lookingAt": regexTest(0, 1, prefix),
		"regex:group": regexGroup, "str:regexp": regexTest(1, 0, whole),
	}
}

// regexTest is a test of a text by a pattern. Of a null text the functions of regex: say false; str:regexp fails.
func regexTest(pattern, text int, how anchoring) signature {
	return func(c *call) (value.Kind, impl) {
		c.kinds(value.String, value.String)
		find := c.pattern(pattern, how)
		lenient := text == 1
		return value.Bool, func(_ *Frame, a []value.Value) (value.Value, bool) {
			if lenient && a[text].IsNull() && !a[pattern].IsNull() {
				return value.OfBool(false), true
			}
			if !strict(a...) {
				return value.Value{}, false
			}
			re, ok := find(a[pattern].Str())
			if !ok {
				return value.Value{}, false
			}
			return value.OfBool(re.MatchString(a[text].Str())), true
		}
	}
}

func regexFind(c *call) (value.Kind, impl) {
	c.count(2, 3)
	c.kind(0, value.String)
	c.kind(1, value.String)
	if len(c.args) == 2 {
		return regexTest(0, 1, search)(c)
	}
	c.kind(2, value.Int)
	find := c.pattern(0, search)
	return value.Bool, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if !a[0].IsNull() && a[1].IsNull() || !a[0].IsNull() && strict(a[1]) && a[2].IsNull() {
			return value.OfBool(false), true
		}
		if !strict(a[0], a[1]) || a[2].Kind() != value.Int {
			return value.Value{}, false
		}
		re, ok := find(a[0].Str())
		start, inside := value.Offset(a[1].Str(), int(a[2].Int64()))
		if !ok || !inside {
			return value.Value{}, false
		}
		// Matches that begin before the start may hide one that begins behind it, so the search goes on from each.
		text := a[1].Str()
		if start == 0 {
			return value.OfBool(re.MatchString(text)), true
		}
		from, err := regexp.Compile(skip(len([]rune(text[:start]))) + `(?s:.*?)(?:` + re.String() + `)`)
		if err != nil {
			return value.Value{}, false
		}
		return value.OfBool(from.MatchString(text)), true
	}
}

// skip is a pattern that takes the first n characters of a text. RE2 repeats at most 1000 times.
func skip(n int) string {
	var b strings.Builder
	b.WriteString(`\A(?s:`)
	for ; n > 1000; n -= 1000 {
		b.WriteString(`.{1000}`)
	}
	fmt.Fprintf(&b, `.{%d})`, n)
	return b.String()
}

func regexGroup(c *call) (value.Kind, impl) {
	c.kinds(value.String, value.String, value.Int)
	find := c.pattern(0, search)
	return value.String, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if !strict(a[0], a[1]) || a[2].Kind() != value.Int {
			return value.Value{}, false
		}
		re, ok := find(a[0].Str())
		if !ok {
			return value.Value{}, false
		}
		m, group := re.FindStringSubmatchIndex(a[1].Str()), int(a[2].Int64())
		switch {
		case m == nil || group > re.NumSubexp():
			return value.Value{}, true
		case group < 0:
			return value.Value{}, false
		case m[2*group] < 0:
			return value.Value{}, true
		}
		return value.Text(a[1].Str()[m[2*group]:m[2*group+1]]), true
	}
}
