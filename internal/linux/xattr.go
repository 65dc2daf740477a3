package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Xattrs returns the extended attributes of a file, not of what it links to; none
// where the file system has none. See xattr(7).
func Xattrs(path string) (map[string]string, error) {
	n, err := unix.Llistxattr(path, nil) // most files have none
	var names []byte
	if err == nil && n > 0 {
		names = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Llistxattr(path, names)
	}
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

// SetModified sets when the file called name in a directory was last changed, or
// the open file dir itself where name is empty; a symbolic link is not followed.
// The time of the last access is left alone. See utimensat(2).
func SetModified(dir *os.File, name string, t time.Time) error {
	modified, err := unix.TimeToTimespec(t)
	if err != nil {
		return &os.PathError{Op: "set date of", Path: name, Err: err}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, modified}
	if name == "" {
		name = fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
		err = unix.UtimesNanoAt(unix.AT_FDCWD, name, times, 0)
	} else {
		err = unix.UtimesNanoAt(int(dir.Fd()), name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "set date of", Path: name, Err: err}
	}
	return nil
}

// Room returns the bytes that an unprivileged user may still write to the file
// system of an open file; statfs(2).
func Room(f *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "look at file system of", Path: f.Name(), Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}
