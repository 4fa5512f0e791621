package stage

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/subscription"
)

// signer stands for what makes backend JWTs: it notes for whom it was asked.
type signer struct {
	asked []keymanager.Caller
	at    time.Time
	err   error
}

func (s *signer) Token(c *keymanager.Caller, now time.Time) (string, error) {
	s.asked, s.at = append(s.asked, *c), now
	if s.err != nil {
		return "", s.err
	}
	return "signed", nil
}

func TestWhatBackendsAreTold(t *testing.T) {
	bearer := fields{"Authorization": {"Bearer good"}}
	embedded := &keymanager.EmbeddedApplication{ID: 9, UUID: "u-9", Name: "Self", Owner: "carol", Tier: "Silver", KeyType: "SANDBOX"}
	api := keymanager.Caller{APIUUID: "uuid-1", APIName: "Shop", APIVersion: "1", APIContext: "/shop/1", APITenant: "carbon.super"}
	with := func(edit func(c *keymanager.Caller)) *keymanager.Caller {
		c := api
		edit(&c)
		return &c
	}
	attributes := map[string]string{"team": "blue"}
	for _, c := range []struct {
		name    string
		change  func(w *world, a *definition.API, o *definition.Operation)
		header  fields
		domains Domains
		want    *keymanager.Caller // but for its token; nil: nobody is asked
		result  pipeline.Result
	}{
		{"a subscriber", func(w *world, _ *definition.API, _ *definition.Operation) {
			w.facts.Application.UUID, w.facts.Application.Attributes = "u-7", attributes
		}, bearer, Domains{}, with(func(c *keymanager.Caller) {
			c.ApplicationID, c.ApplicationUUID, c.ApplicationName, c.ApplicationOwner, c.ApplicationTier = 7, "u-7", "App", "alice", "50PerMin"
			c.Attributes, c.Tier, c.KeyType, c.SubscriberTenant = &attributes, "Gold", "PRODUCTION", "carbon.super"
		}), pipeline.OK},
		{
			"a sandbox key", func(w *world, a *definition.API, _ *definition.Operation) {
				w.facts = sandbox(w.facts)
				a.Sandbox = a.Production
			}, bearer,
			Domains{},
			with(func(c *keymanager.Caller) {
				c.ApplicationID, c.ApplicationName, c.ApplicationOwner, c.ApplicationTier = 7, "App", "alice", "50PerMin"
				c.Tier, c.KeyType, c.SubscriberTenant = "Gold", "SANDBOX", "carbon.super"
			}), pipeline.OK,
		},
		{"a self-contained token", func(w *world, a *definition.API, _ *definition.Operation) {
			w.facts, a.Sandbox = subscription.Facts{}, a.Production
			w.token.Application = embedded
			w.token.Subscribed = []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1", Tier: "Bronze", SubscriberTenant: "example.org"}}
		}, bearer, Domains{}, with(func(c *keymanager.Caller) {
			c.ApplicationID, c.ApplicationUUID, c.ApplicationName, c.ApplicationOwner, c.ApplicationTier = 9, "u-9", "Self", "carol", "Silver"
			c.Tier, c.KeyType, c.SubscriberTenant = "Bronze", "SANDBOX", "example.org"
		}), pipeline.OK},
		{
			"somebody without a subscription, who needs none", func(w *world, _ *definition.API, _ *definition.Operation) { w.facts = subscription.Facts{} }, bearer,
			Domains{SkipSubscriptions: true},
			with(func(*keymanager.Caller) {}), pipeline.OK,
		},
		{"nobody", func(_ *world, _ *definition.API, o *definition.Operation) { o.Unsecured = true }, nil, Domains{}, nil, pipeline.Skipped},
		{
			"nobody, whom the backend wants to know of", func(_ *world, _ *definition.API, o *definition.Operation) { o.Unsecured = true }, nil,
			Domains{AssertAnonymous: true},
			with(func(c *keymanager.Caller) { c.Tier, c.KeyType = "Unauthenticated", "PRODUCTION" }), pipeline.OK,
		},
		{
			"a token at an open resource is not looked at", func(_ *world, _ *definition.API, o *definition.Operation) { o.Unsecured = true }, bearer,
			Domains{},
			nil, pipeline.Skipped,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a, o := base()
			a.UUID, a.Name, a.Version, a.Context = "uuid-1", "Shop", "1", "/shop/1"
			c.change(w, a, o)
			s := &signer{}
			d := c.domains
			d.Asserter = s
			x, _ := run(w, &d, a, o, c.header)
			pipeline.Run(x)
			if step, refused := x.RefusedAt(); refused {
				t.Fatalf("refused at %s: %s", step, x.Reason)
			}
			if r := x.Result(pipeline.StepBackendJWT); r != c.result {
				t.Errorf("step %v, want %v", r, c.result)
			}
			if c.want == nil {
				if len(s.asked) != 0 || x.BackendToken != "" {
					t.Errorf("asked for %+v", s.asked)
				}
				return
			}
			if len(s.asked) != 1 || x.BackendToken != "signed" || s.at.UnixMilli() != x.Now {
				t.Fatalf("asked %d times at %v, sent %q", len(s.asked), s.at, x.BackendToken)
			}
			got := s.asked[0]
			if got.Token != x.Token {
				t.Error("another token")
			}
			got.Token = nil
			if d := cmp.Diff(*c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestABackendThatCannotBeToldIsNotCalled(t *testing.T) {
	bearer := fields{"Authorization": {"Bearer good"}}
	w, a, o := base()
	s := &signer{err: errors.New("no entropy")}
	x, _ := run(w, &Domains{Asserter: s}, a, o, bearer)
	pipeline.Run(x)
	step, refused := x.RefusedAt()
	if !refused || step != pipeline.StepBackendJWT || x.Code != fault.General || x.Status != 500 || x.Reason != "the backend JWT could not be made: no entropy" || x.BackendToken != "" {
		t.Errorf("refused %v at %s: %d/%d %s", refused, step, x.Status, x.Code, x.Reason)
	}
	x, _ = run(w, &Domains{Asserter: s, OmitAssertion: true}, a, o, bearer)
	pipeline.Run(x)
	if _, refused := x.RefusedAt(); refused || x.BackendToken != "" || x.Result(pipeline.StepBackendJWT) != pipeline.Skipped {
		t.Errorf("refused %v, sent %q", refused, x.BackendToken)
	}
}

// What was refused before is no business of the backend's.
func TestNobodyElseIsToldOf(t *testing.T) {
	w, a, o := base()
	w.verdict.Level = 1
	s := &signer{}
	x, _ := run(w, &Domains{Asserter: s}, a, o, fields{"Authorization": {"Bearer good"}})
	pipeline.Run(x)
	if x.Result(pipeline.StepBackendJWT) != pipeline.NotRun || len(s.asked) != 0 {
		t.Errorf("asked for %+v", s.asked)
	}
}
