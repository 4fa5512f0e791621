package config

import (
	"fmt"
	"strings"
)

// javaOnly are the keys, and beginnings of keys, that only WSO2's Java gateway has. They are taken, so that a section of
// deployment.toml can be pasted whole, and noted as without effect; the text says what stands in their place.
var javaOnly = []struct{ key, text string }{
	{"apim.event_hub.init_delay", "the event hub is dialled at once"},
	{"apim.event_hub.event_type", "it is how the API Manager publishes"},
	{"apim.event_hub.event_publishing_urls", "gateways publish no events"},
	{"apim.event_hub.event_duplicate_url", "it is how API Managers tell each other"},
	{"apim.event_hub.throttle_decision_endpoints", "write it in [apim.throttling]"},
	{"apim.event_hub.java_naming_factory_initial", "a Java class name"},
	{"apim.event_hub.load_scopes_from_keymanager", "scopes come with the tokens and APIs"},
	{"apim.event_hub.publish", "gateways publish no events"},
	{"apim.sync_runtime_artifacts.gateway.artifact_retriever", "artifacts come from the internal data service"},
	{"apim.sync_runtime_artifacts.gateway.deployment_retry_duration", "a failed fetch is tried again at least every 15 seconds"},
	{"apim.sync_runtime_artifacts.gateway.data_retrieval_mode", "events are served while lists are fetched"},
	{"apim.sync_runtime_artifacts.gateway.enable_on_demand_loading", "every API is loaded at the start"},
	{"apim.sync_runtime_artifacts.gateway.enable", "artifacts are fetched wherever [apim.event_hub] is enabled"},
	{"apim.sync_runtime_artifacts.gateway.skip_list", "use gateway.gateway_labels to say what is fetched"},
	{"apim.sync_runtime_artifacts.publisher", "gateways publish no artifacts"},
	{"apim.sync_runtime_artifacts.tenant_loading", "use gateway.tenants"},
	{"apim.throttling.enable_advanced_throttling", "advanced policies are always in force"},
	{"apim.throttling.receiver_username", "use apim.throttling.username"},
	{"apim.throttling.receiver_password", "use apim.throttling.password"},
	{"apim.throttling.publisher.max_idle", "there is no thread pool"},
	{"apim.throttling.publisher.init_idle_size", "there is no thread pool"},
	{"apim.throttling.publisher.pool_size", "there is no thread pool"},
	{"apim.throttling.publisher.max_pool_size", "there is no thread pool"},
	{"apim.throttling.publisher.keep_alive_time", "there is no thread pool"},
	{"apim.throttling.enable_policy_deploy", "policies are fetched, never deployed to a gateway"},
	{"apim.throttling.policy_deploy", "policies are fetched, never deployed to a gateway"},
	{"apim.throttling.enable_policy_deployment", "policies are fetched, never deployed to a gateway"},
	{"apim.throttling.enable_policy_recreation_on_startup", "policies are fetched, never deployed to a gateway"},
	{"apim.throttling.service_url", "gateways call no SOAP service of the traffic manager"},
	{"apim.throttling.enable_decision_connection", "decisions are taken wherever an endpoint is known"},
	{"apim.throttling.jms", "use apim.throttling.throttle_decision_endpoints"},
	{"apim.throttling.blacklist_condition", "deny policies come with the lists and events of [apim.event_hub]"},
	{"apim.throttling.sequential_failover_from_beginning", "a group of type failover always goes back to its first receiver"},
	{"apim.throttling.skip_redeploying_policies", "policies are fetched, never deployed to a gateway"},
	{"apim.jwt.enable_jwks_api", "the key set is published wherever a key is configured"},
	{"apim.jwt.claims_extractor_impl", "a Java class name"},
	{"apim.jwt.generator_impl", "a Java class name"},
	{"apim.jwt.encode_x5t_without_padding", "the form of Microgateway 3.2 is written"},
	{"apim.jwt.enable_tenant_based_signing", "one key signs for all tenants"},
	{"apim.jwt.use_sha256_hash", "x5t and x5t#S256 are both written"},
	{"apim.jwt.use_kid_property", "kid is always written"},
	{"apim.jwt.encoding", "base64url, as JWTs are"},
	{"apim.jwt.binding_federated_user_claims", "claims come from the token"},
	{"apim.jwt.gateway_generator.impl", "a Java class name"},
	{"apim.jwt.gateway_generator.enable_claim_retrieval", "claims come from the token"},
	{"apim.jwt.issuer[].claim_mapper_impl", "a Java class name; use [[apim.jwt.issuer.claim_mapping]]"},
	{"apim.jwt.issuer[].jwks.enable", "the key set is used wherever its url is written"},
	{"apim.oauth_config.default_app_scope", "it is the key manager's"},
	{"apim.oauth_config.revoke_endpoint", "it is the key manager's"},
	{"apim.oauth_config.revoke_endpoint_context", "it is the key manager's"},
	{"apim.oauth_config.token_endpoint_context", "it is the key manager's"},
	{"apim.oauth_config.enable_token_encryption", "it is the key manager's"},
	{"apim.oauth_config.enable_token_hashing", "it is the key manager's"},
	{"apim.oauth_config.enable_revoke_token_cleanup", "revoked tokens are dropped when they expire"},
	{"apim.oauth_config.enable_certificate_bound_access_token", "a token bound to a certificate is always checked against it"},
	{"apim.oauth_config.remove_outbound_auth_header", "use apim.oauth_config.enable_outbound_auth_header"},
	{"apim.oauth_config.allowed_scopes", "it is the key manager's"},
	{"apim.oauth_config.white_listed_scopes", "it is the key manager's"},
	{"apim.oauth_config.expires_in", "it is the key manager's"},
	{"apimgt.mutual_ssl.client_certificate_encode", "PEM, DER and URL-encoded certificates are told apart"},
	{"apimgt.mutual_ssl.enable_outbound_certificate_header", "the header is always taken out"},
	{"apimgt.mutual_ssl.enable_certificate_chain_validation", "the chain is always validated"},
	{"apim.cors.enable_validation_for_ws", "WebSocket APIs follow the same policy"},
	{"apim.cache.gateway_token.expiry_time", "an entry lives as long as its token"},
	{"apim.cache.token_expiry_time", "an entry lives as long as its token"},
	{"apim.cache.resource", "resources are in memory"},
	{"apim.cache.km_token", "it is the key manager's"},
	{"apim.cache.recent_apis", "it is the portal's"},
	{"apim.cache.scopes", "it is the portal's"},
	{"apim.cache.publisher_roles", "it is the portal's"},
	{"apim.cache.restapi_token", "it is the portal's"},
	{"apim.cache.restapi_cache_control_headers", "it is the portal's"},
	{"apim.cache.jwt_claim", "claims come from the token"},
	{"apim.cache.tags", "it is the portal's"},
	{"apim.cache.invalidation", "it is how API Managers tell each other"},
	{"apim.gateway_notification.deployment_ack", "deployments are acknowledged in batches at their own pace"},
	{"apim.gateway_notification.registration", "registration is repeated until it succeeds"},
	{"apim.gateway_notification.cleanup", "it is the API Manager's"},
}

