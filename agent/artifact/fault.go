package artifact

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Fault is one thing that is wrong with an API definition.
type Fault struct {
	File         string `json:"file"`            // path, or name inside the project
	Line, Column int    `json:",omitempty"`      // 0 when the fault is of the file as a whole
	Key          string `json:"key,omitempty"`   // "paths./pets.get.x-wso2-throttling-tier"
	Value        string `json:"value,omitempty"` // what stands there; empty for secrets
	Problem      string `json:"problem"`         // what is wrong
	Want         string `json:"want,omitempty"`  // what would be right
}

// Error implements error: "file:line:column: key "value": problem; want".
func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", f.Line, f.Column)
	}
	b.WriteString(": ")
	if f.Key != "" {
		b.WriteString(f.Key)
		if f.Value != "" {
			b.WriteString(" " + strconv.Quote(f.Value))
		}
		b.WriteString(": ")
	}
	b.WriteString(f.Problem)
	if f.Want != "" {
		b.WriteString("; " + f.Want)
	}
	return b.String()
}

// Faults are all faults of one definition, in the order of the files.
type Faults []Fault

// Error implements error: a fault a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, x := range f {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// FaultsOf returns the faults that err holds; an error of another kind is one fault of file.
func FaultsOf(file string, err error) Faults {
	if fs, ok := errors.AsType[Faults](err); ok {
		return fs
	}
	if one, ok := errors.AsType[Fault](err); ok {
		return Faults{one}
	}
	if err == nil {
		return nil
	}
	return Faults{{File: file, Problem: err.Error()}}
}

// report collects the faults and notes of one definition.
type report struct {
	name   string // of the project or file, which notes leave out
	faults Faults
	notes  []string
}

// err returns the faults in order of place, nil when there are none.
func (r *report) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	sort.SliceStable(r.faults, func(i, j int) bool {
		a, b := r.faults[i], r.faults[j]
		if a.File != b.File {
			return a.File < b.File
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Column < b.Column
	})
	return r.faults
}

// maxFaults bounds the faults that are kept of one definition.
const maxFaults = 200

func (r *report) add(f Fault) {
	if slices.Contains(r.faults, f) {
		return // what many operations inherit is reported once
	}
	if len(r.faults) < maxFaults {
		r.faults = append(r.faults, f)
	}
}

func (r *report) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if slices.Contains(r.notes, text) {
		return
	}
	if len(r.notes) < maxFaults {
		r.notes = append(r.notes, text)
	}
}
