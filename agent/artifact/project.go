package artifact

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"gatehouse/proxy/definition"
)

// Options tell what is known of a project from elsewhere. The zero value reads a project as it stands.
type Options struct {
	// Deployments are the environments, and the virtual hosts, that the API is exposed on here. They win over the
	// project's own deployment_environments.yaml.
	Deployments []Deployment
	// Overrides are endpoints that replace the project's, by environment.
	Overrides map[string]Override
	// UUID is the API that the project must be of; a project that names none gets it. Empty: any.
	UUID string
	// RevisionUUID goes into RevisionID of the definition.
	RevisionUUID string
	// Context is the full context with the version, when it is known for certain.
	Context string
	Tenant  string
	// AuthHeader is the credential header of APIs that name none; empty leaves the choice to the proxy.
	AuthHeader string
	// LookupEnv gives the variables that ${NAME} and $env{NAME} stand for in endpoints and their credentials. nil
	// refuses them: whoever publishes an API in the API Manager must not be able to read the gateway's environment.
	// For files on the gateway's own disk pass os.LookupEnv.
	LookupEnv func(name string) (string, bool)
	// Supported are the kinds of credential that the gateway can check; nil means all that there are.
	Supported []definition.Credential
	// Origin is written into the definition. FromPath fills what is empty: kind "file", the path, the time of its last
	// change.
	Origin definition.Origin
}

// Deployment is an environment and the virtual host in it; an empty host means any.
type Deployment struct{ Environment, VHost string }

// Override replaces endpoints in one environment; an empty one is kept.
type Override struct{ Production, Sandbox string }

func (o *Options) supported() []definition.Credential {
	if o.Supported == nil {
		return []definition.Credential{definition.OAuth2, definition.APIKey, definition.Basic, definition.MutualTLS}
	}
	return o.Supported
}

// Bounds of a project, against damaged and hostile archives.
const (
	maxFiles     = 5000
	maxFileBytes = 32 << 20
	maxAllBytes  = 128 << 20
)

// FromZip reads a project of apictl from the bytes of its zip. name stands in faults. The error is Faults.
func FromZip(name string, data []byte, opts Options) (*definition.API, error) {
	files, err := unzip(data, maxFileBytes)
	if err != nil {
		return nil, Faults{{File: name, Problem: err.Error(), Want: "export the project again"}}
	}
	return fromFiles(name, files, opts)
}

// FromBytes reads a lone OpenAPI document. The error is Faults.
func FromBytes(name string, data []byte, opts Options) (*definition.API, error) {
	r := &report{name: name}
	doc, ok := parse(name, data, r)
	if !ok {
		return nil, r.err()
	}
	b := &builder{opts: opts, report: r, name: name, spec: doc.top()}
	if !b.isOpenAPI(doc) {
		return nil, r.err()
	}
	return b.finish()
}

// FromPath reads a project folder, a project's zip or an OpenAPI document. The error is Faults.
func FromPath(file string, opts Options) (*definition.API, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, Faults{{File: file, Problem: reason(err), Want: "name an OpenAPI file, a project folder or its zip"}}
	}
	if opts.Origin.Kind == "" {
		opts.Origin.Kind = "file"
	}
	if opts.Origin.ID == "" {
		opts.Origin.ID = file
	}
	if opts.Origin.At == 0 {
		opts.Origin.At = info.ModTime().UnixMilli()
	}
	if info.IsDir() {
		files, err := readFolder(file)
		if err != nil {
			return nil, Faults{{File: file, Problem: err.Error()}}
		}
		return fromFiles(file, files, opts)
	}
	if !info.Mode().IsRegular() {
		return nil, Faults{{File: file, Problem: "is no regular file", Want: "name an OpenAPI file, a project folder or its zip"}}
	}
	if info.Size() > maxAllBytes {
		return nil, Faults{{File: file, Problem: fmt.Sprintf("is larger than %d bytes", int64(maxAllBytes))}}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, Faults{{File: file, Problem: reason(err)}}
	}
	if bytes.HasPrefix(data, []byte("PK")) {
		return FromZip(file, data, opts)
	}
	return FromBytes(file, data, opts)
}

// Checked is the verdict on one definition.
type Checked struct {
	Path       string   `json:"path"`
	Name       string   `json:"name,omitempty"`
	Version    string   `json:"version,omitempty"`
	Operations int      `json:"operations"`
	Faults     Faults   `json:"faults,omitempty"`
	Notes      []string `json:"notes,omitempty"`
}

// CheckPath reads what stands at a path: one definition, or every one of a folder that is no project itself. The error is
// that of the path; faults of definitions are in the verdicts.
func CheckPath(file string, opts Options) ([]Checked, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %s; name an OpenAPI file, a project folder or its zip", file, reason(err))
	}
	places := []string{file}
	if info.IsDir() && !isProject(file) {
		if places, err = definitions(file); err != nil {
			return nil, err
		}
		if len(places) == 0 {
			return nil, fmt.Errorf("%s: the folder holds no API definition; put OpenAPI files, project folders or zips into it", file)
		}
	}
	out := make([]Checked, 0, len(places))
	for _, p := range places {
		c := Checked{Path: p}
		api, err := FromPath(p, opts)
		if err != nil {
			c.Faults = FaultsOf(p, err)
		} else {
			c.Name, c.Version, c.Operations, c.Notes = api.Name, api.Version, len(api.Operations), api.Notes
		}
		out = append(out, c)
	}
	return out, nil
}

