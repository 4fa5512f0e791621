package sync

import (
	"maps"
	"time"

	"gatehouse/agent/eventsource"
)

// State is what the admin server shows of the engine.
type State struct {
	Ready     bool
	GatewayID string
	Sources   []SourceState
	Lists     ListsState
	// Refused are the deployed APIs that cannot be served, by UUID, with why.
	Refused  map[string]string
	APIs     int
	Snapshot SnapshotState
}

// SourceState is an event source.
type SourceState struct {
	Name, Kind    string
	Connected     bool
	State         string // connecting, connected, disconnected, refused
	Address       string
	Since         time.Time
	Err           string // why it is not connected
	LastEventAt   time.Time
	EventsApplied uint64
	// EventsIgnored counts by stale, unknown, malformed, duplicate, tenant (of another one), dropped (queue full), other
	// (nothing to do for a gateway).
	EventsIgnored map[string]uint64
	Reconnects    uint64
	Queue         int // events that wait to be applied, of all sources
}

// ListsState is the lists together.
type ListsState struct {
	LastSyncAt      time.Time // when the list that was applied last came in
	LastSyncSeconds float64   // how long the slowest list took last
	Failures        uint64
	ByKind          map[string]KindState
}

// KindState is one list.
type KindState struct {
	Rows      int
	FetchedAt time.Time // zero: never
	HeldBack  bool
	Fetching  bool
	Failures  uint64
	// Err is why the last fetch failed; "" when it did not.
	Err   string
	Queue int
	// Ledger is how many entities changed since the list.
	Origin string // "pull", or "snapshot" before the first fetch
}

// SnapshotState is the snapshot on disk.
type SnapshotState struct {
	Path     string
	LoadedAt time.Time // zero: none was loaded
	WrittenAt,
	// TakenAt is when the loaded one was written.
	TakenAt time.Time
	Bytes int64
	Err   string
}

var outcomeNames = [...]string{
	applied: "applied", outStale: "stale", outUnknown: "unknown", outMalformed: "malformed",
	outDuplicate: "duplicate", outTenant: "tenant", outDropped: "dropped", outOther: "other",
}

// State tells how the engine is. It is cheap enough to be called every second.
func (e *Engine) State() State {
	st := State{Ready: e.IsReady(), Lists: ListsState{ByKind: make(map[string]KindState)}, Refused: make(map[string]string)}
	if id := e.gateway.Load(); id != nil {
		st.GatewayID = *id
	}
	queues := make(map[string]int)
	total := 0
	for _, w := range e.workers {
		n := w.in.len()
		total += n
		for _, k := range w.kinds {
			queues[k.name] = n
		}
	}
	for _, s := range e.sources {
		s.mu.Lock()
		src := SourceState{
			Name: s.source.Name(), Kind: s.source.Kind(), Address: s.state.Address, Since: s.state.Since, Reconnects: s.reconnects,
			State: s.state.Kind.String(), Queue: total, EventsApplied: s.applied.Load(), EventsIgnored: make(map[string]uint64),
		}
		src.Connected = s.state.Kind == eventsource.Connected || s.state.Kind == eventsource.Gap
		if s.state.Err != nil {
			src.Err = s.state.Err.Error()
		}
		s.mu.Unlock()
		if ms := s.lastEvent.Load(); ms > 0 {
			src.LastEventAt = time.UnixMilli(ms)
		}
		for o := outStale; o <= outOther; o++ {
			src.EventsIgnored[outcomeNames[o]] = s.ignored[o].Load()
		}
		st.Sources = append(st.Sources, src)
	}
	for _, k := range e.kinds {
		if !e.hasList(k.name) {
			continue
		}
		k.mu.Lock()
		ks := KindState{
			Rows: k.length(), FetchedAt: k.fetchedAt, HeldBack: k.held, Fetching: k.running, Failures: k.failures, Err: k.lastErr,
			Queue: queues[k.name], Origin: k.origin,
		}
		if k.fetchedAt.After(st.Lists.LastSyncAt) {
			st.Lists.LastSyncAt = k.fetchedAt
		}
		st.Lists.LastSyncSeconds = max(st.Lists.LastSyncSeconds, k.seconds)
		k.mu.Unlock()
		if ks.Origin == "" && !ks.FetchedAt.IsZero() {
			ks.Origin = "pull"
		}
		st.Lists.Failures += ks.Failures
		st.Lists.ByKind[k.name] = ks
	}
	maps.Copy(st.Refused, *e.refused.Load())
	for r := range e.artifacts.table.All() {
		if why := r.faults(); why != "" {
			st.Refused[r.UUID] = why
		}
	}
	st.APIs = e.apis.table.Len()
	st.Snapshot = e.snapshot.state()
	return st
}

// Check is one line of the health answer.
type Check struct {
	Name   string // lists, event_hub (or the name of another source), snapshot
	Status string // ok, degraded, failed
	Detail string
	Since  time.Time
}

// Checks returns the health checks of the engine. Only lists, which is failed until the engine is ready, decides
// readiness.
func (e *Engine) Checks() []Check {
	st := e.State()
	lists := Check{Name: "lists", Status: "ok", Detail: "all lists are in", Since: st.Lists.LastSyncAt}
	for name, k := range st.Lists.ByKind {
		switch {
		case !st.Ready && k.FetchedAt.IsZero():
			lists.Status, lists.Detail = "failed", "waiting for "+name
			if k.Err != "" {
				lists.Detail = name + ": " + k.Err
			}
		case lists.Status == "failed":
		case k.Err != "":
			lists.Status, lists.Detail = "degraded", name+": "+k.Err
		case k.HeldBack:
			lists.Status, lists.Detail = "degraded", name+" has shrunk and waits to be confirmed"
		case k.FetchedAt.IsZero():
			lists.Status, lists.Detail = "degraded", name+" is served from the snapshot"
		}
	}
	if !st.Ready && lists.Status != "failed" {
		lists.Status, lists.Detail = "failed", "waiting for the folder of API definitions"
	}
	checks := []Check{lists}
	for _, s := range st.Sources {
		c := Check{Name: s.Name, Status: "ok", Detail: "connected to " + s.Address, Since: s.Since}
		if !s.Connected {
			c.Status, c.Detail = "degraded", s.State
			if s.Err != "" {
				c.Detail += ": " + s.Err
			}
		}
		checks = append(checks, c)
	}
	if st.Snapshot.Path != "" {
		c := Check{Name: "snapshot", Status: "ok", Detail: "none written yet", Since: st.Snapshot.WrittenAt}
		switch {
		case st.Snapshot.Err != "":
			c.Status, c.Detail = "degraded", st.Snapshot.Err
		case !st.Snapshot.WrittenAt.IsZero():
			c.Detail = "written"
		case !st.Snapshot.LoadedAt.IsZero():
			c.Detail, c.Since = "loaded", st.Snapshot.LoadedAt
		}
		checks = append(checks, c)
	}
	return checks
}
