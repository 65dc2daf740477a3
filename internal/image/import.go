package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"banger/api"
	"banger/internal/intake"
	"banger/internal/resource"
	"banger/internal/space"
)

const (
	bufferSize  = 256 << 10
	blockSize   = 4096
	maxOverhead = 4 << 30 // bytes of an archive that are not content
)

// Import makes an image of a tar archive, plain or compressed with gzip, zstd or xz:
// that of a root file system, an OCI Image Layout, or what docker save makes. A layer that exists is shared. On an error, and when ctx ends (though r may
// block), nothing is left; a read of r that is under way then goes on. Errors: invalid,
// naming the entry; no_space; already_exists; conflict, where the same is being imported.
func (m *Manager) Import(ctx context.Context, owner uint32, name string, r io.Reader, report api.Reporter) (Image, error) {
	return m.importAs(ctx, owner, name, false, r, report)
}

// Replace is Import, but an image of the owner's that has the name loses it, as with Pull.
func (m *Manager) Replace(ctx context.Context, owner uint32, name string, r io.Reader, report api.Reporter) (Image, error) {
	return m.importAs(ctx, owner, name, true, r, report)
}

func (m *Manager) importAs(ctx context.Context, owner uint32, name string, replace bool, r io.Reader, report api.Reporter) (Image, error) {
	if !validName.MatchString(name) {
		return Image{}, badName(name)
	}
	if report == nil {
		report = func(api.Progress) {}
	}
	done, err := m.reserve(ctx, owner, name, replace)
	if err != nil {
		return Image{}, importError(name, err)
	}
	defer done()
	if err := m.Room.Admit(fmt.Sprintf("import image %q", name), intake.Known(r)); err != nil {
		return Image{}, err
	}
	arriving := intake.UntilDone(ctx, r)
	defer arriving.Close()
	stream := bufio.NewReaderSize(arriving, bufferSize)
	if isPacked(stream) {
		img, err := m.importPacked(ctx, owner, name, replace, stream, report)
		return img, importError(name, err)
	}
	dir := "layers/" + resource.RandomName(8)
	if _, err := m.Ledger.Acquire(ctx, layerOwner(dir), dirKind, dir, nil); err != nil {
		return Image{}, importError(name, err)
	}
	img, err := m.importInto(ctx, dir, owner, name, replace, stream, report)
	if err != nil || img.Layers[0].Dir != dir { // it came to nothing, or the layer existed
		rerr := m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(dir))
		if err == nil && rerr != nil {
			err = rerr
		}
	}
	if err == nil && replace {
		err = m.sweep(context.WithoutCancel(ctx)) // the layers of the one that lost the name
	}
	if err != nil {
		return Image{}, importError(name, err)
	}
	return img, nil
}

func badName(name string) error {
	return api.Errorf(api.CodeInvalid, "import image %q: not a name of an image", name).
		WithHint("%s", nameHint)
}

const nameHint = "a name is 1 to 128 of a-z, 0-9, '.', '_', '/' and '-', starting with a letter or digit, with :tag where wanted"

// Free says why Import would refuse a name, if so: invalid, already_exists, conflict.
func (m *Manager) Free(ctx context.Context, owner uint32, name string) error {
	if !validName.MatchString(name) {
		return badName(name)
	}
	done, err := m.reserve(ctx, owner, name, false)
	if err != nil {
		return importError(name, err)
	}
	done()
	return nil
}

// reserve sees that no other import of the same owner makes an image of that name,
// before anything is read.
func (m *Manager) reserve(ctx context.Context, owner uint32, name string, replace bool) (done func(), err error) {
	all, err := m.Store.Images(ctx)
	if err != nil {
		return nil, err
	}
	if !replace && slices.ContainsFunc(all, func(i Image) bool { return i.Owner == owner && i.Name == name }) {
		return nil, api.Errorf(api.CodeAlreadyExists, "import image %q: an image of that name exists", name).
			WithHint("banger image rm %s, or choose another name", name)
	}
	m.busyMu.Lock()
	defer m.busyMu.Unlock()
	k := key{owner, name}
	if m.busy[k] {
		return nil, api.Errorf(api.CodeConflict, "it is being imported already").WithHint("wait for that import to end, or choose another name")
	}
	m.busy[k] = true
	return func() {
		m.busyMu.Lock()
		defer m.busyMu.Unlock()
		delete(m.busy, k)
	}, nil
}

