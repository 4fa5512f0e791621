package controlplane

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is the class of a failed call; the caller chooses its next step by it.
type Kind int

// The kinds of failure.
const (
	// Unreachable: no answer came, or the connection broke within it.
	Unreachable Kind = iota + 1
	// Refused: 401 or 403.
	Refused
	// NotFound: 404, 405 or 501; the service does not have this path.
	NotFound
	// Rejected: another 4xx; the request itself is at fault and repeating it is of no use.
	Rejected
	// Server: 5xx, 408 or 429.
	Server
	// Bad: an answer that is not what was asked for, truncated, too large, or a redirect that is not followed.
	Bad
)

// String names the kind as in metrics and logs.
func (k Kind) String() string {
	switch k {
	case Unreachable:
		return "unreachable"
	case Refused:
		return "refused"
	case NotFound:
		return "not_found"
	case Rejected:
		return "rejected"
	case Server:
		return "server"
	case Bad:
		return "bad"
	}
	return "unknown"
}

// Error is a failed call of the API Manager. Its text says what was tried, on what, and what to do.
type Error struct {
	Op     string // what was tried: "list subscriptions"
	URL    string // method and URL without credentials
	Status int    // HTTP status, 0 when no answer came
	Kind   Kind
	Detail string // what the server or the decoder said
	Err    error  // the cause, if any
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: ", e.Op, e.URL)
	if e.Status != 0 && e.Kind != Bad {
		fmt.Fprintf(&b, "answered %d", e.Status)
		if e.Detail != "" {
			fmt.Fprintf(&b, " (%s)", e.Detail)
		}
	} else if e.Detail != "" {
		b.WriteString(e.Detail)
	}
	if e.Err != nil {
		if e.Status != 0 && e.Kind != Bad || e.Detail != "" {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	switch e.Kind {
	case Unreachable:
		b.WriteString("; check service_url, the network and the certificate (ca_file)")
	case Refused:
		if e.Status == 403 {
			b.WriteString("; the user lacks the permission for the internal data service")
		} else {
			b.WriteString("; check username and password of [apim.event_hub]")
		}
	case NotFound:
		b.WriteString("; this API Manager does not serve it, or internal_data_context is wrong")
	case Server:
		b.WriteString("; see the API Manager's log")
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of a failed call, 0 when err comes from elsewhere.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return 0
}

// Errors that say what a release of the API Manager lacks. They are wrapped in an Error with the details.
var (
	// ErrNoArtifacts: the server serves no artifacts of the wanted type at all (3.2, or an unknown type). It is not
	// the same as serving an empty set: nothing may be undeployed for it.
	ErrNoArtifacts = errors.New("this API Manager serves no artifacts that a gateway can read")
	// ErrUnsupported: the server does not know this notification; the caller stops sending it.
	ErrUnsupported = errors.New("this API Manager does not take it")
)
