package event

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// scanner reads JSON as encoding/json does into any, with numbers as json.Number, several times as fast: a busy event hub
// sends tens of thousands of messages a second. It reads what publishers write. Whatever is unusual — an escape
// \u, broken UTF-8, deep nesting, any fault — it gives up on, and encoding/json reads the text instead, so that both can
// never differ in what they refuse or how they say it.
type scanner struct {
	text []byte
	at   int
}

// maxNesting is how deep objects and lists may stand in each other before the scanner gives up; encoding/json has a limit
// of its own.
const maxNesting = 32

// scanJSON reads one value and nothing after it; ok is false when encoding/json has to read the text.
func scanJSON(text []byte) (v any, ok bool) {
	s := scanner{text: text}
	v, ok = s.value(0)
	return v, ok && s.ended()
}

var (
	envelopeOpen  = []byte(`{"event":{"payloadData":`)
	envelopeClose = []byte(`}}`)
)

// scanEnvelope reads the attributes out of an envelope that holds nothing else, as every publisher writes it.
func scanEnvelope(text []byte) (attributes map[string]any, ok bool) {
	if !bytes.HasPrefix(text, envelopeOpen) || !bytes.HasSuffix(text, envelopeClose) {
		return nil, false
	}
	s := scanner{text: text[len(envelopeOpen) : len(text)-len(envelopeClose)]}
	v, ok := s.value(0)
	if !ok || !s.ended() {
		return nil, false
	}
	attributes, ok = v.(map[string]any)
	return attributes, ok
}