func (m *Manager) importInto(ctx context.Context, dir string, owner uint32, name string, replace bool, r io.Reader, report api.Reporter) (Image, error) {
	kept, err := m.createArchive(dir)
	if err != nil {
		return Image{}, err
	}
	defer kept.Close()
	keep := &keeper{file: kept}
	layer := Layer{Dir: dir}
	memory := allowance{m: m, owner: owner, report: report}
	defer memory.end()
	w := layerWriter{m: m, dir: dir, disk: true, memory: &memory, maxEntries: m.MaxEntries, open: func() io.Reader { return io.TeeReader(r, keep) }}
	tree, err := w.write(ctx, &layer, report)
	if kerr := keep.finish(); err == nil {
		err = kerr
	}
	if err == nil {
		layer.Digest = layer.DiffID
		err = m.finish(dir, tree, &layer)
	}
	if err != nil {
		return Image{}, err
	}
	config, err := json.Marshal(plainConfig(layer.DiffID))
	if err != nil {
		return Image{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok, err := m.Store.Layer(ctx, layer.Digest); err != nil {
		return Image{}, err
	} else if ok {
		layer = known
	}
	img := Image{
		ID: digest(config), Name: name, Owner: owner, Config: string(config),
		Created: time.Now(), Layers: []Layer{layer}, Entries: layer.Entries,
	}
	if err := m.Store.InsertImage(ctx, img, replace); err != nil {
		return Image{}, err
	}
	_ = m.keepCopies(context.WithoutCancel(ctx)) // the image is there all the same; the next start does it otherwise
	return img, nil
}

// convert runs the filter and the writer of the file system side by side. The
// filter's error is the cause where both have one, unless the writer gave up first.
func convert(f *filter, out *sparseWriter, maxDisk int64) error {
	pr, pw := io.Pipe()
	filtered := make(chan error, 1)
	go func() {
		w := bufio.NewWriterSize(pw, bufferSize)
		err := f.run(w)
		if err == nil {
			err = w.Flush()
		}
		pw.CloseWithError(err)
		filtered <- err
	}()
	err := tar2ext4.ConvertTarToExt4(bufio.NewReaderSize(pr, bufferSize), out, tar2ext4.MaximumDiskSize(maxDisk))
	if err == nil {
		// The writer stops at the end mark; the filter still has the stream's tail to check.
		_, err = io.Copy(io.Discard, pr)
	}
	if err == nil {
		err = out.finish()
	}
	pr.CloseWithError(errWriter)
	ferr := <-filtered
	if ferr != nil && !errors.Is(ferr, errWriter) {
		return ferr
	}
	if err == nil || isNoSpace(err) {
		return err
	}
	// What the writer cannot hold is the filter's to refuse; this is what it missed.
	return api.Errorf(api.CodeInvalid, "archive does not fit a file system: %w", err)
}

var errWriter = errors.New("the writer of the file system stopped")

// meter counts what arrives, and keeps the error that is not of the archive.
type meter struct {
	r   io.Reader
	n   atomic.Int64
	err error
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n.Add(int64(n))
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

// source is the uncompressed archive: bounded, digested, and aware of how many
// zeros it delivered last, which tells an end mark from a cut.
type source struct {
	r      io.Reader
	raw    *meter // from which r is made
	format intake.Format
	sum    hash.Hash
	left   int64
	read   int64
	zeros  int64
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	s.read += int64(n)
	if s.left -= int64(n); s.left < 0 {
		return n, api.Errorf(api.CodeInvalid, "archive is too large").WithHint(limited, "max_size")
	}
	tail := n - len(bytes.TrimRight(p[:n], "\x00"))
	if tail == n {
		s.zeros += int64(n)
	} else {
		s.zeros = int64(tail)
	}
	return n, err
}

// sparseWriter leaves holes where it would write blocks of zeros behind all that it
// has written.
type sparseWriter struct {
	f       *os.File
	room    space.Room
	at, end int64
	since   int64 // bytes written since the last look at the room
}

// roomStep is how much is written between two looks at the room, in bytes.
const roomStep = 16 << 20

func (w *sparseWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), blockSize-int(w.at%blockSize))]
		if w.at < w.end || !isZero(part) {
			for len(part) < len(p) { // as much as can go at once
				next := p[len(part):min(len(p), len(part)+blockSize)]
				if w.at+int64(len(part)) >= w.end && isZero(next) {
					break
				}
				part = p[:len(part)+len(next)]
			}
			if _, err := w.f.WriteAt(part, w.at); err != nil {
				return n, err
			}
			if w.since += int64(len(part)); w.since >= roomStep {
				w.since = 0
				if err := w.room.Admit("write layer", roomStep); err != nil {
					return n, err
				}
			}
		}
		w.at += int64(len(part))
		w.end = max(w.end, w.at)
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

func (w *sparseWriter) Read(p []byte) (int, error) {
	n, err := w.f.ReadAt(p, w.at)
	w.at += int64(n)
	return n, err
}

func (w *sparseWriter) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += w.at
	case io.SeekEnd:
		offset += w.end
	}
	w.at = offset
	return w.at, nil
}

// finish gives the file its size, should it end in a hole.
func (w *sparseWriter) finish() error { return w.f.Truncate(w.end) }

var zeroBlock [blockSize]byte

func isZero(p []byte) bool {
	for ; len(p) > blockSize; p = p[blockSize:] {
		if !bytes.Equal(p[:blockSize], zeroBlock[:]) {
			return false
		}
	}
	return bytes.Equal(p, zeroBlock[:len(p)])
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || err != nil && api.CodeOf(err) == api.CodeNoSpace
}

func importError(name string, err error) error { return about("import", name, err) }

// about says with what image an action came to an error, and gives full disks their code.
func about(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	if isNoSpace(err) {
		return api.Errorf(api.CodeNoSpace, "%s image %q: %w", doing, name, err).WithHint("%s", space.Hint)
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		if e.Code == api.CodeAlreadyExists {
			return e
		}
		return &api.Error{Code: e.Code, Message: fmt.Sprintf("%s image %q: %s", doing, name, err), Hint: e.Hint}
	}
	return fmt.Errorf("%s image %q: %w", doing, name, err)
}
