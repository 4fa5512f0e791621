package config

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// eventHub is a complete [apim.event_hub].
const eventHub = `[apim.event_hub]
service_url = "https://apim.example.com:9443"
username = "gateway"
password = "hunter2-planted"
event_listening_endpoints = ["tcp://apim.example.com:5672"]
`

const issuerHead = "[[apim.jwt.issuer]]\nname = \"https://i\"\njwks.url = \"https://i/certs\"\n"

// Each case states every fault that its text must give, in order, by what the line of the fault holds.
func TestRulesBetweenKeys(t *testing.T) {
	dir := newFolder(t)
	otherCert, _ := newPair(t)
	writeFile(t, filepath.Join(dir, "tls/other.crt"), otherCert)
	const pair = "cert_file = \"tls/gateway.crt\"\nkey_file = \"tls/gateway.key\"\n"
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"nothing wrong", eventHub, nil},
		{"https without a certificate", "[listener]\nhttps = \":9095\"", []string{"gatehouse.toml:2: listener.https = \":9095\": HTTPS without a certificate"}},
		{"https turned off", "[listener]\nhttps = \"\"", nil},
		{"a certificate turns https on", "[listener]\n" + pair, nil},
		{"a certificate without its key", "[listener]\ncert_file = \"tls/gateway.crt\"", []string{"listener.cert_file = \"tls/gateway.crt\": a certificate without its key; write key_file"}},
		{"a key without its certificate", "[listener]\nkey_file = \"tls/gateway.key\"", []string{"listener.key_file = \"tls/gateway.key\": a key without its certificate"}},
		{"a key of another certificate", "[listener]\ncert_file = \"tls/other.crt\"\nkey_file = \"tls/gateway.key\"", []string{"gatehouse.toml:3: listener.key_file = \"tls/gateway.key\": does not fit cert_file"}},
		{"no listener at all", "[listener]\nhttp = \"\"", []string{"listener.http = \"\": neither HTTP nor HTTPS is on"}},
		{"one port for both", "[listener]\nhttp = \":9095\"\n" + pair, []string{"listener.https: the address that http has already"}},
		{"the admin server on a listener's port", "[listener]\nhttp = \":9096\"", []string{"admin.address: the port of a listener of [listener]"}},
		{"client certificates without https", "[listener]\nclient_ca_file = \"tls/apim-ca.crt\"", []string{"client certificates without HTTPS"}},
		{"the PROXY protocol trusted from nobody", "[listener]\nproxy_protocol = true", []string{"listener.proxy_protocol = true: the PROXY protocol is trusted from nobody"}},
		{"free ports", "[listener]\nhttp = \"127.0.0.1:0\"\nhttps = \"127.0.0.1:0\"\n" + pair + "[admin]\naddress = \"127.0.0.1:0\"", nil},

		{"admin beyond loopback", "[admin]\naddress = \":9096\"", []string{"gatehouse.toml:2: admin.address = \":9096\": reachable from other machines without credentials; write username and password, or token"}},
		{"admin on a name", "[admin]\naddress = \"gateway.example.com:9096\"", []string{"reachable from other machines"}},
		{"admin on localhost", "[admin]\naddress = \"localhost:9096\"", nil},
		{"admin on IPv6 loopback", "[admin]\naddress = \"[::1]:9096\"", nil},
		{"admin beyond loopback with a token", "[admin]\naddress = \":9096\"\ntoken = \"hunter2\"", nil},
		{"admin with half a credential", "[admin]\nusername = \"u\"", []string{"admin.username = \"u\": half of a credential; write password too"}},

		{"event hub with nothing but its switch", "[apim.event_hub]\nenable = true", []string{
			"gatehouse.toml:1: apim.event_hub.service_url: missing, while the event hub is enabled",
			"apim.event_hub.username: missing", "apim.event_hub.password: missing", "apim.event_hub.event_listening_endpoints: missing",
		}},
		{"lists that are old before they are fetched again", eventHub + "resync_interval = \"1h\"\n[gateway.on_stale]\ndeny = \"deny\"\nstale_after = \"30m\"", []string{
			"gatehouse.toml:9: gateway.on_stale.stale_after = \"30m\": not longer than resync_interval: requests would be refused between two fetches of the lists while nothing is wrong; write more than 1h",
		}},
		{"and served all the same", eventHub + "resync_interval = \"1h\"\n[gateway.on_stale]\nstale_after = \"30m\"", nil},
		{"event hub switched off", "[apim.event_hub]\nenable = false\nusername = \"u\"", nil},
		{"event hub with the credentials of throttling", strings.Replace(strings.Replace(eventHub, "username", "#", 1), "password", "#", 1) + "[apim.throttling]\nusername = \"u\"\npassword = \"p\"", nil},
		{"a user inside service_url", strings.Replace(eventHub, "https://", "https://u:hunter2@", 1), []string{"apim.event_hub.service_url = \"https://u:***@apim.example.com:9443\": a URL with a user in it"}},
		{"labels that contradict", "[gateway]\ngateway_labels = [\"A\"]\n[apim.sync_runtime_artifacts.gateway]\ngateway_labels = [\"B\"]\n" + eventHub, []string{"gateway.gateway_labels = [\"A\"]: says something else than apim.sync_runtime_artifacts.gateway.gateway_labels"}},

		{
			"as many authentication URLs as receivers", eventHub + "[[apim.throttling.url_group]]\ntraffic_manager_urls = [\"tcp://a:9611\", \"tcp://b:9611\"]\ntraffic_manager_auth_urls = [\"ssl://a:9711\"]",
			[]string{"apim.throttling.url_group[0].traffic_manager_auth_urls = [\"ssl://a:9711\"]: 1 authentication URLs for 2 receivers; write one for each of traffic_manager_urls"},
		},
		{"a log-in without TLS", eventHub + "[[apim.throttling.url_group]]\ntraffic_manager_urls = [\"tcp://a:9611\"]\ntraffic_manager_auth_urls = [\"tcp://a:9711\"]", []string{"traffic_manager_auth_urls[0] = \"tcp://a:9711\": a log-in without TLS"}},
		{"AMQP beside NATS", strings.Replace(eventHub, "5672\"", "5672\", \"nats://b:4222\"", 1), []string{"event_listening_endpoints[1] = \"nats://b:4222\": AMQP and NATS brokers in one list"}},
		{"a group without receivers", eventHub + "[[apim.throttling.url_group]]\ntraffic_manager_urls = []", []string{"apim.throttling.url_group[0].traffic_manager_urls = []: a group without a receiver"}},
		{"NATS beside databridge", eventHub + "[[apim.throttling.url_group]]\ntraffic_manager_urls = [\"tcp://a:9611\", \"nats://b:4222\"]", []string{"traffic_manager_urls[1] = \"nats://b:4222\": NATS and databridge receivers in one group"}},
		{"publishing without a receiver", "[apim.throttling]\nenable_data_publishing = true", []string{"apim.throttling.enable_data_publishing = true: publishing without a traffic manager"}},
		{"a receiver without credentials", "[[apim.throttling.url_group]]\ntraffic_manager_urls = [\"tcp://a:9611\"]", []string{"apim.throttling.username: missing", "apim.throttling.password: missing"}},
		{"NATS needs none", "[[apim.throttling.url_group]]\ntraffic_manager_urls = [\"nats://a:4222\"]", nil},
		{"batches larger than the queue", "[apim.throttling.publisher]\nqueue_size = 100", []string{"apim.throttling.publisher.batch_size: larger than queue_size; write at most 100"}},

		{"a backend JWT without a key, which makes its own", "[apim.jwt]\nenable = true", nil},
		{"an unsigned backend JWT", "[apim.jwt]\nenable = true\nsigning_algorithm = \"NONE\"", []string{"an unsigned JWT can be forged by anyone who reaches the backend"}},
		{"an unsigned backend JWT on purpose", "[apim.jwt]\nenable = true\nsigning_algorithm = \"NONE\"\nallow_unsigned = true", nil},
		{"a claim that does two things", "[[apim.jwt.claims]]\nname = \"a\"\nvalue = \"x\"\nfrom = \"y\"", []string{"gatehouse.toml:1: apim.jwt.claims[0]: a claim needs exactly one of value, from and remove"}},
		{"a claim of a pattern", "[[apim.jwt.claims]]\nname = \"a\"\nvalue = \"{app:name} at {api:context} of {claim:http://x/y}, {{static}}\"", nil},
		{"a pattern that is not closed", "[[apim.jwt.claims]]\nname = \"a\"\nvalue = \"{app:name\"", []string{"gatehouse.toml:3: apim.jwt.claims[0].value = \"{app:name\": { is not closed; write {claim:NAME}"}},
		{"a pattern of an unknown field", "[[apim.jwt.claims]]\nname = \"a\"\nvalue = \"{api:url}\"", []string{"{api:url} is not known; api has name, version, context, uuid, tenant"}},
		{"a JWT that would never end", "[[apim.jwt.claims]]\nname = \"exp\"\nremove = true", []string{"apim.jwt.claims[0].name = \"exp\": says how long the JWT holds, and stays"}},
		{"a protected claim", "[[apim.jwt.claims]]\nname = \"iss\"\nvalue = \"x\"", []string{"apim.jwt.claims[0].name = \"iss\": a claim that the gateway alone writes"}},

		{"an issuer without keys", "[[apim.jwt.issuer]]\nname = \"https://i\"", []string{"apim.jwt.issuer[0]: an issuer without keys to verify its tokens; write jwks.url, certificate_file, shared_secret or introspection.url"}},
		{"an issuer that is asked about its tokens", "[[apim.jwt.issuer]]\nname = \"https://i\"\n[apim.jwt.issuer.introspection]\nurl = \"https://i/introspect\"", nil},
		{"an introspection without an endpoint", issuerHead + "[apim.jwt.issuer.introspection]\nclient_id = \"g\"", []string{"apim.jwt.issuer[0].introspection: an introspection without an endpoint; write url"}},
		{"a client without its secret", issuerHead + "[apim.jwt.issuer.introspection]\nurl = \"https://i/introspect\"\nauth_method = \"client_secret_post\"\nclient_id = \"g\"", []string{"introspection.auth_method = \"client_secret_post\": a client authentication without client_secret; write client_secret beside it"}},
		{"an assertion without its key", issuerHead + "[apim.jwt.issuer.introspection]\nurl = \"https://i/introspect\"\nauth_method = \"private_key_jwt\"\nclient_id = \"g\"", []string{"a client authentication without key_file"}},
		{"a certificate that is not named", issuerHead + "[apim.jwt.issuer.introspection]\nurl = \"https://i/introspect\"\nauth_method = \"tls_client_auth\"", []string{"a client authentication without cert_file; write cert_file beside it"}},
		{"the same issuer twice", issuerHead + issuerHead, []string{"gatehouse.toml:5: apim.jwt.issuer[1].name = \"https://i\": an issuer that stands above already"}},
		{"HMAC without a secret", issuerHead + "algorithms = [\"RS256\", \"HS256\"]", []string{"apim.jwt.issuer[0].algorithms[1] = \"HS256\": an algorithm that needs shared_secret"}},
		{"a short secret", issuerHead + "shared_secret = \"hunter2\"", []string{"apim.jwt.issuer[0].shared_secret = ***: too short"}},

		{"all tenants and one", "[gateway]\ntenants = [\"*\", \"a\"]", []string{"gateway.tenants = [\"*\", \"a\"]: \"*\" beside names"}},
		{"no tenant", "[gateway]\ntenants = []", []string{"gateway.tenants = []: no tenant at all"}},
		{"an empty label", "[gateway]\ngateway_labels = [\"a\", \"\"]", []string{"gateway.gateway_labels[1] = \"\": an empty label"}},
		{"stale answers kept for no time", "[gateway.introspection]\non_unavailable = \"serve_stale\"", []string{"stale answers that are kept for no time; write stale_ttl"}},
		{"a plain password for a hash", "[[gateway.user]]\nname = \"a\"\npassword_hash = \"hunter2\"", []string{"gateway.user[0].password_hash = ***: not a password hash; write bcrypt"}},
		{"a user twice", "[[gateway.user]]\nname = \"a\"\npassword_hash = \"$2b$x\"\n[[gateway.user]]\nname = \"a\"\npassword_hash = \"$2b$x\"", []string{"gatehouse.toml:5: gateway.user[1].name = \"a\": a user that stands above already"}},
		{"a user without a hash", "[[gateway.user]]\nname = \"a\"", []string{"gatehouse.toml:1: gateway.user[0].password_hash: missing; write password_hash ="}},

		{"buckets that do not fill the window", "[upstream.circuit_breaker]\nbucket_size = \"3s\"", []string{"upstream.circuit_breaker.bucket_size = \"3s\": time_window is not a whole number of buckets; write a part of 10s, such as \"1s\""}},
		{"connecting takes longer than the whole", "[upstream]\ntimeout = \"1s\"", []string{"upstream.connect_timeout: longer than timeout"}},
		{"credentials of no proxy", "[upstream.proxy]\nusername = \"u\"", []string{"upstream.proxy: credentials without a proxy"}},
		{"the traffic manager's TLS without a certificate", "[traffic_manager]\nssl = \":9711\"", []string{"traffic_manager.ssl = \":9711\": TLS without a certificate"}},
		{"one fault does not bring others", "[listener]\nhttps = \":9095\"\ncert_file = \"tls/nope.crt\"\nkey_file = \"tls/gateway.key\"", []string{"gatehouse.toml:3: listener.cert_file = \"tls/nope.crt\": cannot be read"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseIn(t, dir, c.text, nil)
			faults := AsFaults("gatehouse.toml", err)
			if len(faults) != len(c.want) {
				t.Fatalf("%d faults, want %d:\n%v", len(faults), len(c.want), err)
			}
			for i, f := range faults {
				if !strings.Contains(f.Error(), c.want[i]) {
					t.Errorf("fault %d:\ngot  %s\nwant %s", i, f.Error(), c.want[i])
				}
				if f.Line == 0 && len(c.text) > 0 && f.Key != "admin.address" {
					t.Errorf("no line: %+v", f)
				}
				if strings.Contains(f.Error(), "hunter2") {
					t.Errorf("a secret is shown: %s", f.Error())
				}
			}
		})
	}
}

