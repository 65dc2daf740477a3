package linux

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Mount mounts a file system; options is the comma-separated data of mount(2).
func Mount(source, target, fstype string, readOnly bool, options string) error {
	var flags uintptr
	if readOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s (%s) at %s: %w", source, fstype, target, err)
	}
	return nil
}

// SwitchRoot makes dir, a mount point, the root of this process and of all that it
// starts. The former root stays below, out of reach.
func SwitchRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("switch root to %s: %w", dir, err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("switch root to %s: %w", dir, err)
	}
	return unix.Chdir("/")
}

// LoadModule loads a kernel module from a file; finit_module(2).
func LoadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

// SetHostname sets the host name; sethostname(2).
func SetHostname(name string) error { return unix.Sethostname([]byte(name)) }

// SetClock sets CLOCK_REALTIME.
func SetClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// PowerOff ends the machine; file systems should be synchronised before.
func PowerOff() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }

// Sync writes all file systems back.
func Sync() { unix.Sync() }

// RemountReadOnly makes the file system mounted at dir read-only, which leaves it
// clean on the disk.
func RemountReadOnly(dir string) error {
	return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// KillAll sends SIGKILL to every process but this one and init; kill(2).
func KillAll() error { return unix.Kill(-1, unix.SIGKILL) }

// Reap waits for any child to end and returns its pid; wait4(2). ok is false when
// there are no children.
func Reap() (pid int, ok bool) {
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err == unix.EINTR {
			continue
		}
		return pid, err == nil
	}
}

// LoopbackUp brings the loopback interface up; netdevice(7).
func LoopbackUp() error {
	if iface, err := net.InterfaceByName("lo"); err == nil && iface.Flags&net.FlagUp != 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
