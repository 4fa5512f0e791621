package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// world stands for the domains: what it answers can be set, and it notes what it was asked.
type world struct {
	token     *keymanager.Token
	refusal   error
	facts     subscription.Facts
	later     *subscription.Facts // what Fetch brings
	fetchErr  error
	fetched   []subscription.Reason
	anonymous *throttle.DenyCondition
	identity  *throttle.DenyCondition
	verdict   throttle.Verdict

	asked     []string
	published []throttle.Request
	offered   keymanager.Credential
}

func (w *world) Authenticate(_ context.Context, c keymanager.Credential) (*keymanager.Token, bool, error) {
	w.asked, w.offered = append(w.asked, "authenticate"), c
	if w.refusal != nil {
		return nil, false, w.refusal
	}
	return w.token, true, nil
}

func (w *world) Resolve(string, string, subscription.APIRef) subscription.Facts {
	w.asked = append(w.asked, "resolve")
	return w.facts
}

func (w *world) ResolveApplication(uuid string, id int64, _ subscription.APIRef) subscription.Facts {
	w.asked = append(w.asked, "resolve application")
	f := w.facts
	f.Mapping = nil
	if f.Application != nil && f.Application.ID != id {
		f.Application, f.Subscription = nil, nil
	}
	return f
}

func (w *world) Fetch(ctx context.Context, _, _ string, _ subscription.APIRef, missing subscription.Reason) (bool, error) {
	w.fetched = append(w.fetched, missing)
	if w.fetchErr != nil {
		return false, w.fetchErr
	}
	if w.later == nil {
		return false, nil
	}
	w.facts, w.later = *w.later, nil
	return true, nil
}

func (w *world) FetchApplication(ctx context.Context, _ string, _ int64, api subscription.APIRef, missing subscription.Reason) (bool, error) {
	return w.Fetch(ctx, "", "", api, missing)
}

func (w *world) DenyAnonymous(*throttle.Request) *throttle.DenyCondition {
	w.asked = append(w.asked, "deny")
	return w.anonymous
}

func (w *world) DenyIdentified(*throttle.Request) *throttle.DenyCondition {
	w.asked = append(w.asked, "deny identity")
	return w.identity
}

func (w *world) Check(*throttle.Request, int64) throttle.Verdict {
	w.asked = append(w.asked, "throttle")
	return w.verdict
}

func (w *world) Publish(r *throttle.Request, _ int64) { w.published = append(w.published, *r) }

// fields is a header.
type fields map[string][]string

func (f fields) Values(n string) []string { return f[n] }
func (f fields) Del(n string)             { delete(f, n) }
func (f fields) Visit(v throttle.AttributeVisitor) {
	for n, lines := range f {
		for _, l := range lines {
			v.VisitAttribute(n, l)
		}
	}
}

// listed is a visitor that notes what it is shown.
type listed []string

func (l *listed) VisitAttribute(n, v string) { *l = append(*l, n+"="+v) }

func row(state subscription.State) subscription.Facts {
	return subscription.Facts{
		API: &subscription.API{ID: 1, Context: "/shop/1"}, Mapping: &subscription.KeyMapping{KeyType: subscription.Production},
		Application:  &subscription.Application{ID: 7, Name: "App", Owner: "alice", Policy: "50PerMin", Tenant: "carbon.super"},
		Subscription: &subscription.Subscription{ID: 9, Policy: "Gold", State: state},
	}
}

func sandbox(f subscription.Facts) subscription.Facts {
	f.Mapping = &subscription.KeyMapping{KeyType: subscription.Sandbox}
	return f
}

const now = 1_764_000_000_000

