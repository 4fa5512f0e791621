package event

import (
	"encoding/json"
	"strconv"
	"strings"
)

// notification reads the outer attributes, and the inner event that stands in one of them as base64 of JSON. The outer
// eventType decides, by exact match: a test for a part of it would take UDATE_API_LOG_LEVEL for an update.
func (d *decoder) notification() (Event, *DecodeError) {
	a := d.attributes
	eventType := stringOf(a["eventType"])
	inner := embedded(a["event"])
	if eventType == "" {
		eventType = stringOf(inner["type"])
	}
	b := d.base(inner)
	b.Type = eventType
	if intOf(firstOf(inner, "timeStamp", "timestamp")) == 0 {
		if outer := intOf(firstOf(a, "timestamp", "timeStamp")); outer != 0 {
			b.Time = outer
		}
	}
	if eventType == "" {
		return nil, d.unusable("eventType is missing")
	}
	read, ok := notifications[eventType]
	if action := apiKeyAction(eventType); !ok && action != 0 {
		read, ok = apiKeyChanged(action), true
	}
	if !ok {
		return Ignored{Base: b, Known: isKnownType(eventType)}, nil
	}
	if inner == nil {
		return nil, d.unusable("event of type %s is not base64 of a JSON object", eventType)
	}
	e, missing := read(b, inner)
	if missing != "" {
		return nil, d.unusable("event of type %s: %s is missing", eventType, missing)
	}
	return e, nil
}

// notifications reads each type that a gateway acts on; missing names the attribute without which it cannot.
var notifications = map[string]func(Base, map[string]any) (e Event, missing string){
	"API_CREATE":           apiChanged(Create, false),
	"API_UPDATE":           apiChanged(Update, false),
	"API_DELETE":           apiChanged(Delete, false),
	"API_LIFECYCLE_CHANGE": apiChanged(Update, true),

	"DEPLOY_API_IN_GATEWAY":   deployment(false),
	"REMOVE_API_FROM_GATEWAY": deployment(true),

	"APPLICATION_CREATE": applicationChanged(Create),
	"APPLICATION_UPDATE": applicationChanged(Update),
	"APPLICATION_DELETE": applicationChanged(Delete),

	"APPLICATION_REGISTRATION_CREATE": keyMappingChanged(Create),
	"REMOVE_APPLICATION_KEYMAPPING":   keyMappingChanged(Delete),

	"SUBSCRIPTIONS_CREATE": subscriptionChanged(Create),
	"SUBSCRIPTIONS_UPDATE": subscriptionChanged(Update),
	"SUBSCRIPTIONS_DELETE": subscriptionChanged(Delete),

	"POLICY_CREATE": policyChanged(Create),
	"POLICY_UPDATE": policyChanged(Update),
	"POLICY_DELETE": policyChanged(Delete),

	"CUSTOM_POLICY_ADD":    keyTemplateChanged(false),
	"CUSTOM_POLICY_UPDATE": keyTemplateReplaced,
	"CUSTOM_POLICY_DELETE": keyTemplateChanged(true),

	"SCOPE_CREATE": scopeChanged(Create),
	"SCOPE_UPDATE": scopeChanged(Update),
	"SCOPE_DELETE": scopeChanged(Delete),

	"ENDPOINT_CERTIFICATE_ADD":    certificateChanged(false),
	"ENDPOINT_CERTIFICATE_REMOVE": certificateChanged(true),
}

// isKnownType is true for the types that the contract names and a gateway has nothing to do for.
func isKnownType(eventType string) bool {
	switch eventType {
	case "UDATE_API_LOG_LEVEL", "GA_CONFIG_UPDATE", "HEALTH_CHECK",
		"DEPLOY_POLICY_MAPPING_IN_GATEWAY", "REMOVE_POLICY_MAPPING_FROM_GATEWAY",
		"LLM_PROVIDER_CREATE", "LLM_PROVIDER_UPDATE", "LLM_PROVIDER_DELETE":
		return true
	}
	for _, prefix := range []string{"APPLICATION_CERTIFICATE_", "TENANT_", "API_KEY_", "POLICY_RESET", "LABEL_"} {
		if strings.HasPrefix(eventType, prefix) {
			return true
		}
	}
	return false
}

func apiChanged(action Action, lifecycle bool) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := APIChanged{
			Base:           b,
			Action:         action,
			Lifecycle:      lifecycle,
			UUID:           stringOf(m["uuid"]),
			Name:           stringOf(firstOf(m, "apiName", "name")),
			Version:        stringOf(firstOf(m, "apiVersion", "version")),
			Context:        stringOf(firstOf(m, "apiContext", "context")),
			Provider:       stringOf(firstOf(m, "apiProvider", "provider")),
			APIType:        stringOf(m["apiType"]),
			Status:         stringOf(m["apiStatus"]),
			DefaultVersion: stringOf(m["action"]) == "DEFAULT_VERSION",
		}
		readAPIID(&e.ID, &e.UUID, m["apiId"])
		if e.UUID == "" && e.ID == 0 {
			return nil, "uuid"
		}
		return e, ""
	}
}

// readAPIID reads apiId: the number of the API since 4.0, its uuid in 3.2.
func readAPIID(id *int64, uuid *string, v any) {
	s, isText := v.(string)
	if !isText {
		*id = intOf(v)
		return
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		*id = n
	} else if *uuid == "" {
		*uuid = s
	}
}

