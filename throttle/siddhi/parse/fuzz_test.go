package parse_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"gatehouse/throttle/siddhi/ast"
	"gatehouse/throttle/siddhi/parse"
	"gatehouse/throttle/siddhi/refusal"
)

func seeds(tb testing.TB) (texts []string) {
	tb.Helper()
	type policy struct{ Query string }
	type file struct {
		policy
		Vectors     []policy
		Expressions []struct{ E string }
	}
	files, _ := filepath.Glob("../testdata/*.json")
	recorded, _ := filepath.Glob("../testdata/recorded/*.json")
	for _, name := range append(files, recorded...) {
		data, err := os.ReadFile(name)
		if err != nil {
			tb.Fatal(err)
		}
		var f file
		if err := json.Unmarshal(data, &f); err != nil {
			tb.Fatal(err)
		}
		texts = append(texts, f.Query)
		for _, v := range f.Vectors {
			texts = append(texts, v.Query)
		}
		for _, e := range f.Expressions {
			texts = append(texts, "from RequestStream select "+e.E+" as x insert into Out")
		}
	}
	if len(texts) < 500 {
		tb.Fatalf("%d texts", len(texts))
	}
	return texts
}

// noPlaces compares trees without regard to where their nodes stand; NaN cannot be written, infinity can.
var noPlaces = cmp.Options{cmpopts.IgnoreTypes(ast.Pos{}), cmpopts.EquateEmpty()}

func roundTrip(tb testing.TB, text string) {
	tb.Helper()
	tree, err := parse.Parse(text)
	if err != nil {
		var refused *refusal.Error
		if !errors.As(err, &refused) || refused.Line < 1 || refused.Column < 1 || refused.Message == "" {
			tb.Fatalf("a refusal without a place: %#v", err)
		}
		return
	}
	printed := ast.Print(tree)
	again, err := parse.Parse(printed)
	if err != nil {
		tb.Fatalf("printed text is refused: %v\n%s\n%s", err, text, printed)
	}
	if diff := cmp.Diff(tree, again, noPlaces); diff != "" {
		tb.Fatalf("%s\nprinted as\n%s\n(-first +again):\n%s", text, printed, diff)
	}
	if twice := ast.Print(again); twice != printed {
		tb.Fatalf("printed differently the second time:\n%s\n%s", printed, twice)
	}
}

// What is printed parses to the same tree, for every sample and for whatever the fuzzer finds.
func FuzzParse(f *testing.F) {
	for i, text := range seeds(f) {
		if i%3 == 0 { // they are many and alike
			f.Add(text)
		}
	}
	f.Add("define stream A (b string, c long); @info(name='x', a.b = \"y\") from A[b is null]#throttler:timeBatch(1 min)[c>1] insert expired events into B;;")
	f.Fuzz(func(t *testing.T, text string) { roundTrip(t, text) })
}

// Trees made by hand print to texts that parse to them.
func TestTreesMadeByHandSurvivePrinting(t *testing.T) {
	name := rapid.StringMatching(`[a-zA-Z_][a-zA-Z0-9_]{0,8}`)
	var expr func(depth int) *rapid.Generator[ast.Expr]
	literal := rapid.Custom(func(t *rapid.T) ast.Expr {
		switch rapid.IntRange(0, 5).Draw(t, "literal") {
		case 0:
			return &ast.Literal{Type: ast.Int, Int: int64(rapid.Int32().Draw(t, "int"))}
		case 1:
			return &ast.Literal{Type: ast.Long, Int: rapid.Int64().Draw(t, "long")}
		case 2:
			return &ast.Literal{Type: ast.Float, Double: float64(rapid.Float32().Draw(t, "float"))}
		case 3:
			return &ast.Literal{Type: ast.Double, Double: rapid.Float64().Draw(t, "double")}
		case 4:
			return &ast.Literal{Type: ast.Bool, Bool: rapid.Bool().Draw(t, "bool")}
		}
		return &ast.Literal{Type: ast.String, Text: rapid.StringMatching(`[^"\x00-\x1f]{0,10}`).Draw(t, "text")}
	})
	expr = func(depth int) *rapid.Generator[ast.Expr] {
		return rapid.Custom(func(t *rapid.T) ast.Expr {
			choice := rapid.IntRange(0, 6).Draw(t, "node")
			if depth == 0 {
				choice %= 2
			}
			switch choice {
			case 0:
				return literal.Draw(t, "literal")
			case 1:
				return &ast.Ref{Name: name.Draw(t, "name")}
			case 2:
				return &ast.Not{Expr: expr(depth-1).Draw(t, "not")}
			case 3:
				return &ast.Call{
					Namespace: rapid.SampledFrom([]string{"", "str"}).Draw(t, "namespace"), Name: name.Draw(t, "name"),
					Args: rapid.SliceOfN(expr(depth-1), 0, 3).Draw(t, "args"),
				}
			case 4:
				return &ast.IsNull{Expr: &ast.Ref{Stream: "s", Name: name.Draw(t, "name")}}
			}
			return &ast.Binary{Op: ast.Op(rapid.IntRange(int(ast.Or), int(ast.Mod)).Draw(t, "op")), Left: expr(depth-1).Draw(t, "left"), Right: expr(depth-1).Draw(t, "right")}
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		tree := expr(3).Draw(t, "tree")
		text := ast.PrintExpr(tree)
		again, err := parse.Expr(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(tree, again, noPlaces); diff != "" {
			t.Fatalf("%s (-made +parsed):\n%s", text, diff)
		}
	})
}
