package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// decoder fills a Config from a document and collects every fault on the way.
type decoder struct {
	doc     *document
	expand  *expander
	source  *Source
	faults  Faults
	baseDir string
	// bad are the keys that have a fault of their own: rules between keys pass them over.
	bad map[string]bool
	// later are the keys that are written and have no effect in this release, by their section.
	later map[string][]string
}

func (d *decoder) fault(key string, pos Position, value string, p *problem) {
	d.bad[key] = true
	d.faults = append(d.faults, Fault{File: d.doc.file, Position: pos, Key: key, Value: value, Problem: p.what, Fix: p.fix})
}

func (d *decoder) section(f *field, n *node, path string, into reflect.Value) {
	d.source.places[path] = n.pos
	for _, name := range n.names {
		member := n.members[name]
		key := join(path, name)
		c := f.child(name)
		if c == nil {
			d.unknown(f, key, name, member)
			continue
		}
		fv := into.Field(c.index)
		switch c.kind {
		case takesSection:
			if member.kind != kindTable {
				d.wrongType(c, key, member)
				continue
			}
			if c.optional {
				fv.Set(reflect.New(c.typ))
				fv = fv.Elem()
				fv.Set(reflect.ValueOf(defaultElement(fv.Interface())))
			}
			d.section(c, member, key, fv)
		case takesSections:
			d.sections(c, member, key, fv)
		default:
			d.source.places[key] = member.pos
			d.leaf(c, key, member, fv)
			if c.later && (c.neutral == "" && !fv.IsZero() || c.neutral != "" && textOf(fv) != c.neutral) {
				d.later[path] = append(d.later[path], name)
			}
		}
	}
	for _, c := range f.children {
		if c.required && n.members[c.name] == nil && !d.bad[join(path, c.name)] {
			d.fault(join(path, c.name), n.pos, "", &problem{"missing", "write " + c.name + " = " + c.example()})
		}
	}
}

func (d *decoder) sections(c *field, member *node, key string, into reflect.Value) {
	items := member.items
	if member.kind == kindTable {
		items = []*node{member} // [section] where [[section]] is meant: one element
		d.fault(key, member.pos, "", &problem{"is one section where a list of sections belongs", "write [[" + strings.TrimSuffix(c.path, "[]") + "]] in double brackets"})
	} else if member.kind != kindArray {
		d.wrongType(c, key, member)
		return
	}
	d.source.places[key] = member.pos
	list := reflect.MakeSlice(into.Type(), 0, len(items))
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", key, i)
		if item.kind != kindTable {
			d.wrongType(c, at, item)
			continue
		}
		element := reflect.New(c.typ).Elem()
		element.Set(reflect.ValueOf(defaultElement(element.Interface())))
		d.section(c, item, at, element)
		list = reflect.Append(list, element)
	}
	into.Set(list)
}

func (d *decoder) wrongType(f *field, key string, n *node) {
	d.fault(key, n.pos, written(n, f), &problem{fmt.Sprintf("%s, where %s belongs", n.kind, firstClause(f.takes())), fixClause(f)})
}

func firstClause(takes string) string {
	clause, _, _ := strings.Cut(takes, ";")
	clause, _, _ = strings.Cut(clause, ", ")
	return clause
}

func fixClause(f *field) string {
	takes := f.takes()
	if _, fix, found := strings.Cut(takes, "; "); found {
		return fix
	}
	return "write " + takes
}

