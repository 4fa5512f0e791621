package proxy

import (
	"net"
	"sync/atomic"
	"time"
)

// bounded is a connection whose writes do not wait for ever for a client that reads nothing. A deadline lasts for many
// writes: it is moved on when a third of it has gone by, so that a write costs a look at the clock, and one that blocks ends
// after idle at least and one and a half of it at most.
type bounded struct {
	net.Conn
	idle time.Duration
	// set is when the deadline was set, Unix nanoseconds; notOurs while the user of the connection has set one.
	set atomic.Int64
}

const notOurs = -1

// Write implements net.Conn.
func (c *bounded) Write(p []byte) (int, error) {
	if set := c.set.Load(); set != notOurs {
		if now := time.Now(); now.UnixNano()-set > int64(c.idle/2) {
			if err := c.Conn.SetWriteDeadline(now.Add(c.idle + c.idle/2)); err != nil {
				return 0, err
			}
			c.set.CompareAndSwap(set, now.UnixNano())
		}
	}
	return c.Conn.Write(p)
}

// SetDeadline implements net.Conn.
func (c *bounded) SetDeadline(t time.Time) error {
	c.taken(t)
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (c *bounded) SetWriteDeadline(t time.Time) error {
	c.taken(t)
	return c.Conn.SetWriteDeadline(t)
}

func (c *bounded) taken(t time.Time) {
	if t.IsZero() {
		c.set.Store(0)
		return
	}
	c.set.Store(notOurs)
}

// CloseWrite ends our side of the connection.
func (c *bounded) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// bound puts a bound on the writes of a connection that was accepted.
func (p *Proxy) bound(c net.Conn) net.Conn {
	if p.opts.BodyIdleTimeout <= 0 {
		return c
	}
	return &bounded{Conn: c, idle: p.opts.BodyIdleTimeout}
}
