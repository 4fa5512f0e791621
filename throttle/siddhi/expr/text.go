package expr

import (
	"regexp"
	"strings"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/value"
)

func texts() map[string]signature {
	return map[string]signature{
		"str:concat": concat, "str:coalesce": coalesce("str:coalesce"),
		"str:length": oneText(value.Int, func(s string) value.Value { return value.OfInt(int32(value.Length(s))) }),
		"str:lower":  oneText(value.String, func(s string) value.Value { return value.Text(strings.ToLower(s)) }),
		"str:upper":  oneText(value.String, func(s string) value.Value { return value.Text(strings.ToUpper(s)) }),
		"str:trim":   oneText(value.String, func(s string) value.Value { return value.Text(value.Trim(s)) }),

		"str:contains": contains, "str:equalsIgnoreCase": equalsIgnoreCase, "str:strcmp": strcmp, "str:charAt": charAt,
		"str:substr": substr, "str:split": split, "str:replaceAll": replace(true), "str:replaceFirst": replace(false),
	}
}

func concat(c *call) (value.Kind, impl) {
	c.count(2, -1)
	return value.String, nil // see special
}

// joined is the code of str:concat, which nearly every policy runs for each event: it writes the arguments one behind the
// other as they come.
func joined(args []Compiled) Eval {
	return func(f *Frame) value.Value {
		base := len(f.buf)
		for i := range args {
			var v value.Value
			if column := args[i].Column; column >= 0 {
				v = f.Row[column]
			} else {
				v = args[i].Eval(f)
			}
			switch v.Kind() {
			case value.Null:
			case value.String:
				f.buf = append(f.buf, v.Str()...)
			default:
				f.buf = v.Append(f.buf)
			}
		}
		s := string(f.buf[base:])
		f.buf = f.buf[:base]
		if f.Failed {
			return f.thrown()
		}
		return value.Text(s)
	}
}

// oneText is a function of one text, which takes any value that a cast let through by its text.
func oneText(kind value.Kind, of func(string) value.Value) signature {
	return func(c *call) (value.Kind, impl) {
		c.kinds(value.String)
		return kind, func(_ *Frame, a []value.Value) (value.Value, bool) {
			if a[0].IsNull() {
				return value.Value{}, false
			}
			return of(a[0].String()), true
		}
	}
}

// strict reports whether the values are texts, not numbers that a cast let through; Java's cast would throw.
func strict(a ...value.Value) bool {
	for _, v := range a {
		if v.Kind() != value.String {
			return false
		}
	}
	return true
}

func contains(c *call) (value.Kind, impl) {
	c.kinds(value.String, value.String)
	return value.Bool, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if a[0].IsNull() {
			return value.OfBool(false), true
		}
		if !strict(a...) {
			return value.Value{}, false
		}
		return value.OfBool(strings.Contains(a[0].Str(), a[1].Str())), true
	}
}

func equalsIgnoreCase(c *call) (value.Kind, impl) {
	c.kinds(value.String, value.String)
	return value.Bool, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if !strict(a[0]) || !a[1].IsNull() && !strict(a[1]) {
			return value.Value{}, false
		}
		return value.OfBool(!a[1].IsNull() && strings.EqualFold(a[0].Str(), a[1].Str())), true
	}
}

func strcmp(c *call) (value.Kind, impl) {
	c.kinds(value.String, value.String)
	return value.Int, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if !strict(a...) {
			return value.Value{}, false
		}
		return value.OfInt(int32(value.Compare(a[0].Str(), a[1].Str()))), true
	}
}

func charAt(c *call) (value.Kind, impl) {
	c.kinds(value.String, value.Int)
	return value.String, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if !strict(a[0]) || a[1].Kind() != value.Int {
			return value.Value{}, false
		}
		s, ok := value.Slice(a[0].Str(), int(a[1].Int64()), int(a[1].Int64())+1)
		return value.Text(s), ok
	}
}

// substr is (text, begin[, length]) or (text, pattern[, group]).
func substr(c *call) (value.Kind, impl) {
	c.count(2, 3)
	c.kind(0, value.String)
	second := c.kind(1, value.Int, value.String)
	if len(c.args) == 3 {
		c.kind(2, value.Int)
	}
	if second == value.String {
		find := c.pattern(1, search)
		return value.String, func(_ *Frame, a []value.Value) (value.Value, bool) {
			if !strict(a[0], a[1]) || len(a) == 3 && a[2].Kind() != value.Int {
				return value.Value{}, false
			}
			re, ok := find(a[1].Str())
			if !ok {
				return value.Value{}, false
			}
			m := re.FindStringSubmatchIndex(a[0].Str())
			group := 0
			if len(a) == 3 {
				group = int(a[2].Int64())
			}
			switch {
			case m == nil:
				return value.Text(""), true
			case group < 0 || group > re.NumSubexp():
				return value.Value{}, false
			case m[2*group] < 0:
				return value.Value{}, true
			}
			return value.Text(a[0].Str()[m[2*group]:m[2*group+1]]), true
		}
	}
	return value.String, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if !strict(a[0]) || a[1].Kind() != value.Int || len(a) == 3 && a[2].Kind() != value.Int {
			return value.Value{}, false
		}
		begin := int(a[1].Int64())
		stop := value.Length(a[0].Str())
		if len(a) == 3 {
			stop = begin + int(a[2].Int64())
		}
		s, ok := value.Slice(a[0].Str(), begin, stop)
		return value.Text(s), ok
	}
}

