// Command bench compares the gateway, with its whole pipeline, to a tuned httputil.ReverseProxy that checks nothing, on the
// same machine and in the same run: one core for the proxy, the others for the load and the backend. It prints requests
// per second and core, by the processor time that the proxy's process used, and the ratio of the medians.
//
//	go run ./integration/bench -rounds 5 -seconds 3
//
// The gateway works with the real domains: a JWT of a pool of 10,000 that it has seen before, the subscription, deny
// policies, throttle decisions, traces, metrics, access log, and an event published for each request.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log" //nolint:depguard // a command that prints and ends
	"net"
	"net/http"
	"net/http/httputil"
	_ "net/http/pprof" // on request only, see -pprof
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"gatehouse/keymanager"
	"gatehouse/keymanager/registry"
	"gatehouse/keymanager/revocation"
	"gatehouse/proxy"
	"gatehouse/proxy/definition"
	"gatehouse/proxy/stage"
	"gatehouse/proxy/upstream"
	"gatehouse/subscription"
	"gatehouse/subscription/store"
	"gatehouse/throttle"
	"gatehouse/throttle/checker"
	"gatehouse/throttle/deny"
	"gatehouse/throttle/keytemplate"
	"gatehouse/throttle/policy"
	"gatehouse/throttle/publisher"
	"gatehouse/throttle/remote"
)

const (
	issuer = "https://km.bench.test"
	tokens = 10000
	apps   = 1000
)

func main() {
	role := flag.String("role", "", "backend, bare or gateway: what a child process is")
	backend := flag.String("backend", "", "address of the backend")
	key := flag.String("key", "", "public key file")
	rounds := flag.Int("rounds", 5, "rounds; each runs every contender once")
	seconds := flag.Float64("seconds", 3, "length of a measurement")
	conns := flag.Int("connections", 32, "keep-alive connections")
	transport := flag.Bool("transport", false, "the gateway calls its backends through http.Transport")
	pprof := flag.String("pprof", "", "address of the gateway's profiler")
	only := flag.String("only", "", "run one contender only")
	least := flag.Float64("least", 0, "fail when the gateway's ratio is below this")
	pool := flag.Int("tokens", tokens, "how many tokens the clients use in turn")
	flag.Parse()
	log.SetFlags(0)
	switch *role {
	case "backend":
		runBackend()
	case "bare":
		runBare(*backend)
	case "gateway":
		runGateway(*backend, *key, *transport, *pprof)
	default:
		if err := compare(*rounds, *seconds, *conns, min(max(*pool, 1), tokens), *transport, *pprof, *only, *least); err != nil {
			log.Fatal(err)
		}
	}
}

// announce tells the parent where a child listens.
func announce(addr string) { fmt.Println("listening " + addr) }

func listen() net.Listener {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return ln
}

// runBackend answers every request with 1 KiB of JSON, as cheaply as can be: it must not be the limit.
func runBackend() {
	body := `{"items":"` + strings.Repeat("x", 1024-13) + `"}`
	answer := []byte("HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Tue, 24 Nov 2026 07:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\nConnection: keep-alive\r\n\r\n" + body)
	ln := listen()
	announce(ln.Addr().String())
	for {
		c, err := ln.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer func() { _ = c.Close() }()
			b, n := make([]byte, 16<<10), 0
			for {
				m, err := c.Read(b[n:])
				if err != nil {
					return
				}
				n += m
				for {
					i := bytes.Index(b[:n], []byte("\r\n\r\n"))
					if i < 0 {
						break
					}
					n = copy(b, b[i+4:n])
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}
		}()
	}
}

type bufPool struct{ p sync.Pool }

func (b *bufPool) Get() []byte  { return *b.p.Get().(*[]byte) }
func (b *bufPool) Put(x []byte) { b.p.Put(&x) }

