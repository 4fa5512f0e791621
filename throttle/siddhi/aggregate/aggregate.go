// Package aggregate keeps the running aggregates of one key: values are added, taken out again, or all dropped at once.
//
// An aggregate never drifts: what cannot be added (null, a value of another kind than declared) is not taken out either.
package aggregate

import (
	"gatehouse/throttle/siddhi/expr"
	"gatehouse/throttle/siddhi/value"
)

// Cell is the state of one aggregate of one key. The zero value is empty. It is used by one goroutine at a time.
type Cell struct {
	count int64
	whole int64
	real  float64
	more  *more
}

// more is what few aggregates need.
type more struct {
	distinct map[value.Value]int64
	// best holds the candidates of min and max: the first is the answer, each later one would be if those before it left.
	best []value.Value
}

// Spec says how cells of one aggregate work.
type Spec struct {
	Function expr.Aggregator
	Arg      value.Kind // declared kind of what is aggregated
	// AddOnly is true when nothing is ever taken out one by one, so that candidates need not be kept.
	AddOnly bool
}

// Takes reports whether the value can be aggregated; others are errors, which leave the cell as it is.
func (s Spec) Takes(v value.Value) bool {
	switch s.Function {
	case expr.Count, expr.DistinctCount:
		return true
	}
	return v.Kind() == s.Arg
}

// Budget limits how many distinct values the cells that share it keep. It is used by one goroutine at a time.
type Budget struct {
	Left int
	// Refused counts the values that were not kept because nothing was left.
	Refused uint64
}

// Add takes a value in, which Takes has let through.
func (c *Cell) Add(s Spec, v value.Value, budget *Budget) {
	switch s.Function {
	case expr.Count:
		c.count++
	case expr.Sum, expr.Avg:
		c.count++
		if s.Arg <= value.Long && s.Function == expr.Sum {
			c.whole += v.Int64()
		} else {
			c.real += v.ToDouble()
		}
	case expr.DistinctCount:
		m := c.extra()
		if m.distinct == nil {
			m.distinct = map[value.Value]int64{}
		}
		k := v.Key()
		n, known := m.distinct[k]
		if !known {
			if budget.Left <= 0 {
				budget.Refused++
				return
			}
			budget.Left--
		}
		m.distinct[k] = n + 1
	default:
		c.extra().candidate(s, v)
	}
}

// Remove takes a value out again.
func (c *Cell) Remove(s Spec, v value.Value, budget *Budget) {
	switch s.Function {
	case expr.Count:
		c.count--
	case expr.Sum, expr.Avg:
		c.count--
		if s.Arg <= value.Long && s.Function == expr.Sum {
			c.whole -= v.Int64()
		} else {
			c.real -= v.ToDouble()
		}
	case expr.DistinctCount:
		m := c.extra()
		k := v.Key()
		switch n, known := m.distinct[k]; {
		case !known: // was refused when it came
		case n > 1:
			m.distinct[k] = n - 1
		default:
			delete(m.distinct, k)
			budget.Left++
		}
	default:
		m := c.extra()
		for i, b := range m.best {
			if b.Equal(v) {
				m.best = append(m.best[:i], m.best[i+1:]...)
				return
			}
		}
	}
}

// Reset empties the cell.
func (c *Cell) Reset(budget *Budget) {
	if c.more != nil {
		budget.Left += len(c.more.distinct)
	}
	*c = Cell{}
}

// Result is the aggregate as it stands.
func (c *Cell) Result(s Spec) value.Value {
	switch s.Function {
	case expr.Count:
		return value.OfLong(c.count)
	case expr.Sum:
		if s.Arg <= value.Long {
			return value.OfLong(c.whole)
		}
		return value.OfDouble(c.real)
	case expr.Avg:
		if c.count == 0 {
			return value.OfDouble(0)
		}
		return value.OfDouble(c.real / float64(c.count))
	case expr.DistinctCount:
		if c.more == nil {
			return value.OfLong(0)
		}
		return value.OfLong(int64(len(c.more.distinct)))
	}
	if c.more == nil || len(c.more.best) == 0 {
		return value.Value{}
	}
	return c.more.best[0]
}

func (c *Cell) extra() *more {
	if c.more == nil {
		c.more = &more{}
	}
	return c.more
}

// candidate drops those before it that can never be the answer again: values leave in the order in which they came.
func (m *more) candidate(s Spec, v value.Value) {
	n := len(m.best)
	for n > 0 && s.better(v, m.best[n-1]) {
		n--
	}
	m.best = m.best[:n]
	if n == 0 || !s.AddOnly {
		m.best = append(m.best, v)
	}
}

func (s Spec) better(v, than value.Value) bool {
	if s.Function == expr.Min {
		v, than = than, v
	}
	if s.Arg <= value.Long {
		return v.Int64() > than.Int64()
	}
	return v.Float64() > than.Float64()
}