func split(c *call) (value.Kind, impl) {
	c.kinds(value.String, value.String, value.Int)
	find := c.pattern(1, search)
	return value.String, func(_ *Frame, a []value.Value) (value.Value, bool) {
		if !strict(a[0], a[1]) || a[2].Kind() != value.Int {
			return value.Value{}, false
		}
		re, ok := find(a[1].Str())
		if !ok {
			return value.Value{}, false
		}
		parts, i := javaSplit(re, a[0].Str()), int(a[2].Int64())
		if i < 0 || i >= len(parts) {
			return value.Value{}, false
		}
		return value.Text(parts[i]), true
	}
}

// javaSplit is String.split: no empty parts at the end, no empty part before a match of no width at the start.
func javaSplit(re *regexp.Regexp, s string) []string {
	var parts []string
	last := 0
	for _, m := range re.FindAllStringIndex(s, -1) {
		if m[1] == 0 || m[0] == m[1] && m[0] == len(s) {
			continue
		}
		parts = append(parts, s[last:m[0]])
		last = m[1]
	}
	if len(parts) == 0 && last == 0 {
		return []string{s}
	}
	parts = append(parts, s[last:])
	for len(parts) > 0 && parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1]
	}
	return parts
}

func replace(all bool) signature {
	return func(c *call) (value.Kind, impl) {
		c.kinds(value.String, value.String, value.String)
		find := c.pattern(1, search)
		return value.String, func(_ *Frame, a []value.Value) (value.Value, bool) {
			if !strict(a...) {
				return value.Value{}, false
			}
			re, ok := find(a[1].Str())
			if !ok {
				return value.Value{}, false
			}
			s, ok := javaReplace(re, a[0].Str(), a[2].Str(), all)
			return value.Text(s), ok
		}
	}
}

// maxReplaced bounds what a replacement may grow a text to.
const maxReplaced = 1 << 20

func javaReplace(re *regexp.Regexp, s, with string, all bool) (string, bool) {
	n := 1
	if all {
		n = -1
	}
	matches := re.FindAllStringSubmatchIndex(s, n)
	empty := all && re.MatchString("")
	var b []byte
	last := 0
	for i, m := range matches {
		var ok bool
		b = append(b, s[last:m[0]]...)
		if b, ok = expand(b, re, s, with, m); !ok || len(b) > maxReplaced {
			return "", false
		}
		last = m[1]
		// Java, unlike Go, also takes a match of no width right behind another match.
		if empty && m[0] < m[1] && (i+1 == len(matches) || matches[i+1][0] != m[1]) {
			none := make([]int, len(m))
			for g := range none {
				none[g] = -1
			}
			none[0], none[1] = m[1], m[1]
			if b, ok = expand(b, re, s, with, none); !ok {
				return "", false
			}
		}
	}
	return string(append(b, s[last:]...)), true
}

// expand writes a Java replacement: $1, ${name}, and a backslash that takes the next character as it is.
func expand(b []byte, re *regexp.Regexp, s, with string, m []int) ([]byte, bool) {
	for i := 0; i < len(with); i++ {
		switch c := with[i]; c {
		case '\\':
			if i++; i == len(with) {
				return b, false
			}
			b = append(b, with[i])
		case '$':
			group, n := reference(re, with[i+1:])
			if n == 0 {
				return b, false
			}
			i += n
			if m[2*group] >= 0 {
				b = append(b, s[m[2*group]:m[2*group+1]]...)
			}
		default:
			b = append(b, c)
		}
	}
	return b, true
}

// reference reads the number or the name of a group; n is 0 when there is no such group.
func reference(re *regexp.Regexp, s string) (group, n int) {
	if strings.HasPrefix(s, "{") {
		name, _, ok := strings.Cut(s[1:], "}")
		group = re.SubexpIndex(name)
		if !ok || group < 0 {
			return 0, 0
		}
		return group, len(name) + 2
	}
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		next := group*10 + int(s[n]-'0')
		if next > re.NumSubexp() {
			break
		}
		group = next
		n++
	}
	return group, n
}

// patternOf is the constant pattern of a call, or "" with ok false.
func patternOf(c *call, i int) (pattern string, at ast.Pos, ok bool) {
	if !c.args[i].Literal {
		return "", ast.Pos{}, false
	}
	return c.args[i].Eval(nil).Str(), c.Args[i].Position(), true
}
