package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"gatehouse/agent/config"
	"gatehouse/agent/eventsource/brokerurl"
	"gatehouse/keymanager"
	"gatehouse/keymanager/claims"
	"gatehouse/throttle/databridge"
)

// loadConfig reads a configuration, and has its URLs, claim mappings and credentials parsed by those who will use them, so that
// a fault of their grammar is told with its place before anything is started. The error is that of config.Load.
func loadConfig(path string) (*config.Config, *config.Source, error) {
	cfg, source, err := config.Load(path, os.LookupEnv)
	if err != nil {
		return nil, source, err
	}
	if faults := slices.Concat(urlFaults(cfg, source), mappingFaults(cfg, source), credentialFaults(cfg, source)); len(faults) > 0 {
		return nil, source, faults
	}
	return cfg, source, nil
}

func urlFaults(cfg *config.Config, source *config.Source) config.Faults {
	var faults config.Faults
	brokers := func(key string, urls []config.URL, username string, password config.Secret) {
		for i, url := range urls {
			if _, err := brokerurl.Parse(url.Reveal(), brokerurl.Defaults{Username: username, Password: password.Reveal()}); err != nil {
				fault := source.Fault(fmt.Sprintf("%s[%d]", key, i), err)
				fault.Value = fmt.Sprintf("%q", url.String())
				faults = append(faults, fault)
			}
		}
	}
	hub, throttling := cfg.APIM.EventHub, cfg.APIM.Throttling
	brokers("apim.event_hub.event_listening_endpoints", hub.EventListeningEndpoints, hub.Username, hub.Password)
	brokers("apim.throttling.throttle_decision_endpoints", throttling.ThrottleDecisionEndpoints, throttling.Username, throttling.Password)
	brokers("traffic_manager.decisions", cfg.TrafficManager.Decisions, "", "")
	for i, group := range throttling.URLGroups {
		if group.NATS() {
			brokers(fmt.Sprintf("apim.throttling.url_group[%d].traffic_manager_urls", i), group.TrafficManagerURLs, throttling.Username, throttling.Password)
			continue
		}
		if _, err := databridge.NewGroup(texts(group.TrafficManagerURLs), texts(group.TrafficManagerAuthURLs), group.Type); err != nil {
			faults = append(faults, source.Fault(fmt.Sprintf("apim.throttling.url_group[%d]", i), err))
		}
	}
	return faults
}

func mappingFaults(cfg *config.Config, source *config.Source) config.Faults {
	var faults config.Faults
	for i, issuer := range cfg.APIM.JWT.Issuers {
		for k, m := range issuer.ClaimMapping {
			wrong := claims.CheckMapping(keymanager.ClaimMapping{Remote: m.RemoteClaim, Local: m.LocalClaim, Function: m.Function})
			if wrong == nil {
				continue
			}
			fault := source.Fault(fmt.Sprintf("apim.jwt.issuer[%d].claim_mapping[%d].%s", i, k, wrong.Member), errors.New(wrong.Problem))
			fault.Value, fault.Fix = strconv.Quote(wrong.Value), wrong.Fix
			faults = append(faults, fault)
		}
	}
	return faults
}

func texts(urls []config.URL) []string {
	out := make([]string, len(urls))
	for i, u := range urls {
		out[i] = u.Reveal()
	}
	return out
}