func TestDecisions(t *testing.T) {
	bearer := fields{"Authorization": {"Bearer good"}}
	type setup struct {
		w       world
		api     definition.API
		op      definition.Operation
		domains Domains
		header  fields
	}
	for _, c := range []struct {
		name   string
		change func(s *setup)
		code   int // 0: admitted
		step   pipeline.Step
		reason string // part of what an operator is told
		client string // part of the challenge or the description
	}{
		{name: "everything in order", change: func(s *setup) {}},
		{name: "scheme in other letters", change: func(s *setup) { s.header = fields{"Authorization": {"bEARER good"}} }},
		{name: "blocked API is refused before anything is asked", change: func(s *setup) {
			s.api.Lifecycle, s.w.anonymous = "BLOCKED", &throttle.DenyCondition{Kind: throttle.DenyIP}
		}, code: 700700, step: pipeline.StepLifecycle},
		{name: "denied address is refused before the credential is looked at", change: func(s *setup) {
			s.w.anonymous = &throttle.DenyCondition{Kind: throttle.DenyIP}
			s.header = nil
		}, code: 900805, step: pipeline.StepDeny, reason: "IP", client: "accessing"},
		{name: "no credential", change: func(s *setup) { s.header = nil }, code: 900902, step: pipeline.StepAuthenticate, reason: "Authorization", client: pipeline.ChallengeOnly},
		{name: "empty credential", change: func(s *setup) { s.header = fields{"Authorization": {""}} }, code: 900902, step: pipeline.StepAuthenticate},
		{name: "empty token", change: func(s *setup) { s.header = fields{"Authorization": {"Bearer "}} }, code: 900901, step: pipeline.StepAuthenticate, client: "empty"},
		{name: "two credentials", change: func(s *setup) { s.header = fields{"Authorization": {"Bearer good", "Bearer bad"}} }, code: 900901, step: pipeline.StepAuthenticate, client: "more than one"},
		{name: "another scheme", change: func(s *setup) { s.header = fields{"Authorization": {"Digest x"}} }, code: 900917, step: pipeline.StepAuthenticate, client: `error="invalid_token"`},
		{name: "a scheme that contains bearer", change: func(s *setup) { s.header = fields{"Authorization": {"Xbearer good"}} }, code: 900917, step: pipeline.StepAuthenticate},
		{name: "a token without a scheme", change: func(s *setup) { s.header = fields{"Authorization": {"good"}} }, code: 900917, step: pipeline.StepAuthenticate},
		{name: "basic", change: func(s *setup) { s.header = fields{"Authorization": {"Basic dTpw"}} }, code: 900917, step: pipeline.StepAuthenticate},
		{name: "the API's own field", change: func(s *setup) { s.header = fields{"X-Token": {"Bearer good"}}; s.api.AuthHeader = "X-Token" }},
		{name: "the usual field, where the API has its own", change: func(s *setup) { s.api.AuthHeader = "X-Token" }, code: 900902, step: pipeline.StepAuthenticate},
		{name: "optional security without a credential", change: func(s *setup) { s.header, s.api.SecurityOptional = nil, true; s.op.Scopes = []string{"read"} }},
		{name: "optional security with a bad credential", change: func(s *setup) {
			s.api.SecurityOptional, s.w.refusal = true, &keymanager.Refusal{Check: keymanager.CheckSignature, Detail: "x"}
		}, code: 900901, step: pipeline.StepAuthenticate},
		{name: "unsecured resource with a bad credential", change: func(s *setup) { s.op.Unsecured, s.w.refusal = true, errors.New("x") }},
		{name: "security that cannot be checked", change: func(s *setup) { s.op.Unavailable = "mutual TLS" }, code: 900901, step: pipeline.StepAuthenticate, reason: "mutual TLS"},
		{name: "bad signature", change: func(s *setup) {
			s.w.refusal = &keymanager.Refusal{Check: keymanager.CheckSignature, Detail: "the signature does not match"}
		}, code: 900901, step: pipeline.StepAuthenticate, reason: "signature", client: `error="invalid_token", error_description="the signature does not match"`},
		{name: "expired, as Microgateway", change: func(s *setup) {
			s.w.refusal = &keymanager.Refusal{Check: keymanager.CheckExpired, Detail: "the token expired at 7"}
		}, code: 900901, step: pipeline.StepAuthenticate, client: "expired"},
		{name: "expired, as the API Manager", change: func(s *setup) {
			s.domains.ExpiredCode = fault.TokenExpired
			s.w.refusal = &keymanager.Refusal{Check: keymanager.CheckExpired, Detail: "the token expired at 7"}
		}, code: 900903, step: pipeline.StepAuthenticate, client: "expired"},
		{name: "key server away", change: func(s *setup) {
			s.w.refusal = &keymanager.Refusal{Check: keymanager.CheckUnverified, Detail: "no key", Temporary: true}
		}, code: 900900, step: pipeline.StepAuthenticate, reason: "no key"},
		{name: "an error without a name", change: func(s *setup) { s.w.refusal = errors.New("boom") }, code: 900900, step: pipeline.StepAuthenticate, reason: "boom"},
		{name: "no mapping", change: func(s *setup) { s.w.facts.Mapping, s.w.facts.Application, s.w.facts.Subscription = nil, nil, nil }, code: 900908, step: pipeline.StepSubscription, reason: `"ck" at key manager "KM"`},
		{name: "no API row", change: func(s *setup) { s.w.facts = subscription.Facts{} }, code: 900908, step: pipeline.StepSubscription, reason: "/shop/1"},
		{name: "no subscription", change: func(s *setup) { s.w.facts.Subscription = nil }, code: 900908, step: pipeline.StepSubscription, reason: "application 7 has no subscription to API 1"},
		{name: "no subscription, yet it arrives in time", change: func(s *setup) {
			f := s.w.facts
			s.w.later = &f
			s.w.facts.Subscription = nil
		}},
		{name: "no subscription, and it cannot be asked for", change: func(s *setup) {
			s.w.facts.Subscription = nil
			s.w.fetchErr = errors.New("control plane away")
		}, code: 900908, step: pipeline.StepSubscription, reason: "not known yet", client: "not known yet"},
		{name: "blocked", change: func(s *setup) { s.w.facts = row(subscription.Blocked) }, code: 900907, step: pipeline.StepSubscription},
		{name: "production blocked, production key", change: func(s *setup) { s.w.facts = row(subscription.ProdOnlyBlocked) }, code: 900907, step: pipeline.StepSubscription},
		{name: "production blocked, sandbox key", change: func(s *setup) { s.w.facts = sandbox(row(subscription.ProdOnlyBlocked)) }},
		{name: "on hold", change: func(s *setup) { s.w.facts = row(subscription.OnHold) }, code: 900909, step: pipeline.StepSubscription},
		{name: "rejected", change: func(s *setup) { s.w.facts = row(subscription.Rejected) }, code: 900909, step: pipeline.StepSubscription},
		{name: "unknown state", change: func(s *setup) { s.w.facts = row("FROZEN") }, code: 900908, step: pipeline.StepSubscription, reason: "FROZEN"},
		{name: "tier update pending", change: func(s *setup) { s.w.facts = row(subscription.TierUpdatePending) }},
		{name: "validation off for the issuer", change: func(s *setup) { s.w.facts, s.w.token.SkipSubscriptions = subscription.Facts{}, true }},
		{name: "validation off for the API", change: func(s *setup) { s.w.facts, s.api.SkipSubscriptions = row(subscription.Blocked), true }},
		{name: "validation off everywhere", change: func(s *setup) { s.w.facts, s.domains.SkipSubscriptions = subscription.Facts{}, true }},
		{
			name: "a stale list", change: func(s *setup) { s.domains.Stale = func() string { return "the list deny_policies is 25h old" } },
			code: 900900, step: pipeline.StepAuthenticate, reason: "deny_policies", client: "out of date",
		},
		{name: "no stale list", change: func(s *setup) { s.domains.Stale = func() string { return "" } }},
		{name: "a stale list and an unsecured resource", change: func(s *setup) {
			s.op.Unsecured, s.domains.Stale = true, func() string { return "the list deny_policies is 25h old" }
		}},
		{name: "validation off everywhere but for the issuer", change: func(s *setup) {
			s.w.facts, s.domains.SkipSubscriptions, s.w.token.ValidateSubscriptions = subscription.Facts{}, true, true
		}, code: 900908, step: pipeline.StepSubscription},
		{name: "validation off for the API, on for the issuer", change: func(s *setup) {
			s.w.facts, s.api.SkipSubscriptions, s.w.token.ValidateSubscriptions = subscription.Facts{}, true, true
		}},
		{name: "self-contained token", change: func(s *setup) {
			s.w.facts = subscription.Facts{}
			s.w.token.Application = &keymanager.EmbeddedApplication{ID: 3, Name: "Embedded", Owner: "carol", Tier: "10PerMin"}
			s.w.token.Subscribed = []keymanager.EmbeddedSubscription{{Name: "Other", Version: "1"}, {Name: "Shop", Version: "1", Tier: "Silver"}}
		}},
		{name: "self-contained token of other APIs", change: func(s *setup) {
			s.w.token.Application = &keymanager.EmbeddedApplication{ID: 3}
			s.w.token.Subscribed = []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "2"}}
		}, code: 900908, step: pipeline.StepSubscription, reason: "own list"},
		{name: "self-contained token with another context", change: func(s *setup) {
			s.w.token.Application = &keymanager.EmbeddedApplication{ID: 3}
			s.w.token.Subscribed = []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1", Context: "/t/example.org/shop/1"}}
		}, code: 900908, step: pipeline.StepSubscription, reason: "own list"},
		{name: "self-contained token with the context", change: func(s *setup) {
			s.w.token.Application = &keymanager.EmbeddedApplication{ID: 3}
			s.w.token.Subscribed = []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1", Context: "/other/1"}, {Name: "Shop", Version: "1", Context: "/shop/1"}}
		}},
		{name: "sandbox key without a sandbox endpoint", change: func(s *setup) { s.w.facts, s.api.Sandbox = sandbox(row(subscription.Unblocked)), nil }, code: 900901, step: pipeline.StepEndpoint, client: "Sandbox key offered to the API with no sandbox endpoint"},
		{name: "production key without a production endpoint", change: func(s *setup) { s.api.Production = nil }, code: 900901, step: pipeline.StepEndpoint, client: "Production key offered to the API with no production endpoint"},
		{name: "wrong endpoint comes before scopes", change: func(s *setup) { s.api.Production, s.op.Scopes = nil, []string{"admin"} }, code: 900901, step: pipeline.StepEndpoint},
		{name: "subscription comes before scopes", change: func(s *setup) { s.w.facts, s.op.Scopes = row(subscription.Blocked), []string{"admin"} }, code: 900907, step: pipeline.StepSubscription},
		{name: "any one scope is enough", change: func(s *setup) { s.op.Scopes = []string{"admin", "read"} }},
		{name: "no scope", change: func(s *setup) { s.op.Scopes = []string{"admin", "write"} }, code: 900910, step: pipeline.StepScopes, reason: "admin write", client: `error="insufficient_scope", scope="admin write"`},
		{name: "scopes with their case", change: func(s *setup) { s.op.Scopes = []string{"Read"} }, code: 900910, step: pipeline.StepScopes},
		{name: "denied user", change: func(s *setup) {
			s.w.identity = &throttle.DenyCondition{Kind: throttle.DenyUser, Value: "bob@carbon.super"}
		}, code: 900805, step: pipeline.StepDenyIdentity},
		{name: "scopes come before the denied user", change: func(s *setup) {
			s.w.identity, s.op.Scopes = &throttle.DenyCondition{Kind: throttle.DenyUser}, []string{"admin"}
		}, code: 900910, step: pipeline.StepScopes},
		{name: "API limit", change: func(s *setup) { s.w.verdict.Level = throttle.LevelAPI }, code: 900800, step: pipeline.StepThrottle},
		{name: "resource limit", change: func(s *setup) { s.w.verdict.Level = throttle.LevelResource }, code: 900802, step: pipeline.StepThrottle},
		{name: "subscription limit", change: func(s *setup) { s.w.verdict.Level = throttle.LevelSubscription }, code: 900804, step: pipeline.StepThrottle},
		{name: "burst limit", change: func(s *setup) { s.w.verdict.Level = throttle.LevelBurst }, code: 900807, step: pipeline.StepThrottle},
		{name: "application limit", change: func(s *setup) { s.w.verdict.Level = throttle.LevelApplication }, code: 900803, step: pipeline.StepThrottle},
		{name: "custom limit", change: func(s *setup) { s.w.verdict.Level = throttle.LevelCustom }, code: 900806, step: pipeline.StepThrottle},
		{name: "hard limit", change: func(s *setup) { s.w.verdict.Level = throttle.LevelHard }, code: 900801, step: pipeline.StepThrottle},
		{name: "over quota that may pass", change: func(s *setup) { s.w.verdict.OverQuota = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &setup{header: fields{}, op: definition.Operation{Template: "/*", Method: "GET"}}
			s.header["Authorization"] = bearer["Authorization"]
			s.w = world{facts: row(subscription.Unblocked), token: &keymanager.Token{KeyManager: "KM", ConsumerKey: "ck", User: "bob", Scopes: []string{"default", "read"}}}
			s.api = definition.API{Name: "Shop", Version: "1", Context: "/shop/1", Production: &definition.Endpoint{}, Sandbox: &definition.Endpoint{}}
			c.change(s)
			x, w := run(&s.w, &s.domains, &s.api, &s.op, s.header)
			r := pipeline.Run(x)
			if c.code == 0 {
				if r != nil {
					t.Fatalf("refused: %+v, %s", r, x.Reason)
				}
				if len(w.published) != 1 {
					t.Errorf("%d events were published, want 1", len(w.published))
				}
				return
			}
			if r == nil {
				t.Fatal("admitted")
			}
			if step, ok := x.RefusedAt(); r.Code != c.code || !ok || step != c.step {
				t.Errorf("code %d at %s, want %d at %s", r.Code, step, c.code, c.step)
			}
			if !strings.Contains(x.Reason, c.reason) {
				t.Errorf("the operator is told %q, want %q in it", x.Reason, c.reason)
			}
			if c.client != "" && !strings.Contains(r.Challenge+" "+r.Description, c.client) {
				t.Errorf("the client is told %q, %q, want %q", r.Challenge, r.Description, c.client)
			}
			if strings.Contains(r.Description+r.Challenge, "good") {
				t.Error("the client's token stands in the answer")
			}
			if len(w.published) != 0 {
				t.Error("an event was published for a refused request")
			}
		})
	}
}

