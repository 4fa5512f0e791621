package artifact

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatehouse/proxy/definition"
)

// read reads a document that is put together from the head of a good one and the given rest.
func read(t *testing.T, opts Options, rest string) *definition.API {
	t.Helper()
	api, err := FromBytes("test.yaml", []byte("openapi: 3.1.0\ninfo: {title: T, version: \"1\"}\nx-wso2-basePath: /t/1\n"+rest), opts)
	if err != nil {
		t.Fatal(err)
	}
	return api
}

const endpoint = "x-wso2-production-endpoints: {urls: [https://b.example.test]}\n"

func TestSecurityOfAnOperation(t *testing.T) {
	const schemes = `components:
  securitySchemes:
    oauth: {type: oauth2, flows: {}}
    oidc: {type: openIdConnect}
    bearer: {type: http, scheme: bearer}
    basic: {type: http, scheme: Basic}
    key: {type: apiKey, in: header, name: K}
    other: {type: apiKey, in: query, name: q}
    cookie: {type: apiKey, in: cookie, name: c}
    digest: {type: http, scheme: digest}
    tls: {type: mutualTLS}
    alias: {$ref: "#/components/securitySchemes/oauth"}
`
	type C = definition.Credential
	for _, tc := range []struct {
		name     string
		api      string // keys of the API
		op       string // keys of the operation, as a flow map
		want     definition.Operation
		optional bool
	}{
		{"nothing said", "", "", definition.Operation{}, false},
		{"scopes of the API", "security: [{oauth: [a, b]}]\n", "", definition.Operation{Scopes: []string{"a", "b"}}, false},
		{"scopes of the operation win", "security: [{oauth: [a]}]\n", "security: [{oauth: [c]}]", definition.Operation{Scopes: []string{"c"}}, false},
		{
			"alternatives of access tokens add up", "", "security: [{oauth: [a]}, {oidc: [b]}, {bearer: []}, {alias: [a]}]",
			definition.Operation{Scopes: []string{"a", "b"}},
			false,
		},
		{"the scheme default need not be defined", "", "security: [{default: [a]}]", definition.Operation{Scopes: []string{"a"}}, false},
		{"scopes by x-scope", "", `x-scope: "a, b"`, definition.Operation{Scopes: []string{"a", "b"}}, false},
		{"x-scopes behind security", "", "security: [{oauth: [a]}], x-scopes: [b]", definition.Operation{Scopes: []string{"a"}}, false},
		{"key or token", "", "security: [{key: []}, {oauth: [a]}]", definition.Operation{Scopes: []string{"a"}, Security: [][]C{{"api_key"}, {"oauth2"}}, APIKeyHeaders: []string{"K"}}, false},
		{"key alone", "", "security: [{key: []}]", definition.Operation{Security: [][]C{{"api_key"}}, APIKeyHeaders: []string{"K"}}, false},
		{
			"key in either place", "", "security: [{key: []}, {other: []}]",
			definition.Operation{Security: [][]C{{"api_key"}}, APIKeyHeaders: []string{"K"}, APIKeyQueries: []string{"q"}},
			false,
		},
		{
			"key and token together", "", "security: [{key: [], oauth: [a]}]",
			definition.Operation{Scopes: []string{"a"}, Security: [][]C{{"api_key", "oauth2"}}, APIKeyHeaders: []string{"K"}},
			false,
		},
		{
			"two keys together cannot be checked", "", "security: [{key: [], other: []}]",
			definition.Operation{
				Security: [][]C{{"api_key", "several API keys at once"}}, APIKeyHeaders: []string{"K"}, APIKeyQueries: []string{"q"},
				Unavailable: "it asks for api_key with several API keys at once, which is not checked here",
			},
			false,
		},
		{
			"a key in a cookie cannot be checked", "", "security: [{cookie: []}]",
			definition.Operation{Security: [][]C{{"api_key in a cookie"}}, Unavailable: "it asks for api_key in a cookie, which is not checked here"},
			false,
		},
		{
			"digest cannot be checked", "", "security: [{digest: []}]",
			definition.Operation{Security: [][]C{{"http digest"}}, Unavailable: "it asks for http digest, which is not checked here"},
			false,
		},
		{"digest or a token", "", "security: [{digest: []}, {oauth: []}]", definition.Operation{Security: [][]C{{"http digest"}, {"oauth2"}}}, false},
		{
			"certificate with a user, or a token", "", "security: [{tls: [], basic: []}, {oauth: [a]}]",
			definition.Operation{Scopes: []string{"a"}, Security: [][]C{{"basic_auth", "mutualssl"}, {"oauth2"}}},
			false,
		},
		{
			"keys by the extension alone", "x-wso2-application-security: {security-types: [api_key]}\n", "",
			definition.Operation{Security: [][]C{{"api_key"}}, APIKeyHeaders: []string{"K"}, APIKeyQueries: []string{"q"}},
			false,
		},
		{
			"keys by the extension, in the place of the requirement", "x-wso2-application-security: {security-types: [api_key]}\n", "security: [{key: []}]",
			definition.Operation{Security: [][]C{{"api_key"}}, APIKeyHeaders: []string{"K"}},
			false,
		},
		{
			"mandatory mutual TLS on top of the requirement", "x-wso2-mutual-ssl: mandatory\n", "security: [{key: []}, {oauth: [a]}]",
			definition.Operation{Scopes: []string{"a"}, Security: [][]C{{"mutualssl", "api_key"}, {"mutualssl", "oauth2"}}, APIKeyHeaders: []string{"K"}},
			false,
		},
		{"mandatory mutual TLS of one operation", "", "x-wso2-mutual-ssl: mandatory", definition.Operation{Security: [][]C{{"mutualssl", "oauth2"}}}, false},
		{"an empty requirement opens nothing", "", "security: [{}]", definition.Operation{}, false},
		{"no requirement opens nothing", "security: [{oauth: [a]}]\n", "security: []", definition.Operation{}, false},
		{"None opens", "security: [{oauth: [a]}]\n", "x-auth-type: None", definition.Operation{Unsecured: true}, false},
		{"disable-security opens", "", "x-wso2-disable-security: true", definition.Operation{Unsecured: true}, false},
		{"disable-security stands above the authentication type", "", "x-auth-type: None, x-wso2-disable-security: false", definition.Operation{}, false},
		{"disable-security of the API", "x-wso2-disable-security: true\n", "x-auth-type: Any", definition.Operation{Unsecured: true}, false},
		{"the operation closes what the API opens", "x-wso2-disable-security: true\n", "x-wso2-disable-security: false", definition.Operation{}, false},
		{"application security", "x-wso2-application-security: {security-types: [oauth2, basic_auth]}\n", "", definition.Operation{Security: [][]C{{"oauth2"}, {"basic_auth"}}}, false},
		{"optional application security", "x-wso2-application-security: {security-types: [oauth2], optional: true}\n", "", definition.Operation{}, true},
		{
			"mandatory mutual TLS on top", "x-wso2-application-security: {security-types: [oauth2]}\nx-wso2-mutual-ssl: mandatory\n", "",
			definition.Operation{Security: [][]C{{"mutualssl", "oauth2"}}},
			false,
		},
		{"optional mutual TLS", "x-wso2-application-security: {security-types: [oauth2]}\nx-wso2-mutual-ssl: optional\n", "", definition.Operation{}, false},
		{
			"mutual TLS with optional credential", "x-wso2-application-security: {security-types: [oauth2], optional: true}\nx-wso2-mutual-ssl: mandatory\n", "",
			definition.Operation{Security: [][]C{{"mutualssl"}}},
			false,
		},
		{
			"optional mutual TLS with optional credential", "x-wso2-application-security: {security-types: [oauth2], optional: true}\nx-wso2-mutual-ssl: optional\n", "",
			definition.Operation{Security: [][]C{{"mutualssl"}, {"oauth2"}}},
			false,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			api := read(t, Options{}, endpoint+schemes+tc.api+"paths: {/: {get: {"+tc.op+"}}}\n")
			tc.want.Template, tc.want.Method = "/", "GET"
			if diff := cmp.Diff(tc.want, api.Operations[0]); diff != "" {
				t.Errorf("operation (-want +got):\n%s", diff)
			}
			if api.SecurityOptional != tc.optional {
				t.Errorf("optional is %v", api.SecurityOptional)
			}
			if tc.want.Unavailable != "" && !strings.Contains(strings.Join(api.Notes, "\n"), "every request to them is refused") {
				t.Errorf("no note says so: %q", api.Notes)
			}
		})
	}
	t.Run("fewer kinds can be checked", func(t *testing.T) {
		api := read(t, Options{Supported: []definition.Credential{definition.OAuth2}}, endpoint+schemes+"paths: {/: {get: {security: [{key: []}]}}}\n")
		if want := "it asks for api_key, which is not checked here"; api.Operations[0].Unavailable != want {
			t.Errorf("unavailable: %q, want %q", api.Operations[0].Unavailable, want)
		}
	})
	t.Run("keys where nothing is declared", func(t *testing.T) {
		for extra, want := range map[string][]string{"": {"apikey"}, "x-wso2-api-key-header: X-Key\n": {"X-Key"}} {
			api := read(t, Options{}, endpoint+extra+"x-wso2-application-security: {security-types: [api_key]}\npaths: {/: {get: {}}}\n")
			o := api.Operations[0]
			if !slices.Equal(o.APIKeyHeaders, want) || !slices.Equal(o.APIKeyQueries, []string{"apikey"}) {
				t.Errorf("%q: %q and %q", extra, o.APIKeyHeaders, o.APIKeyQueries)
			}
		}
	})
}