func deployment(remove bool) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := Deployment{
			Base:       b,
			Remove:     remove,
			UUID:       stringOf(m["uuid"]),
			Name:       stringOf(firstOf(m, "name", "apiName")),
			Version:    stringOf(firstOf(m, "version", "apiVersion")),
			Context:    stringOf(firstOf(m, "context", "apiContext")),
			Labels:     stringsOf(m["gatewayLabels"]),
			APIDeleted: boolOf(m["deleted"]),
		}
		readAPIID(&e.ID, &e.UUID, m["apiId"])
		associated, _ := m["associatedApis"].([]any)
		for _, a := range associated {
			if api, ok := a.(map[string]any); ok {
				if id := stringOf(api["uuid"]); id != "" {
					e.AssociatedUUID = append(e.AssociatedUUID, id)
				}
			}
		}
		if e.UUID == "" && e.ID == 0 {
			return nil, "uuid"
		}
		return e, ""
	}
}

func applicationChanged(action Action) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := ApplicationChanged{
			Base:      b,
			Action:    action,
			ID:        intOf(m["applicationId"]),
			UUID:      stringOf(m["uuid"]),
			Name:      stringOf(m["applicationName"]),
			TokenType: stringOf(m["tokenType"]),
			Policy:    stringOf(m["applicationPolicy"]),
			Owner:     stringOf(m["subscriber"]),
			GroupID:   stringOf(m["groupId"]),
		}
		if attributes, ok := m["attributes"].(map[string]any); ok && len(attributes) > 0 {
			e.Attributes = make(map[string]string, len(attributes))
			for name, value := range attributes {
				e.Attributes[name] = stringOf(value)
			}
		}
		if e.ID == 0 && e.UUID == "" {
			return nil, "applicationId"
		}
		return e, ""
	}
}

func keyMappingChanged(action Action) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := KeyMappingChanged{
			Base:            b,
			Action:          action,
			ApplicationID:   intOf(m["applicationId"]),
			ApplicationUUID: stringOf(m["applicationUUID"]),
			ConsumerKey:     stringOf(m["consumerKey"]),
			KeyType:         stringOf(m["keyType"]),
			KeyManager:      stringOf(m["keyManager"]),
		}
		if e.ConsumerKey == "" {
			return nil, "consumerKey"
		}
		return e, ""
	}
}

func subscriptionChanged(action Action) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := SubscriptionChanged{
			Base:            b,
			Action:          action,
			ID:              intOf(m["subscriptionId"]),
			UUID:            stringOf(m["subscriptionUUID"]),
			APIID:           intOf(m["apiId"]),
			APIUUID:         stringOf(m["apiUUID"]),
			ApplicationID:   intOf(m["applicationId"]),
			ApplicationUUID: stringOf(m["applicationUUID"]),
			Policy:          stringOf(m["policyId"]),
			State:           stringOf(m["subscriptionState"]),
		}
		if e.ID == 0 && e.UUID == "" {
			return nil, "subscriptionId"
		}
		return e, ""
	}
}

func policyChanged(action Action) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := PolicyChanged{
			Base:                 b,
			Action:               action,
			Kind:                 strings.ToUpper(stringOf(m["policyType"])),
			ID:                   intOf(m["policyId"]),
			Name:                 stringOf(m["policyName"]),
			QuotaType:            stringOf(m["quotaType"]),
			RateLimitCount:       max(intOf(m["rateLimitCount"]), 0), // -1 means none
			RateLimitUnit:        stringOf(m["rateLimitTimeUnit"]),
			StopOnQuotaReach:     boolOf(m["stopOnQuotaReach"]),
			GraphQLMaxDepth:      intOf(m["graphQLMaxDepth"]),
			GraphQLMaxComplexity: intOf(m["graphQLMaxComplexity"]),
			AddedGroups:          intsOf(m["addedConditionGroupIds"]),
			DeletedGroups:        intsOf(m["deletedConditionGroupIds"]),
		}
		if e.Name == "" {
			return nil, "policyName"
		}
		return e, ""
	}
}

func keyTemplateChanged(remove bool) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := KeyTemplateChanged{Base: b, Remove: remove, Template: stringOf(m["keyTemplate"])}
		if e.Template == "" {
			return nil, "keyTemplate"
		}
		return e, ""
	}
}

func keyTemplateReplaced(b Base, m map[string]any) (Event, string) {
	e := KeyTemplateChanged{
		Base:     b,
		Template: stringOf(firstOf(m, "newKeyTemplate", "keyTemplate")),
		Old:      stringOf(m["oldKeyTemplate"]),
	}
	if e.Template == "" {
		return nil, "newKeyTemplate"
	}
	return e, ""
}

func scopeChanged(action Action) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := ScopeChanged{Base: b, Action: action, Name: stringOf(m["name"]), Roles: stringsOf(m["roles"])}
		if e.Name == "" {
			return nil, "name"
		}
		return e, ""
	}
}

func certificateChanged(remove bool) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := CertificateChanged{Base: b, Remove: remove, Alias: stringOf(m["alias"]), Endpoint: stringOf(m["endpoint"])}
		if e.Alias == "" {
			return nil, "alias"
		}
		return e, ""
	}
}

// plain turns the json.Number values inside v, which it owns, into float64.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		f, _ := v.Float64() // out of range is ±Inf
		return f
	case map[string]any:
		for key, value := range v {
			v[key] = plain(value)
		}
	case []any:
		for i, value := range v {
			v[i] = plain(value)
		}
	}
	return v
}
