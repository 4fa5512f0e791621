package config

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// maxInserted bounds what $file{…} inserts.
const maxInserted = 1 << 20

// piece is a part of a string: literal text, or a reference to be replaced.
type piece struct {
	literal string
	kind    string // "", "env", "ref", "file"
	name    string
	token   string // the reference as written
}

// problem is what is wrong with a value and what would be right, before its place is known.
type problem struct{ what, fix string }

// split takes a string apart at its references.
func split(text string) ([]piece, *problem) {
	if strings.Contains(strings.ToLower(text), "{secretalias:") || strings.Contains(text, "$secret{") {
		return nil, &problem{
			"refers to WSO2's secure vault, which only the Java servers can open",
			"put the secret into an environment variable or a file, and write $env{NAME} or $file{path}",
		}
	}
	if strings.Contains(text, "$sys{") {
		return nil, &problem{"$sys{…} names a Java system property, and there are none here", "write the value, or $env{NAME}"}
	}
	var pieces []piece
	rest := text
	for {
		start, prefix, kind := -1, "", ""
		for _, form := range []struct{ prefix, kind string }{{"$env{", "env"}, {"${", "env"}, {"$ref{", "ref"}, {"$file{", "file"}} {
			if i := strings.Index(rest, form.prefix); i >= 0 && (start < 0 || i < start) {
				start, prefix, kind = i, form.prefix, form.kind
			}
		}
		if start < 0 {
			break
		}
		end := strings.IndexByte(rest[start:], '}')
		if end < 0 {
			return nil, &problem{prefix + "… is not closed", "write " + prefix + "NAME}"}
		}
		token := rest[start : start+end+1]
		name := token[len(prefix) : len(token)-1]
		if strings.TrimSpace(name) == "" {
			return nil, &problem{token + " names nothing", "write " + prefix + "NAME}"}
		}
		if start > 0 {
			pieces = append(pieces, piece{literal: rest[:start]})
		}
		pieces = append(pieces, piece{kind: kind, name: name, token: token})
		rest = rest[start+end+1:]
	}
	if rest != "" || len(pieces) == 0 {
		pieces = append(pieces, piece{literal: rest})
	}
	return pieces, nil
}

// expander replaces references. Inserted text is never read for references again.
type expander struct {
	root    *node
	env     func(string) (string, bool)
	baseDir string
	files   map[string]bool // read by $file{…}
	open    []string        // keys whose $ref{…} are being followed
	// followed keeps what keys came to, so that references of references cost no more than their number.
	followed map[string]*node
}

// expanded is a string after replacement.
type expanded struct {
	text string
	// replaced is whether anything was inserted.
	replaced bool
	// whole is the node that the string stands for when it is nothing but one $ref{…} to something other than a string.
	whole *node
}

// expand replaces the references in text, which stands at the key of f.
func (x *expander) expand(text string, f *field) (expanded, *problem) {
	if !strings.Contains(text, "{") {
		return expanded{text: text}, nil
	}
	pieces, p := split(text)
	if p != nil {
		return expanded{}, p
	}
	if len(pieces) == 1 && pieces[0].kind == "ref" {
		target, p := x.follow(pieces[0], f)
		if p != nil {
			return expanded{}, p
		}
		if target.kind != kindString {
			return expanded{replaced: true, whole: target}, nil
		}
		return expanded{text: target.text, replaced: true}, nil
	}
	var b strings.Builder
	replaced := false
	for i, part := range pieces {
		if part.kind == "" {
			b.WriteString(part.literal)
			continue
		}
		value, p := x.value(part, f)
		if p != nil {
			return expanded{}, p
		}
		if f.kind == takesURL {
			value = inURL(pieces, i, value)
		}
		b.WriteString(value)
		replaced = true
		if b.Len() > maxInserted {
			return expanded{}, &problem{"becomes longer than " + Size(maxInserted).String() + " by replacement", "write a shorter value"}
		}
	}
	return expanded{text: b.String(), replaced: replaced}, nil
}

// inURL percent-encodes what is inserted as piece i of a URL where that stands in the user part, between "://" and "@": a
// password may hold any character. A value that is user and password in one keeps the colon between them.
func inURL(pieces []piece, i int, value string) string {
	before, after := "", ""
	for j, p := range pieces {
		if j < i {
			before += p.literal
		} else if j > i {
			after += p.literal
		}
	}
	_, user, hasScheme := strings.Cut(before, "://")
	rest, _, hasAt := strings.Cut(after, "@")
	if !hasScheme || strings.ContainsAny(user, "/?@") || !hasAt {
		return value
	}
	name, secret, both := strings.Cut(value, ":")
	if both && !strings.Contains(user+rest, ":") {
		return percentEncode(name) + ":" + percentEncode(secret)
	}
	return percentEncode(value)
}