func TestWhatFollowsFromWhatIsWritten(t *testing.T) {
	dir := newFolder(t)
	for _, c := range []struct {
		name, text string
		get        func(*Config) any
		want       any
	}{
		{"a service_url enables the event hub", eventHub, func(c *Config) any { return c.APIM.EventHub.Enable }, true},
		{"subscriptions are validated with an API Manager", eventHub, func(c *Config) any { return c.Gateway.ValidateSubscriptions }, true},
		{"and not without", "", func(c *Config) any { return c.Gateway.ValidateSubscriptions }, false},
		{"an issuer validates as the gateway does", issuerHead, func(c *Config) any { return c.APIM.JWT.Issuers[0].ValidateSubscriptions }, false},
		{"and with an API Manager", eventHub + issuerHead, func(c *Config) any { return c.APIM.JWT.Issuers[0].ValidateSubscriptions }, true},
		{"and as it is written", issuerHead + "validate_subscriptions = true\n", func(c *Config) any { return c.APIM.JWT.Issuers[0].ValidateSubscriptions }, true},
		{"unless it is written", eventHub + "[gateway]\nvalidate_subscriptions = false", func(c *Config) any { return c.Gateway.ValidateSubscriptions }, false},
		{"the traffic manager gets the event hub's user", eventHub, func(c *Config) any { return c.APIM.Throttling.Username }, "gateway"},
		{"and its password", eventHub, func(c *Config) any { return c.APIM.Throttling.Password.Reveal() }, "hunter2-planted"},
		{"a receiver turns publishing on", eventHub + "[[apim.throttling.url_group]]\ntraffic_manager_urls = [\"tcp://a:9611\"]", func(c *Config) any { return c.APIM.Throttling.EnableDataPublishing }, true},
		{"labels from deployment.toml's section", "[apim.sync_runtime_artifacts.gateway]\ngateway_labels = [\"L\"]", func(c *Config) any { return strings.Join(c.Gateway.GatewayLabels, ",") }, "L"},
		{"labels from the environment", "[gateway]\nenvironment = \"Prod\"", func(c *Config) any { return strings.Join(c.Gateway.GatewayLabels, ",") }, "Prod"},
		{"https is off without a certificate", "", func(c *Config) any { return c.Listener.HTTPS }, ""},
		{"https is on with one", "[listener]\ncert_file = \"tls/gateway.crt\"\nkey_file = \"tls/gateway.key\"", func(c *Config) any { return c.Listener.HTTPS }, ":9095"},
		{"numbers in APIM's units: seconds", "[apim.jwt]\nexpiry_time = 900", func(c *Config) any { return c.APIM.JWT.ExpiryTime.String() }, "15m"},
		{"milliseconds", "[apim.sync_runtime_artifacts.gateway]\nevent_waiting_time = 5000", func(c *Config) any { return c.APIM.SyncArtifacts.Gateway.EventWaitingTime.String() }, "5s"},
		{"quoted, as deployment.toml often has them", "[apim.gateway_notification]\nenabled = \"false\"\nheartbeat.notify_interval = \"30\"", func(c *Config) any { return c.APIM.GatewayNotification.Heartbeat.NotifyInterval.String() }, "30s"},
		{"with a unit all the same", "[apim.jwt]\nexpiry_time = \"15m\"", func(c *Config) any { return c.APIM.JWT.ExpiryTime.String() }, "15m"},
		{"a list in one string", "[apim.cors]\nallow_methods = \"GET,PUT\"", func(c *Config) any { return strings.Join(c.APIM.CORS.AllowMethods, "|") }, "GET|PUT"},
		{"a broker URL alone is a list of one", strings.Replace(eventHub, `["tcp://apim.example.com:5672"]`, `"amqp://u:p@c/carbon?a='1',brokerlist='tcp://h:1'"`, 1), func(c *Config) any { return len(c.APIM.EventHub.EventListeningEndpoints) }, 1},
		{"an address without a range", "[listener]\ntrusted_proxies = [\"10.1.2.3\"]", func(c *Config) any { return c.Listener.TrustedProxies[0].String() }, "10.1.2.3/32"},
		{"inline tables", "listener = { http = \":8080\", max_uri_bytes = 4096 }", func(c *Config) any { return c.Listener.HTTP }, ":8080"},
		{"a byte order mark and line ends of Windows", "\xef\xbb\xbf[gateway]\r\nrealm = \"w\"\r\n", func(c *Config) any { return c.Gateway.Realm }, "w"},
		{"a cluster of NATS servers", "[relay]\nnats_url = \"nats://u:p@a:4222,nats://u:p@b:4222\"", func(c *Config) any { return c.Relay.NATSURL.Reveal() }, "nats://u:p@a:4222,nats://u:p@b:4222"},
		{"dotted keys", "gateway.on_stale.deny = \"deny\"", func(c *Config) any { return c.Gateway.OnStale.Deny }, "deny"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := parseIn(t, dir, c.text, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.get(config); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestBrokerURLForms(t *testing.T) {
	for _, url := range []string{
		"amqp://admin:admin@carbon/carbon?brokerlist='tcp://localhost:5672'",
		"amqp://admin:admin@clientid/carbon?failover='roundrobin'&brokerlist='tcp://h1:5672;tcp://h2:5672'",
		"amqp://admin:admin@clientid/carbon?brokerlist='tcp://h1:5672?retries='5'&connectdelay='50';tcp://h2:5672?retries='5''",
		"amqp://admin:pw@apim:5672?retries='10'&connectdelay='30'", "amqps://u:p@host:5671/carbon", "amqp://h:5672", "amqp://u:a/b@host:5672",
		"tcp://host:5672", "ssl://host:8672", "tcp://[::1]:5672", "nats://a:4222", "nats://u:p@a:4222,nats://u:p@b:4222", "tls://a:4222",
		"tcp://a:5672,tcp://b:5672", "ssl://[::1]:8672,tcp://b", "tls://n1,n2:4333,nats://n3",
	} {
		if p := checkBroker(url); p != nil {
			t.Errorf("%s: %s", url, p.what)
		}
	}
	for _, url := range []string{"", "amqp", "amqp://", "http://h:1", "tcp://h:port", "tcp://:5672", "amqp://u:p@c/v?brokerlist=tcp://h", "amqp://u:p@c/v?brokerlist=';'", "amqp://u:p@c/v?brokerlist='udp://h:1'", "amqp://u:p@c/v?brokerlist='tcp://h:0'"} {
		if checkBroker(url) == nil {
			t.Errorf("%q is taken", url)
		}
	}
}

func TestUnknownKeysNameTheNearest(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"in the same section", "[listener]\nhtttp = \":1\"", `gatehouse.toml:2: listener.htttp = ":1": unknown key; did you mean "http"?`},
		{"in another section", "[gateway]\nheartbeat = \"3s\"", `gateway.heartbeat = "3s": unknown key; did you mean apim.event_hub.heartbeat, which stands elsewhere?`},
		{"almost, in another section", "[listener]\nevent_listening_endpoint = [\"tcp://h:1\"]", `unknown key; did you mean apim.event_hub.event_listening_endpoints?`},
		{"a section", "[apim.eventhub]\nenable = true\nservice_url = \"x\"", `gatehouse.toml:1: apim.eventhub: unknown section; did you mean [apim.event_hub]?`},
		{"a section of the top level", "[listner]\nhttp = \":1\"", `listner: unknown section; did you mean [listener]?`},
		{"a section elsewhere", "[url_group]\n", `url_group: unknown section; did you mean [[apim.throttling.url_group]]`},
		{"a key without its section", "service_url = \"https://h\"", `service_url = "https://h": unknown key; did you mean apim.event_hub.service_url`},
		{"nothing near", "[gateway]\nzzzzzzzzzz = 1", `gateway.zzzzzzzzzz = 1: unknown key; take it out; docs/configuration.md lists every key`},
		{"single brackets for a list", "[gateway.user]\nname = \"a\"\npassword_hash = \"$2b$x\"", `gateway.user: is one section where a list of sections belongs; write [[gateway.user]] in double brackets`},
		{"double brackets for a section", "[[listener]]\nhttp = \":1\"", `listener: a list, where a section belongs; write [listener] on a line of its own`},
		{"a value for a section", "[apim]\nevent_hub = \"hunter2\"", `apim.event_hub = ***: a string, where a section belongs; write [apim.event_hub] on a line of its own`},
		{"an unknown key that looks like a secret", "[listener]\nkeystore_password = \"hunter2\"", `listener.keystore_password = ***: unknown key`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Parse("gatehouse.toml", []byte(c.text), testEnv, "/")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if n := len(AsFaults("", err)); n != 1 {
				t.Errorf("%d faults, want 1", n)
			}
		})
	}
}

func TestTextThatIsNotTOML(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"no value", "[log]\nlevel =\n", []string{"gatehouse.toml:2: not valid TOML: "}},
		{"no quotes", "[log]\nlevel = info\n", []string{"gatehouse.toml:2: not valid TOML: "}},
		{"a key twice", "[log]\nlevel = \"info\"\nlevel = \"debug\"\n", []string{"gatehouse.toml:3: "}},
		{"a section twice", "[log]\nlevel = \"info\"\n[log]\n", []string{"gatehouse.toml:3: "}},
		{"faults before the place are told too", "[log]\nlevel = 3\n[gateway\n", []string{"gatehouse.toml:2: log.level = 3: a whole number, where a string belongs", "gatehouse.toml:3: not valid TOML: "}},
		{"a zero byte", "[log]\n\x00", []string{"gatehouse.toml:2: not a TOML file: it holds a zero byte"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Parse("gatehouse.toml", []byte(c.text), testEnv, "/")
			faults := AsFaults("", err)
			if len(faults) != len(c.want) {
				t.Fatalf("%d faults, want %d: %v", len(faults), len(c.want), err)
			}
			for i, f := range faults {
				if !strings.HasPrefix(f.Error(), c.want[i]) {
					t.Errorf("got  %s\nwant %s", f.Error(), c.want[i])
				}
			}
		})
	}
}

