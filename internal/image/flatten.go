package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

// overlaid is what the trees of two layers of one disk are, one above the other, as
// seen by what lies below both: merge, but for the marks, which stay. Neither is
// changed.
func overlaid(below, above *node) *node {
	if below == nil || above.whiteout || !above.isDir() || above.opaque || below.whiteout || !below.isDir() {
		if above.isDir() && below != nil && !above.opaque && (below.whiteout || !below.isDir()) {
			opaque := *above // what below hides stays hidden
			opaque.opaque = true
			return &opaque
		}
		return above
	}
	both := &node{meta: above.meta, layer: above.layer, entry: above.entry, opaque: below.opaque, children: maps.Clone(below.children)}
	for name, n := range above.children {
		both.children[name] = overlaid(below.children[name], n)
	}
	return both
}

// settled is a tree without the marks that hide nothing of what is below, which would
// show in a directory that is not merged.
func settled(n, below *node) *node {
	if !n.isDir() {
		return n
	}
	kept := *n
	kept.children = map[string]*node{}
	if kept.opaque = n.opaque && below.isDir(); n.opaque {
		below = nil
	}
	for name, child := range n.children {
		under := below.child(name)
		if !child.whiteout || under != nil {
			kept.children[name] = settled(child, under)
		}
	}
	return &kept
}

// writeFlat makes one file system of a tree that merge or overlaid has made, from the
// layers' archives, each of which is read once.
func writeFlat(ctx context.Context, out *sparseWriter, root *node, archive func(layer int) (io.ReadCloser, error), maxDisk int64) error {
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		w := bufio.NewWriterSize(pw, bufferSize)
		f := flattener{out: tar.NewWriter(w), paths: map[origin][]string{}}
		err := errors.Join(f.flatten(root, archive), w.Flush())
		pw.CloseWithError(err)
		written <- err
	}()
	stop := context.AfterFunc(ctx, func() { pr.CloseWithError(ctx.Err()) })
	defer stop()
	err := tar2ext4.ConvertTarToExt4(bufio.NewReaderSize(pr, bufferSize), out, tar2ext4.MaximumDiskSize(maxDisk))
	pr.CloseWithError(errWriter)
	if werr := <-written; werr != nil && !errors.Is(werr, errWriter) {
		return werr
	}
	if err != nil {
		return err
	}
	return out.finish()
}

// flattener writes several layers as one archive.
type flattener struct {
	out   *tar.Writer
	paths map[origin][]string // of the files that are left, by where their content is
}

func (f *flattener) flatten(root *node, archive func(layer int) (io.ReadCloser, error)) error {
	if err := f.directory("", root); err != nil {
		return err
	}
	buf := make([]byte, bufferSize)
	err := reread(f.paths, archive, func(hdr *tar.Header, content io.Reader, paths []string) error {
		return f.file(hdr, content, paths, buf)
	})
	if err != nil {
		return err
	}
	return f.out.Close()
}

// directory writes a directory with the directories and marks in it, and notes the
// files.
func (f *flattener) directory(name string, n *node) error {
	m := meta{mode: 0o755, date: clamp(time.Time{})}
	if n.meta != nil {
		m = *n.meta
	}
	if n.opaque && name != "" {
		m = *m.hiding()
	}
	if name != "lost+found" || n.meta != nil {
		if err := f.out.WriteHeader(m.header(path.Clean(name))); err != nil {
			return err
		}
	}
	for _, base := range slices.Sorted(maps.Keys(n.children)) {
		child, at := n.children[base], path.Join(name, base)
		switch {
		case child.whiteout:
			if err := f.out.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeChar, Name: at}); err != nil {
				return err
			}
		case child.isDir():
			if err := f.directory(at, child); err != nil {
				return err
			}
		default:
			from := origin{child.layer, child.entry}
			f.paths[from] = append(f.paths[from], at)
		}
	}
	return nil
}

// file writes a file, and its further names as links to it.
func (f *flattener) file(hdr *tar.Header, content io.Reader, paths []string, buf []byte) error {
	clean, _, err := cleaned(hdr, paths[0])
	if err != nil {
		return err
	}
	if err := f.out.WriteHeader(clean); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f.out}, onlyReader{content}, buf); err != nil {
		return err
	}
	for _, link := range paths[1:] {
		if err := f.out.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeLink, Name: link, Linkname: paths[0]}); err != nil {
			return err
		}
	}
	return nil
}
