package sync

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/proxy/definition"
	"gatehouse/throttle"
)

// endpoints tells which backend each host leads to: the definition first, then its variants.
func endpoints(d *definition.API) (list []string) {
	for _, v := range append([]*definition.API{d}, d.Variants...) {
		list = append(list, strings.Join(v.Hosts, ",")+" to "+v.Production.URLs[0])
	}
	return list
}

func TestEndpointsOfAnEnvironmentChangeWithoutANewRevision(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, _ *told) {
		override := func(url string) {
			a := project(t, 1, 1)
			if url != "" {
				a.EndpointOverrides = map[string]controlplane.EndpointOverride{"Default": {Production: url}}
			}
			r.m.deploy(a, 1, "PUBLISHED")
			r.Resync()
			settled(time.Second)
		}
		for _, c := range []struct{ override, want string }{
			{"http://eu.backend.test", "http://eu.backend.test"}, {"http://us.backend.test", "http://us.backend.test"}, {"", "http://backend.test/1"},
		} {
			override(c.override)
			if got := r.w.served[0].Production.URLs[0]; got != c.want {
				t.Errorf("with the override %q requests go to %s, want %s", c.override, got, c.want)
			}
		}
	})
}

// deployTo deploys a revision of API 1 to an environment with a host of its own, beside what is deployed.
func deployTo(t *testing.T, m *manager, rev int, environment, host string) {
	a := project(t, 1, rev, environment)
	a.Deployments[0].VHost = host
	m.mu.Lock()
	defer m.mu.Unlock()
	m.artifacts[fmt.Sprint(apiUUID(1), "/", rev)] = a
}

func TestRevisionsOfOneAPIInTwoEnvironments(t *testing.T) {
	runDeployed(t, func(o *Options) { o.Labels = []string{"Default", "edge"} }, func(t *testing.T, r *rig, d *told) {
		deployTo(t, r.m, 2, "edge", "edge.test")
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, false, r.m.now(), "edge")))
		settled(time.Second)
		want := []string{"gw.test to http://backend.test/1", "edge.test to http://backend.test/2"}
		if diff := cmp.Diff(want, endpoints(r.w.served[0])); diff != "" {
			t.Fatalf("after the event (-want +got):\n%s", diff)
		}
		for range 3 { // whichever comes first in the list
			r.Resync()
			settled(time.Second)
			if diff := cmp.Diff(want, endpoints(r.w.served[0])); diff != "" {
				t.Fatalf("after a list (-want +got):\n%s", diff)
			}
		}
		var acked []int64
		for _, a := range d.acks {
			acked = append(acked, a.RevisionID)
		}
		if !slices.Equal(acked, []int64{1, 2}) {
			t.Errorf("acknowledged revisions %v, want each once", acked)
		}

		// The first environment loses its revision, the other stays.
		r.m.mu.Lock()
		delete(r.m.artifacts, apiUUID(1))
		r.m.mu.Unlock()
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, true, r.m.now(), "Default")))
		settled(time.Second)
		if diff := cmp.Diff([]string{"edge.test to http://backend.test/2"}, endpoints(r.w.served[0])); diff != "" {
			t.Errorf("after the removal (-want +got):\n%s", diff)
		}
		if len(d.undone) != 1 || d.undone[0].RevisionUUID != revision(1) || d.undone[0].Environment != "Default" {
			t.Errorf("reported %+v undeployed, want revision 1 of Default", d.undone)
		}
		for _, s := range d.statuses {
			if s.Undeploy {
				t.Errorf("the API is said to be undeployed: %+v", s)
			}
		}
	})
}

func TestRevisionsOnOneHost(t *testing.T) {
	runDeployed(t, func(o *Options) { o.Labels = []string{"Default", "edge"} }, func(t *testing.T, r *rig, _ *told) {
		deployTo(t, r.m, 2, "edge", "GW.test")
		r.Resync()
		settled(time.Second)
		if diff := cmp.Diff([]string{"gw.test to http://backend.test/1"}, endpoints(r.w.served[0])); diff != "" {
			t.Errorf("served (-want +got):\n%s", diff)
		}
		if why := r.State().Refused[apiUUID(1)]; !strings.Contains(why, revision(2)) || !strings.Contains(why, "give the environments hosts of their own") {
			t.Errorf("refused because %q, want the revision and what to do", why)
		}
	})
}

func TestEveryEnvironmentIsReportedAsUndeployed(t *testing.T) {
	runDeployed(t, func(o *Options) { o.Labels = []string{"Default", "edge"} }, func(t *testing.T, r *rig, d *told) {
		r.m.deploy(project(t, 1, 2, "Default", "edge"), 1, "PUBLISHED")
		r.Resync()
		settled(time.Second)
		r.m.undeploy(1)
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, true, r.m.now(), "Default", "edge")))
		settled(time.Second)
		var got []string
		for _, u := range d.undone {
			got = append(got, u.Environment)
		}
		if !slices.Equal(got, []string{"Default", "edge"}) {
			t.Errorf("environments reported as undeployed: %q, want both", got)
		}
	})
}

