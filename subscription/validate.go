package subscription

import (
	"strconv"
	"strings"
)

// Verdict is what Validate decided.
type Verdict struct {
	Reason Reason
	// KeyType is that of the key mapping, in capitals; empty when no key mapping was found. A mapping that names none
	// counts as PRODUCTION.
	KeyType KeyType
	// Detail says in words what was found or missing, for traces and logs; empty when allowed.
	Detail string
}

var reasonNames = [...]string{
	Allowed:              "allowed",
	UnknownAPI:           "unknown_api",
	UnknownKey:           "unknown_key",
	UnknownApplication:   "unknown_application",
	NoSubscription:       "no_subscription",
	SubscriptionBlocked:  "subscription_blocked",
	SubscriptionInactive: "subscription_inactive",
	UnknownState:         "unknown_state",
}

// String returns the name of the reason as logs, metrics and traces spell it, "no_subscription".
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "reason_" + strconv.Itoa(int(r))
}

// Validate decides whether the facts allow a request (contract rest.md 4.1 steps 5 to 9, and 4.2). It looks for the API,
// the key mapping, the application, the subscription and its state, in this order, and names the first that fails. It is
// pure, and allocates only when it refuses.
func Validate(f Facts) Verdict {
	if f.API == nil {
		return Verdict{Reason: UnknownAPI, KeyType: keyTypeOf(f.Mapping), Detail: "the API Manager has named no such API"}
	}
	if f.Mapping == nil {
		return Verdict{Reason: UnknownKey, Detail: "no application has this consumer key at this key manager"}
	}
	kt := keyTypeOf(f.Mapping)
	if f.Application == nil {
		return Verdict{
			Reason: UnknownApplication, KeyType: kt,
			Detail: "application " + name(f.Mapping.ApplicationID, f.Mapping.ApplicationUUID) + " of the consumer key is not known",
		}
	}
	return bought(f, kt)
}

// ValidateApplication is Validate for a credential that names its application itself, as an API key does, so that there is
// no key mapping: kt is the type of the key, PRODUCTION when it is empty.
func ValidateApplication(f Facts, kt KeyType) Verdict {
	kt = canonicalKeyType(kt)
	if f.API == nil {
		return Verdict{Reason: UnknownAPI, KeyType: kt, Detail: "the API Manager has named no such API"}
	}
	if f.Application == nil {
		return Verdict{Reason: UnknownApplication, KeyType: kt, Detail: "the application of the credential is not known"}
	}
	return bought(f, kt)
}

// bought decides by the subscription and its state.
func bought(f Facts, kt KeyType) Verdict {
	if f.Subscription == nil {
		return Verdict{
			Reason: NoSubscription, KeyType: kt,
			Detail: "application " + name(f.Application.ID, f.Application.UUID) + " has no subscription to API " + name(f.API.ID, f.API.UUID),
		}
	}
	switch f.Subscription.State {
	case Unblocked, TierUpdatePending:
		return Verdict{KeyType: kt}
	case Blocked:
		return Verdict{Reason: SubscriptionBlocked, KeyType: kt, Detail: stateDetail(f.Subscription)}
	case ProdOnlyBlocked:
		// Only a key that is surely a sandbox key passes: a key type we do not know is treated as production.
		if kt == Sandbox {
			return Verdict{KeyType: kt}
		}
		return Verdict{Reason: SubscriptionBlocked, KeyType: kt, Detail: stateDetail(f.Subscription) + " for production keys"}
	case OnHold, Rejected:
		return Verdict{Reason: SubscriptionInactive, KeyType: kt, Detail: stateDetail(f.Subscription)}
	}
	return Verdict{Reason: UnknownState, KeyType: kt, Detail: stateDetail(f.Subscription) + ", which is not a known state"}
}

func keyTypeOf(m *KeyMapping) KeyType {
	if m == nil {
		return ""
	}
	return canonicalKeyType(m.KeyType)
}

func canonicalKeyType(kt KeyType) KeyType {
	switch {
	case kt == Production || kt == Sandbox:
		return kt
	case kt == "", strings.EqualFold(string(kt), string(Production)):
		return Production
	case strings.EqualFold(string(kt), string(Sandbox)):
		return Sandbox
	}
	return kt
}

func stateDetail(s *Subscription) string {
	return "subscription " + name(s.ID, s.UUID) + " is " + string(s.State)
}

// name is the number of a row, or its UUID where no number is known.
func name(id int64, uuid string) string {
	if id == 0 && uuid != "" {
		return uuid
	}
	return strconv.FormatInt(id, 10)
}
