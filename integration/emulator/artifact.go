package emulator

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Project makes the apictl project of an API (contract rest.md 6.3): api.yaml and an OpenAPI definition.
func (a API) project() ([]byte, error) {
	if a.Project != nil {
		return a.Project, nil
	}
	root := a.Name + "-" + a.Version + "/"
	schemes := a.SecurityScheme
	if schemes == nil {
		schemes = []string{"oauth2", "oauth_basic_auth_api_key_mandatory"}
	}
	operations := []map[string]any{}
	paths := map[string]map[string]any{}
	scopes := map[string]string{}
	for _, u := range a.URLMappings {
		operations = append(operations, map[string]any{
			"target": u.URLPattern, "verb": u.HTTPMethod, "authType": u.AuthScheme, "throttlingPolicy": u.ThrottlingPolicy, "scopes": u.Scopes,
			"operationPolicies": map[string]any{"request": []any{}, "response": []any{}, "fault": []any{}},
		})
		op := map[string]any{
			"responses": map[string]any{"200": map[string]any{"description": "OK"}}, "x-auth-type": u.AuthScheme, "x-throttling-tier": u.ThrottlingPolicy,
			"security": []map[string][]string{{"default": append([]string{}, u.Scopes...)}},
		}
		var parameters []map[string]any
		for segment := range strings.SplitSeq(u.URLPattern, "/") {
			if name, ok := strings.CutPrefix(segment, "{"); ok {
				parameters = append(parameters, map[string]any{
					"name": strings.TrimSuffix(name, "}"), "in": "path", "required": true, "schema": map[string]any{"type": "string"},
				})
			}
		}
		if parameters != nil {
			op["parameters"] = parameters
		}
		for _, s := range u.Scopes {
			scopes[s] = ""
		}
		if paths[u.URLPattern] == nil {
			paths[u.URLPattern] = map[string]any{}
		}
		paths[u.URLPattern][strings.ToLower(u.HTTPMethod)] = op
	}
	endpoints := map[string]any{"endpoint_type": "http"}
	if a.Endpoint != "" {
		endpoints["production_endpoints"] = map[string]any{"url": a.Endpoint}
	}
	if a.SandboxEndpoint != "" {
		endpoints["sandbox_endpoints"] = map[string]any{"url": a.SandboxEndpoint}
	}
	policy := any(nil)
	if a.Policy != nil {
		policy = *a.Policy
	}
	context := strings.TrimSuffix(a.Context, "/"+a.Version)
	meta := map[string]any{
		"type": "api", "version": "v4.3.0",
		"data": map[string]any{
			"id": a.UUID, "name": a.Name, "context": context, "version": a.Version, "provider": a.Provider, "revisionId": a.RevisionID,
			"isRevision": true, "type": a.APIType, "lifeCycleStatus": a.Status, "isDefaultVersion": a.IsDefaultVersion, "apiThrottlingPolicy": policy,
			"authorizationHeader": "Authorization", "securityScheme": schemes, "organizationId": a.Organization, "transport": []string{"http", "https"},
			"endpointImplementationType": "ENDPOINT", "endpointConfig": endpoints, "operations": operations,
		},
	}
	definition := map[string]any{
		"openapi": "3.0.1", "info": map[string]any{"title": a.Name, "version": a.Version}, "paths": paths,
		"servers":  []map[string]any{{"url": "/"}},
		"security": []map[string][]string{{"default": {}}},
		"components": map[string]any{"securitySchemes": map[string]any{"default": map[string]any{
			"type": "oauth2", "flows": map[string]any{"implicit": map[string]any{"authorizationUrl": "https://test.com", "scopes": scopes}},
		}}},
		"x-wso2-basePath": a.Context, "x-wso2-auth-header": "Authorization",
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, f := range []struct {
		name string
		body any
	}{{"api.yaml", meta}, {"Definitions/swagger.yaml", definition}} {
		b, err := yaml.Marshal(f.body)
		if err != nil {
			return nil, fmt.Errorf("project of API %s: %s: %w", a.Name, f.name, err)
		}
		w, err := z.Create(root + f.name)
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			return nil, fmt.Errorf("project of API %s: %s: %w", a.Name, f.name, err)
		}
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("project of API %s: %w", a.Name, err)
	}
	return out.Bytes(), nil
}

type deployments struct {
	Type    string `json:"type"`
	Version string `json:"version"`
	Data    struct {
		Deployments []deployment `json:"deployments"`
	} `json:"data"`
}

