package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"gatehouse/agent"
	"gatehouse/agent/config"
	"gatehouse/agent/telemetry"
)

// quickstartGateway is the gateway of a configuration file, made by the same code as that of "gatehouse run".
type quickstartGateway struct {
	agent *agent.Agent
	// http and admin are where it listens.
	http, admin string
	ended       chan error
	stop        context.CancelFunc
}

// startQuickstartGateway opens the gateway's ports and runs it. What it logs goes to log.
func startQuickstartGateway(configFile string, log io.Writer) (*quickstartGateway, error) {
	cfg, _, err := config.Load(configFile, os.LookupEnv)
	if err != nil {
		return nil, fmt.Errorf("read the configuration that was written for the gateway: %w", err)
	}
	level, err := telemetry.NewLevel(cfg.Log.Level)
	if err != nil {
		return nil, err
	}
	a, err := agent.New(agent.Options{Config: cfg, Logger: telemetry.NewLogger(log, level), Level: level, AccessLog: log, Version: version})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	g := &quickstartGateway{agent: a, ended: make(chan error, 1), stop: stop}
	g.http, _, g.admin = a.Addresses()
	go func() { g.ended <- a.Run(ctx) }()
	return g, nil
}

// close stops the gateway and returns what its run returned.
func (g *quickstartGateway) close() error {
	g.stop()
	err := <-g.ended
	g.ended <- err // for whoever asks again
	return err
}

// quickstartReady is how long the gateway may take to become ready.
const quickstartReady = 20 * time.Second

// awaitReady waits until the gateway serves.
func (g *quickstartGateway) awaitReady(ctx context.Context) error {
	deadline := time.NewTimer(quickstartReady)
	defer deadline.Stop()
	select {
	case <-g.agent.Ready():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case err := <-g.ended:
		g.ended <- err
		return errors.New("the gateway ended before it was ready")
	case <-deadline.C:
		return fmt.Errorf("the gateway was not ready within %s", quickstartReady)
	}
}
