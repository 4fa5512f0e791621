package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"gatehouse/agent"
	"gatehouse/agent/config"
	"gatehouse/agent/telemetry"
)

func newRunCommand(streams ioStreams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the gateway",
		Long: `Run the gateway: data plane, agent and admin server in one process. Logs go to standard error and the access log to
standard output, both as JSON lines. SIGHUP, or a change of the file, reads the configuration again; SIGTERM drains and stops.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVarP(&file, "config", "c", "gatehouse.toml", "the configuration file")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return runGateway(cmd.Context(), file, streams) }
	return cmd
}

func runGateway(ctx context.Context, file string, streams ioStreams) error {
	cfg, source, err := loadConfig(file)
	if err != nil {
		return usageError(err)
	}
	level, err := telemetry.NewLevel(cfg.Log.Level)
	if err != nil {
		return usageError(err)
	}
	log := telemetry.NewLogger(streams.Err, level)
	build := versionOfBuild()
	log.Info().Str("version", build.Version).Str("commit", build.Commit).Str("go", build.Go).Str("config", file).Msg("gatehouse starts")
	source.Log(log)
	log.Debug().Interface("config", cfg.Redacted()).Msg("configuration in force")

	a, err := agent.New(agent.Options{
		Config: cfg, Watcher: &config.WatcherOptions{Path: file}, Logger: log, Level: level, AccessLog: streams.Out, Version: build.Version,
	})
	if err != nil {
		return fmt.Errorf("start the gateway: %w", err)
	}
	http, https, admin := a.Addresses()
	log.Info().Str("http", http).Str("https", https).Str("admin", admin).Msg("listening")

	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	stopped := make(chan struct{})
	defer func() { <-stopped }()
	following, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer close(stopped)
		follow(following, a, hangups, log)
	}()
	return a.Run(ctx)
}

// follow logs when the gateway becomes ready, and reads the configuration again at each hang-up.
func follow(ctx context.Context, a *agent.Agent, hangups <-chan os.Signal, log zerolog.Logger) {
	ready := a.Ready()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ready:
			log.Info().Msg("ready")
			ready = nil
		case <-hangups:
			// A file with faults changes nothing; the watcher has said which.
			if err := a.Reload(); err == nil {
				log.Info().Msg("configuration read again")
			}
		}
	}
}
