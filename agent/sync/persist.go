package sync

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/agent/sync/snapshot"
	"gatehouse/keymanager"
	"gatehouse/throttle"
)

// snapshotVersion changes with the meaning of the records.
const snapshotVersion = 1

// snapshotRefresh is the age at which a snapshot is written again although nothing changed, so that it does not grow
// too old to be used.
const snapshotRefresh = time.Hour

type snapshotState struct {
	loaded atomic.Pointer[time.Time] // nil: none
	poke   chan struct{}

	mu sync.Mutex
	st SnapshotState
}

func (s *snapshotState) state() SnapshotState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st
}

// snapshotHead is the first record: what the rest was taken of.
type snapshotHead struct {
	TakenAt int64 // our clock, ms
	// ServerTime is the API Manager's: what is older is in the snapshot.
	ServerTime int64
	Identity   string
	Tenants    []string
	Labels     []string
	// How many rows the large tables had, about.
	Applications, KeyMappings, Subscriptions int
}

func (e *Engine) snapshotPath() string {
	if e.opt.DataDir == "" {
		return ""
	}
	return filepath.Join(e.opt.DataDir, "snapshot")
}

// loadSnapshot fills the domains from disk. It runs before anything else, and starts without where the file is of no
// use.
func (e *Engine) loadSnapshot() {
	path := e.snapshotPath()
	if path == "" {
		return
	}
	e.snapshot.mu.Lock()
	e.snapshot.st.Path = path
	e.snapshot.mu.Unlock()
	started := time.Now()
	r, err := snapshot.Open(path, snapshotVersion)
	if errors.Is(err, fs.ErrNotExist) {
		e.log.Info().Str("file", path).Msg("no snapshot: waiting for the lists")
		return
	}
	var head snapshotHead
	if err == nil {
		defer func() { _ = r.Close() }() // it was only read
		head, err = e.readHead(r)
	}
	if err != nil {
		e.snapshotFault(fmt.Errorf("the snapshot is not used: %w", err))
		e.log.Error().Err(err).Str("file", path).Msg("the snapshot is not used: waiting for the lists; it will be replaced")
		return
	}
	var rows int
	if f := guarded(func() { rows, err = e.readRows(r, head) }); f != nil {
		e.panicked(kindOfSnapshot, nil, f, nil)
		err = f
	}
	if err != nil {
		// The checksum held, so it is a fault of ours; what was read stays, readiness waits for the lists.
		e.snapshotFault(err)
		e.log.Error().Err(err).Str("file", path).Msg("the snapshot could be read in part only: waiting for the lists")
		return
	}
	taken := time.UnixMilli(head.TakenAt)
	e.snapshot.loaded.Store(&taken)
	e.snapshot.mu.Lock()
	e.snapshot.st.LoadedAt, e.snapshot.st.TakenAt = time.Now(), taken
	e.snapshot.mu.Unlock()
	for _, k := range e.kinds {
		k.mu.Lock()
		k.origin = "snapshot"
		k.mu.Unlock()
	}
	e.log.Info().Str("file", path).Int("rows", rows).Dur("age", time.Since(taken)).Dur("took", time.Since(started)).Msg("serving from the snapshot until the lists are in")
}

func (e *Engine) snapshotFault(err error) {
	e.snapshot.mu.Lock()
	e.snapshot.st.Err = err.Error()
	e.snapshot.mu.Unlock()
}

func (e *Engine) readHead(r *snapshot.Reader) (head snapshotHead, err error) {
	section, record, err := r.Next()
	if err != nil {
		return head, err
	}
	if section != "head" {
		return head, fmt.Errorf("it begins with section %q", section)
	}
	if err := json.Unmarshal(record, &head); err != nil {
		return head, err
	}
	age := time.Since(time.UnixMilli(head.TakenAt))
	switch {
	case age > e.opt.MaxSnapshotAge:
		return head, fmt.Errorf("it is %s old, more than max_snapshot_age (%s)", age.Round(time.Second), e.opt.MaxSnapshotAge)
	case head.Identity != e.opt.Identity:
		return head, fmt.Errorf("it was taken of %q, and the configuration names %q", head.Identity, e.opt.Identity)
	case !slices.EqualFunc(head.Tenants, e.opt.Tenants, strings.EqualFold) || !slices.Equal(head.Labels, e.opt.Labels):
		return head, fmt.Errorf("it was taken for tenants %q and gateway labels %q, and the configuration names %q and %q",
			head.Tenants, head.Labels, e.opt.Tenants, e.opt.Labels)
	}
	return head, nil
}

