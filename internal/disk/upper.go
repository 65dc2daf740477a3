// Package disk makes the disks that belong to one VM. An upper is the writable
// part of its root: an empty ext4 that the agent lays over the image's layers.
package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"banger/api"
	"banger/internal/resource"
)

// upperKind is the word for uppers in the ledger.
const upperKind = "upper"

// minUpper is the least size, in bytes, that mke2fs makes a useful file system of.
const minUpper = 16 << 20

// seekData and seekHole are SEEK_DATA and SEEK_HOLE of lseek(2).
const (
	seekData = 3
	seekHole = 4
)

// UpperSpec is the Spec of an upper's row.
type UpperSpec struct {
	Size int64 // bytes
}

// Upper is the resource.Kind "upper": files vms/<id>/upper.ext4 below the state
// directory, whose directory exists. They survive a boot.
type Upper struct {
	stateDir string
	mu       sync.Mutex // one maker of templates at a time
}

// NewUpper returns the kind for the uppers below stateDir.
func NewUpper(stateDir string) *Upper { return &Upper{stateDir: stateDir} }

// Kind implements resource.Kind.
func (u *Upper) Kind() string { return upperKind }

// Volatile implements resource.Kind.
func (u *Upper) Volatile() bool { return false }

func (u *Upper) path(name string) (string, error) {
	if ok, err := filepath.Match("vms/*/upper.ext4", name); err != nil || !ok || !filepath.IsLocal(name) {
		return "", fmt.Errorf("upper %q: not a name of the form vms/<id>/upper.ext4", name)
	}
	return filepath.Join(u.stateDir, name), nil
}

// Acquire makes an empty ext4 of the size in the ref's UpperSpec, sparse. What an
// earlier attempt left is made anew. Errors are unavailable where mke2fs is
// missing, no_space, and invalid for a size that is too small.
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
	template, err := u.template(ctx, spec.Size)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	if err := copySparse(path, template); err != nil {
		return errors.Join(diskError(path, err), removeIfThere(path))
	}
	return nil
}

// template returns the path of the cached empty file system of that size.
func (u *Upper) template(ctx context.Context, size int64) (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	dir := filepath.Join(u.stateDir, "cache")
	path := filepath.Join(dir, fmt.Sprintf("upper-%d.ext4", size))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	mke2fs, err := lookMke2fs()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", diskError(path, err)
	}
	part := path + ".part"
	defer os.Remove(part)
	if err := os.WriteFile(part, nil, 0o600); err != nil {
		return "", diskError(part, err)
	}
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-m", "0",
		"-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard", part, strconv.FormatInt(size>>10, 10)+"k")
	if out, err := cmd.CombinedOutput(); err != nil {
		reason := strings.Join(strings.Fields(string(out)), " ")
		if strings.Contains(reason, syscall.ENOSPC.Error()) || strings.Contains(reason, "No space left") {
			return "", diskError(part, syscall.ENOSPC)
		}
		return "", fmt.Errorf("create disk %s: mke2fs: %w: %s", part, err, reason)
	}
	if err := os.Rename(part, path); err != nil {
		return "", diskError(path, err)
	}
	return path, nil
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

// copySparse copies what is not a hole in src to the new file dst.
func copySparse(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyData(out, in, info.Size()), out.Close())
}

func copyData(out, in *os.File, size int64) error {
	if err := out.Truncate(size); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := in.Seek(end, seekData)
		if errors.Is(err, syscall.ENXIO) { // no data from there on
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = in.Seek(start, seekHole); err != nil {
			return err
		}
		if _, err := in.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, start), io.LimitReader(in, end-start)); err != nil {
			return err
		}
	}
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
