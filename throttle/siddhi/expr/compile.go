package expr

import (
	"fmt"
	"math"
	"strings"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/refusal"
	"gatehouse/throttle/siddhi/value"
)

// Column is one attribute in scope.
type Column struct {
	Name string
	Kind value.Kind
}

// Scope is what an expression can name.
type Scope struct {
	Columns []Column
	// Stream is the name that may stand before an attribute; "" refuses none. The real engine does not check it.
	Stream string
	// Aggregates collects the aggregates of a select list; nil where none may stand, and Place then says where that is.
	Aggregates *[]Aggregate
	Place      string
}

// KindOf is the kind of a declared type.
func KindOf(t ast.Type) value.Kind { return value.Kind(t) }

// Compile checks and compiles an expression. The error is a *refusal.Error.
func Compile(e ast.Expr, scope *Scope) (c Compiled, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *refusal.Error:
			c, err = Compiled{}, r
		default:
			panic(r)
		}
	}()
	k := compiler{scope: scope}
	c = k.expr(e)
	c.Reads = k.reads
	return c, nil
}

type compiler struct {
	scope *Scope
	reads []int
}

func refuse(code refusal.Code, at ast.Pos, format string, args ...any) {
	panic(&refusal.Error{Code: code, Line: at.Line, Column: at.Column, Message: fmt.Sprintf(format, args...)})
}

func (k *compiler) expr(e ast.Expr) Compiled {
	switch e := e.(type) {
	case *ast.Literal:
		return literal(e)
	case *ast.Ref:
		return k.ref(e)
	case *ast.Not:
		return k.not(e)
	case *ast.IsNull:
		inner := k.expr(e.Expr)
		return fromCond(func(f *Frame) bool { return inner.Eval(f).IsNull() }, inner.pure)
	case *ast.Binary:
		return k.binary(e)
	case *ast.Call:
		return k.call(e)
	}
	refuse(refusal.Syntax, ast.Pos{}, "the expression is missing")
	return Compiled{}
}

func literal(l *ast.Literal) Compiled {
	var v value.Value
	switch l.Type {
	case ast.String:
		v = value.Text(l.Text)
	case ast.Int:
		v = value.OfInt(int32(l.Int))
	case ast.Long:
		v = value.OfLong(l.Int)
	case ast.Float:
		v = value.OfFloat(float32(l.Double))
	case ast.Double:
		v = value.OfDouble(l.Double)
	case ast.Bool:
		v = value.OfBool(l.Bool)
	default:
		refuse(refusal.Type, l.Pos, "a constant cannot be of type %s", l.Type)
	}
	c := constant(v)
	c.Literal = true
	return c
}

func (k *compiler) ref(r *ast.Ref) Compiled {
	if r.Stream != "" && k.scope.Stream != "" && r.Stream != k.scope.Stream {
		refuse(refusal.UnknownStream, r.Pos, "'%s.%s': the query reads from '%s'", r.Stream, r.Name, k.scope.Stream)
	}
	for i, c := range k.scope.Columns {
		if c.Name != r.Name {
			continue
		}
		k.reads = append(k.reads, i)
		out := Compiled{Kind: c.Kind, Column: i, Eval: func(f *Frame) value.Value { return f.Row[i] }}
		if c.Kind == value.Bool {
			out.Cond = func(f *Frame) bool { return truth(f, f.Row[i]) }
		}
		return out
	}
	names := make([]string, len(k.scope.Columns))
	for i, c := range k.scope.Columns {
		names[i] = c.Name
	}
	refuse(refusal.UnknownAttribute, r.Pos, "there is no attribute '%s' here; there are %s", r.Name, strings.Join(names, ", "))
	return Compiled{}
}

// truth reads a value where a bool is declared: null is false, anything else fails.
func truth(f *Frame, v value.Value) bool {
	if v.Kind() != value.Bool && !v.IsNull() {
		f.Failed = true
		return false
	}
	return v.True()
}

func (k *compiler) cond(e ast.Expr, what string) Compiled {
	c := k.expr(e)
	if c.Kind != value.Bool {
		refuse(refusal.Type, e.Position(), "%s takes a bool, this is of type %s", what, c.Kind)
	}
	return c
}

