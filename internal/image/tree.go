package image

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"banger/api"
)

const (
	maxComponent = 255   // NAME_MAX
	maxPath      = 4096  // PATH_MAX
	maxTarget    = 4095  // ext4 keeps a link's target in one block
	maxLinks     = 65000 // EXT4_LINK_MAX
	maxHops      = 40    // MAXSYMLINKS
	maxNames     = 256 << 20
)

// node is what the filter remembers of an inode; hard links share one.
type node struct {
	children map[string]*node // of a directory; nil elsewhere
	target   string           // of a symbolic link
	links    int              // of a directory: its subdirectories
	attrs    int              // bytes of its extended attributes on the disk
}

func newDir() *node { return &node{children: map[string]*node{}} }

// tree is what has been put into the file system so far. Its names are bounded in
// number by the caller and in bytes by itself.
type tree struct {
	root  *node
	names int64 // bytes of names and targets
}

func newTree() *tree {
	t := &tree{root: newDir()}
	t.root.children["lost+found"] = newDir() // the writer makes it
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

// place is where a path leads, its last component not followed.
type place struct {
	dir     *node  // the directory, as far as it exists
	path    string // of dir, "" for the root
	missing []string
	base    string // the last component; "" for the root
	node    *node  // what is there; nil where nothing is
}

// find walks a clean path as the kernel would in an unpacked tree: through symbolic
// links that stay below their own directory. Others are refused, as tar -x refuses
// to unpack anything through them.
func (t *tree) find(name string) (place, error) {
	if name == "" {
		return place{dir: t.root, node: t.root}, nil
	}
	at := place{dir: t.root}
	todo := strings.Split(name, "/")
	own := len(todo) // so many of its last components are of the name, not of a link
	for hops := 0; len(todo) > 1; {
		c := todo[0]
		todo = todo[1:]
		if c == "" || c == "." {
			continue
		}
		n := at.dir.children[c]
		switch {
		case n == nil && len(todo) >= own:
			return place{}, fmt.Errorf("it is below a symbolic link to %s, which is not there", quote(path.Join(at.path, c)))
		case n == nil:
			at.missing, at.base = append([]string{c}, todo[:len(todo)-1]...), todo[len(todo)-1]
			return at, nil
		case n.children != nil:
			at.dir, at.path = n, path.Join(at.path, c)
		case n.target == "":
			return place{}, fmt.Errorf("it is below %s, which is not a directory", quote(path.Join(at.path, c)))
		case path.IsAbs(n.target) || slices.Contains(strings.Split(n.target, "/"), ".."):
			return place{}, fmt.Errorf("it is below %s, a symbolic link to %s", quote(path.Join(at.path, c)), quote(n.target))
		default:
			if hops++; hops > maxHops {
				return place{}, errors.New("it is below too many symbolic links")
			}
			own = min(own, len(todo))
			todo = append(strings.Split(n.target, "/"), todo...)
		}
	}
	at.base = todo[0]
	at.node = at.dir.children[at.base]
	return at, nil
}

// name is the path that a place has in the file system.
func (p place) name() string {
	return path.Join(p.path, path.Join(p.missing...), p.base)
}

// put adds n at a place where nothing is. It makes the missing parents, and returns
// their paths.
func (t *tree) put(at place, n *node) (parents []string, err error) {
	dir, name := at.dir, at.path
	for _, c := range at.missing {
		child := newDir()
		if err := t.add(dir, c, child); err != nil {
			return nil, err
		}
		dir, name = child, path.Join(name, c)
		parents = append(parents, name)
	}
	return parents, t.add(dir, at.base, n)
}

func (t *tree) add(dir *node, name string, n *node) error {
	if t.names += int64(len(name)); t.names > maxNames {
		return fmt.Errorf("archive has more than %d bytes of names", int64(maxNames))
	}
	if n.children != nil {
		if dir.links++; dir.links > maxLinks-2 {
			return fmt.Errorf("its directory has more than %d directories", maxLinks-2)
		}
	}
	dir.children[name] = n
	return nil
}

// What the writer has for extended attributes: the rest of an inode, and a block.
const (
	maxXattrName = 255 // XATTR_NAME_MAX
	inodeXattrs  = 256 - 152 - 8
	blockXattrs  = 4096 - 36
	xattrPrefix  = "SCHILY.xattr."
)

// copyXattrs keeps user.* and security.*, and returns the bytes that they take. POSIX
// ACLs are dropped, for the writer would store them in the form of the system call,
// which is not that of the disk; what steers an overlay is refused.
func copyXattrs(to, from map[string]string) (taken int, err error) {
	inode, block := inodeXattrs, blockXattrs
	for _, key := range slices.Sorted(maps.Keys(from)) {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		switch {
		case !ok || name == "system.posix_acl_access" || name == "system.posix_acl_default":
			continue
		case len(name) > maxXattrName || strings.ContainsRune(name, 0) || name == "user." || name == "security.":
			return 0, errors.New("an extended attribute has a bad name")
		case strings.HasPrefix(name, "user.overlay."), !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "security."):
			return 0, fmt.Errorf("extended attribute %s is not allowed", quote(name))
		}
		_, rest, _ := strings.Cut(name, ".") // the prefix is a number on the disk
		size := (len(rest)+3)&^3 + 16 + (len(from[key])+3)&^3
		switch {
		case size <= inode:
			inode -= size
		case size <= block:
			block -= size
		default:
			return 0, fmt.Errorf("extended attribute %s: the attributes of a file have no more than %d bytes", quote(name), blockXattrs)
		}
		taken += size
		to[key] = from[key]
	}
	return taken, nil
}

// invalid is the refusal of an entry.
func invalid(entry string, err error) error {
	e := api.Errorf(api.CodeInvalid, "entry %s: %w", quote(entry), err)
	if errors.Is(err, errTwice) {
		return e.WithHint("an archive made with tar --append: unpack it with tar -x, as root, and import the tar -c of the result")
	}
	return e
}

// quote makes a stranger's name fit for a message.
func quote(name string) string {
	const most = 300
	if len(name) > most {
		return strconv.Quote(name[:most]) + "..."
	}
	return strconv.Quote(name)
}
