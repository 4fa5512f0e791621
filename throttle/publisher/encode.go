package publisher

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
	"unsafe"

	"gatehouse/throttle"
	"gatehouse/throttle/databridge"
	"gatehouse/throttle/key"
)

// encoder makes the event of one request: 17 attributes, the last of them the properties as JSON (contract
// traffic-manager.md 3). It is used by one goroutine at a time and keeps its memory.
type encoder struct {
	p   *properties
	buf []byte

	pairs   []pair
	names   []byte // header names in lower case
	visited section
}

// properties says what of a request is published besides its address.
type properties struct {
	headers, query, claims bool
	namesAsReceived        bool
	secretHeaders          map[string]struct{} // lower case
	secretQuery            map[string]struct{} // lower case
}

type section uint8

const (
	inHeaders section = iota
	inQuery
	inClaims
)

// pair is one property. Values of one header are chained by next.
type pair struct {
	name, value string
	next        int // index of the next value of this header, 0 for none
	chained     bool
}

const (
	// maxPairs and maxProperties bound what one request may publish: the rest of its attributes is left out, never the event.
	maxPairs      = 128
	maxProperties = 32 << 10
)

// defaultSecretHeaders never leave the gateway: they hold credentials.
var defaultSecretHeaders = []string{
	"authorization", "proxy-authorization", "cookie", "set-cookie", "apikey", "x-api-key", "internal-key", "api-key",
	"x-jwt-assertion", "x-wso2-client-certificate", "x-client-cert", "x-forwarded-client-cert", "sec-websocket-key",
	"sec-websocket-protocol",
}

var defaultSecretQuery = []string{"apikey", "api_key", "access_token", "token", "id_token", "refresh_token", "client_secret", "password", "internal-key"}

// reserved are names of properties that the gateway itself sets: a header of that name must not stand in for them, or a
// client could choose the address that IP conditions see.
func reserved(name string) bool {
	switch name {
	case "ip", "ipv6", "messageSize", "applicationName", "subscriptionType":
		return true
	}
	return false
}

// encode returns the event of r: size, then what the size counts. It is valid until the next call.
func (e *encoder) encode(r *throttle.Request, k *key.Keys, now int64) []byte {
	b, start := databridge.BeginEvent(e.buf[:0], now, databridge.StreamID)
	b = databridge.AppendText(b, r.MessageID)
	b = databridge.AppendBytes(b, k.Application)
	b = databridge.AppendText(b, r.AppTier)
	b = databridge.AppendBytes(b, k.API)
	b = databridge.AppendText(b, r.APITier)
	b = databridge.AppendBytes(b, k.Subscription)
	b = databridge.AppendText(b, r.SubscriptionTier)
	b = databridge.AppendBytes(b, k.Resource)
	b = databridge.AppendText(b, k.ResourceTier)
	b = databridge.AppendBytes(b, k.User)
	b = databridge.AppendText(b, r.APIContext)
	b = databridge.AppendText(b, r.APIVersion)
	b = databridge.AppendText(b, k.AppTenant)
	b = databridge.AppendText(b, k.APITenant)
	b = databridge.AppendBytes(b, k.AppID)
	b = databridge.AppendText(b, r.APIName)

	at := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = e.appendProperties(b, r)
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	e.buf = databridge.EndEvent(b, start)
	return e.buf
}

// appendProperties appends a JSON object without a duplicate name. Later sections win over earlier ones: a header cannot
// stand in for a claim that the token has.
func (e *encoder) appendProperties(b []byte, r *throttle.Request) []byte {
	ip := r.ClientIP.Unmap()
	b = append(b, `{"ip":`...)
	if ip.Is4() {
		b = throttle.AppendDecimal(b, ip)
	} else {
		b = append(b, '0')
	}
	b = append(b, `,"ipv6":`...)
	if ip.Is6() {
		b = throttle.AppendDecimal(b, ip)
	} else {
		b = append(b, '0')
	}

	e.pairs, e.names = e.pairs[:0], e.names[:0]
	if src, ok := r.Attributes.(throttle.AttributeSource); ok {
		if e.p.headers {
			e.visited = inHeaders
			src.VisitHeaders(e)
		}
		if e.p.query {
			e.visited = inQuery
			src.VisitQuery(e)
		}
		if e.p.claims {
			e.visited = inClaims
			src.VisitClaims(e)
		}
	}
	limit := len(b) + maxProperties
	for i := range e.pairs {
		p := &e.pairs[i]
		if p.chained || e.overridden(p, r) {
			continue
		}
		if before := len(b); before < limit {
			if b = e.appendPair(b, p); len(b) > limit {
				b = b[:before]
			}
		}
	}
	if r.MessageSize >= 0 {
		b = append(b, `,"messageSize":`...)
		b = appendInt(b, r.MessageSize)
	}
	for i, p := range r.Properties {
		if reserved(p.Name) || !utf8.ValidString(p.Name) || laterProperty(r.Properties[i+1:], p.Name) {
			continue
		}
		if before := len(b); before < limit {
			b = appendString(append(b, ','), p.Name)
			b = appendString(append(b, ':'), p.Value)
			if len(b) > limit {
				b = b[:before]
			}
		}
	}
	// What is left of the request must not be kept alive by the encoder.
	clear(e.pairs)
	return append(b, '}')
}

