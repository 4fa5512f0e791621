package siddhi

import (
	"fmt"
	"slices"
	"strings"

	"gatehouse/throttle/siddhi/aggregate"
	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/expr"
	"gatehouse/throttle/siddhi/refusal"
	"gatehouse/throttle/siddhi/value"
)

// query is a checked and compiled query.
type query struct {
	source, target StreamID
	columns        []expr.Column // of the source, with those that the window adds
	steps          []stepPlan
	window         int // index of the window among the steps, -1 without
	items          []expr.Compiled
	aggregates     []expr.Aggregate
	specs          []aggregate.Spec
	groupBy        []int // columns
	having         expr.Cond
	current        bool // rows of arriving events go on
	expired        bool // rows of leaving events go on
}

// stateful reports whether the query remembers anything that depends on which events it saw.
func (q *query) stateful() bool { return len(q.aggregates) > 0 }

type stepKind uint8

const (
	filterStep stepKind = iota
	throttleStep
	lengthStep
	changeStep
	slidingStep
	batchStep
)

// stepPlan is one handler.
type stepPlan struct {
	kind     stepKind
	cond     expr.Cond
	reads    []int // columns that the condition needs
	length   int64 // ms
	aligned  bool  // start was given
	start    int64
	limit    int64
	key      int // column
	flag     int // column
	firstRow expr.Eval
}

func refuse(code refusal.Code, at ast.Pos, format string, args ...any) *refusal.Error {
	return &refusal.Error{Code: code, Line: at.Line, Column: at.Column, Message: fmt.Sprintf(format, args...)}
}

// CompileTree checks and compiles a tree. The error is an *Error; its place is that of the node, 0 for nodes without.
func CompileTree(tree *ast.Plan, options Options) (*Plan, error) {
	p := &Plan{names: map[string]StreamID{}, profile: options.Profile}
	around := options.Streams
	if around == nil {
		around = []*ast.Stream{Requests()}
	}
	for _, s := range around {
		if err := p.define(s); err != nil {
			return nil, err
		}
	}
	for _, s := range tree.Streams {
		if err := p.define(s); err != nil {
			return nil, err
		}
	}
	queries := tree.Queries
	for _, q := range queries {
		if err := p.add(q); err != nil {
			return nil, err
		}
	}
	if !options.Free {
		if err := p.result(tree); err != nil {
			return nil, err
		}
	}
	if err := p.acyclic(queries); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Plan) define(s *ast.Stream) error {
	if _, known := p.names[s.Name]; known {
		return refuse(refusal.Type, s.Pos, "stream '%s' is defined twice", s.Name)
	}
	columns := make([]expr.Column, len(s.Attributes))
	for i, a := range s.Attributes {
		columns[i] = expr.Column{Name: a.Name, Kind: expr.KindOf(a.Type)}
		if name, twice := duplicate(columns[:i+1]); twice {
			return refuse(refusal.Type, a.Pos, "attribute '%s' of stream '%s' is defined twice", name, s.Name)
		}
	}
	p.newStream(s.Name, columns)
	return nil
}

func (p *Plan) newStream(name string, columns []expr.Column) StreamID {
	id := StreamID(len(p.streams))
	p.streams = append(p.streams, &stream{name: name, columns: columns})
	p.names[name] = id
	return id
}

// duplicate reports whether the last column has the name of one before.
func duplicate(columns []expr.Column) (string, bool) {
	last := columns[len(columns)-1].Name
	for _, c := range columns[:len(columns)-1] {
		if c.Name == last {
			return last, true
		}
	}
	return last, false
}

// resultColumns is what ResultStream must be.
var resultColumns = []expr.Column{{Name: "throttleKey", Kind: value.String}, {Name: "isThrottled", Kind: value.Bool}, {Name: "expiryTimeStamp", Kind: value.Long}}

func described(columns []expr.Column) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		parts[i] = c.Name + " " + c.Kind.String()
	}
	return "(" + strings.Join(parts, ", ") + ")"
}

func same(a, b []expr.Column) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// result demands ResultStream and adds the query that makes decisions of its rows.
func (p *Plan) result(tree *ast.Plan) error {
	id, ok := p.names[ResultStream]
	if !ok {
		return refuse(refusal.ResultSchema, ast.Pos{}, "no query inserts into %s %s", ResultStream, described(resultColumns))
	}
	if !same(p.streams[id].columns, resultColumns) {
		at := ast.Pos{}
		for _, q := range tree.Queries {
			if q.Target.Text == ResultStream {
				at = q.Target.Pos
			}
		}
		return refuse(refusal.ResultSchema, at, "%s must be %s, in this order; it is %s", ResultStream, described(resultColumns), described(p.streams[id].columns))
	}
	for _, q := range p.queries {
		if p.streams[q.target].name == GlobalThrottleStream {
			return nil
		}
	}
	return p.add(&ast.Query{
		Source: ast.Name{Text: ResultStream},
		Handlers: []ast.Handler{&ast.Processor{
			Namespace: "throttler", Name: "emitOnStateChange",
			Args: []ast.Expr{&ast.Ref{Name: "throttleKey"}, &ast.Ref{Name: "isThrottled"}},
		}},
		Target: ast.Name{Text: GlobalThrottleStream},
	})
}

