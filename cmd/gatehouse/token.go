package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"gatehouse/keymanager"
	"gatehouse/keymanager/jwks"
	"gatehouse/keymanager/jwt"
	"gatehouse/keymanager/registry"
)

// maxToken is the longest text that is read as a token. The gateway refuses longer ones long before.
const maxToken = 1 << 20

const tokenHelp = `A token on the command line stays in the history of the shell and is seen by every user of the machine: write "-" and give it on
standard input. "Authorization: Bearer " or "Bearer " before it, and blanks around it, are taken off.`

func newTokenCommand(streams ioStreams) *cobra.Command {
	command := &cobra.Command{
		Use:   "token",
		Short: "Decode a token, or verify it and name the check that fails",
		Long:  "Decodes a token (inspect), or makes the checks that the gateway makes and names the one that fails (verify).\n\n" + tokenHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(fmt.Errorf("unknown command \"token %s\"; write token inspect or token verify", args[0]))
			}
			return nil
		},
	}
	command.RunE = func(cmd *cobra.Command, _ []string) error {
		fmt.Fprint(streams.Err, cmd.UsageString())
		return usageError(nil)
	}
	command.AddCommand(newInspectCommand(streams), newVerifyCommand(streams))
	return command
}

// oneToken reads the token that the argument is or, as "-", that stands on standard input.
func oneToken(streams ioStreams, args []string) (string, error) {
	if len(args) != 1 {
		return "", usageError(errors.New(`give one token, or "-" for standard input`))
	}
	text := args[0]
	if text == "-" {
		b, err := io.ReadAll(io.LimitReader(streams.In, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("read the token from standard input: %w", err)
		}
		text = string(b)
	}
	if len(text) > maxToken {
		return "", usageError(fmt.Errorf("more than %d bytes: this is no token", maxToken))
	}
	text = strings.TrimSpace(text)
	if name, rest, ok := strings.Cut(text, ":"); ok && strings.EqualFold(name, "Authorization") {
		text = strings.TrimSpace(rest)
	}
	if scheme, rest, ok := strings.Cut(text, " "); ok && strings.EqualFold(scheme, "Bearer") {
		text = strings.TrimSpace(rest)
	}
	if text == "" {
		return "", usageError(errors.New("the token is empty"))
	}
	return text, nil
}

// verdictOnToken is the result of token verify.
type verdictOnToken struct {
	Valid      bool             `json:"valid"`
	Failed     keymanager.Check `json:"failed,omitempty"`
	Detail     string           `json:"detail,omitempty"`
	KeyManager string           `json:"key_manager,omitempty"`
	Issuer     string           `json:"issuer,omitempty"`
	// SignatureOnly says that nothing behind the signature was judged.
	SignatureOnly bool           `json:"signature_only,omitempty"`
	Claims        map[string]any `json:"claims,omitempty"`
}

type verifyFlags struct {
	admin            adminFlags
	jwks, pem        string
	issuer, audience string
	signatureOnly    bool
	now              func() time.Time
	lookupEnv        func(string) (string, bool)
}

func newVerifyCommand(streams ioStreams) *cobra.Command {
	f := &verifyFlags{now: time.Now, lookupEnv: os.LookupEnv}
	command := &cobra.Command{
		Use:   "verify (--jwks FILE|URL | --pem FILE | --admin ADDRESS) [--issuer I] [--audience A] [--signature-only] [--ca-file F] [--output json] TOKEN|-",
		Short: "Verify a token against a key set, a certificate or a running gateway, naming the check that fails",
		Long: `Makes the checks of the gateway on a token, in its order and with its words: form, issuer, algorithm, key, signature, times,
audience. The keys are those of a JWKS (a file or a URL), of a PEM file with certificates or public keys, or those of a running
gateway, which also knows what was revoked and asks key managers about opaque tokens.

--issuer is what the token's iss must be; without it whatever the token says is taken. --audience is one of the values that aud
must hold. With --admin both are looked at after the gateway's own checks. --signature-only judges nothing behind the signature:
no times, no audience, no revocation.

Exit status: 0 the token is good, 1 it is not or could not be verified, 2 wrong usage.

` + tokenHelp + "\n\n" + adminHelp,
		Example: "  pbpaste | gatehouse token verify --jwks https://keycloak.example.com/realms/shop/protocol/openid-connect/certs -\n" +
			"  gatehouse token verify --pem issuer.pem --issuer https://idp.example.com --audience orders - < token.txt\n" +
			"  gatehouse token verify --admin 127.0.0.1:9096 - < token.txt",
	}
	flags := command.Flags()
	flags.StringVar(&f.jwks, "jwks", "", "key set: a file, or an http:// or https:// URL")
	flags.StringVar(&f.pem, "pem", "", "PEM file with certificates or public keys")
	flags.StringVar(&f.issuer, "issuer", "", "what the claim iss must be, letter for letter")
	flags.StringVar(&f.audience, "audience", "", "what the claim aud must hold")
	flags.BoolVar(&f.signatureOnly, "signature-only", false, "judge nothing behind the signature")
	f.admin.register(command, "")
	output := outputFlag(command)
	command.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return usageError(err)
		}
		token, err := oneToken(streams, args)
		if err != nil {
			return err
		}
		v, err := f.verify(cmd.Context(), streams.Err, token)
		if err != nil {
			return err
		}
		if *output == "json" {
			err = printJSON(streams.Out, v)
		} else {
			err = v.print(streams.Out, f.now())
		}
		if err != nil {
			return err
		}
		if !v.Valid {
			return failedError(nil)
		}
		return nil
	}
	return command
}

