package stage

import (
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/pipeline"
	"gatehouse/subscription"
)

var update = flag.Bool("update", false, "write the golden files anew")

// issuers stands for every domain that judges credentials: what is called good is good, what is called away cannot be
// judged now, and all else is bad. It notes what it was asked.
type issuers struct {
	asked []string
	keys  []keymanager.KeyOffer
	certs []keymanager.CertificateOffer
	token keymanager.Token // what good credentials become, but for their kind
}

func (i *issuers) judge(kind keymanager.Kind, check keymanager.Check, value string) (*keymanager.Token, error) {
	i.asked = append(i.asked, string(kind))
	switch {
	case strings.HasPrefix(value, "good"):
		t := i.token
		t.Kind, t.KeyManager = kind, "KM"
		return &t, nil
	case value == "away":
		return nil, &keymanager.Refusal{Check: keymanager.CheckUnverified, Detail: "nobody answers", Temporary: true}
	case value == "elsewhere":
		return nil, &keymanager.Refusal{Check: keymanager.CheckIP, Detail: "the address may not use the API key", Forbidden: true}
	}
	return nil, &keymanager.Refusal{Check: check, Detail: "the " + string(kind) + " is bad"}
}

func (i *issuers) Authenticate(_ context.Context, c keymanager.Credential) (*keymanager.Token, bool, error) {
	t, err := i.judge(keymanager.KindJWT, keymanager.CheckSignature, c.Bearer)
	return t, true, err
}

func (i *issuers) AuthenticateKey(_ context.Context, o keymanager.KeyOffer) (*keymanager.Token, bool, error) {
	kind := keymanager.KindAPIKey
	if o.Internal {
		kind = keymanager.KindInternalKey
	}
	i.keys = append(i.keys, o)
	t, err := i.judge(kind, keymanager.CheckSignature, o.Value)
	if t != nil {
		t.Unsubscribed = o.Internal
	}
	return t, false, err
}

func (i *issuers) AuthenticateUser(_ context.Context, user, password string) (*keymanager.Token, error) {
	t, err := i.judge(keymanager.KindBasic, keymanager.CheckUser, password)
	if t != nil {
		t.User, t.Unsubscribed = user, true
	}
	return t, err
}

func (i *issuers) AuthenticateCertificate(o keymanager.CertificateOffer) (*keymanager.Token, error) {
	i.certs = append(i.certs, o)
	t, err := i.judge(keymanager.KindCertificate, keymanager.CheckClient, string(o.DER))
	if t != nil {
		t.User, t.Unsubscribed = "Unknown", true
	}
	return t, err
}

// asks reads alternatives: "oauth2+mutualssl | api_key".
func asks(text string) (out [][]definition.Credential) {
	if text == "" {
		return nil
	}
	for alternative := range strings.SplitSeq(text, " | ") {
		var list []definition.Credential
		for kind := range strings.SplitSeq(alternative, "+") {
			list = append(list, definition.Credential(kind))
		}
		out = append(out, list)
	}
	return out
}

// basicOf is a basic credential.
func basicOf(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }

// came reads what a request brings: "bearer good, key good, query good, console good, basic good, cert good".
func came(text string) (h fields, query string, c pipeline.CertificateSource) {
	h = fields{}
	for part := range strings.SplitSeq(text, ", ") {
		what, value, _ := strings.Cut(part, " ")
		switch what {
		case "":
		case "bearer":
			h["Authorization"] = append(h["Authorization"], "Bearer "+value)
		case "basic":
			h["Authorization"] = append(h["Authorization"], basicOf("alice:"+value))
		case "field":
			h["Authorization"] = append(h["Authorization"], value)
		case "key":
			h["X-Key"] = append(h["X-Key"], value)
		case "query":
			query += "&key=" + value
		case "console":
			h[pipeline.InternalKeyHeader] = append(h[pipeline.InternalKeyHeader], value)
		case "cert":
			c = shown(value)
		default:
			panic(part)
		}
	}
	return h, strings.TrimPrefix(query, "&"), c
}

