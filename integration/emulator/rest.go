package emulator

import (
	"bufio"
	"compress/gzip"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

const dataPath = "/internal/data/v1/"

type errorBody struct {
	Code        int    `json:"code"`
	Message     string `json:"message"`
	Description string `json:"description"`
	MoreInfo    string `json:"moreInfo"`
	Error       []any  `json:"error"`
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body) // the peer went away: nothing to tell it
}

func writeError(w http.ResponseWriter, status int, description string) {
	writeJSON(w, status, errorBody{Code: status, Message: http.StatusText(status), Description: description, Error: []any{}})
}

func unauthenticated(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `Basic realm="WSO2 API Manager"`)
	writeJSON(w, http.StatusUnauthorized, errorBody{Code: 401, Description: "Unauthenticated request", Error: []any{}})
}

// bare are the lists without an envelope.
var bare = []string{"keymanagers", "keyTemplates", "revokedjwt", "block"}

func writeEmpty(w http.ResponseWriter, path string) {
	name := path[strings.LastIndexByte(path, '/')+1:]
	switch {
	case name == "block":
		writeJSON(w, http.StatusOK, blockBody(nil))
	case slices.Contains(bare, name):
		writeJSON(w, http.StatusOK, []any{})
	default:
		writeJSON(w, http.StatusOK, map[string]any{"count": 0, "list": []any{}, "pagination": nil})
	}
}

// recorder keeps what gateways asked and told, for assertions.
type recorder struct {
	mu         sync.Mutex
	requests   map[string]int
	notices    []GatewayNotice
	deployed   []Acknowledgement
	undeployed []Undeployed
	status     []DeploymentStatus
	gateways   map[string]GatewayNotice
}

// GatewayNotice is a body of POST /notify-gateway.
type GatewayNotice struct {
	PayloadType       string         `json:"payloadType"`
	GatewayID         string         `json:"gatewayId"`
	EnvironmentLabels []string       `json:"environmentLabels"`
	LoadingTenants    []string       `json:"loadingTenants"`
	GatewayProperties map[string]any `json:"gatewayProperties"`
	TimeStamp         int64          `json:"timeStamp"`
}

// Acknowledgement is an element of PATCH /apis/deployed-revisions.
type Acknowledgement struct {
	APIID      string `json:"apiId"`
	RevisionID int64  `json:"revisionId"`
	EnvInfo    []struct {
		Name  string `json:"name"`
		VHost string `json:"vhost"`
	} `json:"envInfo"`
}

// Undeployed is a body of POST /apis/undeployed-revision.
type Undeployed struct {
	APIUUID      string `json:"apiUUID"`
	RevisionUUID string `json:"revisionUUID"`
	Environment  string `json:"environment"`
}

// DeploymentStatus is an element of POST /notify-api-deployment-status.
type DeploymentStatus struct {
	GatewayID        string `json:"gatewayId"`
	APIID            string `json:"apiId"`
	TenantDomain     string `json:"tenantDomain"`
	DeploymentStatus string `json:"deploymentStatus"`
	Action           string `json:"action"`
	RevisionID       string `json:"revisionId"`
	TimeStamp        int64  `json:"timeStamp"`
	ErrorCode        int64  `json:"errorCode"`
	ErrorMessage     string `json:"errorMessage"`
}

// Recorded is what gateways asked of the API Manager and told it.
type Recorded struct {
	// Requests counts by endpoint, without its prefix: "apis", "runtime-artifacts", …
	Requests   map[string]int
	Notices    []GatewayNotice
	Deployed   []Acknowledgement
	Undeployed []Undeployed
	Status     []DeploymentStatus
}

// Recorded copies what came so far.
func (e *Emulator) Recorded() Recorded {
	e.record.mu.Lock()
	defer e.record.mu.Unlock()
	r := Recorded{
		Requests: map[string]int{}, Notices: slices.Clone(e.record.notices), Deployed: slices.Clone(e.record.deployed),
		Undeployed: slices.Clone(e.record.undeployed), Status: slices.Clone(e.record.status),
	}
	maps.Copy(r.Requests, e.record.requests)
	return r
}

