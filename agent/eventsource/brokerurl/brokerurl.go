// Package brokerurl reads the texts that name a broker: the API Manager's JMS connection URL, the plain AMQP URL, the bare
// tcp:// or ssl:// host of deployment.toml, and NATS URLs. Contract: events.md 1.1 to 1.3.
package brokerurl

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Protocols of a broker.
const (
	AMQP = "amqp"
	NATS = "nats"
)

// Default ports: of the event hub (Andes) without and with TLS, of an amqps URL (RabbitMQ), and of NATS.
const (
	portAMQP  = "5672"
	portSSL   = "8672"
	portAMQPS = "5671"
	portNATS  = "4222"
)

// defaultVHost is what an empty path and "/" mean. The empty virtual host must never be sent: Andes reads its first
// character.
const defaultVHost = "/"

// Defaults are the credentials of a text that carries none, from the same section of the configuration.
type Defaults struct {
	Username string
	Password string
}

// Broker is one place to dial. It prints itself without its password.
type Broker struct {
	Protocol string // AMQP or NATS
	// Address is host:port; IPv6 hosts stand in brackets.
	Address string
	TLS     bool
	// SkipVerifyHostname is true for ssl_verify_hostname='false': the certificate's chain is still checked.
	SkipVerifyHostname bool
	// Username without Password is a token on NATS.
	Username string
	Password string `json:"-"`
	VHost    string // AMQP only; never empty there
	// Retries is how often a dial may be repeated before the next broker, -1 when the text does not say. Gatehouse
	// retries for ever and takes it for no more than a hint.
	Retries int
	// ConnectDelay is the pause between dials, ConnectTimeout the limit of one; 0 when the text does not say.
	ConnectDelay   time.Duration
	ConnectTimeout time.Duration
	// Heartbeat is 0 when the text does not say.
	Heartbeat time.Duration
}

// Set is one set of brokers, of which one is connected to at a time.
type Set struct {
	Brokers []Broker
	// ClientID is the host part of a JMS URL.
	ClientID string
	// Failover is the method a JMS URL names, "" when it names none; CycleCount how often the list may be tried, 0 when
	// not said. Gatehouse always goes round the list, for ever, whatever they say.
	Failover   string
	CycleCount int
	// Warnings name options that have no effect here, for the operator.
	Warnings []string
}

// Protocol is that of the brokers, "" for the empty set.
func (s Set) Protocol() string {
	if len(s.Brokers) == 0 {
		return ""
	}
	return s.Brokers[0].Protocol
}

// String names the broker without its password: amqp://admin:***@host:5672/carbon.
func (b Broker) String() string {
	scheme := b.Protocol
	if b.TLS {
		scheme = map[string]string{AMQP: "amqps", NATS: "tls"}[b.Protocol]
	}
	user := ""
	if b.Username != "" {
		user = escape(b.Username) + ":***@"
		if b.Protocol == NATS && b.Password == "" {
			user = "***@" // a token
		}
	}
	path := ""
	if b.Protocol == AMQP {
		path = "/" + escape(b.VHost)
		if b.VHost == defaultVHost {
			path = "/"
		}
	}
	return scheme + "://" + user + b.Address + path
}

// GoString keeps the password out of %#v.
func (b Broker) GoString() string { return "brokerurl.Broker(" + b.String() + ")" }

// String lists the brokers without their passwords.
func (s Set) String() string {
	names := make([]string, len(s.Brokers))
	for i, b := range s.Brokers {
		names[i] = b.String()
	}
	return strings.Join(names, ",")
}

// GoString keeps the passwords out of %#v.
func (s Set) GoString() string { return "brokerurl.Set(" + s.String() + ")" }

// ParseAll reads several texts into one set, in their order: the list that event_listening_endpoints holds.
func ParseAll(texts []string, d Defaults) (Set, error) {
	var all Set
	for i, text := range texts {
		s, err := Parse(text, d)
		if err != nil {
			return Set{}, fmt.Errorf("entry %d: %w", i+1, err)
		}
		if all.Brokers != nil && s.Protocol() != all.Protocol() {
			return Set{}, fmt.Errorf("entry %d: %s and %s brokers stand in one list; use one of them", i+1, all.Protocol(), s.Protocol())
		}
		all.Brokers = append(all.Brokers, s.Brokers...)
		all.Warnings = append(all.Warnings, s.Warnings...)
		all.ClientID = cmp.Or(all.ClientID, s.ClientID)
		all.Failover = cmp.Or(all.Failover, s.Failover)
		all.CycleCount = max(all.CycleCount, s.CycleCount)
	}
	if len(all.Brokers) == 0 {
		return Set{}, errors.New("no broker is named; write for example tcp://apim.example.com:5672")
	}
	return all, nil
}