func run(w *world, d *Domains, api *definition.API, op *definition.Operation, h fields) (*pipeline.Exchange, *world) {
	d.Authenticator, d.Subscriptions, d.Denier, d.Throttler, d.Fetcher = w, w, w, w, w
	r := &pipeline.Route{
		API: api, Operation: op, Tenant: "carbon.super", AuthHeader: "Authorization", Secured: !op.Unsecured,
		Production: api.Production != nil, Sandbox: api.Sandbox != nil, Ref: subscription.APIRef{Context: api.Context, Version: api.Version},
	}
	if api.AuthHeader != "" {
		r.AuthHeader = api.AuthHeader
	}
	r.Credentials([]string{"X-Wso2-Client-Certificate"}, d.KeepCredential)
	r.Stages, r.Again = d.Chain(r), d.Again(r)
	x := &pipeline.Exchange{Context: context.Background(), Header: h, Now: now, BodyLength: -1}
	x.RequestID, x.ClientIP = "id", netip.MustParseAddr("192.0.2.7")
	x.SetRoute(r)
	return x, w
}

func base() (*world, *definition.API, *definition.Operation) {
	return &world{facts: row(subscription.Unblocked), token: &keymanager.Token{KeyManager: "KM", ConsumerKey: "ck", User: "bob", Scopes: []string{"read"}, Claims: map[string]any{"age": 7.0, "name": "Bob", "list": []any{"a"}}}},
		&definition.API{Name: "Shop", Version: "1", Context: "/shop/1", Production: &definition.Endpoint{}},
		&definition.Operation{Template: "/items/{id}", Method: "GET", Tier: "10KPerMin"}
}

