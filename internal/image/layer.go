package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/intake"
	"banger/internal/linux"
)

// The files of a layer's directory. The archive stays as it arrived: layers that are
// merged, links to files of layers below, and exports are made of it.
const (
	layerFile   = "layer.ext4"
	archiveFile = "archive"
	treeFile    = "tree"
)

// lower is what is below a layer.
type lower struct {
	depth   int   // number of layers
	tree    *node // what they look like
	archive func(layer int) (io.ReadCloser, error)
}

// layerWriter makes a layer of an archive, in the directory that the ledger holds
// for it.
type layerWriter struct {
	m          *Manager
	dir        string
	disk       bool             // whether a disk is made; the tree always is
	open       func() io.Reader // the archive, from its beginning
	low        *lower           // nil for an archive that stands alone, which is read once
	memory     *allowance
	maxEntries int64
}

// write makes the layer's disk and returns its tree; it fills in what is known of the
// layer then.
func (w layerWriter) write(ctx context.Context, layer *Layer, report api.Reporter) (*node, error) {
	defer sparing(w.m.MaxMemory)()
	skip := map[int64]bool{}
	for {
		f, err := w.pass(ctx, skip, report)
		if errors.Is(err, errAgain) {
			continue
		}
		if err != nil {
			return nil, err
		}
		layer.DiffID, layer.Entries = "sha256:"+hex.EncodeToString(f.src.sum.Sum(nil)), f.entries
		return f.tree.root, nil
	}
}

