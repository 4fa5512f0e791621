// Package proxy is the data plane: listeners, the route table, the pipeline in front of the backends, and the answers.
//
// A Proxy serves whatever SetAPIs gave it last. It asks the domains through the interfaces of package stage and knows
// nothing of where their state comes from.
package proxy

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"gatehouse/proxy/accesslog"
	"gatehouse/proxy/fault"
	"gatehouse/proxy/pipeline"
	"gatehouse/proxy/route"
	"gatehouse/proxy/upstream"
)

// Proxy is the gateway's data plane. All methods may be called from any goroutine.
type Proxy struct {
	opts    Options
	dialect fault.Dialect
	trusted []netip.Prefix
	// certificateHeaders are the fields in which proxies hand on certificates: the one that is read, and Envoy's.
	certificateHeaders [2]string
	// vouched are the fields by which backends know what the gateway has seen of the client.
	vouched   []string
	cors      *cors
	upstreams *upstream.Pool
	traces    *pipeline.Traces
	metrics   *metrics
	log       *accesslog.Log

	streams    *streams
	generation atomic.Pointer[generation]
	compile    sync.Mutex
	states     sync.Pool
	copies     sync.Pool

	listeners listeners
	draining  atomic.Bool
}

// New checks the options and makes a proxy without APIs. It opens no port; Run does. Close must be called when Run was
// not.
func New(o Options) (*Proxy, error) {
	o.defaults()
	p := &Proxy{opts: o, cors: compileCORS(o.CORS), traces: pipeline.NewTraces(o.TracesAdmitted, o.TracesRefused), streams: newStreams()}
	p.certificateHeaders = [2]string{o.CertificateHeader, forwardedCertificate}
	p.vouched = []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Request-Id", forwardedCertificate, o.CertificateHeader}
	var err error
	if p.dialect, err = fault.ParseDialect(o.FaultDialect); err != nil {
		return nil, err
	}
	if p.trusted, err = parsePrefixes(o.TrustedProxies); err != nil {
		return nil, err
	}
	if o.HTTP == "" && o.HTTPS == "" {
		return nil, errors.New("no listener: give an address for http, https or both")
	}
	if err := p.listeners.configure(p); err != nil {
		return nil, err
	}
	if p.upstreams, err = upstream.NewPool(o.Upstream); err != nil {
		return nil, err
	}
	dropped := func() float64 { return 0 }
	if o.AccessLog != nil {
		p.log = accesslog.New(accesslog.Options{Out: o.AccessLog, Users: o.AccessLogUsers})
		dropped = func() float64 { return float64(p.log.Dropped()) }
	}
	p.metrics = newMetrics(o.Registry, o.MaxAPILabels, dropped)
	p.states.New = func() any { return newState() }
	p.copies.New = func() any { b := make([]byte, 64<<10); return &b }
	p.generation.Store(&generation{table: &route.Table[*api, *operation]{}})
	return p, nil
}

// Traces are the traces of the last requests.
func (p *Proxy) Traces() *pipeline.Traces { return p.traces }

// SetUpstream replaces the defaults of the calls to backends, as upstream.Pool.SetDefaults says.
func (p *Proxy) SetUpstream(d upstream.Defaults) error { return p.upstreams.SetDefaults(d) }

// Close frees what the proxy holds: idle connections to backends, and the access log after its last line. It does not
// stop the listeners; Run calls it when it has.
func (p *Proxy) Close() error {
	p.upstreams.Close()
	if p.log != nil {
		return p.log.Close()
	}
	return nil
}
