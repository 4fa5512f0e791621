package pipeline

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"

	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// Step names a step of the pipeline.
type Step uint8

// The steps in their order.
const (
	StepLimits Step = iota
	StepRoute
	StepCORS
	StepLifecycle
	StepDeny
	StepAuthenticate
	StepSubscription
	StepEndpoint
	StepScopes
	StepDenyIdentity
	StepThrottle
	StepBackendJWT
	StepUpstream
	steps
)

var stepNames = [steps]string{"limits", "route", "cors", "lifecycle", "deny", "authenticate", "subscription", "endpoint", "scopes", "deny_identity", "throttle", "backend_jwt", "upstream"}

// String returns the name that traces, logs and metrics use.
func (s Step) String() string {
	if s < steps {
		return stepNames[s]
	}
	return "unknown"
}

// Result is how a step ended. The zero value means that it did not run.
type Result uint8

// Results of a step.
const (
	NotRun Result = iota
	OK
	Skipped // the step does not apply to this request
	Refused
)

var resultNames = [...]string{"", "ok", "skipped", "refused"}

// String returns the name that traces use.
func (r Result) String() string { return resultNames[r] }

// Trace is what one request met on its way. It is filled without allocation: it keeps pointers to the rows that the
// stages used, and is turned into text only when somebody asks (View).
type Trace struct {
	RequestID string
	// At is the arrival in milliseconds since the epoch.
	At       int64
	Method   string
	Host     string
	Path     string // without the query
	ClientIP netip.Addr

	Route  *Route
	Token  *keymanager.Token
	Cached bool // the token was verified before
	// Facts are the rows that the subscription step used; KeyType chose the endpoint; User carries its tenant.
	Facts   subscription.Facts
	KeyType subscription.KeyType
	User    string
	// Embedded is the entry of a self-contained token that stood in for Facts.
	Embedded *keymanager.EmbeddedSubscription
	Deny     *throttle.DenyCondition
	Auth     *keymanager.Refusal
	Verdict  throttle.Verdict

	// Code and Status are those of a refusal, or the status that the backend gave. Reason is what ended the request,
	// for operators.
	Code    int
	Status  int
	Allowed bool
	Reason  string
	Backend string // the URL's host that answered

	results [steps]Result
}

// maxText bounds the texts of a detached trace, in bytes.
const maxText = 512

// Detached returns a copy that keeps nothing of the request's memory: its texts are copied, long ones cut.
func (t *Trace) Detached() Trace {
	d := *t
	for _, s := range []*string{&d.Method, &d.Host, &d.Path, &d.Reason} {
		if len(*s) > maxText {
			*s = (*s)[:maxText] + "…"
		} else {
			*s = strings.Clone(*s)
		}
	}
	return d
}

// Note sets the result of a step.
func (t *Trace) Note(s Step, r Result) { t.results[s] = r }

// Result returns how a step ended.
func (t *Trace) Result(s Step) Result { return t.results[s] }

// RefusedAt returns the step that refused the request, or false.
func (t *Trace) RefusedAt() (Step, bool) {
	for s, r := range t.results {
		if r == Refused {
			return Step(s), true
		}
	}
	return 0, false
}

// TraceView is a trace as the admin API shows it. It is made to be encoded as JSON.
type TraceView struct {
	RequestID string     `json:"request_id"`
	At        string     `json:"at"`
	Method    string     `json:"method"`
	Host      string     `json:"host,omitempty"`
	Path      string     `json:"path"`
	ClientIP  string     `json:"client_ip,omitempty"`
	Allowed   bool       `json:"allowed"`
	Status    int        `json:"status"`
	Code      int        `json:"code,omitempty"`
	Steps     []StepView `json:"steps"`
}

// StepView is one step of a TraceView.
type StepView struct {
	Step        string      `json:"step"`
	Result      string      `json:"result"`
	API         string      `json:"api,omitempty"`
	Version     string      `json:"version,omitempty"`
	Resource    string      `json:"resource,omitempty"`
	Kind        string      `json:"kind,omitempty"`
	KeyManager  string      `json:"key_manager,omitempty"`
	KID         string      `json:"kid,omitempty"`
	ConsumerKey string      `json:"consumer_key,omitempty"`
	User        string      `json:"user,omitempty"`
	Cached      *bool       `json:"cached,omitempty"`
	Check       string      `json:"check,omitempty"`
	Application string      `json:"application,omitempty"`
	Policy      string      `json:"policy,omitempty"`
	State       string      `json:"state,omitempty"`
	KeyType     string      `json:"key_type,omitempty"`
	Level       string      `json:"level,omitempty"`
	ThrottleKey string      `json:"throttle_key,omitempty"`
	Condition   string      `json:"condition,omitempty"`
	RetryAt     string      `json:"retry_at,omitempty"`
	Backend     string      `json:"backend,omitempty"`
	Reason      string      `json:"reason,omitempty"`
	Origin      *OriginView `json:"origin,omitempty"`
}

