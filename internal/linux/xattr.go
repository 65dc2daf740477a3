package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Xattrs returns the extended attributes of a file, not of what it links to; none
// where the file system has none. See xattr(7).
func Xattrs(path string) (map[string]string, error) {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "list extended attributes of", Path: path, Err: err}
	}
	all := map[string]string{}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		size, err := unix.Lgetxattr(path, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, &os.PathError{Op: "read extended attribute " + name + " of", Path: path, Err: err}
		}
		all[name] = string(value[:size])
	}
	return all, nil
}

// SetXattr sets an extended attribute of an open file.
func SetXattr(f *os.File, name, value string) error {
	if err := unix.Fsetxattr(int(f.Fd()), name, []byte(value), 0); err != nil {
		return &os.PathError{Op: "set extended attribute " + name + " of", Path: f.Name(), Err: err}
	}
	return nil
}

// MakeNode makes a device node or a pipe in a directory; kind is the type of an
// fs.FileMode. See mknod(2).
func MakeNode(dir *os.File, name string, kind fs.FileMode, major, minor uint32) error {
	var mode uint32
	switch {
	case kind&fs.ModeNamedPipe != 0:
		mode = unix.S_IFIFO
	case kind&fs.ModeCharDevice != 0:
		mode = unix.S_IFCHR
	case kind&fs.ModeDevice != 0:
		mode = unix.S_IFBLK
	default:
		return fmt.Errorf("make node %s: %v is neither device nor pipe", name, kind)
	}
	if err := unix.Mknodat(int(dir.Fd()), name, mode|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return &os.PathError{Op: "make node", Path: name, Err: err}
	}
	return nil
}
