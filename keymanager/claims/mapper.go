package claims

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"gatehouse/keymanager"
)

// Limits of what a mapping may say. A key manager of the API Manager has a handful of short ones.
const (
	maxMappings = 1000
	maxName     = 1024 // bytes of a name or a function
)

// Mapper renames claims and changes their values, as the mappings of one key manager say. It is made once, when the key
// manager arrives, and may be used by any number of goroutines. A nil Mapper changes nothing.
type Mapper struct {
	targets []target
}

// target is a local name with its sources; the first that finds a value fills it.
type target struct {
	local   string
	sources []source
}

type source struct {
	remote pointer
	change function // nil: the value as it is
	moves  bool     // the remote name goes
}

// Fault is one mapping that cannot be used.
type Fault struct {
	Index int // of the mapping in the list
	// Member is what of the mapping is wrong: "remote_claim", "local_claim" or "function"; Value is what it holds.
	Member, Value string
	Problem       string
	Fix           string // what would be right
}

func (f Fault) Error() string {
	return fmt.Sprintf("claim mapping %d: %s %q: %s; %s", f.Index, f.Member, f.Value, f.Problem, f.Fix)
}

// Faults are all mappings of a list that cannot be used.
type Faults []Fault

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "; ")
}

// AsFaults returns the faults that an error of Compile holds.
func AsFaults(err error) Faults {
	fs, _ := errors.AsType[Faults](err)
	return fs
}

// Compile prepares the mappings of a key manager. The Mapper is always usable: what is wrong with a mapping is in the error,
// which is of type Faults, and the mapping is passed over.
func Compile(mappings []keymanager.ClaimMapping) (*Mapper, error) {
	var faults Faults
	m := &Mapper{}
	at := make(map[string]int, len(mappings))
	for i, mapping := range mappings {
		if i >= maxMappings {
			faults = append(faults, Fault{
				i, "remote_claim", mapping.Remote,
				fmt.Sprintf("the mappings from here on are too many: %d", len(mappings)), fmt.Sprintf("write at most %d", maxMappings),
			})
			break
		}
		change, fault := checked(mapping)
		if fault != nil {
			fault.Index = i
			faults = append(faults, *fault)
			continue
		}
		s := source{parsePointer(mapping.Remote), change, !fixed[mapping.Remote] && mapping.Remote != mapping.Local}
		if k, known := at[mapping.Local]; known {
			m.targets[k].sources = append(m.targets[k].sources, s)
		} else {
			at[mapping.Local] = len(m.targets)
			m.targets = append(m.targets, target{mapping.Local, []source{s}})
		}
	}
	if len(m.targets) == 0 {
		m = nil
	}
	if len(faults) > 0 {
		return m, faults
	}
	return m, nil
}

// Map returns the claims under their local names. A remote name that begins with a slash and is no claim's own name is a JSON
// pointer into the claims. The value moves, except that registered claims and members of objects are copied. Of several
// mappings to one local name the first that finds a value wins; a mapping wins over a claim that has the local name already.
// The registered claims iss, sub, aud, exp, nbf, iat and jti are never moved and never written over.
//
// The input is not changed, and returned itself when it holds nothing to map. Values that no function changed are shared
// with it.
func (m *Mapper) Map(in map[string]any) map[string]any {
	if m == nil || in == nil {
		return in
	}
	var out map[string]any
	var room [16]filled
	found := room[:0]
	for i := range m.targets {
		won := false
		for k := range m.targets[i].sources {
			s := &m.targets[i].sources[k]
			v, own := in[s.remote.name]
			if own && s.moves {
				if out == nil {
					out = maps.Clone(in)
				}
				delete(out, s.remote.name)
			}
			if won {
				continue
			}
			if won = own; !own {
				v, won = s.remote.follow(in)
			}
			if won {
				if s.change != nil {
					v = s.change(v)
				}
				found = append(found, filled{i, v})
			}
		}
	}
	// What was moved away is written after everything is read, so that names can be swapped.
	for _, f := range found {
		if out == nil {
			out = maps.Clone(in)
		}
		out[m.targets[f.target].local] = f.value
	}
	if out == nil {
		return in
	}
	return out
}

// filled is a target with the value that was found for it.
type filled struct {
	target int
	value  any
}

// pointer is a name that has been taken apart.
type pointer struct {
	name  string
	steps []string // of a JSON pointer
}

func parsePointer(name string) pointer {
	p := pointer{name: name}
	if !strings.HasPrefix(name, "/") {
		return p
	}
	p.steps = strings.Split(name[1:], "/")
	for i, step := range p.steps {
		p.steps[i] = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
	}
	return p
}

// follow returns what the name leads to as a pointer.
func (p *pointer) follow(in map[string]any) (any, bool) {
	if len(p.steps) == 0 {
		return nil, false
	}
	var v any = in
	for _, step := range p.steps {
		next, ok := member(v, step)
		if !ok {
			return nil, false
		}
		v = next
	}
	return v, true
}

// member is one step of a JSON pointer (RFC 6901).
func member(v any, step string) (any, bool) {
	switch at := v.(type) {
	case map[string]any:
		next, ok := at[step]
		return next, ok
	case []any:
		i, err := strconv.ParseUint(step, 10, 31)
		if err != nil || int(i) >= len(at) || len(step) > 1 && step[0] == '0' {
			return nil, false
		}
		return at[i], true
	}
	return nil, false
}
