package expr

import (
	"strings"
	"time"

	"gatehouse/throttle/siddhi/datepattern"
	"gatehouse/throttle/siddhi/value"
)

const (
	dateTimeMillis = "yyyy-MM-dd HH:mm:ss.SSS"
	dateTime       = "yyyy-MM-dd HH:mm:ss"
	dateOnly       = "yyyy-MM-dd"
	timeOnly       = "HH:mm:ss"
)

func dates() map[string]signature {
	return map[string]signature{
		"time:currentTimestamp": current(dateTime), "time:currentDate": current(dateOnly), "time:currentTime": current(timeOnly),
		"time:dateFormat": dateFormat, "time:timestampInMilliseconds": timestamp, "time:extract": extract, "time:dayOfWeek": dayOfWeek,
	}
}

func mustPattern(p string) *datepattern.Pattern {
	compiled, err := datepattern.Compile(p)
	if err != nil {
		panic(err) // one of the constants above
	}
	return compiled
}

func (f *Frame) format(p *datepattern.Pattern, t time.Time) value.Value {
	base := len(f.buf)
	f.buf = p.Append(f.buf, t)
	s := string(f.buf[base:])
	f.buf = f.buf[:base]
	return value.Text(s)
}

func current(pattern string) signature {
	p := mustPattern(pattern)
	return func(c *call) (value.Kind, impl) {
		c.count(0, 0)
		c.impure = true
		return value.String, func(f *Frame, _ []value.Value) (value.Value, bool) { return f.format(p, f.now()), true }
	}
}

// datePattern gives what compiles the argument i, as pattern does for regular expressions.
func (c *call) datePattern(i int) func(string) (*datepattern.Pattern, bool) {
	if !c.args[i].Literal {
		return func(s string) (*datepattern.Pattern, bool) {
			p, err := datepattern.Compile(s)
			return p, err == nil
		}
	}
	p, err := datepattern.Compile(c.args[i].Eval(nil).Str())
	if err != nil {
		c.refuse("%v", err)
	}
	return func(string) (*datepattern.Pattern, bool) { return p, true }
}

// dateFormat is (millis, to), (text, to) with the text in the default form, or (text, to, from).
func dateFormat(c *call) (value.Kind, impl) {
	c.impure = true // of the zone
	c.count(2, 3)
	c.kind(1, value.String)
	to := c.datePattern(1)
	if len(c.args) == 2 && c.kind(0, value.Long, value.String) == value.Long {
		return value.String, func(f *Frame, a []value.Value) (value.Value, bool) {
			if a[0].Kind() != value.Long || !strict(a[1]) {
				return value.Value{}, false
			}
			p, ok := to(a[1].Str())
			if !ok {
				return value.Value{}, false
			}
			return f.format(p, time.UnixMilli(a[0].Int64()).In(f.now().Location())), true
		}
	}
	c.kind(0, value.String)
	from := c.source(2)
	return value.String, func(f *Frame, a []value.Value) (value.Value, bool) {
		t, ok := from(f, a[0], a, 2)
		if !ok || !strict(a[1]) {
			return value.Value{}, false
		}
		p, ok := to(a[1].Str())
		if !ok {
			return value.Value{}, false
		}
		return f.format(p, t), true
	}
}

// source reads a date by the pattern in the argument i, or by the default one when there is no such argument.
func (c *call) source(i int) func(f *Frame, date value.Value, args []value.Value, i int) (time.Time, bool) {
	usual := mustPattern(dateTimeMillis)
	find := func(string) (*datepattern.Pattern, bool) { return usual, true }
	if len(c.args) > i {
		c.kind(i, value.String)
		find = c.datePattern(i)
	}
	return func(f *Frame, date value.Value, args []value.Value, i int) (time.Time, bool) {
		if !strict(date) || i < len(args) && !strict(args[i]) {
			return time.Time{}, false
		}
		text := ""
		if i < len(args) {
			text = args[i].Str()
		}
		p, ok := find(text)
		if !ok {
			return time.Time{}, false
		}
		t, err := p.Parse(date.Str(), f.now())
		return t, err == nil
	}
}