var (
	secretAlias = regexp.MustCompile(`(?i)\{\s*secretAlias:[^}]*\}?`)
	// optionStart finds where the options begin. A password may hold a question mark, but hardly one before a name and
	// an equals sign.
	optionStart = regexp.MustCompile(`\?[A-Za-z_]+=`)
)

// Parse reads one text of any of the shapes:
//
//	amqp://user:pass@clientid/carbon?brokerlist='tcp://h1:5672?retries='5'&connectdelay='50';tcp://h2:5672'
//	amqp://user:pass@host:5672/carbon?retries='10'&connectdelay='30'      (and amqps://)
//	tcp://host:5672, ssl://host:8672, host:5672                           (credentials from d)
//	nats://user:pass@host:4222, tls://host:4222, several with commas
//
// Errors say what is wrong and what would be right, and never hold a password.
func Parse(text string, d Defaults) (Set, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Set{}, errors.New("the broker URL is empty; write for example tcp://apim.example.com:5672")
	}
	if alias := secretAlias.FindString(text); alias != "" {
		return Set{}, fmt.Errorf("the broker URL holds %s, a reference into WSO2's secure vault, which cannot be opened here; "+
			"use $env{NAME} or $file{path}", alias)
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		return Set{}, fmt.Errorf("the broker URL holds a control character at byte %d", i+1)
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		scheme, rest = "tcp", text
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case "amqp", "amqps":
		return parseAMQP(scheme == "amqps", rest, d)
	case "tcp", "ssl":
		return parseBare(scheme+"://"+rest, d)
	case "nats", "tls":
		return parseNATS(scheme, rest, d)
	}
	return Set{}, fmt.Errorf("the broker URL begins with %q; amqp://, amqps://, tcp://, ssl://, nats:// and tls:// are known", clip(scheme)+"://")
}

// parseAMQP reads what follows amqp:// or amqps://.
func parseAMQP(tls bool, rest string, d Defaults) (Set, error) {
	front, options := rest, ""
	if at := optionStart.FindStringIndex(rest); at != nil {
		front, options = rest[:at[0]], rest[at[0]+1:]
	} else {
		front = strings.TrimSuffix(rest, "?")
	}
	// Passwords hold @ and / as they come, hosts and client ids do not: the last @ ends the credentials.
	username, password, authority := d.Username, d.Password, front
	if at := strings.LastIndexByte(front, '@'); at >= 0 {
		var err error
		if username, password, err = credentials(front[:at]); err != nil {
			return Set{}, err
		}
		authority = front[at+1:]
	}
	authority, path, _ := strings.Cut(authority, "/")
	set := Set{}
	template := Broker{
		Protocol: AMQP, TLS: tls, Username: username, Password: password, VHost: vhost(path), Retries: -1,
	}
	parsed, err := parseOptions(options)
	if err != nil {
		return Set{}, err
	}
	var list string
	for _, o := range parsed {
		switch strings.ToLower(o.name) {
		case "brokerlist":
			list = o.value
		case "failover":
			method, inner, _ := strings.Cut(o.value, "?")
			set.Failover = method
			innerOptions, err := parseOptions(inner)
			if err != nil {
				return Set{}, fmt.Errorf("failover: %w", err)
			}
			for _, i := range innerOptions {
				if strings.EqualFold(i.name, "cyclecount") {
					if set.CycleCount, err = number("cyclecount", i.value, 1<<30); err != nil {
						return Set{}, err
					}
				}
			}
		case "cyclecount":
			if set.CycleCount, err = number("cyclecount", o.value, 1<<30); err != nil {
				return Set{}, err
			}
		default:
			warning, err := template.set(o)
			if err != nil {
				return Set{}, err
			}
			set.warn(warning)
		}
	}
	if !slices.Contains([]string{"", "roundrobin", "singlebroker", "failover", "nofailover"}, strings.ToLower(set.Failover)) {
		set.warn(fmt.Sprintf("failover method %q is not known; the brokers are tried in turn", clip(set.Failover)))
		set.Failover = ""
	}
	if list != "" {
		set.ClientID = authority
		if err := set.addList(list, template); err != nil {
			return Set{}, err
		}
		return set, set.check()
	}
	if authority == "" {
		return Set{}, errors.New("the broker URL names no host; write amqp://user:password@host:5672/carbon, " +
			"or amqp://user:password@clientid/carbon?brokerlist='tcp://host:5672'")
	}
	port := portAMQP
	if tls {
		port = portAMQPS
	} else if template.TLS { // by ssl='true'
		port = portSSL
	}
	if template.Address, err = address(authority, port); err != nil {
		return Set{}, err
	}
	set.Brokers = []Broker{template}
	return set, set.check()
}

