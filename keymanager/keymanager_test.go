package keymanager

import (
	"errors"
	"strings"
	"testing"
)

func TestNamed(t *testing.T) {
	km := &KeyManager{Name: "Resident Key Manager", UUID: "Ab-1"}
	noUUID := &KeyManager{Name: "Corp"}
	tests := []struct {
		km   *KeyManager
		list []string
		want bool
	}{
		{km, nil, true},
		{km, []string{"all"}, true},
		{km, []string{"All"}, true},
		{km, []string{"Default"}, true},
		{km, []string{"resident key manager"}, true},
		{km, []string{"Ab-1"}, true},
		{km, []string{"ab-1"}, true},
		{km, []string{"Corp"}, false},
		{km, []string{""}, false},
		{noUUID, []string{""}, false},
		{noUUID, []string{"x", "corp"}, true},
		{noUUID, []string{"Default"}, false},
	}
	for _, tt := range tests {
		if got := tt.km.Named(tt.list); got != tt.want {
			t.Errorf("%s in %q: %t", tt.km.Name, tt.list, got)
		}
	}
}

func TestOwner(t *testing.T) {
	for want, km := range map[string]KeyManager{"example.org": {Tenant: "example.org", FromConfiguration: true}, AllTenants: {FromConfiguration: true}, SuperTenant: {}} {
		if got := km.Owner(); got != want {
			t.Errorf("%+v belongs to %s", km, got)
		}
	}
}

func TestRefusalIsErrRefused(t *testing.T) {
	var err error = &Refusal{Check: CheckExpired, Detail: "the access token expired"}
	if !errors.Is(err, ErrRefused) || errors.Is(err, errors.New("other")) || !strings.Contains(err.Error(), "expired: the access token") {
		t.Errorf("error %v", err)
	}
}