// section is one kind of records: how they are written and taken back.
type section struct {
	name  string
	write func(emit func([]byte) error) error
	read  func(record []byte) error
	// done ends reading; nil: nothing to do.
	done func()
}

// tableSection writes the rows of a large table.
func tableSection[K comparable, R any](d *dataset[K, R], from origin, dec *rowDecoder, encode func(*encoder, *R), decode func(*rowDecoder) R, count int) section {
	var rows []R
	return section{
		name: d.name,
		done: func() {
			if d.table.ReplaceAll != nil && d.table.Len() == 0 {
				d.table.ReplaceAll(rows)
				return
			}
			// All yields rows in the order of their hashes, which is the worst in which a growing hash table can be filled.
			rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
			for i := range rows {
				d.table.Put(rows[i])
			}
			rows = nil
		},
		write: func(emit func([]byte) error) error {
			var enc encoder
			for r := range d.table.All() {
				enc.b = enc.b[:0]
				encode(&enc, r)
				if err := emit(enc.b); err != nil {
					return err
				}
			}
			return nil
		},
		read: func(record []byte) error {
			dec.b, dec.err = record, nil
			row := decode(dec)
			if dec.err != nil {
				return dec.err
			}
			d.stamp(&row, 0, from)
			if d.numbers != nil {
				if id, _ := d.numbers.of(&row); *id == 0 {
					d.numbers.used = true
				}
			}
			if rows == nil {
				rows = make([]R, 0, count)
			}
			rows = append(rows, row)
			return nil
		},
	}
}

// jsonSection writes rows as JSON.
func jsonSection[R any](name string, all func() iter.Seq[*R], put func(R) error) section {
	return section{
		name: name,
		write: func(emit func([]byte) error) error {
			for r := range all() {
				b, err := json.Marshal(r)
				if err != nil {
					return err
				}
				if err := emit(b); err != nil {
					return err
				}
			}
			return nil
		},
		read: func(record []byte) error {
			var r R
			if err := json.Unmarshal(record, &r); err != nil {
				return err
			}
			return put(r)
		},
	}
}

func smallSection[K comparable, R any](d *dataset[K, R], from origin) section {
	return jsonSection(d.name, d.table.All, func(r R) error {
		d.stamp(&r, 0, from)
		d.table.Put(r)
		return nil
	})
}

func pointers[R any](list func() []R) func() iter.Seq[*R] {
	return func() iter.Seq[*R] {
		return func(yield func(*R) bool) {
			if list == nil {
				return
			}
			for _, r := range list() {
				if !yield(&r) {
					return
				}
			}
		}
	}
}

func (e *Engine) sections(head snapshotHead) []section {
	from := origin{Kind: "snapshot", At: head.TakenAt, ID: "snapshot"}
	dec := &rowDecoder{shared: make(map[string]string)}
	dom := &e.opt.Domains
	now := time.Now().UnixMilli()
	return append(e.apiKeySections(from),
		smallSection(e.keyManagers, from),
		smallSection(e.deny, from),
		smallSection(e.keyTemplates, from),
		smallSection(e.subscriptionPolicies, from),
		smallSection(e.applicationPolicies, from),
		smallSection(e.apiPolicies, from),
		smallSection(e.scopes, from),
		smallSection(e.apis, from),
		smallSection(e.artifacts, from),
		tableSection(e.applications, from, dec, encodeApplication, decodeApplication, head.Applications),
		tableSection(e.mappings, from, dec, encodeMapping, decodeMapping, head.KeyMappings),
		tableSection(e.subscriptions, from, dec, encodeSubscription, decodeSubscription, head.Subscriptions),
		jsonSection("decisions", pointers(dom.Decisions), func(d throttle.Decision) error {
			if dom.Decide != nil && d.ExpiresAt > now {
				d.Origin = throttle.Origin(from)
				dom.Decide(d, now)
			}
			return nil
		}),
		jsonSection(kindRevokedTokens, pointers(dom.Revocations), func(r keymanager.Revocation) error {
			if dom.Revoke != nil {
				r.Origin = keymanager.Origin(from)
				dom.Revoke(r)
			}
			return nil
		}),
	)
}

func (e *Engine) readRows(r *snapshot.Reader, head snapshotHead) (rows int, err error) {
	byName := make(map[string]section)
	for _, s := range e.sections(head) {
		byName[s.name] = s
	}
	for _, b := range e.batches() {
		b.begin()
		defer b.end()
	}
	for {
		name, record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return rows, err
		}
		if s, ok := byName[name]; ok {
			if err := s.read(record); err != nil {
				return rows, fmt.Errorf("section %s, row %d: %w", name, rows, err)
			}
			rows++
		}
	}
	for _, s := range byName {
		if s.done != nil {
			s.done()
		}
	}
	e.setFloors(head.ServerTime)
	return rows, nil
}

