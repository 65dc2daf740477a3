package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ext4IocResizeFS is EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h: _IOW('f', 16, __u64).
const ext4IocResizeFS = 0x40086610

// Bind makes the directory from visible at the directory to as well.
func Bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind on", Path: to, Err: err}
	}
	return nil
}

// BlockSize returns how many bytes the kernel takes a block device to have whose
// directory in sysfs is dir; sysfs-block, "size".
func BlockSize(dir string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // of 512 bytes
	if err != nil {
		return 0, fmt.Errorf("size of disk %s: %w", filepath.Base(dir), err)
	}
	return sectors * 512, nil
}

// GrowExt4 lets the ext4 file system mounted at dir take the whole of its disk,
// while it is in use. It changes nothing where it does already.
func GrowExt4(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return &os.PathError{Op: "look at", Path: dir, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return &os.PathError{Op: "look at", Path: dir, Err: err}
	}
	size, err := BlockSize(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev)))
	if err != nil {
		return fmt.Errorf("grow file system of %s: %w", dir, err)
	}
	blocks := uint64(size / fs.Bsize)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4IocResizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return &os.PathError{Op: "grow file system", Path: dir, Err: errno}
	}
	return nil
}
