package claims

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"gatehouse/keymanager"
)

// function changes a value. It never changes its argument: what differs is new.
type function func(any) any

// functionForms is what an operator is told when a function is wrong.
const functionForms = `write "lower", "upper", "split(x)", "join(x)", "prefix(x)" or "regex(from,to)"`

// maxFound is how many bytes the replacements of one value may come to. It is never met by honest claims: a token has at
// most 16 KiB.
const maxFound = 64 << 10

// CheckMapping says what is wrong with a mapping, nil when nothing is. Its Index is 0.
func CheckMapping(m keymanager.ClaimMapping) *Fault {
	_, fault := checked(m)
	return fault
}

func checked(m keymanager.ClaimMapping) (function, *Fault) {
	for _, name := range []struct{ member, value string }{{"remote_claim", m.Remote}, {"local_claim", m.Local}} {
		if name.value == "" {
			return nil, &Fault{Member: name.member, Problem: "empty", Fix: "write the name of a claim"}
		}
		if len(name.value) > maxName {
			return nil, &Fault{
				Member: name.member, Value: name.value[:60] + "…", Problem: fmt.Sprintf("of %d bytes", len(name.value)),
				Fix: fmt.Sprintf("write at most %d", maxName),
			}
		}
	}
	if fixed[m.Local] {
		return nil, &Fault{
			Member: "local_claim", Value: m.Local, Problem: "a registered claim, which was verified as it stands and is never written over",
			Fix: "write another name, such as \"" + EndUser + "\" for the user",
		}
	}
	f, problem, fix := parseFunction(m.Function)
	if problem != "" {
		return nil, &Fault{Member: "function", Value: m.Function, Problem: problem, Fix: fix}
	}
	return f, nil
}

// parseFunction reads a function. What stands in the parentheses is taken as it is, blanks included. problem is empty where
// the function is good.
func parseFunction(text string) (f function, problem, fix string) {
	if len(text) > maxName {
		return nil, fmt.Sprintf("of %d bytes", len(text)), fmt.Sprintf("write at most %d", maxName)
	}
	name, argument, has := strings.Cut(text, "(")
	if has {
		if !strings.HasSuffix(argument, ")") {
			return nil, "a function without its closing parenthesis", functionForms
		}
		argument = argument[:len(argument)-1]
	}
	wants := func(what string) (function, string, string) {
		return nil, "a function without its argument", "write " + what
	}
	switch name {
	case "":
		if has {
			return nil, "no function", functionForms
		}
		return nil, "", ""
	case "lower", "upper":
		if has {
			return nil, "a function that takes no argument", "write \"" + name + "\""
		}
		if name == "lower" {
			return eachText(strings.ToLower), "", ""
		}
		return eachText(strings.ToUpper), "", ""
	case "split":
		if argument == "" {
			return wants(`the separator, such as "split(,)"`)
		}
		return splitAt(argument), "", ""
	case "join":
		if !has {
			return wants(`the separator, such as "join( )"`)
		}
		return joinWith(argument), "", ""
	case "prefix":
		if argument == "" {
			return wants(`the prefix, such as "prefix(PRIMARY/)"`)
		}
		return eachScalar(func(s string) (string, bool) { return argument + s, true }), "", ""
	case "regex":
		comma := lastComma(argument)
		if comma < 0 {
			return wants(`what is searched and what takes its place, such as "regex(@.*$,)"`)
		}
		from, to := argument[:comma], strings.ReplaceAll(argument[comma+1:], `\,`, ",")
		if from == "" {
			return wants(`what is searched and what takes its place, such as "regex(@.*$,)"`)
		}
		expression, err := regexp.Compile(from)
		if err != nil {
			return nil, "a regular expression that cannot be read: " + strings.TrimPrefix(err.Error(), "error parsing regexp: "),
				"write one of RE2's syntax, which knows no look-around and no back-references; a comma that is not the separator is written \\,"
		}
		if group := missingGroup(expression, to); group != "" {
			return nil, "the replacement names the group " + group + ", which the expression has not", "write a group that it has, with a letter behind it as ${1}"
		}
		return eachScalar(func(s string) (string, bool) { return replaceAll(expression, s, to) }), "", ""
	}
	return nil, "not a function", functionForms
}

