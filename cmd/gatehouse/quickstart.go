package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/broker"
)

type quickstartOptions struct {
	http, admin, manager string
	eventHub             string
	once                 bool
	output               string
	// profile and encoding are the version of API Manager that is emulated and the form of its event bodies; "" is the newest.
	profile  string
	encoding broker.Encoding
}

func newQuickstartCommand(streams ioStreams) *cobra.Command {
	var o quickstartOptions
	cmd := &cobra.Command{
		Use:   "quickstart",
		Short: "Run a gateway with everything around it on this machine",
		Long: `Run a gateway with everything around it on this machine: an emulated API Manager (data service over HTTPS, event hub on
an embedded NATS server, traffic manager), a third-party key manager, a sample backend, and the gateway registered with them
over real sockets. Curl lines to try are printed, each with the answer to expect.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&o.http, "http", "127.0.0.1:9090", "where the gateway listens; port 0 takes a free one")
	f.StringVar(&o.admin, "admin", "127.0.0.1:9096", "where its admin server listens; port 0 takes a free one")
	f.StringVar(&o.manager, "api-manager", "127.0.0.1:9443", "where the emulated API Manager listens; port 0 takes a free one")
	f.StringVar(&o.eventHub, "event-hub", "", "a broker to use instead of the embedded one: amqp://user:password@host:port/vhost or nats://host:port")
	f.BoolVar(&o.once, "once", false, "run the printed requests, print each with its answer, and end: status 1 if one differs")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.output = *output
		return runQuickstart(cmd.Context(), o, streams)
	}
	return cmd
}

func runQuickstart(ctx context.Context, o quickstartOptions, streams ioStreams) (err error) {
	began := time.Now()
	for _, address := range [][2]string{{"http", o.http}, {"admin", o.admin}, {"api-manager", o.manager}} {
		if err := checkFree(address[0], address[1]); err != nil {
			return err
		}
	}
	folder, err := os.MkdirTemp("", "gatehouse-")
	if err != nil {
		return fmt.Errorf("make a folder for the quickstart: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()

	e, err := emulator.New(emulator.Options{
		Address: o.manager, EventHub: o.eventHub, VHost: quickstartVHost, Profile: o.profile, Encoding: o.encoding,
		OnError: func(err error) { fmt.Fprintln(streams.Err, "gatehouse: emulator:", err) },
	})
	if err != nil {
		return fmt.Errorf("start the emulated API Manager: %w", err)
	}
	defer e.Close()
	if err := fillQuickstart(e); err != nil {
		return fmt.Errorf("fill the emulated API Manager: %w", err)
	}
	tokens, headers, err := mintQuickstart(e, folder)
	if err != nil {
		return err
	}
	configFile, err := quickstartConfig(e, folder, o.http, o.admin)
	if err != nil {
		return err
	}
	logFile := filepath.Join(folder, "gatehouse.log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the gateway's log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	gateway, err := startQuickstartGateway(configFile, log)
	if err != nil {
		return fmt.Errorf("start the gateway: %w", err)
	}
	defer func() { // before the world around it ends
		if closed := gateway.close(); closed != nil {
			err = errors.Join(err, fmt.Errorf("gateway: %w", closed))
		}
		if err != nil && ctx.Err() == nil {
			tail(streams.Err, logFile)
		}
	}()
	if err := gateway.awaitReady(ctx); err != nil {
		return err
	}
	curl := "curl -si"
	if wildcard(o.http) { // so that the client's address is the one that a deny policy names
		curl = "curl -4 -si"
	}
	places := quickstartPlaces{
		Ready: true, Seconds: time.Since(began).Seconds(), Gateway: "http://" + localAddress(gateway.http), Admin: "http://" + gateway.admin,
		APIManager: e.URL(), Page: e.URL() + "/emulator/", Counters: e.URL() + "/emulator/counters", KeyManager: e.Issuer().Issuer(), Backend: e.BackendURL(),
		EventHub: maskedURL(e.Hub().URL()), Embedded: e.Hub().Embedded(), Config: configFile, Log: logFile, Tokens: tokens,
	}
	plan := &quickstartPlan{gateway: places.Gateway, manager: e.URL(), admin: gateway.admin, binary: binaryName(os.Args[0]), curl: curl, headers: headers}
	plan.fill()
	if o.once {
		return runQuickstartOnce(ctx, plan, e, tokens, o.output, streams)
	}
	if o.output == "json" {
		places.Steps = plan.steps
		if err := printJSON(streams.Out, places); err != nil {
			return err
		}
	} else {
		places.print(streams.Out)
		plan.print(streams.Out)
		fmt.Fprint(streams.Out, "\nCtrl-C ends it. \"gatehouse quickstart --once\" runs all of this and checks it.\n")
	}
	select {
	case <-ctx.Done():
		return nil
	case ended := <-gateway.ended:
		gateway.ended <- ended
		return errors.New("the gateway ended by itself")
	}
}

func runQuickstartOnce(ctx context.Context, plan *quickstartPlan, e *emulator.Emulator, tokens map[string]string, output string, streams ioStreams) error {
	results := []quickstartResult{}
	group, wrong := "", 0
	right := runQuickstartPlan(ctx, plan, e.CAPEM(), tokens, func(r quickstartResult) {
		if !r.OK {
			wrong++
		}
		if output == "json" {
			results = append(results, r)
			return
		}
		if r.Group != group {
			group = r.Group
			fmt.Fprintf(streams.Out, "\n%s\n", group)
		}
		mark, expected := "ok  ", ""
		if !r.OK {
			mark, expected = "FAIL", "  expected "+quickstartAnswer(r.Status, r.Code)
		}
		fmt.Fprintf(streams.Out, "%s  %-10s  %4.0f ms  %s%s\n      %s\n", mark, r.answer(), r.Seconds*1000, r.Title, expected, r.Command)
	})
	if output == "json" {
		if err := printJSON(streams.Out, map[string]any{"ok": right, "steps": results}); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if !right {
		return fmt.Errorf("%d of %d requests were answered otherwise than printed", wrong, len(plan.steps))
	}
	if output != "json" {
		fmt.Fprintf(streams.Out, "\nall %d requests were answered as printed\n", len(plan.steps))
	}
	return nil
}

// quickstartPlaces is where everything is.
type quickstartPlaces struct {
	Ready      bool              `json:"ready"`
	Seconds    float64           `json:"seconds"`
	Gateway    string            `json:"gateway"`
	Admin      string            `json:"admin"`
	APIManager string            `json:"api_manager"`
	Page       string            `json:"page"`
	Counters   string            `json:"counters"`
	KeyManager string            `json:"key_manager"`
	Backend    string            `json:"backend"`
	EventHub   string            `json:"event_hub"`
	Embedded   bool              `json:"event_hub_embedded"`
	Config     string            `json:"config"`
	Log        string            `json:"log"`
	Tokens     map[string]string `json:"tokens"`
	Steps      []quickstartStep  `json:"steps"`
}

func (p quickstartPlaces) print(w io.Writer) {
	hub := p.EventHub
	if p.Embedded {
		hub += "  (in this process)"
	}
	fmt.Fprintf(w, "Gatehouse is ready after %.1f s.\n\n", p.Seconds)
	for _, l := range [][2]string{
		{"gateway", p.Gateway},
		{"its state", p.Admin + "/api/v1/state"},
		{"why refused", p.Admin + "/api/v1/explain?request_id=…  (the X-Request-Id of an answer)"},
		{"API Manager", p.APIManager + "  (emulated; steer it at " + p.Page + ")"},
		{"key manager", p.KeyManager},
		{"event hub", hub},
		{"backend", p.Backend},
		{"configuration", p.Config},
		{"log", p.Log},
		{"tokens", filepath.Join(filepath.Dir(p.Config), "{alice,bob,carol,dave,opaque,apikey}") + "  (curl sends such a file as a header: -H @file)"},
	} {
		fmt.Fprintf(w, "  %-14s %s\n", l[0], l[1])
	}
}

// binaryName is how a shell calls this program again: by the path it was called with, where that needs no quotes.
func binaryName(called string) string {
	if called == "" || strings.ContainsAny(called, " \t'\"$\\&|<>*?") {
		return "gatehouse"
	}
	return called
}

// tail shows the end of the gateway's log, which goes with its folder.
func tail(w io.Writer, file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	fmt.Fprintf(w, "the end of the gateway's log:\n%s\n", b[max(0, len(b)-4000):])
}
