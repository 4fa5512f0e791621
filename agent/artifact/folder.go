package artifact

import (
	"context"
	"crypto/sha1" //nolint:gosec // version 5 of RFC 9562 is made of it
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"

	"gatehouse/proxy/definition"
)

// FolderOptions configure a Folder.
type FolderOptions struct {
	Dir string
	// Read is how each definition is read. Its Deployments, Overrides, UUID and Context are of single projects and stay
	// empty here.
	Read Options
	// Labels are the environments that this gateway serves. A definition that names environments, none of which is among
	// them, is passed over. Empty: every definition is served.
	Labels []string
	Logger zerolog.Logger
	// Debounce is how long the folder must be quiet before it is read again; 0 means 250 ms. Rescan is the time between
	// readings that no notice from the file system asked for; 0 means 30 s.
	Debounce, Rescan time.Duration
}

// Result is what a folder holds. Its definitions are good ones.
type Result struct {
	APIs []*definition.API
	// Faults are of all definitions that cannot be read, in the order of their paths.
	Faults Faults
	// Kept are the paths of faulty definitions whose previous version is still among APIs.
	Kept []string
	// Skipped are the paths of definitions that are deployed to other environments.
	Skipped []string
	// Err is set when the folder itself cannot be read; APIs are the previous ones then.
	Err error
}

// Folder is a folder of API definitions: OpenAPI files, zips and project folders of apictl, at any depth. A definition
// with a fault keeps its previous good version and never stops another. It is safe for concurrent use.
type Folder struct {
	opt FolderOptions

	mu      sync.Mutex
	known   map[string]known // by path
	served  map[string]bool  // paths whose definitions are among last.APIs
	last    Result
	scanned bool
}

// known is what was made of one path.
type known struct {
	stamp  stamp
	api    *definition.API
	faults Faults
}

// stamp tells one state of a definition from another.
type stamp struct {
	meta    string // names, sizes and times of the files
	content string // hash of what is read of them
	// fresh: a file was so new that it could change again without its time showing it. The content decides then.
	fresh bool
}

// NewFolder returns a folder that was not read yet.
func NewFolder(opt FolderOptions) *Folder {
	if opt.Debounce <= 0 {
		opt.Debounce = 250 * time.Millisecond
	}
	if opt.Rescan <= 0 {
		opt.Rescan = 30 * time.Second
	}
	return &Folder{opt: opt, known: make(map[string]known)}
}

// Scan reads the folder. What did not change since the last time is not read again.
func (f *Folder) Scan() Result {
	r, _ := f.scan()
	return r
}

// scan also tells whether the result differs from the last one.
func (f *Folder) scan() (Result, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	paths, err := definitions(f.opt.Dir)
	if err != nil {
		changed := !f.scanned || f.last.Err == nil || f.last.Err.Error() != err.Error()
		f.last.Err, f.scanned = err, true
		return f.last, changed
	}
	changed := !f.scanned || f.last.Err != nil || len(paths) != len(f.known)
	now := make(map[string]known, len(paths))
	var r Result
	for _, p := range paths {
		k, seen := f.known[p]
		state, same := k.stamp.next(p)
		if seen && same {
			k.stamp = state
		} else {
			changed = true
			api, err := FromPath(p, f.opt.Read)
			next := known{stamp: state, api: api}
			if err != nil {
				next.faults = FaultsOf(p, err)
				next.api = k.api
			} else if api.UUID == "" {
				api.UUID = derivedUUID(api)
			}
			k = next
		}
		now[p] = k
	}
	// Of two definitions that would answer the same requests the one that was served before stays, else the first.
	owner := make(map[string]string)
	claim := func(p string, keys []string) (other string) {
		for _, key := range keys {
			if o, taken := owner[key]; taken && o != p {
				return o
			}
		}
		for _, key := range keys {
			owner[key] = p
		}
		return ""
	}
	for _, before := range []bool{true, false} {
		for _, p := range paths {
			if k := now[p]; k.api != nil && f.served[p] == before && f.serves(k.api) {
				claim(p, claims(k.api))
			}
		}
	}
	served := make(map[string]bool, len(paths))
	for _, p := range paths {
		k := now[p]
		r.Faults = append(r.Faults, k.faults...)
		switch {
		case k.api == nil:
		case !f.serves(k.api):
			r.Skipped = append(r.Skipped, p)
		default:
			if other := claim(p, claims(k.api)); other != "" {
				r.Faults = append(r.Faults, Fault{
					File: p, Key: "context", Value: k.api.Context,
					Problem: "answers the same requests as " + other, Want: "give it another context or version, or remove one",
				})
				continue
			}
			r.APIs = append(r.APIs, k.api)
			served[p] = true
			if len(k.faults) > 0 {
				r.Kept = append(r.Kept, p)
			}
		}
	}
	f.known, f.served, f.last, f.scanned = now, served, r, true
	return r, changed
}