func TestOrderOfQuestions(t *testing.T) {
	w, api, op := base()
	x, _ := run(w, &Domains{}, api, op, fields{"Authorization": {"Bearer good"}})
	if r := pipeline.Run(x); r != nil {
		t.Fatal(r)
	}
	if want := []string{"deny", "authenticate", "resolve", "deny identity", "throttle"}; !slices.Equal(w.asked, want) {
		t.Errorf("asked %v, want %v", w.asked, want)
	}
	if w.offered.Bearer != "good" || w.offered.Tenant != "carbon.super" {
		t.Errorf("offered %+v", w.offered)
	}
}

func TestWhatIsCounted(t *testing.T) {
	w, api, op := base()
	x, _ := run(w, &Domains{}, api, op, fields{"Authorization": {"Bearer good"}, "X-A": {"1"}})
	x.Query = "q=1&q=2"
	pipeline.Run(x)
	got := w.published[0]
	if a := got.Attributes; a.Header("x-a")[0] != "1" || len(a.Query("q")) != 2 || a.Claim("age") != "7" || a.Claim("name") != "Bob" || a.Claim("none") != "" || a.Claim("list") != `["a"]` {
		t.Error("attributes do not show the request")
	}
	var seen listed
	src := got.Attributes.(throttle.AttributeSource)
	src.VisitHeaders(&seen)
	src.VisitQuery(&seen)
	src.VisitClaims(&seen)
	slices.Sort(seen)
	if want := []string{"X-A=1", `age=7`, `list=["a"]`, "name=Bob", "q=1", "q=2"}; !slices.Equal(seen, want) {
		t.Errorf("listed %q, want %q", seen, want)
	}
	got.Attributes = nil
	want := throttle.Request{
		MessageID: "id", APIName: "Shop", APIContext: "/shop/1", APIVersion: "1", APITenant: "carbon.super", ResourceTemplate: "/items/{id}", Method: "GET",
		ResourceTier: "10KPerMin", Authenticated: true, AppID: "7", AppName: "App", AppOwner: "alice", AppTenant: "carbon.super", AppTier: "50PerMin", SubscriptionTier: "Gold",
		KeyType: "PRODUCTION", User: "bob@carbon.super", ClientIP: netip.MustParseAddr("192.0.2.7"), MessageSize: -1,
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAnonymousIsCountedUnderItsTier(t *testing.T) {
	w, api, op := base()
	op.Unsecured = true
	x, _ := run(w, &Domains{}, api, op, fields{"Authorization": {"Bearer good"}})
	pipeline.Run(x)
	if got := w.published[0]; got.Authenticated || got.SubscriptionTier != "Unauthenticated" || got.AppID != "" || got.User != "" {
		t.Errorf("%+v", got)
	}
	if x.StripCredential {
		t.Error("the credential of an unsecured resource is taken away")
	}
}

func TestUserGetsTheTenantOfTheAPI(t *testing.T) {
	for user, want := range map[string]string{"bob": "bob@carbon.super", "bob@carbon.super": "bob@carbon.super", "": "", "bob@example.org": "bob@example.org@carbon.super"} {
		if got := withTenant(user, "carbon.super"); got != want {
			t.Errorf("%q: %q, want %q", user, got, want)
		}
	}
	// What is remembered changes no answer, whatever else has its place.
	u := &users{seed: maphash.MakeSeed()}
	for i := range 10_000 {
		user, tenant := fmt.Sprint("user", i%3000), []string{"carbon.super", "example.org"}[i%2]
		if i%100 == 0 {
			user = strings.Repeat("u", maxKnown+i)
		}
		if got, want := u.withTenant(user, tenant), withTenant(user, tenant); got != want {
			t.Fatalf("%q in %s: %q, want %q", user, tenant, got, want)
		}
	}
}

func TestRetryAfterIsRoundedUp(t *testing.T) {
	for at, want := range map[int64]int64{0: 1, now - 5: 1, now + 1: 1, now + 1000: 1, now + 1001: 2, now + 59_500: 60} {
		w, api, op := base()
		w.verdict = throttle.Verdict{Level: throttle.LevelSubscription, RetryAt: at}
		x, _ := run(w, &Domains{}, api, op, fields{"Authorization": {"Bearer good"}})
		if r := pipeline.Run(x); r == nil || r.RetryAfter != want {
			t.Errorf("RetryAt %d: %+v, want %d s", at-now, r, want)
		}
	}
}

// slow is a fetcher that waits for its context.
type slow struct{}

func (slow) FetchApplication(ctx context.Context, _ string, _ int64, _ subscription.APIRef, _ subscription.Reason) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}

func (slow) Fetch(ctx context.Context, _, _ string, _ subscription.APIRef, _ subscription.Reason) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}

