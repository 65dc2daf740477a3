package linux

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoDisk is wrapped by WholeDisk's error where there is no block device.
var ErrNoDisk = errors.New("it is on no block device")

// WholeDisk returns the number, as MAJOR:MINOR, of the block device on which a file
// lies: of the disk, if it lies on a partition. Of a file system over several devices it
// is the first.
func WholeDisk(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	number := deviceNumber(st.Dev)
	if unix.Major(st.Dev) == 0 { // the file system's own number, as btrfs has
		source, err := mountSource(number)
		if err == nil {
			err = unix.Stat(source, &st)
		}
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			return "", fmt.Errorf("find the disk of %s: %w", path, ErrNoDisk)
		}
		number = deviceNumber(st.Rdev)
	}
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", path, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
		return number, nil
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return "", fmt.Errorf("find the disk of %s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}

func deviceNumber(dev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) }

// mountSource returns what is mounted as the file system with a number;
// proc_pid_mountinfo(5).
func mountSource(number string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) > 2 && fields[2] == number && len(kind) > 1 {
			return kind[1], nil
		}
	}
	return "", fs.ErrNotExist
}
