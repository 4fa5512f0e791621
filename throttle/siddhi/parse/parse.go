// Package parse reads SiddhiQL: the subset of contract traffic-manager.md 5.4 becomes a tree, and whatever else SiddhiQL
// knows is refused by name, with its line and column. It is a recursive descent, see docs/decisions/0041.
package parse

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/refusal"
)

const (
	// MaxTextBytes is the longest text that is read; longer ones are refused.
	MaxTextBytes = 256 << 10
	// maxDepth is how deep brackets, calls and nots may nest.
	maxDepth = 200
)

// Parse reads a whole text. The error is a *refusal.Error with the place of the first fault.
func Parse(src string) (*ast.Plan, error) {
	p, err := newParser(src)
	if err != nil {
		return nil, err
	}
	return caught(p.plan)
}

// Expr reads a text that is one expression.
func Expr(src string) (ast.Expr, error) {
	p, err := newParser(src)
	if err != nil {
		return nil, err
	}
	return caught(func() ast.Expr {
		e := p.expr()
		if p.peek().kind != end {
			p.unexpected("an operator or the end")
		}
		return e
	})
}

func newParser(src string) (*parser, error) {
	if len(src) > MaxTextBytes {
		return nil, fault(refusal.Syntax, ast.Pos{Line: 1, Column: 1}, "the text has %d bytes, the most is %d", len(src), MaxTextBytes)
	}
	return &parser{tokens: lex(src)}, nil
}

// caught turns the parser's own panic into an error; it never leaves the package.
func caught[T any](parse func() T) (result T, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *refusal.Error:
			var none T
			result, err = none, r
		default:
			panic(r)
		}
	}()
	return parse(), nil
}

type parser struct {
	tokens []token
	at     int
	depth  int
}

func (p *parser) peek() token { return p.ahead(0) }

func (p *parser) ahead(n int) token { return p.tokens[min(p.at+n, len(p.tokens)-1)] }

func (p *parser) next() token {
	t := p.peek()
	if t.kind != end {
		p.at++
	}
	return t
}

func (p *parser) fail(code refusal.Code, at ast.Pos, format string, args ...any) {
	panic(fault(code, at, format, args...))
}

func (p *parser) unexpected(wanted string) {
	t := p.peek()
	if t.kind == bad {
		p.fail(refusal.Syntax, t.pos, "%s", t.text)
	}
	p.fail(refusal.Syntax, t.pos, "expected %s, found %s", wanted, t.shown())
}

func (t token) is(s string) bool { return t.kind == symbol && t.text == s }

func (t token) keyword(w string) bool { return t.kind == word && strings.EqualFold(t.text, w) }

func (t token) anyKeyword(words ...string) bool {
	return slices.ContainsFunc(words, t.keyword)
}

func (t token) name() bool { return t.kind == word || t.kind == quoted }

func (p *parser) accept(s string) bool {
	if p.peek().is(s) {
		p.at++
		return true
	}
	return false
}

func (p *parser) acceptWord(w string) bool {
	if p.peek().keyword(w) {
		p.at++
		return true
	}
	return false
}

func (p *parser) expect(s string) {
	if !p.peek().is(s) {
		p.unexpected("'" + s + "'")
	}
	p.next()
}

func (p *parser) expectWord(w string) {
	if !p.peek().keyword(w) {
		p.unexpected("'" + w + "'")
	}
	p.next()
}

func (p *parser) name(what string) ast.Name {
	if !p.peek().name() {
		p.unexpected(what)
	}
	t := p.next()
	return ast.Name{Pos: t.pos, Text: t.text}
}

func (p *parser) plan() *ast.Plan {
	plan := &ast.Plan{}
	for {
		for p.accept(";") {
		}
		if p.peek().kind == end {
			break
		}
		storage := p.annotations()
		t := p.peek()
		switch {
		case t.keyword("define"):
			if len(plan.Queries) > 0 && p.ahead(1).keyword("stream") {
				p.fail(refusal.Syntax, t.pos, "define stream stands behind a query; definitions come first")
			}
			plan.Streams = append(plan.Streams, p.define(storage))
		case t.keyword("partition"):
			p.fail(refusal.UnsupportedPartition, t.pos, "partition with … is not supported")
		case t.keyword("from"):
			p.noStorage(storage)
			plan.Queries = append(plan.Queries, p.query())
		default:
			p.unexpected("'define' or 'from'")
		}
		if p.peek().kind == end {
			break
		}
		if !p.peek().is(";") {
			p.unexpected("';'")
		}
	}
	if len(plan.Queries) == 0 {
		p.fail(refusal.Syntax, p.peek().pos, "the text holds no query: 'from … select … insert into …' is missing")
	}
	return plan
}

