package agent

import (
	"fmt"

	"gatehouse/agent/config"
	"gatehouse/keymanager"
	"gatehouse/keymanager/basic"
)

func (a *Agent) buildUsers() error {
	a.users = basic.New(basic.Options{Registerer: a.registry})
	return a.setUsers(a.cfg)
}

// setUsers makes the users of the configuration those that are let in. An error changes nothing.
func (a *Agent) setUsers(cfg *config.Config) error {
	list := make([]basic.User, 0, len(cfg.Gateway.Users))
	for i, u := range cfg.Gateway.Users {
		at := fmt.Sprintf("gateway.user[%d]", i)
		if _, err := basic.ParseHash(u.PasswordHash.Reveal()); err != nil {
			return &keyError{at + ".password_hash", err}
		}
		list = append(list, basic.User{Name: u.Name, Hash: u.PasswordHash.Reveal(), Scopes: u.Scopes, Origin: keymanager.Origin{Kind: "config", ID: at}})
	}
	if err := a.users.Replace(list); err != nil {
		return &keyError{"gateway.user", err}
	}
	return nil
}

// reloadUsers takes over changed users.
func (a *Agent) reloadUsers(r config.Reloaded) {
	if err := a.setUsers(r.New); err != nil {
		stays(a.part("config"), r, err, "the users of basic authentication stay as they were")
	}
}
