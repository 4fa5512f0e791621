package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"gatehouse/keymanager"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/stage"
	"gatehouse/throttle"
)

// revocable is a world in which things change while requests are under way.
type revocable struct {
	domains
	refusal atomic.Pointer[keymanager.Refusal]
	denied  atomic.Bool
	asked   atomic.Int64
}

func (r *revocable) Authenticate(ctx context.Context, c keymanager.Credential) (*keymanager.Token, bool, error) {
	r.asked.Add(1)
	if k := r.refusal.Load(); k != nil && c.Bearer == "good" {
		return nil, false, k
	}
	return &keymanager.Token{KeyManager: "KM", ConsumerKey: "ck", User: "bob", Scopes: []string{"read"}}, true, nil
}

func (r *revocable) DenyAnonymous(*throttle.Request) *throttle.DenyCondition {
	if r.denied.Load() {
		return &throttle.DenyCondition{Kind: throttle.DenyIP}
	}
	return nil
}

func (r *revocable) Publish(*throttle.Request, int64) {}

func (r *revocable) stages() stage.Domains {
	return stage.Domains{Authenticator: r, Subscriptions: r, Denier: r, Throttler: r}
}

// slowBackend streams: /events is an endless, silent stream, /slow an answer of known length whose second half never comes, and /sink
// takes a body for as long as it lasts.
func slowBackend(t testing.TB) string {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/events"):
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: 1\n\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/slow"):
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "12345")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/sink"):
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "done")
		default:
			_, _ = io.WriteString(w, "short")
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func streaming(url string) *definition.API {
	a := anyAPI(single(url))
	for i := range a.Operations {
		a.Operations[i].Unsecured = false
	}
	a.Operations = append(a.Operations, definition.Operation{Template: "/open/*", Method: "GET", Unsecured: true})
	return a
}

func request(t testing.TB, g *gateway, method, path, token string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, g.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return req
}

var revoked = &keymanager.Refusal{Check: keymanager.CheckRevoked, Detail: "the token was revoked"}

// TestRevocationEndsAStream: the client sees that the answer is cut, the log says why, and others go on.
func TestRevocationEndsAStream(t *testing.T) {
	for _, path := range []string{"/a/1/events", "/a/1/slow"} {
		both(t, func(t *testing.T, o Options) {
			d := &revocable{}
			o.Domains = d.stages()
			g := start(t, o, streaming(slowBackend(t)))
			open := func(token string) (*bufio.Reader, io.Closer) {
				res, err := g.client.Do(request(t, g, "GET", path, token, nil))
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != 200 {
					t.Fatalf("status %d", res.StatusCode)
				}
				r := bufio.NewReader(res.Body)
				if _, err := r.Peek(5); err != nil {
					t.Fatal(err)
				}
				return r, res.Body
			}
			r, closer := open("good")
			defer closer.Close()
			_, other := open("other")
			defer other.Close()
			eventually(t, func() bool { return g.streams.open() == 2 }, func() string { return fmt.Sprint(g.streams.open(), " streams") })

			g.Recheck() // nothing has changed
			time.Sleep(4 * recheckPause)
			if n := g.streams.open(); n != 2 {
				t.Fatalf("%d streams after a question that changes nothing", n)
			}
			d.refusal.Store(revoked)
			at := time.Now()
			g.Recheck()
			if _, err := io.Copy(io.Discard, r); err == nil {
				t.Error("the answer seems whole")
			}
			if took := time.Since(at); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			eventually(t, func() bool { return g.streams.open() == 1 && strings.Count(g.log.String(), `"revoked":true`) == 1 }, g.log.String)
			if !strings.Contains(g.log.String(), errRevoked) || !strings.Contains(g.log.String(), `"status":200`) {
				t.Errorf("the log says %s", g.log.String())
			}
		})
	}
}

