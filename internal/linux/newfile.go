package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NewFile is a small file that is to be made in as few system calls as it takes.
type NewFile struct {
	Mode     uint32 // as in chmod(2)
	Owned    bool   // Owner and Group are to be set
	Owner    int
	Group    int
	Content  []byte
	Modified time.Time
}

// Make makes the file as name, which is one element of a path, in a directory. It
// follows no link and replaces nothing: fs.ErrExist. On another error nothing is left.
func (n NewFile) Make(dir *os.File, name string) error {
	in := int(dir.Fd())
	fd, err := unix.Openat(in, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	err = errors.Join(n.fill(fd), unix.Close(fd))
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: errors.Join(err, unix.Unlinkat(in, name, 0))}
	}
	return nil
}

func (n NewFile) fill(fd int) error {
	for left := n.Content; len(left) > 0; {
		wrote, err := unix.Write(fd, left)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		left = left[wrote:]
	}
	if n.Owned {
		if err := unix.Fchown(fd, n.Owner, n.Group); err != nil { // before the mode: it clears setuid
			return err
		}
	}
	if n.Mode != 0o600 {
		if err := unix.Fchmod(fd, n.Mode); err != nil {
			return err
		}
	}
	modified, err := unix.TimeToTimespec(n.Modified)
	if err != nil {
		return fmt.Errorf("its date: %w", err)
	}
	return setTimes(fd, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, modified})
}

// setTimes is futimens(3): utimensat(2) of an open file.
func setTimes(fd int, times []unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(unsafe.SliceData(times))), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
