package sync

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
)

// kind is what one list is to the engine, whatever its rows are: when it is due, how it went last, whether it is held
// back. Its loop is the only one that fetches the list, so fetches are single flight; a request that comes while one
// runs makes it run again afterwards, since a list that was asked for earlier proves nothing about later changes.
type kind struct {
	name string
	// topic is the event hub's topic whose loss makes this list due.
	topic string
	// optional lists may be missing at an API Manager; they do not hold readiness up.
	optional bool
	// slow lists are left out of the periodic resync.
	slow bool
	// unlisted: there is no such list, only events.
	unlisted bool
	log      zerolog.Logger
	pull     func(context.Context) pullResult
	length   func() int
	// fault is told of a panic of pull.
	fault func(*panicError)
	// first is called when the list was applied for the first time, every each time.
	first, every func()

	mu        sync.Mutex
	due       time.Time
	wake      chan struct{}
	fetchedAt time.Time
	origin    string // of the rows before the first fetch: "snapshot"
	held      bool
	running   bool
	gapped    bool          // messages were lost while the list was being fetched
	endedAt   time.Time     // of the last fetch, however it ended
	took      time.Duration // the last fetch
	failures  uint64
	failing   bool
	lastErr   string
	seconds   float64
	doubts    uint // how often doubt made the list due since the last calm minute
	doubtAt   time.Time
}

type pullResult struct {
	outcome pullOutcome
	err     error
	again   time.Time
	rows    int
}

type pullOutcome uint8

const (
	pullApplied pullOutcome = iota
	pullFailed
	pullHeld
	pullAgain
	pullAbsent
	pullStopped
)

// request makes the list due at a time, or earlier if it is already due earlier.
func (k *kind) request(at time.Time) {
	k.mu.Lock()
	if k.due.IsZero() || at.Before(k.due) {
		k.due = at
	}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// gap makes the list due because the event source lost messages, which it does when the gateway is too slow. Lists would
// make it slower still, so between the end of one and the next that only a gap asks for lies at least as long as the one
// took, and minGapPause. A gap in the meantime is answered at its end; a fetch that is due anyway answers it too.
func (k *kind) gap(at time.Time) {
	k.mu.Lock()
	if k.running {
		k.gapped = true
		k.mu.Unlock()
		return
	}
	if !k.endedAt.IsZero() {
		if soonest := k.endedAt.Add(max(k.took, minGapPause)); soonest.After(at) {
			at = soonest
		}
	}
	retried := k.failing && !k.due.IsZero()
	k.mu.Unlock()
	if !retried { // else it would cut the pause after a failure short
		k.request(at)
	}
}

// minGapPause is the least time between the end of a list and the next for a gap.
const minGapPause = time.Second

// doubt makes the list due because single questions do not suffice. It waits longer each time, so that a busy event
// stream cannot keep the API Manager busy with lists.
func (k *kind) doubt(delay time.Duration) {
	now := time.Now()
	k.mu.Lock()
	if now.Sub(k.doubtAt) > 2*time.Minute {
		k.doubts = 0
	}
	if k.due.IsZero() || k.due.Sub(now) > delay {
		k.doubts++
		k.doubtAt = now
		delay <<= min(k.doubts-1, 7)
	}
	k.mu.Unlock()
	k.request(now.Add(delay))
}

// until returns how long it is until the list is due.
func (k *kind) until() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.due.IsZero() {
		return time.Hour
	}
	return time.Until(k.due)
}

func (k *kind) run(ctx context.Context) {
	var backoff controlplane.Backoff
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(k.until())
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
			continue
		case <-timer.C:
		}
		if k.until() > 0 {
			continue
		}
		k.mu.Lock()
		k.due = time.Time{}
		k.running = true
		k.mu.Unlock()
		start := time.Now()
		k.log.Trace().Msg("fetching")
		var r pullResult
		if f := guarded(func() { r = k.pull(ctx) }); f != nil {
			k.fault(f)
			r = pullResult{outcome: pullFailed, err: f}
		}
		if ctx.Err() != nil {
			return
		}
		k.record(r, time.Since(start))
		switch r.outcome {
		case pullFailed:
			d := backoff.Next(r.err)
			k.request(time.Now().Add(d))
		case pullHeld, pullAgain:
			backoff.Reset()
			k.request(r.again)
		default:
			backoff.Reset()
		}
	}
}

// record keeps how a fetch went and says so in the log, once for a row of failures.
func (k *kind) record(r pullResult, took time.Duration) {
	now := time.Now()
	k.mu.Lock()
	k.running = false
	k.endedAt, k.took = now, took
	if k.gapped && k.due.IsZero() && (r.outcome == pullApplied || r.outcome == pullAbsent) { // the others are repeated
		k.due = now.Add(max(took, minGapPause))
	}
	k.gapped = false
	was := k.failing
	first := false
	switch r.outcome {
	case pullFailed:
		k.failures++
		k.failing = true
		k.lastErr = r.err.Error()
	case pullHeld:
		k.held = true
		k.failing = false
	case pullApplied, pullAbsent:
		first = k.fetchedAt.IsZero()
		k.fetchedAt = now
		k.seconds = took.Seconds()
		k.held, k.failing, k.lastErr, k.origin = false, false, "", ""
	}
	k.mu.Unlock()
	switch {
	case r.outcome == pullFailed && !was:
		k.log.Warn().Err(r.err).Msg("the list could not be fetched; what is held stays in force, trying again for ever")
	case r.outcome == pullFailed:
		k.log.Debug().Err(r.err).Msg("the list could not be fetched again")
	case r.outcome == pullAbsent && first:
		k.log.Info().Err(r.err).Msg("the API Manager does not serve this list")
	case r.outcome == pullApplied:
		k.log.Debug().Int("rows", r.rows).Dur("took", took).Msg("list applied")
	}
	if first {
		k.first()
	}
	if r.outcome == pullApplied {
		k.every()
	}
}

// jittered returns d, a fifth off at most.
func jittered(d time.Duration) time.Duration {
	const part = 0.2
	return time.Duration(float64(d) * (1 + part*(2*rand.Float64()-1)))
}
