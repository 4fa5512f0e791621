package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// TopicOf returns the documented case of a topic name; known is false, and the name returned as it is, for a topic that
// the contract does not name. Andes folds names to lower case, so every case must be expected.
func TopicOf(name string) (topic string, known bool) {
	switch name {
	case TopicThrottleData, TopicNotification, TopicTokenRevocation, TopicKeyManager, TopicCacheInvalidation,
		TopicAsyncWebhooks, TopicOpaqueAPIKey:
		return name, true
	}
	for _, t := range [...]string{
		TopicThrottleData, TopicNotification, TopicTokenRevocation, TopicKeyManager,
		TopicCacheInvalidation, TopicAsyncWebhooks, TopicOpaqueAPIKey,
	} {
		if strings.EqualFold(name, t) {
			return t, true
		}
	}
	return name, false
}

// DecodeError is a message that says nothing usable. The message is to be counted, logged once and acknowledged.
type DecodeError struct {
	Topic string // in the documented case
	// Reason is lower case, names the field, and holds no token.
	Reason string
	// Excerpt is the beginning of the body with tokens masked, for the log line.
	Excerpt string
	// Dirty is true when something changed that can no longer be told from the message: the lists of the topic
	// (contract events.md 7.3 rule 2) must be fetched again.
	Dirty bool
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("message of topic %s cannot be read: %s", e.Topic, e.Reason)
}

// Decode turns a message into its events: values (event.APIChanged, never a pointer), at least one when err is nil, and in
// every message known today exactly one. A type of event that has no meaning for a gateway gives Ignored, without an error. The error is always a *DecodeError. Decode keeps no reference to m.Body, panics for no input, and
// may be called concurrently.
func Decode(m Message) ([]Event, error) {
	events, err := decode(m)
	if err != nil {
		err.Excerpt = Excerpt(m)
		return nil, err
	}
	return events, nil
}

func decode(m Message) ([]Event, *DecodeError) {
	topic, known := TopicOf(m.Topic)
	if !known {
		return []Event{Ignored{Base: Base{Type: m.Topic, Time: m.Timestamp}}}, nil
	}
	attributes, err := DecodeMap(m)
	if err == nil && attributes == nil {
		err = errors.New("the map is null")
	}
	if err != nil {
		return nil, &DecodeError{Topic: topic, Reason: err.Error(), Dirty: topic != TopicOpaqueAPIKey}
	}
	d := decoder{topic: topic, message: m, attributes: attributes}
	switch topic {
	case TopicThrottleData:
		return d.one(d.throttleData())
	case TopicNotification:
		return d.one(d.notification())
	case TopicTokenRevocation:
		return d.one(d.tokenRevocation())
	case TopicKeyManager:
		return d.one(d.keyManager())
	case TopicCacheInvalidation:
		return d.one(d.cacheInvalidation())
	case TopicAsyncWebhooks:
		return d.one(d.webhook())
	default:
		return d.one(d.opaqueAPIKey())
	}
}

// decoder reads one message.
type decoder struct {
	topic      string
	message    Message
	attributes map[string]any
}

func (d *decoder) one(e Event, err *DecodeError) ([]Event, *DecodeError) {
	if err != nil {
		return nil, err
	}
	return []Event{e}, nil
}

// unusable says that something changed which the message does not tell.
func (d *decoder) unusable(format string, args ...any) *DecodeError {
	return &DecodeError{Topic: d.topic, Reason: fmt.Sprintf(format, args...), Dirty: true}
}

// base reads what events of every kind may carry out of m.
func (d *decoder) base(m map[string]any) Base {
	b := Base{
		EventID:      stringOf(m["eventId"]),
		Time:         intOf(firstOf(m, "timeStamp", "timestamp")),
		Type:         d.topic,
		TenantID:     intOf(m["tenantId"]),
		TenantDomain: stringOf(firstOf(m, "tenantDomain", "organization")),
	}
	if b.Time == 0 {
		b.Time = d.message.Timestamp
	}
	return b
}

// throttleData tells three kinds of message apart by the attribute that is there and not null, in this order.
func (d *decoder) throttleData() (Event, *DecodeError) {
	a := d.attributes
	switch {
	case a["throttleKey"] != nil:
		return d.decision()
	case a["blockingCondition"] != nil:
		return d.deny()
	case a["keyTemplateValue"] != nil:
		e := KeyTemplateChanged{Base: d.base(a), Template: stringOf(a["keyTemplateValue"])}
		// Anything but "add" removes, in every gateway read.
		e.Remove = !strings.EqualFold(stringOf(a["keyTemplateState"]), "add")
		if e.Template == "" {
			return nil, d.unusable("keyTemplateValue is empty")
		}
		return e, nil
	}
	return Ignored{Base: d.base(a)}, nil
}

