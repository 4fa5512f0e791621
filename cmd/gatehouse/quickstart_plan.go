package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// quickstartStep is one line for the shell with the answer that it must get.
type quickstartStep struct {
	Group   string `json:"group"`
	Title   string `json:"title"`
	Command string `json:"command"`
	// Status is the status of the HTTP answer; below 100 it is the exit status of the whole line.
	Status int `json:"status"`
	// Code is the fault code of the answer, 0 for none.
	Code int `json:"code"`
	// Shows is a text that what is printed must hold, "" for any.
	Shows string `json:"shows"`
	// Within is how many seconds the answer may take to become the expected one.
	Within float64 `json:"within_seconds"`
	// Steers is true for a line that changes something at the API Manager.
	Steers bool `json:"steers"`

	method, url string   // url "": nothing is requested
	user        string   // whose header file goes with it; "" for none
	field       string   // the header of that file
	args        []string // of gatehouse, which gets the JWT that the answer shows, else the user's token, on standard input
}

// quickstartPlan is everything that quickstart prints and --once runs, in order.
type quickstartPlan struct {
	gateway string // http://localhost:9090
	manager string // https://localhost:9443
	admin   string // 127.0.0.1:9096
	// binary is how the shell calls this program.
	binary string
	// curl begins each line; it says -4 where the gateway listens on every address, so that the client is 127.0.0.1.
	curl    string
	headers map[string]string // user → header file
	steps   []quickstartStep
}

// The groups, in the order in which they are printed.
const (
	groupCalls  = "Who may call"
	groupKinds  = "Other credentials, and what the backend is told"
	groupDeny   = "Deny policies"
	groupBlock  = "Subscriptions"
	groupCustom = "A custom policy"
	groupRevoke = "Revocation"
)

// quickstartLimit requests in a minute are what the custom policy admits.
const quickstartLimit = 5

// shop is the resource that the plan calls.
const shop = "/shop/1.0.0/items"

// obeyWithin is how soon the gateway follows a change, in seconds.
const obeyWithin = 1

// fill makes the steps of a plan that knows all places.
func (p *quickstartPlan) fill() {
	p.call(groupCalls, "a token of the third-party key manager", "alice", 200, 0, 0)
	p.call(groupCalls, "no token", "", 401, 900902, 0)
	p.call(groupCalls, "bob's application has no subscription", "bob", 403, 900908, 0)
	p.call(groupCalls, "carol's subscription is blocked", "carol", 401, 900907, 0)

	p.call(groupKinds, "an opaque token: the gateway asks the key manager about it", "opaque", 200, 0, 0)
	p.call(groupKinds, "an API key of the API Manager", "apikey", 200, 0, 0)
	p.tell(groupKinds, "the backend gets X-JWT-Assertion, signed by the gateway, and no token of alice's", "alice")

	for _, d := range []struct{ title, kind, value string }{
		{"the client's address", "IP", "127.0.0.1"},
		{"a range of addresses", "IPRANGE", "127.0.0.0-127.0.0.9"},
		{"the user", "USER", "alice@carbon.super"},
		{"the application", "APPLICATION", "alice:MobileApp"},
		{"the API", "API", "/shop/1.0.0"},
		{"the subscription", "SUBSCRIPTION", "/shop/1.0.0:1.0.0:alice-MobileApp:PRODUCTION"},
	} {
		path := "/emulator/deny?" + quickstartQuery("type", d.kind, "value", d.value)
		p.steer(groupDeny, "deny "+d.title, http.MethodPut, path, "")
		p.call(groupDeny, "denied: "+d.title, "alice", 403, 900805, obeyWithin)
		p.steer(groupDeny, "allow "+d.title, http.MethodDelete, path, "")
		p.call(groupDeny, "allowed again", "alice", 200, 0, obeyWithin)
	}

	p.steer(groupBlock, "unblock carol's subscription", http.MethodPut, "/emulator/subscriptions/2?state=UNBLOCKED", "")
	p.call(groupBlock, "carol may call", "carol", 200, 0, obeyWithin)
	p.steer(groupBlock, "block it again", http.MethodPut, "/emulator/subscriptions/2?state=BLOCKED", "")
	p.call(groupBlock, "carol may not", "carol", 401, 900907, obeyWithin)

	// dave has sent nothing yet, so none of his earlier requests can be counted late.
	custom := "/emulator/custom-policies?" + quickstartQuery("template", "$userId")
	p.steer(groupCustom, fmt.Sprintf("%d requests a minute for each user", quickstartLimit), http.MethodPut,
		custom+fmt.Sprintf("&limit=%d&window=60s", quickstartLimit), "")
	for i := range quickstartLimit {
		p.call(groupCustom, fmt.Sprintf("request %d of %d", i+1, quickstartLimit), "dave", 200, 0, 0)
	}
	p.call(groupCustom, "one too many", "dave", 429, 900806, obeyWithin)
	p.steer(groupCustom, "take the policy away", http.MethodDelete, custom, "")
	p.call(groupCustom, "and the next passes", "dave", 200, 0, obeyWithin)

	p.call(groupRevoke, "dave's token is good", "dave", 200, 0, 0)
	p.steer(groupRevoke, "revoke it", http.MethodPost, "/emulator/revoke", "dave")
	p.call(groupRevoke, "revoked", "dave", 401, 900901, obeyWithin)
	p.verify(groupRevoke, "which check it fails", "dave", "revoked")
}