func (s *Set) warn(warning string) {
	if warning != "" {
		s.Warnings = append(s.Warnings, warning)
	}
}

// check refuses what the API Manager would refuse for certain.
func (s Set) check() error {
	for _, b := range s.Brokers {
		if b.Username == "" {
			return fmt.Errorf("no user is named for broker %s; write amqp://user:password@… or set username and password beside the URL", b.Address)
		}
	}
	return nil
}

// parseBare reads tcp://host:port or ssl://host:port, several of them separated by commas or semicolons.
func parseBare(text string, d Defaults) (Set, error) {
	set := Set{}
	template := Broker{Protocol: AMQP, Username: d.Username, Password: d.Password, VHost: defaultVHost, Retries: -1}
	// deployment.toml's bare endpoints stand for the JMS URL that APIM builds of them, whose virtual host is carbon.
	template.VHost = "carbon"
	if err := set.addList(text, template); err != nil {
		return Set{}, err
	}
	return set, set.check()
}

// addList reads a broker list: host[:port][?options], each with or without tcp:// or ssl:// before it.
func (s *Set) addList(list string, template Broker) error {
	for _, entry := range splitOutsideQuotes(list) {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		b := template
		front, options, _ := strings.Cut(entry, "?")
		transport, host, ok := strings.Cut(front, "://")
		if !ok {
			transport, host = "tcp", front
		}
		port := portAMQP
		switch strings.ToLower(transport) {
		case "tcp":
		case "ssl":
			b.TLS = true
		default:
			return fmt.Errorf("broker list: transport %q is not known; write tcp://host:5672 or ssl://host:8672", clip(transport))
		}
		parsed, err := parseOptions(options)
		if err != nil {
			return fmt.Errorf("broker list: %w", err)
		}
		for _, o := range parsed {
			warning, err := b.set(o)
			if err != nil {
				return err
			}
			s.warn(warning)
		}
		if b.TLS {
			port = portSSL
		}
		if at := strings.LastIndexByte(host, '@'); at >= 0 {
			if b.Username, b.Password, err = credentials(host[:at]); err != nil {
				return err
			}
			host = host[at+1:]
		}
		host, path, hasPath := strings.Cut(host, "/")
		if hasPath && path != "" {
			b.VHost = vhost(path)
		}
		if b.Address, err = address(host, port); err != nil {
			return err
		}
		s.Brokers = append(s.Brokers, b)
	}
	if len(s.Brokers) == 0 {
		return errors.New("the broker list is empty; write brokerlist='tcp://host:5672'")
	}
	return nil
}

// parseNATS reads what follows nats:// or tls://. Entries after a comma may leave the scheme out.
func parseNATS(scheme, rest string, d Defaults) (Set, error) {
	set := Set{}
	for entry := range strings.SplitSeq(rest, ",") {
		entry = strings.TrimSpace(entry)
		b := Broker{Protocol: NATS, TLS: scheme == "tls", Username: d.Username, Password: d.Password, Retries: -1}
		if s, after, ok := strings.Cut(entry, "://"); ok {
			switch strings.ToLower(s) {
			case "nats":
				b.TLS = false
			case "tls":
				b.TLS = true
			default:
				return Set{}, fmt.Errorf("broker list: %q is not known beside NATS; write nats://host:4222 or tls://host:4222", clip(s)+"://")
			}
			entry = after
		}
		if at := strings.LastIndexByte(entry, '@'); at >= 0 {
			b.Username, b.Password, _ = strings.Cut(entry[:at], ":")
			b.Username, b.Password = unescape(b.Username), unescape(b.Password)
			entry = entry[at+1:]
		}
		host, err := address(strings.TrimSuffix(entry, "/"), portNATS)
		if err != nil {
			return Set{}, err
		}
		b.Address = host
		set.Brokers = append(set.Brokers, b)
	}
	return set, nil
}

