package basic

import (
	"os"
	"regexp"
	"testing"
)

// TestHashesOfTheReference: what operators are shown is a whole hash.
func TestHashesOfTheReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^password_hash = "(.*)"$`).FindAllStringSubmatch(string(text), -1)
	if len(found) == 0 {
		t.Fatal("the reference shows no hash")
	}
	for _, m := range found {
		if _, err := ParseHash(m[1]); err != nil {
			t.Errorf("%s: %v", m[1], err)
		}
	}
}
