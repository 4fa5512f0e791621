package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// send makes a call whose answer's body is small. A path that the server does not have comes back as ErrUnsupported.
func (c *Client) send(ctx context.Context, k call) ([]byte, error) {
	a, err := c.do(ctx, k, maxSmallBytes)
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok && e.Kind == NotFound {
			e.Err = ErrUnsupported
		}
		return nil, err
	}
	defer a.close()
	b, err := io.ReadAll(a.body)
	if err != nil {
		return nil, bodyError(k.op, a, readError{err})
	}
	return b, nil
}

// Acknowledge reports deployed revisions (PATCH /apis/deployed-revisions). Nothing to report is no call. Releases before
// 4.1 answer ErrUnsupported.
func (c *Client) Acknowledge(ctx context.Context, tenant string, acks []Acknowledgement) error {
	if len(acks) == 0 {
		return nil
	}
	type env struct {
		Name  string `json:"name"`
		VHost string `json:"vhost"`
	}
	type ack struct {
		APIID      string `json:"apiId"`
		RevisionID int64  `json:"revisionId"`
		EnvInfo    []env  `json:"envInfo"`
	}
	body := make([]ack, len(acks))
	for i, a := range acks {
		body[i] = ack{a.APIUUID, a.RevisionID, make([]env, len(a.Deployed))}
		for j, d := range a.Deployed {
			body[i].EnvInfo[j] = env{d.Environment, d.VHost}
		}
	}
	_, err := c.send(ctx, call{op: "acknowledge deployed revisions", method: http.MethodPatch, path: "/apis/deployed-revisions", query: organization(tenant), tenant: tenant, body: body})
	return err
}

// organization is the query by which acknowledgements choose the organisation.
func organization(tenant string) url.Values {
	v := url.Values{}
	set(v, "organizationId", tenant)
	return v
}

// Undeployment names a revision that an environment serves no longer.
type Undeployment struct{ APIUUID, RevisionUUID, Environment string }

// AcknowledgeUndeployed reports an undeployed revision (POST /apis/undeployed-revision). Releases before 4.1 answer
// ErrUnsupported.
func (c *Client) AcknowledgeUndeployed(ctx context.Context, tenant string, u Undeployment) error {
	body := map[string]string{"apiUUID": u.APIUUID, "revisionUUID": u.RevisionUUID, "environment": u.Environment}
	_, err := c.send(ctx, call{op: "acknowledge an undeployed revision", method: http.MethodPost, path: "/apis/undeployed-revision", query: organization(tenant), tenant: tenant, body: body})
	return err
}

// DeploymentStatus tells how deploying or undeploying one API went at this gateway.
type DeploymentStatus struct {
	GatewayID    string
	APIUUID      string
	TenantDomain string
	RevisionUUID string
	Undeploy     bool // what was done: false means deploy
	Failed       bool
	At           time.Time
	ErrorCode    int
	ErrorMessage string
}

// NotifyDeploymentStatus reports what was deployed and undeployed (POST /notify-api-deployment-status). Older releases
// answer ErrUnsupported. Nothing to report is no call.
func (c *Client) NotifyDeploymentStatus(ctx context.Context, statuses []DeploymentStatus) error {
	if len(statuses) == 0 {
		return nil
	}
	type item struct {
		GatewayID        string `json:"gatewayId"`
		APIID            string `json:"apiId"`
		TenantDomain     string `json:"tenantDomain"`
		DeploymentStatus string `json:"deploymentStatus"`
		Action           string `json:"action"`
		RevisionID       string `json:"revisionId,omitempty"`
		TimeStamp        int64  `json:"timeStamp"`
		ErrorCode        int    `json:"errorCode,omitempty"`
		ErrorMessage     string `json:"errorMessage,omitempty"`
	}
	body := struct {
		Count int    `json:"count"`
		List  []item `json:"list"`
	}{len(statuses), make([]item, len(statuses))}
	for i, s := range statuses {
		it := item{
			GatewayID: s.GatewayID, APIID: s.APIUUID, TenantDomain: s.TenantDomain, RevisionID: s.RevisionUUID,
			DeploymentStatus: "SUCCESS", Action: "DEPLOY", TimeStamp: s.At.UnixMilli(),
		}
		if s.Undeploy {
			it.Action = "UNDEPLOY"
		}
		if s.Failed {
			it.DeploymentStatus, it.ErrorCode, it.ErrorMessage = "FAILURE", s.ErrorCode, s.ErrorMessage
		}
		body.List[i] = it
	}
	_, err := c.send(ctx, call{op: "notify deployment status", method: http.MethodPost, path: "/notify-api-deployment-status", body: body})
	return err
}

