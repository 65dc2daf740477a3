package linux

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Jail is all that a program gets to see of its host. It is in mount, process,
// network and IPC namespaces of its own; its root is a small file system in memory
// that holds what is named here and cannot be written to; it has no capabilities and
// can get none. Whatever else it is to use it is handed as open files. The namespaces
// go with the program: nothing of them has to be given back. See namespaces(7),
// capabilities(7).
type Jail struct {
	UID     uint32   // also its only group; not 0
	Root    string   // a directory, over which the jail's root is mounted where it is made; outside it nothing changes
	See     []string // absolute paths of files and trees that it sees, read-only; a link stands for itself
	Devices []string // absolute paths of character devices that it may use
}

// Start starts cmd, whose paths are those inside, in the jail.
//
// The namespaces are made by a thread that ends afterwards and whose child the program
// is. So no program of ours runs in between.
func (j Jail) Start(cmd *exec.Cmd) error {
	if j.UID == 0 {
		return errors.New("confine process: it must not be root's")
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: j.UID, Gid: j.UID}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	return onThread(func() error {
		if err := j.enter(); err != nil {
			return fmt.Errorf("confine process: %w", err)
		}
		return cmd.Start()
	})
}

// enter puts the calling thread, which can never come back, into the jail.
func (j Jail) enter() error {
	if err := separate(unix.CLONE_NEWNET | unix.CLONE_NEWIPC); err != nil {
		return err
	}
	if err := unix.Mount("jail", j.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=256"); err != nil {
		return fmt.Errorf("mount its root: %w", err)
	}
	for _, path := range j.See {
		if err := j.show(path); err != nil {
			return fmt.Errorf("show it %s: %w", path, err)
		}
	}
	for _, path := range j.Devices {
		if err := j.device(path); err != nil {
			return fmt.Errorf("give it %s: %w", path, err)
		}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, j.Root, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("protect its root: %w", err)
	}
	// pivot_root(2), "pivot_root(".", ".")": the old root comes to lie over the new one.
	if err := unix.Chdir(j.Root); err != nil {
		return fmt.Errorf("enter its root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return dropPrivileges()
}

// separate takes the calling thread to a mount namespace of its own, from which no mount
// reaches the host, and to the other namespaces, and has it hand on no file but the first three.
func separate(others int) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | others); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	// Files that the process got from whoever started it may lack the flag.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep files from it: %w", err)
	}
	unix.Umask(0o022) // of this thread alone by now
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

// show lets a file, a tree or a link of the host appear in the jail, where it lies on
// the host.
func (j Jail) show(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	inside := filepath.Join(j.Root, path)
	if _, err := os.Lstat(inside); err != nil { // it may be in a tree that is shown already
		if err := os.MkdirAll(filepath.Dir(inside), 0o755); err != nil {
			return err
		}
		switch {
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, inside)
		case info.IsDir():
			err = os.Mkdir(inside, 0o755)
		default:
			err = os.WriteFile(inside, nil, 0o444)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Mount(path, inside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	return unix.MountSetattr(unix.AT_FDCWD, inside, unix.AT_RECURSIVE, attr)
}

// device makes a device node that is the jail's own.
func (j Jail) device(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return errors.New("it is no character device")
	}
	inside := filepath.Join(j.Root, path)
	if err := os.MkdirAll(filepath.Dir(inside), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(inside, unix.S_IFCHR|0o600, int(st.Rdev)); err != nil {
		return fmt.Errorf("make device: %w", err)
	}
	return os.Chown(inside, int(j.UID), int(j.UID))
}

// dropPrivileges takes from the calling thread what its children could get back:
// they can gain no capability by executing a program, whatever its file says. What it
// has itself it needs to become somebody else, which ends that.
func dropPrivileges() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // there are no more
			return nil
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
}
