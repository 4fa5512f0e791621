package harness

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Child is a program that a test started, in a process group of its own. Its methods must not be called concurrently.
type Child struct {
	process *process
	output  string
}

// StartChild starts c, with what it prints appended to a file. It is killed, with all that it started, when the test ends,
// and on Linux also when the test binary is killed. An error of the start fails the test.
func StartChild(t testing.TB, c *exec.Cmd, output string) *Child {
	t.Helper()
	p, err := startProcess(c, c.Env, output)
	if err != nil {
		t.Fatalf("start %s: %v", c.Path, err)
	}
	child := &Child{process: p, output: output}
	t.Cleanup(child.Kill)
	return child
}

// Ended is closed once the program is gone.
func (c *Child) Ended() <-chan struct{} { return c.process.done }

// Kill ends the program as a power cut does, kill -9, and waits for it. It may be called twice.
func (c *Child) Kill() { c.process.kill() }

// Stop asks the program to end, and kills it once the limit is over.
func (c *Child) Stop(limit time.Duration) {
	c.process.signal(syscall.SIGTERM)
	select {
	case <-c.process.done:
	case <-time.After(limit):
		c.process.kill()
	}
}

// Tail returns the last n lines that the program printed.
func (c *Child) Tail(n int) string {
	b, _ := os.ReadFile(c.output) // what cannot be read is not shown
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// FreePort returns a port that nobody listens on, and that no outgoing connection is given, so that it stays free while
// its server is down.
func FreePort(t testing.TB) int {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}
