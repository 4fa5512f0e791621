package pipeline

// Refusal ends a request. It holds what the client is told; how that is written depends on the dialect (package fault).
type Refusal struct {
	// Code is the fault code, 900902; for refusals without one (404, 413) it is the status.
	Code int
	// Status is the HTTP status.
	Status int
	// Message is the short text of the code, Description the longer one. Neither ever holds a token or the name of a
	// host behind the gateway.
	Message     string
	Description string
	// RetryAfter is the value of Retry-After in seconds; 0 leaves the header out.
	RetryAfter int64
	// Challenge is the auth-param part of WWW-Authenticate without the realm: "" for none, ChallengeOnly for a bare
	// challenge, else `error="invalid_token", error_description="…"`.
	Challenge string
	// Allow lists the methods of a resource, with 405.
	Allow string
}

// ChallengeOnly asks for WWW-Authenticate with nothing but the scheme and the realm: no credential was sent.
const ChallengeOnly = "-"