type deployment struct {
	APIFile        string        `json:"apiFile"`
	Environments   []environment `json:"environments"`
	OrganizationID string        `json:"organizationId"`
	APIContext     string        `json:"apiContext"`
	Version        string        `json:"version"`
}

type environment struct {
	Name              string `json:"name"`
	VHost             string `json:"vhost"`
	Type              string `json:"type"`
	DeployedTimeStamp int64  `json:"deployedTimeStamp"`
}

// artifacts lists the deployed revisions on the labels; without labels on all.
func (e *Emulator) artifacts(pick func(API) bool, labels []string, suffix string) ([]API, deployments) {
	d := deployments{Type: "deployments", Version: "v4.3.0"}
	d.Data.Deployments = []deployment{}
	var apis []API
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range sorted(e.m.apis, func(x, y API) int { return int(x.APIID - y.APIID) }) {
		if !pick(a) {
			continue
		}
		var envs []environment
		for _, label := range a.Environments {
			if labels == nil || slices.Contains(labels, label) {
				vhost := or(e.m.vhosts[named{a.Organization, label}], e.vhost)
				envs = append(envs, environment{label, vhost, "hybrid", a.deployedAt})
			}
		}
		if envs == nil {
			continue
		}
		apis = append(apis, a)
		d.Data.Deployments = append(d.Data.Deployments, deployment{a.UUID + "-" + a.RevisionUUID + suffix, envs, a.Organization, a.Context, a.Version})
	}
	return apis, d
}

// serveArtifacts answers /runtime-artifacts and /retrieve-api-artifacts.
func (e *Emulator) serveArtifacts(w http.ResponseWriter, r *http.Request, tenant string, pick func(API) bool) {
	q := r.URL.Query()
	labels, err := base64Labels(q.Get("gatewayLabel"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	inTenant := func(a API) bool { return visible(tenant, a.Organization) && pick(a) }
	switch q.Get("type") {
	case "Envoy":
	case "Synapse":
		apis, _ := e.artifacts(inTenant, labels, ".zip")
		list := []string{}
		for _, a := range apis {
			b, _ := json.Marshal(map[string]string{ // strings always marshal
				"name": a.Name, "version": a.Version, "provider": a.Provider, "apiId": a.UUID, "gatewayLabel": strings.Join(a.Environments, "|"), "tenantDomain": a.Organization,
			})
			list = append(list, string(b))
		}
		writeJSON(w, http.StatusOK, map[string]any{"count": len(list), "list": list, "pagination": nil})
		return
	default:
		writeError(w, http.StatusBadRequest, fmt.Sprintf("runtime type %q is not known: the valid ones are Envoy and Synapse", q.Get("type")))
		return
	}
	apis, d := e.artifacts(inTenant, labels, ".zip")
	if len(apis) == 0 {
		noArtifacts(w)
		return
	}
	overrides := map[string]any{}
	for _, a := range apis {
		if byLabel := e.endpointOverrides(a.UUID); byLabel != nil {
			overrides[a.UUID] = byLabel
		}
	}
	w.Header().Set("Content-Type", "application/zip")
	w.Header().Set("Content-Disposition", "attachment; filename=apis.zip")
	z := zip.NewWriter(w)
	write := func(name string, body io.Reader) error {
		f, err := z.Create(name)
		if err == nil {
			_, err = io.Copy(f, body)
		}
		return err
	}
	asJSON := func(v any) io.Reader {
		b, _ := json.Marshal(v) // structs of texts and numbers always marshal
		return bytes.NewReader(b)
	}
	err = write("deployments.json", asJSON(d))
	if err == nil {
		err = write("env_properties.json", asJSON(map[string]any{"type": "env_properties", "version": "v4.3.0", "apis": overrides}))
	}
	for i, a := range apis {
		if err != nil {
			break
		}
		if e.missing(a.UUID) { // a descriptor that names a file the zip lacks
			continue
		}
		var project []byte
		if project, err = a.project(); err == nil {
			err = write(d.Data.Deployments[i].APIFile, bytes.NewReader(project))
		}
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		e.report(fmt.Errorf("send artifacts: %w", err))
		panic(http.ErrAbortHandler)
	}
}

func noArtifacts(w http.ResponseWriter) {
	writeJSON(w, http.StatusNotFound, errorBody{Code: 900110, Message: "No Api artifacts found", Description: "No Api artifacts found", Error: []any{}})
}