// withoutEffect returns what to say of a key that only the Java gateway has.
func withoutEffect(key string) (string, bool) {
	pattern := generic(key)
	for _, j := range javaOnly {
		if pattern == j.key || strings.HasPrefix(pattern, j.key+".") {
			return j.text, true
		}
	}
	return "", false
}

// generic turns "issuer[2].name" into "issuer[].name".
func generic(key string) string {
	var b strings.Builder
	inside := false
	for _, c := range key {
		switch {
		case c == '[':
			inside = true
			b.WriteRune(c)
		case c == ']':
			inside = false
			b.WriteRune(c)
		case !inside:
			b.WriteRune(c)
		}
	}
	return b.String()
}

func (d *decoder) unknown(parent *field, key, name string, n *node) {
	if text, ok := withoutEffect(key); ok {
		d.source.Notes = append(d.source.Notes, Note{File: d.doc.file, Position: n.pos, Key: key, Text: "without effect: " + text})
		return
	}
	isSection := n.kind == kindTable || n.kind == kindArray && len(n.items) > 0 && n.items[0].kind == kindTable
	what := "unknown key"
	if isSection {
		what = "unknown section"
	}
	nearest := nearestField(parent, generic(key), name, isSection)
	value := ""
	if !isSection {
		value = written(n, nearest)
		if looksSecret(name) {
			value = mask
		}
	}
	fix := "take it out; docs/configuration.md lists every key"
	if nearest != nil {
		// The key that was probably meant is there, though misspelt: that it is missing is no second fault.
		if parent.child(nearest.name) == nearest {
			d.bad[key[:len(key)-len(name)]+nearest.name] = true
		}
		switch {
		case nearest.name == name:
			fix = fmt.Sprintf("did you mean %s, which stands elsewhere?", bracketed(nearest))
		case strings.TrimSuffix(nearest.path, "[]") == join(parent.path, nearest.name) && !isSection:
			fix = fmt.Sprintf("did you mean %q?", nearest.name)
		default:
			fix = fmt.Sprintf("did you mean %s?", bracketed(nearest))
		}
	}
	d.fault(key, n.pos, value, &problem{what, fix})
}

// bracketed names a key with its whole path, sections in the brackets that they are written in.
func bracketed(f *field) string {
	path := strings.ReplaceAll(f.path, "[]", "")
	switch f.kind {
	case takesSection:
		return "[" + path + "]"
	case takesSections:
		return "[[" + path + "]]"
	}
	return path
}

// looksSecret is whether the name of an unknown key says that its value is a secret.
func looksSecret(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"pass", "pwd", "secret", "token", "credential", "key", "hash", "auth"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// nearestField finds the key that was probably meant: in the same section first, then anywhere.
func nearestField(parent *field, key, name string, isSection bool) *field {
	var best *field
	bestDistance := max(2, len(name)/3) + 1
	for _, c := range parent.children {
		if distance := editDistance(name, c.name); distance < bestDistance {
			best, bestDistance = c, distance
		}
	}
	if best != nil {
		return best
	}
	// The same name elsewhere, the one whose path is nearest.
	pathDistance := len(key) + 100
	schema().walk(func(f *field) {
		section := f.kind == takesSection || f.kind == takesSections
		if section != isSection || editDistance(name, f.name) > max(1, len(name)/5) {
			return
		}
		if distance := editDistance(key, f.path); distance < pathDistance {
			best, pathDistance = f, distance
		}
	})
	return best
}

func suggestKey(key string) string {
	var best *field
	bestDistance := max(2, len(key)/3) + 1
	schema().walk(func(f *field) {
		if distance := editDistance(key, f.path); distance < bestDistance && f.kind != takesSection && f.kind != takesSections {
			best, bestDistance = f, distance
		}
	})
	if best == nil {
		return "write section.key of this file"
	}
	return fmt.Sprintf("did you mean $ref{%s}?", best.path)
}

// editDistance is the number of letters to insert, delete, replace or swap with a neighbour to turn a into b.
func editDistance(a, b string) int {
	if len(a) > 200 || len(b) > 200 {
		return 200 // nothing that long is a misspelt key
	}
	before, previous, current := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous, current = previous, current, before
	}
	return previous[len(b)]
}
