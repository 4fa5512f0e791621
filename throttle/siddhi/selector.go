package siddhi

import (
	"gatehouse/throttle/siddhi/value"
)

// group finds the state of the key of a row. Null counts as the text null, as in Siddhi.
func (q *queryRun) group(row []value.Value, create bool) *group {
	if by := q.plan.groupBy; len(by) == 1 && row[by[0]].Kind() == value.String {
		return q.groups.find(row[by[0]].Str(), create, &q.budget)
	}
	q.key = q.key[:0]
	for i, column := range q.plan.groupBy {
		if i > 0 {
			q.key = append(q.key, "::"...)
		}
		q.key = row[column].Append(q.key)
	}
	return q.groups.find(string(q.key), create, &q.budget)
}

// shardKey is the key by which runtimes share the work.
func (q *queryRun) shardKey(row []value.Value) string { return row[q.plan.groupBy[0]].String() }

// selectRows computes the rows of a chunk: aggregates first, then the columns, then having. What leaves follows Siddhi's
// selector: in a batch with an aggregate the last row of each key, in the order in which the keys first had one, or the last
// row of all without group by; otherwise every row.
func (q *queryRun) selectRows(chunk []event) []event {
	p := q.plan
	collapse := q.batch && len(p.aggregates) > 0
	grouped := len(p.groupBy) > 0
	q.step++
	q.out = q.out[:0]
	if need := len(chunk) * len(p.items); cap(q.rows) < need {
		q.rows = make([]value.Value, 0, need)
	}
	q.rows = q.rows[:0]
	last := -1
	for _, e := range chunk {
		if e.kind == reset {
			if len(p.aggregates) > 0 {
				q.groups.reset(&q.budget)
			}
			continue
		}
		q.frame.Row = e.row
		var state *group
		if len(p.aggregates) > 0 {
			if state = q.group(e.row, e.kind == current); state == nil {
				continue
			}
			q.aggregate(state, e.kind)
			if state.live <= 0 && e.kind == expired {
				q.idle = append(q.idle, state)
			}
		}
		if e.kind == current && !p.current || e.kind == expired && !p.expired {
			continue
		}
		start := len(q.rows)
		q.rows = q.rows[:start+len(p.items)]
		row := q.rows[start:len(q.rows):len(q.rows)]
		if q.early != nil && !q.passes(row, e.row) {
			q.rows = q.rows[:start]
			continue
		}
		for i := range p.items {
			switch column := p.items[i].Column; {
			case column >= 0:
				row[i] = e.row[column]
			case q.early == nil || !q.needs[i]:
				row[i] = p.items[i].Eval(&q.frame)
			}
		}
		if !q.frame.Failed && p.having != nil {
			q.frame.Row = row
			if !p.having(&q.frame) && !q.frame.Failed {
				q.rows = q.rows[:start]
				continue
			}
		}
		if q.frame.Failed {
			q.lost()
			q.rows = q.rows[:start]
			continue
		}
		made := event{row: row, at: e.at, group: state}
		switch {
		case !collapse:
		case grouped && state.step == q.step:
			q.out[state.row] = made
			continue
		case grouped:
			state.step, state.row = q.step, len(q.out)
		case last >= 0:
			q.out[last] = made
			continue
		default:
			last = len(q.out)
		}
		q.out = append(q.out, made)
	}
	// Only now: a key may come back within the chunk.
	for i, state := range q.idle {
		if state.live <= 0 {
			q.groups.forget(state)
		}
		q.idle[i] = nil
	}
	q.idle = q.idle[:0]
	return q.out
}

// passes computes the columns that the next filter needs and asks it.
func (q *queryRun) passes(row, from []value.Value) bool {
	for i, needed := range q.needs {
		if needed {
			row[i] = q.plan.items[i].Eval(&q.frame)
		}
	}
	if !q.frame.Failed {
		q.frame.Row = row
		if q.early(&q.frame) && !q.frame.Failed {
			q.frame.Row = from
			return true
		}
	}
	if q.frame.Failed {
		q.lost()
	}
	return false
}

// aggregate brings the cells of a key up to date and the results into the frame.
func (q *queryRun) aggregate(g *group, kind eventKind) {
	for i := range q.plan.aggregates {
		a, s, cell := &q.plan.aggregates[i], q.plan.specs[i], &g.cells[i]
		var v value.Value
		if a.Arg.Eval != nil {
			v = a.Arg.Eval(&q.frame)
		}
		flagged := a.Reset.Cond != nil && a.Reset.Cond(&q.frame)
		if q.frame.Failed || !s.Takes(v) {
			q.frame.Failed = false
			q.stats.AggregateErrors++
		} else if kind == current {
			cell.Add(s, v, &q.budget)
		} else {
			cell.Remove(s, v, &q.budget)
		}
		if flagged && kind == current {
			cell.Reset(&q.budget)
		}
		q.frame.Aggs[i] = cell.Result(s)
	}
	if kind == current {
		g.live++
	} else {
		g.live--
	}
}
