package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Mount mounts source on target; options are those of mount(8)'s -o that the file
// system itself understands. See mount(2).
func Mount(source, target, fstype string, readOnly bool, options string) error {
	var flags uintptr
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return &os.PathError{Op: "mount " + fstype + " on", Path: target, Err: err}
	}
	return nil
}

// Unmount takes the mount at target away, when all that was written is on its disk.
func Unmount(target string) error {
	if err := unix.Unmount(target, 0); err != nil {
		return &os.PathError{Op: "unmount", Path: target, Err: err}
	}
	return nil
}

// RemountReadOnly makes the mount at target read-only, with its file system.
func RemountReadOnly(target string) error {
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return &os.PathError{Op: "remount read-only", Path: target, Err: err}
	}
	return nil
}

// MoveMount moves the mount at from to the directory to.
func MoveMount(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_MOVE, ""); err != nil {
		return &os.PathError{Op: "move mount to", Path: to, Err: err}
	}
	return nil
}

// MoveRoot makes the mount at dir the root of the mount namespace and of this
// process, as switch_root(8) does.
func MoveRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return &os.PathError{Op: "enter", Path: dir, Err: err}
	}
	if err := MoveMount(dir, "/"); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return &os.PathError{Op: "change root to", Path: dir, Err: err}
	}
	return unix.Chdir("/")
}

// LoadModule loads a kernel module from an uncompressed file; one that is loaded
// already is no error. See finit_module(2).
func LoadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return LoadModuleFile(f)
}

// LoadModuleFile is LoadModule for an open file, which may be a MemFile.
func LoadModuleFile(f *os.File) error {
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "load module", Path: f.Name(), Err: err}
	}
	return nil
}

// ShareMounts makes all mounts propagate to the mount namespaces that are made from
// this one and back, as systemd has it and container engines expect.
// See mount_namespaces(7).
func ShareMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return &os.PathError{Op: "share mounts below", Path: "/", Err: err}
	}
	return nil
}

// SetHostname sets the host's name.
func SetHostname(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name to %q: %w", name, err)
	}
	return nil
}

// Uptime is for how long the kernel has run, sleep included: CLOCK_BOOTTIME of
// clock_gettime(2).
func Uptime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // every kernel that Go runs on has it
	return time.Duration(ts.Nano())
}

// SetClock sets the real-time clock.
func SetClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// AddEntropy mixes b into the kernel's random pool, credits it with all its bits
// and makes the generators reseed. See random(4), RNDADDENTROPY.
func AddEntropy(b []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var info bytes.Buffer
	for _, n := range []int{len(b) * 8, len(b)} {
		_ = binary.Write(&info, binary.NativeEndian, int32(n))
	}
	info.Write(b)
	if err := ioctlBytes(f, unix.RNDADDENTROPY, info.Bytes()); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	return nil
}

// LoopbackUp brings the interface lo up, with which it has its addresses.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// PowerOff syncs and powers the machine off. It returns on an error only.
func PowerOff() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return nil
}

// Restart syncs and has the machine start again. It returns on an error only.
func Restart() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	return nil
}

// Sync writes all dirty pages out.
func Sync() { unix.Sync() }
