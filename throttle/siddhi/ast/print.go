package ast

import (
	"math"
	"strconv"
	"strings"
)

// Print renders a plan as SiddhiQL text that parses to an equal tree, places apart. A text with both quotes in one literal
// cannot be written in SiddhiQL; such a literal, which no parser made, comes out as it is and would not parse.
func Print(p *Plan) string {
	var b strings.Builder
	for _, s := range p.Streams {
		b.WriteString("define stream ")
		ident(&b, s.Name)
		b.WriteString(" (")
		for i, a := range s.Attributes {
			if i > 0 {
				b.WriteString(", ")
			}
			ident(&b, a.Name)
			b.WriteByte(' ')
			b.WriteString(a.Type.String())
		}
		b.WriteString(");\n")
	}
	for _, q := range p.Queries {
		printQuery(&b, q)
		b.WriteString(";\n")
	}
	return b.String()
}

// PrintExpr renders one expression.
func PrintExpr(e Expr) string {
	var b strings.Builder
	printExpr(&b, e, 0)
	return b.String()
}

func printQuery(b *strings.Builder, q *Query) {
	b.WriteString("from ")
	ident(b, q.Source.Text)
	for _, h := range q.Handlers {
		switch h := h.(type) {
		case *Filter:
			b.WriteByte('[')
			printExpr(b, h.Expr, 0)
			b.WriteByte(']')
		case *Processor:
			b.WriteByte('#')
			if h.Namespace != "" {
				ident(b, h.Namespace)
				b.WriteByte(':')
			}
			ident(b, h.Name)
			printArgs(b, h.Args)
		case *Window:
			b.WriteString("#window.")
			ident(b, h.Name)
			printArgs(b, h.Args)
		}
	}
	b.WriteString(" select ")
	if q.Select == nil {
		b.WriteByte('*')
	}
	for i, item := range q.Select {
		if i > 0 {
			b.WriteString(", ")
		}
		printExpr(b, item.Expr, 0)
		b.WriteString(" as ")
		ident(b, item.As.Text)
	}
	for i, g := range q.GroupBy {
		if i == 0 {
			b.WriteString(" group by ")
		} else {
			b.WriteString(", ")
		}
		printExpr(b, g, 0)
	}
	if q.Having != nil {
		b.WriteString(" having ")
		printExpr(b, q.Having, 0)
	}
	switch q.Emit {
	case Current:
		b.WriteString(" insert into ")
	case All:
		b.WriteString(" insert all events into ")
	case Expired:
		b.WriteString(" insert expired events into ")
	}
	ident(b, q.Target.Text)
}

func printArgs(b *strings.Builder, args []Expr) {
	b.WriteByte('(')
	for i, a := range args {
		if i > 0 {
			b.WriteString(", ")
		}
		printExpr(b, a, 0)
	}
	b.WriteByte(')')
}

// primaryLevel is above every operator; not stands just below it.
const (
	notLevel     = 8
	primaryLevel = 9
)

// printExpr writes brackets when the node binds looser than its surroundings need.
func printExpr(b *strings.Builder, e Expr, need int) {
	level := primaryLevel
	switch e := e.(type) {
	case *Binary:
		level = e.Op.level()
	case *Not:
		level = notLevel
	}
	if level < need {
		b.WriteByte('(')
		defer b.WriteByte(')')
	}
	switch e := e.(type) {
	case *Binary:
		printExpr(b, e.Left, level)
		b.WriteByte(' ')
		b.WriteString(e.Op.String())
		b.WriteByte(' ')
		printExpr(b, e.Right, level+1)
	case *Not:
		b.WriteString("not ")
		printExpr(b, e.Expr, notLevel)
	case *IsNull:
		printExpr(b, e.Expr, primaryLevel)
		b.WriteString(" is null")
	case *Call:
		if e.Namespace != "" {
			ident(b, e.Namespace)
			b.WriteByte(':')
		}
		ident(b, e.Name)
		printArgs(b, e.Args)
	case *Ref:
		if e.Stream != "" {
			ident(b, e.Stream)
			b.WriteByte('.')
		}
		ident(b, e.Name)
	case *Literal:
		printLiteral(b, e)
	}
}

func printLiteral(b *strings.Builder, l *Literal) {
	switch l.Type {
	case String:
		quote := "'"
		if strings.ContainsRune(l.Text, '\'') {
			quote = `"`
		}
		b.WriteString(quote + l.Text + quote)
	case Int:
		b.WriteString(strconv.FormatInt(l.Int, 10))
	case Long:
		b.WriteString(strconv.FormatInt(l.Int, 10) + "L")
	case Float:
		b.WriteString(number(l.Double, 32) + "f")
	case Double:
		b.WriteString(number(l.Double, 64) + "d")
	case Bool:
		b.WriteString(strconv.FormatBool(l.Bool))
	}
}

// ident quotes every name: keywords may be names, and quoting is always right.
func ident(b *strings.Builder, name string) { b.WriteString("`" + name + "`") }

// number writes what cannot be said of infinity as a number that is too large.
func number(f float64, bits int) string {
	switch {
	case math.IsInf(f, 1):
		return "1e999"
	case math.IsInf(f, -1):
		return "-1e999"
	}
	return strconv.FormatFloat(f, 'g', -1, bits)
}