// secure runs a request against a resource and returns the exchange with what became of it.
func secure(i *issuers, d *Domains, api *definition.API, ask, bring string) (*pipeline.Exchange, *pipeline.Refusal) {
	op := &definition.Operation{Template: "/*", Method: "GET", Security: asks(ask), APIKeyHeaders: []string{"x-key"}, APIKeyQueries: []string{"key"}}
	return secureOp(i, d, api, op, bring)
}

func secureOp(i *issuers, d *Domains, api *definition.API, op *definition.Operation, bring string) (*pipeline.Exchange, *pipeline.Refusal) {
	x := prepared(i, d, &world{facts: row(subscription.Unblocked)}, api, op, bring)
	return x, pipeline.Run(x)
}

func all(i *issuers) *Domains { return &Domains{APIKeys: i, Users: i, Certificates: i} }

func shop() *definition.API {
	return &definition.API{UUID: "u", Name: "Shop", Version: "1", Context: "/shop/1", SkipSubscriptions: true}
}

// TestSecurityRequirements is the table of what resources ask for, what comes, and what the answer is.
func TestSecurityRequirements(t *testing.T) {
	requirements := []struct{ name, ask string }{
		{"", "oauth2"},
		{"", "api_key"},
		{"", "basic_auth"},
		{"", "mutualssl"},
		{"", "oauth2 | api_key"},
		{"", "oauth2+api_key"},
		{"", "mutualssl+oauth2"},
		{"", "mutualssl | oauth2"},
		{"", "mutualssl+oauth2 | mutualssl+api_key | mutualssl+basic_auth"},
		{"", "basic_auth | oauth2+mutualssl"},
		{"optional ", "oauth2 | api_key"},
		{"optional ", "oauth2"},
	}
	requests := []string{
		"", "bearer good", "bearer bad", "bearer away", "key good", "key bad", "key elsewhere", "query good", "console good", "console bad", "basic good", "basic bad", "cert good", "cert bad",
		"bearer good, key good", "bearer bad, key good", "bearer good, key bad", "bearer bad, key bad", "bearer bad, key away", "bearer good, cert good", "bearer good, cert bad", "bearer bad, cert good",
		"key good, cert good", "basic good, cert good", "console good, cert good", "bearer bad, console good", "basic good, key good, cert bad",
		"field Digest x", "field good", "field Bearer", "field Bearer\tgood", "field bEARER good", "field Bearer good x", "field Basic !", "field Basic Z29vZA==", "field " + basicOf("alice:"), "field " + basicOf(":good"),
		"bearer good, bearer good", "bearer good, basic good", "key good, key good", "query good, query bad", "key good, query good", "key good, query good2", "console good, console good",
	}
	var b strings.Builder
	for _, req := range requirements {
		fmt.Fprintf(&b, "%s%s\n", req.name, cmpOr(req.ask, "(nothing said)"))
		for _, bring := range requests {
			i := &issuers{}
			api := shop()
			api.SecurityOptional = req.name != ""
			x, f := secure(i, all(i), api, req.ask, bring)
			answer := "anonymous"
			switch {
			case f != nil:
				answer = fmt.Sprintf("%d/%d %s", f.Status, f.Code, x.Reason)
				if strings.Contains(f.Description+f.Challenge+x.Reason, "good") {
					t.Errorf("%s: %s: the credential stands in the answer: %+v %s", req.ask, bring, f, x.Reason)
				}
			case x.Token != nil:
				answer = "as " + string(x.Token.Kind)
			}
			fmt.Fprintf(&b, "  %-34s %-22s %s\n", strings.ReplaceAll(cmpOr(bring, "(nothing)"), "\t", `\t`), strings.Join(i.asked, " "), answer)
		}
	}
	const file = "testdata/security.golden"
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
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// TestSecurityAgainstOracle compares the stage to the plain reading of OpenAPI: let in when all kinds of some alternative
// came and are good.
func TestSecurityAgainstOracle(t *testing.T) {
	kinds := []definition.Credential{definition.OAuth2, definition.APIKey, definition.Basic, definition.MutualTLS}
	rapid.Check(t, func(t *rapid.T) {
		alternatives := rapid.SliceOfN(rapid.SliceOfNDistinct(rapid.SampledFrom(kinds), 1, 4, rapid.ID[definition.Credential]), 0, 4).Draw(t, "asks")
		checked := rapid.SliceOfDistinct(rapid.SampledFrom(kinds[1:]), rapid.ID[definition.Credential]).Draw(t, "checked")
		state := rapid.SampledFrom([]string{"", "good", "bad", "away"})
		optional := rapid.Bool().Draw(t, "optional")
		sent := map[definition.Credential]string{definition.APIKey: state.Draw(t, "key"), definition.MutualTLS: state.Draw(t, "certificate")}
		console := state.Draw(t, "console")
		var brings []string
		field := rapid.SampledFrom([]definition.Credential{"", definition.OAuth2, definition.Basic}).Draw(t, "field")
		if field != "" {
			sent[field] = rapid.SampledFrom([]string{"good", "bad", "away"}).Draw(t, "credential")
			brings = append(brings, map[definition.Credential]string{definition.OAuth2: "bearer ", definition.Basic: "basic "}[field]+sent[field])
		}
		for name, value := range map[string]string{"key ": sent[definition.APIKey], "cert ": sent[definition.MutualTLS], "console ": console} {
			if value != "" {
				brings = append(brings, name+value)
			}
		}
		i := &issuers{}
		d := &Domains{}
		can := map[definition.Credential]bool{definition.OAuth2: true}
		for _, k := range checked {
			can[k] = true
		}
		if can[definition.APIKey] {
			d.APIKeys = i
		} else {
			console = ""
		}
		if can[definition.Basic] {
			d.Users = i
		}
		if can[definition.MutualTLS] {
			d.Certificates = i
		}
		var want, possible, relevant bool
		effective := alternatives
		if len(effective) == 0 {
			effective = [][]definition.Credential{{definition.OAuth2}}
		}
		for _, alternative := range effective {
			if slices.ContainsFunc(alternative, func(k definition.Credential) bool { return !can[k] }) {
				continue
			}
			possible = true
			own, byConsole, application := true, true, false
			for _, k := range alternative {
				own = own && sent[k] == "good"
				relevant = relevant || sent[k] != ""
				if k == definition.MutualTLS {
					byConsole = byConsole && sent[k] == "good"
				} else {
					application = true
				}
			}
			want = want || own || byConsole && application && console == "good"
			relevant = relevant || application && console != ""
		}
		api := shop()
		api.SecurityOptional = optional
		op := &definition.Operation{Template: "/*", Method: "GET", Security: alternatives, APIKeyHeaders: []string{"X-Key"}}
		x, f := secureOp(i, d, api, op, strings.Join(brings, ", "))
		anonymous := optional && possible && !relevant && field == "" && !certain(effective, can)
		if (f == nil) != (want || anonymous) {
			t.Fatalf("asks %v, can %v, brings %v: refused %+v (%s), want admitted %v", alternatives, can, brings, f, x.Reason, want || anonymous)
		}
		if f == nil && (x.Token == nil) != (anonymous && !want) {
			t.Fatalf("token %v, anonymous %v", x.Token, anonymous)
		}
		if f == nil && !slices.Equal(x.Route.Strip, x.Route.Secrets) {
			t.Fatal("something is not stripped")
		}
		asked := slices.Clone(i.asked)
		slices.Sort(asked)
		if len(slices.Compact(asked)) != len(i.asked) {
			t.Fatalf("a credential was checked twice: %v", i.asked)
		}
		if f == nil {
			x.Offer.Again = true
			for _, s := range x.Route.Again {
				if f := s.Run(x); f != nil {
					t.Fatalf("asked again, the same request is refused: %+v", f)
				}
			}
		}
	})
}

// certain says whether every alternative that can be checked asks for a certificate: then not even optional security lets
// a request pass without one.
func certain(alternatives [][]definition.Credential, can map[definition.Credential]bool) bool {
	for _, a := range alternatives {
		if !slices.ContainsFunc(a, func(k definition.Credential) bool { return !can[k] }) && !slices.Contains(a, definition.MutualTLS) {
			return false
		}
	}
	return true
}