// ForgetGateways makes the API Manager know no gateway, as after a purge.
func (e *Emulator) ForgetGateways() {
	e.record.mu.Lock()
	defer e.record.mu.Unlock()
	e.record.gateways = nil
}

const maxRecorded = 10_000 // of each kind; a long run must not grow without end

func keep[T any](list []T, item T) []T {
	if len(list) >= maxRecorded {
		list = list[len(list)/2:]
	}
	return append(list, item)
}

func (e *Emulator) handler() http.Handler {
	mux := http.NewServeMux()
	for _, path := range []string{"/oauth2/jwks", "/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"} {
		mux.Handle(path, e.resident.Handler())
	}
	mux.HandleFunc("POST /client-registration/v0.17/register", e.serveRegistration)
	mux.HandleFunc("GET /internal/gateway/.well-known", func(w http.ResponseWriter, r *http.Request) {
		if !e.profile.wellKnown {
			http.NotFound(w, r)
			return
		}
		writeJSON(w, http.StatusOK, map[string]any{"gatewayPath": "internal/data/v1", "controlPlane": map[string]string{"type": "APIM", "version": "4.7.0"}})
	})
	e.control(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		for strings.Contains(path, "//") { // as MGW 3.2 joins its paths
			path = strings.ReplaceAll(path, "//", "/")
		}
		if rest, ok := strings.CutPrefix(path, dataPath); ok {
			e.serveData(w, r, rest)
			return
		}
		if rest, ok := strings.CutPrefix(path, "/throttle/data/v1/"); ok && (rest == "block" || rest == "keyTemplates") {
			e.serveData(w, r, rest)
			return
		}
		r.URL.Path = path
		mux.ServeHTTP(w, r)
	})
}

func (e *Emulator) authenticate(r *http.Request) (user string, ok bool) {
	user, password, ok := r.BasicAuth()
	if !ok {
		return "", false
	}
	e.mu.Lock()
	want, known := e.users[user]
	e.mu.Unlock()
	return user, known && subtle.ConstantTimeCompare([]byte(want), []byte(password)) == 1
}

// allTenants is the tenant of a request that asks for every one.
const allTenants = "ALL"

// tenantOf is the tenant that a request reads: its user's, or for a user of the super tenant the one that it names.
func (e *Emulator) tenantOf(r *http.Request, user string) string {
	if _, domain, ok := strings.Cut(user, "@"); ok {
		return domain
	}
	if t := r.Header.Get("xWSO2Tenant"); t != "" {
		return t
	}
	if t := r.URL.Query().Get("organizationId"); t != "" {
		return t
	}
	return SuperTenant
}

func visible(tenant, owner string) bool { return tenant == allTenants || tenant == owner }

func (e *Emulator) serveData(w http.ResponseWriter, r *http.Request, name string) {
	e.record.mu.Lock()
	if len(e.record.requests) < 1000 || e.record.requests[name] > 0 {
		e.record.requests[name]++
	}
	e.record.mu.Unlock()
	if f, ok := e.faults.next(name); ok {
		var done bool
		if w, done = e.misbehave(f, w, r); done {
			return
		}
		if l, ok := w.(*late); ok {
			defer l.flush()
		}
	}
	user, ok := e.authenticate(r)
	if !ok {
		unauthenticated(w)
		return
	}
	if e.gzip && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") || name == "apis" && r.Header.Get("Accept") == "application/gzip" {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer func() { _ = z.Close() }() // the peer went away: nothing to tell it
		w = &compressed{ResponseWriter: w, z: z}
	}
	e.mu.Lock()
	fixed, ok := e.fixed[name]
	e.mu.Unlock()
	if ok && r.Method == http.MethodGet {
		w.Header().Set("Content-Type", fixed.kind)
		w.WriteHeader(fixed.status)
		_, _ = w.Write(fixed.body) // the peer went away: nothing to tell it
		return
	}
	tenant := e.tenantOf(r, user)
	route := r.Method + " " + name
	switch route {
	case "GET apis":
		e.serveAPIs(w, r, tenant)
	case "GET applications":
		e.serveApplications(w, r, tenant)
	case "GET application-key-mappings":
		e.serveKeyMappings(w, r, tenant)
	case "GET subscriptions":
		e.serveSubscriptions(w, r, tenant)
	case "GET subscription-policies":
		e.servePolicies(w, r, tenant, SubscriptionPolicy)
	case "GET application-policies":
		e.servePolicies(w, r, tenant, ApplicationPolicy)
	case "GET api-policies":
		e.servePolicies(w, r, tenant, APIPolicy)
	case "GET global-policies":
		e.serveGlobalPolicies(w, r)
	case "GET scopes":
		e.serveScopes(w, r, tenant)
	case "GET keymanagers":
		e.serveKeyManagers(w, tenant)
	case "GET keyTemplates":
		e.serveKeyTemplates(w)
	case "GET block":
		e.serveBlock(w)
	case "GET revokedjwt":
		e.serveRevoked(w)
	case "GET endpoint-certificates", "GET ga-config", "GET webhooks-subscriptions":
		writeEmpty(w, name)
	case "POST notify":
		writeJSON(w, http.StatusOK, struct{}{})
	default:
		if e.profile.v32 || !e.serveDeployment(w, r, route, tenant) {
			http.NotFound(w, r)
		}
	}
}

// serveDeployment serves what 3.2 lacks.
func (e *Emulator) serveDeployment(w http.ResponseWriter, r *http.Request, route, tenant string) bool {
	switch route {
	case "GET runtime-artifacts":
		q := r.URL.Query()
		e.serveArtifacts(w, r, tenant, func(a API) bool {
			return match(q.Get("apiId"), a.UUID) && match(q.Get("name"), a.Name) && match(q.Get("version"), a.Version)
		})
	case "GET runtime-metadata":
		q := r.URL.Query()
		labels, err := base64Labels(q.Get("gatewayLabel"))
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			break
		}
		_, d := e.artifacts(func(a API) bool { return visible(tenant, a.Organization) && match(q.Get("apiId"), a.UUID) }, labels, "")
		writeJSON(w, http.StatusOK, d)
	case "POST retrieve-api-artifacts":
		if !e.profile.acknowledgements {
			return false
		}
		var body struct {
			UUIDs []string `json:"uuids"`
		}
		if !readJSON(w, r, &body) {
			break
		}
		e.serveArtifacts(w, r, tenant, func(a API) bool { return slices.Contains(body.UUIDs, a.UUID) })
	case "PATCH apis/deployed-revisions":
		e.serveDeployed(w, r, tenant)
	case "POST apis/undeployed-revision":
		if !e.profile.acknowledgements {
			return false
		}
		var body Undeployed
		if readJSON(w, r, &body) {
			e.record.mu.Lock()
			e.record.undeployed = keep(e.record.undeployed, body)
			e.record.mu.Unlock()
			w.WriteHeader(http.StatusOK)
		}
	case "POST notify-gateway", "POST notify-api-deployment-status":
		if !e.profile.notifyGateway {
			return false
		}
		if route == "POST notify-gateway" {
			e.serveNotice(w, r)
		} else {
			e.serveStatus(w, r)
		}
	default:
		return false
	}
	return true
}

func match(want, have string) bool { return want == "" || want == have }

func matchID(want string, have int64) bool { return want == "" || want == strconv.FormatInt(have, 10) }

// base64Labels decodes the labels of /runtime-artifacts; nil for none.
func base64Labels(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("gatewayLabel %q is not base64 of the labels joined by |", text)
	}
	return strings.Split(string(b), "|"), nil
}

func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(kind) != "application/json" {
		writeError(w, http.StatusUnsupportedMediaType, "the content type must be application/json")
		return false
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 8<<20)).Decode(into); err != nil {
		writeError(w, http.StatusBadRequest, "the body is no such JSON: "+err.Error())
		return false
	}
	return true
}

// list streams rows: those of the database, then those of Populate.
type list struct {
	e       *Emulator
	w       *bufio.Writer
	b       []byte
	started bool
}

// stream writes the envelope around what rows yields. The count must be known beforehand.
func (e *Emulator) stream(w http.ResponseWriter, count int, rows func(emit func(row any), raw func(append func([]byte) []byte))) {
	w.Header().Set("Content-Type", "application/json")
	l := list{e: e, w: bufio.NewWriterSize(w, 64<<10)}
	l.write(fmt.Appendf(nil, `{"count":%d,"list":[`, count))
	rows(func(row any) {
		b, err := e.encode(row)
		if err != nil {
			e.report(err)
			panic(http.ErrAbortHandler)
		}
		l.comma()
		l.write(b)
	}, func(f func([]byte) []byte) {
		l.comma()
		l.b = f(l.b[:0])
		l.write(l.b)
	})
	l.write([]byte(`],"pagination":null}`))
	_ = l.w.Flush() // the peer went away: nothing to tell it
}

func (l *list) comma() {
	if l.started {
		l.write([]byte{','})
	}
	l.started = true
}

func (l *list) write(b []byte) {
	if _, err := l.w.Write(b); err != nil {
		panic(http.ErrAbortHandler) // stop making rows for a peer that went away
	}
}

// encode writes a row in the spelling of the profile.
func (e *Emulator) encode(row any) ([]byte, error) {
	b, err := json.Marshal(row)
	if err != nil {
		return nil, fmt.Errorf("row %T: %w", row, err)
	}
	var drop []string
	if e.profile.v32 {
		drop = []string{"uuid", "status", "apiPolicies", "subscriptionUUID", "apiUUID", "applicationUUID", "defaultLimit", "tenantDomain"}
	}
	if !e.profile.organization {
		drop = append(drop, "organization")
	}
	if drop == nil {
		return b, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("row %T: %w", row, err)
	}
	for _, name := range drop {
		delete(fields, name)
	}
	return json.Marshal(fields)
}

func (e *Emulator) serveAPIs(w http.ResponseWriter, r *http.Request, tenant string) {
	q := r.URL.Query()
	label := q.Get("gatewayLabel")
	e.mu.Lock()
	rows, gen := e.m.rows().APIs, e.gen
	e.mu.Unlock()
	rows = slices.DeleteFunc(rows, func(a API) bool {
		return !visible(tenant, a.Organization) || !match(q.Get("apiId"), a.UUID) || !match(q.Get("context"), a.Context) ||
			!match(q.Get("version"), a.Version) || label != "" && !slices.Contains(a.Environments, label)
	})
	if e.expandNeeded && q.Get("expand") != "true" {
		for i := range rows {
			rows[i].URLMappings, rows[i].APIPolicies = []URLMapping{}, []any{}
		}
	}
	if r.Header.Get("Accept") == "application/gzip" {
		w.Header().Set("Content-Disposition", "attachment; filename=apis.json.gz")
	}
	var from, to int
	if visible(tenant, SuperTenant) {
		from, to = gen.apis(q.Get("apiId"), q.Get("context"), q.Get("version"), label)
	}
	e.stream(w, len(rows)+to-from, func(emit func(any), raw func(func([]byte) []byte)) {
		for _, a := range rows {
			emit(a)
		}
		for i := from; i < to; i++ {
			e.generated(emit, raw, func() any { return gen.API(i) }, func(b []byte) []byte { return gen.appendAPI(b, i) })
		}
	})
}

// generated writes a row of Populate: fast in the newest spelling, else through the profile.
func (e *Emulator) generated(emit func(any), raw func(func([]byte) []byte), row func() any, fast func([]byte) []byte) {
	if e.profile.organization && !e.profile.v32 {
		raw(fast)
		return
	}
	emit(row())
}

func (e *Emulator) serveApplications(w http.ResponseWriter, r *http.Request, tenant string) {
	id := r.URL.Query().Get("appId")
	e.mu.Lock()
	rows, gen := e.m.rows().Applications, e.gen
	e.mu.Unlock()
	rows = slices.DeleteFunc(rows, func(a Application) bool { return !visible(tenant, a.Organization) || !matchID(id, a.ID) })
	var from, to int
	if visible(tenant, SuperTenant) {
		from, to = gen.applications(id)
	}
	e.stream(w, len(rows)+to-from, func(emit func(any), raw func(func([]byte) []byte)) {
		for _, a := range rows {
			emit(a)
		}
		for i := from; i < to; i++ {
			e.generated(emit, raw, func() any { return gen.Application(i) }, func(b []byte) []byte { return gen.appendApplication(b, i) })
		}
	})
}

func (e *Emulator) serveKeyMappings(w http.ResponseWriter, r *http.Request, tenant string) {
	q := r.URL.Query()
	key, manager := q.Get("consumerKey"), q.Get("keymanager")
	e.mu.Lock()
	rows, gen := e.m.rows().KeyMappings, e.gen
	e.mu.Unlock()
	rows = slices.DeleteFunc(rows, func(k KeyMapping) bool {
		return !visible(tenant, k.Tenant) || !match(key, k.ConsumerKey) || !match(manager, k.KeyManager)
	})
	var from, to int
	if visible(tenant, SuperTenant) {
		from, to = gen.mappings(key, manager)
	}
	e.stream(w, len(rows)+to-from, func(emit func(any), raw func(func([]byte) []byte)) {
		for _, k := range rows {
			emit(k)
		}
		for i := from; i < to; i++ {
			e.generated(emit, raw, func() any { return gen.KeyMapping(i) }, func(b []byte) []byte { return gen.appendKeyMapping(b, i) })
		}
	})
}

func (e *Emulator) serveSubscriptions(w http.ResponseWriter, r *http.Request, tenant string) {
	q := r.URL.Query()
	e.mu.Lock()
	rows, gen := e.m.rows().Subscriptions, e.gen
	e.mu.Unlock()
	rows = slices.DeleteFunc(rows, func(s Subscription) bool {
		return !visible(tenant, s.Tenant) || !matchID(q.Get("apiId"), s.APIID) || !matchID(q.Get("appId"), s.AppID) ||
			!match(q.Get("apiUUID"), s.APIUUID) || !match(q.Get("applicationUUID"), s.ApplicationUUID)
	})
	var picked []int
	all := false
	if visible(tenant, SuperTenant) {
		picked, all = gen.subscriptions(q.Get("apiId"), q.Get("appId"), q.Get("apiUUID"), q.Get("applicationUUID"))
	}
	count := len(picked)
	if all {
		count = gen.Subscriptions
	}
	e.stream(w, len(rows)+count, func(emit func(any), raw func(func([]byte) []byte)) {
		for _, s := range rows {
			emit(s)
		}
		for n := range count {
			i := n
			if !all {
				i = picked[n]
			}
			e.generated(emit, raw, func() any { return gen.Subscription(i) }, func(b []byte) []byte { return gen.appendSubscription(b, i) })
		}
	})
}