// check says what of the flags does not go together.
func (f *verifyFlags) check() error {
	given := 0
	for _, s := range []string{f.jwks, f.pem, f.admin.address} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return errors.New("say whose keys: give one of --jwks, --pem and --admin")
	case f.admin.address == "" && (f.admin.username != "" || f.admin.passwordFile != "" || f.admin.tokenFile != ""):
		return errors.New("--username, --password-file and --token-file go with --admin")
	case f.signatureOnly && (f.issuer != "" || f.audience != ""):
		return errors.New("--signature-only judges neither --issuer nor --audience: leave one or the other out")
	}
	return nil
}

// behindSignature are the checks that come once the signature has been found good.
var behindSignature = []keymanager.Check{
	keymanager.CheckExpired, keymanager.CheckNotBefore, keymanager.CheckIssuedAt, keymanager.CheckAudience, keymanager.CheckRevoked, keymanager.CheckBound,
	keymanager.CheckKind,
}

func (f *verifyFlags) verify(ctx context.Context, stderr io.Writer, token string) (*verdictOnToken, error) {
	ask := f.verifyHere
	if f.admin.address != "" {
		ask = f.verifyThere
	}
	v, err := ask(ctx, stderr, token)
	if err != nil {
		return nil, err
	}
	if f.signatureOnly {
		v.SignatureOnly = true
		if slices.Contains(behindSignature, v.Failed) {
			v.Valid, v.Failed, v.Detail = true, "", ""
		}
	}
	return v, nil
}

// verifyThere asks a running gateway.
func (f *verifyFlags) verifyThere(ctx context.Context, stderr io.Writer, token string) (*verdictOnToken, error) {
	client, err := f.admin.client(f.lookupEnv)
	if err != nil {
		return nil, usageError(err)
	}
	if client.exposed() {
		fmt.Fprintln(stderr, "gatehouse: the credentials and the token cross the network unprotected: use an https:// address of the admin server")
	}
	var v verdictOnToken
	if err := client.do(ctx, http.MethodPost, "/api/v1/token/verify", map[string]string{"token": token}, &v); err != nil {
		return nil, err
	}
	if v.Valid && f.issuer != "" && v.Issuer != f.issuer {
		v.Valid, v.Failed, v.Detail, v.Claims = false, keymanager.CheckIssuer, "the token is of another issuer", nil
	}
	if v.Valid && f.audience != "" && !holds(v.Claims["aud"], f.audience) {
		v.Valid, v.Failed, v.Detail, v.Claims = false, keymanager.CheckAudience, "the token is meant for another audience", nil
	}
	return &v, nil
}

