package databridge

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRecordedURLGroups holds ParseGroups against WSO2's parser. Where we differ on purpose, the difference stands here.
func TestRecordedURLGroups(t *testing.T) {
	ours := map[string]struct {
		err  string
		want []URLGroup
	}{
		"tcp://[::1]:9611":            {want: []URLGroup{{Endpoints: []Endpoint{{"tcp://[::1]:9611", "ssl://[::1]:9711"}}}}},
		"ssl://a:9711":                {want: []URLGroup{{Endpoints: []Endpoint{{"ssl://a:9711", "ssl://a:9711"}}}}},
		"{tcp://a:9611},tcp://b:9611": {err: "outside of braces"},
	}
	var doc struct {
		Cases []struct {
			URLs   string `json:"urls"`
			Error  string `json:"error"`
			Groups []struct {
				Mode string   `json:"mode"`
				URLs []string `json:"urls"`
			} `json:"groups"`
			DefaultAuth string `json:"defaultAuth"`
		} `json:"cases"`
	}
	b, err := os.ReadFile("testdata/samples/url-groups.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &doc); err != nil || len(doc.Cases) == 0 {
		t.Fatal(err)
	}
	for _, c := range doc.Cases {
		t.Run(c.URLs, func(t *testing.T) {
			got, err := ParseGroups(c.URLs, "")
			if o, ok := ours[c.URLs]; ok {
				if o.err != "" {
					if err == nil || !strings.Contains(err.Error(), o.err) {
						t.Errorf("%v, %v, want an error with %q", got, err, o.err)
					}
				} else if diff := cmp.Diff(o.want, got); diff != "" || err != nil {
					t.Error(err, diff)
				}
				return
			}
			if c.Error != "" {
				if err == nil {
					t.Errorf("accepted as %v, WSO2's parser says: %s", got, c.Error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var auth []string
			for i, g := range got {
				if g.Mode.String() != c.Groups[i].Mode {
					t.Errorf("group %d: %s, want %s", i, g.Mode, c.Groups[i].Mode)
				}
				var urls, authURLs []string
				for _, e := range g.Endpoints {
					urls, authURLs = append(urls, e.URL), append(authURLs, e.AuthURL)
				}
				if diff := cmp.Diff(c.Groups[i].URLs, urls); diff != "" {
					t.Error(diff)
				}
				auth = append(auth, "{"+strings.Join(authURLs, map[Mode]string{LoadBalance: ",", Failover: "|"}[g.Mode])+"}")
			}
			if len(got) != len(c.Groups) || strings.Join(auth, ",") != c.DefaultAuth {
				t.Errorf("%d groups, authentication %s, want %s", len(got), strings.Join(auth, ","), c.DefaultAuth)
			}
		})
	}
}

func TestParseGroupsErrors(t *testing.T) {
	tests := []struct{ name, urls, auth, want string }{
		{"fewer authentication groups", "{tcp://a:9611},{tcp://b:9611}", "{ssl://a:9711}", "2 URL groups but 1"},
		{"fewer authentication URLs", "tcp://a:9611,tcp://b:9611", "ssl://a:9711", "2 URLs but 1"},
		{"authentication in clear text", "tcp://a:9611", "tcp://a:9611", "TLS only"},
		{"no scheme", "a:9611", "", "no scheme"},
		{"other scheme", "http://a:9611", "", "neither tcp nor ssl"},
		{"port too large", "tcp://a:70000", "", "1 to 65535"},
		{"no room for the authentication port", "tcp://a:65500", "", "name the authentication URL"},
		{"brace not closed", "{tcp://a:9611", "", "not closed"},
		{"empty group", "{}", "", "names no URL"},
		{"password is not repeated", "tcp://u:secret@a:9611", "", "host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseGroups(tt.urls, tt.auth)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, %v, want an error with %q", got, err, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error repeats a password: %v", err)
			}
		})
	}
}

func TestNewGroup(t *testing.T) {
	tests := []struct {
		name       string
		urls, auth []string
		kind       string
		want       URLGroup
	}{
		{"anything but loadbalance fails over", []string{"tcp://a:9611", "tcp://b:9611"}, nil, "", URLGroup{Failover, []Endpoint{{"tcp://a:9611", "ssl://a:9711"}, {"tcp://b:9611", "ssl://b:9711"}}}},
		{"load balance", []string{"tcp://a:9611"}, []string{"ssl://auth:1234"}, "loadbalance", URLGroup{LoadBalance, []Endpoint{{"tcp://a:9611", "ssl://auth:1234"}}}},
		{"one text of Microgateway 3.2", []string{"tcp://a:9611,tcp://b:9611"}, []string{"ssl://a:9711,ssl://b:9711"}, "failover", URLGroup{LoadBalance, []Endpoint{{"tcp://a:9611", "ssl://a:9711"}, {"tcp://b:9611", "ssl://b:9711"}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NewGroup(tt.urls, tt.auth, tt.kind)
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Error(err, diff)
			}
		})
	}
}

func FuzzParseGroups(f *testing.F) {
	for _, s := range []string{"tcp://a:9611", "{tcp://a:9611|tcp://b:9612},{ssl://[::1]:9711}", " tcp://a:9611 , tcp://b:9611 ", "{}", "{tcp://a:1}{", "tcp://a:9611,"} {
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, urls, auth string) {
		groups, err := ParseGroups(urls, auth)
		if err != nil {
			return
		}
		// Written out again, the groups read as themselves.
		var out, outAuth []string
		for _, g := range groups {
			var u, a []string
			for _, e := range g.Endpoints {
				u, a = append(u, e.URL), append(a, e.AuthURL)
			}
			separator := ","
			if g.Mode == Failover {
				separator = "|"
			}
			if len(u) == 1 {
				g.Mode = LoadBalance
			}
			out, outAuth = append(out, "{"+strings.Join(u, separator)+"}"), append(outAuth, "{"+strings.Join(a, separator)+"}")
		}
		again, err := ParseGroups(strings.Join(out, ","), strings.Join(outAuth, ","))
		if err != nil {
			t.Fatalf("%q: written as %q: %v", urls, out, err)
		}
		for i := range groups {
			if diff := cmp.Diff(groups[i].Endpoints, again[i].Endpoints); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}
