package linux

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AwaitExit waits until the child pid has ended and leaves it to be reaped, so
// that its process group can be signalled without hitting a later one.
func AwaitExit(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err
		}
	}
}

// ReapAny waits for any child to end and reaps it; pid 0 with ECHILD where there is none.
func ReapAny() (pid int, err error) {
	for {
		pid, err = unix.Wait4(-1, nil, 0, nil)
		if err != unix.EINTR {
			return max(pid, 0), err
		}
	}
}

// Signal sends a signal, by its name without SIG, to the process group pgid.
func Signal(pgid int, name string) error {
	sig := unix.SignalNum("SIG" + name)
	if sig == 0 {
		return unix.EINVAL
	}
	return unix.Kill(-pgid, sig)
}

// SignalNumber is the number of a signal as images write it: TERM, SIGTERM, 15,
// RTMIN+3 or RTMAX-1; that of TERM where there is no such signal. See signal(7).
func SignalNumber(name string) int {
	const rtMin, rtMax = 34, 64 // of glibc, which is what programs go by
	name = strings.TrimPrefix(name, "SIG")
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= rtMax {
		return n
	}
	for prefix, base := range map[string]int{"RTMIN": rtMin, "RTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset, err := strconv.Atoi(rest)
		if n := base + offset; (err == nil || rest == "") && n >= rtMin && n <= rtMax {
			return n
		}
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return int(sig)
	}
	return int(unix.SIGTERM)
}

// SignalProcess sends a signal, by its number, to one process.
func SignalProcess(pid, signal int) error { return unix.Kill(pid, unix.Signal(signal)) }

// SignalAll sends a signal, by its name without SIG, to all processes but init
// and the caller. See kill(2), pid -1.
func SignalAll(name string) error { return unix.Kill(-1, unix.SignalNum("SIG"+name)) }

// SignalName is the name, without SIG, of a signal's number.
func SignalName(n int) string { return strings.TrimPrefix(unix.SignalName(unix.Signal(n)), "SIG") }

// Executable says whether the process's effective user may execute path. See faccessat(2).
func Executable(path string) error {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

// PollableDup duplicates f as a file whose reads and writes take deadlines.
func PollableDup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "dup", Path: f.Name(), Err: err}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "set nonblocking", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func ioctlBytes(f *os.File, request uintptr, b []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	runtime.KeepAlive(b)
	if errno != 0 {
		return errno
	}
	return nil
}

// SetWindowSize sets the size of the terminal of which f is the master, in characters.
func SetWindowSize(f *os.File, rows, cols uint16) error {
	return whileOpen(f, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// TerminalDry says whether the terminal of which f is the master takes its input by
// lines and has none to read, and which character then is the end of the input.
// See ioctl_tty(2), TIOCGPTPEER.
func TerminalDry(f *os.File) (eof byte, dry bool) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, false
	}
	_ = raw.Control(func(fd uintptr) {
		mode, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil || mode.Lflag&unix.ICANON == 0 {
			return
		}
		flags := uintptr(unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_CLOEXEC)
		slave, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, flags)
		if errno != 0 {
			return
		}
		defer func() { _ = unix.Close(int(slave)) }()
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(slave), Events: unix.POLLIN}}, 0)
		eof, dry = mode.Cc[unix.VEOF], err == nil && n == 0
	})
	return eof, dry
}
