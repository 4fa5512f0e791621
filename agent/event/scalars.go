package event

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// The API Manager writes one attribute as a number in one release and as text in another. These read what a value
// means, whatever its type; what means nothing gives the zero value.

// stringOf is the text of a scalar.
func stringOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return text(v)
	case json.Number:
		return v.String()
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// intOf is the whole number of a scalar; fractions are cut off, and what int64 cannot hold is 0.
func intOf(v any) int64 {
	switch v := v.(type) {
	case int64:
		return v
	case float64:
		return wholeOf(v)
	case json.Number:
		return parseInt(string(v))
	case string:
		return parseInt(strings.TrimSpace(v))
	}
	return 0
}

func parseInt(s string) int64 {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n
	}
	// 1.764e12 and 60.0 are whole numbers too.
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		return wholeOf(f)
	}
	return 0
}

func wholeOf(f float64) int64 {
	// The negated form also refuses NaN. 2^63 itself is no int64.
	if !(f >= math.MinInt64 && f < math.MaxInt64) {
		return 0
	}
	return int64(f)
}

// boolOf is true for true, "true" in any case, and numbers other than 0.
func boolOf(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case string:
		return strings.EqualFold(strings.TrimSpace(v), "true")
	}
	return intOf(v) != 0
}

// stringsOf is a list of texts; a single text is a list of one.
func stringsOf(v any) []string {
	switch v := v.(type) {
	case []any:
		list := make([]string, 0, len(v))
		for _, e := range v {
			if s := stringOf(e); s != "" {
				list = append(list, s)
			}
		}
		return list
	case string:
		if v != "" {
			return []string{v}
		}
	}
	return nil
}

func intsOf(v any) []int64 {
	list, _ := v.([]any)
	if len(list) == 0 {
		return nil
	}
	out := make([]int64, 0, len(list))
	for _, e := range list {
		out = append(out, intOf(e))
	}
	return out
}

// firstOf is the first value that is there and not null.
func firstOf(m map[string]any, names ...string) any {
	for _, name := range names {
		if v := m[name]; v != nil {
			return v
		}
	}
	return nil
}

// foldedOf finds a value by its name without regard to case and underscores.
func foldedOf(m map[string]any, name string) any {
	if v, ok := m[name]; ok {
		return v
	}
	for key, v := range m {
		if strings.EqualFold(strings.ReplaceAll(key, "_", ""), name) {
			return v
		}
	}
	return nil
}

// decodeBase64 takes the standard and the URL alphabet, with and without padding, and quotes and line ends around or
// within.
func decodeBase64(s string) ([]byte, bool) {
	if b, err := base64.StdEncoding.DecodeString(s); err == nil {
		return b, true
	}
	s = strings.Trim(strings.TrimSpace(s), `"'`)
	if strings.ContainsAny(s, "-_ \t") {
		s = strings.NewReplacer("-", "+", "_", "/", " ", "", "\t", "").Replace(s)
	}
	s = strings.TrimRight(s, "=\r\n")
	b, err := base64.RawStdEncoding.DecodeString(s)
	return b, err == nil
}

// embedded reads an attribute that holds a JSON object: base64 of one, text of one, or the object itself. It is nil when
// the attribute is none of them.
func embedded(v any) map[string]any {
	if s, ok := v.(string); ok {
		if raw, ok := decodeBase64(s); ok {
			if m, err := decodeObject(trimText(raw)); err == nil {
				return m
			}
		}
	}
	m, _ := objectOf(v)
	return m
}

// objectOf reads a JSON object out of a value that is one, or a text that holds one, once or several times encoded.
func objectOf(v any) (map[string]any, bool) {
	for range 4 {
		switch t := v.(type) {
		case map[string]any:
			return t, true
		case string:
			inner, err := decodeJSON(trimText([]byte(t)))
			if err != nil {
				return nil, false
			}
			v = inner
		default:
			return nil, false
		}
	}
	return nil, false
}
