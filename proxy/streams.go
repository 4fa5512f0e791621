package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"gatehouse/keymanager"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/upstream"
)

// streams are the exchanges under way whose bodies take their time, in either direction, so that they can be ended when
// what they were admitted by is withdrawn. Exchanges whose bodies are there at once never stand here.
type streams struct {
	shards [16]streamShard
	seq    atomic.Uint64
	// asked counts the calls of Recheck. An exchange notes it when it begins: if it has changed when the exchange becomes a
	// stream, nobody may have asked about that one yet.
	asked atomic.Uint64
	wake  chan struct{}
	// exchanges are for asking again.
	exchanges sync.Pool
}

type streamShard struct {
	mu   sync.Mutex
	open map[uint64]*stream
	_    [48]byte
}

// stream is what is kept of one. Its fields are written and read under the lock of its shard while it is open.
type stream struct {
	id    uint64
	asked uint64 // of streams, when the exchange began
	// What the exchange was admitted by.
	route *pipeline.Route
	offer pipeline.Offer
	from  netip.Addr
	ctx   context.Context
	// How it is ended.
	upload *requestBody     // nil: nothing is sent any more
	answer upstream.Aborter // nil: the answer has not begun
	client writeDeadline
	ended  *pipeline.Refusal // why it was
}

func newStreams() *streams {
	s := &streams{wake: make(chan struct{}, 1)}
	s.exchanges.New = func() any { return new(pipeline.Exchange) }
	for i := range s.shards {
		s.shards[i].open = make(map[uint64]*stream)
	}
	return s
}

func (s *streams) shard(id uint64) *streamShard { return &s.shards[id%uint64(len(s.shards))] }

// Recheck asks again about exchanges whose bodies are under way, and ends those that would not be admitted any more. It is
// called after a credential was revoked or a deny policy has come into force, returns at once, and may be called as often
// as that happens: calls in short order are answered together.
//
// That a token has expired meanwhile, or that a key manager cannot be reached, ends nothing.
func (p *Proxy) Recheck() {
	p.streams.asked.Add(1)
	select {
	case p.streams.wake <- struct{}{}:
	default:
	}
}

// recheckPause is how long events are gathered before the streams are asked about.
const recheckPause = 50 * time.Millisecond

// recheckers bounds the streams that are asked about at a time: some answers come over the network.
const recheckers = 8

// watchStreams answers Recheck until ctx ends.
func (p *Proxy) watchStreams(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.streams.wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(recheckPause):
		}
		p.recheckAll(ctx)
	}
}

func (p *Proxy) recheckAll(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(recheckers)
	var open []stream
	for i := range p.streams.shards {
		sh := &p.streams.shards[i]
		open = open[:0]
		sh.mu.Lock()
		for _, st := range sh.open {
			if st.ended == nil {
				open = append(open, stream{id: st.id, route: st.route, offer: st.offer, from: st.from, ctx: st.ctx})
			}
		}
		sh.mu.Unlock()
		for _, st := range open {
			if ctx.Err() != nil {
				break
			}
			g.Go(func() error {
				if f := p.refusedNow(&st); f != nil {
					sh.mu.Lock()
					if now := sh.open[st.id]; now != nil && now.ended == nil {
						now.end(f)
						p.metrics.streamsEnded.Inc()
					}
					sh.mu.Unlock()
				}
				return nil
			})
		}
		_ = g.Wait() // no goroutine fails
	}
}

// refusedNow says why an exchange that was admitted would be refused now, nil when it would not.
func (p *Proxy) refusedNow(st *stream) (refusal *pipeline.Refusal) {
	x := p.streams.exchanges.Get().(*pipeline.Exchange)
	defer func() {
		if v := recover(); v != nil {
			// A fault of the gateway refuses a request, and ends an exchange; out here it would end the gateway.
			p.metrics.panics.Inc()
			p.opts.Log.Error().Str("detail", fmt.Sprint(v)).Bytes("stack", debug.Stack()).Msg("a question about a request under way ended in a fault of the gateway")
			f := fault.Of(fault.General)
			f.Status, f.RetryAfter = http.StatusInternalServerError, 0
			refusal = &f
			return
		}
		x.Reset()
		p.streams.exchanges.Put(x)
	}()
	x.Context, x.Offer, x.BodyLength, x.Header = st.ctx, st.offer, -1, header(nil)
	x.Now = time.Now().UnixMilli()
	x.Offer.Again = true
	x.ClientIP = st.from
	x.SetRoute(st.route)
	for _, s := range st.route.Again {
		f := s.Run(x)
		if f == nil {
			continue
		}
		if x.Auth != nil && (x.Auth.Temporary || x.Auth.Check == keymanager.CheckExpired) || f.Status >= 500 {
			return nil
		}
		again := *f
		return &again
	}
	return nil
}

// end ends a stream; the lock of its shard is held.
func (st *stream) end(f *pipeline.Refusal) {
	st.ended = f
	if st.upload != nil {
		st.upload.abort()
	}
	if st.answer != nil {
		st.answer.Abort()
		if st.client != nil {
			_ = st.client.SetWriteDeadline(time.Now()) // a client that reads nothing must not hold it up
		}
	}
}

// opened puts an exchange among the streams. It returns why the exchange has to end at once, nil when it may go on. closed
// must be called before anything of the exchange is given back.
func (p *Proxy) opened(s *state, w io.Writer) *pipeline.Refusal {
	st := &s.stream
	if st.id == 0 {
		x := &s.x
		*st = stream{id: p.streams.seq.Add(1), asked: s.asked, route: x.Route, offer: x.Offer, from: x.ClientIP, ctx: x.Context}
		st.client, _ = w.(writeDeadline)
	}
	sh := p.streams.shard(st.id)
	sh.mu.Lock()
	if st.ended == nil {
		st.upload = s.body
		if s.upstreamStatus != 0 {
			st.answer, _ = s.res.Body.(upstream.Aborter)
		}
		sh.open[st.id] = st
	}
	ended := st.ended
	sh.mu.Unlock()
	if ended != nil {
		return ended
	}
	now := p.streams.asked.Load()
	if now == st.asked {
		return nil
	}
	// Somebody has asked since the exchange was admitted, and may have come before it stood here.
	look := stream{route: st.route, offer: st.offer, from: st.from, ctx: st.ctx}
	f := p.refusedNow(&look)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	st.asked = now
	if st.ended == nil && f != nil {
		st.ended = f
		p.metrics.streamsEnded.Inc()
	}
	return st.ended
}

// closed takes an exchange out of the streams and returns why it was ended, nil when it was not.
func (p *Proxy) closed(s *state) *pipeline.Refusal {
	st := &s.stream
	if st.id == 0 {
		return nil
	}
	sh := p.streams.shard(st.id)
	sh.mu.Lock()
	delete(sh.open, st.id)
	ended := st.ended
	st.answer, st.upload, st.client = nil, nil, nil
	sh.mu.Unlock()
	return ended
}

// open is how many streams there are.
func (s *streams) open() (n int) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		n += len(sh.open)
		sh.mu.Unlock()
	}
	return n
}
