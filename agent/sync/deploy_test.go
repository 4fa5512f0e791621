package sync

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	gosync "sync"
	"testing"
	"testing/synctest"
	"time"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/proxy/definition"
)

// uuids of 36 characters, as projects are named.
func apiUUID(n int) string { return fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", n) }

func revision(n int) string { return fmt.Sprintf("bbbbbbbb-0000-4000-8000-%012d", n) }

// project is a small apictl project as the API Manager deploys it.
func project(t testing.TB, n, rev int, labels ...string) controlplane.Artifact {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	put := func(name, text string) {
		w, err := z.Create("API" + name)
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("/api.yaml", fmt.Sprintf(`type: api
version: v4.1.0
data:
  id: %s
  name: API%d
  context: /api%d
  version: 1.0.0
  provider: admin
  type: HTTP
  lifeCycleStatus: PUBLISHED
  revisionId: %d
  endpointConfig:
    endpoint_type: http
    production_endpoints:
      url: http://backend.test/%d
  operations:
  - target: /*
    verb: GET
    authType: Application & Application User
    throttlingPolicy: Unlimited
`, apiUUID(n), n, n, rev, rev))
	put("/Definitions/swagger.yaml", fmt.Sprintf("openapi: 3.0.1\ninfo:\n  title: API%d\n  version: 1.0.0\npaths:\n  /*:\n    get:\n      responses:\n        '200':\n          description: ok\n", n))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	a := controlplane.Artifact{
		File: apiUUID(n) + "-" + revision(rev) + ".zip", Project: out.Bytes(), APIUUID: apiUUID(n), RevisionUUID: revision(rev),
		Organization: superTenant, APIContext: fmt.Sprintf("/api%d/1.0.0", n), Version: "1.0.0",
	}
	if len(labels) == 0 {
		labels = []string{"Default"}
	}
	for _, l := range labels {
		a.Deployments = append(a.Deployments, controlplane.Deployment{Environment: l, VHost: "gw.test"})
	}
	return a
}

func (m *manager) deploy(a controlplane.Artifact, n int, status string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.artifacts[a.APIUUID] = a
	m.apis[a.APIUUID] = controlplane.API{UUID: a.APIUUID, APIID: int64(n), Name: fmt.Sprint("API", n), Version: "1.0.0", Context: a.APIContext, Status: status, Organization: superTenant}
}

func (m *manager) undeploy(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.artifacts, apiUUID(n))
	delete(m.apis, apiUUID(n))
}

func deployment(n int, remove bool, t int64, labels ...string) event.Deployment {
	if len(labels) == 0 {
		labels = []string{"Default"}
	}
	return event.Deployment{Base: base(t), Remove: remove, UUID: apiUUID(n), ID: int64(n), Labels: labels}
}

// told collects what the gateway reports.
type told struct {
	mu       gosync.Mutex
	acks     []controlplane.Acknowledgement
	statuses []controlplane.DeploymentStatus
	undone   []controlplane.Undeployment
}

func (d *told) reports() Reports {
	return Reports{
		Register: func(_ context.Context, g controlplane.Gateway, _ time.Time) (string, controlplane.Registration, error) {
			return g.ID, controlplane.Registered, nil
		},
		Heartbeat: func(context.Context, controlplane.Gateway, time.Time) (controlplane.Registration, error) {
			return controlplane.Acknowledged, nil
		},
		Acknowledge: func(_ context.Context, _ string, acks []controlplane.Acknowledgement) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.acks = append(d.acks, acks...)
			return nil
		},
		Undeployed: func(_ context.Context, _ string, u controlplane.Undeployment) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.undone = append(d.undone, u)
			return nil
		},
		NotifyDeployments: func(_ context.Context, list []controlplane.DeploymentStatus) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.statuses = append(d.statuses, list...)
			return nil
		},
	}
}

func runDeployed(t *testing.T, change func(*Options), test func(t *testing.T, r *rig, d *told)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newManager()
		m.deploy(project(t, 1, 1), 1, "PUBLISHED")
		d := &told{}
		r := newRig(t, m, func(o *Options) {
			o.Reports = d.reports()
			if change != nil {
				change(o)
			}
		})
		r.start()
		defer r.end(t)
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		test(t, r, d)
	})
}

func wantServed(t *testing.T, r *rig, want ...string) {
	t.Helper()
	if got := r.w.contexts(); !slices.Equal(got, want) {
		t.Fatalf("served %q, want %q", got, want)
	}
}

