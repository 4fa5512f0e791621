package integration_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// load sends requests from several clients, each on a connection of its own, until it is ended.
type load struct {
	clients sync.WaitGroup
	stop    chan struct{}
	sent    atomic.Int64
	refused atomic.Int64 // the listener is closed: another gateway would be asked

	mu     sync.Mutex
	failed []string
}

func (l *load) fail(format string, a ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, fmt.Sprintf(format, a...))
}

// startLoad asks paths in turn with token. A client whose connection is refused ends where mayEnd allows it.
func startLoad(t *testing.T, g *gateway, clients int, token string, mayEnd bool, paths ...string) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	for n := range clients {
		l.clients.Go(func() {
			transport := &http.Transport{MaxIdleConnsPerHost: 1}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
			for i := n; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				method, body := http.MethodGet, io.Reader(nil)
				if i%2 == 0 { // which a client does not send again by itself
					method, body = http.MethodPost, strings.NewReader(strings.Repeat("x", 2000))
				}
				path := paths[i%len(paths)]
				req, err := http.NewRequest(method, g.http+path, body)
				if err != nil {
					l.fail("%v", err)
					return
				}
				req.Host = "localhost"
				req.Header.Set("Authorization", "Bearer "+token)
				resp, err := client.Do(req)
				if err != nil {
					if mayEnd && errors.Is(err, syscall.ECONNREFUSED) {
						l.refused.Add(1)
						return
					}
					l.fail("%s %s: %v", method, path, err)
					return
				}
				answer, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK {
					l.fail("%s %s: %d %s %v", method, path, resp.StatusCode, answer, err)
				}
				l.sent.Add(1)
			}
		})
	}
	return l
}

// end stops the load and asserts that nothing failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.wait(t)
}

func (l *load) wait(t *testing.T) {
	t.Helper()
	l.clients.Wait()
	if n := len(l.failed); n > 0 {
		t.Errorf("%d of %d requests failed: %s", n, l.sent.Load(), strings.Join(l.failed[:min(n, 5)], "\n"))
	}
	if l.sent.Load() == 0 {
		t.Error("no request was sent: the test shows nothing")
	}
}

// TestTheConfigurationIsReloadedUnderLoad rewrites the configuration file, well and badly, while requests run.
func TestTheConfigurationIsReloadedUnderLoad(t *testing.T) {
	w := startWorld(t, worldOptions{fill: fillFaultWorld})
	p := newProbes(t, w.emu)
	w.wantEqual(p, time.Now(), 5*time.Second)
	path, token := p.allowed(t, w.emu)
	good, err := os.ReadFile(w.gateway.config)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(w.gateway.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	level := func() string {
		var c struct {
			Log struct {
				Level string `json:"level"`
			} `json:"log"`
		}
		w.gateway.getJSON("/api/v1/config", &c)
		return c.Log.Level
	}
	withLevel := func(s string) string { return strings.Replace(string(good), `level = "debug"`, `level = "`+s+`"`, 1) }
	if level() != "debug" {
		t.Fatalf("log level %q, want debug", level())
	}
	bad := []struct{ text, say string }{
		{withLevel("loud"), "log.level"},
		{string(good) + "\n[listener_]\nhttp = \"x\"\n", "listener_"},
		{withLevel("info") + "\nthis is no TOML", "gatehouse.toml"},
		{strings.Replace(withLevel("warn"), `data_dir = `, `data_dri = `, 1), "data_dri"},
	}
	l := startLoad(t, w.gateway, 6, token, false, path)
	now := "debug"
	for round, b := range bad {
		now = []string{"info", "debug"}[round%2]
		write(withLevel(now))
		eventually(t, 10*time.Second, "the good file is in force", func() bool { return level() == now })
		seen := len(w.gateway.log.String())
		write(b.text)
		eventually(t, 10*time.Second, "the log says what is wrong: "+b.say, func() bool {
			tail := w.gateway.log.String()[seen:]
			return strings.Contains(tail, b.say) && strings.Contains(tail, `"level":"error"`)
		})
		if got := level(); got != now {
			t.Errorf("after a bad file the log level is %q, want %q as before", got, now)
		}
		if err := w.gateway.agent.Reload(); err == nil || !strings.Contains(err.Error(), b.say) {
			t.Errorf("a reload of a bad file says %v, want %q named", err, b.say)
		}
	}
	write(string(good))
	eventually(t, 10*time.Second, "the last good file is in force", func() bool { return level() == "debug" })
	l.end(t)
	w.wantEqual(p, time.Now(), equalIn)
	t.Logf("%d requests, none failed", l.sent.Load())
}

// TestAGatewayDrainsUnderLoad stops a gateway while requests run, as SIGTERM does.
func TestAGatewayDrainsUnderLoad(t *testing.T) {
	w := startWorld(t, worldOptions{fill: fillFaultWorld})
	p := newProbes(t, w.emu)
	w.wantEqual(p, time.Now(), 5*time.Second)
	path, token := p.allowed(t, w.emu)
	base := strings.TrimSuffix(path, "/items")
	admitted := 0 // by the probes
	rows := w.emu.Rows()
	for _, c := range p.contexts {
		for _, x := range p.tokens {
			if status, _ := decide(&rows, c, x); status == http.StatusOK {
				admitted++
			}
		}
	}
	eventually(t, 5*time.Second, "the events of the probes are counted", func() bool { return w.emu.Traffic().Events == admitted })
	fast := startLoad(t, w.gateway, 6, token, true, path, base+"/delay/20")
	slow := startLoad(t, w.gateway, 4, token, true, base+"/delay/700")
	eventually(t, 5*time.Second, "requests run", func() bool { return fast.sent.Load() > 50 && slow.sent.Load() > 0 })
	time.Sleep(100 * time.Millisecond) // into the slow ones
	before := slow.sent.Load()
	w.gateway.cancel()
	within(2*time.Second, func() bool {
		resp, err := adminClient.Get(w.gateway.admin + "/health/ready")
		if err != nil {
			return true // it was quick
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	fast.wait(t)
	slow.wait(t)
	w.gateway.stop()
	if n := slow.sent.Load() - before; n < 4 {
		t.Errorf("%d slow requests were answered after the stop began, want the 4 that ran", n)
	}
	if n := fast.refused.Load() + slow.refused.Load(); n != 10 {
		t.Errorf("%d of 10 clients found the door closed in the end", n)
	}
	sent := int(fast.sent.Load() + slow.sent.Load())
	if counted := w.emu.Traffic().Events - admitted; counted != sent {
		t.Errorf("the traffic manager counted %d of %d requests: the queue was not emptied before the end", counted, sent)
	}
	t.Logf("%d requests, none failed, all counted", sent)
}
