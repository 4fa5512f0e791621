package artifact

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document is one YAML or JSON file with the places of its values.
type document struct {
	file   string
	report *report
	root   *yaml.Node
	merges int // merge keys followed so far, against documents that multiply themselves
}

const maxMerges = 100_000

// merge counts a merge key that is followed; false when there were too many.
func (d *document) merge() bool {
	d.merges++
	return d.merges <= maxMerges
}

// maxNesting bounds the depth of a document and the chain of aliases and references in it.
const maxNesting = 200

// parse reads a file. A fault of its text goes into the report and ok is false.
func parse(file string, data []byte, r *report) (d *document, ok bool) {
	d = &document{file: file, report: r}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	if len(trimmed) == 0 {
		r.add(Fault{File: file, Problem: "the file is empty", Want: "write an OpenAPI document"})
		return nil, false
	}
	var err error
	if trimmed[0] == '{' {
		d.root, err = parseJSON(data)
	} else {
		d.root, err = parseYAML(data)
	}
	if err != nil {
		f := Fault{File: file, Problem: err.Error()}
		if at, ok := errors.AsType[*syntaxError](err); ok {
			f.Line, f.Column, f.Problem = at.line, at.column, at.text
		}
		r.add(f)
		return nil, false
	}
	if d.root.Kind != yaml.MappingNode {
		r.add(Fault{File: file, Line: d.root.Line, Column: d.root.Column, Problem: "the document is not a map of keys"})
		return nil, false
	}
	return d, true
}

type syntaxError struct {
	line, column int
	text         string
}

func (e *syntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.text) }

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)

func parseYAML(data []byte) (root *yaml.Node, err error) {
	defer func() {
		// The parser panics on a few malformed documents; a definition must never end the gateway.
		if p := recover(); p != nil {
			root, err = nil, &syntaxError{1, 1, "not readable as YAML"}
		}
	}()
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		text := err.Error()
		m := yamlLine.FindStringSubmatch(text)
		line, _ := strconv.Atoi(m[1])
		return nil, &syntaxError{max(line, 1), 1, "not readable as YAML: " + strings.TrimPrefix(text, m[0])}
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, &syntaxError{1, 1, "the file holds no document"}
	}
	return doc.Content[0], nil
}

// jsonReader turns JSON into nodes. JSON is not read as YAML, since YAML refuses tabs and cuts long keys.
type jsonReader struct {
	dec  *json.Decoder
	data []byte
	pos  int // bytes that line and bol account for
	line int
	bol  int // offset of the begin of the line
}

func parseJSON(data []byte) (*yaml.Node, error) {
	j := &jsonReader{dec: json.NewDecoder(bytes.NewReader(data)), data: data, line: 1}
	j.dec.UseNumber()
	n, err := j.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := j.dec.Token(); err != io.EOF {
		line, column := j.place()
		return nil, &syntaxError{line, column, "there is text behind the end of the document"}
	}
	return n, nil
}

// place is where the next token begins.
func (j *jsonReader) place() (line, column int) {
	at := int(j.dec.InputOffset())
	for at < len(j.data) && strings.IndexByte(" \t\r\n,:", j.data[at]) >= 0 {
		at++
	}
	return j.placeOf(at)
}

func (j *jsonReader) placeOf(at int) (line, column int) {
	for at = min(at, len(j.data)); j.pos < at; j.pos++ {
		if j.data[j.pos] == '\n' {
			j.line++
			j.bol = j.pos + 1
		}
	}
	return j.line, utf8.RuneCount(j.data[j.bol:at]) + 1
}

func (j *jsonReader) token() (json.Token, int, int, error) {
	line, column := j.place()
	t, err := j.dec.Token()
	if err == nil {
		return t, line, column, nil
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && int(syntax.Offset) >= j.pos {
		line, column = j.placeOf(int(syntax.Offset))
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, 0, 0, &syntaxError{line, column, "not readable as JSON: the file ends too early"}
	}
	return nil, 0, 0, &syntaxError{line, column, "not readable as JSON: " + strings.TrimPrefix(err.Error(), "json: ")}
}

func (j *jsonReader) value(depth int) (*yaml.Node, error) {
	t, line, column, err := j.token()
	if err != nil {
		return nil, err
	}
	if depth > maxNesting {
		return nil, &syntaxError{line, column, fmt.Sprintf("nested deeper than %d", maxNesting)}
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: line, Column: column}
	switch t := t.(type) {
	case json.Delim:
		switch t {
		case '{':
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
			for j.dec.More() {
				k, line, column, err := j.token()
				if err != nil {
					return nil, err
				}
				key, _ := k.(string)
				v, err := j.value(depth + 1)
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key, Line: line, Column: column}, v)
			}
		case '[':
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
			for j.dec.More() {
				v, err := j.value(depth + 1)
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, v)
			}
		}
		if _, _, _, err := j.token(); err != nil {
			return nil, err
		}
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
		if !strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!int"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