func (d *decoder) decision() (Event, *DecodeError) {
	a := d.attributes
	e := ThrottleDecision{
		Base:      d.base(a),
		Key:       stringOf(a["throttleKey"]),
		Throttled: boolOf(a["isThrottled"]),
		ExpiresAt: intOf(a["expiryTimeStamp"]),
	}
	if e.Key == "" {
		return nil, &DecodeError{Topic: d.topic, Reason: "throttleKey is empty"}
	}
	conditions, err := conditionsOf(a["evaluatedConditions"])
	if err != nil {
		// Without its conditions the decision of a default group would throttle everybody; and no list of decisions
		// exists that could be fetched instead.
		return nil, &DecodeError{Topic: d.topic, Reason: "evaluatedConditions: " + err.Error()}
	}
	e.Conditions = conditions
	return e, nil
}

// conditionsOf decodes evaluatedConditions: base64 of a JSON array. Absent, null, "" and [] all give nil.
func conditionsOf(v any) ([]byte, error) {
	s := strings.TrimSpace(stringOf(v))
	if s == "" || s == "null" || s == `""` {
		return nil, nil
	}
	raw := []byte(s)
	if s[0] != '[' {
		var ok bool
		if raw, ok = decodeBase64(s); !ok {
			return nil, errors.New("neither base64 nor a JSON array")
		}
	}
	raw = trimText(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if raw[0] != '[' || !json.Valid(raw) {
		return nil, errors.New("not a JSON array")
	}
	if len(bytes.TrimSpace(raw[1:len(raw)-1])) == 0 {
		return nil, nil
	}
	return raw, nil
}

func (d *decoder) deny() (Event, *DecodeError) {
	a := d.attributes
	e := DenyChanged{
		Base:   d.base(a),
		Active: boolOf(a["state"]),
		ID:     intOf(a["id"]),
		Kind:   strings.ToUpper(stringOf(a["blockingCondition"])),
	}
	value := a["conditionValue"]
	if e.Kind != "IP" && e.Kind != "IPRANGE" {
		e.Value = stringOf(value)
		if e.Value == "" {
			return nil, d.unusable("conditionValue of a deny condition of type %q is empty", e.Kind)
		}
		return e, nil
	}
	inner, ok := objectOf(value)
	if !ok {
		e.Malformed = true
		return e, nil
	}
	e.FixedIP = strings.TrimSpace(stringOf(inner["fixedIp"]))
	e.StartingIP = strings.TrimSpace(stringOf(inner["startingIp"]))
	e.EndingIP = strings.TrimSpace(stringOf(inner["endingIp"]))
	e.Invert = boolOf(inner["invert"])
	if e.Kind == "IP" {
		e.Malformed = e.FixedIP == ""
	} else {
		e.Malformed = e.StartingIP == "" || e.EndingIP == ""
	}
	return e, nil
}

func (d *decoder) tokenRevocation() (Event, *DecodeError) {
	a := d.attributes
	e := Revoked{
		Base:      d.base(a),
		Token:     strings.TrimSpace(stringOf(a["revokedToken"])),
		TokenType: stringOf(a["type"]),
		ExpiresAt: intOf(a["expiryTime"]),
		TTL:       intOf(a["ttl"]),
	}
	kind := strings.ToLower(e.TokenType)
	switch {
	case strings.Contains(kind, "batch"):
		e.Kind, e.Token = RevokeReload, ""
		return e, nil
	case strings.Contains(kind, "consumer_app_revocation"), strings.Contains(kind, "subject_entity_revocation"):
		return d.massRevocation(e, kind)
	case e.Token == "":
		e.Kind = RevokeReload
		return e, nil
	}
	return e, nil
}

func (d *decoder) massRevocation(e Revoked, kind string) (Event, *DecodeError) {
	inner := embedded(e.Token)
	e.Token = ""
	if inner == nil {
		return nil, d.unusable("revokedToken of type %q is not base64 of a JSON object", e.TokenType)
	}
	e.Before = intOf(foldedOf(inner, "revocationTime"))
	if e.Before < 1e11 { // seconds
		e.Before *= 1000
	}
	if e.Before <= 0 {
		return nil, d.unusable("revokedToken of type %q has no revocationTime", e.TokenType)
	}
	if e.TenantDomain == "" {
		e.TenantDomain = stringOf(firstOf(inner, "organization", "tenantDomain"))
	}
	if strings.Contains(kind, "consumer_app") {
		e.Kind = RevokeConsumerKey
		e.ConsumerKey = stringOf(foldedOf(inner, "consumerKey"))
	} else {
		id := stringOf(foldedOf(inner, "entityId"))
		entity := strings.ToLower(stringOf(foldedOf(inner, "entityType")))
		if strings.Contains(entity, "client") || strings.Contains(entity, "consumer") {
			e.Kind, e.ConsumerKey = RevokeConsumerKey, id
		} else {
			e.Kind, e.User = RevokeUser, id
		}
	}
	if e.ConsumerKey == "" && e.User == "" {
		return nil, d.unusable("revokedToken of type %q names nobody", e.TokenType)
	}
	return e, nil
}

// allTenants owns the key managers that every tenant may use.
const allTenants = "WSO2-ALL-TENANTS"

func (d *decoder) keyManager() (Event, *DecodeError) {
	a := d.attributes
	if kind := stringOf(a["event_type"]); kind != "" && kind != "key_manager_configuration" {
		return Ignored{Base: d.base(a)}, nil
	}
	e := KeyManagerChanged{
		Base:      d.base(a),
		Action:    strings.ToLower(strings.TrimSpace(stringOf(a["action"]))),
		Name:      stringOf(a["name"]),
		KMType:    stringOf(a["type"]),
		Tenant:    stringOf(firstOf(a, "organization", "tenantDomain")),
		TokenType: stringOf(a["tokenType"]),
		Enabled:   true,
	}
	enabled := a["enabled"]
	if strings.EqualFold(e.TenantDomain, allTenants) {
		e.TenantDomain = "" // every tenant is to process it
	}
	if value := embedded(a["value"]); value != nil {
		plain(value)
		e.Configuration = value
		// The newer value is the whole DTO around the map that the older one was.
		if inner, ok := value["additionalProperties"].(map[string]any); ok {
			e.Configuration = inner
			e.UUID = stringOf(value["uuid"])
			fill(&e.Name, value["name"])
			fill(&e.KMType, value["type"])
			fill(&e.Tenant, firstOf(value, "organization", "tenantDomain"))
			fill(&e.TokenType, value["tokenType"])
			if enabled == nil {
				enabled = value["enabled"]
			}
		}
	}
	if enabled != nil {
		e.Enabled = boolOf(enabled)
	}
	if e.Name == "" {
		return nil, d.unusable("name is missing")
	}
	switch e.Action {
	case "add", "update":
		// An empty configuration must not replace one that works.
		if e.Configuration == nil {
			return nil, d.unusable("value of key manager %q is not base64 of a JSON object", e.Name)
		}
	case "delete":
	default:
		return nil, d.unusable("action %q of key manager %q is none of add, update, delete", e.Action, e.Name)
	}
	return e, nil
}

func fill(field *string, v any) {
	if *field == "" {
		*field = stringOf(v)
	}
}

func (d *decoder) cacheInvalidation() (Event, *DecodeError) {
	a := d.attributes
	e := CacheInvalidation{Base: d.base(a), Kind: stringOf(a["type"])}
	resources := strings.EqualFold(e.Kind, "resourceCache")
	if !resources && !strings.EqualFold(e.Kind, "gatewayKeyCache") && !strings.EqualFold(e.Kind, "gatewayUsernameCache") {
		return Ignored{Base: e.Base}, nil
	}
	value := a["value"]
	for range 3 {
		s, ok := value.(string)
		if !ok {
			break
		}
		inner, err := decodeJSON(trimText([]byte(s)))
		if err != nil {
			return nil, d.unusable("value of type %q: %v", e.Kind, err)
		}
		value = inner
	}
	switch value := value.(type) {
	case []any:
		e.Keys = stringsOf(value)
	case map[string]any:
		e.APIContext = stringOf(value["apiContext"])
		e.APIVersion = stringOf(value["apiVersion"])
		e.Keys = stringsOf(firstOf(value, "users", "tokens", "keys"))
		if e.TenantDomain == "" {
			e.TenantDomain = stringOf(value["organization"])
		}
	}
	switch {
	case resources && e.APIContext == "":
		return nil, d.unusable("value of type %q names no apiContext", e.Kind)
	case !resources && len(e.Keys) == 0:
		return nil, d.unusable("value of type %q names nothing", e.Kind)
	}
	return e, nil
}

func (d *decoder) webhook() (Event, *DecodeError) {
	a := d.attributes
	e := WebhookChanged{
		Base:            d.base(a),
		APIUUID:         stringOf(a["apiUUID"]),
		APIName:         stringOf(a["apiName"]),
		APIContext:      stringOf(a["apiContext"]),
		APIVersion:      stringOf(a["apiVersion"]),
		ApplicationUUID: stringOf(a["appID"]),
		Callback:        stringOf(a["callback"]),
		Topic:           stringOf(a["topic"]),
		Secret:          stringOf(a["secret"]),
		ExpiresAt:       intOf(a["expireAt"]),
		Subscriber:      stringOf(a["subscriberName"]),
		ApplicationTier: stringOf(a["applicationTier"]),
		Tier:            stringOf(a["tier"]),
		APITier:         stringOf(a["apiTier"]),
		Throttled:       boolOf(a["isThrottled"]),
	}
	switch mode := stringOf(a["mode"]); {
	case strings.EqualFold(mode, "subscribe"):
	case strings.EqualFold(mode, "unsubscribe"):
		e.Remove = true
	default:
		return nil, d.unusable("mode %q is neither subscribe nor unsubscribe", mode)
	}
	if e.APIUUID == "" || e.ApplicationUUID == "" {
		return nil, d.unusable("apiUUID or appID is missing")
	}
	return e, nil
}
