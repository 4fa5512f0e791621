package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/issuer"
)

// buildGateway builds the program that is measured, as the Makefile does.
func buildGateway(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "gatehouse")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "gatehouse/cmd/gatehouse")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the gateway: %v\n%s", err, out)
	}
	return program
}

func mint(t *testing.T, e *emulator.Emulator) string {
	t.Helper()
	token, err := e.Issuer().Mint(issuer.Token{ClientID: "mobile-app", Subject: "alice", Scope: "default"})
	if err != nil {
		t.Fatal(err)
	}
	return token.Token
}

// gateway is the program in a process of its own.
type gateway struct {
	t       *testing.T
	cmd     *exec.Cmd
	started time.Time
	http    string // host:port
	admin   string // URL
	log     *logLines
	stopped bool
}

// startGateway starts the program on free ports and waits until it listens. It ends with the test.
func startGateway(t *testing.T, program string, w *world, dataDir string) *gateway {
	t.Helper()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, w.emu.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gatehouse.toml")
	text := fmt.Sprintf(`
[listener]
http = "127.0.0.1:0"
[admin]
address = "127.0.0.1:0"
[gateway]
data_dir = %[1]q
drain_delay = "0s"
[apim.event_hub]
service_url = %[2]q
username = "admin"
password = "admin"
event_listening_endpoints = [%[3]q]
ca_file = %[4]q
[apim.throttling]
ca_file = %[4]q
[[apim.throttling.url_group]]
traffic_manager_urls = ["tcp://%[5]s"]
traffic_manager_auth_urls = ["ssl://%[6]s"]
[standalone]
apis = ""
policies = ""
`, dataDir, w.emu.URL(), w.emu.Hub().URL(), ca, w.emu.Receiver().TCPAddress(), w.emu.Receiver().TLSAddress())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, cmd: exec.Command(program, "run", "-c", file), log: newLogLines(), started: time.Now()}
	g.cmd.Stderr = g.log
	if err := g.cmd.Start(); err != nil {
		t.Fatalf("start the gateway: %v", err)
	}
	t.Cleanup(func() {
		if !g.stopped {
			_ = g.cmd.Process.Kill()
			_ = g.cmd.Wait() // it was killed
		}
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", g.log.tail(40))
		}
	})
	var listening struct{ HTTP, Admin string }
	line, ok := g.log.wait("listening", 30*time.Second)
	if !ok || json.Unmarshal(line, &listening) != nil {
		t.Fatalf("the gateway does not listen:\n%s", g.log.tail(20))
	}
	g.http, g.admin = listening.HTTP, "http://"+listening.Admin
	return g
}

func (g *gateway) waitReady(limit time.Duration) {
	g.t.Helper()
	g.poll(limit, "the gateway is ready", 10*time.Millisecond, func() bool {
		resp, err := adminClient.Get(g.admin + "/health/ready")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body) // so that the connection is kept
		return resp.StatusCode == http.StatusOK
	})
}

func (g *gateway) poll(limit time.Duration, what string, every time.Duration, ok func() bool) {
	g.t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			g.t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(every)
	}
}

// waitFetched waits until every list has been fetched after a time. The gateway tells milliseconds, and a short list may be
// there within the one in which it was asked for.
func (g *gateway) waitFetched(after time.Time, limit time.Duration) {
	g.t.Helper()
	after = after.Truncate(time.Millisecond)
	g.poll(limit, "every list has been fetched again", 50*time.Millisecond, func() bool {
		for _, k := range g.state().lists {
			if k.HeldBack || k.FetchedAt.Before(after) {
				return false
			}
		}
		return true
	})
}

func (g *gateway) waitConnected(limit time.Duration) {
	g.t.Helper()
	g.poll(limit, "connected to the event hub", 20*time.Millisecond, func() bool { return g.state().hub.Connected })
}

// state is what /api/v1/state tells.
type state struct {
	Counts map[string]int
	hub    struct {
		Connected     bool              `json:"connected"`
		EventsApplied uint64            `json:"events_applied"`
		EventsIgnored map[string]uint64 `json:"events_ignored"`
		Queue         int               `json:"queue"`
	}
	lists map[string]struct {
		FetchedAt time.Time `json:"fetched_at"`
		HeldBack  bool      `json:"held_back"`
	}
}

func (s *state) ignored() (n uint64) {
	for _, v := range s.hub.EventsIgnored {
		n += v
	}
	return n
}

func (g *gateway) state() *state {
	g.t.Helper()
	resp, err := adminClient.Get(g.admin + "/api/v1/state")
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	var raw struct {
		Counts  map[string]int
		Sources []json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		g.t.Fatalf("state: %v", err)
	}
	s := &state{Counts: raw.Counts}
	for _, src := range raw.Sources {
		var head struct {
			Name   string          `json:"name"`
			ByKind json.RawMessage `json:"by_kind"`
		}
		err := json.Unmarshal(src, &head)
		switch {
		case err != nil:
		case head.Name == "event_hub":
			err = json.Unmarshal(src, &s.hub)
		case head.Name == "lists":
			err = json.Unmarshal(head.ByKind, &s.lists)
		}
		if err != nil {
			g.t.Fatalf("state: %v: %s", err, src)
		}
	}
	return s
}

func (g *gateway) post(path string) { g.send(http.MethodPost, path, "") }

