package expr

import (
	"fmt"
	"strings"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/refusal"
	"gatehouse/throttle/siddhi/value"
)

// Aggregator is what an aggregate computes.
type Aggregator uint8

// The aggregates.
const (
	Count Aggregator = iota + 1
	Sum
	Avg
	Min
	Max
	DistinctCount
)

// Aggregate is one aggregate of a select list. Its result stands in Frame.Aggs at its index in the list.
type Aggregate struct {
	Function Aggregator
	Kind     value.Kind // of the result
	// Arg is what is aggregated; count needs none, and then Arg.Eval is nil.
	Arg Compiled
	// Reset is the flag of throttler:count and throttler:sum: true zeroes the key. Its Cond is nil without.
	Reset Compiled
}

var aggregators = map[string]Aggregator{
	"count": Count, "sum": Sum, "avg": Avg, "min": Min, "max": Max, "distinctcount": DistinctCount,
}

// impl computes a function; ok is false when Java's would throw.
type impl func(f *Frame, args []value.Value) (v value.Value, ok bool)

// signature checks the arguments of a function and gives its type and its code.
type signature func(c *call) (value.Kind, impl)

// call is a call under check.
type call struct {
	*ast.Call
	args []Compiled
	// impure is set by functions whose value depends on more than their arguments.
	impure bool
}

func (c *call) name() string {
	if c.Namespace == "" {
		return c.Name
	}
	return c.Namespace + ":" + c.Name
}

func (c *call) refuse(format string, args ...any) {
	refuse(refusal.Type, c.Pos, "%s(): %s", c.name(), fmt.Sprintf(format, args...))
}

// count demands a number of arguments; most < 0 means any number.
func (c *call) count(least, most int) {
	switch n := len(c.args); {
	case n >= least && (most < 0 || n <= most):
	case least == most:
		c.refuse("takes %d arguments, found %d", least, n)
	case most < 0:
		c.refuse("takes %d or more arguments, found %d", least, n)
	default:
		c.refuse("takes %d to %d arguments, found %d", least, most, n)
	}
}

// kind demands the type of one argument.
func (c *call) kind(i int, allowed ...value.Kind) value.Kind {
	names := make([]string, len(allowed))
	for n, k := range allowed {
		if c.args[i].Kind == k {
			return k
		}
		names[n] = k.String()
	}
	refuse(refusal.Type, c.Args[i].Position(), "%s(): argument %d takes %s, this is of type %s", c.name(), i+1, strings.Join(names, ", "), c.args[i].Kind)
	return 0
}

func (c *call) kinds(allowed ...value.Kind) {
	c.count(len(allowed), len(allowed))
	for i, k := range allowed {
		c.kind(i, k)
	}
}

// text is the constant text that an argument must be.
func (c *call) text(i int, what string) string {
	if !c.args[i].Literal || c.args[i].Kind != value.String {
		refuse(refusal.Type, c.Args[i].Position(), "%s(): argument %d must be a constant text: %s", c.name(), i+1, what)
	}
	return c.args[i].Eval(nil).Str()
}

func (k *compiler) call(e *ast.Call) Compiled {
	if function, reset := aggregatorOf(e); function != 0 {
		return k.aggregate(e, function, reset)
	}
	sig, ok := functions[functionName(e)]
	if !ok {
		name := (&call{Call: e}).name()
		hint := ""
		if sig, known := functions[strings.ToLower(name)]; known && sig != nil {
			hint = "; names of functions are case-sensitive"
		}
		refuse(refusal.UnknownFunction, e.Pos, "there is no function '%s'%s", name, hint)
	}
	c := &call{Call: e, args: make([]Compiled, len(e.Args))}
	pure := true
	for i, a := range e.Args {
		c.args[i] = k.expr(a)
		pure = pure && c.args[i].pure
	}
	kind, code := sig(c)
	out := Compiled{Kind: kind, Column: -1, condition: kind == value.Bool, pure: pure && !c.impure}
	if special := c.special(kind); special != nil {
		out.Eval = special
	} else {
		out.Eval = invoke(c.args, code)
	}
	if kind == value.Bool {
		// Siddhi wraps every function of type bool: null becomes false at once, another kind fails the event.
		inner := out.Eval
		out.Cond = func(f *Frame) bool { return truth(f, inner(f)) }
		out.Eval = func(f *Frame) value.Value { return value.OfBool(truth(f, inner(f))) }
	}
	return fold(out)
}

