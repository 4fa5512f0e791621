package sync

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"gatehouse/agent/controlplane"
	"gatehouse/agent/event"
	"gatehouse/agent/eventsource"
	"gatehouse/agent/sync/snapshot"
	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

// full is a manager with something of each kind.
func full() *manager {
	m := newManager()
	m.apps[1] = controlplane.Application{ID: 1, UUID: "app-1", Name: "App", SubName: "dana", Policy: "Unlimited", GroupIDs: []string{"g"}, Attributes: map[string]string{"a": "b"}}
	for id := range int64(60) {
		m.subs[id+1] = subRow(id+1, "UNBLOCKED")
	}
	m.apis["uuid-1"] = controlplane.API{
		UUID: "uuid-1", APIID: 1, Name: "Shop", Version: "1.0.0", Context: "/shop/1.0.0", Status: "PUBLISHED", Organization: superTenant,
		URLMappings: []controlplane.URLMapping{{URLPattern: "/*", HTTPMethod: "GET", AuthScheme: "Any", Scopes: []string{"s"}}},
	}
	m.mappings["ck@Resident Key Manager"] = controlplane.KeyMapping{ApplicationID: 1, ConsumerKey: "ck", KeyType: "PRODUCTION", KeyManager: "Resident Key Manager"}
	m.subPol["Gold"] = controlplane.Policy{Name: "Gold", TenantDomain: superTenant, DefaultLimit: &controlplane.Limit{QuotaType: "requestCount", TimeUnit: "min", UnitTime: 1, Count: 5}}
	m.kms["KM"] = controlplane.KeyManager{Name: "KM", Tenant: superTenant, Enabled: true, Configuration: map[string]any{"issuer": "https://idp"}}
	m.templates["$userId"] = true
	m.block = controlplane.Block{
		API: []string{"/shop/1.0.0"}, User: []string{"eve@carbon.super"},
		IP: []controlplane.IPCondition{{ID: 5, Type: "IPRANGE", StartingIP: "10.0.0.1", EndingIP: "10.0.0.9", TenantDomain: superTenant}},
	}
	m.revoked.Tokens = []controlplane.RevokedToken{{Signature: "jti-1", ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}}
	return m
}

// leave runs an engine until everything is in, and stops it, which writes a snapshot.
func leave(t *testing.T, dir string) {
	t.Helper()
	r := newRig(t, full(), func(o *Options) { o.DataDir = dir })
	r.start()
	r.source.state(eventsource.Connected)
	settled(time.Second)
	r.source.deliver(r.wire.message(event.TopicThrottleData, event.ThrottleDecision{
		Base: base(1), Key: "1:dana@carbon.super", Throttled: true,
		ExpiresAt: time.Now().Add(time.Hour).UnixMilli(),
	}))
	synctest.Wait()
	wantEqual(t, r)
	r.end(t)
}

func TestRestartServesFromTheSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		leave(t, dir)
		settled(time.Hour / 2)

		m := full() // as it was, but nobody answers
		m.failing[""] = &controlplane.Error{Op: "list", Kind: controlplane.Unreachable}
		r := newRig(t, m, func(o *Options) { o.DataDir = dir })
		r.start()
		defer r.end(t)
		synctest.Wait() // no time passes
		if !r.IsReady() {
			t.Fatal("not ready from the snapshot")
		}
		wantEqual(t, r)
		if len(r.w.decisions) != 1 || len(r.w.revoked) != 1 {
			t.Errorf("%d decisions and %d revocations, want one each", len(r.w.decisions), len(r.w.revoked))
		}
		if s := r.w.subs.table().Get(7); s == nil || s.Origin.Kind != "snapshot" {
			t.Errorf("subscription 7 is %+v, want one of origin snapshot", s)
		}
		for _, c := range r.Checks() {
			if c.Name == "lists" && c.Status != "degraded" {
				t.Errorf("lists is %q, want degraded", c.Status)
			}
		}
		// The API Manager comes back with changes, and only half of what it had: nothing is believed at once.
		m.mu.Lock()
		clear(m.failing)
		m.subs[1] = subRow(1, "BLOCKED")
		m.mu.Unlock()
		settled(2 * time.Second)
		wantEqual(t, r)
	})
}

