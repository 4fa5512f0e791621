package store

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"gatehouse/subscription"
)

func uuid(kind, i int64) string {
	const hex = "0123456789abcdef"
	b := []byte("00000000-0000-4000-8000-000000000000")
	b[7] = hex[kind&15]
	for at := len(b) - 1; i > 0; at, i = at-1, i>>4 {
		b[at] = hex[i&15]
	}
	return string(b)
}

type size struct{ apis, applications, mappings, subscriptions int64 }

var (
	large = size{2000, 50000, 200000, 1000000}
	small = size{200, 500, 2000, 10000}
)

func sizeFor() size {
	if testing.Short() {
		return small
	}
	return large
}

// Each subscription i joins application i%applications and API i/applications, so that every pair is there once.
func (z size) subscription(i int64) (app, api int64) {
	return i%z.applications + 1, i/z.applications%z.apis + 1
}

// The rows are made as a decoder makes them: every string is memory of its own.

func (z size) subscriptionRows() []subscription.Subscription {
	rows := make([]subscription.Subscription, 0, z.subscriptions)
	for r := range z.eachSubscription("Gold") {
		rows = append(rows, r)
	}
	return rows
}

func (z size) eachSubscription(policy string) iter.Seq2[subscription.Subscription, error] {
	return func(yield func(subscription.Subscription, error) bool) {
		for i := range z.subscriptions {
			if !yield(z.subscriptionRow(i, policy), nil) {
				return
			}
		}
	}
}

func (z size) subscriptionRow(i int64, policy string) subscription.Subscription {
	app, api := z.subscription(i)
	return subscription.Subscription{
		ID: i + 1, UUID: uuid(4, i), APIID: api, APIUUID: uuid(1, api), ApplicationID: app,
		ApplicationUUID: uuid(2, app), Policy: strings.Clone(policy), State: subscription.State(strings.Clone("UNBLOCKED")),
		Tenant: strings.Clone("carbon.super"), Origin: subscription.Origin{Kind: "pull", At: 1, ID: strings.Clone("pull-1")},
	}
}

func (z size) apiRows() (rows []subscription.API) {
	for i := int64(1); i <= z.apis; i++ {
		rows = append(rows, subscription.API{ID: i, UUID: uuid(1, i), Name: fmt.Sprint("API", i), Version: "1.0.0", Context: fmt.Sprintf("/api-%d/1.0.0", i)})
	}
	return rows
}

func (z size) applicationRows() (rows []subscription.Application) {
	for i := int64(1); i <= z.applications; i++ {
		rows = append(rows, subscription.Application{ID: i, UUID: uuid(2, i), Name: fmt.Sprint("App", i), Owner: "alice", Policy: "Unlimited"})
	}
	return rows
}

func consumerKey(i int64) string { return fmt.Sprintf("consumerKey%019d", i) }

func (z size) mappingRows() []subscription.KeyMapping {
	rows := make([]subscription.KeyMapping, 0, z.mappings)
	for i := range z.mappings {
		app := i%z.applications + 1
		rows = append(rows, subscription.KeyMapping{
			ConsumerKey: consumerKey(i), KeyManager: strings.Clone("Resident Key Manager"),
			KeyType: subscription.Production, ApplicationID: app, ApplicationUUID: uuid(2, app),
		})
	}
	return rows
}

func (z size) load(s *Store) {
	s.APIs().ReplaceAll(z.apiRows())
	s.Applications().ReplaceAll(z.applicationRows())
	s.KeyMappings().ReplaceAll(z.mappingRows())
	s.Subscriptions().ReplaceAll(z.subscriptionRows())
}

// peak is the most memory that the process ever had resident, in bytes.
func peak() (bytes int64) {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Sscan(rest, &bytes)
		}
	}
	return bytes << 10
}

// processorTime returns a function that reports the processor time since, per operation: what counts on a machine that
// others use too.
func processorTime(b *testing.B) func() {
	at := used(b)
	return func() { b.ReportMetric(float64(used(b)-at)/float64(b.N), "cpu-ns/op") }
}