func TestFetchIsBounded(t *testing.T) {
	w, api, op := base()
	w.facts.Subscription = nil
	d := &Domains{MissTimeout: 20 * time.Millisecond}
	x, _ := run(w, d, api, op, fields{"Authorization": {"Bearer good"}})
	d.Fetcher = slow{}
	start := time.Now()
	r := pipeline.Run(x)
	if r == nil || r.Code != 900908 || r.RetryAfter != 1 || time.Since(start) > 5*time.Second {
		t.Errorf("%+v after %s", r, time.Since(start))
	}
}

// TestTraceTellsTheStory renders a trace as the admin API shows it.
func TestTraceTellsTheStory(t *testing.T) {
	w, api, op := base()
	api.Origin = definition.Origin{Kind: "pull", At: now, ID: "rev1"}
	w.facts.Subscription = nil
	x, _ := run(w, &Domains{}, api, op, fields{"Authorization": {"Bearer good"}})
	x.At, x.Method, x.Path = now, "GET", "/shop/1/items/3"
	x.Note(pipeline.StepRoute, pipeline.OK)
	pipeline.Run(x)
	traces := pipeline.NewTraces(2, 2)
	traces.Add(&x.Trace)
	v, ok := traces.Find("id")
	if !ok {
		t.Fatal("no trace")
	}
	b, _ := json.Marshal(v)
	want := `{"request_id":"id","at":"2025-11-24T16:00:00.000Z","method":"GET","path":"/shop/1/items/3","client_ip":"192.0.2.7","allowed":false,"status":403,"code":900908,"steps":[` +
		`{"step":"route","result":"matched","api":"Shop","version":"1","resource":"/items/{id}","origin":{"kind":"pull","at":"2025-11-24T16:00:00.000Z","id":"rev1"}},` +
		`{"step":"lifecycle","result":"ok"},{"step":"deny","result":"ok"},` +
		`{"step":"authenticate","result":"ok","kind":"jwt","key_manager":"KM","consumer_key":"ck","user":"bob@carbon.super","cached":true},` +
		`{"step":"subscription","result":"refused","application":"App","key_type":"PRODUCTION","reason":"application 7 has no subscription to API 1"}]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

// quiet is a world that notes nothing, for measuring.
type quiet struct{ world }

func (q *quiet) Authenticate(context.Context, keymanager.Credential) (*keymanager.Token, bool, error) {
	return q.token, true, nil
}
func (q *quiet) Resolve(string, string, subscription.APIRef) subscription.Facts { return q.facts }
func (q *quiet) ResolveApplication(string, int64, subscription.APIRef) subscription.Facts {
	return q.facts
}
func (q *quiet) DenyAnonymous(*throttle.Request) *throttle.DenyCondition  { return nil }
func (q *quiet) DenyIdentified(*throttle.Request) *throttle.DenyCondition { return nil }
func (q *quiet) Check(*throttle.Request, int64) throttle.Verdict          { return throttle.Verdict{} }
func (q *quiet) Publish(*throttle.Request, int64)                         {}

func pipelineRun(traces *pipeline.Traces) func() {
	w, api, op := base()
	op.Scopes = []string{"read"}
	q := &quiet{*w}
	d := &Domains{Authenticator: q, Subscriptions: q, Denier: q, Throttler: q, Fetcher: q}
	r := &pipeline.Route{API: api, Operation: op, Tenant: "carbon.super", AuthHeader: "Authorization", Secured: true, Production: true}
	r.Credentials(nil, false)
	r.Stages = d.Chain(r)
	x := &pipeline.Exchange{}
	h := fields{"Authorization": {"Bearer good"}}
	ctx := context.Background()
	return func() {
		x.Reset()
		x.Context, x.Header, x.Now, x.RequestID, x.Method, x.Path = ctx, h, now, "id", "GET", "/shop/1/items/3"
		x.SetRoute(r)
		x.Note(pipeline.StepRoute, pipeline.OK)
		if f := pipeline.Run(x); f != nil {
			panic(f.Description)
		}
		x.Allowed, x.Status = true, 200
		traces.Add(&x.Trace)
	}
}

// TestAllocations keeps the pipeline's budget: nothing is made for a request whose user was seen before.
func TestAllocations(t *testing.T) {
	if n := testing.AllocsPerRun(200, pipelineRun(pipeline.NewTraces(100, 100))); n > 0 {
		t.Errorf("%v allocations per request, want none", n)
	}
}

func BenchmarkPipeline(b *testing.B) {
	f := pipelineRun(pipeline.NewTraces(2000, 20000))
	b.ReportAllocs()
	for b.Loop() {
		f()
	}
}

// TestBoundToken: a token that is bound to a client certificate is of no use without it (RFC 8705).
func TestBoundToken(t *testing.T) {
	for name, c := range map[string]struct {
		shown   []byte
		allowed bool
	}{"its certificate": {[]byte("certificate"), true}, "another": {[]byte("other"), false}, "none": {nil, false}} {
		t.Run(name, func(t *testing.T) {
			w := &world{token: &keymanager.Token{KeyManager: "KM", BoundTo: thumbprint([]byte("certificate"))}}
			x := &pipeline.Exchange{Header: fields{"Authorization": {"Bearer good"}}, Certificates: shown(c.shown)}
			x.Route = &pipeline.Route{API: &definition.API{}, Operation: &definition.Operation{}, AuthHeader: "Authorization", Secured: true}
			f := (&Domains{Authenticator: w}).Again(x.Route)[0].Run(x)
			if (f == nil) != c.allowed {
				t.Fatalf("refused: %+v", f)
			}
			if f != nil && (f.Code != 900901 || f.Status != 401 || x.Token != nil || !strings.Contains(f.Challenge, "certificate")) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// shown is a certificate that a client has shown.
type shown []byte

func (s shown) ClientCertificate() (pipeline.Certificate, error) {
	return pipeline.Certificate{Leaf: s}, nil
}
