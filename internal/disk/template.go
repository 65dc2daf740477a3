package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
	"banger/internal/space"
)

// keptTemplates is how many empty file systems are kept for the next disk of their size.
const keptTemplates = 8

// template returns the path of the cached empty file system of that size.
func (d *Disks) template(ctx context.Context, size int64) (string, error) {
	dir := filepath.Join(d.stateDir, "cache")
	path := filepath.Join(dir, fmt.Sprintf("%s-%d.ext4", d.kind, size))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", diskError(path, err)
	}
	empty, err := makeExt4(ctx, size, d.inodeRatio())
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
		err = failpoint.Pass("template", "copied")
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err == nil {
		err = failpoint.Pass("template", "renamed")
	}
	if err != nil {
		return "", diskError(path, err)
	}
	return path, dropTemplates(filepath.Join(dir, d.kind+"-*.ext4"), path)
}

// baseInodeRatio is for how many bytes a base, and what grows out of it, has an inode;
// mke2fs(8), -i.
const baseInodeRatio = 8 << 10

// BaseSize returns how many bytes the file system needs that holds so many bytes of
// content in so many files and directories, with a journal and room for the copying.
func BaseSize(content, entries int64) int64 {
	const mib = 1 << 20
	size := max(content+content/8, (entries+entries/8)*baseInodeRatio) + 96*mib
	return (size + mib - 1) / mib * mib
}

// inodeRatio is for how many bytes a disk has an inode.
func (d *Disks) inodeRatio() int {
	if d.kind == KindBase {
		return baseInodeRatio
	}
	return 16 << 10
}

// makeExt4 returns a file in memory that holds an empty ext4. In memory, because
// mke2fs reports a full disk in words alone, and our own copy of it by its errno.
func makeExt4(ctx context.Context, size int64, inodeRatio int) (*os.File, error) {
	mke2fs, err := lookMke2fs()
	if err != nil {
		return nil, err
	}
	file, err := linux.MemFile("ext4")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-i", strconv.Itoa(inodeRatio),
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

// dropTemplates removes the oldest files that match pattern, but never keep, until
// no more than keptTemplates are left.
func dropTemplates(pattern, keep string) error {
	files, err := filepath.Glob(pattern)
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
		return api.Errorf(api.CodeNoSpace, "create disk %s: %w", path, err).WithHint("%s", space.Hint)
	}
	return fmt.Errorf("create disk %s: %w", path, err)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
