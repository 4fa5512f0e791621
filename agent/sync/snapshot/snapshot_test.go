package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type row struct{ Section, Record string }

func write(t testing.TB, path string, rows []row) {
	t.Helper()
	if _, err := Write(path, 3, func(w *Writer) error { return fill(w, rows) }); err != nil {
		t.Fatal(err)
	}
}

func fill(w *Writer, rows []row) error {
	last := ""
	for _, r := range rows {
		if r.Section != last {
			if err := w.Section(r.Section); err != nil {
				return err
			}
			last = r.Section
		}
		if err := w.Record([]byte(r.Record)); err != nil {
			return err
		}
	}
	return nil
}

func read(path string) (rows []row, err error) {
	r, err := Open(path, 3)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		s, p, err := r.Next()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return rows, err
		}
		rows = append(rows, row{s, string(p)})
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	rapid.Check(t, func(rt *rapid.T) {
		rows := rapid.SliceOf(rapid.Custom(func(rt *rapid.T) row {
			return row{rapid.StringMatching(`[a-z]{1,8}`).Draw(rt, "section"), rapid.String().Draw(rt, "record")}
		})).Draw(rt, "rows")
		write(t, path, rows)
		got, err := read(path)
		if err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(rows, got); len(rows)+len(got) > 0 && d != "" {
			rt.Fatal(d)
		}
	})
}

func TestFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	write(t, path, []row{{"a", "1"}})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600: it holds clients' configuration", info.Mode().Perm())
	}
}

func TestDamageIsSeenBeforeAnythingIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	write(t, path, []row{{"a", "one"}, {"a", "two"}, {"b", "three"}})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(name string, b []byte, want error) {
		t.Run(name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "snapshot")
			if err := os.WriteFile(p, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if rows, err := read(p); !errors.Is(err, want) || rows != nil {
				t.Errorf("%d rows and %v, want none and %v", len(rows), err, want)
			}
		})
	}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x40
		want := ErrCorrupt
		if i >= len(magic) && i < len(magic)+4 {
			want = ErrVersion
		}
		damaged(fmt.Sprintf("byte %d", i), b, want)
	}
	for _, n := range []int{0, 5, len(magic), len(magic) + 4, len(whole) / 2, len(whole) - 1} {
		damaged(fmt.Sprintf("cut at %d", n), whole[:n], ErrCorrupt)
	}
	damaged("longer", append(bytes.Clone(whole), 'x'), ErrCorrupt)
	t.Run("absent", func(t *testing.T) {
		if _, err := read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error %v, want fs.ErrNotExist", err)
		}
	})
}

func TestFailedWriteKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "snapshot")
	old := []row{{"a", "old"}}
	write(t, path, old)
	boom := errors.New("boom")
	if _, err := Write(path, 3, func(w *Writer) error {
		if err := fill(w, []row{{"a", "new"}}); err != nil {
			return err
		}
		return boom
	}); !errors.Is(err, boom) {
		t.Fatalf("error %v, want %v", err, boom)
	}
	got, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(old, got); d != "" {
		t.Error(d)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 {
		t.Errorf("%d files are left, want 1", len(files))
	}
	if _, err := Write(filepath.Join(dir, "none", "snapshot"), 3, func(*Writer) error { return nil }); err == nil {
		t.Error("a folder that is not there gives no error")
	}
}

// FuzzOpen: whatever the file, reading ends with an error or with rows, and what is read can be written again.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "snapshot")
	write(f, path, []row{{"a", "one"}, {"b", "two"}})
	seed, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:len(seed)-3])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := filepath.Join(t.TempDir(), "snapshot")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		rows, err := read(p)
		if err != nil {
			return
		}
		write(t, p, rows)
		again, err := read(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) > 0 && cmp.Diff(rows, again) != "" {
			t.Fatal(cmp.Diff(rows, again))
		}
	})
}
