// Package vmmtest is the conformance suite of vmm.Driver: what package vm relies
// on, shown with real kernels in real machines. Every driver's tests run it.
package vmmtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/api"
	"banger/internal/guest"
	"banger/internal/guest/wire"
	"banger/internal/linux"
	"banger/internal/resource"
	"banger/internal/vmm"
)

// patience bounds each wait: a boot without hardware virtualization, on a machine
// that has other things to do.
const patience = 90 * time.Second

// Boot is a kernel, and an initramfs with banger's agent, which the machines of
// the suite boot.
type Boot struct{ Kernel, Initrd string }

// BootFromEnv returns what BANGER_TEST_VMLINUX and BANGER_TEST_INITRD name. It
// skips t where they are not set or where t may not make cgroups.
func BootFromEnv(t testing.TB) Boot {
	t.Helper()
	b := Boot{Kernel: os.Getenv("BANGER_TEST_VMLINUX"), Initrd: os.Getenv("BANGER_TEST_INITRD")}
	if b.Kernel == "" || b.Initrd == "" {
		t.Skip("BANGER_TEST_VMLINUX and BANGER_TEST_INITRD name nothing to boot: run make test")
	}
	if os.Getuid() != 0 {
		t.Skip("a machine's cgroup needs root")
	}
	return b
}

// Conformance holds a driver to its contract. NewDriver makes a driver that shares
// no memory with the ones before it, as after a restart of the daemon.
func Conformance(t *testing.T, newDriver func() vmm.Driver, boot Boot) {
	t.Run("check", func(t *testing.T) {
		info, err := newDriver().Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !filepath.IsAbs(info.Binary) || info.Version == "" || info.Accel == "" || info.Reason == "" {
			t.Errorf("Check left something out: %+v", info)
		}
	})
	t.Run("run", func(t *testing.T) { testRun(t, newDriver, boot) })
	t.Run("power off", func(t *testing.T) { testPowerOff(t, newDriver(), boot) })
	t.Run("suspend", func(t *testing.T) { testSuspend(t, newDriver, boot) })
	t.Run("bad kernel", func(t *testing.T) { testBadKernel(t, newDriver(), boot) })
	t.Run("cancelled start", func(t *testing.T) { testCancelledStart(t, newDriver(), boot) })
	t.Run("attach to nothing", func(t *testing.T) {
		m := newMachine(t, boot)
		if _, err := newDriver().Attach(t.Context(), m.Machine); err == nil {
			t.Error("attached to a machine that was never started")
		}
	})
}

// Unconfined runs a machine of a driver that does not confine its VMMs.
func Unconfined(t *testing.T, newDriver func() vmm.Driver, boot Boot) {
	m := newMachine(t, boot)
	inst, err := newDriver().Start(t.Context(), m.Machine)
	if err != nil {
		t.Fatal(err)
	}
	m.reachAgent(t, inst)
	m.checkDisks(t)
	m.kill(t)
	awaitExit(t, inst)
}