func percentEncode(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }

func (x *expander) value(part piece, f *field) (string, *problem) {
	switch part.kind {
	case "env":
		value, ok := x.env(part.name)
		switch {
		case !ok && strings.Contains(part.name, "."):
			return "", &problem{
				fmt.Sprintf("environment variable %s is not set", part.name),
				"names with dots are Java system properties of WSO2's servers: write the value itself",
			}
		case !ok:
			return "", &problem{fmt.Sprintf("environment variable %s is not set", part.name), "set it before the start, or write the value"}
		case value == "":
			return "", &problem{fmt.Sprintf("environment variable %s is empty", part.name), "give it a value"}
		}
		return value, nil
	case "file":
		return x.file(part.name)
	default:
		target, p := x.follow(part, f)
		if p != nil {
			return "", p
		}
		if target.kind == kindTable || target.kind == kindArray {
			return "", &problem{fmt.Sprintf("%s is %s and cannot stand inside a string", part.token, target.kind), "refer to a single value"}
		}
		return target.text, nil
	}
}

func (x *expander) file(name string) (string, *problem) {
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(x.baseDir, path)
	}
	data, err := readRegular(path, maxInserted)
	if err != nil {
		return "", &problem{fmt.Sprintf("$file{%s} cannot be read: %v", name, reason(err)), "name a file that exists; a relative path starts at the folder of this file"}
	}
	x.files[path] = true
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return "", &problem{fmt.Sprintf("the file %s is empty", path), "write the value into it"}
	}
	if !utf8.ValidString(text) {
		return "", &problem{fmt.Sprintf("the file %s is not UTF-8 text", path), "name a text file"}
	}
	return text, nil
}

// follow finds what a $ref{…} names, with its own references replaced.
func (x *expander) follow(part piece, f *field) (*node, *problem) {
	key := strings.TrimSpace(part.name)
	target := x.lookup(key)
	known := schema().find(key)
	if known != nil && known.kind == takesSecret && f.kind != takesSecret && f.kind != takesURL {
		return nil, &problem{part.token + " is a secret, and this key is shown in logs and on the admin server", "refer to secrets only where a password or a URL is taken"}
	}
	if target == nil {
		if known != nil {
			if v, ok := defaultsByPath()[known.path]; ok && !v.IsZero() && !known.list {
				return &node{kind: kindString, text: textOf(v)}, nil
			}
			return nil, &problem{part.token + ": that key is not set and has no default", "set " + key + ", or write the value here"}
		}
		return nil, &problem{part.token + ": there is no such key", suggestKey(key)}
	}
	if target.kind != kindString {
		return target, nil
	}
	if done := x.followed[key]; done != nil {
		return done, nil
	}
	for i, open := range x.open {
		if open == key {
			return nil, &problem{"a circle of references: " + strings.Join(append(x.open[i:len(x.open):len(x.open)], key), " -> "), "write the value at one of these keys"}
		}
	}
	x.open = append(x.open, key)
	defer func() { x.open = x.open[:len(x.open)-1] }()
	of := f
	if known != nil && known.kind != takesSection && known.kind != takesSections {
		of = known
	}
	result, p := x.expand(target.text, of)
	if p != nil {
		return nil, p
	}
	done := result.whole
	if done == nil {
		done = &node{kind: kindString, text: result.text, pos: target.pos}
	}
	x.followed[key] = done
	return done, nil
}

func (x *expander) lookup(key string) *node {
	n := x.root
	for name := range strings.SplitSeq(key, ".") {
		if n == nil || n.kind != kindTable {
			return nil
		}
		n = n.members[name]
	}
	return n
}

// find returns the key of a dotted path, nil if there is none.
func (f *field) find(path string) *field {
	for name := range strings.SplitSeq(path, ".") {
		if f = f.child(name); f == nil {
			return nil
		}
	}
	return f
}

// readRegular reads a regular file of at most limit bytes: a pipe or device would never end.
func readRegular(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %s", path, Size(limit))
	}
	return data, nil
}