// ignoredAnnotations name or describe a plan and change nothing in what it does.
var ignoredAnnotations = []string{"plan:name", "plan:description", "plan:trace", "plan:statistics", "import", "export", "info"}

// annotations reads "@name(…)". It returns the first one that binds a table to storage, for the definition behind it.
func (p *parser) annotations() (storage *token) {
	for p.peek().is("@") {
		at := p.next()
		name := p.name("the name of an annotation").Text
		if p.accept(":") {
			name += ":" + p.name("the name of an annotation").Text
		}
		if p.accept("(") {
			p.annotationElements()
		}
		known := false
		for _, ignored := range ignoredAnnotations {
			known = known || strings.EqualFold(name, ignored)
		}
		switch {
		case known:
		case strings.EqualFold(name, "from"), strings.EqualFold(name, "store"), strings.EqualFold(name, "indexBy"), strings.EqualFold(name, "primaryKey"), strings.EqualFold(name, "index"), strings.EqualFold(name, "cache"):
			if storage == nil {
				storage = &token{text: "@" + name, pos: at.pos}
			}
		default:
			p.fail(refusal.Syntax, at.pos, "the annotation @%s is not supported", name)
		}
	}
	return storage
}

func (p *parser) annotationElements() {
	for {
		if p.peek().name() {
			p.next()
			for p.accept(".") {
				p.name("the rest of a property name")
			}
			p.expect("=")
		}
		if p.peek().kind != text {
			p.unexpected("a text")
		}
		p.next()
		if p.accept(")") {
			return
		}
		p.expect(",")
	}
}

func (p *parser) noStorage(storage *token) {
	if storage != nil {
		p.fail(refusal.UnsupportedTable, storage.pos, "%s is not supported: there are no tables", storage.text)
	}
}

func (p *parser) define(storage *token) *ast.Stream {
	at := p.next().pos
	t := p.peek()
	p.at++ // over the end too: every case but stream stops here
	switch {
	case t.keyword("stream"):
	case t.keyword("table"):
		p.fail(refusal.UnsupportedTable, at, "define table is not supported")
	case t.keyword("window"):
		p.fail(refusal.UnsupportedWindow, at, "define window is not supported")
	case t.keyword("trigger"):
		p.fail(refusal.UnsupportedTrigger, at, "define trigger is not supported")
	case t.keyword("function"):
		p.fail(refusal.UnsupportedScript, at, "define function is not supported")
	default:
		p.at--
		p.unexpected("'stream'")
	}
	p.noStorage(storage)
	p.noInner()
	name := p.name("the name of a stream")
	s := &ast.Stream{Pos: name.Pos, Name: name.Text}
	p.expect("(")
	for {
		a := p.name("the name of an attribute")
		kind := p.peek()
		typ := ast.ParseType(strings.ToLower(kind.text))
		if kind.kind != word || typ == 0 {
			p.unexpected("a type (string, int, long, float, double, bool or object)")
		}
		p.next()
		s.Attributes = append(s.Attributes, ast.Attribute{Pos: a.Pos, Name: a.Text, Type: typ})
		if p.accept(")") {
			return s
		}
		p.expect(",")
	}
}

// noInner refuses "#Stream", a stream inside a partition.
func (p *parser) noInner() {
	if t := p.peek(); t.is("#") {
		p.fail(refusal.UnsupportedPartition, t.pos, "#%s is a stream inside a partition, which is not supported", p.ahead(1).text)
	}
}

func (p *parser) query() *ast.Query {
	q := &ast.Query{Pos: p.next().pos}
	p.source(q)
	for {
		h := p.handler()
		if h == nil {
			break
		}
		q.Handlers = append(q.Handlers, h)
	}
	p.afterSource()
	if p.acceptWord("select") {
		p.selection(q)
	}
	if t := p.peek(); t.keyword("output") {
		p.fail(refusal.UnsupportedOutputRate, t.pos, "output … every … is not supported: rows leave as they arise")
	}
	p.insert(q)
	return q
}

