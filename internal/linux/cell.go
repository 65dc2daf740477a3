package linux

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Cell is where a program is started that is root's and confines itself then, as
// Firecracker's jailer does. It is in mount, process and IPC namespaces of its own, in
// which a file system in memory, with what is named here, lies over a directory. None of
// it has to be given back: it goes with the program. Once the program is not root's any
// more, it has no capabilities and can get none.
type Cell struct {
	UID   uint32 // who the program will be; owns the devices
	Base  string // the directory
	Size  int64  // bytes that the file system in memory may hold
	Files []CellFile
}

// CellFile is a file of the host's that a cell has, or an empty one where there is no
// path. A block device is made anew.
type CellFile struct {
	Path  string
	Name  string // a path below Cell.Base
	Write bool
}

// Start starts cmd in the cell.
func (c Cell) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	return onThread(func() error {
		if err := c.enter(); err != nil {
			return fmt.Errorf("prepare the jail: %w", err)
		}
		return cmd.Start()
	})
}

// enter prepares the calling thread, which can never go back.
func (c Cell) enter() error {
	if err := separate(unix.CLONE_NEWIPC); err != nil {
		return err
	}
	if err := unix.Mount("jail", c.Base, "tmpfs", unix.MS_NOSUID, fmt.Sprintf("mode=0711,size=%d,nr_inodes=256", c.Size)); err != nil {
		return fmt.Errorf("mount its root: %w", err)
	}
	for _, f := range c.Files {
		if err := c.add(f); err != nil {
			return fmt.Errorf("give it %s: %w", f.Name, err)
		}
	}
	return keepCapabilities()
}

// add lets a file of the host's appear in the cell.
func (c Cell) add(f CellFile) error {
	inside := filepath.Join(c.Base, f.Name)
	if err := os.MkdirAll(filepath.Dir(inside), 0o755); err != nil {
		return err
	}
	if f.Path == "" {
		return os.WriteFile(inside, nil, 0o444)
	}
	var st unix.Stat_t
	if err := unix.Lstat(f.Path, &st); err != nil {
		return err
	}
	attr := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		if err := unix.Mknod(inside, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil {
			return fmt.Errorf("make device: %w", err)
		}
		return os.Chown(inside, int(c.UID), int(c.UID))
	case unix.S_IFDIR:
		if err := os.Mkdir(inside, 0o755); err != nil {
			return err
		}
	case unix.S_IFREG, unix.S_IFIFO:
		if err := os.WriteFile(inside, nil, 0o444); err != nil {
			return err
		}
	default:
		return errors.New("it is no file, directory or block device")
	}
	if !f.Write {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.Mount(f.Path, inside, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return unix.MountSetattr(unix.AT_FDCWD, inside, 0, &unix.MountAttr{Attr_set: attr})
}

// keepCapabilities lets a program of root's that the calling thread executes have the
// thread's capabilities, and nobody have any who is not root any more: they are
// inheritable, and the bounding set, from which others could come, is empty.
func keepCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i := range sets {
		sets[i].Inheritable = sets[i].Permitted
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return dropPrivileges()
}

// InMounts runs fn on a thread that is in the mount namespace of a process, at its root.
func InMounts(pidfd *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // threads share root and directory
			return err
		}
		if err := whileOpen(pidfd, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNS) }); err != nil {
			return fmt.Errorf("enter mount namespace of %s: %w", pidfd.Name(), err)
		}
		return fn()
	})
}

// ProtectMount makes the mount at path read-only, in the namespace of the calling thread.
func ProtectMount(path string) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return &os.PathError{Op: "protect", Path: path, Err: err}
	}
	return nil
}

// BindInto lets a file of the host's appear at a path, where there is a file, in the mount
// namespace of a process; open_tree(2), move_mount(2).
func BindInto(pidfd *os.File, path, inside string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	defer unix.Close(fd)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	return InMounts(pidfd, func() error {
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, inside, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "bind", Path: inside, Err: err}
		}
		return nil
	})
}
