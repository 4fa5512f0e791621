package claims

import (
	"slices"

	"gatehouse/keymanager"
)

// dialect is the prefix of the names that the API Manager gives claims.
const dialect = "http://wso2.org/claims/"

// standard is how the API Manager names the claims of OpenID Connect for an issuer of its configuration that does not set
// disable_default_claim_mapping.
var standard = [...][2]string{
	{"gender", "gender"},
	{"email_verified", "identity/emailVerified"},
	{"zoneinfo", "timeZone"},
	{"picture", "photourl"},
	{"preferred_username", "displayName"},
	{"middle_name", "middleName"},
	{"nickname", "nickname"},
	{"profile", "url"},
	{"phone_number_verified", "identity/phoneVerified"},
	{"postal_code", "postalcode"},
	{"groups", "role"},
	{"address", "addresses"},
	{"country", "country"},
	{"formatted", "addresses.formatted"},
	{"email", "emailaddress"},
	{"upn", "userprincipal"},
	{"given_name", "givenname"},
	{"locality", "locality"},
	{"region", "region"},
	{"family_name", "lastname"},
	{"name", "fullname"},
	{"locale", "local"},
	{"street_address", "streetaddress"},
	{"website", "url"},
	{"phone_number", "telephone"},
	{"birthdate", "dob"},
	{"updated_at", "modified"},
}

// WithDefaults returns the mappings with the API Manager's default ones behind them: OpenID Connect's names to those of
// http://wso2.org/claims. A claim that an own mapping takes, or fills, has no default. The argument is not changed.
func WithDefaults(own []keymanager.ClaimMapping) []keymanager.ClaimMapping {
	out := slices.Clone(own)
	for _, s := range standard {
		m := keymanager.ClaimMapping{Remote: s[0], Local: dialect + s[1]}
		if !slices.ContainsFunc(own, func(o keymanager.ClaimMapping) bool {
			return o.Remote == m.Remote || o.Local == m.Local || o.Local == m.Remote
		}) {
			out = append(out, m)
		}
	}
	return out
}
