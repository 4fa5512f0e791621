// Package route finds the resource of a request: host, then context and version, then path template, then method. A
// Table is immutable and read without locks; a change of APIs builds another one.
//
// Segments are compared from left to right: a literal wins over a template with literal parts (the longest first), that
// over a plain template, that over "/*". Names are compared with their case.
package route

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// API is one API of a table: A is what the caller knows of it, O what it knows of an operation.
type API[A, O any] struct {
	Value A
	// Contexts are the path prefixes it answers under: with the version, and the default one.
	Contexts []string
	// Hosts are its virtual hosts without port; empty means every host.
	Hosts      []string
	Operations []Operation[O]
}

// Operation is one resource of an API.
type Operation[O any] struct {
	Template string
	Method   string
	Value    O
}

// Outcome says how far a match came.
type Outcome uint8

// Outcomes of Match.
const (
	NoAPI Outcome = iota
	NoResource
	MethodNotAllowed
	Found
)

// Match is the answer to a look-up.
type Match[A, O any] struct {
	Outcome Outcome
	// API is set from NoResource on, Operation from MethodNotAllowed on: then it is one of another method.
	API       A
	Operation O
	// Context is the prefix that matched.
	Context string
	// Allow lists the methods of the resource, from MethodNotAllowed on.
	Allow string
}

// Table is an immutable set of APIs. The zero value matches nothing.
type Table[A, O any] struct {
	hosts map[string]*contextNode[A, O]
	any   *contextNode[A, O]
	slash bool
}

// contextNode is a node of the trie of contexts.
type contextNode[A, O any] struct {
	children map[string]*contextNode[A, O]
	api      *compiled[A, O]
	context  string
}

type compiled[A, O any] struct {
	value A
	root  node[O]
}

// node is a node of the trie of an API's resources.
type node[O any] struct {
	literals map[string]*node[O]
	patterns []pattern[O]
	leaf     *leaf[O] // the path ends here
	rest     *leaf[O] // "/*": anything or nothing follows
}

// pattern is a segment with parameters: the pieces of text around them.
type pattern[O any] struct {
	pieces []string // len = parameters + 1
	next   *node[O]
}

type leaf[O any] struct {
	methods []method[O]
	allow   string
}

type method[O any] struct {
	name  string
	value O
}

// Errors that a definition may meet.
var (
	ErrDuplicate = errors.New("already taken")
	ErrTemplate  = errors.New("bad path template")
)

// Builder makes a table. It is not safe for concurrent use.
type Builder[A, O any] struct {
	table Table[A, O]
}

// NewBuilder makes a builder. ignoreTrailingSlash makes "/items/" and "/items" the same resource.
func NewBuilder[A, O any](ignoreTrailingSlash bool) *Builder[A, O] {
	return &Builder[A, O]{table: Table[A, O]{hosts: map[string]*contextNode[A, O]{}, any: &contextNode[A, O]{}, slash: ignoreTrailingSlash}}
}

// Add compiles an API into the table, or returns an error that names what is wrong and leaves the table as it was.
func (b *Builder[A, O]) Add(api API[A, O]) error {
	c := &compiled[A, O]{value: api.Value}
	for _, op := range api.Operations {
		if err := c.add(op, b.table.slash); err != nil {
			return err
		}
	}
	c.root.finish()
	return b.add(api, c)
}

func (b *Builder[A, O]) add(api API[A, O], c *compiled[A, O]) error {
	for _, ctx := range api.Contexts {
		if len(ctx) < 2 || ctx[0] != '/' || strings.HasSuffix(ctx, "/") {
			return fmt.Errorf("context %q must begin with / and not end with it", ctx)
		}
		if n, ok := Normalise(ctx); !ok || n != ctx {
			return fmt.Errorf("context %q must be a plain path without //, dot segments or percent-encoding", ctx)
		}
	}
	var nodes []*contextNode[A, O]
	for _, root := range b.roots(api.Hosts) {
		for _, ctx := range api.Contexts {
			n := root
			for s := range strings.SplitSeq(ctx[1:], "/") {
				child := n.children[s]
				if child == nil {
					if n.children == nil {
						n.children = map[string]*contextNode[A, O]{}
					}
					child = &contextNode[A, O]{}
					n.children[s] = child
				}
				n = child
			}
			if n.api != nil {
				return fmt.Errorf("context %s: %w by another API", ctx, ErrDuplicate)
			}
			n.context = ctx
			nodes = append(nodes, n)
		}
	}
	for _, n := range nodes {
		n.api = c
	}
	return nil
}

