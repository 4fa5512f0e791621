package controlplane

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"sort"
	"strings"
)

// ArtifactQuery says which artifacts are wanted.
type ArtifactQuery struct {
	Tenant string   // as in ListQuery
	Labels []string // gateway labels; none means every label
	// APIUUID narrows to one API. UUIDs asks for a set of APIs (POST /retrieve-api-artifacts); it wins over APIUUID.
	APIUUID string
	UUIDs   []string
	Type    string // empty means "Envoy", the kind that holds whole apictl projects
}

// bounds of the archive, against a damaged or hostile one.
type bounds struct {
	entries    int
	project    int64 // bytes of one project, which is a zip itself
	descriptor int64 // bytes of deployments.json and of env_properties.json
	all        int64 // bytes of all together, unpacked
}

var archiveBounds = bounds{entries: 50_000, project: 64 << 20, descriptor: 64 << 20, all: 512 << 20}

// Artifacts fetches the projects that are deployed to the labels. A server that has none answers an empty slice. One that
// serves no artifacts at all answers ErrNoArtifacts: nothing may be undeployed for it. A fault in one project is its
// Err alone.
func (c *Client) Artifacts(ctx context.Context, q ArtifactQuery) ([]Artifact, error) {
	v := url.Values{}
	if q.Type == "" {
		q.Type = "Envoy"
	}
	v.Set("type", q.Type)
	if len(q.Labels) > 0 {
		v.Set("gatewayLabel", EncodeLabels(q.Labels))
	}
	k := call{op: "fetch artifacts", path: "/runtime-artifacts", query: v, tenant: q.Tenant, accept: "application/zip, application/json"}
	if len(q.UUIDs) > 0 {
		k.op, k.method, k.path = "fetch artifacts of a set of APIs", http.MethodPost, "/retrieve-api-artifacts"
		k.body = map[string][]string{"uuids": q.UUIDs}
	} else {
		set(v, "apiId", q.APIUUID)
	}
	a, err := c.do(ctx, k, c.opt.MaxArtifactBytes)
	if err != nil {
		var e *Error
		if errors.As(err, &e) && (e.Kind == NotFound || e.Kind == Rejected) {
			if strings.Contains(e.Detail, "No Api artifacts found") {
				return nil, nil
			}
			e.Err = ErrNoArtifacts
		}
		return nil, err
	}
	defer a.close()
	if a.StatusCode == http.StatusNoContent {
		return nil, nil
	}
	body, err := io.ReadAll(a.body)
	if err != nil {
		return nil, bodyError(k.op, a, readError{err})
	}
	if !bytes.HasPrefix(body, []byte("PK")) {
		return nil, notAnArchive(k.op, a, body)
	}
	out, err := readArchive(body, archiveBounds)
	if err != nil {
		return nil, bodyError(k.op, a, err)
	}
	return out, nil
}

// EncodeLabels writes labels as /runtime-artifacts wants them: base64 of the labels joined by "|".
func EncodeLabels(labels []string) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Join(labels, "|")))
}

// notAnArchive tells an empty JSON list, which means no artifacts, from anything else.
func notAnArchive(op string, a *answer, body []byte) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return bodyError(op, a, errors.New("the body is empty where a zip is expected"))
	}
	var envelope struct {
		List *[]json.RawMessage `json:"list"`
	}
	if json.Unmarshal(body, &envelope) != nil || envelope.List == nil {
		return bodyError(op, a, fmt.Errorf("neither a zip nor a list: %q", shorten(string(body[:min(len(body), 400)]))))
	}
	if len(*envelope.List) == 0 {
		return nil
	}
	return &Error{
		Op: op, URL: a.url, Status: a.StatusCode, Kind: Bad, Err: ErrNoArtifacts,
		Detail: "the server sends its own gateway's artifacts in place of projects",
	}
}

type deploymentsFile struct {
	Data struct {
		Deployments []struct {
			APIFile      string `json:"apiFile"`
			Environments []struct {
				Name  string `json:"name"`
				VHost string `json:"vhost"`
			} `json:"environments"`
			OrganizationID string `json:"organizationId"`
			APIContext     string `json:"apiContext"`
			Version        string `json:"version"`
		} `json:"deployments"`
	} `json:"data"`
}

