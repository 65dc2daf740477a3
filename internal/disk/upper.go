// Package disk makes the disks that belong to one VM. An upper is the writable
// part of its root: an empty ext4 that the agent lays over the image's layers.
package disk

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
)

// upperKind is the word for uppers in the ledger.
const upperKind = "upper"

// minUpper is the least size, in bytes, that mke2fs makes a useful file system of.
const minUpper = 16 << 20

// keptTemplates is how many empty file systems are kept for the next disk of their size.
const keptTemplates = 8

// UpperSpec is the Spec of an upper's row.
type UpperSpec struct {
	Size int64 // bytes
}

// Upper is the resource.Kind "upper": files vms/<id>/upper.ext4 below the state
// directory, whose directory exists. They survive a boot.
type Upper struct {
	stateDir string
	mu       sync.Mutex // held while a template is made or copied
}

// NewUpper returns the kind for the uppers below stateDir.
func NewUpper(stateDir string) *Upper { return &Upper{stateDir: stateDir} }

// Kind implements resource.Kind.
func (u *Upper) Kind() string { return upperKind }

// Volatile implements resource.Kind.
func (u *Upper) Volatile() bool { return false }

func (u *Upper) path(name string) (string, error) {
	if ok, err := filepath.Match("vms/*/upper.ext4", name); err != nil || !ok || filepath.Clean(name) != name {
		return "", fmt.Errorf("upper %q: not a name of the form vms/<id>/upper.ext4", name)
	}
	return filepath.Join(u.stateDir, name), nil
}

// Acquire makes an empty ext4 of the size in the ref's UpperSpec, rounded down to
// whole blocks of 4 KiB, sparse. What an earlier attempt left is made anew. Errors
// are unavailable where mke2fs is missing, no_space, and invalid for a size that is
// too small.
func (u *Upper) Acquire(ctx context.Context, ref resource.Ref) error {
	path, err := u.path(ref.Name)
	if err != nil {
		return err
	}
	var spec UpperSpec
	if err := json.Unmarshal(ref.Spec, &spec); err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	if spec.Size < minUpper {
		return api.Errorf(api.CodeInvalid, "create disk %s: %d bytes are too few, the least is %d", path, spec.Size, minUpper)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	template, err := u.template(ctx, spec.Size)
	if err != nil {
		return err
	}
	if err := removeIfThere(path); err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	if err := linux.CopySparse(path, template); err != nil {
		return diskError(path, err)
	}
	return nil
}

// template returns the path of the cached empty file system of that size.
func (u *Upper) template(ctx context.Context, size int64) (string, error) {
	dir := filepath.Join(u.stateDir, "cache")
	path := filepath.Join(dir, fmt.Sprintf("upper-%d.ext4", size))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", diskError(path, err)
	}
	empty, err := makeExt4(ctx, size)
	if err != nil {
		return "", fmt.Errorf("create disk %s: %w", path, err)
	}
	defer empty.Close()
	part := path + ".part"
	defer os.Remove(part)
	err = removeIfThere(part)
	if err == nil {
		err = linux.CopySparse(part, fmt.Sprintf("/proc/self/fd/%d", empty.Fd()))
	}
	if err == nil {
		err = syncFile(part) // a name must not survive a power cut without its content
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return "", diskError(path, err)
	}
	return path, dropTemplates(dir, path)
}

// makeExt4 returns a file in memory that holds an empty ext4. In memory, because
// mke2fs reports a full disk in words alone, and our own copy of it by its errno.
func makeExt4(ctx context.Context, size int64) (*os.File, error) {
	mke2fs, err := lookMke2fs()
	if err != nil {
		return nil, err
	}
	file, err := linux.MemFile("ext4")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-m", "0",
		"-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard", "/proc/self/fd/3", strconv.FormatInt(size>>10, 10)+"k")
	cmd.ExtraFiles = []*os.File{file} // the first one is descriptor 3
	if out, err := cmd.CombinedOutput(); err != nil {
		file.Close()
		if ctx.Err() != nil { // it was killed for that
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("mke2fs: %w: %s", err, strings.Join(strings.Fields(string(out)), " "))
	}
	return file, nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// dropTemplates removes the oldest templates in dir, but never keep, until no more
// than keptTemplates are left.
func dropTemplates(dir, keep string) error {
	files, err := filepath.Glob(filepath.Join(dir, "upper-*.ext4"))
	if err != nil {
		return err
	}
	files = slices.DeleteFunc(files, func(f string) bool { return f == keep })
	age := func(f string) int64 {
		if info, err := os.Stat(f); err == nil {
			return info.ModTime().UnixNano()
		}
		return 0
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Compare(age(a), age(b)) })
	var errs []error
	for _, f := range files[:max(0, len(files)-(keptTemplates-1))] {
		errs = append(errs, removeIfThere(f))
	}
	return errors.Join(errs...)
}

// lookMke2fs finds mke2fs also where the PATH has no sbin.
func lookMke2fs() (string, error) {
	for _, name := range []string{"mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", api.Errorf(api.CodeUnavailable, "create disk: mke2fs is not installed").
		WithHint("apt-get install e2fsprogs")
}

func diskError(path string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return api.Errorf(api.CodeNoSpace, "create disk %s: %w", path, err).WithHint("remove VMs or images that are not needed")
	}
	return fmt.Errorf("create disk %s: %w", path, err)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Inspect implements resource.Kind.
func (u *Upper) Inspect(_ context.Context, ref resource.Ref) (resource.Presence, error) {
	path, err := u.path(ref.Name)
	if err != nil {
		return resource.Absent, err
	}
	info, err := os.Lstat(path)
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
func (u *Upper) Release(ctx context.Context, ref resource.Ref) error {
	presence, err := u.Inspect(ctx, ref)
	if err != nil || presence != resource.Ours {
		return err
	}
	path, err := u.path(ref.Name)
	if err != nil {
		return err
	}
	return removeIfThere(path)
}

// List implements resource.Kind: every vms/*/upper.ext4.
func (u *Upper) List(context.Context) ([]resource.Ref, error) {
	names, err := fs.Glob(os.DirFS(u.stateDir), "vms/*/upper.ext4")
	if err != nil {
		return nil, fmt.Errorf("list disks of %s: %w", u.stateDir, err)
	}
	refs := make([]resource.Ref, 0, len(names))
	for _, name := range names {
		refs = append(refs, resource.Ref{Kind: upperKind, Name: name})
	}
	return refs, nil
}