const patternFault = "patterns and sequences (every, ->) are not supported"

func (p *parser) source(q *ast.Query) {
	t, second := p.peek(), p.ahead(1)
	switch {
	case t.keyword("every") && (second.name() && !second.keyword("select") && !second.keyword("insert") || second.is("(")),
		t.keyword("not") && second.name() && !second.keyword("select") && !second.keyword("insert"),
		t.name() && second.is("="):
		p.fail(refusal.UnsupportedPattern, t.pos, patternFault)
	case t.is("("):
		if second.keyword("from") {
			p.fail(refusal.Syntax, t.pos, "a query inside a query is not supported")
		}
		p.fail(refusal.UnsupportedPattern, t.pos, patternFault)
	}
	p.noInner()
	q.Source = p.name("the name of a stream")
}

// afterSource names what may stand behind a source in Siddhi and not here.
func (p *parser) afterSource() {
	t := p.peek()
	switch {
	case t.is("->"), t.is(","):
		p.fail(refusal.UnsupportedPattern, t.pos, patternFault)
	case t.anyKeyword("join", "left", "right", "full", "outer", "inner", "unidirectional", "as"):
		p.fail(refusal.UnsupportedJoin, t.pos, "joins are not supported")
	case t.anyKeyword("select", "insert", "output", "update", "delete", "return"):
	default:
		p.unexpected("a filter, a window, 'select' or 'insert'")
	}
}

func (p *parser) handler() ast.Handler {
	t := p.peek()
	if t.is("[") || t.is("#") && p.ahead(1).is("[") {
		p.accept("#")
		p.expect("[")
		f := &ast.Filter{Pos: t.pos, Expr: p.expr()}
		p.expect("]")
		return f
	}
	if !t.is("#") {
		return nil
	}
	p.next()
	name := p.name("the name of a window or of a stream processor")
	if strings.EqualFold(name.Text, "window") && p.accept(".") {
		name = p.name("the name of a window")
		if p.peek().is(":") {
			p.fail(refusal.UnsupportedWindow, t.pos, "#window.%s:%s is not supported", name.Text, p.ahead(1).text)
		}
		return &ast.Window{Pos: t.pos, Name: name.Text, Args: p.args()}
	}
	h := &ast.Processor{Pos: t.pos, Name: name.Text}
	if p.accept(":") {
		h.Namespace, h.Name = name.Text, p.name("the name of a stream processor").Text
	} else if !p.peek().is("(") {
		p.unexpected("'.', ':' or '('")
	}
	h.Args = p.args()
	return h
}

func (p *parser) args() []ast.Expr {
	p.expect("(")
	if p.accept(")") {
		return nil
	}
	var args []ast.Expr
	for {
		if t := p.peek(); t.is("*") {
			p.fail(refusal.Syntax, t.pos, "'*' as an argument is not supported")
		}
		args = append(args, p.expr())
		if p.accept(")") {
			return args
		}
		if !p.peek().is(",") {
			p.unexpected("',' or ')'")
		}
		p.next()
	}
}

func (p *parser) selection(q *ast.Query) {
	if !p.accept("*") {
		for {
			q.Select = append(q.Select, p.item())
			if !p.accept(",") {
				break
			}
		}
	}
	if p.peek().keyword("group") && p.ahead(1).keyword("by") {
		p.at += 2
		for {
			q.GroupBy = append(q.GroupBy, p.ref())
			if t := p.peek(); t.is(":") || t.is("(") {
				p.fail(refusal.Syntax, t.pos, "group by takes attributes only, found %s", t.shown())
			}
			if !p.accept(",") {
				break
			}
		}
	}
	if p.acceptWord("having") {
		q.Having = p.expr()
	}
}

func (p *parser) item() ast.Item {
	e := p.expr()
	if p.acceptWord("as") {
		return ast.Item{Expr: e, As: p.name("the name of a column")}
	}
	ref, ok := e.(*ast.Ref)
	if !ok {
		p.unexpected("'as' and the name of the column")
	}
	return ast.Item{Expr: e, As: ast.Name{Pos: ref.Pos, Text: ref.Name}}
}

