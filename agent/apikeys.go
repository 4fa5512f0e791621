package agent

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"gatehouse/agent/admin"
	"gatehouse/agent/config"
	"gatehouse/keymanager"
	"gatehouse/keymanager/apikey"
	"gatehouse/keymanager/jwks"
)

// apiKeys verify API keys: what signs them comes from the configuration, the opaque ones from the event hub.
type apiKeys struct {
	*apikey.Authenticator
	store *apikey.Store
}

func (a *Agent) buildAPIKeys() error {
	cfg := a.cfg
	k := &apiKeys{store: apikey.NewStore()}
	capacity := cfg.APIM.Cache.GatewayToken.Capacity
	if !cfg.APIM.Cache.GatewayToken.Enable {
		capacity = -1
	}
	k.Authenticator = apikey.New(apikey.Options{
		HTTPClient:    &http.Client{Transport: a.hub.transport(1)},
		TLS:           a.hub.config(),
		Logger:        a.part("api_keys"),
		Registerer:    a.registry,
		CacheCapacity: capacity,
		Revocations:   a.domains.revocations,
		Store:         k.store,
	})
	a.apiKeys = k
	list, err := keyIssuersOf(cfg)
	if err != nil {
		return err
	}
	if err := k.SetIssuers(list); err != nil {
		return &keyError{"gateway.api_key_issuer", err}
	}
	return nil
}

// keyIssuersOf turns the issuers of API keys of the configuration into those of the domain. What their files hold becomes part
// of them, so that a change of theirs is one of the issuer.
func keyIssuersOf(cfg *config.Config) ([]apikey.Issuer, error) {
	var list []apikey.Issuer
	for n, i := range cfg.Gateway.APIKeyIssuers {
		at := fmt.Sprintf("gateway.api_key_issuer[%d]", n)
		issuer := apikey.Issuer{
			Name: i.Name, Internal: i.Kind == "internal_key", JWKSURL: i.JWKSURL.Reveal(), SkipTLSVerify: i.SkipSSLVerification,
			ValidateAllowedAPIs: i.ValidateAllowedAPIs, ClockSkew: i.ClockSkew.Std(),
			Origin: keymanager.Origin{Kind: "config", ID: at},
		}
		for _, f := range []struct {
			key  string
			path config.Path
			to   *string
		}{{".certificate_file", i.CertificateFile, &issuer.PEM}, {".ca_file", i.CAFile, &issuer.CAPEM}} {
			if f.path == "" {
				continue
			}
			text, err := os.ReadFile(string(f.path))
			if err != nil {
				return nil, &keyError{at + f.key, err}
			}
			*f.to = string(text)
		}
		if issuer.PEM != "" {
			if _, err := jwks.ParsePEM(issuer.PEM); err != nil {
				return nil, &keyError{at + ".certificate_file", fmt.Errorf("%s: %w", i.CertificateFile, err)}
			}
		}
		list = append(list, issuer)
	}
	return list, nil
}

// opaqueKeyView is an API key that is no JWT. Its hash is not shown: whoever has a short key's could find the key.
type opaqueKeyView struct {
	ID               string       `json:"id"`
	Name             string       `json:"name"`
	Tenant           string       `json:"tenant"`
	KeyType          string       `json:"key_type"`
	User             string       `json:"user"`
	ApplicationID    int64        `json:"application_id"`
	ApplicationUUID  string       `json:"application_uuid"`
	APIUUID          string       `json:"api_uuid"`
	Bound            string       `json:"bound"`
	PermittedIP      string       `json:"permitted_ip"`
	PermittedReferer string       `json:"permitted_referer"`
	Status           string       `json:"status"`
	CreatedAt        admin.Time   `json:"created_at,omitempty"`
	ExpiresAt        admin.Time   `json:"expires_at,omitempty"`
	Inert            string       `json:"inert,omitempty"` // why no request can match it
	Origin           admin.Origin `json:"origin"`
}

// opaqueKeyID names a key by its UUID, and by the beginning of its hash where it has none.
func opaqueKeyID(k *keymanager.OpaqueKey) string {
	if k.UUID != "" {
		return k.UUID
	}
	return k.Hash[:min(len(k.Hash), 16)]
}

func opaqueKeyOf(k *keymanager.OpaqueKey) any {
	v := opaqueKeyView{
		ID: opaqueKeyID(k), Name: k.Name, Tenant: k.Tenant, KeyType: k.KeyType, User: k.User, ApplicationID: k.ApplicationID, ApplicationUUID: k.ApplicationUUID,
		APIUUID: k.APIUUID, Bound: k.Bound, PermittedIP: k.PermittedIP, PermittedReferer: k.PermittedReferer, Status: k.Status,
		CreatedAt: admin.Time(k.CreatedAt), ExpiresAt: admin.Time(k.ExpiresAt), Origin: origin(k.Origin),
	}
	switch {
	case k.Salted:
		v.Inert = "the hash is salted in a way that is not known"
	case !keymanager.IsKeyHash(k.Hash):
		v.Inert = "the hash is not a SHA-256"
	}
	return v
}

// sweepAPIKeys drops what is cached of keys that are no good any more.
func (a *Agent) sweepAPIKeys(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			a.apiKeys.Close()
			return nil
		case <-tick.C:
			a.apiKeys.Sweep()
		}
	}
}

// reloadAPIKeys takes over changed issuers of API keys.
func (a *Agent) reloadAPIKeys(r config.Reloaded) {
	list, err := keyIssuersOf(r.New)
	if err == nil {
		if err = a.apiKeys.SetIssuers(list); err != nil {
			err = &keyError{"gateway.api_key_issuer", err}
		}
	}
	if err != nil {
		stays(a.part("config"), r, err, "the issuers of API keys stay as they were")
	}
}