func laterProperty(list []throttle.Property, name string) bool {
	for i := range list {
		if list[i].Name == name {
			return true
		}
	}
	return false
}

// overridden says whether a custom property takes the name of p.
func (e *encoder) overridden(p *pair, r *throttle.Request) bool {
	for i := range r.Properties {
		if p.name == r.Properties[i].Name {
			return true
		}
	}
	return false
}

func (e *encoder) appendPair(b []byte, p *pair) []byte {
	b = appendString(append(b, ','), p.name)
	b = append(b, ':')
	if p.next == 0 {
		return appendString(b, p.value)
	}
	b = append(b, '"')
	b = appendEscaped(b, p.value)
	for i := p.next; i != 0; i = e.pairs[i].next {
		b = append(b, ',', ' ')
		b = appendEscaped(b, e.pairs[i].value)
	}
	return append(b, '"')
}

// VisitAttribute implements throttle.AttributeVisitor.
func (e *encoder) VisitAttribute(name, value string) {
	if name == "" || len(e.pairs) >= maxPairs || !utf8.ValidString(name) {
		return
	}
	switch e.visited {
	case inHeaders:
		lower := e.lower(name)
		if _, secret := e.p.secretHeaders[lower]; secret || reserved(lower) {
			return
		}
		if !e.p.namesAsReceived {
			name = lower
		}
	case inQuery:
		if _, secret := e.p.secretQuery[e.lower(name)]; secret {
			return
		}
	}
	if reserved(name) {
		return
	}
	for i := range e.pairs {
		p := &e.pairs[i]
		if p.chained || p.name != name {
			continue
		}
		if e.visited == inHeaders {
			last := i
			for e.pairs[last].next != 0 {
				last = e.pairs[last].next
			}
			e.pairs[last].next = len(e.pairs)
			e.pairs = append(e.pairs, pair{value: value, chained: true})
			return
		}
		// The last value of a query parameter counts; a query parameter wins over a header, a claim over both.
		*p = pair{name: name, value: value}
		return
	}
	e.pairs = append(e.pairs, pair{name: name, value: value})
}

// lower returns the name in lower case, in memory of the encoder that is not written again while this event is made.
func (e *encoder) lower(name string) string {
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			at := len(e.names)
			e.names = append(e.names, name...)
			for j := at + i; j < len(e.names); j++ {
				e.names[j] = lowerByte(e.names[j])
			}
			return unsafe.String(&e.names[at], len(name)) //nolint:gosec // these bytes are not written again before the pairs are cleared
		}
	}
	return name
}

func lowerByte(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func appendInt(b []byte, n int64) []byte {
	if n == 0 {
		return append(b, '0')
	}
	var d [20]byte
	i := len(d)
	for ; n > 0; n /= 10 {
		i--
		d[i] = byte('0' + n%10)
	}
	return append(b, d[i:]...)
}

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	b = appendEscaped(b, s)
	return append(b, '"')
}

const hexDigits = "0123456789abcdef"

// appendEscaped appends s as the inside of a JSON string. Bytes that are no UTF-8 become the replacement character: a
// property must never make the whole event useless.
func appendEscaped(b []byte, s string) []byte {
	plain := 0 // s[plain:i] needs no escape
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			b = append(b, s[plain:i]...)
			if c == '"' || c == '\\' {
				b = append(b, '\\', c)
			} else {
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			plain = i
			continue
		}
		ru, n := utf8.DecodeRuneInString(s[i:])
		if ru == utf8.RuneError && n == 1 {
			b = append(append(b, s[plain:i]...), "\ufffd"...)
			plain = i + 1
		}
		i += n
	}
	return append(b, s[plain:]...)
}

func lowerSet(lists ...[]string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, l := range lists {
		for _, s := range l {
			if s = strings.ToLower(strings.TrimSpace(s)); s != "" {
				m[s] = struct{}{}
			}
		}
	}
	return m
}
