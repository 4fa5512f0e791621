package config

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// WatcherOptions are what a Watcher needs. Path is required.
type WatcherOptions struct {
	Path string
	// Env looks up environment variables; nil means os.LookupEnv.
	Env    func(string) (string, bool)
	Logger zerolog.Logger
	// Registerer gets gatehouse_config_generation and gatehouse_config_reload_total; nil means no metrics.
	Registerer prometheus.Registerer
	// Debounce is how long the folder must be quiet before the file is read again; 0 means 250 ms.
	Debounce time.Duration
	// Poll is how often the files are compared all the same, for file systems that tell of no changes; 0 means 10 s.
	Poll time.Duration
	// OnReload is told of each change, one at a time; nil means nobody is. It must not call Reload.
	OnReload func(Reloaded)
}

// Reloaded is a change of configuration that passed every check.
type Reloaded struct {
	Old, New *Config
	Source   *Source // of New
	// Changed are the keys that differ, Restart those among them that have no effect before a restart.
	Changed, Restart []string
	// Files are certificates, keys and other files named by the configuration whose content differs. Absolute paths.
	Files []string
}

// generation is a configuration in force with what it was read from.
type generation struct {
	config  *Config
	source  *Source
	digests map[string][sha256.Size]byte // of the files of source
}

// Watcher keeps a configuration in step with its file. A file that has faults changes nothing: the configuration in force
// stays, and the faults are logged once. Its methods may be called from any goroutine.
type Watcher struct {
	opts    WatcherOptions
	current atomic.Pointer[generation]

	reloading sync.Mutex // serialises reloads and OnReload
	attempted [sha256.Size]byte
	failure   string // of the last attempt, "" if it was good
	number    int

	generations prometheus.Gauge
	reloads     *prometheus.CounterVec
}

// NewWatcher loads the configuration for the first time. The error is that of Load.
func NewWatcher(opts WatcherOptions) (*Watcher, error) {
	if opts.Env == nil {
		opts.Env = os.LookupEnv
	}
	if opts.Debounce <= 0 {
		opts.Debounce = 250 * time.Millisecond
	}
	if opts.Poll <= 0 {
		opts.Poll = 10 * time.Second
	}
	w := &Watcher{opts: opts}
	w.generations = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gatehouse_config_generation", Help: "Number of the configuration in force, from 1; it grows with each change that is taken.",
	})
	w.reloads = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatehouse_config_reload_total", Help: "Attempts to read the configuration again, by result: changed, unchanged, failed.",
	}, []string{"result"})
	if opts.Registerer != nil {
		for _, c := range []prometheus.Collector{w.generations, w.reloads} {
			if err := opts.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("register the metrics of the configuration: %w", err)
			}
		}
	}
	first, err := w.load()
	if err != nil {
		return nil, err
	}
	w.attempted = w.fingerprint(first)
	w.take(first)
	return w, nil
}

// Current returns the configuration in force and its source.
func (w *Watcher) Current() (*Config, *Source) {
	g := w.current.Load()
	return g.config, g.source
}

// Reload reads the file now, as on SIGHUP. It returns the configuration in force afterwards, and why the file was not
// taken: then the configuration is the old one.
func (w *Watcher) Reload() (*Config, error) {
	w.reloading.Lock()
	defer w.reloading.Unlock()
	return w.reload()
}

// reload is called with reloading held.
func (w *Watcher) reload() (*Config, error) {
	old := w.current.Load()
	w.attempted = w.fingerprint(old)
	next, err := w.load()
	if err != nil {
		if failure := err.Error(); failure != w.failure {
			w.failure = failure
			w.reloads.WithLabelValues("failed").Inc()
			for _, fault := range AsFaults(w.opts.Path, err) {
				w.opts.Logger.Error().Str("fault", fault.Error()).Msg("configuration not reloaded: the one in force stays")
			}
		}
		return old.config, fmt.Errorf("the configuration in force stays: %w", err)
	}
	w.attempted, w.failure = w.fingerprint(next), ""
	changed := Reloaded{
		Old: old.config, New: next.config, Source: next.source,
		Changed: Changed(old.config, next.config), Restart: RestartNeeded(old.config, next.config),
	}
	for file, digest := range next.digests {
		if was, known := old.digests[file]; known && was != digest {
			changed.Files = append(changed.Files, file)
		}
	}
	slices.Sort(changed.Files)
	w.take(next)
	if len(changed.Changed) == 0 && len(changed.Files) == 0 {
		w.reloads.WithLabelValues("unchanged").Inc()
		return next.config, nil
	}
	w.number++
	w.generations.Set(float64(w.number))
	w.reloads.WithLabelValues("changed").Inc()
	w.opts.Logger.Info().Strs("changed", changed.Changed).Strs("files", changed.Files).Int("generation", w.number).Msg("configuration reloaded")
	next.source.Log(w.opts.Logger)
	if len(changed.Restart) > 0 {
		w.opts.Logger.Warn().Strs("keys", changed.Restart).Msg("these changes of the configuration take effect with the next restart")
	}
	if w.opts.OnReload != nil {
		w.opts.OnReload(changed)
	}
	return next.config, nil
}

