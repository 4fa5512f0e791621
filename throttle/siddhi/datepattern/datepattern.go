// Package datepattern formats and reads dates by the patterns of Java's FastDateFormat that SiddhiQL policies use: the
// letters y M d D E H h k K m s S a Z, quoted text, and any sign between them. Names are English.
package datepattern

import (
	"fmt"
	"strings"
	"time"
)

// Pattern is a compiled pattern. It is immutable and may be shared.
type Pattern struct{ fields []field }

type field struct {
	letter byte // 0: literal
	width  int
	text   string
}

const letters = "yMdDEHhkKmsSaZ"

// maxWidth keeps a pattern from asking for texts of any length.
const maxWidth = 64

// Compile reads a pattern. The error names the letter that is not supported.
func Compile(pattern string) (*Pattern, error) {
	p := &Pattern{}
	literal := func(s string) {
		if n := len(p.fields); n > 0 && p.fields[n-1].letter == 0 {
			p.fields[n-1].text += s
			return
		}
		p.fields = append(p.fields, field{text: s})
	}
	for i := 0; i < len(pattern); {
		c := pattern[i]
		switch {
		case c == '\'':
			if strings.HasPrefix(pattern[i:], "''") {
				literal("'")
				i += 2
				continue
			}
			quoted, n, err := unquote(pattern[i:])
			if err != nil {
				return nil, err
			}
			literal(quoted)
			i += n
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
			if strings.IndexByte(letters, c) < 0 {
				return nil, fmt.Errorf("the letter %q of the date pattern %q is not supported", c, pattern)
			}
			n := i
			for n < len(pattern) && pattern[n] == c {
				n++
			}
			if n-i > maxWidth {
				return nil, fmt.Errorf("the date pattern repeats %q more than %d times", c, maxWidth)
			}
			p.fields = append(p.fields, field{letter: c, width: n - i})
			i = n
		default:
			literal(pattern[i : i+1])
			i++
		}
	}
	return p, nil
}

// unquote reads 'text', in which ” stands for one quote.
func unquote(s string) (text string, n int, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '\'' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '\'' {
			b.WriteByte('\'')
			i++
			continue
		}
		return b.String(), i + 1, nil
	}
	return "", 0, fmt.Errorf("the date pattern has a quote that does not end")
}

// Append formats a time, in the time's own zone, into a buffer.
func (p *Pattern) Append(b []byte, t time.Time) []byte {
	for _, f := range p.fields {
		switch f.letter {
		case 0:
			b = append(b, f.text...)
		case 'y':
			if f.width == 2 {
				b = padded(b, t.Year()%100, 2)
			} else {
				b = padded(b, t.Year(), f.width)
			}
		case 'M':
			switch {
			case f.width >= 4:
				b = append(b, t.Month().String()...)
			case f.width == 3:
				b = append(b, t.Month().String()[:3]...)
			default:
				b = padded(b, int(t.Month()), f.width)
			}
		case 'E':
			if f.width >= 4 {
				b = append(b, t.Weekday().String()...)
			} else {
				b = append(b, t.Weekday().String()[:3]...)
			}
		case 'a':
			if t.Hour() < 12 {
				b = append(b, "AM"...)
			} else {
				b = append(b, "PM"...)
			}
		case 'Z':
			b = t.AppendFormat(b, "-0700")
		default:
			b = padded(b, number(f.letter, t), f.width)
		}
	}
	return b
}

func number(letter byte, t time.Time) int {
	switch letter {
	case 'd':
		return t.Day()
	case 'D':
		return t.YearDay()
	case 'H':
		return t.Hour()
	case 'k':
		return (t.Hour()+23)%24 + 1
	case 'h':
		return (t.Hour()+11)%12 + 1
	case 'K':
		return t.Hour() % 12
	case 'm':
		return t.Minute()
	case 's':
		return t.Second()
	}
	return t.Nanosecond() / 1e6 // S
}

func padded(b []byte, n, width int) []byte {
	if n < 0 {
		b = append(b, '-')
		n = -n
	}
	digits := fmt.Sprint(n)
	for range width - len(digits) {
		b = append(b, '0')
	}
	return append(b, digits...)
}

