package proxy

import (
	"net"
	"testing"
	"time"
)

// sink is a connection that takes everything at once.
type sink struct{ net.Conn }

func (sink) Write(p []byte) (int, error)        { return len(p), nil }
func (sink) SetWriteDeadline(_ time.Time) error { return nil }

// BenchmarkBoundedWrite is what the bound on writes costs each of them.
func BenchmarkBoundedWrite(b *testing.B) {
	c := &bounded{Conn: sink{}, idle: time.Minute}
	p := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = c.Write(p)
	}
}