type batch interface {
	begin()
	end()
}

func (e *Engine) batches() []batch {
	return []batch{
		e.keyManagers.shadow, e.deny.shadow, e.keyTemplates.shadow, e.subscriptionPolicies.shadow, e.applicationPolicies.shadow,
		e.apiPolicies.shadow, e.scopes.shadow, e.artifacts.shadow,
	}
}

// setFloors makes events that are older than the snapshot questions instead of answers: a relay may replay them.
func (e *Engine) setFloors(t int64) {
	e.keyManagers.ledger.floor = t
	e.deny.ledger.floor = t
	e.keyTemplates.ledger.floor = t
	e.subscriptionPolicies.ledger.floor = t
	e.applicationPolicies.ledger.floor = t
	e.apiPolicies.ledger.floor = t
	e.scopes.ledger.floor = t
	e.apis.ledger.floor = t
	e.artifacts.ledger.floor = t
	e.applications.ledger.floor = t
	e.mappings.ledger.floor = t
	e.subscriptions.ledger.floor = t
}

// snapshotLoop writes a snapshot soon after lists came in, and now and then when something changed.
func (e *Engine) snapshotLoop(ctx context.Context) {
	if e.opt.DataDir == "" {
		return
	}
	var last time.Time
	ticker := time.NewTicker(e.opt.SnapshotInterval)
	defer ticker.Stop()
	select { // nothing is worth writing before; a good snapshot is not replaced by half of the lists
	case <-ctx.Done():
		return
	case <-e.ready:
	}
	for {
		if e.allFetched() && (e.dirty.Load() || time.Since(last) > snapshotRefresh) {
			e.saveSnapshot()
			last = time.Now()
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				waiting = false
			case <-e.snapshot.poke:
				waiting = time.Since(last) < e.opt.SnapshotInterval
			}
		}
	}
}

// pokeSnapshot tells the loop that a list came in.
func (e *Engine) pokeSnapshot() {
	select {
	case e.snapshot.poke <- struct{}{}:
	default:
	}
}

// allFetched tells whether every list has been applied since the start.
func (e *Engine) allFetched() bool {
	for _, k := range e.fetched() {
		k.mu.Lock()
		done := !k.fetchedAt.IsZero()
		k.mu.Unlock()
		if !done {
			return false
		}
	}
	return true
}

// saveSnapshot writes the state to disk, while it goes on changing: each row is whole, and the lists settle the rest
// after a restart.
func (e *Engine) saveSnapshot() {
	path := e.snapshotPath()
	if path == "" || !e.allFetched() || len(e.fetched()) == 0 {
		return
	}
	e.dirty.Store(false)
	started := time.Now()
	head := snapshotHead{
		TakenAt: started.UnixMilli(), ServerTime: e.serverNow(started), Identity: e.opt.Identity, Tenants: e.opt.Tenants, Labels: e.opt.Labels,
		Applications: e.applications.table.Len(), KeyMappings: e.mappings.table.Len(), Subscriptions: e.subscriptions.table.Len(),
	}
	err := os.MkdirAll(e.opt.DataDir, 0o700)
	var size int64
	if err == nil {
		size, err = snapshot.Write(path, snapshotVersion, func(w *snapshot.Writer) (err error) {
			if f := guarded(func() { err = e.writeRows(w, head) }); f != nil {
				e.panicked(kindOfSnapshot, nil, f, nil)
				err = f
			}
			return err
		})
	}
	e.snapshot.mu.Lock()
	if err != nil {
		e.snapshot.st.Err = err.Error()
	} else {
		e.snapshot.st.Err, e.snapshot.st.WrittenAt, e.snapshot.st.Bytes = "", started, size
	}
	e.snapshot.mu.Unlock()
	if err != nil {
		e.dirty.Store(true)
		e.log.Error().Err(err).Msg("the snapshot cannot be written; a restart would wait for the API Manager. Make data_dir writable and see to free space")
		return
	}
	e.log.Debug().Int64("bytes", size).Dur("took", time.Since(started)).Msg("snapshot written")
}

func (e *Engine) writeRows(w *snapshot.Writer, head snapshotHead) error {
	b, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if err := w.Section("head"); err != nil {
		return err
	}
	if err := w.Record(b); err != nil {
		return err
	}
	for _, s := range e.sections(head) {
		if err := w.Section(s.name); err != nil {
			return err
		}
		if err := s.write(w.Record); err != nil {
			return err
		}
	}
	return nil
}