// project reads an api.yaml with the given lines under data, beside an OpenAPI document if one is given.
func project(t *testing.T, opts Options, data, spec string) (*definition.API, error) {
	t.Helper()
	files := map[string][]byte{"P/api.yaml": []byte("type: api\ndata:\n  name: P\n  context: /p\n  version: 1.0.0\n" + data)}
	if spec != "" {
		files["P/Definitions/swagger.yaml"] = []byte("openapi: 3.0.1\ninfo: {title: P, version: 1.0.0}\n" + spec)
	}
	return fromFiles("P.zip", files, opts)
}

const (
	metaEndpoint = "  endpointConfig: {endpoint_type: http, production_endpoints: {url: https://b.example.test}}\n"
	metaOps      = "  operations: [{target: /a, verb: GET, authType: Any, scopes: [s]}]\n"
)

func TestProjectRules(t *testing.T) {
	type C = definition.Credential
	for _, tc := range []struct {
		name, data, spec string
		opts             Options
		check            func(*definition.API) any
		want             any
	}{
		{"context gets the version", "", "", Options{}, func(a *definition.API) any { return a.Context }, "/p/1.0.0"},
		{"full context of the deployment wins", "", "", Options{Context: "/t/example.org/p/1.0.0"}, func(a *definition.API) any { return []string{a.Context, a.Tenant} }, []string{"/t/example.org/p/1.0.0", "example.org"}},
		{"tenant of the caller wins", "  organizationId: carbon.super\n", "", Options{Tenant: "example.org"}, func(a *definition.API) any { return a.Tenant }, "example.org"},
		{"tenant of the project", "  organizationId: org-1\n", "", Options{}, func(a *definition.API) any { return a.Tenant }, "org-1"},
		{"default version", "  isDefaultVersion: true\n", "", Options{}, func(a *definition.API) any { return a.DefaultContext }, "/p"},
		{"UUID by any spelling", "  ID: u-1\n", "", Options{}, func(a *definition.API) any { return a.UUID }, "u-1"},
		{"UUID of the file name", "", "", Options{UUID: "u-2", RevisionUUID: "r"}, func(a *definition.API) any { return []string{a.UUID, a.RevisionID} }, []string{"u-2", "r"}},
		{"tier of the API", "  apiThrottlingPolicy: Gold\n", "", Options{}, func(a *definition.API) any { return a.Tier }, "Gold"},
		{"prototyped operations need no credential", "  lifeCycleStatus: PROTOTYPED\n", "", Options{}, func(a *definition.API) any {
			return []any{a.Operations[0].Unsecured, a.Operations[0].Scopes}
		}, []any{true, []string(nil)}},
		{"authType None opens", "  operations: [{target: /a, verb: GET, authType: None}]\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].Unsecured }, true},
		{"api.yaml closes what x-auth-type opens", "", "paths: {/a: {get: {x-auth-type: None}}}\n", Options{}, func(a *definition.API) any { return a.Operations[0].Unsecured }, false},
		{"x-wso2-disable-security stands above api.yaml", "", "paths: {/a: {get: {x-wso2-disable-security: true}}}\n", Options{}, func(a *definition.API) any { return a.Operations[0].Unsecured }, true},
		{"operations of both files", "", "paths: {/b: {post: {x-throttling-tier: T}}}\n", Options{}, func(a *definition.API) any {
			var out []string
			for _, o := range a.Operations {
				out = append(out, o.Method+" "+o.Template+" "+o.Tier)
			}
			return out
		}, []string{"POST /b T", "GET /a "}},
		{"key managers", "  keyManagers: [A, B]\n", "", Options{}, func(a *definition.API) any { return a.KeyManagers }, []string{"A", "B"}},
		{"every key manager", "  keyManagers: [ALL]\n", "", Options{}, func(a *definition.API) any { return a.KeyManagers }, []string(nil)},
		{"key alone", "  securityScheme: [api_key, oauth_basic_auth_api_key_mandatory]\n", "", Options{}, func(a *definition.API) any {
			return []any{a.Operations[0].Security, a.Operations[0].APIKeyHeaders, a.Operations[0].APIKeyQueries}
		}, []any{[][]C{{"api_key"}}, []string{"apikey"}, []string{"apikey"}}},
		{"keys in a field of the API's own", "  securityScheme: [api_key]\n  apiKeyHeader: X-Key\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].APIKeyHeaders }, []string{"X-Key"}},
		{"every combination of application kinds", "  securityScheme: [oauth2, basic_auth, api_key, oauth_basic_auth_api_key_mandatory]\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].Security }, [][]C{{"oauth2"}, {"basic_auth"}, {"api_key"}}},
		{"mandatory mutual TLS with any of them", "  securityScheme: [mutualssl, mutualssl_mandatory, oauth2, basic_auth, oauth_basic_auth_api_key_mandatory]\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].Security }, [][]C{{"mutualssl", "oauth2"}, {"mutualssl", "basic_auth"}}},
		{"optional mutual TLS beside a mandatory token", "  securityScheme: [mutualssl, oauth2, oauth_basic_auth_api_key_mandatory]\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].Security }, [][]C(nil)},
		{"mandatory mutual TLS with token", "  securityScheme: [oauth2, mutualssl, mutualssl_mandatory, oauth_basic_auth_api_key_mandatory]\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].Security }, [][]C{{"mutualssl", "oauth2"}}},
		{"either mutual TLS or token", "  securityScheme: [oauth2, mutualssl]\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].Security }, [][]C{{"mutualssl"}, {"oauth2"}}},
		{"mandatory mutual TLS alone", "  securityScheme: [oauth2, mutualssl, mutualssl_mandatory]\n", "", Options{}, func(a *definition.API) any { return a.Operations[0].Security }, [][]C{{"mutualssl"}}},
		{"hosts and environments", "", "", Options{Deployments: []Deployment{{"Default", "gw"}, {"EU", "eu"}, {"EU2", "eu"}}}, func(a *definition.API) any { return [][]string{a.Hosts, a.Environments} }, [][]string{{"gw", "eu"}, {"Default", "EU", "EU2"}}},
		{"an environment without a host means every host", "", "", Options{Deployments: []Deployment{{"Default", "gw"}, {"EU", ""}, {"X", "x"}}}, func(a *definition.API) any { return [][]string{a.Hosts, a.Environments} }, [][]string{nil, {"Default", "EU", "X"}}},
		{
			"endpoint of the environment", "", "",
			Options{Deployments: []Deployment{{"A", ""}, {"B", ""}}, Overrides: map[string]Override{"B": {Production: "https://over.example.test", Sandbox: "http://sbx"}, "A": {Production: "https://over.example.test", Sandbox: "http://sbx"}}},
			func(a *definition.API) any { return [][]string{a.Production.URLs, a.Sandbox.URLs} },
			[][]string{{"https://over.example.test"}, {"http://sbx"}},
		},
		{"WebSocket topics", "  type: WS\n  operations: [{target: /a, verb: SUBSCRIBE}, {target: /a, verb: PUBLISH}, {target: \"/*\", verb: SUBSCRIBE}]\n", "", Options{}, func(a *definition.API) any {
			return []string{a.Operations[0].Method + a.Operations[0].Template, a.Operations[1].Method + a.Operations[1].Template}
		}, []string{"GET/a", "GET/*"}},
		{"GraphQL is refused, whatever its operations say", "  type: GRAPHQL\n  lifeCycleStatus: PROTOTYPED\n  operations: [{target: books, verb: QUERY, authType: None}]\n", "", Options{}, func(a *definition.API) any {
			return []any{len(a.Operations), a.Operations[0].Unsecured, a.Operations[0].Unavailable}
		}, []any{2, false, "it is a GraphQL API, and this release does not read queries"}},
		{"an endpoint that was taken out", "  endpointConfig: {endpoint_type: http, production_endpoints: {url: https://b.example.test}, sandbox_endpoints: {url: \"\"}}\n", "", Options{}, func(a *definition.API) any { return a.Sandbox }, (*definition.Endpoint)(nil)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := tc.data
			if !strings.Contains(data, "endpointConfig") {
				data += metaEndpoint
			}
			if !strings.Contains(data, "operations:") {
				data += metaOps
			}
			api, err := project(t, tc.opts, data, tc.spec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, tc.check(api)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestEnvironmentsWithOtherEndpoints(t *testing.T) {
	over := map[string]Override{"EU": {Production: "https://eu.example.test"}, "EU2": {Production: "https://eu.example.test"}}
	api, err := project(t, Options{Overrides: over, UUID: "u", Deployments: []Deployment{{"Default", "gw"}, {"EU", "eu"}, {"Other", "other"}, {"EU2", "eu2"}}}, metaEndpoint+metaOps, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(api.Variants) != 1 {
		t.Fatalf("%d variants, want 1", len(api.Variants))
	}
	eu := api.Variants[0]
	if diff := cmp.Diff([][]string{{"gw", "other"}, {"Default", "Other"}, {"https://b.example.test"}}, [][]string{api.Hosts, api.Environments, api.Production.URLs}); diff != "" {
		t.Errorf("first environment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]string{{"eu", "eu2"}, {"EU", "EU2"}, {"https://eu.example.test"}}, [][]string{eu.Hosts, eu.Environments, eu.Production.URLs}); diff != "" {
		t.Errorf("other environment (-want +got):\n%s", diff)
	}
	if eu.UUID != "u" || eu.Context != "/p/1.0.0" || len(eu.Operations) != 1 || eu.Variants != nil {
		t.Errorf("the variant is no whole definition: %+v", eu)
	}
	for name, deployments := range map[string][]Deployment{"same host": {{"Default", "gw"}, {"EU", "gw"}}, "every host": {{"Default", ""}, {"EU", ""}}} {
		_, err := project(t, Options{Overrides: over, Deployments: deployments}, metaEndpoint+metaOps, "")
		if err == nil || !strings.Contains(err.Error(), "environments Default and EU") {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestProjectOfAnotherAPIIsRefused(t *testing.T) {
	_, err := project(t, Options{UUID: "u-2"}, "  id: u-1\n"+metaEndpoint+metaOps, "")
	if err == nil || !strings.Contains(err.Error(), `api.yaml:6:7: data.id "u-1": the project is of another API`) {
		t.Errorf("error is %v", err)
	}
}

func TestDefinitionsOfTheAPIManagerDoNotReadTheEnvironment(t *testing.T) {
	t.Setenv("GATEHOUSE_TEST_SECRET", "hush")
	_, err := project(t, Options{}, "  endpointConfig: {endpoint_type: http, production_endpoints: {url: \"https://evil.example.test/${GATEHOUSE_TEST_SECRET}\"}}\n"+metaOps, "")
	if err == nil || !strings.Contains(err.Error(), "not open to definitions of the API Manager") || strings.Contains(err.Error(), "hush") {
		t.Errorf("error is %v", err)
	}
}

func TestCredentialsOfAnEndpoint(t *testing.T) {
	const security = "    endpoint_security: {production: {enabled: true, type: basic, username: u, password: %s}}\n"
	const endpointConfig = "  endpointConfig:\n    production_endpoints: {url: https://b.example.test}\n"
	for name, tc := range map[string]struct {
		opts     Options
		password string
		want     string
		fault    string
	}{
		"blanks belong to it":                  {Options{}, `" pass word "`, " pass word ", ""},
		"a number is its text":                 {Options{}, `0123`, "0123", ""},
		"the API Manager's is taken literally": {Options{}, `"a${PET_PASSWORD}"`, "a${PET_PASSWORD}", ""},
		"a file's comes from the environment":  {Options{LookupEnv: environment}, `"a$env{PET_PASSWORD}"`, "awoof", ""},
		"a variable that is not set":           {Options{LookupEnv: environment}, `"hush$env{NONE}"`, "", "$env{NONE}: the variable is not set"},
		"a list":                               {Options{}, `[a]`, "", "is a list where a text is expected"},
	} {
		t.Run(name, func(t *testing.T) {
			api, err := project(t, tc.opts, endpointConfig+fmt.Sprintf(security, tc.password)+metaOps, "")
			if tc.fault != "" {
				faults := FaultsOf("", err)
				if len(faults) != 1 || !strings.Contains(faults[0].Problem, tc.fault) || strings.Contains(err.Error(), "hush") {
					t.Errorf("faults are %v", faults)
				}
				return
			}
			if err != nil || api.Production.Security.Password != tc.want {
				t.Errorf("%+v, %v", api, err)
			}
		})
	}
}

func TestEndpointsOfServersAndHosts(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"first absolute server": {"openapi: 3.0.0\nservers: [{url: /rel}, {url: https://one.example.test/v1}, {url: https://two.example.test}]\n", "https://one.example.test/v1"},
		"server with variables": {"openapi: 3.0.0\nservers: [{url: \"https://{stage}.example.test\", variables: {stage: {default: live}}}]\n", "https://live.example.test"},
		"host of Swagger 2":     {"swagger: \"2.0\"\nhost: h.example.test:8443\nbasePath: /v2/\nschemes: [http, https]\n", "https://h.example.test:8443/v2"},
		"http only":             {"swagger: \"2.0\"\nhost: h.example.test\nschemes: [http]\n", "http://h.example.test"},
	} {
		t.Run(name, func(t *testing.T) {
			api, err := FromBytes("x.yaml", []byte(tc.text+"info: {title: T, version: \"1\"}\nx-wso2-basePath: /t\npaths: {/a: {get: {}}}\n"), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{tc.want}, api.Production.URLs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSandboxWithoutProduction(t *testing.T) {
	api := read(t, Options{}, "servers: [{url: https://s.example.test}]\nx-wso2-sandbox-endpoints: {urls: [https://b.example.test]}\npaths: {/: {get: {}}}\n")
	if api.Production != nil || api.Sandbox == nil {
		t.Errorf("production %+v, sandbox %+v: servers must not stand in for production", api.Production, api.Sandbox)
	}
}

func TestAliasesAndMergeKeys(t *testing.T) {
	api := read(t, Options{}, `x-base: &base {x-throttling-tier: Gold, x-wso2-production-endpoints: &e {urls: [https://a.example.test]}}
x-wso2-sandbox-endpoints: *e
paths:
  /a: {get: {<<: *base, x-auth-type: None}}
  /b: {get: {<<: [*base], x-throttling-tier: Silver}}
`)
	if a, b := api.Operations[0], api.Operations[1]; a.Tier != "Gold" || !a.Unsecured || a.Production == nil || b.Tier != "Silver" || api.Sandbox == nil {
		t.Errorf("operations are %+v", api.Operations)
	}
}

func TestCheckPath(t *testing.T) {
	got, err := CheckPath("testdata/good", Options{LookupEnv: environment})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range got {
		lines = append(lines, fmt.Sprintf("%s: %s %s, %d operations, %d faults", c.Path, c.Name, c.Version, c.Operations, len(c.Faults)))
	}
	want := []string{
		"testdata/good/BooksGraph-1.0.0: BooksGraph 1.0.0, 2 operations, 0 faults",
		"testdata/good/News-2.1-tenant: News 2.1, 1 operations, 0 faults",
		"testdata/good/Partners-1.0.0: Partners 1.0.0, 2 operations, 0 faults",
		"testdata/good/PizzaOrders-1.0.0: PizzaOrders 1.0.0, 3 operations, 0 faults",
		"testdata/good/WeatherInfo-v2: WeatherInfo v2, 2 operations, 0 faults",
		"testdata/good/petstore.yaml: PetStore 1.0.5, 7 operations, 0 faults",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	one, err := CheckPath("testdata/wrong/46-many-at-once.yaml", Options{})
	if err != nil || len(one) != 1 || len(one[0].Faults) != 4 {
		t.Errorf("%+v, %v", one, err)
	}
	for _, dir := range []string{t.TempDir(), "testdata/none"} {
		if _, err := CheckPath(dir, Options{}); err == nil {
			t.Errorf("%s: no error", dir)
		}
	}
}

func TestHostileZips(t *testing.T) {
	zipOf := func(files map[string]string) []byte {
		dir := filepath.Join(t.TempDir(), "P")
		for name, text := range files {
			p := filepath.Join(dir, name)
			os.MkdirAll(filepath.Dir(p), 0o755)
			os.WriteFile(p, []byte(text), 0o644)
		}
		return zipped(t, dir)
	}
	outside := bytes.ReplaceAll(zipOf(map[string]string{"xx/api.yaml": "a: b"}), []byte("P/xx/"), []byte("P/../"))
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"name that leads outside": {outside, "leads outside"},
		"nothing of use":          {zipOf(map[string]string{"readme": ""}), "holds neither api.yaml"},
	} {
		_, err := FromZip("x.zip", tc.data, Options{})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v lacks %q", name, err, tc.want)
		}
	}
}

func TestZipThatUnpacksToTooMuch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "P")
	os.MkdirAll(dir, 0o755)
	os.WriteFile(filepath.Join(dir, "api.yaml"), bytes.Repeat([]byte("#"), 5000), 0o644)
	os.WriteFile(filepath.Join(dir, "Image.png"), bytes.Repeat([]byte("#"), 50000), 0o644)
	if _, err := unzip(zipped(t, dir), 4999); err == nil || !strings.Contains(err.Error(), "P/api.yaml is larger than 4999 bytes") {
		t.Errorf("error is %v", err)
	}
	if files, err := unzip(zipped(t, dir), 5000); err != nil || len(files) != 1 {
		t.Errorf("%d files, %v: what is not read has no bound", len(files), err)
	}
}

// large is a definition with n operations, as portals export it.
func large(n int) []byte {
	var b bytes.Buffer
	b.WriteString("openapi: 3.0.0\ninfo: {title: Large, version: \"1\"}\nx-wso2-basePath: /large/1\n" + endpoint + "paths:\n")
	for i := range n {
		fmt.Fprintf(&b, "  /resources/r%d/{id}:\n    get:\n      operationId: op%d\n      parameters:\n        - {name: id, in: path, required: true, schema: {type: string}}\n      responses:\n        \"200\":\n          description: ok\n          content: {application/json: {schema: {$ref: \"#/components/schemas/R\"}}}\n      security:\n        - default: [\"scope:%d\"]\n      x-auth-type: Application & Application User\n      x-throttling-tier: Unlimited\n", i, i, i%20)
	}
	b.WriteString("components: {schemas: {R: {type: object}}, securitySchemes: {default: {type: oauth2, flows: {}}}}\n")
	return b.Bytes()
}

func TestLargeDefinition(t *testing.T) {
	api, err := FromBytes("large.yaml", large(1000), Options{})
	if err != nil || len(api.Operations) != 1000 {
		t.Fatalf("%v", err)
	}
	if last := api.Operations[999]; last.Template != "/resources/r999/{id}" || last.Scopes[0] != "scope:19" {
		t.Errorf("last operation is %+v", last)
	}
}

// BenchmarkLargeDefinition reads 5,000 operations, which should take well under a second.
func BenchmarkLargeDefinition(b *testing.B) {
	data := large(5000)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromBytes("large.yaml", data, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// check holds for whatever was read: faults or a definition that the proxy can take, never both.
func check(t *testing.T, api *definition.API, err error) {
	if err != nil {
		var faults Faults
		if !errors.As(err, &faults) || len(faults) == 0 || api != nil {
			t.Fatalf("error %T %v beside %v", err, err, api)
		}
		return
	}
	if api.Name == "" || api.Version == "" || !strings.HasPrefix(api.Context, "/") || api.Tenant == "" {
		t.Fatalf("identity is not whole: %+v", api)
	}
	endpoints := []*definition.Endpoint{api.Production, api.Sandbox}
	seen := make(map[string]bool)
	for _, o := range api.Operations {
		shape, problem := templateShape(o.Template)
		if problem != "" || !httpMethods[o.Method] || seen[o.Method+shape] {
			t.Fatalf("operation %s %q: %s", o.Method, o.Template, problem)
		}
		seen[o.Method+shape] = true
		if o.Unsecured && (o.Scopes != nil || o.Security != nil || o.Unavailable != "") {
			t.Fatalf("an unsecured operation asks for something: %+v", o)
		}
		for _, alternative := range o.Security {
			if len(alternative) == 0 {
				t.Fatalf("an alternative that asks for nothing: %+v", o)
			}
			if slices.Contains(alternative, definition.APIKey) && len(o.APIKeyHeaders)+len(o.APIKeyQueries) == 0 {
				t.Fatalf("an API key without a place: %+v", o)
			}
		}
		endpoints = append(endpoints, o.Production, o.Sandbox)
	}
	for _, c := range api.ClientCertificates {
		if c.Alias == "" || wrongPEM([]byte(c.PEM)) != "" {
			t.Fatalf("a client certificate that is none: %+v", c)
		}
	}
	for _, e := range endpoints {
		if e == nil {
			continue
		}
		if len(e.URLs) == 0 {
			t.Fatal("an endpoint without a URL")
		}
		for _, u := range e.URLs {
			if clean, problem := checkURL(u); problem != "" || clean != u {
				t.Fatalf("URL %q: %s", u, problem)
			}
		}
	}
}

func FuzzOpenAPI(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/good/*/Definitions/*", "testdata/wrong/*.yaml", "testdata/wrong/*.json"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("no seeds in %s: %v", pattern, err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte("a: &a [*a]\nopenapi: 3.0.0\npaths: *a\n<<: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		api, err := FromBytes("fuzz.yaml", data, Options{LookupEnv: environment})
		check(t, api, err)
	})
}

func FuzzProject(f *testing.F) {
	dirs, err := filepath.Glob("testdata/*/*/api.*")
	if err != nil || len(dirs) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	spec, err := os.ReadFile("testdata/good/PizzaOrders-1.0.0/Definitions/swagger.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range dirs {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, []byte("paths: {}"))
		f.Add(data, spec)
	}
	f.Fuzz(func(t *testing.T, meta, spec []byte) {
		api, err := fromFiles("fuzz", map[string][]byte{"P/api.yaml": meta, "P/Definitions/swagger.yaml": spec}, Options{})
		check(t, api, err)
	})
}

func FuzzClientCertificates(f *testing.F) {
	meta, err := os.ReadFile("testdata/good/Partners-1.0.0/api.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, folder := range []string{"good/Partners-1.0.0", "wrong/71-project-certificate-damaged", "wrong/72-project-certificate-missing", "wrong/73-project-certificate-is-a-key"} {
		list, err := os.ReadFile("testdata/" + folder + "/Client-certificates/client_certificates.yaml")
		if err != nil {
			f.Fatal(err)
		}
		certificate, err := os.ReadFile("testdata/" + folder + "/Client-certificates/acme.crt")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(list, certificate)
	}
	f.Add([]byte("data: [{alias: a, certificate: \"-----BEGIN CERTIFICATE-----\"}, {alias: b, certificate: ../../etc/passwd}]"), []byte(nil))
	f.Fuzz(func(t *testing.T, list, certificate []byte) {
		api, err := fromFiles("fuzz", map[string][]byte{
			"P/api.yaml": meta, "P/Client-certificates/client_certificates.yaml": list, "P/Client-certificates/acme.crt": certificate,
		}, Options{})
		check(t, api, err)
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Fatalf("a fault shows what the file holds: %v", err)
		}
	})
}

// TestInlineAndForeignCertificates: a certificate may stand in the list itself, and nothing outside of the project is read.
func TestInlineAndForeignCertificates(t *testing.T) {
	text, err := os.ReadFile("testdata/good/Partners-1.0.0/Client-certificates/acme.crt")
	if err != nil {
		t.Fatal(err)
	}
	files := func(list string) map[string][]byte {
		return map[string][]byte{
			"P/api.yaml":                     []byte("type: api\ndata:\n  name: P\n  context: /p\n  version: 1.0.0\n  securityScheme: [mutualssl, mutualssl_mandatory]\n" + metaEndpoint + metaOps),
			"P/Client-certificates/list.crt": text, "P/Client-certificates/client_certificates.yaml": []byte(list),
		}
	}
	api, err := fromFiles("P.zip", files("data:\n  - alias: a\n    tierName: Gold\n    certificate: |\n      "+strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n      ")+"\n"), Options{})
	if err != nil || len(api.ClientCertificates) != 1 || api.ClientCertificates[0].Tier != "Gold" || len(api.Notes) > 0 {
		t.Errorf("%v %+v", err, api)
	}
	if _, err = fromFiles("P.zip", files("data: [{alias: a, certificate: /etc/ssl/certs/ca-certificates.crt}]\n"), Options{}); err == nil || !strings.Contains(err.Error(), "does not hold") {
		t.Errorf("%v", err)
	}
	api, err = fromFiles("P.zip", files("data: []\n"), Options{})
	if err != nil || len(api.Notes) != 1 || !strings.Contains(api.Notes[0], "admits none") {
		t.Errorf("%v %+v", err, api)
	}
}
