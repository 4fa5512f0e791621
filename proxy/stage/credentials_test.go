package stage

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/pipeline"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// TestWhatAKindIsCountedUnder: contract gateway-behaviour.md 8 to 10.
func TestWhatAKindIsCountedUnder(t *testing.T) {
	application := &keymanager.EmbeddedApplication{ID: 3, Name: "Embedded", Owner: "carol", Tier: "10PerMin"}
	type counted struct{ User, AppID, AppName, AppOwner, AppTenant, AppTier, SubscriptionTier, KeyType string }
	for _, c := range []struct {
		name, ask, bring string
		token            keymanager.Token
		facts            subscription.Facts
		want             counted
		code             int
	}{
		{name: "a user", ask: "basic_auth", bring: "basic good", want: counted{"alice@carbon.super", "anonymous", "anonymous", "", "", "Unlimited", "Default", "PRODUCTION"}},
		{
			name: "a user with a plan", ask: "basic_auth", bring: "basic good", token: keymanager.Token{Tier: "Gold"},
			want: counted{"alice@carbon.super", "anonymous", "anonymous", "", "", "Unlimited", "Gold", "PRODUCTION"},
		},
		{
			name: "a certificate", ask: "mutualssl", bring: "cert good", token: keymanager.Token{ID: "thumb", Subject: "CN=a", Tier: "Gold"},
			want: counted{"Unknown@carbon.super", "thumb", "CN=a", "", "", "Unlimited", "Gold", "PRODUCTION"},
		},
		{
			name: "a certificate without a plan", ask: "mutualssl", bring: "cert good", token: keymanager.Token{ID: "thumb"},
			want: counted{"Unknown@carbon.super", "thumb", "", "", "", "Unlimited", "", "PRODUCTION"},
		},
		{
			name: "a token with a certificate", ask: "mutualssl+oauth2", bring: "cert good, bearer good", token: keymanager.Token{User: "bob", Tier: "Gold", ConsumerKey: "ck"}, facts: row(subscription.Unblocked),
			want: counted{"bob@carbon.super", "7", "App", "alice", "carbon.super", "50PerMin", "Gold", "PRODUCTION"},
		},
		{
			name: "a key of the console", ask: "oauth2", bring: "console good", token: keymanager.Token{User: "bob", Application: &keymanager.EmbeddedApplication{KeyType: "PRODUCTION"}},
			want: counted{"bob@carbon.super", "0", "", "", "carbon.super", "", "", "PRODUCTION"},
		},
		{
			name: "an API key of a known application", ask: "api_key", bring: "key good", facts: row(subscription.Unblocked),
			token: keymanager.Token{User: "bob", Application: &keymanager.EmbeddedApplication{ID: 7, Tier: "Old"}},
			want:  counted{"bob@carbon.super", "7", "App", "alice", "carbon.super", "50PerMin", "Gold", "PRODUCTION"},
		},
		{
			name: "an API key whose claims say otherwise than the rows", ask: "api_key", bring: "key good", facts: row(subscription.Blocked),
			token: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 7}, Subscribed: []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1", Tier: "Silver"}}}, code: 900907,
		},
		{
			name: "an API key of a known application without subscription", ask: "api_key", bring: "key good",
			facts: subscription.Facts{API: &subscription.API{}, Application: &subscription.Application{ID: 7}}, token: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 7}}, code: 900908,
		},
		{
			name: "an API key for an API that is not known", ask: "api_key", bring: "key good",
			facts: subscription.Facts{Application: &subscription.Application{ID: 7}}, token: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 7}}, code: 900908,
		},
		{
			name: "an API key of an unknown application that names the API", ask: "api_key", bring: "query good",
			token: keymanager.Token{User: "bob", Application: application, Subscribed: []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1", Tier: "Silver", SubscriberTenant: "example.org"}}},
			want:  counted{"bob@carbon.super", "3", "Embedded", "carol", "example.org", "10PerMin", "Silver", "PRODUCTION"},
		},
		{
			name: "an API key of an unknown application for another API", ask: "api_key", bring: "query good",
			token: keymanager.Token{Application: application, Subscribed: []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "2"}}}, code: 900908,
		},
		{name: "an API key that names no subscriptions", ask: "api_key", bring: "query good", token: keymanager.Token{Application: application}, code: 900908},
		{name: "an API key that names no application", ask: "api_key", bring: "query good", code: 900908},
		{name: "on hold", ask: "api_key", bring: "key good", facts: row(subscription.OnHold), token: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 7}}, code: 900909},
		{
			name: "production blocked, sandbox key", ask: "api_key", bring: "key good", facts: row(subscription.ProdOnlyBlocked),
			token: keymanager.Token{User: "bob", Application: &keymanager.EmbeddedApplication{ID: 7, KeyType: "SANDBOX"}},
			want:  counted{"bob@carbon.super", "7", "App", "alice", "carbon.super", "50PerMin", "Gold", "SANDBOX"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := &issuers{token: c.token}
			d := all(i)
			api := shop()
			api.SkipSubscriptions = false
			op := &definition.Operation{Template: "/*", Method: "GET", Security: asks(c.ask), APIKeyHeaders: []string{"X-Key"}, APIKeyQueries: []string{"key"}}
			w := &world{facts: c.facts}
			x := prepared(i, d, w, api, op, c.bring)
			f := pipeline.Run(x)
			if c.code != 0 {
				if f == nil || f.Code != c.code {
					t.Fatalf("got %+v (%s), want %d", f, x.Reason, c.code)
				}
				return
			}
			if f != nil {
				t.Fatalf("refused: %+v, %s", f, x.Reason)
			}
			q := w.published[0]
			got := counted{q.User, q.AppID, q.AppName, q.AppOwner, q.AppTenant, q.AppTier, q.SubscriptionTier, q.KeyType}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if !q.Authenticated || !x.StripCredential {
				t.Error("not authenticated, or not stripped")
			}
		})
	}
}

