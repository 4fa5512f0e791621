package stage

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"

	"gatehouse/keymanager"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
)

// authenticate takes the credential from the request and has it verified.
type authenticate struct{ d *Domains }

func (s *authenticate) Run(x *pipeline.Exchange) *pipeline.Refusal {
	r := x.Route
	lines := x.Header.Values(r.AuthHeader)
	switch {
	case len(lines) == 0:
		if r.API.SecurityOptional {
			x.Note(pipeline.StepAuthenticate, pipeline.Skipped)
			anonymous(x)
			return nil
		}
		return x.Refuse(pipeline.StepAuthenticate, fault.Of(fault.MissingCredentials), "the request has no field "+r.AuthHeader)
	case len(lines) > 1:
		return x.Refuse(pipeline.StepAuthenticate, invalid("more than one credential was sent"), "the request has several fields "+r.AuthHeader)
	}
	scheme, value, _ := strings.Cut(lines[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		if lines[0] == "" {
			return x.Refuse(pipeline.StepAuthenticate, fault.Of(fault.MissingCredentials), "the field "+r.AuthHeader+" is empty")
		}
		if strings.EqualFold(scheme, "Basic") {
			if d := basicFault(value); d != "" {
				f := fault.Of(fault.InvalidScheme)
				f.Description = f.Message + ". " + d
				f.Challenge = `error="invalid_token", error_description="` + fault.Quote(d) + `"`
				return x.Refuse(pipeline.StepAuthenticate, f, d)
			}
		}
		return x.Refuse(pipeline.StepAuthenticate, fault.Of(fault.InvalidScheme), "the scheme of the credential is not Bearer")
	}
	value = strings.TrimSpace(value)
	if value == "" {
		return x.Refuse(pipeline.StepAuthenticate, invalid("the bearer token is empty"), "the bearer token is empty")
	}
	token, cached, err := s.d.Authenticator.Authenticate(x.Context, keymanager.Credential{Bearer: value, Allowed: r.API.KeyManagers, Tenant: r.Tenant})
	if err != nil || token == nil {
		return s.refuse(x, err)
	}
	if token.BoundTo != "" && token.BoundTo != thumbprint(x.ClientCertificate) {
		return s.refuse(x, &keymanager.Refusal{
			Check: keymanager.CheckBound, KeyManager: token.KeyManager, Issuer: token.Issuer, Origin: token.Origin,
			Detail: "the token is bound to a client certificate that did not come with it",
		})
	}
	x.Token, x.Cached = token, cached
	x.Note(pipeline.StepAuthenticate, pipeline.OK)
	if !s.d.KeepCredential {
		x.StripCredential = true
	}
	t := &x.Throttle
	t.Authenticated = true
	x.User = withTenant(token.User, r.Tenant)
	t.User = x.User
	return nil
}

// thumbprint is the SHA-256 of a certificate as tokens name it, "" without one.
func thumbprint(der []byte) string {
	if len(der) == 0 {
		return ""
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// basicFault says what is wrong with the form of a basic credential, "" when it is well formed.
func basicFault(value string) string {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	if err != nil {
		return "The basic credential is not base64"
	}
	if !strings.Contains(string(b), ":") {
		return "The basic credential has no colon"
	}
	return ""
}

// withTenant appends the API's tenant to a user, unless the name holds it already (contract events.md 6.1).
func withTenant(user, tenant string) string {
	if user == "" || strings.Contains(user, tenant) {
		return user
	}
	return user + "@" + tenant
}

func invalid(detail string) pipeline.Refusal {
	f := fault.Of(fault.InvalidCredentials)
	f.Description = "Invalid Credentials. Make sure you have given the correct access token: " + detail
	f.Challenge = `error="invalid_token", error_description="` + fault.Quote(detail) + `"`
	return f
}

// refuse turns the answer of the key managers into a fault.
func (s *authenticate) refuse(x *pipeline.Exchange, err error) *pipeline.Refusal {
	var k *keymanager.Refusal
	if !errors.As(err, &k) {
		// Nothing that the domain names: the caller cannot be judged, so it is not let in.
		reason := "the credential could not be checked"
		if err != nil {
			reason += ": " + err.Error()
		}
		return x.Refuse(pipeline.StepAuthenticate, fault.Of(fault.General), reason)
	}
	x.Auth = k
	if k.Temporary {
		f := fault.Of(fault.General)
		f.Description = "The credential cannot be checked at present. Please try again later"
		return x.Refuse(pipeline.StepAuthenticate, f, k.Detail)
	}
	detail := k.Detail
	if detail == "" {
		detail = string(k.Check)
	}
	f := invalid(detail)
	if k.Check == keymanager.CheckExpired && s.d.ExpiredCode == fault.TokenExpired {
		f = fault.Of(fault.TokenExpired)
		f.Challenge = `error="invalid_token", error_description="` + fault.Quote(detail) + `"`
	}
	return x.Refuse(pipeline.StepAuthenticate, f, detail)
}
