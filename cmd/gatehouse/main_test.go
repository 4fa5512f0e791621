package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"gatehouse/agent/config"
)

// The scripts run the program as its users do: a process of its own with arguments, exit status and both outputs.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gatehouse": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": expectStatus, "mint": mintInScript,
		},
		Setup: tokenScripts,
	})
}

// expectStatus is the command "status N PROGRAM ARG…": it runs a program, keeps what it printed for stdout and stderr, and
// fails when the exit status is another. testscript itself knows success and failure only.
func expectStatus(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM ARG…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s ended with status %s, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// run executes a command line inside the test.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	status = execute(t.Context(), args, ioStreams{In: strings.NewReader(""), Out: &out, Err: &err})
	return status, out.String(), err.String()
}

func TestEveryCommandHasHelpAndRefusesUnknownFlags(t *testing.T) {
	for _, construct := range commands {
		command := construct(ioStreams{})
		name := command.Name()
		if command.Short == "" || strings.HasSuffix(command.Short, ".") || command.Short[0] < 'A' || command.Short[0] > 'Z' {
			t.Errorf("%s: the help line %q should begin with a capital letter and end without a full stop", name, command.Short)
		}
		if command.RunE == nil && !command.HasSubCommands() {
			t.Errorf("%s does nothing", name)
		}
		status, stdout, stderr := run(t, name, "--help")
		if status != statusOK || !strings.Contains(stdout, "gatehouse "+name) || stderr != "" {
			t.Errorf("%s --help: status %d\n%s%s", name, status, stdout, stderr)
		}
		if status, stdout, stderr = run(t, name, "--no-such-flag"); status != statusUsage || stdout != "" || !strings.Contains(stderr, "no-such-flag") {
			t.Errorf("%s --no-such-flag: status %d, stdout %q, stderr %q", name, status, stdout, stderr)
		}
	}
}

// What run and its like do with a configuration that has faults.
func TestFaultsOfAConfigurationGoToStderrOneALine(t *testing.T) {
	saved := commands
	t.Cleanup(func() { commands = saved })
	for _, c := range []struct {
		name   string
		err    func() error
		status int
		stderr string
	}{
		{"a configuration with faults", func() error {
			_, _, err := config.Parse("g.toml", []byte("[log]\nlevel = 1\n[admin]\nopen = 2\n"), nil, "/")
			return usageError(fmt.Errorf("load: %w", err))
		}, statusUsage, "g.toml:2: log.level = 1: a whole number, where a string belongs; write it in quotes\n" +
			"g.toml:4: admin.open = 2: a whole number, where a list belongs; write [\"health\"]\n"},
		{"a failure", func() error { return errors.New("dial: refused") }, statusFailed, "gatehouse: dial: refused\n"},
		{"a marked failure", func() error { return failedError(errors.New("no")) }, statusFailed, "gatehouse: no\n"},
		{"a failure that is printed already", func() error { return failedError(nil) }, statusFailed, ""},
		{"nothing wrong", func() error { return nil }, statusOK, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			commands = []func(ioStreams) *cobra.Command{func(ioStreams) *cobra.Command {
				return &cobra.Command{Use: "try", RunE: func(*cobra.Command, []string) error { return c.err() }}
			}}
			status, stdout, stderr := run(t, "try")
			if status != c.status || stdout != "" || stderr != c.stderr {
				t.Errorf("status %d, stdout %q, stderr:\n%s", status, stdout, stderr)
			}
		})
	}
}

func TestTheStampedVersionWins(t *testing.T) {
	savedVersion, savedCommit := version, commit
	t.Cleanup(func() { version, commit = savedVersion, savedCommit })
	version, commit = "1.2.3", "abcdef"
	status, stdout, _ := run(t, "version")
	if want := "gatehouse 1.2.3 (commit abcdef, " + runtime.Version() + ")\n"; status != statusOK || stdout != want {
		t.Errorf("status %d, %q, want %q", status, stdout, want)
	}
}
