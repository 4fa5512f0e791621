// Package template turns patterns such as "{app:name} of {app:owner}" into the values of claims.
//
// Text stands for itself, {{ and }} for one brace. What stands between braces is replaced:
//
//	{claim:NAME}         a claim of the caller's token, after claim mapping; NAME may be a JSON pointer, /realm/roles
//	{token:FIELD}        user, issuer, key_manager, consumer_key, scopes, kind
//	{app:FIELD}          id, uuid, name, owner, tier, tenant
//	{attribute:NAME}     an attribute of the application
//	{subscription:FIELD} tier, key_type
//	{api:FIELD}          name, version, context, uuid, tenant
package template

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Source says where the value of a placeholder comes from.
type Source string

// The sources.
const (
	Claim        Source = "claim"
	Token        Source = "token"
	Application  Source = "app"
	Attribute    Source = "attribute"
	Subscription Source = "subscription"
	API          Source = "api"
)

// fields are the names that a source takes; nil takes any.
var fields = map[Source][]string{
	Claim:        nil,
	Attribute:    nil,
	Token:        {"user", "issuer", "key_manager", "consumer_key", "scopes", "kind"},
	Application:  {"id", "uuid", "name", "owner", "tier", "tenant"},
	Subscription: {"tier", "key_type"},
	API:          {"name", "version", "context", "uuid", "tenant"},
}

// Template is a pattern taken apart. It may be used by any number of goroutines. The zero value is the empty text.
type Template struct{ parts []part }

// part is text, or a placeholder where source is not empty.
type part struct {
	text   string // the name of a placeholder
	source Source
}

// Parse takes a pattern apart. Errors say what is wrong and what would be right.
func Parse(pattern string) (Template, error) {
	var t Template
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			t.parts = append(t.parts, part{text: text.String()})
			text.Reset()
		}
	}
	for rest := pattern; rest != ""; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			text.WriteString(rest)
			break
		}
		text.WriteString(rest[:i])
		brace := rest[i]
		rest = rest[i+1:]
		switch {
		case rest != "" && rest[0] == brace:
			text.WriteByte(brace)
			rest = rest[1:]
		case brace == '}':
			return Template{}, errors.New("a } that closes nothing: write }} for the character itself")
		default:
			inner, after, closed := strings.Cut(rest, "}")
			if !closed {
				return Template{}, errors.New("{ is not closed: write {claim:NAME}, or {{ for the character itself")
			}
			p, err := placeholder(inner)
			if err != nil {
				return Template{}, err
			}
			flush()
			t.parts = append(t.parts, p)
			rest = after
		}
	}
	flush()
	return t, nil
}

func placeholder(inner string) (part, error) {
	source, name, _ := strings.Cut(inner, ":")
	known, ok := fields[Source(source)]
	switch {
	case strings.ContainsRune(inner, '{'):
		return part{}, fmt.Errorf("{ within {%s}: close the one before it", inner)
	case !ok:
		return part{}, fmt.Errorf("{%s} names no source: write one of {claim:NAME}, {token:FIELD}, {app:FIELD}, {attribute:NAME}, {subscription:FIELD}, {api:FIELD}", inner)
	case name == "":
		return part{}, fmt.Errorf("{%s} names nothing: write {%s:NAME}", inner, source)
	case known != nil && !slices.Contains(known, name):
		return part{}, fmt.Errorf("{%s} is not known: %s has %s", inner, source, strings.Join(known, ", "))
	}
	return part{text: name, source: Source(source)}, nil
}

// Expand fills the placeholders with what value returns for them. It is false when one has no value: half a text is worse
// than none.
func (t Template) Expand(value func(source Source, name string) (string, bool)) (string, bool) {
	var b strings.Builder
	for _, p := range t.parts {
		text := p.text
		if p.source != "" {
			v, ok := value(p.source, p.text)
			if !ok {
				return "", false
			}
			text = v
		}
		b.WriteString(text)
	}
	return b.String(), true
}

// String returns a pattern that parses to the same template.
func (t Template) String() string {
	var b strings.Builder
	for _, p := range t.parts {
		if p.source != "" {
			b.WriteString("{" + string(p.source) + ":" + p.text + "}")
			continue
		}
		b.WriteString(strings.NewReplacer("{", "{{", "}", "}}").Replace(p.text))
	}
	return b.String()
}