// Another release may have read less out of a project: what a snapshot holds is served until the project is there again.
func TestADefinitionOfASnapshotIsReadAgain(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, _ *told) {
		a := project(t, 1, 1)
		known := *r.artifacts.table.Get(apiUUID(1))
		if again := r.parse(&a, superTenant); again.Definition != known.Definition {
			t.Error("a definition that was read of the same revision is read again")
		}
		known.Origin = Origin{Kind: "snapshot"}
		known.Definition = &definition.API{UUID: apiUUID(1)}
		r.artifacts.w.do(t.Context(), func() { r.artifacts.table.Put(known) })
		if again := r.parse(&a, superTenant); again.Definition == known.Definition || len(again.Definition.Operations) != 1 {
			t.Errorf("the definition of the snapshot is used: %+v", again.Definition)
		}
	})
}

func TestAStartAsksForNoAPIByItself(t *testing.T) {
	runDeployed(t, func(o *Options) {
		for n := range 50 {
			a := project(t, n+10, 1)
			list := o.Lists.Artifacts
			o.Lists.Artifacts = func(ctx context.Context, q controlplane.ArtifactQuery) ([]controlplane.Artifact, error) {
				all, err := list(ctx, q)
				if q.APIUUID == "" {
					all = append(all, a)
				}
				return all, err
			}
			apis := o.Lists.APIs
			o.Lists.APIs = func(ctx context.Context, q ListQuery, each func(controlplane.API) error) (Meta, error) {
				if err := each(controlplane.API{UUID: a.APIUUID, APIID: int64(n + 10), Context: a.APIContext, Version: "1.0.0", Status: "PUBLISHED"}); err != nil {
					return Meta{}, err
				}
				return apis(ctx, q, each)
			}
		}
	}, func(t *testing.T, r *rig, _ *told) {
		if len(r.w.served) != 51 {
			t.Fatalf("%d APIs are served, want 51", len(r.w.served))
		}
		r.m.mu.Lock()
		n := r.m.calls["api"]
		r.m.mu.Unlock()
		if n != 0 {
			t.Errorf("%d APIs were asked for one by one, though the list had them", n)
		}
	})
}

func TestAnAPIThatLeftTheFolderIsForgotten(t *testing.T) {
	run(t, func(o *Options) { o.Lists, o.Sources = Lists{}, nil }, func(t *testing.T, r *rig) {
		api := func(id string) *definition.API {
			return &definition.API{UUID: id, Name: id, Version: "1", Context: "/" + id + "/1", Origin: definition.Origin{Kind: "file"}}
		}
		r.SetFolder([]*definition.API{api("a"), api("b")})
		settled(time.Second)
		r.SetFolder([]*definition.API{api("b")})
		settled(time.Second)
		if r.w.apis.table().Get(APIKey{UUID: "a"}) != nil || r.w.apis.table().Get(APIKey{UUID: "b"}) == nil {
			t.Error("the API that left is known still, or the other is not")
		}
	})
}

