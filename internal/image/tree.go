package image

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"banger/api"
)

const (
	maxComponent = 255   // NAME_MAX
	maxPath      = 4096  // PATH_MAX
	maxDepth     = 256   // directories on the way to a file: each entry costs their number, and more
	maxTarget    = 4095  // ext4 keeps a link's target in one block
	maxLinks     = 65000 // EXT4_LINK_MAX
	maxHops      = 40    // MAXSYMLINKS
)

// What an inode takes of memory while a file system is made, here and in its writer,
// and what one of a layer below takes here; measured (TestMemoryIsBounded), names and such
// excepted, which are counted.
const (
	fileCost, dirCost           = 500, 1400
	lowerFileCost, lowerDirCost = 140, 600
)

// node is what is remembered of an inode; hard links share one.
type node struct {
	children map[string]*node // of a directory; nil elsewhere
	meta     *meta            // of a directory: what a layer above has to repeat; nil for the defaults
	target   string           // of a symbolic link
	links    int              // of a directory: its subdirectories
	attrs    int              // bytes of its extended attributes on the disk

	// What follows is for layers that lie on others.
	layer    int   // which layer of the image it is of, from 0
	entry    int64 // which entry of that layer's archive, from 0; -1 for what the archive only implies
	copied   bool  // a link to a file of a layer below, of which this one gets a copy
	whiteout bool  // nothing is here: it hides what is below
	opaque   bool  // of a directory: nothing below shows through
}

// meta is what a directory has besides its name and contents.
type meta struct {
	mode     int64 // permission bits
	uid, gid int
	date     time.Time
	xattrs   map[string]string // PAX records
}

func newDir() *node { return &node{children: map[string]*node{}} }

func (n *node) isDir() bool { return n != nil && n.children != nil }

// child is what a directory has under a name; nil where that, or the directory, is not there.
func (n *node) child(name string) *node {
	if n == nil {
		return nil
	}
	return n.children[name]
}

// tree is what has been put into the file system of a layer so far, and what the
// layers below it look like from above. Its names are bounded in number by the
// caller and in bytes by itself.
type tree struct {
	root   *node
	below  *node // the merged tree of the layers below; nil where there are none
	rooted bool  // symbolic links lead anywhere within the tree, as though it were /

	memory    int64 // bytes that have been taken for all this
	maxMemory int64
}

// errMemory is that of an archive whose tree takes too much memory.
var errMemory = errors.New("archive takes too much memory")

// take notes that n bytes of memory are taken.
func (t *tree) take(n int) error {
	if t.memory += int64(n); t.memory > t.maxMemory {
		return errMemory
	}
	return nil
}

// weight is what a tree takes of memory, where a file and a directory take so much.
func (n *node) weight(file, dir int64) int64 {
	if n == nil {
		return 0
	}
	if !n.isDir() {
		return file + int64(len(n.target))
	}
	sum := dir
	if n.meta != nil {
		for key, value := range n.meta.xattrs {
			sum += int64(len(key) + len(value))
		}
	}
	for name, child := range n.children {
		sum += int64(len(name)) + child.weight(file, dir)
	}
	return sum
}

func newTree() *tree {
	t := &tree{root: newDir(), maxMemory: defaultMaxMemory}
	t.root.entry = -1
	t.root.children["lost+found"] = &node{children: map[string]*node{}, entry: -1} // the writer makes it
	return t
}

// cleanPath takes "./" and a final "/" off a name; the root is "". It refuses rather
// than resolves what leads elsewhere.
func cleanPath(name string) (clean string, err error) {
	switch {
	case name == "":
		return "", errors.New("empty name")
	case len(name) > maxPath:
		return "", fmt.Errorf("path is longer than %d bytes", maxPath)
	case strings.ContainsRune(name, 0):
		return "", errors.New("name has a NUL")
	case path.IsAbs(name):
		return "", errors.New("absolute path")
	}
	if strings.Count(name, "/") > maxDepth {
		return "", fmt.Errorf("path has more than %d directories", maxDepth)
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." {
			return "", errors.New(`path has a component ".."`)
		}
		if len(c) > maxComponent {
			return "", fmt.Errorf("a component of the path is longer than %d bytes", maxComponent)
		}
	}
	if clean = path.Clean(name); clean == "." {
		clean = ""
	}
	return clean, nil
}

// step is a directory on the way to a place: its node in this layer, and what the
// layers below have there, as far as that is a directory too.
type step struct {
	name       string
	own, below *node
}

// place is where a path leads, its last component not followed.
type place struct {
	way   []step // from the root to the directory that it is in
	base  string // the last component; "" for the root
	node  *node  // what this layer has there; nil where nothing
	below *node  // what the layers below have there
}