func (w *Watcher) take(g *generation) {
	w.current.Store(g)
	if w.number == 0 {
		w.number = 1
		w.generations.Set(1)
	}
}

func (w *Watcher) load() (*generation, error) {
	c, source, err := Load(w.opts.Path, w.opts.Env)
	if err != nil {
		return nil, err
	}
	g := &generation{config: c, source: source, digests: map[string][sha256.Size]byte{}}
	for _, file := range source.Files {
		g.digests[file] = digestOf(file)
	}
	return g, nil
}

// fingerprint tells whether anything on disk differs from the last attempt: the file itself and those it names.
func (w *Watcher) fingerprint(g *generation) [sha256.Size]byte {
	sum := sha256.New()
	for _, file := range append([]string{w.opts.Path}, g.source.Files...) {
		digest := digestOf(file)
		sum.Write(digest[:])
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

// digestOf is zero for a file that cannot be read.
func digestOf(path string) [sha256.Size]byte {
	data, err := readRegular(path, maxFile)
	if err != nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256(data)
}

// Run reloads on every change of the file, or of a file that it names, until ctx ends. It watches folders, so that files
// replaced by a rename and the links of mounted secrets are seen. It returns nil when ctx ends, and never for a fault of
// the configuration.
func (w *Watcher) Run(ctx context.Context) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		w.opts.Logger.Warn().Err(err).Dur("every", w.opts.Poll).Msg("changes of the configuration are found by polling only")
		return w.poll(ctx)
	}
	defer func() { _ = notify.Close() }()
	watched := map[string]bool{}
	w.watchFolders(notify, watched)
	quiet := time.NewTimer(0) // the file may have changed since it was loaded
	defer quiet.Stop()
	poll := time.NewTicker(w.opts.Poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-notify.Events:
			if !ok {
				return errors.New("watch the configuration file: the watcher of the system ended")
			}
			quiet.Reset(w.opts.Debounce)
		case err, ok := <-notify.Errors:
			if !ok {
				return errors.New("watch the configuration file: the watcher of the system ended")
			}
			w.opts.Logger.Warn().Err(err).Msg("changes of the configuration may have been missed; the files are compared now")
			quiet.Reset(0)
		case <-poll.C:
			w.reloadIfChanged()
			w.watchFolders(notify, watched)
		case <-quiet.C:
			w.reloadIfChanged()
			w.watchFolders(notify, watched)
		}
	}
}

func (w *Watcher) poll(ctx context.Context) error {
	ticker := time.NewTicker(w.opts.Poll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			w.reloadIfChanged()
		}
	}
}

func (w *Watcher) reloadIfChanged() {
	w.reloading.Lock()
	defer w.reloading.Unlock()
	// A file with faults may be cured by one that it names and that has come meanwhile, so it is read again.
	if w.failure == "" && w.fingerprint(w.current.Load()) == w.attempted {
		return
	}
	_, _ = w.reload() // it has logged why not
}

// watchFolders watches the folders of the file and of what it names, as these are now.
func (w *Watcher) watchFolders(notify *fsnotify.Watcher, watched map[string]bool) {
	wanted := map[string]bool{filepath.Dir(w.opts.Path): true}
	_, source := w.Current()
	for _, file := range source.Files {
		wanted[filepath.Dir(file)] = true
	}
	for dir := range wanted {
		if watched[dir] {
			continue
		}
		if err := notify.Add(dir); err != nil {
			continue // polling covers it
		}
		watched[dir] = true
	}
	for dir := range maps.Clone(watched) {
		if !wanted[dir] {
			_ = notify.Remove(dir)
			delete(watched, dir)
		}
	}
}
