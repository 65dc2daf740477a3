package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"banger/internal/archive"
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
func seed(to, part, from string) (err error) {
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(part))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := pour(root, from, archive.ExtractOptions{Name: filepath.Base(part)}); err != nil {
		return err
	}
	return os.Rename(part, to)
}

// pour copies what is in the directory from, and in no other file system, into a root.
func pour(root *os.Root, from string, o archive.ExtractOptions) error {
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(archive.Write(w, from, archive.WriteOptions{OneFileSystem: true, Xattrs: true}))
	}()
	o.Owners, o.Devices = true, true
	return errors.Join(archive.Extract(root, r, o), r.Close())
}

// Where fill mounts the disk that it fills and, where there are several layers, what
// they are together.
const (
	fillMount = "/fill"
	flatMount = "/flat"
)

// fill copies what the layers, mounted at the directories lower, have onto an empty
// disk, and unmounts it: then it is complete.
func fill(device string, lower []string) (err error) {
	from := lower[0]
	if len(lower) > 1 {
		if from, err = directory("", strings.TrimPrefix(flatMount, "/")); err != nil {
			return err
		}
		if err := linux.Mount("overlay", from, "overlay", true, "lowerdir="+strings.Join(lower, ":")); err != nil {
			return err
		}
	}
	if err := mountDisk(device, fillMount, false, "noinit_itable"); err != nil {
		return err
	}
	if err := copyTree(fillMount, from); err != nil {
		return err
	}
	return linux.Unmount(fillMount)
}

// copyTree copies what is in the directory from, and what that itself is, to the
// directory to.
func copyTree(to, from string) (err error) {
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := pour(root, from, archive.ExtractOptions{Quick: true}); err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		err = os.Chown(to, int(st.Uid), int(st.Gid))
	}
	return errors.Join(err, os.Chmod(to, info.Mode()), os.Chtimes(to, info.ModTime(), info.ModTime()))
}

// growPatience is how long a kernel may take to see that a disk has grown.
const growPatience = 10 * time.Second

// awaitSizes waits until the disks in a directory as /sys/class/block are as large as they
// are to be, in bytes.
func awaitSizes(dir string, sizes map[string]int64) error {
	for name, size := range sizes {
		for end := time.Now().Add(growPatience); ; time.Sleep(5 * time.Millisecond) {
			has, err := linux.BlockSize(filepath.Join(dir, filepath.Base(name)))
			if err != nil {
				return err
			}
			if has >= size/512*512 { // a device has whole sectors
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("disk %s: the kernel has not seen that it has %d bytes", name, size)
			}
		}
	}
	return nil
}

// growDisks lets the file systems of the VM's own disks fill their disks.
func growDisks() error {
	var errs []error
	for _, dir := range []string{"/", upperMount, workMount} {
		// Which disks there are depends on the VM; below an overlay as root there is none at all.
		if err := linux.GrowExt4(dir); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
