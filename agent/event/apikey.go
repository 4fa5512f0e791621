package event

import "strings"

// apiKeyAction tells from the type of a notification what happened to an API key, 0 where it is about none, or about
// something else of one. The names are inferred, so the verbs that the API Manager uses elsewhere count all the same.
func apiKeyAction(eventType string) Action {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(eventType, "OPAQUE_"), "API_KEY_")
	if !ok {
		return 0
	}
	for _, verb := range []struct {
		name   string
		action Action
	}{
		{"REVO", Delete},
		{"DELETE", Delete},
		{"REMOVE", Delete}, // revoke, revocation
		{"REGENERATE", Update},
		{"UPDATE", Update},
		{"CREATE", Create},
		{"GENERATE", Create},
		{"ADD", Create},
	} {
		if strings.Contains(rest, verb.name) {
			return verb.action
		}
	}
	return 0
}

func apiKeyChanged(action Action) func(Base, map[string]any) (Event, string) {
	return func(b Base, m map[string]any) (Event, string) {
		e := APIKeyChanged{
			Base: b, Action: action,
			Hash:             strings.TrimSpace(stringOf(m["apiKeyHash"])),
			Salted:           stringOf(m["salt"]) != "",
			UUID:             stringOf(firstOf(m, "uuid", "apiKeyUUID", "apiKeyUuid")),
			Name:             stringOf(m["name"]),
			KeyType:          strings.ToUpper(stringOf(m["keyType"])),
			User:             stringOf(firstOf(m, "user", "username")),
			ApplicationID:    intOf(m["applicationId"]),
			ApplicationUUID:  stringOf(firstOf(m, "applicationUUId", "applicationUUID", "applicationUuid")),
			APIUUID:          stringOf(firstOf(m, "apiUUId", "apiUUID", "apiUuid")),
			Bound:            strings.ToUpper(stringOf(m["bound"])),
			PermittedIP:      listOf(m["permittedIP"]),
			PermittedReferer: listOf(m["permittedReferer"]),
			Status:           strings.ToUpper(stringOf(m["status"])),
			CreatedAt:        milliseconds(intOf(m["timeCreated"])),
			ValidityPeriod:   intOf(m["validityPeriod"]),
			ExpiresAt:        milliseconds(max(intOf(m["expiryTime"]), 0)),
		}
		readAPIID(&e.APIID, &e.APIUUID, m["apiId"])
		// Where a key may be used from may stand among its properties, as it does where a signed key is made.
		for _, name := range []string{"additionalProperties", "properties"} {
			more, _ := objectOf(m[name])
			if e.PermittedIP == "" {
				e.PermittedIP = listOf(more["permittedIP"])
			}
			if e.PermittedReferer == "" {
				e.PermittedReferer = listOf(more["permittedReferer"])
			}
		}
		if strings.Contains(e.Status, "REVOKE") || strings.Contains(e.Status, "DELETE") {
			e.Action = Delete
		}
		if e.Hash == "" && (e.Action != Delete || e.UUID == "") {
			return nil, "apiKeyHash"
		}
		return e, ""
	}
}

// listOf reads a list that is a text with commas, or an array of texts.
func listOf(v any) string {
	if list, ok := v.([]any); ok {
		return strings.Join(stringsOf(list), ",")
	}
	return strings.TrimSpace(stringOf(v))
}

// milliseconds reads a time that may be in seconds: as milliseconds it would lie in 1973 at the latest.
func milliseconds(t int64) int64 {
	if t > 0 && t < 100_000_000_000 {
		return t * 1000
	}
	return t
}

// opaqueAPIKey reads the stream that tells gateways of one key: whole at creation, with its status later.
func (d *decoder) opaqueAPIKey() (Event, *DecodeError) {
	e, missing := apiKeyChanged(Update)(d.base(d.attributes), d.attributes)
	if missing != "" {
		return nil, &DecodeError{Topic: d.topic, Reason: missing + " is missing"} // no list could be fetched instead
	}
	return e, nil
}
