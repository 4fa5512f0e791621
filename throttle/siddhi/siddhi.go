// Package siddhi runs throttle policies written in SiddhiQL and reaches the decisions of the real Siddhi engine (contract
// traffic-manager.md 4 and 5).
//
// Compile turns a text into a Plan, or refuses it with a code, a line and a column; nothing of a text is passed over in
// silence. CompileTree does the same from a tree, for policies that come as data. A Plan is immutable. NewRuntime gives the
// Plan state: keys, counts and windows.
//
// # Sharding
//
// A Runtime belongs to one goroutine. To use several, give each shard a Runtime of its own, send every event to every
// shard, and let RuntimeOptions.Owns tell which keys the shard counts: each key must be owned by exactly one. The key is what
// the policy groups by, mostly throttleKey. Whether a plan can be split is said by Plan.Sharded: a policy that aggregates
// without group by counts all events together and belongs into one shard.
//
// # Time
//
// The engine never reads a clock. Every call is given the time, so tests and replays run on virtual time. Tick fires the
// timers that are due, each at its own time; Next says when the next one is due.
//
// # Where it differs from the real engine on purpose
//
// Every event updates every aggregate, also one behind a true "or" or in the branch of ifThenElse not taken, so counts do not
// drift. A value that sum, avg, min or max cannot take is left out of that aggregate and counted as an error; the event
// itself counts. A reset flag does not push a count below zero beyond the window: a key whose events have all left is
// forgotten. Names of aggregates are taken in any case. See docs/siddhi.md.
package siddhi

import (
	"time"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/expr"
	"gatehouse/throttle/siddhi/parse"
	"gatehouse/throttle/siddhi/refusal"
	"gatehouse/throttle/siddhi/value"
)

// Error is why a text is refused, with a code, a line and a column; all errors of Compile are of this type.
type Error = refusal.Error

// Value is one value of a row.
type Value = value.Value

// Profile is how the window of the throttler ends (contract traffic-manager.md 4.4).
type Profile uint8

const (
	// Reset drops all counts at the end of a window; no row leaves. Cheap, and the zero value.
	Reset Profile = iota
	// Classic takes the events of the window out again one by one, which yields a row for every key. It keeps every event
	// of the window.
	Classic
)

// Names of streams that every policy has.
const (
	RequestStream        = "RequestStream"
	ResultStream         = "ResultStream"
	GlobalThrottleStream = "GlobalThrottleStream"
)

// Options say what surrounds a text.
type Options struct {
	// Streams are defined before the text. nil means RequestStream with its 17 attributes.
	Streams []*ast.Stream
	Profile Profile
	// Free is for texts that are no throttle policies: ResultStream is not demanded and no query is added. Otherwise
	// ResultStream must be (throttleKey string, isThrottled bool, expiryTimeStamp long), and the query that turns it into
	// GlobalThrottleStream by emitOnStateChange is added unless the text has one.
	Free bool
}

// Requests is the definition of RequestStream as policies see it (contract traffic-manager.md 4.1). propertiesMap is declared
// a string and holds a map.
func Requests() *ast.Stream {
	s := &ast.Stream{Name: RequestStream}
	for _, name := range []string{
		"messageID", "appKey", "appTier", "apiKey", "apiTier", "subscriptionKey", "subscriptionTier", "resourceKey",
		"resourceTier", "userId", "apiContext", "apiVersion", "appTenant", "apiTenant", "appId", "apiName", "propertiesMap",
	} {
		s.Attributes = append(s.Attributes, ast.Attribute{Name: name, Type: ast.String})
	}
	return s
}

// StreamID names a stream of one plan.
type StreamID int

// Plan is a compiled policy: immutable, shared by any number of runtimes.
type Plan struct {
	streams []*stream
	names   map[string]StreamID
	queries []*query
	profile Profile
}

type stream struct {
	name    string
	columns []expr.Column
	readers []int // queries, in the order of the text
}

// Compile reads, checks and compiles a text. The error is an *Error.
func Compile(text string, options Options) (*Plan, error) {
	tree, err := parse.Parse(text)
	if err != nil {
		return nil, err
	}
	return CompileTree(tree, options)
}

// Stream finds a stream by its name.
func (p *Plan) Stream(name string) (id StreamID, ok bool) {
	id, ok = p.names[name]
	return id, ok
}

// Columns are the attributes of a stream, in the order of its rows. The result must not be changed.
func (p *Plan) Columns(id StreamID) []expr.Column { return p.streams[id].columns }

// Sharded reports whether the keys of the plan can be counted in several runtimes, see the package comment.
func (p *Plan) Sharded() bool {
	for _, q := range p.queries {
		if q.stateful() && len(q.groupBy) == 0 {
			return false
		}
	}
	return true
}

// maxWindow is the longest window: ten years.
const maxWindow = 10 * 365 * 24 * time.Hour