// value is a place in a document: a node, and how it was reached. The zero value is a place that does not exist; every
// method of it answers "nothing".
type value struct {
	doc    *document
	node   *yaml.Node
	keyAt  *yaml.Node // the node of the key, where there is one
	parent *value
	key    string
}

func (d *document) top() value { return value{doc: d, node: d.root} }

// resolve follows aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for i := 0; n != nil && n.Kind == yaml.AliasNode; i++ {
		if i > maxNesting {
			return nil
		}
		n = n.Alias
	}
	return n
}

func (v value) exists() bool { return v.node != nil && v.node.Tag != "!!null" }

// path is the key as an operator writes it.
func (v value) path() string {
	if v.parent == nil || v.parent.parent == nil && v.parent.key == "" {
		return v.key
	}
	p := v.parent.path()
	if p == "" || strings.HasPrefix(v.key, "[") {
		return p + v.key
	}
	return p + "." + v.key
}

func (v value) line() (int, int) {
	if v.node == nil {
		return 0, 0
	}
	return v.node.Line, v.node.Column
}

// fault reports what is wrong with this value.
func (v value) fault(want, format string, args ...any) {
	f := Fault{File: v.doc.file, Key: v.path(), Problem: fmt.Sprintf(format, args...), Want: want}
	f.Line, f.Column = v.line()
	if n := v.node; n != nil && n != v.keyAt && n.Kind == yaml.ScalarNode && !strings.Contains(strings.ToLower(v.key), "password") {
		f.Value = short(userInfo.ReplaceAllString(n.Value, "${1}…@"))
	}
	v.doc.report.add(f)
}

// userInfo finds the credentials of a URL, which no fault shows.
var userInfo = regexp.MustCompile(`(//)[^/@\s]*@`)

// ofKey is the place of the key of a value.
func (v value) ofKey() value { return value{v.doc, v.keyAt, v.keyAt, v.parent, v.key} }

// missing reports a member that is not there, at the place of its parent.
func (v value) missing(key, want, format string, args ...any) {
	f := Fault{File: v.doc.file, Key: value{parent: &v, key: key}.path(), Problem: fmt.Sprintf(format, args...), Want: want}
	f.Line, f.Column = v.line()
	v.doc.report.add(f)
}

func (v value) note(format string, args ...any) {
	line, _ := v.line()
	place := fmt.Sprintf("line %d", line)
	if file, inside := strings.CutPrefix(v.doc.file, strings.TrimSuffix(v.doc.report.name, "/")+"/"); inside {
		place = fmt.Sprintf("%s:%d", file, line)
	}
	v.doc.report.note("%s: %s: %s", place, v.path(), fmt.Sprintf(format, args...))
}

