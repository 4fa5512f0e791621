package mtls

import (
	"bytes"
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
)

// headerForms are one certificate in every form.
func headerForms(c *cert) map[string]string {
	text := pemOf(c)
	escaped := strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
	std := base64.StdEncoding.EncodeToString
	return map[string]string{
		"PEM, line ends as blanks (Apache)":       strings.ReplaceAll(strings.TrimSpace(text), "\n", " "),
		"PEM, line ends as tabs (nginx)":          strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n\t"),
		"PEM, escaped (nginx)":                    escaped,
		"PEM, escaped but for the base64 (Envoy)": strings.NewReplacer(" ", "%20", "\n", "%0A", "=", "%3D").Replace(text),
		"PEM, form-encoded (Java)":                url.QueryEscape(text),
		"base64 of DER (HAProxy)":                 std(c.Raw),
		"base64 without padding":                  base64.RawStdEncoding.EncodeToString(c.Raw),
		"base64url":                               base64.URLEncoding.EncodeToString(c.Raw),
		"base64, escaped (Traefik)":               url.QueryEscape(std(c.Raw)),
		"base64 of PEM (WSO2)":                    std([]byte(text)),
		"RFC 9440":                                ":" + std(c.Raw) + ":",
		"Envoy":                                   `By=spiffe://a/b;Hash=0a1b;Cert="` + escaped + `";Subject="CN=own,O=\"A; B, C\"";URI=spiffe://x`,
		"Envoy, small letters":                    `cert="` + escaped + `"`,
		"Envoy, no quotes":                        `Hash=0a1b;Cert=` + escaped,
	}
}

func TestParseHeader(t *testing.T) {
	ca := issue("ca", nil, asCA)
	leaf := issue("leaf", ca, nil)
	for name, value := range headerForms(leaf) {
		t.Run(name, func(t *testing.T) {
			got, chain, err := ParseHeader(value)
			if err != nil || !bytes.Equal(got, leaf.Raw) || len(chain) != 0 {
				t.Errorf("%d bytes, chain of %d, %v", len(got), len(chain), err)
			}
		})
	}
	both := pemOf(leaf, ca)
	esc := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	b64 := base64.StdEncoding.EncodeToString
	for name, value := range map[string]string{
		"PEM":                                both,
		"PEM, escaped":                       esc(both),
		"base64 with commas":                 b64(leaf.Raw) + "," + b64(ca.Raw),
		"base64 of PEM":                      b64([]byte(both)),
		"Envoy, chain alone":                 `Hash=1;Chain="` + esc(both) + `"`,
		"Envoy, both":                        `Cert="` + esc(pemOf(leaf)) + `";Chain="` + esc(both) + `"`,
		"Envoy, chain without the leaf":      `Cert="` + esc(pemOf(leaf)) + `";Chain="` + esc(pemOf(ca)) + `"`,
		"Envoy, the last of several counts":  `Cert="` + esc(pemOf(ca)) + `";Hash=1,By=x;Cert="` + esc(both) + `"`,
		"Envoy, blanks after the separators": `Hash=1; Cert="` + esc(pemOf(leaf)) + `"; Chain="` + esc(both) + `"`,
	} {
		t.Run("chain: "+name, func(t *testing.T) {
			got, chain, err := ParseHeader(value)
			if err != nil || !bytes.Equal(got, leaf.Raw) || len(chain) != 1 || !bytes.Equal(chain[0], ca.Raw) {
				t.Errorf("%d bytes, chain of %d, %v", len(got), len(chain), err)
			}
		})
	}
}

