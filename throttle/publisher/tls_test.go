package publisher

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"gatehouse/throttle/databridge"
)

// trafficManager serves the protocol on one TLS port of loopback and keeps the messageID of each event it took.
type trafficManager struct {
	listener net.Listener
	roots    *x509.CertPool
	config   *tls.Config
	done     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	ids   map[string]int
	names int
	alive map[string]bool
}

func startTM(t testing.TB) *trafficManager {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	tm := &trafficManager{roots: x509.NewCertPool(), conns: map[net.Conn]bool{}, ids: map[string]int{}, alive: map[string]bool{}}
	tm.roots.AddCert(cert)
	tm.config = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k}}}
	tm.listen(t, "127.0.0.1:0")
	t.Cleanup(tm.stop)
	return tm
}

func (tm *trafficManager) listen(t testing.TB, address string) {
	t.Helper()
	var err error
	for range 100 {
		if tm.listener, err = tls.Listen("tcp", address, tm.config); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	l := tm.listener
	tm.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tm.mu.Lock()
			tm.conns[c] = true
			tm.mu.Unlock()
			tm.done.Go(func() { tm.serve(c) })
		}
	})
}

// stop ends the process: its connections break, its sessions are forgotten.
func (tm *trafficManager) stop() {
	tm.listener.Close()
	tm.mu.Lock()
	for c := range tm.conns {
		c.Close()
	}
	clear(tm.alive)
	tm.mu.Unlock()
	tm.done.Wait()
}

func (tm *trafficManager) serve(c net.Conn) {
	defer func() {
		c.Close()
		tm.mu.Lock()
		delete(tm.conns, c)
		tm.mu.Unlock()
	}()
	var buf []byte
	for {
		f, err := databridge.ReadFrame(c, buf, 0)
		if err != nil {
			return
		}
		buf = f.Body
		answer := databridge.AppendOK(nil)
		tm.mu.Lock()
		switch f.Type {
		case databridge.TypeLogin:
			tm.names++
			s := fmt.Sprint("session-", tm.names)
			tm.alive[s] = true
			answer = databridge.AppendSession(nil, s)
		case databridge.TypePublish:
			s, events, err := databridge.DecodePublish(f.Body)
			if err == nil && !tm.alive[string(s)] {
				answer = databridge.AppendError(nil, databridge.ClassSessionTimeout, string(s)+" expired")
				break
			}
			for err == nil {
				var raw []byte
				if raw, err = events.Next(); raw == nil {
					break
				}
				var q databridge.RequestEvent
				if err = q.Decode(raw); err == nil {
					tm.ids[string(q.Attributes[0])]++
				}
			}
			if err != nil {
				tm.mu.Unlock()
				return
			}
		}
		tm.mu.Unlock()
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

func (tm *trafficManager) count() int {
	tm.mu.Lock()
	defer tm.mu.Unlock()
	return len(tm.ids)
}

func (tm *trafficManager) groups(t testing.TB) []Group {
	t.Helper()
	groups, err := databridge.ParseGroups("ssl://"+tm.listener.Addr().String(), "")
	if err != nil {
		t.Fatal(err)
	}
	list, err := Dial(groups, databridge.Options{Username: "admin", Password: "admin", TLS: &tls.Config{RootCAs: tm.roots}})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestEventsSurviveARestart of the traffic manager: none is lost. One that was taken but not answered may come twice,
// which the protocol cannot tell.
func TestEventsSurviveARestart(t *testing.T) {
	tm := startTM(t)
	p := start(t, Options{Groups: tm.groups(t)})
	publish(p, 0, 500)
	until(t, "delivery", func() bool { return tm.count() == 500 })
	address := tm.listener.Addr().String()
	tm.stop()
	publish(p, 500, 500)
	until(t, "the failure", func() bool { return !p.State()[0].Connected })
	tm.listen(t, address)
	publish(p, 1000, 500)
	until(t, "delivery after the restart", func() bool { return tm.count() == 1500 })
	if st := p.State()[0]; !st.Connected || st.Dropped != 0 || st.Queue != 0 {
		t.Errorf("state %+v", st)
	}
}

// TestFailoverOverTLS: the second takes over when the first dies, and gives back when it lives again; no event is lost.
func TestFailoverOverTLS(t *testing.T) {
	first, second := startTM(t), startTM(t)
	a, b := first.groups(t)[0], second.groups(t)[0]
	p := start(t, Options{Groups: []Group{{Kind: "databridge", Failover: true, Endpoints: append(a.Endpoints, b.Endpoints...)}}})
	// A batch that was taken but not answered in time comes to the other too: counted once.
	total := func() int {
		seen := map[string]bool{}
		for _, tm := range []*trafficManager{first, second} {
			tm.mu.Lock()
			for id := range tm.ids {
				seen[id] = true
			}
			tm.mu.Unlock()
		}
		return len(seen)
	}
	publish(p, 0, 300)
	until(t, "delivery to the first", func() bool { return first.count() == 300 })
	if second.count() != 0 {
		t.Errorf("the second got %d events while the first lived", second.count())
	}
	address := first.listener.Addr().String()
	first.stop()
	publish(p, 300, 300)
	until(t, "delivery to the second", func() bool { return total() == 600 && p.State()[0].Queue == 0 })
	first.listen(t, address)
	until(t, "return of the first", func() bool { return p.State()[0].Endpoints[0].Connected })
	before := second.count()
	publish(p, 600, 300)
	until(t, "delivery to the first again", func() bool { return total() == 900 })
	if second.count() != before {
		t.Errorf("the second got %d events after the first was back", second.count()-before)
	}
}

// BenchmarkPublishOverTLS is the rate from Enqueue to the traffic manager's answer, over loopback.
func BenchmarkPublishOverTLS(b *testing.B) {
	tm := startTM(b)
	p := New(Options{Groups: tm.groups(b), QueueSize: 1 << 20, QueueBytes: 1 << 30})
	defer p.Close()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		enqueue(p, request(fmt.Sprint("m-", i)), time.Now().UnixMilli())
	}
	for tm.count() < b.N {
		time.Sleep(100 * time.Microsecond)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkLatencyOverTLS is the time from Enqueue of a single event until the traffic manager has it.
func BenchmarkLatencyOverTLS(b *testing.B) {
	tm := startTM(b)
	p := New(Options{Groups: tm.groups(b)})
	defer p.Close()
	publish(p, -1, 1)
	for tm.count() < 1 {
		time.Sleep(time.Millisecond)
	}
	b.ResetTimer()
	for i := range b.N {
		enqueue(p, request(fmt.Sprint("m-", i)), time.Now().UnixMilli())
		for tm.count() < i+2 {
		}
	}
}
