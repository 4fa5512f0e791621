package agent

import (
	"errors"
	"fmt"
	"slices"

	"gatehouse/agent/config"
	"gatehouse/keymanager/backendjwt"
	"gatehouse/proxy"
)

// buildBackendJWT makes what signs the JWTs of backends, where [apim.jwt] is on.
func (a *Agent) buildBackendJWT() error {
	j := a.cfg.APIM.JWT
	if !j.Enable {
		return nil
	}
	g, err := backendjwt.New(backendjwt.Options{
		Rules:         backendRules(j),
		Algorithm:     j.SigningAlgorithm,
		AllowUnsigned: j.AllowUnsigned,
		KeyFile:       string(j.KeyFile),
		DataDir:       string(a.cfg.Gateway.DataDir),
		MaxAge:        a.opts.KeySetMaxAge,
		Logger:        a.part("backend_jwt"),
		Registerer:    a.registry,
	})
	if err != nil {
		return backendKeyError(err)
	}
	a.backendJWT = g
	return nil
}

// backendRules are what a reload may change of the JWTs of backends.
func backendRules(j config.JWT) backendjwt.Rules {
	r := backendjwt.Rules{
		Dialect: j.ClaimDialect, ConvertDialect: j.ConvertDialect, Issuer: j.TokenIssuer, Audience: j.Audience, Life: j.ExpiryTime.Std(),
		UserClaims: j.EnableUserClaims, Excluded: j.Generator.ExcludedClaims,
	}
	for _, c := range j.Claims {
		r.Claims = append(r.Claims, backendjwt.Claim{Name: c.Name, Value: c.Value, From: c.From, Remove: c.Remove})
	}
	return r
}

// proxyBackendJWT tells the proxy of it.
func (a *Agent) proxyBackendJWT(o *proxy.Options) {
	if a.backendJWT == nil {
		return
	}
	j := a.cfg.APIM.JWT
	o.BackendTokenHeader = j.Header
	o.KeySet, o.KeySetMaxAge = a.backendJWT.KeySet, a.backendJWT.MaxAge()
	o.Domains.Asserter = a.backendJWT
	o.Domains.AssertAnonymous, o.Domains.OmitAssertion = j.ForAnonymous, j.OnError == "omit"
}

// reloadBackendJWT takes over what may change of the JWTs of backends. Rules and key are taken one by one.
func (a *Agent) reloadBackendJWT(r config.Reloaded) {
	if a.backendJWT == nil {
		return
	}
	log := a.part("backend_jwt")
	old, next := r.Old.APIM.JWT, r.New.APIM.JWT
	if !equalRules(backendRules(old), backendRules(next)) {
		if err := a.backendJWT.SetRules(backendRules(next)); err != nil {
			stays(log, r, backendKeyError(err), "the claims of backend JWTs stay as they were")
		}
	}
	if old.KeyFile != next.KeyFile || slices.Contains(r.Files, string(next.KeyFile)) {
		if err := a.backendJWT.SetKeyFile(string(next.KeyFile)); err != nil {
			stays(log, r, backendKeyError(err), "the key of backend JWTs stays as it was")
		}
	}
}

func equalRules(a, b backendjwt.Rules) bool {
	if !slices.Equal(a.Audience, b.Audience) || !slices.Equal(a.Excluded, b.Excluded) || !slices.Equal(a.Claims, b.Claims) {
		return false
	}
	return a.Dialect == b.Dialect && a.ConvertDialect == b.ConvertDialect && a.Issuer == b.Issuer && a.Life == b.Life && a.UserClaims == b.UserClaims
}

// backendKeyError names the key of the configuration that an error is about.
func backendKeyError(err error) error {
	if f, ok := errors.AsType[*backendjwt.KeyFileError](err); ok {
		return &keyError{"apim.jwt.key_file", f}
	}
	if c, ok := errors.AsType[*backendjwt.RuleError](err); ok {
		key := fmt.Sprintf("apim.jwt.claims[%d]", c.Index)
		if c.Field != "" {
			key += "." + c.Field
		}
		return &keyError{key, c.Err}
	}
	return err
}
