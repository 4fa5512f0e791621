package brokerurl

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// none is a broker without options.
func none(address, vhost, username, password string) Broker {
	return Broker{Protocol: AMQP, Address: address, VHost: vhost, Username: username, Password: password, Retries: -1}
}

func with(b Broker, change func(*Broker)) Broker {
	change(&b)
	return b
}

var defaults = Defaults{Username: "gw", Password: "pw"}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       Set
	}{
		{
			"JMS URL of the Microgateway", "amqp://admin:admin@carbon/carbon?brokerlist='tcp://localhost:5672'",
			Set{ClientID: "carbon", Brokers: []Broker{none("localhost:5672", "carbon", "admin", "admin")}},
		},
		{
			"nested quotes", "amqp://admin:admin@clientid/carbon?brokerlist='tcp://h1:5672?retries='5'&connectdelay='50''",
			Set{ClientID: "clientid", Brokers: []Broker{with(none("h1:5672", "carbon", "admin", "admin"), func(b *Broker) {
				b.Retries, b.ConnectDelay = 5, 50*time.Second
			})}},
		},
		{
			"several brokers, failover after", "amqp://a:b@c_1/carbon?brokerlist='tcp://h1:5672?retries='5'&heartbeat='7';tcp://h2;ssl://h3:8672'&failover='roundrobin'&cyclecount='2'",
			Set{ClientID: "c_1", Failover: "roundrobin", CycleCount: 2, Brokers: []Broker{
				with(none("h1:5672", "carbon", "a", "b"), func(b *Broker) { b.Retries, b.Heartbeat = 5, 7*time.Second }),
				none("h2:5672", "carbon", "a", "b"),
				with(none("h3:8672", "carbon", "a", "b"), func(b *Broker) { b.TLS = true }),
			}},
		},
		{
			"failover before, with its own option, separators of a JNDI file", "amqp://a:b@c/carbon?failover='roundrobin?cyclecount='3''%26brokerlist='tcp://h1:5672;tcp://h2:5673'",
			Set{ClientID: "c", Failover: "roundrobin", CycleCount: 3, Brokers: []Broker{
				none("h1:5672", "carbon", "a", "b"), none("h2:5673", "carbon", "a", "b"),
			}},
		},
		{
			"empty client id, no transport, comma between options", "amqp://a:b@/carbon?brokerlist='h1',failover='roundrobin'",
			Set{Failover: "roundrobin", Brokers: []Broker{none("h1:5672", "carbon", "a", "b")}},
		},
		{
			"adapter URL", "amqp://admin:pw@apim:5672?retries='10'&connectdelay='30'",
			Set{Brokers: []Broker{with(none("apim:5672", "/", "admin", "pw"), func(b *Broker) { b.Retries, b.ConnectDelay = 10, 30*time.Second })}},
		},
		{
			"connectdelay of a thousand and more is milliseconds", "amqp://admin:pw@apim:5672?connectdelay='30000'",
			Set{Brokers: []Broker{with(none("apim:5672", "/", "admin", "pw"), func(b *Broker) { b.ConnectDelay = 30 * time.Second })}},
		},
		{
			"options without quotes", "amqp://admin:pw@apim:5672/carbon?retries=5&connecttimeout=2000",
			Set{Brokers: []Broker{with(none("apim:5672", "carbon", "admin", "pw"), func(b *Broker) { b.Retries, b.ConnectTimeout = 5, 2*time.Second })}},
		},
		{
			"no port and a path", "amqp://admin:pw@rabbit.example.com/carbon",
			Set{Brokers: []Broker{none("rabbit.example.com:5672", "carbon", "admin", "pw")}},
		},
		{
			"virtual host with its slash", "amqp://admin:pw@rabbit:5672/%2Fcarbon",
			Set{Brokers: []Broker{none("rabbit:5672", "/carbon", "admin", "pw")}},
		},
		{"path of a slash alone", "amqp://admin:pw@rabbit:5672/", Set{Brokers: []Broker{none("rabbit:5672", "/", "admin", "pw")}}},
		{
			"amqps", "amqps://admin:pw@rabbit/carbon",
			Set{Brokers: []Broker{with(none("rabbit:5671", "carbon", "admin", "pw"), func(b *Broker) { b.TLS = true })}},
		},
		{
			"ssl option of the API Manager", "amqp://admin:pw@c/carbon?brokerlist='tcp://apim?ssl='true'&ssl_verify_hostname='false''",
			Set{ClientID: "c", Brokers: []Broker{with(none("apim:8672", "carbon", "admin", "pw"), func(b *Broker) { b.TLS, b.SkipVerifyHostname = true, true })}},
		},
		{"bare host of deployment.toml", "tcp://apim.example.com:5672", Set{Brokers: []Broker{none("apim.example.com:5672", "carbon", "gw", "pw")}}},
		{"bare host with TLS", "ssl://apim.example.com", Set{Brokers: []Broker{with(none("apim.example.com:8672", "carbon", "gw", "pw"), func(b *Broker) { b.TLS = true })}}},
		{"host and port alone", "apim:5673", Set{Brokers: []Broker{none("apim:5673", "carbon", "gw", "pw")}}},
		{"several bare hosts", "tcp://a:5672,tcp://b:5672", Set{Brokers: []Broker{none("a:5672", "carbon", "gw", "pw"), none("b:5672", "carbon", "gw", "pw")}}},
		{"IPv6", "tcp://[::1]:5672", Set{Brokers: []Broker{none("[::1]:5672", "carbon", "gw", "pw")}}},
		{"IPv6 without port", "tcp://[2001:db8::1]", Set{Brokers: []Broker{none("[2001:db8::1]:5672", "carbon", "gw", "pw")}}},
		{"no credentials in the URL", "amqp://apim:5672", Set{Brokers: []Broker{none("apim:5672", "/", "gw", "pw")}}},
		{"percent signs that are escapes", "amqp://user%40example.org:p%3Aw%2F@apim:5672", Set{Brokers: []Broker{none("apim:5672", "/", "user@example.org", "p:w/")}}},
		{"percent signs that are none", "amqp://admin:100%@apim:5672", Set{Brokers: []Broker{none("apim:5672", "/", "admin", "100%")}}},
		{"password with everything", "amqp://admin@carbon.super:a:b@c/d?e#f@apim:5672/carbon", Set{Brokers: []Broker{none("apim:5672", "carbon", "admin@carbon.super", "a:b@c/d?e#f")}}},
		{"plus is no blank", "amqp://admin:a+b@apim:5672", Set{Brokers: []Broker{none("apim:5672", "/", "admin", "a+b")}}},
		{"NATS", "nats://gw:secret@n1:4222", Set{Brokers: []Broker{{Protocol: NATS, Address: "n1:4222", Username: "gw", Password: "secret", Retries: -1}}}},
		{"NATS with a token", "nats://t0ken@n1", Set{Brokers: []Broker{{Protocol: NATS, Address: "n1:4222", Username: "t0ken", Retries: -1}}}},
		{"several NATS servers", "tls://n1,n2:4333,nats://n3", Set{Brokers: []Broker{
			{Protocol: NATS, Address: "n1:4222", TLS: true, Username: "gw", Password: "pw", Retries: -1},
			{Protocol: NATS, Address: "n2:4333", TLS: true, Username: "gw", Password: "pw", Retries: -1},
			{Protocol: NATS, Address: "n3:4222", Username: "gw", Password: "pw", Retries: -1},
		}}},
		{"options of Java alone are told", "amqp://a:b@c/carbon?brokerlist='tcp://h?trust_store='x.jks''&maxprefetch='0'&colour='red'", Set{
			ClientID: "c", Brokers: []Broker{none("h:5672", "carbon", "a", "b")},
			Warnings: []string{
				"option maxprefetch of the broker URL has no effect here",
				`option "colour" of the broker URL is not known and has no effect`,
				"option trust_store of the broker URL has no effect: Java key stores cannot be read; name PEM files by ca_file",
			},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.text, defaults)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.text, diff)
			}
			again(t, got)
		})
	}
}

