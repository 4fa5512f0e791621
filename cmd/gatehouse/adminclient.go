package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// adminFlags say how a command reaches the admin server of a running gateway. Passwords and tokens come from files or the
// environment, never from the command line, where every user of the machine can read them.
type adminFlags struct {
	address, username, passwordFile, tokenFile, caFile string
}

// The environment variables that stand in for the flags.
const (
	envAdminUsername = "GATEHOUSE_ADMIN_USERNAME"
	envAdminPassword = "GATEHOUSE_ADMIN_PASSWORD"
	envAdminToken    = "GATEHOUSE_ADMIN_TOKEN"
)

// adminHelp is what a command that speaks to the admin server adds to its help text.
const adminHelp = `An admin server that asks for credentials gets them from --username and --password-file or from --token-file, or else from the
environment: ` + envAdminUsername + ` and ` + envAdminPassword + `, or ` + envAdminToken + `.`

// register adds the flags; a command whose other flags dial TLS too shares --ca-file with them.
func (f *adminFlags) register(cmd *cobra.Command, address string) {
	flags := cmd.Flags()
	flags.StringVar(&f.address, "admin", address, "admin server of the gateway: host:port, or its http:// or https:// address")
	flags.StringVar(&f.username, "username", "", "user of the admin server")
	flags.StringVar(&f.passwordFile, "password-file", "", "file that holds the password of the admin server's user")
	flags.StringVar(&f.tokenFile, "token-file", "", "file that holds the token of the admin server")
	flags.StringVar(&f.caFile, "ca-file", "", "PEM file of the authorities that servers are verified with, beside the system's")
}

// adminClient speaks to the admin server of a gateway.
type adminClient struct {
	base                      string
	username, password, token string
	http                      *http.Client
}

// client reads the flags and what they name. Its errors are errors of usage.
func (f *adminFlags) client(lookupEnv func(string) (string, bool)) (*adminClient, error) {
	env := func(name string) string { v, _ := lookupEnv(name); return v }
	c := &adminClient{username: cmp.Or(f.username, env(envAdminUsername)), password: env(envAdminPassword), token: env(envAdminToken)}
	for _, s := range []struct {
		path string
		to   *string
	}{{f.passwordFile, &c.password}, {f.tokenFile, &c.token}} {
		if s.path == "" {
			continue
		}
		text, err := readSmall(s.path)
		if err != nil {
			return nil, err
		}
		if *s.to = strings.TrimRight(string(text), "\r\n"); *s.to == "" {
			return nil, fmt.Errorf("%s is empty", s.path)
		}
	}
	if (c.username == "") != (c.password == "") {
		return nil, errors.New("half of a credential: a user of the admin server needs both --username and --password-file (or " + envAdminUsername + " and " + envAdminPassword + ")")
	}
	base, err := adminURL(f.address, f.caFile != "")
	if err != nil {
		return nil, err
	}
	c.base = base
	roots, err := rootsWith(f.caFile)
	if err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Timeout:       30 * time.Second,
		Transport:     &http.Transport{Proxy: nil, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// adminURL completes the address of an admin server.
func adminURL(address string, secure bool) (string, error) {
	text := address
	if !strings.Contains(text, "://") {
		text = "http://" + text
		if secure {
			text = "https" + text[len("http"):]
		}
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("--admin %q: write host:port, such as 127.0.0.1:9096, or an http:// or https:// address without a user", address)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// exposed says that the credentials would cross a network unprotected.
func (c *adminClient) exposed() bool {
	u, err := url.Parse(c.base)
	if err != nil || u.Scheme == "https" || c.password == "" && c.token == "" || u.Hostname() == "localhost" {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err != nil || !addr.IsLoopback()
}

// do sends a request with a JSON body (nil: none) and decodes the answer. The error says what was asked and what to do.
func (c *adminClient) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	switch {
	case c.token != "":
		r.Header.Set("Authorization", "Bearer "+c.token)
	case c.password != "":
		r.SetBasicAuth(c.username, c.password)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		if _, refused := errors.AsType[*net.OpError](err); refused {
			return fmt.Errorf("ask the gateway at %s: %w; is it running, and is this the address of its [admin]?", c.base, err)
		}
		return fmt.Errorf("ask the gateway at %s: %w", c.base, err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("read the answer of the gateway at %s: %w", c.base, err)
	}
	if answer.StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("the admin server at %s does not take these credentials: give --username and --password-file, or --token-file, as [admin] of its configuration has them", c.base)
	}
	if answer.StatusCode/100 != 2 {
		var said struct {
			Error struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		if json.Unmarshal(text, &said) == nil && said.Error.Message != "" {
			return fmt.Errorf("the admin server at %s answers %s: %s", c.base, answer.Status, said.Error.Message)
		}
		return fmt.Errorf("the server at %s answers %s to %s %s: is this the address of a gateway's [admin]?", c.base, answer.Status, method, path)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("the server at %s does not answer as a gateway's admin server does: %w", c.base, err)
	}
	return nil
}

// rootsWith returns the system's authorities with those of a file; nil, the system's, where no file is named.
func rootsWith(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate: name a file with PEM blocks of type CERTIFICATE", file)
	}
	return pool, nil
}

// readSmall reads a file that a flag names, at most a MiB of it.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it is only read
	text, err := io.ReadAll(io.LimitReader(f, 1<<20+1))
	if err != nil {
		return nil, err
	}
	if len(text) > 1<<20 {
		return nil, fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return text, nil
}
