// Package disk makes the disks that belong to one VM. Files that begin as an empty
// ext4: the upper, the writable part of its root, which the agent lays over the
// image's layers, and the work disk, which the agent mounts at /root and which
// outlives the root. And, where the root is to be one block device, a snapshot of
// the image's base by device-mapper (snapshot.go), for which a file takes what is
// written. What is in a disk is the guest's: the host never looks. A disk grows by
// its file growing; the agent has the file system follow.
package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/resource"
)

// The words for the kinds of disks in the ledger.
const (
	KindUpper = "upper"
	KindWork  = "work"
	KindBase  = "base" // of an image, while it is being filled
	KindCow   = "cow"  // the copy-on-write file of a snapshot; no ext4
)

// MinSize is the least size, in bytes, of a disk.
const MinSize = 16 << 20

// Spec is the Spec of a disk's row.
type Spec struct {
	Size int64  // bytes, at first
	Base string `json:",omitempty"` // of a KindCow: the file below the state directory that it belongs to
}

// Disks is a resource.Kind of disks: files vms/<id>/<kind>-<random>.<suffix> below the
// state directory, whose directory exists. They survive a boot.
type Disks struct {
	kind     string
	stateDir string
	mu       sync.Mutex // held while a template is made or copied
}

// New returns the kind, one of the words above, for the disks below stateDir.
func New(kind, stateDir string) *Disks { return &Disks{kind: kind, stateDir: stateDir} }

// Name returns a name that no disk has ever had, for a disk in the directory dir.
func (d *Disks) Name(dir string) string {
	return path.Join(dir, d.kind+"-"+resource.RandomName(4)+d.suffix())
}

func (d *Disks) suffix() string {
	if d.kind == KindCow {
		return ".img"
	}
	return ".ext4"
}

// Kind implements resource.Kind.
func (d *Disks) Kind() string { return d.kind }

// Volatile implements resource.Kind.
func (d *Disks) Volatile() bool { return false }

// pattern matches the names of this kind's disks, those of earlier versions too.
func (d *Disks) pattern() string { return "vms/*/" + d.kind + "*" + d.suffix() }

// Path returns the absolute path of the disk called name, which must be one that
// Name has given.
func (d *Disks) Path(name string) (string, error) {
	if ok, err := path.Match(d.pattern(), name); err != nil || !ok || path.Clean(name) != name {
		return "", fmt.Errorf("disk %q: its name is not of the form %s", name, d.pattern())
	}
	return filepath.Join(d.stateDir, filepath.FromSlash(name)), nil
}

// Grow gives the disk called name a size, in bytes, which must not be less than the
// one that it has, and returns its path. It changes the file alone.
func (d *Disks) Grow(name string, size int64) (string, error) {
	file, err := d.Path(name)
	if err != nil {
		return "", err
	}
	info, err := os.Lstat(file)
	switch {
	case err != nil:
		return "", fmt.Errorf("grow disk: %w", err)
	case size < info.Size():
		return "", api.Errorf(api.CodeInvalid, "grow disk %s: it has %d bytes already and cannot shrink to %d", file, info.Size(), size)
	}
	if err = os.Truncate(file, size); err == nil {
		err = failpoint.Pass(d.kind, "grown")
	}
	if err != nil {
		return "", fmt.Errorf("grow disk: %w", err)
	}
	return file, nil
}

// Acquire makes an empty ext4, or of KindCow an empty file, of the size in the ref's
// Spec, rounded down to whole blocks of 4 KiB, sparse. What an earlier attempt left is
// made anew. Errors are unavailable where mke2fs is missing, no_space, and invalid for
// a size that is too small.
func (d *Disks) Acquire(ctx context.Context, ref resource.Ref) error {
	file, err := d.Path(ref.Name)
	if err != nil {
		return err
	}
	var spec Spec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return fmt.Errorf("create disk %s: %w", file, err)
	}
	if spec.Size < MinSize {
		return api.Errorf(api.CodeInvalid, "create disk %s: %d bytes are too few, the least is %d", file, spec.Size, MinSize)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("create disk %s: %w", file, err)
	}
	if d.kind == KindCow {
		if err := makeSparse(file, spec.Size); err != nil {
			return diskError(file, err)
		}
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	template, err := d.template(ctx, spec.Size)
	if err != nil {
		return err
	}
	if err := removeIfThere(file); err != nil {
		return fmt.Errorf("create disk %s: %w", file, err)
	}
	if err := linux.CopySparse(file, template); err != nil {
		return diskError(file, err)
	}
	return nil
}

// makeSparse makes an empty file of a size in bytes.
func makeSparse(file string, size int64) error {
	if err := removeIfThere(file); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

// Keep makes a disk that is complete durable and read-only, and moves it into a
// directory below the state directory. Its row is to be released then. It returns the
// new name.
func (d *Disks) Keep(name, dir string) (string, error) {
	file, err := d.Path(name)
	if err != nil {
		return "", err
	}
	kept := path.Join(dir, path.Base(name))
	to := filepath.Join(d.stateDir, filepath.FromSlash(kept))
	err = errors.Join(syncFile(file), os.Chmod(file, 0o440))
	if err == nil {
		err = os.Rename(file, to)
	}
	if err == nil {
		err = failpoint.Pass("base", "kept")
	}
	if err == nil {
		err = syncFile(filepath.Dir(to))
	}
	if err != nil {
		return "", diskError(to, err)
	}
	return kept, nil
}

// Inspect implements resource.Kind.
func (d *Disks) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	file, err := d.Path(ref.Name)
	if err != nil {
		return resource.Absent, err
	}
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return resource.Absent, nil
	case err != nil:
		return resource.Absent, err
	case !info.Mode().IsRegular():
		return resource.Foreign, nil
	}
	return resource.Ours, nil
}

// Release removes the file.
func (d *Disks) Release(ctx context.Context, ref resource.Ref) error {
	presence, err := d.Inspect(ctx, ref)
	if err != nil || presence != resource.Ours {
		return err
	}
	file, err := d.Path(ref.Name)
	if err != nil {
		return err
	}
	return removeIfThere(file)
}

// List implements resource.Kind.
func (d *Disks) List(context.Context) ([]resource.Ref, error) {
	names, err := fs.Glob(os.DirFS(d.stateDir), d.pattern())
	if err != nil {
		return nil, fmt.Errorf("list disks of %s: %w", d.stateDir, err)
	}
	refs := make([]resource.Ref, 0, len(names))
	for _, name := range names {
		refs = append(refs, resource.Ref{Kind: d.kind, Name: name})
	}
	return refs, nil
}
