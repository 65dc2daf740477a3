// Package disk makes the disks that belong to one VM, which begin as an empty
// ext4: the upper, the writable part of its root, which the agent lays over the
// image's layers, and the work disk, which the agent mounts at /root and which
// outlives the root. What is in a disk is the guest's: the host never looks. A
// disk grows by its file growing; the agent has the file system follow.
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
)

// MinSize is the least size, in bytes, of a disk.
const MinSize = 16 << 20

// Spec is the Spec of a disk's row.
type Spec struct {
	Size int64 // bytes, at first
}

// Disks is a resource.Kind of disks: files vms/<id>/<kind>-<random>.ext4 below the
// state directory, whose directory exists. They survive a boot.
type Disks struct {
	kind     string
	stateDir string
	mu       sync.Mutex // held while a template is made or copied
}

// New returns the kind, KindUpper or KindWork, for the disks below stateDir.
func New(kind, stateDir string) *Disks { return &Disks{kind: kind, stateDir: stateDir} }

// Name returns a name that no disk has ever had, for a disk in the directory dir.
func (d *Disks) Name(dir string) string {
	return path.Join(dir, d.kind+"-"+resource.RandomName(4)+".ext4")
}

// Kind implements resource.Kind.
func (d *Disks) Kind() string { return d.kind }

// Volatile implements resource.Kind.
func (d *Disks) Volatile() bool { return false }

// pattern matches the names of this kind's disks, those of earlier versions too.
func (d *Disks) pattern() string { return "vms/*/" + d.kind + "*.ext4" }

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

// Acquire makes an empty ext4 of the size in the ref's Spec, rounded down to
// whole blocks of 4 KiB, sparse. What an earlier attempt left is made anew. Errors
// are unavailable where mke2fs is missing, no_space, and invalid for a size that is
// too small.
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