// quickstartQuery writes a query that a person can read: only what would end or change it is escaped.
func quickstartQuery(pairs ...string) string {
	plain := strings.NewReplacer("%2F", "/", "%3A", ":", "%40", "@", "%24", "$")
	var parts []string
	for i := 0; i+1 < len(pairs); i += 2 {
		parts = append(parts, pairs[i]+"="+plain.Replace(url.QueryEscape(pairs[i+1])))
	}
	return strings.Join(parts, "&")
}

func (p *quickstartPlan) call(group, title, user string, status, code int, within float64) {
	s := quickstartStep{
		Group: group, Title: title, Status: status, Code: code, Within: within, method: http.MethodGet, url: p.gateway + shop, user: user,
		field: quickstartField(user),
	}
	s.Command = p.curl + " " + s.url
	if user != "" {
		s.Command += " -H @" + p.headers[user]
	}
	p.steps = append(p.steps, s)
}

// tell decodes the JWT that the backend got with a request, which it answers with.
func (p *quickstartPlan) tell(group, title, user string) {
	s := quickstartStep{
		Group: group, Title: title, Status: statusOK, Shows: "http://wso2.org/claims/applicationname", method: http.MethodGet, url: p.gateway + shop,
		user: user, field: quickstartField(user), args: []string{"token", "inspect", "-"},
	}
	curl := strings.Replace(p.curl, "-si", "-s", 1)
	s.Command = fmt.Sprintf("%s %s -H @%s | grep -o 'eyJ[[:alnum:]._-]*' | %s %s", curl, s.url, p.headers[user], p.binary, strings.Join(s.args, " "))
	p.steps = append(p.steps, s)
}

// verify asks the gateway for its judgment on a token that it refuses.
func (p *quickstartPlan) verify(group, title, user, check string) {
	s := quickstartStep{Group: group, Title: title, Status: statusFailed, Shows: check, user: user, args: []string{"token", "verify", "--admin", p.admin, "-"}}
	s.Command = fmt.Sprintf("%s %s < %s", p.binary, strings.Join(s.args, " "), p.headers[user])
	p.steps = append(p.steps, s)
}

func (p *quickstartPlan) steer(group, title, method, path, user string) {
	s := quickstartStep{Group: group, Title: title, Status: 200, Steers: true, method: method, url: p.manager + path, user: user, field: quickstartField(user)}
	address := s.url
	if strings.ContainsAny(address, "?&$") {
		address = "'" + address + "'"
	}
	s.Command = "curl -sk -X " + method + " " + address
	if user != "" {
		s.Command += " -H @" + p.headers[user]
	}
	p.steps = append(p.steps, s)
}

// quickstartResult is what a step got.
type quickstartResult struct {
	quickstartStep
	GotStatus int     `json:"got_status"`
	GotCode   int     `json:"got_code"`
	Seconds   float64 `json:"seconds"` // until the answer was the expected one
	OK        bool    `json:"ok"`
	Error     string  `json:"error,omitempty"`
}

func (r quickstartResult) answer() string {
	if r.Error != "" {
		return r.Error
	}
	return quickstartAnswer(r.GotStatus, r.GotCode)
}

func quickstartAnswer(status, code int) string {
	if status < 100 {
		return fmt.Sprintf("exit %d", status)
	}
	if code == 0 {
		return strconv.Itoa(status)
	}
	return fmt.Sprintf("%d %d", status, code)
}

var faultCode = regexp.MustCompile(`"code"\s*:\s*"?(\d{6})\b`)

