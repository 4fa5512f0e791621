package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"github.com/rs/zerolog"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

// every is a configuration with a value at every key and secrets at every place that takes one.
func every(t *testing.T) *Config {
	t.Helper()
	dir := newFolder(t)
	files := sections(t)
	var text strings.Builder
	for _, name := range []string{
		"listener", "admin", "gateway", "standalone", "apim.event_hub", "apim.throttling", "apim.jwt", "apim.other", "upstream", "roles",
	} {
		text.WriteString(files[name] + "\n")
	}
	c, _, err := Parse("gatehouse.toml", []byte(text.String()), testEnv, dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// No way of printing or encoding a configuration shows a secret.
func TestSecretsNeverShow(t *testing.T) {
	c := every(t)
	shown := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%10s"} { // not %p, which fmt keeps from every method; go vet refuses it
		shown["fmt "+verb] = fmt.Sprintf(verb, *c)
		shown["fmt "+verb+" of the hub"] = fmt.Sprintf(verb, c.APIM.EventHub)
		shown["fmt "+verb+" of a secret"] = fmt.Sprintf(verb, c.APIM.EventHub.Password)
		shown["fmt "+verb+" of URLs"] = fmt.Sprintf(verb, c.APIM.EventHub.EventListeningEndpoints)
	}
	encode := func(name string, data []byte, err error) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		shown[name] = string(data)
	}
	data, err := json.Marshal(c)
	encode("json", data, err)
	data, err = json.Marshal(c.Redacted())
	encode("json of the dump", data, err)
	data, err = json.Marshal(*c)
	encode("json of the value", data, err)
	data, err = json.Marshal(c.APIM)
	encode("json of a section", data, err)
	data, err = toml.Marshal(*c)
	encode("toml", data, err)
	data, err = yaml.Marshal(*c)
	encode("yaml", data, err)
	data, err = yaml.Marshal(map[string]URL{"url": c.Relay.NATSURL})
	encode("yaml of a map", data, err)
	data, err = toml.Marshal(map[string]any{"a": []Secret{c.Admin.Token}, "b": c.Relay.NATSURL})
	encode("toml of a map", data, err)
	var log bytes.Buffer
	logger := zerolog.New(&log)
	logger.Info().Interface("config", c).Any("hub", c.APIM.EventHub).Stringer("dump", c.Redacted()).Str("password", c.Admin.Password.String()).Send()
	slog.New(slog.NewJSONHandler(&log, nil)).Info("config", "config", c, "hub", c.APIM.EventHub, "password", c.Admin.Password)
	slog.New(slog.NewTextHandler(&log, nil)).Info("config", "config", *c, "hub", c.APIM.EventHub, "password", c.Admin.Password)
	shown["log"] = log.String()
	shown["dump"] = c.Redacted().String()
	for name, text := range shown {
		for _, planted := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2"), fmt.Sprintf("%d", []byte("hunter2"))} {
			if strings.Contains(text, strings.Trim(planted, "[]")) {
				t.Errorf("%s shows a secret:\n%s", name, text)
			}
		}
	}
	if c.APIM.EventHub.Password.Reveal() != password {
		t.Error("Reveal does not give the secret")
	}
	if s := fmt.Sprintf("%s|%v|%#v|%q", Secret(""), Secret("x"), Secret("x"), Secret("x")); s != `|***|"***"|"***"` {
		t.Errorf("printed as %s", s)
	}
}

func TestRedactedDump(t *testing.T) {
	c := every(t)
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(c.Redacted().String()), "", "  "); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(filepath.Dir(string(c.Listener.CertFile)))
	compareGolden(t, "testdata/redacted.json", strings.ReplaceAll(indented.String(), dir, "$DIR")+"\n")
}