func TestDeployedAPIsAreServedAndReported(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, d *told) {
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
		if len(d.acks) != 1 || d.acks[0].APIUUID != apiUUID(1) || d.acks[0].RevisionID != 1 || len(d.acks[0].Deployed) != 1 {
			t.Errorf("acknowledged %+v, want revision 1 of the API in Default", d.acks)
		}
		if len(d.statuses) != 1 || d.statuses[0].Failed || d.statuses[0].Undeploy || d.statuses[0].GatewayID == "" {
			t.Errorf("reported %+v, want one success", d.statuses)
		}
		if def := r.w.served[0]; def.ID != 1 || def.Operations[0].Template != "/*" || def.Hosts[0] != "gw.test" || def.Environments[0] != "Default" {
			t.Errorf("definition %+v", def)
		}
	})
}

func TestDeployEventFetchesTheArtifactUntilItIsThere(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, d *told) {
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(2, false, r.m.now())))
		settled(time.Second) // a replica lags: not found
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
		r.m.deploy(project(t, 2, 7), 2, "PUBLISHED")
		settled(5 * time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED", "/api2/1.0.0 PUBLISHED")
		if a := r.w.apis.table().Get(APIKey{UUID: apiUUID(2)}); a == nil || a.ID != 2 {
			t.Errorf("metadata %+v, want that of API 2", a)
		}
		n := r.m.calls[kindArtifacts]
		// Twice the same news costs one more look at most, and changes nothing.
		calls := r.w.setCalls
		for range 20 {
			r.source.deliver(r.wire.message(event.TopicNotification, deployment(2, false, r.m.now())))
		}
		settled(time.Second)
		if got := r.m.calls[kindArtifacts] - n; got > 21 {
			t.Errorf("%d more artifact calls", got)
		}
		if r.w.setCalls != calls {
			t.Errorf("the routes were set %d times more, want none", r.w.setCalls-calls)
		}
	})
}

func TestRemoveEvent(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, d *told) {
		at := r.m.now()
		r.m.undeploy(1)
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, true, at)))
		settled(time.Second)
		wantServed(t, r)
		if r.w.apis.table().Len() != 0 {
			t.Error("the metadata of an undeployed API is kept")
		}
		if len(d.undone) != 1 || d.undone[0].RevisionUUID != revision(1) {
			t.Errorf("reported %+v undeployed, want the revision", d.undone)
		}
		// Deployed again, then the old removal comes once more.
		r.m.deploy(project(t, 1, 2), 1, "PUBLISHED")
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, false, r.m.now())))
		settled(time.Second)
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, true, at)))
		settled(time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
	})
}

func TestEventsOfOtherLabelsAreIgnored(t *testing.T) {
	runDeployed(t, func(o *Options) { o.Labels = []string{"Default", "edge"} }, func(t *testing.T, r *rig, _ *told) {
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, true, r.m.now(), "elsewhere")))
		settled(time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
		if n := r.State().Sources[0].EventsIgnored["other"]; n != 1 {
			t.Errorf("%d events counted as other, want 1", n)
		}
		// Removed from one of two labels it stays.
		r.m.deploy(project(t, 1, 2, "Default", "edge"), 1, "PUBLISHED")
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, false, r.m.now())))
		settled(time.Second)
		r.m.deploy(project(t, 1, 2, "edge"), 1, "PUBLISHED")
		r.source.deliver(r.wire.message(event.TopicNotification, deployment(1, true, r.m.now(), "Default")))
		settled(time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
		if got := r.w.served[0].Environments; !slices.Equal(got, []string{"edge"}) {
			t.Errorf("environments %q, want edge alone", got)
		}
	})
}

func TestLifecycleAndDefaultVersion(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, _ *told) {
		change := func(status string, isDefault bool) {
			r.m.mu.Lock()
			a := r.m.apis[apiUUID(1)]
			a.Status, a.IsDefaultVersion = status, isDefault
			if status == "RETIRED" {
				delete(r.m.apis, apiUUID(1))
				delete(r.m.artifacts, apiUUID(1))
			} else {
				r.m.apis[apiUUID(1)] = a
			}
			r.m.mu.Unlock()
			r.source.deliver(r.wire.message(event.TopicNotification, event.APIChanged{
				Base: base(r.m.now()), Action: event.Update, Lifecycle: true,
				UUID: apiUUID(1), ID: 1, Name: "API1", Version: "1.0.0", Context: "/api1/1.0.0", Status: status, DefaultVersion: isDefault,
			}))
			settled(time.Second)
		}
		change("BLOCKED", false)
		wantServed(t, r, "/api1/1.0.0 BLOCKED")
		change("PUBLISHED", true)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
		if d := r.w.served[0]; !d.IsDefault || d.DefaultContext != "/api1" {
			t.Errorf("default %v at %q, want true at /api1", d.IsDefault, d.DefaultContext)
		}
		change("RETIRED", false)
		wantServed(t, r)
	})
}

