// Package telemetry builds what the parts of the gateway report with: the logger and the Prometheus registry. It builds
// them and hands them out; nothing here is global.
package telemetry

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
)

// Levels are the names that a log level may have, from the most to the least talkative.
var levels = []string{"trace", "debug", "info", "warn", "error"}

// Level is a log level that can be changed while loggers use it. It is safe for concurrent use.
type Level struct{ level atomic.Int32 }

// NewLevel returns a level of that name: trace, debug, info, warn or error.
func NewLevel(name string) (*Level, error) {
	l := &Level{}
	if err := l.Set(name); err != nil {
		return nil, err
	}
	return l, nil
}

// Set changes the level for every logger that was built with it.
func (l *Level) Set(name string) error {
	for _, known := range levels {
		if name == known {
			parsed, err := zerolog.ParseLevel(name)
			if err != nil {
				return fmt.Errorf("log level %q: %w", name, err)
			}
			l.level.Store(int32(parsed))
			return nil
		}
	}
	return fmt.Errorf("log level %q is not known: write one of %s", name, strings.Join(levels, ", "))
}

// String returns the level's name.
func (l *Level) String() string { return zerolog.Level(l.level.Load()).String() }

// Run implements zerolog.Hook: it drops what lies below the level.
func (l *Level) Run(e *zerolog.Event, level zerolog.Level, _ string) {
	if level < zerolog.Level(l.level.Load()) {
		e.Discard()
	}
}

// NewLogger returns a logger that writes JSON lines to w, with a time in RFC 3339 with milliseconds, in UTC.
func NewLogger(w io.Writer, level *Level) zerolog.Logger {
	return zerolog.New(w).Hook(level, zerolog.HookFunc(stamp))
}

// stamp adds the time itself, because the format of zerolog's own time stamp is a global of that package.
func stamp(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}

// NewRegistry returns a registry with the collectors of the Go runtime and the process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
