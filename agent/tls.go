package agent

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/config"
)

// clientTLS returns the TLS settings of a section that dials: the system's authorities, those of the section's ca_file
// besides, and verification unless the section says otherwise, which is logged.
func clientTLS(log zerolog.Logger, section string, caFile config.Path, skipVerify bool) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if skipVerify {
		log.Warn().Str("section", section).Msg("the certificates of this section's servers are not verified: skip_ssl_verification is true")
		c.InsecureSkipVerify = true // written in the configuration, and logged
	}
	if caFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(string(caFile))
	if err != nil {
		return nil, fmt.Errorf("read the authorities of %s.ca_file: %w", section, err)
	}
	if c.RootCAs, err = x509.SystemCertPool(); err != nil {
		c.RootCAs = x509.NewCertPool()
	}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the authorities of %s.ca_file: no certificate in %s: write PEM blocks of type CERTIFICATE", section, caFile)
	}
	return c, nil
}

// serverTLS returns the TLS settings of the admin server. Certificate and key are read again when either file changed, so
// that renewing them needs no restart; a pair that cannot be read leaves the one in use.
func serverTLS(cfg config.Admin) (*tls.Config, error) {
	pair := &certificate{certFile: string(cfg.CertFile), keyFile: string(cfg.KeyFile)}
	if err := pair.load(); err != nil {
		return nil, fmt.Errorf("read the certificate of [admin]: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get}, nil
}

// certificate is a certificate with its key, kept in step with its files.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]time.Time
	checked time.Time
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return err
	}
	c.current = &pair
	c.stamp = [2]time.Time{modified(c.certFile), modified(c.keyFile)}
	c.checked = time.Now()
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) > time.Second {
		c.checked = now
		if stamp := [2]time.Time{modified(c.certFile), modified(c.keyFile)}; stamp != c.stamp {
			_ = c.load()
		}
	}
	return c.current, nil
}

func modified(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
