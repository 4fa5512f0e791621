package config

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// maxFile bounds certificate and key files.
const maxFile = 16 << 20

// checkForm checks a string against the form that its key asks for.
func checkForm(f *field, text string) *problem {
	switch f.form {
	case "listen":
		return checkListen(text)
	case "header":
		if !isToken(text) {
			return &problem{"not a name that HTTP allows for a header", `write letters, digits and "-" only, such as "Authorization"`}
		}
	case "method":
		if !isToken(text) || strings.ToUpper(text) != text {
			return &problem{"not a method of HTTP", `write it in capital letters, such as "GET"`}
		}
	case "word":
		if strings.TrimSpace(text) != text || text == "" {
			return &problem{"empty, or with blanks around it", "write a name"}
		}
	case "host":
		if text != "" && (strings.ContainsAny(text, ":/@ ") || !validHost(text)) {
			return &problem{"not a host name", `write the name or address alone, such as "proxy.example.com"; the port has a key of its own`}
		}
	case "origin":
		return checkOrigin(text)
	case "urlpath":
		if !strings.HasPrefix(text, "/") || strings.ContainsAny(text, "?# ") {
			return &problem{"not a path of a URL", `write one that starts with a slash, such as "/internal/data/v1"`}
		}
	case "stream":
		if text == "" || strings.ContainsAny(text, " .*>/\\\t\r\n") {
			return &problem{"not a name that JetStream allows for a stream", `write letters, digits, "-" and "_" only, such as "GATEHOUSE"`}
		}
	case "function":
		if text != "" && !claimFunction.MatchString(text) {
			return &problem{"not a function of a claim's value", `write "lower", "upper", "split(x)", "join(x)", "prefix(x)" or "regex(from,to)"`}
		}
	case "broker":
		return checkBroker(text)
	case "receiver":
		return checkReceiver(text)
	}
	if len(f.schemes) > 0 {
		return checkURL(text, f.schemes)
	}
	return nil
}

// claimFunction is the shape of a function. Whether an expression can be read is the business of keymanager/claims, whose
// errors the composition root reports at the same place.
var claimFunction = regexp.MustCompile(`^(?s:lower|upper|(?:split|prefix)\(.+\)|join\(.*\)|regex\(.+,.*\))$`)

func checkListen(text string) *problem {
	if text == "" {
		return nil // off
	}
	wrong := &problem{"not an address to listen on", `write host:port or :port, such as ":9090" or "127.0.0.1:9096"; port 0 takes a free one`}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return wrong
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return wrong
	}
	if host != "" && !validHost(host) {
		return wrong
	}
	return nil
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)

func validHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return len(host) <= 253 && hostName.MatchString(host)
}

