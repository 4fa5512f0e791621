package proxy

import (
	"net/http"
	"testing"

	"gatehouse/proxy/definition"
)

// Environments with endpoints of their own: one definition, whose variants are served on their own hosts.
func TestVariantsAreServedOnTheirHosts(t *testing.T) {
	us, eu, ap := echo(t, "us"), echo(t, "eu"), echo(t, "ap")
	on := func(url string, hosts ...string) *definition.API {
		a := anyAPI(single(url))
		a.Hosts = hosts
		return a
	}
	with := func(a *definition.API, variants ...*definition.API) *definition.API {
		a.Variants = variants
		return a
	}
	g := start(t, Options{}, with(on(us.URL, "us.test"), on(eu.URL, "eu.test"), on(ap.URL, "ap.test")))
	expect := func(host string, status int, by string) {
		t.Helper()
		if res, _ := do(t, g, http.MethodGet, "/a/1/x", "Host: "+host); res.StatusCode != status || res.Header.Get("X-Backend") != by {
			t.Errorf("%s: %d from %q, want %d from %q", host, res.StatusCode, res.Header.Get("X-Backend"), status, by)
		}
	}
	expect("us.test", 200, "us")
	expect("eu.test", 200, "eu")
	expect("ap.test", 200, "ap")
	expect("other.test", 404, "")
	if n := len(g.APIs()); n != 1 {
		t.Errorf("%d APIs are shown, want 1: variants are in it", n)
	}

	// A variant that cannot be served is named as its API, and what was served on its hosts stays.
	broken := on(eu.URL, "eu.test")
	broken.Production = single("ftp://x")
	refused := g.SetAPIs([]*definition.API{with(on(eu.URL, "us.test"), broken)})
	if len(refused) != 1 || refused["a"] == nil {
		t.Errorf("refused %v, want the API", refused)
	}
	expect("us.test", 200, "eu")
	expect("eu.test", 200, "eu")
	expect("ap.test", 404, "")

	// Two for the same host: the API itself goes before its variants.
	refused = g.SetAPIs([]*definition.API{with(on(us.URL, "us.test", "eu.test"), on(ap.URL, "eu.test"))})
	if len(refused) != 1 || refused["a"] == nil {
		t.Errorf("refused %v, want the API", refused)
	}
	expect("us.test", 200, "us")
	if refused = g.SetAPIs(nil); len(refused) > 0 || g.upstreams.Hosts() != 0 {
		t.Errorf("refused %v, and %d hosts are held for nothing", refused, g.upstreams.Hosts())
	}
}
