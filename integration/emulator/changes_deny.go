package emulator

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"gatehouse/integration/emulator/broker"
)

// Deny adds a deny policy, or enables or changes the one with the same id.
func (c *Changes) Deny(d DenyCondition) (DenyCondition, error) {
	if err := d.complete(); err != nil {
		return DenyCondition{}, err
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	m := c.e.m
	d.Disabled = false
	if d.ID == 0 { // one condition blocks one value
		for _, old := range m.deny {
			if old.Type == d.Type && old.conditionValue == d.conditionValue && old.Tenant == d.Tenant {
				d.ID = old.ID
			}
		}
	}
	d.ID = m.id("deny", d.ID)
	m.deny[d.ID] = &d
	c.denyEvent(d, true)
	return d, nil
}

// Allow removes a deny policy.
func (c *Changes) Allow(id int64) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	d := c.e.m.deny[id]
	if d == nil {
		return fmt.Errorf("no deny policy has the id %d", id)
	}
	delete(c.e.m.deny, id)
	if !d.Disabled {
		c.denyEvent(*d, false)
	}
	return nil
}

// SwitchDeny enables or disables a deny policy without removing it.
func (c *Changes) SwitchDeny(id int64, enabled bool) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	old := c.e.m.deny[id]
	if old == nil {
		return fmt.Errorf("no deny policy has the id %d", id)
	}
	d := *old
	d.Disabled = !enabled
	c.e.m.deny[id] = &d
	c.denyEvent(d, enabled)
	return nil
}

func (c *Changes) denyEvent(d DenyCondition, on bool) {
	c.publish(broker.TopicThrottleData, broker.Payload{
		{Name: "id", Value: int32(d.ID)},
		{Name: "blockingCondition", Value: d.Type},
		{Name: "conditionValue", Value: d.conditionValue},
		{Name: "state", Value: strconv.FormatBool(on)},
		{Name: "tenantDomain", Value: d.Tenant},
	})
}

// complete checks the condition as the manager does and works out the text of its event.
func (d *DenyCondition) complete() error {
	d.Type = strings.ToUpper(d.Type)
	d.Tenant = or(d.Tenant, SuperTenant)
	switch d.Type {
	case DenyAPI:
		if !strings.HasPrefix(d.Value, "/") {
			return fmt.Errorf("deny policy for API %q: the value is the full context, such as /shop/1.0.0", d.Value)
		}
		d.Tenant, d.conditionValue = tenantOfContext(d.Value), d.Value
	case DenyApplication:
		if !strings.Contains(d.Value, ":") {
			return fmt.Errorf("deny policy for application %q: the value is owner:application", d.Value)
		}
		d.conditionValue = d.Value
	case DenyUser:
		if d.Value == "" {
			return errors.New("deny policy for a user: the value is user@tenant")
		}
		if !strings.Contains(d.Value, "@") {
			d.Value += "@" + d.Tenant
		}
		d.conditionValue = d.Value
	case DenySubscription:
		if strings.Count(d.Value, ":") < 3 {
			return fmt.Errorf("deny policy for subscription %q: the value is context:version:owner-application:keyType", d.Value)
		}
		d.conditionValue = d.Value
	case DenyIP:
		d.FixedIP = or(d.FixedIP, d.Value)
		if _, err := netip.ParseAddr(d.FixedIP); err != nil {
			return fmt.Errorf("deny policy for address %q: no IP address", d.FixedIP)
		}
		d.Value = d.FixedIP
		d.conditionValue = fmt.Sprintf(`{"fixedIp":%q,"invert":%t}`, d.FixedIP, d.Invert)
	case DenyIPRange:
		if from, to, ok := strings.Cut(d.Value, "-"); ok && d.StartingIP == "" {
			d.StartingIP, d.EndingIP = strings.TrimSpace(from), strings.TrimSpace(to)
		}
		from, err := netip.ParseAddr(d.StartingIP)
		to, err2 := netip.ParseAddr(d.EndingIP)
		if err != nil || err2 != nil || from.Is4() != to.Is4() {
			return fmt.Errorf("deny policy for range %q to %q: two IP addresses of one family are needed, first-last", d.StartingIP, d.EndingIP)
		}
		d.Value = d.StartingIP + "-" + d.EndingIP
		d.conditionValue = fmt.Sprintf(`{"startingIp":%q,"endingIp":%q,"invert":%t}`, d.StartingIP, d.EndingIP, d.Invert)
	default:
		return fmt.Errorf("deny policy of type %q: use API, APPLICATION, USER, SUBSCRIPTION, IP or IPRANGE", d.Type)
	}
	return nil
}

// Revoke refuses a token from now on: its jti, or the opaque token itself. kind is JWT (the default), API_KEY or Default.
func (c *Changes) Revoke(token string, expires time.Time, kind string) error {
	if token == "" {
		return errors.New("revocation: the token is empty")
	}
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	kind = or(kind, "JWT")
	expiry := expires.UnixMilli()
	c.e.m.revoked[token] = expiry
	if kind == "Default" { // an opaque token has no expiry in its event
		expiry = 0
	}
	c.revocation(token, expiry, kind)
	return nil
}

func (c *Changes) revocation(token string, expiry int64, kind string) {
	c.publish(broker.TopicTokenRevocation, broker.Payload{
		{Name: "eventId", Value: uuid.NewString()},
		{Name: "revokedToken", Value: token},
		{Name: "ttl", Value: "3600"},
		{Name: "expiryTime", Value: expiry},
		{Name: "type", Value: kind},
		{Name: "tenantId", Value: int32(superTenantID)},
	})
}

// RevokeMany refuses the tokens of a client or a subject that were issued before a time.
func (c *Changes) RevokeMany(r MassRevocation) error {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	r.Organization = or(r.Organization, SuperTenant)
	kind, inner := "consumer_app_revocation_event", fmt.Sprintf(`{"consumerKey":%s,"revocationTime":"%d"}`, quote(r.ConsumerKey), r.RevocationTime)
	switch {
	case r.ConsumerKey != "":
	case r.EntityID != "" && (r.EntityType == "USER_ID" || r.EntityType == "CLIENT_ID"):
		kind, inner = "subject_entity_revocation_event", fmt.Sprintf(`{"entityId":%s,"entityType":%q,"revocationTime":"%d"}`, quote(r.EntityID), r.EntityType, r.RevocationTime)
	default:
		return errors.New("mass revocation: a consumer key, or an entity with the type USER_ID or CLIENT_ID, is needed")
	}
	c.e.m.mass = append(slices.Clip(c.e.m.mass), r)
	c.revocation(base64.StdEncoding.EncodeToString([]byte(inner)), 0, kind)
	return nil
}

// Decide publishes a throttle decision of the traffic manager; nothing of it is kept.
func (c *Changes) Decide(key string, throttled bool, expires time.Time, conditions any) {
	c.publish(broker.TopicThrottleData, broker.Payload{
		{Name: "throttleKey", Value: key},
		{Name: "isThrottled", Value: throttled},
		{Name: "expiryTimeStamp", Value: expires.UnixMilli()},
		{Name: "evaluatedConditions", Value: conditions},
	})
}

// Burst publishes n decisions at once, for the keys burst-0 to burst-(n-1).
func (c *Changes) Burst(n int, expires time.Time) {
	for i := range n {
		c.Decide("burst-"+strconv.Itoa(i), true, expires, nil)
	}
}