// runBare is httputil.ReverseProxy with a tuned transport and a buffer pool, and nothing else.
func runBare(backend string) {
	target := &url.URL{Scheme: "http", Host: backend}
	rp := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(target)
			pr.SetXForwarded()
		},
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			MaxIdleConns:        4096,
			MaxIdleConnsPerHost: 4096,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
		},
		BufferPool: &bufPool{p: sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}},
	}
	s := &http.Server{Handler: rp, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	ln := listen()
	announce(ln.Addr().String())
	log.Fatal(s.Serve(ln))
}

// discard takes the batches of events as a traffic manager would.
type discard struct{ events atomic.Int64 }

func (d *discard) Send(_ context.Context, b throttle.Batch) error {
	d.events.Add(int64(b.Events))
	return nil
}

func runGateway(backend, keyFile string, transport bool, pprof string) {
	if pprof != "" {
		go func() { log.Print(http.ListenAndServe(pprof, nil)) }()
	}
	pub, err := os.ReadFile(keyFile)
	if err != nil {
		log.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	km := registry.New(registry.Options{
		CacheCapacity: 2 * tokens, CacheEnabled: true, Registerer: reg, Logger: zerolog.Nop(),
		Revocations: revocation.New(revocation.Options{}),
	})
	km.Put(keymanager.KeyManager{
		Name: "Bench", Tenant: "carbon.super", Enabled: true, Issuer: issuer, PEM: string(pub), SelfValidate: true,
		ConsumerKeyClaim: "azp",
	})
	s := store.New()
	s.APIs().ReplaceAll([]subscription.API{{ID: 1, UUID: "api-1", Name: "Bench", Version: "1.0.0", Context: "/bench/1.0.0", Tenant: "carbon.super"}})
	var applications []subscription.Application
	var mappings []subscription.KeyMapping
	var subs []subscription.Subscription
	for i := range apps {
		id := int64(i + 1)
		applications = append(applications, subscription.Application{ID: id, UUID: "app-" + strconv.Itoa(i), Name: "App" + strconv.Itoa(i), Owner: "alice", Policy: "50PerMin", Tenant: "carbon.super"})
		mappings = append(mappings, subscription.KeyMapping{ConsumerKey: consumerKey(i), KeyManager: "Bench", KeyType: subscription.Production, ApplicationID: id, ApplicationUUID: "app-" + strconv.Itoa(i), Tenant: "carbon.super"})
		subs = append(subs, subscription.Subscription{ID: id, UUID: "sub-" + strconv.Itoa(i), APIID: 1, APIUUID: "api-1", ApplicationID: id, ApplicationUUID: "app-" + strconv.Itoa(i), Policy: "Gold", State: subscription.Unblocked, Tenant: "carbon.super"})
	}
	s.Applications().ReplaceAll(applications)
	s.KeyMappings().ReplaceAll(mappings)
	s.Subscriptions().ReplaceAll(subs)

	d := deny.New()
	d.Put(throttle.DenyCondition{Kind: throttle.DenyUser, Tenant: "carbon.super", Value: "mallory@carbon.super"})
	d.Put(throttle.DenyCondition{Kind: throttle.DenyAPI, Tenant: "carbon.super", Value: "/nope/1.0.0"})
	decisions := remote.New(remote.Options{})
	for i := range 100 {
		decisions.Apply(throttle.Decision{Key: strconv.Itoa(5000+i) + ":/bench/1.0.0:1.0.0", Throttled: true, ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}, time.Now().UnixMilli())
	}
	sink := &discard{}
	pubr := publisher.New(publisher.Options{Groups: []publisher.Group{{Kind: "databridge", Endpoints: []publisher.Endpoint{{Name: "discard", Sender: sink}}}}, Logger: zerolog.Nop(), Registerer: reg})
	chk := checker.New(checker.Options{Deny: d, Templates: keytemplate.New(), Decisions: decisions, Policies: policy.New(), DenyEnabled: true, Publisher: pubr, Registerer: reg})

	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		log.Fatal(err)
	}
	p, err := proxy.New(proxy.Options{
		HTTP: "127.0.0.1:0", AccessLog: null, TracesAdmitted: 2000, TracesRefused: 20000, Registry: reg, Log: zerolog.Nop(),
		Domains:  stage.Domains{Authenticator: km, Subscriptions: s, Denier: chk, Throttler: chk},
		Upstream: upstream.Options{Transport: transport},
	})
	if err != nil {
		log.Fatal(err)
	}
	ep := &definition.Endpoint{Kind: definition.Single, URLs: []string{"http://" + backend}}
	if refused := p.SetAPIs([]*definition.API{{
		UUID: "api-1", ID: 1, Name: "Bench", Version: "1.0.0", Context: "/bench/1.0.0", Tenant: "carbon.super", Production: ep,
		Operations: []definition.Operation{{Template: "/items", Method: "GET", Tier: "10KPerMin", Scopes: []string{"read"}}, {Template: "/*", Method: "GET"}},
	}}); len(refused) > 0 {
		log.Fatal(refused)
	}
	if err := p.Listen(); err != nil {
		log.Fatal(err)
	}
	addr, _ := p.Addr()
	announce(addr)
	log.Fatal(p.Run(context.Background()))
}

