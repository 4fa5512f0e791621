// Package ast is the syntax tree of the SiddhiQL subset that Gatehouse runs (contract traffic-manager.md 5.4), and prints
// a tree back as text. Trees may also be built by hand: policies that come as data are compiled from a tree, without text.
package ast

// Pos is a place in a text; line and column count from 1. The zero value is the place of a node that no text holds.
type Pos struct{ Line, Column int }

// Plan is a whole text: stream definitions, then queries in the order of the data flow.
type Plan struct {
	Streams []*Stream
	Queries []*Query
}

// Stream is "define stream Name (attributes)".
type Stream struct {
	Pos        Pos
	Name       string
	Attributes []Attribute
}

// Attribute is one column of a stream definition.
type Attribute struct {
	Pos  Pos
	Name string
	Type Type
}

// Type is a declared type.
type Type uint8

// The types of SiddhiQL.
const (
	String Type = iota + 1
	Int
	Long
	Float
	Double
	Bool
	Object
)

var typeNames = [...]string{"", "string", "int", "long", "float", "double", "bool", "object"}

// String is the keyword of the type.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return "invalid"
}

// ParseType finds a type by its keyword in lower case; 0 when there is none of that name.
func ParseType(name string) Type {
	for i, n := range typeNames {
		if i > 0 && n == name {
			return Type(i)
		}
	}
	return 0
}

// Query is "from … select … insert into …".
type Query struct {
	Pos      Pos
	Source   Name
	Handlers []Handler
	// Select is nil for "select *" and for a query without select: all attributes go through.
	Select  []Item
	GroupBy []*Ref
	Having  Expr // nil without
	Emit    Emit
	Target  Name
}

// Name is an identifier with its place.
type Name struct {
	Pos  Pos
	Text string
}

// Handler is a step between the source and the select: *Filter, *Processor or *Window.
type Handler interface{ handler() }

// Filter is "[expr]".
type Filter struct {
	Pos  Pos
	Expr Expr
}

// Processor is "#namespace:name(args)", such as #throttler:timeBatch(1 min).
type Processor struct {
	Pos       Pos
	Namespace string
	Name      string
	Args      []Expr
}

// Window is "#window.name(args)".
type Window struct {
	Pos  Pos
	Name string
	Args []Expr
}

func (*Filter) handler()    {}
func (*Processor) handler() {}
func (*Window) handler()    {}

// Item is one column of the select list; As is never empty.
type Item struct {
	Expr Expr
	As   Name
}

// Emit says which events of a window go into the target.
type Emit uint8

// The choices of "insert [… events] into"; current is the default.
const (
	Current Emit = iota
	All
	Expired
)

// Expr is an expression node.
type Expr interface{ Position() Pos }

// Op is an operator of two sides.
type Op uint8

// The operators, loosest first.
const (
	Or Op = iota + 1
	And
	Eq
	Ne
	Ge
	Le
	Gt
	Lt
	Add
	Sub
	Mul
	Div
	Mod
)

var opText = [...]string{"", "or", "and", "==", "!=", ">=", "<=", ">", "<", "+", "-", "*", "/", "%"}

// String is the operator as it is written.
func (o Op) String() string { return opText[o] }

// level is how tightly the operator binds.
func (o Op) level() int {
	switch {
	case o == Or:
		return 1
	case o == And:
		return 2
	case o <= Ne:
		return 4
	case o <= Lt:
		return 5
	case o <= Sub:
		return 6
	}
	return 7
}

// Level is how tightly the operator binds, 1 (or) to 7 (multiplication); "in" of tables would be 3.
func (o Op) Level() int { return o.level() }

// Binary is "left op right"; Pos is the place of the operator.
type Binary struct {
	Pos         Pos
	Op          Op
	Left, Right Expr
}

// Not is "not expr". It binds tighter than any other operator.
type Not struct {
	Pos  Pos
	Expr Expr
}

// IsNull is "expr is null"; the expression is a *Ref or a *Call.
type IsNull struct {
	Pos  Pos
	Expr Expr
}

// Call is "[namespace:]name(args)".
type Call struct {
	Pos       Pos
	Namespace string
	Name      string
	Args      []Expr
}

// Ref is an attribute, with the name of a stream before it or without.
type Ref struct {
	Pos    Pos
	Stream string // "" without
	Name   string
}

// Literal is a constant; which field holds it follows from Type. Times are longs of milliseconds.
type Literal struct {
	Pos    Pos
	Type   Type
	Text   string  // String
	Int    int64   // Int and Long
	Double float64 // Double; a Float holds the exact value of its 32 bits
	Bool   bool
}

// Position is the place of the operator.
func (e *Binary) Position() Pos { return e.Pos }

// Position is the place of the word not.
func (e *Not) Position() Pos { return e.Pos }

// Position is the place of what is tested.
func (e *IsNull) Position() Pos { return e.Pos }

// Position is the place of the name, with the namespace.
func (e *Call) Position() Pos { return e.Pos }

// Position is the place of the name.
func (e *Ref) Position() Pos { return e.Pos }

// Position is the place of its first character.
func (e *Literal) Position() Pos { return e.Pos }
