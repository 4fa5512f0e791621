package config

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lockedBuffer is a log that tests read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("not within 10 s: %s", what)
}

type watched struct {
	*Watcher
	path     string
	log      *lockedBuffer
	reloads  chan Reloaded
	registry *prometheus.Registry
}

// watch starts a watcher over a file with the given text; it ends with the test.
func watch(t *testing.T, text string, run bool) watched {
	t.Helper()
	dir := newFolder(t)
	w := watched{path: filepath.Join(dir, "gatehouse.toml"), log: &lockedBuffer{}, reloads: make(chan Reloaded, 100), registry: prometheus.NewRegistry()}
	writeFile(t, w.path, []byte(text))
	watcher, err := NewWatcher(WatcherOptions{
		Path: w.path, Env: testEnv, Logger: zerolog.New(w.log), Registerer: w.registry,
		Debounce: 10 * time.Millisecond, Poll: 50 * time.Millisecond, OnReload: func(r Reloaded) { w.reloads <- r },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Watcher = watcher
	if run {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- watcher.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	return w
}

func (w watched) level() string {
	c, _ := w.Current()
	return c.Log.Level
}

func TestReloadTakesAChangedFile(t *testing.T) {
	w := watch(t, "[log]\nlevel = \"info\"\n", false)
	writeFile(t, w.path, []byte("[log]\nlevel = \"debug\"\n[listener]\nhttp = \":8080\"\n[upstream.tls]\nskip_ssl_verification = true\n[apim.cache.resource]\nenable = true\n"))
	got, err := w.Reload()
	if err != nil {
		t.Fatal(err)
	}
	if got.Log.Level != "debug" || w.level() != "debug" {
		t.Errorf("level %q, in force %q", got.Log.Level, w.level())
	}
	r := <-w.reloads
	if diff := cmp.Diff([]string{"listener.http", "upstream.tls.skip_ssl_verification", "log.level"}, r.Changed); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"listener.http"}, r.Restart); diff != "" {
		t.Errorf("restart (-want +got):\n%s", diff)
	}
	if r.Old.Log.Level != "info" || r.New != got || !r.Source.Written("listener.http") {
		t.Errorf("reloaded: %+v", r)
	}
	if log := w.log.String(); !strings.Contains(log, "take effect with the next restart") || !strings.Contains(log, "listener.http") {
		t.Errorf("the log does not name what needs a restart:\n%s", log)
	}
	for _, want := range []string{
		`"level":"warn","file":"` + w.path + `","line":6,"key":"upstream.tls.skip_ssl_verification"`,
		`"level":"info","file":"` + w.path + `","line":7,"key":"apim.cache.resource","message":"without effect: resources are in memory"`,
	} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log lacks the note %s:\n%s", want, w.log)
		}
	}
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	metrics := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetName() + "=" + label.GetValue()
			}
			metrics[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{"gatehouse_config_generation": 2, "gatehouse_config_reload_total result=changed": 1}
	if diff := cmp.Diff(want, metrics); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestReloadOfAnUnchangedFileTellsNobody(t *testing.T) {
	w := watch(t, "[log]\nlevel = \"info\"\n", false)
	if _, err := w.Reload(); err != nil {
		t.Fatal(err)
	}
	if n := len(w.reloads); n != 0 {
		t.Errorf("%d reloads", n)
	}
}

func TestABadFileKeepsTheOldConfigurationAndSaysWhy(t *testing.T) {
	w := watch(t, "[log]\nlevel = \"info\"\n[admin]\ntoken = \"hunter2-planted\"\n", false)
	before, _ := w.Current()
	writeFile(t, w.path, []byte("[log]\nlevel = \"loud\"\n[admin]\ntoken = [\"hunter2-planted\"]\n"))
	got, err := w.Reload()
	if err == nil || got != before {
		t.Fatalf("Reload: %v, same configuration: %v", err, got == before)
	}
	for _, want := range []string{
		"the configuration in force stays", `gatehouse.toml:2: log.level = "loud": not one of the values it takes`, "gatehouse.toml:4: admin.token = [***]",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if faults := AsFaults("x", err); len(faults) != 2 {
		t.Errorf("%d faults inside the error, want 2", len(faults))
	}
	if log := w.log.String(); strings.Count(log, `"level":"error"`) != 2 || strings.Contains(log, "hunter2") {
		t.Errorf("log:\n%s", log)
	}
	if _, err := w.Reload(); err == nil {
		t.Error("the second Reload of the bad file is silent")
	}
	if log := w.log.String(); strings.Count(log, `"level":"error"`) != 2 {
		t.Errorf("the same faults are logged twice:\n%s", log)
	}
}

func TestRunFollowsTheFile(t *testing.T) {
	level := func(l string) string { return "[log]\nlevel = \"" + l + "\"\n" }
	replace := func(t *testing.T, path, text string) {
		t.Helper()
		temp := path + ".new"
		writeFile(t, temp, []byte(text))
		if err := os.Rename(temp, path); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("written in place", func(t *testing.T) {
		w := watch(t, level("info"), true)
		writeFile(t, w.path, []byte(level("debug")))
		eventually(t, "level is debug", func() bool { return w.level() == "debug" })
	})
	t.Run("replaced by a rename, twice", func(t *testing.T) {
		w := watch(t, level("info"), true)
		replace(t, w.path, level("debug"))
		eventually(t, "level is debug", func() bool { return w.level() == "debug" })
		replace(t, w.path, level("warn"))
		eventually(t, "level is warn", func() bool { return w.level() == "warn" })
	})
	t.Run("removed and written again", func(t *testing.T) {
		w := watch(t, level("info"), true)
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says that the file is gone", func() bool { return strings.Contains(w.log.String(), "does not exist") })
		if w.level() != "info" {
			t.Errorf("level %q while the file is gone", w.level())
		}
		writeFile(t, w.path, []byte(level("debug")))
		eventually(t, "level is debug", func() bool { return w.level() == "debug" })
	})
	t.Run("bad, then cured by a file that it names", func(t *testing.T) {
		w := watch(t, level("info"), true)
		later := filepath.Join(filepath.Dir(w.path), "later", "token.txt")
		replace(t, w.path, level("debug")+"[admin]\ntoken = \"$file{later/token.txt}\"\n")
		eventually(t, "the fault is logged", func() bool { return strings.Contains(w.log.String(), "later/token.txt") })
		writeFile(t, later, []byte("hunter2-planted\n"))
		eventually(t, "level is debug", func() bool { return w.level() == "debug" })
	})
	t.Run("a certificate is renewed", func(t *testing.T) {
		w := watch(t, "[apim.event_hub]\nenable = false\nca_file = \"tls/apim-ca.crt\"\n", true)
		cert, _ := newPair(t)
		path := filepath.Join(filepath.Dir(w.path), "tls/apim-ca.crt")
		replace(t, path, string(cert))
		r := <-w.reloads
		if !slices.Equal(r.Files, []string{path}) || len(r.Changed) != 0 {
			t.Errorf("files %v, changed %v", r.Files, r.Changed)
		}
	})
	t.Run("the link of a mounted secret is turned", func(t *testing.T) {
		w := watch(t, level("info"), false)
		dir := filepath.Join(filepath.Dir(w.path), "mount")
		for version, l := range map[string]string{"v1": "info", "v2": "debug"} {
			writeFile(t, filepath.Join(dir, version, "gatehouse.toml"), []byte(level(l)))
		}
		for link, target := range map[string]string{"..data": "v1", "gatehouse.toml": "..data/gatehouse.toml"} {
			if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		watcher, err := NewWatcher(WatcherOptions{Path: filepath.Join(dir, "gatehouse.toml"), Env: testEnv, Debounce: 10 * time.Millisecond, Poll: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- watcher.Run(ctx) }()
		if err := os.Symlink("v2", filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "level is debug", func() bool {
			c, _ := watcher.Current()
			return c.Log.Level == "debug"
		})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRestartNeeded(t *testing.T) {
	parse := func(text string) *Config {
		c, _, err := Parse("gatehouse.toml", []byte(text), testEnv, "/etc/gatehouse")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	user := func(names ...string) string {
		text := ""
		for _, name := range names {
			text += "[[traffic_manager.user]]\nname = \"" + name + "\"\npassword_hash = \"$2b$12$x\"\n"
		}
		return text
	}
	issuer := "[[apim.jwt.issuer]]\nname = \"i\"\njwks.url = \"https://k/c\"\n"
	for _, c := range []struct {
		name, old, new   string
		changed, restart []string
	}{
		{"nothing", "", "", nil, nil},
		{"a default written out", "", "[log]\nlevel = \"info\"", nil, nil},
		{"log level", "", "[log]\nlevel = \"debug\"", []string{"log.level"}, nil},
		{"listener", "", "[listener]\nhttp = \":1\"", []string{"listener.http"}, []string{"listener.http"}},
		{"a user more", user("a"), user("a", "b"), []string{"traffic_manager.user"}, []string{"traffic_manager.user"}},
		{"a user renamed", user("a", "b"), user("a", "c"), []string{"traffic_manager.user[1].name"}, []string{"traffic_manager.user[1].name"}},
		{"circuit breaker set up", "", "[upstream.circuit_breaker]\n", []string{"upstream.circuit_breaker"}, []string{"upstream.circuit_breaker"}},
		{
			"circuit breaker changed", "[upstream.circuit_breaker]\n", "[upstream.circuit_breaker]\nreset_time = \"9s\"",
			[]string{"upstream.circuit_breaker.reset_time"},
			[]string{"upstream.circuit_breaker.reset_time"},
		},
		{"a user of basic authentication more", "", "[[gateway.user]]\nname = \"a\"\npassword_hash = \"$2b$12$x\"\n", []string{"gateway.user"}, nil},
		{"an issuer more", "", issuer, []string{"apim.jwt.issuer"}, nil},
		{
			"a list", "", "[gateway]\ntenants = [\"*\"]\nenvironment = \"Prod\"",
			[]string{"gateway.environment", "gateway.gateway_labels", "gateway.tenants"},
			[]string{"gateway.environment", "gateway.gateway_labels", "gateway.tenants"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			old, new := parse(c.old), parse(c.new)
			if diff := cmp.Diff(c.changed, Changed(old, new)); diff != "" {
				t.Errorf("changed (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.restart, RestartNeeded(old, new)); diff != "" {
				t.Errorf("restart (-want +got):\n%s", diff)
			}
		})
	}
}