func TestSnapshotsThatAreNotUsed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, path string, o *Options)
		wait   time.Duration
		want   string
	}{
		"damaged": {func(t *testing.T, path string, _ *Options) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0, "checksum"},
		"another version": {func(t *testing.T, path string, _ *Options) {
			if _, err := snapshot.Write(path, snapshotVersion+1, func(*snapshot.Writer) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}, 0, "another version"},
		"too old":                  {func(*testing.T, string, *Options) {}, 25 * time.Hour, "max_snapshot_age"},
		"of another API Manager":   {func(_ *testing.T, _ string, o *Options) { o.Identity = "https://other:9443" }, 0, "https://other:9443"},
		"for other gateway labels": {func(_ *testing.T, _ string, o *Options) { o.Labels = []string{"edge"} }, 0, "gateway labels"},
		"for other tenants":        {func(_ *testing.T, _ string, o *Options) { o.Tenants = []string{"*"} }, 0, "tenants"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				leave(t, dir)
				settled(c.wait)
				m := full()
				m.failing[""] = &controlplane.Error{Op: "list", Kind: controlplane.Unreachable}
				var log bytes.Buffer
				r := newRig(t, m, func(o *Options) {
					o.DataDir = dir
					o.Logger = zerolog.New(&log)
					c.change(t, filepath.Join(dir, "snapshot"), o)
				})
				r.loadSnapshot()
				if n := r.w.subs.table().Len(); n != 0 {
					t.Errorf("%d subscriptions were taken", n)
				}
				if !strings.Contains(log.String(), c.want) || !strings.Contains(log.String(), `"level":"error"`) {
					t.Errorf("the log says %q, want an error that names %q", log.String(), c.want)
				}
				if st := r.State().Snapshot; st.Err == "" || !st.LoadedAt.IsZero() {
					t.Errorf("state %+v, want the fault", st)
				}
			})
		})
	}
}

func TestSnapshotIsNotReplacedByHalfOfTheLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		leave(t, dir)
		path := filepath.Join(dir, "snapshot")
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m := full()
		m.failing[kindSubscriptions] = &controlplane.Error{Op: "list", Kind: controlplane.Server}
		r := newRig(t, m, func(o *Options) { o.DataDir = dir })
		r.start()
		r.source.state(eventsource.Connected)
		settled(10 * time.Minute)
		r.end(t)
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, after) {
			t.Error("the snapshot was written although the subscriptions never came")
		}
	})
}

func TestSnapshotIsWrittenWhenSomethingChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := newRig(t, full(), func(o *Options) { o.DataDir = dir })
		r.start()
		defer r.end(t)
		r.source.state(eventsource.Connected)
		settled(time.Second)
		first := r.State().Snapshot.WrittenAt
		if first.IsZero() {
			t.Fatal("no snapshot a second after the lists came in")
		}
		settled(30 * time.Minute)
		if at := r.State().Snapshot.WrittenAt; !at.Equal(first) {
			t.Errorf("written again at %v although nothing changed", at)
		}
		r.source.deliver(r.wire.message(event.TopicNotification, subEvent(r.m, subRow(1, "BLOCKED"), event.Update, r.m.now())))
		settled(time.Minute)
		if at := r.State().Snapshot.WrittenAt; !at.After(first) {
			t.Error("not written within a minute of a change")
		}
		settled(2 * time.Hour)
		if age := time.Since(r.State().Snapshot.WrittenAt); age > snapshotRefresh+time.Minute {
			t.Errorf("the snapshot is %v old: it would become too old to be used", age)
		}
	})
}