func prepared(i *issuers, d *Domains, w *world, api *definition.API, op *definition.Operation, bring string) *pipeline.Exchange {
	d.Authenticator, d.Subscriptions, d.Denier, d.Throttler = i, w, w, w
	r := &pipeline.Route{API: api, Operation: op, Tenant: "carbon.super", AuthHeader: "Authorization", Secured: !op.Unsecured, Production: true, Sandbox: true}
	r.Credentials([]string{"X-Wso2-Client-Certificate"}, d.KeepCredential)
	r.Stages, r.Again = d.Chain(r), d.Again(r)
	x := &pipeline.Exchange{Context: context.Background(), Now: now, BodyLength: -1}
	var h fields
	h, x.Query, x.Certificates = came(bring)
	x.Header = h
	x.ClientIP = netip.MustParseAddr("192.0.2.7")
	x.SetRoute(r)
	return x
}

func TestScopesOfKinds(t *testing.T) {
	for _, c := range []struct {
		name, ask, bring string
		have             []string
		all, keys        bool
		code             int
		client           string
	}{
		{name: "a user with the scope", ask: "basic_auth", bring: "basic good", have: []string{"read"}},
		{name: "a user without", ask: "basic_auth", bring: "basic good", code: 900910, client: "One of these scopes is needed: read write"},
		{name: "an API key needs none", ask: "api_key", bring: "key good"},
		{name: "an API key needs one where it is asked to", ask: "api_key", bring: "key good", keys: true, code: 900910},
		{name: "an API key that has one", ask: "api_key", bring: "key good", keys: true, have: []string{"write"}},
		{name: "a key of the console needs none", ask: "oauth2", bring: "console good", keys: true},
		{name: "a certificate needs none", ask: "mutualssl", bring: "cert good"},
		{name: "any one", ask: "oauth2", bring: "bearer good", have: []string{"x", "write"}},
		{name: "one of all", ask: "oauth2", bring: "bearer good", have: []string{"x", "write"}, all: true, code: 900910, client: "These scopes are missing: read"},
		{name: "none of all", ask: "oauth2", bring: "bearer good", all: true, code: 900910, client: `error="insufficient_scope", scope="read write"`},
		{name: "all", ask: "oauth2", bring: "bearer good", have: []string{"write", "x", "read"}, all: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := &issuers{token: keymanager.Token{Scopes: c.have}}
			d := all(i)
			d.ScopesForAPIKeys = c.keys
			api := shop()
			api.AllScopes = c.all
			op := &definition.Operation{Template: "/*", Method: "GET", Security: asks(c.ask), APIKeyHeaders: []string{"X-Key"}, Scopes: []string{"read", "write"}}
			x, f := secureOp(i, d, api, op, c.bring)
			if c.code == 0 && f != nil || c.code != 0 && (f == nil || f.Code != c.code) {
				t.Fatalf("got %+v (%s), want %d", f, x.Reason, c.code)
			}
			if f != nil && !strings.Contains(f.Description+" "+f.Challenge, c.client) {
				t.Errorf("the client is told %q, %q, want %q", f.Description, f.Challenge, c.client)
			}
		})
	}
}