// again wants the canonical text of a set to give the set.
func again(t *testing.T, s Set) {
	t.Helper()
	back, err := Parse(s.Canonical(), Defaults{})
	if err != nil {
		t.Fatalf("canonical text %s: %v", s.Canonical(), err)
	}
	s.Warnings, back.Warnings = nil, nil
	if diff := cmp.Diff(s, back); diff != "" {
		t.Errorf("canonical text %s (-parsed +parsed again):\n%s", s.Canonical(), diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing", " ", "the broker URL is empty"},
		{"secure vault", "amqp://admin:{secretAlias:jms.pw}@c/carbon?brokerlist='tcp://h'", "use $env{NAME} or $file{path}"},
		{"secure vault, other case", "amqp://admin:{SecretAlias:x}@h:1", "{SecretAlias:x}"},
		{"HTTP", "http://apim:9763", `begins with "http://"`},
		{"no colon", "amqp://admin@apim:5672", "have no colon"},
		{"no user", "amqp://:pw@apim:5672", "a password and no user"},
		{"no host", "amqp://admin:pw@/carbon", "names no host"},
		{"empty list", "amqp://a:b@c/carbon?brokerlist=' '", "the broker list is empty"},
		{"foreign transport", "amqp://a:b@c/carbon?brokerlist='vm://h'", `transport "vm" is not known`},
		{"port of letters", "amqp://a:b@h:amqp", "is not a number from 1 to 65535"},
		{"port too large", "tcp://h:65536", "is not a number from 1 to 65535"},
		{"IPv6 without brackets", "tcp://::1:5672", "stand in brackets"},
		{"blank in the host", "tcp://a b:5672", `"a b" is no host name`},
		{"quote left open", "amqp://a:b@h:1?retries='5", "retries of the broker URL: a single quote is not closed"},
		{"quote inside", "amqp://a:b@h:1?retries=5'", "the value must stand in single quotes"},
		{"retries of letters", "amqp://a:b@h:1?retries='five'", `retries of the broker URL is "five"; a whole number`},
		{"negative delay", "amqp://a:b@h:1?connectdelay='-1'", "connectdelay"},
		{"delay out of range", "amqp://a:b@h:1?connectdelay='99999999999999999999'", "connectdelay"},
		{"ssl of a word", "amqp://a:b@h:1?ssl='yes'", "true or false is wanted"},
		{"two protocols", "nats://a,amqp://b", `"amqp://" is not known beside NATS`},
		{"control character", "tcp://a\n:5672", "control character at byte 8"},
		{"name without value", "amqp://a:b@h:1?retries='5'&heartbeat", "name='value' is wanted"},
		{"text after a quote", "amqp://a:b@h:1?brokerlist='h'&retries='5';x='1'", "& is wanted after option retries"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(c.text, defaults)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q in it", c.text, err, c.want)
			}
		})
	}
	if _, err := Parse("tcp://apim:5672", Defaults{}); err == nil || !strings.Contains(err.Error(), "no user is named for broker apim:5672") {
		t.Errorf("without credentials: %v", err)
	}
}

