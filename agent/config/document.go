package config

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// nodeKind is what stands at a place of the document.
type nodeKind uint8

const (
	kindTable nodeKind = iota
	kindArray
	kindString
	kindInteger
	kindFloat
	kindBool
	kindTime
)

func (k nodeKind) String() string {
	return [...]string{"a table", "a list", "a string", "a whole number", "a number", "a boolean", "a date or time"}[k]
}

// node is a value of the document with its place.
type node struct {
	kind nodeKind
	pos  Position // of the key, or of the element in a list
	text string   // a string's content, or the token of another scalar
	// members of a table, with their names in the order of the file.
	names   []string
	members map[string]*node
	// items of a list; a list of tables written as [[…]] has kindArray with tables in it.
	items []*node
}

func newTable(pos Position) *node {
	return &node{kind: kindTable, pos: pos, members: map[string]*node{}}
}

func (n *node) add(name string, member *node) {
	if n.members[name] == nil {
		n.names = append(n.names, name)
	}
	n.members[name] = member
}

// document turns TOML text into nodes. The toml library's decoder checks the grammar and the rules of TOML (a key set
// twice); the parser below it gives the places, which its decoder has only for errors.
type document struct {
	file    string
	data    []byte
	lines   []int // offsets of the starts of lines
	root    *node
	problem Faults // what is not TOML
}

// maxNesting bounds nested arrays and inline tables: no key of the configuration needs more than three.
const maxNesting = 32

func parseDocument(file string, data []byte) *document {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // some editors of Windows begin files with a byte order mark
	d := &document{file: file, data: data, root: newTable(Position{})}
	d.lines = append(d.lines, 0)
	for i, c := range data {
		if c == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	if at := bytes.IndexByte(data, 0); at >= 0 {
		d.problem = append(d.problem, Fault{File: file, Position: d.position(at), Problem: "not a TOML file: it holds a zero byte"})
		return d
	}
	var parser unstable.Parser
	parser.Reset(data)
	current := d.root
	for parser.NextExpression() {
		expression := parser.Expression()
		switch expression.Kind {
		case unstable.Table:
			current = d.descend(d.root, keyOf(expression), false)
		case unstable.ArrayTable:
			current = d.descend(d.root, keyOf(expression), true)
		case unstable.KeyValue:
			d.assign(current, expression, 0)
		}
	}
	d.checkTOML(&parser)
	return d
}

// checkTOML reports what the grammar and the rules of TOML forbid. Faults of values (a number too large) are left to the
// typed decoding, which words them better.
func (d *document) checkTOML(parser *unstable.Parser) {
	var into map[string]any
	err := toml.Unmarshal(d.data, &into)
	if err == nil {
		return
	}
	fault := Fault{File: d.file, Problem: strings.TrimPrefix(err.Error(), "toml: "), Fix: "write it as TOML 1.0 asks"}
	if decodeErr, ok := errors.AsType[*toml.DecodeError](err); ok {
		fault.Line, fault.Column = decodeErr.Position()
		fault.Key = strings.Join(decodeErr.Key(), ".")
	}
	if parser.Error() == nil && strings.Contains(fault.Problem, "64-bit") {
		return // a number too large: the typed decoding names its key and bounds
	}
	fault.Problem = "not valid TOML: " + fault.Problem
	d.problem = append(d.problem, fault)
}

func (d *document) position(offset int) Position {
	line := sort.SearchInts(d.lines, offset+1)
	return Position{Line: line, Column: offset - d.lines[line-1] + 1}
}

type keyPart struct {
	name   string
	offset int
}

func keyOf(expression *unstable.Node) []keyPart {
	var parts []keyPart
	for it := expression.Key(); it.Next(); {
		key := it.Node()
		parts = append(parts, keyPart{name: string(key.Data), offset: int(key.Raw.Offset)})
	}
	return parts
}

// descend walks to the table of a header and makes what is missing on the way. Where TOML forbids the way (a header
// through a scalar) it returns a table outside the document: checkTOML has the fault.
func (d *document) descend(from *node, key []keyPart, appendTable bool) *node {
	for i, part := range key {
		last := i == len(key)-1
		pos := d.position(part.offset)
		member := from.members[part.name]
		if last && appendTable {
			if member == nil {
				member = &node{kind: kindArray, pos: pos}
				from.add(part.name, member)
			}
			table := newTable(pos)
			if member.kind == kindArray {
				member.items = append(member.items, table)
			}
			return table
		}
		switch {
		case member == nil:
			member = newTable(pos)
			from.add(part.name, member)
		case member.kind == kindArray && len(member.items) > 0 && member.items[len(member.items)-1].kind == kindTable:
			member = member.items[len(member.items)-1]
		case member.kind != kindTable:
			return newTable(pos)
		case last && len(member.names) == 0:
			member.pos = pos
		}
		from = member
	}
	return from
}

func (d *document) assign(table *node, expression *unstable.Node, depth int) {
	key := keyOf(expression)
	if len(key) == 0 {
		return
	}
	last := key[len(key)-1]
	table = d.descend(table, key[:len(key)-1], false)
	if table.members[last.name] != nil {
		return // set twice: checkTOML has the fault
	}
	table.add(last.name, d.value(expression.Value(), d.position(last.offset), depth))
}

func (d *document) value(value *unstable.Node, pos Position, depth int) *node {
	n := &node{pos: pos}
	switch value.Kind {
	case unstable.String:
		n.kind, n.text = kindString, string(value.Data)
	case unstable.Integer:
		n.kind, n.text = kindInteger, string(value.Data)
	case unstable.Float:
		n.kind, n.text = kindFloat, string(value.Data)
	case unstable.Bool:
		n.kind, n.text = kindBool, string(value.Data)
	case unstable.Array:
		n.kind = kindArray
		if depth > maxNesting {
			d.problem = append(d.problem, Fault{File: d.file, Position: pos, Problem: fmt.Sprintf("nested more than %d deep", maxNesting)})
			return n
		}
		for it := value.Children(); it.Next(); {
			item := it.Node()
			if item.Kind == unstable.Comment {
				continue
			}
			at := pos
			if item.Raw.Length > 0 {
				at = d.position(int(item.Raw.Offset))
			}
			n.items = append(n.items, d.value(item, at, depth+1))
		}
	case unstable.InlineTable:
		n = newTable(pos)
		if depth > maxNesting {
			d.problem = append(d.problem, Fault{File: d.file, Position: pos, Problem: fmt.Sprintf("nested more than %d deep", maxNesting)})
			return n
		}
		for it := value.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				d.assign(n, it.Node(), depth+1)
			}
		}
	default:
		n.kind, n.text = kindTime, string(value.Data)
	}
	return n
}