func (w layerWriter) pass(ctx context.Context, skip map[int64]bool, report api.Reporter) (*filter, error) {
	raw := &meter{r: w.open()}
	f := newFilter(&source{raw: raw, sum: sha256.New(), left: w.m.MaxSize + maxOverhead}, w.m.MaxSize, w.maxEntries, func(entries int64) {
		report(api.Progress{Step: fmt.Sprintf("import (%d entries)", entries), Current: raw.n.Load()})
	})
	f.tree.maxMemory = w.m.MaxMemory
	f.large = func() error { return w.memory.take(ctx) }
	plain, format, err := intake.Open(raw)
	f.src.format = format
	if err != nil {
		return nil, f.broken(err)
	}
	defer plain.Close()
	f.src.r = plain
	if w.low != nil {
		f.newLayer(w.low.depth, w.low.tree, w.low.archive, skip)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !w.disk {
		return f, f.run(io.Discard)
	}
	return f, w.m.writeDisk(w.dir, func(out *sparseWriter) error { return convert(f, out, w.m.maxDisk()) })
}

func (m *Manager) maxDisk() int64 { return 2*m.MaxSize + maxOverhead }

// writeDisk makes the disk of a layer, which is there wholly or not at all; what an
// earlier attempt left is made anew.
func (m *Manager) writeDisk(dir string, write func(out *sparseWriter) error) error {
	part, disk := m.path(dir, layerFile+".part"), m.path(dir, layerFile)
	out, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o440)
	if err != nil {
		return err
	}
	defer out.Close()
	err = failpoint.Pass("layer", "created")
	if err == nil {
		err = write(&sparseWriter{f: out, room: m.Room})
	}
	if err == nil {
		err = failpoint.Pass("layer", "written")
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return errors.Join(setUUID(out, dir), out.Sync(), out.Chmod(0o440), os.Rename(part, disk))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// setUUID gives a file system a UUID, without which an overlay has no index of its
// files. See s_uuid in "The Super Block", Linux Documentation/filesystems/ext4.
func setUUID(out io.WriterAt, dir string) error {
	const superblock, uuid = 1024, 0x68
	sum := sha256.Sum256([]byte(dir))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // RFC 9562, version 8
	_, err := out.WriteAt(sum[:16], superblock+uuid)
	return err
}

// finish keeps the tree of a layer and makes all of it durable.
func (m *Manager) finish(dir string, tree *node, layer *Layer) error {
	file, err := os.OpenFile(m.path(dir, treeFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o440)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := errors.Join(writeIndex(file, tree), file.Sync(), syncDir(m.Dirs.Path(dir))); err != nil {
		return err
	}
	layer.Size, err = m.allocated(dir)
	return err
}

// allocated is the bytes on the disk that the files of a layer take.
func (m *Manager) allocated(dir string) (total int64, err error) {
	for _, name := range []string{layerFile, archiveFile, treeFile} {
		n, err := linux.Allocated(m.path(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func (m *Manager) path(dir, file string) string { return filepath.Join(m.Dirs.Path(dir), file) }

func (m *Manager) createArchive(dir string) (*os.File, error) {
	return os.OpenFile(m.path(dir, archiveFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
}

// tree reads what is kept of a layer's tree.
func (m *Manager) tree(l Layer) (*node, error) {
	file, err := os.Open(m.path(l.Dir, treeFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, api.Errorf(api.CodeConflict, "layer %s is of an earlier version of banger, nothing can be put on it", l.Digest).
			WithHint("remove the images that have it, and make them again")
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	tree, err := readIndex(file, max(m.MaxEntries, l.Entries)+100)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	return tree, nil
}

// openArchive opens the archive of a layer, unpacked.
func (m *Manager) openArchive(l Layer) (io.ReadCloser, error) {
	file, err := os.Open(m.path(l.Dir, archiveFile))
	if err != nil {
		return nil, err
	}
	plain, _, err := intake.Open(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return both{plain, file}, nil
}

// both closes what reads a file, and the file.
type both struct {
	io.ReadCloser
	file *os.File
}

func (b both) Close() error { return errors.Join(b.ReadCloser.Close(), b.file.Close()) }

// prove reads a blob of which there is a layer already, so that nobody gets at what
// is in a layer by naming it alone.
func prove(ctx context.Context, blob Blob, diff string, most int64) error {
	r, err := blob.Open(ctx, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	sum, raw := sha256.New(), &meter{r: r}
	plain, _, err := intake.Open(raw)
	if err != nil {
		return broken(raw, "its blob: ", err)
	}
	defer plain.Close()
	if n, err := io.Copy(sum, io.LimitReader(plain, most)); err != nil {
		return broken(raw, "its blob: ", err)
	} else if n == most {
		return api.Errorf(api.CodeInvalid, "its blob is too large")
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diff {
		return api.Errorf(api.CodeInvalid, "blob %s: its content has the digest %s, the image config says %s", blob.Digest, got, diff)
	}
	return nil
}

// ensureDisk makes the disk of a layer that has been without one until now, as a part
// of deeper images.
func (b *builder) ensureDisk(ctx context.Context, i int, layer *Layer) error {
	for b.ownDisk(i) {
		if _, err := os.Stat(b.m.path(layer.Dir, layerFile)); err == nil {
			return nil
		}
		// Others may wait for this disk, and are not to wait for another image of this owner's.
		if err := b.memory.take(ctx); err != nil {
			return err
		}
		release := b.m.claim(layer.Digest)
		if release == nil {
			if err := b.await(ctx, layer.Digest); err != nil {
				return err
			}
			continue
		}
		defer release()
		return b.makeDisk(ctx, i, layer)
	}
	return nil
}

func (b *builder) makeDisk(ctx context.Context, i int, layer *Layer) error {
	if err := b.mergeTo(ctx, i); err != nil {
		return err
	}
	var archive io.ReadCloser = io.NopCloser(nil)
	defer func() { archive.Close() }()
	open := func() io.Reader {
		archive.Close()
		opened, err := b.m.openArchive(*layer)
		if err != nil {
			return failing{err}
		}
		archive = opened
		return archive
	}
	w := layerWriter{m: b.m, dir: layer.Dir, disk: true, open: open, low: &lower{i, b.below, b.archive}, memory: &b.memory, maxEntries: b.m.MaxEntries}
	same := *layer
	if _, err := w.write(ctx, &same, b.report); err != nil {
		return err
	}
	var err error
	layer.Size, err = b.m.allocated(layer.Dir)
	return errors.Join(err, b.m.Store.ResizeLayer(ctx, layer.Digest, layer.Size))
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// keeper keeps an archive that arrives: as it is where it is compressed, else
// compressed lightly.
type keeper struct {
	file  io.Writer
	head  []byte
	to    io.Writer
	close func() error
}

func (k *keeper) Write(p []byte) (int, error) {
	if k.to == nil {
		const magic = 6 // the longest that intake knows
		k.head = append(k.head, p...)
		if len(k.head) < magic {
			return len(p), nil
		}
		if err := k.begin(); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return k.to.Write(p)
}

func (k *keeper) begin() error {
	k.to, k.close = k.file, func() error { return nil }
	if intake.FormatOf(k.head) == intake.Plain {
		z, err := zstd.NewWriter(k.file, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
		if err != nil {
			return err
		}
		k.to, k.close = z, z.Close
	}
	_, err := k.to.Write(k.head)
	return err
}

func (k *keeper) finish() error {
	if k.to == nil {
		if err := k.begin(); err != nil {
			return err
		}
	}
	return k.close()
}