func TestParseAll(t *testing.T) {
	got, err := ParseAll([]string{"tcp://a:5672", "amqp://x:y@b:5672/carbon"}, defaults)
	want := Set{Brokers: []Broker{none("a:5672", "carbon", "gw", "pw"), none("b:5672", "carbon", "x", "y")}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	again(t, got)
	for _, texts := range [][]string{nil, {"tcp://a:5672", "nats://b"}, {"tcp://a:5672", "ftp://b"}} {
		if _, err := ParseAll(texts, defaults); err == nil {
			t.Errorf("%q is taken", texts)
		}
	}
}

// TestPasswordsAreNotPrinted prints a set in every way that logs and dumps use.
func TestPasswordsAreNotPrinted(t *testing.T) {
	for _, text := range []string{
		"amqp://admin:hunter2@c/carbon?brokerlist='tcp://h1;tcp://h2'", "nats://admin:hunter2@h", "nats://hunter2@h",
		"amqp://hunter2hunter2:x'hunter2@h:1?y='", "amqp://a:hunter2@h:0",
	} {
		s, err := Parse(text, Defaults{})
		if err != nil {
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows it: %v", err)
			}
			continue
		}
		outputs := []string{s.String(), fmt.Sprintf("%v %+v %#v %s", s, s, s, s), fmt.Sprintf("%v %+v %#v", s.Brokers, s.Brokers, s.Brokers)}
		if !strings.HasPrefix(text, "nats://hunter2") {
			encoded, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			outputs = append(outputs, string(encoded))
		}
		for _, out := range outputs {
			if strings.Contains(out, "hunter2") {
				t.Errorf("%s prints as %s", text, out)
			}
		}
	}
}

