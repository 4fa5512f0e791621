package mtls

import (
	"encoding/base64"
	"errors"
	"net/url"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

const (
	begin = "-----BEGIN CERTIFICATE-----"
	end   = "-----END CERTIFICATE-----"
	// maxHeader is the longest field that is looked at, in bytes.
	maxHeader = 64 << 10
)

var (
	errNone     = errors.New("it holds no certificate")
	errForm     = errors.New("it is neither a certificate in PEM or base64, nor a list of Envoy with Cert")
	errTooLong  = errors.New("it is too long")
	errTooMany  = errors.New("it holds too many certificates")
	errEncoding = errors.New("its percent encoding is broken")
	errBase64   = errors.New("a certificate in it is not base64")
	errDER      = errors.New("what is in it is not a certificate")
	errQuotes   = errors.New("its quotes are broken")
)

// ParseHeader reads the field in which a proxy hands on the certificate of its client: PEM, as it is, with blanks for line ends
// or percent-encoded (nginx, Apache); base64 of DER or of PEM (HAProxy, APIM's load balancers), more of the chain after commas
// (Traefik); the form of RFC 9440; and Envoy's list with Cert and Chain, of whose elements the last one counts: it is
// what the proxy next to us has seen itself. leaf and chain are DER. The error says what is wrong and holds nothing of the field.
func ParseHeader(value string) (leaf []byte, chain [][]byte, err error) {
	value = strings.TrimSpace(value)
	switch {
	case value == "":
		return nil, nil, errNone
	case len(value) > maxHeader:
		return nil, nil, errTooLong
	}
	if strings.HasPrefix(value, ":") && strings.HasSuffix(value, ":") && len(value) > 2 {
		value = value[1 : len(value)-1] // RFC 9440
	} else if isList(value) {
		return parseList(value)
	}
	return split(parseText(value))
}

// isList tells Envoy's list from everything else: it begins with a name and an equals sign that no base64 has there.
func isList(value string) bool {
	name, _, ok := strings.Cut(value, "=")
	if !ok {
		return false
	}
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "by", "hash", "cert", "chain", "subject", "uri", "dns":
		return true
	}
	return false
}

// parseList reads elements apart by commas, each of pairs apart by semicolons, with values in quotes.
func parseList(value string) (leaf []byte, chain [][]byte, err error) {
	pairs, err := lastElement(value)
	if err != nil {
		return nil, nil, err
	}
	cert, ok := pairs["cert"]
	whole, hasChain := pairs["chain"]
	if !ok && !hasChain {
		return nil, nil, errNone
	}
	if hasChain {
		if leaf, chain, err = split(parseText(whole)); err != nil {
			return nil, nil, err
		}
	}
	if ok {
		one, more, err := split(parseText(cert))
		if err != nil {
			return nil, nil, err
		}
		switch {
		case !hasChain:
			chain = more
		case string(one) != string(leaf): // Chain begins with the certificate itself; be it otherwise
			chain = append([][]byte{leaf}, chain...)
		}
		leaf = one
	}
	if len(chain) >= MaxCertificates {
		return nil, nil, errTooMany
	}
	return leaf, chain, nil
}

// lastElement returns the pairs of the last element, by name in lower case. A name that comes twice is an error.
func lastElement(value string) (map[string]string, error) {
	pairs := map[string]string{}
	for i := 0; ; {
		eq := strings.IndexByte(value[i:], '=')
		if eq < 0 {
			return nil, errForm
		}
		name := strings.ToLower(strings.TrimSpace(value[i : i+eq]))
		i += eq + 1
		if strings.ContainsAny(name, `",;`) {
			return nil, errForm
		}
		var text string
		if i < len(value) && value[i] == '"' {
			var b strings.Builder
			for i++; ; i++ {
				if i >= len(value) {
					return nil, errQuotes
				}
				if value[i] == '"' {
					break
				}
				if value[i] == '\\' && i+1 < len(value) {
					i++
				}
				b.WriteByte(value[i])
			}
			text = b.String()
			i++
		} else {
			n := strings.IndexAny(value[i:], ",;")
			if n < 0 {
				n = len(value) - i
			}
			text = strings.TrimSpace(value[i : i+n])
			i += n
		}
		// URI and DNS may come several times; the certificate may not.
		if _, twice := pairs[name]; twice && (name == "cert" || name == "chain") {
			return nil, errForm
		}
		pairs[name] = text
		for i < len(value) && value[i] == ' ' {
			i++
		}
		switch {
		case i >= len(value):
			return pairs, nil
		case value[i] == ',':
			clear(pairs)
		case value[i] != ';':
			return nil, errQuotes
		}
		i++
		if strings.TrimSpace(value[i:]) == "" {
			return nil, errForm
		}
	}
}

func split(list [][]byte, err error) ([]byte, [][]byte, error) {
	if err != nil {
		return nil, nil, err
	}
	return list[0], list[1:], nil
}

// parseText reads certificates in PEM or base64.
func parseText(text string) ([][]byte, error) {
	if strings.IndexByte(text, '%') >= 0 {
		// A plus sign is one of base64, unless blanks were encoded as such.
		decode := url.PathUnescape
		if strings.Contains(text, "BEGIN+CERTIFICATE") {
			decode = url.QueryUnescape
		}
		var err error
		if text, err = decode(text); err != nil {
			return nil, errEncoding
		}
	}
	if strings.Contains(text, begin) {
		return parsePEM(text)
	}
	var list [][]byte
	for part := range strings.SplitSeq(text, ",") {
		b, err := decodeBase64(part)
		if err != nil {
			return nil, err
		}
		if inner := string(b); strings.Contains(inner, begin) {
			if list != nil {
				return nil, errForm
			}
			return parsePEM(inner)
		}
		if list, err = add(list, b); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// parsePEM reads blocks whose line ends may have become blanks, which the decoder of the standard library does not take.
func parsePEM(text string) (list [][]byte, err error) {
	text = strings.TrimSpace(text)
	for text != "" {
		rest, ok := strings.CutPrefix(text, begin)
		if !ok {
			return nil, errForm
		}
		body, after, ok := strings.Cut(rest, end)
		if !ok {
			return nil, errForm
		}
		b, err := decodeBase64(body)
		if err != nil {
			return nil, err
		}
		if list, err = add(list, b); err != nil {
			return nil, err
		}
		text = strings.TrimSpace(after)
	}
	return list, nil
}

func add(list [][]byte, der []byte) ([][]byte, error) {
	if len(list) == MaxCertificates {
		return nil, errTooMany
	}
	var inner cryptobyte.String
	whole := cryptobyte.String(der)
	if !whole.ReadASN1(&inner, asn1.SEQUENCE) || !whole.Empty() || inner.Empty() {
		return nil, errDER
	}
	return append(list, der), nil
}

func decodeBase64(text string) ([]byte, error) {
	text = strings.Map(func(r rune) rune {
		switch r {
		case ' ', '\t', '\r', '\n':
			return -1
		case '-':
			return '+'
		case '_':
			return '/'
		}
		return r
	}, text)
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil || len(b) == 0 {
		return nil, errBase64
	}
	return b, nil
}
