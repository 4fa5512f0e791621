package fault

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"gatehouse/proxy/pipeline"
)

// Dialect is the shape of fault bodies.
type Dialect string

// The dialects of [gateway] fault_dialect. Microgateway is the default.
const (
	Microgateway Dialect = "mgw"     // {"fault":{"code":900901,…}}; the router's 404 and 405 flat
	APIM4        Dialect = "apim4"   // {"code":"900901",…}
	Problem      Dialect = "problem" // RFC 9457
)

// ParseDialect checks a configured dialect; "" is Microgateway.
func ParseDialect(s string) (Dialect, error) {
	switch d := Dialect(s); d {
	case "":
		return Microgateway, nil
	case Microgateway, APIM4, Problem:
		return d, nil
	}
	return "", fmt.Errorf("unknown fault dialect %q: it must be mgw, apim4 or problem", s)
}

// Format is the syntax of a body.
type Format uint8

// Formats of a body.
const (
	JSON Format = iota
	XML
	SOAP11
	SOAP12
	GRPC
)

// Choose picks the format for a request: SOAP faults for SOAP requests, gRPC status for gRPC, XML where the client's
// Accept prefers it and does not take JSON as well, JSON otherwise.
func Choose(accept, contentType, soapAction string) Format {
	if contentType != "" {
		mt, _, _ := strings.Cut(contentType, ";")
		mt = strings.TrimSpace(mt)
		switch {
		case hasPrefixFold(mt, "application/grpc") && !hasPrefixFold(mt, "application/grpc-web"):
			return GRPC
		case strings.EqualFold(mt, "application/soap+xml"):
			return SOAP12
		case strings.EqualFold(mt, "text/xml") && soapAction != "":
			return SOAP11
		}
	}
	if accept == "" || !strings.Contains(accept, "xml") && !strings.Contains(accept, "XML") {
		return JSON
	}
	xml, json := -1.0, -1.0
	for part := range strings.SplitSeq(accept, ",") {
		mt, params, _ := strings.Cut(part, ";")
		mt = strings.TrimSpace(mt)
		q := 1.0
		for p := range strings.SplitSeq(params, ";") {
			if k, v, ok := strings.Cut(strings.TrimSpace(p), "="); ok && strings.EqualFold(k, "q") {
				if f, err := strconv.ParseFloat(v, 64); err == nil {
					q = f
				}
			}
		}
		switch strings.ToLower(mt) {
		case "application/xml", "text/xml":
			xml = max(xml, q)
		case "application/json", "application/problem+json":
			json = max(json, q)
		}
	}
	if xml > 0 && json <= 0 {
		return XML
	}
	return JSON
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// Body is a rendered refusal.
type Body struct {
	// Status is the HTTP status: that of the refusal but for gRPC, whose refusals travel with 200.
	Status      int
	ContentType string
	// Content is empty for gRPC, where GRPCStatus and GRPCMessage stand in the header.
	Content     []byte
	GRPCStatus  string
	GRPCMessage string
}

// Append renders a refusal into dst. The body's Content is dst with the body appended.
func (d Dialect) Append(dst []byte, r *pipeline.Refusal, f Format) Body {
	b := Body{Status: r.Status}
	switch f {
	case GRPC:
		b.Status, b.ContentType = 200, "application/grpc"
		b.GRPCStatus = strconv.Itoa(grpcStatus(r.Status))
		b.GRPCMessage = grpcMessage(r.Description)
		b.Content = dst
	case SOAP11:
		b.ContentType = "text/xml; charset=utf-8"
		dst = append(dst, `<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body><soapenv:Fault><faultcode>soapenv:Server</faultcode><faultstring>`...)
		dst = appendXML(dst, r.Message)
		dst = append(dst, `</faultstring><detail>`...)
		dst = appendXMLFault(dst, r)
		b.Content = append(dst, `</detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>`...)
	case SOAP12:
		b.ContentType = "application/soap+xml; charset=utf-8"
		who := "Receiver"
		if r.Status < 500 {
			who = "Sender"
		}
		dst = append(dst, `<soapenv:Envelope xmlns:soapenv="http://www.w3.org/2003/05/soap-envelope"><soapenv:Body><soapenv:Fault><soapenv:Code><soapenv:Value>soapenv:`...)
		dst = append(dst, who...)
		dst = append(dst, `</soapenv:Value></soapenv:Code><soapenv:Reason><soapenv:Text xml:lang="en">`...)
		dst = appendXML(dst, r.Message)
		dst = append(dst, `</soapenv:Text></soapenv:Reason><soapenv:Detail>`...)
		dst = appendXMLFault(dst, r)
		b.Content = append(dst, `</soapenv:Detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>`...)
	case XML:
		b.ContentType = "application/xml"
		if d == Problem {
			b.ContentType = "application/problem+xml"
			dst = append(dst, `<problem xmlns="urn:ietf:rfc:7807"><title>`...)
			dst = appendXML(dst, r.Message)
			dst = append(dst, `</title><status>`...)
			dst = strconv.AppendInt(dst, int64(r.Status), 10)
			dst = append(dst, `</status><detail>`...)
			dst = appendXML(dst, r.Description)
			dst = append(dst, `</detail><code>`...)
			dst = strconv.AppendInt(dst, int64(r.Code), 10)
			b.Content = append(dst, `</code></problem>`...)
			break
		}
		b.Content = appendXMLFault(dst, r)
	default:
		b.ContentType = "application/json"
		switch {
		case d == Problem:
			b.ContentType = "application/problem+json"
			dst = append(dst, `{"type":"about:blank","title":`...)
			dst = appendJSON(dst, r.Message)
			dst = append(dst, `,"status":`...)
			dst = strconv.AppendInt(dst, int64(r.Status), 10)
			dst = append(dst, `,"detail":`...)
			dst = appendJSON(dst, r.Description)
			dst = append(dst, `,"code":"`...)
			dst = strconv.AppendInt(dst, int64(r.Code), 10)
			dst = append(dst, `"}`...)
		case d == APIM4:
			dst = append(dst, `{"code":"`...)
			dst = strconv.AppendInt(dst, int64(r.Code), 10)
			dst = append(dst, `","message":`...)
			dst = appendJSON(dst, r.Message)
			dst = append(dst, `,"description":`...)
			dst = appendJSON(dst, r.Description)
			dst = append(dst, '}')
		case r.Code == 404 || r.Code == 405: // Microgateway's router
			dst = append(dst, `{"code":`...)
			dst = strconv.AppendInt(dst, int64(r.Code), 10)
			dst = append(dst, `,"type":"Status report","message":"Runtime Error","description":`...)
			dst = appendJSON(dst, r.Description)
			dst = append(dst, '}')
		default:
			dst = append(dst, `{"fault":{"code":`...)
			dst = strconv.AppendInt(dst, int64(r.Code), 10)
			dst = append(dst, `,"message":`...)
			dst = appendJSON(dst, r.Message)
			dst = append(dst, `,"description":`...)
			dst = appendJSON(dst, r.Description)
			dst = append(dst, `}}`...)
		}
		b.Content = dst
	}
	return b
}

// appendXMLFault writes the fault element of the API Manager's XML answers: throttling has a name space of its own.
func appendXMLFault(dst []byte, r *pipeline.Refusal) []byte {
	prefix, space := "ams", "http://wso2.org/apimanager/security"
	if r.Code >= LimitAPI && r.Code <= LimitBurst {
		prefix, space = "amt", "http://wso2.org/apimanager/throttling"
	}
	dst = append(dst, '<')
	dst = append(dst, prefix...)
	dst = append(dst, ":fault xmlns:"...)
	dst = append(dst, prefix...)
	dst = append(dst, `="`...)
	dst = append(dst, space...)
	dst = append(dst, `">`...)
	for _, e := range [...]struct{ name, text string }{{"code", strconv.Itoa(r.Code)}, {"message", r.Message}, {"description", r.Description}} {
		dst = append(dst, '<')
		dst = append(dst, prefix...)
		dst = append(dst, ':')
		dst = append(dst, e.name...)
		dst = append(dst, '>')
		dst = appendXML(dst, e.text)
		dst = append(dst, "</"...)
		dst = append(dst, prefix...)
		dst = append(dst, ':')
		dst = append(dst, e.name...)
		dst = append(dst, '>')
	}
	dst = append(dst, "</"...)
	dst = append(dst, prefix...)
	return append(dst, ":fault>"...)
}

func appendXML(dst []byte, s string) []byte {
	for _, c := range s {
		switch {
		case c == '<':
			dst = append(dst, "&lt;"...)
		case c == '>':
			dst = append(dst, "&gt;"...)
		case c == '&':
			dst = append(dst, "&amp;"...)
		case c == '"':
			dst = append(dst, "&quot;"...)
		case c < 0x20 && c != '\t' && c != '\n':
			dst = append(dst, ' ')
		default:
			dst = utf8.AppendRune(dst, c)
		}
	}
	return dst
}

const hex = "0123456789abcdef"

// appendJSON writes a JSON string.
func appendJSON(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', byte(c))
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = utf8.AppendRune(dst, c)
		}
	}
	return append(dst, '"')
}

// grpcStatus maps an HTTP status to a gRPC one (contract gateway-behaviour.md 2.3).
func grpcStatus(status int) int {
	switch status {
	case 400:
		return 3
	case 401:
		return 16
	case 403:
		return 7
	case 404, 405:
		return 12
	case 413, 429:
		return 8
	case 502, 503:
		return 14
	case 504:
		return 4
	}
	return 2
}

// grpcMessage percent-encodes what may not stand in grpc-message.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Quote makes a text safe for a quoted string of WWW-Authenticate.
func Quote(s string) string {
	return strings.Map(func(c rune) rune {
		if c == '"' || c == '\\' || c < 0x20 || c > 0x7e {
			return '\''
		}
		return c
	}, s)
}

// EndpointError is Microgateway's own body for a key whose type has no endpoint.
func EndpointError(dst []byte, r *pipeline.Refusal) Body {
	dst = append(dst, `{"ERROR_CODE":"`...)
	dst = strconv.AppendInt(dst, int64(r.Code), 10)
	dst = append(dst, `","ERROR_MESSAGE":`...)
	dst = appendJSON(dst, r.Description)
	return Body{Status: 403, ContentType: "application/json", Content: append(dst, '}')}
}