func (e *Emulator) servePolicies(w http.ResponseWriter, r *http.Request, tenant string, kind PolicyKind) {
	name := r.URL.Query().Get("policyName")
	e.mu.Lock()
	rows := e.m.policyRows(kind)
	id := e.m.tenantID
	var ids []int64
	rows = slices.DeleteFunc(rows, func(p Policy) bool { return !visible(tenant, p.TenantDomain) || !match(name, p.Name) })
	for _, p := range rows {
		ids = append(ids, id(p.TenantDomain))
	}
	e.mu.Unlock()
	e.stream(w, len(rows), func(emit func(any), _ func(func([]byte) []byte)) {
		for i, p := range rows {
			emit(p.row(ids[i]))
		}
	})
}

// row is the policy as the list spells it.
func (p Policy) row(tenantID int64) map[string]any {
	row := map[string]any{
		"id": p.ID, "tenantId": tenantID, "tenantDomain": p.TenantDomain, "name": p.Name, "quotaType": p.Limit.QuotaType, "defaultLimit": p.Limit.row(),
	}
	switch p.Kind {
	case SubscriptionPolicy:
		row["graphQLMaxComplexity"], row["graphQLMaxDepth"] = p.GraphQLMaxComplexity, p.GraphQLMaxDepth
		row["rateLimitCount"], row["stopOnQuotaReach"] = p.RateLimitCount, !p.ContinueOnQuotaReach
		row["rateLimitTimeUnit"] = nil
		if p.RateLimitTimeUnit != "" {
			row["rateLimitTimeUnit"] = p.RateLimitTimeUnit
		}
	case APIPolicy:
		groups := []map[string]any{}
		for _, g := range p.ConditionGroups {
			groups = append(groups, map[string]any{
				"policyId": p.ID, "conditionGroupId": g.ID, "quotaType": or(g.Limit.QuotaType, "requestCount"), "defaultLimit": g.Limit.row(), "condition": g.Conditions,
			})
		}
		row["applicableLevel"], row["conditionGroups"] = p.ApplicableLevel, groups
	}
	return row
}

func (l Limit) row() map[string]any {
	kind := or(l.QuotaType, "requestCount")
	row := map[string]any{"quotaType": kind, "requestCount": nil, "bandwidth": nil, "eventCount": nil}
	unit, n := or(l.TimeUnit, "min"), max(l.UnitTime, 1)
	switch kind {
	case "bandwidthVolume":
		row["bandwidth"] = map[string]any{"timeUnit": unit, "unitTime": n, "dataAmount": l.Count, "dataUnit": or(l.DataUnit, "KB")}
	case "eventCount":
		row["eventCount"] = map[string]any{"timeUnit": unit, "unitTime": n, "eventCount": l.Count}
	default:
		row["requestCount"] = map[string]any{"timeUnit": unit, "unitTime": n, "requestCount": l.Count}
	}
	return row
}

func (e *Emulator) serveGlobalPolicies(w http.ResponseWriter, r *http.Request) {
	if e.profile.v32 {
		http.NotFound(w, r)
		return
	}
	rows := e.Rows().GlobalPolicies
	name := r.URL.Query().Get("policyName")
	rows = slices.DeleteFunc(rows, func(g GlobalPolicy) bool { return !match(name, g.Name) })
	e.stream(w, len(rows), func(emit func(any), _ func(func([]byte) []byte)) {
		for _, g := range rows {
			emit(map[string]any{
				"id": g.ID, "tenantId": superTenantID, "tenantDomain": SuperTenant, "name": g.Name, "quotaType": nil,
				"keyTemplate": g.KeyTemplate, "siddhiQuery": g.SiddhiQuery,
			})
		}
	})
}

func (e *Emulator) serveScopes(w http.ResponseWriter, r *http.Request, tenant string) {
	key := r.URL.Query().Get("scopeKey")
	rows := slices.DeleteFunc(e.Rows().Scopes, func(s Scope) bool { return !visible(tenant, s.Tenant) || !match(key, s.Name) })
	e.stream(w, len(rows), func(emit func(any), _ func(func([]byte) []byte)) {
		for _, s := range rows {
			emit(s)
		}
	})
}

