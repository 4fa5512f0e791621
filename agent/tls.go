package agent

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/config"
)

// peers are the servers that a section of the configuration dials, and how they are verified: by the system's authorities
// and those of the section's ca_file, unless the section says otherwise. The file may change while the gateway runs.
type peers struct {
	section string
	file    config.Path
	skip    bool
	pool    atomic.Pointer[x509.CertPool]

	mu         sync.Mutex
	transports []*transport
}

// newPeers reads the section's ca_file. A section that verifies nothing is logged.
func newPeers(log zerolog.Logger, section string, caFile config.Path, skipVerify bool) (*peers, error) {
	if skipVerify {
		log.Warn().Str("section", section).Msg("the certificates of this section's servers are not verified: skip_ssl_verification is true")
	}
	p := &peers{section: section, file: caFile, skip: skipVerify}
	return p, p.load()
}

// load reads the ca_file. New connections are verified with what it holds; an error leaves what it held before.
func (p *peers) load() error {
	if p.file == "" {
		return nil
	}
	pem, err := os.ReadFile(string(p.file))
	if err != nil {
		return &keyError{p.section + ".ca_file", fmt.Errorf("read the authorities: %w", err)}
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return &keyError{p.section + ".ca_file", fmt.Errorf("no certificate in %s: write PEM blocks of type CERTIFICATE", p.file)}
	}
	p.pool.Store(pool)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.renew()
	}
	return nil
}

// roots returns the authorities of now; nil: the system's.
func (p *peers) roots() *x509.CertPool { return p.pool.Load() }

// config returns the TLS settings of now.
func (p *peers) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: p.roots(), InsecureSkipVerify: p.skip, //nolint:gosec // written in the configuration, and logged
	}
}

// transport returns a transport to the servers, which follows the ca_file.
func (p *peers) transport(idlePerHost int) *transport {
	t := &transport{peers: p, idlePerHost: idlePerHost}
	p.mu.Lock()
	defer p.mu.Unlock()
	t.renew()
	p.transports = append(p.transports, t)
	return t
}

// transport is an http.Transport that is replaced when the authorities change; requests under way stay on the old one.
type transport struct {
	peers       *peers
	idlePerHost int
	now         atomic.Pointer[http.Transport]
}

func (t *transport) renew() {
	next := http.DefaultTransport.(*http.Transport).Clone()
	next.TLSClientConfig = t.peers.config()
	next.MaxIdleConnsPerHost = t.idlePerHost
	next.IdleConnTimeout = 30 * time.Second
	next.MaxResponseHeaderBytes = 64 << 10
	if old := t.now.Swap(next); old != nil {
		old.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.now.Load().RoundTrip(r)
}

// CloseIdleConnections is what http.Client looks for.
func (t *transport) CloseIdleConnections() { t.now.Load().CloseIdleConnections() }

// keyError is a fault that shows only when a part is built; it names the key, for the place in the file to be found.
type keyError struct {
	key string
	err error
}

func (e *keyError) Error() string { return e.key + ": " + e.err.Error() }
func (e *keyError) Unwrap() error { return e.err }

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
