package vmm_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// limited makes a cgroup with limits, on a host that has the controllers. A VM that plays
// a host runs these tests where the machine has none.
func limited(t *testing.T, l vmm.Limits) (dir string) {
	t.Helper()
	c := newCgroups(t)
	if there, err := c.Controllers(); err != nil || !slices.Equal(slices.Sorted(slices.Values(there)), []string{"cpu", "io", "memory", "pids"}) {
		t.Skipf("this host's cgroups have the controllers %v: %v", there, err)
	}
	spec, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	ref := resource.Ref{Kind: c.Kind(), Name: c.Name("limited"), Spec: spec}
	if err := c.Acquire(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Release(context.Background(), ref); err != nil {
			t.Error(err)
		}
	})
	return c.Path(ref.Name)
}

// runIn runs a script in a cgroup and returns what it said, and how it ended.
func runIn(t *testing.T, dir, script string) (said string, state *os.ProcessState) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState
}

func readCgroup(t *testing.T, dir, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestLimitsAreSet(t *testing.T) {
	dir := limited(t, vmm.LimitsFor(2, 512<<20, 128<<20))
	for file, want := range map[string]string{
		"memory.max": "738197504", "memory.high": "max", "memory.oom.group": "1", "cpu.max": "300000 100000", "pids.max": "130",
	} {
		if got := readCgroup(t, dir, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

func TestNoLimits(t *testing.T) {
	dir := limited(t, vmm.Limits{})
	for file, want := range map[string]string{"memory.max": "max", "cpu.max": "max 100000", "pids.max": "max"} {
		if got := readCgroup(t, dir, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

// Who takes too much memory dies as a whole, and it can be told why.
func TestLimitsMemory(t *testing.T) {
	dir := limited(t, vmm.Limits{Memory: 32 << 20})
	if said := vmm.OutOfMemory(dir); said != "" {
		t.Errorf("before: %q", said)
	}
	_, state := runIn(t, dir, "tail -n 1 /dev/zero; echo the rest lives")
	if ws := state.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("it ended as %v", state)
	}
	if said := vmm.OutOfMemory(dir); said != "out of memory: the VMM needed more than the 32 MiB that it may have" {
		t.Errorf("after: %q", said)
	}
}

func TestLimitsTasks(t *testing.T) {
	dir := limited(t, vmm.Limits{Tasks: 4})
	said, state := runIn(t, dir, "for i in 1 2 3 4 5 6; do sleep 100 >/dev/null 2>&1 & done; echo all")
	if !strings.Contains(strings.ToLower(said), "cannot fork") || state.Success() {
		t.Errorf("6 processes beside the shell, of 4 that may be: %v, %s", state, said)
	}
}

func TestLimitsCPU(t *testing.T) {
	dir := limited(t, vmm.Limits{CPU: 10})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	busy := exec.Command("sh", "-c", "while :; do :; done")
	busy.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = busy.Process.Kill()
		_ = busy.Wait() // it was killed
	}()
	throttled := func() bool {
		for line := range strings.Lines(readCgroup(t, dir, "cpu.stat")) {
			if n, found := strings.CutPrefix(line, "nr_throttled "); found && strings.TrimSpace(n) != "0" {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(time.Minute); !throttled(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a busy process was never held up")
		}
	}
}

// Disks are slowed down, from one moment to the next, and let go again.
func TestLimitsIO(t *testing.T) {
	dir := limited(t, vmm.Limits{})
	files, err := os.MkdirTemp(".", "disk") // which is on a disk: not t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(files)
	disk, err := linux.WholeDisk(files)
	if err != nil {
		t.Fatal(err)
	}
	if err := (vmm.IO{Path: files, WriteBPS: 1 << 20, ReadIOPS: 500}).Limit(dir); err != nil {
		t.Fatal(err)
	}
	if got, want := readCgroup(t, dir, "io.max"), disk+" rbps=max wbps=1048576 riops=500 wiops=max"; got != want {
		t.Errorf("io.max is %q, want %q", got, want)
	}
	before := time.Now()
	said, state := runIn(t, dir, "dd if=/dev/zero of="+files+"/file bs=64k count=48 oflag=direct")
	if !state.Success() {
		t.Fatal(said)
	}
	if took := time.Since(before); took < 2*time.Second {
		t.Errorf("3 MiB at 1 MiB a second were written in %v", took)
	}
	if err := (vmm.IO{Path: files}).Limit(dir); err != nil {
		t.Fatal(err)
	}
	if got := readCgroup(t, dir, "io.max"); got != "" {
		t.Errorf("without limits io.max is %q", got)
	}
}

// Limits that nothing would keep are refused.
func TestIOWithoutDisk(t *testing.T) {
	c := newCgroups(t)
	err := c.CheckIO("/proc")
	if api.CodeOf(err) != api.CodeUnsupported {
		t.Errorf("got %v, want unsupported", err)
	}
}
