// Package pipeline is the path of one request through the gateway, without any HTTP engine: the Exchange that carries its
// state, the Stages that decide on it, the Refusal that ends it, and the Trace that says afterwards why.
//
// A chain of stages is built once per route, when a definition arrives. A request runs it by Run, which allocates
// nothing: the engine keeps Exchanges in a pool.
package pipeline

import (
	"context"
	"slices"

	"gatehouse/proxy/definition"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// Header is what stages see of the request's header. Names are in canonical form ("X-Request-Id"), as every engine
// keeps them. Returned slices belong to the engine and must not be changed.
type Header interface {
	// Values returns the lines of a field, nil when it is absent.
	Values(name string) []string
	// Del removes all lines of a field.
	Del(name string)
	// Visit shows each line of each field.
	Visit(v throttle.AttributeVisitor)
}

// Stage is one step of the pipeline. A stage is shared by all requests of a route and holds nothing of a single one.
type Stage interface {
	// Run decides on the exchange: nil lets it pass. A refusal is the one that the exchange owns (Exchange.Refuse).
	// A stage notes what it found in the exchange, so that the trace can show it.
	Run(x *Exchange) *Refusal
}

// Fetcher gets rows that memory lacks from where they are kept. It waits for others that ask for the same row, and
// remembers what was not found, so that a flood of unknown keys does not become a flood of calls.
type Fetcher interface {
	// Fetch asks for what is missing. found says whether something new was learnt; err is not nil when the question
	// could not be put, which is another thing than the answer no.
	Fetch(ctx context.Context, consumerKey, keyManager string, api subscription.APIRef, missing subscription.Reason) (found bool, err error)
	// FetchApplication is Fetch for a credential that names its application itself, by UUID and number: there is no key
	// mapping among what may be missing.
	FetchApplication(ctx context.Context, uuid string, id int64, api subscription.APIRef, missing subscription.Reason) (found bool, err error)
}

// Route is a compiled resource of an API: what the stages need to know of it, and the chain that they form.
// A Route is immutable; exchanges and traces point to it.
type Route struct {
	API       *definition.API
	Operation *definition.Operation
	// Ref names the API to the subscription store.
	Ref subscription.APIRef
	// Tenant owns the API: as deployed, or by the context ("/t/example.org/…"), else carbon.super.
	Tenant string
	// AuthHeader is the canonical name of the field that carries the credential.
	AuthHeader string
	// KeyHeaders and KeyQueries are the fields (canonical) and query parameters that an API key may come in; empty where
	// none is looked for.
	KeyHeaders, KeyQueries []string
	// Secrets are the fields (canonical) that may carry a credential of any kind: no event shows them. KeyQueries are
	// their like in the query.
	Secrets []string
	// Strip are those that the backend is not given where a credential is asked for.
	Strip []string
	// Basic says that basic authentication is among the alternatives, Bearer that an access token is: they choose the
	// challenges of a 401.
	Basic, Bearer bool
	// Secured is false where no credential is asked for.
	Secured bool
	// Production and Sandbox say which endpoints there are.
	Production, Sandbox bool
	// Stages are run in order.
	Stages []Stage
	// Again are the stages that are run for an exchange under way, to see whether it would still be admitted.
	Again []Stage
}

// InternalKeyHeader is the field in which the test console of the API Manager sends its keys.
const InternalKeyHeader = "Internal-Key"

// defaultKeyName is where API keys are looked for when the definition names no place.
const defaultKeyName = "apikey"

// Credentials fills, from API, Operation and AuthHeader, where the route's credentials are: certificates are the names
// (canonical) of the fields in which a trusted proxy hands on the client's certificate, keep leaves the credential field
// itself to the backend.
func (r *Route) Credentials(certificates []string, keep bool) {
	o := r.Operation
	r.Bearer = len(o.Security) == 0
	key := false
	for _, alternative := range o.Security {
		for _, kind := range alternative {
			switch kind {
			case definition.OAuth2:
				r.Bearer = true
			case definition.Basic:
				r.Basic = true
			case definition.APIKey:
				key = true
			}
		}
	}
	if key {
		for _, h := range o.APIKeyHeaders {
			if h = CanonicalName(h); !slices.Contains(r.KeyHeaders, h) {
				r.KeyHeaders = append(r.KeyHeaders, h)
			}
		}
		r.KeyQueries = slices.Clone(o.APIKeyQueries)
		if len(r.KeyHeaders) == 0 && len(r.KeyQueries) == 0 {
			r.KeyHeaders, r.KeyQueries = []string{CanonicalName(defaultKeyName)}, []string{defaultKeyName}
		}
	}
	r.Secrets = []string{r.AuthHeader}
	for _, list := range [...][]string{r.KeyHeaders, {InternalKeyHeader}, certificates} {
		for _, h := range list {
			if !slices.Contains(r.Secrets, h) {
				r.Secrets = append(r.Secrets, h)
			}
		}
	}
	if r.Secured {
		r.Strip = r.Secrets
		if keep && !slices.Contains(r.KeyHeaders, r.AuthHeader) { // an API key is never handed on
			r.Strip = r.Secrets[1:]
		}
	}
}

// secret says whether a field may carry a credential.
func (r *Route) secret(name string) bool {
	return name == r.AuthHeader || slices.Contains(r.Secrets, name)
}

// Run runs the chain of the exchange's route and returns the refusal that ended it, or nil.
func Run(x *Exchange) *Refusal {
	for _, s := range x.Route.Stages {
		if r := s.Run(x); r != nil {
			return r
		}
	}
	return nil
}