// TestOffers: a key is judged by where it comes from, a certificate by the API that it is shown to.
func TestOffers(t *testing.T) {
	i := &issuers{}
	x := prepared(i, all(i), &world{}, shop(), &definition.Operation{Template: "/*", Method: "GET", Security: asks("mutualssl+api_key"), APIKeyHeaders: []string{"X-Key"}}, "key good, cert good")
	x.Header.(fields)["Referer"] = []string{"https://app.example.test/"}
	if f := pipeline.Run(x); f != nil {
		t.Fatalf("%+v %s", f, x.Reason)
	}
	key := keymanager.KeyOffer{Value: "good", Tenant: "carbon.super", APIUUID: "u", APIName: "Shop", APIVersion: "1", APIContext: "/shop/1", ClientIP: x.ClientIP, Referer: "https://app.example.test/"}
	if len(i.keys) != 1 || i.keys[0] != key {
		t.Errorf("the key was offered as %+v", i.keys)
	}
	if len(i.certs) != 1 || i.certs[0].API != "u" || string(i.certs[0].DER) != "good" || i.certs[0].FromHeader {
		t.Errorf("the certificate was offered as %+v", i.certs)
	}
}

// TestCredentialsAreNotShown: of what came, nothing that was meant as a secret is published or traced.
func TestCredentialsAreNotShown(t *testing.T) {
	for _, bring := range []string{"bearer good-1, key good-2", "query good-3, console good-4", "basic good-5, query good-6"} {
		i := &issuers{}
		w := &world{}
		x := prepared(i, all(i), w, shop(), &definition.Operation{
			Template: "/*", Method: "GET", Security: asks("oauth2 | api_key | basic_auth"), APIKeyHeaders: []string{"x-key"}, APIKeyQueries: []string{"key"},
		}, bring)
		x.Query += "&q=1&access_token=good-7&k%65y=good-8"
		h := x.Header.(fields)
		h["X-Wso2-Client-Certificate"], h["X-Plain"] = []string{"good-9"}, []string{"shown"}
		f := pipeline.Run(x)
		var seen listed
		src := x.Throttle.Attributes.(throttle.AttributeSource)
		src.VisitHeaders(&seen)
		src.VisitQuery(&seen)
		slices.Sort(seen)
		if want := []string{"X-Plain=shown", "q=1"}; !slices.Equal(seen, want) {
			t.Errorf("%s: listed %q, want %q", bring, seen, want)
		}
		traces := pipeline.NewTraces(1, 1)
		x.RequestID = "id"
		traces.Add(&x.Trace)
		v, _ := traces.Find("id")
		text := strings.Builder{}
		for _, s := range v.Steps {
			text.WriteString(s.Reason + s.User + s.Check + s.ConsumerKey + s.KID)
		}
		if strings.Contains(text.String(), "good") || f != nil && strings.Contains(f.Description+f.Challenge, "good") {
			t.Errorf("%s: the trace holds %q, the answer %+v", bring, text.String(), f)
		}
	}
}

// TestKindsThatNobodyChecks: an alternative of a kind without a domain is none, and a resource without another is closed.
func TestKindsThatNobodyChecks(t *testing.T) {
	for ask, code := range map[string]int{"api_key": 900901, "basic_auth": 900901, "mutualssl": 900901, "oauth2+mutualssl": 900901, "http digest": 900901, "oauth2 | api_key": 0, "oauth2 | http digest": 0} {
		i := &issuers{}
		x, f := secure(i, &Domains{}, shop(), ask, "bearer good, key good, console good, cert good")
		if code == 0 && f != nil || code != 0 && (f == nil || f.Code != code || !strings.Contains(x.Reason, "not set up to check")) {
			t.Errorf("%s: %+v, %s", ask, f, x.Reason)
		}
	}
}

