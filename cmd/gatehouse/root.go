package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/agent/config"
)

// Exit statuses, the same for every command.
const (
	statusOK     = 0
	statusFailed = 1 // failed while running
	statusUsage  = 2 // wrong usage or configuration
)

// ioStreams are what a command reads and writes: results go to Out, everything else to Err.
type ioStreams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// commands are the constructors of all commands, in the order of the help text. A command lives in a file of its own
// with its constructor; adding it here is all that it needs.
var commands = []func(ioStreams) *cobra.Command{
	newRunCommand,
	newQuickstartCommand,
	newValidateCommand,
	newTokenCommand,
	newVersionCommand,
}

// statusError is an error that ends the program with a status of its own.
type statusError struct {
	status int
	err    error // nil when everything has been said already
}

func (e *statusError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// usageError marks an error as one of usage or configuration: status 2. A nil err says that it has been printed; the error
// of config.Load is printed fault by fault.
func usageError(err error) error { return &statusError{status: statusUsage, err: err} }

// failedError marks an error as a failure while running: status 1. A nil err says that it has been printed.
func failedError(err error) error { return &statusError{status: statusFailed, err: err} }

// execute runs the command line and returns the exit status. It never exits the process. Errors of commands that are
// neither usageError nor failedError come from cobra's reading of arguments, except those that RunE of a command returns
// plain: these are failures while running.
func execute(ctx context.Context, args []string, streams ioStreams) int {
	root := newRootCommand(streams)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return statusOK
	}
	status := statusUsage
	if own, ok := errors.AsType[*statusError](err); ok {
		status = own.status
	}
	if faults, ok := errors.AsType[config.Faults](err); ok {
		for _, fault := range faults {
			fmt.Fprintln(streams.Err, fault.Error()) // file and line first, where editors look for them
		}
		return status
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(streams.Err, "gatehouse: "+text)
	}
	return status
}

func newRootCommand(streams ioStreams) *cobra.Command {
	root := &cobra.Command{
		Use:           "gatehouse",
		Short:         "An API gateway that WSO2 API Manager governs",
		Long:          "Gatehouse is an API gateway that WSO2 API Manager governs. Each command below is a role or a tool of the one binary.\n\nExit status: 0 fine, 1 failed while running, 2 wrong usage or configuration.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(unknownCommand(cmd, args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprint(streams.Err, cmd.UsageString())
			return usageError(nil)
		},
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(fmt.Errorf("%w; see %q", err, cmd.CommandPath()+" --help"))
	})
	for _, construct := range commands {
		command := construct(streams)
		command.RunE = asFailure(command.RunE)
		for _, sub := range command.Commands() {
			sub.RunE = asFailure(sub.RunE)
		}
		root.AddCommand(command)
	}
	return root
}

// asFailure gives plain errors of a command's run the status of a failure; cobra's own errors, which come before the run,
// are errors of usage.
func asFailure(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	if run == nil {
		return nil
	}
	return func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		if _, ok := errors.AsType[*statusError](err); ok || err == nil {
			return err
		}
		return failedError(err)
	}
}

func unknownCommand(root *cobra.Command, name string) error {
	names := make([]string, 0, len(commands))
	for _, construct := range commands {
		names = append(names, construct(ioStreams{}).Name())
	}
	if near := root.SuggestionsFor(name); len(near) > 0 {
		return fmt.Errorf("unknown command %q; did you mean %q?", name, near[0])
	}
	return fmt.Errorf("unknown command %q; the commands are %s", name, strings.Join(names, ", "))
}

// outputFlag adds --output to a command whose result a script may read, and returns where its value will be.
func outputFlag(cmd *cobra.Command) *string {
	output := cmd.Flags().StringP("output", "o", "text", "form of the result: text or json")
	previous := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *output != "text" && *output != "json" {
			return usageError(fmt.Errorf("--output %s: write text or json", *output))
		}
		if previous != nil {
			return previous(cmd, args)
		}
		return nil
	}
	return output
}

// printJSON writes a result for scripts.
func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
