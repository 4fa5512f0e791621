package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestThroughputAgainstReverseProxy holds the target of speed: the whole pipeline at no less than 0.90 of a bare, tuned
// httputil.ReverseProxy on the same core. It takes minutes and the whole machine, so it runs only where
// GATEHOUSE_BENCH_ROUNDS says how many rounds.
func TestThroughputAgainstReverseProxy(t *testing.T) {
	rounds := os.Getenv("GATEHOUSE_BENCH_ROUNDS")
	if rounds == "" {
		t.Skip("GATEHOUSE_BENCH_ROUNDS is not set: make bench sets it")
	}
	program := filepath.Join(t.TempDir(), "bench")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the comparison: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), program, "-rounds", rounds, "-least", "0.90").CombinedOutput()
	t.Logf("\n%s", out)
	if err != nil {
		t.Fatal(err)
	}
}
