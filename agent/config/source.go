package config

import (
	"strconv"
	"strings"

	"github.com/rs/zerolog"
)

// Source is where a configuration came from: the place of every key, what was read beside the file, and what an operator
// should be told. It is not changed after Load and may be read by any number of goroutines.
type Source struct {
	// File is the path as it was given to Load, or the name given to Parse.
	File string
	// Dir is the folder against which relative paths were resolved.
	Dir string
	// Notes are keys without effect and checks that are turned off, in the order of the file. Log them at start.
	Notes []Note
	// Files are the files that were read beside the configuration itself: $file{…}, certificates, keys. Sorted, absolute.
	Files []string

	places map[string]Position
}

// Written is whether the key stands in the file, as "apim.event_hub.heartbeat" or "apim.jwt.issuer[0].name".
func (s *Source) Written(key string) bool {
	_, ok := s.places[key]
	return ok
}

// Position returns the place of a key; of its list or section when it is not written itself; the zero value when that
// does not stand either.
func (s *Source) Position(key string) Position {
	for key != "" {
		if pos, ok := s.places[key]; ok {
			return pos
		}
		if i := strings.LastIndexByte(key, '['); i >= 0 && strings.HasSuffix(key, "]") {
			key = key[:i]
			continue
		}
		key = key[:max(strings.LastIndexByte(key, '.'), 0)]
	}
	return Position{}
}

// Fault words a fault of a key that shows only when the configuration is put to use, such as a broker URL that does not
// parse, with the place of the key. The value is not shown: the caller's error has what matters of it, without secrets.
func (s *Source) Fault(key string, err error) Fault {
	return Fault{File: s.File, Position: s.Position(key), Key: key, Problem: err.Error()}
}

// cutIndex takes "issuer[2]" apart.
func cutIndex(name string) (string, int, bool) {
	base, rest, found := strings.Cut(name, "[")
	if !found {
		return name, 0, false
	}
	index, err := strconv.Atoi(strings.TrimSuffix(rest, "]"))
	return base, index, err == nil && index >= 0
}

// Log writes the notes to a logger: warnings at that level, the others at info.
func (s *Source) Log(logger zerolog.Logger) {
	for _, n := range s.Notes {
		level := zerolog.InfoLevel
		if n.Warning {
			level = zerolog.WarnLevel
		}
		logger.WithLevel(level).Str("file", n.File).Int("line", n.Line).Str("key", n.Key).Msg(n.Text)
	}
}
