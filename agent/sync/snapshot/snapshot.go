// Package snapshot is the file that keeps the gateway's state over a restart: named sections of records, written and read
// as a stream, with a checksum over the whole.
//
// The file is replaced atomically (temporary file in the same folder, fsync, rename), can be read by its owner only, and
// is verified whole before a single record is handed out. The package knows nothing of what the records mean.
//
// Layout: the line of magic, a version (uint32, big endian), frames, a trailer. A frame is a kind (1 byte), a length
// (uvarint) and that many bytes; kind 'S' begins a section and holds its name, kind 'R' is a record. The trailer is 'E',
// the number of frames (uint64) and the CRC-32C of everything before it (uint32).
package snapshot

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

const (
	magic = "GATEHOUSE SNAPSHOT\n"
	// maxRecord bounds a frame, against a damaged length.
	maxRecord = 256 << 20
	trailer   = 1 + 8 + 4
)

// Errors of Open. A file that is not there gives fs.ErrNotExist.
var (
	// ErrCorrupt: the file is damaged or was cut off.
	ErrCorrupt = errors.New("the snapshot is damaged")
	// ErrVersion: the file was written by a release with another layout.
	ErrVersion = errors.New("the snapshot is of another version")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer writes frames. It is for one goroutine.
type Writer struct {
	w      *bufio.Writer
	sum    uint32
	bytes  int64
	frames uint64
	head   [1 + binary.MaxVarintLen64]byte
}

// Section begins a section; the records that follow belong to it.
func (w *Writer) Section(name string) error { return w.frame('S', []byte(name)) }

// Record writes one record. p may be reused afterwards.
func (w *Writer) Record(p []byte) error { return w.frame('R', p) }

func (w *Writer) frame(kind byte, p []byte) error {
	if len(p) > maxRecord {
		return fmt.Errorf("a record of %d bytes is larger than %d", len(p), maxRecord)
	}
	w.head[0] = kind
	n := 1 + binary.PutUvarint(w.head[1:], uint64(len(p)))
	if err := w.write(w.head[:n]); err != nil {
		return err
	}
	w.frames++
	return w.write(p)
}

func (w *Writer) write(p []byte) error {
	w.sum = crc32.Update(w.sum, castagnoli, p)
	n, err := w.w.Write(p)
	w.bytes += int64(n)
	return err
}

// Write replaces the file at path by what fill writes, or leaves it as it is. It returns the size in bytes.
func Write(path string, version uint32, fill func(*Writer) error) (size int64, err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".snapshot-*") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("write snapshot %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()           // the first fault is told
			_ = os.Remove(f.Name()) // what is left is in nobody's way
			err = fmt.Errorf("write snapshot %s: %w", path, err)
		}
	}()
	w := &Writer{w: bufio.NewWriterSize(f, 256<<10)}
	if err := w.write(binary.BigEndian.AppendUint32([]byte(magic), version)); err != nil {
		return 0, err
	}
	if err := fill(w); err != nil {
		return 0, err
	}
	end := binary.BigEndian.AppendUint64([]byte{'E'}, w.frames)
	if err := w.write(end); err != nil {
		return 0, err
	}
	if err := w.write(binary.BigEndian.AppendUint32(nil, w.sum)); err != nil {
		return 0, err
	}
	if err := w.w.Flush(); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	if err := f.Close(); err != nil {
		return 0, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return 0, err
	}
	if d, err := os.Open(dir); err == nil { // makes the rename durable; not every file system can
		_ = d.Sync()
		_ = d.Close()
	}
	return w.bytes, nil
}

// Reader hands out the records of a verified file. It is for one goroutine.
type Reader struct {
	f       *os.File
	r       *bufio.Reader
	left    uint64
	section string
	buf     []byte
}

// Open verifies the file and returns a reader of its records.
func Open(path string, version uint32) (r *Reader, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // it was only read
			err = fmt.Errorf("%s: %w", path, err)
		}
	}()
	frames, err := verify(f, version)
	if err != nil {
		return nil, err
	}
	head := int64(len(magic) + 4)
	if _, err := f.Seek(head, io.SeekStart); err != nil {
		return nil, err
	}
	return &Reader{f: f, r: bufio.NewReaderSize(f, 256<<10), left: frames}, nil
}

// verify reads the whole file once and returns its number of frames.
func verify(f *os.File, version uint32) (frames uint64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(f, head); err != nil || string(head[:len(magic)]) != magic {
		return 0, fmt.Errorf("%w: it does not begin like one", ErrCorrupt)
	}
	if v := binary.BigEndian.Uint32(head[len(magic):]); v != version {
		return 0, fmt.Errorf("%w: %d, this release reads %d", ErrVersion, v, version)
	}
	body := info.Size() - int64(len(head)) - trailer
	if body < 0 {
		return 0, fmt.Errorf("%w: it is cut off", ErrCorrupt)
	}
	sum := crc32.Update(0, castagnoli, head)
	buf := make([]byte, 256<<10)
	for body > 0 {
		n, err := io.ReadFull(f, buf[:min(int64(len(buf)), body)])
		if err != nil {
			return 0, err
		}
		sum = crc32.Update(sum, castagnoli, buf[:n])
		body -= int64(n)
	}
	var end [trailer]byte
	if _, err := io.ReadFull(f, end[:]); err != nil {
		return 0, err
	}
	sum = crc32.Update(sum, castagnoli, end[:trailer-4])
	if end[0] != 'E' || binary.BigEndian.Uint32(end[trailer-4:]) != sum {
		return 0, fmt.Errorf("%w: its checksum does not match", ErrCorrupt)
	}
	return binary.BigEndian.Uint64(end[1:]), nil
}

// Next returns the next record and its section; io.EOF at the end. The record is valid until the next call.
func (r *Reader) Next() (section string, record []byte, err error) {
	for r.left > 0 {
		kind, err := r.r.ReadByte()
		if err != nil {
			return "", nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		n, err := binary.ReadUvarint(r.r)
		if err != nil || n > maxRecord {
			return "", nil, fmt.Errorf("%w: a record of %d bytes", ErrCorrupt, n)
		}
		if uint64(cap(r.buf)) < n {
			r.buf = make([]byte, n)
		}
		r.buf = r.buf[:n]
		if _, err := io.ReadFull(r.r, r.buf); err != nil {
			return "", nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		r.left--
		switch kind {
		case 'S':
			r.section = string(r.buf)
		case 'R':
			return r.section, r.buf, nil
		default:
			return "", nil, fmt.Errorf("%w: a frame of kind %q", ErrCorrupt, kind)
		}
	}
	return "", nil, io.EOF
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }
