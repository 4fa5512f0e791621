package registry

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"gatehouse/keymanager"
)

// formats are the entries of token_format_string, made ready: they say which tokens are a key manager's.
type formats struct {
	opaque []*regexp.Regexp
	bodies []map[string]string
}

// newFormats compiles the patterns. One that does not compile claims nothing; the error names each.
func newFormats(list []keymanager.TokenFormat) (f formats, err error) {
	var faults []string
	for _, t := range list {
		switch {
		case strings.EqualFold(t.Type, "JWT") && len(t.Claims) > 0 || len(t.Claims) > 0 && t.Pattern == "":
			f.bodies = append(f.bodies, t.Claims)
		case t.Pattern != "" && !strings.EqualFold(t.Type, "JWT"):
			re, bad := regexp.Compile(`\A(?:` + t.Pattern + `)\z`)
			if bad != nil {
				faults = append(faults, fmt.Sprintf("%q: %v", t.Pattern, bad))
				continue
			}
			f.opaque = append(f.opaque, re)
		}
	}
	if faults != nil {
		err = fmt.Errorf("its token_format_string has patterns that are no regular expressions of RE2: %s", strings.Join(faults, "; "))
	}
	return f, err
}

// claimOpaque reports whether a token that is no JWT has the form of the key manager's.
func (f *formats) claimOpaque(token string) bool {
	for _, re := range f.opaque {
		if re.MatchString(token) {
			return true
		}
	}
	return false
}

// claimBody reports whether the claims of a JWT are those of the key manager's.
func (f *formats) claimBody(claims map[string]any) bool {
	for _, want := range f.bodies {
		all := true
		for name, value := range want {
			if !hasValue(claims[name], value) {
				all = false
				break
			}
		}
		if all {
			return true
		}
	}
	return false
}

func hasValue(v any, want string) bool {
	switch v := v.(type) {
	case string:
		return v == want
	case json.Number:
		return string(v) == want
	case bool:
		return v && want == "true" || !v && want == "false"
	case []any:
		for _, e := range v {
			if _, nested := e.([]any); !nested && hasValue(e, want) {
				return true
			}
		}
	}
	return false
}
