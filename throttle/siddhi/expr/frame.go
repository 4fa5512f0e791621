// Package expr checks the types of SiddhiQL expressions by Siddhi's rules and compiles them to closures.
//
// The rules (contract traffic-manager.md 5.3): there is no implicit conversion but between numbers; a comparison with null
// is false, except != which is true; a cast converts nothing but an int to a long; a function that fails gives null, a bool
// one false; a value of another kind than declared in a comparison fails the event.
package expr

import (
	"time"

	"gatehouse/throttle/siddhi/value"
)

// Frame is what an expression is evaluated in. It belongs to one goroutine and is reused from event to event.
type Frame struct {
	Row  []value.Value // the attributes in scope
	Aggs []value.Value // the results of the aggregates of the query
	Now  int64         // the clock, ms since the epoch
	// Zone is the zone of dates; nil means UTC.
	Zone *time.Location
	// Failed is set when a value has another kind than its declaration says; the event is then lost for the query. The
	// caller clears it.
	Failed bool
	// Errors counts the functions that failed and gave null.
	Errors uint64

	stack []value.Value
	buf   []byte
}

func (f *Frame) now() time.Time {
	zone := f.Zone
	if zone == nil {
		zone = time.UTC
	}
	return time.UnixMilli(f.Now).In(zone)
}

// Eval computes a value.
type Eval func(*Frame) value.Value

// Cond computes a condition; null is false.
type Cond func(*Frame) bool

// Compiled is a checked expression.
type Compiled struct {
	Kind value.Kind // the static type; values at run time may be of another kind after a cast
	Eval Eval
	Cond Cond // set when Kind is Bool
	// Literal is true when the expression is written as a constant, not computed.
	Literal bool
	// Column is the index of the attribute when the expression is nothing but one, else -1.
	Column int
	// Reads are the indices of the attributes that the value depends on, some maybe twice. Compile fills it in.
	Reads []int
	// condition is true for what Siddhi builds as a condition: having accepts nothing else.
	condition bool
	// pure is true when the value depends on nothing but the text of the policy.
	pure bool
}

// Condition reports whether the expression may stand behind having: a bare attribute or constant may not.
func (c Compiled) Condition() bool { return c.Kind == value.Bool && c.condition }

func constant(v value.Value) Compiled {
	c := Compiled{Kind: v.Kind(), Column: -1, pure: true, Eval: func(*Frame) value.Value { return v }}
	if c.Kind == value.Bool {
		b := v.True()
		c.Cond = func(*Frame) bool { return b }
	}
	return c
}

// fold computes what depends on no event once, at deployment.
func fold(c Compiled) Compiled {
	if !c.pure || c.Literal {
		return c
	}
	var f Frame
	v := c.Eval(&f)
	if f.Failed || f.Errors > 0 {
		return c
	}
	kind, condition := c.Kind, c.condition
	if v.Kind() != kind && !v.IsNull() {
		return c
	}
	folded := constant(v)
	folded.Kind, folded.condition = kind, condition
	if kind == value.Bool {
		b := v.True()
		folded.Cond = func(*Frame) bool { return b }
	}
	return folded
}

// fromCond makes a bool expression of a condition.
func fromCond(cond Cond, pure bool) Compiled {
	return fold(Compiled{Kind: value.Bool, Column: -1, condition: true, pure: pure, Cond: cond, Eval: func(f *Frame) value.Value { return value.OfBool(cond(f)) }})
}
