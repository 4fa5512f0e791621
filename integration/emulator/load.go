package emulator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// LoadSamples fills the database, without events, from a folder of recorded answers of the data service: apis.json,
// applications.json, application-key-mappings.json, subscriptions.json, the policies, scopes.json, keymanagers.json, and,
// where withDeny is true, block.json, keyTemplates.json and revokedjwt-events.json. The APIs are deployed on the
// environments; they have no backend but the sample one of this world.
func (e *Emulator) LoadSamples(folder string, withDeny bool, environments ...string) error {
	read := func(name string, into any) error {
		b, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return fmt.Errorf("load samples: %w", err)
		}
		var envelope struct{ List json.RawMessage }
		if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) && json.Unmarshal(b, &envelope) == nil && envelope.List != nil {
			b = envelope.List
		}
		if err := json.Unmarshal(b, into); err != nil {
			return fmt.Errorf("load samples: %s: %w", name, err)
		}
		return nil
	}
	var in struct {
		apis     []API
		apps     []Application
		mappings []KeyMapping
		subs     []Subscription
		scopes   []Scope
		kms      []struct {
			Name, Type, TenantDomain, TokenType string
			Enabled                             bool
			Configuration                       map[string]any
		}
	}
	for name, into := range map[string]any{
		"apis.json": &in.apis, "applications.json": &in.apps, "application-key-mappings.json": &in.mappings, "subscriptions.json": &in.subs,
		"scopes.json": &in.scopes, "keymanagers.json": &in.kms,
	} {
		if err := read(name, into); err != nil {
			return err
		}
	}
	s := e.Silent()
	for _, a := range in.apis {
		a.Environments, a.Endpoint, a.SandboxEndpoint = environments, e.BackendURL(), e.BackendURL()
		if _, err := s.CreateAPI(a); err != nil {
			return err
		}
	}
	for _, a := range in.apps {
		if _, err := s.CreateApplication(a); err != nil {
			return err
		}
	}
	for _, k := range in.kms {
		if _, err := s.PutKeyManager(KeyManager{Name: k.Name, Type: k.Type, Disabled: !k.Enabled, Tenant: k.TenantDomain, TokenType: k.TokenType, Configuration: k.Configuration}); err != nil {
			return err
		}
	}
	for _, k := range in.mappings {
		if _, err := s.AddKeyMapping(k); err != nil {
			return err
		}
	}
	for _, x := range in.subs {
		if _, err := s.Subscribe(x); err != nil {
			return err
		}
	}
	for _, x := range in.scopes {
		s.PutScope(x)
	}
	if err := loadPolicies(s, read); err != nil {
		return err
	}
	if !withDeny {
		return nil
	}
	return loadDeny(s, read)
}

type limitSample struct {
	QuotaType    string
	RequestCount *struct {
		TimeUnit               string
		UnitTime, RequestCount int64
	}
	Bandwidth *struct {
		TimeUnit, DataUnit   string
		UnitTime, DataAmount int64
	}
	EventCount *struct {
		TimeUnit             string
		UnitTime, EventCount int64
	}
}

func (l limitSample) limit() Limit {
	switch {
	case l.Bandwidth != nil:
		return Limit{l.QuotaType, l.Bandwidth.TimeUnit, l.Bandwidth.UnitTime, l.Bandwidth.DataAmount, l.Bandwidth.DataUnit}
	case l.EventCount != nil:
		return Limit{l.QuotaType, l.EventCount.TimeUnit, l.EventCount.UnitTime, l.EventCount.EventCount, ""}
	case l.RequestCount != nil:
		return Limit{l.QuotaType, l.RequestCount.TimeUnit, l.RequestCount.UnitTime, l.RequestCount.RequestCount, ""}
	}
	return Limit{QuotaType: l.QuotaType}
}

func loadPolicies(s *Changes, read func(string, any) error) error {
	for file, kind := range map[string]PolicyKind{
		"subscription-policies.json": SubscriptionPolicy, "application-policies.json": ApplicationPolicy, "api-policies.json": APIPolicy,
	} {
		var rows []struct {
			ID                                    int64
			TenantDomain, Name                    string
			DefaultLimit                          limitSample
			RateLimitCount                        int64
			RateLimitTimeUnit                     string
			StopOnQuotaReach                      *bool
			GraphQLMaxDepth, GraphQLMaxComplexity int64
			ApplicableLevel                       string
			ConditionGroups                       []struct {
				ConditionGroupID int64
				DefaultLimit     limitSample
				Condition        []Condition
			}
		}
		if err := read(file, &rows); err != nil {
			return err
		}
		for _, r := range rows {
			p := Policy{
				Kind: kind, ID: r.ID, TenantDomain: r.TenantDomain, Name: r.Name, Limit: r.DefaultLimit.limit(), RateLimitCount: r.RateLimitCount,
				RateLimitTimeUnit: r.RateLimitTimeUnit, ContinueOnQuotaReach: r.StopOnQuotaReach != nil && !*r.StopOnQuotaReach,
				GraphQLMaxDepth: r.GraphQLMaxDepth, GraphQLMaxComplexity: r.GraphQLMaxComplexity, ApplicableLevel: r.ApplicableLevel,
			}
			for _, g := range r.ConditionGroups {
				p.ConditionGroups = append(p.ConditionGroups, ConditionGroup{g.ConditionGroupID, g.DefaultLimit.limit(), g.Condition})
			}
			if _, err := s.PutPolicy(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func loadDeny(s *Changes, read func(string, any) error) error {
	var block struct {
		API, Application, User, Subscription []string
		IP                                   []struct {
			ID                                                int64
			Type, FixedIP, StartingIP, EndingIP, TenantDomain string
			Invert                                            bool
		}
	}
	var templates []string
	var revoked struct {
		RevokedJWTList              []RevokedToken
		RevokedJWTSubjectEntityList []MassRevocation
		RevokedJWTConsumerKeyList   []MassRevocation
	}
	for name, into := range map[string]any{"block.json": &block, "keyTemplates.json": &templates, "revokedjwt-events.json": &revoked} {
		if err := read(name, into); err != nil {
			return err
		}
	}
	for _, x := range block.IP {
		if _, err := s.Deny(DenyCondition{
			ID: x.ID, Type: x.Type, FixedIP: x.FixedIP, StartingIP: x.StartingIP, EndingIP: x.EndingIP, Invert: x.Invert, Tenant: x.TenantDomain,
		}); err != nil {
			return err
		}
	}
	for kind, values := range map[string][]string{
		DenyAPI: block.API, DenyApplication: block.Application, DenyUser: block.User, DenySubscription: block.Subscription,
	} {
		for _, v := range values {
			if _, err := s.Deny(DenyCondition{Type: kind, Value: v}); err != nil {
				return err
			}
		}
	}
	for _, t := range templates {
		if _, err := s.SetCustomPolicy(t, 0, 0); err != nil {
			return err
		}
	}
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	for _, r := range revoked.RevokedJWTList {
		s.e.m.revoked[r.Signature] = r.ExpiryTime
	}
	s.e.m.mass = append(append(s.e.m.mass, revoked.RevokedJWTSubjectEntityList...), revoked.RevokedJWTConsumerKeyList...)
	return nil
}
