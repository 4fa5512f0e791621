//go:build conformance

package siddhi

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	engine "gatehouse/throttle/siddhi"
	"gatehouse/throttle/siddhi/value"
)

// setting reads a number from the environment, for longer runs.
func setting(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// ours plays a history on the engine of Gatehouse.
func ours(t *testing.T, p *engine.Plan, history []historyEvent) (rows []string) {
	t.Helper()
	r := engine.NewRuntime(p, engine.RuntimeOptions{ForgetAfter: 1 << 60})
	now := 0
	r.Tap("Out", func(_ int64, row []value.Value) {
		words := make([]string, len(row))
		for i, v := range row {
			words[i] = word(v)
		}
		rows = append(rows, fmt.Sprintf("event[%d] %s", now, readable(t, strings.Join(words, " "))))
	})
	in, _ := p.Stream("Input")
	for i, e := range history {
		now = i
		r.Tick(e.at)
		r.Send(in, e.at, e.at, e.row)
	}
	return rows
}

// Longer runs: SIDDHI_POLICIES, SIDDHI_HISTORIES and SIDDHI_SEED in the environment.
func TestRandomPoliciesGiveTheRowsOfTheRealEngine(t *testing.T) {
	real := startRealEngine(t)
	seed := setting(t, "SIDDHI_SEED", 1)
	g := &generator{rand.New(rand.NewPCG(uint64(seed), 0)), map[string]int{}}
	compared, rowCount, throttled, refused := 0, 0, 0, 0
	for n := range setting(t, "SIDDHI_POLICIES", 200) {
		text, length := g.policy()
		p, err := engine.Compile(text, engine.Options{Streams: nil, Profile: engine.Classic, Free: true})
		for range setting(t, "SIDDHI_HISTORIES", 5) {
			history := g.history(length)
			if why := real.plan(t, "@Plan:playback "+text); why != "" || err != nil {
				if refused++; (why == "") != (err == nil) {
					t.Errorf("policy %d of seed %d: the real engine says %q, ours %v\n%s", n, seed, why, err, text)
				}
				if why == "" {
					real.play(t, nil)
				}
				break
			}
			want, got := real.play(t, history), ours(t, p, history)
			compared++
			rowCount += len(want)
			for _, row := range want {
				if strings.Contains(row, "b:true") {
					throttled++
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				var b strings.Builder
				for i, e := range history {
					fmt.Fprintf(&b, "event[%d] at %d: %v\n", i, e.at, e.row)
				}
				t.Errorf("policy %d of seed %d\n%s\n%s(-real +ours):\n%s", n, seed, text, b.String(), diff)
				break
			}
		}
	}
	t.Logf("%d histories gave %d equal rows, %d of them with a true; %d policies refused by both", compared, rowCount, throttled, refused)
	for _, construct := range slices.Sorted(maps.Keys(g.used)) {
		t.Logf("%5d %s", g.used[construct], construct)
	}
}