// lockedLog keeps what an engine logs.
type lockedLog struct {
	mu gosync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func TestAddressPrefixesAreDenied(t *testing.T) {
	var log lockedLog
	run(t, func(o *Options) { o.Logger = zerolog.New(&log) }, func(t *testing.T, r *rig) {
		r.m.block.IP = []controlplane.IPCondition{
			{ID: 1, Type: "IP", FixedIP: "10.1.0.0/16", TenantDomain: superTenant}, {ID: 2, Type: "IP", FixedIP: "300.1.1.1", TenantDomain: superTenant},
		}
		r.source.state(eventsource.Connected)
		settled(time.Second)
		deny := func(id int64, ip string) {
			r.source.deliver(r.wire.message(event.TopicThrottleData, event.DenyChanged{
				Base:   event.Base{Time: r.m.now(), TenantDomain: superTenant},
				Active: true, ID: id, Kind: "IP", FixedIP: ip,
			}))
		}
		deny(3, "2001:db8::/32")
		deny(4, "10.0.0.x")
		settled(100 * time.Millisecond)
		got := make(map[int64]string)
		for _, c := range r.w.deny.all() {
			got[c.ID] = fmt.Sprint(c.Kind, " ", c.From, " ", c.To, " ", c.Value)
		}
		want := map[int64]string{
			1: fmt.Sprint(throttle.DenyIPRange, " 10.1.0.0 10.1.255.255 "), 2: fmt.Sprint(throttle.DenyIP, " invalid IP invalid IP 300.1.1.1"),
			3: fmt.Sprint(throttle.DenyIPRange, " 2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff "), 4: fmt.Sprint(throttle.DenyIP, " invalid IP invalid IP 10.0.0.x"),
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("conditions (-want +got):\n%s", d)
		}
		fetched := func() int {
			r.m.mu.Lock()
			defer r.m.mu.Unlock()
			return r.m.calls[kindDenyPolicies]
		}
		calls := fetched()
		settled(time.Second)
		if fetched() != calls+1 {
			t.Error("an address that cannot be read does not make the list due")
		}
		for _, value := range []string{"300.1.1.1", "10.0.0.x"} {
			if n := log.count(`"value":"` + value + `"`); n != 1 {
				t.Errorf("%s is logged %d times, want once", value, n)
			}
		}
	})
}

func TestAMalformedMessageIsLoggedOnceWithItsBeginning(t *testing.T) {
	var log lockedLog
	run(t, func(o *Options) { o.Logger, o.Decode = zerolog.New(&log), event.Decode }, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Second)
		for range 3 {
			r.source.deliver(event.Message{Topic: event.TopicNotification, ContentType: "text/plain", Body: []byte(`{"event":{"payloadData":{"eventType":"x" y`)})
		}
		settled(time.Second)
		if n := log.count(`"excerpt":"{\"event\":{\"payloadData\":`); n != 1 {
			t.Errorf("the beginning of the message is logged %d times, want once", n)
		}
		if n := r.State().Sources[0].EventsIgnored["malformed"]; n != 3 {
			t.Errorf("%d malformed messages counted, want 3", n)
		}
	})
}

// rewritten replaces a text in every file of a zip.
func rewritten(t *testing.T, archive []byte, from, to string) []byte {
	t.Helper()
	in, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, f := range in.File {
		b, err := fs.ReadFile(in, f.Name)
		if err != nil {
			t.Fatal(err)
		}
		w, err := z.Create(f.Name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.ReplaceAll(b, []byte(from), []byte(to))); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A fault of ours over one event or project is that one's, and not the end of the gateway.
func TestAPanicIsOfOneEventOrProject(t *testing.T) {
	runDeployed(t, func(o *Options) {
		o.Artifacts.LookupEnv = func(string) (string, bool) { panic("boom") }
	}, func(t *testing.T, r *rig, _ *told) {
		bad := project(t, 2, 1)
		bad.Project = rewritten(t, bad.Project, "http://backend.test/1", "http://${HOST}")
		if d, err := r.read(&bad, superTenant); d != nil || err == nil || !strings.Contains(err.Error(), "boom") {
			t.Errorf("read = %v, %v; want the panic as its fault", d, err)
		}
		r.artifacts.w.do(t.Context(), func() {
			w := r.artifacts.w
			apply := w.apply
			w.apply = func(it *item) outcome {
				if it.base.EventID == "bad" {
					panic("boom")
				}
				return apply(it)
			}
		})
		ev := deployment(1, false, r.m.now())
		ev.EventID = "bad"
		lists := r.m.calls[kindArtifacts]
		r.source.deliver(r.wire.message(event.TopicNotification, ev))
		settled(2 * time.Second)
		if n := r.State().Sources[0].EventsIgnored["malformed"]; n != 1 {
			t.Errorf("%d events are counted as malformed, want the one", n)
		}
		if r.m.calls[kindArtifacts] == lists {
			t.Error("the list was not fetched in the event's place")
		}
		r.m.deploy(project(t, 2, 1), 2, "PUBLISHED")
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(2, false, r.m.now())))
		settled(time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED", "/api2/1.0.0 PUBLISHED")
	})
}

// A deny policy's event has no id of its own; the message's stands in, so that a refusal can be followed to it.
func TestTheOriginNamesTheMessage(t *testing.T) {
	run(t, func(o *Options) { o.Decode = event.Decode }, func(t *testing.T, r *rig) {
		r.source.deliver(event.Message{Topic: event.TopicThrottleData, ContentType: "text/plain", MessageID: "ID:7f", Timestamp: r.m.now(), Body: []byte(
			`{"event":{"payloadData":{"id":6,"blockingCondition":"API","conditionValue":"/a/1","state":"true","tenantDomain":"carbon.super"}}}`)})
		settled(10 * time.Millisecond)
		for _, c := range r.w.deny.all() {
			if c.Origin.Kind != "event" || c.Origin.ID != "ID:7f" {
				t.Errorf("origin %+v, want the message", c.Origin)
			}
		}
		if len(r.w.deny.all()) != 1 {
			t.Errorf("%d deny policies, want 1", len(r.w.deny.all()))
		}
	})
}