func (k *compiler) not(n *ast.Not) Compiled {
	inner := k.cond(n.Expr, "not")
	return fromCond(func(f *Frame) bool { return !inner.Cond(f) }, inner.pure)
}

func (k *compiler) binary(b *ast.Binary) Compiled {
	switch b.Op {
	case ast.Or, ast.And:
		l, r := k.cond(b.Left, "'"+b.Op.String()+"'"), k.cond(b.Right, "'"+b.Op.String()+"'")
		pure := l.pure && r.pure
		left, right := l.Cond, r.Cond
		if b.Op == ast.Or {
			return fromCond(func(f *Frame) bool { return left(f) || !f.Failed && right(f) }, pure)
		}
		// Both sides run, as in Siddhi, where a failure on the right loses the event even when the left is false.
		return fromCond(func(f *Frame) bool {
			x := left(f)
			if f.Failed {
				return false
			}
			y := right(f)
			return x && y
		}, pure)
	}
	l, r := k.expr(b.Left), k.expr(b.Right)
	if b.Op >= ast.Add {
		return arithmetic(b, l, r)
	}
	return comparison(b, l, r)
}

func wider(a, b value.Kind) value.Kind {
	switch {
	case a == value.Double || b == value.Double:
		return value.Double
	case a == value.Float || b == value.Float:
		return value.Float
	case a == value.Long || b == value.Long:
		return value.Long
	case a == value.Int || b == value.Int:
		return value.Int
	}
	return value.Null
}

func arithmetic(b *ast.Binary, l, r Compiled) Compiled {
	kind := wider(l.Kind, r.Kind)
	if kind == value.Null {
		refuse(refusal.Type, b.Pos, "'%s' cannot compute with %s and %s; texts are joined with str:concat", b.Op, l.Kind, r.Kind)
	}
	op := b.Op
	left, right := l.Eval, r.Eval
	return fold(Compiled{Kind: kind, Column: -1, pure: l.pure && r.pure, Eval: func(f *Frame) value.Value {
		x := left(f)
		if f.Failed {
			return value.Value{}
		}
		y := right(f)
		if f.Failed || x.IsNull() || y.IsNull() {
			return value.Value{}
		}
		if !x.Kind().Numeric() || !y.Kind().Numeric() {
			f.Failed = true
			return value.Value{}
		}
		return compute(op, kind, x, y)
	}})
}

func compute(op ast.Op, kind value.Kind, x, y value.Value) value.Value {
	switch kind {
	case value.Int:
		a, b := x.ToInt(), y.ToInt()
		switch op {
		case ast.Add:
			return value.OfInt(a + b)
		case ast.Sub:
			return value.OfInt(a - b)
		case ast.Mul:
			return value.OfInt(a * b)
		}
		switch {
		case b == 0:
			return value.Value{}
		case op == ast.Div:
			return value.OfInt(a / b)
		}
		return value.OfInt(a % b)
	case value.Long:
		a, b := x.ToLong(), y.ToLong()
		switch op {
		case ast.Add:
			return value.OfLong(a + b)
		case ast.Sub:
			return value.OfLong(a - b)
		case ast.Mul:
			return value.OfLong(a * b)
		}
		switch {
		case b == 0:
			return value.Value{}
		case op == ast.Div:
			return value.OfLong(a / b)
		}
		return value.OfLong(a % b)
	case value.Float:
		a, b := x.ToFloat(), y.ToFloat()
		switch op {
		case ast.Add:
			return value.OfFloat(a + b)
		case ast.Sub:
			return value.OfFloat(a - b)
		case ast.Mul:
			return value.OfFloat(a * b)
		}
		switch {
		case b == 0:
			return value.Value{}
		case op == ast.Div:
			return value.OfFloat(a / b)
		}
		return value.OfFloat(float32(math.Mod(float64(a), float64(b))))
	}
	a, b := x.ToDouble(), y.ToDouble()
	switch op {
	case ast.Add:
		return value.OfDouble(a + b)
	case ast.Sub:
		return value.OfDouble(a - b)
	case ast.Mul:
		return value.OfDouble(a * b)
	}
	switch {
	case b == 0:
		return value.Value{}
	case op == ast.Div:
		return value.OfDouble(a / b)
	}
	return value.OfDouble(math.Mod(a, b))
}

