package controlplane

import (
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Backoff says how long to wait before the next try. It is not safe for concurrent use: each loop has its own. The
// zero value is ready.
type Backoff struct {
	kind  Kind
	delay *backoff.ExponentialBackOff
}

// Bounds of the delays (contract gateway-behaviour.md 33): a server that cannot be reached is tried at least once a
// second, one that answers 5xx after 1 to 15 s, one that refuses the credentials about once a minute.
const (
	MaxUnreachableDelay = time.Second
	MaxServerDelay      = 15 * time.Second
	MaxRefusedDelay     = time.Minute
)

// Next returns the delay before the next try after err: greater than 0 and at most the bound of err's kind. The delay
// grows while failures of one kind follow each other. An error that is no Error counts as a fault of the server.
func (b *Backoff) Next(err error) time.Duration {
	kind := classOf(KindOf(err))
	if b.delay == nil || kind != b.kind {
		b.kind, b.delay = kind, newDelay(kind)
	}
	d := b.delay.NextBackOff()
	return min(max(d, time.Millisecond), maxDelay(kind))
}

// Reset is called after a success.
func (b *Backoff) Reset() { b.delay = nil }

// classOf folds the kinds into the three ways of waiting.
func classOf(k Kind) Kind {
	switch k {
	case Unreachable, Refused:
		return k
	case NotFound, Rejected:
		return Refused
	}
	return Server
}

func maxDelay(class Kind) time.Duration {
	switch class {
	case Unreachable:
		return MaxUnreachableDelay
	case Refused:
		return MaxRefusedDelay
	}
	return MaxServerDelay
}

func newDelay(class Kind) *backoff.ExponentialBackOff {
	// The interval is drawn from [i(1-r), i(1+r)], so the cap of i keeps i(1+r) within the bound.
	d := &backoff.ExponentialBackOff{Multiplier: 2, RandomizationFactor: 0.25}
	switch class {
	case Unreachable:
		d.InitialInterval, d.MaxInterval = 250*time.Millisecond, 800*time.Millisecond
	case Refused:
		d.RandomizationFactor = 0.1
		d.InitialInterval, d.MaxInterval = 54*time.Second, 54*time.Second
	default:
		d.InitialInterval, d.MaxInterval = time.Second, 12*time.Second
	}
	d.Reset()
	return d
}
