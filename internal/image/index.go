package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
)

// The tree of a layer is kept beside it, for the layers that come to lie on it: in
// preorder, names sorted, numbers as varints, compressed with zstd, which has a
// checksum.
const indexMagic = "banger layer tree 1\n"

// indexWindow is how far back zstd refers. Its default of some MiB, which each reader clears
// first, would take longer than a tree does.
const indexWindow = 256 << 10

// What a node of the index says of itself.
const (
	isDir byte = 1 << iota
	isWhiteout
	isOpaque
	isCopied
	hasMeta
)

var errIndex = errors.New("the tree of the layer is damaged")

// writeIndex writes the tree of a layer.
func writeIndex(w io.Writer, root *node) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true), zstd.WithWindowSize(indexWindow))
	if err != nil {
		return err
	}
	b := bufio.NewWriter(z)
	e := indexWriter{w: b}
	b.WriteString(indexMagic) // errors stay with b
	e.node(root)
	return errors.Join(b.Flush(), z.Close())
}

type indexWriter struct {
	w   *bufio.Writer
	buf []byte
}

// Errors of a bufio.Writer stay until Flush tells them.
func (e *indexWriter) number(n int64) {
	e.buf = binary.AppendVarint(e.buf[:0], n)
	_, _ = e.w.Write(e.buf)
}

func (e *indexWriter) text(s string) {
	e.number(int64(len(s)))
	_, _ = e.w.WriteString(s)
}

func (e *indexWriter) node(n *node) {
	var flags byte
	for flag, set := range map[byte]bool{isDir: n.isDir(), isWhiteout: n.whiteout, isOpaque: n.opaque, isCopied: n.copied, hasMeta: n.meta != nil} {
		if set {
			flags |= flag
		}
	}
	_ = e.w.WriteByte(flags)
	e.number(int64(n.layer))
	e.number(n.entry)
	if m := n.meta; m != nil {
		for _, v := range []int64{m.mode, int64(m.uid), int64(m.gid), m.date.Unix(), int64(m.date.Nanosecond()), int64(len(m.xattrs))} {
			e.number(v)
		}
		for _, key := range slices.Sorted(maps.Keys(m.xattrs)) {
			e.text(key)
			e.text(m.xattrs[key])
		}
	}
	if !n.isDir() {
		e.text(n.target)
		return
	}
	e.number(int64(len(n.children)))
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		e.text(name)
		e.node(n.children[name])
	}
}

// readIndex reads what writeIndex has written, up to maxNodes nodes.
func readIndex(r io.Reader, maxNodes int64) (*node, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(16<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	d := indexReader{r: bufio.NewReader(z), left: maxNodes}
	magic := make([]byte, len(indexMagic))
	if _, err := io.ReadFull(d.r, magic); err != nil || string(magic) != indexMagic {
		return nil, errIndex
	}
	root := d.node(0)
	if _, err := d.r.ReadByte(); d.err == nil && err != io.EOF {
		d.err = errIndex
	}
	if d.err != nil {
		return nil, fmt.Errorf("%w: %w", errIndex, d.err)
	}
	return root, nil
}

type indexReader struct {
	r    *bufio.Reader
	left int64
	err  error
}

func (d *indexReader) fail() { d.err = errors.Join(d.err, errIndex) }

func (d *indexReader) number() int64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadVarint(d.r)
	if err != nil {
		d.err = err
	}
	return n
}

func (d *indexReader) text(most int64) string {
	n := d.number()
	if n < 0 || n > most {
		d.fail()
		return ""
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(d.r, b); err != nil && d.err == nil {
		d.err = err
	}
	return string(b)
}

func (d *indexReader) node(depth int) *node {
	if d.left--; d.left < 0 || depth > maxPath {
		d.fail()
	}
	flags, err := d.r.ReadByte()
	if err != nil && d.err == nil {
		d.err = err
	}
	n := &node{layer: int(d.number()), entry: d.number(), whiteout: flags&isWhiteout != 0, opaque: flags&isOpaque != 0, copied: flags&isCopied != 0}
	if flags&hasMeta != 0 {
		n.meta = &meta{mode: d.number(), uid: int(d.number()), gid: int(d.number())}
		seconds, nanoseconds := d.number(), d.number()
		n.meta.date, n.meta.xattrs = time.Unix(seconds, nanoseconds), map[string]string{}
		for range d.count(blockXattrs) {
			key := d.text(maxXattrName + int64(len(xattrPrefix)))
			n.meta.xattrs[key] = d.text(blockXattrs)
		}
	}
	if flags&isDir == 0 {
		n.target = d.text(maxTarget)
		return n
	}
	count := d.count(d.left)
	n.children = make(map[string]*node, min(count, 1000)) // more have to show first
	for range count {
		if d.err != nil {
			break
		}
		name := d.text(maxComponent)
		n.children[name] = d.node(depth + 1)
		if n.children[name].isDir() {
			n.links++
		}
	}
	return n
}

func (d *indexReader) count(most int64) int64 {
	n := d.number()
	if n < 0 || n > most {
		d.fail()
		return 0
	}
	return n
}
