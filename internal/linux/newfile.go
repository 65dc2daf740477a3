package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NewFile is a small file that is to be made in as few system calls as it takes.
type NewFile struct {
	Mode     uint32 // as in chmod(2)
	Mask     uint32 // bits that a file does not get when it is made: see CreateMask
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
	mode := uint32(0o600)
	if !n.Owned && n.Mode&^0o777 == 0 && n.Mode&n.Mask == 0 {
		mode = n.Mode
	}
	fd, err := unix.Openat(in, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	err = errors.Join(n.fill(fd, mode), unix.Close(fd))
	if err != nil {
		return &fs.PathError{Op: "write", Path: name, Err: errors.Join(err, unix.Unlinkat(in, name, 0))}
	}
	return nil
}

// fill completes a file that was made with a mode.
func (n NewFile) fill(fd int, mode uint32) error {
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
	if n.Mode != mode || mode&n.Mask != 0 {
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

// CreateMask is those permissions that a new file in a directory may lack although it
// was to be made with them: by the process's umask(2), or by an access control list that
// new files there get (acl(5)).
func CreateMask(dir *os.File) uint32 {
	_, err := unix.Fgetxattr(int(dir.Fd()), "system.posix_acl_default", nil)
	if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return 0o777
	}
	return umask()
}

// umask is that of this process, as proc_pid_status(5) has it: to ask umask(2) is to
// change it.
var umask = sync.OnceValue(func() uint32 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	for line := range strings.Lines(string(text)) {
		if octal, ok := strings.CutPrefix(line, "Umask:"); ok {
			if mask, err := strconv.ParseUint(strings.TrimSpace(octal), 8, 32); err == nil {
				return uint32(mask)
			}
		}
	}
	return 0o777
})

// setTimes is futimens(3): utimensat(2) of an open file.
func setTimes(fd int, times []unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(unsafe.SliceData(times))), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// MakeFIFO makes a named pipe that only its owner may use; fifo(7).
func MakeFIFO(path string) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &fs.PathError{Op: "make pipe", Path: path, Err: err}
	}
	return nil
}
