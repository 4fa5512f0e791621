package siddhi_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatehouse/throttle/siddhi"
	"gatehouse/throttle/siddhi/value"
)

// vector is one recorded policy: what goes in, and the rows that the real engine gave.
type vector struct {
	ID, Title, Query string
	BaseEvent        map[string]*string
	Events           []struct {
		At             int64
		EventTimeStamp *int64
		Set            map[string]*string
	}
	AdvanceClockTo int64
	TimerFirst     *bool
	CheckStream    string
	Expected       struct {
		Classic, Reset, Any                []json.RawMessage
		ClassicEager, ResetEager, AnyEager []json.RawMessage
		ColumnTypes                        map[string]string
		Refused                            *struct{ Code, Mentions string }
	}
	CollapseDuplicates bool
	Quirks             []string
}

func vectors(t *testing.T) []vector {
	t.Helper()
	var all []vector
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) != 20 {
		t.Fatalf("20 vectors expected, found %d (%v)", len(files), err)
	}
	for _, file := range files {
		var v vector
		read(t, file, &v)
		all = append(all, v)
	}
	files, _ = filepath.Glob("testdata/recorded/0[1-7]*.json")
	recorded := 0
	for _, file := range files {
		var f struct{ Vectors []vector }
		read(t, file, &f)
		recorded += len(f.Vectors)
		all = append(all, f.Vectors...)
	}
	if recorded != 157 {
		t.Fatalf("157 recorded vectors expected, found %d", recorded)
	}
	return all
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// row makes a row of RequestStream.
func row(t *testing.T, p *siddhi.Plan, in siddhi.StreamID, attributes map[string]*string) []value.Value {
	t.Helper()
	row := make([]value.Value, len(p.Columns(in)))
	for i, c := range p.Columns(in) {
		name := c.Name
		if name == "propertiesMap" {
			v, err := value.FromJSON(*attributes["properties"])
			if err != nil {
				t.Fatal(err)
			}
			row[i] = v
			continue
		}
		if text := attributes[name]; text != nil {
			row[i] = value.Text(*text)
		}
	}
	return row
}

// played is one row with where it came from.
type played struct {
	At    int64
	Cause string
	Row   map[string]string
}

func shown(v value.Value) string {
	if v.IsNull() {
		return "null"
	}
	switch v.Kind() {
	case value.String:
		return fmt.Sprintf("%q", v.Str())
	case value.Float, value.Double:
		return number(v.Float64(), v.Kind() == value.Float)
	case value.Int, value.Long:
		return number(float64(v.Int64()), false)
	case value.Bool:
		return fmt.Sprint(v.True())
	}
	return fmt.Sprintf("%q", v.String())
}

// number forgets the difference between 1 and 1.0, which JSON does not keep.
func number(f float64, single bool) string {
	switch {
	case math.IsNaN(f):
		return `"NaN"`
	case math.IsInf(f, 1):
		return `"Infinity"`
	case math.IsInf(f, -1):
		return `"-Infinity"`
	case single:
		return fmt.Sprintf("%g", float32(f))
	}
	return fmt.Sprintf("%.17g", f)
}

func play(t *testing.T, v vector, profile siddhi.Profile) (rows []played, stats siddhi.Stats) {
	t.Helper()
	p, err := siddhi.Compile(v.Query, siddhi.Options{Profile: profile})
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	stream := v.CheckStream
	if stream == "" {
		stream = siddhi.GlobalThrottleStream
	}
	out, _ := p.Stream(stream)
	columns := p.Columns(out)
	for _, c := range columns {
		if want, ok := v.Expected.ColumnTypes[c.Name]; ok && want != c.Kind.String() {
			t.Errorf("column %s is of type %s, want %s", c.Name, c.Kind, want)
		}
	}
	r := siddhi.NewRuntime(p, siddhi.RuntimeOptions{ForgetAfter: 1 << 60})
	cause := ""
	r.Tap(stream, func(now int64, row []value.Value) {
		got := played{now, cause, map[string]string{}}
		for i, c := range columns {
			got.Row[c.Name] = shown(row[i])
		}
		rows = append(rows, got)
	})
	in, _ := p.Stream(siddhi.RequestStream)
	for i, e := range v.Events {
		attributes := map[string]*string{}
		maps.Copy(attributes, v.BaseEvent)
		maps.Copy(attributes, e.Set)
		at := e.At
		if e.EventTimeStamp != nil {
			at = *e.EventTimeStamp
		}
		cause = "timer"
		timerFirst := v.TimerFirst == nil || *v.TimerFirst
		if timerFirst {
			r.Tick(e.At)
		} else {
			r.Tick(e.At - 1)
		}
		cause = fmt.Sprintf("event[%d]", i)
		r.Send(in, e.At, at, row(t, p, in, attributes))
		if !timerFirst {
			cause = "timer"
			r.Tick(e.At)
		}
	}
	cause = "timer"
	r.Tick(v.AdvanceClockTo)
	return rows, r.Stats()
}