func timestamp(c *call) (value.Kind, impl) {
	c.impure = true
	c.count(0, 2)
	if len(c.args) == 0 {
		return value.Long, func(f *Frame, _ []value.Value) (value.Value, bool) { return value.OfLong(f.Now), true }
	}
	c.kind(0, value.String)
	from := c.source(1)
	return value.Long, func(f *Frame, a []value.Value) (value.Value, bool) {
		if len(a) == 1 && a[0].IsNull() {
			return value.OfLong(f.Now), true // as the real one does
		}
		t, ok := from(f, a[0], a, 1)
		return value.OfLong(t.UnixMilli()), ok
	}
}

// extract is (millis, unit), (unit, text) or (unit, text, pattern); the unit is a constant.
func extract(c *call) (value.Kind, impl) {
	c.impure = true
	c.count(2, 3)
	if c.kind(0, value.Long, value.String) == value.Long {
		c.count(2, 2)
		of := c.unit(1)
		return value.Int, func(f *Frame, a []value.Value) (value.Value, bool) {
			if a[0].Kind() != value.Long {
				return value.Value{}, false
			}
			return value.OfInt(of(time.UnixMilli(a[0].Int64()).In(f.now().Location()))), true
		}
	}
	c.kind(1, value.String)
	of := c.unit(0)
	from := c.source(2)
	return value.Int, func(f *Frame, a []value.Value) (value.Value, bool) {
		t, ok := from(f, a[1], a, 2)
		if !ok {
			return value.Value{}, false
		}
		return value.OfInt(of(t)), true
	}
}

func (c *call) unit(i int) func(time.Time) int32 {
	const units = "year, quarter, month, week, day, hour, minute or second"
	switch name := strings.ToUpper(c.text(i, units)); name {
	case "YEAR":
		return func(t time.Time) int32 { return int32(t.Year()) }
	case "QUARTER":
		return func(t time.Time) int32 { return int32(t.Month()-1)/3 + 1 }
	case "MONTH":
		return func(t time.Time) int32 { return int32(t.Month()) }
	case "WEEK":
		return week
	case "DAY":
		return func(t time.Time) int32 { return int32(t.Day()) }
	case "HOUR":
		return func(t time.Time) int32 { return int32(t.Hour()) }
	case "MINUTE":
		return func(t time.Time) int32 { return int32(t.Minute()) }
	case "SECOND":
		return func(t time.Time) int32 { return int32(t.Second()) }
	}
	c.refuse("the unit is one of %s", units)
	return nil
}

// week is the week of the year in the English calendar of Java: weeks begin on Sunday, and the week that holds 1 January is
// the first, even for days of December.
func week(t time.Time) int32 {
	saturday := t.AddDate(0, 0, int(time.Saturday-t.Weekday()))
	if saturday.Year() != t.Year() {
		return 1
	}
	first := time.Date(t.Year(), 1, 1, 0, 0, 0, 0, t.Location())
	return int32((t.YearDay()-1+int(first.Weekday()))/7) + 1
}

// dayOfWeek is (text, pattern), or (text) whose date stands before the first blank.
func dayOfWeek(c *call) (value.Kind, impl) {
	c.impure = true
	c.count(1, 2)
	c.kind(0, value.String)
	if len(c.args) == 1 {
		p := mustPattern(dateOnly)
		return value.String, func(f *Frame, a []value.Value) (value.Value, bool) {
			if !strict(a[0]) {
				return value.Value{}, false
			}
			date, _, _ := strings.Cut(a[0].Str(), " ")
			t, err := p.Parse(date, f.now())
			return value.Text(t.Weekday().String()), err == nil
		}
	}
	from := c.source(1)
	return value.String, func(f *Frame, a []value.Value) (value.Value, bool) {
		t, ok := from(f, a[0], a, 1)
		return value.Text(t.Weekday().String()), ok
	}
}
