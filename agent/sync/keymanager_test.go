package sync

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatehouse/agent/controlplane"
	"gatehouse/keymanager"
)

func configuration(t *testing.T, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestIntrospectionOfAKeyManager(t *testing.T) {
	const endpoint = `"introspection_endpoint": "https://sso.example.test/introspect"`
	for name, c := range map[string]struct {
		conf string
		want *keymanager.Introspection
	}{
		"none":                         {`{"client_id": "c", "client_secret": "s"}`, nil},
		"empty":                        {`{"introspection_endpoint": " ", "client_id": "c"}`, nil},
		"without credentials":          {`{` + endpoint + `}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect"}},
		"Keycloak connector":           {`{` + endpoint + `, "client_id": "apim", "client_secret": " s "}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect", ClientID: "apim", ClientSecret: " s "}},
		"WSO2 IS connector":            {`{` + endpoint + `, "Username": "admin", "Password": "pw"}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect", ClientID: "admin", ClientSecret: "pw"}},
		"in any case":                  {`{"Introspection_Endpoint": "https://sso.example.test/introspect", "Client_ID": "c", "CLIENT_SECRET": "s"}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect", ClientID: "c", ClientSecret: "s"}},
		"a client comes before a user": {`{` + endpoint + `, "username": "u", "password": "p", "client_id": "c", "client_secret": "s"}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect", ClientID: "c", ClientSecret: "s"}},
		"an empty client":              {`{` + endpoint + `, "client_id": "", "username": "u", "password": "p"}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect", ClientID: "u", ClientSecret: "p"}},
		"an API key is no password":    {`{` + endpoint + `, "client_id": "c", "apiKey": "k"}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect", ClientID: "c"}},
		"a secret that is no text":     {`{` + endpoint + `, "client_id": "c", "client_secret": {"x": 1}}`, &keymanager.Introspection{URL: "https://sso.example.test/introspect", ClientID: "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			conf := configuration(t, c.conf)
			row := keyManagerRow(controlplane.KeyManager{Name: "KM", Enabled: true, Configuration: conf}, "carbon.super")
			event := keyManagerOf("KM", "", "carbon.super", "", true, conf)
			if d := cmp.Diff(c.want, row.Introspection); d != "" {
				t.Error(d)
			}
			if !sameKeyManager(&row, &event) {
				t.Errorf("list %+v and event %+v differ", row, event)
			}
		})
	}
}

func TestTokenFormats(t *testing.T) {
	text := func(array string) string { b, _ := json.Marshal(array); return string(b) }
	type formats = []keymanager.TokenFormat
	for name, c := range map[string]struct {
		value string
		want  formats
	}{
		"none":                       {`null`, nil},
		"empty text":                 {`""`, nil},
		"no array":                   {text(`{"type":"JWT"}`), nil},
		"not JSON":                   {text(`[{`), nil},
		"reference":                  {text(`[{"enable":true,"type":"REFERENCE","value":"[0-9a-f]{8}"}]`), formats{{Type: "REFERENCE", Pattern: "[0-9a-f]{8}"}}},
		"JWT by claims":              {text(`[{"enable":true,"type":"JWT","value":{"body":{"iss":"https://x"}}}]`), formats{{Type: "JWT", Claims: map[string]string{"iss": "https://x"}}}},
		"JWT by claims, text inside": {text(`[{"enable":"true","type":"JWT","value":"{\"body\":{\"iss\":\"https://x\"}}"}]`), formats{{Type: "JWT", Claims: map[string]string{"iss": "https://x"}}}},
		"custom":                     {text(`[{"type":"custom","value":"x-.*"}]`), formats{{Type: "CUSTOM", Pattern: "x-.*"}}},
		"an array, not text":         {`[{"enable":true,"type":"REFERENCE","value":"a"},{"enable":true,"type":"CUSTOM","value":"b"}]`, formats{{Type: "REFERENCE", Pattern: "a"}, {Type: "CUSTOM", Pattern: "b"}}},
		"not enabled":                {text(`[{"enable":false,"type":"REFERENCE","value":"a"}]`), nil},
		"without a value":            {text(`[{"enable":true,"type":"JWT"},{"enable":true,"type":"REFERENCE","value":""},7,null]`), nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := keyManagerOf("KM", "", "", "", true, configuration(t, `{"token_format_string": `+c.value+`}`))
			if d := cmp.Diff(c.want, got.TokenFormats); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAKeyManagerThatDoesNotValidateRefusesItsTokens(t *testing.T) {
	for conf, want := range map[string]bool{`{}`: true, `{"validation_enable":true}`: true, `{"validation_enable":"false"}`: false, `{"validation_enable":false}`: false} {
		if got := keyManagerOf("KM", "", "", "", true, configuration(t, conf)); got.Enabled != want {
			t.Errorf("%s: enabled %t", conf, got.Enabled)
		}
		if got := keyManagerOf("KM", "", "", "", false, configuration(t, conf)); got.Enabled {
			t.Errorf("%s: enabled although the row is not", conf)
		}
	}
}

func TestEachChangeOfAnIntrospectionIsOne(t *testing.T) {
	base := func() keymanager.KeyManager {
		return keyManagerOf("KM", "", "", "", true, map[string]any{
			"introspection_endpoint": "https://x", "client_id": "c", "client_secret": "s",
			"token_format_string": `[{"type":"REFERENCE","value":"a"},{"type":"JWT","value":{"body":{"a":"b"}}}]`,
		})
	}
	a, b := base(), base()
	if !sameKeyManager(&a, &b) {
		t.Error("two readings of one configuration differ")
	}
	for name, change := range map[string]func(*keymanager.KeyManager){
		"URL":     func(k *keymanager.KeyManager) { k.Introspection.URL = "https://y" },
		"secret":  func(k *keymanager.KeyManager) { k.Introspection.ClientSecret = "t" },
		"none":    func(k *keymanager.KeyManager) { k.Introspection = nil },
		"pattern": func(k *keymanager.KeyManager) { k.TokenFormats[0].Pattern = "b" },
		"claim":   func(k *keymanager.KeyManager) { k.TokenFormats[1].Claims["a"] = "c" },
		"fewer":   func(k *keymanager.KeyManager) { k.TokenFormats = k.TokenFormats[:1] },
	} {
		c := base()
		if change(&c); sameKeyManager(&a, &c) || sameKeyManager(&c, &a) {
			t.Errorf("a change of the %s goes unseen", name)
		}
	}
}