// credentials splits at the first colon, as Andes does.
func credentials(text string) (username, password string, err error) {
	username, password, ok := strings.Cut(text, ":")
	if !ok {
		return "", "", errors.New("the credentials of the broker URL have no colon; write amqp://user:password@…")
	}
	if username == "" {
		return "", "", errors.New("the broker URL has a password and no user; write amqp://user:password@…")
	}
	return unescape(username), unescape(password), nil
}

// unescape decodes percent signs where all of them are valid escapes, and takes the text as it is otherwise: Andes'
// users write passwords unescaped.
func unescape(text string) string {
	if decoded, err := url.PathUnescape(text); err == nil {
		return decoded
	}
	return text
}

// escape is what unescape reverts, and safe between the marks of a URL.
func escape(text string) string {
	const safe = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; strings.IndexByte(safe, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func vhost(path string) string {
	if path = unescape(path); path != "" {
		return path
	}
	return defaultVHost
}

// address checks host[:port] and fills in the port.
func address(text, port string) (string, error) {
	text = strings.TrimSpace(text)
	host := text
	if h, p, err := net.SplitHostPort(text); err == nil {
		host, port = h, cmp.Or(p, port)
	} else if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		host = text[1 : len(text)-1]
	} else if strings.Contains(text, ":") {
		return "", fmt.Errorf("broker address %q is not host:port; IPv6 addresses stand in brackets, [::1]:5672", clip(text))
	}
	if host == "" || strings.ContainsAny(host, " /?#@'\"[]%&;,=\\<>{}|^`$") {
		return "", fmt.Errorf("broker host %q is no host name or address", clip(host))
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("broker port %q of host %q is not a number from 1 to 65535", clip(port), clip(host))
	}
	return net.JoinHostPort(host, strconv.Itoa(n)), nil
}

func clip(s string) string {
	if len(s) <= 60 {
		return s
	}
	return strings.ToValidUTF8(s[:60], "") + "…"
}

// set applies one broker option. The warning is empty when the option has an effect.
func (b *Broker) set(o option) (warning string, err error) {
	switch strings.ToLower(o.name) {
	case "retries":
		b.Retries, err = number(o.name, o.value, 1<<30)
	case "connectdelay":
		// Andes reads milliseconds, the Go adapters seconds; nobody means a delay of less than a second in the one
		// form or of a quarter of an hour in the other.
		n, err := number(o.name, o.value, 24*60*60*1000)
		if err != nil {
			return "", err
		}
		if n < 1000 {
			b.ConnectDelay = time.Duration(n) * time.Second
		} else {
			b.ConnectDelay = time.Duration(n) * time.Millisecond
		}
	case "connecttimeout":
		n, err := number(o.name, o.value, 24*60*60*1000)
		if err != nil {
			return "", err
		}
		b.ConnectTimeout = time.Duration(n) * time.Millisecond
	case "heartbeat":
		n, err := number(o.name, o.value, 65535)
		if err != nil {
			return "", err
		}
		b.Heartbeat = time.Duration(n) * time.Second
	case "idle_timeout":
		n, err := number(o.name, o.value, 65535*1000)
		if err != nil {
			return "", err
		}
		if b.Heartbeat == 0 {
			b.Heartbeat = (time.Duration(n) * time.Millisecond).Truncate(time.Second)
		}
	case "ssl":
		b.TLS, err = truth(o.name, o.value)
	case "ssl_verify_hostname":
		verify, err := truth(o.name, o.value)
		if err != nil {
			return "", err
		}
		b.SkipVerifyHostname = !verify
	case "trust_store", "trust_store_password", "key_store", "key_store_password", "ssl_cert_alias":
		return fmt.Sprintf("option %s of the broker URL has no effect: Java key stores cannot be read; name PEM files by ca_file", o.name), nil
	case "tcp_nodelay", "sasl_mechs", "maxprefetch", "sync_ack", "sync_persistence", "sync_publish",
		"use_legacy_map_msg_format", "defaulttopicexchange", "temporarytopicexchange", "redeliverydelay":
		return fmt.Sprintf("option %s of the broker URL has no effect here", o.name), nil
	default:
		return fmt.Sprintf("option %q of the broker URL is not known and has no effect", clip(o.name)), nil
	}
	return "", err
}

func number(name, value string, most int) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("option %s of the broker URL is %q; a whole number from 0 to %d is wanted", name, clip(value), most)
	}
	return n, nil
}

func truth(name, value string) (bool, error) {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("option %s of the broker URL is %q; true or false is wanted", name, clip(value))
}