func (g *gateway) put(path, body string) { g.send(http.MethodPut, path, body) }

func (g *gateway) send(method, path, body string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.admin+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := adminClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
		g.t.Fatalf("%s %s: %s %s", method, path, resp.Status, answer)
	}
}

var adminClient = &http.Client{Timeout: 20 * time.Second}

// stop ends the process in good order and tells how long that took.
func (g *gateway) stop() time.Duration {
	g.t.Helper()
	began := time.Now()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- g.cmd.Wait() }()
	select {
	case err := <-ended:
		g.stopped = true
		if err != nil {
			g.t.Errorf("the gateway ended with %v", err)
		}
	case <-time.After(2 * time.Minute):
		g.t.Error("the gateway did not stop within two minutes")
		_ = g.cmd.Process.Kill()
		<-ended
		g.stopped = true
	}
	return time.Since(began)
}

// snapshotWritten is what the log says of the last snapshot.
func (g *gateway) snapshotWritten() (bytes int64, took time.Duration) {
	g.t.Helper()
	line, ok := g.log.wait("snapshot written", time.Second)
	var entry struct {
		Bytes int64
		Took  float64 // ms
	}
	if !ok || json.Unmarshal(line, &entry) != nil {
		g.t.Fatalf("no snapshot was written:\n%s", g.log.tail(20))
	}
	return entry.Bytes, time.Duration(entry.Took * float64(time.Millisecond))
}

// memory is what the process has and had at most in physical memory, in bytes.
type memory struct{ now, high int64 }

func (m memory) String() string {
	return fmt.Sprintf("VmRSS %d MiB, VmHWM %d MiB", m.now/mib, m.high/mib)
}

func (g *gateway) memory() memory {
	g.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		g.t.Fatal(err)
	}
	field := func(name string) (kib int64) {
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				if _, err := fmt.Sscan(rest, &kib); err != nil {
					g.t.Fatalf("%s: %v", name, err)
				}
			}
		}
		return kib
	}
	return memory{now: field("VmRSS") << 10, high: field("VmHWM") << 10}
}

// cpu is the processor time that the process has used.
func (g *gateway) cpu() time.Duration {
	g.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.cmd.Process.Pid))
	if err != nil {
		g.t.Fatal(err)
	}
	// The name of the program may hold blanks; fields are counted after it. A tick is 10 ms on every Linux that Go runs on.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	ticks := 0
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			g.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// ownCPU is the processor time of this process: the test, the emulated API Manager, a NATS server.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it cannot fail for the own process
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func machine() string {
	name := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				name = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, %s", runtime.NumCPU(), name, runtime.Version())
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

// firstRequest tells when a gateway first asked for the list of subscriptions.
func firstRequest(e *emulator.Emulator) <-chan time.Time {
	asked := make(chan time.Time, 1)
	go func() {
		for e.Counters().DataService.Requests["subscriptions"] == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		asked <- time.Now()
	}()
	return asked
}

// caller is a client that asks again and again over one connection.
type caller struct {
	t       *testing.T
	conn    net.Conn
	in      *bufio.Reader
	request []byte
	what    string
}

func newCaller(t *testing.T, g *gateway, token string) *caller {
	t.Helper()
	conn, err := net.Dial("tcp", g.http)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &caller{
		t: t, conn: conn, in: bufio.NewReaderSize(conn, 8<<10), what: "a request",
		request: []byte("GET /shop/1.0.0/items HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\n\r\n"),
	}
}

// until asks until the answer has the status, and tells when it had arrived.
func (c *caller) until(status int, limit time.Duration) time.Time {
	c.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		if err := c.conn.SetDeadline(deadline.Add(5 * time.Second)); err != nil {
			c.t.Fatal(err)
		}
		if _, err := c.conn.Write(c.request); err != nil {
			c.t.Fatalf("%s: %v", c.what, err)
		}
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil {
			c.t.Fatalf("%s: %v", c.what, err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it was read to its end
		now := time.Now()
		switch {
		case err != nil:
			c.t.Fatalf("%s: %v", c.what, err)
		case resp.StatusCode == status:
			return now
		case now.After(deadline):
			c.t.Fatalf("%s: no answer %d within %s; the last is %d %s", c.what, status, limit, resp.StatusCode, body)
		case resp.Close:
			c.t.Fatalf("%s: the gateway closes the connection after %d %s", c.what, resp.StatusCode, body)
		}
	}
}

// logLines takes the log of the gateway: JSON lines.
type logLines struct {
	mu   sync.Mutex
	text []byte
	news chan struct{}
}

func newLogLines() *logLines { return &logLines{news: make(chan struct{}, 1)} }

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.text = append(l.text, p...)
	l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
	return len(p), nil
}

// wait returns the last line with a message, when there is one within the limit.
func (l *logLines) wait(message string, limit time.Duration) (line []byte, ok bool) {
	needle := []byte(`"message":"` + message + `"`)
	timeout := time.After(limit)
	for {
		l.mu.Lock()
		for each := range bytes.Lines(l.text) {
			if bytes.Contains(each, needle) {
				line, ok = bytes.Clone(each), true
			}
		}
		l.mu.Unlock()
		if ok {
			return line, true
		}
		select {
		case <-l.news:
		case <-timeout:
			return nil, false
		}
	}
}

func (l *logLines) tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(l.text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