func TestKeysOfTheJavaGatewayAreNotedNotRefused(t *testing.T) {
	text := eventHub + `init_delay = "1000"
[apim.throttling]
enable_advanced_throttling = true
[apim.throttling.publisher]
max_idle = "1000"
queue_size = 1024
[apim.throttling.jms]
password = "${admin.password}"
[apim.throttling.policy_deploy.tenant_loading]
enable = true
[[apim.jwt.issuer]]
name = "https://i"
jwks.enable = true
jwks.url = "https://i/certs"
[apim.cache.resource]
enable = false
`
	c, source, err := Parse("gatehouse.toml", []byte(text), testEnv, "/")
	if err != nil {
		t.Fatal(err)
	}
	if c.APIM.Throttling.Publisher.QueueSize != 1024 {
		t.Errorf("queue_size %d", c.APIM.Throttling.Publisher.QueueSize)
	}
	var got []string
	for _, n := range source.Notes {
		got = append(got, n.String())
	}
	want := []string{
		"gatehouse.toml:6: apim.event_hub.init_delay: without effect: the event hub is dialled at once",
		"gatehouse.toml:8: apim.throttling.enable_advanced_throttling: without effect: advanced policies are always in force",
		"gatehouse.toml:10: apim.throttling.publisher.max_idle: without effect: there is no thread pool",
		"gatehouse.toml:12: apim.throttling.jms: without effect: use apim.throttling.throttle_decision_endpoints",
		"gatehouse.toml:14: apim.throttling.policy_deploy: without effect: policies are fetched, never deployed to a gateway",
		"gatehouse.toml:18: apim.jwt.issuer[0].jwks.enable: without effect: the key set is used wherever its url is written",
		"gatehouse.toml:20: apim.cache.resource: without effect: resources are in memory",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
	for _, j := range javaOnly {
		if schema().find(strings.ReplaceAll(j.key, "[]", "")) != nil {
			t.Errorf("%s has an effect here and is listed as without one", j.key)
		}
	}
}

func TestKeysOfLaterReleasesAreNotedUnlessTheyAskForNothing(t *testing.T) {
	fields := map[string]*field{}
	for _, f := range leaves() {
		fields[f.path] = f
	}
	for _, c := range []struct {
		name, text, key string
		noted           bool
	}{
		{"a section", "[tracing]\nendpoint = \"https://otel:4318\"\nratio = 0.1\n", "tracing.endpoint", true},
		{"a value that asks for nothing", "[listener]\nengine = \"standard\"\n", "listener.engine", false},
		{"another value", "[listener]\nengine = \"fast\"\n", "listener.engine", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, source, err := Parse("gatehouse.toml", []byte(c.text), testEnv, "/")
			if err != nil {
				t.Fatal(err)
			}
			if want := c.noted && fields[c.key].later; want != (len(source.Notes) == 1) {
				t.Fatalf("notes: %v", source.Notes)
			}
			if c.noted && fields[c.key].later && (!source.Notes[0].Warning || source.Notes[0].Key != c.key || source.Notes[0].Line != 2) {
				t.Errorf("note: %+v", source.Notes[0])
			}
		})
	}
}