// lastComma is where the last comma stands that no backslash hides, so that those of {2,3} need no escape.
func lastComma(s string) int {
	last := -1
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ',':
			last = i
		}
	}
	return last
}

// missingGroup returns the first group of a replacement that the expression does not have: a typing error that would give
// empty values for ever. "$1x" is one: it names the group "1x".
func missingGroup(expression *regexp.Regexp, to string) string {
	for i := 0; i < len(to); i++ {
		if to[i] != '$' {
			continue
		}
		rest := to[i+1:]
		if strings.HasPrefix(rest, "$") {
			i++
			continue
		}
		var name string
		if strings.HasPrefix(rest, "{") {
			var closed bool
			if name, _, closed = strings.Cut(rest[1:], "}"); !closed {
				continue
			}
		} else {
			name = rest[:len(rest)-len(strings.TrimLeftFunc(rest, func(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) }))]
		}
		if name == "" {
			continue
		}
		n, err := strconv.Atoi(name)
		if number := err == nil && n >= 0 && strconv.Itoa(n) == name; number && n <= expression.NumSubexp() || !number && expression.SubexpIndex(name) >= 0 {
			continue
		}
		return strconv.Quote(name)
	}
	return ""
}

// replaceAll is ReplaceAllString, but gives up on a value that would grow out of all bounds.
func replaceAll(expression *regexp.Regexp, s, to string) (string, bool) {
	var out []byte
	end := 0
	for _, at := range expression.FindAllStringSubmatchIndex(s, -1) {
		out = append(out, s[end:at[0]]...)
		out = expression.ExpandString(out, to, s, at)
		end = at[1]
		if len(out) > maxFound {
			return s, false
		}
	}
	if end == 0 && out == nil {
		return s, false
	}
	return string(append(out, s[end:]...)), true
}

// eachText applies f to a text, and to every text of an array; other values stay.
func eachText(f func(string) string) function {
	return func(v any) any {
		switch v := v.(type) {
		case string:
			return f(v)
		case []any:
			out := make([]any, len(v))
			for i, e := range v {
				if s, ok := e.(string); ok {
					e = f(s)
				}
				out[i] = e
			}
			return out
		}
		return v
	}
}

// eachScalar applies f to a text or number, and to every one of an array; f says whether it changed it. Other values stay.
func eachScalar(f func(string) (string, bool)) function {
	one := func(v any) any {
		if s, ok := scalar(v); ok {
			if changed, yes := f(s); yes {
				return changed
			}
		}
		return v
	}
	return func(v any) any {
		list, ok := v.([]any)
		if !ok {
			return one(v)
		}
		out := make([]any, len(list))
		for i, e := range list {
			out[i] = one(e)
		}
		return out
	}
}

// scalar is the text of a text or a number.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}

// splitAt makes an array of a text, without empty elements; the texts of an array are split in place. Other values stay.
func splitAt(separator string) function {
	split := func(out []any, s string) []any {
		for part := range strings.SplitSeq(s, separator) {
			if part != "" {
				out = append(out, part)
			}
		}
		return out
	}
	return func(v any) any {
		switch v := v.(type) {
		case string:
			return split([]any{}, v)
		case []any:
			out := make([]any, 0, len(v))
			for _, e := range v {
				if s, ok := e.(string); ok {
					out = split(out, s)
				} else {
					out = append(out, e)
				}
			}
			return out
		}
		return v
	}
}

// joinWith makes a text of an array of texts, numbers, true and false; what else it holds is left out. Other values stay.
func joinWith(separator string) function {
	return func(v any) any {
		list, ok := v.([]any)
		if !ok {
			return v
		}
		parts := make([]string, 0, len(list))
		for _, e := range list {
			if b, ok := e.(bool); ok {
				parts = append(parts, strconv.FormatBool(b))
			} else if s, ok := scalar(e); ok {
				parts = append(parts, s)
			}
		}
		return strings.Join(parts, separator)
	}
}