func (p *Plan) add(tree *ast.Query) error {
	id, ok := p.names[tree.Source.Text]
	if !ok {
		return refuse(refusal.UnknownStream, tree.Source.Pos, "there is no stream '%s' here; a query stands behind the one that feeds it", tree.Source.Text)
	}
	q := &query{source: id, window: -1, columns: p.streams[id].columns, current: tree.Emit != ast.Expired, expired: tree.Emit != ast.Current}
	for _, h := range tree.Handlers {
		if err := q.handler(h, tree); err != nil {
			return err
		}
	}
	out, err := q.selection(tree)
	if err != nil {
		return err
	}
	for i, s := range q.steps {
		if s.kind == lengthStep {
			q.steps[i].firstRow = q.items[0].Eval
		}
	}
	addOnly := q.window < 0 || p.profile == Reset && q.steps[q.window].kind == throttleStep
	for _, a := range q.aggregates {
		q.specs = append(q.specs, aggregate.Spec{Function: a.Function, Arg: a.Arg.Kind, AddOnly: addOnly})
	}
	target, known := p.names[tree.Target.Text]
	if !known {
		target = p.newStream(tree.Target.Text, out)
	} else if !same(p.streams[target].columns, out) {
		code := refusal.Type
		if tree.Target.Text == ResultStream {
			code = refusal.ResultSchema
		}
		return refuse(code, tree.Target.Pos, "stream '%s' is %s, this query inserts %s", tree.Target.Text, described(p.streams[target].columns), described(out))
	}
	q.target = target
	p.streams[id].readers = append(p.streams[id].readers, len(p.queries))
	p.queries = append(p.queries, q)
	return nil
}

func (q *query) scope(tree *ast.Query, place string) *expr.Scope {
	return &expr.Scope{Columns: q.columns, Stream: tree.Source.Text, Place: place}
}

func (q *query) handler(h ast.Handler, tree *ast.Query) error {
	switch h := h.(type) {
	case *ast.Filter:
		c, err := expr.Compile(h.Expr, q.scope(tree, "a filter"))
		if err != nil {
			return err
		}
		if c.Kind != value.Bool {
			return refuse(refusal.Type, h.Expr.Position(), "a filter takes a bool, this is of type %s", c.Kind)
		}
		q.steps = append(q.steps, stepPlan{kind: filterStep, cond: c.Cond, reads: c.Reads})
		return nil
	case *ast.Window:
		switch h.Name {
		case "time":
			return q.timed(slidingStep, h.Pos, "#window.time", h.Args, 1, 1, tree)
		case "timeBatch":
			return q.timed(batchStep, h.Pos, "#window.timeBatch", h.Args, 1, 2, tree)
		}
		return refuse(refusal.UnsupportedWindow, h.Pos, "#window.%s is not supported; there are #window.time and #window.timeBatch", h.Name)
	case *ast.Processor:
		name := "#" + h.Namespace + ":" + h.Name
		switch name {
		case "#throttler:timeBatch":
			return q.timed(throttleStep, h.Pos, name, h.Args, 1, 2, tree)
		case "#throttler:timeLength":
			return q.timed(lengthStep, h.Pos, name, h.Args, 3, 3, tree)
		case "#throttler:emitOnStateChange":
			return q.change(h, tree)
		}
		return refuse(refusal.UnknownFunction, h.Pos, "there is no stream processor '%s'; there are #throttler:timeBatch, #throttler:timeLength and #throttler:emitOnStateChange", strings.TrimPrefix(name, "#:"))
	}
	return refuse(refusal.Syntax, ast.Pos{}, "a handler is missing")
}

