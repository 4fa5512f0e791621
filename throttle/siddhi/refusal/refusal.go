// Package refusal says why a SiddhiQL text is not deployed: a code, where in the text, and one sentence.
package refusal

import "fmt"

// Code names the class of a refusal; its text is stable and is shown to operators.
type Code string

// The codes (contract traffic-manager.md 5.4). SIDDHI_UNSUPPORTED_CYCLE is ours: a stream that feeds itself.
const (
	Syntax                Code = "SIDDHI_SYNTAX"
	UnsupportedTable      Code = "SIDDHI_UNSUPPORTED_TABLE"
	UnsupportedJoin       Code = "SIDDHI_UNSUPPORTED_JOIN"
	UnsupportedPattern    Code = "SIDDHI_UNSUPPORTED_PATTERN"
	UnsupportedWindow     Code = "SIDDHI_UNSUPPORTED_WINDOW"
	UnsupportedPartition  Code = "SIDDHI_UNSUPPORTED_PARTITION"
	UnsupportedOutputRate Code = "SIDDHI_UNSUPPORTED_OUTPUT_RATE"
	UnsupportedTrigger    Code = "SIDDHI_UNSUPPORTED_TRIGGER"
	UnsupportedScript     Code = "SIDDHI_UNSUPPORTED_SCRIPT"
	UnsupportedCycle      Code = "SIDDHI_UNSUPPORTED_CYCLE"
	UnknownFunction       Code = "SIDDHI_UNKNOWN_FUNCTION"
	UnknownAttribute      Code = "SIDDHI_UNKNOWN_ATTRIBUTE"
	UnknownStream         Code = "SIDDHI_UNKNOWN_STREAM"
	Type                  Code = "SIDDHI_TYPE"
	ResultSchema          Code = "SIDDHI_RESULT_SCHEMA"
	WindowArgument        Code = "SIDDHI_WINDOW_ARG"
	Regex                 Code = "SIDDHI_REGEX"
)

// Error is one refusal. Line and Column count from 1, the column in characters (not bytes); both are 0 when the fault has
// no place in the text, as when a stream is missing altogether.
type Error struct {
	Code         Code
	Line, Column int
	Message      string // lower case, names the construct
}

// Error renders "line:column: message (CODE)".
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s (%s)", e.Message, e.Code)
	}
	return fmt.Sprintf("%d:%d: %s (%s)", e.Line, e.Column, e.Message, e.Code)
}

// Is reports whether the target is a refusal with the same code, for errors.Is(err, &refusal.Error{Code: refusal.Type}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Line == 0 && t.Message == ""
}
