package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"banger/api"
	"banger/internal/resource"
)

const (
	bufferSize    = 256 << 10
	maxZstdMemory = 256 << 20 // zstd --long=27 needs 128 MiB
	maxOverhead   = 4 << 30   // bytes of an archive that are not content
)

// Import makes an image of a tar archive: plain, or compressed with gzip, zstd or
// xz. A layer that exists is shared. On an error, and when ctx ends, nothing is
// left. Errors: invalid, naming the entry; no_space; already_exists.
func (m *Manager) Import(ctx context.Context, owner uint32, name string, r io.Reader, report api.Reporter) (Image, error) {
	if !validName.MatchString(name) {
		return Image{}, api.Errorf(api.CodeInvalid, "import image %q: not a name of an image", name).
			WithHint("a name is 1 to 128 of a-z, 0-9, '.', '_', '/' and '-', starting with a letter or digit, with :tag where wanted")
	}
	if report == nil {
		report = func(api.Progress) {}
	}
	dir := "layers/" + resource.RandomName(8)
	if _, err := m.Ledger.Acquire(ctx, layerOwner(dir), dirKind, dir, nil); err != nil {
		return Image{}, importError(name, err)
	}
	img, err := m.importInto(ctx, dir, owner, name, r, report)
	if err != nil || img.Layers[0].Dir != dir { // it came to nothing, or the layer existed
		rerr := m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(dir))
		if err == nil && rerr != nil {
			err = rerr
		}
	}
	if err != nil {
		return Image{}, importError(name, err)
	}
	return img, nil
}

func (m *Manager) importInto(ctx context.Context, dir string, owner uint32, name string, r io.Reader, report api.Reporter) (Image, error) {
	layer, entries, err := m.writeLayer(ctx, dir, r, report)
	if err != nil {
		return Image{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	known, err := m.Store.Layers(ctx)
	if err != nil {
		return Image{}, err
	}
	for _, l := range known {
		if l.Digest == layer.Digest {
			layer = l
		}
	}
	sum := sha256.Sum256([]byte(layer.Digest + "\n"))
	img := Image{
		ID: "sha256:" + hex.EncodeToString(sum[:]), Name: name, Owner: owner,
		Created: time.Now(), Layers: []Layer{layer}, Entries: entries,
	}
	return img, m.Store.InsertImage(ctx, img)
}

// writeLayer converts the archive into the layer file in dir.
func (m *Manager) writeLayer(ctx context.Context, dir string, r io.Reader, report api.Reporter) (Layer, int64, error) {
	path := filepath.Join(m.Dirs.Path(dir), layerFile)
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o440)
	if err != nil {
		return Layer{}, 0, err
	}
	defer out.Close()

	in := &meter{ctx: ctx, r: r}
	plain, stop, err := decompress(in)
	if err != nil {
		return Layer{}, 0, badArchive(err)
	}
	defer stop()
	src := &source{r: plain, sum: sha256.New(), left: m.MaxSize + maxOverhead}
	f := newFilter(src, m.MaxSize, m.MaxEntries, func(entries int64) {
		report(api.Progress{Step: fmt.Sprintf("import (%d entries)", entries), Current: in.n.Load()})
	})
	if err := convert(f, out, max(2*m.MaxSize, 16<<30)); err != nil {
		return Layer{}, 0, err
	}
	if err := out.Sync(); err != nil {
		return Layer{}, 0, err
	}
	if err := out.Chmod(0o440); err != nil {
		return Layer{}, 0, err
	}
	info, err := out.Stat()
	if err != nil {
		return Layer{}, 0, err
	}
	return Layer{Digest: "sha256:" + hex.EncodeToString(src.sum.Sum(nil)), Dir: dir, Size: info.Size()}, f.entries, nil
}

// convert runs the filter and the writer of the file system side by side. The
// filter's error is the cause where both have one, unless the writer gave up first.
func convert(f *filter, out *os.File, maxDisk int64) error {
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
	pr.CloseWithError(errWriter)
	ferr := <-filtered
	if ferr != nil && !errors.Is(ferr, errWriter) {
		return ferr
	}
	if err == nil || isNoSpace(err) {
		return err
	}
	return api.Errorf(api.CodeInvalid, "entry %q: %w", f.last, err)
}

var errWriter = errors.New("the writer of the file system stopped")

// meter counts what is read and ends with its context.
type meter struct {
	ctx context.Context
	r   io.Reader
	n   atomic.Int64
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.r.Read(p)
	m.n.Add(int64(n))
	return n, err
}

// source is the uncompressed archive: bounded, digested, and aware of how many
// zeros it delivered last, which tells an end mark from a cut.
type source struct {
	r     io.Reader
	sum   hash.Hash
	left  int64
	zeros int
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	if s.left -= int64(n); s.left < 0 {
		return n, api.Errorf(api.CodeInvalid, "archive is too large")
	}
	tail := n - len(bytes.TrimRight(p[:n], "\x00"))
	if tail == n {
		s.zeros += n
	} else {
		s.zeros = tail
	}
	return n, err
}

// decompress looks at the magic of the stream.
func decompress(r io.Reader) (plain io.Reader, stop func(), err error) {
	b := bufio.NewReaderSize(r, bufferSize)
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	nothing := func() {}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		return z, nothing, err
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxMemory(maxZstdMemory), zstd.WithDecoderMaxWindow(maxZstdMemory), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case bytes.Equal(magic, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(b)
		return z, nothing, err
	}
	return b, nothing, nil
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// importError says what was imported, and gives full disks their code.
func importError(name string, err error) error {
	if isNoSpace(err) {
		return api.Errorf(api.CodeNoSpace, "import image %q: %w", name, err).WithHint("remove images or VMs that are not needed")
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		if e.Code == api.CodeAlreadyExists {
			return e
		}
		return &api.Error{Code: e.Code, Message: fmt.Sprintf("import image %q: %s", name, err), Hint: e.Hint}
	}
	return fmt.Errorf("import image %q: %w", name, err)
}
