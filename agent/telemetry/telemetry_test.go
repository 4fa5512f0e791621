package telemetry

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestLevelChangesWhileLoggersUseIt(t *testing.T) {
	level, err := NewLevel("info")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := NewLogger(&out, level).With().Str("part", "sync").Logger()

	log.Debug().Msg("hidden")
	if out.Len() != 0 {
		t.Fatalf("debug line at level info: %s", out.String())
	}
	if err := level.Set("debug"); err != nil {
		t.Fatal(err)
	}
	log.Debug().Int("rows", 3).Msg("list fetched")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("not JSON: %v: %s", err, out.String())
	}
	if line["message"] != "list fetched" || line["rows"] != 3.0 || line["part"] != "sync" || line["level"] != "debug" {
		t.Errorf("line = %v", line)
	}
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", line["time"].(string)); err != nil {
		t.Errorf("time = %v: %v", line["time"], err)
	}
}

func TestUnknownLevelIsRefusedAndChangesNothing(t *testing.T) {
	level, err := NewLevel("warn")
	if err != nil {
		t.Fatal(err)
	}
	err = level.Set("loud")
	if err == nil || !strings.Contains(err.Error(), `"loud"`) || !strings.Contains(err.Error(), "trace, debug, info, warn, error") {
		t.Errorf("error = %v, want one that names the value and the levels", err)
	}
	if level.String() != "warn" {
		t.Errorf("level = %s, want warn", level)
	}
}

func TestRegistryHasRuntimeMetrics(t *testing.T) {
	families, err := NewRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, f := range families {
		found[f.GetName()] = true
	}
	for _, want := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !found[want] {
			t.Errorf("metric %s is missing", want)
		}
	}
}
