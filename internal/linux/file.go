package linux

import (
	"errors"
	"fmt"
	"io"
	"os"

	"banger/internal/failpoint"

	"golang.org/x/sys/unix"
)

// MemFile returns a file that lives in memory and has no path; memfd_create(2). Name
// is what /proc shows.
func MemFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// CopySparse copies the file src to dst, which must not exist, with its holes.
// On an error no dst is left.
func CopySparse(dst, src string) (err error) {
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
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			err = errors.Join(fmt.Errorf("copy %s to %s: %w", src, dst, err), os.Remove(dst))
		}
	}()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	if err := failpoint.Pass("file", "sized"); err != nil {
		return err
	}
	for off := int64(0); off < info.Size(); {
		data, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, hole-data)); err != nil {
			return err
		}
		if err := failpoint.Pass("file", "copied"); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

// Allocated returns the bytes that a file takes on the disk.
func Allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Blocks * 512, nil
}

// SyncFile has what was written to a file or a block device, or made in a directory, be
// on the disk.
func SyncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