func TestTLSConfig(t *testing.T) {
	base := &tls.Config{MinVersion: tls.VersionTLS13}
	pool := x509.NewCertPool()
	if c := WithRoots(base, func() *x509.CertPool { return pool }); c.RootCAs != pool || c.MinVersion != tls.VersionTLS13 || base.RootCAs != nil {
		t.Errorf("with other roots: %+v of %+v", c, base)
	}
	if c := WithRoots(nil, func() *x509.CertPool { return pool }); c.RootCAs != pool || c.MinVersion != tls.VersionTLS12 {
		t.Errorf("with roots alone: %+v", c)
	}
	if c := WithRoots(base, nil); c != base {
		t.Errorf("without roots: %+v", c)
	}
	b := none("apim.example.com:8672", "carbon", "a", "b")
	if c := b.TLSConfig(base); c == base || c.ServerName != "apim.example.com" || c.MinVersion != tls.VersionTLS13 || c.InsecureSkipVerify {
		t.Errorf("config is %+v", c)
	}
	if c := b.TLSConfig(nil); c.MinVersion != tls.VersionTLS12 || c.InsecureSkipVerify {
		t.Errorf("default config is %+v", c)
	}
	b.SkipVerifyHostname = true
	if c := b.TLSConfig(base); c.VerifyConnection == nil || c.VerifyConnection(tls.ConnectionState{}) == nil {
		t.Error("without the name the chain must still be checked")
	}
}

// FuzzParse wants no panic, no password in an error, and of every set that its canonical text gives the same set again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"amqp://admin:admin@carbon/carbon?brokerlist='tcp://localhost:5672'",
		"amqp://a:b@c/carbon?brokerlist='tcp://h1:5672?retries='5'&connectdelay='50';tcp://h2:5672'&failover='roundrobin?cyclecount='2''",
		"amqp://admin:pw@apim:5672?retries='10'&connectdelay='30000'", "amqps://u:p@h/%2Fcarbon", "tcp://h:5672", "ssl://[::1]:8672,tcp://b",
		"nats://t@h:4222,tls://u:p@g", "amqp://a:100%@h:1/x?ssl='true'&ssl_verify_hostname='false'&heartbeat='3'&idle_timeout='9000'",
		"amqp://u:{secretAlias:x}@h:1", "h", "retries=5", "amqp://a:b@h:1?retries=5",
	} {
		f.Add(seed, "gw", "pw")
	}
	f.Fuzz(func(t *testing.T, text, username, password string) {
		s, err := Parse(text, Defaults{Username: username, Password: password})
		if err != nil {
			return
		}
		if len(s.Brokers) == 0 {
			t.Fatal("neither brokers nor an error")
		}
		_ = fmt.Sprintf("%v %#v", s, s)
		again(t, s)
	})
}
