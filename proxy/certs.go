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

	// ask says whether clients are asked for a certificate because somebody may want to see it.
	ask func() bool

	mu      sync.Mutex
	checked time.Time
	seen    [3]time.Time
	current pair
}

// pair is a configuration, and the same for when any certificate is welcome.
type pair struct{ plain, asking *tls.Config }

func (c *certificates) choose(p pair) *tls.Config {
	if c.ask() {
		return p.asking
	}
	return p.plain
}

// recheck is how often the files are looked at, at most.
const recheck = time.Second

func newCertificates(cert, key, ca, min string, ask func() bool, log zerolog.Logger) (*certificates, error) {
	c := &certificates{cert: cert, key: key, ca: ca, ask: ask, log: log}
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

// config is for the listener: each handshake gets the configuration in force. Session tickets are made by these two and not
// by what they lead to, so each has its own: a session without a certificate must not be resumed where one is asked for.
func (c *certificates) config() pair {
	of := func(current func() *tls.Config) *tls.Config {
		return &tls.Config{
			MinVersion: c.min, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current(), nil },
			NextProtos: []string{"h2", "http/1.1"},
		}
	}
	return pair{of(func() *tls.Config { return c.get().plain }), of(func() *tls.Config { return c.get().asking })}
}

func (c *certificates) get() pair {
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

func (c *certificates) load() (loaded pair, err error) {
	own, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return loaded, fmt.Errorf("reading cert_file %s and key_file %s: %w", c.cert, c.key, err)
	}
	t := &tls.Config{MinVersion: c.min, Certificates: []tls.Certificate{own}, NextProtos: []string{"h2", "http/1.1"}}
	// No authorities are named to the client: APIs have certificates of their own, which it would hold back then.
	asking := t.Clone()
	asking.ClientAuth = tls.RequestClientCert
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return loaded, fmt.Errorf("reading client_ca_file: %w", err)
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return loaded, fmt.Errorf("client_ca_file %s holds no certificate in PEM", c.ca)
		}
		t.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return pair{t, asking}, nil
}
