package backendjwt

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/keymanager"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The bodies are compared byte for byte: names, order and form of every claim are what backends of Microgateway parse.
func TestClaims(t *testing.T) {
	opaque := alice()
	opaque.Token = &keymanager.Token{
		Kind: keymanager.KindOpaque, KeyManager: "Resident Key Manager", Subject: "alice@carbon.super", User: "alice@carbon.super", ConsumerKey: "k",
		Claims: map[string]any{"active": true, "client_id": "k", "scope": "default", "username": "alice"}, ExpiresAt: 1764000300,
	}
	opaque.KeyType, opaque.Attributes = "SANDBOX", nil
	apiKey := &keymanager.Caller{
		Token: &keymanager.Token{
			Kind: keymanager.KindAPIKey, Subject: "carol@carbon.super", User: "carol@carbon.super",
			Application: &keymanager.EmbeddedApplication{ID: 9, UUID: "app-9", Name: "Script", Owner: "carol", Tier: "Unlimited", KeyType: "PRODUCTION"},
			Claims:      map[string]any{"keytype": "SANDBOX", "permittedIP": "", "application": map[string]any{"id": json.Number("9")}},
		},
		APIName: "Shop", APIVersion: "1.0.0", APIContext: "/shop/1.0.0", ApplicationID: 9, ApplicationUUID: "app-9", ApplicationName: "Script",
		ApplicationOwner: "carol", ApplicationTier: "Unlimited", Tier: "Bronze", SubscriberTenant: "carbon.super",
	}
	nobody := &keymanager.Caller{APIName: "Shop", APIVersion: "1.0.0", APIContext: "/shop/1.0.0", Tier: "Unauthenticated", KeyType: "PRODUCTION"}
	withoutRows := &keymanager.Caller{Token: &keymanager.Token{Subject: "dave", Claims: map[string]any{"urn:x/subscriber": "forged", "urn:x/title": "Dr"}}, APIName: "Shop", APIVersion: "1.0.0", APIContext: "/shop/1.0.0"}
	everything := Rules{
		UserClaims: true, Audience: []string{"orders-backend", "billing"}, Excluded: []string{"sub_internal", "http://wso2.org/claims/tier", "iss"},
		Claims: []Claim{
			{Name: "gateway", Value: "gatehouse"},
			{Name: "who", Value: "{claim:email} by {app:name} ({attribute:cost centre}) at {api:context}, {{{subscription:tier}}}"},
			{Name: "first_role", Value: "{claim:/realm_access/roles/0}"},
			{Name: "roles", From: "/realm_access/roles"},
			{Name: "owner", From: "http://wso2.org/claims/subscriber"},
			{Name: "http://wso2.org/claims/usertype", Remove: true},
			{Name: "absent", Value: "x{claim:nothing}"},
			{Name: "absent_too", From: "nothing"},
			{Name: "level", Value: "level {claim:level}"},
			{Name: "sub_internal", Value: "added, and excluded all the same"},
		},
	}
	for _, c := range []struct {
		name   string
		rules  Rules
		caller *keymanager.Caller
	}{
		{"jwt", Rules{}, alice()},
		{"opaque", Rules{Audience: []string{"orders-backend"}}, opaque},
		{"api-key", Rules{UserClaims: true}, apiKey},
		{"anonymous", Rules{UserClaims: true}, nobody},
		{"no-subscription", Rules{Issuer: "https://gw", Dialect: "urn:x/", UserClaims: true}, withoutRows},
		{"user-claims", Rules{UserClaims: true}, alice()},
		{"converted", Rules{UserClaims: true, ConvertDialect: true}, alice()},
		{"everything", everything, alice()},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := compile(c.rules)
			if err != nil {
				t.Fatal(err)
			}
			now := epochStart.Unix()
			got, err := r.claims(c.caller, "00000000-0000-4000-8000-000000000000", now, r.expiry(c.caller.Token, now))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "claims-"+c.name+".json")
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), ","), strings.Split(string(got)+"\n", ",")); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRulesThatCannotBeUsed(t *testing.T) {
	for _, c := range []struct {
		name, field, want string
		claim             Claim
	}{
		{"no name", "name", "write the name of a claim", Claim{Value: "x"}},
		{"nothing to do", "", "exactly one of value, from and remove", Claim{Name: "a"}},
		{"two things at once", "", "exactly one of value, from and remove", Claim{Name: "a", Value: "x", Remove: true}},
		{"a protected name", "name", "the gateway alone writes", Claim{Name: "iss", Value: "me"}},
		{"a protected name copied", "name", "the gateway alone writes", Claim{Name: "sub", From: "email"}},
		{"no expiry", "name", "how long the JWT holds", Claim{Name: "exp", Remove: true}},
		{"a bad pattern", "value", "not closed", Claim{Name: "a", Value: "{claim:sub"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := compile(Rules{Claims: []Claim{{Name: "good", Value: "x"}, c.claim}})
			e, ok := errors.AsType[*RuleError](err)
			if !ok || e.Index != 1 || e.Field != c.field || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := compile(Rules{Life: time.Millisecond}); err == nil {
		t.Error("a life of a millisecond is taken")
	}
}

func TestNoJWTOutlivesTheTokenOfItsCaller(t *testing.T) {
	for _, c := range []struct {
		name      string
		life      time.Duration
		expiresAt int64
		want      int64
	}{
		{"a token without end", 15 * time.Minute, 0, 900},
		{"a token that ends later", 15 * time.Minute, 901, 900},
		{"a token that ends before", 15 * time.Minute, 899, 899},
		{"a token in its leeway", 15 * time.Minute, -3, 1},
		{"a short life", 10 * time.Second, 899, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := compile(Rules{Life: c.life})
			if err != nil {
				t.Fatal(err)
			}
			now := epochStart.Unix()
			token := &keymanager.Token{}
			if c.expiresAt != 0 {
				token.ExpiresAt = now + c.expiresAt
			}
			if got := r.expiry(token, now); got != now+c.want {
				t.Errorf("ends after %d s, want %d", got-now, c.want)
			}
		})
	}
}

// Whatever a token claims and whatever is configured, what the gateway says of itself stays the gateway's, and what is
// excluded is absent.
func TestClaimsOfTheGatewayAreItsOwn(t *testing.T) {
	names := []string{
		"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "application", "tierInfo", "subscribedAPIs", "keytype", "email", "scope", "x",
		"http://wso2.org/claims/apiname", "http://wso2.org/claims/applicationname", "http://wso2.org/claims/keytype", "http://wso2.org/claims/subscriber",
	}
	own := []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "application", "tierInfo", "subscribedAPIs", "keytype"}
	rapid.Check(t, func(t *rapid.T) {
		c := alice()
		c.Token.Claims = rapid.MapOf(rapid.SampledFrom(names), rapid.Just[any]("forged")).Draw(t, "claims")
		rules := Rules{
			UserClaims: rapid.Bool().Draw(t, "user claims"), ConvertDialect: rapid.Bool().Draw(t, "convert"), Audience: []string{"b"},
			Excluded: rapid.SliceOf(rapid.SampledFrom(names)).Draw(t, "excluded"),
		}
		for range rapid.IntRange(0, 3).Draw(t, "changes") {
			rules.Claims = append(rules.Claims, Claim{Name: rapid.SampledFrom(names).Draw(t, "name"), From: rapid.SampledFrom(names).Draw(t, "from")})
		}
		r, err := compile(rules)
		if err != nil {
			if !slices.ContainsFunc(rules.Claims, func(c Claim) bool { return slices.Contains(own, c.Name) }) {
				t.Fatal(err)
			}
			return
		}
		b, err := r.claims(c, "id", 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		want := map[string]any{"iss": "wso2.org/products/am", "sub": "f1b0", "aud": "b", "exp": 2.0, "iat": 1.0, "jti": "id"}
		for _, name := range own {
			if got[name] != want[name] {
				t.Errorf("%s is %v, want %v", name, got[name], want[name])
			}
		}
		for _, name := range rules.Excluded {
			if _, has := got[name]; has && !slices.Contains(own, name) {
				t.Errorf("%s is excluded and there", name)
			}
		}
		if len(rules.Claims) == 0 && got["http://wso2.org/claims/apiname"] == "forged" {
			t.Error("the token names the API")
		}
	})
}