func comparison(b *ast.Binary, l, r Compiled) Compiled {
	op, equality := b.Op, b.Op <= ast.Ne
	pure := l.pure && r.pure
	switch {
	case l.Kind.Numeric() && r.Kind.Numeric():
		return fromCond(compareNumbers(op, l, r), pure)
	case equality && l.Kind == value.String && r.Kind == value.String:
		return fromCond(compareTexts(op == ast.Ne, l, r), pure)
	case equality && l.Kind == value.Bool && r.Kind == value.Bool:
		return fromCond(compareBools(op == ast.Ne, l.Eval, r.Eval), pure)
	}
	hint := ""
	switch {
	case l.Kind == value.Object || r.Kind == value.Object:
		hint = "; name the type of an object with cast(…, 'string')"
	case l.Kind == r.Kind:
		hint = "; only numbers have an order"
	}
	refuse(refusal.Type, b.Pos, "'%s' cannot compare %s with %s%s", op, l.Kind, r.Kind, hint)
	return Compiled{}
}

func compareTexts(not bool, l, r Compiled) Cond {
	left, right := l.Eval, r.Eval
	if r.Literal || l.Literal {
		if l.Literal {
			left, right = right, left
		}
		text := right(nil).Str()
		return func(f *Frame) bool {
			v := left(f)
			if v.Kind() != value.String {
				return not // null, or another kind that a cast let through
			}
			return (v.Str() == text) != not
		}
	}
	return func(f *Frame) bool {
		x := left(f)
		if f.Failed {
			return false
		}
		y := right(f)
		if x.IsNull() || y.IsNull() {
			return not
		}
		return x.Equal(y) != not
	}
}

func compareBools(not bool, left, right Eval) Cond {
	return func(f *Frame) bool {
		x := left(f)
		if f.Failed {
			return false
		}
		y := right(f)
		if f.Failed {
			return false
		}
		if x.IsNull() || y.IsNull() {
			return not
		}
		if x.Kind() != value.Bool || y.Kind() != value.Bool {
			f.Failed = true
			return false
		}
		return (x.True() == y.True()) != not
	}
}

func compareNumbers(op ast.Op, l, r Compiled) Cond {
	left, right, leftKind, rightKind := l.Eval, r.Eval, l.Kind, r.Kind
	test := order(op, wider(leftKind, rightKind))
	return func(f *Frame) bool {
		x := left(f)
		if f.Failed {
			return false
		}
		y := right(f)
		if f.Failed {
			return false
		}
		if x.Kind() != leftKind || y.Kind() != rightKind {
			if x.IsNull() || y.IsNull() {
				return op == ast.Ne
			}
			f.Failed = true
			return false
		}
		return test(x, y)
	}
}

// order compares as the wider of the two types does.
func order(op ast.Op, kind value.Kind) func(x, y value.Value) bool {
	switch kind {
	case value.Double:
		return ordered(op, value.Value.ToDouble)
	case value.Float:
		return ordered(op, value.Value.ToFloat)
	}
	// The two that policies use most are written out: a call through a function value costs more than the comparison.
	switch op {
	case ast.Ge:
		return func(x, y value.Value) bool { return x.Int64() >= y.Int64() }
	case ast.Gt:
		return func(x, y value.Value) bool { return x.Int64() > y.Int64() }
	}
	return ordered(op, value.Value.ToLong)
}

func ordered[T int64 | float32 | float64](op ast.Op, of func(value.Value) T) func(x, y value.Value) bool {
	switch op {
	case ast.Eq:
		return func(x, y value.Value) bool { return of(x) == of(y) }
	case ast.Ne:
		return func(x, y value.Value) bool { return of(x) != of(y) }
	case ast.Ge:
		return func(x, y value.Value) bool { return of(x) >= of(y) }
	case ast.Le:
		return func(x, y value.Value) bool { return of(x) <= of(y) }
	case ast.Gt:
		return func(x, y value.Value) bool { return of(x) > of(y) }
	}
	return func(x, y value.Value) bool { return of(x) < of(y) }
}
