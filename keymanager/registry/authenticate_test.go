package registry

import (
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"gatehouse/keymanager"
)

func TestAuthenticateEachAlgorithm(t *testing.T) {
	f := newFixture(t)
	f.server.serve(jwk("r1", rsaKey(), nil), jwk("e1", ecKey(), nil), jwk("e2", ec384(), nil), jwk("e3", ec521(), nil), jwk("o1", edKey(), nil))
	tests := []struct {
		method jwt.SigningMethod
		kid    string
		key    any
	}{
		{jwt.SigningMethodRS256, "r1", rsaKey()},
		{jwt.SigningMethodRS384, "r1", rsaKey()},
		{jwt.SigningMethodRS512, "r1", rsaKey()},
		{jwt.SigningMethodPS256, "r1", rsaKey()},
		{jwt.SigningMethodPS384, "r1", rsaKey()},
		{jwt.SigningMethodPS512, "r1", rsaKey()},
		{jwt.SigningMethodES256, "e1", ecKey()},
		{jwt.SigningMethodES384, "e2", ec384()},
		{jwt.SigningMethodES512, "e3", ec521()},
		{jwt.SigningMethodEdDSA, "o1", edKey()},
	}
	for _, tt := range tests {
		t.Run(tt.method.Alg(), func(t *testing.T) {
			f.t = t
			token := sign(tt.method, tt.key, map[string]any{"kid": tt.kid}, f.claims())
			first := f.accept(token)
			again, cached, err := f.auth(token)
			if err != nil || !cached || again != first {
				t.Errorf("second time: cached=%t same=%t err=%v", cached, again == first, err)
			}
			if first.KeyID != tt.kid {
				t.Errorf("kid %q", first.KeyID)
			}
		})
	}
}

func TestAuthenticatedToken(t *testing.T) {
	f := newFixture(t)
	got := f.accept(f.token())
	now := f.clock.now().Unix()
	want := &keymanager.Token{
		KeyManager: "Resident Key Manager", Issuer: issuer, ID: "0d6d6ad2-7a84-4c5c-8a41-0e6b0f5f9a01", KeyID: "r1",
		Subject: "alice", User: "alice", ConsumerKey: "ck-1", Scopes: []string{"order:read", "order:write"}, IssuedAt: now - 10, ExpiresAt: now + 3600,
	}
	claims := got.Claims
	copied := *got
	copied.Claims = nil
	if d := cmp.Diff(want, &copied); d != "" {
		t.Error(d)
	}
	if claims["azp"] != "ck-1" {
		t.Errorf("claims %v", claims)
	}
}

func TestBoundTokenNamesItsCertificate(t *testing.T) {
	f := newFixture(t)
	if got := f.accept(f.token("cnf", map[string]any{"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"})).BoundTo; got != "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2" {
		t.Errorf("bound to %q", got)
	}
	if got := f.accept(f.token()).BoundTo; got != "" {
		t.Errorf("bound to %q", got)
	}
}
