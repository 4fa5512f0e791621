package emulator

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatehouse/integration/emulator/broker"
	"gatehouse/integration/emulator/issuer"
)

//go:embed page.html
var page []byte

// control serves /emulator/: the page and the endpoints behind its buttons. It asks for no credentials, because the world
// is a toy on loopback, but refuses changes that another site's page sends through a browser.
func (e *Emulator) control(mux *http.ServeMux) {
	mux.HandleFunc("GET /emulator/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'")
		_, _ = w.Write(page) // the browser went away: nothing to tell it
	})
	mux.Handle("GET /emulator", http.RedirectHandler("/emulator/", http.StatusMovedPermanently))
	for pattern, f := range map[string]func(url.Values, *http.Request) (any, error){
		"GET /emulator/counters": func(url.Values, *http.Request) (any, error) { return e.Counters(), nil },
		"GET /emulator/state":    func(url.Values, *http.Request) (any, error) { return e.state(), nil },
		"GET /emulator/deny":     func(url.Values, *http.Request) (any, error) { return e.state().Deny, nil },
		"PUT /emulator/deny": func(q url.Values, _ *http.Request) (any, error) {
			d, err := e.Deny(denyOf(q))
			return denyView(d), err
		},
		"DELETE /emulator/deny": e.controlAllow,
		"POST /emulator/token":  e.controlToken,
		"POST /emulator/revoke": e.controlRevoke,
		"PUT /emulator/custom-policies": func(q url.Values, _ *http.Request) (any, error) {
			limit, err := number(q, "limit", 0)
			if err != nil {
				return nil, err
			}
			window, err := duration(q, "window", time.Minute)
			if err != nil {
				return nil, err
			}
			g, err := e.SetCustomPolicy(q.Get("template"), limit, window)
			return customView(g), err
		},
		"DELETE /emulator/custom-policies": func(q url.Values, _ *http.Request) (any, error) {
			return done, e.RemoveCustomPolicy(q.Get("template"))
		},
		"POST /emulator/subscriptions": e.controlSubscribe,
		"PUT /emulator/subscriptions/{id}": func(q url.Values, r *http.Request) (any, error) {
			id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("subscription id %q is no number", r.PathValue("id"))
			}
			return result(e.UpdateSubscription(id, q.Get("state"), q.Get("policy")))
		},
		"DELETE /emulator/subscriptions/{id}": func(_ url.Values, r *http.Request) (any, error) {
			id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("subscription id %q is no number", r.PathValue("id"))
			}
			return done, e.Unsubscribe(id)
		},
		"PUT /emulator/apis/{name}": func(q url.Values, r *http.Request) (any, error) {
			a, err := e.findAPI(r.PathValue("name"))
			if err != nil {
				return nil, err
			}
			return done, e.SetLifecycle(a.UUID, strings.ToUpper(q.Get("status")))
		},
		"POST /emulator/keys": func(q url.Values, _ *http.Request) (any, error) {
			return done, e.issuer.Rotate(q.Get("keep") != "false")
		},
		"PUT /emulator/hub":       e.controlHub,
		"POST /emulator/messages": e.controlMessage,
		"PUT /emulator/faults":    e.controlFault,
		"DELETE /emulator/faults": func(url.Values, *http.Request) (any, error) {
			e.ClearFaults()
			return done, nil
		},
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if origin := r.Header.Get("Origin"); r.Method != http.MethodGet && origin != "" {
				if u, err := url.Parse(origin); err != nil || u.Host != r.Host {
					controlError(w, http.StatusForbidden, fmt.Errorf("a page of %s may not steer this world", origin))
					return
				}
			}
			r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
			if err := r.ParseForm(); err != nil {
				controlError(w, http.StatusBadRequest, err)
				return
			}
			out, err := f(r.Form, r)
			if err != nil {
				status := http.StatusBadRequest
				if strings.HasPrefix(err.Error(), "no ") {
					status = http.StatusNotFound
				}
				controlError(w, status, err)
				return
			}
			writeJSON(w, http.StatusOK, out)
		})
	}
}

var done = map[string]string{"status": "done"}

func result[T any](v T, err error) (any, error) { return v, err }

func controlError(w http.ResponseWriter, status int, err error) {
	code := map[int]string{400: "bad_request", 403: "forbidden", 404: "not_found"}[status]
	writeJSON(w, status, map[string]any{"error": map[string]string{"code": code, "message": err.Error()}})
}

func number(q url.Values, name string, fallback int) (int, error) {
	text := q.Get(name)
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%s: a number of at least 0 is needed", name, text)
	}
	return n, nil
}

func duration(q url.Values, name string, fallback time.Duration) (time.Duration, error) {
	text := q.Get(name)
	if text == "" {
		return fallback, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%s=%s: a duration such as 60s is needed", name, text)
	}
	return d, nil
}

func denyOf(q url.Values) DenyCondition {
	return DenyCondition{Type: q.Get("type"), Value: q.Get("value"), Invert: q.Get("invert") == "true", Tenant: q.Get("tenant")}
}

