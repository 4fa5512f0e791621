//go:build conformance

package siddhi

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"gatehouse/throttle/siddhi/value"
)

// inputStream is what the random policies read.
const inputStream = "define stream Input (k string, a int, b long, c double, d float, s string, f bool);"

type historyEvent struct {
	at  int64
	row []value.Value
}

// generator makes policies and histories; the same seed makes the same ones.
type generator struct {
	*rand.Rand
	used map[string]int // constructs
}

func (g *generator) one(choices ...string) string { return choices[g.IntN(len(choices))] }

func (g *generator) use(construct string) { g.used[construct]++ }

var literalsOf = map[string][]string{
	"int": {"0", "1", "-1", "2", "3", "7", "2147483647"}, "long": {"0L", "1L", "-2L", "5L", "1 sec", "9223372036854775807L", "3000000000L"},
	"double": {"0.0", "0.5", "-1.25", "2.0d", "1e10"}, "float": {"0.5f", "2f", "-1.25F", "0f"},
	"string": {"'x'", "'y'", `"it's"`, "''", "'7'", "'é'"}, "bool": {"true", "false"},
}

var attributesOf = map[string][]string{"int": {"a"}, "long": {"b"}, "double": {"c"}, "float": {"d"}, "string": {"k", "s"}, "bool": {"f"}}

var types = []string{"int", "long", "double", "float", "string", "bool"}

// exact are the types whose texts do not depend on the version of Java: before 19 it does not always write the shortest
// decimal.
var exact = []string{"int", "long", "string", "bool"}

// expr writes an expression of a type.
func (g *generator) expr(kind string, depth int) string {
	if depth == 0 {
		if g.IntN(3) == 0 {
			return g.one(literalsOf[kind]...)
		}
		return g.one(attributesOf[kind]...)
	}
	switch g.IntN(8) {
	case 0:
		g.use("ifThenElse")
		return fmt.Sprintf("ifThenElse(%s, %s, %s)", g.expr("bool", depth-1), g.expr(kind, depth-1), g.expr(kind, depth-1))
	case 1:
		g.use("coalesce")
		return fmt.Sprintf("coalesce(%s, %s)", g.expr(kind, depth-1), g.expr(kind, depth-1))
	case 2:
		g.use("convert")
		if kind == "string" {
			return fmt.Sprintf("convert(%s, 'string')", g.expr(g.one(exact...), depth-1))
		}
		return fmt.Sprintf("convert(%s, '%s')", g.expr(g.one(types...), depth-1), kind)
	case 3:
		g.use("cast")
		return fmt.Sprintf("cast(%s, '%s')", g.expr(kind, depth-1), g.one(kind, strings.ToUpper(kind)))
	}
	switch kind {
	case "string":
		g.use("str:concat")
		return fmt.Sprintf("str:concat(%s, %s)", g.expr(g.one(exact...), depth-1), g.expr(g.one(exact...), depth-1))
	case "bool":
		return g.condition(depth)
	}
	if g.IntN(3) == 0 {
		g.use("maximum")
		return fmt.Sprintf("%s(%s, %s)", g.one("maximum", "minimum"), g.expr(kind, depth-1), g.expr(kind, depth-1))
	}
	narrower := map[string][]string{"int": {"int"}, "long": {"int", "long"}, "float": {"int", "long", "float"}, "double": {"int", "long", "float", "double"}}[kind]
	left, right := g.expr(kind, depth-1), g.expr(g.one(narrower...), depth-1)
	if g.IntN(2) == 0 {
		left, right = right, left
	}
	op := g.one("+", "-", "*", "/", "%")
	g.use(op)
	return fmt.Sprintf("(%s) %s (%s)", left, op, right)
}

func (g *generator) condition(depth int) string {
	number := func() string { return g.expr(g.one("int", "long", "float", "double"), depth-1) }
	switch g.IntN(7) {
	case 0:
		g.use("not")
		return fmt.Sprintf("not (%s)", g.expr("bool", depth-1))
	case 1:
		g.use("and")
		return fmt.Sprintf("(%s) and (%s)", g.expr("bool", depth-1), g.expr("bool", depth-1))
	case 2:
		g.use("or")
		return fmt.Sprintf("(%s) or (%s)", g.expr("bool", depth-1), g.expr("bool", depth-1))
	case 3:
		g.use("is null")
		return g.one(attributesOf[g.one(types...)]...) + " is null"
	case 4:
		kind := g.one("string", "bool")
		g.use("== of " + kind)
		return fmt.Sprintf("(%s) %s (%s)", g.expr(kind, depth-1), g.one("==", "!="), g.expr(kind, depth-1))
	case 5:
		g.use("instanceOf")
		return fmt.Sprintf("instanceOf%s(%s)", g.one("Integer", "Long", "Float", "Double", "String", "Boolean"), g.expr(g.one(types...), depth-1))
	}
	op := g.one("==", "!=", "<", "<=", ">", ">=")
	g.use(op)
	return fmt.Sprintf("(%s) %s (%s)", number(), op, number())
}

