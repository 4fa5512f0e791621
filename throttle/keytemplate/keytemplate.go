// Package keytemplate holds the key templates of custom policies and expands them for a request into throttle keys.
//
// A template is cut into literals and variables once, when it arrives. Values are inserted as they are and never read
// again, so a user called "$appId" stays that text; the API Manager's own gateway treats values as regular expression
// replacements instead (contract events.md 6.5). The longest variable name wins: "$appIdentity" is not "$appId" followed
// by "entity". A template with a variable that is not known can never match; it is kept, shown as inert and not looked
// up. $clientIp is the decimal number of the address, as policies of the API Manager expect.
package keytemplate

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"gatehouse/throttle"
	"gatehouse/throttle/key"
)

type variable uint8

const (
	literal variable = iota
	resourceKey
	userID
	apiContext
	apiVersion
	appTenant
	apiTenant
	appID
	clientIP
	customProperty
)

var names = map[string]variable{
	"resourceKey": resourceKey, "userId": userID, "apiContext": apiContext, "apiVersion": apiVersion,
	"appTenant": appTenant, "apiTenant": apiTenant, "appId": appID, "clientIp": clientIP,
}

const propertyPrefix = "customProperty."

type token struct {
	kind variable
	text string // the literal, or the name of the custom property
}

// Template is one compiled template. It is immutable.
type Template struct {
	throttle.KeyTemplate
	tokens []token
}

func isName(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// compile cuts a template into tokens. A dollar sign without a name after it is a literal.
func compile(kt throttle.KeyTemplate) *Template {
	t := &Template{KeyTemplate: kt}
	t.Inert = ""
	s := kt.Template
	if s == "" {
		t.Inert = "it is empty"
		return t
	}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			t.tokens = append(t.tokens, token{text: lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(s); {
		if s[i] != '$' || i+1 == len(s) || !isName(s[i+1]) {
			lit.WriteByte(s[i])
			i++
			continue
		}
		end := i + 1
		for end < len(s) && isName(s[end]) {
			end++
		}
		name := s[i+1 : end]
		if strings.HasPrefix(s[i+1:], propertyPrefix) {
			start := i + 1 + len(propertyPrefix)
			end = start
			// Names of properties may hold dots and dashes inside: "$customProperty.client-id".
			for end < len(s) && (isName(s[end]) || (s[end] == '.' || s[end] == '-') && end+1 < len(s) && isName(s[end+1])) {
				end++
			}
			if end == start {
				t.Inert = "$customProperty. names no property"
				return t
			}
			flush()
			t.tokens = append(t.tokens, token{kind: customProperty, text: s[start:end]})
			i = end
			continue
		}
		kind, known := names[name]
		if !known {
			t.Inert = "variable $" + name + " is not known"
			t.tokens = nil
			return t
		}
		flush()
		t.tokens = append(t.tokens, token{kind: kind})
		i = end
	}
	flush()
	return t
}

// Append appends the throttle key that the template makes of a request. ok is false when a value is missing: such a key
// would match nothing, or the wrong thing.
func (t *Template) Append(dst []byte, r *throttle.Request, k *key.Keys) (_ []byte, ok bool) {
	for i := range t.tokens {
		tok := &t.tokens[i]
		before := len(dst)
		switch tok.kind {
		case literal:
			dst = append(dst, tok.text...)
		case resourceKey:
			dst = append(dst, k.Resource...)
		case userID:
			dst = append(dst, k.User...)
		case apiContext:
			dst = append(dst, r.APIContext...)
		case apiVersion:
			dst = append(dst, r.APIVersion...)
		case appTenant:
			dst = append(dst, k.AppTenant...)
		case apiTenant:
			dst = append(dst, k.APITenant...)
		case appID:
			dst = append(dst, k.AppID...)
		case clientIP:
			if r.ClientIP.IsValid() {
				dst = throttle.AppendDecimal(dst, r.ClientIP)
			}
		case customProperty:
			for _, p := range slices.Backward(r.Properties) {
				if p.Name == tok.text {
					dst = append(dst, p.Value...)
					break
				}
			}
		}
		if len(dst) == before && tok.kind != apiVersion {
			return dst, false
		}
	}
	return dst, true
}

// Set holds the key templates. It is safe for concurrent use, readers take no lock; create it with New.
type Set struct {
	mu    sync.Mutex
	all   map[string]*Template
	state atomic.Pointer[state]
}

type state struct {
	live []*Template
	n    int
}

// New returns an empty set.
func New() *Set {
	s := &Set{all: map[string]*Template{}}
	s.state.Store(&state{})
	return s
}

// Put adds a template, or replaces the one of the same text, and returns what stood before.
func (s *Set) Put(kt throttle.KeyTemplate) (before *throttle.KeyTemplate) {
	t := compile(kt)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.all[kt.Template]; old != nil {
		before = &old.KeyTemplate
	}
	s.all[kt.Template] = t
	s.publish()
	return before
}

// Delete removes the template of exactly this text and returns it, nil when there was none.
func (s *Set) Delete(template string) (before *throttle.KeyTemplate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.all[template]
	if old == nil {
		return nil
	}
	delete(s.all, template)
	s.publish()
	return &old.KeyTemplate
}

// ReplaceAll makes the set hold these templates and no others.
func (s *Set) ReplaceAll(list []throttle.KeyTemplate) {
	all := make(map[string]*Template, len(list))
	for _, kt := range list {
		all[kt.Template] = compile(kt)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = all
	s.publish()
}

// publish makes a new state of all. The caller holds mu.
func (s *Set) publish() {
	st := &state{n: len(s.all)}
	for _, t := range s.all {
		if t.Inert == "" {
			st.live = append(st.live, t)
		}
	}
	slices.SortFunc(st.live, func(a, b *Template) int { return strings.Compare(a.Template, b.Template) })
	s.state.Store(st)
}

// All returns copies of all templates, inert ones included, ordered by text.
func (s *Set) All() []throttle.KeyTemplate {
	s.mu.Lock()
	list := make([]throttle.KeyTemplate, 0, len(s.all))
	for _, t := range s.all {
		list = append(list, t.KeyTemplate)
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b throttle.KeyTemplate) int { return strings.Compare(a.Template, b.Template) })
	return list
}

// Len says how many templates are held, inert ones included.
func (s *Set) Len() int { return s.state.Load().n }

// Live returns the templates that can match, ordered by text. The slice must not be changed.
func (s *Set) Live() []*Template { return s.state.Load().live }