func consumerKey(i int) string { return fmt.Sprintf("consumer-key-%04d", i%apps) }

// mint makes the pool of tokens.
func mint(dir string, n int) (keyFile string, list []string, err error) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		return "", nil, err
	}
	keyFile = dir + "/key.pem"
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		return "", nil, err
	}
	e := base64.RawURLEncoding
	head := e.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT","kid":"bench-1"}`))
	for i := range n {
		claims, err := json.Marshal(map[string]any{
			"iss": issuer, "sub": fmt.Sprintf("user-%05d", i), "azp": consumerKey(i), "aud": "bench", "scope": "default read write",
			"jti": fmt.Sprintf("id-%05d-%032d", i, i), "iat": time.Now().Unix(), "nbf": time.Now().Unix(), "exp": time.Now().Add(24 * time.Hour).Unix(),
			"http://wso2.org/claims/organization": "carbon.super", "realm": map[string]string{"signing_tenant": "carbon.super"}, "binding_type": "request",
		})
		if err != nil {
			return "", nil, err
		}
		text := head + "." + e.EncodeToString(claims)
		sum := sha256.Sum256([]byte(text))
		sig, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
		if err != nil {
			return "", nil, err
		}
		list = append(list, text+"."+e.EncodeToString(sig))
	}
	return keyFile, list, nil
}

// child is a started process.
type child struct {
	cmd  *exec.Cmd
	addr string
}

// begin starts this program again in a role, on one core where there is taskset.
func begin(core int, procs int, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv := append([]string{self}, args...)
	if taskset, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		argv = append([]string{taskset, "-c", strconv.Itoa(core)}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(procs))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening ")
	if err != nil || !ok {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("%s did not start: %q %w", strings.Join(args, " "), line, err)
	}
	return &child{cmd, addr}, nil
}

