package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version and commit are stamped by the build: -ldflags "-X main.version=… -X main.commit=…". Without it they come from
// what the Go tool recorded.
var version, commit string

// buildVersion is what the version command prints.
type buildVersion struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Go      string `json:"go"`
}

// versionOfBuild returns the stamped version, else what the Go tool recorded in the binary.
func versionOfBuild() buildVersion {
	v := buildVersion{Version: version, Commit: commit, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if ok {
		if info.Main.Version != "(devel)" {
			v.Version = cmp.Or(v.Version, info.Main.Version)
		}
		revision, modified := "", false
		for _, setting := range info.Settings {
			switch setting.Key {
			case "vcs.revision":
				revision = setting.Value
			case "vcs.modified":
				modified = setting.Value == "true"
			}
		}
		if revision != "" && modified {
			revision += "-modified"
		}
		v.Commit = cmp.Or(v.Commit, revision)
	}
	v.Version, v.Commit = cmp.Or(v.Version, "devel"), cmp.Or(v.Commit, "unknown")
	return v
}

func newVersionCommand(streams ioStreams) *cobra.Command {
	command := &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and Go version",
		Args:  noArguments,
	}
	output := outputFlag(command)
	command.RunE = func(*cobra.Command, []string) error {
		v := versionOfBuild()
		if *output == "json" {
			return printJSON(streams.Out, v)
		}
		_, err := fmt.Fprintf(streams.Out, "gatehouse %s (commit %s, %s)\n", v.Version, v.Commit, v.Go)
		return err
	}
	return command
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(fmt.Errorf("%s takes no argument, but got %q", cmd.CommandPath(), args[0]))
	}
	return nil
}