func (b *Builder[A, O]) roots(hosts []string) []*contextNode[A, O] {
	if len(hosts) == 0 {
		return []*contextNode[A, O]{b.table.any}
	}
	var roots []*contextNode[A, O]
	for _, h := range hosts {
		h = strings.ToLower(h)
		r := b.table.hosts[h]
		if r == nil {
			r = &contextNode[A, O]{}
			b.table.hosts[h] = r
		}
		if !slices.Contains(roots, r) {
			roots = append(roots, r)
		}
	}
	return roots
}

// Table returns the table. The builder must not be used afterwards.
func (b *Builder[A, O]) Table() *Table[A, O] { return &b.table }

func (c *compiled[A, O]) add(op Operation[O], slash bool) error {
	t := op.Template
	if t == "" || t[0] != '/' {
		return fmt.Errorf("resource %s %q: %w: it must begin with /", op.Method, t, ErrTemplate)
	}
	rest := false
	path := t
	if strings.HasSuffix(t, "/*") {
		rest, path = true, t[:len(t)-2]
	}
	if strings.Contains(path, "*") {
		return fmt.Errorf("resource %s %s: %w: * may stand at the end only, as /*", op.Method, t, ErrTemplate)
	}
	if slash && len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	n := &c.root
	if path != "" {
		for s := range strings.SplitSeq(path[1:], "/") {
			next, err := n.child(s)
			if err != nil {
				return fmt.Errorf("resource %s %s: %w", op.Method, t, err)
			}
			n = next
		}
	}
	l := &n.leaf
	if rest {
		l = &n.rest
	}
	if *l == nil {
		*l = &leaf[O]{}
	}
	for _, m := range (*l).methods {
		if m.name == op.Method {
			return fmt.Errorf("resource %s %s: %w by a template that matches the same paths", op.Method, t, ErrDuplicate)
		}
	}
	(*l).methods = append((*l).methods, method[O]{op.Method, op.Value})
	return nil
}

// child returns the node below n for a segment of a template, made if it is new.
func (n *node[O]) child(segment string) (*node[O], error) {
	pieces, err := parse(bareTemplate(segment))
	if err != nil {
		return nil, err
	}
	if len(pieces) == 1 {
		lit, ok := decode(pieces[0])
		if !ok {
			return nil, fmt.Errorf("%w: bad percent-encoding in %q", ErrTemplate, segment)
		}
		if n.literals == nil {
			n.literals = map[string]*node[O]{}
		}
		if n.literals[lit] == nil {
			n.literals[lit] = &node[O]{}
		}
		return n.literals[lit], nil
	}
	for _, p := range n.patterns {
		if slices.Equal(p.pieces, pieces) {
			return p.next, nil
		}
	}
	next := &node[O]{}
	n.patterns = append(n.patterns, pattern[O]{pieces, next})
	return next, nil
}

// bareTemplate takes the parameters off a segment of a template, as Normalise does with that of a path.
func bareTemplate(segment string) string {
	within := false
	for i := range len(segment) {
		switch segment[i] {
		case '{', '}':
			within = segment[i] == '{'
		case ';':
			if i > 0 && !within {
				return segment[:i]
			}
		}
	}
	return segment
}

// parse cuts a segment at its parameters.
func parse(segment string) ([]string, error) {
	var pieces []string
	s := segment
	for {
		i := strings.IndexByte(s, '{')
		if i < 0 {
			if strings.IndexByte(s, '}') >= 0 {
				return nil, fmt.Errorf("%w: } without { in %q", ErrTemplate, segment)
			}
			return append(pieces, s), nil
		}
		j := strings.IndexByte(s, '}')
		if j < i+2 {
			return nil, fmt.Errorf("%w: a parameter in %q has no name or is not closed", ErrTemplate, segment)
		}
		if i == 0 && len(pieces) > 0 {
			return nil, fmt.Errorf("%w: two parameters in %q have nothing between them", ErrTemplate, segment)
		}
		pieces = append(pieces, s[:i])
		s = s[j+1:]
	}
}