func TestWrongHeaders(t *testing.T) {
	leaf := issue("leaf", nil, nil)
	text := pemOf(leaf)
	b64 := base64.StdEncoding.EncodeToString(leaf.Raw)
	esc := url.PathEscape(text)
	for name, tt := range map[string]struct {
		value string
		want  error
	}{
		"empty":                         {"", errNone},
		"blanks":                        {"  ", errNone},
		"NULL, as nginx may send":       {"(null)", errBase64},
		"too long":                      {strings.Repeat("A", maxHeader+1), errTooLong},
		"text":                          {"hello! this is no certificate", errBase64},
		"base64 of text":                {base64.StdEncoding.EncodeToString([]byte("hello world")), errDER},
		"DER cut":                       {base64.StdEncoding.EncodeToString(leaf.Raw[:100]), errDER},
		"DER with something after":      {base64.StdEncoding.EncodeToString(append(bytes.Clone(leaf.Raw), 0)), errDER},
		"empty sequence":                {"MAA=", errDER},
		"private key":                   {"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----", errBase64},
		"PEM without an end":            {begin + "\nMAA=", errForm},
		"text before":                   {"x" + text, errForm},
		"text after":                    {text + "x", errForm},
		"broken escape":                 {"%zz" + b64, errEncoding},
		"too many":                      {strings.Repeat(text, MaxCertificates+1), errTooMany},
		"comma at the end":              {b64 + ",", errBase64},
		"Envoy without one":             {"By=spiffe://a;Hash=0a", errNone},
		"Envoy, last without one":       {`Cert="` + esc + `",By=spiffe://a;Hash=0a`, errNone},
		"Envoy, quote not closed":       {`Cert="` + esc, errQuotes},
		"Envoy, text after the quote":   {`Cert="` + esc + `"x`, errQuotes},
		"Envoy, twice":                  {`Cert="` + esc + `";Cert="` + esc + `"`, errForm},
		"Envoy, nothing after a comma":  {`Cert="` + esc + `",`, errForm},
		"Envoy, no value":               {`Cert=`, errBase64},
		"Envoy, in the subject only":    {`Subject="Cert=x";Hash=1`, errNone},
		"Envoy, quoted comma no second": {`Subject="a,Cert=b"`, errNone},
	} {
		t.Run(name, func(t *testing.T) {
			leaf, chain, err := ParseHeader(tt.value)
			if err != tt.want || leaf != nil || chain != nil { //nolint:errorlint // the very error
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

// FuzzParseHeader: what is read once is read the same in its other forms.
func FuzzParseHeader(f *testing.F) {
	ca := issue("ca", nil, asCA)
	for _, value := range headerForms(issue("leaf", ca, nil)) {
		f.Add(value)
	}
	f.Add("MAMCAQE=")
	f.Add("-----BEGIN CERTIFICATE-----MAMCAQE=-----END CERTIFICATE-----")
	f.Add(`By=a;Cert="MAMCAQE%3D",Cert="MAMCAQI%3D";Chain="MAMCAQI%3D,MAMCAQM%3D"`)
	f.Fuzz(func(t *testing.T, value string) {
		leaf, chain, err := ParseHeader(value)
		if err != nil {
			if leaf != nil || chain != nil {
				t.Fatal("something beside an error")
			}
			return
		}
		if len(leaf) == 0 || leaf[0] != 0x30 || len(chain) >= MaxCertificates {
			t.Fatalf("leaf of %d bytes, chain of %d", len(leaf), len(chain))
		}
		texts := []string{base64.StdEncoding.EncodeToString(leaf)}
		for _, c := range chain {
			texts = append(texts, base64.StdEncoding.EncodeToString(c))
		}
		for _, form := range []string{
			strings.Join(texts, ","), url.QueryEscape(strings.Join(texts, ",")), `Chain="` + strings.Join(texts, ",") + `"`,
			begin + "\n" + strings.Join(texts, "\n"+end+"\n"+begin+"\n") + "\n" + end,
		} {
			again, more, err := ParseHeader(form)
			if len(form) > maxHeader {
				continue
			}
			if err != nil || !bytes.Equal(again, leaf) || len(more) != len(chain) {
				t.Fatalf("as %.60q: %v", form, err)
			}
			for i := range more {
				if !bytes.Equal(more[i], chain[i]) {
					t.Fatal("another chain")
				}
			}
		}
	})
}