func TestRowsSurviveTheCodec(t *testing.T) {
	text := rapid.StringN(0, 20, 60)
	number := rapid.Int64()
	dec := &rowDecoder{shared: make(map[string]string)}
	rapid.Check(t, func(rt *rapid.T) {
		var e encoder
		sub := subscription.Subscription{
			ID: number.Draw(rt, "id"), UUID: text.Draw(rt, "uuid"), APIID: number.Draw(rt, "api"), APIUUID: text.Draw(rt, "apiUUID"),
			ApplicationID: number.Draw(rt, "app"), ApplicationUUID: text.Draw(rt, "appUUID"), Policy: text.Draw(rt, "policy"),
			State: subscription.State(text.Draw(rt, "state")), Tenant: text.Draw(rt, "tenant"),
		}
		encodeSubscription(&e, &sub)
		dec.b, dec.err = e.b, nil
		if got := decodeSubscription(dec); dec.err != nil || len(dec.b) != 0 || got != sub {
			rt.Fatalf("%+v became %+v (%v)", sub, got, dec.err)
		}
		for n := range len(e.b) {
			dec.b, dec.err = e.b[:n], nil
			if decodeSubscription(dec); dec.err == nil {
				rt.Fatalf("the first %d of %d bytes decode without an error", n, len(e.b))
			}
		}
		e.b = nil
		m := subscription.KeyMapping{
			ConsumerKey: text.Draw(rt, "ck"), KeyManager: text.Draw(rt, "km"), KeyType: subscription.KeyType(text.Draw(rt, "kt")),
			ApplicationID: number.Draw(rt, "mapp"), ApplicationUUID: text.Draw(rt, "mappUUID"), Tenant: text.Draw(rt, "mt"),
		}
		encodeMapping(&e, &m)
		dec.b, dec.err = e.b, nil
		if got := decodeMapping(dec); dec.err != nil || len(dec.b) != 0 || got != m {
			rt.Fatalf("%+v became %+v (%v)", m, got, dec.err)
		}
		e.b = nil
		a := subscription.Application{
			ID: number.Draw(rt, "aid"), UUID: text.Draw(rt, "auuid"), Name: text.Draw(rt, "name"), Owner: text.Draw(rt, "owner"),
			Policy: text.Draw(rt, "apol"), TokenType: text.Draw(rt, "tt"), Tenant: text.Draw(rt, "at"),
		}
		if n := rapid.IntRange(0, 3).Draw(rt, "groups"); n > 0 {
			a.GroupIDs = rapid.SliceOfN(text, n, n).Draw(rt, "g")
			a.Attributes = rapid.MapOfN(text, text, n, n).Draw(rt, "attributes")
		}
		encodeApplication(&e, &a)
		dec.b, dec.err = e.b, nil
		got := decodeApplication(dec)
		if d := cmp.Diff(a, got); dec.err != nil || len(dec.b) != 0 || d != "" {
			rt.Fatalf("%v: %s", dec.err, d)
		}
	})
}

// FuzzRowDecoder: no bytes make the decoders panic or allocate without bound; what decodes encodes to the same.
func FuzzRowDecoder(f *testing.F) {
	var e encoder
	encodeApplication(&e, &subscription.Application{ID: 1, Name: "a", GroupIDs: []string{"g"}, Attributes: map[string]string{"k": "v"}})
	f.Add(e.b)
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &rowDecoder{b: b, shared: make(map[string]string)}
		s := decodeSubscription(d)
		if d.err == nil {
			var e encoder
			encodeSubscription(&e, &s)
			again := &rowDecoder{b: e.b, shared: make(map[string]string)}
			if got := decodeSubscription(again); again.err != nil || got != s {
				t.Fatalf("%+v became %+v (%v)", s, got, again.err)
			}
		}
		d.b, d.err = b, nil
		decodeMapping(d)
		d.b, d.err = b, nil
		decodeApplication(d)
	})
}

func TestSmallRowsSurviveJSON(t *testing.T) {
	km := keymanager.KeyManager{Name: "n", PEM: "p", ClaimMappings: []keymanager.ClaimMapping{{Remote: "r", Local: "l"}}, ClockSkew: time.Second}
	deny := throttle.DenyCondition{Kind: throttle.DenyIPRange, From: netip.MustParseAddr("10.0.0.1"), To: netip.MustParseAddr("::1"), Invert: true, ID: 5}
	for _, v := range []any{&km, &deny, &throttle.DenyCondition{Kind: throttle.DenyAPI, Value: "/x"}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		switch want := v.(type) {
		case *keymanager.KeyManager:
			var got keymanager.KeyManager
			if err := json.Unmarshal(b, &got); err != nil || cmp.Diff(*want, got) != "" {
				t.Error(err, cmp.Diff(*want, got))
			}
		case *throttle.DenyCondition:
			var got throttle.DenyCondition
			if err := json.Unmarshal(b, &got); err != nil || got != *want {
				t.Errorf("%+v became %+v (%v)", want, got, err)
			}
		}
	}
}

func TestGatewayIDIsMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var ids []string
		for range 2 {
			r := newRig(t, full(), func(o *Options) {
				o.DataDir = dir
				o.Reports.Register = func(_ context.Context, g controlplane.Gateway, _ time.Time) (string, controlplane.Registration, error) {
					ids = append(ids, g.ID)
					return g.ID, controlplane.Registered, nil
				}
				o.Reports.Heartbeat = func(context.Context, controlplane.Gateway, time.Time) (controlplane.Registration, error) {
					return controlplane.Acknowledged, nil
				}
			})
			r.start()
			settled(time.Second)
			r.end(t)
		}
		if len(ids) != 2 || ids[0] != ids[1] || len(ids[0]) != 36 {
			t.Errorf("registered as %q, want one UUID twice", ids)
		}
	})
}