// runQuickstartPlan sends the requests of every step, in order, and tells each result to report.
func runQuickstartPlan(ctx context.Context, p *quickstartPlan, caPEM []byte, tokens map[string]string, report func(quickstartResult)) (allRight bool) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true} // as curl
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	allRight = true
	for _, s := range p.steps {
		r := quickstartResult{quickstartStep: s}
		began := time.Now()
		for {
			r.GotStatus, r.GotCode, r.Error = 0, 0, ""
			printed, err := ask(ctx, client, s, tokens[s.user], &r)
			if err != nil {
				r.Error = err.Error()
			} else if !bytes.Contains(printed, []byte(s.Shows)) {
				r.Error = fmt.Sprintf("%s without %q", r.answer(), s.Shows)
			}
			r.OK = r.Error == "" && r.GotStatus == s.Status && r.GotCode == s.Code
			r.Seconds = time.Since(began).Seconds()
			if r.OK || r.Seconds > s.Within || ctx.Err() != nil {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		allRight = allRight && r.OK
		report(r)
		if ctx.Err() != nil {
			return false
		}
	}
	return allRight
}

var shownJWT = regexp.MustCompile(`eyJ[\w.-]*`)

// ask does what the shell does with a step's line, and returns what is printed.
func ask(ctx context.Context, client *http.Client, s quickstartStep, token string, r *quickstartResult) ([]byte, error) {
	if s.url == "" {
		return pipe(ctx, s, token, r), nil
	}
	req, err := http.NewRequestWithContext(ctx, s.method, s.url, nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		_, value, _ := strings.Cut(quickstartHeader(s.user, token), ": ")
		req.Header.Set(s.field, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if s.args != nil {
		return pipe(ctx, s, string(shownJWT.Find(body)), r), nil
	}
	r.GotStatus = resp.StatusCode
	if m := faultCode.FindSubmatch(body); m != nil && resp.StatusCode >= 400 {
		r.GotCode, _ = strconv.Atoi(string(m[1])) // six digits
	}
	return body, nil
}

// pipe runs the command of a step with a token on standard input.
func pipe(ctx context.Context, s quickstartStep, token string, r *quickstartResult) []byte {
	var out bytes.Buffer
	command := newTokenCommand(ioStreams{In: strings.NewReader(token), Out: &out, Err: &out})
	command.SetArgs(s.args[1:]) // behind "token"
	command.SilenceErrors, command.SilenceUsage = true, true
	r.GotStatus = statusOK
	if err := command.ExecuteContext(ctx); err != nil {
		r.GotStatus = statusUsage
		if own, ok := errors.AsType[*statusError](err); ok {
			r.GotStatus = own.status
		}
	}
	return out.Bytes()
}

// print writes the plan as a page to read: what to do, and beside it what to expect.
func (p *quickstartPlan) print(w io.Writer) {
	var b bytes.Buffer
	row := func(command, expect string) { fmt.Fprintf(&b, "  %s\n      → %s\n", command, expect) }
	head := func(group, note string) { fmt.Fprintf(&b, "\n%s%s\n", group, note) }

	head(groupCalls, "")
	for _, s := range p.group(groupCalls) {
		row(s.Command, quickstartAnswer(s.Status, s.Code)+"  "+s.Title)
	}
	head(groupKinds, "")
	for _, s := range p.group(groupKinds) {
		if s.args != nil {
			row(s.Command, s.Title)
			continue
		}
		row(s.Command, quickstartAnswer(s.Status, s.Code)+"  "+s.Title)
	}
	head(groupDeny, ": send one, then alice's request again. The gateway obeys within a second.")
	steps := p.group(groupDeny)
	for i := 0; i+3 < len(steps); i += 4 {
		row(steps[i].Command, fmt.Sprintf("alice gets %s; with DELETE in place of PUT, %s again",
			quickstartAnswer(steps[i+1].Status, steps[i+1].Code), quickstartAnswer(steps[i+3].Status, steps[i+3].Code)))
	}
	head(groupBlock, "")
	steps = p.group(groupBlock)
	for i := 0; i+1 < len(steps); i += 2 {
		row(steps[i].Command, "carol gets "+quickstartAnswer(steps[i+1].Status, steps[i+1].Code))
	}
	head(groupCustom, "")
	steps = p.group(groupCustom)
	last := len(steps) - 1
	row(steps[0].Command, fmt.Sprintf("the traffic manager admits %s", steps[0].Title))
	row(fmt.Sprintf("for i in $(seq %d); do %s -o /dev/null -w '%%{http_code}\\n'; sleep .1; done", quickstartLimit+2, steps[1].Command),
		fmt.Sprintf("%d after %d times 200; code %d", steps[last-2].Status, quickstartLimit, steps[last-2].Code))
	row(steps[last-1].Command, "dave gets "+quickstartAnswer(steps[last].Status, steps[last].Code))
	head(groupRevoke, "")
	for _, s := range p.group(groupRevoke) {
		if s.Steers {
			row(s.Command, "the API Manager tells every gateway")
			continue
		}
		if s.args != nil {
			row(s.Command, fmt.Sprintf("%s: refused at the check %q", s.Title, s.Shows))
			continue
		}
		row(s.Command, quickstartAnswer(s.Status, s.Code)+"  "+s.Title)
	}
	_, _ = w.Write(b.Bytes()) // a terminal that went away is told nothing
}

func (p *quickstartPlan) group(name string) []quickstartStep {
	var out []quickstartStep
	for _, s := range p.steps {
		if s.Group == name {
			out = append(out, s)
		}
	}
	return out
}