func used(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkLookupRandomRow finds random rows of a full store, the making of the key included.
func BenchmarkLookupRandomRow(b *testing.B) {
	z := sizeFor()
	s := New()
	z.load(s)
	runtime.GC()
	rng := rand.New(rand.NewPCG(1, 2))
	// Where to look is drawn before, so that the generator is not measured; the keys are made inside.
	const draws = 1 << 20
	picks := make([]int64, draws)
	for i := range picks {
		picks[i] = rng.Int64N(z.subscriptions)
	}
	b.Run("subscription by number", func(b *testing.B) {
		b.ReportAllocs()
		defer processorTime(b)()
		i := 0
		for b.Loop() {
			i++
			if s.Subscriptions().Get(picks[i%draws]+1) == nil {
				b.Fatal("missed")
			}
		}
	})
	b.Run("subscription by application and API", func(b *testing.B) {
		b.ReportAllocs()
		apps, apis := make([]*subscription.Application, z.applications+1), make([]*subscription.API, z.apis+1)
		for a := range s.Applications().All() {
			apps[a.ID] = a
		}
		for a := range s.APIs().All() {
			apis[a.ID] = a
		}
		defer processorTime(b)()
		i := 0
		for b.Loop() {
			i++
			app, api := z.subscription(picks[i%draws])
			if s.subscriptionOf(apps[app], apis[api]) == nil {
				b.Fatal("missed")
			}
		}
	})
}

// BenchmarkResolve does the four look-ups of a request, over random consumer keys.
func BenchmarkResolve(b *testing.B) {
	z := sizeFor()
	s := New()
	z.load(s)
	runtime.GC()
	rng := rand.New(rand.NewPCG(1, 2))
	type request struct {
		key string
		ref subscription.APIRef
	}
	const draws = 1 << 16
	requests := make([]request, draws)
	for i := range requests {
		app, api := z.subscription(rng.Int64N(z.subscriptions))
		requests[i] = request{consumerKey(app - 1), subscription.APIRef{UUID: uuid(1, api)}}
	}
	b.ReportAllocs()
	defer processorTime(b)()
	i := 0
	for b.Loop() {
		i++
		r := &requests[i%draws]
		if f := s.Resolve(r.key, "Resident Key Manager", r.ref); f.Subscription == nil {
			b.Fatal("missed")
		}
	}
}

// BenchmarkResolveApplication does the three look-ups of a request with an API key, over random applications.
func BenchmarkResolveApplication(b *testing.B) {
	z := sizeFor()
	s := New()
	z.load(s)
	runtime.GC()
	rng := rand.New(rand.NewPCG(1, 2))
	type request struct {
		app int64
		ref subscription.APIRef
		key string
	}
	requests := make([]request, 1<<16)
	for i := range requests {
		app, api := z.subscription(rng.Int64N(z.subscriptions))
		requests[i] = request{app, subscription.APIRef{UUID: uuid(1, api)}, uuid(2, app)}
	}
	b.ReportAllocs()
	defer processorTime(b)()
	i := 0
	for b.Loop() {
		i++
		r := &requests[i%len(requests)]
		if f := s.ResolveApplication(r.key, r.app, r.ref); f.Subscription == nil {
			b.Fatal("missed")
		}
	}
}

func BenchmarkTablePut(b *testing.B) {
	z := sizeFor()
	s := New()
	z.load(s)
	rows := z.subscriptionRows()
	b.ReportAllocs()
	defer processorTime(b)()
	i := 0
	for b.Loop() {
		i++
		s.Subscriptions().Put(rows[(i*7919)%len(rows)])
	}
}

// BenchmarkReplaceAll replaces every subscription of a full store: with rows that say the same, with rows that all changed,
// and with rows that are made one by one.
func BenchmarkReplaceAll(b *testing.B) {
	z := sizeFor()
	run := func(name string, rows func(round int) []subscription.Subscription, replace func(s *Store, rows []subscription.Subscription, round int)) {
		b.Run(name, func(b *testing.B) {
			s := New()
			z.load(s)
			runtime.GC()
			b.ReportAllocs()
			b.ResetTimer()
			spent := int64(0)
			for round := 0; b.Loop(); round++ {
				b.StopTimer()
				next := rows(round)
				b.StartTimer()
				at := used(b)
				replace(s, next, round)
				spent += used(b) - at
			}
			b.ReportMetric(float64(spent)/float64(b.N)/1e6, "cpu-ms/op")
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-held")
			b.ReportMetric(float64(peak())/(1<<20), "MiB-peak")
			runtime.KeepAlive(s)
		})
	}
	all := func(s *Store, rows []subscription.Subscription, _ int) { s.Subscriptions().ReplaceAll(rows) }
	run("one by one", func(int) []subscription.Subscription { return nil }, func(s *Store, _ []subscription.Subscription, round int) {
		if err := s.Subscriptions().ReplaceAllFrom(int(z.subscriptions), z.eachSubscription(fmt.Sprint("Gold", round%2))); err != nil {
			b.Fatal(err)
		}
	})
	run("same rows", func(int) []subscription.Subscription { return z.subscriptionRows() }, all)
	run("changed rows", func(round int) []subscription.Subscription {
		rows := z.subscriptionRows()
		for i := range rows {
			rows[i].Policy = fmt.Sprint("Silver", round)
		}
		return rows
	}, all)
}