// OriginView is where the data of a step came from.
type OriginView struct {
	Kind string `json:"kind"`
	At   string `json:"at,omitempty"`
	ID   string `json:"id,omitempty"`
}

func origin(kind string, at int64, id string) *OriginView {
	if kind == "" {
		return nil
	}
	v := &OriginView{Kind: kind, ID: id}
	if at != 0 {
		v.At = FormatTime(at)
	}
	return v
}

// View renders the trace.
func (t *Trace) View() TraceView {
	v := TraceView{
		RequestID: t.RequestID, At: FormatTime(t.At), Method: t.Method, Host: t.Host, Path: t.Path,
		Allowed: t.Allowed, Status: t.Status, Code: t.Code, Steps: []StepView{},
	}
	if t.ClientIP.IsValid() {
		v.ClientIP = t.ClientIP.String()
	}
	for s, r := range t.results {
		if r == NotRun {
			continue
		}
		sv := StepView{Step: Step(s).String(), Result: r.String()}
		t.describe(Step(s), &sv)
		if r == Refused {
			sv.Reason = t.Reason
		}
		v.Steps = append(v.Steps, sv)
	}
	return v
}

// describe adds what a step used.
func (t *Trace) describe(s Step, v *StepView) {
	switch s {
	case StepRoute:
		if t.Route == nil {
			return
		}
		a := t.Route.API
		if t.results[s] == OK {
			v.Result = "matched"
		}
		v.API, v.Version = a.Name, a.Version
		if t.Route.Operation != nil {
			v.Resource = t.Route.Operation.Template
		}
		v.Origin = origin(a.Origin.Kind, a.Origin.At, a.Origin.ID)
	case StepLifecycle:
		if t.Route != nil {
			v.State = t.Route.API.Lifecycle
		}
	case StepDeny, StepDenyIdentity:
		if d := t.Deny; d != nil && t.results[s] == Refused {
			v.Kind = string(d.Kind)
			v.Condition = d.Value
			if d.From.IsValid() {
				v.Condition = d.From.String()
				if d.To.IsValid() {
					v.Condition += "-" + d.To.String()
				}
			}
			v.Origin = origin(d.Origin.Kind, d.Origin.At, d.Origin.ID)
		}
	case StepAuthenticate:
		if k := t.Token; k != nil {
			cached := t.Cached
			v.Kind, v.KeyManager, v.KID, v.ConsumerKey, v.Cached = "jwt", k.KeyManager, k.KeyID, k.ConsumerKey, &cached
			if k.Kind != "" {
				v.Kind = string(k.Kind)
			}
			v.User = t.User
			v.Origin = origin(k.Origin.Kind, k.Origin.At, k.Origin.ID)
		}
		if a := t.Auth; a != nil {
			v.Check, v.KeyManager = string(a.Check), a.KeyManager
			v.Origin = origin(a.Origin.Kind, a.Origin.At, a.Origin.ID)
		}
	case StepSubscription:
		if e := t.Embedded; e != nil {
			v.Kind, v.Policy = "self_contained", e.Tier
		}
		if a := t.Facts.Application; a != nil {
			v.Application = a.Name
			v.Origin = origin(a.Origin.Kind, a.Origin.At, a.Origin.ID)
		}
		if b := t.Facts.Subscription; b != nil {
			v.Policy, v.State = b.Policy, string(b.State)
			v.Origin = origin(b.Origin.Kind, b.Origin.At, b.Origin.ID)
		}
		v.KeyType = string(t.KeyType)
	case StepEndpoint:
		v.KeyType = string(t.KeyType)
	case StepThrottle:
		if d := t.Verdict; d.Level != throttle.LevelNone {
			v.Level, v.ThrottleKey, v.Condition = d.Level.String(), d.Key, d.Condition
			if d.RetryAt != 0 {
				v.RetryAt = FormatTime(d.RetryAt)
			}
			v.Origin = origin(d.Origin.Kind, d.Origin.At, d.Origin.ID)
		}
	case StepUpstream:
		v.Backend = t.Backend
	}
}

func claimText(v any) string {
	switch c := v.(type) {
	case nil:
		return ""
	case string:
		return c
	case bool:
		return strconv.FormatBool(c)
	case float64:
		return strconv.FormatFloat(c, 'f', -1, 64)
	case json.Number:
		return c.String()
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}
