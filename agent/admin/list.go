package admin

import (
	"container/heap"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
)

type page struct {
	Items      []any   `json:"items"`
	NextCursor *string `json:"next_cursor"`
	Total      int     `json:"total"`
}

// list answers one page of a table in the order of the ids. It keeps limit+1 entries at most, so that a table of millions
// is walked over, never copied.
func (s *Server) list(t Table) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		limit := defaultLimit
		if text := q.Get("limit"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > maxLimit {
				writeError(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("limit %q: write a number from 1 to %d", text, maxLimit))
				return
			}
			limit = n
		}
		after, hasCursor := "", false
		if text := q.Get("cursor"); text != "" {
			raw, err := base64.RawURLEncoding.DecodeString(text)
			if err != nil {
				writeError(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("cursor %q: pass the next_cursor of the page before", text))
				return
			}
			after, hasCursor = string(raw), true
		}
		search := strings.ToLower(q.Get("q"))

		var kept largestFirst
		total := 0
		t.Each(func(e Entry) bool {
			if search != "" && !strings.Contains(strings.ToLower(e.ID), search) && !strings.Contains(strings.ToLower(e.Name), search) {
				return true
			}
			total++
			if hasCursor && compareIDs(e.ID, after) <= 0 {
				return true
			}
			if len(kept) <= limit {
				heap.Push(&kept, e)
			} else if compareIDs(e.ID, kept[0].ID) < 0 {
				kept[0] = e
				heap.Fix(&kept, 0)
			}
			return true
		})
		slices.SortFunc(kept, func(a, b Entry) int { return compareIDs(a.ID, b.ID) })
		out := page{Items: []any{}, Total: total}
		if len(kept) > limit {
			kept = kept[:limit]
			cursor := base64.RawURLEncoding.EncodeToString([]byte(kept[limit-1].ID))
			out.NextCursor = &cursor
		}
		for _, e := range kept {
			out.Items = append(out.Items, e.Render())
		}
		writeJSON(w, http.StatusOK, out)
	}
}

func (s *Server) entry(name string, t Table) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		if t.Get != nil {
			if v, ok := t.Get(id); ok {
				writeJSON(w, http.StatusOK, v)
				return
			}
		} else {
			var found func() any
			t.Each(func(e Entry) bool {
				if e.ID == id {
					found = e.Render
				}
				return found == nil
			})
			if found != nil {
				writeJSON(w, http.StatusOK, found())
				return
			}
		}
		writeError(w, http.StatusNotFound, "not_found", fmt.Sprintf("no entry %q in %s", id, name))
	}
}

// compareIDs orders numbers by value and before texts, texts by their bytes.
func compareIDs(a, b string) int {
	na, nb := isNumber(a), isNumber(b)
	switch {
	case na && nb && len(a) != len(b):
		return len(a) - len(b)
	case na != nb:
		if na {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}

func isNumber(s string) bool {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// largestFirst is a heap of entries with the largest id at the root.
type largestFirst []Entry

func (h largestFirst) Len() int           { return len(h) }
func (h largestFirst) Less(i, j int) bool { return compareIDs(h[i].ID, h[j].ID) > 0 }
func (h largestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *largestFirst) Push(x any) { *h = append(*h, x.(Entry)) }

// Pop implements heap.Interface.
func (h *largestFirst) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}