type propertiesFile struct {
	APIs map[string]map[string]struct {
		Configs struct {
			ProductionEndpoint string `json:"productionEndpoint"`
			SandboxEndpoint    string `json:"sandboxEndpoint"`
		} `json:"configs"`
	} `json:"apis"`
}

// readArchive reads the zip of /runtime-artifacts.
func readArchive(body []byte, most bounds) ([]Artifact, error) {
	z, err := zip.NewReader(bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return nil, fmt.Errorf("the zip is damaged: %w", err)
	}
	if len(z.File) > most.entries {
		return nil, fmt.Errorf("the zip has %d entries, more than %d", len(z.File), most.entries)
	}
	files := make(map[string]*zip.File, len(z.File))
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		// Whatever folder the server put them in: only the last element of the name counts, so no name reaches outside.
		files[path.Base(strings.ReplaceAll(f.Name, `\`, "/"))] = f
	}
	left := most.all
	var deployments deploymentsFile
	if err := readDescriptor(files, "deployments.json", &deployments, most.descriptor, &left); err != nil {
		return nil, err
	}
	if files["deployments.json"] == nil {
		return nil, errors.New("the zip lacks deployments.json")
	}
	var properties propertiesFile
	if err := readDescriptor(files, "env_properties.json", &properties, most.descriptor, &left); err != nil {
		return nil, err
	}
	out := make([]Artifact, 0, len(deployments.Data.Deployments))
	for _, d := range deployments.Data.Deployments {
		a := Artifact{File: d.APIFile, Organization: d.OrganizationID, APIContext: d.APIContext, Version: d.Version}
		a.APIUUID, a.RevisionUUID = splitName(d.APIFile)
		for _, e := range d.Environments {
			a.Deployments = append(a.Deployments, Deployment{Environment: e.Name, VHost: e.VHost})
		}
		for env, p := range properties.APIs[a.APIUUID] {
			if p.Configs.ProductionEndpoint == "" && p.Configs.SandboxEndpoint == "" {
				continue
			}
			if a.EndpointOverrides == nil {
				a.EndpointOverrides = make(map[string]EndpointOverride)
			}
			a.EndpointOverrides[env] = EndpointOverride{Production: p.Configs.ProductionEndpoint, Sandbox: p.Configs.SandboxEndpoint}
		}
		name := path.Base(strings.ReplaceAll(d.APIFile, `\`, "/"))
		f := files[name]
		if f == nil {
			f = files[name+".zip"]
		}
		switch {
		case d.APIFile == "":
			a.Err = errors.New("deployments.json has an entry without apiFile")
		case f == nil:
			a.Err = fmt.Errorf("deployments.json names %q, which the zip lacks", d.APIFile)
		default:
			a.Project, a.Err = unpack(f, most.project, &left)
		}
		out = append(out, a)
	}
	return out, nil
}

// splitName takes "<apiUUID>-<revisionUUID>.zip" apart; what is not of this form gives two empty texts.
func splitName(file string) (api, revision string) {
	name := strings.TrimSuffix(path.Base(strings.ReplaceAll(file, `\`, "/")), ".zip")
	const uuid = 36
	if len(name) != 2*uuid+1 || name[uuid] != '-' {
		return "", ""
	}
	return name[:uuid], name[uuid+1:]
}

func readDescriptor(files map[string]*zip.File, name string, into any, limit int64, left *int64) error {
	f := files[name]
	if f == nil {
		return nil
	}
	text, err := unpack(f, limit, left)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s in the zip: %w", name, err)
	}
	return nil
}

// unpack reads one entry. The size that the archive claims is not trusted.
func unpack(f *zip.File, limit int64, left *int64) ([]byte, error) {
	limit = min(limit, *left)
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%s in the zip: %w", f.Name, err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s in the zip: %w", f.Name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s in the zip is larger than the %d bytes that are left for it", f.Name, limit)
	}
	*left -= int64(len(b))
	return b, nil
}

// Environments returns the environments of an artifact by their virtual host, hosts in order: the host, not the
// environment, chooses where an API is exposed.
func (a *Artifact) Environments() (hosts []string, byHost map[string][]string) {
	byHost = make(map[string][]string, len(a.Deployments))
	for _, d := range a.Deployments {
		if _, ok := byHost[d.VHost]; !ok {
			hosts = append(hosts, d.VHost)
		}
		byHost[d.VHost] = append(byHost[d.VHost], d.Environment)
	}
	sort.Strings(hosts)
	return hosts, byHost
}
