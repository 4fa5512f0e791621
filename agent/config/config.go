// Package config reads gatehouse.toml: a strict tree of every key with its default, all faults at once with their places,
// secrets that cannot be printed, and reload.
//
// Load reads a file, Parse reads bytes. Either gives a Config that has passed every check, or Faults that hold everything
// that is wrong. A Watcher keeps the configuration of a running gateway in step with its file.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
)

// maxConfig bounds the configuration file.
const maxConfig = 16 << 20

// Load reads and checks the configuration file at path. env looks up environment variables (os.LookupEnv). Relative paths
// in the file start at its folder. The error is Faults, unless the file cannot be read.
func Load(path string, env func(string) (string, bool)) (*Config, *Source, error) {
	data, err := readRegular(path, maxConfig)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("configuration file %s does not exist; name one with -c", path)
		}
		return nil, nil, fmt.Errorf("read configuration file %s: %s", path, reason(err))
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, nil, fmt.Errorf("find the folder of configuration file %s: %w", path, err)
	}
	return Parse(path, data, env, dir)
}

// Parse reads and checks a configuration. name stands for the file in faults; relative paths start at baseDir ("" for the
// working folder). It reads the files that the configuration names, and nothing else. The error is always Faults.
func Parse(name string, data []byte, env func(string) (string, bool), baseDir string) (*Config, *Source, error) {
	if env == nil {
		env = func(string) (string, bool) { return "", false }
	}
	if !filepath.IsAbs(baseDir) {
		if abs, err := filepath.Abs(baseDir); err == nil {
			baseDir = abs
		}
	}
	doc := parseDocument(name, data)
	source := &Source{File: name, Dir: baseDir, places: map[string]Position{}}
	d := &decoder{
		doc: doc, source: source, baseDir: baseDir, bad: map[string]bool{}, later: map[string][]string{},
		expand: &expander{root: doc.root, env: env, baseDir: baseDir, files: map[string]bool{}, followed: map[string]*node{}},
	}
	c := Default()
	d.section(schema(), doc.root, "", reflect.ValueOf(c).Elem())
	delete(source.places, "")
	d.derive(c)
	if len(doc.problem) == 0 {
		d.check(c) // a file that is no TOML is only half read: rules between keys would report what follows from that
	}
	for section, names := range d.later {
		d.note(join(section, names[0]), "not in this release: "+strings.Join(names, ", ")+" of ["+section+"] without effect", true)
	}
	for file := range d.expand.files {
		source.Files = append(source.Files, file)
	}
	slices.Sort(source.Files)
	source.Files = slices.Compact(source.Files)
	sort.SliceStable(source.Notes, func(i, j int) bool {
		if source.Notes[i].Line != source.Notes[j].Line {
			return source.Notes[i].Line < source.Notes[j].Line
		}
		return source.Notes[i].Key < source.Notes[j].Key
	})
	if faults := append(doc.problem, d.faults...); len(faults) > 0 {
		return nil, source, faults.sorted()
	}
	return c, source, nil
}

func absolute(baseDir string, p Path) Path {
	if p == "" || filepath.IsAbs(string(p)) {
		return p
	}
	return Path(filepath.Join(baseDir, strings.TrimPrefix(string(p), "./")))
}