// written is a value as the file has it, with secrets masked. Tables have none.
func written(n *node, f *field) string {
	switch n.kind {
	case kindTable:
		return ""
	case kindArray:
		if len(n.items) == 0 {
			return "[]"
		}
		if n.items[0].kind == kindTable {
			return ""
		}
		parts := make([]string, 0, len(n.items))
		for i, item := range n.items {
			if i == 4 {
				parts = append(parts, "…")
				break
			}
			parts = append(parts, written(item, f))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	if f != nil && f.sensitive() && (n.kind != kindString || !onlyReferences(n.text)) {
		return mask
	}
	text := n.text
	if n.kind != kindString {
		return shorten(text)
	}
	return strconv.Quote(shorten(MaskURL(text)))
}

// onlyReferences is whether a string holds nothing but references, whose names are no secrets.
func onlyReferences(text string) bool {
	if alias, ok := strings.CutPrefix(text, "{secretAlias:"); ok {
		return strings.IndexByte(alias, '}') == len(alias)-1
	}
	pieces, p := split(text)
	return p == nil && !slices.ContainsFunc(pieces, func(part piece) bool { return part.kind == "" })
}

func shorten(text string) string {
	const most = 120
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (d *decoder) leaf(f *field, key string, n *node, into reflect.Value) {
	if n.kind == kindString {
		result, p := d.expand.expand(n.text, f)
		if p != nil {
			d.fault(key, n.pos, written(n, f), p)
			return
		}
		if result.whole != nil {
			copied := *result.whole
			copied.pos = n.pos
			d.value(f, key, &copied, n, into)
			return
		}
		if result.replaced {
			d.value(f, key, lenient(f, &node{kind: kindString, pos: n.pos, text: result.text}), n, into)
			return
		}
		if f.wso2 {
			n = lenient(f, n)
		}
	}
	d.value(f, key, n, n, into)
}

// lenient reads text as the type of the key: what a replacement inserted is always text, and deployment.toml puts many
// numbers into quotes and lists into one string.
func lenient(f *field, n *node) *node {
	if f.list {
		parts := []string{n.text}
		if f.kind != takesURL { // URLs may hold commas
			parts = strings.Split(n.text, ",")
		}
		list := &node{kind: kindArray, pos: n.pos}
		for _, part := range parts {
			if part = strings.TrimSpace(part); part != "" {
				one := *f
				one.list = false
				list.items = append(list.items, lenient(&one, &node{kind: kindString, pos: n.pos, text: part}))
			}
		}
		return list
	}
	text := strings.TrimSpace(n.text)
	switch f.kind {
	case takesBool:
		if text == "true" || text == "false" {
			return &node{kind: kindBool, pos: n.pos, text: text}
		}
	case takesInt, takesFloat:
		if _, err := strconv.ParseInt(text, 10, 64); err == nil {
			return &node{kind: kindInteger, pos: n.pos, text: text}
		}
		if _, err := strconv.ParseFloat(text, 64); err == nil && f.kind == takesFloat {
			return &node{kind: kindFloat, pos: n.pos, text: text}
		}
	case takesDuration:
		if _, err := strconv.ParseInt(text, 10, 64); err == nil && f.unit != 0 {
			return &node{kind: kindInteger, pos: n.pos, text: text}
		}
	}
	return n
}

// value decodes n, which is what asWritten became after replacement.
func (d *decoder) value(f *field, key string, n, asWritten *node, into reflect.Value) {
	if !f.list {
		if p := d.scalar(f, n, into); p != nil {
			d.fault(key, asWritten.pos, written(asWritten, f), replacedProblem(p, n, asWritten))
		}
		return
	}
	if n.kind != kindArray {
		d.wrongType(f, key, asWritten)
		return
	}
	one := *f
	one.list = false
	list := reflect.MakeSlice(into.Type(), 0, len(n.items))
	good := true
	for i, item := range n.items {
		at := fmt.Sprintf("%s[%d]", key, i)
		shown := asWritten
		if n == asWritten {
			shown = item
			if item.kind == kindString {
				result, p := d.expand.expand(item.text, &one)
				if p != nil {
					d.fault(at, item.pos, written(item, f), p)
					good = false
					continue
				}
				if result.whole != nil {
					whole := *result.whole
					item = &whole
				} else if result.replaced || f.wso2 {
					item = lenient(&one, &node{kind: kindString, pos: item.pos, text: result.text})
				}
			}
		}
		element := reflect.New(f.typ).Elem()
		if p := d.scalar(&one, item, element); p != nil {
			d.fault(at, shown.pos, written(shown, f), replacedProblem(p, item, shown))
			good = false
			continue
		}
		d.source.places[at] = shown.pos
		list = reflect.Append(list, element)
	}
	if !good {
		d.bad[key] = true
	}
	into.Set(list)
}

func replacedProblem(p *problem, n, asWritten *node) *problem {
	if n.kind == asWritten.kind && n.text == asWritten.text || asWritten.kind != kindString || !strings.Contains(asWritten.text, "{") {
		return p
	}
	return &problem{p.what + " (after replacement)", p.fix}
}

// scalar decodes one value. A nil result means that it was right.
func (d *decoder) scalar(f *field, n *node, into reflect.Value) *problem {
	wrong := &problem{fmt.Sprintf("%s, where %s belongs", n.kind, firstClause(f.takes())), fixClause(f)}
	switch f.kind {
	case takesBool:
		if n.kind != kindBool {
			return wrong
		}
		into.SetBool(n.text == "true")
	case takesInt:
		if n.kind != kindInteger {
			return wrong
		}
		i, err := strconv.ParseInt(n.text, 0, strconv.IntSize)
		if err != nil {
			return d.outOfRange(f)
		}
		if !inRange(float64(i), f, parseNumber) {
			return d.outOfRange(f)
		}
		into.SetInt(i)
	case takesFloat:
		if n.kind != kindFloat && n.kind != kindInteger {
			return wrong
		}
		x, err := strconv.ParseFloat(strings.ReplaceAll(n.text, "_", ""), 64)
		if err != nil || math.IsNaN(x) || math.IsInf(x, 0) || !inRange(x, f, parseNumber) {
			return d.outOfRange(f)
		}
		into.SetFloat(x)
	case takesDuration:
		return d.duration(f, n, into, wrong)
	case takesSize:
		return d.size(f, n, into, wrong)
	case takesPrefix:
		if n.kind != kindString {
			return wrong
		}
		prefix, err := netip.ParsePrefix(n.text)
		if err != nil {
			addr, addrErr := netip.ParseAddr(n.text)
			if addrErr != nil {
				return &problem{"not an IP address or range", `write one such as "10.0.0.0/8" or "192.168.1.7"`}
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		into.Set(reflect.ValueOf(prefix.Masked()))
	case takesPath:
		if n.kind != kindString {
			return wrong
		}
		return d.path(f, n.text, into)
	default:
		if n.kind != kindString {
			return wrong
		}
		if len(f.enum) > 0 && !slices.Contains(f.enum, n.text) {
			return &problem{"not one of the values it takes", "write " + oneOf(f.enum)}
		}
		if p := checkForm(f, n.text); p != nil {
			return p
		}
		into.SetString(n.text)
	}
	return nil
}

func oneOf(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = quote(v)
	}
	if len(quoted) == 1 {
		return quoted[0]
	}
	return strings.Join(quoted[:len(quoted)-1], ", ") + " or " + quoted[len(quoted)-1]
}

func parseNumber(text string) float64 {
	x, _ := strconv.ParseFloat(text, 64)
	return x
}

func inRange(x float64, f *field, parse func(string) float64) bool {
	return (f.min == "" || x >= parse(f.min)) && (f.max == "" || x <= parse(f.max))
}

func (d *decoder) outOfRange(f *field) *problem {
	switch {
	case f.min != "" && f.max != "":
		return &problem{"out of range", fmt.Sprintf("write %s to %s", f.min, f.max)}
	case f.min != "":
		return &problem{"out of range", fmt.Sprintf("write %s or more", f.min)}
	}
	return &problem{"out of range", "write a smaller number"}
}

func (d *decoder) duration(f *field, n *node, into reflect.Value, wrong *problem) *problem {
	notDuration := &problem{"not a duration", fixClause(f)}
	var value Duration
	switch {
	case n.kind == kindString:
		var err error
		if value, err = ParseDuration(n.text); err != nil {
			// The number is right and the unit is missing: say what was probably meant.
			if _, err := strconv.ParseFloat(n.text, 64); err == nil {
				notDuration.fix = fmt.Sprintf("write a number with a unit, such as %q", n.text+"s")
			}
			return notDuration
		}
	case n.kind == kindInteger && f.unit != 0:
		i, err := strconv.ParseInt(n.text, 0, 64)
		if err != nil || i > math.MaxInt64/int64(f.unit) || i < math.MinInt64/int64(f.unit) {
			return d.outOfRange(f)
		}
		value = Duration(i) * Duration(f.unit)
	case n.kind == kindInteger || n.kind == kindFloat:
		return &problem{"a number without a unit, where a duration belongs", fmt.Sprintf("write a number with a unit, such as %q", strings.ReplaceAll(n.text, "_", "")+"s")}
	default:
		return wrong
	}
	if !inRange(float64(value), f, func(text string) float64 {
		bound, _ := ParseDuration(text)
		return float64(bound)
	}) {
		return d.outOfRange(f)
	}
	into.SetInt(int64(value))
	return nil
}

func (d *decoder) size(f *field, n *node, into reflect.Value, wrong *problem) *problem {
	if n.kind != kindString && n.kind != kindInteger {
		return wrong
	}
	text := n.text
	if n.kind == kindInteger {
		i, err := strconv.ParseInt(text, 0, 64)
		if err != nil {
			return d.outOfRange(f)
		}
		if i < 0 {
			return d.outOfRange(f)
		}
		text = strconv.FormatInt(i, 10)
	}
	value, err := ParseSize(text)
	if err != nil {
		return &problem{"not a size", fixClause(f)}
	}
	if !inRange(float64(value), f, func(text string) float64 {
		bound, _ := ParseSize(text)
		return float64(bound)
	}) {
		return d.outOfRange(f)
	}
	into.SetInt(int64(value))
	return nil
}

// path makes the path absolute and checks that what it names is there.
func (d *decoder) path(f *field, text string, into reflect.Value) *problem {
	if text == "" {
		into.SetString("")
		return nil
	}
	if strings.ContainsRune(text, 0) {
		return &problem{"not a path", "write one without zero bytes"}
	}
	path := text
	if !filepath.IsAbs(path) {
		path = filepath.Join(d.baseDir, path)
	}
	into.SetString(path)
	switch f.form {
	case "file":
		data, err := readRegular(path, maxFile)
		if err != nil {
			return &problem{"cannot be read: " + reason(err), "name a readable file; a relative path starts at the folder of this file, which makes it " + path}
		}
		d.source.Files = append(d.source.Files, path)
		return checkPEM(f, data)
	case "dir", "newdir":
		return checkFolder(path, f.form == "newdir")
	}
	return nil
}

// reason is an error of the file system without the path, which the message has already.
func reason(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}