func (p *parser) insert(q *ast.Query) {
	t := p.peek()
	switch {
	case t.anyKeyword("update", "delete"):
		p.fail(refusal.UnsupportedTable, t.pos, "%s is not supported: there are no tables", strings.ToLower(t.text))
	case t.keyword("return"):
		p.fail(refusal.Syntax, t.pos, "return is not supported: a query ends with 'insert into'")
	}
	if !t.keyword("insert") {
		p.unexpected("'insert'")
	}
	p.next()
	t = p.peek()
	switch {
	case t.keyword("overwrite"):
		p.fail(refusal.UnsupportedTable, t.pos, "insert overwrite is not supported: there are no tables")
	case t.anyKeyword("all", "expired", "current"):
		switch p.next(); strings.ToLower(t.text) {
		case "all":
			q.Emit = ast.All
		case "expired":
			q.Emit = ast.Expired
		}
		p.expectWord("events")
	case t.keyword("events"):
		p.next()
	}
	p.expectWord("into")
	p.noInner()
	q.Target = p.name("the name of a stream")
}

func (p *parser) ref() *ast.Ref {
	first := p.name("an attribute")
	r := &ast.Ref{Pos: first.Pos, Name: first.Text}
	if t := p.peek(); t.is("[") || t.is("#") && !p.ahead(1).is("[") {
		p.fail(refusal.UnsupportedPattern, t.pos, "%s refers to an event of a pattern or a partition, which are not supported", first.Text+t.text)
	}
	if p.accept(".") {
		r.Stream, r.Name = first.Text, p.name("an attribute").Text
	}
	return r
}

func (p *parser) expr() ast.Expr { return p.binary(1) }

func (p *parser) enter(at ast.Pos) {
	if p.depth++; p.depth > maxDepth {
		p.fail(refusal.Syntax, at, "the expression nests deeper than %d", maxDepth)
	}
}

// tableLevel is how tightly "in Table" binds: between and and the equality operators.
const tableLevel = 3

func (p *parser) operator() ast.Op {
	t := p.peek()
	switch {
	case t.keyword("or"):
		return ast.Or
	case t.keyword("and"):
		return ast.And
	case t.kind != symbol:
		return 0
	}
	switch t.text {
	case "==":
		return ast.Eq
	case "!=":
		return ast.Ne
	case ">=":
		return ast.Ge
	case "<=":
		return ast.Le
	case ">":
		return ast.Gt
	case "<":
		return ast.Lt
	case "+":
		return ast.Add
	case "-":
		return ast.Sub
	case "*":
		return ast.Mul
	case "/":
		return ast.Div
	case "%":
		return ast.Mod
	}
	return 0
}

// binary reads operators that bind at least as tightly as level; all of them group to the left.
func (p *parser) binary(level int) ast.Expr {
	left := p.unary()
	for terms := 0; ; terms++ {
		if t := p.peek(); t.keyword("in") && level <= tableLevel {
			p.fail(refusal.UnsupportedTable, t.pos, "'in %s' asks a table, which is not supported", p.ahead(1).text)
		}
		op := p.operator()
		if op == 0 || op.Level() < level {
			return left
		}
		at := p.next().pos
		// A chain builds a tree that is deep on its left side; the compiler walks it.
		if terms == maxTerms {
			p.fail(refusal.Syntax, at, "more than %d operators in a row", maxTerms)
		}
		left = &ast.Binary{Pos: at, Op: op, Left: left, Right: p.binary(op.Level() + 1)}
	}
}

const maxTerms = 2000

func (p *parser) unary() ast.Expr {
	t := p.peek()
	p.enter(t.pos)
	defer func() { p.depth-- }()
	if t.keyword("not") && !p.ahead(1).is(".") {
		p.next()
		return &ast.Not{Pos: t.pos, Expr: p.unary()}
	}
	return p.primary()
}