func TestMaskURL(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"https://apim.example.com:9443":   "https://apim.example.com:9443",
		"amqp://u:hunter2@carbon/carbon":  "amqp://u:***@carbon/carbon",
		"amqp://u:p@ss:w/rd?x@h:1":        "amqp://u:***@h:1",
		"nats://token@h:4222":             "nats://***@h:4222",
		"nats://a:x@h1:1,nats://b:y@h2:2": "nats://a:***@h2:2",
		"u:hunter2@h":                     "u:***@h",
		"https://h/?token=hunter2&a=1":    "https://h/?token=***&a=1",
		"amqp://u:p@c/v?brokerlist='tcp://h:1?trust_store_password='hunter2'&retries='5''": "amqp://u:***@c/v?brokerlist='tcp://h:1?trust_store_password=***&retries='5''",
	} {
		if got := MaskURL(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestDurationsAndSizesReadWhatTheyPrint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Duration(rapid.Int64().Draw(t, "duration"))
		if got, err := ParseDuration(d.String()); err != nil || got != d {
			t.Fatalf("duration %d prints as %s, which reads as %d, %v", d, d, got, err)
		}
		s := Size(rapid.Int64Range(0, 1<<62).Draw(t, "size"))
		if got, err := ParseSize(s.String()); err != nil || got != s {
			t.Fatalf("size %d prints as %s, which reads as %d, %v", s, s, got, err)
		}
	})
	for text, want := range map[string]string{"7d": "168h", "1d12h": "36h", "90s": "1m30s", "0s": "0s", "0": "0s", "-5s": "-5s", "0.5d": "12h"} {
		if d, err := ParseDuration(text); err != nil || d.String() != want {
			t.Errorf("%s reads as %s, %v; want %s", text, d, err, want)
		}
	}
	for _, text := range []string{"", "5", "s", "d", "5x", "1d2", "1e3s", "NaNd", "infd", "200000d", "106751d24h"} {
		if d, err := ParseDuration(text); err == nil {
			t.Errorf("%q reads as %s", text, d)
		}
	}
	for text, want := range map[string]Size{"0": 0, "65536": 65536, "64KiB": 65536, "1 MiB": 1 << 20, "10MB": 10_000_000, "2GiB": 2 << 30, "5B": 5} {
		if s, err := ParseSize(text); err != nil || s != want {
			t.Errorf("%s reads as %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "-1", "1.5MiB", "MiB", "9223372036854775807GiB", "10 apples"} {
		if s, err := ParseSize(text); err == nil {
			t.Errorf("%q reads as %d", text, s)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"heartbeat", "heartbeet", 1}, {"http", "htpt", 1}, {"https", "http", 1}, {"enable", "enabled", 1}, {"ca", "abc", 3}, {"kitten", "sitting", 3}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// FuzzParse: no text makes Parse panic; every fault has its place and shows no secret; and what loads can be dumped, and
// the dump is JSON that holds every key in order.
func FuzzParse(f *testing.F) {
	dir := newFolder(f)
	for _, text := range sections(f) {
		f.Add(text)
	}
	f.Add(string(readTestdata(f, "whole.toml")))
	for _, text := range []string{
		"a.b.c = 1\n[a]\nb = 2", "[[a]]\n[a]", "[a]\n[[a]]", "[[gateway.user]]\n[gateway.user]", "x = [[[[]]]]", "x = {y={z={}}}", "listener.http = {}",
		"[gateway]\nrealm = \"$ref{gateway.realm}\"", "[gateway]\nrealm='''\n${\n}'''", "[listener]\nidle_timeout = 1979-05-27", "\xef\xbb\xbf[log]", "[log]\r\nlevel=\"info\"\r\n",
		"[upstream]\ntimeout = 9223372036854775807", "\"\" = 1", "[\"\"]", "[apim.jwt]\nexpiry_time = 0x7fffffffffffffff", "upstream = {circuit_breaker = {}}", "gateway = []", "apim = 1\n[apim.jwt]\nenable = true",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, source, err := Parse("gatehouse.toml", []byte(text), testEnv, dir)
		if err != nil {
			for _, fault := range AsFaults("", err) {
				if fault.File != "gatehouse.toml" || fault.Problem == "" || fault.Line > strings.Count(text, "\n")+1 || fault.Line < 0 {
					t.Errorf("fault %+v", fault)
				}
			}
			if strings.Contains(err.Error(), password) && !strings.Contains(text, password) {
				t.Errorf("the environment's secret is shown: %v", err)
			}
			return
		}
		data, err := json.Marshal(c)
		if err != nil {
			t.Fatalf("the dump does not encode: %v", err)
		}
		var again bytes.Buffer
		if err := json.Compact(&again, data); err != nil {
			t.Fatalf("the dump is no JSON: %v", err)
		}
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(data, &keys); err != nil || len(keys) != len(schema().children) {
			t.Fatalf("the dump holds %d sections: %v", len(keys), err)
		}
		if diff := cmp.Diff([]string(nil), Changed(c, c)); diff != "" {
			t.Errorf("a configuration differs from itself:\n%s", diff)
		}
		for key := range source.places {
			if source.Position(key).Line < 1 {
				t.Errorf("%s has no line", key)
			}
		}
	})
}