// Parse reads a time. Fields that are too large roll over, as in Java: 30 February is a day in March. What stands behind
// the part that the pattern covers is ignored. Two-digit years are within 80 years before and 20 after now.
func (p *Pattern) Parse(s string, now time.Time) (time.Time, error) {
	year, month, day, yearDay := 1970, 1, 1, 0
	hour, minute, second, milli := 0, 0, 0, 0
	afternoon, zone := false, now.Location()
	rest := s
	for i, f := range p.fields {
		var ok bool
		switch f.letter {
		case 0:
			rest, ok = skipLiteral(rest, f.text)
		case 'a':
			var n int
			n, rest, ok = name(rest, []string{"AM", "PM"}, 0)
			afternoon = n == 1
		case 'E':
			_, rest, ok = name(rest, weekdays, 3)
		case 'Z':
			var at time.Time
			if len(rest) >= 5 {
				var err error
				at, err = time.Parse("-0700", rest[:5])
				ok = err == nil
				rest = rest[5:]
				zone = at.Location()
			}
		default:
			var n int
			if f.letter == 'M' && f.width >= 3 {
				n, rest, ok = name(rest, months, 3)
				month = n + 1
				break
			}
			width := 0
			if i+1 < len(p.fields) && numeric(p.fields[i+1]) {
				width = f.width
			}
			n, rest, ok = digits(rest, width)
			switch f.letter {
			case 'y':
				if year = n; f.width <= 2 && n < 100 {
					year = century(n, now.Year())
				}
			case 'M':
				month = n
			case 'd':
				day = n
			case 'D':
				yearDay = n
			case 'H':
				hour = n
			case 'k':
				hour = n % 24
			case 'h', 'K':
				hour = n % 12
			case 'm':
				minute = n
			case 's':
				second = n
			case 'S':
				milli = n
			}
		}
		if !ok {
			return time.Time{}, fmt.Errorf("%q does not fit the date pattern", s)
		}
	}
	if afternoon {
		hour += 12
	}
	if yearDay > 0 {
		month, day = 1, yearDay
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, milli%1000*1e6, zone).Add(time.Duration(milli/1000) * time.Second), nil
}

var weekdays, months = names()

func names() (days, months []string) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		days = append(days, d.String())
	}
	for m := time.January; m <= time.December; m++ {
		months = append(months, m.String())
	}
	return days, months
}

func numeric(f field) bool {
	return f.letter != 0 && f.letter != 'a' && f.letter != 'E' && f.letter != 'Z' && (f.letter != 'M' || f.width < 3)
}

// name reads a name or its short form of so many letters; either case.
func name(s string, names []string, short int) (index int, rest string, ok bool) {
	for i, n := range names {
		if len(s) >= len(n) && strings.EqualFold(s[:len(n)], n) {
			return i, s[len(n):], true
		}
	}
	for i, n := range names {
		if short > 0 && len(s) >= short && strings.EqualFold(s[:short], n[:short]) {
			return i, s[short:], true
		}
	}
	return 0, s, false
}

// digits reads a number of the given width, or as long as it goes when the width is 0.
func digits(s string, width int) (n int, rest string, ok bool) {
	i := 0
	for i < len(s) && (width == 0 || i < width) && '0' <= s[i] && s[i] <= '9' {
		if n = n*10 + int(s[i]-'0'); n > 1e8 {
			return 0, s, false
		}
		i++
	}
	return n, s[i:], i > 0 && (width == 0 || i == width)
}

// skipLiteral takes a literal; blanks in it stand for any blanks.
func skipLiteral(s, literal string) (rest string, ok bool) {
	for i := range len(literal) {
		if literal[i] == ' ' {
			s = strings.TrimLeft(s, " \t")
			continue
		}
		if s == "" || s[0] != literal[i] {
			return s, false
		}
		s = s[1:]
	}
	return s, true
}

func century(n, now int) int {
	start := now - 80
	year := start - start%100 + n
	if year < start {
		year += 100
	}
	return year
}