func (c *child) end() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// cpu is the processor time that the process has used.
func (c *child) cpu() (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, errors.New("unknown form of /proc/PID/stat")
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// contender is what is compared.
type contender struct {
	name  string
	args  []string
	path  string
	token bool
}

func compare(rounds int, seconds float64, conns, pool int, transport bool, pprof, only string, least float64) error {
	dir, err := os.MkdirTemp("", "gatehouse-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fmt.Fprintf(os.Stderr, "signing %d tokens\n", pool)
	keyFile, list, err := mint(dir, pool)
	if err != nil {
		return err
	}
	other := runtime.NumCPU() - 1
	backend, err := begin(other, 1, "-role", "backend")
	if err != nil {
		return err
	}
	defer backend.end()
	gateway := []string{"-role", "gateway", "-backend", backend.addr, "-key", keyFile}
	if transport {
		gateway = append(gateway, "-transport")
	}
	if pprof != "" {
		gateway = append(gateway, "-pprof", pprof)
	}
	all := []contender{
		{"bare ReverseProxy", []string{"-role", "bare", "-backend", backend.addr}, "/items", false},
		{"bare ReverseProxy, token sent", []string{"-role", "bare", "-backend", backend.addr}, "/items", true},
		{"gateway, all checks", gateway, "/bench/1.0.0/items", true},
	}
	if only != "" {
		all = slices.DeleteFunc(all, func(c contender) bool { return !strings.Contains(c.name, only) })
	}
	cost := make([][]float64, len(all)) // microseconds of processor time per request
	speed := make([][]float64, len(all))
	for r := range rounds {
		for i, c := range all {
			us, rps, err := measure(c, list, seconds, conns)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d: %-30s %6.1f us/request %8.0f requests/s\n", r+1, c.name, us, rps)
			cost[i], speed[i] = append(cost[i], us), append(speed[i], rps)
		}
	}
	fmt.Printf("%-32s %14s %20s %12s %10s\n", "median of "+strconv.Itoa(rounds)+" rounds", "us/request", "requests/s per core", "measured/s", "ratio")
	base, last := median(cost[0]), 0.0
	for i, c := range all {
		m := median(cost[i])
		fmt.Printf("%-32s %14.1f %20.0f %12.0f %10.2f\n", c.name, m, 1e6/m, median(speed[i]), base/m)
		last = base / m
	}
	if last < least {
		return fmt.Errorf("the ratio of %s is %.2f, below %.2f", all[len(all)-1].name, last, least)
	}
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// measure starts a contender, warms it up with every token once, and loads it.
func measure(c contender, list []string, seconds float64, conns int) (us, rps float64, err error) {
	p, err := begin(0, 1, c.args...)
	if err != nil {
		return 0, 0, err
	}
	defer p.end()
	requests := make([][]byte, 1)
	if c.token {
		requests = make([][]byte, len(list))
	}
	for i := range requests {
		auth := ""
		if c.token {
			auth = "Authorization: Bearer " + list[i] + "\r\n"
		}
		requests[i] = []byte("GET " + c.path + " HTTP/1.1\r\nHost: bench.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n" + auth + "\r\n")
	}
	if _, err := load(p.addr, requests, conns, func(n int64) bool { return n >= int64(max(len(requests), 5000)) }); err != nil {
		return 0, 0, err
	}
	before, err := p.cpu()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	end := start.Add(time.Duration(seconds * float64(time.Second)))
	n, err := load(p.addr, requests, conns, func(int64) bool { return time.Now().After(end) })
	if err != nil {
		return 0, 0, err
	}
	took := time.Since(start)
	after, err := p.cpu()
	if err != nil {
		return 0, 0, err
	}
	return float64((after - before).Microseconds()) / float64(n), float64(n) / took.Seconds(), nil
}

// load sends requests over keep-alive connections until done says so, and returns how many were answered.
func load(addr string, requests [][]byte, conns int, done func(n int64) bool) (int64, error) {
	var total, next atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, conns)
	for range conns {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				errs <- err
				return
			}
			defer func() { _ = c.Close() }()
			r := bufio.NewReaderSize(c, 8<<10)
			for !done(total.Load()) {
				if _, err := c.Write(requests[next.Add(1)%int64(len(requests))]); err != nil {
					errs <- err
					return
				}
				if err := answer(r); err != nil {
					errs <- err
					return
				}
				total.Add(1)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return total.Load(), nil
	}
}

var statusOK, lengthField = []byte("HTTP/1.1 200"), []byte("Content-Length: ")

// answer reads one answer of a known length.
func answer(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		l, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(l, statusOK) {
			return fmt.Errorf("answered %q", bytes.TrimSpace(l))
		}
		if v, ok := bytes.CutPrefix(l, lengthField); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return err
			}
		}
		if len(l) == 2 {
			break
		}
	}
	if length < 0 {
		return io.ErrUnexpectedEOF
	}
	_, err := r.Discard(length)
	return err
}
