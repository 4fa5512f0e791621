package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/integration/emulator"
	"gatehouse/integration/emulator/broker"
)

var freeQuickstart = []string{"quickstart", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--api-manager", "127.0.0.1:0"}

func runQuickstartCommand(ctx context.Context, args ...string) (status int, out, errs string) {
	var stdout, stderr bytes.Buffer
	status = execute(ctx, args, ioStreams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
	return status, stdout.String(), stderr.String()
}

func TestQuickstartOnce(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, output := range []string{"text", "json"} {
		t.Run(output, func(t *testing.T) {
			status, out, errs := runQuickstartCommand(t.Context(), append(slices.Clone(freeQuickstart), "--once", "--output", output)...)
			if status != statusOK || errs != "" {
				t.Fatalf("status %d\n%s\n%s", status, out, errs)
			}
			if output == "text" {
				if !strings.Contains(out, "requests were answered as printed") || strings.Contains(out, "FAIL") {
					t.Error(out)
				}
				return
			}
			var result struct {
				OK    bool
				Steps []quickstartResult
			}
			if err := json.Unmarshal([]byte(out), &result); err != nil || !result.OK || len(result.Steps) < 40 {
				t.Errorf("%v: %s", err, out)
			}
			for _, s := range result.Steps {
				if !s.OK || s.GotStatus != s.Status || s.GotCode != s.Code || s.Seconds > s.Within+1 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
	if left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "gatehouse-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestQuickstartOverOlderVersions runs the same requests over what differs between versions: where key templates come,
// how key managers are spelled, and the binary bodies of events.
func TestQuickstartOverOlderVersions(t *testing.T) {
	for _, test := range []struct {
		profile  string
		encoding broker.Encoding
	}{{"4.0", broker.JSON}, {"4.0", broker.AMQPMap}, {"4.3", broker.JMSMap}} {
		t.Run(test.profile+" "+string(test.encoding), func(t *testing.T) {
			var out, errs bytes.Buffer
			err := runQuickstart(t.Context(), quickstartOptions{
				http: "127.0.0.1:0", admin: "127.0.0.1:0", manager: "127.0.0.1:0", once: true, output: "text", profile: test.profile, encoding: test.encoding,
			}, ioStreams{Out: &out, Err: &errs})
			if err != nil || errs.String() != "" {
				t.Errorf("%v\n%s\n%s", err, out.String(), errs.String())
			}
		})
	}
}

func TestQuickstartEndsWhenItIsTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &notifyingBuffer{until: "Ctrl-C ends it", found: cancel}
	var errs bytes.Buffer
	began := time.Now()
	status := execute(ctx, freeQuickstart, ioStreams{In: strings.NewReader(""), Out: out, Err: &errs})
	if status != statusOK || errs.String() != "" {
		t.Errorf("status %d: %s", status, errs.String())
	}
	text := out.String()
	for _, want := range []string{"Gatehouse is ready", "/emulator/", "→ 200", "→ 401 900902", "→ 403 900908", "→ 401 900907", "403 900805", "900806", "→ 401 900901", `check "revoked"`, "X-JWT-Assertion"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if len([]rune(line)) > 200 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("it took %s", d)
	}
}

// notifyingBuffer tells when a text has been written to it.
type notifyingBuffer struct {
	bytes.Buffer
	until string
	found func()
}

func (b *notifyingBuffer) Write(p []byte) (int, error) {
	n, err := b.Buffer.Write(p)
	if strings.Contains(b.String(), b.until) {
		b.found()
	}
	return n, err
}

func TestQuickstartSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		name   string
		args   []string
		status int
		want   []string
	}{
		{"address without a port", []string{"--http", "localhost"}, statusUsage, []string{"--http localhost", "host:port"}},
		{"address that is taken", []string{"--admin", taken.Addr().String()}, statusFailed, []string{taken.Addr().String(), "--admin 127.0.0.1:0 takes a free port"}},
		{"event hub of another kind", []string{"--event-hub", "kafka://localhost"}, statusFailed, []string{"kafka", "amqp://"}},
		{"event hub that is away", []string{"--event-hub", "amqp://user:hush@127.0.0.1:1/"}, statusFailed, []string{"event hub", "connect"}},
		{"unknown form", []string{"--output", "yaml"}, statusUsage, []string{"--output yaml"}},
		{"argument", []string{"now"}, statusUsage, []string{"now"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := slices.Clone(freeQuickstart)
			status, out, errs := runQuickstartCommand(t.Context(), append(args, test.args...)...)
			if status != test.status {
				t.Errorf("status %d, want %d", status, test.status)
			}
			for _, want := range test.want {
				if !strings.Contains(errs, want) {
					t.Errorf("the message lacks %q: %s", want, errs)
				}
			}
			if out != "" || strings.Contains(errs, "hush") {
				t.Errorf("printed %q, said %q", out, errs)
			}
		})
	}
}

// TestQuickstartOnceSeesAWrongAnswer is the test of the test: a plan that expects what does not come fails.
func TestQuickstartOnceSeesAWrongAnswer(t *testing.T) {
	e, err := emulator.New(emulator.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	plan := &quickstartPlan{gateway: "http://127.0.0.1:1", manager: e.URL(), curl: "curl"}
	plan.steps = []quickstartStep{
		{Title: "right", Status: 200, method: "GET", url: e.URL() + "/emulator/counters"},
		{Title: "another status", Status: 201, method: "GET", url: e.URL() + "/emulator/counters"},
		{Title: "another code", Status: 404, Code: 900908, method: "DELETE", url: e.URL() + "/emulator/deny?id=7"},
		{Title: "no answer", Status: 200, method: "GET", url: "http://127.0.0.1:1/"},
		{Title: "another text", Status: 200, Shows: "no such text", method: "GET", url: e.URL() + "/emulator/counters"},
		{Title: "another exit status", Status: 0, args: []string{"token", "inspect", "-"}},
	}
	var got []bool
	if right := runQuickstartPlan(t.Context(), plan, e.CAPEM(), nil, func(r quickstartResult) { got = append(got, r.OK) }); right {
		t.Error("all was right")
	}
	if want := []bool{true, false, false, false, false, false}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
