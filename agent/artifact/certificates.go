package artifact

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"path"
	"slices"
	"strings"

	"gatehouse/proxy/definition"
)

// beside lists the files in the folder of a file, by their names.
func beside(files map[string][]byte, file string) map[string]string {
	out := make(map[string]string)
	for f := range files {
		if path.Dir(f) == path.Dir(file) {
			out[path.Base(f)] = f
		}
	}
	return out
}

// certificates reads client_certificates.yaml and the certificates that it names. One that cannot be read is a fault of
// this API alone: without it callers would be refused who were promised to be let in.
func (b *builder) certificates() {
	for _, it := range b.clients.items() {
		if !it.isMap() {
			it.fault("write {alias, certificate, tierName}", "is no certificate")
			continue
		}
		c := definition.ClientCertificate{Alias: it.get("alias").text(), Tier: it.get("tierName", "tier").text()}
		if c.Alias == "" {
			it.missing("alias", "write the name of the certificate", "the certificate has no alias")
			continue
		}
		from := it.get("certificate")
		switch {
		case !from.exists():
			it.missing("certificate", "write the name of its file", "the certificate of %s is not named", c.Alias)
			continue
		case strings.Contains(from.text(), "-----BEGIN"):
			if problem := wrongPEM([]byte(from.text())); problem != "" {
				from.ofKey().fault(wantPEM, "%s", problem)
				continue
			}
			c.PEM = from.text()
		default:
			file, there := b.clientFiles[path.Base(from.text())]
			if !there {
				from.fault("put the file beside client_certificates.yaml, as .crt, .pem or .cer", "names a file that the project does not hold")
				continue
			}
			if problem := wrongPEM(b.files[file]); problem != "" {
				b.report.add(Fault{File: b.where(file), Problem: problem, Want: wantPEM})
				continue
			}
			c.PEM = string(b.files[file])
		}
		if slices.ContainsFunc(b.api.ClientCertificates, func(o definition.ClientCertificate) bool { return o.Alias == c.Alias }) {
			it.get("alias").fault("give each certificate a name of its own", "is there twice")
			continue
		}
		b.api.ClientCertificates = append(b.api.ClientCertificates, c)
	}
	if len(b.api.ClientCertificates) > 0 {
		return
	}
	for i := range b.api.Operations {
		if alternatives := b.api.Operations[i].Security; len(alternatives) > 0 &&
			!slices.ContainsFunc(alternatives, func(alt []definition.Credential) bool { return !slices.Contains(alt, definition.MutualTLS) }) {
			b.report.note("some operations ask for a client certificate, and the project admits none: only those of the gateway's configuration are let in")
			return
		}
	}
}

const wantPEM = "write one or more certificates as -----BEGIN CERTIFICATE-----"

// wrongPEM says what is wrong with the text of certificates, "" when nothing is.
func wrongPEM(text []byte) string {
	n := 0
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 {
				return "holds no certificate in PEM"
			}
			if len(bytes.TrimSpace(rest)) > 0 && bytes.Contains(rest, []byte("-----BEGIN")) {
				return "holds a certificate in PEM that is cut off or damaged"
			}
			return ""
		}
		if block.Type != "CERTIFICATE" {
			return "holds a " + strings.ToLower(short(block.Type)) + " where a certificate is expected"
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "holds a certificate that cannot be read: " + strings.TrimPrefix(err.Error(), "x509: ")
		}
		n++
	}
}