func (e *Emulator) serveKeyManagers(w http.ResponseWriter, tenant string) {
	out := []map[string]any{}
	for _, k := range e.Rows().KeyManagers {
		if !visible(tenant, k.Tenant) && k.Tenant != "WSO2-ALL-TENANTS" {
			continue
		}
		row := map[string]any{"name": k.Name, "type": k.Type, "enabled": !k.Disabled}
		if e.profile.keyManagerDTO {
			row["organization"], row["additionalProperties"] = k.Tenant, k.Configuration
		} else {
			row["tenantDomain"], row["configuration"] = k.Tenant, k.Configuration
		}
		if e.profile.tokenType {
			row["tokenType"] = k.TokenType
		}
		if e.profile.uuids {
			row["uuid"] = k.UUID
		}
		out = append(out, row)
	}
	writeJSON(w, http.StatusOK, out)
}

func (e *Emulator) serveKeyTemplates(w http.ResponseWriter) {
	out := []string{}
	for _, g := range e.Rows().GlobalPolicies {
		out = append(out, g.KeyTemplate)
	}
	writeJSON(w, http.StatusOK, out)
}

func blockBody(conditions []DenyCondition) map[string]any {
	texts := map[string][]string{DenyAPI: {}, DenyApplication: {}, DenyUser: {}, DenySubscription: {}}
	ips := []map[string]any{}
	text := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	for _, d := range conditions {
		if d.Disabled {
			continue
		}
		if list, ok := texts[d.Type]; ok {
			texts[d.Type] = append(list, d.conditionValue)
			continue
		}
		ips = append(ips, map[string]any{
			"type": d.Type, "fixedIp": text(d.FixedIP), "startingIp": text(d.StartingIP), "endingIp": text(d.EndingIP),
			"invert": d.Invert, "tenantDomain": d.Tenant, "id": d.ID,
		})
	}
	return map[string]any{
		"api": texts[DenyAPI], "application": texts[DenyApplication], "user": texts[DenyUser], "subscription": texts[DenySubscription],
		"custom": []string{}, "ip": ips,
	}
}

func (e *Emulator) serveBlock(w http.ResponseWriter) {
	writeJSON(w, http.StatusOK, blockBody(e.Rows().Deny))
}

func (e *Emulator) serveRevoked(w http.ResponseWriter) {
	rows := e.Rows()
	if !e.profile.revokedObject {
		writeJSON(w, http.StatusOK, rows.Revoked)
		return
	}
	subjects, clients := []map[string]any{}, []map[string]any{}
	for _, m := range rows.MassRevocations {
		if m.ConsumerKey != "" {
			clients = append(clients, map[string]any{"consumerKey": m.ConsumerKey, "revocationTime": m.RevocationTime, "organization": m.Organization})
			continue
		}
		subjects = append(subjects, map[string]any{
			"entityId": m.EntityID, "entityType": m.EntityType, "revocationTime": m.RevocationTime, "organization": m.Organization,
		})
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"revokedJWTList": rows.Revoked, "revokedJWTSubjectEntityList": subjects, "revokedJWTConsumerKeyList": clients,
	})
}

func (e *Emulator) serveDeployed(w http.ResponseWriter, r *http.Request, tenant string) {
	var body []Acknowledgement
	if !readJSON(w, r, &body) {
		return
	}
	e.mu.Lock()
	var err error
	for _, a := range body {
		api := e.m.apis[a.APIID]
		switch {
		case api == nil || !visible(tenant, api.Organization) || a.RevisionID < 1 || a.RevisionID > api.RevisionID:
			err = fmt.Errorf("revision %d of API %s is not known", a.RevisionID, a.APIID)
		case len(a.EnvInfo) == 0:
			err = fmt.Errorf("API %s: no environment is named", a.APIID)
		}
		for _, env := range a.EnvInfo {
			if env.VHost == "" {
				err = fmt.Errorf("API %s: environment %s has no vhost", a.APIID, env.Name)
			}
		}
	}
	e.mu.Unlock()
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	e.record.mu.Lock()
	for _, a := range body {
		e.record.deployed = keep(e.record.deployed, a)
	}
	e.record.mu.Unlock()
	w.WriteHeader(http.StatusOK)
}

