package config

import (
	"fmt"
	"reflect"
)

// RestartNeeded returns the keys that differ between two configurations and take effect only with a restart, in the
// order of the reference; a list of sections is named as a whole when its length differs. Changed returns all of them.
func RestartNeeded(old, next *Config) []string {
	return changed(old, next, true)
}

// Changed returns every key that differs between two configurations.
func Changed(old, next *Config) []string {
	return changed(old, next, false)
}

func changed(old, next *Config, restartOnly bool) []string {
	var keys []string
	compareSection(schema(), "", reflect.ValueOf(*old), reflect.ValueOf(*next), func(f *field, key string) {
		if !restartOnly || !f.reloads() {
			keys = append(keys, key)
		}
	})
	return keys
}

// reloads is whether a change of the key, or of every key of the section, takes effect without a restart.
func (f *field) reloads() bool {
	if len(f.children) == 0 {
		return f.reload
	}
	for _, c := range f.children {
		if !c.reloads() {
			return false
		}
	}
	return true
}

func compareSection(f *field, path string, a, b reflect.Value, differs func(*field, string)) {
	for _, c := range f.children {
		key := join(path, c.name)
		av, bv := a.Field(c.index), b.Field(c.index)
		switch {
		case c.optional && (av.IsNil() || bv.IsNil()):
			if av.IsNil() != bv.IsNil() {
				differs(c, key)
			}
		case c.optional:
			compareSection(c, key, av.Elem(), bv.Elem(), differs)
		case c.kind == takesSection:
			compareSection(c, key, av, bv, differs)
		case c.kind == takesSections && av.Len() == bv.Len():
			for i := range av.Len() {
				compareSection(c, fmt.Sprintf("%s[%d]", key, i), av.Index(i), bv.Index(i), differs)
			}
		case !reflect.DeepEqual(av.Interface(), bv.Interface()):
			differs(c, key)
		}
	}
}