func (p *parser) primary() ast.Expr {
	t := p.peek()
	switch t.kind {
	case text:
		p.next()
		return &ast.Literal{Pos: t.pos, Type: ast.String, Text: t.text}
	case integer, long, float, double:
		return p.number(t.pos, "")
	case symbol:
		switch {
		case t.text == "(":
			p.next()
			e := p.expr()
			if !p.peek().is(")") {
				p.unexpected("')' or an operator")
			}
			p.next()
			return e
		case (t.text == "-" || t.text == "+") && numeric(p.ahead(1).kind):
			p.next()
			return p.number(t.pos, t.text)
		}
	case word, quoted:
		if !p.ahead(1).is(".") && !p.ahead(1).is("(") && !p.ahead(1).is(":") && t.anyKeyword("true", "false") {
			p.next()
			return &ast.Literal{Pos: t.pos, Type: ast.Bool, Bool: strings.EqualFold(t.text, "true")}
		}
		return p.nullTest(p.named())
	}
	p.unexpected("an expression")
	return nil
}

func numeric(k kind) bool { return k == integer || k == long || k == float || k == double }

// named reads a call or an attribute.
func (p *parser) named() ast.Expr {
	if !p.ahead(1).is(":") && !p.ahead(1).is("(") {
		return p.ref()
	}
	name := p.name("a name")
	c := &ast.Call{Pos: name.Pos, Name: name.Text}
	if p.accept(":") {
		c.Namespace, c.Name = name.Text, p.name("the name of a function").Text
	}
	c.Args = p.args()
	return c
}

func (p *parser) nullTest(e ast.Expr) ast.Expr {
	if !p.peek().keyword("is") || !p.ahead(1).keyword("null") {
		return e
	}
	p.at += 2
	return &ast.IsNull{Pos: e.Position(), Expr: e}
}

// timeUnits in the order in which they may follow each other, with their milliseconds. A month is 30 days, a year 365.
var timeUnits = [...]struct {
	millis int64
	names  []string
}{
	{365 * 86_400_000, []string{"year", "years"}},
	{30 * 86_400_000, []string{"month", "months"}},
	{7 * 86_400_000, []string{"week", "weeks"}},
	{86_400_000, []string{"day", "days"}},
	{3_600_000, []string{"hour", "hours"}},
	{60_000, []string{"min", "minute", "minutes"}},
	{1000, []string{"sec", "second", "seconds"}},
	{1, []string{"millisec", "millisecond", "milliseconds"}},
}

func unit(t token) int {
	for i, u := range timeUnits {
		if t.anyKeyword(u.names...) {
			return i
		}
	}
	return -1
}

func (p *parser) number(at ast.Pos, sign string) ast.Expr {
	t := p.next()
	switch t.kind {
	case integer, long:
		n, err := strconv.ParseInt(sign+t.text, 10, 64)
		if err != nil {
			p.fail(refusal.Syntax, at, "the number %s%s does not fit into 64 bits", sign, clip(t.text))
		}
		if t.kind == integer && sign == "" && unit(p.peek()) >= 0 {
			return p.time(at, n)
		}
		if t.kind == long || n < math.MinInt32 || n > math.MaxInt32 {
			return &ast.Literal{Pos: at, Type: ast.Long, Int: n}
		}
		return &ast.Literal{Pos: at, Type: ast.Int, Int: n}
	case float:
		// Out of range becomes infinite, as in Java.
		f, _ := strconv.ParseFloat(sign+t.text, 32)
		return &ast.Literal{Pos: at, Type: ast.Float, Double: f}
	}
	d, _ := strconv.ParseFloat(sign+t.text, 64)
	return &ast.Literal{Pos: at, Type: ast.Double, Double: d}
}

// time reads "1 hour 30 min": larger units first, each once.
func (p *parser) time(at ast.Pos, n int64) ast.Expr {
	total, last := int64(0), -1
	for {
		t := p.peek()
		u := unit(t)
		if u <= last {
			p.fail(refusal.Syntax, t.pos, "in a time the larger units come first, each once: '%s' stands behind a smaller or equal one", t.text)
		}
		millis := timeUnits[u].millis
		if n > (math.MaxInt64-total)/millis {
			p.fail(refusal.Syntax, at, "the time does not fit into 64 bits of milliseconds")
		}
		total += n * millis
		last = u
		p.next()
		if next := p.peek(); next.kind != integer || unit(p.ahead(1)) < 0 {
			return &ast.Literal{Pos: at, Type: ast.Long, Int: total}
		}
		t = p.next()
		var err error
		if n, err = strconv.ParseInt(t.text, 10, 64); err != nil {
			p.fail(refusal.Syntax, t.pos, "the number %s does not fit into 64 bits", clip(t.text))
		}
	}
}
