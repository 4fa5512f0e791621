package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// parseIn parses text against a folder of newFolder and the environment of the tests plus more.
func parseIn(t testing.TB, dir, text string, more map[string]string) (*Config, error) {
	t.Helper()
	c, _, err := Parse("gatehouse.toml", []byte(text), func(name string) (string, bool) {
		if v, ok := more[name]; ok {
			return v, true
		}
		return testEnv(name)
	}, dir)
	return c, err
}

func TestReplacement(t *testing.T) {
	dir := newFolder(t)
	env := map[string]string{
		"REALM": "shop", "LEVEL": "debug", "COUNT": "7", "LABELS": "A, B", "TRICK": "$env{REALM}${REALM}$ref{gateway.realm}$file{secret.txt}",
		"ODD": "p@ss/w?rd%41:'x", "PORT": ":8080", "AGE": "2h", "FLAG": "true", "RATIO": "0.25", "SECONDS": "60", "BOTH": "relay:p:@ss",
	}
	for _, c := range []struct {
		name, text string
		get        func(*Config) any
		want       any
	}{
		{"$env", "[gateway]\nrealm = \"$env{REALM}\"", func(c *Config) any { return c.Gateway.Realm }, "shop"},
		{"${}", "[gateway]\nrealm = \"${REALM}\"", func(c *Config) any { return c.Gateway.Realm }, "shop"},
		{"several in one string", "[gateway]\nrealm = \"a-${REALM}-$env{LEVEL}-z\"", func(c *Config) any { return c.Gateway.Realm }, "a-shop-debug-z"},
		{"a literal string too", "[gateway]\nrealm = 'a-${REALM}'", func(c *Config) any { return c.Gateway.Realm }, "a-shop"},
		{"inserted text is not read again", "[gateway]\nrealm = \"$env{TRICK}\"", func(c *Config) any { return c.Gateway.Realm }, env["TRICK"]},
		{"$file without its last line break", "[admin]\ntoken = \"$file{secret.txt}\"", func(c *Config) any { return c.Admin.Token.Reveal() }, password},
		{"$file by an absolute path", "[admin]\ntoken = \"$file{" + filepath.Join(dir, "secret.txt") + "}\"", func(c *Config) any { return c.Admin.Token.Reveal() }, password},
		{"a number", "[gateway]\ntrace_ring_admitted = \"$env{COUNT}\"", func(c *Config) any { return c.Gateway.TraceRingAdmitted }, 7},
		{"a truth value", "[gateway]\nignore_trailing_slash = \"$env{FLAG}\"", func(c *Config) any { return c.Gateway.IgnoreTrailingSlash }, true},
		{"a fraction", "[tracing]\nratio = \"$env{RATIO}\"", func(c *Config) any { return c.Tracing.Ratio }, 0.25},
		{"a duration", "[gateway]\nmax_snapshot_age = \"$env{AGE}\"", func(c *Config) any { return c.Gateway.MaxSnapshotAge.String() }, "2h"},
		{"a number of APIM's unit", "[apim.jwt]\nexpiry_time = \"$env{SECONDS}\"", func(c *Config) any { return c.APIM.JWT.ExpiryTime.String() }, "1m"},
		{"a list from one variable", "[gateway]\ngateway_labels = \"$env{LABELS}\"", func(c *Config) any { return strings.Join(c.Gateway.GatewayLabels, "|") }, "A|B"},
		{"an element of a list", "[gateway]\ngateway_labels = [\"$env{REALM}\", \"x\"]", func(c *Config) any { return strings.Join(c.Gateway.GatewayLabels, "|") }, "shop|x"},
		{"$ref to a string", "[gateway]\nenvironment = \"Prod\"\nrealm = \"$ref{gateway.environment} gateway\"", func(c *Config) any { return c.Gateway.Realm }, "Prod gateway"},
		{"$ref to what has references", "[gateway]\nenvironment = \"${REALM}\"\nrealm = \"$ref{gateway.environment}\"", func(c *Config) any { return c.Gateway.Realm }, "shop"},
		{"$ref to a default", "[gateway]\nrealm = \"$ref{gateway.environment}\"", func(c *Config) any { return c.Gateway.Realm }, "Default"},
		{"$ref to a number", "[gateway]\ntrace_ring_refused = 5\ntrace_ring_admitted = \"$ref{gateway.trace_ring_refused}\"", func(c *Config) any { return c.Gateway.TraceRingAdmitted }, 5},
		{"$ref to a list", "[gateway]\ntenants = [\"a\", \"b\"]\ngateway_labels = \"$ref{gateway.tenants}\"", func(c *Config) any { return strings.Join(c.Gateway.GatewayLabels, "|") }, "a|b"},
		{"$ref inside a key without effect", "[apim.throttling.jms]\npassword = \"$ref{super_admin.password}\"", func(c *Config) any { return c.Gateway.Realm }, "Gatehouse"},
		{
			"a password in the user part of a URL is encoded", "[relay]\nnats_url = \"nats://relay:$env{ODD}@nats:4222\"",
			func(c *Config) any { return c.Relay.NATSURL.Reveal() }, "nats://relay:p%40ss%2Fw%3Frd%2541%3A%27x@nats:4222",
		},
		{
			"user and password in one variable", "[relay]\nnats_url = \"nats://$env{BOTH}@nats:4222\"",
			func(c *Config) any { return c.Relay.NATSURL.Reveal() }, "nats://relay:p%3A%40ss@nats:4222",
		},
		{
			"elsewhere in a URL it is not", "[relay]\nnats_url = \"nats://$env{REALM}:4222\"",
			func(c *Config) any { return c.Relay.NATSURL.Reveal() }, "nats://shop:4222",
		},
		{"a dollar alone", "[gateway]\nrealm = \"US$ {x} $x $env\"", func(c *Config) any { return c.Gateway.Realm }, "US$ {x} $x $env"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := parseIn(t, dir, c.text, env)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.get(config); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestReplacementThatFails(t *testing.T) {
	dir := newFolder(t)
	writeFile(t, filepath.Join(dir, "binary"), []byte{0xff, 0xfe})
	env := map[string]string{"SOON": "soon-hunter2"}
	for _, c := range []struct{ name, text, want string }{
		{"variable not set", "[gateway]\nrealm = \"$env{NOPE}\"", `gatehouse.toml:2: gateway.realm = "$env{NOPE}": environment variable NOPE is not set; set it`},
		{"Java system property", "[gateway]\nrealm = \"${carbon.host}\"", `environment variable carbon.host is not set; names with dots are Java system properties`},
		{"variable empty", "[gateway]\nrealm = \"$env{EMPTY}\"", "environment variable EMPTY is empty"},
		{"file missing", "[gateway]\nrealm = \"$file{nope.txt}\"", "$file{nope.txt} cannot be read: no such file or directory"},
		{"file empty", "[gateway]\nrealm = \"$file{empty.txt}\"", "empty.txt is empty; write the value into it"},
		{"file is a folder", "[gateway]\nrealm = \"$file{tls}\"", "is not a regular file"},
		{"file is a device", "[gateway]\nrealm = \"$file{/dev/zero}\"", "/dev/zero is not a regular file"},
		{"file is binary", "[gateway]\nrealm = \"$file{binary}\"", "is not UTF-8 text"},
		{"not closed", "[gateway]\nrealm = \"$env{NOPE\"", "$env{… is not closed; write $env{NAME}"},
		{"names nothing", "[gateway]\nrealm = \"${ }\"", "${ } names nothing"},
		{"$ref to nothing", "[gateway]\nrealm = \"$ref{gateway.relm}\"", "there is no such key; did you mean $ref{gateway.realm}?"},
		{"$ref to what is not set", "[gateway]\nrealm = \"$ref{apim.event_hub.username}\"", "that key is not set and has no default"},
		{"$ref to a table", "[gateway]\nrealm = \"a $ref{gateway.compat}\"\n[gateway.compat]", "is a table and cannot stand inside a string"},
		{"$ref to itself", "[gateway]\nrealm = \"$ref{gateway.realm}\"", "a circle of references: gateway.realm -> gateway.realm"},
		{
			"a circle", "[gateway]\nrealm = \"$ref{gateway.environment}\"\nenvironment = \"x$ref{gateway.realm}\"",
			"a circle of references: gateway.environment -> gateway.realm -> gateway.environment",
		},
		{
			"$ref to a secret where it would be shown", "[gateway]\nrealm = \"$ref{admin.token}\"\n[admin]\ntoken = \"hunter2\"",
			"$ref{admin.token} is a secret, and this key is shown in logs",
		},
		{"secure vault", "[admin]\ntoken = \"{secretAlias:admin}\"", "refers to WSO2's secure vault, which only the Java servers can open; put the secret into an environment variable"},
		{"secure vault of deployment.toml", "[admin]\ntoken = \"$secret{admin}\"", "refers to WSO2's secure vault"},
		{"secure vault inside a URL", "[relay]\nnats_url = \"nats://u:{secretAlias:x}@h:1\"", "refers to WSO2's secure vault"},
		{"Java system property by name", "[gateway]\nrealm = \"$sys{carbon.home}\"", "names a Java system property"},
		{"references that double", doubling(40), "becomes longer than 1MiB by replacement"},
		{"the inserted value is wrong", "[gateway]\ndrain_delay = \"$env{SOON}\"", `gateway.drain_delay = "$env{SOON}": not a duration (after replacement); write a number with a unit`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseIn(t, dir, c.text, env)
			if err == nil {
				t.Fatal("no fault")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the inserted text is shown: %v", err)
			}
		})
	}
}

// doubling is a chain of keys of which each holds the next one twice.
func doubling(n int) string {
	var b strings.Builder
	b.WriteString("[unknown]\n")
	for i := range n {
		fmt.Fprintf(&b, "k%d = \"$ref{unknown.k%d}$ref{unknown.k%d}\"\n", i, i+1, i+1)
	}
	fmt.Fprintf(&b, "k%d = \"0123456789\"\n[gateway]\nrealm = \"$ref{unknown.k0}\"\n", n)
	return b.String()
}