func (e *Emulator) controlAllow(q url.Values, _ *http.Request) (any, error) {
	if text := q.Get("id"); text != "" {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("deny policy id %q is no number", text)
		}
		return done, e.Allow(id)
	}
	want := denyOf(q)
	if err := want.complete(); err != nil {
		return nil, err
	}
	for _, d := range e.Rows().Deny {
		if d.Type == want.Type && d.Value == want.Value && d.Tenant == want.Tenant {
			return done, e.Allow(d.ID)
		}
	}
	return nil, fmt.Errorf("no deny policy has the type %s and the value %s", want.Type, want.Value)
}

func (e *Emulator) controlToken(q url.Values, _ *http.Request) (any, error) {
	if q.Get("client") == "" {
		return nil, errors.New("client is missing: the consumer key that the token is issued to")
	}
	life, err := duration(q, "life", 0)
	if err != nil {
		return nil, err
	}
	i := e.issuer
	if q.Get("key_manager") == e.profile.residentName {
		i = e.resident
	}
	t, err := i.Mint(issuer.Token{ClientID: q.Get("client"), Subject: q.Get("user"), Scope: q.Get("scope"), Life: life, Opaque: q.Get("opaque") == "true"})
	if err != nil {
		return nil, err
	}
	return map[string]any{"access_token": t.Token, "token_type": "Bearer", "expires_in": int(time.Until(t.ExpiresAt).Round(time.Second).Seconds()), "jti": t.ID}, nil
}

