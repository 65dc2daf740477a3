// Package linux is the host's (and, in the files guest_*.go, the guest's) kernel: cgroups,
// pidfds, sparse files, locks, peer credentials. It is mechanism without policy,
// keeps no state, and is the only package that imports x/sys/unix.
package linux

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// BootID returns the random id of the host's current boot; random(4).
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// MemTotal returns the host's memory in bytes; proc_meminfo(5).
func MemTotal() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("sysinfo: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}

// Inode returns the device and inode number of path.
func Inode(path string) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Dev, st.Ino, nil
}

// maxSocketPath is what fits into sockaddr_un with its NUL; unix(7).
const maxSocketPath = 107

// DialUnix connects to the socket at path, which may be longer than a socket
// address can hold.
func DialUnix(ctx context.Context, path string) (net.Conn, error) {
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// PeerCred returns who is at the other end of a Unix socket; SO_PEERCRED, unix(7).
func PeerCred(c net.Conn) (uid, gid uint32, pid int32, err error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return 0, 0, 0, errors.New("peer credentials: not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) { cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, 0, 0, err
	}
	if serr != nil {
		return 0, 0, 0, fmt.Errorf("peer credentials: %w", serr)
	}
	return cred.Uid, cred.Gid, cred.Pid, nil
}

// ErrLocked is wrapped by Lock's error when another process holds the lock.
var ErrLocked = errors.New("locked")

// Lock takes the lock file at path, for as long as the process lives or the file is
// open, and writes into it who has it. When another process has it, holder is what
// that one wrote, which may still be empty; flock(2).
func Lock(path, self string) (f *os.File, holder string, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		text, _ := io.ReadAll(io.LimitReader(f, 4<<10))
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, string(text), fmt.Errorf("lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(self), 0)
	}
	if err != nil {
		f.Close()
		return nil, "", fmt.Errorf("lock %s: %w", path, err)
	}
	return f, "", nil
}

// LimitFileSize bounds the size of the files that a process of the user uid writes, in
// bytes, by its soft limit, which takes no privilege to raise later; prlimit(2).
func LimitFileSize(pid int, uid uint32, size uint64) error {
	set := func() error {
		var limit unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &limit); err != nil {
			return err
		}
		limit.Cur = size
		return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &limit, nil)
	}
	err := set()
	if errors.Is(err, unix.EPERM) { // root may lack CAP_SYS_RESOURCE; the user itself needs none
		err = asUser(uid, set)
	}
	if err != nil {
		return fmt.Errorf("limit file size of process %d: %w", pid, err)
	}
	return nil
}

// asUser runs fn with the rights of a user, whose only group has the same number.
func asUser(uid uint32, fn func() error) error {
	return onThread(func() error { // the calls of package unix would change the other threads too
		id := uintptr(uid)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
			return fmt.Errorf("become user %d: %w", uid, errno)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
			return fmt.Errorf("become user %d: %w", uid, errno)
		}
		return fn()
	})
}

// mountPoint returns where a file system of the given type is mounted; proc_pid_mountinfo(5).
func mountPoint(fstype string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(before); ok && len(fields) > 4 && strings.HasPrefix(after, fstype+" ") {
			return fields[4], nil
		}
	}
	return "", fmt.Errorf("no %s file system is mounted", fstype)
}

// ListenUnix listens on a socket at path, which may be longer than a socket address
// can hold, with mode 0600.
func ListenUnix(path string) (net.Listener, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// DialUnixIn connects to the socket called name in a directory, and to nothing else: a
// symbolic link or another file of that name, which somebody else may have put there, is
// an error.
func DialUnixIn(ctx context.Context, dir, name string) (net.Conn, error) {
	in, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(in)
	fd, err := unix.Openat(in, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: filepath.Join(dir, name), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("connect to %s: it is no socket", filepath.Join(dir, name))
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}
