package siddhi_test

import (
	"fmt"
	"testing"
	"time"

	"gatehouse/throttle"
	"gatehouse/throttle/siddhi"
	"gatehouse/throttle/siddhi/value"
)

func Example() {
	plan, err := siddhi.Compile(`
		from RequestStream select (apiContext == '/shop/1.0') as isEligible, userId as throttleKey insert into EligibilityStream;
		from EligibilityStream[isEligible == true]#throttler:timeBatch(1 min, 0)
		select throttleKey, (count() >= 2) as isThrottled, expiryTimeStamp group by throttleKey insert all events into ResultStream`, siddhi.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	requests, _ := plan.Stream(siddhi.RequestStream)
	runtime := siddhi.NewRuntime(plan, siddhi.RuntimeOptions{Decide: func(d throttle.Decision) {
		fmt.Println(d.Key, d.Throttled, time.UnixMilli(d.ExpiresAt).UTC().Format(time.TimeOnly))
	}})
	row := make([]value.Value, len(plan.Columns(requests)))
	for i, c := range plan.Columns(requests) {
		switch c.Name {
		case "apiContext":
			row[i] = value.Text("/shop/1.0")
		case "userId":
			row[i] = value.Text("bob@carbon.super")
		}
	}
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC).UnixMilli()
	for _, second := range []int64{1, 2, 61} {
		now := noon + second*1000
		runtime.Tick(now)
		runtime.Send(requests, now, now, row)
	}
	// Output:
	// bob@carbon.super false 12:01:00
	// bob@carbon.super true 12:01:00
	// bob@carbon.super false 12:02:00
}

func Example_refused() {
	_, err := siddhi.Compile("from RequestStream#window.length(5) select userId insert into Out", siddhi.Options{})
	fmt.Println(err)
	// Output: 1:19: #window.length is not supported; there are #window.time and #window.timeBatch (SIDDHI_UNSUPPORTED_WINDOW)
}

// A policy that is taken runs: whatever the events hold, nothing panics, and every row has a value of each column.
func FuzzRun(f *testing.F) {
	for i, v := range vectors(&testing.T{}) {
		if i < 20 || i%5 == 0 { // the recorded ones are many and alike
			f.Add(v.Query, "bob", `{"ip":3232235777,"a":null}`)
		}
	}
	f.Fuzz(func(t *testing.T, text, user, properties string) {
		for _, profile := range []siddhi.Profile{siddhi.Reset, siddhi.Classic} {
			p, err := siddhi.Compile(text, siddhi.Options{Profile: profile, Free: true})
			if err != nil {
				return
			}
			r := siddhi.NewRuntime(p, siddhi.RuntimeOptions{MaxKeys: 10, MaxEvents: 10, MaxDistinct: 5})
			in, _ := p.Stream(siddhi.RequestStream)
			m, err := value.FromJSON(properties)
			if err != nil {
				m = value.Value{}
			}
			now := int64(1_700_000_000_000)
			for i := range 30 {
				row := make([]value.Value, len(p.Columns(in)))
				for k := range row {
					row[k] = value.Text(fmt.Sprint(user, i%3))
				}
				row[i%len(row)] = value.Value{}
				row[16] = m
				now += int64(i*i*i) * 10
				r.Tick(now)
				r.Send(in, now, now-int64(i), row)
			}
			r.Tick(now + 1000*86_400_000)
			if s := r.Stats(); s.Events != 30 {
				t.Fatalf("%+v", s)
			}
		}
	})
}