// reason is the cause of a file error without the path, which the fault names already.
func reason(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return err.Error()
}

// isProject tells whether a folder is a project of apictl: whether api.yaml stands in it, or in a single folder in it.
func isProject(dir string) bool {
	for _, name := range []string{"api.yaml", "api.json", "api.yml", "Meta-information/api.yaml", "Meta-information/api.json", "Definitions/swagger.yaml", "Definitions/swagger.json"} {
		if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name))); err == nil {
			return true
		}
	}
	return false
}

// walk is filepath.WalkDir that also enters root when it is a link to a folder.
func walk(root string, f fs.WalkDirFunc) error {
	link, err := os.Lstat(root)
	target, statErr := os.Stat(root)
	if err == nil && statErr == nil && link.Mode()&fs.ModeSymlink != 0 && target.IsDir() {
		through := root + string(filepath.Separator)
		return filepath.WalkDir(through, func(p string, e fs.DirEntry, err error) error {
			if p == through {
				p = root
			}
			return f(p, e, err)
		})
	}
	return filepath.WalkDir(root, f)
}

// definitions lists what a folder of definitions holds: OpenAPI files, zips and project folders, in order. Hidden files
// and folders are passed over; other folders are looked into.
func definitions(dir string) ([]string, error) {
	var out []string
	err := walk(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if p == dir {
				return err
			}
			out = append(out, p) // reading it reports why it cannot be read
			return nil
		}
		if p != dir && strings.HasPrefix(e.Name(), ".") {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.IsDir() {
			if p != dir && isProject(p) {
				out = append(out, p)
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeSymlink != 0 {
			if info, err := os.Stat(p); err == nil && info.IsDir() {
				if isProject(p) {
					out = append(out, p)
				}
				return nil // other folders that are linked to may lead in circles
			}
		}
		switch strings.ToLower(filepath.Ext(p)) {
		case ".yaml", ".yml", ".json", ".zip":
			out = append(out, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the folder of API definitions: %w", err)
	}
	sort.Strings(out)
	return out, nil
}

// wanted are the files of a project that are read, by the end of their path.
var wanted = []string{
	"api.yaml", "api.yml", "api.json", "definitions/swagger.yaml", "definitions/swagger.yml", "definitions/swagger.json",
	"definitions/openapi.yaml", "definitions/openapi.yml", "definitions/openapi.json", "meta-information/swagger.yaml", "meta-information/swagger.json",
	"deployment_environments.yaml", "deployment_environments.yml", "deployment_environments.json",
	"endpoint_certificates.yaml", "endpoint_certificates.yml", "endpoint_certificates.json",
	"client_certificates.yaml", "client_certificates.yml", "client_certificates.json",
}

func isWanted(name string) bool {
	name = "/" + strings.ToLower(name)
	for _, w := range wanted {
		if strings.HasSuffix(name, "/"+w) {
			return true
		}
	}
	if dir, file, ok := cutLast(name); ok && (strings.HasSuffix(dir, "/client-certificates") || strings.HasSuffix(dir, "/meta-information")) {
		switch path.Ext(file) {
		case ".crt", ".pem", ".cer":
			return true
		}
	}
	return false
}

func cutLast(name string) (dir, file string, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name, false
	}
	return name[:i], name[i+1:], true
}

// unzip reads the files of a project that matter.
func unzip(data []byte, most int64) (map[string][]byte, error) {
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, fmt.Errorf("is no readable zip: %w", err)
	}
	if len(z.File) > maxFiles {
		return nil, fmt.Errorf("holds %d files, more than %d", len(z.File), maxFiles)
	}
	files := make(map[string][]byte)
	left := int64(maxAllBytes)
	for _, f := range z.File {
		clean := strings.ReplaceAll(f.Name, `\`, "/")
		if slices.Contains(strings.Split(clean, "/"), "..") || strings.HasPrefix(clean, "/") {
			return nil, fmt.Errorf("holds a file whose name leads outside: %q", short(f.Name))
		}
		if f.FileInfo().IsDir() || !isWanted(clean) {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", clean, err)
		}
		limit := min(left, most)
		text, err := io.ReadAll(io.LimitReader(r, limit+1))
		_ = r.Close() // it was read, or cannot be
		if err != nil {
			return nil, fmt.Errorf("%s: %w", clean, err)
		}
		if int64(len(text)) > limit {
			return nil, fmt.Errorf("%s is larger than %d bytes", clean, limit)
		}
		left -= int64(len(text))
		files[path.Clean(clean)] = text
	}
	return files, nil
}

// readFolder reads the files of a project folder that matter.
func readFolder(dir string) (map[string][]byte, error) {
	files := make(map[string][]byte)
	seen := 0
	err := walk(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %s", p, reason(err))
		}
		if seen++; seen > maxFiles {
			return fmt.Errorf("holds more than %d files", maxFiles)
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if e.IsDir() || !isWanted(rel) {
			return nil
		}
		info, err := os.Stat(p) // a mounted configuration map is made of links
		if err != nil {
			return fmt.Errorf("%s: %s", p, reason(err))
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		if info.Size() > maxFileBytes {
			return fmt.Errorf("%s is larger than %d bytes", p, int64(maxFileBytes))
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return fmt.Errorf("%s: %s", p, reason(err))
		}
		files[rel] = text
		return nil
	})
	return files, err
}

// pick finds the file of a project whose path ends with one of the names; the shortest path wins.
func pick(files map[string][]byte, names ...string) string {
	best := ""
	for f := range files {
		lower := "/" + strings.ToLower(f)
		for _, n := range names {
			if strings.HasSuffix(lower, "/"+n) && (best == "" || len(f) < len(best) || len(f) == len(best) && f < best) {
				best = f
			}
		}
	}
	return best
}

// fromFiles builds the definition of a project.
func fromFiles(name string, files map[string][]byte, opts Options) (*definition.API, error) {
	r := &report{name: name}
	b := &builder{opts: opts, report: r, name: name, files: files}
	where := func(f string) string { return strings.TrimSuffix(name, "/") + "/" + f }
	metaFile := pick(files, "api.yaml", "api.yml", "api.json")
	specFile := pick(files, "definitions/swagger.yaml", "definitions/swagger.yml", "definitions/swagger.json",
		"definitions/openapi.yaml", "definitions/openapi.yml", "definitions/openapi.json", "meta-information/swagger.yaml", "meta-information/swagger.json")
	if metaFile == "" && specFile == "" {
		return nil, Faults{{File: name, Problem: "holds neither api.yaml nor Definitions/swagger.yaml", Want: "name a project that apictl exported"}}
	}
	readable := true
	if metaFile != "" {
		doc, ok := parse(where(metaFile), files[metaFile], r)
		readable = ok
		if ok {
			b.meta = doc.top()
			if t := b.meta.get("type"); t.exists() && b.meta.get("data").isMap() && !strings.EqualFold(t.text(), "api") {
				t.fault("write api", "projects of this type are not supported")
			}
			if data := b.meta.get("data"); data.isMap() {
				b.meta = value{doc: doc, node: data.node, parent: data.parent, key: "data"}
			} else if data.exists() {
				data.fault("write a map", "is no map")
			}
		}
	}
	if specFile != "" {
		doc, ok := parse(where(specFile), files[specFile], r)
		readable = readable && ok
		if ok {
			b.spec = doc.top()
			readable = b.isOpenAPI(doc) && readable
		}
	}
	if f := pick(files, "deployment_environments.yaml", "deployment_environments.yml", "deployment_environments.json"); f != "" && opts.Deployments == nil {
		if doc, ok := parse(where(f), files[f], r); ok {
			for _, it := range doc.top().get("data").items() {
				env := it.get("deploymentEnvironment")
				if !env.exists() {
					it.missing("deploymentEnvironment", "write the name of the environment", "the environment has no name")
					continue
				}
				b.opts.Deployments = append(b.opts.Deployments, Deployment{env.text(), it.get("deploymentVhost").text()})
			}
		}
	}
	if f := pick(files, "endpoint_certificates.yaml", "endpoint_certificates.yml", "endpoint_certificates.json"); f != "" {
		if doc, ok := parse(where(f), files[f], r); ok && len(doc.top().get("data").items()) > 0 {
			doc.top().get("data").note("certificates of endpoints have no effect here; put their authority into ca_file of [upstream.tls]")
		}
	}
	if f := pick(files, "client_certificates.yaml", "client_certificates.yml", "client_certificates.json"); f != "" {
		if doc, ok := parse(where(f), files[f], r); ok {
			b.clients, b.clientFiles = doc.top().get("data"), beside(files, f)
			b.where = where
		}
	}
	if !readable {
		return nil, r.err()
	}
	return b.finish()
}

// isOpenAPI checks the version of the document.
func (b *builder) isOpenAPI(doc *document) bool {
	top := doc.top()
	v := top.get("openapi", "swagger")
	text := v.text()
	switch {
	case !v.exists():
		top.missing("openapi", "write openapi: 3.0.0 or swagger: \"2.0\"", "the document is no OpenAPI definition")
	case v.key == "openapi" && (text == "3" || strings.HasPrefix(text, "3.")):
		return true
	case v.key == "swagger" && (text == "2" || text == "2.0"):
		return true
	default:
		v.fault("write openapi: 3.0.x or 3.1.x, or swagger: \"2.0\"", "this version of OpenAPI is not supported")
	}
	return false
}

func (b *builder) finish() (*definition.API, error) {
	api := b.build()
	if err := b.report.err(); err != nil {
		return nil, err
	}
	api.Origin = b.opts.Origin
	for _, v := range api.Variants {
		v.Origin, v.Operations, v.Notes = api.Origin, api.Operations, api.Notes
	}
	return api, nil
}
