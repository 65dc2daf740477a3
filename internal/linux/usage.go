package linux

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DiskUsage returns the size of the file system at path, and what is used of it, in
// bytes; statfs(2).
func DiskUsage(path string) (total, used int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "look at file system of", Path: path, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// ProcessUsage returns the CPU time that a process has used, in user and system
// mode, and the bytes of memory that it has. See proc_pid_stat(5), fields 14, 15 and
// 24; every Linux that Go knows has 100 ticks in a second.
func ProcessUsage(pid int) (cpu time.Duration, memory int64, err error) {
	fields, err := processStat(pid)
	if err != nil {
		return 0, 0, err
	}
	var values [3]int64
	for i, at := range []int{11, 12, 21} {
		if values[i], err = strconv.ParseInt(fields[at], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("read statistics of process %d: %w", pid, err)
		}
	}
	return time.Duration(values[0]+values[1]) * 10 * time.Millisecond, values[2] * int64(os.Getpagesize()), nil
}

// StartTime returns when a process was started, in clock ticks since the boot, which
// tells it from a later one with its id; proc_pid_stat(5), field 22.
func StartTime(pid int) (uint64, error) {
	fields, err := processStat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// processStat returns the fields of /proc/PID/stat from the third one on.
func processStat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 22 {
		return nil, fmt.Errorf("read statistics of process %d: %d fields", pid, len(fields))
	}
	return fields, nil
}
