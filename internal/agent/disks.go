package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"banger/internal/linux"
)

// Where the work disk is mounted in the new root, and the directory of it that is
// bound at /root. The seed becomes that directory when it is complete.
const (
	workMount = "/run/banger/work"
	workRoot  = "root"
	workSeed  = ".root.seed"
)

// mountWork mounts the work disk, seeds its directory from the image's /root at
// the first start, and binds it there.
func mountWork(device string) error {
	if device == "" {
		return nil
	}
	mounted := newRoot + workMount
	if err := mountDisk(device, mounted, false, "noinit_itable"); err != nil {
		return err
	}
	if err := linux.GrowExt4(mounted); err != nil {
		return err
	}
	home, err := directory(newRoot, "root")
	if err != nil {
		return err
	}
	work := filepath.Join(mounted, workRoot)
	if _, err := os.Lstat(work); errors.Is(err, fs.ErrNotExist) {
		if err := seed(work, filepath.Join(mounted, workSeed), home); err != nil {
			return fmt.Errorf("seed the work disk: %w", err)
		}
	}
	return linux.Bind(work, home)
}

// seed copies the directory from to the directory to, which is there wholly or
// not at all.
func seed(to, part, from string) error {
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if err := copyTree(part, from); err != nil {
		return err
	}
	return os.Rename(part, to)
}

// copyTree copies a directory with owners, modes and dates; of what is neither
// file, directory nor symbolic link, nothing.
func copyTree(to, from string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("look at %s: no owner", from)
	}
	switch {
	case info.IsDir():
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := copyTree(filepath.Join(to, e.Name()), filepath.Join(from, e.Name())); err != nil {
				return err
			}
		}
	case info.Mode().IsRegular():
		if err := copyFile(to, from); err != nil {
			return err
		}
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return errors.Join(os.Symlink(target, to), os.Lchown(to, int(owner.Uid), int(owner.Gid)))
	default:
		return nil
	}
	return errors.Join(
		os.Lchown(to, int(owner.Uid), int(owner.Gid)), // before the mode: it clears setuid
		os.Chmod(to, info.Mode()),
		os.Chtimes(to, info.ModTime(), info.ModTime()),
	)
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// growDisks lets the file systems of the VM's own disks fill their disks.
func growDisks() error {
	var errs []error
	for _, dir := range []string{upperMount, workMount} {
		if err := linux.GrowExt4(dir); !errors.Is(err, fs.ErrNotExist) { // which disks there are depends on the VM
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