// functionName is the key of a function: the first letter of one without a namespace is free.
func functionName(e *ast.Call) string {
	if e.Namespace != "" {
		return e.Namespace + ":" + e.Name
	}
	if e.Name == "UUID" || e.Name == "uUID" {
		return "uUID"
	}
	return strings.ToLower(e.Name[:1]) + e.Name[1:]
}

// aggregatorOf finds an aggregate; reset is true for the two of the throttler that take a flag. Any case is taken.
func aggregatorOf(e *ast.Call) (function Aggregator, reset bool) {
	if e.Namespace == "" {
		return aggregators[strings.ToLower(e.Name)], false
	}
	if e.Namespace == "throttler" {
		switch strings.ToLower(e.Name) {
		case "count":
			return Count, true
		case "sum":
			return Sum, true
		}
	}
	return 0, false
}

// invoke evaluates the arguments on the frame's stack. An argument that fails makes the function fail, not the event: Siddhi
// evaluates the arguments inside of the function.
func invoke(args []Compiled, code impl) Eval {
	evals := make([]Eval, len(args))
	for i, a := range args {
		evals[i] = a.Eval
	}
	return func(f *Frame) value.Value {
		base := len(f.stack)
		for _, eval := range evals {
			v := eval(f)
			if f.Failed {
				f.stack = f.stack[:base]
				return f.thrown()
			}
			f.stack = append(f.stack, v)
		}
		v, ok := code(f, f.stack[base:])
		f.stack = f.stack[:base]
		if !ok {
			return f.thrown()
		}
		return v
	}
}

// thrown is what a function gives that would throw in Java.
func (f *Frame) thrown() value.Value {
	f.Failed = false
	f.Errors++
	return value.Value{}
}

func (k *compiler) aggregate(e *ast.Call, function Aggregator, reset bool) Compiled {
	c := &call{Call: e}
	for _, a := range e.Args {
		c.args = append(c.args, k.expr(a))
	}
	if k.scope.Aggregates == nil {
		refuse(refusal.Type, e.Pos, "%s(): an aggregate cannot stand in %s", c.name(), k.scope.Place)
	}
	a := Aggregate{Function: function}
	switch {
	case reset:
		c.count(2, 2)
		c.kind(1, value.Bool)
		a.Reset = c.args[1]
	case function == Count:
	default:
		c.count(1, 1)
	}
	if len(c.args) > 0 {
		a.Arg = c.args[0]
	}
	switch function {
	case Count, DistinctCount:
		a.Kind = value.Long
	case Sum:
		if k := c.kind(0, value.Int, value.Long, value.Float, value.Double); k <= value.Long {
			a.Kind = value.Long
		} else {
			a.Kind = value.Double
		}
	case Avg:
		c.kind(0, value.Int, value.Long, value.Float, value.Double)
		a.Kind = value.Double
	case Min, Max:
		a.Kind = c.kind(0, value.Int, value.Long, value.Float, value.Double)
	}
	i := len(*k.scope.Aggregates)
	*k.scope.Aggregates = append(*k.scope.Aggregates, a)
	return Compiled{Kind: a.Kind, Column: -1, Eval: func(f *Frame) value.Value { return f.Aggs[i] }}
}

// special gives code for the functions that the events of nearly every policy pass through, without the detour over the
// stack of arguments; nil for the others.
func (c *call) special(kind value.Kind) Eval {
	switch c.name() {
	case "map:get":
		if !c.args[1].Literal {
			return nil
		}
		of, key := c.args[0].Eval, c.args[1].Eval(nil)
		return func(f *Frame) value.Value {
			v := of(f)
			m, ok := v.Map()
			if f.Failed || !ok {
				return f.thrown()
			}
			return m[key.Str()]
		}
	case "str:concat":
		return joined(c.args)
	case "cast", "Cast":
		of := c.args[0].Eval
		return func(f *Frame) value.Value {
			v := of(f)
			if f.Failed {
				return f.thrown()
			}
			if kind == value.Long && v.Kind() == value.Int {
				return value.OfLong(v.Int64())
			}
			return v
		}
	case "ifThenElse", "IfThenElse":
		cond, yes, no := c.args[0].Cond, c.args[1].Eval, c.args[2].Eval
		return func(f *Frame) value.Value {
			holds := cond(f)
			if f.Failed {
				return f.thrown()
			}
			var v value.Value
			if holds {
				v = yes(f)
			} else {
				v = no(f)
			}
			if f.Failed {
				return f.thrown()
			}
			return v
		}
	}
	return nil
}
