package config

import (
	"errors"
	"sort"
	"strconv"
	"strings"
)

// Position is a place in a configuration file. The zero value means that the place is not known.
type Position struct {
	Line   int `json:"line,omitempty"`   // from 1
	Column int `json:"column,omitempty"` // from 1, in bytes
}

// Fault is one thing that is wrong in a configuration file, and what would be right.
type Fault struct {
	File string `json:"file"`
	Position
	// Key is the full path: "apim.event_hub.heartbeat", "apim.jwt.issuer[1].name".
	Key string `json:"key,omitempty"`
	// Value is the value as it is written in the file, quotes included; secrets are masked, tables left out.
	Value string `json:"value,omitempty"`
	// Problem says what is wrong, Fix what would be right.
	Problem string `json:"problem"`
	Fix     string `json:"fix,omitempty"`
}

// Error returns the fault in one line:
//
//	gatehouse.toml:12: apim.event_hub.heartbeat = "3": not a duration; write a number with a unit, such as "3s"
func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(f.Line))
	}
	b.WriteString(": ")
	if f.Key != "" {
		b.WriteString(f.Key)
		if f.Value != "" {
			b.WriteString(" = ")
			b.WriteString(f.Value)
		}
		b.WriteString(": ")
	}
	b.WriteString(f.Problem)
	if f.Fix != "" {
		b.WriteString("; ")
		b.WriteString(f.Fix)
	}
	return b.String()
}

// Faults are all faults of a configuration, in the order of the file. It is what Load and Parse return as their error
// when the file could be read.
type Faults []Fault

// Error returns one line for each fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// AsFaults returns the faults that err holds, or err itself as one fault of the named file. A nil err gives none.
func AsFaults(file string, err error) Faults {
	if err == nil {
		return nil
	}
	if fs, ok := errors.AsType[Faults](err); ok {
		return fs
	}
	return Faults{{File: file, Problem: err.Error()}}
}

func (fs Faults) sorted() Faults {
	sort.SliceStable(fs, func(i, j int) bool {
		if fs[i].Line != fs[j].Line {
			return fs[i].Line < fs[j].Line
		}
		return fs[i].Column < fs[j].Column
	})
	return fs
}

// Note is something that an operator should know of a configuration that is not wrong: a key without effect, a check
// that is turned off.
type Note struct {
	File string `json:"file"`
	Position
	Key  string `json:"key,omitempty"`
	Text string `json:"text"`
	// Warning marks what makes the gateway less safe than its defaults; log it at that level.
	Warning bool `json:"warning,omitempty"`
}

// String returns the note in one line: "gatehouse.toml:30: apim.throttling.publisher.max_idle: without effect: …".
func (n Note) String() string {
	return Fault{File: n.File, Position: n.Position, Key: n.Key, Problem: n.Text}.Error()
}
