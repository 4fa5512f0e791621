package sync

import "time"

// window says when a request was made by the API Manager's clock, in ms. Its header Date has a resolution of a second,
// so the moment is known to lie between lo and hi; start is the best guess. Clocks that agree within that resolution
// are taken to agree.
type window struct {
	lo, start, hi int64
	// local is the start by our clock.
	local int64
}

// skewMargin is added to both ends for API Managers of several nodes whose clocks differ a little.
const skewMargin = 200 * time.Millisecond

// unknownSkew is the half width of the window when the answer had no Date.
const unknownSkew = 2 * time.Second

// joinMeta is the meta of several requests of which the first decides the start.
func joinMeta(a, b Meta) Meta {
	if a.Started.IsZero() {
		return b
	}
	if b.Finished.After(a.Finished) && a.ServerDate.IsZero() {
		a.ServerDate, a.Finished = b.ServerDate, b.Finished
	}
	a.Rows += b.Rows
	return a
}
