package agent

import (
	"testing"

	"gatehouse/agent/sync"
	"gatehouse/keymanager"
	"gatehouse/subscription"
	"gatehouse/throttle"
)

func countedSink[R any]() sync.Sink[R] {
	return sync.Sink[R]{Put: func(R) {}, Delete: func(R) {}, ReplaceAll: func([]R) {}}
}

func countedTable[K comparable, R any]() sync.Table[K, R] {
	return sync.Table[K, R]{Put: func(R) *R { return nil }, Delete: func(K) *R { return nil }, ReplaceAll: func([]R) {}}
}

// TestWhatEndsStreamsIsAskedAbout: each change of what a caller is admitted by has the streams under way asked about again,
// after it was made.
func TestWhatEndsStreamsIsAskedAbout(t *testing.T) {
	done := false
	d := sync.Domains{
		Revoke: func(keymanager.Revocation) { done = true }, MergeRevocations: func([]keymanager.Revocation) {},
		Deny: countedSink[throttle.DenyCondition](), KeyManagers: countedSink[keymanager.KeyManager](),
		Subscriptions: countedTable[int64, subscription.Subscription](), Applications: countedTable[int64, subscription.Application](),
		KeyMappings: countedTable[sync.MappingKey, subscription.KeyMapping](), APIKeys: countedTable[string, keymanager.OpaqueKey](),
	}
	asked := 0
	recheckAfter(&d, func() { asked++ })
	for name, change := range map[string]func(){
		"a revocation":              func() { d.Revoke(keymanager.Revocation{}) },
		"the list of revocations":   func() { d.MergeRevocations(nil) },
		"a deny policy":             func() { d.Deny.Put(throttle.DenyCondition{}) },
		"a key manager":             func() { d.KeyManagers.Put(keymanager.KeyManager{}) },
		"a key manager gone":        func() { d.KeyManagers.Delete(keymanager.KeyManager{}) },
		"a subscription":            func() { d.Subscriptions.Put(subscription.Subscription{}) },
		"a subscription gone":       func() { d.Subscriptions.Delete(1) },
		"the list of subscriptions": func() { d.Subscriptions.ReplaceAll(nil) },
		"an application gone":       func() { d.Applications.Delete(1) },
		"the list of applications":  func() { d.Applications.ReplaceAll(nil) },
		"a key mapping":             func() { d.KeyMappings.Put(subscription.KeyMapping{}) },
		"a key mapping gone":        func() { d.KeyMappings.Delete(sync.MappingKey{}) },
		"an opaque API key":         func() { d.APIKeys.Put(keymanager.OpaqueKey{}) },
		"an opaque API key gone":    func() { d.APIKeys.Delete("") },
		"the opaque API keys":       func() { d.APIKeys.ReplaceAll(nil) },
	} {
		before := asked
		change()
		if asked != before+1 {
			t.Errorf("%s: asked %d times, want once", name, asked-before)
		}
	}
	if !done {
		t.Error("the change itself was not made")
	}
}