// testRun follows one machine from its start, over a restart of the daemon, to the
// death of its VMM.
func testRun(t *testing.T, newDriver func() vmm.Driver, boot Boot) {
	m := newMachine(t, boot)
	must(t, os.WriteFile(m.Console, []byte(earlier), 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	first, err := newDriver().Start(ctx, m.Machine)
	if err != nil {
		t.Fatal(err)
	}
	cancel() // which is to have no effect any more
	if pids := m.pids(t); !slices.Equal(pids, []int{first.PID()}) {
		t.Errorf("the cgroup holds %v, PID says %d", pids, first.PID())
	}
	m.reachAgent(t, first)
	m.checkDisks(t)
	m.checkConfined(t, first.PID())
	if text := m.console(t); !strings.HasPrefix(text, earlier) {
		t.Errorf("the console was not appended to: %.100q", text)
	}
	checkLimits(t, first.PID())
	m.checkResize(t, first)

	second, err := newDriver().Attach(t.Context(), m.Machine)
	if err != nil {
		t.Fatal(err)
	}
	if second.PID() != first.PID() || second.Channel() != first.Channel() {
		t.Errorf("attached to process %d by %s, started %d by %s", second.PID(), second.Channel(), first.PID(), first.Channel())
	}
	m.reachAgent(t, second)
	if err := second.Close(); err != nil {
		t.Error("let go:", err)
	}
	third, err := newDriver().Attach(t.Context(), m.Machine) // Close did it no harm
	if err != nil {
		t.Fatal(err)
	}
	notExited(t, first)
	notExited(t, third)
	m.checkStandstill(t, newDriver)

	m.kill(t)
	awaitExit(t, first)
	awaitExit(t, third)
	if exit := first.Exit(); !exit.Known || exit.Signal == "" || exit.At.IsZero() {
		t.Errorf("its starter saw a killed VMM exit as %+v", exit)
	}
	if exit := third.Exit(); exit.Known || exit.At.IsZero() {
		t.Errorf("a later daemon saw a killed VMM exit as %+v", exit)
	}
	if _, err := newDriver().Attach(t.Context(), m.Machine); err == nil {
		t.Error("attached to a dead machine")
	}
}

// testPowerOff has the VMM end because the guest does.
func testPowerOff(t *testing.T, d vmm.Driver, boot Boot) {
	m := newMachine(t, boot)
	inst, err := d.Start(t.Context(), m.Machine)
	if err != nil {
		t.Fatal(err)
	}
	conn := m.connect(t, inst)
	defer conn.Close()
	if err := inst.PowerButton(t.Context()); err != nil && api.CodeOf(err) != api.CodeUnsupported { // this guest does not heed it
		t.Error("power button:", err)
	}
	if err := conn.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitExit(t, inst)
	if exit := inst.Exit(); !exit.Known || exit.Code != 0 || exit.Signal != "" {
		t.Errorf("after a power-off the VMM exited as %+v", exit)
	}
	if pids := m.pids(t); len(pids) != 0 {
		t.Errorf("processes %v are left", pids)
	}
}

func testBadKernel(t *testing.T, d vmm.Driver, boot Boot) {
	m := newMachine(t, boot)
	m.Kernel = filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(m.Kernel, []byte("not a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Log, []byte(earlier), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.Start(t.Context(), m.Machine)
	if err == nil {
		t.Fatal("started without a kernel")
	}
	text := err.Error()
	if code := api.AsError(err).Code; code != api.CodeUnavailable && code != api.CodeInternal {
		t.Errorf("code %s: %v", code, err)
	}
	if strings.Contains(text, "\n") || !strings.Contains(text, "kernel") || strings.Contains(text, "earlier run") {
		t.Errorf("want one line with what the VMM said in this run: %q", text)
	}
	if pids := m.pids(t); len(pids) != 0 {
		t.Errorf("processes %v are left", pids)
	}
}

func testCancelledStart(t *testing.T, d vmm.Driver, boot Boot) {
	if _, err := d.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, boot)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Start(ctx, m.Machine); err == nil {
		t.Error("started although the context had ended")
	}
	if pids := m.pids(t); len(pids) != 0 {
		t.Errorf("processes %v are left", pids)
	}
}

// machine is a machine with what it needs on the host.
type machine struct {
	vmm.Machine
	sync   string
	cgroup func() error // kills it
}

// NewMachine returns a machine as those of the suite, ready to be started, and what kills
// it. Both end with t.
func NewMachine(t testing.TB, boot Boot) (m vmm.Machine, kill func() error) {
	made := newMachine(t, boot)
	return made.Machine, made.cgroup
}

// newMachine makes a machine with four disks of different sizes, in directories
// whose names no command line and no socket address likes.
func newMachine(t testing.TB, boot Boot) *machine {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a,b=c", strings.Repeat("long", 25))
	runDir := filepath.Join(dir, "run")
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 16)
	rand.Read(secret)
	m := &machine{sync: hex.EncodeToString(secret)}
	m.Machine = vmm.Machine{
		ID: "test", UID: testUID, CPUs: 1, Memory: 256 << 20, Kernel: boot.Kernel, Initrd: boot.Initrd,
		Cmdline: "ignore_loglevel " + wire.Boot{Layers: []string{"vda"}, Upper: "vdb", Sync: m.sync}.Cmdline(),
		Console: filepath.Join(dir, "console.log"), Log: filepath.Join(dir, "vmm.log"), RunDir: runDir,
	}
	for i := range 4 {
		disk := vmm.Disk{Path: filepath.Join(dir, fmt.Sprintf("disk%d", i)), ReadOnly: i != 1}
		makeExt4(t, disk.Path, diskMiB(i))
		m.Disks = append(m.Disks, disk)
	}
	m.Cgroup, m.cgroup = NewCgroup(t)
	return m
}

// testUID is a user that there is nowhere else.
const testUID = 0x7fff1234

func diskMiB(i int) int { return 20 - 4*i }

func makeExt4(t testing.TB, path string, mib int) {
	t.Helper()
	cmd := exec.Command("mke2fs", "-q", "-t", "ext4", path, fmt.Sprintf("%dM", mib))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil { // the search used the PATH of the test
		cmd.Path, cmd.Err = "/usr/sbin/mke2fs", nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
}

// NewCgroup makes a cgroup that ends with t, of an installation of its own.
func NewCgroup(t testing.TB) (dir string, kill func() error) {
	t.Helper()
	cgroups, err := vmm.NewCgroups("vmmtest-" + resource.RandomName(4))
	if err != nil {
		t.Fatal(err)
	}
	ref := resource.Ref{Kind: cgroups.Kind(), Name: cgroups.Name(resource.RandomName(4))}
	if err := cgroups.Acquire(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	dir = cgroups.Path(ref.Name)
	t.Cleanup(func() {
		if err := cgroups.Release(context.Background(), ref); err != nil {
			t.Error(err)
		}
	})
	return dir, func() error { return os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) }
}

func (m *machine) pids(t *testing.T) []int {
	t.Helper()
	pids, err := linux.CgroupPIDs(m.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

func (m *machine) kill(t *testing.T) {
	t.Helper()
	if err := m.cgroup(); err != nil {
		t.Fatal(err)
	}
}

// connect waits for the agent, through the driver's channel.
func (m *machine) connect(t *testing.T, inst vmm.Instance) *guest.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := guest.Connect(ctx, guest.Kind(inst.Channel()), inst.Dial, m.sync)
	if err != nil {
		t.Fatalf("%v; the console:\n%s", err, m.console(t))
	}
	return conn
}

func (m *machine) reachAgent(t *testing.T, inst vmm.Instance) {
	t.Helper()
	conn := m.connect(t, inst)
	defer conn.Close()
	if greeting, err := conn.Configure(t.Context(), wire.Configure{}); err != nil || greeting.Started <= 0 {
		t.Errorf("the agent: %+v, %v", greeting, err)
	}
}

func (m *machine) console(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(m.Console)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var diskLine = regexp.MustCompile(`\[(vd[a-z])\] (\d+) 512-byte logical blocks`)

// checkDisks finds on the console that the guest has the disks in their order.
func (m *machine) checkDisks(t *testing.T) {
	t.Helper()
	got := map[string]string{}
	for _, match := range diskLine.FindAllStringSubmatch(m.console(t), -1) {
		got[match[1]] = match[2]
	}
	for i := range m.Disks {
		name, want := "vd"+string(rune('a'+i)), fmt.Sprint(diskMiB(i)<<20/512)
		if got[name] != want {
			t.Errorf("%s has %s sectors, want %s; the guest has %v", name, got[name], want, got)
		}
	}
}

// earlier is what is on a console before a machine starts.
const earlier = "what an earlier run said\n"

// checkLimits finds that a VMM cannot fill its host's disk: its files have a largest size.
func checkLimits(t *testing.T, pid int) {
	t.Helper()
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	must(t, err)
	for line := range strings.Lines(string(limits)) {
		if soft, found := strings.CutPrefix(line, "Max file size"); found && strings.Fields(soft)[0] != "unlimited" {
			return
		}
	}
	t.Errorf("the files of the VMM may grow without end:\n%s", limits)
}

// checkResize has a disk grow, of which the guest's kernel hears.
func (m *machine) checkResize(t *testing.T, inst vmm.Instance) {
	t.Helper()
	size := int64(diskMiB(1)+4) << 20
	must(t, os.Truncate(m.Disks[1].Path, size))
	must(t, inst.ResizeDisk(t.Context(), 1, size))
	want := fmt.Sprintf("[vdb] new size: %d 512-byte logical blocks", size/512)
	for end := time.Now().Add(patience); !strings.Contains(m.console(t), want); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the guest says nothing of the size of its disk; the console:\n%s", m.console(t))
		}
	}
}

func notExited(t *testing.T, inst vmm.Instance) {
	t.Helper()
	select {
	case <-inst.Exited():
		t.Errorf("a running machine exited as %+v", inst.Exit())
	default:
	}
}

func awaitExit(t *testing.T, inst vmm.Instance) {
	t.Helper()
	select {
	case <-inst.Exited():
	case <-time.After(patience):
		t.Fatal("the end of the VMM was not noticed")
	}
}

// checkStandstill attaches to a machine that somebody has stopped for a while, as
// daemons do that are started again and again, and then finds it well.
func (m *machine) checkStandstill(t *testing.T, newDriver func() vmm.Driver) {
	t.Helper()
	pids := m.pids(t)
	if len(pids) != 1 {
		t.Fatalf("processes %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var last vmm.Instance
	for range 5 {
		inst, err := newDriver().Attach(t.Context(), m.Machine)
		if err != nil {
			t.Fatal("attach to a machine that stands still:", err)
		}
		notExited(t, inst)
		if last != nil {
			if err := last.Close(); err != nil {
				t.Error("let go:", err)
			}
		}
		last = inst
	}
	if err := syscall.Kill(pids[0], syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.reachAgent(t, last)
	if err := last.Close(); err != nil {
		t.Error("let go:", err)
	}
}