func holds(aud any, want string) bool {
	list, ok := aud.([]any)
	return aud == any(want) || ok && slices.Contains(list, any(want))
}

// verifyHere makes the gateway's own checks with one key manager.
func (f *verifyFlags) verifyHere(ctx context.Context, _ io.Writer, token string) (*verdictOnToken, error) {
	km := keymanager.KeyManager{Name: "command line", Enabled: true, SelfValidate: true, Issuer: f.issuer, FromConfiguration: true}
	if km.Issuer == "" {
		if parsed, _ := jwt.Parse(token); parsed != nil {
			km.Issuer = parsed.Issuer
		}
	}
	if f.audience != "" {
		km.Audience = []string{f.audience}
	}
	o := registry.Options{Logger: zerolog.Nop(), Now: f.now}
	switch {
	case f.pem != "":
		text, err := readSmall(f.pem)
		if err == nil {
			km.PEM = string(text)
			_, err = jwks.ParsePEM(km.PEM)
		}
		if err != nil {
			return nil, usageError(fmt.Errorf("--pem %s: %w", f.pem, err))
		}
	case strings.HasPrefix(f.jwks, "https://") || strings.HasPrefix(f.jwks, "http://"):
		roots, err := rootsWith(f.admin.caFile)
		if err != nil {
			return nil, usageError(fmt.Errorf("--ca-file: %w", err))
		}
		km.JWKSURL = f.jwks
		if roots != nil {
			km.CAFile = f.admin.caFile
		}
	default:
		text, err := readSmall(f.jwks)
		if err == nil {
			_, _, err = jwks.Parse(text)
		}
		if err != nil {
			return nil, usageError(fmt.Errorf("--jwks %s: %w", f.jwks, err))
		}
		// The registry knows key sets by their URL alone: this one is answered with the file.
		km.JWKSURL = "http://file.invalid/"
		o.HTTPClient = &http.Client{Transport: document(text)}
	}
	r := registry.New(o)
	defer r.Close()
	r.ReplaceConfigured([]keymanager.KeyManager{km})
	found := r.Verify(ctx, token, registry.VerifyOptions{})
	if found.Failed == keymanager.CheckUnverified {
		if states := r.State().Managers; len(states) == 1 && states[0].LastError != "" {
			hint := ""
			if strings.Contains(states[0].LastError, "unknown authority") {
				hint = "; name the authority of that server with --ca-file"
			}
			return nil, fmt.Errorf("the keys are not available: %s%s", states[0].LastError, hint)
		}
	}
	v := &verdictOnToken{Valid: found.Valid, Failed: found.Failed, Detail: found.Detail, Issuer: found.Issuer, Claims: found.Claims}
	return v, nil
}

// document is a transport that answers every request with one document.
type document []byte

func (d document) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{},
		Body: io.NopCloser(bytes.NewReader(d)), ContentLength: int64(len(d)), Request: r,
	}, nil
}

func (v *verdictOnToken) print(w io.Writer, now time.Time) error {
	var b strings.Builder
	if v.Valid {
		b.WriteString("good")
		if v.SignatureOnly {
			b.WriteString(": the signature is that of the issuer; nothing else was judged")
		} else if exp, ok := timeOf(v.Claims["exp"]); ok {
			b.WriteString(": valid for " + span(exp.Sub(now)) + ", until " + exp.Format(time.RFC3339))
		}
	} else {
		fmt.Fprintf(&b, "refused at the check %q: %s", string(v.Failed), v.Detail)
	}
	b.WriteByte('\n')
	for _, line := range [][2]string{{"issuer", v.Issuer}, {"key manager", v.KeyManager}} {
		if line[1] != "" {
			fmt.Fprintf(&b, "  %s: %s\n", line[0], printable(line[1]))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
