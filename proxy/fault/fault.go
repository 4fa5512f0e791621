// Package fault is the only writer of refusals: it knows the codes of the API Manager's gateways, their texts, and the
// shapes in which clients expect them.
package fault

import "gatehouse/proxy/pipeline"

// Fault codes (contract gateway-behaviour.md 2.3).
const (
	APIBlocked           = 700700
	LimitAPI             = 900800
	LimitHard            = 900801
	LimitResource        = 900802
	LimitApplication     = 900803
	LimitSubscription    = 900804
	Blocked              = 900805
	LimitCustom          = 900806
	LimitBurst           = 900807
	General              = 900900
	InvalidCredentials   = 900901
	MissingCredentials   = 900902
	TokenExpired         = 900903
	SubscriptionBlocked  = 900907
	Forbidden            = 900908
	SubscriptionInactive = 900909
	ScopeMissing         = 900910
	BadUser              = 900911
	BadFormat            = 900912
	InvalidScheme        = 900917
	BackendFailed        = 101503
	BackendTimeout       = 101504
)

const (
	invalidCredentials = "Invalid Credentials"
	throttledOut       = "Message throttled out"
	quota              = "You have exceeded your quota"
	correctToken       = "Invalid Credentials. Make sure you have given the correct access token"
)

// Of returns the refusal of a code with its usual status, message and description. It panics on nothing: a code that is
// not listed becomes 900900.
func Of(code int) pipeline.Refusal {
	r := pipeline.Refusal{Code: code}
	switch code {
	case APIBlocked:
		r.Status, r.Message, r.Description = 503, "API blocked", "This API has been blocked temporarily. Please try again later or contact the system administrators."
	case LimitAPI, LimitResource, LimitApplication, LimitSubscription, LimitCustom, LimitBurst:
		r.Status, r.Message, r.Description, r.RetryAfter = 429, throttledOut, quota, 1
	case LimitHard:
		r.Status, r.Message, r.Description, r.RetryAfter = 503, "API Limit Reached", "API not accepting requests", 1
	case Blocked:
		r.Status, r.Message, r.Description = 403, "Message blocked", "You have been blocked from accessing the resource"
	case InvalidCredentials:
		r.Status, r.Message, r.Description, r.Challenge = 401, invalidCredentials, correctToken, `error="invalid_token"`
	case MissingCredentials:
		r.Status, r.Message, r.Challenge = 401, "Missing Credentials", pipeline.ChallengeOnly
		r.Description = "Missing Credentials. Make sure your API request provides required credentials"
	case TokenExpired:
		r.Status, r.Message, r.Challenge = 401, "Access Token Expired", `error="invalid_token"`
		r.Description = "Access Token Expired. Renew the access token and try again"
	case SubscriptionBlocked:
		r.Status, r.Message, r.Challenge = 401, "The requested API is temporarily blocked", `error="invalid_token", error_description="the subscription is blocked"`
		r.Description = "The requested API is temporarily blocked. The subscription of the application is blocked"
	case Forbidden:
		r.Status, r.Message = 403, "Resource forbidden "
		r.Description = "Resource forbidden. The application has no subscription to the API"
	case SubscriptionInactive:
		r.Status, r.Message, r.Challenge = 401, "The subscription to the API is inactive", `error="invalid_token", error_description="the subscription is inactive"`
		r.Description = "The subscription to the API is inactive. It is on hold or was rejected"
	case ScopeMissing:
		r.Status, r.Message = 403, "The access token does not allow you to access the requested resource"
		r.Description = r.Message
	case BadUser:
		r.Status, r.Message, r.Challenge = 401, invalidCredentials, pipeline.ChallengeOnly
		r.Description = "Invalid Credentials. Make sure you have provided the correct user name and password"
	case BadFormat:
		r.Status, r.Message, r.Challenge = 401, "Invalid Format", pipeline.ChallengeOnly
		r.Description = "Invalid Format. The credential of basic authentication has no colon between user name and password"
	case InvalidScheme:
		r.Status, r.Message, r.Challenge = 401, "Invalid Authentication scheme", `error="invalid_token", error_description="the scheme of the credential is not accepted"`
		r.Description = "Invalid Authentication scheme. The resource does not accept this scheme"
	case BackendFailed:
		r.Status, r.Message, r.Description = 502, "Runtime Error", "Error connecting to the back end"
	case BackendTimeout:
		r.Status, r.Message, r.Description = 504, "Runtime Error", "Connection timed out"
	default:
		r.Code, r.Status, r.Message = General, 503, "Unclassified Authentication Failure"
		r.Description, r.RetryAfter = "Unclassified Authentication Failure. Please try again later", 1
	}
	return r
}

// Status returns a refusal that has no code of its own: the router's 404 and 405, and the limits.
func Status(status int) pipeline.Refusal {
	r := pipeline.Refusal{Code: status, Status: status}
	switch status {
	case 400:
		r.Message, r.Description = "Bad Request", "The request is malformed"
	case 404:
		r.Message, r.Description = "Not Found", "No matching resource found for given API Request"
	case 405:
		r.Message, r.Description = "Method Not Allowed", "Method not allowed for given API resource"
	case 408:
		r.Message, r.Description = "Request Timeout", "The request was not received in time"
	case 413:
		r.Message, r.Description = "Payload Too Large", "The request body is larger than allowed"
	case 414:
		r.Message, r.Description = "URI Too Long", "The request target is longer than allowed"
	case 431:
		r.Message, r.Description = "Request Header Fields Too Large", "The request header is larger than allowed"
	default:
		r.Message, r.Description = "Internal Server Error", "The request could not be served"
	}
	return r
}