// blank passes over white space.
func (s *scanner) blank() {
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

func (s *scanner) ended() bool {
	s.blank()
	return s.at == len(s.text)
}

// next passes over white space and over c, where it stands.
func (s *scanner) next(c byte) bool {
	s.blank()
	if s.at < len(s.text) && s.text[s.at] == c {
		s.at++
		return true
	}
	return false
}

func (s *scanner) literal(text string) bool {
	if len(s.text)-s.at < len(text) || string(s.text[s.at:s.at+len(text)]) != text {
		return false
	}
	s.at += len(text)
	return true
}

func (s *scanner) value(depth int) (any, bool) {
	s.blank()
	if s.at == len(s.text) || depth > maxNesting {
		return nil, false
	}
	switch c := s.text[s.at]; c {
	case '"':
		text, plain, ok := s.token()
		switch {
		case !ok:
			return nil, false
		case !plain:
			return unescape(text)
		}
		if known, ok := vocabulary[string(text)]; ok {
			return known, true
		}
		return string(text), true
	case '{':
		return s.object(depth)
	case '[':
		return s.list(depth)
	case 't':
		return true, s.literal("true")
	case 'f':
		return false, s.literal("false")
	case 'n':
		return nil, s.literal("null")
	default:
		return s.number()
	}
}

func (s *scanner) object(depth int) (any, bool) {
	s.at++
	size := 0
	if depth == 0 { // the commas of the whole text are about its attributes; a map that grows costs more than the count
		size = min(bytes.Count(s.text[s.at:], []byte{','})+1, 4*maxNesting)
	}
	m := make(map[string]any, size)
	if s.next('}') {
		return m, true
	}
	for {
		s.blank()
		name, plain, ok := s.token()
		if !ok || !plain || !s.next(':') {
			return nil, false
		}
		value, ok := s.value(depth + 1)
		if !ok {
			return nil, false
		}
		if known, ok := vocabulary[string(name)].(string); ok {
			m[known] = value
		} else {
			m[string(name)] = value
		}
		if s.next(',') {
			continue
		}
		return m, s.next('}')
	}
}

func (s *scanner) list(depth int) (any, bool) {
	s.at++
	list := []any{}
	if s.next(']') {
		return list, true
	}
	for {
		value, ok := s.value(depth + 1)
		if !ok {
			return nil, false
		}
		list = append(list, value)
		if s.next(',') {
			continue
		}
		return list, s.next(']')
	}
}

// token returns what stands between the next quotes; plain says that it holds no escape and stands for itself.
func (s *scanner) token() (text []byte, plain, ok bool) {
	if s.at == len(s.text) || s.text[s.at] != '"' {
		return nil, false, false
	}
	start := s.at + 1
	plain, ascii := true, true
	for i := start; i < len(s.text); i++ {
		switch c := s.text[i]; {
		case c == '"':
			s.at = i + 1
			text = s.text[start:i]
			return text, plain, ascii || utf8.Valid(text)
		case c == '\\':
			plain = false
			i++
		case c < ' ':
			return nil, false, false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, false, false
}

// unescape writes the short escapes out.
func unescape(text []byte) (any, bool) {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '\\' {
			out = append(out, c)
			continue
		}
		if i++; i == len(text) {
			return nil, false
		}
		switch c := text[i]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		default:
			return nil, false
		}
	}
	return string(out), true
}

func (s *scanner) digits() bool {
	start := s.at
	for s.at < len(s.text) && s.text[s.at] >= '0' && s.text[s.at] <= '9' {
		s.at++
	}
	return s.at > start
}

// is passes over c, where it stands right here.
func (s *scanner) is(c byte) bool {
	if s.at < len(s.text) && s.text[s.at] == c {
		s.at++
		return true
	}
	return false
}

func (s *scanner) number() (any, bool) {
	start := s.at
	s.is('-')
	if !s.is('0') && !s.digits() {
		return nil, false
	}
	if s.is('.') && !s.digits() {
		return nil, false
	}
	if s.is('e') || s.is('E') {
		if !s.is('+') {
			s.is('-')
		}
		if !s.digits() {
			return nil, false
		}
	}
	return json.Number(s.text[start:s.at]), true
}

// vocabulary holds the names of attributes and the values that messages are full of, so that each is in memory once. It is
// never written to.
var vocabulary = func() map[string]any {
	words := []string{
		"", "throttleKey", "isThrottled", "expiryTimeStamp", "evaluatedConditions", "id", "blockingCondition", "conditionValue", "state",
		"tenantDomain", "keyTemplateValue", "keyTemplateState", "fixedIp", "startingIp", "endingIp", "invert",
		"eventId", "revokedToken", "ttl", "expiryTime", "type", "tenantId", "eventType", "timestamp", "timeStamp", "event",
		"subscriptionId", "subscriptionUUID", "apiId", "apiUUID", "applicationId", "applicationUUID", "policyId", "subscriptionState",
		"consumerKey", "keyType", "keyManager", "uuid", "applicationName", "tokenType", "applicationPolicy", "attributes", "subscriber", "groupId",
		"apiName", "apiVersion", "apiContext", "apiProvider", "apiStatus", "apiType", "name", "version", "context", "provider", "gatewayLabels",
		"associatedApis", "action", "value", "enabled", "organization", "policyType", "policyName", "quotaType",
		"SUBSCRIPTIONS_CREATE", "SUBSCRIPTIONS_UPDATE", "SUBSCRIPTIONS_DELETE", "APPLICATION_CREATE", "APPLICATION_UPDATE",
		"APPLICATION_DELETE", "APPLICATION_REGISTRATION_CREATE", "REMOVE_APPLICATION_KEYMAPPING",
		"UNBLOCKED", "BLOCKED", "PROD_ONLY_BLOCKED", "ON_HOLD", "PRODUCTION", "SANDBOX", "JWT", "carbon.super", "Unlimited", "Gold", "Silver",
		"Bronze", "Resident Key Manager", "Default", "true", "false", "3600",
		"API", "APPLICATION", "IP", "IPRANGE", "USER", "SUBSCRIPTION",
	}
	m := make(map[string]any, len(words))
	for _, w := range words {
		m[w] = w
	}
	return m
}()