func (e *Emulator) serveNotice(w http.ResponseWriter, r *http.Request) {
	var n GatewayNotice
	if !readJSON(w, r, &n) {
		return
	}
	if n.PayloadType != "REGISTER" && n.PayloadType != "HEARTBEAT" {
		writeError(w, http.StatusBadRequest, fmt.Sprintf("payloadType %q is not known", n.PayloadType))
		return
	}
	if n.GatewayID == "" {
		n.GatewayID = uuid.NewString()
	}
	e.record.mu.Lock()
	_, known := e.record.gateways[n.GatewayID]
	status := "acknowledged"
	if n.PayloadType == "REGISTER" && !known {
		status = "registered"
		if e.record.gateways == nil {
			e.record.gateways = map[string]GatewayNotice{}
		}
		e.record.gateways[n.GatewayID] = n
	}
	if n.PayloadType == "HEARTBEAT" && !known {
		status = "re-register" // as the first version answered
	}
	e.record.notices = keep(e.record.notices, n)
	e.record.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]string{"status": status, "gatewayId": n.GatewayID})
}

func (e *Emulator) serveStatus(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Count int                `json:"count"`
		List  []DeploymentStatus `json:"list"`
	}
	if !readJSON(w, r, &body) {
		return
	}
	if len(body.List) == 0 {
		writeError(w, http.StatusBadRequest, "the list is empty")
		return
	}
	e.record.mu.Lock()
	for _, s := range body.List {
		_, known := e.record.gateways[s.GatewayID]
		if known && s.APIID != "" && s.TenantDomain != "" && s.DeploymentStatus != "" && s.Action != "" && s.TimeStamp != 0 {
			e.record.status = keep(e.record.status, s)
		}
	}
	e.record.mu.Unlock()
	writeJSON(w, http.StatusOK, map[string]string{"status": "RECEIVED"})
}

// serveRegistration is the dynamic client registration of the public REST APIs.
func (e *Emulator) serveRegistration(w http.ResponseWriter, r *http.Request) {
	if _, ok := e.authenticate(r); !ok {
		unauthenticated(w)
		return
	}
	var body struct {
		ClientName  string `json:"clientName"`
		CallbackURL string `json:"callbackUrl"`
		GrantType   string `json:"grantType"`
	}
	if !readJSON(w, r, &body) {
		return
	}
	id, secret := uuid.NewString(), uuid.NewString()
	e.resident.AddClient(id, secret)
	writeJSON(w, http.StatusOK, map[string]any{
		"clientId": id, "clientSecret": secret, "clientName": body.ClientName, "callBackURL": body.CallbackURL, "isSaasApplication": true,
		"appOwner": e.user, "jsonString": `{"grant_types":` + quote(body.GrantType) + `}`,
	})
}

// compressed sends the body through gzip.
type compressed struct {
	http.ResponseWriter
	z *gzip.Writer
}

func (c *compressed) Write(b []byte) (int, error) {
	c.Header().Del("Content-Length")
	return c.z.Write(b)
}

// errStopped is what waits give when the emulator ends first.
var errStopped = errors.New("the emulator was closed")

// WaitGateway waits until a gateway has registered, or for versions without registration has asked for its APIs.
func (e *Emulator) WaitGateway(timeout time.Duration) error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		r := e.Recorded()
		if len(r.Notices) > 0 || !e.profile.notifyGateway && r.Requests["apis"] > 0 {
			return nil
		}
		select {
		case <-deadline.C:
			return fmt.Errorf("no gateway came within %s", timeout)
		case <-e.stopped:
			return errStopped
		case <-poll.C:
		}
	}
}
