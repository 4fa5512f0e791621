package aggregate_test

import (
	"testing"

	"pgregory.net/rapid"

	"gatehouse/throttle/siddhi/aggregate"
	"gatehouse/throttle/siddhi/expr"
	"gatehouse/throttle/siddhi/value"
)

// Values leave in the order in which they came, as from every window; what is left is aggregated as if nothing had left.
func TestTakingOutLeavesNoTrace(t *testing.T) {
	specs := []aggregate.Spec{
		{Function: expr.Count},
		{Function: expr.Sum, Arg: value.Long},
		{Function: expr.Avg, Arg: value.Long},
		{Function: expr.Min, Arg: value.Long},
		{Function: expr.Max, Arg: value.Long},
		{Function: expr.DistinctCount, Arg: value.Long},
	}
	rapid.Check(t, func(t *rapid.T) {
		// Different values: see the quirk of equal ones in the tests of the engine.
		values := rapid.SliceOfNDistinct(rapid.Int64Range(-50, 50), 1, 30, rapid.ID[int64]).Draw(t, "values")
		gone := rapid.IntRange(0, len(values)).Draw(t, "gone")
		for _, s := range specs {
			budget, fresh := aggregate.Budget{Left: 100}, aggregate.Budget{Left: 100}
			var cell, want aggregate.Cell
			for _, v := range values {
				cell.Add(s, value.OfLong(v), &budget)
			}
			for _, v := range values[:gone] {
				cell.Remove(s, value.OfLong(v), &budget)
			}
			for _, v := range values[gone:] {
				want.Add(s, value.OfLong(v), &fresh)
			}
			if got, want := cell.Result(s), want.Result(s); !got.Equal(want) {
				t.Fatalf("%v: want %v, got %v", s, want, got)
			}
			cell.Reset(&budget)
			if budget.Left != 100 {
				t.Fatalf("%d values are still lent", 100-budget.Left)
			}
		}
	})
}

func TestDistinctValuesAreBounded(t *testing.T) {
	s := aggregate.Spec{Function: expr.DistinctCount, Arg: value.Long}
	budget := aggregate.Budget{Left: 10}
	var cell aggregate.Cell
	for i := range int64(100) {
		cell.Add(s, value.OfLong(i), &budget)
		cell.Add(s, value.OfLong(0), &budget)
	}
	if n := cell.Result(s).Int64(); n != 10 || budget.Refused != 90 {
		t.Errorf("%d values, %d refused", n, budget.Refused)
	}
	for i := range int64(100) {
		cell.Remove(s, value.OfLong(i), &budget)
	}
	if n := cell.Result(s).Int64(); n != 1 || budget.Left != 9 {
		t.Errorf("%d values, %d left", n, budget.Left)
	}
}