func TestUnreadableProjectKeepsTheVersionBefore(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, d *told) {
		bad := project(t, 1, 2)
		bad.Project = []byte("PK no zip")
		r.m.deploy(bad, 1, "PUBLISHED")
		worse := project(t, 2, 1)
		worse.Project, worse.Err = nil, errors.New("the zip lacks it")
		r.m.deploy(worse, 2, "PUBLISHED")
		r.Resync()
		settled(time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
		if url := r.w.served[0].Production.URLs[0]; url != "http://backend.test/1" {
			t.Errorf("endpoint %s, want that of revision 1", url)
		}
		st := r.State()
		if len(st.Refused) != 2 {
			t.Errorf("refused %v, want both", st.Refused)
		}
		failed := 0
		for _, s := range d.statuses {
			if s.Failed && s.ErrorMessage != "" {
				failed++
			}
		}
		if failed != 2 {
			t.Errorf("%d failures reported, want 2", failed)
		}
		// Mended.
		r.m.deploy(project(t, 1, 3), 1, "PUBLISHED")
		r.m.deploy(project(t, 2, 2), 2, "PUBLISHED")
		r.Resync()
		settled(time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED", "/api2/1.0.0 PUBLISHED")
		if st := r.State(); len(st.Refused) != 0 {
			t.Errorf("refused %v after mending", st.Refused)
		}
	})
}

func TestServerWithoutArtifactsUndeploysNothing(t *testing.T) {
	runDeployed(t, nil, func(t *testing.T, r *rig, _ *told) {
		r.m.mu.Lock()
		r.m.failing[kindArtifacts] = &controlplane.Error{Kind: controlplane.Rejected, Status: 400, Err: controlplane.ErrNoArtifacts}
		r.m.mu.Unlock()
		r.Resync()
		settled(time.Minute)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED")
	})
}

func TestFolderIsMatchedWithTheAPIManagersMetadata(t *testing.T) {
	runDeployed(t, func(o *Options) {
		o.Lists.Artifacts = func(context.Context, controlplane.ArtifactQuery) ([]controlplane.Artifact, error) {
			return nil, &controlplane.Error{Kind: controlplane.NotFound, Err: controlplane.ErrNoArtifacts}
		}
	}, func(t *testing.T, r *rig, _ *told) {
		if !r.IsReady() {
			t.Fatal("an API Manager without artifacts (3.2) keeps readiness up")
		}
		r.SetFolder([]*definition.API{
			{Name: "API1", Version: "1.0.0", Context: "/api1/1.0.0", Lifecycle: "PUBLISHED"},
			{Name: "Other", Version: "2.0.0", Context: "/other/2.0.0", Lifecycle: "PUBLISHED"},
		})
		settled(time.Second)
		wantServed(t, r, "/api1/1.0.0 PUBLISHED", "/other/2.0.0 PUBLISHED")
		if got := r.w.served[0]; got.UUID != apiUUID(1) || got.ID != 1 {
			t.Errorf("matched %q, %d; want the API Manager's UUID and number", got.UUID, got.ID)
		}
	})
}

func TestStandAloneIsReadyWithTheFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newManager(), func(o *Options) { o.Lists, o.Sources = Lists{}, nil })
		r.start()
		defer r.end(t)
		settled(time.Minute)
		if r.IsReady() {
			t.Fatal("ready before the folder was read")
		}
		r.SetFolder([]*definition.API{{UUID: "u", Name: "A", Version: "1", Context: "/a/1", Lifecycle: "PUBLISHED"}})
		synctest.Wait()
		if !r.IsReady() {
			t.Fatal("not ready with the folder")
		}
		wantServed(t, r, "/a/1 PUBLISHED")
		if r.w.apis.table().Get(APIKey{UUID: "u"}) == nil {
			t.Error("the API is not known to the subscription store")
		}
		r.SetFolder(nil)
		settled(time.Second)
		wantServed(t, r)
	})
}

// TestAPIThatIsDeletedWhileItsProjectIsReadStaysAway: the answer is from before, and nobody would ask again.
func TestAPIThatIsDeletedWhileItsProjectIsReadStaysAway(t *testing.T) {
	run(t, nil, func(t *testing.T, r *rig) {
		r.source.state(eventsource.Connected)
		settled(time.Minute)
		r.m.deploy(project(t, 1, 1), 1, "PUBLISHED")
		r.m.mu.Lock()
		r.m.after = 3 * time.Second
		r.m.mu.Unlock()
		now := r.m.now()
		r.source.deliver(r.wire.message(event.TopicNotification, event.Deployment{Base: base(now), UUID: apiUUID(1), Labels: []string{"Default"}}))
		settled(time.Second) // the answer is on its way
		r.m.mu.Lock()
		clear(r.m.artifacts)
		clear(r.m.apis)
		r.m.mu.Unlock()
		r.source.deliver(r.wire.message(event.TopicNotification, event.APIChanged{Base: base(now + 1000), Action: event.Delete, ID: 1, UUID: apiUUID(1)}))
		settled(time.Minute)
		if got := r.w.contexts(); len(got) != 0 {
			t.Errorf("deployed are %q, want nothing", got)
		}
	})
}
