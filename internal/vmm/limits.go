package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/linux"
)

// Limits is what the processes of a cgroup may take together, as far as the host's
// cgroups can limit it. What is 0 has no limit. It is the Spec of a cgroup's row.
type Limits struct {
	Memory int64 // bytes, of page cache too, which gives way; who needs more is killed
	CPU    int   // hundredths of a core
	Tasks  int   // processes and threads
	IO     *IO   // nil: no limit
}

// What a VMM may take beyond what its guest was promised.
const (
	// spareCPU is for the threads that move the bytes of disks and network. Without it
	// they would have the guest's own CPUs stand still.
	spareCPU = 100
	// spareTasks is for QEMU's main loop and its pool of at most 64 threads for disks,
	// and twice as much.
	spareTasks = 128
	// memoryShare is the part of the guest's memory that its page tables, and without KVM
	// the tables of addresses of each CPU, may take beside it: 1/16.
	memoryShare = 16
	// memoryPerCPU is for a CPU's stack, and without KVM for its buffers, in bytes.
	memoryPerCPU = 16 << 20
)

// LimitsFor returns the limits of the VMM of a machine. Its overhead is the driver's
// word. There is no memory.high: it would have a VMM stand still that its guest cannot
// help, and page cache gives way at the limit itself.
func LimitsFor(cpus int, memory, overhead int64) Limits {
	return Limits{
		Memory: memory + memory/memoryShare + int64(cpus)*memoryPerCPU + overhead,
		CPU:    100*cpus + spareCPU,
		Tasks:  cpus + spareTasks,
	}
}

// cpuPeriod is the period in which CPU time is counted, in microseconds: the kernel's own.
const cpuPeriod = 100_000

// apply limits the cgroup in a directory, as far as there are controllers. It may be
// called again, with others.
func (l Limits) apply(dir string) error {
	there, err := controllers(dir)
	if err != nil {
		return err
	}
	for _, set := range []struct{ file, value string }{
		{"memory.max", orMax(l.Memory)},
		{"memory.oom.group", "1"}, // a VMM dies as a whole
		{"cpu.max", fmt.Sprintf("%s %d", orMax(int64(l.CPU)*cpuPeriod/100), cpuPeriod)},
		{"pids.max", orMax(int64(l.Tasks))},
	} {
		controller, _, _ := strings.Cut(set.file, ".")
		if !slices.Contains(there, controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, set.file), []byte(set.value), 0); err != nil {
			return fmt.Errorf("limit cgroup %s: %w", dir, err)
		}
	}
	if err := failpoint.Pass("cgroup", "limited"); err != nil {
		return err
	}
	if l.IO == nil {
		return nil
	}
	return l.IO.Limit(dir)
}

func orMax(n int64) string {
	if n == 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// controllers returns those by which the cgroup in a directory can be limited.
func controllers(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("read the controllers of a cgroup: %w", err)
	}
	return strings.Fields(string(text)), nil
}

// Controllers returns what VMMs can be limited in on this host: of cpu, io, memory and
// pids those that its cgroups (v2) have. Where the older hierarchies have them, it is
// none, and limits are not set.
func (c *Cgroups) Controllers() ([]string, error) {
	there, err := controllers(c.root)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(there, func(name string) bool { return !slices.Contains(wanted, name) }), nil
}

// wanted are the controllers that limit a VMM.
var wanted = []string{"cpu", "io", "memory", "pids"}

// enable lets the children of a cgroup be limited. A controller that the host does not
// let us have stays away, and with it its limits.
func enable(dir string) error {
	there, err := controllers(dir)
	if err != nil {
		return err
	}
	for _, name := range wanted {
		if slices.Contains(there, name) {
			// Each by itself: of several, one that is refused would keep the others away.
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0)
		}
	}
	return nil
}

// IO is what the processes of a cgroup may do with the disk on which a path lies, by the
// second. What is 0 has no limit.
type IO struct {
	Path                string
	ReadBPS, WriteBPS   int64 // bytes
	ReadIOPS, WriteIOPS int64 // requests
}

// Limit limits what the cgroup in a directory does with a disk from now on. Errors are
// unsupported where this host cannot do that.
func (io IO) Limit(dir string) error {
	there, err := controllers(dir)
	if err != nil {
		return err
	}
	if !slices.Contains(there, "io") {
		return errNoIO("the host's cgroups (version 2) have no controller io")
	}
	disk, err := linux.WholeDisk(io.Path)
	if errors.Is(err, linux.ErrNoDisk) {
		return errNoIO(err.Error())
	}
	if err != nil {
		return err
	}
	line := fmt.Sprintf("%s rbps=%s wbps=%s riops=%s wiops=%s", disk, orMax(io.ReadBPS), orMax(io.WriteBPS), orMax(io.ReadIOPS), orMax(io.WriteIOPS))
	if err := os.WriteFile(filepath.Join(dir, "io.max"), []byte(line), 0); err != nil {
		return fmt.Errorf("limit the disk %s of cgroup %s: %w", disk, dir, err)
	}
	return failpoint.Pass("cgroup", "io")
}

// CheckIO says why what VMMs do with the disk of a path cannot be limited; nil where it
// can.
func (c *Cgroups) CheckIO(path string) error {
	there, err := c.Controllers()
	if err != nil {
		return err
	}
	if !slices.Contains(there, "io") {
		return errNoIO("the host's cgroups (version 2) have no controller io")
	}
	if _, err = linux.WholeDisk(path); errors.Is(err, linux.ErrNoDisk) {
		return errNoIO(err.Error())
	}
	return err
}

func errNoIO(why string) error {
	return api.Errorf(api.CodeUnsupported, "limit what disks do: %s", why).WithHint("--io none")
}
