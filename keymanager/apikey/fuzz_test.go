package apikey

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

// FuzzAuthenticateKey takes whatever comes for a key. The oracle is golang-jwt: what is accepted is signed by the issuer,
// and says nothing that an access token does.
func FuzzAuthenticateKey(f *testing.F) {
	// One key in every process, so that what is signed here is good in the workers too.
	key := ed25519.NewKeyFromSeed([]byte("a seed of thirty-two bytes, fixed"[:32]))
	public := publicPEM(key.Public())
	fix := newFixture(f, func([]Issuer) []Issuer {
		return []Issuer{{Name: apim, PEM: public}, {Name: console, PEM: public, Internal: true}, {Name: sts, PEM: public, ValidateAllowedAPIs: true}}
	})
	signed := func(c map[string]any) string { return sign(jwt.SigningMethodEdDSA, key, c) }
	fix.store.Put(opaqueKey("opaque"))
	for _, c := range []map[string]any{fix.claims(), fix.internal(), fix.claims("permittedIP", "10.0.0.0/8", "permittedReferer", "*.example.com/*"), fix.claims("application", "text")} {
		f.Add(signed(c), false, "https://a.example.com/")
		f.Add(signed(c), true, "")
	}
	f.Add(signed(fix.allowed(api("Shop", "*"))), false, "")
	f.Add("opaque", false, "*")
	f.Add("", false, "")
	f.Add("a.b.c", true, "://")
	ip := netip.MustParseAddr("10.1.2.3")
	f.Fuzz(func(t *testing.T, value string, internal bool, ref string) {
		o := keymanager.KeyOffer{Value: value, Internal: internal, APIUUID: shopUUID, APIName: "Shop", APIVersion: "1.0.0", ClientIP: ip, Referer: ref}
		tok, _, err := fix.AuthenticateKey(context.Background(), o)
		again, _, err2 := fix.AuthenticateKey(context.Background(), o)
		if (err == nil) != (err2 == nil) || again != tok {
			t.Fatalf("first %v, then %v", err, err2)
		}
		if err != nil {
			var r *keymanager.Refusal
			if !errors.As(err, &r) || r.Check == "" || r.Forbidden != (r.Check == keymanager.CheckIP || r.Check == keymanager.CheckReferer) {
				t.Fatalf("refusal %+v", err)
			}
			plain(t, r.Detail, value)
			return
		}
		if value == "opaque" {
			return
		}
		p, err := jwt.NewParser(jwt.WithoutClaimsValidation()).Parse(value, func(*jwt.Token) (any, error) {
			return key.Public(), nil
		})
		if err != nil {
			t.Fatalf("accepted, but golang-jwt says %v", err)
		}
		kind, _ := p.Claims.(jwt.MapClaims)["token_type"].(string)
		if internal != strings.EqualFold(kind, "InternalKey") {
			t.Fatalf("a token of type %q in the wrong field", kind)
		}
	})
}

// FuzzReferer compares with net/url: what a pattern for a host admits is a page of that host.
func FuzzReferer(f *testing.F) {
	for _, r := range []string{
		"https://shop.example.com/a", "https://shop.example.com@evil.test/", "HTTP://SHOP.example.com:80/", "shop.example.com/x?y#z",
		`https://evil.test\.example.com/`, "https://evil.test/?.example.com/", "*", "//shop.example.com/", "https:shop.example.com", "https://[::1]/",
	} {
		f.Add("*.example.com/*", r)
		f.Add("https://shop.example.com/a", r)
	}
	f.Fuzz(func(t *testing.T, pattern, ref string) {
		l := compile(list{}, splitList(pattern))
		l.permitsReferer(ref) // of any pattern: no panic
		host := compile(list{}, splitList("*.example.com/*"))
		if !host.permitsReferer(ref) {
			return
		}
		text := ref
		if !strings.Contains(text, "://") {
			text = "https://" + text
		}
		u, err := url.Parse(text)
		if err != nil {
			return // net/url is stricter about escapes and ports, which decide nothing
		}
		if h := strings.TrimSuffix(strings.ToLower(u.Hostname()), "."); !strings.HasSuffix(h, ".example.com") || u.User != nil {
			t.Fatalf("%q admitted, a page of %q", ref, u.Host)
		}
	})
}