func TestDenyPolicyEndsAStreamOfNobody(t *testing.T) {
	d := &revocable{}
	g := start(t, Options{Domains: d.stages()}, streaming(slowBackend(t)))
	res, err := g.client.Do(request(t, g, "GET", "/a/1/open/events", "x", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	eventually(t, func() bool { return g.streams.open() == 1 }, func() string { return "no stream" })
	d.denied.Store(true)
	g.Recheck()
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("the answer seems whole")
	}
}

// TestRevocationEndsAnUpload: nothing was answered yet, so the client is told why.
func TestRevocationEndsAnUpload(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		for _, idle := range []time.Duration{0, -1} { // with and without a bound on silence
			d := &revocable{}
			o.Domains, o.BodyIdleTimeout = d.stages(), idle
			g := start(t, o, streaming(slowBackend(t)))
			body, w := io.Pipe()
			done := make(chan string, 1)
			go func() {
				res, err := g.client.Do(request(t, g, "POST", "/a/1/sink", "good", body))
				if err != nil {
					done <- err.Error()
					return
				}
				b, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				done <- fmt.Sprint(res.StatusCode, " ", string(b))
			}()
			_, _ = io.WriteString(w, "some")
			eventually(t, func() bool { return g.streams.open() == 1 }, func() string { return "no stream" })
			d.refusal.Store(revoked)
			g.Recheck()
			got := <-done
			_ = w.Close()
			if !strings.HasPrefix(got, "401 ") || !strings.Contains(got, "900901") || !strings.Contains(got, "the token was revoked") {
				t.Errorf("the client got %s", got)
			}
			eventually(t, func() bool { return g.streams.open() == 0 && strings.Contains(g.log.String(), `"revoked":true`) }, g.log.String)
			g.stop()
		}
	})
}

// TestRevocationBeforeTheStreamBegins: the question was asked between the admission and the first byte.
func TestRevocationBeforeTheStreamBegins(t *testing.T) {
	d := &revocable{}
	held, goOn := make(chan struct{}), make(chan struct{})
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(held)
		<-goOn
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer back.Close()
	g := start(t, Options{Domains: d.stages()}, streaming(back.URL))
	done := make(chan error, 1)
	go func() {
		res, err := g.client.Do(request(t, g, "GET", "/a/1/x", "good", nil))
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		done <- err
	}()
	<-held
	d.refusal.Store(revoked)
	g.Recheck()
	time.Sleep(4 * recheckPause) // the question has gone by
	close(goOn)
	if err := <-done; err == nil {
		t.Error("the stream went on")
	}
	eventually(t, func() bool { return strings.Contains(g.log.String(), `"revoked":true`) }, g.log.String)
}

func TestRevocationEndsAStreamOfHTTP2(t *testing.T) {
	dir := t.TempDir()
	cert, key, pool := certificate(t, dir, "a")
	d := &revocable{}
	g := start(t, Options{HTTPS: "127.0.0.1:0", CertFile: cert, KeyFile: key, Domains: d.stages()}, streaming(slowBackend(t)))
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	req := request(t, g, "GET", "/a/1/events", "good", nil)
	req.URL.Scheme, req.URL.Host = "https", strings.TrimPrefix(g.tlsURL, "https://")
	res, err := tr.RoundTrip(req)
	if err != nil || res.ProtoMajor != 2 {
		t.Fatal(res, err)
	}
	defer res.Body.Close()
	eventually(t, func() bool { return g.streams.open() == 1 }, func() string { return "no stream" })
	d.refusal.Store(revoked)
	g.Recheck()
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("the answer seems whole")
	}
	d.refusal.Store(nil)
	again := request(t, g, "GET", "/a/1/x", "good", nil)
	again.URL = req.URL.JoinPath("../x")
	if res, err := tr.RoundTrip(again); err != nil || res.StatusCode != 200 {
		t.Errorf("the connection is of no use any more: %v %v", res, err)
	} else {
		_ = res.Body.Close()
	}
}