func short(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

// each calls f for every member of a map, in the order of the file; members of merge keys come last.
func (v value) each(f func(value)) { v.walk(f, 0) }

func (v value) walk(f func(value), depth int) {
	if v.node == nil || v.node.Kind != yaml.MappingNode || depth > 8 || depth > 0 && !v.doc.merge() {
		return
	}
	c := v.node.Content
	for i := 0; i+1 < len(c); i += 2 {
		if c[i].Tag != "!!merge" {
			f(value{v.doc, resolve(c[i+1]), c[i], &v, c[i].Value})
		}
	}
	for i := 0; i+1 < len(c); i += 2 {
		if c[i].Tag != "!!merge" {
			continue
		}
		from := resolve(c[i+1])
		if from == nil {
			continue
		}
		if from.Kind == yaml.SequenceNode {
			for _, n := range from.Content {
				value{v.doc, resolve(n), nil, v.parent, v.key}.walk(f, depth+1)
			}
			continue
		}
		value{v.doc, from, nil, v.parent, v.key}.walk(f, depth+1)
	}
}

// get returns a member; the first of several names that is there and not null.
func (v value) get(names ...string) value {
	for _, name := range names {
		if x := v.lookup(name, 0); x.exists() {
			return x
		}
	}
	return value{}
}

func (v value) lookup(name string, depth int) value {
	if v.node == nil || v.node.Kind != yaml.MappingNode || depth > 8 || depth > 0 && !v.doc.merge() {
		return value{}
	}
	c := v.node.Content
	merges := false
	for i := 0; i+1 < len(c); i += 2 {
		if c[i].Value == name {
			return value{v.doc, resolve(c[i+1]), c[i], &v, name}
		}
		merges = merges || c[i].Tag == "!!merge"
	}
	for i := 0; merges && i+1 < len(c); i += 2 {
		if c[i].Tag != "!!merge" {
			continue
		}
		from := resolve(c[i+1])
		parts := []*yaml.Node{from}
		if from != nil && from.Kind == yaml.SequenceNode {
			parts = from.Content
		}
		for _, n := range parts {
			if x := (value{v.doc, resolve(n), nil, v.parent, v.key}).lookup(name, depth+1); x.exists() {
				return x
			}
		}
	}
	return value{}
}

// fold is get without regard to case, for api.yaml, which other readers match so.
func (v value) fold(name string) value {
	if x := v.get(name); x.exists() {
		return x
	}
	var found value
	v.each(func(m value) {
		if !found.exists() && m.exists() && strings.EqualFold(m.key, name) {
			found = m
		}
	})
	return found
}

// items are the elements of a list. A single scalar or map stands for a list of one.
func (v value) items() []value {
	if !v.exists() {
		return nil
	}
	if v.node.Kind != yaml.SequenceNode {
		return []value{v}
	}
	list := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		list[i] = value{v.doc, resolve(n), nil, &v, "[" + strconv.Itoa(i) + "]"}
	}
	return list
}

func (v value) isMap() bool  { return v.node != nil && v.node.Kind == yaml.MappingNode }
func (v value) isList() bool { return v.node != nil && v.node.Kind == yaml.SequenceNode }

// text reads a scalar as text; numbers and dates are taken as they are written. Absent is "".
func (v value) text() string {
	if !v.exists() {
		return ""
	}
	if v.node.Kind != yaml.ScalarNode {
		v.fault("write a text", "is %s where a text is expected", kindName(v.node))
		return ""
	}
	return strings.TrimSpace(v.node.Value)
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// texts reads a list of texts. A text with commas in it is one element.
func (v value) texts() []string {
	var out []string
	for _, it := range v.items() {
		if s := it.text(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// boolean reads true or false, also in quotes.
func (v value) boolean(def bool) bool {
	if !v.exists() {
		return def
	}
	switch strings.ToLower(v.text()) {
	case "true":
		return true
	case "false":
		return false
	}
	if v.node.Kind == yaml.ScalarNode {
		v.fault("write true or false", "is no boolean")
	}
	return def
}

// integer reads a whole number within bounds, also in quotes; 0 where there is none.
func (v value) integer(low, high int64) int64 {
	if !v.exists() {
		return 0
	}
	if v.node.Kind != yaml.ScalarNode {
		v.text()
		return 0
	}
	want := fmt.Sprintf("write a whole number from %d to %d", low, high)
	text := v.text()
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		v.fault(want, "is no whole number")
		return 0
	}
	if n < low || n > high {
		v.fault(want, "is out of range")
		return 0
	}
	return n
}

// number reads a number within bounds, also in quotes.
func (v value) number(def, low, high float64) float64 {
	if !v.exists() {
		return def
	}
	if v.node.Kind != yaml.ScalarNode {
		v.text()
		return def
	}
	want := fmt.Sprintf("write a number from %v to %v", low, high)
	n, err := strconv.ParseFloat(v.text(), 64)
	if err != nil || n != n {
		v.fault(want, "is no number")
		return def
	}
	if n < low || n > high {
		v.fault(want, "is out of range")
		return def
	}
	return n
}

// place gives a whole tree one place.
func place(n *yaml.Node, line, column int) {
	n.Line, n.Column = line, column
	for _, c := range n.Content {
		place(c, line, column)
	}
}
