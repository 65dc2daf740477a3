package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/failpoint"

	"golang.org/x/sys/unix"
)

// loopTries is how often another loop device is tried when somebody else was faster.
const loopTries = 64

// Loop is a loop device to be; loop(4).
type Loop struct {
	Name     string // how it is found again: lo_file_name of its status, at most 63 bytes
	File     string
	ReadOnly bool
	DirectIO bool // past the page cache, where the file's file system can
}

// Attach makes a free loop device the file. Where there are no loop devices at all the
// error is fs.ErrNotExist.
func (l Loop) Attach() (err error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	mode := os.O_RDWR
	if l.ReadOnly {
		mode = os.O_RDONLY
	}
	file, err := os.OpenFile(l.File, mode|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("get a free loop device: %w", err)
		}
		if err = l.configure(fmt.Sprintf("/dev/loop%d", n), mode, file); !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return fmt.Errorf("attach %s to a loop device: %w", l.File, unix.EBUSY)
}

func (l Loop) configure(device string, mode int, file *os.File) error {
	f, err := os.OpenFile(device, mode, 0)
	if err != nil {
		return err
	}
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], l.Name)
	if l.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if l.DirectIO {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &config); err != nil {
		return errors.Join(&os.PathError{Op: "attach " + l.File + " to", Path: device, Err: err}, f.Close())
	}
	return errors.Join(failpoint.Pass("loop", "attached"), f.Close())
}

// LoopNames returns the names, of those that begin with prefix, of all loop devices
// that have a file.
func LoopNames(prefix string) ([]string, error) {
	var names []string
	err := eachLoop(func(_ *os.File, info *unix.LoopInfo64) (more bool, err error) {
		if name := unix.ByteSliceToString(info.File_name[:]); strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
		return true, nil
	})
	return names, err
}

// FindLoop returns the path of the loop device called name; fs.ErrNotExist where
// there is none.
func FindLoop(name string) (device string, err error) {
	err = withLoop(name, func(f *os.File, _ *unix.LoopInfo64) error {
		device = f.Name()
		return nil
	})
	return device, err
}

// HoldLoop opens the loop device called name, which from then on loses its file when
// its last user closes it. Name of the open file is the path of the device.
func HoldLoop(name string) (held *os.File, err error) {
	err = withLoop(name, func(f *os.File, info *unix.LoopInfo64) error {
		if held, err = os.Open(f.Name()); err != nil {
			return err
		}
		info.Flags |= unix.LO_FLAGS_AUTOCLEAR
		err := unix.IoctlLoopSetStatus64(int(f.Fd()), info)
		if err == nil {
			err = failpoint.Pass("loop", "held")
		}
		if err != nil {
			return errors.Join(err, held.Close())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return held, nil
}

// DetachLoop takes the file from the loop device called name, which may be gone
// already. One that is in use loses it when its last user closes it.
func DetachLoop(name string) error {
	err := withLoop(name, func(f *os.File, _ *unix.LoopInfo64) error {
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
			return err
		}
		return failpoint.Pass("loop", "detached")
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// GrowLoop lets the loop device called name have the size that its file has now.
func GrowLoop(name string) error {
	return withLoop(name, func(f *os.File, _ *unix.LoopInfo64) error {
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
			return err
		}
		return failpoint.Pass("loop", "grown")
	})
}

// withLoop calls fn for the loop device called name. It keeps its file meanwhile.
func withLoop(name string, fn func(*os.File, *unix.LoopInfo64) error) error {
	err := error(&fs.PathError{Op: "find", Path: "loop device " + name, Err: fs.ErrNotExist})
	lookErr := eachLoop(func(f *os.File, info *unix.LoopInfo64) (more bool, _ error) {
		if unix.ByteSliceToString(info.File_name[:]) != name {
			return true, nil
		}
		if err = fn(f, info); err != nil {
			err = &fs.PathError{Op: "change", Path: f.Name(), Err: err}
		}
		return false, nil
	})
	return errors.Join(lookErr, err)
}

// eachLoop calls fn for all loop devices that have a file, until it wants no more.
func eachLoop(fn func(*os.File, *unix.LoopInfo64) (more bool, err error)) error {
	attached, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, path := range attached {
		more, err := visitLoop("/dev/"+filepath.Base(filepath.Dir(filepath.Dir(path))), fn)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func visitLoop(device string, fn func(*os.File, *unix.LoopInfo64) (bool, error)) (more bool, err error) {
	f, err := os.Open(device)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return true, nil // it has just lost its file
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return true, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "look at", Path: device, Err: err}
	}
	return fn(f, info)
}

// DiskSize returns the bytes that a file or a block device holds.
func DiskSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	size, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_END)
	if err != nil {
		err = &fs.PathError{Op: "find the size of", Path: path, Err: err}
	}
	return size, errors.Join(err, f.Close())
}
