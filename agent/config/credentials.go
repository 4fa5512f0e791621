package config

import (
	"fmt"
	"strings"
)

// checkCredentials holds the rules for issuers of API keys and for client certificates.
func (d *decoder) checkCredentials(c *Config) {
	seen := map[[2]string]bool{}
	for i, issuer := range c.Gateway.APIKeyIssuers {
		at := fmt.Sprintf("gateway.api_key_issuer[%d]", i)
		name := [2]string{issuer.Name, issuer.Kind}
		if seen[name] && issuer.Name != "" {
			d.report(at+".name", &problem{"an issuer of this kind that stands above already", "merge the two sections"})
		}
		seen[name] = true
		switch {
		case issuer.CertificateFile == "" && issuer.JWKSURL == "":
			d.report(at, &problem{"an issuer without keys to verify its API keys", "write certificate_file or jwks_url"}, at+".certificate_file", at+".jwks_url")
		case issuer.CertificateFile != "" && issuer.JWKSURL != "":
			d.report(at+".jwks_url", &problem{"a second source of keys beside certificate_file", "write one of the two"}, at+".certificate_file")
		}
	}
	apis := map[[2]string]bool{}
	for i, api := range c.APIMgt.MutualSSL.APIs {
		at := fmt.Sprintf("apimgt.mutual_ssl.api[%d]", i)
		key := [2]string{strings.ToLower(api.Name), strings.ToLower(api.Version)}
		if apis[key] && api.Name != "" {
			d.report(at+".name", &problem{"an API that stands above already", "write all certificate_files in one section, or one section for each tier under names of their own"}, at+".version")
		}
		apis[key] = true
		if len(api.CertificateFiles) == 0 && d.source.Written(at+".certificate_files") {
			d.report(at+".certificate_files", &problem{"no certificate at all, so that nobody is let in", `write one such as ["client.pem"]`})
		}
	}
}