// find walks a clean path as the kernel would in an unpacked tree, through symbolic
// links. Where the tree is not rooted, they have to stay below their own directory:
// others are refused, as tar -x refuses to unpack anything through them.
func (t *tree) find(name string) (place, error) {
	at := place{way: []step{{own: t.root, below: t.below}}}
	if name == "" {
		at.node, at.below = t.root, t.below
		return at, nil
	}
	todo := strings.Split(name, "/")
	own := len(todo) // so many of its last components are of the name, not of a link
	for hops := 0; len(todo) > 1; {
		c := todo[0]
		todo = todo[1:]
		dir := at.way[len(at.way)-1]
		switch n, below := dir.own.child(c), dir.below.child(c); {
		case c == "" || c == ".":
		case c == "..":
			at.way = at.way[:max(1, len(at.way)-1)]
		case n == nil && below == nil && len(todo) >= own && !t.rooted:
			return place{}, fmt.Errorf("it is below a symbolic link to %s, which is not there", quote(at.path(c)))
		case n.isDir() || n == nil && (below == nil || below.isDir()):
			if !below.isDir() || n != nil && n.opaque {
				below = nil
			}
			at.way = append(at.way, step{c, n, below})
		default:
			target := cmp.Or(n, below).target
			switch {
			case target == "":
				return place{}, fmt.Errorf("it is below %s, which is not a directory", quote(at.path(c)))
			case path.IsAbs(target) && t.rooted:
				at.way = at.way[:1]
			case !t.rooted && (path.IsAbs(target) || slices.Contains(strings.Split(target, "/"), "..")):
				return place{}, fmt.Errorf("it is below %s, a symbolic link to %s", quote(at.path(c)), quote(target))
			}
			if hops++; hops > maxHops {
				return place{}, errors.New("it is below too many symbolic links")
			}
			own = min(own, len(todo))
			todo = append(strings.Split(target, "/"), todo...)
		}
	}
	at.base = todo[0]
	dir := at.way[len(at.way)-1]
	at.node, at.below = dir.own.child(at.base), dir.below.child(at.base)
	return at, nil
}

// path is the path, in the file system, of a name in the directory of the place.
func (p place) path(name string) string {
	names := make([]string, 0, len(p.way)+1)
	for _, s := range p.way {
		names = append(names, s.name)
	}
	return path.Join(append(names, name)...)
}

// name is the path that a place has in the file system.
func (p place) name() string { return p.path(p.base) }

// implied is a directory that has to be made so that something can be in it.
type implied struct {
	path string
	meta *meta // that of the directory which it is, in a layer below; nil where it is new
}

// put adds n at a place where nothing of this layer is. It makes the missing parents,
// and returns them.
func (t *tree) put(at place, n *node) (parents []implied, err error) {
	if at.base == "" {
		return nil, errors.New("the root cannot be replaced")
	}
	for i := range at.way {
		s := &at.way[i]
		if s.own != nil {
			continue
		}
		s.own = newDir()
		s.own.entry = -1
		if s.below != nil {
			s.own.meta = s.below.meta
		}
		if err := t.add(at.way[i-1].own, s.name, s.own); err != nil {
			return nil, err
		}
		parents = append(parents, implied{place{way: at.way[:i]}.path(s.name), s.own.meta})
	}
	return parents, t.add(at.way[len(at.way)-1].own, at.base, n)
}

func (t *tree) add(dir *node, name string, n *node) error {
	cost := fileCost
	if n.children != nil {
		cost = dirCost
	}
	if err := t.take(cost + len(name)); err != nil {
		return err
	}
	if n.children != nil {
		if dir.links++; dir.links > maxLinks-2 {
			return fmt.Errorf("its directory has more than %d directories", maxLinks-2)
		}
	}
	dir.children[strings.Clone(name)] = n // which would keep the whole path, or header
	return nil
}

// invalid is the refusal of an entry.
func invalid(entry string, err error) error {
	e := api.Errorf(api.CodeInvalid, "entry %s: %w", quote(entry), err)
	if errors.Is(err, errMemory) {
		return e.WithHint(limited, "max_memory")
	}
	if errors.Is(err, errTwice) {
		return e.WithHint("an archive made with tar --append: unpack it with tar -x, as root, and import the tar -c of the result")
	}
	return e.WithHint("the archive is to be made anew, as by tar -C DIRECTORY -c .")
}

// quote makes a stranger's name fit for a message.
func quote(name string) string {
	const most = 300
	if len(name) > most {
		return strconv.Quote(name[:most]) + "..."
	}
	return strconv.Quote(name)
}
