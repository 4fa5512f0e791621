package parse

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/refusal"
)

type kind uint8

const (
	end kind = iota
	word
	quoted // a name in back quotes: never a keyword
	text   // without its quotes
	integer
	long
	float
	double
	symbol
	bad // what cannot be read; text says why. The parser refuses it when it gets there.
)

type token struct {
	kind kind
	text string
	pos  ast.Pos
}

// shown is how a message names the token.
func (t token) shown() string {
	switch t.kind {
	case end:
		return "the end of the text"
	case text:
		return "the text '" + clip(t.text) + "'"
	case quoted:
		return "`" + clip(t.text) + "`"
	}
	return "'" + clip(t.text) + "'"
}

func clip(s string) string {
	const most = 40
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most]) + "…"
}

func fault(code refusal.Code, at ast.Pos, format string, args ...any) *refusal.Error {
	return &refusal.Error{Code: code, Line: at.Line, Column: at.Column, Message: fmt.Sprintf(format, args...)}
}

type lexer struct {
	src  string
	at   int
	line int
	// lineStart is the offset of the line's first byte; columns are counted from it when a token is made.
	lineStart int
	column    int // of the offset counted, in characters before it
	counted   int
}

func (l *lexer) pos(offset int) ast.Pos {
	l.column += utf8.RuneCountInString(l.src[l.counted:offset])
	l.counted = offset
	return ast.Pos{Line: l.line, Column: l.column + 1}
}

func (l *lexer) newline(next int) {
	l.line++
	l.lineStart, l.counted, l.column = next, next, 0
}

// lex cuts the whole text into tokens; the last one is of kind end, and the one before it of kind bad when the rest cannot be
// read.
func lex(src string) []token {
	l := lexer{src: src, line: 1}
	tokens := make([]token, 0, len(src)/5+8)
	for {
		t, err := l.next()
		if err != nil {
			at := ast.Pos{Line: err.Line, Column: err.Column}
			return append(tokens, token{bad, err.Message, at}, token{kind: end, pos: at})
		}
		tokens = append(tokens, t)
		if t.kind == end {
			return tokens
		}
	}
}

// skip passes over blanks and comments. A block comment that does not end reaches to the end of the text, as in Siddhi.
func (l *lexer) skip() {
	for l.at < len(l.src) {
		switch c := l.src[l.at]; {
		case c == '\n':
			l.at++
			l.newline(l.at)
		case c == ' ' || c == '\t' || c == '\r' || c == '\v':
			l.at++
		case strings.HasPrefix(l.src[l.at:], "--"):
			for l.at < len(l.src) && l.src[l.at] != '\n' && l.src[l.at] != '\r' {
				l.at++
			}
		case strings.HasPrefix(l.src[l.at:], "/*"):
			stop := strings.Index(l.src[l.at+2:], "*/")
			until := len(l.src)
			if stop >= 0 {
				until = l.at + 2 + stop + 2
			}
			for ; l.at < until; l.at++ {
				if l.src[l.at] == '\n' {
					l.newline(l.at + 1)
				}
			}
		default:
			return
		}
	}
}

func letter(c byte) bool { return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }

func (l *lexer) next() (token, *refusal.Error) {
	l.skip()
	start := l.at
	pos := l.pos(start)
	if start == len(l.src) {
		return token{kind: end, pos: pos}, nil
	}
	c := l.src[start]
	switch {
	case letter(c):
		l.at = l.run(start)
		return token{word, l.src[start:l.at], pos}, nil
	case digit(c), c == '.' && start+1 < len(l.src) && digit(l.src[start+1]):
		return l.number(start, pos), nil
	case c == '`':
		stop := l.run(start + 1)
		if stop == start+1 || digit(l.src[start+1]) || stop >= len(l.src) || l.src[stop] != '`' {
			return token{}, fault(refusal.Syntax, pos, "a name in back quotes holds letters, digits and _, starts with none of the digits, and ends with a back quote")
		}
		l.at = stop + 1
		return token{quoted, l.src[start+1 : stop], pos}, nil
	case c == '\'' || c == '"':
		return l.quotedText(start, pos)
	}
	for _, two := range [...]string{"->", "<=", ">=", "==", "!="} {
		if strings.HasPrefix(l.src[start:], two) {
			l.at += 2
			return token{symbol, two, pos}, nil
		}
	}
	if strings.IndexByte(":;.()[],=*+-/%<>@#?", c) >= 0 {
		l.at++
		return token{symbol, l.src[start : start+1], pos}, nil
	}
	_, size := utf8.DecodeRuneInString(l.src[start:])
	l.at += size
	return token{symbol, l.src[start:l.at], pos}, nil
}

// run returns the offset behind the letters and digits from start on.
func (l *lexer) run(start int) int {
	for start < len(l.src) && (letter(l.src[start]) || digit(l.src[start])) {
		start++
	}
	return start
}

func (l *lexer) digits(at int) int {
	for at < len(l.src) && digit(l.src[at]) {
		at++
	}
	return at
}

func (l *lexer) number(start int, pos ast.Pos) token {
	at := l.digits(start)
	k := integer
	if at+1 < len(l.src) && l.src[at] == '.' && digit(l.src[at+1]) {
		at = l.digits(at + 1)
		k = double
	}
	if at < len(l.src) && (l.src[at] == 'e' || l.src[at] == 'E') {
		exponent := at + 1
		if exponent < len(l.src) && (l.src[exponent] == '+' || l.src[exponent] == '-') {
			exponent++
		}
		if stop := l.digits(exponent); stop > exponent {
			at = stop
			k = double
		}
	}
	number := l.src[start:at]
	// A suffix counts only when the word ends there, so that "5days" is a time.
	if at < len(l.src) && l.run(at) == at+1 {
		switch l.src[at] {
		case 'l', 'L':
			if k == integer {
				k = long
				at++
			}
		case 'f', 'F':
			k = float
			at++
		case 'd', 'D':
			k = double
			at++
		}
	}
	l.at = at
	return token{k, number, pos}
}

func (l *lexer) quotedText(start int, pos ast.Pos) (token, *refusal.Error) {
	quote := l.src[start]
	for at := start + 1; at < len(l.src); at++ {
		c := l.src[at]
		switch {
		case c == quote:
			l.at = at + 1
			if !utf8.ValidString(l.src[start+1 : at]) {
				return token{}, fault(refusal.Syntax, pos, "the text is not valid UTF-8")
			}
			return token{text, l.src[start+1 : at], pos}, nil
		case c == '"': // in a text of single quotes
			return token{}, fault(refusal.Syntax, l.pos(at), `a text in single quotes cannot hold a double quote; there are no escapes, write it in double quotes without one`)
		case c < 0x20:
			return token{}, fault(refusal.Syntax, l.pos(at), "a text cannot hold a line break or another control character, and there are no escapes")
		}
	}
	return token{}, fault(refusal.Syntax, pos, "the text does not end: %c is missing", quote)
}
