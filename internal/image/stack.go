package image

import (
	"archive/tar"
	"cmp"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// The marks of a layer for what it removes of the layers below. See the OCI Image
// Layer Filesystem Changeset, "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // aufs kept its own files under such names
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = xattrPrefix + "trusted.overlay.opaque"
	opaqueBytes    = 16 + 16 + 4 // of the attribute on the disk
)

// errAgain ends the first pass over an archive in which something is replaced later.
var errAgain = errors.New("the archive has to be read again")

// stack is what a filter needs for a layer of an OCI image: the place of the layer
// among others, and what cannot be written while its archive is read. A whiteout
// means the layers below, wherever it is in the archive, and is written only where
// it hides something; a hard link to a file of a layer below becomes a copy of that
// file. A nil stack belongs to an archive that stands alone.
type stack struct {
	layer   int                                    // how many layers are below
	archive func(layer int) (io.ReadCloser, error) // that of a layer below, not compressed
	skip    map[int64]bool                         // entries that later ones of the same path replace

	stale  bool              // skip has become more: what is written is of no use
	more   map[*node][]int64 // the further entries of a directory that came more than once
	marks  []mark            // what is to be hidden
	copies map[origin]*copied
	links  []lateLink
}

// mark is a whiteout: it hides what is below at a path, or all that is below in the
// directory there.
type mark struct {
	path   string
	opaque bool
}

// origin is where the content of a file is.
type origin struct {
	layer int
	entry int64
}

// copied is a file of a layer below, of which this layer gets a copy.
type copied struct {
	node *node
	path string // of the first link
}

// lateLink is a hard link to a copied file.
type lateLink struct {
	to      *copied
	header  *tar.Header
	parents []implied
	ordinal int64
}

// newLayer makes f the filter of the layer that lies on those whose merged tree is
// below; archive opens theirs.
func (f *filter) newLayer(layer int, below *node, archive func(int) (io.ReadCloser, error), skip map[int64]bool) {
	if skip == nil {
		skip = map[int64]bool{}
	}
	f.tree.below, f.tree.rooted = below, true
	f.tree.memory += below.weight(lowerFileCost, lowerDirCost)
	f.stack = &stack{layer: layer, archive: archive, skip: skip, more: map[*node][]int64{}, copies: map[origin]*copied{}}
}

func (s *stack) depth() int {
	if s == nil {
		return 0
	}
	return s.layer
}

func (s *stack) isStale() bool { return s != nil && s.stale }

// take handles what is special in a layer: entries that are replaced, and whiteouts.
func (s *stack) take(f *filter, hdr *tar.Header, ordinal int64) (done bool, err error) {
	if s == nil {
		return false, nil
	}
	if s.skip[ordinal] {
		return true, nil
	}
	name, err := cleanPath(hdr.Name)
	if err != nil {
		return false, invalid(hdr.Name, err)
	}
	dir, base := path.Split(name)
	if strings.Contains("/"+dir, "/"+whiteoutMeta) || strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return true, nil // of aufs, in images of its time
	}
	if strings.Contains("/"+dir, "/"+whiteoutPrefix) {
		return false, invalid(hdr.Name, errors.New("it is below a whiteout"))
	}
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return false, nil
	}
	hides := strings.TrimPrefix(base, whiteoutPrefix)
	if hides == "" || hides == "." || hides == ".." {
		return false, invalid(hdr.Name, errors.New("a whiteout of no name"))
	}
	at, err := f.tree.find(path.Join(dir, hides))
	if err != nil {
		return true, nil // nothing can be there
	}
	if err := f.tree.take(fileCost + 2*len(name)); err != nil {
		return true, invalid(hdr.Name, err)
	}
	if base == whiteoutOpaque {
		s.marks = append(s.marks, mark{at.path(""), true})
	} else {
		s.marks = append(s.marks, mark{at.name(), false})
	}
	return true, nil
}

// sawAgain notes a further entry of a directory.
func (s *stack) sawAgain(n *node, ordinal int64) {
	if s != nil {
		s.more[n] = append(s.more[n], ordinal)
	}
}

// supersede takes away what an earlier entry put at a place. The file system that is
// being written still has it: it is made anew, without that entry.
func (s *stack) supersede(at *place) error {
	if s == nil {
		return errTwice
	}
	if at.base == "" {
		return errors.New("the root is a directory")
	}
	if err := s.drop(at.node); err != nil {
		return err
	}
	dir := at.way[len(at.way)-1].own
	if at.node.isDir() {
		dir.links--
	}
	delete(dir.children, at.base)
	at.node, s.stale = nil, true
	return nil
}

func (s *stack) drop(n *node) error {
	switch {
	case n.copied || !n.isDir() && n.links > 1:
		return errors.New("it replaces a file of several hard links")
	case n.entry >= 0:
		s.skip[n.entry] = true
	}
	for _, ordinal := range s.more[n] {
		s.skip[ordinal] = true
	}
	for _, child := range n.children {
		if err := s.drop(child); err != nil {
			return err
		}
	}
	return nil
}

// below is the node of a copy of a file of a layer below.
func (s *stack) below(n *node) *node {
	from := origin{n.layer, n.entry}
	if s.copies[from] == nil {
		s.copies[from] = &copied{node: &node{target: n.target, layer: n.layer, entry: n.entry, copied: true}}
	}
	return s.copies[from].node
}

// later keeps a hard link to a copied file for the end of the archive.
func (s *stack) later(n *node, header *tar.Header, parents []implied, ordinal int64) {
	s.links = append(s.links, lateLink{s.copies[origin{n.layer, n.entry}], header, parents, ordinal})
}

// begin writes what comes before the entries: the root of a layer is that of the
// layers below unless it says otherwise.
func (f *filter) begin(out *tar.Writer) error {
	if f.tree.below == nil || f.tree.below.meta == nil {
		return nil
	}
	f.tree.root.meta = f.tree.below.meta
	return out.WriteHeader(f.tree.root.meta.header("."))
}

// end writes what had to wait for all entries.
func (f *filter) end(out *tar.Writer, buf []byte) error {
	if f.stack == nil || f.stack.stale {
		return nil
	}
	if err := f.writeCopies(out, buf); err != nil {
		return err
	}
	return f.writeWhiteouts(out)
}

// writeCopies writes the files of layers below to which there are hard links, and the
// links. Each archive below is read once.
func (f *filter) writeCopies(out *tar.Writer, buf []byte) error {
	s := f.stack
	for _, l := range s.links {
		if err := f.imply(out, l.parents, l.header.ModTime); err != nil {
			return err
		}
		if l.to.path == "" {
			l.to.path = l.header.Name
		}
	}
	err := reread(s.copies, s.archive, func(hdr *tar.Header, content io.Reader, c *copied) error {
		clean, _, err := cleaned(hdr, c.path)
		if err != nil {
			return err
		}
		f.last = c.path
		return f.copy(out, clean, content, buf)
	})
	if err != nil {
		return err
	}
	for _, l := range s.links {
		if l.header.Name == l.to.path {
			continue
		}
		l.header.Linkname = l.to.path
		if err := out.WriteHeader(l.header); err != nil {
			return err
		}
	}
	return nil
}

// writeWhiteouts hides what the layer removes of the layers below. What they do not
// have is not hidden: a directory that is in one layer alone would show the marks.
func (f *filter) writeWhiteouts(out *tar.Writer) error {
	marks := f.stack.marks
	rank := func(m mark) int {
		if m.opaque {
			return 1
		}
		return 0
	}
	slices.SortFunc(marks, func(a, b mark) int { // what is hidden wholly has nothing left to hide within
		return cmp.Or(strings.Compare(a.path, b.path), rank(a)-rank(b))
	})
	for _, m := range marks {
		hide := f.hide
		if m.opaque {
			hide = f.hideAll
		}
		if err := hide(out, m.path); err != nil {
			return err
		}
	}
	return nil
}

// hideAll hides what the layers below have in a directory.
func (f *filter) hideAll(out *tar.Writer, name string) error {
	at, err := f.tree.find(name)
	switch {
	case err != nil || !at.below.isDir() || len(at.below.children) == 0:
		return nil
	case at.base == "": // an overlay's root is merged whatever its layers say
		for _, child := range slices.Sorted(maps.Keys(at.below.children)) {
			if err := f.hide(out, child); err != nil {
				return err
			}
		}
		return nil
	case at.node == nil:
		n := newDir()
		n.meta, n.entry = at.below.meta, -1
		if err := f.put(out, at, n); err != nil {
			return err
		}
		at.node = n
	}
	if at.node.isDir() {
		return f.makeOpaque(out, at)
	}
	return nil
}

// hide hides what the layers below have at a path.
func (f *filter) hide(out *tar.Writer, name string) error {
	at, err := f.tree.find(name)
	switch {
	case err != nil || at.below == nil:
		return nil
	case at.node == nil:
		if err := f.put(out, at, &node{whiteout: true, entry: -1}); err != nil {
			return err
		}
		return out.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeChar, Name: at.name()})
	case at.node.isDir() && at.below.isDir():
		return f.makeOpaque(out, at)
	}
	return nil
}

func (f *filter) put(out *tar.Writer, at place, n *node) error {
	parents, err := f.tree.put(at, n)
	if err != nil {
		return invalid(at.name(), err)
	}
	if err := f.count(); err != nil {
		return err
	}
	return f.imply(out, parents, clamp(time.Time{}))
}

// makeOpaque hides all that layers below have in a directory.
func (f *filter) makeOpaque(out *tar.Writer, at place) error {
	n := at.node
	if n.opaque {
		return nil
	}
	n.opaque = true
	if n.attrs += opaqueBytes; n.attrs > blockXattrs {
		return invalid(at.name(), errors.New("a directory that hides those below has too many extended attributes"))
	}
	m := meta{mode: 0o755, date: clamp(time.Time{})}
	if n.meta != nil {
		m = *n.meta
	}
	return out.WriteHeader(m.hiding().header(at.name()))
}

// hiding is m with the mark of a directory that hides those below it.
func (m meta) hiding() *meta {
	m.xattrs = maps.Clone(m.xattrs)
	if m.xattrs == nil {
		m.xattrs = map[string]string{}
	}
	m.xattrs[opaqueXattr] = "y"
	return &m
}

// merge is what two trees look like, one above the other. Neither is changed.
func merge(below, above *node) *node {
	switch {
	case above.whiteout:
		return nil
	case !above.isDir():
		return above
	case above.opaque || !below.isDir():
		below = nil
	}
	merged := &node{meta: above.meta, layer: above.layer, entry: above.entry, children: map[string]*node{}}
	if below != nil {
		maps.Copy(merged.children, below.children)
	}
	for name, n := range above.children {
		if n = merge(below.child(name), n); n != nil {
			merged.children[name] = n
		} else {
			delete(merged.children, name)
		}
	}
	return merged
}
