package integration_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/integration/harness"
)

// TestQuickstartAnswersAsItPrints runs the script that runs the printed curl lines, over each kind of event hub.
func TestQuickstartAnswersAsItPrints(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "gatehouse")
	if out, err := exec.Command("go", "build", "-o", binary, "gatehouse/cmd/gatehouse").CombinedOutput(); err != nil {
		t.Fatalf("build the binary: %v\n%s", err, out)
	}
	for _, test := range []struct {
		name string
		args func(t *testing.T) []string
	}{
		{"embedded NATS", func(*testing.T) []string { return nil }},
		{"RabbitMQ", func(t *testing.T) []string { return []string{"--event-hub", harness.Shared(t).URL("carbon")} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"quickstart-check.sh"}, test.args(t)...)...)
			cmd.Env = append(os.Environ(), "GATEHOUSE="+binary)
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // the script ends what it started
			cmd.WaitDelay = 10 * time.Second
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !strings.Contains(string(out), "as many at the backend and at the traffic manager") {
				t.Errorf("the script did not compare the counts:\n%s", out)
			}
			t.Log(lastLine(string(out)))
		})
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