func TestSkippedVerificationIsNoted(t *testing.T) {
	_, source, err := Parse("gatehouse.toml", []byte(eventHub+"skip_ssl_verification = true\n"), testEnv, "/")
	if err != nil {
		t.Fatal(err)
	}
	if len(source.Notes) != 1 || !source.Notes[0].Warning || source.Notes[0].Line != 6 || source.Notes[0].Key != "apim.event_hub.skip_ssl_verification" {
		t.Errorf("notes: %+v", source.Notes)
	}
}

func TestEveryFaultAtOnce(t *testing.T) {
	text := "[listener]\nhtttp = \":1\"\nidle_timeout = 3\n[log]\nlevel = \"loud\"\n[admin]\naddress = \":9096\"\n[apim.event_hub]\nenable = true\n"
	_, _, err := Parse("gatehouse.toml", []byte(text), testEnv, "/")
	faults := AsFaults("", err)
	var lines []int
	for _, f := range faults {
		lines = append(lines, f.Line)
	}
	if diff := cmp.Diff([]int{2, 3, 5, 7, 8, 8, 8, 8}, lines); diff != "" {
		t.Errorf("lines of the faults (-want +got):\n%s\n%v", diff, err)
	}
}

func TestSourceWordsFaultsOfTheCompositionRoot(t *testing.T) {
	_, source, err := Parse("gatehouse.toml", []byte(eventHub), testEnv, "/")
	if err != nil {
		t.Fatal(err)
	}
	f := source.Fault("apim.event_hub.event_listening_endpoints[0]", errNotSize)
	if got, want := f.Error(), "gatehouse.toml:5: apim.event_hub.event_listening_endpoints[0]: not a size"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if at := source.Position("apim.event_hub.heartbeat"); at.Line != 1 {
		t.Errorf("a key that is not written is placed at line %d, want its section's", at.Line)
	}
}

// A block that says CERTIFICATE and holds none is found when the file is checked, not when a server is dialled.
func TestACertificateThatCannotBeReadIsAFault(t *testing.T) {
	dir := newFolder(t)
	writeFile(t, filepath.Join(dir, "broken.pem"), []byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
	_, _, err := Parse("gatehouse.toml", []byte("[log]\nlevel = \"info\"\n[upstream.tls]\nca_file = \"broken.pem\"\n"), testEnv, dir)
	const want = `gatehouse.toml:4: upstream.tls.ca_file = "broken.pem": the file's certificate cannot be read: `
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}
