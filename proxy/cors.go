package proxy

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatehouse/proxy/definition"
)

// cors is a compiled cross-origin policy. nil means that the policy is the backend's business.
type cors struct {
	all                     bool
	origins                 map[string]bool
	patterns                [][2]string // "https://*.example.com": what stands before and after the star
	credentials             bool
	methods, headers        []string // as header values
	expose, maxAge          []string
	methodsFromTheResource  bool
	echoTheRequestedHeaders bool
}

func compileCORS(d *definition.CORS) *cors {
	if d == nil || !d.Enabled {
		return nil
	}
	c := &cors{origins: map[string]bool{}, credentials: d.AllowCredentials}
	for _, o := range d.AllowOrigins {
		switch before, after, ok := strings.Cut(o, "*"); {
		case o == "*":
			c.all = true
		case ok:
			c.patterns = append(c.patterns, [2]string{strings.ToLower(before), strings.ToLower(after)})
		default:
			c.origins[strings.ToLower(o)] = true
		}
	}
	list := func(v []string) []string {
		if len(v) == 0 {
			return nil
		}
		return []string{strings.Join(v, ", ")}
	}
	c.methods, c.headers, c.expose = list(d.AllowMethods), list(d.AllowHeaders), list(d.ExposeHeaders)
	c.methodsFromTheResource = c.methods == nil
	c.echoTheRequestedHeaders = c.headers == nil || len(d.AllowHeaders) == 1 && d.AllowHeaders[0] == "*" && d.AllowCredentials
	if d.MaxAge > 0 {
		c.maxAge = []string{strconv.FormatInt(int64(d.MaxAge/time.Second), 10)}
	}
	return c
}

// allows says whether an origin may read answers.
func (c *cors) allows(origin string) bool {
	if c.all {
		return true
	}
	o := strings.ToLower(origin)
	if c.origins[o] {
		return true
	}
	for _, p := range c.patterns {
		if len(o) > len(p[0])+len(p[1]) && strings.HasPrefix(o, p[0]) && strings.HasSuffix(o, p[1]) &&
			!strings.ContainsAny(o[len(p[0]):len(o)-len(p[1])], "/:@") {
			return true
		}
	}
	return false
}

var varyOrigin = []string{"Origin"}

// apply sets the fields of an answer in place of the backend's.
func (c *cors) apply(h http.Header, origin []string) {
	for k := range h {
		if len(k) > 15 && k[:15] == "Access-Control-" {
			delete(h, k)
		}
	}
	if !c.all || c.credentials {
		addVary(h)
	}
	if len(origin) != 1 || !c.allows(origin[0]) {
		return
	}
	if c.all && !c.credentials {
		h["Access-Control-Allow-Origin"] = []string{"*"}
	} else {
		h["Access-Control-Allow-Origin"] = origin
	}
	if c.credentials {
		h["Access-Control-Allow-Credentials"] = []string{"true"}
	}
	if c.expose != nil {
		h["Access-Control-Expose-Headers"] = c.expose
	}
}

func addVary(h http.Header) {
	v := h["Vary"]
	if v == nil {
		h["Vary"] = varyOrigin
		return
	}
	for _, l := range v {
		for t := range strings.SplitSeq(l, ",") {
			if t = strings.TrimSpace(t); t == "*" || strings.EqualFold(t, "Origin") {
				return
			}
		}
	}
	h["Vary"] = append(slices.Clip(v), "Origin")
}

// preflight says whether a request is one.
func preflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && len(r.Header["Origin"]) == 1 && len(r.Header["Access-Control-Request-Method"]) > 0
}

// answer writes the answer to a preflight into h; allow lists the methods of the resource.
func (c *cors) answer(h http.Header, r *http.Request, allow string) {
	origin := r.Header["Origin"]
	c.apply(h, origin)
	delete(h, "Access-Control-Expose-Headers")
	if !c.allows(origin[0]) {
		return
	}
	if c.methodsFromTheResource {
		h["Access-Control-Allow-Methods"] = []string{allow}
	} else {
		h["Access-Control-Allow-Methods"] = c.methods
	}
	if asked := r.Header["Access-Control-Request-Headers"]; c.echoTheRequestedHeaders && len(asked) > 0 {
		h["Access-Control-Allow-Headers"] = asked[:1]
		h["Vary"] = append(slices.Clip(h["Vary"]), "Access-Control-Request-Headers")
	} else if c.headers != nil {
		h["Access-Control-Allow-Headers"] = c.headers
	}
	if c.maxAge != nil {
		h["Access-Control-Max-Age"] = c.maxAge
	}
}
