package emulator

import "fmt"

// profile is what differs between the versions of API Manager (contract rest.md 7, events.md 8).
type profile struct {
	name string
	// v32: no UUIDs, no defaultLimit, no artifacts, map bodies.
	v32 bool
	// organization: rows name their organization (4.1).
	organization bool
	// keyManagerDTO: organization and additionalProperties instead of tenantDomain and configuration, in the list and in
	// the events, whose value is then the whole key manager.
	keyManagerDTO bool
	tokenType     bool
	uuids         bool // of key managers
	// revokedObject: /revokedjwt is an object.
	revokedObject bool
	// notifyGateway: registration and heartbeats.
	notifyGateway bool
	// acknowledgements: /apis/undeployed-revision and /retrieve-api-artifacts.
	acknowledgements bool
	// templateNotifications: custom policies come as notifications.
	templateNotifications bool
	residentName          string
	wellKnown             bool
}

func profileOf(name string) (profile, error) {
	switch name {
	case "3.2":
		return profile{name: name, v32: true, residentName: "Default"}, nil
	case "4.0":
		return profile{name: name, residentName: "Resident Key Manager"}, nil
	case "4.3":
		return profile{
			name: name, organization: true, keyManagerDTO: true, tokenType: true, acknowledgements: true,
			templateNotifications: true, residentName: "Resident Key Manager",
		}, nil
	case "", "4.x", "4.7":
		return profile{
			name: "4.7", organization: true, keyManagerDTO: true, tokenType: true, uuids: true, revokedObject: true, notifyGateway: true,
			acknowledgements: true, templateNotifications: true, residentName: "Resident Key Manager", wellKnown: true,
		}, nil
	}
	return profile{}, fmt.Errorf("profile %q is not known: use 3.2, 4.0, 4.3, 4.7 or 4.x", name)
}