// isToken is the token of RFC 9110 5.6.2.
func isToken(text string) bool {
	for _, c := range []byte(text) {
		if c > '~' || c <= ' ' || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return text != ""
}

func checkOrigin(text string) *problem {
	if text == "*" {
		return nil
	}
	plain := strings.Replace(text, "://*.", "://", 1)
	u, err := url.Parse(plain)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || strings.Contains(plain, "*") {
		return &problem{"not an origin", `write scheme and host, such as "https://shop.example.com", "https://*.example.com" or "*"`}
	}
	return nil
}

func checkURL(text string, schemes []string) *problem {
	if text == "" {
		return nil
	}
	if schemes[0] == "nats" { // several servers of one cluster may stand in one string
		for one := range strings.SplitSeq(text, ",") {
			if p := checkOneURL(strings.TrimSpace(one), schemes); p != nil {
				return p
			}
		}
		return nil
	}
	return checkOneURL(text, schemes)
}

func checkOneURL(text string, schemes []string) *problem {
	example := schemes[len(schemes)-1] + "://host.example.com"
	u, err := url.Parse(text)
	if err != nil {
		return &problem{"not a URL", "write one such as " + quote(example)}
	}
	for _, scheme := range schemes {
		if u.Scheme == scheme {
			if u.Hostname() == "" || !validHost(u.Hostname()) || !validPort(u.Port(), u.Host) {
				return &problem{"a URL without a valid host and port", "write one such as " + quote(example)}
			}
			return nil
		}
	}
	return &problem{"not a URL that starts with " + strings.Join(schemes, ":// or ") + "://", "write one such as " + quote(example)}
}

func validPort(port, host string) bool {
	if port == "" {
		return !strings.HasSuffix(host, ":")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// brokerForms is what an operator is told when a broker URL is wrong.
const brokerForms = `write "amqp://user:password@clientid/carbon?brokerlist='tcp://host:5672'", "amqp://user:password@host:5672/carbon" (amqps for TLS), ` +
	`"tcp://host:5672" (ssl for TLS) or "nats://host:4222"`

var brokerList = regexp.MustCompile(`(?i)brokerlist\s*=\s*'([^?'&]*)`)

// checkBroker checks scheme and shape of a broker URL. Its whole grammar is the business of agent/eventsource/brokerurl,
// whose errors the composition root reports at the same place (Source.Fault).
func checkBroker(text string) *problem {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		return &problem{"not a broker URL", brokerForms}
	}
	switch scheme {
	case "amqp", "amqps":
		if list := brokerList.FindStringSubmatch(rest); list != nil {
			return checkBrokerList(list[1])
		}
		if strings.Contains(strings.ToLower(rest), "brokerlist") {
			return &problem{"a broker URL whose brokerlist has no quoted value", brokerForms}
		}
	case "tcp", "ssl", "nats", "tls":
	default:
		return &problem{"not a broker URL: its scheme is none of amqp, amqps, tcp, ssl, nats, tls", brokerForms}
	}
	// Only the forms without options may hold several brokers.
	parts := []string{text}
	if scheme != "amqp" && scheme != "amqps" {
		parts = strings.Split(text, ",")
	}
	for _, part := range parts {
		if _, host, found := strings.Cut(part, "://"); found {
			part = host
		}
		authority := part[:authorityEnd(part)]
		if !validHostPort(strings.TrimSpace(authority[strings.LastIndexByte(authority, '@')+1:])) {
			return &problem{"a broker URL without a valid host and port", brokerForms}
		}
	}
	return nil
}

// authorityEnd is where the authority of a URL ends; a user part may hold slashes.
func authorityEnd(rest string) int {
	from := max(strings.LastIndexByte(rest, '@'), 0)
	if i := strings.IndexAny(rest[from:], "/?"); i >= 0 {
		return from + i
	}
	return len(rest)
}

func checkBrokerList(list string) *problem {
	named := false
	for broker := range strings.SplitSeq(list, ";") {
		broker = strings.TrimSpace(broker)
		if broker == "" {
			continue
		}
		named = true
		if scheme, host, found := strings.Cut(broker, "://"); found {
			if scheme != "tcp" && scheme != "ssl" {
				return &problem{"a broker URL whose brokerlist names a transport other than tcp", brokerForms}
			}
			broker = host
		}
		if !validHostPort(broker) {
			return &problem{"a broker URL whose brokerlist has no valid host and port", brokerForms}
		}
	}
	if !named {
		return &problem{"a broker URL whose brokerlist is empty", brokerForms}
	}
	return nil
}

func validHostPort(text string) bool {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		if strings.Contains(strings.Trim(text, "[]"), ":") && !strings.HasPrefix(text, "[") {
			return false
		}
		return validHost(strings.Trim(text, "[]"))
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && validHost(host)
}

func checkReceiver(text string) *problem {
	fix := `write "tcp://host:9611", "ssl://host:9711" or "nats://host:4222"`
	if strings.ContainsAny(text, "{}|,") {
		return &problem{"several receivers in one string", "write each as an element of the list, and each group as a [[apim.throttling.url_group]] of its own"}
	}
	scheme, host, found := strings.Cut(text, "://")
	if !found || scheme != "tcp" && scheme != "ssl" && scheme != "nats" && scheme != "tls" {
		return &problem{"not the URL of a traffic manager", fix}
	}
	host = host[strings.LastIndexByte(host, '@')+1:]
	if !validHostPort(host) {
		return &problem{"the URL of a traffic manager without a valid host and port", fix}
	}
	if _, _, err := net.SplitHostPort(host); err != nil && (scheme == "tcp" || scheme == "ssl") {
		return &problem{"the URL of a traffic manager without a port", fix}
	}
	return nil
}

// checkPEM checks that a file holds what its key is for: a certificate that can be read, for one. Whether certificate and
// key belong together is a rule between keys.
func checkPEM(f *field, data []byte) *problem {
	want, isKey := "CERTIFICATE", f.name == "key_file"
	if isKey {
		want = "PRIVATE KEY"
	}
	rest := data
	var unread error
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if isKey && strings.HasSuffix(block.Type, want) {
			return nil
		}
		if !isKey && f.name == "certificate_file" && block.Type == "PUBLIC KEY" {
			return nil
		}
		if !isKey && block.Type == want {
			if _, unread = x509.ParseCertificate(block.Bytes); unread == nil {
				return nil
			}
		}
	}
	if unread != nil {
		return &problem{"the file's certificate cannot be read: " + unread.Error(), "name a file with an X.509 certificate, such as openssl x509 -in FILE -text shows"}
	}
	what := "a certificate"
	if isKey {
		what = "a private key"
	}
	if bytes.HasPrefix(data, []byte{0x30, 0x82}) || bytes.HasPrefix(data, []byte{0xfe, 0xed, 0xfe, 0xed}) {
		return &problem{fmt.Sprintf("the file is binary (a Java key store, PKCS#12 or DER), where %s in PEM form belongs", what), "convert it, for example with: openssl pkcs12 -in store.p12 -nodes"}
	}
	return &problem{fmt.Sprintf("the file holds no %s in PEM form", strings.TrimPrefix(what, "a ")), "name a file with a -----BEGIN " + want + "----- block"}
}

func checkFolder(path string, mayMiss bool) *problem {
	info, err := os.Stat(path)
	switch {
	case err != nil && mayMiss && os.IsNotExist(err):
		return nil
	case err != nil:
		return &problem{"cannot be read: " + reason(err), "name a folder that exists; a relative path starts at the folder of this file, which makes it " + path}
	case !info.IsDir():
		return &problem{"not a folder", "name a folder"}
	}
	return nil
}
