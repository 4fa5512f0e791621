package agent

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"gatehouse/agent/config"
	"gatehouse/keymanager"
	"gatehouse/keymanager/mtls"
	"gatehouse/proxy"
	"gatehouse/proxy/definition"
)

// clientCertificates bring together what APIs admit: by their definitions, and by the configuration for those whose
// definitions name no certificates.
type clientCertificates struct {
	set *mtls.Set

	mu         sync.Mutex
	defs       []*definition.API
	configured map[nameVersion][]keymanager.ClientCertificate
	// faults are those that were logged, by API: each once, until it changes.
	faults map[string]string
}

// nameVersion is an API as the configuration names it, in lower case.
type nameVersion struct{ name, version string }

func (a *Agent) buildCertificates() error {
	a.certificates = &clientCertificates{set: mtls.New(nil)}
	if err := a.setCertificateFiles(a.cfg); err != nil {
		return err
	}
	return a.setClientAuthorities(a.cfg)
}

// setCertificateFiles reads the certificates that the configuration names. An error changes nothing.
func (a *Agent) setCertificateFiles(cfg *config.Config) error {
	configured := make(map[nameVersion][]keymanager.ClientCertificate)
	for i, api := range cfg.APIMgt.MutualSSL.APIs {
		key := nameVersion{strings.ToLower(api.Name), strings.ToLower(api.Version)}
		for k, file := range api.CertificateFiles {
			at := fmt.Sprintf("apimgt.mutual_ssl.api[%d].certificate_files[%d]", i, k)
			text, err := os.ReadFile(string(file))
			if err != nil {
				return &keyError{at, err}
			}
			if _, err := mtls.ParsePEM(string(text)); err != nil {
				return &keyError{at, fmt.Errorf("%s: %w", file, err)}
			}
			configured[key] = append(configured[key], keymanager.ClientCertificate{Alias: string(file), Tier: api.Tier, PEM: string(text)})
		}
	}
	c := a.certificates
	c.mu.Lock()
	defer c.mu.Unlock()
	c.configured = configured
	a.admitCertificates()
	return nil
}

// setClientAuthorities reads who may sign certificates for APIs that name none. An error changes nothing.
func (a *Agent) setClientAuthorities(cfg *config.Config) error {
	file := cfg.Listener.ClientCAFile
	if file == "" || !cfg.APIMgt.MutualSSL.EnableClientValidation {
		return a.certificates.set.SetAuthorities("")
	}
	text, err := os.ReadFile(string(file))
	if err == nil {
		err = a.certificates.set.SetAuthorities(string(text))
	}
	if err != nil {
		return &keyError{"listener.client_ca_file", err}
	}
	return nil
}

// setDefinitions makes the certificates of the definitions those that are admitted.
func (a *Agent) setDefinitions(defs []*definition.API) {
	c := a.certificates
	c.mu.Lock()
	defer c.mu.Unlock()
	c.defs = defs
	a.admitCertificates()
}

// admitCertificates puts definitions and configuration together; the lock is held.
func (a *Agent) admitCertificates() {
	c := a.certificates
	apis := make(map[string][]keymanager.ClientCertificate)
	names := make(map[string]*definition.API)
	for _, d := range c.defs {
		list := make([]keymanager.ClientCertificate, 0, len(d.ClientCertificates))
		for _, cert := range d.ClientCertificates {
			list = append(list, keymanager.ClientCertificate(cert))
		}
		if len(list) == 0 {
			list = c.configured[nameVersion{strings.ToLower(d.Name), strings.ToLower(d.Version)}]
		}
		if len(list) > 0 {
			key := certificateKey(d)
			apis[key], names[key] = list, d
		}
	}
	faults := c.set.Replace(apis)
	log := a.part("certificates")
	told := make(map[string]string, len(faults))
	for key, err := range faults {
		if told[key] = err.Error(); c.faults[key] != told[key] {
			log.Error().Err(err).Str("api", names[key].Name).Str("version", names[key].Version).
				Msg("client certificates of an API cannot be read, and admit nobody; put them right and deploy it again")
		}
	}
	c.faults = told
}

// certificateKey names an API as the stages do: by its UUID, or its context and version where it has none.
func certificateKey(d *definition.API) string {
	if d.UUID != "" {
		return d.UUID
	}
	return d.Context + ":" + d.Version
}

// reloadCertificates takes over changed certificates and authorities of clients.
func (a *Agent) reloadCertificates(r config.Reloaded) {
	if err := a.setCertificateFiles(r.New); err != nil {
		stays(a.part("config"), r, err, "the client certificates of the configuration stay as they were")
	}
	if err := a.setClientAuthorities(r.New); err != nil {
		stays(a.part("config"), r, err, "the authorities of clients stay as they were")
	}
}

// proxyCredentials tells the proxy who judges credentials other than access tokens.
func (a *Agent) proxyCredentials(o *proxy.Options) {
	o.Domains.APIKeys, o.Domains.Users, o.Domains.Certificates = a.apiKeys, a.users, a.certificates.set
	o.Domains.ScopesForAPIKeys = a.cfg.Gateway.ScopesForAPIKeys
	o.CertificateHeader = a.cfg.APIMgt.MutualSSL.CertificateHeader
	o.ParseCertificateHeader = mtls.ParseHeader
}
