package config

import (
	"strings"
	"testing"
)

func TestRulesOfCredentials(t *testing.T) {
	dir := newFolder(t)
	const (
		key   = "[[gateway.api_key_issuer]]\nname = \"https://i\"\ncertificate_file = \"tls/gateway.crt\"\n"
		user  = "[[gateway.user]]\nname = \"a\"\npassword_hash = "
		api   = "[[apimgt.mutual_ssl.api]]\nname = \"Shop\"\nversion = \"1\"\ncertificate_files = [\"tls/gateway.crt\"]\n"
		sha1s = "d033e22ae348aeb5660fc2140aec35850c4da997"
	)
	for _, c := range []struct{ name, text, want string }{
		{"an issuer of keys", key, ""},
		{"one name for both kinds", key + key + "kind = \"internal_key\"\n", ""},
		{"one name and kind twice", key + key, "gatehouse.toml:5: gateway.api_key_issuer[1].name = \"https://i\": an issuer of this kind that stands above already; merge the two sections"},
		{"an issuer without keys", "[[gateway.api_key_issuer]]\nname = \"https://i\"\n", "gatehouse.toml:1: gateway.api_key_issuer[0]: an issuer without keys to verify its API keys; write certificate_file or jwks_url"},
		{"an issuer with two sources of keys", key + "jwks_url = \"https://i/jwks\"\n", "gateway.api_key_issuer[0].jwks_url = \"https://i/jwks\": a second source of keys beside certificate_file; write one of the two"},
		{"an issuer of another kind", key + "kind = \"oauth\"\n", "gateway.api_key_issuer[0].kind = \"oauth\": not one of the values it takes; write \"api_key\" or \"internal_key\""},

		{"a hash of Microgateway", user + "\"" + sha1s + "\"\n", ""},
		{"the same in braces", user + "\"{" + sha1s + "}\"\n", ""},
		{"a plain password", user + "\"hunter2\"\n", "gateway.user[0].password_hash = ***: not a password hash"},

		{"certificates of an API", api, ""},
		{"of two versions", api + strings.Replace(api, "\"1\"", "\"2\"", 1), ""},
		{"of one API twice, in another case", api + strings.Replace(api, "Shop", "SHOP", 1), "gatehouse.toml:6: apimgt.mutual_ssl.api[1].name = \"SHOP\": an API that stands above already"},
		{"no certificate", strings.Replace(api, "\"tls/gateway.crt\"", "", 1), "apimgt.mutual_ssl.api[0].certificate_files = []: no certificate at all, so that nobody is let in; write one such as [\"client.pem\"]"},
		{"a key for a certificate", strings.Replace(api, "gateway.crt", "gateway.key", 1), "certificate_files[0] = \"tls/gateway.key\": the file holds no certificate in PEM form"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Parse("gatehouse.toml", []byte(c.text), testEnv, dir)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused:\n%v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(AsFaults("", err)) != 1):
				t.Errorf("got\n%v\nwant one fault\n%s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
}

// Where nobody looks subscriptions up, a key is good for the APIs that it lists and no other.
func TestAllowedAPIsAreCheckedWhereSubscriptionsAreNot(t *testing.T) {
	const issuer = "[[gateway.api_key_issuer]]\nname = \"https://i\"\njwks_url = \"https://i/jwks\"\n"
	for _, c := range []struct {
		name, text string
		want       bool
	}{
		{"alone", issuer, true},
		{"with an API Manager", issuer + eventHub, false},
		{"with an API Manager whose subscriptions do not count", issuer + "[gateway]\nvalidate_subscriptions = false\n" + eventHub, true},
		{"written", issuer + "validate_allowed_apis = true\n" + eventHub, true},
		{"written off", issuer + "validate_allowed_apis = false\n", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, _, err := Parse("gatehouse.toml", []byte(c.text), testEnv, "/etc/gatehouse")
			if err != nil {
				t.Fatal(err)
			}
			if got := cfg.Gateway.APIKeyIssuers[0].ValidateAllowedAPIs; got != c.want {
				t.Errorf("in force: %t", got)
			}
		})
	}
}

func TestUnverifiedKeyServerIsNoted(t *testing.T) {
	_, source, err := Parse("gatehouse.toml", []byte("[[gateway.api_key_issuer]]\nname = \"https://i\"\njwks_url = \"https://i/jwks\"\nskip_ssl_verification = true\n"), testEnv, "/")
	if err != nil || len(source.Notes) != 1 || !source.Notes[0].Warning || source.Notes[0].Line != 4 {
		t.Errorf("%v, notes %+v", err, source.Notes)
	}
}
