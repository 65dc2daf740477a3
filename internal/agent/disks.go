package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

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
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(archive.Write(w, from, archive.WriteOptions{OneFileSystem: true, Xattrs: true}))
	}()
	err = archive.Extract(root, r, archive.ExtractOptions{Name: filepath.Base(part), Owners: true, Devices: true})
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	return os.Rename(part, to)
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
