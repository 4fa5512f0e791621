package upstream

import (
	"context"
	"time"
)

type h1 struct{ viaTransport }

func newH1(p *Pool, k hostKey, serverName string) client {
	return &viaTransport{t: p.transport, opts: &p.opts}
}

func (c *h1) reap(time.Time) {}
func (c *h1) roundTrip(ctx context.Context, t *target, req *Request, res *Response) error {
	return c.viaTransport.roundTrip(ctx, t, req, res)
}