func (e *Emulator) controlRevoke(q url.Values, r *http.Request) (any, error) {
	token := q.Get("token")
	if token == "" { // so that a header file serves for the revocation of its own token
		token, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	if token == "" {
		return nil, errors.New("token is missing: a whole token, or the jti of one")
	}
	kind, id, expires := "JWT", token, time.Now().Add(time.Hour)
	if strings.Count(token, ".") == 2 {
		var err error
		if id, expires, err = issuer.Identify(token); err != nil {
			return nil, err
		}
		if id == "" {
			return nil, errors.New("the token has no jti, by which it could be revoked")
		}
	} else if q.Get("opaque") == "true" {
		kind = "Default"
	}
	e.issuer.Revoke(token)
	e.resident.Revoke(token)
	return done, e.Revoke(id, expires, kind)
}

func (e *Emulator) findAPI(text string) (API, error) {
	for _, a := range e.Rows().APIs {
		if a.UUID == text || a.Name == text || a.Context == text {
			return a, nil
		}
	}
	return API{}, fmt.Errorf("no API has the name, context or UUID %q", text)
}

func (e *Emulator) controlSubscribe(q url.Values, _ *http.Request) (any, error) {
	api, err := e.findAPI(q.Get("api"))
	if err != nil {
		return nil, err
	}
	for _, a := range e.Rows().Applications {
		if a.Name == q.Get("application") || strconv.FormatInt(a.ID, 10) == q.Get("application") {
			return result(e.Subscribe(Subscription{APIUUID: api.UUID, AppID: a.ID, PolicyID: q.Get("policy"), SubscriptionState: q.Get("state")}))
		}
	}
	return nil, fmt.Errorf("no application has the name or id %q", q.Get("application"))
}

func (e *Emulator) controlHub(q url.Values, _ *http.Request) (any, error) {
	var k broker.Knobs
	var err error
	for name, into := range map[string]*int{"swap": &k.Swap, "duplicate": &k.Duplicate, "drop": &k.Drop} {
		if *into, err = number(q, name, 0); err != nil {
			return nil, err
		}
	}
	if k.Delay, err = duration(q, "delay", 0); err != nil {
		return nil, err
	}
	if enc := q.Get("encoding"); enc != "" {
		topics := q["topic"]
		if topics == nil {
			topics = broker.Topics()
		}
		for _, t := range topics {
			if err := e.hub.SetEncoding(t, broker.Encoding(enc)); err != nil {
				return nil, err
			}
		}
	}
	e.hub.SetKnobs(k)
	return done, nil
}

// controlMessage publishes a body as it is.
func (e *Emulator) controlMessage(q url.Values, _ *http.Request) (any, error) {
	topic := q.Get("topic")
	if !slices.Contains(broker.Topics(), topic) {
		return nil, fmt.Errorf("topic %q is not known: use one of %s", topic, strings.Join(broker.Topics(), ", "))
	}
	e.hub.PublishRaw(broker.Message{
		Topic: topic, ContentType: or(q.Get("content_type"), "text/plain"), ContentEncoding: "UTF-8", TimestampMillis: time.Now().UnixMilli(), Body: []byte(q.Get("body")),
	})
	return done, nil
}

func (e *Emulator) controlFault(q url.Values, _ *http.Request) (any, error) {
	f := Fault{Path: q.Get("path"), Kind: FaultKind(q.Get("kind"))}
	kinds := []FaultKind{FaultDelay, FaultStale, FaultStatus, FaultReset, FaultTruncate, FaultHang, FaultEmpty, FaultGarbage}
	if !slices.Contains(kinds, f.Kind) {
		return nil, fmt.Errorf("kind %q is not known: use one of %v", f.Kind, kinds)
	}
	var err error
	if f.Times, err = number(q, "times", 0); err != nil {
		return nil, err
	}
	if f.Status, err = number(q, "status", 500); err != nil {
		return nil, err
	}
	if f.Delay, err = duration(q, "delay", time.Second); err != nil {
		return nil, err
	}
	e.AddFault(f)
	return done, nil
}

// Counters is what the world has counted.
type Counters struct {
	Backend struct {
		Requests int            `json:"requests"`
		ByPath   map[string]int `json:"by_path"`
	} `json:"backend"`
	TrafficManager struct {
		TrafficCounts
		Frames          int `json:"frames"`
		BadFrames       int `json:"bad_frames"`
		Logins          int `json:"logins"`
		OpenConnections int `json:"open_connections"`
	} `json:"traffic_manager"`
	EventHub struct {
		Connected bool           `json:"connected"`
		Published map[string]int `json:"published"`
		Lost      int            `json:"lost"`
	} `json:"event_hub"`
	DataService struct {
		Requests map[string]int `json:"requests"`
		Gateways []string       `json:"gateways"`
	} `json:"data_service"`
	KeyManager struct {
		JWKSRequests int `json:"jwks_requests"`
	} `json:"key_manager"`
}

// Counters returns the counts so far.
func (e *Emulator) Counters() Counters {
	var c Counters
	c.Backend.Requests, c.Backend.ByPath = e.backend.Requests(), e.backend.ByPath()
	c.TrafficManager.TrafficCounts = e.counter.counts()
	s := e.receiver.Stats()
	c.TrafficManager.Frames, c.TrafficManager.BadFrames = s.Frames, s.BadFrames
	c.TrafficManager.Logins, c.TrafficManager.OpenConnections = s.Logins, s.OpenConnections
	h := e.hub.Stats()
	c.EventHub.Connected, c.EventHub.Published, c.EventHub.Lost = h.Connected, h.Published, h.Lost
	c.DataService.Requests = e.Recorded().Requests
	e.record.mu.Lock()
	c.DataService.Gateways = slices.Sorted(maps.Keys(e.record.gateways))
	e.record.mu.Unlock()
	c.KeyManager.JWKSRequests = e.issuer.JWKSRequests()
	return c
}

type stateView struct {
	Profile       string             `json:"profile"`
	APIs          []map[string]any   `json:"apis"`
	Applications  []Application      `json:"applications"`
	KeyMappings   []KeyMapping       `json:"key_mappings"`
	Subscriptions []subscriptionView `json:"subscriptions"`
	Deny          []map[string]any   `json:"deny"`
	Custom        []map[string]any   `json:"custom_policies"`
	Revoked       []RevokedToken     `json:"revoked"`
	KeyManagers   []string           `json:"key_managers"`
}

type subscriptionView struct {
	Subscription
	Application string `json:"application"`
	API         string `json:"api"`
}

func denyView(d DenyCondition) map[string]any {
	return map[string]any{"id": d.ID, "type": d.Type, "value": d.Value, "invert": d.Invert, "tenant": d.Tenant, "enabled": !d.Disabled}
}

func customView(g GlobalPolicy) map[string]any {
	return map[string]any{"id": g.ID, "template": g.KeyTemplate, "limit": g.Limit, "window": g.Window.String()}
}

func (e *Emulator) state() stateView {
	r := e.Rows()
	v := stateView{
		Profile: e.profile.name, APIs: []map[string]any{}, Applications: r.Applications, KeyMappings: r.KeyMappings,
		Subscriptions: []subscriptionView{}, Deny: []map[string]any{}, Custom: []map[string]any{}, Revoked: r.Revoked, KeyManagers: []string{},
	}
	apis, apps := map[string]string{}, map[int64]string{}
	for _, a := range r.APIs {
		apis[a.UUID] = a.Name + " " + a.Version
		v.APIs = append(v.APIs, map[string]any{"uuid": a.UUID, "name": a.Name, "version": a.Version, "context": a.Context, "status": a.Status, "environments": a.Environments})
	}
	for _, a := range r.Applications {
		apps[a.ID] = a.Name
	}
	for _, s := range r.Subscriptions {
		v.Subscriptions = append(v.Subscriptions, subscriptionView{s, apps[s.AppID], apis[s.APIUUID]})
	}
	for _, d := range r.Deny {
		v.Deny = append(v.Deny, denyView(d))
	}
	for _, g := range r.GlobalPolicies {
		v.Custom = append(v.Custom, customView(g))
	}
	for _, k := range r.KeyManagers {
		v.KeyManagers = append(v.KeyManagers, k.Name)
	}
	return v
}
