package sync

import (
	"encoding/binary"
	"errors"

	"gatehouse/subscription"
)

// Rows of the large tables in the snapshot: fields in order, numbers as varints, texts with their length. The small
// tables are written as JSON.

type encoder struct{ b []byte }

func (e *encoder) text(s string) {
	e.b = binary.AppendUvarint(e.b, uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) number(n int64) { e.b = binary.AppendVarint(e.b, n) }

var errShort = errors.New("a row of the snapshot is too short")

// decoder reads rows. Texts that repeat are shared.
type rowDecoder struct {
	b      []byte
	err    error
	shared map[string]string
}

// maxShared bounds the texts that are remembered for sharing.
const maxShared = 1 << 20

func (d *rowDecoder) bytes() []byte {
	n, w := binary.Uvarint(d.b)
	if w <= 0 || n > uint64(len(d.b)-w) {
		d.err, d.b = errShort, nil
		return nil
	}
	s := d.b[w : w+int(n)]
	d.b = d.b[w+int(n):]
	return s
}

func (d *rowDecoder) text() string { return string(d.bytes()) }

func (d *rowDecoder) common() string {
	p := d.bytes()
	if s, ok := d.shared[string(p)]; ok {
		return s
	}
	s := string(p)
	if len(d.shared) < maxShared {
		d.shared[s] = s
	}
	return s
}

func (d *rowDecoder) number() int64 {
	n, w := binary.Varint(d.b)
	if w <= 0 {
		d.err, d.b = errShort, nil
		return 0
	}
	d.b = d.b[w:]
	return n
}

func (d *rowDecoder) count() int {
	n := d.number()
	if n < 0 || n > int64(len(d.b)) {
		d.err = errShort
		return 0
	}
	return int(n)
}

func encodeSubscription(e *encoder, r *subscription.Subscription) {
	e.number(r.ID)
	e.text(r.UUID)
	e.number(r.APIID)
	e.text(r.APIUUID)
	e.number(r.ApplicationID)
	e.text(r.ApplicationUUID)
	e.text(r.Policy)
	e.text(string(r.State))
	e.text(r.Tenant)
}

func decodeSubscription(d *rowDecoder) subscription.Subscription {
	return subscription.Subscription{
		ID: d.number(), UUID: d.text(), APIID: d.number(), APIUUID: d.common(), ApplicationID: d.number(),
		ApplicationUUID: d.common(), Policy: d.common(), State: subscription.State(d.common()), Tenant: d.common(),
	}
}

func encodeMapping(e *encoder, r *subscription.KeyMapping) {
	e.text(r.ConsumerKey)
	e.text(r.KeyManager)
	e.text(string(r.KeyType))
	e.number(r.ApplicationID)
	e.text(r.ApplicationUUID)
	e.text(r.Tenant)
}

func decodeMapping(d *rowDecoder) subscription.KeyMapping {
	return subscription.KeyMapping{
		ConsumerKey: d.text(), KeyManager: d.common(), KeyType: subscription.KeyType(d.common()),
		ApplicationID: d.number(), ApplicationUUID: d.common(), Tenant: d.common(),
	}
}

func encodeApplication(e *encoder, r *subscription.Application) {
	e.number(r.ID)
	e.text(r.UUID)
	e.text(r.Name)
	e.text(r.Owner)
	e.text(r.Policy)
	e.text(r.TokenType)
	e.text(r.Tenant)
	e.number(int64(len(r.GroupIDs)))
	for _, g := range r.GroupIDs {
		e.text(g)
	}
	e.number(int64(len(r.Attributes)))
	for k, v := range r.Attributes {
		e.text(k)
		e.text(v)
	}
}

func decodeApplication(d *rowDecoder) subscription.Application {
	r := subscription.Application{ID: d.number(), UUID: d.common(), Name: d.text(), Owner: d.common(), Policy: d.common(), TokenType: d.common(), Tenant: d.common()}
	for range d.count() {
		r.GroupIDs = append(r.GroupIDs, d.common())
	}
	if n := d.count(); n > 0 {
		r.Attributes = make(map[string]string, n)
		for range n {
			k := d.common()
			r.Attributes[k] = d.text()
		}
	}
	return r
}
