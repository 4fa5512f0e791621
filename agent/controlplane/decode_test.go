package controlplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func decodeOne[T any](text string, decode func(*scanner, *T)) (T, *scanner) {
	s := newScanner(strings.NewReader(text))
	var row T
	decode(s, &row)
	s.finish()
	return row, s
}

func TestBothSpellingsOfEachField(t *testing.T) {
	t.Run("API of 3.2 without uuid, with urlMaping", func(t *testing.T) {
		got, s := decodeOne(`{"apiId":"7","provider":"admin","name":"A","version":1.0,"context":"/a/1.0","policy":null,"apiType":"HTTP","status":null,
			"isDefaultVersion":"true","tenantDomain":"carbon.super","urlMaping":[{"authScheme":"Any","httpMethod":"GET","urlPattern":"/*","throttlingPolicy":"Gold","scopes":null}]}`, (*scanner).api)
		want := API{
			APIID: 7, Provider: "admin", Name: "A", Version: "1.0", Context: "/a/1.0", APIType: "HTTP", IsDefaultVersion: true, Organization: "carbon.super",
			URLMappings: []URLMapping{{AuthScheme: "Any", HTTPMethod: "GET", URLPattern: "/*", ThrottlingPolicy: "Gold"}},
		}
		if diff := cmp.Diff(want, got); diff != "" || s.err != nil || s.odd != 0 {
			t.Errorf("%v, %d odd (-want +got):\n%s", s.err, s.odd, diff)
		}
	})
	t.Run("application as events spell it", func(t *testing.T) {
		got, s := decodeOne(`{"applicationId":3.0,"applicationName":"N","subscriber":"s","applicationPolicy":"P","groupIds":["g1",{"groupId":"g2"},null],"attributes":null}`, (*scanner).application)
		want := Application{ID: 3, Name: "N", SubName: "s", Policy: "P", GroupIDs: []string{"g1", "g2"}}
		if diff := cmp.Diff(want, got); diff != "" || s.err != nil {
			t.Errorf("%v (-want +got):\n%s", s.err, diff)
		}
	})
	t.Run("key manager with additionalProperties and organization", func(t *testing.T) {
		got, s := decodeOne(`{"name":"K","enabled":"true","organization":"o","tenantDomain":null,"additionalProperties":{"issuer":"i","self_validate_jwt":true},"configuration":{}}`, (*scanner).keyManager)
		want := KeyManager{Name: "K", Enabled: true, Tenant: "o", Configuration: map[string]any{"issuer": "i", "self_validate_jwt": true}}
		if diff := cmp.Diff(want, got); diff != "" || s.err != nil || s.odd != 0 {
			t.Errorf("%v (-want +got):\n%s", s.err, diff)
		}
	})
	t.Run("revoked tokens of 3.1", func(t *testing.T) {
		got, s := decodeOne(`[{"jwtSignature":"a","expiryTime":"5"},{"jwt_signature":"","expiry_time":6},null]`, (*scanner).revoked)
		want := Revoked{Tokens: []RevokedToken{{Signature: "a", ExpiresAt: 5}}}
		if diff := cmp.Diff(want, got); diff != "" || s.err != nil || s.odd != 2 {
			t.Errorf("%v, %d odd (-want +got):\n%s", s.err, s.odd, diff)
		}
	})
	t.Run("policy of 3.2 without a limit", func(t *testing.T) {
		got, s := decodeOne(`{"id":1,"tenantId":-1234,"name":"Gold","quotaType":"requestCount","rateLimitCount":null,"stopOnQuotaReach":true}`, (*scanner).policy)
		want := Policy{ID: 1, TenantID: -1234, Name: "Gold", QuotaType: "requestCount", StopOnQuotaReach: true}
		if diff := cmp.Diff(want, got); diff != "" || s.err != nil {
			t.Errorf("%v (-want +got):\n%s", s.err, diff)
		}
	})
	t.Run("limit without a quota type takes the member that is set", func(t *testing.T) {
		got, _ := decodeOne(`{"defaultLimit":{"requestCount":null,"bandwidth":{"timeUnit":"min","unitTime":2,"dataAmount":3,"dataUnit":"KB"}}}`, (*scanner).policy)
		want := &Limit{QuotaType: "bandwidthVolume", TimeUnit: "min", UnitTime: 2, Bytes: 3072}
		if diff := cmp.Diff(want, got.DefaultLimit); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("application policy with a burst limit", func(t *testing.T) {
		got, _ := decodeOne(`{"name":"P","burstLimit":{"rateLimitCount":5,"rateLimitTimeUnit":"sec"}}`, (*scanner).policy)
		if got.RateLimitCount != 5 || got.RateLimitTimeUnit != "sec" {
			t.Errorf("burst is %d a %s", got.RateLimitCount, got.RateLimitTimeUnit)
		}
	})
	t.Run("blocking condition that is off", func(t *testing.T) {
		got, _ := decodeOne(`{"ip":[{"type":"IP","fixedIp":"10.0.0.1","state":"false","conditionId":"4"}],"user":null}`, (*scanner).block)
		want := Block{IP: []IPCondition{{ID: 4, Type: "IP", FixedIP: "10.0.0.1", Inactive: true}}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("values of an unexpected kind are counted, not fatal", func(t *testing.T) {
		got, s := decodeOne(`{"subscriptionId":{"a":[1,{}]},"policyId":["x"],"apiId":1.5,"appId":"x","subscriptionState":"BLOCKED"}`, (*scanner).subscription)
		if diff := cmp.Diff(Subscription{SubscriptionState: "BLOCKED"}, got); diff != "" || s.err != nil || s.odd != 4 {
			t.Errorf("%v, %d odd (-want +got):\n%s", s.err, s.odd, diff)
		}
	})
}

func TestBytesOf(t *testing.T) {
	for _, tc := range []struct {
		amount int64
		unit   string
		want   int64
	}{{1, "KB", 1 << 10}, {50, "MB", 50 << 20}, {2, "gb", 2 << 30}, {7, "B", 7}, {1, "", 1 << 10}, {1 << 40, "TB", math.MaxInt64}} {
		if got := bytesOf(tc.amount, tc.unit); got != tc.want {
			t.Errorf("%d %s is %d bytes, want %d", tc.amount, tc.unit, got, tc.want)
		}
	}
}

// The oracle: the rows that encoding/json makes, in its generic form, of the same text.

// members are the values under names, of which the last that is neither null nor an odd kind counts.
func oracleText(m *object, names ...string) string {
	out := ""
	for _, kv := range *m {
		if !matches(kv.key, names) {
			continue
		}
		text := ""
		switch v := kv.value.(type) {
		case string:
			text = v
		case json.Number:
			text = v.String()
		case bool:
			text = strconv.FormatBool(v)
		}
		if text != "" {
			out = text
		}
	}
	return out
}

func oracleInt(m *object, names ...string) int64 {
	var out int64
	for _, kv := range *m {
		if !matches(kv.key, names) {
			continue
		}
		text := ""
		switch v := kv.value.(type) {
		case string:
			text = strings.TrimSpace(v)
		case json.Number:
			text = v.String()
		}
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			out = n
		} else if f, err := strconv.ParseFloat(text, 64); err == nil && f == math.Trunc(f) && f >= -(1<<63) && f < 1<<63 {
			out = int64(f)
		}
	}
	return out
}

func matches(key string, names []string) bool {
	lower := strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, key)
	return slices.Contains(names, lower)
}

// object keeps the members of a JSON object in order, also the repeated ones.
type object []struct {
	key   string
	value any
}

// generic reads JSON with encoding/json into objects, []any and scalars.
func generic(data []byte) (v any, ok bool) {
	if !json.Valid(data) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return genericValue(d), true
}

func genericValue(d *json.Decoder) any {
	t, err := d.Token()
	if err != nil {
		panic(err) // Valid has accepted the text
	}
	switch t {
	case json.Delim('{'):
		o := &object{}
		for d.More() {
			k, _ := d.Token()
			v := genericValue(d)
			*o = append(*o, struct {
				key   string
				value any
			}{k.(string), v})
		}
		d.Token()
		return o
	case json.Delim('['):
		list := []any{}
		for d.More() {
			list = append(list, genericValue(d))
		}
		d.Token()
		return list
	}
	return t
}

func depth(data []byte) int {
	most, now := 0, 0
	for _, c := range data {
		switch c {
		case '{', '[':
			now++
			most = max(most, now)
		case '}', ']':
			now--
		}
	}
	return most
}

// oracleSubscriptions are the rows of a list, or bad when the text is no list.
func oracleSubscriptions(data []byte) (rows []Subscription, bad bool) {
	v, ok := generic(data)
	if !ok {
		return nil, true
	}
	var list []any
	found := false
	switch v := v.(type) {
	case []any:
		list, found = v, true
	case *object:
		for _, kv := range *v {
			if !matches(kv.key, []string{"list"}) {
				continue
			}
			l, isList := kv.value.([]any)
			if found || !isList && kv.value != nil {
				return nil, true
			}
			list, found = l, true
		}
	}
	if !found {
		return nil, true
	}
	for _, it := range list {
		m, ok := it.(*object)
		if !ok {
			continue
		}
		rows = append(rows, Subscription{
			SubscriptionID: oracleInt(m, "subscriptionid"), SubscriptionUUID: oracleText(m, "subscriptionuuid"), PolicyID: oracleText(m, "policyid"),
			APIID: oracleInt(m, "apiid"), APIUUID: oracleText(m, "apiuuid"), AppID: oracleInt(m, "appid", "applicationid"),
			ApplicationUUID: oracleText(m, "applicationuuid", "appuuid"), SubscriptionState: oracleText(m, "subscriptionstate"),
		})
	}
	return rows, false
}

func seedSamples(f *testing.F) {
	files, err := filepath.Glob("testdata/rest/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no samples: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, text := range []string{
		`[]`, `{"list":null}`, `{"list":[{"apiId":"1","APIID":2}]}`, `[{"policyId":"\ud83d\ude00\ud800x\u0041"}]`, "[{\"policyId\":\"\xff\xc3\xa9\"}]",
		`[{"apiId":1e3,"appId":-0,"subscriptionId":9223372036854775808}]`, `[{"apiId":01}]`, `[1,"a",null,{}]`, `{"count":1,"list":[{}]} x`, `[{"a":{"b":[[],{}]}}]`,
	} {
		f.Add([]byte(text))
	}
}

func FuzzSubscriptions(f *testing.F) {
	seedSamples(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if depth(data) > maxDepth-10 {
			t.Skip("deeper than the scanner goes")
		}
		want, bad := oracleSubscriptions(data)
		for name, r := range map[string]io.Reader{"whole": bytes.NewReader(data), "byte by byte": iotest.OneByteReader(bytes.NewReader(data))} {
			s := newScanner(r)
			var got []Subscription
			s.list('{', func() error {
				var row Subscription
				s.subscription(&row)
				if s.err == nil {
					got = append(got, row)
				}
				return nil
			})
			if (s.err != nil) != bad {
				t.Fatalf("%s: error %v, the oracle says bad is %v", name, s.err, bad)
			}
			if diff := cmp.Diff(want, got); !bad && diff != "" {
				t.Fatalf("%s (-oracle +got):\n%s", name, diff)
			}
		}
	})
}

// FuzzDecoders runs every decoder over every text: none panics, each accepts exactly what is JSON, and what it makes does
// not depend on how the text is cut.
func FuzzDecoders(f *testing.F) {
	seedSamples(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if depth(data) > maxDepth-10 {
			t.Skip("deeper than the scanner goes")
		}
		valid := json.Valid(data)
		for name, decode := range map[string]func(*scanner) any{
			"api":          func(s *scanner) any { var v API; s.api(&v); return v },
			"application":  func(s *scanner) any { var v Application; s.application(&v); return v },
			"keyMapping":   func(s *scanner) any { var v KeyMapping; s.keyMapping(&v); return v },
			"policy":       func(s *scanner) any { var v Policy; s.policy(&v); return v },
			"globalPolicy": func(s *scanner) any { var v GlobalPolicy; s.globalPolicy(&v); return v },
			"scope":        func(s *scanner) any { var v Scope; s.scope(&v); return v },
			"keyManager":   func(s *scanner) any { var v KeyManager; s.keyManager(&v); return v },
			"block":        func(s *scanner) any { var v Block; s.block(&v); return v },
			"revoked":      func(s *scanner) any { var v Revoked; s.revoked(&v); return v },
			"value":        func(s *scanner) any { return s.value() },
		} {
			run := func(r io.Reader) (any, error) {
				s := newScanner(r)
				v := decode(s)
				s.finish()
				return v, s.err
			}
			whole, err := run(bytes.NewReader(data))
			if (err == nil) != valid {
				t.Fatalf("%s: error %v, valid JSON is %v", name, err, valid)
			}
			cut, cutErr := run(iotest.HalfReader(bytes.NewReader(data)))
			if (cutErr == nil) != valid || valid && !cmp.Equal(whole, cut) {
				t.Fatalf("%s: cut text gives %v, %+v, whole %+v", name, cutErr, cut, whole)
			}
		}
		if valid {
			var want any
			if json.Unmarshal(data, &want) == nil {
				s := newScanner(bytes.NewReader(data))
				if diff := cmp.Diff(want, s.value()); diff != "" {
					t.Fatalf("value (-encoding/json +got):\n%s", diff)
				}
			}
		}
	})
}

// subscriptionsBody is a body of n rows as an API Manager of 4.x sends it.
func subscriptionsBody(n int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"count":%d,"list":[`, n)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"subscriptionUUID":"5ab50000-0000-4000-8000-%012d","subscriptionId":%d,"policyId":"Gold","apiUUID":"4f1c0c5e-6b0a-4a8e-9f7e-%012d","apiId":%d,"applicationUUID":"1b6f2a34-90cd-4e12-8a77-%012d","appId":%d,"subscriptionState":"UNBLOCKED"}`,
			i, i, i%1000, i%1000, i/10, i/10)
	}
	b.WriteString(`],"pagination":null}`)
	return b.Bytes()
}

func BenchmarkSubscriptions(b *testing.B) {
	const rows = 100_000
	body := subscriptionsBody(rows)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		s := newScanner(bytes.NewReader(body))
		n, _ := s.list('{', func() error {
			var x Subscription
			s.subscription(&x)
			return nil
		})
		if s.err != nil || n != rows {
			b.Fatal(n, s.err)
		}
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

func TestLongListsAreNotHeld(t *testing.T) {
	// 5,000 rows of about 270 bytes: a scanner that held the body would need 1.3 MB.
	body := subscriptionsBody(5_000)
	s := newScanner(bytes.NewReader(body))
	held := int64(0)
	n, count := s.list('{', func() error {
		var x Subscription
		s.subscription(&x)
		held = max(held, s.in.read-s.offset())
		return nil
	})
	if s.err != nil || n != 5_000 || count != 5_000 {
		t.Fatal(n, count, s.err)
	}
	if held > 128<<10 {
		t.Errorf("the window grew to %d bytes", held)
	}
	if s.offset() != int64(len(body)) {
		t.Errorf("stopped at byte %d of %d", s.offset(), len(body))
	}
}