// TestKeyInTheCredentialField: an apiKey scheme may name the credential field itself. The whole field is the key then, unless
// it says that it is something else.
func TestKeyInTheCredentialField(t *testing.T) {
	for _, c := range []struct {
		ask, bring string
		as         keymanager.Kind
		code       int
	}{
		{"api_key", "field good-key", keymanager.KindAPIKey, 0},
		{"api_key", "field bad-key", "", 900901},
		{"api_key", "bearer good", "", 900917},
		{"api_key", "basic good", "", 900917},
		{"api_key", "", "", 900902},
		{"api_key | oauth2", "bearer good", keymanager.KindJWT, 0},
		{"api_key | oauth2", "field good-key", keymanager.KindAPIKey, 0},
		{"api_key | basic_auth", "basic good", keymanager.KindBasic, 0},
		{"api_key", "field good-key, field good-key", "", 900901},
	} {
		i := &issuers{}
		op := &definition.Operation{Template: "/*", Method: "GET", Security: asks(c.ask), APIKeyHeaders: []string{"Authorization"}}
		x, f := secureOp(i, all(i), shop(), op, c.bring)
		switch {
		case c.code != 0 && (f == nil || f.Code != c.code):
			t.Errorf("%s with %q: %+v, want %d", c.ask, c.bring, f, c.code)
		case c.code == 0 && (f != nil || x.Token == nil || x.Token.Kind != c.as):
			t.Errorf("%s with %q: %+v (%s), want %s", c.ask, c.bring, f, x.Reason, c.as)
		}
	}
}

// FuzzBasicCredential compares to net/http.
func FuzzBasicCredential(f *testing.F) {
	for _, s := range []string{"", "YWxpY2U6cGFzczp3b3Jk", "YWxpY2U=", "Og==", "YTo=", "OmI=", "%", "YWxpY2U6eA", "YQ==\n", "AA=="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		user, password, problem := basicCredential(value)
		u, p, ok := (&http.Request{Header: http.Header{"Authorization": {"Basic " + value}}}).BasicAuth()
		switch {
		case problem == nil && (!ok || u != user || p != password || user == "" || password == ""):
			t.Fatalf("%q: %q and %q; net/http says %q, %q, %v", value, user, password, u, p, ok)
		case (problem == errNotBase64 || problem == errNoColon) && ok:
			t.Fatalf("%q: %v; net/http says %q, %q", value, problem, u, p)
		}
	})
}

// TestNoTokensAreJudged: where users alone are known, what asks for a token is closed, not open.
func TestNoTokensAreJudged(t *testing.T) {
	for ask, code := range map[string]int{"": 900901, "oauth2": 900901, "basic_auth": 0, "oauth2 | basic_auth": 0} {
		i := &issuers{}
		op := &definition.Operation{Template: "/*", Method: "GET", Security: asks(ask)}
		d := &Domains{Users: i}
		w := &world{}
		x := prepared(i, d, w, shop(), op, "basic good")
		d.Authenticator = nil
		x.Route.Stages = d.Chain(x.Route)
		f := pipeline.Run(x)
		if code == 0 && (f != nil || x.Token == nil) || code != 0 && (f == nil || f.Code != code) {
			t.Errorf("%q: %+v, %s", ask, f, x.Reason)
		}
	}
}

func TestDomainThatSaysNothing(t *testing.T) {
	i := &issuers{}
	d := all(i)
	d.Certificates = mute{}
	x, f := secure(i, d, shop(), "mutualssl", "cert good")
	if f == nil || f.Code != 900900 || f.Status != 503 || x.Token != nil {
		t.Errorf("%+v", f)
	}
}

type mute struct{}

func (mute) AuthenticateCertificate(keymanager.CertificateOffer) (*keymanager.Token, error) {
	return nil, nil
}

// unreadable is a certificate that a proxy has garbled.
type unreadable struct{}

func (unreadable) ClientCertificate() (pipeline.Certificate, error) {
	return pipeline.Certificate{FromHeader: true}, errors.New("it is neither PEM nor DER")
}

func TestCertificateThatCannotBeRead(t *testing.T) {
	for ask, code := range map[string]int{"mutualssl": 900901, "mutualssl | oauth2": 0, "oauth2": 0} {
		i := &issuers{}
		x := prepared(i, all(i), &world{}, shop(), &definition.Operation{Template: "/*", Method: "GET", Security: asks(ask)}, "bearer good")
		x.Certificates = unreadable{}
		f := pipeline.Run(x)
		if code == 0 && f != nil || code != 0 && (f == nil || f.Code != code || !strings.Contains(x.Reason, "neither PEM nor DER")) {
			t.Errorf("%s: %+v, %s", ask, f, x.Reason)
		}
	}
}

