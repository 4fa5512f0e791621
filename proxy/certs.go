package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// certificates keeps the TLS configuration of the listener and reads its files again when they change. A change that
// cannot be used leaves the old one in force and is logged once.
type certificates struct {
	cert, key, ca string
	min           uint16
	log           zerolog.Logger

	mu      sync.Mutex
	checked time.Time
	seen    [3]time.Time
	current *tls.Config
}

// recheck is how often the files are looked at, at most.
const recheck = time.Second

func newCertificates(cert, key, ca, min string, log zerolog.Logger) (*certificates, error) {
	c := &certificates{cert: cert, key: key, ca: ca, log: log}
	switch min {
	case "", "1.2":
		c.min = tls.VersionTLS12
	case "1.3":
		c.min = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("tls_min_version %q must be 1.2 or 1.3", min)
	}
	c.seen = c.stamps()
	var err error
	c.current, err = c.load()
	c.checked = time.Now()
	return c, err
}

// config is for the listener: each handshake gets the configuration in force.
func (c *certificates) config() *tls.Config {
	return &tls.Config{
		MinVersion: c.min, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.get(), nil },
		NextProtos: []string{"h2", "http/1.1"},
	}
}

func (c *certificates) get() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.checked) < recheck {
		return c.current
	}
	c.checked = now
	seen := c.stamps()
	if seen == c.seen {
		return c.current
	}
	c.seen = seen
	next, err := c.load()
	if err != nil {
		c.log.Error().Err(err).Msg("the changed TLS files cannot be used, the old ones stay in force")
		return c.current
	}
	c.log.Info().Str("cert_file", c.cert).Msg("TLS files changed and are in force")
	c.current = next
	return next
}

func (c *certificates) stamps() (s [3]time.Time) {
	for i, f := range []string{c.cert, c.key, c.ca} {
		if f == "" {
			continue
		}
		if st, err := os.Stat(f); err == nil {
			s[i] = st.ModTime()
		}
	}
	return s
}

func (c *certificates) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("reading cert_file %s and key_file %s: %w", c.cert, c.key, err)
	}
	t := &tls.Config{MinVersion: c.min, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, fmt.Errorf("reading client_ca_file: %w", err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("client_ca_file %s holds no certificate in PEM", c.ca)
		}
		t.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return t, nil
}
