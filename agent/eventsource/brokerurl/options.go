package brokerurl

import (
	"fmt"
	"strings"
	"time"
)

type option struct{ name, value string }

// separators lets both spellings of & in JNDI files and XML through.
var separators = strings.NewReplacer("%26", "&", "&amp;", "&")

// parseOptions reads name='value' pairs separated by & or a comma. Quotes nest: a quote closes only before &, a comma, a
// semicolon, another quote or the end; any other quote opens a level. A value without quotes runs to the next separator.
func parseOptions(text string) ([]option, error) {
	text = separators.Replace(text)
	var options []option
	for text != "" {
		name, rest, ok := strings.Cut(text, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.ContainsAny(name, "'&,; ") {
			return nil, fmt.Errorf("options of the broker URL: name='value' is wanted at %q", clip(text))
		}
		if !strings.HasPrefix(rest, "'") {
			end := strings.IndexAny(rest, "&,")
			if end < 0 {
				end = len(rest)
			}
			value := rest[:end]
			if strings.Contains(value, "'") {
				return nil, fmt.Errorf("option %s of the broker URL: the value must stand in single quotes", clip(name))
			}
			options = append(options, option{name, value})
			text = strings.TrimLeft(rest[end:], "&,")
			continue
		}
		end := closingQuote(rest)
		if end < 0 {
			return nil, fmt.Errorf("option %s of the broker URL: a single quote is not closed", clip(name))
		}
		options = append(options, option{name, rest[1:end]})
		text = rest[end+1:]
		if text != "" && text[0] != '&' && text[0] != ',' {
			return nil, fmt.Errorf("options of the broker URL: & is wanted after option %s", clip(name))
		}
		text = strings.TrimLeft(text, "&,")
	}
	return options, nil
}

// closingQuote is the place of the quote that closes the one text begins with, -1 if none does.
func closingQuote(text string) int {
	level := 1
	for i := 1; i < len(text); i++ {
		if text[i] != '\'' {
			continue
		}
		if i+1 == len(text) || strings.IndexByte("&,;'", text[i+1]) >= 0 {
			if level--; level == 0 {
				return i
			}
		} else {
			level++
		}
	}
	return -1
}

// splitOutsideQuotes cuts a broker list at semicolons, and at commas before another transport.
func splitOutsideQuotes(list string) []string {
	var parts []string
	start, quoted := 0, false
	for i := range len(list) {
		switch list[i] {
		case '\'':
			quoted = !quoted
		case ';', ',':
			if quoted || list[i] == ',' && !startsBroker(list[i+1:]) {
				continue
			}
			parts = append(parts, list[start:i])
			start = i + 1
		}
	}
	return append(parts, list[start:])
}

func startsBroker(text string) bool {
	scheme, _, ok := strings.Cut(text, "://")
	scheme = strings.ToLower(strings.TrimSpace(scheme))
	return ok && (scheme == "tcp" || scheme == "ssl")
}

// Canonical writes the set as one text that Parse reads back to an equal set. It holds the passwords: for files, never
// for logs.
func (s Set) Canonical() string {
	var b strings.Builder
	if s.Protocol() == NATS {
		for i, n := range s.Brokers {
			if i > 0 {
				b.WriteByte(',')
			}
			scheme := "nats://"
			if n.TLS {
				scheme = "tls://"
			}
			b.WriteString(scheme)
			if n.Username != "" || n.Password != "" {
				b.WriteString(escape(n.Username))
				if n.Password != "" {
					b.WriteString(":" + escape(n.Password))
				}
				b.WriteByte('@')
			}
			b.WriteString(n.Address)
		}
		return b.String()
	}
	if len(s.Brokers) == 0 {
		return ""
	}
	first := s.Brokers[0]
	fmt.Fprintf(&b, "amqp://%s:%s@%s/%s?brokerlist='", escape(first.Username), escape(first.Password), s.ClientID, vhostPath(first.VHost))
	for i, n := range s.Brokers {
		if i > 0 {
			b.WriteByte(';')
		}
		transport := "tcp"
		if n.TLS {
			transport = "ssl"
		}
		b.WriteString(transport + "://")
		if n.Username != first.Username || n.Password != first.Password {
			fmt.Fprintf(&b, "%s:%s@", escape(n.Username), escape(n.Password))
		}
		b.WriteString(n.Address)
		if n.VHost != first.VHost {
			b.WriteString("/" + escape(n.VHost))
		}
		mark := byte('?')
		add := func(name, value string) {
			fmt.Fprintf(&b, "%c%s='%s'", mark, name, value)
			mark = '&'
		}
		if n.Retries >= 0 {
			add("retries", fmt.Sprint(n.Retries))
		}
		if n.ConnectDelay > 0 {
			if n.ConnectDelay < 1000*time.Second && n.ConnectDelay%time.Second == 0 {
				add("connectdelay", fmt.Sprint(int64(n.ConnectDelay/time.Second)))
			} else {
				add("connectdelay", fmt.Sprint(n.ConnectDelay.Milliseconds()))
			}
		}
		if n.ConnectTimeout > 0 {
			add("connecttimeout", fmt.Sprint(n.ConnectTimeout.Milliseconds()))
		}
		if n.Heartbeat > 0 {
			add("heartbeat", fmt.Sprint(int64(n.Heartbeat/time.Second)))
		}
		if n.SkipVerifyHostname {
			add("ssl_verify_hostname", "false")
		}
	}
	b.WriteByte('\'')
	if s.Failover != "" {
		fmt.Fprintf(&b, "&failover='%s'", s.Failover)
	}
	if s.CycleCount > 0 {
		fmt.Fprintf(&b, "&cyclecount='%d'", s.CycleCount)
	}
	return b.String()
}

func vhostPath(vhost string) string {
	if vhost == defaultVHost {
		return ""
	}
	return escape(vhost)
}