// aggregate writes an aggregate. Nulls are kept away from those that the real engine fails on, and the numbers are such that
// no order of adding rounds.
func (g *generator) aggregate() string {
	a := g.one("count()", "count(s)", "sum(coalesce(a, 0))", "sum(coalesce(b, 1L))", "sum(coalesce(c, 0.5))", "sum(coalesce(d, 0.25f))", "avg(coalesce(b, 2L))",
		"avg(coalesce(c, 0.5))", "min(coalesce(a, 0))", "max(coalesce(b, 0L))", "min(coalesce(c, 0.0))", "max(coalesce(d, 1f))", "distinctcount(s)", "distinctcount(a)")
	name, _, _ := strings.Cut(a, "(")
	g.use(name)
	return a
}

// policy writes a plan whose rows leave in the stream Out, and gives the length of its window in ms.
func (g *generator) policy() (text string, length int64) {
	var b strings.Builder
	b.WriteString(inputStream + "\nfrom Input")
	if g.IntN(2) == 0 {
		g.use("filter")
		fmt.Fprintf(&b, "[%s]", g.expr("bool", 2))
	}
	b.WriteString(" select k as throttleKey, k, a, b, c, d, s, f, " + g.expr("bool", 3) + " as isEligible")
	for i := range g.IntN(3) {
		fmt.Fprintf(&b, ", %s as e%d", g.expr(g.one(types...), 3), i)
	}
	b.WriteString(" insert into Mid;\nfrom Mid")
	if g.IntN(2) == 0 {
		g.use("filter")
		fmt.Fprintf(&b, "[%s]", g.one("isEligible == true", "isEligible", "not (isEligible == true)"))
	}
	length = []int64{1000, 1500, 60_000}[g.IntN(3)]
	start := g.one("", ", 0", ", 700L", ", 1700000005000L")
	window, expiry := "", "0L"
	switch g.IntN(6) {
	case 0, 1, 2:
		window, expiry = fmt.Sprintf("#throttler:timeBatch(%d%s)", length, start), "expiryTimeStamp"
	case 3:
		window = fmt.Sprintf("#window.time(%d)", length)
	case 4:
		window = fmt.Sprintf("#window.timeBatch(%d%s)", length, g.one("", ", 0", ", 700"))
	}
	name, _, _ := strings.Cut(window, "(")
	g.use(name)
	b.WriteString(window + " select throttleKey, (" + g.aggregate() + " " + g.one(">=", ">", "<", "==", "!=") + " " + g.one("1", "2", "3L", "2.5") + ") as isThrottled, " + expiry + " as expiryTimeStamp")
	decide := g.IntN(4) == 0
	if !decide {
		for i := range g.IntN(4) {
			if g.IntN(4) == 0 {
				fmt.Fprintf(&b, ", %s as x%d", g.expr(g.one(types...), 2), i)
			} else {
				fmt.Fprintf(&b, ", %s %s %s as x%d", g.aggregate(), g.one("+", "-", "*", "/", "%"), g.aggregate(), i)
			}
		}
	}
	switch g.IntN(4) {
	case 0:
		g.use("no group by")
	case 1:
		g.use("group by two")
		b.WriteString(" group by throttleKey, a")
	default:
		g.use("group by")
		b.WriteString(" group by throttleKey")
	}
	if g.IntN(4) == 0 {
		g.use("having")
		b.WriteString(" having " + g.one("isThrottled == true", "not (isThrottled == true)", "expiryTimeStamp > 0L", "throttleKey != 'x'"))
	}
	events := g.one("", "all events", "current events", "expired events")
	g.use("insert " + events)
	if decide {
		g.use("emitOnStateChange")
		fmt.Fprintf(&b, " insert %s into ResultStream;\nfrom ResultStream#throttler:emitOnStateChange(throttleKey, isThrottled) select * insert into Out;", events)
	} else {
		fmt.Fprintf(&b, " insert %s into Out;", events)
	}
	return b.String(), length
}

// history makes events whose times hug the boundaries of a window, with nulls; the last one stands far behind, so that all
// timers run.
func (g *generator) history(length int64) []historyEvent {
	at := int64(1_700_000_000_000) + g.Int64N(3)
	var events []historyEvent
	maybe := func(v value.Value) value.Value {
		if g.IntN(6) == 0 {
			return value.Value{}
		}
		return v
	}
	for range 3 + g.IntN(20) {
		at += []int64{0, 0, 1, 2, length/2 - 1, length / 2, length - 1, length, length + 1, 3*length + 1}[g.IntN(10)]
		if g.IntN(8) == 0 {
			at += length - at%length - 1
		}
		events = append(events, historyEvent{at, []value.Value{
			maybe(value.Text(g.one("x", "y", "null", "é"))), maybe(value.OfInt(int32(g.IntN(5) - 2))), maybe(value.OfLong(g.Int64N(5) - 1)),
			maybe(value.OfDouble(float64(g.IntN(9)-4) / 4)), maybe(value.OfFloat(float32(g.IntN(9)-4) / 8)),
			maybe(value.Text(g.one("x", "7", "", "it's", "true", "1.5"))), maybe(value.OfBool(g.IntN(2) == 0)),
		}})
	}
	last := events[len(events)-1]
	return append(events, historyEvent{last.at + 5*length, last.row})
}
