package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"time"
)

const (
	millisecond = Duration(time.Millisecond)
	second      = Duration(time.Second)
	minute      = Duration(time.Minute)
	hour        = Duration(time.Hour)
)

// fieldKind is what a key takes.
type fieldKind uint8

const (
	takesSection  fieldKind = iota // [section]
	takesSections                  // [[section]]
	takesBool
	takesInt
	takesFloat
	takesString
	takesSecret
	takesURL
	takesPath
	takesDuration
	takesSize
	takesPrefix
)

// field is a key of the configuration, read from the tags of tree.go.
type field struct {
	name  string
	path  string // "apim.jwt.issuer[].name"
	index int    // in its struct
	kind  fieldKind
	list  bool // a list of what kind says; false for takesSections
	// optional sections are nil until they stand.
	optional bool
	typ      reflect.Type // of the element for lists and of the struct for sections

	required, wso2, reload bool
	// later is set for keys without effect in this release, but for the value neutral, which asks for nothing.
	later         bool
	neutral       string
	min, max      string
	enum, schemes []string
	form          string // broker, receiver, listen, header, word, host, origin, urlpath, stream, file, dir, newdir
	unit          time.Duration

	children []*field
}

func (f *field) child(name string) *field {
	for _, c := range f.children {
		if c.name == name {
			return c
		}
	}
	return nil
}

// walk calls visit for every key below the field, sections before what is in them.
func (f *field) walk(visit func(*field)) {
	for _, c := range f.children {
		visit(c)
		c.walk(visit)
	}
}

// sensitive is whether a value at this place, or below it, may be or hold a secret.
func (f *field) sensitive() bool {
	if f.kind == takesSecret {
		return true
	}
	for _, c := range f.children {
		if c.sensitive() {
			return true
		}
	}
	return false
}

// schema returns the tree of keys. It is built once and only read.
var schema = sync.OnceValue(func() *field {
	root := &field{kind: takesSection, typ: reflect.TypeFor[Config]()}
	root.children = fieldsOf(root.typ, "")
	return root
})

func fieldsOf(typ reflect.Type, prefix string) []*field {
	var fields []*field
	for i := range typ.NumField() {
		sf := typ.Field(i)
		name := sf.Tag.Get("toml")
		if name == "" || name == "-" {
			continue
		}
		f := &field{name: name, path: prefix + name, index: i, typ: sf.Type}
		f.readType()
		f.readRules(sf.Tag.Get("rule"))
		switch f.kind {
		case takesSection:
			f.children = fieldsOf(f.typ, f.path+".")
		case takesSections:
			f.path += "[]"
			f.children = fieldsOf(f.typ, f.path+".")
		}
		fields = append(fields, f)
	}
	return fields
}

func (f *field) readType() {
	t := f.typ
	if t.Kind() == reflect.Pointer {
		f.optional, t = true, t.Elem()
	}
	if t.Kind() == reflect.Slice {
		f.list, t = true, t.Elem()
	}
	f.typ = t
	switch t {
	case reflect.TypeFor[Secret]():
		f.kind = takesSecret
	case reflect.TypeFor[URL]():
		f.kind = takesURL
	case reflect.TypeFor[Path]():
		f.kind = takesPath
	case reflect.TypeFor[Duration]():
		f.kind = takesDuration
	case reflect.TypeFor[Size]():
		f.kind = takesSize
	case reflect.TypeFor[netip.Prefix]():
		f.kind = takesPrefix
	default:
		switch t.Kind() {
		case reflect.Bool:
			f.kind = takesBool
		case reflect.Int:
			f.kind = takesInt
		case reflect.Float64:
			f.kind = takesFloat
		case reflect.String:
			f.kind = takesString
		case reflect.Struct:
			f.kind = takesSection
			if f.list {
				f.kind, f.list = takesSections, false
			}
		default:
			panic(fmt.Sprintf("config: the type %s of key %s is not known to the decoder", t, f.path))
		}
	}
}

