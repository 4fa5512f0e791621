package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"gatehouse/agent/config"
)

// buildWatcher starts to follow the configuration file.
func (a *Agent) buildWatcher() error {
	if a.opts.Watcher == nil {
		return nil
	}
	o := *a.opts.Watcher
	o.Logger = a.part("config")
	o.Registerer = a.registry
	o.OnReload = a.reloaded
	w, err := config.NewWatcher(o)
	if err != nil {
		return fmt.Errorf("follow the configuration: %w", err)
	}
	a.watcher = w
	return nil
}

// Reload reads the configuration again now, as SIGHUP asks. A file with faults changes nothing; the error names them.
func (a *Agent) Reload() error {
	if a.watcher == nil {
		return errors.New("there is no configuration file to read again")
	}
	_, err := a.watcher.Reload()
	return err
}

// reloaded takes over what may change while the gateway runs. A part that cannot use what it is given stays as it was; the
// other parts go on.
func (a *Agent) reloaded(r config.Reloaded) {
	log := a.part("config")
	if r.New.Log.Level != r.Old.Log.Level && a.opts.Level != nil {
		if err := a.opts.Level.Set(r.New.Log.Level); err != nil {
			log.Error().Err(err).Msg("the log level stays")
		}
	}
	changed := func(section string) bool {
		return slices.ContainsFunc(r.Changed, func(key string) bool { return strings.HasPrefix(key, section) })
	}
	if len(r.Files) > 0 || changed("apim.jwt.issuer") { // a file may be an issuer's
		list, err := issuersOf(r.New)
		if err == nil {
			a.domains.keyManagers.ReplaceConfigured(list)
		} else {
			stays(log, r, err, "the issuers of the configuration stay as they were")
		}
	}
	// Which keys and users are judged by may follow from other sections too; what did not change costs nothing.
	a.reloadAPIKeys(r)
	a.reloadUsers(r)
	a.reloadCertificates(r)
	if len(r.Files) > 0 || changed("upstream") {
		if err := a.proxy.SetUpstream(upstreamDefaults(r.New)); err != nil {
			stays(log, r, &keyError{"upstream.tls.ca_file", err}, "the defaults of [upstream] stay as they were")
		}
	}
	a.reloadBackendJWT(r)
	for _, p := range []*peers{a.hub, a.trafficManagers} {
		if slices.Contains(r.Files, string(p.file)) {
			if err := p.load(); err != nil {
				stays(log, r, err, "the authorities of ["+p.section+"] stay as they were")
			}
		}
	}
}

// stays logs why a part did not take a change, with the place of the key.
func stays(log zerolog.Logger, r config.Reloaded, err error, what string) {
	if k, ok := errors.AsType[*keyError](err); ok {
		err = r.Source.Fault(k.key, k.err)
	}
	log.Error().Err(err).Msg(what)
}
