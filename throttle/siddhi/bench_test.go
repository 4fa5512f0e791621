package siddhi_test

import (
	"fmt"
	"syscall"
	"testing"

	"gatehouse/throttle"
	"gatehouse/throttle/siddhi"
	"gatehouse/throttle/siddhi/value"
)

const benchPolicy = `FROM RequestStream SELECT userId, (apiTenant == 'carbon.super') AS isEligible, str:concat(userId,':',apiContext,':',apiVersion) as throttleKey INSERT INTO EligibilityStream;
FROM EligibilityStream[isEligible==true]#throttler:timeBatch(5 sec, 0) SELECT throttleKey, (count(throttleKey) >= %d) as isThrottled, expiryTimeStamp group by throttleKey INSERT ALL EVENTS into ResultStream;`

type benchEngine struct {
	runtime   *siddhi.Runtime
	in        siddhi.StreamID
	decisions int
}

func newBenchEngine(b *testing.B, text string) *benchEngine {
	b.Helper()
	p, err := siddhi.Compile(text, siddhi.Options{})
	if err != nil {
		b.Fatal(err)
	}
	e := &benchEngine{}
	e.in, _ = p.Stream(siddhi.RequestStream)
	e.runtime = siddhi.NewRuntime(p, siddhi.RuntimeOptions{Decide: func(throttle.Decision) { e.decisions++ }, MaxKeys: 20_000_000})
	return e
}

func benchRows(keys int) [][]value.Value {
	rows := make([][]value.Value, keys)
	for i := range rows {
		row := make([]value.Value, 17)
		for k := range row {
			row[k] = value.Text("x")
		}
		row[9], row[10], row[11] = value.Text(fmt.Sprintf("user%d@carbon.super", i)), value.Text("/shop/1.0"), value.Text("1.0")
		row[13] = value.Text("carbon.super")
		rows[i] = row
	}
	return rows
}

// The clock moves so that 250,000 events make a window of 5 s; window ends are inside of the measured time.
func (e *benchEngine) run(b *testing.B, rows [][]value.Value) {
	b.ReportAllocs()
	const perWindow = 250_000
	now := int64(1_700_000_000_000)
	for range 2 {
		for _, row := range rows {
			e.runtime.Send(e.in, now, now, row)
		}
	}
	i, cpu := 0, cpuTime(b)
	for n := 0; b.Loop(); n++ {
		at := now + int64(n)*5000/perWindow
		e.runtime.Tick(at)
		e.runtime.Send(e.in, at, at, rows[i])
		if i++; i == len(rows) {
			i = 0
		}
	}
	b.ReportMetric(float64(b.N)/(cpuTime(b)-cpu), "events/cpu-s")
}

// cpuTime is what the process has used of all processors, in seconds: on a machine that is shared it says more than the clock.
func cpuTime(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

func BenchmarkKnownKeys(b *testing.B) {
	newBenchEngine(b, fmt.Sprintf(benchPolicy, 1_000_000)).run(b, benchRows(100_000))
}

func BenchmarkOneKey(b *testing.B) {
	newBenchEngine(b, fmt.Sprintf(benchPolicy, 1_000_000)).run(b, benchRows(1))
}

// Every event is above the limit and gives a decision.
func BenchmarkOneKeyThrottled(b *testing.B) {
	newBenchEngine(b, fmt.Sprintf(benchPolicy, 1)).run(b, benchRows(1))
}

func BenchmarkNotEligible(b *testing.B) {
	rows := benchRows(1)
	rows[0][13] = value.Text("other")
	newBenchEngine(b, fmt.Sprintf(benchPolicy, 5)).run(b, rows)
}

func BenchmarkFirstSight(b *testing.B) {
	const text = `FROM RequestStream SELECT userId, true AS isEligible, userId as throttleKey INSERT INTO EligibilityStream;
FROM EligibilityStream[isEligible==true]#throttler:timeBatch(1 day, 0) SELECT throttleKey, (count(throttleKey) >= 100) as isThrottled, expiryTimeStamp group by throttleKey INSERT ALL EVENTS into ResultStream;`
	rows := benchRows(1)
	e := newBenchEngine(b, text)
	keys := make([]value.Value, 2_000_000)
	for i := range keys {
		keys[i] = value.Text(fmt.Sprintf("user%d@carbon.super", i))
	}
	b.ReportAllocs()
	n, cpu := 0, cpuTime(b)
	for b.Loop() {
		if n == len(keys) {
			b.StopTimer()
			e = newBenchEngine(b, text)
			n = 0
			b.StartTimer()
		}
		rows[0][9] = keys[n]
		e.runtime.Send(e.in, 1_700_000_000_000, 1_700_000_000_000, rows[0])
		n++
	}
	b.ReportMetric(float64(b.N)/(cpuTime(b)-cpu), "keys/cpu-s")
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	text := fmt.Sprintf(benchPolicy, 5)
	for b.Loop() {
		if _, err := siddhi.Compile(text, siddhi.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
