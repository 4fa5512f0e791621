package sync

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"sync/atomic"

	"gatehouse/keymanager"
)

// Origin says where a fact came from; it is the Origin of every domain.
type Origin origin

// Change is one row that became another. Before and After are nil for a row that came or went; they are the rows
// themselves, which must not be changed, or for APIs and revoked tokens what may be shown of them.
type Change struct {
	// What is "api", "application", "subscription", "key_mapping", "key_manager", "deny_policy", "key_template",
	// "policy", "scope", "revoked_token", "api_key" or "artifact".
	What   string
	ID     string
	Before any
	After  any
	Origin Origin
}

// changes hands every change to those who follow. It never waits: a slow follower loses the oldest.
type changes struct {
	followers atomic.Int32
	mu        sync.Mutex
	feeds     map[*feed]struct{}
}

type feed struct {
	ch   chan Change
	lost atomic.Uint64
}

func (c *changes) watched() bool { return c.followers.Load() > 0 }

func (c *changes) emit(ch Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.feeds {
		for sent := false; !sent; {
			select {
			case f.ch <- ch:
				sent = true
			default:
				select {
				case <-f.ch:
					f.lost.Add(1)
				default:
				}
			}
		}
	}
}

// Changes follows every change from now on, in a channel that holds up to buffer of them; when it is full the oldest are
// lost, and lost tells how many so far. The caller calls stop, which closes the channel.
func (e *Engine) Changes(buffer int) (ch <-chan Change, lost func() uint64, stop func()) {
	f := &feed{ch: make(chan Change, max(buffer, 1))}
	c := &e.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.feeds == nil {
		c.feeds = make(map[*feed]struct{})
	}
	c.feeds[f] = struct{}{}
	c.followers.Add(1)
	var once sync.Once
	return f.ch, f.lost.Load, func() {
		once.Do(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.feeds, f)
			c.followers.Add(-1)
			close(f.ch)
		})
	}
}

// RevokedShown is what the change feed tells of a revocation: never a token.
type RevokedShown struct {
	Kind      string
	SHA256    string // of the value, for tokens
	Value     string // consumer key or user, for mass revocations
	ExpiresAt int64
	Before    int64
	Tenant    string
}

func (e *Engine) revocationChanged(r keymanager.Revocation) {
	if !e.changes.watched() {
		return
	}
	s := RevokedShown{ExpiresAt: r.ExpiresAt, Before: r.Before, Tenant: r.Tenant}
	id := r.Value
	switch r.Kind {
	case keymanager.RevokedConsumerKey:
		s.Kind, s.Value = "consumer_key", r.Value
	case keymanager.RevokedSubject:
		s.Kind, s.Value = "subject", r.Value
	default:
		sum := sha256.Sum256([]byte(r.Value))
		s.Kind, s.SHA256 = "token", hex.EncodeToString(sum[:])
		id = s.SHA256[:16]
	}
	e.changes.emit(Change{What: "revoked_token", ID: id, After: s, Origin: Origin(r.Origin)})
}