// TestWhatEndsNoStream: an expiry is no revocation, and a key manager that is away says nothing about anybody.
func TestWhatEndsNoStream(t *testing.T) {
	d := &revocable{}
	g := start(t, Options{Domains: d.stages()}, streaming(slowBackend(t)))
	res, err := g.client.Do(request(t, g, "GET", "/a/1/events", "good", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	eventually(t, func() bool { return g.streams.open() == 1 }, func() string { return "no stream" })
	for _, k := range []*keymanager.Refusal{
		{Check: keymanager.CheckExpired, Detail: "the token expired"},
		{Check: keymanager.CheckUnverified, Detail: "nobody answers", Temporary: true},
	} {
		d.refusal.Store(k)
		before := d.asked.Load()
		g.Recheck()
		eventually(t, func() bool { return d.asked.Load() > before }, func() string { return "nobody asked" })
		time.Sleep(20 * time.Millisecond)
		if g.streams.open() != 1 {
			t.Fatalf("%s ended the stream", k.Check)
		}
	}
	_ = res.Body.Close()
	eventually(t, func() bool { return g.streams.open() == 0 }, func() string { return "the stream is kept after its end" })
}

// TestQuestionsAreGathered: a thousand revocations are one question for each stream, not a thousand.
func TestQuestionsAreGathered(t *testing.T) {
	d := &revocable{}
	g := start(t, Options{Domains: d.stages()}, streaming(slowBackend(t)))
	res, err := g.client.Do(request(t, g, "GET", "/a/1/events", "good", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	eventually(t, func() bool { return g.streams.open() == 1 }, func() string { return "no stream" })
	before := d.asked.Load()
	for range 1000 {
		g.Recheck()
	}
	eventually(t, func() bool { return d.asked.Load() > before }, func() string { return "nobody asked" })
	time.Sleep(5 * recheckPause)
	if n := d.asked.Load() - before; n > 10 {
		t.Errorf("%d questions", n)
	}
}

// TestShortRequestsAreNoStreams: what is there at once costs nothing.
func TestShortRequestsAreNoStreams(t *testing.T) {
	d := &revocable{}
	g := start(t, Options{Domains: d.stages()}, streaming(slowBackend(t)))
	for range 20 {
		if res, body := do(t, g, "GET", "/a/1/x", "Authorization: Bearer good"); res.StatusCode != 200 || body != "short" {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
		req := request(t, g, "POST", "/a/1/sink", "good", strings.NewReader("small"))
		res, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	// One whose header and body come in two packets may be counted; most are not.
	if n := g.streams.seq.Load(); n > 8 {
		t.Errorf("%d of 40 short requests were taken for streams", n)
	}
}

// BenchmarkRecheck asks about ten thousand streams.
func BenchmarkRecheck(b *testing.B) {
	d := &revocable{}
	p, err := New(Options{HTTP: "127.0.0.1:0", Domains: d.stages()})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	if refused := p.SetAPIs([]*definition.API{streaming("http://127.0.0.1:1")}); len(refused) > 0 {
		b.Fatal(refused)
	}
	op := p.generation.Load().apis["a"].operations[0]
	states := make([]*state, 10_000)
	for i := range states {
		s := newState()
		s.x.Context = context.Background()
		s.x.SetRoute(&op.Route)
		s.x.Offer.Scheme, s.x.Offer.Credential = 1, "good"
		if f := p.opened(s, io.Discard); f != nil {
			b.Fatal(f)
		}
		states[i] = s
	}
	b.ReportAllocs()
	for b.Loop() {
		p.recheckAll(context.Background())
	}
	b.StopTimer()
	for _, s := range states {
		if p.closed(s) != nil {
			b.Fatal("ended")
		}
	}
}

// BenchmarkStream is what a stream costs beside a short request: in and out of the set.
func BenchmarkStream(b *testing.B) {
	d := &revocable{}
	p, err := New(Options{HTTP: "127.0.0.1:0", Domains: d.stages()})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	if refused := p.SetAPIs([]*definition.API{streaming("http://127.0.0.1:1")}); len(refused) > 0 {
		b.Fatal(refused)
	}
	op := p.generation.Load().apis["a"].operations[0]
	s := newState()
	s.x.Context = context.Background()
	s.x.SetRoute(&op.Route)
	b.ReportAllocs()
	for b.Loop() {
		p.opened(s, io.Discard)
		p.closed(s)
		s.stream = stream{}
	}
}

// broken panics when it is asked about a stream.
type broken struct {
	*revocable
	fault atomic.Bool
}

func (b *broken) Authenticate(ctx context.Context, c keymanager.Credential) (*keymanager.Token, bool, error) {
	if b.fault.Load() {
		panic("a fault")
	}
	return b.revocable.Authenticate(ctx, c)
}

// TestFaultWhileAskingAgain: whoever cannot be judged is not served, and the gateway goes on.
func TestFaultWhileAskingAgain(t *testing.T) {
	b := &broken{revocable: &revocable{}}
	d := b.stages()
	d.Authenticator = b
	g := start(t, Options{Domains: d}, streaming(slowBackend(t)))
	res, err := g.client.Do(request(t, g, "GET", "/a/1/events", "good", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	eventually(t, func() bool { return g.streams.open() == 1 }, func() string { return "no stream" })
	b.fault.Store(true)
	g.Recheck()
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("the answer seems whole")
	}
	if n := testutil.ToFloat64(g.metrics.panics); n != 1 {
		t.Errorf("%v faults counted", n)
	}
	b.fault.Store(false)
	again, err := g.client.Do(request(t, g, "GET", "/a/1/events", "good", nil))
	if err != nil || again.StatusCode != 200 {
		t.Fatalf("after the fault: %v %v", again, err)
	}
	again.Body.Close()
}