// TestCostOfKinds: no kind that is judged from memory makes anything for a request.
func TestCostOfKinds(t *testing.T) {
	i := &issuers{}
	token := &keymanager.Token{Kind: keymanager.KindAPIKey, User: "bob", Unsubscribed: true, KeyManager: "KM"}
	for ask, bring := range map[string]string{"oauth2 | api_key": "bearer good", "api_key": "key good", "api_key ": "query good"} {
		w := &world{}
		d := &Domains{APIKeys: fixed{token}}
		x := prepared(i, d, w, shop(), &definition.Operation{Template: "/*", Method: "GET", Security: asks(strings.TrimSpace(ask)), APIKeyHeaders: []string{"X-Key"}, APIKeyQueries: []string{"key"}}, bring)
		d.Authenticator = fixed{token}
		stage := x.Route.Stages[2].(*authenticate)
		if n := testing.AllocsPerRun(100, func() {
			x.Offer = pipeline.Offer{}
			if f := stage.Run(x); f != nil {
				t.Fatal(f)
			}
		}); n > 0 {
			t.Errorf("%s with %s: %v allocations, want none", ask, bring, n)
		}
	}
}

// fixed knows one token.
type fixed struct{ t *keymanager.Token }

func (f fixed) Authenticate(context.Context, keymanager.Credential) (*keymanager.Token, bool, error) {
	return f.t, true, nil
}

func (f fixed) AuthenticateKey(context.Context, keymanager.KeyOffer) (*keymanager.Token, bool, error) {
	return f.t, true, nil
}

func BenchmarkAuthenticate(b *testing.B) {
	token := &keymanager.Token{Kind: keymanager.KindAPIKey, User: "bob@carbon.super", Unsubscribed: true, KeyManager: "KM"}
	for _, c := range []struct{ name, ask, bring string }{
		{"token", "oauth2", "bearer good"},
		{"token_or_key/token", "oauth2 | api_key", "bearer good"},
		{"token_or_key/key", "oauth2 | api_key", "key good"},
		{"token_or_key/query", "oauth2 | api_key", "query good"},
		{"token_and_key", "oauth2+api_key", "bearer good, key good"},
	} {
		b.Run(c.name, func(b *testing.B) {
			d := &Domains{APIKeys: fixed{token}}
			x := prepared(&issuers{}, d, &world{}, shop(), &definition.Operation{Template: "/*", Method: "GET", Security: asks(c.ask), APIKeyHeaders: []string{"X-Key"}, APIKeyQueries: []string{"key"}}, c.bring)
			d.Authenticator = fixed{token}
			stage := x.Route.Stages[2].(*authenticate)
			b.ReportAllocs()
			for b.Loop() {
				x.Offer = pipeline.Offer{}
				if f := stage.Run(x); f != nil {
					b.Fatal(f)
				}
			}
		})
	}
}

// TestAPIKeyFetchesWhatIsMissing: an API key whose application or subscription has not arrived yet is asked for as a token's.
func TestAPIKeyFetchesWhatIsMissing(t *testing.T) {
	shopOnly := []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1"}}
	bought := row(subscription.Unblocked)
	notBought := bought
	notBought.Subscription = nil
	noApplication := subscription.Facts{API: bought.API}
	for _, c := range []struct {
		name       string
		facts      subscription.Facts
		later      *subscription.Facts
		err        error
		subscribed []keymanager.EmbeddedSubscription
		skip       bool
		id         int64
		code       int
		retry      int64
		fetched    int
		app        string
	}{
		{name: "the application", id: 7, facts: noApplication, later: &bought, fetched: 1, app: "App"},
		{name: "the subscription", id: 7, facts: notBought, later: &bought, fetched: 1, app: "App"},
		{name: "nothing is missing", id: 7, facts: bought, app: "App"},
		{name: "there is no subscription", id: 7, facts: notBought, fetched: 1, code: 900908},
		{name: "the API Manager cannot be asked", id: 7, facts: notBought, err: errors.New("away"), fetched: 1, code: 900908, retry: 1},
		{name: "the application is gone, whatever the key says", id: 7, facts: noApplication, subscribed: shopOnly, fetched: 1, code: 900908},
		{name: "the API Manager cannot be asked, and the key speaks for itself", id: 7, facts: noApplication, subscribed: shopOnly, err: errors.New("away"), fetched: 1, app: "Own"},
		{name: "the API Manager knows no such API, and the key speaks for itself", id: 7, subscribed: shopOnly, fetched: 1, app: "Own"},
		{name: "a key of no application speaks for itself", facts: noApplication, subscribed: shopOnly, app: "Own"},
		{name: "a key of no application for another API", facts: noApplication, subscribed: []keymanager.EmbeddedSubscription{{Name: "Pets", Version: "1"}}, code: 900908},
		{name: "subscriptions are not asked for", id: 7, facts: notBought, skip: true, app: "App"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := &issuers{token: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: c.id, Name: "Own"}, Subscribed: c.subscribed}}
			w := &world{facts: c.facts, later: c.later, fetchErr: c.err}
			d := all(i)
			d.Fetcher = w
			api := shop()
			api.SkipSubscriptions = c.skip
			op := &definition.Operation{Template: "/*", Method: "GET", Security: asks("api_key"), APIKeyHeaders: []string{"X-Key"}}
			x := prepared(i, d, w, api, op, "key good")
			f := pipeline.Run(x)
			if len(w.fetched) != c.fetched {
				t.Errorf("asked %d times, want %d", len(w.fetched), c.fetched)
			}
			if c.code == 0 && f != nil || c.code != 0 && (f == nil || f.Code != c.code || f.RetryAfter != c.retry) {
				t.Fatalf("got %+v (%s), want %d", f, x.Reason, c.code)
			}
			if f == nil && x.Throttle.AppName != c.app {
				t.Errorf("counted under %q, want %q", x.Throttle.AppName, c.app)
			}
		})
	}
}