// timed reads the arguments of a window: its length, its start, and a limit.
func (q *query) timed(kind stepKind, at ast.Pos, name string, args []ast.Expr, least, most int, tree *ast.Query) error {
	if q.window >= 0 {
		return refuse(refusal.UnsupportedWindow, at, "%s: a query has one window at most", name)
	}
	var numbers []int64
	for i, a := range args {
		c, err := expr.Compile(a, q.scope(tree, "an argument of a window"))
		if err != nil {
			return err
		}
		switch {
		case !c.Literal:
			return refuse(refusal.WindowArgument, a.Position(), "%s: argument %d must be a constant", name, i+1)
		case c.Kind != value.Int && c.Kind != value.Long:
			return refuse(refusal.WindowArgument, a.Position(), "%s: argument %d must be an int, a long or a time, this is of type %s", name, i+1, c.Kind)
		}
		numbers = append(numbers, c.Eval(nil).Int64())
	}
	if len(numbers) < least || len(numbers) > most {
		return refuse(refusal.WindowArgument, at, "%s takes %s, found %d arguments", name, map[stepKind]string{
			slidingStep: "a length", batchStep: "a length and a start", throttleStep: "a length and a start", lengthStep: "a length, a start and a limit",
		}[kind], len(numbers))
	}
	s := stepPlan{kind: kind, length: numbers[0]}
	if s.length <= 0 || s.length > maxWindow.Milliseconds() {
		return refuse(refusal.WindowArgument, args[0].Position(), "%s: a window of %d ms is not possible, it lasts from 1 ms to ten years", name, s.length)
	}
	if len(numbers) > 1 {
		s.aligned, s.start = true, numbers[1]
		if s.start < 0 || s.start > 1<<53 {
			return refuse(refusal.WindowArgument, args[1].Position(), "%s: a start of %d ms is not possible", name, s.start)
		}
	}
	if len(numbers) > 2 {
		s.limit = numbers[2]
	}
	added := []expr.Column{{Name: "expiryTimeStamp", Kind: value.Long}}
	switch kind {
	case lengthStep:
		added = append(added, expr.Column{Name: "isThrottled", Kind: value.Bool})
	case throttleStep:
	default:
		added = nil
	}
	for _, c := range added {
		q.columns = append(slices.Clip(q.columns), c)
		if name, twice := duplicate(q.columns); twice {
			return refuse(refusal.Type, at, "%s adds an attribute '%s', which stream '%s' has already", h(kind), name, tree.Source.Text)
		}
	}
	q.window = len(q.steps)
	q.steps = append(q.steps, s)
	return nil
}

func h(kind stepKind) string {
	if kind == lengthStep {
		return "#throttler:timeLength"
	}
	return "#throttler:timeBatch"
}

func (q *query) change(h *ast.Processor, tree *ast.Query) error {
	const name = "#throttler:emitOnStateChange"
	if len(h.Args) != 2 {
		return refuse(refusal.Type, h.Pos, "%s takes a key and a flag, found %d arguments", name, len(h.Args))
	}
	s := stepPlan{kind: changeStep}
	for i, want := range []value.Kind{value.String, value.Bool} {
		c, err := expr.Compile(h.Args[i], q.scope(tree, "an argument of "+name))
		if err != nil {
			return err
		}
		if c.Column < 0 || c.Kind != want {
			return refuse(refusal.Type, h.Args[i].Position(), "%s: argument %d must be an attribute of type %s", name, i+1, want)
		}
		if i == 0 {
			s.key = c.Column
		} else {
			s.flag = c.Column
		}
	}
	q.steps = append(q.steps, s)
	return nil
}

// selection compiles the select list and what stands behind it; it returns the columns of the rows.
func (q *query) selection(tree *ast.Query) ([]expr.Column, error) {
	var out []expr.Column
	if tree.Select == nil {
		out = q.columns
		for i, c := range q.columns {
			compiled, err := expr.Compile(&ast.Ref{Name: c.Name}, q.scope(tree, ""))
			if err != nil {
				return nil, err
			}
			compiled.Column = i
			q.items = append(q.items, compiled)
		}
	}
	for _, item := range tree.Select {
		scope := q.scope(tree, "")
		scope.Aggregates = &q.aggregates
		c, err := expr.Compile(item.Expr, scope)
		if err != nil {
			return nil, err
		}
		q.items = append(q.items, c)
		out = append(out, expr.Column{Name: item.As.Text, Kind: c.Kind})
		if name, twice := duplicate(out); twice {
			return nil, refuse(refusal.Type, item.As.Pos, "two columns have the name '%s'", name)
		}
	}
	for _, g := range tree.GroupBy {
		c, err := expr.Compile(g, q.scope(tree, "group by"))
		if err != nil {
			return nil, err
		}
		q.groupBy = append(q.groupBy, c.Column)
	}
	if tree.Having != nil {
		c, err := expr.Compile(tree.Having, &expr.Scope{Columns: out, Place: "having"})
		if err != nil {
			return nil, err
		}
		if !c.Condition() {
			return nil, refuse(refusal.Type, tree.Having.Position(), "having takes a condition, such as 'x == true'; this is a bare value of type %s", c.Kind)
		}
		q.having = c.Cond
	}
	return out, nil
}

// acyclic refuses a stream that feeds itself.
func (p *Plan) acyclic(trees []*ast.Query) error {
	const (
		open = 1
		done = 2
	)
	state := make([]uint8, len(p.streams))
	var visit func(id StreamID) int
	visit = func(id StreamID) int {
		state[id] = open
		for _, n := range p.streams[id].readers {
			target := p.queries[n].target
			if state[target] == open {
				return n
			}
			if state[target] == 0 {
				if n := visit(target); n >= 0 {
					return n
				}
			}
		}
		state[id] = done
		return -1
	}
	for id := range p.streams {
		if state[id] != 0 {
			continue
		}
		if n := visit(StreamID(id)); n >= 0 {
			at := ast.Pos{}
			if n < len(trees) {
				at = trees[n].Target.Pos
			}
			return refuse(refusal.UnsupportedCycle, at, "stream '%s' feeds itself", p.streams[p.queries[n].target].name)
		}
	}
	return nil
}
