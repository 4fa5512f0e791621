package sync

import (
	"slices"
	"testing"

	"gatehouse/agent/controlplane"
	"gatehouse/proxy/definition"
	"gatehouse/subscription"
)

// TestOverlayOfVariants: an API whose environments have other endpoints is served on the hosts of each, as long as it is
// deployed there.
func TestOverlayOfVariants(t *testing.T) {
	eu := &definition.API{Context: "/a/1", Version: "1", Environments: []string{"EU"}, Hosts: []string{"eu.test"}, Production: &definition.Endpoint{}}
	us := &definition.API{Context: "/a/1", Version: "1", Environments: []string{"US"}, Hosts: []string{"us.test"}}
	d := &definition.API{Context: "/a/1", Version: "1", Environments: []string{"Default"}, Hosts: []string{"gw.test"}, Variants: []*definition.API{eu, us}}
	row := &subscription.API{UUID: "u", ID: 7, Status: "BLOCKED"}
	for _, test := range []struct {
		name string
		on   []controlplane.Deployment
		want []string // hosts, of the definition first
	}{
		{"everywhere", []controlplane.Deployment{{Environment: "Default", VHost: "gw.test"}, {Environment: "EU", VHost: "eu.test"}, {Environment: "US", VHost: "us.test"}}, []string{"gw.test", "eu.test", "us.test"}},
		{"one variant gone", []controlplane.Deployment{{Environment: "Default", VHost: "gw.test"}, {Environment: "US", VHost: "us.test"}}, []string{"gw.test", "us.test"}},
		{"its own environment gone", []controlplane.Deployment{{Environment: "EU", VHost: "eu.test"}, {Environment: "US", VHost: "us.test"}}, []string{"eu.test", "us.test"}},
		{"without a host it is on every host", []controlplane.Deployment{{Environment: "Default", VHost: "gw.test"}, {Environment: "Default"}}, []string{""}},
		{"as it was read", nil, []string{"gw.test", "eu.test", "us.test"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := overlay(d, row, &Deployed{UUID: "u", Deployments: test.on})
			var hosts []string
			for _, v := range append([]*definition.API{got}, got.Variants...) {
				if v.UUID != "u" || v.ID != 7 || v.Lifecycle != "BLOCKED" {
					t.Errorf("on %v it is %s, %d, %s", v.Hosts, v.UUID, v.ID, v.Lifecycle)
				}
				host := ""
				if len(v.Hosts) > 0 {
					host = v.Hosts[0]
				}
				hosts = append(hosts, host)
			}
			if !slices.Equal(hosts, test.want) {
				t.Errorf("hosts %q, want %q", hosts, test.want)
			}
		})
	}
	if len(d.Variants) != 2 || d.UUID != "" || eu.Lifecycle != "" {
		t.Error("the definition was changed")
	}
}
