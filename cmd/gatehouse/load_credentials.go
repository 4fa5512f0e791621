package main

import (
	"fmt"
	"os"

	"gatehouse/agent/config"
	"gatehouse/keymanager/basic"
	"gatehouse/keymanager/jwks"
	"gatehouse/keymanager/mtls"
)

// credentialFaults has password hashes, keys of API keys and client certificates read by those who will use them.
func credentialFaults(cfg *config.Config, source *config.Source) config.Faults {
	var faults config.Faults
	report := func(key, value string, err error) {
		fault := source.Fault(key, err)
		fault.Value = value
		faults = append(faults, fault)
	}
	for i, u := range cfg.Gateway.Users {
		if _, err := basic.ParseHash(u.PasswordHash.Reveal()); err != nil {
			report(fmt.Sprintf("gateway.user[%d].password_hash", i), u.PasswordHash.String(), err)
		}
	}
	file := func(key string, path config.Path, parse func(string) error) {
		if path == "" {
			return
		}
		text, err := os.ReadFile(string(path))
		if err == nil {
			err = parse(string(text))
		}
		if err != nil {
			report(key, fmt.Sprintf("%q", string(path)), err)
		}
	}
	keys := func(text string) error { _, err := jwks.ParsePEM(text); return err }
	certificates := func(text string) error { _, err := mtls.ParsePEM(text); return err }
	for i, issuer := range cfg.Gateway.APIKeyIssuers {
		file(fmt.Sprintf("gateway.api_key_issuer[%d].certificate_file", i), issuer.CertificateFile, keys)
	}
	for i, api := range cfg.APIMgt.MutualSSL.APIs {
		for k, path := range api.CertificateFiles {
			file(fmt.Sprintf("apimgt.mutual_ssl.api[%d].certificate_files[%d]", i, k), path, certificates)
		}
	}
	return faults
}