func (f *field) readRules(tag string) {
	for rule := range strings.SplitSeq(tag, ",") {
		name, value, _ := strings.Cut(rule, "=")
		switch name {
		case "":
		case "required":
			f.required = true
		case "wso2":
			f.wso2 = true
		case "reload":
			f.reload = true
		case "later":
			f.later, f.neutral = true, value
		case "min":
			f.min = value
		case "max":
			f.max = value
		case "enum":
			f.enum = strings.Split(value, "|")
		case "scheme":
			f.schemes = strings.Split(value, "|")
		case "unit":
			f.unit = map[string]time.Duration{"ms": time.Millisecond, "s": time.Second}[value]
		default:
			f.form = name
		}
	}
}

// takes says in words what the key takes, for messages.
func (f *field) takes() string {
	switch {
	case f.kind == takesSection:
		return "a section; write [" + f.path + "] on a line of its own"
	case f.kind == takesSections:
		return "a list of sections; write [[" + strings.TrimSuffix(f.path, "[]") + "]] on a line of its own"
	case f.list:
		return "a list; write " + f.example()
	}
	switch f.kind {
	case takesBool:
		return "true or false, without quotes"
	case takesInt:
		return "a whole number; write one such as " + f.example()
	case takesFloat:
		return "a number; write one such as " + f.example()
	case takesDuration:
		if f.unit != 0 {
			return "a duration; write " + f.example() + ", or a plain number of " + unitName(f.unit)
		}
		return "a duration; write a number with a unit, such as " + f.example()
	case takesSize:
		return "a size in bytes; write a number, or one with a unit such as " + f.example()
	default:
		return "a string; write it in quotes"
	}
}

func unitName(unit time.Duration) string {
	if unit == time.Millisecond {
		return "milliseconds"
	}
	return "seconds"
}

// example is a value that the key takes, as it would be written: its default where that is telling.
func (f *field) example() string {
	one := ""
	switch {
	case len(f.enum) > 0:
		one = quote(f.enum[0])
	case f.kind == takesURL && f.form == "broker":
		one = `"amqp://apim.example.com:5672"`
	case f.kind == takesURL && f.form == "receiver":
		one = `"tcp://apim.example.com:9611"`
	case f.kind == takesURL:
		one = quote(f.schemes[len(f.schemes)-1] + "://host.example.com:" + map[string]string{"https": "9443", "tls": "4222"}[f.schemes[len(f.schemes)-1]])
	case f.kind == takesPrefix:
		one = `"10.0.0.0/8"`
	case f.kind == takesDuration:
		one = quote(f.defaultOr("5s"))
	case f.kind == takesSize:
		one = quote(f.defaultOr("1MiB"))
	case f.kind == takesInt:
		one = f.defaultOr(cmp.Or(f.min, "1"))
	case f.kind == takesFloat:
		one = f.defaultOr("0.5")
	case f.kind == takesBool:
		one = "true"
	case f.form == "listen":
		one = `":9090"`
	case f.form == "header":
		one = `"Authorization"`
	case f.form == "method":
		one = `"GET"`
	case f.form == "origin":
		one = `"https://shop.example.com"`
	default:
		one = `"…"`
	}
	if f.list {
		return "[" + one + "]"
	}
	return one
}

func (f *field) defaultOr(other string) string {
	if v, ok := defaultsByPath()[f.path]; ok && v.Kind() != reflect.Slice && !v.IsZero() {
		return textOf(v)
	}
	return other
}

// defaultsByPath holds the default of every key by its path, those of list elements included.
var defaultsByPath = sync.OnceValue(func() map[string]reflect.Value {
	values := map[string]reflect.Value{}
	var collect func(fields []*field, v reflect.Value)
	collect = func(fields []*field, v reflect.Value) {
		for _, f := range fields {
			fv := v.Field(f.index)
			switch {
			case f.kind == takesSections || f.optional:
				collect(f.children, reflect.ValueOf(defaultElement(reflect.Zero(f.typ).Interface())))
			case f.kind == takesSection:
				collect(f.children, fv)
			default:
				values[f.path] = fv
			}
		}
	}
	collect(schema().children, reflect.ValueOf(*Default()))
	return values
})

func quote(s string) string { return `"` + s + `"` }