// serves tells whether a definition is deployed here.
func (f *Folder) serves(a *definition.API) bool {
	return len(f.opt.Labels) == 0 || len(a.Environments) == 0 ||
		slices.ContainsFunc(a.Environments, func(e string) bool { return slices.Contains(f.opt.Labels, e) })
}

// claims are what no two definitions may share: the identifier, and the context on each host.
func claims(a *definition.API) []string {
	hosts := hostsOr(a.Hosts, "*")
	keys := make([]string, 0, len(hosts)+1)
	for _, h := range hosts {
		keys = append(keys, strings.ToLower(h)+" "+a.Context)
	}
	return append(keys, "uuid "+strings.ToLower(a.UUID))
}

// derivedUUID gives a definition without an identifier one that stays the same over restarts: of its tenant, context and
// version (version 5 of RFC 9562).
func derivedUUID(a *definition.API) string {
	sum := sha1.Sum([]byte("gatehouse:" + a.Tenant + ":" + a.Context + ":" + a.Version)) //nolint:gosec // an identifier, no secret
	u := sum[:16]
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// freshFor is longer than the steps in which any file system counts time.
const freshFor = 2 * time.Second

// next returns the state of a definition now, and whether it is the state that s was taken of.
func (s stamp) next(p string) (now stamp, same bool) {
	var newest time.Time
	meta := sha256.New()
	var files []string
	_ = walk(p, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(meta, "%s %v\n", name, err)
			return nil
		}
		if e.IsDir() || name != p && !isWanted(filepath.ToSlash(strings.TrimPrefix(name, p))) {
			return nil
		}
		info, err := os.Stat(name)
		if err != nil {
			fmt.Fprintf(meta, "%s %v\n", name, err)
			return nil
		}
		fmt.Fprintf(meta, "%s %v %d %d\n", name, info.Mode(), info.Size(), info.ModTime().UnixNano())
		if info.ModTime().After(newest) {
			newest = info.ModTime()
		}
		if info.Mode().IsRegular() && info.Size() <= maxAllBytes {
			files = append(files, name)
		}
		return nil
	})
	now = stamp{meta: hex.EncodeToString(meta.Sum(nil)), fresh: time.Since(newest) < freshFor}
	if now.meta == s.meta && !s.fresh {
		now.content = s.content
		return now, true
	}
	content := sha256.New()
	for _, name := range files {
		text, err := os.ReadFile(name)
		fmt.Fprintf(content, "%s %d %v\n", name, len(text), err)
		content.Write(text)
	}
	now.content = hex.EncodeToString(content.Sum(nil))
	return now, now.content == s.content
}

// Watch reads the folder whenever it changes, and slowly in between, and calls onChange with each result that differs from
// the last one that Scan or Watch saw; before the first Scan, with the first result. It returns when ctx ends. Where the
// file system gives no notices, the slow reading alone finds changes.
func (f *Folder) Watch(ctx context.Context, onChange func(Result)) {
	log := f.opt.Logger.With().Str("folder", f.opt.Dir).Logger()
	var events chan fsnotify.Event
	var errs chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn().Err(err).Dur("rescan", f.opt.Rescan).Msg("no notices of changed API definitions: the folder is read at intervals")
	} else {
		defer func() { _ = watcher.Close() }()
		events, errs = watcher.Events, watcher.Errors
	}
	refused := false
	look := func() {
		if watcher != nil {
			// Before reading, so that what changes meanwhile gives a notice. Adding a folder twice is harmless.
			if err := watchAll(watcher, f.opt.Dir); err != nil && !refused {
				refused = true
				log.Warn().Err(err).Dur("rescan", f.opt.Rescan).Msg("some folders of API definitions give no notices: they are read at intervals")
			}
		}
		if r, changed := f.scan(); changed {
			onChange(r)
		}
	}
	look()
	slow := time.NewTicker(f.opt.Rescan)
	defer slow.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	var first time.Time // of the notices that wait
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if e.Op == fsnotify.Chmod {
				continue
			}
			if first.IsZero() {
				first = time.Now()
			}
			// A folder that never gets quiet is read all the same.
			quiet.Reset(min(f.opt.Debounce, max(0, 8*f.opt.Debounce-time.Since(first))))
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			log.Warn().Err(err).Msg("notices of changed API definitions were lost: the folder is read now")
			quiet.Reset(0)
		case <-quiet.C:
			first = time.Time{}
			look()
		case <-slow.C:
			look()
		}
	}
}

// watchAll asks for notices of a folder and all in it.
func watchAll(w *fsnotify.Watcher, dir string) error {
	var first error
	_ = walk(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil //nolint:nilerr // the next look tells of what cannot be read
		}
		if err := w.Add(p); err != nil && first == nil {
			first = fmt.Errorf("watch %s: %w", p, err)
		}
		return nil
	})
	return first
}
