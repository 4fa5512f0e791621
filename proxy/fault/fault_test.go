package fault

import (
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gatehouse/proxy/pipeline"
)

var update = flag.Bool("update", false, "write the golden files anew")

var codes = []int{
	APIBlocked, LimitAPI, LimitHard, LimitResource, LimitApplication, LimitSubscription, Blocked, LimitCustom, LimitBurst, General,
	InvalidCredentials, MissingCredentials, TokenExpired, SubscriptionBlocked, Forbidden, SubscriptionInactive, ScopeMissing, BadUser, BadFormat, InvalidScheme,
	BackendFailed, BackendTimeout,
}

var statuses = []int{400, 404, 405, 408, 413, 414, 431, 500}

// TestBodies holds every body of every dialect in golden files: clients compare them byte by byte.
func TestBodies(t *testing.T) {
	formats := map[string]Format{"json": JSON, "xml": XML, "soap11": SOAP11, "soap12": SOAP12, "grpc": GRPC}
	for _, d := range []Dialect{Microgateway, APIM4, Problem} {
		for name, f := range formats {
			var b strings.Builder
			add := func(r pipeline.Refusal) {
				body := d.Append(nil, &r, f)
				fmt.Fprintf(&b, "%d: %d %s", r.Code, body.Status, body.ContentType)
				if f == GRPC {
					fmt.Fprintf(&b, " grpc-status %s, grpc-message %s", body.GRPCStatus, body.GRPCMessage)
				}
				fmt.Fprintf(&b, "\n%s\n", body.Content)
			}
			for _, c := range codes {
				add(Of(c))
			}
			for _, s := range statuses {
				add(Status(s))
			}
			file := filepath.Join("testdata", string(d)+"-"+name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		}
	}
}

// TestSamples compares to the bodies that the WSO2 gateways send (contract samples/rest/gateway-errors.json).
func TestSamples(t *testing.T) {
	r := Of(InvalidCredentials)
	for d, want := range map[Dialect]string{
		Microgateway: `{"fault":{"code":900901,"message":"Invalid Credentials","description":"Invalid Credentials. Make sure you have given the correct access token"}}`,
		APIM4:        `{"code":"900901","message":"Invalid Credentials","description":"Invalid Credentials. Make sure you have given the correct access token"}`,
	} {
		if got := string(d.Append(nil, &r, JSON).Content); got != want {
			t.Errorf("%s: %s", d, got)
		}
	}
	r = Status(404)
	if got, want := string(Microgateway.Append(nil, &r, JSON).Content), `{"code":404,"type":"Status report","message":"Runtime Error","description":"No matching resource found for given API Request"}`; got != want {
		t.Errorf("got %s", got)
	}
}

func TestStatusOfCodes(t *testing.T) {
	for code, status := range map[int]int{
		700700: 503, 900800: 429, 900801: 503, 900802: 429, 900803: 429, 900804: 429, 900805: 403, 900806: 429, 900807: 429,
		900900: 503, 900901: 401, 900902: 401, 900903: 401, 900907: 401, 900908: 403, 900909: 401, 900910: 403, 900911: 401, 900912: 401, 900917: 401, 101503: 502, 101504: 504, 1: 503,
	} {
		r := Of(code)
		if r.Status != status || r.Message == "" || r.Description == "" {
			t.Errorf("%d: %+v", code, r)
		}
		if r.Status == 429 && r.RetryAfter == 0 {
			t.Errorf("%d has no Retry-After", code)
		}
		if r.Status == 401 && r.Challenge == "" {
			t.Errorf("%d has no challenge", code)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		accept, contentType, action string
		want                        Format
	}{
		{"", "", "", JSON},
		{"*/*", "", "", JSON},
		{"application/xml", "", "", XML},
		{"text/xml;q=0.5", "", "", XML},
		{"application/xml, application/json", "", "", JSON},
		{"application/xml, application/json;q=0", "", "", XML},
		{"application/xml;q=0", "", "", JSON},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "", "", XML},
		{"Application/XML", "", "", XML},
		{"application/json", "application/grpc", "", GRPC},
		{"", "application/grpc+proto", "", GRPC},
		{"", "application/grpc-web+proto", "", JSON},
		{"", "text/xml; charset=utf-8", "urn:x", SOAP11},
		{"", "text/xml", "", JSON},
		{"", "application/soap+xml; action=x", "", SOAP12},
	} {
		if got := Choose(c.accept, c.contentType, c.action); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
}

// FuzzBodies: whatever a description holds, the body can be decoded and gives it back.
func FuzzBodies(f *testing.F) {
	f.Add("plain")
	f.Add("quote \" backslash \\ <tag> & \x01\x1f\n\t \u00e9 \xff")
	f.Fuzz(func(t *testing.T, text string) {
		r := pipeline.Refusal{Code: 900901, Status: 401, Message: "m", Description: text}
		want := strings.ToValidUTF8(text, "\uFFFD")
		var v struct{ Description string }
		if err := json.Unmarshal(APIM4.Append(nil, &r, JSON).Content, &v); err != nil {
			t.Fatal(err)
		}
		if len([]rune(v.Description)) != len([]rune(text)) && v.Description != want {
			t.Errorf("%q became %q", text, v.Description)
		}
		var x struct {
			Description string `xml:"description"`
		}
		if err := xml.Unmarshal(Microgateway.Append(nil, &r, XML).Content, &x); err != nil && !strings.ContainsAny(text, "\ufffe\uffff\x7f") {
			t.Errorf("%q: %v", text, err)
		}
		if q := Quote(text); strings.ContainsAny(q, "\"\\\r\n") {
			t.Errorf("%q is not safe in a quoted string", q)
		}
	})
}
