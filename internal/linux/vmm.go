package linux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePages says how many pages of 2 MiB nobody has yet; hugetlbpage.rst.
const hugePages = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"

// HugePagesFree says why so many bytes of memory cannot be had in pages of 2 MiB; nil
// where they can.
func HugePagesFree(size int64) error {
	text, err := os.ReadFile(hugePages)
	if err != nil {
		return fmt.Errorf("have memory in huge pages: %w", err)
	}
	free, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("have memory in huge pages: %s: %w", hugePages, err)
	}
	const page = 2 << 20
	if need := (size + page - 1) / page; need > free {
		return fmt.Errorf("have %d MiB of memory in huge pages: it takes %d of them, %d are free (vm.nr_hugepages)", size>>20, need, free)
	}
	return nil
}

// CheckIOUring says why a process cannot have an io_uring; nil where it can. See
// io_uring_setup(2).
func CheckIOUring() error {
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return fmt.Errorf("make an io_uring: %w", errno)
	}
	return unix.Close(int(fd))
}

// DigHoles gives the room of a file back that zeros take, of which its content consists
// in blocks of 64 KiB; fallocate(2). Where the file system has no holes it does nothing.
func DigHoles(f *os.File) error {
	const block = 64 << 10
	zeros := make([]byte, block)
	buf := make([]byte, 16*block)
	from, at := int64(-1), int64(0) // the run of zeros that is being read begins at from
	dig := func() error {
		if from < 0 {
			return nil
		}
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, at-from)
		from = -1
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		return err
	}
	for {
		n, err := f.ReadAt(buf, at)
		for rest := buf[:n]; len(rest) > 0; {
			b := rest[:min(block, len(rest))]
			rest = rest[len(b):]
			if !bytes.Equal(b, zeros[:len(b)]) {
				if err := dig(); err != nil {
					return fmt.Errorf("dig holes in %s: %w", f.Name(), err)
				}
			} else if from < 0 {
				from = at
			}
			at += int64(len(b))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := dig(); err != nil {
		return fmt.Errorf("dig holes in %s: %w", f.Name(), err)
	}
	return nil
}
