// Package eventsource is the contract between the sync engine and whatever brings the API Manager's events: an AMQP
// broker (eventsource/amqp) or NATS (eventsource/nats).
//
// A source promises: Connected is reported only when every topic is subscribed, so that a list fetched afterwards misses
// nothing; after Disconnected or Gap, events may have been lost and everything must be fetched again; messages of one
// topic are delivered in the order of arrival.
package eventsource

import (
	"context"
	"time"

	"gatehouse/agent/event"
)

// StateKind is a state of the connection.
type StateKind uint8

// States. A source begins with Connecting. Connected, Disconnected and Refused follow each other in any order, and are
// said when they change; Gap is said within a connection that holds, each time that messages were lost on it (slow
// consumer, relay gap), and no Connected follows it.
const (
	Connecting StateKind = iota
	Connected
	Disconnected
	// Refused: the credentials or the virtual host were refused. The source retries slowly (60 s).
	Refused
	Gap
)

func (k StateKind) String() string {
	switch k {
	case Connected:
		return "connected"
	case Disconnected:
		return "disconnected"
	case Refused:
		return "refused"
	case Gap:
		return "gap"
	default:
		return "connecting"
	}
}

// State is a change of a source's connection.
type State struct {
	Kind    StateKind
	Address string // host:port, never with credentials
	Since   time.Time
	Err     error // why, for Disconnected and Refused
}

// Handler receives what a source has. Both methods are called from the source's goroutines; OnMessage is never called
// concurrently for one topic, and OnState never concurrently at all. A message that is handed over after OnState
// (Connected) belongs to that connection. OnMessage returns when the message is queued or judged bad; the source settles
// it then. The body belongs to the handler.
type Handler interface {
	OnState(State)
	OnMessage(event.Message)
}

// Source is one set of brokers with the topics that a gateway needs.
type Source interface {
	// Run connects, reconnects for ever and delivers to h, until ctx is done. It returns ctx's error, or a fault of
	// configuration.
	Run(ctx context.Context, h Handler) error
	// Name is "event_hub" or "traffic_manager"; Kind is "amqp" or "nats".
	Name() string
	Kind() string
}