func expected(t *testing.T, rows []json.RawMessage, columnTypes map[string]string) []played {
	t.Helper()
	var all []played
	for _, raw := range rows {
		d := json.NewDecoder(strings.NewReader(string(raw)))
		d.UseNumber()
		var m map[string]any
		if err := d.Decode(&m); err != nil {
			t.Fatal(err)
		}
		at, _ := m["at"].(json.Number).Int64()
		p := played{at, m["cause"].(string), map[string]string{}}
		for k, x := range m {
			if k == "at" || k == "cause" {
				continue
			}
			switch x := x.(type) {
			case nil:
				p.Row[k] = "null"
			case string:
				p.Row[k] = fmt.Sprintf("%q", x)
			case bool:
				p.Row[k] = fmt.Sprint(x)
			case json.Number:
				f, _ := x.Float64()
				p.Row[k] = number(f, columnTypes[k] == "float")
			}
		}
		all = append(all, p)
	}
	return all
}

func collapsed(rows []played) []played {
	var out []played
	for _, r := range rows {
		if len(out) == 0 || !cmp.Equal(out[len(out)-1], r) {
			out = append(out, r)
		}
	}
	return out
}

// chosen are the vectors in which Gatehouse differs on purpose, with the reason; our rows stand in testdata/chosen.
var chosen = map[string]string{
	"R083 any":          "#window.length is refused",
	"R083 any in reset": "#window.length is refused",
	"R125 classic":      "a null that sum cannot take is left out, and the end of the window goes on behind it",
	"R126 classic":      "a text that sum cannot take is left out; the event still leaves with the sum as it stands",
	"R126 reset":        "a text that sum cannot take is left out; the event still leaves with the sum as it stands",
	"R133 classic":      "after a reset flag the next window starts at zero, not below",
}

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func lines(rows []played) string {
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%d %s", r.At, r.Cause)
		for _, k := range slices.Sorted(maps.Keys(r.Row)) {
			fmt.Fprintf(&b, " %s=%s", k, r.Row[k])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestVectorsGiveTheRowsOfTheRealEngine(t *testing.T) {
	for _, v := range vectors(t) {
		if v.Expected.Refused != nil {
			t.Run(v.ID+" refused", func(t *testing.T) {
				_, err := siddhi.Compile(v.Query, siddhi.Options{})
				var refused *siddhi.Error
				if !errors.As(err, &refused) {
					t.Fatalf("want %s, got %v", v.Expected.Refused.Code, err)
				}
				if string(refused.Code) != v.Expected.Refused.Code || !strings.Contains(refused.Message, v.Expected.Refused.Mentions) {
					t.Errorf("want %s and %q, got %v", v.Expected.Refused.Code, v.Expected.Refused.Mentions, err)
				}
			})
			continue
		}
		e := v.Expected
		for _, c := range []struct {
			name        string
			profile     siddhi.Profile
			rows, eager []json.RawMessage
		}{{"classic", siddhi.Classic, e.Classic, e.ClassicEager}, {"reset", siddhi.Reset, e.Reset, e.ResetEager}, {"any", siddhi.Classic, e.Any, e.AnyEager}, {"any in reset", siddhi.Reset, e.Any, e.AnyEager}} {
			if c.rows == nil {
				continue
			}
			t.Run(v.ID+" "+c.name, func(t *testing.T) {
				want := c.rows
				if c.eager != nil {
					want = c.eager
				}
				if chosen[v.ID+" "+c.name] == "#window.length is refused" {
					_, err := siddhi.Compile(v.Query, siddhi.Options{})
					if !errors.Is(err, &siddhi.Error{Code: "SIDDHI_UNSUPPORTED_WINDOW"}) {
						t.Errorf("want it refused, got %v", err)
					}
					return
				}
				got, _ := play(t, v, c.profile)
				if chosen[v.ID+" "+c.name] != "" {
					golden(t, "chosen/"+v.ID+"-"+c.name, lines(got))
					return
				}
				wanted := expected(t, want, e.ColumnTypes)
				if v.CollapseDuplicates {
					got, wanted = collapsed(got), collapsed(wanted)
				}
				if diff := cmp.Diff(wanted, got); diff != "" {
					t.Errorf("%s\nquirks %v\nrows (-real engine +ours):\n%s", v.Query, v.Quirks, diff)
				}
			})
		}
	}
}

// chosenExpressions are those in which Gatehouse differs on purpose, with what it says.
var chosenExpressions = map[string]string{
	`COUNT(userId)`: "1", // names of aggregates are taken in any case
	// What an aggregate cannot take is left out; the event goes on.
	`avg(cast(map:get(propertiesMap,'nope'),'long'))`: "0",
	`sum(cast(map:get(propertiesMap,'d'),'long'))`:    "0",
	// Outside of the subset.
	`math:parseFloat('1.5')`: "SIDDHI_UNKNOWN_FUNCTION", `stddev(5)`: "SIDDHI_UNKNOWN_FUNCTION", `str:repeat('ab',2)`: "SIDDHI_UNKNOWN_FUNCTION",
	`time:now()`: "SIDDHI_UNKNOWN_FUNCTION", `time:utcTimestamp()`: "SIDDHI_UNKNOWN_FUNCTION",
	// Look-around and back references are not possible.
	`regex:find('(?<!a)b','cb')`: "SIDDHI_REGEX", `regex:find('(a)\1','aa')`: "SIDDHI_REGEX",
	// Keys that share a bucket of Java's hash map are written in the order of their names.
	`str:concat(propertiesMap,'')`: `"{arr=[1], big=3000000000, lo=1.0, d=2.5, nul=null, e=, f=false, i=5, n7=7, o={k=1}, neg=-3, s=abc, t=true, huge=99999999999999999999, z=0}"`,
}

func TestExpressionsGiveTheValuesOfTheRealEngine(t *testing.T) {
	var table struct {
		At          int64
		BaseEvent   map[string]*string
		Expressions []struct {
			E, Type, Refused, Lost string
			Value                  json.RawMessage
		}
	}
	read(t, "testdata/recorded/08-expression-table.json", &table)
	if len(table.Expressions) != 371 {
		t.Fatalf("371 expressions expected, found %d", len(table.Expressions))
	}
	for _, x := range table.Expressions {
		t.Run(x.E, func(t *testing.T) {
			p, err := siddhi.Compile("from RequestStream select "+x.E+" as x insert into Out", siddhi.Options{Free: true})
			if err != nil {
				var refused *siddhi.Error
				if want, ok := chosenExpressions[x.E]; ok {
					x.Refused = want
				}
				if !errors.As(err, &refused) || string(refused.Code) != x.Refused {
					t.Fatalf("want %q %s, got %v", x.Refused, x.Value, err)
				}
				return
			}
			ours, differs := chosenExpressions[x.E]
			if x.Refused != "" && !differs {
				t.Fatalf("want %s, it is taken", x.Refused)
			}
			out, _ := p.Stream("Out")
			if kind := p.Columns(out)[len(p.Columns(out))-1].Kind.String(); kind != x.Type && !differs {
				t.Errorf("want type %s, got %s", x.Type, kind)
			}
			r := siddhi.NewRuntime(p, siddhi.RuntimeOptions{})
			got := "lost"
			r.Tap("Out", func(_ int64, row []value.Value) { got = shown(row[len(row)-1]) })
			in, _ := p.Stream(siddhi.RequestStream)
			r.Send(in, table.At, table.At, row(t, p, in, table.BaseEvent))
			want := "lost"
			if differs {
				want = ours
			} else if x.Lost == "" {
				rows := expected(t, []json.RawMessage{json.RawMessage(`{"at":0,"cause":"","x":` + string(x.Value) + `}`)}, map[string]string{"x": x.Type})
				want = rows[0].Row["x"]
			}
			if got != want {
				t.Errorf("want %s, got %s", want, got)
			}
		})
	}
}
