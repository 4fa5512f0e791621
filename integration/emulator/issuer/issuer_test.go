package issuer

import (
	"testing"
	"time"
)

func TestIdentify(t *testing.T) {
	i := New(Options{Issuer: "https://localhost/realms/shop", JWKSPath: "/certs"})
	issued, err := i.Mint(Token{ClientID: "ck", Claims: map[string]any{"scope": "a b", "typ": nil}})
	if err != nil {
		t.Fatal(err)
	}
	id, expires, err := Identify(issued.Token)
	if err != nil || id != issued.ID || expires.Unix() != issued.ExpiresAt.Unix() {
		t.Errorf("%s %s %v, want %s %s", id, expires, err, issued.ID, issued.ExpiresAt)
	}
	if left := time.Until(issued.ExpiresAt); left < 59*time.Minute || left > time.Hour {
		t.Errorf("it lives %s, want an hour", left)
	}
	if issued.Subject != "ck" {
		t.Errorf("subject %q, want the client", issued.Subject)
	}
	for _, bad := range []string{"", "opaque", "a.b", "a.!.c", "a.e30x.c", "a..c"} {
		if _, _, err := Identify(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
