package sync

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/subscription"
	"gatehouse/subscription/store"
)

// overStore gives the engine the real tables.
func overStore(s *store.Store) func(*Options) {
	return func(o *Options) {
		apis, mappings := s.APIs(), s.KeyMappings()
		o.Domains.APIs = Table[APIKey, subscription.API]{
			Get: func(k APIKey) *subscription.API { return apis.Get(store.APIKey(k)) }, Put: apis.Put,
			Delete: func(k APIKey) *subscription.API { return apis.Delete(store.APIKey(k)) }, Len: apis.Len, All: apis.All,
		}
		o.Domains.KeyMappings = Table[MappingKey, subscription.KeyMapping]{
			Get: func(k MappingKey) *subscription.KeyMapping { return mappings.Get(store.MappingKey(k)) }, Put: mappings.Put,
			Delete: func(k MappingKey) *subscription.KeyMapping { return mappings.Delete(store.MappingKey(k)) }, Len: mappings.Len, All: mappings.All, ReplaceAll: mappings.ReplaceAll,
		}
		o.Domains.Applications = storeTable(s.Applications())
		o.Domains.Subscriptions = storeTable(s.Subscriptions())
		o.Domains.Resolve = s.Resolve
	}
}

func storeTable[K comparable, R any](t *store.Table[K, R]) Table[K, R] {
	return Table[K, R]{Get: t.Get, Put: t.Put, Delete: t.Delete, Len: t.Len, All: t.All, ReplaceAll: t.ReplaceAll}
}

// wireSubscription is a row as the API Manager of 4.x sends it.
func wireSubscription(i int) controlplane.Subscription {
	return controlplane.Subscription{
		SubscriptionID: int64(i) + 1, SubscriptionUUID: fmt.Sprintf("90000000-0000-4000-8000-%012d", i),
		APIID: int64(i / 50_000), AppID: int64(i % 50_000), PolicyID: "Gold", SubscriptionState: "UNBLOCKED",
	}
}

// BenchmarkEvents applies SUBSCRIPTIONS_UPDATE events, decoded from their wire form, to a table of 100,000 rows.
func BenchmarkEvents(b *testing.B) {
	const rows = 100_000
	m := newManager()
	for i := range rows {
		m.subs[int64(i)+1] = wireSubscription(i)
	}
	s := store.New()
	r := newRig(b, m, func(o *Options) {
		overStore(s)(o)
		o.Decode = event.Decode
		o.Registerer = prometheus.NewRegistry()
		o.QueueLimit, o.QueueBytes = 1<<30, 1<<40
	})
	r.start()
	defer r.end(b)
	r.source.state(eventsource.Connected)
	<-r.Ready()
	now := time.Now().UnixMilli() + 3000 // after the window of the list
	messages := make([]event.Message, 20_000)
	for i := range messages {
		state := []string{"BLOCKED", "UNBLOCKED"}[i%2]
		inner, err := json.Marshal(map[string]any{
			"subscriptionId": i + 1, "subscriptionUUID": wireSubscription(i + 1).SubscriptionUUID, "apiId": 1, "apiUUID": "",
			"applicationId": 2, "applicationUUID": "", "policyId": "Gold", "subscriptionState": state, "eventId": fmt.Sprint("e", i),
			"timeStamp": now, "type": "SUBSCRIPTIONS_UPDATE", "tenantId": -1234, "tenantDomain": "carbon.super",
		})
		if err != nil {
			b.Fatal(err)
		}
		body := fmt.Sprintf(`{"event":{"payloadData":{"eventType":"SUBSCRIPTIONS_UPDATE","timestamp":%d,"event":"%s"}}}`, now, base64.StdEncoding.EncodeToString(inner))
		messages[i] = event.Message{Topic: event.TopicNotification, ContentType: "application/json", Timestamp: now, Body: []byte(body)}
	}
	src := r.sources[0]
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		src.OnMessage(messages[i%len(messages)])
		if i%len(messages) == len(messages)-1 {
			// The same ids again would be duplicates.
			b.StopTimer()
			r.seen = newRecent(10_000)
			b.StartTimer()
		}
	}
	for src.applied.Load()+src.ignored[outDuplicate].Load() < uint64(b.N) {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// millionRows serves n generated subscriptions.
func millionRows(n int) func(context.Context, ListQuery, func(controlplane.Subscription) error) (Meta, error) {
	return func(_ context.Context, _ ListQuery, each func(controlplane.Subscription) error) (Meta, error) {
		m := Meta{Started: time.Now(), ServerDate: time.Now()}
		for i := range n {
			if err := each(wireSubscription(i)); err != nil {
				return m, err
			}
		}
		m.Finished = time.Now()
		return m, nil
	}
}

func peak() float64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kb float64
		if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kb); err == nil {
			return kb / 1024
		}
	}
	return 0
}

// BenchmarkMillionSubscriptions loads a million subscriptions into empty tables, fetches them again, and writes and reads
// a snapshot of them.
func BenchmarkMillionSubscriptions(b *testing.B) {
	const n = 1_000_000
	timed := func(b *testing.B, name string, f func()) {
		start := time.Now()
		f()
		b.ReportMetric(time.Since(start).Seconds(), name+"-s/op")
	}
	for range b.N {
		s := store.New()
		dir := b.TempDir()
		change := func(s *store.Store) func(*Options) {
			return func(o *Options) {
				overStore(s)(o)
				o.Lists = Lists{Subscriptions: millionRows(n)}
				o.Logger = zerolog.Nop()
				o.DataDir = dir
				o.SnapshotInterval = time.Hour
			}
		}
		r := newRig(b, newManager(), change(s))
		timed(b, "load", func() {
			r.start()
			r.source.state(eventsource.Connected)
			<-r.Ready()
		})
		if s.Subscriptions().Len() != n {
			b.Fatal(s.Subscriptions().Len())
		}
		timed(b, "again", func() {
			before := r.State().Lists.ByKind[kindSubscriptions].FetchedAt
			r.Resync()
			for !r.State().Lists.ByKind[kindSubscriptions].FetchedAt.After(before) {
				time.Sleep(time.Millisecond)
			}
		})
		timed(b, "save", func() { r.saveSnapshot() })
		b.ReportMetric(peak(), "VmHWM-MiB")
		r.end(b)
		s = nil
		runtime.GC()
		again := store.New()
		restarted := newRig(b, newManager(), change(again))
		timed(b, "restore", restarted.loadSnapshot)
		if again.Subscriptions().Len() != n {
			b.Fatal(again.Subscriptions().Len())
		}
		info, err := os.Stat(filepath.Join(dir, "snapshot"))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Size())/(1<<20), "file-MiB")
	}
}

// BenchmarkLedger notes and judges events of many entities.
func BenchmarkLedger(b *testing.B) {
	l := newLedger[int64](200_000, &hooks{})
	now := time.Now()
	b.ReportAllocs()
	for i := range b.N {
		k := int64(i) % 300_000
		if l.judge(k, int64(i)) == fresh {
			l.note(k, int64(i), false, now)
		}
	}
}
