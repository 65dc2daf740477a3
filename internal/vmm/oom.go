package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// OutOfMemory tells, of the cgroup of a VMM that has ended, whether the kernel killed
// it because memory ran out, and whose memory that was: "out of memory: ...". It is
// empty where that was not so, and where the host's cgroups do not count memory. The
// cgroup must not have been released yet.
func OutOfMemory(cgroup string) string {
	events := counters(filepath.Join(cgroup, "memory.events"))
	switch {
	case events["oom_kill"] == 0:
		return ""
	case events["oom"] == 0: // of this cgroup: it was not its own limit that was met
		return "out of memory: the host had none left, and its kernel ended the VMM"
	}
	limit, err := os.ReadFile(filepath.Join(cgroup, "memory.max"))
	n, perr := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64)
	if err != nil || perr != nil {
		return "out of memory: the VMM needed more than it may have"
	}
	return fmt.Sprintf("out of memory: the VMM needed more than the %d MiB that it may have", n>>20)
}

// counters reads a file of a cgroup that has a name and a number in each line, such as
// memory.events. What cannot be read is not there.
func counters(path string) map[string]int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	values := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				values[name] = n
			}
		}
	}
	return values
}