// Gateway is how this gateway makes itself known.
type Gateway struct {
	ID         string
	Labels     []string
	Tenants    []string          // empty means all
	Properties map[string]string // shown in the portal; sent with Register only
}

// Registration is the answer to Register and Heartbeat.
type Registration int

// The answers.
const (
	// Registered: the gateway is known from now on.
	Registered Registration = iota + 1
	// Acknowledged: the gateway was known.
	Acknowledged
	// RegisterAgain: any other answer. The caller registers anew.
	RegisterAgain
	// RegistrationUnsupported: the server is older than the notification (404). The caller stops, without a word.
	RegistrationUnsupported
)

// String names the answer.
func (r Registration) String() string {
	switch r {
	case Registered:
		return "registered"
	case Acknowledged:
		return "acknowledged"
	case RegisterAgain:
		return "register again"
	case RegistrationUnsupported:
		return "unsupported"
	}
	return "unknown"
}

// Register makes the gateway known (POST /notify-gateway, REGISTER): on every start and reconnect. id is the identifier
// that the server uses, g.ID unless it chose another.
func (c *Client) Register(ctx context.Context, g Gateway, now time.Time) (id string, answer Registration, err error) {
	return c.notifyGateway(ctx, "register the gateway", "REGISTER", g, now)
}

// Heartbeat tells that the gateway lives (POST /notify-gateway, HEARTBEAT): every 30 s.
func (c *Client) Heartbeat(ctx context.Context, g Gateway, now time.Time) (Registration, error) {
	g.Properties = nil
	_, answer, err := c.notifyGateway(ctx, "send the heartbeat", "HEARTBEAT", g, now)
	return answer, err
}

func (c *Client) notifyGateway(ctx context.Context, op, payload string, g Gateway, now time.Time) (string, Registration, error) {
	body := struct {
		PayloadType       string            `json:"payloadType"`
		GatewayID         string            `json:"gatewayId"`
		EnvironmentLabels []string          `json:"environmentLabels"`
		LoadingTenants    []string          `json:"loadingTenants,omitempty"`
		GatewayProperties map[string]string `json:"gatewayProperties,omitempty"`
		TimeStamp         int64             `json:"timeStamp"`
	}{payload, g.ID, append([]string{}, g.Labels...), g.Tenants, g.Properties, now.UnixMilli()}
	text, err := c.send(ctx, call{op: op, method: http.MethodPost, path: "/notify-gateway", body: body})
	if err != nil {
		if KindOf(err) == NotFound {
			return g.ID, RegistrationUnsupported, nil
		}
		return g.ID, 0, err
	}
	var out struct {
		Status    string `json:"status"`
		GatewayID string `json:"gatewayId"`
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return g.ID, 0, &Error{
			Op: op, URL: "POST " + c.base + "/notify-gateway", Kind: Bad, Status: 200,
			Detail: "the answer is not what was asked for", Err: fmt.Errorf("%w in %q", err, shorten(string(text))),
		}
	}
	id := out.GatewayID
	if id == "" {
		id = g.ID
	}
	switch strings.ToLower(out.Status) {
	case "registered":
		return id, Registered, nil
	case "acknowledged":
		return id, Acknowledged, nil
	}
	return id, RegisterAgain, nil
}
