package keymanager

import "strings"

const (
	residentKeyManager = "Resident Key Manager"
	// AllTenants is the owner of a global key manager (events.md 5d).
	AllTenants = "WSO2-ALL-TENANTS"
	// SuperTenant is the tenant of whatever names none.
	SuperTenant = "carbon.super"
)

// CanonicalName returns the one name of a key manager: the resident one is "Default" in 3.2 and "Resident Key Manager"
// in 4.x.
func CanonicalName(name string) string {
	if name == "Default" {
		return residentKeyManager
	}
	return name
}

// Owner returns the tenant that the key manager belongs to: AllTenants for a global one and for an issuer of the
// configuration that names none, SuperTenant where the API Manager named none.
func (k KeyManager) Owner() string {
	switch {
	case k.Tenant != "":
		return k.Tenant
	case k.FromConfiguration:
		return AllTenants
	}
	return SuperTenant
}

// Named reports whether one of the names in the list is the key manager's name, in either spelling of the resident one,
// or its UUID. An empty list and "all" name every key manager.
func (k *KeyManager) Named(list []string) bool {
	if len(list) == 0 {
		return true
	}
	for _, n := range list {
		if n == k.Name || n == "all" || n != "" && n == k.UUID {
			return true
		}
	}
	for _, n := range list {
		if strings.EqualFold(n, "all") || CanonicalName(n) == CanonicalName(k.Name) || strings.EqualFold(n, k.Name) ||
			n != "" && strings.EqualFold(n, k.UUID) {
			return true
		}
	}
	return false
}