// finish orders what Match walks: patterns by the length of their text, methods for Allow.
func (n *node[O]) finish() {
	sort.SliceStable(n.patterns, func(i, j int) bool { return text(n.patterns[i].pieces) > text(n.patterns[j].pieces) })
	for _, l := range []*leaf[O]{n.leaf, n.rest} {
		if l != nil {
			l.allow = l.allowed()
		}
	}
	for _, c := range n.literals {
		c.finish()
	}
	for _, p := range n.patterns {
		p.next.finish()
	}
}

func text(pieces []string) (n int) {
	for _, p := range pieces {
		n += len(p)
	}
	return n
}

func (l *leaf[O]) allowed() string {
	var names []string
	get, head := false, false
	for _, m := range l.methods {
		names = append(names, m.name)
		get = get || m.name == "GET"
		head = head || m.name == "HEAD"
	}
	if get && !head {
		names = append(names, "HEAD")
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}

// find returns the operation of a method; HEAD falls to GET.
func (l *leaf[O]) find(name string) (O, bool) {
	for i := range l.methods {
		if l.methods[i].name == name {
			return l.methods[i].value, true
		}
	}
	if name == "HEAD" {
		return l.find("GET")
	}
	var none O
	return none, false
}

// matches says whether a segment fits the pieces: parameters hold at least one byte.
func (p *pattern[O]) matches(s string) bool {
	first, last := p.pieces[0], p.pieces[len(p.pieces)-1]
	if len(s) <= len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, mid := range p.pieces[1 : len(p.pieces)-1] {
		i := strings.Index(s[1:], mid)
		if i < 0 {
			return false
		}
		s = s[1+i+len(mid):]
		if s == "" {
			return false
		}
	}
	return true
}

// Match looks up a request. path must be normalised, host may carry a port. It does not allocate.
func (t *Table[A, O]) Match(host, method, path string) (m Match[A, O]) {
	var found *contextNode[A, O]
	if len(t.hosts) > 0 {
		if n := t.host(host); n != nil {
			found = n.find(path)
		}
	}
	if found == nil && t.any != nil {
		found = t.any.find(path)
	}
	if found == nil {
		return m
	}
	m.API, m.Context, m.Outcome = found.api.value, found.context, NoResource
	rest := path[len(found.context):]
	if rest == "" {
		rest = "/"
	}
	if t.slash && len(rest) > 1 && rest[len(rest)-1] == '/' {
		rest = rest[:len(rest)-1]
	}
	l := found.api.root.find(rest[1:])
	if l == nil {
		return m
	}
	m.Allow = l.allow
	op, ok := l.find(method)
	if !ok {
		m.Outcome, m.Operation = MethodNotAllowed, l.methods[0].value
		return m
	}
	m.Outcome, m.Operation = Found, op
	return m
}

// host finds the trie of a virtual host, whatever the case and port of its name.
func (t *Table[A, O]) host(h string) *contextNode[A, O] {
	if i := strings.LastIndexByte(h, ':'); i >= 0 && strings.IndexByte(h[i:], ']') < 0 {
		h = h[:i]
	}
	if n, ok := t.hosts[h]; ok {
		return n
	}
	for i := 0; i < len(h); i++ {
		if c := h[i]; 'A' <= c && c <= 'Z' {
			return t.hosts[strings.ToLower(h)]
		}
	}
	return nil
}

// find returns the longest context that is a prefix of the path.
func (n *contextNode[A, O]) find(path string) *contextNode[A, O] {
	var found *contextNode[A, O]
	for {
		if n.api != nil {
			found = n
		}
		if len(path) < 2 || n.children == nil {
			return found
		}
		s := path[1:]
		if i := strings.IndexByte(s, '/'); i >= 0 {
			s, path = s[:i], s[i:]
		} else {
			path = ""
		}
		if n = n.children[s]; n == nil {
			return found
		}
	}
}

// find walks the resources; path has no leading slash. Literals first, then patterns, then "/*" on the way back.
func (n *node[O]) find(path string) *leaf[O] {
	s, rest, more := strings.Cut(path, "/")
	if c := n.literals[s]; c != nil {
		if l := c.after(rest, more); l != nil {
			return l
		}
	}
	for i := range n.patterns {
		if p := &n.patterns[i]; p.matches(s) {
			if l := p.next.after(rest, more); l != nil {
				return l
			}
		}
	}
	return n.rest
}

// after goes on behind a segment that fitted.
func (n *node[O]) after(rest string, more bool) *leaf[O] {
	if more {
		return n.find(rest)
	}
	if n.leaf != nil {
		return n.leaf
	}
	return n.rest
}