// TestKeyBesideAToken: where both are asked for, both must have been bought.
func TestKeyBesideAToken(t *testing.T) {
	for _, c := range []struct {
		name, bring string
		key         keymanager.Token
		skip        bool
		code        int
		reason      string
	}{
		{name: "both bought", key: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 7}}},
		{name: "a key of an application without subscription", key: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 9}}, code: 900908, reason: "API key"},
		{name: "a key of no application", code: 900908, reason: "API key"},
		{
			name: "a key that names another API", key: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 9}, Subscribed: []keymanager.EmbeddedSubscription{{Name: "Pets", Version: "1"}}},
			code: 900908, reason: "API key",
		},
		{name: "a key that names the API", key: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 9}, Subscribed: []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1"}}}},
		{name: "a key for the API of that name of another tenant", key: keymanager.Token{
			Application: &keymanager.EmbeddedApplication{ID: 9},
			Subscribed:  []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "1", Context: "/t/other.example/shop/1"}},
		}, code: 900908, reason: "API key"},
		{name: "a key for every version", key: keymanager.Token{Application: &keymanager.EmbeddedApplication{ID: 9}, Subscribed: []keymanager.EmbeddedSubscription{{Name: "Shop", Version: "*"}}}},
		{name: "subscriptions are not asked for", skip: true},
		{name: "the console stands in for both", bring: "console good"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := &issuers{token: keymanager.Token{ConsumerKey: "ck", User: "bob"}}
			d := all(i)
			d.APIKeys = keysOf{i, c.key}
			api := shop()
			api.SkipSubscriptions = c.skip
			op := &definition.Operation{Template: "/*", Method: "GET", Security: asks("oauth2+api_key"), APIKeyHeaders: []string{"X-Key"}}
			bring := c.bring
			if bring == "" {
				bring = "bearer good, key good"
			}
			x := prepared(i, d, &world{facts: row(subscription.Unblocked)}, api, op, bring)
			f := pipeline.Run(x)
			if c.code == 0 && f != nil || c.code != 0 && (f == nil || f.Code != c.code || !strings.Contains(x.Reason, c.reason)) {
				t.Fatalf("got %+v (%s), want %d", f, x.Reason, c.code)
			}
			if f == nil && c.bring == "" && (x.Token.Kind != keymanager.KindJWT || x.Throttle.AppName != "App" && !c.skip) {
				t.Errorf("counted under %q, as %s", x.Throttle.AppName, x.Token.Kind)
			}
		})
	}
}

// keysOf makes a token of its own of API keys.
type keysOf struct {
	*issuers
	key keymanager.Token
}

func (k keysOf) AuthenticateKey(ctx context.Context, o keymanager.KeyOffer) (*keymanager.Token, bool, error) {
	t, cached, err := k.issuers.AuthenticateKey(ctx, o)
	if t != nil {
		own := k.key
		own.Kind, own.Unsubscribed = t.Kind, t.Unsubscribed
		t = &own
	}
	return t, cached, err
}
