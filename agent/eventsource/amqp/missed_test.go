package amqp

import (
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"

	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/eventsource/sourcetest"
	"gatehouse/integration/harness"
)

// connection is what one connection of the source has brought.
type connection struct {
	due      int // the first number that was not yet published when Connected was said
	received []int
}

// TestNothingIsMissedWhileConnected breaks a connection again and again while numbers are published, and wants of each
// connection every number from the one after Connected on, once, in order, without a hole: whatever was lost was lost
// between two connections, where a fetch makes up for it.
func TestNothingIsMissedWhileConnected(t *testing.T) {
	rabbit := harness.Shared(t)
	proxy := harness.StartProxy(t, rabbit.Address())
	var published atomic.Int64
	var mu sync.Mutex
	var connections []*connection
	r := sourcetest.NewRecorder()
	r.OnStateFunc = func(s eventsource.State) {
		if s.Kind == eventsource.Connected {
			mu.Lock()
			defer mu.Unlock()
			// Counted before it is published, so that the number after it surely comes later than this moment.
			connections = append(connections, &connection{due: int(published.Load()) + 1})
		}
	}
	r.OnMessageFunc = func(m event.Message) {
		n, err := strconv.Atoi(string(m.Body))
		if err != nil {
			t.Errorf("received %q", m.Body)
		}
		mu.Lock()
		defer mu.Unlock()
		c := connections[len(connections)-1]
		c.received = append(c.received, n)
	}
	o := Options{MinPause: 5 * time.Millisecond, MaxPause: 20 * time.Millisecond}
	stop := sourcetest.Run(t, source(t, o, broker(t, proxy.Address(), "/carbon")), r)
	r.AwaitState(t, eventsource.Connected, 1, 10*time.Second)

	p := newPublisher(t, rabbit.URL("carbon"))
	ended := make(chan struct{})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
				n := strconv.Itoa(int(published.Add(1)))
				if err := p.try("throttleData", amqp091.Publishing{Body: []byte(n)}); err != nil {
					t.Errorf("publish %s: %v", n, err)
					return
				}
			}
		}
	})
	random := rand.New(rand.NewPCG(1, 2))
	const faults = 12
	for i := range faults {
		time.Sleep(time.Duration(random.IntN(120)) * time.Millisecond)
		switch random.IntN(3) {
		case 0:
			proxy.Cut()
		case 1:
			proxy.Refuse()
			time.Sleep(time.Duration(random.IntN(50)) * time.Millisecond)
			proxy.Resume()
		default:
			proxy.Slow(200_000, time.Duration(random.IntN(10))*time.Millisecond)
			time.Sleep(50 * time.Millisecond)
			proxy.Cut()
			proxy.Resume()
		}
		r.AwaitState(t, eventsource.Connected, i+2, 10*time.Second)
	}
	reached := int(published.Load())
	r.Await(t, "a number published after the last fault", 10*time.Second, func() bool {
		mu.Lock()
		defer mu.Unlock()
		received := connections[len(connections)-1].received
		return len(received) > 0 && received[len(received)-1] > reached
	})
	close(ended)
	publishing.Wait()
	stop()
	total := 0
	for i, c := range connections {
		total += len(c.received)
		for j, n := range c.received {
			if j == 0 && n > c.due {
				t.Errorf("connection %d: the first number is %d, but %d was published after it was said to be connected", i, n, c.due)
			}
			if j > 0 && n != c.received[j-1]+1 {
				t.Errorf("connection %d: %d follows %d", i, n, c.received[j-1])
			}
		}
	}
	t.Logf("%d connections brought %d of %d numbers", len(connections), total, published.Load())
}
