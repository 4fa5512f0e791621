package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/agent/artifact"
	"gatehouse/agent/config"
)

// defaultConfig is the configuration file that commands take when none is named.
const defaultConfig = "gatehouse.toml"

// verdict is what validate says of one file or project.
type verdict struct {
	Path       string         `json:"path"`
	OK         bool           `json:"ok"`
	API        string         `json:"api,omitempty"`        // name and version
	Operations *int           `json:"operations,omitempty"` // of an API
	Faults     []config.Fault `json:"faults,omitempty"`
	Notes      []config.Note  `json:"notes,omitempty"`
}

func newValidateCommand(streams ioStreams) *cobra.Command {
	command := &cobra.Command{
		Use:   "validate [-c gatehouse.toml] [PATH…]",
		Short: "Check a configuration and API projects, naming each fault with file, line, key and what would be right",
		Long: "Checks a configuration file, and the OpenAPI files, project folders and zips named as arguments. Prints a line for each, or\n" +
			"its faults, and exits with status 2 if any has a fault. Without -c, gatehouse.toml is checked where it exists.\n\n" +
			"With --output json the result is a list of objects: path, ok, api and operations of an API, faults (file, line, column, key,\n" +
			"value, problem, fix) and notes.",
		Example: "  gatehouse validate -c /etc/gatehouse/gatehouse.toml\n  gatehouse validate apis/petstore.yaml apis/orders.zip",
	}
	path := command.Flags().StringP("config", "c", "", "configuration file (default gatehouse.toml, where it exists)")
	output := outputFlag(command)
	command.RunE = func(_ *cobra.Command, args []string) error {
		var verdicts []verdict
		name := *path
		if name == "" {
			if _, err := os.Stat(defaultConfig); err == nil || len(args) == 0 {
				name = defaultConfig
			}
		}
		if name != "" {
			verdicts = append(verdicts, checkConfig(name))
		}
		for _, arg := range args {
			verdicts = append(verdicts, checkProjects(arg)...)
		}
		return report(streams, verdicts, *output == "json")
	}
	return command
}

func checkConfig(path string) verdict {
	_, source, err := loadConfig(path)
	v := verdict{Path: path, OK: err == nil, Faults: config.AsFaults(path, err)}
	if source != nil {
		v.Notes = source.Notes
	}
	return v
}

// checkProjects checks what stands at a path: one API, or each in a folder.
func checkProjects(path string) []verdict {
	checked, err := artifact.CheckPath(path, artifact.Options{LookupEnv: os.LookupEnv})
	if err != nil {
		// The message begins with the path, which the fault has already.
		return []verdict{{Path: path, Faults: []config.Fault{{File: path, Problem: strings.TrimPrefix(err.Error(), path+": ")}}}}
	}
	verdicts := make([]verdict, 0, len(checked))
	for _, c := range checked {
		v := verdict{Path: c.Path, OK: len(c.Faults) == 0}
		if v.OK {
			v.API, v.Operations = strings.TrimSpace(c.Name+" "+c.Version), &c.Operations
		}
		for _, f := range c.Faults {
			fault := config.Fault{File: f.File, Position: config.Position{Line: f.Line, Column: f.Column}, Key: f.Key, Problem: f.Problem, Fix: f.Want}
			if f.Value != "" {
				fault.Value = strconv.Quote(f.Value)
			}
			v.Faults = append(v.Faults, fault)
		}
		for _, note := range c.Notes {
			v.Notes = append(v.Notes, config.Note{File: c.Path, Text: note})
		}
		verdicts = append(verdicts, v)
	}
	return verdicts
}

// report prints the verdicts, and gives the error that makes the status 2 when one of them is bad.
func report(streams ioStreams, verdicts []verdict, asJSON bool) error {
	faults, bad := 0, 0
	for _, v := range verdicts {
		faults += len(v.Faults)
		if !v.OK {
			bad++
		}
	}
	if asJSON {
		if err := printJSON(streams.Out, verdicts); err != nil {
			return err
		}
	} else {
		for _, v := range verdicts {
			printVerdict(streams, v)
		}
	}
	if bad > 0 {
		return usageError(errors.New("validate: " + counted(faults, "fault") + " in " + counted(bad, "file")))
	}
	return nil
}

func printVerdict(streams ioStreams, v verdict) {
	for _, note := range v.Notes {
		fmt.Fprintln(streams.Err, note)
	}
	for _, fault := range v.Faults {
		fmt.Fprintln(streams.Out, fault.Error())
	}
	switch {
	case v.OK && v.Operations != nil:
		fmt.Fprintf(streams.Out, "%s: ok, %s\n", v.Path, counted(*v.Operations, "operation"))
	case v.OK:
		fmt.Fprintf(streams.Out, "%s: ok\n", v.Path)
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
